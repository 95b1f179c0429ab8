/* A growing output buffer with an upper bound. A zeroed tm_buf with an allocator is empty and
 * valid; a failed append leaves it as it was. */
#ifndef TM_BASE_BUF_H
#define TM_BASE_BUF_H

#include "alloc.h"
#include "bytes.h"

typedef struct tm_buf {
    const tm_alloc *alloc;
    uint8_t *ptr;
    size_t len;
    size_t cap;
    size_t max; /* bytes; 0 is unbounded */
} tm_buf;

static inline void tm_buf_init(tm_buf *buf, const tm_alloc *alloc, size_t max)
{
    *buf = (tm_buf){.alloc = alloc, .max = max};
}

/* Frees the memory; the buffer can be used again. */
void tm_buf_fini(tm_buf *buf);

/* Makes room for len more bytes and returns where they start, without adding them to buf->len.
 * 0, TM_ENOMEM, or TM_EUSE_LIMIT above max. */
TM_MUST_CHECK int tm_buf_reserve_slow(tm_buf *buf, size_t len);

TM_MUST_CHECK static inline int tm_buf_reserve(tm_buf *buf, size_t len)
{
    if (__builtin_expect(len <= buf->cap - buf->len, 1)) return 0;
    return tm_buf_reserve_slow(buf, len);
}

TM_MUST_CHECK static inline int tm_buf_append(tm_buf *buf, const void *from, size_t len)
{
    int rc = tm_buf_reserve(buf, len);
    if (rc) return rc;
    if (len) memcpy(buf->ptr + buf->len, from, len);
    buf->len += len;
    return 0;
}

static inline tm_bytes tm_buf_bytes(const tm_buf *buf) { return (tm_bytes){buf->ptr, buf->len}; }

#endif
