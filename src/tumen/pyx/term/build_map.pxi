# Maps from walked bytes, their keys and what is wrong with them.

cdef struct HashCount:
    Py_hash_t hash
    uint32_t count  # 0 is a free place


cdef bint key_is_salted(PyObject *key) noexcept:
    """Types whose hash a peer cannot foresee."""
    cdef PyTypeObject *t = type_of(key)
    return (t == &PyBytes_Type or t == &PyUnicode_Type or t == atom_type or t == pid_type
            or t == reference_type or t == port_type)


cdef bint keys_flood(PyObject **pairs, Py_ssize_t count) except -1:
    """Whether a dict of these keys would be slow: many equal hashes, or a key without one."""
    cdef size_t size = 1, place
    cdef HashCount *seen
    cdef Py_ssize_t i
    cdef Py_hash_t h
    cdef bint flood = False
    while size < 2 * <size_t>count:
        size *= 2
    seen = NULL
    for i in range(count):
        if key_is_salted(pairs[2 * i]):
            continue
        if seen == NULL:
            seen = <HashCount *>PyMem_Malloc(size * sizeof(HashCount))
            if seen == NULL:
                raise MemoryError()
            memset(seen, 0, size * sizeof(HashCount))
        try:
            h = object_hash(pairs[2 * i])
        except TypeError:
            flood = True
            break
        place = term_mix(<uint64_t>h ^ salt, salt_factor) & (size - 1)
        while seen[place].count and seen[place].hash != h:
            place = (place + 1) & (size - 1)
        seen[place].hash = h
        seen[place].count += 1
        if seen[place].count > TM_HASH_EQUAL_COUNT_MAX:
            flood = True
            break
    PyMem_Free(seen)
    return flood


cdef PyObject *build_dict(PyObject **pairs, Py_ssize_t count) except? NULL:
    """A dict of the pairs, or NULL without an error where it would lose or refuse a key."""
    cdef PyObject *made = term_dict_presized(count)
    cdef PyTypeObject *t
    cdef Py_ssize_t i
    for i in range(count):
        t = type_of(pairs[2 * i])
        if t == &PyList_Type or t == &PyDict_Type:
            decref(made)
            return NULL
        if dict_set(made, pairs[2 * i], pairs[2 * i + 1]) < 0:
            decref(made)
            if err_matches(PyExc_TypeError) or err_matches(PyExc_RecursionError):
                err_clear()
            return NULL
    if dict_size(made) == count:
        return made
    decref(made)
    return NULL


# -- a dict as its pairs come ---------------------------------------------------------------------

# Most maps have keys that are binaries, atoms or small integers. Their pairs go straight into the
# dict; at the first other key, or one that the dict has already, the frame becomes one of pairs, of
# which build_map decides when all are there.

cdef enum:
    # The short binaries that were keys last, one for each place: a key that comes again is not made
    # again, and its hash is known. At most 44 KB in each of the two tables.
    KEY_SLOTS = 512
    KEY_BYTES_MAX = 32

cdef PyObject *key_slots[KEY_SLOTS]       # owned; bytes, or NULL
cdef PyObject *key_text_slots[KEY_SLOTS]  # owned; str in ASCII, or NULL


cdef PyObject *key_make(Builder *b, const uint8_t *p, uint32_t n, PyObject **place) except NULL:
    cdef PyObject *value = build_binary(b, p, n)
    if type_of(value) == &PyUnicode_Type:
        if not text_is_ascii(value):
            return value
    elif b.options & TERM_BINARIES_UTF8:
        return value
    xdecref(place[0])
    incref(value)
    place[0] = value
    return value


cdef inline PyObject *key_find(Builder *b, const uint8_t *p, uint32_t n) except NULL:
    """A new reference to what the n bytes at p are as a key."""
    cdef size_t slot = text_mix(p, n) & (KEY_SLOTS - 1)
    cdef PyObject *found
    if b.options & TERM_BINARIES_UTF8:
        found = key_text_slots[slot]
        if found != NULL and text_len(found) == n and tm_etf_same_short(text_data(found), p, n):
            incref(found)
            return found
        return key_make(b, p, n, &key_text_slots[slot])
    found = key_slots[slot]
    if found != NULL and var_size(found) == n and tm_etf_same_short(bytes_data(found), p, n):
        incref(found)
        return found
    return key_make(b, p, n, &key_slots[slot])


cdef inline const uint8_t *take_key(Builder *b, Frame *f, const uint8_t *p) except NULL:
    """Reads the next key of a dict; or makes its frame one of pairs, and reads nothing."""
    cdef uint32_t n
    if p[0] == TM_BINARY_EXT:
        n = tm_load_u32(p + 1)
        if n <= KEY_BYTES_MAX:
            f.base = key_find(b, p + 5, n)
            return p + 5 + n
        if n < TM_VIEW_BYTES_MIN:
            f.base = build_binary(b, p + 5, n)
            return p + 5 + n
    elif p[0] == TM_SMALL_ATOM_UTF8_EXT:
        f.base = atom_find(p + 2, p[1])
        return p + 2 + p[1]
    elif f.done + f.left < TM_HASH_CHECK_COUNT_MIN:
        # More of them might be a flood.
        if p[0] == TM_SMALL_INTEGER_EXT:
            f.base = small_int(p[1])
            return p + 2
        if p[0] == TM_INTEGER_EXT:
            f.base = new_long(<int32_t>tm_load_u32(p + 1))
            return p + 5
    spread(b, f)
    return p


cdef inline int take_pair(Builder *b, Frame *f) except -1:
    """Puts key and value into the dict: 1. Or makes the frame one of pairs with this one: 0."""
    cdef PyObject *key = f.base
    cdef PyObject *value = b.cell
    dict_add(f.obj, key, value)
    f.left -= 1
    f.done += 1
    if dict_size(f.obj) != f.done:
        f.done -= 1
        spread(b, f)
        return 0
    f.base = b.cell = NULL
    decref(key)
    decref(value)
    return 1


cdef int spread(Builder *b, Frame *f) except -1:
    """Makes a K_DICT frame one of pairs: those of the dict, then the one in hand, if there is one."""
    cdef Py_ssize_t count = <Py_ssize_t>f.done + f.left + (f.base != NULL)
    cdef PyObject *pairs = new_tuple(2 * count)
    cdef PyObject **items = term_tuple_items(pairs)
    cdef PyObject **slot = items
    cdef PyObject *key
    cdef PyObject *value
    cdef Py_ssize_t at = 0
    while dict_next(f.obj, &at, &key, &value):
        incref(key)
        incref(value)
        slot[0] = key
        slot[1] = value
        slot += 2
    if f.base != NULL:
        slot[0] = f.base
        slot[1] = b.cell
        slot += 2
        f.base = b.cell = NULL
    decref(f.obj)
    f.obj = pairs
    f.slot = slot
    f.end = items + 2 * count
    f.kind = K_MAP
    return 0


cdef PyObject *build_map(Builder *b, Frame *f) except NULL:
    """A dict, else a TermMap; takes the frame's obj."""
    cdef Py_ssize_t count = var_size(f.obj) // 2
    cdef PyObject **pairs = term_tuple_items(f.obj)
    cdef PyObject *made = NULL
    cdef TermMap term_map
    if f.key_height <= TM_KEY_DEPTH_MAX and (
            count < TM_HASH_CHECK_COUNT_MIN or not keys_flood(pairs, count)):
        made = build_dict(pairs, count)
    if made == NULL:
        term_map = TermMap.__new__(TermMap)
        term_map.pairs = <tuple>f.obj
        if count > 1:
            term_map.index = index_pairs(term_map.pairs)
            if term_map.index is None:
                raise_duplicate(b)
        term_map.sealed = True
        made = <PyObject *>term_map
        incref(made)
    decref(f.obj)
    f.obj = NULL
    return made


cdef dict index_pairs(tuple pairs):
    """Canonical bytes of each key → its place in pairs, or None if two keys are the same."""
    cdef dict index = {}
    cdef Py_ssize_t at
    for at in range(0, len(pairs), 2):
        index[canonical(pairs[at])] = at
    return index if len(index) == len(pairs) // 2 else None


cdef str build_path(Builder *b):
    cdef list parts = ["$"]
    cdef Py_ssize_t i, place
    cdef Frame *f
    for i in range(1, <Py_ssize_t>min(b.depth - 1, <size_t>TM_WALK_PATH_MAX + 1)):
        f = &b.frames[i]
        if f.kind == K_IMPROPER:
            parts.append(".tail")
            continue
        if f.kind == K_DICT:
            parts.append(key_step(<object>f.base))
            continue
        if f.kind == K_LIST or f.kind == K_PIECE and f.whole == K_LIST:
            place = f.slot - term_list_items(f.obj)
            if f.base != NULL:
                place += var_size(f.base)
        else:
            place = f.slot - term_tuple_items(f.obj)
        if f.kind != K_MAP:
            parts.append(f"[{place}]")
        elif place & 1:
            parts.append(key_step(<object>term_tuple_items(f.obj)[place - 1]))
        else:
            parts.append(f".key({place // 2})")
    if b.depth - 1 > TM_WALK_PATH_MAX + 1:
        parts.append("…")
    return "".join(parts)


cdef int raise_duplicate(Builder *b) except -1:
    path = build_path(b)
    offset = b.at - b.start + 1
    raise DecodeError(f"a map with the same key twice at {path}, before byte {offset}", path=path,
                      offset=offset)


cdef int raise_key_nesting(Builder *b) except -1:
    path = build_path(b)
    offset = b.at - b.start + 1
    raise LimitExceeded(
        f"maps as keys of maps, nested deeper than {TM_KEY_NESTING_MAX} levels, at {path}",
        path=path, offset=offset)
