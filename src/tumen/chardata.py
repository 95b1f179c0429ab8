"""Text as Erlang hands it around: chardata, and format strings that need no formatting."""

from __future__ import annotations

import re
from typing import Any, Final

from ._term import Atom, ImproperList

__all__ = ["chardata_text", "plain_format", "shown", "shown_term"]

# What a format may hold that has no argument: a new line, and a tilde itself.
_SEQUENCE: Final = re.compile("~(.?)", re.DOTALL)
_PLAIN: Final = {"n": "\n", "~": "~"}

# Longest text that a term is shown as where nobody could format it, characters.
_SHOWN_MAX: Final = 16 * 1024


def chardata_text(chars: Any, *, latin1: bool = False) -> str:
    """The text of unicode:chardata(), or of latin1 data: binaries, characters and lists of such.

    ValueError when it is none.
    """
    encoding = "latin-1" if latin1 else "utf-8"
    if type(chars) is bytes:
        return chars.decode(encoding)
    if type(chars) is not list and type(chars) is not ImproperList:
        raise ValueError(f"no chardata: {type(chars).__name__}")
    # As bytes: a character may be split over two binaries.
    text = bytearray()
    # What is still to be read, the next at the end. Lists nest as deep as a peer likes.
    left: list[Any] = [chars]
    while left:
        item = left.pop()
        if type(item) is int:
            if not 0 <= item <= 0x10FFFF:
                raise ValueError(f"{item} is no character")
            text += chr(item).encode(encoding)
        elif type(item) is bytes:
            text += item
        elif type(item) is list:
            left.extend(reversed(item))
        elif type(item) is ImproperList:
            if type(item.tail) is not bytes:
                raise ValueError("no chardata: a list whose tail is no binary")
            left.append(item.tail)
            left.extend(reversed(item.items))
        else:
            raise ValueError(f"no chardata: {type(item).__name__}")
    return text.decode(encoding)


def plain_format(args: Any) -> str | None:
    """What io_lib:format/2 makes of ``[Format, []]``, where that needs no formatting; else None."""
    match args:
        case [form, []]:
            try:
                text = form.text if isinstance(form, Atom) else chardata_text(form)
            except ValueError:
                return None
        case _:
            return None
    if any(letter not in _PLAIN for letter in _SEQUENCE.findall(text)):
        return None
    return _SEQUENCE.sub(lambda found: _PLAIN[found[1]], text)


def shown(term: Any) -> str:
    """A term for people, where nobody could format it: text as text, all else as Python has it."""
    try:
        return _clip(chardata_text(term))
    except ValueError:
        return shown_term(term)


def shown_term(term: Any) -> str:
    """The same where it cannot be meant as text."""
    try:
        return _clip(repr(term))
    except RecursionError:
        return "a term nested too deep to be shown"


def _clip(text: str) -> str:
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + " ..."
