# The C face of the codec: what the engine binding cimports. The declarations of etf.h repeat only
# what is used here; etf.h holds the contracts.

from cpython.object cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "stdbool.h" nogil:
    ctypedef bint c_bool "bool"


cdef extern from "csrc/etf/inline.h" nogil:
    ctypedef struct tm_alloc:
        pass

    tm_alloc tm_alloc_libc(void *stats)

    ctypedef struct tm_bytes:
        const uint8_t *ptr
        size_t len

    tm_bytes tm_bytes_of(const void *ptr, size_t len)
    uint16_t tm_load_u16(const uint8_t *p)
    uint32_t tm_load_u32(const uint8_t *p)
    uint64_t tm_load_u64(const uint8_t *p)
    uint8_t *tm_store_u8(uint8_t *p, uint8_t v)
    uint8_t *tm_store_u16(uint8_t *p, uint16_t v)
    uint8_t *tm_store_u32(uint8_t *p, uint32_t v)
    uint8_t *tm_store_u64(uint8_t *p, uint64_t v)
    uint8_t *tm_store_bytes(uint8_t *p, const void *data, size_t len)

    ctypedef struct tm_buf:
        const tm_alloc *alloc
        uint8_t *ptr
        size_t len
        size_t cap
        size_t max

    int tm_buf_reserve(tm_buf *buf, size_t len)

    enum:
        TM_EPEER_LIMIT
        TM_EPEER_MALFORMED
        TM_ENOMEM
        TM_EUSE_LIMIT

        TM_ATOM_CHARS_MAX
        TM_ATOM_BYTES_MAX
        TM_ATOM_TABLE_COUNT_DEFAULT
        TM_DEPTH_DEFAULT
        TM_DEPTH_MAX
        TM_HASH_CHECK_COUNT_MIN
        TM_HASH_EQUAL_COUNT_MAX
        TM_KEY_DEPTH_MAX
        TM_KEY_NESTING_MAX
        TM_REF_WORDS_MAX
        TM_WALK_PATH_MAX

        TM_ETF_ATOM_SIZE_MAX
        TM_ETF_HEAD_SIZE_MAX
        TM_ETF_INTEGER_SIZE_MAX
        TM_ETF_PORT_SIZE_MAX
        TM_ETF_VERSION

        TM_ATOM_EXT
        TM_ATOM_UTF8_EXT
        TM_BINARY_EXT
        TM_BIT_BINARY_EXT
        TM_COMPRESSED
        TM_EXPORT_EXT
        TM_FLOAT_EXT
        TM_INTEGER_EXT
        TM_LARGE_BIG_EXT
        TM_LARGE_TUPLE_EXT
        TM_LIST_EXT
        TM_MAP_EXT
        TM_NEWER_REFERENCE_EXT
        TM_NEW_FLOAT_EXT
        TM_NEW_FUN_EXT
        TM_NEW_PID_EXT
        TM_NEW_PORT_EXT
        TM_NEW_REFERENCE_EXT
        TM_NIL_EXT
        TM_PID_EXT
        TM_PORT_EXT
        TM_REFERENCE_EXT
        TM_SMALL_ATOM_EXT
        TM_SMALL_ATOM_UTF8_EXT
        TM_SMALL_BIG_EXT
        TM_SMALL_INTEGER_EXT
        TM_SMALL_TUPLE_EXT
        TM_STRING_EXT
        TM_V4_PORT_EXT

    const uint64_t TM_DECODED_BYTES_DEFAULT
    const uint32_t TM_BIG_BYTES_DEFAULT
    const size_t TM_VIEW_BYTES_MIN

    ctypedef struct tm_atom:
        tm_bytes text
        c_bool latin1

    ctypedef struct tm_pid:
        tm_bytes node
        uint32_t id
        uint32_t serial
        uint32_t creation

    ctypedef struct tm_port:
        tm_bytes node
        uint64_t id
        uint32_t creation

    ctypedef struct tm_ref:
        tm_bytes node
        uint32_t creation
        uint32_t count
        uint32_t words[5]

    ctypedef struct tm_walk_limits:
        uint32_t depth_max
        uint32_t big_bytes_max
        uint64_t decoded_bytes_max
        uint32_t cache_refs

    ctypedef struct tm_walk_step:
        uint8_t tag
        uint8_t part
        uint32_t index
        size_t offset

    ctypedef struct tm_walk_result:
        size_t len
        uint64_t decoded_bytes
        uint32_t depth
        uint32_t path_len
        size_t offset
        const char *what
        tm_walk_step path[16]

    int tm_etf_walk(tm_bytes bytes, const tm_walk_limits *limits, const tm_alloc *alloc,
                    tm_walk_result *result)
    const uint8_t *tm_etf_skip(const uint8_t *ptr)
    c_bool tm_utf8_valid(tm_bytes bytes, size_t *chars)
    c_bool tm_ascii(tm_bytes bytes)

    int32_t tm_etf_take_i32(const uint8_t **p)
    double tm_etf_take_f64(const uint8_t **p)
    tm_atom tm_etf_take_atom(const uint8_t **p)
    tm_bytes tm_etf_take_big(const uint8_t **p, c_bool *negative)
    void tm_etf_take_pid(const uint8_t **p, tm_atom *node, tm_pid *pid)
    void tm_etf_take_port(const uint8_t **p, tm_atom *node, tm_port *port)
    void tm_etf_take_ref(const uint8_t **p, tm_atom *node, tm_ref *ref)

    c_bool tm_etf_same_short(const uint8_t *a, const uint8_t *b, size_t len)
    uint8_t *tm_etf_put_short(uint8_t *p, const uint8_t *data, size_t len)
    uint8_t *tm_etf_put_i64(uint8_t *p, int64_t value)
    uint8_t *tm_etf_put_u64(uint8_t *p, uint64_t value)
    uint8_t *tm_etf_put_atom(uint8_t *p, tm_bytes text)
    uint8_t *tm_etf_put_tuple(uint8_t *p, uint32_t arity)
    uint8_t *tm_etf_put_list(uint8_t *p, uint32_t count)
    uint8_t *tm_etf_put_nil(uint8_t *p)
    uint8_t *tm_etf_put_map(uint8_t *p, uint32_t count)
    uint8_t *tm_etf_put_binary(uint8_t *p, uint32_t len)
    uint8_t *tm_etf_put_bit_binary(uint8_t *p, uint32_t len, uint8_t bits)
    uint8_t *tm_etf_put_port(uint8_t *p, const tm_port *port)


# Options of term_build, to be or-ed.
cdef enum:
    TERM_BINARIES_UTF8 = 1  # binaries that are valid UTF-8 become str
    TERM_VIEWS = 2          # binaries of TM_VIEW_BYTES_MIN and more become memoryviews
    TERM_APART = 4          # as term_build_apart does it


cdef class Atom:
    cdef readonly str text
    cdef bytes wire            # the whole term, tag included: encoding is one copy
    cdef Py_hash_t hash_value  # salted
    cdef bint sealed           # set once __init__ has run: frozen from then on


cdef class Pid:
    cdef Atom node_atom        # may be Atom "true": only its text counts
    cdef readonly uint32_t id
    cdef readonly uint32_t serial
    cdef readonly uint32_t creation
    cdef bint sealed


cdef class Port:
    cdef Atom node_atom
    cdef readonly uint64_t id
    cdef readonly uint32_t creation
    cdef bint sealed


cdef class Reference:
    cdef Atom node_atom
    cdef readonly uint32_t creation
    cdef uint32_t count        # words in use, 0..5
    cdef uint32_t word[5]
    cdef bint sealed


# The term after the version byte → object. ptr must have passed tm_etf_walk and hold no atom-cache
# reference. Needs the GIL. Raises DecodeError for two equal map keys, LimitExceeded for maps nested
# in keys deeper than TM_KEY_NESTING_MAX, MemoryError; nothing else.
cdef object term_build(const uint8_t *ptr, size_t len, int options)

# The same on a thread that others need not wait for: the GIL is given away while a large binary is
# copied, and every millisecond else. InterruptedError soon after *cancelled was set. memory: as for
# term_build_views, or None.
cdef object term_build_apart(const uint8_t *ptr, const int *cancelled, object memory)

# The same, binaries of TM_VIEW_BYTES_MIN and more being views of the bytes at ptr, which stay there
# as long as the object `memory` lives.
cdef object term_build_views(const uint8_t *ptr, object memory)

# Appends the term, without version byte. On an exception buf is as it was. EncodeError,
# LimitExceeded (buf.max), MemoryError, or what a Mapping or an __index__ of the caller's raised.
cdef int term_encode(object term, tm_buf *buf) except -1

# Identifiers from the core's structs, and the other way; the spans are borrowed from the object.
cdef object make_atom(const uint8_t *utf8, size_t len)  # Atom, or True, False, None
cdef Pid make_pid(const tm_pid *pid)
cdef Reference make_ref(const tm_ref *ref)
cdef tm_bytes atom_bytes(Atom atom) noexcept
cdef void pid_fill(Pid pid, tm_pid *out) noexcept
cdef void ref_fill(Reference ref, tm_ref *out) noexcept
