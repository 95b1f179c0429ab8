"""Connections of a node: making, losing and refusing them, and the events of all that."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Self

import pytest

import tumen
from nodes import COOKIE, HOST, address, echo, make_node, next_event, pair, turn, until
from tumen import events

pytestmark = pytest.mark.asyncio


async def test_connect_returns_when_up_and_both_sides_know(backend: str) -> None:
    async with make_node("a") as a, make_node("b") as b:
        seen_by_a, seen_by_b = a.events(), b.events()
        await b.connect(a.name, address(a))
        await b.connect(a.name)
        assert await anext(seen_by_a) == events.NodeUp(b.name, visible=False)
        assert await anext(seen_by_b) == events.NodeUp(a.name, visible=False)
        assert a.nodes() == [b.name]
        (connection,) = b.connections()
        assert (connection.name, connection.up) == (a.name, True)
        assert connection.creation == a.info().creation
        assert connection.address == f"{HOST}:{a.info().port}"
        assert await b.disconnect(a.name)
        down = await next_event(seen_by_b, events.NodeDown)
        assert (down.node, down.lost) == (a.name, 0)
        assert b.nodes() == []


async def test_visible_nodes_are_told_from_hidden_ones(backend: str) -> None:
    async with (
        make_node("a", visible=True) as a,
        make_node("b", visible=True) as b,
        make_node("c") as c,
    ):
        for node in (b, c):
            await node.connect(a.name, address(a))
        await until(lambda: len(a.nodes()) >= 2)
        assert a.nodes(visible=True) == [b.name]
        assert a.nodes(visible=False) == [c.name]


async def test_wrong_cookie_is_an_auth_error_on_one_side_and_an_event_on_the_other(
    backend: str,
) -> None:
    async with make_node("a") as a, make_node("b", cookie="another-cookie-here") as b:
        seen = a.events()
        with pytest.raises((tumen.AuthError, tumen.NoConnection)) as caught:
            await b.connect(a.name, address(a))
        assert caught.value.peer == a.name
        failed = await next_event(seen, events.HandshakeFailed)
        assert failed.node == b.name
        assert "cookie" in failed.reason
        assert a.nodes() == []
        # A cookie for this one peer mends it, without a restart.
        b.set_cookie(COOKIE, peer=a.name)
        await b.connect(a.name, address(a))
        assert await b.ping(a.name)


async def test_connect_to_a_closed_port_says_so(backend: str) -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
    async with make_node() as node:
        seen = node.events()
        with pytest.raises((tumen.TumenError, OSError)) as caught:
            await node.connect("x@127.0.0.1", (HOST, port))
        assert "x@127.0.0.1" in str(caught.value)
        failed = await next_event(seen, events.ConnectFailed)
        assert failed.node == "x@127.0.0.1"
        assert failed.reason


async def test_connect_to_a_silent_host_times_out(backend: str) -> None:
    with socket.create_server((HOST, 0)) as server:
        async with make_node() as node:
            with pytest.raises(tumen.CallTimeout):
                await node.connect("x@127.0.0.1", server.getsockname(), timeout=0.05)


async def test_handshake_deadline_is_a_limit(backend: str) -> None:
    limits = tumen.Limits(handshake_time_ms=100)
    with socket.create_server((HOST, 0)) as server:
        async with make_node(limits=limits) as node:
            with pytest.raises((tumen.NoConnection, OSError)):
                await node.connect("x@127.0.0.1", server.getsockname())


async def test_next_send_connects_again(backend: str) -> None:
    async with pair() as (a, b):
        pid = a.spawn(echo)
        assert await b.disconnect(a.name)
        await until(lambda: not b.nodes())
        assert await b.ping(a.name)
        b.send(pid, 1)
        assert b.nodes() == [a.name]


async def test_slow_reader_of_events_is_told_how_many_were_dropped(backend: str) -> None:
    async with make_node(limits=tumen.Limits(events_count_max=2)) as node:
        seen = node.events()
        for n in range(5):
            node._running._tell(events.Busy(f"n{n}@h"))
        assert await anext(seen) == events.Dropped(3)
        assert [await anext(seen), await anext(seen)] == [
            events.Busy("n3@h"),
            events.Busy("n4@h"),
        ]
    with pytest.raises(StopAsyncIteration):
        await anext(seen)


async def test_closed_stream_gets_nothing_more(backend: str) -> None:
    async with make_node() as node:
        with node.events() as seen:
            waiting = asyncio.ensure_future(anext(seen))
            await turn()
            with pytest.raises(RuntimeError, match="another task"):
                await anext(seen)
        with pytest.raises(StopAsyncIteration):
            await waiting


async def test_epmd_is_embedded_where_none_answers(
    backend: str, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setenv("ERL_EPMD_PORT", str(unused_tcp_port))
    monkeypatch.setenv("ERL_EPMD_ADDRESS", HOST)
    async with make_node("a", epmd="auto") as a, make_node("b", epmd="client") as b:
        assert a.info().registered
        assert a.info().serves_epmd
        assert b.info().registered
        assert not b.info().serves_epmd
        await b.connect(a.name)
        assert await a.ping(b.name)
        clash = tumen.Node(a.name, cookie=COOKIE)
        with pytest.raises(tumen.NameClash):
            await clash.start()


async def test_undecodable_message_closes_its_connection_and_nothing_else(backend: str) -> None:
    """Two equal keys: what came before is delivered, nothing after."""
    got: list[object] = []

    async def main(proc: tumen.Process) -> None:
        async for message in proc:
            got.append(message)

    async with pair() as (a, b):
        pid = a.spawn(main)
        seen = a.events()
        with RawNode() as raw:
            raw.connect(a)
            # That b is up may be told only now.
            up = await next_event(seen, events.NodeUp)
            if up.node == b.name:
                up = await next_event(seen, events.NodeUp)
            raw.send(pid, tumen.encode(1)[1:])
            raw.send(pid, b"t\x00\x00\x00\x02" + b"a\x01a\x02" * 2)
            raw.send(pid, tumen.encode(2)[1:])
            raw.flush()
            down = await next_event(seen, events.NodeDown)
            assert down.node == up.node
            b.send(pid, 3)
            await until(lambda: 3 in got)
        assert got == [1, 3]


class RawNode:
    """A node that sends any bytes as a message: tumen.h by cffi, without our encoder."""

    def __init__(self) -> None:
        from tumen._ffi import ffi, lib

        self.ffi, self.lib = ffi, lib

    def __enter__(self) -> Self:
        ffi, lib = self.ffi, self.lib
        engine, node = ffi.new("tumen_engine **"), ffi.new("tumen_node **")
        assert lib.tumen_engine_create(ffi.NULL, engine) == 0
        self.engine = engine[0]
        texts = [ffi.new("char[]", text.encode()) for text in (f"raw@{HOST}", COOKIE)]
        options = ffi.new("tumen_node_options *")
        options.name, options.cookie = texts
        options.epmd_mode = lib.TUMEN_EPMD_NONE
        assert lib.tumen_node_create(self.engine, options, node) == 0
        self.node = node[0]
        return self

    def __exit__(self, *_: object) -> None:
        self.lib.tumen_engine_destroy(self.engine)

    def bytes(self, data: bytes) -> Any:
        self.kept = self.ffi.from_buffer("uint8_t[]", data)
        return self.ffi.new("tumen_bytes *", {"ptr": self.kept, "len": len(data)})[0]

    def connect(self, node: tumen.Node) -> None:
        host, port = address(node)
        name = self.bytes(node.name.encode())
        assert self.lib.tumen_node_connect(self.node, name, host.encode(), port) == 0

    def send(self, pid: tumen.Pid, message: bytes) -> None:
        target = self.ffi.new("tumen_target *")
        target.kind = self.lib.TUMEN_TO_PID
        node = pid.node.encode()
        target.pid.node = self.bytes(node)
        name = self.kept
        target.pid.id, target.pid.serial = pid.id, pid.serial
        target.pid.creation = pid.creation
        assert self.lib.tumen_send(self.node, 0, target, self.bytes(message), 0) == 0
        del name

    def flush(self) -> None:
        self.lib.tumen_flush(self.node)
