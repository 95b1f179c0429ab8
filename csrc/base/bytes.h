/* Byte spans, big-endian loads and stores, and the one cursor that reads from a peer.
 *
 * Every length check of the project lives in tm_cursor: a read either fits or answers
 * TM_NEED_DATA and moves nothing. tm_bytes is borrowed for the call unless a comment says more. */
#ifndef TM_BASE_BYTES_H
#define TM_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "error.h"

typedef struct tm_bytes {
    const uint8_t *ptr;
    size_t len;
} tm_bytes;

/* Memory that is to be written to. */
typedef struct tm_room {
    uint8_t *ptr;
    size_t len; /* 0: none */
} tm_room;

#define TM_BYTES(literal) ((tm_bytes){(const uint8_t *)(literal), sizeof(literal) - 1})

static inline tm_bytes tm_bytes_of(const void *ptr, size_t len)
{
    return (tm_bytes){(const uint8_t *)ptr, len};
}

static inline bool tm_bytes_equal(tm_bytes a, tm_bytes b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

static inline uint16_t tm_load_u16(const uint8_t *p) { return (uint16_t)((p[0] << 8) | p[1]); }

static inline uint32_t tm_load_u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return __builtin_bswap32(v);
}

static inline uint64_t tm_load_u64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return __builtin_bswap64(v);
}

static inline uint8_t *tm_store_u8(uint8_t *p, uint8_t v)
{
    *p = v;
    return p + 1;
}

static inline uint8_t *tm_store_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
    return p + 2;
}

static inline uint8_t *tm_store_u32(uint8_t *p, uint32_t v)
{
    v = __builtin_bswap32(v);
    memcpy(p, &v, sizeof v);
    return p + sizeof v;
}

static inline uint8_t *tm_store_u64(uint8_t *p, uint64_t v)
{
    v = __builtin_bswap64(v);
    memcpy(p, &v, sizeof v);
    return p + sizeof v;
}

static inline uint8_t *tm_store_bytes(uint8_t *p, const void *from, size_t len)
{
    if (len) memcpy(p, from, len);
    return p + len;
}

typedef struct tm_cursor {
    const uint8_t *ptr;
    const uint8_t *end;
} tm_cursor;

static inline tm_cursor tm_cursor_of(tm_bytes bytes)
{
    /* Nothing may come as NULL, on which not even + 0 is defined. */
    const uint8_t *ptr = bytes.ptr ? bytes.ptr : (const uint8_t *)"";
    return (tm_cursor){ptr, ptr + bytes.len};
}

static inline size_t tm_cursor_left(const tm_cursor *c) { return (size_t)(c->end - c->ptr); }

TM_MUST_CHECK static inline int tm_cursor_u8(tm_cursor *c, uint8_t *value)
{
    if (tm_cursor_left(c) < 1) return TM_NEED_DATA;
    *value = *c->ptr++;
    return 0;
}

TM_MUST_CHECK static inline int tm_cursor_u16(tm_cursor *c, uint16_t *value)
{
    if (tm_cursor_left(c) < 2) return TM_NEED_DATA;
    *value = tm_load_u16(c->ptr);
    c->ptr += 2;
    return 0;
}

TM_MUST_CHECK static inline int tm_cursor_u32(tm_cursor *c, uint32_t *value)
{
    if (tm_cursor_left(c) < 4) return TM_NEED_DATA;
    *value = tm_load_u32(c->ptr);
    c->ptr += 4;
    return 0;
}

TM_MUST_CHECK static inline int tm_cursor_u64(tm_cursor *c, uint64_t *value)
{
    if (tm_cursor_left(c) < 8) return TM_NEED_DATA;
    *value = tm_load_u64(c->ptr);
    c->ptr += 8;
    return 0;
}

/* fills *bytes with a span of the input, borrowed from it */
TM_MUST_CHECK static inline int tm_cursor_bytes(tm_cursor *c, size_t len, tm_bytes *bytes)
{
    if (tm_cursor_left(c) < len) return TM_NEED_DATA;
    *bytes = (tm_bytes){c->ptr, len};
    c->ptr += len;
    return 0;
}

TM_MUST_CHECK static inline int tm_cursor_skip(tm_cursor *c, size_t len)
{
    if (tm_cursor_left(c) < len) return TM_NEED_DATA;
    c->ptr += len;
    return 0;
}

#endif
