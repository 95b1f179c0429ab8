"""Signals between processes as no sane peer sends them: what is carried and not understood."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import tumen
from faults.evil import (
    Evil,
    atom,
    binary,
    frame,
    improper,
    integer,
    list_of,
    pid,
    reg_send,
    tuple_of,
)
from faults.scene import Scene, scene
from tumen import Atom, events

pytestmark = pytest.mark.asyncio

UNUSED = atom("")
SPAWN_REPLY = 31
ALTACT = 37
PRIO, TOKEN, ALIAS, NAME, EXIT = 1, 2, 4, 8, 16


class Held:
    """A process whose mail the test reads."""

    def __init__(self, proc: tumen.Process) -> None:
        self.proc = proc
        self.bytes = pid(proc.pid.node, proc.pid.id, proc.pid.serial, proc.pid.creation)

    async def next(self) -> Any:
        return await self.proc.receive(timeout=5)


@pytest_asyncio.fixture
async def s(backend: str) -> AsyncIterator[Scene]:
    async with scene() as s:
        yield s


async def held(s: Scene) -> Held:
    made: asyncio.Future[tumen.Process] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        made.set_result(proc)
        await asyncio.get_running_loop().create_future()

    s.node.spawn(main)
    return Held(await made)


def ref_bytes(ref: tumen.Reference) -> bytes:
    return tumen.encode(ref)[1:]


def token(evil: Evil, label: bytes, serial: int) -> bytes:
    return tuple_of(integer(1), label, integer(serial), evil.pid(1), integer(0))


async def test_op_37_with_unknown_flags_and_more_elements_is_the_send_it_looks_like(
    s: Scene,
) -> None:
    here = await held(s)
    alias = ref_bytes(here.proc.alias())
    s.node.register("here", here.proc.pid)
    with s.connected() as evil:

        def altact(flags: bytes, to: bytes, *more: bytes) -> bytes:
            return tuple_of(integer(ALTACT), flags, evil.pid(1), to, *more)

        huge = b"\x6e\x0b\x00" + (1 << 80 | ALIAS).to_bytes(11, "little")
        for number, control in enumerate(
            [
                altact(integer(ALIAS), alias),
                altact(integer(ALIAS | PRIO), alias),
                altact(integer(0), here.bytes),
                altact(integer(NAME), atom("here")),
                altact(integer(1 << 20 | ALIAS), alias, integer(1), list_of()),
                altact(huge, alias),
            ]
        ):
            evil.send(frame(control, integer(number)))
        evil.send(frame(altact(integer(NAME | EXIT), atom("here")), atom("kill")))
        evil.send(frame(altact(integer(ALIAS | EXIT), evil.ref(1, 2, 3)), atom("kill")))
        assert [await here.next() for _ in range(6)] == list(range(6))
        evil.send(
            frame(
                altact(integer(ALIAS | TOKEN), alias, token(evil, integer(8), 3), atom("more")),
                integer(6),
            )
        )
        assert await here.next() == 6
        assert here.proc.seq_trace_token is not None
        assert here.proc.seq_trace_token[1:3] == (8, 3)
        evil.send(frame(altact(integer(ALIAS | EXIT | PRIO), alias), atom("bye")))
        async with asyncio.timeout(5):
            assert await s.node.monitor(here.proc.pid) in (Atom("bye"), Atom("noproc"))
        assert evil.name in s.node.nodes()


async def test_token_that_is_none_leaves_the_message_without_one(s: Scene) -> None:
    here = await held(s)
    with s.connected() as evil:

        def send(what: bytes, number: int) -> None:
            # SEND_TT
            evil.send(frame(tuple_of(integer(12), UNUSED, here.bytes, what), integer(number)))

        wrong = [
            atom("no"),
            tuple_of(),
            tuple_of(*[integer(1)] * 5),
            tuple_of(atom("x"), integer(1), integer(1), evil.pid(1), integer(0)),
            token(evil, binary(bytes(5000)), 1),
        ]
        for number, what in enumerate(wrong):
            send(token(evil, integer(7), 1), 100)
            assert await here.next() == 100
            assert here.proc.seq_trace_token is not None
            send(what, number)
            assert await here.next() == number
            assert here.proc.seq_trace_token is None
            # And that is told.
            refused = await s.event(events.Refused, evil.name)
            s.events.remove(refused)
            assert refused.reason.startswith("trace token left out of a message: ")
            assert refused.size == len(what)
        assert evil.name in s.node.nodes()


async def test_group_leaders_for_nobody_are_ignored_and_any_pid_may_lead(s: Scene) -> None:
    here = await held(s)
    with s.connected() as evil:
        dead = pid(s.node.name, 9999, 9, 1)
        elsewhere = pid("far@away", 5, 6, 7)
        for leader, to in [(evil.pid(1), dead), (elsewhere, here.bytes), (evil.pid(4), here.bytes)]:
            evil.send(frame(tuple_of(integer(7), leader, to)))
        evil.ping()
        await s.until("the last one", lambda: here.proc.group_leader.id == 4)
        assert here.proc.group_leader.node == evil.name


async def test_spawn_requests_are_all_answered(s: Scene) -> None:
    ended: asyncio.Queue[Any] = asyncio.Queue()

    async def runs(*args: Any) -> None:
        ended.put_nowait(args)

    s.node.expose("m", "f", runs)
    with s.connected() as evil:
        words = iter(range(1, 100))

        def ask(
            function: str, options: bytes, args: bytes, arity: int = 1
        ) -> tuple[tuple[Any, ...], Any]:
            mfa = tuple_of(atom("m"), atom(function), integer(arity))
            ref = evil.ref(next(words), 2, 3)
            control = tuple_of(integer(29), ref, evil.pid(1), evil.pid(1), mfa, options)
            evil.send(frame(control, args))
            return evil.signal()

        def all_of() -> list[tuple[tuple[Any, ...], Any]]:
            one = list_of(integer(1))
            return [
                ask("f", list_of(), one),
                ask("f", improper(atom("link"), integer(1)), one),
                ask("f", atom("link"), one),
                ask("f", list_of(tuple_of(atom("reply"), atom("no"))), one),
                ask("g", list_of(), one),
                # The arity is the caller's word only, and arguments may be anything.
                ask("f", list_of(), one, 7),
                ask("f", list_of(), atom("no_list")),
                ask("f", list_of(), improper(integer(1), integer(2))),
            ]

        answers = await asyncio.to_thread(all_of)
        assert [control[0] for control, _ in answers] == [SPAWN_REPLY] * len(answers)
        results = [control[4] for control, _ in answers]
        assert results[1:5] == ["badopt", "badopt", "badopt", "notsup"]
        assert all(not isinstance(results[i], str) for i in (0, 5, 6, 7))
        async with asyncio.timeout(5):
            assert [await ended.get(), await ended.get()] == [(1,), (1,)]
        await s.until("all ended", lambda: ended.empty())
        # One that is watched tells what became of arguments that are no list.
        ask_it = [list_of(atom("monitor")), atom("no_list")]
        answer, down = await asyncio.to_thread(lambda: (ask("f", *ask_it), evil.signal()))
        assert answer[0][3] == 2
        assert down[0][0] == 28
        assert down[1][0] == "badarg"
        assert evil.name in s.node.nodes()
        evil.send(reg_send(evil.pid(1), "sink", integer(1)))
        assert await s.got(1) == [1]
