"""A tumen node of the bench, for both roles: it drives a test, and it answers one.

One command a line on standard input, one JSON object a line on standard output, in the words of
tumen_bench.erl.

    python tumen_peer.py NAME [uring|epoll] [thread|loop] [uvloop] [idle] [views]

idle: connections may be silent for a quarter of an hour.
views: the sink gets large binaries as views.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tumen import App, Atom, Busy, GenServer, Limits, Node

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tumen import Pid, Process

# Seconds for an answer that ends a test; a fault ends the run instead of hanging it.
ANSWER_S = 60.0
# Callers look at the clock once in so many rounds.
CLOCK_STRIDE = 16
# Messages sent in one turn of the loop, about half a millisecond; of at least LARGE_BYTES: one.
SEND_STRIDE = 1024
LARGE_BYTES = 65536
# To many links: in all, and at least one for each.
FLOOD_STRIDE = 64
# A flood may wait in memory as on a BEAM, whose mailboxes have no bound: bytes of one test of
# a few seconds.
FLOOD_BYTES_MAX = 8 << 30
# With `idle`, milliseconds: many links are left alone while another node has its turn.
IDLE_TICK_MS = 3_600_000

START = Atom("start")
STARTED = Atom("started")
MSG = Atom("msg")
FINISH = Atom("finish")
REPORT = Atom("report")
ECHO = Atom("echo")
ECHOED = Atom("echoed")
ADD = Atom("add")
MAP = Atom("map")
BINARY = Atom("binary")
JOIN = Atom("join")

app = App()


def answer_to(request: Any) -> Any:
    """Adds; and the jobs of bench/instead.py."""
    match request:
        case (kind, a, b) if kind == ADD:
            return a + b
        case (kind, fields) if kind == MAP:
            return {**fields, b"n": fields[b"n"] + 1}
        case (kind, number, data) if kind == BINARY:
            return (number + 1, len(data))
    raise AssertionError(f"not a request: {request!r}")


@app.server("bench_server")
class Server(GenServer):
    """Answers with a `gen_server:call`."""

    def handle_call(self, request: Any, caller: Any) -> Any:
        return answer_to(request)


# Answers an `erpc:call`.
app.expose("tumen_bench", "answer", inline=True)(answer_to)


@app.expose("tumen_bench", "add", inline=True)
def add(a: int, b: int) -> int:
    """The function that is called from afar."""
    return a + b


async def sink(proc: Process, views: bool) -> None:
    """Counts, sums, and holds every message against its place in the order."""
    proc.binary_views = views
    number = size = wrong = 0
    async for message in proc:
        first = message[0]
        if first == MSG:
            _, place, payload = message
            if place != number:
                wrong += 1
            number = place + 1
            size += len(payload)
        elif first == START:
            number = size = wrong = 0
            proc.send(message[1], (STARTED, proc.pid))
        elif first == FINISH:
            proc.send(message[1], (REPORT, number, size, wrong))


async def echo(proc: Process) -> None:
    """Sends back what comes, to who sent it."""
    async for message in proc:
        _, sender, number, payload = message
        proc.send(sender, (ECHOED, proc.pid, number, payload))


# -- many links: bench/backends.py -----------------------------------------------------------------

joined: list[Pid] = []


async def links(proc: Process) -> None:
    """Keeps a pid of each link that says it is there."""
    async for message in proc:
        joined.append(message[1])
        proc.send(message[1], len(joined))


async def tally(proc: Process) -> None:
    """Counts binaries from all links, until each has said that it has no more."""
    number = size = ended = 0
    async for message in proc:
        if type(message) is bytes:
            number += 1
            size += len(message)
            continue
        _, sender, count = message
        ended += 1
        if ended == count:
            proc.send(sender, (REPORT, number, size))
            number = size = ended = 0


async def flood(proc: Process, count: int, size: int, seconds: float) -> dict[str, Any]:
    """To many links in turn, as fast as it goes; an empty binary ends each, and counts."""
    payload = b"x" * size
    targets = joined[-count:]
    sent = 0
    start = time.monotonic_ns()
    deadline = start + int(seconds * 1e9)
    while time.monotonic_ns() < deadline:
        for _ in range(max(1, FLOOD_STRIDE // count)):
            for target in targets:
                try:
                    proc.send(target, payload)
                except Busy:
                    await proc.send_wait(target, payload)
            sent += count
        await asyncio.sleep(0)
    for target in targets:
        await proc.send_wait(target, b"")
    return {"count": sent + count, "elapsed_ns": time.monotonic_ns() - start}


# -- the tests that it drives ----------------------------------------------------------------------


async def send(proc: Process, node: str, size: int, seconds: float) -> dict[str, Any]:
    """One way, as fast as it goes."""
    payload = b"x" * size
    proc.send(("bench_sink", node), (START, proc.pid))
    _, target = await proc.receive(timeout=ANSWER_S)
    stride = 1 if size >= LARGE_BYTES else SEND_STRIDE
    count = 0
    start = time.monotonic_ns()
    deadline = start + int(seconds * 1e9)
    while time.monotonic_ns() < deadline:
        for number in range(count, count + stride):
            message = (MSG, number, payload)
            try:
                proc.send(target, message)
            except Busy:
                await proc.send_wait(target, message)
        count += stride
        # What was sent in one turn of the loop goes out together.
        await asyncio.sleep(0)
    await proc.send_wait(target, (FINISH, proc.pid))
    report = await proc.receive(timeout=ANSWER_S)
    elapsed = time.monotonic_ns() - start
    if report != (REPORT, count, count * size, 0):
        raise AssertionError(f"sent {count} of {size} bytes, and the sink says {report!r}")
    return {"count": count, "elapsed_ns": elapsed}


async def pingpong(proc: Process, node: str, size: int, seconds: float) -> dict[str, Any]:
    """One message there and back at a time."""
    payload = b"x" * size
    proc.send(("bench_echo", node), (ECHO, proc.pid, START, payload))
    _, target, *_ = await proc.receive(timeout=ANSWER_S)
    times = []
    begin = now = time.monotonic_ns()
    deadline = begin + int(seconds * 1e9)
    while now < deadline:
        start = time.monotonic_ns()
        number = len(times)
        proc.send(target, (ECHO, proc.pid, number, payload))
        answer = await proc.receive()
        now = time.monotonic_ns()
        times.append(now - start)
        if answer[2] != number or answer[3] != payload:
            raise AssertionError(f"number {number} came back as {answer!r}")
    times.sort()
    return {
        "count": len(times),
        "elapsed_ns": now - begin,
        "p50_ns": rank(times, 50),
        "p99_ns": rank(times, 99),
    }


def rank(ordered: list[int], percent: int) -> int:
    """The value that so many percent do not exceed."""
    return ordered[max(0, (len(ordered) * percent + 99) // 100 - 1)]


async def callers(
    one: Callable[[int], Awaitable[Any]], count: int, seconds: float
) -> dict[str, Any]:
    """So many callers, each with one call under way."""
    start = time.monotonic_ns()
    deadline = start + int(seconds * 1e9)

    async def caller() -> int:
        number = 0
        while True:
            answer = await one(number)
            if answer != number + 1:
                raise AssertionError(f"{number} + 1 is {answer!r} over there")
            number += 1
            if number % CLOCK_STRIDE == 1 and time.monotonic_ns() >= deadline:
                return number

    calls = await asyncio.gather(*(caller() for _ in range(count)))
    return {"count": sum(calls), "elapsed_ns": time.monotonic_ns() - start}


async def command(node: Node, words: list[str]) -> dict[str, Any]:
    """One test."""
    match words:
        case ["connect", peer]:
            if not await node.ping(peer):
                raise AssertionError(f"pang from {peer}")
            return {"ok": 1}
        case ["counters"]:
            return node.info().engine
        case ["flood", count, size, ms]:
            return await in_process(node, flood, int(count), int(size), int(ms) / 1000)
        case ["send" | "pingpong" as kind, peer, size, ms]:
            test = send if kind == "send" else pingpong
            return await in_process(node, test, peer, int(size), int(ms) / 1000)
        case ["call", peer, count, ms]:
            return await callers(
                lambda n: node.call(("bench_server", peer), (ADD, n, 1), timeout=ANSWER_S),
                int(count),
                int(ms) / 1000,
            )
        case ["erpc", peer, count, ms]:
            return await callers(
                lambda n: node.rpc(peer, "tumen_bench", "add", [n, 1], timeout=ANSWER_S),
                int(count),
                int(ms) / 1000,
            )
    raise AssertionError(f"not a command: {words}")


async def in_process(node: Node, test: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """Runs a test in a process of its own, and returns what it returns."""
    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def main(proc: Process) -> None:
        try:
            result.set_result(await test(proc, *args))
        except Exception as error:
            result.set_exception(error)

    node.spawn(main)
    return await result


async def main(name: str, words: list[str]) -> None:
    """Starts the node, says so, and obeys until standard input ends."""
    options: dict[str, Any] = {}
    for word in words:
        if word in ("uring", "epoll"):
            options["backend"] = word
        elif word in ("thread", "loop"):
            options["driver"] = word
    bounds = {"mailbox_bytes_max": FLOOD_BYTES_MAX, "inbox_bytes_max": FLOOD_BYTES_MAX}
    if "idle" in words:
        bounds["tick_time_ms"] = IDLE_TICK_MS
    limits = Limits(**bounds)
    async with Node(name, app=app, epmd="client", limits=limits, **options) as node:
        node.spawn(sink, "views" in words, name="bench_sink")
        node.spawn(echo, name="bench_echo")
        node.spawn(links, name="bench_links")
        node.spawn(tally, name="bench_tally")
        hello = {
            "ready": name,
            "tumen": version("tumen"),
            "backend": str(node.backend),
            "why": node.backend.why,
            "options": words,
            "loop": type(asyncio.get_running_loop()).__module__,
            "python": sys.version.split()[0],
            "port": node.info().port,
        }
        print(json.dumps(hello), flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            try:
                result = await command(node, line.split())
            except Exception as error:
                result = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(result), flush=True)


def run(name: str, words: list[str]) -> None:
    """On the loop that was asked for."""
    factory = importlib.import_module("uvloop").new_event_loop if "uvloop" in words else None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(name, words))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2:])
