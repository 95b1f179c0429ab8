"""Nodes for tests without a BEAM: no port mapper, addresses instead."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import tumen

COOKIE = "a-cookie-of-the-tests"
HOST = "127.0.0.1"

T = TypeVar("T")
EventT = TypeVar("EventT", bound=tumen.events.Event)

_numbers = itertools.count(1)


def make_node(name: str = "py", **options: Any) -> tumen.Node:
    """A node that is not started, with a name of its own."""
    full = f"{name}{next(_numbers)}x{os.getpid()}@{HOST}"
    return tumen.Node(full, **{"cookie": COOKIE, "epmd": None, **options})


def address(node: tumen.Node) -> tuple[str, int]:
    return HOST, node.info().port


@asynccontextmanager
async def pair(
    app: tumen.App | None = None, **options: Any
) -> AsyncIterator[tuple[tumen.Node, tumen.Node]]:
    """Two connected nodes; the first has the app."""
    async with make_node("a", app=app, **options) as a, make_node("b", **options) as b:
        await b.connect(a.name, address(a))
        yield a, b


async def hang() -> None:
    """Never returns: what a test is about to cut off."""
    await asyncio.get_running_loop().create_future()


async def turn() -> None:
    """One turn of the loop: tasks that were made before have begun, and others have had theirs."""
    await asyncio.sleep(0)


async def until(check: Callable[[], object]) -> None:
    """Returns once `check` is true: for what has no event to wait on."""
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.0005)


async def settles(
    what: str, read: Callable[[], Awaitable[T]], good: Callable[[T], object], timeout: float = 15.0
) -> T:
    """Asks a peer again until its answer is good: for what has no event to wait on."""
    found: Any = "no answer"
    try:
        async with asyncio.timeout(timeout):
            while not good(found := await read()):
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {timeout} s, last {found!r}") from None
    return found


async def next_event(stream: tumen.events.EventStream, kind: type[EventT]) -> EventT:
    """The next event of that kind; others before it are passed over."""
    async with asyncio.timeout(10):
        async for event in stream:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"the node ended without a {kind.__name__}")


async def echo(proc: tumen.Process) -> None:
    """Answers ``(sender, anything)`` with ``(own pid, anything)``."""
    async for sender, payload in proc:
        proc.send(sender, (proc.pid, payload))


class Counter(tumen.GenServer):
    """Adds; and does what its requests ask for."""

    async def init(self, start: Any = 0) -> Any:
        if isinstance(start, Exception):
            raise start
        if isinstance(start, tumen.Stop):
            return start
        self.n = start
        self.seen: list[Any] = []
        self.callers: list[tumen.Caller] = []
        return None

    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        match request:
            case (tumen.Atom("add"), int(n)):
                self.n += n
                return self.n
            case tumen.Atom("get"):
                return self.n
            case tumen.Atom("seen"):
                return self.seen
            case tumen.Atom("later"):
                self.callers.append(caller)
                return tumen.NoReply
            case tumen.Atom("crash"):
                raise RuntimeError("as asked")
            case tumen.Atom("exit"):
                raise tumen.Exit((tumen.Atom("asked"), 1))
            case tumen.Atom("stop"):
                return tumen.Stop(tumen.Atom("normal"), reply=tumen.Atom("bye"))
            case tumen.Atom("stop_silently"):
                return tumen.Stop(tumen.Atom("tired"))
            case tumen.Atom("pid"):
                return self.pid
        return (tumen.Atom("unknown"), request)

    async def handle_cast(self, request: Any) -> Any:
        if request == tumen.Atom("stop"):
            return tumen.Stop(tumen.Atom("cast"))
        if request == tumen.Atom("answer"):
            for caller in self.callers:
                caller.reply(tumen.Atom("at_last"))
            self.callers.clear()
        self.seen.append(("cast", request))
        return None

    async def handle_info(self, message: Any) -> Any:
        self.seen.append(("info", message))
