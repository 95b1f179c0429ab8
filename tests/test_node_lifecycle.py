"""Start, stop, restart; what a node says of itself; what it refuses to start with."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
from pathlib import Path

import pytest

import tumen
from nodes import COOKIE, HOST, Counter, address, echo, make_node, next_event, pair, turn
from tumen._core import debug_counters

pytestmark = pytest.mark.asyncio


async def test_node_knows_its_name_port_and_backend(backend: str) -> None:
    async with make_node() as node:
        assert node.running
        assert node.backend == backend
        assert node.backend.why
        info = node.info()
        assert info.name == node.name
        assert info.port > 0
        assert info.creation > 3
        assert not info.visible
        assert not info.registered
        assert info.connections == 0
        assert info.engine["bytes"] > 0
    assert not node.running


async def test_stopped_node_can_start_again(backend: str) -> None:
    node = make_node()
    for _ in range(3):
        await node.start()
        pid = node.spawn(echo)
        assert pid.node == node.name
        await node.stop()
        with pytest.raises(tumen.TumenError, match="not running"):
            node.send(pid, 1)


async def test_starting_twice_is_refused_and_stopping_twice_is_not(backend: str) -> None:
    async with make_node() as node:
        with pytest.raises(RuntimeError, match="running already"):
            await node.start()
        await asyncio.gather(node.stop(), node.stop())
        await node.stop()


async def test_many_starts_leave_nothing_behind(backend: str) -> None:
    before = debug_counters()
    node = make_node()
    for _ in range(20):
        async with node:
            await node.start_server(Counter, name="counter")
            assert await node.call("counter", tumen.Atom("get")) == 0
    assert debug_counters() == before


async def test_two_nodes_share_one_engine(backend: str) -> None:
    engine = tumen.lowlevel.Engine(backend=backend)
    try:
        async with pair(engine=engine) as (a, b):
            assert await b.ping(a.name)
            assert a._running.core.engine is b._running.core.engine is engine
            assert debug_counters()["engines"] == 1
        assert not engine.closed
    finally:
        engine.close()
    assert debug_counters()["engines"] == 0


async def test_loop_driver_serves_and_calls() -> None:
    async with pair(driver="loop") as (a, b):
        assert a.backend == "epoll"
        await a.start_server(Counter, name="counter")
        for n in range(1, 200):
            assert await b.call(("counter", a.name), (tumen.Atom("add"), 1)) == n


async def test_stopping_ends_servers_in_reverse_order_then_processes(backend: str) -> None:
    ended = []
    app = tumen.App()

    class Server(tumen.GenServer):
        async def init(self, label: str) -> None:
            self.label = label

        async def terminate(self, reason: object) -> None:
            ended.append((self.label, reason))

    app.server("first", "first")(Server)
    app.server("second", "second")(Server)

    async def process(proc: tumen.Process) -> None:
        try:
            await proc.receive()
        finally:
            ended.append(("process", None))

    async with make_node(app=app) as node:
        node.spawn(process)
        await turn()
    shutdown = tumen.Atom("shutdown")
    assert ended == [("second", shutdown), ("first", shutdown), ("process", None)]


async def test_peers_see_shutdown_and_the_closed_connection(backend: str) -> None:
    async with make_node("b") as b:
        async with make_node("a") as a:
            await b.connect(a.name, address(a))
            pid = a.spawn(echo)
            monitor = b.monitor(pid)
            # The answer comes behind the monitor, so it is there.
            assert await b.ping(a.name)
            events = b.events()
        assert await monitor == tumen.Atom("shutdown")
        await next_event(events, tumen.events.NodeDown)
        assert b.nodes() == []


async def test_server_whose_init_raises_makes_the_start_fail(backend: str) -> None:
    app = tumen.App()
    app.server("counter", ValueError("no"))(Counter)
    node = make_node(app=app)
    with pytest.raises(tumen.ServerDied) as caught:
        await node.start()
    assert isinstance(caught.value.__cause__, ValueError)
    assert not node.running


@pytest.mark.parametrize("name", ["", "@", "a@", "@b", "a@b@c", "a b@c\0d"])
async def test_bad_name_is_refused(name: str) -> None:
    node = tumen.Node(name, cookie=COOKIE, epmd=None)
    with pytest.raises(ValueError):
        await node.start()
    assert not node.running


async def test_taken_port_is_an_oserror() -> None:
    async with make_node() as node:
        other = make_node(listen_port=node.info().port, listen_host=HOST)
        with pytest.raises(OSError, match="in use"):
            await other.start()


async def test_options_are_checked_before_the_start() -> None:
    with pytest.raises(ValueError, match="driver"):
        tumen.Node("a@b", driver="fiber")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epmd"):
        tumen.Node("a@b", epmd="maybe")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="epoll"):
        tumen.Node("a@b", driver="loop", backend="uring")


async def test_weak_cookie_warns(caplog: pytest.LogCaptureFixture) -> None:
    for cookie, what in (("short", "16 bytes"), ("long-enough-but-ends-in-7", "digit")):
        with caplog.at_level(logging.WARNING, "tumen"):
            async with make_node(cookie=cookie):
                pass
        assert what in caplog.text
        assert cookie not in caplog.text
        caplog.clear()


async def test_node_that_nobody_stopped_warns() -> None:
    node = make_node()
    await node.start()
    with pytest.warns(ResourceWarning, match="was not stopped"):
        node.__del__()
    await node.stop()


async def test_node_used_from_another_loop_says_so(backend: str) -> None:
    async with make_node() as node:

        def elsewhere() -> None:
            asyncio.run(node.call("nobody", 1))

        with pytest.raises(RuntimeError):
            await asyncio.to_thread(elsewhere)


async def test_fork_leaves_a_dead_node_in_the_child(backend: str) -> None:
    code = """
import asyncio, os, sys
from nodes import make_node
import tumen

async def run():
    async with make_node() as node:
        node.expose("m", "f", lambda: None)
        pid = os.fork()
        if pid == 0:
            try:
                node.send("nobody", 1)
            except tumen.TumenError as error:
                os._exit(0 if "parent" in str(error) else 3)
            os._exit(4)
        _, status = os.waitpid(pid, 0)
        assert await node.rpc(node.name, "m", "f") is None
        return os.waitstatus_to_exitcode(status)

sys.exit(asyncio.run(run()))
"""
    assert _python(code) == ""


async def test_interpreter_may_end_with_a_node_running(backend: str) -> None:
    code = """
import asyncio
from nodes import make_node
loop = asyncio.new_event_loop()
node = make_node()
loop.run_until_complete(node.start())
print("up", flush=True)
"""
    assert _python(code, "-W", "ignore") == "up\n"


async def test_sub_interpreter_cannot_import() -> None:
    code = """
import _xxsubinterpreters as interpreters
import tumen
one = interpreters.create()
try:
    interpreters.run_string(one, "import tumen._core")
except interpreters.RunFailedError as error:
    print("ImportError" in str(error))
"""
    assert _python(code) == "True\n"


async def test_stopped_node_is_collected(backend: str) -> None:
    import weakref

    node = make_node()
    async with node:
        await node.start_server(Counter)
    ref = weakref.ref(node)
    del node
    gc.collect()
    assert ref() is None


def _python(code: str, *options: str) -> str:
    """Runs code in a process of its own; its output."""
    tests = Path(__file__).parent
    path = [str(tests), str(Path(tumen.__file__).parent.parent)]
    code = f"import sys; sys.path[:0] = {path!r}\n{code}"
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
