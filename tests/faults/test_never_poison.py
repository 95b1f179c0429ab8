"""Whatever is asked of us, nothing goes out that harms a peer: terms, operations, and both over
reconnects of a peer that comes back as another incarnation."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faults.evil import FLAGS, Evil, framed, integer, pid, reference, tuple_of
from faults.wire import (
    ALTACT_SIG,
    FRAGMENTS,
    HDR_ATOM_CACHE,
    Identifier,
    Poison,
    Reader,
    check_term,
)
from nodes import COOKIE, HOST
from strategies import atoms, bit_strings, nodes, terms
from tumen import lowlevel
from tumen.errors import EncodeError, TumenError
from tumen.terms import Atom, BitString, Export, Pid, Port, Reference, TermMap, decode, encode

# -- the reader itself ----------------------------------------------------------------------------

POISON = {
    "nan": b"F\x7f\xf8" + bytes(6),
    "infinity": b"F\xff\xf0" + bytes(6),
    "empty_bit_string": b"M\0\0\0\0\1",
    "bit_string_of_8_bits": b"M\0\0\0\1\x08\xff",
    "compressed": b"\x50\0\0\0\2abc",
    "local": b"yabc",
    "version": b"\x83a\1",
    "key_twice": b"t\0\0\0\2a\1ja\1j",
    "cut": b"h\2a\1",
    "too_much": b"a\1a\2",
    "cache": b"R\0",
    "old_atom": b"d\0\1a",
    "atom_of_256": b"v\1\0" + b"a" * 256,
    "reference_of_6_words": b"Z\0\6w\1a" + bytes(28),
    "their_pid_too_large": b"Xw\3a@b\x10\0\0\0" + bytes(8),
    "their_reference_too_large": b"Z\0\1w\3a@b\0\0\0\1\0\4\0\0",
}


@pytest.mark.parametrize("what", POISON)
def test_reader_knows_poison(what: str) -> None:
    for data in (POISON[what], b"h\2j" + POISON[what], b"l\0\0\0\1" + POISON[what] + b"j"):
        with pytest.raises(Poison):
            check_term(data, "a@b")


SELF, THEM = ("a@b", 7), ("c@d", 9)


def pid_of(whose: tuple[str, int], creation: int | None = None) -> bytes:
    name, current = whose
    node = b"w" + bytes([len(name)]) + name.encode()
    return b"X" + node + struct.pack(">III", 1, 0, current if creation is None else creation)


BAD_OPERATIONS = {
    "unlink_4": b"h\3a\4" + pid_of(SELF) + pid_of(THEM),
    "unknown": b"h\3a\x63" + pid_of(SELF) + pid_of(THEM),
    "exit_to_the_dead": b"h\3a\x18" + pid_of(SELF) + pid_of(THEM, 8) + b"\x83a\1",
    "unlink_to_the_dead": b"h\4a\x23a\1" + pid_of(SELF) + pid_of(THEM, 8),
    "unlink_id_0": b"h\4a\x23a\0" + pid_of(SELF) + pid_of(THEM),
    "link_of_others": b"h\3a\1" + pid_of(THEM) + pid_of(THEM),
    "link_of_our_dead": b"h\3a\1" + pid_of(SELF, 6) + pid_of(THEM),
    "send_to_an_atom": b"h\3a\x16" + pid_of(SELF) + b"w\1a\x83a\1",
    "no_payload": b"h\3a\x16" + pid_of(SELF) + pid_of(THEM),
    "altact_unasked": b"h\4a\x25a\0" + pid_of(SELF) + pid_of(THEM) + b"\x83a\1",
    "one_too_many": b"h\4a\1" + pid_of(SELF) + pid_of(THEM) + b"j",
}


@pytest.mark.parametrize("what", BAD_OPERATIONS)
def test_reader_knows_bad_operations(what: str) -> None:
    reader = Reader(FLAGS, SELF, THEM)
    good = b"h\3a\1" + pid_of(SELF) + pid_of(THEM)
    assert reader.frame(b"\x70\x83" + good) is not None
    with pytest.raises(Poison):
        reader.frame(b"\x70\x83" + BAD_OPERATIONS[what])


def test_reader_knows_bad_fragments() -> None:
    control = b"h\3a\x16" + pid_of(SELF) + pid_of(THEM)

    def reader(*frames: bytes) -> None:
        it = Reader(FLAGS | FRAGMENTS, SELF, THEM)
        for frame in frames:
            it.frame(frame)

    def part(tag: int, sequence: int, number: int, data: bytes) -> bytes:
        header = b"\0" if tag == 69 else b""
        return struct.pack(">BBQQ", 131, tag, sequence, number) + header + data

    reader(part(69, 1, 2, control), part(70, 1, 1, b"a\1"))
    for bad in (
        [part(69, 0, 2, control)],
        [part(69, 1, 2, control[:-1])],
        [part(69, 1, 3, control), part(70, 1, 1, b"a\1")],
        [part(69, 1, 2, control)] * 2,
        [part(70, 1, 1, b"a\1")],
        [b"\x70\x83" + control + b"\x83a\1"],
        [b"\x83D\1\7\0" + control + b"a\1"],
    ):
        with pytest.raises(Poison):
            reader(*bad)


# -- terms ----------------------------------------------------------------------------------------

# What somebody may hand to us, good or not.
wild = st.one_of(
    terms,
    st.floats(),
    st.builds(BitString, st.binary(max_size=3), st.integers(0, 9)),
    st.builds(Reference, nodes, st.integers(0, 2**32), st.lists(st.integers(0, 2**32), max_size=7)),
    st.builds(Pid, nodes, *[st.integers(-1, 2**32)] * 3),
    st.builds(Port, nodes, st.integers(-1, 2**64), st.integers(0, 2**32)),
    st.builds(Export, st.text(max_size=3), st.text(max_size=3), st.integers(-1, 256)),
    st.text(max_size=300),
    st.text(max_size=300).map(Atom),
)


@st.composite
def wild_terms(draw: st.DrawFn) -> Any:
    """A term with something wild somewhere inside; None where it cannot even be made."""
    inside = None
    with contextlib.suppress(ValueError, OverflowError, TypeError, TumenError):
        inside = draw(wild)
    shape = draw(st.integers(0, 4))
    outside = draw(terms)
    return [inside, [inside, outside], (outside, inside), {7: inside}, TermMap([([], inside)])][
        shape
    ]


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(wild_terms())
def test_encoder_makes_no_poison(term: Any) -> None:
    try:
        data = encode(term)
    except (EncodeError, ValueError, TypeError):
        return
    assert data[0] == 131
    check_term(data[1:])


@given(bit_strings)
def test_bit_string_that_came_in_goes_out_well_formed(bits: BitString) -> None:
    check_term(encode(decode(encode(bits)))[1:])


# What we read may be in forms that we may not write.
@pytest.mark.parametrize(
    "data",
    [
        b"M\0\0\0\1\x08\xff",
        b"M\0\0\0\1\3\xff",
        b"M\0\0\0\0\0",
        b"gd\0\1a\0\0\0\1\0\0\0\0\1",
        b"r\0\1d\0\1a\1\0\0\0\1",
        b"fd\0\1a\0\0\0\1\1",
        b"d\0\2\xe9a",
        b"s\2\xe9a",
        b"c" + b"1.00000000000000000000e+00".ljust(31, b"\0"),
        b"k\0\0",
        b"l\0\0\0\0j",
        b"n\0\0",
        b"n\2\1\0\0",
        b"o\0\0\0\1\0\1",
        b"P\0\0\0\2x\x9cKd\x04\0\0\xc4\0b",
    ],
)
def test_odd_form_of_a_term_is_not_passed_on(data: bytes) -> None:
    try:
        term = decode(b"\x83" + data)
    except (ValueError, TumenError):
        return
    check_term(encode(term)[1:])
    check_term(encode([term, {1: term}])[1:])


# -- operations -----------------------------------------------------------------------------------

NAMES = ["sink", "nobody", "é", "a b"]


class Wire:
    """A node of ours and a peer that writes down what it gets, connection after connection."""

    def __init__(self, extra_flags: int) -> None:
        self.engine = lowlevel.Engine(driver="thread")
        self.numbers = itertools.count(1)
        self.node = lowlevel.CoreNode(self.engine, f"own@{HOST}", COOKIE, epmd_mode=2)
        self.flags = FLAGS | extra_flags
        self.server = socket.create_server((HOST, 0))
        self.seen: dict[int, int] = {}

    def close(self) -> None:
        self.server.close()
        self.node.close()
        self.engine.close()

    def session(self, operations: list[Any]) -> None:
        """One peer: it comes up among the operations, comes back as another one, and so on."""
        peer = Peer(self, f"evil{next(self.numbers)}@{HOST}")
        try:
            for kind, *arguments in operations:
                with contextlib.suppress(TumenError, LookupError):
                    getattr(peer, kind)(*arguments)
            peer.up()
            peer.read()
            # All that is left ends, which says goodbye to whoever knew it.
            for key in peer.keys:
                self.node.exit(key, Atom("over"))
            peer.read()
            self.node.exit(peer.marker, Atom("over"))
        finally:
            peer.down()


class Peer:
    def __init__(self, wire: Wire, name: str) -> None:
        self.wire, self.node, self.name = wire, wire.node, name
        self.evil: Evil | None = None
        self.reader: Reader | None = None
        self.keys = [self.node.spawn() for _ in range(3)]
        self.marker = self.node.spawn()
        self.creations = [5, 6]
        self.refs: list[tuple[int, Reference]] = []
        self.theirs = itertools.count(1)

    # -- the peer

    def up(self) -> None:
        """It is connected to: what was queued goes out first."""
        if self.evil is not None:
            return
        evil = Evil(self.name, cookie=COOKIE, flags=self.wire.flags)
        evil.creation = self.creations[-1]
        # An attempt from before the address was known may be about to fail.
        self.begin()
        while not select.select([self.wire.server], [], [], 0.02)[0]:
            self.begin()
        evil.accept(self.wire.server).shake_back()
        flags = self.wire.flags & evil.peer_flags
        ours = (self.node.info()["name"], self.node.info()["creation"])
        self.reader = Reader(flags, ours, (self.name, evil.creation))
        self.evil = evil

    def begin(self) -> None:
        """We start to connect; nothing answers yet."""
        self.node.connect(self.name, HOST, self.wire.server.getsockname()[1])

    def down(self) -> None:
        """It goes, and the next one of that name is another node."""
        if self.evil is None:
            return
        self.evil.close()
        self.evil = None
        self.creations.append(self.creations[-1] + 1)
        while any(entry["name"] == self.name for entry in self.node.connections()):
            continue

    def read(self) -> None:
        """Everything that is on its way: none of it is poison."""
        if self.evil is None or self.reader is None:
            return
        mark = next(self.theirs)
        self.node.send(self.marker, ("mark", self.name), mark)
        self.node.flush()
        while True:
            got = self.reader.frame(self.evil.frame())
            if got is not None and got[0] in (6, 37) and got[1][-1] == mark:
                break
        for number, count in self.reader.seen.items():
            self.wire.seen[number] = self.wire.seen.get(number, 0) + count
        self.reader.seen.clear()
        self.node.take()

    # -- ours

    def their_pid(self, age: int, number: int) -> Pid:
        """A pid of this incarnation or of one before it; at times one that nobody can have."""
        return Pid(self.name, number, 0, self.creations[max(-age - 1, -len(self.creations))])

    def send(self, who: int, age: int, number: int, payload: Any) -> None:
        self.node.send(self.keys[who], self.their_pid(age, number), payload)

    def send_name(self, who: int, name: str, payload: Any) -> None:
        self.node.send(self.keys[who], (name, self.name), payload)

    def send_alias(self, who: int, age: int, word: int, payload: Any) -> None:
        creation = self.their_pid(age, 1).creation
        self.node.send(self.keys[who], Reference(self.name, creation, [word, 1, 2]), payload)

    def send_large(self, who: int, size: int) -> None:
        self.node.send(self.keys[who], ("sink", self.name), bytes(size))

    def monitor(self, who: int, age: int, number: int) -> None:
        ref = self.node.monitor(self.keys[who], self.their_pid(age, number))
        self.refs.append((self.keys[who], ref))

    def monitor_name(self, who: int, name: str) -> None:
        ref = self.node.monitor(self.keys[who], (name, self.name), alias=True)
        self.refs.append((self.keys[who], ref))

    def demonitor(self, which: int) -> None:
        self.node.demonitor(*self.refs[which])

    def link(self, who: int, age: int, number: int) -> None:
        self.node.link(self.keys[who], self.their_pid(age, number))

    def unlink(self, who: int, age: int, number: int) -> None:
        self.node.unlink(self.keys[who], self.their_pid(age, number))

    def exit(self, who: int, age: int, number: int, reason: Any) -> None:
        self.node.exit_signal(self.keys[who], self.their_pid(age, number), reason)

    def die(self, who: int, reason: Any) -> None:
        """One of ours ends; another takes its place."""
        self.node.exit(self.keys[who], reason)
        self.keys[who] = self.node.spawn()

    def request(self, who: int, args: list[Any]) -> None:
        self.node.spawn_request(self.keys[who], self.name, "erpc", "execute_call", args)

    # -- what the peer does to us

    def they_link(self, who: int) -> None:
        self._say(1, self.evil_pid(), self.our_pid(who))

    def they_monitor(self, who: int) -> None:
        theirs = self.evil_pid()
        ref = reference(self.name, self.creations[-1], next(self.theirs), 1, 2)
        self._say(19, theirs, self.our_pid(who), ref)

    def they_unlink(self, who: int, identity: int) -> None:
        self._say(35, integer(identity), self.evil_pid(), self.our_pid(who))

    def evil_pid(self) -> bytes:
        if self.evil is None:
            raise LookupError("down")
        return self.evil.pid(1)

    def our_pid(self, who: int) -> bytes:
        ours = self.node.pid(self.keys[who])
        return pid(ours.node, ours.id, ours.serial, ours.creation)

    def _say(self, number: int, *elements: bytes) -> None:
        if self.evil is None or self.reader is None:
            raise LookupError("down")
        control = tuple_of(integer(number), *elements)
        header = self.reader.flags & (FRAGMENTS | HDR_ATOM_CACHE)
        self.evil.send(framed((b"\x83D\0" if header else b"\x70\x83") + control))


who = st.integers(0, 2)
age = st.integers(0, 2)
number = st.sampled_from([1, 2, 3, (1 << 28) - 1, 1 << 28, (1 << 32) - 1])
small = st.one_of(atoms, st.binary(max_size=20), st.integers(), st.just(()))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("up")),
        st.tuples(st.just("down")),
        st.tuples(st.just("begin")),
        st.tuples(st.just("read")),
        st.tuples(st.just("send"), who, age, number, small),
        st.tuples(st.just("send_name"), who, st.sampled_from(NAMES), small),
        st.tuples(st.just("send_alias"), who, age, st.sampled_from([1, 1 << 18]), small),
        st.tuples(st.just("send_large"), who, st.sampled_from([40_000, 70_000, 300_000])),
        st.tuples(st.just("monitor"), who, age, number),
        st.tuples(st.just("monitor_name"), who, st.sampled_from(NAMES)),
        st.tuples(st.just("demonitor"), st.integers(0, 5)),
        st.tuples(st.just("link"), who, age, number),
        st.tuples(st.just("unlink"), who, age, number),
        st.tuples(st.just("exit"), who, age, number, small),
        st.tuples(st.just("die"), who, small),
        st.tuples(st.just("request"), who, st.lists(small, max_size=3)),
        st.tuples(st.just("they_link"), who),
        st.tuples(st.just("they_monitor"), who),
        st.tuples(st.just("they_unlink"), who, st.sampled_from([1, 1 << 40, (1 << 64) - 1])),
    ),
    max_size=25,
)


# Each of them once, towards a peer that is there: what chance leaves out is not left out.
EACH: list[Any] = [
    ("up",),
    ("send", 0, 0, 1, ()),
    ("send_name", 0, NAMES[0], ()),
    ("monitor", 0, 0, 1),
    ("demonitor", 0),
    ("link", 0, 0, 1),
    ("link", 1, 0, 2),
    ("they_link", 2),
    ("exit", 0, 0, 3, ()),
    ("request", 0, []),
    ("read",),
    ("die", 1, ()),
]


@contextlib.contextmanager
def wire(extra_flags: int) -> Iterator[Wire]:
    it = Wire(extra_flags)
    try:
        yield it
    finally:
        it.close()


@pytest.mark.parametrize("extra_flags", [0, FRAGMENTS | HDR_ATOM_CACHE, ALTACT_SIG | FRAGMENTS])
def test_no_operation_is_poison(extra_flags: int) -> None:
    with wire(extra_flags) as it:

        @settings(
            max_examples=150,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(operations)
        def run(given_operations: list[Any]) -> None:
            it.session(given_operations)

        it.session(EACH)
        run()
        # It was not silence that passed.
        assert {1, 6, 19, 20, 22, 26, 29} <= it.seen.keys()
        assert it.seen.keys() & {24, 3}


def test_identifiers_are_what_the_reader_takes_them_for() -> None:
    mine = Pid("a@b", 1, 2, 3)
    reader = Reader(FLAGS, ("a@b", 3), THEM)
    link = b"h\3a\1" + encode(mine)[1:] + pid_of(THEM)
    _, elements = reader.frame(b"\x70\x83" + link) or (0, [])
    assert elements[0] == Identifier("pid", "a@b", 3, (1, 2))
