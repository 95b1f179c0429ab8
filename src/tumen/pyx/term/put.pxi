# Terms into bytes: the output, and the loop over the common kinds.

cdef enum:
    OUT_SMALL = 1024    # on the caller's stack; most messages fit
    OUT_SLACK = 64
    LEAF_ROOM = 16      # an integer of 64 bits, a float, true, false or nil
    # beside the name of the node
    PID_ROOM = 13                         # tag, id, serial, creation
    REF_ROOM = 7 + 4 * TM_REF_WORDS_MAX   # tag, count, creation, words

cdef struct Out:
    uint8_t *base
    uint8_t *end
    PyObject *made      # owned: the bytes object that base is in, or NULL
    tm_buf *buf         # borrowed: base is its ptr, or NULL


cdef uint8_t *out_grow(Out *out, uint8_t *w, size_t need) except NULL:
    """Makes room for need bytes more and answers where w is now."""
    cdef size_t used = w - out.base
    cdef size_t size = out.end - out.base
    cdef PyObject *made
    cdef int rc
    if out.buf != NULL:
        out.buf.len = used
        rc = tm_buf_reserve(out.buf, need)
        if rc == TM_EUSE_LIMIT:
            raise LimitExceeded(f"the term is larger than {out.buf.max} bytes",
                                limit="message_bytes_max")
        if rc:
            raise MemoryError()
        out.base = out.buf.ptr
        out.end = out.base + out.buf.cap
        return out.base + used
    size = max(2 * size, used + need + OUT_SLACK)
    if out.made == NULL:
        made = new_bytes(NULL, size)
        memcpy(bytes_data(made), out.base, used)
        out.made = made
    else:
        bytes_resize(&out.made, size)  # on an error it has freed and nulled made
    out.base = bytes_data(out.made)
    out.end = out.base + size
    return out.base + used


# -- encoding: the loop ---------------------------------------------------------------------------

# A container with a part that has parts itself. One whose parts are all leaves is written whole and
# never opened. Its obj and the pair in hand are owned, because __index__ and Mapping run the caller's
# code, which may change any list or dict on the way; a leaf of put_leaf runs none.

cdef enum:
    OPENS_SMALL = 24
    OPENS_GROWTH = 8   # once, to 12 KB; later it doubles
    # Levels of containers, in which an object of a registered class may stand. Each costs a dict or
    # a tuple until it is written, so an object that contains itself is found early.
    FORMS_DEPTH_MAX = 10000

    E_ROOT = 0
    E_TUPLE
    E_LIST
    E_IMPROPER  # obj is the ImproperList, its items are iterated
    E_DICT
    E_PAIRS     # obj is a tuple key, value, key, value …
    E_SORTED    # the same for canonical(): the keys are bytes that are encoded already

    # what a dict frame waits for
    D_NEXT = 0
    D_VALUE

    # kinds of keys that may meet as one Erlang term although they differ in Python
    KEYS_TEXT = 1
    KEYS_BYTES = 2
    KEYS_OTHER = 4

cdef struct Open:
    PyObject *obj      # owned
    PyObject *key      # owned; E_DICT: of the pair in hand, if a part of it is no leaf, else NULL;
                       # E_TUPLE: the names of its fields, or NULL
    PyObject *value    # owned, when key is; E_DICT: of that pair
    Py_ssize_t index   # elements done; E_DICT: PyDict_Next's position
    Py_ssize_t count   # elements, or pairs of E_DICT, that the head has announced
    Py_ssize_t pairs   # E_DICT: pairs taken
    size_t start       # of the tag, bytes into the output
    uint8_t kind
    uint8_t waits
    uint8_t keys       # KEYS_*

cdef struct Encoder:
    Out out
    uint8_t *w         # where the output ends, while another function writes
    PyObject *part     # borrowed: what run_dict and run_other have found to have parts
    Open *opens
    size_t depth       # opens in use, the root included
    size_t cap
    bint sorted_keys   # canonical(): maps in the order of their keys' bytes
    Open small[OPENS_SMALL]


cdef object encode_error(Encoder *e, str message, str hint=""):
    path = encode_path(e)
    return EncodeError(f"{message} at {path}", path=path, hint=hint)


# Raised from functions of their own, so that the hot ones stay small.

cdef int raise_size(Encoder *e, str what) except -1:
    raise encode_error(e, f"{what} of more than 2^32 - 1")


cdef int raise_depth(Encoder *e) except -1:
    raise encode_error(e, f"nested deeper than {TM_DEPTH_MAX} levels",
                       "Does the object contain itself?")


cdef str encode_path(Encoder *e):
    cdef list parts = ["$"]
    cdef size_t i
    cdef Open *o
    cdef Py_ssize_t place
    for i in range(1, min(e.depth, <size_t>TM_WALK_PATH_MAX + 1)):
        o = &e.opens[i]
        place = o.index - 1
        if o.kind == E_DICT:
            if o.key == NULL:
                continue  # the dict itself
            if o.waits == D_VALUE:
                parts.append(key_step(<object>o.key))
            else:
                parts.append(f".key({o.pairs - 1})")
        elif o.kind == E_PAIRS:
            if place & 1:
                parts.append(key_step((<tuple>o.obj)[place - 1]))
            else:
                parts.append(f".key({place // 2})")
        elif o.kind == E_SORTED:
            parts.append(f".value({place // 2})")
        elif o.kind == E_IMPROPER and place == o.count:
            parts.append(".tail")
        elif o.kind == E_TUPLE and o.key != NULL:
            parts.append((<tuple>o.key)[place])  # a record: FormWriter.words
        else:
            parts.append(f"[{place}]")
    if e.depth > TM_WALK_PATH_MAX + 1:
        parts.append("…")
    return "".join(parts)


cdef int opens_grow(Encoder *e) except -1:
    cdef size_t cap = e.cap * (OPENS_GROWTH if e.opens == e.small else 2)
    cdef Open *opens
    if cap > <size_t>TM_DEPTH_MAX + 1:
        cap = TM_DEPTH_MAX + 1
    if e.depth > TM_DEPTH_MAX:
        raise_depth(e)
    if e.opens == e.small:
        opens = <Open *>PyMem_Malloc(cap * sizeof(Open))
        if opens != NULL:
            memcpy(opens, e.small, e.depth * sizeof(Open))
    else:
        opens = <Open *>PyMem_Realloc(e.opens, cap * sizeof(Open))
    if opens == NULL:
        raise MemoryError()
    e.opens = opens
    e.cap = cap
    return 0


cdef inline Open *open_push(Encoder *e, PyObject *obj, uint8_t kind, Py_ssize_t count,
                            size_t start) except NULL:
    cdef Open *o
    if e.depth == e.cap:
        opens_grow(e)
    o = &e.opens[e.depth]
    e.depth += 1
    incref(obj)
    o.obj = obj
    o.key = NULL
    o.index = 0
    o.count = count
    o.start = start
    o.kind = kind
    o.keys = 0
    return o


cdef inline void open_pop(Encoder *e) noexcept:
    cdef Open *o
    e.depth -= 1
    o = &e.opens[e.depth]
    decref(o.obj)
    if o.key != NULL:
        decref(o.key)
        if o.kind == E_DICT:
            decref(o.value)


# What put_leaf answers for a term that is no leaf: an address that is no place in any output.
cdef uint8_t not_a_leaf


cdef inline uint8_t *put_leaf(Encoder *e, PyObject *x, uint8_t *w) except NULL:
    """Writes x if it is of the common kinds without parts, else answers &not_a_leaf. w has LEAF_ROOM.
    Runs none of the caller's code, so pointers into a list stay good over it, and raises only what
    out_grow does."""
    cdef PyTypeObject *t = type_of(x)
    cdef const uint8_t *text
    cdef Py_ssize_t n
    cdef int64_t number
    cdef uint64_t bits
    if t == &PyLong_Type:
        if term_short_int(x, &number):
            return tm_etf_put_i64(w, number)
        return put_word(e, x, w)
    if t == &PyFloat_Type:
        if not term_finite(x, &bits):
            return &not_a_leaf
        return tm_store_u64(tm_store_u8(w, TM_NEW_FLOAT_EXT), bits)
    if t == atom_type:
        text = bytes_data(<PyObject *>(<Atom>x).wire)
        n = var_size(<PyObject *>(<Atom>x).wire)
    else:
        if t == &PyBytes_Type:
            text = bytes_data(x)
            n = var_size(x)
        elif t == &PyUnicode_Type and text_is_ascii(x):
            text = text_data(x)
            n = text_len(x)
        else:
            return put_word(e, x, w)
        if n > WIRE_COUNT_MAX:
            return &not_a_leaf
        w = tm_etf_put_binary(w, <uint32_t>n)
    if e.out.end - w < n:
        w = out_grow(&e.out, w, n)
    return tm_etf_put_short(w, text, n)


cdef uint8_t *put_word(Encoder *e, PyObject *x, uint8_t *w) except NULL:
    """The leaves that are less common, for put_leaf."""
    cdef PyTypeObject *t = type_of(x)
    cdef int64_t number
    if x == Py_True:
        return tm_store_bytes(w, b"\x77\x04true", 6)
    if x == Py_False:
        return tm_store_bytes(w, b"\x77\x05false", 7)
    if x == Py_None:
        return tm_store_bytes(w, b"\x77\x03nil", 5)
    if t == pid_type:
        return put_pid(e, <Pid>x, w)
    if t == reference_type:
        return put_ref(e, <Reference>x, w)
    if t == &PyLong_Type and long_number(x, &number):
        return tm_etf_put_i64(w, number)
    return &not_a_leaf


cdef bint long_number(PyObject *x, int64_t *number):
    """Whether an int fits; runs nothing and raises nothing."""
    cdef int overflow
    number[0] = long_value(x, &overflow)
    return not overflow


cdef uint8_t *put_pid(Encoder *e, Pid pid, uint8_t *w) except NULL:
    cdef PyObject *node = <PyObject *>pid.node_atom.wire
    if e.out.end - w < PID_ROOM + var_size(node):
        w = out_grow(&e.out, w, PID_ROOM + var_size(node))
    w = tm_store_u8(w, TM_NEW_PID_EXT)
    w = tm_etf_put_short(w, bytes_data(node), var_size(node))
    w = tm_store_u32(w, pid.id)
    w = tm_store_u32(w, pid.serial)
    return tm_store_u32(w, pid.creation)


cdef uint8_t *put_ref(Encoder *e, Reference ref, uint8_t *w) except NULL:
    cdef PyObject *node = <PyObject *>ref.node_atom.wire
    cdef uint32_t i
    if e.out.end - w < REF_ROOM + var_size(node):
        w = out_grow(&e.out, w, REF_ROOM + var_size(node))
    w = tm_store_u8(w, TM_NEWER_REFERENCE_EXT)
    w = tm_store_u16(w, <uint16_t>ref.count)
    w = tm_etf_put_short(w, bytes_data(node), var_size(node))
    w = tm_store_u32(w, ref.creation)
    for i in range(ref.count):
        w = tm_store_u32(w, ref.word[i])
    return w


cdef bint put_simple(Encoder *e, PyObject *x) except -1:
    """Writes x at e.w if it is a leaf."""
    cdef uint8_t *w
    if e.out.end - e.w < LEAF_ROOM:
        e.w = out_grow(&e.out, e.w, LEAF_ROOM)
    w = put_leaf(e, x, e.w)
    if w == &not_a_leaf:
        return False
    e.w = w
    return True


cdef uint8_t *encode_run(Encoder *e, PyObject *root, uint8_t *start) except NULL:
    """Appends root to the output at start; the end of what was written."""
    cdef uint8_t *w
    cdef uint8_t *after
    cdef PyObject *x = root       # what has parts, or is of a rare kind
    cdef PyObject *obj = NULL     # the tuple or list in hand; E_ROOT: none
    cdef PyObject **items = NULL
    cdef Open *o                  # its frame, or NULL: then it has none yet
    cdef Py_ssize_t i, n
    cdef size_t head = 0          # of its tag, bytes into the output
    cdef uint8_t kind
    cdef uint64_t bits
    e.w = start
    if type_of(x) != &PyTuple_Type and put_simple(e, x):
        return e.w
    w = e.w
    while True:
        o = NULL
        i = n = 0
        kind = E_ROOT
        if type_of(x) == &PyTuple_Type or type_of(x) == &PyList_Type:
            obj = x
            n = var_size(x)
            if e.out.end - w < LEAF_ROOM:
                w = out_grow(&e.out, w, LEAF_ROOM)
            head = w - e.out.base
            if n == 0 or n > WIRE_COUNT_MAX or e.depth > TM_DEPTH_MAX:
                w = put_no_sequence(e, x, n, w)
                n = 0
            elif type_of(x) == &PyTuple_Type:
                kind = E_TUPLE
                items = term_tuple_items(x)
                w = tm_etf_put_tuple(w, <uint32_t>n)
            else:
                kind = E_LIST
                items = term_list_items(x)
                w = tm_etf_put_list(w, <uint32_t>n)
        else:
            e.w = w
            put_other(e, x)
            w = e.w
        while True:
            while i < n:
                x = items[i]
                i += 1
                if e.out.end - w < LEAF_ROOM:
                    w = out_grow(&e.out, w, LEAF_ROOM)
                if type_of(x) == &PyFloat_Type and term_finite(x, &bits):
                    # As put_leaf does: long lists of floats are common.
                    w = tm_store_u64(tm_store_u8(w, TM_NEW_FLOAT_EXT), bits)
                    continue
                if type_of(x) == &PyTuple_Type or type_of(x) == &PyList_Type:
                    break
                after = put_leaf(e, x, w)
                if after == &not_a_leaf:
                    break
                w = after
            else:
                # It is whole; on with what it stands in.
                if kind == E_LIST:
                    if e.out.end - w < 1:
                        w = out_grow(&e.out, w, 1)
                    w = finish_list(e.out.base + head, w, n)
                if o != NULL:
                    open_pop(e)
                    o = NULL
                if e.depth == 1:
                    return w
                o = &e.opens[e.depth - 1]
                kind = o.kind
                if kind == E_TUPLE or kind == E_LIST:
                    obj = o.obj
                    head = o.start
                    i = o.index
                    n = o.count
                    items = (term_tuple_items(obj) if kind == E_TUPLE
                             else list_items_of(e, obj, n))
                    continue
                e.w = w
                if run_dict(e, o) if kind == E_DICT else run_other(e, o):
                    w = e.w
                    x = e.part
                    break
                w = e.w
                open_pop(e)
                o = NULL
                i = n = 0
                kind = E_ROOT
                continue
            if o == NULL:
                o = open_push(e, obj, kind, n, head)
            o.index = i
            break


cdef uint8_t *put_no_sequence(Encoder *e, PyObject *x, Py_ssize_t n, uint8_t *w) except NULL:
    """An empty tuple or list, or why a tuple or list cannot be written."""
    if n > WIRE_COUNT_MAX:
        raise_size(e, "a tuple or list with a length")
    if n:
        raise_depth(e)
    return tm_etf_put_nil(w) if type_of(x) == &PyList_Type else tm_etf_put_tuple(w, 0)


cdef PyObject **list_items_of(Encoder *e, PyObject *obj, Py_ssize_t n) except NULL:
    """Where the items of a list are, of which some are written: the caller's code may have run."""
    if var_size(obj) != n:
        raise encode_error(e, "a list changed its size while it was encoded")
    return term_list_items(obj)


cdef uint8_t *put_raw(Encoder *e, PyObject *term, uint8_t *w) except NULL:
    cdef Py_ssize_t n = var_size(term)
    if e.out.end - w < n:
        w = out_grow(&e.out, w, n)
    return tm_store_bytes(w, bytes_data(term), n)


cdef bint run_other(Encoder *e, Open *o) except -1:
    """Writes elements of a flat map or improper list at e.w: True with e.part where one is no leaf,
    False at the end."""
    cdef PyObject **items
    cdef PyObject *x
    if o.kind == E_IMPROPER:
        items = term_tuple_items(<PyObject *>(<ImproperList>o.obj).items)
    else:
        items = term_tuple_items(o.obj)
    while o.index < o.count:
        x = items[o.index]
        o.index += 1
        if o.kind == E_SORTED and o.index & 1:
            e.w = put_raw(e, x, e.w)
        elif not put_simple(e, x):
            e.part = x
            return True
    if o.kind == E_IMPROPER and o.index == o.count:
        o.index += 1
        x = <PyObject *>(<ImproperList>o.obj).tail
        if not put_simple(e, x):
            e.part = x
            return True
    if o.kind == E_PAIRS and o.keys:
        check_keys(e, o)
    return False


cdef uint8_t *finish_list(uint8_t *head, uint8_t *w, Py_ssize_t count) noexcept:
    """Ends a LIST_EXT, or rewrites it as the STRING_EXT that OTP makes of 1 to 65,535 bytes."""
    cdef uint8_t *item = head + 5
    cdef Py_ssize_t i
    if count > 0xffff or w - item != 2 * count:
        return tm_etf_put_nil(w)
    for i in range(count):
        if item[2 * i] != TM_SMALL_INTEGER_EXT:
            return tm_etf_put_nil(w)
    head[0] = TM_STRING_EXT
    tm_store_u16(head + 1, <uint16_t>count)
    for i in range(count):
        head[3 + i] = item[2 * i + 1]
    return head + 3 + count


cdef bint run_dict(Encoder *e, Open *o) except -1:
    """Writes pairs at e.w: True with e.part where a part of one is no leaf, False at the end."""
    cdef PyObject *key
    cdef PyObject *value
    if o.key != NULL and o.waits == D_NEXT:
        # The key had parts; now its value.
        o.waits = D_VALUE
        if not put_simple(e, o.value):
            e.part = o.value
            return True
    pair_drop(o)
    while dict_next(o.obj, &o.index, &key, &value):
        o.pairs += 1
        if o.pairs > o.count:
            break
        o.keys |= key_kind(key)
        if put_simple(e, key):
            if put_simple(e, value):
                continue
            o.waits = D_VALUE
        incref(key)
        incref(value)
        o.key = key
        o.value = value
        e.part = value if o.waits == D_VALUE else key
        return True
    if o.pairs != o.count:
        raise encode_error(e, "a dict changed its size while it was encoded")
    if o.keys & KEYS_OTHER or o.keys == (KEYS_TEXT | KEYS_BYTES):
        check_keys(e, o)
    return False


cdef inline void pair_drop(Open *o) noexcept:
    """The pair in hand is written."""
    cdef PyObject *key = o.key
    cdef PyObject *value = o.value
    o.waits = D_NEXT
    if key != NULL:
        o.key = o.value = NULL
        decref(key)
        decref(value)


cdef inline uint8_t key_kind(PyObject *key) noexcept:
    cdef PyTypeObject *t = type_of(key)
    if t == atom_type or t == &PyLong_Type:
        return 0
    if t == &PyUnicode_Type:
        return KEYS_TEXT
    if t == &PyBytes_Type:
        return KEYS_BYTES
    if (t == &PyFloat_Type or t == &PyBool_Type or key == Py_None or t == pid_type
            or t == reference_type or t == port_type):
        return 0
    return KEYS_OTHER


cdef int check_keys(Encoder *e, Open *o) except -1:
    """Two keys may be one Erlang term ("a" and b"a"); a BEAM would drop the connection for it."""
    cdef const uint8_t *p = e.out.base + o.start + 5
    cdef const uint8_t *q
    cdef set seen = set()
    cdef Py_ssize_t i
    if o.count < 2:
        return 0
    for i in range(o.count if o.kind == E_DICT else o.count // 2):
        q = tm_etf_skip(p)
        seen.add(PyBytes_FromStringAndSize(<const char *>p, q - p))
        if len(seen) == i:
            key = safe_repr(term_build(p, q - p, 0))[:64]
            e.depth -= 1  # the path of the map itself
            error = encode_error(e, f"two keys are the same Erlang term, {key},")
            e.depth += 1
            raise error
        p = tm_etf_skip(q)
    return 0
