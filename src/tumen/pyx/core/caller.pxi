# Who made a call, as the server that was called sees it.

cdef class Caller:
    """Who made a call, and how to answer: `pid`, and `reply`."""

    cdef readonly Pid pid
    cdef readonly bint replied    # whether `reply` was called
    cdef public bytes _token      # the trace token of the request, in a batch
    cdef readonly object _tag
    cdef CoreProcess process      # that was called
    cdef object address           # where a reply goes: a Pid, or the alias in the tag
    cdef Reference monitor        # stands for as long as the caller waits, or None
    cdef object times_up          # by which connection to its node is the one that it waits behind
    cdef object __weakref__

    def __cinit__(self, CoreProcess process not None, Pid pid not None, tag, bint passed_on=False):
        cdef str node = pid.node_atom.text
        self.process = process
        self.pid = pid
        self._tag = tag
        self.read_tag()
        self.times_up = process.core.ups.get(node, 0)
        if passed_on:
            # It watches the process that it has called, and there may be no connection to it yet.
            self.monitor = None
            self.times_up += node not in process.core.up

    cdef int read_tag(self) except -1:
        """The tag `[alias|Ref]` of gen:call names an alias that is the monitor too, that of
        multi_call, `[[alias|Ref]|Mon]`, an alias and a monitor."""
        cdef object alias = alias_of(self._tag), tail
        self.address = self.pid
        if alias is not None:
            self.address = self.monitor = alias
        elif type(self._tag) is ImproperList:
            alias = alias_of(self._tag.items[0])
            tail = self._tag.tail
            if alias is not None and type(tail) is Reference:
                self.address = alias
                self.monitor = tail
        return 0

    def reply(self, value):
        """Answers the call; also after the handler has returned `NoReply`, from any coroutine.

        A reply to a caller that has given up reaches nobody. `Busy` when even the reserve of the
        send queue is used up, `EncodeError`.
        """
        self.process.core.post(self.process.key, self.address, (self._tag, value),
                               TUMEN_SEND_CONTROL)
        self.replied = True

    @property
    def abandoned(self):
        """True once it is certain that nobody waits for this reply any more: the caller has given
        up or has ended (gen_server:call watches the server for as long as it waits), or its
        connection has gone. Of a caller that does not watch, only the connection is known; of one
        whose call another process has passed on, too: it watches that process. Any thread."""
        cdef LoopNode core = self.process.core
        cdef str node = self.pid.node_atom.text
        if self.monitor is not None:
            return not core.watched(self.process.key, self.monitor)
        if node == core.own:
            return False
        ups = core.ups.get(node, 0)
        return ups > self.times_up or (ups == self.times_up and node not in core.up)

    def __repr__(self):
        return f"<Caller {self.pid!r}>"
