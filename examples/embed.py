"""A node in somebody else's loop: cffi and tumen.h alone, no asyncio, terms as bytes.

    TUMEN_COOKIE=... python examples/embed.py embed@127.0.0.1 app@127.0.0.1

The host here is a loop around poll(2), as an author of another runtime has one. It makes no thread:
when the engine's descriptor is readable, or its next timer is due, it lets the engine take a step,
and then takes the node's events. Pings the core answers by itself. On the peer::

    net_adm:ping('embed@127.0.0.1').
    gen_server:call({embed, 'embed@127.0.0.1'}, hello).      % {echoed, hello}
    gen_server:call({embed, 'embed@127.0.0.1'}, stop).       % ok, and it ends
"""

import os
import select
import struct
import sys

from tumen._ffi import ffi, lib

# Tags of the external term format that a call is made of.
ATOM, SMALL_ATOM, ATOM_UTF8, SMALL_ATOM_UTF8 = 100, 115, 118, 119
SMALL_INTEGER, INTEGER, FLOAT, SMALL_BIG, LARGE_BIG = 97, 98, 70, 110, 111
SMALL_TUPLE, LARGE_TUPLE, NIL, STRING, LIST, MAP = 104, 105, 106, 107, 108, 116
BINARY, BIT_BINARY, PID, REFERENCE = 109, 77, 88, 90

# Milliseconds that the loop sleeps at most; whatever has to happen sooner wakes it.
SLEEP_MS = 1000


def atom(text):
    data = text.encode()
    return bytes((SMALL_ATOM_UTF8, len(data))) + data


def pair(first, second):
    return bytes((SMALL_TUPLE, 2)) + first + second


def skip(term, at):
    """Where the term that begins at `at` ends. The core has validated the bytes."""
    tag = term[at]
    size = {SMALL_INTEGER: 2, INTEGER: 5, FLOAT: 9, NIL: 1}.get(tag)
    if size:
        return at + size
    if tag in (SMALL_ATOM, SMALL_ATOM_UTF8):
        return at + 2 + term[at + 1]
    if tag in (ATOM, ATOM_UTF8, STRING):
        return at + 3 + struct.unpack_from(">H", term, at + 1)[0]
    if tag == SMALL_BIG:
        return at + 3 + term[at + 1]
    if tag == PID:
        return skip(term, at + 1) + 12
    if tag == REFERENCE:
        return skip(term, at + 3) + 4 + 4 * struct.unpack_from(">H", term, at + 1)[0]
    if tag == SMALL_TUPLE:
        return skip_many(term, at + 2, term[at + 1])
    (count,) = struct.unpack_from(">I", term, at + 1)
    if tag in (BINARY, BIT_BINARY, LARGE_BIG):
        return at + 5 + (tag != BINARY) + count
    if tag == LARGE_TUPLE:
        return skip_many(term, at + 5, count)
    if tag == LIST:
        return skip_many(term, at + 5, count + 1)
    if tag == MAP:
        return skip_many(term, at + 5, 2 * count)
    raise ValueError(f"this example does not know tag {tag}")


def skip_many(term, at, count):
    for _ in range(count):
        at = skip(term, at)
    return at


def parse_call(term):
    """``(tag, request)`` of ``{'$gen_call', {Pid, Tag}, Request}``, as bytes; None: not a call."""
    head = bytes((SMALL_TUPLE, 3))
    for name in (atom("$gen_call"), bytes((SMALL_ATOM, 9)) + b"$gen_call"):
        if term.startswith(head + name):
            caller = len(head + name)
            tag = skip(term, caller + 2)
            request = skip(term, tag)
            return term[tag:request], term[request:]
    return None


def parse_alias(tag):
    """Node, creation and words of the reference in ``[alias|Ref]``; None: another tag."""
    if tag[:5] != bytes((LIST, 0, 0, 0, 1)):
        return None
    at = skip(tag, 5)
    if tag[at] != REFERENCE:
        return None
    (count,) = struct.unpack_from(">H", tag, at + 1)
    end = skip(tag, at + 3)
    name_at = at + 3 + (2 if tag[at + 3] in (SMALL_ATOM, SMALL_ATOM_UTF8) else 3)
    creation, *words = struct.unpack_from(f">{1 + count}I", tag, end)
    return tag[name_at:end], creation, words


def check(result):
    """A result of the core; a negative one is an error."""
    if result < 0:
        raise OSError(result, ffi.string(lib.tumen_error_text(result)).decode())
    return result


class Text:
    """Bytes lent to the core for one call."""

    def __init__(self, data):
        self.memory = ffi.from_buffer(data) if data else ffi.NULL
        self.bytes = ffi.new("tumen_bytes *", {"ptr": self.memory, "len": len(data)})[0]


def text(view):
    return ffi.buffer(view.ptr, view.len)[:] if view.len else b""


class Embedded:
    """One engine, one node, one process."""

    def __init__(self, name, cookie):
        options = ffi.new("tumen_engine_options *")
        options.driver = lib.TUMEN_DRIVER_HOST
        engine = ffi.new("tumen_engine **")
        check(lib.tumen_engine_create(options, engine))
        self.engine = engine[0]

        # cffi keeps no reference to what a struct points at.
        self.kept = [ffi.new("char[]", name.encode()), ffi.new("char[]", cookie.encode())]
        wanted = ffi.new("tumen_node_options *")
        wanted.name, wanted.cookie = self.kept
        wanted.listen = 1
        wanted.epmd_port = int(os.environ.get("ERL_EPMD_PORT", "0"))
        node = ffi.new("tumen_node **")
        check(lib.tumen_node_create(self.engine, wanted, node))
        self.node = node[0]

        key = ffi.new("tumen_key *")
        check(lib.tumen_spawn(self.node, key))
        self.process = key[0]
        check(lib.tumen_register(self.node, Text(b"embed").bytes, self.process))
        self.stopping = False

    def run(self, peer):
        """The host's loop."""
        check(lib.tumen_node_connect(self.node, Text(peer.encode()).bytes, ffi.NULL, 0))
        poll = select.poll()
        poll.register(lib.tumen_engine_poll_fd(self.engine), select.POLLIN)
        poll.register(lib.tumen_node_event_fd(self.node), select.POLLIN)
        while not self.stopping:
            check(lib.tumen_engine_step(self.engine, 0))
            self.take()
            lib.tumen_flush(self.node)
            if lib.tumen_node_arm(self.node):
                continue
            timer_ms = lib.tumen_engine_timeout_ns(self.engine) // 1_000_000 + 1
            poll.poll(min(SLEEP_MS, timer_ms))

    def take(self):
        """Handles all events that wait."""
        while (batch := lib.tumen_node_take(self.node)) != ffi.NULL:
            try:
                while (event := lib.tumen_batch_next(batch)) != ffi.NULL:
                    self.handle(event)
            finally:
                lib.tumen_batch_free(batch)

    def handle(self, event):
        if event.kind == lib.TUMEN_EVENT_NODEUP:
            say(f"up {text(event.node).decode()}")
        elif event.kind in (lib.TUMEN_EVENT_NODEDOWN, lib.TUMEN_EVENT_CONNECT_FAILED):
            say(f"down {text(event.node).decode()}: {text(event.text).decode()}")
            self.stopping = True
        elif event.kind == lib.TUMEN_EVENT_MESSAGE:
            lib.tumen_mail_taken(self.node, event.process, event.wire_bytes)
            call = parse_call(text(event.term))
            if call is not None:
                # A field of this name needs getattr: `from` is a word of Python's.
                self.answer(getattr(event, "from"), *call)

    def answer(self, caller, tag, request):
        """Replies to a call: to its alias, so that a late reply reaches nobody, else to the pid."""
        say(f"call: {len(request)} bytes, {request[:32]!r}")
        reply = pair(atom("echoed"), request)
        if request in (atom("stop"), bytes((SMALL_ATOM, 4)) + b"stop"):
            reply = atom("ok")
            self.stopping = True
        target = ffi.new("tumen_target *")
        alias = parse_alias(tag)
        if alias is None:
            target.kind = lib.TUMEN_TO_PID
            target.pid = caller
        else:
            node = Text(alias[0])
            target.kind = lib.TUMEN_TO_REF
            target.ref.node = node.bytes
            target.ref.creation = alias[1]
            target.ref.count = len(alias[2])
            target.ref.words[0 : len(alias[2])] = alias[2]
        message = Text(pair(tag, reply))
        flags = lib.TUMEN_SEND_CONTROL | lib.TUMEN_SEND_NOCONNECT
        check(lib.tumen_send(self.node, self.process, target, message.bytes, flags))

    def close(self):
        """What is queued is written; the peers see the connections close."""
        if self.node != ffi.NULL:
            lib.tumen_node_destroy(self.node)
        lib.tumen_engine_destroy(self.engine)


def say(line):
    print(line, flush=True)


def main():
    if len(sys.argv) != 3 or "TUMEN_COOKIE" not in os.environ:
        print("usage: TUMEN_COOKIE=... embed.py NAME@HOST PEER@HOST", file=sys.stderr)
        return 2
    name, peer = sys.argv[1:]
    embedded = Embedded(name, os.environ["TUMEN_COOKIE"])
    say(f"tumen {ffi.string(lib.tumen_version()).decode()} as {name}, calling {peer}")
    try:
        embedded.run(peer)
    except KeyboardInterrupt:
        say("interrupted")
    finally:
        embedded.close()
    say("closed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
