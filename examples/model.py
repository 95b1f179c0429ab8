"""A model that answers many callers with one invocation.

    tumen serve examples/model.py --name ml@127.0.0.1

From a shell started with ``erl -name a@127.0.0.1`` and the same cookie, as from any process of an
Erlang or Elixir system::

    gen_server:call({model, 'ml@127.0.0.1'}, {predict, [1.0, 2.0, 3.0]}).
"""

from tumen import App, Atom, BatchServer, blocking

app = App()


@app.server("model")
class Model(BatchServer):
    """Calls that come within five milliseconds share an invocation, 64 at most."""

    max_batch = 64
    max_wait = 0.005

    async def init(self):
        self.invocations = self.calls = 0

    @blocking
    def handle_calls(self, calls):
        """Runs in a thread of the pool: here the features of all callers would be put into one
        tensor. One reply for each call, in their order; an exception object fails that call."""
        self.invocations += 1
        self.calls += len(calls)
        return [self.score(call.request) for call in calls]

    def score(self, request):
        match request:
            case (Atom("predict"), [_, *_] as features):
                return (Atom("ok"), sum(features) / len(features))
            case Atom("figures"):
                return {Atom("invocations"): self.invocations, Atom("calls"): self.calls}
        return ValueError(f"not a request: {request!r}")
