"""``tumen demo``: a cluster that shows itself at work and checks every answer that it gets.

One node here, the hub, with an embedded port mapper; a second Python process; and the BEAMs of this
machine. All are on 127.0.0.1, with a port mapper and a cookie of their own. Every wait has an end,
and every process that was started is ended by its id, whichever way this one ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tumen
from tumen import Atom, Node
from tumen.events import NodeDown, NodeUp

from .demo_app import ANSWER, NAME, Tally, demo_app, drive
from .demo_beam import (
    CUT_TOLD,
    CUT_WATCH,
    DRIVE,
    SERVER,
    WATCH,
    beams_here,
    boot,
    cookie_home,
    evaluate,
    source,
)
from .exits import text_of
from .syntax import format_term

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tumen.events import EventStream

    from .screen import Screen

__all__ = ["Plan", "run_demo"]

HOST: Final = "127.0.0.1"
# Seconds: for a node to boot and join, for a part of the story, for a child to leave by itself.
JOIN_TIME: Final = 45.0
STAGE_TIME: Final = 60.0
LEAVE_TIME: Final = 3.0
# Processes that ask at once, per direction of the traffic.
WORKERS: Final = 2
# Characters of a reason that are shown.
SHOWN: Final = 100

GEN_SERVER: Final = "gen_server"
UNDEF: Final = Atom("undef")
EXIT: Final = Atom("EXIT")
BADRPC: Final = Atom("badrpc")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What was asked for."""

    seconds: float
    beam: bool
    require_beam: bool
    backend: str | None


@dataclasses.dataclass(slots=True)
class Peer:
    """A node that is to join, and the process that it lives in."""

    name: str
    is_beam: bool
    process: asyncio.subprocess.Process
    log: Path
    label: str = ""
    joined: bool = False

    def end_of_log(self) -> str:
        """The last line that it printed."""
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it printed nothing")


class KeptLog(logging.Handler):
    """Keeps what tumen logs: a crash that is part of the story is no news on standard error."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


async def run_demo(plan: Plan, screen: Screen) -> bool:
    """Tells the whole story; True when nothing was lost or answered wrongly."""
    log = logging.getLogger("tumen")
    kept, propagate = KeptLog(), log.propagate
    log.addHandler(kept)
    log.propagate = False
    try:
        with tempfile.TemporaryDirectory(prefix="tumen-demo-") as folder:
            demo = Demo(plan, screen, Path(folder))
            try:
                await demo.run()
            except (tumen.TumenError, OSError, TimeoutError) as error:
                demo.failures.append(f"{type(error).__name__}: {text_of(error)}")
            return demo.finish(kept.lines)
    finally:
        log.removeHandler(kept)
        log.propagate = propagate


class Demo:
    """The state of one run."""

    def __init__(self, plan: Plan, screen: Screen, folder: Path) -> None:
        self.plan = plan
        self.screen = screen
        self.folder = folder
        self.hub = f"py1@{HOST}"
        self.epmd_port = free_port()
        self.cookie = cookie_home(folder)
        self.peers: list[Peer] = []
        self.failures: list[str] = []
        self.traffic: list[dict[str, Any]] = []
        self.node: Node

    # -- the story -------------------------------------------------------------------------------

    async def run(self) -> None:
        """All parts, in order; each has its time."""
        app, functions = demo_app()
        self.node = functions.node = Node(
            self.hub,
            app=app,
            cookie=self.cookie,
            backend=self.plan.backend,
            epmd_port=self.epmd_port,
        )
        async with self.node, contextlib.AsyncExitStack() as stack:
            self.screen.stage("Nodes")
            backend = self.node.backend
            self.screen.note(f"{self.hub}: backend {backend} ({backend.why})")
            self.screen.note(f"port mapper of its own on port {self.epmd_port}")
            parts: list[tuple[float, Callable[[], Awaitable[None]]]] = [
                (JOIN_TIME, lambda: self.join(stack)),
                (STAGE_TIME, self.pings),
                (STAGE_TIME, self.calls),
                (STAGE_TIME, self.crash),
                (STAGE_TIME, self.cut),
                (STAGE_TIME + self.plan.seconds, self.mixed_traffic),
            ]
            for seconds, part in parts:
                async with asyncio.timeout(seconds):
                    await part()

    async def join(self, stack: contextlib.AsyncExitStack) -> None:
        """Starts the others; each of them dials the hub."""
        with self.node.events() as events:
            env = {**os.environ, "TUMEN_COOKIE": self.cookie}
            if self.plan.backend:
                env["TUMEN_BACKEND"] = self.plan.backend
            name = f"py2@{HOST}"
            command = [sys.executable, "-m", "tumen.cli.demo_app", name, self.hub]
            await self.start(stack, name, [*command, str(self.epmd_port)], env, is_beam=False)
            for alias, erl, more in beams_here() if self.plan.beam else ():
                name = f"{alias}@{HOST}"
                command, env = boot(erl, more, name, self.hub, self.epmd_port, self.folder)
                await self.start(stack, name, command, env, is_beam=True)
            await asyncio.gather(*(self.wait_joined(peer) for peer in self.peers))
            await self.ups_seen(events)
        for peer in self.peers:
            self.check(f"{peer.name} joined: {peer.label}", right=peer.joined)
        if not any(peer.is_beam for peer in self.peers):
            self.screen.note("no BEAM: erl is not on the path, or was not wanted")
        if self.plan.require_beam and not any(peer.is_beam and peer.joined for peer in self.peers):
            self.check("a BEAM joined", right=False)
        self.peers = [peer for peer in self.peers if peer.joined]

    async def start(
        self,
        stack: contextlib.AsyncExitStack,
        name: str,
        command: list[str],
        env: dict[str, str],
        *,
        is_beam: bool,
    ) -> None:
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *command, env=env, stdin=subprocess.PIPE, stdout=output, stderr=output,
                # Ctrl-C at the terminal is for us alone: we end the others.
                start_new_session=True,
            )  # fmt: skip
        stack.push_async_callback(leave, process)
        self.peers.append(Peer(name, is_beam, process, log))

    async def wait_joined(self, peer: Peer) -> None:
        """Until it is connected and its servers run, or its process has ended."""
        ended = asyncio.create_task(peer.process.wait())
        try:
            while peer.name not in self.node.nodes():
                if ended.done():
                    peer.label = f"ended with {ended.result()}: {peer.end_of_log()}"
                    return
                await asyncio.wait([ended], timeout=0.02)
        finally:
            ended.cancel()
        if peer.is_beam:
            release = await self.node.rpc(
                peer.name, "erlang", "system_info", [Atom("otp_release")], timeout=ANSWER
            )
            peer.label = f"OTP {''.join(map(chr, release))}"
            peer.joined = await self.evaluate(peer, SERVER) is True
        else:
            peer.label = f"Python, process {peer.process.pid}"
            peer.joined = True

    async def ups_seen(self, events: EventStream) -> None:
        """The events of the node say the same as its list of nodes."""
        missing = {peer.name for peer in self.peers if peer.joined}
        async with asyncio.timeout(ANSWER):
            async for event in events:
                if isinstance(event, NodeUp):
                    missing.discard(event.node)
                if not missing:
                    return

    async def pings(self) -> None:
        """Everybody pings everybody."""
        self.screen.stage("Pings in every direction")
        names = [self.hub, *(peer.name for peer in self.peers)]
        for asker in names:
            for asked in names:
                if asker == asked:
                    continue
                start = time.perf_counter()
                if asker == self.hub:
                    pong = await self.node.ping(asked)
                else:
                    answer = await self.rpc(asker, "net_adm", "ping", [Atom(asked)])
                    pong = answer == Atom("pong")
                ms = (time.perf_counter() - start) * 1000
                self.check(f"{asker} → {asked}: {'pong' if pong else 'pang'}, {ms:.1f} ms",
                           right=pong)  # fmt: skip

    async def calls(self) -> None:
        """gen_server:call and rpc:call, there and back."""
        self.screen.stage("Calls both ways")
        for number, peer in enumerate(self.peers, 1):
            there, back = f"{self.hub} → {peer.name}", f"{peer.name} → {self.hub}"
            reply = await self.node.call((NAME, peer.name), (Atom("echo"), {"n": number}))
            self.same(f"{there}: gen_server:call", reply, (Atom("echoed"), {b"n": number}))
            if peer.is_beam:
                result = await self.rpc(peer.name, "lists", "seq", [1, 5])
                self.same(f"{there}: rpc:call lists:seq(1, 5)", result, [1, 2, 3, 4, 5])
            else:
                result = await self.rpc(peer.name, NAME, "add", [2, 3])
                self.same(f"{there}: rpc:call {NAME}:add(2, 3)", result, 5)
            server = (Atom(NAME), Atom(self.hub))
            reply = await self.rpc(peer.name, GEN_SERVER, "call", [server, (Atom("add"), 5)])
            self.same(f"{back}: gen_server:call {{add, 5}}", reply, 5 * number)
            result = await self.back(peer, NAME, "add", [2, 3])
            self.same(f"{back}: rpc:call {NAME}:add(2, 3)", result, 5)
            if peer.is_beam:
                await self.refusals(peer, back)

    async def refusals(self, peer: Peer, back: str) -> None:
        """What a BEAM gets for a function that raises, and for one that nobody exposed."""
        match await self.back(peer, NAME, "fail", ["out of cheese"]):
            case (Atom("badrpc"), (Atom("EXIT"), reason)):
                self.check(f"{back}: rpc:call of one that raises: {shown(reason)}", right=True)
            case other:
                self.check(f"{back}: rpc:call of one that raises: {shown(other)}", right=False)
        match await self.back(peer, "os", "getpid", []):
            case (Atom("badrpc"), (Atom("EXIT"), (Atom("undef"), _))):
                self.check(f"{back}: rpc:call of what is not exposed: undef", right=True)
            case other:
                self.check(f"{back}: rpc:call of what is not exposed: {shown(other)}", right=False)

    async def crash(self) -> None:
        """A Python process crashes while others monitor it."""
        self.screen.stage("A monitored Python process crashes")
        for number, peer in enumerate(self.peers, 1):
            name = f"fragile{number}"
            self.node.spawn(fragile, name=name)
            if peer.is_beam:
                text = source(WATCH, target=Atom(name), node=Atom(self.hub))
                reason = await self.evaluate(peer, text, timeout=2 * ANSWER)
            else:
                arguments = [Atom(name), Atom(self.hub)]
                reason = await self.rpc(peer.name, NAME, "watch", arguments, 2 * ANSWER)
            match reason:
                case ((Atom("python_error"), bytes(kind), bytes(message)), list()):
                    right = kind.endswith(b"RuntimeError") and b"out of cheese" in message
                case _:
                    right = False
            self.check(f"{peer.name} got 'DOWN': {shown(reason)}", right=right)

    async def cut(self) -> None:
        """A connection is cut and comes back."""
        self.screen.stage("A connection is cut and restored")
        for peer in self.peers:
            await self.cut_watch(peer)
            with self.node.events() as events:
                start = time.perf_counter()
                await self.node.disconnect(peer.name)
                down = await self.down_of(peer, events)
            self.check(f"{self.hub} saw nodedown of {peer.name}: {down.reason}", right=True)
            back = await self.node.ping(peer.name)
            ms = (time.perf_counter() - start) * 1000
            self.check(f"{self.hub} → {peer.name}: connected again after {ms:.1f} ms", right=back)
            seen = await self.cut_told(peer)
            self.same(f"{peer.name} saw", seen, (Atom("noconnection"), Atom("nodedown")))

    async def down_of(self, peer: Peer, events: EventStream) -> NodeDown:
        async with asyncio.timeout(ANSWER):
            async for event in events:
                if isinstance(event, NodeDown) and event.node == peer.name:
                    return event
        raise TimeoutError(f"no nodedown of {peer.name}")

    async def cut_watch(self, peer: Peer) -> None:
        if peer.is_beam:
            await self.evaluate(peer, source(CUT_WATCH, node=Atom(self.hub)))
        else:
            await self.rpc(peer.name, NAME, "cut_watch", [Atom(self.hub)])

    async def cut_told(self, peer: Peer) -> Any:
        if peer.is_beam:
            return await self.evaluate(peer, source(CUT_TOLD), timeout=2 * ANSWER)
        return await self.rpc(peer.name, NAME, "cut_told", [], 2 * ANSWER)

    # -- traffic ---------------------------------------------------------------------------------

    async def mixed_traffic(self) -> None:
        """Calls, rpc and messages between the hub and everybody, in both directions at once."""
        seconds = self.plan.seconds
        self.screen.stage(f"Mixed traffic, {seconds:g} s")
        progress = asyncio.create_task(self.show_progress(seconds))
        try:
            async with asyncio.TaskGroup() as group:
                for peer in self.peers:
                    group.create_task(self.direction(self.hub, peer.name, self.there(peer)))
                    group.create_task(self.direction(peer.name, self.hub, self.from_peer(peer)))
        except* (tumen.TumenError, TimeoutError) as errors:
            for error in errors.exceptions:
                self.failures.append(f"traffic: {type(error).__name__}: {text_of(error)}")
        finally:
            progress.cancel()
        self.traffic.sort(key=lambda row: (row["to"] == self.hub, row["from"], row["to"]))
        self.show_traffic()

    def there(self, peer: Peer) -> Awaitable[Tally]:
        plus = ("erlang", "+") if peer.is_beam else (NAME, "add")
        return drive(self.node, peer.name, plus, self.plan.seconds, WORKERS)

    def from_peer(self, peer: Peer) -> Awaitable[Tally]:
        ms, patience = int(self.plan.seconds * 1000), self.plan.seconds + 2 * ANSWER
        hub = Atom(self.hub)
        if peer.is_beam:
            text = source(DRIVE, node=hub, milliseconds=ms, workers=WORKERS)
            return self.evaluate(peer, text, timeout=patience)
        arguments = [hub, Atom(NAME), Atom("add"), ms, WORKERS]
        return self.rpc(peer.name, NAME, "drive", arguments, patience)

    async def direction(self, asker: str, asked: str, traffic: Awaitable[Tally]) -> None:
        """Runs one direction and settles its account."""
        calls, sent, received, wrong, p50, p99, failed = await traffic
        if isinstance(failed, bytes):
            failed = failed.decode(errors="replace")
        row = {
            "from": asker,
            "to": asked,
            "calls": calls,
            "messages": sent,
            "rate": round((calls + received) / self.plan.seconds),
            "p50_us": p50,
            "p99_us": p99,
            "lost": sent - received,
            "wrong": wrong,
        }
        self.traffic.append(row)
        if failed.strip():
            self.failures.append(f"{asker} → {asked}: {failed.strip()}")
        if row["lost"] or wrong or not calls:
            self.failures.append(f"{asker} → {asked}: {row['lost']} lost, {wrong} wrong")

    async def show_progress(self, seconds: float) -> None:
        start = time.monotonic()
        first = self.node.info()
        while True:
            await asyncio.sleep(self.screen.progress_every)
            done = min(seconds, time.monotonic() - start)
            info = self.node.info()
            came = info.messages_in - first.messages_in
            went = info.messages_out - first.messages_out
            text = f"{self.hub} has taken {came:,} messages and sent {went:,}"
            self.screen.progress(done, seconds, text)

    def show_traffic(self) -> None:
        heads = ["from", "to", "calls", "messages", "rate/s", "p50 µs", "p99 µs", "lost", "wrong"]
        keys = ["calls", "messages", "rate", "p50_us", "p99_us", "lost", "wrong"]
        rows = [
            [row["from"], row["to"], *(f"{row[key]:,}" for key in keys)] for row in self.traffic
        ]
        self.screen.table(heads, rows)

    # -- the account -----------------------------------------------------------------------------

    def check(self, text: str, *, right: bool) -> None:
        """Shows a check, and remembers one that failed."""
        self.screen.check(text, right=right)
        if not right:
            self.failures.append(text)

    def same(self, text: str, got: Any, wanted: Any) -> None:
        """Checks an answer against what it has to be."""
        right = tumen.encode(got) == tumen.encode(wanted)
        hint = "" if right else f", and not {shown(wanted)}"
        self.check(f"{text} = {shown(got)}{hint}", right=right)

    def finish(self, logged: list[str]) -> bool:
        """The verdict, and what is behind it."""
        succeeded = not self.failures
        report = {
            "hub": self.hub,
            "nodes": [{"name": peer.name, "what": peer.label} for peer in self.peers],
            "seconds": self.plan.seconds,
            "traffic": self.traffic,
            "failures": self.failures,
            "log": [] if succeeded else logged,
        }
        for line in [] if succeeded else [*self.failures, *logged[-20:]]:
            self.screen.note(line)
        asked = sum(row["calls"] + row["messages"] for row in self.traffic)
        count = len(self.failures)
        text = f"{asked:,} calls and messages, none lost, none wrong."
        if count:
            text = f"failed: {count} {'thing' if count == 1 else 'things'} went wrong."
        self.screen.end(report, succeeded=succeeded, text=text)
        return succeeded

    # -- asking ----------------------------------------------------------------------------------

    async def rpc(
        self, name: str, module: str, function: str, args: list[Any], timeout: float = ANSWER
    ) -> Any:
        return await self.node.rpc(name, module, function, args, timeout=timeout)

    async def back(self, peer: Peer, module: str, function: str, args: list[Any]) -> Any:
        """rpc:call from the peer to us, as the peer sees it."""
        arguments = [Atom(self.hub), Atom(module), Atom(function), args]
        return await self.rpc(peer.name, "rpc", "call", arguments)

    async def evaluate(self, peer: Peer, text: str, timeout: float = ANSWER) -> Any:
        return await evaluate(self.node, peer.name, source(text), timeout)


async def fragile(proc: tumen.Process) -> None:
    """Crashes when it is told to."""
    await proc.receive(timeout=ANSWER)
    raise RuntimeError("out of cheese")


async def leave(process: asyncio.subprocess.Process) -> None:
    """Ends a child: its input closes; then by its process id."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), LEAVE_TIME)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def shown(term: Any) -> str:
    """A term on one line, as much of it as helps."""
    text = format_term(term)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def free_port() -> int:
    """A port of this host that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
