"""What does io_uring do for a node with many links, beside our own epoll?

Two tumen nodes, one on each backend, take turns on one core; a program on the other core has the
same links to both (bench/peers/load.py). 24 cells: an echo of depth 1, messages in and messages
out, on 1, 10, 100 and 1,000 links, of 64 B and of 16 KiB. Compared are messages per CPU second of
the node, all of Python's share included.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from cluster import PEERS, Child, Cluster, Counting, missing
from pairs import Goal, Question, Sample
from wire import engine_calls

LINKS = (1, 10, 100, 1000)
SIZES = {"64": 64, "16k": 16384}
KINDS = {"echo": "echo of depth 1", "in": "one-way in", "out": "one-way out"}
# Descriptors that a node or the load needs beside those of its links.
FILES_BESIDE = 100
FILES_MAX = 8192
# Below it a cell says that the engine should take epoll there.
FLOOR = 0.95
# Over these cells, as geometric mean.
SUMMARY_CELLS = ("echo_10_64", "echo_100_64", "echo_1000_64")
SUMMARY_GOAL = 1.05
ECHO_CALLS_MAX = 0.5


class Plan(NamedTuple):
    kind: str
    links: int
    size: int


class BackendsStage:
    """Both nodes, the load, and as many links as a cell needs."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.known: dict[str, Child] = {}
        self.links: dict[str, int] = {}
        command = [sys.executable, str(PEERS / "load.py"), cluster.cookie]
        self.load = cluster.start("load", command, 1)

    def who(self) -> dict[str, Any]:
        return {name: child.hello for name, child in self.known.items()}

    def pids(self) -> list[int]:
        return [self.load.pid, *(child.pid for child in self.known.values())]

    def cannot(self, question: Question, contender: str) -> str | None:
        wanted = 2 * question.plan.links + FILES_BESIDE
        if files_max() < wanted:
            return f"{files_max()} descriptors, and it needs {wanted}"
        return missing(contender)

    def node(self, contender: str, links: int) -> Child:
        """The node, with at least so many links."""
        if contender not in self.known:
            self.known[contender] = self.cluster.contender(f"{contender}:idle", 0)
            self.links[contender] = 0
        child = self.known[contender]
        if (more := links - self.links[contender]) > 0:
            self.load.ask("links", child.hello["port"], more)
            self.links[contender] += more
        return child

    def result(self, question: Question, contender: str, seconds: float) -> dict[str, Any]:
        plan: Plan = question.plan
        child = self.node(contender, plan.links)
        ms = int(seconds * 1000)
        words = (plan.kind, child.hello["port"], plan.links, plan.size, ms)
        if plan.kind != "out":
            return self.load.ask(*words)
        self.load.say(*words)
        sent = child.ask("flood", plan.links, plan.size, ms)
        got = self.load.answer()
        if sent["count"] != got["count"]:
            raise SystemExit(f"{contender}: sent {sent['count']}, and {got['count']} came")
        return got

    def play(self, question: Question, contender: str, seconds: float) -> Sample:
        child = self.node(contender, question.plan.links)
        engine = engine_calls(child)
        before = child.cpu_ns(), self.load.cpu_ns()
        result = self.result(question, contender, seconds)
        after = child.cpu_ns(), self.load.cpu_ns()
        count = result["count"]
        own, other = after[0] - before[0], after[1] - before[1]
        return {
            "count": count,
            "per_cpu_s": count * 1e9 / own,
            "rate": count / (result["elapsed_ns"] / 1e9),
            "cpu_us": own / 1e3 / count,
            "other_cpu_us": other / 1e3 / count,
            "engine_calls": (engine_calls(child) - engine) / count,
        }

    def count(self, question: Question, contender: str, seconds: float) -> Sample:
        child = self.node(contender, question.plan.links)
        counting = Counting(child)
        return counting.per(self.result(question, contender, seconds)["count"])


def cell(kind: str, links: int, label: str) -> Question:
    name = f"{kind}_{links}_{label}"
    goals: tuple[Goal, ...] = (
        Goal(f"≥ {FLOOR} × our own epoll", "tumen:uring", "per_cpu_s", ("tumen:epoll",), FLOOR),
    )
    if name in ("echo_100_64", "echo_1000_64"):
        says = f"≤ {ECHO_CALLS_MAX} system calls a message on io_uring"
        goals += (Goal(says, "tumen:uring", "system_calls", at_most=ECHO_CALLS_MAX),)
    size = SIZES[label]
    return Question(
        name,
        f"{KINDS[kind]} on {links:,} link{'s' if links > 1 else ''}, "
        + ("64 B" if size == 64 else "16 KiB"),
        ("tumen:uring", "tumen:epoll"),
        ("per_cpu_s", "rate"),
        goals,
        Plan(kind, links, size),
        payload=size,
    )


class Backends:
    """The group."""

    name = "backends"
    setup_s = 10.0

    def questions(self) -> list[Question]:
        # Few links first: those that a later cell needs more are made then, and stay.
        return [cell(kind, links, label) for links in LINKS for kind in KINDS for label in SIZES]

    @contextmanager
    def stage(self, questions: Sequence[Question]) -> Iterator[BackendsStage]:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The processes that are started here inherit it.
        resource.setrlimit(resource.RLIMIT_NOFILE, (files_max(), hard))
        try:
            with Cluster() as cluster:
                yield BackendsStage(cluster)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def files_max() -> int:
    """Descriptors that a process may have here, as far as they are of use."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return FILES_MAX if most == resource.RLIM_INFINITY else min(most, FILES_MAX)


def summary(answers: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The geometric mean over small messages on many links, where all of them were played."""
    ratios = [
        row["ratio"]
        for name in SUMMARY_CELLS
        for row in answers.get(name, {}).get("ratios", ())
        if row["theirs"] == "tumen:epoll" and row["metric"] == "per_cpu_s"
    ]
    if len(ratios) != len(SUMMARY_CELLS):
        return None
    mean = [
        math.exp(sum(map(math.log, column)) / len(column)) for column in zip(*ratios, strict=True)
    ]
    reached = "yes" if mean[0] >= SUMMARY_GOAL else "interval" if mean[2] >= SUMMARY_GOAL else "no"
    return {
        "says": f"≥ {SUMMARY_GOAL} × our own epoll, geometric mean of " + ", ".join(SUMMARY_CELLS),
        "ours": "tumen:uring", "metric": "per_cpu_s", "at_least": SUMMARY_GOAL,
        "against": "tumen:epoll", "ratio": mean, "reached": reached,
    }  # fmt: skip
