"""How a long command shows what happens: lines in a pipe, colour on a terminal, or JSON."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["JsonScreen", "PlainScreen", "Screen", "screen_for"]

# Seconds between two lines of progress in a pipe: enough to see life, few enough for a log.
PLAIN_PROGRESS: Final = 2.0


class Screen:
    """What a command shows; this one shows nothing and keeps what `report` is made of."""

    # Seconds between two calls of `progress` that are worth making.
    progress_every: float = 0.25

    def __init__(self) -> None:
        self.checks: list[dict[str, Any]] = []
        self._stage = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leaves the terminal as it was."""

    def stage(self, title: str) -> None:
        """A new part of the story begins."""
        self._stage = title

    def note(self, text: str) -> None:
        """Something worth knowing that cannot fail."""

    def check(self, text: str, *, right: bool) -> None:
        """Something was asked and answered."""
        self.checks.append({"stage": self._stage, "text": text, "ok": right})

    def progress(self, done: float, total: float, text: str) -> None:
        """How far a long part is."""

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """What is left to look at, the first two columns text and the others numbers."""

    def end(self, report: dict[str, Any], *, succeeded: bool, text: str) -> None:
        """The last word."""


class PlainScreen(Screen):
    """Lines without colour, for a pipe, a file, a log."""

    progress_every = PLAIN_PROGRESS

    def stage(self, title: str) -> None:
        super().stage(title)
        self.line(f"== {title}")

    def note(self, text: str) -> None:
        self.line(f"   {text}")

    def check(self, text: str, *, right: bool) -> None:
        super().check(text, right=right)
        self.line(f"{'ok ' if right else 'BAD'} {text}")

    def progress(self, done: float, total: float, text: str) -> None:
        self.line(f"   {done:.0f} of {total:.0f} s: {text}")

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        lines = [list(heads), *map(list, rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = [
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            self.line("  ".join(cells).rstrip())

    def end(self, report: dict[str, Any], *, succeeded: bool, text: str) -> None:
        self.line(text)

    def line(self, text: str) -> None:
        # Flushed: in a pipe too it shows what happens as it happens.
        print(text, flush=True)


class JsonScreen(Screen):
    """Nothing until the end, then one JSON object on one line."""

    def end(self, report: dict[str, Any], *, succeeded: bool, text: str) -> None:
        print(json.dumps({"ok": succeeded, "checks": self.checks, **report}), flush=True)


def screen_for(*, as_json: bool) -> Screen:
    """The screen for standard output as it is."""
    if as_json:
        return JsonScreen()
    if sys.stdout.isatty():
        try:
            return rich_screen()
        except ImportError:
            pass
    return PlainScreen()


def rich_screen() -> Screen:
    """Colour, a line of progress that moves, and a framed table."""
    # Late: most commands and every pipe do without it.
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.table import Table  # noqa: PLC0415

    class RichScreen(Screen):
        def __init__(self) -> None:
            super().__init__()
            self._console = Console(highlight=False)
            self._bar: Progress | None = None
            self._task = TaskID(0)
            self._started = time.monotonic()

        def __exit__(self, *exc_info: object) -> None:
            self._bar_end()

        def stage(self, title: str) -> None:
            super().stage(title)
            self._bar_end()
            self._console.print(f"\n[bold]{escape(title)}[/bold]")

        def note(self, text: str) -> None:
            self._console.print(f"  [dim]{escape(text)}[/dim]")

        def check(self, text: str, *, right: bool) -> None:
            super().check(text, right=right)
            mark = "[green]✓[/green]" if right else "[bold red]✗[/bold red]"
            self._console.print(f"  {mark} {escape(text)}")

        def progress(self, done: float, total: float, text: str) -> None:
            if self._bar is None:
                columns = (BarColumn(30), TextColumn("{task.description}"), TimeElapsedColumn())
                self._bar = Progress(*columns, console=self._console, transient=True)
                self._task = self._bar.add_task("", total=total)
                self._bar.start()
            self._bar.update(self._task, completed=done, description=escape(text))

        def _bar_end(self) -> None:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None

        def table(self, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
            self._bar_end()
            table = Table(box=None, header_style="bold", pad_edge=False)
            for number, head in enumerate(heads):
                table.add_column(head, justify="left" if number < 2 else "right")
            for row in rows:
                table.add_row(*map(escape, row))
            self._console.print(table)

        def end(self, report: dict[str, Any], *, succeeded: bool, text: str) -> None:
            self._bar_end()
            style = "bold green" if succeeded else "bold red"
            seconds = time.monotonic() - self._started
            self._console.print(f"\n[{style}]{escape(text)}[/{style}] [dim]{seconds:.1f} s[/dim]")

    return RichScreen()
