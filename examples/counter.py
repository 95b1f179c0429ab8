"""A counter that any BEAM can call, and functions that it may run.

    tumen serve examples/counter.py --name py@127.0.0.1

From a shell started with ``erl -name a@127.0.0.1`` and the same cookie::

    gen_server:call({counter, 'py@127.0.0.1'}, {add, 5}).
    rpc:call('py@127.0.0.1', 'Elixir.ML', predict, [[1.0, 2.0]]).

examples/counter.erl and examples/counter.exs do more of the same.
"""

import asyncio
import time

from tumen import App, Atom, Exit, GenServer, Pid

app = App()


@app.server("counter", 0)
class Counter(GenServer):
    """Counts, and shows what a caller on the BEAM sees when things go wrong."""

    async def init(self, start=0):
        self.total = start

    async def handle_call(self, request, caller):
        match request:
            case bool():
                return (Atom("error"), Atom("not_a_number"))
            case (Atom("add"), int(number)) | int(number):
                self.total += number
                return self.total
            case Atom("get"):
                return self.total
            case Atom("self"):
                return self.pid
            case (Atom("echo"), term):
                return term
            case Atom("crash"):
                raise RuntimeError("the counter was asked to crash")
            case (Atom("exit"), reason):
                raise Exit(reason)
            case (Atom("link"), Pid() as pid):
                self.link(pid)
                return Atom("ok")
            case (Atom("slow"), int(milliseconds)):
                # Only this server waits; the node goes on.
                await asyncio.sleep(milliseconds / 1000)
                return Atom("done")
        return (Atom("error"), Atom("unknown_request"))

    async def handle_cast(self, request):
        match request:
            case (Atom("add"), int(number)):
                self.total += number


@app.expose("Elixir.ML", "predict")
def predict(features):
    """A plain function runs in a thread of a bounded pool; here a model would be asked."""
    return {Atom("score"): sum(features) / max(1, len(features)), Atom("model"): "mean"}


@app.expose("demo", "add", inline=True)
def add(a, b):
    """inline: so short that it runs on the loop itself."""
    return a + b


@app.expose("demo", "echo")
async def echo(term):
    """A coroutine runs on the loop."""
    return term


@app.expose("demo", "fail")
def fail(text):
    """The caller gets error:{exception, …} with type, text and traceback."""
    raise ValueError(text.decode())


@app.expose("demo", "block")
def block(milliseconds):
    """Blocks its thread, not the node."""
    time.sleep(milliseconds / 1000)
    return Atom("done")
