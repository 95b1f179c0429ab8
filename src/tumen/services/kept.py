"""`Kept`: the processes of the node's own come back when something has ended them."""

# ruff: noqa: SLF001 - a service drives its process as the node does

from __future__ import annotations

import collections
import logging
from typing import TYPE_CHECKING, Any, Final

from ..errors import TumenError
from ..reasons import SHUTDOWN

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from .._term import Pid
    from ..process import Process
    from ..running import Running
    from ..server import GenServer

__all__ = ["Kept", "serving"]

_log = logging.getLogger("tumen")

# One that ends oftener than so many times within so many seconds is left dead: what ends it would
# go on ending it.
RESTART_COUNT_MAX: Final = 10
RESTART_PERIOD_S: Final = 60.0
# One that could not be started is tried again after so many seconds: somebody else has its name.
RETRY_S: Final = 0.1


class Kept:
    """A process that is started again at once when a signal or a full mailbox ends it, as a
    supervisor does on a BEAM.

    `make` starts the process and registers it; `renewed`, after each time but the first, brings
    what knew the process before up to date. `what` names it in the log.
    """

    def __init__(
        self,
        home: Running,
        what: str,
        make: Callable[[], Process],
        renewed: Callable[[], None] | None = None,
    ) -> None:
        self._home = home
        self._what = what
        self._make = make
        self._renewed = renewed
        self._process: Process | None = None
        self._ends: collections.deque[float] = collections.deque()
        self._retry: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def process(self) -> Process:
        """The process, or the last one while there is none."""
        if self._process is None:
            raise TumenError(f"{self._what} was not started")
        return self._process

    @property
    def pid(self) -> Pid | None:
        """Its pid; None while there is none."""
        return None if self._process is None or not self._process.alive else self._process.pid

    def start(self) -> None:
        """Starts it, unless it runs; also where it has ended too often. What `make` raises."""
        if self._closed or self.pid is not None:
            return
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._ends.clear()
        self._start()

    def close(self) -> None:
        """Ends it for good. Idempotent."""
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._process is not None:
            self._process._end(SHUTDOWN)
            if self._process._tumen_task is not None:
                self._process._tumen_task.cancel()

    def _start(self) -> None:
        is_first = self._process is None
        process = self._process = self._make()
        if process._tumen_task is not None:
            process._tumen_task.add_done_callback(lambda _: self._ended(process))
        if not is_first and self._renewed is not None:
            self._renewed()

    def _ended(self, process: Process) -> None:
        home = self._home
        # Without a name the node has no processes: `start` follows with the next name.
        if (
            self._closed
            or process is not self._process
            or not home.node.running
            or home.core.closed
            or "@" not in home.core.own
        ):
            return
        if self._may_restart(f"{process.exit_reason!r}"):
            _log.warning("%s has ended and is started again: %r", self._what, process.exit_reason)
            self._start_again()

    def _start_again(self) -> None:
        self._retry = None
        if self.pid is not None:
            return
        try:
            self._start()
        except TumenError as error:
            _log.error("%s cannot be started again: %s", self._what, error)
            if not self._home.core.closed and self._may_restart(str(error)):
                self._retry = self._home.loop.call_later(RETRY_S, self._start_again)

    def _may_restart(self, why: str) -> bool:
        """Counts an end; False when that is one too many."""
        now = self._home.loop.time()
        while self._ends and now - self._ends[0] >= RESTART_PERIOD_S:
            self._ends.popleft()
        if len(self._ends) >= RESTART_COUNT_MAX:
            _log.error(
                "%s stays dead: it has ended more than %d times in %d s, the last time by %s",
                self._what,
                RESTART_COUNT_MAX,
                RESTART_PERIOD_S,
                why,
            )
            return False
        self._ends.append(now)
        return True


def serving(home: Running, kind: type[GenServer], name: str, *args: Any) -> Kept:
    """A server that is kept. Its name is registered when `start` returns: the servers of the user
    need not wait."""

    def make() -> Process:
        server, started = home.begin_server(kind, args, name)
        # Seen: the reason with which it ends says the same.
        started.add_done_callback(lambda future: future.cancelled() or future.exception())
        return server

    return Kept(home, name, make)
