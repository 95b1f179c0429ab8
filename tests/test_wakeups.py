"""What a drain wakes goes on in it: as a task does that the loop has woken."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import pytest

import tumen
from nodes import address, make_node, pair, turn, until
from tumen import Atom

DRIVERS = ["thread", "loop"]

place: contextvars.ContextVar[str] = contextvars.ContextVar("place")


class Surroundings(tumen.GenServer):
    """Says what its handlers find around them."""

    async def init(self) -> None:
        place.set("the server's")
        self.asked: tumen.server.Caller | None = None

    async def handle_call(self, request: Any, caller: tumen.server.Caller) -> Any:
        self.asked = caller
        async with asyncio.TaskGroup() as group:
            child = group.create_task(asyncio.sleep(0, request))
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            mine = asyncio.current_task() is self._tumen_task
            return (place.get(), mine, child.result())

    def handle_info(self, message: Any) -> None:
        self.unwatched = self.asked is not None and self.asked.abandoned


@pytest.mark.asyncio
@pytest.mark.parametrize("driver", DRIVERS)
async def test_handler_has_its_task_and_its_context(backend: str, driver: str) -> None:
    async with pair(driver=driver) as (a, b):
        pid = await a.start_server(Surroundings)
        for n in range(3):
            assert await b.call(pid, n) == (b"the server's", True, n)


@pytest.mark.asyncio
async def test_processes_that_wake_each_other_leave_the_loop_its_turns(backend: str) -> None:
    """Locally they could go on for ever without a word from outside."""

    async def bounce(proc: tumen.Process) -> None:
        async for other in proc:
            proc.send(other, proc.pid)

    async with pair() as (a, b):
        one, two = a.spawn(bounce), a.spawn(bounce)
        b.send(one, two)
        await until(lambda: a._state.core.process(tumen.calls.key_of(two)) is not None)
        for _ in range(100):
            await turn()
        assert await b.ping(a.name)


@pytest.mark.asyncio
@pytest.mark.parametrize("driver", DRIVERS)
async def test_mail_that_comes_while_a_woken_task_runs_is_not_left_lying(
    backend: str, driver: str
) -> None:
    """Nobody is told of it: a drain looks once more when those that it has woken are done."""
    done = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        for n in range(3):
            assert await proc.receive() == n
            thread = threading.Thread(target=proc.send, args=(proc.pid, n + 1))
            thread.start()
            thread.join()
        done.set_result(await proc.receive())

    async with pair(driver=driver) as (a, b):
        b.send(a.spawn(main), 0)
        assert await asyncio.wait_for(done, 10) == 3


@pytest.mark.asyncio
@pytest.mark.parametrize("driver", DRIVERS)
async def test_process_that_mail_has_woken_may_stop_its_node(backend: str, driver: str) -> None:
    node = make_node(driver=driver)
    stopped = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        await proc.receive()
        try:
            await node.stop()
        finally:
            stopped.set_result(None)

    async with make_node() as other:
        await node.start()
        pid = node.spawn(main)
        await other.connect(node.name, address(node))
        other.send(pid, 1)
        await asyncio.wait_for(stopped, 10)
        with pytest.raises(tumen.TumenError):
            node.info()


@pytest.mark.parametrize("driver", DRIVERS)
def test_process_that_interrupts_the_loop_takes_no_wake_up_from_others(
    backend: str, driver: str
) -> None:
    """As by Ctrl-C inside of a handler."""
    got: list[Any] = []

    async def interrupts(proc: tumen.Process) -> None:
        await proc.receive()
        raise KeyboardInterrupt

    async def goes_on(proc: tumen.Process) -> None:
        got.append(await proc.receive())

    async def begin() -> tuple[tumen.Node, tumen.Node]:
        a, b = make_node(driver=driver), make_node()
        await a.start()
        await b.start()
        await b.connect(a.name, address(a))
        return a, b

    async def end() -> None:
        await until(lambda: got == [1])
        await a.stop()
        await b.stop()

    loop = asyncio.new_event_loop()
    try:
        a, b = loop.run_until_complete(begin())
        for function in (interrupts, goes_on):
            b.send(a.spawn(function), 1)
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        loop.run_until_complete(end())
    finally:
        loop.close()


@pytest.mark.asyncio
async def test_monitor_is_a_future_to_asyncio(backend: str) -> None:
    async with pair() as (a, b):

        async def ends_when_told(proc: tumen.Process) -> None:
            await proc.receive()

        pid = a.spawn(ends_when_told)
        pending = b._state.core.monitor_begin(b._state.own_process, pid)
        assert asyncio.isfuture(pending)
        assert pending.get_loop() is asyncio.get_running_loop()
        with pytest.raises(asyncio.InvalidStateError):
            pending.result()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(pending), 0)
        called: list[Any] = []
        for n in range(3):
            pending.add_done_callback(lambda _, n=n: called.append(n))
        forgotten = called.append
        pending.add_done_callback(forgotten)
        assert pending.remove_done_callback(forgotten) == 1
        waiting = [asyncio.create_task(asyncio.wait({pending})) for _ in range(2)]
        b.send(pid, 1)
        for done, _ in await asyncio.gather(*waiting):
            assert done == {pending}
        assert sorted(called) == [0, 1, 2]
        assert (pending.done(), pending.cancelled(), pending.cancel()) == (True, False, False)
        assert pending.value == Atom("normal")
        assert (await pending, pending.result(), pending.exception()) == (None, None, None)
        pending.close()


@pytest.mark.asyncio
async def test_cancelled_wait_says_so(backend: str) -> None:
    async with make_node() as node:
        pending = node._state.core.monitor_begin(
            node._state.own_process, node.spawn(lambda _: asyncio.Event().wait())
        )

        async def wait() -> None:
            await pending

        task = asyncio.create_task(wait())
        await turn()
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError, match="enough"):
            await task
        assert pending.cancelled()
        with pytest.raises(asyncio.CancelledError, match="enough"):
            pending.exception()
        pending.close()


# -- the end of a call's monitor -------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize("driver", DRIVERS)
async def test_monitor_of_an_answered_call_ends_although_nothing_else_is_sent(
    backend: str, driver: str
) -> None:
    async with pair(driver=driver) as (a, b):
        server = Surroundings()
        pid = await a.start_server(lambda: server)  # type: ignore[arg-type]
        await b.call(pid, 1)
        assert server.asked is not None
        await until(lambda: server.asked.abandoned)


@pytest.mark.asyncio
@pytest.mark.parametrize("driver", DRIVERS)
async def test_monitor_of_an_answered_call_ends_before_what_its_caller_sends_next(
    backend: str, driver: str
) -> None:
    async with pair(driver=driver) as (a, b):
        server = Surroundings()
        pid = await a.start_server(lambda: server)  # type: ignore[arg-type]
        for n in range(20):
            await b.call(pid, n)
            server.unwatched = None
            b.send(pid, n)
            await until(lambda: server.unwatched is not None)
            assert server.unwatched


@pytest.mark.asyncio
async def test_monitor_of_an_answered_call_ends_with_the_next_call_in_one_write(
    backend: str,
) -> None:
    count = 100
    async with make_node("a") as a, make_node("b") as b:
        await b.connect(a.name, address(a))
        pid = await a.start_server(Surroundings)
        await b.call(pid, 0)
        before = b.info().engine
        for n in range(count):
            await b.call(pid, n)
        after = b.info().engine
        writes = sum(after[name] - before[name] for name in ("sends", "direct_sends"))
        assert writes < 1.5 * count
