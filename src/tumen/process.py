"""`Process`: a coroutine with a pid and a mailbox."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

from . import broadcast, calls
from ._core import CoreProcess
from .outgoing import Outgoing
from .reasons import NORMAL, SHUTDOWN, crash_reason, exit_reason

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ._term import Atom, Pid
    from .calls import Destination
    from .node import Node
    from .running import Running
    from .terms import Reference

__all__ = ["Process", "Timer"]

_log = logging.getLogger("tumen")


class Timer:
    """A message that will be sent later."""

    __slots__ = ("_handle",)

    def __init__(self, handle: asyncio.TimerHandle) -> None:
        self._handle = handle

    def cancel(self) -> None:
        """It is not sent, unless it was already."""
        self._handle.cancel()


class Process(CoreProcess, Outgoing):
    """A process of a node: ``async def main(proc)`` gets one; every `GenServer` is one.

    ``async for message in proc`` takes messages in the order of their arrival. It does not
    suspend while mail waits, and gives the loop a turn after 256 messages or a millisecond.

    It ends when its function returns (exit reason `normal`), raises `Exit` (that reason) or
    anything else (``{{python_error, Type, Text}, Stack}``, logged), or by a signal. From that
    moment on it is dead for everybody: its task is cancelled, and every method raises
    `ProcessExited`. Except for `send` and `cast`: the thread of the loop only.
    """

    _home: Running

    def _tumen_sender(self) -> tuple[Running, Process]:
        return self._home, self

    @property
    def node(self) -> Node:
        """The node that this process belongs to."""
        return self._home.node

    # -- mail

    async def receive(
        self, match: Callable[[Any], object] | None = None, timeout: float | None = None
    ) -> Any:
        """The first message, or the first that `match` accepts; others stay where they are.

        `TimeoutError` after `timeout` seconds; 0 looks at what is there. `ProcessExited`.
        """
        place = self._find(match)
        if place >= 0:
            return self._remove(place)
        if timeout is None:
            return self._remove(await self._arrival(match))
        async with asyncio.timeout(timeout):
            return self._remove(await self._arrival(match))

    async def _arrival(self, match: Callable[[Any], object] | None) -> int:
        """The place of the next message that `match` accepts, none of which is there yet."""
        place = -1
        while place < 0:
            seen = self._waiting()
            await self._mail_future()
            place = self._find(match, seen)
        return place

    # -- more signals

    async def print(
        self,
        *args: Any,
        sep: str = " ",
        end: str = "\n",
        device: Destination | None = None,
        timeout: float | None = 5.0,
    ) -> None:
        """Prints to an I/O device, by default the group leader. As `Node.put_chars`."""
        text = sep.join(map(str, args)) + end
        where = self.group_leader if device is None else device
        await broadcast.put_chars(self._home, where, text, timeout)

    def send_after(self, delay: float, dest: Destination, message: Any) -> Timer:
        """Sends `message` to `dest` in `delay` seconds, also if this process has ended by then."""
        home = self._home
        return Timer(home.loop.call_later(delay, home.send_later, dest, message))

    # -- other processes

    @overload
    async def spawn_remote(
        self,
        node: str,
        module: str | Atom,
        function: str | Atom,
        args: Sequence[Any] = (),
        *,
        monitor: Literal[False] = False,
        **options: Unpack[calls.RemoteOptions],
    ) -> Pid: ...
    @overload
    async def spawn_remote(
        self,
        node: str,
        module: str | Atom,
        function: str | Atom,
        args: Sequence[Any] = (),
        *,
        monitor: Literal[True],
        **options: Unpack[calls.RemoteOptions],
    ) -> tuple[Pid, Reference]: ...
    async def spawn_remote(
        self,
        node: str,
        module: str | Atom,
        function: str | Atom,
        args: Sequence[Any] = (),
        *,
        link: bool = False,
        monitor: bool = False,
        group_leader: Pid | None = None,
        options: Sequence[Any] = (),
        timeout: float | None = None,
    ) -> Any:
        """spawn_opt(Node, Module, Function, Args, Options): starts a process on another node.

        Its `Pid`; with `monitor` ``(pid, reference)``. Link and monitor are this process's own: its
        DOWN comes as a message, its exit signal as from `link`. `group_leader` gets what it prints,
        else this process's own group leader. Otherwise as `Node.spawn_remote`.
        """
        pending = await calls.spawn_remote(
            self._home,
            self,
            node,
            module,
            function,
            args,
            calls.SpawnOptions(link, monitor, False, group_leader, options),
            timeout,
        )
        return (pending.value, pending.ref) if monitor else pending.value

    @property
    def group_leader(self) -> Pid:
        """The process that gets what this one prints; what it starts anywhere inherits it."""
        self._check()
        return self._home.leader_of(self)

    @group_leader.setter
    def group_leader(self, leader: Pid) -> None:
        self.set_group_leader(self.pid, leader)

    def monitor_nodes(self, flag: bool = True) -> None:
        """net_kernel:monitor_nodes: ``(Atom("nodeup"), Atom(name))`` and ``(Atom("nodedown"), …)``
        come for every connection, hidden ones too, once for each call. ``flag=False`` ends all."""
        self._check()
        self._home.watch_nodes(self, flag)

    def spawn(
        self,
        function: Callable[..., Awaitable[object]],
        *args: Any,
        name: str | Atom | None = None,
    ) -> Pid:
        """`Node.spawn`; group leader and trace token of the new process are this one's."""
        process = self._home.start_process(function, args, name)
        self._hand_on(process)
        return process.pid

    def spawn_link(
        self,
        function: Callable[..., Awaitable[object]],
        *args: Any,
        name: str | Atom | None = None,
    ) -> Pid:
        """As `spawn`, and links the two before the new one runs."""
        pid = self.spawn(function, *args, name=name)
        self.link(pid)
        return pid

    def _hand_on(self, process: Process) -> None:
        """Group leader and trace token of a new process are those of the one that makes it."""
        core = self._home.core
        if not self.alive:
            return
        if leader := core.group_leader(self._key):
            core.set_group_leader(self._key, process.pid, leader)
        if self.seq_trace_token is not None:
            process._trace(core.trace_token(self._key))

    # -- life: called by the node

    async def _main(
        self, function: Callable[..., Awaitable[object]], args: tuple[Any, ...]
    ) -> None:
        """What the task of this process runs."""
        try:
            await function(self, *args)
        except asyncio.CancelledError:
            # By a signal, and dead already; or from outside: the node stops, or the user did it.
            self._end(SHUTDOWN)
            raise
        except Exception as error:
            self._crash(error, "spawn", 1 + len(args))
        except BaseException as error:
            self._crash(error, "spawn", 1 + len(args))
            raise
        else:
            self._end(NORMAL)

    def _task_done(self, _: asyncio.Task[None]) -> None:
        # A task that is cancelled before its first step never runs a line of _main.
        self._end(SHUTDOWN)

    def _end(self, reason: Any) -> None:
        """Dead from here on, for this reason, unless it was ended before."""
        try:
            self._finish(reason)
        except Exception as error:
            # The reason is no term, or too large.
            _log.exception("process %s: its exit reason could not be sent", self.pid)
            self._finish(crash_reason(error, "exit", 1))

    def _crash(self, error: BaseException, function: str, arity: int) -> None:
        """Ends it for an exception, with a log entry unless that is an `Exit`."""
        reason = exit_reason(error, function, arity)
        if self.alive and reason is not getattr(error, "reason", None):
            _log.error("process %s crashed in %s/%d", self.pid, function, arity, exc_info=error)
        self._end(reason)
