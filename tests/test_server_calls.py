"""GenServer: calls, casts, infos, and how each way to end shows to the caller."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import tumen
from idle import idle_process
from nodes import Counter, address, hang, make_node, pair, until
from tumen import Atom

pytestmark = pytest.mark.asyncio


async def test_call_is_answered_locally_and_from_another_node(backend: str) -> None:
    async with pair() as (a, b):
        pid = await a.start_server(Counter, 10, name="counter")
        assert await a.call("counter", (Atom("add"), 1)) == 11
        assert await a.call(pid, (Atom("add"), 1)) == 12
        assert await b.call(pid, (Atom("add"), 1)) == 13
        assert await b.call(("counter", a.name), (Atom("add"), 1)) == 14
        assert await b.call(pid, Atom("pid")) == pid


async def test_app_servers_start_with_the_node(backend: str) -> None:
    app = tumen.App()
    app.server("counter", 5)(Counter)
    with pytest.raises(ValueError, match="already"):
        app.server("counter")(Counter)
    async with pair(app) as (a, b):
        assert await b.call(("counter", a.name), Atom("get")) == 5


async def test_messages_keep_their_order_whatever_their_kind(backend: str) -> None:
    async with pair() as (a, b):
        pid = await a.start_server(Counter)
        b.cast(pid, 1)
        b.send(pid, 2)
        b.cast(pid, 3)
        assert await b.call(pid, Atom("seen")) == [
            (b"cast", 1),
            (b"info", 2),
            (b"cast", 3),
        ]


async def test_late_reply_is_given_by_any_coroutine(backend: str) -> None:
    async with pair() as (a, b):
        pid = await a.start_server(Counter)
        waiting = [asyncio.create_task(b.call(pid, Atom("later"))) for _ in range(3)]
        await until(lambda: _callers(a, pid) == 3)
        b.cast(pid, Atom("answer"))
        assert await asyncio.gather(*waiting) == [Atom("at_last")] * 3


def _callers(node: tumen.Node, pid: tumen.Pid) -> int:
    server = node._running.core.process(pid.id | pid.serial << 32)
    assert isinstance(server, Counter)
    return len(server.callers)


async def test_timeout_ends_the_call_and_its_late_reply_reaches_nobody(backend: str) -> None:
    async with pair() as (a, b):
        pid = await a.start_server(Counter)
        with pytest.raises(tumen.CallTimeout) as caught:
            await b.call(pid, Atom("later"), timeout=0.02)
        assert caught.value.peer == a.name
        assert caught.value.may_have_executed
        before = b.info().messages_in
        b.cast(pid, Atom("answer"))
        assert await b.call(pid, Atom("get")) == 0
        assert b.info().messages_in - before <= 1


async def test_crash_shows_to_its_caller_and_ends_the_server(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair() as (a, b):
        pid = await a.start_server(Counter, name="counter")
        waiting = asyncio.create_task(b.call(pid, Atom("later")))
        await until(lambda: _callers(a, pid) != 0)
        with pytest.raises(tumen.ServerDied) as caught:
            await b.call(pid, Atom("crash"))
        (kind, name, _text), stack = caught.value.reason
        assert (kind, name) == (Atom("python_error"), b"builtins.RuntimeError")
        assert stack == [(Atom("tumen"), Atom("handle_call"), 2, [])]
        with pytest.raises(tumen.ServerDied):
            await waiting
        with pytest.raises(tumen.NoProc) as gone:
            await b.call(("counter", a.name), Atom("get"))
        assert not gone.value.may_have_executed
    assert "as asked" in caplog.text


async def test_exit_in_a_handler_is_the_reason(backend: str) -> None:
    async with pair() as (a, b):
        pid = await a.start_server(Counter)
        with pytest.raises(tumen.ServerDied) as caught:
            await b.call(pid, Atom("exit"))
        assert caught.value.reason == (Atom("asked"), 1)


async def test_stop_answers_first_and_then_ends(backend: str) -> None:
    async with pair() as (a, b):
        pid = await a.start_server(Counter)
        monitor = b.monitor(pid)
        assert await b.call(pid, Atom("stop")) == Atom("bye")
        assert await monitor == Atom("normal")
        pid = await a.start_server(Counter)
        with pytest.raises(tumen.ServerDied) as caught:
            await b.call(pid, Atom("stop_silently"))
        assert caught.value.reason == Atom("tired")
        pid = await a.start_server(Counter)
        monitor = b.monitor(pid)
        b.cast(pid, Atom("stop"))
        assert await monitor == Atom("cast")


async def test_start_fails_when_init_raises_or_stops(backend: str) -> None:
    async with make_node() as node:
        count = node.info().processes
        with pytest.raises(tumen.ServerDied) as caught:
            await node.start_server(Counter, KeyError("k"), name="counter")
        assert isinstance(caught.value.__cause__, KeyError)
        with pytest.raises(tumen.ServerDied) as stopped:
            await node.start_server(Counter, tumen.Stop(Atom("not_today")))
        assert stopped.value.reason == Atom("not_today")
        assert node.whereis("counter") is None
        assert node.info().processes == count


async def test_server_killed_during_init_makes_the_start_fail(backend: str) -> None:
    started = asyncio.Event()

    class Slow(tumen.GenServer):
        async def init(self) -> None:
            started.set()
            await hang()

    async with make_node() as node:
        starting = asyncio.create_task(node.start_server(Slow, name="slow"))
        await started.wait()
        pid = node.whereis("slow")
        assert pid is not None
        node.exit(pid, Atom("kill"))
        with pytest.raises(tumen.ServerDied) as caught:
            await starting
        assert caught.value.reason == Atom("killed")


async def test_cancelled_start_ends_the_server(backend: str) -> None:
    class Slow(tumen.GenServer):
        async def init(self) -> None:
            await hang()

    async with make_node() as node:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(node.start_server(Slow, name="slow"), 0.02)
        pid = node.whereis("slow")
        if pid is not None:
            await node.join(pid)
        assert node.whereis("slow") is None


async def test_call_to_nobody_is_noproc(backend: str) -> None:
    async with pair() as (a, b):
        for dest in ("nobody", ("nobody", a.name), tumen.Pid(a.name, 77, 7, a.info().creation)):
            with pytest.raises(tumen.NoProc):
                await b.call(dest, 1)


async def test_call_to_an_unreachable_node_was_certainly_not_executed(backend: str) -> None:
    async with make_node() as node:
        with pytest.raises(tumen.NoConnection) as caught:
            await node.call(("x", "nowhere@127.0.0.1"), 1)
        assert not caught.value.may_have_executed
        assert caught.value.peer == "nowhere@127.0.0.1"


async def test_call_lost_with_its_connection_may_have_been_executed(backend: str) -> None:
    async with pair() as (a, b):
        pid = await a.start_server(Counter)
        waiting = asyncio.create_task(b.call(pid, Atom("later")))
        await until(lambda: _callers(a, pid) != 0)
        await b.disconnect(a.name)
        with pytest.raises(tumen.NoConnection) as caught:
            await waiting
        assert caught.value.may_have_executed
        caller = a._running.core.process(pid.id | pid.serial << 32).callers[0]  # type: ignore[union-attr]
        await until(lambda: caller.abandoned)


async def test_cancelled_call_leaves_nothing_under_way(backend: str) -> None:
    async with pair() as (a, b):
        pid = await a.start_server(Counter)
        waiting = asyncio.create_task(b.call(pid, Atom("later")))
        await until(lambda: _callers(a, pid) != 0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        b.cast(pid, Atom("answer"))
        assert await b.call(pid, Atom("get")) == 0


async def test_call_of_a_process_that_is_killed_ends(backend: str) -> None:
    proc: asyncio.Future[tumen.Process] = asyncio.get_running_loop().create_future()

    async def main(own: tumen.Process) -> None:
        proc.set_result(own)
        await own.receive()

    async with make_node() as node:
        pid = await node.start_server(Counter)
        node.spawn(main)
        caller = await proc
        waiting = asyncio.create_task(caller.call(pid, Atom("later")))
        await until(lambda: _callers(node, pid) != 0)
        node.exit(caller.pid, Atom("kill"))
        with pytest.raises(tumen.ProcessExited):
            await waiting


async def test_thousand_calls_at_once_each_get_their_own_reply(backend: str) -> None:
    class Mirror(tumen.GenServer):
        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            return request

    async with pair() as (a, b):
        pid = await a.start_server(Mirror)
        replies = await asyncio.gather(*(b.call(pid, n) for n in range(1000)))
        assert replies == list(range(1000))


async def test_plain_handlers_run_on_the_loop_and_blocking_ones_in_the_pool(backend: str) -> None:
    class Server(tumen.GenServer):
        def handle_call(self, request: Any, caller: tumen.Caller) -> Any:  # type: ignore[override]
            return threading.current_thread() is threading.main_thread()

        @tumen.blocking
        def handle_cast(self, request: Any) -> Any:  # type: ignore[override]
            self.thread = threading.current_thread()

        async def handle_info(self, message: Any) -> None:
            self.send(message, self.thread is threading.main_thread())

    async with make_node() as node:
        pid = await node.start_server(Server)
        assert await node.call(pid, 1) is True
        node.cast(pid, 1)
        got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def ask(proc: tumen.Process) -> None:
            proc.send(pid, proc.pid)
            got.set_result(await proc.receive())

        node.spawn(ask)
        assert await got is False


@pytest.mark.parametrize("tag", ["nested_alias", "other"])
async def test_reply_goes_where_the_tag_says_and_echoes_it(backend: str, tag: str) -> None:
    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process, server: tumen.Pid) -> None:
        core, key = proc._home.core, proc._key
        ref = core.alias(key) if tag != "other" else core.make_ref()
        shown: Any = (ref, Atom("x"))
        if tag == "nested_alias":
            # As multi_call of OTP 26: one alias for all, and a monitor for each server.
            shown = tumen.ImproperList((Atom("alias"),), ref)
            shown = tumen.ImproperList((shown,), proc.monitor(server))
        proc.send(server, (Atom("$gen_call"), (proc.pid, shown), Atom("get")))
        reply = await proc.receive()
        if tag != "other":
            assert core.unalias(key, ref)
        result.set_result(reply == (shown, 0))

    async with pair() as (a, b):
        b.spawn(main, await a.start_server(Counter))
        assert await asyncio.wait_for(result, 5)


async def router(proc: tumen.Process, server: tumen.Pid) -> None:
    """Passes on what it gets."""
    async for message in proc:
        proc.send(server, message)


async def test_call_that_a_process_passes_on_is_answered(backend: str) -> None:
    async with pair() as (a, b):
        server = await a.start_server(Counter, 10)
        # On the node of the server, and on the caller's, and between two of one node.
        assert await b.call(a.spawn(router, server), (Atom("add"), 1)) == 11
        assert await b.call(b.spawn(router, server), (Atom("add"), 1)) == 12
        assert await a.call(a.spawn(router, server), (Atom("add"), 1)) == 13
        assert await a.call(b.spawn(router, server), (Atom("add"), 1)) == 14


async def test_call_that_an_event_manager_gets_passed_on_is_answered(backend: str) -> None:
    class Events(tumen.GenEvent):
        handler = "own"

        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            return request

    async def client(proc: tumen.Process, to: tumen.Pid) -> None:
        # As gen_event:call does it: the tag is an alias, and the monitor of who is called.
        ref = proc.monitor(to, alias="reply_demonitor")
        tag = tumen.ImproperList((Atom("alias"),), ref)
        proc.send(to, (proc.pid, (proc.pid, tag), (Atom("call"), Atom("own"), 7)))
        result.set_result((await proc.receive())[1])

    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    async with make_node() as node:
        node.spawn(client, node.spawn(router, await node.start_server(Events)))
        assert await asyncio.wait_for(result, 5) == 7


class Held(tumen.GenServer):
    """Its first call waits until it is let go."""

    async def init(self) -> None:
        self.go = asyncio.Event()
        self.begun: list[Any] = []
        self.callers: list[tumen.Caller] = []

    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        self.begun.append(request)
        self.callers.append(caller)
        await self.go.wait()
        return request


def held_of(node: tumen.Node, pid: tumen.Pid) -> Held:
    server = node._running._servers[pid.id | pid.serial << 32]
    assert isinstance(server, Held)
    return server


async def test_passed_on_calls_keep_their_order_behind_one_that_was_given_up(backend: str) -> None:
    async with pair() as (a, b):
        pid = await a.start_server(Held)
        held, via = held_of(a, pid), a.spawn(router, pid)
        calls = [asyncio.create_task(b.call(pid, 0))]
        await until(lambda: held.begun)
        with pytest.raises(tumen.CallTimeout):
            await b.call(pid, "late", timeout=0.02)
        for n in (1, 2, 3):
            caller = await idle_process(b)
            calls.append(asyncio.create_task(caller.call(via, n)))
            await until(lambda n=n: held._waiting() == n + 1)
        assert not held.callers[0].abandoned
        held.go.set()
        assert await asyncio.gather(*calls) == [0, 1, 2, 3]
        assert held.begun == [0, 1, 2, 3]


async def test_passed_on_call_is_abandoned_with_the_connection_of_its_caller(backend: str) -> None:
    async with pair() as (a, b):
        pid = await a.start_server(Held)
        held = held_of(a, pid)
        calling = asyncio.create_task(b.call(a.spawn(router, pid), 0))
        await until(lambda: held.callers)
        (caller,) = held.callers
        calling.cancel()
        # That the caller has given up, only the router is told.
        await b.ping(a.name)
        assert not caller.abandoned
        await b.disconnect(a.name)
        await until(lambda: caller.abandoned)


async def test_passed_on_call_of_a_node_without_a_connection_is_answered(backend: str) -> None:
    async with pair() as (a, b), make_node("c") as c:
        await c.connect(b.name, address(b))
        server = await a.start_server(Counter, 10)
        # So that a knows the address; its reply makes the connection anew.
        await a.connect(c.name, address(c))
        await a.disconnect(c.name)
        assert await c.call(b.spawn(router, server), (Atom("add"), 1)) == 11


async def test_reply_that_comes_to_the_pid_ends_the_call(backend: str) -> None:
    """As C nodes and OTP 25's net_kernel answer; nothing else is taken for a reply."""

    async def server(proc: tumen.Process) -> None:
        async for _, (caller, tag), request in proc:
            proc.send(caller, (proc._home.core.make_ref(), "not yours"))
            proc.send(caller, ("tag", "not yours"))
            proc.send(caller, (tag if request == 1 else tag.tail, request))
            proc.send(caller, (tag, "too late"))

    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def client(proc: tumen.Process, pid: tumen.Pid) -> None:
        replies = [await proc.call(pid, n) for n in (1, 2)]
        await proc.call(pid, 1)
        result.set_result((replies, [await proc.receive() for _ in range(4)]))

    async with pair() as (a, b):
        b.spawn(client, a.spawn(server))
        replies, rest = await asyncio.wait_for(result, 5)
        assert replies == [1, 2]
        assert all(message[1] in (b"not yours", b"too late") for message in rest)


@pytest.mark.parametrize(
    "message",
    [
        (),
        (Atom("$gen_call"),),
        (Atom("$gen_call"), 1, 2),
        (Atom("$gen_call"), (1, 2), 3),
        (Atom("$gen_cast"),),
        (Atom("system"), 1, 2),
        [Atom("$gen_cast"), 1],
    ],
)
async def test_misshapen_protocol_messages_are_infos(backend: str, message: Any) -> None:
    async with make_node() as node:
        pid = await node.start_server(Counter)
        node.send(pid, message)
        assert await node.call(pid, Atom("seen")) == [(b"info", message)]


async def test_server_without_handlers_ends_on_a_call_as_on_a_beam(backend: str) -> None:
    async with make_node() as node:
        pid = await node.start_server(tumen.GenServer)
        node.send(pid, "unexpected")
        with pytest.raises(tumen.ServerDied) as caught:
            await node.call(pid, 1)
        assert caught.value.reason == (Atom("bad_call"), 1)


async def test_terminate_runs_on_crash_and_stop_but_not_on_a_kill(backend: str) -> None:
    ended: list[Any] = []

    class Server(Counter):
        async def terminate(self, reason: Any) -> None:
            ended.append(reason)

    async with make_node() as node:
        for request in (Atom("stop"), Atom("exit")):
            pid = await node.start_server(Server)
            monitor = node.monitor(pid)
            await asyncio.gather(node.call(pid, request), return_exceptions=True)
            await monitor
        assert ended == [Atom("normal"), (Atom("asked"), 1)]
        pid = await node.start_server(Server)
        node.exit(pid, Atom("kill"))
        await node.join(pid)
    assert len(ended) == 2


async def test_terminate_that_hangs_is_cut_off(backend: str) -> None:
    class Server(tumen.GenServer):
        async def terminate(self, reason: Any) -> None:
            await hang()

    async with make_node(limits=tumen.Limits(shutdown_time_ms=20)) as node:
        await node.start_server(Server)


async def test_event_manager_hands_events_to_its_handler(backend: str) -> None:
    class Events(tumen.GenEvent):
        async def init(self) -> None:
            self.events: list[Any] = []

        async def handle_event(self, event: Any) -> None:
            self.events.append(event)

        async def handle_info(self, message: Any) -> None:
            self.events.append((Atom("info"), message))

    async def main(proc: tumen.Process, pid: tumen.Pid) -> None:
        def command(what: Any) -> Any:
            ref = proc._home.core.make_ref()
            return (proc.pid, (proc.pid, ref), what)

        async def ask(what: Any) -> Any:
            proc.send(pid, command(what))
            return (await proc.receive())[1]

        proc.send(pid, (Atom("notify"), 1))
        assert await ask((Atom("sync_notify"), 2)) == Atom("ok")
        unknown = command(Atom("unknown"))
        proc.send(pid, unknown)
        proc.send(pid, (1, 2, 3))
        (own,) = await ask(Atom("which_handlers"))
        assert own == Atom(f"{Events.__module__}.{Events.__qualname__}")
        assert await ask(Atom("get_modules")) == [own]
        server = proc._home.core.process(pid.id | pid.serial << 32)
        assert isinstance(server, Events)
        info = Atom("info")
        assert server.events == [1, 2, (info, unknown), (info, (1, 2, 3))]
        with pytest.raises(tumen.ServerDied):
            # A call without a handle_call ends it, as in every server.
            await proc.call(pid, 1)
        result.set_result(True)

    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    async with make_node() as node:
        task = node._running.start_process(
            main, (await node.start_server(Events),), None
        )._tumen_task
        assert await asyncio.wait_for(result, 5), task
        stopping = await node.start_server(Events)
        monitor = node.monitor(stopping)
        me = node._running.own_process.pid
        node.send(stopping, (me, (me, 1), Atom("stop")))
        assert await monitor == Atom("normal")
