"""Messages whose term is large are built away from the loop, and nothing overtakes them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

import tumen
import tumen._core
from faults.evil import Evil, atom, binary, frame, integer, tuple_of
from gate import Gate
from idle import idle_process
from nodes import COOKIE, HOST, address, make_node, next_event, turn, until
from tumen import Atom, Process, events

pytestmark = pytest.mark.asyncio

MIB = 1024 * 1024
# APART_BYTES of the binding: from here on.
LARGE = 4 * MIB
PAYLOAD = b"0123456789abcdef" * (LARGE // 16)
BIG, SMALL = Atom("big"), Atom("small")


def brief(term: Any) -> Any:
    """The term with a length and a checksum for each large binary: what a failing test shows."""
    if isinstance(term, bytes) and len(term) > 100:
        return len(term), zlib.crc32(term)
    return tuple(map(brief, term)) if isinstance(term, tuple) else term


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(tumen._core, "Pool", gate.pool())
    yield gate
    gate.open()


class Server(tumen.GenServer):
    """Replies with so many bytes."""

    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        return bytes(request) if isinstance(request, int) else request


app = tumen.App()
app.server("server")(Server)


@app.expose("large", "bytes", inline=True)
def large_bytes(size: int) -> bytes:
    return bytes(size)


@app.expose("large", "size", inline=True)
def large_size(data: bytes) -> int:
    return len(data)


@pytest_asyncio.fixture(params=["thread", "loop"])
async def here(request: pytest.FixtureRequest, backend: str) -> AsyncIterator[tumen.Node]:
    """The node that gets large messages."""
    async with make_node("here", app=app, driver=request.param) as node:
        yield node


@pytest_asyncio.fixture
async def there(here: tumen.Node) -> AsyncIterator[tumen.Node]:
    """The one that sends them."""
    async with make_node("there", app=app) as node:
        await node.connect(here.name, address(here))
        yield node


def building(node: tumen.Node) -> bool:
    return node._running.core.building


async def test_what_follows_a_large_message_waits_and_other_processes_go_on(
    here: tumen.Node, there: tumen.Node, gate: Gate
) -> None:
    proc, other = await idle_process(here), await idle_process(here)
    sender = await idle_process(there)
    proc.trap_exit = True
    sender.link(proc.pid)
    sender.send(proc.pid, (BIG, PAYLOAD))
    sender.send(proc.pid, SMALL)
    sender.send(other.pid, Atom("first"))
    sender.exit(sender.pid, Atom("over"))
    # Sent last, but for another process.
    assert await other.receive(timeout=5) == Atom("first")
    assert await here.call("server", 5) == bytes(5)
    await until(lambda: gate.waiting)
    assert building(here)
    assert proc._waiting() == 0
    assert here.info().mail_bytes >= LARGE
    assert here.info().inbox_bytes >= LARGE
    gate.open()
    assert brief(await proc.receive(timeout=5)) == brief((BIG, PAYLOAD))
    assert await proc.receive(timeout=5) == SMALL
    assert await proc.receive(timeout=5) == (Atom("EXIT"), sender.pid, Atom("over"))
    await until(lambda: not building(here))
    assert here.info().inbox_bytes == 0


async def test_several_large_messages_keep_their_order_among_small_ones(
    here: tumen.Node, there: tumen.Node
) -> None:
    proc = await idle_process(here)
    sender = await idle_process(there)

    async def send() -> None:
        for number in range(20):
            payload = PAYLOAD if number % 3 == 0 else b"small"
            await sender.send_wait(proc.pid, (number, payload))

    task = asyncio.create_task(send())
    for number in range(20):
        got, payload = await proc.receive(timeout=10)
        assert got == number
        assert brief(payload) == brief(PAYLOAD if number % 3 == 0 else b"small")
    await task


async def test_exit_signal_behind_a_large_message_ends_the_process_after_it(
    here: tumen.Node, there: tumen.Node, gate: Gate
) -> None:
    proc = await idle_process(here)
    sender = await idle_process(there)
    monitor = sender.monitor(proc.pid)
    sender.send(proc.pid, (BIG, PAYLOAD))
    sender.exit(proc.pid, Atom("stop"))
    # For others it is dead at once.
    down = await sender.receive(timeout=5)
    assert (down[1], down[4]) == (monitor, Atom("stop"))
    await until(lambda: gate.waiting)
    assert proc.alive
    gate.open()
    await until(lambda: not proc.alive)
    assert proc.exit_reason == Atom("stop")
    await until(lambda: here.info().mail_bytes == 0 and not building(here))


async def test_large_reply_is_waited_for_and_other_calls_go_on(
    here: tumen.Node, there: tumen.Node, gate: Gate
) -> None:
    large = asyncio.create_task(here.call(("server", there.name), LARGE))
    await until(lambda: gate.waiting)
    assert await here.call(("server", there.name), 7) == bytes(7)
    assert await here.rpc(there.name, "large", "size", [b"xyz"]) == 3
    assert not large.done()
    gate.open()
    assert brief(await large) == brief(bytes(LARGE))


async def test_replies_for_a_process_come_in_order(
    here: tumen.Node, there: tumen.Node, gate: Gate
) -> None:
    proc = await idle_process(here)
    server = ("server", there.name)
    order = []

    async def ask(size: int) -> None:
        assert brief(await proc.call(server, size)) == brief(bytes(size))
        order.append(size)

    first = asyncio.create_task(ask(LARGE))
    await until(lambda: gate.waiting)
    second = asyncio.create_task(ask(1))
    assert await here.call(server, 2) == bytes(2)
    assert not order
    gate.open()
    await asyncio.gather(first, second)
    assert order == [LARGE, 1]


async def test_call_that_expires_while_its_reply_is_built_times_out(
    here: tumen.Node, there: tumen.Node, gate: Gate
) -> None:
    with pytest.raises(tumen.CallTimeout):
        await here.call(("server", there.name), LARGE, timeout=0.2)
    gate.open()
    assert await here.call(("server", there.name), 3) == bytes(3)
    await until(lambda: not building(here))


async def test_large_arguments_and_results_of_rpc(here: tumen.Node, there: tumen.Node) -> None:
    assert brief(await here.rpc(there.name, "large", "bytes", [LARGE])) == brief(bytes(LARGE))
    assert await there.rpc(here.name, "large", "size", [PAYLOAD]) == LARGE
    with pytest.raises(tumen.RemoteError):
        await there.rpc(here.name, "large", "size", [PAYLOAD, 1])


async def test_process_that_ends_meanwhile_leaves_nothing(
    here: tumen.Node, there: tumen.Node, gate: Gate
) -> None:
    proc = await idle_process(here)
    sender = await idle_process(there)
    for message in ((BIG, PAYLOAD), SMALL, (BIG, PAYLOAD)):
        await sender.send_wait(proc.pid, message)
    await until(lambda: gate.waiting)
    proc.exit(proc.pid, Atom("kill"))
    assert await there.call(("server", here.name), 5) == bytes(5)
    gate.open()
    await until(lambda: not building(here))
    assert not proc.alive
    assert (here.info().mail_bytes, here.info().inbox_bytes) == (0, 0)


async def test_node_that_stops_meanwhile_waits_for_no_term(backend: str, gate: Gate) -> None:
    async with make_node("there") as there:
        async with make_node("here") as here:
            await there.connect(here.name, address(here))
            proc = await idle_process(here)
            there.send(proc.pid, (BIG, PAYLOAD))
            there.send(proc.pid, SMALL)
            await until(lambda: gate.waiting)
        assert not proc.alive


async def test_large_term_with_a_fault_ends_its_connection(here: tumen.Node) -> None:
    """Two equal keys of a map show only when it is built."""
    proc = await idle_process(here)
    here.register("sink", proc.pid)
    twice = b"t\0\0\0\2" + integer(1) + binary(PAYLOAD) + integer(1) + integer(2)
    stream = here.events()
    with Evil(cookie=COOKIE) as evil:
        await asyncio.to_thread(lambda: evil.dial((HOST, here.info().port)).shake())
        control = tuple_of(integer(6), evil.pid(1), atom(""), atom("sink"))
        await asyncio.to_thread(evil.send, frame(control, twice) + frame(control, integer(1)))
        down = await next_event(stream, events.NodeDown)
        assert "same key twice" in down.reason
    await until(lambda: not building(here))
    assert proc._waiting() == 0
    assert here.info().mail_bytes == 0


async def test_loop_goes_on_while_many_objects_are_built(
    here: tumen.Node, there: tumen.Node
) -> None:
    proc = await idle_process(here)
    count = 200_000
    there.send(proc.pid, [(Atom("item"), number, (number, [number])) for number in range(count)])
    turns = 0
    async with asyncio.timeout(20):
        while not building(here):
            await turn()
        while proc._waiting() == 0:
            # The loop gives the interpreter away, and has to get it back.
            await asyncio.sleep(0.001)
            turns += 1
    # Two or three without a turn for others while it is built.
    assert turns > 6
    message = await proc.receive(timeout=5)
    assert len(message) == count
    assert message[-1] == (Atom("item"), count - 1, (count - 1, [count - 1]))


async def test_any_large_term_arrives_as_it_was_sent(here: tumen.Node, there: tumen.Node) -> None:
    numbers = list(range(1000))
    term = (
        [PAYLOAD, PAYLOAD[:-1], bytes(300_000), bytes(5000)],
        tuple(numbers),
        {number: [number, tuple(numbers)] for number in range(300)},
        tumen.ImproperList([*numbers, *numbers], Atom("tail")),
        [bytes([number & 255]) * 300 for number in range(2000)],
        list(range(256)),
        [list(range(257)), [[numbers] * 513]],
        tumen.BitString(bytes(100_000) + b"\x80", 1),
        tuple(2**200 + number for number in range(600)),
    )
    proc = await idle_process(here)
    there.send(proc.pid, term)
    got = await proc.receive(timeout=10)
    assert len(got) == len(term)
    # Not an assertion of the whole: what it would show is too long.
    assert [place for place, value in enumerate(got) if value != term[place]] == []


async def test_sync_node_gets_large_replies() -> None:
    def run() -> tuple[int, Any]:
        with (
            tumen.sync.Node(f"sync@{HOST}", cookie=COOKIE, epmd=None) as a,
            tumen.sync.Node(f"other@{HOST}", cookie=COOKIE, epmd=None, app=app) as b,
        ):
            a.connect(b.name, (HOST, b.info().port))
            return len(a.call(("server", b.name), LARGE)), a.rpc(b.name, "large", "size", [PAYLOAD])

    assert await asyncio.to_thread(run) == (LARGE, LARGE)


class Keeper(tumen.GenServer):
    """Keeps what it is told."""

    async def init(self) -> None:
        self.seen: list[Any] = []

    async def handle_cast(self, request: Any) -> None:
        self.seen.append(request)

    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        return [len(seen) if isinstance(seen, bytes) else seen for seen in self.seen]


async def test_server_handles_large_requests_in_order(here: tumen.Node, there: tumen.Node) -> None:
    await here.start_server(Keeper, name="keeper")
    keeper = ("keeper", here.name)

    async def client(proc: Process) -> None:
        await proc.send_wait(keeper, (Atom("$gen_cast"), PAYLOAD))
        await proc.send_wait(keeper, (Atom("$gen_cast"), 1))
        assert await proc.call(keeper, Atom("seen")) == [LARGE, 1]

    assert await there.join(there.spawn(client)) == Atom("normal")
