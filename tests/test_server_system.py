"""System messages: what a server answers to `sys`, and what it shows of itself."""

from __future__ import annotations

import asyncio
import collections
import logging
from typing import Any

import pytest

import tumen
from nodes import Counter, make_node, pair
from tumen import Atom, TermMap, system

pytestmark = pytest.mark.asyncio

OK, ERROR = Atom("ok"), Atom("error")


async def ask(node: tumen.Node, pid: tumen.Pid | str, request: Any) -> Any:
    """The reply to a system request, as `sys` makes it."""
    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        ref = proc._home.core.make_ref()
        proc.send(pid, (Atom("system"), (proc.pid, ref), request))
        answered, reply = await proc.receive()
        assert answered == ref
        result.set_result(reply)

    node.spawn(main)
    return await asyncio.wait_for(result, 5)


async def debug(node: tumen.Node, pid: tumen.Pid, what: Any) -> Any:
    return await ask(node, pid, (Atom("debug"), what))


async def test_get_state_shows_the_public_attributes(backend: str) -> None:
    async with make_node() as node:
        pid = await node.start_server(Counter, 7)
        ok, state = await ask(node, pid, Atom("get_state"))
        assert ok == OK
        assert state == {Atom("n"): 7, Atom("seen"): [], Atom("callers"): []}


async def test_format_state_can_show_something_else(backend: str) -> None:
    class Shown(Counter):
        def format_state(self) -> Any:
            return (Atom("n"), self.n)

    async with make_node() as node:
        pid = await node.start_server(Shown, 7)
        assert await ask(node, pid, Atom("get_state")) == (OK, (Atom("n"), 7))


@pytest.mark.parametrize("fault", [RuntimeError("no state"), object()])
async def test_state_that_cannot_be_shown_is_an_error_and_no_crash(
    backend: str, fault: Any, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(Counter):
        def format_state(self) -> Any:
            if isinstance(fault, Exception):
                raise fault
            return fault

    async with make_node() as node:
        pid = await node.start_server(Faulty, 7)
        error, (why, (module, function), (klass, text)) = await ask(node, pid, Atom("get_state"))
        assert (error, why, klass) == (ERROR, Atom("callback_failed"), ERROR)
        assert str(module).endswith("Faulty")
        assert function == Atom("format_state")
        assert b"Error: " in text
        assert (await ask(node, pid, Atom("get_status")))[0] == ERROR
        assert await node.call(pid, Atom("get")) == 7
    assert "format_state failed" in caplog.text


async def test_status_has_the_shape_of_a_gen_servers(backend: str) -> None:
    async with make_node() as node:
        pid = await node.start_server(Counter, 7, name="counter")
        status, who, module, items = await ask(node, pid, Atom("get_status"))
        assert (status, who) == (Atom("status"), pid)
        assert module == (Atom("module"), Atom("gen_server"))
        dictionary, running, parent, options, (header, data, state) = items
        assert dictionary == [
            (Atom("$initial_call"), (Atom("nodes.Counter"), Atom("init"), 1)),
            (Atom("$ancestors"), []),
        ]
        assert (running, parent, options) == (Atom("running"), pid, [])
        assert header == (Atom("header"), list(b"Status for generic server counter"))
        assert data == (
            Atom("data"),
            [
                (list(b"Status"), Atom("running")),
                (list(b"Parent"), pid),
                (list(b"Logged events"), []),
            ],
        )
        assert state[1][0][0] == list(b"State")
        assert state[1][0][1][Atom("n")] == 7


async def test_suspended_server_handles_system_messages_only(backend: str) -> None:
    async with pair() as (a, b):
        pid = await a.start_server(Counter)
        assert await ask(b, pid, Atom("suspend")) == OK
        waiting = asyncio.create_task(b.call(pid, (Atom("add"), 1)))
        b.cast(pid, 1)
        b.send(pid, 2)
        status = await ask(b, pid, Atom("get_status"))
        assert status[3][1] == Atom("suspended")
        assert (await ask(b, pid, Atom("get_state")))[1][Atom("n")] == 0
        assert await ask(b, pid, Atom("suspend")) == OK
        assert not waiting.done()
        assert await ask(b, pid, Atom("resume")) == OK
        assert await waiting == 1
        assert await b.call(pid, Atom("seen")) == [(b"cast", 1), (b"info", 2)]


async def test_terminate_answers_and_ends_the_server_with_that_reason(backend: str) -> None:
    ended: list[Any] = []

    class Server(Counter):
        async def terminate(self, reason: Any) -> None:
            ended.append(reason)

    async with make_node() as node:
        for suspended in (False, True):
            pid = await node.start_server(Server)
            if suspended:
                await ask(node, pid, Atom("suspend"))
            monitor = node.monitor(pid)
            assert await ask(node, pid, (Atom("terminate"), (Atom("why"), 1))) == OK
            assert await monitor == (Atom("why"), 1)
    assert ended == [(Atom("why"), 1)] * 2


async def test_what_would_run_foreign_code_is_refused_and_changes_nothing(backend: str) -> None:
    fun = tumen.Export("erlang", "abs", 1)
    async with make_node() as node:
        pid = await node.start_server(Counter, 7)
        replace = (Atom("replace_state"), fun)
        error, (why, where, reason) = await ask(node, pid, replace)
        assert (error, why) == (ERROR, Atom("callback_failed"))
        assert where == (Atom("gen_server"), Atom("system_replace_state"))
        assert reason == (ERROR, Atom("notsup"))
        change = (Atom("change_code"), Atom("m"), Atom("undefined"), [])
        unknown = Atom("unknown_system_msg")
        assert await ask(node, pid, change) == (ERROR, (unknown, change))
        await ask(node, pid, Atom("suspend"))
        assert await ask(node, pid, change) == (ERROR, Atom("notsup"))
        await ask(node, pid, Atom("resume"))
        assert await ask(node, pid, Atom("nonsense")) == (ERROR, (unknown, Atom("nonsense")))
        install = (Atom("install"), (fun, 0))
        assert await debug(node, pid, install) == Atom("unknown_debug")
        assert await debug(node, pid, (Atom("remove"), fun)) == OK
        to_file = Atom("log_to_file")
        assert await debug(node, pid, (to_file, list(b"/tmp/x"))) == (ERROR, Atom("open_file"))
        assert await debug(node, pid, (to_file, False)) == OK
        assert await node.call(pid, Atom("get")) == 7


async def test_log_keeps_the_last_events(backend: str) -> None:
    async with make_node() as node:
        pid = await node.start_server(Counter)
        assert await debug(node, pid, (Atom("log"), Atom("get"))) == (OK, [])
        assert await debug(node, pid, (Atom("log"), (True, 0))) == Atom("unknown_debug")
        assert await debug(node, pid, (Atom("log"), (True, 3))) == OK
        node.cast(pid, 1)
        assert await node.call(pid, (Atom("add"), 2)) == 2
        ok, (noreply, call, out) = await debug(node, pid, (Atom("log"), Atom("get")))
        assert ok == OK
        assert noreply[0] == Atom("noreply")
        assert noreply[1][Atom("n")] == 0
        assert call[0] == Atom("in")
        assert call[1][0] == Atom("$gen_call")
        assert out[:3] == (Atom("out"), 2, call[1][1])
        assert out[3][Atom("n")] == 2
        _, _, _, items = await ask(node, pid, Atom("get_status"))
        assert items[3][0][0] == Atom("log")
        assert items[4][1][1][2] == (list(b"Logged events"), [noreply, call, out])
        # While it is on, its length stays.
        assert await debug(node, pid, (Atom("log"), True)) == OK
        node.send(pid, 5)
        _, events = await debug(node, pid, (Atom("log"), Atom("get")))
        assert [event[0] for event in events] == [Atom("out"), Atom("in"), Atom("noreply")]
        assert await debug(node, pid, (Atom("log"), False)) == OK
        assert await debug(node, pid, (Atom("log"), Atom("get"))) == (OK, [])


async def test_log_is_bounded_whatever_is_asked_for(backend: str) -> None:
    async with make_node() as node:
        pid = await node.start_server(Counter)
        assert await debug(node, pid, (Atom("log"), (True, 10**9))) == OK
        server = node._running.core.process(pid.id | pid.serial << 32)
        assert isinstance(server, Counter)
        assert server._tumen_debug is not None
        assert server._tumen_debug.log is not None
        assert server._tumen_debug.log.maxlen == system.LOG_EVENTS_MAX
        assert await debug(node, pid, Atom("no_debug")) == OK
        assert server._tumen_debug is None


async def test_statistics_count_messages(backend: str) -> None:
    async with make_node() as node:
        pid = await node.start_server(Counter)
        get = (Atom("statistics"), Atom("get"))
        assert await debug(node, pid, get) == (OK, Atom("no_statistics"))
        assert await debug(node, pid, (Atom("statistics"), True)) == OK
        node.cast(pid, 1)
        await node.call(pid, Atom("get"))
        ok, shown = await debug(node, pid, get)
        assert ok == OK
        assert [name for name, _ in shown] == [
            Atom(name)
            for name in ("start_time", "current_time", "reductions", "messages_in", "messages_out")
        ]
        values = dict(shown)
        assert len(values[Atom("start_time")][0]) == len(values[Atom("start_time")][1]) == 3
        assert (values[Atom("messages_in")], values[Atom("messages_out")]) == (2, 1)
        assert await debug(node, pid, (Atom("statistics"), False)) == OK
        assert await debug(node, pid, get) == (OK, Atom("no_statistics"))


async def test_trace_goes_to_the_log_of_python(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tumen.sys")
    async with make_node() as node:
        pid = await node.start_server(Counter, name="traced")
        assert await debug(node, pid, (Atom("trace"), True)) == OK
        node.cast(pid, Atom("a_cast"))
        await node.call(pid, (Atom("add"), 41))
        assert await debug(node, pid, (Atom("trace"), False)) == OK
        node.send(pid, Atom("unseen"))
        await node.call(pid, Atom("get"))
    assert "*DBG* traced got cast Atom('a_cast')" in caplog.text
    assert "*DBG* traced got call (Atom('add'), 41) from" in caplog.text
    assert "*DBG* traced sent 41 to" in caplog.text
    assert "unseen" not in caplog.text


@pytest.mark.parametrize(
    "message",
    [
        (Atom("system"), 1, Atom("get_state")),
        (Atom("system"), (1, 2), Atom("get_state")),
        (Atom("system"), Atom("get_state")),
        ([1], 2, 3),
        (Atom("EXIT"), 1, Atom("kill")),
    ],
)
async def test_what_only_looks_like_a_system_message_is_an_info(backend: str, message: Any) -> None:
    async with make_node() as node:
        pid = await node.start_server(Counter)
        node.send(pid, message)
        assert await node.call(pid, Atom("seen")) == [(b"info", message)]


class Odd:
    def __repr__(self) -> str:
        return "<odd \udc80>"


class Worse:
    def __repr__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (1 << 80, 1 << 80),
        (float("nan"), b"nan"),
        ("\ud800", rb"\ud800"),
        ({"a": 1, b"a": 2}, {b"a": 1, b"b'a' (1)": 2}),
        ({(1, 2): {3}}, {(1, 2): [3]}),
        (collections.deque([1, (2, [3])]), [1, (2, [3])]),
        (tumen.ImproperList([1], Odd()), tumen.ImproperList([1], rb"<odd \udc80>")),
        (Worse(), b"<Worse: repr raised ValueError>"),
    ],
)
async def test_printable_is_a_term_for_any_object(value: Any, shown: Any) -> None:
    assert tumen.decode(tumen.encode(system.printable(value))) == shown


async def test_printable_is_bounded_and_says_what_is_left_out() -> None:
    long = system.printable(list(range(10**5)))
    assert len(long) <= system.STATE_TERMS_MAX + 1
    assert long[-1].endswith("more)")
    wide = system.printable({n: n for n in range(10**5)})
    assert isinstance(wide, TermMap)
    assert len(wide) <= system.STATE_TERMS_MAX
    assert any(isinstance(key, str) and "more)" in key for key in wide)
    large = system.printable([b"x" * 10**6, b"y" * 10**6, "z"])
    assert sum(map(len, large)) < system.STATE_BYTES_MAX + 100
    endless: list[Any] = []
    endless.append(endless)
    assert tumen.decode(tumen.encode(system.printable(endless)))
