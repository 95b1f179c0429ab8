# `decode`.

cdef bytes inflate(bytes data, uint64_t decoded_bytes_max):
    """The term of `131, 80, size, zlib`, as if it had come plain: with a version byte before it."""
    cdef uint64_t claimed
    if len(data) < 6:
        raise DecodeError("truncated: a compressed term has a size of 4 bytes", offset=2)
    claimed = tm_load_u32(<const uint8_t *>PyBytes_AS_STRING(data) + 2)
    if claimed > decoded_bytes_max:
        raise LimitExceeded(f"a compressed term of {claimed} bytes", limit="decoded_bytes_max",
                            offset=2)
    engine = zlib.decompressobj()
    try:
        # max_length bounds what is made, whatever the data would swell to.
        term = engine.decompress(data[6:], claimed + 1)
    except zlib.error as error:
        raise DecodeError(f"the compressed data is damaged: {error}", offset=6) from None
    if <uint64_t>len(term) != claimed:
        raise DecodeError(f"a compressed term is not the {claimed} bytes that it claims", offset=2)
    if not engine.eof:
        raise DecodeError("the compressed data is truncated", offset=len(data))
    if engine.unused_data:
        unused = len(engine.unused_data)
        raise DecodeError(f"bytes after the term: {unused}", offset=len(data) - unused)
    return b"\x83" + term


# Of tumen.typed, which needs this module and so cannot be imported by it at once.
cdef object typed_plan_of = None
cdef object typed_read = None


cdef object plan_of(object as_):
    global typed_plan_of, typed_read
    if typed_plan_of is None:
        from tumen.typed.compiler import plan_of as found
        from tumen.typed.plans import read
        typed_read = read
        typed_plan_of = found
    return typed_plan_of(as_)


def decode(data, /, *, as_=None, binaries="bytes", views=False, depth_max=None, big_bytes_max=None,
           decoded_bytes_max=None):
    """The term in `data`, an external term with its version byte, compressed or not.

    Any bytes may be given: they are validated as a whole before an object is made. DecodeError
    tells where they are malformed, LimitExceeded which bound they are over.

    as_:               a type, of which the answer is then: see `tumen.typed`. A term of another type
                       is a DecodeError
    binaries:          ``"bytes"``, or ``"utf8"``: `str` where a binary is valid UTF-8, else `bytes`
    views:             binaries of 64 KiB and more become a `memoryview`, each on its own memory
    depth_max:         nesting, levels; 1,024 by default, at most 1,000,000
    big_bytes_max:     digits of one integer, bytes; 64 KiB by default
    decoded_bytes_max: estimated size of all objects, and size of an inflated term, bytes; 1 GiB
                       by default
    """
    cdef int options = 0
    cdef bytes term
    cdef size_t used
    cdef uint32_t depth = TM_DEPTH_DEFAULT
    cdef uint32_t big = TM_BIG_BYTES_DEFAULT
    cdef uint64_t decoded = TM_DECODED_BYTES_DEFAULT
    cdef object plan = None
    if depth_max is not None:
        depth = depth_max
    if big_bytes_max is not None:
        big = big_bytes_max
    if decoded_bytes_max is not None:
        decoded = decoded_bytes_max
    if binaries != "bytes":
        if binaries != "utf8":
            raise ValueError('binaries must be "bytes" or "utf8"')
        options = TERM_BINARIES_UTF8
    if views:
        options |= TERM_VIEWS
    if as_ is not None:
        plan = plan_of(as_)
        if plan.text:
            options |= TERM_BINARIES_UTF8
    if depth > TM_DEPTH_MAX:
        raise ValueError(f"depth_max must be at most {TM_DEPTH_MAX}")
    # A copy of what others can write to: the bytes must not change between walk and building.
    term = data if type(data) is bytes else memoryview(data).tobytes()
    if PyBytes_GET_SIZE(term) < 2 or term[0] != TM_ETF_VERSION:
        raise_version(term)
    if term[1] == TM_COMPRESSED:
        term = inflate(term, decoded)
    used = walk(term, 1, depth, big, decoded) + 1
    if used != <size_t>PyBytes_GET_SIZE(term):
        raise DecodeError(f"bytes after the term: {PyBytes_GET_SIZE(term) - used}", offset=used)
    value = term_build(<const uint8_t *>PyBytes_AS_STRING(term) + 1, used - 1, options)
    return value if as_ is None else typed_read(plan, value)


cdef int raise_version(bytes term) except -1:
    if term and term[0] != TM_ETF_VERSION:
        raise DecodeError(f"an external term starts with {TM_ETF_VERSION}, not {term[0]}", offset=0)
    raise DecodeError("truncated: no term after the version byte" if term else "no bytes",
                      offset=len(term))
