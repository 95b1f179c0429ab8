"""`logger_proxy`: log events of processes on other nodes whose group leader is ours.

Their nodes do not log them: they hand them to the node of the group leader. Here they go to
Python's `logging`, to the logger ``tumen.remote``.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Final

from .. import calls
from .._term import Atom, Pid, encode
from ..chardata import chardata_text, plain_format, shown, shown_term
from ..errors import TumenError
from ..options import MIB
from .backlog import Backlog
from .base import ServiceServer

__all__ = ["LoggerProxy"]

_log = logging.getLogger("tumen")
_remote = logging.getLogger("tumen.remote")

_LEVELS: Final = {
    Atom("emergency"): logging.CRITICAL,
    Atom("alert"): logging.CRITICAL,
    Atom("critical"): logging.CRITICAL,
    Atom("error"): logging.ERROR,
    Atom("warning"): logging.WARNING,
    Atom("notice"): logging.INFO,
    Atom("info"): logging.INFO,
    Atom("debug"): logging.DEBUG,
}

_PID: Final = Atom("pid")
_REPORT: Final = Atom("report")
_STRING: Final = Atom("string")

# Longest text of an event, characters: Erlang cuts it there.
_TEXT_MAX: Final = 16 * 1024
# An event is logged without Erlang's formatting after this, seconds.
_FORMAT_TIME_S: Final = 5.0
# Events of one node that wait to be formatted; over it they are dropped and counted. As many as
# OTP's own logger_proxy lets wait before it drops.
_WAITING_COUNT_MAX: Final = 1_000
# The same in bytes on the wire, of one node and of all. A report may hold anything, the state of a
# large server too; a thousand usual ones are a megabyte.
_WAITING_BYTES_MAX: Final = 8 * MIB
_WAITING_BYTES_ALL_MAX: Final = 64 * MIB
# Dropped events are reported so often, seconds.
_DROPS_PERIOD_S: Final = 1.0

# logger_formatter's configuration: nothing but the message.
_CONFIG: Final = {
    Atom("template"): [Atom("msg")],
    Atom("single_line"): False,
    Atom("chars_limit"): _TEXT_MAX,
}


@dataclasses.dataclass(frozen=True, slots=True)
class _Event:
    level: Atom
    # {Format, Args}, {report, Report} or {string, Chardata}: as logger has it.
    message: tuple[Any, Any]
    meta: Mapping[Any, Any]

    def size(self) -> int:
        """Bytes on the wire."""
        return len(encode((self.message, self.meta)))


class _Source:
    """One node whose processes log here."""

    __slots__ = ("dropped", "events", "taken", "working")

    def __init__(self) -> None:
        # With their bytes on the wire.
        self.events: collections.deque[tuple[_Event, int]] = collections.deque()
        self.working = False
        # Since the period began.
        self.taken = 0
        self.dropped = 0


class LoggerProxy(ServiceServer):
    """The server named `logger_proxy`."""

    async def init(self, *_: Any) -> Any:
        self._sources: dict[str, _Source] = {}
        self._backlog = Backlog(_WAITING_COUNT_MAX, _WAITING_BYTES_MAX, _WAITING_BYTES_ALL_MAX)
        self._timer: asyncio.TimerHandle | None = None

    async def terminate(self, reason: Any) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def on_message(self, message: Any) -> None:
        match message:
            case (Atom("log"), Atom() as level, form, args, Mapping() as meta):
                self._take(_Event(level, (form, args), meta))
            case (Atom("log"), Atom() as level, Mapping() as report, Mapping() as meta):
                self._take(_Event(level, (_REPORT, report), meta))
            case (Atom("log"), Atom() as level, [tuple(), *_] as report, Mapping() as meta):
                self._take(_Event(level, (_REPORT, report), meta))
            case (Atom("log"), Atom() as level, chars, Mapping() as meta):
                self._take(_Event(level, (_STRING, chars), meta))
            case _:
                self._unknown("message", message)

    def _take(self, event: _Event) -> None:
        if not _remote.isEnabledFor(_LEVELS.get(event.level, logging.ERROR)):
            return
        node = self._node_of(event.meta)
        source = self._sources.get(node)
        if source is None:
            source = self._sources[node] = _Source()
        source.taken += 1
        if self._timer is None:
            self._timer = self._home.loop.call_later(_DROPS_PERIOD_S, self._period_ends)
        if (
            source.taken > self._home.limits.log_events_per_s_max * _DROPS_PERIOD_S
            or not self._backlog.admits(node)
        ):
            source.dropped += 1
            return
        size = event.size()
        self._backlog.add(node, size)
        source.events.append((event, size))
        if not source.working:
            source.working = True
            self._home.background(self._work_off(node, source))

    def _node_of(self, meta: Mapping[Any, Any]) -> str:
        """The node that an event says it comes from, if that is a connected one; else empty."""
        pid = meta.get(_PID)
        if isinstance(pid, Pid) and self._home.core.is_up(pid.node):
            return pid.node
        return ""

    def _period_ends(self) -> None:
        """Tells what was dropped, and counts anew."""
        self._timer = None
        for node, source in list(self._sources.items()):
            if source.dropped:
                _log.warning(
                    "%s: %d log events were dropped: more than %d a second, or too slow to format "
                    "for their number or size",
                    node or "a node",
                    source.dropped,
                    self._home.limits.log_events_per_s_max,
                )
            source.taken = source.dropped = 0
            if not source.working:
                del self._sources[node]

    async def _work_off(self, node: str, source: _Source) -> None:
        """Logs what has come of a node, in its order."""
        try:
            while source.events:
                event, size = source.events.popleft()
                try:
                    _write(node, event, await self._text(node, event))
                finally:
                    self._backlog.remove(node, size)
        finally:
            source.working = False

    async def _text(self, node: str, event: _Event) -> str:
        """The text of an event, made by its node where it takes Erlang to make it."""
        kind, content = event.message
        text = None
        if kind == _STRING:
            text = shown(content)
        elif kind != _REPORT:
            text = plain_format([kind, content])
        if text is None and node and self.alive:
            text = await self._formatted(node, event)
        if text is None:
            text = shown_term(content)
            if kind != _REPORT:
                text = f"{shown(kind)} {text}"
        return text

    async def _formatted(self, node: str, event: _Event) -> str | None:
        log_event = {
            Atom("level"): event.level,
            Atom("msg"): event.message,
            Atom("meta"): event.meta,
        }
        try:
            chars = await calls.rpc(
                self._home,
                self,
                node,
                "logger_formatter",
                "format",
                [log_event, _CONFIG],
                _FORMAT_TIME_S,
            )
            return chardata_text(chars)
        except (TumenError, ValueError) as error:
            _log.debug("%s: a log event was not formatted: %s", node, error)
            return None


def _write(node: str, event: _Event, text: str) -> None:
    """Hands an event to Python's logging."""
    pid = event.meta.get(_PID)
    extra = {
        "erlang_node": node,
        "erlang_pid": pid if isinstance(pid, Pid) else None,
        "erlang_level": event.level.text,
        "erlang_meta": {
            key.text: value for key, value in event.meta.items() if isinstance(key, Atom)
        },
    }
    if event.message[0] == _REPORT:
        extra["erlang_report"] = event.message[1]
    _remote.log(_LEVELS.get(event.level, logging.ERROR), "%s", text.rstrip("\n"), extra=extra)
