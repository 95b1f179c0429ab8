"""What a node hands out to readers: events, changes of groups, messages of topics. Bounded, its
losses are counted, and it ends with the node."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

import tumen
from nodes import COOKIE, HOST, make_node, until
from tumen import events
from tumen.stream import Stream

COUNT_MAX = 4
LIMITS = tumen.Limits(events_count_max=COUNT_MAX)


async def idle(proc: tumen.Process) -> None:
    await proc.receive()


class Events:
    """Node events."""

    def open(self, node: tumen.Node) -> Stream[Any]:
        return node.events()

    def feed(self, node: tumen.Node, number: int) -> None:
        node._running._tell(events.Busy(str(number)))

    def read(self, items: list[Any]) -> tuple[int, int]:
        """How many came, and how many the reader was told were dropped."""
        told = [item.count for item in items if isinstance(item, events.Dropped)]
        return len(items) - len(told), sum(told)


class Changes:
    """Changes of a group."""

    def open(self, node: tumen.Node) -> Stream[Any]:
        return node.pg.monitor(b"g")

    def feed(self, node: tumen.Node, number: int) -> None:
        node.pg.join(b"g", node.spawn(idle))

    def read(self, items: list[Any]) -> tuple[int, int]:
        return len(items), sum(item.dropped for item in items)


class Topic:
    """Messages of a topic."""

    def open(self, node: tumen.Node) -> Stream[Any]:
        self.stream = node.pubsub("Elixir.A.PubSub").subscribe("t")
        return self.stream

    def feed(self, node: tumen.Node, number: int) -> None:
        node.pubsub("Elixir.A.PubSub").local_broadcast("t", number)

    def read(self, items: list[Any]) -> tuple[int, int]:
        return len(items), self.stream.dropped


@pytest.fixture(params=[Events, Changes, Topic], ids=lambda kind: kind.__name__.lower())
def source(request: pytest.FixtureRequest) -> Any:
    return request.param()


async def read_all(stream: Stream[Any]) -> list[Any]:
    return [item async for item in stream]


@pytest.mark.asyncio
async def test_reader_that_waits_gets_the_end_when_the_node_stops(source: Any) -> None:
    async with make_node() as node:
        stream = source.open(node)
        reader = asyncio.create_task(read_all(stream))
        source.feed(node, 1)
        await until(lambda: stream._waiter is not None and not stream._items)
    async with asyncio.timeout(5):
        assert source.read(await reader) == (1, 0)


@pytest.mark.asyncio
async def test_reader_that_comes_after_the_stop_gets_what_waits_and_the_end(source: Any) -> None:
    async with make_node(limits=LIMITS) as node:
        stream = source.open(node)
        for number in range(COUNT_MAX + 3):
            source.feed(node, number)
    async with asyncio.timeout(5):
        assert source.read(await read_all(stream)) == (COUNT_MAX, 3)
        assert await read_all(stream) == []
    assert stream.dropped == 3


@pytest.mark.asyncio
async def test_slow_reader_goes_on_after_an_overflow(source: Any) -> None:
    async with make_node(limits=LIMITS) as node:
        with source.open(node) as stream:
            reader = None
            for round_ in range(2):
                for number in range(COUNT_MAX + 2):
                    source.feed(node, number)
                got = []
                while stream._items:
                    got.append(await anext(stream))
                count, told = source.read(got)
                assert (count, told) in ((COUNT_MAX, 2), (COUNT_MAX, 2 * (round_ + 1)))
            reader = asyncio.create_task(anext(stream))
            await until(lambda: stream._waiter is not None)
            source.feed(node, 9)
            assert source.read([await reader])[0] == 1
            assert stream.dropped == 4


@pytest.mark.asyncio
async def test_closed_stream_takes_nothing_more_and_is_forgotten(source: Any) -> None:
    async with make_node() as node:
        stream = source.open(node)
        source.feed(node, 1)
        stream.close()
        stream.close()
        source.feed(node, 2)
        assert source.read(await read_all(stream)) == (1, 0)


@pytest.mark.asyncio
async def test_two_tasks_cannot_read_one_stream(source: Any) -> None:
    async with make_node() as node:
        stream = source.open(node)
        reader = asyncio.create_task(anext(stream))
        await until(lambda: stream._waiter is not None)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(stream)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        # One that was cancelled is in nobody's way.
        source.feed(node, 1)
        assert source.read([await anext(stream)]) == (1, 0)


# -- the same for threads


def opened(node: tumen.sync.Node, kind: str) -> Any:
    """A blocking stream of that kind."""
    if kind == "events":
        return node.events()
    if kind == "changes":
        return iter(node.pg.monitor(b"g"))
    return iter(node.pubsub("Elixir.A.PubSub").subscribe("t"))


def fed(node: tumen.sync.Node, kind: str, number: int) -> None:
    source = {"events": Events, "changes": Changes, "topic": Topic}[kind]()
    node._do(source.feed, node.node, number)


@pytest.mark.parametrize("kind", ["events", "changes", "topic"])
def test_thread_that_reads_gets_the_end_when_the_node_stops(kind: str) -> None:
    node = tumen.sync.Node(f"s@{HOST}", cookie=COOKIE, epmd=None)
    node.start()
    items = opened(node, kind)
    got: list[Any] = []
    first = threading.Event()

    def read() -> None:
        for item in items:
            got.append(item)
            first.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    fed(node, kind, 1)
    assert first.wait(5)
    node.stop()
    reader.join(5)
    assert not reader.is_alive()
    assert len(got) == 1


@pytest.mark.parametrize("kind", ["events", "changes", "topic"])
def test_what_waits_is_read_after_the_stop(kind: str) -> None:
    node = tumen.sync.Node(f"s@{HOST}", cookie=COOKIE, epmd=None, limits=LIMITS)
    with node:
        items = opened(node, kind)
        for number in range(COUNT_MAX + 2):
            fed(node, kind, number)
    got = list(items)
    assert len([item for item in got if not isinstance(item, events.Dropped)]) == COUNT_MAX
    assert list(items) == []


def test_thread_that_waits_for_anything_hears_of_the_stop() -> None:
    node = tumen.sync.Node(f"s@{HOST}", cookie=COOKIE, epmd=None)
    node.start()
    waits: list[Callable[[], Any]] = [
        lambda: node.run(asyncio.Event().wait()),
        lambda: node.monitor(node.spawn(idle)).wait(),
    ]
    ends: list[Any] = []

    def wait(work: Callable[[], Any]) -> None:
        try:
            ends.append(work())
        except tumen.TumenError as error:
            ends.append(error)

    threads = [threading.Thread(target=wait, args=(work,), daemon=True) for work in waits]
    for thread in threads:
        thread.start()
    node._do(lambda: None)
    node.stop()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert len(ends) == len(waits)
