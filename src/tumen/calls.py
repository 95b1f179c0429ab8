"""Calls out: gen_server:call, erpc, and waiting for room in a send queue.

Each waits for one outcome of the core, which always comes: a reply, a DOWN, or our own deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Final, TypedDict

from ._core import (
    OUTCOME_DOWN,
    OUTCOME_ENDED,
    OUTCOME_EXPIRED,
    OUTCOME_NOT_SPAWNED,
    OUTCOME_REPLIED,
    OUTCOME_SPAWNED,
    CoreProcess,
    LoopNode,
    PendingCall,
    peer_of,
)
from ._term import Atom, Pid, Reference
from .errors import (
    Busy,
    CallTimeout,
    NoConnection,
    NoProc,
    ProcessExited,
    RemoteError,
    ServerDied,
    TumenError,
)
from .reasons import NO_CONNECTION, NOPROC

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .running import Running

__all__ = [
    "Destination",
    "RemoteOptions",
    "Room",
    "SpawnOptions",
    "atom_of",
    "call",
    "key_of",
    "pid_of",
    "rpc",
    "send_wait",
    "spawn_remote",
]

Destination = Pid | str | Atom | tuple[str | Atom, str | Atom] | Reference | CoreProcess

_ERPC: Final = Atom("erpc")
_SIGNAL: Final = Atom("signal")
_RETURN: Final = Atom("return")

# Pause where the queues of the whole node are full and no event of one connection tells when that
# ends, seconds.
_FULL_NODE_PAUSE_S: Final = 0.005


class Room:
    """Who waits for the send queue towards which node."""

    def __init__(self, core: LoopNode) -> None:
        self._core = core
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    async def wait(self, peer: str) -> None:
        """Returns when a send towards `peer` is worth another try."""
        if not self._core.want_writable(peer):
            await asyncio.sleep(_FULL_NODE_PAUSE_S)
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(peer, []).append(future)
        await future

    def open(self, peer: str) -> None:
        """There is room, or there is no connection any more."""
        for future in self._waiting.pop(peer, ()):
            if not future.done():
                future.set_result(None)

    def close(self) -> None:
        for peer in list(self._waiting):
            self.open(peer)


async def send_wait(home: Running, dest: Destination, send: Callable[[], None]) -> None:
    """Calls `send` until it finds room."""
    while True:
        try:
            return send()
        except Busy:
            await home.room.wait(peer_of(dest, home.core.own))


async def _begin_later(
    home: Running, dest: Destination, begin: Callable[[], PendingCall], timeout: float | None
) -> tuple[PendingCall, float | None]:
    """Starts a call that has found no room, and the seconds that are left for it then."""
    loop, peer = home.loop, peer_of(dest, home.core.own)
    deadline = None if timeout is None else loop.time() + timeout
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            while True:
                await home.room.wait(peer)
                try:
                    return begin(), None if deadline is None else max(deadline - loop.time(), 0)
                except Busy:
                    continue
    raise CallTimeout(
        f"{peer}: no room in its send queue for {timeout} s", peer=peer, may_have_executed=False
    )


async def _outcome(pending: PendingCall, timeout: float | None) -> int:
    """What has come of it; nothing of the call is left afterwards."""
    try:
        if timeout is not None:
            pending.expire_after(timeout)
        await pending
        return pending.outcome
    finally:
        pending.close()


async def call(
    home: Running, owner: CoreProcess, dest: Destination, request: Any, timeout: float | None
) -> Any:
    """gen_server:call. The errors of `Node.call`."""
    begin = home.core.call_begin
    left = timeout
    try:
        pending = begin(owner, dest, request)
    except Busy:
        pending, left = await _begin_later(home, dest, lambda: begin(owner, dest, request), timeout)
    # As _outcome, without a coroutine of its own.
    try:
        if left is not None:
            pending.expire_after(left)
        await pending
    finally:
        pending.close()
    if pending.outcome == OUTCOME_REPLIED:
        return pending.value
    raise _call_error(pending, pending.outcome, owner, dest, timeout)


def _call_error(
    pending: PendingCall,
    outcome: int,
    owner: CoreProcess,
    dest: Destination,
    timeout: float | None,
) -> TumenError:
    peer, reason = pending.peer, pending.value
    if outcome == OUTCOME_EXPIRED:
        return CallTimeout(
            f"{dest!r} did not answer within {timeout} s",
            peer=peer,
            may_have_executed=pending.reached,
        )
    if outcome == OUTCOME_ENDED:
        return _ended(owner, pending)
    if reason == NOPROC:
        return NoProc(f"{dest!r}: no such process", peer=peer)
    if reason == NO_CONNECTION:
        return _no_connection(pending)
    return ServerDied(f"{dest!r} died: {reason!r}", reason=reason, peer=peer)


async def rpc(
    home: Running,
    owner: CoreProcess,
    peer: str,
    module: str | Atom,
    function: str | Atom,
    args: Sequence[Any],
    timeout: float | None,
) -> Any:
    """erpc:call. The errors of `Node.rpc`."""
    core = home.core
    values = list(args)
    result = core.make_ref()
    what = [result, atom_of(module), atom_of(function), values]
    if peer == core.own:
        outcome, pending = await _rpc_here(home, owner, what, timeout)
    else:
        left = timeout
        leader = home.leader_of(owner)
        try:
            pending = core.spawn_begin(owner, peer, "erpc", "execute_call", what, leader=leader)
        except Busy:
            pending, left = await _begin_later(
                home,
                (function, peer),
                lambda: core.spawn_begin(owner, peer, "erpc", "execute_call", what, leader=leader),
                timeout,
            )
        # As _outcome, without a coroutine of its own.
        try:
            if left is not None:
                pending.expire_after(left)
            await pending
        finally:
            pending.close()
        outcome = pending.outcome
    if outcome == OUTCOME_DOWN:
        value = pending.value
        if type(value) is tuple and len(value) == 3 and value[1] == _RETURN and value[0] == result:
            return value[2]
    raise _rpc_error(owner, pending, outcome, what, timeout)


def _rpc_error(
    owner: CoreProcess, pending: PendingCall, outcome: int, what: list[Any], timeout: float | None
) -> TumenError:
    result, module, function, values = what
    peer = pending.peer
    name = f"{peer}: {module.text}:{function.text}/{len(values)}"
    if outcome == OUTCOME_DOWN:
        return _rpc_failure(pending, result, name)
    if outcome == OUTCOME_EXPIRED:
        return CallTimeout(
            f"{name} did not return within {timeout} s",
            peer=peer,
            may_have_executed=pending.reached,
        )
    if outcome == OUTCOME_NOT_SPAWNED and pending.value != NO_CONNECTION:
        return RemoteError(
            f"{name} was not started: {pending.value!r}",
            klass="error",
            reason=(_ERPC, pending.value),
            peer=peer,
            may_have_executed=False,
        )
    if outcome == OUTCOME_ENDED:
        return _ended(owner, pending)
    return _no_connection(pending)


async def _rpc_here(
    home: Running, owner: CoreProcess, what: list[Any], timeout: float | None
) -> tuple[int, PendingCall]:
    """An exposed function of this very node: the same, without a spawn request."""
    # Arguments arrive as they would on another node.
    what = home.core.local_copy(what)
    key = home.core.spawn()
    pending = home.core.monitor_begin(owner, home.core.pid(key))
    home.workers.request(key, owner.pid, "erpc", "execute_call", what)
    try:
        return await _outcome(pending, timeout), pending
    finally:
        if pending.outcome != OUTCOME_DOWN:
            home.workers.abandoned(key)


class RemoteOptions(TypedDict, total=False):
    """Options of `Node.spawn_remote` beside `monitor`, which decides what it returns."""

    link: bool
    group_leader: Pid | None
    options: Sequence[Any]
    timeout: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class SpawnOptions:
    """How a process is started elsewhere."""

    link: bool
    monitor: bool
    # The DOWN resolves `PendingCall.following`; else it is a message.
    keep_down: bool
    group_leader: Pid | None
    options: Sequence[Any]


async def spawn_remote(
    home: Running,
    owner: CoreProcess,
    peer: str,
    module: str | Atom,
    function: str | Atom,
    args: Sequence[Any],
    options: SpawnOptions,
    timeout: float | None,
) -> PendingCall:
    """spawn_request: what has come of it, with the pid as `value`. The errors of
    `Node.spawn_remote`."""
    core, values = home.core, list(args)
    leader = options.group_leader or home.leader_of(owner)
    name = f"{peer}: {_text(module)}:{_text(function)}/{len(values)}"
    if peer == core.own:
        raise ValueError(f"{name}: a process of this node is started with spawn")

    def begin() -> PendingCall:
        return core.remote_begin(
            owner,
            peer,
            module,
            function,
            values,
            link=options.link,
            monitor=options.monitor,
            keep_down=options.monitor and options.keep_down,
            leader=leader,
            options=options.options,
        )

    left = timeout
    try:
        pending = begin()
    except Busy:
        pending, left = await _begin_later(home, (function, peer), begin, timeout)
    outcome = await _outcome(pending, left)
    if outcome == OUTCOME_SPAWNED:
        return pending
    if outcome == OUTCOME_EXPIRED:
        raise CallTimeout(
            f"{name} was not started within {timeout} s",
            peer=peer,
            may_have_executed=pending.reached,
        )
    if outcome == OUTCOME_ENDED:
        raise _ended(owner, pending)
    if pending.value == NO_CONNECTION:
        raise _no_connection(pending)
    raise RemoteError(
        f"{name} was not started: {pending.value!r}",
        klass="error",
        reason=pending.value,
        peer=peer,
        may_have_executed=False,
    )


def _rpc_failure(pending: PendingCall, result: Reference, name: str) -> TumenError:
    """The exit reason of an erpc worker that has not returned, as erpc:call shows it."""
    klass, reason, stack = "exit", (_SIGNAL, pending.value), []
    if pending.value == NO_CONNECTION:
        return _no_connection(pending)
    if isinstance(pending.value, tuple):
        match pending.value:
            case (ref, Atom("throw" | "exit" | "error") as kind, value) if ref == result:
                klass, reason = kind.text, value
            case (ref, Atom("error"), value, list(trace)) if ref == result:
                klass, reason, stack = "error", value, trace
    return RemoteError(
        f"{name} raised {klass}: {reason!r}",
        klass=klass,
        reason=reason,
        stacktrace=stack,
        peer=pending.peer,
    )


def _no_connection(pending: PendingCall) -> NoConnection:
    what = "lost before the answer" if pending.reached else "not to be had"
    return NoConnection(
        f"{pending.peer}: the connection was {what}",
        peer=pending.peer,
        may_have_executed=pending.reached,
    )


def _ended(owner: CoreProcess, pending: PendingCall) -> ProcessExited:
    return ProcessExited(
        "the process that called has ended before the answer",
        reason=owner.exit_reason,
        peer=pending.peer,
        may_have_executed=pending.reached,
    )


def atom_of(name: str | Atom) -> Atom:
    """A name as an atom."""
    return name if isinstance(name, Atom) else Atom(name)


def key_of(pid: Pid) -> int:
    """What the core knows a process of this node by."""
    return pid.id | pid.serial << 32


def pid_of(process: Pid | CoreProcess) -> Pid:
    """The pid, where a `Pid` or a `Process` may be given. TypeError for anything else."""
    pid = process.pid if isinstance(process, CoreProcess) else process
    if not isinstance(pid, Pid):
        raise TypeError(f"a Pid or a Process, not {process!r}")
    return pid


def _text(name: str | Atom) -> str:
    return name.text if isinstance(name, Atom) else name
