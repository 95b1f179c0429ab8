"""Large binaries as views of the memory that they were received in: `Process.binary_views`."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import tumen
from idle import idle_process
from nodes import address, make_node, until
from tumen import Atom

pytestmark = pytest.mark.asyncio

KIB = 1024
# From here on a binary becomes a view; from the second on its term is built away from the loop.
VIEW = 64 * KIB
LARGE = 4 * KIB * KIB


def pattern(size: int) -> bytes:
    return bytes(range(251)) * (size // 251 + 1)


def is_view(term: Any, size: int) -> bool:
    return type(term) is memoryview and term.readonly and term == pattern(size)[:size]


@pytest_asyncio.fixture(params=["thread", "loop"])
async def here(request: pytest.FixtureRequest, backend: str) -> AsyncIterator[tumen.Node]:
    async with make_node("here", driver=request.param) as node:
        yield node


@pytest_asyncio.fixture
async def there(here: tumen.Node) -> AsyncIterator[tumen.Node]:
    class Server(tumen.GenServer):
        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            return pattern(request)[:request]

    app = tumen.App()
    app.server("server")(Server)
    async with make_node("there", app=app) as node:
        await node.connect(here.name, address(here))
        yield node


async def viewing(node: tumen.Node) -> tumen.Process:
    proc = await idle_process(node)
    assert not proc.binary_views
    proc.binary_views = True
    assert proc.binary_views
    return proc


@pytest.mark.parametrize("size", [VIEW, VIEW + 1, 1000 * KIB, LARGE, 3 * LARGE])
async def test_large_binaries_of_messages_are_views_and_small_ones_bytes(
    here: tumen.Node, there: tumen.Node, size: int
) -> None:
    proc, plain = await viewing(here), await idle_process(here)
    data = pattern(size)[:size]
    message = {Atom("a"): [data, data[: VIEW - 1]], Atom("b"): (1, b"small")}
    for to in (proc, plain):
        await there.send_wait(to.pid, message)
    got = await proc.receive(timeout=10)
    view = got[Atom("a")][0]
    assert is_view(view, size)
    # Of what came in one piece with others there is a copy.
    assert size < 1000 * KIB or type(view.obj) is not bytes
    assert type(got[Atom("a")][1]) is bytes
    assert got == message
    got = await plain.receive(timeout=10)
    assert type(got[Atom("a")][0]) is bytes
    assert got == message
    # What is behind them comes in its place.
    there.send(proc.pid, 1)
    assert await proc.receive(timeout=10) == 1


@pytest.mark.parametrize("size", [1000 * KIB, LARGE])
async def test_view_outlives_message_process_and_node(backend: str, size: int) -> None:
    async with make_node() as there, make_node() as here:
        await there.connect(here.name, address(here))
        proc = await viewing(here)
        await there.send_wait(proc.pid, [1, pattern(size)[:size]])
        view = (await proc.receive(timeout=10))[1]
    del here, proc
    gc.collect()
    assert is_view(view, size)
    part = view[size - 10 :]
    del view
    assert bytes(part) == pattern(size)[size - 10 : size]


async def test_memory_of_views_is_no_longer_the_nodes(here: tumen.Node, there: tumen.Node) -> None:
    proc = await viewing(here)
    before = here.info().engine["bytes"]
    kept = []
    for _ in range(20):
        await there.send_wait(proc.pid, pattern(1000 * KIB))
        kept.append(await proc.receive(timeout=10))
    await until(lambda: here.info().mail_bytes == 0)
    assert here.info().inbox_bytes == 0
    assert here.info().engine["bytes"] < before + 2000 * KIB
    assert all(type(view) is memoryview for view in kept)


@pytest.mark.parametrize("size", [1000 * KIB, LARGE])
async def test_answers_of_its_calls_come_as_views(
    here: tumen.Node, there: tumen.Node, size: int
) -> None:
    proc = await viewing(here)
    assert is_view(await proc.call(("server", there.name), size), size)
    # Not those of others.
    assert type(await here.call(("server", there.name), size)) is bytes
    proc.binary_views = False
    assert type(await proc.call(("server", there.name), size)) is bytes


async def test_messages_that_stand_in_line_come_as_views(
    here: tumen.Node, there: tumen.Node
) -> None:
    proc = await viewing(here)
    sizes = [LARGE, 100, 1000 * KIB, LARGE, LARGE + 1, 7]
    for size in sizes:
        await there.send_wait(proc.pid, pattern(size)[:size])
    for size in sizes:
        got = await proc.receive(timeout=10)
        assert got == pattern(size)[:size]
        assert (type(got) is memoryview) == (size >= VIEW)


async def test_messages_of_the_same_node_come_as_from_another(here: tumen.Node) -> None:
    proc = await viewing(here)
    here.send(proc.pid, (b"small", pattern(VIEW)))
    small, large = await proc.receive(timeout=5)
    assert (type(small), type(large)) == (bytes, memoryview)
    assert large == pattern(VIEW)

    class Server(tumen.GenServer):
        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            return pattern(request)

    server = await here.start_server(Server)
    assert type(await proc.call(server, VIEW)) is memoryview
    assert type(await here.call(server, VIEW)) is bytes


async def test_view_is_sent_on_as_a_binary(here: tumen.Node, there: tumen.Node) -> None:
    proc, other = await viewing(here), await idle_process(there)
    await there.send_wait(proc.pid, pattern(1000 * KIB))
    view = await proc.receive(timeout=10)
    await proc.send_wait(other.pid, view)
    del view
    assert await other.receive(timeout=10) == pattern(1000 * KIB)


async def test_view_is_a_key_like_its_bytes(here: tumen.Node, there: tumen.Node) -> None:
    proc = await viewing(here)
    await there.send_wait(proc.pid, {pattern(1000 * KIB): 1, b"b": 2})
    got = await proc.receive(timeout=10)
    assert got[pattern(1000 * KIB)] == 1
    assert got[b"b"] == 2


async def test_process_that_has_ended_has_no_views(here: tumen.Node) -> None:
    proc = await viewing(here)
    here.exit(proc.pid, Atom("kill"))
    await until(lambda: not proc.alive)
    with pytest.raises(tumen.ProcessExited):
        proc.binary_views = True


async def test_server_asks_for_views_in_its_init(here: tumen.Node, there: tumen.Node) -> None:
    class Server(tumen.GenServer):
        async def init(self) -> None:
            self.binary_views = True

        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            return type(request).__name__, len(request)

    server = await here.start_server(Server)
    async with asyncio.timeout(10):
        assert await there.call(server, pattern(VIEW)) == (b"memoryview", len(pattern(VIEW)))
        assert await there.call(server, b"small") == (b"bytes", 5)
