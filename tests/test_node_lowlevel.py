"""Engine, node and batches for other runtimes: a poll loop of our own, each driver."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

import tumen
from nodes import COOKIE, HOST
from tumen import Atom
from tumen.lowlevel import (
    EVENT_DOWN,
    EVENT_MESSAGE,
    EVENT_NODEUP,
    EVENT_STOPPED,
    CoreEvent,
    CoreNode,
    Engine,
    debug_counters,
)


@pytest.fixture(params=["thread", "host", "loop"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine(driver=request.param)
    yield engine
    engine.close()


class Loop:
    """As small as a poll loop gets."""

    def __init__(self, engine: Engine, *nodes: CoreNode) -> None:
        self.engine, self.nodes = engine, nodes
        self.poller = select.poll()
        self.steps = engine.driver != "thread"
        for fd in [node.event_fd() for node in nodes]:
            self.poller.register(fd, select.POLLIN)
        if self.steps:
            self.poller.register(engine.poll_fd(), select.POLLIN)

    def events(self) -> Iterator[tuple[CoreNode, CoreEvent]]:
        """Events as they come, for ten seconds."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for node in self.nodes:
                node.flush()
            if not sum(node.arm() for node in self.nodes):
                self.poller.poll(min(self.engine.timeout_ns() / 1e6, 100) if self.steps else 100)
            if self.steps:
                self.engine.step(0)
            for node in self.nodes:
                for event in node.take():
                    yield node, event
        raise AssertionError("no event for ten seconds")

    def until(self, kind: int, node: CoreNode) -> CoreEvent:
        return next(event for at, event in self.events() if (at, event.kind) == (node, kind))


@contextmanager
def core_nodes(engine: Engine) -> Iterator[tuple[CoreNode, CoreNode, Loop]]:
    nodes = [CoreNode(engine, f"{name}@{HOST}", COOKIE, epmd_mode=2) for name in "ab"]
    a, b = nodes
    try:
        yield a, b, Loop(engine, a, b)
    finally:
        a.close()
        b.close()


def test_poll_loop_connects_sends_and_watches(engine: Engine) -> None:
    with core_nodes(engine) as (a, b, loop):
        assert not b.connect(a.own, HOST, a.info()["port"])
        up = loop.until(EVENT_NODEUP, b)
        assert up.node == a.own
        key, other = a.spawn(), b.spawn()
        ref = b.monitor(other, a.pid(key))
        b.send(other, a.pid(key), (Atom("hello"), b.pid(other)))
        message = loop.until(EVENT_MESSAGE, a)
        assert message.process == key
        assert message.term == (Atom("hello"), b.pid(other))
        assert message.sender == b.pid(other)
        a.mail_taken(key, message.wire_bytes)
        assert a.info()["mail_bytes"] == 0
        assert a.exit(key, (Atom("done"), 1))
        assert not a.exit(key, 1)
        assert not a.alive(key)
        down = loop.until(EVENT_DOWN, b)
        assert (down.process, down.ref, down.sender) == (other, ref, a.pid(key))
        assert down.term == (Atom("done"), 1)
        a.stop()
        loop.until(EVENT_STOPPED, a)


def test_counters_are_zero_once_all_is_closed(engine: Engine) -> None:
    with core_nodes(engine) as (a, _, _):
        assert debug_counters()["nodes"] == 2
        assert a.engine is engine
    assert a.closed
    assert debug_counters()["nodes"] == 0
    engine.close()
    engine.close()
    assert engine.closed
    assert set(debug_counters().values()) == {0}


def test_closing_the_engine_closes_its_nodes() -> None:
    engine = Engine()
    node = CoreNode(engine, f"a@{HOST}", COOKIE, epmd_mode=2)
    engine.close()
    assert node.closed
    with pytest.raises(tumen.TumenError, match="closed"):
        node.spawn()
    with pytest.raises(tumen.TumenError, match="closed"):
        engine.counters()


def test_node_keeps_its_engine_alive() -> None:
    node = CoreNode(Engine(), f"a@{HOST}", COOKIE, epmd_mode=2)
    assert node.info()["processes"] >= 0
    assert debug_counters()["engines"] == 1
    del node
    assert debug_counters()["engines"] == 0


def bad_calls(
    node: CoreNode, key: int
) -> dict[str, tuple[type[BaseException], Callable[[], object]]]:
    pid = node.pid(key)
    foreign = tumen.Reference("x@y", 1, [1, 2, 3])
    return {
        "limit number": (ValueError, lambda: node.set_limit(99, 1)),
        "empty name": (ValueError, lambda: node.register("", key)),
        "reserved name": (ValueError, lambda: node.register("undefined", key)),
        "long name": (ValueError, lambda: node.register("x" * 256, key)),
        "dead key": (tumen.NoProc, lambda: node.register("x", 1 << 40)),
        "name type": (TypeError, lambda: node.register(b"x", key)),  # type: ignore[arg-type]
        "link to itself": (ValueError, lambda: node.link(key, pid)),
        "monitor of a reference": (ValueError, lambda: node.monitor(key, foreign)),
        "cookie too long": (ValueError, lambda: node.set_cookie("x" * 300)),
        "peer name": (ValueError, lambda: node.connect("nohost")),
        "no term": (tumen.EncodeError, lambda: node.exit(key, object())),
        "step": (tumen.TumenError, lambda: node.engine.step()),
    }


def test_bad_arguments_raise_and_change_nothing() -> None:
    engine = Engine()
    node = CoreNode(engine, f"a@{HOST}", COOKIE, epmd_mode=2)
    key = node.spawn()
    for error, call in bad_calls(node, key).values():
        with pytest.raises(error):
            call()
    assert node.alive(key)
    assert not node.demonitor(key, tumen.Reference("x@y", 1, [1, 2, 3]))
    assert not node.unregister("x")
    engine.close()


def test_nul_in_a_name_is_refused() -> None:
    engine = Engine()
    with pytest.raises(ValueError, match="NUL"):
        CoreNode(engine, f"a\0b@{HOST}", COOKIE, epmd_mode=2)
    engine.close()


def test_events_taken_late_are_complete_and_in_order(engine: Engine) -> None:
    with core_nodes(engine) as (a, _, loop):
        key = a.spawn()
        for n in range(1000):
            a.send(0, a.pid(key), n)
        got = [event.term for event in a.take() if event.kind == EVENT_MESSAGE]
        assert got == list(range(1000))
        assert a.take() == []
        assert not a.arm()
        a.send(0, a.pid(key), "late")
        assert loop.until(EVENT_MESSAGE, a).term == b"late"
