"""The names of a server's own attributes do not get in the way of those that it inherits."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

import tumen
from nodes import make_node, pair, until
from tumen import Atom

pytestmark = pytest.mark.asyncio

OWN = re.compile("_tumen_|_[A-Z][A-Za-z]*__")
KINDS = [tumen.GenServer, tumen.GenEvent, tumen.Supervisor]
# Names that a server's author thinks of, and that something below has had, or still has in C.
TAKEN_BEFORE = [
    *("_name", "_parent", "_debug", "_suspended", "_owed", "_terminating", "_unhurried"),
    *("_task", "_loop", "_init", "_run", "_tree", "_by_pid", "_jobs", "_restarts", "_tag"),
]


class Strange:
    """Neither a value nor a callable that anything could go on with."""

    def __call__(self, *_: Any) -> Any:
        raise AssertionError("somebody has called what is the user's")

    def __bool__(self) -> bool:
        raise AssertionError("somebody has looked at what is the user's")


class Named(tumen.GenServer):
    async def init(self) -> None:
        for name in TAKEN_BEFORE:
            setattr(self, name, Strange())
        self.trap_exit = True
        self.ended: Any = None

    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        return self._name is not None and request

    async def handle_cast(self, request: Any) -> None:
        raise tumen.Exit(request)

    async def terminate(self, reason: Any) -> None:
        assert isinstance(self._task, Strange)


class NamedSupervisor(tumen.Supervisor):
    intensity = 3

    async def init(self, *args: Any) -> Any:
        for name in TAKEN_BEFORE:
            setattr(self, name, Strange())
        return [tumen.ChildSpec("named", Named, name="named")]


async def system(node: tumen.Node, name: str, request: Any) -> Any:
    """What `sys` of a BEAM sends, and the answer."""
    result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def main(proc: tumen.Process) -> None:
        proc.send(name, (Atom("system"), (proc.pid, 1), request))
        result.set_result((await proc.receive())[1])

    node.spawn(main)
    return await result


async def test_a_server_may_name_its_attributes_as_it_likes(backend: str) -> None:
    async with pair() as (a, b):
        await a.start_server(NamedSupervisor, name="top")
        first = a.whereis("named")
        assert first is not None
        assert await b.call(("named", a.name), 5) == 5
        for name in ("named", "top"):
            for request in (
                Atom("suspend"),
                Atom("resume"),
                (Atom("debug"), (Atom("statistics"), True)),
                (Atom("debug"), (Atom("log"), True)),
                (Atom("debug"), Atom("no_debug")),
            ):
                assert await system(a, name, request) == Atom("ok")
            status = await system(a, name, Atom("get_status"))
            assert status[0] == Atom("status")
        # It is restarted, and ended by its supervisor; a node drains and stops with it.
        b.cast(("named", a.name), Atom("crash"))
        await until(lambda: a.whereis("named") not in (None, first))
        top = a.supervisor("top")
        await top.terminate_child("named")
        await top.restart_child("named")
        assert top.count_children()["active"] == 1
        assert await a.drain(5)


async def test_what_a_server_keeps_for_itself_has_names_of_its_own(backend: str) -> None:
    """A value that is kept on the object, under a name that others would choose, is lost to them:
    it begins with ``_tumen_``, or with two underscores in its class."""
    ours = {"_home", "_task"}  # checked when it starts; and free
    for kind in KINDS:
        for base in kind.__mro__:
            for name, value in vars(base).items():
                if name.startswith("__") or not name.startswith("_") or hasattr(value, "__get__"):
                    continue
                assert OWN.match(name) or name in ours, f"{base.__name__}.{name}"
    async with make_node() as node:
        pid = await node.start_server(NamedSupervisor)
        found = set(vars(node.supervisor(pid))) - set(TAKEN_BEFORE)
        assert {name for name in found if not OWN.match(name)} == {"_home"}


@pytest.mark.parametrize("name", ["_reply", "_serve", "_key", "_find", "_end", "_tumen_parent"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_method_of_a_reserved_name_is_refused_at_once(kind: type, name: str) -> None:
    with pytest.raises(TypeError, match=rf"Mine: the name {name} is in use"):
        type("Mine", (kind,), {name: lambda self: None})
    mixin = type("Mixin", (), {name: lambda self: None})
    with pytest.raises(TypeError, match=name):
        type("Mine", (mixin, kind), {})


@pytest.mark.parametrize("name", ["_reply", "_invoke", "_home"])
@pytest.mark.parametrize("where", ["__init__", "init"])
async def test_an_attribute_of_a_reserved_name_fails_the_start(
    backend: str, name: str, where: str
) -> None:
    def put(self: Any) -> None:
        setattr(self, name, 5)

    async def init(self: Any) -> None:
        put(self)

    body = {"init": init} if where == "init" else {"__init__": put}
    kind: Any = type("Mine", (tumen.GenServer,), body)
    async with make_node() as node:
        if (name, where) == ("_home", "__init__"):
            # The node puts its own there.
            await node.start_server(kind)
            return
        with pytest.raises(tumen.ServerDied) as died:
            await node.start_server(kind)
        assert name in str(died.value.__cause__)
        assert isinstance(died.value.__cause__, TypeError)


async def test_a_supervisor_below_reports_its_own_bad_name(backend: str) -> None:
    class Bad(tumen.GenServer):
        async def init(self) -> None:
            self._reply = 1  # type: ignore[assignment]

    async with make_node() as node:
        with pytest.raises(tumen.ServerDied, match="_reply"):
            await node.start_server(tumen.Supervisor, [tumen.ChildSpec("bad", Bad)])


async def test_a_subclass_of_a_subclass_is_a_server_too(backend: str) -> None:
    class Base(tumen.GenServer):
        async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
            return self._mine(request)

        def _mine(self, request: Any) -> Any:
            return request

    class Derived(Base):
        def _mine(self, request: Any) -> Any:
            return [request]

    async with make_node() as node:
        assert await node.call(await node.start_server(Derived), 1) == [1]
