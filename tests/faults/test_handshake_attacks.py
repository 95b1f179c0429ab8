"""Strangers at the door: each attack ends at most its own connection, with a named reason."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from typing import Any

import pytest

import tumen
from faults.evil import FLAGS, M25, MANDATORY, MANDATORY_25_DIGEST, Evil, digest
from faults.scene import SLACK_S, Scene, eventually, scene
from nodes import COOKIE, HOST
from tumen import Limits, events

pytestmark = pytest.mark.asyncio

NAME = f"stranger@{HOST}"


async def refused(s: Scene, evil: Evil, reason: str, *, name: str | None = None) -> None:
    """The handshake of evil failed for that reason, and its socket is closed."""
    failed = await s.event(events.HandshakeFailed)
    assert reason in failed.reason
    assert failed.node == (evil.name if name is None else name)
    assert await asyncio.to_thread(evil.closed)
    assert evil.name not in s.node.nodes()
    assert not s.seen(events.NodeUp, evil.name)


async def test_wrong_cookie_is_refused_without_an_ack(backend: str) -> None:
    async with scene() as s:
        with s.evil(cookie="another-cookie-of-a-test").dial(s.address) as evil:
            with pytest.raises((EOFError, ConnectionError)):
                evil.shake()
            # The challenge came, as it would from a BEAM; the ack did not.
            assert evil.peer_name == s.node.name
            await refused(s, evil, "a wrong digest")


async def test_stranger_without_the_cookie_cannot_replace_a_connection(backend: str) -> None:
    async with scene() as s:
        name = s.innocent.evil.name
        with s.evil(name, cookie="another-cookie-of-a-test").dial(s.address) as evil:
            with pytest.raises((EOFError, ConnectionError)):
                evil.shake()
            failed = await s.event(events.HandshakeFailed)
            assert failed.node == name
            assert "a wrong digest" in failed.reason
            assert await asyncio.to_thread(evil.closed)


async def test_wrong_cookie_of_the_one_who_was_dialled_is_an_auth_error(backend: str) -> None:
    async with scene() as s:
        with socket.create_server((HOST, 0)) as server, s.evil(cookie="wrong-cookie") as evil:
            dialled = asyncio.create_task(s.node.connect(evil.name, server.getsockname()[:2]))
            await asyncio.to_thread(evil.accept, server)
            with pytest.raises(PermissionError):
                await asyncio.to_thread(evil.shake_back)
            evil.say(b"a" + bytes(16))
            with pytest.raises(tumen.AuthError, match="digest"):
                await dialled
            assert await asyncio.to_thread(evil.closed)
            failed = await s.event(events.ConnectFailed, evil.name)
            assert "a wrong digest" in failed.reason


async def test_reflected_challenge_is_refused(backend: str) -> None:
    async with scene() as s:
        with s.evil(NAME).dial(s.address) as evil:
            evil.say(evil.send_name())
            assert evil.said() == b"sok"
            body = evil.said()
            (challenge,) = struct.unpack_from(">I", body, 9)
            evil.say(b"r" + struct.pack(">I", challenge) + bytes(16))
            await refused(s, evil, "the challenge is our own")


def reflect(evil: Evil, challenge: int) -> None:
    """Our own challenge of another handshake as that of evil, who has the cookie."""
    evil.say(evil.send_name())
    assert evil.said() == b"sok"
    right = evil.challenged()
    evil.own_challenge = challenge
    evil.say(right[:1] + struct.pack(">I", challenge) + right[5:])


def challenge_of(evil: Evil) -> int:
    """What evil is challenged with; the handshake stays where it is."""
    evil.say(evil.send_name())
    assert evil.said() == b"sok"
    return int(struct.unpack_from(">I", evil.said(), 9)[0])


async def test_challenge_of_another_handshake_is_refused_while_that_is_under_way(
    backend: str,
) -> None:
    async with scene() as s:
        with s.evil(f"first@{HOST}").dial(s.address) as first:
            challenge = challenge_of(first)
            with s.evil(NAME).dial(s.address) as evil:
                reflect(evil, challenge)
                await refused(s, evil, "our own challenge")
        await s.until("the first is over", lambda: not s.node.info().half_open)
        with s.evil(NAME).dial(s.address) as evil:
            reflect(evil, challenge)
            assert evil.said()[:1] == b"a"
            evil.ping()


async def test_challenge_of_an_attempt_of_ours_is_refused(backend: str) -> None:
    async with scene() as s:
        with socket.create_server((HOST, 0)) as server, s.evil(f"dialled@{HOST}") as dialled:
            dialling = asyncio.create_task(s.node.connect(dialled.name, server.getsockname()[:2]))
            await asyncio.to_thread(dialled.accept, server)
            # The reply to our challenge carries one of theirs.
            dialled.said()
            dialled.say(b"sok")
            head = struct.pack(">BQIIH", ord("N"), dialled.flags, 77, dialled.creation, 0)
            name = dialled.wire_name
            dialled.say(head[:-2] + struct.pack(">H", len(name)) + name)
            (ours,) = struct.unpack_from(">I", dialled.said(), 1)
            with s.evil(NAME).dial(s.address) as evil:
                reflect(evil, ours)
                await refused(s, evil, "our own challenge")
            dialled.say(b"a" + digest(COOKIE, ours))
            await dialling


async def test_each_missing_mandatory_flag_is_not_allowed(backend: str) -> None:
    async with scene() as s:
        for bit, flag in MANDATORY.items():
            s.events.clear()
            flags = (FLAGS & ~(1 << bit)) | 1 << 63
            with s.evil(NAME, flags=flags).dial(s.address) as evil:
                evil.say(evil.send_name())
                assert evil.said() == b"snot_allowed", flag
                await refused(s, evil, "a mandatory flag is missing")


async def test_digest_flag_stands_for_all_that_is_mandatory(backend: str) -> None:
    async with scene() as s:
        with s.connected(flags=MANDATORY_25_DIGEST) as evil:
            await s.event(events.NodeUp, evil.name)
            evil.ping()
        with s.connected(flags=M25) as evil:
            await s.event(events.NodeUp, evil.name)
            evil.ping()


BAD_NAMES = {
    "no_at": b"stranger",
    "two_ats": b"a@b@c",
    "no_host": b"stranger@",
    "no_name": b"@127.0.0.1",
    "only_at": b"@",
    "empty": b"",
    "256_bytes": b"a" * 246 + b"@127.0.0.1",
    "nul": b"a\0b@127.0.0.1",
    "newline": b"a\nb@127.0.0.1",
    "escape": b"a\x1b[2J@127.0.0.1",
    "space": b"a b@127.0.0.1",
    "delete": b"a\x7f@127.0.0.1",
    "latin1": b"\xe9@127.0.0.1",
    "not_utf8": b"\xff\xfe@127.0.0.1",
    "half_utf8": b"\xc3@127.0.0.1",
}


async def test_bad_node_names_are_refused_and_not_repeated_in_the_event(backend: str) -> None:
    assert len(BAD_NAMES["256_bytes"]) == 256
    async with scene() as s:
        for what, name in BAD_NAMES.items():
            s.events.clear()
            with s.evil(name).dial(s.address) as evil:
                evil.say(evil.send_name())
                with pytest.raises((EOFError, ConnectionError)):
                    raise AssertionError(f"{what}: {evil.said()!r}")
                # What no node may be called goes into no event and no log.
                await refused(s, evil, "not a node name", name="")


async def test_own_name_is_refused(backend: str) -> None:
    async with scene() as s:
        with s.evil(s.node.name).dial(s.address) as evil:
            evil.say(evil.send_name())
            assert evil.said() == b"snot_allowed"
            failed = await s.event(events.HandshakeFailed)
            assert "this node's own" in failed.reason
            assert await asyncio.to_thread(evil.closed)


async def test_another_node_than_the_dialled_one_is_refused(backend: str) -> None:
    async with scene() as s:
        with socket.create_server((HOST, 0)) as server, s.evil() as evil:
            dialled = asyncio.create_task(s.node.connect(evil.name, server.getsockname()[:2]))
            await asyncio.to_thread(evil.accept, server)
            with pytest.raises((EOFError, ConnectionError)):
                await asyncio.to_thread(evil.shake_back, name=b"other@127.0.0.1")
            with pytest.raises(tumen.AuthError, match="another node than the one"):
                await dialled


async def test_not_allowed_of_the_one_who_was_dialled_is_an_auth_error(backend: str) -> None:
    async with scene() as s:
        with socket.create_server((HOST, 0)) as server, s.evil() as evil:
            dialled = asyncio.create_task(s.node.connect(evil.name, server.getsockname()[:2]))
            await asyncio.to_thread(evil.accept, server)
            with pytest.raises((EOFError, ConnectionError)):
                await asyncio.to_thread(evil.shake_back, status=b"snot_allowed")
            with pytest.raises((tumen.AuthError, tumen.NoConnection), match=r"refused|not_allowed"):
                await dialled


BAD_MESSAGES = {
    "empty": (b"\0\0", "an empty message"),
    "longest_length": (b"\xff\xff", "a message longer than its state allows"),
    "unknown_tag": (b"\0\1X", "a message that does not belong here"),
    "reply_before_name": (b"\0\x15r" + bytes(20), "a message that does not belong here"),
    "truncated_name": (b"\0\5N\0\0\0\0", "a message is shorter than its fields"),
    "name_past_the_end": (
        b"\0\x12N" + struct.pack(">QIH", FLAGS, 5, 200) + b"a@b",
        "a message is shorter than its fields",
    ),
    "http": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "a message longer than its state allows"),
}


async def test_malformed_handshake_message_is_refused_at_once(backend: str) -> None:
    async with scene() as s:
        for message, reason in BAD_MESSAGES.values():
            s.events.clear()
            with s.evil().dial(s.address) as evil:
                evil.send(message)
                await refused(s, evil, reason, name="")


async def test_stranger_who_hangs_up_leaves_nothing(backend: str) -> None:
    async with scene() as s:
        for leave in (Evil.close, Evil.reset):
            for steps in (1, 2):
                s.events.clear()
                with s.evil(NAME).dial(s.address) as evil:
                    evil.say(evil.send_name())
                    if steps == 2:
                        assert evil.said() == b"sok"
                        evil.challenged()
                    leave(evil)
                    failed = await s.event(events.HandshakeFailed)
                    assert failed.reason


async def test_probe_of_the_port_is_no_failed_handshake(backend: str) -> None:
    # Load balancers look whether somebody listens, every few seconds, and say nothing.
    async with scene() as s:
        for leave in (Evil.close, Evil.reset):
            for _ in range(20):
                with s.evil(NAME).dial(s.address) as evil:
                    leave(evil)
        # This one comes after them all.
        with s.connected() as evil:
            await s.event(events.NodeUp, evil.name)
        await eventually("all gone", lambda: not s.node.info().half_open)
        assert not s.seen(events.HandshakeFailed)


async def test_warnings_of_failed_handshakes_are_counted_above_their_limit(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene(limits=Limits(handshake_warnings_count_max=3)) as s:
        for _ in range(8):
            evil = s.evil(NAME, cookie="another-cookie-of-a-test").dial(s.address)
            with evil, pytest.raises((EOFError, ConnectionError)):
                evil.shake()
        await s.until("8 events", lambda: len(s.seen(events.HandshakeFailed)) == 8)
        logged = [r for r in caplog.records if "handshake with" in r.getMessage()]
        assert len(logged) == 3
    assert "5 more handshakes failed" in caplog.text


@contextlib.contextmanager
def silent(s: Scene, count: int) -> Any:
    """So many connections that say nothing, oldest first."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(s.evil().dial(s.address)) for _ in range(count)]


async def test_600_silent_strangers_do_not_keep_a_peer_out(backend: str) -> None:
    async with scene() as s:
        # 600 entries of the socket table, once used, stay allocated.
        s.memory_slack = 256 * 1024
        with silent(s, 600) as strangers:
            most = s.node.limits.half_open_count_max
            await s.until(
                "the oldest are dropped", lambda: len(s.seen(events.HandshakeFailed)) >= 600 - most
            )
            start = time.monotonic()
            with s.connected() as evil:
                evil.ping()
                assert time.monotonic() - start < SLACK_S
            start = time.monotonic()
            peer = tumen.Node(f"real@{HOST}", cookie=COOKIE, epmd=None)
            async with peer:
                await peer.connect(s.node.name, s.address)
                assert await peer.ping(s.node.name)
                assert time.monotonic() - start < SLACK_S
            dropped = s.seen(events.HandshakeFailed)
            # One more for the first that came in at last; it left its place to the second.
            assert len(dropped) == 600 - most + 1
            for event in dropped:
                assert "too many unauthenticated connections" in event.reason
            # The first to come were the first to go; the others are still let to say their name.
            for evil in strangers[: len(dropped)]:
                assert await asyncio.to_thread(evil.closed)
            assert not strangers[len(dropped)].readable(0)
            strangers[-1].shake().ping()
            assert strangers[-1].name in s.node.nodes()


async def test_slow_handshake_ends_at_its_absolute_deadline(backend: str) -> None:
    limit = 0.5
    async with scene(limits=Limits(handshake_time_ms=int(limit * 1000))) as s:
        # In the name, and in the reply to the challenge: no step starts the clock anew.
        for stage in ("name", "reply"):
            s.events.clear()
            with s.evil(NAME).dial(s.address) as evil:
                start = time.monotonic()
                if stage == "name":
                    slow = evil.send_name()
                else:
                    evil.say(evil.send_name())
                    assert evil.said() == b"sok"
                    slow = evil.challenged()
                message = struct.pack(">H", len(slow)) + slow
                sent = await asyncio.to_thread(evil.drip, message, 0.1)
                assert sent < len(message)
                assert await asyncio.to_thread(evil.closed)
                took = time.monotonic() - start
                assert limit * 0.9 <= took < limit + SLACK_S
                failed = await s.event(events.HandshakeFailed)
                assert "the handshake took too long" in failed.reason
                assert failed.node == ("" if stage == "name" else NAME)


async def test_dialled_peer_that_is_silent_ends_at_the_deadline(backend: str) -> None:
    async with scene(limits=Limits(handshake_time_ms=300)) as s:
        with socket.create_server((HOST, 0)) as server, s.evil() as evil:
            start = time.monotonic()
            with pytest.raises(tumen.NoConnection):
                await s.node.connect(evil.name, server.getsockname()[:2])
            assert 0.27 <= time.monotonic() - start < 0.3 + SLACK_S
            failed = await s.event(events.ConnectFailed, evil.name)
            assert failed.reason
            evil.accept(server)
            assert await asyncio.to_thread(evil.closed)
