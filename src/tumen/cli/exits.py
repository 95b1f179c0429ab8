"""Exit codes, and which error leads to which: one table for every command and its help."""

from __future__ import annotations

import enum
import json
import sys
from typing import TYPE_CHECKING, Any

import tumen

from .syntax import format_term

if TYPE_CHECKING:
    from typing import Never

__all__ = ["EXIT_HELP", "Code", "Failed", "code_of", "finish", "text_of"]


class Code(enum.IntEnum):
    """What a command exits with. The numbers are a promise to scripts."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_CONNECTION = 3
    TIMEOUT = 4
    NOT_STARTED = 5
    INTERRUPTED = 130


EXIT_HELP = """\
\b
Exit codes:
  0    done; the answer is a success
  1    the answer is a failure: pang, error or {error, …}, an exit or an exception over there
  2    wrong usage
  3    no connection: unknown node, refused, another cookie, or lost
  4    no answer in time
  5    our own node could not start: no cookie, port or name taken
  130  interrupted
"""


class Failed(Exception):
    """Ends a command with a code, a message for people and the same for scripts."""

    def __init__(self, code: Code, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.details = details


def code_of(error: BaseException) -> Code:
    """The exit code for an error of tumen's."""
    match error:
        case tumen.CallTimeout() | TimeoutError():
            return Code.TIMEOUT
        case tumen.NoConnection() | tumen.AuthError() | ConnectionError():
            return Code.NO_CONNECTION
        case tumen.NameClash():
            return Code.NOT_STARTED
        case tumen.EncodeError() | tumen.LimitExceeded():
            return Code.USAGE
    return Code.FAILED


def text_of(error: BaseException) -> str:
    """What is printed of an error: reasons in Erlang's syntax, then the hint."""
    match error:
        case tumen.RemoteError(klass=klass, reason=reason):
            text = f"{klass}: {format_term(reason)}"
        case tumen.ServerDied(reason=reason):
            text = f"the server died: {format_term(reason)}"
        case _:
            text = str(error) or type(error).__name__
    hint = getattr(error, "hint", "")
    return f"{text}\n{hint}" if hint else text


def finish(failure: Failed, *, as_json: bool) -> Never:
    """Says why and exits: on standard error for people, on standard output as JSON."""
    if as_json:
        report = {"ok": False, "exit": int(failure.code), "error": str(failure), **failure.details}
        print(json.dumps(report))
    else:
        print(f"tumen: {failure}", file=sys.stderr)
    raise SystemExit(int(failure.code))
