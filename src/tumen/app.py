"""`App`: what a node offers, declared before there is one."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ._term import Atom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .server import GenServer

__all__ = ["App"]

FunctionT = TypeVar("FunctionT", bound="Callable[..., Any]")
ServerT = TypeVar("ServerT", bound="type[GenServer]")


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
    """The functions that other nodes may run, by module and function."""

    def __init__(self) -> None:
        self._functions: dict[tuple[Atom, Atom], Exposed] = {}

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

    def update(self, other: Exposures) -> None:
        self._functions.update(other._functions)

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
            if any(spec.name == name for spec in self.servers):
                raise ValueError(f"there is a server {name!r} already")
            self.servers.append(ServerSpec(name, kind, args))
            return kind

        return declare
