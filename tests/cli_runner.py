"""Runs `tumen` as people do: a process of its own, with pipes, a cookie and a port mapper."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COUNTER = str(ROOT / "examples" / "counter.py")
COOKIE = "a-cookie-of-the-cli-tests"
# Seconds for a command that answers, and for one that serves to be ready. A start of Python under a
# sanitizer takes several.
ANSWER = 60.0


def environment(epmd_port: int | None = None, **more: str | None) -> dict[str, str]:
    """Our own environment with the cookie, without what the machine's user has set."""
    env = {**os.environ, "TUMEN_COOKIE": COOKIE, "PYTHONUNBUFFERED": "1"}
    if epmd_port is not None:
        env["ERL_EPMD_PORT"] = str(epmd_port)
    for name, value in more.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    return env


def tumen(
    *args: str, epmd_port: int | None = None, **env: str | None
) -> subprocess.CompletedProcess[str]:
    """Runs one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tumen", *args],
        env=environment(epmd_port, **env),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ANSWER,
        check=False,
    )


def answer(*args: str, epmd_port: int | None = None) -> str:
    """What a command that succeeds prints."""
    done = tumen(*args, epmd_port=epmd_port)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.rstrip("\n")


class Serving:
    """A command that serves until it is told to stop; `ready` is its first line of JSON."""

    def __init__(self, *args: str, epmd_port: int | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tumen", *args, "--json"],
            env=environment(epmd_port),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            self.ready: dict[str, Any] = json.loads(self.line())
        except BaseException:
            self.kill()
            raise

    def line(self) -> bytes:
        """The next line of its output."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        deadline = time.monotonic() + ANSWER
        line = b""
        while not line.endswith(b"\n"):
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self.process.stdout], [], [], left)[0], f"no line: {line!r}"
            byte = os.read(self.process.stdout.fileno(), 1)
            assert byte, f"it ended: {self.process.wait()} {self.process.stderr.read().decode()}"
            line += byte
        return line

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> tuple[int, str]:
        """Its exit code and what it said on standard error."""
        _, errors = self.process.communicate(timeout=ANSWER)
        return self.process.returncode, errors.decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def serving(*args: str, epmd_port: int | None = None) -> Iterator[Serving]:
    """Serves for a while; killed at the end if it still runs."""
    server = Serving(*args, epmd_port=epmd_port)
    try:
        yield server
    finally:
        server.kill()


def children(pid: int) -> set[int]:
    """The processes that a process has started and not waited for."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def alive(pid: int) -> bool:
    """True unless that process is gone, or only waits to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
