"""`App`: what a node offers, declared before there is one."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ._term import Atom
from .server import GenServer
from .supervisor import ChildSpec, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from .supervisor import AutoShutdown, Strategy

__all__ = ["App"]

FunctionT = TypeVar("FunctionT", bound="Callable[..., Any]")
ServerT = TypeVar("ServerT", bound=type[GenServer])


@dataclasses.dataclass(frozen=True, slots=True)
class Exposed:
    """A function that other nodes may run, and where it runs."""

    module: Atom
    function: Atom
    call: Callable[..., Any]
    runs: Literal["loop", "pool", "inline"]


@dataclasses.dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server that is started with the node."""

    name: str
    kind: type[GenServer]
    args: tuple[Any, ...]


class Exposures:
    """The functions and servers that other nodes may run, by module and function."""

    def __init__(self) -> None:
        self._functions: dict[tuple[Atom, Atom], Exposed] = {}
        self._servers: dict[tuple[Atom, Atom], type[GenServer]] = {}

    def add(self, module: str, function: str, call: Callable[..., Any], *, inline: bool) -> None:
        """Exposes `call`; a later one of the same name replaces it."""
        if not callable(call):
            raise TypeError(f"{call!r} cannot be called")
        is_async = inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
            getattr(call, "__call__", None)  # noqa: B004 - an object with an async __call__
        )
        runs: Literal["loop", "pool", "inline"]
        runs = "loop" if is_async else "inline" if inline else "pool"
        key = (Atom(module), Atom(function))
        self._functions[key] = Exposed(*key, call, runs)

    def find(self, module: Atom, function: Atom) -> Exposed | None:
        return self._functions.get((module, function))

    def add_server(self, module: str, function: str, kind: type[GenServer]) -> None:
        """Exposes a server class; a later one of the same name replaces it."""
        if not issubclass(kind, GenServer):
            raise TypeError(f"{kind!r} is no GenServer class")
        self._servers[Atom(module), Atom(function)] = kind

    def find_server(self, module: Atom, function: Atom) -> type[GenServer] | None:
        return self._servers.get((module, function))

    def update(self, other: Exposures) -> None:
        self._functions.update(other._functions)
        self._servers.update(other._servers)

    def __iter__(self) -> Iterator[Exposed]:
        return iter(self._functions.values())


class App:
    """Exposed functions and servers, collected by decorators and given to `Node`."""

    def __init__(self) -> None:
        self.exposures = Exposures()
        self.servers: list[ServerSpec] = []

    def expose(
        self, module: str, function: str | None = None, *, inline: bool = False
    ) -> Callable[[FunctionT], FunctionT]:
        """Lets other nodes run the function as ``module:function`` through rpc and erpc.

        Everything else is refused with ``undef``. `function` is the name of the Python function
        by default. An ``async def`` runs on the loop; a plain function in a bounded pool of
        threads, or with ``inline=True`` on the loop itself: then it must never block.
        """

        def declare(call: FunctionT) -> FunctionT:
            self.exposures.add(module, function or call.__name__, call, inline=inline)
            return call

        return declare

    def server(self, name: str, *args: Any) -> Callable[[ServerT], ServerT]:
        """Starts the class with the node: ``init(*args)``, registered as `name`.

        Servers start in the order of their declaration and stop in the reverse one.
        """

        def declare(kind: ServerT) -> ServerT:
            self._add(ServerSpec(name, kind, args))
            return kind

        return declare

    def supervisor(
        self,
        name: str,
        children: Iterable[ChildSpec],
        *,
        strategy: Strategy = "one_for_one",
        intensity: int = 1,
        period: float = 5.0,
        auto_shutdown: AutoShutdown = "never",
    ) -> None:
        """Starts a `Supervisor` of these children with the node, registered as `name`.

        In the order of declaration, like the servers. For a `Supervisor` class use `server`.
        """
        options = {
            "strategy": strategy,
            "intensity": intensity,
            "period": period,
            "auto_shutdown": auto_shutdown,
            "__module__": Supervisor.__module__,
        }
        kind = type(Supervisor.__name__, (Supervisor,), options)
        self._add(ServerSpec(name, kind, (tuple(children),)))

    def expose_server(
        self, module: str, function: str = "start_link"
    ) -> Callable[[ServerT], ServerT]:
        """Lets other nodes start the class below a supervisor of this node, by
        ``supervisor:start_child({Name, Node}, #{id => Id, start => {Module, Function, Args}})``.
        """

        def declare(kind: ServerT) -> ServerT:
            self.exposures.add_server(module, function, kind)
            return kind

        return declare

    def _add(self, spec: ServerSpec) -> None:
        if any(other.name == spec.name for other in self.servers):
            raise ValueError(f"there is a server {spec.name!r} already")
        self.servers.append(spec)
