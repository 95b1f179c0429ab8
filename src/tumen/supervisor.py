"""`Supervisor`: starts processes, and starts them again when they end.

OTP's supervisor in Python: the same strategies, restart intensity, exit reasons and order of start
and end, and the same answers to `supervisor:which_children/1` and the rest from other nodes.
"""

# ruff: noqa: SLF001 - a supervisor runs processes through what their users are not to see

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import math
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from . import system
from ._core import OUTCOME_DOWN
from ._term import Atom, Pid, Reference, TermMap, decode, encode
from .errors import ChildError, NameClash, ProcessExited, ServerDied
from .process import Process
from .reasons import KILLED, NOPROC, NORMAL, SHUTDOWN, crash_reason
from .server import Caller, GenServer, Stop
from .system import ERROR, OK, UNDEFINED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

__all__ = ["ChildSpec", "Supervisor"]

Restart = Literal["permanent", "transient", "temporary"]
Shutdown = Literal["brutal_kill", "infinity"]
Kind = Literal["worker", "supervisor"]
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]

_log = logging.getLogger("tumen")

_KILL: Final = Atom("kill")
_START_LINK: Final = Atom("start_link")
_RESTARTING: Final = Atom("restarting")
_RUNNING: Final = Atom("running")
_NOT_FOUND: Final = Atom("not_found")
_ALREADY_PRESENT: Final = Atom("already_present")
_ALREADY_STARTED: Final = Atom("already_started")
_TRY_AGAIN: Final = Atom("try_again_restart")
_JOB: Final = Atom("$tumen_job")

# So long may a worker take to end when its spec does not say: OTP's default, seconds.
_WORKER_SHUTDOWN_S: Final = 5.0


# -- specs ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class ChildSpec:
    """How a supervisor starts, restarts and ends one child.

    `id`
        its name among its siblings, any term; a `str` is an atom, as names of processes are.
    `start`, `args`
        a `GenServer` class, for ``init(*args)``, or an ``async def function(proc, *args)``.
    `restart`
        ``"permanent"``: always; ``"transient"``: unless it ended with `normal`, `shutdown` or
        ``{shutdown, _}``; ``"temporary"``: never, and its spec is forgotten.
    `shutdown`
        seconds that it may take to end before it is killed, ``"infinity"`` or ``"brutal_kill"``.
        Default: 5 for a worker, infinity for a supervisor.
    `type`
        ``"worker"`` or ``"supervisor"``; by default what `start` is.
    `name`
        it is registered under this name, each time it starts.
    `significant`
        its end may end the supervisor: see `Supervisor.auto_shutdown`.

    A server that traps exits is told to end by the exit signal of its supervisor, and any other by
    the cancellation of what it awaits: `terminate` runs either way. A function gets the signal.
    """

    id: Any
    start: type[GenServer] | Callable[..., Awaitable[object]]
    args: Sequence[Any] = ()
    restart: Restart = "permanent"
    shutdown: float | Shutdown | None = None
    type: Kind | None = None
    name: str | Atom | None = dataclasses.field(default=None, kw_only=True)
    significant: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        # As it comes back from a peer.
        put("id", decode(encode(Atom(self.id) if isinstance(self.id, str) else self.id)))
        is_server = isinstance(self.start, type) and issubclass(self.start, GenServer)
        if not is_server and (isinstance(self.start, type) or not callable(self.start)):
            raise TypeError(f"child {self.id!r}: start is no GenServer class or async function")
        put("args", tuple(self.args))
        if self.type is None:
            is_supervisor = is_server and issubclass(self.start, Supervisor)  # type: ignore[arg-type]
            put("type", "supervisor" if is_supervisor else "worker")
        if self.shutdown is None:
            put("shutdown", _WORKER_SHUTDOWN_S if self.type == "worker" else "infinity")
        self._check("restart", self.restart, get_args(Restart))
        self._check("type", self.type, get_args(Kind))
        if not _is_seconds(self.shutdown):
            self._check("shutdown", self.shutdown, get_args(Shutdown))
        if self.significant and self.restart == "permanent":
            raise ValueError(f"child {self.id!r}: a permanent child cannot be significant")

    def _check(self, what: str, value: Any, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            also = " or seconds" if what == "shutdown" else ""
            raise ValueError(
                f"child {self.id!r}: {what} must be one of {', '.join(allowed)}{also}, "
                f"not {value!r}"
            )


def _is_seconds(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )


class _Child:
    """One child: its spec, and the process that it is now."""

    __slots__ = (
        *("function", "key", "module", "modules", "process", "restarting", "spec", "unrepeatable"),
    )

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.key = encode(spec.id)
        self.process: Process | None = None
        # It ended, its restart has failed, and another try is on its way.
        self.restarting = False
        # Started dynamically and temporary: a BEAM forgets the arguments of such a one.
        self.unrepeatable = False
        # What a BEAM is shown as its start function.
        self.module = system.module_of(spec.start)
        self.function = _START_LINK
        self.modules: Any = [self.module]

    @property
    def pid(self) -> Any:
        if self.restarting:
            return _RESTARTING
        return UNDEFINED if self.process is None else self.process.pid

    @property
    def mfa(self) -> tuple[Atom, Atom, Any]:
        """``{M, F, A}``, as the spec is shown."""
        args = UNDEFINED if self.unrepeatable else system.printable(list(self.spec.args))
        return self.module, self.function, args

    def row(self) -> Any:
        """One element of `which_children`: ``{Id, Child, Type, Modules}``."""
        return self.spec.id, self.pid, Atom(str(self.spec.type)), self.modules

    def shown(self) -> dict[Atom, Any]:
        """`supervisor:child_spec()` as a map."""
        spec = self.spec
        return {
            Atom("id"): spec.id,
            Atom("start"): self.mfa,
            Atom("restart"): Atom(spec.restart),
            Atom("significant"): spec.significant,
            Atom("shutdown"): _milliseconds(spec.shutdown),
            Atom("type"): Atom(str(spec.type)),
            Atom("modules"): self.modules,
        }

    def record(self) -> Any:
        """OTP's record of it, which is a part of some errors."""
        spec = self.spec
        return (
            *(Atom("child"), UNDEFINED, spec.id, self.mfa, Atom(spec.restart)),
            *(spec.significant, _milliseconds(spec.shutdown), Atom(str(spec.type))),
            self.modules,
        )


def _milliseconds(shutdown: Any) -> Any:
    return Atom(shutdown) if isinstance(shutdown, str) else round(shutdown * 1000)


# -- the supervisor -------------------------------------------------------------------------------


class Supervisor(GenServer):
    """A server that keeps its children running.

    ::

        class Workers(tumen.Supervisor):
            strategy = "rest_for_one"
            intensity, period = 3, 10
            children = [
                ChildSpec("store", Store, name="store"),
                ChildSpec("server", Server, (10,), restart="transient", name="server"),
            ]

    or with an ``async def init(self, *args)`` that returns the specs. ``Supervisor`` itself takes a
    list of specs as its argument. Children start in order, each when the one before it has run its
    `init`, and end in the reverse order; when one does not start, the supervisor does not either.

    `strategy`
        which children are ended and started again with one that has to be restarted:
        ``"one_for_one"`` none, ``"rest_for_one"`` those after it, ``"one_for_all"`` all.
    `intensity`, `period`
        more than so many restarts within so many seconds end the supervisor, with `shutdown`.
    `auto_shutdown`
        ``"any_significant"``, ``"all_significant"``: it ends too, with `shutdown`, when one or the
        last of its significant children has ended by itself.

    A child that is not running any more keeps its spec unless it is temporary, and can be started
    again by `restart_child`. Restarts are logged as warnings, and what ends the supervisor as an
    error. The methods below are for Python code of this node, through ``node.supervisor(name)``.
    """

    strategy: Strategy = "one_for_one"
    intensity: int = 1
    period: float = 5.0
    auto_shutdown: AutoShutdown = "never"
    children: Sequence[ChildSpec] = ()

    def __init__(self) -> None:
        super().__init__()
        # By the encoded id, in the order of their start.
        self.__tree: dict[bytes, _Child] = {}
        self.__by_pid: dict[Pid, _Child] = {}
        self.__restarts: collections.deque[float] = collections.deque()
        self.__jobs: collections.deque[_Job] = collections.deque()
        # Nobody else knows it: what carries it is from us.
        self.__tag: Reference | None = None

    async def init(self, *args: Any) -> Iterable[ChildSpec]:
        """The specs of the children that are started now, in order. Or a `Stop`."""
        if not args:
            return self.children
        (children,) = args
        return children  # type: ignore[no-any-return]

    # -- for Python code

    async def start_child(self, spec: ChildSpec) -> Pid:
        """Starts another child, the last in order; its pid.

        `ServerDied` with the reason when its `init` fails, then nothing is kept; `ChildError`
        with `already_present` or ``{already_started, Pid}`` when there is one of that id.
        """
        reply = await self._ask(lambda: self._start_new(_Child(spec)))
        return _started(spec.id, reply)

    async def restart_child(self, child_id: Any) -> Pid:
        """Starts a child that is not running. `ServerDied`; `ChildError`: `running`,
        `restarting`, `not_found`."""
        key = _key(child_id)
        return _started(child_id, await self._ask(lambda: self._restart_known(key)))

    async def terminate_child(self, child_id: Any) -> None:
        """Ends a child, and its supervisor does not start it again; a temporary one is forgotten.
        `ChildError`: `not_found`."""
        key = _key(child_id)
        _done(child_id, await self._ask(lambda: self._terminate_known(key)))

    async def delete_child(self, child_id: Any) -> None:
        """Forgets a child that is not running. `ChildError`: `running`, `restarting`,
        `not_found`."""
        key = _key(child_id)
        _done(child_id, await self._ask(lambda: self._delete_known(key)))

    def which_children(self) -> list[tuple[Any, Pid | Atom, Atom, list[Atom]]]:
        """``(id, pid or `undefined` or `restarting`, `worker` or `supervisor`, modules)`` of each
        child, the one that was started last first, as OTP has it."""
        return [child.row() for child in reversed(self.__tree.values())]

    def count_children(self) -> dict[str, int]:
        """How many children: ``specs``, ``active``, ``supervisors``, ``workers``."""
        return {str(name): count for name, count in self._counts()}

    def get_childspec(self, child_id: Any) -> ChildSpec:
        """`ChildError`: `not_found`."""
        child = self.__tree.get(_key(child_id))
        if child is None:
            raise ChildError(f"no child {child_id!r}", reason=_NOT_FOUND)
        return child.spec

    def format_state(self) -> Any:
        return {
            Atom("strategy"): Atom(self.strategy),
            Atom("intensity"): self.intensity,
            Atom("period"): self.period,
            Atom("auto_shutdown"): Atom(self.auto_shutdown),
            Atom("restarts"): len(self.__restarts),
            Atom("children"): [child.row() for child in self.__tree.values()],
        }

    def _status_extra(self) -> list[Any]:
        # Where supervisor:get_callback_module/1 looks for it.
        callback = list(b"Callback"), system.module_of(type(self))
        return [(Atom("supervisor"), [callback])]

    async def _ask(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        """Runs `operation` between two messages, on the supervisor's own task."""
        if asyncio.current_task() is self._tumen_task:
            return await operation()
        job = _Job(operation, self._home.loop.create_future())
        # Raises ProcessExited when there is no supervisor any more.
        self.send(self.pid, (_JOB, self.__tag))
        self.__jobs.append(job)
        return await job.done

    # -- life

    async def _begin(self, args: tuple[Any, ...]) -> Any:
        self.trap_exit = True
        self.__tag = self._home.core.make_ref()
        self._check_options()
        try:
            stop = await self._begin_children(await self._tumen_run(self.init, *args))
        except Exception:
            await self._end_all(list(self.__tree.values()))
            raise
        if stop is not None:
            await self._end_all(list(self.__tree.values()))
        return stop

    async def _begin_children(self, specs: Any) -> Stop | None:
        if isinstance(specs, Stop):
            return specs
        children = [_Child(spec) for spec in specs]
        for child in children:
            if child.key in self.__tree:
                raise ValueError(f"two children with the id {child.spec.id!r}")
            self._check_significant(child.spec)
            self.__tree[child.key] = child
        failed = await self._start_all(children)
        if failed is None:
            return None
        child, reason = failed
        return Stop((SHUTDOWN, (Atom("failed_to_start_child"), child.spec.id, reason)))

    def _check_options(self) -> None:
        if self.strategy not in get_args(Strategy):
            raise ValueError(f"strategy must be one of {get_args(Strategy)}: {self.strategy!r}")
        if self.auto_shutdown not in get_args(AutoShutdown):
            allowed = get_args(AutoShutdown)
            raise ValueError(f"auto_shutdown must be one of {allowed}: {self.auto_shutdown!r}")
        if type(self.intensity) is not int or self.intensity < 0:
            raise ValueError(f"intensity must be a count of restarts: {self.intensity!r}")
        if not _is_seconds(self.period) or self.period == 0:
            raise ValueError(f"period must be seconds above 0: {self.period!r}")

    def _check_significant(self, spec: ChildSpec) -> None:
        if spec.significant and self.auto_shutdown == "never":
            raise ValueError(f"child {spec.id!r} is significant, and auto_shutdown is never")

    async def _terminate(self, reason: Any) -> None:
        if self.alive:
            await self._end_all(list(self.__tree.values()))
        await super()._terminate(reason)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        super()._task_done(task)
        for job in self.__jobs:
            job.fail(ProcessExited(f"{self!r} has ended", reason=self.exit_reason))
        self.__jobs.clear()

    # -- messages

    async def handle_call(self, request: Any, caller: Caller) -> Any:
        match request:
            case Atom("which_children"):
                return self.which_children()
            case Atom("count_children"):
                return self._counts()
            case (Atom("which_child"), child_id):
                child = self.__tree.get(encode(child_id))
                return (ERROR, _NOT_FOUND) if child is None else (OK, child.row())
            case (Atom("get_childspec"), child_id):
                child = self.__tree.get(encode(child_id))
                return (ERROR, _NOT_FOUND) if child is None else (OK, child.shown())
            case (Atom("start_child"), spec):
                return await self._start_of_peer(spec, caller)
            case (Atom("restart_child"), child_id):
                return await self._restart_known(encode(child_id))
            case (Atom("terminate_child"), child_id):
                return await self._terminate_known(encode(child_id))
            case (Atom("delete_child"), child_id):
                return await self._delete_known(encode(child_id))
        # A BEAM's supervisor would crash, with all its children.
        _log.error("%r got an unexpected call from %r: %r", self, caller.pid, request)
        return (ERROR, (Atom("bad_call"), request))

    async def handle_cast(self, request: Any) -> Any:
        match request:
            case (Atom("try_again_restart"), Reference() as tag, bytes(key)) if tag == self.__tag:
                child = self.__tree.get(key)
                if child is not None and child.restarting:
                    return await self._restart(child)
                return None
        return await self.handle_info(request)

    async def handle_info(self, message: Any) -> Any:
        match message:
            case (Atom("EXIT"), Pid() as pid, reason):
                child = self.__by_pid.get(pid)
                if child is None or child.process is None or self._lives(child.process):
                    # Of a process that is no child, or not any more; or it is not true.
                    return None
                del self.__by_pid[pid]
                return await self._child_ended(child, reason)
            case (Atom("$tumen_job"), Reference() as tag) if tag == self.__tag:
                return await self._run_job()
        _log.error("%r got an unexpected message: %r", self, message)
        return None

    def _lives(self, process: Process) -> bool:
        # `alive` alone may lag behind: its end can be on its way to us.
        return process.alive and self._home.core.alive(process._key)

    async def _run_job(self) -> None:
        job = self.__jobs.popleft() if self.__jobs else None
        if job is None or job.done.done():
            return
        try:
            job.succeed(await job.operation())
        except Exception as error:
            job.fail(error)
        except BaseException:
            job.fail(ProcessExited(f"{self!r} has ended", reason=SHUTDOWN))
            raise

    # -- what is asked of it: the replies are Erlang's

    def _counts(self) -> list[tuple[Atom, int]]:
        children = list(self.__tree.values())
        supervisors = sum(child.spec.type == "supervisor" for child in children)
        active = sum(child.process is not None and child.process.alive for child in children)
        return [
            (Atom("specs"), len(children)),
            (Atom("active"), active),
            (Atom("supervisors"), supervisors),
            (Atom("workers"), len(children) - supervisors),
        ]

    async def _start_new(self, child: _Child) -> Any:
        present = self.__tree.get(child.key)
        if present is not None:
            if present.process is not None:
                return (ERROR, (_ALREADY_STARTED, present.process.pid))
            return (ERROR, _ALREADY_PRESENT)
        self._check_significant(child.spec)
        failed = await self._start_one(child)
        if failed is not None:
            return (ERROR, failed)
        child.unrepeatable = child.spec.restart == "temporary"
        self.__tree[child.key] = child
        return self._running(child)

    def _not_running(self, key: bytes) -> tuple[_Child | None, Any]:
        """The child of that id if it is not running; else why it is none."""
        child = self.__tree.get(key)
        if child is None:
            return None, (ERROR, _NOT_FOUND)
        if child.restarting:
            return None, (ERROR, _RESTARTING)
        if child.process is not None:
            return None, (ERROR, _RUNNING)
        return child, None

    async def _restart_known(self, key: bytes) -> Any:
        child, refusal = self._not_running(key)
        if child is None:
            return refusal
        failed = await self._start_one(child)
        return self._running(child) if failed is None else (ERROR, failed)

    def _running(self, child: _Child) -> Any:
        return (OK, child.pid)

    async def _terminate_known(self, key: bytes) -> Any:
        child = self.__tree.get(key)
        if child is None:
            return (ERROR, _NOT_FOUND)
        await self._end_child(child)
        self._drop(child)
        return OK

    async def _delete_known(self, key: bytes) -> Any:
        child, refusal = self._not_running(key)
        if child is None:
            return refusal
        del self.__tree[key]
        return OK

    async def _start_of_peer(self, spec: Any, caller: Caller) -> Any:
        """`supervisor:start_child` of another node: only what `App.expose_server` allows."""
        try:
            wanted = _Wanted(spec, self.auto_shutdown)
        except _BadSpec as bad:
            return (ERROR, bad.reason)
        module, function, args = wanted.mfa
        kind = self._home.exposures.find_server(module, function)
        if kind is None:
            _log.info(
                "%s: server %s:%s/%d is not exposed", caller.pid.node, module, function, len(args)
            )
            child = wanted.child(Supervisor)
            undef: Any = (Atom("EXIT"), (Atom("undef"), [(module, function, args, [])]))
            return (ERROR, (undef, child.record()))
        child = wanted.child(kind)
        reply = await self._start_new(child)
        match reply:
            case (Atom("error"), (Atom("already_started"), _)) | (
                Atom("error"),
                Atom("already_present"),
            ):
                return reply
            case (Atom("error"), reason):
                return (ERROR, (reason, child.record()))
        return reply

    # -- starting and ending

    async def _start_all(self, children: list[_Child]) -> tuple[_Child, Any] | None:
        """Starts them in order, up to the first that fails: that one, and why."""
        for child in children:
            reason = await self._start_one(child)
            if reason is not None:
                return child, reason
        return None

    async def _start_one(self, child: _Child) -> Any:
        """None when it runs, else why it does not."""
        spec, home = child.spec, self._home
        start: Any = spec.start
        process: Process
        try:
            if isinstance(start, type):
                process = await home.start_child(start, tuple(spec.args), spec.name, self)
            else:
                process = home.start_process(start, tuple(spec.args), spec.name)
                self.link(process.pid)
        except ServerDied as error:
            return self._not_started(child, error.reason)
        except NameClash:
            key = home.core.whereis(spec.name)  # type: ignore[arg-type]
            other = home.core.pid(key) if key else UNDEFINED
            return self._not_started(child, (_ALREADY_STARTED, other))
        except Exception as error:
            _log.error("%r: child %r does not start", self, spec.id, exc_info=error)
            return self._not_started(child, crash_reason(error, "start", len(spec.args)))
        child.process = process
        child.restarting = False
        self.__by_pid[process.pid] = child
        _log.debug("%r: child %r is %r", self, spec.id, process.pid)
        return None

    def _not_started(self, child: _Child, reason: Any) -> Any:
        _log.error("%r: child %r does not start: %r", self, child.spec.id, reason)
        return reason

    async def _end_all(self, children: list[_Child]) -> None:
        """Ends them, the last started first. Temporary ones are forgotten."""
        for child in reversed(children):
            await self._end_child(child)
            self._drop(child)

    def _drop(self, child: _Child) -> None:
        """It is not running: a temporary one is forgotten, of others the spec stays."""
        child.process = None
        child.restarting = False
        if child.spec.restart == "temporary":
            self.__tree.pop(child.key, None)

    async def _end_child(self, child: _Child) -> None:
        """Ends a child if it is running, by force when it takes too long."""
        process, spec = child.process, child.spec
        if process is None:
            return
        self.__by_pid.pop(process.pid, None)
        kill = spec.shutdown == "brutal_kill"
        seconds = None if isinstance(spec.shutdown, str) else spec.shutdown
        ended = self._home.core.monitor_begin(self, process.pid)
        future = asyncio.ensure_future(ended)
        try:
            if kill:
                self.exit(process.pid, _KILL)
            else:
                self._tell_to_end(process)
                done, _ = await asyncio.wait({future}, timeout=seconds)
                if not done:
                    _log.error("%r: child %r did not end in time", self, spec.id)
                    self.exit(process.pid, _KILL)
            await asyncio.wait({future})
            reason = ended.value if ended.outcome == OUTCOME_DOWN else NOPROC
        finally:
            ended.close()
        if reason == NOPROC:
            # It had ended before, and we have not looked at its exit signal yet.
            reason = process.exit_reason
        self.unlink(process.pid)
        if not _ended_well(reason, spec, KILLED if kill else SHUTDOWN):
            _log.error("%r: child %r ended with %r", self, spec.id, reason)

    def _tell_to_end(self, process: Process) -> None:
        if not isinstance(process, GenServer) or process.trap_exit or process._tumen_task is None:
            self.exit(process.pid, SHUTDOWN)
            return
        # The signal alone would kill it: `terminate` would not run. And one that ends by itself
        # just now is left to it.
        if not process._tumen_terminating:
            process._tumen_unhurried = True
            process._tumen_task.cancel()

    # -- restarts

    async def _child_ended(self, child: _Child, reason: Any) -> Stop | None:
        """A child ended by itself."""
        spec = child.spec
        well = _is_expected(reason)
        if spec.restart == "permanent" or (spec.restart == "transient" and not well):
            _log.warning("%r: child %r ended, and is restarted: %r", self, spec.id, reason)
            return await self._restart(child)
        if not well:
            _log.warning("%r: child %r ended: %r", self, spec.id, reason)
        self._drop(child)
        if self.auto_shutdown == "never" or not spec.significant:
            return None
        if self.auto_shutdown == "all_significant" and any(
            other.spec.significant and other.pid != UNDEFINED for other in self.__tree.values()
        ):
            return None
        return Stop(SHUTDOWN)

    async def _restart(self, child: _Child) -> Stop | None:
        """Restarts it and those that its end concerns, or ends the supervisor."""
        if not self._may_restart():
            _log.error(
                "%r ends: more than %d restarts in %s s, the last of child %r",
                self,
                self.intensity,
                self.period,
                child.spec.id,
            )
            self._drop(child)
            return Stop(SHUTDOWN)
        child.process = None
        concerned = [child]
        if self.strategy != "one_for_one":
            concerned = list(self.__tree.values())
            if self.strategy == "rest_for_one":
                concerned = concerned[concerned.index(child) :]
            await self._end_all(concerned)
            concerned = [one for one in concerned if one.key in self.__tree]
        failed = await self._start_all(concerned)
        if failed is not None:
            again = failed[0]
            again.restarting = True
            self.cast(self.pid, (_TRY_AGAIN, self.__tag, again.key))
        return None

    def _may_restart(self) -> bool:
        """Counts a restart, unless that is one too many."""
        now = self._home.loop.time()
        while self.__restarts and self.__restarts[0] < now - self.period:
            self.__restarts.popleft()
        if len(self.__restarts) >= self.intensity:
            return False
        self.__restarts.append(now)
        return True


class _Job:
    """What a coroutine of this node waits for."""

    __slots__ = ("done", "operation")

    def __init__(self, operation: Callable[[], Awaitable[Any]], done: asyncio.Future[Any]) -> None:
        self.operation = operation
        self.done = done

    def succeed(self, value: Any) -> None:
        if not self.done.done():
            self.done.set_result(value)

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


def _key(child_id: Any) -> bytes:
    return encode(Atom(child_id) if isinstance(child_id, str) else child_id)


def _started(child_id: Any, reply: Any) -> Pid:
    match reply:
        case (Atom("ok"), Pid() as pid):
            return pid
        case (Atom("error"), reason) if not _is_refusal(reason):
            raise ServerDied(
                f"child {child_id!r} did not start: {reason!r}",
                reason=reason,
                may_have_executed=False,
            )
    raise _refused(child_id, reply)


def _done(child_id: Any, reply: Any) -> None:
    if reply != OK:
        raise _refused(child_id, reply)


def _is_refusal(reason: Any) -> bool:
    return reason in (_NOT_FOUND, _RUNNING, _RESTARTING, _ALREADY_PRESENT) or (
        isinstance(reason, tuple) and reason[:1] == (_ALREADY_STARTED,)
    )


def _refused(child_id: Any, reply: Any) -> ChildError:
    return ChildError(f"child {child_id!r}: {reply[1]!r}", reason=reply[1])


def _is_expected(reason: Any) -> bool:
    """Whether a transient child that ends so is left alone."""
    return reason in (NORMAL, SHUTDOWN) or _is_shutdown(reason)


def _is_shutdown(reason: Any) -> bool:
    return isinstance(reason, tuple) and len(reason) == 2 and reason[0] == SHUTDOWN


def _ended_well(reason: Any, spec: ChildSpec, wanted: Atom) -> bool:
    """Whether a child that was told to end has ended as it should."""
    return bool(reason == wanted) or (spec.restart != "permanent" and _is_expected(reason))


# -- specs of other nodes -------------------------------------------------------------------------


# A spec as a tuple, the older form.
_TUPLE_FIELDS: Final = tuple(
    Atom(name) for name in ("id", "start", "restart", "shutdown", "type", "modules")
)
# Largest timeout of a BEAM, milliseconds: a child cannot be given longer there.
_SHUTDOWN_MS_MAX: Final = 2**32 - 1


class _BadSpec(Exception):
    """A child spec of a peer is wrong; `reason` as OTP says it."""

    def __init__(self, reason: Any) -> None:
        super().__init__(reason)
        self.reason = reason


class _Wanted:
    """A child spec of a peer, a map or a tuple, checked in OTP's order."""

    def __init__(self, spec: Any, auto_shutdown: AutoShutdown) -> None:
        fields = _fields(spec)
        if Atom("id") not in fields:
            raise _BadSpec(Atom("missing_id"))
        if Atom("start") not in fields:
            raise _BadSpec(Atom("missing_start"))
        self.id = fields[Atom("id")]
        match fields[Atom("start")]:
            case (Atom() as module, Atom() as function, list() as args):
                self.mfa = module, function, args
            case other:
                raise _BadSpec((Atom("invalid_mfa"), other))
        self.restart = _one_of(fields, "restart", "permanent", "restart_type", get_args(Restart))
        self.significant = fields.get(Atom("significant"), False)
        self._check_significant(auto_shutdown)
        self.type = _one_of(fields, "type", "worker", "child_type", get_args(Kind))
        self.shutdown = _shutdown(fields.get(Atom("shutdown")))
        self.modules = fields.get(Atom("modules"), [self.mfa[0]])
        if not isinstance(self.modules, list) and self.modules != Atom("dynamic"):
            raise _BadSpec((Atom("invalid_modules"), self.modules))
        for module in self.modules if isinstance(self.modules, list) else ():
            if not isinstance(module, Atom):
                raise _BadSpec((Atom("invalid_module"), module))

    def _check_significant(self, auto_shutdown: AutoShutdown) -> None:
        pair = None
        if self.significant is True and auto_shutdown == "never":
            pair = (Atom("auto_shutdown"), Atom("never"))
        elif self.significant is True and self.restart == "permanent":
            pair = (Atom("restart"), Atom("permanent"))
        if pair is not None:
            raise _BadSpec((Atom("bad_combination"), [pair, (Atom("significant"), True)]))
        if not isinstance(self.significant, bool):
            raise _BadSpec((Atom("invalid_significant"), self.significant))

    def child(self, kind: type[GenServer]) -> _Child:
        module, function, args = self.mfa
        spec = ChildSpec(
            self.id,
            kind,
            args,
            self.restart,  # type: ignore[arg-type]
            self.shutdown,
            self.type,  # type: ignore[arg-type]
            significant=self.significant,
        )
        child = _Child(spec)
        child.module, child.function, child.modules = module, function, self.modules
        return child


def _fields(spec: Any) -> Any:
    if isinstance(spec, dict | TermMap):
        return spec
    if isinstance(spec, tuple) and len(spec) == len(_TUPLE_FIELDS):
        return dict(zip(_TUPLE_FIELDS, spec, strict=True))
    raise _BadSpec((Atom("invalid_child_spec"), spec))


def _one_of(fields: Any, name: str, default: str, what: str, allowed: tuple[str, ...]) -> str:
    value = fields.get(Atom(name), Atom(default))
    if not isinstance(value, Atom) or str(value) not in allowed:
        raise _BadSpec((Atom(f"invalid_{what}"), value))
    return str(value)


def _shutdown(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, Atom) and str(value) in get_args(Shutdown):
        return str(value)
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if is_integer and 0 <= value <= _SHUTDOWN_MS_MAX:
        return value / 1000
    raise _BadSpec((Atom("invalid_shutdown"), value))
