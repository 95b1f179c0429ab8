#!/usr/bin/env python3
"""Generate both bindings' declarations from csrc/tumen.h, so that nobody types a C signature twice.

    tools/bindgen.py --write          src/tumen/_tumen.pxd, which is committed
    tools/bindgen.py --check          exit 1 when that file is not what tumen.h says
    tools/bindgen.py --cdef           print the text that cffi gets
    tools/bindgen.py --emit-ffi FILE  the C source of the module tumen._ffi

tumen.h keeps to opaque structs, plain structs, enums, <stdint.h> types and functions; anything else
is refused here with its line.
"""

from __future__ import annotations

import argparse
import difflib
import keyword
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pycparser
from pycparser import c_ast, c_generator

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "csrc" / "tumen.h"
PXD = ROOT / "src" / "tumen" / "_tumen.pxd"

# The standard headers as far as tumen.h needs them: sizes do not matter, only that names are types.
STDINT = [f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)]
STDDEF = ["size_t", "ptrdiff_t"]

PXD_HEAD = """\
# Generated from csrc/tumen.h by tools/bindgen.py; `make bindings` writes it anew.
"""


class UnsupportedError(Exception):
    """A declaration that the generator does not know how to carry over."""


def preprocess(header: Path, cc: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        stub = Path(folder)
        (stub / "stdint.h").write_text("".join(f"typedef int {name};\n" for name in STDINT))
        (stub / "stddef.h").write_text("".join(f"typedef int {name};\n" for name in STDDEF))
        command = [
            cc,
            "-E",
            "-std=c11",
            "-nostdinc",
            f"-I{stub}",
            "-D__attribute__(x)=",
            str(header),
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def declarations(header: Path, cc: str) -> list[Any]:
    """What tumen.h and the project headers that it includes declare, in order."""
    tree = pycparser.CParser().parse(preprocess(header, cc), str(header))
    folder = str(header.parent)
    return [node for node in tree.ext if str(Path(node.coord.file).parent) == folder]


def cdef(nodes: list[Any]) -> str:
    generator = c_generator.CGenerator()
    return "".join(generator.visit(node) + ";\n" for node in nodes)


def type_name(node: Any) -> str:
    """A declared type in Cython's spelling, with stars at its end."""
    if isinstance(node, c_ast.PtrDecl):
        return type_name(node.type) + ("*" if isinstance(node.type, c_ast.PtrDecl) else " *")
    if isinstance(node, c_ast.TypeDecl):
        inner = node.type
        quals = "".join(f"{qual} " for qual in node.quals)
        if isinstance(inner, c_ast.IdentifierType):
            names = inner.names if inner.names != ["unsigned"] else ["unsigned", "int"]
            return quals + " ".join(names)
        if isinstance(inner, c_ast.Enum | c_ast.Struct) and inner.name:
            return quals + str(inner.name)
    raise UnsupportedError(f"{node.coord}: no rule for {type(node).__name__}")


def declared(kind: str, name: str) -> str:
    """`type name`; a name that Python reserves gets an underscore and keeps its C spelling."""
    space = "" if kind.endswith("*") else " "
    if keyword.iskeyword(name):
        return f'{kind}{space}{name}_ "{name}"'
    return f"{kind}{space}{name}"


def field_lines(struct: Any) -> list[str]:
    lines = []
    for field in struct.decls:
        if isinstance(field.type, c_ast.ArrayDecl):
            size = field.type.dim
            if not isinstance(size, c_ast.Constant):
                raise UnsupportedError(f"{field.coord}: an array needs a literal size")
            lines.append(declared(type_name(field.type.type), field.name) + f"[{size.value}]")
        else:
            lines.append(declared(type_name(field.type), field.name))
    return lines


def function_line(name: str, function: Any) -> str:
    arguments = []
    for param in function.args.params if function.args else []:
        kind = type_name(param.type)
        if kind != "void":
            plain = param.name is None or keyword.iskeyword(param.name)
            arguments.append(kind.rstrip() if plain else declared(kind, param.name))
    return declared(type_name(function.type), name) + f"({', '.join(arguments)}) noexcept"


def pxd_lines(node: Any) -> list[str]:
    if isinstance(node, c_ast.Typedef):
        inner = node.type.type if isinstance(node.type, c_ast.TypeDecl) else None
        if isinstance(inner, c_ast.Struct):
            lines = field_lines(inner) if inner.decls else ["pass"]
            return [f"ctypedef struct {node.name}:", *(f"    {line}" for line in lines), ""]
        return [f"ctypedef {declared(type_name(node.type), node.name)}", ""]
    if isinstance(node, c_ast.Decl) and isinstance(node.type, c_ast.Enum) and node.name is None:
        names = [entry.name for entry in node.type.values.enumerators]
        return [f"enum {node.type.name}:", *(f"    {name}" for name in names), ""]
    if isinstance(node, c_ast.Decl) and isinstance(node.type, c_ast.FuncDecl):
        return [function_line(node.name, node.type)]
    raise UnsupportedError(f"{node.coord}: no rule for {type(node).__name__}")


def pxd(nodes: list[Any]) -> str:
    body = [line for node in nodes for line in pxd_lines(node)]
    text = "\n".join(body)
    used = [name for name in STDINT if re.search(rf"\b{name}\b", text)]
    lines = [
        PXD_HEAD,
        f"from libc.stdint cimport {', '.join(sorted(used))}",
        "",
        "",
        'cdef extern from "csrc/tumen.h" nogil:',
        *(f"    {line}".rstrip() for line in body),
    ]
    return "\n".join(lines).rstrip() + "\n"


def emit_ffi(nodes: list[Any], path: Path) -> None:
    import cffi  # noqa: PLC0415 -- the checks run without it

    ffi = cffi.FFI()
    ffi.cdef(cdef(nodes))
    ffi.set_source("tumen._ffi", '#include "csrc/tumen.h"\n')
    ffi.emit_c_code(str(path))


def check(text: str) -> int:
    old = PXD.read_text() if PXD.exists() else ""
    name = str(PXD.relative_to(ROOT))
    diff = list(
        difflib.unified_diff(old.splitlines(), text.splitlines(), name, "csrc/tumen.h", lineterm="")
    )
    for line in diff:
        print(line)
    return 1 if diff else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--cc", default="cc", help="C compiler whose preprocessor is used")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write src/tumen/_tumen.pxd")
    what.add_argument("--check", action="store_true", help="compare it instead")
    what.add_argument("--cdef", action="store_true", help="print the cffi declarations")
    what.add_argument("--emit-ffi", type=Path, metavar="FILE", help="write tumen._ffi as C")
    args = parser.parse_args(argv)
    nodes = declarations(HEADER, args.cc)
    if args.cdef:
        print(cdef(nodes), end="")
    elif args.emit_ffi:
        emit_ffi(nodes, args.emit_ffi)
    elif args.check:
        return check(pxd(nodes))
    else:
        PXD.write_text(pxd(nodes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
