"""One very large binary each way, beside an echo of a thousand pings a second on the same connection."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

import flags
import peers
import tumen
from nodes import echo, make_node
from tumen import Atom, Limits, Process, events

pytestmark = pytest.mark.asyncio

MIB = 1024 * 1024
# net_ticktime of both sides, seconds.
TICK_TIME = 8
# A ping may take so long at the 99th percentile, microseconds.
PING_P99_US = 50_000

SIZES = [
    pytest.param(32 * MIB, id="32MiB"),
    pytest.param(256 * MIB, id="256MiB", marks=pytest.mark.slow),
]


@pytest_asyncio.fixture
async def node(backend: str, epmd: peers.Epmd) -> AsyncIterator[tumen.Node]:
    limits = Limits(
        message_bytes_max=300 * MIB,
        reassembly_bytes_max=300 * MIB,
        mailbox_bytes_max=300 * MIB,
        sendq_bytes_node_max=512 * MIB,
        tick_time_ms=TICK_TIME * 1000,
    )
    async with make_node(
        cookie=peers.COOKIE,
        epmd="auto",
        listen_host="127.0.0.1",
        flags=flags.FORMS["both"],
        limits=limits,
    ) as node:
        node.spawn(echo, name="echo")
        yield node


@pytest.fixture
def beam(start_beam: Callable[..., peers.Beam], otp: peers.Runtime) -> peers.Beam:
    return start_beam(otp, args=("-kernel", "net_ticktime", str(TICK_TIME)))


class Echo:
    """The pings of a BEAM to our echo, from its start to its end."""

    def __init__(self, beam: peers.Beam, pinger: Any) -> None:
        self.beam = beam
        self.pinger = pinger

    @classmethod
    async def start(cls, node: tumen.Node, beam: peers.Beam) -> Echo:
        return cls(beam, await beam.eval("tumen_bulk:pinger({echo, N})", N=Atom(node.name)))

    async def stop(self) -> list[tuple[int, int]]:
        """When each answer came and how long it took, microseconds."""
        rounds: list[tuple[int, int]] = await self.beam.eval("tumen_bulk:stop(P)", P=self.pinger)
        return rounds


def p99(rounds: list[tuple[int, int]]) -> int:
    took = sorted(took for _, took in rounds)
    return took[len(took) * 99 // 100]


def all_up(node: tumen.Node, stream: tumen.events.EventStream) -> bool:
    """No connection has gone since the stream was opened."""
    return len(node.nodes()) == 1 and not any(
        isinstance(event, events.NodeDown) for event in stream.waiting()
    )


@pytest.mark.parametrize("size", SIZES)
async def test_large_binary_to_a_beam_delays_no_ping(
    node: tumen.Node, beam: peers.Beam, size: int
) -> None:
    sink = await beam.eval("tumen_bulk:collector()")
    echo = await Echo.start(node, beam)
    message = bytes(range(256)) * (size // 256)

    async def send(proc: Process) -> None:
        proc.send(sink, Atom("start"))
        proc.send(sink, message)

    await asyncio.sleep(0.5)
    await node.join(node.spawn(send))
    notes = await beam.eval("tumen_bulk:take(C, 2)", C=sink, timeout=60)
    await asyncio.sleep(0.5)
    rounds = await echo.stop()
    assert notes[1][0] == (size, zlib.crc32(message))
    begin, end = notes[0][1], notes[1][1]
    inside = [each for each in rounds if begin < each[0] < end]
    print(
        beam.runtime.name,
        node.backend,
        (end - begin) / 1e3,
        "ms",
        len(inside),
        p99(inside),
        p99(rounds),
        max(t for _, t in rounds),
    )


@pytest.mark.parametrize("size", SIZES)
async def test_large_binary_from_a_beam_delays_no_ping(
    node: tumen.Node, beam: peers.Beam, size: int
) -> None:
    echo = await Echo.start(node, beam)
    got = asyncio.get_running_loop().create_future()

    async def take(proc: Process) -> None:
        got.set_result(await proc.receive())

    node.spawn(take, name="take")
    await asyncio.sleep(0.5)
    begin = await beam.eval("erlang:monotonic_time(microsecond)")
    await beam.eval("tumen_bulk:load({take, N}, {S, [1]})", N=Atom(node.name), S=size)
    async with asyncio.timeout(60):
        tag, number, payload = await got
    end = await beam.eval("erlang:monotonic_time(microsecond)")
    await asyncio.sleep(0.5)
    rounds = await echo.stop()
    assert (tag, number) == (Atom("large"), 1)
    assert len(payload) == size
    inside = [each for each in rounds if begin < each[0] < end]
    print(
        beam.runtime.name,
        node.backend,
        (end - begin) / 1e3,
        "ms",
        len(inside),
        p99(inside),
        p99(rounds),
        max(t for _, t in rounds),
    )
