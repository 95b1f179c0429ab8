# The driver "loop": the asyncio loop turns the engine, without a thread in between.

cdef enum:
    # A timer of the engine that is due this much before ours, ns, is worth a new one of ours.
    TIMER_SLACK_NS = 1000000
    # Never sleeps longer, ns: a timer that another thread started is noticed so late at most.
    STEP_SLEEP_NS = 1000000000


@cython.final
cdef class LoopDriver:
    """Steps the engine of a node from the node's loop, and drains the node after each step.

    The engine's own thread takes over while the interpreter stays away from its loop.
    """

    cdef LoopNode core
    cdef int fd
    cdef object timer    # of the loop's, or None
    cdef int64_t due_ns  # when that fires

    def __init__(self, LoopNode core not None):
        self.core = core
        self.fd = core.engine.poll_fd()
        core.loop.add_reader(self.fd, self.step)
        self.set_timer()

    def step(self):
        """Runs what is due, and never waits."""
        cdef LoopNode core = self.core
        if core.ptr == NULL:
            return
        try:
            # From here on nothing is signalled: what the step brings is taken right after it.
            if core.batch == NULL:
                core.batch = tumen_node_take(core.ptr)
            (<Engine>core.engine_ref).step(0)
        finally:
            core.drain()
        if core.ptr != NULL:
            self.set_timer()

    def close(self):
        self.core.loop.remove_reader(self.fd)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    cdef int set_timer(self) except -1:
        cdef int64_t now = now_ns()
        cdef int64_t delay = min(tumen_engine_timeout_ns((<Engine>self.core.engine_ref).get()),
                                 STEP_SLEEP_NS)
        if self.timer is not None:
            if self.due_ns <= now + delay + TIMER_SLACK_NS:
                return 0
            self.timer.cancel()
        self.due_ns = now + delay
        self.timer = self.core.loop.call_later(delay / 1e9, self.timer_fired)
        return 0

    def timer_fired(self):
        self.timer = None
        self.step()
