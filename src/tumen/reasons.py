"""Exit reasons: what an exception of Python looks like to a BEAM.

No atom is made from anything that an exception carries: a BEAM never forgets an atom.
"""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Any, Final

from ._term import Atom
from .errors import Exit

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "KILLED",
    "NOPROC",
    "NORMAL",
    "NO_CONNECTION",
    "SHUTDOWN",
    "crash_reason",
    "error_reason",
    "exit_reason",
]

NORMAL: Final = Atom("normal")
SHUTDOWN: Final = Atom("shutdown")
KILLED: Final = Atom("killed")
NOPROC: Final = Atom("noproc")
NO_CONNECTION: Final = Atom("noconnection")

_PYTHON_ERROR: Final = Atom("python_error")
_FILE: Final = Atom("file")
_LINE: Final = Atom("line")
_TUMEN: Final = Atom("tumen")

# Longest text of an error in a reason, characters: reasons go into logs, and to every monitor.
TEXT_MAX: Final = 16 * 1024
# Innermost stack frames in a reason.
FRAMES_MAX: Final = 16


def crash_reason(error: BaseException, function: str, arity: int) -> Any:
    """``{{python_error, Type, Text}, [{tumen, Function, Arity, []}]}``, both binaries.

    `function` is a fixed word of ours: ``spawn``, ``handle_call`` and so on.
    """
    lines = "".join(traceback.format_exception(error))
    return (
        (_PYTHON_ERROR, type_name(error), _clip(f"{error}\n\n{lines}")),
        [(_TUMEN, Atom(function), arity, [])],
    )


def exit_reason(error: BaseException, function: str, arity: int) -> Any:
    """The reason that a process which `error` ended exits with."""
    if isinstance(error, Exit):
        return error.reason
    return crash_reason(error, function, arity)


def error_reason(error: BaseException) -> Any:
    """The reason of an `Exit`; ``{python_error, Type, Text}`` for any other exception."""
    if isinstance(error, Exit):
        return error.reason
    return (_PYTHON_ERROR, type_name(error), _clip(str(error)))


def remote_error(error: BaseException, module: Atom, function: Atom, arity: int) -> tuple[Any, Any]:
    """Reason and stack for an exposed function that raised: as erpc reports an ``error``.

    The outermost frame is ours, the caller of the function, and is left out.
    """
    stack = [
        (module, function, arity, [(_FILE, list(file.encode(errors="replace"))), (_LINE, line)])
        for file, line in _frames(error)
    ]
    return error_reason(error), stack or [(module, function, arity, [])]


def type_name(error: BaseException) -> str:
    """``"pkg.Type"``."""
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _frames(error: BaseException) -> Iterator[tuple[str, int]]:
    """File and line of the innermost frames, innermost first, as Erlang has them."""
    frames = list(traceback.walk_tb(error.__traceback__))[1:]
    for frame, line in reversed(frames[-FRAMES_MAX:]):
        yield frame.f_code.co_filename, line


def _clip(text: str) -> str:
    # Surrogates have no UTF-8: a reason must always be encodable.
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= TEXT_MAX else text[:TEXT_MAX] + " ..."
