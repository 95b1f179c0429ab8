#!/usr/bin/env python3
"""Build and run the libFuzzer targets, fuzz/<target>_fuzz.c, with clang.

    tools/fuzz.py --build            the programs of all of the below, if they are not there
    tools/fuzz.py --replay           every file of fuzz/corpus/<target> once, under ASan and UBSan
    tools/fuzz.py --coverage         the corpus alone must cover 90 % of the lines of its module
    tools/fuzz.py --planted          a build with TM_PLANTED_BUG must crash within a minute
    tools/fuzz.py --seconds 20       that long for each target; a crash is kept and fails the run
    tools/fuzz.py --target walk ...  only these

A crashing input lands in build/fuzz/artifacts. Replay one: build/fuzz/bin/<target> FILE.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "fuzz"
JOBS = 2
# cmake and ninja go by the same variable.
COMPILERS = int(os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or JOBS)

# Target: the module whose lines its corpus has to cover, and in which its bug is planted.
MODULES = {
    "walk": ["csrc/etf/walk.c", "csrc/etf/leaf.c", "csrc/etf/utf8.c", "csrc/etf/reader.c"],
    "frame": ["csrc/dist/frame.c", "csrc/dist/control.c"],
    "header": ["csrc/dist/atom_cache.c", "csrc/dist/fragment.c"],
    "handshake": ["csrc/dist/handshake.c", "csrc/dist/flags.c", "csrc/dist/md5.c"],
    "epmd": ["csrc/dist/epmd.c", "csrc/dist/epmd_server.c"],
}
COVERAGE_MIN = 0.90
PLANTED_SECONDS = 60

# Sanitizers of a fuzzing build; coverage needs the corpus driver alone.
BASE_FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-g", "-O1", "-fno-omit-frame-pointer", "-DTM_DEBUG"]
BASE_FLAGS += ["-iquote", str(ROOT / "csrc")]
CHECKED = ["-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all"]
CHECKED_LINK = ["-fsanitize=fuzzer,address,undefined"]
COUNTED = ["-fprofile-instr-generate", "-fcoverage-mapping"]
COUNTED_LINK = ["-fsanitize=fuzzer", "-fprofile-instr-generate"]
# The memory limits are oracles too: a length that a peer claims must not become an allocation.
# timeout is wide because two targets and a loaded machine share it.
RUN_FLAGS = ["-max_len=65536", "-rss_limit_mb=1024", "-malloc_limit_mb=256", "-timeout=10"]


class FuzzError(Exception):
    """A target that does not build, crashes, or does not find what it must find."""


@dataclass(frozen=True)
class Mode:
    name: str
    compile: tuple[str, ...]
    link: tuple[str, ...]


FUZZ = Mode("fuzz", (*BASE_FLAGS, *CHECKED), tuple(CHECKED_LINK))
COVERAGE = Mode("coverage", (*BASE_FLAGS, *COUNTED), tuple(COUNTED_LINK))
PLANTED = Mode("planted", (*BASE_FLAGS, *CHECKED, "-DTM_PLANTED_BUG"), tuple(CHECKED_LINK))


def program(name: str) -> str:
    """clang's tools by their plain name, or with Debian's version behind it."""
    found = shutil.which(name) or shutil.which(f"{name}-14")
    if found is None:
        raise FuzzError(f"{name} is not on the path; `tools/setup test` installs it")
    return found


def run(command: list[str], **options: str) -> str:
    env = os.environ | options
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise FuzzError(f"{' '.join(command)}\n{tail}")
    return done.stdout + done.stderr


# -- building --------------------------------------------------------------------------------------


def headers_key() -> str:
    digest = hashlib.sha256()
    for pattern in ("csrc/*.[hd]*", "csrc/*/*.[hd]*", "fuzz/*.h"):
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def object_file(mode: Mode, source: Path, headers: str) -> Path:
    """Compiles one file, unless the object of the same text, headers and flags is there."""
    stem = str(source.relative_to(ROOT)).replace("/", "_")
    key = hashlib.sha256(" ".join(mode.compile).encode() + source.read_bytes() + headers.encode())
    out = BUILD / "obj" / mode.name / f"{stem}.{key.hexdigest()[:16]}.o"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        for stale in out.parent.glob(f"{stem}.*.o"):
            stale.unlink()
        part = out.with_suffix(".part")
        run([program("clang"), *mode.compile, "-c", str(source), "-o", str(part)])
        part.rename(out)
    return out


def build(target: str, mode: Mode) -> Path:
    """The program of a target: the pure layers and its own file. A planted bug is in its module."""
    headers = headers_key()
    module = {ROOT / name for name in MODULES[target]}
    sources = [
        path
        for layer in ("base", "etf", "dist", "proc")
        for path in sorted((ROOT / "csrc" / layer).glob("*.c"))
        if not path.name.endswith("_test.c")
    ]
    sources.append(ROOT / "fuzz" / f"{target}_fuzz.c")

    def one(path: Path) -> Path:
        clean = mode is PLANTED and path not in module
        return object_file(FUZZ if clean else mode, path, headers)

    with ThreadPoolExecutor(COMPILERS) as pool:
        objects = list(pool.map(one, sources))
    name = target if mode is FUZZ else f"{target}-{mode.name}"
    out = BUILD / "bin" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    run([program("clang"), *mode.link, *map(str, objects), "-o", str(out)])
    return out


# -- what is done with a target --------------------------------------------------------------------


def corpus(target: str) -> Path:
    folder = ROOT / "fuzz" / "corpus" / target
    if not folder.is_dir() or not any(folder.iterdir()):
        raise FuzzError(f"{target}: no corpus in fuzz/corpus/{target}")
    return folder


def replay(target: str) -> str:
    run([str(build(target, FUZZ)), "-runs=0", *RUN_FLAGS, str(corpus(target))])
    return f"{sum(1 for _ in corpus(target).iterdir())} files"


def coverage(target: str) -> str:
    binary = build(target, COVERAGE)
    raw, merged = BUILD / f"{target}.profraw", BUILD / f"{target}.profdata"
    run([str(binary), "-runs=0", str(corpus(target))], LLVM_PROFILE_FILE=str(raw))
    run([program("llvm-profdata"), "merge", "-sparse", str(raw), "-o", str(merged)])
    sources = [str(ROOT / name) for name in MODULES[target]]
    shown = [str(binary), f"-instr-profile={merged}"]
    report = json.loads(run([program("llvm-cov"), "export", "-summary-only", *shown, *sources]))[
        "data"
    ][0]
    lines = report["totals"]["lines"]
    share = lines["covered"] / lines["count"]
    if share < COVERAGE_MIN:
        text = run([program("llvm-cov"), "show", *shown, *sources])
        missed = BUILD / f"{target}-coverage.txt"
        missed.write_text(text)
        raise FuzzError(
            f"{target}: the corpus covers {share:.1%} of {' '.join(MODULES[target])}, "
            f"not {COVERAGE_MIN:.0%}; lines with 0 in {missed.relative_to(ROOT)}"
        )
    return f"{share:.1%} of {lines['count']} lines"


def fuzz_command(binary: Path, target: str, seconds: int, found: Path) -> list[str]:
    artifacts = BUILD / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    found.mkdir(parents=True, exist_ok=True)
    dictionary = ROOT / "fuzz" / f"{target}.dict"
    return [
        str(binary),
        *RUN_FLAGS,
        *([f"-dict={dictionary}"] if dictionary.exists() else []),
        f"-max_total_time={seconds}",
        f"-artifact_prefix={artifacts}/{binary.name}-",
        "-print_final_stats=1",
        # New inputs go to the first folder; the second is read only.
        str(found),
        str(corpus(target)),
    ]


def planted(target: str) -> str:
    """The planted bug is found, and by an input that does the clean build no harm."""
    binary, clean = build(target, PLANTED), build(target, FUZZ)
    found = BUILD / "found" / binary.name
    shutil.rmtree(found, ignore_errors=True)
    for old in (BUILD / "artifacts").glob(f"{binary.name}-*"):
        old.unlink()
    begin = time.monotonic()
    command = fuzz_command(binary, target, PLANTED_SECONDS, found)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    took = time.monotonic() - begin
    crashes = list((BUILD / "artifacts").glob(f"{binary.name}-*"))
    if done.returncode == 0 or not crashes:
        tail = "\n".join(done.stderr.splitlines()[-20:])
        raise FuzzError(f"{target}: the planted bug was not found in {took:.0f} s\n{tail}")
    run([str(clean), *map(str, crashes)])
    for crash in crashes:
        crash.unlink()
    return f"found in {took:.1f} s"


def fuzz(target: str, seconds: int) -> str:
    output = run(fuzz_command(build(target, FUZZ), target, seconds, BUILD / "found" / target))
    units = [line.split()[-1] for line in output.splitlines() if "number_of_executed_units" in line]
    return f"{int(units[0]):,} inputs in {seconds} s" if units else "done"


# -- main ------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--target", action="append", choices=sorted(MODULES), default=[])
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--coverage", action="store_true")
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--seconds", type=int, default=0)
    args = parser.parse_args(argv)

    there = {path.name.removesuffix("_fuzz.c") for path in ROOT.glob("fuzz/*_fuzz.c")}
    if there != set(MODULES) and not args.target:
        print(f"fuzz: MODULES and fuzz/*_fuzz.c differ: {sorted(there ^ set(MODULES))}")
        return 1
    steps: list[tuple[str, Callable[[str], str], bool]] = []
    if args.replay:
        steps.append(("replay", replay, False))
    if args.coverage:
        steps.append(("coverage", coverage, False))
    if args.planted:
        steps.append(("planted", planted, True))
    if args.seconds:
        steps.append(("fuzz", lambda target: fuzz(target, args.seconds), True))

    failed = 0

    def attempt(name: str, step: Callable[[str], str], target: str) -> bool:
        try:
            text = step(target)
        except FuzzError as error:
            print(f"fuzz: {name} {target}: FAILED\n{error}", flush=True)
            return False
        print(f"fuzz: {name} {target}: {text}", flush=True)
        return True

    targets = args.target or sorted(MODULES)
    try:
        # Compiling already uses all cores, so what runs at once has been built before.
        for target in targets:
            for mode in (FUZZ, COVERAGE, PLANTED) if args.build else (FUZZ,):
                build(target, mode)
    except FuzzError as error:
        print(f"fuzz: {error}")
        return 1
    for name, step, parallel in steps:
        with ThreadPoolExecutor(JOBS if parallel else 1) as pool:
            done = list(pool.map(lambda target: attempt(name, step, target), targets))  # noqa: B023
        failed += done.count(False)
    if steps:
        print(f"fuzz: {len(steps) * len(targets) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
