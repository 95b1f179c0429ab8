"""The plan of a type: made once, and kept."""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import functools
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, get_args, get_origin

from tumen._term import Atom, FormWriter
from tumen.typed.classes import (
    KEYS_OF,
    MapReader,
    form_writer,
    header,
    is_unset,
    maker,
    record_reader,
    typed_dict_writer,
)
from tumen.typed.containers import (
    dict_plan,
    list_plan,
    row_reader,
    row_writer,
    set_plan,
    tuple_of_any_size,
    tuple_plan,
)
from tumen.typed.plans import (
    AS_ATOM,
    AS_CHARLIST,
    LEAVES,
    NOTHING,
    Plan,
    enumeration,
    literal,
)
from tumen.typed.shapes import AsAtom, AsCharlist, Field, Form, form_of, shape_of
from tumen.typed.unions import other_none, union_plan

# Plans of generic aliases and unions that are kept, count. A program names a few dozen; one that
# makes types as it runs must not grow by them.
ALIASES_MAX: Final = 256

PLAN_ATTRIBUTE: Final = "__tumen_plan__"

SEQUENCES: Final[frozenset[Any]] = frozenset(
    {
        list,
        collections.abc.Sequence,
        collections.abc.MutableSequence,
        collections.abc.Collection,
        collections.abc.Iterable,
    }
)
SETS: Final[frozenset[Any]] = frozenset({set, collections.abc.Set, collections.abc.MutableSet})
MAPPINGS: Final[frozenset[Any]] = frozenset(
    {dict, collections.abc.Mapping, collections.abc.MutableMapping}
)
TRANSPARENT: Final[tuple[Any, ...]] = (Final, typing.Required, typing.NotRequired)


class Compiler:
    """Makes the plan of one type and of all that are in it; `made` knows those in the making."""

    def __init__(self) -> None:
        self.made: dict[Any, Plan] = {}

    def publish(self) -> None:
        """Only what is whole is kept: another thread may use it at once."""
        for key, plan in self.made.items():
            if isinstance(key, type):
                setattr(key, PLAN_ATTRIBUTE, plan)

    def plan(self, hint: Any, mark: Any = None) -> Plan:
        """mark: AsAtom or AsCharlist, which the type must have a use for."""
        origin, arguments = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return self.annotated(hint, mark)
        if origin is Literal:
            return literal(arguments, self.as_atom(hint, mark))
        if origin in (typing.Union, types.UnionType):
            return self.union(arguments, mark)
        if origin in TRANSPARENT:
            return self.plan(arguments[0], mark)
        if isinstance(hint, typing.NewType):
            return self.plan(hint.__supertype__, mark)
        if isinstance(hint, TypeVar):
            return self.variable(hint, mark)
        if type(hint).__name__ == "TypeAliasType":
            return self.plan(hint.__value__, mark)
        if hint is str and mark is not None:
            return AS_ATOM if mark is AsAtom else AS_CHARLIST
        if origin is None and is_hashable(hint) and hint in LEAVES:
            self.unmarked(hint, mark)
            return LEAVES[hint]
        cls = hint if origin is None else origin
        if not isinstance(cls, type) or not has_fields(cls):
            self.unmarked(hint, mark)
            return self.container(hint, cls, arguments)
        if issubclass(cls, enum.Enum):
            return enumeration(cls, self.as_atom(hint, mark))
        if not typing.is_typeddict(cls):
            self.unmarked(hint, mark)
        return self.cls(cls, arguments, self.as_atom(hint, mark))

    def unmarked(self, hint: Any, mark: Any) -> None:
        if mark is not None:
            raise TypeError(f"{mark.__name__} says nothing about {hint!r}")

    def as_atom(self, hint: Any, mark: Any) -> bool:
        if mark is not AsAtom:
            self.unmarked(hint, mark)
        return mark is AsAtom

    def annotated(self, hint: Any, mark: Any) -> Plan:
        limits = []
        for extra in hint.__metadata__:
            if extra in (AsAtom, AsCharlist):
                mark = extra
            elif isinstance(extra, (AsAtom, AsCharlist)):
                mark = type(extra)
            elif type(extra).__module__.partition(".")[0] == "msgspec":
                limits += limits_of(extra)
        plan = self.plan(hint.__origin__, mark)
        return limited(plan, limits) if limits else plan

    def variable(self, hint: TypeVar, mark: Any) -> Plan:
        """A type variable that nobody has replaced."""
        if hint.__constraints__:
            return self.union(hint.__constraints__, mark)
        return self.plan(Any if hint.__bound__ is None else hint.__bound__, mark)

    def union(self, members: Sequence[Any], mark: Any) -> Plan:
        # msgspec's mark of a field that is not there: nothing that comes in a term.
        members = [member for member in members if not is_unset(member)]
        plans = [self.plan(member, None if member is type(None) else mark) for member in members]
        return plans[0] if len(plans) == 1 else union_plan(plans)

    def container(self, hint: Any, cls: Any, arguments: tuple[Any, ...]) -> Plan:
        if cls is tuple:
            return self.tuple_of(hint, arguments)
        if cls in SEQUENCES:
            return list_plan(self.plan(arguments[0] if arguments else Any))
        if cls in SETS or cls is frozenset:
            item = self.plan(arguments[0] if arguments else Any)
            return set_plan(item, set if cls in SETS else frozenset)
        if cls in MAPPINGS:
            key, value = arguments or (Any, Any)
            return dict_plan(self.plan(key), self.plan(value))
        if isinstance(hint, (str, typing.ForwardRef)):
            raise TypeError(f"{hint!r} is a name that is not resolved")
        raise TypeError(f"{hint!r} has no form as a term")

    def tuple_of(self, hint: Any, arguments: tuple[Any, ...]) -> Plan:
        if hint is tuple or hint is typing.Tuple:  # noqa: UP006
            return tuple_of_any_size(LEAVES[Any])
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple_of_any_size(self.plan(arguments[0]))
        return tuple_plan([self.plan(argument) for argument in arguments])

    def cls(self, cls: type, arguments: tuple[Any, ...], as_atom: bool) -> Plan:
        key: Any = (cls, arguments, as_atom) if arguments or as_atom else cls
        known = self.made.get(key) or (cls.__dict__.get(PLAN_ATTRIBUTE) if key is cls else None)
        if known is not None:
            return known
        parameters = getattr(cls, "__parameters__", ())
        shape = shape_of(cls, dict(zip(parameters, arguments, strict=False)))
        assert shape is not None, "has_fields has said so"
        form = form_of(cls)
        plan = self.made[key] = header(shape, form)
        if form is None and shape.kind == "typeddict":
            # Set before the fields are known: one of them may hold this type again.
            plan.write = typed_dict_writer(shape, plan.parts, as_atom)
        for field_ in shape.fields:
            plan.parts.append(self.field(field_, form))
        if form is not None and form.kind == "record":
            assert form.tag is not None
            plan.read = record_reader(plan, shape, form.tag)
        elif form is None and shape.kind == "namedtuple":
            steps = [f"[{place}]" for place in range(len(shape.fields))]
            plan.read = row_reader(plan.parts, steps, maker(shape).make)
            plan.write = row_writer(plan.parts)
        else:
            forbid_unknown = shape.forbid_unknown or (form is not None and form.forbid_unknown)
            keys = "either" if form is None else form.keys
            keys = "atoms" if as_atom else keys
            tag = None if form is None else form.tag
            plan.read = MapReader(plan, shape, KEYS_OF[keys], tag, forbid_unknown).reader()
        return plan

    def field(self, field_: Field, form: Form | None) -> Plan:
        if form is None or form.none is None:
            return self.plan(field_.hint)
        return self.undefined(field_.hint, form.none)

    def undefined(self, hint: Any, none: Atom) -> Plan:
        """The plan of a field in which another atom than nil stands for None."""
        bare: Any = hint
        extras: tuple[Any, ...] = ()
        if get_origin(hint) is Annotated:
            bare, extras = hint.__origin__, hint.__metadata__
        if get_origin(bare) not in (typing.Union, types.UnionType):
            return self.plan(hint)
        members = [member for member in get_args(bare) if member is not type(None)]
        if len(members) == len(get_args(bare)):
            return self.plan(hint)
        rest: Any = typing.Union[tuple(members)]  # noqa: UP007
        return other_none(self.plan(Annotated[(rest, *extras)] if extras else rest), none)


def is_hashable(hint: Any) -> bool:
    try:
        hash(hint)
    except TypeError:
        return False
    return True


def has_fields(cls: type) -> bool:
    """Whether a plan is made of the class itself, not of what it contains."""
    msgspec = sys.modules.get("msgspec")
    return (
        issubclass(cls, enum.Enum)
        or dataclasses.is_dataclass(cls)
        or typing.is_typeddict(cls)
        or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
        or (msgspec is not None and issubclass(cls, msgspec.Struct))
    )


# -- the limits of msgspec.Meta -------------------------------------------------------------------

Limit: TypeAlias = tuple[str, Callable[[Any], bool]]


def limits_of(meta: Any) -> list[Limit]:
    """What a `msgspec.Meta` demands of a value, in words and as a test."""
    limits: list[Limit] = []
    for name, sign, test in (
        ("gt", ">", operator.gt),
        ("ge", ">=", operator.ge),
        ("lt", "<", operator.lt),
        ("le", "<=", operator.le),
    ):
        bound = getattr(meta, name, None)
        if bound is not None:
            limits.append((f"{sign} {bound}", functools.partial(flipped, test, bound)))
    multiple = getattr(meta, "multiple_of", None)
    if multiple is not None:
        limits.append((f"a multiple of {multiple}", lambda value: value % multiple == 0))
    pattern = getattr(meta, "pattern", None)
    if pattern is not None:
        limits.append((f"matching {pattern!r}", lambda value: bool(re.search(pattern, value))))
    least = getattr(meta, "min_length", None)
    if least is not None:
        limits.append((f"of length >= {least}", lambda value: len(value) >= least))
    most = getattr(meta, "max_length", None)
    if most is not None:
        limits.append((f"of length <= {most}", lambda value: len(value) <= most))
    return limits


def flipped(test: Callable[[Any, Any], bool], bound: Any, value: Any) -> bool:
    return test(value, bound)


def limited(inner: Plan, limits: Sequence[Limit]) -> Plan:
    words = ", ".join(word for word, _ in limits)
    plan = dataclasses.replace(
        inner, expected=f"{inner.expected} {words}", exact=NOTHING, decodes=False
    )
    plan.parts = [*inner.parts, inner]

    def reader(term: Any) -> Any:
        value = inner.read(term)
        # None is the other half of an optional type, which the limits are not about.
        if value is not None and not all(test(value) for _, test in limits):
            raise plan.refuse(term)
        return value

    plan.read = reader
    return plan


# -- the face -------------------------------------------------------------------------------------


def plan_of(hint: Any) -> Plan:
    """The plan of a type; TypeError for one that has no form as a term."""
    if isinstance(hint, type):
        known = LEAVES.get(hint) or hint.__dict__.get(PLAN_ATTRIBUTE)
        return known if isinstance(known, Plan) else compiled(hint)
    return kept(hint) if is_hashable(hint) else compiled(hint)


def compiled(hint: Any) -> Plan:
    compiler = Compiler()
    plan = compiler.plan(hint)
    compiler.publish()
    return plan


kept = functools.lru_cache(maxsize=ALIASES_MAX)(compiled)


def writer_of_form(cls: type, form: Form) -> FormWriter:
    """What takes the instances of the class apart."""
    shape = shape_of(cls, {})
    if shape is None:
        raise TypeError(f"{cls.__qualname__} has no fields: it is no dataclass")
    return form_writer(shape, form, plan_of(cls).parts)
