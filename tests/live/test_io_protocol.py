"""The I/O protocol: what a BEAM's processes print for us comes to us, and we print on a BEAM."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

import peers
import tumen
from nodes import make_node, until
from tumen import Atom

pytestmark = pytest.mark.asyncio

# D is our device; Req is what io does beneath its functions.
REQUEST = (
    "Req = fun(R) -> Ref = monitor(process, D), D ! {io_request, self(), Ref, R}, "
    "receive {io_reply, Ref, Reply} -> demonitor(Ref, [flush]), Reply; "
    "{'DOWN', Ref, _, _, Why} -> {down, Why} after 5000 -> no_reply end end, "
)


class Output:
    """What was printed on a node."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, tumen.Pid]] = []

    def __call__(self, text: str, pid: tumen.Pid) -> None:
        self.pieces.append((text, pid))

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)

    async def shows(self, text: str) -> None:
        await until(lambda: text in self.text)


@pytest.fixture
def output() -> Output:
    return Output()


@pytest_asyncio.fixture
async def node(backend: str, epmd: peers.Epmd, output: Output) -> AsyncIterator[tumen.Node]:
    async with make_node(cookie=peers.COOKIE, epmd="auto", on_output=output) as node:
        yield node


async def test_beam_prints_to_our_user(
    node: tumen.Node, shared_beam: peers.Beam, output: Output
) -> None:
    """By name or as group leader; what needs formatting is formatted by the BEAM."""
    await shared_beam.eval(
        'io:put_chars(D, "plain\\n"), io:format(D, "no args~~~n", []), '
        'io:format(D, "~p ~ts ~.3f~n", [{a, [1, "b"]}, <<"gr\\xc3\\xbc\\xc3\\x9f">>, 1.5]), '
        'io:put_chars(D, [$a, [<<"b\\xc3\\xbc">>, 8364], $\\n]), io:nl(D), '
        'io:write(D, {x, "y"}), io:fwrite(D, "~w", [q])',
        D=node.whereis("user"),
    )
    assert output.text == (
        'plain\nno args~\n{a,[1,"b"]} grüß 1.500\nabü€\n\n{x,"y"}q'.replace('"y"', "[121]")
    )
    assert {pid.node for _, pid in output.pieces} == {shared_beam.name}


async def test_what_we_run_on_a_beam_prints_here(
    node: tumen.Node, shared_beam: peers.Beam, output: Output
) -> None:
    assert await node.rpc(shared_beam.name, "io", "format", [b"rpc: ~p~n", [1]]) == Atom("ok")
    assert output.text == "rpc: 1\n"
    await node.spawn_remote(shared_beam.name, "io", "put_chars", ["spawned\n"])
    await output.shows("spawned\n")
    node.rpc_cast(shared_beam.name, "io", "format", [b"cast: ~p~n", [[Atom("x"), {1: 2}]]])
    await output.shows("cast: [x,#{1 => 2}]\n")
    pid = await shared_beam.eval(
        'P = spawn(fun() -> group_leader(G, self()), receive go -> io:format("went ~w", [self()]) '
        "end end), P ! go, P",
        G=node._running.group_leader,
    )
    await output.shows("went <0.")
    assert output.pieces[-1][1] == pid


async def test_elixir_prints_to_our_user(
    node: tumen.Node, elixir: peers.Beam, output: Output
) -> None:
    await elixir.eval(
        'IO.puts(d, "héllo"); IO.inspect(d, %{a: [1]}, []); IO.write(d, :atom)',
        d=node.whereis("user"),
    )
    assert output.text == "héllo\n%{a: [1]}\natom"


@pytest.mark.sanitizer
async def test_requests_have_the_answers_of_an_io_server(
    node: tumen.Node, shared_beam: peers.Beam, output: Output
) -> None:
    """The whole table: output, options, geometry, several requests, and no input."""

    async def ask(request: str) -> Any:
        return await shared_beam.eval(f"{REQUEST} Req({request})", D=node.whereis("user"))

    ok, eof, error = Atom("ok"), Atom("eof"), Atom("error")
    enotsup = (error, Atom("enotsup"))
    assert await ask('{put_chars, unicode, "1"}') == ok
    assert await ask("{put_chars, latin1, <<228>>}") == ok
    assert await ask('{put_chars, "2"}') == ok
    assert await ask('{put_chars, unicode, io_lib, format, ["~w", [{3}]]}') == ok
    assert await ask('{put_chars, latin1, io_lib, format, ["~s", ["4"]]}') == ok
    assert await ask('{put_chars, io_lib, format, ["5~n", []]}') == ok
    assert await ask("{put_chars, unicode, io_lib, write, [[x]]}") == ok
    assert output.text == "1ä2{3}45\n[x]"
    for request in (
        "{get_line, unicode, prompt}",
        "{get_line, prompt}",
        "{get_chars, unicode, prompt, 5}",
        "{get_chars, prompt, 5}",
        "{get_until, unicode, prompt, erl_scan, tokens, [1]}",
        "{get_until, prompt, erl_scan, tokens, [1]}",
    ):
        assert await ask(request) == eof
    assert await ask("{get_password, unicode}") == enotsup
    assert await ask("getopts") == [(Atom("binary"), True), (Atom("encoding"), Atom("unicode"))]
    assert await ask("{setopts, [binary, {encoding, unicode}]}") == ok
    assert await ask("{setopts, [{echo, false}]}") == enotsup
    assert await ask("{get_geometry, columns}") == enotsup
    assert await ask("{get_geometry, rows}") == enotsup
    several = '{requests, [{put_chars, unicode, "a"}, {requests, [{put_chars, unicode, io_lib, '
    several += 'format, ["~w", [b]]}, getopts]}, %s, {put_chars, unicode, "c"}]}'
    assert await ask(several % "getopts") == ok
    assert await ask(several % "what") == (error, Atom("request"))
    assert output.text.endswith("[x]abcab")
    for request in ("what", "{}", "{put_chars}", "{requests, x}", "[put_chars, unicode, $a]"):
        assert await ask(request) == (error, Atom("request"))
    for request in ("{put_chars, unicode, x}", "{put_chars, unicode, [<<255>>]}"):
        assert (await ask(request))[0] == error
    assert await ask('{put_chars, unicode, io_lib, format, ["~q", [1]]}') == (
        error,
        Atom("format"),
    )
    # Only io_lib's functions are run on the node of a printing process.
    assert await ask("{put_chars, unicode, erlang, halt, []}") == (error, Atom("halt"))
    assert output.text.endswith("[x]abcab")


async def test_io_functions_of_a_beam_work_on_our_user(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    assert await shared_beam.eval(
        "{io:get_line(D, ''), io:get_chars(D, '', 3), io:read(D, ''), "
        "io:columns(D), io:getopts(D), io:setopts(D, [binary])}",
        D=node.whereis("user"),
    ) == (
        Atom("eof"),
        Atom("eof"),
        Atom("eof"),
        (Atom("error"), Atom("enotsup")),
        [(Atom("binary"), True), (Atom("encoding"), Atom("unicode"))],
        Atom("ok"),
    )


async def test_output_of_a_process_keeps_its_order(
    node: tumen.Node, shared_beam: peers.Beam, output: Output
) -> None:
    """Also where it does not wait for replies, and only some of it takes formatting."""
    await shared_beam.eval(
        "[D ! {io_request, self(), I, case I rem 3 of "
        '0 -> {put_chars, unicode, io_lib, format, ["~w ", [I]]}; '
        '1 -> {put_chars, unicode, [integer_to_list(I), " "]}; '
        '2 -> {requests, [{put_chars, unicode, integer_to_list(I)}, {put_chars, unicode, " "}]} '
        "end} || I <- lists:seq(1, 300)], [receive {io_reply, I, ok} -> ok end "
        "|| I <- lists:seq(1, 300)]",
        D=node.whereis("user"),
    )
    assert output.text.split() == [str(number) for number in range(1, 301)]


async def test_many_processes_of_a_beam_print_at_the_same_time(
    node: tumen.Node, shared_beam: peers.Beam, output: Output
) -> None:
    await shared_beam.eval(
        "Ms = [element(2, spawn_monitor(fun() -> group_leader(D, self()), "
        '[io:format("~w.~w ", [I, J]) || J <- [1, 2, 3]] end)) || I <- lists:seq(1, 500)], '
        "[receive {'DOWN', M, _, _, normal} -> ok end || M <- Ms]",
        D=node.whereis("user"),
    )
    printed = output.text.split()
    assert len(printed) == len(set(printed)) == 1500
    for number in (1, 77, 500):
        of_one = [text for text in printed if text.startswith(f"{number}.")]
        assert of_one == [f"{number}.{nth}" for nth in (1, 2, 3)]


async def test_slow_node_does_not_hold_up_the_output_of_others(
    node: tumen.Node, shared_beam: peers.Beam, output: Output
) -> None:
    """Its formats wait for it; everybody else prints."""
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(*_: Any) -> str:
        asked.set()
        await answer.wait()
        return "slow"

    async def main(proc: tumen.Process) -> None:
        form = (Atom("put_chars"), Atom("unicode"), Atom("io_lib"), Atom("format"), [b"~w", [1]])
        proc.send(("user", node.name), (Atom("io_request"), proc.pid, 1, form))
        assert await proc.receive() == (Atom("io_reply"), 1, Atom("ok"))

    async with make_node("slow", cookie=peers.COOKIE, epmd="auto") as other:
        other.expose("io_lib", "format", slow)
        pid = other.spawn(main)
        await asked.wait()
        await shared_beam.eval('io:format(D, "~w", [quick])', D=node.whereis("user"))
        assert output.text == "quick"
        answer.set()
        assert await other.join(pid) == Atom("normal")
    assert output.text == "quickslow"


async def test_handler_that_raises_is_an_error_for_the_one_who_prints(
    backend: str, epmd: peers.Epmd, shared_beam: peers.Beam
) -> None:
    def broken(text: str, _pid: tumen.Pid) -> None:
        raise OSError("no paper")

    async with make_node(cookie=peers.COOKIE, epmd="auto", on_output=broken) as node:
        assert await shared_beam.eval(
            f'{REQUEST} Req({{put_chars, unicode, "x"}})', D=(Atom("user"), Atom(node.name))
        ) == (Atom("error"), Atom("terminated"))
        assert node.whereis("user") is not None


async def test_output_goes_to_the_standard_output_by_default(
    backend: str, epmd: peers.Epmd, shared_beam: peers.Beam, capsys: pytest.CaptureFixture[str]
) -> None:
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        await shared_beam.eval('io:format(D, "~ts~n", ["tea"])', D=node.whereis("user"))
        await node.put_chars("user", "and biscuits\n")
        assert capsys.readouterr().out == "tea\nand biscuits\n"


async def test_output_that_the_terminal_cannot_show_is_escaped(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    async with make_node() as node:
        await node.put_chars("user", "grün €\n")
        assert raw.getvalue() == b"gr\\xfcn \\u20ac\n"
        monkeypatch.setattr(sys, "stdout", None)
        await node.put_chars("user", "to nobody\n")


async def test_full_standard_output_holds_up_who_prints_on_a_beam(
    backend: str,
    epmd: peers.Epmd,
    shared_beam: peers.Beam,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a BEAM's own terminal does: the reply comes when it is written; nobody else waits."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w", encoding="utf-8") as stream, os.fdopen(reader, "rb") as pipe:
        monkeypatch.setattr(sys, "stdout", stream)
        async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
            assert await node.ping(shared_beam.name)
            device = node.whereis("user")
            prints = "io:put_chars(D, lists:duplicate(300000, $x)), io:put_chars(D, [10])"
            printing = asyncio.create_task(shared_beam.eval(prints, D=device))
            user: Any = node._running.services.io.process
            await until(lambda: user._backlog.count(shared_beam.name) == 1)
            assert await node.ping(shared_beam.name)
            assert await shared_beam.eval("io:columns(D)", D=device) == (
                Atom("error"),
                Atom("enotsup"),
            )
            assert not printing.done()
            assert await asyncio.to_thread(pipe.read, 300_001) == b"x" * 300_000 + b"\n"
            assert await printing == Atom("ok")


# -- printing on a BEAM


# An I/O server that keeps what it gets. Binaries are compared as lists: a binary pattern in an
# interpreted receive makes the emulator of OTP 28.5 crash now and then, whoever sends.
DEVICE = (
    "spawn(fun() -> (fun F(L) -> receive {io_request, P, R, {put_chars, unicode, C}} -> "
    'case binary_to_list(C) of "no" -> P ! {io_reply, R, {error, enospc}}, F(L); '
    '"die" -> exit(broken); "wait" -> F(L); _ -> P ! {io_reply, R, ok}, F([C | L]) end; '
    "{get, P} -> P ! {got, lists:reverse(L)}, F(L) end end)([]) end)"
)


async def test_python_prints_to_a_device_of_a_beam(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    device = await shared_beam.eval(DEVICE)

    async def main(proc: tumen.Process) -> None:
        await proc.print("three", 3, device=device)
        await proc.print("four", device=device, end="")

    await node.put_chars(device, "one\n")
    await node.put_chars(device, "zwölf €\n")
    assert await node.join(node.spawn(main)) in (Atom("normal"), Atom("noproc"))
    assert await shared_beam.eval("D ! {get, self()}, receive {got, L} -> L end", D=device) == [
        b"one\n",
        "zwölf €\n".encode(),
        b"three 3\n",
        b"four",
    ]
    with pytest.raises(tumen.RemoteError) as refused:
        await node.put_chars(device, "no")
    assert refused.value.reason == Atom("enospc")
    with pytest.raises(tumen.CallTimeout):
        await node.put_chars(device, "wait", timeout=0.05)
    with pytest.raises(tumen.ServerDied) as died:
        await node.put_chars(device, "die")
    assert died.value.reason == Atom("broken")
    with pytest.raises(tumen.NoProc):
        await node.put_chars(device, "gone")
    with pytest.raises(tumen.NoConnection):
        await node.put_chars(("user", "nobody@127.0.0.1"), "x")


async def test_python_prints_to_the_user_of_a_beam(node: tumen.Node, beam: peers.Beam) -> None:
    await node.put_chars(("user", beam.name), "hello from Python\n")
    await until(lambda: "hello from Python" in beam.log())


async def test_process_prints_to_its_group_leader(
    node: tumen.Node, shared_beam: peers.Beam, output: Output
) -> None:
    """Its own node's at first."""
    device = await shared_beam.eval(DEVICE)

    async def main(proc: tumen.Process) -> None:
        await proc.print("one", 2, sep="-")
        proc.group_leader = device
        await proc.print("over there")

    pid = node.spawn(main)
    await output.shows("one-2\n")
    assert await node.join(pid) in (Atom("normal"), Atom("noproc"))
    assert await shared_beam.eval("D ! {get, self()}, receive {got, L} -> L end", D=device) == [
        b"over there\n"
    ]


# -- trouble


async def test_user_survives_what_it_does_not_know(
    node: tumen.Node, shared_beam: peers.Beam, output: Output
) -> None:
    pid = node.whereis("user")
    await shared_beam.eval(
        "D ! x, D ! {io_request, x, y, z}, D ! {io_request, self()}, gen_server:cast(D, x), "
        "D ! {io_request, self(), 1, {put_chars, unicode, io_lib, format, x}}, "
        "D ! {io_request, self(), 2, {put_chars, unicode, io_lib, 7, []}}, "
        "D ! {io_request, self(), 3, {requests, [x | y]}}, "
        "[receive {io_reply, I, {error, _}} -> ok end || I <- [1, 2, 3]], "
        'io:put_chars(D, "still here")',
        D=pid,
    )
    assert output.text == "still here"
    assert node.whereis("user") == pid


async def test_killed_user_is_started_again(
    node: tumen.Node, shared_beam: peers.Beam, output: Output
) -> None:
    first = node._running.group_leader
    await shared_beam.eval("exit(D, kill)", D=first)
    await until(lambda: node.whereis("user") not in (None, first))
    await until(lambda: node._running.group_leader == node.whereis("user"))
    await shared_beam.eval('io:put_chars(D, "again")', D=node.whereis("user"))
    assert output.text == "again"


async def test_node_that_stops_leaves_who_prints_terminated(
    backend: str, epmd: peers.Epmd, shared_beam: peers.Beam
) -> None:
    """As on a BEAM whose group leader is gone."""
    async with make_node(cookie=peers.COOKIE, epmd="auto", on_output=Output()) as node:
        device = node.whereis("user")
        assert await node.ping(shared_beam.name)
    result = await asyncio.wait_for(
        shared_beam.eval('catch io:put_chars(D, "x")', D=device), timeout=20
    )
    assert result[0] == Atom("EXIT")
