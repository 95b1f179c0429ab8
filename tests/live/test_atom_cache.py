"""Messages of a BEAM whose atoms are numbers in the cache of the connection."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

import flags
import peers
import tumen
from nodes import Counter, make_node, until
from tumen import Atom

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture(params=["atom_cache", "both"])
async def node(
    request: pytest.FixtureRequest, backend: str, epmd: peers.Epmd
) -> AsyncIterator[tumen.Node]:
    """A node with an atom cache, alone and with fragments."""
    app = tumen.App()
    app.server("counter", 10)(Counter)
    async with make_node(
        app=app,
        cookie=peers.COOKIE,
        epmd="auto",
        listen_host="127.0.0.1",
        flags=flags.FORMS[request.param],
    ) as node:
        yield node


def cached(node: tumen.Node, beam: peers.Beam) -> int:
    """Atoms in the cache of the connection to that BEAM."""
    (connection,) = [c for c in node.connections() if c.name == beam.name]
    return connection.atoms


async def collect(
    node: tumen.Node, beam: peers.Beam, count: int, ask: Callable[[tumen.Pid], Any]
) -> list[Any]:
    """What a process gets whose pid `ask` is told: so many messages.

    The nodes are connected before: what a BEAM has queued until then comes without a cache.
    """
    assert await node.ping(beam.name)
    got: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

    async def collector(proc: tumen.Process) -> None:
        got.set_result([await proc.receive(timeout=30) for _ in range(count)])

    pid = node.spawn(collector)
    await ask(pid)
    return await asyncio.wait_for(got, 30)


async def test_calls_both_ways_and_what_they_leave_in_the_cache(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    assert await node.ping(shared_beam.name)
    (connection,) = node.connections()
    assert connection.flags & flags.ATOM_CACHE
    for n in range(1, 4):
        answer = await shared_beam.eval(
            "gen_server:call({counter, N}, {add, 5})", N=Atom(node.name)
        )
        assert answer == 10 + 5 * n
        assert await node.rpc(shared_beam.name, "lists", "seq", [1, n]) == list(range(1, n + 1))
    assert 0 < cached(node, shared_beam) < 200


async def test_every_signal_of_a_beam_arrives(node: tumen.Node, shared_beam: peers.Beam) -> None:
    """Identifiers, names and reasons in control messages are numbers of the cache too."""
    ended = asyncio.get_running_loop().create_future()
    traps = asyncio.Event()

    async def watched(proc: tumen.Process) -> None:
        proc.trap_exit = True
        traps.set()
        async for message in proc:
            match message:
                case (Atom("EXIT"), _, reason):
                    ended.set_result(reason)
                    raise tumen.Exit(Atom("told"))

    pid = node.spawn(watched, name="watched")
    await traps.wait()
    result = await shared_beam.eval(
        "Self = self(), "
        "{P, M} = spawn_monitor(fun() -> "
        "  R = monitor(process, {watched, N}), link(Pid), Self ! {ready, self()}, "
        "  receive go -> unlink(Pid), exit(Pid, {some, [reason]}) end, "
        "  receive {'DOWN', R, process, Who, Why} -> exit({Who, Why}) end end), "
        "receive {ready, P} -> P ! go end, "
        "receive {'DOWN', M, process, P, Reason} -> Reason end",
        N=Atom(node.name),
        Pid=pid,
    )
    assert result == ((Atom("watched"), Atom(node.name)), Atom("told"))
    assert await asyncio.wait_for(ended, 10) == (Atom("some"), [Atom("reason")])


async def test_atoms_of_any_script_and_length_keep_their_text(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """One atom of more than 255 bytes makes the lengths of its header two bytes wide."""
    texts = ["", "ok", "é" * 200, "\U0001f600" * 255, "a" * 255, "_", "Elixir.Some.Module"]
    atoms = [Atom(text) for text in texts]

    async def ask(pid: tumen.Pid) -> None:
        for _ in range(3):  # new at first, then known
            await shared_beam.eval("P ! {atoms, As}, ok", P=pid, As=atoms)

    for message in await collect(node, shared_beam, 3, ask):
        assert message == (Atom("atoms"), atoms)


async def test_message_of_300_atoms_has_255_of_them_in_its_header(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    texts = [f"zz_{n}_{node.name}" for n in range(300)]

    async def ask(pid: tumen.Pid) -> None:
        for _ in range(2):
            await shared_beam.eval(
                "P ! [{A, A} || A <- As], ok", P=pid, As=[Atom(t) for t in texts]
            )

    for message in await collect(node, shared_beam, 2, ask):
        assert message == [(Atom(t), Atom(t)) for t in texts]
    assert cached(node, shared_beam) > 200


@pytest.mark.sanitizer
async def test_slots_that_are_used_again_and_again_name_the_right_atoms(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """Three times as many atoms as there are slots, so that each is taken from another."""
    texts = [hashlib.sha1(f"{n}{node.name}".encode()).hexdigest() for n in range(6000)]
    count = 200

    async def ask(pid: tumen.Pid) -> None:
        await shared_beam.eval(
            "As = list_to_tuple([binary_to_atom(T) || T <- Ts]), "
            "[P ! {N, [element(1 + (N * 37 + I * I) rem size(As), As) || I <- lists:seq(1, 60)]} "
            " || N <- lists:seq(1, Count)], ok",
            P=pid,
            Ts=[text.encode() for text in texts],
            Count=count,
        )

    for n, (number, atoms) in enumerate(await collect(node, shared_beam, count, ask), 1):
        expected = [Atom(texts[(n * 37 + i * i) % 6000]) for i in range(1, 61)]
        assert (number, atoms) == (n, expected)
    assert cached(node, shared_beam) <= 2048


async def test_terms_of_every_kind_are_what_they_are_without_a_cache(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    """The same terms by way of the cache, and encoded by the BEAM into a binary."""
    source = (
        "Ref = make_ref(), Port = hd(erlang:ports()), X = free, "
        "Term = #{pid => self(), ref => Ref, port => Port, export => fun lists:map/2, "
        "         atoms => [a, b, [c | d]], improper => [x | y], big => 1 bsl 100, float => 1.5, "
        '         {tuple, key} => <<3:5>>, binary => <<"bytes">>, string => "text", '
        "         [list, key] => #{nested => {deep, [deeper, #{deepest => ok}]}}, X => X}, "
        "P ! {Term, term_to_binary(Term)}, ok"
    )

    async def ask(pid: tumen.Pid) -> None:
        await shared_beam.eval(source, P=pid)

    ((term, encoded),) = await collect(node, shared_beam, 1, ask)
    assert term == tumen.decode(encoded)


async def test_reconnecting_starts_with_an_empty_cache(node: tumen.Node, beam: peers.Beam) -> None:
    for _ in range(3):
        assert await node.ping(beam.name)
        assert cached(node, beam) < 20
        answer = await beam.eval("gen_server:call({counter, N}, get)", N=Atom(node.name))
        assert answer == 10
        assert cached(node, beam)
        await beam.eval("erlang:disconnect_node(N), ok", N=Atom(node.name))
        await until(lambda: not node.nodes())


async def test_two_of_ours_with_the_cache_negotiated(node: tumen.Node) -> None:
    """We read every header and write an empty one."""
    async with make_node(cookie=peers.COOKIE, epmd="auto", flags=flags.FORMS["both"]) as other:
        assert await other.call(("counter", node.name), (Atom("add"), 1)) == 11
        assert await other.ping(node.name)
