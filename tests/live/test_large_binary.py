"""One very large binary each way, beside a thousand pings a second on the same connection."""

from __future__ import annotations

import asyncio
import statistics
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

import flags
import peers
import tumen
from nodes import echo, make_node
from tumen import Atom, Limits, Process

pytestmark = pytest.mark.asyncio

MIB = 1024 * 1024
# net_ticktime of both sides, seconds.
TICK_TIME = 8
# A ping may take so long at the 99th percentile, microseconds.
PING_P99_US = 50_000


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
    """More schedulers than cores: a BEAM builds a received term in one go, on one of them."""
    return start_beam(otp, args=("+S", "4:4", "-kernel", "net_ticktime", str(TICK_TIME)))


Rounds = list[tuple[int, int]]


def check_passed(rounds: Rounds, begin: int, end: int) -> None:
    """Between two times pings were answered all along, not after what was under way."""
    beside = [took for when, took in rounds if begin < when < end]
    # Of a thousand a second: how many is a matter of the machine, that there are some is not.
    assert len(beside) > (end - begin) / 1000 / 10
    assert statistics.median(beside) < (end - begin) / 2


async def send_large(node: tumen.Node, beam: peers.Beam, message: bytes) -> tuple[int, int]:
    """A binary to a process of the BEAM: from when to when, by its clock."""
    sink = await beam.eval("tumen_bulk:collector()")

    async def send(proc: Process) -> None:
        proc.send(sink, Atom("start"))
        proc.send(sink, message)

    await node.join(node.spawn(send))
    (_, begin), (note, end) = await beam.eval("tumen_bulk:take(C, 2)", C=sink, timeout=60)
    # Not on the loop: the echo must not wait for the test.
    assert note == (len(message), await asyncio.to_thread(zlib.crc32, message))
    return begin, end


async def receive_large(node: tumen.Node, beam: peers.Beam, message: bytes) -> tuple[int, int]:
    """The same from a process of the BEAM, which sends that message."""
    got = asyncio.get_running_loop().create_future()

    async def take(proc: Process) -> None:
        got.set_result(await proc.receive())

    node.spawn(take, name="take")
    clock = "erlang:monotonic_time(microsecond)"
    begin: int = await beam.eval(clock)
    await beam.eval("tumen_bulk:load({take, N}, {S, [1]})", N=Atom(node.name), S=len(message))
    async with asyncio.timeout(60):
        tag, number, payload = await got
    end: int = await beam.eval(clock)
    assert (tag, number) == (Atom("large"), 1)
    assert len(payload) == len(message)
    assert await asyncio.to_thread(zlib.crc32, payload) == await asyncio.to_thread(
        zlib.crc32, message
    )
    return begin, end


async def session(node: tumen.Node, beam: peers.Beam, size: int, seconds: float) -> Rounds:
    """One binary each way during so many seconds of pings."""
    loop = asyncio.get_running_loop()
    message = b"0123456789abcdef" * (size // 16)
    over = loop.time() + seconds
    pinger = await beam.eval("tumen_bulk:pinger({echo, N})", N=Atom(node.name))
    there = await send_large(node, beam, message)
    back = await receive_large(node, beam, message)
    await asyncio.sleep(over - loop.time())
    rounds: Rounds = await beam.eval("tumen_bulk:stop(P)", P=pinger)
    check_passed(rounds, *there)
    check_passed(rounds, *back)
    # It is the connection of the beginning, and nothing is left in it.
    (connection,) = node.connections()
    assert connection.name == beam.name
    assert node._running.core.times_up(beam.name) == 1
    assert connection.queue_bytes < 64 * 1024
    assert connection.reassembly_bytes == 0
    return rounds


async def test_pings_pass_a_binary_of_32_mib_each_way(node: tumen.Node, beam: peers.Beam) -> None:
    await session(node, beam, 32 * MIB, 1.0)


@pytest.mark.slow
async def test_pings_pass_a_binary_of_256_mib_each_way_in_50_ms(
    node: tumen.Node, beam: peers.Beam
) -> None:
    rounds = await session(node, beam, 256 * MIB, 30.0)
    took = sorted(took for _, took in rounds)
    assert took[len(took) * 99 // 100] <= PING_P99_US
