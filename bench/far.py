"""How fast are small messages between nodes that are 20 ms apart?

The one-way tests of bench/wire.py with a program between the nodes that hands on everything 20 ms
later, each way (bench/peers/delay.py). It reads what there is once a millisecond, for all alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cluster import Cluster
from pairs import Goal, Question
from wire import THREADED, WireStage, goals, one_way, pingpong

DELAY_MS = 20
CONTENDERS = (*THREADED, "beam28")
AT_LEAST = {"to_16": 4.0, "to_1k": 2.0, "from_16": 2.0, "from_1k": 1.0}


def apart(near: Question, goals: tuple[Goal, ...]) -> Question:
    """The same question for nodes that are apart."""
    return dataclasses.replace(
        near,
        name=f"far_{near.name}",
        asks=f"{near.asks}, {DELAY_MS} ms apart",
        contenders=CONTENDERS,
        # The last message is 20 ms on its way too, and the report of it.
        share=2.0,
        goals=goals,
    )


class Far:
    """The group."""

    name = "far"
    setup_s = 6.0

    def questions(self) -> list[Question]:
        asked = []
        for name, at_least in AT_LEAST.items():
            wanted = goals(f"≥ {at_least:g} × BEAM → BEAM", "rate", at_least)
            asked.append(apart(one_way(*name.split("_")), wanted))
        # Says how far apart they are.
        near = pingpong("to")
        return [*asked, apart(near, goals=())]

    @contextmanager
    def stage(self, questions: Sequence[Question]) -> Iterator[WireStage]:
        with Cluster(delay_ms=DELAY_MS) as cluster:
            yield WireStage(cluster)
