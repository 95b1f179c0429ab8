#include "atom_cache.h"

#include "../base/check.h"

static_assert(TM_ATOM_CACHE_SLOTS % TM_ATOM_CHUNK_SLOTS == 0, "no chunk is cut short");

/* A nibble of the flags of each atom: whether its text follows, and three bits of its slot. */
#define NEW_ENTRY 8
#define SEGMENT_MASK 7
/* The nibble behind the last one. */
#define LONG_ATOMS 1

/* -- the pool ---------------------------------------------------------------------------------- */

static size_t atom_size(size_t len) { return sizeof(tm_cached_atom) + len; }

void tm_atom_pool_init(tm_atom_pool *pool, const tm_alloc *alloc, const uint64_t seed[2])
{
    *pool = (tm_atom_pool){0};
    tm_map_init(&pool->atoms, alloc, seed);
}

void tm_atom_pool_fini(tm_atom_pool *pool)
{
    size_t position = 0;
    for (tm_cached_atom *atom; (atom = tm_map_next(&pool->atoms, &position));)
        tm_alloc_free(pool->atoms.alloc, atom, atom_size(atom->len));
    tm_map_fini(&pool->atoms);
    pool->bytes = 0;
}

/* The atom of that text, made if there is none, with one reference more; NULL without memory. */
static tm_cached_atom *pool_take(tm_atom_pool *pool, tm_bytes text)
{
    tm_cached_atom *atom = tm_map_get(&pool->atoms, text);
    if (atom) {
        atom->refs++;
        return atom;
    }
    atom = tm_alloc_get(pool->atoms.alloc, atom_size(text.len));
    if (!atom) return NULL;
    *atom = (tm_cached_atom){.refs = 1, .len = text.len};
    tm_store_bytes(atom->text, text.ptr, text.len);
    if (tm_map_set(&pool->atoms, tm_bytes_of(atom->text, text.len), atom)) {
        tm_alloc_free(pool->atoms.alloc, atom, atom_size(text.len));
        return NULL;
    }
    pool->bytes += atom_size(text.len);
    return atom;
}

void tm_atom_unref(tm_atom_pool *pool, tm_cached_atom *atom)
{
    TM_ASSERT(atom->refs > 0);
    if (--atom->refs) return;
    tm_map_remove(&pool->atoms, tm_bytes_of(atom->text, atom->len));
    pool->bytes -= atom_size(atom->len);
    tm_alloc_free(pool->atoms.alloc, atom, atom_size(atom->len));
    if (pool->atoms.count == 0) tm_map_fini(&pool->atoms);
}

/* -- slots ------------------------------------------------------------------------------------- */

#define CHUNKS_SIZE (TM_ATOM_CHUNKS * sizeof(tm_cached_atom **))
#define CHUNK_SIZE (TM_ATOM_CHUNK_SLOTS * sizeof(tm_cached_atom *))

static const tm_alloc *cache_alloc(const tm_atom_cache *cache) { return cache->pool->atoms.alloc; }

void tm_atom_cache_fini(tm_atom_cache *cache)
{
    if (!cache->chunks) return;
    for (size_t i = 0; i < TM_ATOM_CHUNKS; i++) {
        tm_cached_atom **chunk = cache->chunks[i];
        for (size_t slot = 0; chunk && slot < TM_ATOM_CHUNK_SLOTS; slot++)
            if (chunk[slot]) tm_atom_unref(cache->pool, chunk[slot]);
        tm_alloc_free(cache_alloc(cache), chunk, CHUNK_SIZE);
    }
    tm_alloc_free(cache_alloc(cache), cache->chunks, CHUNKS_SIZE);
    tm_atom_cache_init(cache, cache->pool);
}

static tm_cached_atom *slot_get(const tm_atom_cache *cache, size_t slot)
{
#ifdef TM_PLANTED_BUG /* planted for the fuzz target: a chunk's last slot lies behind its end */
    if (cache->chunks && cache->chunks[slot / TM_ATOM_CHUNK_SLOTS])
        return cache->chunks[slot / TM_ATOM_CHUNK_SLOTS][slot % TM_ATOM_CHUNK_SLOTS + 1];
#endif
    tm_cached_atom **chunk = cache->chunks ? cache->chunks[slot / TM_ATOM_CHUNK_SLOTS] : NULL;
    return chunk ? chunk[slot % TM_ATOM_CHUNK_SLOTS] : NULL;
}

/* Where a slot is, made if need be; NULL without memory. */
static tm_cached_atom **slot_room(tm_atom_cache *cache, size_t slot)
{
    if (!cache->chunks) cache->chunks = tm_alloc_zero(cache_alloc(cache), CHUNKS_SIZE);
    if (!cache->chunks) return NULL;
    tm_cached_atom ***chunk = &cache->chunks[slot / TM_ATOM_CHUNK_SLOTS];
    if (!*chunk) *chunk = tm_alloc_zero(cache_alloc(cache), CHUNK_SIZE);
    return *chunk ? *chunk + slot % TM_ATOM_CHUNK_SLOTS : NULL;
}

/* -- headers ----------------------------------------------------------------------------------- */

static int header_wrong(const char **what, const char *text)
{
    *what = text;
    return TM_EPEER_MALFORMED;
}

static int header_cut(const char **what)
{
    return header_wrong(what, "the distribution header is cut off");
}

static unsigned nibble_at(const uint8_t *flags, size_t i)
{
    return flags[i / 2] >> (i % 2 * 4) & 15;
}

static int entry_text(tm_cursor *c, bool long_atoms, tm_bytes *text, const char **what)
{
    uint8_t small = 0;
    uint16_t len = 0;
    int rc = long_atoms ? tm_cursor_u16(c, &len) : tm_cursor_u8(c, &small);
    if (rc || tm_cursor_bytes(c, long_atoms ? len : small, text)) return header_cut(what);
    size_t chars;
    if (text->len > TM_ATOM_BYTES_MAX || !tm_utf8_valid(*text, &chars))
        return header_wrong(what, "atom in the distribution header that is not valid UTF-8");
    if (chars > TM_ATOM_CHARS_MAX)
        return header_wrong(what, "atom in the distribution header longer than 255 characters");
    return 0;
}

/* Puts a new text into its slot. */
static int entry_set(tm_atom_cache *cache, size_t slot, tm_bytes text, tm_atom_header *header,
                     const char **what)
{
    *what = "out of memory";
    tm_cached_atom **room = slot_room(cache, slot);
    tm_cached_atom *atom = room ? pool_take(cache->pool, text) : NULL;
    if (!atom) return TM_ENOMEM;
    cache->bytes += text.len;
    if (*room) {
        cache->bytes -= (*room)->len;
        header->replaced[header->replaced_count++] = *room;
    } else {
        cache->count++;
    }
    *room = atom;
    if (cache->bytes <= TM_ATOM_CACHE_BYTES_MAX) return 0;
    *what = "the atom cache of the connection is over its limit";
    return TM_EPEER_LIMIT;
}

static int header_entry(tm_atom_cache *cache, tm_cursor *c, unsigned flags, bool long_atoms,
                        tm_atom_header *header, const char **what)
{
    uint8_t index;
    if (tm_cursor_u8(c, &index)) return header_cut(what);
    size_t slot = (size_t)(flags & SEGMENT_MASK) << 8 | index;
    if (flags & NEW_ENTRY) {
        tm_bytes text;
        int rc = entry_text(c, long_atoms, &text, what);
        if (!rc) rc = entry_set(cache, slot, text, header, what);
        if (rc) return rc;
    }
    const tm_cached_atom *atom = slot_get(cache, slot);
    if (!atom) return header_wrong(what, "atom cache slot that was never set");
    header->atoms[header->count++] = tm_bytes_of(atom->text, atom->len);
    return 0;
}

int tm_atom_cache_read(tm_atom_cache *cache, tm_cursor *c, tm_atom_header *header,
                       const char **what)
{
    tm_atom_header_init(header);
    uint8_t count;
    if (tm_cursor_u8(c, &count)) return header_cut(what);
    if (!count) return 0;
    tm_bytes flags;
    if (tm_cursor_bytes(c, count / 2 + 1, &flags)) return header_cut(what);
    bool long_atoms = nibble_at(flags.ptr, count) & LONG_ATOMS;
    int rc = 0;
    for (size_t i = 0; i < count && !rc; i++)
        rc = header_entry(cache, c, nibble_at(flags.ptr, i), long_atoms, header, what);
    if (rc) tm_atom_header_done(cache, header);
    return rc;
}

void tm_atom_header_done(tm_atom_cache *cache, tm_atom_header *header)
{
    for (size_t i = 0; i < header->replaced_count; i++)
        tm_atom_unref(cache->pool, header->replaced[i]);
    tm_atom_header_init(header);
}

void tm_atom_header_keep(const tm_atom_header *header, tm_cached_atom **atoms)
{
    for (size_t i = 0; i < header->count; i++) {
        uintptr_t text = (uintptr_t)header->atoms[i].ptr;
        atoms[i] = (tm_cached_atom *)(text - offsetof(tm_cached_atom, text));
        atoms[i]->refs++;
    }
}

void tm_atom_header_of(tm_atom_header *header, tm_cached_atom *const *atoms, size_t count)
{
    tm_atom_header_init(header);
    for (size_t i = 0; i < count; i++)
        header->atoms[i] = tm_bytes_of(atoms[i]->text, atoms[i]->len);
    header->count = (uint32_t)count;
}
