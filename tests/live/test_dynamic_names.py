"""Nodes without a name of their own: the first peer gives them one, and takes it with it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

import peers
import tumen
from nodes import Counter, make_node, next_event, until
from tumen import Atom, events

pytestmark = pytest.mark.asyncio

NAME = re.compile(r"[0-9A-Z]+@127\.0\.0\.1")


@pytest.fixture
def nameless(otp: peers.Runtime, start_beam: Callable[..., peers.Beam]) -> peers.Beam:
    """A BEAM that asks its first peer for a name."""
    return start_beam(otp, name="undefined@127.0.0.1", args=["-dist_listen", "false"])


async def test_beam_is_named_by_us_and_is_a_full_peer_then(
    backend: str, epmd: peers.Epmd, nameless: peers.Beam
) -> None:
    app = tumen.App()
    app.server("counter", 7)(Counter)
    async with make_node(cookie=peers.COOKIE, epmd="auto", visible=True, app=app) as node:
        us = Atom(node.name)
        seen = node.events()
        assert await nameless.eval("node()") == Atom("nonode@nohost")
        assert await nameless.eval("net_kernel:connect_node(N)", N=us) is True
        up = await next_event(seen, events.NodeUp)
        # Such a connection is hidden, whatever both sides are.
        assert not up.visible
        assert NAME.fullmatch(up.node)
        them = await nameless.eval("{node(), erlang:system_info(creation)}")
        (connection,) = node.connections()
        assert them == (Atom(up.node), connection.creation)
        assert connection.creation >= 4
        assert await nameless.eval("gen_server:call({counter, N}, get)", N=us) == 7
        assert await node.ping(up.node)
        assert await node.rpc(up.node, "erlang", "node") == Atom(up.node)


async def test_name_is_given_again_with_the_next_creation(
    backend: str, epmd: peers.Epmd, nameless: peers.Beam
) -> None:
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        us = Atom(node.name)
        seen = node.events()
        assert await nameless.eval("net_kernel:connect_node(N)", N=us) is True
        first = await next_event(seen, events.NodeUp)
        (old,) = node.connections()
        pid = await nameless.eval("spawn(fun() -> receive after infinity -> ok end end)")
        assert (pid.node, pid.creation) == (first.node, old.creation)
        assert await node.disconnect(first.node)
        await nameless.eval(
            "F = fun(F) -> case node() of nonode@nohost -> ok; _ -> F(F) end end, F(F)"
        )
        # A peer that loses it all at once asks again until its distribution is back.
        await nameless.eval(
            "F = fun(F) -> case net_kernel:connect_node(N) of "
            "true -> ok; _ -> receive after 5 -> F(F) end end end, F(F)",
            N=us,
        )
        second = await next_event(seen, events.NodeUp)
        assert second.node == first.node
        (new,) = node.connections()
        assert new.creation == old.creation + 1
        # The process lives on there; its pid means nobody any more.
        assert await node.join(pid) == Atom("noproc")


async def test_names_of_peers_on_one_host_differ(
    backend: str, epmd: peers.Epmd, otp: peers.Runtime, start_beam: Callable[..., peers.Beam]
) -> None:
    names = []
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        for _ in range(2):
            beam = start_beam(otp, name="undefined@127.0.0.1", args=["-dist_listen", "false"])
            assert await beam.eval("net_kernel:connect_node(N)", N=Atom(node.name)) is True
            names.append((await beam.eval("node()")).text)
        assert len(set(names)) == 2
        await until(lambda: sorted(node.nodes()) == sorted(names))


async def test_nameless_beam_that_is_not_allowed_stays_out(
    backend: str, epmd: peers.Epmd, nameless: peers.Beam
) -> None:
    options: dict[str, Any] = {"cookie": peers.COOKIE, "epmd": "auto"}
    async with make_node(allow=["10.0.0.1"], **options) as node:
        assert await nameless.eval("net_kernel:connect_node(N)", N=Atom(node.name)) is False
        assert not node.nodes()
        node.allow(["127.0.0.1"])
        assert await nameless.eval("net_kernel:connect_node(N)", N=Atom(node.name)) is True


async def test_our_name_and_all_that_has_it_go_with_the_beam_that_gave_it(
    backend: str, beam: peers.Beam, shared_beam: peers.Beam
) -> None:
    app = tumen.App()
    app.server("counter", 7)(Counter)
    async with tumen.Node("127.0.0.1", cookie=peers.COOKIE, app=app, epmd="client") as node:
        seen = node.events()
        await node.connect(beam.name)
        first = await next_event(seen, events.Renamed)
        assert NAME.fullmatch(first.node)
        assert await node.ping(shared_beam.name)
        await _serving(node)
        old = node.whereis("counter")
        watching = asyncio.create_task(
            shared_beam.eval(
                "R = monitor(process, P), self() ! go, receive go -> ok end, "
                "receive {'DOWN', R, process, P, Why} -> Why after 9000 -> timeout end",
                P=old,
            )
        )
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def mine(proc: tumen.Process) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set_result(None)

        mine_pid = node.spawn(mine)
        assert await shared_beam.eval("net_adm:ping(N)", N=Atom(first.node)) == Atom("pong")
        assert await beam.eval("erlang:disconnect_node(N)", N=Atom(first.node)) is True
        lost = await next_event(seen, events.NameLost)
        assert lost.node == first.node
        assert node.name == "127.0.0.1"
        assert await watching == Atom("noconnection")
        async with asyncio.timeout(5):
            await ended
        assert node.nodes() == []
        assert node.info().processes == 0

        # The next peer names us; what the app serves is there again, under a new pid.
        await node.connect(shared_beam.name)
        second = await next_event(seen, events.Renamed)
        assert (second.node != first.node) or node.info().creation != mine_pid.creation
        await _serving(node)
        us = Atom(second.node)
        assert await shared_beam.eval("gen_server:call({counter, N}, get)", N=us) == 7
        assert node.whereis("counter") != old
        # Nobody is left of the old ones.
        assert await node.join(old) in (Atom("noproc"), Atom("noconnection"))


async def _serving(node: tumen.Node) -> None:
    await until(lambda: node.whereis("counter") is not None)


async def test_two_tumen_nodes_name_each_other(backend: str) -> None:
    async with (
        make_node("namer") as namer,
        tumen.Node("127.0.0.1", cookie=namer._options.cookie, epmd=None) as node,
    ):
        seen = node.events()
        address = ("127.0.0.1", namer.info().port)
        await node.connect(namer.name, address)
        name = (await next_event(seen, events.Renamed)).node
        # Who is dialled knows of it just after who dials.
        await until(lambda: namer.nodes() == [name])
        assert await namer.ping(name)
        creation = node.info().creation
        await namer.disconnect(name)
        assert (await next_event(seen, events.NameLost)).node == name
        await node.connect(namer.name, address)
        assert (await next_event(seen, events.Renamed)).node == name
        assert node.info().creation == creation + 1
