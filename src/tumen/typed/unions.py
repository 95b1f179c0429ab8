"""Plans of unions: which member reads a term, which writes a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tumen._term import Atom, Mismatch
from tumen.typed.plans import (
    ATOM_CLASSES,
    MAPS,
    NOTHING,
    STRUCT,
    Head,
    Plan,
    Reader,
    Writer,
    described,
    unfinished,
)
from tumen.typed.shapes import MISSING


def late(plan: Plan) -> Reader:
    """The reader of a plan that may still be in the making: a type that contains itself."""
    return plan.read if plan.read is not unfinished else lambda term: plan.read(term)


def union_plan(members: Sequence[Plan]) -> Plan:
    plan = Plan(" or ".join(member.expected for member in members), parts=list(members))
    anything = any(member.exact is None for member in members)
    opened = [member for member in members if member.values is None and member.exact is not None]
    shut = [member for member in members if member.values is not None]
    table: dict[type, Reader] = {}
    exact: set[type] = set()
    for kind in frozenset().union(*(member.takes | member.also for member in opened + shut)):
        here = [member for member in opened if kind in member.takes]
        here = here or [member for member in opened if kind in member.also]
        known = {}
        for member in reversed(shut):
            known.update((member.values or {}).get(kind, {}))
        if len(here) == 1:
            reader = late(here[0])
            if kind is bytes:
                plan.decodes = here[0].decodes and not known
            if not known and here[0].exact is not None and kind in here[0].exact:
                exact.add(kind)
        else:
            reader = choose(kind, here, anything, plan)
        table[kind] = closed_or(known, reader) if known else reader
    plan.takes = frozenset(table)
    plan.exact = frozenset(exact)
    plan.results = frozenset().union(*(member.results for member in members))
    plan.fits = lambda value: any(member.fits(value) for member in members)

    def reader_of_all(term: Any) -> Any:
        reader = table.get(type(term))
        if reader is None:
            if anything:
                return term
            raise plan.refuse(term)
        return reader(term)

    plan.read = reader_of_all
    if any(member.write is not None for member in members):
        plan.write = union_writer(plan, members)
    return plan


def closed_or(known: dict[Any, Any], otherwise: Reader) -> Reader:
    def reader(term: Any) -> Any:
        value = known.get(term, MISSING)
        return otherwise(term) if value is MISSING else value

    return reader


def choose(kind: type, members: Sequence[Plan], anything: bool, union: Plan) -> Reader:
    """Between members that take the same class of terms."""

    def refuse(term: Any) -> Any:
        if anything:
            return term
        raise union.refuse(term)

    if not members:
        return refuse
    if kind in MAPS:
        return choose_map(members, refuse)
    if kind is tuple:
        return choose_tuple(members, refuse)
    raise ambiguous(members)


def ambiguous(members: Sequence[Plan]) -> TypeError:
    words = " and ".join(member.expected for member in members)
    return TypeError(f"a union in which a term does not say which member it is: {words}")


def choose_map(members: Sequence[Plan], refuse: Reader) -> Reader:
    by_struct: dict[Atom | None, Plan] = {}
    for member in members:
        if member.struct in by_struct:
            raise ambiguous([by_struct[member.struct], member])
        by_struct[member.struct] = member

    def reader(term: Any) -> Any:
        module = term.get(STRUCT)
        member = by_struct.get(module) if type(module) is Atom else None
        member = member or by_struct.get(None)
        return refuse(term) if member is None else member.read(term)

    return reader


def choose_tuple(members: Sequence[Plan], refuse: Reader) -> Reader:
    by_head: dict[Head, Plan] = {}
    for member in members:
        for head in member.heads:
            if head in by_head:
                raise ambiguous([by_head[head], member])
            by_head[head] = member

    def reader(term: Any) -> Any:
        size = len(term)
        member = None
        if size and type(term[0]) in ATOM_CLASSES:
            member = by_head.get((type(term[0]), term[0], size))
        member = member or by_head.get((None, None, size)) or by_head.get((None, None, None))
        return refuse(term) if member is None else member.read(term)

    return reader


def union_writer(union: Plan, members: Sequence[Plan]) -> Writer:
    first = [member for member in members if member.values is not None or member.heads]
    others = [member for member in members if member not in first]
    seen: set[type] = set()
    for member in others:
        if member.write is not None and seen & member.results:
            words = ", ".join(sorted(kind.__name__ for kind in seen & member.results))
            raise TypeError(f"a union in which a value of {words} may be written in two ways")
        seen |= member.results
    for member in reversed(others):
        if member.write is None and any(
            other.write is not None and other.results & member.results for other in others
        ):
            words = ", ".join(sorted(kind.__name__ for kind in member.results))
            raise TypeError(f"a union in which a value of {words} may be written in two ways")

    def writer(value: Any) -> Any:
        for member in (*first, *others):
            if member.fits(value):
                return value if member.write is None else member.write(value)
        raise Mismatch(union.expected, described(value))

    return writer


def other_none(inner: Plan, none: Atom) -> Plan:
    plan = Plan(f"{inner.expected} or the atom {none.text}", parts=[inner])
    plan.exact = NOTHING if inner.exact is None else inner.exact - {Atom}

    def reader(term: Any) -> Any:
        if type(term) is Atom and term == none:
            return None
        try:
            return inner.read(term)
        except Mismatch as error:
            if not error.steps:
                error.expected = plan.expected
            raise

    def writer(value: Any) -> Any:
        if value is None:
            return none
        return value if inner.write is None else inner.write(value)

    plan.read, plan.write = reader, writer
    return plan
