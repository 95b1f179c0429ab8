"""Sequential trace tokens: taken with a message, and handed on with all that a process sends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import peers
import tumen
from idle import idle_process
from nodes import until
from tumen import Atom

pytestmark = pytest.mark.asyncio

# Sends M to D with a token of label L, and leaves none behind.
TRACED = (
    "Traced = fun(D, M, L) -> seq_trace:set_token(label, L), seq_trace:set_token(send, true), "
    "D ! M, T = seq_trace:get_token(), seq_trace:set_token([]), T end, "
)
# The next message, and the token that it brought.
GET = "Get = fun() -> receive M -> {M, seq_trace:get_token()} after 5000 -> timeout end end, "


@pytest.mark.sanitizer
async def test_process_has_the_token_of_the_message_it_took_last(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    assert proc.seq_trace_token is None
    label = (Atom("any"), [b"term"])
    # A BEAM that has no connection yet leaves out what not every node might understand.
    assert await node.ping(shared_beam.name)
    sent = await shared_beam.eval(
        TRACED + "T = Traced(P, one, L), P ! plain, {T, self()}",
        P=proc.pid,
        L=label,
    )
    (flags, _, serial, _, previous), beam_pid = sent
    one = Atom("one")
    assert await proc.receive(match=lambda m: m == one, timeout=5) == one
    assert proc.seq_trace_token == (flags, label, serial, beam_pid, previous)
    assert await proc.receive(timeout=5) == Atom("plain")
    assert proc.seq_trace_token is None


async def test_token_goes_back_with_sends_by_pid_name_and_alias(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    waiting = asyncio.create_task(
        shared_beam.eval(
            TRACED + GET + "register(seq_here, self()), "
            "Traced(P, {self(), alias()}, 42), R = [Get() || _ <- lists:seq(1, 4)], "
            "unregister(seq_here), R",
            P=proc.pid,
        )
    )
    pid, alias = await proc.receive(timeout=5)
    proc.send(pid, 1)
    proc.send(("seq_here", shared_beam.name), 2)
    proc.send(alias, 3)
    serial = proc.seq_trace_token[2]  # type: ignore[index]
    other = await idle_process(node)
    # From a process that is in no trace: none.
    assert other.seq_trace_token is None
    core = node._running.core
    ref = core.make_ref()
    proc.send(other.pid, ref)
    assert await other.receive(timeout=5) == ref
    other.send(pid, 4)
    got = await waiting
    assert [message for message, _ in got] == [1, 2, 3, 4]
    tokens = [token for _, token in got]
    assert [token[:2] for token in tokens[:3]] == [(1, 42)] * 3
    assert [token[2] for token in tokens[:3]] == [serial - 2, serial - 1, serial]
    assert {token[3] for token in tokens[:3]} == {proc.pid}
    # Within one node it goes along just so.
    assert tokens[3][:2] == (1, 42)
    assert tokens[3][3] == other.pid


async def test_calls_casts_and_replies_carry_it(node: tumen.Node, shared_beam: peers.Beam) -> None:
    tokens: list[Any] = []

    class Server(tumen.GenServer):
        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            tokens.append(self.seq_trace_token)
            if request == Atom("ask"):
                return await self.rpc(caller.pid.node, "seq_trace", "get_token")
            return request

    await node.start_server(Server, name="traced")
    asked, reply, plain, back = await shared_beam.eval(
        "seq_trace:set_token(label, 7), seq_trace:set_token(send, true), "
        "A = gen_server:call({traced, N}, ask), R = gen_server:call({traced, N}, hi), "
        "T = seq_trace:get_token(), seq_trace:set_token([]), "
        "P = gen_server:call({traced, N}, hi), {A, T, P, seq_trace:get_token()}",
        N=Atom(node.name),
    )
    # The process that ran for us had it, and the reply brought it back.
    assert asked[:2] == (1, 7)
    assert reply[:2] == (1, 7)
    assert reply[3] == node.whereis("traced")
    assert (plain, back) == (Atom("hi"), [])
    assert [token and token[:2] for token in tokens] == [(1, 7), (1, 7), None]


async def test_each_call_has_its_own_token_when_the_newest_goes_first(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    class Server(tumen.GenServer):
        async def init(self) -> None:
            self.go = asyncio.Event()
            self.begun: list[Any] = []

        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            self.begun.append(request)
            if request == Atom("hold"):
                await self.go.wait()
            token = self.seq_trace_token
            return token and token[1]

    pid = await node.start_server(Server)
    server = node._running._servers[pid.id | pid.serial << 32]
    assert isinstance(server, Server)
    assert await node.ping(shared_beam.name)
    await shared_beam.eval("spawn(fun() -> gen_server:call(P, hold) end), ok", P=pid)
    await until(lambda: server.begun)
    late = await shared_beam.eval("catch gen_server:call(P, late, 20)", P=pid)
    assert late[0] == Atom("EXIT")
    asking = []
    # Without a token before the first that has one, and after it.
    labels = [0, 7, 8, 0, 9, 0]
    for count, label in enumerate(labels, 2):
        asking.append(
            asyncio.create_task(
                shared_beam.eval(
                    "L =/= 0 andalso begin seq_trace:set_token(label, L), "
                    "seq_trace:set_token(send, true) end, "
                    "R = gen_server:call(P, L), seq_trace:set_token([]), R",
                    P=pid,
                    L=label,
                )
            )
        )
        await until(lambda count=count: server._waiting() == count)
    server.go.set()
    assert await asyncio.gather(*asking) == [label or None for label in labels]
    assert server.begun == [Atom("hold"), *reversed(labels)]


async def test_exits_and_spawns_carry_it(node: tumen.Node, shared_beam: peers.Beam) -> None:
    proc = await idle_process(node)
    waiting = asyncio.create_task(
        shared_beam.eval(
            TRACED + GET + "process_flag(trap_exit, true), link(P), Traced(P, self(), 9), "
            "[Get(), Get(), Get()]",
            P=proc.pid,
        )
    )
    pid = await proc.receive(timeout=5)
    await proc.spawn_remote(shared_beam.name, "erlang", "send", [pid, Atom("spawned")])
    # Its send is in the trace; so that the order is certain, a round trip.
    assert await proc.rpc(shared_beam.name, "erlang", "is_process_alive", [pid])
    proc.exit(pid, Atom("signal"))
    proc.exit(proc.pid, Atom("over"))
    spawned, signal, link = await waiting
    assert spawned[0] == Atom("spawned")
    assert (signal[0], link[0]) == (
        (Atom("EXIT"), proc.pid, Atom("signal")),
        (Atom("EXIT"), proc.pid, Atom("over")),
    )
    for _, token in (spawned, signal, link):
        assert token[:2] == (1, 9)
    assert spawned[1][2] < signal[1][2] < link[1][2]


async def test_exit_message_and_spawned_function_take_it(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    proc.trap_exit = True
    tokens: asyncio.Queue[Any] = asyncio.Queue()

    async def look() -> None:
        call = tumen.current_call()
        assert call is not None
        assert call.process is not None
        tokens.put_nowait(call.process.seq_trace_token)

    node.expose("Elixir.ML", "look", look)
    after = await shared_beam.eval(
        "S = self(), seq_trace:set_token(label, 5), seq_trace:set_token(send, true), "
        "spawn(fun() -> link(P), exit(why) end), "
        "spawn(N, 'Elixir.ML', look, []), T = seq_trace:get_token(), seq_trace:set_token([]), T",
        P=proc.pid,
        N=Atom(node.name),
    )
    assert (await proc.receive(timeout=5))[2] == Atom("why")
    token = proc.seq_trace_token
    assert token is not None
    assert token[:2] == (1, 5)
    async with asyncio.timeout(5):
        seen = await tokens.get()
    assert seen[:2] == (1, 5)
    # The one that spawns goes on in its trace: the answer has not ended it.
    assert after[:2] == (1, 5)
    # A DOWN is no message of a process, and leaves the token alone.
    pid = await shared_beam.eval("spawn(fun() -> ok end)")
    proc.monitor(pid)
    assert (await proc.receive(timeout=5))[0] == Atom("DOWN")
    assert proc.seq_trace_token is not None


async def test_child_process_is_in_the_trace_of_its_parent(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    waiting = asyncio.create_task(
        shared_beam.eval(TRACED + GET + "Traced(P, self(), 3), Get()", P=proc.pid)
    )
    pid = await proc.receive(timeout=5)

    async def child(own: tumen.Process) -> None:
        own.send(pid, own.pid)

    child_pid = proc.spawn(child)
    message, token = await waiting
    assert message == child_pid
    assert token[:2] == (1, 3)
    assert token[3] == child_pid
