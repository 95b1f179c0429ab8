"""`GenEvent`: an event manager, for the `gen_event` callers of other nodes."""

from __future__ import annotations

from typing import Any, Final

from . import system
from ._term import Atom, Pid
from .reasons import NORMAL
from .server import Caller, GenServer, Stop, is_from

__all__ = ["GenEvent"]

_EXIT: Final = Atom("EXIT")
_UNDEF: Final = Atom("undef")
_NOT_FOUND: Final = (system.ERROR, Atom("module_not_found"))


class GenEvent(GenServer):
    """A server that other nodes use as an event manager: ``gen_event:notify({Name, Node}, Event)``.

    The class is its one handler, under the name `handler`, by default its module and name; that is
    what `gen_event:which_handlers` shows and `gen_event:call` asks for. Handlers of a BEAM cannot
    be installed here: to ask for one gets the answer for a module that does not exist.

    `handle_event` gets what `gen_event:notify` and `gen_event:sync_notify` send, `handle_call` what
    `gen_event:call` asks. The rest is as in a `GenServer`; casts and calls of `gen_server` too. An
    exception ends the manager, while on a BEAM it would remove the handler.
    """

    handler: str | None = None

    async def handle_event(self, event: Any) -> Any:
        """An event. The result is ignored, unless it is a `Stop`."""

    def _info(self, message: Any) -> Any:
        if type(message) is tuple:
            if len(message) == 2 and message[0] == Atom("notify"):
                return self._invoke(self.handle_event, message[1])
            if len(message) == 3 and isinstance(message[0], Pid) and is_from(message[1]):
                return self._command(message)
        return super()._info(message)

    async def _command(self, message: Any) -> Any:
        """What `gen_event` asks for: ``{Pid, {Pid, Tag}, Command}``."""
        _, origin, command = message
        caller = Caller(self, origin[0], origin[1], origin is self._passed_on)
        result: Any = None
        own = self._handler_id()
        match command:
            case (Atom("sync_notify"), event):
                result = await self._tumen_run(self.handle_event, event)
                await self._reply(caller, system.OK)
            case (Atom("call"), handler, query) if handler == own:
                result = self._begin_call(query, caller)
                if hasattr(result, "__await__"):
                    result = await result
                await self._reply(caller, result)
            case (Atom("call"), _, _):
                await self._reply(caller, (system.ERROR, Atom("bad_module")))
            case (Atom("add_handler"), handler, args) | (
                Atom("add_sup_handler"),
                handler,
                args,
                _,
            ):
                await self._reply(caller, _undefined(handler, args))
            case (Atom("swap_handler"), _, _, handler, args) | (
                Atom("swap_sup_handler"),
                _,
                _,
                handler,
                args,
                _,
            ):
                await self._reply(caller, (system.ERROR, _undefined(handler, args)))
            case (Atom("delete_handler"), handler, _):
                refused = (system.ERROR, Atom("notsup"))
                await self._reply(caller, refused if handler == own else _NOT_FOUND)
            case Atom("which_handlers"):
                await self._reply(caller, [own])
            case Atom("get_modules"):
                await self._reply(caller, [own])
            case Atom("stop"):
                # As OTP 17 and earlier stop one.
                result = Stop(NORMAL)
                await self._reply(caller, system.OK)
            case _:
                return await self._tumen_run(self.handle_info, message)
        return result

    def _handler_id(self) -> Atom:
        return Atom(self.handler) if self.handler else system.module_of(type(self))


def _undefined(handler: Any, args: Any) -> Any:
    """What a BEAM says when it has no such module; `handler` is a module, or that and an id."""
    module = handler[0] if isinstance(handler, tuple) and len(handler) == 2 else handler
    return (_EXIT, (_UNDEF, [(module, Atom("init"), [args], [])]))
