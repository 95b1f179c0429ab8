# The engine, and what a fork and the end of the interpreter do to it.

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

    def __cinit__(self, *, str backend="auto", str driver="thread", uint32_t sockets_max=0,
                  bint eager=False):
        global live_engines
        cdef tumen_engine_options options
        cdef tumen_engine *engine = NULL
        cdef int rc
        options.backend = BACKENDS[backend]
        options.driver = DRIVERS[driver]
        options.sockets_max = sockets_max
        options.eager = eager
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
