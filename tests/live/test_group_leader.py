"""Group leaders across nodes: who is told what a process prints."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import peers
import tumen
from idle import idle_process
from tumen import Atom

pytestmark = pytest.mark.asyncio

IO_REQUEST, OK = Atom("io_request"), Atom("ok")


async def test_beam_gives_a_python_process_a_group_leader(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    assert proc.group_leader == node._running.group_leader
    leader = await shared_beam.eval(
        "L = group_leader(), group_leader(L, P), P ! set, L", P=proc.pid
    )
    assert await proc.receive(timeout=5) == Atom("set")
    assert proc.group_leader == leader
    # What it starts here inherits it, and so does what it starts there.
    children: asyncio.Queue[tumen.Process] = asyncio.Queue()

    async def child(own: tumen.Process) -> None:
        children.put_nowait(own)
        await asyncio.get_running_loop().create_future()

    proc.spawn(child)
    here = await children.get()
    assert here.group_leader == leader
    there = await here.spawn_remote(shared_beam.name, "timer", "sleep", [60_000])
    info = await shared_beam.eval("erlang:process_info(P, group_leader)", P=there)
    assert info == (Atom("group_leader"), leader)
    node.exit(there, Atom("kill"))


async def test_python_sets_the_group_leader_of_a_beam_process(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    pid = await shared_beam.eval(
        'spawn(fun() -> receive go -> io:format("~p~n", [hi]) end, receive stop -> ok end end)'
    )
    proc.set_group_leader(pid, proc.pid)
    proc.send(pid, Atom("go"))
    tag, sender, reply_as, request = await proc.receive(timeout=5)
    assert (tag, sender) == (IO_REQUEST, pid)
    assert request == (
        Atom("put_chars"),
        Atom("unicode"),
        Atom("io_lib"),
        Atom("format"),
        [list(b"~p~n"), [Atom("hi")]],
    )
    proc.send(sender, (Atom("io_reply"), reply_as, OK))
    proc.send(pid, Atom("stop"))
    assert await node.join(pid) in (Atom("normal"), Atom("noproc"))


async def test_own_group_leader_is_read_and_set(node: tumen.Node) -> None:
    one, other = await idle_process(node), await idle_process(node)
    one.group_leader = other.pid
    assert one.group_leader == other.pid
    assert other.group_leader == node._running.group_leader
    other.set_group_leader(one.pid, one.pid)
    assert one.group_leader == one.pid
    monitor = node.monitor(one.pid)
    other.exit(one.pid, Atom("kill"))
    await monitor
    with pytest.raises(tumen.ProcessExited):
        _ = one.group_leader
    with pytest.raises(tumen.NoProc):
        other.set_group_leader(one.pid, other.pid)


async def test_spawn_brings_the_group_leader_of_the_spawner(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    async def who() -> Any:
        call = tumen.current_call()
        assert call is not None
        assert call.process is not None
        leaders.put_nowait(call.process.group_leader)

    leaders: asyncio.Queue[tumen.Pid] = asyncio.Queue()
    node.expose("Elixir.ML", "who", who)
    leader = await shared_beam.eval(
        "spawn(N, 'Elixir.ML', who, []), group_leader()", N=Atom(node.name)
    )
    async with asyncio.timeout(5):
        assert await leaders.get() == leader


async def test_rpc_runs_under_the_group_leader_of_its_caller(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    peer = shared_beam.name
    assert await node.rpc(peer, "erlang", "group_leader") == node._running.group_leader
    proc = await idle_process(node)
    proc.group_leader = proc.pid
    assert await proc.rpc(peer, "erlang", "group_leader") == proc.pid
    _, monitor = await node.spawn_remote(peer, "erlang", "group_leader", monitor=True)
    assert await monitor == Atom("normal")
