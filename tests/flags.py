"""Sets of capability flags that a node of ours can be told to announce."""

from __future__ import annotations

ATOM_CACHE = 1 << 13
FRAGMENTS = 1 << 23

# What a node announces of its own accord, less these two: frames are then in pass-through form.
PLAIN = 0xD_075F_5FBC

# Every pair of them, with its name for test ids.
FORMS = {
    "pass_through": PLAIN,
    "atom_cache": PLAIN | ATOM_CACHE,
    "fragments": PLAIN | FRAGMENTS,
    "both": PLAIN | ATOM_CACHE | FRAGMENTS,
}
