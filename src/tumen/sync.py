"""The same node for scripts, notebooks and threads: every method blocks until it is done.

One event loop in one thread of its own carries the node; functions that are given to it (`spawn`,
`expose`, servers) run there, so they are written as for `tumen.Node`. What has no blocking side
here is reached through ``sync_node.node`` and `run`.

    with tumen.sync.Node("script@127.0.0.1") as node:
        print(node.call(("counter", "app@127.0.0.1"), Atom("get")))
"""

# ruff: noqa: SLF001 - a node and what it gives away know each other

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import logging
import threading
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
    Unpack,
    overload,
)

from . import node as _node
from .errors import TumenError
from .stream import Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence

    from . import calls
    from ._term import Atom, Pid, Reference
    from .calls import Destination
    from .events import Event
    from .info import BackendName
    from .options import Limits
    from .server import GenServer

__all__ = ["Monitor", "Node"]

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger("tumen")

# Work that does not end when it is cancelled is left alone after this, seconds.
_CANCEL_WAIT_S: Final = 5.0


class _Stopped(TumenError):
    """The node does not run, or has stopped meanwhile."""


def _runs(method: Callable[Concatenate[_node.Node, P], T]) -> Callable[Concatenate[Node, P], T]:
    """The method of `tumen.Node`, on its loop."""

    @functools.wraps(method)
    def run(self: Node, /, *args: P.args, **options: P.kwargs) -> T:
        return self._do(lambda: method(self.node, *args, **options))

    return run


def _awaits(
    method: Callable[Concatenate[_node.Node, P], Awaitable[T]],
) -> Callable[Concatenate[Node, P], T]:
    """The method of `tumen.Node`, on its loop and to its end."""

    @functools.wraps(method)
    def run(self: Node, /, *args: P.args, **options: P.kwargs) -> T:
        async def work() -> T:
            return await method(self.node, *args, **options)

        return self.run(work())

    return run


class Node:
    """`tumen.Node` with blocking methods: same names, arguments and errors. Any thread.

    Who waits when the node stops gets a `TumenError`, and iterations end.
    """

    def __init__(self, name: str, **options: Any) -> None:
        self.node = _node.Node(name, **options)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # -- life

    def start(self) -> None:
        """Starts the loop's thread and the node."""
        with self._lock:
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
            # Another thread may stop it too.
            with contextlib.suppress(_Stopped):
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
        with self._lock:
            # What is handed over under the lock, the loop sees before it ends.
            loop = self._loop
            if loop is None:
                work.close()
                raise _Stopped(f"node {self.node.name} is not running")
            if threading.current_thread() is self._thread:
                work.close()
                raise RuntimeError(
                    "this is the thread of the node's loop: await tumen.Node instead"
                )
            future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            if self._loop is loop:
                raise
            raise _Stopped(f"node {self.node.name} was stopped") from None
        except BaseException:
            # KeyboardInterrupt: the work must not go on unseen.
            future.cancel()
            raise

    def _do(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        async def work() -> T:
            return function(*args, **options)

        return self.run(work())

    def _end_loop(self) -> None:
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _each(self, source: AsyncIterator[Any]) -> Iterator[Any]:
        """The items of something asynchronous, up to its end or the node's."""

        async def following() -> Any:
            return await anext(source, _END)

        while True:
            try:
                item = self.run(following())
            except _Stopped:
                # What had come by then waits there.
                item = source.take(_END) if isinstance(source, Stream) else _END
            if item is _END:
                return
            yield item

    drain = _awaits(_node.Node.drain)

    # -- what it is

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def running(self) -> bool:
        return self._loop is not None and self.node.running

    @property
    def backend(self) -> BackendName:
        return self._do(lambda: self.node.backend)

    @property
    def limits(self) -> Limits:
        return self.node.limits

    @property
    def allowed(self) -> tuple[str, ...]:
        return self._do(lambda: self.node.allowed)

    info = _runs(_node.Node.info)
    connections = _runs(_node.Node.connections)
    nodes = _runs(_node.Node.nodes)
    set_cookie = _runs(_node.Node.set_cookie)
    allow = _runs(_node.Node.allow)

    def set_limits(self, **changes: int) -> None:
        """`tumen.Node.set_limits`."""
        self._do(self.node.set_limits, **changes)

    # -- connections

    connect = _awaits(_node.Node.connect)
    disconnect = _awaits(_node.Node.disconnect)
    ping = _awaits(_node.Node.ping)

    def events(self) -> Iterator[Event]:
        """Node events from now on; the iteration ends when the node stops."""
        return self._each(self._do(self.node.events))

    # -- signals

    def send(self, dest: Destination, message: Any) -> None:
        """`tumen.Node.send`."""
        self.node.send(dest, message)

    def cast(self, dest: Destination, request: Any) -> None:
        """`tumen.Node.cast`."""
        self.node.cast(dest, request)

    send_wait = _awaits(_node.Node.send_wait)
    call = _awaits(_node.Node.call)
    rpc = _awaits(_node.Node.rpc)
    rpc_cast = _runs(_node.Node.rpc_cast)
    multicall = _awaits(_node.Node.multicall)
    abcast = _runs(_node.Node.abcast)
    sbcast = _awaits(_node.Node.sbcast)
    put_chars = _awaits(_node.Node.put_chars)
    exit = _runs(_node.Node.exit)
    join = _awaits(_node.Node.join)

    def monitor(self, dest: Destination) -> Monitor:
        """Watches a process: ``reason = node.monitor(pid).wait()``; `noproc` when there is none."""
        return Monitor(self, self._do(self.node.monitor, dest))

    # -- groups and names

    @property
    def pg(self) -> Any:
        """`tumen.Node.pg` with blocking methods; what is an async iterator there is one here."""
        return _Blocking(self, self._do(lambda: self.node.pg))

    @property
    def global_names(self) -> Any:
        """`tumen.Node.global_names` with blocking methods."""
        return _Blocking(self, self._do(lambda: self.node.global_names))

    def pubsub(
        self, name: str | Atom, *, adapter: str | Atom | None = None, pool_size: int = 1
    ) -> Any:
        """`tumen.Node.pubsub` with blocking methods; subscriptions are iterators."""
        found = self._do(self.node.pubsub, name, adapter=adapter, pool_size=pool_size)
        return _Blocking(self, found)

    # -- processes

    @overload
    def spawn_remote(
        self,
        node: str,
        module: str | Atom,
        function: str | Atom,
        args: Sequence[Any] = (),
        *,
        monitor: Literal[False] = False,
        **options: Unpack[calls.RemoteOptions],
    ) -> Pid: ...
    @overload
    def spawn_remote(
        self,
        node: str,
        module: str | Atom,
        function: str | Atom,
        args: Sequence[Any] = (),
        *,
        monitor: Literal[True],
        **options: Unpack[calls.RemoteOptions],
    ) -> tuple[Pid, Monitor]: ...
    def spawn_remote(
        self,
        node: str,
        module: str | Atom,
        function: str | Atom,
        args: Sequence[Any] = (),
        *,
        monitor: bool = False,
        **options: Unpack[calls.RemoteOptions],
    ) -> Any:
        """`tumen.Node.spawn_remote`; with `monitor` ``(pid, monitor)``, a `Monitor` of this
        module."""
        if not monitor:
            return self.run(self.node.spawn_remote(node, module, function, args, **options))
        pid, watch = self.run(
            self.node.spawn_remote(node, module, function, args, monitor=True, **options)
        )
        return pid, Monitor(self, watch)

    spawn = _runs(_node.Node.spawn)
    start_server = _awaits(_node.Node.start_server)

    def supervisor(self, which: Pid | str | Atom) -> Any:
        """`tumen.Node.supervisor`, with blocking methods."""
        return _Blocking(self, self._do(self.node.supervisor, which))

    register = _runs(_node.Node.register)
    unregister = _runs(_node.Node.unregister)
    whereis = _runs(_node.Node.whereis)

    def expose(
        self, module: str, function: str, call: Callable[..., Any], *, inline: bool = False
    ) -> None:
        """`tumen.Node.expose`; also before `start`."""
        self.node.expose(module, function, call, inline=inline)

    def expose_server(
        self, module: str, kind: type[GenServer], function: str = "start_link"
    ) -> None:
        """`tumen.Node.expose_server`; also before `start`."""
        self.node.expose_server(module, kind, function)


class Monitor:
    """A monitor of the node itself: ``reason = node.monitor(pid).wait()``. Any thread."""

    def __init__(self, node: Node, monitor: _node.Monitor) -> None:
        self._node = node
        self._monitor = monitor

    @property
    def ref(self) -> Reference:
        """The monitor's reference."""
        return self._monitor.ref

    @property
    def done(self) -> bool:
        """Whether it has fired, or was ended."""
        return self._monitor.done

    def wait(self, timeout: float | None = None) -> Any:
        """The reason with which the process has ended. TimeoutError after `timeout` seconds: the
        monitor stays."""

        async def work() -> Any:
            async with asyncio.timeout(timeout):
                return await self._monitor

        return self._node.run(work())

    def demonitor(self) -> None:
        """Ends it: it will not fire, and who waits for it gets a `TumenError`. Idempotent."""
        self._node._do(self._monitor.demonitor)


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
        return self._node._each(self._target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # The node has closed it when it stopped.
        with contextlib.suppress(_Stopped):
            self.close()

    def __repr__(self) -> str:
        return f"<blocking {self._target!r}>"


_END: Final = object()


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        # Whoever waits for something of this loop must not wait for ever.
        loop.run_until_complete(_cancel_all())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        _, left = await asyncio.wait(tasks, timeout=_CANCEL_WAIT_S)
        for task in left:
            _log.error("a task does not end: %r", task)
