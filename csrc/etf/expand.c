/* Terms that have been walked: skipping them, and copying them with their atom-cache references
 * written out. Prefix order makes both a plain scan with a count of terms still to come. */
#include "inline.h"

typedef struct scan_step {
    size_t size;    /* bytes up to the next tag */
    uint64_t terms; /* that follow: parts of a container, the atom inside an identifier */
    size_t trailer; /* bytes behind that atom */
} scan_step;

static scan_step scan_id(size_t head, size_t trailer) { return (scan_step){head, 1, trailer}; }

static scan_step scan_rare(const uint8_t *p)
{
    switch (*p) {
    case TM_FLOAT_EXT: return (scan_step){32, 0, 0};
    case TM_SMALL_BIG_EXT: return (scan_step){3 + (size_t)p[1], 0, 0};
    case TM_LARGE_BIG_EXT:
    case TM_BIT_BINARY_EXT: return (scan_step){6 + (size_t)tm_load_u32(p + 1), 0, 0};
    case TM_PID_EXT: return scan_id(1, 9);
    case TM_PORT_EXT:
    case TM_REFERENCE_EXT: return scan_id(1, 5);
    case TM_NEW_PORT_EXT: return scan_id(1, 8);
    case TM_NEW_PID_EXT:
    case TM_V4_PORT_EXT: return scan_id(1, 12);
    case TM_NEW_REFERENCE_EXT: return scan_id(3, 1 + 4 * (size_t)tm_load_u16(p + 1));
    case TM_NEWER_REFERENCE_EXT: return scan_id(3, 4 + 4 * (size_t)tm_load_u16(p + 1));
    case TM_EXPORT_EXT: return (scan_step){1, 3, 0};
    /* module, old index, old uniq and creator before the free variables */
    case TM_NEW_FUN_EXT: return (scan_step){30, 4 + (uint64_t)tm_load_u32(p + 26), 0};
    default: return (scan_step){1, 0, 0}; /* NIL_EXT */
    }
}

static inline scan_step scan(const uint8_t *p)
{
    switch (*p) {
    case TM_ATOM_CACHE_REF:
    case TM_SMALL_INTEGER_EXT: return (scan_step){2, 0, 0};
    case TM_INTEGER_EXT: return (scan_step){5, 0, 0};
    case TM_NEW_FLOAT_EXT: return (scan_step){9, 0, 0};
    case TM_SMALL_ATOM_EXT:
    case TM_SMALL_ATOM_UTF8_EXT: return (scan_step){2 + (size_t)p[1], 0, 0};
    case TM_ATOM_EXT:
    case TM_ATOM_UTF8_EXT:
    case TM_STRING_EXT: return (scan_step){3 + (size_t)tm_load_u16(p + 1), 0, 0};
    case TM_BINARY_EXT: return (scan_step){5 + (size_t)tm_load_u32(p + 1), 0, 0};
    case TM_SMALL_TUPLE_EXT: return (scan_step){2, p[1], 0};
    case TM_LARGE_TUPLE_EXT: return (scan_step){5, tm_load_u32(p + 1), 0};
    case TM_LIST_EXT: return (scan_step){5, tm_load_u32(p + 1) + 1ULL, 0};
    case TM_MAP_EXT: return (scan_step){5, tm_load_u32(p + 1) * 2ULL, 0};
    default: return scan_rare(p);
    }
}

const uint8_t *tm_etf_skip(const uint8_t *ptr)
{
    uint64_t terms = 1;
    while (terms) {
        scan_step step = scan(ptr);
        ptr += step.size;
        terms += step.terms - 1;
        if (step.trailer) {
            /* The atom is taken at once: the trailer comes before whatever follows. */
            ptr += scan(ptr).size + step.trailer;
            terms--;
        }
    }
    return ptr;
}

/* Moves on past terms until behind the next one that is a reference or has one in it. NULL: there
 * is none up to the end. */
static const uint8_t *scan_ref(tm_cursor *c)
{
    while (c->ptr < c->end) {
        scan_step step = scan(c->ptr);
        const uint8_t *next = c->ptr + step.size;
        const uint8_t *ref = step.trailer ? next : c->ptr;
        if (step.trailer) next += scan(next).size + step.trailer;
        c->ptr = next;
        if (*ref == TM_ATOM_CACHE_REF) return ref;
    }
    return NULL;
}

/* Appends what lies between two references, then the atom. */
static int expand_one(tm_buf *buf, const uint8_t *from, const uint8_t *to, tm_bytes atom)
{
    int rc = tm_buf_append(buf, from, (size_t)(to - from));
    return rc ? rc : tm_etf_write_atom(buf, atom);
}

int tm_etf_expand(tm_bytes terms, const tm_bytes *atoms, tm_buf *buf)
{
    tm_cursor c = tm_cursor_of(terms);
    const uint8_t *copied = c.ptr, *ref;
    size_t len = buf->len;
    int rc = 0;
    while (!rc && (ref = scan_ref(&c))) {
        rc = expand_one(buf, copied, ref, atoms[ref[1]]);
        copied = ref + 2;
    }
    if (!rc) rc = tm_buf_append(buf, copied, (size_t)(c.end - copied));
    if (rc) buf->len = len;
    return rc;
}

/* Where out and the term share memory, every byte of the term is moved before another one comes to
 * stand in its place: what is written never gets past what was read. */
static uint8_t *move_to(uint8_t *out, const uint8_t *from, const uint8_t *to)
{
    if (to > from) memmove(out, from, (size_t)(to - from));
    return out + (to - from);
}

void tm_etf_expand_to(uint8_t *out, tm_bytes term, const tm_bytes *atoms, const tm_walk_refs *refs)
{
    tm_cursor c = tm_cursor_of(term);
    const uint8_t *copied = c.ptr;
    bool known = refs->count <= TM_WALK_REFS_MAX;
    for (size_t i = 0; i < refs->count; i++) {
        const uint8_t *ref = known ? term.ptr + refs->at[i] : scan_ref(&c);
        tm_bytes atom = atoms[ref[1]];
        out = move_to(out, copied, ref);
        out = tm_etf_put_atom(out, atom);
        copied = ref + 2;
    }
    move_to(out, copied, c.end);
}
