"""The HTTP service in the place of a node: bench/instead.py. uvicorn, bare ASGI, JSON by orjson.

python http_app.py
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import sys
from importlib.metadata import version
from typing import Any

import orjson
import uvicorn
import uvloop

HEADERS = [(b"content-type", b"application/json")]


def answer(path: str, request: Any) -> Any:
    """The same jobs that tumen_peer.py does."""
    if path == "/map":
        return {**request, "n": request["n"] + 1}
    return {"n": request["n"] + 1, "size": len(base64.b64decode(request["data"]))}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """ASGI, without a framework: it could only be slower."""
    parts = []
    while True:
        event = await receive()
        parts.append(event["body"])
        if not event.get("more_body"):
            break
    body = orjson.dumps(answer(scope["path"], orjson.loads(b"".join(parts))))
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, length]})
    await send({"type": "http.response.body", "body": body})


async def main() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        config = uvicorn.Config(
            app, http="httptools", log_level="error", access_log=False, lifespan="off"
        )
        server = uvicorn.Server(config)
        hello = {
            "ready": "http",
            "url": f"http://127.0.0.1:{listener.getsockname()[1]}/",
            "uvicorn": version("uvicorn"),
            "httptools": version("httptools"),
            "uvloop": version("uvloop"),
            "orjson": version("orjson"),
        }
        print(json.dumps(hello), flush=True)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        # It ends when the bench closes its standard input.
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        server.should_exit = True
        await serving


if __name__ == "__main__":
    uvloop.run(main())
