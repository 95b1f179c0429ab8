"""Bounds before a peer is known, at their edge and changed while running."""

from __future__ import annotations

import asyncio
import time

import pytest

from faults.scene import SLACK_S, eventually, scene
from tumen import Limits, events

pytestmark = pytest.mark.asyncio


async def test_half_open_connections_are_counted_and_the_oldest_goes(backend: str) -> None:
    async with scene(limits=Limits(half_open_count_max=4)) as s:
        with (
            s.evil() as one,
            s.evil() as two,
            s.evil() as three,
            s.evil() as four,
            s.evil() as five,
            s.evil() as six,
            s.evil() as seven,
        ):
            for evil in (one, two, three, four):
                evil.dial(s.address)
            await eventually("four", lambda: s.node.info().half_open == 4)
            assert not s.seen(events.HandshakeFailed)
            five.dial(s.address)
            failed = await s.event(events.HandshakeFailed)
            assert "too many unauthenticated connections" in failed.reason
            assert await asyncio.to_thread(one.closed)
            # Room for two more, without an end of anybody.
            s.node.set_limits(half_open_count_max=6)
            six.dial(s.address)
            seven.dial(s.address)
            await eventually("six", lambda: s.node.info().half_open == 6)
            assert len(s.seen(events.HandshakeFailed)) == 1
            # Fewer from now on: the next one to come finds all old ones gone but one.
            s.node.set_limits(half_open_count_max=2)
            two.shake().ping()
            assert two.name in s.node.nodes()


async def test_handshake_time_can_be_changed_while_running(backend: str) -> None:
    async with scene(limits=Limits(handshake_time_ms=60_000)) as s:
        with s.evil() as patient, s.evil() as hurried:
            patient.dial(s.address)
            await eventually("one", lambda: s.node.info().half_open == 1)
            s.node.set_limits(handshake_time_ms=300)
            start = time.monotonic()
            hurried.dial(s.address)
            assert await asyncio.to_thread(hurried.closed)
            assert 0.27 <= time.monotonic() - start < 0.3 + SLACK_S
            # The deadline of one that is under way is what it was.
            patient.shake().ping()
            assert patient.name in s.node.nodes()
