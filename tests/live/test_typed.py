"""Elixir structs, Erlang records and maps as Python classes, from a BEAM and to a BEAM."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import pytest
import pytest_asyncio

import peers
import tumen
from nodes import make_node
from tumen import Atom, DecodeError, Pid
from tumen.typed import AsAtom, AsCharlist, Key

pytestmark = pytest.mark.asyncio

AnySet = set[int]
ISO = Atom("Elixir.Calendar.ISO")
DateTime = tuple[tuple[int, int, int], tuple[int, int, int]]


@tumen.record("file_info")
@dataclass(frozen=True)
class FileInfo:
    """-record(file_info, …) of kernel's file.hrl."""

    size: int | None
    type: Annotated[Literal["device", "directory", "other", "regular", "symlink"], AsAtom]
    access: Annotated[Literal["read", "write", "read_write", "none"], AsAtom]
    atime: DateTime | None
    mtime: DateTime | None
    ctime: DateTime | None
    mode: int | None
    links: int | None
    major_device: int | None
    minor_device: int | None
    inode: int | None
    uid: int | None
    gid: int | None


@tumen.struct("Elixir.Date")
@dataclass
class Date:
    year: int
    month: int
    day: int
    calendar: Atom = ISO


@tumen.struct("Elixir.URI")
@dataclass
class Uri:
    scheme: str | None
    host: str | None
    port: int | None
    path: str | None
    query: str | None = None
    fragment: str | None = None
    userinfo: str | None = None
    authority: str | None = None


@tumen.struct("Elixir.TypedShop.Address")
@dataclass
class Address:
    city: str


@tumen.struct("Elixir.TypedShop.User")
@dataclass
class User:
    id: int
    name: str
    emails: list[str] = field(default_factory=list)
    home: Address | None = None
    state: Annotated[Literal["new", "active"], AsAtom] = "new"
    admin: Annotated[bool, Key("admin?")] = False
    tags: set[str] = field(default_factory=set)
    owner: Pid | None = None


@tumen.record("order")
@dataclass
class Order:
    id: int
    title: Annotated[str, AsCharlist]
    parent: Order | None = None


@tumen.mapped()
@dataclass
class Counts:
    calls: int


@dataclass
class Whole:
    name: str
    admin: Annotated[bool, Key("admin?")]
    pid: Pid
    list: Annotated[str, AsCharlist]
    deep: Any
    set: AnySet


Error = tuple[Annotated[Literal["error"], AsAtom], Annotated[str, AsAtom]]
Requests = User | Order | Date | Counts


class Mirror(tumen.GenServer):
    """Reads every request as one of the classes, and answers with the object."""

    async def init(self) -> None:
        self.calls = 0

    async def handle_call(self, request: Any, caller: tumen.Caller) -> Any:
        self.calls += 1
        if request == Atom("counts"):
            return Counts(self.calls)
        try:
            value = tumen.convert(request, Requests)
        except DecodeError as error:
            return (Atom("error"), error.path)
        match value:
            case User():
                return (Atom("ok"), replace(value, state="active", tags={"seen"}, owner=caller.pid))
            case Order():
                return Order(value.id + 1, value.title, value)
        return value


@pytest_asyncio.fixture
async def node(backend: str, epmd: peers.Epmd) -> AsyncIterator[tumen.Node]:
    async with make_node(cookie=peers.COOKIE, epmd="auto") as node:
        await node.start_server(Mirror, name="mirror")
        yield node


async def test_record_of_a_beam_is_a_dataclass_and_goes_back_as_the_record(
    node: tumen.Node, shared_beam: peers.Beam, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    path.chmod(0o600)
    reply = await node.rpc(shared_beam.name, "file", "read_file_info", [str(path)])
    info = tumen.convert(reply, tuple[Annotated[Literal["ok"], AsAtom], FileInfo] | Error)[1]
    assert (info.size, info.type, info.inode) == (3, "regular", path.stat().st_ino)
    only_mode = replace(info, mode=0o640, atime=None, mtime=None, ctime=None, uid=None, gid=None)
    args = [str(path), only_mode]
    assert await node.rpc(shared_beam.name, "file", "write_file_info", args) == Atom("ok")
    assert path.stat().st_mode & 0o777 == 0o640
    assert await node.rpc(shared_beam.name, "erlang", "is_record", [info, Atom("file_info"), 14])


async def test_error_tuple_of_a_beam_is_the_other_member_of_the_union(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    reply = await node.rpc(shared_beam.name, "file", "read_file_info", ["/no/such/file"])
    read = tumen.convert(reply, tuple[Annotated[Literal["ok"], AsAtom], FileInfo] | Error)
    assert read == ("error", "enoent")


async def test_record_that_a_beam_sends_is_answered_with_a_record(
    node: tumen.Node, beam: peers.Beam
) -> None:
    source = (
        'R = gen_server:call({mirror, N}, {order, 1, "título", {order, 0, [], undefined}}),'
        '{order, 2, "título", {order, 1, "título", {order, 0, [], undefined}}} = R,'
        "#{calls := 2} = C = gen_server:call({mirror, N}, counts), [calls] = maps:keys(C),"
        'gen_server:call({mirror, N}, {order, 1, "x", {order, 0, 5, undefined}})'
    )
    assert await beam.eval(source, N=Atom(node.name)) == (Atom("error"), b"$.parent.title")


async def test_what_a_beam_encodes_is_read_as_the_type(
    node: tumen.Node, shared_beam: peers.Beam
) -> None:
    source = (
        "term_to_binary(#{name => <<\"é\"/utf8>>, 'admin?' => true, pid => self(), "
        'list => "abc", deep => [#{{1, 2.5} => [a, <<"b">>]}], set => #{1 => [], 2 => []}})'
    )

    data = await node.rpc(shared_beam.name, "erlang", "term_to_binary", [{"plain": 1}])
    assert tumen.decode(data, as_=dict[str, int]) == {"plain": 1}
    data = await shared_beam.eval(source)
    whole = tumen.decode(data, as_=Whole)
    assert (whole.name, whole.admin, whole.list, whole.set) == ("é", True, "abc", {1, 2})
    assert whole.pid.node == shared_beam.name
    assert whole.deep == [{(1, 2.5): [Atom("a"), b"b"]}]


class Options(TypedDict):
    ordered: bool
    minutes: float


async def test_real_structs_of_elixir_go_there_and_back(
    node: tumen.Node, elixir: peers.Beam
) -> None:
    date = tumen.convert(await elixir.eval("~D[2024-02-28]"), Date)
    assert date == Date(2024, 2, 28)
    later = await node.rpc(elixir.name, "Elixir.Date", "add", [date, 2])
    assert tumen.convert(later, Date) == Date(2024, 3, 1)
    text = b"https://ann@example.com:8443/a/b?c=d#e"
    uri = tumen.convert(await node.rpc(elixir.name, "Elixir.URI", "parse", [text]), Uri)
    assert (uri.scheme, uri.host, uri.port, uri.path) == ("https", "example.com", 8443, "/a/b")
    assert await node.rpc(elixir.name, "Elixir.URI", "to_string", [uri]) == text
    members = await elixir.eval('MapSet.new(["a", "b"])')
    assert tumen.convert(members, set[str]) == {"a", "b"}
    options = await elixir.eval('%{"ordered" => true, "minutes" => 5}')
    assert tumen.convert(options, Options) == {"ordered": True, "minutes": 5.0}


async def test_elixir_matches_our_objects_as_its_structs(
    node: tumen.Node, elixir: peers.Beam
) -> None:
    await elixir.eval(
        "defmodule TypedShop.Address do defstruct [:city] end;"
        "defmodule TypedShop.User do defstruct [:id, :name, :home, :owner, emails: [], "
        "state: :new, admin?: false, tags: []] end; :ok"
    )
    n = Atom(node.name)
    seen = await elixir.eval(
        'user = %TypedShop.User{id: 1, name: "Žofie", emails: ["a@b"], admin?: true, '
        'home: %TypedShop.Address{city: "Ulm"}, tags: MapSet.new(["x"])};'
        '{:ok, %TypedShop.User{state: :active, tags: ["seen"], owner: owner} = back} = '
        "GenServer.call({:mirror, n}, user);"
        "{%{back | state: :new, tags: user.tags, owner: nil} == user, owner == self(), "
        "map_size(back) == map_size(user)}",
        n=n,
    )
    assert seen == (True, True, True)
    call = 'GenServer.call({:mirror, n}, %TypedShop.User{id: 1, name: "a", emails: ["b", :c]})'
    assert await elixir.eval(call, n=n) == (Atom("error"), b"$.emails[1]")
    user = User(7, "Ann", home=Address("Brno"), tags={"t"})
    source = "%TypedShop.User{id: 7, home: %TypedShop.Address{city: city}} = user; city"
    assert await elixir.eval(source, user=user) == b"Brno"
    fun = await node.rpc(elixir.name, "Elixir.Map", "fetch!", [user, Atom("admin?")])
    assert fun is False
