"""Plans of classes with fields: readers of maps, structs and records, and the writers of forms."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tumen._term import Atom, FormWriter, Maker, MapRow, Mismatch, RecordRow, Row
from tumen.typed.plans import (
    MAPS,
    STRUCT,
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


def maker(shape: Shape) -> Maker:
    """Makes a value of all its fields, in their order."""
    keyword = any(field_.keyword for field_ in shape.fields)
    names = tuple(field_.name for field_ in shape.fields) if keyword else None
    return Maker(shape.cls, names, shape.kind == "typeddict", refused_by)


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
        self.steps = [key_step(field_.key) for field_ in shape.fields]
        self.keys = {
            form: tuple(KEYS[form](field_.key) for field_ in shape.fields) for form in forms
        }

    def reader(self) -> Reader:
        """The quick way, for a map that has all fields; `slow` for any other."""
        head = None if self.tag is None else (STRUCT, self.tag)
        size = len(self.steps) + (head is not None) if self.forbid_unknown else -1
        row = Row(self.plans, self.steps)
        return MapRow(row, maker(self.shape), self.keys, head, size, self.slow).read

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
    row = Row(plan.parts, [f".{field_.name}" for field_ in shape.fields])
    return RecordRow(row, maker(shape), tag, plan.refuse).read


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


def form_writer(shape: Shape, form: Form, plans: Sequence[Plan]) -> FormWriter:
    """What takes the instances of a registered class apart."""
    names = [field_.name for field_ in shape.fields]
    writers = [plan.write for plan in plans]
    if form.kind == "record":
        words = [".name of the record", *(f".{name}" for name in names)]
        return FormWriter(names, (form.tag,), None, writers, words, None)
    make_key = KEYS[KEYS_OF[form.keys][-1]]
    keys = [make_key(field_.key) for field_ in shape.fields]
    words = [key_step(field_.key) for field_ in shape.fields]
    head = () if form.tag is None else (STRUCT, form.tag)
    unset = sys.modules["msgspec"].UNSET if shape.kind == "msgspec" else None
    return FormWriter(names, head, keys, writers, words, unset)
