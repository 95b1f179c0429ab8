/* Hash map from bytes to a pointer: names, references, node names.
 *
 * Open addressing, linear probing, tombstone-free deletion. Keys are borrowed: they live inside the
 * value they lead to. The hash is keyed (SipHash-1-3 with the caller's random 128-bit key), since
 * most keys come from peers. */
#ifndef TM_BASE_MAP_H
#define TM_BASE_MAP_H

#include "alloc.h"
#include "bytes.h"

typedef struct tm_map_entry {
    uint64_t hash; /* 0: free slot */
    tm_bytes key;  /* borrowed from the value */
    void *value;
} tm_map_entry;

typedef struct tm_map {
    const tm_alloc *alloc;
    uint64_t seed[2];
    tm_map_entry *entries;
    size_t size; /* slots, 0 or a power of two */
    size_t count;
} tm_map;

void tm_map_init(tm_map *map, const tm_alloc *alloc, const uint64_t seed[2]);
void tm_map_fini(tm_map *map);
void *tm_map_get(const tm_map *map, tm_bytes key);
/* Adds or replaces. 0 or TM_ENOMEM. */
TM_MUST_CHECK int tm_map_set(tm_map *map, tm_bytes key, void *value);
/* Removes and returns the value, or NULL. */
void *tm_map_remove(tm_map *map, tm_bytes key);
/* Iteration: start with *position 0; NULL at the end. The map must not change meanwhile. */
void *tm_map_next(const tm_map *map, size_t *position);

uint64_t tm_siphash(const uint64_t seed[2], tm_bytes bytes);

#endif
