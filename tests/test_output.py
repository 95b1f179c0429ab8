"""What other processes print here goes to the standard output without ever stalling the node."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import tumen
from nodes import make_node, pair, until
from tumen import Atom
from tumen.services import io as io_service
from tumen.services import output

pytestmark = pytest.mark.asyncio

OK = Atom("ok")
FILLING = b"-"


class FullPipe:
    """A standard output that nobody reads."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        self.stream = os.fdopen(writer, "w", encoding="utf-8")
        os.set_blocking(writer, False)
        self.filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                self.filled += os.write(writer, FILLING * 1024)
        os.set_blocking(writer, True)

    def read(self, count: int) -> bytes:
        """So many bytes after those that filled it."""
        got = b""
        while len(got) < self.filled + count:
            got += os.read(self.reader, 1 << 16)
        assert got[: self.filled] == FILLING * self.filled
        return got[self.filled :]

    def close(self) -> None:
        os.close(self.reader)
        with contextlib.suppress(OSError):
            self.stream.close()


@pytest.fixture
def full() -> Iterator[FullPipe]:
    pipe = FullPipe()
    yield pipe
    pipe.close()


def waiting(node: tumen.Node, of: tumen.Node | None = None) -> int:
    """How many requests wait at the user of a node, of its own processes or of another node."""
    user: Any = node._running.services.io.process
    return user._backlog.count((of or node).name) if hasattr(user, "_backlog") else 0


def writers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tumen-output"]


async def test_full_pipe_holds_up_who_prints_and_nobody_else(
    backend: str, full: FullPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", full.stream)
    async with pair() as (a, b):
        first = asyncio.create_task(b.put_chars(("user", a.name), "first\n", timeout=None))
        second = asyncio.create_task(a.put_chars("user", "second\n", timeout=None))
        await until(lambda: waiting(a, b) == 1)
        # The node lives: it answers, and its user too.
        for _ in range(100):
            assert await b.ping(a.name)
        assert await ask_options(b, a.name) == [(Atom("binary"), True), ("encoding", "unicode")]
        with pytest.raises(tumen.CallTimeout):
            await b.put_chars(("user", a.name), "third\n", timeout=0.01)
        assert not first.done()
        assert not second.done()
        text = await asyncio.to_thread(full.read, len("first\nsecond\nthird\n"))
        assert sorted(text.splitlines()) == [b"first", b"second", b"third"]
        async with asyncio.timeout(5):
            await asyncio.gather(first, second)
        user: Any = a._running.services.io.process
        await until(lambda: not user._queues)
        assert user._backlog.bytes_all == 0
    await until(lambda: not writers())


async def ask_options(node: tumen.Node, peer: str) -> Any:
    """io:getopts of the user of a node, from a process of its own."""
    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        proc.send(("user", peer), (Atom("io_request"), proc.pid, 1, Atom("getopts")))
        result.set_result((await proc.receive())[2])

    node.spawn(main)
    first, second = await result
    return [first, tuple(str(part) for part in second)]


async def test_node_stops_while_its_output_is_stuck(
    backend: str,
    full: FullPipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "stdout", full.stream)
    async with make_node() as node:
        texts = [
            asyncio.create_task(node.put_chars("user", "x" * 100_000, timeout=None))
            for _ in range(3)
        ]
        await until(lambda: waiting(node) == 3)
        async with asyncio.timeout(5):
            await node.stop()
    for text in texts:
        with pytest.raises(tumen.TumenError):
            await text
    await until(lambda: not writers())
    lost = [r.args[0] for r in caplog.records if "has not taken" in r.getMessage()]  # type: ignore[index]
    assert sum(lost) == 3  # type: ignore[arg-type]


async def test_order_and_text_survive_a_slow_reader(
    backend: str, full: FullPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text larger than a pipe is written in pieces; each process has its own order."""
    monkeypatch.setattr(sys, "stdout", full.stream)
    large = "grün€😀" * 30_000
    want = (large + "\n" + "next\n").encode()
    async with make_node() as node:

        async def prints(proc: tumen.Process) -> None:
            for number, text in enumerate((large + "\n", "next\n")):
                request = (Atom("put_chars"), Atom("unicode"), text)
                proc.send("user", (Atom("io_request"), proc.pid, number, request))
            assert [(await proc.receive())[1:] for _ in range(2)] == [(0, OK), (1, OK)]

        pid = node.spawn(prints)
        got = await asyncio.to_thread(full.read, len(want))
        assert got == want
        assert await node.join(pid) in (Atom("normal"), Atom("noproc"))


async def test_what_waits_for_the_output_is_bounded_in_bytes(
    backend: str,
    full: FullPipe,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "stdout", full.stream)
    monkeypatch.setattr(io_service, "_WAITING_BYTES_MAX", 3_000)
    monkeypatch.setattr(io_service, "_WAITING_BYTES_ALL_MAX", 4_000)
    async with pair() as (a, b):
        printing = [
            asyncio.create_task(b.put_chars(("user", a.name), "x" * 1_000, timeout=None))
            for _ in range(6)
        ]
        await until(lambda: sum(task.done() for task in printing) == 3)
        for task in (task for task in printing if task.done()):
            with pytest.raises(tumen.RemoteError) as refused:
                await task
            assert refused.value.reason == Atom("system_limit")
        # Another node may go on, up to the bound of all.
        own = asyncio.create_task(a.put_chars("user", "y" * 1_000, timeout=None))
        await until(lambda: waiting(a) == 1)
        with pytest.raises(tumen.RemoteError):
            await a.put_chars("user", "z")
        await asyncio.to_thread(full.read, 4_000)
        await own
        assert sum(task.done() for task in printing) >= 3
        await asyncio.gather(*printing, return_exceptions=True)
        await b.put_chars(("user", a.name), "there is room again")
        assert "prints more than can be written" in caplog.text


async def test_output_that_was_closed_is_an_error_for_the_one_who_prints(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        async with make_node() as node:
            for _ in range(2):
                with pytest.raises(tumen.RemoteError) as refused:
                    await node.put_chars("user", "x")
                assert refused.value.reason == Atom("terminated")
            assert node.whereis("user") is not None
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            stream.close()


async def test_a_thread_writes_and_none_is_made_before(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.StringIO):
        def write(self, text: str) -> int:
            threads.append(threading.current_thread().name)
            return super().write(text)

    threads: list[str] = []
    monkeypatch.setattr(sys, "stdout", Stream())
    async with make_node() as node:
        assert not writers()
        await node.put_chars("user", "a" * (output._CHUNK_CHARS + 1))
        assert threads == ["tumen-output"] * 2
        assert len(writers()) == 1
    await until(lambda: not writers())
