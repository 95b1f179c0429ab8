"""The scene of an attack: a node, an innocent peer on a connection of its own, and who watches.

    async with scene() as s:
        with s.evil() as evil:
            evil.dial(s.address).shake()
            ...
            down = await s.event(events.NodeDown, evil.name)

Whatever happens inside, when it ends: the innocent peer has had every message of its ledger echoed,
once and in order, on the connection it began with, and memory and sockets of the engine are what
they were before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import tumen
from faults.evil import Evil, integer, reg_send, tuple_of
from nodes import COOKIE, HOST, make_node, turn
from tumen import events

# Timed assertions are about seconds where milliseconds are usual; a sanitizer needs more of both.
PATIENCE = 5 if os.environ.get("TUMEN_SANITIZED") else 1
# What is due at some moment may come so much later: a machine that others use too may do nothing of
# ours for that long. Far less than what any of these tests would wait for if nothing came, seconds.
SLACK_S = 2.0 * PATIENCE
# What the engine may hold more than before an attack: tables that have grown do not shrink.
MEMORY_SLACK = 64 * 1024

T = TypeVar("T")
EventT = TypeVar("EventT")


async def eventually(what: str, check: Callable[[], T | None], timeout: float = 5.0) -> T:
    """Asks check again until its answer is true; for what has no event to wait on."""
    deadline = time.monotonic() + timeout * PATIENCE
    while not (answer := check()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout * PATIENCE} s")
        await asyncio.sleep(0.005)
    return answer


class Innocent(threading.Thread):
    """A peer that does nothing wrong: sends numbers to `ledger` and reads their echoes."""

    WINDOW = 20

    def __init__(self, evil: Evil) -> None:
        super().__init__(daemon=True)
        self.evil = evil
        self.echoed = 0
        self.slowest = 0.0
        self._error: BaseException | None = None
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            # One round at least comes after what it was all about.
            stopping = False
            while not stopping:
                stopping = self._stopping.wait(0.005)
                self._round()
        except BaseException as error:
            self._error = error

    def _round(self) -> None:
        me = self.evil.pid(7)
        numbers = range(self.echoed, self.echoed + self.WINDOW)
        start = time.monotonic()
        self.evil.send(b"".join(reg_send(me, "ledger", tuple_of(me, integer(n))) for n in numbers))
        for n in numbers:
            _, echo = self.evil.signal()
            assert echo == n, f"the ledger expects {n}, and {echo} came"
            self.echoed += 1
        self.slowest = max(self.slowest, time.monotonic() - start)

    def stop(self) -> None:
        """Ends it; AssertionError or what else has gone wrong."""
        self._stopping.set()
        self.join()
        if self._error is not None:
            raise AssertionError("the innocent peer was harmed") from self._error


class Scene:
    def __init__(self, node: tumen.Node) -> None:
        self.node = node
        self.address = (HOST, node.info().port)
        self.innocent = Innocent(Evil(cookie=COOKIE))
        # What `sink` got, in order.
        self.mail: list[Any] = []
        self.events: list[events.Event] = []
        self.memory_slack = MEMORY_SLACK
        self._happened = asyncio.Event()
        self._base: dict[str, int] = {}
        self.sink = node.spawn(self._sink, name="sink")
        node.spawn(self._ledger, name="ledger")

    @staticmethod
    async def _ledger(proc: tumen.Process) -> None:
        async for sender, number in proc:
            await proc.send_wait(sender, number)

    async def _sink(self, proc: tumen.Process) -> None:
        async for message in proc:
            self.mail.append(message)
            self._happened.set()

    async def watch(self) -> None:
        async for event in self.node.events():
            self.events.append(event)
            self._happened.set()

    # -- attacks -----------------------------------------------------------------------------------

    def evil(self, name: str | bytes | None = None, **options: Any) -> Evil:
        return Evil(name, **{"cookie": COOKIE, **options})

    def connected(self, name: str | bytes | None = None, **options: Any) -> Evil:
        """An attacker that has passed the handshake."""
        return self.evil(name, **options).dial(self.address).shake()

    def counters(self) -> dict[str, int]:
        return self.node.info().engine

    # -- what must happen --------------------------------------------------------------------------

    def seen(self, kind: type[EventT], node: str | None = None) -> list[EventT]:
        found = [event for event in self.events if isinstance(event, kind)]
        return [event for event in found if node in (None, getattr(event, "node", None))]

    async def event(
        self, kind: type[EventT], node: str | None = None, timeout: float = 5.0
    ) -> EventT:
        """The first event of that kind, about that node."""
        await self.until(f"{kind.__name__} {node}", lambda: self.seen(kind, node), timeout)
        return self.seen(kind, node)[0]

    async def got(self, count: int, timeout: float = 5.0) -> list[Any]:
        """So many messages of the sink; all that have come."""
        await self.until(f"{count} messages", lambda: len(self.mail) >= count, timeout)
        return self.mail

    async def until(self, what: str, check: Callable[[], object], timeout: float = 5.0) -> None:
        """Waits for events and mail until check is true."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout * PATIENCE):
                while not check():
                    self._happened.clear()
                    await self._happened.wait()
        assert check(), f"{what}: not within {timeout * PATIENCE} s; {self.events[-20:]}"

    # -- life --------------------------------------------------------------------------------------

    async def begin(self) -> None:
        await asyncio.to_thread(lambda: self.innocent.evil.dial(self.address).shake().ping())
        await self.event(events.NodeUp, self.innocent.evil.name)
        # One round before the count: queue, inbox and maps have their usual size then.
        await asyncio.to_thread(self.innocent._round)
        self._base = self.counters()
        self.innocent.start()

    async def end(self) -> None:
        """The innocent is unharmed, and nothing is left behind."""
        await asyncio.to_thread(self.innocent.stop)
        assert not self.seen(events.NodeDown, self.innocent.evil.name)
        await asyncio.to_thread(self.innocent.evil.ping)

        def back() -> bool:
            now, base = self.counters(), self._base
            memory = now["bytes"] <= base["bytes"] + self.memory_slack
            return memory and now["sockets"] == base["sockets"] and not self.node.info().half_open

        try:
            await eventually("memory and sockets back to what they were", back)
        except TimeoutError:
            raise AssertionError(f"{self._base} before, {self.counters()} after") from None


@asynccontextmanager
async def scene(**options: Any) -> AsyncIterator[Scene]:
    """options: those of Node."""
    async with make_node("victim", **options) as node:
        stage = Scene(node)
        watcher = asyncio.create_task(stage.watch())
        await turn()  # the watcher's stream exists from here on
        try:
            await stage.begin()
            yield stage
            await stage.end()
        finally:
            stage.innocent.evil.close()
            watcher.cancel()
