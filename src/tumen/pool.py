"""A bounded pool of threads for work that blocks.

A job that is abandoned while it waits never starts: starting and abandoning take the same lock.
"""

from __future__ import annotations

import collections
import enum
import logging
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Job", "Pool"]

_log = logging.getLogger("tumen")


class _State(enum.Enum):
    WAITING = enum.auto()
    RUNNING = enum.auto()
    ABANDONED = enum.auto()


class Job:
    """Work that a pool has accepted. The pool's lock guards it."""

    __slots__ = ("state", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        self.work: Callable[[], None] | None = work
        self.state = _State.WAITING


class Pool:
    """At most `threads_max` threads, made when there is work for them, and a bounded queue."""

    def __init__(self, threads_max: int, waiting_count_max: int, name: str) -> None:
        self._threads_max: Final = threads_max
        self._waiting_count_max: Final = waiting_count_max
        self._name: Final = name
        self._lock = threading.Lock()
        self._work_came = threading.Condition(self._lock)
        self._jobs: collections.OrderedDict[Job, None] = collections.OrderedDict()
        self._threads = 0
        self._idle = 0
        self._stopped = False

    @property
    def waiting(self) -> int:
        """Jobs that wait for a thread."""
        return len(self._jobs)

    @property
    def stopped(self) -> bool:
        return self._stopped

    def submit(self, work: Callable[[], None]) -> Job | None:
        """Queues `work`, which must not raise; None when the queue is full, the pool stopped, or it
        has no thread and can make none."""
        with self._lock:
            if self._stopped or len(self._jobs) >= self._waiting_count_max:
                return None
            job = Job(work)
            self._jobs[job] = None
            if self._idle:
                self._work_came.notify()
            elif self._threads < self._threads_max and not self._start_thread():
                del self._jobs[job]
                return None
            return job

    def abandon(self, job: Job) -> bool:
        """True: the job had not started, and never will. False: it is running or done."""
        with self._lock:
            if job.state is not _State.WAITING:
                return False
            job.state = _State.ABANDONED
            job.work = None
            del self._jobs[job]
            return True

    def stop(self) -> None:
        """Abandons what waits. A thread ends after the job that it is in; nobody waits for it."""
        with self._lock:
            self._stopped = True
            for job in self._jobs:
                job.state = _State.ABANDONED
                job.work = None
            self._jobs.clear()
            self._work_came.notify_all()

    def _start_thread(self) -> bool:
        """One more; False when there is none to work at all."""
        # Daemons: a function that never returns must not keep the interpreter from ending.
        name = f"{self._name}-{self._threads}"
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError:
            return self._threads > 0  # the system gives no more of them
        self._threads += 1
        return True

    def _next(self) -> Callable[[], None] | None:
        """The next piece of work, marked as running; None when the pool has stopped."""
        with self._lock:
            while True:
                if self._jobs:
                    job, _ = self._jobs.popitem(last=False)
                    job.state = _State.RUNNING
                    work, job.work = job.work, None
                    return work
                if self._stopped:
                    self._threads -= 1
                    return None
                self._idle += 1
                self._work_came.wait()
                self._idle -= 1

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except BaseException:
                _log.exception("work of the pool %s raised", self._name)
            # Not kept while this thread sleeps.
            del work
