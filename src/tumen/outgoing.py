"""`Outgoing`: what processes send, and nodes through the process that is their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import broadcast, calls
from ._core import CoreProcess

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence

    from ._term import Atom
    from .broadcast import RpcResult
    from .calls import Destination
    from .process import Process
    from .running import Running

__all__ = ["Outgoing"]


class Outgoing:
    """Calls and broadcasts, of a `Node` and of a `Process` alike."""

    __slots__ = ()

    def _tumen_sender(self) -> tuple[Running, Process]:
        """The node, and the process that all of this comes from."""
        raise TypeError(f"{type(self).__name__} does not say who sends")

    async def send_wait(self, dest: Destination, message: Any) -> None:
        """As `send`, but waits for room where that raises `Busy`."""
        home, owner = self._tumen_sender()
        await calls.send_wait(home, dest, lambda: CoreProcess.send(owner, dest, message))

    def call(
        self, dest: Destination, request: Any, timeout: float | None = 5.0
    ) -> Coroutine[Any, Any, Any]:
        """gen_server:call: the reply, to be awaited.

        `CallTimeout` after `timeout` seconds (None: never), `NoProc`, `NoConnection`, `ServerDied`
        with the reason. ``may_have_executed`` tells whether the request can have arrived. A late
        reply reaches nobody.
        """
        home, owner = self._tumen_sender()
        return calls.call(home, owner, dest, request, timeout)

    def rpc(
        self,
        node: str,
        module: str | Atom,
        function: str | Atom,
        args: Sequence[Any] = (),
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """erpc:call: runs a function on another node; its value, to be awaited.

        `RemoteError` with class and reason when it raised, or could not be run; `NoConnection`;
        `CallTimeout` after `timeout` seconds: then the work may go on over there.
        """
        home, owner = self._tumen_sender()
        return calls.rpc(home, owner, node, module, function, args, timeout)

    def rpc_cast(
        self, node: str, module: str | Atom, function: str | Atom, args: Sequence[Any] = ()
    ) -> None:
        """rpc:cast: runs a function on another node; nobody hears what comes of it. As `send`."""
        home, owner = self._tumen_sender()
        broadcast.rpc_cast(home, owner, node, module, function, args)

    def multicall(
        self,
        nodes: Iterable[str | Atom],
        module: str | Atom,
        function: str | Atom,
        args: Sequence[Any] = (),
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, dict[str, RpcResult]]:
        """erpc:multicall: runs a function on many nodes at once, to be awaited.

        An `RpcResult` for each node, in the order given: its value, or the error that `rpc` would
        have raised. One deadline: `timeout` seconds from now, whatever was answered by then stands.
        """
        home, owner = self._tumen_sender()
        return broadcast.multicall(home, owner, nodes, module, function, args, timeout)

    def abcast(
        self, nodes: Iterable[str | Atom], name: str | Atom, message: Any
    ) -> dict[str, Exception]:
        """rpc:abcast: sends to the process of that name on each node. Never blocks.

        The nodes that it was not sent to, with the error of `send`, mostly `Busy`; mostly none.
        """
        return broadcast.abcast(self._tumen_sender()[1], nodes, name, message)

    async def sbcast(
        self,
        nodes: Iterable[str | Atom],
        name: str | Atom,
        message: Any,
        timeout: float | None = 5.0,
    ) -> dict[str, RpcResult]:
        """rpc:sbcast: as `abcast`, and waits until each node has the message in that mailbox.

        An `RpcResult` for each node; `NoProc` where nobody has that name.
        """
        return await broadcast.sbcast(self._tumen_sender()[0], nodes, name, message, timeout)
