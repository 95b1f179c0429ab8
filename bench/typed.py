"""How fast is ``decode(data, as_=T)`` beside `msgspec.msgpack` decoding into the same class?

msgspec reads MessagePack, not the external term format, and does both steps in C: it is what the
best codec of typed Python data takes for the same values. ``tumen:plain`` is tumen without the
type, for scale. What comes back equals what went out before anything is measured.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from codec import SHARE, Run, TimingStage, timing
from pairs import Question

import tumen


@tumen.struct("Elixir.Bench.Address")
@dataclass(slots=True)
class Address:
    street: str
    city: str
    zip: str | None


@tumen.struct("Elixir.Bench.User")
@dataclass(slots=True)
class User:
    id: int
    name: str
    email: str
    age: int | None
    score: float
    active: bool
    tags: list[str]
    home: Address


@tumen.record("sample")
@dataclass(slots=True)
class Sample:
    at: int
    value: float
    unit: str


def user(number: int) -> User:
    tags = [f"tag{number % 7}", "b", "c"]
    home = Address(f"Main street {number}", "Brno", None if number % 3 else "60200")
    age = None if number % 2 else number % 90
    return User(number, f"Name {number}", f"n{number}@example.com", age, 1.5, True, tags, home)


class Item(NamedTuple):
    says: str
    hint: Any
    value: Any


ITEMS = {
    "user": Item("a user, with a nested struct", User, user(1)),
    "users": Item("1,000 users", list[User], [user(number) for number in range(1000)]),
    "records": Item(
        "1,000 records of 3",
        list[Sample],
        [Sample(10**9 + at, at * 0.5, "ms") for at in range(1000)],
    ),
    "floats": Item("10,000 floats", list[float], [number * 0.5 for number in range(10_000)]),
    "map": Item(
        "a map of 100 texts to lists",
        dict[str, list[int]],
        {f"key {number}": [number, 1000] for number in range(100)},
    ),
}

CONTENDERS = ("tumen", "tumen:plain", "msgspec")


def run_of(name: str, item: Item, direction: str) -> Run | str:
    """The function and its argument; or why it cannot take part."""
    hint = item.hint
    if name == "msgspec":
        try:
            msgpack = importlib.import_module("msgspec.msgpack")
        except ImportError as error:
            return str(error)
        encoder, decoder = msgpack.Encoder(), msgpack.Decoder(hint)
        packed = encoder.encode(item.value)
        assert decoder.decode(packed) == item.value
        runs: tuple[Run, Run] = (encoder.encode, item.value), (decoder.decode, packed)
    else:
        wire = tumen.encode(item.value)
        assert tumen.decode(wire, as_=hint) == item.value
        if name == "tumen":
            runs = (tumen.encode, item.value), (lambda data: tumen.decode(data, as_=hint), wire)
        else:
            runs = (tumen.encode, tumen.decode(wire)), (tumen.decode, wire)
    return runs[direction == "decode"]


class Typed:
    """The group."""

    name = "typed"
    setup_s = 1.0

    def questions(self) -> list[Question]:
        asked = []
        for short, item in ITEMS.items():
            for direction in ("encode", "decode"):

                def plan(name: str, item: Item = item, direction: str = direction) -> Run | str:
                    return run_of(name, item, direction)

                says = f"{direction} with its type: {item.says}"
                name = f"typed_{direction}_{short}"
                asked.append(Question(name, says, CONTENDERS, ("ns",), (), plan, SHARE))
        return asked

    @contextmanager
    def stage(self, questions: Sequence[Question]) -> Iterator[TimingStage]:
        with timing() as stage:
            yield stage
