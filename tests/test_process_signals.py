"""Monitors, aliases and traces between processes of one node, and of two Python nodes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import tumen
from idle import idle_process
from nodes import make_node, pair
from tumen import Atom

pytestmark = pytest.mark.asyncio

DOWN, PROCESS, EXIT = Atom("DOWN"), Atom("process"), Atom("EXIT")


async def nothing_comes(proc: tumen.Process) -> None:
    with pytest.raises(TimeoutError):
        await proc.receive(timeout=0.02)


async def test_demonitor_drops_a_down_that_is_still_on_its_way(backend: str) -> None:
    async with make_node() as node:
        watcher, target = await idle_process(node), await idle_process(node)
        refs = [watcher.monitor(target.pid) for _ in range(3)]
        watcher.exit(target.pid, Atom("kill"))
        # Dead for everybody at once, and nothing of it has come yet.
        assert not watcher.demonitor(refs[0])
        assert not watcher.demonitor(refs[2])
        assert await watcher.receive(timeout=5) == (
            DOWN,
            refs[1],
            PROCESS,
            target.pid,
            Atom("killed"),
        )
        await nothing_comes(watcher)
        ref = watcher.monitor(target.pid)
        assert (await watcher.receive(timeout=5))[:2] == (DOWN, ref)


async def test_aliases_work_within_a_node(backend: str) -> None:
    async with make_node() as node:
        owner, other = await idle_process(node), await idle_process(node)
        plain, once = owner.alias(), owner.alias(reply=True)
        kept = owner.monitor(other.pid, alias="explicit_unalias")
        for n in range(2):
            for alias in (plain, once, kept):
                other.send(alias, n)
        assert [await owner.receive(timeout=5) for _ in range(5)] == [0, 0, 0, 1, 1]
        owner.trap_exit = True
        other.exit(plain, Atom("why"))
        assert await owner.receive(timeout=5) == (EXIT, other.pid, Atom("why"))
        owner.exit(other.pid, Atom("kill"))
        assert (await owner.receive(timeout=5))[:2] == (DOWN, kept)
        node.send(kept, Atom("later"))
        assert await owner.receive(timeout=5) == Atom("later")
        assert [owner.unalias(ref) for ref in (plain, once, kept)] == [True, False, True]
        for alias in (plain, once, kept):
            node.send(alias, 1)
        await nothing_comes(owner)


async def test_unknown_mode_of_an_alias_is_an_error(backend: str) -> None:
    async with make_node() as node:
        proc = await idle_process(node)
        wrong: Any
        for wrong in ("reply", True, 1):
            with pytest.raises(ValueError, match="alias"):
                proc.monitor(proc.pid, alias=wrong)
        with pytest.raises(TypeError, match="exit signal"):
            proc.exit("name", 1)  # type: ignore[arg-type]


async def test_exit_of_a_process_is_heard_through_an_alias_of_another_python_node(
    backend: str,
) -> None:
    async with pair() as (a, b):
        here, there = await idle_process(a), await idle_process(b)
        there.trap_exit = True
        alias = there.alias()
        here.send(there.pid, alias)
        got = await there.receive(timeout=5)
        here.exit(got, Atom("bye"))
        assert await there.receive(timeout=5) == (EXIT, here.pid, Atom("bye"))


async def test_messages_and_exits_of_the_node_itself_end_a_trace(backend: str) -> None:
    async with make_node() as node:
        first, second = await idle_process(node), await idle_process(node)
        token = (1, 42, 7, second.pid, 3)
        first._trace(tumen.encode(token)[1:])
        assert first.seq_trace_token == token
        second.trap_exit = True
        first.send(second.pid, 1)
        first.exit(second.pid, Atom("why"))
        assert await second.receive(timeout=5) == 1
        assert second.seq_trace_token == (1, 42, 8, first.pid, 7)
        assert (await second.receive(timeout=5))[0] == EXIT
        assert second.seq_trace_token == (1, 42, 9, first.pid, 7)
        # Selective: it is the message that is taken that counts, not the one that lies before it.
        node.send(second.pid, Atom("plain"))
        first.send(second.pid, Atom("traced"))
        wanted = Atom("traced")
        assert await second.receive(match=lambda m: m == wanted, timeout=5) == wanted
        assert second.seq_trace_token is not None
        assert await second.receive(timeout=5) == Atom("plain")
        assert second.seq_trace_token is None
        # A DOWN leaves it as it is.
        first.send(second.pid, wanted)
        ref = second.monitor(first.pid)
        second.exit(first.pid, Atom("kill"))
        assert await second.receive(timeout=5) == wanted
        assert (await second.receive(timeout=5))[:2] == (DOWN, ref)
        assert second.seq_trace_token is not None


async def test_async_for_takes_the_token_of_each_message(backend: str) -> None:
    async with make_node() as node:
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

        async def look(proc: tumen.Process) -> None:
            seen = []
            async for message in proc:
                token = proc.seq_trace_token
                seen.append((message, token and token[1]))
                if message == 3:
                    done.set_result(seen)
                    return

        sender = await idle_process(node)
        pid = node.spawn(look)
        sender.send(pid, 0)
        sender._trace(tumen.encode((1, 5, 1, sender.pid, 0))[1:])
        sender.send(pid, 1)
        sender._trace(b"")
        sender.send(pid, 2)
        sender.send(pid, 3)
        assert await done == [(0, None), (1, 5), (2, None), (3, None)]
