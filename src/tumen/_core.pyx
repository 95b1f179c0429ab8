# cython: language_level=3, auto_pickle=False, autotestdict=False, binding=False
# cython: embedsignature=True, embedsignature.format=clinic
"""The engine binding: Python calls into tumen.h, and its events into mailboxes and futures.

Knows Erlang's message conventions ('$gen_call', 'DOWN') and nothing of the wire. Three layers:
Engine and CoreNode are tumen.h one to one, for any runtime; LoopNode adds what an asyncio loop
needs (one drain per wake-up, one flush per turn, futures by reference); CoreProcess is a mailbox.

The GIL is released where a function of the core may write to a socket, wait or join a thread, and
kept where it only takes a lock for a moment: the engine never asks for the GIL, so such a lock
comes free without us.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.bytes cimport PyBytes_CheckExact
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.tuple cimport PyTuple_CheckExact, PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from tumen._term cimport (
    TM_ETF_HEAD_SIZE_MAX, Atom, Pid, Reference, atom_bytes, make_pid, make_ref, pid_fill, ref_fill,
    term_build, term_encode, tm_alloc, tm_alloc_libc, tm_buf, tm_buf_reserve, tm_bytes,
    tm_etf_put_binary, tm_etf_put_tuple, tm_pid, tm_ref,
)
from tumen._tumen cimport *

import atexit
import logging
import os
import time
import weakref

from tumen import errors
from tumen._term import Binary, ImproperList

cdef extern from "csrc/etf/inline.h" nogil:
    void tm_buf_fini(tm_buf *buf)

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT

    ctypedef PySendResult (*sendfunc)(PyObject *, PyObject *, PyObject **)
    ctypedef PyObject *(*iternextfunc)(PyObject *)

    ctypedef struct PyAsyncMethods:
        sendfunc am_send

    ctypedef struct PyTypeObject:
        iternextfunc tp_iternext
        PyAsyncMethods *tp_as_async

    void PyErr_SetObject(object kind, object value)
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    bint PyMemoryView_Check(object obj)
    Py_buffer *PyMemoryView_GET_BUFFER(object view)
    bint PyBuffer_IsContiguous(const Py_buffer *view, char order)
    unsigned long PyThread_get_thread_ident()

# -- constants ----------------------------------------------------------------------------------

cdef enum:
    # One drain decodes for so long, ns, then gives the loop a turn; the clock is read once in so
    # many events.
    DRAIN_NS = 1_000_000
    CLOCK_EVENTS = 16
    # A process gives the loop a turn after so many messages, or so many ns, without suspending.
    TURN_MESSAGES = 256
    TURN_NS = 1_000_000
    # Taken mail is reported to the core in lots of this many bytes.
    TAKEN_BYTES = 64 * 1024
    # An encoding buffer that has grown beyond this, bytes, is not kept.
    SCRATCH_BYTES = 1024 * 1024
    # Binaries of at least this many bytes are lent instead of copied: TM_LEND_BYTES_MIN.
    LEND_BYTES = 16 * 1024
    # How deep they are looked for, tuples in tuples: a call's request is two levels down.
    LEND_DEPTH = 4
    # Lent in one message, at most; further ones are copied. Between them stand copied parts, and
    # the core takes 31 parts in all.
    LEND_COUNT = 15
    PART_COUNT = 2 * LEND_COUNT + 1
    # Connections with undecodable bytes whose later messages are still on their way to us.
    BLAMED_COUNT = 64

cdef object ATOM_ALIAS = Atom("alias")
cdef object ATOM_DOWN = Atom("DOWN")
cdef object ATOM_EXIT = Atom("EXIT")
cdef object ATOM_GEN_CALL = Atom("$gen_call")
cdef object ATOM_MALFORMED = Atom("malformed")
cdef object ATOM_PROCESS = Atom("process")
cdef object ATOM_NODEDOWN = Atom("nodedown")

# What a monitor's reference is besides: `Process.monitor`. True: the reply alias of a call.
cdef dict MONITOR_ALIASES = {
    None: 0, False: 0, True: TUMEN_MONITOR_ALIAS,
    "explicit_unalias": TUMEN_MONITOR_EXPLICIT_UNALIAS, "demonitor": TUMEN_MONITOR_DEMONITOR,
    "reply_demonitor": TUMEN_MONITOR_REPLY_DEMONITOR,
}

cdef object log = logging.getLogger("tumen")
cdef tm_alloc ALLOC = tm_alloc_libc(NULL)

VERSION = (<bytes>tumen_version()).decode()

# -- small conversions --------------------------------------------------------------------------


cdef inline int64_t now_ns() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec


cdef inline str text_of(tumen_bytes bytes):
    return PyUnicode_DecodeUTF8(<const char *>bytes.ptr, <Py_ssize_t>bytes.len, "replace")


# Borrows the bytes of an atom or of a str, for as long as that object lives.
cdef tumen_bytes name_bytes(object name) except *:
    cdef tumen_bytes span
    cdef tm_bytes text
    cdef Py_ssize_t size
    if type(name) is Atom:
        text = atom_bytes(<Atom>name)
        span.ptr = text.ptr
        span.len = text.len
    elif isinstance(name, str):
        span.ptr = <const uint8_t *>PyUnicode_AsUTF8AndSize(name, &size)
        span.len = <size_t>size
    else:
        raise TypeError(f"a name is an Atom or a str, not {type(name).__name__}")
    return span


cdef inline tumen_bytes span_of(const uint8_t *ptr, size_t len) noexcept:
    cdef tumen_bytes span
    span.ptr = ptr
    span.len = len
    return span


cdef inline tumen_pid pid_c(Pid pid) noexcept:
    cdef tm_pid inner
    cdef tumen_pid outer
    pid_fill(pid, &inner)
    outer.node = span_of(inner.node.ptr, inner.node.len)
    outer.id = inner.id
    outer.serial = inner.serial
    outer.creation = inner.creation
    return outer


cdef inline Pid pid_py(const tumen_pid *outer):
    cdef tm_pid inner
    inner.node.ptr = outer.node.ptr
    inner.node.len = outer.node.len
    inner.id = outer.id
    inner.serial = outer.serial
    inner.creation = outer.creation
    return make_pid(&inner)


cdef inline tumen_ref ref_c(Reference ref) noexcept:
    cdef tm_ref inner
    cdef tumen_ref outer
    cdef uint32_t i
    ref_fill(ref, &inner)
    outer.node = span_of(inner.node.ptr, inner.node.len)
    outer.creation = inner.creation
    outer.count = inner.count
    for i in range(inner.count):
        outer.words[i] = inner.words[i]
    return outer


cdef inline Reference ref_py(const tumen_ref *outer):
    cdef tm_ref inner
    cdef uint32_t i
    inner.node.ptr = outer.node.ptr
    inner.node.len = outer.node.len
    inner.creation = outer.creation
    inner.count = outer.count
    for i in range(outer.count):
        inner.words[i] = outer.words[i]
    return make_ref(&inner)


# References of our own are told apart by their words alone.
cdef inline bytes ref_key(const tumen_ref *ref):
    return PyBytes_FromStringAndSize(<const char *>ref.words, ref.count * sizeof(uint32_t))


# A destination of the public API; the spans are borrowed from dest, or from own.
cdef int target_fill(object dest, str own, tumen_target *target) except -1:
    if type(dest) is Pid:
        target.kind = TUMEN_TO_PID
        target.pid = pid_c(<Pid>dest)
    elif PyTuple_CheckExact(dest) and PyTuple_GET_SIZE(dest) == 2:
        target.kind = TUMEN_TO_NAME
        target.name = name_bytes(<object>PyTuple_GET_ITEM(dest, 0))
        target.node = name_bytes(<object>PyTuple_GET_ITEM(dest, 1))
    elif type(dest) is Reference:
        target.kind = TUMEN_TO_REF
        target.ref = ref_c(<Reference>dest)
    elif type(dest) is Atom or isinstance(dest, str):
        target.kind = TUMEN_TO_NAME
        target.name = name_bytes(dest)
        target.node = name_bytes(own)
    elif isinstance(dest, CoreProcess):
        target.kind = TUMEN_TO_PID
        target.pid = pid_c((<CoreProcess>dest).pid)
    else:
        raise TypeError(
            f"a destination is a Pid, a name, a (name, node) pair or an alias, not {dest!r}")
    return 0


def peer_of(dest, str own):
    """Name of the node that a destination is on; `own` for a local name."""
    if type(dest) is Pid:
        return (<Pid>dest).node_atom.text
    if type(dest) is tuple and len(<tuple>dest) == 2:
        node = (<tuple>dest)[1]
        return (<Atom>node).text if type(node) is Atom else node
    if type(dest) is Reference:
        return (<Reference>dest).node_atom.text
    return own


# -- errors -------------------------------------------------------------------------------------

cdef dict ERRORS = {
    TM_EBUSY: errors.Busy,
    TM_ENOCONN: errors.NoConnection,
    TM_ENOPROC: errors.NoProc,
    TM_ENAME_TAKEN: errors.NameClash,
    TM_ETIMEDOUT: errors.NoConnection,
    TM_EPEER_MALFORMED: errors.NoConnection,
    TM_EPEER_LIMIT: errors.LimitExceeded,
    TM_EPEER_COOKIE: errors.AuthError,
    TM_EPEER_FLAGS: errors.AuthError,
    TM_EPEER_NAME: errors.AuthError,
    TM_EPEER_REFUSED: errors.NoConnection,
    TM_EPEER_REFLECTED: errors.AuthError,
    TM_EPEER_CLOSED: errors.NoConnection,
    TM_EPEER_TICK: errors.NoConnection,
    TM_EPEER_UNKNOWN: errors.NoConnection,
    TM_EUSE_LIMIT: errors.LimitExceeded,
}


def error_text(int code):
    """The text of a negative code of the core."""
    return (<bytes>tumen_error_text(code)).decode("utf-8", "replace")


def error_for(int code, peer=None, str context=""):
    """The exception for a negative code of the core; `context` says what was tried."""
    text = error_text(code)
    if context:
        text = f"{context}: {text}"
    if peer:
        text = f"{peer}: {text}"
    if code == TM_ENOMEM:
        return MemoryError(text)
    if code in (TM_EUSE_ARG, TM_EUSE_NAME, TM_EUSE_TERM):
        return ValueError(text)
    if -4096 < code < 0:
        return OSError(-code, text)
    return ERRORS.get(code, errors.TumenError)(text, peer=peer)


cdef int raise_for(int code, object peer, str context) except -1:
    raise error_for(code, peer, context)


# -- engine -------------------------------------------------------------------------------------

# Engines that are not closed: for forked children and for the end of the interpreter.
cdef object engines = weakref.WeakSet()
cdef dict BACKENDS = {
    "auto": TUMEN_BACKEND_AUTO, "uring": TUMEN_BACKEND_URING, "epoll": TUMEN_BACKEND_EPOLL,
}
cdef dict DRIVERS = {
    "thread": TUMEN_DRIVER_THREAD, "loop": TUMEN_DRIVER_LOOP, "host": TUMEN_DRIVER_HOST,
}
cdef int live_engines = 0
cdef int live_nodes = 0


@cython.final
@cython.no_gc
cdef class Engine:
    """Memory, time, one I/O backend and, with ``driver="thread"`` or ``"loop"``, one thread.

    `backend` is ``"auto"``, ``"uring"`` or ``"epoll"``; the drivers ``"loop"`` and ``"host"`` are
    epoll only. Several nodes can share one engine. `close` ends them all.
    """

    cdef tumen_engine *ptr
    cdef bint forked
    cdef int stepping         # threads that are inside step(): close waits for them
    cdef readonly str driver
    cdef object nodes         # WeakSet of CoreNode
    cdef object __weakref__

    def __cinit__(self, *, str backend="auto", str driver="thread", uint32_t sockets_max=0):
        global live_engines
        cdef tumen_engine_options options
        cdef tumen_engine *engine = NULL
        cdef int rc
        options.backend = BACKENDS[backend]
        options.driver = DRIVERS[driver]
        options.sockets_max = sockets_max
        self.driver = driver
        self.nodes = weakref.WeakSet()
        with nogil:
            rc = tumen_engine_create(&options, &engine)
        if rc < 0:
            raise_for(rc, None, "making the engine")
        self.ptr = engine
        live_engines += 1
        engines.add(self)

    def __dealloc__(self):
        self.destroy()

    cdef void destroy(self) noexcept:
        global live_engines
        cdef tumen_engine *engine = self.ptr
        if engine == NULL:
            return
        self.ptr = NULL
        live_engines -= 1
        if self.forked:
            return
        with nogil:
            tumen_engine_destroy(engine)

    cdef tumen_engine *get(self) except NULL:
        if self.forked:
            raise_for(TM_EFORKED, None, "")
        if self.ptr == NULL:
            raise_for(TM_ECLOSED, None, "engine")
        return self.ptr

    def close(self):
        """Closes its nodes and every connection, joins the thread. Idempotent."""
        if self.ptr == NULL:
            return
        if not self.forked:
            for node in list(self.nodes):
                node.close()
            while self.stepping:
                time.sleep(0.001)
        self.destroy()

    @property
    def closed(self):
        return self.ptr == NULL or self.forked

    @property
    def backend(self):
        """``"uring"`` or ``"epoll"``."""
        return (<bytes>tumen_engine_backend(self.get())).decode()

    @property
    def backend_why(self):
        """Why that backend was chosen."""
        return (<bytes>tumen_engine_backend_why(self.get())).decode()

    def step(self, int64_t timeout_ns=0):
        """Drivers ``"loop"`` and ``"host"``: runs what is due, waits at most so long (negative:
        until something happens)."""
        cdef tumen_engine *engine = self.get()
        cdef int rc
        self.stepping += 1
        with nogil:
            rc = tumen_engine_step(engine, timeout_ns)
        self.stepping -= 1
        if rc < 0:
            raise_for(rc, None, "engine step")

    def poll_fd(self):
        """Readable when `step` has work; -1 under the driver ``"thread"``."""
        return tumen_engine_poll_fd(self.get())

    def timeout_ns(self):
        """Nanoseconds until the next timer of the engine; 2**63 - 1 without one."""
        return tumen_engine_timeout_ns(self.get())

    def serve_epmd(self, address=None, uint16_t port=0):
        """Serves the port mapper on `address` (127.0.0.1) and `port` (4369); OSError when another
        does."""
        cdef bytes encoded = None if address is None else (<str?>address).encode()
        cdef const char *text = NULL
        cdef int rc
        if encoded is not None:
            text = encoded
        rc = tumen_engine_serve_epmd(self.get(), text, port)
        if rc < 0:
            raise_for(rc, None, "serving the port mapper")

    def counters(self):
        """What the engine holds and has done, by name: struct tumen_counters."""
        cdef tumen_counters counters
        tumen_engine_counters(self.get(), &counters)
        return counters

    def mark_forked(self):
        """To be called in a forked child: nothing of the engine is touched any more."""
        if self.ptr != NULL and not self.forked:
            tumen_engine_forked(self.ptr)
            self.forked = True


def debug_counters():
    """What is alive in this process: engines, nodes, and the memory and sockets of the engines."""
    total = {"engines": live_engines, "nodes": live_nodes, "blocks": 0, "bytes": 0, "sockets": 0}
    for engine in list(engines):
        if not engine.closed:
            counters = engine.counters()
            for name in ("blocks", "bytes", "sockets"):
                total[name] += counters[name]
    return total


def after_fork_in_child():
    for engine in list(engines):
        engine.mark_forked()


def at_interpreter_exit():
    for engine in list(engines):
        engine.close()


os.register_at_fork(after_in_child=after_fork_in_child)
atexit.register(at_interpreter_exit)

# -- node ---------------------------------------------------------------------------------------


cdef class _Outgoing:
    """A message being put together: bytes of our own, and between them binaries that are lent."""

    cdef tm_buf buf
    cdef tumen_part parts[PART_COUNT]
    cdef size_t ends[PART_COUNT]   # where in buf a copied part ends: its address moves
    cdef size_t count
    cdef list lent                 # the binaries, in order
    cdef bint busy

    def __cinit__(self):
        self.buf.alloc = &ALLOC

    def __dealloc__(self):
        tm_buf_fini(&self.buf)

    cdef void reset(self) noexcept:
        if self.buf.cap > SCRATCH_BYTES:
            tm_buf_fini(&self.buf)
        self.buf.len = 0
        self.count = 0
        self.lent = None
        self.busy = False

    cdef int put(self, object term, int depth) except -1:
        cdef Py_ssize_t i
        if PyTuple_CheckExact(term):
            if depth < LEND_DEPTH and lends(term, depth):
                if tm_buf_reserve(&self.buf, TM_ETF_HEAD_SIZE_MAX) < 0:
                    raise MemoryError()
                self.buf.len = <size_t>(tm_etf_put_tuple(
                    self.buf.ptr + self.buf.len, <uint32_t>PyTuple_GET_SIZE(term)) - self.buf.ptr)
                for i in range(PyTuple_GET_SIZE(term)):
                    self.put(<object>PyTuple_GET_ITEM(term, i), depth + 1)
                return 0
        elif PyBytes_CheckExact(term):
            if PyBytes_GET_SIZE(term) >= LEND_BYTES:
                return self.put_bytes(term, <const uint8_t *>PyBytes_AS_STRING(term),
                                      PyBytes_GET_SIZE(term))
        elif is_buffer(term) and lendable(term):
            # A view of our own: the caller may release his.
            view = memoryview(term.buffer if type(term) is Binary else term)
            return self.put_bytes(view, <const uint8_t *>PyMemoryView_GET_BUFFER(view).buf,
                                  PyMemoryView_GET_BUFFER(view).len)
        return term_encode(term, &self.buf)

    cdef int put_bytes(self, object owner, const uint8_t *ptr, Py_ssize_t size) except -1:
        """A binary that is lent, or encoded when too many or too much of them are."""
        if size > 0xffffffff or (self.lent is not None and len(self.lent) >= LEND_COUNT):
            return term_encode(owner, &self.buf)
        if tm_buf_reserve(&self.buf, TM_ETF_HEAD_SIZE_MAX) < 0:
            raise MemoryError()
        self.buf.len = <size_t>(tm_etf_put_binary(
            self.buf.ptr + self.buf.len, <uint32_t>size) - self.buf.ptr)
        self.close_part()
        self.parts[self.count].bytes = span_of(ptr, <size_t>size)
        self.parts[self.count].lent = 1
        self.count += 1
        if self.lent is None:
            self.lent = []
        self.lent.append(owner)
        return 0

    cdef void close_part(self) noexcept:
        self.parts[self.count].lent = 0
        self.ends[self.count] = self.buf.len
        self.count += 1

    cdef void finish(self, uint64_t first) noexcept:
        """Gives each part its final address, and each lent one its number, from first on."""
        cdef size_t i, at = 0
        self.close_part()
        for i in range(self.count):
            if self.parts[i].lent:
                self.parts[i].lent = first
                first += 1
            else:
                self.parts[i].bytes = span_of(self.buf.ptr + at, self.ends[i] - at)
                at = self.ends[i]


cdef inline bint is_buffer(object term) noexcept:
    return PyMemoryView_Check(term) or type(term) is Binary


# Whether a memoryview or a Binary is large, contiguous and nobody may write through it.
cdef bint lendable(object term) except -1:
    view = memoryview(term.buffer) if type(term) is Binary else term
    return (view.nbytes >= LEND_BYTES and view.readonly
            and PyBuffer_IsContiguous(PyMemoryView_GET_BUFFER(view), b"C"))


# Whether a tuple holds a binary that is worth lending.
cdef bint lends(object term, int depth) except -1:
    cdef Py_ssize_t i
    cdef object item
    for i in range(PyTuple_GET_SIZE(term)):
        item = <object>PyTuple_GET_ITEM(term, i)
        if PyBytes_CheckExact(item):
            if PyBytes_GET_SIZE(item) >= LEND_BYTES:
                return True
        elif PyTuple_CheckExact(item):
            if depth + 1 < LEND_DEPTH and lends(item, depth + 1):
                return True
        elif is_buffer(item) and lendable(item):
            return True
    return False


def lend(buffer, /):
    """Makes the memory of `buffer` (an array, a bytearray, a memory map) a binary that is sent
    without a copy: it must not change until the message has left. Anything below 16 KiB, or inside
    of lists and maps, is copied all the same. BufferError when it is not contiguous."""
    view = memoryview(buffer)
    if not view.c_contiguous:
        raise BufferError("the buffer is not contiguous: copy it first")
    return view.cast("B").toreadonly() if view.nbytes else memoryview(b"")


cdef class CoreNode:
    """One identity in a cluster: struct tumen_node, for any runtime.

    Processes are named by integer keys, terms are Python objects. Every method may be called from
    any thread; `take` by one consumer at a time. `name` is ``"name@host"``, or a host alone to
    ask the first peer for a dynamic name; `epmd_mode` 0: use and, when none answers, become the
    port mapper; 1: use it; 2: none. `flags`: capability flags to announce; 0: all that there are.

    ValueError for a bad name or cookie or flags that cannot be kept, OSError when the listener cannot be made.
    """

    cdef tumen_node *ptr
    cdef PyObject *engine_ref  # counted in __cinit__, given back in __dealloc__ after the node: the
                               # garbage collector must not end the engine before its node
    cdef int users             # threads inside a call without the GIL: close waits for them
    cdef _Outgoing scratch
    cdef readonly str own      # our node name; a host alone until the first peer has named us
    cdef dict lent             # number -> bytes that the kernel may still read
    cdef uint64_t lent_next
    cdef object __weakref__

    def __cinit__(self, Engine engine not None, str name not None, str cookie not None, *,
                  allowed=None, bint visible=False, bint listen=True, listen_host=None,
                  uint16_t listen_port=0, int epmd_mode=0, epmd_address=None,
                  uint16_t epmd_port=0, uint64_t flags=0, **_):
        global live_nodes
        cdef tumen_node_options options
        cdef tumen_node *node = NULL
        cdef tumen_engine *owner = engine.get()
        cdef int rc
        texts = [None if text is None else (<str?>text).encode()
                 for text in (name, cookie, listen_host, epmd_address, allowed)]
        for text in texts:
            if text is not None and b"\0" in text:
                raise ValueError("a NUL character")
        options.name = texts[0]
        options.cookie = texts[1]
        options.allowed = NULL
        if texts[4] is not None:
            options.allowed = texts[4]
        options.listen_host = NULL
        if texts[2] is not None:
            options.listen_host = texts[2]
        options.epmd_address = NULL
        if texts[3] is not None:
            options.epmd_address = texts[3]
        options.visible = visible
        options.listen = listen
        options.listen_port = listen_port
        options.epmd_mode = epmd_mode
        options.epmd_port = epmd_port
        options.flags = flags
        self.engine_ref = <PyObject *>engine
        Py_INCREF(engine)  # Py_DECREF: __dealloc__
        self.own = name
        self.scratch = _Outgoing()
        self.lent = {}
        self.lent_next = 1
        with nogil:
            rc = tumen_node_create(owner, &options, &node)
        if rc < 0:
            raise_for(rc, None, f"starting node {name}")
        self.ptr = node
        live_nodes += 1
        engine.nodes.add(self)

    def __dealloc__(self):
        self.destroy()
        if self.engine_ref != NULL:
            Py_DECREF(<object>self.engine_ref)
            self.engine_ref = NULL

    cdef void destroy(self) noexcept:
        global live_nodes
        cdef tumen_node *node = self.ptr
        if node == NULL:
            return
        self.ptr = NULL
        live_nodes -= 1
        if (<Engine>self.engine_ref).forked or (<Engine>self.engine_ref).ptr == NULL:
            return
        with nogil:
            tumen_node_destroy(node)

    cdef tumen_node *get(self) except NULL:
        if (<Engine>self.engine_ref).forked:
            raise_for(TM_EFORKED, None, "")
        if self.ptr == NULL:
            raise_for(TM_ECLOSED, None, "node")
        return self.ptr

    @property
    def engine(self):
        return <Engine>self.engine_ref

    @property
    def closed(self):
        return self.ptr == NULL or (<Engine>self.engine_ref).forked

    def stop(self):
        """Starts the end: peers see every connection close after what is queued was written. The
        event ``stopped`` follows."""
        cdef tumen_node *node = self.get()
        cdef int rc
        self.users += 1
        with nogil:
            rc = tumen_node_stop(node)
        self.users -= 1
        if rc < 0:
            raise_for(rc, None, "stopping the node")

    def close(self):
        """Frees the node; stops it first (and waits, at most about a second) if need be.
        Idempotent."""
        cdef tumen_node *node = self.ptr
        if node == NULL:
            return
        if (<Engine>self.engine_ref).forked:
            self.destroy()
            return
        global live_nodes
        # From here on every other call finds the node closed; those inside end before it goes.
        self.ptr = NULL
        live_nodes -= 1
        while self.users:
            time.sleep(0.001)
        with nogil:
            tumen_node_destroy(node)
        self.lent.clear()

    # -- the node as a whole

    def info(self):
        """What the node knows about itself, by name: struct tumen_node_info."""
        cdef tumen_node_info info
        cdef int rc = tumen_node_get_info(self.get(), &info)
        if rc < 0:
            raise_for(rc, None, "node info")
        return {
            "name": text_of(info.name), "creation": info.creation, "port": info.port,
            "visible": bool(info.visible), "registered": bool(info.registered),
            "serves_epmd": bool(info.serves_epmd), "connections": info.connections,
            "processes": info.processes, "inbox_bytes": info.inbox_bytes,
            "mail_bytes": info.mail_bytes, "sendq_bytes": info.sendq_bytes,
            "messages_in": info.messages_in, "messages_out": info.messages_out,
            "messages_dropped": info.messages_dropped,
            "operations_refused": info.operations_refused,
            "operations_unknown": info.operations_unknown, "half_open": info.half_open,
        }

    def connections(self):
        """Every connection as a dict: struct tumen_connection."""
        cdef tumen_node *node = self.get()
        cdef tumen_connection *table
        cdef int count = tumen_node_connections(node, NULL, 0)
        cdef int i, room
        cdef list result = []
        if count < 0:
            raise_for(count, None, "connections")
        if count == 0:
            return result
        # Some may come up meanwhile; those are for the next call.
        room = count + 8
        cdef bytearray memory = bytearray(room * sizeof(tumen_connection))
        table = <tumen_connection *><char *>memory
        count = min(tumen_node_connections(node, table, <size_t>room), room)
        for i in range(count):
            result.append(connection_py(&table[i]))
        return result

    def limit(self, int limit):
        """The value of a limit, by its number in enum tumen_limit."""
        return tumen_node_limit(self.get(), limit)

    def set_limit(self, int limit, uint64_t value):
        """Changes a limit at once."""
        cdef int rc = tumen_node_set_limit(self.get(), limit, value)
        if rc < 0:
            raise_for(rc, None, f"limit {limit} = {value}")

    def set_cookie(self, cookie, peer=""):
        """The cookie for one peer, or (no peer) for all others."""
        cdef tumen_bytes peer_span = name_bytes(peer), cookie_span = name_bytes(cookie)
        cdef int rc = tumen_node_set_cookie(self.get(), peer_span, cookie_span)
        if rc < 0:
            raise_for(rc, peer or None, "cookie")

    def allow(self, entry):
        """Adds "node@host", "host" or "name@" to the nodes that may connect."""
        cdef int rc = tumen_node_allow(self.get(), name_bytes(entry))
        if rc < 0:
            raise_for(rc, None, f"allowing {entry!r}")

    def connect(self, peer, host=None, uint16_t port=0):
        """Starts to connect; True when it is up already."""
        cdef bytes encoded = None if host is None else (<str?>host).encode()
        cdef const char *text = NULL
        cdef tumen_bytes span = name_bytes(peer)
        cdef int rc
        if encoded is not None:
            text = encoded
        rc = tumen_node_connect(self.get(), span, text, port)
        if rc < 0:
            raise_for(rc, peer, "connecting")
        return rc == 1

    def disconnect(self, peer):
        """Starts to close, once what is queued was written; False when there is no connection."""
        cdef int rc = tumen_node_disconnect(self.get(), name_bytes(peer))
        if rc == TM_ENOCONN:
            return False
        if rc < 0:
            raise_for(rc, peer, "disconnecting")
        return True

    # -- processes

    def spawn(self):
        """Makes a process; its key."""
        cdef tumen_key key = 0
        cdef int rc = tumen_spawn(self.get(), &key)
        if rc < 0:
            raise_for(rc, None, "spawning a process")
        return key

    def exit(self, tumen_key key, reason):
        """The process ends by itself with `reason`; False when it is gone already."""
        cdef _Outgoing out = self.outgoing()
        cdef int rc
        try:
            term_encode(reason, &out.buf)
            rc = tumen_exit(self.get(), key, span_of(out.buf.ptr, out.buf.len))
        finally:
            out.reset()
        if rc < 0 and rc != TM_ENOPROC:
            raise_for(rc, None, "ending a process")
        self.sent()
        return rc == 0

    def alive(self, tumen_key key):
        return tumen_alive(self.get(), key) != 0

    def pid(self, tumen_key key):
        """The pid of a key, alive or not."""
        cdef tumen_pid pid
        cdef int rc = tumen_pid_of(self.get(), key, &pid)
        if rc < 0:
            raise_for(rc, None, "pid")
        return pid_py(&pid)

    def trap_exit(self, tumen_key key, bint trap):
        cdef int rc = tumen_trap_exit(self.get(), key, trap)
        if rc < 0:
            raise_for(rc, None, "trap_exit")

    def register(self, name, tumen_key key):
        """Names a process; NameClash, NoProc (it is dead), ValueError."""
        cdef int rc = tumen_register(self.get(), name_bytes(name), key)
        if rc < 0:
            raise_for(rc, None, f"registering {name}")

    def unregister(self, name):
        """Takes the name away; False when nobody had it."""
        cdef int rc = tumen_unregister(self.get(), name_bytes(name))
        if rc < 0 and rc != TM_ENOPROC:
            raise_for(rc, None, f"unregistering {name}")
        return rc == 0

    def whereis(self, name):
        """The key of the process with that name, 0 when nobody has it."""
        return tumen_whereis(self.get(), name_bytes(name))

    def make_ref(self):
        cdef tumen_ref ref
        cdef int rc = tumen_make_ref(self.get(), &ref)
        if rc < 0:
            raise_for(rc, None, "reference")
        return ref_py(&ref)

    def mail_taken(self, tumen_key key, uint64_t nbytes):
        """A process has taken messages of so many wire bytes from its mailbox."""
        tumen_mail_taken(self.get(), key, nbytes)

    # -- sending

    cdef _Outgoing outgoing(self):
        """The node's buffer, or a fresh one when a send is under way: encoding may run Python."""
        cdef _Outgoing out = self.scratch
        if out.busy:
            out = _Outgoing()
        out.busy = True
        return out

    cdef int send_to(self, tumen_key sender, const tumen_target *target, object message,
                     unsigned int flags) except? -1:
        """Encodes and queues; the answer of tumen_send."""
        cdef _Outgoing out = self.outgoing()
        cdef tumen_node *node
        cdef uint64_t first = self.lent_next
        cdef int rc
        try:
            self.encode(message, out)
            node = self.get()
            if out.lent is None:
                return tumen_send(node, sender, target, span_of(out.buf.ptr, out.buf.len), flags)
            out.finish(first)
            for data in out.lent:
                self.lent[self.lent_next] = data
                self.lent_next += 1
            rc = tumen_send_parts(node, sender, target, out.parts, out.count, flags)
            if rc < 0:
                while first < self.lent_next:
                    self.lent.pop(first, None)
                    first += 1
            return rc
        finally:
            out.reset()

    cdef int encode(self, object message, _Outgoing out) except -1:
        try:
            out.put(message, 0)
        except errors.EncodeError:
            if out.lent is None:
                raise
            # Once more in one piece: then the error names the path from the root.
            out.reset()
            out.busy = True
            term_encode(message, &out.buf)
        return 0

    cdef int sent(self) except -1:
        """Something was queued. Here: the caller flushes when he likes."""
        return 0

    cdef int busy(self, object peer) except -1:
        """A queue is full: what is in it should be on its way at least."""
        self.flush()
        return 0

    cdef int check_sent(self, int rc, object dest) except -1:
        if rc < 0:
            peer = peer_of(dest, self.own)
            if rc == TM_EBUSY:
                self.busy(peer)
            raise_for(rc, peer, "sending")
        return self.sent()

    def send(self, tumen_key sender, dest, message, *, bint control=False, bint connect=True):
        """Queues a message. `control`: a reply, which may use the reserve above the high water;
        ``connect=False``: NoConnection instead of connecting. Busy, LimitExceeded, EncodeError."""
        cdef tumen_target target
        cdef unsigned int flags = 0
        target_fill(dest, self.own, &target)
        if control:
            flags |= TUMEN_SEND_CONTROL
        if not connect:
            flags |= TUMEN_SEND_NOCONNECT
        self.check_sent(self.send_to(sender, &target, message, flags), dest)

    def flush(self):
        """Everything queued since the last flush gets going. May write to sockets."""
        cdef tumen_node *node = self.get()
        self.users += 1
        with nogil:
            tumen_flush(node)
        self.users -= 1

    def want_writable(self, peer):
        """True: the queue towards `peer` is at its high water, an event ``writable`` will come.
        False: there is room, or no connection."""
        cdef int rc = tumen_want_writable(self.get(), name_bytes(peer))
        if rc < 0 and rc != TM_EBUSY and rc != TM_ENOCONN:
            raise_for(rc, peer, "waiting for room")
        return rc == TM_EBUSY

    def _lent_count(self):
        """Buffers that the kernel may still read."""
        return len(self.lent)

    # -- monitors, links, aliases, spawn requests

    def monitor(self, tumen_key watcher, dest, *, alias=None):
        """Watches a pid or a name; the reference that DOWN will carry. `alias`: it is an alias as
        well, ``"explicit_unalias"``, ``"demonitor"`` or ``"reply_demonitor"``, or (True) one whose
        message comes as EVENT_REPLY."""
        cdef tumen_target target
        cdef tumen_ref ref
        cdef int rc
        if alias not in MONITOR_ALIASES:
            raise ValueError(f"alias {alias!r}: none of {[*MONITOR_ALIASES][3:]}")
        target_fill(dest, self.own, &target)
        rc = tumen_monitor(self.get(), watcher, &target, MONITOR_ALIASES[alias], &ref)
        if rc < 0:
            raise_for(rc, peer_of(dest, None), "monitor")
        self.sent()
        return ref_py(&ref)

    def demonitor(self, tumen_key watcher, Reference ref not None):
        """True when it was there; afterwards neither DOWN nor a reply comes for it."""
        cdef tumen_ref inner = ref_c(ref)
        cdef int rc = tumen_demonitor(self.get(), watcher, &inner)
        if rc < 0:
            raise_for(rc, None, "demonitor")
        self.sent()
        return rc == 1

    def watched(self, tumen_key key, Reference ref not None):
        """Whether a monitor with this reference, held by a process of any node, stands on the
        process. Any thread."""
        cdef tumen_ref inner = ref_c(ref)
        cdef int rc = tumen_watched(self.get(), key, &inner)
        if rc < 0:
            raise_for(rc, None, "watched")
        return rc == 1

    def link(self, tumen_key key, Pid pid not None):
        cdef tumen_pid to = pid_c(pid)
        self.check_sent(tumen_link(self.get(), key, &to), pid)

    def unlink(self, tumen_key key, Pid pid not None):
        cdef tumen_pid to = pid_c(pid)
        self.check_sent(tumen_unlink(self.get(), key, &to), pid)

    def exit_signal(self, tumen_key sender, dest, reason):
        """exit(Dest, Reason), to a pid or an alias."""
        cdef tumen_target to
        cdef _Outgoing out = self.outgoing()
        cdef int rc
        try:
            target_fill(dest, self.own, &to)
            if to.kind == TUMEN_TO_NAME:
                raise TypeError(f"an exit signal goes to a Pid or an alias, not to {dest!r}")
            term_encode(reason, &out.buf)
            rc = tumen_exit_signal(self.get(), sender, &to, span_of(out.buf.ptr, out.buf.len))
        finally:
            out.reset()
        self.check_sent(rc, dest)

    def alias(self, tumen_key key, *, bint reply=False):
        """A reference that messages for the process can be sent to, until `unalias`; `reply`: until
        the first message."""
        cdef tumen_ref ref
        cdef int rc = tumen_alias(self.get(), key, TUMEN_ALIAS_REPLY if reply else 0, &ref)
        if rc < 0:
            raise_for(rc, None, "alias")
        return ref_py(&ref)

    def unalias(self, tumen_key key, Reference ref not None):
        cdef tumen_ref inner = ref_c(ref)
        return tumen_unalias(self.get(), key, &inner) == 1

    def monitor_node(self, tumen_key key, name, bint on=True):
        """monitor_node(Name, On): an event EVENT_NODE_LOST for each call when the connection goes or
        cannot be made. False when there was none to take back."""
        cdef int rc = tumen_monitor_node(self.get(), key, name_bytes(name), on)
        if rc < 0:
            raise_for(rc, name, "monitor_node")
        self.sent()
        return on or rc == 1

    def group_leader(self, tumen_key key):
        """The group leader that was set for a process, or None. NoProc."""
        cdef char space[TUMEN_NODE_NAME_BYTES]
        cdef tumen_pid leader
        cdef int rc = tumen_group_leader(self.get(), key, &leader, space)
        if rc < 0:
            raise_for(rc, None, "group_leader")
        return pid_py(&leader) if rc else None

    def set_group_leader(self, tumen_key by, Pid pid not None, Pid leader not None):
        """group_leader(Leader, Pid), asked for by the process `by`. NoProc for a dead local pid."""
        cdef tumen_pid to = pid_c(pid), new = pid_c(leader)
        self.check_sent(tumen_set_group_leader(self.get(), by, &to, &new), pid)

    def trace(self, tumen_key key, bytes token not None):
        """The process has taken a message with that trace token, an encoded term; empty: without.
        What is no token is left out."""
        cdef int rc = tumen_trace(self.get(), key, span_of(
            <const uint8_t *>PyBytes_AS_STRING(token), <size_t>PyBytes_GET_SIZE(token)))
        if rc == TM_ENOMEM:
            raise_for(rc, None, "trace token")

    def trace_token(self, tumen_key key):
        """The trace token of a process, an encoded term; empty without one."""
        cdef uint8_t space[TUMEN_TRACE_TOKEN_BYTES]
        cdef int rc = tumen_trace_token(self.get(), key, space, TUMEN_TRACE_TOKEN_BYTES)
        return PyBytes_FromStringAndSize(<const char *>space, max(rc, 0))

    def expose(self, module, function, bint on=True):
        """Lets spawn requests run a function: EVENT_SPAWN. ValueError for a name that is none."""
        cdef int rc = tumen_expose(self.get(), name_bytes(module), name_bytes(function), on)
        if rc < 0:
            raise_for(rc, None, f"exposing {module}:{function}")

    def spawn_request(self, tumen_key sender, peer, module, function, list args not None, *,
                      bint link=False, bint monitor=True, Pid leader=None, options=()):
        """Asks a node to spawn a function; the reference of what follows. `leader`: the group leader,
        else the sender; `options`: terms, those of spawn_opt/5 beyond link and monitor."""
        cdef tumen_ref ref
        cdef tumen_spawn_spec spec
        cdef _Outgoing out = self.outgoing()
        cdef size_t args_size
        cdef int rc
        try:
            term_encode(args, &out.buf)
            args_size = out.buf.len
            if options:
                term_encode(list(options), &out.buf)
            spec.peer = name_bytes(peer)
            spec.module = name_bytes(module)
            spec.function = name_bytes(function)
            spec.arity = <uint32_t>len(args)
            spec.flags = (TUMEN_SPAWN_LINK if link else 0) | (TUMEN_SPAWN_MONITOR if monitor else 0)
            spec.args = span_of(out.buf.ptr, args_size)
            spec.options = span_of(out.buf.ptr + args_size, out.buf.len - args_size)
            spec.leader.node = span_of(NULL, 0)
            if leader is not None:
                spec.leader = pid_c(leader)
            rc = tumen_spawn_request(self.get(), sender, &spec, &ref)
        finally:
            out.reset()
        self.check_sent(rc, (module, peer))
        return ref_py(&ref)

    def spawn_abandon(self, tumen_key sender, Reference ref not None):
        """Nothing of that request is delivered any more."""
        cdef tumen_ref inner = ref_c(ref)
        cdef int rc = tumen_spawn_abandon(self.get(), sender, &inner)
        self.sent()
        return rc == 1

    # -- events

    def event_fd(self):
        """Readable when events wait and `arm` was called."""
        return tumen_node_event_fd(self.get())

    def arm(self):
        """To be called before sleeping. True: events wait already, and nothing was armed."""
        return tumen_node_arm(self.get()) == 1

    def take(self):
        """All waiting events, decoded, as a list of `CoreEvent`."""
        cdef tumen_batch *batch = tumen_node_take(self.get())
        cdef const tumen_event *event
        cdef list result = []
        if batch == NULL:
            return result
        try:
            while True:
                event = tumen_batch_next(batch)
                if event == NULL:
                    return result
                if event.kind == TUMEN_EVENT_RETURNED:
                    self.lent.pop(event.number, None)
                    continue
                if event.kind == TUMEN_EVENT_NAMED:
                    self.own = text_of(event.node)
                result.append(self.event_py(event))
        finally:
            tumen_batch_free(batch)

    cdef object event_py(self, const tumen_event *event):
        cdef CoreEvent result = CoreEvent.__new__(CoreEvent)
        result.kind = event.kind
        result.code = event.code
        result.process = event.process
        result.number = event.number
        result.wire_bytes = event.wire_bytes
        result.node = text_of(event.node)
        result.name = text_of(event.name)
        if event.kind >= TUMEN_EVENT_NODEUP:
            result.text = text_of(event.text)
        else:
            result.text = ""
            result.token = token_of(event)
        if event.from_.node.len:
            result.sender = pid_py(&event.from_)
        if event.ref.node.len:
            result.ref = ref_py(&event.ref)
        if event.term.len:
            try:
                result.term = term_build(event.term.ptr, event.term.len, 0)
            except (errors.DecodeError, errors.LimitExceeded) as error:
                result.term = ATOM_MALFORMED
                self.blame(event, str(error))
        return result

    cdef int blame(self, const tumen_event *event, str text) except -1:
        """The term of an event could not be decoded: that ends the connection it came on."""
        cdef bytes encoded = text.encode()
        tumen_node_blame(self.get(), event.connection, encoded)
        return 0


# The trace token that an event carries; empty without one.
cdef inline bytes token_of(const tumen_event *event):
    return PyBytes_FromStringAndSize(<const char *>event.text.ptr, <Py_ssize_t>event.text.len)


cdef dict connection_py(const tumen_connection *entry):
    return {
        "name": text_of(entry.name), "up": entry.state == TUMEN_UP, "visible": bool(entry.visible),
        "creation": entry.creation, "flags": entry.flags, "up_ns": entry.up_ns,
        "bytes_in": entry.bytes_in, "bytes_out": entry.bytes_out, "frames_in": entry.frames_in,
        "frames_out": entry.frames_out, "ticks_in": entry.ticks_in, "ticks_out": entry.ticks_out,
        "queue_bytes": entry.queue_bytes, "queue_count": entry.queue_count,
        "inbox_bytes": entry.inbox_bytes, "reassembly_bytes": entry.reassembly_bytes,
        "atoms": entry.atoms,
        "address": (<bytes>entry.address).decode("ascii", "replace"),
    }


@cython.final
cdef class CoreEvent:
    """One event of `CoreNode.take`: struct tumen_event with its term decoded.

    `kind` is a number of enum tumen_event_kind (the constants ``EVENT_*`` of this module).
    """

    cdef readonly int kind
    cdef readonly int code
    cdef readonly uint64_t process
    cdef readonly int64_t number
    cdef readonly uint64_t wire_bytes
    cdef readonly object sender  # Pid or None
    cdef readonly object ref     # Reference or None
    cdef readonly str node
    cdef readonly str name
    cdef readonly str text
    cdef readonly bytes token    # a trace token, encoded; empty without one
    cdef readonly object term    # None without one

    def __repr__(self):
        return (f"CoreEvent(kind={self.kind}, process={self.process}, node={self.node!r}, "
                f"text={self.text!r}, term={self.term!r})")


EVENT_MESSAGE = TUMEN_EVENT_MESSAGE
EVENT_REPLY = TUMEN_EVENT_REPLY
EVENT_DOWN = TUMEN_EVENT_DOWN
EVENT_EXIT = TUMEN_EVENT_EXIT
EVENT_EXITED = TUMEN_EVENT_EXITED
EVENT_SPAWN = TUMEN_EVENT_SPAWN
EVENT_ABANDONED = TUMEN_EVENT_ABANDONED
EVENT_SPAWN_REPLY = TUMEN_EVENT_SPAWN_REPLY
EVENT_NODE_LOST = TUMEN_EVENT_NODE_LOST
EVENT_NODEUP = TUMEN_EVENT_NODEUP
EVENT_NODEDOWN = TUMEN_EVENT_NODEDOWN
EVENT_CONNECT_FAILED = TUMEN_EVENT_CONNECT_FAILED
EVENT_WRITABLE = TUMEN_EVENT_WRITABLE
EVENT_REFUSED = TUMEN_EVENT_REFUSED
EVENT_HANDSHAKE_FAILED = TUMEN_EVENT_HANDSHAKE_FAILED
EVENT_REGISTERED = TUMEN_EVENT_REGISTERED
EVENT_REGISTER_FAILED = TUMEN_EVENT_REGISTER_FAILED
EVENT_NAMED = TUMEN_EVENT_NAMED
EVENT_STOPPED = TUMEN_EVENT_STOPPED
EVENT_BROKEN = TUMEN_EVENT_BROKEN

# -- mailbox ------------------------------------------------------------------------------------


@cython.final
cdef class _Traced:
    """A message in a mailbox, and the trace token it came with."""

    cdef object message
    cdef bytes token   # empty: it came without; None: of the node itself, which leaves all as it is


cdef class CoreProcess:
    """A process of this node as the drain sees it: key, pid, mailbox, and who waits for mail.

    Mail is two lists, of messages and of what each weighs on the wire, read from `head` on. The
    loop's thread only, but for `send` and `cast`.
    """

    cdef LoopNode core
    cdef uint64_t key
    cdef readonly Pid pid
    cdef readonly bint alive
    cdef readonly object exit_reason  # a term, once it is dead
    cdef public object _task          # what runs it; cancelled when the process is ended
    cdef bint sink                    # mail is thrown away
    cdef list mail
    cdef list sizes
    cdef Py_ssize_t head
    cdef uint64_t taken               # wire bytes, not yet reported
    cdef object waiter                # future of the one that waits for mail, or None
    cdef int turn_messages            # since the process last gave the loop a turn
    cdef int64_t turn_ns              # when that was
    cdef int calls                    # of its own that are under way
    cdef bint traced                  # a trace token has come: from here on mail is `_Traced`
    cdef bint has_token               # it has one now
    cdef object __weakref__

    def __cinit__(self, *_, **__):
        self.mail = []
        self.sizes = []

    cdef int check(self) except -1:
        if not self.alive:
            if self.core is None:
                raise errors.ProcessExited("this process was not started by a node")
            raise errors.ProcessExited(
                f"process {self.pid} has ended: {self.exit_reason!r}", reason=self.exit_reason)
        return 0

    # -- mail in: the drain

    cdef int put(self, object message, uint64_t nbytes) except -1:
        if self.sink or not self.alive:
            self.taken += nbytes
            self.report()
            return 0
        if self.traced and type(message) is not _Traced:
            message = traced_mail(message, None)
        self.mail.append(message)
        self.sizes.append(nbytes)
        self.wake()
        return 0

    cdef int put_traced(self, object message, uint64_t nbytes, bytes token) except -1:
        """As `put`, for what comes with a token, or (empty) could have come with one."""
        if not self.sink:
            self.traced = True
        return self.put(traced_mail(message, token), nbytes)

    cdef object untrace(self, _Traced mail):
        """The message, which the process takes now."""
        if mail.token is not None:
            self.take_token(mail.token)
        return mail.message

    cdef int take_token(self, bytes token) except -1:
        if (token or self.has_token) and self.core.ptr != NULL:
            self.core.trace(self.key, token)
        self.has_token = len(token) != 0
        return 0

    cdef int wake(self) except -1:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)
        return 0

    cdef int ended(self, object reason) except -1:
        """It is dead in the core's tables: nothing of it is used any more."""
        if not self.alive:
            return 0
        self.alive = False
        self.exit_reason = reason
        self.core.processes.pop(self.key, None)
        self.taken += <uint64_t>sum(self.sizes[self.head:])
        self.report()
        self.mail.clear()
        self.sizes.clear()
        self.head = 0
        self.wake()
        if self.calls:
            self.core.end_calls(self)
        return 0

    # -- mail out

    cdef object pop(self):
        cdef object message = self.mail[self.head]
        cdef Py_ssize_t count = PyList_GET_SIZE(self.mail)
        self.taken += <uint64_t>self.sizes[self.head]
        self.mail[self.head] = None
        self.head += 1
        if self.head == count:
            self.mail.clear()
            self.sizes.clear()
            self.head = 0
        elif self.head >= 1024 and self.head * 2 >= count:
            del self.mail[:self.head]
            del self.sizes[:self.head]
            self.head = 0
        if self.taken >= TAKEN_BYTES:
            self.report()
        return self.untrace(message) if type(message) is _Traced else message

    cdef int report(self) except -1:
        cdef uint64_t nbytes = self.taken
        self.taken = 0
        if nbytes and self.core.ptr != NULL:
            tumen_mail_taken(self.core.ptr, self.key, nbytes)
        return 0

    cdef bint turn_is_over(self) noexcept:
        self.turn_messages += 1
        if self.turn_messages < TURN_MESSAGES and now_ns() - self.turn_ns < TURN_NS:
            return False
        self.turn_begins()
        return True

    cdef void turn_begins(self) noexcept:
        self.turn_messages = 0
        self.turn_ns = now_ns()

    cdef object wait(self):
        """The future that the next message resolves."""
        self.check()
        self.report()
        if self.waiter is not None and not self.waiter.done():
            raise RuntimeError("another task waits for this process's mail already")
        self.waiter = self.core.create_future()
        return self.waiter

    def __aiter__(self):
        return self

    def __anext__(self):
        cdef NextMessage following = NextMessage.__new__(NextMessage)
        following.process = self
        return following

    def _waiting(self):
        """Messages in the mailbox."""
        return PyList_GET_SIZE(self.mail) - self.head

    @property
    def _asleep(self):
        """Whether its task waits for mail."""
        return self.waiter is not None and not self.waiter.done()

    def _find(self, match, Py_ssize_t start=0):
        """Place of the first message from `start` on that `match` accepts (None: any), else -1."""
        cdef Py_ssize_t i = start
        self.check()
        while i < PyList_GET_SIZE(self.mail) - self.head:
            if match is None or match(untraced(self.mail[self.head + i])):
                return i
            i += 1
        return -1

    def _remove(self, Py_ssize_t place):
        """Takes the message at a place that `_find` gave."""
        if place == 0:
            return self.pop()
        place += self.head
        message = self.mail.pop(place)
        self.taken += <uint64_t>self.sizes.pop(place)
        if self.taken >= TAKEN_BYTES:
            self.report()
        return self.untrace(message) if type(message) is _Traced else message

    def _check(self):
        """ProcessExited unless it lives."""
        self.check()

    def _deliver(self, message):
        """Puts a message of the node itself into the mailbox."""
        self.put(message, 0)

    def _trace(self, bytes token not None):
        """From here on it has this trace token."""
        self.traced = True
        self.take_token(token)

    def _mail_future(self):
        """Resolved by the next message, or by the end of the process."""
        return self.wait()

    # -- life

    @property
    def _key(self):
        return self.key

    def _finish(self, reason):
        """The process ends by itself; False when it was ended before. EncodeError is for the
        caller."""
        if not self.alive:
            return False
        ended = self.core.exit(self.key, reason)
        self.ended(reason)
        return ended

    @property
    def trap_exit(self):
        """Whether exit signals come as messages ``(Atom("EXIT"), pid, reason)``."""
        return self.core is not None and self.key in self.core.trapping

    @trap_exit.setter
    def trap_exit(self, bint value):
        self.check()
        self.core.trap_exit(self.key, value)
        if value:
            self.core.trapping.add(self.key)
        else:
            self.core.trapping.discard(self.key)

    # -- signals out

    def send(self, dest, message):
        """Sends a message from this process. Never blocks, connects if need be.

        `dest`: a `Pid`, a local name, a ``(name, node)`` pair or an alias. `Busy` above the high
        water of the connection, `EncodeError`, `LimitExceeded`, `ProcessExited`. Any thread.
        """
        self.check()
        self.core.post(self.key, dest, message, 0)

    def cast(self, dest, request):
        """gen_server:cast: as `send`."""
        self.check()
        self.core.post(self.key, dest, (ATOM_GEN_CAST, request), 0)

    def link(self, pid):
        """Links this process and `pid`: if one ends, the other gets an exit signal."""
        self.check()
        self.core.link(self.key, pid)

    def unlink(self, pid):
        """Ends the link: afterwards no exit signal of `pid` comes."""
        self.check()
        self.core.unlink(self.key, pid)

    def monitor(self, dest, *, alias=None):
        """Watches a pid or a name; the reference of the one message that will come:
        ``(Atom("DOWN"), ref, Atom("process"), pid or (name, node), reason)``.

        With `alias` others can send messages to the reference too, as in erlang:monitor/3:
        ``"explicit_unalias"`` until `unalias`; ``"demonitor"`` until the monitor ends, by
        `demonitor` or by its DOWN; ``"reply_demonitor"`` also until the first message that comes by
        it, which ends the monitor too."""
        self.check()
        if alias is not None and not isinstance(alias, str):
            raise ValueError(f"alias {alias!r}: one of Erlang's names, or None")
        return self.core.monitor(self.key, dest, alias=alias)

    def alias(self, *, bint reply=False):
        """A reference that anybody can send messages for this process to, until `unalias`; with
        `reply` until the first such message."""
        self.check()
        return self.core.alias(self.key, reply=reply)

    def unalias(self, ref):
        """Ends an alias: what is sent to it from now on reaches nobody. A monitor of the same
        reference stays. True when it was active."""
        self.check()
        return self.core.unalias(self.key, ref)

    def monitor_node(self, name, bint flag=True):
        """erlang:monitor_node: the message ``(Atom("nodedown"), Atom(name))`` comes once for each
        call when the connection to that node goes, or cannot be made: it is made if need be.
        ``flag=False`` takes one call back. The node itself is never down."""
        self.check()
        self.core.monitor_node(self.key, name, flag)

    def demonitor(self, ref):
        """Ends a monitor, and takes a DOWN that has come already out of the mailbox. True when the
        monitor had not fired."""
        self.check()
        if self.core.demonitor(self.key, ref):
            return True
        place = self._find(lambda message: is_down(message, ref))
        if place >= 0:
            self._remove(place)
        else:
            self.core.drop_down(ref)
        return False

    def exit(self, dest, reason):
        """exit(Dest, Reason): an exit signal to a process, which may be this one, or to an alias,
        which OTP 28 and tumen know: on older nodes it reaches nobody."""
        self.check()
        self.core.exit_signal(self.key, dest, reason)

    def set_group_leader(self, pid, leader):
        """group_leader(Leader, Pid): gives a process of any node another group leader."""
        self.check()
        self.core.set_group_leader(self.key, pid, leader)

    @property
    def seq_trace_token(self):
        """The token of the sequential trace that this process is part of, as seq_trace shows it:
        ``(flags, label, serial, from, previous)``; None outside of one. It came with the message
        taken last, and goes along with all that this process sends."""
        if not self.has_token or not self.alive:
            return None
        token = self.core.trace_token(self.key)
        return term_build(<const uint8_t *>PyBytes_AS_STRING(token), <size_t>len(token), 0) \
            if token else None


cdef object ATOM_GEN_CAST = Atom("$gen_cast")


cdef inline _Traced traced_mail(object message, bytes token):
    cdef _Traced mail = _Traced.__new__(_Traced)
    mail.message = message
    mail.token = token
    return mail


cdef inline object untraced(object mail):
    return (<_Traced>mail).message if type(mail) is _Traced else mail


cdef bint is_down(object message, object ref) except -1:
    return (type(message) is tuple and len(<tuple>message) == 5 and message[0] == ATOM_DOWN
            and message[1] == ref)


@cython.final
@cython.freelist(16)
cdef class NextMessage:
    """What ``async for message in process`` awaits: done at once while mail waits."""

    cdef CoreProcess process
    cdef bint asleep

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        """Runs from the slots that are set below; here for the table of methods alone."""
        raise RuntimeError("the slots run, not this")

    # True: value is the message; False: it is what the task is to wait for, None for a mere turn.
    cdef bint step(self, PyObject **value) except -1:
        cdef CoreProcess process = self.process
        if self.asleep:
            self.asleep = False
            process.turn_begins()
        elif process.head < PyList_GET_SIZE(process.mail) and process.turn_is_over():
            give(None, value)
            return False
        if process.head < PyList_GET_SIZE(process.mail):
            give(process.pop(), value)
            return True
        future = process.wait()
        self.asleep = True
        # The protocol between a task and a future that it is to wait for.
        future._asyncio_future_blocking = True
        give(future, value)
        return False


cdef inline void give(object value, PyObject **to) noexcept:
    Py_INCREF(value)  # Py_DECREF: the interpreter
    to[0] = <PyObject *>value


# Cython's own slots would make a StopIteration with a traceback for every message: four times the
# work of the rest. Python 3.11 calls am_send, later versions tp_iternext.

cdef PySendResult next_message_send(PyObject *self, PyObject *_, PyObject **value) noexcept:
    value[0] = NULL
    try:
        return PYGEN_RETURN if (<NextMessage>self).step(value) else PYGEN_NEXT
    except BaseException as error:
        PyErr_SetObject(type(error), error)
        return PYGEN_ERROR


cdef PyObject *next_message_next(PyObject *self) noexcept:
    cdef PyObject *value = NULL
    cdef PySendResult result = next_message_send(self, NULL, &value)
    if result == PYGEN_RETURN:
        PyErr_SetObject(StopIteration, StopIteration(<object>value))
        Py_DECREF(<object>value)
        value = NULL
    return value


(<PyTypeObject *>NextMessage).tp_iternext = <iternextfunc>next_message_next
(<PyTypeObject *>NextMessage).tp_as_async.am_send = <sendfunc>next_message_send

# -- calls under way ----------------------------------------------------------------------------

cdef enum:
    WAITING = 0
    REPLIED = 1
    DOWN = 2
    NOT_SPAWNED = 3
    EXPIRED = 4
    ENDED = 5
    SPAWNED = 6

OUTCOME_REPLIED = REPLIED
OUTCOME_DOWN = DOWN
OUTCOME_NOT_SPAWNED = NOT_SPAWNED
OUTCOME_EXPIRED = EXPIRED
OUTCOME_ENDED = ENDED
OUTCOME_SPAWNED = SPAWNED


@cython.final
cdef class PendingCall:
    """A reply, a DOWN or a spawn's answer that is waited for, found by its reference.

    `future` resolves to None once `outcome` and `value` (the reply or the reason) are set;
    `close` must follow, also when the wait was cancelled.
    """

    cdef LoopNode core
    cdef CoreProcess owner
    cdef bytes ref_key
    cdef readonly Reference ref
    cdef readonly object future
    cdef readonly object peer    # name of the node that is asked
    cdef readonly int outcome
    cdef readonly object value
    cdef bint is_spawn
    cdef bint ends_spawned        # the pid is the outcome, not the DOWN that may follow
    cdef bint keeps_down          # that DOWN is for `following`
    cdef readonly PendingCall following
    cdef bint was_up             # the connection, when the call began
    cdef object ups              # how often it had come up by then
    cdef _Deadlines deadlines     # where it waits for its deadline, or None
    cdef double deadline         # in the loop's time
    cdef PendingCall earlier, later

    cdef int finish(self, int outcome, object value) except -1:
        if self.outcome == WAITING:
            self.outcome = outcome
            self.value = value
            self.owner.calls -= 1
            if not self.future.done():
                self.future.set_result(None)
        return 0

    def expire_after(self, timeout):
        """Ends the wait with OUTCOME_EXPIRED after so many seconds."""
        cdef _Deadlines deadlines = self.core.deadlines.get(timeout)
        if deadlines is None:
            deadlines = _Deadlines.__new__(_Deadlines)
            deadlines.core = self.core
            deadlines.timeout = timeout
            self.core.deadlines[timeout] = deadlines
        deadlines.put(self)

    cdef int expire(self) except -1:
        self.forget()
        self.finish(EXPIRED, None)
        return 0

    cdef int forget(self) except -1:
        """Neither a reply nor a DOWN reaches anybody any more."""
        self.core.calls.pop(self.ref_key, None)
        if self.core.ptr == NULL or not self.owner.alive:
            return 0
        if self.is_spawn:
            self.core.spawn_abandon(self.owner.key, self.ref)
        else:
            self.core.demonitor(self.owner.key, self.ref)
        return 0

    @property
    def reached(self):
        """Whether the request can have left this node."""
        return self.was_up or self.core.ups.get(self.peer, 0) != self.ups

    def close(self):
        """Nobody waits for it any more."""
        if self.deadlines is not None:
            self.deadlines.remove(self)
        if self.outcome == WAITING:
            self.forget()
            self.finish(ENDED, None)


@cython.final
cdef class _Deadlines:
    """The calls that wait for equally long, the earliest first, and one timer for them.

    A timer of the loop's for each call would cost as much as the rest of the call.
    """

    cdef LoopNode core
    cdef object timeout    # seconds: the key of this object in LoopNode.deadlines
    cdef PendingCall head, tail
    cdef object timer      # set while there is a deadline, and until it finds that there is none

    cdef int put(self, PendingCall call) except -1:
        call.deadline = self.core.loop.time() + self.timeout
        call.deadlines = self
        call.earlier = self.tail
        if self.tail is None:
            self.head = call
        else:
            self.tail.later = call
        self.tail = call
        if self.timer is None:
            self.timer = self.core.loop.call_at(call.deadline, self.fire)
        return 0

    cdef int remove(self, PendingCall call) except -1:
        if call.earlier is None:
            self.head = call.later
        else:
            call.earlier.later = call.later
        if call.later is None:
            self.tail = call.earlier
        else:
            call.later.earlier = call.earlier
        call.earlier = call.later = None
        call.deadlines = None
        return 0

    def fire(self):
        cdef double now = self.core.loop.time()
        cdef PendingCall call
        self.timer = None
        while self.head is not None and self.head.deadline <= now:
            call = self.head
            self.remove(call)
            if call.outcome == WAITING:
                call.expire()
        if self.head is not None:
            self.timer = self.core.loop.call_at(self.head.deadline, self.fire)
        else:
            self.core.deadlines.pop(self.timeout, None)


# -- the node on an asyncio loop ----------------------------------------------------------------


cdef class LoopNode(CoreNode):
    """A node whose events are dispatched on one asyncio loop.

    `handler` gets what is not for a mailbox or a future: ``spawn_requested(key, sender, ref,
    module, function, args)``, ``worker_abandoned(key)``, ``worker_exited(key, reason)``,
    ``node_event(event)``, ``queue_full(peer)`` and ``message_refused(node, key, reason, size)``.
    """

    cdef readonly object loop
    cdef object call_soon
    cdef object create_future
    cdef object handler
    cdef unsigned long thread  # of the loop
    cdef dict processes        # key -> CoreProcess
    cdef dict calls            # words of the reference -> PendingCall
    cdef dict deadlines        # seconds -> Deadlines
    cdef set trapping          # keys of processes that trap exits
    cdef dict ups              # node name -> how often its connection came up
    cdef set up                # names of nodes with a connection
    cdef set full              # names of nodes whose queue was found full, until it is writable
    cdef set blamed            # connections of which nothing is delivered any more
    cdef set unwanted          # words of references whose DOWN may be on its way to us, too late
    cdef tumen_batch *batch    # taken, partly dispatched
    cdef bint draining
    cdef bint again            # a drain goes on in the next turn
    cdef bint unflushed        # something is queued, and a flush is certain to come

    def __cinit__(self, Engine engine not None, str name not None, str cookie not None, *, loop,
                  handler, **_):
        self.loop = loop
        self.call_soon = loop.call_soon
        self.create_future = loop.create_future
        self.handler = handler
        self.thread = PyThread_get_thread_ident()
        self.processes = {}
        self.calls = {}
        self.deadlines = {}
        self.trapping = set()
        self.ups = {}
        self.up = set()
        self.full = set()
        self.blamed = set()
        self.unwanted = set()

    def __dealloc__(self):
        # The engine has freed the memory of a batch whose node is gone.
        if self.batch != NULL and self.ptr != NULL and not (<Engine>self.engine_ref).forked:
            tumen_batch_free(self.batch)
            self.batch = NULL

    def close(self):
        """As `CoreNode.close`; what was taken and not dispatched is dropped."""
        if self.draining:
            raise RuntimeError("a node cannot be closed by what its own events call")
        if self.batch != NULL and self.ptr != NULL and not (<Engine>self.engine_ref).forked:
            tumen_batch_free(self.batch)
        self.batch = NULL
        CoreNode.close(self)

    # -- out

    cdef int sent(self) except -1:
        if PyThread_get_thread_ident() != self.thread:
            self.flush()
        elif not self.unflushed:
            self.unflushed = True
            # A drain flushes at its end.
            if not self.draining:
                self.call_soon(self.flush_turn)
        return 0

    cdef int busy(self, object peer) except -1:
        self.flush()
        if peer not in self.full and self.want_writable(peer):
            self.full.add(peer)
            self.loop.call_soon_threadsafe(self.handler.queue_full, peer)
        return 0

    def flush_turn(self):
        self.unflushed = False
        if self.ptr != NULL:
            self.flush()

    cdef int post(self, tumen_key sender, object dest, object message,
                  unsigned int flags) except -1:
        cdef tumen_target target
        target_fill(dest, self.own, &target)
        self.check_sent(self.send_to(sender, &target, message, flags), dest)
        return 0

    # -- processes and calls

    def attach(self, CoreProcess process not None, *, bint sink=False, uint64_t key=0):
        """Makes a process of the node, or takes the one of that key, and gives it to `process`,
        which has none yet."""
        if process.core is not None:
            raise RuntimeError("this object is a process already")
        if not key:
            key = self.spawn()
        elif self.trace_token(key):
            # Of the request that it was made for.
            process.traced = process.has_token = True
        process.pid = self.pid(key)
        process.key = key
        process.core = self
        process.sink = sink
        process.alive = True
        process.turn_begins()
        self.processes[key] = process

    def process(self, uint64_t key):
        """The object of a living process, or None."""
        return self.processes.get(key)

    def is_up(self, peer):
        """Whether there is a connection, as far as events have told."""
        return peer in self.up

    def times_up(self, peer):
        """How often the connection to `peer` has come up."""
        return self.ups.get(peer, 0)

    cdef PendingCall pending(self, CoreProcess owner, Reference ref, bytes key, object peer,
                             bint is_spawn):
        cdef PendingCall call = PendingCall.__new__(PendingCall)
        call.core = self
        call.owner = owner
        call.ref = ref
        call.ref_key = key
        call.peer = peer
        call.is_spawn = is_spawn
        call.future = self.create_future()
        call.was_up = peer in self.up
        call.ups = self.ups.get(peer, 0)
        owner.calls += 1
        self.calls[key] = call
        return call

    def call_begin(self, CoreProcess owner not None, dest, request):
        """gen_server:call from `owner`: a monitor whose reference is a reply alias, and the
        request. `Busy` when the queue is full: nothing was done then."""
        cdef tumen_target target
        cdef tumen_ref inner
        cdef Reference ref
        cdef tumen_node *node = self.get()
        cdef int rc
        owner.check()
        target_fill(dest, self.own, &target)
        rc = tumen_monitor(node, owner.key, &target, TUMEN_MONITOR_ALIAS, &inner)
        if rc < 0:
            raise_for(rc, peer_of(dest, self.own), "call")
        ref = ref_py(&inner)
        message = (ATOM_GEN_CALL, (owner.pid, ImproperList((ATOM_ALIAS,), ref)), request)
        try:
            self.check_sent(self.send_to(owner.key, &target, message, 0), dest)
        except BaseException:
            tumen_demonitor(node, owner.key, &inner)
            raise
        return self.pending(owner, ref, ref_key(&inner), peer_of(dest, self.own), False)

    def spawn_begin(self, CoreProcess owner not None, str peer not None, module, function,
                    list args not None, *, Pid leader=None):
        """spawn_request with a monitor: the DOWN that ends it is the outcome."""
        owner.check()
        cdef Reference ref = self.spawn_request(owner.key, peer, module, function, args,
                                                leader=leader)
        cdef tumen_ref inner = ref_c(ref)
        return self.pending(owner, ref, ref_key(&inner), peer, True)

    def remote_begin(self, CoreProcess owner not None, str peer not None, module, function,
                     list args not None, *, bint link, bint monitor, bint keep_down, Pid leader,
                     options):
        """spawn_request whose outcome is OUTCOME_SPAWNED with the pid. `keep_down`: the DOWN of the
        monitor is the outcome of `following`, else a message."""
        owner.check()
        cdef Reference ref = self.spawn_request(owner.key, peer, module, function, args, link=link,
                                                monitor=monitor, leader=leader, options=options)
        cdef tumen_ref inner = ref_c(ref)
        cdef PendingCall call = self.pending(owner, ref, ref_key(&inner), peer, True)
        call.ends_spawned = True
        call.keeps_down = keep_down
        return call

    def monitor_begin(self, CoreProcess owner not None, dest):
        """A monitor whose DOWN is the outcome, not a message."""
        owner.check()
        cdef Reference ref = self.monitor(owner.key, dest)
        cdef tumen_ref inner = ref_c(ref)
        return self.pending(owner, ref, ref_key(&inner), peer_of(dest, self.own), False)

    cdef int drop_down(self, Reference ref) except -1:
        """A monitor that had fired was ended: its DOWN may wait in the inbox still."""
        cdef tumen_ref inner = ref_c(ref)
        if not self.unwanted:
            # What waits is dispatched then, and the set is empty again.
            self.call_soon(self.drain)
        self.unwanted.add(ref_key(&inner))
        return 0

    cdef int end_calls(self, CoreProcess owner) except -1:
        cdef PendingCall call
        for call in [call for call in self.calls.values()
                     if (<PendingCall>call).owner is owner]:
            self.calls.pop(call.ref_key, None)
            call.finish(ENDED, owner.exit_reason)
        return 0

    # -- in

    def drain(self):
        """Dispatches what waits, for about a millisecond. The reader of `event_fd`."""
        if not self.again:
            self.drain_now()

    def drain_on(self):
        self.again = False
        self.drain_now()

    cdef int drain_now(self) except -1:
        if self.ptr == NULL:
            return 0
        self.draining = True
        try:
            if self.drain_batches():
                self.again = True
                self.call_soon(self.drain_on)
        finally:
            self.draining = False
            if self.unflushed:
                self.flush_turn()
        return 0

    cdef bint drain_batches(self) except -1:
        """True when there is more to do in the next turn; else the descriptor is armed."""
        cdef const tumen_event *event
        cdef int64_t deadline = now_ns() + DRAIN_NS
        cdef int count = 0
        while True:
            if self.batch == NULL:
                self.batch = tumen_node_take(self.ptr)
                if self.batch == NULL:
                    self.unwanted.clear()
                    return tumen_node_arm(self.ptr) != 0
            event = tumen_batch_next(self.batch)
            if event == NULL:
                tumen_batch_free(self.batch)
                self.batch = NULL
                if now_ns() >= deadline:
                    return True
                continue
            try:
                self.dispatch(event)
            except Exception as error:
                self.loop.call_exception_handler(
                    {"message": "tumen: an event was lost", "exception": error})
            count += 1
            if count % CLOCK_EVENTS == 0 and now_ns() >= deadline:
                return True

    cdef int dispatch(self, const tumen_event *event) except -1:
        if event.kind == TUMEN_EVENT_MESSAGE:
            return self.on_message(event)
        if event.kind == TUMEN_EVENT_REPLY:
            return self.on_reply(event)
        if event.kind == TUMEN_EVENT_DOWN:
            return self.on_down(event)
        if event.kind == TUMEN_EVENT_RETURNED:
            self.lent.pop(event.number, None)
            return 0
        if event.kind == TUMEN_EVENT_SPAWN_REPLY:
            return self.on_spawn_reply(event)
        if event.kind == TUMEN_EVENT_SPAWN:
            return self.on_spawn(event)
        if event.kind == TUMEN_EVENT_ABANDONED:
            self.handler.worker_abandoned(event.process)
            return 0
        if event.kind == TUMEN_EVENT_EXIT:
            return self.on_exit(event)
        if event.kind == TUMEN_EVENT_EXITED:
            return self.on_exited(event)
        if event.kind == TUMEN_EVENT_NODE_LOST:
            return self.on_node_lost(event)
        return self.on_node(event)

    cdef object term_of(self, const tumen_event *event):
        """The term, or the atom `malformed`: then its connection is closed."""
        if event.term.len == 0:
            return None
        try:
            return term_build(event.term.ptr, event.term.len, 0)
        except (errors.DecodeError, errors.LimitExceeded) as error:
            self.undecodable(event, error)
            return ATOM_MALFORMED

    cdef int undecodable(self, const tumen_event *event, object error) except -1:
        cdef str node = text_of(event.from_.node)
        if isinstance(error, errors.LimitExceeded):
            self.handler.message_refused(node, event.process, str(error), event.term.len)
            return 0
        log.warning("%s: undecodable term: %s", node or "a peer", error)
        if event.connection:
            if len(self.blamed) >= BLAMED_COUNT:
                self.blamed.clear()
            self.blamed.add(event.connection)
            self.blame(event, str(error))
        return 0

    cdef int on_message(self, const tumen_event *event) except -1:
        cdef CoreProcess process = self.processes.get(event.process)
        if process is None or (self.blamed and event.connection in self.blamed):
            # What the node has delivered is counted until somebody says that it is gone.
            tumen_mail_taken(self.ptr, event.process, event.wire_bytes)
            return 0
        try:
            message = term_build(event.term.ptr, event.term.len, 0)
        except (errors.DecodeError, errors.LimitExceeded) as error:
            tumen_mail_taken(self.ptr, event.process, event.wire_bytes)
            return self.undecodable(event, error)
        if process.calls and self.plain_reply(process, message):
            tumen_mail_taken(self.ptr, event.process, event.wire_bytes)
            return 0
        if event.text.len or process.traced:
            return process.put_traced(message, event.wire_bytes, token_of(event))
        return process.put(message, event.wire_bytes)

    cdef bint plain_reply(self, CoreProcess process, object message) except -1:
        """A reply that came to the pid and not to the alias, as old nodes and OTP 25's net_kernel
        send it: the tag tells."""
        cdef PendingCall call
        cdef tumen_ref ref
        if type(message) is not tuple or len(<tuple>message) != 2:
            return False
        tag = (<tuple>message)[0]
        if type(tag) is ImproperList:
            tag = tag.tail
        if type(tag) is not Reference:
            return False
        ref = ref_c(<Reference>tag)
        key = ref_key(&ref)
        call = self.calls.get(key)
        if call is None or call.owner is not process or call.is_spawn or tag != call.ref:
            return False
        call.forget()
        call.finish(REPLIED, (<tuple>message)[1])
        return True

    cdef int on_reply(self, const tumen_event *event) except -1:
        cdef PendingCall call = self.calls.pop(ref_key(&event.ref), None)
        if call is None:
            return 0
        reply = self.term_of(event)
        if (event.text.len or call.owner.traced) and not call.owner.sink:
            call.owner.traced = True
            call.owner.take_token(token_of(event))
        # {[alias|Ref], Reply}: the reference has said already whose it is.
        if type(reply) is tuple and len(<tuple>reply) == 2:
            return call.finish(REPLIED, (<tuple>reply)[1])
        return call.finish(DOWN, ATOM_MALFORMED)

    cdef int on_down(self, const tumen_event *event) except -1:
        cdef bytes key = ref_key(&event.ref)
        cdef PendingCall call = self.calls.pop(key, None)
        cdef CoreProcess process
        if self.unwanted and key in self.unwanted:
            return 0
        reason = self.term_of(event)
        if call is not None:
            return call.finish(DOWN, reason)
        process = self.processes.get(event.process)
        if process is None:
            return 0
        if event.from_.node.len:
            item = pid_py(&event.from_)
        else:
            item = (Atom(text_of(event.name)), Atom(text_of(event.node)))
        return process.put((ATOM_DOWN, ref_py(&event.ref), ATOM_PROCESS, item, reason),
                           event.wire_bytes)

    cdef int on_spawn_reply(self, const tumen_event *event) except -1:
        cdef bytes key = ref_key(&event.ref)
        cdef PendingCall call
        if event.code == 0:
            call = self.calls.get(key)
            if call is None or not call.ends_spawned:
                return 0
            del self.calls[key]
            if call.keeps_down:
                call.following = self.pending(call.owner, call.ref, key, call.peer, False)
            return call.finish(SPAWNED, pid_py(&event.from_))
        call = self.calls.pop(key, None)
        if call is not None:
            call.finish(NOT_SPAWNED, self.term_of(event))
        return 0

    cdef int on_spawn(self, const tumen_event *event) except -1:
        args = self.term_of(event)
        self.handler.spawn_requested(
            event.process, pid_py(&event.from_), ref_py(&event.ref), text_of(event.node),
            text_of(event.name), args)
        return 0

    cdef int on_exit(self, const tumen_event *event) except -1:
        cdef CoreProcess process = self.processes.get(event.process)
        if process is None:
            return 0
        message = (ATOM_EXIT, pid_py(&event.from_), self.term_of(event))
        if event.text.len or process.traced:
            return process.put_traced(message, event.wire_bytes, token_of(event))
        return process.put(message, event.wire_bytes)

    cdef int on_node_lost(self, const tumen_event *event) except -1:
        cdef CoreProcess process = self.processes.get(event.process)
        if process is None:
            return 0
        return process.put((ATOM_NODEDOWN, Atom(text_of(event.node))), 0)

    cdef int on_exited(self, const tumen_event *event) except -1:
        cdef CoreProcess process = self.processes.get(event.process)
        reason = self.term_of(event)
        if process is None:
            self.handler.worker_exited(event.process, reason)
            return 0
        process.ended(reason)
        if process._task is not None:
            process._task.cancel()
        return 0

    cdef int on_node(self, const tumen_event *event) except -1:
        if event.kind == TUMEN_EVENT_NODEUP:
            node = text_of(event.node)
            self.up.add(node)
            self.ups[node] = self.ups.get(node, 0) + 1
        elif event.kind == TUMEN_EVENT_NODEDOWN:
            self.up.discard(text_of(event.node))
            self.full.discard(text_of(event.node))
        elif event.kind == TUMEN_EVENT_WRITABLE:
            self.full.discard(text_of(event.node))
        elif event.kind == TUMEN_EVENT_NAMED:
            self.own = text_of(event.node)
        self.handler.node_event(self.event_py(event))
        return 0

    def end_all(self, reason):
        """The node is gone: every process and every call ends here. For `Node.stop`."""
        cdef CoreProcess process
        cdef PendingCall call
        for process in list(self.processes.values()):
            process.ended(reason)
        for call in list(self.calls.values()):
            call.finish(ENDED, reason)
        self.calls.clear()
        self.up.clear()
        for deadlines in self.deadlines.values():
            if (<_Deadlines>deadlines).timer is not None:
                (<_Deadlines>deadlines).timer.cancel()
        self.deadlines.clear()
