"""The types that users see are those that tests/typing/api_types.py writes beside each line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCE = Path(__file__).with_name("api_types.py")


def plain(revealed: str) -> str:
    """Without the module that every builtin has, and without mypy's marks for inferred literals."""
    return re.sub(r"\bbuiltins\.|\?", "", revealed)


def test_revealed_types_are_the_expected_ones() -> None:
    expected = {
        number: line.rpartition("# expect: ")[2]
        for number, line in enumerate(SOURCE.read_text().splitlines(), 1)
        if "# expect: " in line
    }
    command = [sys.executable, "-m", "mypy", "--no-error-summary", str(SOURCE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = {
        int(number): plain(text)
        for number, text in re.findall(
            r'^\S+api_types\.py:(\d+): note: Revealed type is "(.*)"$', done.stdout, re.MULTILINE
        )
    }
    assert found == expected, done.stdout
    assert done.returncode == 0, done.stdout
