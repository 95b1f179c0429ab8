"""Large messages that we send: in fragments. Others overtake them, the sender itself does not."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

import flags
import peers
import tumen
from nodes import echo, make_node, settles, turn, until
from tumen import Atom, Busy, Limits, Pid, Process

pytestmark = pytest.mark.asyncio

KIB = 1024
MIB = 1024 * KIB
# Payload bytes of one fragment, and of the largest message that goes whole.
FRAGMENT = 64 * KIB
# What goes whole all the same: TM_WHOLE_BYTES_MAX.
WHOLE = 68 * KIB
# What a binary's tag and length add to it.
HEAD = 5


@pytest_asyncio.fixture
async def node(backend: str, epmd: peers.Epmd) -> AsyncIterator[tumen.Node]:
    async with make_node(
        cookie=peers.COOKIE,
        epmd="auto",
        listen_host="127.0.0.1",
        flags=flags.FORMS["both"],
        limits=Limits(sendq_bytes_high=64 * MIB),
    ) as node:
        yield node


def data(size: int, seed: int = 1) -> bytes:
    """Bytes of which no two parts look alike."""
    block = b"".join((i * seed).to_bytes(4, "big") for i in range(FRAGMENT // 4 + 7))
    return (block * (size // len(block) + 1))[:size]


def note(payload: bytes) -> tuple[int, int]:
    return len(payload), zlib.crc32(payload)


class Collector:
    """A process of the BEAM that notes what it gets."""

    def __init__(self, beam: peers.Beam, pid: Pid) -> None:
        self.beam = beam
        self.pid = pid

    @classmethod
    async def open(cls, beam: peers.Beam) -> Collector:
        return cls(beam, await beam.eval("tumen_bulk:collector()"))

    async def take(self, count: int) -> list[tuple[Any, int]]:
        """Notes and their times in microseconds, once there are so many."""
        taken: list[tuple[Any, int]] = await self.beam.eval(
            "tumen_bulk:take(C, N)", C=self.pid, N=count
        )
        return taken

    async def notes(self, count: int) -> list[Any]:
        return [note for note, _ in await self.take(count)]


class Giver(tumen.GenServer):
    """Replies as many bytes as it is asked for."""

    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        return data(request)


async def binary_bytes(beam: peers.Beam) -> int:
    """Bytes of binaries that the BEAM holds, without what a collection would free."""
    held: int = await beam.eval(
        "begin [garbage_collect(P) || P <- processes()], erlang:memory(binary) end"
    )
    return held


def connection(node: tumen.Node, beam: peers.Beam) -> tumen.node.Connection:
    (found,) = [each for each in node.connections() if each.name == beam.name]
    return found


@pytest.mark.parametrize(
    ("payload", "frames"),
    [
        (FRAGMENT + 1, 1),
        (WHOLE, 1),
        (WHOLE + 1, 2),
        (2 * FRAGMENT, 2),
        (2 * FRAGMENT + 1, 3),
        (3 * MIB, 48),
    ],
)
async def test_payload_over_68_kib_goes_in_fragments_of_that_size(
    node: tumen.Node, shared_beam: peers.Beam, payload: int, frames: int
) -> None:
    sink = await Collector.open(shared_beam)
    assert await node.ping(shared_beam.name)
    await until(lambda: connection(node, shared_beam).queue_count == 0)
    before = connection(node, shared_beam).frames_out
    message = data(payload - HEAD)
    node.send(sink.pid, message)
    assert await sink.notes(1) == [note(message)]
    await until(lambda: connection(node, shared_beam).queue_count == 0)
    assert connection(node, shared_beam).frames_out == before + frames


async def test_1_khz_echo_goes_on_while_messages_of_20_mib_are_on_their_way(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    sink = await Collector.open(shared_beam)
    node.spawn(echo, name="echo")
    pinger = await shared_beam.eval("tumen_bulk:pinger({echo, N})", N=Atom(node.name))
    message, count = data(20 * MIB), 8

    async def large(proc: Process) -> None:
        proc.send(sink.pid, Atom("start"))
        for number in range(count):
            await proc.send_wait(sink.pid, (Atom("large"), number, message))

    await node.join(node.spawn(large))
    notes = await sink.take(count + 1)
    rounds = await shared_beam.eval("tumen_bulk:stop(P)", P=pinger)
    assert [each for each, _ in notes] == [
        Atom("start"),
        *((Atom("large"), number, *note(message)) for number in range(count)),
    ]
    (_, begin), (_, end) = notes[0], notes[-1]
    answered = [took for when, took in rounds if begin < when < end]
    # One after the other each of them would have waited for a whole message at least.
    assert len(answered) > (end - begin) / 1000 / 4
    assert statistics.median(answered) < (end - begin) / count
    assert connection(node, shared_beam).frames_out > count * 320


async def test_several_senders_at_once_are_each_heard_in_order(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    sink = await Collector.open(shared_beam)
    sizes = [10, FRAGMENT - 30, 10, FRAGMENT, 3 * FRAGMENT + 5, 0, 700_000, 20, 20, 2 * FRAGMENT]
    senders = 6

    async def sender(proc: Process, name: int) -> None:
        for number, size in enumerate(sizes * 2):
            proc.send(sink.pid, (name, number, data(size, name + number)))
            if number % 3 == 0:
                await turn()

    def start(name: int) -> Pid:
        return node.spawn(lambda proc: sender(proc, name))

    for pid in [start(name) for name in range(senders)]:
        await node.join(pid)
    notes = await sink.notes(senders * 2 * len(sizes))
    for name in range(senders):
        assert [each for each in notes if each[0] == name] == [
            (name, number, *note(data(size, name + number)))
            for number, size in enumerate(sizes * 2)
        ]
    # Not one after the other: the last to begin is heard before the first has said all.
    first = max(at for at, each in enumerate(notes) if each[0] == 0)
    last = min(at for at, each in enumerate(notes) if each[0] == senders - 1)
    assert last < first


async def test_end_of_a_process_comes_after_all_that_it_has_said(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    sink = await Collector.open(shared_beam)
    message, reason = data(5 * MIB), data(300 * KIB, 3)

    async def last_words(proc: Process) -> None:
        proc.send(sink.pid, (Atom("watch"), proc.pid))
        assert await proc.receive() == Atom("watching")
        proc.send(sink.pid, (Atom("said"), 1, message))
        proc.send(sink.pid, Atom("small"))
        raise tumen.Exit(reason)

    node.spawn(last_words)
    notes = await sink.notes(4)
    assert notes[:2] == [(Atom("said"), 1, *note(message)), Atom("small")]
    assert sorted(notes[2:], key=repr) == [
        (Atom("down"), note(reason)),
        (Atom("exit"), note(reason)),
    ]


async def test_sender_that_is_cancelled_in_the_middle_leaves_the_peer_clean(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    sink = await Collector.open(shared_beam)
    message, count = data(2 * MIB), 30

    async def sender(proc: Process, number: int, sent: asyncio.Event) -> None:
        await proc.send_wait(sink.pid, (Atom("m"), number, message))
        sent.set()
        await asyncio.Event().wait()

    async def cut_short(number: int) -> None:
        sent = asyncio.Event()
        pid = node.spawn(lambda proc: sender(proc, number, sent))
        await sent.wait()
        node.exit(pid, Atom("kill"))
        await node.join(pid)

    for number in range(count):
        await cut_short(number)
    notes = await sink.notes(count)
    assert sorted(notes) == [(Atom("m"), number, *note(message)) for number in range(count)]
    assert await node.ping(shared_beam.name)
    # What was freed is counted a little later.
    await settles(
        "binaries are freed", lambda: binary_bytes(shared_beam), lambda now: now <= 8 * MIB
    )


async def test_lent_memory_comes_back_after_the_last_fragment(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    sink = await Collector.open(shared_beam)
    message = bytearray(data(10 * MIB))
    node.send(sink.pid, (1, 2, tumen.lend(message)))
    assert (await sink.notes(1)) == [(1, 2, *note(bytes(message)))]
    await until(lambda: node._running.core._lent_count() == 0)
    message.append(0)  # nobody holds it any more


async def test_large_arguments_and_results_of_rpc(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    message = data(5 * MIB)
    assert await node.rpc(shared_beam.name, "erlang", "crc32", [message]) == note(message)[1]

    await node.start_server(Giver, name="giver")
    size = 3 * MIB
    answer = await shared_beam.eval(
        "begin B = gen_server:call({giver, N}, S), {byte_size(B), erlang:crc32(B)} end",
        N=Atom(node.name),
        S=size,
    )
    assert answer == note(data(size))


async def test_late_reply_to_an_alias_leaks_nothing_at_the_peer(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """Until 25.3.2.8 and 26.1.3 a BEAM keeps the fragments of a message to a dead alias for ever
    (erlang/otp 7834): such peers get it whole."""
    alias = await shared_beam.eval(
        "begin Self = self(),"
        " spawn(fun() -> A = alias(), unalias(A), Self ! {alias, A},"
        "       receive after 30000 -> ok end end),"
        " receive {alias, A} -> A end end"
    )
    before = await binary_bytes(shared_beam)
    for _ in range(20):
        node.send(alias, data(MIB))
    await until(lambda: connection(node, shared_beam).queue_count == 0)
    assert await node.ping(shared_beam.name)
    # Fragments that are kept would be twenty MiB, and stay.
    await settles(
        "binaries are freed",
        lambda: binary_bytes(shared_beam),
        lambda now: now <= before + 4 * MIB,
    )


def send_until_busy(send: Callable[[int], None]) -> int:
    """Sends with 0, 1, 2 ... until the queue is full; how many."""
    for number in itertools.count():
        try:
            send(number)
        except Busy:
            return number
    raise AssertionError


async def test_small_messages_find_room_while_a_large_one_fills_the_queue(
    node: tumen.Node, start_beam: Callable[..., peers.Beam], otp: peers.Runtime
) -> None:
    node.set_limits(sendq_bytes_high=256 * KIB)
    beam = start_beam(otp)
    sink = await Collector.open(beam)
    assert await node.ping(beam.name)
    beam.pause()
    try:
        message = data(30 * MIB)
        large = send_until_busy(lambda number: node.send(sink.pid, (1, number, message)))
        small = send_until_busy(lambda number: node.send((Atom("nobody"), beam.name), number))
    finally:
        beam.resume()
    assert large >= 1
    assert small > 256
    assert await sink.notes(large) == [(1, number, *note(message)) for number in range(large)]
    assert await node.ping(beam.name)
