"""Control messages with each element dropped, added, retyped or out of range.

The cases are made from csrc/dist/opcode.def: every operation with every element replaced by one
term of each kind. What must happen is written down here, by the letters of that table and
protocol.md 4.6: a case closes its connection with a reason, or it is harmless. Before a bad one
everything is delivered, after it nothing, and the innocent peer of the scene never notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

import tumen
from faults.evil import (
    FLAGS,
    NIL,
    Evil,
    atom,
    binary,
    frame,
    framed,
    improper,
    integer,
    list_of,
    pid,
    reference,
    reg_send,
    tuple_of,
)
from faults.scene import PATIENCE, Scene, scene
from tumen import Limits, events

pytestmark = pytest.mark.asyncio

TABLE = Path(__file__).resolve().parents[2] / "csrc" / "dist" / "opcode.def"
ROW = re.compile(r'^TM_OPCODE\((\w+), (\d+), (\w+), "([^"]*)", ([01])\)', re.MULTILINE)

OTHER = "other@127.0.0.1"


@dataclass(frozen=True)
class Operation:
    name: str
    number: int
    fields: str
    payload: bool


OPERATIONS: Final = [
    Operation(name, int(number), fields, payload == "1")
    for name, number, _, fields, payload in ROW.findall(TABLE.read_text())
]
BY_NAME: Final = {operation.name: operation for operation in OPERATIONS}
# They speak for their sender: one of another node ends the connection.
OWN_SENDER: Final = {
    *("LINK", "UNLINK_ID", "UNLINK_ID_ACK", "MONITOR_P", "DEMONITOR_P"),
    *("SPAWN_REQUEST", "SPAWN_REQUEST_TT"),
}


@dataclass(frozen=True)
class Term:
    """A term of one kind; "" is no term at all."""

    kind: str
    data: bytes
    value: int = 0


@dataclass(frozen=True)
class Case:
    name: str
    control: bytes
    payload: bytes | None
    closes: bool

    def frame(self) -> bytes:
        payload = b"" if self.payload is None else b"\x83" + self.payload
        return framed(b"\x70\x83" + self.control + payload)


class World:
    """The terms of one node and one peer of it."""

    def __init__(self, ours: tumen.Pid, evil: Evil) -> None:
        self.evil = evil
        self.live = pid(ours.node, ours.id, ours.serial, ours.creation)
        self.dead = pid(ours.node, 99_999, 7, ours.creation)
        self.ours = ours
        self.count = 0

    def own_ref(self) -> bytes:
        """A reference of the peer that was in no message before."""
        self.count += 1
        return self.evil.ref(self.count, 1, 2)

    def replacements(self) -> dict[str, Term]:
        ours = self.ours
        name = ours.node
        old_pid = b"g" + atom(name) + struct.pack(">IIB", 99_999, 7, ours.creation & 3)
        seven_words = struct.pack(">BH", 90, 7) + atom(name) + struct.pack(">8I", *range(8))
        return {
            "atom": Term("atom", atom("an_atom")),
            "empty_atom": Term("atom", atom("")),
            "latin1_atom": Term("atom", b"d\0\2\xe9a"),
            "long_atom": Term("atom", b"v\0\xff" + b"a" * 255),
            "too_long_atom": Term("", b"v\1\0" + b"a" * 256),
            "atom_of_bad_utf8": Term("", b"w\2\xc3\x28"),
            "zero": Term("integer", integer(0), 0),
            "one": Term("integer", b"b\0\0\0\1", 1),
            "minus_one": Term("integer", integer(-1), -1),
            "most_32_bits": Term("integer", b"b\x7f\xff\xff\xff", (1 << 31) - 1),
            "most_64_bits": Term("integer", integer((1 << 64) - 1), (1 << 64) - 1),
            "over_64_bits": Term("integer", integer(1 << 64), 1 << 64),
            "less_than_64_bits": Term("integer", integer(-(1 << 64)), -(1 << 64)),
            "huge": Term("integer", integer(1 << 1600), 1 << 1600),
            "float": Term("other", b"F" + struct.pack(">d", 1.0)),
            "nan": Term("", b"F\x7f\xf8" + bytes(6)),
            "binary": Term("other", binary(b"bytes")),
            "bits": Term("other", b"M\0\0\0\1\3\xe0"),
            "string": Term("other", b"k\0\3abc"),
            "nil": Term("other", NIL),
            "list": Term("other", list_of(integer(1), atom("a"))),
            "improper": Term("other", improper(integer(1), atom("a"))),
            "tuple": Term("other", tuple_of(atom("a"), atom("b"))),
            "empty_tuple": Term("other", tuple_of()),
            "map": Term("other", b"t\0\0\0\1" + integer(1) + integer(2)),
            "pid_of_theirs": Term("pid", self.evil.pid(1)),
            "pid_of_ours": Term("pid", self.live),
            "pid_of_ours_with_creation_0": Term("pid", pid(name, 99_999, 7, 0)),
            "pid_of_others": Term("pid", pid(OTHER, 1, 0, 9)),
            "pid_in_old_form": Term("pid", old_pid),
            "atom_past_the_end": Term("", b"v\xff\xff"),
            "pid_without_node": Term("", b"X" + integer(1) + bytes(12)),
            "reference_of_theirs": Term("reference", self.own_ref()),
            "reference_of_ours": Term("reference", reference(name, ours.creation, 1, 2, 3)),
            "reference_of_5_words": Term(
                "reference", reference(self.evil.name, self.evil.creation, 1, 2, 3, 4, 5)
            ),
            "reference_of_7_words": Term("", seven_words),
            "port": Term("other", b"x" + atom(name) + struct.pack(">QI", 1, ours.creation)),
            "export": Term("other", b"q" + atom("m") + atom("f") + integer(1)),
            "version_byte": Term("", b"\x83" + atom("a")),
            "compressed": Term("", b"\x50\0\0\0\3" + zlib.compress(atom("a"))),
            "cache_reference": Term("", b"R\0"),
            "unknown_tag": Term("", b"\xfe\0"),
            "local": Term("", b"y" + bytes(12)),
            "tuple_cut": Term("", b"h\3" + integer(1)),
        }

    def valid(self, operation: Operation) -> list[bytes]:
        """The elements after the number of a message that changes nothing here."""
        mfa = tuple_of(atom("nobody"), atom("knows"), integer(0))
        values = {
            "F": lambda: self.evil.pid(1),
            "T": lambda: self.dead,
            "I": lambda: atom("monitored"),
            "W": lambda: atom("nobody"),
            "N": lambda: atom("swallow"),
            "A": lambda: reference(self.ours.node, self.ours.creation, 9, 9, 9),
            "R": self.own_ref,
            "U": lambda: integer(1 << 40),
            "L": lambda: integer(0),
            "X": lambda: atom("reason"),
            "K": lambda: tuple_of(integer(0), integer(1), integer(2), self.evil.pid(1), integer(3)),
            "G": lambda: self.evil.pid(1),
            "C": lambda: atom(""),
            "M": lambda: mfa,
            "O": lambda: NIL,
            "Y": lambda: atom("notsup"),
            "*": lambda: self.dead,
        }
        return [values[letter]() for letter in operation.fields]

    def case(self, operation: Operation, what: str, elements: list[bytes], closes: bool) -> Case:
        payload = integer(7) if operation.payload else None
        control = tuple_of(integer(operation.number), *elements)
        return Case(f"{operation.name}: {what}", control, payload, closes)


def accepts(operation: Operation, letter: str, name: str, term: Term) -> bool:
    """Whether protocol.md lets an element of that letter be this term."""
    if not term.kind:
        return False
    if letter in "XKCO":
        return True
    if letter in "IWY":
        return term.kind in ("pid", "atom")
    if letter == "F" and operation.name in OWN_SENDER:
        return name == "pid_of_theirs"
    if letter == "U":
        return term.kind == "integer" and 1 <= term.value < 1 << 64
    if letter == "L":
        return term.kind == "integer" and term.value >= 0
    kinds = {"F": "pid", "T": "pid", "G": "pid", "*": "pid", "N": "atom", "A": "reference"}
    return term.kind == kinds.get(letter, "reference" if letter == "R" else None)


def retyped(world: World) -> Iterator[Case]:
    for operation in OPERATIONS:
        for at, letter in enumerate(operation.fields):
            if operation.name == "ALTACT_SIG_SEND" and letter == "L":
                continue  # its flags say what follows: see altact
            for name, term in world.replacements().items():
                if name == "reference_of_ours" and operation.name.startswith("SPAWN_REQUEST"):
                    continue  # until it is served, that is its sender's business
                elements = world.valid(operation)
                elements[at] = term.data
                closes = not accepts(operation, letter, name, term)
                yield world.case(
                    operation, f"element {at + 2} ({letter}) is {name}", elements, closes
                )


def resized(world: World) -> Iterator[Case]:
    for operation in OPERATIONS:
        valid = world.valid(operation)
        grows = operation.name == "ALTACT_SIG_SEND"
        yield world.case(operation, "as it should be", valid, False)
        yield world.case(operation, "one more", [*valid, integer(1)], not grows)
        yield world.case(operation, "ten more", [*valid, *[atom("a")] * 10], not grows)
        yield world.case(operation, "one more, which is cut", [*valid, b"h\3"], True)
        yield world.case(operation, "the number alone", [], True)
        for at in range(len(valid)):
            less = world.valid(operation)
            del less[at]
            yield world.case(operation, f"without element {at + 2}", less, True)
        if len(valid) > 1:
            yield world.case(
                operation, "turned round", valid[::-1], turned_closes(operation, valid)
            )


def turned_closes(operation: Operation, valid: list[bytes]) -> bool:
    """Whether the elements in reverse are of kinds that their places do not take."""

    def kind(data: bytes) -> str:
        return {88: "pid", 119: "atom", 90: "reference", 97: "integer", 110: "integer"}.get(
            data[0], "other"
        )

    for letter, data in zip(operation.fields, valid[::-1], strict=True):
        if letter in "XKCO":
            continue
        wants = {"I": "pid atom", "W": "pid atom", "Y": "pid atom", "N": "atom", "A": "reference"}
        wants |= {"R": "reference", "U": "integer", "L": "integer", "M": ""}
        if kind(data) not in wants.get(letter, "pid").split():
            return True
        if letter == "F" and operation.name in OWN_SENDER:
            return True  # what stands there now is ours
    return False


def spawn_requests(world: World) -> Iterator[Case]:
    operation = BY_NAME["SPAWN_REQUEST"]
    bad = {
        "a tuple of 2": tuple_of(atom("m"), atom("f")),
        "a tuple of 4": tuple_of(atom("m"), atom("f"), integer(0), integer(0)),
        "a list": list_of(atom("m"), atom("f"), integer(0)),
        "a module that is a number": tuple_of(integer(1), atom("f"), integer(0)),
        "a function that is a number": tuple_of(atom("m"), integer(1), integer(0)),
        "an arity that is an atom": tuple_of(atom("m"), atom("f"), atom("a")),
        "an arity over 64 bits": tuple_of(atom("m"), atom("f"), integer(1 << 70)),
    }
    harmless = {
        "an arity below zero": tuple_of(atom("m"), atom("f"), integer(-1)),
        "an arity of 2^40": tuple_of(atom("m"), atom("f"), integer(1 << 40)),
        "names of nothing": tuple_of(atom(""), atom(""), integer(0)),
    }
    for what, mfa in {**bad, **harmless}.items():
        elements = world.valid(operation)
        elements[3] = mfa
        yield world.case(operation, what, elements, what in bad)


def altact(world: World) -> Iterator[Case]:
    """Operation 37: its flags say what stands where."""
    operation = BY_NAME["ALTACT_SIG_SEND"]
    me, to = world.evil.pid(1), world.dead
    alias = reference(world.ours.node, world.ours.creation, 9, 9, 9)
    name, token = atom("nobody"), atom("token")

    def case(what: str, closes: bool, *elements: bytes) -> Case:
        return world.case(operation, what, list(elements), closes)

    yield case("an unknown flag", False, integer(64), me, to)
    yield case("flags over 64 bits", False, integer(1 << 70), me, to)
    yield case("all unknown flags", False, integer(((1 << 200) - 1) & ~31), me, to)
    yield case("flags below zero", True, integer(-1), me, to)
    yield case("flags far below zero", True, integer(-(1 << 70)), me, to)
    for wrong in (atom("a"), NIL, binary(b"1"), b"F" + struct.pack(">d", 1.0), me):
        yield case(f"flags of tag {wrong[0]}", True, wrong, me, to)
    yield case("an alias", False, integer(4), me, alias)
    yield case("a pid where an alias is promised", True, integer(4), me, to)
    yield case("a name where an alias is promised", True, integer(4), me, name)
    yield case("a name", False, integer(8), me, name)
    yield case("a pid where a name is promised", True, integer(8), me, to)
    yield case("an alias where a pid is promised", True, integer(0), me, alias)
    yield case("a token", False, integer(2), me, to, token)
    yield case("no token where one is promised", True, integer(2), me, to)
    yield case("a token and more", False, integer(2), me, to, token, name, NIL)
    yield case("a token that is cut", True, integer(2), me, to, b"h\2")
    yield case("an exit", False, integer(16), me, to)
    yield case("an exit to an alias, with priority", False, integer(21), me, alias)


def numbers(world: World) -> Iterator[Case]:
    """Operations that do not exist, and what is none at all."""
    me, to = world.evil.pid(1), world.dead
    known = {operation.number for operation in OPERATIONS}
    for number in [*range(-1, 40), 255, 256, 1 << 31, (1 << 64) - 1]:
        if number not in known:
            control = tuple_of(integer(number), me, to)
            yield Case(f"operation {number}", control, integer(1), False)
    for what, control in {
        "over 64 bits": tuple_of(integer(1 << 70), me, to),
        "far below zero": tuple_of(integer(-(1 << 70)), me, to),
        "an atom": tuple_of(atom("send"), me, to),
        "a pid": tuple_of(me, me, to),
        "a float": tuple_of(b"F" + struct.pack(">d", 22.0), me, to),
        "an empty tuple": tuple_of(),
        "a list": list_of(integer(22), me, to),
        "a map": b"t\0\0\0\1" + integer(22) + me,
        "a tuple longer than the frame": b"i\0\xff\xff\xff" + integer(22) + me + to,
        "nothing of an unknown operation is a term": tuple_of(integer(99), b"\xfe\0"),
    }.items():
        yield Case(f"operation: {what}", control, integer(1), True)
    large = b"i\0\0\0\3" + b"b\0\0\0\x16" + me + to
    yield Case("operation: a large tuple and a long integer", large, integer(1), False)


def payloads(world: World) -> Iterator[Case]:
    """Payloads that are none. A message's is looked at when somebody is there to get it."""
    bad = {name: term.data for name, term in world.replacements().items() if not term.kind}
    targets = {
        "SEND": [atom(""), world.live],
        "SEND_TT": [atom(""), world.live, NIL],
        "SEND_SENDER": [world.evil.pid(1), world.live],
        "SEND_SENDER_TT": [world.evil.pid(1), world.live, NIL],
        "REG_SEND": [world.evil.pid(1), atom(""), atom("swallow")],
        "REG_SEND_TT": [world.evil.pid(1), atom(""), atom("swallow"), NIL],
        "ALTACT_SIG_SEND": [integer(0), world.evil.pid(1), world.live],
    }
    for operation in OPERATIONS:
        if not operation.payload:
            continue
        elements = targets.get(operation.name, world.valid(operation))
        control = tuple_of(integer(operation.number), *elements)
        yield Case(f"{operation.name}: no payload", control, None, True)
        whole = Case(f"{operation.name}: bytes behind the payload", control, integer(1) * 9, False)
        yield whole
        looked_at = operation.name in targets or "EXIT" in operation.name
        if looked_at:
            for name, data in bad.items():
                yield Case(f"{operation.name}: payload is {name}", control, data, True)
    for name in ("LINK", "MONITOR_P", "UNLINK_ID", "SPAWN_REPLY", "EXIT"):
        operation = BY_NAME[name]
        elements = world.valid(operation)
        control = tuple_of(integer(operation.number), *elements)
        yield Case(f"{name}: a payload that it has not", control, integer(1), False)


GROUPS = {
    "retyped": retyped,
    "resized": resized,
    "spawn_requests": spawn_requests,
    "altact": altact,
    "numbers": numbers,
    "payloads": payloads,
}


def mark(evil: Evil, number: int) -> bytes:
    return reg_send(evil.pid(1), "sink", integer(number))


async def swallow(proc: tumen.Process, ready: asyncio.Event) -> None:
    """Takes whatever signal comes, and lives on."""
    proc.trap_exit = True
    ready.set()
    async for _ in proc:
        pass


@contextlib.asynccontextmanager
async def stage() -> AsyncIterator[tuple[Scene, tumen.Pid]]:
    # The loop may be slow while a thousand connections come and go: no event is to be lost.
    async with scene(limits=Limits(events_count_max=100_000)) as s:
        s.memory_slack = 1 << 20
        ready = asyncio.Event()
        ours = s.node.spawn(swallow, ready, name="swallow")
        await ready.wait()
        yield s, ours


def closing(s: Scene, cases: list[Case], evil: Evil) -> None:
    """Each case has a connection of its own, by the same peer: marked before it and after it."""
    for at, case in enumerate(cases):
        with evil.dial(s.address).shake():
            evil.send(mark(evil, 2 * at) + case.frame() + mark(evil, 2 * at + 1))
            if not evil.closed(5 * PATIENCE):
                raise AssertionError(f"{case.name}: the connection stays")


@pytest.mark.parametrize("group", GROUPS)
async def test_bad_control_message_closes_its_connection_only(backend: str, group: str) -> None:
    async with stage() as (s, ours):
        evil = s.evil()
        cases = [case for case in GROUPS[group](World(ours, evil)) if case.closes]
        assert cases
        await asyncio.to_thread(closing, s, cases, evil)
        await s.until("every nodedown", lambda: len(s.seen(events.NodeDown)) == len(cases), 20)
        for case, down in zip(cases, s.seen(events.NodeDown, evil.name), strict=True):
            assert "malformed" in down.reason, (case.name, down.reason)
        # Everything before was delivered, nothing after.
        assert s.mail == [2 * at for at in range(len(cases))]


@pytest.mark.parametrize("group", GROUPS)
async def test_odd_control_message_is_harmless(backend: str, group: str) -> None:
    async with stage() as (s, ours):
        with s.connected() as evil:
            cases = [case for case in GROUPS[group](World(ours, evil)) if not case.closes]
            if group != "spawn_requests":
                assert len(cases) > 3
            with contextlib.suppress(OSError):
                for at, case in enumerate(cases):
                    evil.send(case.frame() + mark(evil, at))
            with contextlib.suppress(AssertionError):
                await s.got(len(cases), 20)
            downs = [event.reason for event in s.seen(events.NodeDown)]
            got = len(s.mail)
            assert not downs, (cases[got].name, downs)
            assert s.mail == list(range(len(cases)))
            assert evil.name in s.node.nodes()
            assert s.node.whereis("swallow") == ours


async def test_unknown_operations_are_counted(backend: str) -> None:
    async with stage() as (s, ours):
        with s.connected() as evil:
            cases = [case for case in numbers(World(ours, evil)) if case.name[10:].isdecimal()]
            evil.send(b"".join(case.frame() for case in cases) + mark(evil, 0))
            await s.got(1)
            assert s.node.info().operations_unknown == len(cases)


# -- erlang:apply ---------------------------------------------------------------------------------

ML, LATIN1 = atom("Elixir.ML"), b"d\0\2\xe9a"


def list_head(count: int, *elements: bytes) -> bytes:
    """A list with its tail missing, and with whatever elements."""
    return struct.pack(">BI", 108, count) + b"".join(elements)


def export(module: bytes, function: bytes, arity: bytes) -> bytes:
    return b"q" + module + function + arity


# What a request to run erlang:apply may have as its arguments; none names an exposed function.
NO_APPLY = {
    "an atom": (2, ML),
    "an empty list": (2, NIL),
    "a string": (2, b"k\0\2ab"),
    "a list of one": (2, list_head(1, export(ML, atom("f"), integer(0)), NIL)),
    "a list that is cut": (2, list_head(2)),
    "a huge list": (2, struct.pack(">BI", 108, 0xFFFFFFFF)),
    "a number": (2, list_head(2, integer(1), NIL, NIL)),
    "an unknown tag": (2, list_head(2, b"\xff", NIL, NIL)),
    "half a fun": (2, list_head(2, b"q" + ML)),
    "a fun of numbers": (2, list_head(2, export(integer(1), integer(2), integer(0)), NIL, NIL)),
    "a fun of another module": (2, list_head(2, export(LATIN1, LATIN1, integer(0)), NIL, NIL)),
    "an atom of the cache": (2, list_head(2, export(b"R\0", b"R\0", integer(0)), NIL, NIL)),
    "a fun where there is a module": (3, list_head(3, export(ML, atom("f"), integer(0)), NIL, NIL)),
    "numbers": (3, list_head(3, integer(1), integer(2), NIL, NIL)),
    "another function": (3, list_head(3, ML, atom("g"), NIL, NIL)),
    "one argument more": (3, list_head(4, ML, atom("f"), NIL, NIL, NIL)),
    "a fun with four elements": (4, list_head(4, export(ML, atom("f"), integer(0)), NIL)),
}


def apply_request(evil: Evil, number: int, arity: int, arguments: bytes) -> bytes:
    mfa = tuple_of(atom("erlang"), atom("apply"), integer(arity))
    me = evil.pid(1)
    return frame(tuple_of(integer(29), evil.ref(number, 1, 2), me, me, mfa, NIL), arguments)


async def test_apply_of_what_names_no_exposed_function_is_refused(backend: str) -> None:
    async with stage() as (s, _):
        s.node.expose("Elixir.ML", "f", lambda: None)
        with s.connected() as evil:
            for number, (what, (arity, arguments)) in enumerate(NO_APPLY.items(), 1):
                evil.send(apply_request(evil, number, arity, arguments))
                control, _ = await asyncio.to_thread(evil.signal)
                assert (control[0], control[3:]) == (31, (0, "notsup")), what
                assert control[1][3:] == (number, 1, 2), what
            assert s.node.info().operations_refused == len(NO_APPLY)


@pytest.mark.parametrize(
    "arguments",
    [
        list_head(2, export(ML, atom("f"), integer(0))),
        list_head(2, export(ML, atom("f"), atom("a")), NIL, NIL),
        list_head(2, export(ML, atom("f"), integer(0)), NIL, b"\xff"),
    ],
    ids=["cut", "arity", "tail"],
)
async def test_malformed_arguments_of_an_apply_close_the_connection(
    backend: str, arguments: bytes
) -> None:
    async with stage() as (s, _):
        s.node.expose("Elixir.ML", "f", lambda: None)
        with s.connected() as evil:
            evil.send(apply_request(evil, 1, 2, arguments))
            assert await asyncio.to_thread(evil.closed)
            down = await s.event(events.NodeDown, evil.name)
            assert "malformed arguments of a SPAWN_REQUEST" in down.reason


# -- fragments ------------------------------------------------------------------------------------

FRAGMENTS = 1 << 23
# {6, Sender, '', sink} of a sender that is the peer's.
SEQUENCE, ANOTHER = 0xABC, 0xABD


def fragment(first: bool, sequence: int, number: int, data: bytes) -> bytes:
    head = struct.pack(">BBQQ", 131, 69 if first else 70, sequence, number)
    return framed(head + (b"\0" if first else b"") + data)


def bad_fragments(control: bytes) -> dict[str, bytes]:
    whole = control + binary(bytes(100))
    half = len(control) + 20
    start = fragment(True, SEQUENCE, 3, whole[:half])
    return {
        "a continuation without a start": fragment(False, SEQUENCE, 1, whole),
        "a continuation of another sequence": start + fragment(False, ANOTHER, 2, b""),
        "a number is left out": start + fragment(False, SEQUENCE, 1, whole[half:]),
        "a number comes twice": start
        + fragment(False, SEQUENCE, 2, whole[half:])
        + fragment(False, SEQUENCE, 2, b""),
        "a number grows": start + fragment(False, SEQUENCE, 4, whole[half:]),
        "a start comes twice": start * 2,
        "number 0": fragment(True, SEQUENCE, 0, whole),
        "number 0 of a continuation": start + fragment(False, SEQUENCE, 0, b""),
        "the control message is cut": fragment(True, SEQUENCE, 2, control[:-3])
        + fragment(False, SEQUENCE, 1, whole[len(control) - 3 :]),
        "the control message is empty": fragment(True, SEQUENCE, 2, b"")
        + fragment(False, SEQUENCE, 1, whole),
        "the payload is short": start
        + fragment(False, SEQUENCE, 2, b"")
        + fragment(False, SEQUENCE, 1, whole[half:-1]),
        "the payload is no term": fragment(True, SEQUENCE, 2, control)
        + fragment(False, SEQUENCE, 1, b"\xfe\0"),
        "no number": framed(b"\x83E" + bytes(8)),
        "no sequence": framed(b"\x83F" + bytes(3)),
        "no header of atoms": framed(struct.pack(">BBQQ", 131, 69, SEQUENCE, 1)),
        "atoms that were never told": framed(
            struct.pack(">BBQQ", 131, 69, SEQUENCE, 1) + b"\1\0\7" + control + integer(1)
        ),
    }


async def test_bad_fragments_close_their_connection_and_leave_nothing(backend: str) -> None:
    # As long as fragments are not negotiated a fragment header is malformed by itself.
    async with stage() as (s, _):
        names = list(bad_fragments(b""))

        def attack() -> list[str]:
            done = []
            for at, name in enumerate(names):
                with s.connected(flags=FLAGS | FRAGMENTS) as evil:
                    to_sink = tuple_of(integer(6), evil.pid(1), atom(""), atom("sink"))
                    form = b"\x83D\0" if evil.peer_flags & FRAGMENTS else b"\x70\x83"
                    version = b"" if evil.peer_flags & FRAGMENTS else b"\x83"
                    marks = [
                        framed(form + to_sink + version + integer(number))
                        for number in (2 * at, 2 * at + 1)
                    ]
                    evil.send(marks[0] + bad_fragments(to_sink)[name] + marks[1])
                    if not evil.closed(5 * PATIENCE):
                        raise AssertionError(f"{name}: the connection stays")
                    done.append(evil.name)
            return done

        done = await asyncio.to_thread(attack)
        await s.until("every nodedown", lambda: len(s.seen(events.NodeDown)) == len(done), 20)
        reasons = {event.node: event.reason for event in s.seen(events.NodeDown)}
        for name, peer in zip(names, done, strict=True):
            assert "malformed" in reasons[peer] or "fragment" in reasons[peer], (
                name,
                reasons[peer],
            )
        assert s.mail == [2 * at for at in range(len(done))]


# -- what shows late ------------------------------------------------------------------------------


async def test_message_found_bad_after_a_reconnect_does_not_end_the_new_connection(
    backend: str,
) -> None:
    # Two equal keys show when the map is built. Nothing is built before this function waits.
    equal_keys = b"t\0\0\0\2" + (integer(1) + NIL) * 2
    async with stage() as (s, _):
        with s.connected() as evil:
            me = evil.pid(1)
            evil.send(mark(evil, 1) + reg_send(me, "sink", equal_keys) + mark(evil, 2))
            evil.ping()  # the core has read all that
            with s.evil(evil.name) as again:
                again.creation = evil.creation
                again.dial(s.address).shake()
                again.ping()
                again.send(mark(again, 3))
                assert (await s.got(2))[0] == 1
                await s.until("number 3", lambda: 3 in s.mail)
                again.ping()
                assert evil.name in s.node.nodes()
                assert len(s.seen(events.NodeDown, evil.name)) == 1
