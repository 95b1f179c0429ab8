"""Process groups under churn: joins, leaves, ends and splits over BEAMs and Python nodes at once.

No scope process of a BEAM is another at the end, no BEAM had to wait for a connection, and at rest
all views are equal."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

import peers
import tumen
from nodes import make_node, settles
from tumen import Atom, Pid

pytestmark = pytest.mark.asyncio

SCOPE = "churn"
GROUPS: list[Any] = [Atom("a"), b"b", (Atom("room"), 1), [1, 2], 7]
# Seconds of the long form, and of the one in each run.
LONG_S = int(os.environ.get("TUMEN_CHURN_SECONDS", "600"))
SHORT_S = 60
# Changes of membership in one burst, on a BEAM or here.
STEPS = 40

Views = dict[Any, collections.Counter[Pid]]


async def idle(proc: tumen.Process) -> None:
    await proc.receive()


class Ours:
    """A Python node whose processes come, join, leave and go."""

    def __init__(self, node: tumen.Node, chance: random.Random) -> None:
        self.node = node
        self.chance = chance
        self.pids: list[Pid] = []

    def burst(self) -> None:
        pg = self.node.pg
        for _ in range(STEPS):
            if not self.pids:
                self.pids.append(self.node.spawn(idle))
            pid, group = self.chance.choice(self.pids), self.chance.choice(GROUPS)
            match self.chance.randrange(10):
                case 0 | 1 | 2 | 3:
                    pg.join(group, pid, scope=SCOPE)
                case 4:
                    pg.join(group, [pid, *self.pids], scope=SCOPE)
                case 5:
                    pg.leave(group, pid, scope=SCOPE)
                case 6:
                    pg.leave(group, [pid, *self.pids], scope=SCOPE)
                case 7 if len(self.pids) < 8:
                    self.pids.append(self.node.spawn(idle))
                case _:
                    self.pids.remove(pid)
                    self.node.exit(pid, Atom("kill"))

    def view(self) -> Views:
        pg = self.node.pg
        return {
            tumen.encode(group): collections.Counter(pg.members(group, scope=SCOPE))
            for group in pg.which_groups(scope=SCOPE)
        }


class Theirs:
    """A BEAM that does the same."""

    def __init__(self, beam: peers.Beam) -> None:
        self.beam = beam
        self.scope: Pid | None = None
        self.churner: Pid | None = None

    async def start(self, seed: int) -> None:
        self.scope, self.churner = await self.beam.eval(
            "tumen_churn:start(S, Seed)", S=Atom(SCOPE), Seed=seed
        )

    async def burst(self) -> None:
        await self.beam.eval(
            "tumen_churn:burst(C, G, N)", C=self.churner, G=GROUPS, N=STEPS, timeout=60
        )

    async def view(self) -> Views:
        found = await self.beam.eval(
            "[{G, pg:get_members(S, G)} || G <- pg:which_groups(S)]", S=Atom(SCOPE)
        )
        # A BEAM keeps a group whose last members left as a list, if local ones had joined it.
        return {tumen.encode(group): collections.Counter(pids) for group, pids in found if pids}


async def churn(beams: list[peers.Beam], nodes: list[tumen.Node], seconds: float) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    theirs = [Theirs(beam) for beam in beams]
    ours = [Ours(node, random.Random(chance.random())) for node in nodes]
    for one in theirs:
        await one.start(chance.randrange(2**31))
    await connected(beams, nodes)
    async with asyncio.timeout(seconds * 2 + 60):
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            work = [one.burst() for one in theirs if chance.random() < 0.7]
            for one in ours:
                one.burst()
            if chance.random() < 0.3:
                await split(chance, beams, nodes)
            await asyncio.gather(*work)
            if chance.random() < 0.5:
                await connected(beams, nodes)
        await at_rest(theirs, ours, lambda: connected(beams, nodes))
    for one in theirs:
        assert await one.beam.eval("whereis(S)", S=Atom(SCOPE)) == one.scope
        assert await one.beam.eval("tumen_churn:busy(C)", C=one.churner) == 0


async def split(chance: random.Random, beams: list[peers.Beam], nodes: list[tumen.Node]) -> None:
    """One connection of a Python node goes; either side ends it."""
    node = chance.choice(nodes)
    other = chance.choice([*beams, *(other for other in nodes if other is not node)])
    if isinstance(other, peers.Beam) and chance.random() < 0.5:
        await other.eval("erlang:disconnect_node(N)", N=Atom(node.name))
    else:
        await node.disconnect(other.name)


async def connected(beams: list[peers.Beam], nodes: list[tumen.Node]) -> None:
    """All are. One node is visible: where it loses a BEAM, `global` may part BEAMs too."""
    for beam, other in itertools.combinations(beams, 2):
        await beam.eval("net_kernel:connect_node(N)", N=Atom(other.name))
    for node in nodes:
        for other in [*beams, *nodes]:
            if other is not node:
                await reconnect(node, other.name)


async def reconnect(node: tumen.Node, name: str) -> None:
    async def meet() -> bool:
        # Refused as long as the other side still has the old connection.
        with contextlib.suppress(tumen.NoConnection):
            await node.connect(name)
        return name in node.nodes()

    await settles(f"{node.name} is connected to {name}", meet, bool, timeout=40)


async def at_rest(
    theirs: list[Theirs], ours: list[Ours], connect: Callable[[], Awaitable[None]]
) -> None:
    """Every view becomes the same, and stays so for two looks."""
    views: list[Views] = []
    same = 0

    async def look() -> list[Any]:
        nonlocal same, views
        await connect()
        views = [await one.view() for one in theirs] + [one.view() for one in ours]
        found = [differences(views[0], view) for view in views]
        same = 0 if any(found) else same + 1
        return found

    await settles("no view differs, twice", look, lambda _: same == 2, timeout=45)
    assert any(views[0].values())


def differences(one: Views, other: Views) -> list[Any]:
    keys = one.keys() | other.keys()
    return [
        (tumen.decode(key), one.get(key), other.get(key))
        for key in keys
        if one.get(key) != other.get(key)
    ]


async def mixed(start_beam: Callable[..., peers.Beam], seconds: float) -> None:
    """Three BEAMs of each release and three Python nodes, on both backends unless one is forced."""
    old, new = peers.otp25(), peers.otp28()
    if old is None or new is None:
        pytest.skip("needs_erlang: both releases")
    runtimes = [old, new] * 3
    backends = [os.environ.get("TUMEN_BACKEND") or choice for choice in ("uring", "epoll", "uring")]
    beams = await asyncio.gather(*(asyncio.to_thread(start_beam, one) for one in runtimes))
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(
                make_node(cookie=peers.COOKIE, epmd="auto", visible=place == 0, backend=backend)
            )
            for place, backend in enumerate(backends)
        ]
        await connected(beams, nodes)
        await churn(beams, nodes, seconds)


@pytest.mark.timeout(SHORT_S * 2 + 120)
async def test_views_are_equal_after_churn(
    epmd: peers.Epmd, start_beam: Callable[..., peers.Beam]
) -> None:
    await mixed(start_beam, SHORT_S)


@pytest.mark.slow
@pytest.mark.timeout(LONG_S * 2 + 300)
async def test_views_are_equal_after_long_churn(
    epmd: peers.Epmd, start_beam: Callable[..., peers.Beam]
) -> None:
    await mixed(start_beam, LONG_S)
