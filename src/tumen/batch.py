"""`BatchServer`: one invocation of a handler answers the calls of many callers."""

# ruff: noqa: SLF001 - it is a `GenServer`, and knows callers as that does

from __future__ import annotations

import asyncio
import collections
import logging
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from ._term import Atom
from .errors import Busy, EncodeError, Exit, LimitExceeded
from .reasons import crash_reason, error_reason
from .server import ANSWERED, Caller, GenServer, Stop, is_blocking, is_from, is_no_reply

__all__ = ["BatchServer", "Call"]

_log = logging.getLogger("tumen")

_GEN_CALL: Final = Atom("$gen_call")
_ERROR: Final = Atom("error")

# Under overload the newest batch of so many is served next: the time in which the others come is
# what the calls in it have left. Counted in batches, and at least so many calls.
_WINDOW_BATCHES: Final = 8
_WINDOW_COUNT_MIN: Final = 64
# Calls of callers that have given up are passed over so many at a time.
_DROPPED_COUNT: Final = 1000
# Without a turn of the loop no mail comes in: seconds until the loop gets one.
_TURN_S: Final = 0.001


class Call(NamedTuple):
    """One of the calls of a batch."""

    request: Any
    caller: Caller


class BatchServer(GenServer):
    """A `GenServer` that answers many calls at once, as a model does that takes batches::

        class Model(BatchServer):
            max_batch, max_wait = 32, 0.005

            @blocking
            def handle_calls(self, calls):
                return self.model([call.request for call in calls]).tolist()

    Callers notice nothing of it: ``gen_server:call`` and ``GenServer.call`` as ever.

    `max_batch`
        most calls in one batch. A batch that has so many begins at once.
    `max_wait`
        how long a call waits for others at most, in seconds from its arrival, as exact as the
        loop's timers are (about a millisecond). 0: a batch is what waits in the mailbox at that
        moment, at most. While a batch is being handled others come in: a busy server has full
        batches with 0 too. A call that has had to wait for its turn for so long waits no longer.

    Both may also be set by `init`. A batch consists of calls that stand behind each other in the
    mailbox: everything is handled in the order in which it came, and a cast, another message or a
    system message ends the batch before it, which begins without waiting. Calls of callers that
    have given up are left out. Under overload the newest calls go first, as in a `GenServer`.

    The rest, from `init` to `terminate`, is as in a `GenServer`; `handle_call` is not used.
    """

    max_batch: int = 32
    max_wait: float = 0.0

    # Calls that were taken out of the mailbox and are in no batch yet.
    _tumen_held: list[Call]
    # Since when everything in the mailbox has come, if its task has not slept since.
    _tumen_emptied: float = 0.0

    def __init__(self) -> None:
        super().__init__()
        self._tumen_held = []

    async def handle_calls(self, calls: list[Call], /) -> Any:
        """Answers a batch: a sequence of replies, one for each call and in their order.

        Each is what `handle_call` would return for that call alone: the reply; `NoReply`, and
        ``call.caller.reply(…)`` later; or `Stop`, by which the server ends once the whole batch is
        answered. An exception object, such as `asyncio.gather` returns, fails that call alone: the
        reply is ``{error, {python_error, Type, Text}}``, or ``{error, Reason}`` for an `Exit`. So
        does a reply that is no term or too large. `NoReply` or a `Stop` instead of the sequence is
        for every call.

        An exception that is raised ends the server, as does a wrong number of replies. ``async
        def``, plain ``def`` that does not block, or plain ``def`` marked `blocking`.
        """
        raise Exit((Atom("bad_calls"), [call.request for call in calls]))

    # -- life

    async def _begin(self, args: tuple[Any, ...]) -> Any:
        result = await super()._begin(args)
        if not isinstance(result, Stop):
            self._check_options()
        return result

    def _check_options(self) -> None:
        count: Any = self.max_batch
        seconds: Any = self.max_wait
        if type(count) is not int or count < 1:
            raise ValueError(f"max_batch must be a count of calls, at least 1: {count!r}")
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, int | float)
            or not math.isfinite(seconds)
            or seconds < 0
        ):
            raise ValueError(f"max_wait must be seconds, at least 0: {seconds!r}")

    @property
    def _busy(self) -> bool:
        return bool(self._tumen_held) or super()._busy

    # -- calls

    def _begin_call(self, request: Any, caller: Caller) -> Any:
        caller._token = self._token()
        return self._serve_calls(Call(request, caller))

    async def _serve_calls(self, first: Call) -> Any:
        """Handles a batch that begins with this call; more, the newest calls first, when a caller
        is found to have given up: see `GenServer._newest_first`. ANSWERED, or a `Stop`."""
        self._tumen_held.append(first)
        if self.max_wait > 0:
            await self._gather()
        late = False
        turn = time.monotonic()
        while True:
            calls = [] if late else self._oldest()
            if not calls:
                late = True
                calls = self._newest()
            if self._waiting() == 0:
                self._tumen_emptied = time.monotonic()
            if calls and (stop := await self._run_batch(calls)) is not None:
                return stop
            if not late or not (self._tumen_held or self._leading(1)):
                return ANSWERED
            if time.monotonic() - turn > _TURN_S:
                await asyncio.sleep(0)
                turn = time.monotonic()

    async def _gather(self) -> None:
        """Returns when the batch is full, cannot grow, or has waited for its time."""
        # Calls that wait came after both of these.
        deadline = max(self._tumen_emptied, self._woken) + self.max_wait
        seen = 0
        while True:
            other = self._find(_is_no_call, seen)
            seen = self._waiting() if other < 0 else other
            if other >= 0 or len(self._tumen_held) + seen >= self.max_batch:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                return
            mail = self._mail_future()
            timer = self._home.loop.call_later(left, mail.resolve)
            try:
                await mail
            finally:
                timer.cancel()

    def _leading(self, count: int) -> list[Any]:
        """The calls at the head of the mailbox, at most so many. They stay there."""
        found: list[Any] = []

        def is_end(message: Any) -> bool:
            if len(found) >= count or _is_no_call(message):
                return True
            found.append(message)
            return False

        self._find(is_end)
        return found

    def _take(self, place: int) -> Call:
        """Takes a call out of the mailbox."""
        self._continue_trace(b"")
        message = self._remove(place)
        if self._tumen_debug is not None:
            self._tumen_debug.received(self, message)
        origin = message[1]
        caller = Caller(self, origin[0], origin[1], origin is self._passed_on)
        caller._token = self._token()
        return Call(message[2], caller)

    def _token(self) -> bytes:
        """The trace token that the message taken last came with; empty: none."""
        return b"" if self.seq_trace_token is None else self._home.core.trace_token(self._key)

    def _continue_trace(self, token: bytes) -> None:
        """What is sent from here on carries this trace token; empty: none."""
        if token or self.seq_trace_token is not None:
            self._trace(token)

    def _wanted(self, call: Call) -> bool:
        """Whether somebody waits for the reply."""
        if call.caller.abandoned:
            self._not_begun(call.caller)
            return False
        return True

    def _oldest(self) -> list[Call]:
        """The calls that came first; none when a caller has given up: calls come faster than they
        can be handled."""
        for _ in self._leading(self.max_batch - len(self._tumen_held)):
            self._tumen_held.append(self._take(0))
        calls, self._tumen_held = self._tumen_held, []
        wanted = [call for call in calls if self._wanted(call)]
        if len(wanted) == len(calls):
            return calls
        self._tumen_held = wanted
        return []

    def _newest(self) -> list[Call]:
        """The newest of the calls that wait, in the order of their arrival. None overtakes one of
        the same process."""
        self._drop_oldest()
        held = self._tumen_held
        waiting = self._leading(max(_WINDOW_COUNT_MIN, _WINDOW_BATCHES * self.max_batch))
        callers = [call.caller.pid for call in held] + [message[1][0] for message in waiting]
        # So many of each caller's, of which its oldest are served.
        counts = collections.Counter(callers[-self.max_batch :])
        chosen = []
        for place, pid in enumerate(callers):
            if counts[pid] > 0:
                counts[pid] -= 1
                chosen.append(place)
        of_held = {place for place in chosen if place < len(held)}
        calls = [held[place] for place in sorted(of_held)]
        of_mail = [place - len(held) for place in chosen if place >= len(held)]
        calls += [self._take(place - gone) for gone, place in enumerate(of_mail)]
        self._tumen_held = [call for place, call in enumerate(held) if place not in of_held]
        return [call for call in calls if self._wanted(call)]

    def _drop_oldest(self) -> None:
        """Drops the calls that came first, as long as their callers have given up."""
        self._tumen_held = [call for call in self._tumen_held if self._wanted(call)]
        for _ in range(_DROPPED_COUNT):
            if not self._leading(1):
                return
            message, passed_on = self._peek()
            origin = message[1]
            caller = Caller(self, origin[0], origin[1], passed_on)
            if not caller.abandoned:
                return
            self._remove(0)
            self._not_begun(caller)

    async def _run_batch(self, calls: list[Call]) -> Stop | None:
        """Runs the handler and gives each caller its reply; the `Stop` that ends the server."""
        try:
            result = self._handle_calls(calls)
            if hasattr(result, "__await__"):
                result = await result
            results = _results(calls, result)
        except Exit:
            raise
        except Exception as error:
            if self.alive:
                _log.error("%r crashed in handle_calls/1", self, exc_info=error)
            raise Exit(crash_reason(error, "handle_calls", 1)) from error
        stop = await self._answer(calls, results)
        if stop is None and (debug := self._tumen_debug) is not None:
            for call, result in zip(calls, results, strict=True):
                message = (_GEN_CALL, (call.caller.pid, call.caller._tag), call.request)
                debug.handled(self, message, result, replied=not is_no_reply(result))
        return stop

    async def _answer(self, calls: list[Call], results: list[Any]) -> Stop | None:
        """Sends the replies, in order; the first `Stop` among them."""
        stop: Stop | None = None
        waiting: list[tuple[Caller, Any]] = []
        for (_, caller), result in zip(calls, results, strict=True):
            value = result
            if isinstance(result, Stop):
                stop = stop or Stop(result.reason)
                if not result.has_reply:
                    continue
                value = result.reply
            if is_no_reply(value):
                waiting.append((caller, value))
                continue
            if isinstance(value, BaseException):
                _log.info("%r: the request of %r failed", self, caller, exc_info=value)
                value = (_ERROR, error_reason(value))
            self._continue_trace(caller._token)
            try:
                try:
                    caller.reply(value)
                except (EncodeError, LimitExceeded) as error:
                    _log.error("%r: no reply for %r", self, caller, exc_info=error)
                    value = (_ERROR, error_reason(error))
                    caller.reply(value)
            except Busy:
                waiting.append((caller, value))
        # Last: nobody waits for the room that these may have to wait for.
        for caller, value in waiting:
            self._continue_trace(caller._token)
            await self._reply(caller, value)
        return stop

    def _handle_calls(self, calls: list[Call]) -> Any:
        handler = self.handle_calls
        if not is_blocking(handler):
            return handler(list(calls))

        def run() -> Any:
            # They may have waited for a thread of the pool too.
            calls[:] = [call for call in calls if self._wanted(call)]
            return handler(list(calls)) if calls else []

        return self._home.in_pool(run, ())


def _is_no_call(message: Any) -> bool:
    return not (
        type(message) is tuple
        and len(message) == 3
        and message[0] == _GEN_CALL
        and is_from(message[1])
    )


def _results(calls: list[Call], result: Any) -> list[Any]:
    """What the handler has returned, as one result for each call."""
    if is_no_reply(result) or isinstance(result, Stop):
        return [result] * len(calls)
    if not isinstance(result, Iterable) or isinstance(result, str | bytes | bytearray | Mapping):
        raise TypeError(f"handle_calls returns a sequence of replies, not {type(result).__name__}")
    results = list(result)
    if len(results) != len(calls):
        raise ValueError(f"handle_calls has {len(results)} replies for {len(calls)} calls")
    return results
