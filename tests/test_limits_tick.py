"""The tick time: who is silent is down in time, who ticks is not, and we tick ourselves."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from faults.evil import TICK, Evil, integer, reg_send
from faults.scene import SLACK_S, scene
from tumen import Atom, Limits, Pid, events

pytestmark = pytest.mark.asyncio

TICK_TIME = 1.0


class Ticker(threading.Thread):
    """Ticks as a living peer does, four times in the tick time, and counts what it hears."""

    def __init__(self, evil: Evil) -> None:
        super().__init__(daemon=True)
        self.evil = evil
        self.heard = 0
        self._stopping = threading.Event()

    def run(self) -> None:
        due = time.monotonic()
        while not self._stopping.is_set():
            if time.monotonic() >= due:
                self.evil.send(TICK)
                due += TICK_TIME / 4
            if self.evil.readable(0.02):
                assert self.evil.frame() == b""
                self.heard += 1

    def stop(self) -> int:
        self._stopping.set()
        self.join()
        return self.heard


async def test_silent_peer_is_down_within_a_quarter_after_the_tick_time(backend: str) -> None:
    async with scene(limits=Limits(tick_time_ms=int(TICK_TIME * 1000))) as s:
        with s.connected() as ticking, s.connected() as silent, s.connected() as dripping:
            ticker = Ticker(ticking)
            ticker.start()
            begin = time.monotonic()
            monitor = s.node.monitor(Pid(silent.name, 1, 0, silent.creation))
            silent.send(TICK)
            start = time.monotonic()
            # Bytes are not enough: only whole frames are a sign of life.
            dripper = threading.Thread(
                target=dripping.drip, args=(b"\0\0\1\0" + bytes(60), 0.1), daemon=True
            )
            dripper.start()
            down = await s.event(events.NodeDown, silent.name)
            took = time.monotonic() - start
            assert down.reason.startswith("net_tick_timeout")
            assert 0.95 * TICK_TIME <= took <= 1.25 * TICK_TIME + SLACK_S
            assert await monitor == Atom("noconnection")
            assert await asyncio.to_thread(silent.closed)
            down = await s.event(events.NodeDown, dripping.name)
            assert down.reason.startswith("net_tick_timeout")
            assert time.monotonic() - start <= 1.25 * TICK_TIME + SLACK_S
            dripper.join()
            # The one that ticks goes on beyond what any silence could have lasted.
            await asyncio.sleep(max(0.0, 2 * TICK_TIME - (time.monotonic() - start)))
            heard = ticker.stop()
            took = time.monotonic() - begin
            assert ticking.name in s.node.nodes()
            # Four in each tick time; fewer where the machine was busy with other things.
            assert 4 <= heard <= 4 * took / TICK_TIME + 1


async def test_tick_time_can_be_changed_while_running(backend: str) -> None:
    async with scene(limits=Limits(tick_time_ms=60_000)) as s:
        with s.connected() as silent:
            s.node.set_limits(tick_time_ms=int(TICK_TIME * 1000))
            silent.send(reg_send(silent.pid(1), "sink", integer(1)))
            await s.got(1)
            start = time.monotonic()
            down = await s.event(events.NodeDown, silent.name)
            assert down.reason.startswith("net_tick_timeout")
            assert time.monotonic() - start <= 1.5 * TICK_TIME + SLACK_S
            s.node.set_limits(tick_time_ms=60_000)
