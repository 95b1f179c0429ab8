"""How fast is a tumen node towards a BEAM, beside a BEAM in its place?

One node, the hub, stands on one core; the contenders take turns on the other, and each plays every
test with the hub: one-way messages, ping-pong, gen_server:call and erpc:call, in both directions.
The answers are checked inside the tests (counts, sums, order). The hub is OTP 28.5, with one
scheduler as all BEAMs here have; for Python to Python it is a tumen node.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

from cluster import Child, Cluster, Counting, missing
from pairs import Goal, Question, Sample

HUB = "beam28"

THREADED = ("tumen", "tumen:epoll")
EACH_DRIVER = (*THREADED, "tumen:loop")
LARGE = 64 * 1024


class Plan(NamedTuple):
    """Who starts the test, and its words; {node} is the other side, {ms} the time."""

    driver: str  # "peer" or "hub"
    words: tuple[str, ...]
    # The contender's counterpart, where that is not the hub.
    other: Mapping[str, str] = MappingProxyType({})


def goals(
    says: str, metric: str, at_least: float, ours: Sequence[str] = THREADED,
    against: tuple[str, ...] = ("beam28",),
) -> tuple[Goal, ...]:  # fmt: skip
    """The same goal for several of ours."""
    return tuple(Goal(says, name, metric, against, at_least) for name in ours)


# -- one way ---------------------------------------------------------------------------------------

SIZES = {"16": 16, "1k": 1024, "64k": LARGE, "1m": 1 << 20}
ONE_WAY_GOALS = {
    "to_16": (4.0, "≥ 4 × BEAM → BEAM"),
    "to_1k": (2.0, "≥ 2 × BEAM → BEAM"),
    "from_16": (2.0, "≥ 2 × BEAM → BEAM"),
    "from_1k": (1.0, "≥ 1.0 × BEAM → BEAM"),
}
# System calls a message at full small-message load on io_uring.
ONE_WAY_CALLS_MAX = 0.01


def one_way(way: str, label: str) -> Question:
    name, size = f"{way}_{label}", SIZES[label]
    contenders: tuple[str, ...]
    if size < LARGE:
        at_least, says = ONE_WAY_GOALS[name]
        wanted = goals(says, "rate", at_least)
        contenders = (*EACH_DRIVER, "beam28", "beam25", "ei")
    else:
        ours = THREADED if way == "to" else (*THREADED, "tumen:views")
        says = "≥ 0.9 × the better of BEAM ↔ BEAM and the ei C node"
        wanted = goals(says, "rate", 0.9, ours, ("beam28", "ei"))
        if os.environ.get("TUMEN_BEFORE"):
            wanted += goals("≥ 0.9 × our own before", "rate", 0.9, ("tumen",), ("before",))
        contenders = (*ours, "beam28", "ei")
    if label == "16":
        wanted += goals("CPU ≤ 0.5 × the BEAM's", "cpu_us", 2.0)
        says = f"≤ {ONE_WAY_CALLS_MAX} system calls a message on io_uring"
        wanted += (Goal(says, "tumen", "system_calls", at_most=ONE_WAY_CALLS_MAX),)
    arrow = "Python → BEAM" if way == "to" else "BEAM → Python"
    return Question(
        name,
        f"{arrow} one-way, {label.replace('k', ' KiB').replace('m', ' MiB')}"
        + (" B" if label == "16" else ""),
        contenders,
        ("rate", "cpu_us"),
        wanted,
        Plan("peer" if way == "to" else "hub", ("send", "{node}", str(size), "{ms}")),
        payload=size,
    )


def python_to_python() -> Question:
    return Question(
        "python_to_python_16",
        "Python → Python one-way, 16 B, two processes",
        (*THREADED, "beam28"),
        ("rate", "cpu_us"),
        goals("≥ 4 × BEAM → BEAM", "rate", 4.0),
        Plan("peer", ("send", "{node}", "16", "{ms}"),
             {"tumen": "hub:tumen", "tumen:epoll": "hub:tumen:epoll"}),
        payload=16,
    )  # fmt: skip


# -- there and back --------------------------------------------------------------------------------


def pingpong(way: str) -> Question:
    wanted = (
        *goals("p50 ≤ 1.0 × BEAM ↔ BEAM (loop)", "p50_us", 1.0, ("tumen:loop",)),
        *goals("p50 ≤ 1.15 × BEAM ↔ BEAM (engine thread)", "p50_us", 1 / 1.15),
        *goals("p99 ≤ 1.25 × BEAM ↔ BEAM", "p99_us", 1 / 1.25, EACH_DRIVER),
    )
    first = "Python" if way == "to" else "the BEAM"
    return Question(
        f"pingpong_{way}",
        f"ping-pong, 16 B, {first} begins",
        (*EACH_DRIVER, "tumen:loop:uvloop", "beam28", "beam25", "ei"),
        ("p50_us", "p99_us"),
        wanted,
        Plan("peer" if way == "to" else "hub", ("pingpong", "{node}", "16", "{ms}")),
    )


# By number of callers, how many times the rate of BEAM ↔ BEAM; None: it only shows the drivers.
CALLS: Mapping[str, dict[int, float | None]] = {
    "call_to": {1: 0.9, 16: 1.5, 64: None, 256: 1.5},
    "call_from": {1: 0.9, 16: 1.0, 64: None, 256: 1.0},
    "erpc_from": {16: 0.8, 256: 0.8},
}
CALL_ASKS = {
    "call_to": "`call` Python → BEAM gen_server",
    "call_from": "`gen_server:call` BEAM → Python",
    "erpc_from": "`erpc:call` BEAM → Python, inline",
}


def calls(kind: str) -> Iterator[Question]:
    word, _, way = kind.partition("_")
    # The C node only asks: how fast a peer without a run-time can be with one write a call.
    bound = ("ei",) if kind == "call_to" else ()
    for count, at_least in CALLS[kind].items():
        says = f"≥ {at_least} × BEAM ↔ BEAM"
        yield Question(
            f"{kind}_{count}",
            f"{CALL_ASKS[kind]}, {count} caller{'s' if count > 1 else ''}",
            (*EACH_DRIVER, "beam28", *(("beam25",) if count == 16 else ()), *bound),
            ("rate", "cpu_us"),
            goals(says, "rate", at_least) if at_least else (),
            Plan("peer" if way == "to" else "hub", (word, "{node}", str(count), "{ms}")),
        )


# -- playing ---------------------------------------------------------------------------------------


class WireStage:
    """The hub and the contenders, started when they are first needed."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.known: dict[str, Child] = {}
        self.connected: set[tuple[str, str]] = set()

    def child(self, spec: str) -> Child:
        if spec not in self.known:
            kind = spec.removeprefix("hub:")
            self.known[spec] = self.cluster.contender(kind, int(kind != spec), label=spec)
        return self.known[spec]

    def who(self) -> dict[str, Any]:
        return {spec: child.hello for spec, child in self.known.items()}

    def pids(self) -> list[int]:
        return [child.pid for child in self.cluster.children]

    def cannot(self, question: Question, contender: str) -> str | None:
        return missing(contender)

    def sides(self, question: Question, contender: str) -> tuple[Child, Child]:
        """The contender and its counterpart, connected."""
        hub = question.plan.other.get(contender, f"hub:{HUB}")
        peer, other = self.child(contender), self.child(hub)
        if (contender, hub) not in self.connected:
            peer.ask("connect", other.node)
            self.connected.add((contender, hub))
        return peer, other

    def result(self, question: Question, contender: str, seconds: float) -> dict[str, Any]:
        peer, other = self.sides(question, contender)
        driver, opposite = (peer, other) if question.plan.driver == "peer" else (other, peer)
        ms = int(seconds * 1000)
        return driver.ask(*(word.format(node=opposite.node, ms=ms) for word in question.plan.words))

    def play(self, question: Question, contender: str, seconds: float) -> Sample:
        peer, other = self.sides(question, contender)
        engine = engine_calls(peer)
        before = peer.cpu_ns(), other.cpu_ns()
        result = self.result(question, contender, seconds)
        after = peer.cpu_ns(), other.cpu_ns()
        count = result["count"]
        sample: Sample = {
            "count": count,
            "rate": count / (result["elapsed_ns"] / 1e9),
            "cpu_us": (after[0] - before[0]) / 1e3 / count,
            "other_cpu_us": (after[1] - before[1]) / 1e3 / count,
        }
        for key in ("p50", "p99"):
            if f"{key}_ns" in result:
                sample[f"{key}_us"] = result[f"{key}_ns"] / 1e3
        if "tumen" in peer.hello:
            sample["engine_calls"] = (engine_calls(peer) - engine) / count
        return sample

    def count(self, question: Question, contender: str, seconds: float) -> Sample:
        peer, _ = self.sides(question, contender)
        counting = Counting(peer)
        result = self.result(question, contender, seconds)
        return counting.per(result["count"])


def engine_calls(peer: Child) -> int:
    """What our engine has counted; 0 for a peer of another kind."""
    return int(peer.ask("counters")["system_calls"]) if "tumen" in peer.hello else 0


class Wire:
    """The group."""

    name = "wire"
    setup_s = 12.0

    def questions(self) -> list[Question]:
        asked = [one_way(way, label) for way in ("to", "from") for label in SIZES]
        asked += [python_to_python(), pingpong("to"), pingpong("from")]
        for kind in CALLS:
            asked += calls(kind)
        return [with_before(question) for question in asked]

    @contextmanager
    def stage(self, questions: Sequence[Question]) -> Iterator[WireStage]:
        with Cluster() as cluster:
            yield WireStage(cluster)


def with_before(question: Question) -> Question:
    """The question with the earlier revision among the contenders, where one was asked for."""
    if not os.environ.get("TUMEN_BEFORE"):
        return question
    return dataclasses.replace(question, contenders=(*question.contenders, "before"))
