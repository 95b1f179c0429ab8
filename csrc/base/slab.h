/* A piece of memory that changes hands: who is given one frees it. */
#ifndef TM_BASE_SLAB_H
#define TM_BASE_SLAB_H

#include <stdint.h>

#include "alloc.h"
#include "error.h"

typedef struct tm_slab {
    uint8_t *ptr; /* NULL: none */
    size_t size;  /* allocated, bytes */
} tm_slab;

/* Grows or shrinks; 0, or TM_ENOMEM and it is as it was. size must not be 0. */
TM_MUST_CHECK static inline int tm_slab_resize(const tm_alloc *alloc, tm_slab *slab, size_t size)
{
    uint8_t *ptr = alloc->resize(alloc->ctx, slab->ptr, slab->size, size);
    if (!ptr) return TM_ENOMEM;
    *slab = (tm_slab){ptr, size};
    return 0;
}

static inline void tm_slab_free(const tm_alloc *alloc, tm_slab *slab)
{
    tm_alloc_free(alloc, slab->ptr, slab->size);
    *slab = (tm_slab){NULL, 0};
}

/* Moves it to another owner. */
static inline tm_slab tm_slab_take(tm_slab *slab)
{
    tm_slab taken = *slab;
    *slab = (tm_slab){NULL, 0};
    return taken;
}

#endif
