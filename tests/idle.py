"""Processes that do nothing: a test reads their mail and sends in their name."""

from __future__ import annotations

import asyncio

import tumen

__all__ = ["idle_process"]


async def idle_process(node: tumen.Node) -> tumen.Process:
    """A process that lives until the node stops, or a signal ends it."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[tumen.Process] = loop.create_future()

    async def main(proc: tumen.Process) -> None:
        made.set_result(proc)
        await loop.create_future()

    node.spawn(main)
    return await made
