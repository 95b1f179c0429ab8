"""Engine, node and batches, for trio, for a poll loop of your own, for tests.

No asyncio, no tasks, no hidden threads: processes are integer keys, events come in lists. The whole
of a consumer::

    engine = Engine(driver="host")                  # or "thread": then only event_fd matters
    node = CoreNode(engine, "py@127.0.0.1", cookie)
    poller.register(engine.poll_fd()); poller.register(node.event_fd())
    while True:
        if not node.arm():                          # True: events wait already
            poller.poll(engine.timeout_ns() / 1e6)
        engine.step(0)                              # drivers "host" and "loop"
        for event in node.take():
            ...                                     # event.kind is one of EVENT_*
            if event.kind == EVENT_MESSAGE:
                node.mail_taken(event.process, event.wire_bytes)
        node.flush()                                # once a turn: it batches

Under trio, ``await trio.lowlevel.wait_readable(fd)`` takes the place of the poller.
"""

from ._core import (
    EVENT_ABANDONED,
    EVENT_BROKEN,
    EVENT_CONNECT_FAILED,
    EVENT_DOWN,
    EVENT_EXIT,
    EVENT_EXITED,
    EVENT_HANDSHAKE_FAILED,
    EVENT_MESSAGE,
    EVENT_NAMED,
    EVENT_NODE_LOST,
    EVENT_NODEDOWN,
    EVENT_NODEUP,
    EVENT_REFUSED,
    EVENT_REGISTER_FAILED,
    EVENT_REGISTERED,
    EVENT_REPLY,
    EVENT_SPAWN,
    EVENT_SPAWN_REPLY,
    EVENT_STOPPED,
    EVENT_WRITABLE,
    CoreEvent,
    CoreNode,
    Engine,
    debug_counters,
)

__all__ = [
    "CoreEvent",
    "CoreNode",
    "EVENT_ABANDONED",
    "EVENT_BROKEN",
    "EVENT_CONNECT_FAILED",
    "EVENT_DOWN",
    "EVENT_EXIT",
    "EVENT_EXITED",
    "EVENT_HANDSHAKE_FAILED",
    "EVENT_MESSAGE",
    "EVENT_NAMED",
    "EVENT_NODEDOWN",
    "EVENT_NODEUP",
    "EVENT_NODE_LOST",
    "EVENT_REFUSED",
    "EVENT_REGISTERED",
    "EVENT_REGISTER_FAILED",
    "EVENT_REPLY",
    "EVENT_SPAWN",
    "EVENT_SPAWN_REPLY",
    "EVENT_STOPPED",
    "EVENT_WRITABLE",
    "Engine",
    "debug_counters",
]
