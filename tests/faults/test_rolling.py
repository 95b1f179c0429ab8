"""Elixir calls a group of `tumen serve` workers while one of them is asked to leave and another is
killed: by the ledger of the callers each call ends once, and leaving harms nobody."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import peers
from cli_runner import COOKIE, Serving, serving
from nodes import settles
from tumen import Atom

pytestmark = [pytest.mark.asyncio, pytest.mark.live]

WORKER = str(Path(__file__).with_name("worker_app.py"))
WORKERS = 3
CALLERS = 16
# One call in so many blocks its server for so long, milliseconds; half of the callers give up soon.
BLOCKS_ONE_IN, BLOCK_MS = 20, 2000
HURRIED_MS, PATIENT_MS = 500, 60_000
LARGE_BYTES = 600_000

# [{id, node, hurried?, outcome}], and the messages left in the callers' mailboxes. While the group
# has no member there is nobody to call: a look every 5 ms.
LEDGER = """
defmodule TumenRequest do
  defstruct [:id, :block_ms, :payload]
end
defmodule TumenAnswer do
  defstruct [:id, :payload]
end
defmodule TumenLedger do
  def run(o) do
    until = System.monotonic_time(:millisecond) + o.ms
    callers = for i <- 1..o.callers, do: Task.async(fn -> caller(i, until, o, []) end)
    ended = Task.await_many(callers, :infinity)
    {Enum.flat_map(ended, &elem(&1, 0)), Enum.map(ended, &elem(&1, 1))}
  end

  defp caller(i, until, o, done) do
    if System.monotonic_time(:millisecond) < until do
      case :pg.get_members(:models) do
        [] -> Process.sleep(5); caller(i, until, o, done)
        pids -> caller(i, until, o, [call(Enum.random(pids), i, length(done), o) | done])
      end
    else
      # What a late reply could still add to the mailbox is there after a round trip.
      for node <- Node.list(:hidden), do: :net_adm.ping(node)
      {done, elem(Process.info(self(), :messages), 1)}
    end
  end

  defp call(pid, i, n, o) do
    id = i * 1_000_000 + n
    hurried = rem(i, 2) == 0
    # By chance, but the same chance in each run: 1 in 20 blocks, 1 in 4 is large.
    block = if rem(:erlang.phash2(id), o.one_in) == 0, do: o.block_ms, else: 0
    size = if rem(n, 4) == 0, do: o.large, else: 100
    payload = :binary.copy(<<rem(id, 251), 7, 9>>, div(size, 3))
    request = %TumenRequest{id: id, block_ms: block, payload: payload}
    answer = <<9, 7, rem(id, 251)>> |> :binary.copy(div(size, 3))
    outcome =
      try do
        case GenServer.call(pid, request, if(hurried, do: o.hurried, else: o.patient)) do
          %TumenAnswer{id: ^id, payload: ^answer} -> :ok
          _ -> :wrong
        end
      catch
        :exit, {:timeout, _} -> :timeout
        :exit, {{:nodedown, _}, _} -> :nodedown
        :exit, {:noproc, _} -> :noproc
        :exit, {reason, _} -> {:exit, inspect(reason)}
      end
    {id, node(pid), hurried, outcome}
  end
end
TumenLedger.run(o)
"""


class Workers:
    """The workers by number; each can be ended and comes back."""

    def __init__(self, stack: ExitStack, epmd_port: int) -> None:
        self._stack = stack
        self._epmd_port = epmd_port
        self.running: dict[int, Serving] = {}

    def name(self, number: int) -> str:
        return f"worker{number}x{os.getpid()}@127.0.0.1"

    def start(self, number: int) -> None:
        command = ("serve", WORKER, "--name", self.name(number))
        self.running[number] = self._stack.enter_context(
            serving(*command, epmd_port=self._epmd_port)
        )

    def end(self, number: int, how: signal.Signals) -> int:
        worker = self.running.pop(number)
        worker.signal(how)
        code, errors = worker.wait()
        assert how == signal.SIGKILL or code == 0, errors
        return code


@pytest.fixture
def workers(mapper: peers.Epmd) -> Iterator[Workers]:
    with ExitStack() as stack:
        yield Workers(stack, mapper.port)


async def members(beam: peers.Beam) -> Counter[str]:
    """How many members of the group each node has."""
    source = "for pid <- :pg.get_members(:models), do: node(pid)"
    return Counter(node.text for node in await beam.eval(source))


async def all_joined(beam: peers.Beam, workers: Workers) -> None:
    want = {workers.name(number): 4 for number in range(WORKERS)}
    await settles(
        f"the group has {want}", lambda: members(beam), lambda found: found == want, timeout=30
    )


@pytest.mark.parametrize(
    "seconds",
    [12, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(300 + 120)])],
    ids=["short", "long"],
)
async def test_workers_leave_and_die_under_load_and_each_call_ends_once(
    backend: str,
    seconds: int,
    mapper: peers.Epmd,
    workers: Workers,
    start_beam: Callable[..., peers.Beam],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elixir = peers.elixir()
    if elixir is None:
        pytest.skip("needs_erlang: elixir")
    beam = await asyncio.to_thread(start_beam, elixir, epmd_port=mapper.port, cookie=COOKIE)
    await beam.eval(":pg.start(:pg)")
    monkeypatch.setenv("TUMEN_TEST_PEER", beam.name)
    for number in range(WORKERS):
        await asyncio.to_thread(workers.start, number)
    await all_joined(beam, workers)

    options: dict[Any, Any] = {
        "ms": seconds * 1000,
        "callers": CALLERS,
        "one_in": BLOCKS_ONE_IN,
        "block_ms": BLOCK_MS,
        "large": LARGE_BYTES,
        "hurried": HURRIED_MS,
        "patient": PATIENT_MS,
    }
    o = {Atom(key): value for key, value in options.items()}
    ledger = asyncio.create_task(beam.eval(LEDGER, timeout=seconds + 120, o=o))
    for number, how in ((0, signal.SIGTERM), (1, signal.SIGKILL)):
        await asyncio.sleep(seconds / 5)  # the time in which the load runs as it is
        await asyncio.to_thread(workers.end, number, how)
        await asyncio.to_thread(workers.start, number)
    entries, strays = await ledger
    await all_joined(beam, workers)

    ids = Counter(entry[0] for entry in entries)
    assert max(ids.values()) == 1
    assert len(entries) > seconds * CALLERS
    assert strays == [[]] * CALLERS
    outcomes = Counter((node.text, hurried, str(outcome)) for _, node, hurried, outcome in entries)
    killed = workers.name(1)
    for (node, hurried, outcome), count in outcomes.items():
        fine = outcome in (str(Atom("ok")), *([str(Atom("timeout"))] if hurried else []))
        assert fine or node == killed, f"{node}: {count} calls ended with {outcome}: {outcomes}"
        assert outcome != str(Atom("wrong"))
    # The killed one took with it what it had, and what was sent until its end was seen.
    lost = sum(
        count
        for (node, hurried, outcome), count in outcomes.items()
        if node == killed and outcome not in (str(Atom("ok")), str(Atom("timeout")))
    )
    assert lost <= CALLERS * 4, outcomes
