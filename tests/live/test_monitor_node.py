"""erlang:monitor_node and net_kernel:monitor_nodes, as messages to a Python process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

import peers
import tumen
from idle import idle_process
from nodes import make_node, next_event
from tumen import Atom, events

pytestmark = pytest.mark.asyncio

NODEDOWN, NODEUP = Atom("nodedown"), Atom("nodeup")


@pytest.mark.sanitizer
async def test_lost_node_is_told_once_for_each_call(node: tumen.Node, beam: peers.Beam) -> None:
    proc, other = await idle_process(node), await idle_process(node)
    # It connects.
    for _ in range(3):
        proc.monitor_node(beam.name)
    other.monitor_node(Atom(beam.name))
    proc.monitor_node(beam.name, False)
    assert await node.ping(beam.name)
    pid = await beam.eval("spawn(fun() -> receive after infinity -> ok end end)")
    ref = proc.monitor(pid)
    assert await node.ping(beam.name)
    beam.kill()
    # What was on the node comes first, then the node itself.
    assert (await proc.receive(timeout=5))[:2] == (Atom("DOWN"), ref)
    for _ in range(2):
        assert await proc.receive(timeout=5) == (NODEDOWN, Atom(beam.name))
    assert await other.receive(timeout=5) == (NODEDOWN, Atom(beam.name))
    for process in (proc, other):
        with pytest.raises(TimeoutError):
            await process.receive(timeout=0.05)


async def test_node_that_cannot_be_reached_is_down_at_once(node: tumen.Node) -> None:
    proc = await idle_process(node)
    name = "nobody@127.0.0.1"
    proc.monitor_node(name)
    assert await proc.receive(timeout=5) == (NODEDOWN, Atom(name))
    with pytest.raises(ValueError, match="name"):
        proc.monitor_node("no node")


async def test_own_node_is_never_down_and_a_call_taken_back_is_not_told(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    proc.monitor_node(node.name)
    proc.monitor_node(shared_beam.name)
    proc.monitor_node(shared_beam.name, False)
    proc.monitor_node(shared_beam.name, False)
    assert await node.ping(shared_beam.name)
    assert await node.disconnect(shared_beam.name)
    with pytest.raises(TimeoutError):
        await proc.receive(timeout=0.05)


async def test_disconnect_counts_and_a_new_connection_is_watched_anew(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    name = Atom(shared_beam.name)
    for _ in range(2):
        proc.monitor_node(name)
        assert await node.ping(shared_beam.name)
        assert await node.disconnect(shared_beam.name)
        assert await proc.receive(timeout=5) == (NODEDOWN, name)
    # A monitor lasts for one connection.
    assert await node.ping(shared_beam.name)
    assert await node.disconnect(shared_beam.name)
    with pytest.raises(TimeoutError):
        await proc.receive(timeout=0.05)


async def test_beam_monitors_our_node(
    epmd: peers.Epmd, backend: str, shared_beam: peers.Beam
) -> None:
    """Both ways of a BEAM to hear of a hidden node."""
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        proc = await idle_process(node)
        waiting = asyncio.create_task(
            shared_beam.eval(
                "ok = net_kernel:monitor_nodes(true, [{node_type, all}]), "
                "monitor_node(N, true), monitor_node(N, true), "
                "receive {nodeup, N, _} -> P ! up after 5000 -> timeout end, "
                "D = [receive {nodedown, N} -> down after 9000 -> timeout end || _ <- [1, 2]], "
                "receive {nodedown, N, _} -> [all | D] after 9000 -> timeout end",
                N=Atom(node.name),
                P=proc.pid,
            )
        )
        assert await proc.receive(timeout=5) == Atom("up")
    assert await waiting == [Atom("all"), Atom("down"), Atom("down")]


async def test_monitor_nodes_tells_of_every_connection(
    node: tumen.Node, start_beam: Callable[..., peers.Beam], otp: peers.Runtime
) -> None:
    proc = await idle_process(node)
    proc.monitor_nodes()
    proc.monitor_nodes()
    stream = node.events()
    beam = start_beam(otp)
    assert await node.ping(beam.name)
    name = Atom(beam.name)
    for _ in range(2):
        assert await proc.receive(timeout=5) == (NODEUP, name)
    beam.kill()
    for _ in range(2):
        assert await proc.receive(timeout=5) == (NODEDOWN, name)
    proc.monitor_nodes(False)
    other = start_beam(otp)
    assert await node.ping(other.name)
    await next_event(stream, events.NodeDown)
    with pytest.raises(TimeoutError):
        await proc.receive(timeout=0.05)
