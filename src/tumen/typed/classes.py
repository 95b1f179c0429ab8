"""Plans of classes with fields: readers of maps, structs and records, and the writers of forms."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tumen._term import Atom
from tumen.errors import EncodeError
from tumen.typed.containers import row
from tumen.typed.plans import (
    MAPS,
    STRUCT,
    Mismatch,
    Plan,
    Reader,
    Writer,
    described,
    key_step,
    module_name,
    shown,
)
from tumen.typed.shapes import MISSING, Form, Shape, atom_of

# The keys of a map, by class: how the name of a field becomes one.
KEYS: Final[dict[type, Callable[[str], Any]]] = {
    Atom: atom_of,
    bytes: str.encode,
    str: lambda text: text,
}
KEYS_OF: Final[dict[str, tuple[type, ...]]] = {
    "atoms": (Atom,),
    "binaries": (bytes, str),
    "either": (Atom, bytes, str),
}


def several(get: Callable[..., Callable[[Any], Any]], names: Sequence[Any]) -> Callable[[Any], Any]:
    """operator.itemgetter or attrgetter that answers a tuple for any number of names."""
    if not names:
        return lambda value: ()
    if len(names) == 1:
        one = get(names[0])
        return lambda value: (one(value),)
    return get(*names)


def maker(shape: Shape) -> Callable[[Sequence[Any]], Any]:
    """Makes a value of all its fields, in their order."""
    cls: Any = shape.cls
    names = [field.name for field in shape.fields]
    if shape.kind == "typeddict":
        return lambda values: dict(zip(names, values, strict=True))
    if any(field.keyword for field in shape.fields):
        return lambda values: built(cls, dict(zip(names, values, strict=True)))

    def make(values: Sequence[Any]) -> Any:
        try:
            return cls(*values)
        except (TypeError, ValueError) as error:
            raise refused_by(cls, error) from error

    return make


def built(cls: Any, values: dict[str, Any]) -> Any:
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        raise refused_by(cls, error) from error


def refused_by(cls: type, error: Exception) -> Mismatch:
    """The constructor, a __post_init__ most likely, does not take the values."""
    return Mismatch(f"what {cls.__qualname__} accepts", f"otherwise: {error}")


class MapReader:
    """Reads the fields of a class from a map.

    forms: what its keys may be, Atom, bytes and str; tag: the value of `__struct__`.
    """

    def __init__(
        self,
        plan: Plan,
        shape: Shape,
        forms: Sequence[type],
        tag: Atom | None,
        forbid_unknown: bool,
    ) -> None:
        self.expected = plan.expected
        self.plans = plan.parts
        self.shape = shape
        self.tag = tag
        self.forbid_unknown = forbid_unknown
        self.steps = [key_step(field.key) for field in shape.fields]
        self.keys = {form: [KEYS[form](field.key) for field in shape.fields] for form in forms}

    def reader(self) -> Reader:
        """The quick way, for a map that has all fields; `slow` for any other."""
        tag, slow, forbid_unknown = self.tag, self.slow, self.forbid_unknown
        size = len(self.shape.fields) + (tag is not None)
        getters = {form: several(operator.itemgetter, keys) for form, keys in self.keys.items()}
        only = getters[Atom] if self.keys.keys() == {Atom} else None
        read_row = row(self.plans, self.steps)
        make = maker(self.shape)

        def reader(term: Any) -> Any:
            if type(term) is not dict:
                return slow(term)
            get = only or getters.get(type(next(iter(term), None)))
            if get is None or (forbid_unknown and len(term) != size):
                return slow(term)
            try:
                if tag is not None and term[STRUCT] != tag:
                    return slow(term)
                terms = get(term)
            except KeyError:
                return slow(term)
            return make(read_row(terms))

        return reader

    def slow(self, term: Any) -> Any:
        """Any term: fields that are missing get their default, and what is wrong is named."""
        if type(term) not in MAPS or (self.tag is not None and term.get(STRUCT) != self.tag):
            raise Mismatch(self.expected, described(term))
        values: dict[str, Any] = {}
        found = [] if self.tag is None else [STRUCT]
        for place, field_ in enumerate(self.shape.fields):
            key = self.key_in(term, place)
            try:
                if key is not MISSING:
                    found.append(key)
                    values[field_.name] = self.plans[place].read(term[key])
                elif field_.required:
                    raise Mismatch(self.plans[place].expected, "nothing")
            except Mismatch as error:
                error.steps.append(self.steps[place])
                raise
        if self.forbid_unknown and len(term) != len(found):
            unknown = next(key for key in term if key not in found)
            raise Mismatch(f"no other key of {self.expected}", f"the key {shown(unknown)}")
        return values if self.shape.kind == "typeddict" else built(self.shape.cls, values)

    def key_in(self, term: Mapping[Any, Any], place: int) -> Any:
        """The key of that field in the map: its atom, else its binary."""
        for keys in self.keys.values():
            if keys[place] in term:
                return keys[place]
        return MISSING


def record_reader(plan: Plan, shape: Shape, tag: Atom) -> Reader:
    expected, size = plan.expected, 1 + len(shape.fields)
    read_row = row(plan.parts, [f".{field_.name}" for field_ in shape.fields])
    make = maker(shape)

    def reader(term: Any) -> Any:
        if type(term) is not tuple or len(term) != size or term[0] != tag:
            raise Mismatch(expected, described(term))
        return make(read_row(term[1:]))

    return reader


def typed_dict_writer(shape: Shape, plans: Sequence[Plan], as_atom: bool) -> Writer:
    """plans may still be empty: those of the fields come later."""
    make_key = KEYS[Atom if as_atom else str]
    keys = {field_.name: (place, make_key(field_.key)) for place, field_ in enumerate(shape.fields)}

    def writer(value: Any) -> Any:
        if not isinstance(value, dict):
            raise Mismatch(f"a dict of {shape.cls.__qualname__}", described(value))
        terms = {}
        for name, part in value.items():
            if name not in keys:
                raise Mismatch(f"a key of {shape.cls.__qualname__}", f"the key {shown(name)}")
            place, key = keys[name]
            write = plans[place].write
            try:
                terms[key] = part if write is None else write(part)
            except Mismatch as error:
                error.steps.append(key_step(name))
                raise
        return terms

    return writer


def header(shape: Shape, form: Form | None) -> Plan:
    """The plan of a class without its fields: all that a union has to know of it."""
    cls = shape.cls
    plan = Plan(f"a map for {cls.__qualname__}", takes=MAPS, results=frozenset({cls}))
    plan.fits = lambda value: isinstance(value, dict if shape.kind == "typeddict" else cls)
    if shape.kind == "typeddict":
        plan.results = frozenset({dict})
    size = len(shape.fields)
    if form is not None and form.kind == "record":
        assert form.tag is not None
        plan.expected = f"a record {{{form.tag.text}, …}} of {size + 1}"
        plan.takes, plan.heads = frozenset({tuple}), ((Atom, form.tag, size + 1),)
    elif form is not None and form.kind == "struct":
        assert form.tag is not None
        plan.expected, plan.struct = f"%{module_name(form.tag)}{{}}", form.tag
    elif form is None and shape.kind == "namedtuple":
        plan.expected = f"a tuple of {size}"
        plan.takes, plan.heads = frozenset({tuple}), ((None, None, size),)
    return plan


def is_unset(value: Any) -> bool:
    """Whether it is msgspec's UNSET, or the type of it."""
    msgspec = sys.modules.get("msgspec")
    return msgspec is not None and (value is msgspec.UNSET or value is msgspec.UnsetType)


def form_writer(shape: Shape, form: Form, plans: Sequence[Plan]) -> Writer:
    """What makes of an instance the dict or tuple that stands for it; raises EncodeError."""
    cls = shape.cls
    names = [field_.name for field_ in shape.fields]
    get = several(operator.attrgetter, names)
    steps = [
        f".{field_.name}" if form.kind == "record" else key_step(field_.key)
        for field_ in shape.fields
    ]
    writers = [(place, plan.write) for place, plan in enumerate(plans) if plan.write is not None]

    def parts(value: Any) -> Sequence[Any]:
        given: tuple[Any, ...] = get(value)
        if not writers:
            return given
        terms = list(given)
        place = 0
        try:
            for place, write in writers:
                if not is_unset(terms[place]):
                    terms[place] = write(terms[place])
        except Mismatch as error:
            error.steps.append(steps[place])
            raise
        return terms

    if form.kind == "record":
        tag = form.tag
        form.names = ("name of the record", *names)
        return checked_writer(cls, lambda value: (tag, *parts(value)))
    make_key = KEYS[KEYS_OF[form.keys][-1]]
    keys = [make_key(field_.key) for field_ in shape.fields]
    head = {} if form.tag is None else {STRUCT: form.tag}

    def writer(value: Any) -> Any:
        pairs = zip(keys, parts(value), strict=True)
        if shape.kind == "msgspec":
            return head | {key: part for key, part in pairs if not is_unset(part)}
        return head | dict(pairs)

    return checked_writer(cls, writer)


def checked_writer(cls: type, writer: Writer) -> Writer:
    def checked(value: Any) -> Any:
        try:
            return writer(value)
        except Mismatch as error:
            message = f"expected {error.expected}, found {error.found}"
            raise EncodeError(message, path=error.path(), hint=error.hint) from error.__cause__
        except AttributeError as error:
            raise EncodeError(f"{cls.__qualname__} lacks a field: {error}") from error
        except RecursionError:
            raise EncodeError(f"a value in {cls.__qualname__} is nested too deep") from None

    return checked
