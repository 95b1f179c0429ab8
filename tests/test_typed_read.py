"""Terms read as values of a type: every kind of type, and what is refused."""

from __future__ import annotations

import collections.abc
import datetime as dt
import enum
import typing
from dataclasses import InitVar, dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies import terms
from tumen import (
    Atom,
    BitString,
    DecodeError,
    ImproperList,
    LimitExceeded,
    Pid,
    Reference,
    TermMap,
    convert,
    decode,
    encode,
)
from tumen.typed import AsAtom, AsCharlist
from typed_types import (
    Address,
    Book,
    Chapter,
    Color,
    Even,
    Everything,
    Item,
    Level,
    Options,
    Page,
    Pair,
    Plain,
    Point,
    Ring,
    Settings,
    User,
    UserId,
)

OK, ERROR = Atom("ok"), Atom("error")
STRUCT = Atom("__struct__")
PID = Pid("a@b", 1, 2, 3)
REF = Reference("a@b", 1, (2, 3))


def both(term: Any, as_: Any, **options: Any) -> Any:
    """The value by decode, which convert has to make as well."""
    value = decode(encode(term), as_=as_, **options)
    again = convert(term, as_)
    assert type(again) is type(value)
    assert again == value
    return value


def refusal(term: Any, as_: Any) -> DecodeError:
    """The error, the same from bytes and from the term."""
    with pytest.raises(DecodeError) as first:
        decode(encode(term), as_=as_)
    with pytest.raises(DecodeError) as second:
        convert(term, as_)
    assert first.value.path == second.value.path
    error = first.value
    assert error.offset is None
    assert error.expected is not None
    assert error.found is not None
    assert str(error) == f"expected {error.expected}, found {error.found} at {error.path}"
    return error


# -- values without parts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "as_", "value"),
    [
        (1, int, 1),
        (10**40, int, 10**40),
        (1.5, float, 1.5),
        (1, float, 1.0),
        (True, bool, True),
        (None, type(None), None),
        (b"abc", bytes, b"abc"),
        (b"abc", bytearray, bytearray(b"abc")),
        (b"abc", str, "abc"),
        ("é".encode(), str, "é"),
        (b"", str, ""),
        (OK, Atom, OK),
        (PID, Pid, PID),
        (REF, Reference, REF),
        (BitString(b"\x80", 1), BitString, BitString(b"\x80", 1)),
        (b"a", BitString, BitString(b"a", 8)),
        (ImproperList([1], 2), ImproperList, ImproperList([1], 2)),
        ({1: 2}, TermMap, TermMap({1: 2})),
        ([1, {2: b"3"}], Any, [1, {2: b"3"}]),
        ([1, {2: b"3"}], object, [1, {2: b"3"}]),
        (OK, Annotated[str, AsAtom], "ok"),
        (True, Annotated[str, AsAtom], "true"),
        (None, Annotated[str, AsAtom], "nil"),
        ([104, 233], Annotated[str, AsCharlist], "hé"),
        ([], Annotated[str, AsCharlist], ""),
        (7, UserId, 7),
        (7, Annotated[int, "a note"], 7),
    ],
)
def test_value_is_read(term: Any, as_: Any, value: Any) -> None:
    found = both(term, as_)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("term", "as_", "expected", "found"),
    [
        (1.0, int, "an integer", "the float 1.0"),
        (True, int, "an integer", "the atom true"),
        (b"1", int, "an integer", "the binary '1'"),
        (True, float, "a float", "the atom true"),
        (10**400, float, "a float", "the integer"),
        (1, bool, "true or false", "the integer 1"),
        (None, bool, "true or false", "the atom nil"),
        (False, type(None), "the atom nil", "the atom false"),
        (OK, str, "a binary of UTF-8", "the atom ok"),
        (b"\xff", str, "a binary of UTF-8", r"the binary b'\xff'"),
        (bytes(100), int, "an integer", "a binary of 100 bytes"),
        ([104, 105], str, "a binary of UTF-8", "a list of 2"),
        ([104], bytes, "a binary", "a list of 1"),
        (b"ok", Atom, "an atom", "the binary 'ok'"),
        (True, Atom, "an atom", "the atom true"),
        (REF, Pid, "a pid", "a reference"),
        (b"ok", Annotated[str, AsAtom], "an atom", "the binary 'ok'"),
        ([-1], Annotated[str, AsCharlist], "a list of code points", "a list of 1"),
        ([0xD800], Annotated[str, AsCharlist], "a list of code points", "a list of 1"),
        ([b"a"], Annotated[str, AsCharlist], "a list of code points", "a list of 1"),
        (b"abc", Annotated[str, AsCharlist], "a list of code points", "the binary 'abc'"),
        ((OK, 1), int, "an integer", "a tuple of 2, {ok, …}"),
        ({STRUCT: Atom("Elixir.A.B")}, int, "an integer", "%A.B{}"),
        ({}, int, "an integer", "a map of 0"),
        (ImproperList([1], 2), list[int], "a list", "an improper list of 1"),
    ],
)
def test_value_of_another_kind_is_refused(term: Any, as_: Any, expected: str, found: str) -> None:
    error = refusal(term, as_)
    assert error.path == "$"
    assert error.expected == expected
    assert (error.found or "").startswith(found)


def test_hints_name_the_type_that_would_fit() -> None:
    assert "AsAtom" in refusal(OK, str).hint
    assert "AsCharlist" in refusal([104], str).hint
    assert "AsAtom" in refusal(OK, Literal["ok"]).hint
    assert "bytes" in refusal(b"abc", list[int]).hint


def test_large_binary_can_be_a_view() -> None:
    data = encode([bytes(70_000)])
    (view,) = decode(data, as_=list[memoryview], views=True)
    assert type(view) is memoryview
    assert decode(data, as_=list[bytes], views=True) == [bytes(70_000)]
    assert decode(data, as_=list[str], views=True) == ["\0" * 70_000]


def test_text_and_bytes_do_not_depend_on_the_binaries_option() -> None:
    data = encode({"text": "é", "data": b"a"})

    @dataclass
    class Local:
        text: str
        data: bytes

    for binaries in ("bytes", "utf8"):
        made = decode(data, as_=Local, binaries=binaries)  # type: ignore[call-overload]
        assert (made.text, made.data) == ("é", b"a")


def test_text_beside_bytes_is_text_too() -> None:
    as_ = list[tuple[str, bytes, str | None, Level | str, Annotated[str, "note"]]]
    data = "é".encode()
    assert both([(data, data, data, data, data)], as_) == [("é", data, "é", "é", "é")]
    assert both([(data, data, None, b"", b"")], as_) == [("é", data, None, "", "")]
    for place in (0, 2, 3, 4):
        row = [b"", b"", b"", b"", b""]
        row[place] = b"\xff"
        assert refusal([tuple(row)], as_).path == f"$[0][{place}]"


def test_error_names_some_of_many_values() -> None:
    many = Literal[tuple(range(100))]  # type: ignore[valid-type]
    assert refusal(100, many).expected.endswith("the integer 15 or one of 84 others")  # type: ignore[union-attr]


def test_whatever_is_typed_any_stays_as_decode_gives_it() -> None:
    term = {Atom("x"): 1, Atom("y"): [b"text", {b"k": b"v"}]}
    assert both(term, Plain) == Plain(1, [b"text", {b"k": b"v"}])
    assert both({b"a": (b"x", b"y")}, dict[str, tuple[str, Any]]) == {"a": ("x", b"y")}


# -- closed sets of values ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "as_", "value"),
    [
        (b"a", Literal["a", 1], "a"),
        (1, Literal["a", 1], 1),
        (True, Literal[True], True),
        (None, Literal[1] | None, None),
        (b"\xff", Literal[b"\xff"], b"\xff"),
        (b"ab", Literal[b"ab"], b"ab"),
        (Atom("a"), Annotated[Literal["a"], AsAtom], "a"),
        (True, Annotated[Literal["true"], AsAtom], "true"),
        (b"low", Level, Level.LOW),
        (Atom("high"), Annotated[Level, AsAtom], Level.HIGH),
        (Atom("red"), Color, Color.RED),
        (None, Color, Color.NIL),
        (7, Color, Color.NUMBER),
        (b"text", Color, Color.TEXT),
        (b"low", Literal[Level.LOW], Level.LOW),
    ],
)
def test_one_of_some_values_is_read(term: Any, as_: Any, value: Any) -> None:
    assert both(term, as_) is value or both(term, as_) == value


@pytest.mark.parametrize(
    ("term", "as_"),
    [
        (b"b", Literal["a", 1]),
        (1, Literal[True]),
        (True, Literal[1]),
        (1.0, Literal[1]),
        (Atom("a"), Literal["a"]),
        (b"a", Annotated[Literal["a"], AsAtom]),
        ([1], Literal[1]),
        (Atom("low"), Level),
        (b"low", Annotated[Level, AsAtom]),
        (8, Color),
        (True, Color),
        ({}, Color),
    ],
)
def test_other_value_than_the_named_ones_is_refused(term: Any, as_: Any) -> None:
    assert refusal(term, as_).path == "$"


# -- containers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "as_", "value"),
    [
        ([1, 2], list[int], [1, 2]),
        ([1, 300, -1], list[int], [1, 300, -1]),
        ([], list[str], []),
        ([b"a", b"b"], list[str], ["a", "b"]),
        ([1, b"a"], list, [1, b"a"]),
        ([b"a"], typing.List[str], ["a"]),  # noqa: UP006
        ([b"a"], collections.abc.Sequence[str], ["a"]),
        ([[1], []], list[list[int]], [[1], []]),
        ([1, 2.5], list[float], [1.0, 2.5]),
        ([b"a", b"b"], set[str], {"a", "b"}),
        ([b"a"], frozenset[str], frozenset({"a"})),
        ([], set[int], set()),
        ({1: [], 2: []}, set[int], {1, 2}),
        ({STRUCT: Atom("Elixir.MapSet"), Atom("map"): {b"a": []}}, set[str], {"a"}),
        ({}, set[int], set()),
        ({b"a": 1}, dict[str, int], {"a": 1}),
        ({OK: 1}, dict[Atom, int], {OK: 1}),
        ({OK: 1}, dict[Annotated[str, AsAtom], float], {"ok": 1.0}),
        ({b"a": [b"x"]}, collections.abc.Mapping[str, list[str]], {"a": ["x"]}),
        ({}, dict[str, int], {}),
        ({1: b"a"}, dict, {1: b"a"}),
        (TermMap([((1, 2), 1)]), dict[tuple[int, int], int], {(1, 2): 1}),
        ((1, b"a"), tuple[int, str], (1, "a")),
        ((), tuple[()], ()),
        ((1, 2, 3), tuple[int, ...], (1, 2, 3)),
        ((), tuple[str, ...], ()),
        ((1, b"a"), tuple, (1, b"a")),
        ((1, b"a"), Pair, Pair(1, "a")),
    ],
)
def test_container_is_read(term: Any, as_: Any, value: Any) -> None:
    found = both(term, as_)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("term", "as_", "path", "expected"),
    [
        ([1, 2, b"x"], list[int], "$[2]", "an integer"),
        ([[1], [2, None]], list[list[int]], "$[1][1]", "an integer"),
        ([b"a", 2], set[str], "$[1]", "a binary of UTF-8"),
        ([1, 1], set[int], "$", "elements that differ"),
        ([[1]], set[list[int]], "$", "elements that Python can hash"),
        ({1: 2}, set[int], "$", "a list or a set"),
        (1, set[int], "$", "a list or a set"),
        ({b"a": b"x"}, dict[str, int], "$.a", "an integer"),
        ({b"a b": b"x"}, dict[str, int], "${'a b'}", "an integer"),
        ({(1,): b"x"}, dict[tuple[int, ...], int], "${(1,)}", "an integer"),
        ({b"a": 1, 2: 1}, dict[str, int], "$.key(1)", "a binary of UTF-8"),
        ({(b"a", 1.5): 1}, dict[tuple[str, int], int], "$.key(0)[1]", "an integer"),
        (TermMap([([1], 2)]), dict[list[int], int], "$", "keys that Python can hash"),
        (TermMap([(1, 1), (1.0, 2)]), dict[float, int], "$", "keys that differ in Python"),
        ([1], dict[str, int], "$", "a map"),
        ((1, 2), tuple[int, str], "$[1]", "a binary of UTF-8"),
        ((1, 2, 3), tuple[int, int], "$", "a tuple of 2"),
        ([1, 2], tuple[int, int], "$", "a tuple of 2"),
        ([1, 2], tuple[int, ...], "$", "a tuple"),
        ((1, b"a"), tuple[int, ...], "$[1]", "an integer"),
        ((1,), Pair, "$", "a tuple of 2"),
        ((1, 2), Pair, "$[1]", "a binary of UTF-8"),
        ((1, 2), list[int], "$", "a list"),
    ],
)
def test_error_leads_to_the_part(term: Any, as_: Any, path: str, expected: str) -> None:
    error = refusal(term, as_)
    assert (error.path, error.expected) == (path, expected)


def test_converted_containers_are_not_those_of_the_term() -> None:
    inner: list[Any] = [1]
    term = {b"k": inner}
    value = convert(term, dict[bytes, list[int]])
    value[b"k"].append(2)
    assert inner == [1]
    assert convert(inner, list[Any]) is not inner


def test_known_combinations_of_a_row_are_bounded() -> None:
    row = tuple[Any, Any, Any, Any]
    kinds: list[Any] = [1, 1.5, b"a", OK, None, True, (), [], {}]
    for a in kinds:
        for b in kinds:
            assert both((a, b, 1, 2), row) == (a, b, 1, 2)


# -- classes with fields --------------------------------------------------------------------------

USER = {
    STRUCT: Atom("Elixir.Shop.User"),
    Atom("id"): 1,
    Atom("name"): b"Ann",
    Atom("emails"): [b"a@b", b"c@d"],
    Atom("home"): {STRUCT: Atom("Elixir.Shop.Address"), Atom("city"): b"Ulm", Atom("zip"): None},
    Atom("level"): Atom("high"),
    Atom("admin?"): True,
}


def changed(**changes: Any) -> dict[Any, Any]:
    return USER | {Atom(name): value for name, value in changes.items()}


def without(*names: str) -> dict[Any, Any]:
    return {key: value for key, value in USER.items() if str(key) not in names}


def test_struct_is_read() -> None:
    expected = User(UserId(1), "Ann", ["a@b", "c@d"], Address("Ulm"), Level.HIGH, True)
    assert both(USER, User) == expected
    assert both([USER, USER], list[User]) == [expected, expected]


def test_missing_field_gets_its_default_and_unknown_keys_are_passed_over() -> None:
    term = without("emails", "home", "level", "admin?") | {Atom("__meta__"): 1, b"id": 2}
    assert both(term, User) == User(UserId(1), "Ann")
    assert both(term, User).emails is not both(term, User).emails


@pytest.mark.parametrize(
    ("term", "path", "expected", "found"),
    [
        (changed(id=b"1"), "$.id", "an integer", "the binary '1'"),
        (changed(emails=[b"a", b"b", 3]), "$.emails[2]", "a binary of UTF-8", "the integer 3"),
        (changed(home={}), "$.home", "%Shop.Address{}", "a map of 0"),
        (changed(home=[]), "$.home", "%Shop.Address{} or the atom nil", "a list of 0"),
        (without("name"), "$.name", "a binary of UTF-8", "nothing"),
        (without("__struct__"), "$", "%Shop.User{}", "a map of 6"),
        (changed(__struct__=Atom("Elixir.B")), "$", "%Shop.User{}", "%B{}"),
        (changed(__struct__=[]), "$", "%Shop.User{}", "a map of 7"),
        (USER | {Atom("admin?"): 1}, "${'admin?'}", "true or false", "the integer 1"),
        ([USER], "$", "%Shop.User{}", "a list of 1"),
        (b"x", "$", "%Shop.User{}", "the binary 'x'"),
        (1, "$", "%Shop.User{}", "the integer 1"),
    ],
)
def test_struct_with_another_field_is_refused(
    term: Any, path: str, expected: str, found: str
) -> None:
    error = refusal(term, User)
    assert (error.path, error.expected, error.found) == (path, expected, found)


def test_record_is_read() -> None:
    undefined = Atom("undefined")
    inner = (Atom("item"), b"b", undefined, undefined, [])
    term = (Atom("item"), b"a", 2, Atom("new"), [inner])
    assert both(term, Item) == Item("a", 2.0, "new", [Item("b", None)])
    assert both((Atom("point"), 1, None), Point) == Point(1, None)


@pytest.mark.parametrize(
    ("term", "path", "expected"),
    [
        ((Atom("item"), 1, 1.0, Atom("new"), []), "$.sku", "a binary of UTF-8"),
        ((Atom("item"), b"a", None, Atom("new"), []), "$.price", "a float or the atom undefined"),
        ((Atom("item"), b"a", 1.0, Atom("new")), "$", "a record {item, …} of 5"),
        ((Atom("other"), b"a", 1.0, Atom("new"), []), "$", "a record {item, …} of 5"),
        ((b"item", b"a", 1.0, Atom("new"), []), "$", "a record {item, …} of 5"),
        ([Atom("item")], "$", "a record {item, …} of 5"),
        ((), "$", "a record {item, …} of 5"),
    ],
)
def test_other_tuple_than_the_record_is_refused(term: Any, path: str, expected: str) -> None:
    error = refusal(term, Item)
    assert (error.path, error.expected) == (path, expected)


def test_map_with_atoms_or_binaries_is_a_class_that_nobody_registered() -> None:
    for key in (Atom("x"), b"x"):
        assert both({key: 1}, Plain) == Plain(1)
    assert both({b"other": 1, Atom("x"): 2, b"x": 3}, Plain) == Plain(2)
    assert both(TermMap([([], 1), (b"x", 2)]), Plain) == Plain(2)
    assert both({STRUCT: Atom("Elixir.Any"), Atom("x"): 1}, Plain) == Plain(1)
    assert refusal({}, Plain).path == "$.x"
    assert refusal({1: 2}, Plain).path == "$.x"


def test_registered_map_has_the_keys_that_it_says() -> None:
    assert both({b"name": b"n", b"retries": 1}, Options) == Options("n", retries=1)
    assert both({b"name": b"n", b"codes": [65]}, Options) == Options("n", codes="A")
    assert refusal({Atom("name"): b"n"}, Options).path == "$.name"


def test_unknown_key_is_refused_where_the_class_says_so() -> None:
    error = refusal({b"name": b"n", b"retry": 1}, Options)
    assert "'retry'" in (error.found or "")
    full = {b"name": b"n", b"retries": 1, b"codes": []}
    assert both(full, Options) == Options("n", retries=1)
    assert "'more'" in (refusal(full | {b"more": 1}, Options).found or "")


def test_typed_dict_is_read() -> None:
    assert both({b"name": b"n"}, Settings) == {"name": "n"}
    assert both({Atom("name"): b"n", Atom("depth"): 2}, Settings) == {"name": "n", "depth": 2}
    inner = {Atom("name"): b"n", Atom("inner"): [{b"name": b"m"}]}
    assert both(inner, Settings) == {"name": "n", "inner": [{"name": "m"}]}
    assert refusal({b"depth": 1}, Settings).path == "$.name"
    assert refusal({b"name": b"n", b"inner": [{}]}, Settings).path == "$.inner[0].name"
    assert refusal({b"name": b"n"}, Annotated[Settings, AsAtom]).path == "$.name"


def test_error_of_the_class_itself_is_a_decode_error_with_its_place() -> None:
    error = refusal([{b"n": 2}, {b"n": 3}], list[Even])
    assert error.path == "$[1]"
    assert error.found == "otherwise: 3 is odd"
    assert isinstance(error.__cause__, ValueError)


def test_generic_class_is_read_for_its_argument() -> None:
    term = {b"items": [b"a"], b"next": {b"items": [], b"next": None}}
    assert both(term, Page[str]) == Page(["a"], Page([]))
    assert both({b"items": [1]}, Page[int]) == Page([1])
    assert both({b"items": [1, b"a"]}, Page) == Page([1, b"a"])
    assert refusal({b"items": [], b"next": {b"items": [1]}}, Page[str]).path == "$.next.items[0]"


def test_generic_class_keeps_what_its_bases_were_given() -> None:
    term = {b"items": [[b"a"]], b"head": b"h", b"title": b"t"}
    assert both(term, Book) == Book([["a"]], None, "h", "t")
    assert both({b"items": [[1]], b"head": 2}, Chapter[int]) == Chapter([[1]], None, 2)
    assert refusal({b"items": [b"a"]}, Book).path == "$.items[0]"
    assert refusal({b"items": [], b"head": 1}, Book).path == "$.head"


RECORD_END = (Atom("item"), b"a", 1.5, Atom("new"), [])


@pytest.mark.parametrize(
    ("as_", "end", "wrap"),
    [
        (Ring, None, lambda term: {STRUCT: Atom("Elixir.Shop.Ring"), Atom("next"): term}),
        (Item, RECORD_END, lambda term: (*RECORD_END[:4], [term])),
        (Page[Any], None, lambda term: {Atom("items"): [], Atom("next"): term}),
        (Settings, {b"name": b""}, lambda term: {b"name": b"", b"inner": [term]}),
    ],
)
def test_recursive_type_too_deep_is_a_limit_not_a_crash(as_: Any, end: Any, wrap: Any) -> None:
    term = end
    for _ in range(20_000):
        term = wrap(term)
    for read in (
        lambda: convert(term, as_),
        lambda: decode(encode(term), as_=as_, depth_max=90_000),
    ):
        with pytest.raises(LimitExceeded) as caught:
            read()
        assert "recursion" in caught.value.limit


def test_recursive_type_is_read_as_deep_as_python_goes() -> None:
    shallow = {STRUCT: Atom("Elixir.Shop.Ring"), Atom("next"): None}
    assert both(shallow, Ring) == Ring()


# -- unions ---------------------------------------------------------------------------------------

OkInt = tuple[Annotated[Literal["ok"], AsAtom], int]
Failed = tuple[Annotated[Literal["error"], AsAtom], str]


@pytest.mark.parametrize(
    ("term", "as_", "value"),
    [
        (None, typing.Optional[int], None),  # noqa: UP045
        (1, int | None, 1),
        (1, int | float, 1),
        (1.5, int | float, 1.5),
        (1, float | None, 1.0),
        (b"a", str | int, "a"),
        ([1], list[int] | int, [1]),
        (OK, Atom | str, OK),
        (True, Atom | bool, True),
        (None, Annotated[str | None, AsAtom], None),
        (OK, Annotated[str | None, AsAtom], "ok"),
        (b"a", Literal["a"] | int, "a"),
        (1, Literal[1, 2] | float, 1),
        (3, Literal[1, 2] | float, 3.0),
        (b"low", Level | str, Level.LOW),
        (b"other", Level | str, "other"),
        ((OK, 1), OkInt | Failed, ("ok", 1)),
        ((ERROR, b"x"), OkInt | Failed, ("error", "x")),
        ((1, 2, 3), OkInt | tuple[int, int, int], (1, 2, 3)),
        ((OK, b"x", 1), OkInt | tuple[Any, ...], (OK, b"x", 1)),
        ((7, 7), OkInt | tuple[int, int], (7, 7)),
        ((Atom("point"), 1, 2), Point | Item | OkInt, Point(1, 2)),
        ({STRUCT: Atom("Elixir.Shop.Address"), Atom("city"): b"U"}, User | Address, Address("U")),
        ({b"x": 1}, Address | Plain, Plain(1)),
        ({STRUCT: Atom("Elixir.Else"), Atom("x"): 1}, Address | Plain, Plain(1)),
        ({b"a": 1}, Address | dict[str, int] | None, {"a": 1}),
        ([1], int | Any, [1]),
        (1, Any | None, 1),
        (b"x", bytes | None, b"x"),
    ],
)
def test_union_is_read_as_the_term_says(term: Any, as_: Any, value: Any) -> None:
    found = both(term, as_)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("term", "as_", "path"),
    [
        (b"a", int | None, "$"),
        ((OK, b"x"), OkInt | Failed, "$[1]"),
        ((Atom("maybe"), 1), OkInt | Failed, "$"),
        (([], 1), OkInt | Failed, "$"),
        ({}, User | Address, "$"),
        ({STRUCT: []}, User | Address, "$"),
        ([{b"x": b"a"}], list[Plain | int], "$[0].x"),
        (2, Literal[1] | None, "$"),
    ],
)
def test_term_of_no_member_is_refused(term: Any, as_: Any, path: str) -> None:
    assert refusal(term, as_).path == path


@dataclass
class Other:
    x: int


@pytest.mark.parametrize(
    "as_",
    [
        str | bytes,
        list[int] | list[str],
        list[int] | set[int],
        Plain | Other,
        dict[str, int] | Plain,
        tuple[int, int] | tuple[str, str],
        tuple[int, int] | Pair,
        list[int] | Annotated[str, AsCharlist],
    ],
)
def test_union_that_a_term_cannot_tell_apart_is_a_type_error(as_: Any) -> None:
    with pytest.raises(TypeError, match="does not say which member"):
        convert(1, as_)


# -- types that have no form ----------------------------------------------------------------------


@dataclass
class WithInitVar:
    x: InitVar[int]


class Flags(enum.Flag):
    A = 1


@dataclass
class Unresolved:
    x: Missing  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("as_", "text"),
    [
        (dt.datetime, "no form"),
        (list[complex], "no form"),
        (type, "no form"),
        ("User", "not resolved"),
        (list["User"], "not resolved"),
        (WithInitVar, "InitVar"),
        (Flags, "flags"),
        (Unresolved, "Missing"),
        (Annotated[int, AsAtom], "AsAtom says nothing"),
        (Annotated[list[str], AsAtom], "AsAtom says nothing"),
        (Annotated[Level, AsCharlist], "AsCharlist says nothing"),
        (Annotated[User, AsAtom], "AsAtom says nothing"),
        (Annotated[Color, AsAtom], "AsAtom needs"),
    ],
)
def test_type_without_a_form_is_a_type_error(as_: Any, text: str) -> None:
    for _ in range(2):
        with pytest.raises(TypeError, match=text):
            decode(encode(1), as_=as_)


# -- any term, any type ---------------------------------------------------------------------------

TYPES = [
    int | str | None,
    list[Any],
    dict[str, Any],
    User,
    Item,
    Settings,
    Page[int],
    tuple[int, ...],
    set[int] | Atom,
    Everything,
    OkInt | Failed | Point,
    list[Address | Plain | Literal["x"]],
]


@given(terms, st.sampled_from(TYPES))
def test_any_term_is_a_value_or_a_decode_error(term: Any, as_: Any) -> None:
    data = encode(term)
    try:
        value = decode(data, as_=as_)
    except DecodeError:
        with pytest.raises(DecodeError):
            convert(term, as_)
    else:
        assert convert(decode(data), as_) == value


def test_none_as_the_type_of_decode_is_no_type() -> None:
    assert decode(encode([1]), as_=None) == [1]
    assert convert(None, None) is None
