"""How processes end, and what the others see of it: exits, links, monitors."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

import tumen
from nodes import echo, hang, make_node, pair, turn, until
from tumen import Atom

pytestmark = pytest.mark.asyncio

NORMAL, NOPROC, KILLED = Atom("normal"), Atom("noproc"), Atom("killed")


async def forever(proc: tumen.Process) -> None:
    await proc.receive(lambda message: message == Atom("stop"))


async def test_return_ends_a_process_normally(backend: str) -> None:
    async def main(proc: tumen.Process) -> None:
        await proc.receive()

    async with make_node() as node:
        pid = node.spawn(main)
        monitor = node.monitor(pid)
        node.send(pid, 1)
        assert await monitor == NORMAL
        assert await node.join(pid) == NOPROC


async def test_exit_ends_a_process_with_that_reason(backend: str) -> None:
    async def main(proc: tumen.Process, reason: Any) -> None:
        await proc.receive()
        raise tumen.Exit(reason)

    async with make_node() as node:
        for reason in (Atom("shutdown"), (Atom("a"), [1, 2.5]), 7, b"bytes"):
            pid = node.spawn(main, reason)
            monitor = node.monitor(pid)
            node.send(pid, 1)
            assert await monitor == reason


async def test_exception_ends_a_process_with_type_and_traceback(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(proc: tumen.Process, *_: Any) -> None:
        await proc.receive()
        raise LookupError("what is missing")

    async with make_node() as node:
        pid = node.spawn(main, 1, 2)
        monitor = node.monitor(pid)
        node.send(pid, 1)
        (kind, name, text), stack = await monitor
        assert kind == Atom("python_error")
        assert name == b"builtins.LookupError"
        assert text.startswith(b"what is missing")
        assert b"test_process_exit.py" in text
        assert stack == [(Atom("tumen"), Atom("spawn"), 3, [])]
    assert "crashed" in caplog.text
    assert "LookupError" in caplog.text


async def test_reason_that_is_no_term_still_ends_the_process(backend: str) -> None:
    async def main(proc: tumen.Process) -> None:
        await proc.receive()
        raise tumen.Exit(object())

    async with make_node() as node:
        pid = node.spawn(main)
        monitor = node.monitor(pid)
        node.send(pid, 1)
        reason = await monitor
        assert reason[0][1] == b"tumen.errors.EncodeError"


async def test_exit_signal_kills_at_once_and_cancels_the_task(backend: str) -> None:
    cancelled = asyncio.Event()
    stubborn: list[tumen.Process] = []

    async def main(proc: tumen.Process) -> None:
        stubborn.append(proc)
        try:
            await proc.receive()
        except asyncio.CancelledError:
            cancelled.set()
        # Swallowed: but it is dead for everybody, itself included.
        with pytest.raises(tumen.ProcessExited) as caught:
            proc.send("anybody", 1)
        assert caught.value.reason == Atom("enough")
        stubborn.clear()

    async with make_node() as node:
        pid = node.spawn(main, name="stubborn")
        monitor = node.monitor(pid)
        await turn()
        node.exit(pid, Atom("enough"))
        assert await monitor == Atom("enough")
        assert node.whereis("stubborn") is None
        await cancelled.wait()
        await until(lambda: not stubborn)


async def test_kill_cannot_be_trapped_and_normal_is_ignored(backend: str) -> None:
    async def main(proc: tumen.Process) -> None:
        proc.trap_exit = True
        assert proc.trap_exit
        async for message in proc:
            proc.send("watcher", message)

    async def stoppable(proc: tumen.Process) -> None:
        await forever(proc)
        raise tumen.Exit(Atom("stopped"))

    async with make_node() as node:
        watcher: asyncio.Queue[Any] = asyncio.Queue()

        async def watch(proc: tumen.Process) -> None:
            async for message in proc:
                watcher.put_nowait(message)

        node.spawn(watch, name="watcher")
        pid = node.spawn(main)
        monitor = node.monitor(pid)
        await turn()
        node.exit(pid, Atom("please"))
        tag, sender, reason = await watcher.get()
        assert (tag, reason) == (Atom("EXIT"), Atom("please"))
        assert sender.node == node.name
        plain = node.spawn(stoppable)
        spared = node.monitor(plain)
        node.exit(plain, NORMAL)
        node.exit(pid, Atom("kill"))
        assert await monitor == KILLED
        node.send(plain, Atom("stop"))
        assert await spared == Atom("stopped")


async def test_links_carry_exits_both_ways_and_across_nodes(backend: str) -> None:
    async def linked(proc: tumen.Process, other: tumen.Pid) -> None:
        proc.link(other)
        linking.set()
        await forever(proc)

    async with pair() as (a, b):
        for first, second in ((a, a), (a, b)):
            linking = asyncio.Event()
            one = first.spawn(forever)
            two = second.spawn(linked, one)
            down = [first.monitor(one), second.monitor(two)]
            await linking.wait()
            # In order behind the link: that has arrived.
            assert await second.ping(first.name)
            first.exit(one, Atom("torn"))
            assert [await monitor for monitor in down] == [Atom("torn")] * 2


async def test_unlinked_process_survives(backend: str) -> None:
    async def main(proc: tumen.Process, other: tumen.Pid) -> None:
        proc.link(other)
        proc.unlink(other)
        unlinking.set()
        await forever(proc)

    unlinking = asyncio.Event()
    async with pair() as (a, b):
        one = a.spawn(forever)
        two = b.spawn(main, one)
        await unlinking.wait()
        assert await b.ping(a.name)
        monitor = b.monitor(two)
        a.exit(one, Atom("torn"))
        await a.join(one)
        # In order behind whatever that end has to tell.
        assert await b.ping(a.name)
        b.send(two, Atom("stop"))
        assert await monitor == NORMAL


async def test_spawn_link_ties_child_and_parent(backend: str) -> None:
    child: asyncio.Future[tumen.Pid] = asyncio.get_running_loop().create_future()

    async def parent(proc: tumen.Process) -> None:
        child.set_result(proc.spawn_link(forever, name="child"))
        await forever(proc)

    async with make_node() as node:
        pid = node.spawn(parent)
        monitor = node.monitor(pid)
        node.exit(await child, Atom("boom"))
        assert await monitor == Atom("boom")


async def test_monitor_message_has_erlangs_shape(backend: str) -> None:
    got: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process, pid: tumen.Pid, name: tuple[str, str]) -> None:
        by_pid, by_name = proc.monitor(pid), proc.monitor(name)
        gone = proc.monitor("nobody")
        watching.set()
        got.set_result([by_pid, by_name, gone, *[await proc.receive() for _ in range(3)]])

    watching = asyncio.Event()
    async with pair() as (a, b):
        pid = a.spawn(forever, name="target")
        b.spawn(main, pid, ("target", a.name))
        await watching.wait()
        assert await b.ping(a.name)
        a.exit(pid, Atom("over"))
        by_pid, by_name, gone, first, *rest = await got
        down, process, over = Atom("DOWN"), Atom("process"), Atom("over")
        assert first == (down, gone, process, (Atom("nobody"), Atom(b.name)), NOPROC)
        assert sorted(rest, key=lambda message: message[1] == by_name) == [
            (down, by_pid, process, pid, over),
            (down, by_name, process, (Atom("target"), Atom(a.name)), over),
        ]


async def test_demonitor_takes_a_down_that_has_come_already(backend: str) -> None:
    result: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process, pid: tumen.Pid) -> None:
        alive, dead = proc.monitor(pid), proc.monitor("nobody")
        proc.send(proc.pid, "last")
        await until(lambda: proc._waiting() >= 2)
        result.set_result(
            [proc.demonitor(alive), proc.demonitor(dead), proc._waiting(), await proc.receive()]
        )

    async with make_node() as node:
        node.spawn(main, node.spawn(forever))
        assert await result == [True, False, 1, b"last"]


async def test_lost_connection_fires_noconnection(backend: str) -> None:
    async with pair() as (a, b):
        pid = a.spawn(echo)
        monitor = b.monitor(pid)
        assert await b.ping(a.name)
        assert await b.disconnect(a.name)
        assert await monitor == Atom("noconnection")
        assert not await b.disconnect(a.name)


async def test_taken_name_leaves_no_process_behind(backend: str) -> None:
    async with make_node() as node:
        node.spawn(forever, name="one")
        count = node.info().processes
        with pytest.raises(tumen.NameClash):
            node.spawn(forever, name="one")
        assert node.info().processes == count


async def test_what_cannot_be_called_is_not_spawned(backend: str) -> None:
    async with make_node() as node:
        count = node.info().processes
        with pytest.raises(TypeError):
            node.spawn(3)  # type: ignore[arg-type]
        assert node.info().processes == count


async def test_demonitored_node_monitor_does_not_hang_its_waiter(backend: str) -> None:
    async with make_node() as node:
        monitor = node.monitor(node.spawn(forever))
        assert not monitor.done
        monitor.demonitor()
        assert monitor.done
        with pytest.raises(tumen.TumenError, match="ended"):
            await monitor


async def test_reading_a_dead_process_raises_with_its_reason(backend: str) -> None:
    processes: list[tumen.Process] = []

    async def main(proc: tumen.Process) -> None:
        processes.append(proc)
        await proc.receive()

    async with make_node() as node:
        pid = node.spawn(main)
        await turn()
        (proc,) = processes
        node.exit(pid, Atom("enough"))
        await node.join(pid)
        for reading in (anext(proc), proc.receive(), proc.call("x", 1), proc.rpc("x@y", "m", "f")):
            with pytest.raises(tumen.ProcessExited) as caught:
                await reading
            assert caught.value.reason == Atom("enough")
        with pytest.raises(tumen.ProcessExited):
            proc.trap_exit = True


async def test_process_outside_of_a_node_says_so() -> None:
    process = tumen.Process()
    with pytest.raises(tumen.ProcessExited, match="not started"):
        process.send("x", 1)


async def test_user_cancelling_the_task_is_a_shutdown(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main(proc: tumen.Process) -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await hang()

    async with make_node() as node:
        with caplog.at_level(logging.ERROR, "tumen"):
            assert await node.join(node.spawn(main)) == Atom("shutdown")
        assert caplog.text == ""
