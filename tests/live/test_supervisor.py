"""Supervisors of Python as a BEAM sees them, beside OTP's own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import peers
import tumen
from nodes import Counter, make_node, settles
from tumen import Atom, ChildSpec, Supervisor

pytestmark = pytest.mark.asyncio

OK, ERROR, UNDEFINED = Atom("ok"), Atom("error"), Atom("undefined")
SHUTDOWN, KILLED = Atom("shutdown"), Atom("killed")
WORKER, SUPERVISOR = Atom("worker"), Atom("supervisor")

# Long enough that no restart is forgotten while a test runs, seconds.
PERIOD = 1000


class Child(Counter):
    """The counter of tumen_counter.erl."""

    async def init(self, start: Any = 0) -> Any:
        if start == Atom("fail"):
            return tumen.Stop(Atom("not_today"))
        return await super().init(start)


class Inner(Supervisor):
    intensity = 0
    children = (ChildSpec("leaf", Counter, (30,), name="leaf"),)


@pytest_asyncio.fixture
async def node(backend: str, epmd: peers.Epmd) -> AsyncIterator[tumen.Node]:
    """A node with a tree: `sup` has two counters and a supervisor with one more."""
    app = tumen.App()
    app.expose_server("tumen_counter")(Child)
    app.supervisor(
        "sup",
        [
            ChildSpec("first", Counter, (10,), name="first"),
            ChildSpec("inner", Inner),
            ChildSpec("last", Counter, (20,), "transient", 7.5, name="last"),
        ],
        intensity=2,
        period=PERIOD,
    )
    async with make_node(app=app, cookie=peers.COOKIE, epmd="auto") as node:
        yield node


def sup(node: tumen.Node) -> Any:
    return (Atom("sup"), Atom(node.name))


async def test_beam_sees_the_children_the_last_first(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    module = Atom("nodes.Counter")
    rows = await shared_beam.eval("supervisor:which_children(S)", S=sup(node))
    assert rows == [
        (Atom("last"), node.whereis("last"), WORKER, [module]),
        (Atom("inner"), rows[1][1], SUPERVISOR, [Atom(f"{__name__}.Inner")]),
        (Atom("first"), node.whereis("first"), WORKER, [module]),
    ]
    inner = await shared_beam.eval("supervisor:which_children(P)", P=rows[1][1])
    assert inner == [(Atom("leaf"), node.whereis("leaf"), WORKER, [module])]
    assert await shared_beam.eval("supervisor:count_children(S)", S=sup(node)) == [
        (Atom("specs"), 3),
        (Atom("active"), 3),
        (Atom("supervisors"), 1),
        (Atom("workers"), 2),
    ]
    assert await shared_beam.eval("supervisor:get_childspec(S, last)", S=sup(node)) == (
        OK,
        {
            Atom("id"): Atom("last"),
            Atom("start"): (module, Atom("start_link"), [20]),
            Atom("restart"): Atom("transient"),
            Atom("significant"): False,
            Atom("shutdown"): 7500,
            Atom("type"): WORKER,
            Atom("modules"): [module],
        },
    )
    missing = await shared_beam.eval("supervisor:get_childspec(S, nobody)", S=sup(node))
    assert missing == (ERROR, Atom("not_found"))


async def test_one_child_by_its_id(node: tumen.Node, shared_beam: peers.Beam) -> None:
    """supervisor:which_child/2 came with OTP 27; its message is sent by hand elsewhere."""
    found = await shared_beam.eval("gen_server:call(S, {which_child, first})", S=sup(node))
    row = (Atom("first"), node.whereis("first"), WORKER, [Atom("nodes.Counter")])
    assert found == (OK, row)
    missing = await shared_beam.eval("gen_server:call(S, {which_child, no})", S=sup(node))
    assert missing == (ERROR, Atom("not_found"))


async def test_child_killed_by_a_beam_is_back_under_its_name(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    result = await shared_beam.eval(
        "First = {first, N}, 11 = gen_server:call(First, {add, 1}), "
        "[P] = [P || {first, P, _, _} <- supervisor:which_children({sup, N})], "
        "M1 = monitor(process, P), M2 = monitor(process, First), exit(P, kill), "
        "R1 = receive {'DOWN', M1, process, P, A} -> A end, "
        "R2 = receive {'DOWN', M2, process, First, B} -> B end, "
        "Again = fun Again() -> try gen_server:call(First, get) catch exit:{noproc, _} -> Again()"
        " end end, "
        "{R1, R2, Again(), receive {'DOWN', _, _, _, _} = More -> More after 0 -> nothing end}",
        N=Atom(node.name),
    )
    assert result == (KILLED, KILLED, 10, Atom("nothing"))


async def test_restart_limit_ends_the_tree_as_on_a_beam(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """The leaf's supervisor allows no restart: it ends with `shutdown`, and is restarted by its
    own, until that has had enough."""
    ended = await shared_beam.eval(
        "Pid = fun Pid() -> try gen_server:call({leaf, N}, pid) catch exit:_ -> Pid() end end, "
        "Kill = fun() -> P = Pid(), M = monitor(process, P), exit(P, kill), "
        "receive {'DOWN', M, process, P, R} -> R end end, "
        "Ms = [monitor(process, {X, N}) || X <- [first, last, sup]], "
        "{[Kill(), Kill(), Kill()], "
        "[receive {'DOWN', M, process, {X, _}, R} -> {X, R} end || M <- Ms]}",
        N=Atom(node.name),
    )
    assert ended == (
        [KILLED] * 3,
        [(Atom("first"), SHUTDOWN), (Atom("last"), SHUTDOWN), (Atom("sup"), SHUTDOWN)],
    )


async def test_beam_ends_and_restarts_and_forgets_children(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    result = await shared_beam.eval(
        "M = monitor(process, {last, N}), ok = supervisor:terminate_child(S, last), "
        "R = receive {'DOWN', M, _, _, Reason} -> Reason end, "
        "{last, Gone, _, _} = lists:keyfind(last, 1, supervisor:which_children(S)), "
        "{ok, Pid} = supervisor:restart_child(S, last), 20 = gen_server:call(Pid, get), "
        "Errors = [supervisor:restart_child(S, last), supervisor:delete_child(S, last), "
        "supervisor:terminate_child(S, nobody)], "
        "ok = supervisor:terminate_child(S, last), ok = supervisor:delete_child(S, last), "
        "{R, Gone, Errors, [Id || {Id, _, _, _} <- supervisor:which_children(S)]}",
        N=Atom(node.name),
        S=sup(node),
    )
    errors = [(ERROR, Atom(reason)) for reason in ("running", "running", "not_found")]
    assert result == (SHUTDOWN, UNDEFINED, errors, [Atom("inner"), Atom("first")])
    assert node.whereis("last") is None


async def test_beam_starts_exposed_servers_only(node: tumen.Node, shared_beam: peers.Beam) -> None:
    result = await shared_beam.eval(
        "{ok, P} = supervisor:start_child(S, "
        "#{id => mine, start => {tumen_counter, start_link, [7]}, restart => temporary}), "
        "{error, {{'EXIT', {undef, [{os, cmd, [\"id\"], []}]}}, _}} = supervisor:start_child(S, "
        '#{id => evil, start => {os, cmd, ["id"]}}), '
        "{node(P), gen_server:call(P, get), length(supervisor:which_children(S))}",
        S=sup(node),
    )
    assert result == (Atom(node.name), 7, 4)


async def test_status_of_a_supervisor_leads_to_its_module(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    result = await shared_beam.eval(
        "P = gen_server:call({first, N}, pid), "
        "{status, P, {module, gen_server}, [PDict, running, Parent, [], _]} = sys:get_status(P), "
        "{proplists:get_value('$ancestors', PDict), supervisor:get_callback_module(Parent)}",
        N=Atom(node.name),
    )
    assert result == ([Atom("sup")], Atom("tumen.supervisor.Supervisor"))


FLAGS = [Atom("one_for_one"), Atom("rest_for_one"), Atom("one_for_all")]
IDS = [Atom(name) for name in "abc"]
REASONS = [Atom(name) for name in ("normal", "shutdown", "kill", "oops")] + [(SHUTDOWN, 1)]
RESTARTS = [Atom(name) for name in ("permanent", "transient", "temporary")]


def some_spec(rng: random.Random) -> Any:
    """A child spec as a BEAM writes it: good, failing to start, or wrong."""
    args = [Atom("fail")] if rng.random() < 0.1 else [rng.randrange(100)]
    mfa = (Atom("tumen_counter"), Atom("start_link"), args)
    shutdown = rng.choice([Atom("brutal_kill"), Atom("infinity"), 1000])
    if rng.random() < 0.2:
        kind = Atom("nonsense") if rng.random() < 0.2 else WORKER
        return (rng.choice(IDS), mfa, rng.choice(RESTARTS), shutdown, kind, [Atom("m")])
    spec: dict[Atom, Any] = {Atom("id"): rng.choice(IDS), Atom("start"): mfa}
    if rng.random() < 0.8:
        spec[Atom("restart")] = rng.choice(RESTARTS)
    if rng.random() < 0.3:
        spec[Atom("shutdown")] = shutdown
    if rng.random() < 0.1:
        spec[Atom("type")] = SUPERVISOR
    if rng.random() < 0.05:
        del spec[rng.choice(list(spec))]
    return spec


def some_operations(rng: random.Random) -> list[Any]:
    def one() -> Any:
        what = rng.choice(["start"] * 3 + ["stop"] * 3 + ["terminate", "restart", "delete", "spec"])
        match what:
            case "start":
                return (Atom(what), some_spec(rng))
            case "stop":
                return (Atom(what), rng.choice(IDS), rng.choice(REASONS))
            case _:
                return (Atom(what), rng.choice(IDS))

    looks = [Atom("which"), Atom("count")]
    return [step for _ in range(15) for step in (one(), *looks)]


@pytest.mark.parametrize("strategy", FLAGS, ids=str)
async def test_same_operations_have_the_same_results_as_with_otps_supervisor(
    node: tumen.Node, shared_beam: peers.Beam, strategy: Atom
) -> None:
    """Seeded sequences of starts, ends, restarts and crashes, done to a supervisor of the BEAM and
    to one of ours: every reply and every list of children is the same, to the end of both."""
    for seed in range(12):
        rng = random.Random(seed)
        intensity = rng.choice([0, 1, 3, 20])
        first = [some_spec(rng) for _ in range(2)]
        operations = some_operations(rng)
        flags = {
            Atom("strategy"): strategy,
            Atom("intensity"): intensity,
            Atom("period"): PERIOD,
        }
        options = {"strategy": strategy.text, "intensity": intensity, "period": PERIOD}
        kind: type[Supervisor] = type("Tested", (Supervisor,), options)
        ours = await node.start_server(kind)
        starts = [(Atom("start"), spec) for spec in first]
        theirs, mine = await shared_beam.eval(
            "{tumen_tree:run(tumen_tree:start(Flags, []), Ops), tumen_tree:run(Sup, Ops)}",
            Flags=flags,
            Sup=ours,
            Ops=starts + operations,
        )
        for one, other in zip(theirs, mine, strict=False):
            assert one == other, f"seed {seed}"
        assert len(theirs) == len(mine), f"seed {seed}"
        node.exit(ours, Atom("kill"))


async def test_supervisor_of_elixir_speaks_to_one_of_python(
    node: tumen.Node, elixir: peers.Beam
) -> None:
    rows, counts, ended, back, gone = await elixir.eval(
        "rows = Supervisor.which_children(s); counts = Supervisor.count_children(s); "
        ":ok = Supervisor.terminate_child(s, :last); "
        "{:last, ended, _, _} = List.keyfind(Supervisor.which_children(s), :last, 0); "
        "{:ok, pid} = Supervisor.restart_child(s, :last); "
        "{:ok, other} = Supervisor.start_child(s, "
        "%{id: :other, start: {:tumen_counter, :start_link, [5]}}); "
        "5 = GenServer.call(other, :get); "
        "ref = Process.monitor(s); :ok = Supervisor.stop(s, :shutdown); "
        "gone = receive do {:DOWN, ^ref, _, _, reason} -> reason end; "
        "{rows, counts, ended, is_pid(pid), gone}",
        s=sup(node),
    )
    assert [row[0] for row in rows] == [Atom("last"), Atom("inner"), Atom("first")]
    assert counts == {
        Atom("specs"): 3,
        Atom("active"): 3,
        Atom("supervisors"): 1,
        Atom("workers"): 2,
    }
    assert (ended, back, gone) == (UNDEFINED, True, SHUTDOWN)
    assert not [name for name in ("sup", "first", "last", "leaf") if node.whereis(name)]


async def test_node_that_stops_ends_its_tree_with_shutdown(
    backend: str, epmd: peers.Epmd, shared_beam: peers.Beam
) -> None:
    app = tumen.App()
    app.supervisor("sup", [ChildSpec("inner", Inner), ChildSpec("c", Counter, name="c")])
    async with make_node(app=app, cookie=peers.COOKIE, epmd="auto") as node:
        ready = asyncio.create_task(
            shared_beam.eval(
                "Names = [leaf, c, sup], Ms = [monitor(process, {X, N}) || X <- Names], "
                "[gen_server:call({X, N}, Q) || {X, Q} <- [{leaf, get}, {sup, which_children}]], "
                "gen_server:cast({c, N}, watched), "
                "[receive {'DOWN', M, _, {X, _}, R} -> {X, R} end || M <- Ms]",
                N=Atom(node.name),
            )
        )
        seen = [(b"cast", Atom("watched"))]
        await settles(
            "the monitors are there",
            lambda: node.call("c", Atom("seen")),
            lambda found: found == seen,
        )
    assert await ready == [
        (Atom("leaf"), SHUTDOWN),
        (Atom("c"), SHUTDOWN),
        (Atom("sup"), SHUTDOWN),
    ]
