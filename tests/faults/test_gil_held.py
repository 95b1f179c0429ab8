"""Twenty seconds without the interpreter: nobody notices but who waits for Python code.

All legs run at the same time, each a node in a process of its own, connected to one BEAM of each
release; so they cost their twenty seconds once.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import peers
from faults.conftest import release
from tumen import Atom

pytestmark = pytest.mark.live

HOLD = 20
TICK_TIME = 8
# From each BEAM.
MESSAGES = 100_000

# Half of the pings take no longer than the one, microseconds, and none longer than the other: three
# nodes and two BEAMs share the machine. What waited for the interpreter would take longer by far.
PING_US, SLOWEST_US = 1_000_000, 5_000_000

CHILD = Path(__file__).with_name("child_node.py")

# Numbers to the sink, and pings meanwhile and after, five a second; then nothing at all for longer
# than a peer may be silent; then pings again.
# {[{When, Answer, Microseconds}], When all numbers were sent}
DURING = """
    Ping = fun(_) ->
        timer:sleep(200),
        When = erlang:system_time(millisecond),
        {Took, Answer} = timer:tc(net_adm, ping, [N]),
        {When, Answer, Took}
    end,
    Push = fun(I) -> {sink, N} ! {Tag, I} end,
    {_, Ref} = spawn_monitor(fun() -> lists:foreach(Push, lists:seq(0, Count - 1)) end),
    Early = lists:map(Ping, lists:seq(1, 12)),
    receive {'DOWN', Ref, process, _, normal} -> ok end,
    Sent = erlang:system_time(millisecond),
    timer:sleep(Quiet),
    {Early ++ lists:map(Ping, lists:seq(1, 12)), Sent}
"""

# Remembers every node that goes down.
WATCH = """
    Gather = fun(F, All) -> receive
        {nodedown, N, Info} -> F(F, [{N, Info} | All]);
        {report, To} -> To ! {downs, All}, F(F, All);
        _ -> F(F, All)
    end end,
    Me = self(),
    register(downs, spawn(fun() ->
        ok = net_kernel:monitor_nodes(true, [{node_type, all}, nodedown_reason]),
        Me ! watching,
        Gather(Gather, [])
    end)),
    receive watching -> ok end
"""


class Leg:
    """One node in a process of its own."""

    def __init__(self, backend: str, driver: str, port: int) -> None:
        self.backend = backend
        self.name = f"held{backend}{driver}x{os.getpid()}@127.0.0.1"
        arguments = [self.name, peers.COOKIE, str(port), driver, str(TICK_TIME * 1000)]
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TUMEN_BACKEND": backend},
        )
        # Seconds since the epoch.
        self.held = (0.0, 0.0)
        self.pings: dict[str, list[tuple[int, Atom, int]]] = {}
        self.sent: dict[str, int] = {}
        self.numbers: dict[str, int] = {}
        self.in_order = False
        self.lost: list[Any] = []

    def told(self) -> list[Any]:
        return json.loads(self.process.stdout.readline())

    def tell(self, *words: Any) -> None:
        print(*words, file=self.process.stdin, flush=True)

    def run(self, beams: dict[str, peers.Beam]) -> None:
        """Everything that happens in the twenty seconds, and what is there afterwards."""
        for beam in beams.values():
            assert beam.eval_sync("net_adm:ping(N)", N=Atom(self.name)) == Atom("pong")
        self.tell("hold", HOLD)
        assert self.told() == ["holding"]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            bindings = {
                "N": Atom(self.name),
                "Count": MESSAGES,
                # A peer is down when it was silent for a quarter more than the tick time.
                "Quiet": TICK_TIME * 1250 + 1000,
            }
            asked = {
                tag: pool.submit(beam.eval_sync, DURING, timeout=50, Tag=Atom(tag), **bindings)
                for tag, beam in beams.items()
            }
            for tag, answer in asked.items():
                self.pings[tag], self.sent[tag] = answer.result()
        # Until here it was held, whatever else the machine had to do.
        self.tell("enough", 0)
        what, *self.held = self.told()
        assert what == "held"
        self.tell("count", MESSAGES * len(beams))
        what, self.numbers, self.in_order, self.lost = self.told()
        assert what == "counted"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def legs(mapper: peers.Epmd) -> Iterator[Callable[[str, str], tuple[Leg, list[Any]]]]:
    """Runs all legs when the first is asked for: the leg, and the nodes that a BEAM has missed."""
    choices = [("uring", "thread"), ("epoll", "thread"), ("epoll", "loop")]
    wanted = os.environ.get("TUMEN_BACKEND")
    ran: dict[tuple[str, str], concurrent.futures.Future[None]] = {}
    made: dict[tuple[str, str], Leg] = {}
    downs: list[Any] = []

    def run_all(stack: contextlib.ExitStack) -> None:
        beams = {
            tag: stack.enter_context(
                peers.Beam(
                    release(tag),
                    epmd_port=mapper.port,
                    args=("-kernel", "net_ticktime", str(TICK_TIME)),
                )
            )
            for tag in ("otp25", "otp28")
        }
        for beam in beams.values():
            assert beam.eval_sync(WATCH) == Atom("ok")
        for choice in choices:
            if wanted in (None, "", choice[0]):
                made[choice] = Leg(*choice, mapper.port)
                stack.callback(made[choice].end)
        for leg in made.values():
            up = leg.told()
            assert up == ["up", leg.name, leg.backend]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for choice, leg in made.items():
                ran[choice] = pool.submit(leg.run, beams)
        for beam in beams.values():
            report = "downs ! {report, self()}, receive {downs, All} -> All end"
            downs.extend(beam.eval_sync(report))

    with contextlib.ExitStack() as stack:

        def get(backend: str, driver: str) -> tuple[Leg, list[Any]]:
            if not ran:
                run_all(stack)
            ran[backend, driver].result()
            leg = made[backend, driver]
            return leg, [down for down in downs if down[0] == Atom(leg.name)]

        yield get


@pytest.mark.parametrize("driver", ["thread", "loop"])
def test_held_interpreter_costs_no_connection_no_ping_and_no_message(
    backend: str, driver: str, legs: Callable[[str, str], tuple[Leg, list[Any]]]
) -> None:
    leg, downs = legs(backend, driver)
    begin, end = leg.held
    assert end - begin >= HOLD

    # The connection stays, whoever is asked.
    assert leg.lost == []
    assert downs == []

    # The BEAM's ping answers meanwhile, as if nothing was.
    for tag, pings in leg.pings.items():
        assert {ping[1] for ping in pings} == {Atom("pong")}
        took = sorted(ping[2] for ping in pings if begin <= ping[0] / 1000 <= end)
        assert len(took) >= 20, (tag, begin, end, pings)
        assert took[len(took) // 2] < PING_US, f"{tag}: pings took {took} us"
        assert took[-1] < SLOWEST_US, f"{tag}: pings took {took} us"

    # What was sent meanwhile is all there afterwards, in order.
    for tag, sent in leg.sent.items():
        assert sent / 1000 < end, f"{tag}: the sending outlasted the hold"
    assert leg.numbers == {"otp25": MESSAGES, "otp28": MESSAGES}
    assert leg.in_order


def test_threads_of_python_do_not_run_while_the_interpreter_is_held() -> None:
    # What the test above leans on.
    from faults.child_node import hold

    ran: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.01):
            ran.append(time.time())

    thread = threading.Thread(target=tick)
    thread.start()
    begin, end = hold(1)
    stop.set()
    thread.join()
    assert end - begin >= 1
    assert not [when for when in ran if begin + 0.1 < when < end - 0.1]
