"""The exceptions of tumen.

::

    Exception
    ├── Exit                             raise it to end a process with a reason of your own
    └── TumenError                       the root: ``except tumen.TumenError`` catches all below
        ├── CallTimeout                  also a TimeoutError: no reply before the deadline
        ├── NoConnection                 also a ConnectionError: no connection, or it was lost
        ├── NoProc                       no such process, name or alias
        ├── ServerDied                   the process that was called died: .reason
        ├── RemoteError                  the called function raised: .klass .reason .stacktrace
        ├── AuthError                    the handshake failed: cookie, flags or name
        ├── NameClash                    the name is taken
        ├── Busy                         the send queue is above its high water
        ├── ChildError                   a supervisor refuses: .reason
        ├── ProcessExited                the process that is used here has ended: .reason
        ├── DecodeError                  also a ValueError: malformed, or of another type: .path
        ├── EncodeError                  also a ValueError: no Erlang term for that: .path
        └── LimitExceeded                valid, but over one of our limits: .limit .path .offset

Every `TumenError` answers the four questions of the one who has to act:

``peer``
    Name of the node that the error is about, or None.
``retriable``
    True when the same call may succeed later without a change.
``may_have_executed``
    True when the other side may have done the work although no answer came.
``hint``
    What to look at or to do next, in one sentence; may be empty.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "AuthError",
    "Busy",
    "CallTimeout",
    "ChildError",
    "DecodeError",
    "EncodeError",
    "Exit",
    "LimitExceeded",
    "NameClash",
    "NoConnection",
    "NoProc",
    "ProcessExited",
    "RemoteError",
    "ServerDied",
    "TumenError",
]


class Exit(Exception):
    """Ends the process that raises it, with `reason` (any term) as its exit reason.

    It is no error of tumen's and stands outside the tree, so that a handler for `TumenError`
    cannot swallow it. Raised by the caller's code only.
    """

    def __init__(self, reason: Any) -> None:
        super().__init__(reason)
        self.reason = reason


class TumenError(Exception):
    """The root of all errors that tumen raises.

    `message` says what happened. The keywords override what the class says of itself; an option
    left at None keeps the default of the class.
    """

    peer: str | None = None
    retriable: bool = False
    may_have_executed: bool = False
    hint: str = ""

    def __init__(
        self,
        message: str = "",
        *,
        peer: str | None = None,
        retriable: bool | None = None,
        may_have_executed: bool | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        if peer is not None:
            self.peer = peer
        if retriable is not None:
            self.retriable = retriable
        if may_have_executed is not None:
            self.may_have_executed = may_have_executed
        if hint is not None:
            self.hint = hint


class CallTimeout(TumenError, TimeoutError):
    """No reply came before the deadline. A late reply reaches nobody."""

    may_have_executed = True
    hint = "The server may still be working on it; retry only what is safe to do twice."


class NoConnection(TumenError, ConnectionError):
    """There is no connection to the peer, or it was lost before the reply."""

    retriable = True
    hint = "Is the node up, is its name right, and does its port mapper know it?"


class NoProc(TumenError):
    """No process has that pid, name or alias on the peer; nothing was executed."""

    retriable = True
    hint = "The process is not running now; a supervisor may be restarting it."


class ServerDied(TumenError):
    """The process that was called died before it replied. `reason` is its exit reason, a term."""

    may_have_executed = True

    def __init__(self, message: str = "", *, reason: Any = None, **options: Any) -> None:
        super().__init__(message, **options)
        self.reason = reason


class RemoteError(TumenError):
    """The function that was called on the peer raised.

    `klass` is Erlang's class as text (``"error"``, ``"exit"`` or ``"throw"``), `reason` a term,
    `stacktrace` a list of terms as the peer sent it.
    """

    may_have_executed = True

    def __init__(
        self,
        message: str = "",
        *,
        klass: str = "error",
        reason: Any = None,
        stacktrace: list[Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(message, **options)
        self.klass = klass
        self.reason = reason
        self.stacktrace = [] if stacktrace is None else stacktrace


class AuthError(TumenError):
    """The handshake failed: another cookie, a missing capability flag, or an unacceptable name."""

    hint = "Compare the cookies of both nodes; the reason is in the message."


class NameClash(TumenError):
    """The name is already registered, on this node or at the port mapper."""

    hint = "Another process or node of that name is alive."


class Busy(TumenError):
    """The send queue of the connection is above its high water; nothing was sent."""

    retriable = True
    hint = "Wait with send_wait(), or for the writable event."


class ChildError(TumenError):
    """A supervisor does not do what it was asked to do with a child.

    `reason` as OTP's supervisor says it: ``not_found``, ``running``, ``restarting``,
    ``already_present`` or ``{already_started, Pid}``.
    """

    def __init__(self, message: str = "", *, reason: Any = None, **options: Any) -> None:
        super().__init__(message, **options)
        self.reason = reason


class ProcessExited(TumenError):
    """The process that is used here has ended. `reason` is its exit reason, a term."""

    def __init__(self, message: str = "", *, reason: Any = None, **options: Any) -> None:
        super().__init__(message, **options)
        self.reason = reason


class DecodeError(TumenError, ValueError):
    """The bytes are not a well-formed external term, or the term is not of the type asked for.

    `offset` is where, in bytes from the start of the input (of the inflated term, when it was
    compressed); None where the bytes are sound and the type is another: then `expected` and `found`
    say in words what the type wants and what is there.

    `path` leads there from the root ``$``: ``[2]`` an element, counted from 0, ``.name`` the value
    of that key, ``{key}`` likewise where the key is not a word, ``.key(3)`` inside the key of pair
    3, ``.tail`` the tail of an improper list. A field of a record is ``.name``, as in its class.
    """

    def __init__(
        self,
        message: str = "",
        *,
        path: str = "$",
        offset: int | None = None,
        expected: str | None = None,
        found: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(message, **options)
        self.path = path
        self.offset = offset
        self.expected = expected
        self.found = found


class EncodeError(TumenError, ValueError):
    """The object has no external term. `path` leads to it, as in `DecodeError`."""

    def __init__(self, message: str = "", *, path: str = "$", **options: Any) -> None:
        super().__init__(message, **options)
        self.path = path


class LimitExceeded(TumenError):
    """The data is valid so far, but over one of our limits, and was refused whole.

    `limit` names the option that raises the bound. `path` and `offset` as in `DecodeError`, where
    the data is a term.
    """

    def __init__(
        self,
        message: str = "",
        *,
        limit: str = "",
        path: str = "$",
        offset: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(message, **options)
        self.limit = limit
        self.path = path
        self.offset = offset
