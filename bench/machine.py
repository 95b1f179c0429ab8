"""The machine under the bench: what it is, who else uses it, and what a process costs it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import struct
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent

# -- cores -----------------------------------------------------------------------------------------


def cores() -> list[int]:
    """The cores that we may use, as they were when the bench began."""
    return _CORES


_CORES = sorted(os.sched_getaffinity(0))


def core(index: int) -> int | None:
    """A core of our own set; None where there is only one, and the report says so."""
    return _CORES[index] if len(_CORES) > index else None


class Pinned:
    """Keeps this process on one core for a while."""

    def __init__(self, index: int) -> None:
        self.core = core(index)

    def __enter__(self) -> None:
        if self.core is not None:
            os.sched_setaffinity(0, {self.core})

    def __exit__(self, *exc: object) -> None:
        os.sched_setaffinity(0, _CORES)


# -- CPU time --------------------------------------------------------------------------------------


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process so far."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:
            continue  # a thread that has just ended
    return total


class Foreign:
    """The share of the machine that others use, between its start and now."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.began = time.monotonic()
        self.own = {pid: cpu_ns(pid) for pid in pids}
        self.times = os.times()
        self.busy = busy_s()

    def share(self, pids: Iterable[int]) -> float:
        """Of all cores, `pids` being ours by now; what the host of a virtual machine stole counts
        too."""
        elapsed, busy, times = time.monotonic() - self.began, busy_s(), os.times()
        own = sum(cpu_ns(pid) - self.own.get(pid, 0) for pid in pids) / 1e9
        # Our own, and compilers that have ended.
        own += sum(times[:4]) - sum(self.times[:4])
        others = busy - self.busy - own
        return max(0.0, others / elapsed / (os.cpu_count() or 1)) if elapsed > 0 else 0.0


def busy_s() -> float:
    """Seconds that all cores together were not idle since the machine started."""
    with Path("/proc/stat").open() as stat:
        user, nice, system, _idle, _wait, irq, softirq, steal, *_ = map(
            int, stat.readline().split()[1:]
        )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


# -- system calls ----------------------------------------------------------------------------------

TRACEPOINT = Path("/sys/kernel/tracing/events/raw_syscalls/sys_enter/id")
PERF_TYPE_TRACEPOINT = 2
# struct perf_event_attr in its first published size: type, size, config, sample_period,
# sample_type, read_format, flags, and three fields that do not matter here.
PERF_ATTR = struct.Struct("=IIQQQQQIIQ")
PERF_INHERIT = 1 << 1
PERF_SYSTEM_CALL = {"x86_64": 298, "aarch64": 241}


class SystemCalls:
    """Counts the system calls of one process, threads made later included, by the kernel's own
    tracepoint. It slows each call by a fraction of a microsecond: not for rounds that are timed."""

    def __init__(self, pid: int) -> None:
        self.files: list[int] = []
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                self.files.append(_perf_open(int(task.name)))
        except BaseException:
            self.__exit__()
            raise

    def count(self) -> int:
        """So far."""
        return sum(struct.unpack("=Q", os.read(file, 8))[0] for file in self.files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self.files:
            os.close(file)
        self.files.clear()


def system_calls_refused() -> str | None:
    """Why system calls cannot be counted here; None when they can."""
    try:
        with SystemCalls(os.getpid()) as calls:
            calls.count()
    except (OSError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _perf_open(tid: int) -> int:
    number = PERF_SYSTEM_CALL[platform.machine()]
    config = int(TRACEPOINT.read_text())
    attr = PERF_ATTR.pack(
        PERF_TYPE_TRACEPOINT, PERF_ATTR.size, config, 0, 0, 0, PERF_INHERIT, 0, 0, 0
    )
    libc = ctypes.CDLL(None, use_errno=True)
    file = libc.syscall(number, attr, tid, -1, -1, 8)  # 8: close on exec
    if file < 0:
        raise OSError(ctypes.get_errno(), "perf_event_open")
    return int(file)


# -- what it is ------------------------------------------------------------------------------------

PACKAGES = (
    "tumen", "msgspec", "orjson", "erlang-py", "erldistpy", "erlpack", "uvicorn", "httptools",
    "uvloop", "pytest-benchmark",
)  # fmt: skip


def environment(seed: int) -> dict[str, Any]:
    """Where and with what it is measured."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": len(_CORES),
        "pinned": len(_CORES) > 1,
        "load_1m": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := installed(name))},
        "revision": revision(),
        "seed": seed,
        "system_calls_refused": system_calls_refused(),
    }


def cpu_model() -> str:
    """The name that the processor gives itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def installed(package: str) -> str | None:
    """The version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def revision() -> str | None:
    """What git says this tree is; None where there is no git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
