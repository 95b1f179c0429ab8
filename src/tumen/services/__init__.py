"""The registered processes that other nodes expect to find on a node: one module each.

`Services` starts them before the servers of the user and stops them after those, and tells them of
connections that come and go.
"""

# ruff: noqa: SLF001 - it makes processes for what their users are not to see

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

from ..errors import TumenError
from .global_names import GlobalService
from .io import IoServer
from .logger import LoggerProxy
from .pg import Pg
from .pubsub import PubSubs
from .rex import Rex

if TYPE_CHECKING:
    from .._term import Pid
    from ..running import Running
    from ..server import GenServer

__all__ = ["Kept", "Service", "Services"]

_log = logging.getLogger("tumen")

# A service that ends oftener than so many times within so many seconds is left dead: what ends it
# would go on ending it.
_RESTART_COUNT_MAX: Final = 10
_RESTART_PERIOD_S: Final = 60.0


class Service(Protocol):
    """What `Services` asks of one service."""

    async def start(self) -> None:
        """Makes its processes and registers their names."""

    def node_up(self, name: str, visible: bool) -> None:
        """A connection is up. On the loop, from a drain: short, sends at most."""

    def node_down(self, name: str) -> None:
        """A connection is gone."""


class Kept:
    """A service that is one server. It is started again when a signal or a full mailbox ends it,
    as a supervisor does on a BEAM."""

    def __init__(self, home: Running, kind: type[GenServer], name: str, *args: Any) -> None:
        self._home = home
        self._kind = kind
        self._name = name
        self._args = args
        self._server: GenServer | None = None
        self._ends: list[float] = []

    @property
    def pid(self) -> Pid | None:
        """Its process; None while there is none."""
        return None if self._server is None or not self._server.alive else self._server.pid

    async def start(self) -> None:
        if self.pid is None:
            self._start()

    def _start(self) -> None:
        """The name is registered when this returns: the servers of the user need not wait."""
        home, server = self._home, self._kind()
        started: asyncio.Future[None] = home.loop.create_future()
        home._attach(server, self._name)
        home._servers[server._key] = self._server = server
        task = home._run(server, server._serve(self._args, started))
        task.add_done_callback(lambda _: self._ended(server, started))

    def _ended(self, server: GenServer, started: asyncio.Future[None]) -> None:
        home = self._home
        home._servers.pop(server._key, None)
        if started.done() and not started.cancelled():
            started.exception()  # seen: the reason says the same
        if not home.node.running or home.core.closed or "@" not in home.core.own:
            return
        now = home.loop.time()
        self._ends = [end for end in self._ends if now - end < _RESTART_PERIOD_S] + [now]
        if len(self._ends) > _RESTART_COUNT_MAX:
            _log.error("%s has ended too often and stays dead: %r", self._name, server.exit_reason)
            return
        _log.warning("%s has ended and is started again: %r", self._name, server.exit_reason)
        try:
            self._start()
        except TumenError as error:
            _log.error("%s cannot be started again: %s", self._name, error)

    def node_up(self, name: str, visible: bool) -> None:
        """Nothing: peers ask."""

    def node_down(self, name: str) -> None:
        """Nothing."""


class Services:
    """The services of one running node."""

    def __init__(self, home: Running) -> None:
        self._home = home
        self._services: list[Service] = []
        self.io = Kept(home, IoServer, "user", home.options.on_output)
        self.add(self.io)
        self.add(Kept(home, LoggerProxy, "logger_proxy"))
        self.add(Kept(home, Rex, "rex"))
        self.pg = Pg(home)
        self.pubsubs = PubSubs(home)
        self.global_names = GlobalService(home)
        self.add(self.pg)
        self.add(self.global_names)

    def add(self, service: Service) -> None:
        """From now on it hears of connections."""
        self._services.append(service)

    async def start(self) -> None:
        for service in self._services:
            await service.start()

    def leave_groups(self) -> None:
        """The node will stop: others are to stop counting on it."""
        self.pubsubs.leave()
        self.pg.leave()

    def leave(self) -> None:
        """The node stops."""
        self.leave_groups()
        self.global_names.leave()

    def node_up(self, name: str, visible: bool) -> None:
        for service in self._services:
            service.node_up(name, visible)

    def node_down(self, name: str) -> None:
        for service in self._services:
            service.node_down(name)
