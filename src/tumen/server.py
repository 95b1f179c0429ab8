"""`GenServer`: gen_server's life and protocol around handlers written in Python."""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import TYPE_CHECKING, Any, Final, TypeVar

from . import system
from ._core import Caller, is_from
from ._term import Atom, Pid
from .calls import send_wait
from .errors import Busy, EncodeError, Exit, LimitExceeded, ServerDied
from .process import Process
from .reasons import NORMAL, SHUTDOWN, exit_reason

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Caller", "GenServer", "NoReply", "Stop", "blocking", "is_from"]

_log = logging.getLogger("tumen")

HandlerT = TypeVar("HandlerT", bound="Callable[..., Any]")

_GEN_CALL: Final = Atom("$gen_call")
_GEN_CAST: Final = Atom("$gen_cast")
_SYSTEM: Final = Atom("system")
_EXIT: Final = Atom("EXIT")


# Calls looked at for the newest while callers give up faster than they are served. They count as
# taken from the mailbox, so there are few; and enough that what is taken has time left: so many
# calls come while the next ones are handled.
_NEWEST_OF_COUNT: Final = 64
# Calls of callers that have given up are passed over so many at a time.
_DROPPED_COUNT: Final = 1000
# Without a turn of the loop no mail comes in: seconds until the loop gets one.
_TURN_S: Final = 0.001


class NoReply:
    """Returned by `handle_call`: the reply will come later, by ``caller.reply``."""


# A `BatchServer` has answered the call, and others: nothing is left to be done for it.
ANSWERED: Final = NoReply()


class Stop:
    """Returned by a handler: the server stops with `reason`; a call is answered first."""

    __slots__ = ("has_reply", "reason", "reply")

    def __init__(self, reason: Any = NORMAL, *, reply: Any = NoReply) -> None:
        self.reason = reason
        self.reply = reply
        self.has_reply = reply is not NoReply

    def __repr__(self) -> str:
        return f"Stop({self.reason!r})"


# Results of a handler that are no reply.
_NO_VALUE: Final = (NoReply, Stop)


def blocking(handler: HandlerT) -> HandlerT:
    """Marks a plain ``def`` handler of a `GenServer` that blocks: it runs in the node's pool of
    threads. The server still handles one message at a time."""
    handler.__dict__["tumen_blocking"] = True
    return handler


def is_blocking(handler: Any) -> bool:
    """Whether `blocking` has marked it. Asked of the function: what a bound method lacks costs an
    AttributeError each time."""
    return getattr(getattr(handler, "__func__", handler), "tumen_blocking", False)


class GenServer(Process):
    """A server: subclass it, and write the handlers that are needed.

    Handlers are ``async def``, or plain ``def`` that does not block, or plain ``def`` marked
    `blocking`. One runs at a time; messages keep their order. An exception in a handler ends the
    server as it does on a BEAM: its callers see that reason. The methods of `Process` are the
    server's own.

    System messages (`sys:get_state`, `sys:suspend`, `gen_server:stop` …) are answered as a
    gen_server of OTP answers them; see `format_state`. While it is suspended, a server handles
    nothing else.

    Attributes may have any name but those that begin with ``_tumen_``, and those of the private
    methods here and above, which are refused: TypeError when the class is made, or when it starts.
    """

    # Names that no subclass takes.
    __methods: frozenset[str] = frozenset()
    # The supervisor that has started it, and its name then; what `sys` has turned on.
    _tumen_parent: GenServer | None = None
    _tumen_name: Atom | None = None
    _tumen_suspended = False
    _tumen_debug: system.Debug | None = None
    # Its supervisor ends it, and sees to it that it does not take too long.
    _tumen_unhurried = False
    # Callers whose handler returned NoReply.
    _tumen_owed: weakref.WeakSet[Caller] | None = None
    # `terminate` runs, or has run.
    _tumen_terminating = False
    # A handler is being awaited: it may wait for mail itself.
    _tumen_handling = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__methods = _methods_of_ours(cls)
        for base in cls.__mro__:
            for name in () if _is_ours(base) else vars(base):
                if name.startswith("_tumen_") or name in cls.__methods:
                    raise _reserved(cls, name)

    # -- to be overridden

    async def init(self, *args: Any) -> Any:
        """Runs first. An exception, or a `Stop`, makes the start fail."""

    async def handle_call(self, request: Any, caller: Caller) -> Any:
        """The reply to a call; or `NoReply`, and ``caller.reply(…)`` later; or `Stop`."""
        raise Exit((Atom("bad_call"), request))

    async def handle_cast(self, request: Any) -> Any:
        """A cast. The result is ignored, unless it is a `Stop`."""
        raise Exit((Atom("bad_cast"), request))

    async def handle_info(self, message: Any) -> Any:
        """Any other message. The result is ignored, unless it is a `Stop`."""
        _log.warning("%r got an unexpected message: %r", self, message)

    async def terminate(self, reason: Any) -> None:
        """Runs last, unless a signal has killed the server: the node stops, a handler returned
        `Stop` or raised, its supervisor or `gen_server:stop` has ended it.

        Has `Limits.shutdown_time_ms` when the node stops, and what its child spec says when its
        supervisor ends it.
        """

    def format_state(self) -> Any:
        """What `sys:get_state` and `sys:get_status` of a BEAM show: a term.

        By default a map of the public attributes; for objects that have no term their `repr`. To
        be overridden, by a plain ``def`` that is quick, for another view or to keep secrets: every
        node of the cluster may ask.
        """
        return system.attributes(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid!r}>"

    # -- life: called by the node

    async def _serve(self, args: tuple[Any, ...], started: asyncio.Future[None]) -> None:
        """What the task of this server runs."""
        reason: Any
        try:
            if not await self.__init(args, started):
                return
            reason = await self.__loop()
        except asyncio.CancelledError:
            await self._shut_down()
            raise
        await self._terminate(reason)
        self._end(reason)

    async def __init(self, args: tuple[Any, ...], started: asyncio.Future[None]) -> bool:
        try:
            # What __init__ has set, and then what init has.
            self.__check_names()
            result = await self._begin(args)
            self.__check_names()
        except Exception as error:
            self._start_failed(started, exit_reason(error, "init", 1), error)
            return False
        if isinstance(result, Stop):
            self._start_failed(started, result.reason, None)
            return False
        if not started.done():
            started.set_result(None)
        return True

    def __check_names(self) -> None:
        for name in vars(self):
            if name in self.__methods:
                raise _reserved(type(self), name)
        if not hasattr(self._home, "begin_server"):
            raise _reserved(type(self), "_home")

    async def _begin(self, args: tuple[Any, ...]) -> Any:
        return await self._tumen_run(self.init, *args)

    def _start_failed(
        self, started: asyncio.Future[None], reason: Any, cause: Exception | None
    ) -> None:
        self._end(reason)
        if not started.done():
            error = ServerDied(
                f"{type(self).__name__} did not start: {reason!r}",
                reason=reason,
                may_have_executed=False,
            )
            error.__cause__ = cause
            started.set_exception(error)

    async def __loop(self) -> Any:
        """Handles messages until one ends the server; the reason."""
        function, arity = "handle_info", 1
        try:
            async for message in self:
                kind = message[0] if type(message) is tuple and message else None
                debug = self._tumen_debug
                caller = None
                if kind == _GEN_CALL and len(message) == 3 and is_from(message[1]):
                    function, arity = "handle_call", 2
                    if debug is not None:
                        debug.received(self, message)
                    origin = message[1]
                    caller = Caller(self, origin[0], origin[1], origin is self._passed_on)
                    result = self._begin_call(message[2], caller)
                elif kind == _GEN_CAST and len(message) == 2:
                    function, arity = "handle_cast", 1
                    if debug is not None:
                        debug.received(self, message)
                    result = self._invoke(self.handle_cast, message[1])
                elif kind in (_SYSTEM, _EXIT) and self._is_of_system(message):
                    function, arity = "handle_system_msg", 1
                    ended = await self._system(message)
                    while ended is None and self._tumen_suspended:
                        ended = await self._system(await self.receive(self._is_of_system))
                    if ended is not None:
                        return ended[0]
                    continue
                else:
                    function, arity = "handle_info", 1
                    if debug is not None:
                        debug.received(self, message)
                    result = self._info(message)
                if hasattr(result, "__await__"):
                    self._tumen_handling = True
                    result = await result
                    self._tumen_handling = False
                if caller is None or not self._reply_now(caller, result):
                    if caller is not None:
                        await self._reply(caller, result)
                    if isinstance(result, Stop):
                        return result.reason
                if debug is not None and result is not ANSWERED:
                    replied = caller is not None and not is_no_reply(result)
                    debug.handled(self, message, result, replied=replied)
        except Exception as error:
            if self.alive and not isinstance(error, Exit):
                _log.error("%r crashed in %s/%d", self, function, arity, exc_info=error)
            return exit_reason(error, function, arity)
        return NORMAL

    def _info(self, message: Any) -> Any:
        """Handles what is of no other kind."""
        return self._invoke(self.handle_info, message)

    def _begin_call(self, request: Any, caller: Caller) -> Any:
        """Runs `handle_call`, unless the caller has given up while the request waited."""
        if caller.abandoned:
            self._not_begun(caller)
            return self._newest_first()
        return self._handle_call(request, caller)

    async def _newest_first(self) -> Any:
        """Serves the calls that wait, the newest first, until none does; NoReply, or a Stop.

        A caller has given up while its call waited: calls come faster than they can be handled.
        In the order of their arrival each would begin just before its caller gives up too, and all
        the work would be for nobody. No call overtakes another message, nor one of the same
        process: between different callers there is no order to be kept.
        """
        waiting: dict[Pid, tuple[Caller, object]] = {}
        turn = self._home.loop.time()
        while True:
            self._gather_calls(waiting)
            if not waiting:
                return NoReply
            caller, mail = waiting.popitem()[1]
            message = self._open(mail)
            if self._tumen_debug is not None:
                self._tumen_debug.received(self, message)
            result = self._handle_call(message[2], caller)
            if hasattr(result, "__await__"):
                result = await result
            await self._reply(caller, result)
            if isinstance(result, Stop):
                return Stop(result.reason)
            if self._tumen_debug is not None:
                self._tumen_debug.handled(self, message, result, replied=not is_no_reply(result))
            if self._home.loop.time() - turn > _TURN_S:
                await asyncio.sleep(0)
                turn = self._home.loop.time()

    def _gather_calls(self, waiting: dict[Pid, tuple[Caller, object]]) -> None:
        """Takes the calls at the head of the mailbox, up to the first message of another kind, and
        drops those whose callers have given up: the oldest first, so that the newest of what
        waits here is always so many calls away from that. What a process has passed on stays in
        the order in which that process has sent it."""
        self._check()
        dropped = 0
        while True:
            while waiting and (oldest := next(iter(waiting.values())))[0].abandoned:
                self._not_begun(oldest[0])
                del waiting[oldest[0].pid]
                dropped += 1
            if len(waiting) >= _NEWEST_OF_COUNT or not self._waiting():
                return
            if dropped >= _DROPPED_COUNT:
                return  # the loop gets its turn between two calls
            found, passed_on = self._peek()
            if passed_on or type(found) is not tuple or len(found) != 3 or found[0] != _GEN_CALL:
                return
            if not is_from(found[1]) or found[1][0] in waiting:
                return
            waiting[found[1][0]] = (Caller(self, *found[1]), self._take_sealed())

    def _handle_call(self, request: Any, caller: Caller) -> Any:
        handler = self.handle_call
        if is_blocking(handler):
            return self._home.in_pool(self._blocking_call, (handler, request, caller))
        return handler(request, caller)

    def _blocking_call(self, handler: Callable[..., Any], request: Any, caller: Caller) -> Any:
        # It may have waited for a thread of the pool too.
        return self._not_begun(caller) if caller.abandoned else handler(request, caller)

    @property
    def _busy(self) -> bool:
        """Whether something is being handled, or waits for it, or a reply is owed to a caller."""
        if self._waiting() or self._tumen_handling or not self._asleep:
            return True
        return any(not caller.replied and not caller.abandoned for caller in self._tumen_owed or ())

    def _not_begun(self, caller: Caller) -> type[NoReply]:
        _log.debug("%r: a call of %r was not begun: nobody waits for it", self, caller)
        return NoReply

    def _reply_now(self, caller: Caller, result: Any) -> bool:
        """Answers a call at once, if its handler has returned a reply and there is room."""
        if result is NoReply or isinstance(result, _NO_VALUE):
            return False
        try:
            caller.reply(result)
        except Busy:
            return False
        return True

    async def _reply(self, caller: Caller, result: Any) -> None:
        """Answers a call with what its handler has returned."""
        if is_no_reply(result):
            if not caller.replied:
                if self._tumen_owed is None:
                    self._tumen_owed = weakref.WeakSet()
                self._tumen_owed.add(caller)
            return
        if isinstance(result, Stop):
            if not result.has_reply:
                return
            result = result.reply
        try:
            caller.reply(result)
        except Busy:
            await send_wait(self._home, caller.pid, lambda: caller.reply(result))

    def _is_of_system(self, message: Any) -> bool:
        """Whether it is a system message or the exit of the supervisor: all that a suspended
        server looks at."""
        if type(message) is not tuple or len(message) != 3:
            return False
        if message[0] == _SYSTEM:
            return is_from(message[1])
        parent = self._tumen_parent
        return message[0] == _EXIT and parent is not None and message[1] == parent.pid

    async def _system(self, message: Any) -> tuple[Any] | None:
        """Handles what `_is_of_system` accepts; ``(reason,)`` when the server ends by it."""
        kind, origin, request = message
        if kind == _EXIT:
            return (request,)
        caller = Caller(self, *origin)
        reply, ended = system.answer(self, request)
        try:
            await self._reply(caller, reply)
        except (EncodeError, LimitExceeded) as error:
            await self._reply(caller, system.state_failed(self, error))
        return ended

    def _status_extra(self) -> list[Any]:
        """What `sys:get_status` shows beside the state."""
        return []

    def _invoke(self, handler: Callable[..., Any], *args: Any) -> Any:
        """The result of a handler, or something to be awaited for it."""
        if is_blocking(handler):
            return self._home.in_pool(handler, args)
        return handler(*args)

    async def _tumen_run(self, handler: Callable[..., Any], *args: Any) -> Any:
        result = self._invoke(handler, *args)
        return await result if hasattr(result, "__await__") else result

    async def _terminate(self, reason: Any) -> None:
        if not self.alive:
            return
        self._tumen_terminating = True
        try:
            await self._tumen_run(self.terminate, reason)
        except Exception:
            _log.exception("%r crashed in terminate/1", self)

    async def _shut_down(self) -> None:
        """Cancelled while alive: the node stops, or the user cancelled the task."""
        if not self.alive:
            return
        try:
            limit = None if self._tumen_unhurried else self._home.limits.shutdown_time_ms / 1000
            async with asyncio.timeout(limit):
                await self._terminate(SHUTDOWN)
        except TimeoutError:
            _log.error("%r: terminate/1 took too long", self)
        finally:
            self._end(SHUTDOWN)


def _is_ours(kind: type) -> bool:
    return kind is object or kind.__module__.partition(".")[0] == __package__


def _methods_of_ours(kind: type) -> frozenset[str]:
    """Private methods of a class of servers that are called by name."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        if _is_ours(base):
            found = {**vars(base), **found}
    return frozenset(
        name
        for name, value in found.items()
        if name.startswith("_") and not name.startswith("__") and hasattr(value, "__get__")
    )


def _reserved(kind: type, name: str) -> TypeError:
    return TypeError(f"{kind.__qualname__}: the name {name} is in use by the class that it extends")


def is_no_reply(result: Any) -> bool:
    return result is NoReply or isinstance(result, NoReply)
