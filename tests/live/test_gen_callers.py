"""Every caller that OTP and Elixir have for a generic server, on servers of Python."""

from __future__ import annotations

from typing import Any

import pytest

import peers
import tumen
from nodes import Counter, make_node
from tumen import Atom

pytestmark = pytest.mark.asyncio

OK, ERROR, EXIT = Atom("ok"), Atom("error"), Atom("exit")


class Events(tumen.GenEvent):
    handler = "collector"

    async def init(self) -> None:
        self.events: list[Any] = []

    async def handle_event(self, event: Any) -> Any:
        self.events.append(event)
        return tumen.Stop(Atom("enough")) if event == Atom("enough") else None

    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        return (request, self.events)

    async def handle_info(self, message: Any) -> None:
        self.events.append((Atom("info"), message))


@pytest.fixture
def app() -> tumen.App:
    app = tumen.App()
    app.server("counter", 10)(Counter)
    app.server("events")(Events)
    return app


def named(node: tumen.Node) -> Any:
    return (Atom("counter"), Atom(node.name))


async def test_multi_call_collects_replies_and_bad_nodes(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """Its tags changed with OTP 26; with a timeout another process makes the calls."""
    async with make_node(cookie=peers.COOKIE, epmd="auto") as empty:
        result = await shared_beam.eval(
            "{ok, Own} = gen_server:start({local, counter}, tumen_counter, 20, []), "
            "Nodes = [N, node(), Empty], Stopped = 'nowhere@127.0.0.1', "
            "A = gen_server:multi_call(Nodes, counter, get), "
            "B = gen_server:multi_call([Stopped | Nodes], counter, {add, 1}, 5000), "
            "C = gen_server:multi_call([N], counter, later, 50), gen_server:stop(Own), "
            "Sort = fun({G, L}) -> {lists:sort(G), lists:sort(L)} end, "
            "{Sort(A), Sort(B), C, node(), receive M -> M after 0 -> nothing end}",
            N=Atom(node.name),
            Empty=Atom(empty.name),
            timeout=30,
        )
        first, second, third, beam, rest = result
        us, none, nowhere = Atom(node.name), Atom(empty.name), Atom("nowhere@127.0.0.1")
        key = str
        assert sorted(first[0], key=key) == sorted([(us, 10), (beam, 20)], key=key)
        assert first[1] == [none]
        assert sorted(second[0], key=key) == sorted([(us, 11), (beam, 21)], key=key)
        assert sorted(second[1], key=key) == sorted([none, nowhere], key=key)
        assert third == ([], [us])
        assert rest == Atom("nothing")


async def test_abcast_reaches_every_node(node: tumen.Node, shared_beam: peers.Beam) -> None:
    result = await shared_beam.eval(
        "abcast = gen_server:abcast([N], counter, hello), gen_server:call({counter, N}, seen)",
        N=Atom(node.name),
    )
    assert result == [(b"cast", Atom("hello"))]


async def test_requests_that_are_sent_now_and_waited_for_later(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    result = await shared_beam.eval(
        "A = gen_server:send_request(D, {add, 1}), B = gen_server:send_request(D, {add, 2}), "
        "C = gen_server:send_request(D, {add, 4}), "
        "{reply, RB} = gen_server:receive_response(B, 5000), "
        "{reply, RA} = gen_server:wait_response(A, 5000), "
        "{reply, RC} = receive Msg -> gen_server:check_response(Msg, C) end, "
        "Col = lists:foldl(fun(X, Acc) -> gen_server:send_request(D, {add, X}, X, Acc) end, "
        "gen_server:reqids_new(), [10, 20]), "
        "{{reply, _}, L1, Col1} = gen_server:receive_response(Col, 5000, true), "
        "{{reply, _}, L2, Col2} = gen_server:receive_response(Col1, 5000, true), "
        "Late = gen_server:send_request(D, later), "
        "timeout = gen_server:receive_response(Late, 20), "
        "gen_server:cast(D, answer), gen_server:call(D, get), "
        "{RA, RB, RC, L1, L2, gen_server:reqids_size(Col2), receive M -> M after 0 -> nothing end}",
        D=named(node),
    )
    assert result == (11, 13, 17, 10, 20, 0, Atom("nothing"))


@pytest.mark.parametrize("by", ["name", "pid"])
async def test_stop_ends_the_server_with_that_reason(
    node: tumen.Node, shared_beam: peers.Beam, by: str
) -> None:
    dest = named(node) if by == "name" else node.whereis("counter")
    result = await shared_beam.eval(
        "M = monitor(process, D), R = gen_server:stop(D, {shutdown, bye}, 5000), "
        "Down = receive {'DOWN', M, process, _, Reason} -> Reason end, "
        "Again = try gen_server:stop(D, normal, 5000) catch C:E -> {C, E} end, {R, Down, Again}",
        D=dest,
    )
    assert result == (OK, (Atom("shutdown"), Atom("bye")), (EXIT, Atom("noproc")))


async def test_other_ways_to_stop(node: tumen.Node, shared_beam: peers.Beam) -> None:
    for source in ("proc_lib:stop(D)", "gen_statem:stop(D)", "gen_event:stop(D)"):
        assert await shared_beam.eval(source, D=named(node)) == OK
        assert node.whereis("counter") is None
        await node.start_server(Counter, name="counter")


async def test_terminate_that_does_not_end_is_a_timeout_at_the_caller(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    class Slow(Counter):
        async def terminate(self, reason: Any) -> None:
            await self.receive()

    pid = await node.start_server(Slow)
    source = "try gen_server:stop(P, normal, 50) catch C:E -> {C, E} end"
    assert await shared_beam.eval(source, P=pid) == (EXIT, Atom("timeout"))
    assert await shared_beam.eval(
        "M = monitor(process, P), P ! now, receive {'DOWN', M, _, _, R} -> R end", P=pid
    ) == Atom("normal")


async def test_gen_statem_callers_are_served(node: tumen.Node, shared_beam: peers.Beam) -> None:
    result = await shared_beam.eval(
        "A = gen_statem:call(D, {add, 1}), B = gen_statem:call(D, {add, 1}, 5000), "
        "C = gen_statem:call(D, {add, 1}, {clean_timeout, 5000}), "
        "E = gen_statem:call(D, {add, 1}, {dirty_timeout, 5000}), ok = gen_statem:cast(D, hello), "
        "{reply, F} = gen_statem:wait_response(gen_statem:send_request(D, {add, 1}), 5000), "
        "Late = try gen_statem:call(D, later, 30) catch exit:{timeout, _} -> timeout end, "
        "{A, B, C, E, F, gen_statem:call(D, seen), Late}",
        D=named(node),
    )
    seen = [(b"cast", Atom("hello"))]
    assert result == (11, 12, 13, 14, 15, seen, Atom("timeout"))


async def test_gen_event_callers_are_served(node: tumen.Node, shared_beam: peers.Beam) -> None:
    result = await shared_beam.eval(
        "ok = gen_event:notify(D, one), ok = gen_event:sync_notify(D, {two, 2}), D ! three, "
        "A = gen_event:call(D, collector, ask), B = gen_event:call(D, collector, ask, 5000), "
        "C = gen_event:call(D, other, ask), "
        "{A, B =:= A, C, gen_event:which_handlers(D), gen_event:delete_handler(D, other, []), "
        "gen_event:delete_handler(D, collector, [])}",
        D=(Atom("events"), Atom(node.name)),
    )
    seen = [Atom("one"), (Atom("two"), 2), (Atom("info"), Atom("three"))]
    answer = (Atom("ask"), seen)
    bad, missing = (ERROR, Atom("bad_module")), (ERROR, Atom("module_not_found"))
    assert result == (answer, True, bad, [Atom("collector")], missing, (ERROR, Atom("notsup")))


async def test_handlers_of_a_beam_are_refused_as_modules_that_do_not_exist(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """The answers are those of an event manager of the BEAM that has no such module."""
    source = (
        "Undef = fun({'EXIT', {undef, [{M, F, A, _} | _]}}) -> {M, F, A}; "
        "({error, {'EXIT', {undef, [{M, F, A, _} | _]}}}) -> {error, M, F, A} end, "
        "lists:map(Undef, [gen_event:add_handler(D, no_such, 1), "
        "gen_event:add_handler(D, {no_such, id}, 1), gen_event:add_sup_handler(D, no_such, 2), "
        "gen_event:swap_handler(D, {old, 1}, {no_such, 2})])"
    )
    ours = await shared_beam.eval(source, D=(Atom("events"), Atom(node.name)))
    theirs = await shared_beam.eval(f"{{ok, D}} = gen_event:start(), {source}")
    # What the old handler leaves to the new one is the BEAM's own matter.
    assert ours[:3] == theirs[:3]
    assert ours[3][:3] == theirs[3][:3] == (ERROR, Atom("no_such"), Atom("init"))


async def test_event_can_end_the_manager_and_gen_event_can_stop_it(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    source = "M = monitor(process, D), {WHAT, receive {'DOWN', M, _, _, R} -> R end}"
    for what, reason in (
        ("gen_event:notify(D, enough)", Atom("enough")),
        ("gen_event:sync_notify(D, enough)", Atom("enough")),
        ("gen_event:stop(D, bye, 5000)", Atom("bye")),
    ):
        dest = (Atom("events"), Atom(node.name))
        ended = await shared_beam.eval(source.replace("WHAT", what), D=dest)
        assert ended == (OK, reason)
        await node.start_server(Events, name="events")


async def test_elixir_callers_are_served(node: tumen.Node, elixir: peers.Beam) -> None:
    result = await elixir.eval(
        "a = GenServer.call(d, {:add, 1}); :ok = GenServer.cast(d, :hello); "
        ":abcast = GenServer.abcast([n], :counter, :all); "
        "multi = GenServer.multi_call([n], :counter, {:add, 1}, 5000); "
        "seen = GenServer.call(d, :seen); "
        "late = try do GenServer.call(d, :later, 30) catch :exit, {:timeout, _} -> :timeout end; "
        ":ok = GenServer.stop(d); {a, multi, seen, late, "
        "try do GenServer.call(d, :get) catch :exit, {reason, _} -> reason end}",
        d=named(node),
        n=Atom(node.name),
    )
    us = Atom(node.name)
    seen = [(b"cast", Atom("hello")), (b"cast", Atom("all"))]
    assert result == (11, ([(us, 12)], []), seen, Atom("timeout"), Atom("noproc"))
