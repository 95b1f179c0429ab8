"""Warnings at a pace: so many a period, the rest counted and told once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

__all__ = ["WARNING_PERIOD_S", "Warnings"]

# What a limit of warnings is counted over, seconds.
WARNING_PERIOD_S: Final = 60.0

_log = logging.getLogger("tumen")


class Warnings:
    """Logs at most `count_max` warnings of one kind in each period, then how many more there were.

    `what` names them: "handshakes failed". The loop's thread only.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, what: str, count_max: int) -> None:
        self._loop = loop
        self._what = what
        self._count_max = count_max
        self._count = 0
        self._ending: asyncio.TimerHandle | None = None

    def warn(self, text: str, *args: object) -> None:
        """One more."""
        if self._ending is None:
            self._ending = self._loop.call_later(WARNING_PERIOD_S, self.close)
        self._count += 1
        if self._count <= self._count_max:
            _log.warning(text, *args)

    def close(self) -> None:
        """Ends the period: tells what it kept back. Idempotent."""
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None
        kept, self._count = self._count - self._count_max, 0
        if kept > 0:
            _log.warning("%d more %s", kept, self._what)
