#include "buf.h"

#include <stdint.h>

/* First allocation of a buffer, bytes: most control messages and small terms fit. */
#define BUF_FIRST_SIZE ((size_t)256)

void tm_buf_fini(tm_buf *buf)
{
    tm_alloc_free(buf->alloc, buf->ptr, buf->cap);
    buf->ptr = NULL;
    buf->len = buf->cap = 0;
}

int tm_buf_reserve_slow(tm_buf *buf, size_t len)
{
    if (len > SIZE_MAX - buf->len) return TM_EUSE_LIMIT;
    size_t need = buf->len + len;
    if (buf->max && need > buf->max) return TM_EUSE_LIMIT;
    size_t cap = buf->cap ? buf->cap : BUF_FIRST_SIZE;
    while (cap < need) cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    if (buf->max && cap > buf->max) cap = buf->max;
    uint8_t *ptr = buf->alloc->resize(buf->alloc->ctx, buf->ptr, buf->cap, cap);
    if (!ptr) return TM_ENOMEM;
    buf->ptr = ptr;
    buf->cap = cap;
    return 0;
}
