/* Reading walked terms and writing tags without a check: for the object builder and the encoder,
 * whose loops are too hot for a call a term.
 *
 * tm_etf_take_* trust their bytes: only for terms that tm_etf_walk has accepted, and that hold no
 * atom-cache reference (walked with cache_refs 0, or copied by tm_etf_expand). tm_etf_put_* trust
 * their room: reserve the TM_ETF_*_SIZE_MAX of what is put. Each advances the pointer. */
#ifndef TM_ETF_INLINE_H
#define TM_ETF_INLINE_H

#include "etf.h"

/* -- sizes of what tm_etf_put_* writes, bytes -------------------------------------------------- */

/* tag, length and sign of a SMALL_BIG_EXT and eight digits */
#define TM_ETF_INTEGER_SIZE_MAX 11
#define TM_ETF_FLOAT_SIZE 9
/* tag and a 32-bit count: tuple, list, map, binary; one more in LARGE_BIG_EXT and BIT_BINARY_EXT */
#define TM_ETF_HEAD_SIZE_MAX 6
/* tag and a 16-bit length, then the text */
#define TM_ETF_ATOM_SIZE_MAX (3 + TM_ATOM_BYTES_MAX)
#define TM_ETF_PID_SIZE_MAX (1 + TM_ETF_ATOM_SIZE_MAX + 12)
#define TM_ETF_PORT_SIZE_MAX (1 + TM_ETF_ATOM_SIZE_MAX + 12)
#define TM_ETF_REF_SIZE_MAX (3 + TM_ETF_ATOM_SIZE_MAX + 4 + 4 * TM_REF_WORDS_MAX)

/* -- text -------------------------------------------------------------------------------------- */

#define TM_ASCII_MASK 0x8080808080808080ULL

static inline bool tm_ascii(tm_bytes bytes)
{
    uint64_t word, seen = 0;
    size_t i = 0;
    for (; i + 8 <= bytes.len; i += 8) {
        memcpy(&word, bytes.ptr + i, 8);
        seen |= word;
    }
    for (; i < bytes.len; i++) seen |= bytes.ptr[i];
    return (seen & TM_ASCII_MASK) == 0;
}

/* Whether two texts of one length are the same; up to 16 bytes go without a call. */
static inline bool tm_etf_same_short(const uint8_t *a, const uint8_t *b, size_t len)
{
    uint64_t word[4];
    uint32_t half[4];
    if (len > 16) return memcmp(a, b, len) == 0;
    if (len >= 8) {
        memcpy(&word[0], a, 8);
        memcpy(&word[1], b, 8);
        memcpy(&word[2], a + len - 8, 8);
        memcpy(&word[3], b + len - 8, 8);
        return ((word[0] ^ word[1]) | (word[2] ^ word[3])) == 0;
    }
    if (len >= 4) {
        memcpy(&half[0], a, 4);
        memcpy(&half[1], b, 4);
        memcpy(&half[2], a + len - 4, 4);
        memcpy(&half[3], b + len - 4, 4);
        return ((half[0] ^ half[1]) | (half[2] ^ half[3])) == 0;
    }
    for (size_t i = 0; i < len; i++)
        if (a[i] != b[i]) return false;
    return true;
}

/* -- taking ------------------------------------------------------------------------------------ */

static inline uint8_t tm_etf_take_u8(const uint8_t **p) { return *(*p)++; }

static inline uint16_t tm_etf_take_u16(const uint8_t **p)
{
    uint16_t value = tm_load_u16(*p);
    *p += 2;
    return value;
}

static inline uint32_t tm_etf_take_u32(const uint8_t **p)
{
    uint32_t value = tm_load_u32(*p);
    *p += 4;
    return value;
}

static inline uint64_t tm_etf_take_u64(const uint8_t **p)
{
    uint64_t value = tm_load_u64(*p);
    *p += 8;
    return value;
}

/* The eight bytes after NEW_FLOAT_EXT. */
static inline double tm_etf_take_f64(const uint8_t **p)
{
    uint64_t bits = tm_etf_take_u64(p);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* From here on *p is at the tag. */

static inline tm_atom tm_etf_take_atom(const uint8_t **p)
{
    uint8_t tag = tm_etf_take_u8(p);
    bool small = tag == TM_SMALL_ATOM_UTF8_EXT || tag == TM_SMALL_ATOM_EXT;
    size_t len = small ? tm_etf_take_u8(p) : tm_etf_take_u16(p);
    tm_atom atom = {.text = {*p, len}};
    atom.latin1 = (tag == TM_ATOM_EXT || tag == TM_SMALL_ATOM_EXT) && !tm_ascii(atom.text);
    *p += len;
    return atom;
}

/* SMALL_INTEGER_EXT or INTEGER_EXT */
static inline int32_t tm_etf_take_i32(const uint8_t **p)
{
    if (tm_etf_take_u8(p) == TM_SMALL_INTEGER_EXT) return tm_etf_take_u8(p);
    return (int32_t)tm_etf_take_u32(p);
}

/* SMALL_BIG_EXT or LARGE_BIG_EXT: the digits, least significant first, borrowed. */
static inline tm_bytes tm_etf_take_big(const uint8_t **p, bool *negative)
{
    uint8_t tag = tm_etf_take_u8(p);
    size_t len = tag == TM_SMALL_BIG_EXT ? tm_etf_take_u8(p) : tm_etf_take_u32(p);
    *negative = tm_etf_take_u8(p) != 0;
    tm_bytes digits = {*p, len};
    *p += len;
    return digits;
}

/* The identifiers in all their forms. node may be Latin-1; pid->node is its text as it stands. */

/* What follows the node of a pid. */
static inline void tm_etf_take_pid_rest(const uint8_t **p, uint8_t tag, tm_pid *pid)
{
    pid->id = tm_etf_take_u32(p);
    pid->serial = tm_etf_take_u32(p);
    pid->creation = tag == TM_NEW_PID_EXT ? tm_etf_take_u32(p) : tm_etf_take_u8(p);
}

static inline void tm_etf_take_pid(const uint8_t **p, tm_atom *node, tm_pid *pid)
{
    uint8_t tag = tm_etf_take_u8(p);
    *node = tm_etf_take_atom(p);
    pid->node = node->text;
    tm_etf_take_pid_rest(p, tag, pid);
}

static inline void tm_etf_take_port(const uint8_t **p, tm_atom *node, tm_port *port)
{
    uint8_t tag = tm_etf_take_u8(p);
    *node = tm_etf_take_atom(p);
    port->node = node->text;
    port->id = tag == TM_V4_PORT_EXT ? tm_etf_take_u64(p) : tm_etf_take_u32(p);
    port->creation = tag == TM_PORT_EXT ? tm_etf_take_u8(p) : tm_etf_take_u32(p);
}

/* What follows the node of a reference, whose count is set. */
static inline void tm_etf_take_ref_rest(const uint8_t **p, uint8_t tag, tm_ref *ref)
{
    if (tag == TM_REFERENCE_EXT) {
        ref->words[0] = tm_etf_take_u32(p);
        ref->creation = tm_etf_take_u8(p);
        return;
    }
    ref->creation = tag == TM_NEWER_REFERENCE_EXT ? tm_etf_take_u32(p) : tm_etf_take_u8(p);
    for (uint32_t i = 0; i < ref->count; i++) ref->words[i] = tm_etf_take_u32(p);
}

static inline void tm_etf_take_ref(const uint8_t **p, tm_atom *node, tm_ref *ref)
{
    uint8_t tag = tm_etf_take_u8(p);
    ref->count = tag == TM_REFERENCE_EXT ? 1 : tm_etf_take_u16(p);
    *node = tm_etf_take_atom(p);
    ref->node = node->text;
    tm_etf_take_ref_rest(p, tag, ref);
}

/* -- putting ----------------------------------------------------------------------------------- */

/* Bytes that are mostly few: names, keys, whole atoms. Up to 16 of them go without a call. */
static inline uint8_t *tm_etf_put_short(uint8_t *p, const uint8_t *from, size_t len)
{
    uint64_t first, last;
    uint32_t head, tail;
    if (len > 16) {
        memcpy(p, from, len);
    } else if (len >= 8) {
        memcpy(&first, from, 8);
        memcpy(&last, from + len - 8, 8);
        memcpy(p, &first, 8);
        memcpy(p + len - 8, &last, 8);
    } else if (len >= 4) {
        memcpy(&head, from, 4);
        memcpy(&tail, from + len - 4, 4);
        memcpy(p, &head, 4);
        memcpy(p + len - 4, &tail, 4);
    } else if (len) {
        p[0] = from[0];
        p[len >> 1] = from[len >> 1];
        p[len - 1] = from[len - 1];
    }
    return p + len;
}

/* A magnitude and a sign, in the shortest form OTP uses. */
static inline uint8_t *tm_etf_put_big(uint8_t *p, uint64_t magnitude, bool negative)
{
    uint8_t *count = p + 1;
    *p = TM_SMALL_BIG_EXT;
    p[2] = negative;
    for (p += 3; magnitude; magnitude >>= 8) *p++ = (uint8_t)magnitude;
    *count = (uint8_t)(p - count - 2);
    return p;
}

/* Small and 32-bit ones without a branch on which it is: see run_mixed_integers. */
static inline uint8_t *tm_etf_put_i64(uint8_t *p, int64_t value)
{
    if (value >= INT32_MIN && value <= INT32_MAX) {
        uint32_t word = (uint32_t)value, small = word <= UINT8_MAX;
        p[0] = (uint8_t)(TM_INTEGER_EXT - small);
        tm_store_u32(p + 1, word << 24 * small);
        return p + 5 - 3 * small;
    }
    uint64_t magnitude = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    return tm_etf_put_big(p, magnitude, value < 0);
}
static_assert(TM_INTEGER_EXT == TM_SMALL_INTEGER_EXT + 1, "tm_etf_put_i64 tells them by that");

static inline uint8_t *tm_etf_put_u64(uint8_t *p, uint64_t value)
{
    if (value <= INT64_MAX) return tm_etf_put_i64(p, (int64_t)value);
    return tm_etf_put_big(p, value, false);
}

static inline uint8_t *tm_etf_put_f64(uint8_t *p, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    p = tm_store_u8(p, TM_NEW_FLOAT_EXT);
    return tm_store_u64(p, bits);
}

/* text: valid UTF-8 of at most TM_ATOM_CHARS_MAX characters */
static inline uint8_t *tm_etf_put_atom(uint8_t *p, tm_bytes text)
{
    if (text.len <= UINT8_MAX) {
        p = tm_store_u8(p, TM_SMALL_ATOM_UTF8_EXT);
        p = tm_store_u8(p, (uint8_t)text.len);
    } else {
        p = tm_store_u8(p, TM_ATOM_UTF8_EXT);
        p = tm_store_u16(p, (uint16_t)text.len);
    }
    return tm_store_bytes(p, text.ptr, text.len);
}

/* Heads: the elements follow. */

static inline uint8_t *tm_etf_put_tuple(uint8_t *p, uint32_t arity)
{
    if (arity <= UINT8_MAX) {
        p = tm_store_u8(p, TM_SMALL_TUPLE_EXT);
        return tm_store_u8(p, (uint8_t)arity);
    }
    p = tm_store_u8(p, TM_LARGE_TUPLE_EXT);
    return tm_store_u32(p, arity);
}

/* count elements and a tail follow; for 0 nothing is put, since the tail alone is that list. */
static inline uint8_t *tm_etf_put_list(uint8_t *p, uint32_t count)
{
    if (!count) return p;
    p = tm_store_u8(p, TM_LIST_EXT);
    return tm_store_u32(p, count);
}

static inline uint8_t *tm_etf_put_nil(uint8_t *p) { return tm_store_u8(p, TM_NIL_EXT); }

static inline uint8_t *tm_etf_put_map(uint8_t *p, uint32_t count)
{
    p = tm_store_u8(p, TM_MAP_EXT);
    return tm_store_u32(p, count);
}

/* len bytes follow */
static inline uint8_t *tm_etf_put_binary(uint8_t *p, uint32_t len)
{
    p = tm_store_u8(p, TM_BINARY_EXT);
    return tm_store_u32(p, len);
}

/* len > 0 bytes follow, bits 1..7 of the last one in use: an empty one aborts OTP 28's VM, so that
 * and whole bytes must go as a binary. */
static inline uint8_t *tm_etf_put_bit_binary(uint8_t *p, uint32_t len, uint8_t bits)
{
    p = tm_store_u8(p, TM_BIT_BINARY_EXT);
    p = tm_store_u32(p, len);
    return tm_store_u8(p, bits);
}

static inline uint8_t *tm_etf_put_pid(uint8_t *p, const tm_pid *pid)
{
    p = tm_store_u8(p, TM_NEW_PID_EXT);
    p = tm_etf_put_atom(p, pid->node);
    p = tm_store_u32(p, pid->id);
    p = tm_store_u32(p, pid->serial);
    return tm_store_u32(p, pid->creation);
}

/* Always the 64-bit form: every OTP that we can meet reads it. */
static inline uint8_t *tm_etf_put_port(uint8_t *p, const tm_port *port)
{
    p = tm_store_u8(p, TM_V4_PORT_EXT);
    p = tm_etf_put_atom(p, port->node);
    p = tm_store_u64(p, port->id);
    return tm_store_u32(p, port->creation);
}

static inline uint8_t *tm_etf_put_ref(uint8_t *p, const tm_ref *ref)
{
    p = tm_store_u8(p, TM_NEWER_REFERENCE_EXT);
    p = tm_store_u16(p, (uint16_t)ref->count);
    p = tm_etf_put_atom(p, ref->node);
    p = tm_store_u32(p, ref->creation);
    for (uint32_t i = 0; i < ref->count; i++) p = tm_store_u32(p, ref->words[i]);
    return p;
}

#endif
