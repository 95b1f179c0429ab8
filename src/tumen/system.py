"""OTP's `sys` protocol: what every `GenServer` answers to the system messages of other nodes.

``{system, From, Request}`` as `sys:get_state/1`, `sys:suspend/1`, `gen_server:stop/1` and others
send it. Replies have OTP's shapes. Two rules: ``get_state`` is always answered ``{ok, State}``, the
form that OTP 26.1 and later insist on; and what would run a fun of the caller here, or write a
file, is refused in the form in which OTP reports that it has failed.
"""

# ruff: noqa: SLF001 - it is a part of `GenServer`

from __future__ import annotations

import collections
import datetime as dt
import logging
import math
from typing import TYPE_CHECKING, Any, Final

from ._term import (
    Atom,
    BitString,
    Export,
    Fun,
    ImproperList,
    Pid,
    Port,
    Reference,
    TermMap,
    encode,
)
from .errors import TumenError
from .reasons import type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .server import GenServer

__all__ = ["Debug", "answer", "attributes", "failed", "module_of", "printable", "state_failed"]

# `sys:trace` prints here, at INFO: who turns it on turns this logger on as well.
_log = logging.getLogger("tumen.sys")

OK: Final = Atom("ok")
ERROR: Final = Atom("error")
UNDEFINED: Final = Atom("undefined")
_NOTSUP: Final = Atom("notsup")
_CALLBACK_FAILED: Final = Atom("callback_failed")
_GEN_SERVER: Final = Atom("gen_server")
_UNKNOWN_DEBUG: Final = Atom("unknown_debug")
_UNKNOWN_SYSTEM_MSG: Final = Atom("unknown_system_msg")
_IN: Final = Atom("in")
_OUT: Final = Atom("out")
_NOREPLY: Final = Atom("noreply")
_NO_STATISTICS: Final = Atom("no_statistics")
_RUNNING: Final = Atom("running")
_SUSPENDED: Final = Atom("suspended")

# Events that `sys:log` keeps when it is not told how many: OTP's own default.
LOG_EVENTS: Final = 10
# Most events that it keeps whatever it is told: each holds on to its message.
LOG_EVENTS_MAX: Final = 1_000
# What a state shows of itself, so that a look at a server with gigabytes in it stays cheap.
STATE_TERMS_MAX: Final = 10_000
STATE_BYTES_MAX: Final = 1024 * 1024
STATE_DEPTH_MAX: Final = 32
# Longest `repr` that stands for an object without a term, characters.
STATE_REPR_MAX: Final = 1024
# Longest atom, characters.
_ATOM_MAX: Final = 255


# -- requests -------------------------------------------------------------------------------------


def answer(server: GenServer, request: Any) -> tuple[Any, tuple[Any] | None]:
    """The reply to a system request, and ``(reason,)`` when the server is to stop then."""
    match request:
        case Atom("suspend"):
            server._tumen_suspended = True
            return OK, None
        case Atom("resume"):
            server._tumen_suspended = False
            return OK, None
        case Atom("get_state"):
            return _state_reply(server, lambda state: (OK, state)), None
        case Atom("get_status"):
            return _state_reply(server, lambda state: _status(server, state)), None
        case (Atom("replace_state"), _):
            return failed(_GEN_SERVER, "system_replace_state", _NOTSUP), None
        case (Atom("debug"), what):
            return _debug(server, what), None
        case (Atom("terminate"), reason):
            return OK, (reason,)
        case (Atom("change_code"), _, _, _) if server._tumen_suspended:
            return (ERROR, _NOTSUP), None
    return (ERROR, (_UNKNOWN_SYSTEM_MSG, request)), None


def failed(module: Atom, function: str, reason: Any) -> Any:
    """How `sys` says that a callback did not do it."""
    return (ERROR, (_CALLBACK_FAILED, (module, Atom(function)), (ERROR, reason)))


def _state_reply(server: GenServer, shape: Callable[[Any], Any]) -> Any:
    try:
        return shape(server.format_state())
    except Exception as error:
        return state_failed(server, error)


def state_failed(server: GenServer, error: Exception) -> Any:
    """The reply when there is no state to show, or it cannot be sent."""
    _log.error("%r: format_state failed", server, exc_info=error)
    return failed(module_of(type(server)), "format_state", _error_text(error))


def _status(server: GenServer, state: Any) -> Any:
    """``{status, Pid, {module, gen_server}, [PDict, SysState, Parent, Debug, Misc]}``."""
    parent = server._tumen_parent
    debug = server._tumen_debug
    shown = _SUSPENDED if server._tumen_suspended else _RUNNING
    parent_pid = server.pid if parent is None else parent.pid
    dictionary = [
        (Atom("$initial_call"), (module_of(type(server)), Atom("init"), 1)),
        (Atom("$ancestors"), list(_ancestors(server))),
    ]
    misc = [
        (Atom("header"), _chars(f"Status for generic server {_name_text(server)}")),
        (
            Atom("data"),
            [
                (_chars("Status"), shown),
                (_chars("Parent"), parent_pid),
                (_chars("Logged events"), [] if debug is None else debug.logged()),
            ],
        ),
        (Atom("data"), [(_chars("State"), state)]),
        *server._status_extra(),
    ]
    options = [] if debug is None else debug.options(server)
    return (
        Atom("status"),
        server.pid,
        (Atom("module"), _GEN_SERVER),
        [dictionary, shown, parent_pid, options, misc],
    )


def _ancestors(server: GenServer) -> Iterable[Atom | Pid]:
    """The supervisors above it by name or pid, the nearest first."""
    parent = server._tumen_parent
    while parent is not None:
        yield parent._tumen_name or parent.pid
        parent = parent._tumen_parent


def _name_text(server: GenServer) -> str:
    name, pid = server._tumen_name, server.pid
    # As a BEAM writes a pid of its own.
    return f"<0.{pid.id}.{pid.serial}>" if name is None else str(name)


def _chars(text: str) -> list[int]:
    """An Erlang string."""
    return list(map(ord, text))


# -- debug ----------------------------------------------------------------------------------------


class Debug:
    """What `sys:trace`, `sys:log` and `sys:statistics` have turned on; made when something is."""

    def __init__(self) -> None:
        self.trace = False
        self.log: collections.deque[Any] | None = None
        self.started: dt.datetime | None = None
        self.messages_in = 0
        self.messages_out = 0

    @property
    def idle(self) -> bool:
        return not self.trace and self.log is None and self.started is None

    def received(self, server: GenServer, message: Any) -> None:
        """A message is about to be handled."""
        self.messages_in += 1
        self._keep((_IN, message))
        if self.trace:
            _log.info("*DBG* %s got %s", _name_text(server), _message_text(message))

    def handled(self, server: GenServer, message: Any, result: Any, *, replied: bool) -> None:
        """The handler has returned `result`, which is the reply to its call when it `replied`."""
        state = self._state(server)
        if replied:
            _, caller, _ = message
            self.messages_out += 1
            self._keep((_OUT, result, caller, state))
            if self.trace:
                name = _name_text(server)
                _log.info("*DBG* %s sent %r to %r, new state %r", name, result, caller[0], state)
        else:
            self._keep((_NOREPLY, state))
            if self.trace:
                _log.info("*DBG* %s new state %r", _name_text(server), state)

    def _state(self, server: GenServer) -> Any:
        if not self.trace and self.log is None:
            return None
        try:
            return server.format_state()
        except Exception as error:
            return _error_text(error)

    def _keep(self, event: Any) -> None:
        if self.log is not None:
            # A copy: the handler may change what it was given.
            self.log.append(printable(event))

    def keep_log(self, count: int) -> None:
        # As OTP: while it is on, its length stays what it was.
        if self.log is None:
            self.log = collections.deque(maxlen=min(count, LOG_EVENTS_MAX))

    def count_on(self) -> None:
        if self.started is None:
            self.started = dt.datetime.now()
            self.messages_in = self.messages_out = 0

    def logged(self) -> list[Any]:
        return [] if self.log is None else list(self.log)

    def statistics(self) -> Any:
        if self.started is None:
            return _NO_STATISTICS
        return [
            (Atom("start_time"), _date_time(self.started)),
            (Atom("current_time"), _date_time(dt.datetime.now())),
            # The work of a Python process has no such unit.
            (Atom("reductions"), 0),
            (Atom("messages_in"), self.messages_in),
            (Atom("messages_out"), self.messages_out),
        ]

    def options(self, server: GenServer) -> list[Any]:
        """As `sys:get_status` shows them: ``[dbg_opt()]``."""
        result: list[Any] = []
        if self.trace:
            result.append((Atom("trace"), True))
        if self.log is not None:
            name = server._tumen_name or server.pid
            items = [(event, name, UNDEFINED) for event in reversed(self.logged())]
            result.append((Atom("log"), [(self.log.maxlen or 0) - len(items), *items]))
        if self.started is not None:
            counts = (Atom("reductions"), 0), self.messages_in, self.messages_out
            result.append((Atom("statistics"), (_date_time(self.started), *counts)))
        return result


def _debug(server: GenServer, what: Any) -> Any:
    """`sys:trace`, `log`, `statistics` and so on; as OTP, ``unknown_debug`` for all else."""
    debug = server._tumen_debug or Debug()
    reply = _debug_reply(server, debug, what)
    server._tumen_debug = None if debug.idle else debug
    return reply


def _debug_reply(server: GenServer, debug: Debug, what: Any) -> Any:
    match what:
        case Atom("no_debug"):
            debug.trace, debug.log, debug.started = False, None, None
        case (Atom("trace"), bool(on)):
            debug.trace = on
        case (Atom("log"), True):
            debug.keep_log(LOG_EVENTS)
        case (Atom("log"), (True, int(count))) if not isinstance(count, bool) and count > 0:
            debug.keep_log(count)
        case (Atom("log"), False):
            debug.log = None
        case (Atom("log"), Atom("get")):
            return (OK, debug.logged())
        case (Atom("log"), Atom("print")):
            for event in debug.logged():
                _log.info("*DBG* %s %r", _name_text(server), event)
        case (Atom("statistics"), True):
            debug.count_on()
        case (Atom("statistics"), False):
            debug.started = None
        case (Atom("statistics"), Atom("get")):
            return (OK, debug.statistics())
        case (Atom("log_to_file"), False) | (Atom("remove"), _):
            # There never is one; OTP says ok then.
            pass
        case (Atom("log_to_file"), _):
            return (ERROR, Atom("open_file"))
        case _:
            return _UNKNOWN_DEBUG
    return OK


def _message_text(message: Any) -> str:
    match message:
        case (Atom("$gen_call"), (Pid() as caller, _), request):
            return f"call {request!r} from {caller!r}"
        case (Atom("$gen_cast"), request):
            return f"cast {request!r}"
    return repr(message)


def _date_time(when: dt.datetime) -> Any:
    """calendar:datetime()."""
    return (when.year, when.month, when.day), (when.hour, when.minute, when.second)


# -- Python objects for the eyes of a BEAM ---------------------------------------------------------


def module_of(kind: Any) -> Atom:
    """The module that a BEAM is shown for a class or a function: ``'pkg.module.Name'``."""
    name = f"{kind.__module__}.{getattr(kind, '__qualname__', type(kind).__qualname__)}"
    return Atom(name[-_ATOM_MAX:])


def printable(value: Any) -> Any:
    """A copy of `value` that has a term; `repr` stands in for what has none.

    Of a very large one the beginning, with a text that says so where something is left out.
    """
    return _Printer().show(value, STATE_DEPTH_MAX)


_IMMUTABLE: Final = (Atom, Pid, Port, Reference, Fun, Export, BitString)


class _Printer:
    """One `printable`: counts down what may still be shown."""

    def __init__(self) -> None:
        self.terms = STATE_TERMS_MAX
        self.bytes = STATE_BYTES_MAX

    def show(self, value: Any, depth: int) -> Any:
        self.terms -= 1
        if value is None or type(value) in (bool, int) or isinstance(value, _IMMUTABLE):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else repr(value)
        if type(value) is str:
            return self._text(value.encode("utf-8", "backslashreplace").decode())
        if isinstance(value, bytes | bytearray):
            return self._text(bytes(value))
        if depth <= 0 or self.terms <= 0:
            return "..."
        if isinstance(value, tuple):
            return tuple(self._items(value, depth))
        if isinstance(value, list | set | frozenset | collections.deque):
            return self._items(value, depth)
        if isinstance(value, ImproperList):
            items = self._items(value.items, depth)
            return ImproperList(items, self.show(value.tail, depth - 1))
        if isinstance(value, dict | TermMap):
            return self._map(value.items(), len(value), depth)
        return self._text(_repr(value))

    def _items(self, values: Any, depth: int) -> list[Any]:
        result: list[Any] = []
        for value in values:
            if self.terms <= 0:
                result.append(f"... ({len(values) - len(result)} more)")
                break
            result.append(self.show(value, depth - 1))
        return result

    def _map(self, pairs: Iterable[tuple[Any, Any]], count: int, depth: int) -> Any:
        shown: dict[bytes, tuple[Any, Any]] = {}
        for key, value in pairs:
            if self.terms <= 0:
                note = f"... ({count - len(shown)} more)"
                shown[encode(note)] = note, ""
                break
            place = self.show(key, depth - 1)
            if encode(place) in shown:
                # Two keys that are one term: "a" and b"a", or two objects that look the same.
                place = self._text(f"{_repr(key)} ({len(shown)})")
            shown[encode(place)] = place, self.show(value, depth - 1)
        return TermMap(shown.values())

    def _text(self, text: Any) -> Any:
        size = len(text)
        if size <= self.bytes:
            self.bytes -= size
            return text
        left, self.bytes = self.bytes, 0
        note = f"... ({size - left} more)"
        return text[:left] + (note if isinstance(text, str) else note.encode())


def _repr(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"<{type(value).__name__}: repr raised {type(error).__name__}>"
    return _clip(text)


def _error_text(error: Exception) -> str:
    return _clip(f"{type_name(error)}: {error}")


def _clip(text: str) -> str:
    # Surrogates have no UTF-8.
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= STATE_REPR_MAX else text[:STATE_REPR_MAX] + "..."


def attributes(server: GenServer) -> Any:
    """A map of the public attributes of an object, by name."""
    shown: list[tuple[Any, Any]] = []
    printer = _Printer()
    for name, value in list(vars(server).items()):
        if name.startswith("_"):
            continue
        key: Atom | str
        try:
            key = Atom(name)
        except (ValueError, TumenError):
            key = name
        shown.append((key, printer.show(value, STATE_DEPTH_MAX)))
    return TermMap(shown)
