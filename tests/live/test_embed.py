"""examples/embed.py: a node through cffi and tumen.h alone, in a poll loop of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import peers
from cli_runner import ROOT
from tumen import Atom

NODE = "embed@127.0.0.1"
# Seconds for the process to end by itself.
END = 30.0


@contextmanager
def embedded(beam: peers.Beam) -> Iterator[subprocess.Popen[str]]:
    """The example, connected to that node; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "embed.py"), NODE, beam.name],
        env={**os.environ, "TUMEN_COOKIE": beam.cookie, "ERL_EPMD_PORT": str(beam.epmd_port)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        # Waits for the connection; a look every 10 ms: the BEAM may have been told before it asks.
        beam.eval_sync(
            "W = fun W() -> case lists:member(N, nodes(hidden)) of"
            " true -> ok; false -> timer:sleep(10), W() end end, W()",
            N=Atom(NODE),
        )
        yield process
    finally:
        process.kill()
        process.communicate()


def test_it_answers_pings_and_calls_and_ends_when_told(beam: peers.Beam) -> None:
    server = "gen_server:call({embed, N}, R)"
    with embedded(beam) as process:
        assert beam.eval_sync("net_adm:ping(N)", N=Atom(NODE)) == Atom("pong")
        for request in (Atom("hello"), 7, [1.5, b"x" * 100_000, {Atom("a"): (1, 2**70)}]):
            reply = beam.eval_sync(server, N=Atom(NODE), R=request)
            assert reply == (Atom("echoed"), request)
        many = "[{echoed, I} = gen_server:call({embed, N}, I) || I <- lists:seq(1, 200)], ok"
        assert beam.eval_sync(many, N=Atom(NODE)) == Atom("ok")
        assert beam.eval_sync(server, N=Atom(NODE), R=Atom("stop")) == Atom("ok")
        out, _ = process.communicate(timeout=END)
    assert process.returncode == 0
    assert f"up {beam.name}" in out.splitlines()
    assert out.splitlines()[-1] == "closed"


def test_an_unknown_name_is_noproc(beam: peers.Beam) -> None:
    with embedded(beam):
        source = "try gen_server:call({nobody, N}, x) catch exit:{R, _} -> R end"
        assert beam.eval_sync(source, N=Atom(NODE)) == Atom("noproc")


def test_it_ends_when_the_peer_is_gone(
    start_beam: Callable[..., peers.Beam], otp: peers.Runtime
) -> None:
    beam = start_beam(otp)
    with embedded(beam) as process:
        beam.kill()
        out, _ = process.communicate(timeout=END)
    assert process.returncode == 0
    assert f"down {beam.name}" in out


def test_it_gives_up_when_nobody_is_there(epmd: peers.Epmd) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "embed.py"), NODE, "nobody@127.0.0.1"],
        env={**os.environ, "TUMEN_COOKIE": peers.COOKIE, "ERL_EPMD_PORT": str(epmd.port)},
        capture_output=True,
        text=True,
        timeout=END,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "down nobody@127.0.0.1: the port mapper does not know that node" in done.stdout


@pytest.mark.parametrize("ready", ["cookie", "peer"])
def test_it_says_what_is_missing(ready: str) -> None:
    args = [NODE, "peer@127.0.0.1"] if ready == "peer" else [NODE]
    env = {key: value for key, value in os.environ.items() if key != "TUMEN_COOKIE"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "embed.py"), *args],
        env=env, capture_output=True, text=True, timeout=END, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert ("TUMEN_COOKIE" if ready == "peer" else "usage") in done.stderr
