"""The registered processes of a node, between Python nodes: rex, user and logger_proxy."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest

import tumen
from nodes import make_node, pair, until
from tumen import Atom
from tumen.services import _RESTART_COUNT_MAX, io, logger, rex

pytestmark = pytest.mark.asyncio

OK = Atom("ok")
NAMES = ["logger_proxy", "rex", "user"]


async def test_services_are_there_before_the_servers_of_the_user(backend: str) -> None:
    found: list[bool] = []

    class Server(tumen.GenServer):
        async def init(self) -> None:
            found.extend(self.node.whereis(name) is not None for name in NAMES)
            await self.print("from init")

        async def terminate(self, reason: Any) -> None:
            await self.print("from terminate")

    printed: list[str] = []
    app = tumen.App()
    app.server("mine")(Server)
    async with make_node(app=app, on_output=lambda text, _: printed.append(text)):
        assert found == [True] * 3
    # They end after those.
    assert printed == ["from init\n", "from terminate\n"]


async def test_name_of_a_service_is_taken(backend: str) -> None:
    app = tumen.App()
    app.server("rex")(tumen.GenServer)
    with pytest.raises(tumen.NameClash):
        await make_node(app=app).start()


async def test_node_stops_while_services_have_work(backend: str) -> None:
    """Calls, formats and log events that are under way do not hold it up, nor raise."""
    app = tumen.App()
    started = asyncio.Event()

    @app.expose("m")
    async def forever() -> None:
        started.set()
        await asyncio.Event().wait()

    app.expose("io_lib", "format")(forever)
    async with pair(app) as (a, b):
        what = (Atom("call"), Atom("m"), Atom("forever"), [], Atom("user"))
        calls = [asyncio.create_task(b.call(("rex", a.name), what)) for _ in range(3)]
        calls += [
            asyncio.create_task(b.call(("rex", a.name), (Atom("block_call"), *what[1:])))
            for _ in range(3)
        ]

        async def prints(proc: tumen.Process) -> None:
            form = (Atom("put_chars"), Atom("unicode"), Atom("io_lib"), Atom("format"), [b"~w", []])
            proc.send(("user", b.name), (Atom("io_request"), proc.pid, 1, form))
            await proc.receive()

        a.spawn(prints)
        await started.wait()
        await a.stop()
        for result in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(result, tumen.TumenError)


async def test_block_calls_over_the_limit_are_refused(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rex, "_BLOCKED_COUNT_MAX", 2)
    started, release = asyncio.Event(), asyncio.Event()
    app = tumen.App()

    @app.expose("m")
    async def wait() -> Any:
        started.set()
        await release.wait()
        return OK

    async with pair(app) as (a, b):
        what = (Atom("block_call"), Atom("m"), Atom("wait"), [], Atom("user"))
        calls = [asyncio.create_task(b.call(("rex", a.name), what))]
        await started.wait()
        calls += [asyncio.create_task(b.call(("rex", a.name), what)) for _ in range(4)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        refused = (Atom("badrpc"), (Atom("EXIT"), Atom("system_limit")))
        assert [call.result() for call in done] == [refused] * len(done)
        release.set()
        results = await asyncio.gather(*calls)
        assert results.count(OK) == 3
        assert results.count(refused) == 2


async def test_result_that_cannot_be_sent_is_a_failure(backend: str) -> None:
    app = tumen.App()
    app.expose("m", "large", inline=True)(lambda: bytes(40_000))
    app.expose("m", "no_term", inline=True)(object)
    async with pair(app) as (a, b):
        call, user = Atom("call"), Atom("user")
        bad, (_, (reason, _stack)) = await b.call(
            ("rex", a.name), (call, Atom("m"), Atom("no_term"), [], user)
        )
        assert (bad, reason[1]) == (Atom("badrpc"), b"tumen.errors.EncodeError")
        a.set_limits(message_bytes_max=30_000)
        bad, _ = await b.call(("rex", a.name), (call, Atom("m"), Atom("large"), [], user))
        assert bad == Atom("badrpc")


async def test_requests_that_wait_for_a_format_have_a_limit_per_node(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over it they are refused; another node's are not."""
    monkeypatch.setattr(io, "_WAITING_COUNT_MAX", 3)
    printed: list[str] = []
    release = asyncio.Event()

    async def slow(*_: Any) -> bytes:
        await release.wait()
        return b"x"

    def request(proc: tumen.Process, number: int, *args: Any) -> Any:
        form = (
            Atom("put_chars"),
            Atom("unicode"),
            Atom("io_lib"),
            Atom("format"),
            [b"~w", [*args]],
        )
        return (Atom("io_request"), proc.pid, number, form)

    async def prints(proc: tumen.Process, to: str, count: int, result: Any) -> None:
        for number in range(count):
            proc.send(("user", to), request(proc, number))
        result.set_result([(await proc.receive())[1:] for _ in range(count)])

    app = tumen.App()
    app.expose("io_lib", "format")(slow)
    async with pair(app, on_output=lambda text, _: printed.append(text)) as (a, b):
        loop = asyncio.get_running_loop()
        first, second = loop.create_future(), loop.create_future()
        a.spawn(prints, b.name, 2, first)
        a.spawn(prints, b.name, 3, second)
        user = b._running.core.process(b._running.core.whereis("user"))
        await until(lambda: user._unformatted[a.name] == 3)
        await b.put_chars("user", "quick ")
        release.set()
        replies = [*await first, *await second]
        refused = (Atom("error"), Atom("system_limit"))
        assert [reply for _, reply in replies].count(OK) == 3
        assert [reply for _, reply in replies].count(refused) == 2
        assert printed == ["quick ", "x", "x", "x"]
        # Nothing is left of it.
        assert (user._queues, dict(user._unformatted)) == ({}, {})
        third = loop.create_future()
        a.spawn(prints, b.name, 3, third)
        assert await third == [(0, OK), (1, OK), (2, OK)]


async def test_format_that_takes_too_long_is_given_up(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io, "_FORMAT_TIME_S", 0.05)
    monkeypatch.setattr(logger, "_FORMAT_TIME_S", 0.05)
    app = tumen.App()

    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    app.expose("io_lib", "format")(never)
    app.expose("logger_formatter", "format")(never)
    replies: asyncio.Queue[Any] = asyncio.Queue()

    async def prints(proc: tumen.Process, to: str) -> None:
        form = (Atom("put_chars"), Atom("unicode"), Atom("io_lib"), Atom("format"), [b"~w", [1]])
        proc.send(("user", to), (Atom("io_request"), proc.pid, 1, form))
        replies.put_nowait((await proc.receive())[2])
        event = (Atom("log"), Atom("error"), b"~w", [1], {Atom("pid"): proc.pid})
        proc.send(("logger_proxy", to), event)

    records: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    handler = Handler()
    logging.getLogger("tumen.remote").addHandler(handler)
    try:
        async with pair(app, on_output=lambda *_: None) as (a, b):
            a.spawn(prints, b.name)
            assert await replies.get() == (Atom("error"), Atom("timeout"))
            await until(lambda: records)
            assert records == ["~w [1]"]
    finally:
        logging.getLogger("tumen.remote").removeHandler(handler)


WORDS = [
    *("call", "block_call", "cast", "sbcast", "send", "features_request", "user", "m", "f", "rex"),
    *("io_request", "put_chars", "unicode", "latin1", "io_lib", "format", "requests", "getopts"),
    *("setopts", "get_line", "get_until", "get_geometry", "columns", "binary", "encoding"),
    *("log", "error", "debug", "report", "pid", "gl", "$gen_call", "$gen_cast", "erlang", "apply"),
]


def noise(source: random.Random, pids: list[tumen.Pid], depth: int = 4) -> Any:
    """A term of what the services know, in no order."""
    kind = source.randrange(12 if depth else 6)
    if kind < 3:
        return Atom(source.choice(WORDS))
    if kind == 3:
        return source.choice(pids)
    if kind < 6:
        return source.choice([1, -1, 2.5, True, None, b"~p~n", b"x", b"\xff", [], (), {}, 10**20])
    parts = [noise(source, pids, depth - 1) for _ in range(source.randrange(7))]
    if kind < 10:
        return tuple(parts)
    if kind == 10:
        return parts
    return {Atom(source.choice(WORDS)): part for part in parts}


def shaped(source: random.Random, pids: list[tumen.Pid]) -> Any:
    """The same in the frames that the services look into."""
    sender = source.choice(pids)
    inner = noise(source, pids)
    words = (Atom(source.choice(WORDS)), *(noise(source, pids, 2) for _ in range(4)))
    inner = source.choice([inner, words[: source.randrange(1, 6)]])
    return source.choice(
        [
            inner,
            (sender, inner),
            (Atom("io_request"), sender, 1, inner),
            (Atom("$gen_call"), (sender, tumen.ImproperList([Atom("alias")], 1)), inner),
            (Atom("$gen_call"), (sender, 1), inner),
            (Atom("$gen_cast"), inner),
            (Atom("log"), Atom("error"), inner, {Atom("pid"): sender}),
            (Atom("log"), Atom("error"), inner, inner, {Atom("pid"): sender}),
        ]
    )


@pytest.mark.parametrize("seed", range(3))
async def test_noise_neither_ends_nor_breaks_a_service(
    backend: str, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Two thousand messages that are nearly right, to each."""
    source = random.Random(seed)
    async with pair(on_output=lambda *_: None) as (a, b):
        pids = [b._running.own_process.pid, a._running.own_process.pid]
        pids.append(tumen.Pid("elsewhere@127.0.0.1", 1, 0, 1))
        before = [a.whereis(name) for name in NAMES]
        for number in range(2_000):
            message = shaped(source, pids)
            for name in NAMES:
                await b.send_wait((name, a.name), message)
            if number % 100 == 0:
                await b.put_chars(("user", a.name), "x")
        await b.put_chars(("user", a.name), "x")
        result = await b.sbcast([a.name], "user", 1)
        assert result[a.name].ok
        assert [a.whereis(name) for name in NAMES] == before
        mistakes = [record for record in caplog.records if "was not handled" in record.message]
        assert mistakes == []


async def test_service_that_ends_too_often_stays_dead(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with pair() as (a, b):
        for _ in range(_RESTART_COUNT_MAX):
            pid = a.whereis("rex")
            assert pid is not None
            b.exit(pid, Atom("kill"))
            await until(lambda pid=pid: a.whereis("rex") not in (pid, None))
        assert "is started again" in caplog.text
        pid = a.whereis("rex")
        assert pid is not None
        b.exit(pid, Atom("kill"))
        await until(lambda: "stays dead" in caplog.text)
        assert a.whereis("rex") is None
        assert a.whereis("user") is not None


async def test_group_leader_is_the_io_server(backend: str) -> None:
    async with make_node() as node:
        home = node._running
        assert home.group_leader == node.whereis("user")
        node.exit(home.group_leader, Atom("kill"))
        await until(lambda: home.services.io.pid is None or home.group_leader.id > 0)
        await until(lambda: home.group_leader == node.whereis("user"))


@pytest.mark.parametrize("handler", ["stdout", asyncio.sleep])
async def test_output_handler_must_be_a_plain_function(handler: Any) -> None:
    with pytest.raises(TypeError, match="on_output"):
        make_node(on_output=handler)


async def test_python_nodes_print_cast_and_broadcast_to_each_other(backend: str) -> None:
    printed: list[tuple[str, str]] = []
    got: asyncio.Queue[Any] = asyncio.Queue()

    async def listen(proc: tumen.Process) -> None:
        async for message in proc:
            got.put_nowait(message)

    app = tumen.App()
    app.expose("m", "note", inline=True)(lambda x: got.put_nowait(x))
    app.expose("m", "twice", inline=True)(lambda x: 2 * x)
    async with pair(app, on_output=lambda text, pid: printed.append((text, pid.node))) as (a, b):
        await b.put_chars(("user", a.name), "hello\n")
        assert printed == [("hello\n", b.name)]
        a.spawn(listen, name="listener")
        b.rpc_cast(a.name, "m", "note", [1])
        assert await got.get() == 1
        assert b.abcast([a.name, b.name], "listener", 2) == {}
        assert await got.get() == 2
        results = await b.sbcast([a.name, b.name], "listener", 3)
        assert results[a.name].ok
        assert isinstance(results[b.name].error, tumen.NoProc)
        assert await got.get() == 3
        results = await b.multicall([a.name, b.name], "m", "twice", [4])
        assert results[a.name].value == 8
        assert isinstance(results[b.name].error, tumen.RemoteError)


async def test_abcast_tells_where_the_queue_is_full(backend: str) -> None:
    limits = tumen.Limits(sendq_bytes_high=1)
    async with pair(limits=limits) as (a, b):
        big = bytes(1000)
        assert b.abcast([a.name], "nobody", big) == {}
        failed = {}
        for _ in range(1000):
            failed = b.abcast([a.name, b.name], "nobody", big)
            if failed:
                break
        assert list(failed) == [a.name]
        assert isinstance(failed[a.name], tumen.Busy)
        failed = b.abcast(["no_host", b.name], "nobody", 1)
        assert list(failed) == ["no_host"]
        assert isinstance(failed["no_host"], ValueError)


async def test_call_that_waits_for_many_nodes_ends_with_its_node(backend: str) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    app = tumen.App()
    app.expose("m", "never")(never)
    async with pair(app) as (a, b):
        calls = asyncio.create_task(b.multicall([a.name], "m", "never"))

        async def silent(proc: tumen.Process) -> None:
            async for _ in proc:
                pass

        a.unregister("rex")
        a.spawn(silent, name="rex")
        cast = asyncio.create_task(b.sbcast([a.name], "nobody", 1, timeout=None))
        printing = asyncio.create_task(b.put_chars(("rex", a.name), "x", timeout=None))
        await until(lambda: a.info().messages_in >= 2)
        await b.stop()
        results = await calls
        assert isinstance(results[a.name].error, tumen.TumenError)
        for task in (cast, printing):
            with pytest.raises(tumen.ProcessExited):
                await task
