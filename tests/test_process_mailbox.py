"""Mailboxes: order, selective receive, fairness towards the loop, bounds."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest

import tumen
from nodes import make_node, pair, turn, until
from tumen import Atom

pytestmark = pytest.mark.asyncio


class Inbox:
    """Runs coroutines as one process, from outside."""

    def __init__(self) -> None:
        self.process: asyncio.Future[tumen.Process] = asyncio.get_running_loop().create_future()
        self.release = asyncio.Event()

    async def main(self, proc: tumen.Process) -> None:
        self.process.set_result(proc)
        await self.release.wait()

    async def open(self, node: tumen.Node) -> tumen.Process:
        node.spawn(self.main)
        return await self.process


async def test_messages_come_in_the_order_they_were_sent(backend: str) -> None:
    count = 20_000
    got: list[Any] = []
    done = asyncio.get_running_loop().create_future()

    async def collect(proc: tumen.Process) -> None:
        async for message in proc:
            got.append(message)
            if len(got) == count:
                done.set_result(None)

    async with pair() as (a, b):
        pid = a.spawn(collect)
        for n in range(count):
            await b.send_wait(pid, n)
        await asyncio.wait_for(done, 20)
    assert got == list(range(count))


async def test_message_arrives_as_a_copy(backend: str) -> None:
    async with make_node() as node:
        proc = await Inbox().open(node)
        sent = [1, {"a": [2]}, (3, Atom("x")), "text"]
        node.send(proc.pid, sent)
        sent.append(4)
        assert await proc.receive() == [1, {b"a": [2]}, (3, Atom("x")), b"text"]


async def test_receive_takes_the_first_match_and_leaves_the_rest(backend: str) -> None:
    async with make_node() as node:
        proc = await Inbox().open(node)
        for n in range(5):
            node.send(proc.pid, n)
        assert await proc.receive(lambda n: n == 3) == 3
        assert await proc.receive(lambda n: n > 0) == 1
        assert [await proc.receive() for _ in range(3)] == [0, 2, 4]


async def test_receive_looks_only_at_new_messages_while_it_waits(backend: str) -> None:
    async with make_node() as node:
        proc = await Inbox().open(node)
        looked: list[Any] = []

        def match(message: Any) -> bool:
            looked.append(message)
            return message == 2

        node.send(proc.pid, 0)
        waiting = asyncio.create_task(proc.receive(match))
        await until(lambda: looked == [0])
        node.send(proc.pid, 1)
        node.send(proc.pid, 2)
        assert await waiting == 2
        assert looked == [0, 1, 2]
        assert [await proc.receive(), proc._waiting()] == [0, 1]


async def test_receive_times_out_and_nothing_is_lost(backend: str) -> None:
    async with make_node() as node:
        proc = await Inbox().open(node)
        with pytest.raises(TimeoutError):
            await proc.receive(timeout=0)
        with pytest.raises(TimeoutError):
            await proc.receive(lambda message: False, timeout=0.01)
        node.send(proc.pid, 1)
        with pytest.raises(TimeoutError):
            await proc.receive(lambda message: message == 2, timeout=0.01)
        assert await proc.receive(timeout=1) == 1


async def test_cancelled_receive_leaves_the_mailbox_usable(backend: str) -> None:
    async with make_node() as node:
        proc = await Inbox().open(node)
        waiting = asyncio.create_task(proc.receive())
        await turn()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        node.send(proc.pid, 1)
        assert await proc.receive() == 1


async def test_two_readers_of_one_mailbox_are_refused(backend: str) -> None:
    async with make_node() as node:
        proc = await Inbox().open(node)
        waiting = asyncio.create_task(proc.receive())
        await turn()
        with pytest.raises(RuntimeError, match="another task"):
            await proc.receive()
        waiting.cancel()


async def test_busy_reader_gives_the_loop_a_turn(backend: str) -> None:
    """256 messages or a millisecond without suspending, not more."""
    inbox = Inbox()
    async with make_node() as node:
        proc = await inbox.open(node)
        for n in range(3000):
            node.send(proc.pid, n)
        await until(lambda: proc._waiting() >= 3000)
        turns: list[int] = []
        done = asyncio.Event()

        async def other() -> None:
            while not done.is_set():
                turns.append(seen)
                await turn()

        seen = 0
        task = asyncio.create_task(other())
        async for _ in proc:
            seen += 1
            if seen == 3000:
                break
        done.set()
        await task
        gaps = [after - before for before, after in itertools.pairwise([0, *turns, 3000])]
        assert max(gaps) <= 256


async def test_slow_handler_gives_the_loop_a_turn_after_a_millisecond(backend: str) -> None:
    async with make_node() as node:
        proc = await Inbox().open(node)
        for n in range(20):
            node.send(proc.pid, n)
        await until(lambda: proc._waiting() >= 20)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await turn()

        task = asyncio.create_task(other())
        seen = 0
        async for _ in proc:
            end = time.perf_counter() + 0.002
            while time.perf_counter() < end:
                pass
            seen += 1
            if seen == 20:
                break
        task.cancel()
        assert turns >= 15


async def test_taken_mail_is_given_back_to_the_bound(backend: str) -> None:
    async with make_node() as node:
        proc = await Inbox().open(node)
        for _ in range(10):
            node.send(proc.pid, bytes(10_000))
        await until(lambda: proc._waiting() >= 10)
        assert node.info().mail_bytes > 100_000
        for _ in range(10):
            await proc.receive()
        with pytest.raises(TimeoutError):
            await proc.receive(timeout=0.001)
        assert node.info().mail_bytes == 0


async def test_mailbox_over_its_bound_ends_that_process_alone(backend: str) -> None:
    limits = tumen.Limits(mailbox_bytes_max=100_000)
    async with make_node(limits=limits) as node:
        first, second = await Inbox().open(node), await Inbox().open(node)
        monitor = node.monitor(first.pid)
        for _ in range(20):
            node.send(first.pid, bytes(10_000))
        node.send(second.pid, 1)
        reason = await asyncio.wait_for(asyncio.ensure_future(_await(monitor)), 5)
        assert reason[0] == Atom("mailbox_full")
        assert reason[1] >= 100_000
        assert not first.alive
        assert first.exit_reason == reason
        with pytest.raises(tumen.ProcessExited) as caught:
            await first.receive()
        assert caught.value.reason == reason
        assert await second.receive() == 1
        assert node.info().mail_bytes < 100


async def test_mail_of_a_dead_process_is_given_back(backend: str) -> None:
    async with make_node() as node:
        proc = await Inbox().open(node)
        for _ in range(5):
            node.send(proc.pid, bytes(10_000))
        await until(lambda: proc._waiting() >= 5)
        node.exit(proc.pid, Atom("enough"))
        assert await node.join(proc.pid) in (Atom("enough"), Atom("noproc"))
        assert node.info().mail_bytes == 0


async def test_send_after_sends_later_and_can_be_cancelled(backend: str) -> None:
    async with make_node() as node:
        proc = await Inbox().open(node)
        proc.send_after(0.02, proc.pid, 2)
        proc.send_after(0.0, proc.pid, 1)
        proc.send_after(0.01, proc.pid, "never").cancel()
        assert await proc.receive(timeout=5) == 1
        assert await proc.receive(timeout=5) == 2
        assert proc._waiting() == 0


async def test_names_stand_for_processes(backend: str) -> None:
    async with pair() as (a, b):
        proc = await Inbox().open(a)
        a.register("inbox", proc.pid)
        assert a.whereis("inbox") == proc.pid
        assert a.whereis("other") is None
        with pytest.raises(tumen.NameClash):
            a.register("inbox", proc.pid)
        for dest in ("inbox", Atom("inbox"), ("inbox", a.name), proc.pid, proc):
            a.send(dest, 1)
            assert await proc.receive(timeout=5) == 1
        for remote in (("inbox", a.name), (Atom("inbox"), Atom(a.name)), proc.pid):
            b.send(remote, 2)
            assert await proc.receive(timeout=5) == 2
        assert a.unregister("inbox")
        assert not a.unregister("inbox")
        a.send("inbox", 3)  # nobody: silently dropped, as in Erlang
        with pytest.raises(TimeoutError):
            await proc.receive(timeout=0.01)
        with pytest.raises(tumen.NoProc):
            a.register("theirs", tumen.Pid("x@y", 1, 2, 3))


@pytest.mark.parametrize("dest", [1, None, ("a", "b", "c"), ("a", 1), b"name"])
async def test_what_is_no_destination_is_a_type_error(dest: Any) -> None:
    async with make_node() as node:
        with pytest.raises(TypeError):
            node.send(dest, 1)


async def test_send_from_other_threads_arrives(backend: str) -> None:
    async with pair() as (a, b):
        proc = await Inbox().open(a)

        def sender(label: int) -> None:
            for n in range(500):
                b.send(proc.pid, (label, n))

        await asyncio.gather(*(asyncio.to_thread(sender, label) for label in range(4)))
        got = [await proc.receive(timeout=5) for _ in range(2000)]
        for label in range(4):
            assert [n for who, n in got if who == label] == list(range(500))


async def test_what_cannot_be_encoded_is_not_sent_in_part(backend: str) -> None:
    async with make_node() as node:
        proc = await Inbox().open(node)
        with pytest.raises(tumen.EncodeError) as caught:
            node.send(proc.pid, (1, bytes(20_000), [2, object()]))
        assert caught.value.path == "$[2][1]"
        with pytest.raises(tumen.EncodeError):
            await node.call(proc.pid, object())
        node.send(proc.pid, "next")
        assert await proc.receive(timeout=5) == b"next"


async def _await(monitor: tumen.Monitor) -> Any:
    return await monitor
