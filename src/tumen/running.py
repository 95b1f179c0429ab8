"""`Running`: everything a node has between its start and its stop.

It owns engine, core node, pool and tasks, and is the handler of the core's events.
"""

# ruff: noqa: SLF001 - it runs processes through what their users are not to see

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import TYPE_CHECKING, Any, Final

from . import calls, events
from ._core import (
    EVENT_BROKEN,
    EVENT_CONNECT_FAILED,
    EVENT_HANDSHAKE_FAILED,
    EVENT_NAMED,
    EVENT_NODEDOWN,
    EVENT_NODEUP,
    EVENT_REFUSED,
    EVENT_REGISTER_FAILED,
    EVENT_REGISTERED,
    EVENT_STOPPED,
    EVENT_WRITABLE,
    CoreEvent,
    CoreProcess,
    Engine,
    LoopDriver,
    LoopNode,
    error_for,
    error_text,
)
from ._term import Atom
from .errors import NameClash, TumenError
from .options import (
    CORE_LIMITS,
    EPMD_MODES,
    backend_choice,
    cookie_find,
    cookie_weakness,
    epmd_choice,
)
from .pace import Warnings
from .pool import Pool
from .process import Process
from .reasons import NO_CONNECTION, NORMAL, SHUTDOWN
from .services import Services
from .workers import Workers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable

    from ._term import Pid, Reference
    from .app import Exposures, ServerSpec
    from .calls import Destination
    from .node import Node
    from .options import Limits, NodeOptions
    from .server import GenServer
    from .stream import Stream

__all__ = ["Running"]

_log = logging.getLogger("tumen")

_TM_ENAME_TAKEN: Final = -5006

_NODEUP: Final = Atom("nodeup")
_NODEDOWN: Final = Atom("nodedown")

# `wait_registered` waits so long for the port mapper, seconds; registration goes on afterwards.
_REGISTER_WAIT_S: Final = 5.0
# So long may queues be written and connections close at the end, seconds: the core itself gives up
# after 0.5.
_STOP_WAIT_S: Final = 2.0
# Pause where the pool's queue is full, seconds: no event tells when that ends.
_FULL_POOL_PAUSE_S: Final = 0.005
# A draining node is done when no work has come for so long, seconds: who has just been told that we
# left may have a request under way. And how often it looks.
_QUIET_S: Final = 0.5
_DRAIN_LOOK_S: Final = 0.02
# Processes that do not end when they are cancelled are left alone after this, seconds.
_TASKS_WAIT_S: Final = 5.0


class Running:
    """A running node. Made and used on its loop's thread, but for what says otherwise."""

    def __init__(
        self,
        node: Node,
        options: NodeOptions,
        limits: Limits,
        exposures: Exposures,
        servers: list[ServerSpec],
    ) -> None:
        self.node = node
        self.options = options
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        # Closed at the end, so that their readers end too; and the ones that hear of events.
        self.streams: weakref.WeakSet[Stream[Any]] = weakref.WeakSet()
        self._listening: weakref.WeakSet[events.EventStream] = weakref.WeakSet()
        self.connecting: dict[str, list[asyncio.Future[None]]] = {}
        self.exposures = exposures
        self._node_watchers: weakref.WeakKeyDictionary[Process, int] = weakref.WeakKeyDictionary()
        self.closing: dict[str, list[asyncio.Future[None]]] = {}
        self.allowed = options.allow
        self._handshake_warnings = Warnings(
            self.loop, "handshakes failed", limits.handshake_warnings_count_max
        )
        self._specs = servers
        self._servers: dict[int, GenServer] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._own: Process | None = None
        self._name = options.name  # dynamic: the one that we had last
        self._driver: LoopDriver | None = None
        self._registered: asyncio.Future[None] = self.loop.create_future()
        self._closed: asyncio.Future[None] = self.loop.create_future()

        cookie = cookie_find(options.cookie)
        if weakness := cookie_weakness(cookie):
            _log.warning("%s: weak cookie: %s", options.name, weakness)
        address, port = epmd_choice(options.epmd_address, options.epmd_port)
        self._engine = options.engine or self._make_engine()
        try:
            self.core = LoopNode(
                self._engine,
                options.name,
                cookie,
                loop=self.loop,
                handler=self,
                allowed=" ".join(options.allow) or None,
                visible=options.visible,
                listen=options.listen,
                listen_host=options.listen_host,
                listen_port=options.listen_port,
                epmd_mode=EPMD_MODES[options.epmd],
                epmd_address=address,
                epmd_port=port,
                flags=options.flags or 0,
            )
        except BaseException:
            self._close_engine()
            raise
        self.room = calls.Room(self.core)
        self.pool = Pool(limits.pool_threads_max, limits.pool_waiting_count_max, options.name)
        self.workers = Workers(self.core, exposures, self.pool, self._adopt)
        for exposed in exposures:
            self.core.expose(exposed.module, exposed.function)
        self.services = Services(self)

    def _make_engine(self) -> Engine:
        options = self.options
        backend = "epoll" if options.driver == "loop" else backend_choice(options.backend)
        return Engine(backend=backend, driver=options.driver, eager=options.eager)

    def _close_engine(self) -> None:
        if self.options.engine is None:
            self._engine.close()

    # -- start

    async def start(self) -> None:
        """Events flow, servers run, and the port mapper has answered."""
        for name, number in CORE_LIMITS.items():
            self.core.set_limit(number, getattr(self.limits, name))
        if self.options.driver == "loop":
            self._driver = LoopDriver(self.core)
        self.loop.add_reader(self.core.event_fd(), self.core.drain)
        self.core.drain()
        if self.options.is_dynamic:
            return  # nothing to register, no pids: until the first peer has named us
        await self._start_servers()
        if self.options.epmd is not None and self.options.listen:
            await self._wait_registered()

    async def _start_servers(self) -> None:
        self.services.start()
        for spec in self._specs:
            await self.start_server(spec.kind, spec.args, spec.name)

    async def _wait_registered(self) -> None:
        try:
            async with asyncio.timeout(_REGISTER_WAIT_S):
                await asyncio.shield(self._registered)
        except TimeoutError:
            _log.warning("%s: the port mapper does not answer", self.options.name)

    # -- processes

    @property
    def own_process(self) -> Process:
        """The process that signals of the node itself come from. It has no mailbox."""
        if self._own is None:
            # Not earlier: a node with a dynamic name has no pids before its first connection.
            process = Process()
            self.core.attach(process, sink=True)
            process._home = self
            self._own = process
        return self._own

    @property
    def group_leader(self) -> Pid:
        """The group leader of processes that have none of their own, and of what they run on other
        nodes: our I/O server, or the node itself while there is none."""
        return self.services.io.pid or self.own_process.pid

    def leader_of(self, process: CoreProcess) -> Pid:
        """The group leader of a process of this node. `ProcessExited`."""
        process._check()
        return self.core.group_leader(process._key) or self.group_leader

    def _adopt(self, key: int) -> Process:
        """Gives a process that the core has made for a peer a mailbox."""
        process = Process()
        self.core.attach(process, key=key)
        process._home = self
        return process

    def _attach(self, process: Process, name: str | Atom | None) -> None:
        """Makes a process of the core for `process`, and registers it."""
        self.core.attach(process)
        process._home = self
        if name is not None:
            try:
                self.core.register(name, process._key)
            except BaseException:
                process._end(NORMAL)
                raise

    def _run(self, process: Process, main: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(main)
        process._tumen_task = task
        task.add_done_callback(process._task_done)
        self._keep(task)
        return task

    def start_process(
        self,
        function: Callable[..., Awaitable[object]],
        args: tuple[Any, ...],
        name: str | Atom | None,
    ) -> Process:
        if not callable(function):
            raise TypeError(f"{function!r} cannot be called")
        process = Process()
        self._attach(process, name)
        self._run(process, process._main(function, args))
        return process

    async def start_server(
        self, kind: type[GenServer], args: tuple[Any, ...], name: str | Atom | None
    ) -> Pid:
        return (await self.start_child(kind, args, name, None)).pid

    async def start_child(
        self,
        kind: type[GenServer],
        args: tuple[Any, ...],
        name: str | Atom | None,
        parent: GenServer | None,
    ) -> GenServer:
        """A server after its `init`; linked to `parent`, its supervisor, from the beginning."""
        server, started = self.begin_server(kind, args, name, parent)
        try:
            await started
        except asyncio.CancelledError:
            if server._tumen_task is not None:
                server._tumen_task.cancel()
            raise
        return server

    def begin_server(
        self,
        kind: type[GenServer],
        args: tuple[Any, ...],
        name: str | Atom | None,
        parent: GenServer | None = None,
    ) -> tuple[GenServer, asyncio.Future[None]]:
        """A server whose `init` is about to run, and what is resolved when it has."""
        server = kind()
        started: asyncio.Future[None] = self.loop.create_future()
        self._attach(server, name)
        server._tumen_name = Atom(name) if isinstance(name, str) else name
        if parent is not None:
            server._tumen_parent = parent
            parent.link(server.pid)
        self._servers[server._key] = server
        task = self._run(server, server._serve(args, started))

        def ended(_: asyncio.Task[None]) -> None:
            self._servers.pop(server._key, None)
            server._start_failed(started, server.exit_reason, None)

        task.add_done_callback(ended)
        return server, started

    def background(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine of our own until it ends or the node stops."""
        task = self.loop.create_task(work)
        task.add_done_callback(_log_failure)
        self._keep(task)

    def _keep(self, task: asyncio.Task[None]) -> None:
        # The loop itself holds tasks by weak references only.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def in_pool(self, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Runs a blocking function in the pool; cancelled before it starts, it never does."""
        future = self.loop.create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)

        def work() -> None:
            value, error = None, None
            try:
                value = function(*args)
            except BaseException as raised:
                error = raised
            if not self.loop.is_closed():
                self.loop.call_soon_threadsafe(settle, value, error)

        # A server has one job at a time: who waits here is one of few, and no fault of the server.
        while (job := self.pool.submit(work)) is None:
            if self.pool.stopped:
                raise TumenError("the node is stopping")
            await asyncio.sleep(_FULL_POOL_PAUSE_S)
        try:
            return await future
        finally:
            self.pool.abandon(job)

    def send_later(self, dest: Destination, message: Any) -> None:
        """What a timer of `Process.send_after` runs."""
        if not self.core.closed:
            self.background(self.own_process.send_wait(dest, message))

    # -- stop

    async def drain(self, timeout: float) -> bool:
        """No work is under way any more, and none has come for a while; False: it took too long."""
        self.services.leave_groups()
        deadline = self.loop.time() + timeout
        quiet_from = self.loop.time()
        while True:
            now = self.loop.time()
            serving = any(server._busy for server in self._servers.values())
            if serving or self.workers.busy or self.core.building:
                quiet_from = now
            elif now - quiet_from >= _QUIET_S:
                return True
            if now >= deadline:
                return False
            await asyncio.sleep(_DRAIN_LOOK_S)

    async def stop(self) -> None:
        """Servers in reverse order, all other processes, peers' calls, then the node itself."""
        try:
            self.services.leave()
            me = asyncio.current_task()
            # Those below a supervisor are ended by it.
            top = [server for server in self._servers.values() if server._tumen_parent is None]
            for server in reversed(top):
                await self._cancel({server._tumen_task} - {me, None})
            await self._cancel(self._tasks - {me})
            await self.workers.stop()
        finally:
            self.pool.stop()
            await self._stop_core()
            self._close()

    async def _cancel(self, tasks: set[Any]) -> None:
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        seconds = max(_TASKS_WAIT_S, self.limits.shutdown_time_ms / 1000 + 1)
        _, left = await asyncio.wait(tasks, timeout=seconds)
        for task in left:
            _log.error("%s: a process does not end: %r", self.options.name, task)

    async def _stop_core(self) -> None:
        try:
            self.core.stop()
            async with asyncio.timeout(_STOP_WAIT_S):
                await asyncio.shield(self._closed)
        except (TimeoutError, TumenError) as error:
            _log.warning("%s: did not stop cleanly: %s", self.options.name, error)

    def _close(self) -> None:
        self.core.end_all(SHUTDOWN)
        self.room.close()
        for name in list(self.connecting):
            self._connected(name, TumenError("the node was stopped"))
        for name in list(self.closing):
            self._disconnected(name)
        self._handshake_warnings.close()
        for stream in list(self.streams):
            stream.close()
        self.services.close()
        if self._driver is not None:
            self._driver.close()
        if not self.core.closed:
            self.loop.remove_reader(self.core.event_fd())
        self.core.close()
        self._close_engine()
        if not self._registered.done():
            self._registered.cancel()
        elif not self._registered.cancelled():
            self._registered.exception()  # seen, whether or not `start` still waited for it

    # -- the core's events: called from a drain

    def spawn_requested(
        self, key: int, sender: Pid, _ref: Reference, module: str, function: str, args: Any, /
    ) -> None:
        self.workers.request(key, sender, module, function, args)

    def worker_abandoned(self, key: int, /) -> None:
        self.workers.abandoned(key)

    def worker_exited(self, key: int, _reason: Any, /) -> None:
        self.workers.exited(key)

    def queue_full(self, peer: str, /) -> None:
        self._tell(events.Busy(peer))

    def message_refused(self, node: str, key: int, reason: str, size: int, /) -> None:
        _log.warning("%s: a message of %d bytes was refused: %s", node, size, reason)
        self._tell(events.Refused(node, self._pid(key), reason, size))

    def node_event(self, event: CoreEvent, /) -> None:
        handler = _HANDLERS.get(event.kind)
        if handler is not None:
            handler(self, event)

    def _up(self, event: CoreEvent) -> None:
        self._connected(event.node, None)
        self.services.node_up(event.node, event.number == 1)
        self._tell_watchers(_NODEUP, event.node)
        self._tell(events.NodeUp(event.node, event.number == 1))

    def _down(self, event: CoreEvent) -> None:
        # Nothing for `connecting`: what waits there waits for a later connection than this one.
        self._disconnected(event.node)
        self.room.open(event.node)
        self.services.node_down(event.node)
        self._tell_watchers(_NODEDOWN, event.node)
        self._tell(events.NodeDown(event.node, _reason(event), event.number))

    def _connect_failed(self, event: CoreEvent) -> None:
        self._connected(event.node, _failure(event))
        self.room.open(event.node)
        self._tell(events.ConnectFailed(event.node, _reason(event), event.number))

    def _writable(self, event: CoreEvent) -> None:
        self.room.open(event.node)
        self._tell(events.Writable(event.node))

    def _refused(self, event: CoreEvent) -> None:
        _log.warning("%s: refused: %s (%d bytes)", event.node, _reason(event), event.number)
        to = self._pid(event.process)
        self._tell(events.Refused(event.node, to, _reason(event), event.number))

    def _handshake_failed(self, event: CoreEvent) -> None:
        self._handshake_warnings.warn("handshake with %r failed: %s", event.node, _reason(event))
        self._tell(events.HandshakeFailed(event.node, _reason(event)))

    def _was_registered(self, event: CoreEvent) -> None:
        if not self._registered.done():
            self._registered.set_result(None)
        self._tell(events.Registered(event.number == 1))

    def _register_failed(self, event: CoreEvent) -> None:
        _log.warning("%s: not registered: %s", self.options.name, _reason(event))
        if not self._registered.done():
            if event.code == _TM_ENAME_TAKEN:
                name = self.options.name
                self._registered.set_exception(
                    NameClash(f"{name}: its port mapper knows another node of that name")
                )
            else:
                self._registered.set_result(None)
        self._tell(events.RegisterFailed(_reason(event)))

    def _named(self, event: CoreEvent) -> None:
        # The host alone: the name was lost.
        if "@" in event.node:
            self._name = event.node
            self._tell(events.Renamed(event.node))
            self.background(self._start_servers())
        else:
            self._own = None
            self._tell(events.NameLost(self._name))

    def _has_stopped(self, _event: CoreEvent) -> None:
        if not self._closed.done():
            self._closed.set_result(None)

    def _broken(self, event: CoreEvent) -> None:
        _log.critical("%s: the engine has failed: %s", self.options.name, _reason(event))
        self._tell(events.NodeFailed(_reason(event)))
        self.core.end_all(NO_CONNECTION)
        self._has_stopped(event)

    def watch_nodes(self, process: Process, flag: bool) -> None:
        """`Process.monitor_nodes`."""
        watchers = self._node_watchers
        watchers[process] = watchers.get(process, 0) + 1 if flag else 0
        if not flag:
            del watchers[process]

    def _tell_watchers(self, what: Atom, name: str) -> None:
        for process, count in list(self._node_watchers.items()):
            for _ in range(count):
                process._deliver((what, Atom(name)))

    def _tell(self, event: events.Event) -> None:
        for stream in list(self._listening):
            stream.put(event)

    def events(self) -> events.EventStream:
        stream = events.EventStream(self.limits.events_count_max)
        self._listening.add(stream)
        self.streams.add(stream)
        return stream

    def _connected(self, name: str, error: BaseException | None) -> None:
        for future in self.connecting.pop(name, ()):
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

    def _disconnected(self, name: str) -> None:
        for future in self.closing.pop(name, ()):
            if not future.done():
                future.set_result(None)

    def allow(self, names: Iterable[str]) -> None:
        for name in dict.fromkeys(names):
            self.core.allow(name)
            if name not in self.allowed:
                self.allowed += (name,)

    def _pid(self, key: int) -> Pid | None:
        return self.core.pid(key) if key else None


_HANDLERS: Final[dict[int, Callable[[Running, CoreEvent], None]]] = {
    EVENT_NODEUP: Running._up,
    EVENT_NODEDOWN: Running._down,
    EVENT_CONNECT_FAILED: Running._connect_failed,
    EVENT_WRITABLE: Running._writable,
    EVENT_REFUSED: Running._refused,
    EVENT_HANDSHAKE_FAILED: Running._handshake_failed,
    EVENT_REGISTERED: Running._was_registered,
    EVENT_REGISTER_FAILED: Running._register_failed,
    EVENT_NAMED: Running._named,
    EVENT_STOPPED: Running._has_stopped,
    EVENT_BROKEN: Running._broken,
}


def _reason(event: CoreEvent) -> str:
    """What happened, for people: what the core says of it, and what its code says."""
    if not event.code:
        return event.text
    text = error_text(event.code)
    return f"{event.text} ({text})" if event.text else text


def _failure(event: CoreEvent) -> Exception:
    if event.code < 0:
        return error_for(event.code, event.node, event.text)
    return TumenError(f"{event.node}: {event.text or 'closed'}", peer=event.node)


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a background task of the node failed", exc_info=error)
