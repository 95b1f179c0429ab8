"""What a node starts with: limits, and where its cookie comes from."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from .errors import AuthError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._core import Engine
    from ._term import Pid

__all__ = [
    "Driver",
    "EpmdMode",
    "Limits",
    "NodeOptions",
    "backend_choice",
    "cookie_find",
    "cookie_read",
]

Driver = Literal["thread", "loop"]
EpmdMode = Literal["auto", "client"]

_log = logging.getLogger("tumen")

# Below this many bytes a cookie can be guessed off-line from one handshake that was listened to.
_COOKIE_BYTES_SAFE: Final = 16
_COOKIE_VARIABLES: Final = ("TUMEN_COOKIE", "RELEASE_COOKIE")
_BACKENDS: Final = ("auto", "uring", "epoll")

MIB: Final = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every bound of a node; the unit is the end of the name.

    The first group is the core's and can be changed while the node runs
    (`Node.set_limits`); the second is read when the node starts.
    """

    # Largest message accepted and sent, bytes.
    message_bytes_max: int = 128 * MIB
    # Send queue of one connection: at or above it `send` raises `Busy`.
    sendq_bytes_high: int = MIB
    # All send queues of the node together.
    sendq_bytes_node_max: int = 256 * MIB
    # Messages that one process has not taken; over it the process ends, {mailbox_full, Bytes}. What
    # comes from a process of this node weighs what it would on the wire, or little more.
    mailbox_bytes_max: int = 128 * MIB
    # What waits for the loop; over it the connection with most waiting bytes is closed.
    inbox_bytes_max: int = 512 * MIB
    # Nesting of a received term.
    depth_max: int = 1024
    # Objects that one received term may become, bytes.
    decoded_bytes_max: int = 1024 * MIB
    # net_ticktime, milliseconds: the same on every node of a cluster.
    tick_time_ms: int = 60_000
    # One absolute deadline for a whole handshake, milliseconds.
    handshake_time_ms: int = 7_000
    # Inbound connections that have not proved their cookie yet.
    half_open_count_max: int = 512
    # What one connection holds of messages of which fragments are missing; over it it is closed. To
    # be raised with message_bytes_max: a large message and others beside it must fit.
    reassembly_bytes_max: int = 256 * MIB

    # Threads for exposed plain functions and blocking handlers.
    pool_threads_max: int = 16
    # Jobs that wait for such a thread; over it a call of an exposed function
    # is refused with `system_limit`, and a blocking handler waits for room.
    pool_waiting_count_max: int = 10_000
    # Events that one reader of `Node.events` may leave unread; over it the oldest are dropped.
    events_count_max: int = 1024
    # Log events that one node may hand over (`logger_proxy`) in a second; over it they are dropped,
    # and their number is logged.
    log_events_per_s_max: int = 1_000
    # A stopping server has so long for its `terminate`, milliseconds.
    shutdown_time_ms: int = 5_000
    # Warnings of failed handshakes that are logged in a minute; the rest is counted and told once.
    # Events (`HandshakeFailed`) come for each.
    handshake_warnings_count_max: int = 10

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{field.name} must be a positive int, not {value!r}")

    def replace(self, **changes: int) -> Self:
        """A copy with changes; TypeError for a name that is no limit."""
        return dataclasses.replace(self, **changes)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """What `Node` was given: its docstring explains each."""

    name: str
    cookie: str | None = dataclasses.field(default=None, repr=False)
    allow: tuple[str, ...] = ()
    visible: bool = False
    driver: Driver = "thread"
    backend: str | None = None
    eager: bool = False
    listen: bool = True
    listen_host: str | None = None
    listen_port: int = 0
    epmd: EpmdMode | None = "auto"
    epmd_address: str | None = None
    epmd_port: int | None = None
    flags: int | None = None
    engine: Engine | None = None
    on_output: Callable[[str, Pid], object] | None = None

    def __post_init__(self) -> None:
        if self.driver not in ("thread", "loop"):
            raise ValueError(f'driver must be "thread" or "loop", not {self.driver!r}')
        if self.epmd not in EPMD_MODES:
            raise ValueError(f'epmd must be "auto", "client" or None, not {self.epmd!r}')
        output: Any = self.on_output
        if output is not None and (not callable(output) or inspect.iscoroutinefunction(output)):
            raise TypeError(f"on_output must be a plain function, not {output!r}")
        if self.driver == "loop" and self.backend == "uring":
            raise ValueError("a loop can turn an epoll engine only")
        if self.driver == "loop" and self.engine is not None:
            raise ValueError("a shared engine has its driver already")
        if bad := [entry for entry in self.allow if not entry or " " in entry]:
            raise ValueError(f"neither a node, a host nor a name@: {bad[0]!r}")

    @property
    def is_dynamic(self) -> bool:
        """Whether the name is a host alone, and the first peer gives us ours."""
        return "@" not in self.name


# The core's numbers: enum tumen_epmd_mode.
EPMD_MODES: Final = {"auto": 0, "client": 1, None: 2}

# The core's number for each limit that it keeps: enum tumen_limit.
CORE_LIMITS: Final[Mapping[str, int]] = {
    "message_bytes_max": 0,
    "sendq_bytes_high": 1,
    "sendq_bytes_node_max": 2,
    "mailbox_bytes_max": 3,
    "inbox_bytes_max": 4,
    "depth_max": 5,
    "decoded_bytes_max": 6,
    "tick_time_ms": 7,
    "handshake_time_ms": 8,
    "half_open_count_max": 9,
    "reassembly_bytes_max": 10,
}


def backend_choice(backend: str | None) -> str:
    """The I/O backend to ask for: the argument, else TUMEN_BACKEND, else ``"auto"``."""
    choice = backend or os.environ.get("TUMEN_BACKEND") or "auto"
    if choice not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, not {choice!r}")
    return choice


def epmd_choice(address: str | None, port: int | None) -> tuple[str | None, int]:
    """Where the local port mapper is: arguments, else ERL_EPMD_ADDRESS and ERL_EPMD_PORT.

    None and 0 stand for the defaults, 127.0.0.1 and 4369.
    """
    if address is None:
        # OTP takes a list here: the addresses that its epmd listens on. Any of them will do.
        listed = os.environ.get("ERL_EPMD_ADDRESS", "").replace(",", " ").split()
        address = listed[0] if listed else None
    if port is None:
        text = os.environ.get("ERL_EPMD_PORT", "")
        if text and not text.isdecimal():
            raise ValueError(f"ERL_EPMD_PORT is not a number: {text!r}")
        port = int(text or 0)
    if not 0 <= port <= 65535:
        raise ValueError(f"not a port: {port}")
    return address, port


def cookie_find(cookie: str | None) -> str:
    """The cookie: the argument, else TUMEN_COOKIE or RELEASE_COOKIE, else the cookie file.

    Files as OTP has them: ``~/.erlang.cookie``, then ``$XDG_CONFIG_HOME/erlang/.erlang.cookie``.
    `AuthError` when there is none, or when others than its owner may read the file.
    """
    if cookie is None:
        for variable in _COOKIE_VARIABLES:
            if value := os.environ.get(variable):
                cookie = value
                break
        else:
            cookie = _cookie_from_files()
    if not cookie:
        raise AuthError("the cookie is empty", hint="Give cookie=, TUMEN_COOKIE or a cookie file.")
    return cookie


def cookie_weakness(cookie: str) -> str | None:
    """What is wrong with a cookie that works, for a warning; None when nothing is."""
    if len(cookie.encode()) < _COOKIE_BYTES_SAFE:
        return f"it has less than {_COOKIE_BYTES_SAFE} bytes and can be guessed"
    if cookie[-1] in "0123456789":
        # The digest covers cookie ++ decimal challenge: "app1" can pass for "app".
        return "it ends in a digit, so that a shorter cookie can pass for it"
    return None


def _cookie_from_files() -> str:
    home = Path.home()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    paths = [home / ".erlang.cookie", config / "erlang" / ".erlang.cookie"]
    for path in paths:
        if path.exists():
            return cookie_read(path)
    raise AuthError(
        f"no cookie: neither an argument nor {' or '.join(_COOKIE_VARIABLES)} nor {paths[0]}",
        hint="Use the cookie of the cluster: erlang:get_cookie() on one of its nodes.",
    )


def cookie_read(path: Path) -> str:
    """The first line of a cookie file; `AuthError` when others than its owner may read it."""
    # One descriptor for check and read: what was checked is what is read.
    with path.open(encoding="latin-1") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise AuthError(
                f"{path} has mode {mode:04o}: others than its owner have access",
                hint=f"chmod 600 {path}",
            )
        return file.readline().rstrip("\r\n")
