"""Process groups, PubSub and global names of Python nodes alone: what users get, and errors."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

import tumen
from nodes import address, make_node, pair, turn, until
from tumen import Atom, Pid, TermMap

pytestmark = pytest.mark.asyncio


async def idle(proc: tumen.Process) -> None:
    await proc.receive()


async def swallow(proc: tumen.Process) -> None:
    async for _ in proc:
        pass


async def test_groups_are_told_apart_as_erlang_does(backend: str) -> None:
    async with make_node() as node:
        groups: list[Any] = [1, 1.0, True, Atom("1"), b"1", [1], (1,), {1: [2]}, TermMap([([], 1)])]
        pids = [node.spawn(idle) for _ in groups]
        for group, pid in zip(groups, pids, strict=True):
            node.pg.join(group, pid)
        for group, pid in zip(groups, pids, strict=True):
            assert node.pg.members(group) == [pid]
        assert node.pg.members("1") == [pids[4]]
        assert len(node.pg.which_groups()) == len(groups)
        assert len(node.pg.which_local_groups()) == len(groups)


async def test_a_group_is_what_it_was_when_it_was_joined(backend: str) -> None:
    async with make_node() as node:
        group = [Atom("a")]
        pid = node.spawn(idle)
        node.pg.join(group, pid)
        group.append(Atom("b"))
        assert node.pg.members([Atom("a")]) == [pid]
        assert node.pg.which_groups() == [[Atom("a")]]


async def test_scopes_are_independent(backend: str) -> None:
    async with make_node() as node:
        pid = node.spawn(idle)
        node.pg.join(b"g", pid, scope="one")
        assert node.pg.members(b"g", scope="two") == []
        assert node.pg.members(b"g", scope="one") == [pid]
        assert node.whereis("one") is not None
        node.register("taken", pid)
        with pytest.raises(tumen.NameClash):
            node.pg.join(b"g", pid, scope="taken")


@pytest.mark.parametrize(
    ("pids", "error"),
    [
        (Pid("other@h", 1, 0, 1), ValueError),
        ([Pid("other@h", 1, 0, 1)], ValueError),
        ([1], TypeError),
        ("name", TypeError),
    ],
)
async def test_only_processes_of_this_node_join(backend: str, pids: Any, error: Any) -> None:
    async with make_node() as node:
        with pytest.raises(error):
            node.pg.join(b"g", pids)
        with pytest.raises(error):
            node.pg.leave(b"g", pids)
        with pytest.raises(tumen.EncodeError):
            node.pg.join(object(), node.spawn(idle))
        assert node.pg.which_groups() == []


async def test_no_processes_make_no_group(backend: str) -> None:
    async with pair() as (a, b):
        a.pg.join(b"g", [])
        b.pg.join(b"g", b.spawn(idle))
        await a.pg.ready()
        await until(lambda: len(a.pg.members(b"g")) == 1)
        assert not a.pg.leave(b"g", [])
        assert b.pg.which_groups() == [b"g"]


async def test_a_slow_reader_of_changes_is_told_how_many_were_dropped(backend: str) -> None:
    limits = tumen.Limits(events_count_max=4)
    async with make_node(limits=limits) as node:
        pid = node.spawn(idle)
        with node.pg.monitor(b"g") as monitor, node.pg.monitor(b"other") as other:
            for _ in range(10):
                node.pg.join(b"g", pid)
            first = await anext(monitor)
            assert (first.dropped, first.action, first.pids) == (6, "join", [pid])
            assert (await anext(monitor)).dropped == 0
            monitor.close()
            assert len([change async for change in monitor]) == 2
        assert [change async for change in other] == []


async def test_one_task_reads_a_monitor(backend: str) -> None:
    async with make_node() as node:
        monitor = node.pg.monitor(b"g")
        reader = asyncio.create_task(anext(monitor))
        await turn()
        with pytest.raises(RuntimeError, match="another task"):
            await anext(monitor)
        monitor.close()
        with pytest.raises(StopAsyncIteration):
            await reader


def listening(node: tumen.Node) -> tuple[tumen.Pid, list[Any]]:
    """A process that takes its mail, and what it got."""
    got: list[Any] = []

    async def listen(proc: tumen.Process) -> None:
        async for message in proc:
            got.append(message)

    return node.spawn(listen), got


async def test_changes_go_to_a_process_until_it_says_so_or_ends(backend: str) -> None:
    async with make_node() as node:
        listener, got = listening(node)
        member = node.spawn(idle)
        ref, members = node.pg.monitor_for(listener, b"g")
        assert members == []
        node.pg.join(b"g", member)
        await until(lambda: got == [(ref, Atom("join"), b"g", [member])])
        assert node.pg.demonitor(ref)
        assert not node.pg.demonitor(ref)
        node.pg.leave(b"g", member)
        second, _ = node.pg.monitor_for(listener, b"g")
        node.pg.join(b"g", member)
        await until(lambda: len(got) == 2)
        assert got[1] == (second, Atom("join"), b"g", [member])
        node.exit(listener, Atom("kill"))
        await until(lambda: not node._running.services.pg.scope("pg")._listeners)
        assert not node.pg.demonitor(second)


async def test_send_says_where_there_was_no_room(backend: str) -> None:
    limits = tumen.Limits(sendq_bytes_high=64 * 1024)
    async with pair(limits=limits) as (a, b):
        got: list[Any] = []

        async def listen(proc: tumen.Process) -> None:
            async for message in proc:
                got.append(message)

        here, there = a.spawn(listen), b.spawn(swallow)
        a.pg.join(b"g", here)
        b.pg.join(b"g", there)
        await until(lambda: len(a.pg.members(b"g")) == 2)
        # Nothing is written before the loop has its turn.
        for _ in range(2):
            a.send(there, bytes(60_000))
        with pytest.raises(tumen.Busy, match="1 of the 2 members"):
            a.pg.send(b"g", b"first")
        await until(lambda: got == [b"first"])
        assert await a.pg.send_wait(b"g", b"last") == 2


async def test_ready_waits_for_all_nodes_and_no_longer(backend: str) -> None:
    async with pair() as (a, b):
        # The other has no such scope.
        await a.pg.ready(scope="lonely")
        pid = b.spawn(idle)
        b.pg.join(b"g", pid, scope="late")
        await a.pg.ready(scope="late")
        assert a.pg.members(b"g", scope="late") == [pid]
        await a.pg.ready(0, scope="late")


async def test_a_stopped_node_has_no_groups(backend: str) -> None:
    async with pair() as (a, b):
        groups = a.pg
        pid = a.spawn(idle)
        groups.join(b"g", pid)
        await until(lambda: b.pg.members(b"g") == [pid])
        await a.stop()
        assert groups.members(b"g") == []
        assert not groups.leave(b"g", pid)
        with pytest.raises(tumen.TumenError):
            groups.join(b"g", pid)
        with pytest.raises(tumen.TumenError):
            a.pg.members(b"g")
        await until(lambda: b.pg.members(b"g") == [])


async def test_members_are_gone_before_servers_stop(backend: str) -> None:
    """Who is called through a group is not called any more while it finishes its work."""
    seen: list[Any] = []
    ended = asyncio.Event()

    class Worker(tumen.GenServer):
        async def init(self) -> None:
            self.node.pg.join(b"workers", self)

        async def terminate(self, reason: Any) -> None:
            await ended.wait()
            assert not self.node.pg.leave(b"workers", self)

    async with pair() as (a, b):
        await a.start_server(Worker)
        await until(lambda: len(b.pg.members(b"workers")) == 1)
        stopping = asyncio.create_task(a.stop())
        await until(lambda: b.pg.members(b"workers") == [])
        seen.append(a.name in b.nodes())
        ended.set()
        await stopping
    assert seen == [True]


async def test_a_topic_is_text_and_a_pool_has_a_size(backend: str) -> None:
    async with make_node() as node:
        pubsub = node.pubsub("Elixir.A.PubSub")
        with pytest.raises(TypeError):
            pubsub.subscribe(1)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="count_max"):
            pubsub.subscribe("t", count_max=0)
        with pytest.raises(ValueError, match="pool_size"):
            node.pubsub("Elixir.B.PubSub", pool_size=0)
        with pytest.raises(ValueError, match="too long"):
            node.pubsub("E" * 250)
        with pytest.raises(tumen.EncodeError), pubsub.subscribe("t"):
            pubsub.broadcast("t", object())
        with pytest.raises(ValueError, match="not a process"):
            pubsub.subscribe_process("t", Pid("other@h", 1, 0, 1))
        adapted = node.pubsub("Elixir.C.PubSub", adapter="Elixir.C.Own", pool_size=2)
        assert adapted.nodes() == []
        assert node.whereis("Elixir.C.Own_2") == node.whereis("Elixir.C.Own")


async def test_a_broadcast_reaches_subscribers_here(backend: str) -> None:
    async with make_node() as node:
        pubsub = node.pubsub("Elixir.A.PubSub")
        with pubsub.subscribe("t") as one, pubsub.subscribe(b"t") as two:
            pubsub.broadcast("t", {"a": (1, "x")})
            for subscription in (one, two):
                assert await anext(subscription) == {b"a": (1, b"x")}
        pubsub.broadcast("t", 1)
        assert [message async for message in one] == []


async def test_two_visible_nodes_share_names(backend: str) -> None:
    async with make_node(visible=True) as a, make_node(visible=True) as b:
        pid = a.spawn(idle)
        assert await a.global_names.register(b"n", pid)
        await b.connect(a.name, address(a))
        await b.global_names.sync()
        assert await b.global_names.whereis("n") == pid
        with pytest.raises(ValueError, match="resolve"):
            await a.global_names.register(b"m", pid, resolve="no")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await a.global_names.register(b"m", 1)  # type: ignore[arg-type]
        assert await b.global_names.send(b"n", 1) == pid
        await a.join(pid)
        await until(lambda: not b._running.services.global_names.server.names.all())


async def test_a_name_of_two_python_nodes_is_resolved(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with make_node("a", visible=True) as a, make_node("b", visible=True) as b:
        pids = {node.name: node.spawn(idle) for node in (a, b)}
        for node in (a, b):
            assert await node.global_names.register(b"n", pids[node.name])
        await b.connect(a.name, address(a))
        await asyncio.gather(a.global_names.sync(), b.global_names.sync())
        winner, loser = pids[min(pids)], pids[max(pids)]
        assert await a.global_names.whereis(b"n") == winner
        assert await b.global_names.whereis(b"n") == winner
        assert await a.join(loser) in (Atom("killed"), Atom("noproc"))


async def test_a_hidden_node_asks_nobody_who_knows_nothing(backend: str) -> None:
    async with pair() as (a, b):
        with pytest.raises(tumen.NoConnection, match="global"):
            await a.global_names.whereis(b"n")
        with pytest.raises(tumen.RemoteError):
            await a.global_names.whereis(b"n", via=b.name)


async def test_who_hears_of_changes_goes_on_when_the_scope_was_killed(backend: str) -> None:
    async with make_node() as node:
        listener, got = listening(node)
        member = node.spawn(idle)
        ref, _ = node.pg.monitor_for(listener, b"g")
        second, _ = node.pg.monitor_for(listener, b"g")
        with node.pg.monitor(b"g") as monitor:
            first = node.whereis("pg")
            assert first is not None
            node.exit(first, Atom("kill"))
            await until(lambda: node.whereis("pg") not in (None, first))
            node.pg.join(b"g", member)
            assert (await anext(monitor)).pids == [member]
            await until(lambda: [message[0] for message in got] == [ref, second])
            assert node.pg.demonitor(ref)
            # The new process watches the listener too.
            node.exit(listener, Atom("kill"))
            await until(lambda: not node._running.services.pg.scope("pg")._listeners)
            assert not node.pg.demonitor(second)
            # And the members.
            node.exit(member, Atom("kill"))
            assert (await anext(monitor)).action == "leave"


def names_of(node: tumen.Node) -> Any:
    return node._running.services.global_names.server.names.all()


@pytest.mark.parametrize("who", ["server", "locker", "registrar"])
async def test_the_name_server_keeps_its_names_when_it_was_killed(backend: str, who: str) -> None:
    """Its locker and its registrar end with it, and it with them."""
    async with make_node("a", visible=True) as a, make_node("b", visible=True) as b:
        mine, theirs = a.spawn(idle), b.spawn(idle)
        await b.connect(a.name, address(a))
        await b.global_names.sync()
        assert await a.global_names.register(b"mine", mine)
        assert await b.global_names.register(b"theirs", theirs)
        server = a._running.services.global_names.server
        assert server is not None
        parts = {
            "server": server.process.pid,
            "locker": server._locker_process.pid,
            "registrar": server._registrar.pid,
        }
        b.exit(parts[who], Atom("kill"))
        name = "global_name_server"
        await until(lambda: a.whereis(name) not in (None, parts["server"]))
        for pid in parts.values():
            await a.join(pid)
        for node in (a, b):
            await node.global_names.sync()
            assert await node.global_names.whereis(b"mine") == mine
            assert await node.global_names.whereis(b"theirs") == theirs
        more = [a.spawn(idle), b.spawn(idle)]
        assert await a.global_names.register(b"more of a", more[0])
        assert await b.global_names.register(b"more of b", more[1])
        assert await b.global_names.whereis(b"more of a") == more[0]
        assert await a.global_names.whereis(b"more of b") == more[1]
        # It watches who had a name before.
        for pid in (mine, theirs, *more):
            b.exit(pid, Atom("kill"))
        await until(lambda: not names_of(a) and not names_of(b))


async def test_nodes_meet_although_a_name_server_is_killed_meanwhile(backend: str) -> None:
    for _ in range(3):
        async with make_node("a", visible=True) as a, make_node("b", visible=True) as b:
            pid = a.spawn(idle)
            assert await a.global_names.register(b"n", pid)
            await b.connect(a.name, address(a))
            await until(lambda a=a, b=b: meeting(a, b) or meeting(b, a))  # type: ignore[misc]
            killed = a.whereis("global_name_server")
            assert killed is not None
            b.exit(killed, Atom("kill"))
            await until(
                lambda a=a, killed=killed: a.whereis("global_name_server") not in (None, killed)
            )  # type: ignore[misc]
            await asyncio.gather(a.global_names.sync(), b.global_names.sync())
            assert await b.global_names.whereis(b"n") == pid


def meeting(node: tumen.Node, other: tumen.Node) -> bool:
    """Whether the other has answered, and names were not exchanged yet."""
    found = node._running.services.global_names.server._meetings.get(other.name)  # type: ignore[union-attr]
    return found is not None and found.version > 0


@pytest.mark.parametrize("boss", [False, True])
async def test_a_change_of_names_that_was_cut_off_says_so(backend: str, boss: bool) -> None:
    """Also where the lock is asked for here first: the node with the greatest name is the boss."""
    async with make_node("a", visible=True) as a, make_node("b", visible=True) as b:
        await b.connect(a.name, address(a))
        await b.global_names.sync()
        node, other = (b, a) if boss else (a, b)
        server = node._running.services.global_names.server
        assert server is not None
        # Somebody has the lock.
        holder = other._running.own_process.pid
        locks = [one._running.services.global_names.server.locks for one in (a, b)]  # type: ignore[union-attr]
        for lock in locks:
            await until(lambda lock=lock: lock.set(Atom("global"), b"other", holder))  # type: ignore[misc]
        change = asyncio.create_task(node.global_names.register(b"n", node.spawn(idle)))
        await until(server._changing.locked)
        node.exit(server._registrar.pid, Atom("kill"))
        async with asyncio.timeout(20):
            with pytest.raises(tumen.ProcessExited):
                await change
        assert not server.locks.may_set(Atom("global"), b"x")
        for one in (a, b):
            assert await one.global_names.whereis(b"n") is None
