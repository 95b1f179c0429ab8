"""What the services of the node have in common: nothing that a peer sends ends one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .._term import Pid
from ..errors import Busy, Exit, TumenError
from ..server import Caller, GenServer, NoReply

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..process import Process

__all__ = ["ServiceServer", "handle_mail"]

_log = logging.getLogger("tumen")


async def handle_mail(proc: Process, what: str, handle: Callable[[Any], bool]) -> None:
    """Hands each message of a process to `handle`, which says whether it knew it. Only an `Exit`
    that this raises ends it."""
    async for message in proc:
        try:
            if not handle(message):
                _log.debug("%s: passed over %.1000r", what, message)
        except Exit:
            raise
        except Exception:
            _log.exception("%s: could not handle %.1000r", what, message)


class ServiceServer(GenServer):
    """A `GenServer` whose messages come from anywhere.

    `on_call`, `on_cast` and `on_message` (for tuples only) do not block, and ignore what they do
    not know. A call is answered through its `Caller` only.
    """

    def on_call(self, request: Any, caller: Caller) -> None:
        self._unknown("call", request)

    def on_cast(self, request: Any) -> None:
        self._unknown("cast", request)

    def on_message(self, message: Any) -> None:
        self._unknown("message", message)

    def _unknown(self, kind: str, what: Any) -> None:
        _log.debug("%s: unknown %s: %.1000r", type(self).__name__, kind, what)

    def _mistake(self) -> None:
        _log.exception("%s: a message was not handled", type(self).__name__)

    # -- the handlers of a GenServer

    def handle_call(self, request: Any, caller: Caller) -> Any:
        try:
            self.on_call(request, caller)
        except Exception:
            self._mistake()
        return NoReply

    def handle_cast(self, request: Any) -> Any:
        try:
            self.on_cast(request)
        except Exception:
            self._mistake()

    def handle_info(self, message: Any) -> Any:
        try:
            if type(message) is tuple:
                self.on_message(message)
            else:
                self._unknown("message", message)
        except Exception:
            self._mistake()

    # -- answers

    def post(self, to: Pid, message: Any) -> None:
        """Sends an answer; where even the reserve of the queue is used up, as soon as there is
        room."""
        home = self._home
        try:
            home.core.send(self._key, to, message, control=True)
        except Busy:
            home.background(self.send_wait(to, message))
        except TumenError as error:
            _log.warning("%s: not sent to %r: %s", type(self).__name__, to, error)
