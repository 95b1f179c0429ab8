"""A long way between nodes: bench/far.py. What goes in comes out so many milliseconds later.

    python delay.py EPMD_PORT MILLISECONDS

It stands before a port mapper and gives out ports of its own, behind which each connection is
passed on. While something is under way it looks at the sockets once a millisecond, so that it costs
little whatever the size of the writes; what it reads at once it also writes at once.
"""

from __future__ import annotations

import collections
import contextlib
import json
import select
import socket
import struct
import sys
import time

HOST = "127.0.0.1"
# Seconds between two looks at the sockets, and of silence after which it waits for them instead.
STEP_S = 0.001
SILENCE_S = 0.1
READ_BYTES = 1 << 20
# Bytes on the way in one direction; beyond them the sender has to wait.
HELD_BYTES_MAX = 256 << 20
# The port mapper's questions and answers.
PORT_PLEASE2_REQ, PORT2_RESP = b"z", b"w"
ANSWER_S = 10.0


class Way:
    """One direction of a connection."""

    def __init__(self, source: socket.socket, target: socket.socket, delay_s: float) -> None:
        self.source, self.target, self.delay_s = source, target, delay_s
        self.held: collections.deque[tuple[float, memoryview]] = collections.deque()
        self.held_bytes = 0
        self.ended = False  # nothing more comes
        self.done = False  # and nothing more goes

    def take(self, now: float) -> bool:
        """Reads what is there; whether it was anything."""
        if self.ended or self.held_bytes > HELD_BYTES_MAX:
            return False
        try:
            data = self.source.recv(READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self.held.append((now + self.delay_s, memoryview(data)))
            self.held_bytes += len(data)
        else:
            self.ended = True
        return True

    def give(self, now: float) -> None:
        """Writes what is due."""
        while self.held and self.held[0][0] <= now:
            due, data = self.held[0]
            try:
                sent = self.target.send(data)
            except BlockingIOError:
                return
            except OSError:
                self.held.clear()
                self.ended = True
                break
            self.held_bytes -= sent
            if sent < len(data):
                self.held[0] = due, data[sent:]
                return
            self.held.popleft()
        if self.ended and not self.held and not self.done:
            self.done = True
            with contextlib.suppress(OSError):
                self.target.shutdown(socket.SHUT_WR)


class Delay:
    """The sockets that it listens on, and the connections behind them."""

    def __init__(self, epmd_port: int, delay_s: float) -> None:
        self.epmd_port, self.delay_s = epmd_port, delay_s
        self.epmd = self.listen()
        # Our listener by the port of the node behind it, and the other way round.
        self.by_port: dict[int, socket.socket] = {}
        self.behind: dict[int, int] = {}
        self.listeners = {self.epmd.fileno(): self.epmd}
        self.ways: list[Way] = []

    @staticmethod
    def listen() -> socket.socket:
        listener = socket.create_server((HOST, 0))
        listener.setblocking(False)
        return listener

    def run(self) -> None:
        """Until standard input ends."""
        heard = time.monotonic()
        while True:
            now = time.monotonic()
            busy = any(way.held for way in self.ways) or now - heard < SILENCE_S
            files = [sys.stdin.fileno(), *self.listeners]
            if busy:
                time.sleep(STEP_S)
            else:
                files += [way.source.fileno() for way in self.ways if not way.ended]
            ready = select.select(files, [], [], 0 if busy else None)[0]
            if sys.stdin.fileno() in ready:
                return
            for file in ready:
                if file in self.listeners:
                    self.accept(self.listeners[file])
            now = time.monotonic()
            for way in self.ways:
                if way.take(now):
                    heard = now
                way.give(now)
            self.forget()

    def forget(self) -> None:
        """Closes the connections that have ended both ways; they stand in pairs."""
        if all(not way.done for way in self.ways):
            return
        kept = []
        for there, back in zip(self.ways[::2], self.ways[1::2], strict=True):
            if there.done and back.done:
                there.source.close()
                back.source.close()
            else:
                kept += [there, back]
        self.ways = kept

    def accept(self, listener: socket.socket) -> None:
        near, _ = listener.accept()
        if listener is not self.epmd:
            self.join(near, self.behind[listener.fileno()], self.delay_s, b"")
            return
        near.settimeout(ANSWER_S)
        head = exactly(near, 2)
        request = exactly(near, struct.unpack(">H", head)[0])
        if request[:1] != PORT_PLEASE2_REQ:
            # A node that registers keeps this connection; the port mapper is near.
            self.join(near, self.epmd_port, 0.0, head + request)
            return
        with socket.create_connection((HOST, self.epmd_port), timeout=ANSWER_S) as mapper, near:
            mapper.sendall(head + request)
            answer = bytearray()
            while data := mapper.recv(4096):
                answer += data
            if answer[:2] == PORT2_RESP + b"\0":
                answer[2:4] = struct.pack(">H", self.port_before(*struct.unpack(">H", answer[2:4])))
            near.sendall(answer)

    def port_before(self, port: int) -> int:
        """Our port for that of a node."""
        if port not in self.by_port:
            listener = self.by_port[port] = self.listen()
            self.listeners[listener.fileno()] = listener
            self.behind[listener.fileno()] = port
        return int(self.by_port[port].getsockname()[1])

    def join(self, near: socket.socket, port: int, delay_s: float, first: bytes) -> None:
        """Both ways between a socket and a port."""
        far = socket.create_connection((HOST, port), timeout=ANSWER_S)
        far.sendall(first)
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.ways += [Way(near, far, delay_s), Way(far, near, delay_s)]


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise EOFError("a request to the port mapper that ends early")
        data += more
    return data


def main(epmd_port: int, milliseconds: int) -> None:
    delay = Delay(epmd_port, milliseconds / 1000)
    port = delay.epmd.getsockname()[1]
    print(json.dumps({"ready": "delay", "port": port, "ms": milliseconds}), flush=True)
    delay.run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
