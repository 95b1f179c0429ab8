#include "leaf.h"

/* No atom-cache reference is legal here, and no reader cares for the size of what it borrows. */
static tm_leaf leaf_of(const tm_cursor *c)
{
    return (tm_leaf){.end = c->end, .big_bytes_max = UINT32_MAX};
}

/* The same inside a frame. */
static tm_leaf leaf_in(const tm_cursor *c, const tm_walk_limits *limits)
{
    return (tm_leaf){.end = c->end, .big_bytes_max = UINT32_MAX, .cache_refs = limits->cache_refs};
}

/* An atom that a leaf has accepted. */
static tm_atom take_atom_in(const uint8_t **p, const tm_walk_limits *limits)
{
    if (**p != TM_ATOM_CACHE_REF) return tm_etf_take_atom(p);
    tm_atom atom = {.text = limits->cache_atoms[(*p)[1]]};
    *p += 2;
    return atom;
}

static int leaf_error(const tm_leaf *leaf)
{
    return leaf->what == tm_leaf_cut ? TM_NEED_DATA : TM_EPEER_MALFORMED;
}

/* -- atoms and identifiers --------------------------------------------------------------------- */

int tm_etf_read_atom(tm_cursor *c, tm_atom *atom)
{
    const uint8_t *p = c->ptr;
    size_t left = tm_cursor_left(c);
    /* Almost all of them. */
    if (left >= 2 && *p == TM_SMALL_ATOM_UTF8_EXT && left - 2 >= p[1] &&
        tm_leaf_ascii(p + 2, p[1], c->end)) {
        *atom = (tm_atom){.text = {p + 2, p[1]}};
        c->ptr += 2 + (size_t)p[1];
        return 0;
    }
    tm_leaf leaf = leaf_of(c);
    if (!tm_leaf_atom(&leaf, p)) return leaf_error(&leaf);
    *atom = tm_etf_take_atom(&c->ptr);
    return 0;
}

/* Latin-1 outside ASCII is transcoded. */
static tm_bytes atom_utf8(tm_atom atom, uint8_t *scratch)
{
    if (!atom.latin1) return atom.text;
    uint8_t *to = scratch;
    for (size_t i = 0; i < atom.text.len; i++) {
        uint8_t byte = atom.text.ptr[i];
        if (byte < 0x80) {
            *to++ = byte;
        } else {
            *to++ = (uint8_t)(0xc0 | byte >> 6);
            *to++ = (uint8_t)(0x80 | (byte & 0x3f));
        }
    }
    return (tm_bytes){scratch, (size_t)(to - scratch)};
}

int tm_etf_read_atom_utf8(tm_cursor *c, uint8_t *scratch, tm_bytes *text)
{
    tm_atom atom;
    int rc = tm_etf_read_atom(c, &atom);
    if (!rc) *text = atom_utf8(atom, scratch);
    return rc;
}

int tm_etf_read_atom_utf8_in(tm_cursor *c, const tm_walk_limits *limits, uint8_t *scratch,
                             tm_bytes *text)
{
    tm_leaf leaf = leaf_in(c, limits);
    if (!tm_leaf_atom(&leaf, c->ptr)) return leaf_error(&leaf);
    *text = atom_utf8(take_atom_in(&c->ptr, limits), scratch);
    return 0;
}

static const tm_walk_limits NO_FRAME = {.cache_refs = 0};

int tm_etf_read_pid_in(tm_cursor *c, const tm_walk_limits *limits, tm_pid *pid)
{
    const uint8_t *p = c->ptr;
    tm_leaf leaf = leaf_in(c, limits);
    if (!tm_leaf_pid(&leaf, p)) return leaf_error(&leaf);
    uint8_t tag = tm_etf_take_u8(&p);
    tm_atom node = take_atom_in(&p, limits);
    if (node.latin1) return TM_EPEER_MALFORMED;
    pid->node = node.text;
    tm_etf_take_pid_rest(&p, tag, pid);
    c->ptr = p;
    return 0;
}

int tm_etf_read_pid(tm_cursor *c, tm_pid *pid) { return tm_etf_read_pid_in(c, &NO_FRAME, pid); }

int tm_etf_read_ref_in(tm_cursor *c, const tm_walk_limits *limits, tm_ref *ref)
{
    const uint8_t *p = c->ptr;
    tm_leaf leaf = leaf_in(c, limits);
    if (!tm_leaf_ref(&leaf, p)) return leaf_error(&leaf);
    uint8_t tag = tm_etf_take_u8(&p);
    ref->count = tag == TM_REFERENCE_EXT ? 1 : tm_etf_take_u16(&p);
    tm_atom node = take_atom_in(&p, limits);
    if (node.latin1) return TM_EPEER_MALFORMED;
    ref->node = node.text;
    tm_etf_take_ref_rest(&p, tag, ref);
    c->ptr = p;
    return 0;
}

int tm_etf_read_ref(tm_cursor *c, tm_ref *ref) { return tm_etf_read_ref_in(c, &NO_FRAME, ref); }

bool tm_ref_equal(const tm_ref *a, const tm_ref *b)
{
    return a->count == b->count && a->creation == b->creation && tm_bytes_equal(a->node, b->node) &&
           memcmp(a->words, b->words, a->count * sizeof a->words[0]) == 0;
}

/* -- integers ---------------------------------------------------------------------------------- */

/* Sign and magnitude of any integer whose magnitude has 64 bits. */
static int read_magnitude(tm_cursor *c, uint64_t *magnitude, bool *negative)
{
    const uint8_t *p = c->ptr;
    size_t left = tm_cursor_left(c);
    if (left >= 2 && *p == TM_SMALL_INTEGER_EXT) {
        *magnitude = p[1];
        *negative = false;
        c->ptr += 2;
        return 0;
    }
    if (left >= 5 && *p == TM_INTEGER_EXT) {
        int64_t value = (int32_t)tm_load_u32(p + 1);
        *negative = value < 0;
        *magnitude = (uint64_t)(value < 0 ? -value : value);
        c->ptr += 5;
        return 0;
    }
    if (!left) return TM_NEED_DATA;
    if (*p == TM_SMALL_INTEGER_EXT || *p == TM_INTEGER_EXT) return TM_NEED_DATA;
    if (*p != TM_SMALL_BIG_EXT && *p != TM_LARGE_BIG_EXT) return TM_EPEER_MALFORMED;
    tm_leaf leaf = leaf_of(c);
    if (!tm_leaf_any(&leaf, p)) return leaf_error(&leaf);
    tm_bytes digits = tm_etf_take_big(&p, negative);
    uint64_t value = 0;
    for (size_t i = digits.len; i-- > 0;) {
        if (value >> 56) return TM_EPEER_MALFORMED;
        value = value << 8 | digits.ptr[i];
    }
    *magnitude = value;
    *negative = *negative && value;
    c->ptr = p;
    return 0;
}

int tm_etf_read_u64(tm_cursor *c, uint64_t *value)
{
    tm_cursor at = *c;
    uint64_t magnitude;
    bool negative;
    int rc = read_magnitude(&at, &magnitude, &negative);
    if (rc) return rc;
    if (negative) return TM_EPEER_MALFORMED;
    *value = magnitude;
    *c = at;
    return 0;
}

int tm_etf_read_i64(tm_cursor *c, int64_t *value)
{
    tm_cursor at = *c;
    uint64_t magnitude;
    bool negative;
    int rc = read_magnitude(&at, &magnitude, &negative);
    if (rc) return rc;
    if (magnitude > (uint64_t)INT64_MAX + negative) return TM_EPEER_MALFORMED;
    *value = (int64_t)(negative ? 0 - magnitude : magnitude);
    *c = at;
    return 0;
}

/* -- containers and terms ---------------------------------------------------------------------- */

int tm_etf_read_tuple(tm_cursor *c, uint32_t *arity)
{
    const uint8_t *p = c->ptr;
    size_t left = tm_cursor_left(c);
    if (!left) return TM_NEED_DATA;
    if (*p != TM_SMALL_TUPLE_EXT && *p != TM_LARGE_TUPLE_EXT) return TM_EPEER_MALFORMED;
    size_t head = *p == TM_SMALL_TUPLE_EXT ? 2 : 5;
    if (left < head) return TM_NEED_DATA;
    uint32_t count = head == 2 ? p[1] : tm_load_u32(p + 1);
    /* Each element is at least one byte: nobody needs to make room for a count that cannot be. */
    if (count > left - head) return TM_NEED_DATA;
    *arity = count;
    c->ptr += head;
    return 0;
}

int tm_etf_read_list(tm_cursor *c, uint32_t *count)
{
    tm_cursor at = *c;
    for (;;) {
        uint8_t tag;
        uint32_t elements;
        if (tm_cursor_u8(&at, &tag)) return TM_NEED_DATA;
        if (tag == TM_NIL_EXT) {
            elements = 0;
        } else {
            if (tag != TM_LIST_EXT) return TM_EPEER_MALFORMED;
            if (tm_cursor_u32(&at, &elements)) return TM_NEED_DATA;
            if (elements >= tm_cursor_left(&at)) return TM_NEED_DATA;
            /* A head of no elements denotes its tail. */
            if (!elements) continue;
        }
        *count = elements;
        *c = at;
        return 0;
    }
}

int tm_etf_read_term(tm_cursor *c, const tm_walk_limits *limits, const tm_alloc *alloc,
                     tm_bytes *term)
{
    tm_walk_result result;
    int rc = tm_etf_walk((tm_bytes){c->ptr, tm_cursor_left(c)}, limits, alloc, &result);
    if (rc && rc != TM_EPEER_LIMIT) return rc;
    *term = (tm_bytes){c->ptr, result.len};
    if (!rc) c->ptr += result.len;
    return rc;
}
