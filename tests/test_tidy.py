"""tools/tidy.py finds one of each thing that it forbids, and nothing in this tree."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parent.parent


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


tidy = load("tidy")


def rules(files: dict[str, str]) -> set[str]:
    return {finding.rule for finding in tidy.findings(tidy.Tree(ROOT, files))}


def test_this_tree_is_tidy() -> None:
    found = tidy.findings(tidy.Tree.load(ROOT))
    assert not found, "\n".join(map(str, found))


def test_the_core_has_no_writable_global() -> None:
    library = tidy.core_library(ROOT)
    assert library is not None, "the build leaves libtumen_core.a below build/"
    assert tidy.writable_symbols(library) == []


CLEAN = {
    "csrc/etf/walk.c": '#include "walk.h"\n\n#include <string.h>\n\n#include "../base/buf.h"\n',
    "csrc/etf/walk.h": '#include "../limits.h"\n#include "../base/error.h"\n',
    "csrc/base/buf.h": '#include "error.h"\n',
    "csrc/base/error.h": '#include "../error.def"\n',
    "csrc/error.def": "",
    "csrc/limits.h": "#include <assert.h>\n",
    "csrc/dist/frame.c": '#include "../etf/inline.h"\n#include "../etf/etf.h"\n',
    "csrc/etf/inline.h": "",
    "csrc/etf/etf.h": "",
    "csrc/base/alloc.c": "void f(void *p) { free(p); }\n",
    "csrc/conn/node.c": '#include "../io/io.h"\n#include <errno.h>\n/* errno, malloc( */\n',
    "csrc/io/io.h": "#include <sys/socket.h>\n",
    "csrc/io/uring.c": "#include <liburing.h>\nint f(void) { return -errno; }\n",
    "csrc/io/uring_test.c": '#include <cmocka.h>\n#include "../dist/x.h"\nvoid *p = malloc(1);\n',
    "src/tumen/_term.pyx": 'cdef extern from "csrc/etf/inline.h":\n    pass\n',
}


def test_what_the_layers_allow_is_not_found() -> None:
    assert rules(CLEAN) == set()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("csrc/base/buf.c", '#include "../etf/etf.h"\n'),
        ("csrc/etf/a.c", '#include "../dist/frame.h"\n'),
        ("csrc/dist/a.c", '#include "../etf/leaf.h"\n'),
        ("csrc/dist/a.c", '#include "../io/io.h"\n'),
        ("csrc/proc/a.c", '#include "../dist/frame.h"\n'),
        ("csrc/proc/a.c", "#include <time.h>\n"),
        ("csrc/dist/a.c", "#include <sys/socket.h>\n"),
        ("csrc/io/epoll.c", '#include "../etf/etf.h"\n'),
        ("csrc/io/epoll.c", "#include <liburing.h>\n"),
        ("csrc/io/uring.c", "#include <sys/epoll.h>\n"),
        ("csrc/conn/node.c", "#include <sys/epoll.h>\n"),
        ("csrc/conn/node.c", "#include <Python.h>\n"),
        ("csrc/tumen.h", '#include "conn/node.h"\n'),
        ("csrc/util/a.c", "\n"),
        ("src/tumen/_core.pyx", 'cdef extern from "csrc/conn/node.h":\n'),
    ],
)
def test_an_include_across_layers_is_found(path: str, text: str) -> None:
    assert "layer" in rules({path: text})


@pytest.mark.parametrize(
    "call",
    ["sprintf(a, b)", "strcpy(a, b)", "vsprintf (a, b, c)", "malloc(1)", "free(p)", "x = errno"],
)
def test_a_banned_call_is_found(call: str) -> None:
    assert "banned" in rules({"csrc/dist/a.c": f"void f(void) {{ {call}; }}\n"})


@pytest.mark.parametrize(
    "call", ["snprintf(a, 1, b)", "tm_free(p)", '"malloc(1)"', "// free(p)", "x = EINTR"]
)
def test_what_only_looks_like_a_banned_call_is_not_found(call: str) -> None:
    assert "banned" not in rules({"csrc/dist/a.c": f"void f(void) {{\n {call};\n}}\n"})


@pytest.mark.parametrize(
    "word", ["TO" + "DO", "FIX" + "ME", "XX" + "X", "Not" + "ImplementedError"]
)
def test_an_unfinished_word_is_found(word: str) -> None:
    for path in ("csrc/dist/a.c", "src/tumen/cli/a.py", "tools/a", "tests/live/test_a.py", "A.md"):
        assert "unfinished" in rules({path: f"# {word}: later\n"}), path


@pytest.mark.parametrize("place", ["/home/" + "someone/x", "/root" + "/.ssh", "py" + "pi.org"])
def test_a_path_of_one_machine_is_found(place: str) -> None:
    assert "machine" in rules({"bench/a.py": f"PATH = '{place}'\n"})


def test_the_folder_of_the_checkout_is_a_path_of_one_machine(tmp_path: Path) -> None:
    tree = tidy.Tree(Path("/checkouts/tumen"), {"a.md": "see /checkouts" + "/other\n"})
    assert {finding.rule for finding in tidy.findings(tree)} == {"machine"}


@pytest.mark.parametrize(
    "path",
    [
        "csrc/dist/unused.h",
        "src/tumen/unused.py",
        "tools/unused",
        "fuzz/corpus/unused/seed",
        "tests/vectors/unused.etf",
        "csrc/dist/frame.c.orig",
    ],
)
def test_a_dead_file_is_found(path: str) -> None:
    assert "dead" in rules({path: ""})


@pytest.mark.parametrize(
    ("declaration", "writable"),
    [
        ("int counter = 1;", True),
        ("static int hidden; int *f(void) { return &hidden; }", True),
        ("_Thread_local int mine;", True),
        ("static _Thread_local int mine; int *f(void) { return &mine; }", True),
        ("int f(void) { static int calls; return ++calls; }", True),
        ("const int table[] = {1, 2};", False),
        ('const char *const names[] = {"a", "b"};', False),
        ("int f(void) { return 1; }", False),
    ],
)
def test_a_writable_global_is_found(tmp_path: Path, declaration: str, writable: bool) -> None:
    compiler = shutil.which("cc")
    assert compiler is not None
    (tmp_path / "a.c").write_text(declaration + "\n")
    subprocess.run([compiler, "-fPIC", "-c", "a.c"], cwd=tmp_path, check=True)
    subprocess.run(["ar", "rcs", "liba.a", "a.o"], cwd=tmp_path, check=True)
    assert bool(tidy.writable_symbols(tmp_path / "liba.a")) == writable


def test_lengths_are_reported_and_do_not_fail(tmp_path: Path) -> None:
    body = "    x();\n" * 71
    tree = tidy.Tree(
        tmp_path,
        {
            "csrc/dist/a.c": f"void f(void)\n{{\n{body}}}\n",
            "csrc/dist/b.c": "int a;\n" * 1001,
            "csrc/dist/c.c": "/* " + "x" * 100 + " */\n",
        },
    )
    reported = {(finding.rule, finding.path) for finding in tidy.report_lengths(tree)}
    assert reported == {
        ("function", "csrc/dist/a.c"),
        ("file", "csrc/dist/b.c"),
        ("columns", "csrc/dist/c.c"),
    }
    assert tidy.findings(tree) == []
