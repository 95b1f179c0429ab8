"""The same node for scripts, notebooks and threads: every method blocks until it is done.

One event loop in one thread of its own carries the node; functions that are given to it (`spawn`,
`expose`, servers) run there, so they are written as for `tumen.Node`. What has no blocking side
here is reached through ``sync_node.node`` and `run`.

    with tumen.sync.Node("script@127.0.0.1") as node:
        print(node.call(("counter", "app@127.0.0.1"), Atom("get")))
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from . import node as _node
from .errors import TumenError

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence

    from ._term import Atom, Pid
    from .broadcast import RpcResult
    from .calls import Destination
    from .events import Event, EventStream
    from .info import BackendName, Connection, NodeInfo
    from .server import GenServer

__all__ = ["Node"]

T = TypeVar("T")


class Node:
    """`tumen.Node` with blocking methods: same names, arguments and errors. Any thread."""

    def __init__(self, name: str, **options: Any) -> None:
        self.node = _node.Node(name, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # -- life

    def start(self) -> None:
        """Starts the loop's thread and the node."""
        if self._loop is not None:
            raise RuntimeError(f"{self.node.name} is running already")
        self._loop = asyncio.new_event_loop()
        # A daemon: a script that ends without stop() must not hang.
        self._thread = threading.Thread(
            target=_run_loop, args=(self._loop,), name=f"tumen-{self.node.name}", daemon=True
        )
        self._thread.start()
        try:
            self.run(self.node.start())
        except BaseException:
            self._end_loop()
            raise

    def stop(self) -> None:
        """Stops the node and its loop. Idempotent."""
        if self._loop is None:
            return
        try:
            self.run(self.node.stop())
        finally:
            self._end_loop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the node's loop and returns its result: for what is not here."""
        loop = self._loop
        if loop is None:
            work.close()
            raise TumenError(f"node {self.node.name} is not running")
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("this is the thread of the node's loop: await tumen.Node instead")
        future: concurrent.futures.Future[T] = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            # KeyboardInterrupt: the work must not go on unseen.
            future.cancel()
            raise

    def _do(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        async def work() -> T:
            return function(*args, **options)

        return self.run(work())

    def _end_loop(self) -> None:
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    # -- what it is

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def backend(self) -> BackendName:
        return self._do(lambda: self.node.backend)

    def info(self) -> NodeInfo:
        return self._do(self.node.info)

    def connections(self) -> list[Connection]:
        return self._do(self.node.connections)

    def nodes(self, *, visible: bool | None = None) -> list[str]:
        return self._do(self.node.nodes, visible=visible)

    def set_limits(self, **changes: int) -> None:
        self._do(self.node.set_limits, **changes)

    def set_cookie(self, cookie: str, *, peer: str | None = None) -> None:
        self._do(self.node.set_cookie, cookie, peer=peer)

    def allow(self, names: Iterable[str]) -> None:
        self._do(self.node.allow, names)

    # -- connections

    def connect(
        self, name: str, address: tuple[str, int] | None = None, *, timeout: float | None = None
    ) -> None:
        self.run(self.node.connect(name, address, timeout=timeout))

    def disconnect(self, name: str) -> bool:
        return self.run(self.node.disconnect(name))

    def ping(self, name: str, timeout: float | None = 7.0) -> bool:
        return self.run(self.node.ping(name, timeout))

    def events(self) -> Iterator[Event]:
        """Node events from now on; the iteration ends when the node stops."""
        stream: EventStream = self._do(self.node.events)
        return self._events(stream)

    def _events(self, stream: EventStream) -> Iterator[Event]:
        async def following() -> Event | None:
            return await anext(stream, None)

        while (event := self.run(following())) is not None:
            yield event

    # -- signals

    def send(self, dest: Destination, message: Any) -> None:
        self.node.send(dest, message)

    def cast(self, dest: Destination, request: Any) -> None:
        self.node.cast(dest, request)

    def send_wait(self, dest: Destination, message: Any) -> None:
        self.run(self.node.send_wait(dest, message))

    def call(self, dest: Destination, request: Any, timeout: float | None = 5.0) -> Any:
        return self.run(self.node.call(dest, request, timeout))

    def rpc(
        self,
        node: str,
        module: str | Atom,
        function: str | Atom,
        args: Sequence[Any] = (),
        timeout: float | None = None,
    ) -> Any:
        return self.run(self.node.rpc(node, module, function, args, timeout))

    def rpc_cast(
        self, node: str, module: str | Atom, function: str | Atom, args: Sequence[Any] = ()
    ) -> None:
        self._do(self.node.rpc_cast, node, module, function, args)

    def multicall(
        self,
        nodes: Iterable[str | Atom],
        module: str | Atom,
        function: str | Atom,
        args: Sequence[Any] = (),
        timeout: float | None = None,
    ) -> dict[str, RpcResult]:
        return self.run(self.node.multicall(nodes, module, function, args, timeout))

    def abcast(
        self, nodes: Iterable[str | Atom], name: str | Atom, message: Any
    ) -> dict[str, Exception]:
        return self._do(self.node.abcast, nodes, name, message)

    def sbcast(
        self,
        nodes: Iterable[str | Atom],
        name: str | Atom,
        message: Any,
        timeout: float | None = 5.0,
    ) -> dict[str, RpcResult]:
        return self.run(self.node.sbcast(nodes, name, message, timeout))

    def put_chars(self, device: Destination, text: str, timeout: float | None = 5.0) -> None:
        self.run(self.node.put_chars(device, text, timeout))

    def join(self, pid: Destination) -> Any:
        return self.run(self.node.join(pid))

    def exit(self, pid: Pid, reason: Any) -> None:
        self._do(self.node.exit, pid, reason)

    # -- groups and names

    @property
    def pg(self) -> Any:
        """`tumen.Node.pg` with blocking methods; what is an async iterator there is one here."""
        return _Blocking(self, self._do(lambda: self.node.pg))

    @property
    def global_names(self) -> Any:
        """`tumen.Node.global_names` with blocking methods."""
        return _Blocking(self, self._do(lambda: self.node.global_names))

    def pubsub(self, name: str | Atom, **options: Any) -> Any:
        """`tumen.Node.pubsub` with blocking methods; subscriptions are iterators."""
        return _Blocking(self, self._do(self.node.pubsub, name, **options))

    # -- processes

    def spawn_remote(
        self,
        node: str,
        module: str | Atom,
        function: str | Atom,
        args: Sequence[Any] = (),
        **options: Any,
    ) -> Any:
        return self.run(self.node.spawn_remote(node, module, function, args, **options))

    def spawn(
        self,
        function: Callable[..., Awaitable[object]],
        *args: Any,
        name: str | Atom | None = None,
    ) -> Pid:
        return self._do(self.node.spawn, function, *args, name=name)

    def start_server(
        self, kind: type[GenServer], *args: Any, name: str | Atom | None = None
    ) -> Pid:
        return self.run(self.node.start_server(kind, *args, name=name))

    def register(self, name: str | Atom, pid: Pid) -> None:
        self._do(self.node.register, name, pid)

    def unregister(self, name: str | Atom) -> bool:
        return self._do(self.node.unregister, name)

    def whereis(self, name: str | Atom) -> Pid | None:
        return self._do(self.node.whereis, name)

    def expose(
        self, module: str, function: str, call: Callable[..., Any], *, inline: bool = False
    ) -> None:
        self.node.expose(module, function, call, inline=inline)


class _Blocking:
    """An object of the node's loop, for other threads: its methods block until they are done."""

    def __init__(self, node: Node, target: Any) -> None:
        self._node = node
        self._target = target

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found

        async def work(*args: Any, **options: Any) -> Any:
            result = found(*args, **options)
            return await result if inspect.isawaitable(result) else result

        def call(*args: Any, **options: Any) -> Any:
            result = self._node.run(work(*args, **options))
            return _Blocking(self._node, result) if hasattr(result, "__anext__") else result

        return call

    def __iter__(self) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(self._target, _END)

        while (item := self._node.run(following())) is not _END:
            yield item

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


_END: Final = object()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()
