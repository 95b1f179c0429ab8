"""Bytes made to hurt: floods of hashes, depth, atoms; and that nothing is left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from strategies import same
from tumen import _term
from tumen.errors import DecodeError, EncodeError, LimitExceeded
from tumen.terms import Atom, BitString, ImproperList, Pid, Reference, TermMap, decode, encode

MODULUS = sys.hash_info.modulus
SANITIZED = bool(os.environ.get("TUMEN_SANITIZED"))
# A sanitizer or a loaded machine is slower; what is guarded against takes minutes or crashes.
PATIENCE = 20 if SANITIZED else 1


def map_bytes(keys: list[bytes], value: bytes = b"a\x00") -> bytes:
    """A map of keys that are terms without version byte."""
    parts = [part for key in keys for part in (key, value)]
    return b"\x83t" + struct.pack(">I", len(keys)) + b"".join(parts)


def plain(term: Any) -> bytes:
    return encode(term)[1:]


# -- hash floods ----------------------------------------------------------------------------------


def colliding_ints(count: int) -> list[bytes]:
    return [plain(k * MODULUS + 1) for k in range(count)]


def colliding_tuples(count: int) -> list[bytes]:
    return [plain((k * MODULUS + 1, Atom("x"))) for k in range(count)]


def colliding_floats(count: int) -> list[bytes]:
    # 2.0**k hashes as 2**(k mod 61): at most 34 of them are alike, times the mantissas' patterns.
    return [plain(m * 2.0 ** (61 * k)) for k in range(-15, 15) for m in range(1, count // 30)]


def high_bits(count: int) -> list[bytes]:
    """Alike in the low bits, which a table looks at first; all different."""
    return [plain(k << 43) for k in range(count)]


def colliding_improper(count: int) -> list[bytes]:
    return [plain(ImproperList([k * MODULUS], 1)) for k in range(count)]


def colliding_nested(count: int) -> list[bytes]:
    return [plain(((((k * MODULUS,),),), Atom("x"))) for k in range(count)]


@pytest.mark.parametrize(
    "make",
    [
        colliding_ints,
        colliding_tuples,
        colliding_floats,
        colliding_improper,
        colliding_nested,
        high_bits,
    ],
)
def test_flood_of_equal_hashes_decodes_within_a_second(make: Callable[[int], list[bytes]]) -> None:
    keys = make(100_000)
    data = map_bytes(keys)
    start = time.process_time()
    made = decode(data)
    took = time.process_time() - start
    assert len(made) == len(keys)
    assert took < 1.0 * PATIENCE, f"{took:.2f} s"
    assert made[decode(b"\x83" + keys[500])] == 0
    assert encode(made) == data


def test_flood_below_the_check_is_bounded_by_its_size() -> None:
    one = map_bytes(colliding_ints(256))[1:]
    data = b"\x83l" + struct.pack(">I", 100) + one * 100 + b"j"
    start = time.process_time()
    made = decode(data)
    assert time.process_time() - start < 2.0 * PATIENCE
    assert type(made[0]) is dict


def test_honest_large_maps_are_dicts() -> None:
    for keys in (
        range(100_000),
        [-k for k in range(1000)],
        [float(k) for k in range(1000)],
        [(k, k + 1) for k in range(1000)],
        [k / 7 for k in range(1000)],
        [Atom(f"k{k % 100}") if k < 100 else k for k in range(1000)],
    ):
        made = decode(encode(dict.fromkeys(keys, 0)))
        assert type(made) is dict
        assert len(made) == len(keys)


def test_map_keys_of_identifiers_stay_a_dict_whatever_their_numbers() -> None:
    keys: list[Any] = [Pid("a@b", k, k, 1) for k in range(1000)]
    keys += [Reference("a@b", 1, (k, 0, 0)) for k in range(1000)]
    assert type(decode(encode(dict.fromkeys(keys)))) is dict


# -- keys that Python merges or refuses -----------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [
        [1, 1.0],
        [1, True],
        [0, False],
        [0.0, -0.0],
        [1, 1.0, True],
        [(1,), (1.0,)],
        [((1, (True,)),), ((1, (1,)),)],
        [[]],
        [{}],
        [(1, [2])],
        [BitString(b"\x80", 1), []],
        [ImproperList([[]], 1)],
    ],
    ids=repr,
)
def test_keys_that_a_dict_cannot_hold_make_a_term_map(keys: list[Any]) -> None:
    data = map_bytes([plain(key) for key in keys])
    made = decode(data)
    assert type(made) is TermMap
    assert same(list(made), keys)
    assert encode(made) == data
    padded = map_bytes([plain(key) for key in keys] + [plain(k) for k in range(2, 400)])
    assert encode(decode(padded)) == padded


@pytest.mark.parametrize(
    "keys",
    [
        [1, 1],
        [Atom("a"), Atom("a")],
        [1.0, 1, 1.0],
        [[], []],
        [b"a", b"a"],
        [[1], 2, [1]],
        [{1: 2, 3: 4}, 0, {3: 4, 1: 2}],
        [(1, {}), (1, {})],
    ],
    ids=repr,
)
def test_the_same_key_twice_is_malformed(keys: list[Any]) -> None:
    data = map_bytes([plain(key) for key in keys])
    with pytest.raises(DecodeError, match="same key twice") as caught:
        decode(data)
    assert caught.value.offset == len(data)
    with pytest.raises(DecodeError, match="same key twice") as caught:
        decode(b"\x83h\x02a\x01" + plain({Atom("k"): 0})[:-2] + data[1:])
    assert caught.value.path == "$[1].k"


@pytest.mark.parametrize("odd", [(1,), [], {}, 2.5, 2**70, Pid("a@b", 1, 2, 3), b"x" * 70_000, 1.0])
@pytest.mark.parametrize("place", range(5))
def test_map_is_whole_wherever_its_odd_key_comes(odd: Any, place: int) -> None:
    keys: list[Any] = [b"bytes", Atom("atom"), 1, -70_000]
    keys.insert(place, odd)
    values: list[Any] = [[b"x"], {b"bytes": (1, {Atom("atom"): []})}, 5, b"v", (2.5,)]
    pairs = [plain(part) for pair in zip(keys, values, strict=True) for part in pair]
    data = b"\x83t\0\0\0\5" + b"".join(pairs)
    made = decode(data)
    assert type(made) is (TermMap if odd in ([], {}, 1.0) else dict)
    assert same(list(made), keys)
    assert encode(made) == data
    # All of it again, as a value, and with its last key once more.
    assert encode(decode(map_bytes([b"w\1k"], data[1:]))) == map_bytes([b"w\1k"], data[1:])
    twice = b"t\0\0\0\6" + b"".join(pairs) + plain(keys[-1]) + b"j"
    with pytest.raises(DecodeError, match="same key twice") as caught:
        decode(b"\x83l\0\0\0\1" + map_bytes([b"w\1k"], twice)[1:] + b"j")
    assert caught.value.path == "$[0].k"


def test_path_of_a_key_twice_names_the_keys_that_lead_to_it() -> None:
    twice = map_bytes([b"a\1", b"a\1"])[1:]
    inner = b"t\0\0\0\2" + b"w\1aa\1" + plain(b"second key") + b"h\2j" + twice
    with pytest.raises(DecodeError, match="same key twice") as caught:
        decode(b"\x83t\0\0\0\2" + b"a\7a\1" + plain(b"outer") + inner)
    assert caught.value.path == "$.outer{'second key'}[1]"


def test_keys_that_come_again_are_told_apart() -> None:
    rng = random.Random(4)
    keys = [rng.randbytes(size) for size in range(48) for _ in range(1 if size == 0 else 40)]
    for _ in range(200):
        some = dict.fromkeys(rng.sample(keys, 30))
        assert decode(encode(some)) == some
        texts = {key.hex(): None for key in some}
        assert decode(encode(texts), binaries="utf8") == texts
        assert decode(encode(texts)) == {key.encode(): None for key in texts}
        mixed = decode(encode(some), binaries="utf8")
        assert [key if type(key) is bytes else key.encode() for key in mixed] == list(some)
        assert not any(type(key) is bytes and key.isascii() for key in mixed)


def test_the_same_key_twice_in_other_forms_is_malformed() -> None:
    for first, second in ((b"a\x05", b"b\0\0\0\5"), (b"w\x01a", b"d\0\1a"), (b"j", b"k\0\0")):
        with pytest.raises(DecodeError, match="same key twice"):
            decode(map_bytes([first, second]))


def test_the_same_key_twice_in_a_flood_is_malformed() -> None:
    with pytest.raises(DecodeError, match="same key twice"):
        decode(map_bytes(colliding_ints(5000) + colliding_ints(1)))


def test_maps_in_keys_of_maps_are_bounded() -> None:
    def in_keys(levels: int) -> bytes:
        data = b"j"
        for _ in range(levels):
            data = b"t\0\0\0\2" + data + b"a\0" + b"a\1a\1"
        return b"\x83" + data

    # The outermost map is in nobody's key.
    made = decode(in_keys(17))
    assert encode(made) == in_keys(17)
    with pytest.raises(LimitExceeded) as caught:
        decode(in_keys(18))
    assert caught.value.path.startswith("$.key(0).key(0)")
    deep_values = b"\x83" + b"t\0\0\0\1a\1" * 500 + b"j"
    assert encode(decode(deep_values)) == deep_values


# -- depth ----------------------------------------------------------------------------------------

MILLION = 1_000_000
# Enough to overflow 8 MiB of stack with less than 40 bytes a level; a sanitizer's frames are large.
DEEP = 40_000 if SANITIZED else 200_000


def deep_list(levels: int, term: Any = ()) -> Any:
    for _ in range(levels):
        term = [term]
    return term


def deep_improper(levels: int) -> Any:
    term: Any = ImproperList([1], 2)
    for _ in range(levels // 2):
        term = ImproperList([1], (term,))
    return term


def deep_map(levels: int) -> Any:
    term: Any = {}
    for _ in range(levels):
        term = TermMap([([], term)])
    return term


def deep_tuple(levels: int) -> Any:
    term: Any = ()
    for _ in range(levels):
        term = (term,)
    return term


def deep_dict(levels: int) -> Any:
    term: Any = {}
    for _ in range(levels):
        term = {1: term}
    return term


@pytest.mark.parametrize("make", [deep_list, deep_tuple, deep_dict, deep_map, deep_improper])
def test_deep_nesting_encodes_decodes_prints_and_dies(make: Callable[[int], Any]) -> None:
    term = make(DEEP)
    data = encode(term)
    del term
    again = decode(data, depth_max=MILLION)
    assert encode(again) == data
    other = decode(data, depth_max=MILLION)
    for use in (repr, hash, lambda term: term == other):
        # Python's own tuples have no guard in hash(): see below.
        if use is not hash or make is not deep_tuple:
            with contextlib.suppress(RecursionError, TypeError):
                use(again)


# What ends a term is written in different places. One is enough where levels cost ten times more.
INNERMOST: list[Any] = [[1]] if SANITIZED else [(), [1], (1,), {1: 2}, [[]]]


@pytest.mark.parametrize("innermost", INNERMOST, ids=repr)
def test_a_level_above_a_million_is_refused(innermost: Any) -> None:
    levels = MILLION - (1 if innermost else 0)
    assert encode(deep_list(levels, innermost))
    with pytest.raises(EncodeError, match="1000000 levels"):
        encode(deep_list(levels + 1, innermost))


def test_a_million_levels_are_written_and_read() -> None:
    levels = DEEP if SANITIZED else MILLION
    data = encode(deep_list(levels))
    assert encode(decode(data, depth_max=levels)) == data


def test_deep_key_is_never_hashed() -> None:
    """hash() of a deep tuple overflows the C stack, and a dict would call it."""
    for make in (deep_tuple, deep_improper):
        for levels in (65, 1000, DEEP):
            data = map_bytes([plain(make(levels))])
            made = decode(data, depth_max=MILLION)
            assert type(made) is TermMap
            assert encode(made) == data
        assert type(decode(map_bytes([plain(make(60))]))) is dict


def test_term_map_with_deep_keys_is_found_by_them() -> None:
    data = map_bytes([plain(deep_tuple(DEEP)), b"a\x01"])
    made = decode(data, depth_max=MILLION)
    assert made[1] == 0
    assert made[deep_tuple(DEEP)] == 0


def test_huge_counts_allocate_nothing() -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        for tag in (b"i", b"l", b"t", b"m", b"o"):
            with pytest.raises(DecodeError):
                decode(b"\x83" + tag + b"\x7f\xff\xff\xff" + bytes(50))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_printing_a_term_with_a_huge_integer_never_raises() -> None:
    huge = 10**5000
    for term in (TermMap([([], huge)]), ImproperList([huge], huge), ImproperList([1], huge)):
        assert "too large to show" in repr(term)


# -- the table of atoms ---------------------------------------------------------------------------


def test_atoms_are_kept_up_to_the_limit_and_still_decode_above_it() -> None:
    script = """
from tumen import _term
from tumen.terms import decode, encode
def atom(i): return decode(b"\\x83w\\x08%08d" % i)
count, most = _term.atom_table()
assert most == 65536 and count < 100, (count, most)
_term.set_atom_table_count_max(count + 1000)
for i in range(3000): assert atom(i).text == "%08d" % i
assert _term.atom_table() == (count + 1000, count + 1000), _term.atom_table()
assert atom(5) is atom(5)
assert atom(2999) is not atom(2999)
assert atom(2999) == atom(2999)
_term.set_atom_table_count_max(200_000)
for i in range(150_000): assert atom(i).text == "%08d" % i
# A name that finds no place is not kept: a few in a full table.
kept = _term.atom_table()[0]
assert 149_000 < kept <= count + 150_000, kept
assert decode(b"\\x83w\\x04true") is True and decode(b"\\x83w\\x03nil") is None
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_atom_table_refuses_other_limits() -> None:
    with pytest.raises(ValueError):
        _term.set_atom_table_count_max(-1)
    with pytest.raises(TypeError):
        _term.set_atom_table_count_max("many")  # type: ignore[arg-type]


def test_atoms_of_all_lengths_are_told_apart() -> None:
    for length in range(256):
        for last in "ab":
            text = "x" * (length - 1) + last if length else ""
            assert decode(encode(Atom(text))).text == text
    texts = ["é" * n for n in range(256)]
    assert [decode(encode(Atom(text))).text for text in texts] == texts


# -- nothing stays --------------------------------------------------------------------------------

SAMPLE: Any = [
    Atom("leak"),
    5,
    2**70,
    -(2**70),
    1.5,
    b"binary",
    BitString(b"\xa0", 3),
    Pid("a@b", 1, 2, 3),
    Reference("a@b", 1, (1, 2)),
    ImproperList([1, [2]], (3,)),
    TermMap([(1, []), (1.0, {}), ([], 2)]),
    {Atom("k"): (1, [256, {b"x": None}])},
    {(1, 2): 3, (1, 3): 4},
]


def refused(action: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        with pytest.raises((DecodeError, EncodeError, LimitExceeded)):
            action()

    return run


MAP = next(i for i, part in enumerate(SAMPLE) if isinstance(part, TermMap))
SAMPLE_BYTES = encode(SAMPLE)
ACTIONS: dict[str, Callable[[], Any]] = {
    "encode": lambda: encode(SAMPLE),
    "decode": lambda: decode(SAMPLE_BYTES),
    "decode with options": lambda: decode(SAMPLE_BYTES, binaries="utf8", views=True),
    "encode into a large buffer": lambda: encode([b"x" * 3000, SAMPLE]),
    "encode deep": lambda: encode(deep_list(100)),
    "decode deep": lambda: decode(nested_bytes(100)),
    "decode in pieces": lambda: decode(b"\x83" + b"l\0\0\0\1a\1" * 50 + b"w\1x"),
    "decode a flood": lambda: decode(FLOOD),
    "decode truncated": refused(lambda: decode(SAMPLE_BYTES[:-3])),
    "decode a key twice": refused(lambda: decode(TWICE)),
    "decode an odd key late": lambda: decode(ODD),
    "decode a key twice late": refused(lambda: decode(ODD_TWICE)),
    "decode keys": lambda: decode(KEYS),
    "encode leaves, then an object": refused(lambda: encode({b"k": [1, (2, [3, object()])]})),
    "decode too deep": refused(lambda: decode(nested_bytes(2000))),
    "encode an object": refused(lambda: encode([SAMPLE, {"k": [object()]}])),
    "encode a key twice": refused(lambda: encode([SAMPLE, {"a": 1, b"a": 2}])),
    "encode a bad key": refused(lambda: encode({(1, object()): 5})),
    "encode a large thing, then an object": refused(lambda: encode([b"x" * 5000, object()])),
    "compare": lambda: (decode(SAMPLE_BYTES)[MAP] == SAMPLE[MAP], SAMPLE[MAP] == {1: 2}),
    "hash": lambda: {hash(SAMPLE[i]) for i in (0, 6, 7, 8)},
    "look up": lambda: (SAMPLE[MAP][1.0], SAMPLE[MAP].get({}), list(SAMPLE[MAP].items())),
}


def nested_bytes(levels: int) -> bytes:
    return b"\x83" + b"l\x00\x00\x00\x01" * levels + b"j" * (levels + 1)


FLOOD = map_bytes(colliding_ints(400))
ODD = map_bytes(
    [b"w\1k", b"a\1", plain(b"bytes"), plain((1, b"key")), plain(2.5)], SAMPLE_BYTES[1:]
)
ODD_TWICE = map_bytes([plain(b"bytes"), b"a\1", b"a\1", plain((1,))], SAMPLE_BYTES[1:])
KEYS = encode({b"k%d" % i: [b"value", {b"k%d" % j: 1.5 for j in range(i)}] for i in range(20)})
TWICE = b"\x83h\x02" + SAMPLE_BYTES[1:] + map_bytes([b"a\1", b"jX"[:1], b"a\1"])[1:]


@pytest.mark.parametrize("name", ACTIONS)
def test_nothing_is_left_behind(name: str) -> None:
    action = ACTIONS[name]
    if SANITIZED:
        # Its malloc counts no blocks; it is after what is read or written where nothing is.
        for _ in range(100):
            action()
        return

    def blocks_after(calls: int) -> int:
        for _ in range(calls):
            action()
        gc.collect()
        return sys.getallocatedblocks()

    blocks_after(200)
    before = blocks_after(200)
    after = blocks_after(1000)
    assert after - before < 100, f"{after - before} blocks after 1000 calls"
