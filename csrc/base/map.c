#include "map.h"

/* Slots of the first table: a node has a handful of names and connections. */
#define MAP_FIRST_SIZE ((size_t)16)

#define ROTL(x, b) (uint64_t)(((x) << (b)) | ((x) >> (64 - (b))))

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[1] = ROTL(v[1], 13) ^ v[0];
    v[0] = ROTL(v[0], 32);
    v[2] += v[3];
    v[3] = ROTL(v[3], 16) ^ v[2];
    v[0] += v[3];
    v[3] = ROTL(v[3], 21) ^ v[0];
    v[2] += v[1];
    v[1] = ROTL(v[1], 17) ^ v[2];
    v[2] = ROTL(v[2], 32);
}

uint64_t tm_siphash(const uint64_t seed[2], tm_bytes bytes)
{
    uint64_t v[4] = {0x736f6d6570736575ULL ^ seed[0], 0x646f72616e646f6dULL ^ seed[1],
                     0x6c7967656e657261ULL ^ seed[0], 0x7465646279746573ULL ^ seed[1]};
    const uint8_t *p = bytes.ptr;
    size_t left = bytes.len;
    uint64_t word;
    for (; left >= 8; left -= 8, p += 8) {
        memcpy(&word, p, 8);
        v[3] ^= word;
        sip_round(v);
        v[0] ^= word;
    }
    word = (uint64_t)bytes.len << 56;
    for (size_t i = 0; i < left; i++) word |= (uint64_t)p[i] << (8 * i);
    v[3] ^= word;
    sip_round(v);
    v[0] ^= word;
    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

static inline uint64_t map_hash(const tm_map *map, tm_bytes key)
{
    uint64_t hash = tm_siphash(map->seed, key);
    return hash ? hash : 1;
}

void tm_map_init(tm_map *map, const tm_alloc *alloc, const uint64_t seed[2])
{
    *map = (tm_map){.alloc = alloc, .seed = {seed[0], seed[1]}};
}

void tm_map_fini(tm_map *map)
{
    tm_alloc_free(map->alloc, map->entries, map->size * sizeof *map->entries);
    map->entries = NULL;
    map->size = map->count = 0;
}

/* The slot that holds the key, or the free slot where it would go. size must not be 0. */
static tm_map_entry *map_find(const tm_map *map, uint64_t hash, tm_bytes key)
{
    size_t mask = map->size - 1;
    for (size_t i = hash & mask;; i = (i + 1) & mask) {
        tm_map_entry *entry = &map->entries[i];
        if (!entry->hash || (entry->hash == hash && tm_bytes_equal(entry->key, key))) return entry;
    }
}

void *tm_map_get(const tm_map *map, tm_bytes key)
{
    if (!map->count) return NULL;
    tm_map_entry *entry = map_find(map, map_hash(map, key), key);
    return entry->hash ? entry->value : NULL;
}

static int map_grow(tm_map *map)
{
    size_t size = map->size ? map->size * 2 : MAP_FIRST_SIZE;
    tm_map bigger = {.alloc = map->alloc, .seed = {map->seed[0], map->seed[1]}, .size = size};
    bigger.entries = tm_alloc_zero(map->alloc, size * sizeof *bigger.entries);
    if (!bigger.entries) return TM_ENOMEM;
    for (size_t i = 0; i < map->size; i++) {
        const tm_map_entry *entry = &map->entries[i];
        if (entry->hash) *map_find(&bigger, entry->hash, entry->key) = *entry;
    }
    bigger.count = map->count;
    tm_map_fini(map);
    *map = bigger;
    return 0;
}

int tm_map_set(tm_map *map, tm_bytes key, void *value)
{
    if ((map->count + 1) * 4 > map->size * 3) {
        int rc = map_grow(map);
        if (rc) return rc;
    }
    uint64_t hash = map_hash(map, key);
    tm_map_entry *entry = map_find(map, hash, key);
    if (!entry->hash) map->count++;
    *entry = (tm_map_entry){.hash = hash, .key = key, .value = value};
    return 0;
}

void *tm_map_remove(tm_map *map, tm_bytes key)
{
    if (!map->count) return NULL;
    tm_map_entry *entry = map_find(map, map_hash(map, key), key);
    if (!entry->hash) return NULL;
    void *value = entry->value;
    size_t mask = map->size - 1;
    size_t hole = (size_t)(entry - map->entries);
    /* Close the gap: move back each following entry whose home is at or before the hole. */
    for (size_t i = (hole + 1) & mask; map->entries[i].hash; i = (i + 1) & mask) {
        size_t home = map->entries[i].hash & mask;
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            map->entries[hole] = map->entries[i];
            hole = i;
        }
    }
    map->entries[hole] = (tm_map_entry){0};
    map->count--;
    return value;
}

void *tm_map_next(const tm_map *map, size_t *position)
{
    while (*position < map->size) {
        const tm_map_entry *entry = &map->entries[(*position)++];
        if (entry->hash) return entry->value;
    }
    return NULL;
}
