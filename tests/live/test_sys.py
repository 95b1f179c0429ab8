"""`sys` of real BEAMs on servers of Python."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import peers
import tumen
from nodes import Counter
from tumen import Atom

pytestmark = pytest.mark.asyncio

OK, ERROR = Atom("ok"), Atom("error")


class Other(Counter):
    def format_state(self) -> Any:
        return (Atom("state"), self.n)


@pytest.fixture
def app() -> tumen.App:
    app = tumen.App()
    app.server("counter", 10)(Counter)
    app.server("other", 10)(Other)
    return app


def named(node: tumen.Node, name: str = "counter") -> Any:
    return (Atom(name), Atom(node.name))


async def test_get_state_shows_the_public_attributes(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """Up to 26.0 `sys` hands on what it gets; later releases insist on {ok, State}."""
    shown = await shared_beam.eval("sys:get_state(D)", D=named(node))
    state = {Atom("n"): 10, Atom("seen"): [], Atom("callers"): []}
    assert shown == (state if shared_beam.runtime.name == "otp28" else (OK, state))
    shown = await shared_beam.eval("sys:get_state(D, 5000)", D=named(node, "other"))
    assert shown in ((OK, (Atom("state"), 10)), (Atom("state"), 10))


async def test_get_status_is_formatted_by_the_beam(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """The shape is that of a gen_server of the BEAM itself: what differs is what is in it."""
    source = (
        "{status, P, {module, gen_server}, [PDict, running, Parent, [], "
        '[{header, Header}, {data, [{"Status", running}, {"Parent", Parent}, '
        '{"Logged events", []}]}, {data, [{"State", State}]}]]} = sys:get_status(D), '
        "{is_pid(P), node(Parent) == node(P), lists:sort([K || {K, _} <- PDict, K =/= rand_seed]), "
        'lists:flatten(io_lib:format("~ts", [Header])), State}'
    )
    ours = await shared_beam.eval(source, D=named(node, "other"))
    theirs = await shared_beam.eval(
        "{ok, Own} = tumen_counter:start_link(10), D = Own, "
        f"R = begin {source} end, unlink(Own), exit(Own, kill), R"
    )
    assert ours[:3] == theirs[:3]
    assert ours[3] == list(b"Status for generic server other")
    assert ours[4] == (Atom("state"), 10)


async def test_suspended_server_waits_for_resume(node: tumen.Node, shared_beam: peers.Beam) -> None:
    result = await shared_beam.eval(
        "ok = sys:suspend(D), gen_server:cast(D, 1), "
        "{exit, {timeout, _}} = try gen_server:call(D, get, 50) catch C:E -> {C, E} end, "
        "{status, _, _, [_, State | _]} = sys:get_status(D), "
        "ok = sys:resume(D), {State, gen_server:call(D, seen)}",
        D=named(node),
    )
    assert result == (Atom("suspended"), [(b"cast", 1)])


async def test_terminate_ends_it_with_that_reason(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    result = await shared_beam.eval(
        "M = monitor(process, D), ok = sys:suspend(D), ok = sys:terminate(D, {why, 1}), "
        "receive {'DOWN', M, process, D, R} -> R end",
        D=named(node),
    )
    assert result == (Atom("why"), 1)
    assert node.whereis("counter") is None


async def test_same_requests_have_the_same_replies_as_from_a_gen_server(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """One source, run against a gen_server of the BEAM and against ours."""
    source = (
        "Try = fun(F) -> try F() catch Cl:{Re, {M, F1, [_ | As]}} -> {Cl, Re, M, F1, As} end end, "
        "Keys = fun({ok, L}) when is_list(L) -> [element(1, T) || T <- L]; (X) -> X end, "
        "[Try(F) || F <- ["
        "fun() -> sys:suspend(D) end, fun() -> sys:suspend(D, 5000) end, "
        "fun() -> Keys(sys:statistics(D, get)) end, "
        "fun() -> sys:resume(D) end, fun() -> sys:resume(D) end, "
        "fun() -> sys:change_code(D, m, undefined, []) end, "
        "fun() -> sys:log(D, true) end, fun() -> sys:log(D, {true, 3}) end, "
        "fun() -> sys:log(D, {true, 0}) end, "
        "fun() -> sys:statistics(D, true) end, "
        "fun() -> gen_server:call(D, {add, 1}) end, fun() -> gen_server:cast(D, 1) end, "
        "fun() -> gen_server:call(D, get) end, "
        "fun() -> Keys(sys:log(D, get)) end, "
        "fun() -> {ok, [_, _, _, _, {in, {'$gen_call', {P, _}, get}}, {out, 11, {P, _}, _}]} "
        "= sys:log(D, get), P == self() end, "
        "fun() -> Keys(sys:statistics(D, get)) end, "
        "fun() -> {ok, St} = sys:statistics(D, get), "
        "[V || {K, V} <- St, lists:member(K, [messages_in, messages_out])] end, "
        "fun() -> sys:log(D, false) end, fun() -> sys:log(D, get) end, "
        "fun() -> sys:statistics(D, false) end, "
        "fun() -> sys:no_debug(D) end, fun() -> sys:remove(D, fun erlang:abs/1) end, "
        "fun() -> sys:log_to_file(D, false) end, "
        "fun() -> {ok, R} = gen:call(D, system, nonsense), R end, "
        "fun() -> {ok, R} = gen:call(D, system, {debug, nonsense}), R end, "
        "fun() -> sys:terminate(D, normal) end, "
        "fun() -> sys:get_state({nobody, node()}) end"
        "]]"
    )
    ours = await shared_beam.eval(source, D=named(node))
    theirs = await shared_beam.eval(f"{{ok, D}} = tumen_counter:start_link(10), {source}")
    assert ours == theirs


async def test_what_would_run_code_of_the_caller_is_refused(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    result = await shared_beam.eval(
        "{'EXIT', {{callback_failed, Where, Why}, _}} = "
        "(catch sys:replace_state(D, fun(S) -> S end)), "
        "Install = sys:install(D, {fun(F, _, _) -> F end, 0}), "
        'File = sys:log_to_file(D, "/tmp/x"), ok = sys:suspend(D), '
        "Code = sys:change_code(D, m, undefined, []), ok = sys:resume(D), "
        "{Where, Why, Install, File, Code, gen_server:call(D, get)}",
        D=named(node),
    )
    assert result == (
        (Atom("gen_server"), Atom("system_replace_state")),
        (ERROR, Atom("notsup")),
        Atom("unknown_debug"),
        (ERROR, Atom("open_file")),
        (ERROR, Atom("notsup")),
        10,
    )


async def test_trace_goes_to_the_log_of_python(
    node: tumen.Node, shared_beam: peers.Beam, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tumen.sys")
    await shared_beam.eval(
        "ok = sys:trace(D, true), gen_server:call(D, {add, 5}), ok = sys:trace(D, false)",
        D=named(node),
    )
    assert "*DBG* counter got call (Atom('add'), 5)" in caplog.text
    assert "*DBG* counter sent 15 to" in caplog.text


async def test_elixir_reads_and_stops_servers(node: tumen.Node, elixir: peers.Beam) -> None:
    """Elixir runs on the OTP whose `sys` hands on {ok, State} as it is."""
    result = await elixir.eval(
        "{:ok, %{n: n}} = :sys.get_state(d); "
        "{:status, _, {:module, :gen_server}, [_, status | _]} = :sys.get_status(d); "
        "ref = Process.monitor(d); :ok = GenServer.stop(d, {:shutdown, 1}); "
        "down = receive do {:DOWN, ^ref, _, _, reason} -> reason end; {n, status, down}",
        d=named(node),
    )
    assert result == (10, Atom("running"), (Atom("shutdown"), 1))
