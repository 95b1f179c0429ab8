"""How does tumen stand beside what else there is? Asks every question and prints the ratio first.

    python bench/run.py                          all questions, about a quarter of an hour
    python bench/run.py --list                   their names
    python bench/run.py --only 'pingpong_*,to_16'
    python bench/run.py --quick --only to_16     whether it works, not how fast it is
    python bench/run.py --before v0.1.0          that revision plays the message tests too
    python bench/run.py --docs build/bench/figures.json
                                                 docs/performance.md and its plots, from a report

Each question is played with its opponents in turns (ABBA), every contender pinned to the same core
and every answer checked; bench/pairs.py says how ratios are made. The report is written as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import backends
import machine
import pairs
import report
from backends import Backends
from codec import Codecs
from far import Far
from instead import Instead
from pairs import Group, Question
from typed import Typed
from wire import Wire

GROUPS: tuple[Group, ...] = (Codecs(), Typed(), Wire(), Far(), Instead(), Backends())
FIGURES = machine.ROOT / "build/bench/figures.json"
ROUNDS = 10
BUDGET_S = 1200.0
# Seconds of one sample: what is longest useful, and what is so short that only --quick may ask it.
SAMPLE_MAX_S = 1.0
SAMPLE_MIN_S = 0.1
QUICK_S, QUICK_ROUNDS = 0.05, 2
# What a sample costs beside its seconds: commands, counters, a mailbox that empties.
OVERHEAD_S = 0.06


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="names of the questions")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME[,NAME…]",
        help="questions or groups by name; * and ? as in a shell",
    )
    parser.add_argument("--rounds", type=int, help=f"of each question (default {ROUNDS})")
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET_S,
        metavar="SECONDS",
        help=f"for the whole run: how long a sample lasts follows from it (default {BUDGET_S:.0f})",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_ROUNDS} rounds of {QUICK_S} s: whether it works",
    )
    parser.add_argument(
        "--before",
        metavar="REVISION",
        help="builds that revision and lets it play the message tests",
    )
    parser.add_argument("--json", type=Path, default=FIGURES, help="where the report goes")
    parser.add_argument("--seed", type=int, default=pairs.SEED, help="of the bootstrap")
    parser.add_argument(
        "--docs",
        type=Path,
        metavar="REPORT",
        help="writes docs/performance.md and its plots from a report; measures nothing",
    )
    parser.add_argument(
        "--check-docs",
        action="store_true",
        help="fails unless docs/performance.md is what its figures make",
    )
    return parser.parse_args()  # fmt: skip


def chosen(patterns: list[str]) -> list[tuple[Group, list[Question]]]:
    """The questions to ask, by group; SystemExit for a pattern that names none."""
    words = [word for pattern in patterns for word in pattern.split(",") if word]
    asked = [(group, group.questions()) for group in GROUPS]
    for word in words:
        if not any(
            fnmatch.fnmatchcase(name, word)
            for group, questions in asked
            for name in (group.name, *(question.name for question in questions))
        ):
            sys.stderr.write(f"bench: no such question: {word}\n")
            raise SystemExit(2)
    kept = []
    for group, questions in asked:
        found = [
            question
            for question in questions
            if not words
            or any(
                fnmatch.fnmatchcase(name, word)
                for name in (group.name, question.name)
                for word in words
            )
        ]
        if found:
            kept.append((group, found))
    return kept


def sample_seconds(asked: list[tuple[Group, list[Question]]], rounds: int, budget: float) -> float:
    """How long one sample lasts, so that the whole run fits into the budget."""
    left = budget - sum(group.setup_s for group, _ in asked)
    weight = 0.0
    for _, questions in asked:
        for question in questions:
            plays = len(question.contenders) * (rounds + 2)
            left -= plays * OVERHEAD_S * min(1.0, question.share * 4)
            weight += plays * question.share
    return max(SAMPLE_MIN_S, min(SAMPLE_MAX_S, left / weight))


def build_before(revision: str) -> str:
    """A tumen of an earlier revision in a folder of its own; the folder."""
    commit = subprocess.run(
        ["git", "-C", str(machine.ROOT), "rev-parse", "--verify", f"{revision}^{{commit}}"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    folder = machine.ROOT / "build/bench" / f"before-{commit[:12]}"
    site = folder / "site"
    if not (site / "tumen").is_dir():
        source = folder / "source"
        source.mkdir(parents=True, exist_ok=True)
        archive = subprocess.run(
            ["git", "-C", str(machine.ROOT), "archive", commit], check=True, capture_output=True
        )
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq"]
        install = ["install", "--no-build-isolation", "--no-deps", "--target", str(site)]
        subprocess.run([*pip, *install, str(source)], check=True)
    return str(site)


class Run:
    """One run over all questions, and its report as far as it has come."""

    def __init__(self, options: argparse.Namespace, rounds: int) -> None:
        self.rounds = rounds
        self.seed: int = options.seed
        self.path: Path = options.json
        self.budget_s: float | None = None if options.quick else options.budget
        self.began = time.monotonic()
        self.found: dict[str, Any] = machine.environment(self.seed)
        self.found |= {"rounds": rounds, "who": {}, "groups": {}, "questions": [], "failed": {}}

    def ask(self, asked: list[tuple[Group, list[Question]]]) -> dict[str, Any]:
        """All questions; prints each answer. What fails is named in the report."""
        for at, (group, questions) in enumerate(asked):
            asks = (sys.modules[type(group).__module__].__doc__ or "").strip()
            self.found["groups"][group.name] = asks
            say(f"== {group.name}: {asks.splitlines()[0]}")
            left = list(questions)
            while left:
                try:
                    self.ask_group(group, left, asked[at + 1 :])
                except (Exception, SystemExit) as error:
                    if not left:
                        raise
                    # Those behind it get new processes.
                    name = left.pop(0).name
                    self.found["failed"][name] = f"{type(error).__name__}: {error}"
                    say(f"{name}: failed: {error}")
            self.keep()
        return self.found

    def ask_group(
        self, group: Group, left: list[Question], later: list[tuple[Group, list[Question]]]
    ) -> None:
        """What is left of a group, on one stage; takes out each question as it is answered."""
        with group.stage(left) as stage:
            while left:
                # Anew each time: what took longer than it was thought to is saved later.
                seconds = self.sample_s([(group, left), *later]) * left[0].share
                foreign = machine.Foreign(stage.pids())
                played = pairs.play(stage, left[0], self.rounds, seconds)
                row = pairs.report(played, foreign.share(stage.pids()), self.seed)
                self.found["questions"].append({"group": group.name, **row})
                say(report.text(row))
                del left[0]
            self.found["who"][group.name] = stage.who()

    def sample_s(self, left: list[tuple[Group, list[Question]]]) -> float:
        if self.budget_s is None:
            return QUICK_S
        return sample_seconds(left, self.rounds, self.budget_s - (time.monotonic() - self.began))

    def keep(self) -> None:
        """What is there is there, whatever happens to the rest."""
        answers = {row["name"]: row for row in self.found["questions"]}
        goal = backends.summary(answers)
        self.found["summaries"] = [goal] if goal else []
        self.found["elapsed_s"] = round(time.monotonic() - self.began, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=1) + "\n")


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    options = arguments()
    if options.docs or options.check_docs:
        return report.docs(options.docs, check=options.check_docs)
    if options.before:
        os.environ["TUMEN_BEFORE"] = build_before(options.before)
    asked = chosen(options.only)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    if options.list:
        for group, questions in asked:
            for question in questions:
                say(f"{group.name:<10}{question.name:<26}{question.asks}")
        count = sum(len(questions) for _, questions in asked)
        seconds = QUICK_S if options.quick else sample_seconds(asked, rounds, options.budget)
        say(f"{count} questions, {rounds} rounds, about {seconds:.2f} s a sample")
        return 0
    found = Run(options, rounds).ask(asked)
    say(report.summary(found))
    say(f"{found['elapsed_s']:.0f} s; {options.json}")
    if not options.quick:
        with contextlib.suppress(ImportError):
            from plots import plots  # noqa: PLC0415 - matplotlib is of the group bench only

            plots(found, options.json.parent)
    return int(bool(found["failed"]))


if __name__ == "__main__":
    sys.exit(main())
