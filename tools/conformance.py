#!/usr/bin/env python3
"""The specification that the tests with real peers are, as a page to read.

    tools/conformance.py --write     docs/conformance.md, which is committed
    tools/conformance.py --check     exit 1 when that page is not what tests/live says

A section for each file of tests/live (its docstring), a line for each test: its name as a sentence,
its docstring, which peers drive it and on which backends, as its fixtures say. Nothing is imported
or run.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests" / "live"
PAGE = ROOT / "docs" / "conformance.md"

# What a fixture brings along, and how the page calls it.
PEERS = {"otp": ("OTP 25", "OTP 28"), "elixir": ("Elixir",)}
RELEASES = {"otp25": "OTP 25", "otp28": "OTP 28", "elixir": "Elixir"}
BACKENDS = ("io_uring", "epoll")

# Words of test names as they are written.
WORDS = {
    "beam": "BEAM",
    "beams": "BEAMs",
    "erlang": "Erlang",
    "elixir": "Elixir",
    "otp": "OTP",
    "python": "Python",
    "rpc": "`rpc`",
    "erpc": "`erpc`",
    "pg": "`pg`",
    "sys": "`sys`",
    "rex": "`rex`",
    "noproc": "`noproc`",
    "pubsub": "PubSub",
    "i": "I",
    "io": "I/O",
}

# Sections that their file's name would not say well.
TITLES = {
    "cli_live": "Command line",
    "bench": "The bench",
    "peers": "The harness",
    "rpc": "rpc and erpc",
    "pg": "pg",
    "io_protocol": "I/O protocol",
    "sys": "sys",
    "seq_trace": "seq_trace",
    "rex": "rex",
    "embed": "Embedding",
    "pubsub": "Phoenix.PubSub",
}

HEAD = """\
# What a tumen node does among BEAM nodes

Generated from the names of the tests in `tests/live` by `tools/conformance.py`; `make docs` writes
it anew. Each line is one test, run against real nodes of the releases that it names: Debian's
OTP 25, OTP 28.5, Elixir on OTP 25. On both backends means io_uring and epoll.
"""


@dataclass(frozen=True)
class Behaviour:
    """One test."""

    sentence: str
    detail: str
    peers: tuple[str, ...]
    backends: tuple[str, ...]
    long: bool

    def line(self) -> str:
        where = [", ".join(self.peers) or "no BEAM"]
        if len(self.backends) > 1:
            where.append("both backends")
        if self.long:
            where.append("long run")
        detail = f" {self.detail}" if self.detail else ""
        return f"- {self.sentence}{detail} *({'; '.join(where)})*"


@dataclass
class Module:
    """What a file of tests has: its docstring, its tests, and which fixtures ask for which."""

    title: str
    text: str
    tests: list[ast.FunctionDef | ast.AsyncFunctionDef] = field(default_factory=list)
    fixtures: dict[str, tuple[set[str], set[str]]] = field(default_factory=dict)
    marks: set[str] = field(default_factory=set)


def sentence(name: str) -> str:
    """``test_beam_calls_a_server``: BEAM calls a server."""
    words = [WORDS.get(word, word) for word in name.removeprefix("test_").split("_") if word]
    text = " ".join(words)
    return text[:1].upper() + text[1:] + "."


def decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    return [ast.unparse(decorator) for decorator in node.decorator_list]


def strings(node: ast.AST) -> set[str]:
    return {
        item.value
        for item in ast.walk(node)
        if isinstance(item, ast.Constant) and isinstance(item.value, str)
    }


def started(node: ast.AST) -> set[str]:
    """The runtimes that it asks for by itself: ``peers.otp28()``."""
    called = {ast.unparse(item.func) for item in ast.walk(node) if isinstance(item, ast.Call)}
    return {key for key in RELEASES if f"peers.{key}" in called}


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    return {argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]}


def read(text: str, name: str) -> Module:
    tree = ast.parse(text)
    words = (ast.get_docstring(tree) or "").split("\n\n", 1)
    key = name.removeprefix("test_")
    module = Module(
        TITLES.get(key, key.replace("_", " ").capitalize()), " ".join("\n\n".join(words).split())
    )
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            module.marks |= set(re.findall(r"mark\.(\w+)", ast.unparse(node.value)))
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if any("fixture" in decorator.split("(")[0] for decorator in decorators(node)):
            named = set().union(*(strings(decorator) for decorator in node.decorator_list))
            module.fixtures[node.name] = (arguments(node), (named | started(node)) & set(RELEASES))
        elif node.name.startswith("test_"):
            module.tests.append(node)
    return module


def closure(names: set[str], fixtures: dict[str, tuple[set[str], set[str]]]) -> set[str]:
    """Those fixtures, and all that they ask for."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += fixtures.get(name, (set(), set()))[0]
    return found


def behaviour(
    node: ast.FunctionDef | ast.AsyncFunctionDef,
    module: Module,
    fixtures: dict[str, tuple[set[str], set[str]]],
) -> Behaviour:
    marks = " ".join(decorators(node))
    used = arguments(node) | set(re.findall(r"usefixtures\('(\w+)'", marks))
    found = closure(used, fixtures)
    # Fixtures that name a release, the test's own parameters, and what it starts itself.
    named = {RELEASES[key] for name in found for key in fixtures.get(name, ((), ()))[1]}
    named |= {RELEASES[key] for key in strings(node) & set(RELEASES)}
    named |= {peer for name in found for peer in PEERS.get(name, ())}
    named |= {RELEASES[key] for key in started(node)}
    order = list(RELEASES.values())
    return Behaviour(
        sentence=sentence(node.name),
        detail=" ".join((ast.get_docstring(node) or "").split()),
        peers=tuple(sorted(named, key=order.index)),
        backends=BACKENDS if "backend" in found else (),
        long="mark.slow" in marks or "slow" in module.marks,
    )


def page(files: dict[str, str], shared: dict[str, str]) -> str:
    """The page: files are tests by name, shared has the fixtures of all of them."""
    common: dict[str, tuple[set[str], set[str]]] = {}
    for name, text in shared.items():
        common |= read(text, name).fixtures
    parts = [HEAD]
    count = 0
    for name, text in sorted(files.items()):
        module = read(text, name)
        if not module.tests:
            continue
        lines = [behaviour(node, module, common | module.fixtures).line() for node in module.tests]
        count += len(lines)
        parts.append(f"## {module.title}\n\n{module.text}\n\n" + "\n".join(lines) + "\n")
    parts[0] += f"\n{count} behaviours.\n"
    return "\n".join(parts)


def tree() -> str:
    files = {path.stem: path.read_text() for path in TESTS.glob("test_*.py")}
    shared = {
        str(path): path.read_text()
        for path in (TESTS.parent / "conftest.py", TESTS / "conftest.py")
    }
    return page(files, shared)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true")
    what.add_argument("--check", action="store_true")
    options = parser.parse_args()
    text = tree()
    if options.write:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text)
        return 0
    old = PAGE.read_text() if PAGE.exists() else ""
    if old == text:
        return 0
    name = str(PAGE.relative_to(ROOT))
    sys.stdout.writelines(
        difflib.unified_diff(
            old.splitlines(True), text.splitlines(True), name, "what tests/live says", n=0
        )
    )
    print(f"{name} is not what the tests say: `make docs` writes it anew", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
