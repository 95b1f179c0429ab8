"""The plots of a report, one SVG a group: needs matplotlib, of the dependency group bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from report import TITLES, ratio_of

LINE_INCHES = 0.24
COLOURS = ("#1b6ca8", "#c8553d", "#588157", "#8d6a9f", "#b08900", "#457b9d", "#6c757d")


def plots(found: dict[str, Any], folder: Path) -> None:
    """One SVG a group: how many times better the first of ours is, with its interval."""
    for group, title in TITLES.items():
        rows = [row for row in found["questions"] if row["group"] == group and row["ratios"]]
        if rows:
            plot(rows, title, folder / f"{group}.svg")


def plot(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    # The same figures make the same bytes.
    mpl.rcParams["svg.hashsalt"] = title
    opponents = list(
        dict.fromkeys(entry["theirs"] for row in rows for entry in row["ratios"]
                      if entry["ours"] == next(iter(row["contenders"])))
    )  # fmt: skip
    height = 1.4 + LINE_INCHES * sum(1 + 0.25 * len(opponents) for _ in rows)
    chart = Figure(figsize=(9, height), layout="constrained")
    axes = chart.add_subplot()
    for at, row in enumerate(rows):
        first, metric = next(iter(row["contenders"])), row["metrics"][0]
        for index, name in enumerate(opponents):
            ratio = ratio_of(row, first, name, metric)
            if ratio is None:
                continue
            middle, low, high = ratio
            place = at + 0.7 * (index + 0.5) / len(opponents) - 0.35
            colour = COLOURS[index % len(COLOURS)]
            axes.plot([low, high], [place, place], color=colour, linewidth=1.5)
            axes.plot([middle], [place], "o", color=colour, markersize=4)
            for wanted in goals_of(row, first, name, metric):
                axes.plot([wanted], [place], "|", color="black", markersize=7)
    axes.plot([], [], "|", color="black", markersize=7, label="goal")
    for index, name in enumerate(opponents):
        axes.plot([], [], "o-", color=COLOURS[index % len(COLOURS)], label=name)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row["asks"].replace("`", "") for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", which="both", linewidth=0.3)
    axes.set_xlabel("times better than …, median of pairs with its 95 % interval")
    axes.set_title(f"{title}: {next(iter(rows[0]['contenders']))} beside the others")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    chart.savefig(path, metadata={"Date": None})


def goals_of(row: dict[str, Any], ours: str, theirs: str, metric: str) -> list[float]:
    """How many times better it is to be than that opponent, where there is such a goal."""
    return [
        goal["at_least"]
        for goal in row["goals"]
        if (goal["ours"], goal.get("against"), goal["metric"]) == (ours, theirs, metric)
    ]
