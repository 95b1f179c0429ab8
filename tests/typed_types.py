"""Classes that the tests of tumen.typed share; at the top of a module, so that hints resolve."""

from __future__ import annotations

import enum
from dataclasses import KW_ONLY, dataclass, field
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    TypedDict,
    TypeVar,
)

import tumen
from tumen import Atom, Pid
from tumen.typed import AsAtom, AsCharlist, Key

T = TypeVar("T")
UserId = NewType("UserId", int)


class Color(enum.Enum):
    RED = Atom("red")
    NIL = None
    NUMBER = 7
    TEXT = "text"


class Level(enum.StrEnum):
    LOW = "low"
    HIGH = "high"


@tumen.struct("Elixir.Shop.Address")
@dataclass(frozen=True)
class Address:
    city: str
    zip: str | None = None


@tumen.struct("Elixir.Shop.User")
@dataclass(slots=True)
class User:
    id: UserId
    name: str
    emails: list[str] = field(default_factory=list)
    home: Address | None = None
    level: Annotated[Level, AsAtom] = Level.LOW
    admin: Annotated[bool, Key("admin?")] = False


@tumen.record("item")
@dataclass
class Item:
    sku: str
    price: float | None
    kind: Annotated[Literal["new", "used"] | None, AsAtom] = None
    inside: list[Item] = field(default_factory=list)


@tumen.record("point", none="nil")
class Point(NamedTuple):
    x: int
    y: int | None


@tumen.mapped(keys="binaries", forbid_unknown=True)
@dataclass
class Options:
    name: str
    _: KW_ONLY
    retries: int = 3
    codes: Annotated[str, AsCharlist] = ""


@dataclass
class Plain:
    """Not registered: reads only."""

    x: int
    y: Any = None


@dataclass
class Even:
    n: int

    def __post_init__(self) -> None:
        if self.n % 2:
            raise ValueError(f"{self.n} is odd")


@dataclass
class Page(Generic[T]):
    items: list[T]
    next: Page[T] | None = None


@dataclass
class Chapter(Page[list[T]], Generic[T]):
    """The variable of the base stands for another type than its own of the same name."""

    head: T | None = None


@dataclass
class Book(Chapter[str]):
    title: str = ""


class Pair(NamedTuple):
    left: int
    right: str


class Settings(TypedDict):
    name: str
    depth: NotRequired[int]
    inner: NotRequired[list[Settings]]


@tumen.struct("Elixir.Shop.Everything")
@dataclass
class Everything:
    number: int
    ratio: float
    flag: bool
    text: str
    data: bytes
    atom: Atom
    pid: Pid
    names: set[str]
    scores: dict[str, float]
    place: tuple[int, str]
    sizes: tuple[int, ...]
    options: Annotated[Settings, AsAtom]
    level: Level
    mark: Annotated[str, AsAtom]
    letters: Annotated[str, AsCharlist]
    other: Any
    color: Color = Color.RED


@tumen.struct("Elixir.Shop.Ring")
@dataclass
class Ring:
    next: Ring | None = None
