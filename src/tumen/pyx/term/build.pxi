# Objects from walked bytes.

# A frame is a container under construction. Its obj already has its final size; slots that are not
# filled yet hold NULL, which the collector and the deallocator of tuples and lists both allow.

cdef enum:
    FRAMES_SMALL = 24
    FRAMES_GROWTH = 8  # once, to 11 KB; later it doubles

    K_ROOT = 0      # the one slot of the result
    K_TUPLE
    K_LIST
    K_DICT          # obj is the dict, base the key whose value comes next
    K_MAP           # obj is a tuple key, value, key, value …
    K_IMPROPER      # obj is a pair: items, tail
    K_PIECE         # K_LIST or K_TUPLE, up to the end of its next PIECE_SLOTS

    # TERM_APART: a list or a tuple is filled in pieces of so many slots, between which others may
    # get the GIL; a binary is copied in pieces of so many bytes, between which its end is not
    # wanted any more; and from so many on without the GIL.
    PIECE_SLOTS = 256
    PIECE_BYTES = 1024 * 1024
    COPY_APART_BYTES = 256 * 1024
    # Binaries of so many bytes and more are worth a look at the clock.
    CLOCK_BYTES = 4 * 1024
    # How long the GIL is held before others get it, and how long it is left to them, ns: to wake
    # another thread takes that long, and without it this one would have the GIL again at once.
    TURN_NS = 1_000_000
    TURN_PAUSE_NS = 20_000

cdef struct Frame:
    PyObject *obj      # owned
    PyObject *base     # owned; K_LIST: the items before obj, when one list came as several;
                       # K_DICT: the key
    PyObject **slot    # next to be filled
    PyObject **end
    PyObject **last    # K_PIECE: the end of the whole
    uint32_t height    # levels of the parts that are complete, at most
    uint32_t key_height  # K_MAP: the same of its keys
    uint8_t kind
    uint8_t whole      # K_PIECE: its kind as a whole
    uint8_t key_level  # maps on the way here of whose keys this is a part
    uint32_t left      # K_DICT: pairs to come, the one in work included
    uint32_t done      # K_DICT: pairs that are in the dict

cdef struct Builder:
    Frame *frames
    size_t depth       # frames in use, the root included
    size_t cap
    int options
    PyObject *memory   # TERM_VIEWS: what keeps the bytes where they are; NULL: nothing does
    PyObject *result   # owned
    PyObject *cell     # owned: the value that a K_DICT frame waits for
    const uint8_t *start
    const uint8_t *at  # for errors
    const int *cancelled  # TERM_APART: set when nobody wants the term
    int64_t turn_ns    # TERM_APART: when others last had the GIL
    Frame small[FRAMES_SMALL]


cdef object term_build(const uint8_t *ptr, size_t len, int options):
    return take_object(build(ptr, options, NULL, NULL))


# build_run without the check of its answer: see encode_call.
ctypedef int (*build_call)(Builder *b, const uint8_t *p) noexcept


cdef object term_build_apart(const uint8_t *ptr, const int *cancelled, object memory):
    if memory is None:
        return take_object(build(ptr, TERM_APART, cancelled, NULL))
    return take_object(build(ptr, TERM_APART | TERM_VIEWS, cancelled, <PyObject *>memory))


cdef object term_build_views(const uint8_t *ptr, object memory):
    return take_object(build(ptr, TERM_VIEWS, NULL, <PyObject *>memory))


# Bytes that somebody else keeps in their place.
@cython.final
@cython.no_gc
cdef class _Piece:
    cdef object memory
    cdef const uint8_t *start
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *>self.start, self.size, 1, flags)


cdef PyObject *new_piece(Builder *b, const uint8_t *p, uint32_t n) except NULL:
    cdef _Piece piece = _Piece.__new__(_Piece)
    piece.memory = <object>b.memory
    piece.start = p
    piece.size = n
    return new_view(<PyObject *>piece)


cdef PyObject *build(const uint8_t *ptr, int options, const int *cancelled,
                     PyObject *memory) except NULL:
    cdef Builder b
    b.frames = b.small
    b.cap = FRAMES_SMALL
    b.depth = 1
    b.options = options
    b.memory = memory
    b.cancelled = cancelled
    b.turn_ns = 0
    b.result = b.cell = NULL
    b.start = ptr
    b.small[0].obj = b.small[0].base = NULL
    b.small[0].slot = &b.result
    b.small[0].end = &b.result + 1
    b.small[0].height = 0
    b.small[0].kind = K_ROOT
    b.small[0].key_level = 0
    if (<build_call>build_run)(&b, ptr):
        build_failed(&b)
    if b.frames != b.small:
        PyMem_Free(b.frames)
    return b.result


cdef int build_failed(Builder *b) except -1:
    """Frees what a builder holds, under the exception that is set."""
    cdef PyObject *error[3]
    cdef size_t i
    err_fetch(&error[0], &error[1], &error[2])
    for i in range(b.depth):
        xdecref(b.frames[i].obj)
        xdecref(b.frames[i].base)
    xdecref(b.result)
    xdecref(b.cell)
    if b.frames != b.small:
        PyMem_Free(b.frames)
    err_restore(error[0], error[1], error[2])
    return -1


cdef int frames_grow(Builder *b) except -1:
    cdef size_t cap = b.cap * (FRAMES_GROWTH if b.frames == b.small else 2)
    cdef Frame *frames
    if b.frames == b.small:
        frames = <Frame *>PyMem_Malloc(cap * sizeof(Frame))
        if frames != NULL:
            memcpy(frames, b.small, sizeof(b.small))
    else:
        frames = <Frame *>PyMem_Realloc(b.frames, cap * sizeof(Frame))
    if frames == NULL:
        raise MemoryError()
    b.frames = frames
    b.cap = cap
    return 0


cdef int frames_room(Builder *b, PyObject *obj) except -1:
    """Room for one frame more; obj is the builder's to drop."""
    try:
        frames_grow(b)
    except:
        decref(obj)
        raise
    return 0


cdef inline Frame *frame_open(Builder *b, PyObject **slot, PyObject *obj, PyObject **items,
                              Py_ssize_t count, uint8_t kind) except NULL:
    """Pushes a frame that takes obj; the parent goes on at slot later."""
    cdef Frame *f = &b.frames[b.depth - 1]
    cdef uint8_t key_level = f.key_level
    f.slot = slot
    if f.kind == K_MAP and not (slot - term_tuple_items(f.obj)) & 1:
        key_level += 1
    if b.depth == b.cap:
        frames_room(b, obj)
    f = &b.frames[b.depth]
    b.depth += 1
    f.obj = obj
    f.base = NULL
    f.slot = items
    f.end = items + count
    f.height = 0
    f.key_height = 0
    f.kind = kind
    f.key_level = key_level
    if count > PIECE_SLOTS and b.options & TERM_APART and kind != K_MAP:
        f.last = f.end
        f.end = items + PIECE_SLOTS
        f.whole = kind
        f.kind = K_PIECE
    return f


cdef int piece_next(Builder *b, Frame *f) except -1:
    """The next slots of a list or a tuple that is filled in pieces."""
    turn(b)
    f.end = f.slot + PIECE_SLOTS
    if f.end >= f.last:
        f.end = f.last
        f.kind = f.whole
    return 0


cdef int turn(Builder *b) except -1:
    """TERM_APART: gives the GIL to others when it was held for long enough."""
    cdef timespec now, pause
    cdef int64_t now_ns
    clock_gettime(CLOCK_MONOTONIC, &now)
    now_ns = <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec
    if now_ns - b.turn_ns < TURN_NS:
        return 0
    pause.tv_sec = 0
    pause.tv_nsec = TURN_PAUSE_NS
    with nogil:
        nanosleep(&pause, NULL)
    clock_gettime(CLOCK_MONOTONIC, &now)
    b.turn_ns = <int64_t>now.tv_sec * 1_000_000_000 + now.tv_nsec
    return check_wanted(b)


cdef int check_wanted(Builder *b) except -1:
    if term_load_flag(b.cancelled):
        raise InterruptedError("the term is not wanted any more")
    return 0


cdef int build_run(Builder *b, const uint8_t *p) except -1:
    cdef Frame *f = b.frames
    cdef PyObject **slot = f.slot
    cdef PyObject **end = f.end
    cdef PyObject **items = NULL
    cdef PyObject *value
    cdef const uint8_t *q
    cdef uint32_t count, height
    cdef Py_ssize_t n = 0
    cdef uint8_t tag, kind
    while True:
        while slot != end:
            tag = p[0]
            if tag == TM_SMALL_INTEGER_EXT:
                value = small_int(p[1])
                p += 2
            elif tag == TM_INTEGER_EXT:
                value = new_long(<int32_t>tm_load_u32(p + 1))
                p += 5
            elif tag == TM_SMALL_ATOM_UTF8_EXT:
                value = atom_find(p + 2, p[1])
                p += 2 + <size_t>p[1]
            elif tag == TM_BINARY_EXT:
                count = tm_load_u32(p + 1)
                value = build_binary(b, p + 5, count)
                p += 5 + <size_t>count
            elif tag == TM_NEW_FLOAT_EXT:
                p += 1
                q = p
                value = new_float(tm_etf_take_f64(&q))
                p += 8
            else:
                kind = K_ROOT  # of the container that is to be filled: none yet
                if tag == TM_SMALL_TUPLE_EXT or tag == TM_LARGE_TUPLE_EXT:
                    if tag == TM_SMALL_TUPLE_EXT:
                        n = p[1]
                        p += 2
                    else:
                        n = tm_load_u32(p + 1)
                        p += 5
                    value = new_tuple(n)
                    if n:
                        kind = K_TUPLE
                        items = term_tuple_items(value)
                elif tag == TM_LIST_EXT:
                    n = tm_load_u32(p + 1)
                    p += 5
                    if n == 0:
                        continue  # the tail alone is the term
                    value = new_list(n)
                    kind = K_LIST
                    items = term_list_items(value)
                elif tag == TM_NIL_EXT:
                    value = new_list(0)
                    p += 1
                elif tag == TM_MAP_EXT:
                    count = tm_load_u32(p + 1)
                    p += 5
                    if count:
                        value = term_dict_presized(count)
                        kind = K_DICT
                        items = &b.cell
                        n = 1
                    else:
                        value = new_dict()
                elif tag == TM_STRING_EXT:
                    count = tm_load_u16(p + 1)
                    value = build_string(p + 3, count)
                    p += 3 + <size_t>count
                else:
                    q = p
                    value = build_rare(b, &q)
                    p = q
                if kind != K_ROOT:
                    f = frame_open(b, slot, value, items, n, kind)
                    if kind == K_DICT:
                        f.left = count
                        f.done = 0
                        if f.key_level > TM_KEY_NESTING_MAX:
                            b.at = p - 5
                            raise_key_nesting(b)
                        p = take_key(b, f, p)
                    slot = f.slot
                    end = f.end
                    continue
            slot[0] = value
            slot += 1
        # The container is full: close it, and put it where its parent waits.
        if f.kind == K_DICT:
            if not take_pair(b, f):
                slot = f.slot
                end = f.end
                continue
            if f.left:
                p = take_key(b, f, p)
                slot = f.slot
                end = f.end
                continue
            value = f.obj
        elif f.kind == K_LIST:
            f.slot = slot
            q = p
            value = build_tail(f, &q)
            p = q
            if value == NULL:
                slot = f.slot
                end = f.end
                continue
            # build_tail has taken base and obj
        elif f.kind == K_TUPLE:
            value = f.obj
        elif f.kind == K_MAP:
            f.slot = slot
            b.at = p
            value = build_map(b, f)
        elif f.kind == K_IMPROPER:
            value = build_improper(f)
        elif f.kind == K_PIECE:
            f.slot = slot
            piece_next(b, f)
            end = f.end
            continue
        else:
            return 0
        height = f.height + 1
        b.depth -= 1
        f = &b.frames[b.depth - 1]
        slot = f.slot
        end = f.end
        if height > f.height:
            f.height = height
        if f.kind == K_MAP and height > f.key_height and not (slot - term_tuple_items(f.obj)) & 1:
            f.key_height = height
        slot[0] = value
        slot += 1


cdef inline PyObject *build_binary(Builder *b, const uint8_t *p, uint32_t n) except NULL:
    if b.options == 0:
        return new_bytes(p, n)
    return build_binary_as(b, p, n)


cdef PyObject *build_binary_as(Builder *b, const uint8_t *p, uint32_t n) except NULL:
    cdef PyObject *value
    cdef PyObject *view
    cdef size_t chars
    if b.memory != NULL and n >= TM_VIEW_BYTES_MIN:
        return new_piece(b, p, n)
    if b.options & TERM_APART:
        return build_binary_apart(b, p, n)
    if b.options & TERM_VIEWS and n >= TM_VIEW_BYTES_MIN:
        value = new_bytes(p, n)
        view = new_view(value)
        decref(value)
        return view
    if b.options & TERM_BINARIES_UTF8 and tm_utf8_valid(tm_bytes_of(p, n), &chars):
        if chars != n:
            return new_utf8(p, n)
        value = new_text(n, 127)
        memcpy(text_data(value), p, n)
        return value
    return new_bytes(p, n)


cdef PyObject *build_binary_apart(Builder *b, const uint8_t *p, uint32_t n) except NULL:
    cdef PyObject *value
    cdef uint8_t *to
    cdef size_t at = 0, size
    if n < COPY_APART_BYTES:
        if n >= CLOCK_BYTES:
            turn(b)
        return new_bytes(p, n)
    value = new_bytes(NULL, n)
    to = bytes_data(value)
    with nogil:
        while at < n and not term_load_flag(b.cancelled):
            size = n - at
            if size > PIECE_BYTES:
                size = PIECE_BYTES
            memcpy(to + at, p + at, size)
            at += size
    if at < n:
        decref(value)
        check_wanted(b)
    return value


cdef PyObject *small_ints[256]  # owned; CPython keeps them for ever


cdef int small_ints_make() except -1:
    cdef int i
    for i in range(256):
        small_ints[i] = new_long(i)
    return 0


small_ints_make()


cdef inline PyObject *small_int(uint8_t value) noexcept:
    incref(small_ints[value])
    return small_ints[value]


cdef PyObject *build_string(const uint8_t *p, uint32_t n) except NULL:
    cdef PyObject *value = new_list(n)
    cdef PyObject **items = term_list_items(value)
    cdef uint32_t i
    for i in range(n):
        items[i] = small_int(p[i])
    return value


cdef int list_join(Frame *f) except -1:
    """Moves obj to the end of base, which keeps room to spare: a list in n pieces costs n steps."""
    cdef Py_ssize_t n = var_size(f.base)
    list_set_slice(f.base, n, n, f.obj)
    decref(f.obj)
    f.obj = NULL
    return 0


cdef PyObject *build_tail(Frame *f, const uint8_t **pp) except? NULL:
    """Closes a list, or gives its frame the next slots to fill: then NULL without an error."""
    cdef const uint8_t *p = pp[0]
    cdef PyObject *value
    cdef PyObject *pair
    cdef uint32_t n
    if p[0] == TM_LIST_EXT and tm_load_u32(p + 1) == 0:
        pp[0] = p + 5
        return NULL  # the slots stay full, so this is asked again
    if f.base != NULL:
        list_join(f)
    else:
        f.base = f.obj
        f.obj = NULL
    if p[0] == TM_NIL_EXT:
        pp[0] = p + 1
        value = f.base
        f.base = NULL
        return value
    if p[0] == TM_LIST_EXT:
        n = tm_load_u32(p + 1)
        f.obj = new_list(n)
        f.slot = term_list_items(f.obj)
        f.end = f.slot + n
        pp[0] = p + 5
        return NULL
    if p[0] == TM_STRING_EXT:
        n = tm_load_u16(p + 1)
        f.obj = build_string(p + 3, n)
        pp[0] = p + 3 + n
        list_join(f)
        value = f.base
        f.base = NULL
        return value
    pair = new_tuple(2)
    f.obj = pair
    value = list_as_tuple(f.base)
    decref(f.base)
    f.base = NULL
    f.slot = term_tuple_items(pair) + 1
    f.end = f.slot + 1
    f.kind = K_IMPROPER
    term_tuple_items(pair)[0] = value
    return NULL


cdef PyObject *build_improper(Frame *f) except NULL:
    cdef ImproperList made = ImproperList.__new__(ImproperList)
    cdef PyObject **items = term_tuple_items(f.obj)
    made.items = <tuple>items[0]
    made.tail = <object>items[1]
    made.sealed = True
    decref(f.obj)
    f.obj = NULL
    incref(<PyObject *>made)
    return <PyObject *>made


cdef PyObject *build_rare(Builder *b, const uint8_t **pp) except NULL:
    cdef const uint8_t *p = pp[0]
    cdef uint8_t tag = p[0]
    cdef object value
    cdef BitString bits
    cdef Export export
    cdef Fun fun
    cdef tm_bytes digits
    cdef c_bool minus
    cdef uint32_t n
    if tag in (TM_ATOM_EXT, TM_ATOM_UTF8_EXT, TM_SMALL_ATOM_EXT):
        return atom_take(tm_etf_take_atom(pp))
    if tag in (TM_SMALL_BIG_EXT, TM_LARGE_BIG_EXT):
        digits = tm_etf_take_big(pp, &minus)
        return build_big(digits, minus)
    if tag in (TM_NEW_PID_EXT, TM_PID_EXT):
        value = take_pid(pp)
    elif tag in (TM_NEWER_REFERENCE_EXT, TM_NEW_REFERENCE_EXT, TM_REFERENCE_EXT):
        value = take_ref(pp)
    elif tag in (TM_V4_PORT_EXT, TM_NEW_PORT_EXT, TM_PORT_EXT):
        value = take_port(pp)
    elif tag == TM_FLOAT_EXT:
        value = float(p[1:32].split(b"\0", 1)[0])
        pp[0] = p + 32
    elif tag == TM_BIT_BINARY_EXT:
        n = tm_load_u32(p + 1)
        pp[0] = p + 6 + n
        if n == 0 or p[5] == 8:
            return build_binary(b, p + 6, n)
        bits = BitString.__new__(BitString)
        # Without a source, or Python hands out its shared object of that one byte.
        bits.data = PyBytes_FromStringAndSize(NULL, n)
        memcpy(PyBytes_AS_STRING(bits.data), p + 6, n)
        (<uint8_t *>PyBytes_AS_STRING(bits.data))[n - 1] &= <uint8_t>(0xff00 >> p[5])
        bits.bits = p[5]
        bits.sealed = True
        value = bits
    elif tag == TM_EXPORT_EXT:
        export = Export.__new__(Export)
        pp[0] = p + 1
        export.module_atom = atom_at(pp)
        export.function_atom = atom_at(pp)
        export.arity = <uint32_t>tm_etf_take_i32(pp)
        export.sealed = True
        value = export
    else:
        # NEW_FUN_EXT: the walk lets no other tag through.
        pp[0] = tm_etf_skip(p)
        fun = Fun.__new__(Fun)
        fun.wire = fun_wire(p, pp[0] - p)
        fun.sealed = True
        value = fun
    incref(<PyObject *>value)
    return <PyObject *>value


cdef PyObject *build_big(tm_bytes digits, bint minus) except NULL:
    cdef uint64_t magnitude = 0
    cdef PyObject *positive
    cdef PyObject *value
    if digits.len > 8:
        positive = new_big(digits.ptr, digits.len, 1, 0)
    else:
        memcpy(&magnitude, digits.ptr, digits.len)
        if not minus:
            return new_ulonglong(magnitude)
        if magnitude <= 0x7fffffffffffffff:
            return new_longlong(-<int64_t>magnitude)
        positive = new_ulonglong(magnitude)
    if not minus:
        return positive
    value = negative(positive)
    decref(positive)
    return value


cdef Pid take_pid(const uint8_t **pp):
    cdef Pid made = Pid.__new__(Pid)
    cdef tm_atom node
    cdef tm_pid pid
    tm_etf_take_pid(pp, &node, &pid)
    made.node_atom = name_take(node)
    made.id = pid.id
    made.serial = pid.serial
    made.creation = pid.creation
    made.sealed = True
    return made


cdef Port take_port(const uint8_t **pp):
    cdef Port made = Port.__new__(Port)
    cdef tm_atom node
    cdef tm_port port
    tm_etf_take_port(pp, &node, &port)
    made.node_atom = name_take(node)
    made.id = port.id
    made.creation = port.creation
    made.sealed = True
    return made


cdef Reference take_ref(const uint8_t **pp):
    cdef Reference made = Reference.__new__(Reference)
    cdef tm_atom node
    cdef tm_ref ref
    tm_etf_take_ref(pp, &node, &ref)
    made.node_atom = name_take(node)
    made.creation = ref.creation
    made.count = ref.count
    memcpy(made.word, ref.words, ref.count * sizeof(uint32_t))
    made.sealed = True
    return made
