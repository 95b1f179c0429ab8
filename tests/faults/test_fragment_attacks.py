"""Peers that misuse the atom cache or fragments: only their own connection ends, nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import Any

import pytest

from faults.evil import (
    FLAGS,
    TICK,
    Evil,
    atom,
    binary,
    framed,
    integer,
    tuple_of,
)
from faults.scene import Scene, eventually, scene
from tumen import Atom, Limits, events

pytestmark = pytest.mark.asyncio

HEADER_FLAGS = FLAGS | 1 << 13 | 1 << 23
MIB = 1024 * 1024


# -- frames with a header, written down once more --------------------------------------------------


def listed(*entries: tuple[int, bytes | None]) -> bytes:
    """The list of atoms: slots, with a text where it is new."""
    if not entries:
        return b"\0"
    nibbles = [(8 if text is not None else 0) | slot >> 8 for slot, text in entries] + [0]
    nibbles += [0] * (len(nibbles) % 2)
    flags = bytes(nibbles[i] | nibbles[i + 1] << 4 for i in range(0, len(nibbles), 2))
    texts = [
        bytes([slot & 255]) + (b"" if text is None else bytes([len(text)]) + text)
        for slot, text in entries
    ]
    return bytes([len(entries)]) + flags + b"".join(texts)


def headed(terms: bytes, *entries: tuple[int, bytes | None]) -> bytes:
    return framed(b"\x83D" + listed(*entries) + terms)


def first(sequence: int, count: int, terms: bytes, *entries: tuple[int, bytes | None]) -> bytes:
    return framed(b"\x83E" + struct.pack(">QQ", sequence, count) + listed(*entries) + terms)


def following(sequence: int, number: int, data: bytes) -> bytes:
    return framed(b"\x83F" + struct.pack(">QQ", sequence, number) + data)


def reg_send(evil: Evil, name: str = "sink") -> bytes:
    """The control message alone."""
    return tuple_of(integer(6), evil.pid(1), atom(""), atom(name))


def connected(s: Scene) -> Evil:
    return s.connected(flags=HEADER_FLAGS)


async def ended(s: Scene, evil: Evil, why: str) -> None:
    down = await s.event(events.NodeDown, evil.name)
    assert why in down.reason
    assert evil.closed()


# -- what is legal ---------------------------------------------------------------------------------


async def test_every_legal_way_to_send_in_fragments_arrives() -> None:
    async with scene() as s:
        with connected(s) as evil:
            ctl, text = reg_send(evil), binary(b"x" * 50)
            evil.send(headed(ctl + b"R\0", (2047, b"known")))
            evil.send(first(1, 2, ctl + text[:9]) + following(1, 1, text[9:]))
            evil.send(first(1, 4, ctl))
            evil.send(following(1, 3, b"") + TICK + following(1, 2, text) + following(1, 1, b""))
            evil.send(first(0, 1, ctl + integer(1)))
            # Two at once; what the first one's atom is called changes under way.
            evil.send(first(2**64 - 1, 2, ctl + b"h\2", (7, b"old")) + first(9, 2, ctl))
            evil.send(headed(ctl + b"R\0", (7, b"new")))
            evil.send(following(9, 1, integer(2)) + following(2**64 - 1, 1, b"R\0R\0"))
            assert await s.got(7) == [
                Atom("known"), b"x" * 50, b"x" * 50, 1, Atom("new"), 2, (Atom("old"), Atom("old")),
            ]  # fmt: skip
            (connection,) = [c for c in s.node.connections() if c.name == evil.name]
            assert (connection.reassembly_bytes, connection.atoms) == (0, 2)


async def test_fragments_of_any_size_even_megabytes_or_one_byte() -> None:
    async with scene() as s:
        with connected(s) as evil:
            ctl, text = reg_send(evil), binary(bytes(range(256)) * 12_000)
            evil.send(first(3, 2, ctl + text[:1]) + following(3, 1, text[1:]))
            evil.send(first(3, 300, ctl))
            for n in range(299, 1, -1):
                evil.send(following(3, n, text[299 - n : 300 - n]))
            evil.send(following(3, 1, text[298:]))
            assert await s.got(2) == [text[5:], text[5:]]


# -- what is not -----------------------------------------------------------------------------------

ATOM_FAULTS = {
    "never_set": (lambda ctl: headed(ctl + integer(1), (8, None)), "slot that was never set"),
    "cut_off": (lambda ctl: framed(b"\x83D\5\x88"), "header is cut off"),
    "text_cut_off": (lambda ctl: framed(b"\x83D\1\x08\1\7abc"), "header is cut off"),
    "no_utf8": (lambda ctl: headed(ctl + integer(1), (8, b"\xff")), "not valid UTF-8"),
    "not_listed": (lambda ctl: headed(ctl + b"R\1", (8, b"x")), "does not define"),
    "not_listed_in_control": (lambda ctl: headed(b"h\4a\6R\1R\1R\1" + b"j"), "not a pid"),
    "pass_through": (lambda ctl: framed(b"\x70\x83" + ctl + b"\x83a\1"), "no distribution header"),
    "unknown_form": (lambda ctl: framed(b"\x83G\0" + ctl), "unknown form"),
}

FRAGMENT_FAULTS = {
    "sequence_0": (lambda ctl: first(0, 2, ctl), "number 0"),
    "fragment_0": (lambda ctl: first(5, 0, ctl), "number 0"),
    "not_begun": (lambda ctl: following(5, 1, b"j"), "has not begun"),
    "begun_twice": (lambda ctl: first(5, 2, ctl) * 2, "begun already"),
    "skipped": (lambda ctl: first(5, 4, ctl) + following(5, 2, b"j"), "not the next one"),
    "repeated": (lambda ctl: first(5, 4, ctl) + following(5, 3, b"") * 2, "not the next one"),
    "after_the_last": (
        lambda ctl: first(5, 2, ctl) + following(5, 1, b"j") + following(5, 0, b""),
        "number 0",
    ),
    "control_split": (lambda ctl: first(5, 2, ctl[:-2]) + following(5, 1, b"j"), "malformed"),
    "no_payload": (lambda ctl: first(5, 2, ctl) + following(5, 1, b""), "no payload"),
    "bad_payload": (lambda ctl: first(5, 2, ctl) + following(5, 1, b"h\2j"), "malformed term"),
    "head_cut_off": (lambda ctl: framed(b"\x83E\0\0\0"), "header of a fragment is cut off"),
}


@pytest.mark.parametrize("fault", ATOM_FAULTS | FRAGMENT_FAULTS)
@pytest.mark.sanitizer
async def test_fault_of_a_header_ends_that_connection_with_its_reason(fault: str) -> None:
    build, why = (ATOM_FAULTS | FRAGMENT_FAULTS)[fault]
    async with scene() as s:
        with connected(s) as evil:
            ctl = reg_send(evil)
            evil.send(headed(ctl + integer(1)))
            evil.send(build(ctl) + headed(ctl + integer(2)))
            await ended(s, evil, why)
            assert s.mail[:1] == [1]
            assert 2 not in s.mail


async def test_what_was_not_negotiated_ends_the_connection() -> None:
    async with scene() as s:
        for flags, data, why in [
            (FLAGS | 1 << 13, b"\x83E" + bytes(20), "fragments were not negotiated"),
            (FLAGS | 1 << 23, b"\x83D\1\x08\1\1x", "atom cache was not negotiated"),
            (FLAGS, b"\x83D\0" + b"h\0", "header was not negotiated"),
        ]:
            with s.connected(flags=flags) as evil:
                evil.send(framed(data))
                await ended(s, evil, why)


# -- memory ----------------------------------------------------------------------------------------


def holding(s: Scene, evil: Evil) -> int:
    return sum(c.reassembly_bytes for c in s.node.connections() if c.name == evil.name)


@pytest.mark.sanitizer
async def test_memory_of_unfinished_messages_is_gone_with_the_connection() -> None:
    """The scene's end compares the engine's memory with what it was before."""
    async with scene() as s:
        with connected(s) as evil:
            for sequence in range(1, 101):
                evil.send(first(sequence, 9, reg_send(evil) + binary(bytes(65_000))[:-1]))
            await eventually("a hundred messages", lambda: holding(s, evil) > 6_000_000)
            evil.reset()
            await s.event(events.NodeDown, evil.name)


async def test_promise_of_many_fragments_costs_what_came() -> None:
    async with scene() as s:
        with connected(s) as evil:
            before = s.counters()["bytes"]
            for sequence in range(1, 11):
                evil.send(first(sequence, 2**63, reg_send(evil) + b"m\x7f\xff\xff\xff"))
            await eventually("ten messages", lambda: holding(s, evil) > 0)
            assert s.counters()["bytes"] - before < MIB


async def test_unfinished_messages_over_the_limit_end_the_connection() -> None:
    async with scene(limits=Limits(reassembly_bytes_max=MIB)) as s:
        with connected(s) as evil:
            data = reg_send(evil) + binary(bytes(60_000))
            evil.send(b"".join(first(n, 9, data) for n in range(1, 30)))
            await ended(s, evil, "reassembly_bytes_max")


async def test_too_many_unfinished_messages_end_the_connection() -> None:
    async with scene() as s:
        with connected(s) as evil:
            evil.send(b"".join(first(n, 9, reg_send(evil)) for n in range(1, 4200)))
            await ended(s, evil, "too many unfinished messages")


async def test_message_that_is_not_finished_in_two_tick_times_ends_the_connection() -> None:
    """Ticks and other messages keep the connection, but not the message."""
    async with scene(limits=Limits(tick_time_ms=1000)) as s:
        with connected(s) as evil:
            evil.send(first(1, 2, reg_send(evil)))

            def down() -> list[Any]:
                evil.send(TICK)
                return s.seen(events.NodeDown, evil.name)

            (event,) = await eventually("the end of the connection", down, timeout=8)
            assert "was not finished" in event.reason


async def test_message_over_the_limit_is_refused_when_it_is_whole() -> None:
    async with scene(limits=Limits(message_bytes_max=100_000)) as s:
        with connected(s) as evil:
            ctl, data = reg_send(evil), binary(bytes(120_000))
            evil.send(first(1, 4, ctl) + following(1, 3, data[:60_000]))
            await eventually("half a message", lambda: holding(s, evil) > 60_000)
            evil.send(following(1, 2, data[60_000:]))
            await eventually("the half given back", lambda: holding(s, evil) < 10_000)
            evil.send(following(1, 1, b"tail") + headed(ctl + integer(7)))
            assert await s.got(1) == [7]
            refused = await s.event(events.Refused, evil.name)
            assert refused.size == len(data) + 4
            assert holding(s, evil) == 0


def long_list(slot: int, count: int, number: int) -> bytes:
    """The list of so many new atoms, from a slot on, each of about 1,000 bytes; number: that no two
    lists name the same ones."""
    nibbles = [8 | at >> 8 for at in range(slot, slot + count)] + [1]
    nibbles += [0] * (len(nibbles) % 2)
    flags = bytes(nibbles[i] | nibbles[i + 1] << 4 for i in range(0, len(nibbles), 2))
    tail = "\U0001f600".encode() * 245
    texts = [f"{number:05}{at:05}".encode() + tail for at in range(slot, slot + count)]
    entries = [
        struct.pack(">BH", at & 255, len(text)) + text
        for at, text in zip(range(slot, slot + count), texts, strict=True)
    ]
    return bytes([count]) + flags + b"".join(entries)


async def test_atoms_held_by_unfinished_messages_are_the_fault_of_who_sent_them() -> None:
    """The pool is full of texts that are in no cache any more; another one's cache is larger."""
    async with scene() as s:
        with connected(s) as other, connected(s) as evil:
            for slot, count in ((0, 255), (255, 200)):
                terms = reg_send(other) + integer(slot)
                other.send(framed(b"\x83D" + long_list(slot, count, slot) + terms))
            assert await s.got(2) == [0, 255]

            def fill() -> None:
                for n in range(1, 300):
                    head = b"\x83E" + struct.pack(">QQ", n, 2)
                    evil.send(framed(head + long_list(0, 255, 1000 + n) + reg_send(evil)))

            with contextlib.suppress(OSError):
                await asyncio.to_thread(fill)
            await ended(s, evil, "atom_cache_full")
            other.send(headed(reg_send(other) + integer(3)))
            assert await s.got(3) == [0, 255, 3]
            assert not s.seen(events.NodeDown, other.name)


async def test_atoms_do_not_make_a_message_larger_than_the_limit() -> None:
    """Two bytes on the wire stand for 255 of text."""
    async with scene(limits=Limits(message_bytes_max=10_000)) as s:
        with connected(s) as evil:
            ctl = reg_send(evil)
            few, many = (bytes([104, n]) + b"R\0" * n for n in (38, 40))
            evil.send(headed(ctl + many, (8, b"x" * 255)) + headed(ctl + few, (8, None)))
            assert await s.got(1) == [(Atom("x" * 255),) * 38]
            refused = await s.event(events.Refused, evil.name)
            assert "atoms written out" in refused.reason
