"""What neither encodes nor decodes: the error, its path and its offset."""

from __future__ import annotations

import contextlib
import copy
import pickle
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import terms
from tumen import errors
from tumen.errors import DecodeError, EncodeError, LimitExceeded
from tumen.terms import Atom, Binary, ImproperList, TermMap, decode, encode

NAN, INF = float("nan"), float("inf")

# -- encode ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "path", "text"),
    [
        (object(), "$", "builtins.object"),
        ([1, [2, {Atom("key"): {1, 2}}]], "$[1][1].key", "builtins.set"),
        ({"key": (1, object())}, "$.key[1]", "builtins.object"),
        ({"a key": object()}, "${'a key'}", "builtins.object"),
        ({b"\xff": object()}, "${'\ufffd'}", "builtins.object"),
        ({7: object()}, "${7}", "builtins.object"),
        ({1: 2, (3, object()): 4}, "$.key(1)[1]", "builtins.object"),
        ({object(): 4}, "$.key(0)", "builtins.object"),
        (ImproperList([1, object()], 2), "$[1]", "builtins.object"),
        (ImproperList([1], (object(),)), "$.tail[0]", "builtins.object"),
        (ImproperList([1], object()), "$.tail", "builtins.object"),
        (TermMap([([], 1), (2, object())]), "${2}", "builtins.object"),
        (TermMap([([], [object()])]), "${[]}[0]", "builtins.object"),
        ((NAN,), "$[0]", "NaN"),
        ([1.0, INF], "$[1]", "infinities"),
        ({"x": -INF}, "$.x", "infinities"),
        (NAN, "$", "NaN"),
        ([(1, [2]), (b"x", (0.5, NAN))], "$[1][1][1]", "NaN"),
        ([[1.5, 2.5, INF, 3.5]], "$[0][2]", "infinities"),
        ({NAN: 1}, "$.key(0)", "NaN"),
        ({"k": (1, "\ud800")}, "$.k[1]", "surrogates"),
        (ImproperList([1], NAN), "$.tail", "NaN"),
        (["\ud800"], "$[0]", "surrogates"),
        ({"a": 1, b"a": 2}, "$", "two keys"),
        ([{("a",): 1, (b"a",): 2}], "$[0]", "two keys"),
        ({"k": {"a": 1, b"a": 2}}, "$.k", "two keys"),
        (1j, "$", "complex"),
        (iter([]), "$", "list_iterator"),
        (int, "$", "builtins.type"),
        (range(3), "$", "builtins.range"),
    ],
)
def test_encode_refuses(term: Any, path: str, text: str) -> None:
    with pytest.raises(EncodeError) as caught:
        encode(term)
    assert caught.value.path == path
    assert text in str(caught.value)
    assert path in str(caught.value)


def test_encode_says_what_to_do_with_a_buffer_and_a_set() -> None:
    from array import array

    with pytest.raises(EncodeError) as caught:
        encode([array("d", [1.0])])
    assert "tumen.Binary" in caught.value.hint
    with pytest.raises(EncodeError) as caught:
        encode(frozenset())
    assert "list" in caught.value.hint


def test_encode_refuses_arrays_of_numbers() -> None:
    class Array:
        dtype = type("dtype", (), {"kind": "f"})
        ndim = 1

        def __index__(self) -> int:
            return 1

    with pytest.raises(EncodeError):
        encode(Array())


def test_encode_refuses_a_decimal_instead_of_rounding_it() -> None:
    from decimal import Decimal
    from fractions import Fraction

    for number in (Decimal("0.1"), Fraction(1, 3)):
        with pytest.raises(EncodeError):
            encode(number)


def test_encode_refuses_a_buffer_with_gaps() -> None:
    with pytest.raises(EncodeError, match="contiguous"):
        encode([memoryview(b"abcdef")[::2]])


def test_encode_refuses_a_mapping_with_two_equal_keys() -> None:
    from types import MappingProxyType

    with pytest.raises(EncodeError, match="two keys"):
        encode(MappingProxyType({"a": 1, b"a": 2}))


def test_encode_finds_cycles_by_the_depth_limit() -> None:
    cycle: list[Any] = [1]
    cycle.append(cycle)
    ring: dict[str, Any] = {}
    ring["x"] = (ring,)
    for term in (cycle, ring):
        with pytest.raises(EncodeError, match="1000000 levels") as caught:
            encode(term)
        assert "contain itself" in caught.value.hint
        assert caught.value.path.endswith("…")


def test_exceptions_of_the_callers_objects_pass_through() -> None:
    class Broken:
        def __index__(self) -> int:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        encode([1, {"a": Broken()}])


class Meddler:
    """Changes a container while it is encoded."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def __index__(self) -> int:
        self.change()
        return 1


@pytest.mark.parametrize("change", ["clear", "pop", "append"])
def test_list_that_changes_while_it_is_encoded_is_refused(change: str) -> None:
    items: list[Any] = [
        Meddler(lambda: getattr(items, change)(*([0] if change == "append" else [])))
    ]
    items += ["x" * 10] * 5
    with pytest.raises(EncodeError, match="changed its size"):
        encode({"k": items})


def test_dict_that_changes_while_it_is_encoded_is_refused() -> None:
    for change in ("clear", "popitem"):
        pairs: dict[Any, Any] = {}
        pairs["a"] = Meddler(lambda p=pairs, c=change: getattr(p, c)())
        pairs |= dict.fromkeys(range(5), "y" * 10)
        with pytest.raises(EncodeError, match="changed its size"):
            encode([pairs])
    grown: dict[Any, Any] = {"a": Meddler(lambda: grown.update(dict.fromkeys(range(100))))}
    with pytest.raises(EncodeError, match="changed its size"):
        encode(grown)


def test_container_that_is_dropped_while_its_part_is_encoded_is_encoded_whole() -> None:
    def clear() -> None:
        outer[0] = None

    outer: list[Any] = [[1, (b"x" * 20, {Atom("k"): [Meddler(clear), 2.5]}, "text"), 7]]
    again = decode(encode(outer))
    assert again == [[1, (b"x" * 20, {Atom("k"): [1, 2.5]}, b"text"), 7]]


def test_item_that_removes_itself_is_still_encoded_whole() -> None:
    items: list[Any] = []

    class Self:
        def __index__(self) -> int:
            items[0] = None
            return 5

    items.append(Self())
    assert decode(encode(items)) == [5]


# -- decode ---------------------------------------------------------------------------------------

DEEP = encode([1, {Atom("name"): [b"x", {b"k k": (1, 2.0)}]}])


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"", 0),
        (b"\x83", 1),
        (b"\x82a\x01", 0),
        (b"\x83a\x01\x02", 3),
        (b"\x83j" + bytes(100), 2),
    ],
)
def test_decode_refuses_what_is_not_one_term(data: bytes, offset: int) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(data)
    assert caught.value.offset == offset


@pytest.mark.parametrize(
    "data",
    [
        b"F\x7f\xf0" + bytes(6),
        b"F\x7f\xf8" + bytes(6),
        b"F\xff\xf0" + bytes(6),
        b"cinf" + bytes(28),
        b"cnan" + bytes(28),
        b"w\x01\xff",
        b"w\x02\xc0\x80",
        b"w\x03\xed\xa0\x80",
        b"v\x01\x00" + b"a" * 256,
        b"d\x01\x00" + b"a" * 256,
        b"M\x00\x00\x00\x01\x00\xff",
        b"M\x00\x00\x00\x01\x09\xff",
        b"Z\x00\x06w\x01a" + bytes(28),
        b"qw\x01aw\x01bb\xff\xff\xff\xff",
        b"gw\x03a@b" + bytes(8) + b"\x04",
        b"u" + bytes(20),
        b"y" + bytes(20),
        b"R\x00",
        b"P\x00\x00\x00\x01x",
        b"\x00",
        b"\x83a\x01",
        b"i\xff\xff\xff\xff",
        b"l\xff\xff\xff\xffa\x01",
        b"t\xff\xff\xff\xff",
        b"m\xff\xff\xff\xffx",
        b"o\xff\xff\xff\xff\x00",
        b"h\x02a\x01",
        b"l\x00\x00\x00\x01a\x01",
        b"t\x00\x00\x00\x01a\x01",
        b"k\x00\x05abc",
        b"b\x00\x00",
        b"X" + b"a\x01" + bytes(12),
    ],
)
def test_decode_refuses_malformed_bytes(data: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(b"\x83" + data)
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(data) + 1


@pytest.mark.parametrize(
    ("cut", "path"),
    [
        (len(DEEP) - 3, "$[1].name[1]{'k k'}[1]"),
        (len(DEEP) - 13, "$[1].name[1]{'k k'}"),
        (len(DEEP) - 18, "$[1].name[1].key(0)"),
        (17, "$[1].key(0)"),
    ],
)
def test_decode_error_names_the_path(cut: int, path: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(DEEP[:cut])
    assert caught.value.path == path
    assert path in str(caught.value)


def test_decode_error_names_tail_and_free_variable() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(b"\x83l\x00\x00\x00\x01a\x01h\x01\xff")
    assert caught.value.path == "$.tail[0]"


@given(terms, st.data())
@settings(max_examples=150, deadline=None)
def test_every_truncation_is_an_error(term: Any, data: st.DataObject) -> None:
    whole = encode(term)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DecodeError) as caught:
        decode(whole[:cut])
    assert caught.value.offset is not None
    assert caught.value.offset <= cut


@given(terms, st.data())
@settings(max_examples=400, deadline=None)
def test_mutated_bytes_decode_or_are_refused(term: Any, data: st.DataObject) -> None:
    mutated = bytearray(encode(term))
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(1, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        made = decode(mutated)
    except (DecodeError, LimitExceeded):
        return
    again = encode(made)
    assert encode(decode(again)) == again


@given(st.binary(max_size=60))
@settings(max_examples=400, deadline=None)
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(DecodeError, LimitExceeded):
        decode(b"\x83" + data, binaries="utf8")


def test_decode_refuses_other_options() -> None:
    with pytest.raises(ValueError, match="utf8"):
        decode(b"\x83j", binaries="text")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1000000"):
        decode(b"\x83j", depth_max=1_000_001)
    with pytest.raises(OverflowError):
        decode(b"\x83j", decoded_bytes_max=-1)
    with pytest.raises(TypeError):
        decode("text")  # type: ignore[arg-type]


# -- limits ---------------------------------------------------------------------------------------


def nested(levels: int) -> bytes:
    return b"\x83" + b"l\x00\x00\x00\x01" * levels + b"j" * (levels + 1)


def test_depth_limit_holds_at_its_edge() -> None:
    decode(nested(1024))
    with pytest.raises(LimitExceeded) as caught:
        decode(nested(1025))
    assert caught.value.limit == "depth_max"
    assert caught.value.path.startswith("$[0][0]")
    decode(nested(1025), depth_max=1025)
    decode(nested(0), depth_max=0)
    with pytest.raises(LimitExceeded):
        decode(nested(1), depth_max=0)


def test_big_integer_limit_holds_at_its_edge() -> None:
    data = encode(2 ** (8 * 65536) - 1)
    assert decode(data).bit_length() == 8 * 65536
    larger = encode(2 ** (8 * 65536))
    with pytest.raises(LimitExceeded) as caught:
        decode(larger)
    assert caught.value.limit == "big_bytes_max"
    assert decode(larger, big_bytes_max=65537).bit_length() == 8 * 65536 + 1


def test_decoded_size_limit_refuses_many_small_objects() -> None:
    data = encode([[]] * 100_000)
    decode(data)
    with pytest.raises(LimitExceeded) as caught:
        decode(data, decoded_bytes_max=1_000_000)
    assert caught.value.limit == "decoded_bytes_max"


# -- compressed -----------------------------------------------------------------------------------


def compressed(term: Any, claim: int | None = None, level: int = 6) -> bytes:
    plain = encode(term)[1:]
    size = len(plain) if claim is None else claim
    return b"\x83P" + size.to_bytes(4, "big") + zlib.compress(plain, level)


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("term", [[], 5, [b"x" * 1000, 1.5], b"y" * 300_000])
def test_compressed_term_decodes(term: Any, level: int) -> None:
    assert decode(compressed(term, level=level)) == term


@pytest.mark.parametrize(
    "data",
    [
        compressed([1] * 1000, claim=1002),
        compressed([1] * 1000, claim=1004),
        compressed([1] * 1000, claim=0),
        compressed([1] * 1000)[:-1],
        compressed([1] * 1000)[:9],
        compressed([1] * 1000)[:6],
        compressed([1] * 1000)[:4],
        compressed([1] * 1000) + b"x",
        b"\x83P\x00\x00\x00\x05garbage",
        b"\x83P\x00\x00\x00\x0b" + zlib.compress(compressed([1] * 1000)[1:12]),
        b"\x83P\x00\x00\x00\x03" + zlib.compress(b"a\x01x"),
        b"\x83P\x00\x00\x00\x00" + zlib.compress(b""),
    ],
)
def test_damaged_compressed_term_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)


def test_zip_bomb_is_refused_before_it_is_inflated() -> None:
    bomb = b"\x83P" + (2**32 - 1).to_bytes(4, "big") + zlib.compress(bytes(10_000_000), 9)
    with pytest.raises(LimitExceeded) as caught:
        decode(bomb)
    assert caught.value.limit == "decoded_bytes_max"


def test_zip_bomb_that_lies_is_inflated_no_further_than_it_claims() -> None:
    import tracemalloc

    bomb = b"\x83P" + (1000).to_bytes(4, "big") + zlib.compress(bytes(50_000_000), 9)
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# -- the exceptions -------------------------------------------------------------------------------


def error_classes() -> list[type[errors.TumenError]]:
    found = [getattr(errors, name) for name in errors.__all__]
    return [cls for cls in found if issubclass(cls, errors.TumenError)]


@pytest.mark.parametrize("cls", error_classes())
def test_error_has_the_four_answers_and_survives_a_copy(cls: type[errors.TumenError]) -> None:
    error = cls("text", peer="a@b", retriable=True, may_have_executed=True, hint="look there")
    for made in (error, copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(made) is cls
        assert str(made) == "text"
        assert (made.peer, made.retriable, made.may_have_executed) == ("a@b", True, True)
        assert made.hint == "look there"
    assert cls().peer is None
    assert isinstance(cls().retriable, bool)
    assert cls.__doc__


def test_errors_are_caught_as_their_python_kin() -> None:
    assert issubclass(errors.CallTimeout, TimeoutError)
    assert issubclass(errors.NoConnection, ConnectionError)
    assert issubclass(DecodeError, ValueError)
    assert not issubclass(errors.Exit, errors.TumenError)
    assert errors.Exit((Atom("shutdown"), 1)).reason == (Atom("shutdown"), 1)


def test_errors_keep_their_own_fields_over_a_copy() -> None:
    error = errors.RemoteError("x", klass="exit", reason=Atom("r"), stacktrace=[1])
    again = pickle.loads(pickle.dumps(error))
    assert (again.klass, again.reason, again.stacktrace) == ("exit", Atom("r"), [1])
    decode_error = pickle.loads(pickle.dumps(DecodeError("x", path="$[1]", offset=3)))
    assert (decode_error.path, decode_error.offset) == ("$[1]", 3)
    assert errors.ServerDied("x", reason=1).reason == 1
    assert errors.ProcessExited("x", reason=1).reason == 1


def test_tree_in_the_docstring_names_every_class() -> None:
    assert errors.__doc__ is not None
    for name in errors.__all__:
        assert f"─ {name} " in errors.__doc__


def test_binary_of_nothing_encodes_as_an_empty_binary() -> None:
    assert encode(Binary(b"")) == encode(b"")
