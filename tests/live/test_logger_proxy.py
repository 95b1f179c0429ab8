"""Log events of a BEAM's processes whose group leader is ours reach Python's logging."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import peers
import tumen
from nodes import make_node, next_event, until
from tumen import Atom

pytestmark = pytest.mark.asyncio

# Runs F in a process of the BEAM whose group leader is G.
LOG = "In = fun(F) -> spawn_monitor(fun() -> group_leader(G, self()), F() end) end, "


@pytest_asyncio.fixture
async def node(
    backend: str, epmd: peers.Epmd, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[tumen.Node]:
    caplog.set_level(logging.DEBUG, logger="tumen.remote")
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        yield node


def events(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "tumen.remote"]


async def log(beam: peers.Beam, node: tumen.Node, body: str) -> None:
    leader = node._running.group_leader
    await beam.eval(
        f"{LOG} {{_, M}} = In(fun() -> {body} end), receive {{'DOWN', M, _, _, _}} -> ok end",
        G=leader,
    )


async def test_log_events_reach_python_with_level_text_and_metadata(
    node: tumen.Node, beam: peers.Beam, caplog: pytest.LogCaptureFixture
) -> None:
    await beam.eval("logger:set_primary_config(level, all)")
    await log(
        beam,
        node,
        'logger:error("~p is ~ts", [{a, 1}, <<"gr\\xc3\\xbcn">>], #{who => me}), '
        'logger:warning("plain"), logger:notice("~w", [x]), logger:info(#{a => 1, b => "two"}), '
        'logger:debug([{k, v}]), logger:critical("~s", ["c"]), logger:emergency(<<"e">>), '
        'logger:warning(#{x => 1}, #{report_cb => fun(#{x := X}) -> {"cb ~w", [X]} end}), '
        "logger:warning(#{x => 2}, "
        '#{report_cb => fun(#{x := X}, #{}) -> ["cb2 ", integer_to_list(X)] end})',
    )
    await until(lambda: len(events(caplog)) == 9)
    found = [(record.levelname, record.getMessage()) for record in events(caplog)]
    assert found[:3] == [("ERROR", "{a,1} is grün"), ("WARNING", "plain"), ("INFO", "x")]
    level, text = found[3]
    assert level == "INFO"
    assert sorted(text.replace("\n", " ").split()) == sorted(["a:", "1", "b:", "two"])
    assert found[4][0] == "DEBUG"
    assert "k: v" in found[4][1]
    assert found[5:] == [
        ("CRITICAL", "c"),
        ("CRITICAL", "e"),
        ("WARNING", "cb 1"),
        ("WARNING", "cb2 2"),
    ]
    record: Any = events(caplog)[0]
    assert record.erlang_node == beam.name
    assert record.erlang_pid.node == beam.name
    assert record.erlang_level == "error"
    assert record.erlang_meta["who"] == Atom("me")
    assert record.erlang_meta["gl"] == node._running.group_leader
    report: Any = events(caplog)[3]
    assert report.erlang_report == {Atom("a"): 1, Atom("b"): list(b"two")}


async def test_crash_of_a_process_that_we_cast_is_logged_here(
    node: tumen.Node, shared_beam: peers.Beam, caplog: pytest.LogCaptureFixture
) -> None:
    """What the emulator says of it too, with its stack."""
    node.rpc_cast(shared_beam.name, "erlang", "error", [Atom("boom")])
    await until(lambda: events(caplog))
    (record,) = events(caplog)
    assert record.levelname == "ERROR"
    assert "with exit value" in record.getMessage()
    assert "boom" in record.getMessage()


async def test_crash_report_of_a_beam_process_is_readable(
    node: tumen.Node, shared_beam: peers.Beam, caplog: pytest.LogCaptureFixture
) -> None:
    """Formatted by the callback that the report names, over there."""
    await shared_beam.eval(
        "P = proc_lib:spawn(fun() -> group_leader(G, self()), error(boom) end), "
        "M = monitor(process, P), receive {'DOWN', M, _, _, _} -> ok end",
        G=node._running.group_leader,
    )
    await until(lambda: events(caplog))
    record: Any = events(caplog)[0]
    assert "initial call:" in record.getMessage()
    assert "boom" in record.getMessage()
    assert record.erlang_report[Atom("label")] == (Atom("proc_lib"), Atom("crash"))


async def test_elixir_logs_to_python(
    node: tumen.Node, elixir: peers.Beam, caplog: pytest.LogCaptureFixture
) -> None:
    await elixir.eval(
        'spawn(fn -> Process.group_leader(self(), g); :logger.error("héllo"); '
        ":logger.warning(%{a: 1}) end)",
        g=node._running.group_leader,
    )
    await until(lambda: len(events(caplog)) == 2)
    assert events(caplog)[0].getMessage() == "héllo"
    assert "a: 1" in events(caplog)[1].getMessage()


async def test_level_that_nobody_wants_is_not_formatted(
    node: tumen.Node, shared_beam: peers.Beam, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="tumen.remote")
    before = node.info().messages_out
    await log(shared_beam, node, 'logger:warning("~p", [x])')
    await log(shared_beam, node, 'logger:error("last")')
    await until(lambda: events(caplog))
    assert [record.getMessage() for record in events(caplog)] == ["last"]
    assert node.info().messages_out == before


async def test_flood_of_events_is_cut_and_counted(
    backend: str, epmd: peers.Epmd, shared_beam: peers.Beam, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit is log_events_per_s_max; the drops are reported once a second."""
    caplog.set_level(logging.DEBUG, logger="tumen")
    limits = tumen.Limits(log_events_per_s_max=10)
    async with make_node(cookie=peers.COOKIE, epmd="auto", limits=limits) as node:
        await log(shared_beam, node, '[logger:error("~w", [I]) || I <- lists:seq(1, 200)]')

        def reported() -> int:
            return sum(
                int(record.args[1])  # type: ignore[index, arg-type, call-overload]
                for record in caplog.records
                if "were dropped" in record.getMessage()
            )

        await until(lambda: len(events(caplog)) + reported() == 200)
        assert 10 <= len(events(caplog)) < 200
        # It logs again in the next second.
        await log(shared_beam, node, 'logger:error("later")')
        await until(lambda: events(caplog)[-1].getMessage() == "later")


async def test_events_that_cannot_be_formatted_are_logged_as_they_are(
    node: tumen.Node, caplog: pytest.LogCaptureFixture
) -> None:
    """From a node that is gone, or that is no BEAM; nothing is asked of a node that they name."""
    seen = node.events()
    pid = tumen.Pid("elsewhere@127.0.0.1", 1, 0, 1)
    meta = {Atom("pid"): pid}
    log, error = Atom("log"), Atom("error")
    async with make_node(cookie=peers.COOKIE, epmd="auto") as other:
        await other.connect(node.name)
        theirs = {Atom("pid"): other._running.own_process.pid}
        for message in (
            (log, error, b"~p and ~p", [1, Atom("x")], meta),
            (log, error, {Atom("a"): 1}, meta),
            (log, error, [(Atom("b"), 2)], theirs),
            (log, error, b"text", {}),
            (log, Atom("strange"), b"text", {}),
        ):
            other.send(("logger_proxy", node.name), message)
        await until(lambda: len(events(caplog)) == 5)
    assert sorted(record.getMessage() for record in events(caplog)) == [
        "[(Atom('b'), 2)]",
        "text",
        "text",
        "{Atom('a'): 1}",
        "~p and ~p [1, Atom('x')]",
    ]
    # The first one that could not be reached is the one that we ask for now.
    node.send(("x", "dialled@127.0.0.1"), 1)
    assert (await next_event(seen, tumen.events.ConnectFailed)).node == "dialled@127.0.0.1"


@pytest.mark.sanitizer
async def test_logger_proxy_survives_what_it_does_not_know(
    node: tumen.Node, shared_beam: peers.Beam, caplog: pytest.LogCaptureFixture
) -> None:
    pid = node.whereis("logger_proxy")
    await shared_beam.eval(
        "[D ! M || M <- [x, {log}, {log, 1, 2, 3}, {log, error, a, b}, {log, error, x, #{}}, "
        "{log, error, x, y, #{}}, {log, error, [{a, 1} | b], #{pid => self()}}, "
        '{log, error, "~p", [1, 2, 3], #{pid => self()}}, [log, error, x, #{}]]], '
        "gen_server:cast(D, x), ok",
        D=pid,
    )
    await log(shared_beam, node, 'logger:error("still here")')
    await until(lambda: events(caplog) and events(caplog)[-1].getMessage() == "still here")
    assert node.whereis("logger_proxy") == pid
