"""What `Node.events` yields, and the bounded queue behind it."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from ._term import Pid

__all__ = [
    "Busy",
    "ConnectFailed",
    "Dropped",
    "Event",
    "EventStream",
    "HandshakeFailed",
    "NameLost",
    "NodeDown",
    "NodeFailed",
    "NodeUp",
    "Refused",
    "RegisterFailed",
    "Registered",
    "Renamed",
    "Writable",
]


@dataclasses.dataclass(frozen=True, slots=True)
class NodeUp:
    """A connection is up. Comes before anything that its peer sends."""

    node: str
    visible: bool


@dataclasses.dataclass(frozen=True, slots=True)
class NodeDown:
    """A connection is gone. `lost` messages were accepted for sending and not handed over."""

    node: str
    reason: str
    lost: int


@dataclasses.dataclass(frozen=True, slots=True)
class ConnectFailed:
    """A connection could not be made. `lost` messages had been accepted for it."""

    node: str
    reason: str
    lost: int


@dataclasses.dataclass(frozen=True, slots=True)
class Busy:
    """The send queue towards a node has reached its high water."""

    node: str


@dataclasses.dataclass(frozen=True, slots=True)
class Writable:
    """The send queue towards a node is below its low water again."""

    node: str


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """A message or an operation of a peer was not delivered (`DecodeRefused`): too large or too
    deep, or not allowed. `to` is the process it was for, `size` its bytes."""

    node: str
    to: Pid | None
    reason: str
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """Somebody tried to connect to us and did not pass. `node` is what it claimed to be."""

    node: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Registered:
    """The port mapper knows us; `embedded`: and it is this very engine."""

    embedded: bool


@dataclasses.dataclass(frozen=True, slots=True)
class RegisterFailed:
    """The port mapper did not take our name. It is tried again."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Renamed:
    """The first peer gave us our dynamic node name."""

    node: str


@dataclasses.dataclass(frozen=True, slots=True)
class NameLost:
    """The connection to the peer that gave us our dynamic name has gone, and the name with it.

    Every connection is closed and every process has ended (`noconnection`), since no pid of ours
    means anything any more. The next peer that we connect to is asked for a name; then the app's
    servers start again. `node` is the name that was."""

    node: str


@dataclasses.dataclass(frozen=True, slots=True)
class NodeFailed:
    """The engine below this node has failed: nothing works any more."""

    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """So many events before the next one were dropped: this reader was too slow."""

    count: int


Event = (
    NodeUp
    | NodeDown
    | ConnectFailed
    | Busy
    | Writable
    | Refused
    | HandshakeFailed
    | Registered
    | RegisterFailed
    | Renamed
    | NameLost
    | NodeFailed
    | Dropped
)


class EventStream:
    """The events of one node since this object was made; ends when the node stops.

    ``async for event in node.events()``. At most `count_max` events wait here: then the oldest
    is dropped, and the next one read is a `Dropped` that says how many were.
    """

    def __init__(self, count_max: int) -> None:
        self._events: collections.deque[Event] = collections.deque()
        self._count_max = count_max
        self._dropped = 0
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: Event) -> None:
        """Adds an event; for the node. The loop's thread only."""
        if self._closed:
            return
        if len(self._events) >= self._count_max:
            self._events.popleft()
            self._dropped += 1
        self._events.append(event)
        self._wake()

    def close(self) -> None:
        """Nothing comes any more: a reader gets what waits, then the end. Idempotent."""
        self._closed = True
        self._wake()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            if self._waiter is not None:
                raise RuntimeError("another task reads these events already")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._dropped:
            count, self._dropped = self._dropped, 0
            return Dropped(count)
        return self._events.popleft()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
