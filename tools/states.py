#!/usr/bin/env python3
"""Print the handshake's state diagram from its table, csrc/dist/handshake.c.

tools/states.py            prints it
tools/states.py --write    puts it into ARCHITECTURE.md, between its two markers
tools/states.py --check    exit 1 when what stands there is not what the table says
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "csrc" / "dist" / "handshake.c"
PAGE = ROOT / "ARCHITECTURE.md"

BEGIN = "<!-- handshake states: tools/states.py --write -->"
END = "<!-- end of handshake states -->"

ROLES = {"I": "initiator (`csrc/conn/attempt.c`)", "A": "acceptor (`csrc/conn/greeting.c`)"}

# One step: a state, what comes, and the state after it.
Step = tuple[str, str, str]


class TableError(Exception):
    """The table, or the page, is not as this tool knows it."""


def steps_of(source: str) -> list[Step]:
    """The steps of the table, in its order."""
    table = re.search(
        r"steps\[TM_HS_STATE_COUNT\]\[TM_HS_INPUT_COUNT\] = \{(.*?)\n\};", source, re.S
    )
    if table is None:
        raise TableError(f"{TABLE.name} has no table `steps`")
    steps: list[Step] = []
    rows = re.findall(r"\[TM_HS_(\w+)\] = \{(.*?)\}", table.group(1), re.S)
    for state, row in rows:
        steps += [
            (state, what, after)
            for what, after in re.findall(r"\[TM_HS_(\w+)\] = TM_HS_(\w+)", row)
        ]
    if len(steps) != table.group(1).count("] = TM_HS_") or not steps:
        raise TableError(f"{TABLE.name}: a part of the table `steps` is not understood")
    return steps


def shown(what: str) -> str:
    """A message by its name, a call of ours with parentheses."""
    kind, _, name = what.partition("_")
    return name.lower() + ("()" if kind == "CALL" else "")


def diagram(steps: list[Step]) -> str:
    """For each role its states, and below each what leads where."""
    parts = []
    for letter, role in ROLES.items():
        own = [step for step in steps if step[0].startswith(f"{letter}_")]
        width = max(len(state) for state, _, _ in own) - 2
        lines = []
        for state in dict.fromkeys(state for state, _, _ in own):
            label = state[2:].lower()
            for after in dict.fromkeys(after for at, _, after in own if at == state):
                inputs = [shown(what) for at, what, to in own if (at, to) == (state, after)]
                target = after.removeprefix(f"{letter}_").lower()
                lines.append(f"{label:<{width}}  --[ {' | '.join(inputs)} ]--> {target}")
                label = ""
        parts.append(f"As {role}:\n\n```\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)


def section(steps: list[Step]) -> str:
    return (
        f"{BEGIN}\n\n{diagram(steps)}\n"
        "`name()` is a call of ours, the rest are messages of the peer. Any other pair of a state\n"
        "and a message ends the handshake.\n\n"
        f"{END}"
    )


def replaced(page: str, text: str) -> str:
    """The page with the section between its markers replaced."""
    start, end = page.find(BEGIN), page.find(END)
    if start < 0 or end < start:
        raise TableError(f"{PAGE.name} lacks the lines\n{BEGIN}\n{END}")
    return page[:start] + text + page[end + len(END) :]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--write", action="store_true", help="write ARCHITECTURE.md")
    what.add_argument("--check", action="store_true", help="compare it instead")
    options = parser.parse_args(argv)
    try:
        text = section(steps_of(TABLE.read_text()))
        if not options.write and not options.check:
            print(text)
            return 0
        page = PAGE.read_text()
        new = replaced(page, text)
    except TableError as error:
        print(f"states: {error}", file=sys.stderr)
        return 1
    if options.write:
        PAGE.write_text(new)
    elif new != page:
        print("states: ARCHITECTURE.md is not what the table says: tools/states.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
