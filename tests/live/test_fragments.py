"""Messages of a BEAM that come in fragments."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

import flags
import peers
import tumen
from nodes import Counter, make_node
from tumen import Atom

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def without_cache(backend: str, epmd: peers.Epmd) -> AsyncIterator[tumen.Node]:
    """A node that takes fragments and has no atom cache."""
    app = tumen.App()
    app.server("counter", 10)(Counter)
    async with make_node(
        app=app,
        cookie=peers.COOKIE,
        epmd="auto",
        listen_host="127.0.0.1",
        flags=flags.FORMS["fragments"],
    ) as node:
        yield node


async def test_fragments_alone_give_every_frame_a_header_both_ways(
    without_cache: tumen.Node, shared_beam: peers.Beam
) -> None:
    node = without_cache
    assert await node.ping(shared_beam.name)
    (connection,) = node.connections()
    assert connection.flags & flags.FRAGMENTS
    assert not connection.flags & flags.ATOM_CACHE
    assert await node.rpc(shared_beam.name, "lists", "seq", [1, 3]) == [1, 2, 3]
    answer = await shared_beam.eval("gen_server:call({counter, N}, {add, 5})", N=Atom(node.name))
    assert answer == 15
