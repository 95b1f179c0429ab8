"""msgspec.Struct as Elixir structs, records and maps; and what of msgspec holds here."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

import msgspec
import pytest

import tumen
from tumen import Atom, DecodeError, EncodeError, convert, decode, encode
from tumen.typed import AsAtom, Key

T = TypeVar("T")
STRUCT = Atom("__struct__")


@tumen.struct("Elixir.Shop.Order")
class Order(msgspec.Struct, frozen=True):
    id: int
    lines: list[Line]
    state: Annotated[str, AsAtom] = "open"
    paid: Annotated[bool, Key("paid?")] = False


@tumen.record("line")
class Line(msgspec.Struct):
    sku: str
    count: int = 1
    note: str | None = None


@tumen.mapped(keys="binaries")
class Renamed(msgspec.Struct, rename="camel", kw_only=True, forbid_unknown_fields=True):
    first_name: str
    last_name: str | msgspec.UnsetType = msgspec.UNSET


class Plain(msgspec.Struct, tag="plain", array_like=True):
    x: int


class Limited(msgspec.Struct):
    age: Annotated[int, msgspec.Meta(ge=0, lt=150)]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=5, pattern="^[a-z]*$")] = "a"
    steps: Annotated[int, msgspec.Meta(multiple_of=5)] | None = None
    tags: Annotated[list[str], msgspec.Meta(max_length=2)] = []
    ratio: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0


class Even(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        if self.n % 2:
            raise ValueError(f"{self.n} is odd")


class Page(msgspec.Struct, Generic[T]):
    items: list[T]


def test_struct_of_msgspec_is_an_elixir_struct() -> None:
    order = Order(1, [Line("a")], "paid", True)
    term = {
        STRUCT: Atom("Elixir.Shop.Order"),
        Atom("id"): 1,
        Atom("lines"): [(Atom("line"), b"a", 1, Atom("undefined"))],
        Atom("state"): Atom("paid"),
        Atom("paid?"): True,
    }
    assert decode(encode(order)) == term
    assert decode(encode(order), as_=Order) == order
    assert convert(term, Order) == order
    del term[Atom("state")]
    assert convert(term, Order) == Order(1, [Line("a")], "open", True)


def test_error_leads_into_nested_structs() -> None:
    term = {
        STRUCT: Atom("Elixir.Shop.Order"),
        Atom("id"): 1,
        Atom("lines"): [(Atom("line"), b"a", 1.5, Atom("undefined"))],
    }
    with pytest.raises(DecodeError) as caught:
        convert(term, Order)
    assert caught.value.path == "$.lines[0].count"
    with pytest.raises(EncodeError) as refused:
        encode([Order(1, [Line("a", 1, object())])])  # type: ignore[arg-type]
    assert refused.value.path == "$[0].lines[0].note"


def test_names_of_rename_are_the_keys_and_unset_is_left_out() -> None:
    assert decode(encode(Renamed(first_name="A"))) == {b"firstName": b"A"}
    both = {b"firstName": b"A", b"lastName": b"B"}
    assert convert(both, Renamed) == Renamed(first_name="A", last_name="B")
    assert convert({b"firstName": b"A"}, Renamed).last_name is msgspec.UNSET
    assert decode(encode(Renamed(first_name="A", last_name="B"))) == both


def test_unknown_fields_are_forbidden_where_the_struct_says_so() -> None:
    with pytest.raises(DecodeError, match="first_name"):
        convert({b"firstName": b"A", b"first_name": b"B"}, Renamed)


def test_struct_that_nobody_registered_reads_a_map_and_does_not_encode() -> None:
    assert convert({Atom("x"): 1}, Plain) == Plain(1)
    assert decode(encode({"x": 1}), as_=Plain) == Plain(1)
    with pytest.raises(EncodeError) as caught:
        encode([Plain(1)])
    assert caught.value.path == "$[0]"
    assert "tumen.struct" in caught.value.hint


@pytest.mark.parametrize(
    ("term", "path"),
    [
        ({b"age": -1}, "$.age"),
        ({b"age": 150}, "$.age"),
        ({b"age": 1, b"name": b""}, "$.name"),
        ({b"age": 1, b"name": b"abcdef"}, "$.name"),
        ({b"age": 1, b"name": b"A"}, "$.name"),
        ({b"age": 1, b"steps": 4}, "$.steps"),
        ({b"age": 1, b"tags": [b"", b"", b""]}, "$.tags"),
        ({b"age": 1, b"ratio": 0}, "$.ratio"),
        ({b"age": 1, b"ratio": 1.5}, "$.ratio"),
    ],
)
def test_limits_of_meta_hold(term: dict[Any, Any], path: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(encode(term), as_=Limited)
    assert caught.value.path == path


def test_values_within_the_limits_of_meta_are_read() -> None:
    term = {b"age": 0, b"name": b"abcde", b"steps": 10, b"tags": [b"x"], b"ratio": 1}
    assert decode(encode(term), as_=Limited) == Limited(0, "abcde", 10, ["x"], 1.0)
    assert decode(encode({b"age": 1, b"steps": None}), as_=Limited) == Limited(1)


def test_error_of_post_init_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="3 is odd") as caught:
        convert([{b"n": 2}, {b"n": 3}], list[Even])
    assert caught.value.path == "$[1]"


def test_generic_struct_is_read_for_its_argument() -> None:
    assert convert({b"items": [b"a"]}, Page[str]) == Page(["a"])
    with pytest.raises(DecodeError):
        convert({b"items": [1]}, Page[str])


def test_union_of_structs_goes_by_their_modules() -> None:
    order = Order(1, [])
    assert decode(encode([order, Line("a")]), as_=list[Order | Line | Plain]) == [order, Line("a")]
    assert convert({b"x": 1}, Order | Line | Plain) == Plain(1)
