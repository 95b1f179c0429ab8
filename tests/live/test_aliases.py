"""Process aliases between Python and BEAM processes: their whole life, and exit signals to them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import peers
import tumen
from idle import idle_process
from tumen import Atom

pytestmark = pytest.mark.asyncio

DOWN, PROCESS = Atom("DOWN"), Atom("process")


async def send_from_beam(beam: peers.Beam, alias: Any, *messages: Any) -> None:
    await beam.eval("[A ! M || M <- Ms], ok", A=alias, Ms=list(messages))


async def mail_after(node: tumen.Node, beam: peers.Beam, proc: tumen.Process) -> list[Any]:
    """What has come by the time that a message behind all others is here."""
    end = (Atom("end"), node._running.core.make_ref())
    await beam.eval("P ! M", P=proc.pid, M=end)
    mail = []
    while (message := await proc.receive(timeout=5)) != end:
        mail.append(message)
    return mail


@pytest.mark.sanitizer
async def test_beam_reaches_python_by_an_alias_until_unalias(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    alias = proc.alias()
    await send_from_beam(shared_beam, alias, 1, 2)
    assert await mail_after(node, shared_beam, proc) == [1, 2]
    assert proc.unalias(alias)
    assert not proc.unalias(alias)
    await send_from_beam(shared_beam, alias, 3)
    assert await mail_after(node, shared_beam, proc) == []


async def test_reply_alias_of_python_takes_one_message(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    alias = proc.alias(reply=True)
    await send_from_beam(shared_beam, alias, Atom("first"), Atom("second"))
    assert await mail_after(node, shared_beam, proc) == [Atom("first")]
    assert not proc.unalias(alias)


async def test_alias_of_a_monitor_lives_as_its_mode_says(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    pid = await shared_beam.eval("spawn(fun() -> receive after infinity -> ok end end)")
    kept = proc.monitor(pid, alias="explicit_unalias")
    bound = proc.monitor(pid, alias="demonitor")
    once = proc.monitor(pid, alias="reply_demonitor")
    plain = proc.monitor(pid)
    assert await node.ping(shared_beam.name)
    await shared_beam.eval(
        "[A ! {I, T} || I <- [1, 2], {A, T} <- [{K, k}, {B, b}, {O, o}, {P, p}]], ok",
        K=kept,
        B=bound,
        O=once,
        P=plain,
    )
    k, b, o = Atom("k"), Atom("b"), Atom("o")
    assert await mail_after(node, shared_beam, proc) == [(1, k), (1, b), (1, o), (2, k), (2, b)]
    # The one that was replied to is no monitor any more either.
    assert not proc.demonitor(once)
    node.exit(pid, Atom("over"))
    downs = [await proc.receive(timeout=5) for _ in range(3)]
    assert sorted(downs, key=repr) == sorted(
        [(DOWN, ref, PROCESS, pid, Atom("over")) for ref in (kept, bound, plain)], key=repr
    )
    await shared_beam.eval("K ! 3, B ! 3, ok", K=kept, B=bound)
    assert await mail_after(node, shared_beam, proc) == [3]
    assert proc.unalias(kept)


async def test_demonitor_ends_all_aliases_but_the_explicit_one(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    refs = {
        mode: proc.monitor(("tumen_peer", shared_beam.name), alias=mode)
        for mode in ("explicit_unalias", "demonitor", "reply_demonitor")
    }
    for ref in refs.values():
        assert proc.demonitor(ref)
    await shared_beam.eval("[R ! M || {M, R} <- L], ok", L=list(refs.items()))
    assert await mail_after(node, shared_beam, proc) == [b"explicit_unalias"]
    unaliased = proc.monitor(("tumen_peer", shared_beam.name), alias="reply_demonitor")
    assert proc.unalias(unaliased)
    await shared_beam.eval("R ! late, ok", R=unaliased)
    assert await mail_after(node, shared_beam, proc) == []
    assert proc.demonitor(unaliased)


@pytest.mark.sanitizer
async def test_python_reaches_a_beam_by_its_aliases(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    proc = await idle_process(node)
    waiting = asyncio.create_task(
        shared_beam.eval(
            "A = alias(), R = alias([reply]), P ! {A, R}, "
            "L = [receive X -> X after 5000 -> timeout end || _ <- [1, 2, 3]], unalias(A), "
            "P ! L, receive go -> ok after 5000 -> timeout end, "
            "receive Y -> {late, Y} after 0 -> L end",
            P=proc.pid,
        )
    )
    alias, reply = await proc.receive(timeout=5)
    for n in (1, 2):
        proc.send(alias, (Atom("a"), n))
        proc.send(reply, (Atom("r"), n))
    a, r = Atom("a"), Atom("r")
    assert await proc.receive(timeout=5) == [(a, 1), (r, 1), (a, 2)]
    proc.send(alias, Atom("never"))
    waiting.cancel()


async def test_exit_signals_reach_aliases_where_op_37_is_spoken(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    speaks = (await shared_beam.eval("erlang:system_info(otp_release)")) >= list(b"28")
    proc = await idle_process(node)
    proc.trap_exit = True
    alias, reply = proc.alias(), proc.alias(reply=True)
    if speaks:
        await shared_beam.eval(
            "exit(A, one), exit(R, two), R ! three, exit(R, never), exit(A, four), ok",
            A=alias,
            R=reply,
        )
        got = await mail_after(node, shared_beam, proc)
        assert [m if isinstance(m, Atom) else (m[0], m[2]) for m in got] == [
            (Atom("EXIT"), Atom("one")),
            (Atom("EXIT"), Atom("two")),
            Atom("three"),
            (Atom("EXIT"), Atom("four")),
        ]
    asked = asyncio.create_task(
        shared_beam.eval(
            "process_flag(trap_exit, true), A = alias(), P ! A, "
            "receive {'EXIT', P, W} -> W; done -> no_exit after 5000 -> timeout end",
            P=proc.pid,
        )
    )
    alias_there = await proc.receive(timeout=5)
    proc.exit(alias_there, Atom("why"))
    proc.send(alias_there, Atom("done"))
    assert await asked == (Atom("why") if speaks else Atom("no_exit"))
    # What an older release does not know was dropped here: the connection stands.
    assert await node.ping(shared_beam.name)


async def test_priority_messages_and_exits_of_otp_28_arrive_as_others(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    if (await shared_beam.eval("erlang:system_info(otp_release)")) < list(b"28"):
        # Nobody can send one: the function is not there.
        assert not await shared_beam.eval("erlang:function_exported(erlang, exit, 3)")
        return
    proc = await idle_process(node)
    proc.trap_exit = True
    alias = proc.alias()
    await shared_beam.eval(
        "erlang:send(A, first, [priority]), erlang:exit(A, second, [priority]), ok", A=alias
    )
    first, second = await mail_after(node, shared_beam, proc)
    assert (first, second[2]) == (Atom("first"), Atom("second"))


async def test_aliases_end_with_their_process(node: tumen.Node, shared_beam: peers.Beam) -> None:
    proc = await idle_process(node)
    alias = proc.alias()
    monitor = node.monitor(proc.pid)
    node.exit(proc.pid, Atom("kill"))
    await monitor
    before = node.info().messages_dropped
    await send_from_beam(shared_beam, alias, 1)
    assert await node.ping(shared_beam.name)
    other = await idle_process(node)
    assert await mail_after(node, shared_beam, other) == []
    assert node.info().messages_dropped > before
    with pytest.raises(tumen.ProcessExited):
        proc.alias()


async def test_gen_server_calls_of_a_beam_are_answered_by_alias(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    class Echo(tumen.GenServer):
        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            return request

    await node.start_server(Echo, name="echo")
    result = await shared_beam.eval(
        "[gen_server:call({echo, N}, I) || I <- lists:seq(1, 50)]", N=Atom(node.name)
    )
    assert result == list(range(1, 51))
