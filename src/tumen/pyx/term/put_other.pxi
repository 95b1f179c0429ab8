# Terms into bytes: the other kinds.

cdef int put_other(Encoder *e, PyObject *x) except -1:
    """Writes at e.w what put_leaf does not, or the head of a container, which it opens."""
    cdef PyTypeObject *t = type_of(x)
    cdef object held
    cdef Py_ssize_t n
    cdef size_t start
    cdef Open *o
    if e.out.end - e.w < 16:
        e.w = out_grow(&e.out, e.w, 16)
    start = e.w - e.out.base
    if t == &PyTuple_Type or t == &PyList_Type:
        n = var_size(x)
        if n == 0 or n > WIRE_COUNT_MAX:
            e.w = put_no_sequence(e, x, n, e.w)
        elif t == &PyTuple_Type:
            open_push(e, x, E_TUPLE, n, start)
            e.w = tm_etf_put_tuple(e.w, <uint32_t>n)
        else:
            open_push(e, x, E_LIST, n, start)
            e.w = tm_etf_put_list(e.w, <uint32_t>n)
        return 0
    if t == &PyDict_Type and not e.sorted_keys:
        n = dict_size(x)
        if n > WIRE_COUNT_MAX:
            raise_size(e, "a map with a size")
        if n:
            o = open_push(e, x, E_DICT, n, start)
            o.pairs = 0
            o.waits = D_NEXT
        e.w = tm_etf_put_map(e.w, <uint32_t>n)
        return 0
    held = <object>x  # the caller's code may take it out of the list it is in
    return put_object(e, held)


cdef int put_bytes(Encoder *e, const uint8_t *p, Py_ssize_t n) except -1:
    if n > WIRE_COUNT_MAX:
        raise_size(e, "a binary with a size")
    if e.out.end - e.w < n + TM_ETF_HEAD_SIZE_MAX:
        e.w = out_grow(&e.out, e.w, n + TM_ETF_HEAD_SIZE_MAX)
    e.w = tm_store_bytes(tm_etf_put_binary(e.w, <uint32_t>n), p, n)
    return 0


cdef int put_text(Encoder *e, object text) except -1:
    cdef const uint8_t *utf8
    cdef Py_ssize_t n
    try:
        utf8 = text_utf8(<PyObject *>text, &n)
    except UnicodeEncodeError:
        raise encode_error(e, "a str with surrogates is no UTF-8") from None
    return put_bytes(e, utf8, n)


cdef int put_buffer(Encoder *e, object x) except -1:
    cdef Py_buffer view
    try:
        PyObject_GetBuffer(x, &view, PyBUF_SIMPLE)
    except BufferError:
        raise encode_error(e, "the buffer is not contiguous: copy it first;") from None
    try:
        put_bytes(e, <const uint8_t *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return 0


cdef int put_reserve(Encoder *e, Py_ssize_t n) except -1:
    if e.out.end - e.w < n:
        e.w = out_grow(&e.out, e.w, n)
    return 0


cdef int put_object(Encoder *e, object x) except -1:
    cdef tm_port port
    cdef bytes data
    cdef int bits
    if type(x) is str:
        put_text(e, x)
    elif type(x) is int:
        put_int(e, x)
    elif type(x) is float:
        raise encode_error(e, "NaN and infinities have no Erlang term")
    elif type(x) is Port:
        put_reserve(e, TM_ETF_PORT_SIZE_MAX)
        port.node = atom_bytes((<Port>x).node_atom)
        port.id = (<Port>x).id
        port.creation = (<Port>x).creation
        e.w = tm_etf_put_port(e.w, &port)
    elif type(x) is Export:
        put_reserve(e, 1 + 2 * TM_ETF_ATOM_SIZE_MAX + TM_ETF_INTEGER_SIZE_MAX)
        e.w = tm_store_u8(e.w, TM_EXPORT_EXT)
        e.w = tm_etf_put_atom(e.w, atom_bytes((<Export>x).module_atom))
        e.w = tm_etf_put_atom(e.w, atom_bytes((<Export>x).function_atom))
        e.w = tm_etf_put_u64(e.w, (<Export>x).arity)
    elif type(x) is Fun:
        data = (<Fun>x).canonical() if e.sorted_keys else (<Fun>x).wire
        e.w = put_raw(e, <PyObject *>data, e.w)
    elif type(x) is BitString:
        data = (<BitString>x).data
        bits = (<BitString>x).bits
        if bits == 8:
            return put_bytes(e, <const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        if PyBytes_GET_SIZE(data) > WIRE_COUNT_MAX:
            raise_size(e, "a bit string with a size")
        put_reserve(e, PyBytes_GET_SIZE(data) + TM_ETF_HEAD_SIZE_MAX)
        e.w = tm_etf_put_bit_binary(e.w, <uint32_t>PyBytes_GET_SIZE(data), <uint8_t>bits)
        e.w = tm_store_bytes(e.w, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    elif type(x) is ImproperList:
        put_improper(e, <ImproperList>x)
    elif type(x) is TermMap:
        put_pairs(e, (<TermMap>x).pairs, False)
    elif type(x) is Binary:
        put_buffer(e, b"" if (<Binary>x).buffer is None else (<Binary>x).buffer)
    elif isinstance(x, (bytes, bytearray, memoryview)):
        put_buffer(e, x)
    else:
        put_converted(e, x)
    return 0


cdef int put_improper(Encoder *e, ImproperList x) except -1:
    cdef Py_ssize_t n = len(x.items)
    if n > WIRE_COUNT_MAX:
        raise_size(e, "a list with a length")
    open_push(e, <PyObject *>x, E_IMPROPER, n, e.w - e.out.base)
    put_reserve(e, TM_ETF_HEAD_SIZE_MAX)
    e.w = tm_etf_put_list(e.w, <uint32_t>n)
    return 0


cdef int put_pairs(Encoder *e, tuple pairs, bint check) except -1:
    """A map from its flat pairs; check: its keys may be equal as terms."""
    cdef Py_ssize_t n = len(pairs) // 2
    cdef uint8_t kind = E_PAIRS
    cdef Open *o
    if n > WIRE_COUNT_MAX:
        raise_size(e, "a map with a size")
    if e.sorted_keys and n:
        pairs = sorted_pairs(e, pairs)
        kind = E_SORTED
    if n:
        o = open_push(e, <PyObject *>pairs, kind, 2 * n, e.w - e.out.base)
        o.keys = KEYS_OTHER if check else 0
    put_reserve(e, TM_ETF_HEAD_SIZE_MAX)
    e.w = tm_etf_put_map(e.w, <uint32_t>n)
    return 0


cdef tuple sorted_pairs(Encoder *e, tuple pairs):
    """The pairs in the order of their keys' canonical bytes, which stand in for the keys."""
    cdef dict index = index_pairs(pairs)
    cdef list flat = []
    if index is None:
        raise encode_error(e, "two keys are the same Erlang term")
    for key, at in sorted(index.items()):
        flat.append(key)
        flat.append(pairs[at + 1])
    return tuple(flat)


cdef int put_converted(Encoder *e, object x) except -1:
    """Subclasses, mappings and foreign scalars, as the plain object that they stand for."""
    cdef object plain = x
    cdef object form = getattr(type(x), "__tumen_form__", None)
    if form is not None:
        return put_form(e, form, x)
    if isinstance(x, int):
        plain = int.__index__(x)
    elif isinstance(x, float):
        plain = float.__float__(x)
    elif isinstance(x, str):
        plain = str.__str__(x)
    elif isinstance(x, tuple):
        plain = tuple(tuple.__iter__(x))
    elif isinstance(x, list):
        plain = list(list.__iter__(x))
    elif isinstance(x, Mapping):
        return put_pairs(e, flat_pairs(x), True)
    else:
        plain = scalar(x)
        if plain is None:
            raise unsupported(e, x)
    if type(plain) is int:
        return put_int(e, plain)
    if put_simple(e, <PyObject *>plain):
        return 0
    return put_other(e, <PyObject *>plain)


cdef int put_form(Encoder *e, object form, object x) except -1:
    """An object whose class tumen.typed has registered, as the tuple or dict that it makes of it."""
    cdef FormWriter writer
    cdef tuple plain
    cdef str path
    if e.depth > FORMS_DEPTH_MAX:
        raise encode_error(e, f"objects nested deeper than {FORMS_DEPTH_MAX} levels",
                           "Does the object contain itself?")
    if form.owner is not type(x) and not form.prepare(type(x)):
        raise encode_error(
            e, f"no Erlang term for {type(x).__module__}.{type(x).__qualname__}",
            "Its base is registered; register the class itself to say what it is.")
    writer = form.writer
    try:
        plain = writer.flat(x)
    except Mismatch as error:
        path = encode_path(e) + error.path()[1:]
        raise EncodeError(f"expected {error.expected}, found {error.found} at {path}",
                          path=path, hint=error.hint) from error.__cause__
    except AttributeError as error:
        raise encode_error(e, f"{type(x).__qualname__} lacks a field, {error},") from error
    except RecursionError:
        raise encode_error(e, f"a field of {type(x).__qualname__} is nested too deep") from None
    if writer.keys is not None:
        return put_pairs(e, plain, False)
    put_other(e, <PyObject *>plain)
    e.opens[e.depth - 1].key = <PyObject *>writer.words
    incref(e.opens[e.depth - 1].key)
    return 0


@cython.final
cdef class FormWriter:
    """Takes an instance of a registered class apart: a record's tuple, or flat pairs of a map.

    names:   of its attributes, in order
    head:    what stands before them: the name of a record; the pair `__struct__`, module
    keys:    of the map, for each attribute; None for a record
    writers: for each attribute a function that makes a term of it, or None
    words:   how an error calls each part: the attributes; of a record also its name, first
    unset:   a value that is left out of the map; None where there is none
    """

    cdef tuple names
    cdef tuple head
    cdef tuple keys
    cdef tuple writers
    cdef tuple words
    cdef object unset

    def __init__(self, names, head, keys, writers, words, unset):
        self.names = tuple(names)
        self.head = tuple(head)
        self.keys = None if keys is None else tuple(keys)
        self.writers = tuple(writers)
        self.words = tuple(words)
        self.unset = unset
        if (len(self.writers) != len(self.names) or len(self.words) < len(self.names)
                or (self.keys is not None and len(self.keys) != len(self.names))):
            raise ValueError("a writer, a key and a word for each name")

    cdef tuple flat(self, object x):
        cdef list parts = list(self.head)
        cdef Py_ssize_t place
        cdef object value
        for place in range(len(self.names)):
            value = getattr(x, self.names[place])
            if self.keys is not None:
                if value is self.unset and self.unset is not None:
                    continue
                parts.append(self.keys[place])
            if self.writers[place] is not None:
                try:
                    value = self.writers[place](value)
                except Mismatch as error:
                    error.steps.append(self.words[place + len(self.words) - len(self.names)])
                    raise
            parts.append(value)
        return tuple(parts)


cdef object scalar(object x):
    """The number in a NumPy scalar or an array without dimensions, or what __index__ says of an
    object that is no container; else None."""
    kind = getattr(getattr(x, "dtype", None), "kind", None)
    if isinstance(kind, str):
        if getattr(x, "ndim", 1) != 0:
            return None
        if kind == "b":
            return bool(x)
        if kind == "f":
            return float(x)
        return int(x) if kind in "iu" else None
    if is_index(<PyObject *>x) and not is_sequence(<PyObject *>x):
        return int(x.__index__())
    return None


cdef tuple flat_pairs(object mapping):
    cdef list flat = []
    for key in mapping:
        flat.append(key)
        flat.append(mapping[key])
    return tuple(flat)


cdef object unsupported(Encoder *e, object x):
    hint = ""
    if PyObject_CheckBuffer(x):
        hint = "Wrap a buffer in tumen.Binary to send its bytes."
    elif isinstance(x, (set, frozenset)):
        hint = "Erlang has no set on the wire: send a list, or a map."
    elif hasattr(type(x), "__dataclass_fields__") or hasattr(type(x), "__struct_fields__"):
        hint = "tumen.struct, tumen.record or tumen.mapped register a class with its form."
    return encode_error(e, f"no Erlang term for {type(x).__module__}.{type(x).__qualname__}", hint)


cdef int put_int(Encoder *e, x) except -1:
    cdef Py_ssize_t n
    cdef bytes digits
    if put_simple(e, <PyObject *>x):
        return 0
    n = (x.bit_length() + 7) // 8
    if n > WIRE_COUNT_MAX:
        raise_size(e, "an integer with a size")
    digits = (-x if x < 0 else x).to_bytes(n, "little")
    put_reserve(e, n + TM_ETF_HEAD_SIZE_MAX)
    if n <= 255:
        e.w = tm_store_u8(tm_store_u8(e.w, TM_SMALL_BIG_EXT), <uint8_t>n)
    else:
        e.w = tm_store_u32(tm_store_u8(e.w, TM_LARGE_BIG_EXT), <uint32_t>n)
    e.w = tm_store_bytes(tm_store_u8(e.w, x < 0), PyBytes_AS_STRING(digits), n)
    return 0
