"""What `Node.events` yields."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from .stream import Stream

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
    deep, or not allowed; or without its trace token. `to` is the process it was for, `size` its
    bytes, or the token's."""

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


class EventStream(Stream[Event]):
    """The events of one node since this object was made; ends when the node stops.

    ``async for event in node.events()``. At most `Limits.events_count_max` events wait here: then
    the oldest is dropped, and the next one read is a `Dropped` that says how many were.
    """

    def _next(self, dropped: int) -> Event:
        return Dropped(dropped) if dropped else super()._next(dropped)
