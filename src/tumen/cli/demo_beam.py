"""BEAM nodes of the demo, and the Erlang that they run.

Nothing is compiled for them: a runtime without a compiler has ``erl_eval``, and what follows is
sent to it as text, over the connection that it is there to show.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tumen import Atom, RemoteError

from .demo_app import ANSWER, NAME, RPC_STRIDE
from .syntax import format_term

if TYPE_CHECKING:
    from tumen import Node

__all__ = ["beams_here", "boot", "evaluate", "source"]

# Flags that the user of this machine gives to every BEAM would make another one than we start.
NOT_FOR_BEAMS: Final = ("ERL_FLAGS", "ERL_AFLAGS", "ERL_ZFLAGS", "ERL_LIBS", "ROOTDIR", "BINDIR")

# Joins the hub, and halts when standard input closes: with the demo, however that ended.
BOOT: Final = """
    spawn(fun() -> io:get_line(""), erlang:halt(0, [{flush, false}]) end),
    case net_adm:ping($hub) of
        pong -> ok;
        pang -> io:put_chars("pang from the demo\\n"), erlang:halt(1)
    end.
"""

# The same server as `Ledger` in Python.
SERVER: Final = """
    Loop = fun Loop(Total, Seen) ->
        receive
            {'$gen_call', EchoFrom, {echo, Term}} ->
                gen_server:reply(EchoFrom, {echoed, Term}),
                Loop(Total, Seen);
            {'$gen_call', AddFrom, {add, Number}} ->
                gen_server:reply(AddFrom, Total + Number),
                Loop(Total + Number, Seen);
            {'$gen_call', ReportFrom, {report, ReportKey}} ->
                gen_server:reply(ReportFrom, maps:get(ReportKey, Seen, {0, 0})),
                Loop(Total, Seen);
            {seq, Key, N} ->
                {Count, Wrong} = maps:get(Key, Seen, {0, 0}),
                Now = case N of Count -> Wrong; _ -> Wrong + 1 end,
                Loop(Total, Seen#{Key => {Count + 1, Now}});
            _ ->
                Loop(Total, Seen)
        end
    end,
    register($name, spawn(fun() -> Loop(0, #{}) end)).
"""

# Monitors a process, tells it to go, and returns the reason of its end.
WATCH: Final = """
    Ref = erlang:monitor(process, {$target, $node}),
    {$target, $node} ! go,
    receive {'DOWN', Ref, process, _, Reason} -> Reason
    after $answer -> timeout
    end.
"""

# Waits for the loss of a node; CUT_TOLD returns what was seen.
CUT_WATCH: Final = """
    Self = self(),
    Watcher = spawn(fun() ->
        erlang:monitor_node($node, true),
        Ref = erlang:monitor(process, {$name, $node}),
        Self ! ready,
        Down = receive {'DOWN', Ref, process, _, Reason} -> Reason after $answer -> timeout end,
        Node = receive {nodedown, $node} -> nodedown after $answer -> timeout end,
        receive {tell, To} -> To ! {told, Down, Node} after 4 * $answer -> ok end
    end),
    register(tumen_demo_cut, Watcher),
    receive ready -> ok after $answer -> timeout end.
"""

CUT_TOLD: Final = """
    tumen_demo_cut ! {tell, self()},
    receive {told, Down, Node} -> {Down, Node} after $answer -> {timeout, timeout} end.
"""

# The same traffic as `drive` in Python, with the same tally.
DRIVE: Final = """
    Now = fun() -> erlang:monotonic_time(microsecond) end,
    Deadline = Now() + $milliseconds * 1000,
    Server = {$name, $node},
    Turn = fun(N) ->
        case N rem $stride =:= $stride - 1 of
            true -> rpc:call($node, $name, add, [N, 1], $answer) =:= N + 1;
            false -> gen_server:call(Server, {echo, N}, $answer) =:= {echoed, N}
        end
    end,
    Work = fun Work(Key, N, Wrong, Times) ->
        Start = Now(),
        case Start >= Deadline of
            true ->
                {Received, Disordered} = gen_server:call(Server, {report, Key}, $answer),
                exit({done, N, Received, Wrong + Disordered, Times});
            false ->
                Right = Turn(N),
                Time = Now() - Start,
                Server ! {seq, Key, N},
                Mistakes = case Right of true -> Wrong; false -> Wrong + 1 end,
                Work(Key, N + 1, Mistakes, [Time | Times])
        end
    end,
    Crew = [spawn_monitor(fun() -> Work({node(), I}, 0, 0, []) end) || I <- lists:seq(1, $workers)],
    Ends = [receive {'DOWN', Ref, process, Pid, End} -> End end || {Pid, Ref} <- Crew],
    Done = [End || End <- Ends, element(1, End) =:= done],
    Failed = [End || End <- Ends, element(1, End) =/= done],
    All = lists:sort(lists:append([Times || {done, _, _, _, Times} <- Done])),
    Rank = fun(Percent) ->
        case All of
            [] -> 0;
            _ -> lists:nth(max(1, (length(All) * Percent + 99) div 100), All)
        end
    end,
    {length(All),
     lists:sum([Sent || {done, Sent, _, _, _} <- Done]),
     lists:sum([Received || {done, _, Received, _, _} <- Done]),
     lists:sum([Wrong || {done, _, _, Wrong, _} <- Done]),
     Rank(50), Rank(99),
     unicode:characters_to_binary([io_lib:format("~0tp ", [Reason]) || Reason <- Failed])}.
"""


def source(template: str, **values: Any) -> str:
    """A text of Erlang with its ``$names`` filled in."""
    values |= {"name": Atom(NAME), "answer": int(ANSWER * 1000), "stride": RPC_STRIDE}
    # Longer names first: one may begin another.
    for name in sorted(values, key=len, reverse=True):
        template = template.replace(f"${name}", format_term(values[name]))
    return template


async def evaluate(node: Node, beam: str, text: str, timeout: float = ANSWER) -> Any:
    """The value of Erlang expressions on a BEAM."""
    match await node.rpc(beam, "erl_scan", "string", [[ord(char) for char in text]]):
        case (Atom("ok"), tokens, _):
            pass
        case error:
            raise RemoteError(f"erl_scan: {format_term(error)}", peer=beam)
    match await node.rpc(beam, "erl_parse", "parse_exprs", [tokens]):
        case (Atom("ok"), expressions):
            pass
        case error:
            raise RemoteError(f"erl_parse: {format_term(error)}", peer=beam)
    _, value, _ = await node.rpc(beam, "erl_eval", "exprs", [expressions, []], timeout=timeout)
    return value


def beams_here() -> list[tuple[str, list[str], dict[str, str]]]:
    """The BEAMs of this machine: name, command and what its environment needs.

    ``erl`` of the path; and a runtime that was unpacked in TUMEN_OTP28_ROOT and never installed.
    """
    found: list[tuple[str, list[str], dict[str, str]]] = []
    if erl := shutil.which("erl"):
        found.append(("beam1", [erl], {}))
    if root := os.environ.get("TUMEN_OTP28_ROOT"):
        binaries = next(iter(Path(root).glob("erts-*/bin")), None)
        if binaries is not None:
            env = {"ROOTDIR": root, "BINDIR": str(binaries), "EMU": "beam", "PROGNAME": "erl"}
            found.append(("beam2", [str(binaries / "erlexec")], env))
    return found


def boot(
    command: list[str], more: dict[str, str], name: str, hub: str, epmd_port: int, home: Path
) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a BEAM that joins the hub; its cookie lies in `home`."""
    env = {key: value for key, value in os.environ.items() if key not in NOT_FOR_BEAMS}
    env |= more
    env |= {
        "HOME": str(home),
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_CRASH_DUMP_SECONDS": "0",
    }
    args = [
        *("+S", "1:1", "+sbwt", "none", "-noshell", "-name", name, "-start_epmd", "false"),
        *("-kernel", "inet_dist_use_interface", "{127,0,0,1}"),
        *("-eval", " ".join(source(BOOT, hub=Atom(hub)).split())),
    ]
    return [*command, *args], env


def cookie_home(folder: Path) -> str:
    """A cookie of the demo's own, in a file that a BEAM with this HOME reads."""
    cookie = secrets.token_urlsafe(24) + "x"
    file = folder / ".erlang.cookie"
    file.touch(mode=0o600)
    file.write_text(cookie)
    file.chmod(0o400)
    return cookie
