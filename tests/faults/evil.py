"""EVIL: a peer that says what it is told to, byte for byte, at any pace.

    with Evil("evil@127.0.0.1") as evil:
        evil.dial(address)
        evil.shake()                       # the whole handshake, as the one who connects
        evil.send(frame(reg_send(evil.pid(1), "sink", integer(7))))
        assert evil.closed()

It blocks, and its reads end after TIMEOUT. It shares no line with tumen: handshake, frames and the
few terms that it needs are written down here once more, so both cannot be wrong in the same way.

    python evil.py ping HOST PORT NODE COOKIE

pings that node until its standard input ends, then prints how long the answers took, as JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import secrets
import select
import socket
import struct
import sys
import threading
import time
from typing import Any, Self

HOST = "127.0.0.1"
# Seconds until a read that brings nothing fails.
TIMEOUT = 20.0

# What OTP 25 made mandatory, by bit; an acceptor must refuse who lacks one of them.
MANDATORY = {
    2: "EXTENDED_REFERENCES",
    4: "FUN_TAGS",
    7: "NEW_FUN_TAGS",
    8: "EXTENDED_PIDS_PORTS",
    9: "EXPORT_PTR_TAG",
    10: "BIT_BINARIES",
    11: "NEW_FLOATS",
    16: "UTF8_ATOMS",
    17: "MAP_TAG",
    18: "BIG_CREATION",
    24: "HANDSHAKE_23",
}
M25 = sum(1 << bit for bit in MANDATORY)
MANDATORY_25_DIGEST = 1 << 26
# Those, and: monitors, monitors by name, sender in messages, payloads in exits, UNLINK_ID, spawn,
# long pids, aliases. Neither an atom cache nor fragments.
FLAGS = M25 | 1 << 3 | 1 << 5 | 1 << 19 | 1 << 22 | 1 << 25 | 1 << 32 | 1 << 34 | 1 << 35

_numbers = itertools.count(1)


# -- terms, without the version byte --------------------------------------------------------------


def atom(text: str) -> bytes:
    data = text.encode()
    return bytes([119, len(data)]) + data


def integer(value: int) -> bytes:
    if 0 <= value < 256:
        return bytes([97, value])
    if -(1 << 31) <= value < 1 << 31:
        return struct.pack(">Bi", 98, value)
    digits = abs(value).to_bytes((abs(value).bit_length() + 7) // 8, "little")
    return bytes([110, len(digits), value < 0]) + digits


def binary(data: bytes) -> bytes:
    return struct.pack(">BI", 109, len(data)) + data


def tuple_of(*terms: bytes) -> bytes:
    return bytes([104, len(terms)]) + b"".join(terms)


NIL = b"j"


def improper(head: bytes, tail: bytes) -> bytes:
    return struct.pack(">BI", 108, 1) + head + tail


def list_of(*terms: bytes) -> bytes:
    return struct.pack(">BI", 108, len(terms)) + b"".join(terms) + NIL


def pid(node: str, number: int, serial: int, creation: int) -> bytes:
    return b"X" + atom(node) + struct.pack(">III", number, serial, creation)


def reference(node: str, creation: int, *words: int) -> bytes:
    ids = struct.pack(f">{len(words)}I", *words)
    return struct.pack(">BH", 90, len(words)) + atom(node) + struct.pack(">I", creation) + ids


def decode(data: bytes, at: int = 0) -> tuple[Any, int]:
    """The term at an offset, and where it ends. Atoms are str, identifiers tuples."""
    tag, at = data[at], at + 1
    match tag:
        case 97:
            return data[at], at + 1
        case 98:
            return struct.unpack_from(">i", data, at)[0], at + 4
        case 110:
            size, sign = data[at], data[at + 1]
            value = int.from_bytes(data[at + 2 : at + 2 + size], "little")
            return -value if sign else value, at + 2 + size
        case 119:
            return data[at + 1 : at + 1 + data[at]].decode(), at + 1 + data[at]
        case 118:
            size = struct.unpack_from(">H", data, at)[0]
            return data[at + 2 : at + 2 + size].decode(), at + 2 + size
        case 109:
            size = struct.unpack_from(">I", data, at)[0]
            return data[at + 4 : at + 4 + size], at + 4 + size
        case 107:
            size = struct.unpack_from(">H", data, at)[0]
            return list(data[at + 2 : at + 2 + size]), at + 2 + size
        case 106:
            return [], at
        case 104:
            values, at = _decode_many(data, at + 1, data[at])
            return tuple(values), at
        case 108:
            values, at = _decode_many(data, at + 4, struct.unpack_from(">I", data, at)[0])
            tail, at = decode(data, at)
            return (values if tail == [] else ("improper", values, tail)), at
        case 88:
            node, at = decode(data, at)
            return ("pid", node, *struct.unpack_from(">III", data, at)), at + 12
        case 90:
            count = struct.unpack_from(">H", data, at)[0]
            node, at = decode(data, at + 2)
            numbers = struct.unpack_from(f">{count + 1}I", data, at)
            return ("ref", node, *numbers), at + 4 * (count + 1)
    raise ValueError(f"tag {tag} at {at - 1}")


def _decode_many(data: bytes, at: int, count: int) -> tuple[list[Any], int]:
    values = []
    for _ in range(count):
        value, at = decode(data, at)
        values.append(value)
    return values, at


# -- frames ---------------------------------------------------------------------------------------


def framed(body: bytes) -> bytes:
    """Any bytes with their right length before them."""
    return struct.pack(">I", len(body)) + body


def frame(control: bytes, payload: bytes | None = None) -> bytes:
    """A message in pass-through form, as it is sent without atom cache and fragments."""
    body = b"\x70\x83" + control + (b"" if payload is None else b"\x83" + payload)
    return framed(body)


def reg_send(sender: bytes, name: str, payload: bytes) -> bytes:
    return frame(tuple_of(integer(6), sender, atom(""), atom(name)), payload)


def send_sender(sender: bytes, to: bytes, payload: bytes) -> bytes:
    return frame(tuple_of(integer(22), sender, to), payload)


TICK = framed(b"")


def digest(cookie: str, challenge: int) -> bytes:
    return hashlib.md5((cookie + str(challenge)).encode()).digest()


class Evil:
    """One peer on one socket."""

    def __init__(
        self,
        name: str | bytes | None = None,
        *,
        cookie: str,
        flags: int = FLAGS,
        receive_bytes: int | None = None,
    ) -> None:
        name = name if name is not None else f"evil{next(_numbers)}x{os.getpid()}@{HOST}"
        self.name = name if isinstance(name, str) else name.decode("latin-1")
        self.wire_name = name if isinstance(name, bytes) else name.encode()
        self.cookie = cookie
        self.flags = flags
        self.creation = secrets.randbits(31) + 4
        # What the other side said of itself.
        self.peer_name = ""
        self.peer_flags = 0
        self.peer_creation = 0
        self._receive_bytes = receive_bytes
        self._sock: socket.socket | None = None
        self._read = bytearray()

    # -- the socket --------------------------------------------------------------------------------

    @property
    def sock(self) -> socket.socket:
        assert self._sock is not None, "not connected"
        return self._sock

    def dial(self, address: tuple[str, int]) -> Self:
        """Connects the socket and says nothing."""
        sock = socket.socket()
        if self._receive_bytes is not None:
            # Before the connection: the window is agreed on with it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
        sock.settimeout(TIMEOUT)
        sock.connect(address)
        return self._use(sock)

    def accept(self, server: socket.socket) -> Self:
        """Takes a connection of somebody who dialled us."""
        server.settimeout(TIMEOUT)
        return self._use(server.accept()[0])

    def _use(self, sock: socket.socket) -> Self:
        sock.settimeout(TIMEOUT)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        return self

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def drip(self, data: bytes, seconds: float) -> int:
        """One byte per so many seconds, until all are out or the other side has hung up: how many.
        The pace is the attack; nothing is waited for."""
        for at in range(len(data)):
            if self.readable(seconds):
                break
            try:
                self.send(data[at : at + 1])
            except OSError:
                return at
        else:
            return len(data)
        return at

    def readable(self, seconds: float) -> bool:
        return bool(select.select([self.sock], [], [], seconds)[0])

    def exactly(self, size: int) -> bytes:
        while len(self._read) < size:
            chunk = self.sock.recv(1 << 16)
            if not chunk:
                raise EOFError(f"{self.name}: the other side has closed")
            self._read += chunk
        data = bytes(self._read[:size])
        del self._read[:size]
        return data

    def closed(self, timeout: float = TIMEOUT) -> bool:
        """Whether the other side closes within that time; what it still sends is thrown away."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                if not self.sock.recv(1 << 16):
                    return True
            except TimeoutError:
                return False
            except OSError:
                return True
        return False

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def reset(self) -> None:
        """Closes as a crashed host would: with a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- the handshake -----------------------------------------------------------------------------

    def said(self) -> bytes:
        """The next handshake message of the other side."""
        return self.exactly(struct.unpack(">H", self.exactly(2))[0])

    def say(self, body: bytes) -> None:
        self.send(struct.pack(">H", len(body)) + body)

    def send_name(self) -> bytes:
        head = struct.pack(">BQIH", ord("N"), self.flags, self.creation, len(self.wire_name))
        return head + self.wire_name

    def challenged(self) -> bytes:
        """Reads the challenge; the right answer to it."""
        body = self.said()
        assert body[:1] == b"N", body
        self.peer_flags, challenge, self.peer_creation, size = struct.unpack_from(">QIIH", body, 1)
        self.peer_name = body[19 : 19 + size].decode()
        self.own_challenge = secrets.randbits(32)
        return b"r" + struct.pack(">I", self.own_challenge) + digest(self.cookie, challenge)

    def shake(self) -> Self:
        """The whole handshake as the one who dialled. EOFError when the other side hangs up."""
        self.say(self.send_name())
        status = self.said()
        if status == b"salive":
            self.say(b"strue")
        elif status not in (b"sok", b"sok_simultaneous"):
            raise ConnectionRefusedError(status.decode("latin-1"))
        self.say(self.challenged())
        ack = self.said()
        assert ack == b"a" + digest(self.cookie, self.own_challenge), ack
        return self

    def shake_back(self, *, status: bytes = b"sok", name: bytes | None = None) -> Self:
        """The whole handshake as the one who was dialled."""
        body = self.said()
        assert body[:1] == b"N", body
        self.peer_flags, self.peer_creation, size = struct.unpack_from(">QIH", body, 1)
        self.peer_name = body[15 : 15 + size].decode()
        self.say(status)
        challenge = secrets.randbits(32)
        own = self.wire_name if name is None else name
        head = struct.pack(">BQIIH", ord("N"), self.flags, challenge, self.creation, len(own))
        self.say(head + own)
        reply = self.said()
        assert reply[:1] == b"r", reply
        (theirs,) = struct.unpack_from(">I", reply, 1)
        if reply[5:] != digest(self.cookie, challenge):
            raise PermissionError("the other side has another cookie")
        self.say(b"a" + digest(self.cookie, theirs))
        return self

    # -- after it ----------------------------------------------------------------------------------

    def pid(self, number: int) -> bytes:
        return pid(self.name, number, 0, self.creation)

    def ref(self, *words: int) -> bytes:
        return reference(self.name, self.creation, *words)

    def frame(self) -> bytes:
        """The next frame of the other side, without its length; empty: a tick."""
        return self.exactly(struct.unpack(">I", self.exactly(4))[0])

    def signal(self) -> tuple[tuple[Any, ...], Any]:
        """The next signal of the other side: control tuple and payload (None without)."""
        while not (body := self.frame()):
            continue
        assert body[:2] == b"\x70\x83", body[:8]
        control, at = decode(body, 2)
        if at == len(body):
            return control, None
        assert body[at] == 131, body
        return control, decode(body, at + 1)[0]

    def ping(self, number: int = 1) -> None:
        """net_adm:ping, to its answer."""
        tag = self.ref(number, 0, 0)
        request = tuple_of(atom("is_auth"), atom(self.name))
        call = tuple_of(atom("$gen_call"), tuple_of(self.pid(1), tag), request)
        self.send(reg_send(self.pid(1), "net_kernel", call))
        _, answer = self.signal()
        assert answer == (decode(tag)[0], "yes"), answer


class Pinger(threading.Thread):
    """Pings on a connection of its own, one ping after the other, until it is stopped, and a few
    however soon that is."""

    COUNT_MIN = 3

    def __init__(self, evil: Evil) -> None:
        super().__init__(daemon=True)
        self.evil = evil
        self.took: list[float] = []
        self.error: BaseException | None = None
        self._stopping = threading.Event()

    def run(self) -> None:
        try:
            while not self._stopping.wait(0.002) or len(self.took) < self.COUNT_MIN:
                start = time.monotonic()
                self.evil.ping(len(self.took) + 1)
                self.took.append(time.monotonic() - start)
        except BaseException as error:
            self.error = error

    def stop(self) -> list[float]:
        """How long each answer took, seconds."""
        self._stopping.set()
        self.join()
        self.evil.close()
        if self.error is not None:
            raise self.error
        return self.took


def _main(what: str, host: str, port: str, node: str, cookie: str) -> None:
    assert what == "ping"
    evil = Evil(cookie=cookie).dial((host, int(port))).shake()
    assert evil.peer_name == node
    evil.ping()
    pinger = Pinger(evil)
    pinger.start()
    print("up", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()
    print(json.dumps(pinger.stop()))


if __name__ == "__main__":
    _main(*sys.argv[1:])
