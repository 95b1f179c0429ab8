"""What people read of a report: text, docs/performance.md and its plots."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import ROOT
from pairs import METRICS

PAGE = ROOT / "docs/performance.md"
FIGURES = ROOT / "docs/performance/figures.json"
# Above it others used so much of the machine that a question's figures do not go into the page.
FOREIGN_SHARE_MAX = 0.10
BEGIN, END = "<!-- figures: make bench-docs -->", "<!-- end of figures -->"

TITLES = {
    "codec": "Codec",
    "typed": "Codec with types",
    "wire": "Messages and calls",
    "far": "Messages, 20 ms apart",
    "instead": "What a user would pick instead",
    "backends": "io_uring beside our own epoll",
}
# What is told beside the metrics that are compared.
BESIDE = ("cpu_us", "other_cpu_us", "system_calls", "engine_calls")


# -- text ------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three digits that count, with thousands set apart."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def interval(ratio: list[float]) -> str:
    middle, low, high = (f"{value:,.0f}" if value >= 100 else f"{value:.2f}" for value in ratio)
    return f"{middle} ({low}–{high})"


def ratio_of(row: dict[str, Any], ours: str, theirs: str, metric: str) -> list[float] | None:
    for entry in row["ratios"]:
        if (entry["ours"], entry["theirs"], entry["metric"]) == (ours, theirs, metric):
            ratio: list[float] = entry["ratio"]
            return ratio
    return None


def medians(row: dict[str, Any], contender: str) -> Iterator[tuple[str, float]]:
    """What was measured of it, the compared metrics first."""
    found = row["contenders"][contender]
    for metric in dict.fromkeys((*row["metrics"], *BESIDE)):
        if metric in found:
            yield metric, found[metric]["median"]


def text(row: dict[str, Any]) -> str:
    """One question for a terminal: the ratio of the first of ours to each other comes first."""
    first, metric = next(iter(row["contenders"]), ""), row["metrics"][0]
    lines = [f"{row['name']}: {row['asks']}"]
    for name in row["contenders"]:
        ratio = ratio_of(row, first, name, metric)
        told = interval(ratio) if ratio else "–"
        values = ", ".join(
            f"{number(value)} {METRICS[key].unit}" for key, value in medians(row, name)
        )
        lines.append(f"  {told:>20}  {name:<18} {values}")
    for name, reason in row["cannot"].items():
        lines.append(f"  {'–':>20}  {name:<18} {reason}")
    lines += [f"  goal {verdict(goal)}" for goal in row["goals"]]
    if row["foreign_share"] > FOREIGN_SHARE_MAX:
        lines.append(f"  others used {row['foreign_share']:.0%} of the machine meanwhile")
    return "\n".join(lines)


def verdict(goal: dict[str, Any]) -> str:
    """One goal, and where it stands."""
    if "ratio" in goal:
        stands = f"{interval(goal['ratio'])} of {goal['against']}"
    else:
        value = goal.get("value")
        stands = "–" if value is None else number(value)
    unit = METRICS[goal["metric"]].unit
    return f"{goal['reached']}: {goal['ours']} {goal['says']} ({unit}): {stands}"


def goals_of(found: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in found["questions"]:
        for goal in row["goals"]:
            yield row["asks"], goal
    for goal in found["summaries"]:
        yield "io_uring beside our own epoll", goal


def summary(found: dict[str, Any]) -> str:
    """All goals once more."""
    lines = ["== goals"]
    for asks, goal in goals_of(found):
        lines.append(f"  {asks}: {verdict(goal)}")
    lines += [f"  failed: {name}: {error}" for name, error in found["failed"].items()]
    return "\n".join(lines)


# -- the page --------------------------------------------------------------------------------------


def quiet(found: dict[str, Any]) -> dict[str, Any]:
    """The report without what was measured beside others; they are named."""
    kept, loud = [], list(found.get("left_out", []))
    for row in found["questions"]:
        if row["foreign_share"] > FOREIGN_SHARE_MAX:
            loud.append(row["name"])
        else:
            kept.append(row)
    return {**found, "questions": kept, "left_out": loud}


def trimmed(found: dict[str, Any]) -> dict[str, Any]:
    """The report as it is kept: numbers of four digits, and not every sample."""

    def short(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, dict):
            return {key: short(item) for key, item in value.items() if key != "values"}
        return [short(item) for item in value] if isinstance(value, list) else value

    cut: dict[str, Any] = short(found)
    return cut


def page_tables(found: dict[str, Any]) -> str:
    """The generated part of the page."""
    lines = [
        "Measured {time} at revision {revision} on {cpu}, {cores} cores, Linux {kernel}, Python "
        "{python}; {rounds} rounds, {elapsed_s:.0f} s in all, seed {seed}.".format(**found),
        "Versions: "
        + ", ".join(f"{name} {what}" for name, what in found["packages"].items())
        + ".",
        "",
    ]
    if found["failed"]:
        lines += ["Failed: " + ", ".join(found["failed"]) + ".", ""]
    if found["left_out"]:
        lines += ["Left out, for others used the machine meanwhile: "
                  + ", ".join(found["left_out"]) + ".", ""]  # fmt: skip
    lines += goal_table(found)
    for group, title in TITLES.items():
        rows = [row for row in found["questions"] if row["group"] == group]
        if rows:
            lines += ["", f"### {title}", "", found["groups"][group], ""]
            lines += [f"![{title}](performance/{group}.svg)", "", *group_tables(rows)]
    return "\n".join(lines)


def goal_table(found: dict[str, Any]) -> list[str]:
    lines = ["### Goals", "",
             "`interval`: the median does not reach the goal, its 95 % interval does.", "",
             "| work | goal | who | reached | measured |", "|---|---|---|---|---|"]  # fmt: skip
    for asks, goal in goals_of(found):
        if "ratio" in goal:
            stands = f"{interval(goal['ratio'])} × {goal['against']}"
        else:
            stands = "–" if goal.get("value") is None else number(goal["value"])
        cells = (asks, goal["says"], f"`{goal['ours']}`", goal["reached"], stands)
        lines.append(line(*cells))
    return lines


def group_tables(rows: list[dict[str, Any]]) -> list[str]:
    """A table for each metric that is compared, then CPU and system calls."""
    lines: list[str] = []
    kinds: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault(tuple(row["metrics"]), []).append(row)
    for metrics, alike in kinds.items():
        for metric in metrics:
            lines += table(alike, metric, compared=True)
        for metric in ("cpu_us", "system_calls"):
            if metric not in metrics:
                lines += table(alike, metric, compared=False)
    absent: dict[str, list[str]] = {}
    for row in rows:
        for name, reason in row["cannot"].items():
            absent.setdefault(name, []).append(f"`{row['name']}` ({reason})")
    lines += [f"- `{name}` has no part in {', '.join(where)}." for name, where in absent.items()]
    return lines


def table(rows: list[dict[str, Any]], metric: str, *, compared: bool) -> list[str]:
    """One metric of questions that are alike; [] where it was not measured."""
    names = list(dict.fromkeys(name for row in rows for name in row["contenders"]))
    if not any(metric in row["contenders"].get(name, {}) for row in rows for name in names):
        return []
    first = names[0]
    title = METRICS[metric].title
    if compared:
        title += f"; in bold how many times better `{first}` is, with its interval"
    lines = [
        f"{title}:",
        "",
        "| | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for row in rows:
        cells = []
        for name in names:
            ratio = ratio_of(row, first, name, metric) if compared else None
            told = figure(row, name, metric)
            cells.append(f"**{interval(ratio)}** · {told}" if ratio else told)
        lines.append(line(row["asks"], *cells))
    return [*lines, ""]


def line(*cells: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def figure(row: dict[str, Any], contender: str, metric: str) -> str:
    entry = row["contenders"].get(contender, {}).get(metric)
    if entry is None:
        return "–"
    told = number(entry["median"])
    if metric == "rate" and row["payload"] >= 65536:
        told += f" ({entry['median'] * row['payload'] / 1e6:,.0f} MB/s)"
    return told


def docs(source: Path | None, *, check: bool) -> int:
    """Writes the page's figures, its plots and the report behind them; or only looks."""
    if source is not None:
        found = trimmed(quiet(json.loads(source.read_text())))
        if not found["questions"]:
            sys.stderr.write(f"bench: others used the machine all along in {source}\n")
            return 1
        FIGURES.parent.mkdir(parents=True, exist_ok=True)
        if not check:
            FIGURES.write_text(json.dumps(found, indent=1) + "\n")
            from plots import plots  # noqa: PLC0415 - matplotlib is of the group bench only

            plots(found, FIGURES.parent)
    if not FIGURES.exists():
        return 0
    found = json.loads(FIGURES.read_text())
    page = PAGE.read_text()
    made = re.sub(
        f"({re.escape(BEGIN)}\n).*({re.escape(END)})",
        lambda match: f"{match[1]}\n{page_tables(found)}\n\n{match[2]}",
        page,
        flags=re.DOTALL,
    )
    if check:
        if made != page:
            sys.stderr.write(f"bench: {PAGE.relative_to(ROOT)} is not what {FIGURES.name} makes: "
                             "make bench-docs\n")  # fmt: skip
        return int(made != page)
    PAGE.write_text(made)
    return 0
