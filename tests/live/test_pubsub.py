"""Phoenix.PubSub with Python among its nodes. The other side is a BEAM process that does what
Phoenix's own adapter does: a worker per adapter group, registered and in the group of the scope."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

import peers
import tumen
from nodes import address, make_node, settles, until
from tumen import Atom, Pid

pytestmark = pytest.mark.asyncio

SCOPE = Atom("Elixir.Phoenix.PubSub")
CHANNEL = Atom("Elixir.Phoenix.Channel.Server")

# Collects what reaches the worker, and answers with it.
WORKER = """
    (case whereis(Scope) of undefined -> {ok, _} = pg:start(Scope); _ -> ok end),
    Me = self(),
    W = spawn(fun() ->
        register(Group, self()),
        ok = pg:join(Scope, Group, self()),
        Me ! ready,
        F = fun F(Seen) ->
            receive
                {seen, From, N} when length(Seen) >= N -> From ! lists:reverse(Seen), F(Seen);
                {forward_to_local, _, _, _} = M -> F([M | Seen])
            end
        end,
        F([])
    end),
    receive ready -> W end
"""
SEEN = "W ! {seen, self(), N}, receive L -> L after 9000 -> late end"
# Phoenix.PubSub.PG2.broadcast/4.
BROADCAST = """
    [P ! {forward_to_local, Topic, Message, Dispatcher}
     || P <- pg:get_members(Scope, Group), node(P) =/= node()]
"""

_names = itertools.count(1)


@pytest.fixture
def name() -> str:
    """A PubSub that no other test uses."""
    return f"Elixir.App{next(_names)}.PubSub"


async def worker(beam: peers.Beam, group: str) -> Pid:
    return await beam.eval(WORKER, Scope=SCOPE, Group=Atom(group))


async def broadcast(beam: peers.Beam, group: str, topic: str, message: Any, **other: Any) -> None:
    options = {"Dispatcher": SCOPE, **other}
    await beam.eval(
        BROADCAST, Scope=SCOPE, Group=Atom(group), Topic=topic, Message=message, **options
    )


async def joined(beam: peers.Beam, group: str, count: int) -> None:
    """Returns when the BEAM sees so many members of the adapter's group."""
    await settles(
        f"{count} members of {group}",
        lambda: beam.eval("length(pg:get_members(S, G))", S=SCOPE, G=Atom(group)),
        lambda found: found >= count,
    )


async def test_broadcasts_reach_both_sides(
    node: tumen.Node, shared_beam: peers.Beam, name: str
) -> None:
    group = f"{name}.Adapter"
    process = await worker(shared_beam, group)
    await node.connect(shared_beam.name)
    pubsub = node.pubsub(name)
    await pubsub.ready()
    assert pubsub.nodes() == [shared_beam.name]
    await joined(shared_beam, group, 2)
    with pubsub.subscribe("room:1") as room, pubsub.subscribe("room:2") as other:
        pubsub.broadcast("room:1", {Atom("n"): 1})
        await broadcast(shared_beam, group, "room:2", (Atom("hello"), "Ü"))
        await broadcast(shared_beam, group, "room:1", [1, 2])
        async with asyncio.timeout(5):
            assert [await anext(room), await anext(room)] == [{Atom("n"): 1}, [1, 2]]
            assert await anext(other) == (Atom("hello"), "Ü".encode())
    pubsub.broadcast("room:1", b"later", dispatcher=CHANNEL)
    forward = Atom("forward_to_local")
    assert await shared_beam.eval(SEEN, W=process, N=2) == [
        (forward, b"room:1", {Atom("n"): 1}, SCOPE),
        (forward, b"room:1", b"later", CHANNEL),
    ]


async def test_a_direct_broadcast_goes_to_one_node(
    node: tumen.Node, shared_beam: peers.Beam, name: str
) -> None:
    group = f"{name}.Adapter"
    process = await worker(shared_beam, group)
    await node.connect(shared_beam.name)
    pubsub = node.pubsub(name)
    with pubsub.subscribe("t") as here:
        pubsub.direct_broadcast(shared_beam.name, "t", 1)
        pubsub.direct_broadcast(node.name, "t", 2)
        pubsub.local_broadcast("t", 3)
        await shared_beam.eval(
            '{G, N} ! {forward_to_local, <<"t">>, 4, D}',
            G=Atom(group),
            N=Atom(node.name),
            D=SCOPE,
        )
        async with asyncio.timeout(5):
            assert [await anext(here) for _ in range(3)] == [2, 3, 4]
    assert await shared_beam.eval(SEEN, W=process, N=1) == [
        (Atom("forward_to_local"), b"t", 1, SCOPE)
    ]


async def test_every_group_of_a_pool_is_heard(
    node: tumen.Node, shared_beam: peers.Beam, name: str
) -> None:
    groups = [f"{name}.Adapter", f"{name}.Adapter_2", f"{name}.Adapter_3"]
    for group in groups:
        await worker(shared_beam, group)
    await node.connect(shared_beam.name)
    pubsub = node.pubsub(name, pool_size=3)
    with pubsub.subscribe("t") as subscription:
        for number, group in enumerate(groups):
            await joined(shared_beam, group, 2)
            await broadcast(shared_beam, group, "t", number)
            async with asyncio.timeout(5):
                assert await anext(subscription) == number
    assert node.pubsub(name, pool_size=3) is pubsub
    with pytest.raises(ValueError, match="open already"):
        node.pubsub(name)


async def test_a_channels_broadcast_is_a_map(
    node: tumen.Node, shared_beam: peers.Beam, name: str
) -> None:
    group = f"{name}.Adapter"
    await worker(shared_beam, group)
    await node.connect(shared_beam.name)
    pubsub = node.pubsub(name)
    await joined(shared_beam, group, 2)
    struct = {
        Atom("__struct__"): Atom("Elixir.Phoenix.Socket.Broadcast"),
        Atom("topic"): "room:1",
        Atom("event"): "new_msg",
        Atom("payload"): {"body": "hi"},
    }
    with pubsub.subscribe("room:1") as room:
        await broadcast(shared_beam, group, "room:1", struct, Dispatcher=CHANNEL)
        async with asyncio.timeout(5):
            message = await anext(room)
    assert message[Atom("payload")] == {b"body": b"hi"}


async def test_a_process_gets_messages_as_elixir_subscribers_do(
    node: tumen.Node, shared_beam: peers.Beam, name: str
) -> None:
    group = f"{name}.Adapter"
    await worker(shared_beam, group)
    await node.connect(shared_beam.name)
    pubsub = node.pubsub(name)
    await joined(shared_beam, group, 2)
    seen: asyncio.Queue[Any] = asyncio.Queue()

    class Listener(tumen.GenServer):
        async def init(self) -> None:
            self.forget = pubsub.subscribe_process("t", self)

        async def handle_info(self, message: Any) -> None:
            seen.put_nowait(message)
            if message == Atom("enough"):
                self.forget()

    await node.start_server(Listener)
    with pubsub.subscribe("t") as last:
        async with asyncio.timeout(5):
            for message in (b"one", Atom("enough")):
                await broadcast(shared_beam, group, "t", message)
                assert await seen.get() == message
            for message in (b"unheard", b"last"):
                await broadcast(shared_beam, group, "t", message)
            while await anext(last) != b"last":
                pass
    assert seen.empty()


async def test_odd_messages_and_a_kill_do_not_end_it(
    node: tumen.Node, shared_beam: peers.Beam, name: str
) -> None:
    group = f"{name}.Adapter"
    await worker(shared_beam, group)
    await node.connect(shared_beam.name)
    pubsub = node.pubsub(name)
    await joined(shared_beam, group, 2)
    first = node.whereis(group)
    with pubsub.subscribe("t") as subscription:
        await shared_beam.eval(
            "[{G, N} ! M || M <- [x, {forward_to_local}, {forward_to_local, 1, 2, 3}, []]]",
            G=Atom(group),
            N=Atom(node.name),
        )
        await broadcast(shared_beam, group, "t", 1)
        async with asyncio.timeout(5):
            assert await anext(subscription) == 1
        assert node.whereis(group) == first
        await shared_beam.eval("exit(P, kill)", P=first)
        await until(lambda: node.whereis(group) not in (None, first))
        mine = "[P || P <- pg:get_members(S, G), node(P) =:= N]"
        await settles(
            "the adapter is a member again",
            lambda: shared_beam.eval(mine, S=SCOPE, G=Atom(group), N=Atom(node.name)),
            lambda found: found == [node.whereis(group)],
        )
        await broadcast(shared_beam, group, "t", 2)
        async with asyncio.timeout(5):
            assert await anext(subscription) == 2


async def test_python_nodes_broadcast_to_each_other_and_drops_are_counted(
    backend: str, name: str
) -> None:
    async with make_node("a") as a, make_node("b") as b:
        await b.connect(a.name, address(a))
        ours, theirs = a.pubsub(name), b.pubsub(name)
        await until(lambda: ours.nodes() == [b.name] and theirs.nodes() == [a.name])
        with theirs.subscribe("t", count_max=2) as slow, ours.subscribe("t") as here:
            for number in range(5):
                await ours.broadcast_wait("t", number)
            theirs.broadcast("t", 5)
            async with asyncio.timeout(5):
                assert [await anext(here) for _ in range(6)] == [0, 1, 2, 3, 4, 5]
            await until(lambda: slow.dropped == 4)
            slow.close()
            left = [message async for message in slow]
            assert len(left) == 2
