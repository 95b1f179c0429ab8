"""Fixtures with real peers. Every test below this folder has the mark `live`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import peers
import tumen
from nodes import make_node

# So many fresh nodes start ahead of their tests, for so many of the tests that come next: a start
# takes most of a second, and the tests leave a core to it.
SPARES = 2
SPARES_AHEAD = 4

RUNTIMES = {"otp25": peers.otp25, "otp28": peers.otp28, "elixir": peers.elixir}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.live)


def runtime(name: str) -> peers.Runtime:
    """One of RUNTIMES, or the test is skipped."""
    found = RUNTIMES[name]()
    if found is None:
        pytest.skip("needs_erlang: " + name)
    return found


@pytest.fixture(scope="session")
def epmd() -> Iterator[peers.Epmd]:
    """One port mapper for the session, where tumen's nodes look for theirs too."""
    runtime("otp25")
    with peers.Epmd() as epmd, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERL_EPMD_PORT", str(epmd.port))
        patch.setenv("ERL_EPMD_ADDRESS", "127.0.0.1")
        yield epmd


@pytest.fixture
def app() -> tumen.App | None:
    """What `node` offers: to be overridden in a file that needs something."""
    return None


@pytest_asyncio.fixture
async def node(backend: str, epmd: peers.Epmd, app: tumen.App | None) -> AsyncIterator[tumen.Node]:
    """A node that BEAMs find, on each backend."""
    async with make_node(app=app, cookie=peers.COOKIE, epmd="auto") as node:
        yield node


@pytest.fixture(params=["otp25", "otp28"])
def otp(request: pytest.FixtureRequest) -> peers.Runtime:
    """Each test of it runs once per OTP release."""
    return runtime(request.param)


@pytest.fixture
def start_beam(epmd: peers.Epmd) -> Iterator[Callable[..., peers.Beam]]:
    """Starts nodes that end with the test: start_beam(otp, args=[...], cookie=...)."""
    with ExitStack() as stack:

        def start(runtime: peers.Runtime, **options: Any) -> peers.Beam:
            return stack.enter_context(peers.Beam(runtime, epmd_port=epmd.port, **options))

        yield start


class Spares:
    """Fresh nodes that start while the tests before theirs run."""

    def __init__(self, epmd_port: int) -> None:
        self._epmd_port = epmd_port
        self._pool = ThreadPoolExecutor(SPARES)
        self._starting: list[tuple[str, Future[peers.Beam]]] = []

    def _start(self, runtime: peers.Runtime) -> Future[peers.Beam]:
        return self._pool.submit(peers.Beam(runtime, epmd_port=self._epmd_port).start)

    def take(self, runtime: peers.Runtime) -> peers.Beam:
        """A started one; the caller ends it."""
        for place, (name, starting) in enumerate(self._starting):
            if name == runtime.name:
                del self._starting[place]
                return starting.result()
        return self._start(runtime).result()

    def prepare(self, names: list[str]) -> None:
        """Those are wanted next, in that order."""
        missing = list(names)
        for name, _ in self._starting:
            with contextlib.suppress(ValueError):
                missing.remove(name)
        for name in missing[: SPARES - len(self._starting)]:
            self._starting.append((name, self._start(runtime(name))))

    def end(self) -> None:
        for _, starting in self._starting:
            with contextlib.suppress(peers.PeerError):
                starting.result().kill()
        self._pool.shutdown()


@pytest.fixture(scope="session")
def spares(epmd: peers.Epmd) -> Iterator[Spares]:
    spares = Spares(epmd.port)
    yield spares
    spares.end()


def _wanted(items: list[pytest.Item]) -> list[str]:
    """The runtimes of the nodes that these tests will ask `beam` for, unless theirs is another."""
    return [
        item.callspec.params["otp"]
        for item in items
        if len(item._fixtureinfo.name2fixturedefs.get("beam", ())) == 1
    ]


@pytest.fixture
def beam(
    request: pytest.FixtureRequest, otp: peers.Runtime, spares: Spares
) -> Iterator[peers.Beam]:
    """A fresh BEAM of each release."""
    beam = spares.take(otp)
    try:
        items = request.session.items
        place = items.index(request.node) + 1
        spares.prepare(_wanted(items[place : place + SPARES_AHEAD]))
        yield beam
    finally:
        beam.kill()


@pytest.fixture
def elixir(start_beam: Callable[..., peers.Beam]) -> peers.Beam:
    """A fresh BEAM whose `eval` takes Elixir."""
    return start_beam(runtime("elixir"))


@pytest.fixture(scope="session")
def shared_beams(epmd: peers.Epmd) -> Iterator[Callable[[peers.Runtime], peers.Beam]]:
    """One node per runtime for the whole session, for tests that change nothing on it."""
    with ExitStack() as stack:
        nodes: dict[str, peers.Beam] = {}

        def get(runtime: peers.Runtime) -> peers.Beam:
            if runtime.name not in nodes:
                beam = peers.Beam(runtime, epmd_port=epmd.port)
                nodes[runtime.name] = stack.enter_context(beam)
            return nodes[runtime.name]

        yield get


@pytest.fixture
def shared_beam(
    otp: peers.Runtime, shared_beams: Callable[[peers.Runtime], peers.Beam]
) -> peers.Beam:
    """The session's node of each release: cheap, but others use it too."""
    return shared_beams(otp)
