"""`tumen serve examples/counter.py` as shells of OTP and Elixir see it: as one of their own.

Where it says *as a BEAM's*, the same expression runs against a gen_server of the asking node, and
class and shape have to be equal.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

import peers
from cli_runner import COOKIE, COUNTER, ROOT, Serving, serving
from tumen import Atom

NODE = "counter@127.0.0.1"
N = Atom(NODE)

# Turns the end of a call into a term.
CATCHING = "C = fun(F) -> try {ok, F()} catch K:R -> {K, R} end end, "
# What a monitor says.
DOWN = "receive {'DOWN', Ref, process, Who, Reason} -> {Who, Reason} after 5000 -> none end"


@pytest.fixture(scope="module", params=["otp25", "otp28"])
def shell(request: pytest.FixtureRequest, epmd: peers.Epmd) -> Iterator[peers.Beam]:
    """A node for this file, with the cookie of the commands. Each evaluation is a new process."""
    runtime = getattr(peers, request.param)()
    if runtime is None:
        pytest.skip("needs_erlang: " + request.param)
    with peers.Beam(runtime, epmd_port=epmd.port, cookie=COOKIE) as beam:
        yield beam


@pytest.fixture
def served(backend: str, epmd: peers.Epmd) -> Iterator[Serving]:
    """The example, on each backend."""
    with serving("serve", COUNTER, "--name", NODE, epmd_port=epmd.port) as server:
        assert server.ready["backend"] == backend
        yield server


def test_ping_calls_and_casts(served: Serving, shell: peers.Beam) -> None:
    assert shell.eval_sync("net_adm:ping(N)", N=N) == Atom("pong")
    source = (
        "C = {counter, N}, 0 = gen_server:call(C, get), 5 = gen_server:call(C, {add, 5}),"
        "ok = gen_server:cast(C, {add, 10}), 15 = gen_server:call(C, get),"
        "P = gen_server:call(C, self), N = node(P), 15 = gen_server:call(P, get),"
        "gen_server:call(C, -15)"
    )
    assert shell.eval_sync(source, N=N) == 0
    big = [b"x" * 300_000, {Atom("a"): [1.5, -0.0, 2**80]}, "grüß".encode(), (), []]
    assert shell.eval_sync("gen_server:call({counter, N}, {echo, T})", N=N, T=big) == big


def test_it_is_a_hidden_node(served: Serving, shell: peers.Beam) -> None:
    shell.eval_sync("net_adm:ping(N)", N=N)
    assert shell.eval_sync("nodes(hidden)") == [N]
    assert shell.eval_sync("nodes()") == []


def test_it_is_in_nodes_when_it_is_visible(epmd: peers.Epmd, shell: peers.Beam) -> None:
    with serving("serve", COUNTER, "--name", NODE, "--visible", epmd_port=epmd.port):
        shell.eval_sync("net_adm:ping(N)", N=N)
        assert shell.eval_sync("nodes()") == [N]


def test_a_timeout_is_as_a_beams_and_its_late_reply_reaches_nobody(
    served: Serving, shell: peers.Beam
) -> None:
    source = CATCHING + (
        "Here = fun(D, R) -> C(fun() -> gen_server:call(D, R, 100) end) end,"
        "Deaf = spawn(fun() -> receive stop -> ok end end),"
        "Python = Here({counter, N}, {slow, 1500}), Beam = Here(Deaf, {slow, 1500}),"
        "done = gen_server:call({counter, N}, {slow, 1}),"
        "{Python, Beam, erlang:process_info(self(), messages)}"
    )
    python, beam, left = shell.eval_sync(source, N=N)
    assert python == (
        Atom("exit"),
        (
            Atom("timeout"),
            (
                Atom("gen_server"),
                Atom("call"),
                [(Atom("counter"), N), (Atom("slow"), 1500), 100],
            ),
        ),
    )
    assert beam[0] == python[0]
    assert beam[1][0] == python[1][0]
    assert left == (Atom("messages"), [])


def test_a_name_that_nobody_has_is_noproc_as_a_beams(served: Serving, shell: peers.Beam) -> None:
    source = CATCHING + (
        "{C(fun() -> gen_server:call({nobody, N}, x) end),"
        " C(fun() -> gen_server:call({nobody, node()}, x) end), node()}"
    )
    python, beam, own = shell.eval_sync(source, N=N)

    def renamed(term: Any) -> Any:
        if isinstance(term, (tuple, list)):
            return type(term)(map(renamed, term))
        return N if term == own else term

    assert python == renamed(beam)
    assert python[1][0] == Atom("noproc")


def test_a_crash_ends_the_call_with_its_reason(served: Serving, shell: peers.Beam) -> None:
    source = CATCHING + (
        "Ref = erlang:monitor(process, {counter, N}),"
        "Call = C(fun() -> gen_server:call({counter, N}, crash) end),"
        f"Down = {DOWN},"
        "Twice = receive {'DOWN', Ref, process, _, _} = Second -> Second after 300 -> once end,"
        "After = C(fun() -> gen_server:call({counter, N}, get) end),"
        "{Call, Down, Twice, After}"
    )
    call, down, twice, after = shell.eval_sync(source, N=N)
    kind, (reason, (module, function, _)) = call
    assert (kind, module, function) == (Atom("exit"), Atom("gen_server"), Atom("call"))
    # {{python_error, Type, Text}, Stack}, where a BEAM has {ErlangError, Stack}.
    (word, error, text), stack = reason
    assert (word, error) == (Atom("python_error"), b"builtins.RuntimeError")
    assert b"the counter was asked to crash" in text
    assert all(len(frame) == 4 for frame in stack)
    assert down == ((Atom("counter"), N), reason)
    assert twice == Atom("once")
    assert (after[0], after[1][0]) == (Atom("exit"), Atom("noproc"))


def test_an_exit_of_its_own_has_its_reason_as_it_is(served: Serving, shell: peers.Beam) -> None:
    source = CATCHING + "C(fun() -> gen_server:call({counter, N}, {exit, {bad, [luck]}}) end)"
    kind, (reason, _) = shell.eval_sync(source, N=N)
    assert (kind, reason) == (Atom("exit"), (Atom("bad"), [Atom("luck")]))


def test_rpc_and_erpc_of_an_exposed_function_return(served: Serving, shell: peers.Beam) -> None:
    source = (
        "5 = rpc:call(N, demo, add, [2, 3]), 5 = erpc:call(N, demo, add, [2, 3]),"
        '5 = erpc:call(N, demo, add, [2, 3], 5000), T = {[1.5, nil], <<"x">>, self()},'
        "T = erpc:call(N, demo, echo, [T]), #{score := 1.5} ="
        " rpc:call(N, 'Elixir.ML', predict, [[1.0, 2.0]]),"
        "done = rpc:call(N, demo, block, [10]),"
        "[{ok, 3}, {ok, 3}] = erpc:multicall([N, N], demo, add, [1, 2]),"
        "K = rpc:async_call(N, demo, add, [1, 1]), 2 = rpc:yield(K),"
        "ok = erpc:cast(N, demo, add, [1, 1]), true"
    )
    assert shell.eval_sync(source, N=N) is True


def test_rpc_and_erpc_of_one_that_raises_fail_as_a_beams(
    served: Serving, shell: peers.Beam
) -> None:
    source = (
        'Text = <<"no luck">>,'
        "{badrpc, {'EXIT', {Why, Stack}}} = rpc:call(N, demo, fail, [Text]),"
        "Erpc = try erpc:call(N, demo, fail, [Text]) catch error:{exception, R, S} -> {R, S} end,"
        "{badrpc, {'EXIT', {badarg, _}}} = rpc:call(node(), erlang, atom_to_list, [1]),"
        "{Why, Stack, Erpc}"
    )
    reason, stack, (erpc_reason, erpc_stack) = shell.eval_sync(source, N=N)
    assert reason == (Atom("python_error"), b"builtins.ValueError", b"no luck")
    assert erpc_reason == reason
    for frames in (stack, erpc_stack):
        module, function, arity, place = frames[0]
        assert (module, function, arity) == (Atom("demo"), Atom("fail"), 1)
        assert place[0][0] == Atom("file")
        assert place[1][0] == Atom("line")


def test_rpc_and_erpc_of_what_is_not_exposed_are_undef_as_a_beams(
    served: Serving, shell: peers.Beam
) -> None:
    source = (
        "Rpc = fun(Node) -> {badrpc, {'EXIT', {Why, [{M, F, A, _} | _]}}} ="
        " rpc:call(Node, no_such, function, [1, 2]), {Why, M, F, A} end,"
        "Erpc = fun(Node) -> try erpc:call(Node, no_such, function, [1, 2])"
        " catch error:{exception, Why, [{M, F, A, _} | _]} -> {Why, M, F, A} end end,"
        "Python = {Rpc(N), Erpc(N)}, Beam = {Rpc(node()), Erpc(node())}, {Python, Beam}"
    )
    python, beam = shell.eval_sync(source, N=N)
    assert python == beam
    assert python[0][0] == Atom("undef")


def test_an_erpc_that_takes_too_long_times_out_as_a_beams(
    served: Serving, shell: peers.Beam
) -> None:
    source = CATCHING + (
        "{C(fun() -> erpc:call(N, demo, block, [3000], 100) end),"
        " C(fun() -> erpc:call(node(), timer, sleep, [3000], 100) end)}"
    )
    python, beam = shell.eval_sync(source, N=N)
    assert python == beam == (Atom("error"), (Atom("erpc"), Atom("timeout")))


@pytest.mark.parametrize("end", ["normal", "reason", "crash"])
def test_a_monitor_fires_once_with_the_right_reason(
    served: Serving, shell: peers.Beam, end: str
) -> None:
    request = {"normal": "{exit, normal}", "reason": "{exit, {bye, 1}}", "crash": "crash"}[end]
    source = (
        "P = gen_server:call({counter, N}, self), Ref = erlang:monitor(process, P),"
        f"catch gen_server:call(P, {request}), {{P, Why}} = {DOWN},"
        "Twice = receive {'DOWN', Ref, process, _, _} -> twice after 300 -> once end, {Why, Twice}"
    )
    why, twice = shell.eval_sync(source, N=N)
    assert twice == Atom("once")
    if end == "crash":
        assert why[0][:2] == (Atom("python_error"), b"builtins.RuntimeError")
    else:
        assert why == (Atom("normal") if end == "normal" else (Atom("bye"), 1))


def test_a_monitor_of_a_dead_process_says_noproc(served: Serving, shell: peers.Beam) -> None:
    source = (
        "P = gen_server:call({counter, N}, self), catch gen_server:call(P, {exit, gone}),"
        f"Ref = erlang:monitor(process, P), {{P, Why}} = {DOWN}, Why"
    )
    assert shell.eval_sync(source, N=N) == Atom("noproc")


def test_a_link_carries_the_end_of_python_to_the_beam(served: Serving, shell: peers.Beam) -> None:
    source = (
        "process_flag(trap_exit, true), P = gen_server:call({counter, N}, self), link(P),"
        "catch gen_server:call(P, {exit, {torn, 1}}),"
        "receive {'EXIT', P, Why} -> Why after 5000 -> none end"
    )
    assert shell.eval_sync(source, N=N) == (Atom("torn"), 1)


@pytest.mark.parametrize("linker", ["beam", "python"])
def test_a_link_carries_the_end_of_a_beam_to_python(
    served: Serving, shell: peers.Beam, linker: str
) -> None:
    link = "link(P)" if linker == "beam" else "ok = gen_server:call(P, {link, self()})"
    source = (
        "P = gen_server:call({counter, N}, self), Ref = erlang:monitor(process, P),"
        f"spawn(fun() -> {link}, 0 = gen_server:call(P, get), exit({{torn, 2}}) end),"
        f"{{P, Why}} = {DOWN}, Why"
    )
    assert shell.eval_sync(source, N=N) == (Atom("torn"), 2)


def test_an_unlinked_pair_goes_separate_ways(served: Serving, shell: peers.Beam) -> None:
    source = (
        "P = gen_server:call({counter, N}, self),"
        "{Q, Ref} = spawn_monitor(fun() -> link(P), 0 = gen_server:call(P, get), unlink(P),"
        " exit({torn, 3}) end),"
        "receive {'DOWN', Ref, process, Q, {torn, 3}} -> ok end, gen_server:call(P, get)"
    )
    assert shell.eval_sync(source, N=N) == 0


def test_exit_2_ends_a_python_process(served: Serving, shell: peers.Beam) -> None:
    source = (
        "P = gen_server:call({counter, N}, self), Ref = erlang:monitor(process, P),"
        f"exit(P, R), {{P, Why}} = {DOWN}, Why"
    )
    assert shell.eval_sync(source, N=N, R=Atom("kill")) == Atom("killed")


def test_its_end_is_noconnection_and_nodedown(served: Serving, shell: peers.Beam) -> None:
    watch = (
        "P = gen_server:call({counter, N}, self), Ref = erlang:monitor(process, P),"
        "erlang:monitor_node(N, true), Self = self(),"
        "register(watch, spawn(fun() -> R = erlang:monitor(process, P),"
        " erlang:monitor_node(N, true), Self ! ready, A = receive {'DOWN', R, _, _, W} -> W end,"
        " B = receive {nodedown, N} -> nodedown end, receive {tell, T} -> T ! {A, B} end end)),"
        "receive ready -> ok end"
    )
    shell.eval_sync(watch, N=N)
    served.signal(signal.SIGKILL)
    told = shell.eval_sync("watch ! {tell, self()}, receive T -> T after 5000 -> none end")
    assert told == (Atom("noconnection"), Atom("nodedown"))


# -- Elixir --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def iex(epmd: peers.Epmd) -> Iterator[peers.Beam]:
    runtime = peers.elixir()
    if runtime is None:
        pytest.skip("needs_erlang: elixir")
    with peers.Beam(runtime, epmd_port=epmd.port, cookie=COOKIE) as beam:
        yield beam


def test_elixir_pings_calls_and_gets_its_data_back(served: Serving, iex: peers.Beam) -> None:
    source = """
    :pong = Node.ping(n)
    true = Node.connect(n)
    counter = {:counter, n}
    5 = GenServer.call(counter, {:add, 5})
    :ok = GenServer.cast(counter, {:add, 1})
    6 = GenServer.call(counter, :get)
    5 = :erpc.call(n, :demo, :add, [2, 3])
    %{score: 2.0, model: "mean"} = :erpc.call(n, ML, :predict, [[1.0, 2.0, 3.0]])
    data = [%{name: "grüß", when: ~D[2024-02-29], range: 1..9, none: nil},
            {:ok, "日本語"}, 'charlist', [a: 1], %URI{host: "h"}, MapSet.new([1, :a])]
    ^data = GenServer.call(counter, {:echo, data})
    ^data = :erpc.call(n, :demo, :echo, [data])
    try do
      :erpc.call(n, :demo, :fail, ["no luck"])
    rescue
      e in ErlangError ->
        {:exception, {:python_error, "builtins.ValueError", "no luck"}, _} = e.original
    end
    Node.list(:hidden)
    """
    assert iex.eval_sync(source, n=N) == [N]


def test_elixir_monitors_a_python_process(served: Serving, iex: peers.Beam) -> None:
    source = """
    ref = Process.monitor({:counter, n})
    {:error, {{:python_error, "builtins.RuntimeError", _}, _}} =
      try do
        {:ok, GenServer.call({:counter, n}, :crash)}
      catch
        :exit, {reason, {GenServer, :call, _}} -> {:error, reason}
      end
    receive do
      {:DOWN, r, :process, {:counter, node}, reason} when r == ref -> {node, reason}
    after
      5000 -> :none
    end
    """
    node, reason = iex.eval_sync(source, n=N)
    assert node == N
    assert reason[0][:2] == (Atom("python_error"), b"builtins.RuntimeError")


# -- the examples as they are printed --------------------------------------------------------------


def test_the_erlang_example_runs(served: Serving, shell: peers.Beam, tmp_path: Any) -> None:
    compiler = shutil.which("erlc")
    assert compiler is not None
    source = str(ROOT / "examples" / "counter.erl")
    subprocess.run([compiler, "-Werror", "-o", str(tmp_path), source], check=True, timeout=60)
    code = "code:add_patha(D), counter:run(N)"
    ok, kind, text = shell.eval_sync(code, D=list(str(tmp_path).encode()), N=N)
    assert (ok, kind) == (Atom("ok"), b"builtins.RuntimeError")
    assert b"asked to crash" in text


def test_the_elixir_example_runs(served: Serving, epmd: peers.Epmd) -> None:
    elixir = shutil.which("elixir")
    if elixir is None:
        pytest.skip("needs_erlang: elixir")
    done = subprocess.run(
        [elixir, "--name", f"example{os.getpid()}@127.0.0.1", "--cookie", COOKIE,
         str(ROOT / "examples" / "counter.exs"), NODE],
        env={**os.environ, "ERL_EPMD_PORT": str(epmd.port)},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == f"counter at {NODE}: 5\n"
