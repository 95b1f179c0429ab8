"""kill -9 of a peer, of the port mapper, of us: who has to know knows within a second."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import peers
import tumen
from faults.scene import SLACK_S, eventually
from nodes import settles
from tumen import Atom, Pid, events
from tumen._core import debug_counters

pytestmark = [pytest.mark.asyncio, pytest.mark.live]

# Within a second, says the promise, where nobody else wants the machine.
SOON = SLACK_S
CHILD = Path(__file__).with_name("child_node.py")


@asynccontextmanager
async def counted() -> AsyncIterator[None]:
    """No descriptor and no object of the core is left of what happens inside."""

    def descriptors() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = descriptors(), debug_counters()

    def back() -> bool:
        # Fewer: the test's own line to a peer that was killed is gone as well.
        return descriptors() <= before[0] and debug_counters() == before[1]

    yield
    try:
        await eventually("nothing left", back)
    except TimeoutError:
        raise AssertionError(f"{before} before, {descriptors(), debug_counters()} after") from None


def make(name: str, port: int, **options: Any) -> tumen.Node:
    options = {"cookie": peers.COOKIE, "epmd": "client", "epmd_port": port, **options}
    return tumen.Node(f"{name}x{os.getpid()}@127.0.0.1", **options)


class Watcher:
    """The events of a node from now on."""

    def __init__(self, node: tumen.Node) -> None:
        self.stream = node.events()

    async def next(self, kind: type[Any], timeout: float) -> Any:
        async with asyncio.timeout(timeout):
            async for event in self.stream:
                if isinstance(event, kind):
                    return event
        raise AssertionError(f"no {kind.__name__}")


@pytest.mark.parametrize("driver", ["thread", "loop"])
async def test_killed_peer_is_told_to_all_who_wait_for_it(
    backend: str,
    driver: str,
    otp: peers.Runtime,
    mapper: peers.Epmd,
    start_beam: Callable[..., peers.Beam],
) -> None:
    beam = await asyncio.to_thread(start_beam, otp, epmd_port=mapper.port)
    async with counted(), make("survivor", mapper.port, driver=driver) as node:
        linked_end = asyncio.get_running_loop().create_future()

        async def linked(proc: tumen.Process, to: Pid) -> None:
            proc.trap_exit = True
            proc.link(to)
            linked_end.set_result(await proc.receive())

        watcher = Watcher(node)
        silent = await node.rpc(
            beam.name, "erlang", "spawn", [Atom("timer"), Atom("sleep"), [Atom("infinity")]]
        )
        node.spawn(linked, silent)
        monitor = node.monitor(silent)
        by_name = node.monitor(("tumen_peer", beam.name))
        # Nobody there answers: the two wait for the end of time, or of the connection.
        call = asyncio.create_task(node.call(silent, Atom("anything"), timeout=None))
        rpc = asyncio.create_task(
            node.rpc(beam.name, "timer", "sleep", [Atom("infinity")], timeout=None)
        )
        await watcher.next(events.NodeUp, 5)
        # In order behind all of the above: it was seen there.
        assert await node.ping(beam.name)

        start = time.monotonic()
        os.kill(beam.pid, 9)
        down = await watcher.next(events.NodeDown, SOON)
        assert down.node == beam.name
        assert "connection_closed" in down.reason
        async with asyncio.timeout(SOON):
            assert await monitor == Atom("noconnection")
            assert await by_name == Atom("noconnection")
            assert await linked_end == (Atom("EXIT"), silent, Atom("noconnection"))
            for waiting in (call, rpc):
                with pytest.raises(tumen.NoConnection) as caught:
                    await waiting
                assert caught.value.peer == beam.name
                assert caught.value.may_have_executed
        assert time.monotonic() - start < SOON
        assert node.nodes() == []
        # Nobody is there any more: told as soon as it is tried.
        with pytest.raises(tumen.NoConnection) as caught:
            await node.call(silent, 1)
        assert not caught.value.may_have_executed
        assert not await node.ping(beam.name)
        assert time.monotonic() - start < 2 * SOON


async def test_killed_port_mapper_is_replaced_by_the_embedded_one(
    backend: str, otp: peers.Runtime, start_beam: Callable[..., peers.Beam]
) -> None:
    with peers.Epmd() as mapper:
        beam = await asyncio.to_thread(start_beam, otp, epmd_port=mapper.port)
        async with counted(), make("mapped", mapper.port, epmd="auto") as node:
            assert await node.ping(beam.name)
            before = node.connections()[0]
            watcher = Watcher(node)
            assert not node.info().serves_epmd

            start = time.monotonic()
            mapper.kill()
            failed = await watcher.next(events.RegisterFailed, SOON)
            assert "the port mapper has gone" in failed.reason
            registered = await watcher.next(events.Registered, 2 * SOON)
            assert time.monotonic() - start < 2 * SOON
            assert registered.embedded
            assert node.info().serves_epmd
            assert node.info().registered
            # Who is connected has noticed nothing; who is not can look us up.
            assert await beam.eval("net_adm:ping(N)", N=Atom(node.name)) == Atom("pong")
            (after,) = node.connections()
            assert after.creation == before.creation
            assert after.up_ns > before.up_ns
            assert after.bytes_in > before.bytes_in
            other = await asyncio.to_thread(start_beam, otp, epmd_port=mapper.port)
            assert await other.eval("net_adm:ping(N)", N=Atom(node.name)) == Atom("pong")
            # The first node of OTP has registered with it as well by now, or does soon.
            known = beam.name.split("@")[0]
            names = "{ok, L} = erl_epmd:names({127,0,0,1}), lists:member(N, [A || {A,_} <- L])"
            await settles(
                "the BEAM has registered again",
                lambda: other.eval(names, N=list(known.encode())),
                bool,
            )
            assert await other.eval("net_adm:ping(N)", N=Atom(beam.name)) == Atom("pong")
            await other.eval("spawn(fun() -> erlang:halt() end)")
            await beam.eval("erlang:disconnect_node(N)", N=Atom(node.name))


async def test_returned_port_mapper_knows_a_client_within_two_seconds(backend: str) -> None:
    if peers.otp25() is None:
        pytest.skip("needs_erlang: epmd")
    with peers.Epmd() as mapper:
        async with counted(), make("mapped", mapper.port, epmd="client") as node:
            creation = node.info().creation
            watcher = Watcher(node)
            mapper.kill()
            await watcher.next(events.RegisterFailed, SOON)
            assert not node.info().registered
            await asyncio.to_thread(mapper.start)
            registered = await watcher.next(events.Registered, 2 * SOON)
            assert not registered.embedded
            assert node.info().registered
            assert node.info().creation == creation


@asynccontextmanager
async def child(backend: str, driver: str, port: int, tick_time_ms: int = 60_000) -> Any:
    """A node in a process of its own: the process, and the node's name."""
    name = f"child{time.monotonic_ns()}@127.0.0.1"
    arguments = [str(CHILD), name, peers.COOKIE, str(port), driver, str(tick_time_ms)]
    env = os.environ | {"TUMEN_BACKEND": backend}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=PIPE, stdout=PIPE, env=env
    )
    try:
        assert json.loads(await process.stdout.readline())[:2] == ["up", name]
        yield process, name
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        # The transport holds the pipes until it is told.
        process._transport.close()


async def test_when_we_are_killed_beams_and_nodes_know_within_a_second(
    backend: str,
    otp: peers.Runtime,
    mapper: peers.Epmd,
    start_beam: Callable[..., peers.Beam],
) -> None:
    beam = await asyncio.to_thread(start_beam, otp, epmd_port=mapper.port)
    watching = """
        Me = self(),
        Watcher = spawn(fun() ->
            ok = net_kernel:monitor_nodes(true, [{node_type, all}]),
            pong = net_adm:ping(N),
            Ref = monitor(process, {sink, N}),
            Pid = rpc:call(N, erlang, whereis, [sink]),
            Call = spawn_monitor(fun() -> exit(catch gen_server:call({sink, N}, hi, infinity)) end),
            Me ! {ready, self(), Pid},
            Gather = fun(F, All) when length(All) =:= 3 -> lists:sort(All);
                        (F, All) -> receive
                            {nodedown, N, _} -> F(F, [nodedown | All]);
                            {'DOWN', Ref, process, {sink, N}, R} -> F(F, [{down, R} | All]);
                            {'DOWN', _, process, P, R} when P =:= element(1, Call) ->
                                F(F, [{call, element(1, element(2, R))} | All])
                        end
                     end,
            All = Gather(Gather, []),
            receive {report, To} -> To ! {all, All} end
        end),
        register(watcher, Watcher),
        receive {ready, Watcher, _} -> ok end
    """
    async with (
        child(backend, "thread", mapper.port) as (process, name),
        make("witness", mapper.port) as witness,
    ):
        watcher = Watcher(witness)
        monitor = witness.monitor(("sink", name))
        await watcher.next(events.NodeUp, 5)
        assert await witness.ping(name)
        assert await beam.eval(watching, N=Atom(name)) == Atom("ok")
        # The call is on its way before the kill: what it waits for is an answer.
        assert await beam.eval("net_adm:ping(N)", N=Atom(name)) == Atom("pong")

        start = time.monotonic()
        process.kill()
        down = await watcher.next(events.NodeDown, SOON)
        assert down.node == name
        async with asyncio.timeout(SOON):
            assert await monitor == Atom("noconnection")
        report = "watcher ! {report, self()}, receive {all, All} -> All after 5000 -> late end"
        assert await beam.eval(report) == [
            Atom("nodedown"),
            (Atom("call"), (Atom("nodedown"), Atom(name))),
            (Atom("down"), Atom("noconnection")),
        ]
        assert time.monotonic() - start < SOON
