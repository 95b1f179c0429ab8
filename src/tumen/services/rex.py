"""`rex`: what rpc asks of a node beside erpc's spawn requests.

Block calls, calls of old nodes and of C nodes, casts, and the broadcasts that want an answer. Only
exposed functions run; anything else is undef, as if it did not exist.
"""

from __future__ import annotations

import asyncio
import collections
import logging
from typing import TYPE_CHECKING, Any, Final

from .._term import Atom, Pid
from ..calls import send_wait
from ..errors import TumenError
from .base import ServiceServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..server import Caller

__all__ = ["Rex"]

_log = logging.getLogger("tumen")

_REX: Final = Atom("rex")
_BADRPC: Final = Atom("badrpc")
_EXIT: Final = Atom("EXIT")
_SYSTEM_LIMIT: Final = Atom("system_limit")
_FEATURES_REPLY: Final = Atom("features_reply")
_NONEXISTING_NAME: Final = Atom("nonexisting_name")
_FEATURES: Final = [Atom("erpc")]

# Block calls that wait for the one that runs; over it they are refused with system_limit. As many
# as may wait for a thread of the pool by default.
_BLOCKED_COUNT_MAX: Final = 10_000


class _BlockCall:
    """A block call that waits for its turn."""

    __slots__ = ("caller", "what")

    def __init__(self, caller: Caller, what: list[Any]) -> None:
        self.caller = caller
        self.what = what


class Rex(ServiceServer):
    """The server named `rex`."""

    async def init(self, *_: Any) -> Any:
        self._blocked: collections.deque[_BlockCall] = collections.deque()
        self._blocking = False

    # -- requests

    def on_call(self, request: Any, caller: Caller) -> None:
        match request:
            case (Atom("call"), module, function, args, _):
                self._home.background(self._call(caller, [module, function, args]))
            case (Atom("block_call"), module, function, args, _):
                self._block(caller, [module, function, args])
            case _:
                self._unknown("call", request)

    def on_cast(self, request: Any) -> None:
        match request:
            case (Atom("cast"), module, function, args, leader):
                # Nobody says who casts; the group leader is mostly of the caller's node.
                caller = leader if isinstance(leader, Pid) else self.pid
                home = self._home
                key = home.core.spawn()
                home.workers.request(key, caller, "erpc", "execute_cast", [module, function, args])
            case _:
                self._unknown("cast", request)

    def on_message(self, message: Any) -> None:
        own = Atom(self._home.core.own)
        match message:
            case (Pid() as sender, Atom("features_request")):
                self.post(sender, (_FEATURES_REPLY, own, _FEATURES))
            case (Pid() as sender, (Atom("sbcast"), name, content)):
                if self._pass_on(sender, name, content):
                    self.post(sender, (_REX, own, own))
            case (Pid() as sender, (Atom("send"), name, content)):
                # The one that is named answers by itself.
                self._pass_on(sender, name, (sender, content))
            case (Pid() as sender, (Atom("call"), module, function, args, _)):
                self._home.background(self._call_of_c_node(sender, [module, function, args]))
            case _:
                self._unknown("message", message)

    def _pass_on(self, sender: Pid, name: Any, content: Any) -> bool:
        """Sends to a registered process of this node; where there is none the sender hears it."""
        home = self._home
        if isinstance(name, Atom) and home.core.whereis(name):
            home.core.send(self._key, name, content)
            return True
        self.post(sender, (_REX, Atom(home.core.own), (_NONEXISTING_NAME, name)))
        return False

    # -- calls

    async def _call(self, caller: Caller, what: list[Any]) -> None:
        result = await self._result(caller.pid, what)
        await self._answer(caller.pid, caller.reply, result)

    async def _call_of_c_node(self, sender: Pid, what: list[Any]) -> None:
        def reply(value: Any) -> None:
            self._home.core.send(self._key, sender, (_REX, value), control=True)

        await self._answer(sender, reply, await self._result(sender, what))

    def _block(self, caller: Caller, what: list[Any]) -> None:
        if len(self._blocked) >= _BLOCKED_COUNT_MAX:
            self._home.background(
                self._answer(caller.pid, caller.reply, _failed(_SYSTEM_LIMIT)),
            )
            return
        self._blocked.append(_BlockCall(caller, what))
        if not self._blocking:
            self._blocking = True
            self._home.background(self._run_blocked())

    async def _run_blocked(self) -> None:
        """One block call after the other; those whose caller has given up never start."""
        try:
            while self._blocked and self.alive:
                call = self._blocked.popleft()
                if not call.caller.abandoned:
                    await self._call(call.caller, call.what)
        finally:
            self._blocking = False

    async def _result(self, caller: Pid, what: list[Any]) -> Any:
        """Runs a function as erpc would, in a process of its own; what rpc:call makes of it."""
        home = self._home
        try:
            result = home.core.make_ref()
            key = home.core.spawn()
            pending = home.core.monitor_begin(self, home.core.pid(key))
        except TumenError as error:
            _log.warning("rex: a call was not started: %s", error)
            return _failed(_SYSTEM_LIMIT)
        try:
            home.workers.request(key, caller, "erpc", "execute_call", [result, *what])
            await pending
        except asyncio.CancelledError:
            home.workers.abandoned(key)
            raise
        finally:
            pending.close()
        return _rpc_result(pending.value, result)

    # -- answers

    async def _answer(self, to: Pid, reply: Callable[[Any], None], value: Any) -> None:
        """Replies to a call, when there is room; a result that cannot be sent is a failure."""
        if not self.alive:
            return
        try:
            await send_wait(self._home, to, lambda: reply(value))
        except TumenError as error:
            # It was a term once, so it is larger than a message may be.
            _log.warning("rex: the result for %r cannot be sent: %s", to, error)
            await send_wait(self._home, to, lambda: reply(_failed(_SYSTEM_LIMIT)))


def _failed(reason: Any) -> Any:
    return (_BADRPC, (_EXIT, reason))


def _rpc_result(value: Any, result: Any) -> Any:
    """What rpc:call returns for the exit reason of an erpc worker."""
    match value:
        case (ref, Atom("return" | "throw"), term) if ref == result:
            return term
        case (ref, Atom("exit"), reason) if ref == result:
            return _failed(reason)
        case (ref, Atom("error"), (Atom("erpc"), reason)) if ref == result:
            return _failed(reason)
        case (ref, Atom("error"), reason, stack) if ref == result:
            return _failed((reason, stack))
    return _failed(value)
