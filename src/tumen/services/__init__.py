"""The registered processes that other nodes expect to find on a node: one module each.

`Services` starts them before the servers of the user and stops them after those, and tells them of
connections that come and go.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

from .io import IoServer
from .logger import LoggerProxy
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
        self.pid: Pid | None = None
        self._ends: list[float] = []

    async def start(self) -> None:
        home = self._home
        self.pid = await home.start_server(self._kind, self._args, self._name)
        pending = home.core.monitor_begin(home.own_process, self.pid)
        pending.future.add_done_callback(lambda _: self._ended(pending.value))

    def _ended(self, reason: Any) -> None:
        home = self._home
        self.pid = None
        if not home.node.running or home.core.closed:
            return
        now = home.loop.time()
        self._ends = [end for end in self._ends if now - end < _RESTART_PERIOD_S] + [now]
        if len(self._ends) > _RESTART_COUNT_MAX:
            _log.error("%s has ended too often and stays dead: %r", self._name, reason)
            return
        _log.warning("%s has ended and is started again: %r", self._name, reason)
        home.background(self.start())

    def node_up(self, name: str, visible: bool) -> None:
        """Nothing: peers ask."""

    def node_down(self, name: str) -> None:
        """Nothing."""


class Services:
    """The services of one running node."""

    def __init__(self, home: Running) -> None:
        self._home = home
        self.io = Kept(home, IoServer, "user", home.options.on_output)
        self._services: list[Service] = [
            self.io,
            Kept(home, LoggerProxy, "logger_proxy"),
            Kept(home, Rex, "rex"),
        ]

    def add(self, service: Service) -> None:
        """From now on it hears of connections."""
        self._services.append(service)

    async def start(self) -> None:
        for service in self._services:
            await service.start()

    def node_up(self, name: str, visible: bool) -> None:
        for service in self._services:
            service.node_up(name, visible)

    def node_down(self, name: str) -> None:
        for service in self._services:
            service.node_down(name)
