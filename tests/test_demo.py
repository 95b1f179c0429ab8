"""`tumen demo` without a BEAM: its story, its ledger, and what is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import peers
from cli_runner import ANSWER, ROOT, alive, children, environment, tumen
from tumen.cli.demo import Demo, Plan
from tumen.cli.demo_app import Ledger, rank
from tumen.cli.demo_beam import source
from tumen.cli.screen import PlainScreen, Screen
from tumen.terms import Atom

STAGES = [
    "Nodes",
    "Pings in every direction",
    "Calls both ways",
    "A monitored Python process crashes",
    "A connection is cut and restored",
]


def test_the_demo_without_a_beam_loses_nothing(backend: str) -> None:
    done = tumen("demo", "--no-beam", "--seconds", "1", "--json", TUMEN_BACKEND=backend)
    report = json.loads(done.stdout)
    assert done.returncode == 0, report
    assert report["ok"]
    assert report["failures"] == []
    assert {check["stage"] for check in report["checks"]} == set(STAGES)
    assert all(check["ok"] for check in report["checks"])
    directions = {(row["from"], row["to"]): row for row in report["traffic"]}
    assert set(directions) == {
        ("py1@127.0.0.1", "py2@127.0.0.1"),
        ("py2@127.0.0.1", "py1@127.0.0.1"),
    }
    for row in directions.values():
        assert row["calls"] > 0
        assert row["messages"] > 0
        assert (row["lost"], row["wrong"]) == (0, 0)
        assert 0 < row["p50_us"] <= row["p99_us"]


def test_in_a_pipe_it_shows_plain_lines_as_they_happen() -> None:
    done = tumen("demo", "--no-beam", "--seconds", "0.5")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    stages = [line[3:] for line in done.stdout.splitlines() if line.startswith("== ")]
    assert stages == [*STAGES, "Mixed traffic, 0.5 s"]
    assert "py2@127.0.0.1 got 'DOWN': {{python_error" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("none lost, none wrong.")
    # A crash that is part of the story is no news.
    assert done.stderr == ""


def test_on_a_terminal_it_shows_colour_and_progress() -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tumen", "demo", "--no-beam", "--seconds", "1"],
        env=environment(TERM="xterm-256color"), cwd=ROOT, stdout=slave, stderr=slave,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(slave)
    shown = b""
    deadline = time.monotonic() + ANSWER
    try:
        while time.monotonic() < deadline:
            if not select.select([master], [], [], 1)[0]:
                continue
            try:
                data = os.read(master, 65536)
            except OSError:
                break
            if not data:
                break
            shown += data
        assert process.wait(ANSWER) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert b"\x1b[" in shown
    assert "✓".encode() in shown
    assert b"has taken" in shown


def test_require_beam_fails_without_one() -> None:
    done = tumen("demo", "--require-beam", "--seconds", "0.2", PATH="/nonexistent",
                 TUMEN_OTP28_ROOT=None)  # fmt: skip
    assert done.returncode == 1
    assert "BAD a BEAM joined" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("failed: 1 thing")


def test_a_beam_that_cannot_start_is_told_and_fails(tmp_path: Path) -> None:
    erl = tmp_path / "erl"
    erl.write_text("#!/bin/sh\necho no emulator here >&2\nexit 3\n")
    erl.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = tumen("demo", "--seconds", "0.2", PATH=path, TUMEN_OTP28_ROOT=None)
    assert done.returncode == 1
    assert "beam1@127.0.0.1 joined: ended with 3: no emulator here" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_nothing_is_left_when_it_is_ended(number: int) -> None:
    # A run in the background of a script ignores SIGINT, and so would its children.
    command = ["env", "--default-signal=INT", sys.executable, "-m", "tumen", "demo"]
    command += ["--seconds", "60"]
    if shutil.which("erl") is None:
        command.append("--no-beam")
    process = subprocess.Popen(
        command, env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("== Mixed"):
                break
        started = children(process.pid)
        assert started
        process.send_signal(number)
        process.communicate(timeout=ANSWER)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    peers.wait_for("its children to end", lambda: not any(map(alive, started)))


# -- the ledger ------------------------------------------------------------------------------------


def ledger() -> Ledger:
    book = Ledger()
    asyncio.run(book.init())
    return book


def report_after(numbers: list[int]) -> Any:
    book = ledger()
    for number in numbers:
        book.handle_info((Atom("seq"), b"key", number))
    return book.handle_call((Atom("report"), b"key"), None)


@pytest.mark.parametrize(
    ("numbers", "count", "wrong"),
    [([], 0, 0), ([0, 1, 2], 3, 0), ([0, 2], 2, 1), ([1, 0], 2, 2), ([0, 0, 1], 3, 2)],
)
def test_the_ledger_sees_what_is_missing_doubled_or_out_of_order(
    numbers: list[int], count: int, wrong: int
) -> None:
    assert report_after(numbers) == (count, wrong)


def settle(tally: Any) -> list[str]:
    demo = Demo.__new__(Demo)
    demo.plan = Plan(seconds=1, beam=False, require_beam=False, backend=None)
    demo.traffic, demo.failures = [], []

    async def traffic() -> Any:
        return tally

    asyncio.run(demo.direction("a", "b", traffic()))
    return demo.failures


@pytest.mark.parametrize(
    ("tally", "said"),
    [
        ((10, 10, 10, 0, 1, 2, ""), []),
        ((10, 10, 9, 0, 1, 2, ""), ["a → b: 1 lost, 0 wrong"]),
        ((10, 10, 10, 3, 1, 2, ""), ["a → b: 0 lost, 3 wrong"]),
        ((0, 0, 0, 0, 0, 0, ""), ["a → b: 0 lost, 0 wrong"]),
        ((10, 10, 10, 0, 1, 2, b"{timeout,x} "), ["a → b: {timeout,x}"]),
    ],
)
def test_a_direction_that_loses_or_errs_fails_the_demo(tally: Any, said: list[str]) -> None:
    assert settle(tally) == said


def test_a_wrong_answer_is_shown_and_remembered() -> None:
    demo = Demo.__new__(Demo)
    demo.screen, demo.failures = Screen(), []
    demo.same("right", (Atom("ok"), 1), (Atom("ok"), 1))
    assert demo.failures == []
    demo.same("not the same", 1.0, 1)
    assert demo.failures == ["not the same = 1.0, and not 1"]
    assert [check["ok"] for check in demo.screen.checks] == [True, False]


def test_ranks_are_values_that_were_measured() -> None:
    assert rank([], 50) == 0
    assert rank([7], 99) == 7
    assert rank(list(range(1, 101)), 50) == 50
    assert rank(list(range(1, 101)), 99) == 99


def test_names_are_quoted_where_they_go_into_erlang() -> None:
    text = source("{$node, $name, $nodes}", node=Atom("a-b@h"), nodes=[1])
    assert text == "{'a-b@h', tumen_demo, [1]}"


def test_a_plain_table_lines_up(capsys: pytest.CaptureFixture[str]) -> None:
    PlainScreen().table(["from", "to", "n"], [["a", "bb", "1"], ["aaaaa", "b", "1,000"]])
    assert re.split(r"\n", capsys.readouterr().out.rstrip()) == [
        "from   to      n",
        "a      bb      1",
        "aaaaa  b   1,000",
    ]
