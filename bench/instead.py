"""What does a call from a BEAM to Python cost by what a user would pick instead of a node?

An OTP 28.5 node has 16 callers, and the other core does the same two jobs four ways: a tumen node
(`gen_server:call`, or `erpc:call` of a function that it exposes); uvicorn with JSON behind `httpc`
(orjson, httptools, uvloop; base64 for the binary); a port with {packet, 4}, its terms read by
tumen's own codec or by erlang-py; and Python inside the BEAM, as a NIF. Compared are calls per CPU
second of both sides together.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cluster import PEERS, Child, Cluster, missing, nif_missing, python_library, tool
from machine import core, cpu_ns
from pairs import Goal, Question, Sample

HUB = "beam28"
CALLERS = 16


class Plan(NamedTuple):
    kind: str
    size: int


class Reached(NamedTuple):
    """Who asks, the process of its own that answers, and two words for where that is."""

    asks: Child
    pid: int | None
    how: str
    where: str


class InsteadStage:
    """The hub, and whatever it asks."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        # Debian's inets, which has httpc, serves OTP 28.5 as well: its wheel comes without.
        paths = [word for path in inets() for word in ("-pa", str(path))]
        self.hub = cluster.beam(HUB, 1, label="hub", args=paths)
        self.known: dict[str, Reached] = {}
        self.hello: dict[str, Any] = {"hub": self.hub.hello}

    def who(self) -> dict[str, Any]:
        return self.hello

    def pids(self) -> list[int]:
        ports = [reached.pid for reached in self.known.values() if reached.how == "port"]
        return [child.pid for child in self.cluster.children] + [pid for pid in ports if pid]

    def cannot(self, question: Question, contender: str) -> str | None:
        return missing_instead(contender)

    def reach(self, contender: str) -> Reached:
        if contender not in self.known:
            self.known[contender] = self.start(contender)
        return self.known[contender]

    def start(self, contender: str) -> Reached:
        kind, _, rest = contender.partition(":")
        if kind == "tumen":
            how, spec = ("erpc", kind) if rest == "erpc" else ("node", contender)
            child = self.cluster.contender(spec, 0, label=contender)
            child.ask("connect", self.hub.node)
            self.hello[contender] = child.hello
            return Reached(self.hub, child.pid, how, child.node)
        if kind == "http":
            command = [sys.executable, str(PEERS / "http_app.py")]
            child = self.cluster.start(contender, command, 0)
            self.hub.ask("http", "open")
            self.hello[contender] = child.hello
            return Reached(self.hub, child.pid, "http", child.hello["url"])
        if kind == "inside":
            beam = self.cluster.beam(HUB, 1, label="inside")
            library = self.cluster.python_nif().with_suffix("")
            beam.ask("inside", "open", library, python_library(), sys.executable, PEERS)
            return Reached(beam, None, "inside", "-")
        command = [sys.executable, str(PEERS / "port_app.py"), rest]
        if (on := core(0)) is not None:
            command = [tool("taskset"), "-c", str(on), *command]
        name = f"port_{rest}"
        pid = int(self.hub.ask("port", "open", name, *command)["os_pid"])
        return Reached(self.hub, pid, "port", name)

    def play(self, question: Question, contender: str, seconds: float) -> Sample:
        asks, pid, how, where = self.reach(contender)
        plan: Plan = question.plan
        before = cpu_ns(pid) if pid else 0, asks.cpu_ns()
        ms = int(seconds * 1000)
        result = asks.ask("job", how, where, plan.kind, plan.size, CALLERS, ms)
        after = cpu_ns(pid) if pid else 0, asks.cpu_ns()
        count = result["count"]
        own, other = after[0] - before[0], after[1] - before[1]
        sample = {
            "count": count,
            "per_cpu_s": count * 1e9 / (own + other),
            "rate": count / (result["elapsed_ns"] / 1e9),
            "other_cpu_us": other / 1e3 / count,
        }
        if pid:
            sample["cpu_us"] = own / 1e3 / count
        return sample

    def count(self, question: Question, contender: str, seconds: float) -> Sample:
        return {}


def inets() -> list[Path]:
    """The folder of the code of inets of the machine's own OTP."""
    erl = shutil.which("erl")
    if erl is None:
        return []
    return sorted((Path(erl).resolve().parent.parent / "lib").glob("inets-*/ebin"))


def missing_instead(contender: str) -> str | None:
    """Why it cannot take part here."""
    kind, _, rest = contender.partition(":")
    wanted = {"http": ("uvicorn", "httptools", "uvloop", "orjson"), "port": (rest,)}.get(kind, ())
    wanted = tuple("erlang" if name == "erlang_py" else name for name in wanted)
    absent = [name for name in wanted if importlib.util.find_spec(name) is None]
    if absent:
        return "not installed: " + ", ".join(absent)
    if kind == "http" and not inets():
        return "no inets (Debian: erlang-inets)"
    if kind == "inside" and (reason := nif_missing()):
        return reason
    return missing(contender)


class Instead:
    """The group."""

    name = "instead"
    setup_s = 6.0

    def questions(self) -> list[Question]:
        ours = ("tumen", "tumen:epoll", "tumen:erpc")
        contenders = (*ours, "http", "port:tumen", "port:erlang_py", "inside")
        goals = tuple(
            Goal(f"≥ {times} × calls per CPU second of {name}", who, "per_cpu_s", (against,), times)
            for who in ours
            for times, name, against in (
                (3.0, "httpc ↔ uvicorn with JSON", "http"),
                (1.0, "an ETF port", "port:tumen"),
            )
        )
        return [
            Question(
                f"instead_{kind}",
                f"{says}, {CALLERS} callers, Erlang → Python",
                contenders,
                ("per_cpu_s", "rate"),
                goals,
                Plan(kind, size),
            )
            for kind, size, says in (
                ("map", 1024, "a map of 1 KiB there and back"),
                ("binary", 600_000, "a binary of 600 KB there"),
            )
        ]

    @contextmanager
    def stage(self, questions: Sequence[Question]) -> Iterator[InsteadStage]:
        with Cluster() as cluster:
            yield InsteadStage(cluster)
