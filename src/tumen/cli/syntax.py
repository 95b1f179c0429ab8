"""Terms as text in Erlang's syntax: what people type on the command line and what it prints.

`parse_term` reads what ``erl_parse:parse_term`` reads, plus maps, external funs and sized segments
of binaries. `format_term` prints what ``io:format("~0tp")`` prints, so that output can be pasted
into a shell, but for pids, ports, references and local funs: those are printed for people and
refused by the parser, for no text names them from outside their node.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Never

from tumen import (
    Atom,
    Binary,
    BitString,
    EncodeError,
    Export,
    Fun,
    ImproperList,
    LimitExceeded,
    Pid,
    Port,
    Reference,
    TermMap,
    decode,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["TermSyntaxError", "format_term", "parse_name", "parse_term", "plain"]

# Nesting that the parser follows, levels: it recurses, and Python's stack ends at about 1000 calls.
DEPTH_MAX: Final = 200
# Columns of the line that an error shows around its position.
CONTEXT_COLUMNS: Final = 72
# Bits of one integer segment of a binary: 8 KiB, so that a typing error cannot ask for gigabytes.
SEGMENT_BITS_MAX: Final = 65536

_RESERVED: Final = frozenset((
    "after", "and", "andalso", "band", "begin", "bnot", "bor", "bsl", "bsr", "bxor", "case",
    "catch", "cond", "div", "else", "end", "fun", "if", "let", "maybe", "not", "of", "or", "orelse",
    "receive", "rem", "try", "when", "xor",
))  # fmt: skip
_CONSTANTS: Final[dict[str, Any]] = {"true": True, "false": False, "nil": None}
_SPACE: Final = re.compile(r"(?:\s|%[^\n]*)*")
_BARE_ATOM: Final = re.compile(r"[a-zß-öø-ÿ][0-9A-Za-z_@ÀÖØ-öø-ÿß-ö]*")
_PRINTED_ATOM: Final = re.compile(r"[a-z][0-9A-Za-z_@]*")
_NUMBER_STARTS: Final = frozenset("0123456789+-$")
_FLOAT: Final = re.compile(r"[0-9]+(?:_[0-9]+)*\.[0-9]+(?:_[0-9]+)*(?:[eE][+-]?[0-9]+)?")
_BASED: Final = re.compile(r"([0-9]{1,2})#([0-9A-Za-z]+(?:_[0-9A-Za-z]+)*)")
_INTEGER: Final = re.compile(r"[0-9]+(?:_[0-9]+)*")
_CODE_ESCAPE: Final = re.compile(r"x\{([0-9a-fA-F]{1,6})\}|x([0-9a-fA-F]{2})|([0-7]{1,3})")
_ESCAPES: Final = {
    "b": "\b", "d": "\x7f", "e": "\x1b", "f": "\f", "n": "\n", "r": "\r", "s": " ", "t": "\t",
    "v": "\v",
}  # fmt: skip
_PRINTED_ESCAPES: Final = {
    "\b": "\\b", "\x7f": "\\d", "\x1b": "\\e", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t",
    "\v": "\\v", "\\": "\\\\",
}  # fmt: skip
# Control characters that do not make a list of integers, or a binary, less of a text.
_TEXT_CONTROLS: Final = frozenset("\b\t\n\v\f\r\x1b")


class TermSyntaxError(ValueError):
    """The text is not a term. `position` counts characters from 0; ``str()`` shows the place."""

    def __init__(self, reason: str, text: str, position: int) -> None:
        self.reason = reason
        self.text = text
        self.position = position
        start = text.rfind("\n", 0, position) + 1
        end = text.find("\n", position)
        line = text[start : end if end >= 0 else len(text)]
        column = position - start
        cut = max(0, column - CONTEXT_COLUMNS // 2)
        shown = "".join(char if char.isprintable() else "·" for char in line[cut:])
        number = text.count("\n", 0, position) + 1
        super().__init__(
            f"line {number}, column {column + 1}: {reason}\n"
            f"  {shown[:CONTEXT_COLUMNS]}\n  {' ' * (column - cut)}^"
        )


def parse_term(text: str) -> Any:
    """The term that a text in Erlang's syntax stands for; a final full stop may be left out.

    Strings are lists of integers, as in Erlang, and binaries are ``bytes``: the result is what
    `tumen.decode` makes of such a term. `TermSyntaxError` says what is wrong, and where.
    """
    parser = _Parser(text)
    term = parser.term(0)
    parser.space()
    if parser.peek() == ".":
        parser.at += 1
        parser.space()
    if parser.at < len(text):
        parser.fail("one term was expected, and here is more")
    try:
        # Makes of each map a dict where that loses nothing.
        return decode(encode(term))
    except (EncodeError, LimitExceeded) as error:
        raise TermSyntaxError(str(error), text, 0) from None


def parse_name(text: str) -> str:
    """The text of an atom that is given as a word of its own: ``lists``, ``'Elixir.ML'``.

    Quotes may be left out, for a shell strips them: ``Elixir.ML`` is that atom.
    """
    if not text.startswith("'"):
        if not text:
            raise TermSyntaxError("a name was expected", text, 0)
        return text
    parser = _Parser(text)
    name = parser.quoted("'")
    if parser.at < len(text):
        parser.fail("one name was expected, and here is more")
    return name


class _Parser:
    """One text and a position in it; every method leaves the position behind what it has read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, reason: str, position: int | None = None) -> Never:
        raise TermSyntaxError(reason, self.text, self.at if position is None else position)

    def space(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def peek(self) -> str:
        """The next character; empty at the end."""
        return self.text[self.at : self.at + 1]

    def take(self, token: str) -> bool:
        """Reads the token if it comes next, after space."""
        self.space()
        if not self.text.startswith(token, self.at):
            return False
        self.at += len(token)
        return True

    def need(self, token: str, where: str) -> None:
        if not self.take(token):
            found = f"not {self.peek()!r}" if self.peek() else "and here is the end"
            self.fail(f"{token!r} was expected {where}, {found}")

    # -- terms -----------------------------------------------------------------------------------

    def term(self, depth: int) -> Any:
        """Any term."""
        self.space()
        if depth > DEPTH_MAX:
            self.fail(f"nested deeper than {DEPTH_MAX} levels")
        char = self.peek()
        if self.text.startswith("<<", self.at):
            return self.binary()
        if char in _NUMBER_STARTS:
            return self.number()
        match char:
            case "{":
                return self.tuple_term(depth)
            case "[":
                return self.list_term(depth)
            case "#":
                return self.map_term(depth)
            case '"':
                return self.string()
            case "'":
                return self.atom(self.quoted("'"))
            case "<":
                self.fail("a pid cannot be written as text: name the process instead")
        return self.word()

    def items(self, close: str, depth: int) -> list[Any]:
        """Terms between commas, up to `close`, which is not read."""
        items: list[Any] = []
        self.space()
        if self.peek() == close:
            return items
        items.append(self.term(depth + 1))
        while self.take(","):
            items.append(self.term(depth + 1))
        return items

    def tuple_term(self, depth: int) -> Any:
        self.at += 1
        items = self.items("}", depth)
        self.need("}", "at the end of the tuple")
        return tuple(items)

    def list_term(self, depth: int) -> Any:
        self.at += 1
        items = self.items("]", depth)
        if items and self.take("|"):
            tail = self.term(depth + 1)
            self.need("]", "after the tail of the list")
            if isinstance(tail, list):
                return items + tail
            if isinstance(tail, ImproperList):
                return ImproperList([*items, *tail.items], tail.tail)
            return ImproperList(items, tail)
        self.need("]", "at the end of the list")
        return items

    def map_term(self, depth: int) -> Any:
        """What begins with #: a map."""
        start = self.at
        for word in ("Pid", "Port", "Ref", "Fun"):
            if self.text.startswith(word, start + 1):
                self.fail(f"a {word.lower()} cannot be written as text")
        self.at += 1
        if not self.take("{"):
            self.fail("a map is written #{Key => Value}; records have no names here", start)
        pairs = []
        self.space()
        if self.peek() != "}":
            while True:
                pairs.append(self.pair(depth))
                if not self.take(","):
                    break
        self.need("}", "at the end of the map")
        try:
            return TermMap(pairs)
        except ValueError as error:
            self.fail(str(error), start)

    def pair(self, depth: int) -> tuple[Any, Any]:
        key = self.term(depth + 1)
        self.need("=>", "between key and value")
        return key, self.term(depth + 1)

    def word(self) -> Any:
        """A bare atom, or ``fun m:f/a``."""
        start = self.at
        match = _BARE_ATOM.match(self.text, start)
        if match is None:
            char = self.peek()
            if not char:
                self.fail("a term was expected, and here is the end")
            if char == "_" or char.isupper():
                self.fail("a variable has no value here; such an atom needs quotes: 'Name'")
            self.fail(f"a term was expected, not {char!r}")
        self.at = match.end()
        if match[0] == "fun":
            return self.export(start)
        if match[0] in _RESERVED:
            self.fail(f"{match[0]} is a reserved word; as an atom it needs quotes", start)
        return self.atom(match[0])

    def atom(self, text: str) -> Any:
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        try:
            return Atom(text)
        except ValueError as error:
            self.fail(str(error))

    def export(self, start: int) -> Export:
        module = self.name()
        self.need(":", "in fun module:function/arity")
        function = self.name()
        self.need("/", "in fun module:function/arity")
        self.space()
        match = _INTEGER.match(self.text, self.at)
        if match is None:
            self.fail("an arity was expected")
        self.at = match.end()
        arity = self.digits(match[0], 10, match.start())
        if arity > 255:
            self.fail("an arity is from 0 to 255", start)
        return Export(module, function, arity)

    def name(self) -> str:
        self.space()
        if self.peek() == "'":
            return self.quoted("'")
        match = _BARE_ATOM.match(self.text, self.at)
        if match is None:
            self.fail("only external funs can be written: fun module:function/arity")
        self.at = match.end()
        return match[0]

    # -- numbers ---------------------------------------------------------------------------------

    def number(self) -> int | float:
        start = self.at
        sign = 1
        if self.peek() in ("+", "-"):
            sign = -1 if self.peek() == "-" else 1
            self.at += 1
            self.space()
        if self.peek() == "$":
            self.at += 1
            return sign * ord(self.character("$"))
        if match := _FLOAT.match(self.text, self.at):
            self.at = match.end()
            value = float(match[0].replace("_", ""))
            if value in (float("inf"), float("-inf")):
                self.fail("too large for a float", start)
            return sign * value
        if match := _BASED.match(self.text, self.at):
            self.at = match.end()
            base = int(match[1])
            if not 2 <= base <= 36:
                self.fail("a base is from 2 to 36", start)
            return sign * self.digits(match[2], base, start)
        match = _INTEGER.match(self.text, self.at)
        if match is None:
            self.fail("digits were expected")
        self.at = match.end()
        return sign * self.digits(match[0], 10, start)

    def digits(self, digits: str, base: int, start: int) -> int:
        try:
            return int(digits.replace("_", ""), base)
        except ValueError:
            # Python reads only so many decimal digits; hexadecimal ones have no bound.
            reason = "too long: write it as 16#…" if base == 10 else f"not a number in base {base}"
            self.fail(reason, start)

    # -- text ------------------------------------------------------------------------------------

    def string(self) -> list[int]:
        """One or more strings side by side, as the list of integers that they are."""
        codes: list[int] = []
        while self.take('"'):
            self.at -= 1
            codes += map(ord, self.quoted('"'))
        return codes

    def quoted(self, quote: str) -> str:
        start = self.at
        self.at += 1
        chars: list[str] = []
        while True:
            char = self.peek()
            if not char:
                self.fail(f"the closing {quote} is missing", start)
            if char == quote:
                self.at += 1
                return "".join(chars)
            chars.append(self.character(quote))

    def character(self, context: str) -> str:
        """One character, or the escape that stands for one."""
        char = self.peek()
        if not char:
            self.fail(f"a character was expected after {context}")
        start = self.at
        self.at += 1
        if char != "\\":
            return char
        char = self.peek()
        self.at += 1
        if char == "^":
            control = self.peek()
            if not ("@" <= control <= "_" or "a" <= control <= "z"):
                self.fail("a letter was expected after \\^", start)
            self.at += 1
            return chr(ord(control) & 31)
        if match := _CODE_ESCAPE.match(self.text, self.at - 1):
            self.at = match.end()
            code = int(match[3], 8) if match[3] else int(match[1] or match[2], 16)
            if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                self.fail("not a Unicode character", start)
            return chr(code)
        if char == "x" or not char:
            self.fail("an escape was expected: \\xHH, \\x{H…}, \\n, …", start)
        return _ESCAPES.get(char, char)

    # -- binaries --------------------------------------------------------------------------------

    def binary(self) -> bytes | BitString:
        self.at += 2
        pieces: list[tuple[int, int]] = []  # value, bits
        self.space()
        if not self.text.startswith(">>", self.at):
            pieces += self.segment()
            while self.take(","):
                pieces += self.segment()
        self.need(">>", "at the end of the binary")
        bits = sum(size for _, size in pieces)
        if all(size == 8 for _, size in pieces):
            return bytes(piece for piece, _ in pieces)
        value = 0
        for piece, size in pieces:
            value = (value << size) | piece
        used = bits % 8 or 8
        data = (value << (8 - used)).to_bytes((bits + 7) // 8, "big")
        return data if used == 8 else BitString(data, used)

    def segment(self) -> Iterable[tuple[int, int]]:
        """Values and their sizes in bits."""
        self.space()
        start = self.at
        if self.peek() == '"':
            text = "".join(map(chr, self.string()))
            if self.modifier() == "utf8":
                return [(byte, 8) for byte in self.utf8(text, start)]
            if any(char > "\xff" for char in text):
                self.fail('characters above 255 need <<"…"/utf8>>', start)
            return [(ord(char), 8) for char in text]
        if self.peek() not in _NUMBER_STARTS:
            self.fail("a segment was expected: an integer, Integer:Bits or a string")
        value = self.number()
        if isinstance(value, float):
            self.fail("floats are not written as segments here", start)
        size = 8
        if self.take(":"):
            size_at = self.at
            size = int(self.number())
            if not 0 <= size <= SEGMENT_BITS_MAX:
                self.fail(f"a segment has from 0 to {SEGMENT_BITS_MAX} bits", size_at)
        elif self.modifier() == "utf8":
            if not 0 <= value <= 0x10FFFF:
                self.fail("not a Unicode character", start)
            return [(byte, 8) for byte in self.utf8(chr(value), start)]
        if not -(1 << size >> 1) <= value < 1 << size:
            self.fail(f"{value} does not fit into {size} bits", start)
        return [(value & ((1 << size) - 1), size)]

    def modifier(self) -> str:
        if not self.take("/"):
            return ""
        start = self.at
        name = self.name()
        if name not in ("utf8", "integer"):
            self.fail("of the segment types only utf8 is read here", start)
        return name

    def utf8(self, text: str, start: int) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError:
            self.fail("not a Unicode character", start)


# -- printing --------------------------------------------------------------------------------------


class _Raw(str):
    """Finished output among terms that are still to be printed."""

    __slots__ = ()


_COMMA: Final = _Raw(",")


def format_term(term: Any) -> str:
    """A term as text in Erlang's syntax, on one line. TypeError for what is no term."""
    # Own stack: a term from the network may be nested deeper than Python's stack.
    pieces: list[str] = []
    stack: list[Any] = [term]
    while stack:
        item = stack.pop()
        if type(item) is _Raw:
            pieces.append(item)
            continue
        expanded = _compound(item)
        if expanded is None:
            pieces.append(_simple(item))
        else:
            stack.extend(reversed(expanded))
    return "".join(pieces)


def _joined(opening: str, items: Iterable[Any], closing: str) -> list[Any]:
    pieces: list[Any] = [_Raw(opening)]
    for item in items:
        pieces += (item, _COMMA)
    if len(pieces) > 1:
        pieces.pop()
    pieces.append(_Raw(closing))
    return pieces


def _compound(term: Any) -> list[Any] | None:
    """The parts of a term that has some."""
    if isinstance(term, tuple):
        return _joined("{", term, "}")
    if isinstance(term, list):
        return [_Raw(_quote(_codes(term), '"'))] if _is_text(term) else _joined("[", term, "]")
    if isinstance(term, ImproperList):
        pieces = _joined("[", term.items, "")
        return [*pieces, _Raw("|"), term.tail, _Raw("]")]
    if isinstance(term, (dict, TermMap)):
        pieces = [_Raw("#{")]
        for key, value in term.items():
            pieces += (key, _Raw(" => "), value, _COMMA)
        if len(pieces) > 1:
            pieces.pop()
        return [*pieces, _Raw("}")]
    return None


def _simple(term: Any) -> str:
    """A term without parts."""
    match term:
        case True | False:
            return "true" if term else "false"
        case None:
            return "nil"
        case Atom():
            return _atom(term.text)
        case int():
            return _integer(term)
        case float():
            return _float(term)
        case str():
            return _binary(term.encode())
        case bytes() | bytearray() | memoryview() | Binary():
            return _binary(bytes(term))
        case BitString():
            return _bits(term)
        case Export():
            return f"fun {_atom(term.module)}:{_atom(term.function)}/{term.arity}"
    return _identifier(term)


def _identifier(term: Any) -> str:
    """What only its own node can name: printed for people."""
    match term:
        case Pid():
            return f"#Pid<{term.node}.{term.id}.{term.serial}>"
        case Port():
            return f"#Port<{term.node}.{term.id}>"
        case Reference():
            return f"#Ref<{'.'.join([term.node, *map(str, term.words)])}>"
        case Fun():
            return f"#Fun<{term.module}.{term.index}.{term.old_uniq}>"
    raise TypeError(f"{type(term).__name__} is no term")


def _atom(text: str) -> str:
    if _PRINTED_ATOM.fullmatch(text) and text not in _RESERVED:
        return text
    return _quote(text, "'")


def _integer(value: int) -> str:
    try:
        return str(value)
    except ValueError:
        # Python prints only so many decimal digits; hexadecimal ones have no bound.
        return f"{'-' if value < 0 else ''}16#{abs(value):X}"


def _float(value: float) -> str:
    mantissa, _, exponent = repr(value).partition("e")
    if "." not in mantissa:
        mantissa += ".0"
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def _binary(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    if text and all(_is_printed(char) for char in text):
        modifier = "" if text.isascii() else "/utf8"
        return "<<" + _quote(text, '"') + modifier + ">>"
    return f"<<{','.join(map(str, data))}>>"


def _bits(term: BitString) -> str:
    if term.bits == 8 or not term.data:
        return _binary(term.data)
    last = f"{term.data[-1] >> (8 - term.bits)}:{term.bits}"
    return f"<<{','.join([*map(str, term.data[:-1]), last])}>>"


def _is_printed(char: str) -> bool:
    return char.isprintable() or char in _TEXT_CONTROLS


def _is_text(items: list[Any]) -> bool:
    """True for a list that people would write as a string."""
    return bool(items) and all(
        type(item) is int and 0 <= item <= 0x10FFFF and _is_printed(chr(item)) for item in items
    )


def _codes(items: list[int]) -> str:
    return "".join(map(chr, items))


def _quote(text: str, quote: str) -> str:
    pieces = [quote]
    for char in text:
        if char == quote:
            pieces.append("\\" + char)
        elif char in _PRINTED_ESCAPES:
            pieces.append(_PRINTED_ESCAPES[char])
        elif char.isprintable():
            pieces.append(char)
        else:
            pieces.append(f"\\x{{{ord(char):X}}}")
    return "".join([*pieces, quote])


def plain(term: Any, depth: int = 0) -> Any:
    """A term as plain JSON data, for scripts; what JSON cannot say is lost.

    Numbers, ``true``, ``false`` and ``nil`` as they are; atoms, binaries of UTF-8 text and lists of
    characters as strings; tuples and other lists as arrays; maps as objects. The rest, and what is
    nested deeper than `DEPTH_MAX`, is text in Erlang's syntax.
    """
    if depth > DEPTH_MAX:
        return format_term(term)
    match term:
        case None | bool() | int() | float():
            return term
        case Atom():
            return term.text
        case bytes():
            try:
                return term.decode()
            except UnicodeDecodeError:
                return format_term(term)
        case list():
            return _codes(term) if _is_text(term) else [plain(item, depth + 1) for item in term]
        case tuple():
            return [plain(item, depth + 1) for item in term]
        case dict() | TermMap():
            return {_plain_key(key): plain(value, depth + 1) for key, value in term.items()}
    return format_term(term)


def _plain_key(key: Any) -> str:
    text = plain(key)
    return text if isinstance(text, str) else format_term(key)
