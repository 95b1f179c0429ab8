"""The registered processes that other nodes expect to find on a node: one module each.

`Services` starts them before the servers of the user and stops them after those, and tells them of
connections that come and go. All of them come back when something ends them: `Kept`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .global_names import GlobalService
from .io import IoServer
from .kept import Kept, serving
from .logger import LoggerProxy
from .output import Output
from .pg import Pg
from .pubsub import PubSubs
from .rex import Rex

if TYPE_CHECKING:
    from ..running import Running

__all__ = ["Kept", "Service", "Services"]


class Service(Protocol):
    """What `Services` asks of a service that is more than one server."""

    def start(self) -> None:
        """Makes its processes and registers their names; those that run already stay."""

    def node_up(self, name: str, visible: bool) -> None:
        """A connection is up. On the loop, from a drain: short, sends at most."""

    def node_down(self, name: str) -> None:
        """A connection is gone."""


class Services:
    """The services of one running node."""

    def __init__(self, home: Running) -> None:
        self.output = Output(home.loop)
        self.io = serving(home, IoServer, "user", home.options.on_output, self.output)
        self._servers = [
            self.io,
            serving(home, LoggerProxy, "logger_proxy"),
            serving(home, Rex, "rex"),
        ]
        self.pg = Pg(home)
        self.pubsubs = PubSubs(home)
        self.global_names = GlobalService(home)
        # Those that hear of connections, in the order of their start.
        self._services: list[Service] = [self.pg, self.pubsubs, self.global_names]

    def start(self) -> None:
        for server in self._servers:
            server.start()
        for service in self._services:
            service.start()

    def leave_groups(self) -> None:
        """The node will stop: others are to stop counting on it."""
        self.pubsubs.leave()
        self.pg.leave()

    def leave(self) -> None:
        """The node stops."""
        self.leave_groups()
        self.global_names.leave()

    def close(self) -> None:
        """The node has stopped."""
        self.output.close()

    def node_up(self, name: str, visible: bool) -> None:
        for service in self._services:
            service.node_up(name, visible)

    def node_down(self, name: str) -> None:
        for service in self._services:
            service.node_down(name)
