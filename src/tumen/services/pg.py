"""Process groups, as OTP's pg has them: a process per scope, and what users see of it.

The process is registered under the scope's name and exists from the scope's first use on. It looks
for its likes on every connected node, hidden or not.
"""

# ruff: noqa: SLF001 - a service drives its process as the node does

from __future__ import annotations

import asyncio
import dataclasses
import enum
import logging
from typing import TYPE_CHECKING, Any, Final

from .._core import CoreProcess
from .._term import Atom, Pid, Reference
from ..calls import atom_of, pid_of
from ..errors import Busy, CallTimeout, LimitExceeded, TumenError
from ..stream import Stream
from .base import handle_mail
from .kept import Kept
from .pg_view import Action, View, group_key

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from ..process import Process
    from ..running import Running

    Member = Pid | CoreProcess

__all__ = ["GroupChange", "GroupMonitor", "Groups", "Pg"]

_log = logging.getLogger("tumen")

_GEN_CAST: Final = Atom("$gen_cast")

# A node to which we are hidden does not tell us when its scope starts: it is asked again, first
# after so many seconds, then after twice as many each time, up to the last.
_SEEK_FIRST_S: Final = 0.25
_SEEK_MAX_S: Final = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class GroupChange:
    """Processes have joined or left a group. A pid is there as often as it did.

    `dropped` changes before this one were thrown away: the reader was too slow, and should look at
    the members again.
    """

    action: Action
    group: Any
    pids: list[Pid]
    dropped: int = 0


class GroupMonitor(Stream[GroupChange]):
    """The changes of a group, or of all groups of a scope: ``async for change in monitor``.

    `members` is what it began with: the pids of the group, or a list of (group, pids) pairs.
    At most `Limits.events_count_max` changes wait here, then the oldest are dropped and counted.
    It ends with `close`, or when the node stops.
    """

    def __init__(self, members: list[Any], count_max: int) -> None:
        super().__init__(count_max)
        self.members = members

    def _next(self, dropped: int) -> GroupChange:
        change = super()._next(dropped)
        return dataclasses.replace(change, dropped=dropped) if dropped else change


class _All(enum.Enum):
    """What stands for every group where a group could stand."""

    GROUPS = enum.auto()


@dataclasses.dataclass(slots=True)
class _Listener:
    """A process that is sent the changes of a group."""

    pid: Pid
    monitor: Reference
    forget: Callable[[], None]


class _Scope:
    """One scope: its process, and the outlet of its view."""

    def __init__(self, pg: Pg, name: Atom) -> None:
        self.name = name
        self._pg = pg
        self._home = pg.home
        self._refs: dict[Pid, Reference] = {}
        # Nodes that have not answered yet: the timer that asks again, and its seconds.
        self._sought: dict[str, tuple[asyncio.TimerHandle, float]] = {}
        # Towards these there was no room, and a task waits for it.
        self._full: set[Pid] = set()
        # `Groups.ready` waits for these nodes; the monitor tells when there is no scope.
        self._asked: dict[str, tuple[Reference, asyncio.Future[None]]] = {}
        # Who hears of changes, by the key of a group.
        self._hearers: dict[Hashable, list[Callable[[GroupChange], None]]] = {}
        # Processes among those, by the reference in their messages, and how to forget them.
        self._listeners: dict[Reference, _Listener] = {}
        # The same references, by the monitors on those processes: a new process has new monitors.
        self._monitors: dict[Reference, Reference] = {}
        self._closed = False
        self._kept = Kept(
            self._home,
            f"the pg scope {name}",
            lambda: self._home.start_process(self._main, (), name),
            self._renewed,
        )
        self._kept.start()
        self.view = View(self.process.pid, self)
        # In a moment: what opens a scope mostly joins it, and the first list then tells of that.
        self._home.loop.call_soon(self._seek_all)

    # -- life

    @property
    def process(self) -> Process:
        return self._kept.process

    def revive(self) -> None:
        """Starts the scope's process where it has ended: the node has a name again."""
        self._kept.start()

    def _renewed(self) -> None:
        """The scope has a new process, which has to be known instead of the old one everywhere."""
        self._refs.clear()
        self._monitors.clear()
        for ref, listener in self._listeners.items():
            listener.monitor = self.process.monitor(listener.pid)
            self._monitors[listener.monitor] = ref
        for node, (_, future) in list(self._asked.items()):
            self._asked[node] = (self.process.monitor((self.name, node)), future)
        self.view.renew(self.process.pid)
        self._seek_all()

    def close(self) -> None:
        """Ends the scope: its peers see all its members leave."""
        self._closed = True
        for timer, _ in self._sought.values():
            timer.cancel()
        self._sought.clear()
        for node in list(self._asked):
            self._answered(node)
        self._kept.close()

    # -- mail

    async def _main(self, proc: Process) -> None:
        await handle_mail(proc, f"pg scope {self.name}", self._handle)

    def _handle(self, message: Any) -> bool:
        match message:
            case (Atom("DOWN"), Reference() as ref, _, Pid() as pid, _):
                self._down(ref, pid)
                return True
            case (Atom("DOWN"), Reference(), _, (_, Atom() as node), _):
                self._answered(node.text)
                return True
        understood = self.view.received(message)
        if understood and message[0] == _GEN_CAST:
            self._answered(message[1][1].node)
        return understood

    def _down(self, ref: Reference, pid: Pid) -> None:
        if self._refs.get(pid) == ref:
            del self._refs[pid]
            self.view.ended(pid)
            if self._pg.nodes.get(pid.node) is False:
                # Its scope may start again, and does not know of us.
                self._seek_later(pid.node, _SEEK_FIRST_S)
        elif ref in self._monitors:
            self._listeners.pop(self._monitors.pop(ref)).forget()

    # -- finding peers

    def _seek_all(self) -> None:
        if self._closed or not self.process.alive:
            return
        for node, visible in self._pg.nodes.items():
            self.seek(node, visible)

    def seek(self, node: str, visible: bool) -> None:
        """Asks a node that is connected for its scope."""
        if not self._discover(node) or not visible:
            self._seek_later(node, _SEEK_FIRST_S)

    def _discover(self, node: str) -> bool:
        try:
            for message in self.view.greeting():
                self._home.core.send(self.process._key, (self.name, node), message, connect=False)
        except TumenError:
            return False
        return True

    def _seek_later(self, node: str, delay: float) -> None:
        if self._closed or self.view.has_heard(node):
            return
        self._forget_search(node)
        timer = self._home.loop.call_later(delay, self._seek_again, node)
        self._sought[node] = (timer, delay)

    def _seek_again(self, node: str) -> None:
        _, delay = self._sought.pop(node)
        if node in self._pg.nodes and not self.view.has_heard(node) and self.process.alive:
            self._discover(node)
            self._seek_later(node, min(delay * 2, _SEEK_MAX_S))

    def _forget_search(self, node: str) -> None:
        found = self._sought.pop(node, None)
        if found is not None:
            found[0].cancel()

    def lost(self, node: str) -> None:
        """The connection to a node has gone."""
        self._forget_search(node)
        self.view.lost(node)

    async def ready(self) -> None:
        """Returns when each connected node has told its members, or has no such scope."""
        waits = []
        for node in self._pg.nodes:
            if not self.view.has_heard(node) and node not in self._asked and self.process.alive:
                ref = self.process.monitor((self.name, node))
                self._asked[node] = (ref, self._home.loop.create_future())
            if node in self._asked:
                waits.append(asyncio.shield(self._asked[node][1]))
        if waits:
            await asyncio.gather(*waits)

    def _answered(self, node: str) -> None:
        self._forget_search_if_heard(node)
        ref, future = self._asked.pop(node, (None, None))
        if ref is not None and self.process.alive:
            self.process.demonitor(ref)
        if future is not None and not future.done():
            future.set_result(None)

    def _forget_search_if_heard(self, node: str) -> None:
        if self.view.has_heard(node):
            self._forget_search(node)

    # -- what the view asks for: `Outlet`

    def connected(self, node: str) -> bool:
        return node in self._pg.nodes

    def send(self, peer: Pid, message: Any) -> bool:
        try:
            self._home.core.send(self.process._key, peer, message, connect=False)
        except Busy:
            if peer not in self._full:
                self._full.add(peer)
                self._home.background(self._catch_up(peer))
            return False
        except LimitExceeded as error:
            _log.error("pg scope %s: %s does not learn of our members: %s", self.name, peer, error)
            return False
        except TumenError:
            # It has gone, and its end is on the way to us; or we have.
            return False
        return True

    async def _catch_up(self, peer: Pid) -> None:
        await self._home.room.wait(peer.node)
        self._full.discard(peer)
        if not self._closed:
            self.view.catch_up(peer)

    def watch(self, pid: Pid) -> None:
        # While the scope has no process nothing can be watched: `View.renew` does so again.
        if self.process.alive:
            self._refs[pid] = self.process.monitor(pid)

    def unwatch(self, pid: Pid) -> None:
        ref = self._refs.pop(pid, None)
        if ref is not None and self.process.alive:
            self.process.demonitor(ref)

    def changed(self, action: Action, group: Any, pids: list[Pid]) -> None:
        if not self._hearers:
            return
        change = GroupChange(action, group, pids)
        for key in (group_key(group), _All.GROUPS):
            for hear in list(self._hearers.get(key, ())):
                hear(change)

    # -- who hears of changes

    def hear(self, key: Hashable, hear: Callable[[GroupChange], None]) -> Callable[[], None]:
        """Calls `hear` with the changes of a group; what ends that."""
        hearers = self._hearers.setdefault(key, [])
        hearers.append(hear)

        def forget() -> None:
            if hear in hearers:
                hearers.remove(hear)
                if not hearers and self._hearers.get(key) is hearers:
                    del self._hearers[key]

        return forget

    def tell(self, key: Hashable, pid: Pid) -> Reference:
        """Sends the changes of a group to a process, until that ends or `untell`."""
        ref = self.process.monitor(pid)

        def send(change: GroupChange) -> None:
            try:
                self.process.send(pid, (ref, Atom(change.action), change.group, change.pids))
            except TumenError as error:
                _log.warning("pg scope %s: %s missed a change: %s", self.name, pid, error)

        self._listeners[ref] = _Listener(pid, ref, self.hear(key, send))
        self._monitors[ref] = ref
        return ref

    def untell(self, ref: Reference) -> bool:
        listener = self._listeners.pop(ref, None)
        if listener is None:
            return False
        del self._monitors[listener.monitor]
        if self.process.alive:
            self.process.demonitor(listener.monitor)
        listener.forget()
        return True


class Pg:
    """The scopes of one node: a service."""

    def __init__(self, home: Running) -> None:
        self.home = home
        # Connected nodes, and whether they know us as visible.
        self.nodes: dict[str, bool] = {}
        self.groups = Groups(self)
        self._scopes: dict[Atom, _Scope] = {}
        self._closed = False

    def start(self) -> None:
        """A scope starts when it is used first; or now, if it has ended with the node's name."""
        for scope in self._scopes.values():
            scope.revive()

    def leave(self) -> None:
        """The node is about to stop: everybody is to see our members leave."""
        self._closed = True
        for scope in self._scopes.values():
            scope.close()

    def node_up(self, name: str, visible: bool) -> None:
        self.nodes[name] = visible
        for scope in self._scopes.values():
            if scope.process.alive:
                scope.seek(name, visible)

    def node_down(self, name: str) -> None:
        self.nodes.pop(name, None)
        for scope in self._scopes.values():
            scope.lost(name)

    @property
    def closed(self) -> bool:
        return self._closed

    def scope(self, name: str | Atom) -> _Scope:
        """The scope of that name, started now if need be. `NameClash`."""
        atom = atom_of(name)
        if self._closed:
            raise TumenError(f"{self.home.options.name} is stopping")
        found = self._scopes.get(atom)
        if found is None:
            found = self._scopes[atom] = _Scope(self, atom)
        return found


class Groups:
    """``node.pg``: named groups of processes over all connected nodes, as Erlang's pg has them.

    A group is any term; it exists while it has members, which are processes of any node. A process
    may be in a group several times. Members that end leave by themselves, and so do those of a node
    that is lost. Scopes are independent of each other; a scope starts with its first use here, and
    knows the members elsewhere as soon as those nodes have answered (`ready` waits for that).
    """

    def __init__(self, pg: Pg) -> None:
        self._pg = pg

    def join(self, group: Any, pids: Member | Iterable[Member], *, scope: str = "pg") -> None:
        """Processes of this node join a group, once more if they are in it. ValueError for a
        process of another node."""
        joining = self._local(pids)
        self._open(scope).view.join(group, joining)

    def leave(self, group: Any, pids: Member | Iterable[Member], *, scope: str = "pg") -> bool:
        """Each of them leaves once; False when none was a member."""
        leaving = self._local(pids)
        return not self._pg.closed and self._open(scope).view.leave(group, leaving)

    def members(self, group: Any, *, scope: str = "pg") -> list[Pid]:
        """The members on all nodes, each as often as it has joined; in no order."""
        return [] if self._pg.closed else self._open(scope).view.members(group)

    def local_members(self, group: Any, *, scope: str = "pg") -> list[Pid]:
        """The members on this node."""
        return [] if self._pg.closed else self._open(scope).view.local_members(group)

    def which_groups(self, *, scope: str = "pg") -> list[Any]:
        """Every group that has members."""
        return [] if self._pg.closed else self._open(scope).view.groups()

    def which_local_groups(self, *, scope: str = "pg") -> list[Any]:
        """Every group that has members on this node."""
        return [] if self._pg.closed else self._open(scope).view.local_groups()

    def send(self, group: Any, message: Any, *, scope: str = "pg") -> int:
        """Sends a message to each member once, from the node itself; to how many.

        `Busy` when some of them were behind a full send queue: those did not get it, the others
        did. `EncodeError`, `LimitExceeded`.
        """
        members = dict.fromkeys(self.members(group, scope=scope))
        sender = self._pg.home.own_process
        busy = []
        for pid in members:
            try:
                sender.send(pid, message)
            except Busy:
                busy.append(pid)
        if busy:
            raise Busy(
                f"no room towards {len(busy)} of the {len(members)} members of {group!r}",
                peer=busy[0].node,
            )
        return len(members)

    async def send_wait(self, group: Any, message: Any, *, scope: str = "pg") -> int:
        """As `send`, but waits for room where that raises `Busy`."""
        members = dict.fromkeys(self.members(group, scope=scope))
        sender = self._pg.home.own_process
        for pid in members:
            await sender.send_wait(pid, message)
        return len(members)

    def monitor(self, group: Any, *, scope: str = "pg") -> GroupMonitor:
        """The members of a group now, and every change from now on."""
        opened = self._open(scope)
        return self._monitor(opened, group_key(group), opened.view.members(group))

    def monitor_scope(self, *, scope: str = "pg") -> GroupMonitor:
        """All groups of a scope with their members now, and every change from now on."""
        view = self._open(scope).view
        members = [(group, view.members(group)) for group in view.groups()]
        return self._monitor(self._open(scope), _All.GROUPS, members)

    def monitor_for(
        self, process: Member, group: Any, *, scope: str = "pg"
    ) -> tuple[Reference, list[Pid]]:
        """pg:monitor for a process of this node: the reference and the members now; the process
        gets ``(ref, Atom("join") or Atom("leave"), group, [pid, …])`` from now on."""
        opened = self._open(scope)
        pid = self._local(process)
        if not isinstance(pid, Pid):
            raise TypeError(f"one process, not {process!r}")
        return opened.tell(group_key(group), pid), opened.view.members(group)

    def demonitor(self, ref: Reference, *, scope: str = "pg") -> bool:
        """Ends what `monitor_for` began; False when there was nothing to end."""
        return not self._pg.closed and self._open(scope).untell(ref)

    async def ready(self, timeout: float | None = 5.0, *, scope: str = "pg") -> None:
        """Returns when the members on every node that is connected now are known here.

        `CallTimeout` after `timeout` seconds.
        """
        opened = self._open(scope)
        try:
            async with asyncio.timeout(timeout):
                await opened.ready()
        except TimeoutError:
            raise CallTimeout(
                f"scope {scope}: not every node has answered within {timeout} s",
                may_have_executed=False,
            ) from None

    def _open(self, scope: str) -> _Scope:
        return self._pg.scope(scope)

    def _monitor(self, scope: _Scope, key: Hashable, members: list[Any]) -> GroupMonitor:
        monitor = GroupMonitor(members, self._pg.home.limits.events_count_max)
        monitor.forget = scope.hear(key, monitor.put)
        self._pg.home.streams.add(monitor)
        return monitor

    def _local(self, pids: Member | Iterable[Member]) -> Pid | list[Pid]:
        """What was given as pids of this node: one, or a list."""
        own = self._pg.home.core.own

        def local(member: Member) -> Pid:
            pid = pid_of(member)
            if pid.node != own:
                raise ValueError(f"{pid!r} is not a process of {own}")
            return pid

        if isinstance(pids, Pid | CoreProcess):
            return local(pids)
        return [local(member) for member in pids]
