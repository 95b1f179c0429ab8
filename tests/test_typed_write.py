"""Instances of registered classes as terms: what encode makes of them, and what it refuses."""

from __future__ import annotations

import asyncio
import gc
import weakref
from dataclasses import dataclass, field, make_dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tumen
from nodes import make_node
from strategies import atoms, pids
from tumen import Atom, EncodeError, TermMap, convert, decode, encode
from tumen.typed import AsAtom, AsCharlist
from typed_types import (
    Address,
    Color,
    Everything,
    Item,
    Level,
    Options,
    Plain,
    Point,
    Ring,
    User,
    UserId,
)

STRUCT = Atom("__struct__")
UNDEFINED = Atom("undefined")


def test_struct_is_a_map_with_its_module() -> None:
    user = User(UserId(1), "Ann", ["a@b"], Address("Ulm"), Level.HIGH, True)
    assert decode(encode(user)) == {
        STRUCT: Atom("Elixir.Shop.User"),
        Atom("id"): 1,
        Atom("name"): b"Ann",
        Atom("emails"): [b"a@b"],
        Atom("home"): {
            STRUCT: Atom("Elixir.Shop.Address"),
            Atom("city"): b"Ulm",
            Atom("zip"): None,
        },
        Atom("level"): Atom("high"),
        Atom("admin?"): True,
    }


def test_record_is_a_tuple_with_its_name() -> None:
    item = Item("a", None, "new", [Item("b", 2)])
    inside = (Atom("item"), b"b", 2, UNDEFINED, [])
    assert decode(encode(item)) == (Atom("item"), b"a", UNDEFINED, Atom("new"), [inside])
    assert decode(encode(Point(1, None))) == (Atom("point"), 1, None)


def test_map_has_the_keys_that_were_asked_for() -> None:
    assert decode(encode(Options("n", codes="A"))) == {
        b"name": b"n",
        b"retries": 3,
        b"codes": [65],
    }

    @tumen.mapped()
    @dataclass
    class Atoms:
        x: int

    @tumen.mapped()
    @dataclass
    class Empty:
        pass

    assert decode(encode(Atoms(1))) == {Atom("x"): 1}
    assert decode(encode([Empty(), Empty()])) == [{}, {}]
    assert convert({}, Empty) == Empty()


def test_registered_object_stands_anywhere_in_a_term() -> None:
    point = Point(1, 2)
    term = (Atom("point"), 1, 2)
    assert decode(encode(point)) == term
    assert decode(encode([point, (point,), {1: point}])) == [term, (term,), {1: term}]
    assert decode(encode({point: 1})) == {term: 1}
    assert decode(encode({Address("Ulm"): 1}))
    assert TermMap([(point, 1)])[term] == 1
    assert decode(encode({1: {2: {Address("Ulm"): point}}}))


def test_two_keys_that_are_one_term_are_refused_among_objects_too() -> None:
    with pytest.raises(EncodeError, match="two keys"):
        encode({Point(1, 2): 1, (Atom("point"), 1, 2): 2})


@pytest.mark.parametrize("outermost", [True, False])
def test_decorators_stand_in_either_order(outermost: bool) -> None:
    register = tumen.struct("Elixir.Either")
    if outermost:

        @register
        @dataclass(slots=True)
        class First:
            x: int

        made: Any = First(1)
    else:

        @dataclass(slots=True)
        @register
        class Last:
            x: int

        made = Last(1)
    term = {STRUCT: Atom("Elixir.Either"), Atom("x"): 1}
    assert decode(encode(made)) == term
    assert convert(term, type(made)) == made


def test_fields_that_are_no_arguments_stay_here() -> None:
    @tumen.record("counted")
    @dataclass
    class Counted:
        n: int
        doubled: int = field(init=False)

        def __post_init__(self) -> None:
            self.doubled = 2 * self.n

    assert decode(encode(Counted(2))) == (Atom("counted"), 2)
    assert decode(encode(Counted(2)), as_=Counted).doubled == 4


# -- round trips ----------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
settings = st.fixed_dictionaries({"name": texts}, optional={"depth": st.integers()})
everything = st.builds(
    Everything,
    number=st.integers(),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    flag=st.booleans(),
    text=texts,
    data=st.binary(max_size=5),
    atom=atoms,
    pid=pids,
    names=st.sets(texts, max_size=3),
    scores=st.dictionaries(texts, st.just(0.5), max_size=3),
    place=st.tuples(st.integers(), texts),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    options=settings,
    level=st.sampled_from(Level),
    mark=texts,
    letters=texts,
    other=st.one_of(st.none(), st.integers(), st.binary()),
    color=st.sampled_from(Color),
)
items = st.recursive(
    st.builds(Item, texts, st.none() | st.just(1.5), st.sampled_from([None, "new", "used"])),
    lambda inner: st.builds(Item, texts, st.none(), st.none(), st.lists(inner, max_size=2)),
    max_leaves=5,
)


@given(st.one_of(everything, items, st.builds(User, st.integers(), texts, st.lists(texts))))
def test_object_comes_back_as_it_was(value: Any) -> None:
    data = encode(value)
    assert decode(data, as_=type(value)) == value
    assert convert(decode(data), type(value)) == value
    # The bytes may differ: a set has no order, and a TypedDict gets that of its fields.
    assert decode(encode(decode(data, as_=type(value))), as_=type(value)) == value


# -- values whose type says how they are written --------------------------------------------------


class Keyed(TypedDict):
    state: Annotated[Literal["on", "off"], AsAtom]


Tagged = (
    tuple[Annotated[Literal["ok"], AsAtom], Annotated[str, AsAtom]]
    | tuple[Annotated[Literal["error"], AsAtom], Annotated[str, AsCharlist]]
)


@pytest.mark.parametrize(
    ("hint", "value", "term"),
    [
        (Annotated[str, AsAtom], "true", True),
        (Annotated[str, AsAtom], "nil", None),
        (Annotated[str, AsAtom], "x", Atom("x")),
        (Annotated[str, AsAtom] | None, None, None),
        (Annotated[str, AsAtom] | int, 1, 1),
        (Annotated[Level, AsAtom], Level.LOW, Atom("low")),
        (Level, Level.LOW, b"low"),
        (Color, Color.RED, Atom("red")),
        (Color | None, Color.TEXT, b"text"),
        (list[Annotated[str, AsAtom]], ["a", "b"], [Atom("a"), Atom("b")]),
        (tuple[Annotated[str, AsAtom], ...], ("a",), (Atom("a"),)),
        (tuple[int, Annotated[str, AsAtom]], (1, "a"), (1, Atom("a"))),
        (dict[Annotated[str, AsAtom], Level], {"a": Level.LOW}, {Atom("a"): b"low"}),
        (set[int], {1}, [1]),
        (frozenset[Annotated[str, AsAtom]], frozenset({"a"}), [Atom("a")]),
        (set[int] | None, None, None),
        (Annotated[Keyed, AsAtom], {"state": "on"}, {Atom("state"): Atom("on")}),
        (Keyed, {"state": "on"}, {b"state": Atom("on")}),
        (Tagged, ("ok", "a"), (Atom("ok"), Atom("a"))),
        (Tagged, ("error", "a"), (Atom("error"), [97])),
        (Literal["a", 1], "a", b"a"),
        (int, "not checked", b"not checked"),
    ],
)
def test_field_is_written_as_its_type_says(hint: Any, value: Any, term: Any) -> None:
    cls = tumen.record("r", none="nil")(make_dataclass("Local", [("x", hint)]))
    assert decode(encode(cls(value))) == (Atom("r"), term)


@pytest.mark.parametrize(
    ("hint", "value", "path"),
    [
        (Annotated[str, AsAtom], 1, "$[0].x"),
        (Annotated[str, AsAtom], "x" * 256, "$[0].x"),
        (Annotated[str, AsCharlist], b"x", "$[0].x"),
        (Annotated[Level, AsAtom], "low", "$[0].x"),
        (Annotated[Literal["a"], AsAtom], "b", "$[0].x"),
        (Annotated[Literal["a"], AsAtom], [], "$[0].x"),
        (Annotated[str, AsAtom] | int, 1.5, "$[0].x"),
        (list[Annotated[str, AsAtom]], ["a", 1], "$[0].x[1]"),
        (dict[str, Annotated[str, AsAtom]], {"k": 1}, "$[0].x.k"),
        (dict[Annotated[str, AsAtom], int], {1: 1}, "$[0].x.key(0)"),
        (tuple[int, Annotated[str, AsAtom]], (1, 2), "$[0].x[1]"),
        (tuple[int, Annotated[str, AsAtom]], (1,), "$[0].x"),
        (Annotated[Keyed, AsAtom], {"state": 1}, "$[0].x.state"),
        (Annotated[Keyed, AsAtom], {"other": 1}, "$[0].x"),
        (Annotated[Keyed, AsAtom], [], "$[0].x"),
        (int, object(), "$[0].x"),
        (list[int], [1, {2: object()}], "$[0].x[1]{2}"),
        (Plain, Plain(1), "$[0].x"),
    ],
)
def test_field_that_has_no_term_is_named(hint: Any, value: Any, path: str) -> None:
    cls = make_dataclass("Local", [("x", hint)])
    for register in (tumen.record("r"), tumen.struct("Elixir.R"), tumen.mapped()):
        registered = register(make_dataclass("Local", [("x", hint)]))
        with pytest.raises(EncodeError) as caught:
            encode([registered(value)])
        assert caught.value.path == path
        assert path in str(caught.value)
    with pytest.raises(EncodeError) as caught:
        encode(cls(value))
    assert "tumen.struct" in caught.value.hint


def test_subclass_that_is_not_registered_is_refused() -> None:
    class Sub(Address):
        pass

    for _ in range(2):
        with pytest.raises(EncodeError, match="no Erlang term") as caught:
            encode((Sub("Ulm"),))
        assert caught.value.path == "$[0]"
        assert "base" in caught.value.hint


def test_union_whose_values_can_be_written_in_two_ways_is_a_type_error() -> None:
    hint = Annotated[str, AsAtom] | str
    cls: Any = tumen.record("r")(make_dataclass("Local", [("x", hint)]))
    with pytest.raises(TypeError, match="in two ways"):
        encode(cls("a"))
    assert convert((Atom("r"), Atom("a")), list[Any] | tuple[Any, ...])


def test_object_that_contains_itself_is_refused() -> None:
    ring = Ring()
    ring.next = ring
    with pytest.raises(EncodeError, match="10000 levels") as caught:
        encode(ring)
    assert "contain itself" in caught.value.hint


def test_deep_objects_are_written_without_recursion() -> None:
    ring = Ring()
    for _ in range(9000):
        ring = Ring(ring)
    assert len(encode(ring)) > 9000


def test_field_that_was_never_set_is_an_encode_error() -> None:
    @tumen.struct("Elixir.Slots")
    @dataclass(slots=True)
    class Slots:
        x: int

    empty = Slots.__new__(Slots)
    with pytest.raises(EncodeError, match="lacks a field"):
        encode(empty)


# -- registration ---------------------------------------------------------------------------------


def test_misuse_of_the_decorators_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"Elixir\.Shop\.User"):
        tumen.struct("Shop.User")
    with pytest.raises(ValueError, match="none"):
        tumen.record("r", none="null")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="keys"):
        tumen.mapped(keys="strings")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="True"):
        tumen.record("true")
    with pytest.raises(TypeError, match="already"):
        tumen.record("again")(Address)
    with pytest.raises(TypeError, match="TypedDict"):
        tumen.mapped()(Keyed)
    with pytest.raises(TypeError, match="no class"):
        tumen.mapped()(lambda: None)  # type: ignore[type-var]


def test_class_without_fields_is_a_type_error_when_it_is_used() -> None:
    @tumen.struct("Elixir.Bare")
    class Bare:
        pass

    with pytest.raises(TypeError, match="Bare"):
        encode(Bare())
    with pytest.raises(TypeError, match="no form"):
        decode(encode({}), as_=Bare)


def test_module_of_erlang_and_atoms_are_names_too() -> None:
    @tumen.struct(Atom("shop_user"))
    class Named(NamedTuple):
        x: int

    assert decode(encode(Named(1))) == {STRUCT: Atom("shop_user"), Atom("x"): 1}
    assert decode(encode(Named(1)), as_=Named) == Named(1)
    with pytest.raises(tumen.DecodeError, match=r"%:shop_user\{\}"):
        decode(encode(1), as_=Named)


def test_plan_of_a_class_goes_with_the_class() -> None:
    def use() -> weakref.ref[type]:
        cls = tumen.mapped()(make_dataclass("Local", [("x", int)]))
        assert decode(encode(cls(1)), as_=cls) == cls(1)
        return weakref.ref(cls)

    gone = use()
    gc.collect()
    assert gone() is None


def test_object_goes_between_processes_as_its_term() -> None:
    async def run() -> None:
        received: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def take(proc: tumen.Process) -> None:
            received.set_result(await proc.receive())

        async with make_node() as node:
            node.send(node.spawn(take), Item("a", 1.5))
            async with asyncio.timeout(10):
                message = await received
        assert message == (Atom("item"), b"a", 1.5, UNDEFINED, [])
        assert convert(message, Item) == Item("a", 1.5)

    asyncio.run(run())
