"""The locker of `global`: gets the lock of its partition and of another node, so that the two can
exchange names. One node at a time; both sides try, and one of them leads."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import random
from typing import TYPE_CHECKING, Any, Final, Protocol

from .._term import Pid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["Cancel", "Him", "LockSet", "Locker", "Partition", "give_back", "lock_term"]

# With nobody known, a node that is to be met waits so long before it leads, seconds. With others
# known, so long and a bit more for each, so that all get their turn; but not longer than the last.
_ALONE_S: Final = 0.2
_KNOWN_S: Final = 1.0
_KNOWN_EACH_S: Final = 0.1
_KNOWN_MAX_S: Final = 3.0


@dataclasses.dataclass(frozen=True, slots=True)
class Him:
    """A node that is to be met."""

    node: str
    locker: Pid
    my_tag: int
    his_tag: Any
    version: int


@dataclasses.dataclass(frozen=True, slots=True)
class LockSet:
    """His locker has the lock of his partition, or has failed to get it. `tag` is our tag of the
    meeting, None from versions that do not say."""

    locker: Pid
    is_set: bool
    tag: int | None


@dataclasses.dataclass(frozen=True, slots=True)
class Cancel:
    """The meeting is over. If the lock is held, `last` runs before it is given back."""

    node: str
    tag: int | None
    last: Callable[[], None] | None


Order = Him | LockSet | Cancel


class Partition(Protocol):
    """What the locker needs of the name server."""

    @property
    def own(self) -> str:
        """Our node name."""

    def known_nodes(self) -> list[str]:
        """The other nodes of our partition."""

    def is_locked(self) -> bool:
        """Whether somebody has the lock here."""

    async def set_lock(self, requester: Any, nodes: Sequence[str]) -> bool:
        """Takes the lock on these nodes, all or none."""

    async def del_lock(self, requester: Any, nodes: Sequence[str]) -> None:
        """Gives it back."""

    def may_lock(self, requester: Any) -> bool:
        """Whether it could be taken here."""

    def tell_lock_set(self, him: Pid, version: int, tag: Any, is_set: bool) -> None:
        """Tells the other locker."""

    def lock_is_set(self, node: str, tag: int, requester: Any) -> None:
        """Both have it."""


def lock_term(one: Pid, other: Pid) -> list[Pid]:
    """On whose behalf two lockers lock: the same for both."""
    return sorted((one, other), key=_erlang_order)


def _erlang_order(pid: Pid) -> tuple[int, int, str, int]:
    # As the runtime compares pids.
    return pid.serial, pid.id, pid.node, pid.creation


class Locker:
    """Runs `main` as a process of its own; the name server gives it orders."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._orders: collections.deque[Order] = collections.deque()
        self._came = asyncio.Event()
        self._waiting: list[Him] = []
        self._just_met = False
        self.pid: Pid | None = None

    def order(self, order: Order) -> None:
        self._orders.append(order)
        self._came.set()

    async def main(self) -> None:
        while True:
            order = await self._next(self._patience())
            self._just_met = self._just_met and order is not None
            if order is not None:
                await self._obey(order)
            elif not self._partition.is_locked():
                await self._lead()

    def _patience(self) -> float | None:
        if not self._waiting:
            return None
        if self._just_met:
            return 0.0
        known = len(self._partition.known_nodes())
        if not known:
            return _ALONE_S
        return min(_KNOWN_S + _KNOWN_EACH_S * known, _KNOWN_MAX_S)

    async def _next(
        self, timeout: float | None, match: Callable[[Order], bool] | None = None
    ) -> Order | None:
        """The first order that matches, others stay; None when none came in time."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    for order in self._orders:
                        if match is None or match(order):
                            self._orders.remove(order)
                            return order
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            return None

    async def _obey(self, order: Order) -> None:
        match order:
            case Him():
                self._forget(order.node, None)
                self._waiting.append(order)
            case Cancel(node, tag, _) if tag is not None:
                self._forget(node, tag)
            case LockSet(locker, True, tag):
                await self._follow(locker, tag)

    def _forget(self, node: str, tag: int | None) -> None:
        self._waiting = [
            him
            for him in self._waiting
            if him.node != node or (tag is not None and him.my_tag != tag)
        ]

    async def _follow(self, locker: Pid, tag: int | None) -> None:
        """His locker has his partition: we take ours."""
        assert self.pid is not None
        partition = self._partition
        him = next((him for him in self._waiting if him.node == locker.node), None)
        if him is None or tag not in (None, him.my_tag):
            partition.tell_lock_set(locker, 5, 0, False)
            return
        requester = lock_term(self.pid, locker)
        is_set = await self._lock_safely(requester, [])
        partition.tell_lock_set(locker, him.version, him.his_tag, is_set)
        self._just_met = is_set
        if is_set:
            held = [partition.own, *partition.known_nodes()]
            partition.lock_is_set(him.node, him.my_tag, requester)
            await self._hold(him, requester, held)

    async def _lead(self) -> None:
        """We take our partition and him, and wait for his answer."""
        assert self.pid is not None
        partition = self._partition
        known = set(partition.known_nodes())
        self._waiting = [him for him in self._waiting if him.node not in known]
        if not self._waiting:
            return
        him = random.choice(self._waiting)
        requester = lock_term(self.pid, him.locker)
        if not await self._lock_safely(requester, [him.node]):
            return
        held = [partition.own, him.node, *partition.known_nodes()]
        partition.tell_lock_set(him.locker, him.version, him.his_tag, True)

        def is_answer(order: Order) -> bool:
            match order:
                case LockSet(locker, _, tag):
                    return locker.node == him.node and tag in (None, him.my_tag)
                case Cancel(node, tag, _):
                    return node == him.node and tag == him.my_tag
            return False

        match await self._next(None, is_answer):
            case LockSet(_, True, _):
                partition.lock_is_set(him.node, him.my_tag, requester)
                await self._hold(him, requester, held)
                self._just_met = True
            case Cancel(_, _, last):
                await self._give_back(requester, held, last)
                self._forget(him.node, him.my_tag)
            case _:
                await self._give_back(requester, held, None)

    async def _hold(self, him: Him, requester: Any, held: list[str]) -> None:
        """Keeps the lock until the names are exchanged."""
        order = await self._next(
            None,
            lambda order: (
                isinstance(order, Cancel) and order.node == him.node and order.tag == him.my_tag
            ),
        )
        last = order.last if isinstance(order, Cancel) else None
        await self._give_back(requester, held, last)
        self._forget(him.node, him.my_tag)

    async def _give_back(
        self, requester: Any, held: list[str], last: Callable[[], None] | None
    ) -> None:
        if last is not None:
            last()
        await give_back(self._partition.del_lock, requester, held)

    async def _lock_safely(self, requester: Any, extra: list[str]) -> bool:
        """The boss of the partition first, so that of two that try one gets it."""
        partition = self._partition
        boss = max([partition.own, *partition.known_nodes()])
        if boss != partition.own and not partition.may_lock(requester):
            return False
        if not await partition.set_lock(requester, [boss]):
            return False
        second = [node for node in [partition.own, *extra] if node != boss]
        if not await partition.set_lock(requester, second):
            await partition.del_lock(requester, [boss])
            return False
        if not await partition.set_lock(
            requester, [node for node in partition.known_nodes() if node != boss]
        ):
            await partition.del_lock(requester, [boss, *second])
            return False
        return True


async def give_back(
    del_lock: Callable[[Any, Sequence[str]], Awaitable[None]], requester: Any, nodes: Sequence[str]
) -> None:
    """Gives the lock back, to the boss last: who tries next begins there."""
    boss = max(nodes)
    await del_lock(requester, [node for node in dict.fromkeys(nodes) if node != boss])
    await del_lock(requester, [boss])
