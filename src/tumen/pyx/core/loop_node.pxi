# The node on an asyncio loop.

cdef class LoopNode(CoreNode):
    """A node whose events are dispatched on one asyncio loop.

    `handler` gets what is not for a mailbox or a future: ``spawn_requested(key, sender, ref,
    module, function, args)``, ``worker_abandoned(key)``, ``worker_exited(key, reason)``,
    ``node_event(event)``, ``queue_full(peer)`` and ``message_refused(node, key, reason, size)``.
    """

    cdef readonly object loop
    cdef object call_soon
    cdef object handler
    cdef unsigned long thread  # of the loop
    cdef dict processes        # key -> CoreProcess
    cdef dict calls            # words of the reference -> PendingCall
    cdef dict deadlines        # seconds -> Deadlines
    cdef dict locals           # number -> _Local
    cdef int64_t local_next
    cdef set trapping          # keys of processes that trap exits
    cdef dict ups              # node name -> how often its connection came up
    cdef set up                # names of nodes with a connection
    cdef set full              # names of nodes whose queue was found full, until it is writable
    cdef set blamed            # connections of which nothing is delivered any more
    cdef set unwanted          # words of references whose DOWN may be on its way to us, too late
    cdef tumen_batch *batch    # taken, partly dispatched
    cdef dict lines            # key -> _Line of a process that a large term is being built for
    cdef object ready          # deque of _Line whose first event can be delivered
    cdef set keeping           # of _Kept: what is not given back
    cdef object builder        # the thread that builds, a Pool; None until there was a large term
    cdef int working           # threads that are inside of a kept event: close waits for them
    cdef _Kept handed          # whose event is being delivered, with its term
    cdef bint draining
    cdef bint again            # a drain goes on in the next turn
    cdef bint crowded          # a process that keeps up has as much decoded mail as it should
    cdef list woken            # of Waiter: what this drain has resolved
    cdef bint resuming         # the tasks that wait for those go on
    cdef bint woke             # meanwhile a task was woken for the next turn of the loop
    cdef bint unflushed        # a flush is certain to come for what is queued

    def __cinit__(self, Engine engine not None, str name not None, str cookie not None, *, loop,
                  handler, **_):
        self.loop = loop
        self.call_soon = loop.call_soon
        self.handler = handler
        self.thread = PyThread_get_thread_ident()
        self.processes = {}
        self.calls = {}
        self.deadlines = {}
        self.locals = {}
        self.trapping = set()
        self.ups = {}
        self.up = set()
        self.full = set()
        self.blamed = set()
        self.unwanted = set()
        self.lines = {}
        self.ready = collections.deque()
        self.keeping = set()
        self.woken = []

    def __dealloc__(self):
        # The engine has freed the memory of a batch whose node is gone.
        if self.batch != NULL and self.ptr != NULL and not (<Engine>self.engine_ref).forked:
            tumen_batch_free(self.batch)
            self.batch = NULL

    def close(self):
        """As `CoreNode.close`; what was taken and not dispatched is dropped."""
        if self.draining:
            raise RuntimeError("a node cannot be closed by what its own events call")
        self.end_building()
        if self.batch != NULL and self.ptr != NULL and not (<Engine>self.engine_ref).forked:
            tumen_batch_free(self.batch)
        self.batch = NULL
        CoreNode.close(self)
        self.locals.clear()

    # -- out

    cdef int sent(self) except -1:
        if PyThread_get_thread_ident() != self.thread:
            self.flush_now()
        elif not self.unflushed:
            self.unflushed = True
            # A drain flushes at its end.
            if not self.draining and not self.resuming:
                self.call_soon(self.flush_turn)
        return 0

    cdef int busy(self, object peer) except -1:
        self.flush_now()
        if peer not in self.full and self.want_writable(peer):
            self.full.add(peer)
            if PyThread_get_thread_ident() == self.thread:
                self.call_soon(self.handler.queue_full, peer)
            else:  # which writes to a socket of the loop's own
                self.loop.call_soon_threadsafe(self.handler.queue_full, peer)
        return 0

    def flush_turn(self):
        self.unflushed = False
        if self.ptr != NULL:
            self.flush_now()

    cdef int post(self, tumen_key sender, object dest, object message,
                  unsigned int flags) except -1:
        cdef tumen_target target
        target_fill(dest, self.own, &target)
        self.check_sent(self.send_to(sender, &target, message, flags), dest)
        return 0

    # -- out: to processes of this node

    cdef int send_to(self, tumen_key sender, const tumen_target *target, object message,
                     unsigned int flags) except? -1:
        cdef int rc
        if PyThread_get_thread_ident() == self.thread and self.is_here(target):
            rc = self.hand_over(sender, target, message)
            if rc != NOT_HANDED_OVER:
                return rc
        return CoreNode.send_to(self, sender, target, message, flags)

    cdef bint is_here(self, const tumen_target *target) except -1:
        cdef tumen_bytes own = name_bytes(self.own)
        cdef tumen_bytes node = target.node
        if target.kind == TUMEN_TO_PID:
            node = target.pid.node
        elif target.kind == TUMEN_TO_REF:
            node = target.ref.node
        return node.len == own.len and (node.ptr == own.ptr
                                        or memcmp(node.ptr, own.ptr, own.len) == 0)

    cdef int hand_over(self, tumen_key sender, const tumen_target *target,
                       object message) except? -1:
        """Gives a message to a process of this node without encoding it; at once when nothing waits
        that the sender may have sent before, else in its place behind that."""
        cdef _Local waiting
        cdef tumen_local local
        cdef uint64_t nbytes = 0
        cdef bytes reply
        cdef int rc
        if type(message) is tuple and PyTuple_GET_SIZE(message) == 3 and sender:
            if self.passes_on(sender, <tuple>message):
                return NOT_HANDED_OVER
        try:
            message = local_copy(message, 0, &nbytes)
        except _Unshared:
            return NOT_HANDED_OVER
        rc = tumen_send_local(self.get(), sender, target, nbytes, self.local_next, &local)
        if rc == TM_EUSE_LIMIT or rc == TM_EUSE_STATE or rc == TM_EUSE_ARG:
            return NOT_HANDED_OVER
        if rc < 0:
            return rc
        if local.key == 0:
            return HANDED_OVER
        reply = ref_key(&target.ref) if local.reply else None
        if local.waits:
            waiting = _Local.__new__(_Local)
            waiting.message = message
            waiting.nbytes = nbytes
            waiting.reply = reply
            self.locals[self.local_next] = waiting
            self.local_next += 1
        else:
            self.deliver_local(local.key, message, nbytes, reply)
        return HANDED_OVER

    cdef bint passes_on(self, tumen_key sender, tuple message) except -1:
        """Whether it is a request of another process than the sender: it goes through the inbox,
        where such are told from others."""
        cdef CoreProcess process
        origin = <object>PyTuple_GET_ITEM(message, 1)
        if not is_from(origin):
            return False
        process = self.processes.get(sender)
        return process is None or <object>PyTuple_GET_ITEM(origin, 0) != process.pid

    cdef int deliver_local(self, tumen_key key, object message, uint64_t nbytes,
                           bytes reply) except -1:
        cdef CoreProcess process = self.processes.get(key)
        cdef PendingCall call
        if reply is not None:
            call = self.calls.pop(reply, None)
            if call is not None and call.owner.views and nbytes >= TM_VIEW_BYTES_MIN:
                message = decode(encode(message), views=True)
            return self.replied(call, message, b"")
        if process is not None and process.views and nbytes >= TM_VIEW_BYTES_MIN:
            message = decode(encode(message), views=True)
        if process is None or (process.calls and self.plain_reply(process, message)):
            tumen_mail_taken(self.ptr, key, nbytes)
            return 0
        if process.traced:
            return process.put_traced(message, nbytes, b"")
        return process.put(message, nbytes)

    cdef int on_local(self, const tumen_event *event) except -1:
        cdef _Local waiting = self.locals.pop(event.number)
        return self.deliver_local(event.process, waiting.message, waiting.nbytes, waiting.reply)

    def _local_count(self):
        """Messages between processes of this node that wait behind events."""
        return len(self.locals)

    def local_copy(self, term):
        """What a process of this node gets when `term` is sent to it: decode(encode(term))."""
        cdef uint64_t nbytes = 0
        try:
            return local_copy(term, 0, &nbytes)
        except _Unshared:
            return decode(encode(term))

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

    cdef PendingCall pending(self, CoreProcess owner, Reference ref, bytes key, object peer,
                             bint is_spawn):
        cdef PendingCall call = PendingCall.__new__(PendingCall)
        call.core = self
        call.owner = owner
        call.ref = ref
        call.ref_key = key
        call.peer = peer
        call.is_spawn = is_spawn
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

    # -- in: large terms

    @property
    def building(self):
        """Whether events wait for a large term."""
        return len(self.keeping) != 0

    cdef bint stands_in_line(self, const tumen_event *event) except -1:
        """Puts an event for a process into its line, if there is one."""
        cdef _Line line
        cdef CoreProcess process
        if event.kind >= TUMEN_EVENT_NODEUP:
            return False
        line = self.lines.get(event.process)
        if line is None:
            return False
        if event.kind == TUMEN_EVENT_REPLY:
            process = self.processes.get(event.process)
            if process is not None and process.sink:
                return False  # another call's
        if self.keep(event, line) is None:
            raise MemoryError()
        return True

    cdef bint build_apart(self, const tumen_event *event) except -1:
        """Hands an event with a large term to the thread. False: it is to be delivered here."""
        cdef CoreProcess process = self.processes.get(event.process)
        cdef _Line line
        cdef _Kept kept
        cdef bint alone = False
        if event.kind >= TUMEN_EVENT_NODEUP:
            return False
        if event.kind == TUMEN_EVENT_MESSAGE or event.kind == TUMEN_EVENT_EXIT:
            if process is None:
                return False
        elif event.kind == TUMEN_EVENT_REPLY or event.kind == TUMEN_EVENT_DOWN:
            if process is None:
                return False
            alone = process.sink
        line = _Line.__new__(_Line)
        line.waiting = collections.deque()
        kept = self.keep(event, line)
        if kept is None:
            return False
        if not alone:
            line.key = event.process
            self.lines[line.key] = line
        if not self.build_start(kept):
            self.ready.append(line)
        return True

    cdef _Kept keep(self, const tumen_event *event, _Line line):
        """Takes an event out of its batch, to the end of a line; None without memory."""
        cdef tumen_batch *batch = tumen_batch_keep(self.batch)
        cdef _Kept kept
        if batch == NULL:
            return None
        kept = _Kept.__new__(_Kept)
        kept.core = self
        kept.line = line
        kept.batch = batch
        kept.event = tumen_batch_next(batch)
        self.keeping.add(kept)
        line.waiting.append(kept)
        return kept

    cdef bint build_start(self, _Kept kept) except -1:
        """Gives a term to the thread; False when there is none and none can be made."""
        cdef CoreProcess process
        if self.builder is None:
            self.builder = Pool(1, BUILD_COUNT_MAX, f"{self.own}-terms")
        process = self.processes.get(kept.event.process)
        if process is not None and process.views:
            kept.memory = memory_of(kept.batch)
        # Before: the thread goes on from here.
        kept.state = KEPT_BUILDING
        if self.builder.submit(kept.build) is not None:
            return True
        kept.state = KEPT_HERE
        return False

    def built(self, _Kept kept not None):
        """The thread is done with a term."""
        if self.ptr != NULL and kept.batch != NULL:
            self.ready.append(kept.line)
            self.drain()

    cdef int deliver_kept(self) except -1:
        """Delivers the first event of a line, or has its term built and leaves the line to that."""
        cdef _Line line = self.ready[0]
        cdef _Kept kept = line.waiting[0]
        if kept.state == KEPT_WAITS and kept.event.term.len >= APART_BYTES \
                and self.build_start(kept):
            self.ready.popleft()
            return 0
        line.waiting.popleft()
        if not line.waiting:
            self.ready.popleft()
            self.lines.pop(line.key, None)
        self.handed = kept
        try:
            self.deliver(kept.event)
        except Exception as error:
            self.event_lost(error)
        finally:
            self.handed = None
            # Some MiB take their time to be given back, too.
            if kept.event.term.len < APART_BYTES or self.builder.submit(kept.drop) is None:
                kept.drop()
        return 0

    cdef int line_unwanted(self, tumen_key key) except -1:
        """The process has ended: the term that its line waits for need not be built to its end."""
        cdef _Line line = self.lines.get(key)
        if line is not None and line.waiting:
            (<_Kept>line.waiting[0]).cancelled = True
        return 0

    cdef int end_building(self) except -1:
        """Drops every event that was kept, once the thread is out of them."""
        cdef _Kept kept
        if (<Engine>self.engine_ref).forked:
            return 0
        if self.builder is not None:
            self.builder.stop()
        for kept in self.keeping:
            kept.cancelled = True
        while self.working:
            time.sleep(0.001)
        for kept in list(self.keeping):
            kept.drop()
        # It may have begun to give one back meanwhile.
        while self.working:
            time.sleep(0.001)
        self.lines.clear()
        self.ready.clear()
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
            self.again = self.drain_batches()
        finally:
            self.draining = False
            try:
                if self.woken:
                    self.resume()
            finally:
                self.rest()
        return 0

    cdef int rest(self) except -1:
        """The end of a drain: what was queued goes out, and only then the descriptor is armed, for
        a peer may wait for it. What has come meanwhile has the next turn of the loop."""
        try:
            if self.unflushed:
                self.unflushed = False
                if self.ptr != NULL:
                    self.flush_now()
            if self.woke:
                # Behind the tasks that wake up now: what they send leaves in their turn.
                self.woke = False
                self.unflushed = True
                self.call_soon(self.flush_turn)
        finally:
            if self.ptr != NULL:
                # After a KeyboardInterrupt some of what was taken is still there.
                if not self.again:
                    self.again = self.batch != NULL or tumen_node_arm(self.ptr) != 0
                if self.again:
                    self.call_soon(self.drain_on)
        return 0

    cdef Waiter make_waiter(self):
        cdef Waiter waiter = Waiter.__new__(Waiter)
        waiter.core = self
        return waiter

    cdef int wake(self, Waiter waiter) except -1:
        """What waits for it goes on: at the end of the drain, or in the next turn of the loop."""
        if self.draining:
            self.woken.append(waiter)
            return 0
        if self.resuming:
            self.woke = True
        return waiter.call_soon()

    cdef int resume(self) except -1:
        """Runs what the drain has woken: a turn of the loop less than by asyncio's own means.

        What those wake in turn waits for the loop, so that others have theirs."""
        cdef list woken = self.woken
        cdef Py_ssize_t i = 0
        self.woken = []
        self.resuming = current_task(self.loop) is None
        try:
            while self.resuming and i < PyList_GET_SIZE(woken):
                i += 1
                (<Waiter>PyList_GET_ITEM(woken, i - 1)).call_now()
        finally:
            # After a KeyboardInterrupt, or inside of a task that drains.
            self.resuming = False
            if i < PyList_GET_SIZE(woken):
                self.woke = True
            while i < PyList_GET_SIZE(woken):
                i += 1
                (<Waiter>PyList_GET_ITEM(woken, i - 1)).call_soon()
        return 0

    cdef bint drain_batches(self) except -1:
        """True when there is more to do in the next turn."""
        cdef const tumen_event *event
        cdef int64_t deadline = now_ns() + DRAIN_NS
        cdef uint64_t nbytes = 0
        cdef int count = 0
        while True:
            while self.ready:
                self.deliver_kept()
                count += 1
                if count % CLOCK_EVENTS == 0 and now_ns() >= deadline:
                    return True
            if self.batch == NULL:
                self.batch = tumen_node_take(self.ptr)
                if self.batch == NULL:
                    if not self.lines:
                        self.unwanted.clear()
                    return False
            event = tumen_batch_next(self.batch)
            if event == NULL:
                tumen_batch_free(self.batch)
                self.batch = NULL
                if now_ns() >= deadline:
                    return True
                continue
            nbytes += event.term.len
            try:
                self.dispatch(event)
            except Exception as error:
                self.event_lost(error)
            if nbytes >= DRAIN_BYTES:
                return True
            count += 1
            if count % CLOCK_EVENTS == 0 and (self.crowded or now_ns() >= deadline):
                self.crowded = False
                return True

    cdef int event_lost(self, object error) except -1:
        self.loop.call_exception_handler(
            {"message": "tumen: an event was lost", "exception": error})
        return 0

    cdef int dispatch(self, const tumen_event *event) except -1:
        """Delivers it, unless its term is large or it has to stand in line."""
        if self.lines and self.stands_in_line(event):
            return 0
        if event.term.len >= APART_BYTES and self.build_apart(event):
            return 0
        return self.deliver(event)

    cdef int deliver(self, const tumen_event *event) except -1:
        if event.kind == TUMEN_EVENT_MESSAGE:
            return self.on_message(event)
        if event.kind == TUMEN_EVENT_REPLY:
            return self.on_reply(event)
        if event.kind == TUMEN_EVENT_DOWN:
            return self.on_down(event)
        if event.kind == TUMEN_EVENT_LOCAL:
            return self.on_local(event)
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

    cdef object term_of(self, const tumen_event *event, CoreProcess process=None):
        """The term, or the atom `malformed`: then its connection is closed."""
        if event.term.len == 0:
            return None
        try:
            return self.term_built(event, process)
        except InterruptedError:
            return None  # the process has ended meanwhile
        except (errors.DecodeError, errors.LimitExceeded) as error:
            self.undecodable(event, error)
            return ATOM_MALFORMED

    cdef inline object term_built(self, const tumen_event *event, CoreProcess process=None):
        """`process`: whose term it is."""
        if self.handed is not None and self.handed.state == KEPT_BUILT:
            return self.handed.take()
        if process is not None and process.views and event.term.len >= TM_VIEW_BYTES_MIN:
            return self.views_built(event)
        return term_build(event.term.ptr, event.term.len, 0)

    cdef object views_built(self, const tumen_event *event):
        cdef _Memory memory
        memory = memory_of(self.batch if self.handed is None else self.handed.batch)
        if memory is None:
            return term_build(event.term.ptr, event.term.len, TERM_VIEWS)
        return term_build_views(event.term.ptr, memory)

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
            message = self.term_built(event, process)
        except BaseException as error:
            tumen_mail_taken(self.ptr, event.process, event.wire_bytes)
            if not isinstance(error, (errors.DecodeError, errors.LimitExceeded)):
                raise
            return self.undecodable(event, error)
        if process.calls and self.plain_reply(process, message):
            tumen_mail_taken(self.ptr, event.process, event.wire_bytes)
            return 0
        if (event.term.ptr[0] == TM_SMALL_TUPLE_EXT and event.term.ptr[1] == 3
                and is_passed_on(event, message)):
            token = token_of(event) if event.text.len or process.traced else None
            return process.put_passed_on(message, event.wire_bytes, token)
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
        return self.replied(call, self.term_of(event, call.owner), token_of(event))

    cdef int replied(self, PendingCall call, object reply, bytes token) except -1:
        """A reply has come, with a trace token or (empty) without."""
        if call is None:
            return 0
        if (token or call.owner.traced) and not call.owner.sink:
            call.owner.traced = True
            call.owner.take_token(token)
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
        process = self.processes.get(event.process)
        if call is None and process is None:
            return 0
        if call is not None:
            return call.finish(DOWN, self.term_of(event, call.owner))
        reason = self.term_of(event, process)
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
        message = (ATOM_EXIT, pid_py(&event.from_), self.term_of(event, process))
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
        if process._tumen_task is not None:
            process._tumen_task.cancel()
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


# Whether a message is a request ``{_, {Caller, Tag}, _}`` that is known to come from another process
# than its caller.
cdef bint is_passed_on(const tumen_event *event, object message) except -1:
    cdef tm_pid caller
    cdef object origin
    if type(message) is not tuple or not event.from_.node.len:
        return False
    origin = <object>PyTuple_GET_ITEM(message, 1)
    if (type(origin) is not tuple or PyTuple_GET_SIZE(origin) != 2
            or type(<object>PyTuple_GET_ITEM(origin, 0)) is not Pid):
        return False
    pid_fill(<Pid>PyTuple_GET_ITEM(origin, 0), &caller)
    return (caller.id != event.from_.id or caller.serial != event.from_.serial
            or caller.creation != event.from_.creation
            or caller.node.len != event.from_.node.len
            or memcmp(caller.node.ptr, event.from_.node.ptr, caller.node.len) != 0)
