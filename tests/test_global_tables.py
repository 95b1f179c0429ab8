"""Names and locks of `global`, and what of a gone connection is passed over."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from nodes import make_node
from tumen import Atom, Pid, Reference
from tumen.services.global_locker import lock_term
from tumen.services.global_tables import GLOBAL, Locks, Names

GEN_CALL, SET_LOCK = Atom("$gen_call"), Atom("set_lock")


class Watch:
    """Hands out references, and knows which still stand."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.watched: dict[Reference, Pid] = {}

    def watch(self, pid: Pid) -> Reference:
        ref = Reference("n@h", 1, (next(self.numbers), 0, 0))
        self.watched[ref] = pid
        return ref

    def unwatch(self, ref: Reference) -> None:
        del self.watched[ref]

    def end(self, pid: Pid, *tables: Names | Locks) -> None:
        for ref in [ref for ref, watched in self.watched.items() if watched == pid]:
            del self.watched[ref]
            for table in tables:
                table.ended(ref)


def pid(number: int, node: str = "n@h") -> Pid:
    return Pid(node, number, 0, 1)


def test_a_name_has_one_process_and_ends_with_it() -> None:
    watch = Watch()
    names = Names(watch.watch, watch.unwatch)
    names.add([1], pid(1), b"method")
    names.add((1,), pid(2), b"other")
    names.add([1], pid(3), b"method")
    found = names.find([1])
    assert found is not None
    assert (found.pid, found.method) == (pid(3), b"method")
    assert names.of(pid(3)) == [[1]]
    assert names.of(pid(1)) == []
    watch.end(pid(3), names)
    assert names.find([1]) is None
    names.remove((1,))
    names.remove((1,))
    assert names.all() == []
    assert not watch.watched


def test_a_lock_is_held_for_one_requester_by_any_number() -> None:
    watch = Watch()
    locks = Locks(watch.watch, watch.unwatch)
    one, two = [pid(1), pid(2)], [pid(1), pid(3)]
    assert locks.set(GLOBAL, one, pid(1))
    assert locks.set(GLOBAL, one, pid(1))
    assert locks.set(GLOBAL, one, pid(2))
    assert not locks.set(GLOBAL, two, pid(3))
    assert locks.set(b"resource", two, pid(3))
    assert locks.still_set_by(pid(1))
    assert not locks.still_set_by(pid(3))
    assert locks.still_set_for(one)
    assert not locks.still_set_for(two)
    locks.remove(GLOBAL, two, pid(1))
    locks.remove(GLOBAL, one, pid(9))
    locks.remove(GLOBAL, one, pid(1))
    assert locks.is_global_set
    locks.remove(GLOBAL, one, pid(2))
    assert not locks.is_global_set
    assert locks.still_set_by(pid(5))
    locks.remove(b"resource", two, pid(3))
    assert not watch.watched


def test_changes_after_a_lock_was_lost_are_none() -> None:
    watch = Watch()
    locks = Locks(watch.watch, watch.unwatch)
    assert locks.set(GLOBAL, pid(1), pid(1))
    watch.end(pid(1), locks)
    assert not locks.is_global_set
    # What its holder said before comes from a partition that is gone.
    assert not locks.still_set_by(pid(1))
    assert not locks.still_set_for(pid(1))
    assert locks.set(GLOBAL, pid(2), pid(2))
    locks.remove(GLOBAL, pid(2), pid(2))
    assert locks.still_set_by(pid(3))


def test_both_lockers_lock_for_the_same_requester() -> None:
    # As both releases sort pids: serial, number, node name, creation.
    ordered = [
        Pid("zz@h", 4, 0, 1),
        Pid("a@h", 5, 0, 1),
        Pid("a@h", 5, 0, 2),
        Pid("b@h", 5, 0, 1),
        Pid("a@h", 6, 0, 1),
        Pid("a@h", 5, 1, 1),
        Pid("a@h", 3, 7, 1),
    ]
    for one, other in itertools.combinations(ordered, 2):
        assert lock_term(one, other) == lock_term(other, one) == [one, other]


@pytest.mark.asyncio
async def test_a_lock_for_a_node_that_has_gone_is_not_taken(backend: str) -> None:
    async with make_node(visible=True) as node:
        server: Any = node._running.services.global_names.server
        locker = pid(7, "gone@h")
        lock = (GEN_CALL, (locker, server._home.core.make_ref()), (SET_LOCK, (GLOBAL, locker)))
        assert server._handle(lock)
        assert not server.locks.is_global_set
        # It is up again, but this was sent before.
        server._up.add("gone@h")
        server._stale["gone@h"] = server._taken + 1
        assert server._handle(lock)
        assert not server.locks.is_global_set
        server._up.discard("gone@h")
