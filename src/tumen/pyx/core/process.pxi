# A process, its mailbox, and the awaitable of the next message.

@cython.final
cdef class _Envelope:
    """A message in a mailbox that came with more than itself: a trace token, or the knowledge that
    not its caller has sent it."""

    cdef object message
    cdef bytes token     # empty: it came without; None: it leaves the token of the process as it is
    cdef bint passed_on  # a request whose caller is another process than its sender


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
    cdef public object _tumen_task   # what runs it; cancelled when the process is ended
    cdef bint sink                    # mail is thrown away
    cdef list mail
    cdef list sizes
    cdef Py_ssize_t head
    cdef uint64_t taken               # wire bytes, not yet reported
    cdef Waiter waiter                # of the one that waits for mail, or None
    cdef int turn_messages            # since the process last gave the loop a turn
    cdef int64_t turn_ns              # when that was
    cdef int clock_messages           # of the turn, after which the clock is read again
    cdef uint32_t popped              # messages taken since it was last found too far behind
    cdef int64_t woken_ns             # when mail last woke it
    cdef int calls                    # of its own that are under way
    cdef bint traced                  # a trace token has come: from here on mail is `_Envelope`
    cdef bint has_token               # it has one now
    cdef bint views                   # large binaries become views
    cdef readonly object _passed_on   # {Caller, Tag} of the request taken last that was passed on
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
        if self.traced and type(message) is not _Envelope:
            message = envelope(message, None, False)
        self.mail.append(message)
        self.sizes.append(nbytes)
        if (self.popped >= AHEAD_MESSAGES
                and PyList_GET_SIZE(self.mail) - self.head >= AHEAD_MESSAGES):
            self.popped = 0
            self.core.crowded = True
        self.wake()
        return 0

    cdef int put_traced(self, object message, uint64_t nbytes, bytes token) except -1:
        """As `put`, for what comes with a token, or (empty) could have come with one."""
        if not self.sink:
            self.traced = True
        return self.put(envelope(message, token, False), nbytes)

    cdef int put_passed_on(self, object message, uint64_t nbytes, bytes token) except -1:
        """As `put`, or with a token as `put_traced`, for a request whose caller is not its sender."""
        if token is not None and not self.sink:
            self.traced = True
        return self.put(envelope(message, token, True), nbytes)

    cdef object opened(self, _Envelope mail):
        """The message, which the process takes now."""
        if mail.passed_on:
            self._passed_on = (<tuple>mail.message)[1]
        if mail.token is not None:
            self.take_token(mail.token)
        return mail.message

    cdef int take_token(self, bytes token) except -1:
        if (token or self.has_token) and self.core.ptr != NULL:
            self.core.trace(self.key, token)
        self.has_token = len(token) != 0
        return 0

    cdef int wake(self) except -1:
        cdef Waiter waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            waiter.resolve()
        return 0

    cdef int ended(self, object reason) except -1:
        """It is dead in the core's tables: nothing of it is used any more."""
        if not self.alive:
            return 0
        self.alive = False
        self.exit_reason = reason
        self._passed_on = None
        self.core.processes.pop(self.key, None)
        if self.core.lines:
            self.core.line_unwanted(self.key)
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
        cdef object message = self.pop_sealed()
        return self.opened(message) if type(message) is _Envelope else message

    cdef object pop_sealed(self):
        cdef object message = self.mail[self.head]
        cdef Py_ssize_t count = PyList_GET_SIZE(self.mail)
        self.taken += <uint64_t>self.sizes[self.head]
        self.mail[self.head] = None
        self.head += 1
        self.popped += 1
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
        return message

    cdef int report(self) except -1:
        cdef uint64_t nbytes = self.taken
        self.taken = 0
        if nbytes and self.core.ptr != NULL:
            tumen_mail_taken(self.core.ptr, self.key, nbytes)
        return 0

    cdef bint turn_is_over(self) noexcept:
        cdef int64_t spent, each, following
        self.turn_messages += 1
        if self.turn_messages < self.clock_messages:
            return False
        spent = now_ns() - self.turn_ns
        if self.turn_messages >= TURN_MESSAGES or spent >= TURN_NS:
            self.turn_begins()
            return True
        # Again before half of what is left is over, if they go on to take so long as those so far.
        each = spent // self.turn_messages + 1
        following = min((TURN_NS - spent) // (2 * each), self.turn_messages, TURN_CLOCK_MESSAGES)
        self.clock_messages = <int>min(self.turn_messages + max(following, 1), TURN_MESSAGES)
        return False

    cdef void turn_begins(self) noexcept:
        self.turn_ns = now_ns()
        self.turn_messages = 0
        self.clock_messages = 1

    cdef Waiter wait(self):
        """What the next message resolves."""
        self.check()
        self.report()
        if self.waiter is not None and not self.waiter.is_done:
            raise RuntimeError("another task waits for this process's mail already")
        self.waiter = self.core.make_waiter()
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
        return self.waiter is not None and not self.waiter.is_done

    @property
    def _woken(self):
        """When mail last ended its sleep in ``async for``, in seconds of time.monotonic."""
        return self.woken_ns / 1e9

    def _find(self, match, Py_ssize_t start=0):
        """Place of the first message from `start` on that `match` accepts (None: any), else -1."""
        cdef Py_ssize_t i = start
        self.check()
        while i < PyList_GET_SIZE(self.mail) - self.head:
            if match is None or match(content(self.mail[self.head + i])):
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
        return self.opened(message) if type(message) is _Envelope else message

    def _peek(self):
        """The first message, which stays where it is, and whether it is a request that was passed
        on. There must be one."""
        cdef object mail = self.mail[self.head]
        if type(mail) is _Envelope:
            return (<_Envelope>mail).message, bool((<_Envelope>mail).passed_on)
        return mail, False

    def _take_sealed(self):
        """Takes the first message for `_open`. There must be one."""
        return self.pop_sealed()

    def _open(self, mail):
        """The message that `_take_sealed` gave, of a process: only now its trace token is taken, and
        without one the process has none any more."""
        if type(mail) is not _Envelope:
            self.take_token(b"")
            return mail
        if (<_Envelope>mail).token is None:
            self.take_token(b"")
        return self.opened(mail)

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

    @property
    def binary_views(self):
        """Whether binaries of 64 KiB and more in messages to this process, and in answers to its
        calls, come as a read-only `memoryview` of the memory they were received in, without a copy.

        Off at first, and counts from the next message on. A view keeps the memory of its whole
        message, which no limit of the node counts any more."""
        return self.views

    @binary_views.setter
    def binary_views(self, bint value):
        self.check()
        self.views = value

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


cdef inline _Envelope envelope(object message, bytes token, bint passed_on):
    cdef _Envelope mail = _Envelope.__new__(_Envelope)
    mail.message = message
    mail.token = token
    mail.passed_on = passed_on
    return mail


cdef inline object content(object mail):
    return (<_Envelope>mail).message if type(mail) is _Envelope else mail


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
            process.woken_ns = process.turn_ns
        elif process.head < PyList_GET_SIZE(process.mail) and process.turn_is_over():
            give(None, value)
            return False
        if process.head < PyList_GET_SIZE(process.mail):
            give(process.pop(), value)
            return True
        self.asleep = True
        return process.wait().step(value)


cdef PySendResult next_message_send(PyObject *self, PyObject *_, PyObject **value) noexcept:
    value[0] = NULL
    try:
        return PYGEN_RETURN if (<NextMessage>self).step(value) else PYGEN_NEXT
    except BaseException as error:
        PyErr_SetObject(type(error), error)
        return PYGEN_ERROR


cdef PyObject *next_message_next(PyObject *self) noexcept:
    return next_by(next_message_send, self)


# As those of a Waiter.
set_slots(NextMessage, next_message_send, next_message_next)
