"""Fixtures with real peers for the tests that kill, hold and overload.

Nodes are given the port mapper's port; no variable of the environment names it, since a test here
may kill its port mapper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import peers


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A loop turns an epoll engine only: with io_uring there is nothing to run."""

    def impossible(item: pytest.Item) -> bool:
        spec = getattr(item, "callspec", None)
        choice = spec.params if spec is not None else {}
        return (choice.get("backend"), choice.get("driver")) == ("uring", "loop")

    config.hook.pytest_deselected(items=[item for item in items if impossible(item)])
    items[:] = [item for item in items if not impossible(item)]


RELEASES = {"otp25": peers.otp25, "otp28": peers.otp28}


def release(name: str) -> peers.Runtime:
    """One of RELEASES, or the test is skipped."""
    found = RELEASES[name]()
    if found is None:
        pytest.skip(f"needs_erlang: {name}")
    return found


@pytest.fixture(scope="session")
def mapper() -> Iterator[peers.Epmd]:
    """One port mapper for all tests that leave it alive."""
    release("otp25")
    with peers.Epmd() as epmd:
        yield epmd


@pytest.fixture(params=RELEASES)
def otp(request: pytest.FixtureRequest) -> peers.Runtime:
    """Each test of it runs once per OTP release."""
    return release(request.param)


@pytest.fixture
def start_beam() -> Iterator[Callable[..., peers.Beam]]:
    """Starts nodes that end with the test: start_beam(otp, epmd_port=..., args=[...])."""
    with ExitStack() as stack:

        def start(runtime: peers.Runtime, **options: Any) -> peers.Beam:
            return stack.enter_context(peers.Beam(runtime, **options))

        yield start
