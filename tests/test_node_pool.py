"""The pool of threads behind blocking functions."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from peers import wait_for
from tumen.pool import Pool


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(2, 4, "test")
    yield pool
    pool.stop()


def test_work_runs_on_at_most_so_many_threads(pool: Pool) -> None:
    threads: set[int] = set()
    done = threading.Semaphore(0)
    gate = threading.Barrier(2)

    def work() -> None:
        gate.wait(10)
        threads.add(threading.get_ident())
        done.release()

    for _ in range(4):
        assert pool.submit(work) is not None
    for _ in range(4):
        assert done.acquire(timeout=10)
    assert len(threads) == 2


def test_full_queue_refuses_and_abandoning_makes_room(pool: Pool) -> None:
    release = threading.Event()
    running = threading.Semaphore(0)

    def block() -> None:
        running.release()
        release.wait(10)

    for _ in range(2):
        pool.submit(block)
    for _ in range(2):
        assert running.acquire(timeout=10)
    ran: list[int] = []
    jobs = [pool.submit(lambda n=n: ran.append(n)) for n in range(4)]  # type: ignore[misc]
    assert pool.submit(lambda: None) is None
    second = jobs[1]
    assert second is not None
    assert pool.abandon(second)
    assert not pool.abandon(second)
    assert pool.submit(lambda: ran.append(9)) is not None
    release.set()
    wait_for("all work", lambda: len(ran) == 4)
    assert sorted(ran) == [0, 2, 3, 9]
    first = jobs[0]
    assert first is not None
    assert not pool.abandon(first)


def test_abandoning_races_starting_and_exactly_one_wins() -> None:
    pool = Pool(1, 10_000, "race")
    ran = 0

    def work() -> None:
        nonlocal ran
        ran += 1

    accepted = abandoned = 0
    for _ in range(5_000):
        job = pool.submit(work)
        assert job is not None
        accepted += 1
        abandoned += pool.abandon(job)
    wait_for("the queue to run dry", lambda: ran + abandoned == accepted)
    pool.stop()


def test_raising_work_keeps_its_thread(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise SystemExit("not here")

    pool.submit(fail)
    done = threading.Event()
    pool.submit(done.set)
    assert done.wait(10)
    wait_for("the log entry", lambda: "not here" in caplog.text)


def test_stopped_pool_drops_what_waits_and_its_threads_end() -> None:
    pool = Pool(1, 10, "stop")
    release, started = threading.Event(), threading.Event()

    def block() -> None:
        started.set()
        release.wait(10)

    pool.submit(block)
    assert started.wait(10)
    ran = threading.Event()
    pool.submit(ran.set)
    pool.stop()
    assert pool.submit(ran.set) is None
    release.set()
    wait_for(
        "the thread's end",
        lambda: not any(thread.name.startswith("stop-") for thread in threading.enumerate()),
    )
    assert not ran.is_set()
