"""What a class with fields looks like as a term.

A *shape* are the fields of a class, whichever of the four kinds it is: dataclass, NamedTuple,
TypedDict, `msgspec.Struct`. A *form* is what a decorator of `tumen.typed` has said of it: Elixir
struct, Erlang record, plain map. `tumen.typed.compiler` makes readers and writers of
the two.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
import typing
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NotRequired,
    Required,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from tumen._term import Atom, FormWriter

__all__ = [
    "FORM_ATTRIBUTE",
    "AsAtom",
    "AsCharlist",
    "Field",
    "Form",
    "Key",
    "Shape",
    "atom_of",
    "form_of",
    "shape_of",
    "substituted",
    "text_of_atom",
]

# The name under which a class carries its form; _term looks for it when it encodes an object.
FORM_ATTRIBUTE = "__tumen_form__"

MISSING = dataclasses.MISSING
_RESERVED: dict[str, bool | None] = {"true": True, "false": False, "nil": None}
_RESERVED_TEXT: dict[Any, str] = {value: text for text, value in _RESERVED.items()}


def atom_of(text: str) -> Any:
    """The atom of that text as `tumen.decode` gives it: `True`, `False`, `None` or an `Atom`."""
    return _RESERVED[text] if text in _RESERVED else Atom(text)


def text_of_atom(term: Any) -> str | None:
    """The text of an atom, `True`, `False` or `None`; None for any other term."""
    if type(term) is Atom:
        return term.text
    return _RESERVED_TEXT[term] if term is None or type(term) is bool else None


# -- what stands in Annotated[…] ------------------------------------------------------------------


class AsAtom:
    """In `Annotated`: text that is an atom in Erlang.

    ``Annotated[str, AsAtom]``, any atom; ``Annotated[Literal["on", "off"], AsAtom]`` and
    ``Annotated[SomeEnum, AsAtom]``, those atoms; ``Annotated[SomeTypedDict, AsAtom]``, a map whose
    keys are atoms. The texts ``true``, ``false`` and ``nil`` are those atoms too.
    """


class AsCharlist:
    """In ``Annotated[str, AsCharlist]``: text that is a list of code points in Erlang."""


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """In `Annotated`: the name that a field has in the term, where it is not that in Python.

    ``admin: Annotated[bool, Key("admin?")]``
    """

    name: str


# -- forms ----------------------------------------------------------------------------------------


@dataclasses.dataclass(eq=False)
class Form:
    """How the instances of one class are written and read.

    kind:           ``"struct"``, ``"record"`` or ``"map"``
    tag:            name of the module (struct) or of the record; None for a map
    keys:           what the keys of the map are
    none:           the atom that stands for `None` where a field is optional
    forbid_unknown: whether a key that is no field is an error
    """

    kind: Literal["struct", "record", "map"]
    tag: Atom | None = None
    keys: Literal["atoms", "binaries"] = "atoms"
    none: Any = None
    forbid_unknown: bool = False
    # The class that `writer` is for; a subclass inherits the attribute, not the form.
    owner: type | None = None
    writer: FormWriter | None = None

    def prepare(self, cls: type) -> bool:
        """Makes the writer; False if the class is not registered itself. `encode` calls it for the
        first instance; TypeError for a class whose fields have no form."""
        if form_of(cls) is not self:
            return False
        # Late: the compiler is made of the modules that import this one.
        compiler = importlib.import_module("tumen.typed.compiler")
        self.writer = compiler.writer_of_form(cls, self)
        self.owner = cls
        return True


def form_of(cls: type) -> Form | None:
    """The form that the class itself was registered with."""
    form = cls.__dict__.get(FORM_ATTRIBUTE)
    return form if isinstance(form, Form) else None


# -- shapes ---------------------------------------------------------------------------------------


class Field(NamedTuple):
    name: str
    hint: Any
    # The name in the term.
    key: str
    required: bool
    # Whether the constructor takes it by keyword only.
    keyword: bool


@dataclasses.dataclass(frozen=True)
class Shape:
    kind: Literal["dataclass", "namedtuple", "typeddict", "msgspec"]
    cls: type
    fields: tuple[Field, ...]
    forbid_unknown: bool = False


def shape_of(cls: type, arguments: dict[Any, Any]) -> Shape | None:
    """The shape of the class, None if it has no fields that we know how to find.

    arguments: what stands for the type variables of the class.
    """
    if typing.is_typeddict(cls):
        return _typed_dict(cls, arguments)
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return _named_tuple(cls, arguments)
    if dataclasses.is_dataclass(cls):
        return _dataclass(cls, arguments)
    msgspec = sys.modules.get("msgspec")
    if msgspec is not None and issubclass(cls, msgspec.Struct):
        return _msgspec(cls, arguments)
    return None


def substituted(hint: Any, arguments: dict[Any, Any]) -> Any:
    """The hint with type variables replaced; one that stands for nothing stays."""
    if not arguments:
        return hint
    if isinstance(hint, TypeVar):
        return arguments.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    # A class has them too, but there they are declared, not used.
    if not parameters or (isinstance(hint, type) and get_origin(hint) is None):
        return hint
    return hint[tuple(arguments.get(parameter, parameter) for parameter in parameters)]


def _hints(cls: type, arguments: dict[Any, Any]) -> dict[str, Any]:
    """The resolved hints, the type variables of the class and of its bases replaced."""
    try:
        hints = get_type_hints(cls, include_extras=True)
    except NameError as error:
        raise TypeError(
            f"{cls.__qualname__}: an annotation cannot be resolved, {error}; "
            "its names must be global in its module"
        ) from error
    scopes: dict[type, dict[Any, Any]] = {}
    _enter_scopes(cls, arguments, scopes)
    for base in reversed(cls.__mro__):
        for name in inspect.get_annotations(base):
            if name in hints and _owner(cls, name) is base:
                hints[name] = substituted(hints[name], scopes.get(base, {}))
    return hints


def _owner(cls: type, name: str) -> type:
    """The class whose annotation of that name holds."""
    return next(base for base in cls.__mro__ if name in inspect.get_annotations(base))


def _enter_scopes(cls: type, arguments: dict[Any, Any], scopes: dict[type, dict[Any, Any]]) -> None:
    """What stands for the type variables of the class and of each base: one variable may stand for
    different types in the two."""
    scopes[cls] = arguments
    for base in cls.__dict__.get("__orig_bases__", ()):
        origin = get_origin(base)
        if isinstance(origin, type) and origin is not Generic:
            given = [substituted(argument, arguments) for argument in get_args(base)]
            _enter_scopes(origin, dict(zip(_parameters(origin), given, strict=False)), scopes)


def _parameters(cls: type) -> tuple[Any, ...]:
    return tuple(getattr(cls, "__parameters__", ()))


def _field(
    name: str, hint: Any, required: bool, *, key: str | None = None, keyword: bool = False
) -> Field:
    if get_origin(hint) is Annotated:
        for extra in hint.__metadata__:
            if isinstance(extra, Key):
                key = extra.name
    return Field(name, hint, name if key is None else key, required, keyword)


def _dataclass(cls: type, arguments: dict[Any, Any]) -> Shape:
    hints = _hints(cls, arguments)
    for name, hint in hints.items():
        if isinstance(hint, dataclasses.InitVar):
            raise TypeError(f"{cls.__qualname__}.{name}: an InitVar is in no term")
    fields = [
        _field(
            field.name,
            hints[field.name],
            field.default is MISSING and field.default_factory is MISSING,
            keyword=bool(field.kw_only),
        )
        for field in dataclasses.fields(cls)
        if field.init
    ]
    return Shape("dataclass", cls, tuple(fields))


def _named_tuple(cls: Any, arguments: dict[Any, Any]) -> Shape:
    hints = _hints(cls, arguments)
    fields = [
        _field(name, hints.get(name, Any), name not in cls._field_defaults) for name in cls._fields
    ]
    return Shape("namedtuple", cls, tuple(fields))


def _typed_dict(cls: Any, arguments: dict[Any, Any]) -> Shape:
    fields = []
    for name, whole in _hints(cls, arguments).items():
        # The interpreter's own sets are wrong where annotations are texts; the hints are not.
        required, hint = name in cls.__required_keys__, whole
        while get_origin(hint) in (Required, NotRequired):
            required, hint = get_origin(hint) is Required, get_args(hint)[0]
        fields.append(_field(name, hint, required, keyword=True))
    return Shape("typeddict", cls, tuple(fields))


def _msgspec(cls: Any, arguments: dict[Any, Any]) -> Shape:
    structs = importlib.import_module("msgspec.structs")
    parameters = inspect.signature(cls).parameters
    fields = []
    for info in structs.fields(cls):
        key = None if info.encode_name == info.name else info.encode_name
        keyword = parameters[info.name].kind is inspect.Parameter.KEYWORD_ONLY
        hint = substituted(info.type, arguments)
        fields.append(_field(info.name, hint, info.required, key=key, keyword=keyword))
    forbid = bool(cls.__struct_config__.forbid_unknown_fields)
    return Shape("msgspec", cls, tuple(fields), forbid_unknown=forbid)
