"""The codec is not slower than it was, beside msgspec and pickle in the same run."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType

import pytest

from cli_runner import ROOT

# A loss is believed when it comes back.
ATTEMPTS = 5


@pytest.fixture(scope="module")
def floor() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_floor", ROOT / "bench" / "floor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.build
@pytest.mark.timeout(300)
def test_the_codec_holds_its_ratios(floor: ModuleType) -> None:
    held = json.loads(floor.FLOOR.read_text())
    lost: list[str] = []
    for _ in range(ATTEMPTS):
        ratios = floor.measure(" or ".join({line.split(":")[0].split("_", 1)[1] for line in lost}))
        if not lost:
            assert {group: set(rivals) for group, rivals in ratios.items()} == {
                group: set(rivals) for group, rivals in held.items()
            }
        lost = floor.losses(ratios, held)
        if not lost:
            return
    raise AssertionError("\n".join(lost))


def test_a_codec_that_became_slower_is_a_loss(floor: ModuleType) -> None:
    held = {"encode_map": {"msgspec": 1.0, "pickle": 2.0}}
    enough = 2.0 * floor.TOLERANCE
    assert floor.losses({"encode_map": {"msgspec": 1.5, "pickle": enough}}, held) == []
    (loss,) = floor.losses({"encode_map": {"msgspec": 1.5, "pickle": enough - 0.01}}, held)
    assert loss.startswith("encode_map: ")
    (unknown,) = floor.losses({"encode_new": {"msgspec": 1.0}}, held)
    assert "no floor" in unknown
