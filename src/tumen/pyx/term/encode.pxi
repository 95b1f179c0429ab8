# `encode` and its kin.

cdef void encoder_init(Encoder *e, uint8_t *base, size_t size, tm_buf *buf,
                       bint sorted_keys) noexcept:
    e.out.base = base
    e.out.end = base + size
    e.out.made = NULL
    e.out.buf = buf
    e.opens = e.small
    e.cap = OPENS_SMALL
    e.depth = 1
    e.sorted_keys = sorted_keys


cdef void encoder_fini(Encoder *e) noexcept:
    while e.depth > 1:
        open_pop(e)
    if e.opens != e.small:
        PyMem_Free(e.opens)


# encode_run without the check of its answer, which here needs more than a traceback. A `try` would
# cost each small term a tenth of its time.
ctypedef uint8_t *(*encode_call)(Encoder *e, PyObject *root, uint8_t *start) noexcept


cdef int encode_failed(Encoder *e) except -1:
    """Frees what an encoder holds, under the exception that is set."""
    cdef PyObject *error[3]
    err_fetch(&error[0], &error[1], &error[2])
    xdecref(e.out.made)
    encoder_fini(e)
    err_restore(error[0], error[1], error[2])
    return -1


cdef bytes encode_bytes(object term, bint version, bint sorted_keys):
    cdef uint8_t small[OUT_SMALL]
    cdef Encoder e
    cdef uint8_t *w = small
    encoder_init(&e, small, OUT_SMALL, NULL, sorted_keys)
    if version:
        w = tm_store_u8(w, TM_ETF_VERSION)
    w = (<encode_call>encode_run)(&e, <PyObject *>term, w)
    if w == NULL:
        encode_failed(&e)
    encoder_fini(&e)
    if e.out.made == NULL:
        return PyBytes_FromStringAndSize(<const char *>small, w - small)
    bytes_resize(&e.out.made, w - e.out.base)
    return take_bytes(e.out.made)


cdef int term_encode(object term, tm_buf *buf) except -1:
    cdef Encoder e
    cdef size_t before = buf.len
    cdef uint8_t *w
    encoder_init(&e, buf.ptr, buf.cap, buf, False)
    w = (<encode_call>encode_run)(&e, <PyObject *>term, e.out.base + before)
    if w == NULL:
        buf.len = before
        encode_failed(&e)
    buf.len = w - e.out.base
    encoder_fini(&e)
    return 0


cdef bytes canonical(object term):
    """Bytes that are equal exactly when two terms are =:=. Runs for keys within keys in itself."""
    enter_recursive(b" in a key of a map")
    try:
        return encode_bytes(term, False, True)
    finally:
        leave_recursive()


cdef bint identical(object a, object b) except -1:
    """Erlang's =:= ; Python's == where one of the two holds what is no term."""
    if a is b:
        return True
    try:
        return canonical(a) == canonical(b)
    except EncodeError:
        return alike(a, b)


cdef bint alike(object a, object b) except -1:
    if type(a) is ImproperList and type(b) is ImproperList:
        return a.items == b.items and a.tail == b.tail
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return len(a) == len(b) and all([key in b and b[key] == a[key] for key in a])
    return a == b


def encode(term, /):
    """`term` as an external term: bytes with the version byte, as OTP 26 and later write them.

    An instance of a class that `tumen.typed` has registered (`struct`, `record`, `mapped`) is the
    struct, record or map that it stands for.

    An object that stands for no Erlang term is an EncodeError that names its path and type: NaN
    and infinities, a str with surrogates, a map of two keys that are one term, an atom's text as
    Atom("true"), a nesting of more than 1,000,000 levels (which an object that contains itself
    has). Maps keep their order.
    """
    return encode_bytes(term, True, False)
