"""Send queues: Busy at the high water, waiting for room, lent memory, refusals by size."""

from __future__ import annotations

import array
import asyncio
import gc
import socket
import weakref
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

import tumen
from nodes import HOST, address, make_node, next_event, pair, turn, until
from tumen import Atom, events

pytestmark = pytest.mark.asyncio

SMALL = tumen.Limits(sendq_bytes_high=64 * 1024)
# After so long an attempt at a silent host fails: what has to happen before takes milliseconds.
HELD_MS = 1000


class Silence:
    """A host that accepts connections and never says a word: what is sent there stays queued."""

    def __init__(self) -> None:
        self.server = socket.create_server((HOST, 0))
        self.name = f"silent@{HOST}"

    async def join(self, node: tumen.Node) -> None:
        node._running.core.connect(self.name, *self.server.getsockname())


@pytest.fixture
def silence() -> Iterator[Silence]:
    silence = Silence()
    with silence.server:
        yield silence


async def test_send_is_busy_at_the_high_water_and_says_so_once(
    backend: str, silence: Silence
) -> None:
    async with make_node(limits=SMALL) as node:
        await silence.join(node)
        seen = node.events()
        accepted = 0

        def fill() -> None:
            nonlocal accepted
            for _ in range(1000):
                node.send(("x", silence.name), bytes(1000))
                accepted += 1

        with pytest.raises(tumen.Busy) as caught:
            fill()
        assert caught.value.peer == silence.name
        assert caught.value.retriable
        assert 40 <= accepted <= 66
        for _ in range(3):
            with pytest.raises(tumen.Busy):
                node.cast(("x", silence.name), 1)
        assert await anext(seen) == events.Busy(silence.name)
        assert node.info().sendq_bytes >= 64 * 1024
        # Other peers are not concerned.
        async with make_node() as other:
            await node.connect(other.name, address(other))
            assert await node.ping(other.name)


async def test_lost_messages_are_counted_in_the_event(backend: str, silence: Silence) -> None:
    async with make_node(limits=tumen.Limits(handshake_time_ms=HELD_MS)) as node:
        await silence.join(node)
        seen = node.events()
        for n in range(7):
            node.send(("x", silence.name), n)
        failed = await next_event(seen, events.ConnectFailed)
        assert (failed.node, failed.lost) == (silence.name, 7)


async def test_send_wait_and_call_wait_for_room(backend: str) -> None:
    count = 2000
    got = 0
    done = asyncio.Event()

    async def sink(proc: tumen.Process) -> None:
        nonlocal got
        async for message in proc:
            assert message == (got, bytes(1000))
            got += 1
            if got == count:
                done.set()

    class Mirror(tumen.GenServer):
        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            return request

    async with pair(limits=SMALL) as (a, b):
        pid = a.spawn(sink)
        mirror = await a.start_server(Mirror)
        calls = [asyncio.create_task(b.call(mirror, bytes(2000))) for _ in range(200)]
        for n in range(count):
            await b.send_wait(pid, (n, bytes(1000)))
        await asyncio.wait_for(done.wait(), 20)
        assert await asyncio.gather(*calls) == [bytes(2000)] * 200


async def test_waiting_for_room_ends_with_the_connection(backend: str, silence: Silence) -> None:
    limits = SMALL.replace(handshake_time_ms=HELD_MS)
    async with make_node(limits=limits) as node:
        await silence.join(node)
        seen = node.events()

        def fill() -> None:
            for _ in range(1000):
                node.send(("x", silence.name), bytes(1000))

        with pytest.raises(tumen.Busy):
            fill()
        with pytest.raises(tumen.CallTimeout) as caught:
            await node.call(("x", silence.name), 1, timeout=0.05)
        assert not caught.value.may_have_executed
        waiting = asyncio.create_task(node.send_wait(("x", silence.name), 1))
        await next_event(seen, events.ConnectFailed)
        # The failed connection's queue is gone, so the message is accepted for the next one.
        await asyncio.wait_for(waiting, 5)


async def test_limits_change_while_the_node_runs(backend: str, silence: Silence) -> None:
    async with make_node() as node:
        await silence.join(node)
        for _ in range(100):
            node.send(("x", silence.name), bytes(1000))
        node.set_limits(sendq_bytes_high=64 * 1024)
        assert node.limits.sendq_bytes_high == 64 * 1024
        with pytest.raises(tumen.Busy):
            node.send(("x", silence.name), 1)
        node.set_limits(sendq_bytes_high=1024 * 1024)
        node.send(("x", silence.name), 1)
        with pytest.raises(ValueError, match="pool_threads_max"):
            node.set_limits(pool_threads_max=3)
        with pytest.raises(TypeError):
            node.set_limits(nonsense=3)


async def test_message_over_the_limit_is_refused_by_the_sender(backend: str) -> None:
    async with pair(limits=tumen.Limits(message_bytes_max=100_000)) as (a, b):
        with pytest.raises(tumen.LimitExceeded):
            b.send(("x", a.name), bytes(200_000))
        assert await b.ping(a.name)


async def test_message_over_a_receivers_limit_is_dropped_with_an_event(backend: str) -> None:
    got: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        got.set_result(await proc.receive())

    async with make_node("a", limits=tumen.Limits(depth_max=10)) as a, make_node("b") as b:
        await b.connect(a.name, address(a))
        pid = a.spawn(main)
        seen = a.events()
        deep: Any = []
        for _ in range(20):
            deep = [deep]
        b.send(pid, deep)
        b.send(pid, "next")
        refused = await next_event(seen, events.Refused)
        assert (refused.node, refused.to) == (b.name, pid)
        assert refused.size > 20
        assert await got == b"next"
        assert b.nodes() == [a.name]


class Owner(bytearray):
    """Memory whose end can be seen."""


@pytest.mark.parametrize("size", [16_383, 16_384, 300_000])
async def test_large_binaries_arrive_whole_and_are_given_back(backend: str, size: int) -> None:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        done.set_result([await proc.receive() for _ in range(4)])

    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    async with pair() as (a, b):
        pid = a.spawn(main)
        owner = Owner(data)
        floats = array.array("d", [1.5] * (size // 8))
        await b.send_wait(pid, data)
        await b.send_wait(pid, (1, (Atom("x"), data, tumen.lend(owner)), data, [data]))
        await b.send_wait(pid, tumen.lend(floats))
        await b.send_wait(pid, (tumen.Binary(floats), memoryview(data)))
        assert await done == [
            data,
            (1, (Atom("x"), data, data), data, [data]),
            floats.tobytes(),
            (floats.tobytes(), data),
        ]
        core = b._running.core
        ref = weakref.ref(owner)
        del owner
        await b.ping(a.name)
        gc.collect()
        assert core._lent_count() == 0
        assert ref() is None


async def test_many_large_binaries_in_one_message_arrive(backend: str) -> None:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        done.set_result(await proc.receive())

    message = tuple(bytes([n]) * 20_000 for n in range(40))
    async with pair() as (a, b):
        b.send(a.spawn(main), message)
        assert await done == message


async def test_local_message_with_large_binaries_arrives(backend: str) -> None:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        done.set_result(await proc.receive())

    async with make_node() as node:
        node.send(node.spawn(main), (1, bytes(50_000), 2))
        assert await done == (1, bytes(50_000), 2)
        await turn()
        assert node._running.core._lent_count() == 0


async def test_lent_memory_of_a_failed_connection_comes_back(
    backend: str, silence: Silence
) -> None:
    async with make_node(limits=tumen.Limits(handshake_time_ms=HELD_MS)) as node:
        await silence.join(node)
        owner = Owner(100_000)
        ref = weakref.ref(owner)
        node.send(("x", silence.name), tumen.lend(owner))
        del owner
        gc.collect()
        assert ref() is not None
        seen = node.events()
        await next_event(seen, events.ConnectFailed)
        await until(lambda: ref() is None)


async def test_lend_takes_contiguous_memory_only() -> None:
    with pytest.raises(BufferError):
        tumen.lend(memoryview(bytearray(100))[::2])
    assert tumen.lend(bytearray(b"abc")) == b"abc"
    assert tumen.lend(bytearray()) == b""


async def test_flush_to_many_nodes_is_one_write_of_the_engine_where_that_costs_one_call(
    backend: str,
) -> None:
    """io_uring writes to any number with one system call; a few are quicker written directly."""
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(make_node())
        heard: list[str] = []
        others: list[tumen.Node] = []

        async def sink(proc: tumen.Process) -> None:
            async for message in proc:
                heard.append(message)

        for number in range(6):
            other = await stack.enter_async_context(make_node(f"n{number}"))
            other.spawn(sink, name="sink")
            await hub.connect(other.name, address(other))
            others.append(other)

        async def written(nodes: list[tumen.Node]) -> int:
            """How many were written to directly, by one turn that sends to each."""
            before = hub._running.core.engine.counters()["direct_sends"]
            heard.clear()
            for node in nodes:
                hub.send(("sink", node.name), 1)
            await until(lambda: len(heard) == len(nodes))
            return hub._running.core.engine.counters()["direct_sends"] - before

        assert await written(others[:2]) == 2
        assert await written(others) == (0 if backend == "uring" else 6)


# -- messages that come together -------------------------------------------------------------------


async def test_node_under_a_stream_waits_for_more_of_it_unless_it_is_eager(backend: str) -> None:
    counts = {"lazy": 0, "eager": 0}

    async def count(proc: tumen.Process, name: str) -> None:
        async for _ in proc:
            counts[name] += 1

    async with make_node() as source, make_node() as lazy, make_node(eager=True) as eager:
        sinks = []
        for node, name in ((lazy, "lazy"), (eager, "eager")):
            await source.connect(node.name, address(node))
            sinks.append(node.spawn(count, name))
        sent = 0

        def send() -> bool:
            nonlocal sent
            for sink in sinks:
                source.send(sink, sent)
            sent += 1
            return lazy.info().engine["waits"] > 0 and sent >= 1000

        # Each message is a write of its own: the loop takes a turn in between.
        async with asyncio.timeout(30):
            while not send():
                await turn()
        await until(lambda: counts == {"lazy": sent, "eager": sent})
        assert eager.info().engine["waits"] == 0
