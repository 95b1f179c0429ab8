"""The names and the locks of `global`, as one node has them. Pure but for its `watch` callbacks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from .._term import Atom, Pid, Reference
from .pg_view import group_key as key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

__all__ = ["GLOBAL", "Lock", "Locks", "Name", "Names"]

# The resource that every change of names, and every meeting of two nodes, is made under.
GLOBAL: Final = Atom("global")


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """A name and who has it. `method` decides when two have it: a fun of arity 3, kept as it
    came."""

    term: Any
    pid: Pid
    method: Any
    ref: Reference


class Names:
    """Who has which name; the end of a process takes its name."""

    def __init__(
        self, watch: Callable[[Pid], Reference], unwatch: Callable[[Reference], None]
    ) -> None:
        self._watch = watch
        self._unwatch = unwatch
        self._names: dict[Hashable, Name] = {}
        self._keys: dict[Reference, Hashable] = {}

    def find(self, name: Any) -> Name | None:
        return self._names.get(key_of(name))

    def add(self, name: Any, pid: Pid, method: Any) -> None:
        """Gives it to a process, whoever had it."""
        self.remove(name)
        key = key_of(name)
        ref = self._watch(pid)
        self._names[key] = Name(name, pid, method, ref)
        self._keys[ref] = key

    def remove(self, name: Any) -> None:
        found = self._names.pop(key_of(name), None)
        if found is not None:
            del self._keys[found.ref]
            self._unwatch(found.ref)

    def ended(self, ref: Reference) -> None:
        """A process that was watched has ended."""
        key = self._keys.pop(ref, None)
        if key is not None:
            del self._names[key]

    def watch_again(self) -> None:
        """Who watched for us has ended: everybody is watched anew."""
        self._keys.clear()
        for key, name in self._names.items():
            ref = self._watch(name.pid)
            self._names[key] = dataclasses.replace(name, ref=ref)
            self._keys[ref] = key

    def become(self, names: Iterable[tuple[Any, Pid, Any]]) -> None:
        """From now on these are the names, each with process and method."""
        wanted = {key_of(name): (name, pid, method) for name, pid, method in names}
        for name in self.all():
            if key_of(name.term) not in wanted:
                self.remove(name.term)
        for key, (term, pid, method) in wanted.items():
            found = self._names.get(key)
            if found is None or found.pid != pid:
                self.add(term, pid, method)

    def all(self) -> list[Name]:
        return list(self._names.values())

    def of(self, pid: Pid) -> list[Any]:
        """The names of a process."""
        return [name.term for name in self._names.values() if name.pid == pid]


@dataclasses.dataclass(slots=True)
class Lock:
    """A resource, on whose behalf it is locked, and the processes that hold it, watched."""

    requester: Hashable
    holders: dict[Pid, Reference]


class Locks:
    """Locks on resources. Several processes may hold one if they lock for the same requester."""

    def __init__(
        self, watch: Callable[[Pid], Reference], unwatch: Callable[[Reference], None]
    ) -> None:
        self._watch = watch
        self._unwatch = unwatch
        self._locks: dict[Hashable, Lock] = {}
        self._keys: dict[Reference, Hashable] = {}
        # The lock on GLOBAL went with its last holder, and was not given back.
        self.lost_global = False

    def may_set(self, resource: Any, requester: Any) -> bool:
        lock = self._locks.get(key_of(resource))
        return lock is None or lock.requester == key_of(requester)

    def set(self, resource: Any, requester: Any, pid: Pid) -> bool:
        """False: somebody else has it."""
        if not self.may_set(resource, requester):
            return False
        key = key_of(resource)
        lock = self._locks.setdefault(key, Lock(key_of(requester), {}))
        if pid not in lock.holders:
            ref = self._watch(pid)
            lock.holders[pid] = ref
            self._keys[ref] = key
        return True

    def remove(self, resource: Any, requester: Any, pid: Pid) -> None:
        key = key_of(resource)
        lock = self._locks.get(key)
        if lock is None or lock.requester != key_of(requester) or pid not in lock.holders:
            return
        ref = lock.holders.pop(pid)
        del self._keys[ref]
        self._unwatch(ref)
        self._drop_empty(key, lock, lost=False)

    def ended(self, ref: Reference) -> None:
        """A process that was watched has ended."""
        key = self._keys.pop(ref, None)
        if key is None:
            return
        lock = self._locks[key]
        lock.holders = {pid: held for pid, held in lock.holders.items() if held != ref}
        self._drop_empty(key, lock, lost=True)

    def watch_again(self) -> None:
        """Who watched for us has ended: everybody is watched anew."""
        self._keys.clear()
        for key, lock in self._locks.items():
            lock.holders = {pid: self._watch(pid) for pid in lock.holders}
            self._keys.update(dict.fromkeys(lock.holders.values(), key))

    def _drop_empty(self, key: Hashable, lock: Lock, *, lost: bool) -> None:
        if not lock.holders:
            del self._locks[key]
            if key == GLOBAL:
                self.lost_global = lost

    @property
    def is_global_set(self) -> bool:
        return GLOBAL in self._locks

    def still_set_by(self, pid: Pid) -> bool:
        """Whether a change of names that `pid` tells of was made under the lock."""
        lock = self._locks.get(GLOBAL)
        return not self.lost_global if lock is None else pid in lock.holders

    def still_set_for(self, requester: Any) -> bool:
        """The same for changes under a lock for that requester."""
        lock = self._locks.get(GLOBAL)
        return not self.lost_global if lock is None else lock.requester == key_of(requester)
