"""erpc between two Python nodes, and on one: the pool, abandonment, limits."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import tumen
from nodes import hang, make_node, pair, turn, until
from tumen import Atom

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("where", ["other", "own"])
async def test_rpc_returns_raises_and_refuses(backend: str, where: str) -> None:
    app = tumen.App()

    @app.expose("m")
    def twice(x: Any) -> Any:
        return x + x

    @app.expose("m", "inline", inline=True)
    def inline(x: Any) -> Any:
        return [x]

    @app.expose("m")
    async def slow(x: Any) -> Any:
        await turn()
        if x == 1:
            raise tumen.Exit(Atom("one"))
        if x == 2:
            raise KeyError(x)
        return x

    async with pair(app) as (a, b):
        caller = b if where == "other" else a
        before = caller.info().processes
        assert await caller.rpc(a.name, "m", "twice", [[1]]) == [1, 1]
        assert await caller.rpc(a.name, Atom("m"), Atom("inline"), ("x",)) == [b"x"]
        assert await caller.rpc(a.name, "m", "slow", [3], timeout=5) == 3
        for args, klass, reason in (
            ([1], "exit", Atom("one")),
            ([2], "error", (Atom("python_error"), b"builtins.KeyError", b"2")),
            ([], "error", None),
        ):
            with pytest.raises(tumen.RemoteError) as caught:
                await caller.rpc(a.name, "m", "slow", args)
            assert caught.value.klass == klass
            assert caught.value.peer == a.name
            if reason is not None:
                assert caught.value.reason == reason
        with pytest.raises(tumen.RemoteError) as undef:
            await caller.rpc(a.name, "m", "nothing", [1])
        assert undef.value.reason == Atom("undef")
        assert undef.value.stacktrace == [(Atom("m"), Atom("nothing"), [1], [])]
        # The first call has made the process of the node itself.
        assert caller.info().processes <= before + 1


async def test_object_with_async_call_runs_on_the_loop(backend: str) -> None:
    class Function:
        async def __call__(self) -> bool:
            return threading.current_thread() is threading.main_thread()

    async with make_node() as node:
        node.expose("m", "f", Function())
        assert await node.rpc(node.name, "m", "f") is True
        with pytest.raises(TypeError):
            node.expose("m", "g", 3)  # type: ignore[arg-type]


async def test_stack_names_the_lines_of_the_function(backend: str) -> None:
    def inner() -> None:
        raise RuntimeError("deep")

    def outer() -> None:
        inner()

    async with make_node() as node:
        node.expose("m", "f", outer)
        with pytest.raises(tumen.RemoteError) as caught:
            await node.rpc(node.name, "m", "f")
        stack = caught.value.stacktrace
        assert [entry[:3] for entry in stack] == [(Atom("m"), Atom("f"), 0)] * 2
        lines = [entry[3][1][1] for entry in stack]
        first = inner.__code__.co_firstlineno
        assert lines == [first + 1, outer.__code__.co_firstlineno + 1]


@pytest.mark.parametrize("where", ["other", "own"])
async def test_timed_out_call_that_waits_never_starts(backend: str, where: str) -> None:
    started: list[int] = []
    release = threading.Event()

    def work(n: int) -> None:
        started.append(n)
        release.wait(20)

    async with pair(limits=tumen.Limits(pool_threads_max=2)) as (a, b):
        a.expose("m", "work", work)
        caller = b if where == "other" else a
        running = [asyncio.create_task(caller.rpc(a.name, "m", "work", [n])) for n in (1, 2)]
        await until(lambda: len(started) >= 2)
        impatient = [caller.rpc(a.name, "m", "work", [n], timeout=0.05) for n in range(3, 20)]
        results = await asyncio.gather(*impatient, return_exceptions=True)
        assert all(isinstance(result, tumen.CallTimeout) for result in results)
        await until(lambda: not a._running.pool.waiting)
        release.set()
        await asyncio.gather(*running)
        await caller.rpc(a.name, "m", "work", [20])
        assert sorted(started) == [1, 2, 20]


async def test_running_call_sees_that_its_caller_has_gone(backend: str) -> None:
    seen: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        call = tumen.current_call()
        assert call is not None
        await until(lambda: call.abandoned)
        seen.set_result((call.caller.node, str(call.module), str(call.function)))

    async with pair() as (a, b):
        a.expose("m", "work", work)
        with pytest.raises(tumen.CallTimeout) as caught:
            await b.rpc(a.name, "m", "work", timeout=0.5)
        assert caught.value.may_have_executed
        assert await asyncio.wait_for(seen, 5) == (b.name, "m", "work")
    assert tumen.current_call() is None


async def test_calls_over_the_pools_queue_are_refused_with_system_limit(backend: str) -> None:
    release = threading.Event()
    limits = tumen.Limits(pool_threads_max=1, pool_waiting_count_max=3)
    async with pair(limits=limits) as (a, b):
        a.expose("m", "work", lambda: release.wait(20))
        calls = [asyncio.create_task(b.rpc(a.name, "m", "work")) for _ in range(6)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        for call in done:
            error = call.exception()
            assert isinstance(error, tumen.RemoteError)
            assert error.reason == (Atom("erpc"), Atom("system_limit"))
        release.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(result is True for result in results) >= 3


async def test_stopping_node_ends_running_calls_with_shutdown(backend: str) -> None:
    release = threading.Event()

    async with make_node("b") as b:
        async with make_node("a") as a:
            a.expose("m", "block", lambda: release.wait(20))
            a.expose("m", "forever", hang)
            await b.connect(a.name, ("127.0.0.1", a.info().port))
            calls = [asyncio.create_task(b.rpc(a.name, "m", f)) for f in ("block", "forever")]
            await until(lambda: len(a._running.workers._calls) >= 2)
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, tumen.RemoteError)
            assert result.reason == (Atom("signal"), Atom("shutdown"))
        release.set()


async def test_killed_worker_is_seen_by_its_caller_and_its_task_is_cancelled(
    backend: str,
) -> None:
    cancelled = asyncio.Event()
    pids: list[Any] = []

    async def forever(pid: Any) -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with pair() as (a, b):
        a.expose("m", "forever", forever)
        call = asyncio.create_task(b.rpc(a.name, "m", "forever", [1]))
        workers = a._running.workers
        await until(lambda: workers._calls)
        pids.append(a._running.core.pid(next(iter(workers._calls))))
        b.exit(pids[0], Atom("kill"))
        with pytest.raises(tumen.RemoteError) as caught:
            await call
        assert caught.value.reason == (Atom("signal"), Atom("killed"))
        await cancelled.wait()
        assert not workers._calls


async def test_result_that_is_no_term_is_an_error(backend: str) -> None:
    async with make_node() as node:
        node.expose("m", "f", object)
        with pytest.raises(tumen.RemoteError) as caught:
            await node.rpc(node.name, "m", "f")
        assert caught.value.reason[1] == b"tumen.errors.EncodeError"
