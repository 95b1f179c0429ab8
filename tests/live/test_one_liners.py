"""What operators type into a shell, from each release against a visible node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import peers
import tumen
from nodes import Counter, make_node, settles
from tumen import Atom, ChildSpec

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def node(backend: str, beam: peers.Beam) -> AsyncIterator[tumen.Node]:
    """A visible node with a server below a supervisor, a group, a global name and a function."""
    app = tumen.App()
    app.expose("Elixir.ML", "add")(lambda a, b: a + b)
    app.supervisor("workers", [ChildSpec("counter", Counter, (10,), name="counter")])
    async with make_node(app=app, cookie=peers.COOKIE, epmd="auto", visible=True) as node:
        await beam.eval("{ok, _} = pg:start(pg), ok")
        await node.connect(beam.name)
        counter = node.whereis("counter")
        assert counter is not None
        node.pg.join(Atom("counters"), counter)
        await node.global_names.register(Atom("the_counter"), counter)
        await node.pg.ready()
        yield node


async def test_rpc_multicall(node: tumen.Node, beam: peers.Beam) -> None:
    source = "rpc:multicall([N, 'nobody@127.0.0.1'], 'Elixir.ML', add, [1, 2])"
    assert await beam.eval(source, N=Atom(node.name)) == ([3], [Atom("nobody@127.0.0.1")])


async def test_erpc_multicall(node: tumen.Node, beam: peers.Beam) -> None:
    source = "erpc:multicall([N, node()], 'Elixir.ML', add, [1, 2])"
    ours, theirs = await beam.eval(source, N=Atom(node.name))
    assert ours == (Atom("ok"), 3)
    assert theirs[:2] == (Atom("error"), (Atom("exception"), *theirs[1][1:]))


async def test_rpc_block_call(node: tumen.Node, beam: peers.Beam) -> None:
    source = "rpc:block_call(N, 'Elixir.ML', add, [1, 2])"
    assert await beam.eval(source, N=Atom(node.name)) == 3


async def test_pg_get_members(node: tumen.Node, beam: peers.Beam) -> None:
    source = """
        Look = fun(F, 0) -> pg:get_members(counters);
                  (F, Times) -> case pg:get_members(counters) of
                      [] -> receive after 10 -> F(F, Times - 1) end;
                      Pids -> Pids
                  end
               end, Look(Look, 500)
    """
    assert await beam.eval(source) == [node.whereis("counter")]


async def test_global_whereis_name_and_send(node: tumen.Node, beam: peers.Beam) -> None:
    source = "ok = global:sync(), {global:whereis_name(the_counter), global:send(the_counter, hi)}"
    assert await beam.eval(source) == (node.whereis("counter"),) * 2
    seen = await beam.eval("gen_server:call({global, the_counter}, seen)")
    assert seen == [(b"info", Atom("hi"))]


async def test_sys_get_state(node: tumen.Node, beam: peers.Beam) -> None:
    state = await beam.eval(
        "case sys:get_state({counter, N}) of {ok, S} -> S; S -> S end", N=Atom(node.name)
    )
    assert isinstance(state, dict)
    assert 10 in state.values()


async def test_supervisor_which_children(node: tumen.Node, beam: peers.Beam) -> None:
    children: Any = await beam.eval("supervisor:which_children({workers, N})", N=Atom(node.name))
    [(name, pid, kind, _modules)] = children
    assert (name, pid, kind) == (Atom("counter"), node.whereis("counter"), Atom("worker"))


async def test_gen_server_multi_call(node: tumen.Node, beam: peers.Beam) -> None:
    source = "gen_server:multi_call([N, 'nobody@127.0.0.1'], counter, {add, 1})"
    answer = await beam.eval(source, N=Atom(node.name))
    assert answer == ([(Atom(node.name), 11)], [Atom("nobody@127.0.0.1")])


async def test_spawn_monitor(node: tumen.Node, beam: peers.Beam) -> None:
    source = """
        {P, R} = spawn_monitor(N, 'Elixir.ML', add, [1, 2]),
        receive {'DOWN', R, process, P, Reason} -> {node(P), Reason} after 9000 -> late end
    """
    assert await beam.eval(source, N=Atom(node.name)) == (Atom(node.name), Atom("normal"))


async def test_monitor_node(node: tumen.Node, beam: peers.Beam) -> None:
    watching = asyncio.create_task(
        beam.eval(
            "true = monitor_node(N, true), {counter, N} ! watched, "
            "receive {nodedown, N} -> down after 9000 -> late end",
            N=Atom(node.name),
        )
    )
    await settles(
        "the monitor is there",
        lambda: node.call("counter", Atom("seen")),
        lambda seen: (b"info", Atom("watched")) in seen,
    )
    await node.stop()
    assert await watching == Atom("down")
