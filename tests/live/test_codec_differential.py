"""A hundred thousand random terms through a real binary_to_term and term_to_binary, per release.

Compared are values (what comes back is =:= what was sent) and acceptance (bytes that were damaged
at random are refused by both sides or by none, and mean the same to both where they are not).
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterator
from typing import IO, Any

import pytest

import peers
from strategies import TermSource, same
from tumen.errors import DecodeError, LimitExceeded
from tumen.terms import Atom, decode, encode

TERMS = 100_000
MUTATED = 60_000
BATCH = 1000

# Reads {packet,4} frames, each a list of binaries, and answers with a list of what became of each.
# Bytes after the term are refused here: binary_to_term/1 overlooks them, we do not.
LOOP = """
Port = open_port({fd, 0, 1}, [binary, {packet, 4}, eof]),
Check = fun(Bytes) ->
    try binary_to_term(Bytes, [used]) of
        {Term, Used} when Used =:= byte_size(Bytes) -> term_to_binary(Term);
        _ -> trailing
    catch _:_ -> refused
    end
end,
Loop = fun Loop() ->
    receive
        {Port, {data, Batch}} ->
            Answers = [Check(Bytes) || Bytes <- binary_to_term(Batch)],
            Port ! {self(), {command, term_to_binary(Answers)}},
            Loop();
        {Port, eof} -> halt(0)
    end
end,
Loop().
"""

FUN_MODULE = b"mod"
FUN_HEAD = b"p\x00\x00\x00\x41"
# Terms in forms that OTP reads and nobody writes: soil for mutations that our own bytes lack.
OLD_FORMS = [
    b"c1.50000000000000000000e+00" + bytes(5),
    b"n\x03\x00\x05\x00\x00",
    b"n\x00\x01",
    b"o\x00\x00\x00\x02\x01\x07\x08",
    b"s\x02ok",
    b"d\x00\x02\xe9a",
    b"v\x00\x02ok",
    b"k\x00\x00",
    b"l\x00\x00\x00\x00w\x01a",
    b"l\x00\x00\x00\x01a\x01l\x00\x00\x00\x01a\x02w\x01a",
    b"M\x00\x00\x00\x01\x03\xbf",
    b"i\x00\x00\x00\x02a\x01j",
    b"gw\x03a@b" + struct.pack(">IIB", 1, 2, 3),
    b"fw\x03a@b" + struct.pack(">IB", 1, 3),
    b"Yw\x03a@b" + struct.pack(">II", 1, 3),
    b"ew\x03a@b" + struct.pack(">IB", 7, 1),
    b"r\x00\x02w\x03a@b" + struct.pack(">BII", 1, 7, 8),
    b"Z\x00\x02w\x03a@b" + struct.pack(">III", 3, 7, 8),
    b"qw\x01aw\x01bb\x00\x00\x01\x2c",
    b"t\x00\x00\x00\x02a\x01jF" + struct.pack(">d", 1.0) + b"j",
    FUN_HEAD + b"\x02" + bytes(16) + struct.pack(">II", 9, 1)
    + b"w\x03" + FUN_MODULE + b"a\x05b\x01\x02\x03\x04Xw\x03a@b" + bytes(12) + b"a\x07",
]  # fmt: skip


class Oracle:
    """One BEAM that does nothing but decode and encode."""

    def __init__(self, runtime: peers.Runtime) -> None:
        self.process = subprocess.Popen(
            runtime.erl_command(["+S", "1:1", "-noshell", "-noinput", "-eval", LOOP]),
            env=runtime.full_env(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def send(self, items: list[bytes]) -> None:
        body = encode(items)
        pipe: IO[bytes] | None = self.process.stdin
        assert pipe is not None
        pipe.write(struct.pack(">I", len(body)) + body)
        pipe.flush()

    def receive(self) -> list[Any]:
        pipe: IO[bytes] | None = self.process.stdout
        assert pipe is not None
        head = pipe.read(4)
        assert len(head) == 4, f"the BEAM died: {self.process.wait()}"
        answers = decode(pipe.read(struct.unpack(">I", head)[0]))
        assert isinstance(answers, list)
        return answers

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def oracle(otp: peers.Runtime) -> Iterator[Oracle]:
    made = Oracle(otp)
    yield made
    made.close()


def source(otp: peers.Runtime, seed: int) -> TermSource:
    return TermSource(seed, negative_zero=int(otp.release) >= 27)


def test_random_terms_come_back_identical(otp: peers.Runtime, oracle: Oracle) -> None:
    terms = source(otp, 1)
    waiting: list[Any] = []
    for start in range(0, TERMS + BATCH, BATCH):
        # The next batch is made while the BEAM works on the last one.
        made = [terms.term() for _ in range(BATCH)] if start < TERMS else []
        data = [encode(term) for term in made]
        if waiting:
            check_identical(waiting, oracle.receive())
        if made:
            oracle.send(data)
        waiting = made


def check_identical(sent: list[Any], answers: list[Any]) -> None:
    assert len(sent) == len(answers)
    for term, answer in zip(sent, answers, strict=True):
        assert isinstance(answer, bytes), f"{answer}: {term!r} as {encode(term).hex()}"
        assert same(decode(answer), term), f"{term!r} came back as {answer.hex()}"


def mutated(terms: TermSource) -> bytes:
    """A term with some bytes changed, cut out, doubled or inserted."""
    rng = terms.rng
    old = rng.random() < 0.3
    data = bytearray(b"\x83" + rng.choice(OLD_FORMS) if old else encode(terms.term(3)))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(1, len(data) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            del data[at : at + rng.randrange(1, 4)]
        elif kind == 1:
            data[at:at] = rng.randbytes(rng.randrange(1, 3))
        elif kind == 2:
            data[at:at] = rng.choice(OLD_FORMS)
        elif at < len(data):
            data[at] = rng.choice((rng.randrange(256), rng.randrange(65, 122), data[at] ^ 1, 0))
    return bytes(data)


def outcome(data: bytes) -> Any:
    """What decode makes of it, or the reason why not."""
    try:
        return [decode(data)]
    except (DecodeError, LimitExceeded) as error:
        return error


def comparable(data: bytes, ours: Any) -> bool:
    """What may be sent, and is judged by the same rules.

    An empty BIT_BINARY_EXT ends the OTP 28 VM, and compressed bytes could hide one. Tags 73 to 76
    are OTP's own business: it takes an index into its atom table from there, or an address. The
    Size field of a fun is compared with the bytes that are left by OTP; since some releases send a
    wrong one, not by us. Of a reference without words OTP reads a word all the same.
    """
    if any(part in data for part in (b"M\x00\x00\x00\x00", b"Z\x00\x00", b"r\x00\x00")):
        return False
    if data[1:2] == b"P":
        return False
    if not isinstance(ours, list) and set(data[ours.offset :]) & set(b"IJKL"):
        return False
    return FUN_MODULE not in data or FUN_HEAD in data


def test_mutated_terms_are_accepted_by_both_or_by_none(otp: peers.Runtime, oracle: Oracle) -> None:
    terms = source(otp, 2)
    accepted = 0
    waiting: list[tuple[bytes, Any]] = []
    for start in range(0, MUTATED + BATCH, BATCH):
        made = [mutated(terms) for _ in range(BATCH)] if start < MUTATED else []
        batch = [(data, ours) for data in made if comparable(data, ours := outcome(data))]
        if waiting:
            accepted += check_outcomes(waiting, oracle.receive())
        if batch:
            oracle.send([data for data, _ in batch])
        waiting = batch
    assert accepted > MUTATED / 10, "the mutations leave something to compare"


def check_outcomes(sent: list[tuple[bytes, Any]], answers: list[Any]) -> int:
    """How many both sides have accepted."""
    accepted = 0
    for (data, ours), answer in zip(sent, answers, strict=True):
        if isinstance(answer, Atom):
            assert not isinstance(ours, list), f"OTP: {answer}, we: {ours[0]!r} of {data.hex()}"
            continue
        assert isinstance(ours, list), f"OTP accepts, we: {ours} in {data.hex()}"
        accepted += 1
        # A BEAM keeps the fields of the first fun that it meets of a module and number.
        if FUN_MODULE not in data:
            assert same(decode(answer), ours[0]), f"{ours[0]!r}, OTP: {answer.hex()}: {data.hex()}"
    return accepted
