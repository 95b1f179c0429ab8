# A node: what the C API offers, and the batch of events that comes in.

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
        if <uint32_t>size != size or (self.lent is not None and len(self.lent) >= LEND_COUNT):
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
        """Encodes and queues; the answer of tumen_send. Or HANDED_OVER: there is nothing to be
        flushed."""
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
        self.flush_now()
        return 0

    cdef int check_sent(self, int rc, object dest) except -1:
        if rc < 0:
            peer = peer_of(dest, self.own)
            if rc == TM_EBUSY:
                self.busy(peer)
            raise_for(rc, peer, "sending")
        return 0 if rc == HANDED_OVER else self.sent()

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

    cdef int flush_now(self) except -1:
        cdef tumen_node *node = self.get()
        self.users += 1
        with nogil:
            tumen_flush(node)
        self.users -= 1
        return 0

    def flush(self):
        """Everything queued since the last flush gets going. May write to sockets."""
        self.flush_now()

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

    cpdef bint watched(self, tumen_key key, Reference ref) except -1:
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
