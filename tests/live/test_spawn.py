"""Processes spawned across nodes: exposed functions by a BEAM, and anything on a BEAM by us."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import peers
import tumen
from idle import idle_process
from nodes import make_node, turn, until
from tumen import Atom

pytestmark = pytest.mark.asyncio

DOWN, EXIT, PROCESS, NORMAL = Atom("DOWN"), Atom("EXIT"), Atom("process"), Atom("normal")
ML = Atom("Elixir.ML")

app = tumen.App()


@app.expose("Elixir.ML", "tell")
def tell(to: tumen.Pid, what: Any) -> None:
    call = tumen.current_call()
    assert call is not None
    assert call.process is None
    # In a thread of the pool.
    assert threading.current_thread() is not threading.main_thread()
    told.append((to, what))


@app.expose("Elixir.ML", "talk")
async def talk(to: tumen.Pid) -> None:
    call = tumen.current_call()
    assert call is not None
    proc = call.process
    assert proc is not None
    proc.send(to, (Atom("talking"), proc.pid))
    async for message in proc:
        if message == Atom("stop"):
            return
        proc.send(to, (Atom("echo"), message))


@app.expose("Elixir.ML", "noted", inline=True)
def noted() -> None:
    call = tumen.current_call()
    assert call is not None
    told.append((call.caller, call.function))


@app.expose("Elixir.ML", "fails")
def fails(x: Any) -> None:
    raise LookupError(f"no {x}")


@app.expose("Elixir.ML", "exits", inline=True)
def exits(reason: Any) -> None:
    raise tumen.Exit(reason)


told: list[Any] = []


@pytest_asyncio.fixture
async def node(backend: str, epmd: peers.Epmd) -> AsyncIterator[tumen.Node]:
    told.clear()
    async with make_node(app=app, cookie=peers.COOKIE, epmd="auto") as node:
        yield node


# -- a BEAM spawns here


@pytest.mark.sanitizer
async def test_beam_spawns_an_exposed_function_and_sees_its_end(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    name = Atom(node.name)
    pid, reason = await shared_beam.eval(
        "{P, R} = spawn_monitor(N, 'Elixir.ML', tell, [self(), hello]), "
        "receive {'DOWN', R, process, P, W} -> {P, W} after 5000 -> timeout end",
        N=name,
    )
    assert (pid.node, reason) == (node.name, NORMAL)
    assert told[0][1] == Atom("hello")
    linked = await shared_beam.eval(
        "process_flag(trap_exit, true), P = spawn_link(N, 'Elixir.ML', exits, [{a, 1}]), "
        "receive {'EXIT', P, W} -> W after 5000 -> timeout end",
        N=name,
    )
    assert linked == (Atom("a"), 1)
    plain = await shared_beam.eval(
        "P = spawn(N, 'Elixir.ML', talk, [self()]), receive {talking, P} -> P ! hi, "
        "receive {echo, hi} -> P ! stop, yes after 5000 -> no_echo end after 5000 -> timeout end",
        N=name,
    )
    assert plain == Atom("yes")


async def test_spawned_function_ends_as_on_a_beam(
    node: tumen.Node, shared_beam: peers.Beam, caplog: pytest.LogCaptureFixture
) -> None:
    name = Atom(node.name)
    go = (
        "Go = fun(F, A) -> {P, R} = spawn_monitor(N, 'Elixir.ML', F, A), "
        "receive {'DOWN', R, process, P, W} -> W after 5000 -> timeout end end, "
    )
    failed, missing, exited = await shared_beam.eval(
        go + "{Go(fails, [tea]), Go(fails, [1, 2, 3]), Go(exits, [shutdown])}", N=name
    )
    (error, stack) = failed
    assert error == (Atom("python_error"), b"builtins.LookupError", b"no tea")
    assert stack[0][:3] == (ML, Atom("fails"), 1)
    # What the same mistake gives on a BEAM: the module and the arguments, word for word.
    there = await shared_beam.eval(
        "{P, R} = spawn_monitor(lists, reverse, [1, 2, 3]), "
        "receive {'DOWN', R, process, P, W} -> W after 5000 -> timeout end"
    )
    assert there == (Atom("undef"), [(Atom("lists"), Atom("reverse"), [1, 2, 3], [])])
    assert missing == (Atom("undef"), [(ML, Atom("fails"), [1, 2, 3], [])])
    assert exited == Atom("shutdown")
    assert "Elixir.ML:fails/1 raised" in caplog.text


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("monitor", [False, True])
async def test_spawn_request_is_answered_with_link_and_monitor(
    node: tumen.Node, shared_beam: peers.Beam, link: bool, monitor: bool
) -> None:
    options = [Atom("link")] * link + [Atom("monitor")] * monitor
    result = await shared_beam.eval(
        "process_flag(trap_exit, true), "
        "R = spawn_request(N, 'Elixir.ML', talk, [self()], [{reply_tag, answer} | O]), "
        "P = receive {answer, R, ok, X} -> X after 5000 -> timeout end, "
        "M = receive {talking, P} -> monitor(process, P) after 5000 -> timeout end, P ! stop, "
        "receive {'DOWN', M, process, P, _} -> ok after 5000 -> timeout end, "
        # Whatever else that end had to tell is here when the node has answered.
        "pong = net_adm:ping(N), "
        "E = receive {'EXIT', P, W1} -> W1 after 0 -> none end, "
        "D = receive {'DOWN', R, process, P, W2} -> W2 after 0 -> none end, {E, D}",
        N=Atom(node.name),
        O=options,
    )
    none = Atom("none")
    assert result == (NORMAL if link else none, NORMAL if monitor else none)


async def test_spawn_options_of_otp_are_taken_and_others_are_badopt(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    ask = (
        "Ask = fun(O) -> R = spawn_request(N, 'Elixir.ML', tell, [self(), x], O), "
        "receive {spawn_reply, R, ok, _} -> ok; {spawn_reply, R, error, W} -> W "
        "after 5000 -> timeout end end, [Ask(O) || O <- Os]"
    )
    fine = [
        [(Atom("priority"), Atom("high"))],
        [(Atom("fullsweep_after"), 10), (Atom("min_heap_size"), 233)],
        [(Atom("min_bin_vheap_size"), 1000), (Atom("max_heap_size"), 0)],
        [(Atom("max_heap_size"), {Atom("size"): 0})],
        [(Atom("message_queue_data"), Atom("off_heap")), (Atom("scheduler"), 1)],
    ]
    bad = [
        [Atom("nonsense")],
        [(Atom("priority"), Atom("extreme"))],
        [(Atom("min_heap_size"), Atom("x"))],
        [(Atom("name"), Atom("x"))],
        [1],
    ]
    name = Atom(node.name)
    assert await shared_beam.eval(ask, N=name, Os=fine) == [Atom("ok")] * len(fine)
    # What a BEAM says to the same.
    there = await shared_beam.eval(
        "[try spawn_opt(fun() -> ok end, O), ok catch error:badarg -> badopt end || O <- Os]",
        Os=bad,
    )
    assert await shared_beam.eval(ask, N=name, Os=bad) == there == [Atom("badopt")] * len(bad)


async def test_unexposed_function_is_refused_with_notsup(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    refused = node.info().operations_refused
    result = await shared_beam.eval(
        "Ask = fun(M, F, A, O) -> R = spawn_request(N, M, F, A, O), "
        "receive {spawn_reply, R, error, W} -> W after 5000 -> timeout end end, "
        "{Ask(os, cmd, [x], []), Ask('Elixir.ML', nope, [], [link, monitor]), "
        "Ask(erlang, apply, [fun() -> ok end, []], []), "
        "begin {P, M} = spawn_opt(N, os, cmd, [x], [monitor]), "
        "receive {'DOWN', M, process, P, W} -> W after 5000 -> timeout end end}",
        N=Atom(node.name),
    )
    notsup = Atom("notsup")
    assert result == (notsup, notsup, notsup, notsup)
    assert node.info().operations_refused == refused + 4
    # Exposed while it runs: from then on it can be.
    done = asyncio.get_running_loop().create_future()

    async def nope() -> None:
        done.set_result(None)

    node.expose("Elixir.ML", "nope", nope)
    await shared_beam.eval("spawn(N, 'Elixir.ML', nope, []), ok", N=Atom(node.name))
    async with asyncio.timeout(5):
        await done


# What spawn/2 and its like take: a fun that names an exposed function.
OF_A_FUN = {
    "spawn": "spawn(N, F)",
    "spawn_link": "spawn_link(N, F)",
    "spawn_monitor": "element(1, spawn_monitor(N, F))",
    "spawn_opt": "element(1, spawn_opt(N, F, [link, monitor, {priority, high}]))",
    "spawn_request": "R = spawn_request(N, F, [monitor]), "
    "receive {spawn_reply, R, ok, Q} -> Q after 5000 -> timeout end",
    "apply_2": "spawn(N, erlang, apply, [F, []])",
    "apply_3": "spawn(N, erlang, apply, ['Elixir.ML', noted, []])",
}


@pytest.mark.sanitizer
async def test_external_fun_of_an_exposed_function_is_spawned(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    for form, source in OF_A_FUN.items():
        # Twice: the second request names its atoms by number.
        for _ in range(2):
            told.clear()
            pid, caller = await shared_beam.eval(
                f"process_flag(trap_exit, true), F = fun 'Elixir.ML':noted/0, "
                f"P = begin {source} end, M = monitor(process, P), "
                "receive {'DOWN', M, process, P, _} -> {P, self()} after 5000 -> timeout end",
                N=Atom(node.name),
            )
            assert pid.node == node.name, form
            assert told == [(caller, Atom("noted"))], form


async def test_fun_is_spawned_with_its_arguments(node: tumen.Node, shared_beam: peers.Beam) -> None:
    result = await shared_beam.eval(
        "{P, R} = spawn_monitor(N, erlang, apply, [fun 'Elixir.ML':talk/1, [self()]]), "
        "receive {talking, P} -> P ! {some, #{data => 1}} after 5000 -> timeout end, "
        "E = receive {echo, X} -> X after 5000 -> no_echo end, P ! stop, "
        "receive {'DOWN', R, process, P, W} -> {E, W} after 5000 -> timeout end",
        N=Atom(node.name),
    )
    assert result == ((Atom("some"), {Atom("data"): 1}), NORMAL)


async def test_funs_that_name_no_exposed_function_are_refused_with_notsup(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    refused = node.info().operations_refused
    result = await shared_beam.eval(
        "Ask = fun(R) -> receive {spawn_reply, R, error, W} -> W; {spawn_reply, R, ok, _} -> ok "
        "after 5000 -> timeout end end, X = 1, "
        "Funs = [fun() -> ok end, fun() -> X end, fun os:getpid/0, fun 'Elixir.ML':nope/0, "
        "fun 'Elixir.Other':noted/0], "
        "Args = [[], [fun 'Elixir.ML':noted/0], ['Elixir.ML', []], [os, getpid, []], "
        '[<<"noted">>, []], ["noted", []], [{\'Elixir.ML\', noted}, []], '
        "[1, 2], [#{}, []], [fun 'Elixir.ML':noted/0, [], 1], ['Elixir.ML', noted, [], 1]], "
        "[Ask(spawn_request(N, F, [])) || F <- Funs] ++ "
        "[Ask(spawn_request(N, erlang, apply, A, [])) || A <- Args]",
        N=Atom(node.name),
    )
    assert result == [Atom("notsup")] * 16
    assert node.info().operations_refused == refused + 16
    assert not told


async def test_fun_of_the_wrong_arity_ends_as_on_a_beam(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    source = (
        "Go = fun(A) -> {P, R} = spawn_monitor(N, erlang, apply, A), "
        "receive {'DOWN', R, process, P, W} -> W after 5000 -> timeout end end, Ml = 'Elixir.ML', "
        "{Go([F, [1, 2]]), Go([F, x]), Go([F, [1 | 2]]), Go([Ml, noted, x])}"
    )
    fun = tumen.Export("Elixir.ML", "noted", 0)
    here = await shared_beam.eval(source, N=Atom(node.name), F=fun)
    there = await shared_beam.eval(source, N=Atom(shared_beam.name), F=fun)
    assert here == there
    assert here[0][0] == (Atom("badarity"), (fun, [1, 2]))
    by_erpc = (
        "[try erpc:call(N, erlang, apply, A) catch error:{exception, W, _} -> W end || "
        "A <- [[F, [1, 2]], [F, x], ['Elixir.ML', noted, x], [[1], #{}, x]]]"
    )
    assert await shared_beam.eval(by_erpc, N=Atom(node.name), F=fun) == [
        (Atom("badarity"), (fun, [1, 2])),
        Atom("badarg"),
        Atom("badarg"),
        Atom("undef"),
    ]
    assert not told


@pytest.mark.sanitizer
async def test_exit_signals_end_a_spawned_function(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    result = await shared_beam.eval(
        "{P, R} = spawn_monitor(N, 'Elixir.ML', talk, [self()]), "
        "receive {talking, P} -> exit(P, {enough, 1}) after 5000 -> timeout end, "
        "receive {'DOWN', R, process, P, W} -> W after 5000 -> timeout end",
        N=Atom(node.name),
    )
    assert result == (Atom("enough"), 1)
    # And one that its parent is linked to ends with it.
    before = node.info().processes
    await shared_beam.eval(
        "S = self(), Q = spawn(fun() -> P = spawn_link(N, 'Elixir.ML', talk, [self()]), "
        "receive {talking, P} -> S ! {P, self()} end, receive after infinity -> ok end end), "
        "receive {P, Q} -> R = monitor(process, P), exit(Q, kill), "
        "receive {'DOWN', R, process, P, killed} -> ok after 5000 -> timeout end end",
        N=Atom(node.name),
    )
    assert node.info().processes == before


async def test_demonitor_leaves_a_spawned_function_running(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    result = await shared_beam.eval(
        "{P, R} = spawn_monitor(N, 'Elixir.ML', talk, [self()]), "
        "receive {talking, P} -> demonitor(R) after 5000 -> timeout end, "
        "P ! still, receive {echo, still} -> P ! stop, there after 5000 -> gone end",
        N=Atom(node.name),
    )
    assert result == Atom("there")


# -- we spawn on a BEAM


@pytest.mark.sanitizer
async def test_process_spawns_with_link_and_monitor_of_its_own(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    proc.trap_exit = True
    pid = await proc.spawn_remote(shared_beam.name, "erlang", "send", [proc.pid, Atom("hello")])
    assert pid.node == shared_beam.name
    assert await proc.receive(timeout=5) == Atom("hello")
    watched, ref = await proc.spawn_remote(
        shared_beam.name, "erlang", "exit", [Atom("why")], monitor=True
    )
    assert await proc.receive(timeout=5) == (DOWN, ref, PROCESS, watched, Atom("why"))
    linked = await proc.spawn_remote(shared_beam.name, "erlang", "exit", [Atom("x")], link=True)
    assert await proc.receive(timeout=5) == (EXIT, linked, Atom("x"))
    both, ref = await proc.spawn_remote(
        shared_beam.name, "timer", "sleep", [60_000], link=True, monitor=True
    )
    info = "erlang:process_info(P, [links, monitored_by])"
    links, monitored_by = [value for _, value in await shared_beam.eval(info, P=both)]
    assert links == [proc.pid]
    # While it loads a module, OTP's code server monitors it, too.
    assert [pid for pid in monitored_by if pid.node == node.name] == [proc.pid]
    proc.exit(both, Atom("kill"))
    got = [await proc.receive(timeout=5), await proc.receive(timeout=5)]
    assert (EXIT, both, Atom("killed")) in got
    assert (DOWN, ref, PROCESS, both, Atom("killed")) in got


async def test_node_spawns_and_awaits_the_end(node: tumen.Node, shared_beam: peers.Beam) -> None:
    pid = await node.spawn_remote(shared_beam.name, "timer", "sleep", [60_000], link=True)
    node.exit(pid, Atom("kill"))
    assert await node.join(pid) in (Atom("killed"), Atom("noproc"))
    # The node outlives what it was linked to.
    _, monitor = await node.spawn_remote(
        shared_beam.name, "erlang", "exit", [(Atom("a"), 1)], monitor=True, link=True
    )
    assert await monitor == (Atom("a"), 1)
    assert await node.ping(shared_beam.name)


async def test_process_spawns_a_fun_of_a_beam(node: tumen.Node, shared_beam: peers.Beam) -> None:
    proc = await idle_process(node)
    fun = tumen.Export("erlang", "send", 2)
    args = [fun, [proc.pid, Atom("hello")]]
    pid, ref = await proc.spawn_remote(shared_beam.name, "erlang", "apply", args, monitor=True)
    assert await proc.receive(timeout=5) == Atom("hello")
    assert await proc.receive(timeout=5) == (DOWN, ref, PROCESS, pid, NORMAL)


async def test_options_and_group_leader_go_along(node: tumen.Node, shared_beam: peers.Beam) -> None:
    leader = await idle_process(node)
    pid = await node.spawn_remote(
        shared_beam.name,
        "timer",
        "sleep",
        [60_000],
        group_leader=leader.pid,
        options=[(Atom("priority"), Atom("high"))],
    )
    keys = [Atom("group_leader"), Atom("priority")]
    info = dict(await shared_beam.eval("erlang:process_info(P, K)", P=pid, K=keys))
    assert info == {Atom("group_leader"): leader.pid, Atom("priority"): Atom("high")}
    node.exit(pid, Atom("kill"))


async def test_refused_spawn_names_the_reason(node: tumen.Node, shared_beam: peers.Beam) -> None:
    proc = await idle_process(node)
    with pytest.raises(tumen.RemoteError) as refused:
        await proc.spawn_remote(shared_beam.name, "erlang", "node", options=[Atom("nonsense")])
    assert refused.value.reason == Atom("badopt")
    assert not refused.value.may_have_executed
    with pytest.raises(tumen.NoConnection):
        await proc.spawn_remote("nobody@127.0.0.1", "erlang", "node")
    with pytest.raises(ValueError, match="started with spawn"):
        await node.spawn_remote(node.name, "erlang", "node")
    # A function that is not there is no refusal: the new process crashes, as on a BEAM.
    _, monitor = await node.spawn_remote(shared_beam.name, "no", "where", [], monitor=True)
    assert (await monitor)[0] == Atom("undef")


async def test_connection_lost_while_asked_is_noconnection(
    node: tumen.Node, beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    proc.trap_exit = True
    pid, ref = await proc.spawn_remote(
        beam.name, "timer", "sleep", [60_000], link=True, monitor=True
    )
    await stop(beam)
    asked = asyncio.create_task(proc.spawn_remote(beam.name, "erlang", "node"))
    waiting = asyncio.create_task(
        proc.spawn_remote(beam.name, "erlang", "node", timeout=0.05, link=True, monitor=True)
    )
    with pytest.raises(tumen.CallTimeout) as late:
        await waiting
    assert late.value.may_have_executed
    beam.kill()
    with pytest.raises(tumen.NoConnection) as lost:
        await asked
    assert lost.value.may_have_executed
    got = [await proc.receive(timeout=5), await proc.receive(timeout=5)]
    noconnection = Atom("noconnection")
    assert (EXIT, pid, noconnection) in got
    assert (DOWN, ref, PROCESS, pid, noconnection) in got


async def test_requester_that_gave_up_leaves_neither_link_nor_monitor(
    node: tumen.Node, beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    assert await node.ping(beam.name)
    await stop(beam)
    with pytest.raises(tumen.CallTimeout):
        await proc.spawn_remote(
            beam.name, "timer", "sleep", [60_000], timeout=0.05, link=True, monitor=True
        )
    beam.resume()
    # OTP's rule for a requester that is gone: the link breaks, and what trapped nothing ends.
    await none_sleeps(node, beam)
    assert proc.alive


async def test_dead_requester_takes_its_linked_process_along(
    node: tumen.Node, beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    assert await node.ping(beam.name)
    await stop(beam)
    asked = asyncio.create_task(
        proc.spawn_remote(beam.name, "timer", "sleep", [60_000], link=True, monitor=True)
    )
    await turn()
    node.exit(proc.pid, Atom("kill"))
    with pytest.raises(tumen.ProcessExited):
        await asked
    beam.resume()
    await none_sleeps(node, beam)


async def stop(beam: peers.Beam) -> None:
    """SIGSTOP, and returns once no thread runs any more: it is not told when."""
    beam.pause()

    def stopped() -> bool:
        stats = Path(f"/proc/{beam.pid}/task").glob("*/stat")
        return all(stat.read_text().rpartition(")")[2].split()[0] == "T" for stat in stats)

    await until(stopped)


async def none_sleeps(node: tumen.Node, beam: peers.Beam) -> None:
    """What was spawned on the BEAM, in answer to requests sent before, has ended."""
    # Behind the request, and behind what our node says to its answer.
    for _ in range(2):
        assert await node.ping(beam.name)
    left = await beam.eval(
        "L = [{P, monitor(process, P)} || P <- processes(), "
        "{initial_call, {timer, sleep, 1}} =:= erlang:process_info(P, initial_call)], "
        "[receive {'DOWN', R, process, P, _} -> gone after 5000 -> P end || {P, R} <- L]"
    )
    assert set(left) <= {Atom("gone")}


async def test_elixir_spawns_here_and_watches_us(node: tumen.Node, elixir: peers.Beam) -> None:
    result = await elixir.eval(
        "{pid, ref} = Node.spawn_monitor(n, ML, :talk, [self()])\n"
        "Node.monitor(n, true)\n"
        "echo = receive do\n {:talking, ^pid} -> send(pid, :hi)\n"
        " receive do\n {:echo, :hi} -> :echoed\n after 5000 -> :silent\n end\n"
        " after 5000 -> :nobody\n end\n"
        "Process.exit(pid, {:shutdown, :enough})\n"
        "down = receive do\n {:DOWN, ^ref, :process, ^pid, why} -> why\n"
        " after 5000 -> :none\n end\n"
        "Node.monitor(n, false)\n"
        "{echo, down}",
        n=Atom(node.name),
    )
    assert result == (Atom("echoed"), (Atom("shutdown"), Atom("enough")))
    fun = await elixir.eval(
        "{pid, ref} = Node.spawn_monitor(n, &ML.noted/0)\n"
        "receive do\n {:DOWN, ^ref, :process, ^pid, why} -> why\n after 5000 -> :none\n end",
        n=Atom(node.name),
    )
    assert (fun, len(told)) == (NORMAL, 1)
    proc = await idle_process(node)
    pid, ref = await proc.spawn_remote(
        elixir.name, "Elixir.Process", "exit", [proc.pid, Atom("normal")], monitor=True
    )
    assert await proc.receive(timeout=5) == (DOWN, ref, PROCESS, pid, NORMAL)


async def test_two_python_nodes_spawn_on_each_other(backend: str) -> None:
    async with make_node("a", app=app) as a, make_node("b") as b:
        await b.connect(a.name, ("127.0.0.1", a.info().port))
        proc = await idle_process(b)
        pid, ref = await proc.spawn_remote(
            a.name, "Elixir.ML", "talk", [proc.pid], monitor=True, link=True
        )
        assert await proc.receive(timeout=5) == (Atom("talking"), pid)
        proc.send(pid, 1)
        assert await proc.receive(timeout=5) == (Atom("echo"), 1)
        proc.send(pid, Atom("stop"))
        assert await proc.receive(timeout=5) == (DOWN, ref, PROCESS, pid, NORMAL)
        fun = tumen.Export("Elixir.ML", "talk", 1)
        pid = await proc.spawn_remote(a.name, "erlang", "apply", [fun, [proc.pid]])
        assert await proc.receive(timeout=5) == (Atom("talking"), pid)
        with pytest.raises(tumen.RemoteError) as refused:
            await b.spawn_remote(a.name, "os", "cmd", ["id"])
        assert refused.value.reason == Atom("notsup")
