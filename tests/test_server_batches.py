"""BatchServer: what makes a batch, when it begins, and what each of its callers gets."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import tumen
from nodes import make_node, pair, turn, until
from tumen import Atom, Call

pytestmark = pytest.mark.asyncio

OK, ERROR = Atom("ok"), Atom("error")
# Seconds that no test waits for: a batch that begins earlier did not wait for its time.
NEVER = 60.0


class Model(tumen.BatchServer):
    """Answers each request as it says, in batches that wait for `gate`."""

    async def init(self, max_batch: Any = 64, max_wait: Any = 0.0) -> None:
        self.max_batch, self.max_wait = max_batch, max_wait
        # What was handled: lists of requests, and what is no call.
        self.seen: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.callers: list[tumen.Caller] = []

    async def handle_calls(self, calls: list[Call]) -> Any:
        self.seen.append([call.request for call in calls])
        await self.gate.wait()
        requests = self.seen[-1]
        match requests:
            case [(Atom("all"), what), *_]:
                return self.whole(what, calls)
        return [self.one(call) for call in calls]

    def whole(self, what: Any, calls: list[Call]) -> Any:
        match what:
            case Atom("later"):
                self.callers = [call.caller for call in calls]
                return tumen.NoReply
            case Atom("stop"):
                return tumen.Stop(Atom("tired"), reply=Atom("bye"))
            case Atom("crash"):
                raise RuntimeError("as asked")
            case Atom("exit"):
                raise tumen.Exit((Atom("asked"), 1))
            case int():
                return [0] * what
        return what

    def one(self, call: Call) -> Any:
        match call.request:
            case Atom("fail"):
                return ValueError("not this one")
            case (Atom("exit"), reason):
                return tumen.Exit(reason)
            case Atom("no_term"):
                return object()
            case Atom("later"):
                self.callers.append(call.caller)
                return tumen.NoReply
            case Atom("stop"):
                return tumen.Stop(Atom("normal"), reply=Atom("bye"))
            case Atom("stop_silently"):
                return tumen.Stop(Atom("tired"))
        return (OK, call.request)

    async def handle_cast(self, request: Any) -> Any:
        self.seen.append((Atom("cast"), request))

    async def handle_info(self, message: Any) -> Any:
        self.seen.append((Atom("info"), message))


def server_of(node: tumen.Node, pid: tumen.Pid) -> Any:
    return node._running.core.process(pid.id | pid.serial << 32)


async def start(node: tumen.Node, *args: Any, kind: type[Model] = Model) -> tuple[Any, tumen.Pid]:
    """A server with these options; the object, and its pid."""
    pid = await node.start_server(kind, *args)
    return server_of(node, pid), pid


def ask(
    node: tumen.Node, pid: tumen.Pid, request: Any, timeout: float | None = None
) -> asyncio.Future[Any]:
    """A call from a process of its own; what came of it."""
    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        try:
            result.set_result(await proc.call(pid, request, timeout))
        except tumen.TumenError as error:
            result.set_result(error)

    node.spawn(main)
    return result


async def waiting(server: Any, count: int) -> None:
    await until(lambda: server._waiting() == count)


async def shut(server: Any, node: tumen.Node, pid: tumen.Pid) -> asyncio.Future[Any]:
    """The gate is shut, and a first batch is behind it."""
    server.gate.clear()
    first = ask(node, pid, 0)
    await until(lambda: server.seen == [[0]])
    return first


# -- what makes a batch ----------------------------------------------------------------------------


async def test_calls_that_wait_are_answered_together_each_with_its_own(backend: str) -> None:
    async with pair() as (a, b):
        server, pid = await start(a)
        first = await shut(server, b, pid)
        others = [ask(b, pid, n) for n in range(1, 21)]
        await waiting(server, 20)
        server.gate.set()
        assert await asyncio.gather(first, *others) == [(OK, n) for n in range(21)]
        assert server.seen[0] == [0]
        assert sorted(server.seen[1]) == list(range(1, 21))
        assert len(server.seen) == 2


async def test_batch_is_no_larger_than_max_batch(backend: str) -> None:
    async with make_node() as node:
        server, pid = await start(node, 8)
        first = await shut(server, node, pid)
        others = [ask(node, pid, n) for n in range(1, 21)]
        await waiting(server, 20)
        server.gate.set()
        assert await asyncio.gather(first, *others) == [(OK, n) for n in range(21)]
        assert server.seen == [[0], [*range(1, 9)], [*range(9, 17)], [*range(17, 21)]]


async def test_full_batch_begins_at_once(backend: str) -> None:
    async with make_node() as node:
        server, pid = await start(node, 4, NEVER)
        calls = [ask(node, pid, n) for n in range(8)]
        assert await asyncio.wait_for(asyncio.gather(*calls), 10) == [(OK, n) for n in range(8)]
        assert server.seen == [[0, 1, 2, 3], [4, 5, 6, 7]]


async def test_lone_call_waits_for_max_wait_and_not_longer(backend: str) -> None:
    async with make_node() as node:
        _, pid = await start(node, 4, 0.1)
        for _ in range(2):
            begin = time.monotonic()
            assert await node.call(pid, 1) == (OK, 1)
            assert 0.09 < time.monotonic() - begin < 5


async def test_lone_call_without_max_wait_begins_in_the_same_turn(backend: str) -> None:
    async with make_node() as node:
        server, pid = await start(node, 4, 0)
        server._mail_future = lambda: pytest.fail("it has waited")
        assert await node.call(pid, 1) == (OK, 1)


async def test_wait_is_counted_from_the_first_call(backend: str) -> None:
    """Calls keep coming; who counts from the last one never begins."""
    async with make_node() as node:
        server, pid = await start(node, 1_000_000, 0.1)
        calls: list[asyncio.Future[Any]] = []
        begin = time.monotonic()
        while not server.seen and time.monotonic() - begin < 10:
            calls.append(ask(node, pid, len(calls)))
            await turn()
        assert await asyncio.wait_for(asyncio.gather(*calls), 10) == [
            (OK, n) for n in range(len(calls))
        ]
        assert time.monotonic() - begin < 10
        assert len(server.seen[0]) > 1


async def test_call_that_has_waited_for_its_turn_waits_no_longer(backend: str) -> None:
    async with make_node() as node:
        server, pid = await start(node, 1, 1.0)
        first = await shut(server, node, pid)
        begin = time.monotonic()
        second = ask(node, pid, 1)
        await waiting(server, 1)
        server.max_batch = 8
        await until(lambda: time.monotonic() - begin > 1.0)
        server._mail_future = lambda: pytest.fail("it has waited")
        server.gate.set()
        assert await asyncio.gather(first, second) == [(OK, 0), (OK, 1)]


async def test_everything_is_handled_in_the_order_in_which_it_came(backend: str) -> None:
    async with pair() as (a, b):
        server, pid = await start(a, 64, NEVER)
        server.max_batch = 1
        first = await shut(server, b, pid)
        server.max_batch = 64
        b.cast(pid, 1)
        calls = [asyncio.create_task(b.call(pid, n)) for n in (2, 3)]
        await waiting(server, 3)
        b.send(pid, 4)
        calls.append(asyncio.create_task(b.call(pid, 5)))
        await waiting(server, 5)
        b.cast(pid, 6)
        await waiting(server, 6)
        server.gate.set()
        assert await asyncio.gather(first, *calls) == [(OK, n) for n in (0, 2, 3, 5)]
        await until(lambda: len(server.seen) == 6)
        assert server.seen == [
            [0],
            (Atom("cast"), 1),
            [2, 3],
            (Atom("info"), 4),
            [5],
            (Atom("cast"), 6),
        ]


async def test_message_of_another_kind_ends_the_wait_for_more_calls(backend: str) -> None:
    async with make_node() as node:
        server, pid = await start(node, 64, NEVER)
        call = ask(node, pid, 1)
        await until(lambda: server._tumen_held)
        node.cast(pid, 2)
        assert await asyncio.wait_for(call, 10) == (OK, 1)
        await until(lambda: len(server.seen) == 2)
        assert server.seen == [[1], (Atom("cast"), 2)]


# -- what each caller gets -------------------------------------------------------------------------


async def test_request_that_fails_fails_alone(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair() as (a, b):
        server, pid = await start(a, 6, NEVER)
        requests: list[Any] = [
            1,
            Atom("fail"),
            (Atom("exit"), Atom("why")),
            Atom("no_term"),
            (Atom("exit"), 0),
            2,
        ]
        replies = await asyncio.gather(*(ask(b, pid, request) for request in requests))
        assert len(server.seen) == 1
        python_error = Atom("python_error")
        assert replies[0] == (OK, 1)
        assert replies[1] == (ERROR, (python_error, b"builtins.ValueError", b"not this one"))
        assert replies[2] == (ERROR, Atom("why"))
        kind, (name, what, _) = replies[3]
        assert (kind, name, what) == (ERROR, python_error, b"tumen.errors.EncodeError")
        assert replies[4:] == [(ERROR, 0), (OK, 2)]
    assert "no reply for" in caplog.text


async def test_late_replies_are_owed_until_they_are_given(backend: str) -> None:
    async with pair() as (a, b):
        server, pid = await start(a, 3, NEVER)
        calls = [ask(b, pid, request) for request in (1, Atom("later"), Atom("later"))]
        assert await calls[0] == (OK, 1)
        await until(lambda: server._asleep)
        assert server._busy
        for number, caller in enumerate(server.callers):
            caller.reply(number)
        assert not server._busy
        assert await asyncio.gather(*calls[1:]) == [0, 1]
        calls = [ask(b, pid, (Atom("all"), Atom("later"))) for _ in range(3)]
        await until(lambda: len(server.callers) == 3)
        for caller in server.callers:
            caller.reply(Atom("at_last"))
        assert await asyncio.gather(*calls) == [Atom("at_last")] * 3


async def test_stop_ends_the_server_when_the_batch_is_answered(backend: str) -> None:
    async with pair() as (a, b):
        server, pid = await start(a, 3, NEVER)
        monitor = b.monitor(pid)
        calls = [ask(b, pid, request) for request in (1, Atom("stop"), 2)]
        assert await asyncio.gather(*calls) == [(OK, 1), Atom("bye"), (OK, 2)]
        assert await monitor == Atom("normal")
        server, pid = await start(a, 3, NEVER)
        calls = [ask(b, pid, request) for request in (1, Atom("stop_silently"), Atom("stop"))]
        first, second, third = await asyncio.gather(*calls)
        assert (first, third) == ((OK, 1), Atom("bye"))
        assert isinstance(second, tumen.ServerDied)
        assert second.reason == Atom("tired")
        server, pid = await start(a, 2, NEVER)
        monitor = b.monitor(pid)
        calls = [ask(b, pid, (Atom("all"), Atom("stop"))) for _ in range(2)]
        assert await asyncio.gather(*calls) == [Atom("bye")] * 2
        assert await monitor == Atom("tired")
    assert server.exit_reason == Atom("tired")


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        (Atom("crash"), b"builtins.RuntimeError", b"as asked"),
        (1, b"builtins.ValueError", b"handle_calls has 1 replies for 2 calls"),
        (
            b"bytes",
            b"builtins.TypeError",
            b"handle_calls returns a sequence of replies, not bytes",
        ),
        ({}, b"builtins.TypeError", b"handle_calls returns a sequence of replies, not dict"),
        (1.5, b"builtins.TypeError", b"handle_calls returns a sequence of replies, not float"),
    ],
)
async def test_fault_of_the_handler_ends_the_server(
    backend: str, what: Any, kind: bytes, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair() as (a, b):
        server, pid = await start(a, 2, NEVER)
        server.gate.clear()
        calls = [ask(b, pid, (Atom("all"), what)) for _ in range(2)]
        await until(lambda: server.seen)
        waits = ask(b, pid, 1)
        await waiting(server, 1)
        server.gate.set()
        for error in await asyncio.gather(*calls, waits):
            assert isinstance(error, tumen.ServerDied)
            (name, found, why), stack = error.reason
            assert (name, found) == (Atom("python_error"), kind)
            assert why.startswith(text)
            assert stack == [(Atom("tumen"), Atom("handle_calls"), 1, [])]
    assert caplog.text.count("crashed in handle_calls/1") == 1


async def test_exit_in_the_handler_is_the_reason(backend: str) -> None:
    async with make_node() as node:
        _, pid = await start(node)
        error = await ask(node, pid, (Atom("all"), Atom("exit")))
        assert isinstance(error, tumen.ServerDied)
        assert error.reason == (Atom("asked"), 1)


async def test_class_without_a_handler_ends_as_gen_server_does(backend: str) -> None:
    async with make_node() as node:
        pid = await node.start_server(tumen.BatchServer)
        error = await ask(node, pid, 1)
        assert isinstance(error, tumen.ServerDied)
        assert error.reason == (Atom("bad_calls"), [1])


# -- callers that give up --------------------------------------------------------------------------


async def test_calls_of_callers_that_have_given_up_are_left_out(backend: str) -> None:
    async with pair() as (a, b):
        server, pid = await start(a)
        first = await shut(server, b, pid)
        late = [ask(b, pid, n, 0.02) for n in (1, 2)]
        for call in late:
            assert isinstance(await call, tumen.CallTimeout)
        third = ask(b, pid, 3)
        await waiting(server, 3)
        server.gate.set()
        assert await asyncio.gather(first, third) == [(OK, 0), (OK, 3)]
        assert server.seen == [[0], [3]]


async def test_handler_does_not_run_for_nobody(backend: str) -> None:
    async with pair() as (a, b):
        server, pid = await start(a, 64, NEVER)
        assert isinstance(await ask(b, pid, 1, 0.02), tumen.CallTimeout)
        # That ends the wait for more calls.
        b.cast(pid, 2)
        await until(lambda: server.seen)
        server.max_wait = 0.0
        assert await b.call(pid, 3) == (OK, 3)
        assert server.seen == [(Atom("cast"), 2), [3]]


async def test_newest_calls_go_first_once_callers_give_up(backend: str) -> None:
    async with pair() as (a, b):
        server, pid = await start(a, 2)
        first = await shut(server, b, pid)
        late = ask(b, pid, 1, 0.02)
        await waiting(server, 1)
        others = []
        for n in range(2, 8):
            others.append(ask(b, pid, n))
            await waiting(server, n)
        assert isinstance(await late, tumen.CallTimeout)
        b.cast(pid, 8)
        await waiting(server, 8)
        last = ask(b, pid, 9)
        await waiting(server, 9)
        server.gate.set()
        assert await asyncio.gather(first, *others, last) == [(OK, n) for n in (0, *range(2, 8), 9)]
        # 2 was in hand when it was found that 1 is not waited for.
        assert server.seen == [[0], [6, 7], [4, 5], [2, 3], (Atom("cast"), 8), [9]]


async def test_calls_of_one_process_keep_their_order_under_overload(backend: str) -> None:
    async with pair() as (a, b):
        server, pid = await start(a, 2)
        first = await shut(server, b, pid)
        late = ask(b, pid, 1, 0.02)
        await waiting(server, 1)
        # From one and the same process.
        mine = [asyncio.create_task(b.call(pid, n)) for n in range(2, 7)]
        await waiting(server, 6)
        assert isinstance(await late, tumen.CallTimeout)
        # Behind the end of the monitor of the one that gave up.
        other = ask(b, pid, 7)
        await waiting(server, 7)
        server.gate.set()
        assert await asyncio.gather(first, *mine, other) == [(OK, n) for n in (0, *range(2, 8))]
        order = [request for batch in server.seen for request in batch]
        assert sorted(order) == [0, *range(2, 8)]
        assert [n for n in order if n in range(2, 7)] == [2, 3, 4, 5, 6]
        assert order.index(7) < order.index(4)


# -- life and system messages ----------------------------------------------------------------------


async def test_blocking_handler_runs_in_the_pool(backend: str) -> None:
    release, threads = threading.Event(), []

    class Slow(Model):
        @tumen.blocking
        def handle_calls(self, calls: list[Call]) -> Any:
            threads.append(threading.current_thread())
            assert release.wait(10)
            self.seen.append([call.request for call in calls])
            return [self.one(call) for call in calls]

    async with pair(limits=tumen.Limits(pool_threads_max=1)) as (a, b):
        server, pid = await start(a, 2, NEVER, kind=Slow)
        other, second = await start(a, 3, NEVER, kind=Slow)
        calls = [ask(b, pid, n) for n in range(2)]
        await until(lambda: threads)
        # The pool's one thread is taken: this batch waits, and one caller does not.
        waits = [ask(b, second, n) for n in range(2)]
        late = ask(b, second, 2, 0.05)
        assert isinstance(await late, tumen.CallTimeout)
        assert other._busy
        # The end of its monitor is there too.
        assert await b.ping(a.name)
        release.set()
        assert await asyncio.gather(*calls) == [(OK, 0), (OK, 1)]
        assert await asyncio.gather(*waits) == [(OK, 0), (OK, 1)]
        assert sorted(server.seen[0]) == [0, 1]
        assert sorted(other.seen[0]) == [0, 1]
        assert threading.current_thread() not in threads


async def test_suspended_server_handles_no_batch(backend: str) -> None:
    async with make_node() as node:
        server, pid = await start(node, 64, NEVER)
        call = ask(node, pid, 1)
        await until(lambda: server._tumen_held)
        # What is being gathered comes before it, and does not make it wait.
        assert await system(node, pid, Atom("suspend")) == OK
        assert await call == (OK, 1)
        call = ask(node, pid, 2)
        await waiting(server, 1)
        assert await system(node, pid, Atom("get_state")) != OK
        assert server.seen == [[1]]
        server.max_wait = 0.0
        assert await system(node, pid, Atom("resume")) == OK
        assert await call == (OK, 2)


async def test_statistics_count_every_call_of_a_batch(backend: str) -> None:
    async with make_node() as node:
        server, pid = await start(node, 3, NEVER)
        assert await system(node, pid, (Atom("debug"), (Atom("statistics"), True))) == OK
        assert await system(node, pid, (Atom("debug"), (Atom("log"), True))) == OK
        calls = [ask(node, pid, request) for request in (1, Atom("later"), 2)]
        assert await asyncio.gather(calls[0], calls[2]) == [(OK, 1), (OK, 2)]
        await until(lambda: server._asleep)
        debug = server._tumen_debug
        assert (debug.messages_in, debug.messages_out) == (3, 2)
        kinds = [entry[0] for entry in debug.logged()]
        assert sorted(map(str, kinds)) == ["in"] * 3 + ["noreply"] + ["out"] * 2
        server.callers[0].reply(0)
        await calls[1]


async def system(node: tumen.Node, pid: tumen.Pid, request: Any) -> Any:
    """The reply to a system request, as `sys` makes it."""
    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        ref = proc._home.core.make_ref()
        proc.send(pid, (Atom("system"), (proc.pid, ref), request))
        _, reply = await proc.receive()
        result.set_result(reply)

    node.spawn(main)
    return await asyncio.wait_for(result, 5)


async def test_drain_waits_for_a_batch_that_is_gathered(backend: str) -> None:
    async with pair() as (a, b):
        server, pid = await start(a, 64, NEVER)
        call = ask(b, pid, 1)
        await until(lambda: server._tumen_held)
        assert not await a.drain(0.7)
        b.cast(pid, 2)
        assert await call == (OK, 1)
        assert await a.drain()


async def test_node_that_stops_ends_a_batch_that_is_gathered(backend: str) -> None:
    ended: list[Any] = []

    class Told(Model):
        async def terminate(self, reason: Any) -> None:
            ended.append(reason)

    async with make_node("b") as b:
        async with make_node("a") as a:
            await b.connect(a.name, ("127.0.0.1", a.info().port))
            server, pid = await start(a, 64, NEVER, kind=Told)
            call = ask(b, pid, 1)
            await until(lambda: server._tumen_held)
        error = await call
        assert isinstance(error, tumen.ServerDied | tumen.NoConnection)
        assert ended == [Atom("shutdown")]
        assert server.seen == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((0,), "max_batch must be a count of calls, at least 1: 0"),
        ((1.0,), "max_batch must be a count of calls, at least 1: 1.0"),
        ((True,), "max_batch must be a count of calls, at least 1: True"),
        ((1, -1), "max_wait must be seconds, at least 0: -1"),
        ((1, "1"), "max_wait must be seconds, at least 0: '1'"),
        ((1, float("nan")), "max_wait must be seconds, at least 0: nan"),
    ],
)
async def test_options_that_mean_nothing_make_the_start_fail(
    backend: str, options: tuple[Any, ...], text: str
) -> None:
    async with make_node() as node:
        with pytest.raises(tumen.ServerDied) as caught:
            await node.start_server(Model, *options)
        assert str(caught.value.__cause__) == text


@pytest.mark.parametrize("overloaded", [False, True])
async def test_server_under_load_gives_the_loop_its_turns(backend: str, overloaded: bool) -> None:
    class Quick(Model):
        def handle_calls(self, calls: list[Call]) -> Any:
            if not self.gate.is_set():
                return super().handle_calls(calls)
            until_then = time.monotonic() + 0.002
            while time.monotonic() < until_then:
                pass
            return [(OK, call.request) for call in calls]

    async with make_node() as node:
        server, pid = await start(node, 4, kind=Quick)
        calls = [await shut(server, node, pid)]
        if overloaded:
            assert isinstance(await ask(node, pid, 0, 0.01), tumen.CallTimeout)
        calls += [ask(node, pid, n) for n in range(1, 201)]
        await until(lambda: server._waiting() >= 200)
        server.gate.set()
        turns = 0
        while not all(call.done() for call in calls):
            turns += 1
            await turn()
        assert [call.result() for call in calls] == [(OK, n) for n in range(201)]
        assert turns > 40
