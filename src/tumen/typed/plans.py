"""Plans: how a term becomes a value of a type, and a value a term again.

Here are what a plan is and the plans of types without parts. Reading never tries: what a term is,
and for a map or tuple what it is tagged with, decides on the one plan that reads it, so a hostile
term costs no more than its size.

The loops over fields and items are in `tumen._term` (Row, Each, MapRow, RecordRow): a plan says
which classes of terms it returns unchanged (`exact`), so that most fields cost a comparison.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from tumen._term import (
    Atom,
    BitString,
    Export,
    Fun,
    ImproperList,
    Mismatch,
    Pid,
    Port,
    Reference,
    TermMap,
)
from tumen.errors import DecodeError, LimitExceeded
from tumen.typed.shapes import (
    MISSING,
    atom_of,
    text_of_atom,
)

# Characters of a term that an error shows.
SHOWN_MAX: Final = 64
# Values of a Literal or an Enum that an error names, count.
WORDS_MAX: Final = 16

STRUCT: Final = Atom("__struct__")
UNDEFINED: Final = Atom("undefined")
MAP_SET: Final = Atom("Elixir.MapSet")
MAP: Final = Atom("map")

Reader: TypeAlias = Callable[[Any], Any]
Writer: TypeAlias = Callable[[Any], Any]

Head: TypeAlias = tuple[type | None, Any, int | None]

NOTHING: Final[frozenset[type]] = frozenset()
ATOM_CLASSES: Final[frozenset[type]] = frozenset({Atom, bool, type(None)})
BINARIES: Final[frozenset[type]] = frozenset({bytes, str, memoryview})
MAPS: Final[frozenset[type]] = frozenset({dict, TermMap})

# What a plan wants of binaries: nothing, text, or the bytes as they are.
NO_BINARIES, TEXT, RAW = 0, 1, 2


# -- errors ---------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return "too large to show"
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 1] + "…"


def described(term: Any) -> str:
    """A term in an error: what it is, and the start of its content where that is short."""
    kind = type(term)
    atom = text_of_atom(term)
    if atom is not None:
        return f"the atom {atom}"
    if kind is int or kind is float:
        return f"the {'integer' if kind is int else 'float'} {shown(term)}"
    if kind in BINARIES:
        data = term.encode("utf-8", "surrogatepass") if kind is str else bytes(term[:SHOWN_MAX])
        if len(data) > SHOWN_MAX // 2:
            return f"a binary of {len(data if kind is str else term)} bytes"
        with contextlib.suppress(UnicodeDecodeError):
            return f"the binary {shown(data.decode())}"
        return f"the binary {shown(data)}"
    if kind is list or kind is ImproperList:
        return f"{'a' if kind is list else 'an improper'} list of {len(term)}"
    if kind is tuple:
        named = text_of_atom(term[0]) if term else None
        return f"a tuple of {len(term)}" + (f", {{{named}, …}}" if named is not None else "")
    if kind in MAPS:
        module = term.get(STRUCT)
        return f"%{module_name(module)}{{}}" if type(module) is Atom else f"a map of {len(term)}"
    name = {Pid: "pid", Port: "port", Reference: "reference", BitString: "bit string"}.get(kind)
    if name is not None:
        return f"a {name}"
    return "a fun" if kind in (Fun, Export) else f"an object of {kind.__name__}"


def module_name(module: Atom) -> str:
    """As Elixir writes it."""
    text = module.text
    return text.removeprefix("Elixir.") if text.startswith("Elixir.") else f":{text}"


def key_step(key: Any) -> str:
    """How a path names the value of a key; the same rule as in `tumen.decode`."""
    text: Any = key.text if type(key) is Atom else key
    if type(text) is bytes:
        text = text[:64].decode("utf-8", "replace")
    if type(text) is not str:
        return "{" + shown(key) + "}"
    return f".{text}" if text.isidentifier() and len(text) <= 64 else "{" + repr(text[:64]) + "}"


# -- plans ----------------------------------------------------------------------------------------


def unfinished(_value: Any) -> Any:
    raise AssertionError("a plan is used before it is made")


@dataclass(eq=False, slots=True)
class Plan:
    """How terms become values of one type, and values terms.

    expected: the type in words, for errors
    takes:    classes of terms that it reads; a union gives it those
    also:     classes that it reads too, unless another member of the union takes them
    exact:    classes whose terms are returned as they are; None: all
    decodes:  whether a binary is the `str` whose UTF-8 it is; if not, `read` says so
    read:     term → value; raises Mismatch
    write:    value → what `encode` takes; None: the value itself
    fits:     whether a value can be one of the type, for the writer of a union
    results:  classes of its values, where a union has to tell them apart
    values:   for a closed set of values, by class: term → value
    struct:   maps: the value of `__struct__` that it demands
    heads:    tuples: class and value of the first element, size; None where anything goes
    binaries: what it wants of binaries itself; its parts may want more
    """

    expected: str
    takes: frozenset[type] = NOTHING
    also: frozenset[type] = NOTHING
    exact: frozenset[type] | None = NOTHING
    decodes: bool = False
    read: Reader = unfinished
    write: Writer | None = None
    fits: Callable[[Any], bool] = unfinished
    results: frozenset[type] = NOTHING
    values: dict[type, dict[Any, Any]] | None = None
    struct: Atom | None = None
    heads: tuple[Head, ...] = ()
    binaries: int = NO_BINARIES
    parts: list[Plan] = field(default_factory=list)
    _text: bool | None = None

    @property
    def text(self) -> bool:
        """Whether every binary in its terms is to be text: then `decode` makes it `str` at once."""
        if self._text is None:
            seen: dict[int, Plan] = {}
            waiting = [self]
            while waiting:
                plan = waiting.pop()
                if id(plan) not in seen:
                    seen[id(plan)] = plan
                    waiting += plan.parts
            wants = {plan.binaries for plan in seen.values()}
            self._text = TEXT in wants and RAW not in wants
        return self._text

    def refuse(self, term: Any, hint: str = "") -> Mismatch:
        return Mismatch(self.expected, described(term), hint)


def read(plan: Plan, term: Any) -> Any:
    """The term as a value of the plan's type; DecodeError, or LimitExceeded for one too deep."""
    try:
        return plan.read(term)
    except Mismatch as error:
        path = error.path()
        raise DecodeError(
            f"expected {error.expected}, found {error.found} at {path}",
            path=path,
            expected=error.expected,
            found=error.found,
            hint=error.hint,
        ) from error.__cause__
    except RecursionError:
        raise LimitExceeded(
            "nested deeper than the stack of Python lets a value of a type be built",
            limit="sys.setrecursionlimit",
            hint="A term of a recursive type costs a few Python frames for each level.",
        ) from None


# -- types without parts --------------------------------------------------------------------------


def leaf(kind: type, expected: str, widened: Mapping[type, Reader] | None = None) -> Plan:
    """A type whose terms are its values. widened: other classes of terms, and what makes the value;
    a ValueError of theirs says that this one has none."""
    others = dict(widened or {})
    plan = Plan(expected, takes=frozenset({kind}), exact=frozenset({kind}))
    plan.also = frozenset(others)
    plan.results = frozenset({kind})
    plan.fits = lambda value: isinstance(value, kind)

    def reader(term: Any) -> Any:
        if type(term) is kind:
            return term
        widen = others.get(type(term))
        if widen is None:
            raise plan.refuse(term)
        try:
            return widen(term)
        except (ValueError, OverflowError) as error:
            raise plan.refuse(term) from error

    plan.read = reader
    return plan


def binary(kind: type, expected: str, widened: Mapping[type, Reader], wants: int) -> Plan:
    plan = leaf(kind, expected, widened)
    plan.takes, plan.also = BINARIES, NOTHING
    plan.binaries = wants
    return plan


def _anything() -> Plan:
    plan = Plan("any term", exact=None, binaries=RAW)
    plan.read = lambda term: term
    plan.fits = lambda value: True
    return plan


def _integer() -> Plan:
    plan = leaf(int, "an integer")
    plan.fits = lambda value: isinstance(value, int) and not isinstance(value, bool)
    return plan


def _text() -> Plan:
    plan = binary(
        str,
        "a binary of UTF-8",
        {bytes: bytes.decode, memoryview: lambda view: str(view, "utf-8")},
        TEXT,
    )
    plan.decodes = True
    inner = plan.read

    def reader(term: Any) -> Any:
        # The commonest of all, so it stands first.
        if type(term) is bytes:
            try:
                return term.decode()
            except UnicodeDecodeError as error:
                raise plan.refuse(term) from error
        if type(term) is Atom:
            raise plan.refuse(term, "Annotated[str, tumen.typed.AsAtom] is an atom as text.")
        if type(term) is list:
            raise plan.refuse(term, "Annotated[str, tumen.typed.AsCharlist] is such a list.")
        return inner(term)

    plan.read = reader
    return plan


def _text_as_atom() -> Plan:
    plan = Plan("an atom", takes=frozenset({Atom}), also=frozenset({bool, type(None)}))
    plan.results = frozenset({str})
    plan.fits = lambda value: isinstance(value, str)

    def reader(term: Any) -> Any:
        text = text_of_atom(term)
        if text is None:
            raise plan.refuse(term)
        return text

    def writer(value: Any) -> Any:
        if not isinstance(value, str):
            raise Mismatch("a str, for an atom", described(value))
        try:
            return atom_of(value)
        except ValueError as error:
            raise Mismatch("a str, for an atom", str(error)) from error

    plan.read, plan.write = reader, writer
    return plan


def _text_as_charlist() -> Plan:
    plan = Plan("a list of code points", takes=frozenset({list}))
    plan.results = frozenset({str})
    plan.fits = lambda value: isinstance(value, str)

    def reader(term: Any) -> Any:
        if type(term) is not list:
            raise plan.refuse(term)
        try:
            text = "".join(map(chr, term))
            text.encode()
        except (TypeError, ValueError, OverflowError) as error:
            raise plan.refuse(term) from error
        return text

    def writer(value: Any) -> Any:
        if not isinstance(value, str):
            raise Mismatch("a str, for a list of code points", described(value))
        return [ord(char) for char in value]

    plan.read, plan.write = reader, writer
    return plan


def _leaves() -> dict[Any, Plan]:
    anything = _anything()
    nil = leaf(type(None), "the atom nil")
    views: dict[type, Reader] = {bytes: memoryview, str: lambda text: memoryview(text.encode())}
    return {
        Any: anything,
        object: anything,
        None: nil,
        type(None): nil,
        bool: leaf(bool, "true or false"),
        int: _integer(),
        float: leaf(float, "a float", {int: float}),
        str: _text(),
        bytes: binary(bytes, "a binary", {str: str.encode, memoryview: bytes}, RAW),
        bytearray: binary(
            bytearray,
            "a binary",
            {bytes: bytearray, memoryview: bytearray, str: lambda text: bytearray(text.encode())},
            RAW,
        ),
        memoryview: binary(memoryview, "a binary", views, RAW),
        Atom: leaf(Atom, "an atom"),
        Pid: leaf(Pid, "a pid"),
        Port: leaf(Port, "a port"),
        Reference: leaf(Reference, "a reference"),
        Export: leaf(Export, "an external fun"),
        Fun: leaf(Fun, "a fun"),
        BitString: leaf(BitString, "a bit string", {bytes: lambda data: BitString(data, 8)}),
        ImproperList: leaf(ImproperList, "an improper list"),
        TermMap: leaf(TermMap, "a map", {dict: TermMap}),
    }


LEAVES: Final = _leaves()
# What these hold is as `decode` makes it, so no binary may be turned into text.
for _kind in (BitString, ImproperList, TermMap):
    LEAVES[_kind].binaries = RAW
AS_ATOM: Final = _text_as_atom()
AS_CHARLIST: Final = _text_as_charlist()


# -- closed sets of values ------------------------------------------------------------------------


def closed(pairs: Iterable[tuple[Any, Any]]) -> Plan:
    """One of these values: (term, value) each. Terms are atoms, numbers, `str` and `bytes`."""
    plan = Plan("")
    table: dict[type, dict[Any, Any]] = {}
    back: dict[tuple[type, Any], Any] = {}
    words = []
    for term, value in pairs:
        forms = [term]
        if isinstance(term, str):
            forms.append(term.encode())
        elif isinstance(term, bytes):
            # decode(…, binaries="utf8") gives what is text as such.
            with contextlib.suppress(UnicodeDecodeError):
                forms.append(term.decode())
        for form in forms:
            table.setdefault(type(form), {}).setdefault(form, value)
        back.setdefault((type(value), value), term)
        words.append(described(term))
    if len(words) > WORDS_MAX:
        words[WORDS_MAX:] = [f"one of {len(words) - WORDS_MAX} others"]
    plan.expected = " or ".join(words)
    plan.takes = frozenset(table)
    plan.values = table
    plan.results = frozenset(kind for kind, _ in back)
    if not plan.takes.isdisjoint(BINARIES):
        plan.binaries = TEXT
    plan.fits = lambda value: (type(value), value) in back

    def reader(term: Any) -> Any:
        known = table.get(type(term))
        value = MISSING if known is None else known.get(term, MISSING)
        if value is not MISSING:
            return value
        text = text_of_atom(term)
        hint = ""
        if text is not None and text in table.get(str, ()):
            hint = "Annotated[…, tumen.typed.AsAtom] says that the texts are atoms."
        raise plan.refuse(term, hint)

    def writer(value: Any) -> Any:
        try:
            return back[type(value), value]
        except (KeyError, TypeError):
            raise Mismatch(plan.expected, described(value)) from None

    plan.read = reader
    if any(term is not value for (_, value), term in back.items()):
        plan.write = writer
    return plan


def literal(values: Sequence[Any], as_atom: bool) -> Plan:
    pairs = []
    for value in values:
        term = value.value if isinstance(value, enum.Enum) else value
        if as_atom and isinstance(term, str):
            term = atom_of(term)
        pairs.append((checked_value(term, "Literal"), value))
    return closed(pairs)


def enumeration(cls: type[enum.Enum], as_atom: bool) -> Plan:
    if issubclass(cls, enum.Flag):
        raise TypeError(f"{cls.__qualname__}: flags have no term; use int")
    pairs = []
    for member in cls:
        term = member.value
        if as_atom:
            if not isinstance(term, str):
                raise TypeError(f"{member}: AsAtom needs members whose values are str")
            term = atom_of(term)
        pairs.append((checked_value(term, cls.__qualname__), member))
    plan = closed(pairs)
    plan.results = frozenset({cls})
    return plan


def checked_value(term: Any, where: str) -> Any:
    """A value of a Literal or an Enum as the plain object that it stands for."""
    plain: Any
    for plain in (bool, int, float, str, bytes):
        if isinstance(term, plain):
            return term if type(term) is plain else plain(term)
    if term is None or type(term) is Atom:
        return term
    raise TypeError(f"{where}: {term!r} is no value to compare terms with")
