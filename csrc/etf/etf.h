/* The external term format: what the rest of the core and the bindings see.
 *
 * Three parts. The *walk* validates a term that came from anywhere: iterative, bounded by depth, by
 * count <= bytes left and by decoded size; after it the bytes can be trusted. The *reader* takes
 * identifiers and atoms apart, for control messages and for the object builder. The *writer* emits
 * tags. Pure: no system call, no clock, memory only from the allocator that is passed in.
 *
 * Rules: erl_ext_dist of the OTP documentation, where it and the BEAM differ the BEAM. */
#ifndef TM_ETF_ETF_H
#define TM_ETF_ETF_H

#include "../base/alloc.h"
#include "../base/buf.h"
#include "../base/bytes.h"
#include "../base/error.h"
#include "../limits.h"

#define TM_ETF_VERSION 131

enum tm_tag {
#define TM_TAG(name, value) TM_##name = (value),
#include "tag.def"
#undef TM_TAG
};

/* -- identifiers ------------------------------------------------------------------------------- */

/* Text of an atom, borrowed. latin1 is set only when the bytes are Latin-1 *and* not ASCII; all
 * other atoms are valid UTF-8. */
typedef struct tm_atom {
    tm_bytes text;
    bool latin1;
} tm_atom;

typedef struct tm_pid {
    tm_bytes node; /* UTF-8, borrowed */
    uint32_t id;
    uint32_t serial;
    uint32_t creation;
} tm_pid;

typedef struct tm_ref {
    tm_bytes node; /* UTF-8, borrowed */
    uint32_t creation;
    uint32_t count; /* words in use, 0..5 */
    uint32_t words[TM_REF_WORDS_MAX];
} tm_ref;

typedef struct tm_port {
    tm_bytes node; /* UTF-8, borrowed */
    uint64_t id;
    uint32_t creation;
} tm_port;

static inline bool tm_pid_equal(const tm_pid *a, const tm_pid *b)
{
    return a->id == b->id && a->serial == b->serial && a->creation == b->creation &&
           tm_bytes_equal(a->node, b->node);
}

bool tm_ref_equal(const tm_ref *a, const tm_ref *b);

/* -- walk -------------------------------------------------------------------------------------- */

typedef struct tm_walk_limits {
    uint32_t depth_max;          /* levels; a term without parts has depth 0; <= TM_DEPTH_MAX */
    uint32_t big_bytes_max;      /* digits of a big integer, bytes */
    uint64_t decoded_bytes_max;  /* estimate of the objects that a consumer would build, bytes */
    uint32_t cache_refs;         /* ATOM_CACHE_REF indices below this are legal; 0 outside frames */
    const tm_bytes *cache_atoms; /* what they stand for, UTF-8; of cache_refs elements */
} tm_walk_limits;

#define TM_WALK_LIMITS_DEFAULT                                                                     \
    ((tm_walk_limits){TM_DEPTH_DEFAULT, TM_BIG_BYTES_DEFAULT, TM_DECODED_BYTES_DEFAULT, 0, NULL})

/* How deep an error path is remembered; longer ones show the outermost levels. */
#define TM_WALK_PATH_MAX 16

/* One level of the path to an error: element number, counted from 0. For a map the pair number,
 * for a fun the free variable; the binding renders $[2].key from it with the bytes at hand. */
typedef struct tm_walk_step {
    uint8_t tag;  /* of the container */
    uint8_t part; /* map: 0 in a key, 1 in a value; list: 1 in the tail */
    uint32_t index;
    size_t offset; /* of the container's tag */
} tm_walk_step;

/* References of which the walk remembers where they are: small messages have no more, and larger
 * ones can be scanned once more. */
#define TM_WALK_REFS_MAX 32

/* The ATOM_CACHE_REFs of a term. */
typedef struct tm_walk_refs {
    size_t count;
    size_t growth;                 /* of the term when they are written out, bytes */
    uint32_t at[TM_WALK_REFS_MAX]; /* offsets of the first ones, ascending */
} tm_walk_refs;

typedef struct tm_walk_result {
    /* 0 and TM_EPEER_LIMIT: */
    size_t len;             /* bytes of the term */
    uint64_t decoded_bytes; /* estimate */
    uint32_t depth;         /* deepest level, counted up to depth_max + 1 */
    tm_walk_refs refs;
    /* errors: */
    uint32_t path_len; /* levels of the true path; the first TM_WALK_PATH_MAX are kept */
    size_t offset;     /* of the tag or field that is wrong, or the first that is over a limit */
    const char *what;  /* static text: "atom longer than 255 characters" */
    tm_walk_step path[TM_WALK_PATH_MAX];
} tm_walk_result;

/* Validates one term at the start of bytes (no version byte); bytes after it are not looked at.
 *
 * 0                   well-formed and within the limits
 * TM_EPEER_LIMIT      well-formed to its end, but over a limit: drop it, keep the peer. what,
 *                     offset and path name the first excess; the decoded size counts as a whole
 * TM_EPEER_MALFORMED  anything else, a truncated term too, and whatever limits it passed on the way
 * TM_ENOMEM
 *
 * What it cannot see: two equal keys in one map, which Erlang refuses. The object builder does. */
TM_MUST_CHECK int tm_etf_walk(tm_bytes bytes, const tm_walk_limits *limits, const tm_alloc *alloc,
                              tm_walk_result *result);

/* -- reader: each advances the cursor past one term, or leaves it and answers TM_NEED_DATA or
 *    TM_EPEER_MALFORMED (another kind of term, or not well-formed). They check everything, so the
 *    bytes need no walk before; atom-cache references are read by those that are given the atoms
 *    of the frame, in the limits --------------------------------------------------------------- */

TM_MUST_CHECK int tm_etf_read_atom(tm_cursor *c, tm_atom *atom);
/* An atom in UTF-8: latin1 text is transcoded into scratch (TM_ATOM_BYTES_MAX bytes). */
TM_MUST_CHECK int tm_etf_read_atom_utf8(tm_cursor *c, uint8_t *scratch, tm_bytes *text);
/* A node name outside ASCII in one of the old Latin-1 tags is refused: it cannot be borrowed as
 * UTF-8, and no node sends it. */
TM_MUST_CHECK int tm_etf_read_pid(tm_cursor *c, tm_pid *pid);
TM_MUST_CHECK int tm_etf_read_ref(tm_cursor *c, tm_ref *ref);
/* The same inside a frame: a reference gives the text of limits->cache_atoms, borrowed. */
TM_MUST_CHECK int tm_etf_read_atom_utf8_in(tm_cursor *c, const tm_walk_limits *limits,
                                           uint8_t *scratch, tm_bytes *text);
TM_MUST_CHECK int tm_etf_read_pid_in(tm_cursor *c, const tm_walk_limits *limits, tm_pid *pid);
TM_MUST_CHECK int tm_etf_read_ref_in(tm_cursor *c, const tm_walk_limits *limits, tm_ref *ref);
/* Small, i32 and big integers that fit, in any of their encodings. */
TM_MUST_CHECK int tm_etf_read_u64(tm_cursor *c, uint64_t *value);
TM_MUST_CHECK int tm_etf_read_i64(tm_cursor *c, int64_t *value);
TM_MUST_CHECK int tm_etf_read_tuple(tm_cursor *c, uint32_t *arity);
/* The head of a list: *count > 0 elements and a tail follow; *count 0 is the empty list, and
 * nothing follows. STRING_EXT is refused as TM_EPEER_MALFORMED here. */
TM_MUST_CHECK int tm_etf_read_list(tm_cursor *c, uint32_t *count);
/* Any term, as a borrowed span; answers as tm_etf_walk does. On TM_EPEER_LIMIT the span is filled
 * and the cursor is left before it. */
TM_MUST_CHECK int tm_etf_read_term(tm_cursor *c, const tm_walk_limits *limits,
                                   const tm_alloc *alloc, tm_bytes *term);

/* -- walked terms ------------------------------------------------------------------------------ */

/* Both trust their bytes: only for terms that tm_etf_walk has accepted. Neither needs a stack. */

/* Where the term that starts at ptr ends. */
const uint8_t *tm_etf_skip(const uint8_t *ptr);
/* Appends walked terms with each ATOM_CACHE_REF i written out as atoms[i] (UTF-8), so that they
 * mean the same on any connection and later. Two bytes can become 1,023: buf->max bounds it.
 * The Size field of a NEW_FUN_EXT stays as it was: like every reader, do not trust it.
 * 0, TM_ENOMEM or TM_EUSE_LIMIT; on error buf is as it was. */
TM_MUST_CHECK int tm_etf_expand(tm_bytes terms, const tm_bytes *atoms, tm_buf *buf);
/* The same for one term whose walk has filled refs, to memory that the caller has sized: exactly
 * term.len + refs->growth bytes. out may lie in the memory of the term itself, if it starts
 * refs->growth bytes or more before the term does. */
void tm_etf_expand_to(uint8_t *out, tm_bytes term, const tm_bytes *atoms, const tm_walk_refs *refs);

/* -- writer: each appends one term to buf, or leaves it; 0, TM_ENOMEM or TM_EUSE_LIMIT. They
 *    reserve for the longest form: the limit may be met up to 10 bytes before buf->max --------- */

/* utf8 must be valid UTF-8, which is checked above 255 bytes only; the names in identifiers too. */
TM_MUST_CHECK int tm_etf_write_atom(tm_buf *buf, tm_bytes utf8); /* 119 or 118 */
TM_MUST_CHECK int tm_etf_write_pid(tm_buf *buf, const tm_pid *pid);
TM_MUST_CHECK int tm_etf_write_ref(tm_buf *buf, const tm_ref *ref);
TM_MUST_CHECK int tm_etf_write_i64(tm_buf *buf, int64_t value);
TM_MUST_CHECK int tm_etf_write_u64(tm_buf *buf, uint64_t value);
TM_MUST_CHECK int tm_etf_write_tuple(tm_buf *buf, uint32_t arity);
/* count elements and a tail must follow; for 0 nothing is written, the tail alone is that list */
TM_MUST_CHECK int tm_etf_write_list(tm_buf *buf, uint32_t count);
TM_MUST_CHECK int tm_etf_write_nil(tm_buf *buf);
TM_MUST_CHECK int tm_etf_write_binary(tm_buf *buf, tm_bytes bytes);
/* Bytes that are terms already. */
TM_MUST_CHECK int tm_etf_write_raw(tm_buf *buf, tm_bytes terms);

/* -- text -------------------------------------------------------------------------------------- */

/* Strict UTF-8 (no surrogates, no overlong forms); fills *chars with the number of code points. */
bool tm_utf8_valid(tm_bytes bytes, size_t *chars);

#endif
