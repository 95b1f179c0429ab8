/* Is a term that the walk accepts safe for everything that trusts it, and does it cost no more than
 * it may? The first byte picks limits, the rest is a term. */
#include <stdlib.h>

#include "etf/inline.h"

/* Options in the first byte: three bits lower one limit each, two number the cached atoms. */
#define OPTION_DEPTH 1
#define OPTION_BIG 2
#define OPTION_DECODED 4
#define OPTION_CACHE_SHIFT 3

/* Each level costs 16 bytes of stack, which doubles, and takes two bytes on the wire. */
#define ALLOC_PER_BYTE 16
#define ALLOC_BASE 1024
/* What leaf.h promises of the estimate. */
#define DECODED_PER_BYTE 200
#define DECODED_BASE 64
/* Subterms that are visited: each is walked again, which is quadratic. */
#define VISITS_MAX 2000

#define CHECK(expr)                                                                                \
    do {                                                                                           \
        if (!(expr)) abort();                                                                      \
    } while (0)

static const tm_bytes atoms[] = {
    {(const uint8_t *)"ok", 2},
    {(const uint8_t *)"py@127.0.0.1", 12},
    {(const uint8_t *)"", 0},
};

typedef struct heap {
    size_t bytes, peak;
} heap;

static void *heap_resize(void *ctx, void *ptr, size_t old_size, size_t new_size)
{
    heap *h = ctx;
    tm_alloc libc = tm_alloc_libc(NULL);
    h->bytes += new_size - old_size;
    if (h->bytes > h->peak) h->peak = h->bytes;
    return libc.resize(libc.ctx, ptr, old_size, new_size);
}

static tm_walk_limits limits_of(uint8_t options)
{
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    if (options & OPTION_DEPTH) limits.depth_max = 3;
    if (options & OPTION_BIG) limits.big_bytes_max = 8;
    if (options & OPTION_DECODED) limits.decoded_bytes_max = 1000;
    limits.cache_refs = (options >> OPTION_CACHE_SHIFT) & 3;
    limits.cache_atoms = atoms;
    return limits;
}

/* The walk with its costs checked, in a block that ends where the bytes do. */
static int walk(tm_bytes bytes, const tm_walk_limits *limits, tm_walk_result *result)
{
    heap h = {0};
    tm_alloc alloc = {.resize = heap_resize, .ctx = &h};
    tm_alloc libc = tm_alloc_libc(NULL);
    uint8_t *copy = tm_alloc_get(&libc, bytes.len ? bytes.len : 1);
    CHECK(copy);
    if (bytes.len) memcpy(copy, bytes.ptr, bytes.len);
    int rc = tm_etf_walk((tm_bytes){copy, bytes.len}, limits, &alloc, result);
    tm_alloc_free(&libc, copy, bytes.len ? bytes.len : 1);
    CHECK(h.bytes == 0);
    CHECK(h.peak <= ALLOC_PER_BYTE * bytes.len + ALLOC_BASE);
    CHECK(rc == 0 || rc == TM_EPEER_MALFORMED || rc == TM_EPEER_LIMIT);
    if (rc) {
        CHECK(result->what && result->offset <= bytes.len);
        for (size_t i = 0; i < result->path_len && i < TM_WALK_PATH_MAX; i++) {
            CHECK(result->path[i].offset < bytes.len);
            CHECK(result->path[i].index < bytes.len);
        }
    }
    if (rc == TM_EPEER_MALFORMED) return rc;
    CHECK(result->len > 0 && result->len <= bytes.len);
    CHECK(result->decoded_bytes <= DECODED_PER_BYTE * result->len + DECODED_BASE);
    return rc;
}

/* -- readers ----------------------------------------------------------------------------------- */

/* Only a term that is whole was given: it may be of another kind, but never be short. */
static bool taken(int rc, const tm_cursor *c, tm_bytes term)
{
    CHECK(rc == 0 || rc == TM_EPEER_MALFORMED);
    CHECK(c->ptr == (rc ? term.ptr : term.ptr + term.len));
    return rc == 0;
}

static void check_identifiers(tm_bytes term, tm_buf *buf)
{
    tm_cursor c = tm_cursor_of(term);
    tm_pid pid, pid_back;
    if (taken(tm_etf_read_pid(&c, &pid), &c, term)) {
        buf->len = 0;
        CHECK(tm_etf_write_pid(buf, &pid) == 0);
        c = tm_cursor_of(tm_buf_bytes(buf));
        CHECK(tm_etf_read_pid(&c, &pid_back) == 0 && tm_pid_equal(&pid, &pid_back));
    }
    c = tm_cursor_of(term);
    tm_ref ref, ref_back;
    if (taken(tm_etf_read_ref(&c, &ref), &c, term)) {
        buf->len = 0;
        CHECK(tm_etf_write_ref(buf, &ref) == 0);
        c = tm_cursor_of(tm_buf_bytes(buf));
        CHECK(tm_etf_read_ref(&c, &ref_back) == 0 && tm_ref_equal(&ref, &ref_back));
    }
}

static void check_values(tm_bytes term, tm_buf *buf)
{
    tm_cursor c = tm_cursor_of(term);
    tm_bytes text, back;
    uint8_t scratch[TM_ATOM_BYTES_MAX];
    if (taken(tm_etf_read_atom_utf8(&c, scratch, &text), &c, term)) {
        size_t chars;
        CHECK(tm_utf8_valid(text, &chars) && chars <= TM_ATOM_CHARS_MAX);
        buf->len = 0;
        CHECK(tm_etf_write_atom(buf, text) == 0);
        c = tm_cursor_of(tm_buf_bytes(buf));
        CHECK(tm_etf_read_atom_utf8(&c, scratch, &back) == 0 && tm_bytes_equal(text, back));
    }
    c = tm_cursor_of(term);
    int64_t i64, i64_back;
    if (taken(tm_etf_read_i64(&c, &i64), &c, term)) {
        buf->len = 0;
        CHECK(tm_etf_write_i64(buf, i64) == 0);
        c = tm_cursor_of(tm_buf_bytes(buf));
        CHECK(tm_etf_read_i64(&c, &i64_back) == 0 && i64_back == i64);
    }
    c = tm_cursor_of(term);
    uint64_t u64, u64_back;
    if (taken(tm_etf_read_u64(&c, &u64), &c, term)) {
        buf->len = 0;
        CHECK(tm_etf_write_u64(buf, u64) == 0);
        c = tm_cursor_of(tm_buf_bytes(buf));
        CHECK(tm_etf_read_u64(&c, &u64_back) == 0 && u64_back == u64);
    }
}

static uint8_t *room(tm_buf *buf, size_t size)
{
    CHECK(tm_buf_reserve(buf, size) == 0);
    return buf->ptr + buf->len;
}

static void put(tm_buf *buf, const uint8_t *end) { buf->len = (size_t)(end - buf->ptr); }

static void rebuild_port(tm_bytes term, tm_buf *out)
{
    const uint8_t *p = term.ptr;
    tm_atom node;
    tm_port port;
    tm_etf_take_port(&p, &node, &port);
    CHECK(p == term.ptr + term.len);
    /* Latin-1 has no place in what is put. */
    if (node.latin1) port.node = atoms[1];
    put(out, tm_etf_put_port(room(out, TM_ETF_PORT_SIZE_MAX), &port));
}

/* One term without parts once more, as the taking and putting halves see it. */
static void rebuild(tm_bytes term, tm_buf *out)
{
    const uint8_t *p = term.ptr + 1;
    bool negative;
    switch (*term.ptr) {
    case TM_NEW_FLOAT_EXT:
        put(out, tm_etf_put_f64(room(out, TM_ETF_FLOAT_SIZE), tm_etf_take_f64(&p)));
        break;
    case TM_SMALL_INTEGER_EXT:
    case TM_INTEGER_EXT:
        p--;
        CHECK(tm_etf_write_i64(out, tm_etf_take_i32(&p)) == 0);
        break;
    case TM_SMALL_BIG_EXT:
    case TM_LARGE_BIG_EXT:
        p--;
        CHECK(tm_etf_take_big(&p, &negative).len < term.len);
        CHECK(tm_etf_write_raw(out, term) == 0);
        break;
    case TM_BINARY_EXT:
        p += 4;
        CHECK(tm_etf_write_binary(out, tm_bytes_of(p, term.len - 5)) == 0);
        p = term.ptr + term.len;
        break;
    case TM_PORT_EXT:
    case TM_NEW_PORT_EXT:
    case TM_V4_PORT_EXT: rebuild_port(term, out); return;
    default: CHECK(tm_etf_write_raw(out, term) == 0); return;
    }
    CHECK(p == term.ptr + term.len);
}

/* A head, if the term at the cursor has parts that the readers see; adds to *left. */
static bool rebuild_head(tm_cursor *c, uint64_t *left, tm_buf *out)
{
    uint32_t count;
    if (*c->ptr == TM_MAP_EXT) {
        c->ptr++;
        count = tm_etf_take_u32(&c->ptr);
        *left += 2ULL * count;
        put(out, tm_etf_put_map(room(out, TM_ETF_HEAD_SIZE_MAX), count));
    } else if (tm_etf_read_tuple(c, &count) == 0) {
        *left += count;
        CHECK(tm_etf_write_tuple(out, count) == 0);
    } else if (tm_etf_read_list(c, &count) == 0) {
        *left += count ? count + 1ULL : 0;
        CHECK((count ? tm_etf_write_list(out, count) : tm_etf_write_nil(out)) == 0);
    } else {
        return false;
    }
    return true;
}

/* Each term in a walked one, through the readers; what the writers make of it walks again. */
static void check_parts(tm_bytes whole, tm_buf *buf, tm_buf *rebuilt)
{
    tm_walk_limits limits = {TM_DEPTH_MAX, UINT32_MAX, UINT64_MAX, 0, NULL};
    tm_alloc libc = tm_alloc_libc(NULL);
    tm_cursor c = tm_cursor_of(whole);
    uint64_t left = 1;
    for (size_t visits = 0; left && visits < VISITS_MAX; visits++, left--) {
        tm_cursor at = c;
        tm_bytes term;
        CHECK(tm_etf_read_term(&at, &limits, &libc, &term) == 0);
        CHECK(tm_etf_skip(term.ptr) == at.ptr);
        check_identifiers(term, buf);
        check_values(term, buf);
        if (rebuild_head(&c, &left, rebuilt)) continue;
        rebuild(term, rebuilt);
        c = at;
    }
    if (left) return;
    tm_walk_result result;
    CHECK(c.ptr == c.end);
    CHECK(walk(tm_buf_bytes(rebuilt), &limits, &result) == 0 && result.len == rebuilt->len);
}

/* Readers meet bytes that nobody has walked, too: what they take, the walk takes. */
static void check_unwalked(tm_bytes bytes)
{
    tm_walk_limits limits = {TM_DEPTH_MAX, UINT32_MAX, UINT64_MAX, 0, NULL};
    uint8_t scratch[TM_ATOM_BYTES_MAX];
    tm_bytes text;
    tm_pid pid;
    tm_ref ref;
    int64_t i64;
    uint64_t u64;
    uint32_t count;
    tm_walk_result result;
    for (unsigned kind = 0; kind < 7; kind++) {
        tm_cursor c = tm_cursor_of(bytes);
        int rc = kind == 0   ? tm_etf_read_atom_utf8(&c, scratch, &text)
                 : kind == 1 ? tm_etf_read_pid(&c, &pid)
                 : kind == 2 ? tm_etf_read_ref(&c, &ref)
                 : kind == 3 ? tm_etf_read_i64(&c, &i64)
                 : kind == 4 ? tm_etf_read_u64(&c, &u64)
                 : kind == 5 ? tm_etf_read_tuple(&c, &count)
                             : tm_etf_read_list(&c, &count);
        CHECK(rc == 0 || rc == TM_NEED_DATA || rc == TM_EPEER_MALFORMED);
        size_t len = bytes.len - tm_cursor_left(&c);
        CHECK((rc == 0) == (len > 0));
        if (rc || kind >= 5) continue;
        CHECK(walk(bytes, &limits, &result) == 0 && result.len == len);
    }
}

/* Written out to a block of the promised size, and in the term's own memory. */
static void check_expanded(tm_bytes term, const tm_walk_refs *refs, tm_bytes expected)
{
    size_t len = term.len + refs->growth;
    CHECK(expected.len == len);
    uint8_t *apart = malloc(len), *own = malloc(len);
    CHECK(apart && own);
    tm_etf_expand_to(apart, term, atoms, refs);
    CHECK(memcmp(apart, expected.ptr, len) == 0);
    memcpy(own + refs->growth, term.ptr, term.len);
    tm_etf_expand_to(own, tm_bytes_of(own + refs->growth, term.len), atoms, refs);
    CHECK(memcmp(own, expected.ptr, len) == 0);
    free(apart);
    free(own);
}

/* -- target ------------------------------------------------------------------------------------ */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    tm_walk_limits limits = limits_of(data[0]);
    tm_bytes bytes = {data + 1, size - 1};
    tm_walk_result result, again;
    check_unwalked(bytes);
    int rc = walk(bytes, &limits, &result);
    if (rc == TM_EPEER_MALFORMED) return 0;
    tm_bytes term = {bytes.ptr, result.len};
    CHECK(walk(term, &limits, &again) == rc);
    CHECK(again.len == result.len && again.decoded_bytes == result.decoded_bytes);
    CHECK(walk((tm_bytes){term.ptr, term.len - 1}, &limits, &again) == TM_EPEER_MALFORMED);
    CHECK(tm_etf_skip(term.ptr) == term.ptr + term.len);

    tm_alloc libc = tm_alloc_libc(NULL);
    tm_buf expanded, rebuilt, buf;
    tm_buf_init(&expanded, &libc, 0);
    tm_buf_init(&rebuilt, &libc, 0);
    tm_buf_init(&buf, &libc, 0);
    CHECK(tm_etf_expand(term, atoms, &expanded) == 0);
    CHECK(limits.cache_refs || tm_bytes_equal(term, tm_buf_bytes(&expanded)));
    check_expanded(term, &result.refs, tm_buf_bytes(&expanded));
    check_parts(tm_buf_bytes(&expanded), &buf, &rebuilt);
    tm_buf_fini(&expanded);
    tm_buf_fini(&rebuilt);
    tm_buf_fini(&buf);
    return 0;
}
