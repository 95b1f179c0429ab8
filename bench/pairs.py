"""How two contenders are compared: in turns, pair by pair, with an interval around the ratio.

A question is played in rounds. In each round every contender plays once, in one order and then in
the other (ABBA), so what drifts over a run falls on all alike. Each round gives one pair of values;
the ratio that is reported is the median of the ratios of the pairs, with a bootstrap interval.

Every ratio says how many times better the first one is, whichever way its metric counts.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

SEED = 20
# Resamples of a bootstrap, and the probability that its interval is to cover.
RESAMPLES = 2000
COVERAGE = 0.95
# The round that warms up caches, JIT and buffers does not count; it lasts at most so long, seconds.
WARM_UP_S = 0.2

Sample = dict[str, float]


class Metric(NamedTuple):
    """What a number of a sample means."""

    title: str
    unit: str
    more_is_better: bool


METRICS = {
    "rate": Metric("Messages or calls per second", "per s", True),
    "per_cpu_s": Metric("Messages or calls per CPU second", "per CPU s", True),
    "p50_us": Metric("Round trip, median, µs", "p50 µs", False),
    "p99_us": Metric("Round trip, 99th percentile, µs", "p99 µs", False),
    "ns": Metric("Nanoseconds", "ns", False),
    # CPU seconds per million messages are microseconds per message.
    "cpu_us": Metric("CPU seconds per million, own side", "CPU s/M", False),
    "other_cpu_us": Metric("CPU seconds per million, other side", "CPU s/M of the other", False),
    "system_calls": Metric("System calls each, own side", "system calls each", False),
    "engine_calls": Metric("System calls each, by our engine", "by our counter", False),
}


@dataclass(frozen=True)
class Goal:
    """What a contender is to reach, in one metric of one question."""

    says: str  # as it is told to people
    ours: str
    metric: str
    # The better one of these, and how many times better ours is to be; or without them the value
    # that ours may have at most.
    against: tuple[str, ...] = ()
    at_least: float = 0.0
    at_most: float = 0.0


@dataclass(frozen=True)
class Question:
    """One thing that is measured, and who takes part. `metrics`: those that are compared."""

    name: str
    asks: str
    contenders: tuple[str, ...]
    metrics: tuple[str, ...] = ("rate",)
    goals: tuple[Goal, ...] = ()
    # What the group that plays it needs to know.
    plan: Any = None
    # Seconds of one sample are multiplied by it: what is quick to measure need not last.
    share: float = 1.0
    # Bytes in a message, where a rate in MB/s says something.
    payload: int = 0

    @property
    def ours(self) -> tuple[str, ...]:
        """The contenders that are tumen's."""
        return tuple(name for name in self.contenders if name.startswith("tumen"))


class Stage(Protocol):
    """What a group of questions is played on: its processes, started and connected."""

    def who(self) -> dict[str, Any]:
        """What each contender says that it is: versions, backend, driver."""

    def pids(self) -> list[int]:
        """The processes whose CPU time is the bench's own."""

    def cannot(self, question: Question, contender: str) -> str | None:
        """Why this contender cannot play it; None when it can."""

    def play(self, question: Question, contender: str, seconds: float) -> Sample:
        """One sample, its answers checked."""

    def count(self, question: Question, contender: str, seconds: float) -> Sample:
        """What is not measured beside the clock, once: system calls."""


class Group(Protocol):
    """The questions of one file."""

    name: str
    # Seconds that it takes to start and stop.
    setup_s: float

    def questions(self) -> list[Question]: ...
    def stage(self, questions: Sequence[Question]) -> AbstractContextManager[Stage]: ...


# -- playing ---------------------------------------------------------------------------------------


@dataclass
class Played:
    """All samples of one question."""

    question: Question
    rounds: int
    seconds: float
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    counted: dict[str, Sample] = field(default_factory=dict)
    cannot: dict[str, str] = field(default_factory=dict)


def order_of(contenders: Sequence[str], number: int) -> Iterator[str]:
    """ABBA: forwards in odd rounds, backwards in even ones."""
    return iter(contenders) if number % 2 else reversed(contenders)


def play(stage: Stage, question: Question, rounds: int, seconds: float) -> Played:
    """All rounds of a question; afterwards one that only counts system calls."""
    played = Played(question, rounds, seconds)
    for name in question.contenders:
        if reason := stage.cannot(question, name):
            played.cannot[name] = reason
    taking_part = [name for name in question.contenders if name not in played.cannot]
    played.samples = {name: [] for name in taking_part}
    for name in taking_part:
        stage.play(question, name, min(seconds, WARM_UP_S))
    for number in range(1, rounds + 1):
        for name in order_of(taking_part, number):
            played.samples[name].append(stage.play(question, name, seconds))
    for name in taking_part:
        played.counted[name] = stage.count(question, name, seconds)
    return played


# -- ratios ----------------------------------------------------------------------------------------


class Ratio(NamedTuple):
    """A median with its interval."""

    median: float
    low: float
    high: float


def better(metric: str, ours: float, theirs: float) -> float:
    """How many times better ours is."""
    if METRICS[metric].more_is_better:
        return ours / theirs if theirs else float("inf")
    return theirs / ours if ours else float("inf")


def bootstrap(values: Sequence[float], seed: int = SEED) -> Ratio:
    """The median of the values, and the percentile interval of the medians of resamples."""
    rng = random.Random(seed)
    size = len(values)
    medians = sorted(
        statistics.median(rng.choices(values, k=size)) for _ in range(RESAMPLES if size > 1 else 1)
    )
    cut = int(len(medians) * (1 - COVERAGE) / 2)
    return Ratio(statistics.median(values), medians[cut], medians[-1 - cut])


def compare(played: Played, metric: str, ours: str, theirs: str, seed: int = SEED) -> Ratio:
    """The ratio of two contenders over the pairs of all rounds."""
    pairs = zip(played.samples[ours], played.samples[theirs], strict=True)
    return bootstrap([better(metric, a[metric], b[metric]) for a, b in pairs], seed)


def median_of(played: Played, contender: str, metric: str) -> float | None:
    """Over all rounds, or from the round that counts; None where it was not measured."""
    values = [sample[metric] for sample in played.samples[contender] if metric in sample]
    if values:
        return statistics.median(values)
    return played.counted.get(contender, {}).get(metric)


def judge(played: Played, goal: Goal, seed: int = SEED) -> dict[str, Any]:
    """Whether a goal is reached: `yes` by the median; `interval` when only its interval gets there;
    `no`; or `not measured`."""
    verdict: dict[str, Any] = {"says": goal.says, "ours": goal.ours, "metric": goal.metric}
    if not goal.against:
        value = median_of(played, goal.ours, goal.metric) if goal.ours in played.samples else None
        verdict |= {"at_most": goal.at_most, "value": value}
        reached = "not measured" if value is None else "yes" if value <= goal.at_most else "no"
        return verdict | {"reached": reached}
    verdict["at_least"] = goal.at_least
    present = [name for name in goal.against if name in played.samples]
    if not present or goal.ours not in played.samples:
        return verdict | {"reached": "not measured"}
    # The better one by its own median, then pair by pair: the best of each round would be lucky.
    more = METRICS[goal.metric].more_is_better

    def typical(name: str) -> float:
        return statistics.median(sample[goal.metric] for sample in played.samples[name])

    best = (max if more else min)(present, key=typical)
    ratio = compare(played, goal.metric, goal.ours, best, seed)
    reached = "no"
    if ratio.high >= goal.at_least:
        reached = "yes" if ratio.median >= goal.at_least else "interval"
    return verdict | {"against": best, "ratio": list(ratio), "reached": reached}


# -- the report ------------------------------------------------------------------------------------


def report(played: Played, foreign_share: float, seed: int = SEED) -> dict[str, Any]:
    """One question as it goes into the JSON."""
    question = played.question
    contenders: dict[str, Any] = {}
    for name, samples in played.samples.items():
        row: dict[str, Any] = {}
        for metric in METRICS:
            values = [sample[metric] for sample in samples if metric in sample]
            if values:
                row[metric] = {
                    "median": statistics.median(values),
                    "min": min(values),
                    "max": max(values),
                    "values": values,
                }
            elif metric in played.counted.get(name, {}):
                row[metric] = {"median": played.counted[name][metric]}
        row["count"] = int(sum(sample.get("count", 0) for sample in samples))
        contenders[name] = row
    ratios = [
        {"ours": ours, "theirs": theirs, "metric": metric,
         "ratio": list(compare(played, metric, ours, theirs, seed))}
        for ours in question.ours if ours in played.samples
        for theirs in played.samples if theirs != ours and not
        (theirs in question.ours and question.ours.index(theirs) < question.ours.index(ours))
        for metric in question.metrics
    ]  # fmt: skip
    return {
        "name": question.name,
        "asks": question.asks,
        "metrics": list(question.metrics),
        "payload": question.payload,
        "rounds": played.rounds,
        "seconds": played.seconds,
        "foreign_share": round(foreign_share, 4),
        "time": time.strftime("%H:%M:%S", time.gmtime()),
        "contenders": contenders,
        "cannot": played.cannot,
        "ratios": ratios,
        "goals": [judge(played, goal, seed) for goal in question.goals],
    }
