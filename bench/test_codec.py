"""The codec and its nearest rivals under pytest-benchmark: what tests/test_codec_floor.py judges.

pytest bench/test_codec.py
python bench/floor.py          the ratios, beside their floors
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from codec import corpus, run_of

RIVALS = ("tumen", "msgspec", "pickle")


@pytest.mark.parametrize("contender", RIVALS)
@pytest.mark.parametrize("item", corpus())
@pytest.mark.parametrize("direction", ["encode", "decode"])
# CPU time of the thread: what else runs on the machine costs it little.
@pytest.mark.benchmark(timer=time.thread_time, min_time=0.001, max_time=0.03, min_rounds=10)
def test_codec(benchmark: Any, direction: str, item: str, contender: str) -> None:
    run = run_of(contender, corpus()[item][1], direction)
    assert not isinstance(run, str), run
    benchmark.group = f"{direction}_{item}"
    benchmark.extra_info["contender"] = contender
    benchmark(*run)
