/* Atoms that a peer has given numbers to: the received half of DIST_HDR_ATOM_CACHE.
 *
 * Each frame starts with a list of atoms, new ones with their text and known ones by their slot;
 * terms in the frame name them by their place in that list. Slots belong to one connection and die
 * with it; the texts lie in a *pool* that connections share, since the peers of a cluster use the
 * same few hundred atoms: a slot costs a pointer. Pure; one thread at a time for a pool and all of
 * its caches. */
#ifndef TM_DIST_ATOM_CACHE_H
#define TM_DIST_ATOM_CACHE_H

#include "../base/map.h"
#include "../etf/etf.h"
#include "fault.h"

#define TM_ATOM_CACHE_SLOTS 2048
/* Slots come in chunks of so many, made when the first of them is set: a BEAM spreads its first ten
 * atoms over all slots. */
#define TM_ATOM_CHUNK_SLOTS 16
#define TM_ATOM_CHUNKS (TM_ATOM_CACHE_SLOTS / TM_ATOM_CHUNK_SLOTS)
/* Atoms of one header: their number is one byte. */
#define TM_ATOM_HEADER_MAX 255

typedef struct tm_cached_atom {
    size_t refs; /* slots of any cache, and unfinished sequences of fragments */
    size_t len;
    uint8_t text[]; /* UTF-8, at most TM_ATOM_CHARS_MAX characters */
} tm_cached_atom;

typedef struct tm_atom_pool {
    tm_map atoms;   /* text -> tm_cached_atom */
    uint64_t bytes; /* held by the atoms */
} tm_atom_pool;

void tm_atom_pool_init(tm_atom_pool *pool, const tm_alloc *alloc, const uint64_t seed[2]);
/* All caches have ended before, or are never used again. */
void tm_atom_pool_fini(tm_atom_pool *pool);
void tm_atom_unref(tm_atom_pool *pool, tm_cached_atom *atom);

typedef struct tm_atom_cache {
    tm_atom_pool *pool;
    tm_cached_atom ***chunks; /* TM_ATOM_CHUNKS of them; NULL until the first new entry */
    uint32_t count;           /* slots that are set */
    uint64_t bytes;           /* of the texts in them, shared or not */
} tm_atom_cache;

static inline void tm_atom_cache_init(tm_atom_cache *cache, tm_atom_pool *pool)
{
    *cache = (tm_atom_cache){.pool = pool};
}
void tm_atom_cache_fini(tm_atom_cache *cache);

/* The atoms of one frame. Only `count` and what it counts are ever filled. */
typedef struct tm_atom_header {
    uint32_t count;
    uint32_t replaced_count;
    tm_bytes atoms[TM_ATOM_HEADER_MAX]; /* borrowed from the pool until tm_atom_header_done */
    /* Out of their slot, but perhaps named by this frame still. */
    tm_cached_atom *replaced[TM_ATOM_HEADER_MAX];
} tm_atom_header;

static inline void tm_atom_header_init(tm_atom_header *header)
{
    header->count = header->replaced_count = 0;
}

/* Reads the list at *c, from its number of atoms on, and enters what is new; leaves *c behind it.
 * 0; TM_EPEER_MALFORMED, TM_EPEER_LIMIT (TM_ATOM_CACHE_BYTES_MAX) and TM_ENOMEM end the
 * connection, with *what saying why: entries before the fault stay entered. */
TM_MUST_CHECK int tm_atom_cache_read(tm_atom_cache *cache, tm_cursor *c, tm_atom_header *header,
                                     const char **what);
/* The frame is done with: to be called after every tm_atom_cache_read that was 0. */
void tm_atom_header_done(tm_atom_cache *cache, tm_atom_header *header);

/* Keeps the atoms of a header beyond its frame: fills atoms[header->count]. Each is given back with
 * tm_atom_unref. */
void tm_atom_header_keep(const tm_atom_header *header, tm_cached_atom **atoms);
/* The same as a header again, which lives as long as they are kept. */
void tm_atom_header_of(tm_atom_header *header, tm_cached_atom *const *atoms, size_t count);

#endif
