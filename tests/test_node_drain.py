"""`Node.drain`: what counts as work, and what does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import tumen
from nodes import make_node, until
from tumen import Atom

pytestmark = pytest.mark.asyncio

# The idleness that `drain` waits for, in most of these tests, and a time that is longer, seconds.
QUIET_S = 0.05
TOO_SHORT = 0.2


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tumen.running._QUIET_S", QUIET_S)


async def by_receive(server: Waiting) -> None:
    await server.receive(lambda message: message == Atom("go"))


async def by_iteration(server: Waiting) -> None:
    async for message in server:
        if message == Atom("go"):
            return


async def by_sleeping(server: Waiting) -> None:
    await server.go.wait()


class Waiting(tumen.GenServer):
    """Its handlers wait for ``go``, each in its way."""

    async def init(self, how: Callable[[Waiting], Awaitable[None]]) -> None:
        self.how = how
        self.go = asyncio.Event()
        self.inside = asyncio.Event()

    async def _wait(self) -> Any:
        self.inside.set()
        await self.how(self)
        return Atom("done")

    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        return await self._wait()

    async def handle_cast(self, request: Any) -> Any:
        await self._wait()

    async def handle_info(self, message: Any) -> Any:
        if message != Atom("go"):
            await self._wait()


async def started(
    node: tumen.Node, how: Callable[[Waiting], Awaitable[None]]
) -> tuple[Waiting, tumen.Pid]:
    pid = await node.start_server(Waiting, how)
    server = node._running._servers[pid.id | pid.serial << 32]
    assert isinstance(server, Waiting)
    return server, pid


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("how", [by_receive, by_iteration, by_sleeping])
@pytest.mark.parametrize("kind", ["call", "cast", "info"])
async def test_handler_that_waits_is_work_until_it_has_ended(
    backend: str, kind: str, how: Callable[[Waiting], Awaitable[None]]
) -> None:
    async with make_node() as node:
        server, pid = await started(node, how)
        calling = asyncio.create_task(node.call(pid, 1)) if kind == "call" else None
        if kind == "cast":
            node.cast(pid, 1)
        elif kind == "info":
            node.send(pid, 1)
        await server.inside.wait()
        assert not await node.drain(TOO_SHORT)
        if how is by_sleeping:
            server.go.set()
        else:
            node.send(pid, Atom("go"))
        assert await node.drain(10)
        if calling is not None:
            assert await calling == Atom("done")


async def test_handler_that_raises_leaves_nothing_to_wait_for(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(server: Waiting) -> None:
        raise RuntimeError("as asked")

    async with make_node() as node:
        _, pid = await started(node, fails)
        with pytest.raises(tumen.ServerDied):
            await node.call(pid, 1)
        assert await node.drain(10)
    assert "as asked" in caplog.text


@pytest.mark.usefixtures("hurried")
async def test_suspended_server_is_no_work_but_its_mail_is(backend: str) -> None:
    async with make_node() as node:
        server, pid = await started(node, by_sleeping)
        assert await system(node, pid, Atom("suspend")) == Atom("ok")
        assert await node.drain(10)
        node.send(pid, Atom("go"))
        await until(lambda: server._waiting())
        assert not await node.drain(TOO_SHORT)
        assert await system(node, pid, Atom("resume")) == Atom("ok")
        assert await node.drain(10)


async def system(node: tumen.Node, pid: tumen.Pid, request: Any) -> Any:
    """What `sys` asks."""
    reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        proc.send(pid, (Atom("system"), (proc.pid, 1), request))
        reply.set_result((await proc.receive())[1])

    node.spawn(main)
    return await asyncio.wait_for(reply, 5)
