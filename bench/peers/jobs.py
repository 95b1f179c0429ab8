"""The jobs of bench/instead.py for who gets terms as bytes: the port, and Python in the BEAM."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def handler_of(codec: str) -> Callable[[bytes], bytes]:
    """From the bytes of {Number, Request} to those of {Number, Answer}, by that codec."""
    if codec == "tumen":
        tumen = importlib.import_module("tumen")
        return handler(tumen.encode, tumen.decode, b"n", lambda data: data)
    erlang = importlib.import_module("erlang")
    key = erlang.OtpErlangBinary(b"n")
    return handler(erlang.term_to_binary, erlang.binary_to_term, key, lambda data: data.value)


def handler(
    encode: Callable[[Any], bytes],
    decode: Callable[[bytes], Any],
    key: Any,
    bytes_of: Callable[[Any], bytes],
) -> Callable[[bytes], bytes]:
    """The same that tumen_peer.py does; `key`: "n" as that codec has it."""

    def handle(data: bytes) -> bytes:
        number, request = decode(data)
        if len(request) == 2:
            fields = request[1]
            return encode((number, {**fields, key: fields[key] + 1}))
        return encode((number, (request[1] + 1, len(bytes_of(request[2])))))

    return handle
