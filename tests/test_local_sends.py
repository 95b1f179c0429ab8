"""Messages between processes of one node: handed over as objects, and nobody can tell."""

from __future__ import annotations

import asyncio
import collections
import threading
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tumen
from nodes import Counter, make_node, until
from strategies import atoms, integers, leaves, same, terms, texts
from tumen import Atom, decode, encode


class Inbox:
    """Runs coroutines as one process, from outside."""

    def __init__(self) -> None:
        self.process: asyncio.Future[tumen.Process] = asyncio.get_running_loop().create_future()
        self.release = asyncio.Event()

    async def main(self, proc: tumen.Process) -> None:
        self.process.set_result(proc)
        await self.release.wait()


async def inbox(node: tumen.Node) -> tumen.Process:
    made = Inbox()
    node.spawn(made.main)
    return await made.process


def from_thread(send: Any, *args: Any) -> None:
    """Sends from another thread, as bytes, while the loop does nothing."""
    thread = threading.Thread(target=send, args=args)
    thread.start()
    thread.join()


# -- what arrives ----------------------------------------------------------------------------------


class Number(int):
    pass


class Words(list[Any]):
    pass


@tumen.struct("Elixir.Local.Sends")
@dataclass
class Struct:
    parts: list[int]


python_only = st.one_of(
    texts,
    st.binary(max_size=9).map(bytearray),
    st.binary(max_size=9).map(memoryview),
    st.binary(max_size=9).map(tumen.Binary),
    st.integers(-9, 9).map(Number),
    st.lists(st.integers(-9, 9), max_size=3).map(Words),
    st.lists(st.integers(-9, 9), max_size=3).map(Struct),
    st.lists(st.tuples(texts, integers), max_size=3).map(collections.OrderedDict),
    st.sampled_from([float("nan"), "\ud800", object(), {1}]),
)
keys = st.one_of(texts, st.binary(max_size=2), integers, atoms, leaves)
messages = st.recursive(
    st.one_of(terms, python_only),
    lambda parts: st.one_of(
        st.lists(parts, max_size=4),
        st.lists(parts, max_size=4).map(tuple),
        st.dictionaries(keys, parts, max_size=4),
    ),
    max_leaves=12,
)


def spoil(value: Any) -> None:
    """Changes everything in it that can be changed."""
    match value:
        case list():
            for part in value:
                spoil(part)
            list.append(value, "spoilt")
        case tuple():
            for part in value:
                spoil(part)
        case dict():
            for part in value.values():
                spoil(part)
            value.clear()
        case bytearray():
            value[:] = b"spoilt"
        case Struct():
            spoil(value.parts)


def types_of(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [type(value), *map(types_of, value)]
    if isinstance(value, dict):
        return [dict, *([types_of(key), types_of(part)] for key, part in value.items())]
    return type(value)


def test_what_arrives_is_what_a_round_trip_makes_whatever_is_changed_afterwards() -> None:
    with asyncio.Runner() as runner:
        node = make_node()
        runner.run(node.start())

        @given(messages)
        @settings(max_examples=600, deadline=None)
        def check(message: Any) -> None:
            runner.run(arrives(node, message))

        try:
            check()
        finally:
            runner.run(node.stop())


def outcome(message: Any) -> tuple[Any, str]:
    """What a round trip makes of it, and why it is refused, if it is."""
    try:
        return decode(encode(message)), ""
    except tumen.EncodeError as error:
        return None, str(error)


async def arrives(node: tumen.Node, message: Any) -> None:
    proc = await inbox(node)
    expected, refused = outcome(message)
    if refused:
        with pytest.raises(tumen.EncodeError) as caught:
            node.send(proc.pid, message)
        assert str(caught.value) == refused
        return
    size = len(encode(message)) - 1
    node.send(proc.pid, message)
    # It weighs at least what it would as bytes.
    assert node.info().mail_bytes >= size
    spoil(message)
    assert proc._waiting() == 1
    got = await proc.receive(timeout=0)
    assert same(got, expected)
    assert types_of(got) == types_of(expected)
    node.exit(proc.pid, Atom("kill"))


@pytest.mark.asyncio
async def test_what_cannot_change_is_shared(backend: str) -> None:
    async with make_node() as node:
        proc = await inbox(node)
        payload = b"x" * 1_000_000
        fixed = (Atom("ok"), 1.5, (payload, proc.pid, 2**100, None))
        node.send(proc.pid, fixed)
        assert await proc.receive() is fixed
        node.send(proc.pid, [payload, {Atom("a"): payload}])
        first, second = await proc.receive()
        assert first is payload
        assert second[Atom("a")] is payload


@pytest.mark.asyncio
async def test_nested_deeper_than_the_copy_goes_is_the_same(backend: str) -> None:
    async with make_node() as node:
        proc = await inbox(node)
        deep: Any = [b"x"]
        for _ in range(500):
            deep = [deep, "y"]
        node.send(proc.pid, deep)
        assert await proc.receive() == decode(encode(deep))
        endless: list[Any] = []
        endless.append(endless)
        with pytest.raises(tumen.EncodeError, match="nested deeper"):
            node.send(proc.pid, endless)


@pytest.mark.asyncio
async def test_caller_s_code_may_change_what_is_being_sent(backend: str) -> None:
    class Spoiler:
        def __index__(self) -> int:
            victim.clear()
            return 7

    async with make_node() as node:
        proc = await inbox(node)
        victim: Any = [Spoiler(), 1, 2]
        node.send(proc.pid, victim)
        assert await proc.receive() == [7]
        victim = {Atom("a"): Spoiler(), Atom("b"): [1]}
        node.send(proc.pid, victim)
        assert await proc.receive() == {Atom("a"): 7, Atom("b"): [1]}


# -- no detour -------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_message_is_in_the_mailbox_when_send_returns(backend: str) -> None:
    async with make_node() as node:
        proc = await inbox(node)
        wakeups = node.info().engine["wakeups_out"]
        for number in range(1000):
            node.send(proc.pid, (Atom("n"), [number]))
        assert proc._waiting() == 1000
        assert node.info().inbox_bytes == 0
        assert node.info().engine["wakeups_out"] == wakeups
        assert [await proc.receive() for _ in range(1000)] == [
            (Atom("n"), [n]) for n in range(1000)
        ]


@pytest.mark.asyncio
async def test_names_aliases_and_calls_find_who_they_mean(backend: str) -> None:
    async with make_node() as node:
        proc = await inbox(node)
        other = await inbox(node)
        node.register("first", proc.pid)
        node.send("first", 1)
        node.send(("first", node.name), 2)
        node.unregister("first")
        node.send("first", 3)
        node.register("first", other.pid)
        node.send("first", 4)
        proc.send(proc, 5)
        alias = proc.alias()
        once = proc.alias(reply=True)
        for number, dest in enumerate((alias, once, once, alias), 6):
            other.send(dest, number)
        assert proc.unalias(alias)
        other.send(alias, 10)
        other.cast(proc, 11)
        assert [await proc.receive() for _ in range(7)] == [
            1,
            2,
            5,
            6,
            7,
            9,
            (Atom("$gen_cast"), 11),
        ]
        assert await other.receive() == 4
        assert (proc._waiting(), other._waiting()) == (0, 0)
        pid = await node.start_server(Counter, 1)
        assert await node.call(pid, (Atom("add"), 2)) == 3
        assert await proc.call(pid, Atom("pid")) == pid
        node.send(tumen.Pid(node.name, 77, 7, node.info().creation), 1)
        with pytest.raises(tumen.NoProc):
            await node.call("nobody", 1)


@pytest.mark.asyncio
async def test_reply_that_comes_to_the_pid_resolves_the_call(backend: str) -> None:
    async def old(proc: tumen.Process) -> None:
        _, (caller, tag), request = await proc.receive()
        proc.send(caller, (tag, request))

    async with make_node() as node:
        assert await node.call(node.spawn(old), 7) == 7
        assert node.info().mail_bytes == 0


# -- order -----------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_order_holds_between_bytes_and_objects(backend: str) -> None:
    async with make_node() as node:
        proc = await inbox(node)
        for number in range(0, 40, 4):
            node.send(proc.pid, number)
            from_thread(node.send, proc.pid, number + 1)
            node.send(proc.pid, number + 2)
            from_thread(node.send, proc.pid, number + 3)
        assert [await proc.receive(timeout=5) for _ in range(40)] == list(range(40))
        assert node._running.core._local_count() == 0


@pytest.mark.asyncio
async def test_message_does_not_overtake_an_exit_signal(backend: str) -> None:
    async with make_node() as node:
        proc, other = await inbox(node), await inbox(node)
        proc.trap_exit = True
        other.send(proc.pid, 1)
        other.exit(proc.pid, Atom("why"))
        other.send(proc.pid, 2)
        assert await proc.receive() == 1
        assert await proc.receive() == (Atom("EXIT"), other.pid, Atom("why"))
        assert await proc.receive() == 2


@pytest.mark.asyncio
async def test_messages_come_before_the_end_of_their_sender(backend: str) -> None:
    async with make_node() as node:
        proc = await inbox(node)

        async def main(short: tumen.Process) -> None:
            short.send(proc.pid, 1)
            from_thread(short.send, proc.pid, 2)
            short.send(proc.pid, 3)

        pid = node.spawn(main)
        ref = proc.monitor(pid)
        assert [await proc.receive(timeout=5) for _ in range(3)] == [1, 2, 3]
        down = (Atom("DOWN"), ref, Atom("process"), pid, Atom("normal"))
        assert await proc.receive(timeout=5) == down


@pytest.mark.asyncio
async def test_reply_waits_behind_what_its_sender_sent_before(backend: str) -> None:
    """And one that nobody waits for any more is dropped."""
    async with make_node() as node:
        proc = await inbox(node)

        class Server(tumen.GenServer):
            def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
                from_thread(self.send, proc.pid, request)
                if request == 2:
                    # Before the loop looks at what waits, the reply behind it.
                    asyncio.get_running_loop().call_soon(call.cancel)
                return request

        pid = await node.start_server(Server)
        assert await proc.call(pid, 1) == 1
        assert proc._waiting() == 1
        call = asyncio.create_task(proc.call(pid, 2))
        await asyncio.gather(call, return_exceptions=True)
        assert call.cancelled()
        assert [await proc.receive(timeout=5) for _ in range(2)] == [1, 2]
        await node.call(pid, 3)
        assert [await proc.receive(timeout=5), proc._waiting()] == [3, 0]
        assert node._running.core._local_count() == 0


@pytest.mark.asyncio
async def test_node_that_stops_drops_what_waits(backend: str) -> None:
    async with make_node() as node:
        proc = await inbox(node)
        from_thread(node.send, proc.pid, 1)
        node.send(proc.pid, 2)
        assert node._running.core._local_count() == 1


@pytest.mark.asyncio
async def test_trace_token_goes_along_between_processes_of_a_node(backend: str) -> None:
    async with make_node() as node:
        proc, other = await inbox(node), await inbox(node)
        token = (1, Atom("label"), 1, other.pid, 0)
        other._trace(encode(token)[1:])
        other.send(proc.pid, 1)
        assert await proc.receive(timeout=5) == 1
        assert proc.seq_trace_token is not None
        assert proc.seq_trace_token[1] == Atom("label")
        other._trace(b"")
        proc._trace(b"")
        other.send(proc.pid, 2)
        assert await proc.receive(timeout=5) == 2
        assert proc.seq_trace_token is None


# -- bounds ----------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_mailbox_bound_counts_what_is_handed_over(backend: str) -> None:
    async with make_node(limits=tumen.Limits(mailbox_bytes_max=100_000)) as node:
        proc, other = await inbox(node), await inbox(node)
        monitor = node.monitor(proc.pid)
        payload = b"x" * 1000
        for _ in range(50):
            node.send(proc.pid, [payload])
            node.send(other.pid, [payload])
            await other.receive(timeout=5)
        assert 50_000 <= node.info().mail_bytes <= 110_000
        for _ in range(60):
            node.send(proc.pid, [payload])
            node.send(other.pid, [payload])
            await other.receive(timeout=5)
        reason, size = await asyncio.wait_for(monitor, 5)
        assert reason == Atom("mailbox_full")
        assert 100_000 < size < 102_000
        assert other.alive
        node.exit(other.pid, Atom("kill"))
        await until(lambda: node.info().mail_bytes == 0)


@pytest.mark.asyncio
async def test_message_limit_is_that_of_its_external_form(backend: str) -> None:
    async with make_node(limits=tumen.Limits(message_bytes_max=100_000)) as node:
        proc = await inbox(node)
        # Its weight is over the limit, the message is not: 1 byte for each number.
        node.send(proc.pid, [1] * 50_000)
        assert await proc.receive(timeout=5) == [1] * 50_000
        with pytest.raises(tumen.LimitExceeded):
            node.send(proc.pid, b"x" * 100_001)


@pytest.mark.asyncio
async def test_what_is_no_term_is_refused_with_its_path(backend: str) -> None:
    async with make_node() as node:
        proc = await inbox(node)
        with pytest.raises(tumen.EncodeError) as caught:
            node.send(proc.pid, (1, {Atom("a"): [object()]}))
        assert caught.value.path == "$[1].a[0]"
        with pytest.raises(tumen.EncodeError, match="two keys"):
            node.send(proc.pid, {"a": 1, b"a": 2})
        assert proc._waiting() == 0
        assert node.info().mail_bytes == 0
