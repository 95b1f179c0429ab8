"""A BatchServer of Python under callers of real BEAMs."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import peers
import tumen
from cli_runner import COOKIE, ROOT, serving
from nodes import until
from tumen import Atom, Call

pytestmark = pytest.mark.asyncio

OK = Atom("ok")
CALLERS = 64
# Seconds that no test waits for: a batch that begins earlier did not wait for its time.
NEVER = 60.0

# So many callers at once, each a process; what each got, in the order of their numbers.
ASK = (
    "S = self(), "
    "[spawn(fun() -> S ! {I, try gen_server:call(D, {I, What}, 20000) catch C:E -> {C, E} end} end)"
    " || {I, What} <- Requests], "
    "[receive {I, R} -> R end || {I, _} <- Requests]"
)


class Model(tumen.BatchServer):
    """Squares, and does what its requests ask for."""

    max_batch = CALLERS
    max_wait = NEVER

    async def init(self) -> None:
        self.seen: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def handle_calls(self, calls: list[Call]) -> Any:
        self.seen.append([call.request[0] for call in calls])
        await self.gate.wait()
        return [self.one(call) for call in calls]

    def one(self, call: Call) -> Any:
        match call.request:
            case (_, Atom("fail")):
                return ValueError("not this one")
            case (_, Atom("crash")):
                raise RuntimeError("as asked")
            case (_, Atom("no_term")):
                return object()
            case (int(number), _):
                return number * number
        return None

    async def handle_cast(self, request: Any) -> Any:
        self.seen.append(request)


async def start(node: tumen.Node, kind: type[Model] = Model) -> tuple[Any, Any]:
    """A server named `model`; the object, and what a BEAM calls it."""
    pid = await node.start_server(kind, name="model")
    server = node._running.core.process(pid.id | pid.serial << 32)
    return server, (Atom("model"), Atom(node.name))


async def ask(beam: peers.Beam, dest: Any, requests: list[Any]) -> list[Any]:
    return list(await beam.eval(ASK, timeout=30, D=dest, Requests=requests))


@pytest.mark.sanitizer
async def test_64_callers_are_served_by_one_invocation_each_with_its_own_reply(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    server, dest = await start(node)
    begin = time.monotonic()
    replies = await ask(shared_beam, dest, [(n, OK) for n in range(CALLERS)])
    assert replies == [n * n for n in range(CALLERS)]
    # Full: it has not waited for its time.
    assert time.monotonic() - begin < NEVER / 2
    assert [sorted(batch) for batch in server.seen] == [list(range(CALLERS))]


async def test_each_reply_of_a_batch_carries_the_trace_token_of_its_own_request(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """Callers with a trace of their own, and without one, in one batch."""
    server, dest = await start(node)
    source = (
        "S = self(), Call = fun(I, L) -> L rem 3 =/= 0 andalso seq_trace:set_token(label, L), "
        "gen_server:call(D, {I, ok}, 20000), T = seq_trace:get_token(label), "
        "seq_trace:set_token([]), S ! {I, T} end, "
        "[spawn(fun() -> Call(I, L) end) || {I, L} <- Labels], "
        "[receive {I, T} -> T end || {I, _} <- Labels]"
    )
    for count in (1, CALLERS):
        server.max_batch = count
        labels = list(range(1, count + 1))
        found = await shared_beam.eval(source, D=dest, Labels=list(enumerate(labels)))
        assert found == [(Atom("label"), n) if n % 3 else [] for n in labels]
    assert [len(batch) for batch in server.seen] == [1, CALLERS]


async def test_calls_that_come_during_an_invocation_share_the_next_one(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    server, dest = await start(node)
    server.max_wait = 0.0
    server.gate.clear()
    calls = asyncio.create_task(ask(shared_beam, dest, [(n, OK) for n in range(CALLERS)]))
    await until(lambda: server.seen and server._waiting() == CALLERS - len(server.seen[0]))
    server.gate.set()
    assert await calls == [n * n for n in range(CALLERS)]
    assert sum(map(len, server.seen)) == CALLERS
    assert len(server.seen) <= 2


async def test_request_that_fails_fails_alone(node: tumen.Node, shared_beam: peers.Beam) -> None:
    server, dest = await start(node)
    requests = [(n, OK) for n in range(CALLERS)]
    requests[5] = (5, Atom("fail"))
    requests[7] = (7, Atom("no_term"))
    replies = await ask(shared_beam, dest, requests)
    error = (Atom("python_error"), b"builtins.ValueError", b"not this one")
    assert replies[5] == (Atom("error"), error)
    assert replies[7][0] == Atom("error")
    assert replies[7][1][1] == b"tumen.errors.EncodeError"
    others = [n for n in range(CALLERS) if n not in (5, 7)]
    assert [replies[n] for n in others] == [n * n for n in others]
    assert len(server.seen) == 1
    assert server.alive


async def test_exception_of_the_handler_ends_the_server_for_all_callers(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    server, dest = await start(node)
    server.max_batch = 4
    replies = await ask(shared_beam, dest, [(n, Atom("crash")) for n in range(4)])
    for klass, ((error, stack), _) in replies:
        assert klass == Atom("exit")
        assert error[:2] == (Atom("python_error"), b"builtins.RuntimeError")
        assert stack == [(Atom("tumen"), Atom("handle_calls"), 1, [])]
    assert server.exit_reason[1] == stack


async def test_replies_come_in_the_order_of_the_requests(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    server, dest = await start(node)
    # One process, many requests, as gen_server:send_request makes them.
    order = await shared_beam.eval(
        "P = self(), [D ! {'$gen_call', {P, {tag, I}}, {I, ok}} || I <- lists:seq(1, Count)], "
        "[receive {{tag, I}, R} -> {I, R} end || _ <- lists:seq(1, Count)]",
        D=dest,
        Count=CALLERS,
    )
    assert order == [(n, n * n) for n in range(1, CALLERS + 1)]
    assert server.seen == [list(range(1, CALLERS + 1))]


async def test_lone_call_is_answered_after_max_wait(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    server, dest = await start(node)
    server.max_wait = 0.1
    for _ in range(2):
        micros, reply = await shared_beam.eval(
            "timer:tc(fun() -> gen_server:call(D, {3, ok}) end)", D=dest
        )
        assert reply == 9
        assert 90_000 < micros < 4_000_000


async def test_casts_keep_their_place_between_calls(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    server, dest = await start(node)
    result = await shared_beam.eval(
        "P = self(), Call = fun(I) -> D ! {'$gen_call', {P, {tag, I}}, {I, ok}} end, "
        "Call(1), Call(2), gen_server:cast(D, cast), Call(3), ok = sys:suspend(D), "
        "[receive {{tag, I}, R} -> R end || I <- [1, 2, 3]]",
        D=dest,
    )
    assert result == [1, 4, 9]
    assert server.seen == [[1, 2], Atom("cast"), [3]]
    assert await shared_beam.eval("sys:resume(D)", D=dest) == OK


async def test_callers_that_have_given_up_are_left_out(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    server, dest = await start(node)
    server.max_batch = 1
    server.gate.clear()
    first = asyncio.create_task(ask(shared_beam, dest, [(1, OK)]))
    await until(lambda: server.seen == [[1]])
    server.max_batch = 2
    given_up = await shared_beam.eval(
        "try gen_server:call(D, {2, ok}, 50) catch exit:{timeout, _} -> given_up end", D=dest
    )
    assert given_up == Atom("given_up")
    others = asyncio.create_task(ask(shared_beam, dest, [(3, OK), (4, OK)]))
    await until(lambda: server._waiting() == 3)
    server.gate.set()
    assert await first == [1]
    assert await others == [9, 16]
    assert [sorted(batch) for batch in server.seen] == [[1], [3, 4]]


async def test_blocking_handler_leaves_the_node_alive(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    release = threading.Event()

    class Slow(Model):
        @tumen.blocking
        def handle_calls(self, calls: list[Call]) -> Any:
            self.seen.append(len(calls))
            assert release.wait(20)
            return [self.one(call) for call in calls]

    server, dest = await start(node, Slow)
    calls = asyncio.create_task(ask(shared_beam, dest, [(n, OK) for n in range(CALLERS)]))
    await until(lambda: server.seen)
    assert await shared_beam.eval("net_adm:ping(N)", N=Atom(node.name)) == Atom("pong")
    release.set()
    assert await calls == [n * n for n in range(CALLERS)]
    assert server.seen == [CALLERS]


async def test_elixir_tasks_share_an_invocation(node: tumen.Node, elixir: peers.Beam) -> None:
    server, dest = await start(node)
    source = """
    1..64
    |> Enum.map(fn i -> Task.async(fn -> GenServer.call(dest, {i, :ok}, 20_000) end) end)
    |> Task.await_many(20_000)
    """
    assert await elixir.eval(source, timeout=30, dest=dest) == [n * n for n in range(1, 65)]
    assert len(server.seen) == 1


async def test_served_model_answers_many_callers_at_once(
    backend: str, epmd: peers.Epmd, otp: peers.Runtime
) -> None:
    served = str(ROOT / "examples" / "model.py")
    with (
        serving("serve", served, "--name", "model@127.0.0.1", epmd_port=epmd.port),
        peers.Beam(otp, epmd_port=epmd.port, cookie=COOKIE) as beam,
    ):
        dest = (Atom("model"), Atom("model@127.0.0.1"))
        replies = await beam.eval(
            "S = self(), "
            "[spawn(fun() -> S ! {I, gen_server:call(D, {predict, [I, I + 1]}, 20000)} end) "
            "|| I <- lists:seq(1, Count)], "
            "[receive {I, R} -> R end || I <- lists:seq(1, Count)]",
            timeout=30,
            D=dest,
            Count=CALLERS,
        )
        assert replies == [(OK, n + 0.5) for n in range(1, CALLERS + 1)]
        figures = await beam.eval("gen_server:call(D, figures)", D=dest)
        assert figures[Atom("calls")] == CALLERS + 1
        assert figures[Atom("invocations")] < CALLERS / 2
        kind, (name, what, _) = await beam.eval("gen_server:call(D, {predict, []})", D=dest)
        assert (kind, name, what) == (
            Atom("error"),
            Atom("python_error"),
            b"builtins.ValueError",
        )
