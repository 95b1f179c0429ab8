"""`global_name_server`: what a visible node answers, so that the others' `global` counts on it.

Nodes that meet synchronise their names under a lock of both partitions (the locker), changes of
names are made under a lock of all nodes, and a connection that is lost is told to all, so that no
partitions overlap. The messages are those of version 8, which OTP 25 to 28 speak.
"""

# ruff: noqa: SLF001 - a service drives its processes as the node does

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import random
from typing import TYPE_CHECKING, Any, Final

from .._term import Atom, Export, Pid, Reference
from ..calls import call, key_of, send_wait
from ..errors import (
    Busy,
    CallTimeout,
    Exit,
    NoConnection,
    ProcessExited,
    RemoteError,
    TumenError,
)
from ..server import Caller, NoReply
from .base import handle_mail
from .global_locker import Cancel, Him, Locker, LockSet, give_back
from .global_tables import GLOBAL, Locks, Names
from .kept import Kept
from .pg_view import group_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from ..process import Process
    from ..running import Running

__all__ = ["NAMES_TABLE", "SERVER", "GlobalServer", "resolve"]

_log = logging.getLogger("tumen")

SERVER: Final = Atom("global_name_server")
# Where a BEAM keeps its names, each with process and method, and what comes behind.
NAMES_TABLE: Final = Atom("global_names")

_GEN_CAST: Final = Atom("$gen_cast")
_UNDEFINED: Final = Atom("undefined")
_YES: Final = Atom("yes")
_OK: Final = Atom("ok")
_CONFLICT: Final = Atom("global_name_conflict")
_INSERT: Final = Atom("insert")
_DELETE: Final = Atom("delete")
_KILL: Final = Atom("kill")

# The version of the protocol that we speak, and since which versions it has node versions in its
# lists, and tags in lock_set with init_connect_ack and cancel_connect.
_VERSION: Final = 8
_VERSION_LISTS: Final = 7
_VERSION_TAGS: Final = 8

# Reports of lost connections that are remembered, so that each is passed on once.
_LOST_COUNT_MAX: Final = 4096
# Connecting to a node that another one knows must not take longer, seconds.
_CONNECT_S: Final = 7.0
# The names of another node are waited for so long, seconds.
_NAMES_S: Final = 10.0
# An answer to del_lock is waited for so long, seconds.
_UNLOCK_S: Final = 1.0
# It is tried so often: where two dial each other at once, an attempt may fail. That it did in the
# end is told to everybody, and parts the cluster.
_CONNECT_TRIES: Final = 3
# Where somebody else has the lock, another try comes after a random time below: so many seconds
# at first, twice as many each time, up to the last.
_RETRY_FIRST_S: Final = 0.125
_RETRY_MAX_S: Final = 8.0
# A question about a name waits for a change that is under way, looking so often at most.
_WHEREIS_TRIES: Final = 128


@dataclasses.dataclass(slots=True)
class _Meeting:
    """A node that came up and has not exchanged its names with us yet."""

    my_tag: int
    his_tag: Any = None
    version: int = 0  # 0: it has not said anything yet
    lock: Any = None  # on whose behalf both lockers have the lock
    names: list[Any] | None = None  # his
    operations: list[Any] | None = None  # for us: what his names change here
    resolved: tuple[list[Any], list[Any], list[Any]] | None = None  # for us, his nodes, external
    resolver: asyncio.Task[None] | None = None


async def _idle(proc: Process) -> None:
    async for _ in proc:
        pass


def resolve(home: Running, method: Any, name: Any, one: Pid, other: Pid) -> Pid | None:
    """What global:resolve_it does: who of two keeps a name; None: neither.

    `method` is one of global's own three; any other is a fun of another node, which cannot run
    here, and is taken for the default.
    """
    least, most = (one, other) if one.node < other.node else (other, one)
    own = home.own_process
    match method:
        case Export("global", "random_notify_name", 3):
            own.send(most, (_CONFLICT, name))
            return least
        case Export("global", "notify_all_name", 3):
            own.send(one, (_CONFLICT, name, other))
            own.send(other, (_CONFLICT, name, one))
            return None
    _log.warning("global: the name %r is claimed twice: %r is killed", name, most)
    own.exit(most, _KILL)
    return least


def _nodes(listed: list[Any]) -> dict[str, int]:
    """Nodes and versions of a list of nodes, or of such pairs."""
    found = {}
    for entry in listed:
        match entry:
            case Atom():
                found[entry.text] = 0
            case (Atom() as node, int() as version):
                found[node.text] = version
    return found


def _requester(extra: Any) -> Any:
    """On whose behalf the lock was taken, from the last element of new_nodes."""
    if isinstance(extra, list):
        for entry in extra:
            match entry:
                case (Atom("lock"), (_, requester)):
                    return requester
    return None


def _external_node(external: list[Any], name: Any, pid: Pid) -> Atom | None:
    """The node that has registered a name for a process elsewhere."""
    for entry in external:
        match entry:
            case (other, Pid() as owner, Atom() as node) if owner == pid and other == name:
                return node
    return None


class GlobalServer:
    """The name server of one node, with its locker and its registrar."""

    def __init__(self, home: Running) -> None:
        self.known: dict[str, int] = {}  # nodes of our partition, and their versions
        self.synced: set[str] = set()
        self.is_started = False
        self.closed = False
        self._home = home
        self._removing: set[str] = set()
        self._up: set[str] = set()
        self._meetings: dict[str, _Meeting] = {}
        # init_connect of nodes that we have no meeting with
        self._early: dict[str, tuple[int, Any, Pid]] = {}
        self._external: dict[tuple[str, Any], Any] = {}
        self._tags = itertools.count(1)
        self._lost: collections.OrderedDict[tuple[str, str], tuple[Any, int]] = (
            collections.OrderedDict()
        )
        self._backlog: dict[str, collections.deque[Any]] = {}
        self._changing = asyncio.Lock()
        self._synced_waiters: list[tuple[set[str], asyncio.Future[None]]] = []
        # Messages that the process has taken, and, by node, the last one of a connection that has
        # gone: connections are told of at once, while mail waits.
        self._taken = 0
        self._stale: dict[str, int] = {}
        self._epoch = 0
        self.names = Names(self._watch, self._unwatch)
        self.locks = Locks(self._watch, self._unwatch)
        self._kept = Kept(home, SERVER.text, self._begin, self._renewed)

    def start(self) -> None:
        """Makes the processes. `NameClash` when somebody has the name of the server."""
        self._kept.start()
        self._epoch = random.getrandbits(28) << 32 | self.process.pid.creation
        self.is_started = True
        for node in self._up:
            self._meet(node)

    def _begin(self) -> Process:
        """Server, locker and registrar end together, as on a BEAM."""
        home = self._home
        process = home.start_process(self._main, (), SERVER)
        process.trap_exit = True
        self.locker = Locker(self)
        self._locker_process = home.start_process(self._run_locker, (), None)
        self.locker.pid = self._locker_process.pid
        self._registrar = home.start_process(_idle, (), None)
        process.link(self._locker_process.pid)
        process.link(self._registrar.pid)
        return process

    def _renewed(self) -> None:
        """The processes are new. What was known is still so, but who was being met may wait for an
        answer to what has gone with the old ones."""
        self._taken = 0
        self._stale.clear()
        self.names.watch_again()
        self.locks.watch_again()
        for node in list(self._meetings):
            self._meet_again(node)
        if self.synced:
            self._home.background(self._catch_up())

    @property
    def process(self) -> Process:
        return self._kept.process

    async def _run_locker(self, proc: Process) -> None:
        locker = self.locker
        while True:
            try:
                await locker.main()
            except Exception:
                if not proc.alive:
                    return
                # Without it no node could be met any more.
                _log.exception("global: the locker has failed, and starts again")

    def _watch(self, pid: Pid) -> Reference:
        return self.process.monitor(pid)

    def _unwatch(self, ref: Reference) -> None:
        if self.process.alive:
            self.process.demonitor(ref)

    # -- connections: from the drain

    def node_up(self, node: str) -> None:
        self._up.add(node)
        if self.is_started:
            self._meet(node)

    def node_down(self, node: str) -> None:
        self._up.discard(node)
        self._backlog.pop(node, None)
        if self.is_started:
            self._stale[node] = self._taken + self.process._waiting()
            self._forget_node(node, lost=True)

    def leave(self) -> None:
        """The node is about to stop: its connections go together, and that is no split."""
        self.closed = True

    def close(self) -> None:
        """Its time is over: there will be another one."""
        self.leave()
        self._kept.close()

    # -- messages

    async def _main(self, proc: Process) -> None:
        await handle_mail(proc, SERVER.text, self._handle)

    def _handle(self, message: Any) -> bool:
        self._taken += 1
        match message:
            case (Atom("$gen_call"), (Pid() as pid, tag), request):
                if not self._is_stale(pid.node):
                    caller = Caller(self.process, pid, tag)
                    reply = self._called(request, caller)
                    if reply is not NoReply:
                        self._reply(caller, reply)
                return True
            case (Atom("$gen_cast"), request):
                return self._cast(request)
        return self._told(message)

    def _is_stale(self, node: str) -> bool:
        """Whether the message in hand came on a connection that has gone."""
        if node == self.own:
            return False
        return node not in self._up or self._taken <= self._stale.get(node, 0)

    def _reply(self, caller: Caller, reply: Any) -> None:
        try:
            caller.reply(reply)
        except Busy:
            self._home.background(send_wait(self._home, caller.pid, lambda: caller.reply(reply)))

    def _called(self, request: Any, caller: Caller) -> Any:
        match request:
            case (Atom("set_lock"), (resource, requester)):
                return self.locks.set(resource, requester, caller.pid)
            case (Atom("del_lock"), (resource, requester)):
                self.locks.remove(resource, requester, caller.pid)
                return True
            case (Atom("register"), name, Pid() as pid, method):
                self._insert(name, pid, method, self.locks.still_set_by(caller.pid))
                return _YES
            case (Atom("register_ext"), name, Pid() as pid, method, Atom() as node):
                self._insert(name, pid, method, self.locks.still_set_by(caller.pid), node)
                return _YES
            case (Atom("unregister"), name):
                self.names.remove(name)
                return _OK
            case Atom("get_known"):
                return [Atom(node) for node in self.known]
            case Atom("get_synced"):
                return [Atom(node) for node in self.synced]
            case Atom("get_protocol_version"):
                return _VERSION
            case Atom("get_names_ext"):
                return self._names_ext()
            case (Atom("sync"), list() as nodes) if all(isinstance(n, Atom) for n in nodes):
                self._home.background(self._answer_sync({n.text for n in nodes}, caller))
                return NoReply
        _log.debug("global_name_server: passed over the call %r", request)
        return NoReply

    def _cast(self, request: Any) -> bool:
        match request:
            case (
                Atom("init_connect"),
                (int() as version, his_tag, *_),
                Atom() as node,
                (Atom("locker"), _, _, Pid() as locker),
            ):
                if not self._is_stale(node.text):
                    self._init_connect(node.text, min(version, _VERSION), his_tag, locker)
            case (Atom("lock_set"), Pid() as locker, bool() as is_set, _, tag):
                meeting = self._meetings.get(locker.node)
                if meeting is not None and meeting.my_tag == tag:
                    self.locker.order(LockSet(locker, is_set, meeting.my_tag))
            case (Atom("lock_set"), Pid() as locker, bool() as is_set, _):
                self.locker.order(LockSet(locker, is_set, None))
            case (Atom("exchange"), Atom() as node, list() as names, _, tag):
                self._exchange(node.text, names, tag)
            case (
                Atom("resolved"),
                Atom() as node,
                list() as operations,
                list() as his_known,
                _,
                list() as external,
                tag,
            ):
                self._resolved(node.text, operations, his_known, external, tag)
            case (
                Atom("new_nodes"),
                Atom() as node,
                list() as operations,
                list() as external,
                list() as nodes,
                extra,
            ):
                if not self._is_stale(node.text):
                    self._new_nodes(operations, external, nodes, extra)
            case (Atom("in_sync"), Atom() as node, _):
                if not self._is_stale(node.text):
                    self._in_sync(node.text)
            case _:
                return False
        return True

    def _told(self, message: Any) -> bool:
        match message:
            case (Atom("DOWN"), Reference() as ref, _, _, _):
                self.locks.ended(ref)
                self.names.ended(ref)
            case (Atom("init_connect_ack"), Atom() as node, my_tag, his_tag):
                meeting = self._meetings.get(node.text)
                # Of an earlier tag of ours: that he has a later one is on its way to him.
                if meeting is not None and meeting.my_tag == my_tag and meeting.his_tag != his_tag:
                    self._send(node.text, (Atom("cancel_connect"), self._own_atom, his_tag))
                    self._meet_again(node.text)
            case (Atom("cancel_connect"), Atom() as node, tag):
                meeting = self._meetings.get(node.text)
                if meeting is not None and meeting.my_tag == tag:
                    self._meet_again(node.text)
            case (Atom("lost_connection"), Atom() as one, epoch, int() as number, Atom() as other):
                self._connection_lost(message, one.text, epoch, number, other.text)
            case (Atom("remove_connection"), Atom() as node):
                if not self._is_stale(node.text):
                    self._remove_connection(node.text)
            case (Atom("extra_nodedown"), Atom() as node):
                self._forget_node(node.text, lost=True)
            case (Atom("whereis"), name, (Pid() as pid, tag)):
                self._home.background(self._answer_whereis(name, Caller(self.process, pid, tag)))
            case (Atom("EXIT"), Pid() as pid, reason):
                if pid in (self._locker_process.pid, self._registrar.pid):
                    raise Exit((Atom("locker_died"), reason))
            case _:
                return False
        return True

    # -- meeting another node

    @property
    def _own_atom(self) -> Atom:
        return Atom(self.own)

    def _meet(self, node: str) -> None:
        if node in self.known or node in self._meetings or self.closed:
            return
        meeting = self._meetings[node] = _Meeting(next(self._tags))
        known: dict[Any, Any] = {}  # nobody looks at it
        locker = (Atom("locker"), Atom("no_longer_a_pid"), known, self.locker.pid)
        self._tell(node, (Atom("init_connect"), (_VERSION, meeting.my_tag), self._own_atom, locker))
        early = self._early.pop(node, None)
        if early is not None:
            self._init_connect(node, *early)

    def _meet_again(self, node: str) -> None:
        self._cancel(node)
        if node in self._up:
            self._meet(node)

    def _init_connect(self, node: str, version: int, his_tag: Any, locker: Any) -> None:
        meeting = self._meetings.get(node)
        if meeting is None:
            # It does not know yet that we are in sync already, or that its connection has gone.
            self._early[node] = (version, his_tag, locker)
            return
        if meeting.version:
            # He has begun anew, and not told us that he gave the first one up: both do it once
            # more, he on this.
            self._send(node, (Atom("cancel_connect"), self._own_atom, his_tag))
            self._meet_again(node)
            return
        meeting.version = version
        meeting.his_tag = his_tag
        self.locker.order(Him(node, locker, meeting.my_tag, his_tag, version))
        if version >= _VERSION_TAGS:
            self._send(node, (Atom("init_connect_ack"), self._own_atom, his_tag, meeting.my_tag))

    def _cancel(self, node: str) -> None:
        """Ends a meeting that has not come to its end, and tells the other side."""
        meeting = self._meetings.get(node)
        if meeting is not None and meeting.version >= _VERSION_TAGS:
            self._send(node, (Atom("cancel_connect"), self._own_atom, meeting.his_tag))
        self._end_meeting(node, None)

    def _end_meeting(self, node: str, last: Callable[[], None] | None) -> None:
        self._early.pop(node, None)
        meeting = self._meetings.pop(node, None)
        if meeting is None:
            return
        self.locker.order(Cancel(node, meeting.my_tag, last))
        if meeting.resolver is not None:
            meeting.resolver.cancel()

    def _with_tag(self, node: str, tag: Any) -> _Meeting | None:
        meeting = self._meetings.get(node)
        if meeting is not None and meeting.my_tag == tag:
            return meeting
        self.locker.order(Cancel(node, tag if isinstance(tag, int) else None, None))
        return None

    def _exchange(self, node: str, names: list[Any], tag: Any) -> None:
        meeting = self._with_tag(node, tag)
        if meeting is not None:
            meeting.names = names
            self._resolve_names(node, meeting)

    def _resolve_names(self, node: str, meeting: _Meeting) -> None:
        """Both have the lock, and his names are here: what becomes of them?"""
        if meeting.lock is None or meeting.names is None or meeting.resolver is not None:
            return
        meeting.resolver = asyncio.get_running_loop().create_task(
            self._resolve_or_retry(node, meeting, meeting.names)
        )

    async def _resolve_or_retry(self, node: str, meeting: _Meeting, names: list[Any]) -> None:
        """Whatever fails here must not leave the lock of both partitions held."""
        try:
            await self._resolve(node, meeting, names)
        except Exception:
            _log.exception("global: the names of %s could not be compared", node)
            if self._meetings.get(node) is meeting:
                self._meet_again(node)

    async def _resolve(self, node: str, meeting: _Meeting, names: list[Any]) -> None:
        ours: list[Any] = []
        his: list[Any] = []
        for entry in names:
            match entry:
                case (name, Pid() as pid, method):
                    await self._compare(node, name, pid, method, ours, his)
                case _:
                    _log.debug("global: %s has a name of another shape: %r", node, entry)
        if self._meetings.get(node) is not meeting:
            return
        known = self._known_list(meeting.version)
        self._tell(
            node,
            (
                Atom("resolved"),
                self._own_atom,
                his,
                known,
                Atom("unused"),
                self._names_ext(),
                meeting.his_tag,
            ),
        )
        meeting.operations = ours
        self._merge(node, meeting)

    async def _compare(
        self, node: str, name: Any, pid: Pid, method: Any, ours: list[Any], his: list[Any]
    ) -> None:
        """One name of his: what is to be done with it here, and there."""
        found = self.names.find(name)
        if found is None:
            ours.append((_INSERT, (name, pid, method)))
            return
        if found.pid == pid or self.own > node:
            return  # the same, or he decides
        winner = await self._decide(found.method, name, pid, found.pid)
        if winner == pid:
            ours.append((_INSERT, (name, pid, method)))
        elif winner == found.pid:
            his.append((_INSERT, (name, found.pid, found.method)))
        else:
            ours.append((_DELETE, name))
            his.append((_DELETE, name))

    async def _decide(self, method: Any, name: Any, his: Pid, ours: Pid) -> Any:
        """Who of two keeps a name, or None: the method says, where our process is."""
        if ours.node == self.own:
            return resolve(self._home, method, name, his, ours)
        try:
            return await self.process.rpc(
                ours.node, "global", "resolve_it", [method, name, his, ours]
            )
        except (RemoteError, NoConnection, CallTimeout) as error:
            _log.warning("global: the name %r is claimed twice: %s", name, error)
            return his

    def _resolved(
        self,
        node: str,
        operations: list[Any],
        his_known: list[Any],
        external: list[Any],
        tag: Any,
    ) -> None:
        meeting = self._with_tag(node, tag)
        if meeting is not None:
            meeting.resolved = (operations, his_known, external)
            self._merge(node, meeting)

    def _merge(self, node: str, meeting: _Meeting) -> None:
        """Both have resolved: the names are merged, and so are the partitions."""
        if meeting.operations is None or meeting.resolved is None:
            return
        his, his_known, external = meeting.resolved
        operations = meeting.operations + his
        before = dict(self.known)
        his_nodes = _nodes(his_known)
        extra = [
            (Atom("vsn"), meeting.version),
            (Atom("lock"), (GLOBAL, meeting.lock)),
        ]
        self._do(operations, external, self.locks.still_set_for(meeting.lock))
        for other in his_nodes:
            self._end_meeting(other, None)
        news = [(Atom(node), meeting.version), *((Atom(n), v) for n, v in his_nodes.items())]
        message = (Atom("new_nodes"), self._own_atom, operations, external, news, extra)
        old_message = (
            Atom("new_nodes"),
            self._own_atom,
            operations,
            external,
            [name for name, _ in news],
            extra,
        )

        def tell_the_known() -> None:
            for known, version in before.items():
                self._tell(known, message if version >= _VERSION_LISTS else old_message)

        # Told by the locker, before it gives the lock back.
        self._end_meeting(node, tell_the_known)
        self._add_known({node: meeting.version})
        self._add_known(his_nodes)
        self._sync_others([other for other in his_nodes if other != self.own])
        self.synced.add(node)
        self._check_synced()

    def _new_nodes(
        self, operations: list[Any], external: list[Any], nodes: list[Any], extra: Any
    ) -> None:
        added = self._add_known(_nodes(nodes))
        self._sync_others(added)
        self._do(operations, external, self.locks.still_set_for(_requester(extra)))

    def _in_sync(self, node: str) -> None:
        self.synced.add(node)
        # It counts us in already: the meeting is over for both, no need to cancel it there.
        self._end_meeting(node, None)
        self._check_synced()

    def _add_known(self, nodes: dict[str, int]) -> list[str]:
        """Those that were not known yet."""
        added = []
        for node, version in nodes.items():
            if node == self.own:
                continue
            if node not in self.known:
                self.known[node] = version
                added.append(node)
            elif not self.known[node]:
                self.known[node] = version
        return added

    def _sync_others(self, nodes: list[str]) -> None:
        for node in nodes:
            self._home.background(self._sync_other(node))

    async def _sync_other(self, node: str) -> None:
        """A node that others know becomes ours too: the cluster is a full mesh."""
        for tries_left in reversed(range(_CONNECT_TRIES)):
            try:
                await self._home.node.connect(node, timeout=_CONNECT_S)
            except TumenError as error:
                # It may have connected to us meanwhile, as it is told of us too.
                if node in self._up:
                    break
                if self.closed or not self.process.alive:
                    return
                if not tries_left:
                    _log.warning("global: failed to connect to %s: %s", node, error)
                    self._forget_node(node, lost=True)
                    return
                await asyncio.sleep(random.uniform(0, _RETRY_FIRST_S))
            else:
                break
        self._tell(node, (Atom("in_sync"), self._own_atom, True))

    # -- names

    def _insert(
        self, name: Any, pid: Pid, method: Any, is_locked: bool, node: Atom | None = None
    ) -> None:
        """A change that was not made under the lock comes from a partition that is gone."""
        if not is_locked:
            self.names.remove(name)
            return
        self.names.add(name, pid, method)
        if node is not None:
            self._external[node.text, group_key(name)] = (name, pid, node)

    def _names_ext(self) -> list[Any]:
        """Names that a node has registered for a process elsewhere, as C nodes have it done."""
        for key, (name, pid, _) in list(self._external.items()):
            found = self.names.find(name)
            if found is None or found.pid != pid:
                del self._external[key]
        return list(self._external.values())

    def _do(self, operations: list[Any], external: list[Any], is_locked: bool) -> None:
        for operation in operations:
            match operation:
                case (Atom("insert"), (name, Pid() as pid, method)):
                    self._insert(name, pid, method, is_locked, _external_node(external, name, pid))
                case (Atom("delete"), name):
                    self.names.remove(name)
                case _:
                    _log.debug("global: passed over the operation %r", operation)

    def whereis(self, name: Any) -> Pid | None:
        found = self.names.find(name)
        if found is None:
            return None
        if found.pid.node == self.own:
            pid = found.pid
            if not self._home.core.alive(key_of(pid)):
                return None
        return found.pid

    async def _answer_whereis(self, name: Any, caller: Caller) -> None:
        for _ in range(_WHEREIS_TRIES):
            if not self.locks.is_global_set:
                break
            await asyncio.sleep(random.uniform(0, _RETRY_FIRST_S))
        if self.process.alive:
            self._reply(caller, self.whereis(name) or _UNDEFINED)

    async def change(self, work: Callable[[], Any | None]) -> bool:
        """Runs `work` while we have the lock of all known nodes; it gives the request that all of
        them get, or None for none. Whether there was one."""
        registrar = self._registrar
        async with self._all_locked(registrar) as nodes:
            request = work()
            if request is not None:
                await self._ask(registrar, nodes, request)
            return request is not None

    @contextlib.asynccontextmanager
    async def _all_locked(self, registrar: Process) -> AsyncIterator[list[str]]:
        """The lock of all known nodes; which they are."""
        unlock = functools.partial(self.unlock_as, registrar)
        async with self._changing:
            try:
                yield await self._lock_known(registrar)
            finally:
                # Where it has ended, its locks have gone with it.
                if registrar.alive:
                    await give_back(unlock, registrar.pid, [self.own, *self.known])

    async def _catch_up(self) -> None:
        """Takes over what has changed while there was no server: the names of a node that we are in
        sync with, while nobody can change any."""
        with contextlib.suppress(ProcessExited):
            async with self._all_locked(self._registrar) as nodes:
                for node in nodes:
                    if node in self.synced and (names := await self._names_of(node)) is not None:
                        self.names.become(names)
                        return

    async def _names_of(self, node: str) -> list[tuple[Any, Pid, Any]] | None:
        """Its names, each with process and method; None when it does not tell."""
        try:
            rows = await self._home.own_process.rpc(
                node, "ets", "tab2list", [NAMES_TABLE], _NAMES_S
            )
        except TumenError as error:
            _log.debug("global: %s does not tell its names: %s", node, error)
            return None
        names = []
        for row in rows if isinstance(rows, list) else ():
            match row:
                case (name, Pid() as pid, method, *_):
                    names.append((name, pid, method))
        return names

    async def _lock_known(self, registrar: Process) -> list[str]:
        """Returns with the lock of all known nodes; which they are."""
        requester = registrar.pid
        pause = _RETRY_FIRST_S
        while True:
            known = set(self.known)
            nodes = [self.own, *known]
            boss = max(nodes)
            # As lockers do: of two that try, the boss lets one pass.
            if await self.lock_as(registrar, requester, [boss]):
                if await self.lock_as(registrar, requester, nodes) and set(self.known) <= known:
                    return nodes
                await give_back(functools.partial(self.unlock_as, registrar), requester, nodes)
            await asyncio.sleep(random.uniform(0, pause))
            pause = min(pause * 2, _RETRY_MAX_S)

    # -- what the locker asks for: `Partition`

    @property
    def own(self) -> str:
        return self._home.core.own

    def known_nodes(self) -> list[str]:
        return list(self.known)

    def is_locked(self) -> bool:
        return self.locks.is_global_set

    def may_lock(self, requester: Any) -> bool:
        return self.locks.may_set(GLOBAL, requester)

    async def set_lock(self, requester: Any, nodes: Sequence[str]) -> bool:
        return await self.lock_as(self._locker_process, requester, nodes)

    async def del_lock(self, requester: Any, nodes: Sequence[str]) -> None:
        await self.unlock_as(self._locker_process, requester, nodes)

    def tell_lock_set(self, him: Pid, version: int, tag: Any, is_set: bool) -> None:
        known = [Atom(node) for node in self.known]
        message: tuple[Any, ...] = (Atom("lock_set"), self.locker.pid, is_set, known)
        self._tell(him.node, (*message, tag) if version >= _VERSION_TAGS else message)

    def lock_is_set(self, node: str, tag: int, requester: Any) -> None:
        meeting = self._with_tag(node, tag)
        if meeting is None:
            return
        meeting.lock = requester
        names = [(name.term, name.pid, name.method) for name in self.names.all()]
        self._tell(node, (Atom("exchange"), self._own_atom, names, [], meeting.his_tag))
        self._resolve_names(node, meeting)

    # -- locks

    async def lock_as(self, holder: Process, requester: Any, nodes: Sequence[str]) -> bool:
        """Takes the lock for a process of ours on all these nodes, or on none."""
        if not nodes:
            return True
        if len(nodes) > 1 and self.own in nodes and not self.may_lock(requester):
            return False
        replies = await self._ask(holder, nodes, (Atom("set_lock"), (GLOBAL, requester)))
        if all(reply is True for reply in replies.values()):
            return True
        if len(replies) > 1:
            await self.unlock_as(
                holder, requester, [node for node, reply in replies.items() if reply is True]
            )
        return False

    async def unlock_as(self, holder: Process, requester: Any, nodes: Sequence[str]) -> None:
        await self._ask(holder, nodes, (Atom("del_lock"), (GLOBAL, requester)))

    async def _ask(self, holder: Process, nodes: Sequence[str], request: Any) -> dict[str, Any]:
        """The answers of the name servers of these nodes; those that cannot be had are left out.
        `ProcessExited` when the holder has ended: what it has locked is locked no more."""

        holder._check()

        # Nobody waits for a lock to be given back: the request is on its way, and whoever asked for
        # the change has a deadline.
        limit = _UNLOCK_S if request[0] == Atom("del_lock") else None

        async def one(node: str) -> tuple[str, Any] | None:
            if node == self.own:
                return node, self._ask_here(holder, request)
            try:
                return node, await call(self._home, holder, (SERVER, node), request, limit)
            except TumenError as error:
                holder._check()
                _log.debug("global: %s does not answer %r: %s", node, request, error)
                return None

        answers = await asyncio.gather(*(one(node) for node in dict.fromkeys(nodes)))
        return dict(answer for answer in answers if answer is not None)

    def _ask_here(self, holder: Process, request: Any) -> Any:
        match request:
            case (Atom("set_lock"), (resource, requester)):
                return self.locks.set(resource, requester, holder.pid)
            case (Atom("del_lock"), (resource, requester)):
                self.locks.remove(resource, requester, holder.pid)
            case (Atom("register"), name, pid, method):
                self._insert(name, pid, method, self.locks.still_set_by(holder.pid))
            case (Atom("unregister"), name):
                self.names.remove(name)
        return True

    # -- lost connections

    def _forget_node(self, node: str, *, lost: bool) -> None:
        """A node is no part of the cluster any more, as far as we know; `lost`: and nobody has
        told us to remove it, so the others hear of it."""
        if lost:
            if node in self._removing:
                self._removing.discard(node)
            elif not self.closed:
                self._tell_lost(node)
        else:
            self._removing.add(node)
        self._cancel(node)
        self.known.pop(node, None)
        self.synced.discard(node)
        self._check_synced()

    def _tell_lost(self, node: str) -> None:
        self._multicast(
            (
                Atom("lost_connection"),
                self._own_atom,
                self._epoch,
                next(self._tags),
                Atom(node),
            ),
            node,
        )

    def _multicast(self, message: Any, besides: str) -> None:
        """To every node that is known, or about to be."""
        meeting = [node for node, m in self._meetings.items() if m.version >= _VERSION_TAGS]
        known = [node for node, version in self.known.items() if version >= _VERSION_TAGS]
        for node in dict.fromkeys(known + meeting):
            if node != besides:
                self._send(node, message)

    def _connection_lost(self, message: Any, one: str, epoch: Any, number: int, other: str) -> None:
        """`one` has lost `other`: we part from that too, lest partitions overlap."""
        seen = self._lost.get((one, other))
        if seen is not None and seen[0] == epoch and number <= seen[1]:
            return
        self._multicast(message, one)
        self._lost[one, other] = (epoch, number)
        self._lost.move_to_end((one, other))
        if len(self._lost) > _LOST_COUNT_MAX:
            self._lost.popitem(last=False)
        gone = one if other == self.own else other
        if self._may_know(gone):
            _log.warning(
                "global: asked %s to disconnect, to prevent overlapping partitions: %s has lost %s",
                gone,
                one,
                other,
            )
            self._send(gone, (Atom("remove_connection"), self._own_atom))
            self._forget_node(gone, lost=False)

    def _remove_connection(self, node: str) -> None:
        if self._may_know(node):
            _log.warning("global: disconnected %s, to prevent overlapping partitions", node)
            self._forget_node(node, lost=False)
            self._home.core.disconnect(node)

    def _may_know(self, node: str) -> bool:
        meeting = self._meetings.get(node)
        return node in self.known or (meeting is not None and meeting.version > 0)

    # -- being in sync

    async def sync(self, nodes: set[str]) -> None:
        """Returns when our names are theirs; a node that is gone does not count."""
        waiting = {node for node in nodes if node != self.own}
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (waiting, future)
        self._synced_waiters.append(entry)
        self._check_synced()
        try:
            await future
        finally:
            if entry in self._synced_waiters:
                self._synced_waiters.remove(entry)

    async def _answer_sync(self, nodes: set[str], caller: Caller) -> None:
        await self.sync(nodes)
        if self.process.alive:
            self._reply(caller, _OK)

    def _check_synced(self) -> None:
        for waiting, future in list(self._synced_waiters):
            missing = any(node in self._up and node not in self.synced for node in waiting)
            if not missing and not future.done():
                future.set_result(None)

    def visible_nodes(self) -> set[str]:
        return set(self._up)

    # -- out

    def _known_list(self, version: int) -> list[Any]:
        if version < _VERSION_LISTS:
            return [Atom(node) for node in self.known]
        return [(Atom(node), known) for node, known in self.known.items()]

    def _tell(self, node: str, message: Any) -> None:
        self._send(node, (_GEN_CAST, message))

    def _send(self, node: str, message: Any) -> None:
        """To the name server of a node that is connected; in order, also where there is no room."""
        backlog = self._backlog.get(node)
        if backlog is not None:
            backlog.append(message)
            return
        if not self._try_send(node, message):
            self._backlog[node] = collections.deque([message])
            self._home.background(self._send_later(node))

    def _try_send(self, node: str, message: Any) -> bool:
        try:
            self._home.core.send(self.process._key, (SERVER, node), message, connect=False)
        except Busy:
            return False
        except TumenError as error:
            _log.debug("global: nothing sent to %s: %s", node, error)
        return True

    async def _send_later(self, node: str) -> None:
        backlog = self._backlog[node]
        while backlog and self._backlog.get(node) is backlog:
            await self._home.room.wait(node)
            while backlog and self._backlog.get(node) is backlog:
                if not self._try_send(node, backlog[0]):
                    break
                backlog.popleft()
        if self._backlog.get(node) is backlog:
            del self._backlog[node]
