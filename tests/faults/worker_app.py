"""What `tumen serve` runs in test_rolling.py: servers of one group, some of whose calls block."""

from __future__ import annotations

import os
import time
from typing import Any

import tumen
from tumen import Atom

GROUP = "models"
SERVERS = 4

app = tumen.App()


class Model(tumen.GenServer):
    async def init(self) -> None:
        await self.node.connect(os.environ["TUMEN_TEST_PEER"], timeout=30)
        self.node.pg.join(Atom(GROUP), self.pid)

    @tumen.blocking
    def handle_call(self, request: Any, caller: tumen.Caller) -> Any:  # type: ignore[override]
        assert request[Atom("__struct__")] == Atom("Elixir.TumenRequest")
        time.sleep(request[Atom("block_ms")] / 1000)  # as long as the caller has asked for
        payload = request[Atom("payload")]
        return {
            Atom("__struct__"): Atom("Elixir.TumenAnswer"),
            Atom("id"): request[Atom("id")],
            Atom("payload"): payload[::-1],
        }


for number in range(SERVERS):
    app.server(f"model{number}")(Model)
