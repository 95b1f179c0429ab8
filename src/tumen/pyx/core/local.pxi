# Messages between processes of one node: handed over as objects, without encoding.
#
# The receiver gets what decode(encode(message)) would make. What cannot change is shared: numbers,
# bytes, atoms, pids, references, and tuples of such. Lists and dicts are copied, a str becomes the
# bytes of its UTF-8. Everything else (subclasses, buffers, registered classes, maps with mixed keys)
# goes through the codec, that part alone.

cdef enum:
    # What LoopNode.send_to answers for a message that is no bytes: nothing is to be flushed.
    HANDED_OVER = 1
    NOT_HANDED_OVER = 2
    # Below so many levels a part goes through the codec, which does not recurse.
    LOCAL_DEPTH_MAX = 64
    # Most bytes of the external form of a term of each kind, without what is counted with it.
    LOCAL_LEAF_BYTES = 11
    LOCAL_HEAD_BYTES = 6

# Integers of at most so many bits have hashes of their own: decode makes a dict of them as keys.
cdef int64_t LOCAL_KEY_MAX = 1 << 60


# No term.
cdef object NULL_LEAF = object()


class _Unshared(Exception):
    """The message has to go as bytes: its encoding fails, and tells why."""


@cython.final
cdef class _Local:
    """A message that waits for its TUMEN_EVENT_LOCAL."""

    cdef object message
    cdef bytes reply       # words of the reply alias that it goes to, or None
    cdef uint64_t nbytes


cdef object local_leaf(object term, uint64_t *nbytes):
    """The term itself, or the bytes of a str; NULL_LEAF when it is of another kind."""
    cdef int overflow = 0
    kind = type(term)
    if kind is bytes:
        nbytes[0] += LOCAL_HEAD_BYTES + <uint64_t>PyBytes_GET_SIZE(term)
        return term
    if kind is Atom:
        nbytes[0] += <uint64_t>PyBytes_GET_SIZE((<Atom>term).wire)
        return term
    if kind is int:
        PyLong_AsLongLongAndOverflow(term, &overflow)
        nbytes[0] += LOCAL_LEAF_BYTES
        if overflow:
            nbytes[0] += <uint64_t>(term.bit_length() // 8)
        return term
    if kind is str:
        try:
            text = PyUnicode_AsUTF8String(term)
        except UnicodeEncodeError:
            raise _Unshared()
        nbytes[0] += LOCAL_HEAD_BYTES + <uint64_t>PyBytes_GET_SIZE(text)
        return text
    if kind is float:
        if not isfinite(PyFloat_AS_DOUBLE(term)):
            raise _Unshared()
        nbytes[0] += LOCAL_LEAF_BYTES
        return term
    if term is None or term is True or term is False:
        nbytes[0] += LOCAL_LEAF_BYTES
        return term
    if kind is Pid:
        nbytes[0] += 2 * LOCAL_LEAF_BYTES \
            + <uint64_t>PyBytes_GET_SIZE((<Pid>term).node_atom.wire)
        return term
    if kind is Reference:
        nbytes[0] += 3 * LOCAL_LEAF_BYTES \
            + <uint64_t>PyBytes_GET_SIZE((<Reference>term).node_atom.wire)
        return term
    return NULL_LEAF


cdef object local_copy(object term, int depth, uint64_t *nbytes):
    """What a process of the same node gets for `term`; adds what it weighs, at least the size of its
    external form. `_Unshared`, or what code of the caller's raises."""
    cdef object copy = local_leaf(term, nbytes)
    if copy is not NULL_LEAF:
        return copy
    if depth < LOCAL_DEPTH_MAX:
        kind = type(term)
        if kind is tuple:
            return local_tuple(<tuple>term, depth, nbytes)
        if kind is list:
            return local_list(<list>term, depth, nbytes)
        if kind is dict:
            copy = local_dict(<dict>term, depth, nbytes)
            if copy is not NULL_LEAF:
                return copy
    return local_through_codec(term, nbytes)


cdef object local_tuple(tuple term, int depth, uint64_t *nbytes):
    """The tuple itself while nothing in it has to be copied."""
    cdef Py_ssize_t i, count = PyTuple_GET_SIZE(term)
    cdef list parts = None
    cdef object part, copy
    nbytes[0] += LOCAL_HEAD_BYTES
    for i in range(count):
        part = <object>PyTuple_GET_ITEM(term, i)
        copy = local_copy(part, depth + 1, nbytes)
        if parts is not None:
            parts.append(copy)
        elif copy is not part:
            parts = list(term[:i])
            parts.append(copy)
    return term if parts is None else tuple(parts)


cdef object local_list(list term, int depth, uint64_t *nbytes):
    cdef list copy = []
    cdef Py_ssize_t i = 0
    nbytes[0] += LOCAL_HEAD_BYTES
    # The caller's code may run on the way, and may change the list.
    while i < PyList_GET_SIZE(term):
        copy.append(local_copy(term[i], depth + 1, nbytes))
        i += 1
    return copy


cdef object local_dict(dict term, int depth, uint64_t *nbytes):
    """NULL_LEAF for keys that might meet as one term, or that a dict might lose."""
    cdef dict copy = {}
    cdef bint texts = False, binaries = False
    cdef uint64_t weight = LOCAL_HEAD_BYTES
    # A copy: the caller's code may run on the way, and may change the dict.
    for key, value in list(term.items()):
        kind = type(key)
        if kind is str:
            texts = True
        elif kind is bytes:
            binaries = True
        elif kind is int:
            if not -LOCAL_KEY_MAX < key < LOCAL_KEY_MAX:
                return NULL_LEAF
        elif kind is not Atom:
            return NULL_LEAF
        if texts and binaries:
            return NULL_LEAF
        key = local_leaf(key, &weight)
        copy[key] = local_copy(value, depth + 1, &weight)
    nbytes[0] += weight
    return copy


cdef object local_through_codec(object term, uint64_t *nbytes):
    cdef tm_buf buf
    buf.alloc = &ALLOC
    buf.ptr = NULL
    buf.len = buf.cap = buf.max = 0
    try:
        term_encode(term, &buf)
        nbytes[0] += buf.len
        return term_build(buf.ptr, buf.len, 0)
    except (errors.EncodeError, errors.DecodeError, errors.LimitExceeded):
        raise _Unshared()
    finally:
        tm_buf_fini(&buf)
