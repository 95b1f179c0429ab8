"""How fast is ``decode(data, as_=T)`` beside `msgspec.msgpack` decoding into the same class?

``python bench/bench_typed.py`` runs all interleaved and prints, for each item and direction, the
time of tumen, that of tumen without the type (plain terms), that of msgspec, and the ratio
tumen / msgspec as median and range over the rounds; ``--json`` prints the same for machines.

msgspec reads MessagePack, not the external term format, and does both steps in C: it is what the
best codec of typed Python data takes for the same values. Where it is not installed it is named as
absent. Every measured pair is checked first: what comes back equals what went out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench_codec import ROUNDS, calls_for, seconds_per_call

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
    hint: Any
    value: Any


ITEMS = {
    "user, nested struct": Item(User, user(1)),
    "1,000 users": Item(list[User], [user(number) for number in range(1000)]),
    "1,000 records of 3": Item(
        list[Sample], [Sample(10**9 + at, at * 0.5, "ms") for at in range(1000)]
    ),
    "10,000 floats": Item(list[float], [number * 0.5 for number in range(10_000)]),
    "map of 100 texts to lists": Item(
        dict[str, list[int]], {f"key {number}": [number, 1000] for number in range(100)}
    ),
}

Run = tuple[Callable[[Any], Any], Any]


def runs_of(item: Item) -> dict[str, dict[str, Run]]:
    """By direction and codec: a function and its argument."""
    wire = tumen.encode(item.value)
    hint = item.hint
    assert tumen.decode(wire, as_=hint) == item.value
    decode: dict[str, Run] = {
        "tumen": (lambda data: tumen.decode(data, as_=hint), wire),
        "plain": (tumen.decode, wire),
    }
    encode: dict[str, Run] = {
        "tumen": (tumen.encode, item.value),
        "plain": (tumen.encode, tumen.decode(wire)),
    }
    try:
        msgpack = importlib.import_module("msgspec.msgpack")
    except ImportError:
        return {"decode": decode, "encode": encode}
    encoder, decoder = msgpack.Encoder(), msgpack.Decoder(hint)
    packed = encoder.encode(item.value)
    assert decoder.decode(packed) == item.value
    decode["msgspec"] = (decoder.decode, packed)
    encode["msgspec"] = (encoder.encode, item.value)
    return {"decode": decode, "encode": encode}


def measure(runs: dict[str, Run], rounds: int) -> dict[str, Any]:
    numbers = {name: calls_for(*run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(1e9 * seconds_per_call(*run, numbers[name]))
    out: dict[str, Any] = {}
    for name, samples in times.items():
        ratios = [ours / theirs for ours, theirs in zip(times["tumen"], samples, strict=True)]
        out[name] = {
            "ns": round(statistics.median(samples), 1),
            "ns_min": round(min(samples), 1),
            "ns_max": round(max(samples), 1),
            "tumen_ratio": round(statistics.median(ratios), 2),
            "tumen_ratio_min": round(min(ratios), 2),
            "tumen_ratio_max": round(max(ratios), 2),
        }
    return out


def report_of(rounds: int) -> dict[str, Any]:
    report: dict[str, Any] = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "rounds": rounds,
        "msgspec": None,
        "items": {},
    }
    for name, item in ITEMS.items():
        report["items"][name] = {
            direction: measure(runs, rounds) for direction, runs in runs_of(item).items()
        }
    if "msgspec" in sys.modules:
        report["msgspec"] = sys.modules["msgspec"].__version__
    return report


def table(report: dict[str, Any]) -> str:
    lines = [f"{'':36} {'tumen/msgspec':>22} {'tumen':>12} {'plain':>12} {'msgspec':>12}"]
    for name, item in report["items"].items():
        for direction, entry in item.items():
            cells = [f"{direction} {name}".ljust(36)]
            theirs = entry.get("msgspec")
            ratio = "–"
            if theirs:
                span = f"{theirs['tumen_ratio_min']:.1f}–{theirs['tumen_ratio_max']:.1f}"
                ratio = f"{theirs['tumen_ratio']:.1f}x ({span})"
            cells.append(f" {ratio:>22}")
            for codec in ("tumen", "plain", "msgspec"):
                text = f"{entry[codec]['ns'] / 1000:.2f} µs" if codec in entry else "–"
                cells.append(f" {text:>12}")
            lines.append("".join(cells))
    if report["msgspec"] is None:
        lines.append("absent: msgspec: not installed")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    report = report_of(options.rounds)
    print(json.dumps(report, indent=1) if options.json else table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
