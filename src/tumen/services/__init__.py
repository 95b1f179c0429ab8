"""The registered processes that other nodes expect to find on a node: one module each.

`Services` starts them before the servers of the user and stops them after those, and tells them of
connections that come and go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .global_names import GlobalService
from .pg import Pg
from .pubsub import PubSubs

if TYPE_CHECKING:
    from ..running import Running

__all__ = ["Service", "Services"]


class Service(Protocol):
    """What `Services` asks of one service."""

    async def start(self) -> None:
        """Makes its processes and registers their names."""

    def node_up(self, name: str, visible: bool) -> None:
        """A connection is up. On the loop, from a drain: short, sends at most."""

    def node_down(self, name: str) -> None:
        """A connection is gone."""


class Services:
    """The services of one running node."""

    def __init__(self, home: Running) -> None:
        self._home = home
        self._services: list[Service] = []
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

    def leave(self) -> None:
        """The node is about to stop: others are to stop counting on it."""
        self.pubsubs.leave()
        self.pg.leave()
        self.global_names.leave()

    def node_up(self, name: str, visible: bool) -> None:
        for service in self._services:
            service.node_up(name, visible)

    def node_down(self, name: str) -> None:
        for service in self._services:
            service.node_down(name)
