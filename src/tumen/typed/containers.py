"""Plans of lists, sets, maps and tuples, and of the rows that classes with fields are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tumen._term import Each, Mismatch, Row
from tumen.typed.plans import (
    ATOM_CLASSES,
    BINARIES,
    LEAVES,
    MAP,
    MAP_SET,
    MAPS,
    STRUCT,
    Head,
    Plan,
    Reader,
    Writer,
    described,
    key_step,
)


def write_each(write: Writer, values: Iterable[Any]) -> list[Any]:
    terms: list[Any] = []
    try:
        terms.extend(map(write, values))
    except Mismatch as error:
        error.steps.append(f"[{len(terms)}]")
        raise
    return terms


# -- containers -----------------------------------------------------------------------------------


def list_plan(item: Plan) -> Plan:
    plan = Plan(f"a list of {item.expected}", takes=frozenset({list}), parts=[item])
    plan.results = frozenset({list})
    plan.fits = lambda value: isinstance(value, list)
    each = Each(item).read

    def reader(term: Any) -> Any:
        if type(term) is not list:
            hint = ""
            if type(term) in BINARIES and item is LEAVES[int]:
                hint = "A binary is bytes in Python."
            raise Mismatch("a list", described(term), hint)
        return each(term)

    plan.read = reader
    write = item.write
    if write is not None:
        plan.write = lambda value: write_each(write, value)
    return plan


def set_plan(item: Plan, kind: type[set[Any] | frozenset[Any]]) -> Plan:
    """From a list; or from what OTP's sets and Elixir's MapSet are inside, a map of elements."""
    plan = Plan(f"a list of different {item.expected}", parts=[item])
    plan.takes, plan.also = frozenset({list}), MAPS
    plan.results = frozenset({kind})
    plan.fits = lambda value: isinstance(value, (set, frozenset))
    each = Each(item).read

    def reader(term: Any) -> Any:
        if type(term) is list:
            elements: Sequence[Any] = term
        elif type(term) in MAPS:
            inside = term.get(MAP) if term.get(STRUCT) == MAP_SET else term
            if type(inside) not in MAPS or any(value != [] for value in inside.values()):
                raise Mismatch("a list or a set", described(term))
            elements = list(inside)
        else:
            raise Mismatch("a list or a set", described(term))
        values = each(elements)
        try:
            made = kind(values)
        except TypeError as error:
            raise Mismatch("elements that Python can hash", described(term)) from error
        if len(made) != len(values):
            raise Mismatch("elements that differ", described(term))
        return made

    plan.read = reader
    write = item.write
    plan.write = list if write is None else lambda value: write_each(write, value)
    return plan


def dict_plan(key: Plan, item: Plan) -> Plan:
    plan = Plan(f"a map of {key.expected} to {item.expected}", takes=MAPS, parts=[key, item])
    plan.results = frozenset({dict})
    plan.fits = lambda value: isinstance(value, dict)

    def reader(term: Any) -> Any:
        if type(term) not in MAPS:
            raise Mismatch("a map", described(term))
        keys = list(term)
        made = read_keys(keys)
        values: list[Any] = []
        exact = item.exact
        given = term.values()
        if exact is None or (exact and exact.issuperset(map(type, given))):
            values = list(given)
        else:
            try:
                values.extend(map(item.read, given))
            except Mismatch as error:
                error.steps.append(key_step(keys[len(values)]))
                raise
        try:
            pairs = dict(zip(made, values, strict=True))
        except TypeError as error:
            raise Mismatch("keys that Python can hash", described(term)) from error
        if len(pairs) != len(keys):
            raise Mismatch("keys that differ in Python", described(term))
        return pairs

    def read_keys(keys: list[Any]) -> list[Any]:
        exact = key.exact
        if exact is None or (exact and exact.issuperset(map(type, keys))):
            return keys
        made: list[Any] = []
        try:
            made.extend(map(key.read, keys))
        except Mismatch as error:
            error.steps.append(f".key({len(made)})")
            raise
        return made

    plan.read = reader
    if key.write is not None or item.write is not None:
        plan.write = dict_writer(key.write, item.write)
    return plan


def dict_writer(write_key: Writer | None, write_value: Writer | None) -> Writer:
    def writer(value: Any) -> Any:
        terms: dict[Any, Any] = {}
        for place, (key, part) in enumerate(value.items()):
            step = f".key({place})"
            try:
                key_term = key if write_key is None else write_key(key)
                step = key_step(key)
                terms[key_term] = part if write_value is None else write_value(part)
            except Mismatch as error:
                error.steps.append(step)
                raise
        if len(terms) != len(value):
            raise Mismatch("keys that differ as terms", described(value))
        return terms

    return writer


def tuple_of_any_size(item: Plan) -> Plan:
    plan = Plan(f"a tuple of {item.expected}", takes=frozenset({tuple}), parts=[item])
    plan.heads = ((None, None, None),)
    each = Each(item).read
    plan.results = frozenset({tuple})
    plan.fits = lambda value: isinstance(value, tuple)

    def reader(term: Any) -> Any:
        if type(term) is not tuple:
            raise Mismatch("a tuple", described(term))
        return tuple(each(term))

    plan.read = reader
    write = item.write
    if write is not None:
        plan.write = lambda value: tuple(write_each(write, value))
    return plan


def tuple_plan(items: Sequence[Plan]) -> Plan:
    size = len(items)
    words = ", ".join(item.expected for item in items)
    plan = Plan(f"a tuple {{{words}}}", takes=frozenset({tuple}), parts=list(items))
    plan.heads = heads_of(items)
    plan.results = frozenset({tuple})
    first = items[0] if items and items[0].values is not None else None

    def fits(value: Any) -> bool:
        if not isinstance(value, tuple) or len(value) != size:
            return False
        return first is None or first.fits(value[0])

    plan.fits = fits
    plan.read = row_reader(items, [f"[{place}]" for place in range(size)], tuple)
    plan.write = row_writer(items)
    return plan


def row_reader(
    items: Sequence[Plan], steps: Sequence[str], make: Callable[[tuple[Any, ...]], Any]
) -> Reader:
    size = len(items)
    read_row = Row(items, steps).read

    def reader(term: Any) -> Any:
        if type(term) is not tuple or len(term) != size:
            raise Mismatch(f"a tuple of {size}", described(term))
        return make(read_row(term))

    return reader


def row_writer(items: Sequence[Plan]) -> Writer | None:
    if all(item.write is None for item in items):
        return None
    size = len(items)

    def writer(value: Any) -> Any:
        if len(value) != size:
            raise Mismatch(f"a tuple of {size}", described(value))
        terms = list(value)
        for place, item in enumerate(items):
            if item.write is not None:
                try:
                    terms[place] = item.write(terms[place])
                except Mismatch as error:
                    error.steps.append(f"[{place}]")
                    raise
        return tuple(terms)

    return writer


def heads_of(items: Sequence[Plan]) -> tuple[Head, ...]:
    """What such a tuple is known by: ``{ok, …}`` where its first element is one of some atoms."""
    size = len(items)
    values = items[0].values if items else None
    if values is None or not values.keys() <= ATOM_CLASSES:
        return ((None, None, size),)
    return tuple((kind, term, size) for kind, known in values.items() for term in known)
