# Calls under way: futures and deadlines.

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
cdef class PendingCall(Waiter):
    """A reply, a DOWN or a spawn's answer that is waited for, found by its reference.

    It is done once `outcome` and `value` (the reply or the reason) are set; `close` must follow,
    also when the wait was cancelled.
    """

    cdef CoreProcess owner
    cdef bytes ref_key
    cdef readonly Reference ref
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
            self.resolve()
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


set_slots(PendingCall, waiter_send, waiter_next)


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
