"""The node for scripts: blocking methods, one loop in one thread."""

from __future__ import annotations

import inspect
import threading
from typing import Any

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


# What `tumen.Node` has and `tumen.sync.Node` does not, with the reason.
NOT_HERE: dict[str, str] = {}
# Signatures that differ, with the reason.
OTHER_SIGNATURE = {
    "spawn_remote": "options beside monitor are those of tumen.Node, handed through",
}


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_all_that_a_node_offers_is_here() -> None:
    """A new method of `tumen.Node` belongs here too, or into NOT_HERE with its reason."""
    missing = public(tumen.Node) - public(tumen.sync.Node)
    assert missing == set(NOT_HERE)
    assert public(tumen.sync.Node) - public(tumen.Node) == {"run"}
    assert public(tumen.Monitor) <= public(tumen.sync.Monitor)


def parameters(method: Any) -> list[tuple[str, Any, Any]]:
    found = inspect.signature(method).parameters.values()
    return [(one.name, one.kind, one.default) for one in found]


def test_methods_take_the_same_arguments() -> None:
    for name in public(tumen.Node) - set(OTHER_SIGNATURE):
        theirs, ours = getattr(tumen.Node, name), getattr(tumen.sync.Node, name)
        assert isinstance(theirs, property) == isinstance(ours, property), name
        if not isinstance(theirs, property):
            assert parameters(theirs) == parameters(ours), name
            assert not inspect.iscoroutinefunction(ours), name
            assert ours.__doc__, name


class Leaf(tumen.GenServer):
    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        return request


def test_a_script_has_supervisors_monitors_and_drains(backend: str) -> None:
    app = tumen.App()
    app.supervisor("top", [tumen.ChildSpec("leaf", Leaf, name="leaf")], intensity=3)
    node = tumen.sync.Node(f"a@{HOST}", cookie=COOKIE, epmd=None, app=app)
    node.expose_server("m", Leaf)
    assert not node.running
    with node, make("b") as b:
        assert node.running
        assert node.limits == tumen.Limits()
        assert node.allowed == ()
        b.connect(node.name, (HOST, node.info().port))
        top = node.supervisor("top")
        first = node.whereis("leaf")
        assert first is not None
        monitor, elsewhere = node.monitor(first), b.monitor(first)
        with pytest.raises(TimeoutError):
            monitor.wait(0)
        assert not monitor.done
        b.exit(first, Atom("kill"))
        assert monitor.wait(5) == elsewhere.wait(5) == Atom("killed")
        assert monitor.done
        assert monitor.ref != elsewhere.ref
        added = top.start_child(tumen.ChildSpec("more", Leaf))
        assert node.call(added, 5) == 5
        assert top.count_children()["specs"] == 2
        top.terminate_child("more")
        start = (Atom("m"), Atom("start_link"), [])
        spec = {Atom("id"): 1, Atom("start"): start}
        ok, theirs = b.call(("top", node.name), (Atom("start_child"), spec))
        assert ok == Atom("ok")
        dropped = node.monitor(theirs)
        dropped.demonitor()
        with pytest.raises(tumen.TumenError, match="ended before it fired"):
            dropped.wait(5)
        with pytest.raises(tumen.NoProc):
            node.supervisor("nobody")
        node.expose("m", "f", lambda: 1)
        pid, watch = b.spawn_remote(node.name, "m", "f", monitor=True)
        assert pid.node == node.name
        assert watch.wait(5) == Atom("normal")
        assert node.drain(5)
    assert not node.running
