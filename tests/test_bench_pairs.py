"""How the bench compares: order of play, ratios, intervals, goals; and its codec questions."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cli_runner import ROOT


@pytest.fixture(scope="module")
def pairs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_pairs", ROOT / "bench" / "pairs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules["bench_pairs"] = module
    spec.loader.exec_module(module)
    return module


class Stage:
    """Contenders whose values drift: each play is slower than the one before."""

    def __init__(self, values: dict[str, float]) -> None:
        self.values = values
        self.played: list[str] = []
        self.drift = 1.0

    def cannot(self, question: Any, contender: str) -> str | None:
        return None if contender in self.values else "absent"

    def play(self, question: Any, contender: str, seconds: float) -> dict[str, float]:
        self.played.append(contender)
        self.drift *= 1.01
        return {"rate": self.values[contender] / self.drift, "ns": self.drift, "count": 1}

    def count(self, question: Any, contender: str, seconds: float) -> dict[str, float]:
        return {"system_calls": 0.5}


def test_contenders_take_turns_forwards_and_backwards(pairs: ModuleType) -> None:
    question = pairs.Question("q", "?", ("tumen", "other"))
    stage = Stage({"tumen": 2.0, "other": 1.0})
    played = pairs.play(stage, question, 4, 1.0)
    warm_up, rounds = stage.played[:2], stage.played[2:]
    assert warm_up == ["tumen", "other"]
    assert rounds == ["tumen", "other", "other", "tumen", "tumen", "other", "other", "tumen"]
    # What drifts falls on both alike: the median of the pairs is the true ratio.
    assert pairs.compare(played, "rate", "tumen", "other").median == pytest.approx(2.0, rel=1e-3)


def test_a_ratio_above_one_is_better_whichever_way_the_metric_counts(pairs: ModuleType) -> None:
    assert pairs.better("rate", 200.0, 100.0) == 2.0
    assert pairs.better("p50_us", 50.0, 100.0) == 2.0


def test_an_interval_covers_the_median_and_is_the_same_for_a_seed(pairs: ModuleType) -> None:
    values = [1.0, 1.2, 0.9, 1.1, 1.3, 1.0, 1.05, 0.95, 1.15, 1.25]
    ratio = pairs.bootstrap(values, 7)
    assert 0.9 <= ratio.low < ratio.median < ratio.high <= 1.3
    assert pairs.bootstrap(values, 7) == ratio
    assert pairs.bootstrap([1.0] * 10) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(("at_least", "reached"), [(1.9, "yes"), (2.1, "interval"), (2.5, "no")])
def test_a_goal_is_reached_by_the_median_or_by_its_interval(
    pairs: ModuleType, at_least: float, reached: str
) -> None:
    goal = pairs.Goal("faster", "tumen", "rate", ("slow", "other", "absent"), at_least)
    question = pairs.Question("q", "?", ("tumen", "slow", "other", "absent"), goals=(goal,))
    played = pairs.Played(question, 4, 1.0)
    played.samples = {
        "tumen": [{"rate": rate} for rate in (1.8, 2.0, 2.0, 2.2)],
        "slow": [{"rate": 0.5}] * 4,
        "other": [{"rate": 1.0}] * 4,
    }
    verdict = pairs.judge(played, goal)
    # Held against the better one of those that took part.
    assert verdict["against"] == "other"
    assert verdict["reached"] == reached


def test_a_goal_in_a_number_is_held_against_the_round_that_counts(pairs: ModuleType) -> None:
    goal = pairs.Goal("few", "tumen", "system_calls", at_most=0.4)
    question = pairs.Question("q", "?", ("tumen", "gone"), goals=(goal,))
    played = pairs.play(Stage({"tumen": 1.0}), question, 2, 1.0)
    row = pairs.report(played, 0.0)
    assert row["goals"] == [
        {"says": "few", "ours": "tumen", "metric": "system_calls", "at_most": 0.4, "value": 0.5,
         "reached": "no"}
    ]  # fmt: skip
    assert row["cannot"] == {"gone": "absent"}


def test_the_bench_times_codecs_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    names = "encode_map,decode_gen_call,typed_decode_user"
    command = [sys.executable, str(ROOT / "bench" / "run.py"), "--quick", "--only", names]
    done = subprocess.run(
        [*command, "--json", str(path)], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    for row in found["questions"]:
        assert {"tumen", "msgspec"} <= set(row["contenders"])
        (ratio,) = (
            entry["ratio"]
            for entry in row["ratios"]
            if (entry["ours"], entry["theirs"]) == ("tumen", "msgspec")
        )
        assert 0 < ratio[1] <= ratio[0] <= ratio[2]
        # A codec of others that is not installed, or cannot carry the term, says so.
        assert all(isinstance(reason, str) and reason for reason in row["cannot"].values())
    assert [row["name"] for row in found["questions"]] == names.split(",")


def test_a_question_that_fails_is_named_and_the_others_are_asked(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    script = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import codec, run;"
        "play = codec.TimingStage.play;"
        "codec.TimingStage.play = lambda self, question, *rest: 1 / 0"
        " if question.name == 'encode_map' else play(self, question, *rest);"
        "sys.exit(run.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(ROOT / "bench"), "--quick", "--json", str(path),
         "--only", "encode_tuple,encode_map,decode_map"],
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["questions"]] == ["encode_tuple", "decode_map"]
    assert found["failed"] == {"encode_map": "ZeroDivisionError: division by zero"}
    assert "encode_map: failed: division by zero" in done.stdout
