"""tests/conftest.py keeps its word: a skip has a name, and where nothing may lack it fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("variable", ["CI", "TUMEN_NO_SKIP"])
@pytest.mark.parametrize("text", [NAMED, UNNAMED, MODULE])
def test_skip_fails_a_run_that_allows_none(tmp_path: Path, text: str, variable: str) -> None:
    done = run(tmp_path, text, **{variable: "1"})
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "nothing may be skipped here" in done.stdout


def test_named_skip_passes_elsewhere(tmp_path: Path) -> None:
    assert run(tmp_path, NAMED + PASSED.replace("_a", "_b")).returncode == pytest.ExitCode.OK


@pytest.mark.parametrize("text", [UNNAMED, MODULE])
def test_skip_without_one_of_the_names_fails_everywhere(tmp_path: Path, text: str) -> None:
    done = run(tmp_path, text)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "not one of the named reasons" in done.stdout


def test_passing_run_passes_where_nothing_may_be_skipped(tmp_path: Path) -> None:
    assert run(tmp_path, PASSED, CI="1").returncode == pytest.ExitCode.OK


def test_object_that_stays_is_a_failure(tmp_path: Path) -> None:
    leak = (
        "import tumen._core\n"
        "counts = {'engines': 0}\n"
        "def test_a(monkeypatch):\n    pass\n"
        "tumen._core.debug_counters = lambda: dict(counts)\n"
        "def test_b():\n    counts['engines'] += 1\n"
    )
    done = run(tmp_path, leak)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "leaked: {'engines': 0} before, {'engines': 1} after" in done.stdout


def test_warning_is_a_failure(tmp_path: Path) -> None:
    done = run(tmp_path, "import warnings\ndef test_a():\n    warnings.warn('look')\n")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
