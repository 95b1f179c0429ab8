"""The other side of many links: bench/backends.py. Sockets that speak the distribution protocol.

It costs little and is the same for every node that it loads: one thread, epoll, frames made once.
What comes back is held against the bytes that must come.

    python load.py COOKIE
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import select
import socket
import struct
import sys
import time

HOST = "127.0.0.1"
# Seconds without a byte after which a test has failed.
ANSWER_S = 60.0
# What OTP 25 made mandatory, UNLINK_ID, long pids, and the sender in a message: neither an atom
# cache nor fragments, so that the same message has the same bytes every time.
FLAGS = sum(1 << bit for bit in (2, 4, 7, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 34))
# One-way messages of a link that go out together, and bytes beyond which they do not.
BURST_COUNT = 8
BURST_BYTES = 65536
READ_BYTES = 1 << 18
CREATION = 7


# -- terms and frames ------------------------------------------------------------------------------


def atom(text: str) -> bytes:
    return bytes([119, len(text)]) + text.encode()


def binary(data: bytes) -> bytes:
    return struct.pack(">BI", 109, len(data)) + data


def small(number: int) -> bytes:
    return struct.pack(">Bi", 98, number)


def tuple_of(*terms: bytes) -> bytes:
    return bytes([104, len(terms)]) + b"".join(terms)


def framed(control: bytes, payload: bytes) -> bytes:
    body = b"\x70\x83" + control + b"\x83" + payload
    return struct.pack(">I", len(body)) + body


class Link:
    """One connection under a name of its own."""

    def __init__(self, number: int, port: int, cookie: str) -> None:
        self.name = f"load{number}x{os.getpid()}@{HOST}"
        self.pid = b"X" + atom(self.name) + struct.pack(">III", 1, 0, CREATION)
        self.sock = socket.create_connection((HOST, port), timeout=ANSWER_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.read = b""
        self.shake(cookie)
        self.sock.setblocking(False)
        # What of a write or a read was left over.
        self.left = b""
        # By size of the payload: what an echo answers.
        self.answers: dict[int, bytes] = {}

    def exactly(self, size: int) -> bytes:
        while len(self.read) < size:
            data = self.sock.recv(4096)
            if not data:
                raise EOFError(f"{self.name}: the node has closed the connection")
            self.read += data
        data, self.read = self.read[:size], self.read[size:]
        return data

    def said(self) -> bytes:
        return self.exactly(struct.unpack(">H", self.exactly(2))[0])

    def say(self, body: bytes) -> None:
        self.sock.sendall(struct.pack(">H", len(body)) + body)

    def shake(self, cookie: str) -> None:
        """The handshake, and the word to the node that we are there."""
        name = self.name.encode()
        self.say(struct.pack(">BQIH", ord("N"), FLAGS, CREATION, len(name)) + name)
        if (status := self.said()) != b"sok":
            raise ConnectionRefusedError(f"{self.name}: {status!r}")
        challenge = struct.unpack_from(">I", self.said(), 9)[0]
        own = secrets.randbits(32)
        self.say(b"r" + struct.pack(">I", own) + digest(cookie, challenge))
        if self.said() != b"a" + digest(cookie, own):
            raise PermissionError(f"{self.name}: the node has another cookie")
        self.sock.sendall(self.to("bench_links", tuple_of(atom("join"), self.pid)))
        self.exactly(struct.unpack(">I", self.exactly(4))[0])

    def to(self, name: str, payload: bytes) -> bytes:
        """A message to a registered process."""
        return framed(tuple_of(b"a\x06", self.pid, atom(""), atom(name)), payload)


def digest(cookie: str, challenge: int) -> bytes:
    return hashlib.md5((cookie + str(challenge)).encode()).digest()


# -- the tests -------------------------------------------------------------------------------------


class Load:
    """All links, by the port of their node."""

    def __init__(self, cookie: str) -> None:
        self.cookie = cookie
        self.links: dict[int, list[Link]] = {}
        self.number = 0

    def command(self, words: list[str]) -> dict[str, int]:
        match words:
            case ["links", port, count]:
                return self.join(int(port), int(count))
            case ["echo" | "in" | "out" as kind, port, count, size, ms]:
                chosen = self.links[int(port)][-int(count) :]
                test = {"echo": echo, "in": into, "out": out}[kind]
                return test(chosen, int(size), int(ms))
        raise AssertionError(f"not a command: {words}")

    def join(self, port: int, count: int) -> dict[str, int]:
        """So many new links; the newest ones are those that play."""
        start = time.monotonic_ns()
        links = self.links.setdefault(port, [])
        for _ in range(count):
            self.number += 1
            links.append(Link(self.number, port, self.cookie))
        return {"count": count, "elapsed_ns": time.monotonic_ns() - start}


def poller(links: list[Link], events: int) -> tuple[select.epoll, dict[int, Link]]:
    poll = select.epoll()
    by_file = {}
    for link in links:
        by_file[link.sock.fileno()] = link
        poll.register(link.sock.fileno(), events)
    return poll, by_file


def ready(poll: select.epoll, count: int) -> list[tuple[int, int]]:
    """The sockets that are ready; AssertionError when none is for too long."""
    found = poll.poll(ANSWER_S, count)
    if not found:
        raise AssertionError(f"nothing came for {ANSWER_S:.0f} s")
    return found


def frame_of(link: Link, poll: select.epoll) -> bytes:
    """One whole frame, while nothing else can come; shows how the node writes this answer."""
    data = b""
    while len(data) < 4 or len(data) < 4 + struct.unpack_from(">I", data)[0]:
        ready(poll, 1)
        data += link.sock.recv(READ_BYTES)
    return data


def echo(links: list[Link], size: int, ms: int) -> dict[str, int]:
    """One message there and back at a time on each link."""
    asks = {link.sock.fileno(): link.to("bench_echo", echo_term(link, size)) for link in links}
    for link in links:
        if size not in link.answers:
            learn(link, size, asks[link.sock.fileno()])
    answers = {link.sock.fileno(): link.answers[size] for link in links}
    poll, by_file = poller(links, select.EPOLLIN)
    start = time.monotonic_ns()
    deadline = start + ms * 1_000_000
    for link in links:
        send_all(link, asks[link.sock.fileno()])
    count, under_way = 0, len(links)
    partial = dict.fromkeys(by_file, b"")
    while under_way:
        asking = time.monotonic_ns() < deadline
        for file, _ in ready(poll, len(links)):
            data = partial[file] + by_file[file].sock.recv(READ_BYTES)
            if len(data) < len(answers[file]):
                partial[file] = data
                continue
            assert data == answers[file], "another answer than the first"
            partial[file] = b""
            count += 1
            if asking:
                send_all(by_file[file], asks[file])
            else:
                under_way -= 1
    poll.close()
    return {"count": count, "elapsed_ns": time.monotonic_ns() - start}


def echo_term(link: Link, size: int) -> bytes:
    return tuple_of(atom("echo"), link.pid, b"a\0", binary(b"x" * size))


def learn(link: Link, size: int, ask: bytes) -> None:
    """A link gets the same answer every time; the first one, once it is seen to be right, shows
    it. That happens in the round that warms up."""
    poll, _ = poller([link], select.EPOLLIN)
    send_all(link, ask)
    answer = frame_of(link, poll)
    assert answer.endswith(b"a\0" + binary(b"x" * size)), "an answer of another kind"
    link.answers[size] = answer
    poll.close()


def send_all(link: Link, data: bytes) -> None:
    """Writes it whole; waits where the socket is full, which few messages make it."""
    while data:
        try:
            data = data[link.sock.send(data) :]
        except BlockingIOError:
            assert select.select([], [link.sock], [], ANSWER_S)[1], "the node does not read"


def into(links: list[Link], size: int, ms: int) -> dict[str, int]:
    """One way to the node, a burst from each link in turn; the node says what it got."""
    payload = binary(b"x" * size)
    number = max(1, min(BURST_COUNT, BURST_BYTES // size))
    bursts = {link.sock.fileno(): link.to("bench_tally", payload) * number for link in links}
    poll, by_file = poller(links, select.EPOLLOUT)
    start = time.monotonic_ns()
    deadline = start + ms * 1_000_000
    sent = 0
    while time.monotonic_ns() < deadline:
        for file, _ in ready(poll, len(links)):
            link = by_file[file]
            data = link.left or bursts[file]
            done = link.sock.send(data)
            link.left = data[done:]
            sent += 0 if link.left else number
    poll.close()
    finish = tuple_of(atom("finish"), links[0].pid, small(len(links)))
    for link in links:
        if link.left:
            sent += number
        send_all(link, link.left + link.to("bench_tally", finish))
        link.left = b""
    poll, _ = poller(links[:1], select.EPOLLIN)
    report = frame_of(links[0], poll)
    poll.close()
    wanted = tuple_of(atom("report"), integer(sent), integer(sent * size))
    assert report.endswith(wanted), f"sent {sent} of {size} bytes, and the node says {report!r}"
    # Those that end it are messages too.
    return {"count": sent + len(links), "elapsed_ns": time.monotonic_ns() - start}


def integer(value: int) -> bytes:
    if value < 256:
        return bytes([97, value])
    if value < 1 << 31:
        return small(value)
    digits = value.to_bytes((value.bit_length() + 7) // 8, "little")
    return bytes([110, len(digits), 0]) + digits


def out(links: list[Link], size: int, ms: int) -> dict[str, int]:
    """One way from the node, until each link got the empty binary that ends it."""
    ending = b"\x83" + binary(b"")
    message = b"\x83" + binary(b"x" * size)
    poll, by_file = poller(links, select.EPOLLIN)
    expected: dict[int, bytes] = {}
    for link in links:
        link.left = b""
    open_links, start, count = len(links), 0, 0
    while open_links:
        for file, _ in ready(poll, len(links)):
            start = start or time.monotonic_ns()
            link = by_file[file]
            data = link.left + link.sock.recv(READ_BYTES)
            frame = expected.get(file)
            if frame is None:
                if len(data) < 4 or len(data) < 4 + struct.unpack_from(">I", data)[0]:
                    link.left = data
                    continue
                frame = expected[file] = data[: 4 + struct.unpack_from(">I", data)[0]]
                assert frame.endswith(message), "a message of another kind"
            whole = len(data) // len(frame)
            # The empty binary that ends it is shorter than a frame.
            assert data[: whole * len(frame)] == frame * whole, "another message than the first"
            link.left = data[whole * len(frame) :]
            count += whole
            if link.left.endswith(ending):
                open_links -= 1
                count += 1
                poll.unregister(file)
                link.left = b""
    poll.close()
    return {"count": count, "elapsed_ns": time.monotonic_ns() - start}


def main(cookie: str) -> None:
    load = Load(cookie)
    print(json.dumps({"ready": "load", "python": sys.version.split()[0]}), flush=True)
    for line in sys.stdin:
        try:
            result: dict[str, object] = dict(load.command(line.split()))
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
