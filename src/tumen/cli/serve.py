"""``tumen serve``: finds an App, runs it until a signal comes, and leaves politely."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tumen
from tumen.events import NodeFailed

from .exits import Code, Failed
from .session import start_node, stop_signal

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from tumen.events import EventStream

    from .session import NodeOptions

__all__ = ["find_app", "serve_app"]

_log = logging.getLogger("tumen")


def find_app(spec: str) -> tuple[tumen.App, str]:
    """The App that ``MODULE_OR_FILE[:name]`` means, and a name for its node."""
    place, _, attribute = spec.partition(":")
    module = load(place)
    stem = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    if not attribute:
        attribute = the_app_of(module, place)
    app = getattr(module, attribute, None)
    if not isinstance(app, tumen.App):
        found = "nothing" if app is None else type(app).__name__
        raise Failed(Code.USAGE, f"{place}: {attribute} is {found}, not a tumen.App")
    return app, stem


def load(place: str) -> ModuleType:
    """Imports a module by its name, or a file by its path."""
    if not place.endswith(".py"):
        # As `python -m` does: what lies here can be named.
        sys.path.insert(0, "")
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not (place + ".").startswith(error.name + "."):
                raise
            raise Failed(Code.USAGE, f"there is no module {place}") from None
    path = Path(place).resolve()
    if not path.is_file():
        raise Failed(Code.USAGE, f"there is no file {place}")
    # Its neighbours can be imported, as when Python runs the file.
    sys.path.insert(0, str(path.parent))
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None, "a path that ends in .py has a loader"
    assert found.loader is not None, "a path that ends in .py has a loader"
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module
    found.loader.exec_module(module)
    return module


def the_app_of(module: ModuleType, place: str) -> str:
    """`app`, or the only App of a module."""
    names = [name for name, value in vars(module).items() if isinstance(value, tumen.App)]
    if "app" in names:
        return "app"
    if len(names) == 1:
        return names[0]
    told = ", ".join(sorted(names)) if names else "none"
    raise Failed(Code.USAGE, f"{place}: which App? It has {told}; say {place}:NAME")


async def serve_app(
    spec: str, options: NodeOptions, ready: Callable[[dict[str, Any]], None], drain_s: float
) -> None:
    """Runs the App; `ready` is told about the node once it can be called. A signal lets it finish
    what is under way, for `drain_s` seconds at most; a second one ends it at once."""
    app, stem = find_app(spec)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    with stop_signal() as stopping:
        node = await start_node(options, f"{stem}@127.0.0.1", app=app)
        try:
            with node.events() as events:
                broken = asyncio.create_task(failure(events))
                waiting = asyncio.create_task(stopping.wait())
                ready(
                    {
                        "node": node.name,
                        "port": node.info().port,
                        "visibility": "visible" if options.visible else "hidden",
                        "backend": str(node.backend),
                        "why": node.backend.why,
                    }
                )
                try:
                    await asyncio.wait([broken, waiting], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    broken.cancel()
                    waiting.cancel()
                if not stopping.is_set():
                    raise Failed(Code.FAILED, f"the node has failed: {broken.result()}")
                if not await node.drain(drain_s):
                    _log.warning("work is still under way after %s s: stopping", drain_s)
        finally:
            await node.stop()


async def failure(events: EventStream) -> str:
    """Waits until the engine below the node has failed, which ends the node; why."""
    async for event in events:
        if isinstance(event, NodeFailed):
            return event.reason
    return "it was stopped"
