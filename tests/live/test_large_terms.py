"""What a process of a BEAM sends after a large message comes after it; all else goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

import flags
import peers
import tumen
import tumen._core
from gate import Gate
from idle import idle_process
from nodes import Counter, make_node, until
from tumen import Atom

pytestmark = pytest.mark.asyncio

# From 4 MiB on a term is built away from the loop.
LARGE = 8 * 1024 * 1024
# Tells P that it is there, then at once: a large message, a small one, and a word to O; ends by
# what E does.
SENDER = (
    "spawn(fun() -> B = binary:copy(<<7>>, L), P ! {large, B}, P ! small, O ! meanwhile, E(P) end)"
)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(tumen._core, "Pool", gate.pool())
    yield gate
    gate.open()


@pytest_asyncio.fixture(params=["thread", "loop"])
async def node(
    request: pytest.FixtureRequest, backend: str, epmd: peers.Epmd
) -> AsyncIterator[tumen.Node]:
    app = tumen.App()
    app.server("counter", 10)(Counter)
    app.expose("large", "size", inline=True)(len)
    async with make_node(
        cookie=peers.COOKIE,
        epmd="auto",
        listen_host="127.0.0.1",
        flags=flags.FORMS["both"],
        app=app,
        driver=request.param,
    ) as node:
        yield node


async def test_exit_message_comes_after_the_large_one_and_others_are_served_meanwhile(
    node: tumen.Node, shared_beam: peers.Beam, gate: Gate
) -> None:
    proc, other = await idle_process(node), await idle_process(node)
    proc.trap_exit = True
    pid = await shared_beam.eval(
        f"E = fun(To) -> link(To), exit(over) end, {SENDER}", P=proc.pid, O=other.pid, L=LARGE
    )
    assert await other.receive(timeout=10) == Atom("meanwhile")
    await until(lambda: gate.waiting)
    # Calls both ways, and a reply of the same node.
    answer = await shared_beam.eval("gen_server:call({counter, N}, {add, 5})", N=Atom(node.name))
    assert answer == 15
    assert await node.rpc(shared_beam.name, "lists", "sum", [[1, 2]]) == 3
    assert proc._waiting() == 0
    gate.open()
    tag, payload = await proc.receive(timeout=10)
    assert (tag, len(payload), set(payload)) == (Atom("large"), LARGE, {7})
    assert await proc.receive(timeout=10) == Atom("small")
    assert await proc.receive(timeout=10) == (Atom("EXIT"), pid, Atom("over"))


async def test_down_comes_after_the_large_message(
    node: tumen.Node, shared_beam: peers.Beam, gate: Gate
) -> None:
    proc, other = await idle_process(node), await idle_process(node)
    pid = await shared_beam.eval(
        f"E = fun(_) -> receive go -> exit(done) end end, {SENDER}",
        P=proc.pid,
        O=other.pid,
        L=LARGE,
    )
    monitor = proc.monitor(pid)
    assert await other.receive(timeout=10) == Atom("meanwhile")
    watching = asyncio.ensure_future(node.monitor(pid))
    proc.send(pid, Atom("go"))
    # Another process has heard of it already.
    assert await watching == Atom("done")
    await until(lambda: gate.waiting)
    assert proc._waiting() == 0
    gate.open()
    tag, payload = await proc.receive(timeout=10)
    assert (tag, len(payload), set(payload)) == (Atom("large"), LARGE, {7})
    assert await proc.receive(timeout=10) == Atom("small")
    down = await proc.receive(timeout=10)
    assert down == (Atom("DOWN"), monitor, Atom("process"), pid, Atom("done"))


async def test_exit_signal_ends_the_process_after_the_large_message(
    node: tumen.Node, shared_beam: peers.Beam, gate: Gate
) -> None:
    proc, other = await idle_process(node), await idle_process(node)
    await shared_beam.eval(
        f"E = fun(To) -> exit(To, stop), O ! signalled end, {SENDER}",
        P=proc.pid,
        O=other.pid,
        L=LARGE,
    )
    assert await other.receive(timeout=10) == Atom("meanwhile")
    assert await other.receive(timeout=10) == Atom("signalled")
    await until(lambda: gate.waiting)
    assert proc.alive
    gate.open()
    await until(lambda: not proc.alive)
    assert proc.exit_reason == Atom("stop")


async def test_large_replies_and_results_come_to_who_asked(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    name = shared_beam.name
    large = b"\1" * LARGE
    got, small = await asyncio.gather(
        node.rpc(name, "binary", "copy", [b"\1", LARGE]), node.rpc(name, "lists", "seq", [1, 3])
    )
    assert (len(got), set(got), small) == (LARGE, {1}, [1, 2, 3])
    server = await shared_beam.eval(
        "spawn(fun() -> receive {'$gen_call', From, M} -> gen_server:reply(From, {ok, M}) end end)"
    )
    answer, payload = await node.call(server, large, timeout=30)
    assert (answer, len(payload), set(payload)) == (Atom("ok"), LARGE, {1})
    size = await shared_beam.eval(
        "erpc:call(N, large, size, [binary:copy(<<1>>, L)])", N=Atom(node.name), L=LARGE
    )
    assert size == LARGE


async def test_large_binary_comes_as_a_view_of_what_was_received(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    proc.binary_views = True
    await shared_beam.eval(
        "P ! {large, binary:copy(<<7>>, L)}, P ! {large, binary:copy(<<8>>, 100000)}",
        P=proc.pid,
        L=LARGE,
    )
    for size, byte in ((LARGE, 7), (100_000, 8)):
        tag, view = await proc.receive(timeout=10)
        assert (tag, type(view), len(view), set(view)) == (Atom("large"), memoryview, size, {byte})
    # And back.
    answer = await proc.rpc(shared_beam.name, "erlang", "byte_size", [view])
    assert answer == 100_000
    answer = await proc.rpc(shared_beam.name, "binary", "copy", [b"ab", 500_000])
    assert (type(answer), answer) == (memoryview, b"ab" * 500_000)
