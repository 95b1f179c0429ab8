"""What holds for every test: nothing leaks, and nothing is skipped in silence."""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import sys
from collections.abc import Iterator

import hypothesis
import pytest

import peers

# The only reasons for which a test may be skipped: each says what the machine lacks.
SKIPS = {
    "needs_erlang": "no Erlang or Elixir of that kind on this machine",
    "needs_io_uring": "the kernel or the container refuses io_uring",
}
# On the CI machine, and in `make test`, nothing is lacking: there a skip is a failure.
NO_SKIP = bool(os.environ.get("TUMEN_NO_SKIP") or os.environ.get("CI"))

SYS_IO_URING_SETUP = 425
# sizeof(struct io_uring_params)
IO_URING_PARAMS_SIZE = 120

# Found examples must not depend on the day in CI; elsewhere each run tries others. A deadline would
# measure the load of the machine.
hypothesis.settings.register_profile("tumen", deadline=None, derandomize=NO_SKIP)
hypothesis.settings.load_profile("tumen")

# What plays with real peers in real time gets a second try: a busy machine can make any of
# thousands late. It is never silent: the first failure is printed, and more than these fail
# the run. `-p no:rerunfailures` gives nobody one.
SECOND_TRIES_MAX = 3

_skipped: list[tuple[str, str]] = []
_second_tries: dict[str, str] = {}


def skip(name: str) -> None:
    """Skips the running test for one of the named reasons."""
    pytest.skip(f"{name}: {SKIPS[name]}")


@functools.cache
def io_uring_allowed() -> bool:
    """Whether this process may make a ring; asked of the kernel, not of tumen."""
    libc = ctypes.CDLL(None, use_errno=True)
    params = ctypes.create_string_buffer(IO_URING_PARAMS_SIZE)
    ring = libc.syscall(SYS_IO_URING_SETUP, 1, params)
    if ring < 0:
        return False
    os.close(ring)
    return True


BACKENDS = [
    backend for backend in ("uring", "epoll") if os.environ.get("TUMEN_BACKEND", backend) == backend
]
if not BACKENDS:
    raise pytest.UsageError("TUMEN_BACKEND must be uring or epoll")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test of it runs once per backend; nodes made in it use that one."""
    if request.param == "uring" and not io_uring_allowed():
        skip("needs_io_uring")
    monkeypatch.setenv("TUMEN_BACKEND", request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """The core's counters of live objects are the same before and after each test."""
    core = sys.modules.get("tumen._core")
    if core is None:
        # Nothing has imported the core yet, so there is nothing that could leak.
        yield
        return
    counters = core.debug_counters
    before = counters()
    yield

    def same() -> bool:
        if counters() == before:
            return True
        gc.collect()
        return bool(counters() == before)

    try:
        peers.wait_for("counters back to what they were", same, timeout=5)
    except TimeoutError:
        pytest.fail(f"leaked: {before} before, {counters()} after")


@pytest.fixture(autouse=True)
def fresh_logs() -> None:
    peers.ended_logs.clear()


# What needs no peer comes first and is over soon. What counts milliseconds comes last: `make test`
# builds and checks beside the others.
FOLDERS = ("tests", "typing", "live", "faults")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(FOLDERS)}
    items.sort(key=lambda item: place.get(item.path.parent.name, 0))
    if items and items[0].config.pluginmanager.hasplugin("rerunfailures"):
        for item in items:
            folder = item.path.parent.name
            if folder in ("live", "faults") or "backend" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed:
        report.sections += [(f"output of {name}", text) for name, text in peers.logs()]
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append((report.nodeid, _reason(report)))
    if report.outcome == "rerun":
        _second_tries[report.nodeid] = report.longreprtext


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped.append((report.nodeid, _reason(report)))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


def _bad_skips() -> list[tuple[str, str]]:
    return [
        (test, reason) for test, reason in _skipped if NO_SKIP or reason.split(":")[0] not in SKIPS
    ]


def pytest_sessionfinish(session: pytest.Session) -> None:
    bad = _bad_skips() or len(_second_tries) > SECOND_TRIES_MAX
    if bad and session.exitstatus in (
        pytest.ExitCode.OK,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _second_tries:
        many = len(_second_tries) > SECOND_TRIES_MAX
        verdict = f", more than {SECOND_TRIES_MAX}: the run fails" if many else ""
        terminalreporter.section(f"{len(_second_tries)} second tries{verdict}", red=many)
        for test, failure in _second_tries.items():
            terminalreporter.line(f"{test} failed at first:\n{failure}\n")
    bad = _bad_skips()
    if bad:
        why = "nothing may be skipped here" if NO_SKIP else "not one of the named reasons"
        terminalreporter.section(f"skipped, {why}: the run fails", red=True)
        for test, reason in bad:
            terminalreporter.line(f"{test}: {reason}")
