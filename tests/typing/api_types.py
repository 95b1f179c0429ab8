"""What a type checker sees of the public names. Each line says what it must answer.

test_types.py runs mypy over this file and compares; nothing here is executed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, reveal_type

import tumen
from tumen import (
    App,
    Atom,
    BatchServer,
    Call,
    ChildSpec,
    GenServer,
    Limits,
    Node,
    Pid,
    Process,
    Reference,
)
from tumen.typed import AsAtom

app = App()


@app.expose("Elixir.ML", "predict")
def predict(x: int) -> str:
    return str(x)


reveal_type(predict(1))  # expect: str


@app.server("counter", 10)
class Counter(GenServer):
    n: int

    async def init(self, start: int = 0) -> None:
        self.n = start
        reveal_type(self.pid)  # expect: tumen._term.Pid
        reveal_type(self.node)  # expect: tumen.node.Node


reveal_type(Counter)  # expect: def () -> api_types.Counter


@app.server("model")
class Model(BatchServer):
    max_batch, max_wait = 64, 0.005

    async def handle_calls(self, calls: list[Call]) -> list[int]:
        for request, caller in calls:
            reveal_type(request)  # expect: Any
            reveal_type(caller.abandoned)  # expect: bool
        return [call.request for call in calls]


class BlockingModel(BatchServer):
    @tumen.blocking
    def handle_calls(self, calls: list[Call]) -> Any:
        return [call.request for call in calls]


async def echo(proc: Process) -> None:
    reveal_type(proc.pid)  # expect: tumen._term.Pid
    async for message in proc:
        reveal_type(message)  # expect: Any
        match message:
            case (Atom("echo"), Pid() as sender, _):
                reveal_type(sender)  # expect: tumen._term.Pid


async def use(node: Node) -> None:
    reveal_type(node.name)  # expect: str
    reveal_type(await node.ping("app@127.0.0.1"))  # expect: bool
    results = await node.multicall(["app@127.0.0.1"], "erlang", "node", timeout=1)
    reveal_type(results)  # expect: dict[str, tumen.broadcast.RpcResult]
    reveal_type(await node.call("counter", 1, timeout=1.0))  # expect: Any
    reveal_type(await node.rpc("app@127.0.0.1", "lists", "seq", [1, 5]))  # expect: Any
    reveal_type(node.spawn(echo, name="echo"))  # expect: tumen._term.Pid
    reveal_type(await node.start_server(Counter, 0, name="second"))  # expect: tumen._term.Pid
    sup = node.supervisor("workers")
    reveal_type(sup)  # expect: tumen.supervisor.Supervisor
    reveal_type(await sup.start_child(ChildSpec("third", Counter, (1,))))  # expect: tumen._term.Pid
    reveal_type(sup.count_children())  # expect: dict[str, int]
    reveal_type(node.whereis("second"))  # expect: tumen._term.Pid | None
    reveal_type(node.nodes())  # expect: list[str]
    reveal_type(node.limits)  # expect: tumen.options.Limits
    reveal_type(node.send(("counter", "app@127.0.0.1"), 1))  # expect: None


async def run() -> None:
    async with Node("py@127.0.0.1", app=app, limits=Limits()) as node:
        reveal_type(node)  # expect: tumen.node.Node


reveal_type(tumen.encode([1]))  # expect: bytes
reveal_type(tumen.decode(b""))  # expect: Any
reveal_type(tumen.decode(b"", as_=int))  # expect: int
reveal_type(tumen.decode(b"", as_=list[str]))  # expect: list[str]
reveal_type(tumen.decode(b"", binaries="utf8", as_=int | None))  # expect: Any | int
reveal_type(tumen.convert(1, dict[str, float]))  # expect: dict[str, float]
reveal_type(tumen.convert(1, int | None))  # expect: Any | int


@tumen.struct("Elixir.Shop.User")
@dataclass
class User:
    id: int
    state: Annotated[Literal["new"], AsAtom] = "new"


reveal_type(tumen.decode(b"", as_=User))  # expect: api_types.User
reveal_type(User(1).state)  # expect: Literal['new']
reveal_type(Atom("ok"))  # expect: tumen._term.Atom


def identifiers(pid: Pid, ref: Reference) -> None:
    reveal_type(pid.node)  # expect: str
    reveal_type(ref.creation)  # expect: int
