"""The standard output, written by a thread: nobody else waits where it takes nothing.

A pipe that is full, or a terminal that is stopped, holds up who prints, as it does on a BEAM: each
has its reply when its text is written, and not before.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import io
import logging
import os
import select
import sys
import threading
from typing import Final, TextIO

from ..errors import TumenError

__all__ = ["Output"]

_log = logging.getLogger("tumen")

# Characters written at a time: at most PIPE_BUF bytes, which a pipe takes whole when it says that
# it has room. So the thread never sits inside a write, and ends when it is told to.
_CHUNK_CHARS: Final = select.PIPE_BUF // 4


class Output:
    """Texts for the standard output, in their order. Its thread runs from the first one on until
    `close`. What waits here is bounded by who calls `write`: it has the replies to hold back."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._came = threading.Condition(self._lock)
        self._texts: collections.deque[tuple[str, asyncio.Future[None]]] = collections.deque()
        self._thread: threading.Thread | None = None
        # An eventfd that ends the thread's wait for room; the thread's own.
        self._wake = -1
        self._closed = False

    def write(self, text: str) -> asyncio.Future[None]:
        """Resolved when the text is written; OSError or ValueError from the stream, `TumenError`
        when `close` came first. The loop's thread only."""
        future: asyncio.Future[None] = self._loop.create_future()
        with self._lock:
            if self._closed:
                future.set_exception(TumenError("the node has stopped"))
                return future
            self._texts.append((text, future))
            if self._thread is None:
                self._start_thread()
            self._came.notify()
        return future

    def close(self) -> None:
        """Ends the thread; what was not written by now is lost, and told so. Idempotent."""
        with self._lock:
            self._closed = True
            left, self._texts = self._texts, collections.deque()
            self._came.notify()
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)
        for _, future in left:
            _settle(future, TumenError("the node has stopped"))
        _tell_lost(len(left))

    def _start_thread(self) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        # A daemon: a terminal that is stopped must not keep the interpreter from ending.
        self._thread = threading.Thread(target=self._run, name="tumen-output", daemon=True)
        self._thread.start()

    # -- the thread

    def _run(self) -> None:
        try:
            while (entry := self._next()) is not None:
                text, future = entry
                error: Exception | None = None
                try:
                    self._print(text)
                except Exception as raised:
                    error = raised
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(_settle, future, error)
                # Not kept while this thread sleeps.
                del entry, text, future
        finally:
            with self._lock:
                os.close(self._wake)
                self._wake = -1

    def _next(self) -> tuple[str, asyncio.Future[None]] | None:
        with self._lock:
            while not self._texts:
                if self._closed:
                    return None
                self._came.wait()
            return self._texts.popleft()

    def _print(self, text: str) -> None:
        stream = sys.stdout
        if stream is None:
            return
        descriptor = _descriptor(stream)
        for start in range(0, len(text), _CHUNK_CHARS):
            if descriptor is not None:
                self._wait_for_room(descriptor)
            _write(stream, text[start : start + _CHUNK_CHARS])

    def _wait_for_room(self, descriptor: int) -> None:
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        poll.register(self._wake, select.POLLIN)
        while not any(ready == descriptor for ready, _ in poll.poll()):
            if self._closed:
                _tell_lost(1)
                raise TumenError("the node has stopped")


def _descriptor(stream: TextIO) -> int | None:
    """What the stream writes to; None for one in memory, as tests and notebooks have."""
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError, io.UnsupportedOperation):
        return None


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _tell_lost(count: int) -> None:
    if count:
        _log.warning("the standard output has not taken %d texts before the node stopped", count)


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
