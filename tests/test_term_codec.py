"""Bytes of the term format and objects, both ways: vectors of real releases, and properties."""

from __future__ import annotations

import hashlib
import re
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from strategies import same, terms
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

VECTORS = Path(__file__).parent / "vectors"

# Name of a vector → the term, as the object that decodes from it.
TERMS: dict[str, Any] = {
    "0": 0,
    "255": 255,
    "256": 256,
    "-1": -1,
    "2^31-1": 2**31 - 1,
    "2^31": 2**31,
    "-2^31": -(2**31),
    "-2^31-1": -(2**31) - 1,
    "2^59-1": 2**59 - 1,
    "2^59": 2**59,
    "2^63": 2**63,
    "2^64": 2**64,
    "-2^64": -(2**64),
    "2^2040-1 (255 bytes)": 2**2040 - 1,
    "2^2040 (256 bytes)": 2**2040,
    "1.5": 1.5,
    "-0.0": -0.0,
    "1.5 minor_version 0": 1.5,
    "atom ok": Atom("ok"),
    "atom ''": Atom(""),
    "atom 'e-acute'": Atom("é"),
    "atom U+1F600": Atom("\U0001f600"),
    "atom ok minor_version 1": Atom("ok"),
    "atom ok minor_version 2": Atom("ok"),
    "atom e-acute minor 1": Atom("é"),
    "atom 255 x U+1F600": Atom("\U0001f600" * 255),
    "atom 255 x a": Atom("a" * 255),
    "true": True,
    "[]": [],
    '"abc"': [97, 98, 99],
    "[0]": [0],
    "[255]": [255],
    "[256]": [256],
    "[a|b]": ImproperList([Atom("a")], Atom("b")),
    "[1,2|3]": ImproperList([1, 2], 3),
    "65535 bytes list": [1] * 65535,
    "65536 bytes list": [1] * 65536,
    "[97|b]": ImproperList([97], Atom("b")),
    "{}": (),
    "{a}": (Atom("a"),),
    "255-tuple": (1,) * 255,
    "256-tuple": (1,) * 256,
    "#{}": {},
    "#{a=>1}": {Atom("a"): 1},
    "#{b=>2,a=>1}": {Atom("b"): 2, Atom("a"): 1},
    "#{1.0=>f,1=>i,zz=>z,aa=>a}": TermMap(
        [(1, Atom("i")), (1.0, Atom("f")), (Atom("aa"), Atom("a")), (Atom("zz"), Atom("z"))]
    ),
    "same, deterministic": TermMap(
        [(1, Atom("i")), (1.0, Atom("f")), (Atom("aa"), Atom("a")), (Atom("zz"), Atom("z"))]
    ),
    "#{1..33}": {i: i for i in range(1, 34)},
    "#{1..33} deterministic": {i: i for i in range(1, 34)},
    "<<>>": b"",
    "<<1,2>>": b"\x01\x02",
    "<<1:1>>": BitString(b"\x80", 1),
    "<<255,5:3>>": BitString(b"\xff\xa0", 3),
    "<<1:1>> minor 0": BitString(b"\x80", 1),
    "fun lists:map/2": Export("lists", "map", 2),
    "pid other node": Pid("a@b", 1, 2, 3),
    "pid from PID_EXT": Pid("a@b", 1, 2, 3),
    "port other id<2^28": Port("a@b", 5, 3),
    "port other id=2^28": Port("a@b", 2**28, 3),
    "port from NEW_PORT_EXT": Port("a@b", 5, 3),
    "ref other 3 words": Reference("a@b", 3, (1, 2, 3)),
    "ref other 5 words": Reference("a@b", 3, (1, 2, 3, 4, 5)),
    "ref from REFERENCE_EXT 101": Reference("a@b", 1, (7,)),
    "ref from NEW_REFERENCE 114": Reference("a@b", 1, (7,)),
    "self() (nonode@nohost)": Pid,
    "make_ref()": Reference,
    "alias()": Reference,
    "hd(erlang:ports())": Port,
    "fun()->ok end": Fun,
    "compressed 1000 x a": [Atom("a")] * 1000,
    "compressed small (not smaller)": (Atom("a"),),
    "{compressed,1}": [Atom("a")] * 1000,
}
# What a release writes otherwise than we do: old forms, compressed, the order of a large map.
# Ports, too: OTP 25 writes NEW_PORT_EXT for small numbers, which OTP 28 does not any more.
OTHER_FORM = re.compile("minor|compressed|from|deterministic|1[.][.]33|zz=>z|small [(]not")


def vectors(release: str) -> dict[str, str]:
    """Name → hex of the lines that are terms; the decoder's edge cases are tests below."""
    found = {}
    for line in (VECTORS / f"etf_{release}.txt").read_text().splitlines():
        match = re.fullmatch(r"(.+?)\s{2,}(83\S+( bytes\).*)?)", line)
        if match and not line.startswith(("decode", "local")):
            found[match[1]] = match[2]
    return found


def whole_bytes(text: str) -> bytes | None:
    return bytes.fromhex(text) if ".." not in text else None


@pytest.mark.parametrize("release", ["otp25", "otp28"])
def test_vectors_name_every_term_of_the_table(release: str) -> None:
    assert set(vectors(release)) == set(TERMS)


@pytest.mark.parametrize("release", ["otp25", "otp28"])
@pytest.mark.parametrize("name", TERMS)
def test_vector_decodes_to_its_term(release: str, name: str) -> None:
    data = whole_bytes(vectors(release)[name])
    expected = TERMS[name]
    if data is None:
        return  # the file has only the start of it; the next test compares its digest
    term = decode(data)
    if isinstance(expected, type):
        assert type(term) is expected
    elif name.startswith("#{1..33}"):
        assert term == expected
    else:
        assert type(term) is type(expected)
        assert same(term, expected)


@pytest.mark.parametrize("name", [name for name in TERMS if not OTHER_FORM.search(name)])
def test_term_encodes_as_otp28_writes_it(name: str) -> None:
    text = vectors("otp28")[name]
    data = whole_bytes(text)
    if isinstance(TERMS[name], type):
        assert data is not None
        assert encode(decode(data)) == data
    elif data is not None:
        assert encode(TERMS[name]) == data
    else:
        made = encode(TERMS[name])
        assert made.hex().startswith(text.split("..")[0])
        assert hashlib.md5(made).hexdigest() == text.split("md5=")[1]


@pytest.mark.parametrize("name", [name for name in TERMS if not isinstance(TERMS[name], type)])
def test_term_of_the_table_survives_a_round_trip(name: str) -> None:
    assert same(decode(encode(TERMS[name])), TERMS[name])


@given(terms)
@settings(max_examples=400, deadline=None)
def test_round_trip_is_exact(term: Any) -> None:
    data = encode(term)
    again = decode(data)
    assert same(again, term)
    assert encode(again) == data


@given(terms)
@settings(max_examples=100, deadline=None)
def test_round_trip_keeps_the_types(term: Any) -> None:
    def shape(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [type(value), *map(shape, value)]
        if isinstance(value, ImproperList):
            return [ImproperList, *map(shape, value), shape(value.tail)]
        return type(value)

    expected = shape(term)
    # A TermMap that a dict can hold comes back as a dict.
    if TermMap not in str_types(expected):
        assert shape(decode(encode(term))) == expected


def str_types(shape: Any) -> set[Any]:
    if isinstance(shape, list):
        return set().union(*map(str_types, shape))
    return {shape}


# -- forms that nobody writes any more, or not quite so -------------------------------------------

NODE = b"w\x03a@b"


@pytest.mark.parametrize(
    ("data", "term"),
    [
        (b"c1.50000000000000000000e+00" + bytes(5), 1.5),
        (b"c-1.50000000000000000000e+00" + bytes(4), -1.5),
        (b"c1.5\x00not looked at" + bytes(14), 1.5),
        (b"n\x03\x00\x05\x00\x00", 5),
        (b"n\x01\x01\x00", 0),
        (b"n\x00\x00", 0),
        (b"o\x00\x00\x00\x01\x01\x07", -7),
        (b"n\x08\x01" + bytes(7) + b"\x80", -(2**63)),
        (b"n\x08\x01" + b"\xff" * 8, -(2**64) + 1),
        (b"n\x08\x00" + b"\xff" * 8, 2**64 - 1),
        (b"s\x01\xe9", Atom("é")),
        (b"d\x00\x01\xe9", Atom("é")),
        (b"d\x00\x02ok", Atom("ok")),
        (b"v\x00\x04true", True),
        (b"d\x00\x05false", False),
        (b"s\x03nil", None),
        (b"w\x01\x00", Atom("\0")),
        (b"k\x00\x00", []),
        (b"l\x00\x00\x00\x00w\x01a", Atom("a")),
        (b"l\x00\x00\x00\x00l\x00\x00\x00\x00j", []),
        (b"l\x00\x00\x00\x01a\x01l\x00\x00\x00\x01a\x02j", [1, 2]),
        (b"l\x00\x00\x00\x01a\x01k\x00\x02\x02\x03", [1, 2, 3]),
        (b"l\x00\x00\x00\x01a\x01l\x00\x00\x00\x00j", [1]),
        (b"l\x00\x00\x00\x01a\x01l\x00\x00\x00\x01a\x02a\x03", ImproperList([1, 2], 3)),
        (b"l\x00\x00\x00\x01jh\x01a\x01", ImproperList([[]], (1,))),
        (b"M\x00\x00\x00\x01\x08\xff", b"\xff"),
        (b"M\x00\x00\x00\x01\x03\xbf", BitString(b"\xa0", 3)),
        (b"i\x00\x00\x00\x00", ()),
        (b"g" + NODE + b"\0\0\0\1\0\0\0\2\3", Pid("a@b", 1, 2, 3)),
        (b"f" + NODE + b"\0\0\0\1\3", Port("a@b", 1, 3)),
        (b"Y" + NODE + b"\0\0\0\1\0\0\0\3", Port("a@b", 1, 3)),
        (b"Z\x00\x00" + NODE + b"\0\0\0\3", Reference("a@b", 3, ())),
        (b"X" + b"d\x00\x02\xe9@" + bytes(12), Pid("é@", 0, 0, 0)),
        (b"X" + b"w\x04true" + bytes(12), Pid("true", 0, 0, 0)),
        (b"X" + b"w\x03nil" + bytes(12), Pid("nil", 0, 0, 0)),
        (b"qw\x01aw\x01bb\x00\x00\x01\x2c", Export("a", "b", 300)),
    ],
)
def test_other_form_decodes(data: bytes, term: Any) -> None:
    made = decode(b"\x83" + data)
    assert type(made) is type(term)
    assert same(made, term)
    assert same(decode(encode(made)), term)


def test_decoding_a_bit_string_leaves_other_bytes_alone() -> None:
    assert decode(b"\x83M\x00\x00\x00\x01\x03\xbf") == BitString(b"\xa0", 3)
    assert bytes([0xBF])[0] == 0xBF, "Python shares its one-byte objects"


def test_ports_are_always_written_with_64_bits() -> None:
    assert encode(Port("a@b", 5, 3))[1] == 120


def test_improper_tail_may_be_any_term_and_hold_lists() -> None:
    term = ImproperList([[1, 2], {}], (ImproperList([b"x"], {1: [2]}),))
    assert same(decode(encode(term)), term)


def test_list_in_many_pieces_is_one_list() -> None:
    pieces = b"".join(b"l\x00\x00\x00\x01a" + bytes([i % 256]) for i in range(10_000))
    assert decode(b"\x83" + pieces + b"j", depth_max=20_000) == [i % 256 for i in range(10_000)]


# -- what stands for what -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "term"),
    [
        ("é", "é".encode()),
        ("", b""),
        ("\U0001f600" * 3, ("\U0001f600" * 3).encode()),
        (bytearray(b"x"), b"x"),
        (memoryview(b"abc")[1:], b"bc"),
        (Binary(memoryview(b"abc")), b"abc"),
        (BitString(b"ab", 8), b"ab"),
        (BitString(b"", 3), b""),
    ],
)
def test_stands_for_a_binary(given: Any, term: bytes) -> None:
    assert decode(encode(given)) == term


def test_array_encodes_as_the_bytes_it_is_made_of() -> None:
    from array import array

    items = array("i", [1, 2, 3])
    assert decode(encode(Binary(items))) == items.tobytes()


def test_subclasses_encode_as_what_they_extend() -> None:
    from collections import OrderedDict, defaultdict, namedtuple
    from enum import IntEnum

    class Color(IntEnum):
        RED = 3

    class Text(str):
        pass

    point = namedtuple("point", "x y")  # noqa: PYI024 - the untyped kind is the subject
    ordered = OrderedDict([(Text("a"), 1), ("b", 2)])
    ordered.move_to_end("a")
    assert decode(encode(Color.RED)) == 3
    assert decode(encode([Color.RED, 4])) == [3, 4]
    assert encode([Color.RED])[1] == 107, "STRING_EXT, as for any list of bytes"
    assert decode(encode(point(1, 2))) == (1, 2)
    assert list(decode(encode(ordered))) == [b"b", b"a"]
    assert decode(encode(defaultdict(list, a=[1]))) == {b"a": [1]}
    assert decode(encode(Text("é"))) == "é".encode()


class Scalar:
    """What NumPy's scalars show of themselves."""

    def __init__(self, kind: str, value: Any, ndim: int = 0) -> None:
        self.dtype = type("dtype", (), {"kind": kind})
        self.ndim = ndim
        self.value = value

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)


def scalars() -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = [
        (Scalar("i", 5), 5),
        (Scalar("u", 2**64 - 1), 2**64 - 1),
        (Scalar("f", 1.5), 1.5),
        (Scalar("b", True), True),
    ]
    try:
        import numpy as np
    except ImportError:
        return found
    found += [
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float64(1.5), 1.5),
        (np.float32(0.5), 0.5),
        (np.float16(2.0), 2.0),
        (np.bool_(True), True),
        (np.array(7), 7),
        (np.str_("é"), "é".encode()),
        (np.bytes_(b"x"), b"x"),
    ]
    return found


@pytest.mark.parametrize(("given", "term"), scalars(), ids=lambda value: type(value).__name__)
def test_array_scalar_encodes_as_its_number(given: Any, term: Any) -> None:
    made = decode(encode([given]))[0]
    assert type(made) is type(term)
    assert made == term


def test_index_of_an_object_encodes_as_an_integer() -> None:
    class Index:
        def __index__(self) -> int:
            return 2**70

    assert decode(encode((Index(),))) == (2**70,)


def test_mapping_encodes_as_a_map() -> None:
    from types import MappingProxyType

    assert decode(encode(MappingProxyType({"a": [1]}))) == {b"a": [1]}


def test_bool_is_an_atom_and_no_integer() -> None:
    assert encode([True, 1]) == b"\x83l\x00\x00\x00\x02w\x04truea\x01j"


@pytest.mark.parametrize("count", [1, 65535])
def test_list_of_bytes_is_a_string(count: int) -> None:
    assert encode([7] * count)[1] == 107


@pytest.mark.parametrize(
    "items", [[7] * 65536, [7, 256], [7, -1], [7, ()], [7, Atom("")], [7, True], [7, 1.0]]
)
def test_other_list_is_no_string(items: list[Any]) -> None:
    assert encode(items)[1] == 108
    assert same(decode(encode(items)), items)


def test_map_keeps_its_order() -> None:
    keys = [Atom("z"), 5, b"m", (1,), Atom("a"), 1.5]
    assert list(decode(encode(dict.fromkeys(keys)))) == keys


# -- fun ------------------------------------------------------------------------------------------


def fun_bytes(free: bytes = b"a\x07", count: int = 1, size: int | None = None) -> bytes:
    body = (
        b"\x02" + bytes(range(16)) + b"\0\0\0\x09" + count.to_bytes(4, "big")
        + b"w\x03mod" + b"a\x05" + b"b\x01\x02\x03\x04" + b"X" + NODE + bytes(12) + free
    )  # fmt: skip
    size = len(body) + 4 if size is None else size
    return b"p" + size.to_bytes(4, "big") + body


def test_fun_has_all_its_fields() -> None:
    fun = decode(b"\x83" + fun_bytes())
    assert (fun.module, fun.arity, fun.index, fun.uniq) == ("mod", 2, 9, bytes(range(16)))
    assert (fun.old_index, fun.old_uniq, fun.free) == (5, 0x01020304, (7,))
    assert fun.creator == Pid("a@b", 0, 0, 0)
    assert repr(fun).startswith("<Fun mod/2 ")


def test_fun_goes_back_byte_for_byte() -> None:
    old_atoms = b"\x83" + fun_bytes().replace(b"w\x03mod", b"d\x00\x03mod")
    assert encode(decode(old_atoms))[6:] == old_atoms[6:]
    assert encode(decode(b"\x83" + fun_bytes())) == b"\x83" + fun_bytes()


def test_fun_with_a_wrong_size_field_is_sent_with_the_right_one() -> None:
    assert encode(decode(b"\x83" + fun_bytes(size=4))) == b"\x83" + fun_bytes()


def test_funs_compare_by_code_and_captured_values() -> None:
    fun = decode(b"\x83" + fun_bytes())
    other_process = decode(b"\x83" + fun_bytes().replace(bytes(12), bytes(11) + b"\1"))
    assert fun == other_process
    assert hash(fun) == hash(other_process)
    assert same([fun], [other_process])
    assert fun != decode(b"\x83" + fun_bytes(free=b"a\x08"))
    float_captured = b"F" + b"\x40\x1c" + bytes(6)
    assert fun != decode(b"\x83" + fun_bytes(free=float_captured))


# -- options --------------------------------------------------------------------------------------


def test_binaries_utf8_gives_str_where_valid() -> None:
    data = encode([b"abc", "é".encode(), b"", b"\xff", b"\xed\xa0\x80", {b"k": b"v"}])
    expected = ["abc", "é", "", b"\xff", b"\xed\xa0\x80", {"k": "v"}]
    assert decode(data, binaries="utf8") == expected


def test_views_are_for_large_binaries_only() -> None:
    large = bytes(65536)
    small, view = decode(encode([large[1:], large]), views=True)
    assert type(small) is bytes
    assert isinstance(view, memoryview)
    assert view.readonly
    assert view == large
    assert decode(encode(view)) == large


def test_view_has_its_own_memory() -> None:
    data = encode([bytes(65536), bytes(65536)])
    view = decode(data, views=True)[0]
    assert view.obj is not data
    assert len(view.obj) == 65536


@pytest.mark.parametrize("kind", [bytearray, memoryview, lambda data: memoryview(bytearray(data))])
def test_any_buffer_decodes(kind: Any) -> None:
    assert decode(kind(encode([1, b"x"]))) == [1, b"x"]


def test_strided_buffer_decodes() -> None:
    data = encode((1, 2))
    spread = bytearray(2 * len(data))
    spread[::2] = data
    assert decode(memoryview(spread)[::2]) == (1, 2)


def test_decoded_terms_do_not_share_memory_with_the_input() -> None:
    data = bytearray(encode(b"abc"))
    term = decode(data)
    data[-1] = 0
    assert term == b"abc"


def test_large_output_grows_from_the_small_buffer() -> None:
    for size in (900, 1000, 1018, 1019, 1024, 5000, 200_000):
        term = [b"x" * size, "é" * size, Atom("a"), 2 ** (8 * size)]
        assert decode(encode(term), big_bytes_max=10**6)[:3] == [b"x" * size, ("é" * size).encode(),
                                                               Atom("a")]  # fmt: skip
        assert decode(encode(term), big_bytes_max=10**6)[3] == term[3]


LEAVES: list[Any] = [
    7,
    -(2**31),
    2**63 - 1,
    1.5,
    True,
    None,
    Atom("atom"),
    Atom("é" * 255),
    b"bytes",
    "text",
    "é",
    Pid("n" * 200 + "@host", 1, 2, 3),
    Reference("a@b", 1, (1, 2, 3, 4, 5)),
]


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: repr(leaf)[:16])
def test_leaf_at_the_end_of_the_small_buffer_is_whole(leaf: Any) -> None:
    alone = encode(leaf)[1:]
    for size in range(1024 - len(alone) - 40, 1024):
        padding = b"m" + struct.pack(">I", size) + b"x" * size
        assert encode((b"x" * size, leaf)) == b"\x83h\x02" + padding + alone
        assert encode({b"x" * size: leaf}) == b"\x83t\0\0\0\1" + padding + alone
        assert encode([b"x" * size, leaf]) == b"\x83l\0\0\0\2" + padding + alone + b"j"


def integer_bytes(value: int) -> bytes:
    if 0 <= value <= 255:
        return bytes((97, value))
    if -(2**31) <= value < 2**31:
        return b"b" + struct.pack(">i", value)
    digits = abs(value).to_bytes((abs(value).bit_length() + 7) // 8, "little")
    return bytes((110, len(digits), value < 0)) + digits


def test_integers_around_each_power_of_two_are_written_in_their_shortest_form() -> None:
    values = [
        sign * 2**bits + change for bits in range(72) for sign in (1, -1) for change in (-1, 0, 1)
    ]
    wires = [integer_bytes(value) for value in values]
    head = b"\x83l" + struct.pack(">I", len(values))
    assert encode(values) == head + b"".join(wires) + b"j"
    for value, wire in zip(values, wires, strict=True):
        assert encode(value) == b"\x83" + wire
        assert encode({value: (value,)}) == b"\x83t\0\0\0\1" + wire + b"h\x01" + wire
        assert decode(encode({value: (value,)})) == {value: (value,)}


def test_short_bytes_and_texts_of_every_length_are_whole() -> None:
    alphabet = bytes(range(48, 112))
    for size in range(64):
        data = alphabet[:size]
        text = data.decode()
        term = [data, text, Atom(text), (data, text, Atom(text)), {data: text, Atom(text): data}]
        wire = encode(term)
        assert wire.count(data) >= 9
        assert same(
            decode(wire),
            [data, data, Atom(text), (data, data, Atom(text)), {data: data, Atom(text): data}],
        )


def test_containers_in_every_place_of_a_tuple_are_whole() -> None:
    for inner in ((), [], {}, (1,), [1.5], {1: 2}, ImproperList([1], 2), [b"x", (2,)], {(1,): [2]}):
        alone = encode(inner)[1:]
        for before in range(4):
            for after in range(4):
                parts = (1,) * before + (inner,) + (2.5, Atom("a"), b"b")[:after]
                wire = b"".join(encode(part)[1:] for part in parts)
                assert encode(parts) == b"\x83" + bytes((104, len(parts))) + wire
                head = b"\x83l" + struct.pack(">I", len(parts))
                assert encode([*parts]) == head + wire + b"j"
                assert alone in wire


def test_encode_does_not_keep_its_arguments() -> None:
    term = [b"unique binary", "unique text é", (1.5,), {b"k": [object]}]
    before = [sys.getrefcount(part) for part in term]
    encode(term[:3])
    assert [sys.getrefcount(part) for part in term] == before
