"""Two tumen nodes that dial each other at once: one connection a round, and nothing lost."""

from __future__ import annotations

import asyncio
import random

import pytest

import tumen
from nodes import address, make_node
from tumen import events

pytestmark = pytest.mark.asyncio

ROUNDS = 100
ROUNDS_LONG = 1000


async def told(stream: events.EventStream) -> events.Event:
    """The next event that is not of a handshake: the socket that was one too many may be read after
    its end, when the round is over."""
    async with asyncio.timeout(10):
        while isinstance(event := await anext(stream), events.HandshakeFailed):
            assert "the peer closed during the handshake" in event.reason
    return event


async def rounds(count: int) -> None:
    choice = random.Random(count)
    boxes: list[asyncio.Queue[int]] = [asyncio.Queue(), asyncio.Queue()]

    async def sink(proc: tumen.Process, box: asyncio.Queue[int]) -> None:
        async for number in proc:
            box.put_nowait(number)

    # Hidden: what services tell each other at a nodeup may be lost with the round, and counts.
    async with make_node("a") as a, make_node("b") as b:
        streams = [a.events(), b.events()]
        for node, other, box in ((a, b, boxes[0]), (b, a, boxes[1])):
            node.spawn(sink, box, name="sink")
            # The address is kept for later connects.
            await node.connect(other.name, address(other))
            await node.disconnect(other.name)
            for stream in streams:
                while not isinstance(await told(stream), events.NodeDown):
                    pass
        for number in range(count):
            # Another phase each round: with none, one side would win every race.
            first, second = (a, b) if number % 2 else (b, a)
            first.send(("sink", second.name), number)
            await asyncio.sleep(choice.choice([0, 0, 1e-4, 3e-4, 1e-3]))
            second.send(("sink", first.name), number)
            async with asyncio.timeout(10):
                assert [await box.get() for box in boxes] == [number, number]
            assert (a.nodes(), b.nodes()) == ([b.name], [a.name])
            ender, other = (a, b) if choice.random() < 0.5 else (b, a)
            assert await ender.disconnect(other.name)
            for node, peer, stream in ((a, b, streams[0]), (b, a, streams[1])):
                async with asyncio.timeout(10):
                    up, down = await anext(stream), await anext(stream)
                assert isinstance(up, events.NodeUp), (number, up, down)
                assert isinstance(down, events.NodeDown), (number, up, down)
                assert (up.node, down.node, down.lost) == (peer.name, peer.name, 0)
                assert not node.nodes()
        assert not boxes[0].qsize()
        assert not boxes[1].qsize()


async def test_nodes_that_dial_each_other_at_once_have_one_connection(backend: str) -> None:
    await rounds(ROUNDS)


@pytest.mark.slow
async def test_nodes_that_dial_each_other_at_once_have_one_connection_each_of_1000_times(
    backend: str,
) -> None:
    await rounds(ROUNDS_LONG)


async def test_disconnect_writes_first_what_was_sent(backend: str) -> None:
    got: asyncio.Queue[int] = asyncio.Queue()

    async def sink(proc: tumen.Process) -> None:
        async for number, _ in proc:
            got.put_nowait(number)

    async with make_node("a") as a, make_node("b") as b:
        a.spawn(sink, name="sink")
        seen = b.events()
        await b.connect(a.name, address(a))
        for number in range(20):
            b.send(("sink", a.name), (number, bytes(40_000)))
        assert await b.disconnect(a.name)
        assert not b.nodes()
        assert not await b.disconnect(a.name)
        async with asyncio.timeout(10):
            assert [await got.get() for _ in range(20)] == list(range(20))
            assert isinstance(await anext(seen), events.NodeUp)
            down = await anext(seen)
        assert isinstance(down, events.NodeDown)
        assert (down.lost, down.reason.split()[0]) == (0, "disconnect")
