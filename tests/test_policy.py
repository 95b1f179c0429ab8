"""tests/conftest.py keeps its word: a skip has a name, and where nothing may lack it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parent.parent


def run(folder: Path, text: str, **env: str) -> subprocess.CompletedProcess[str]:
    """pytest on one file, with our conftest as its plugin."""
    (folder / "test_it.py").write_text("import pytest\nfrom conftest import skip\n" + text)
    base = {key: value for key, value in os.environ.items() if key not in ("CI", "TUMEN_NO_SKIP")}
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider"]
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), str(folder)]
    return subprocess.run(
        [*command, *options],
        env=base | {"PYTHONPATH": str(ROOT / "tests")} | env,
        capture_output=True,
        text=True,
        check=False,
    )


NAMED = "def test_a():\n    skip('needs_erlang')\n"
UNNAMED = "def test_a():\n    pytest.skip('no time')\n"
MODULE = "pytest.skip('no time', allow_module_level=True)\n"
PASSED = "def test_a():\n    pass\n"
LEAK = (
    "import tumen._core\n"
    "counts = {'engines': 0}\n"
    "def test_a(monkeypatch):\n    pass\n"
    "tumen._core.debug_counters = lambda: dict(counts)\n"
    "def test_b():\n    counts['engines'] += 1\n"
)
WARNED = "import warnings\ndef test_a():\n    warnings.warn('look')\n"

PASS, FAIL = pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED
NOTHING = "nothing may be skipped here"
NOT_NAMED = "not one of the named reasons"
LEAKED = "leaked: {'engines': 0} before, {'engines': 1} after"

# What stands in the file, the variables of the run, how it ends, and what it says.
RUNS: dict[str, tuple[str, dict[str, str], pytest.ExitCode, str]] = {
    "a named skip in CI": (NAMED, {"CI": "1"}, FAIL, NOTHING),
    "a named skip in make test": (NAMED, {"TUMEN_NO_SKIP": "1"}, FAIL, NOTHING),
    "another skip in CI": (UNNAMED, {"CI": "1"}, FAIL, NOTHING),
    "a skipped file in CI": (MODULE, {"CI": "1"}, FAIL, NOTHING),
    "no skip in CI": (PASSED, {"CI": "1"}, PASS, ""),
    "a named skip elsewhere": (NAMED + PASSED.replace("_a", "_b"), {}, PASS, ""),
    "another skip elsewhere": (UNNAMED, {}, FAIL, NOT_NAMED),
    "a skipped file elsewhere": (MODULE, {}, FAIL, NOT_NAMED),
    "an object that stays": (LEAK, {}, FAIL, LEAKED),
    "a warning": (WARNED, {}, FAIL, ""),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All of these runs: most of each is the start of an interpreter, so two go at once."""

    def one(name: str) -> subprocess.CompletedProcess[str]:
        text, env, _, _ = RUNS[name]
        return run(tmp_path_factory.mktemp("run"), text, **env)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(RUNS, pool.map(one, RUNS), strict=True))


@pytest.mark.parametrize("name", RUNS)
def test_run_passes_or_fails_as_the_policy_says(name: str, ended: dict[str, Any]) -> None:
    _, _, code, words = RUNS[name]
    done = ended[name]
    assert done.returncode == code, done.stdout
    assert words in done.stdout
