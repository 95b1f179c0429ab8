"""Supervisors: start and end in order, restarts, their limit, and children that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import tumen
from nodes import Counter, hang, make_node, pair, until
from strategies import TermSource
from tumen import Atom, ChildSpec, Pid, Supervisor

pytestmark = pytest.mark.asyncio

OK, ERROR, UNDEFINED = Atom("ok"), Atom("error"), Atom("undefined")
SHUTDOWN, NORMAL, KILLED = Atom("shutdown"), Atom("normal"), Atom("killed")
WORKER, SUPERVISOR = Atom("worker"), Atom("supervisor")


class Journal:
    """What the children of one test did, in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def started(self) -> list[str]:
        return [name for what, name in self.lines if what == "start"]

    def ended(self) -> list[str]:
        return [name for what, name in self.lines if what == "end"]


class Child(tumen.GenServer):
    """Writes into a journal; ends as it is asked."""

    async def init(self, journal: Journal, name: str, fail: Any = None) -> None:
        if fail is not None and fail():
            raise tumen.Exit(Atom("not_today"))
        self.journal = journal
        self.label = name
        journal.lines.append(("start", name))

    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        if request == Atom("pid"):
            return self.pid
        raise tumen.Exit(request)

    async def handle_cast(self, request: Any) -> Any:
        return tumen.Stop(request)

    async def terminate(self, reason: Any) -> None:
        self.journal.lines.append(("end", self.label))


class Trapping(Child):
    async def init(self, journal: Journal, name: str, fail: Any = None) -> None:
        self.trap_exit = True
        await super().init(journal, name, fail)


async def idle(proc: tumen.Process) -> None:
    async for _ in proc:
        pass


def specs(journal: Journal, *names: str, **options: Any) -> list[ChildSpec]:
    return [ChildSpec(name, Child, (journal, name), name=name, **options) for name in names]


def supervisor(strategy: str = "one_for_one", **options: Any) -> type[Supervisor]:
    return type("Tested", (Supervisor,), {"strategy": strategy, "intensity": 5, **options})


def pids(node: tumen.Node, *names: str) -> dict[str, Pid]:
    found = {name: node.whereis(name) for name in names}
    return {name: pid for name, pid in found.items() if pid is not None}


async def end(node: tumen.Node, pid: Pid, reason: Any) -> None:
    monitor = node.monitor(pid)
    node.cast(pid, reason)
    assert await monitor == reason


async def replaced(node: tumen.Node, name: str, old: Pid) -> Pid:
    """The pid of the next process of that name."""
    await until(lambda: node.whereis(name) not in (None, old))
    pid = node.whereis(name)
    assert pid is not None
    return pid


async def test_children_start_in_order_and_end_in_reverse(backend: str) -> None:
    journal = Journal()
    async with make_node() as node:
        pid = await node.start_server(supervisor(), specs(journal, "a", "b", "c"), name="sup")
        assert journal.started() == ["a", "b", "c"]
        rows = node.supervisor("sup").which_children()
        assert [str(row[0]) for row in rows] == ["c", "b", "a"]
        assert [row[1] for row in rows] == [node.whereis(name) for name in "cba"]
        monitors = {name: node.monitor(pid) for name, pid in pids(node, *"abc").items()}
        sup = node.monitor(pid)
        assert await node.call("sup", Atom("count_children")) == [
            (Atom("specs"), 3),
            (Atom("active"), 3),
            (Atom("supervisors"), 0),
            (Atom("workers"), 3),
        ]
        node.send(pid, (Atom("system"), (node._running.own_process.pid, 1), _terminate(NORMAL)))
        assert await sup == NORMAL
        assert [await monitors[name] for name in "abc"] == [SHUTDOWN] * 3
        assert journal.ended() == ["c", "b", "a"]


def _terminate(reason: Any) -> Any:
    return (Atom("terminate"), reason)


async def test_node_stop_ends_a_tree_from_the_leaves(backend: str) -> None:
    journal = Journal()
    app = tumen.App()
    inner = ChildSpec("inner", Supervisor, (specs(journal, "b", "c"),))
    first, last = specs(journal, "a", "d")
    app.supervisor("top", [first, inner, last])
    async with make_node(app=app) as node:
        assert journal.started() == ["a", "b", "c", "d"]
        assert node.supervisor("top").count_children() == {
            "specs": 3,
            "active": 3,
            "supervisors": 1,
            "workers": 2,
        }
    assert journal.ended() == ["d", "c", "b", "a"]


async def test_node_stops_although_a_child_does_not(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Endless(Trapping):
        async def terminate(self, reason: Any) -> None:
            await hang()

    journal = Journal()
    limits = tumen.Limits(shutdown_time_ms=30)
    async with make_node(limits=limits) as node:
        endless = ChildSpec("e", Endless, (journal, "e"), shutdown="infinity")
        await node.start_server(supervisor(), [*specs(journal, "a"), endless])
    assert "terminate/1 took too long" in caplog.text


async def test_suspended_supervisor_restarts_when_it_resumes(backend: str) -> None:
    journal = Journal()
    async with make_node() as node:
        sup = await node.start_server(supervisor(), specs(journal, "a"))
        me = node._running.own_process.pid
        node.send(sup, (Atom("system"), (me, 1), Atom("suspend")))
        await until(lambda: node.supervisor(sup)._tumen_suspended)
        old = pids(node, "a")["a"]
        await end(node, old, Atom("oops"))
        node.send(sup, (Atom("system"), (me, 1), Atom("get_state")))
        await until(lambda: node.supervisor(sup)._waiting() == 1)
        assert journal.started() == ["a"]
        node.send(sup, (Atom("system"), (me, 1), Atom("resume")))
        await replaced(node, "a", old)


@pytest.mark.parametrize(
    ("strategy", "again"),
    [("one_for_one", "b"), ("rest_for_one", "bc"), ("one_for_all", "abc")],
)
async def test_strategy_says_who_is_restarted(backend: str, strategy: str, again: str) -> None:
    journal = Journal()
    async with make_node() as node:
        await node.start_server(supervisor(strategy), specs(journal, "a", "b", "c"), name="sup")
        before = pids(node, *"abc")
        journal.lines.clear()
        await end(node, before["b"], Atom("oops"))
        await until(lambda: journal.started() == list(again))
        after = pids(node, *"abc")
        assert [name for name in "abc" if after[name] != before[name]] == list(again)
        others = [name for name in reversed(again) if name != "b"]
        assert journal.ended() == ["b", *others]
        # The order of the children is as before.
        rows = await node.call("sup", Atom("which_children"))
        assert [str(row[0]) for row in rows] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("restart", "reason", "again", "kept"),
    [
        ("permanent", NORMAL, True, True),
        ("permanent", SHUTDOWN, True, True),
        ("transient", Atom("oops"), True, True),
        ("transient", NORMAL, False, True),
        ("transient", SHUTDOWN, False, True),
        ("transient", (SHUTDOWN, 1), False, True),
        ("temporary", Atom("oops"), False, False),
        ("temporary", NORMAL, False, False),
    ],
)
async def test_restart_type_and_reason_say_whether(
    backend: str, restart: str, reason: Any, again: bool, kept: bool
) -> None:
    journal = Journal()
    async with make_node() as node:
        children = specs(journal, "a", restart=restart)
        sup = await node.start_server(supervisor(), children)
        old = pids(node, "a")["a"]
        await end(node, old, reason)
        if again:
            await replaced(node, "a", old)
        # Answered after the exit of the child was handled.
        rows = await node.call(sup, Atom("which_children"))
        assert len(rows) == kept
        if kept and not again:
            assert rows[0][1] == UNDEFINED
        assert journal.started() == ["a"] * (1 + again)


async def test_killed_child_is_restarted_under_its_name(backend: str) -> None:
    async with pair() as (a, b):
        spec = ChildSpec("counter", Counter, (10,), name="counter")
        await a.start_server(supervisor(), [spec])
        old = pids(a, "counter")["counter"]
        assert await b.call(("counter", a.name), (Atom("add"), 1)) == 11
        monitor = b.monitor(("counter", a.name))
        b.exit(old, Atom("kill"))
        assert await monitor == KILLED
        await replaced(a, "counter", old)
        assert await b.call(("counter", a.name), (Atom("add"), 1)) == 11


async def test_functions_are_children_too(backend: str) -> None:
    async with make_node() as node:
        sup = await node.start_server(supervisor(), [ChildSpec("f", idle, name="f")])
        old = pids(node, "f")["f"]
        node.exit(old, Atom("oops"))
        new = await replaced(node, "f", old)
        await node.call(sup, Atom("which_children"))
        monitor = node.monitor(new)
        await node.supervisor(sup).terminate_child("f")
        assert await monitor == SHUTDOWN


@pytest.mark.parametrize("intensity", [0, 2])
async def test_too_many_restarts_end_the_supervisor_and_its_children(
    backend: str, intensity: int, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal()
    async with make_node() as node:
        kind = supervisor(intensity=intensity)
        pid = await node.start_server(kind, specs(journal, "a", "b", "c"))
        monitor, other = node.monitor(pid), node.monitor("c")
        for _ in range(intensity):
            old = pids(node, "a")["a"]
            await end(node, old, Atom("oops"))
            await replaced(node, "a", old)
        journal.lines.clear()
        await end(node, pids(node, "a")["a"], Atom("oops"))
        assert await monitor == SHUTDOWN
        assert await other == SHUTDOWN
        assert journal.ended() == ["a", "c", "b"]
        assert not pids(node, *"abc")
    assert f"more than {intensity} restarts in 5.0 s, the last of child Atom('a')" in caplog.text


async def test_restarts_of_an_earlier_period_do_not_count(backend: str) -> None:
    journal = Journal()
    async with make_node() as node:
        kind = supervisor(intensity=1, period=0.02)
        sup = await node.start_server(kind, specs(journal, "a"))
        for _ in range(3):
            old = pids(node, "a")["a"]
            await end(node, old, Atom("oops"))
            await replaced(node, "a", old)
            at = node._running.loop.time()
            await until(lambda at=at: node._running.loop.time() > at + 0.03)  # type: ignore[misc]
        assert await node.call(sup, Atom("which_children"))


async def test_restart_that_fails_is_tried_again_until_it_is_too_much(backend: str) -> None:
    journal = Journal()
    failing = False

    def fail() -> bool:
        return failing

    async with make_node() as node:
        children = [ChildSpec("a", Child, (journal, "a", fail), name="a"), *specs(journal, "b")]
        pid = await node.start_server(supervisor("one_for_all", intensity=3), children)
        monitor = node.monitor(pid)
        failing = True
        await end(node, pids(node, "a")["a"], Atom("oops"))
        assert await monitor == SHUTDOWN
        assert journal.started() == ["a", "b"]
        assert journal.ended() == ["a", "b"]


async def test_restart_that_fails_once_succeeds_with_the_next_try(backend: str) -> None:
    journal = Journal()
    outcomes = iter([False, False, True, False])

    async with make_node() as node:
        bad = ChildSpec("b", Child, (journal, "b", lambda: next(outcomes)), name="b")
        first, last = specs(journal, "a", "c")
        sup = await node.start_server(supervisor("rest_for_one"), [first, bad, last])
        old = pids(node, *"abc")
        # The first restart works, the second fails and is tried again.
        await end(node, old["b"], Atom("oops"))
        await replaced(node, "c", old["c"])
        old = pids(node, *"abc")
        await end(node, old["b"], Atom("oops"))
        await replaced(node, "c", old["c"])
        assert len(pids(node, *"abc")) == 3
        assert node.whereis("a") == old["a"]
        rows = await node.call(sup, Atom("which_children"))
        assert [str(row[0]) for row in rows] == ["c", "b", "a"]


async def test_child_that_does_not_start_stops_the_start_of_all(backend: str) -> None:
    journal = Journal()
    async with make_node() as node:
        before = node.info().processes
        bad = ChildSpec("c", Child, (journal, "c", lambda: True))
        with pytest.raises(tumen.ServerDied) as caught:
            await node.start_server(supervisor(), [*specs(journal, "a", "b"), bad])
        failed = (Atom("failed_to_start_child"), Atom("c"), Atom("not_today"))
        assert caught.value.reason == (SHUTDOWN, failed)
        assert journal.ended() == ["b", "a"]
        assert node.info().processes == before


async def test_taken_name_is_already_started(backend: str) -> None:
    async with make_node() as node:
        taken = await node.start_server(Counter, name="counter")
        with pytest.raises(tumen.ServerDied) as caught:
            await node.start_server(supervisor(), [ChildSpec(1, Counter, name="counter")])
        reason = (Atom("failed_to_start_child"), 1, (Atom("already_started"), taken))
        assert caught.value.reason == (SHUTDOWN, reason)


async def test_trapping_child_is_told_by_its_supervisors_exit(backend: str) -> None:
    journal = Journal()
    async with make_node() as node:
        child = ChildSpec("t", Trapping, (journal, "t"), name="t")
        pid = await node.start_server(supervisor(), [child], name="sup")
        monitor = node.monitor("t")
        # The exit of anybody else is a message.
        node.exit(pids(node, "t")["t"], SHUTDOWN)
        assert await node.call("t", Atom("pid")) == node.whereis("t")
        await node.supervisor(pid).terminate_child("t")
        assert await monitor == SHUTDOWN
        assert journal.ended() == ["t"]


@pytest.mark.parametrize("kind", [Child, Trapping])
@pytest.mark.parametrize("state", ["suspended", "running"])
async def test_suspended_child_ends_with_its_supervisor(
    backend: str, kind: type[Child], state: str
) -> None:
    journal = Journal()
    async with make_node() as node:
        pid = await node.start_server(supervisor(), [ChildSpec("a", kind, (journal, "a"))])
        ((_, child, _, _),) = node.supervisor(pid).which_children()
        assert isinstance(child, Pid)
        if state == "suspended":
            me = node._running.own_process.pid
            node.send(child, (Atom("system"), (me, 1), Atom("suspend")))
        monitor = node.monitor(child)
        node.supervisor(pid)._tumen_task.cancel()  # type: ignore[union-attr]
        assert await monitor == SHUTDOWN
        assert journal.ended() == ["a"]


async def test_child_that_takes_too_long_is_killed(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(Trapping):
        async def terminate(self, reason: Any) -> None:
            await hang()

    class Slower(Child):
        async def terminate(self, reason: Any) -> None:
            await hang()

    journal = Journal()
    async with make_node() as node:
        children = [
            ChildSpec(name, kind, (journal, name), shutdown=0.01, name=name)
            for name, kind in (("a", Slow), ("b", Slower))
        ]
        sup = await node.start_server(supervisor(), children)
        for name in "ab":
            monitor = node.monitor(name)
            await node.supervisor(sup).terminate_child(name)
            assert await monitor == KILLED
    assert "did not end in time" in caplog.text


async def test_child_that_ends_by_itself_just_now_is_left_to_it(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Busy(Counter):
        async def terminate(self, reason: Any) -> None:
            entered.set()
            await asyncio.sleep(0.01)  # its end takes a moment, in which it is told to end
            done.append(reason)

    entered, done = asyncio.Event(), list[Any]()
    async with make_node() as node:
        spec = ChildSpec("a", Busy, restart="transient", name="a")
        sup = await node.start_server(supervisor(), [spec])
        monitor = node.monitor("a")
        node.cast("a", Atom("stop"))
        await entered.wait()
        await node.supervisor(sup).terminate_child("a")
        assert await monitor == Atom("cast")
        assert done == [Atom("cast")]
        assert await node.call(sup, Atom("count_children"))
    assert "child Atom('a') ended with Atom('cast')" in caplog.text


async def test_brutal_kill_asks_nobody(backend: str) -> None:
    journal = Journal()
    async with make_node() as node:
        sup = await node.start_server(supervisor(), specs(journal, "a", shutdown="brutal_kill"))
        monitor = node.monitor("a")
        await node.supervisor(sup).terminate_child("a")
        assert await monitor == KILLED
        assert journal.ended() == []


async def test_killed_supervisor_takes_its_children_along(backend: str) -> None:
    journal = Journal()
    async with make_node() as node:
        trapping = ChildSpec("t", Trapping, (journal, "t"), name="t")
        pid = await node.start_server(supervisor(), [*specs(journal, "a"), trapping])
        monitors = [node.monitor(name) for name in "at"]
        node.exit(pid, Atom("kill"))
        assert [await monitor for monitor in monitors] == [KILLED, KILLED]
        assert journal.ended() == ["t"]


async def test_children_come_and_go_by_the_api(backend: str) -> None:
    journal = Journal()
    async with make_node() as node:
        pid = await node.start_server(supervisor(), name="sup")
        sup = node.supervisor("sup")
        assert sup.pid == pid
        (spec,) = specs(journal, "a")
        child = await sup.start_child(spec)
        assert node.whereis("a") == child
        with pytest.raises(tumen.ChildError) as caught:
            await sup.start_child(spec)
        assert caught.value.reason == (Atom("already_started"), child)
        for refused in (sup.restart_child, sup.delete_child):
            with pytest.raises(tumen.ChildError) as caught:
                await refused("a")
            assert caught.value.reason == Atom("running")
        await sup.terminate_child("a")
        assert sup.which_children() == [(Atom("a"), UNDEFINED, WORKER, [Atom(f"{__name__}.Child")])]
        with pytest.raises(tumen.ChildError) as caught:
            await sup.start_child(spec)
        assert caught.value.reason == Atom("already_present")
        assert await sup.restart_child(Atom("a")) == node.whereis("a")
        assert sup.get_childspec("a") == spec
        await sup.terminate_child("a")
        await sup.delete_child("a")
        calls: list[Callable[[str], Any]] = [
            *(sup.restart_child, sup.terminate_child, sup.delete_child)
        ]
        for call in calls:
            with pytest.raises(tumen.ChildError) as caught:
                await call("a")
            assert caught.value.reason == Atom("not_found")
        with pytest.raises(tumen.ChildError):
            sup.get_childspec("a")
        failing = ChildSpec("f", Child, (journal, "f", lambda: True))
        with pytest.raises(tumen.ServerDied) as died:
            await sup.start_child(failing)
        assert died.value.reason == Atom("not_today")
        assert sup.which_children() == []


async def test_supervisor_of_a_name_that_is_none(backend: str) -> None:
    async with make_node() as node:
        await node.start_server(Counter, name="counter")
        with pytest.raises(TypeError, match="no supervisor"):
            node.supervisor("counter")
        for nobody in ("nobody", Pid(node.name, 99, 9, node.info().creation)):
            with pytest.raises(tumen.NoProc):
                node.supervisor(nobody)


async def test_job_of_a_supervisor_that_ends_fails(backend: str) -> None:
    entered = asyncio.Event()

    class Endless(tumen.GenServer):
        async def init(self) -> None:
            entered.set()
            await hang()

    async with make_node() as node:
        assert node._running.own_process.alive
        before = node.info().processes
        pid = await node.start_server(supervisor())
        sup = node.supervisor(pid)
        first = asyncio.create_task(sup.start_child(ChildSpec(1, Endless)))
        await entered.wait()
        second = asyncio.create_task(sup.start_child(ChildSpec(2, Counter)))
        await until(lambda: len(sup._Supervisor__jobs) == 1)
        node.exit(pid, Atom("kill"))
        for waiting in (first, second):
            with pytest.raises(tumen.ProcessExited):
                await waiting
        with pytest.raises(tumen.ProcessExited):
            await sup.start_child(ChildSpec(3, Counter))
        await until(lambda: node.info().processes == before)


async def test_supervisor_starts_children_from_its_own_init(backend: str) -> None:
    class Own(Supervisor):
        async def init(self, count: int) -> list[ChildSpec]:
            await self.start_child(ChildSpec("first", Counter))
            return [ChildSpec(n, Counter, (n,)) for n in range(count)]

    async with make_node() as node:
        pid = await node.start_server(Own, 2)
        rows = node.supervisor(pid).which_children()
        assert [row[0] for row in rows] == [1, 0, Atom("first")]


@pytest.mark.parametrize("how", ["stop", "raise"])
async def test_init_that_fails_leaves_no_child_behind(backend: str, how: str) -> None:
    class Own(Supervisor):
        async def init(self) -> Any:
            await self.start_child(ChildSpec("first", Counter))
            if how == "raise":
                raise tumen.Exit(NORMAL)
            return tumen.Stop(NORMAL)

    async with make_node() as node:
        before = node.info().processes
        with pytest.raises(tumen.ServerDied) as caught:
            await node.start_server(Own)
        assert caught.value.reason == NORMAL
        assert node.info().processes == before


@pytest.mark.parametrize(("which", "ends"), [("any_significant", 1), ("all_significant", 2)])
async def test_end_of_significant_children_ends_the_supervisor(
    backend: str, which: str, ends: int
) -> None:
    journal = Journal()
    async with make_node() as node:
        children = [
            *specs(journal, "a", "b", restart="transient", significant=True),
            *specs(journal, "c"),
        ]
        pid = await node.start_server(supervisor(auto_shutdown=which), children)
        monitor = node.monitor(pid)
        for name in "ab"[:ends]:
            assert not monitor.done
            await end(node, pids(node, name)[name], NORMAL)
        assert await monitor == SHUTDOWN
        assert not pids(node, *"abc")


async def test_lies_about_exits_are_not_believed(backend: str) -> None:
    journal = Journal()
    async with make_node() as node:
        sup = await node.start_server(supervisor(), specs(journal, "a"))
        old = pids(node, "a")["a"]
        tag = node._running.core.make_ref()
        node.send(sup, (Atom("EXIT"), old, Atom("oops")))
        node.send(sup, (Atom("$tumen_job"), tag))
        node.cast(sup, (Atom("try_again_restart"), tag, b"x"))
        node.send(sup, (Atom("EXIT"), sup, SHUTDOWN))
        rows = await node.call(sup, Atom("which_children"))
        assert rows[0][1] == old
        assert journal.started() == ["a"]
        error, (bad, request) = await node.call(sup, Atom("nonsense"))
        assert (error, bad, request) == (ERROR, Atom("bad_call"), Atom("nonsense"))


# -- the wire


async def call(node: tumen.Node, request: str, *args: Any) -> Any:
    return await node.call("sup", (Atom(request), *args) if args else Atom(request))


async def test_peer_can_start_exposed_servers_only(backend: str) -> None:
    async with make_node() as node:
        node.expose_server("Elixir.Counter", Counter)
        await node.start_server(supervisor(), name="sup")
        mfa = (Atom("Elixir.Counter"), Atom("start_link"), [7])
        ok, pid = await call(node, "start_child", {Atom("id"): b"x", Atom("start"): mfa})
        assert ok == OK
        assert await node.call(pid, Atom("get")) == 7
        assert await call(node, "get_childspec", b"x") == (
            OK,
            {
                Atom("id"): b"x",
                Atom("start"): mfa,
                Atom("restart"): Atom("permanent"),
                Atom("significant"): False,
                Atom("shutdown"): 5000,
                Atom("type"): WORKER,
                Atom("modules"): [Atom("Elixir.Counter")],
            },
        )
        again = (b"x", mfa, Atom("temporary"), 1, WORKER, [Atom("m")])
        assert await call(node, "start_child", again) == (ERROR, (Atom("already_started"), pid))
        assert await call(node, "terminate_child", b"x") == OK
        assert await call(node, "start_child", again) == (ERROR, Atom("already_present"))
        assert await call(node, "delete_child", b"x") == OK
        ok, pid = await call(node, "start_child", again)
        assert ok == OK
        # A BEAM forgets the arguments of a temporary child.
        _, spec = await call(node, "get_childspec", b"x")
        assert spec[Atom("start")] == (*mfa[:2], UNDEFINED)
        assert spec[Atom("shutdown")] == 1
        other = (Atom("os"), Atom("cmd"), [b"id"])
        error, ((exit_, (undef, stack)), record) = await call(
            node, "start_child", {Atom("id"): 1, Atom("start"): other}
        )
        assert (error, exit_, undef) == (ERROR, Atom("EXIT"), Atom("undef"))
        assert stack == [(*other, [])]
        assert record[:4] == (Atom("child"), UNDEFINED, 1, other)
        assert len(await call(node, "which_children")) == 1


MFA = (Atom("m"), Atom("f"), [])


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (Atom("what"), (Atom("invalid_child_spec"), Atom("what"))),
        ({Atom("start"): MFA}, Atom("missing_id")),
        ({Atom("id"): 1}, Atom("missing_start")),
        ({Atom("id"): 1, Atom("start"): 2}, (Atom("invalid_mfa"), 2)),
        ((1, MFA, 3, 4, WORKER, []), (Atom("invalid_restart_type"), 3)),
        ((1, MFA, Atom("transient"), 4, 5, []), (Atom("invalid_child_type"), 5)),
        ((1, MFA, Atom("transient"), -1, WORKER, []), (Atom("invalid_shutdown"), -1)),
        ((1, MFA, Atom("transient"), 10**400, WORKER, []), (Atom("invalid_shutdown"), 10**400)),
        ([1, MFA, Atom("transient"), 1, WORKER, []], None),
        ((1, MFA, Atom("transient"), 1, WORKER, 6), (Atom("invalid_modules"), 6)),
        (
            {Atom("id"): 1, Atom("start"): MFA, Atom("significant"): True},
            (
                Atom("bad_combination"),
                [(Atom("auto_shutdown"), Atom("never")), (Atom("significant"), True)],
            ),
        ),
        (
            {Atom("id"): 1, Atom("start"): MFA, Atom("significant"): 7},
            (Atom("invalid_significant"), 7),
        ),
    ],
)
async def test_bad_spec_of_a_peer_is_refused_as_otp_does(
    backend: str, spec: Any, reason: Any
) -> None:
    async with make_node() as node:
        await node.start_server(supervisor(), name="sup")
        reason = reason or (Atom("invalid_child_spec"), spec)
        assert await call(node, "start_child", spec) == (ERROR, reason)


async def test_no_request_of_a_peer_ends_a_supervisor(backend: str) -> None:
    source = TermSource(1)
    requests = ["start_child", "restart_child", "terminate_child", "delete_child", "which_child"]
    keys = ["id", "start", "restart", "shutdown", "type", "modules", "significant"]
    journal = Journal()
    async with make_node() as node:
        await node.start_server(supervisor(), specs(journal, "a"), name="sup")
        child = pids(node, "a")["a"]
        for n in range(300):
            term = source.term()
            spec = {Atom(key): source.term() for key in keys if source.rng.random() < 0.8}
            asked = (Atom(source.rng.choice(requests)), spec if n % 2 else term)
            for request in (asked, term, (term, term)):
                await node.call("sup", request)
            node.cast("sup", term)
            node.send("sup", term)
            node.send("sup", (Atom("EXIT"), child, term))
            node.send("sup", (Atom("system"), (node._running.own_process.pid, 1), term))
            node.send("sup", (Atom("system"), (child, term), (Atom("debug"), (Atom("log"), term))))
        assert (await node.call("sup", Atom("which_children")))[-1][1] == child


async def test_status_names_the_supervisors_above(backend: str) -> None:
    async with make_node() as node:
        inner = ChildSpec("inner", Supervisor, ([ChildSpec("c", Counter, name="c")],))
        top = await node.start_server(supervisor(), [inner], name="top")
        ((_, middle, kind, _),) = node.supervisor(top).which_children()
        assert kind == SUPERVISOR
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def main(proc: tumen.Process) -> None:
            for dest in ("c", "top"):
                proc.send(dest, (Atom("system"), (proc.pid, 1), Atom("get_status")))
            result.set_result([(await proc.receive())[1] for _ in range(2)])

        node.spawn(main)
        of_child, of_top = await result
        dictionary, _, parent, _, _ = of_child[3]
        assert parent == middle
        assert dict(dictionary)[Atom("$ancestors")] == [middle, Atom("top")]
        misc = of_top[3][4]
        module = Atom(f"{__name__}.Tested")
        assert misc[-1] == (SUPERVISOR, [(list(b"Callback"), module)])
        state = misc[2][1][0][1]
        assert state[Atom("strategy")] == Atom("one_for_one")
        assert state[Atom("children")][0][:2] == (Atom("inner"), middle)


# -- specs


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"restart": "always"}, "restart must be one of permanent"),
        ({"shutdown": -1}, "shutdown must be one of brutal_kill, infinity or seconds"),
        ({"shutdown": "never"}, "shutdown must be"),
        ({"type": "boss"}, "type must be one of worker"),
        ({"significant": True}, "a permanent child cannot be significant"),
        ({"id": object()}, "no Erlang term"),
    ],
)
async def test_bad_spec_is_an_error_that_says_what(options: dict[str, Any], text: str) -> None:
    with pytest.raises((ValueError, tumen.EncodeError), match=text):
        ChildSpec(**{"id": "a", "start": Counter, **options})


async def test_start_must_be_a_server_or_a_function() -> None:
    for wrong in (int, 5, None):
        with pytest.raises(TypeError, match="GenServer class"):
            ChildSpec("a", wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"strategy": "simple_one_for_one"}, "strategy"),
        ({"intensity": -1}, "intensity"),
        ({"period": 0}, "period"),
        ({"auto_shutdown": "now"}, "auto_shutdown"),
        ({"children": [ChildSpec(1, Counter), ChildSpec(1, Counter)]}, "two children"),
        (
            {"children": [ChildSpec(1, Counter, restart="transient", significant=True)]},
            "auto_shutdown is never",
        ),
    ],
)
async def test_bad_supervisor_does_not_start(
    backend: str, options: dict[str, Any], text: str
) -> None:
    async with make_node() as node:
        with pytest.raises(tumen.ServerDied) as caught:
            await node.start_server(supervisor(**options))
        assert text in str(caught.value.__cause__)


async def test_app_refuses_two_of_one_name() -> None:
    app = tumen.App()
    app.supervisor("a", [])
    with pytest.raises(ValueError, match="already"):
        app.server("a")(Counter)
