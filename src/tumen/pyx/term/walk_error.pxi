# The walk before decoding, and the sentence for a term that it refuses.

cdef size_t walk(bytes data, size_t start, uint32_t depth_max, uint32_t big_bytes_max,
                 uint64_t decoded_bytes_max) except 0:
    """Length of the term at data[start:]; raises DecodeError or LimitExceeded."""
    cdef tm_walk_limits limits
    cdef tm_walk_result result
    cdef tm_bytes span
    cdef int rc
    limits.depth_max = depth_max
    limits.big_bytes_max = big_bytes_max
    limits.decoded_bytes_max = decoded_bytes_max
    limits.cache_refs = 0
    span.ptr = <const uint8_t *>PyBytes_AS_STRING(data) + start
    span.len = PyBytes_GET_SIZE(data) - start
    rc = tm_etf_walk(span, &limits, &libc_alloc, &result)
    if rc == 0:
        return result.len
    raise_walk(data, start, &limits, &result, rc)


cdef int raise_walk(bytes data, size_t start, const tm_walk_limits *limits,
                    const tm_walk_result *result, int rc) except -1:
    cdef str what, path
    if rc != TM_EPEER_LIMIT and rc != TM_EPEER_MALFORMED:
        raise MemoryError()
    what = result.what.decode("ascii")
    path = walk_path(<const uint8_t *>PyBytes_AS_STRING(data) + start, result)
    offset = start + result.offset
    message = f"{what} at {path}, byte {offset}"
    if rc == TM_EPEER_MALFORMED:
        raise DecodeError(message, path=path, offset=offset)
    if result.depth > limits.depth_max:
        limit = "depth_max"
    elif result.decoded_bytes > limits.decoded_bytes_max:
        limit = "decoded_bytes_max"
    else:
        limit = "big_bytes_max"
    raise LimitExceeded(message, limit=limit, path=path, offset=offset,
                        hint=f"Raise {limit}, if the sender is to be trusted with it.")


cdef str walk_path(const uint8_t *term, const tm_walk_result *result):
    cdef uint32_t kept = min(result.path_len, <uint32_t>TM_WALK_PATH_MAX)
    cdef uint32_t i, pair
    cdef const tm_walk_step *step
    cdef const uint8_t *p
    cdef list parts = ["$"]
    for i in range(kept):
        step = &result.path[i]
        if step.tag == TM_MAP_EXT and step.part == 0:
            parts.append(f".key({step.index})")
        elif step.tag == TM_MAP_EXT:
            # The walk was past this key, so its bytes are sound.
            p = term + step.offset + 5
            for pair in range(2 * step.index):
                p = tm_etf_skip(p)
            parts.append(key_step_at(p, step.index))
        elif step.tag == TM_LIST_EXT and step.part:
            parts.append(".tail")
        elif step.tag == TM_NEW_FUN_EXT:
            parts.append(f".free[{step.index}]")
        else:
            parts.append(f"[{step.index}]")
    if result.path_len > kept:
        parts.append("…")
    return "".join(parts)


cdef str key_step_at(const uint8_t *p, uint32_t pair):
    cdef uint8_t tag = p[0]
    if tag in (TM_SMALL_TUPLE_EXT, TM_LARGE_TUPLE_EXT, TM_LIST_EXT, TM_STRING_EXT, TM_MAP_EXT,
               TM_LARGE_BIG_EXT, TM_NEW_FUN_EXT):
        return f".value({pair})"
    return key_step(term_build(p, tm_etf_skip(p) - p, 0))


cdef str key_step(object key):
    """How a path names the value of a key."""
    if type(key) is Atom:
        text = (<Atom>key).text
    elif isinstance(key, bytes):
        text = key[:64].decode("utf-8", "replace")
    elif isinstance(key, str):
        text = key
    else:
        return "{" + safe_repr(key)[:64] + "}"
    return f".{text}" if text.isidentifier() and len(text) <= 64 else "{" + repr(text[:64]) + "}"
