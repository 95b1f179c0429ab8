/* A fuzzer's input as a stream that arrives in parts: a length byte, then so many bytes; 0 stands
 * for all that is left. Every part is copied to a block of exactly its size, so that the sanitizer
 * sees a read behind it. */
#ifndef TM_FUZZ_SPLIT_H
#define TM_FUZZ_SPLIT_H

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"

#define CHECK(expr)                                                                                \
    do {                                                                                           \
        if (!(expr)) abort();                                                                      \
    } while (0)

/* Takes the next part from *rest: to be freed; its len may be 0. */
static inline tm_bytes split_part(tm_bytes *rest)
{
    size_t len = 0;
    if (rest->len) {
        len = *rest->ptr++;
        rest->len--;
        if (len == 0 || len > rest->len) len = rest->len;
    }
    uint8_t *copy = malloc(len + !len);
    CHECK(copy);
    if (len) memcpy(copy, rest->ptr, len);
    rest->ptr += len;
    rest->len -= len;
    return tm_bytes_of(copy, len);
}

static inline void split_free(tm_bytes part) { free((void *)(uintptr_t)part.ptr); }

#endif
