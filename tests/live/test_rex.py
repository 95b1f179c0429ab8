"""rpc and erpc from a BEAM: each call is made to another BEAM and to us, and both answer the same.

Python exposes functions of OTP by their own names, so that one source runs against both.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import peers
import tumen
from nodes import make_node, turn, until
from tumen import Atom

pytestmark = pytest.mark.asyncio

app = tumen.App()


@app.expose("lists", "seq")
def seq(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


@app.expose("erlang", "exit")
async def leave(reason: Any) -> Any:
    raise tumen.Exit(reason)


@app.expose("timer", "sleep")
async def sleep(ms: int) -> Any:
    await asyncio.sleep(ms / 1000)
    return Atom("ok")


class Server(tumen.GenServer):
    """What rpc:multi_server_call and its like expect of a server: {From, Msg}."""

    async def init(self) -> Any:
        self.seen: list[Any] = []

    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        return self.seen

    async def handle_info(self, message: Any) -> Any:
        self.seen.append(message)
        match message:
            case (tumen.Pid() as sender, request):
                self.send(sender, (Atom("server"), Atom(self.node.name), (Atom("got"), request)))


app.server("server")(Server)

# The same server for a BEAM. A killed one has its name for a moment: that has no event.
SERVER = (
    "catch exit(whereis(server), kill), P = spawn(fun F() -> receive "
    "{'$gen_call', From, _} -> gen_server:reply(From, []), F(); "
    "{From, R} when is_pid(From) -> From ! {server, node(), {got, R}}, F(); "
    "_ -> F() end end), "
    "fun R() -> try register(server, P) catch error:badarg -> timer:sleep(1), R() end end()"
)


@pytest_asyncio.fixture
async def node(backend: str, epmd: peers.Epmd) -> AsyncIterator[tumen.Node]:
    async with make_node(app=app, cookie=peers.COOKIE, epmd="auto") as node:
        yield node


@pytest.fixture
def model(otp: peers.Runtime, shared_beams: Callable[[peers.Runtime], peers.Beam]) -> peers.Beam:
    """Another BEAM of the same release: what it answers is right."""
    return shared_beams(dataclasses.replace(otp, name=f"{otp.name}-model"))


def without(term: Any, name: str) -> Any:
    """The term with another name for that node."""
    if term == Atom(name):
        return Atom("N")
    if isinstance(term, tuple | list):
        return type(term)(without(item, name) for item in term)
    return term


async def answers(beam: peers.Beam, node: str, source: str) -> Any:
    """What the expression gives or raises, with N for the node."""
    value = await beam.eval(
        f"try {{value, begin {source} end}} catch C:E -> {{C, E}} end", N=Atom(node)
    )
    # No message may be left behind.
    assert await beam.eval("process_info(self(), message_queue_len)") == (
        Atom("message_queue_len"),
        0,
    )
    return without(value, node)


async def same(beam: peers.Beam, model: peers.Beam, node: tumen.Node, source: str) -> Any:
    """What both answer."""
    right = await answers(beam, model.name, source)
    assert await answers(beam, node.name, source) == right
    return right


CALLS = {
    "value": "F(N, lists, seq, [1, 5])",
    "undefined module": "F(N, nomod, nofun, [1, a])",
    "undefined function": "F(N, lists, nofun, [])",
    "undefined arity": "F(N, nomod, nofun, [[], {}, #{}])",
    "a module named true": "F(N, true, nil, [false])",
    "exit": "F(N, erlang, exit, [{gone, 1}])",
    "exit normal": "F(N, erlang, exit, [normal])",
    "arguments that are no proper list": "F(N, lists, seq, [1 | 2])",
    "through erlang:apply": "F(N, erlang, apply, [lists, seq, [1, 5]])",
    "undefined through erlang:apply": "F(N, erlang, apply, [nomod, nofun, [1]])",
    "an external fun": "F(N, erlang, apply, [fun lists:seq/2, [1, 5]])",
    "an undefined external fun": "F(N, erlang, apply, [fun nomod:true/1, [a]])",
}

FUNCTIONS = {
    "rpc:call": "fun rpc:call/4",
    "rpc:call with a timeout": "fun(N_, M, Fn, A) -> rpc:call(N_, M, Fn, A, 5000) end",
    "rpc:block_call": "fun rpc:block_call/4",
    "rpc:async_call": "fun(N_, M, Fn, A) -> rpc:yield(rpc:async_call(N_, M, Fn, A)) end",
    "rpc:nb_yield": "fun(N_, M, Fn, A) -> rpc:nb_yield(rpc:async_call(N_, M, Fn, A), 5000) end",
    "rpc:multicall": "fun(N_, M, Fn, A) -> rpc:multicall([N_], M, Fn, A) end",
    "rpc:cast": "fun rpc:cast/4",
    "erpc:call": "fun erpc:call/4",
    "erpc:multicall": "fun(N_, M, Fn, A) -> erpc:multicall([N_, N_], M, Fn, A) end",
    "erpc:cast": "fun erpc:cast/4",
    "erpc:multicast": "fun(N_, M, Fn, A) -> erpc:multicast([N_, N_], M, Fn, A) end",
    "erpc:receive_response": "fun(N_, M, Fn, A) -> "
    "erpc:receive_response(erpc:send_request(N_, M, Fn, A), 5000) end",
    "erpc:wait_response": "fun(N_, M, Fn, A) -> "
    "erpc:wait_response(erpc:send_request(N_, M, Fn, A), 5000) end",
    "erpc:check_response": "fun(N_, M, Fn, A) -> I = erpc:send_request(N_, M, Fn, A), "
    "receive X -> erpc:check_response(X, I) end end",
    "erpc's collections of requests": "fun(N_, M, Fn, A) -> "
    "C = erpc:send_request(N_, M, Fn, A, here, erpc:reqids_new()), "
    "{R, L, D} = erpc:receive_response(C, 5000, true), {R, L, erpc:reqids_size(D)} end",
    "a call to rex": "fun(N_, M, Fn, A) -> "
    "gen_server:call({rex, N_}, {call, M, Fn, A, group_leader()}) end",
    "a call to rex with user as group leader": "fun(N_, M, Fn, A) -> "
    "gen_server:call({rex, N_}, {call, M, Fn, A, user}) end",
    "a call of a C node": "fun(N_, M, Fn, A) -> {rex, N_} ! {self(), {call, M, Fn, A, user}}, "
    "receive {rex, R} -> R end end",
    "a call of a C node that wants the output": "fun(N_, M, Fn, A) -> "
    "{rex, N_} ! {self(), {call, M, Fn, A, send_stdout_to_caller}}, "
    "receive {rex, R} -> R end end",
    "a cast to rex": "fun(N_, M, Fn, A) -> "
    "gen_server:cast({rex, N_}, {cast, M, Fn, A, group_leader()}) end",
}


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_every_call_has_the_answer_of_a_beam(
    node: tumen.Node, shared_beam: peers.Beam, model: peers.Beam, function: str
) -> None:
    """Value, undef, exit and bad arguments: results, classes of errors and stacks."""
    for call in CALLS.values():
        await same(shared_beam, model, node, f"F = {FUNCTIONS[function]}, {call}")


OTHERS = {
    "erpc:call with an external fun": "erpc:call(N, fun nomod:nofun/0)",
    "timeout of rpc:call": "rpc:call(N, timer, sleep, [10000], 50)",
    "timeout of rpc:block_call": "rpc:block_call(N, timer, sleep, [1000], 20)",
    "timeout of erpc:call": "erpc:call(N, timer, sleep, [10000], 50)",
    "timeout of one of several": "erpc:multicall([N, node()], timer, sleep, [10000], 50)",
    "rpc:multicall with a node that is not there": "rpc:multicall([N, 'no@127.0.0.1'], lists, seq, "
    "[1, 2], 5000)",
    "erpc:multicall with a node that is not there": "erpc:multicall(['no@127.0.0.1', N], lists, "
    "seq, [1, 2], 5000)",
    "rpc:eval_everywhere": "rpc:eval_everywhere([N], lists, seq, [1, 2])",
    "rpc:parallel_eval": "[rpc:yield(K) || K <- [rpc:async_call(N, lists, seq, [1, I]) "
    "|| I <- lists:seq(1, 50)]]",
    "rpc:abcast": "rpc:abcast([N], server, hello)",
    "rpc:abcast to nobody": "rpc:abcast([N], nobody, hello)",
    "rpc:sbcast": "rpc:sbcast([N, 'no@127.0.0.1'], server, hello)",
    "rpc:sbcast to nobody": "rpc:sbcast([N], nobody, hello)",
    "rpc:multi_server_call": "rpc:multi_server_call([N], server, {a, 1})",
    "rpc:multi_server_call to nobody": "rpc:multi_server_call([N], nobody, {a, 1})",
    "rpc:server_call": "rpc:server_call(N, server, server, {a, 1})",
    "rpc:server_call to nobody": "rpc:server_call(N, nobody, nobody, {a, 1})",
    "send to nobody": "{rex, N} ! {self(), {send, nobody, x}}, receive M -> M end",
    "send to a server": "{rex, N} ! {self(), {send, server, x}}, receive M -> M end",
    "features": "{rex, N} ! {self(), features_request}, receive M -> M end",
}


@pytest.mark.parametrize("what", OTHERS)
async def test_broadcasts_timeouts_and_missing_nodes_are_as_with_a_beam(
    node: tumen.Node, shared_beam: peers.Beam, model: peers.Beam, what: str
) -> None:
    await model.eval(SERVER)
    await same(shared_beam, model, node, OTHERS[what])


async def test_sbcast_returns_when_the_message_is_in_the_mailbox(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    assert await shared_beam.eval(
        "{[_], []} = rpc:sbcast([N], server, {a, 1}), gen_server:call({server, N}, seen)",
        N=Atom(node.name),
    ) == [(Atom("a"), 1)]


async def test_block_calls_run_one_after_the_other(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """Others run meanwhile, and a block call whose caller has given up never starts."""
    running, most, done = 0, 0, []
    opened = asyncio.Event()

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await opened.wait()
        await turn()
        running -= 1
        done.append(number)
        return number

    node.expose("m", "work", work)
    node.expose("m", "open", opened.set, inline=True)
    # A BEAM that is still connecting has queued the call, and says nothing of its end.
    assert await node.ping(shared_beam.name)
    result = await shared_beam.eval(
        # What rpc:block_call does, but for the wait: so they arrive in this order.
        "Ask = fun(I) -> gen_server:send_request({rex, N}, "
        "{block_call, m, work, [I], group_leader()}) end, "
        "Get = fun(R) -> {reply, A} = gen_server:wait_response(R, infinity), A end, "
        "One = Ask(1), Two = Ask(2), Late = rpc:block_call(N, m, work, [3], 20), Four = Ask(4), "
        "Other = rpc:call(N, lists, seq, [1, 2]), rpc:call(N, m, open, []), "
        "{Other, [Get(One), Get(Two), Late, Get(Four), rpc:block_call(N, m, work, [5])]}",
        N=Atom(node.name),
    )
    assert result == ([1, 2], [1, 2, (Atom("badrpc"), Atom("timeout")), 4, 5])
    assert most == 1
    assert done == [1, 2, 4, 5]


async def test_cast_runs_the_function(node: tumen.Node, shared_beam: peers.Beam) -> None:
    ran: asyncio.Queue[Any] = asyncio.Queue()
    node.expose("m", "note", lambda x: node._running.loop.call_soon_threadsafe(ran.put_nowait, x))
    await shared_beam.eval(
        "erpc:multicast([N], m, note, [1]), rpc:eval_everywhere([N], m, note, [2]), "
        "gen_server:cast({rex, N}, {cast, m, note, [3], group_leader()})",
        N=Atom(node.name),
    )
    async with asyncio.timeout(10):
        assert sorted([await ran.get() for _ in range(3)]) == [1, 2, 3]


async def test_beam_learns_our_features_when_a_visible_node_comes_up(
    backend: str, epmd: peers.Epmd, shared_beam: peers.Beam
) -> None:
    async with make_node(cookie=peers.COOKIE, epmd="auto", visible=True) as node:
        await node.connect(shared_beam.name)
        # The table of rex has no event: it is asked every millisecond.
        assert await shared_beam.eval(
            "T = persistent_term:get(rex_nodes_observer), (fun F() -> case ets:lookup(T, N) of "
            "[{N, Erpc}] -> Erpc; [] -> timer:sleep(1), F() end end)()",
            N=Atom(node.name),
        )


async def test_elixir_calls_exposed_functions(node: tumen.Node, elixir: peers.Beam) -> None:
    node.expose("Elixir.ML", "answer", lambda: 42)
    assert await elixir.eval(
        "[:rpc.call(n, :lists, :seq, [1, 2]), :erpc.call(n, ML, :answer, []), "
        ":erpc.call(n, &ML.answer/0), :rpc.block_call(n, ML, :answer, []), "
        ":erpc.multicall([n], ML, :answer, []), "
        "(try do :erpc.call(n, ML, :nope, [1]) rescue e in ErlangError -> e.original; "
        "e in UndefinedFunctionError -> {e.module, e.function, e.arity} end)]",
        n=Atom(node.name),
    ) == [
        [1, 2],
        42,
        42,
        42,
        [(Atom("ok"), 42)],
        (
            Atom("exception"),
            Atom("undef"),
            [(Atom("Elixir.ML"), Atom("nope"), [1], [])],
        ),
    ]


async def erl_call(otp: peers.Runtime, node: tumen.Node, *args: str) -> str:
    """What OTP's own C node prints."""
    program = Path(otp.command[0]).with_name("erl_call")
    found = shutil.which(program) or shutil.which("erl_call")
    assert found is not None, "erl_call comes with every OTP"
    process = await asyncio.create_subprocess_exec(
        *(found, "-timeout", "10", "-n", node.name, "-c", peers.COOKIE, *args),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(20):
            out, error = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode == 0, error
    return out.decode()


async def test_c_node_calls_exposed_functions(node: tumen.Node, otp: peers.Runtime) -> None:
    """erl_call of each release: a value, undef, and with the output sent to it."""
    # What it prints of a list of small integers is a string of theirs.
    numbers = '"\\x1\\x2\\x3"'
    assert await erl_call(otp, node, "-a", "lists seq [1, 3]") == numbers
    assert await erl_call(otp, node, "-fetch_stdout", "-a", "lists seq [1, 3]") == numbers
    undef = await erl_call(otp, node, "-a", "nomod nofun [a]")
    assert undef == "{badrpc, {'EXIT', {undef, [{nomod, nofun, [a], []}]}}}"


@pytest.mark.sanitizer
async def test_rex_survives_what_it_does_not_know(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """Other messages, calls and casts are ignored, as a BEAM's rex does."""
    pid = node.whereis("rex")
    result = await shared_beam.eval(
        "R = {rex, N}, [R ! M || M <- [x, {}, {a}, {self(), x}, {self(), {call, a}}, "
        "{self(), {sbcast}}, {x, {call, lists, seq, [1, 2], user}}, [self(), features_request], "
        "{'$gen_call', x, y}, {'$gen_call', {self(), [alias | x]}, {call, 1, 2, 3, 4}}, "
        '{self(), {sbcast, "no name", x}}, <<0:80000>>, {system, x, y}]], '
        "[gen_server:cast(R, M) || M <- [x, {cast}, {cast, 1, 2, 3, 4}, stop]], "
        "{'EXIT', {timeout, _}} = (catch gen_server:call(R, stop, 20)), "
        "{'EXIT', {timeout, _}} = (catch gen_server:call(R, {call, 1}, 20)), "
        "rpc:block_call(N, lists, seq, [1, 3])",
        N=Atom(node.name),
    )
    assert result == [1, 2, 3]
    assert node.whereis("rex") == pid


async def test_killed_rex_is_started_again(node: tumen.Node, shared_beam: peers.Beam) -> None:
    first = node.whereis("rex")
    await shared_beam.eval("exit(P, kill)", P=first)
    await until(lambda: node.whereis("rex") not in (None, first))
    assert await shared_beam.eval("rpc:block_call(N, lists, seq, [1, 3])", N=Atom(node.name)) == [
        1,
        2,
        3,
    ]
