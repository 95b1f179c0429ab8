"""Erlang's terms in Python.

==========================  ==============================================================
Erlang                      Python
==========================  ==============================================================
atom                        `Atom`; ``true``, ``false``, ``nil`` are `True`, `False`, `None`
integer, float              `int`, `float`; NumPy scalars encode as numbers
binary                      `bytes`; a `str` encodes as its UTF-8; `Binary` for buffers
bit string                  `BitString`
tuple, list                 `tuple`, `list`; `ImproperList`
map                         `dict`; `TermMap` where a dict would lose or refuse a key
pid, port, reference        `Pid`, `Port`, `Reference`
fun                         `Fun` (of a peer, to be sent back), `Export` (``fun M:F/A``)
==========================  ==============================================================

Both ways are lossless: what `decode` gives, `encode` turns into a term that is ``=:=`` the first.
All classes are frozen, hashable where their parts are, and can be copied, pickled and matched with
``case``.
"""

from tumen._term import (
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

__all__ = [
    "Atom",
    "Binary",
    "BitString",
    "Export",
    "Fun",
    "ImproperList",
    "Pid",
    "Port",
    "Reference",
    "TermMap",
    "decode",
    "encode",
]
