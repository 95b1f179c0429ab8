"""Bounds of one received term, at their edge and changed while running."""

from __future__ import annotations

import pytest

import tumen
from faults.deep import nested_tuples
from faults.evil import NIL, reg_send
from faults.scene import scene
from tumen import Limits, events

pytestmark = pytest.mark.asyncio


async def test_depth_limit_is_exact_and_can_be_changed_while_running(backend: str) -> None:
    async with scene(limits=Limits(depth_max=100)) as s:
        with s.connected() as evil:

            def send(depth: int) -> None:
                evil.send(reg_send(evil.pid(1), "sink", nested_tuples(depth)))

            # What `decode` takes with the same limit, a message may be.
            fits = 100
            while True:
                try:
                    tumen.decode(b"\x83" + nested_tuples(fits), depth_max=100)
                    break
                except tumen.LimitExceeded:
                    fits -= 1
            assert fits in (99, 100)
            send(fits)
            await s.got(1)
            send(fits + 1)
            refused = await s.event(events.Refused, evil.name)
            assert refused.to == s.sink
            s.node.set_limits(depth_max=1000)
            send(fits + 1)
            await s.got(2)
            s.node.set_limits(depth_max=10)
            s.events.clear()
            send(fits)
            await s.event(events.Refused, evil.name)
            send(1)
            assert len(await s.got(3)) == 3


async def test_decoded_size_limit_can_be_changed_while_running(backend: str) -> None:
    async with scene() as s:
        with s.connected() as evil:
            many = b"l\0\0\x27\x10" + NIL * 10_001
            message = reg_send(evil.pid(1), "sink", many)
            evil.send(message)
            await s.got(1)
            # Ten thousand empty lists are ten thousand objects.
            s.node.set_limits(decoded_bytes_max=10_000 * 8)
            evil.send(message)
            refused = await s.event(events.Refused, evil.name)
            assert refused.size == len(many)
            s.node.set_limits(decoded_bytes_max=10_000 * 1024)
            evil.send(message)
            await s.got(2)
            assert s.mail == [[[]] * 10_000] * 2
