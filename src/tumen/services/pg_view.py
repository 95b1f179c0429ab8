"""What one pg scope knows: its own members, those of its peers, and what to tell whom. Pure.

Who drives it hands in messages and ends of processes, and sends what it says through `Outlet`.

A BEAM's scope crashes on a `leave` of something that it never saw join. So a peer gets joins and
leaves only after it got a `sync`, our full list, on the same connection; whenever that chain may be
broken (no room in the send queue, a connection that went), the next thing it gets is a `sync`.
Several connections may have come and gone before we learn of the first one, and what is sent goes
out on the last: so whatever makes a peer know us, a `discover`, has a `sync` behind it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from .._term import Atom, Pid, TermMap, decode, encode

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

__all__ = ["Action", "Outlet", "View", "group_key"]

Action = Literal["join", "leave"]

_DISCOVER: Final = Atom("discover")
_JOIN: Final = Atom("join")
_LEAVE: Final = Atom("leave")
_SYNC: Final = Atom("sync")
_GEN_CAST: Final = Atom("$gen_cast")


class Outlet(Protocol):
    """What a `View` asks of who drives it."""

    def connected(self, node: str) -> bool:
        """Whether there is a connection."""

    def send(self, peer: Pid, message: Any) -> bool:
        """Sends to a peer's scope process. False: it was not sent; if there was no room,
        `View.catch_up` will be called for that peer when there is."""

    def watch(self, pid: Pid) -> None:
        """Its end is to be told by `View.ended`, once."""

    def unwatch(self, pid: Pid) -> None:
        """It is not any more."""

    def changed(self, action: Action, group: Any, pids: list[Pid]) -> None:
        """Members have joined or left a group, here or elsewhere."""


class _Counts(dict[Pid, int]):
    """Pids, and how often each is there."""

    def add(self, pids: Iterable[Pid]) -> None:
        for pid in pids:
            self[pid] = self.get(pid, 0) + 1

    def take(self, pids: Iterable[Pid]) -> list[Pid]:
        """Takes each away once; those that were there."""
        taken = []
        for pid in pids:
            count = self.get(pid, 0)
            if count > 1:
                self[pid] = count - 1
            elif count:
                del self[pid]
            else:
                continue
            taken.append(pid)
        return taken

    def each(self) -> list[Pid]:
        return [pid for pid, count in self.items() for _ in range(count)]

    def more_than(self, other: _Counts | None) -> list[Pid]:
        """What is here and not there, as often as it is here more often."""
        if not other:
            return self.each()
        return [pid for pid, n in self.items() for _ in range(n - other.get(pid, 0))]


@dataclasses.dataclass(slots=True)
class _Group:
    term: Any
    everyone: _Counts = dataclasses.field(default_factory=_Counts)
    local: _Counts = dataclasses.field(default_factory=_Counts)


@dataclasses.dataclass(slots=True)
class _Peer:
    """The scope process of another node."""

    groups: dict[Hashable, _Counts] = dataclasses.field(default_factory=dict)
    # It has our full list, and hears of every change.
    synced: bool = False
    # It got that list before it has asked: its question needs no second one.
    foreseen: bool = False


def group_key(group: Any) -> Hashable:
    """Equal for terms that are ``=:=``. EncodeError for what is no term."""
    return group if type(group) is Atom else TermMap(((group, True),))


class View:
    """The members of all groups of one scope, as far as `own`, its scope process, has heard."""

    def __init__(self, own: Pid, outlet: Outlet) -> None:
        self.own = own
        self._outlet = outlet
        self._groups: dict[Hashable, _Group] = {}
        # Local members, with their groups in the order of joining, as often as they joined.
        self._local: dict[Pid, list[Hashable]] = {}
        self._peers: dict[Pid, _Peer] = {}
        # Nodes whose list has come, and the process that sent it.
        self._heard: dict[str, Pid] = {}

    # -- questions

    def members(self, group: Any) -> list[Pid]:
        found = self._groups.get(group_key(group))
        return [] if found is None else found.everyone.each()

    def local_members(self, group: Any) -> list[Pid]:
        found = self._groups.get(group_key(group))
        return [] if found is None else found.local.each()

    def groups(self) -> list[Any]:
        return [group.term for group in self._groups.values()]

    def local_groups(self) -> list[Any]:
        return [group.term for group in self._groups.values() if group.local]

    def peers(self) -> list[Pid]:
        """The scope processes of other nodes."""
        return list(self._peers)

    def has_heard(self, node: str) -> bool:
        """Whether the members of that node are known."""
        return node in self._heard

    def greeting(self) -> tuple[Any, Any]:
        """What the scope of a node gets whose connection is new, both in this order."""
        return (_DISCOVER, self.own), self._list()

    # -- our members

    def renew(self, own: Pid) -> None:
        """The scope has a new process: its members stay, all peers are to be found again."""
        peers, self._peers = self._peers, {}
        self._heard.clear()
        for peer in peers.values():
            self._replace(peer, {})
        self.own = own
        for pid in self._local:
            self._outlet.watch(pid)

    def join(self, group: Any, pids: Pid | Sequence[Pid]) -> None:
        """Local processes join once, or once more. EncodeError for a group that is no term."""
        joining = [pids] if isinstance(pids, Pid) else list(pids)
        if not joining:
            return
        if type(group) is not Atom:
            # As another node has it; and a copy, for the caller may change his.
            group = decode(encode(group))
        key = group_key(group)
        found = self._group(key, group)
        found.everyone.add(joining)
        found.local.add(joining)
        for pid in joining:
            if pid not in self._local:
                self._local[pid] = []
                self._outlet.watch(pid)
            self._local[pid].append(key)
        self._tell((_JOIN, self.own, found.term, _shape(pids, joining)))
        self._outlet.changed("join", found.term, joining)

    def leave(self, group: Any, pids: Pid | Sequence[Pid]) -> bool:
        """Each leaves once; False when none of them was a member."""
        key = group_key(group)
        found = self._groups.get(key)
        if found is None:
            return False
        left = found.local.take([pids] if isinstance(pids, Pid) else pids)
        if not left:
            return False
        for pid in left:
            groups = self._local[pid]
            groups.remove(key)
            if not groups:
                del self._local[pid]
                self._outlet.unwatch(pid)
        self._take(key, left)
        self._tell((_LEAVE, self.own, _shape(pids, left), [found.term]))
        self._outlet.changed("leave", found.term, left)
        return True

    def ended(self, pid: Pid) -> None:
        """A process that was watched is gone, or its connection: a member, or a peer."""
        keys = self._local.pop(pid, None)
        if keys is not None:
            terms = [self._groups[key].term for key in keys]
            for key in keys:
                self._groups[key].local.take([pid])
                self._take(key, [pid])
            self._tell((_LEAVE, self.own, pid, terms))
            for term in terms:
                self._outlet.changed("leave", term, [pid])
            return
        peer = self._peers.pop(pid, None)
        if peer is not None:
            if self._heard.get(pid.node) == pid:
                del self._heard[pid.node]
            self._replace(peer, {})

    # -- peers

    def lost(self, node: str) -> None:
        """The connection to a node has gone; `ended` will follow for its scope process. Until then
        nothing is sent to it: it may be heard again before, and knows nothing of us then."""
        for pid, peer in self._peers.items():
            if pid.node == node:
                peer.synced = peer.foreseen = False

    def catch_up(self, pid: Pid) -> None:
        """There is room again towards a peer."""
        peer = self._peers.get(pid)
        if peer is None or peer.synced:
            return
        if self._heard.get(pid.node) != pid:
            # What asks for its list may have found no room either.
            self._outlet.send(pid, (_DISCOVER, self.own))
        self._sync(pid, peer)

    def received(self, message: Any) -> bool:
        """A message of a peer; False for one that no scope sends."""
        match message:
            case (Atom("discover"), Pid() as pid) | (Atom("discover"), Pid() as pid, _):
                self._discovered(pid)
            case (Atom("$gen_cast"), (Atom("sync"), Pid() as pid, list() as lists)):
                return self._synced(pid, lists)
            case (Atom("join"), Pid() as pid, group, pids):
                joining = _pids(pids)
                if joining is None:
                    return False
                peer = self._peers.get(pid)
                if peer is not None and joining:
                    self._joined(peer, group, joining)
            case (Atom("leave"), Pid() as pid, pids, list() as groups):
                leaving = _pids(pids)
                if leaving is None:
                    return False
                peer = self._peers.get(pid)
                if peer is not None:
                    self._left(peer, leaving, groups)
            case _:
                return False
        return True

    def _discovered(self, pid: Pid) -> None:
        peer = self._peers.get(pid)
        if peer is None:
            peer = self._meet(pid)
            if peer is None:
                return
            self._outlet.send(pid, (_DISCOVER, self.own))
            self._sync(pid, peer)
        elif peer.foreseen:
            peer.foreseen = False
        else:
            self._sync(pid, peer)

    def _synced(self, pid: Pid, lists: list[Any]) -> bool:
        groups: dict[Hashable, tuple[Any, _Counts]] = {}
        for entry in lists:
            members = _pids(entry[1]) if type(entry) is tuple and len(entry) == 2 else None
            if members is None:
                return False
            group = entry[0]
            if members:
                groups.setdefault(group_key(group), (group, _Counts()))[1].add(members)
        peer = self._peers.get(pid) or self._meet(pid)
        if peer is None:
            return True
        self._heard[pid.node] = pid
        self._replace(peer, groups)
        if not peer.synced:
            # It knows us, and perhaps nothing of our members.
            peer.foreseen = True
            self._sync(pid, peer)
        return True

    def _joined(self, peer: _Peer, group: Any, pids: list[Pid]) -> None:
        key = group_key(group)
        found = self._group(key, group)
        found.everyone.add(pids)
        peer.groups.setdefault(key, _Counts()).add(pids)
        self._outlet.changed("join", found.term, pids)

    def _left(self, peer: _Peer, pids: list[Pid], groups: list[Any]) -> None:
        for group in groups:
            key = group_key(group)
            counts = peer.groups.get(key)
            if counts is None:
                continue
            left = counts.take(pids)
            if not counts:
                del peer.groups[key]
            if left:
                term = self._groups[key].term
                self._take(key, left)
                self._outlet.changed("leave", term, left)

    def _meet(self, pid: Pid) -> _Peer | None:
        """A peer that is new; None when its connection has gone since it wrote, or it is none."""
        if pid.node == self.own.node or not self._outlet.connected(pid.node):
            return None
        peer = self._peers[pid] = _Peer()
        self._outlet.watch(pid)
        return peer

    def _replace(self, peer: _Peer, groups: dict[Hashable, tuple[Any, _Counts]]) -> None:
        """Its members are these now."""
        old = peer.groups
        peer.groups = {key: counts for key, (_, counts) in groups.items()}
        for key, counts in old.items():
            if gone := counts.more_than(peer.groups.get(key)):
                term = self._groups[key].term
                self._take(key, gone)
                self._outlet.changed("leave", term, gone)
        for key, (group, counts) in groups.items():
            if came := counts.more_than(old.get(key)):
                found = self._group(key, group)
                found.everyone.add(came)
                self._outlet.changed("join", found.term, came)

    # -- out

    def _list(self) -> Any:
        """Our full list."""
        lists = [(group.term, group.local.each()) for group in self._groups.values() if group.local]
        return (_GEN_CAST, (_SYNC, self.own, lists))

    def _sync(self, pid: Pid, peer: _Peer) -> None:
        peer.synced = self._outlet.send(pid, self._list())

    def _tell(self, message: Any) -> None:
        for pid, peer in self._peers.items():
            if peer.synced:
                peer.synced = self._outlet.send(pid, message)

    # -- tables

    def _group(self, key: Hashable, term: Any) -> _Group:
        found = self._groups.get(key)
        if found is None:
            found = self._groups[key] = _Group(term)
        return found

    def _take(self, key: Hashable, pids: list[Pid]) -> None:
        group = self._groups[key]
        group.everyone.take(pids)
        if not group.everyone:
            del self._groups[key]


def _pids(value: Any) -> list[Pid] | None:
    """A pid or a list of pids, as a list; None for anything else."""
    if isinstance(value, Pid):
        return [value]
    if isinstance(value, list) and all(isinstance(pid, Pid) for pid in value):
        return value
    return None


def _shape(given: Pid | Sequence[Pid], pids: list[Pid]) -> Any:
    """A pid where one was given, else a list: as the caller of pg gave it."""
    return pids[0] if isinstance(given, Pid) else pids
