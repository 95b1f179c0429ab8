"""The classes of terms: frozen, equal as on the BEAM, hashable, printable, copied and matched."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from strategies import same
from tumen.terms import (
    Atom,
    Binary,
    BitString,
    Export,
    Fun,
    ImproperList,
    Pid,
    Port,
    Reference,
    TermMap,
    decode,
    encode,
)

FUN = bytes.fromhex(
    "7000000041020000000000000000000000000000000000000009000000007703"
    "6d6f6461056105587703614062000000000000000000000000"
)
FUN = FUN[:1] + (len(FUN) - 1).to_bytes(4, "big") + FUN[5:]

EXAMPLES: list[Any] = [
    Atom("ok"),
    Pid("a@b", 1, 2, 3),
    Port("a@b", 1, 2),
    Reference("a@b", 1, (2, 3)),
    Export("m", "f", 2),
    Fun(FUN),
    BitString(b"\xa0", 3),
    Binary(b"xy"),
    ImproperList([1, [2]], Atom("t")),
    TermMap([(1, b"i"), (1.0, [b"f"]), ([1], {})]),
]


def by_type(value: Any) -> str:
    return type(value).__name__


@pytest.fixture(params=EXAMPLES, ids=by_type)
def example(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        *(lambda x, p=protocol: pickle.loads(pickle.dumps(x, p)) for protocol in range(2, 6)),
    ],
)
def test_copies_are_equal(example: Any, again: Callable[[Any], Any]) -> None:
    made = again(example)
    assert type(made) is type(example)
    assert made == example
    assert not made != example  # noqa: SIM202 - the other operator


def test_slots_and_attributes_are_closed(example: Any) -> None:
    assert not hasattr(example, "__dict__")
    with pytest.raises(AttributeError):
        example.other = 1
    for name in getattr(type(example), "__match_args__", ()):
        with pytest.raises(AttributeError):
            setattr(example, name, 1)


def test_second_init_is_refused(example: Any) -> None:
    make, args = example.__reduce__()
    before = repr(example)
    with pytest.raises(AttributeError, match="frozen"):
        example.__init__(*args)
    assert make(*args) == example
    assert repr(example) == before


def test_no_subclass(example: Any) -> None:
    with pytest.raises(TypeError):
        type("Sub", (type(example),), {})


def test_object_without_init_is_harmless(example: Any) -> None:
    bare = type(example).__new__(type(example))
    assert isinstance(repr(bare), str)
    encode(bare)
    assert bare == type(example).__new__(type(example))
    hash(bare)


@pytest.mark.parametrize(
    "value", [x for x in EXAMPLES if not isinstance(x, (Fun, Binary))], ids=by_type
)
def test_repr_is_the_constructor(value: Any) -> None:
    assert eval(repr(value)) == value  # noqa: S307 - our own text


def test_unequal_to_everything_else(example: Any) -> None:
    for other in [*EXAMPLES, None, 1, "ok", b"x", (), [], {}]:
        assert (example == other) is (other is example)


def test_equality_is_decided_by_every_field() -> None:
    for value in [Pid("a@b", 1, 2, 3), Port("a@b", 1, 2), Reference("a@b", 1, (2,))]:
        make, args = value.__reduce__()
        assert make(*args) == value
        assert hash(make(*args)) == hash(value)
        for i, arg in enumerate(args):
            other = "b@c" if isinstance(arg, str) else (5,) if isinstance(arg, tuple) else arg + 7
            assert make(*args[:i], other, *args[i + 1 :]) != value
    assert Reference("a@b", 1, (2,)) != Reference("a@b", 1, (2, 0))
    assert Export("m", "f", 2) != Export("m", "f", 3)
    assert Export("m", "f", 2) != Export("f", "m", 2)


# -- Atom -----------------------------------------------------------------------------------------


def test_atom_is_no_text() -> None:
    assert Atom("ok") == Atom("ok")
    assert Atom("ok") != "ok"
    assert "ok" != Atom("ok")  # noqa: SIM300 - the other way round
    assert not isinstance(Atom("ok"), str)
    assert hash(Atom("ok")) != hash("ok")
    assert str(Atom("ok")) == Atom("ok").text == "ok"
    assert repr(Atom("ok")) == "Atom('ok')"
    assert {Atom("ok"): 1}[Atom("ok")] == 1


@pytest.mark.parametrize(("text", "value"), [("true", "True"), ("false", "False"), ("nil", "None")])
def test_atom_with_a_value_of_its_own_says_which(text: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"is {value} in Python"):
        Atom(text)


def test_atom_undefined_is_an_atom() -> None:
    assert decode(encode(Atom("undefined"))) == Atom("undefined")


def test_atom_has_at_most_255_characters() -> None:
    assert len(decode(encode(Atom("é" * 255))).text) == 255
    with pytest.raises(ValueError, match="255 characters"):
        Atom("x" * 256)


@pytest.mark.parametrize("text", [b"ok", 1, None])
def test_atom_needs_text(text: Any) -> None:
    with pytest.raises(TypeError):
        Atom(text)


def test_atom_with_surrogates_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        Atom("\ud800")


def test_hashes_are_salted() -> None:
    """Another process gets other hashes: a peer cannot choose colliding identifiers."""
    script = (
        "from tumen.terms import *; "
        "print(hash(Atom('ok')), hash(Pid('a@b',1,2,3)), hash(Reference('a@b',1,(1,))))"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    command = [sys.executable, "-c", script]
    runs = {
        subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(runs) > 1


# -- identifiers ----------------------------------------------------------------------------------


def test_name_may_be_an_atom_or_text() -> None:
    assert Pid(Atom("a@b"), 1, 2, 3) == Pid("a@b", 1, 2, 3)
    assert type(Pid(Atom("a@b"), 1, 2, 3).node) is str
    assert Export(Atom("m"), Atom("f"), 0) == Export("m", "f", 0)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Pid("a@b", -1, 0, 0), ValueError),
        (lambda: Pid("a@b", 2**32, 0, 0), ValueError),
        (lambda: Pid("a@b", 0, 0, True), TypeError),
        (lambda: Pid("a@b", 0, 0.0, 0), TypeError),
        (lambda: Pid(b"a@b", 0, 0, 0), TypeError),
        (lambda: Pid("x" * 256, 0, 0, 0), ValueError),
        (lambda: Port("a@b", 2**64, 0), ValueError),
        (lambda: Reference("a@b", 0, (1,) * 6), ValueError),
        (lambda: Reference("a@b", 0, (2**32,)), ValueError),
        (lambda: Export("m", "f", 2**31), ValueError),
        (lambda: Export("m", 5, 1), TypeError),
        (lambda: BitString(b"x", 0), ValueError),
        (lambda: BitString(b"x", 9), ValueError),
        (lambda: BitString("x", 3), TypeError),
        (lambda: Binary("text"), TypeError),
        (lambda: Binary(memoryview(b"abcd")[::2]), BufferError),
        (lambda: Fun(b"\x61\x01"), ValueError),
        (lambda: Fun(FUN[:-1]), ValueError),
        (lambda: Fun(FUN + b"x"), ValueError),
        (lambda: ImproperList([], 1), ValueError),
        (lambda: ImproperList([1], [2]), ValueError),
        (lambda: ImproperList([1], ImproperList([2], 3)), ValueError),
        (lambda: TermMap([(1, 2), (1, 3)]), ValueError),
        (lambda: TermMap([("a", 2), (b"a", 3)]), ValueError),
        (lambda: TermMap([(object(), 2)]), ValueError),
    ],
)
def test_constructor_refuses(make: Callable[[], Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


# -- binaries -------------------------------------------------------------------------------------


def test_bit_string_clears_the_bits_that_do_not_count() -> None:
    assert BitString(b"\xff\xbf", 3).data == b"\xff\xa0"
    assert BitString(b"\xff\xbf", 3).bit_size == 11
    assert BitString(b"", 3).bit_size == 0


def test_whole_bit_string_equals_its_bytes() -> None:
    assert BitString(b"ab", 8) == b"ab"
    assert b"ab" == BitString(b"ab", 8)  # noqa: SIM300 - the other way round
    assert hash(BitString(b"ab", 8)) == hash(b"ab")
    assert BitString(b"ab", 7) != b"ab"


def test_binary_equals_bytes_and_hashes_where_read_only() -> None:
    assert Binary(bytearray(b"ab")) == b"ab"
    assert hash(Binary(b"ab")) == hash(b"ab")
    assert bytes(Binary(b"ab")) == b"ab"
    with pytest.raises(TypeError, match="writable"):
        hash(Binary(bytearray(b"ab")))


# -- ImproperList ---------------------------------------------------------------------------------


def test_improper_list_is_a_sequence_of_its_items() -> None:
    improper = ImproperList([1, 2, 3], Atom("t"))
    assert len(improper) == 3
    assert list(improper) == [1, 2, 3]
    assert improper[0] == 1
    assert improper[-1] == 3
    assert improper[1:] == (2, 3)
    assert 2 in improper
    assert Atom("t") not in improper
    with pytest.raises(IndexError):
        improper[3]


def test_improper_list_compares_exactly() -> None:
    assert ImproperList([1], 2) != ImproperList([1.0], 2)
    assert ImproperList([1], 2) != ImproperList([1], 2.0)
    assert ImproperList([{"k": 1}], 2) == ImproperList([{b"k": 1}], 2)
    assert hash(ImproperList([1], 2)) == hash(ImproperList((1,), 2))
    # What is no term is compared as Python does.
    thing = object()
    assert ImproperList([thing], 2) == ImproperList([thing], 2)
    assert ImproperList([thing], 2) != ImproperList([object()], 2)


# -- TermMap --------------------------------------------------------------------------------------

KEYS: list[Any] = [1, 1.0, True, 0, 0.0, -0.0, False, None, [1], [1.0], {}, {1: []}, (), b"a"]


def test_term_map_keeps_keys_apart_that_python_merges() -> None:
    keys_map = TermMap((key, i) for i, key in enumerate(KEYS))
    assert len(keys_map) == len(KEYS)
    for i, key in enumerate(KEYS):
        assert keys_map[key] == i
        assert key in keys_map
    assert list(keys_map.values()) == list(range(len(KEYS)))
    assert same(list(keys_map), KEYS)
    assert list(keys_map.items())[3] == (0, 3)


def test_term_map_is_a_mapping() -> None:
    term_map = TermMap({"a": 1, (2,): 2})
    assert isinstance(term_map, Mapping)
    assert dict(term_map) == {"a": 1, (2,): 2}
    assert term_map.get("a") == 1
    assert term_map.get("b") is None
    assert term_map.get("b", default=5) == 5
    assert "a" in term_map.keys()  # noqa: SIM118 - the view is the subject
    assert ("a", 1) in term_map.items()
    assert object() not in term_map
    with pytest.raises(KeyError):
        term_map["b"]
    with pytest.raises(TypeError):
        term_map["a"] = 2  # type: ignore[index]


def test_term_map_finds_text_and_bytes_as_one_key() -> None:
    assert TermMap([("é", 1)])["é".encode()] == 1


def test_term_map_finds_map_keys_in_any_order() -> None:
    key = {1: 2, "a": 3}
    found = TermMap([(key, "x"), ([key], "y")])
    assert found[{b"a": 3, 1: 2}] == "x"
    assert found[[{b"a": 3, 1: 2}]] == "y"


def test_term_map_compares_exactly_and_without_order() -> None:
    assert TermMap([(1, 2), ([], 3)]) == TermMap([([], 3), (1, 2)])
    assert TermMap([(1, 2)]) == {1: 2}
    assert {1: 2} == TermMap([(1, 2)])  # noqa: SIM300 - the other way round
    assert TermMap([(1, 2)]) != {1: 2.0}
    assert TermMap([(1, 2)]) != {True: 2}
    assert TermMap([(1, 2)]) != {1: 2, 3: 4}
    thing = object()
    assert TermMap([(1, thing)]) == {1: thing}


def test_term_map_hash_agrees_with_equality() -> None:
    assert hash(TermMap([(1, 2), ([], 3)])) == hash(TermMap([([], 3), (1, 2)]))
    with pytest.raises(TypeError):
        hash(TermMap([(1, [])]))


def test_term_map_can_be_a_key_itself() -> None:
    inner = TermMap([(1, 2), (1.0, 3)])
    outer = decode(encode({inner: 4}))
    assert type(outer) is dict
    assert outer[TermMap([(1.0, 3), (1, 2)])] == 4


# -- match ----------------------------------------------------------------------------------------


def kind_of(term: Any) -> Any:
    match term:
        case (Atom("reply"), Pid(node="a@b") as sender, payload):
            return "reply", sender.id, payload
        case ImproperList((Atom("alias"),), Reference() as ref):
            return "alias", ref.words
        case Export("m", function, 2):
            return "export", function
        case TermMap() as found:
            return "map", len(found)
        case {b"key": value}:
            return "dict", value
        case [first, *_]:
            return "list", first
        case True:
            return "true"
        case Atom(text):
            return "atom", text
    return None


def test_terms_match() -> None:
    pid = Pid("a@b", 7, 0, 1)
    assert kind_of((Atom("reply"), pid, 1)) == ("reply", 7, 1)
    assert kind_of((Atom("reply"), Pid("c@d", 7, 0, 1), 1)) == ("list", Atom("reply"))
    alias = ImproperList([Atom("alias")], Reference("a@b", 1, (2,)))
    assert kind_of(alias) == ("alias", (2,))
    assert kind_of(ImproperList([1], 2)) is None, "a sequence pattern would lose the tail"
    assert kind_of(Export("m", "f", 2)) == ("export", "f")
    assert kind_of(TermMap([([], 1)])) == ("map", 1)
    assert kind_of({b"key": 5}) == ("dict", 5)
    assert kind_of(True) == "true"
    assert kind_of(Atom("ok")) == ("atom", "ok")


def test_mapping_pattern_matches_a_term_map() -> None:
    match TermMap([(b"a", 1), ([], 2)]):
        case {b"a": value}:
            assert value == 1
        case _:
            pytest.fail("no match")
