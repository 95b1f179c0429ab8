"""Names for the whole cluster, as Erlang's `global` has them.

A visible node takes part itself (`GlobalServer`). A hidden one, which the others' `global` does not
count, asks one of the nodes that it is connected to.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from .._term import Atom, Export, Pid
from ..calls import pid_of
from ..errors import CallTimeout, Exit, NoConnection, NoProc, RemoteError
from .global_server import NAMES_TABLE, GlobalServer, resolve

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from ..running import Running
    from .pg import Member

__all__ = ["GlobalNames", "GlobalService", "Resolve"]

T = TypeVar("T")

Resolve = Literal["exit", "notify", "notify_all"]

_NONE: Final = Atom("none")
_UNDEF: Final = Atom("undef")
_YES: Final = Atom("yes")
_METHODS: Final = {
    "exit": Export("global", "random_exit_name", 3),
    "notify": Export("global", "random_notify_name", 3),
    "notify_all": Export("global", "notify_all_name", 3),
}


class GlobalService:
    """`global` on one node: a service."""

    def __init__(self, home: Running) -> None:
        self.home = home
        self.names = GlobalNames(self)
        self.server: GlobalServer | None = None
        self._visible: set[str] = set()

    def start(self) -> None:
        """A visible node gets its `global_name_server`."""
        home = self.home
        if not home.options.visible:
            return
        # What a node with a smaller name asks us when two nodes meet that have the same name.
        home.node.expose(
            "global",
            "resolve_it",
            lambda method, name, one, other: resolve(home, method, name, one, other) or _NONE,
            inline=True,
        )
        # What a node asks us whose name server was away for a moment.
        home.node.expose("ets", "tab2list", self._table, inline=True)
        if self.server is not None:
            self.server.close()
        self.server = GlobalServer(home)
        for node in self._visible:
            self.server.node_up(node)
        self.server.start()

    def _table(self, table: Any) -> list[Any]:
        """The names, as a BEAM has them in a table."""
        if table != NAMES_TABLE or self.server is None:
            raise Exit(Atom("badarg"))
        return [(name.term, name.pid, name.method) for name in self.server.names.all()]

    def leave(self) -> None:
        """The node is about to stop."""
        if self.server is not None:
            self.server.leave()

    def node_up(self, name: str, visible: bool) -> None:
        if visible:
            self._visible.add(name)
            if self.server is not None:
                self.server.node_up(name)

    def node_down(self, name: str) -> None:
        if name in self._visible:
            self._visible.discard(name)
            if self.server is not None:
                self.server.node_down(name)


class GlobalNames:
    """``node.global_names``: names that every node of the cluster knows, each for one process.

    A name is any term. On a hidden node, questions and changes go through a connected node that
    runs `global`: `via`, or any. Every method raises `CallTimeout` after `timeout` seconds, and
    `NoConnection` when there is no such node.
    """

    def __init__(self, service: GlobalService) -> None:
        self._service = service

    async def register(
        self,
        name: Any,
        pid: Member,
        *,
        resolve: Resolve = "exit",
        via: str | None = None,
        timeout: float | None = 10.0,
    ) -> bool:
        """global:register_name: False when somebody has the name, or the process has another.

        `resolve` says what happens when two parts of a cluster meet that both have the name:
        ``"exit"`` kills one of the two processes, ``"notify"`` sends it
        ``(global_name_conflict, name)``, ``"notify_all"`` takes the name from both and tells them.
        """
        method = _method(resolve)
        who = pid_of(pid)
        server = self._service.server
        if server is None:
            return bool(
                await self._remotely(via, timeout, "register_name", [name, who, method]) == _YES
            )

        def request() -> Any:
            if server.whereis(name) is not None or server.names.of(who):
                return None
            return (Atom("register"), name, who, method)

        return await self._in_time(server.change(request), timeout)

    async def re_register(
        self,
        name: Any,
        pid: Member,
        *,
        resolve: Resolve = "exit",
        via: str | None = None,
        timeout: float | None = 10.0,
    ) -> None:
        """global:re_register_name: gives it the name, whoever had it."""
        method = _method(resolve)
        who = pid_of(pid)
        server = self._service.server
        if server is None:
            await self._remotely(via, timeout, "re_register_name", [name, who, method])
            return
        request = (Atom("register"), name, who, method)
        await self._in_time(server.change(lambda: request), timeout)

    async def unregister(
        self, name: Any, *, via: str | None = None, timeout: float | None = 10.0
    ) -> None:
        """global:unregister_name."""
        server = self._service.server
        if server is None:
            await self._remotely(via, timeout, "unregister_name", [name])
        elif server.whereis(name) is not None:
            request = (Atom("unregister"), name)
            await self._in_time(server.change(lambda: request), timeout)

    async def whereis(
        self, name: Any, *, via: str | None = None, timeout: float | None = 10.0
    ) -> Pid | None:
        """global:whereis_name: the process with that name, or None."""
        server = self._service.server
        if server is not None:
            return server.whereis(name)
        found = await self._remotely(via, timeout, "whereis_name", [name])
        return found if isinstance(found, Pid) else None

    async def send(
        self, name: Any, message: Any, *, via: str | None = None, timeout: float | None = 10.0
    ) -> Pid:
        """global:send: sends to the process with that name, from the node itself; who that is.
        `NoProc` when nobody has the name, and the errors of `Node.send`."""
        pid = await self.whereis(name, via=via, timeout=timeout)
        if pid is None:
            raise NoProc(f"nobody has the global name {name!r}")
        self._service.home.own_process.send(pid, message)
        return pid

    async def registered_names(
        self, *, via: str | None = None, timeout: float | None = 10.0
    ) -> list[Any]:
        """global:registered_names."""
        server = self._service.server
        if server is not None:
            return [name.term for name in server.names.all()]
        return list(await self._remotely(via, timeout, "registered_names", []))

    async def sync(self, *, via: str | None = None, timeout: float | None = 10.0) -> None:
        """global:sync: returns when the names of all connected visible nodes are known."""
        server = self._service.server
        if server is None:
            await self._remotely(via, timeout, "sync", [])
        else:
            await self._in_time(server.sync(server.visible_nodes()), timeout)

    async def _in_time(self, work: Awaitable[T], timeout: float | None) -> T:
        try:
            async with asyncio.timeout(timeout):
                return await work
        except TimeoutError:
            raise CallTimeout(f"global: not done within {timeout} s") from None

    async def _remotely(
        self, via: str | None, timeout: float | None, function: str, args: list[Any]
    ) -> Any:
        """The function of `global` on a node that runs it."""
        home = self._service.home
        nodes = [via] if via is not None else home.node.nodes()
        for node in nodes:
            try:
                return await home.own_process.rpc(node, "global", function, args, timeout)
            except RemoteError as error:
                # Not a BEAM, or one without `global`: another may know.
                if error.reason != _UNDEF or via is not None:
                    raise
        raise NoConnection("global: there is no connection to a node that knows global names")


def _method(resolve: str) -> Export:
    try:
        return _METHODS[resolve]
    except KeyError:
        raise ValueError(f"resolve must be one of {', '.join(_METHODS)}, not {resolve!r}") from None
