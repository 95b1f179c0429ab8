#include "leaf.h"

const char tm_leaf_cut[] = "the term is cut off";

/* OTP's MAX_ARG: no fun has more free variables. */
#define FUN_FREE_MAX 255
/* NEW_FUN_EXT before its first nested term: tag, Size, Arity, Uniq, Index, NumFree. */
#define FUN_HEAD_SIZE 30
#define FUN_FREE_OFFSET 26
/* Size counts itself. Nothing else of it is believed: nodes have sent wrong ones. */
#define FUN_SIZE_MIN 4
/* The old tags carry a creation of two bits and 18 bits in the first word of a reference. */
#define OLD_CREATION_MAX 3
#define OLD_REF_WORD_MAX ((1U << 18) - 1)
/* A small integer of the BEAM has 60 bits; the old fields of a fun are such. */
#define OLD_FUN_FIELD_MAX (((int64_t)1 << 59) - 1)

static const uint8_t *leaf_fail(tm_leaf *leaf, const uint8_t *bad, const char *what)
{
    leaf->bad = bad;
    leaf->what = what;
    return NULL;
}

static const uint8_t *leaf_cut(tm_leaf *leaf, const uint8_t *bad)
{
    return leaf_fail(leaf, bad, tm_leaf_cut);
}

/* -- atoms ------------------------------------------------------------------------------------- */

static const uint8_t *leaf_cache_ref(tm_leaf *leaf, const uint8_t *p)
{
    if (tm_leaf_left(leaf, p) < 2) return leaf_cut(leaf, p);
    if (p[1] >= leaf->cache_refs)
        return leaf_fail(leaf, p, "atom cache reference that the frame does not define");
    if (leaf->refs) tm_leaf_count_ref(leaf, p);
    return p + 2;
}

static const uint8_t *leaf_atom_utf8(tm_leaf *leaf, const uint8_t *p, tm_bytes text)
{
    size_t chars = 0;
    if (!tm_utf8_valid(text, &chars)) return leaf_fail(leaf, p, "atom that is not valid UTF-8");
    if (chars > TM_ATOM_CHARS_MAX) return leaf_fail(leaf, p, "atom longer than 255 characters");
    /* One wide character makes every one of the text four bytes wide. */
    leaf->cost += chars == text.len ? text.len : 4 * chars;
    return text.ptr + text.len;
}

const uint8_t *tm_leaf_atom(tm_leaf *leaf, const uint8_t *p)
{
    size_t left = tm_leaf_left(leaf, p);
    if (!left) return leaf_cut(leaf, p);
    uint8_t tag = *p;
    tm_bytes text;
    if (tag == TM_SMALL_ATOM_UTF8_EXT || tag == TM_SMALL_ATOM_EXT) {
        if (left < 2) return leaf_cut(leaf, p);
        text = (tm_bytes){p + 2, p[1]};
    } else if (tag == TM_ATOM_UTF8_EXT || tag == TM_ATOM_EXT) {
        if (left < 3) return leaf_cut(leaf, p);
        text = (tm_bytes){p + 3, tm_load_u16(p + 1)};
    } else if (tag == TM_ATOM_CACHE_REF) {
        return leaf_cache_ref(leaf, p);
    } else {
        return leaf_fail(leaf, p, "not an atom where one must be");
    }
    if (text.len > tm_leaf_left(leaf, text.ptr)) return leaf_cut(leaf, p);
    if (text.len > TM_ATOM_BYTES_MAX) return leaf_fail(leaf, p, "atom longer than 255 characters");
    leaf->cost += TM_COST_ATOM;
    if (tag == TM_SMALL_ATOM_UTF8_EXT || tag == TM_ATOM_UTF8_EXT)
        return leaf_atom_utf8(leaf, p, text);
    if (text.len > TM_ATOM_CHARS_MAX) return leaf_fail(leaf, p, "atom longer than 255 characters");
    leaf->cost += text.len;
    return text.ptr + text.len;
}

/* -- identifiers ------------------------------------------------------------------------------- */

/* The node of an identifier and size bytes after it. */
static const uint8_t *leaf_node(tm_leaf *leaf, const uint8_t *node, size_t size)
{
    const uint8_t *p = tm_leaf_atom(leaf, node);
    if (!p) return NULL;
    if (tm_leaf_left(leaf, p) < size) return leaf_cut(leaf, p);
    leaf->cost += TM_COST_ID;
    return p + size;
}

/* The same with a creation of one byte at the end of those. */
static const uint8_t *leaf_node_old(tm_leaf *leaf, const uint8_t *node, size_t size)
{
    const uint8_t *p = leaf_node(leaf, node, size);
    if (p && p[-1] > OLD_CREATION_MAX)
        return leaf_fail(leaf, p - 1, "creation above 3 in an old identifier");
    return p;
}

const uint8_t *tm_leaf_pid(tm_leaf *leaf, const uint8_t *p)
{
    if (p == leaf->end) return leaf_cut(leaf, p);
    if (*p == TM_NEW_PID_EXT) return leaf_node(leaf, p + 1, 12);
    if (*p == TM_PID_EXT) return leaf_node_old(leaf, p + 1, 9);
    return leaf_fail(leaf, p, "not a pid where one must be");
}

static const uint8_t *leaf_port(tm_leaf *leaf, const uint8_t *p)
{
    if (*p == TM_V4_PORT_EXT) return leaf_node(leaf, p + 1, 12);
    if (*p == TM_NEW_PORT_EXT) return leaf_node(leaf, p + 1, 8);
    return leaf_node_old(leaf, p + 1, 5);
}

static const uint8_t *leaf_ref_word(tm_leaf *leaf, const uint8_t *word, const uint8_t *p)
{
    if (tm_load_u32(word) > OLD_REF_WORD_MAX)
        return leaf_fail(leaf, word, "first word over 18 bits in an old reference");
    return p;
}

const uint8_t *tm_leaf_ref(tm_leaf *leaf, const uint8_t *p)
{
    if (p == leaf->end) return leaf_cut(leaf, p);
    if (*p == TM_REFERENCE_EXT) {
        const uint8_t *end = leaf_node_old(leaf, p + 1, 5);
        return end ? leaf_ref_word(leaf, end - 5, end) : NULL;
    }
    if (*p != TM_NEWER_REFERENCE_EXT && *p != TM_NEW_REFERENCE_EXT)
        return leaf_fail(leaf, p, "not a reference where one must be");
    if (tm_leaf_left(leaf, p) < 3) return leaf_cut(leaf, p);
    size_t count = tm_load_u16(p + 1);
    if (count > TM_REF_WORDS_MAX) return leaf_fail(leaf, p + 1, "reference of more than 5 words");
    if (*p == TM_NEWER_REFERENCE_EXT) return leaf_node(leaf, p + 3, 4 + 4 * count);
    const uint8_t *end = leaf_node(leaf, p + 3, 1 + 4 * count);
    if (!end) return NULL;
    const uint8_t *words = end - 4 * count;
    if (words[-1] > OLD_CREATION_MAX)
        return leaf_fail(leaf, words - 1, "creation above 3 in an old identifier");
    return count ? leaf_ref_word(leaf, words, end) : end;
}

/* -- numbers and bits -------------------------------------------------------------------------- */

static const uint8_t *leaf_integer(tm_leaf *leaf, const uint8_t *p)
{
    size_t size = *p == TM_SMALL_INTEGER_EXT ? 2 : 5;
    if (tm_leaf_left(leaf, p) < size) return leaf_cut(leaf, p);
    leaf->cost += size == 5 ? TM_COST_INTEGER : 0;
    return p + size;
}

/* Leading zeros, no digits and -0 are what OTP reads too. */
static const uint8_t *leaf_big(tm_leaf *leaf, const uint8_t *p)
{
    size_t head = *p == TM_SMALL_BIG_EXT ? 3 : 6;
    if (tm_leaf_left(leaf, p) < head) return leaf_cut(leaf, p);
    size_t len = head == 3 ? p[1] : tm_load_u32(p + 1);
    if (tm_leaf_left(leaf, p) - head < len) return leaf_cut(leaf, p);
    if (len > leaf->big_bytes_max) leaf->large = p;
    leaf->cost += TM_COST_INTEGER + len + len / 8;
    return p + head + len;
}

static const uint8_t *leaf_float(tm_leaf *leaf, const uint8_t *p)
{
    size_t size = *p == TM_NEW_FLOAT_EXT ? 9 : 32;
    if (tm_leaf_left(leaf, p) < size) return leaf_cut(leaf, p);
    if (size == 9) {
        if ((tm_load_u16(p + 1) & 0x7ff0) == 0x7ff0)
            return leaf_fail(leaf, p, "float that is not finite");
    } else if (!tm_float_text_valid(p + 1)) {
        return leaf_fail(leaf, p, "float text that is not a finite number");
    }
    leaf->cost += TM_COST_FLOAT;
    return p + size;
}

static const uint8_t *leaf_bits(tm_leaf *leaf, const uint8_t *p)
{
    if (tm_leaf_left(leaf, p) < 6) return leaf_cut(leaf, p);
    size_t len = tm_load_u32(p + 1);
    uint8_t bits = p[5];
    /* OTP 25 reads the empty one with 0 bits as the empty binary; 1..8 of no byte are nothing. */
    if (len ? bits < 1 || bits > 8 : bits != 0)
        return leaf_fail(leaf, p + 5, "bit count of a bitstring out of range");
    if (tm_leaf_left(leaf, p) - 6 < len) return leaf_cut(leaf, p);
    leaf->cost += TM_COST_BITS + TM_COST_BYTES + len;
    return p + 6 + len;
}

static const uint8_t *leaf_bytes(tm_leaf *leaf, const uint8_t *p)
{
    size_t head = *p == TM_BINARY_EXT ? 5 : 3;
    if (tm_leaf_left(leaf, p) < head) return leaf_cut(leaf, p);
    size_t len = head == 5 ? tm_load_u32(p + 1) : tm_load_u16(p + 1);
    if (tm_leaf_left(leaf, p) - head < len) return leaf_cut(leaf, p);
    leaf->cost += head == 5 ? TM_COST_BYTES + len : TM_COST_LIST + TM_COST_SLOT * len;
    return p + head + len;
}

/* -- funs -------------------------------------------------------------------------------------- */

static const uint8_t *leaf_export(tm_leaf *leaf, const uint8_t *p)
{
    p = tm_leaf_atom(leaf, p + 1);
    if (p) p = tm_leaf_atom(leaf, p);
    if (!p) return NULL;
    if (p == leaf->end) return leaf_cut(leaf, p);
    const uint8_t *arity = p;
    if (*arity != TM_SMALL_INTEGER_EXT && *arity != TM_INTEGER_EXT)
        return leaf_fail(leaf, arity, "arity of a fun that is not a small integer");
    p = leaf_integer(leaf, p);
    if (!p) return NULL;
    if (*arity == TM_INTEGER_EXT && (arity[1] & 0x80))
        return leaf_fail(leaf, arity, "negative arity of a fun");
    leaf->cost += TM_COST_EXPORT;
    return p;
}

/* OldIndex and OldUniq: whatever the BEAM keeps in a small integer. */
static const uint8_t *leaf_fun_field(tm_leaf *leaf, const uint8_t *p)
{
    if (p == leaf->end) return leaf_cut(leaf, p);
    if (*p == TM_SMALL_INTEGER_EXT || *p == TM_INTEGER_EXT) return leaf_integer(leaf, p);
    tm_cursor c = {p, leaf->end};
    int64_t value;
    int rc = tm_etf_read_i64(&c, &value);
    if (rc == TM_NEED_DATA) return leaf_cut(leaf, p);
    if (rc || value > OLD_FUN_FIELD_MAX || value < -OLD_FUN_FIELD_MAX - 1)
        return leaf_fail(leaf, p, "field of a fun that is not a small integer");
    return c.ptr;
}

static const uint8_t *leaf_fun(tm_leaf *leaf, const uint8_t *p)
{
    if (tm_leaf_left(leaf, p) < FUN_HEAD_SIZE) return leaf_cut(leaf, p);
    if (tm_load_u32(p + 1) < FUN_SIZE_MIN) return leaf_fail(leaf, p + 1, "size of a fun below 4");
    uint32_t parts = tm_load_u32(p + FUN_FREE_OFFSET);
    if (parts > FUN_FREE_MAX)
        return leaf_fail(leaf, p + FUN_FREE_OFFSET, "fun of more than 255 free variables");
    p = tm_leaf_atom(leaf, p + FUN_HEAD_SIZE);
    if (p) p = leaf_fun_field(leaf, p);
    if (p) p = leaf_fun_field(leaf, p);
    if (p) p = tm_leaf_pid(leaf, p);
    if (!p) return NULL;
    leaf->parts = parts;
    leaf->cost += TM_COST_FUN + TM_COST_SLOT * parts;
    return p;
}

/* -- all --------------------------------------------------------------------------------------- */

static const char *leaf_refusal(uint8_t tag)
{
    switch (tag) {
    case TM_FUN_EXT: return "FUN_EXT, which OTP 23 removed";
    case TM_LOCAL_EXT: return "local terms have no meaning outside their node";
    case TM_COMPRESSED: return "compressed term inside a term";
    case TM_ETF_VERSION: return "version byte inside a term";
    default: return "unknown tag";
    }
}

const uint8_t *tm_leaf_any(tm_leaf *leaf, const uint8_t *p)
{
    switch (*p) {
    case TM_ATOM_EXT:
    case TM_SMALL_ATOM_EXT:
    case TM_ATOM_UTF8_EXT:
    case TM_SMALL_ATOM_UTF8_EXT:
    case TM_ATOM_CACHE_REF: return tm_leaf_atom(leaf, p);
    case TM_NEW_PID_EXT:
    case TM_PID_EXT: return tm_leaf_pid(leaf, p);
    case TM_V4_PORT_EXT:
    case TM_NEW_PORT_EXT:
    case TM_PORT_EXT: return leaf_port(leaf, p);
    case TM_NEWER_REFERENCE_EXT:
    case TM_NEW_REFERENCE_EXT:
    case TM_REFERENCE_EXT: return tm_leaf_ref(leaf, p);
    case TM_SMALL_INTEGER_EXT:
    case TM_INTEGER_EXT: return leaf_integer(leaf, p);
    case TM_SMALL_BIG_EXT:
    case TM_LARGE_BIG_EXT: return leaf_big(leaf, p);
    case TM_NEW_FLOAT_EXT:
    case TM_FLOAT_EXT: return leaf_float(leaf, p);
    case TM_BIT_BINARY_EXT: return leaf_bits(leaf, p);
    case TM_BINARY_EXT:
    case TM_STRING_EXT: return leaf_bytes(leaf, p);
    case TM_EXPORT_EXT: return leaf_export(leaf, p);
    case TM_NEW_FUN_EXT: return leaf_fun(leaf, p);
    /* The walk takes the containers itself, unless their head is cut off. */
    case TM_SMALL_TUPLE_EXT:
    case TM_LARGE_TUPLE_EXT:
    case TM_LIST_EXT:
    case TM_MAP_EXT: return leaf_cut(leaf, p);
    default: return leaf_fail(leaf, p, leaf_refusal(*p));
    }
}
