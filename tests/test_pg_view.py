"""Views of pg scopes, some of them strict ones as OTP's: equal at rest, whatever came before."""

from __future__ import annotations

import collections
import itertools
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tumen import Atom, Pid
from tumen.services.pg_view import View

GROUPS: list[Any] = [Atom("g"), b"h", (Atom("room"), 1)]
JOIN, LEAVE, SYNC, DISCOVER, CAST = map(Atom, ("join", "leave", "sync", "discover", "$gen_cast"))

Members = collections.Counter[tuple[Any, Pid]]


class Otp:
    """OTP's scope by its rules: what would crash it raises here."""

    def __init__(self, home: Station, own: Pid) -> None:
        self.home, self.own = home, own
        self.local: dict[Pid, list[Any]] = {}
        self.remote: dict[Pid, dict[Any, list[Pid]]] = {}

    def join(self, group: Any, pid: Pid) -> None:
        if pid not in self.local:
            self.home.watched.add(pid)
        self.local.setdefault(pid, []).append(group)
        self.broadcast((JOIN, self.own, group, pid))

    def leave(self, group: Any, pid: Pid) -> None:
        if group in self.local.get(pid, []):
            self.local[pid].remove(group)
            if not self.local[pid]:
                del self.local[pid]
                self.home.watched.discard(pid)
            self.broadcast((LEAVE, self.own, pid, [group]))

    def broadcast(self, message: Any) -> None:
        for peer in self.remote:
            self.home.send(peer, message)

    def lists(self) -> list[Any]:
        groups: dict[Any, list[Pid]] = {}
        for pid, joined in self.local.items():
            for group in joined:
                groups.setdefault(group, []).append(pid)
        return list(groups.items())

    def down(self, pid: Pid) -> None:
        if pid in self.local:
            self.broadcast((LEAVE, self.own, pid, self.local.pop(pid)))
        self.remote.pop(pid, None)

    def nodeup(self, node: str) -> None:
        self.home.send(node, (DISCOVER, self.own))

    def received(self, message: Any) -> None:
        match message:
            case (Atom("discover"), Pid() as peer):
                self.home.send(peer, (CAST, (SYNC, self.own, self.lists())))
                if peer not in self.remote:
                    self.remote[peer] = {}
                    self.home.watch(peer)
                    self.home.send(peer, (DISCOVER, self.own))
            case (Atom("$gen_cast"), (Atom("sync"), peer, groups)):
                if peer not in self.remote:
                    self.home.watch(peer)
                assert all(pids for _, pids in groups)
                self.remote[peer] = {group: list(pids) for group, pids in groups}
                assert len(self.remote[peer]) == len(groups)
            case (Atom("join"), peer, group, pids):
                if peer in self.remote:
                    pids = [pids] if isinstance(pids, Pid) else pids
                    self.remote[peer].setdefault(group, []).extend(pids)
            case (Atom("leave"), peer, pids, groups):
                if peer in self.remote:
                    self.left(peer, [pids] if isinstance(pids, Pid) else pids, groups)
            case _:
                raise AssertionError(f"it crashes: {message!r}")

    def left(self, peer: Pid, pids: list[Pid], groups: list[Any]) -> None:
        known = self.remote[peer]
        # A leave that it did not expect it may get from its own kind, and from nobody else.
        lenient = self.home.net.is_strict(peer.node)
        for group in groups:
            members = known.get(group, []) if lenient else known[group]
            for pid in pids:
                if not lenient or pid in members:
                    members.remove(pid)
            if not members:
                known.pop(group, None)

    def members(self) -> Members:
        own = [(group, pid) for pid, joined in self.local.items() for group in joined]
        others = [
            (group, pid)
            for groups in self.remote.values()
            for group, pids in groups.items()
            for pid in pids
        ]
        return collections.Counter(own + others)


class Ours:
    """A `View`, driven as the service drives it."""

    def __init__(self, home: Station, own: Pid) -> None:
        self.home = home
        self.busy = False
        self.behind: list[Pid] = []
        self.view = View(own, self)
        self.seen: Members = collections.Counter()

    def join(self, group: Any, pid: Pid) -> None:
        self.view.join(group, pid)

    def leave(self, group: Any, pid: Pid) -> None:
        self.view.leave(group, pid)

    def down(self, pid: Pid) -> None:
        self.view.ended(pid)

    def nodeup(self, node: str) -> None:
        for message in self.view.greeting():
            self.home.send(node, message)

    def received(self, message: Any) -> None:
        assert self.view.received(message)

    def members(self) -> Members:
        found = collections.Counter(
            (group, pid) for group in self.view.groups() for pid in self.view.members(group)
        )
        # Who follows the changes sees the same.
        assert found == self.seen
        return found

    def free(self) -> None:
        self.busy = False
        behind, self.behind = self.behind, []
        for peer in behind:
            self.view.catch_up(peer)

    # Outlet

    def connected(self, node: str) -> bool:
        return node in self.home.up

    def send(self, peer: Pid, message: Any) -> bool:
        if self.busy:
            self.behind.append(peer)
            return False
        return self.home.send(peer, message)

    def watch(self, pid: Pid) -> None:
        self.home.watch(pid)

    def unwatch(self, pid: Pid) -> None:
        self.home.watched.discard(pid)

    def changed(self, action: str, group: Any, pids: list[Pid]) -> None:
        for pid in pids:
            self.seen[group, pid] += 1 if action == "join" else -1
        assert all(count >= 0 for count in self.seen.values())
        self.seen = +self.seen


class Station:
    """One node: its scope, what waits for its loop (events), and for its scope (mail)."""

    def __init__(self, net: Net, name: str, kind: type[Otp | Ours]) -> None:
        self.net, self.name, self.kind = net, name, kind
        self.events: collections.deque[tuple[str, Any]] = collections.deque()
        self.mail: collections.deque[tuple[str, Any]] = collections.deque()
        self.up: set[str] = set()  # as its events have told
        self.watched: set[Pid] = set()
        self.members: list[Pid] = []
        self.pid = net.pid(name)
        self.scope = kind(self, self.pid)

    def send(self, to: Pid | str, message: Any) -> bool:
        node = to if isinstance(to, str) else to.node
        if (self.name, node) not in self.net.wires:
            return False
        self.net.wires[self.name, node].append((to, message))
        return True

    def watch(self, pid: Pid) -> None:
        self.watched.add(pid)
        if pid.node == self.name:
            return
        if (self.name, pid.node) not in self.net.wires:
            self.events.append(("down", pid))
        else:
            self.net.wires[self.name, pid.node].append(("monitor", pid))

    def step_events(self) -> None:
        if not self.events:
            return
        kind, what = self.events.popleft()
        if kind == "nodeup":
            self.up.add(what)
            if isinstance(self.scope, Ours):
                self.scope.nodeup(what)
            elif self.net.visible:
                self.mail.append((kind, what))
        elif kind == "nodedown":
            self.up.discard(what)
            if isinstance(self.scope, Ours):
                self.scope.view.lost(what)
        else:
            self.mail.append((kind, what))

    def step_mail(self) -> None:
        if not self.mail:
            return
        kind, what = self.mail.popleft()
        if kind == "down":
            if what in self.watched:
                self.watched.discard(what)
                self.scope.down(what)
        elif kind == "nodeup":
            self.scope.nodeup(what)
        elif what[0] in (self.name, self.pid):
            self.scope.received(what[1])

    def restart(self) -> None:
        """The scope's process ends, and another takes its place."""
        old, self.pid = self.pid, self.net.pid(self.name)
        for other in self.net.stations.values():
            if (self.name, other.name) in self.net.wires and old in other.watched:
                self.net.wires[self.name, other.name].append(("down", old))
        self.watched.clear()
        self.mail.clear()
        if isinstance(self.scope, Ours):
            self.scope.behind.clear()
            self.scope.view.renew(self.pid)
        else:
            self.scope = Otp(self, self.pid)
        for node in sorted(self.up) if isinstance(self.scope, Ours) or self.net.visible else ():
            self.scope.nodeup(node)


class Net:
    """Some nodes and the connections between them."""

    def __init__(self, kinds: list[type[Otp | Ours]], *, visible: bool) -> None:
        self.visible = visible
        self.numbers = itertools.count(1)
        self.wires: dict[tuple[str, str], collections.deque[tuple[Any, Any]]] = {}
        self.stations: dict[str, Station] = {}
        for place, kind in enumerate(kinds):
            name = f"n{place}@h"
            self.stations[name] = Station(self, name, kind)
        for a, b in itertools.combinations(self.stations, 2):
            self.connect(a, b)

    def pid(self, node: str) -> Pid:
        return Pid(node, next(self.numbers), 0, 1)

    def is_strict(self, name: str) -> bool:
        return self.stations[name].kind is Otp

    def connect(self, a: str, b: str) -> None:
        if (a, b) not in self.wires:
            for one, other in ((a, b), (b, a)):
                self.wires[one, other] = collections.deque()
                self.stations[one].events.append(("nodeup", other))

    def disconnect(self, a: str, b: str) -> None:
        if (a, b) in self.wires:
            for one, other in ((a, b), (b, a)):
                del self.wires[one, other]
                station = self.stations[one]
                for pid in [pid for pid in station.watched if pid.node == other]:
                    station.events.append(("down", pid))
                station.events.append(("nodedown", other))

    def carry(self, a: str, b: str) -> None:
        wire = self.wires.get((a, b))
        if not wire:
            return
        what, value = wire.popleft()
        station = self.stations[b]
        if what == "monitor":
            # A dead process is reported to who has asked.
            if value not in (station.pid, *station.members):
                self.wires[b, a].append(("down", value))
        elif what == "down":
            station.events.append(("down", value))
        else:
            station.events.append(("message", (what, value)))

    def rest(self) -> None:
        """Everything connected, and nothing under way."""
        for a, b in itertools.combinations(self.stations, 2):
            self.connect(a, b)
        for station in self.stations.values():
            if isinstance(station.scope, Ours):
                station.scope.free()
        for _ in range(3):
            self.settle()
            for station in self.stations.values():
                if isinstance(station.scope, Ours):
                    for node in station.up:
                        if not station.scope.view.has_heard(node):
                            station.scope.nodeup(node)
        self.settle()

    def settle(self, except_mail_of: Station | None = None) -> None:
        """Everything arrives; but one scope may be late to look at its mail."""
        late = except_mail_of
        while any(self.wires.values()) or any(
            s.events or (s.mail and s is not late) for s in self.stations.values()
        ):
            for a, b in list(self.wires):
                self.carry(a, b)
            for station in self.stations.values():
                station.step_events()
                if station is not late:
                    station.step_mail()


def play(net: Net, random: random.Random, steps: int) -> None:
    names = list(net.stations)

    def two(x: int, y: int) -> tuple[str, str]:
        a = x % len(names)
        return names[a], names[(a + 1 + y % (len(names) - 1)) % len(names)]

    net.settle()
    for _ in range(steps):
        what, x, y, z = (random.randrange(n) for n in (15, 4, 2, 4))
        station = net.stations[names[x % len(names)]]
        group = GROUPS[y % len(GROUPS)]
        match what:
            case 0 | 1:
                if not station.members or z % 3 == 0:
                    station.members.append(net.pid(station.name))
                station.scope.join(group, station.members[z % len(station.members)])
            case 2:
                if station.members:
                    station.scope.leave(group, station.members[z % len(station.members)])
            case 3:
                if station.members:
                    dead = station.members.pop(z % len(station.members))
                    station.events.append(("down", dead))
            case 4:
                net.disconnect(*two(x, y))
            case 5 | 13:
                if what == 13:
                    net.disconnect(*two(x, y))
                net.connect(*two(x, y))
            case 6:
                station.restart()
            case 7:
                if isinstance(station.scope, Ours):
                    station.scope.busy = True
            case 8:
                if isinstance(station.scope, Ours):
                    station.scope.free()
            case 9:
                for _ in range(1 + z):
                    net.carry(*two(x, y))
            case 10:
                for _ in range(1 + z):
                    station.step_events()
            case 11:
                for _ in range(1 + z):
                    station.step_mail()
            case _:
                net.settle(except_mail_of=station if z % 2 else None)


KINDS = st.lists(st.sampled_from([Otp, Ours]), min_size=2, max_size=4).filter(lambda k: Ours in k)


@given(kinds=KINDS, visible=st.booleans(), seed=st.integers(0, 2**32))
@settings(max_examples=200)
def test_views_are_equal_at_rest_and_no_strict_scope_crashes(
    kinds: list[Any], visible: bool, seed: int
) -> None:
    net = Net(kinds, visible=visible)
    play(net, random.Random(seed), 120)
    net.rest()
    every: Members = collections.Counter()
    for station in net.stations.values():
        scope = station.scope
        if isinstance(scope, Ours):
            own = [(g, p) for g in scope.view.local_groups() for p in scope.view.local_members(g)]
        else:
            own = [(group, pid) for pid, joined in scope.local.items() for group in joined]
        every.update(own)
    for station in net.stations.values():
        found = station.scope.members()
        for other in net.stations.values():
            # What two strict ones make of each other is no affair of ours.
            strangers = station.kind is other.kind is Otp and station is not other
            if not strangers:
                theirs = {key: n for key, n in every.items() if key[1].node == other.name}
                assert {k: n for k, n in found.items() if k[1].node == other.name} == theirs


def test_a_change_before_our_scope_knows_of_a_split_is_not_told() -> None:
    net = Net([Ours, Otp], visible=False)
    ours, other = net.stations.values()
    ours.members.append(net.pid(ours.name))
    ours.scope.join(GROUPS[0], ours.members[0])
    net.settle()
    net.disconnect(ours.name, other.name)
    net.connect(ours.name, other.name)
    net.settle(except_mail_of=ours)
    # The other scope has lost us and met us again; the mail that says so is still unread here.
    assert ours.mail
    ours.scope.leave(GROUPS[0], ours.members[0])
    net.rest()
    assert not other.scope.members()
