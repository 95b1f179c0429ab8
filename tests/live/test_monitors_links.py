"""Monitors, links and exit signals between Python processes and BEAM processes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import peers
import tumen
from nodes import make_node, next_event
from tumen import Atom

pytestmark = pytest.mark.asyncio

FOREVER = "spawn(fun() -> receive after infinity -> ok end end)"
# Returns when P is dead.
KILL = "R = monitor(process, P), exit(P, kill), receive {'DOWN', R, _, _, killed} -> ok end"


class Mailbox:
    """A Python process whose mail the test reads."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.process: asyncio.Future[tumen.Process] = loop.create_future()
        self.end: asyncio.Future[Any] = loop.create_future()

    async def main(self, proc: tumen.Process) -> None:
        self.process.set_result(proc)
        end = await self.end
        if isinstance(end, BaseException):
            raise end

    @classmethod
    async def open(cls, node: tumen.Node) -> tuple[Mailbox, tumen.Process]:
        self = cls()
        node.spawn(self.main)
        return self, await self.process


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (None, Atom("normal")),
        (tumen.Exit((Atom("a"), [1])), (Atom("a"), [1])),
        (LookupError("lost"), None),
    ],
)
async def test_beam_monitor_fires_once_with_the_reason(
    node: tumen.Node, shared_beam: peers.Beam, end: Any, reason: Any
) -> None:
    mailbox, proc = await Mailbox.open(node)
    node.register("watched", proc.pid)
    watching = asyncio.create_task(
        shared_beam.eval(
            "R1 = monitor(process, P), R2 = monitor(process, {watched, N}), P ! armed, "
            "D1 = receive {'DOWN', R1, process, O1, E1} -> {O1, E1} after 9000 -> timeout end, "
            "D2 = receive {'DOWN', R2, process, O2, E2} -> {O2, E2} after 9000 -> timeout end, "
            "{D1, D2, receive X -> X after 50 -> nothing end}",
            P=proc.pid,
            N=Atom(node.name),
        )
    )
    assert await proc.receive(timeout=5) == Atom("armed")
    mailbox.end.set_result(end)
    (first, one), (second, two), rest = await watching
    assert (first, second) == (proc.pid, (Atom("watched"), Atom(node.name)))
    assert one == two
    assert rest == Atom("nothing")
    if reason is not None:
        assert one == reason
    else:
        (kind, name, text), stack = one
        assert (kind, name) == (Atom("python_error"), b"builtins.LookupError")
        assert text.startswith(b"lost")
        assert isinstance(stack, list)


async def test_beam_monitor_of_nobody_is_noproc(node: tumen.Node, shared_beam: peers.Beam) -> None:
    result = await shared_beam.eval(
        "R = monitor(process, {nobody, N}), receive {'DOWN', R, process, O, E} -> {O, E} end",
        N=Atom(node.name),
    )
    assert result == ((Atom("nobody"), Atom(node.name)), Atom("noproc"))


async def test_python_monitor_of_beam_processes(node: tumen.Node, shared_beam: peers.Beam) -> None:
    pid = await shared_beam.eval(FOREVER)
    _, proc = await Mailbox.open(node)
    ref = proc.monitor(pid)
    assert await node.ping(shared_beam.name)
    named = proc.monitor(("nobody", shared_beam.name))
    down, process = Atom("DOWN"), Atom("process")
    nobody = (Atom("nobody"), Atom(shared_beam.name))
    assert await proc.receive(timeout=5) == (down, named, process, nobody, Atom("noproc"))
    node.exit(pid, Atom("over"))
    assert await proc.receive(timeout=5) == (down, ref, process, pid, Atom("over"))
    assert await node.join(pid) == Atom("noproc")


async def test_demonitored_beam_process_ends_unseen(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    pid = await shared_beam.eval(FOREVER)
    _, proc = await Mailbox.open(node)
    assert proc.demonitor(proc.monitor(pid))
    assert await node.ping(shared_beam.name)
    await shared_beam.eval(KILL, P=pid)
    # In order behind whatever its end had to tell.
    assert await node.ping(shared_beam.name)
    with pytest.raises(TimeoutError):
        await proc.receive(timeout=0)


@pytest.mark.sanitizer
async def test_killed_beam_is_noconnection_and_nodedown(node: tumen.Node, beam: peers.Beam) -> None:
    pid = await beam.eval(FOREVER)
    _, proc = await Mailbox.open(node)
    proc.trap_exit = True
    ref = proc.monitor(pid)
    proc.link(pid)
    assert await node.ping(beam.name)
    events = node.events()
    beam.kill()
    got = [await proc.receive(timeout=5), await proc.receive(timeout=5)]
    noconnection = Atom("noconnection")
    assert (Atom("DOWN"), ref, Atom("process"), pid, noconnection) in got
    assert (Atom("EXIT"), pid, noconnection) in got
    down = await next_event(events, tumen.events.NodeDown)
    assert down.node == beam.name
    assert down.lost == 0


async def test_link_to_python_breaks_with_its_crash(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    mailbox, proc = await Mailbox.open(node)
    watching = asyncio.create_task(
        shared_beam.eval(
            "process_flag(trap_exit, true), link(P), P ! linked, "
            "receive {'EXIT', P, R} -> R after 9000 -> timeout end",
            P=proc.pid,
        )
    )
    assert await proc.receive(timeout=5) == Atom("linked")
    mailbox.end.set_result(ValueError("bad"))
    (error, _stack) = await watching
    assert error[:2] == (Atom("python_error"), b"builtins.ValueError")


@pytest.mark.sanitizer
async def test_link_to_a_beam_process_takes_python_along(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    pid = await shared_beam.eval(FOREVER)
    # The test asks the BEAM by another way: without a connection the exit would overtake the link.
    assert await node.ping(shared_beam.name)
    _, plain = await Mailbox.open(node)
    _, trapping = await Mailbox.open(node)
    trapping.trap_exit = True
    plain.link(pid)
    trapping.link(pid)
    monitor = node.monitor(plain.pid)
    assert await node.ping(shared_beam.name)
    await shared_beam.eval("exit(P, {torn, 1})", P=pid)
    torn = (Atom("torn"), 1)
    assert await monitor == torn
    assert await trapping.receive(timeout=5) == (Atom("EXIT"), pid, torn)


async def test_unlink_before_the_end_leaves_both_alone(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    pid = await shared_beam.eval(FOREVER)
    _, proc = await Mailbox.open(node)
    for _ in range(20):
        proc.link(pid)
        proc.unlink(pid)
    assert await node.ping(shared_beam.name)
    await shared_beam.eval(KILL, P=pid)
    assert await node.ping(shared_beam.name)
    assert proc.alive
    links = await shared_beam.eval("link(P), unlink(P), P ! still, true", P=proc.pid)
    assert links is True
    assert await proc.receive(timeout=5) == Atom("still")


async def test_exit_signals_cross_nodes(node: tumen.Node, shared_beam: peers.Beam) -> None:
    _, proc = await Mailbox.open(node)
    proc.trap_exit = True
    await shared_beam.eval("exit(P, please)", P=proc.pid)
    tag, sender, reason = await proc.receive(timeout=5)
    assert (tag, sender.node, reason) == (Atom("EXIT"), shared_beam.name, Atom("please"))
    monitor = node.monitor(proc.pid)
    await shared_beam.eval("exit(P, kill)", P=proc.pid)
    assert await monitor == Atom("killed")
    assert not proc.alive


async def test_link_to_a_dead_python_process_is_noproc(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    mailbox, proc = await Mailbox.open(node)
    mailbox.end.set_result(None)
    await node.join(proc.pid)
    result = await shared_beam.eval(
        "process_flag(trap_exit, true), link(P), receive {'EXIT', P, R} -> R end", P=proc.pid
    )
    assert result == Atom("noproc")


async def test_elixir_monitors_python(backend: str, epmd: peers.Epmd, elixir: peers.Beam) -> None:
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        mailbox, proc = await Mailbox.open(node)
        watching = asyncio.create_task(
            elixir.eval(
                "defmodule W do\n def go(p) do\n r = Process.monitor(p)\n send(p, :armed)\n"
                " receive do\n {:DOWN, ^r, :process, ^p, why} -> why\n end\n end\n end\n W.go(p)",
                p=proc.pid,
            )
        )
        assert await proc.receive(timeout=5) == Atom("armed")
        mailbox.end.set_result(tumen.Exit(Atom("done")))
        assert await watching == Atom("done")
