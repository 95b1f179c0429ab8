"""The node for scripts: blocking methods, one loop in one thread."""

from __future__ import annotations

import threading

import pytest

import tumen
from nodes import COOKIE, HOST, Counter, echo
from tumen import Atom


def make(name: str) -> tumen.sync.Node:
    return tumen.sync.Node(f"{name}@{HOST}", cookie=COOKIE, epmd=None)


def test_scripts_call_cast_rpc_and_ping(backend: str) -> None:
    with make("a") as a, make("b") as b:
        assert a.backend == backend
        events = b.events()
        b.connect(a.name, (HOST, a.info().port))
        assert next(events) == tumen.events.NodeUp(a.name, visible=False)
        assert b.ping(a.name)
        assert b.nodes() == [a.name]
        assert [connection.name for connection in b.connections()] == [a.name]
        pid = a.start_server(Counter, 1, name="counter")
        assert a.whereis("counter") == pid
        assert b.call(("counter", a.name), (Atom("add"), 2)) == 3
        b.cast(pid, 1)
        b.send(pid, 2)
        b.send_wait(pid, 3)
        assert b.call(pid, Atom("seen")) == [(b"cast", 1), (b"info", 2), (b"info", 3)]
        a.expose("m", "f", lambda x: x + 1)
        assert b.rpc(a.name, "m", "f", [1]) == 2
        assert b.spawn_remote(a.name, "m", "f", [1], link=True).node == a.name
        worker = a.spawn(echo, name="echo")
        assert a.unregister("echo")
        a.register("other", worker)
        a.exit(worker, Atom("kill"))
        assert b.join(worker) in (Atom("killed"), Atom("noproc"))
        a.set_limits(depth_max=10)
        a.set_cookie("another-cookie-here", peer="x@y")
        with pytest.raises(tumen.NoProc):
            b.call(("nobody", a.name), 1)
        assert b.disconnect(a.name)
        assert isinstance(next(events), tumen.events.NodeDown)


def test_every_thread_may_call(backend: str) -> None:
    with make("a") as a:
        a.start_server(Counter, name="counter")
        threads = [
            threading.Thread(
                target=lambda: [a.call("counter", (Atom("add"), 1)) for _ in range(50)]
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert a.call("counter", Atom("get")) == 200


def test_its_own_loop_must_not_block_on_itself(backend: str) -> None:
    with make("a") as a:
        a.expose("m", "f", lambda: a.ping("x@y"), inline=True)
        with pytest.raises(tumen.RemoteError, match="RuntimeError"):
            a.rpc(a.name, "m", "f")


def test_start_that_fails_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError):
        tumen.sync.Node("no at sign\0", cookie=COOKIE, epmd=None).start()
    assert threading.active_count() == before


def test_stopped_node_says_so_and_starts_again(backend: str) -> None:
    node = make("a")
    for _ in range(2):
        node.start()
        with pytest.raises(RuntimeError, match="running already"):
            node.start()
        assert node.ping(node.name)
        node.stop()
        node.stop()
        with pytest.raises(tumen.TumenError, match="not running"):
            node.ping("x@y")
        with pytest.raises(tumen.TumenError, match="not running"):
            node.send("x", 1)


def test_groups_names_and_topics_block_too() -> None:
    async def idle(proc: tumen.Process) -> None:
        await proc.receive()

    with tumen.sync.Node(f"s@{HOST}", cookie=COOKIE, epmd=None, visible=True) as node:
        pid = node.spawn(idle)
        with node.pg.monitor(b"g") as monitor:
            node.pg.join(b"g", pid)
            assert next(iter(monitor)).pids == [pid]
        assert node.pg.members(b"g") == [pid]
        node.pg.ready()
        assert node.global_names.register(b"n", pid)
        assert node.global_names.whereis(b"n") == pid
        pubsub = node.pubsub("Elixir.A.PubSub")
        with pubsub.subscribe("t") as topic:
            pubsub.broadcast("t", 5)
            assert next(iter(topic)) == 5
