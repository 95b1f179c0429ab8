# Large terms: built by a thread of the node's own, while the loop goes on.
#
# What comes for a process while a large term for it is being built stands in line behind that term:
# a sender's signals arrive in the order in which they were sent. The outcome of a call of the node
# itself comes alone and nothing follows it, so it makes no line.

cdef enum KeptState:
    KEPT_WAITS     # its turn has not come
    KEPT_BUILDING  # the thread has its term, or will
    KEPT_BUILT
    KEPT_HERE      # there is no thread for it: its term is built on the loop


# Of a term whose large binaries are views: freed with the last of them.
@cython.final
@cython.no_gc
cdef class _Memory:
    cdef void *start

    def __dealloc__(self):
        tumen_memory_free(self.start)


# The memory of the event that the batch gave last, or None.
cdef _Memory memory_of(tumen_batch *batch):
    cdef void *start = tumen_batch_detach(batch)
    cdef _Memory memory
    if start == NULL:
        return None
    memory = _Memory.__new__(_Memory)
    memory.start = start
    return memory


# Without tp_clear: what is kept goes back to the node, which therefore has to be there until then.
@cython.final
@cython.no_gc_clear
cdef class _Kept:
    """An event that was taken out of its batch, because its term is large or it stands in line."""

    cdef LoopNode core
    cdef _Line line
    cdef tumen_batch *batch            # of this event alone; NULL once it was given back
    cdef const tumen_event *event
    cdef KeptState state
    cdef object term
    cdef object error                  # what building the term has raised
    cdef object memory                 # _Memory of its term, if that becomes views; or None
    cdef int cancelled                 # nobody wants the term any more; the thread reads it

    def __dealloc__(self):
        self.free()

    cdef void free(self) noexcept:
        """Gives the event back: what it weighs does not wait any more. Any thread."""
        cdef tumen_batch *batch = self.batch
        if batch == NULL:
            return
        self.batch = NULL
        self.event = NULL
        if self.core.ptr == NULL or (<Engine>self.core.engine_ref).forked:
            return
        self.core.working += 1
        with nogil:
            tumen_batch_free(batch)
        self.core.working -= 1

    def drop(self):
        """The same for one that is done with."""
        self.free()
        self.core.keeping.discard(self)

    def build(self):
        """Runs on the thread."""
        cdef LoopNode core = self.core
        if self.batch == NULL:
            return
        if self.cancelled:
            # The node may be about to close: then the bytes go.
            self.error = InterruptedError()
        else:
            core.working += 1
            try:
                self.term = term_build_apart(self.event.term.ptr, &self.cancelled, self.memory)
            except BaseException as error:
                self.error = error
            finally:
                core.working -= 1
        self.state = KEPT_BUILT
        try:
            core.loop.call_soon_threadsafe(core.built, self)
        except RuntimeError:
            pass  # the loop is closed: LoopNode.close or the end of this object gives it back

    cdef object take(self):
        """The term, or what building it has raised."""
        cdef object term = self.term
        self.term = None
        if self.error is not None:
            raise self.error
        return term


@cython.final
cdef class _Line:
    """What has come for one process and waits, in order."""

    cdef uint64_t key      # of the process; 0: of none that anything else could come for
    cdef object waiting    # deque of _Kept
