/* Checking of the terms that have no parts, for the walk and the checked readers. Not for others.
 *
 * One parser for both: what the walk accepts the readers accept. Each function takes the start of a
 * term and returns its end; NULL says that leaf->bad and leaf->what tell what is wrong. */
#ifndef TM_ETF_LEAF_H
#define TM_ETF_LEAF_H

#include "inline.h"

/* What a consumer's objects take, bytes: CPython 3.11 on 64 bits, rounded up where a size depends
 * on its history (a dict's table). An estimate from above that a bound can be put on, not
 * accounting. Below 200 for each byte on the wire, so that sums cannot overflow 64 bits. */
enum tm_cost {
    TM_COST_SLOT = 8,   /* of a tuple or list, one for each element */
    TM_COST_TUPLE = 40, /* () is 40 */
    TM_COST_LIST = 56,  /* [] is 56 */
    TM_COST_NIL = 64,   /* a fresh list, since lists are mutable */
    TM_COST_MAP = 224,  /* the smallest dict with a key */
    TM_COST_MAP_EMPTY = 64,
    TM_COST_MAP_PAIR = 56, /* a dict that has just doubled */
    TM_COST_BYTES = 33,
    TM_COST_INTEGER = 32, /* 0..255 are shared and cost nothing */
    TM_COST_FLOAT = 24,
    TM_COST_ATOM = 128, /* the object and its text, when the table of atoms is full */
    TM_COST_ID = 128,   /* pid, port, reference: the object with its integers */
    TM_COST_BITS = 64,  /* beside its bytes */
    TM_COST_EXPORT = 96,
    TM_COST_FUN = 512
};

typedef struct tm_leaf {
    const uint8_t *end; /* of the bytes that may be read */
    uint32_t cache_refs;
    uint32_t big_bytes_max;
    const tm_bytes *cache_atoms;
    tm_walk_refs *refs; /* counted here, if not NULL: offsets from start */
    const uint8_t *start;
    uint64_t cost;        /* added to */
    uint64_t parts;       /* filled by NEW_FUN_EXT: free variables that follow */
    const uint8_t *large; /* filled: a big integer over its limit */
    const uint8_t *bad;   /* filled on NULL */
    const char *what;     /* filled on NULL; tm_leaf_cut when bytes are missing, and only then */
} tm_leaf;

extern const char tm_leaf_cut[];

/* Counts an ATOM_CACHE_REF that the frame defines. */
static inline void tm_leaf_count_ref(tm_leaf *leaf, const uint8_t *p)
{
    tm_walk_refs *refs = leaf->refs;
    tm_bytes text = leaf->cache_atoms[p[1]];
    leaf->cost += TM_COST_ATOM + (tm_ascii(text) ? text.len : 4 * text.len);
    if (refs->count < TM_WALK_REFS_MAX) refs->at[refs->count] = (uint32_t)(p - leaf->start);
    refs->count++;
    /* Two bytes become the text and a head of two or three. */
    refs->growth += text.len + (text.len > UINT8_MAX);
}

/* Every tag; of a container (tuple, list, map) it says that its head is cut off, since the walk
 * takes the others itself. p < leaf->end. */
const uint8_t *tm_leaf_any(tm_leaf *leaf, const uint8_t *p);

const uint8_t *tm_leaf_atom(tm_leaf *leaf, const uint8_t *p);
const uint8_t *tm_leaf_pid(tm_leaf *leaf, const uint8_t *p);
const uint8_t *tm_leaf_ref(tm_leaf *leaf, const uint8_t *p);

/* Whether 31 bytes of text are a finite float as printf("%.20e") writes it; see float_text.c. */
bool tm_float_text_valid(const uint8_t text[31]);

static inline size_t tm_leaf_left(const tm_leaf *leaf, const uint8_t *p)
{
    return (size_t)(leaf->end - p);
}

/* ASCII of up to eight bytes in one load where that many may be read. */
static inline bool tm_leaf_ascii(const uint8_t *p, size_t len, const uint8_t *end)
{
    if (len > 8 || end - p < 8) return tm_ascii((tm_bytes){p, len});
    uint64_t word;
    memcpy(&word, p, 8);
    uint64_t mask = len ? UINT64_MAX >> (64 - 8 * len) : 0;
    return (word & mask & TM_ASCII_MASK) == 0;
}

#endif
