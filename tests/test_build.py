"""The wheel is what it says: declarations generated, nothing missing, nothing extra, hardened."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parent.parent
MODULES = ("_core", "_term", "_ffi")


def output(*command: str | Path, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def installed() -> dict[str, Path]:
    """Files of the installed distribution, by their path below site-packages."""
    files = importlib.metadata.files("tumen") or []
    return {str(file): Path(str(file.locate())) for file in files}


def module_file(name: str) -> Path:
    (found,) = (
        path for file, path in installed().items() if re.fullmatch(rf"tumen/{name}\.\S+\.so", file)
    )
    return found


def test_generated_declarations_are_those_of_tumen_h() -> None:
    output(sys.executable, "tools/bindgen.py", "--check")


def test_versions_agree() -> None:
    version = importlib.metadata.version("tumen")
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == version
    assert f"project(tumen VERSION {version} " in (ROOT / "CMakeLists.txt").read_text()
    code = "from tumen._ffi import ffi, lib; print(ffi.string(lib.tumen_version()).decode())"
    assert output(sys.executable, "-c", code).strip() == version


def test_build_group_repeats_the_build_requirements() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(config["build-system"]["requires"]) <= set(config["dependency-groups"]["build"])


def test_tests_run_against_the_installed_wheel() -> None:
    code = "import tumen; print(tumen.__file__)"
    path = Path(output(sys.executable, "-c", code).strip())
    assert ROOT / "src" not in path.parents
    assert "site-packages" in path.parts


def test_wheel_has_what_users_need_and_no_sources() -> None:
    files = set(installed())
    for name in ("py.typed", "_core.pyi", "_term.pyi", "include/tumen.h", "include/error.def"):
        assert f"tumen/{name}" in files
    assert not [name for name in files if name.endswith((".pyx", ".pxd", ".pxi", ".c", ".a"))]


def test_import_needs_the_standard_library_alone() -> None:
    code = "import sys, tumen; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = set(output(sys.executable, "-c", code).split())
    assert not loaded & {"click", "rich", "cffi", "_cffi_backend", "numpy", "msgspec"}


@pytest.mark.parametrize("name", MODULES)
def test_module_is_hardened(name: str) -> None:
    path = module_file(name)
    dynamic = output("readelf", "--dynamic", "--wide", path)
    segments = output("readelf", "--program-headers", "--wide", path)
    assert "BIND_NOW" in dynamic
    assert "GNU_RELRO" in segments
    (stack,) = re.findall(r"GNU_STACK.*", segments)
    assert "RWE" not in stack
    assert "__stack_chk_fail" in output("nm", "--dynamic", "--undefined-only", path)


@pytest.mark.parametrize("name", MODULES)
def test_module_needs_libc_alone_and_shows_its_init_alone(name: str) -> None:
    path = module_file(name)
    dynamic = output("readelf", "--dynamic", "--wide", path)
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2"}
    assert "RUNPATH" not in dynamic
    assert "RPATH" not in dynamic
    shown = output("nm", "--dynamic", "--defined-only", path).split()
    assert shown[2::3] == [f"PyInit_{name}"]


@pytest.mark.parametrize("name", MODULES)
def test_module_names_no_path_of_the_machine_that_built_it(name: str) -> None:
    data = module_file(name).read_bytes()
    assert str(ROOT).encode() not in data
    assert str(Path.home()).encode() + b"/" not in data


def test_without_liburing_the_build_goes_on_and_says_so(tmp_path: Path) -> None:
    # An empty folder is all that pkg-config may look at.
    configure = ["cmake", "-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja"]
    options = ["-DCMAKE_BUILD_TYPE=Debug", "-DTM_WERROR=ON"]
    said = output(*configure, *options, PKG_CONFIG_LIBDIR=str(tmp_path))
    assert "liburing not found: tumen is built with epoll only" in " ".join(said.split())
    output("cmake", "--build", tmp_path / "build", "--target", "tumen_core", "--", "-j2")
    symbols = output("nm", tmp_path / "build" / "libtumen_core.a")
    assert "io_uring_queue_init" not in symbols
    assert "tm_io_uring_create" in symbols


def test_ci_runs_what_a_developer_runs() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    output("bash", "-n", ".ci/run")
    output("bash", "-n", "tools/setup")
    output("bash", "-n", "tools/phases")
