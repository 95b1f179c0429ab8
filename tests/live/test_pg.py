"""Process groups over BEAM and Python nodes: each sees the members of all."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

import peers
import tumen
from nodes import address, make_node, settles, until
from tumen import Atom, Pid

pytestmark = pytest.mark.asyncio

FOREVER = "spawn(fun() -> receive after infinity -> ok end end)"

_scopes = itertools.count(1)


@pytest.fixture
def scope() -> str:
    """A scope that no other test uses."""
    return f"scope{next(_scopes)}"


@pytest_asyncio.fixture(params=["hidden", "visible"])
async def node(
    backend: str, epmd: peers.Epmd, request: pytest.FixtureRequest
) -> AsyncIterator[tumen.Node]:
    visible = request.param == "visible"
    async with make_node(cookie=peers.COOKIE, epmd="auto", visible=visible) as node:
        yield node


@pytest_asyncio.fixture
async def hidden(backend: str, epmd: peers.Epmd) -> AsyncIterator[tumen.Node]:
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        yield node


async def idle(proc: tumen.Process) -> None:
    await proc.receive()


def ordered(pids: list[Pid]) -> list[Pid]:
    return sorted(pids, key=repr)


async def started(beam: peers.Beam, scope: str) -> Pid:
    """A scope of the BEAM; its process."""
    return await beam.eval("{ok, P} = pg:start(S), P", S=Atom(scope))


async def sees(beam: peers.Beam, scope: str, group: Any, members: list[Pid]) -> None:
    async def read() -> list[Pid]:
        return ordered(await beam.eval("pg:get_members(S, G)", S=Atom(scope), G=group))

    await settles("the members", read, lambda found: found == ordered(members))


async def node_sees(node: tumen.Node, scope: str, group: Any, members: list[Pid]) -> None:
    async def read() -> list[Pid]:
        return ordered(node.pg.members(group, scope=scope))

    await settles("the members", read, lambda found: found == ordered(members))


async def alive(beam: peers.Beam, scope: str, pid: Pid) -> None:
    """The scope of the BEAM is the process that it was."""
    assert await beam.eval("whereis(S)", S=Atom(scope)) == pid


async def test_members_are_seen_both_ways_with_multiplicity(
    node: tumen.Node, shared_beam: peers.Beam, scope: str
) -> None:
    group = (Atom("room"), b"one", 1)
    process = await started(shared_beam, scope)
    theirs = await shared_beam.eval(
        f"P = {FOREVER}, ok = pg:join(S, G, P), ok = pg:join(S, G, [P, P]), P",
        S=Atom(scope),
        G=group,
    )
    mine = node.spawn(idle)
    node.pg.join(group, [mine, mine], scope=scope)
    assert node.pg.members(group, scope=scope) == [mine, mine]
    await node.connect(shared_beam.name)
    await sees(shared_beam, scope, group, [theirs] * 3 + [mine] * 2)
    await node.pg.ready(scope=scope)
    assert ordered(node.pg.members(group, scope=scope)) == ordered([theirs] * 3 + [mine] * 2)
    assert node.pg.local_members(group, scope=scope) == [mine] * 2
    assert node.pg.which_groups(scope=scope) == [group]

    node.pg.join(group, mine, scope=scope)
    await sees(shared_beam, scope, group, [theirs] * 3 + [mine] * 3)
    assert node.pg.leave(group, [mine, mine], scope=scope)
    await sees(shared_beam, scope, group, [theirs] * 3 + [mine])
    await shared_beam.eval("pg:leave(S, G, [P, P])", S=Atom(scope), G=group, P=theirs)
    await node_sees(node, scope, group, [theirs, mine])
    assert node.pg.leave(group, mine, scope=scope)
    assert not node.pg.leave(group, mine, scope=scope)
    await shared_beam.eval("pg:leave(S, G, P)", S=Atom(scope), G=group, P=theirs)
    await node_sees(node, scope, group, [])
    await sees(shared_beam, scope, group, [])
    assert node.pg.which_groups(scope=scope) == []
    await alive(shared_beam, scope, process)


async def test_a_member_that_ends_leaves_all_its_groups(
    node: tumen.Node, shared_beam: peers.Beam, scope: str
) -> None:
    process = await started(shared_beam, scope)
    theirs = await shared_beam.eval(
        f"P = {FOREVER}, [pg:join(S, G, P) || G <- [a, b, b]], P", S=Atom(scope)
    )
    await node.connect(shared_beam.name)
    mine, stays = node.spawn(idle), node.spawn(idle)
    for group in ("a", "a", "b"):
        node.pg.join(Atom(group), mine, scope=scope)
    node.pg.join(Atom("b"), stays, scope=scope)
    await sees(shared_beam, scope, Atom("a"), [theirs, mine, mine])
    await sees(shared_beam, scope, Atom("b"), [theirs, theirs, mine, stays])
    await node_sees(node, scope, Atom("b"), [theirs, theirs, mine, stays])
    node.exit(mine, Atom("kill"))
    await sees(shared_beam, scope, Atom("a"), [theirs])
    await sees(shared_beam, scope, Atom("b"), [theirs, theirs, stays])
    await shared_beam.eval("exit(P, kill)", P=theirs)
    await node_sees(node, scope, Atom("a"), [])
    await node_sees(node, scope, Atom("b"), [stays])
    await alive(shared_beam, scope, process)


async def test_a_scope_that_starts_after_the_connection_is_found(
    node: tumen.Node, shared_beam: peers.Beam, scope: str
) -> None:
    await node.connect(shared_beam.name)
    mine = node.spawn(idle)
    node.pg.join(Atom("g"), mine, scope=scope)
    await node.pg.ready(scope=scope)
    assert await node.ping(shared_beam.name)
    process = await started(shared_beam, scope)
    await sees(shared_beam, scope, Atom("g"), [mine])
    await alive(shared_beam, scope, process)


async def test_a_scope_that_was_killed_is_found_again(
    node: tumen.Node, shared_beam: peers.Beam, scope: str
) -> None:
    await started(shared_beam, scope)
    await node.connect(shared_beam.name)
    theirs = await shared_beam.eval(f"P = {FOREVER}, pg:join(S, g, P), P", S=Atom(scope))
    mine = node.spawn(idle)
    node.pg.join(Atom("g"), mine, scope=scope)
    await sees(shared_beam, scope, Atom("g"), [mine, theirs])
    await node_sees(node, scope, Atom("g"), [mine, theirs])
    process = await shared_beam.eval(
        "R = monitor(process, S), exit(whereis(S), kill), receive {'DOWN', R, _, _, _} -> ok end, "
        "{ok, P} = pg:start(S), P",
        S=Atom(scope),
    )
    await node_sees(node, scope, Atom("g"), [mine])
    await sees(shared_beam, scope, Atom("g"), [mine])
    # What changes meanwhile must not surprise the new one.
    node.pg.join(Atom("h"), mine, scope=scope)
    node.pg.leave(Atom("g"), mine, scope=scope)
    await sees(shared_beam, scope, Atom("h"), [mine])
    await sees(shared_beam, scope, Atom("g"), [])
    await alive(shared_beam, scope, process)


async def test_our_scope_keeps_its_members_when_its_process_is_killed(
    node: tumen.Node, shared_beam: peers.Beam, scope: str
) -> None:
    process = await started(shared_beam, scope)
    theirs = await shared_beam.eval(f"P = {FOREVER}, pg:join(S, g, P), P", S=Atom(scope))
    await node.connect(shared_beam.name)
    mine = node.spawn(idle)
    node.pg.join(Atom("g"), mine, scope=scope)
    await sees(shared_beam, scope, Atom("g"), [mine, theirs])
    first = node.whereis(scope)
    assert first is not None
    await shared_beam.eval("exit(P, kill)", P=first)
    await until(lambda: node.whereis(scope) not in (None, first))
    await sees(shared_beam, scope, Atom("g"), [mine, theirs])
    await node_sees(node, scope, Atom("g"), [mine, theirs])
    node.exit(mine, Atom("kill"))
    await sees(shared_beam, scope, Atom("g"), [theirs])
    await alive(shared_beam, scope, process)


async def test_a_split_takes_the_others_members_and_a_heal_brings_them_back(
    node: tumen.Node, shared_beam: peers.Beam, scope: str
) -> None:
    process = await started(shared_beam, scope)
    theirs = await shared_beam.eval(f"P = {FOREVER}, pg:join(S, g, P), P", S=Atom(scope))
    mine = node.spawn(idle)
    node.pg.join(Atom("g"), mine, scope=scope)
    for _ in range(3):
        await node.connect(shared_beam.name)
        await sees(shared_beam, scope, Atom("g"), [mine, theirs])
        await node_sees(node, scope, Atom("g"), [mine, theirs])
        assert await node.disconnect(shared_beam.name)
        # Unseen by the other side: it must not hear of these as if it had.
        node.pg.join(Atom("h"), mine, scope=scope)
        node.pg.leave(Atom("g"), mine, scope=scope)
        node.pg.join(Atom("g"), mine, scope=scope)
        node.pg.leave(Atom("h"), mine, scope=scope)
        await node_sees(node, scope, Atom("g"), [mine])
        await sees(shared_beam, scope, Atom("g"), [theirs])
    await alive(shared_beam, scope, process)


async def test_a_node_that_stops_takes_its_members_along(
    backend: str, epmd: peers.Epmd, shared_beam: peers.Beam, scope: str
) -> None:
    process = await started(shared_beam, scope)
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        await node.connect(shared_beam.name)
        mine = node.spawn(idle)
        node.pg.join(Atom("g"), mine, scope=scope)
        await sees(shared_beam, scope, Atom("g"), [mine])
    await sees(shared_beam, scope, Atom("g"), [])
    await alive(shared_beam, scope, process)


async def test_monitors_tell_changes_on_both_sides(
    hidden: tumen.Node, shared_beam: peers.Beam, scope: str
) -> None:
    node = hidden
    await started(shared_beam, scope)
    await node.connect(shared_beam.name)
    await node.pg.ready(scope=scope)
    beam_heard = asyncio.create_task(
        shared_beam.eval(
            "{R, []} = pg:monitor(S, g), P ! go, "
            # Of its own member it hears whenever that joins.
            "Heard = fun() -> receive {R, A, G, [L | _] = Ls} when node(L) =/= node() -> "
            "{A, G, Ls} after 9000 -> late end end, "
            "Joined = Heard(), P ! leave, [Joined, Heard()]",
            S=Atom(scope),
            P=node.spawn(wait_and_join(node, scope)),
        )
    )
    with (
        node.pg.monitor(Atom("g"), scope=scope) as monitor,
        node.pg.monitor_scope(scope=scope) as everything,
    ):
        assert monitor.members == []
        first = await anext(monitor)
        second = await anext(monitor)
        assert (first.action, second.action) == ("join", "leave")
        assert first.pids == second.pids
        theirs = await shared_beam.eval(f"P = {FOREVER}, pg:join(S, g, [P, P]), P", S=Atom(scope))
        third = await anext(monitor)
        assert (third.action, third.group, third.pids) == ("join", Atom("g"), [theirs, theirs])
        assert [(await anext(everything)).action for _ in range(3)] == ["join", "leave", "join"]
    joined, left = await beam_heard
    assert joined == (Atom("join"), Atom("g"), first.pids)
    assert left == (Atom("leave"), Atom("g"), first.pids)


def wait_and_join(node: tumen.Node, scope: str) -> Callable[[tumen.Process], Awaitable[None]]:
    async def main(proc: tumen.Process) -> None:
        assert await proc.receive() == Atom("go")
        node.pg.join(Atom("g"), proc, scope=scope)
        assert await proc.receive() == Atom("leave")

    return main


async def test_a_process_gets_changes_as_erlang_has_them(
    hidden: tumen.Node, shared_beam: peers.Beam, scope: str
) -> None:
    node = hidden
    await started(shared_beam, scope)
    await node.connect(shared_beam.name)
    heard: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    begun: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def listen(proc: tumen.Process) -> None:
        begun.set_result(node.pg.monitor_for(proc, Atom("g"), scope=scope))
        heard.set_result([await proc.receive(), await proc.receive()])

    node.spawn(listen)
    ref, members = await begun
    assert members == []
    await node.pg.ready(scope=scope)
    theirs = await shared_beam.eval(
        f"P = {FOREVER}, pg:join(S, g, P), pg:leave(S, g, P), P", S=Atom(scope)
    )
    async with asyncio.timeout(5):
        assert await heard == [
            (ref, Atom("join"), Atom("g"), [theirs]),
            (ref, Atom("leave"), Atom("g"), [theirs]),
        ]


async def test_what_no_scope_sends_is_passed_over(
    hidden: tumen.Node, shared_beam: peers.Beam, scope: str
) -> None:
    node = hidden
    await node.connect(shared_beam.name)
    mine = node.spawn(idle)
    node.pg.join(Atom("g"), mine, scope=scope)
    first = node.whereis(scope)
    await shared_beam.eval(
        "D = {S, N}, Me = self(), "
        "[D ! M || M <- [x, {}, {discover}, {discover, 1}, {join, Me, g, Me}, {join, Me, g, [x]},"
        "  {leave, Me, Me, [g]}, {leave, Me, Me, g}, {leave, 1, 2, 3}, {join, x, y, z},"
        "  {'$gen_cast', {sync, Me, x}}, {'$gen_cast', {sync, Me, [g]}}, {'$gen_cast', y},"
        "  {'$gen_call', {Me, make_ref()}, monitor}, {'DOWN', make_ref(), process, Me, x},"
        "  {nodeup, a}, {'EXIT', Me, x}, #{}, [], 1.5]]",
        S=Atom(scope),
        N=Atom(node.name),
    )
    assert await node.ping(shared_beam.name)
    process = await started(shared_beam, scope)
    await sees(shared_beam, scope, Atom("g"), [mine])
    assert node.whereis(scope) == first
    await alive(shared_beam, scope, process)


async def test_send_reaches_every_member_once(
    hidden: tumen.Node, shared_beam: peers.Beam, scope: str
) -> None:
    node = hidden
    await started(shared_beam, scope)
    await node.connect(shared_beam.name)
    answers = asyncio.create_task(
        shared_beam.eval(
            "Me = self(), [begin P = spawn(fun() -> receive M -> Me ! {self(), M} end end),"
            " ok = pg:join(S, g, [P, P]) end || _ <- [1, 2]], "
            "[receive {_, M} -> M after 9000 -> late end || _ <- [1, 2]]",
            S=Atom(scope),
        )
    )
    await until(lambda: len(node.pg.members(Atom("g"), scope=scope)) == 4)
    assert node.pg.send(Atom("g"), (Atom("hello"), [1]), scope=scope) == 2
    assert await answers == [(Atom("hello"), [1])] * 2
    assert node.pg.send(Atom("nobody"), 1, scope=scope) == 0


async def test_python_nodes_see_each_other(backend: str, scope: str) -> None:
    async with make_node("a") as a, make_node("b", visible=True) as b, make_node("c") as c:
        await b.connect(a.name, address(a))
        await c.connect(a.name, address(a))
        await c.connect(b.name, address(b))
        pids = []
        for node in (a, b, c):
            pid = node.spawn(idle)
            node.pg.join(b"g", pid, scope=scope)
            pids.append(pid)
        for node in (a, b, c):
            await node_sees(node, scope, b"g", pids)
        assert await c.disconnect(a.name)
        await node_sees(a, scope, b"g", pids[:2])
        await node_sees(b, scope, b"g", pids)
        await node_sees(c, scope, b"g", pids[1:])
        await c.connect(a.name, address(a))
        a.exit(pids[0], Atom("kill"))
        for node in (a, b, c):
            await node_sees(node, scope, b"g", pids[1:])


def flood(node: tumen.Node, peer: str) -> None:
    for _ in range(10_000):
        node.send(("nobody", peer), bytes(10_000))


async def test_changes_wait_while_a_peer_does_not_read(
    backend: str, epmd: peers.Epmd, beam: peers.Beam, scope: str
) -> None:
    process = await started(beam, scope)
    limits = tumen.Limits(sendq_bytes_high=64 * 1024)
    async with make_node(cookie=peers.COOKIE, epmd="auto", limits=limits) as node:
        await node.connect(beam.name)
        mine = node.spawn(idle)
        node.pg.join(Atom("g"), mine, scope=scope)
        await sees(beam, scope, Atom("g"), [mine])
        beam.pause()
        try:
            with pytest.raises(tumen.Busy):
                flood(node, beam.name)
            for _ in range(100):
                node.pg.join(Atom("h"), mine, scope=scope)
            node.pg.leave(Atom("g"), mine, scope=scope)
            node.pg.join(Atom("i"), mine, scope=scope)
            node.pg.leave(Atom("h"), mine, scope=scope)
        finally:
            beam.resume()
        await sees(beam, scope, Atom("h"), [mine] * 99)
        await sees(beam, scope, Atom("g"), [])
        await sees(beam, scope, Atom("i"), [mine])
        await alive(beam, scope, process)


async def test_elixir_calls_python_through_a_group(
    backend: str, epmd: peers.Epmd, elixir: peers.Beam
) -> None:
    class Model(tumen.GenServer):
        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            return (Atom("ok"), request * 2)

    await elixir.eval("{:ok, _} = :pg.start(:pg); :ok")
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        await node.connect(elixir.name)
        pid = await node.start_server(Model)
        node.pg.join(Atom("models"), pid)
        await settles(
            "the group has our server",
            lambda: elixir.eval(":pg.get_members(:models)"),
            lambda found: found == [pid],
        )
        answer = await elixir.eval("[pid] = :pg.get_members(:models)\nGenServer.call(pid, 21)")
        assert answer == (Atom("ok"), 42)
