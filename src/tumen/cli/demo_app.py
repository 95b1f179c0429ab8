"""The App that both Python nodes of the demo run, and their side of its traffic.

What a BEAM has by itself (``net_adm:ping``, ``gen_server:call``, ``rpc:call``) is exposed here by
the same names, so that the demo drives every node in the same way: by rpc.

``python -m tumen.cli.demo_app NAME HUB EPMD_PORT`` is the second Python process.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from typing import Any, Final

import tumen
from tumen import App, Atom, GenServer, Node
from tumen.events import NodeDown

__all__ = ["NAME", "Tally", "demo_app", "drive"]

# Name of the server, and of the module of what is exposed for the demo alone.
NAME: Final = "tumen_demo"
# Seconds for one answer: long against a busy machine, short against a hang.
ANSWER: Final = 10.0
# Of so many requests one is an rpc; the others are calls of the server.
RPC_STRIDE: Final = 4

OK: Final = Atom("ok")
ADD: Final = Atom("add")
ECHO: Final = Atom("echo")
ECHOED: Final = Atom("echoed")
SEQ: Final = Atom("seq")
REPORT: Final = Atom("report")
DOWN: Final = Atom("DOWN")
TIMEOUT: Final = Atom("timeout")
NODEDOWN: Final = Atom("nodedown")

# Calls, messages sent, messages received in order, wrong answers, p50 and p99 in µs, what failed.
Tally = tuple[int, int, int, int, int, int, str | bytes]


class Ledger(GenServer):
    """Echoes, counts, and holds every message against its place in its sender's sequence."""

    async def init(self) -> None:
        self.total = 0
        self.seen: dict[Any, tuple[int, int]] = {}

    def handle_call(self, request: Any, caller: Any) -> Any:
        match request:
            case (Atom("echo"), term):
                return (ECHOED, term)
            case (Atom("add"), int(number)):
                self.total += number
                return self.total
            case (Atom("report"), key):
                return self.seen.pop(key, (0, 0))
        return (Atom("error"), request)

    def handle_info(self, message: Any) -> Any:
        match message:
            case (Atom("seq"), key, int(number)):
                count, wrong = self.seen.get(key, (0, 0))
                self.seen[key] = (count + 1, wrong + (number != count))


class Functions:
    """What the demo exposes; made before the node, which it is given later."""

    node: Node
    watching: asyncio.Task[tuple[Any, Any]]

    async def ping(self, node: Atom) -> Atom:
        return Atom("pong" if await self.node.ping(node.text) else "pang")

    async def call(self, server: tuple[Atom, Atom], request: Any) -> Any:
        name, node = server
        return await self.node.call((name.text, node.text), request, timeout=ANSWER)

    async def rpc(self, node: Atom, module: Atom, function: Atom, args: list[Any]) -> Any:
        return await self.node.rpc(node.text, module.text, function.text, args, timeout=ANSWER)

    async def fail(self, text: bytes) -> None:
        raise ValueError(text.decode())

    async def watch(self, name: Atom, node: Atom) -> Any:
        """Monitors a process, tells it to go, and returns the reason of its end."""
        reason: list[Any] = [TIMEOUT]

        async def watcher(proc: tumen.Process) -> None:
            ref = proc.monitor((name.text, node.text))
            proc.send((name.text, node.text), Atom("go"))
            down = await proc.receive(lambda message: message[:2] == (DOWN, ref), timeout=ANSWER)
            reason[0] = down[4]

        await run_process(self.node, watcher)
        return reason[0]

    async def cut_watch(self, node: Atom) -> Atom:
        """Begins to wait for the loss of a node; `cut_told` returns what was seen."""
        ready = asyncio.Event()

        async def watch() -> tuple[Any, Any]:
            seen: list[Any] = [TIMEOUT, TIMEOUT]

            async def watcher(proc: tumen.Process) -> None:
                ref = proc.monitor((NAME, node.text))
                ready.set()
                down = await proc.receive(lambda mail: mail[:2] == (DOWN, ref), timeout=ANSWER)
                seen[0] = down[4]

            with self.node.events() as events:
                await run_process(self.node, watcher)
                async with asyncio.timeout(ANSWER):
                    async for event in events:
                        if isinstance(event, NodeDown) and event.node == node.text:
                            seen[1] = NODEDOWN
                            break
            return seen[0], seen[1]

        self.watching = asyncio.create_task(watch())
        await asyncio.wait_for(ready.wait(), ANSWER)
        return OK

    async def cut_told(self) -> tuple[Any, Any]:
        return await self.watching

    async def drive(
        self, peer: Atom, module: Atom, function: Atom, milliseconds: int, workers: int
    ) -> Tally:
        plus = (module.text, function.text)
        return await drive(self.node, peer.text, plus, milliseconds / 1000, workers)


def demo_app() -> tuple[App, Functions]:
    """The App of a Python node of the demo; the node is to be set on the functions."""
    app = App()
    functions = Functions()
    app.server(NAME)(Ledger)
    app.expose(NAME, "add", inline=True)(lambda a, b: a + b)
    for name in ("fail", "watch", "cut_watch", "cut_told", "drive"):
        app.expose(NAME, name)(getattr(functions, name))
    app.expose("net_adm", "ping")(functions.ping)
    app.expose("gen_server", "call")(functions.call)
    app.expose("rpc", "call")(functions.rpc)
    return app, functions


async def run_process(node: Node, body: Any) -> None:
    """Runs a process to its end; what it raises is raised here, not logged."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def whole(proc: tumen.Process) -> None:
        try:
            await body(proc)
        except BaseException as error:
            if not ended.done():
                ended.set_exception(error)
        else:
            if not ended.done():
                ended.set_result(None)

    node.spawn(whole)
    await ended


class Worker:
    """One process of the traffic: asks, checks, sends a numbered message, and begins again."""

    def __init__(self, peer: str, plus: tuple[str, str], key: Any, deadline: float) -> None:
        self.server = (NAME, peer)
        self.plus = plus
        self.key = key
        self.deadline = deadline
        self.times: list[int] = []
        self.sent = self.received = self.wrong = 0
        self.failed = ""

    async def run(self, proc: tumen.Process) -> None:
        try:
            while time.monotonic() < self.deadline:
                await self.turn(proc, self.sent)
            # Behind the messages of this process, so it counts them all.
            count, wrong = await proc.call(self.server, (REPORT, self.key), timeout=ANSWER)
            self.received = count
            self.wrong += wrong
        except tumen.TumenError as error:
            self.failed = f"{type(error).__name__}: {error}"

    async def turn(self, proc: tumen.Process, number: int) -> None:
        start = time.perf_counter_ns()
        if number % RPC_STRIDE == RPC_STRIDE - 1:
            module, function = self.plus
            answer = await proc.rpc(self.server[1], module, function, [number, 1], timeout=ANSWER)
            right = answer == number + 1
        else:
            answer = await proc.call(self.server, (ECHO, number), timeout=ANSWER)
            right = answer == (ECHOED, number)
        self.times.append(time.perf_counter_ns() - start)
        self.wrong += not right
        await proc.send_wait(self.server, (SEQ, self.key, number))
        self.sent += 1


async def drive(
    node: Node, peer: str, plus: tuple[str, str], seconds: float, workers: int
) -> Tally:
    """Traffic from here to `peer` for so long: the tally of all its workers."""
    deadline = time.monotonic() + seconds
    crew = [Worker(peer, plus, (Atom(node.name), i), deadline) for i in range(workers)]
    await asyncio.gather(*(run_process(node, worker.run) for worker in crew))
    times = sorted(time for worker in crew for time in worker.times)
    return (
        len(times),
        sum(worker.sent for worker in crew),
        sum(worker.received for worker in crew),
        sum(worker.wrong for worker in crew),
        rank(times, 50) // 1000,
        rank(times, 99) // 1000,
        "; ".join(worker.failed for worker in crew if worker.failed),
    )


def rank(ordered: list[int], percent: int) -> int:
    """The value that so many percent do not exceed; 0 of nothing."""
    if not ordered:
        return 0
    return ordered[max(0, (len(ordered) * percent + 99) // 100 - 1)]


async def second_process(name: str, hub: str, epmd_port: int) -> None:
    """The other Python node: joins the hub and stays until its standard input closes."""
    app, functions = demo_app()
    async with Node(name, app=app, epmd_port=epmd_port, epmd="client") as node:
        functions.node = node
        if not await node.ping(hub):
            raise SystemExit(f"{name}: pang from {hub}")
        # Ends with the demo, however that ended.
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while await reader.read(4096):
            pass


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(second_process(sys.argv[1], sys.argv[2], int(sys.argv[3])))
