# Constants, and small conversions between the C structs and the terms.

cdef enum:
    # One drain decodes for so long, ns, then gives the loop a turn; the clock is read once in so
    # many events.
    DRAIN_NS = 1_000_000
    CLOCK_EVENTS = 16
    # And so many bytes of terms: sixteen large ones are many milliseconds and all the cache.
    DRAIN_BYTES = 1024 * 1024
    # A process gives the loop a turn after so many messages, or so many ns, without suspending. The
    # clock is read once in so many messages at most, more often as the turn nears its end.
    TURN_MESSAGES = 256
    TURN_NS = 1_000_000
    TURN_CLOCK_MESSAGES = 16
    # For a process that keeps up so many messages are decoded ahead, not more: they stay in the
    # processor's caches, and the garbage collector has no heap of them to go through. One turn.
    AHEAD_MESSAGES = TURN_MESSAGES
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
    # A term of at least so many bytes is built by a thread: copied to fresh memory it takes the loop
    # longer than a drain may decode. Below it the way there and back costs more than it saves.
    APART_BYTES = 4 * 1024 * 1024
    # Terms that wait for that thread, at most; a further one is built on the loop. They weigh
    # 16 GiB at least: the bounds of inbox and mailboxes come long before.
    BUILD_COUNT_MAX = 4096
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

cdef object current_task = asyncio.current_task
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


# -- calls of gen_server ------------------------------------------------------------------------


def is_from(value):
    """Whether it is the ``{Pid, Tag}`` of a caller."""
    return (type(value) is tuple and PyTuple_GET_SIZE(value) == 2
            and type(<object>PyTuple_GET_ITEM(value, 0)) is Pid)


# The reference in `[alias|Ref]`, else None.
cdef object alias_of(object place):
    if type(place) is ImproperList:
        items, tail = place.items, place.tail
        if type(tail) is Reference and PyTuple_GET_SIZE(items) == 1 and items[0] == ATOM_ALIAS:
            return tail
    return None
