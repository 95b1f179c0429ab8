"""The bench runs, checks its answers, and reports what a reader needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import peers
from cli_runner import ROOT, environment

RUN = ROOT / "bench" / "run.py"


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUN), *args]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=110, check=False
    )


def quick(folder: Path, only: str) -> dict[str, Any]:
    """The report of two short rounds of some questions."""
    path = folder / "figures.json"
    done = bench("--quick", "--only", only, "--json", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(path.read_text())
    assert {row["name"] for row in found["questions"]} == set(only.split(","))
    return found


def check(row: dict[str, Any], metric: str, *contenders: str) -> None:
    """A question's report has its medians, and a ratio with an interval to each opponent."""
    assert set(contenders) <= set(row["contenders"]), row["cannot"]
    for entry in row["contenders"].values():
        assert entry["count"] > 0
        assert len(entry[metric]["values"]) == 2
        assert 0 < entry[metric]["min"] <= entry[metric]["median"] <= entry[metric]["max"]
    ours, *others = contenders
    for theirs in others:
        (ratio,) = (
            entry["ratio"]
            for entry in row["ratios"]
            if (entry["ours"], entry["theirs"], entry["metric"]) == (ours, theirs, metric)
        )
        assert 0 < ratio[1] <= ratio[0] <= ratio[2]
    assert 0 <= row["foreign_share"] <= 1


def test_the_bench_measures_nodes_and_beams_in_turns(tmp_path: Path, backend: str) -> None:
    if peers.otp28() is None:
        pytest.skip("needs_erlang: otp28")
    # All of them play on both backends anyway: that the default is the one asked for shows in one.
    once = backend == (os.environ.get("TUMEN_BACKEND") or "uring")
    asked = "to_16,pingpong_from,call_from_16,python_to_python_16"
    found = quick(tmp_path, asked if once else "python_to_python_16")
    assert found["rounds"] == 2
    assert {"kernel", "cpu", "python", "packages", "revision", "seed", "pinned"} <= set(found)
    who = found["who"]["wire"]
    assert who["tumen"]["backend"] == backend
    assert who["hub:beam28"]["otp"] == "28"
    rows = {row["name"]: row for row in found["questions"]}
    check(rows["python_to_python_16"], "rate", "tumen", "beam28")
    if not once:
        return
    for name in ("to_16", "call_from_16"):
        check(rows[name], "rate", "tumen", "tumen:epoll", "tumen:loop", "beam28", "beam25")
        assert rows[name]["contenders"]["tumen"]["engine_calls"]["median"] > 0
        assert rows[name]["contenders"]["beam28"]["cpu_us"]["median"] > 0
    check(rows["pingpong_from"], "p99_us", "tumen", "tumen:loop", "beam28")
    reached = {goal["reached"] for goal in rows["to_16"]["goals"]}
    assert reached <= {"yes", "interval", "no", "not measured"}


def test_the_bench_puts_20_ms_between_nodes(tmp_path: Path) -> None:
    if peers.otp28() is None:
        pytest.skip("needs_erlang: otp28")
    rows = {row["name"]: row for row in quick(tmp_path, "far_from_16,far_pingpong_to")["questions"]}
    check(rows["far_from_16"], "rate", "tumen", "tumen:epoll", "beam28")
    check(rows["far_pingpong_to"], "p50_us", "tumen", "tumen:epoll", "beam28")
    for entry in rows["far_pingpong_to"]["contenders"].values():
        assert entry["p50_us"]["min"] >= 2 * 20_000


def test_the_bench_compares_backends_on_many_links(tmp_path: Path) -> None:
    cells = "echo_10_64,in_10_16k,out_10_64"
    found = quick(tmp_path, cells)
    if os.environ.get("TUMEN_BACKEND") == "epoll":
        for row in found["questions"]:
            assert row["cannot"] == {"tumen:uring": "TUMEN_BACKEND=epoll"}
        return
    for row in found["questions"]:
        check(row, "per_cpu_s", "tumen:uring", "tumen:epoll")
    who = found["who"]["backends"]
    assert [who[name]["backend"] for name in ("tumen:uring", "tumen:epoll")] == ["uring", "epoll"]


def test_the_bench_asks_what_a_port_would_cost_instead(tmp_path: Path) -> None:
    if peers.otp28() is None:
        pytest.skip("needs_erlang: otp28")
    for row in quick(tmp_path, "instead_map,instead_binary")["questions"]:
        check(row, "per_cpu_s", "tumen", "port:tumen")


def test_the_bench_refuses_a_question_that_it_does_not_know() -> None:
    done = bench("--only", "to_17")
    assert done.returncode == 2
    assert "no such question: to_17" in done.stderr
