"""Holds up the thread that builds large terms: a test looks at what happens meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tumen.pool import Job, Pool

__all__ = ["Gate"]

# A test that forgets to open it ends all the same, seconds.
PATIENCE_S = 20


class Gate:
    """While it is shut no large term is built: `pool` takes the place of the binding's own."""

    def __init__(self) -> None:
        self._open = threading.Event()
        # Terms that were to be built, or given back, since it was made.
        self.waiting = 0

    def open(self) -> None:
        self._open.set()

    def pool(self) -> type[Pool]:
        gate = self

        class Gated(Pool):
            def submit(self, work: Callable[[], None]) -> Job | None:
                def later() -> None:
                    gate.waiting += 1
                    gate._open.wait(PATIENCE_S)
                    work()

                return super().submit(later)

        return Gated
