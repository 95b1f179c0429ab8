#include "frame.h"

#include "../base/check.h"

#define PREFIX_SIZE 4

/* First bytes of a frame. */
#define PASS_THROUGH 112
#define HEADER_NORMAL 68
#define HEADER_FRAGMENT_FIRST 69
#define HEADER_FRAGMENT_NEXT 70

/* -- in ---------------------------------------------------------------------------------------- */

static void framer_invariants(const tm_framer *framer)
{
    TM_DCHECK(!framer->memory.ptr || framer->have + TM_FRAME_HEADROOM <= framer->memory.size);
    TM_DCHECK(!framer->memory.ptr == !framer->memory.size);
    TM_DCHECK(framer->prefix_len <= PREFIX_SIZE);
    (void)framer;
}

void tm_framer_init(tm_framer *framer, const tm_alloc *alloc, uint64_t bytes_max)
{
    *framer = (tm_framer){.alloc = alloc, .bytes_max = bytes_max};
}

static void framer_release(tm_framer *framer)
{
    tm_slab_free(framer->alloc, &framer->memory);
    framer->have = 0;
    framer->handed_out = framer->in_parts = framer->begins = false;
}

void tm_framer_fini(tm_framer *framer) { framer_release(framer); }

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

static void input_skip(tm_bytes *input, size_t count)
{
    input->ptr += count;
    input->len -= count;
}

/* Completes the length prefix. */
static int framer_prefix(tm_framer *framer, tm_bytes *input)
{
    size_t take = smaller((size_t)PREFIX_SIZE - framer->prefix_len, input->len);
    memcpy(framer->prefix + framer->prefix_len, input->ptr, take);
    framer->prefix_len = (uint8_t)(framer->prefix_len + take);
    input_skip(input, take);
    if (framer->prefix_len < PREFIX_SIZE) return TM_NEED_DATA;
    framer->len = tm_load_u32(framer->prefix);
    return framer->len > framer->bytes_max ? TM_EPEER_LIMIT : 0;
}

/* What comes behind the first fragment of a message is short, most often: it will fit. */
#define TAIL_DIVISOR 4

/* Room for take more bytes: what is needed, or a multiple of what there was, never above the frame. */
static int framer_reserve(tm_framer *framer, size_t take)
{
    size_t need = framer->have + take;
    size_t cap = framer->memory.size ? framer->memory.size - TM_FRAME_HEADROOM : 0;
    if (need <= cap) return 0;
    cap = cap ? cap * TM_GATHER_GROWTH : (size_t)TM_FRAMER_FIRST_BYTES;
    if (cap < need) cap = need;
    if (cap >= framer->len) cap = framer->len + (framer->begins ? framer->len / TAIL_DIVISOR : 0);
    return tm_slab_resize(framer->alloc, &framer->memory, TM_FRAME_HEADROOM + cap);
}

static uint8_t *framer_bytes(const tm_framer *framer)
{
    return framer->memory.ptr + TM_FRAME_HEADROOM;
}

/* Gathers the part of the frame that is in the input, if it is not in its place already. */
static int framer_gather(tm_framer *framer, tm_bytes *input)
{
    size_t take = smaller(framer->len - framer->have, input->len);
    if (!take) return framer->have < framer->len ? TM_NEED_DATA : 0;
#ifdef TM_PLANTED_BUG /* planted for the fuzz target: bytes of the next frame overrun this one */
    if (framer->have) take = input->len;
#endif
    int rc = framer_reserve(framer, take);
    if (rc) return rc;
    uint8_t *at = framer_bytes(framer) + framer->have;
    if (at != input->ptr) memcpy(at, input->ptr, take);
    framer->have += take;
    input_skip(input, take);
    return framer->have < framer->len ? TM_NEED_DATA : 0;
}

/* The first bytes of an unfinished frame tell what it is, and are gathered unless it comes in parts. */
static int framer_head(tm_framer *framer, tm_bytes *input)
{
    size_t size = smaller(sizeof framer->head, framer->len);
    size_t take = smaller(size - framer->have, input->len);
    memcpy(framer->head + framer->have, input->ptr, take);
    framer->have += take;
    input_skip(input, take);
    if (framer->have < size) return TM_NEED_DATA;
    bool fragment = size == sizeof framer->head && framer->head[0] == TM_ETF_VERSION;
    framer->in_parts = fragment && framer->head[1] == HEADER_FRAGMENT_NEXT;
    framer->begins = fragment && framer->head[1] == HEADER_FRAGMENT_FIRST;
    if (framer->in_parts) return 0;
    tm_bytes head = tm_bytes_of(framer->head, size);
    framer->have = 0;
    int rc = framer_gather(framer, &head);
    return rc == TM_NEED_DATA ? 0 : rc;
}

/* What the input has of a frame that is handed out in parts. */
static int framer_part(tm_framer *framer, tm_bytes *input, tm_frame *frame)
{
    size_t left = framer->len - framer->have;
    size_t take = smaller(left, input->len);
    if (left && !take) return TM_NEED_DATA;
    frame->head = tm_bytes_of(framer->head, sizeof framer->head);
    frame->body = tm_bytes_of(input->ptr, take);
    frame->left = left - take;
    framer->have += take;
    input_skip(input, take);
    if (frame->left) return 0;
    framer_release(framer);
    framer->prefix_len = 0;
    return 0;
}

static int framer_step(tm_framer *framer, tm_bytes *input, tm_frame *frame)
{
    if (framer->prefix_len < PREFIX_SIZE) {
        int rc = input->len ? framer_prefix(framer, input) : TM_NEED_DATA;
        frame->len = framer->prefix_len == PREFIX_SIZE ? framer->len : 0;
        if (rc) return rc;
    }
    frame->len = framer->len;
    if (!framer->have && input->len >= framer->len) {
        frame->body = tm_bytes_of(input->ptr, framer->len);
        input_skip(input, framer->len);
    } else {
        bool unknown = framer->parts && !framer->memory.ptr && !framer->in_parts;
        int rc = unknown ? framer_head(framer, input) : 0;
        if (rc) return rc;
        if (framer->in_parts) return framer_part(framer, input, frame);
        rc = framer_gather(framer, input);
        if (rc) return rc;
        frame->body = tm_bytes_of(framer_bytes(framer), framer->len);
        framer->handed_out = true;
    }
    framer->prefix_len = 0;
    return 0;
}

int tm_framer_feed(tm_framer *framer, tm_bytes *input, tm_frame *frame)
{
    /* Its memory may have been taken. */
    if (framer->handed_out) framer_release(framer);
    framer_invariants(framer);
    *frame = (tm_frame){0};
    if (framer->rc) {
        frame->len = framer->len;
        return framer->rc;
    }
    int rc = framer_step(framer, input, frame);
    if (rc && rc != TM_NEED_DATA) {
        framer->rc = rc;
        framer_release(framer);
    }
    framer_invariants(framer);
    return rc;
}

tm_room tm_framer_room(tm_framer *framer)
{
    /* Without memory for it the bytes will find that out themselves. */
    if (!framer->memory.ptr || framer->handed_out || framer_reserve(framer, 1))
        return (tm_room){NULL, 0};
    size_t cap = framer->memory.size - TM_FRAME_HEADROOM;
    size_t have = framer->have;
    return (tm_room){framer_bytes(framer) + have, smaller(cap, framer->len) - have};
}

static int frame_wrong(tm_fault *fault, size_t offset, const char *what)
{
    if (fault) *fault = (tm_fault){.offset = offset, .what = what};
    return TM_EPEER_MALFORMED;
}

static int open_pass_through(tm_cursor *c, tm_frame_terms *terms, tm_fault *fault)
{
    uint8_t version = c->ptr[1];
    if (version == HEADER_NORMAL || version == HEADER_FRAGMENT_FIRST ||
        version == HEADER_FRAGMENT_NEXT)
        if (*c->ptr == TM_ETF_VERSION)
            return frame_wrong(fault, 1, "a distribution header was not negotiated");
    if (*c->ptr != PASS_THROUGH) return frame_wrong(fault, 0, "an unknown form of frame");
    if (version != TM_ETF_VERSION)
        return frame_wrong(fault, 1, "no version byte before the control message");
    c->ptr += 2;
    terms->versioned = true;
    return 0;
}

/* The numbers of a fragment. A message in one fragment is a whole one. */
static int open_fragment(tm_cursor *c, bool first, tm_frame_terms *terms, tm_fault *fault)
{
    if (tm_cursor_u64(c, &terms->sequence) || tm_cursor_u64(c, &terms->fragment))
        return frame_wrong(fault, 2, "the header of a fragment is cut off");
    if (!terms->fragment) return frame_wrong(fault, 10, "a fragment with number 0");
    if (!first)
        terms->kind = TM_FRAME_FRAGMENT_NEXT;
    else if (terms->fragment > 1)
        terms->kind = TM_FRAME_FRAGMENT_FIRST;
    return 0;
}

static int open_header(uint64_t flags, tm_cursor *c, tm_frame_terms *terms, tm_fault *fault)
{
    uint8_t form = c->ptr[1];
    bool fragment = form == HEADER_FRAGMENT_FIRST || form == HEADER_FRAGMENT_NEXT;
    if (*c->ptr == PASS_THROUGH)
        return frame_wrong(fault, 0, "no distribution header, which was negotiated");
    if (*c->ptr != TM_ETF_VERSION || (form != HEADER_NORMAL && !fragment))
        return frame_wrong(fault, 0, "an unknown form of frame");
    if (fragment && !(flags & TM_DFLAG(FRAGMENTS)))
        return frame_wrong(fault, 1, "fragments were not negotiated");
    const uint8_t *start = c->ptr;
    c->ptr += 2;
    int rc = fragment ? open_fragment(c, form == HEADER_FRAGMENT_FIRST, terms, fault) : 0;
    if (rc || form == HEADER_FRAGMENT_NEXT) return rc;
    terms->has_atoms = flags & TM_DFLAG(DIST_HDR_ATOM_CACHE);
    if (terms->has_atoms) return 0;
    uint8_t count;
    size_t at = (size_t)(c->ptr - start);
    if (tm_cursor_u8(c, &count))
        return frame_wrong(fault, at, "the distribution header is cut off");
    return count ? frame_wrong(fault, at, "an atom cache was not negotiated") : 0;
}

int tm_frame_open(uint64_t flags, tm_bytes body, tm_frame_terms *terms, tm_fault *fault)
{
    *terms = (tm_frame_terms){0};
    tm_cursor c = tm_cursor_of(body);
    if (body.len < 2) return frame_wrong(fault, body.len, "a frame too short to hold a message");
    int rc = flags & TM_DFLAGS_HEADER ? open_header(flags, &c, terms, fault)
                                      : open_pass_through(&c, terms, fault);
    if (!rc) terms->bytes = tm_bytes_of(c.ptr, tm_cursor_left(&c));
    return rc;
}

int tm_frame_atoms(tm_atom_cache *cache, tm_bytes body, tm_frame_terms *terms,
                   tm_atom_header *header, tm_fault *fault)
{
    tm_atom_header_init(header);
    if (!terms->has_atoms) return 0;
    tm_cursor c = tm_cursor_of(terms->bytes);
    const char *what = NULL;
    int rc = tm_atom_cache_read(cache, &c, header, &what);
    if (rc && fault) *fault = (tm_fault){.offset = (size_t)(c.ptr - body.ptr), .what = what};
    if (!rc) terms->bytes = tm_bytes_of(c.ptr, tm_cursor_left(&c));
    return rc;
}

/* -- out --------------------------------------------------------------------------------------- */

static const uint8_t version_byte = TM_ETF_VERSION;

/* Appends the length, the head of the form that the flags fix, the control message, and in
 * pass-through form the version byte of a payload that follows. The header refers to no atom. */
static int frame_head(tm_buf *out, uint64_t flags, const tm_control *control, bool payload,
                      size_t payload_len)
{
    static const uint8_t pass[] = {0, 0, 0, 0, PASS_THROUGH, TM_ETF_VERSION};
    static const uint8_t header[] = {0, 0, 0, 0, TM_ETF_VERSION, HEADER_NORMAL, 0};
    bool headed = flags & TM_DFLAGS_HEADER;
    if (payload && !payload_len) return TM_EUSE_ARG;
    size_t start = out->len;
    int rc =
        headed ? tm_buf_append(out, header, sizeof header) : tm_buf_append(out, pass, sizeof pass);
    if (!rc) rc = tm_control_write(out, flags, control);
    if (!rc && payload && !headed) rc = tm_buf_append(out, &version_byte, 1);
    size_t len = out->len - start - PREFIX_SIZE;
    if (!rc && payload_len > TM_MESSAGE_BYTES_MAX - len) rc = TM_EUSE_LIMIT;
    if (rc)
        out->len = start;
    else
        tm_store_u32(out->ptr + start, (uint32_t)(len + payload_len));
    return rc;
}

int tm_frame_write_head(tm_buf *out, uint64_t flags, const tm_control *control, size_t payload_len)
{
    if (!tm_control_takes_payload(flags, control)) {
        /* What cannot be sent at all keeps its own error. */
        size_t start = out->len;
        int rc = tm_control_write(out, flags, control);
        out->len = start;
        return rc ? rc : TM_EUSE_ARG;
    }
    return frame_head(out, flags, control, true, payload_len);
}

/* Exit reasons come with the control message, whichever way they travel. */
static bool carries_reason(const tm_control *control)
{
    return control->op == TM_OP_EXIT || control->op == TM_OP_EXIT2 ||
           control->op == TM_OP_MONITOR_P_EXIT;
}

int tm_frame_write(tm_buf *out, uint64_t flags, const tm_control *control, tm_bytes payload)
{
    bool takes = tm_control_takes_payload(flags, control);
    if (payload.len && (!takes || carries_reason(control))) return TM_EUSE_ARG;
    if (takes && carries_reason(control)) payload = control->reason;
    size_t start = out->len;
    int rc = frame_head(out, flags, control, takes, payload.len);
    if (!rc) rc = tm_buf_append(out, payload.ptr, payload.len);
    if (rc) out->len = start;
    return rc;
}
