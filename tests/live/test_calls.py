"""gen_server calls and plain messages between Python and real BEAMs, both ways."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import peers
import tumen
from nodes import Counter, make_node, until
from tumen import Atom

pytestmark = pytest.mark.asyncio

UNSAFE = "Call = fun(D, R, T) -> try {ok, gen_server:call(D, R, T)} catch C:E -> {C, E} end end, "


@pytest.fixture(params=["thread", "loop"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture
async def node(backend: str, driver: str, epmd: peers.Epmd) -> AsyncIterator[tumen.Node]:
    """A node with a counter, on each backend and driver."""
    if driver == "loop" and backend == "uring":
        # One leg is enough: the loop's driver is epoll whatever is asked for.
        backend = "epoll"
    app = tumen.App()
    app.server("counter", 10)(Counter)
    async with make_node(
        app=app, cookie=peers.COOKIE, epmd="auto", driver=driver, listen_host="127.0.0.1"
    ) as node:
        yield node


async def test_ping_goes_both_ways(node: tumen.Node, shared_beam: peers.Beam) -> None:
    assert await node.ping(shared_beam.name)
    assert await shared_beam.eval("net_adm:ping(N)", N=Atom(node.name)) == Atom("pong")
    assert node.nodes() == [shared_beam.name]
    hidden = await shared_beam.eval("nodes(hidden)")
    assert Atom(node.name) in hidden
    assert not await node.ping("nobody@127.0.0.1")


@pytest.mark.sanitizer
async def test_beam_calls_python(node: tumen.Node, shared_beam: peers.Beam) -> None:
    result = await shared_beam.eval("gen_server:call({counter, N}, {add, 5})", N=Atom(node.name))
    assert result == 15
    # The server's pid came by the wire; a call to it is the same.
    result = await shared_beam.eval(
        "P = gen_server:call({counter, N}, pid), {node(P), gen_server:call(P, get)}",
        N=Atom(node.name),
    )
    assert result == (Atom(node.name), 15)


async def test_beam_casts_and_sends_in_order(node: tumen.Node, shared_beam: peers.Beam) -> None:
    result = await shared_beam.eval(
        "D = {counter, N}, gen_server:cast(D, 1), D ! {two, [3]}, gen_server:cast(D, 4), "
        "gen_server:call(D, seen)",
        N=Atom(node.name),
    )
    assert result == [(b"cast", 1), (b"info", (Atom("two"), [3])), (b"cast", 4)]


@pytest.mark.sanitizer
async def test_beam_sees_timeout_crash_and_noproc_as_from_a_beam(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    dest = (Atom("counter"), Atom(node.name))
    gen = Atom("gen_server"), Atom("call")

    async def call(request: str, timeout: int = 5000) -> Any:
        source = f"{UNSAFE} Call(D, {request}, {timeout})"
        return await shared_beam.eval(source, D=dest)

    klass, (reason, where) = await call("later", 50)
    assert (klass, reason) == (Atom("exit"), Atom("timeout"))
    assert where == (*gen, [dest, Atom("later"), 50])
    klass, ((error, stack), where) = await call("crash")
    assert klass == Atom("exit")
    assert error[:2] == (Atom("python_error"), b"builtins.RuntimeError")
    assert error[2].startswith(b"as asked")
    assert stack == [(Atom("tumen"), Atom("handle_call"), 2, [])]
    assert where == (*gen, [dest, Atom("crash"), 5000])
    klass, (reason, _) = await call("get")
    assert (klass, reason) == (Atom("exit"), Atom("noproc"))
    await node.start_server(Counter, name="counter")
    assert await call("stop") == (Atom("ok"), Atom("bye"))
    await node.start_server(Counter, name="counter")
    klass, (reason, _) = await call("exit")
    assert (klass, reason) == (Atom("exit"), (Atom("asked"), 1))
    # The timed-out call's reply, given now, must not show up anywhere.
    assert await shared_beam.eval("process_info(self(), message_queue_len)") == (
        Atom("message_queue_len"),
        0,
    )


async def test_late_reply_never_enters_the_beams_mailbox(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    result = await shared_beam.eval(
        UNSAFE + "{exit, {timeout, _}} = Call({counter, N}, later, 30), "
        "gen_server:cast({counter, N}, answer), gen_server:call({counter, N}, get), "
        "receive M -> M after 50 -> nothing end",
        N=Atom(node.name),
    )
    assert result == Atom("nothing")


async def test_python_calls_beam(node: tumen.Node, shared_beam: peers.Beam) -> None:
    # rex is a gen_server of every BEAM, and answers `call` with what it has evaluated.
    request = (
        Atom("call"),
        Atom("lists"),
        Atom("seq"),
        [1, 3],
        await shared_beam.eval("group_leader()"),
    )
    assert await node.call(("rex", shared_beam.name), request) == [1, 2, 3]
    with pytest.raises(tumen.NoProc):
        await node.call(("nobody", shared_beam.name), 1)


async def test_python_sees_a_beam_server_die_and_time_out(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    pid = await shared_beam.eval(
        "spawn(fun F() -> receive {'$gen_call', _, die} -> exit({why, 1}); _ -> F() end end)"
    )
    with pytest.raises(tumen.CallTimeout):
        await node.call(pid, Atom("nothing"), timeout=0.05)
    with pytest.raises(tumen.ServerDied) as caught:
        await node.call(pid, Atom("die"))
    assert caught.value.reason == (Atom("why"), 1)
    with pytest.raises(tumen.NoProc):
        await node.call(pid, Atom("die"))


async def test_sixteen_callers_from_each_side_get_their_own_answers(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    class Mirror(tumen.GenServer):
        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            return request

    await node.start_server(Mirror, name="mirror")
    from_beam = asyncio.create_task(
        shared_beam.eval(
            "S = self(), D = {mirror, N}, "
            "[spawn_link(fun() -> L = [gen_server:call(D, {I, J}) || J <- lists:seq(1, 50)], "
            "S ! {done, I, L} end) || I <- lists:seq(1, 16)], "
            "[receive {done, I, L} -> L =:= [{I, J} || J <- lists:seq(1, 50)] end "
            "|| I <- lists:seq(1, 16)]",
            N=Atom(node.name),
        )
    )
    server = await shared_beam.eval(
        "spawn(fun F() -> receive {'$gen_call', {_, [_ | R] = T}, Q} -> R ! {T, Q}, F() end end)"
    )
    mine = asyncio.gather(*(node.call(server, n) for n in range(800)))
    assert await mine == list(range(800))
    assert await from_beam == [True] * 16
    node.exit(server, Atom("kill"))


@pytest.mark.sanitizer
async def test_messages_of_all_sizes_arrive_whole(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    echo = await shared_beam.eval("spawn(fun F() -> receive {P, X} -> P ! X, F() end end)")
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        for size in (0, 1, 1000, 16_383, 16_384, 65_536, 70_000, 1_000_000, 5_000_000):
            data = bytes(range(256)) * (size // 256) + bytes(size % 256)
            await proc.send_wait(echo, (proc.pid, (size, data, memoryview(data), [data[:10]])))
            assert await proc.receive(timeout=20) == (size, data, data, [data[:10]])
        done.set_result(None)

    node.spawn(main)
    await asyncio.wait_for(done, 60)
    node.exit(echo, Atom("kill"))


async def test_hundred_thousand_messages_arrive_in_order_both_ways(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    count = 100_000
    done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        expected = 1
        async for n in proc:
            assert n == expected
            expected += 1
            if n == count:
                done.set_result(True)

    pid = node.spawn(main)
    sending = asyncio.create_task(
        shared_beam.eval("[P ! I || I <- lists:seq(1, C)], ok", P=pid, C=count, timeout=60)
    )
    sink = await shared_beam.eval("spawn(fun() -> receive never -> ok end end)")
    for n in range(1, count + 1):
        await node.send_wait(sink, n)
    assert await asyncio.wait_for(done, 60)
    await sending
    # A process that takes nothing has no event either: it is asked every 10 ms.
    in_order = await shared_beam.eval(
        "F = fun F() -> case process_info(P, message_queue_len) of {_, C} -> ok; "
        "_ -> timer:sleep(10), F() end end, F(), "
        "{messages, L} = process_info(P, messages), exit(P, kill), L =:= lists:seq(1, C)",
        P=sink,
        C=count,
        timeout=60,
    )
    assert in_order is True


async def test_elixir_calls_python_with_structs_and_strings(
    backend: str, epmd: peers.Epmd, elixir: peers.Beam
) -> None:
    class Mirror(tumen.GenServer):
        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            return (str(type(request).__name__), request)

    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        await node.start_server(Mirror, name="mirror")
        name = Atom(node.name)
        assert await elixir.eval("Node.ping(n)", n=name) == Atom("pong")
        assert await elixir.eval(
            'r = %{"b" => [~D[2024-02-29], "žluťoučký", :ok, nil, true], a: 1}; '
            "{_, ^r} = GenServer.call({:mirror, n}, r); :same",
            n=name,
        ) == Atom("same")
        assert await elixir.eval('GenServer.call({:mirror, n}, "čau")', n=name) == (
            b"bytes",
            "čau".encode(),
        )
        reply = await elixir.eval("GenServer.call({:mirror, n}, ~D[2024-02-29])", n=name)
        assert reply[0] == b"dict"
        assert reply[1][Atom("__struct__")] == Atom("Elixir.Date")


async def test_dynamic_name_is_given_by_the_first_beam(
    backend: str, shared_beam: peers.Beam
) -> None:
    app = tumen.App()
    app.server("counter", 7)(Counter)
    async with tumen.Node("127.0.0.1", cookie=peers.COOKIE, app=app) as node:
        seen = node.events()
        assert node.name == "127.0.0.1"
        await node.connect(shared_beam.name)
        assert tumen.events.Renamed(node.name) in [await anext(seen), await anext(seen)]
        assert node.name.endswith("@127.0.0.1")
        assert await node.call("counter", Atom("get")) == 7
        assert await shared_beam.eval("net_adm:ping(N)", N=Atom(node.name)) == Atom("pong")
        source = "gen_server:call({counter, N}, get)"
        assert await shared_beam.eval(source, N=Atom(node.name)) == 7


# A process that passes on what it gets to D.
ROUTER = "spawn(fun F() -> receive M -> D ! M, F() end end)"


@pytest.mark.sanitizer
async def test_call_that_a_beam_process_passes_on_is_answered(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    by_name, by_pid = await shared_beam.eval(
        f"Router = fun(D) -> {ROUTER} end, "
        "Results = [gen_server:call(Router(D), {add, 5}) || D <- [{counter, N}, P]], "
        "list_to_tuple(Results)",
        N=Atom(node.name),
        P=node.whereis("counter"),
    )
    assert (by_name, by_pid) == (15, 20)
    # One of ours calls, theirs passes it on.
    router = await shared_beam.eval(ROUTER, D=(Atom("counter"), Atom(node.name)))
    assert await node.call(router, (Atom("add"), 5)) == 25


async def test_call_of_a_beam_that_we_have_no_connection_to_is_answered(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    async def main(proc: tumen.Process) -> None:
        async for message in proc:
            proc.send(("counter", node.name), message)

    async with make_node(cookie=peers.COOKIE, epmd="auto") as between:
        assert not node.nodes()
        source = "gen_server:call(P, {add, 5})"
        assert await shared_beam.eval(source, P=between.spawn(main)) == 15
        assert set(node.nodes()) == {shared_beam.name, between.name}


async def test_python_process_passes_calls_on_between_beams(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    async def main(proc: tumen.Process) -> None:
        async for message in proc:
            proc.send(("rex", shared_beam.name), message)

    request = "{call, lists, seq, [1, 3], group_leader()}"
    result = await shared_beam.eval(f"gen_server:call(P, {request})", P=node.spawn(main))
    assert result == [1, 2, 3]


class Gate(tumen.GenServer):
    """Its first call waits inside until its caller has gone."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.inside = threading.Event()

    def _enter(self, number: int, caller: tumen.Caller) -> int:
        self.begun.append(number)
        if number == 1:
            self.inside.set()
            peers.wait_for("its caller has gone", lambda: caller.abandoned, timeout=30)
        return number


class BlockingGate(Gate):
    @tumen.blocking
    def handle_call(self, request: Any, caller: tumen.Caller) -> Any:  # type: ignore[override]
        return self._enter(request, caller)


class AsyncGate(Gate):
    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        return await asyncio.to_thread(self._enter, request, caller)


@pytest.mark.parametrize("kind", [BlockingGate, AsyncGate])
async def test_call_whose_caller_gave_up_never_starts_and_a_running_one_can_see_it(
    node: tumen.Node, shared_beam: peers.Beam, kind: type[Gate]
) -> None:
    pid = await node.start_server(kind)
    gate = node._running._servers[pid.id | pid.serial << 32]
    assert isinstance(gate, Gate)
    caller = await shared_beam.eval("spawn(fun() -> gen_server:call(P, 1, infinity) end)", P=pid)
    assert await asyncio.to_thread(gate.inside.wait, 10)
    late = await shared_beam.eval(UNSAFE + "[Call(P, I, 50) || I <- [2, 3]]", P=pid)
    assert [outcome[0] for outcome in late] == [Atom("exit")] * 2
    assert gate.begun == [1]
    await shared_beam.eval("exit(P, kill)", P=caller)
    assert await shared_beam.eval("gen_server:call(P, 4)", P=pid) == 4
    assert gate.begun == [1, 4]


async def test_direct_call_that_was_given_up_never_starts_between_those_passed_on(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    pid = await node.start_server(AsyncGate)
    gate = node._running._servers[pid.id | pid.serial << 32]
    assert isinstance(gate, Gate)
    holder = await shared_beam.eval("spawn(fun() -> gen_server:call(P, 1, infinity) end)", P=pid)
    assert await asyncio.to_thread(gate.inside.wait, 10)
    asking = asyncio.create_task(
        shared_beam.eval(
            f"{UNSAFE} R = {ROUTER}, S = self(), "
            "Ask = fun(I) -> spawn(fun() -> S ! {I, gen_server:call(R, I)} end) end, "
            "Ask(2), {exit, {timeout, _}} = Call(D, 3, 50), Ask(4), "
            "[receive {I, V} -> V after 5000 -> lost end || I <- [2, 4]]",
            D=pid,
        )
    )
    # The one that was given up lies among them.
    await until(lambda: gate._waiting() == 3)
    await shared_beam.eval("exit(P, kill)", P=holder)
    assert await asking == [2, 4]
    assert sorted(gate.begun) == [1, 2, 4]
