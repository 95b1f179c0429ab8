"""The send queue at its edge: Busy at the high water, room below the low one, losses told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import tumen
from faults.evil import Evil
from faults.scene import eventually
from nodes import COOKIE, HOST, make_node, turn
from tumen import Busy, Limits, Pid, events

pytestmark = pytest.mark.asyncio

KIB = 1024
MIB = 1024 * KIB
HIGH = 256 * KIB
# With its control message, one of ours is at most so much larger on the wire.
HEAD = 256


class Stalled:
    """A peer that reads nothing, and a node whose kernel takes nothing more for it; `other` is a
    peer of that node that reads."""

    def __init__(self, node: tumen.Node, evil: Evil, other: Evil, size: int) -> None:
        self.node = node
        self.evil = evil
        self.other = other
        self.size = size
        self.to = Pid(evil.name, 1, 0, evil.creation)
        self.sent = 0
        self.stream = node.events()

    def send(self) -> None:
        self.node.send(self.to, (self.sent, bytes(self.size)))
        self.sent += 1

    def fill(self) -> int:
        """Sends until Busy; how many."""
        before = self.sent
        try:
            while True:
                self.send()
        except Busy:
            return self.sent - before

    @property
    def connection(self) -> tumen.node.Connection:
        (found,) = [each for each in self.node.connections() if each.name == self.evil.name]
        return found

    async def event(self, kind: type[events.Event]) -> events.Event:
        """The next event of that kind."""
        async with asyncio.timeout(5):
            async for event in self.stream:
                if isinstance(event, kind):
                    return event
        raise AssertionError(f"no {kind.__name__}")

    async def stall(self) -> None:
        """Fills the queue until the kernel takes nothing in ten turns of the engine."""
        seen, times = -1, 0

        def stuck() -> bool:
            nonlocal seen, times
            self.fill()
            # Its answer takes a turn.
            self.other.ping()
            out = self.connection.bytes_out
            times = times + 1 if out == seen else 0
            seen = out
            return times >= 10

        await eventually("the kernel's buffers are full", stuck)

    async def read(self) -> list[int]:
        """The numbers of all messages that the peer gets up to the last that was sent."""

        def all_of_them() -> list[int]:
            numbers: list[int] = []
            while not numbers or numbers[-1] != self.sent - 1:
                control, payload = self.evil.signal()
                if payload is not None and control[0] == 22:
                    numbers.append(payload[0])
            return numbers

        return await asyncio.to_thread(all_of_them)


@asynccontextmanager
async def stalled(size: int = 16 * KIB, **limits: int) -> AsyncIterator[Stalled]:
    async with make_node(limits=Limits(**{"sendq_bytes_high": HIGH, **limits})) as node:
        with Evil(cookie=COOKIE, receive_bytes=4 * KIB) as evil, Evil(cookie=COOKIE) as other:
            for one in (evil, other):
                one.dial((HOST, node.info().port)).shake()
            await eventually("up", lambda: len(node.nodes()) == 2)
            peer = Stalled(node, evil, other, size)
            await peer.stall()
            yield peer


async def test_send_is_busy_at_the_high_water_and_takes_one_message_below_it(backend: str) -> None:
    async with stalled() as peer:
        queued = peer.connection.queue_bytes
        assert HIGH <= queued < HIGH + peer.size + HEAD
        with pytest.raises(Busy) as caught:
            peer.node.send(peer.to, 1)
        assert caught.value.peer == peer.evil.name
        assert caught.value.retriable
        assert not caught.value.may_have_executed
        # Whatever its size, one message is taken as long as the queue is below the high water.
        peer.node.set_limits(sendq_bytes_high=queued + 1)
        peer.size = 4 * MIB
        peer.send()
        with pytest.raises(Busy):
            peer.send()


async def test_busy_queue_tells_when_it_is_writable_and_has_lost_nothing(backend: str) -> None:
    async with stalled() as peer:
        assert await peer.event(events.Busy) == events.Busy(peer.evil.name)
        waiting = asyncio.create_task(peer.node.send_wait(peer.to, (peer.sent, b"waited")))
        peer.sent += 1
        await turn()
        assert not waiting.done()
        numbers = await peer.read()
        assert numbers == list(range(peer.sent))
        await waiting
        assert await peer.event(events.Writable) == events.Writable(peer.evil.name)
        peer.send()
        assert peer.connection.queue_bytes < HIGH // 2


async def test_high_water_can_be_changed_while_running(backend: str) -> None:
    async with stalled() as peer:
        assert peer.fill() == 0
        peer.node.set_limits(sendq_bytes_high=2 * HIGH)
        assert peer.fill() == pytest.approx(HIGH / peer.size, abs=2)
        peer.node.set_limits(sendq_bytes_high=HIGH)
        assert peer.fill() == 0
        assert await peer.read() == list(range(peer.sent))


async def test_raised_high_water_wakes_who_waits(backend: str) -> None:
    async with stalled() as peer:
        waiting = asyncio.create_task(peer.node.send_wait(peer.to, 1))
        await turn()
        peer.node.set_limits(sendq_bytes_high=4 * HIGH)
        async with asyncio.timeout(5):
            await waiting


async def test_control_signals_pass_a_queue_that_is_busy(backend: str) -> None:
    async with stalled() as peer:
        monitor = peer.node.monitor(peer.to)
        peer.node.exit(peer.to, tumen.Atom("over"))
        with pytest.raises(Busy):
            peer.node.send(peer.to, 1)

        def operations() -> list[int]:
            found: list[int] = []
            while 26 not in found:
                found.append(peer.evil.signal()[0][0])
            return found

        found = await asyncio.to_thread(operations)
        assert found[-2:] == [19, 26]
        monitor.demonitor()


async def test_connection_that_ends_with_a_full_queue_says_how_many_it_lost(backend: str) -> None:
    async with stalled() as peer:
        waiting = asyncio.create_task(peer.node.send_wait(peer.to, 1))
        await turn()
        accepted = peer.connection.queue_count
        assert accepted >= HIGH // (peer.size + HEAD)
        peer.evil.reset()
        down = await peer.event(events.NodeDown)
        assert down.lost == accepted
        # Who waits tries again, and learns that nobody is there now.
        await waiting
        failed = await peer.event(events.ConnectFailed)
        assert failed.lost == 1


async def test_queues_of_a_node_share_a_pool_and_each_peer_has_a_guaranteed_part(
    backend: str,
) -> None:
    pool = 512 * KIB
    async with stalled(sendq_bytes_high=MIB, sendq_bytes_node_max=pool) as peer:
        assert pool <= peer.node.info().sendq_bytes < pool + peer.size + HEAD
        with Evil(cookie=COOKIE, receive_bytes=4 * KIB) as evil:
            evil.dial((HOST, peer.node.info().port)).shake()
            await eventually("up", lambda: evil.name in peer.node.nodes())
            other = Stalled(peer.node, evil, peer.other, KIB)
            # The pool is used up, and a peer that takes what it gets is served all the same.
            for _ in range(100):
                await peer.node.send_wait(other.to, (other.sent, b""))
                other.sent += 1
            assert await other.read() == list(range(100))
            await other.stall()
            assert 16 * KIB <= other.connection.queue_bytes < 16 * KIB + other.size + HEAD
            peer.node.set_limits(sendq_bytes_node_max=2 * pool)
            assert other.fill() > 100
