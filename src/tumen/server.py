"""`GenServer`: gen_server's life and protocol around handlers written in Python."""

# ruff: noqa: SLF001 - server and caller know each other

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ._term import Atom, ImproperList, Pid, Reference
from .calls import send_wait
from .errors import Busy, Exit, ServerDied
from .process import Process
from .reasons import NORMAL, SHUTDOWN, exit_reason

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Caller", "GenServer", "NoReply", "Stop", "blocking"]

_log = logging.getLogger("tumen")

HandlerT = TypeVar("HandlerT", bound="Callable[..., Any]")

_GEN_CALL: Final = Atom("$gen_call")
_GEN_CAST: Final = Atom("$gen_cast")
_ALIAS: Final = Atom("alias")
_SYSTEM: Final = Atom("system")
_ERROR: Final = Atom("error")
_UNKNOWN_SYSTEM_MSG: Final = Atom("unknown_system_msg")


class NoReply:
    """Returned by `handle_call`: the reply will come later, by ``caller.reply``."""


class Stop:
    """Returned by a handler: the server stops with `reason`; a call is answered first."""

    __slots__ = ("has_reply", "reason", "reply")

    def __init__(self, reason: Any = NORMAL, *, reply: Any = NoReply) -> None:
        self.reason = reason
        self.reply = reply
        self.has_reply = reply is not NoReply

    def __repr__(self) -> str:
        return f"Stop({self.reason!r})"


class Caller:
    """Who made a call, and how to answer: `pid`, and `reply`."""

    __slots__ = ("_address", "_monitor", "_process", "_tag", "_times_up", "pid")

    def __init__(self, process: Process, pid: Pid, tag: Any) -> None:
        self.pid = pid
        self._process = process
        self._tag = tag
        self._address, self._monitor = _reply_address(pid, tag)
        self._times_up = process._home.core.times_up(pid.node)

    def reply(self, value: Any) -> None:
        """Answers the call; also after the handler has returned `NoReply`, from any coroutine.

        A reply to a caller that has given up reaches nobody. `Busy` when even the reserve of the
        send queue is used up, `EncodeError`.
        """
        server = self._process
        server._home.core.send(server._key, self._address, (self._tag, value), control=True)

    @property
    def abandoned(self) -> bool:
        """True once it is certain that nobody waits for this reply any more: the caller has given
        up or has ended (gen_server:call watches the server for as long as it waits), or its
        connection has gone. Of a caller that does not watch, only the connection is known. Any
        thread."""
        process = self._process
        node, core = self.pid.node, process._home.core
        if self._monitor is not None:
            return not core.watched(process._key, self._monitor)
        if node == core.own:
            return False
        return not core.is_up(node) or core.times_up(node) != self._times_up

    def __repr__(self) -> str:
        return f"<Caller {self.pid!r}>"


def blocking(handler: HandlerT) -> HandlerT:
    """Marks a plain ``def`` handler of a `GenServer` that blocks: it runs in the node's pool of
    threads. The server still handles one message at a time."""
    handler.__dict__["tumen_blocking"] = True
    return handler


class GenServer(Process):
    """A server: subclass it, and write the handlers that are needed.

    Handlers are ``async def``, or plain ``def`` that does not block, or plain ``def`` marked
    `blocking`. One runs at a time; messages keep their order. An exception in a handler ends the
    server as it does on a BEAM: its callers see that reason. The methods of `Process` are the
    server's own.
    """

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
        `Stop` or raised. Has `Limits.shutdown_time_ms` when the node stops."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid!r}>"

    # -- life: called by the node

    async def _serve(self, args: tuple[Any, ...], started: asyncio.Future[None]) -> None:
        """What the task of this server runs."""
        reason: Any
        try:
            if not await self._init(args, started):
                return
            reason = await self._loop()
        except asyncio.CancelledError:
            await self._shut_down()
            raise
        await self._terminate(reason)
        self._end(reason)

    async def _init(self, args: tuple[Any, ...], started: asyncio.Future[None]) -> bool:
        try:
            result = await self._run(self.init, *args)
        except Exception as error:
            self._start_failed(started, exit_reason(error, "init", 1), error)
            return False
        if isinstance(result, Stop):
            self._start_failed(started, result.reason, None)
            return False
        if not started.done():
            started.set_result(None)
        return True

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

    async def _loop(self) -> Any:
        """Handles messages until one ends the server; the reason."""
        function, arity = "handle_info", 1
        try:
            async for message in self:
                kind = message[0] if type(message) is tuple and message else None
                caller = None
                if kind == _GEN_CALL and len(message) == 3 and _is_from(message[1]):
                    function, arity = "handle_call", 2
                    caller = Caller(self, *message[1])
                    result = self._begin_call(message[2], caller)
                elif kind == _GEN_CAST and len(message) == 2:
                    function, arity = "handle_cast", 1
                    result = self._invoke(self.handle_cast, message[1])
                elif kind == _SYSTEM and len(message) == 3 and _is_from(message[1]):
                    caller = Caller(self, *message[1])
                    result = self._system(message[2])
                else:
                    function, arity = "handle_info", 1
                    result = self._invoke(self.handle_info, message)
                if hasattr(result, "__await__"):
                    result = await result
                if caller is not None:
                    await self._reply(caller, result)
                if isinstance(result, Stop):
                    return result.reason
        except Exception as error:
            if self.alive and not isinstance(error, Exit):
                _log.error("%r crashed in %s/%d", self, function, arity, exc_info=error)
            return exit_reason(error, function, arity)
        return NORMAL

    def _begin_call(self, request: Any, caller: Caller) -> Any:
        """Runs `handle_call`, unless the caller has given up while the request waited."""
        if caller.abandoned:
            return self._not_begun(caller)
        handler = self.handle_call
        if not getattr(handler, "tumen_blocking", False):
            return handler(request, caller)

        def run() -> Any:
            # It may have waited for a thread of the pool too.
            return self._not_begun(caller) if caller.abandoned else handler(request, caller)

        return self._home.in_pool(run, ())

    def _not_begun(self, caller: Caller) -> type[NoReply]:
        _log.debug("%r: a call of %r was not begun: nobody waits for it", self, caller)
        return NoReply

    async def _reply(self, caller: Caller, result: Any) -> None:
        """Answers a call with what its handler has returned."""
        if result is NoReply or isinstance(result, NoReply):
            return
        if isinstance(result, Stop):
            if not result.has_reply:
                return
            result = result.reply
        try:
            caller.reply(result)
        except Busy:
            await send_wait(self._home, caller.pid, lambda: caller.reply(result))

    def _system(self, request: Any) -> Any:
        _log.debug("%r got the system message %r", self, request)
        return (_ERROR, (_UNKNOWN_SYSTEM_MSG, request))

    def _invoke(self, handler: Callable[..., Any], *args: Any) -> Any:
        """The result of a handler, or something to be awaited for it."""
        if getattr(handler, "tumen_blocking", False):
            return self._home.in_pool(handler, args)
        return handler(*args)

    async def _run(self, handler: Callable[..., Any], *args: Any) -> Any:
        result = self._invoke(handler, *args)
        return await result if hasattr(result, "__await__") else result

    async def _terminate(self, reason: Any) -> None:
        if not self.alive:
            return
        try:
            await self._run(self.terminate, reason)
        except Exception:
            _log.exception("%r crashed in terminate/1", self)

    async def _shut_down(self) -> None:
        """Cancelled while alive: the node stops, or the user cancelled the task."""
        if not self.alive:
            return
        try:
            async with asyncio.timeout(self._home.limits.shutdown_time_ms / 1000):
                await self._terminate(SHUTDOWN)
        except TimeoutError:
            _log.error("%r: terminate/1 took too long", self)
        finally:
            self._end(SHUTDOWN)


def _is_from(value: Any) -> bool:
    return type(value) is tuple and len(value) == 2 and isinstance(value[0], Pid)


def _reply_address(pid: Pid, tag: Any) -> tuple[Pid | Reference, Reference | None]:
    """Where a reply goes, and the monitor that stands for as long as the caller waits.

    The tag `[alias|Ref]` of gen:call names an alias that is the monitor too, `[[alias|Ref]|Mon]` of
    multi_call an alias and a monitor.
    """
    alias = _alias(tag)
    if alias is not None:
        return alias, alias
    if isinstance(tag, ImproperList):
        alias = _alias(tag.items[0])
        if alias is not None and isinstance(tag.tail, Reference):
            return alias, tag.tail
    return pid, None


def _alias(place: Any) -> Reference | None:
    if isinstance(place, ImproperList) and place.items == (_ALIAS,):
        return place.tail if isinstance(place.tail, Reference) else None
    return None
