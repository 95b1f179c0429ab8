"""Fixtures with real peers. Every test below this folder has the mark `live`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import peers

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


@pytest.fixture
def beam(otp: peers.Runtime, start_beam: Callable[..., peers.Beam]) -> peers.Beam:
    """A fresh BEAM of each release."""
    return start_beam(otp)


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
