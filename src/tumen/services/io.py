"""`user`: the I/O server of the node, and the group leader of what it runs on other nodes.

What processes over there print comes here. A format that needs Erlang's own formatting is handed
back to the node of the process that prints; nobody else waits for that.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

from .. import calls
from .._term import Atom, Pid, encode
from ..chardata import chardata_text, plain_format
from ..errors import CallTimeout, RemoteError, TumenError
from ..options import MIB
from ..pace import Warnings
from .backlog import Backlog
from .base import ServiceServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from .output import Output

__all__ = ["IoServer"]

_log = logging.getLogger("tumen")

_OK: Final = Atom("ok")
_ERROR: Final = Atom("error")
_EOF: Final = Atom("eof")
_ENOTSUP: Final = (_ERROR, Atom("enotsup"))
_REQUEST: Final = (_ERROR, Atom("request"))
_TIMEOUT: Final = (_ERROR, Atom("timeout"))
_TERMINATED: Final = (_ERROR, Atom("terminated"))
_SYSTEM_LIMIT: Final = (_ERROR, Atom("system_limit"))
_IO_REPLY: Final = Atom("io_reply")
_IO_LIB: Final = Atom("io_lib")
_UNICODE: Final = Atom("unicode")
_LATIN1: Final = Atom("latin1")
_GETOPTS: Final = Atom("getopts")
_FORMATS: Final = (Atom("format"), Atom("fwrite"))

_OPTIONS: Final = [(Atom("binary"), True), (Atom("encoding"), _UNICODE)]
# What setopts may say: it changes nothing, since that is how this server is.
_OPTIONS_TAKEN: Final = (
    Atom("binary"),
    (Atom("binary"), True),
    _UNICODE,
    (Atom("encoding"), _UNICODE),
    (Atom("encoding"), Atom("utf8")),
)

# A format is given up after this, seconds: the node of the printing process is in trouble then.
_FORMAT_TIME_S: Final = 10.0
# Requests of one node that wait, for a format or for the standard output; over it they are refused
# with system_limit. Who prints waits for the reply, so that this many processes of a node can print
# at the same time.
_WAITING_COUNT_MAX: Final = 10_000
# The same in bytes on the wire, of one node and of all: a list of characters takes eight times as
# much here. As much as a BEAM with a slow terminal gets into its hands in a few seconds.
_WAITING_BYTES_MAX: Final = 8 * MIB
_WAITING_BYTES_ALL_MAX: Final = 64 * MIB
# Refusals are logged so often in a minute, and counted beyond.
_WARNINGS_COUNT_MAX: Final = 3


@dataclasses.dataclass(frozen=True, slots=True)
class _Formatted:
    """Text that the node of the sender has to make: ``io_lib:function(args)``."""

    function: Atom
    args: list[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class _Several:
    """One request after the other, until one fails."""

    requests: list[Any]


@dataclasses.dataclass(frozen=True, slots=True)
class _Text:
    """Text for the standard output, which may take a while to take it."""

    text: str


_Later = _Formatted | _Several | _Text


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting:
    """A request that waits, and its bytes on the wire."""

    reply_as: Any
    # The request, or what is to be done for it.
    what: Any
    size: int


class IoServer(ServiceServer):
    """The server named `user`.

    ``on_output(text, pid)`` gets what the process `pid` prints; without one it goes to the standard
    output, and who prints has its reply when it is written.
    """

    async def init(self, *args: Any) -> Any:
        self._on_output: Callable[[str, Pid], object] | None
        self._output: Output
        self._on_output, self._output = args
        # Senders that wait, with what they have asked for meanwhile: order is kept.
        self._queues: dict[Pid, collections.deque[_Waiting]] = {}
        self._backlog = Backlog(_WAITING_COUNT_MAX, _WAITING_BYTES_MAX, _WAITING_BYTES_ALL_MAX)
        self._refusals = Warnings(
            self._home.loop, "requests to print were refused", _WARNINGS_COUNT_MAX
        )

    async def terminate(self, reason: Any) -> None:
        self._refusals.close()

    def on_message(self, message: Any) -> None:
        match message:
            case (Atom("io_request"), Pid() as sender, reply_as, request):
                self._requested(sender, reply_as, request)
            case _:
                self._unknown("message", message)

    def _requested(self, sender: Pid, reply_as: Any, request: Any) -> None:
        queue = self._queues.get(sender)
        what = request
        if queue is None:
            what = self._do(sender, request)
            if not isinstance(what, _Later):
                self._io_reply(sender, reply_as, what)
                return
        node = sender.node
        if not self._backlog.admits(node):
            self._refusals.warn("user: %s prints more than can be written: refused", node)
            self._io_reply(sender, reply_as, _SYSTEM_LIMIT)
            return
        waiting = _Waiting(reply_as, what, len(encode(request)))
        self._backlog.add(node, waiting.size)
        if queue is not None:
            queue.append(waiting)
            return
        queue = self._queues[sender] = collections.deque([waiting])
        self._home.background(self._work_off(sender, queue))

    async def _work_off(self, sender: Pid, queue: collections.deque[_Waiting]) -> None:
        """Does what a sender has asked for, in its order."""
        try:
            while queue and self.alive:
                reply = await self._do_all(sender, queue[0].what)
                self._io_reply(sender, queue[0].reply_as, reply)
                self._backlog.remove(sender.node, queue.popleft().size)
        finally:
            del self._queues[sender]
            for left in queue:
                self._backlog.remove(sender.node, left.size)

    def _io_reply(self, sender: Pid, reply_as: Any, reply: Any) -> None:
        if self.alive:
            self.post(sender, (_IO_REPLY, reply_as, reply))

    # -- what is asked for

    def _do(self, sender: Pid, request: Any) -> Any:
        """The reply to a request, or what must be done for it."""
        if type(request) is not tuple:
            # A pattern below would take a list for a tuple.
            return _OPTIONS if request == _GETOPTS else _REQUEST
        match request:
            case (Atom("put_chars"), Atom("unicode" | "latin1") as encoding, chars):
                return self._put(sender, chars, latin1=encoding == _LATIN1)
            case (Atom("put_chars"), chars):
                return self._put(sender, chars, latin1=True)
            case (Atom("put_chars"), Atom("unicode" | "latin1"), module, function, args):
                return self._put_call(sender, module, function, args)
            case (Atom("put_chars"), module, function, args):
                return self._put_call(sender, module, function, args)
            case (Atom("requests"), list() as several):
                return _Several(several)
            case (Atom("setopts"), list() as options):
                return _OK if all(item in _OPTIONS_TAKEN for item in options) else _ENOTSUP
            case (Atom("get_geometry"), Atom("columns" | "rows") as which):
                return self._geometry(which.text)
        return _input(request)

    async def _do_all(self, sender: Pid, what: Any) -> Any:
        """The reply to any request; the last one's of several, or the first error."""
        left = [what]
        reply: Any = _OK
        while left:
            reply = left.pop()
            if not isinstance(reply, _Later):
                reply = self._do(sender, reply)
            if isinstance(reply, _Several):
                left.extend(reversed(reply.requests))
                reply = _OK
            elif isinstance(reply, _Formatted):
                reply = await self._put_formatted(sender, reply)
            if isinstance(reply, _Text):
                reply = await self._print(sender, reply.text)
            if type(reply) is tuple and reply[0] == _ERROR:
                break
        return reply

    def _put(self, sender: Pid, chars: Any, *, latin1: bool) -> Any:
        try:
            text = chardata_text(chars, latin1=latin1)
        except ValueError:
            return (_ERROR, (Atom("put_chars"), _LATIN1 if latin1 else _UNICODE, chars))
        return self._write(sender, text)

    def _put_call(self, sender: Pid, module: Any, function: Any, args: Any) -> Any:
        if not isinstance(function, Atom) or not isinstance(args, list):
            return _REQUEST
        if module != _IO_LIB:
            # The text of any other function would be code of one node that another asks us to run.
            return (_ERROR, function)
        text = plain_format(args) if function in _FORMATS else None
        return _Formatted(function, args) if text is None else self._write(sender, text)

    async def _put_formatted(self, sender: Pid, what: _Formatted) -> Any:
        if not self._home.core.is_up(sender.node):
            # What is printed comes from a process of a connected node. Nobody else is dialled.
            return _TERMINATED
        try:
            chars = await calls.rpc(
                self._home, self, sender.node, _IO_LIB, what.function, what.args, _FORMAT_TIME_S
            )
            text = chardata_text(chars)
        except CallTimeout:
            return _TIMEOUT
        except (RemoteError, ValueError) as error:
            _log.debug("user: %r prints what cannot be formatted: %s", sender, error)
            return (_ERROR, what.function)
        except TumenError as error:
            _log.debug("user: what %r prints cannot be formatted: %s", sender, error)
            return _TERMINATED
        return self._write(sender, text)

    def _write(self, sender: Pid, text: str) -> Any:
        """Hands the text to the user's function, or says that it is for the standard output."""
        if self._on_output is None:
            return _Text(text)
        try:
            self._on_output(text, sender)
        except Exception:
            return self._not_written(sender)
        return _OK

    async def _print(self, sender: Pid, text: str) -> Any:
        try:
            await self._output.write(text)
        except Exception:
            return self._not_written(sender)
        return _OK

    def _not_written(self, sender: Pid) -> Any:
        _log.exception("user: output of %r was not written", sender)
        return _TERMINATED

    def _geometry(self, which: str) -> Any:
        try:
            if self._on_output is None and sys.stdout is not None and sys.stdout.isatty():
                return getattr(
                    os.get_terminal_size(sys.stdout.fileno()),
                    {"columns": "columns", "rows": "lines"}[which],
                )
        except (OSError, ValueError):
            pass
        return _ENOTSUP


def _input(request: Any) -> Any:
    """The reply to a request for input: there is none. Also to what is no request at all."""
    match request:
        case (Atom("get_line"), _) | (Atom("get_line"), Atom("unicode" | "latin1"), _):
            return _EOF
        case (Atom("get_chars"), _, _) | (Atom("get_chars"), Atom("unicode" | "latin1"), _, _):
            return _EOF
        case (Atom("get_until"), _, _, _, _) | (
            Atom("get_until"),
            Atom("unicode" | "latin1"),
            _,
            _,
            _,
            _,
        ):
            return _EOF
        case (Atom("get_password" | "setopts" | "get_geometry"), _):
            return _ENOTSUP
    return _REQUEST
