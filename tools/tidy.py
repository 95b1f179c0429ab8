#!/usr/bin/env python3
"""What is never right to break, checked over the whole tree; exit 1 with one line for each finding.

    tools/tidy.py                       the whole tree
    tools/tidy.py --library PATH        the static core whose symbols are looked at
    tools/tidy.py --lengths             columns, functions and files that are long

Enforced: who may include whom, unfinished words, dead files, banned calls, writable globals in the
core, paths of one machine. Reported without failing: columns, long functions, long files.
tests/test_tidy.py plants one of each and sees it found.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent

COLUMNS_MAX = 100
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 1000

# -- the tree --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    rule: str
    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.text}"


@dataclass
class Tree:
    """The project's own text files, by path from the root."""

    root: Path
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path) -> Tree:
        tree = cls(root)
        for name in listed(root):
            data = (root / name).read_bytes()
            tree.files[name] = "" if b"\0" in data else data.decode("utf-8", "replace")
        return tree

    def matching(self, *patterns: str) -> Iterator[tuple[str, str]]:
        for name, text in sorted(self.files.items()):
            if any(PurePosixPath(name).match(pattern) for pattern in patterns):
                yield name, text


def listed(root: Path) -> list[str]:
    """What git tracks or would add; without git (an sdist) what is there."""
    command = ["git", "-C", str(root), "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        skip = {".git", ".venv", ".cache", "build", "__pycache__"}
        names = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return [str(name) for name in names if not skip & set(name.parts)]
    return sorted({name for name in out.split("\0") if name and (root / name).is_file()})


def code_lines(text: str) -> list[str]:
    """Lines of C with comments and the insides of literals blanked; numbers and columns stay."""
    pattern = r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|' + r"'(?:\\.|[^'\\\n])*'"

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        if found[0] == "/":
            return re.sub(r"[^\n]", " ", found)
        return found[0] + " " * (len(found) - 2) + found[0]

    return re.sub(pattern, blank, text, flags=re.DOTALL).split("\n")


def is_test(name: str) -> bool:
    return name.endswith(("_test.c", "_test.h", "/testing.h"))


def layer_of(name: str) -> str:
    """csrc/dist/frame.c is of the layer dist; csrc/limits.h is of the layer limits."""
    parts = PurePosixPath(name).parts
    return parts[1] if len(parts) > 2 else PurePosixPath(name).stem


# -- layers ----------------------------------------------------------------------------------------

ROOT_HEADERS = {"limits.h", "error.def", "error.h"}
TERM_HEADERS = {"etf/etf.h", "etf/inline.h"}
# Layer: whole layers it may include, and single headers beyond them.
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "base": ({"base"}, ROOT_HEADERS),
    "etf": ({"base", "etf"}, ROOT_HEADERS),
    "dist": ({"base", "dist"}, ROOT_HEADERS | TERM_HEADERS),
    "proc": ({"base", "proc"}, ROOT_HEADERS | TERM_HEADERS),
    "io": ({"base", "io"}, ROOT_HEADERS),
    "conn": ({"base", "etf", "dist", "proc", "io", "conn"}, ROOT_HEADERS | {"tumen.h"}),
    "tumen": (set(), {"error.h", "error.def"}),
    "error": (set(), {"error.def"}),
    "limits": (set(), set()),
}
PURE = {"base", "etf", "dist", "proc", "tumen", "error", "limits"}
# What a layer without system calls, clock and dice may take from the C library.
PURE_SYSTEM = {
    "assert.h", "inttypes.h", "limits.h", "math.h", "stdalign.h", "stdarg.h", "stdbool.h",
    "stddef.h", "stdint.h", "stdio.h", "stdlib.h", "string.h",
}  # fmt: skip
# A backend's own header stays inside the backend.
BACKEND_HEADERS = {
    "liburing.h": "csrc/io/uring*",
    "linux/io_uring.h": "csrc/io/uring*",
    "sys/epoll.h": "csrc/io/epoll*",
}
# What src/tumen may include: the public interface, and the term reader and writer with what those
# pull in.
BINDING_HEADERS = re.compile(
    r"csrc/(tumen|etf/etf|etf/inline|base/\w+)\.h|<?(std\w+|Python|math|string)\.h>?"
)


def check_layers(tree: Tree) -> Iterator[Finding]:
    for name, text in tree.matching("csrc/*.[ch]", "csrc/*/*.[ch]"):
        layer = layer_of(name)
        if layer not in LAYERS:
            yield Finding("layer", name, 1, f"csrc/{layer} is no layer")
            continue
        for number, line in enumerate(text.split("\n"), 1):
            match = re.match(r'\s*#\s*include\s*(["<])([^">]+)[">]', line)
            if match:
                why = include_fault(name, layer, match[2], system=match[1] == "<")
                if why:
                    yield Finding("layer", name, number, why)
    for name, text in tree.matching("src/tumen/*.pyx", "src/tumen/*.pxd", "src/tumen/pyx/*/*.pxi"):
        for number, line in enumerate(text.split("\n"), 1):
            match = re.search(r'extern from "([^"]+)"', line)
            if match and not BINDING_HEADERS.fullmatch(match[1]):
                yield Finding("layer", name, number, f"a binding may not include {match[1]}")


def include_fault(name: str, layer: str, header: str, *, system: bool) -> str | None:
    if header == "Python.h":
        return "the core does not know Python"
    if system:
        home = BACKEND_HEADERS.get(header)
        if home and not PurePosixPath(name).match(home):
            return f"only {home} may include <{header}>"
        if layer in PURE and not is_test(name) and header not in PURE_SYSTEM:
            return f"{layer} makes no system call: <{header}>"
        return None
    if is_test(name):
        return None
    parts: list[str] = []
    for part in (PurePosixPath(name).parent / header).parts[1:]:
        parts = parts[:-1] if part == ".." else [*parts, part]
    target = "/".join(parts)
    layers, headers = LAYERS[layer]
    if target in headers or (len(parts) > 1 and parts[0] in layers):
        return None
    return f"{layer} may not include {target}"


# -- words, calls, paths ---------------------------------------------------------------------------

# A letter in brackets keeps this file from being its own first finding.
UNFINISHED = re.compile(
    r"\b(?:TOD[O]|FIXM[E]|XX[X]|HAC[K])\b|NotImplemented[E]rror|(?i:not) [i]mplemented"
    r"|\b[Pp]lace[h]older"
)
SOURCE = (
    "csrc/*", "csrc/*/*", "src/tumen/*", "src/tumen/*/*", "tools/*", "tests/*.py", "tests/*/*.py",
    "tests/live/erl/*", "fuzz/*.*", "bench/*", "bench/peers/*", "examples/*", "Makefile",
    "CMakeLists.txt", "pyproject.toml", ".ci/*", "*.md",
)  # fmt: skip


def check_unfinished(tree: Tree) -> Iterator[Finding]:
    for name, text in tree.matching(*SOURCE):
        for number, line in enumerate(text.split("\n"), 1):
            match = UNFINISHED.search(line)
            if match:
                yield Finding("unfinished", name, number, match.group())


BANNED_CALLS = re.compile(r"\b(v?sprintf|strcpy|strcat|gets|alloca|strtok|rand|system)\s*\(")
BARE_MALLOC = re.compile(r"\b(malloc|calloc|realloc|reallocarray|free|strdup|strndup)\s*\(")
MALLOC_HOME = "csrc/base/alloc.c"


def check_calls(tree: Tree) -> Iterator[Finding]:
    for name, text in tree.matching("csrc/*.[ch]", "csrc/*/*.[ch]"):
        for number, line in enumerate(code_lines(text), 1):
            match = BANNED_CALLS.search(line)
            if match:
                yield Finding("banned", name, number, match[1])
            if is_test(name):
                continue
            match = BARE_MALLOC.search(line)
            if match and name != MALLOC_HOME:
                yield Finding("banned", name, number, f"{match[1]}: memory comes from tm_alloc")
            # <errno.h> alone is fine: it has the names of the numbers.
            if re.search(r"\berrno\b(?!\.h)", line) and layer_of(name) != "io":
                yield Finding("banned", name, number, "errno: only csrc/io sees the kernel")


HOMES = re.compile(r"(?<![\w.])/(?:home|root|Users)/[\w.]")
HOSTS = re.compile(r"\b(?:pyp[i]|deb\.[d]ebian|npmj[s]|pythonhoste[d]|crate[s])\.(?:org|io)\b")


def check_machine(tree: Tree) -> Iterator[Finding]:
    """Nothing in the tree may hold on one machine only."""
    top = tree.root.parts[1] if len(tree.root.parts) > 1 else ""
    common = {"", "tmp", "usr", "opt", "var", "mnt", "srv", "src", "app", "build"}
    here = re.compile(rf"(?<![\w.])/{re.escape(top)}/\w") if top not in common else None
    for name, text in tree.files.items():
        if name == "LICENSE":
            continue
        for number, line in enumerate(text.split("\n"), 1):
            match = HOMES.search(line) or HOSTS.search(line) or (here and here.search(line))
            if match:
                yield Finding("machine", name, number, line.strip()[:80])


# -- dead files ------------------------------------------------------------------------------------


def check_dead(tree: Tree) -> Iterator[Finding]:
    texts = tree.files
    for name in texts:
        if name.endswith((".orig", ".rej", ".bak", ".swp", "~", ".o", ".so", ".a", ".pyc")):
            yield Finding("dead", name, 1, "left over from an editor or a build")

    def used(word: str, except_for: str) -> bool:
        pattern = re.compile(rf"(?<![\w/]){re.escape(word)}(?!\w)|/{re.escape(word)}(?!\w)")
        return any(name != except_for and pattern.search(text) for name, text in texts.items())

    for name, _ in tree.matching("csrc/*.h", "csrc/*.def", "csrc/*/*.h", "csrc/*/*.def"):
        if not used(PurePosixPath(name).name, name):
            yield Finding("dead", name, 1, "no file includes it")
    for name, _ in tree.matching("tools/*"):
        if not used(PurePosixPath(name).name, name):
            yield Finding("dead", name, 1, "no file names it")
    for name, _ in tree.matching("src/tumen/*.py", "src/tumen/*/*.py"):
        stem = PurePosixPath(name).stem
        if not stem.startswith("__") and not used(stem, name):
            yield Finding("dead", name, 1, "no file imports it")
    for name, _ in tree.matching("fuzz/corpus/*/*"):
        target = PurePosixPath(name).parts[2]
        if f"fuzz/{target}_fuzz.c" not in texts:
            yield Finding("dead", name, 1, f"there is no fuzz/{target}_fuzz.c")
    for name, _ in tree.matching("tests/vectors/*"):
        path = PurePosixPath(name)
        if path.suffix != ".md" and not (used(path.name, name) or used(path.stem, name)):
            yield Finding("dead", name, 1, "no test names it")


# -- form, reported only ---------------------------------------------------------------------------


def report_lengths(tree: Tree) -> Iterator[Finding]:
    code = ("csrc/*.[ch]", "csrc/*/*.[ch]", "src/tumen/*.py*", "src/tumen/*/*.py", "tests/*.py",
            "tests/*/*.py", "tools/*", "fuzz/*.c", "bench/*.py", "bench/peers/*.[cp]*",
            "examples/*.py")  # fmt: skip
    for name, text in tree.matching(*code):
        lines = text.split("\n")
        if len(lines) - 1 > FILE_LINES_MAX:
            yield Finding("file", name, 1, f"{len(lines) - 1} lines")
        for number, line in enumerate(lines, 1):
            if len(line) > COLUMNS_MAX:
                yield Finding("columns", name, number, f"{len(line)} columns")
        if name.endswith((".c", ".h")):
            yield from long_functions(name, lines)


def long_functions(name: str, lines: list[str]) -> Iterator[Finding]:
    """A function body opens with a brace in column 0 and ends with one."""
    start = 0
    for number, line in enumerate(lines, 1):
        if line == "{":
            start = number
        elif line == "}" and start:
            if number - start - 1 > FUNCTION_LINES_MAX:
                yield Finding("function", name, start, f"{number - start - 1} lines")
            start = 0


# -- writable globals ------------------------------------------------------------------------------

# Constants with addresses in them are written once, by the loader, and then protected.
CONSTANT_SECTIONS = (".rodata", ".data.rel.ro", ".text", ".note", ".debug", ".eh_frame")


def writable_symbols(library: Path) -> list[str]:
    """Objects of a static library that live in writable memory, thread-local ones included."""
    command = ["objdump", "-t", str(library)]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found, member = [], ""
    for line in table.split("\n"):
        heading = re.match(r"(\S+\.o):\s+file format", line)
        if heading:
            member = heading[1]
        # value, flags, section, tab, size, name
        symbol = re.match(r"[0-9a-f]+ (.{7}) (\S+)\t([0-9a-f]+)\s+(?:\.hidden )?(\S+)", line)
        if not symbol or not int(symbol[3], 16):
            continue
        flags, section, name = symbol[1], symbol[2], symbol[4]
        thread_local = section.startswith((".tdata", ".tbss"))
        writable = "O" in flags and not section.startswith(CONSTANT_SECTIONS)
        if writable or thread_local:
            found.append(f"{member}: {name} in {section}")
    return found


def check_globals(library: Path) -> Iterator[Finding]:
    for symbol in writable_symbols(library):
        yield Finding("global", library.name, 1, symbol)


# -- main ------------------------------------------------------------------------------------------

CHECKS: tuple[Callable[[Tree], Iterator[Finding]], ...] = (
    check_layers,
    check_unfinished,
    check_calls,
    check_machine,
    check_dead,
)


def findings(tree: Tree) -> list[Finding]:
    return [finding for check in CHECKS for finding in check(tree)]


def core_library(root: Path) -> Path | None:
    """The static core as it is shipped: no sanitizer's variables in it."""
    built = [root / "build" / folder / "libtumen_core.a" for folder in ("wheel", "c-release")]
    built = [path for path in built if path.exists()]
    return max(built, key=lambda path: path.stat().st_mtime, default=None)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--library", dest="archive", type=Path, default=core_library(ROOT))
    parser.add_argument("--lengths", action="store_true", help="list what is too long")
    args = parser.parse_args(argv)
    tree = Tree.load(ROOT)
    lengths = list(report_lengths(tree))
    if args.lengths:
        print(*lengths, sep="\n")
    for rule, count in sorted(Counter(finding.rule for finding in lengths).items()):
        print(f"tidy: {count} over the length of {rule}, reported only (--lengths lists them)")
    found = findings(tree)
    if args.archive is None:
        print("tidy: no libtumen_core.a below build/; `make test-c` makes one", file=sys.stderr)
        return 1
    found += check_globals(args.archive)
    for finding in found:
        print(finding)
    print(f"tidy: {len(tree.files)} files, {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
