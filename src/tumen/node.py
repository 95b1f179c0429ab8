"""`Node`: this Python process as a node of an Erlang cluster."""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any, Final, Literal, Self, Unpack, overload

from . import broadcast, calls, events
from ._core import OUTCOME_DOWN, PendingCall
from ._term import Atom, Pid, Reference
from .app import App, Exposures
from .errors import CallTimeout, NoConnection, NoProc, ServerDied, TumenError
from .info import BackendName, Connection, NodeInfo
from .options import CORE_LIMITS, Driver, EpmdMode, Limits, NodeOptions
from .outgoing import Outgoing
from .running import Running
from .supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence

    from ._core import Engine
    from .calls import Destination
    from .process import Process
    from .server import GenServer
    from .services.global_names import GlobalNames
    from .services.pg import Groups
    from .services.pubsub import PubSub

__all__ = ["Monitor", "Node"]

_IS_AUTH: Final = Atom("is_auth")
_YES: Final = Atom("yes")


class Monitor:
    """A monitor of the node itself: ``reason = await node.monitor(pid)``."""

    __slots__ = ("_pending",)

    def __init__(self, pending: PendingCall) -> None:
        self._pending = pending

    @property
    def ref(self) -> Reference:
        """The monitor's reference."""
        return self._pending.ref

    @property
    def done(self) -> bool:
        """Whether it has fired, or was ended."""
        return self._pending.done()

    def demonitor(self) -> None:
        """Ends it: it will not fire, and who awaits it gets a `TumenError`. Idempotent."""
        self._pending.close()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._reason().__await__()

    async def _reason(self) -> Any:
        # Several may wait, and one that is cancelled must not end it for the others.
        await asyncio.shield(self._pending)
        if self._pending.outcome == OUTCOME_DOWN:
            return self._pending.value
        raise TumenError("the monitor was ended before it fired", peer=self._pending.peer)


class Node(Outgoing):
    """A node: ``async with Node("py@127.0.0.1", app=app) as node``.

    `name`
        ``"name@host"``; a host alone asks the first peer for a dynamic name, and processes can be
        made once it was given. It lasts as long as the connection to that peer (`NameLost`).
    `cookie`
        else TUMEN_COOKIE, RELEASE_COOKIE, or the file ``~/.erlang.cookie``.
    `allow`
        which nodes may connect, and be connected to: see `allow`. Without any, all with the cookie.
    `visible`
        False: a hidden node, as C nodes are; True: it takes part in ``nodes()``.
    `limits`
        every bound, see `Limits`.
    `driver`, `backend`
        ``"thread"``: the core has a thread of its own. ``"loop"``: the asyncio loop turns the core,
        which costs the loop more and saves a hop between threads; epoll only. The backend is
        io_uring where that works, or what TUMEN_BACKEND says.
    `eager`
        while many small messages come, the core's thread reads up to 500 µs late, so that more of
        them share what a turn costs; what comes seldom is never late. True: nothing ever is. An
        `engine` that is given has its own.
    `listen`, `listen_host`, `listen_port`
        where peers may connect; port 0: the kernel chooses.
    `epmd`
        ``"auto"``: use the port mapper, and become it while none answers; ``"client"``: use it;
        None: neither registration nor look-up. `epmd_address` and `epmd_port` are where ours is,
        else ERL_EPMD_ADDRESS and ERL_EPMD_PORT.
    `flags`
        the capability flags (``DFLAG_*``) to announce instead of all that there are: to meet a peer
        as an older node would.
    `engine`
        one that several nodes share; else each node makes its own.
    `on_output`
        ``on_output(text, pid)`` gets what processes print that run elsewhere for us, or that name
        our `user` as their I/O device; without it that goes to the standard output. It runs on the
        loop and must not block.

    All methods belong to the loop that started the node, except `send` and `cast`, which any
    thread may call. A stopped node can be started again.
    """

    def __init__(
        self,
        name: str,
        *,
        app: App | None = None,
        cookie: str | None = None,
        allow: Iterable[str] = (),
        visible: bool = False,
        limits: Limits | None = None,
        driver: Driver = "thread",
        backend: str | None = None,
        eager: bool = False,
        listen: bool = True,
        listen_host: str | None = None,
        listen_port: int = 0,
        epmd: EpmdMode | None = "auto",
        epmd_address: str | None = None,
        epmd_port: int | None = None,
        flags: int | None = None,
        engine: Engine | None = None,
        on_output: Callable[[str, Pid], object] | None = None,
    ) -> None:
        self._options = NodeOptions(
            name=name,
            cookie=cookie,
            allow=tuple(dict.fromkeys(allow)),
            visible=visible,
            driver=driver,
            backend=backend,
            eager=eager,
            listen=listen,
            listen_host=listen_host,
            listen_port=listen_port,
            epmd=epmd,
            epmd_address=epmd_address,
            epmd_port=epmd_port,
            flags=flags,
            engine=engine,
            on_output=on_output,
        )
        self._limits = limits or Limits()
        self._servers = list(app.servers) if app is not None else []
        self._exposures = Exposures()
        if app is not None:
            self._exposures.update(app.exposures)
        self._state: Running | None = None
        self._stopped: asyncio.Future[None] | None = None

    # -- life

    async def start(self) -> None:
        """Starts the node and its app's servers; returns when the port mapper has answered.

        `AuthError` without a usable cookie, `NameClash` when the name is taken, ValueError for a
        bad one, OSError when the listener cannot be made, and what a server's `init` raised.
        """
        if self._state is not None:
            raise RuntimeError(f"{self.name} is running already")
        self._state = Running(self, self._options, self._limits, self._exposures, self._servers)
        self._stopped = None
        try:
            await self._state.start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stops: servers in reverse order, then every process (`shutdown`), then the node.

        Peers see their connections close once what is queued was written. Idempotent.
        """
        if self._stopped is not None:
            await asyncio.shield(self._stopped)
            return
        state = self._state
        if state is None:
            return
        self._stopped = asyncio.get_running_loop().create_future()
        try:
            await state.stop()
        finally:
            self._state = None
            self._stopped.set_result(None)

    async def drain(self, timeout: float = 30.0) -> bool:
        """Gets ready to stop: the node leaves its process groups, and goes on serving what still
        comes until it has been idle for half a second. To be followed by `stop`.

        Idle: no call of an exposed function is running, every `GenServer` has an empty mailbox, is
        inside no handler and owes no reply. False when `timeout` seconds were not enough.
        """
        return await self._running.drain(timeout)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def __del__(self) -> None:
        state = getattr(self, "_state", None)
        if state is not None and not state.core.closed:
            warnings.warn(f"{self!r} was not stopped", ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<Node {self.name} {'running' if self.running else 'stopped'}>"

    @property
    def _running(self) -> Running:
        if self._state is None:
            raise TumenError(f"node {self._options.name} is not running")
        return self._state

    def _tumen_sender(self) -> tuple[Running, Process]:
        state = self._running
        return state, state.own_process

    # -- what it is

    @property
    def name(self) -> str:
        """Our node name; what was asked for until the node runs and has a dynamic one."""
        return self._options.name if self._state is None else self._state.core.own

    @property
    def running(self) -> bool:
        return self._state is not None and self._stopped is None

    @property
    def backend(self) -> BackendName:
        """``"uring"`` or ``"epoll"``; its `why` says why that one was chosen."""
        engine = self._running.core.engine
        return BackendName(engine.backend, engine.backend_why)

    def info(self) -> NodeInfo:
        """State and counters of the node and its engine."""
        core = self._running.core
        return NodeInfo(**core.info(), engine=core.engine.counters())

    def connections(self) -> list[Connection]:
        """Every connection, those under way included."""
        return [Connection(**entry) for entry in self._running.core.connections()]

    def nodes(self, *, visible: bool | None = None) -> list[str]:
        """Names of the connected nodes: all, or only (not) those connected as visible."""
        return sorted(
            entry.name
            for entry in self.connections()
            if entry.up and visible in (None, entry.visible)
        )

    @property
    def limits(self) -> Limits:
        return self._limits

    def set_limits(self, **changes: int) -> None:
        """Changes limits of the core while the node runs: ``node.set_limits(depth_max=64)``.

        Names as in `Limits`. ValueError for one that is read at the start only, or out of range.
        """
        state = self._running
        limits = self._limits.replace(**changes)
        for name in changes:
            if name not in CORE_LIMITS:
                raise ValueError(f"{name} cannot be changed while the node runs")
        for name, value in changes.items():
            state.core.set_limit(CORE_LIMITS[name], value)
        self._limits = state.limits = limits

    def set_cookie(self, cookie: str, *, peer: str | None = None) -> None:
        """The cookie for one peer, or for all others; an empty one for a peer forgets it."""
        self._running.core.set_cookie(cookie, peer or "")

    def allow(self, names: Iterable[str]) -> None:
        """net_kernel:allow: from the first one on, only these nodes may connect or be connected to.

        ``"name@host"``, ``"host"`` for every node of a host, or ``"name@"`` for one name on all
        hosts. Further calls add to the list. Connections that are up stay. ValueError for what can
        be none of these, `LimitExceeded` above 4096.
        """
        self._running.allow(names)

    @property
    def allowed(self) -> tuple[str, ...]:
        """The nodes that may connect, as `allow` was given them; empty: all."""
        return self._running.allowed

    # -- connections

    async def connect(
        self, name: str, address: tuple[str, int] | None = None, *, timeout: float | None = None
    ) -> None:
        """Connects to a node, and returns when the connection is up.

        `address`, a host and a port, makes any look-up needless and is kept for reconnects.
        `NoConnection` or `AuthError` with the reason; `CallTimeout` after `timeout` seconds.
        """
        state = self._running
        host, port = address if address is not None else (None, 0)
        if state.core.connect(name, host, port):
            return
        future: asyncio.Future[None] = state.loop.create_future()
        waiting = state.connecting.setdefault(name, [])
        waiting.append(future)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            raise CallTimeout(
                f"{name}: no connection within {timeout} s", peer=name, may_have_executed=False
            ) from None
        finally:
            if future in waiting:
                waiting.remove(future)

    async def disconnect(self, name: str) -> bool:
        """Closes the connection and returns when it is closed. False when there was none.

        What was sent is written before; a peer that does not read is given half a second.
        """
        state = self._running
        if not state.core.disconnect(name):
            return False
        future: asyncio.Future[None] = state.loop.create_future()
        state.closing.setdefault(name, []).append(future)
        await future
        return True

    async def ping(self, name: str, timeout: float | None = 7.0) -> bool:
        """net_adm:ping: whether the node answers. Connects if need be, and never raises for an
        unreachable peer."""
        if name == self.name:
            return True
        try:
            reply = await self.call(
                ("net_kernel", name), (_IS_AUTH, Atom(self.name)), timeout=timeout
            )
        except (NoConnection, NoProc, ServerDied, CallTimeout):
            return False
        return bool(reply == _YES)

    def events(self) -> events.EventStream:
        """Node events from now on: ``async for event in node.events()``. See `tumen.events`."""
        return self._running.events()

    # -- signals

    def send(self, dest: Destination, message: Any) -> None:
        """Sends a message from the node itself. Never blocks, connects if need be. Any thread.

        `dest`: a `Pid`, a local name, a ``(name, node)`` pair or an alias. `Busy` above the high
        water of the connection, `EncodeError`, `LimitExceeded`. What a process of this node gets:
        see `Process.send`.
        """
        self._running.own_process.send(dest, message)

    def cast(self, dest: Destination, request: Any) -> None:
        """gen_server:cast: as `send`. Any thread."""
        self._running.own_process.cast(dest, request)

    @overload
    async def spawn_remote(
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
    async def spawn_remote(
        self,
        node: str,
        module: str | Atom,
        function: str | Atom,
        args: Sequence[Any] = (),
        *,
        monitor: Literal[True],
        **options: Unpack[calls.RemoteOptions],
    ) -> tuple[Pid, Monitor]: ...
    async def spawn_remote(
        self,
        node: str,
        module: str | Atom,
        function: str | Atom,
        args: Sequence[Any] = (),
        *,
        link: bool = False,
        monitor: bool = False,
        group_leader: Pid | None = None,
        options: Sequence[Any] = (),
        timeout: float | None = None,
    ) -> Any:
        """spawn(Node, Module, Function, Args): starts a process on another node.

        Its `Pid`; with `monitor` ``(pid, monitor)``, and ``await monitor`` is its exit reason. With
        `link` it ends when this node stops or is lost, with `noconnection`; its own end does
        nothing here. `group_leader` gets what it prints, else this node does; `options` are terms,
        those of spawn_opt/5 beyond link and monitor, as ``(Atom("priority"), Atom("high"))``.

        `RemoteError` with the reason when it was refused (``badopt``, ``notsup``,
        ``system_limit``), `NoConnection`, `CallTimeout` after `timeout` seconds: then its link and
        monitor end as soon as it answers.
        """
        state = self._running
        owner = state.own_process
        # The link is for the other side: nothing that ends there may end the node's own process.
        owner.trap_exit = True
        pending = await calls.spawn_remote(
            state,
            owner,
            node,
            module,
            function,
            args,
            calls.SpawnOptions(link, monitor, True, group_leader, options),
            timeout,
        )
        if pending.following is not None:
            return pending.value, Monitor(pending.following)
        return pending.value

    async def put_chars(self, device: Destination, text: str, timeout: float | None = 5.0) -> None:
        """io:put_chars: prints to an I/O device, a group leader or ``("user", node)``.

        Returns when it is written. The errors of `call`; `RemoteError` when the device refuses.
        """
        await broadcast.put_chars(self._running, device, text, timeout)

    def monitor(self, dest: Destination) -> Monitor:
        """Watches a process: ``reason = await node.monitor(pid)``; `noproc` when there is none."""
        state = self._running
        return Monitor(state.core.monitor_begin(state.own_process, dest))

    async def join(self, pid: Destination) -> Any:
        """Waits until a process has ended; its exit reason, `noproc` when it had ended before."""
        monitor = self.monitor(pid)
        try:
            return await monitor
        finally:
            monitor.demonitor()

    def exit(self, pid: Pid, reason: Any) -> None:
        """exit(Pid, Reason): an exit signal to a process, here or elsewhere."""
        self._running.own_process.exit(pid, reason)

    # -- groups

    @property
    def pg(self) -> Groups:
        """Process groups over all connected nodes: ``node.pg.join(group, pid)``. See `Groups`."""
        return self._running.services.pg.groups

    def pubsub(
        self, name: str | Atom, *, adapter: str | Atom | None = None, pool_size: int = 1
    ) -> PubSub:
        """The Phoenix.PubSub of that name, such as ``"Elixir.MyApp.PubSub"``, of which this node is
        a part from now on. `adapter` and `pool_size` as the others have them; by default the
        adapter is called as Phoenix calls it, ``"Elixir.MyApp.PubSub.Adapter"``.

        ValueError when it is open with others already, `NameClash`.
        """
        return self._running.services.pubsubs.open(name, adapter, pool_size)

    @property
    def global_names(self) -> GlobalNames:
        """Names for the whole cluster, as Erlang's `global` has them. See `GlobalNames`."""
        return self._running.services.global_names.names

    # -- processes

    def spawn(
        self,
        function: Callable[..., Awaitable[object]],
        *args: Any,
        name: str | Atom | None = None,
    ) -> Pid:
        """Starts ``await function(proc, *args)`` as a process; `name` registers it first.

        `NameClash` when the name is taken.
        """
        return self._running.start_process(function, args, name).pid

    async def start_server(
        self, kind: type[GenServer], *args: Any, name: str | Atom | None = None
    ) -> Pid:
        """Starts a `GenServer`; returns after its ``init(*args)``.

        `ServerDied` with the reason when `init` fails, `NameClash`.
        """
        return await self._running.start_server(kind, args, name)

    def supervisor(self, which: Pid | str | Atom) -> Supervisor:
        """The supervisor with that pid or name on this node, to start and end children. `NoProc`,
        TypeError when it is no supervisor."""
        core = self._running.core
        pid = which if isinstance(which, Pid) else self.whereis(which)
        found = None
        if pid is not None and pid.node == core.own:
            found = core.process(calls.key_of(pid))
        if found is None or found.pid != pid:
            raise NoProc(f"{which!r} is no process of {self.name}", peer=self.name)
        if not isinstance(found, Supervisor):
            raise TypeError(f"{which!r} is {found!r}, no supervisor")
        return found

    def register(self, name: str | Atom, pid: Pid) -> None:
        """Gives a process of this node a name. `NameClash`, `NoProc`, ValueError."""
        core = self._running.core
        key = calls.key_of(pid)
        if pid.node != core.own or core.pid(key) != pid:
            raise NoProc(f"{pid!r} is no process of {self.name}", peer=self.name)
        core.register(name, key)

    def unregister(self, name: str | Atom) -> bool:
        """Takes a name away; False when nobody had it."""
        return self._running.core.unregister(name)

    def whereis(self, name: str | Atom) -> Pid | None:
        """The pid of the local process with that name."""
        core = self._running.core
        key = core.whereis(name)
        return core.pid(key) if key else None

    def expose(
        self, module: str, function: str, call: Callable[..., Any], *, inline: bool = False
    ) -> None:
        """Lets other nodes run `call` as ``module:function``: as `App.expose`."""
        self._exposures.add(module, function, call, inline=inline)
        if self._state is not None:
            self._state.core.expose(module, function)

    def expose_server(
        self, module: str, kind: type[GenServer], function: str = "start_link"
    ) -> None:
        """Lets other nodes start the class below a supervisor: as `App.expose_server`."""
        self._exposures.add_server(module, function, kind)
