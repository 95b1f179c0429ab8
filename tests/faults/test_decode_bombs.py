"""`tumen.decode` given bytes that swell: refused by a limit, in little time and memory."""

from __future__ import annotations

import time
import zlib
from pathlib import Path

import pytest

import tumen
from faults.deep import DEEP
from faults.scene import PATIENCE


@pytest.mark.parametrize("what", DEEP)
def test_decode_of_a_million_deep_term_is_refused(what: str) -> None:
    data = b"\x83" + DEEP[what](1_000_000)
    start = time.process_time()
    with pytest.raises((tumen.LimitExceeded, tumen.DecodeError)) as caught:
        tumen.decode(data)
    assert time.process_time() - start < 1.0 * PATIENCE
    assert isinstance(caught.value, tumen.LimitExceeded)
    assert caught.value.limit == "depth_max"


def test_decode_of_a_zip_bomb_stops_at_what_it_claims() -> None:
    swollen = b"m" + (64 << 20).to_bytes(4, "big") + bytes(64 << 20)
    packed = zlib.compress(swollen, 9)
    honest = b"\x83\x50" + len(swollen).to_bytes(4, "big") + packed
    with pytest.raises(tumen.LimitExceeded):
        tumen.decode(honest, decoded_bytes_max=1 << 20)
    with pytest.raises(tumen.LimitExceeded):
        tumen.decode(b"\x83\x50\xff\xff\xff\xff" + packed)
    before = _peak_memory()
    for claimed in (0, 5, 1 << 20):
        with pytest.raises(tumen.DecodeError):
            tumen.decode(b"\x83\x50" + claimed.to_bytes(4, "big") + packed)
    assert _peak_memory() < before + (16 << 20)


def _peak_memory() -> int:
    """The most memory that this process has had resident, bytes."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
