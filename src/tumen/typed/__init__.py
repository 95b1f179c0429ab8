"""Terms as values of a type: ``decode(data, as_=T)``, `convert`, and classes that encode.

::

    @tumen.struct("Elixir.Shop.Order")
    @dataclass
    class Order:
        id: int
        items: list[str]
        state: Annotated[Literal["open", "paid"], AsAtom] = "open"

    order = tumen.decode(data, as_=Order)
    node.cast(server, order)

========================================  ========================================================
in Python                                 in Erlang
========================================  ========================================================
`int`, `bool`, `None`, `float`            the same; an integer is a float too, never the reverse
`str`, `bytes`, `memoryview`              a binary; for `str` it must be UTF-8
``Annotated[str, AsAtom]``                an atom;  ``AsCharlist``: a list of code points
`Atom`, `Pid`, `Reference` …              the same
``list[T]``, ``Sequence[T]``              a list
``tuple[A, B]``, ``tuple[T, ...]``        a tuple of two, of any size
`NamedTuple`                              a tuple of that size
``set[T]``, ``frozenset[T]``              a list of different elements; a MapSet or a set of OTP's
                                          `sets` is read too
``dict[K, V]``, ``Mapping[K, V]``         a map
`TypedDict`                               a map with atoms or binaries as keys; written with
                                          binaries, with ``Annotated[T, AsAtom]`` with atoms
`Literal`, `Enum`                         what its value is as a term: a text is a binary, and with
                                          ``Annotated[T, AsAtom]`` an atom
``A | B``                                 what the term is; it has to say so by itself: by its
                                          kind, its ``__struct__``, or a tuple by its size and an
                                          atom that stands first
`Any`, `object`                           anything, as `decode` gives it
class with `struct`                       an Elixir struct of that module
class with `record`                       a record: ``{name, Field, …}``
class with `mapped`                       a map with atoms (or binaries) as keys
other dataclass, `msgspec.Struct`         a map with atoms or binaries as keys; reads only
========================================  ========================================================

Nothing is guessed: a term that is not of its type is a `DecodeError` with path, ``expected`` and
``found``. A key of a map that is no field is passed over, unless the class forbids that; a field
that is missing gets its default, and without one that is an error. A ValueError or TypeError of the
class's own ``__post_init__`` is a `DecodeError` too. Of `msgspec.Struct`, ``rename``,
``forbid_unknown_fields``, `msgspec.Meta` and ``UNSET`` hold; ``tag``, ``array_like`` and
``omit_defaults`` are about the formats of msgspec itself.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

from tumen._term import Atom
from tumen.typed.compiler import plan_of
from tumen.typed.plans import UNDEFINED, read
from tumen.typed.shapes import FORM_ATTRIBUTE, AsAtom, AsCharlist, Form, Key, form_of

__all__ = ["AsAtom", "AsCharlist", "Key", "convert", "mapped", "record", "struct"]

T = TypeVar("T")
ClassT = TypeVar("ClassT", bound=type)


@overload
def convert(term: Any, as_: type[T], /) -> T: ...
@overload
def convert(term: Any, as_: Any, /) -> Any: ...
def convert(term: Any, as_: Any, /) -> Any:
    """A term that is decoded already, a message or a reply, as a value of the type `as_`.

    DecodeError where the term is not of that type, TypeError for a type that no term can have. The
    value may share immutable parts with the term, never a list or a dict of its own type.
    """
    return read(plan_of(as_), term)


def struct(module: str | Atom, /, *, forbid_unknown: bool = False) -> Callable[[ClassT], ClassT]:
    """Class decorator: instances are Elixir structs of that module, ``"Elixir.Shop.Order"``.

    For dataclasses, NamedTuples and `msgspec.Struct`. A field is the key of its name, an atom;
    `Key` gives another. forbid_unknown: a key that is no field is an error, not passed over.
    """
    tag = named(module)
    if not tag.text.startswith("Elixir.") and tag.text[:1].isupper():
        raise ValueError(f"the module {tag.text} of Elixir is the atom Elixir.{tag.text}")
    return registered(Form("struct", tag, forbid_unknown=forbid_unknown))


def record(
    name: str | Atom, /, *, none: Literal["undefined", "nil"] = "undefined"
) -> Callable[[ClassT], ClassT]:
    """Class decorator: instances are Erlang records ``{name, Field, …}``, fields in their order.

    none: the atom that is `None` in a field whose type is optional.
    """
    tag = named(name)
    if none not in ("undefined", "nil"):
        raise ValueError(f'none must be "undefined" or "nil", not {none!r}')
    return registered(Form("record", tag, none=UNDEFINED if none == "undefined" else None))


def mapped(
    *, keys: Literal["atoms", "binaries"] = "atoms", forbid_unknown: bool = False
) -> Callable[[ClassT], ClassT]:
    """Class decorator: instances are plain maps, their keys the fields' names as atoms or binaries.

    forbid_unknown: a key that is no field is an error, not passed over.
    """
    if keys not in ("atoms", "binaries"):
        raise ValueError(f'keys must be "atoms" or "binaries", not {keys!r}')
    return registered(Form("map", keys=keys, forbid_unknown=forbid_unknown))


def named(name: str | Atom) -> Atom:
    return name if isinstance(name, Atom) else Atom(name)


def registered(form: Form) -> Callable[[ClassT], ClassT]:
    def register(cls: ClassT) -> ClassT:
        if not isinstance(cls, type):
            raise TypeError(f"{cls!r} is no class")
        if typing.is_typeddict(cls):
            raise TypeError(f"{cls.__qualname__}: the values of a TypedDict are plain dicts")
        if form_of(cls) is not None:
            raise TypeError(f"{cls.__qualname__} has a form already")
        setattr(cls, FORM_ATTRIBUTE, form)
        return cls

    return register
