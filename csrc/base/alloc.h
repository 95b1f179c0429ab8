/* The allocator, passed in. The pure layers (etf, dist, proc) get memory from nowhere else, so a
 * test can fail the n-th allocation and a leak is a number.
 *
 * Every free names the size it allocated: the counter of bytes held is exact without headers. */
#ifndef TM_BASE_ALLOC_H
#define TM_BASE_ALLOC_H

#include <stddef.h>
#include <string.h>

typedef struct tm_alloc {
    /* ptr NULL: allocate new_size; new_size 0: free (returns NULL); else resize.
     * NULL from a non-zero new_size means out of memory, and ptr is still valid then. */
    void *(*resize)(void *ctx, void *ptr, size_t old_size, size_t new_size);
    void *ctx;
    /* A block of so many bytes leaves the count: whoever holds it from now on frees it with free().
     * NULL: blocks of this allocator cannot leave. */
    void (*disown)(void *ctx, size_t size);
} tm_alloc;

/* The C library's allocator; ctx may be NULL or a tm_alloc_stats that it counts in (atomically). */
typedef struct tm_alloc_stats {
    size_t bytes; /* held now */
    size_t count; /* blocks held now */
} tm_alloc_stats;

tm_alloc tm_alloc_libc(tm_alloc_stats *stats);

static inline void *tm_alloc_get(const tm_alloc *alloc, size_t size)
{
    return alloc->resize(alloc->ctx, NULL, 0, size);
}

static inline void *tm_alloc_zero(const tm_alloc *alloc, size_t size)
{
    void *ptr = alloc->resize(alloc->ctx, NULL, 0, size);
    if (ptr) memset(ptr, 0, size);
    return ptr;
}

static inline void tm_alloc_free(const tm_alloc *alloc, void *ptr, size_t size)
{
    if (ptr) alloc->resize(alloc->ctx, ptr, size, 0);
}

#endif
