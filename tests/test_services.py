"""The registered processes of a node, between Python nodes: rex, user and logger_proxy."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest

import tumen
from nodes import address, make_node, pair, until
from tumen import Atom
from tumen.services import io, kept, logger, rex

pytestmark = pytest.mark.asyncio

OK = Atom("ok")
NAMES = ["logger_proxy", "rex", "user"]


async def swallow(proc: tumen.Process) -> None:
    async for _ in proc:
        pass


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
        await until(lambda: user._backlog.count(a.name) == 3)
        await b.put_chars("user", "quick ")
        release.set()
        replies = [*await first, *await second]
        refused = (Atom("error"), Atom("system_limit"))
        assert [reply for _, reply in replies].count(OK) == 3
        assert [reply for _, reply in replies].count(refused) == 2
        assert printed == ["quick ", "x", "x", "x"]
        # Nothing is left of it.
        assert (user._queues, user._backlog._of, user._backlog.bytes_all) == ({}, {}, 0)
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


async def test_log_events_that_wait_are_bounded_in_bytes_and_drops_are_told(
    backend: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of one node, and of all; what is dropped is counted, and a large one alone is not."""
    monkeypatch.setattr(logger, "_WAITING_BYTES_MAX", 10_000)
    monkeypatch.setattr(logger, "_WAITING_BYTES_ALL_MAX", 15_000)
    monkeypatch.setattr(logger, "_DROPS_PERIOD_S", 0.05)
    release, asked = asyncio.Event(), asyncio.Event()

    async def slow(*_: Any) -> bytes:
        asked.set()
        await release.wait()
        return b"formatted"

    app = tumen.App()
    app.expose("logger_formatter", "format")(slow)

    def events(node: tumen.Node, count: int, size: int) -> None:
        pid = node._running.own_process.pid
        for _ in range(count):
            event = (Atom("log"), Atom("error"), b"~w", [bytes(size)], {Atom("pid"): pid})
            node.send(("logger_proxy", home.name), event)

    def dropped() -> int:
        return sum(r.args[1] for r in caplog.records if "were dropped" in r.getMessage())  # type: ignore[index, misc]

    async with (
        make_node(app=app) as one,
        make_node(app=app) as two,
        make_node(on_output=lambda *_: None) as home,
    ):
        for node in (one, two):
            await home.connect(node.name, address(node))
        server: Any = home._running.core.process(home._running.core.whereis("logger_proxy"))
        # As large as all that may wait, and admitted: it is the first.
        events(one, 1, 12_000)
        await asked.wait()
        events(one, 3, 10)
        await until(lambda: dropped() == 3)
        events(two, 5, 2_000)
        await until(lambda: dropped() == 6)
        assert server._backlog.count(one.name) == 1
        assert server._backlog.count(two.name) == 2
        release.set()
        await until(lambda: server._backlog.bytes_all == 0)
        events(one, 1, 10)
        await until(lambda: sum(r.getMessage() == "formatted" for r in caplog.records) == 4)
        assert dropped() == 6


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


PUBSUB = "Elixir.A.PubSub"
# Every registered process of a node's own.
KEPT = [*NAMES, "pg", "one_scope", f"{PUBSUB}.Adapter", "global_name_server"]


def open_all(node: tumen.Node) -> None:
    """Makes the services that start with their first use."""
    for scope in ("pg", "one_scope"):
        node.pg.members(b"g", scope=scope)
    node.pubsub(PUBSUB)


@pytest.mark.parametrize("name", KEPT)
async def test_service_that_is_killed_comes_back_until_it_ends_too_often(
    backend: str, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    async with pair(visible=True) as (a, b):
        open_all(a)
        others = {other: a.whereis(other) for other in KEPT if other != name}
        for _ in range(kept.RESTART_COUNT_MAX):
            pid = a.whereis(name)
            assert pid is not None
            b.exit(pid, Atom("kill"))
            await until(lambda pid=pid: a.whereis(name) not in (pid, None))
        assert "is started again: Atom('killed')" in caplog.text
        assert "stays dead" not in caplog.text
        pid = a.whereis(name)
        assert pid is not None
        b.exit(pid, Atom("kill"))
        await until(lambda: "stays dead" in caplog.text)
        assert "more than 10 times in 60 s, the last time by Atom('killed')" in caplog.text
        assert a.whereis(name) is None
        assert {other: a.whereis(other) for other in others} == others


async def test_service_whose_name_was_taken_waits_for_it(
    backend: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "RETRY_S", 0.01)
    async with make_node() as node:
        home = node._running
        thief = node.spawn(swallow)
        first = home.services.io.process
        # Before the loop has its turn, and with it the service.
        first._end(Atom("kill"))
        node.register("user", thief)
        await until(lambda: "cannot be started again" in caplog.text)
        node.exit(thief, Atom("kill"))
        await until(lambda: home.services.io.pid not in (None, first.pid))
        assert home.group_leader == node.whereis("user")


async def test_services_do_not_come_back_on_a_node_that_stops(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with make_node(visible=True) as node:
        open_all(node)
    assert "started again" not in caplog.text


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
