"""Calls and messages from Python to many nodes at once: multicall, casts and broadcasts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import peers
import tumen
from nodes import hang, make_node, until
from tumen import Atom

pytestmark = pytest.mark.asyncio

NOBODY = "nobody@127.0.0.1"
# For calls that one node answers and another one never does, seconds: on a busy machine the first
# may be too short for the one that answers.
DEADLINES = (0.5, 2.0, 8.0)


@pytest.fixture
def app() -> tumen.App:
    app = tumen.App()
    app.expose("lists", "seq")(lambda first, last: list(range(first, last + 1)))
    return app


async def test_multicall_has_a_result_for_each_node(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    names = [shared_beam.name, NOBODY, node.name]
    results = await node.multicall([Atom(names[0]), *names], "lists", "seq", [1, 3], timeout=10)
    assert list(results) == names
    assert [results[name].value for name in names] == [[1, 2, 3], None, [1, 2, 3]]
    assert [results[name].ok for name in names] == [True, False, True]
    assert results[names[0]].get() == [1, 2, 3]
    error = results[NOBODY].error
    assert isinstance(error, tumen.NoConnection)
    assert error.peer == NOBODY
    with pytest.raises(tumen.NoConnection):
        results[NOBODY].get()


async def test_multicall_keeps_what_was_answered_at_the_deadline(
    node: tumen.Node, shared_beams: Callable[[peers.Runtime], peers.Beam], shared_beam: peers.Beam
) -> None:
    async def slow(ms: int) -> Any:
        await hang()

    node.expose("timer", "sleep", slow)
    # Until the BEAM is quick enough: the deadline is the test's own.
    for timeout in DEADLINES:
        results = await node.multicall(
            [shared_beam.name, node.name], "timer", "sleep", [1], timeout=timeout
        )
        assert isinstance(results[node.name].error, tumen.CallTimeout)
        if results[shared_beam.name].ok:
            break
    assert results[shared_beam.name].value == Atom("ok")
    results = await node.multicall([shared_beam.name], "timer", "sleep", [60_000], timeout=0.05)
    assert isinstance(results[shared_beam.name].error, tumen.CallTimeout)


async def test_multicall_tells_what_was_raised_on_each_node(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    results = await node.multicall([shared_beam.name, node.name], "nope", "nope", [1], timeout=10)
    for result in results.values():
        assert isinstance(result.error, tumen.RemoteError)
        assert result.error.reason == Atom("undef")
        assert result.error.stacktrace == [(Atom("nope"), Atom("nope"), [1], [])]


async def test_multicall_of_a_process_belongs_to_it(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """It ends with its process, and leaves nothing behind."""
    found = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        results = await proc.multicall([shared_beam.name], "erlang", "self", timeout=10)
        found.set_result(results[shared_beam.name].value)
        await proc.multicall([shared_beam.name], "timer", "sleep", [60_000])

    assert await node.ping(shared_beam.name)
    count = node.info().processes
    pid = node.spawn(main)
    assert (await found).node == shared_beam.name
    node.exit(pid, Atom("kill"))
    assert await node.join(pid) in (Atom("killed"), Atom("noproc"))
    assert node.info().processes == count


async def test_mistakes_of_the_caller_are_raised_at_once(node: tumen.Node) -> None:
    with pytest.raises(tumen.EncodeError):
        await node.multicall([NOBODY], "m", "f", [object()])
    with pytest.raises(TypeError, match="list of nodes"):
        await node.multicall(NOBODY, "m", "f")
    with pytest.raises(TypeError, match="no node name"):
        await node.sbcast([1], "name", "message")  # type: ignore[list-item]
    with pytest.raises(tumen.EncodeError):
        node.abcast([NOBODY], "name", object())
    with pytest.raises(tumen.EncodeError):
        await node.sbcast([NOBODY], "name", object())
    assert await node.multicall([], "m", "f") == {}
    assert await node.sbcast([], "name", 1) == {}


@pytest.mark.sanitizer
async def test_rpc_cast_runs_the_function_and_answers_nothing(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    got: asyncio.Queue[Any] = asyncio.Queue()

    async def main(proc: tumen.Process) -> None:
        async for message in proc:
            got.put_nowait(message)

    pid = node.spawn(main)
    node.rpc_cast(shared_beam.name, "erlang", "send", [pid, Atom("hello")])
    node.rpc_cast(shared_beam.name, "nope", "nope", [])
    node.rpc_cast(shared_beam.name, "erlang", "send", [pid, Atom("again")])
    node.expose("m", "note", lambda x: node.send(pid, x), inline=True)
    async with asyncio.timeout(10):
        assert {(await got.get()).text, (await got.get()).text} == {"hello", "again"}
        node.rpc_cast(node.name, "m", "note", [1])
        assert await got.get() == 1


async def test_abcast_and_sbcast_reach_named_processes(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """sbcast tells who has it; the messages of both arrive in order."""
    got: list[Any] = []

    async def main(proc: tumen.Process) -> None:
        async for message in proc:
            got.append(message)

    node.spawn(main, name="listener")
    await shared_beam.eval(
        "register(listener, spawn(fun F() -> receive {ask, P} -> "
        "P ! {has, element(2, process_info(self(), messages))} end, F() end)), ok"
    )
    try:
        names = [shared_beam.name, node.name, NOBODY]
        assert node.abcast(names, "listener", 1) == {}
        results = await node.sbcast(names, Atom("listener"), 2, timeout=10)
        assert list(results) == names
        assert [results[name].ok for name in names] == [True, True, False]
        assert isinstance(results[NOBODY].error, tumen.NoConnection)
        assert await shared_beam.eval("listener ! {ask, self()}, receive {has, M} -> M end") == [
            1,
            2,
        ]
        results = await node.sbcast(names[:2], "stranger", 2, timeout=10)
        for name in names[:2]:
            assert isinstance(results[name].error, tumen.NoProc)
        await until(lambda: got == [1, 2])
    finally:
        await shared_beam.eval("exit(whereis(listener), kill)")


async def test_sbcast_keeps_what_was_answered_at_the_deadline(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    async def silent(proc: tumen.Process) -> None:
        async for _ in proc:
            pass

    node.unregister("rex")
    node.spawn(silent, name="rex")
    for timeout in DEADLINES:
        results = await node.sbcast(
            [node.name, shared_beam.name], "init", Atom("x"), timeout=timeout
        )
        assert isinstance(results[node.name].error, tumen.CallTimeout)
        if results[shared_beam.name].ok:
            break
    assert results[shared_beam.name].ok


async def test_blocking_node_has_the_same_calls(
    backend: str, epmd: peers.Epmd, shared_beam: peers.Beam
) -> None:
    printed: list[str] = []

    def work() -> None:
        with tumen.sync.Node(
            make_node().name,
            cookie=peers.COOKIE,
            on_output=lambda text, _: printed.append(text),
        ) as node:
            results = node.multicall([shared_beam.name, NOBODY], "lists", "seq", [1, 2], timeout=5)
            assert results[shared_beam.name].value == [1, 2]
            assert not results[NOBODY].ok
            assert node.abcast([shared_beam.name], "init", Atom("hello")) == {}
            assert node.sbcast([shared_beam.name], "init", Atom("hello"))[shared_beam.name].ok
            node.put_chars("user", "printed\n")
            node.rpc_cast(shared_beam.name, "erlang", "self")

    await asyncio.to_thread(work)
    assert printed == ["printed\n"]
