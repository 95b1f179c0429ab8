"""How fast are encode and decode beside the other codecs that a Python program could use?

Each item is a term. The codecs of the external term format (erlang_py, erldistpy, erlpack) carry
the same term; msgspec.msgpack, orjson and pickle carry equivalent plain data: atoms as texts,
tuples and identifiers as lists, and for JSON binaries as text (base64 where they are none). What a
codec encodes must come back equal before it is measured; one that cannot carry an item is named
with the reason.
"""

from __future__ import annotations

import base64
import gc
import importlib
import math
import pickle
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import machine
from pairs import SEED, Goal, Question, Sample

from tumen import terms
from tumen.errors import DecodeError
from tumen.terms import Atom, ImproperList, Pid, Reference

ENCODE_TIME_MAX, DECODE_TIME_MAX = 1.2, 1.3
# A sample of a codec says enough after this share of the seconds that a message test takes.
SHARE = 0.03


def corpus() -> dict[str, tuple[str, Any]]:
    """By short name: what it is, and the term."""
    rng = random.Random(SEED)
    caller = Pid("client@127.0.0.1", 112, 0, 1_700_000_000)
    ref = Reference("client@127.0.0.1", 1_700_000_000, (70_001, 2_290_089_985, 3_515_947_011))
    nested_map: dict[bytes, Any] = {}
    for i in range(50):
        value: Any = (i, i * 1.5, b"value_%02d" % i, [i, 1000, b"x"], {b"id": i, b"ok": True})[
            i % 5
        ]
        nested_map[b"key_%02d" % i] = value
    deep: Any = []
    for i in range(100):
        deep = [i, deep] if i % 2 else (i, deep)
    request = (Atom("add"), 5)
    return {
        "tuple": ("a tuple of 20 bytes", (Atom("ok"), 12345, b"abc")),
        "map": ("a map of 50 keys, nested", nested_map),
        "ints": ("10,000 ints", [rng.randrange(-(2**31), 2**31) for _ in range(10_000)]),
        "floats": ("10,000 floats", [rng.uniform(-1e6, 1e6) for _ in range(10_000)]),
        "binary": ("a binary of 64 KiB", rng.randbytes(65536)),
        "tuples": (
            "1,000 tuples {atom, int, binary}",
            [(Atom(f"kind_{i % 10}"), i, b"payload %d" % i) for i in range(1000)],
        ),
        "deep": ("nesting 100 deep", deep),
        "gen_call": ("$gen_call, pid and ref", (Atom("$gen_call"), (caller, ref), request)),
        "gen_call_alias": (
            "$gen_call, [alias|ref]",
            (Atom("$gen_call"), (caller, ImproperList([Atom("alias")], ref)), request),
        ),
    }


# -- the codecs ------------------------------------------------------------------------------------


def plain(term: Any, binary: Callable[[bytes], Any]) -> Any:
    """Equivalent data for a format without atoms and identifiers."""
    match term:
        case Atom():
            return term.text
        case Pid():
            return [term.node, term.id, term.serial, term.creation]
        case Reference():
            return [term.node, term.creation, list(term.words)]
        case ImproperList():
            return [*(plain(item, binary) for item in term.items), plain(term.tail, binary)]
        case bytes():
            return binary(term)
        case dict():
            return {plain(key, binary): plain(value, binary) for key, value in term.items()}
        case list() | tuple():
            return [plain(item, binary) for item in term]
    return term


def as_text(data: bytes) -> str:
    """For JSON: as it is where it is text."""
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()


class Codec(NamedTuple):
    """`native`: makes this codec's own object of a term; `same`: whether its bytes carry it."""

    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]
    native: Callable[[Any], Any]
    same: Callable[[Any, bytes], bool]


def codec_of(name: str) -> Codec:
    """ImportError where it is not installed."""
    if name == "tumen":
        return Codec(
            terms.encode,
            terms.decode,
            lambda term: term,
            lambda term, data: terms.decode(data) == term,
        )
    if name in ("msgspec", "orjson", "pickle"):
        encode, decode = plain_codec(name)
        binary = as_text if name == "orjson" else lambda data: data
        return Codec(
            encode,
            decode,
            lambda term: plain(term, binary),
            lambda term, data: decode(data) == plain(term, binary),
        )
    module, coder, decoder = {
        "erlpack": ("erlpack", "pack", "unpack"),
        "erlang_py": ("erlang", "term_to_binary", "binary_to_term"),
        "erldistpy": ("erldistpy.etf", "encode", "decode"),
    }[name]
    loaded = importlib.import_module(module)
    encode, decode = getattr(loaded, coder), getattr(loaded, decoder)

    def same(term: Any, data: bytes) -> bool:
        return terms.encode(terms.decode(data)) == terms.encode(term)

    return Codec(encode, decode, lambda term: decode(terms.encode(term)), same)


def plain_codec(name: str) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
    if name == "msgspec":
        msgpack = importlib.import_module("msgspec.msgpack")
        return msgpack.Encoder().encode, msgpack.Decoder().decode
    if name == "orjson":
        orjson = importlib.import_module("orjson")
        return orjson.dumps, orjson.loads
    return lambda data: pickle.dumps(data, protocol=5), pickle.loads


CONTENDERS = ("tumen", "msgspec", "orjson", "pickle", "erlang_py", "erldistpy", "erlpack")

Run = tuple[Callable[[Any], Any], Any]


def run_of(name: str, term: Any, direction: str) -> Run | str:
    """The function and its argument; or why this codec cannot carry the term without loss."""
    try:
        codec = codec_of(name)
    except (ImportError, AttributeError) as error:
        return str(error)
    try:
        native = codec.native(term)
        data = codec.encode(native)
        back = codec.decode(data)
        if not (codec.same(term, data) and codec.same(term, codec.encode(back))):
            return "its round trip gives another term"
    except DecodeError as error:
        return f"its bytes are malformed: {error}"[:100]
    except Exception as error:  # another's codec: whatever it raises is the answer
        if name == "tumen":
            raise
        return f"{type(error).__name__}: {error}"[:100]
    return (codec.encode, native) if direction == "encode" else (codec.decode, data)


# -- timing ----------------------------------------------------------------------------------------


def seconds_of(run: Run, number: int) -> float:
    """Seconds of this thread's CPU time for so many calls: what others do costs it little."""
    function, argument = run
    calls = range(number)
    start = time.thread_time()
    for _ in calls:
        function(argument)
    return time.thread_time() - start


class TimingStage:
    """Functions of this process, timed in turns: for any group whose plans make a run of a name."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], Run | str] = {}
        self.once: dict[tuple[str, str], float] = {}

    def who(self) -> dict[str, Any]:
        return {}

    def pids(self) -> list[int]:
        return []

    def run(self, question: Question, contender: str) -> Run | str:
        key = question.name, contender
        if key not in self.runs:
            # One question's objects at a time.
            self.runs = {kept: run for kept, run in self.runs.items() if kept[0] == question.name}
            self.runs[key] = question.plan(contender)
        return self.runs[key]

    def cannot(self, question: Question, contender: str) -> str | None:
        run = self.run(question, contender)
        return run if isinstance(run, str) else None

    def play(self, question: Question, contender: str, seconds: float) -> Sample:
        run = self.run(question, contender)
        assert not isinstance(run, str), run
        key = question.name, contender
        if key not in self.once:
            seconds_of(run, 1)
            self.once[key] = seconds_of(run, 3) / 3
        number = max(1, math.ceil(seconds / self.once[key]))
        # What the others left behind is not this one's to clear away.
        gc.collect()
        spent = seconds_of(run, number)
        self.once[key] = spent / number
        return {"count": number, "ns": 1e9 * spent / number}

    def count(self, question: Question, contender: str, seconds: float) -> Sample:
        return {}


@contextmanager
def timing() -> Iterator[TimingStage]:
    """Pinned to one core, with the bench's own objects out of the collector's sight."""
    gc.collect()
    gc.freeze()
    try:
        with machine.Pinned(0):
            yield TimingStage()
    finally:
        gc.unfreeze()


class Codecs:
    """The group."""

    name = "codec"
    setup_s = 1.0

    def questions(self) -> list[Question]:
        asked = []
        for short, (says, term) in corpus().items():
            for direction, at_most in (("encode", ENCODE_TIME_MAX), ("decode", DECODE_TIME_MAX)):

                def plan(name: str, term: Any = term, direction: str = direction) -> Run | str:
                    return run_of(name, term, direction)

                goal = Goal(
                    f"≤ {at_most} × the time of msgspec", "tumen", "ns", ("msgspec",), 1 / at_most
                )
                asked.append(
                    Question(
                        f"{direction}_{short}", f"{direction} {says}", CONTENDERS, ("ns",), (goal,),
                        plan, SHARE,
                    )
                )  # fmt: skip
        return asked

    @contextmanager
    def stage(self, questions: Sequence[Question]) -> Iterator[TimingStage]:
        with timing() as stage:
            yield stage
