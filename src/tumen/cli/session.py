"""The short-lived node that asks one question, and the port mapper, asked and served."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

import tumen
from tumen._core import Engine
from tumen.events import ConnectFailed, NodeDown
from tumen.options import backend_choice, cookie_read, epmd_choice

from .exits import Code, Failed, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tumen.events import EventStream

__all__ = [
    "NodeOptions",
    "is_failure",
    "mapper_names",
    "mapper_serve",
    "ping",
    "session",
    "start_node",
    "stop_signal",
]

# Longest list of names that we read from a port mapper, bytes: about 100,000 names.
NAMES_BYTES_MAX: Final = 4 * 1024 * 1024
NAMES_REQUEST: Final = b"\x00\x01n"
# After a pang the event that says why is there already, or comes within this, seconds.
REASON_WAIT: Final = 0.25
LOOPBACK: Final = ("127.", "localhost", "::1")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """What the command line says about our own node."""

    name: str | None = None
    cookie_file: Path | None = None
    cookie_env: str | None = None
    visible: bool = False
    backend: str | None = None
    epmd_port: int | None = None

    def cookie(self) -> str | None:
        """The cookie that was pointed at; None: where every node looks for it."""
        if self.cookie_file is not None and self.cookie_env is not None:
            raise Failed(Code.USAGE, "--cookie-file and --cookie-env exclude each other")
        if self.cookie_file is not None:
            return cookie_read(self.cookie_file)
        if self.cookie_env is None:
            return None
        cookie = os.environ.get(self.cookie_env)
        if not cookie:
            raise Failed(Code.NOT_STARTED, f"the variable {self.cookie_env} is not set")
        return cookie


def name_towards(target: str) -> str:
    """A name for a node that talks to `target`: of the same kind, long or short, and unique."""
    host = target.partition("@")[2]
    if not host.startswith(LOOPBACK):
        host = socket.getfqdn() if "." in host else socket.gethostname().partition(".")[0]
    return f"tumen-{secrets.token_hex(4)}@{host}"


async def start_node(options: NodeOptions, name: str, **more: Any) -> tumen.Node:
    """A node made and started by the options; what hinders it has an exit code of its own."""
    try:
        node = tumen.Node(
            options.name or name,
            cookie=options.cookie(),
            visible=options.visible,
            backend=options.backend,
            epmd_port=options.epmd_port,
            **more,
        )
        await node.start()
    except (tumen.TumenError, OSError, ValueError) as error:
        raise Failed(Code.NOT_STARTED, f"the node did not start: {text_of(error)}") from error
    return node


@contextlib.asynccontextmanager
async def session(options: NodeOptions, target: str) -> AsyncIterator[tumen.Node]:
    """Our node, for one question to `target`."""
    # Nobody has to find us: no listener, and so no name at the port mapper.
    # What the other side prints for us is not the answer.
    node = await start_node(
        options,
        name_towards(target),
        epmd="client",
        listen=False,
        on_output=lambda text, _: print(text, end="", file=sys.stderr, flush=True),
    )
    events = node.events()
    try:
        yield node
    except tumen.NoConnection as error:
        reason = await why_down(events, target)
        message = f"{error}: {reason}\n{error.hint}"
        raise Failed(Code.NO_CONNECTION, message, node=target) from error
    finally:
        events.close()
        await node.stop()


async def ping(node: tumen.Node, target: str, timeout: float) -> float:
    """Seconds until the pong; a pang is a failure that says why."""
    loop = asyncio.get_running_loop()
    with node.events() as events:
        start = loop.time()
        async with asyncio.timeout(timeout):
            # Without a timeout of its own, which would be a pang.
            alive = await node.ping(target, timeout=None)
        elapsed = loop.time() - start
        if not alive:
            reason = await why_down(events, target)
            raise Failed(Code.FAILED, f"pang: {reason}", answer="pang", node=target)
    return elapsed


def is_failure(term: Any) -> bool:
    """True for a reply that says error: ``error`` or a tuple that begins with it."""
    error = tumen.Atom("error")
    return bool(term == error or (isinstance(term, tuple) and term and term[0] == error))


async def why_down(events: EventStream, node: str) -> str:
    """Why that node could not be reached, as its event says."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REASON_WAIT):
            async for event in events:
                if isinstance(event, (ConnectFailed, NodeDown)) and event.node == node:
                    return event.reason
    return "no reason was given"


async def mapper_names(host: str, port: int | None, timeout: float) -> list[tuple[str, int]]:
    """What the port mapper of a host knows: names and ports, sorted."""
    _, port = epmd_choice(None, port)
    port = port or 4369
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(NAMES_REQUEST)
                data = await reader.readexactly(4)
                while chunk := await reader.read(65536):
                    data += chunk
                    if len(data) > NAMES_BYTES_MAX:
                        raise Failed(Code.FAILED, f"more than {NAMES_BYTES_MAX} bytes of names")
            finally:
                writer.close()
    except TimeoutError:
        raise Failed(Code.TIMEOUT, f"no answer from {host} port {port} in {timeout} s") from None
    except (OSError, asyncio.IncompleteReadError) as error:
        message = f"no port mapper at {host} port {port}: {error}"
        raise Failed(Code.NO_CONNECTION, message) from None
    return sorted(name_lines(data[4:].decode(errors="replace")))


def name_lines(text: str) -> list[tuple[str, int]]:
    """The lines ``name NAME at port PORT`` of an answer; others are passed over."""
    found = []
    for line in text.splitlines():
        match line.split():
            case ["name", name, "at", "port", port] if port.isdecimal():
                found.append((name, int(port)))
    return found


@contextlib.contextmanager
def stop_signal() -> Iterator[asyncio.Event]:
    """An event that SIGINT or SIGTERM sets; the second one ends the process at once."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop() -> None:
        if stopping.is_set():
            os._exit(int(Code.INTERRUPTED))
        stopping.set()

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        yield stopping
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def mapper_serve(
    address: str, port: int | None, ready: Callable[[str, int, str], None]
) -> None:
    """Serves the port mapper until a signal comes."""
    _, port = epmd_choice(None, port)
    port = port or 4369
    with stop_signal() as stopping:
        # The engine is all that it takes: a port mapper is no node.
        engine = Engine(backend=backend_choice(None))
        try:
            try:
                engine.serve_epmd(address, port)
            except OSError as error:
                message = f"cannot serve on {address} port {port}: {error.strerror or error}"
                raise Failed(Code.NOT_STARTED, message) from None
            ready(address, port, engine.backend)
            await stopping.wait()
        finally:
            engine.close()
