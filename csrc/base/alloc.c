#include "alloc.h"

#include <stdlib.h>

static void *libc_resize(void *ctx, void *ptr, size_t old_size, size_t new_size)
{
    tm_alloc_stats *stats = ctx;
    void *result = NULL;
    if (new_size == 0) {
        free(ptr);
    } else {
        result = realloc(ptr, new_size);
        if (!result) return NULL;
    }
    if (stats) {
        __atomic_fetch_add(&stats->bytes, new_size - old_size, __ATOMIC_RELAXED);
        size_t count = (size_t)(new_size != 0) - (size_t)(ptr != NULL);
        __atomic_fetch_add(&stats->count, count, __ATOMIC_RELAXED);
    }
    return result;
}

static void libc_disown(void *ctx, size_t size)
{
    tm_alloc_stats *stats = ctx;
    if (!stats) return;
    __atomic_fetch_sub(&stats->bytes, size, __ATOMIC_RELAXED);
    __atomic_fetch_sub(&stats->count, 1, __ATOMIC_RELAXED);
}

tm_alloc tm_alloc_libc(tm_alloc_stats *stats)
{
    return (tm_alloc){.resize = libc_resize, .disown = libc_disown, .ctx = stats};
}
