"""Messages of a BEAM that come in fragments."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest
import pytest_asyncio

import flags
import peers
import tumen
from nodes import Counter, make_node, next_event, until
from tumen import Atom

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def without_cache(backend: str, epmd: peers.Epmd) -> AsyncIterator[tumen.Node]:
    """A node that takes fragments and has no atom cache."""
    app = tumen.App()
    app.server("counter", 10)(Counter)
    async with make_node(
        app=app,
        cookie=peers.COOKIE,
        epmd="auto",
        listen_host="127.0.0.1",
        flags=flags.FORMS["fragments"],
    ) as node:
        yield node


async def test_fragments_alone_give_every_frame_a_header_both_ways(
    without_cache: tumen.Node, shared_beam: peers.Beam
) -> None:
    node = without_cache
    assert await node.ping(shared_beam.name)
    (connection,) = node.connections()
    assert connection.flags & flags.FRAGMENTS
    assert not connection.flags & flags.ATOM_CACHE
    assert await node.rpc(shared_beam.name, "lists", "seq", [1, 3]) == [1, 2, 3]
    answer = await shared_beam.eval("gen_server:call({counter, N}, {add, 5})", N=Atom(node.name))
    assert answer == 15


@pytest_asyncio.fixture(params=["fragments", "both"])
async def node(
    request: pytest.FixtureRequest, backend: str, epmd: peers.Epmd
) -> AsyncIterator[tumen.Node]:
    """A node that takes fragments, with an atom cache and without one."""
    app = tumen.App()
    app.server("counter", 10)(Counter)
    async with make_node(
        app=app,
        cookie=peers.COOKIE,
        epmd="auto",
        listen_host="127.0.0.1",
        flags=flags.FORMS[request.param],
    ) as node:
        yield node


class Collector:
    """A process that keeps what it gets, and whoever waits for so many messages."""

    def __init__(self, node: tumen.Node) -> None:
        self.got: list[Any] = []
        self._more = asyncio.Event()
        self._traps = asyncio.Event()
        self.pid = node.spawn(self._collect, name="collector")

    @classmethod
    async def ready(cls, node: tumen.Node) -> Self:
        """One that traps exits already."""
        self = cls(node)
        await self._traps.wait()
        return self

    async def _collect(self, proc: tumen.Process) -> None:
        proc.trap_exit = True
        self._traps.set()
        async for message in proc:
            self.got.append(message)
            self._more.set()

    async def until(self, count: int) -> list[Any]:
        async with asyncio.timeout(30):
            while len(self.got) < count:
                self._more.clear()
                await self._more.wait()
        return self.got


def held(node: tumen.Node, beam: peers.Beam) -> int:
    """Bytes of unfinished messages of that BEAM."""
    (connection,) = [c for c in node.connections() if c.name == beam.name]
    return connection.reassembly_bytes


# A little more and less than one fragment of a BEAM, two, and many.
SIZES = [65_400, 65_536, 65_537, 131_072, 200_000, 1_000_000, 3_333_333]


@pytest.mark.sanitizer
async def test_binaries_of_any_size_arrive_whole(node: tumen.Node, shared_beam: peers.Beam) -> None:
    collector = await Collector.ready(node)
    await shared_beam.eval(
        "[P ! {size, S, binary:copy(<<(S rem 256)>>, S)} || S <- Ss], ok", P=collector.pid, Ss=SIZES
    )
    assert await collector.until(len(SIZES)) == [
        (Atom("size"), size, bytes([size % 256]) * size) for size in SIZES
    ]
    assert held(node, shared_beam) == 0


async def test_terms_may_be_cut_anywhere(node: tumen.Node, shared_beam: peers.Beam) -> None:
    """Small terms with atoms in them: every border of a fragment lies inside of one."""
    collector = await Collector.ready(node)
    await shared_beam.eval(
        'P ! [{item, N, ok, <<N:64>>, "text", #{a => self()}} || N <- lists:seq(1, 20000)], ok',
        P=collector.pid,
    )
    ((*items,),) = await collector.until(1)
    assert len(items) == 20_000
    for n, item in enumerate(items, 1):
        assert item[:4] == (Atom("item"), n, Atom("ok"), n.to_bytes(8, "big"))
        assert list(item[5]) == [Atom("a")]


async def test_messages_of_several_senders_come_in_the_order_of_each(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """Eight processes, large and small messages in turn: their fragments mix."""
    collector = await Collector.ready(node)
    await shared_beam.eval(
        "B = binary:copy(<<7>>, 300000), "
        "[spawn(fun() -> [P ! {W, N, case N rem 2 of 0 -> B; 1 -> small end} "
        "                 || N <- lists:seq(1, 20)] end) || W <- lists:seq(1, 8)], ok",
        P=collector.pid,
    )
    got = await collector.until(160)
    for worker in range(1, 9):
        mine = [message for message in got if message[0] == worker]
        assert [message[1] for message in mine] == list(range(1, 21))
        assert all(message[2] in (Atom("small"), bytes([7]) * 300_000) for message in mine)
    assert held(node, shared_beam) == 0


async def test_reasons_of_exits_and_downs_may_be_large(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    collector = await Collector.ready(node)
    reason = bytes([1]) * 140_000
    await shared_beam.eval(
        "Pid = spawn(fun() -> link(P), receive go -> exit({large, binary:copy(<<1>>, 140000)}) end "
        "  end), P ! {sender, Pid}, Pid ! go, ok",
        P=collector.pid,
    )
    got = await collector.until(2)
    assert got[0][0] == Atom("sender")
    assert got[1] == (Atom("EXIT"), got[0][1], (Atom("large"), reason))
    await shared_beam.eval("exit(P, {again, binary:copy(<<1>>, 140000)}), ok", P=collector.pid)
    got = await collector.until(3)
    assert got[2][2] == (Atom("again"), reason)


async def test_large_requests_and_replies_of_calls(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """A large argument of an erpc to us, and a large reply to ours."""
    node.expose("sizes", "size_of", len)
    answer = await shared_beam.eval(
        "erpc:call(N, sizes, size_of, [binary:copy(<<2>>, 700000)])", N=Atom(node.name)
    )
    assert answer == 700_000
    data = await node.rpc(shared_beam.name, "binary", "copy", [b"xyz", 200_000])
    assert data == b"xyz" * 200_000


async def test_message_over_the_limit_is_refused_and_the_connection_stays(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """In one frame it would end the connection; in fragments it can be passed over. What a BEAM has
    queued before it was connected comes in one frame whatever its size: so connect first."""
    assert await node.ping(shared_beam.name)
    node.set_limits(message_bytes_max=100_000)
    collector = await Collector.ready(node)
    stream = node.events()
    await shared_beam.eval(
        "P ! before, P ! binary:copy(<<3>>, 300000), P ! later, "
        "spawn(fun() -> link(P), exit(binary:copy(<<4>>, 300000)) end), ok",
        P=collector.pid,
    )
    got = await collector.until(3)
    assert got[:2] == [Atom("before"), Atom("later")]
    assert got[2][2] == Atom("reason_too_large")
    refused = await next_event(stream, tumen.events.Refused)
    assert refused.size >= 300_000
    assert node.nodes() == [shared_beam.name]
    assert held(node, shared_beam) == 0


async def test_connection_that_ends_in_the_middle_leaves_nothing(
    node: tumen.Node, beam: peers.Beam
) -> None:
    collector = await Collector.ready(node)
    await beam.eval("P ! hello, ok", P=collector.pid)
    await collector.until(1)
    before = node.info().engine["bytes"]
    await beam.eval(
        "B = binary:copy(<<9>>, 50000000), [spawn(fun() -> P ! B end) || _ <- lists:seq(1, 2)], ok",
        P=collector.pid,
    )
    await until(lambda: any(c.reassembly_bytes for c in node.connections()))
    beam.kill()
    await until(lambda: not node.nodes())
    await until(lambda: node.info().engine["bytes"] < before + 100_000)
    assert await node.call("counter", Atom("get")) == 10
