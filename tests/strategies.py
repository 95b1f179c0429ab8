"""Random terms: hypothesis strategies, and a fast seeded generator of the same shapes.

Hypothesis shrinks what fails; `TermSource` makes a hundred thousand terms in a second or two, for
the comparison with a real BEAM.
"""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st

from tumen.terms import (
    Atom,
    BitString,
    Export,
    ImproperList,
    Pid,
    Port,
    Reference,
    TermMap,
    encode,
)

U32 = 2**32 - 1
U64 = 2**64 - 1
# Where the encodings of integers change, and their neighbours.
INTEGER_EDGES = [
    sign * (2**bits + step)
    for bits in (0, 7, 8, 15, 16, 30, 31, 32, 59, 60, 61, 62, 63, 64, 255, 2040)
    for step in (-1, 0, 1)
    for sign in (1, -1)
]
FLOAT_EDGES = [0.0, -0.0, 1.0, -1.0, 5e-324, -2.2250738585072014e-308, 1.7976931348623157e308]

RESERVED = ("true", "false", "nil")


def same(a: Any, b: Any) -> bool:
    """Erlang's =:= ; Python's == does not tell 1, 1.0 and True apart."""
    return TermMap([(0, a)]) == TermMap([(0, b)])


# -- hypothesis -----------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
atoms = texts.map(lambda text: Atom(text + "_" if text in RESERVED else text))
nodes = st.one_of(st.just("a@127.0.0.1"), texts)
u32 = st.integers(0, U32)
pids = st.builds(Pid, nodes, u32, u32, u32)
ports = st.builds(Port, nodes, st.integers(0, U64), u32)
references = st.builds(Reference, nodes, u32, st.lists(u32, min_size=1, max_size=5))
exports = st.builds(Export, texts, texts, st.integers(0, 255))
bit_strings = st.builds(BitString, st.binary(min_size=1, max_size=9), st.integers(1, 7))
# Not sampled_from: hypothesis prints a strategy now and then, and those numbers are long.
edges = st.integers(0, len(INTEGER_EDGES) - 1).map(INTEGER_EDGES.__getitem__)
integers = st.one_of(st.integers(), edges)
floats = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(FLOAT_EDGES))

leaves = st.one_of(
    st.none(),
    st.booleans(),
    integers,
    floats,
    atoms,
    st.binary(max_size=20),
    bit_strings,
    pids,
    ports,
    references,
    exports,
)


def unique_map(pairs: list[tuple[Any, Any]]) -> TermMap:
    """A TermMap of the pairs whose key is new."""
    kept: list[tuple[Any, Any]] = []
    for key, value in pairs:
        if key not in TermMap(kept):
            kept.append((key, value))
    return TermMap(kept)


def _containers(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    pairs = st.lists(st.tuples(parts, parts), max_size=4)
    tails = parts.map(lambda tail: (tail,) if isinstance(tail, (list, ImproperList)) else tail)
    return st.one_of(
        st.lists(parts, max_size=5),
        st.lists(st.integers(0, 255), max_size=9),
        st.lists(parts, max_size=5).map(tuple),
        st.builds(ImproperList, st.lists(parts, min_size=1, max_size=3), tails),
        st.dictionaries(leaves, parts, max_size=5),
        pairs.map(unique_map),
    )


terms = st.recursive(leaves, _containers, max_leaves=25)


# -- seeded ---------------------------------------------------------------------------------------


class TermSource:
    """Random terms from a seed: the same seed, the same terms.

    negative_zero: whether -0.0 comes up, which before OTP 27 is the same key as 0.0.
    """

    def __init__(self, seed: int, *, negative_zero: bool = True) -> None:
        self.rng = random.Random(seed)
        self.floats = FLOAT_EDGES if negative_zero else [x for x in FLOAT_EDGES if str(x) != "-0.0"]
        self.atoms = [Atom(name) for name in ("ok", "error", "", "a b", "é", "Ω", "x" * 255)]
        self.nodes = ["b@host.example", "a@127.0.0.1", "é@h"]

    def term(self, depth: int = 4) -> Any:
        rng = self.rng
        if depth == 0 or rng.random() < 0.5:
            return self.leaf()
        kind = rng.randrange(7)
        if kind == 0:
            return [self.term(depth - 1) for _ in range(rng.randrange(5))]
        if kind == 1:
            return [rng.randrange(256) for _ in range(rng.randrange(12))]
        if kind == 2:
            return tuple(self.term(depth - 1) for _ in range(rng.randrange(5)))
        if kind == 3:
            return self.improper(depth)
        if kind == 4:
            return self.map(depth)
        return {self.leaf(): self.term(depth - 1) for _ in range(rng.randrange(5))}

    def improper(self, depth: int) -> ImproperList:
        while True:
            tail = self.term(depth - 1)
            if not isinstance(tail, (list, ImproperList)):
                break
        items = [self.term(depth - 1) for _ in range(self.rng.randrange(1, 4))]
        return ImproperList(items, tail)

    def map(self, depth: int) -> TermMap:
        """Keys of every kind, often such as are equal in Python: 1, 1.0 and True."""
        rng = self.rng
        small = [1, 1.0, True, 0, 0.0, False, None, (1,), (1.0,), [1], {}, b"a", Atom("a")]
        keys = [
            rng.choice(small) if rng.random() < 0.5 else self.term(depth - 1)
            for _ in range(rng.randrange(5))
        ]
        found: dict[bytes, tuple[Any, Any]] = {}
        for key in keys:
            found.setdefault(encode([TermMap([(key, 0)])]), (key, self.term(depth - 1)))
        return unique_map(list(found.values()))

    def leaf(self) -> Any:
        rng = self.rng
        kind = rng.randrange(14)
        if kind < 3:
            return rng.randrange(-300, 300)
        if kind == 3:
            return (
                rng.choice(INTEGER_EDGES) if rng.random() < 0.5 else rng.getrandbits(200) - 2**199
            )
        if kind == 4:
            return rng.choice(self.floats) if rng.random() < 0.3 else rng.uniform(-1e9, 1e9)
        if kind < 7:
            return rng.choice(self.atoms)
        if kind == 7:
            return rng.choice((True, False, None))
        if kind < 10:
            return rng.randbytes(rng.randrange(12))
        if kind == 10:
            return BitString(rng.randbytes(rng.randrange(1, 5)), rng.randrange(1, 8))
        return self.identifier()

    def identifier(self) -> Any:
        rng = self.rng
        kind, node = rng.randrange(4), rng.choice(self.nodes)
        if kind == 0:
            return Pid(node, rng.getrandbits(32), rng.getrandbits(32), rng.getrandbits(32))
        if kind == 1:
            return Port(node, rng.getrandbits(rng.choice((20, 40, 64))), rng.getrandbits(32))
        if kind == 2:
            words = [rng.getrandbits(32) for _ in range(rng.randrange(1, 6))]
            return Reference(node, rng.getrandbits(32), words)
        return Export(rng.choice(("lists", "é")), "map", rng.randrange(256))
