"""How fast are encode and decode beside the other Python codecs of the term format?

``pytest bench/bench_codec.py`` measures with pytest-benchmark. ``python bench/bench_codec.py``
runs all codecs interleaved and prints, for each item, the time of each and the ratio opponent /
tumen as median and range over the rounds; ``--json`` prints the same for machines.

An opponent that is not installed, or that cannot carry an item, is named as absent, never an error.
Every measured pair is checked first: what the opponent encodes must decode to the same term.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from tumen import terms
from tumen.errors import DecodeError
from tumen.terms import Atom, ImproperList, Pid, Reference

SEED = 20
ROUNDS = 7
# One timing lasts about this long, seconds: long against the clock, short against other load.
SAMPLE_SECONDS = 0.01


def corpus() -> dict[str, Any]:
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
        "20-byte tuple": (Atom("ok"), 12345, b"abc"),
        "map of 50 keys, nested": nested_map,
        "10,000 ints": [rng.randrange(-(2**31), 2**31) for _ in range(10_000)],
        "10,000 floats": [rng.uniform(-1e6, 1e6) for _ in range(10_000)],
        "64 KiB binary": rng.randbytes(65536),
        "1,000 tuples {atom, int, binary}": [
            (Atom(f"kind_{i % 10}"), i, b"payload %d" % i) for i in range(1000)
        ],
        "nesting 100 deep": deep,
        "$gen_call, pid and ref": (Atom("$gen_call"), (caller, ref), request),
        "$gen_call, [alias|ref]": (
            Atom("$gen_call"),
            (caller, ImproperList([Atom("alias")], ref)),
            request,
        ),
    }


class Codec(NamedTuple):
    name: str
    version: str
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]


def opponents() -> tuple[list[Codec], dict[str, str]]:
    """The codecs that are installed, and the others with the reason."""
    found, absent = [], {}
    for name, package, module, encode, decode in (
        ("erlpack", "erlpack", "erlpack", "pack", "unpack"),
        ("erlang_py", "erlang_py", "erlang", "term_to_binary", "binary_to_term"),
        ("erldistpy", "erldistpy", "erldistpy.etf", "encode", "decode"),
        ("Term", "pyrlang-term", "term.native_codec_impl", "term_to_binary", "binary_to_term"),
    ):
        try:
            loaded = importlib.import_module(module)
            version = importlib.metadata.version(package)
        except (ImportError, AttributeError) as error:
            absent[name] = str(error)
            continue
        coder, decoder = getattr(loaded, encode), getattr(loaded, decode)
        if name == "Term":
            found.append(
                Codec(
                    name, version, lambda x, f=coder: f(x, None), lambda x, f=decoder: f(x, None)[0]
                )
            )
        else:
            found.append(Codec(name, version, coder, decoder))
    return found, absent


TUMEN = Codec("tumen", "", terms.encode, terms.decode)


class Case(NamedTuple):
    """One codec with one item: its own object for it and its own bytes."""

    codec: Codec
    native: Any
    wire: bytes


def case_for(codec: Codec, term: Any) -> Case | str:
    """The case, or why this codec cannot carry the term without loss."""
    wire = terms.encode(term)
    assert terms.decode(wire) == term, "our own round trip"
    if codec is TUMEN:
        return Case(codec, term, wire)
    try:
        native = codec.decode(wire)
        again = codec.encode(native)
    except Exception as error:  # another's codec: whatever it raises is the answer
        return f"{type(error).__name__}: {error}"[:100]
    try:
        same = terms.encode(terms.decode(again)) == wire
    except DecodeError as error:
        return f"its bytes are malformed: {error}"[:100]
    return Case(codec, native, wire) if same else "its round trip gives another term"


def seconds_per_call(function: Callable[[Any], Any], argument: Any, number: int) -> float:
    calls = range(number)
    start = time.perf_counter()
    for _ in calls:
        function(argument)
    return (time.perf_counter() - start) / number


def calls_for(function: Callable[[Any], Any], argument: Any) -> int:
    function(argument)
    once = seconds_per_call(function, argument, 3)
    return max(1, min(200_000, int(SAMPLE_SECONDS / once)))


def measure(rounds: int = ROUNDS) -> dict[str, Any]:
    """All items, both directions, all codecs, interleaved: every round measures each once."""
    codecs, absent = opponents()
    report: dict[str, Any] = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "seed": SEED,
        "rounds": rounds,
        "opponents": {codec.name: codec.version for codec in codecs},
        "absent": absent,
        "items": {},
    }
    for item, term in corpus().items():
        cases = {}
        cannot = {}
        for codec in [TUMEN, *codecs]:
            made = case_for(codec, term)
            if isinstance(made, str):
                cannot[codec.name] = made
            else:
                cases[codec.name] = made
        entry: dict[str, Any] = {"bytes": len(terms.encode(term)), "cannot": cannot}
        for direction in ("encode", "decode"):
            entry[direction] = direction_report(cases, direction, rounds)
        report["items"][item] = entry
    return report


def direction_report(cases: dict[str, Case], direction: str, rounds: int) -> dict[str, Any]:
    runs = {}
    for name, case in cases.items():
        function = case.codec.encode if direction == "encode" else case.codec.decode
        argument = case.native if direction == "encode" else case.wire
        runs[name] = (function, argument, calls_for(function, argument))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, (function, argument, number) in runs.items():
            times[name].append(1e9 * seconds_per_call(function, argument, number))
    out: dict[str, Any] = {}
    for name, samples in times.items():
        ratios = [theirs / ours for theirs, ours in zip(samples, times["tumen"], strict=True)]
        out[name] = {
            "ns": round(statistics.median(samples), 1),
            "ns_min": round(min(samples), 1),
            "ns_max": round(max(samples), 1),
            "ratio": round(statistics.median(ratios), 2),
            "ratio_min": round(min(ratios), 2),
            "ratio_max": round(max(ratios), 2),
        }
    return out


def table(report: dict[str, Any]) -> str:
    names = ["erlang_py", "erlpack", "erldistpy", "Term"]
    lines = [f"{'':34} {'tumen':>12}" + "".join(f" {name:>24}" for name in names)]
    for item, entry in report["items"].items():
        for direction in ("encode", "decode"):
            cells = [f"{direction} {item}"[:34].ljust(34)]
            cells.append(f" {entry[direction]['tumen']['ns'] / 1000:9.2f} µs")
            for name in names:
                cell = entry[direction].get(name)
                text = "–"
                if cell:
                    text = f"{cell['ratio']:.1f}x ({cell['ratio_min']:.1f}–{cell['ratio_max']:.1f})"
                cells.append(f" {text:>24}")
            lines.append("".join(cells))
    for name, reason in report["absent"].items():
        lines.append(f"absent: {name}: {reason}")
    for item, entry in report["items"].items():
        for name, reason in entry["cannot"].items():
            lines.append(f"cannot: {name}: {item}: {reason}")
    return "\n".join(lines)


def _cases() -> list[Any]:
    codecs, absent = opponents()
    made = []
    for item, term in corpus().items():
        for codec in [TUMEN, *codecs]:
            case = case_for(codec, term)
            mark = pytest.mark.skip(reason=case) if isinstance(case, str) else ()
            made.append(pytest.param(item, case, id=f"{item}-{codec.name}", marks=mark))
        for name, reason in absent.items():
            mark = pytest.mark.skip(reason=f"absent: {reason}")
            made.append(pytest.param(item, None, id=f"{item}-{name}", marks=mark))
    return made


@pytest.mark.parametrize(("item", "case"), _cases())
def test_encode(benchmark: Any, item: str, case: Case) -> None:
    benchmark.group = f"encode {item}"
    made = benchmark(case.codec.encode, case.native)
    assert terms.encode(terms.decode(made)) == case.wire


@pytest.mark.parametrize(("item", "case"), _cases())
def test_decode(benchmark: Any, item: str, case: Case) -> None:
    benchmark.group = f"decode {item}"
    made = benchmark(case.codec.decode, case.wire)
    assert terms.decode(case.codec.encode(made)) == corpus()[item]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    report = measure(options.rounds)
    print(json.dumps(report, indent=1) if options.json else table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
