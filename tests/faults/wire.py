"""A strict reader of what we send: it takes nothing that could harm a BEAM.

What OTP answers by closing the connection, or by crashing, is `Poison` here (protocol.md 4.6
and 8), also where OTP itself is lenient. It shares no line with tumen.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Final

# What OTP keeps of its own identifiers: a larger one that claims to be its own ends the connection.
# OTP 25 keeps less (tests/live/test_identifiers.py), and nothing tells it from later releases.
OWN_ID_MAX: Final = (1 << 28) - 1
OWN_WORD_MAX: Final = (1 << 18) - 1
HDR_ATOM_CACHE, FRAGMENTS, ALTACT_SIG = 1 << 13, 1 << 23, 1 << 37
PRIO, TOKEN, ALIAS, NAME, EXIT = 1, 2, 4, 8, 16
# A message with priority may not come in fragments (erlang/otp issue 11416).
PRIO_BYTES_MAX: Final = 32 * 1024
FRAGMENT_BYTES_MAX: Final = 64 * 1024

# The kinds of the elements after the number; "?" is any term. Each operation once.
OPERATIONS: Final = {
    1: ("own", "pid"),
    2: ("cookie", "pid"),
    3: ("own", "pid", "?"),
    6: ("own", "cookie", "atom"),
    7: ("pid", "pid"),
    8: ("own", "pid", "?"),
    12: ("cookie", "pid", "?"),
    13: ("own", "pid", "?", "?"),
    16: ("own", "cookie", "atom", "?"),
    18: ("own", "pid", "?", "?"),
    19: ("own", "pid atom", "own ref"),
    20: ("own", "pid atom", "own ref"),
    21: ("own atom", "pid", "ref", "?"),
    22: ("own", "pid"),
    23: ("own", "pid", "?"),
    24: ("own", "pid"),
    25: ("own", "pid", "?"),
    26: ("own", "pid"),
    27: ("own", "pid", "?"),
    28: ("own atom", "pid", "ref"),
    29: ("own ref", "own", "pid", "mfa", "list"),
    30: ("own ref", "own", "pid", "mfa", "list", "?"),
    31: ("ref", "pid", "flags", "own atom"),
    32: ("ref", "pid", "flags", "own atom", "?"),
    33: ("own", "ref"),
    34: ("own", "ref", "?"),
    35: ("id", "own", "pid"),
    36: ("id", "own", "pid"),
}
PAYLOAD: Final = {2, 6, 12, 16, 22, 23, 24, 25, 26, 27, 28, 29, 30, 33, 34, 37}
# To a pid of an earlier incarnation these end the connection.
CURRENT_ONLY: Final = {3, 13, 24, 25, 35}


class Poison(AssertionError):
    """We have sent what no peer may be sent."""


@dataclass(frozen=True)
class Identifier:
    kind: str
    node: str
    creation: int
    words: tuple[int, ...]


@dataclass
class Terms:
    """Reads terms from bytes. peer: the node that gets them, whose own identifiers are bounded."""

    data: bytes
    at: int = 0
    peer: str | None = None
    atoms: list[str] = field(default_factory=list)

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise Poison(f"cut at {self.at}: {self.data[-20:]!r}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form: str) -> int:
        return int(struct.unpack(">" + form, self.take(struct.calcsize(">" + form)))[0])

    def atom(self) -> str:
        tag = self.number("B")
        if tag == 82:
            index = self.number("B")
            if index >= len(self.atoms):
                raise Poison(f"atom {index} of the header, which has {len(self.atoms)}")
            return self.atoms[index]
        if tag not in (118, 119):
            raise Poison(f"tag {tag} where an atom should be")
        try:
            text = self.take(self.number("H" if tag == 118 else "B")).decode()
        except UnicodeDecodeError:
            raise Poison("an atom that is no UTF-8") from None
        if len(text) > 255:
            raise Poison(f"an atom of {len(text)} characters")
        return text

    def identifier(self, tag: int) -> Identifier:
        count = self.number("H") if tag == 90 else 0
        node = self.atom()
        if tag == 90:
            creation = self.number("I")
            if count > 5:  # OTP tolerates 0
                raise Poison(f"a reference of {count} words")
            words = tuple(self.number("I") for _ in range(count))
            bad = node == self.peer and words[:1] > (OWN_WORD_MAX,)
        else:
            words = tuple(self.number(form) for form in {88: "II", 89: "I", 120: "Q"}[tag])
            creation = self.number("I")
            bad = tag == 88 and node == self.peer and words[0] > OWN_ID_MAX
        if bad:
            raise Poison(f"an identifier that the peer cannot have made: {words}")
        return Identifier({88: "pid", 90: "ref"}.get(tag, "port"), node, creation, words)

    def skip(self, count: int) -> None:
        for _ in range(count):
            self.term()

    def term(self) -> object:
        """One term; what matters of it: Identifier, int, or an atom as ("atom", text)."""
        tag = self.data[self.at] if self.at < len(self.data) else -1
        if tag in (82, 118, 119):
            return ("atom", self.atom())
        self.take(1)
        match tag:
            case 97:
                return self.number("B")
            case 98:
                return self.number("i")
            case 110 | 111:
                size = self.number("B" if tag == 110 else "I")
                sign = self.number("B")
                value = int.from_bytes(self.take(size), "little")
                return -value if sign else value
            case 70:
                if not math.isfinite(struct.unpack(">d", self.take(8))[0]):
                    raise Poison("a float that is no number")
            case 104 | 105:
                self.skip(self.number("B" if tag == 104 else "I"))
            case 106:
                return "list"
            case 107:
                if not self.take(self.number("H")):
                    raise Poison("an empty string")
                return "list"
            case 108:
                self.skip(self.number("I"))
                return "list" if self.term() == "list" else None
            case 109:
                self.take(self.number("I"))
            case 77:
                size, bits = self.number("I"), self.number("B")
                if size == 0:
                    raise Poison("a bit string without a byte: OTP 28 dies of it")
                if not 1 <= bits <= 7:
                    raise Poison(f"a bit string with {bits} bits in its last byte")
                if self.take(size)[-1] & ((1 << (8 - bits)) - 1):
                    raise Poison("a bit string with bits behind its end")
            case 116:
                self.map(self.number("I"))
            case 88 | 89 | 90 | 120:
                return self.identifier(tag)
            case 113:
                self.atom(), self.atom()
                arity = self.term()
                if not isinstance(arity, int) or not 0 <= arity < 1 << 59:  # a small integer
                    raise Poison(f"an export of arity {arity}")
            case 112:
                self.fun()
            case 80:
                raise Poison("a compressed term in a frame")
            case 121:
                raise Poison("LOCAL_EXT")
            case 131:
                raise Poison("a version byte in a term")
            case _:
                raise Poison(f"tag {tag}, which no peer knows")
        return None

    def map(self, count: int) -> None:
        keys = set()
        for _ in range(count):
            start = self.at
            self.term()
            keys.add(self.data[start : self.at])
            self.term()
        if len(keys) != count:
            raise Poison("a key twice in a map")

    def fun(self) -> None:
        start = self.at
        size = self.number("I")
        self.take(1 + 16 + 4)
        free = self.number("I")
        self.atom()
        self.skip(2)
        creator = self.term()
        if not isinstance(creator, Identifier) or creator.kind != "pid":
            raise Poison("a fun without its creator")
        self.skip(free)
        if self.at - start != size:
            raise Poison("a fun with a wrong size")


def check_term(data: bytes, peer: str | None = None) -> None:
    """One whole term without its version byte."""
    terms = Terms(data, peer=peer)
    terms.term()
    if terms.at != len(data):
        raise Poison(f"{len(data) - terms.at} bytes behind the term")


class Reader:
    """What one connection carried, frame by frame.

    flags: those that both ends have; ours, peer: (name, creation) of the sender and of the peer.
    """

    def __init__(self, flags: int, ours: tuple[str, int], peer: tuple[str, int]) -> None:
        self.flags = flags
        self.ours = ours
        self.peer = peer
        # What of each operation was seen.
        self.seen: dict[int, int] = {}
        self._cache: dict[int, str] = {}
        self._open: dict[int, tuple[int, list[str], bytes]] = {}

    def frame(self, body: bytes) -> tuple[int, list[object]] | None:
        """The operation in a frame and its elements; None for a tick or part of a message."""
        if not body:
            return None
        if not self.flags & (FRAGMENTS | HDR_ATOM_CACHE):
            if body[:2] != b"\x70\x83":
                raise Poison(f"not the form that was agreed on: {body[:4]!r}")
            return self.message(body[2:], [], True)
        if body[0] != 131 or body[1] not in (68, 69, 70):
            raise Poison(f"not the form that was agreed on: {body[:4]!r}")
        if body[1] == 68:
            atoms, rest = self.header(body[2:])
            return self.message(rest, atoms, False)
        return self.fragment(body)

    def fragment(self, body: bytes) -> tuple[int, list[object]] | None:
        sequence, number = struct.unpack_from(">QQ", body, 2)
        rest = body[18:]
        if not self.flags & FRAGMENTS:
            raise Poison("a fragment that was not agreed on")
        if sequence == 0:
            raise Poison("fragments of sequence 0: they kill a BEAM")
        if number == 0:
            raise Poison("a fragment with number 0")
        if body[1] == 69:
            if sequence in self._open:
                raise Poison("a sequence that is open starts again")
            atoms, rest = self.header(rest)
            self.control(Terms(rest, peer=self.peer[0], atoms=atoms))  # is whole in the first one
        else:
            if sequence not in self._open:
                raise Poison("a continuation of no sequence")
            last, atoms, before = self._open.pop(sequence)
            if number != last - 1:
                raise Poison(f"fragment {number} after {last}")
            if len(rest) > FRAGMENT_BYTES_MAX:
                raise Poison(f"a fragment of {len(rest)} bytes")
            rest = before + rest
        if number > 1:
            self._open[sequence] = (number, atoms, rest)
            return None
        return self.message(rest, atoms, False)

    def header(self, data: bytes) -> tuple[list[str], bytes]:
        terms = Terms(data)
        count = terms.number("B")
        if not count:
            return [], data[1:]
        flags = terms.take(count // 2 + 1)
        nibbles = [byte >> shift & 15 for byte in flags for shift in (0, 4)]
        wide = nibbles[count] & 1
        atoms = []
        for nibble in nibbles[:count]:
            slot = (nibble & 7) << 8 | terms.number("B")
            if nibble & 8:
                self._cache[slot] = terms.take(terms.number("H" if wide else "B")).decode()
            if slot not in self._cache:
                raise Poison(f"slot {slot} of the atom cache was never set")
            atoms.append(self._cache[slot])
        return atoms, data[terms.at :]

    def message(self, data: bytes, atoms: list[str], versioned: bool) -> tuple[int, list[object]]:
        terms = Terms(data, peer=self.peer[0], atoms=atoms)
        number, elements = self.control(terms)
        self.seen[number] = self.seen.get(number, 0) + 1
        if number in PAYLOAD:
            if versioned and terms.take(1) != b"\x83":
                raise Poison("no version byte before the payload")
            start = terms.at
            elements.append(terms.term())
            if number == 37 and elements[0] & PRIO and terms.at - start > PRIO_BYTES_MAX:
                raise Poison("a large message with priority")
        if terms.at != len(data):
            raise Poison(f"operation {number}: {len(data) - terms.at} bytes too many")
        return number, elements

    def control(self, terms: Terms) -> tuple[int, list[object]]:
        if terms.number("B") != 104:
            raise Poison("a control message that is no small tuple")
        count = terms.number("B") - 1
        number = terms.term()
        if number == 37:
            return 37, self.altact(terms, count)
        kinds = OPERATIONS.get(number) if isinstance(number, int) else None
        if kinds is None:
            raise Poison(f"operation {number}")
        if count != len(kinds):
            raise Poison(f"operation {number} with {count} elements")
        elements = [self.element(kind, terms, number) for kind in kinds]
        if number in CURRENT_ONLY:
            to = elements[2 if number == 35 else 1]
            if to.creation != self.peer[1]:
                raise Poison(f"operation {number} to a pid of an earlier incarnation")
        return number, elements

    def altact(self, terms: Terms, count: int) -> list[object]:
        if not self.flags & ALTACT_SIG:
            raise Poison("operation 37, which was not agreed on")
        flags = terms.term()
        if not isinstance(flags, int) or flags & ~31 or (flags & ALIAS and flags & NAME):
            raise Poison(f"flags {flags}")
        if count != (4 if flags & TOKEN else 3):
            raise Poison(f"operation 37 with {count} elements and flags {flags}")
        kind = "ref" if flags & ALIAS else "atom" if flags & NAME else "pid"
        elements = [flags, self.element("own", terms, 37), self.element(kind, terms, 37)]
        if flags & TOKEN:
            elements.append(terms.term())
        return elements

    def element(self, kinds: str, terms: Terms, number: int) -> object:
        if kinds == "mfa":
            if terms.take(2) != b"h\3":
                raise Poison("no module, function and arity")
            terms.atom(), terms.atom()
            return terms.term()
        term = terms.term()
        if kinds == "?" or any(self.fits(kind, term) for kind in self.kinds(kinds)):
            return term
        raise Poison(f"operation {number}: {term!r} where {kinds} should be")

    @staticmethod
    def kinds(text: str) -> list[str]:
        return [text] if text == "own ref" else text.split()

    def fits(self, kind: str, term: object) -> bool:
        match kind:
            case "own" | "own ref":
                is_kind = isinstance(term, Identifier) and term.kind == (
                    "pid" if kind == "own" else "ref"
                )
                return is_kind and (term.node, term.creation) == self.ours
            case "pid" | "ref":
                return isinstance(term, Identifier) and term.kind == kind
            case "atom":
                return isinstance(term, tuple) and term[0] == "atom"
            case "cookie":
                return term == ("atom", "")
            case "id":
                return isinstance(term, int) and 1 <= term < 1 << 64
            case "flags":
                return isinstance(term, int) and 0 <= term <= 3
            case "list":
                return term == "list"
        raise AssertionError(kind)
