"""A node in a process of its own, for tests that kill that process or hold its interpreter.

    python child_node.py NAME COOKIE EPMD_PORT DRIVER TICK_TIME_MS

Answers on standard output, a line of JSON each: what it is, once it is up; then for each line of
standard input

    hold SECONDS     ["held", times of begin and end]: the interpreter is away for so long, and
                     until the next byte of standard input
    count N          ["counted", {sender: [how many, in order]}, lost connections], when `sink` has
                     so many messages {Sender, Number}
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import select
import struct
import sys
import time
from typing import Any

import tumen
from tumen import Limits, events

# Should nobody ever say that it is enough.
HOLD_MS_MAX = 60_000


def say(*what: Any) -> None:
    print(json.dumps(what), flush=True)


class Sink:
    """Counts numbers by sender, and whether each came after the one before it."""

    def __init__(self) -> None:
        self.next: dict[str, int] = {}
        self.in_order = True
        self.count = 0
        self.changed = asyncio.Event()

    async def run(self, proc: tumen.Process) -> None:
        async for message in proc:
            match message:
                case (tumen.Atom() as sender, int(number)):
                    pass
                case _:
                    continue
            expected = self.next.get(sender.text, 0)
            self.in_order = self.in_order and number == expected
            self.next[sender.text] = number + 1
            self.count += 1
            self.changed.set()

    async def wait(self, count: int) -> None:
        while self.count < count:
            self.changed.clear()
            await self.changed.wait()


async def lines() -> Any:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async for line in reader:
        yield line.decode().split()


def hold(seconds: int, until: int | None = None) -> tuple[float, float]:
    """Sleeps with the interpreter's lock held: no other thread of it runs. Afterwards it waits in
    the same way until that descriptor has something to be read."""
    begin = time.time()
    # PyDLL does not let go of the lock for the call.
    libc = ctypes.PyDLL(None)
    libc.sleep(seconds)
    if until is not None:
        entry = ctypes.create_string_buffer(struct.pack("=ihh", until, select.POLLIN, 0))
        libc.poll(entry, 1, HOLD_MS_MAX)
    return begin, time.time()


async def main(name: str, cookie: str, epmd_port: str, driver: str, tick_time_ms: str) -> None:
    lost = []
    sink = Sink()

    async def watch() -> None:
        async for event in node.events():
            if isinstance(event, events.NodeDown):
                lost.append((event.node, event.reason))

    async with tumen.Node(
        name,
        cookie=cookie,
        epmd_port=int(epmd_port),
        driver="loop" if driver == "loop" else "thread",
        limits=Limits(tick_time_ms=int(tick_time_ms)),
    ) as node:
        watcher = asyncio.create_task(watch())
        node.spawn(sink.run, name="sink")
        say("up", node.name, str(node.backend))
        async for command, argument in lines():
            if command == "hold":
                say("holding")
                say("held", *hold(int(argument), sys.stdin.fileno()))
            elif command == "count":
                await sink.wait(int(argument))
                say("counted", sink.next, sink.in_order, lost)
        watcher.cancel()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
