"""Phoenix.PubSub: topics over all nodes that run it, in the messages of its own pg adapter.

Each node has a process per adapter group, registered under the group's name and in that group of
the pg scope `Elixir.Phoenix.PubSub`. A broadcast goes to the group's members on other nodes, as
``{forward_to_local, Topic, Message, Dispatcher}``, and to the subscribers here.
"""

# ruff: noqa: SLF001 - a service drives its process as the node does

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from .._term import Atom, Pid, decode, encode
from ..calls import atom_of, key_of, pid_of
from ..errors import Busy, TumenError
from ..reasons import SHUTDOWN
from ..stream import Stream
from .base import handle_mail
from .kept import Kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..process import Process
    from ..running import Running
    from .pg import Member

__all__ = ["PubSub", "PubSubs", "Subscription"]

_log = logging.getLogger("tumen")

_SCOPE: Final = "Elixir.Phoenix.PubSub"
_DISPATCHER: Final = Atom("Elixir.Phoenix.PubSub")
_FORWARD_TO_LOCAL: Final = Atom("forward_to_local")

# An atom has at most so many characters.
_ATOM_CHARS_MAX: Final = 255


class Subscription(Stream[Any]):
    """The messages of one topic: ``async for message in subscription``; ends with `close`, or when
    the node stops.

    At most `count_max` messages wait here, then the oldest is dropped. `dropped` says how many
    were, in all.
    """

    def __init__(self, topic: bytes, count_max: int) -> None:
        super().__init__(count_max)
        self.topic = topic.decode(errors="replace")


class PubSub:
    """``node.pubsub("Elixir.MyApp.PubSub")``: one Phoenix.PubSub, of which this node is a part.

    Topics are text, messages any term. The methods belong to the node's loop.
    """

    def __init__(self, home: Running, name: Atom, groups: list[Atom]) -> None:
        self.name = name
        self._home = home
        self._groups = groups
        self._hearers: dict[bytes, list[Callable[[Any], None]]] = {}
        self._kept = Kept(home, f"the process of {name}", self._begin)
        self._kept.start()

    # -- in

    def subscribe(self, topic: str | bytes, *, count_max: int | None = None) -> Subscription:
        """Every message of the topic from now on, of any node: ``async for message in …``.

        At most `count_max` wait unread, `Limits.events_count_max` by default.
        """
        key = _topic(topic)
        limit = self._home.limits.events_count_max if count_max is None else count_max
        if limit < 1:
            raise ValueError(f"count_max must be positive, not {limit}")
        subscription = Subscription(key, limit)
        subscription.forget = self._hear(key, subscription.put)
        self._home.streams.add(subscription)
        return subscription

    def subscribe_process(self, topic: str | bytes, process: Member) -> Callable[[], None]:
        """Sends every message of the topic to a process of this node, as Phoenix does to its
        subscribers, until that ends; what ends the subscription."""
        pid = pid_of(process)
        if pid.node != self._home.core.own:
            raise ValueError(f"{pid!r} is not a process of {self._home.core.own}")

        def hear(message: Any) -> None:
            if self._home.core.process(key_of(pid)) is None:
                forget()
                return
            try:
                self._kept.process.send(pid, message)
            except TumenError as error:
                _log.warning("%s: %s missed a message: %s", self.name, pid, error)

        forget = self._hear(_topic(topic), hear)
        return forget

    def _hear(self, key: bytes, hear: Callable[[Any], None]) -> Callable[[], None]:
        self._hearers.setdefault(key, []).append(hear)

        def forget() -> None:
            hearers = self._hearers.get(key, [])
            if hear in hearers:
                hearers.remove(hear)
                if not hearers:
                    del self._hearers[key]

        return forget

    # -- out

    def broadcast(
        self, topic: str | bytes, message: Any, *, dispatcher: Atom = _DISPATCHER
    ) -> None:
        """To the subscribers of the topic on every node, this one included.

        `dispatcher` is the module that hands it out over there; for a Phoenix channel that is
        ``Atom("Elixir.Phoenix.Channel.Server")``, with a ``Phoenix.Socket.Broadcast`` as message.
        `Busy` when there was no room towards some of the nodes: those did not get it, the others
        did. `EncodeError`, `LimitExceeded`.
        """
        key = _topic(topic)
        forward = (_FORWARD_TO_LOCAL, key, message, dispatcher)
        sender = self._home.own_process
        remote = self._remote()
        busy = []
        for pid in remote:
            try:
                sender.send(pid, forward)
            except Busy:
                busy.append(pid)
        self._hand_out(key, message)
        if busy:
            raise Busy(
                f"{self.name}: no room towards {len(busy)} of {len(remote)} nodes",
                peer=busy[0].node,
            )

    async def broadcast_wait(
        self, topic: str | bytes, message: Any, *, dispatcher: Atom = _DISPATCHER
    ) -> None:
        """As `broadcast`, but waits for room where that raises `Busy`."""
        key = _topic(topic)
        forward = (_FORWARD_TO_LOCAL, key, message, dispatcher)
        for pid in self._remote():
            await self._home.own_process.send_wait(pid, forward)
        self._hand_out(key, message)

    def direct_broadcast(
        self,
        node: str,
        topic: str | bytes,
        message: Any,
        *,
        dispatcher: Atom = _DISPATCHER,
    ) -> None:
        """To the subscribers of the topic on one node. The errors of `Node.send`."""
        key = _topic(topic)
        if node == self._home.core.own:
            self._hand_out(key, message)
        else:
            forward = (_FORWARD_TO_LOCAL, key, message, dispatcher)
            self._home.own_process.send((self._groups[0], node), forward)

    def local_broadcast(self, topic: str | bytes, message: Any) -> None:
        """To the subscribers of the topic on this node."""
        self._hand_out(_topic(topic), message)

    def nodes(self) -> list[str]:
        """The other nodes that take part."""
        return sorted({pid.node for pid in self._remote()})

    async def ready(self, timeout: float | None = 5.0) -> None:
        """Returns when it is known which of the connected nodes take part: `Groups.ready`."""
        await self._home.services.pg.groups.ready(timeout, scope=_SCOPE)

    def _remote(self) -> list[Pid]:
        # One process of ours sends all broadcasts, so one group of the pool gets them all: Phoenix
        # chooses by sender too, to keep a sender's messages in order.
        own = self._home.core.own
        members = self._home.services.pg.groups.members(self._groups[0], scope=_SCOPE)
        return [pid for pid in dict.fromkeys(members) if pid.node != own]

    def _hand_out(self, key: bytes, message: Any) -> None:
        hearers = self._hearers.get(key)
        if not hearers:
            return
        message = decode(encode(message))
        for hear in list(hearers):
            hear(message)

    # -- life

    def start(self) -> None:
        """Starts its process, unless it runs."""
        self._kept.start()

    def _begin(self) -> Process:
        process = self._home.start_process(self._main, (), self._groups[0])
        try:
            for group in self._groups[1:]:
                self._home.core.register(group, process._key)
            for group in self._groups:
                self._home.services.pg.groups.join(group, process, scope=_SCOPE)
        except BaseException:
            process._end(SHUTDOWN)
            raise
        return process

    def close(self) -> None:
        """Ends it: for the node."""
        self._kept.close()

    async def _main(self, proc: Process) -> None:
        await handle_mail(proc, str(self.name), self._handle)

    def _handle(self, message: Any) -> bool:
        match message:
            case (Atom("forward_to_local"), bytes() as topic, payload, Atom()):
                for hear in list(self._hearers.get(topic, ())):
                    hear(payload)
                return True
        return False


class PubSubs:
    """Every PubSub of one node, by name."""

    def __init__(self, home: Running) -> None:
        self._home = home
        self._open: dict[Atom, tuple[PubSub, list[Atom]]] = {}

    def open(self, name: str | Atom, adapter: str | Atom | None, pool_size: int) -> PubSub:
        """The PubSub of that name, begun if need be."""
        if pool_size < 1:
            raise ValueError(f"pool_size must be positive, not {pool_size}")
        atom = atom_of(name)
        first = str(adapter) if adapter is not None else f"{atom.text}.Adapter"
        names = [first, *(f"{first}_{number}" for number in range(2, pool_size + 1))]
        if len(names[-1]) > _ATOM_CHARS_MAX:
            raise ValueError(f"the name of a group is too long: {names[-1]}")
        groups = [Atom(text) for text in names]
        found = self._open.get(atom)
        if found is None:
            found = self._open[atom] = (PubSub(self._home, atom, groups), groups)
        elif found[1] != groups:
            raise ValueError(f"{atom} is open already, with the groups {found[1]}")
        return found[0]

    def start(self) -> None:
        """A PubSub starts when it is opened; or now, if it has ended with the node's name."""
        for pubsub, _ in self._open.values():
            pubsub.start()

    def node_up(self, name: str, visible: bool) -> None:
        """Nothing: pg sees to it."""

    def node_down(self, name: str) -> None:
        """Nothing."""

    def leave(self) -> None:
        """The node is about to stop."""
        for pubsub, _ in self._open.values():
            pubsub.close()


def _topic(topic: str | bytes) -> bytes:
    if isinstance(topic, str):
        return topic.encode()
    if isinstance(topic, bytes):
        return topic
    raise TypeError(f"a topic is text, not {type(topic).__name__}")
