"""Terms that are nested deep, in a few megabytes and without an atom."""

from __future__ import annotations

from faults.evil import NIL


def nested_lists(depth: int) -> bytes:
    return b"l\0\0\0\1" * depth + NIL + NIL * depth


def nested_tuples(depth: int) -> bytes:
    return b"h\1" * depth + NIL


def nested_maps(depth: int) -> bytes:
    return b"t\0\0\0\1a\1" * depth + NIL


def nested_tails(depth: int) -> bytes:
    return (b"l\0\0\0\1" + NIL) * depth + NIL


DEEP = {
    "lists": nested_lists,
    "tuples": nested_tuples,
    "maps": nested_maps,
    "tails": nested_tails,
}
