"""The commands against real BEAMs, and the syntax of terms against Erlang's own."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

import peers
from cli_runner import answer, serving, tumen
from strategies import TermSource, same
from tumen import Atom, Export, Pid, Port, Reference
from tumen.cli.syntax import format_term, parse_term


def run(beam: peers.Beam, *args: str) -> Any:
    """One command with the cookie and the port mapper of that node."""
    return tumen(*args, epmd_port=beam.epmd_port, TUMEN_COOKIE=beam.cookie)


# -- commands --------------------------------------------------------------------------------------


def test_ping_says_pong(backend: str, shared_beam: peers.Beam) -> None:
    done = run(shared_beam, "ping", shared_beam.name)
    assert (done.returncode, done.stdout, done.stderr) == (0, "pong\n", "")


def test_call_reaches_a_gen_server(shared_beam: peers.Beam) -> None:
    done = run(shared_beam, "call", shared_beam.name, "kernel_sup", "count_children")
    assert done.returncode == 0, done.stderr
    counts = dict(parse_term(done.stdout))
    assert counts[Atom("active")] > 1


def test_call_of_an_unknown_name_exits_1(shared_beam: peers.Beam) -> None:
    done = run(shared_beam, "call", shared_beam.name, "nobody_here", "x")
    assert done.returncode == 1
    assert "no such process" in done.stderr


def test_rpc_returns_what_erlang_returns(backend: str, shared_beam: peers.Beam) -> None:
    done = run(shared_beam, "rpc", shared_beam.name, "lists", "seq", "[1, 5]")
    assert (done.returncode, done.stdout) == (0, "[1,2,3,4,5]\n")
    done = run(shared_beam, "rpc", shared_beam.name, "erlang", "node")
    assert parse_term(done.stdout) == Atom(shared_beam.name)
    done = run(shared_beam, "rpc", shared_beam.name, "string", "uppercase", '["grüß"]', "--json")
    assert json.loads(done.stdout)["value"] == "GRÜSS"


def test_what_the_function_prints_is_not_the_answer(shared_beam: peers.Beam) -> None:
    done = run(shared_beam, "rpc", shared_beam.name, "io", "format", '["~p~n", [{a, "b"}]]')
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", '{a,"b"}\n')


def test_rpc_of_one_that_fails_exits_1_with_class_and_reason(shared_beam: peers.Beam) -> None:
    for args, said in [
        (["erlang", "exit", "[{bad, luck}]"], "exit: {bad,luck}"),
        (["erlang", "throw", "[ball]"], "throw: ball"),
        (["erlang", "atom_to_list", "[1]"], "error: badarg"),
        (["no_such_module", "f"], "error: undef"),
    ]:
        done = run(shared_beam, "rpc", shared_beam.name, *args)
        assert done.returncode == 1
        assert said in done.stderr


def test_rpc_without_an_answer_in_time_exits_4(shared_beam: peers.Beam) -> None:
    done = run(shared_beam, "rpc", shared_beam.name, "timer", "sleep", "[2000]", "--timeout", "0.3")
    assert done.returncode == 4


def test_another_cookie_is_said_to_be_one(shared_beam: peers.Beam) -> None:
    done = tumen("ping", shared_beam.name, epmd_port=shared_beam.epmd_port,
                 TUMEN_COOKIE="not-the-cookie-of-that-node")  # fmt: skip
    assert done.returncode == 1
    assert "cookie" in done.stderr


def test_names_asks_otps_port_mapper(shared_beam: peers.Beam) -> None:
    listed = json.loads(answer("names", "--json", epmd_port=shared_beam.epmd_port))
    names = {entry["name"] for entry in listed["names"]}
    assert shared_beam.name.partition("@")[0] in names


def test_otp_nodes_find_each_other_by_our_port_mapper(backend: str) -> None:
    runtimes = [found for found in (peers.otp25(), peers.otp28()) if found is not None]
    if not runtimes:
        pytest.skip("needs_erlang: any")
    port = peers.free_port()
    with (
        serving("epmd", "--epmd-port", str(port)) as server,
        peers.Beam(runtimes[0], epmd_port=port) as one,
        peers.Beam(runtimes[-1], epmd_port=port) as two,
    ):
        assert server.ready["backend"] == backend
        assert one.eval_sync("net_adm:ping(N)", N=Atom(two.name)) == Atom("pong")
        ok, names = one.eval_sync("net_adm:names({127,0,0,1})")
        assert ok == Atom("ok")
        assert {"".join(map(chr, name)) for name, _ in names} == {
            beam.name.partition("@")[0] for beam in (one, two)
        }


def test_serve_is_called_by_elixir(elixir: peers.Beam) -> None:
    done = run(elixir, "rpc", elixir.name, "Elixir.String", "upcase", '[<<"grüß"/utf8>>]')
    assert (done.returncode, done.stdout) == (0, '<<"GRÜSS"/utf8>>\n')


# -- the demo with BEAMs ---------------------------------------------------------------------------


def test_the_demo_with_beams_loses_nothing(backend: str) -> None:
    if peers.otp25() is None or peers.otp28() is None:
        pytest.skip("needs_erlang: both releases")
    done = tumen("demo", "--require-beam", "--seconds", "2", "--json",
                 TUMEN_OTP28_ROOT=str(peers.OTP28_ROOT))  # fmt: skip
    report = json.loads(done.stdout)
    assert report["failures"] == []
    assert done.returncode == 0
    joined = {node["name"]: node["what"] for node in report["nodes"]}
    assert joined["beam1@127.0.0.1"] == "OTP 25"
    assert joined["beam2@127.0.0.1"] == "OTP 28"
    ways = {(row["from"], row["to"]) for row in report["traffic"]}
    hub = "py1@127.0.0.1"
    assert ways == {pair for peer in joined for pair in ((hub, peer), (peer, hub))}
    pings = [check for check in report["checks"] if check["stage"].startswith("Pings")]
    assert len(pings) == 4 * 3


# -- syntax ----------------------------------------------------------------------------------------


def textless(term: Any) -> bool:
    """True where a term holds what has no text, or none that Erlang can print."""
    match term:
        case Pid() | Port() | Reference():
            return True
        case Export():
            # io_lib takes the UTF-8 of these names for Latin-1.
            return not (term.module + term.function).isascii()
        case list() | tuple():
            return any(map(textless, term))
    if hasattr(term, "items") and callable(term.items):
        return any(map(textless, term.items())) or any(
            textless(part) for pair in term.items() for part in pair
        )
    if hasattr(term, "tail"):
        return textless(list(term.items)) or textless(term.tail)
    return False


@pytest.fixture(scope="module")
def written() -> list[Any]:
    source = TermSource(random.Random(7).getrandbits(32))
    terms = (source.term() for _ in range(3000))
    return [term for term in terms if not textless(term)][:1000]


def test_erlang_reads_what_we_print(shared_beam: peers.Beam, written: list[Any]) -> None:
    texts = [format_term(term).encode() for term in written]
    read = (
        '[begin {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(T) ++ "."),'
        " {ok, Exprs} = erl_parse:parse_exprs(Tokens),"
        " {value, V, _} = erl_eval:exprs(Exprs, []), V =:= W end || {T, W} <- lists:zip(Ts, Ws)]"
    )
    answers = shared_beam.eval_sync(read, Ts=texts, Ws=written, timeout=60)
    wrong = [text.decode() for text, right in zip(texts, answers, strict=True) if right is not True]
    assert wrong == []


def test_we_read_what_erlang_prints(shared_beam: peers.Beam, written: list[Any]) -> None:
    printing = '[unicode:characters_to_binary(io_lib:format("~0tp", [T])) || T <- Ts]'
    texts = shared_beam.eval_sync(printing, Ts=written, timeout=60)
    for term, text in zip(written, texts, strict=True):
        assert same(parse_term(text.decode()), term), text.decode()
