"""Identifiers of a BEAM that it cannot have made: which of them end the connection that they come
on, and what of that we keep to ourselves."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import pytest

import peers
import tumen
from faults.evil import Evil, atom, pid, reference, reg_send, tuple_of
from idle import idle_process
from tumen import Atom, Pid, Reference

DOWN, EXIT, PROCESS, NOPROC = Atom("DOWN"), Atom("EXIT"), Atom("process"), Atom("noproc")

# Numbers and serials of pids, words of references, and port numbers, all under the creation that
# the node has now: those that a release takes, and those for which it closes the connection.
PIDS = {
    "otp25": (
        [(1, 0), ((1 << 15) - 1, (1 << 13) - 1)],
        [(1 << 15, 0), (1, 1 << 13), (1 << 28, 0)],
    ),
    "otp28": ([(1, 0), ((1 << 28) - 1, (1 << 32) - 1)], [(1 << 28, 0), ((1 << 32) - 1, 0)]),
}
REFS = {
    "otp25": ([((1 << 18) - 1, 1, 2)], [(1 << 18, 1, 2), (1, 1, 2, 3), (1, 1, 2, 3, 4)]),
    "otp28": ([((1 << 18) - 1, 1, 2), (1, 1, 2, 3), (1, 1, 2, 3, 4)], [(1 << 18, 1, 2)]),
}
PORTS = {
    "otp25": ([(1 << 28) - 1], [1 << 28, 1 << 60]),
    "otp28": ([1 << 28], [1 << 60]),
}


def identifiers(name: str, creation: int, release: str) -> list[tuple[bytes, bool]]:
    """Terms, and whether they close the connection."""
    found = []
    for closes in (False, True):
        found += [(pid(name, *one, creation), closes) for one in PIDS[release][closes]]
        found += [(reference(name, creation, *one), closes) for one in REFS[release][closes]]
        for number in PORTS[release][closes]:
            port = b"\x78" + atom(name) + struct.pack(">QI", number, creation)
            found.append((port, closes))
    return found


def taken(beam: peers.Beam, address: tuple[str, int], term: bytes) -> bool:
    """Whether a process gets a message with the term, and can answer."""
    with Evil(cookie=beam.cookie).dial(address).shake() as evil:
        evil.send(reg_send(evil.pid(1), "taker", tuple_of(evil.pid(1), term)))
        try:
            while evil.signal()[1] != "taken":
                continue
        except (EOFError, OSError):
            return False
        return True


def test_beam_closes_on_identifiers_of_its_own_that_it_cannot_have_made(
    otp: peers.Runtime, start_beam: Callable[..., peers.Beam]
) -> None:
    beam = start_beam(otp)
    port, creation = beam.eval_sync(
        "S = self(), spawn(fun() -> register(taker, self()), S ! up, "
        "(fun F() -> receive {P, _} -> P ! taken, F() end end)() end), receive up -> ok end, "
        "{port, P, _} = erl_epmd:port_please(N, {127, 0, 0, 1}), "
        "{P, erlang:system_info(creation)}",
        N=[ord(letter) for letter in beam.name.split("@")[0]],
    )
    address = ("127.0.0.1", port)
    for term, closes in identifiers(beam.name, creation, otp.name):
        assert taken(beam, address, term) is not closes, term
        # Those of another life of the node are another node's.
        other = term.replace(struct.pack(">I", creation), struct.pack(">I", creation ^ 1))
        assert other != term
        assert taken(beam, address, other), other


@pytest.mark.asyncio
async def test_signal_to_what_no_release_can_have_made_is_answered_here(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    proc.trap_exit = True
    creation = await shared_beam.eval("erlang:system_info(creation)")
    assert await node.ping(shared_beam.name)
    begin = time.monotonic_ns()
    nobody = Pid(shared_beam.name, 1 << 28, 0, creation)
    proc.send(nobody, 1)
    proc.send(Reference(shared_beam.name, creation, [1 << 18, 1, 2]), 1)
    proc.exit(nobody, Atom("why"))
    ref = proc.monitor(nobody)
    assert await proc.receive(timeout=5) == (DOWN, ref, PROCESS, nobody, NOPROC)
    proc.link(nobody)
    assert await proc.receive(timeout=5) == (EXIT, nobody, NOPROC)
    with pytest.raises(tumen.NoProc):
        await node.call(nobody, 1)
    assert await node.ping(shared_beam.name)
    # It is the connection of the beginning.
    passed = time.monotonic_ns() - begin
    (connection,) = node.connections()
    assert connection.up_ns >= passed
