"""Calls out to many nodes at once, casts, and printing to an I/O device."""

# ruff: noqa: SLF001 - it makes processes for what their users are not to see

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, Final, TypeVar

from . import calls
from ._core import CoreProcess, peer_of
from ._term import Atom, Reference, encode
from .errors import (
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
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from .calls import Destination
    from .process import Process
    from .running import Running

__all__ = ["RpcResult", "abcast", "multicall", "put_chars", "rpc_cast", "sbcast"]

T = TypeVar("T")

_REX: Final = Atom("rex")
_CAST: Final = Atom("cast")
_SBCAST: Final = Atom("sbcast")
_NONEXISTING_NAME: Final = Atom("nonexisting_name")
_DOWN: Final = Atom("DOWN")
_OK: Final = Atom("ok")
_ERROR: Final = Atom("error")
_UNICODE: Final = Atom("unicode")
_PUT_CHARS: Final = Atom("put_chars")
_IO_REQUEST: Final = Atom("io_request")
_IO_REPLY: Final = Atom("io_reply")


@dataclasses.dataclass(frozen=True, slots=True)
class RpcResult:
    """What one node of several has answered: `value`, or `error` where there is none."""

    value: Any = None
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.error is None

    def get(self) -> Any:
        """The value; raises the error."""
        if self.error is not None:
            raise self.error
        return self.value


def _names(nodes: Iterable[str | Atom]) -> list[str]:
    """Node names, each once, in the order given."""
    if isinstance(nodes, str | Atom):
        raise TypeError(f"a list of nodes is expected, not the node {nodes!r}")
    names: dict[str, None] = {}
    for node in nodes:
        if not isinstance(node, str | Atom):
            raise TypeError(f"no node name: {node!r}")
        names[node.text if isinstance(node, Atom) else node] = None
    return list(names)


def rpc_cast(
    home: Running,
    owner: CoreProcess,
    node: str,
    module: str | Atom,
    function: str | Atom,
    args: Sequence[Any],
) -> None:
    """A cast to the `rex` of the node: one message, of which nothing is left here."""
    what = (_CAST, calls.atom_of(module), calls.atom_of(function), list(args), home.group_leader)
    owner.cast((_REX, node), what)


def abcast(
    owner: CoreProcess, nodes: Iterable[str | Atom], name: str | Atom, message: Any
) -> dict[str, Exception]:
    """`Node.abcast`."""
    encode(message)  # what is no term is not sent to anybody
    failed: dict[str, Exception] = {}
    for node in _names(nodes):
        try:
            owner.send((name, node), message)
        except (TumenError, ValueError) as error:
            failed[node] = error
    return failed


async def multicall(
    home: Running,
    owner: CoreProcess,
    nodes: Iterable[str | Atom],
    module: str | Atom,
    function: str | Atom,
    args: Sequence[Any],
    timeout: float | None,
) -> dict[str, RpcResult]:
    """`Node.multicall`."""
    names = _names(nodes)
    module, function, values = calls.atom_of(module), calls.atom_of(function), list(args)
    encode(values)  # what is no term is the caller's mistake, not one of each node
    deadline = None if timeout is None else home.loop.time() + timeout

    async def one(node: str) -> RpcResult:
        left = None if deadline is None else max(deadline - home.loop.time(), 0)
        try:
            return RpcResult(await calls.rpc(home, owner, node, module, function, values, left))
        except Exception as error:  # whatever it is, what the others answer must not be lost
            return RpcResult(error=error)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(node)) for node in names]
    return {node: task.result() for node, task in zip(names, tasks, strict=True)}


async def sbcast(
    home: Running,
    nodes: Iterable[str | Atom],
    name: str | Atom,
    message: Any,
    timeout: float | None,
) -> dict[str, RpcResult]:
    """`Node.sbcast`."""
    names = _names(nodes)
    encode(message)
    request = (_SBCAST, calls.atom_of(name), message)

    async def work(proc: Process) -> dict[str, RpcResult]:
        results: dict[str, RpcResult] = {}
        asked: dict[Reference, str] = {}
        for node in names:
            try:
                # First the monitor: whatever becomes of the node, it tells.
                asked[proc.monitor((_REX, node))] = node
                proc.send((_REX, node), (proc.pid, request))
            except (TumenError, ValueError) as error:
                results[node] = RpcResult(error=error)
        try:
            async with asyncio.timeout(timeout):
                left = set(names) - set(results)
                while left:
                    node, result = _sbcast_answer(await proc.receive(), asked, name)
                    if node in left:
                        left.remove(node)
                        results[node] = result
        except TimeoutError:
            pass
        for node in names:
            if node not in results:
                late = CallTimeout(f"{node} did not answer within {timeout} s", peer=node)
                results[node] = RpcResult(error=late)
        return {node: results[node] for node in names}

    return await _in_process(home, work)


def _sbcast_answer(
    message: Any, asked: dict[Reference, str], name: str | Atom
) -> tuple[str, RpcResult]:
    """The node that a message is about, and what it says; an empty name for anything else."""
    match message:
        case (Atom("rex"), Atom() as node, (Atom("nonexisting_name"), _)):
            error: TumenError = NoProc(f"{node.text}: nobody is named {name}", peer=node.text)
            return node.text, RpcResult(error=error)
        case (Atom("rex"), Atom() as node, _):
            return node.text, RpcResult(True)
        case (Atom("DOWN"), ref, _, _, reason) if ref in asked:
            return asked[ref], RpcResult(error=_down_error(asked[ref], "rex", reason))
    return "", RpcResult()


async def put_chars(home: Running, device: Destination, text: str, timeout: float | None) -> None:
    """`Node.put_chars`: an I/O request from a process of its own."""
    if not isinstance(text, str):
        raise TypeError(f"text must be a str, not {type(text).__name__}")
    peer = peer_of(device, home.core.own)

    async def work(proc: Process) -> Any:
        ref = proc.monitor(device)
        request = (_PUT_CHARS, _UNICODE, text)
        await proc.send_wait(device, (_IO_REQUEST, proc.pid, ref, request))
        while True:
            match await proc.receive():
                case (Atom("io_reply"), Reference() as reply_as, reply) if reply_as == ref:
                    return reply
                case (Atom("DOWN"), Reference() as down, _, _, reason) if down == ref:
                    raise _down_error(peer, device, reason)

    try:
        async with asyncio.timeout(timeout):
            reply = await _in_process(home, work)
    except TimeoutError:
        raise CallTimeout(f"{device!r} did not answer within {timeout} s", peer=peer) from None
    if reply != _OK:
        reason = reply[1] if type(reply) is tuple and len(reply) == 2 else reply
        raise RemoteError(f"{device!r} did not print: {reason!r}", reason=reason, peer=peer)


async def _in_process(home: Running, work: Callable[[Process], Awaitable[T]]) -> T:
    """Runs `work` in a process of its own; its result, or what it raises."""
    result: asyncio.Future[T] = home.loop.create_future()

    async def main(proc: Process) -> None:
        try:
            value = await work(proc)
        except Exception as error:
            if not result.done():
                result.set_exception(error)
        else:
            if not result.done():
                result.set_result(value)

    process = home.start_process(main, (), None)
    task = process._tumen_task
    assert task is not None

    # When the node stops, or a signal has ended the process.
    def ended(_: object) -> None:
        if not result.done():
            result.set_exception(
                ProcessExited("ended before the answer", reason=process.exit_reason)
            )

    task.add_done_callback(ended)
    try:
        return await result
    finally:
        task.cancel()


def _down_error(peer: str, what: object, reason: Any) -> TumenError:
    if reason == NOPROC:
        return NoProc(f"{what!r}: no such process", peer=peer)
    if reason == NO_CONNECTION:
        return NoConnection(
            f"{peer}: the connection is not to be had, or was lost before the answer",
            peer=peer,
            may_have_executed=True,
        )
    return ServerDied(f"{what!r} died: {reason!r}", reason=reason, peer=peer)
