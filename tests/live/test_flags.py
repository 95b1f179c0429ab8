"""Our capability flags and operations against those of the installed releases.

What a release demands of a peer is asked of the release itself, and its header is read where the
machine has it: a flag that has become mandatory and that we do not set fails here, before an
operator sees `not_allowed`.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

import peers
import tumen
from faults.evil import FLAGS as EVIL_FLAGS
from faults.evil import (
    NIL,
    Evil,
    atom,
    frame,
    integer,
    pid,
    reference,
    reg_send,
    tuple_of,
)
from nodes import make_node
from tumen import Atom, Pid

ROOT = Path(__file__).resolve().parents[2]
FLAG = re.compile(r"^TM_FLAG\((\w+), (\d+)\)", re.MULTILINE)
OPCODE = re.compile(r"^TM_OPCODE\((\w+), (\d+), ", re.MULTILINE)
# Both ways in which dist.hrl writes a bit.
HRL = re.compile(r"-define\(DFLAG_(\w+), *(?:16#([0-9A-Fa-f]+)|\(16#([0-9A-Fa-f]+) bsl (\d+)\))\)")
# Our names of the same thing; OTP's two spellings in its own files.
SAME = {"HDR_ATOM_CACHE": "DIST_HDR_ATOM_CACHE"}
# Never on the wire, obsolete, or not of this protocol version.
NOT_OURS = {"ATOM_CACHE", "HIDDEN_ATOM_CACHE", "LOCAL_EXT", "NO_MAGIC", "RESERVED"}

FLAGS = {
    name: 1 << int(bit) for name, bit in FLAG.findall((ROOT / "csrc/dist/flags.def").read_text())
}
OPCODES = {
    name: int(number)
    for name, number in OPCODE.findall((ROOT / "csrc/dist/opcode.def").read_text())
}

# {erts_dflags, Default, Mandatory, Addable, Rejectable, StrictOrder}
DFLAGS = "erts_internal:get_dflags()"


def header() -> Path | None:
    """dist.hrl of the machine's own OTP."""
    runtime = peers.otp25()
    assert runtime is not None
    root = Path(runtime.command[0]).resolve().parent.parent
    return next(iter(sorted(root.glob("lib/kernel-*/include/dist.hrl"))), None)


def names(bits: int) -> list[str]:
    known = {value: name for name, value in FLAGS.items()}
    return [known.get(1 << bit, f"bit {bit}") for bit in range(64) if bits >> bit & 1]


async def announced(node: tumen.Node, beam: peers.Beam) -> int:
    """The flags that we say we have, as the handshake's other end reads them."""
    await node.connect(beam.name)
    (connection,) = node.connections()
    return connection.flags


@pytest.mark.asyncio
async def test_every_flag_that_the_release_demands_is_ours(
    backend: str, shared_beam: peers.Beam
) -> None:
    _, default, mandatory, *_ = await shared_beam.eval(DFLAGS)
    unknown = mandatory & ~sum(FLAGS.values())
    assert not unknown, f"OTP {shared_beam.runtime.release} demands {names(unknown)}"
    async with make_node(cookie=peers.COOKIE, epmd="auto", visible=True) as node:
        common = await announced(node, shared_beam)
    assert not mandatory & ~common, names(mandatory & ~common)
    assert mandatory & ~default == 0


@pytest.mark.asyncio
async def test_flags_that_we_leave_out_are_known_and_few(
    backend: str, shared_beam: peers.Beam
) -> None:
    _, default, *_ = await shared_beam.eval(DFLAGS)
    async with make_node(cookie=peers.COOKIE, epmd="auto", visible=True) as node:
        common = await announced(node, shared_beam)
    missing = set(names(default & ~common))
    # These change the form of frames, or add an operation; whatever else is news.
    assert missing <= {"DIST_HDR_ATOM_CACHE", "FRAGMENTS", "ALTACT_SIG"}, missing


@pytest.mark.asyncio
async def test_release_that_is_not_told_a_mandatory_flag_refuses(shared_beam: peers.Beam) -> None:
    # The list above is the release's own: each bit of it is really demanded.
    _, _, mandatory, *_ = await shared_beam.eval(DFLAGS)
    alive = list(shared_beam.name.partition("@")[0].encode())
    port = await shared_beam.eval(
        "{port, P, _} = erl_epmd:port_please(Name, {127,0,0,1}), P", Name=alive
    )
    whole = EVIL_FLAGS & ~FLAGS["MANDATORY_25_DIGEST"]
    for bit in range(64):
        if mandatory >> bit & 1:
            flags = whole & ~(1 << bit)
            with Evil(cookie=peers.COOKIE, flags=flags).dial(("127.0.0.1", port)) as evil:
                evil.say(evil.send_name())
                assert evil.said() == b"snot_allowed", names(1 << bit)
    with Evil(cookie=peers.COOKIE, flags=whole).dial(("127.0.0.1", port)) as evil:
        evil.shake()


def test_bits_are_those_of_the_header_of_the_machine() -> None:
    path = header()
    if path is None:
        pytest.skip("needs_erlang: no dist.hrl")
    found = {}
    for name, plain, shifted, by in HRL.findall(path.read_text()):
        found[name] = int(plain, 16) if plain else int(shifted, 16) << int(by)
    assert len(found) > 20, "the header is written in another way"
    for name, value in found.items():
        if name in NOT_OURS:
            continue
        assert FLAGS.get(SAME.get(name, name)) == value, f"{name} is {value:#x} in {path}"


def test_flags_of_this_tree_have_one_bit_each() -> None:
    assert len(set(FLAGS.values())) == len(FLAGS)
    assert all(value.bit_count() == 1 for value in FLAGS.values())


@pytest.mark.asyncio
async def test_operations_that_we_know_are_those_of_the_release(
    backend: str, shared_beam: peers.Beam
) -> None:
    # OTP ends a connection for a number that it does not know, and for nothing else in this shape:
    # from a process of ours to a dead one, with as many elements as the operation has.
    alive = list(shared_beam.name.partition("@")[0].encode())
    port = await shared_beam.eval(
        "{port, P, _} = erl_epmd:port_please(Name, {127,0,0,1}), P", Name=alive
    )
    altact = bool((await shared_beam.eval(DFLAGS))[1] & FLAGS["ALTACT_SIG"])
    dead = await shared_beam.eval(
        "{P, R} = spawn_monitor(fun() -> ok end), receive {'DOWN', R, _, _, _} -> P end"
    )
    known = {number for number in range(1, 64) if await _stays(port, dead, number)}
    expected = set(OPCODES.values())
    # UNLINK without an id went with OTP 26; 37 came with 28.
    expected -= {OPCODES["UNLINK"]} if altact else {OPCODES["ALTACT_SIG_SEND"]}
    assert known == expected
    assert await shared_beam.eval("ok") == Atom("ok")


async def _stays(port: int, dead: Pid, number: int) -> bool:
    """Whether a connection outlives that operation."""
    row = re.search(
        rf'^TM_OPCODE\(\w+, {number}, \w+, "([^"]*)", ([01])\)',
        (ROOT / "csrc/dist/opcode.def").read_text(),
        re.MULTILINE,
    )
    fields, payload = row.groups() if row else ("FT", "0")
    evil = Evil(cookie=peers.COOKIE)
    theirs = pid(dead.node, dead.id, dead.serial, dead.creation)
    # Answers carry the reference of whoever asked.
    answer = number in (21, 28, 31, 32)
    ref = reference(dead.node, dead.creation, 1, 2, 3)
    values = {
        **dict.fromkeys("TW*", theirs),
        **dict.fromkeys("FIG", evil.pid(1)),
        **dict.fromkeys("XCN", atom("nobody_at_all")),
        "R": ref if answer else evil.ref(1, 2, 3),
        "A": ref,
        "K": NIL,
        "O": NIL,
        "U": integer(77),
        "L": integer(0),
        "Y": atom("notsup"),
        "M": tuple_of(atom("nobody"), atom("knows"), integer(0)),
    }
    control = tuple_of(integer(number), *[values[letter] for letter in fields])
    request = tuple_of(atom("is_auth"), atom(evil.name))
    call = tuple_of(atom("$gen_call"), tuple_of(evil.pid(1), evil.ref(9, 0, 0)), request)

    def ask() -> bool:
        with evil.dial(("127.0.0.1", port)).shake():
            evil.send(frame(control, NIL if payload == "1" else None))
            try:
                evil.send(reg_send(evil.pid(1), "net_kernel", call))
                while not evil.frame().endswith(atom("yes")):
                    pass
                return True
            except (OSError, EOFError):
                return False

    return await asyncio.to_thread(ask)
