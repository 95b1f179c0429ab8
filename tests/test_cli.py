"""The commands against nodes in Python: output, exit codes, signals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import peers
from cli_runner import COUNTER, ROOT, answer, environment, serving, tumen

NODE = "py@127.0.0.1"


@pytest.fixture(scope="module")
def mapper() -> Iterator[int]:
    """`tumen epmd`, for all tests of this file; its port."""
    port = peers.free_port()
    with serving("epmd", "--epmd-port", str(port)) as server:
        assert server.ready["port"] == port
        yield port


@pytest.fixture(scope="module")
def counter(mapper: int) -> Iterator[int]:
    """`tumen serve examples/counter.py`, for all tests that do not end the counter."""
    with serving("serve", COUNTER, "--name", NODE, epmd_port=mapper) as server:
        assert server.ready["node"] == NODE
        assert server.ready["visibility"] == "hidden"
        yield mapper


# -- answers -------------------------------------------------------------------------------------


def test_ping_says_pong(counter: int) -> None:
    assert answer("ping", NODE, epmd_port=counter) == "pong"


def test_ping_of_an_unknown_node_says_pang_and_why(counter: int) -> None:
    done = tumen("ping", "nobody@127.0.0.1", epmd_port=counter)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "pang: the port mapper does not know that node" in done.stderr


def test_call_prints_the_reply_in_erlang_syntax(counter: int) -> None:
    request = '{echo, {ok, [1.0, "text", <<"gr\\x{fc}n"/utf8>>, #{a => nil}]}}'
    reply = answer("call", NODE, "counter", request, epmd_port=counter)
    assert reply == '{ok,[1.0,"text",<<"grün"/utf8>>,#{a => nil}]}'


def test_call_with_json_prints_term_and_plain_value(counter: int) -> None:
    done = tumen("call", NODE, "counter", "{echo, {ok, #{n => 1}}}", "--json", epmd_port=counter)
    assert json.loads(done.stdout) == {
        "ok": True,
        "node": NODE,
        "term": "{ok,#{n => 1}}",
        "value": ["ok", {"n": 1}],
    }


def test_an_error_reply_is_printed_and_exits_1(counter: int) -> None:
    done = tumen("call", NODE, "counter", "what_is_this", epmd_port=counter)
    assert (done.returncode, done.stdout) == (1, "{error,unknown_request}\n")


def test_rpc_prints_the_result(counter: int) -> None:
    assert answer("rpc", NODE, "demo", "add", "[2, 3]", epmd_port=counter) == "5"
    result = answer("rpc", NODE, "Elixir.ML", "predict", "[[1.0, 2.0]]", epmd_port=counter)
    assert result == '#{score => 1.5,model => <<"mean">>}'


def test_rpc_of_one_that_raises_exits_1_with_class_and_reason(counter: int) -> None:
    done = tumen("rpc", NODE, "demo", "fail", '[<<"no luck">>]', epmd_port=counter)
    assert done.returncode == 1
    assert 'error: {python_error,<<"builtins.ValueError">>' in done.stderr


def test_rpc_of_what_is_not_exposed_is_undef(counter: int) -> None:
    done = tumen("rpc", NODE, "os", "getpid", epmd_port=counter)
    assert done.returncode == 1
    assert "error: undef" in done.stderr


def test_call_of_an_unknown_name_exits_1(counter: int) -> None:
    assert tumen("call", NODE, "nobody", "x", epmd_port=counter).returncode == 1


def test_call_without_an_answer_in_time_exits_4(counter: int) -> None:
    done = tumen("call", NODE, "counter", "{slow, 1500}", "--timeout", "0.2", epmd_port=counter)
    assert done.returncode == 4


def test_call_of_an_unknown_node_exits_3_and_says_why(counter: int) -> None:
    done = tumen("call", "nobody@127.0.0.1", "counter", "get", epmd_port=counter)
    assert done.returncode == 3
    assert "the port mapper does not know that node" in done.stderr


def test_another_cookie_exits_3_and_says_so(counter: int) -> None:
    done = tumen(
        "rpc", NODE, "demo", "add", "[1, 2]", epmd_port=counter,
        TUMEN_COOKIE="quite-another-cookie-this",
    )  # fmt: skip
    assert done.returncode == 3
    assert "cookie" in done.stderr


def test_names_lists_names_and_ports(counter: int) -> None:
    assert answer("names", epmd_port=counter).split("\t")[0] == "py"
    listed = json.loads(answer("names", "--json", epmd_port=counter))
    assert [entry["name"] for entry in listed["names"]] == ["py"]
    assert listed["names"][0]["port"] > 0


def test_names_without_a_port_mapper_exits_3() -> None:
    done = tumen("names", "--epmd-port", str(peers.free_port()))
    assert done.returncode == 3
    assert "no port mapper" in done.stderr


# -- usage and set-up ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["call", NODE, "counter", "{a"], "'}' was expected at the end of the tuple"),
        (["call", NODE, "counter"], "Missing argument 'TERM'"),
        (["rpc", NODE, "m", "f", "3"], "a list is expected"),
        (["rpc", NODE, "m", "f", '"ab"'], "a list is expected"),
        (["ping", "nohost"], "a node is written name@host"),
        (["ping", NODE, "--timeout", "0"], "x>0"),
        (["ping", NODE, "--cookie", "secret"], "No such option"),
        (["serve", "nowhere.py"], "there is no file nowhere.py"),
        (["serve", "no_such_module_here"], "there is no module"),
        (["serve", "json"], "which App? It has none"),
        (["serve", f"{COUNTER}:Counter"], "Counter is ABCMeta, not a tumen.App"),
        (["demo", "--no-beam", "--require-beam"], "exclude each other"),
    ],
)
def test_wrong_usage_exits_2_and_says_what(args: list[str], said: str) -> None:
    done = tumen(*args)
    assert done.returncode == 2, done.stderr
    assert said.replace("ABCMeta", "type") in done.stderr


def test_a_cookie_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    cookie = tmp_path / "cookie"
    cookie.write_text("a-cookie-in-a-file-here\n")
    cookie.chmod(0o644)
    done = tumen("ping", NODE, "--cookie-file", str(cookie))
    assert done.returncode == 5
    assert "chmod 600" in done.stderr


def test_the_cookie_can_come_from_a_file_or_a_variable(counter: int, tmp_path: Path) -> None:
    right = environment()["TUMEN_COOKIE"]
    file = tmp_path / "cookie"
    file.touch(0o600)
    file.write_text(right + "\n")
    wrong = {"TUMEN_COOKIE": "wrong-wrong-wrong-wrong"}
    by_file = tumen("ping", NODE, "--cookie-file", str(file), epmd_port=counter, **wrong)
    by_name = tumen("ping", NODE, "--cookie-env", "MINE", epmd_port=counter, MINE=right, **wrong)
    assert (by_file.stdout, by_file.stderr) == ("pong\n", "")
    assert (by_name.stdout, by_name.stderr) == ("pong\n", "")


def test_without_any_cookie_it_exits_5(tmp_path: Path) -> None:
    done = tumen("ping", NODE, TUMEN_COOKIE=None, RELEASE_COOKIE=None, HOME=str(tmp_path))
    assert done.returncode == 5
    assert "no cookie" in done.stderr


def test_every_help_shows_the_exit_codes() -> None:
    for command in ([], ["ping"], ["call"], ["rpc"], ["names"], ["epmd"], ["serve"], ["demo"]):
        text = answer(*command, "--help")
        assert "4    no answer in time" in text


def test_without_click_it_names_the_extra() -> None:
    script = "import sys; sys.modules['click'] = None; from tumen.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert "pip install 'tumen[cli]'" in done.stderr


def test_the_library_needs_neither_click_nor_rich() -> None:
    script = "import sys, tumen; print(sorted({'click', 'rich'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_bench_is_a_command_of_a_checkout_only(tmp_path: Path) -> None:
    assert "bench" in answer("--help")
    done = subprocess.run(
        [sys.executable, "-m", "tumen", "bench"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "No such command 'bench'" in done.stderr
    listed = subprocess.run(
        [sys.executable, "-m", "tumen", "bench", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "--rounds" in listed.stdout
    assert "--only" in listed.stdout


# -- serving --------------------------------------------------------------------------------------

POLITE = """
import asyncio
import sys
from tumen import App, Atom, GenServer

app = App()


@app.server("polite")
class Polite(GenServer):
    async def handle_call(self, request, caller):
        return request

    async def terminate(self, reason):
        if sys.stdin is not None and TERMINATE_SLOWLY:
            await asyncio.sleep(30)  # hangs: a second signal is not waited out
        print(f"terminate {reason}", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_serve_ends_politely_at_the_first_signal(number: int, mapper: int, tmp_path: Path) -> None:
    file = tmp_path / "polite.py"
    file.write_text(POLITE.replace("TERMINATE_SLOWLY", "False"))
    with serving("serve", str(file), epmd_port=mapper) as server:
        assert server.ready["node"] == "polite@127.0.0.1"
        assert answer("call", "polite@127.0.0.1", "polite", "hello", epmd_port=mapper) == "hello"
        server.signal(number)
        assert server.line() == b"terminate shutdown\n"
        assert server.wait() == (0, "")


def test_serve_ends_at_once_at_the_second_signal(mapper: int, tmp_path: Path) -> None:
    file = tmp_path / "stubborn.py"
    file.write_text(POLITE.replace("TERMINATE_SLOWLY", "print('terminating', flush=True) or True"))
    with serving("serve", str(file), epmd_port=mapper) as server:
        server.signal(signal.SIGTERM)
        assert server.line() == b"terminating\n"
        server.signal(signal.SIGTERM)
        assert server.wait()[0] == 130


def test_serve_of_a_name_that_is_taken_exits_5(counter: int) -> None:
    done = tumen("serve", COUNTER, "--name", NODE, epmd_port=counter)
    assert done.returncode == 5
    assert NODE in done.stderr


def test_serve_says_ready_in_one_line(mapper: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tumen", "serve", COUNTER, "--name", "line@127.0.0.1"],
        env=environment(mapper), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
    finally:
        process.terminate()
        process.communicate(timeout=60)
    words = line.split()
    assert words[:3] == ["ready", "line@127.0.0.1", "port"]
    assert "backend" in words


def test_serve_takes_the_only_app_or_the_one_that_is_named(tmp_path: Path, mapper: int) -> None:
    file = tmp_path / "several.py"
    file.write_text("from tumen import App\none = App()\ntwo = App()\n")
    done = tumen("serve", str(file), epmd_port=mapper)
    assert done.returncode == 2
    assert "one, two" in done.stderr
    with serving("serve", f"{file}:two", epmd_port=mapper) as server:
        assert server.ready["node"] == "several@127.0.0.1"


def test_epmd_on_a_port_in_use_exits_5(mapper: int) -> None:
    done = tumen("epmd", "--epmd-port", str(mapper))
    assert done.returncode == 5
    assert "in use" in done.stderr


def test_epmd_ends_with_0_at_a_signal() -> None:
    with serving("epmd", "--epmd-port", str(peers.free_port())) as server:
        server.signal(signal.SIGTERM)
        assert server.wait() == (0, "")
