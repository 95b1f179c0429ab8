"""Bad bytes from a peer that has the cookie.

Malformed: that connection ends with a named reason, what came before is delivered, nothing after.
Valid but over a limit: that message is dropped with an event, and the connection stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import zlib
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator

import pytest

from faults import evil as evil_module
from faults.deep import DEEP, nested_tuples
from faults.evil import (
    NIL,
    TICK,
    Evil,
    atom,
    binary,
    frame,
    framed,
    integer,
    pid,
    reg_send,
    tuple_of,
)
from faults.scene import SLACK_S, Scene, eventually, scene
from nodes import COOKIE
from tumen import Atom, Limits, TermMap, events

pytestmark = pytest.mark.asyncio

BEFORE = 50


def to_sink(evil: Evil, payload: bytes) -> bytes:
    return reg_send(evil.pid(1), "sink", payload)


async def closes(s: Scene, bad: bytes, reason: str) -> None:
    """Numbers, the bad bytes and more numbers in one write: the first arrive, the last do not, and
    the connection is closed for that reason."""
    s.mail.clear()
    s.events.clear()
    with s.connected() as evil:
        before = b"".join(to_sink(evil, integer(n)) for n in range(BEFORE))
        after = b"".join(to_sink(evil, integer(n)) for n in range(1000, 1000 + BEFORE))
        evil.send(before + bad + after)
        down = await s.event(events.NodeDown, evil.name)
        assert reason in down.reason
        assert await asyncio.to_thread(evil.closed)
        assert await s.got(BEFORE) == list(range(BEFORE))
        assert len(s.seen(events.NodeDown, evil.name)) == 1
        # The same again: from the same name, with every write cut into bytes.
        with s.connected(evil.name) as again:
            s.mail.clear()
            s.events.clear()
            data = to_sink(again, integer(1)) + bad + to_sink(again, integer(2))
            with contextlib.suppress(OSError):
                for at in range(min(len(data), 300)):
                    again.send(data[at : at + 1])
                again.send(data[300:])
            down = await s.event(events.NodeDown, again.name)
            assert reason in down.reason
            assert await s.got(1) == [1]


SENDER = pid("evil@127.0.0.1", 1, 0, 9)
# {6, Sender, '', sink}
CONTROL = tuple_of(integer(6), SENDER, atom(""), atom("sink"))

BAD_FRAMES = {
    "distribution_header": (
        framed(b"\x83D\x00" + CONTROL + integer(1)),
        "malformed frame: a distribution header was not negotiated",
    ),
    "fragment_header": (
        framed(b"\x83E" + bytes(7) + b"\1" + bytes(7) + b"\2\0" + CONTROL),
        "malformed frame: a distribution header was not negotiated",
    ),
    "one_byte": (framed(b"\x70"), "malformed frame: a frame too short"),
    "unknown_form": (framed(b"\x71\x83" + CONTROL), "malformed frame: an unknown form"),
    "no_version": (framed(b"\x70" + CONTROL), "malformed frame: no version byte"),
    "control_missing": (framed(b"\x70\x83"), "malformed control message"),
    "control_truncated": (framed(b"\x70\x83" + CONTROL[:-3]), "malformed control message"),
    "control_no_tuple": (framed(b"\x70\x83" + integer(6)), "malformed control message"),
    "control_wrong_arity": (
        frame(tuple_of(integer(1), SENDER), None),
        "malformed control message",
    ),
    "control_atom_for_pid": (
        frame(tuple_of(integer(1), atom("a"), atom("b")), None),
        "malformed control message",
    ),
    "control_cache_reference": (
        frame(tuple_of(integer(6), SENDER, atom(""), b"R\x00"), integer(1)),
        "malformed control message",
    ),
    "no_payload": (frame(CONTROL), "malformed control message: no payload"),
    "empty_payload": (frame(CONTROL, b""), "malformed control message: no payload"),
    "no_version_of_payload": (framed(b"\x70\x83" + CONTROL + integer(1)), "malformed"),
    "link_of_a_foreign_process": (
        frame(tuple_of(integer(1), pid("other@host", 1, 0, 1), pid("x@y", 1, 0, 1)), None),
        "the sender is not a process of the sending node",
    ),
    "unlink_id_0": (
        # From whom it is does not matter: 0 is no id.
        frame(tuple_of(integer(35), integer(0), SENDER, SENDER), None),
        "malformed",
    ),
}


@pytest.mark.parametrize("what", BAD_FRAMES)
async def test_malformed_frame_closes_its_connection_only(backend: str, what: str) -> None:
    async with scene() as s:
        await closes(s, *BAD_FRAMES[what])


BAD_TERMS = {
    "unknown_tag": b"\xfe\0",
    "atom_cache_reference": b"R\x00",
    "atom_cache_reference_inside": tuple_of(integer(1), b"R\x07"),
    "truncated": tuple_of(integer(1), integer(2))[:-1],
    "second_version_byte": b"\x83" + integer(1),
    "compressed": b"\x50\x00\x00\x00\x02" + zlib.compress(integer(1)),
    "binary_past_the_end": b"m\xff\xff\xff\xff" + bytes(100),
    "list_longer_than_the_frame": b"l\xff\xff\xff\xff" + integer(1) * 50,
    "tuple_longer_than_the_frame": b"i\x00\xff\xff\xff" + integer(1) * 50,
    "map_longer_than_the_frame": b"t\x7f\xff\xff\xff" + integer(1) * 50,
    "equal_keys": b"t\0\0\0\2" + (integer(1) + NIL) * 2,
    "nan": b"F\x7f\xf8" + bytes(6),
    "infinity": b"F\x7f\xf0" + bytes(6),
    "atom_of_bad_utf8": b"w\2\xc3\x28",
    "atom_too_long": b"v\x01\x00" + b"a" * 256,
    "bit_string_of_9_bits_a_byte": b"M\0\0\0\1\x09\0",
}


@pytest.mark.parametrize("what", BAD_TERMS)
async def test_malformed_term_closes_its_connection_only(backend: str, what: str) -> None:
    async with scene() as s:
        # Equal keys show when the map is built: the core is told, and closes.
        reason = "the same key twice" if what == "equal_keys" else "malformed term"
        await closes(s, frame(CONTROL, BAD_TERMS[what]), reason)


async def test_zip_bomb_in_a_frame_is_malformed_and_not_inflated(backend: str) -> None:
    bomb = zlib.compress(bytes(32 << 20), 9)
    payload = b"\x50" + (32 << 20).to_bytes(4, "big") + bomb
    async with scene() as s:
        await closes(s, frame(CONTROL, payload), "malformed term")


async def test_length_of_4_gib_closes_at_once(backend: str) -> None:
    async with scene() as s:
        # Before a byte of it has come, and long before any tick.
        await closes(s, b"\xff\xff\xff\xff", "frame of 4294967295 bytes is over the limit")


async def test_length_prefix_alone_costs_no_memory(backend: str) -> None:
    async with scene() as s:
        base = s.counters()["bytes"]
        with s.connected() as evil:
            most = s.node.limits.message_bytes_max
            evil.send(most.to_bytes(4, "big") + b"\x70\x83")
            # Everything before has been looked at when this one is answered.
            with s.connected() as other:
                other.ping()
            assert s.counters()["bytes"] < base + 512 * 1024
            assert evil.name in s.node.nodes()
        down = await s.event(events.NodeDown, evil.name)
        assert "connection_closed" in down.reason


async def test_peer_that_resets_in_mid_frame_leaves_nothing(backend: str) -> None:
    async with scene() as s:
        evil = s.connected()
        whole = to_sink(evil, binary(bytes(1 << 20)))
        evil.send(b"".join(to_sink(evil, integer(n)) for n in range(BEFORE)) + whole[: 1 << 19])
        assert await s.got(BEFORE) == list(range(BEFORE))
        evil.reset()
        down = await s.event(events.NodeDown, evil.name)
        assert "connection_closed" in down.reason
        assert len(s.mail) == BEFORE


async def test_unknown_operations_and_dead_destinations_keep_the_connection(backend: str) -> None:
    async with scene() as s:
        with s.connected() as evil:
            me = evil.pid(1)
            ours = pid(s.node.name, 77, 0, 3)
            evil.send(TICK * 100)
            evil.send(frame(tuple_of(integer(99), me), integer(1)))
            evil.send(frame(tuple_of(integer(22), me, ours), integer(1)))
            evil.send(reg_send(me, "nobody", integer(1)))
            evil.send(frame(tuple_of(integer(33), me, evil.ref(1, 2, 3)), integer(1)))
            evil.send(frame(tuple_of(integer(20), me, atom("nobody"), evil.ref(1, 2, 3))))
            evil.send(to_sink(evil, integer(1)))
            assert await s.got(1) == [1]
            evil.ping()
            info = s.node.info()
            assert info.operations_unknown == 1
            assert info.messages_dropped == 3
            assert not s.seen(events.NodeDown)


# -- valid, but over a limit ----------------------------------------------------------------------


@pytest.mark.parametrize("what", DEEP)
async def test_million_deep_message_is_refused_and_its_connection_stays(
    backend: str, what: str
) -> None:
    deep = DEEP[what](1_000_000)
    async with scene() as s:
        # The walk keeps a stack of its own while it walks.
        with s.connected() as evil:
            evil.send(to_sink(evil, integer(1)) + to_sink(evil, deep) + to_sink(evil, integer(2)))
            refused = await s.event(events.Refused, evil.name, timeout=20)
            assert await s.got(2) == [1, 2]
            assert refused.to == s.sink
            assert "dep" in refused.reason or "nest" in refused.reason
            assert refused.size == len(deep)
            evil.ping()
            assert not s.seen(events.NodeDown)


async def test_million_deep_exit_reason_ends_what_it_ends(backend: str) -> None:
    async with scene() as s:
        waiting = s.node.spawn(lambda proc: proc.receive(), name="waiting")
        with s.connected() as evil:
            to = pid(s.node.name, waiting.id, waiting.serial, waiting.creation)
            exit2 = tuple_of(integer(26), evil.pid(1), to)
            monitor = s.node.monitor(waiting)
            evil.send(frame(exit2, nested_tuples(1_000_000)))
            async with asyncio.timeout(20):
                assert await monitor == Atom("reason_too_large")
            await s.event(events.Refused, evil.name)
            evil.ping()


async def test_bytes_that_become_gigabytes_of_objects_are_refused(backend: str) -> None:
    # 64 bytes for each byte on the wire: a list of empty lists.
    count = 1_000_000
    flood = b"l" + count.to_bytes(4, "big") + NIL * (count + 1)
    async with scene(limits=Limits(decoded_bytes_max=16 << 20)) as s:
        with s.connected() as evil:
            evil.send(to_sink(evil, flood) + to_sink(evil, integer(1)))
            refused = await s.event(events.Refused, evil.name)
            assert refused.size == len(flood)
            assert await s.got(1) == [1]
            evil.ping()


# -- a hash flood ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def pinged(s: Scene) -> AsyncIterator[list[float]]:
    """Another process pings the node meanwhile; seconds of each answer, once it is over."""
    host, port = s.address
    command = [evil_module.__file__, "ping", host, str(port), s.node.name, COOKIE]
    env = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    child = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdin=PIPE, stdout=PIPE, env=env
    )
    took: list[float] = []
    try:
        assert await child.stdout.readline() == b"up\n"
        yield took
        output, _ = await child.communicate(b"")
        took += json.loads(output)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


async def test_hash_flood_arrives_as_a_term_map_while_others_are_answered(backend: str) -> None:
    count = 100_000
    modulus = sys.hash_info.modulus
    pairs = b"".join(integer(k * modulus + 1) + b"a\0" for k in range(count))
    flood = b"t" + count.to_bytes(4, "big") + pairs
    async with scene() as s:
        async with pinged(s) as took:
            with s.connected() as evil:
                message = to_sink(evil, flood)
                await asyncio.to_thread(evil.send, message)
                # A map that compares each key with each other takes minutes.
                (arrived,) = await s.got(1, timeout=20)
                assert type(arrived) is TermMap
                assert len(arrived) == count
                assert arrived[99_999 * modulus + 1] == 0
                del arrived
                s.mail.clear()
                evil.ping()
        assert max(took) < SLACK_S


async def test_floods_below_the_flood_check_do_not_stop_the_node(backend: str) -> None:
    # As many equal hashes as go unnoticed, in as many maps as fit into a message of half a MiB.
    modulus = sys.hash_info.modulus
    one = b"t" + (256).to_bytes(4, "big")
    one += b"".join(integer(k * modulus + 1) + b"a\0" for k in range(256))
    many = b"l" + (150).to_bytes(4, "big") + one * 150 + NIL
    async with scene() as s:
        async with pinged(s) as took:
            with s.connected() as evil:
                await asyncio.to_thread(evil.send, to_sink(evil, many))
                (arrived,) = await s.got(1, timeout=20)
                assert type(arrived[0]) is dict
        assert max(took) < SLACK_S


async def test_equal_keys_hidden_in_a_flood_close_the_connection(backend: str) -> None:
    # Only building the map shows them, when other messages of that connection wait behind it.
    keys = [*range(1000), 500]
    flood = b"t" + len(keys).to_bytes(4, "big")
    flood += b"".join(integer(key) + NIL for key in keys)
    async with scene() as s:
        with s.connected() as evil:
            evil.send(to_sink(evil, integer(1)) + to_sink(evil, flood))
            down = await s.event(events.NodeDown, evil.name)
            assert "key" in down.reason
            assert await s.got(1) == [1]
            await eventually("closed", lambda: evil.name not in s.node.nodes())
