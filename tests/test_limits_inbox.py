"""What waits inside, at its edge: one mailbox, all of a node's mail, one message."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

import tumen
from faults.evil import Evil, atom, binary, frame, integer, pid, reg_send, tuple_of
from faults.scene import Scene, eventually, scene
from nodes import make_node, pair
from tumen import Atom, Limits, Pid, events

pytestmark = pytest.mark.asyncio

KIB = 1024
MIB = 1024 * KIB
LIMIT = 64 * KIB


def of_size(size: int) -> bytes:
    """A binary of so many bytes on the wire."""
    return binary(bytes(size - 5))


async def never_reads(proc: tumen.Process) -> None:
    await asyncio.get_running_loop().create_future()


@asynccontextmanager
async def crammed(**limits: int) -> AsyncIterator[tuple[Scene, Evil, Pid]]:
    """A process named `stuck` that never reads."""
    async with scene(limits=Limits(**limits)) as s:
        stuck = s.node.spawn(never_reads, name="stuck")
        with s.connected() as evil:
            yield s, evil, stuck


def to_stuck(evil: Evil, payload: bytes) -> bytes:
    return reg_send(evil.pid(1), "stuck", payload)


async def test_mailbox_over_its_bound_ends_the_process_and_fires_its_monitors(backend: str) -> None:
    async with crammed(mailbox_bytes_max=LIMIT) as (s, evil, stuck):
        here = s.node.monitor(stuck)
        target = pid(stuck.node, stuck.id, stuck.serial, stuck.creation)
        evil.send(frame(tuple_of(integer(19), evil.pid(1), target, evil.ref(1, 2, 3))))
        # To the brim, and the process lives.
        evil.send(to_stuck(evil, of_size(LIMIT // 2)) * 2)
        evil.ping()
        await eventually("in the mailbox", lambda: s.node.info().mail_bytes >= LIMIT)
        assert s.node.whereis("stuck") == stuck
        assert not here.done
        evil.send(to_stuck(evil, integer(1)))
        full = (Atom("mailbox_full"), LIMIT + len(integer(1)))
        async with asyncio.timeout(5):
            assert await here == full
        control, reason = await asyncio.to_thread(evil.signal)
        assert control[0] == 28
        assert control[3][3:] == (1, 2, 3)
        assert reason == ("mailbox_full", full[1])
        assert s.node.whereis("stuck") is None
        # Its mail is given back, its peer keeps the connection, others get their mail.
        await eventually("given back", lambda: s.node.info().mail_bytes < LIMIT // 2)
        evil.send(to_stuck(evil, integer(2)) + reg_send(evil.pid(1), "sink", integer(3)))
        assert await s.got(1) == [3]


async def test_process_that_reads_is_not_ended_however_much_comes(backend: str) -> None:
    async with crammed(mailbox_bytes_max=LIMIT) as (s, evil, _):
        for n in range(64):
            evil.send(reg_send(evil.pid(1), "sink", of_size(LIMIT // 2)))
            await s.got(n + 1)


async def test_mailbox_bound_can_be_changed_while_running(backend: str) -> None:
    async with crammed(mailbox_bytes_max=LIMIT) as (s, evil, stuck):
        s.node.set_limits(mailbox_bytes_max=4 * LIMIT)
        evil.send(to_stuck(evil, of_size(LIMIT)) * 4)
        evil.ping()
        assert s.node.whereis("stuck") == stuck
        s.node.set_limits(mailbox_bytes_max=LIMIT)
        assert s.node.whereis("stuck") == stuck
        monitor = s.node.monitor(stuck)
        evil.send(to_stuck(evil, integer(1)))
        async with asyncio.timeout(5):
            assert await monitor == (Atom("mailbox_full"), 4 * LIMIT + 2)


async def test_mailbox_bound_holds_for_messages_of_the_same_node(backend: str) -> None:
    async with make_node(limits=Limits(mailbox_bytes_max=LIMIT)) as node:
        stuck = node.spawn(never_reads)
        monitor = node.monitor(stuck)
        for _ in range(20):
            node.send(stuck, bytes(LIMIT // 10))
        async with asyncio.timeout(5):
            reason = await monitor
        assert reason[0] == Atom("mailbox_full")
        assert LIMIT < reason[1] < LIMIT + LIMIT // 5


async def test_inbox_over_its_bound_closes_the_connection_with_most_bytes(backend: str) -> None:
    one, most = 10 * KIB, MIB
    async with scene(limits=Limits(inbox_bytes_max=most)) as s:
        await asyncio.to_thread(s.innocent.stop)
        greedy, modest = s.connected(), s.connected()
        accepted = most * 8 // 10 // one
        answered = threading.Event()

        def attack() -> None:
            for n in range(accepted):
                payload = tuple_of(integer(n), of_size(one))
                greedy.send(reg_send(greedy.pid(1), "sink", payload))
            greedy.ping()
            # It is this one that goes over the bound, and it is the other that has to go.
            for n in range(40):
                payload = tuple_of(atom("modest"), integer(n), of_size(one))
                modest.send(reg_send(modest.pid(1), "sink", payload))
            modest.ping()
            assert greedy.closed()
            modest.ping()
            answered.set()

        with greedy, modest:
            attacker = threading.Thread(target=attack, daemon=True)
            attacker.start()
            # The loop stands still meanwhile, so that nothing leaves the inbox.
            attacker.join(20)
            assert answered.is_set()
            down = await s.event(events.NodeDown, greedy.name)
            assert down.reason.startswith("inbox_full")
            await s.got(accepted + 40)
            numbers = [message[0] for message in s.mail if message[0] != Atom("modest")]
            assert numbers == list(range(accepted))
            assert [m[1] for m in s.mail if m[0] == Atom("modest")] == list(range(40))
            assert modest.name in s.node.nodes()
        # The innocent goes on.
        await asyncio.to_thread(s.innocent._round)


async def test_mailboxes_over_the_bound_of_the_node_end_the_process_with_the_largest(
    backend: str,
) -> None:
    async with crammed(inbox_bytes_max=MIB) as (s, evil, stuck):
        smaller = s.node.spawn(never_reads, name="smaller")
        monitor = s.node.monitor(stuck)
        evil.send(to_stuck(evil, of_size(MIB * 9 // 16)))
        evil.send(reg_send(evil.pid(1), "smaller", of_size(MIB * 3 // 8)))
        evil.ping()
        await eventually("in the mailboxes", lambda: s.node.info().inbox_bytes < KIB)
        # It is the smaller one that goes over the bound, and the larger that has to go.
        evil.send(reg_send(evil.pid(1), "smaller", of_size(MIB // 16 + 1)))
        async with asyncio.timeout(5):
            assert await monitor == (Atom("mailbox_full"), MIB * 9 // 16)
        assert s.node.whereis("smaller") == smaller
        assert evil.name in s.node.nodes()
        await eventually("given back", lambda: s.node.info().mail_bytes < MIB // 2 + KIB)
        evil.ping()
        assert s.node.whereis("smaller") == smaller


async def test_mailboxes_over_the_bound_end_by_messages_of_the_same_node_too(backend: str) -> None:
    async with make_node(limits=Limits(inbox_bytes_max=MIB)) as node:
        large, small = node.spawn(never_reads), node.spawn(never_reads)
        monitor = node.monitor(large)
        for _ in range(7):
            node.send(large, bytes(MIB // 10))
        for _ in range(4):
            node.send(small, bytes(MIB // 10))
        async with asyncio.timeout(5):
            assert (await monitor)[0] == Atom("mailbox_full")
        assert not node.monitor(small).done


# What a frame may hold besides its message.
HEAD = 5 * KIB


async def test_message_limit_is_exact_and_can_be_changed_while_running(backend: str) -> None:
    async with scene(limits=Limits(message_bytes_max=LIMIT)) as s:
        with s.connected() as evil:

            def of_frame_size(size: int) -> bytes:
                head = len(reg_send(evil.pid(1), "sink", b"")) - 4
                return reg_send(evil.pid(1), "sink", of_size(size - head))

            evil.send(of_frame_size(LIMIT + HEAD))
            await s.got(1)
            s.node.set_limits(message_bytes_max=2 * LIMIT)
            evil.send(of_frame_size(2 * LIMIT + HEAD))
            await s.got(2)
            assert evil.name in s.node.nodes()
            s.node.set_limits(message_bytes_max=LIMIT)
            # The length alone decides: not one byte of the message has come.
            evil.send((LIMIT + HEAD + 1).to_bytes(4, "big"))
            down = await s.event(events.NodeDown, evil.name)
            assert f"frame of {LIMIT + HEAD + 1} bytes is over the limit" in down.reason
            assert await asyncio.to_thread(evil.closed)


async def test_message_that_may_be_sent_is_accepted_by_a_peer_of_the_same_limit(
    backend: str,
) -> None:
    got = []

    async def sink(proc: tumen.Process) -> None:
        got.append(await proc.receive())

    async with pair(limits=Limits(message_bytes_max=LIMIT)) as (a, b):
        # A name is the longest that a destination can be.
        name = "n" * 255
        b.spawn(sink, name=name)
        largest = bytes(LIMIT - len(tumen.encode(b"")) + 1)
        with pytest.raises(tumen.LimitExceeded):
            a.send((name, b.name), largest + b"x")
        a.send((name, b.name), largest)
        await eventually("arrived", lambda: got)
        assert got == [largest]
        assert a.nodes() == [b.name]
