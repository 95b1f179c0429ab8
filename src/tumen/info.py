"""What `Node.connections` and `Node.info` answer with."""

from __future__ import annotations

import dataclasses
from typing import Self

__all__ = ["BackendName", "Connection", "NodeInfo"]


class BackendName(str):
    """``"uring"`` or ``"epoll"``; `why` says why that one was chosen."""

    __slots__ = ("why",)
    why: str

    def __new__(cls, name: str, why: str) -> Self:
        self = super().__new__(cls, name)
        self.why = why
        return self


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """One connection to another node. Sizes in bytes, `up_ns` in nanoseconds."""

    name: str
    up: bool  # False: the handshake is under way
    visible: bool
    creation: int
    flags: int  # negotiated capability flags
    up_ns: int  # since it came up
    bytes_in: int
    bytes_out: int
    frames_in: int  # ticks not counted
    frames_out: int
    ticks_in: int
    ticks_out: int
    queue_bytes: int  # accepted, not yet taken by the kernel
    queue_count: int
    inbox_bytes: int  # received, waiting for the loop
    reassembly_bytes: int  # held by messages of which fragments are missing
    atoms: int  # in its atom cache
    address: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """The state and the counters of a node. Sizes in bytes."""

    name: str
    creation: int
    port: int  # of the listener, 0 without one
    visible: bool
    registered: bool  # with the port mapper
    serves_epmd: bool  # its engine is the port mapper
    connections: int
    processes: int
    inbox_bytes: int  # waiting for the loop
    mail_bytes: int  # in mailboxes, not yet taken
    sendq_bytes: int  # in all send queues
    messages_in: int  # delivered to processes
    messages_out: int  # accepted for sending
    messages_dropped: int  # for a dead process, an unknown name or a dead alias
    operations_refused: int
    operations_unknown: int
    half_open: int  # inbound handshakes under way
    engine: dict[str, int]  # counters of the engine below
