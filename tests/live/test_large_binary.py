"""One very large binary each way, beside a thousand pings a second on the same connection."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import zlib
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

import flags
import peers
import tumen
from nodes import make_node
from tumen import Atom, Limits, Process

pytestmark = pytest.mark.asyncio

MIB = 1024 * 1024
# net_ticktime of both sides, seconds.
TICK_TIME = 8
# A ping beside a transfer may take so long at the 99th percentile, microseconds.
PING_P99_US = 50_000
# So much of a large message is certainly not a ping's.
PART = MIB


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
        yield node


class Echo:
    """Answers pings, and notes what was under way on the connection then."""

    def __init__(self, node: tumen.Node) -> None:
        self._node = node
        # Answered while a part of a large message had come, and while a part had not left.
        self.beside_in = 0
        self.beside_out = 0
        node.spawn(self._run, name="echo")

    async def _run(self, proc: Process) -> None:
        async for sender, payload in proc:
            proc.send(sender, (proc.pid, payload))
            (connection,) = self._node.connections()
            self.beside_in += connection.reassembly_bytes > PART
            self.beside_out += connection.queue_bytes > PART


@pytest.fixture
def beam(start_beam: Callable[..., peers.Beam], otp: peers.Runtime) -> peers.Beam:
    """A BEAM builds a received term in one go, on one scheduler. More of them than cores, and every
    5 ms a look for processes that wait behind it, since the pinger may be among them."""
    schedulers = ("+S", "4:4", "+sfwi", "5", "+swt", "very_low")
    return start_beam(otp, args=(*schedulers, "-kernel", "net_ticktime", str(TICK_TIME)))


# When a ping was answered, and how long that took, microseconds of the BEAM's clock.
Rounds = list[tuple[int, int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Transfer:
    """From when to when a large message was under way, by the same clock."""

    begin: int
    end: int

    def passed_by(self, rounds: Rounds) -> Rounds:
        """The pings that were sent after it and answered before it had arrived."""
        return [(at, took) for at, took in rounds if self.begin < at - took and at < self.end]

    def p99(self, rounds: Rounds) -> int:
        """Of the pings that were under way during the transfer."""
        took = sorted(took for at, took in rounds if at > self.begin and at - took < self.end)
        return took[len(took) * 99 // 100]


async def send_large(node: tumen.Node, beam: peers.Beam, message: bytes) -> Transfer:
    """A binary to a process of the BEAM."""
    sink = await beam.eval("tumen_bulk:collector()")

    async def send(proc: Process) -> None:
        proc.send(sink, Atom("start"))
        proc.send(sink, message)

    await node.join(node.spawn(send))
    (_, begin), (note, end) = await beam.eval("tumen_bulk:take(C, 2)", C=sink, timeout=60)
    # Not on the loop: the echo must not wait for the test.
    assert note == (len(message), await asyncio.to_thread(zlib.crc32, message))
    return Transfer(begin, end)


async def receive_large(node: tumen.Node, beam: peers.Beam, message: bytes) -> Transfer:
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
    return Transfer(begin, end)


async def session(
    node: tumen.Node, beam: peers.Beam, size: int, seconds: float, *, tries: int = 1
) -> tuple[Rounds, Transfer, Transfer]:
    """One binary each way during so many seconds of pings: these, and when it went out and in.

    Pings overtake it both ways, and the connection is the same all along. A binary that is there
    within a few milliseconds may meet no ping: then another one goes, up to so many."""
    loop = asyncio.get_running_loop()
    assert await node.ping(beam.name)
    begin = time.monotonic_ns()
    echo = Echo(node)
    message = b"0123456789abcdef" * (size // 16)
    out = back = False
    for _ in range(tries):
        over = loop.time() + seconds
        pinger = await beam.eval("tumen_bulk:pinger({echo, N})", N=Atom(node.name))
        sent = await send_large(node, beam, message)
        received = await receive_large(node, beam, message)
        await asyncio.sleep(max(over - loop.time(), 0))  # pings alone, for the rest of that time
        rounds: Rounds = await beam.eval("tumen_bulk:stop(P)", P=pinger)
        out = out or bool(sent.passed_by(rounds))
        back = back or bool(received.passed_by(rounds))
        if out and back and echo.beside_out and echo.beside_in:
            break
    assert out
    assert back
    assert echo.beside_out > 0
    assert echo.beside_in > 0
    # It is the connection of the beginning, and nothing is left in it.
    passed = time.monotonic_ns() - begin
    (connection,) = node.connections()
    assert connection.name == beam.name
    assert connection.up_ns >= passed
    assert connection.queue_bytes < 64 * 1024
    assert connection.reassembly_bytes == 0
    return rounds, sent, received


async def test_pings_pass_a_binary_of_32_mib_each_way(node: tumen.Node, beam: peers.Beam) -> None:
    await session(node, beam, 32 * MIB, 0.5, tries=20)


@pytest.mark.slow
async def test_pings_pass_a_binary_of_256_mib_each_way_in_50_ms(
    node: tumen.Node, beam: peers.Beam
) -> None:
    rounds, there, back = await session(node, beam, 256 * MIB, 30.0)
    assert there.p99(rounds) <= PING_P99_US
    assert back.p99(rounds) <= PING_P99_US
