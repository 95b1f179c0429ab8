"""bench/wire.py runs, checks its answers, and reports what a reader needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import peers
from cli_runner import ROOT, environment

TESTS = "to_16,from_64k,pingpong_from,call_to_16,call_from_16,erpc_to_1,erpc_from_16"


def test_the_wire_bench_measures_both_sides_in_one_run(tmp_path: Path, backend: str) -> None:
    if peers.otp28() is None:
        pytest.skip("needs_erlang: otp28")
    report = tmp_path / "wire.json"
    command = [
        sys.executable, str(ROOT / "bench" / "wire.py"), "--rounds", "1", "--seconds", "0.05",
        "--tests", TESTS, "--peers", f"tumen:{backend},tumen:epoll:loop,beam28",
        "--json", str(report),
    ]  # fmt: skip
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["reference"] == "beam28"
    assert found["peers"][f"tumen:{backend}"]["backend"] == backend
    assert found["hub"]["otp"] == "28"
    assert {"kernel", "cpu", "python", "rounds", "seconds", "pinned"} <= set(found)
    assert len(found["results"]) == 3 * len(TESTS.split(","))
    for row in found["results"]:
        assert row["n"] == 1
        assert row["count"] > 0
        assert 0 < row["min"] <= row["median"] <= row["max"]
        assert row["ratio"] > 0


def test_the_wire_bench_refuses_a_test_that_it_does_not_know() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "wire.py"), "--tests", "to_17"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no such test: to_17" in done.stderr
