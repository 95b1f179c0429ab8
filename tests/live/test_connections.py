"""Connections with BEAMs: dialled by both at once, refused, ended, and made again by other nodes of
the same name."""

from __future__ import annotations

import asyncio
import collections
import random
from collections.abc import Callable
from typing import Any

import pytest

import peers
import tumen
from faults.evil import Evil
from nodes import make_node, next_event, settles
from tumen import Atom, events

pytestmark = pytest.mark.asyncio

ROUNDS = 100
ROUNDS_LONG = 1000

# Waits so many microseconds without giving the scheduler away, then sends: a phase, not a pause.
SEND_AFTER = """
    End = erlang:monotonic_time(microsecond) + Wait,
    W = fun(F) -> case erlang:monotonic_time(microsecond) < End of true -> F(F); _ -> ok end end,
    W(W), To ! Message, ok
"""
# Registers `box`, which keeps what it gets until `ask` fetches it, one at a time.
BOX = """
    P = spawn(fun() ->
        register(box, self()),
        net_kernel:monitor_nodes(true, [{node_type, all}]),
        B = fun(F) ->
            receive {ask, From, Tag} -> receive {Tag, X} -> From ! {box, X} end, F(F) end
        end,
        B(B)
    end),
    P
"""
ASK = "box ! {ask, self(), Tag}, receive {box, X} -> X after 9000 -> timeout end"
# net_kernel learns of the end after nodes() does; until then it has no use for another connection.
DOWN = """
    F = fun(F) -> case lists:member(N, nodes(connected)) orelse ets:member(sys_dist, N) of
        false -> down;
        true -> receive after 1 -> F(F) end
    end end, F(F)
"""
# The process that takes connections sleeps now and then, as on a busy machine: names are read late.
LATE = """
    [Acceptor] = [P || P <- processes(), {_, Stack} <- [process_info(P, current_stacktrace)],
        {inet_tcp_dist, accept_loop, _, _} <- Stack],
    Late = fun(F) ->
        erlang:suspend_process(Acceptor), receive after rand:uniform(25) -> ok end,
        erlang:resume_process(Acceptor), receive after rand:uniform(10) -> ok end, F(F)
    end,
    spawn(fun() -> Late(Late) end)
"""


async def told(stream: events.EventStream) -> events.Event:
    """The next event that is not of a handshake: the socket that was one too many may be read after
    its end, when the round is over."""
    async with asyncio.timeout(10):
        while isinstance(event := await anext(stream), events.HandshakeFailed):
            assert "the peer closed during the handshake" in event.reason
    return event


async def rounds(node: tumen.Node, beam: peers.Beam, count: int) -> None:
    choice = random.Random(count)
    got: asyncio.Queue[Any] = asyncio.Queue()

    async def sink(proc: tumen.Process) -> None:
        async for message in proc:
            got.put_nowait(message)

    node.spawn(sink, name="sink")
    await beam.eval(BOX)
    await node.connect(beam.name)
    assert await node.disconnect(beam.name)
    us = Atom(node.name)
    await beam.eval(DOWN, N=us)
    stream = node.events()
    for number in range(count):
        there = asyncio.create_task(
            beam.eval(
                SEND_AFTER,
                Wait=choice.randrange(0, 3000),
                To=(Atom("sink"), us),
                Message=(Atom("from_beam"), number),
            )
        )
        # Another phase each round.
        await asyncio.sleep(choice.choice([0, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3]))
        node.send(("box", beam.name), (Atom("from_us"), number))
        async with asyncio.timeout(10):
            assert await got.get() == (Atom("from_beam"), number)
            assert await beam.eval(ASK, Tag=Atom("from_us")) == number
            await there
        assert node.nodes() == [beam.name]
        assert await beam.eval("[X || X <- nodes(connected), X =:= N]", N=us) == [us]
        if choice.random() < 0.5:
            assert await node.disconnect(beam.name)
        else:
            assert await beam.eval("erlang:disconnect_node(N)", N=us) is True
        assert await beam.eval(DOWN, N=us) == Atom("down")
        up, down = await told(stream), await told(stream)
        assert isinstance(up, events.NodeUp), (number, up, down)
        assert isinstance(down, events.NodeDown), (number, up, down)
        assert down.lost == 0
    # One nodeup and one nodedown a round there, too. The last of them comes when it comes.
    words: collections.Counter[str] = collections.Counter()

    async def told_there() -> collections.Counter[str]:
        mail = await beam.eval("element(2, process_info(whereis(box), messages))")
        words.clear()
        words.update(message[0].text for message in mail if us in message[1:])
        words["from_us"] = sum(message[0] == Atom("from_us") for message in mail)
        return words

    await settles("the last nodedown", told_there, lambda words: words["nodedown"] > count)
    assert (words["nodeup"], words["nodedown"], words["from_us"]) == (count + 1, count + 1, 0)


@pytest.mark.parametrize("name", ["a", "z"])
async def test_both_dialling_at_once_makes_one_connection_and_loses_nothing(
    backend: str, beam: peers.Beam, name: str
) -> None:
    async with make_node(name, cookie=peers.COOKIE, epmd="auto") as node:
        assert (node.name > beam.name) == (name == "z")
        await rounds(node, beam, ROUNDS)


async def test_both_dialling_at_once_loses_nothing_when_the_beam_reads_our_name_late(
    backend: str, beam: peers.Beam
) -> None:
    """An attempt of ours that gives way must leave no name behind: a BEAM that reads it in a later
    round takes it for a new connection, and what is sent meanwhile is lost with it. Two BEAMs do
    that to each other: in a run of this dance the greater one lost 7 messages in 788 rounds."""
    async with make_node("a", cookie=peers.COOKIE, epmd="auto") as node:
        assert node.name < beam.name
        await beam.eval(LATE)
        await rounds(node, beam, ROUNDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a", "z"])
async def test_both_dialling_at_once_makes_one_connection_each_of_1000_times(
    backend: str, beam: peers.Beam, name: str
) -> None:
    async with make_node(name, cookie=peers.COOKIE, epmd="auto") as node:
        await rounds(node, beam, ROUNDS_LONG)


# -- another node of the same name ----------------------------------------------------------------


async def test_pids_of_a_dead_beam_are_dead_for_the_beam_that_took_its_name(
    backend: str, otp: peers.Runtime, start_beam: Callable[..., peers.Beam]
) -> None:
    first = start_beam(otp)
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        seen = node.events()
        await node.connect(first.name)
        old = await first.eval("spawn(fun() -> receive after infinity -> ok end end)")
        idle: asyncio.Future[tumen.Process] = asyncio.get_running_loop().create_future()

        async def watcher(proc: tumen.Process) -> None:
            proc.trap_exit = True
            idle.set_result(proc)
            await asyncio.Event().wait()

        node.spawn(watcher)
        proc = await idle
        proc.link(old)
        first.kill()
        await next_event(seen, events.NodeDown)
        assert await proc.receive(timeout=5) == (Atom("EXIT"), old, Atom("noconnection"))

        start_beam(otp, name=first.name)

        # A link that is asked for, and given up, before anybody knows who answers to that name: the
        # EXIT that follows must not reach the new incarnation, which would hang up.
        async def brief(proc: tumen.Process) -> None:
            proc.link(old)

        brief_pid = node.spawn(brief)
        await node.join(brief_pid)
        await node.connect(first.name)
        await next_event(seen, events.NodeUp)
        proc.send(old, Atom("lost"))
        proc.exit(old, Atom("kill"))
        ref = proc.monitor(old)
        assert await proc.receive(timeout=5) == (
            *(Atom("DOWN"), ref, Atom("process"), old),
            Atom("noproc"),
        )
        proc.link(old)
        assert await proc.receive(timeout=5) == (Atom("EXIT"), old, Atom("noproc"))
        proc.unlink(old)
        proc.demonitor(ref)
        assert await node.ping(first.name)
        (connection,) = node.connections()
        assert connection.creation != old.creation
        assert connection.up
        stream = [event async for event in _closed(seen)]
        assert not [event for event in stream if isinstance(event, events.NodeDown)]


def _closed(stream: events.EventStream) -> events.EventStream:
    stream.close()
    return stream


async def test_pids_of_a_dead_tumen_node_are_dead_for_the_one_that_took_its_name(
    backend: str, beam: peers.Beam
) -> None:
    def born(name: str) -> tumen.Node:
        return tumen.Node(name, cookie=peers.COOKIE)

    async def idle(proc: tumen.Process) -> None:
        await asyncio.Event().wait()

    first = make_node(cookie=peers.COOKIE, epmd="auto")
    async with first:
        assert await first.ping(beam.name)
        old = first.spawn(idle)
        await beam.eval("persistent_term:put(old, P)", P=old)
    async with born(first.name) as second:
        assert await second.ping(beam.name)
        again = second.spawn(idle)
        assert again.creation != old.creation
        answer = await beam.eval(
            "Old = persistent_term:get(old), process_flag(trap_exit, true), "
            "Old ! hello, exit(Old, kill), R = monitor(process, Old), "
            "D = receive {'DOWN', R, process, Old, Why} -> Why after 9000 -> timeout end, "
            "link(Old), L = receive {'EXIT', Old, Because} -> Because after 9000 -> timeout end, "
            "unlink(Old), {D, L, net_adm:ping(N), [X || X <- nodes(connected), X =:= N]}",
            N=Atom(second.name),
        )
        us = Atom(second.name)
        assert answer == (Atom("noproc"), Atom("noproc"), Atom("pong"), [us])
        assert second.whereis("nobody") is None
        assert await beam.eval("is_pid(P) andalso node(P) =:= N", P=again, N=us) is True
        monitor = second.monitor(again)
        await beam.eval("exit(P, kill)", P=again)
        assert await monitor == Atom("killed")


async def test_node_that_starts_again_before_the_beam_noticed_takes_over(
    backend: str, beam: peers.Beam
) -> None:
    # The first one goes without a word: its socket stays open until the second one insists.
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        name = node.name
    port = await beam.eval("{port, P, _} = erl_epmd:port_please(Name, {127,0,0,1}), P", **_of(beam))
    ghost = Evil(name, cookie=peers.COOKIE).dial(("127.0.0.1", port))
    try:
        await asyncio.to_thread(ghost.shake)
        async with tumen.Node(name, cookie=peers.COOKIE) as node:
            assert await node.ping(beam.name)
            assert await asyncio.to_thread(ghost.closed)
            assert await beam.eval("net_adm:ping(N)", N=Atom(name)) == Atom("pong")
    finally:
        ghost.close()


def _of(beam: peers.Beam) -> dict[str, Any]:
    return {"Name": list(beam.name.partition("@")[0].encode())}


# -- net_kernel's part ----------------------------------------------------------------------------


async def test_beam_connects_disconnects_and_sees_why(backend: str, beam: peers.Beam) -> None:
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        us = Atom(node.name)
        seen = node.events()
        assert await beam.eval("net_kernel:connect_node(N)", N=us) is True
        await next_event(seen, events.NodeUp)
        assert await beam.eval("net_kernel:connect_node(N)", N=us) is True
        assert await beam.eval("erlang:disconnect_node(N)", N=us) is True
        down = await next_event(seen, events.NodeDown)
        assert down.reason.startswith("connection_closed")
        await node.connect(beam.name)
        assert await beam.eval("nodes(hidden)") == [us]
        assert await node.disconnect(beam.name)
        assert await beam.eval(DOWN, N=us) == Atom("down")


async def test_node_that_is_not_allowed_sees_not_allowed(backend: str, beam: peers.Beam) -> None:
    options: dict[str, Any] = {"cookie": peers.COOKIE, "epmd": "auto"}
    async with make_node(allow=["friend@127.0.0.1"], **options) as node:
        us = Atom(node.name)
        seen = node.events()
        assert node.allowed == ("friend@127.0.0.1",)
        assert await beam.eval("net_kernel:connect_node(N)", N=us) is False
        failed = await next_event(seen, events.HandshakeFailed)
        assert failed.node == beam.name
        assert "allowed list" in failed.reason
        # Nor do we dial it.
        with pytest.raises(tumen.AuthError, match="allowed list"):
            await node.connect(beam.name)
        assert not await node.ping(beam.name)
        node.allow([beam.name])
        assert await beam.eval("net_adm:ping(N)", N=us) == Atom("pong")
        assert await node.ping(beam.name)
    alive, host = beam.name.split("@")
    for entry in (host, f"{alive}@"):
        async with make_node(allow=[entry], **options) as node:
            assert await node.ping(beam.name)
    for entry in ("", "a@b@c", "@", "two words", "@host"):
        with pytest.raises(ValueError, match=r"name|neither"):
            async with make_node(allow=[entry], **options):
                pass


async def test_beam_that_does_not_allow_us_is_an_error_that_says_so(
    backend: str, beam: peers.Beam
) -> None:
    await beam.eval("net_kernel:allow(['somebody@else'])")
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        with pytest.raises(tumen.NoConnection, match="not allowed"):
            await node.connect(beam.name)
        await beam.eval("net_kernel:allow([N])", N=Atom(node.name))
        await node.connect(beam.name)


async def test_cookie_for_one_peer_leaves_the_others(
    backend: str, otp: peers.Runtime, start_beam: Callable[..., peers.Beam]
) -> None:
    one = start_beam(otp, cookie="one-cookie-of-its-own")
    two = start_beam(otp)
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        us = Atom(node.name)
        assert not await node.ping(one.name)
        assert await one.eval("net_adm:ping(N)", N=us) == Atom("pang")
        node.set_cookie("one-cookie-of-its-own", peer=one.name)
        assert await node.ping(one.name)
        assert await node.ping(two.name)
        await node.disconnect(one.name)
        assert await one.eval("net_adm:ping(N)", N=us) == Atom("pong")
        await node.disconnect(one.name)
        node.set_cookie("", peer=one.name)
        assert not await node.ping(one.name)
