"""The driver ``"loop"``: the asyncio loop turns the engine, without a thread in between.

The engine's own thread takes over while the interpreter stays away from its loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from ._core import Engine

__all__ = ["LoopDriver"]

# A timer of the engine that is due this much before ours, seconds, is worth a new one of ours.
_TIMER_SLACK_S: Final = 0.001
# Never sleeps longer, seconds: a timer that another thread started is noticed so late at most.
_SLEEP_MAX_S: Final = 1.0


class LoopDriver:
    """Steps one engine from one loop; `drained` is called after each step."""

    def __init__(
        self, engine: Engine, loop: asyncio.AbstractEventLoop, drained: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._drained = drained
        self._fd = engine.poll_fd()
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(self._fd, self.step)
        self._set_timer()

    def step(self) -> None:
        """Runs what is due, and never waits."""
        self._engine.step(0)
        self._drained()
        self._set_timer()

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        delay = min(self._engine.timeout_ns() / 1e9, _SLEEP_MAX_S)
        when = self._loop.time() + delay
        if self._timer is not None:
            if self._timer.when() <= when + _TIMER_SLACK_S:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.step()
