"""`Stream`: what waits for a reader who may be slow, bounded and with its losses counted."""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Stream"]

T = TypeVar("T")
DefaultT = TypeVar("DefaultT")


class Stream(Generic[T]):
    """Items for one task: ``async for item in stream``. It ends with `close`, or when the node
    stops.

    At most `count_max` items wait here: then the oldest is dropped. `dropped` says how many were,
    in all. The loop's thread only.
    """

    def __init__(self, count_max: int) -> None:
        self.dropped = 0
        # What put items here is told by this that nobody reads them any more.
        self.forget: Callable[[], None] | None = None
        self._items: collections.deque[T] = collections.deque()
        self._count_max = count_max
        self._untold = 0
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, item: T) -> None:
        """Adds an item; for the node."""
        if self._closed:
            return
        if len(self._items) >= self._count_max:
            self._items.popleft()
            self.dropped += 1
            self._untold += 1
        self._items.append(item)
        self._wake()

    def close(self) -> None:
        """Nothing comes any more: a reader gets what waits, then the end. Idempotent."""
        if not self._closed:
            self._closed = True
            if self.forget is not None:
                self.forget()
            self._wake()

    def take(self, default: DefaultT) -> T | DefaultT:
        """What `anext` would give at once; `default` when nothing waits."""
        if not self._items:
            return default
        dropped, self._untold = self._untold, 0
        return self._next(dropped)

    def _next(self, dropped: int) -> T:
        """Takes an item; `dropped` were lost just before it."""
        return self._items.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._closed:
                raise StopAsyncIteration
            if self._waiter is not None:
                raise RuntimeError("another task reads this already")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        dropped, self._untold = self._untold, 0
        return self._next(dropped)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
