"""More work than threads, more strangers than places: the others are served as if nothing was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

import peers
import tumen
from faults.conftest import release
from faults.evil import Evil
from faults.scene import PATIENCE, SLACK_S, eventually
from tumen import Atom, Limits

pytestmark = [pytest.mark.asyncio, pytest.mark.live]

CALLS = 40
WORK = 2.0
DEADLINE = 0.5
THREADS = 16
# Within twice the time that it takes when it is idle, or so many milliseconds: half of the calls
# are answered, and 99 of 100. The machine of a test has other things to do as well, and then a
# doubled latency of half a millisecond says nothing. A call that waits for a blocking one takes
# `WORK`.
HALF_MS, MOST_MS = 5.0, 100.0

# Which release calls the node of which backend.
CALLERS = {"uring": "otp28", "epoll": "otp25"}

# {idle before, meanwhile, idle after} in microseconds, and the answers by number of the call. A
# call that is measured begins a millisecond after the one before: they are no load themselves.
ATTACK = """
    Echo = fun(I) ->
        timer:sleep(1),
        {Took, I} = timer:tc(gen_server, call, [{echo, N}, I]),
        Took
    end,
    Many = fun(Count) -> [Echo(I) || I <- lists:seq(1, Count)] end,
    Call = fun(I) ->
        Timeout = case I rem 2 of 0 -> 60000; 1 -> Deadline end,
        case I rem 4 < 2 of
            true -> rpc:call(N, slow, work, [I], Timeout);
            false -> try erpc:call(N, slow, work, [I], Timeout) catch C:R -> {C, R} end
        end
    end,
    Until = fun(F, [], Took) -> Took;
               (F, Left, Took) ->
                   More = [Echo(I) || I <- lists:seq(1, 20)],
                   F(F, [P || P <- Left, is_process_alive(P)], More ++ Took)
            end,
    Me = self(),
    Many(100),
    Before = Many(500),
    Callers = [spawn(fun() -> Me ! {I, Call(I)} end) || I <- lists:seq(0, Calls - 1)],
    Meanwhile = Until(Until, Callers, []),
    Answers = [receive {I, Answer} -> {I, Answer} end || I <- lists:seq(0, Calls - 1)],
    {Before, Meanwhile, Many(500), Answers}
"""


def within_ms(microseconds: list[int], percent: int) -> float:
    """The time within which so many of them took place."""
    return sorted(microseconds)[len(microseconds) * percent // 100] / 1000


class Work:
    """Blocking calls, and when each of them has begun."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, float]] = []
        self.abandoned: list[int] = []

    def __call__(self, number: int) -> int:
        self.begun.append((number, time.monotonic()))
        time.sleep(WORK)  # what blocks a thread of the pool
        if tumen.current_call().abandoned:
            self.abandoned.append(number)
        return number


class Echo(tumen.GenServer):
    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        return request


@pytest.mark.parametrize("driver", ["thread", "loop"])
async def test_blocking_calls_leave_others_answered_and_late_ones_never_start(
    backend: str,
    driver: str,
    mapper: peers.Epmd,
    start_beam: Callable[..., peers.Beam],
) -> None:
    caller = release("otp28" if driver == "loop" else CALLERS[backend])
    beam = await asyncio.to_thread(start_beam, caller, epmd_port=mapper.port)
    work = Work()
    app = tumen.App()
    app.expose("slow", "work")(work)
    app.server("echo")(Echo)
    async with tumen.Node(
        f"busyx{os.getpid()}@127.0.0.1",
        app=app,
        cookie=peers.COOKIE,
        driver=driver,
        epmd_port=mapper.port,
        limits=Limits(pool_threads_max=THREADS),
    ) as node:
        before, meanwhile, after, answers = await beam.eval(
            ATTACK,
            timeout=60,
            N=Atom(node.name),
            Calls=CALLS,
            Deadline=int(DEADLINE * 1000),
        )

        # Others are answered as if the node was idle.
        assert len(meanwhile) > 200
        for percent, enough in ((50, HALF_MS), (99, MOST_MS)):
            idle = max(within_ms(before, percent), within_ms(after, percent))
            busy = within_ms(meanwhile, percent)
            told = f"{percent} % within {busy} ms, idle {idle} ms"
            assert busy <= max(2 * idle, enough * PATIENCE), told

        # Who waits long enough gets his answer, and the others theirs in time.
        timeouts = {
            (Atom("badrpc"), Atom("timeout")),
            (Atom("error"), (Atom("erpc"), Atom("timeout"))),
        }
        for number, answer in answers:
            if number % 2:
                assert answer in timeouts
            else:
                assert answer == number

        # Each has begun once at most. Of those with a deadline the ones that got a thread at once:
        # what still waited then has never begun.
        await eventually("all threads are done", lambda: len(work.abandoned) == _late(work))
        numbers = [number for number, _ in work.begun]
        assert len(numbers) == len(set(numbers))
        assert {number for number in numbers if number % 2 == 0} == set(range(0, CALLS, 2))
        first = min(when for _, when in work.begun)
        for number, when in work.begun:
            if number % 2:
                assert when - first < WORK, f"{number} began too late"
        assert _late(work) <= THREADS
        # And a running one can see that nobody waits for it any more.
        assert sorted(work.abandoned) == sorted(number for number in numbers if number % 2)


def _late(work: Work) -> int:
    return sum(number % 2 for number, _ in work.begun)


async def test_beam_connects_within_a_second_past_600_silent_strangers(
    backend: str, mapper: peers.Epmd, start_beam: Callable[..., peers.Beam]
) -> None:
    runtime = release(CALLERS[backend])
    beam = await asyncio.to_thread(start_beam, runtime, epmd_port=mapper.port)
    async with tumen.Node(
        f"crowdedx{os.getpid()}@127.0.0.1", cookie=peers.COOKIE, epmd_port=mapper.port
    ) as node:
        address = ("127.0.0.1", node.info().port)
        with contextlib.ExitStack() as stack:
            for _ in range(600):
                stack.enter_context(Evil(cookie=peers.COOKIE)).dial(address)
            most = node.limits.half_open_count_max
            await eventually("a full house", lambda: node.info().half_open == most)
            took, answer = await beam.eval("timer:tc(net_adm, ping, [N])", N=Atom(node.name))
            assert answer == Atom("pong")
            assert took < 1_000_000 * SLACK_S
