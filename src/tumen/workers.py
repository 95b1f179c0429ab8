"""What peers may run here, exposed functions only: by erpc, or spawned as they are.

Each execution is a process of the node. One for erpc has no mailbox, and its exit reason is the
result, as erpc wants it; a spawned one ends as its function does on a BEAM.
"""

# ruff: noqa: SLF001 - it runs processes through what their users are not to see

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from typing import TYPE_CHECKING, Any, Final

from ._term import Atom, Export, Pid, Reference
from .errors import Exit
from .reasons import NORMAL, SHUTDOWN, remote_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._core import LoopNode
    from .app import Exposed, Exposures
    from .pool import Job, Pool
    from .process import Process

__all__ = ["CurrentCall", "Workers", "current_call"]

_log = logging.getLogger("tumen")

_RETURN: Final = Atom("return")
_EXIT: Final = Atom("exit")
_ERROR: Final = Atom("error")
_ERPC: Final = Atom("erpc")
_UNDEF: Final = Atom("undef")
_BADARG: Final = Atom("badarg")
_BADARITY: Final = Atom("badarity")
_EXCEPTION: Final = Atom("exception")
_SYSTEM_LIMIT: Final = Atom("system_limit")
_PYTHON_ATOMS: Final = {"true": True, "false": False, "nil": None}
_APPLY: Final = (Atom("erlang"), Atom("apply"))
# In the stack entry of what erlang:apply/3 refuses.
_APPLY_INFO: Final = [(Atom("error_info"), {Atom("module"): Atom("erl_erts_errors")})]

# Calls that do not end when they are cancelled are left alone after this, seconds.
_STOP_WAIT_S: Final = 5.0

_current: contextvars.ContextVar[CurrentCall] = contextvars.ContextVar("tumen_current_call")


class CurrentCall:
    """The call that an exposed function is answering."""

    __slots__ = (
        "caller",
        "ended",
        "function",
        "job",
        "key",
        "module",
        "process",
        "result",
        "spawned",
        "task",
    )

    def __init__(
        self,
        key: int,
        caller: Pid,
        module: Atom,
        function: Atom,
        result: Any,
        *,
        spawned: bool = False,
    ) -> None:
        self.key = key
        self.caller = caller
        self.module = module
        self.function = function
        # The caller's reference for the result; None for a cast, and where it was spawned.
        self.result: Reference | None = result
        # By spawn and its like: nobody waits for a result.
        self.spawned = spawned
        # The process that it is, with a mailbox: of an ``async def`` that was spawned.
        self.process: Process | None = None
        self.task: asyncio.Task[None] | None = None
        self.job: Job | None = None
        # The process is dead, or its caller has gone: no result reaches anybody.
        self.ended = False

    @property
    def abandoned(self) -> bool:
        """True once nobody waits for the result any more: a long job may stop. A spawned one is
        abandoned only when its process is dead."""
        return self.ended or (self.process is not None and not self.process.alive)

    def __repr__(self) -> str:
        return f"<CurrentCall {self.module}:{self.function} from {self.caller!r}>"


def current_call() -> CurrentCall | None:
    """The call that is being answered, inside an exposed function; else None."""
    return _current.get(None)


def _is_atom(term: Any) -> bool:
    # The atoms `true`, `false` and `nil` are Python's own.
    return type(term) is Atom or term is None or term is True or term is False


def _atom(text: str) -> Any:
    return _PYTHON_ATOMS[text] if text in _PYTHON_ATOMS else Atom(text)


def _applied(module: Any, function: Any, values: list[Any]) -> tuple[Any, Any, Any, Any] | None:
    """What erlang:apply is asked to run, and the stack entry that it leaves; None for others.

    So spawn(Node, fun m:f/0) and erpc:call(Node, fun m:f/0) ask too.
    """
    if (module, function) != _APPLY:
        return None
    match values:
        case [name, what, list() as args] if _is_atom(name) and _is_atom(what):
            return name, what, args, [(*_APPLY, 3, [])]
        case [Export() as fun, list() as args] if fun.arity == len(args):
            return _atom(fun.module), _atom(fun.function), args, [(*_APPLY, 2, [])]
    return None


class Workers:
    """Runs what peers ask for, and only what is exposed."""

    def __init__(
        self,
        core: LoopNode,
        exposures: Exposures,
        pool: Pool,
        adopt: Callable[[int], Process],
    ) -> None:
        self._core = core
        self._exposures = exposures
        self._pool = pool
        self._adopt = adopt
        self._calls: dict[int, CurrentCall] = {}

    # -- from the drain

    def request(self, key: int, caller: Pid, asked: str, name: str, args: Any) -> None:
        """A SPAWN_REQUEST for ``asked:name`` was accepted: the process `key` was made for it."""
        match asked, name, args:
            case "erpc", "execute_call", [Reference() as result, module, function, values]:
                call = CurrentCall(key, caller, module, function, result)
            case "erpc", "execute_cast", [module, function, values]:
                call = CurrentCall(key, caller, module, function, None)
            case "erpc", _, _:
                self._core.exit(key, _BADARG)
                return
            case _:
                module, function, values = Atom(asked), Atom(name), args
                call = CurrentCall(key, caller, module, function, None, spawned=True)
                if not isinstance(values, list):
                    # apply/3 as a BEAM does it.
                    self._exit(call, (_BADARG, [(*_APPLY, [module, function, args], [])]))
                    return
        if not (_is_atom(module) and _is_atom(function) and isinstance(values, list)):
            self._fail(call, _BADARG, [(*_APPLY, [module, function, values], _APPLY_INFO)])
            return
        exposed = self._exposures.find(module, function)
        frames: list[Any] = []
        if exposed is None and (applied := _applied(module, function, values)) is not None:
            module, function, values, frames = applied
            call.module, call.function = module, function
            exposed = self._exposures.find(module, function)
        if exposed is None:
            refused = self._misapplied(module, function, values)
            if refused is None:
                _log.info("%s: %s:%s/%d is not exposed", caller.node, module, function, len(values))
                refused = _UNDEF, [(module, function, values, []), *frames]
            self._fail(call, *refused)
            return
        if exposed.runs == "inline":
            # It ends before anything can be asked about it: nobody looks it up.
            contextvars.copy_context().run(self._run, call, exposed, values)
            return
        self._calls[key] = call
        self._start(call, exposed, values)

    def _misapplied(self, module: Any, function: Any, values: list[Any]) -> tuple[Any, Any] | None:
        """Reason and stack of a BEAM when erlang:apply is to run an exposed function in a way in
        which nothing can be run; None for all else."""
        if (module, function) != _APPLY:
            return None
        match values:
            case [Export() as fun, args] if self._exposures.find(
                _atom(fun.module), _atom(fun.function)
            ):
                if isinstance(args, list):
                    return (_BADARITY, (fun, args)), [(*_APPLY, 2, [])]
                return _BADARG, [(*_APPLY, values, _APPLY_INFO), (*_APPLY, 2, [])]
            case [name, what, _] if (
                _is_atom(name) and _is_atom(what) and self._exposures.find(name, what)
            ):
                return _BADARG, [(*_APPLY, values, _APPLY_INFO)]
        return None

    def abandoned(self, key: int) -> None:
        """The caller has gone: what waits never starts, what runs can see it."""
        call = self._calls.get(key)
        if call is None or call.spawned:
            return
        call.ended = True
        if call.job is not None and self._pool.abandon(call.job):
            self._exit(call, NORMAL)

    def exited(self, key: int) -> None:
        """A signal has ended the process."""
        call = self._calls.pop(key, None)
        if call is None:
            return
        call.ended = True
        if call.task is not None:
            call.task.cancel()
        if call.job is not None:
            self._pool.abandon(call.job)

    @property
    def busy(self) -> bool:
        """Whether something is running that somebody waits for."""
        # A copy: threads of the pool end calls meanwhile.
        return any(not call.ended for call in list(self._calls.values()))

    async def stop(self) -> None:
        """Ends every execution with `shutdown`; a thread that is inside one is not waited for."""
        tasks = []
        for call in list(self._calls.values()):
            if call.task is not None and call.task is not asyncio.current_task():
                call.task.cancel()
                tasks.append(call.task)
            elif call.job is not None:
                self._pool.abandon(call.job)
            self._exit(call, SHUTDOWN)
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=_STOP_WAIT_S)
            for task in left:
                _log.error("an exposed function does not end: %r", task)

    # -- running

    def _start(self, call: CurrentCall, exposed: Exposed, values: list[Any]) -> None:
        if exposed.runs == "loop":
            call.task = self._core.loop.create_task(self._run_async(call, exposed, values))
            if call.spawned:
                call.process = self._adopt(call.key)
                call.process._tumen_task = call.task
                # One that is cancelled before its first step never runs a line.
                call.task.add_done_callback(lambda _: self._ended(call))
        else:
            call.job = self._pool.submit(
                lambda: contextvars.copy_context().run(self._run, call, exposed, values)
            )
            if call.job is None:
                limit = _SYSTEM_LIMIT if call.spawned else (_ERPC, _SYSTEM_LIMIT)
                self._exit(call, self._reason(call, _ERROR, limit))

    async def _run_async(self, call: CurrentCall, exposed: Exposed, values: list[Any]) -> None:
        # The task has a context of its own.
        _current.set(call)
        if call.ended:
            self._exit(call, NORMAL)
            return
        try:
            value = await exposed.call(*values)
        except asyncio.CancelledError:
            self._exit(call, SHUTDOWN)
            raise
        except Exception as error:
            self._raised(call, error, exposed, values)
        else:
            self._returned(call, value)

    def _ended(self, call: CurrentCall) -> None:
        if call.key in self._calls:
            self._exit(call, SHUTDOWN)

    def _run(self, call: CurrentCall, exposed: Exposed, values: list[Any]) -> None:
        """On the loop's thread, or on one of the pool's."""
        _current.set(call)
        try:
            value = exposed.call(*values)
        except Exception as error:
            self._raised(call, error, exposed, values)
        except BaseException as error:
            self._raised(call, error, exposed, values)
            raise
        else:
            self._returned(call, value)

    # -- results: from any thread

    def _returned(self, call: CurrentCall, value: Any) -> None:
        if call.result is None:
            self._exit(call, NORMAL)
        else:
            self._exit(call, (call.result, _RETURN, value))

    def _raised(
        self, call: CurrentCall, error: BaseException, exposed: Exposed, values: list[Any]
    ) -> None:
        if isinstance(error, Exit):
            self._exit(call, self._reason(call, _EXIT, error.reason))
            return
        if call.spawned and isinstance(error, TypeError) and not _takes(exposed, values):
            # A BEAM has no function of that arity either.
            self._fail(call, _UNDEF, [(call.module, call.function, values, [])])
            return
        arity = len(values)
        level = logging.ERROR if call.spawned else logging.INFO
        _log.log(level, "%s:%s/%d raised", call.module, call.function, arity, exc_info=error)
        self._fail(call, *remote_error(error, call.module, call.function, arity))

    def _fail(self, call: CurrentCall, reason: Any, stack: Any) -> None:
        if call.spawned:
            # As error/1 ends a process.
            self._exit(call, (reason, stack))
        elif call.result is None:
            # As erpc:execute_cast ends: a link or a monitor sees it.
            self._exit(call, ((_EXCEPTION, (reason, stack)), []))
        else:
            self._exit(call, (call.result, _ERROR, reason, stack))

    def _reason(self, call: CurrentCall, kind: Atom, value: Any) -> Any:
        return value if call.result is None else (call.result, kind, value)

    def _exit(self, call: CurrentCall, reason: Any) -> None:
        self._calls.pop(call.key, None)
        call.ended = True
        try:
            self._settle(call, reason)
        except Exception as error:
            # The result is no term, or larger than a message may be.
            _log.exception("%s:%s: the result cannot be sent", call.module, call.function)
            shown = remote_error(error, call.module, call.function, 0)
            self._settle(call, NORMAL if call.result is None else (call.result, _ERROR, *shown))

    def _settle(self, call: CurrentCall, reason: Any) -> None:
        if self._core.closed:
            return
        if call.process is not None:
            call.process._finish(reason)
        else:
            self._core.exit(call.key, reason)


def _takes(exposed: Exposed, values: list[Any]) -> bool:
    """Whether a function can be called with so many arguments."""
    try:
        inspect.signature(exposed.call).bind(*values)
    except TypeError:
        return False
    except ValueError:
        return True  # one of C's that does not say
    return True
