"""More calls than a server can handle, from callers that give up: the work that is done is for
callers that still wait. In the order of arrival most of it would be for nobody."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import peers
import tumen
from faults.conftest import release
from faults.scene import PATIENCE
from tumen import Atom

pytestmark = [pytest.mark.asyncio, pytest.mark.live]

# One call takes so long, callers give up after so long, milliseconds. In the order of arrival
# a caller would have spent all of its patience when its turn comes.
WORK_MS = 2
TIMEOUT_MS = 100 * PATIENCE
# The load, as a multiple of what the server can do; and for how long, milliseconds.
OVERLOAD = 3
PEAK_MS = 700
LOAD_MS = 2000
CALLERS = 8


class Server(tumen.GenServer):
    """What tumen_stock.erl is on a BEAM."""

    async def init(self) -> None:
        self.begun: list[int] = []
        self.worker = ThreadPoolExecutor(1)

    async def terminate(self, reason: Any) -> None:
        self.worker.shutdown()

    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        if request == Atom("begun"):
            begun, self.begun = self.begun, []
            return begun
        _, number = request
        # The work. Not asyncio.sleep(): a loop that is woken meanwhile waits for whole milliseconds
        # again, so that each caller's arrival would make the work longer.
        await asyncio.get_running_loop().run_in_executor(self.worker, time.sleep, WORK_MS / 1000)
        self.begun.append(number)
        return number


class Figures:
    """What came of an overload: answers a second, and which part of the work was for nobody."""

    def __init__(self, peak: float, answered: list[int], late: list[int], begun: list[int]) -> None:
        self.goodput = len(answered) / (LOAD_MS / 1000) / peak
        self.wasted = len(set(late) & set(begun)) / max(1, len(begun))
        self.calls = len(answered) + len(late)
        self.text = (
            f"peak {peak:.0f}/s, {self.calls} calls at {OVERLOAD} times that: goodput "
            f"{self.goodput:.2f} of the peak, {self.wasted:.1%} of {len(begun)} done for nobody"
        )


async def overload(clients: peers.Beam, server: Any) -> Figures:
    words = {"S": server, "Callers": CALLERS, "Ms": PEAK_MS}
    peak = await clients.eval("tumen_stock:closed(S, Callers, Ms)", **words)
    await clients.eval("gen_server:call(S, begun)", S=server)
    answered, late = await clients.eval(
        "tumen_stock:open(S, Rate, Ms, Timeout)",
        timeout=60,
        S=server,
        Rate=int(peak * OVERLOAD),
        Ms=LOAD_MS,
        Timeout=TIMEOUT_MS,
    )
    begun = await clients.eval("gen_server:call(S, begun, infinity)", timeout=60, S=server)
    return Figures(peak, answered, late, begun)


@pytest.mark.parametrize("driver", ["thread", "loop"])
async def test_overloaded_server_works_for_callers_that_still_wait(
    backend: str,
    driver: str,
    mapper: peers.Epmd,
    start_beam: Callable[..., peers.Beam],
) -> None:
    otp = release("otp28" if backend == "epoll" else "otp25")
    clients = await asyncio.to_thread(start_beam, otp, epmd_port=mapper.port)
    name = f"goodx{os.getpid()}@127.0.0.1"
    async with tumen.Node(name, cookie=peers.COOKIE, driver=driver, epmd_port=mapper.port) as node:
        ours = await overload(clients, await node.start_server(Server))
    # The peak was another moment's, when the machine may have had less to do.
    assert ours.goodput >= 0.5, ours.text
    assert ours.wasted <= 0.1, ours.text


@pytest.mark.slow
@pytest.mark.parametrize("otp", ["otp25", "otp28"])
async def test_a_gen_server_of_otp_works_for_callers_that_have_gone(
    otp: str, mapper: peers.Epmd, start_beam: Callable[..., peers.Beam]
) -> None:
    """What the test above leans on: this load, and this patience, make the difference."""
    clients, other = [
        await asyncio.to_thread(start_beam, release(otp), epmd_port=mapper.port) for _ in range(2)
    ]
    stock = await overload(clients, await other.eval("tumen_stock:start(Ms)", Ms=WORK_MS))
    assert stock.goodput < 0.5, stock.text
    assert stock.wasted > 0.1, stock.text
