"""Two nodes that dial each other at once, one order of events after the other.

The rule (protocol.md 2.2): whose name is on the wire counts; the node with the greater name wins
with its own attempt. EVIL plays the peer by OTP's rules, or against them, and holds every step back
until the test wants it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

import tumen
from faults.evil import Evil, digest
from faults.scene import Scene, eventually, scene
from nodes import HOST, turn, until
from tumen import Limits, events

pytestmark = pytest.mark.asyncio

# Nodes of the scene are called victim…: these are below and above.
BELOW, ABOVE = f"a-peer@{HOST}", f"z-peer@{HOST}"
# A verified handshake waits for ours a quarter of this: longer than a test needs for its steps.
PATIENT = Limits(handshake_time_ms=60_000)


class Peer:
    """A peer with two sockets: `out`, which it dialled, and `came`, which the node dialled."""

    def __init__(self, s: Scene, name: str) -> None:
        self.s = s
        self.name = name
        self.server = socket.create_server((HOST, 0))
        self.out, self.came = s.evil(name), s.evil(name)
        self.came.creation = self.out.creation
        self.connecting: asyncio.Task[None] | None = None

    @property
    def address(self) -> tuple[str, int]:
        return HOST, int(self.server.getsockname()[1])

    def dial(self) -> bytes:
        """The peer dials: the status that it gets."""
        self.out.dial(self.s.address)
        self.out.say(self.out.send_name())
        return self.out.said()

    def reply(self) -> None:
        """The peer answers our challenge: its handshake is verified now."""
        self.out.say(self.out.challenged())

    def acked(self) -> None:
        ack = self.out.said()
        assert ack == b"a" + digest(self.out.cookie, self.out.own_challenge), ack

    async def dialled(self) -> None:
        """The node dials: returns when its name was read."""
        self.connecting = asyncio.create_task(self.s.node.connect(self.name, self.address))
        await asyncio.to_thread(self.came.accept, self.server)
        body = await asyncio.to_thread(self.came.said)
        assert body[:1] == b"N"

    def accept(self, status: bytes) -> None:
        """The peer accepts the node's attempt to its end."""
        came = self.came
        came.say(status)
        challenge = 4711
        name = came.wire_name
        head = struct.pack(">BQIIH", ord("N"), came.flags, challenge, came.creation, len(name))
        came.say(head + name)
        reply = came.said()
        assert reply[5:] == digest(came.cookie, challenge)
        came.say(b"a" + digest(came.cookie, struct.unpack_from(">I", reply, 1)[0]))

    def close(self) -> None:
        if self.connecting is not None:
            self.connecting.cancel()
        for evil in (self.out, self.came):
            evil.close()
        self.server.close()


@contextlib.asynccontextmanager
async def peer(name: str, limits: Limits = PATIENT) -> AsyncIterator[Peer]:
    """When it ends the peer has exactly one connection, which came up once and never went down."""
    async with scene(limits=limits) as s:
        it = Peer(s, name)
        try:
            yield it
            await s.event(events.NodeUp, name)
            async with asyncio.timeout(5):
                await it.connecting
            assert len(s.seen(events.NodeUp, name)) == 1
            assert not s.seen(events.NodeDown, name)
            assert not s.seen(events.ConnectFailed, name)
            assert not s.seen(events.HandshakeFailed)
            assert name in s.node.nodes()
        finally:
            it.close()
        await s.event(events.NodeDown, name)


async def refused(node: tumen.Node, address: tuple[str, int]) -> None:
    """Returns when the node's attempts at that address, where nobody listens, have failed: this one
    has come behind them."""
    with pytest.raises((tumen.NoConnection, OSError)):
        await node.connect(f"nobody@{HOST}", address)


def in_thread(function: Any, *args: Any) -> Any:
    return asyncio.to_thread(function, *args)


async def test_lesser_peer_that_dials_after_us_is_told_nok(backend: str) -> None:
    async with peer(BELOW) as it:
        await it.dialled()
        assert await in_thread(it.dial) == b"snok"
        assert await in_thread(it.out.closed)
        await in_thread(it.accept, b"sok_simultaneous")
        await in_thread(it.came.ping)


async def test_greater_peer_that_dials_after_us_wins(backend: str) -> None:
    async with peer(ABOVE) as it:
        await it.dialled()
        assert await in_thread(it.dial) == b"sok_simultaneous"
        it.came.say(b"snok")
        await in_thread(it.reply)
        await in_thread(it.acked)
        await in_thread(it.out.ping)
        assert await in_thread(it.came.closed)


async def test_greater_peer_wins_although_it_lets_us_go_on(backend: str) -> None:
    # Its handshake waits for the end of ours, which it never brings about: a quarter of the limit.
    async with peer(ABOVE, Limits()) as it:
        await it.dialled()
        assert await in_thread(it.dial) == b"sok_simultaneous"
        await in_thread(it.reply)
        await in_thread(it.acked)
        assert await in_thread(it.came.closed)
        await in_thread(it.out.ping)


async def test_lesser_peer_that_dialled_before_us_may_give_its_own_attempt_up(
    backend: str,
) -> None:
    # Its handshake is verified when ours has named us: acking it could ack a socket that is closed.
    async with peer(BELOW) as it:
        assert await in_thread(it.dial) == b"sok"
        await it.dialled()
        await in_thread(it.reply)
        it.out.close()
        await in_thread(it.accept, b"sok_simultaneous")
        await in_thread(it.came.ping)


async def test_verified_handshake_waits_for_our_attempt_and_takes_over_when_that_ends(
    backend: str,
) -> None:
    async with peer(BELOW) as it:
        assert await in_thread(it.dial) == b"sok"
        await it.dialled()
        await in_thread(it.reply)
        assert not await in_thread(it.out.readable, 0.1)
        it.came.close()
        await in_thread(it.acked)
        await in_thread(it.out.ping)


async def test_verified_handshake_takes_over_when_ours_is_told_nok(backend: str) -> None:
    async with peer(BELOW) as it:
        assert await in_thread(it.dial) == b"sok"
        await it.dialled()
        await in_thread(it.reply)
        it.came.say(b"snok")
        await in_thread(it.acked)
        await in_thread(it.out.ping)


async def test_verified_handshake_ends_when_our_attempt_wins(backend: str) -> None:
    # A peer that knows nothing of simultaneous connects carries both to their end.
    async with peer(BELOW) as it:
        assert await in_thread(it.dial) == b"sok"
        await it.dialled()
        await in_thread(it.reply)
        await in_thread(it.accept, b"sok")
        await in_thread(it.came.ping)
        assert await in_thread(it.out.closed)


@pytest.mark.parametrize("name", [BELOW, ABOVE])
async def test_message_waits_for_the_peer_that_is_under_way_when_ours_cannot_get_through(
    backend: str, name: str
) -> None:
    async with peer(name) as it:
        assert await in_thread(it.dial) == b"sok"
        # Nobody listens there any more: our own attempt fails at once.
        address = it.address
        it.server.close()
        it.connecting = asyncio.create_task(it.s.node.connect(name, address))
        it.s.node.send(("somebody", name), 7)
        await turn()
        await refused(it.s.node, address)
        assert not it.connecting.done()
        await in_thread(it.reply)
        await in_thread(it.acked)
        control, payload = await in_thread(it.out.signal)
        assert (control[0], payload) == (6, 7)


async def test_failed_attempt_is_reported_when_the_peer_under_way_gives_up_too(
    backend: str,
) -> None:
    async with scene(limits=PATIENT) as s:
        it = Peer(s, BELOW)
        try:
            assert await in_thread(it.dial) == b"sok"
            address = it.address
            it.server.close()
            connecting = asyncio.create_task(s.node.connect(BELOW, address))
            await turn()
            await refused(s.node, address)
            assert not connecting.done()
            it.out.close()
            with pytest.raises((tumen.NoConnection, OSError)):
                async with asyncio.timeout(10):
                    await connecting
        finally:
            it.close()


async def test_stranger_who_says_the_name_cannot_keep_us_from_the_peer(backend: str) -> None:
    for name in (BELOW, ABOVE):
        async with peer(name) as it:
            with s_stranger(it.s, name) as stranger:
                await it.dialled()
                with contextlib.suppress(OSError, EOFError):
                    stranger.say(stranger.challenged())
                await in_thread(it.accept, b"sok")
                await in_thread(it.came.ping)
            it.s.events = [e for e in it.s.events if not isinstance(e, events.HandshakeFailed)]


def s_stranger(s: Scene, name: str) -> Evil:
    evil = s.evil(name, cookie="a-wrong-cookie-of-it").dial(s.address)
    evil.say(evil.send_name())
    assert evil.said() == b"sok"
    return evil


async def test_bytes_before_our_ack_end_a_handshake_that_waits(backend: str) -> None:
    async with scene(limits=PATIENT) as s:
        it = Peer(s, BELOW)
        try:
            assert await in_thread(it.dial) == b"sok"
            await it.dialled()
            await in_thread(it.reply)
            it.out.send(bytes(4))
            assert await in_thread(it.out.closed)
            await in_thread(it.accept, b"sok")
            await eventually("the connection", lambda: BELOW in s.node.nodes())
            it.close()
            await until(lambda: BELOW not in s.node.nodes())
        finally:
            it.close()
