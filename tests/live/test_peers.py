"""The harness itself: what a test may rely on when it drives a BEAM."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable

import pytest

import peers
from tumen import Atom


def test_terms_go_there_and_come_back(beam: peers.Beam) -> None:
    answer = beam.eval_sync("{X, length(L), #{X => self()}}", X=Atom("hello"), L=[1, 2, 3])
    assert answer[:2] == (Atom("hello"), 3)
    assert answer[2][Atom("hello")].node == beam.name


def test_elixir_terms_go_there_and_come_back(elixir: peers.Beam) -> None:
    assert elixir.eval_sync("{String.upcase(s), Enum.sum(l)}", s="abc", l=[1, 2]) == (b"ABC", 3)


def test_release_is_the_one_that_runs(beam: peers.Beam) -> None:
    assert beam.eval_sync("list_to_binary(erlang:system_info(otp_release))") == (
        beam.runtime.release.encode()
    )


def test_exception_there_is_an_error_here(beam: peers.Beam) -> None:
    with pytest.raises(peers.PeerError, match="error:the_reason"):
        beam.eval_sync("error(the_reason)")
    assert beam.eval_sync("ok") == Atom("ok")


def test_late_answer_is_an_error_and_harms_no_later_question(shared_beam: peers.Beam) -> None:
    with pytest.raises(peers.PeerError, match="no answer within"):
        shared_beam.eval_sync(
            "register(late, self()), receive go -> late after 30000 -> never end", timeout=0.01
        )
    peers.wait_for("the question", lambda: shared_beam.eval_sync("whereis(late) =/= undefined"))
    # Its answer is on its way before the next one.
    source = "R = monitor(process, late), late ! go, receive {'DOWN', R, _, _, _} -> done end"
    assert shared_beam.eval_sync(source) == Atom("done")


def test_killed_peer_ends_what_waits(beam: peers.Beam) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(beam.eval_sync, "erlang:register(here, self()), receive x -> y end")
        peers.wait_for("the question", lambda: beam.eval_sync("whereis(here) =/= undefined"))
        beam.kill()
        with pytest.raises(peers.PeerError, match="is gone"):
            waiting.result(10)
    with pytest.raises(peers.PeerError, match="not running"):
        beam.eval_sync("ok")


def test_node_that_cannot_start_says_why(otp: peers.Runtime, epmd: peers.Epmd) -> None:
    beam = peers.Beam(otp, epmd_port=epmd.port, args=["-boot", "no_such_boot"])
    with pytest.raises(peers.PeerError, match=r"ended before (?s:.*)no_such_boot"):
        beam.start()


def test_nodes_of_all_runtimes_see_each_other(
    beam: peers.Beam, start_beam: Callable[..., peers.Beam], elixir: peers.Beam
) -> None:
    other = start_beam(beam.runtime)
    assert other.eval_sync("net_adm:ping(N)", N=Atom(beam.name)) == Atom("pong")
    assert elixir.eval_sync("Node.ping(n)", n=Atom(beam.name)) == Atom("pong")


@pytest.mark.asyncio
async def test_questions_run_side_by_side_and_leave_the_loop_free(shared_beam: peers.Beam) -> None:
    slow = asyncio.create_task(
        shared_beam.eval("register(waits, self()), receive go -> slow end", timeout=30)
    )
    while await shared_beam.eval("whereis(waits) =:= undefined"):
        pass
    answers = await asyncio.gather(*(shared_beam.eval("N + 1", N=n) for n in range(50)))
    assert answers == list(range(1, 51))
    assert not slow.done()
    await shared_beam.eval("waits ! go")
    assert await slow == Atom("slow")
