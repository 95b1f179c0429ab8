"""Wireshark's dissector of the distribution protocol, as a reader of the wire that is not ours.

It is not perfect: what it also complains of between two OTP nodes is its own business.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import peers
import tumen
from live.wiretap import PORTS, Tap
from nodes import make_node
from tumen import Atom

pytestmark = pytest.mark.asyncio

# Any peer answers these somehow: what it is asked for does not exist, or answers everything.
DIALOGUE = """
    Try = fun(F) -> try F() catch C:R -> {C, R} end end,
    pong = net_adm:ping(N),
    Try(fun() -> gen_server:call({nobody, N}, #{a => [1, 2.5, <<"x">>]}, 1000) end),
    Try(fun() -> gen_server:call({counter, N}, {add, 5}, 1000) end),
    Try(fun() -> erpc:call(N, lists, seq, [1, 3]) end),
    Try(fun() -> rpc:call(N, no, such, [make_ref(), self(), fun lists:seq/2]) end),
    Try(fun() -> rpc:cast(N, lists, seq, [1, 3]) end),
    R = monitor(process, {counter, N}), demonitor(R),
    R2 = monitor(process, {nobody, N}), receive {'DOWN', R2, _, _, noproc} -> ok end,
    [{nobody, N} ! M || M <- [<<0:800000>>, lists:seq(1, 1000), 1 bsl 5000, -1, 'ÿ', <<5:3>>, 0.1]],
    {sink, N} ! <<0:1600000>>,
    spawn(fun() -> {sink, N} ! {self(), hello}, exit(boom) end),
    P = Try(fun() -> spawn(N, lists, seq, [1, 3]) end),
    Try(fun() -> link(P), unlink(P), exit(P, kill) end),
    pong = net_adm:ping(N), ok
"""

# The same towards the BEAM that listened in: what a node says by itself.
OURS = """
    Try = fun(F) -> try F() catch C:R -> {C, R} end end,
    Try(fun() -> gen_server:call({nobody, N}, #{a => [1, 2.5, <<"x">>]}, 1000) end),
    Try(fun() -> erpc:call(N, lists, seq, [1, 3]) end),
    Try(fun() -> erpc:call(N, no, such, [a]) end),
    {tumen_peer, N} ! <<0:1600000>>,
    ok
"""


def findings(tap: Tap, folder: Path) -> set[str]:
    """What the dissector finds wrong in the dialogue: its expert messages, packets that it calls
    malformed, and data that it has no name for."""
    tshark = shutil.which("tshark")
    assert tshark is not None, "tshark is not on the path: tools/setup test"
    path = folder / "said.pcap"
    tap.pcap(path)
    fields = ("_ws.expert.message", "_ws.malformed", "_ws.unreassembled", "data.len", "erldp.len")
    options = [arg for field in fields for arg in ("-e", field)]
    command = [tshark, "-r", str(path), "-d", f"tcp.port=={PORTS[1]},erldp", "-Y", "tcp.len > 0"]
    command += ["-T", "fields", "-E", "aggregator=|", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found, read = set(), 0
    for line in done.stdout.splitlines():
        *wrong, data, lengths = (line + "\t" * len(fields)).split("\t")[: len(fields)]
        read += len(lengths.split("|")) if lengths else 0
        found.update(part for text in wrong for part in text.split("|") if part)
        if data:
            found.add("data without a name")
    # A dialogue that it cannot follow would be without faults too.
    assert read >= 40, f"only {read} frames were read as the distribution protocol"
    return found


async def between_beams(
    otp: peers.Runtime, start_beam: Callable[..., peers.Beam], epmd: peers.Epmd, folder: Path
) -> set[str]:
    async with Tap(epmd.port) as tap:
        env = {"ERL_EPMD_PORT": str(tap.port)}
        asker = await asyncio.to_thread(start_beam, otp, env=env, args=("-hidden",))
        other = await asyncio.to_thread(start_beam, otp)
        await asker.eval(DIALOGUE, N=Atom(other.name))
        await other.eval(OURS, N=Atom(asker.name))
        await asyncio.to_thread(asker.kill)
        return findings(tap, folder)


async def test_dissector_finds_nothing_that_it_does_not_find_between_two_beams(
    backend: str,
    otp: peers.Runtime,
    start_beam: Callable[..., peers.Beam],
    epmd: peers.Epmd,
    tmp_path: Path,
) -> None:
    async def sink(proc: tumen.Process) -> None:
        async for message in proc:
            if isinstance(message, tuple):
                proc.monitor(message[0])

    class Counter(tumen.GenServer):
        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            return request

    async with Tap(epmd.port) as tap, make_node(cookie=peers.COOKIE, epmd="client") as node:
        await node.start_server(Counter, name="counter")
        node.spawn(sink, name="sink")
        env = {"ERL_EPMD_PORT": str(tap.port)}
        asker = await asyncio.to_thread(start_beam, otp, env=env, args=("-hidden",))
        await asker.eval(DIALOGUE, N=Atom(node.name))
        with pytest.raises(tumen.NoProc):
            await node.call(("nobody", asker.name), {Atom("a"): [1, 2.5, b"x"]})
        assert await node.rpc(asker.name, "lists", "seq", [1, 3]) == [1, 2, 3]
        terms = [Atom("a"), 1 << 5000, tumen.BitString(b"\xa0", 3)]
        with pytest.raises(tumen.RemoteError):
            await node.rpc(asker.name, "no", "such", terms)
        node.send(("tumen_peer", asker.name), bytes(200_000))
        assert await node.ping(asker.name)
        await asyncio.to_thread(asker.kill)
        ours = findings(tap, tmp_path)
    theirs = await between_beams(otp, start_beam, epmd, tmp_path)
    assert ours <= theirs, f"found in our traffic only: {ours - theirs}"
