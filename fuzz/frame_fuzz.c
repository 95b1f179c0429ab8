/* Does the stream of a connected peer cost no more memory than it sent, and does every control
 * message in it survive being written again? The first byte picks limits, the rest is the stream,
 * in parts. */
#include "dist/control_test.h"
#include "dist/frame.h"
#include "split.h"

#define OPTION_FRAME 1   /* a small largest frame */
#define OPTION_DEPTH 2   /* little nesting */
#define OPTION_BIG 4     /* small big integers */
#define OPTION_OLD 8     /* write to a peer with the least flags, too */
#define OPTION_HEADER 16 /* read frames with a header */

#define PLAIN (TM_DFLAGS_OURS & ~TM_DFLAGS_HEADER)
#define FLAGS (PLAIN | TM_DFLAG(ALTACT_SIG))

/* What both forms have in common when they are written: no list of atoms to be read. */
static uint64_t form_of(uint8_t options)
{
    return options & OPTION_HEADER ? TM_DFLAG(FRAGMENTS) : 0;
}

static tm_walk_limits limits_of(uint8_t options)
{
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    if (options & OPTION_DEPTH) limits.depth_max = 2;
    if (options & OPTION_BIG) limits.big_bytes_max = 8;
    return limits;
}

static bool item_nameless(const tm_control_item *item)
{
    return (item->kind == TM_ITEM_PID && !item->pid.node.len) ||
           (item->kind == TM_ITEM_REF && !item->ref.node.len);
}

/* Identifiers of a node without a name can be read but are not sent. */
static bool nameless(const tm_control *c)
{
    bool ref = c->op == TM_OP_MONITOR_P || c->op == TM_OP_DEMONITOR_P ||
               c->op == TM_OP_MONITOR_P_EXIT || c->op == TM_OP_SPAWN_REQUEST ||
               c->op == TM_OP_SPAWN_REPLY;
    bool leader = c->op == TM_OP_GROUP_LEADER || c->op == TM_OP_SPAWN_REQUEST;
    return item_nameless(&c->from) || item_nameless(&c->to) || item_nameless(&c->result) ||
           (ref && !c->ref.node.len) || (leader && !c->group_leader.node.len);
}

/* Writes a message and reads it back. It must be the same towards a peer that knows everything. */
static void check_written(tm_control *control, tm_bytes payload, uint64_t flags,
                          const tm_alloc *alloc)
{
    const tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    tm_walk_result walked;
    bool exits = control->op == TM_OP_EXIT || control->op == TM_OP_EXIT2 ||
                 control->op == TM_OP_MONITOR_P_EXIT;
    bool legal = payload.len && tm_etf_walk(payload, &limits, alloc, &walked) == 0;
    tm_bytes message = legal ? tm_bytes_of(payload.ptr, walked.len) : TM_BYTES("j");
    if (exits && !control->reason.len) control->reason = message;
    bool takes = tm_control_takes_payload(flags, control);
    tm_buf out;
    tm_buf_init(&out, alloc, 0);
    int rc = tm_frame_write(&out, flags, control, takes && !exits ? message : (tm_bytes){0});
    if (rc) {
        CHECK(out.len == 0);
        CHECK(rc == TM_ENOTSUP || (rc == TM_EUSE_ARG && nameless(control)));
        CHECK(rc != TM_ENOTSUP || (flags & FLAGS) != FLAGS || control->op == TM_OP_UNLINK);
        tm_buf_fini(&out);
        return;
    }
    tm_frame_terms terms;
    tm_control again;
    tm_bytes rest;
    CHECK(tm_load_u32(out.ptr) == out.len - 4);
    CHECK(tm_frame_open(flags, tm_bytes_of(out.ptr + 4, out.len - 4), &terms, NULL) == 0);
    CHECK(tm_control_parse(terms.bytes, terms.versioned, &limits, alloc, &again, &rest, NULL) == 0);
    CHECK(tm_bytes_equal(rest, takes ? (exits ? control->reason : message) : (tm_bytes){0}));
    if (exits && takes) again.reason = rest;
    bool knows_all = (flags & FLAGS) == FLAGS;
    CHECK(!knows_all || control_same(control, &again, true));
    tm_buf_fini(&out);
}

static void check_terms(tm_bytes terms, bool versioned, uint8_t options,
                        const tm_atom_header *header, const tm_alloc *alloc)
{
    tm_walk_limits limits = limits_of(options);
    limits.cache_refs = header->count;
    limits.cache_atoms = header->atoms;
    tm_control control;
    tm_bytes payload;
    tm_fault fault = {0};
    int rc = tm_control_parse(terms, versioned, &limits, alloc, &control, &payload, &fault);
    CHECK(rc == 0 || rc == TM_CONTROL_UNKNOWN || rc == TM_EPEER_MALFORMED || rc == TM_EPEER_LIMIT);
    CHECK(rc != TM_EPEER_MALFORMED || (fault.what && fault.offset <= terms.len));
    size_t len;
    int measured = tm_control_measure(terms, &limits, alloc, &len, &fault);
    CHECK(rc == TM_EPEER_MALFORMED || measured == 0);
    CHECK(measured || len <= terms.len);
    if (!rc) {
        CHECK(control.has_payload == (payload.len > 0));
        CHECK(*tm_opcode_name(control.wire_op) != 'u');
        uint64_t flags = options & OPTION_OLD ? TM_DFLAGS_M25 : FLAGS;
        check_written(&control, payload, flags | form_of(options), alloc);
    }
    tm_control_fini(&control);
}

static void check_frame(const tm_frame *frame, uint8_t options, const tm_alloc *alloc)
{
    CHECK(frame->body.len == frame->len);
    if (!frame->len) return;
    static const uint64_t seed[2] = {1, 2};
    tm_frame_terms terms;
    tm_fault fault = {0};
    tm_atom_header header;
    tm_atom_pool pool;
    tm_atom_cache cache;
    tm_atom_pool_init(&pool, alloc, seed);
    tm_atom_cache_init(&cache, &pool);
    uint64_t flags = options & OPTION_HEADER ? TM_DFLAGS_OURS : PLAIN;
    int rc = tm_frame_open(flags, frame->body, &terms, &fault);
    if (!rc) rc = tm_frame_atoms(&cache, frame->body, &terms, &header, &fault);
    CHECK(rc == 0 || (rc == TM_EPEER_MALFORMED && fault.what && fault.offset <= frame->len));
    if (!rc) {
        check_terms(terms.bytes, true, options, &header, alloc);
        check_terms(terms.bytes, false, options, &header, alloc);
        tm_atom_header_done(&cache, &header);
    }
    tm_atom_cache_fini(&cache);
    tm_atom_pool_fini(&pool);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    tm_alloc_stats stats = {0};
    const tm_alloc counted = tm_alloc_libc(&stats), alloc = tm_alloc_libc(NULL);
    uint8_t options = data[0];
    uint64_t bytes_max = options & OPTION_FRAME ? 64 : TM_MESSAGE_BYTES_DEFAULT;
    tm_framer framer;
    tm_framer_init(&framer, &counted, bytes_max);
    tm_bytes rest = tm_bytes_of(data + 1, size - 1);
    size_t fed = 0;
    int rc = TM_NEED_DATA;
    while (rest.len && rc == TM_NEED_DATA) {
        tm_bytes part = split_part(&rest), input = part;
        tm_frame frame;
        fed += part.len;
        while (!(rc = tm_framer_feed(&framer, &input, &frame))) {
            CHECK(frame.len <= bytes_max);
            check_frame(&frame, options, &alloc);
        }
        CHECK(rc == TM_EPEER_LIMIT || (rc == TM_NEED_DATA && input.len == 0));
        CHECK(rc != TM_EPEER_LIMIT || (frame.len > bytes_max && stats.bytes == 0));
        CHECK(stats.bytes == tm_framer_held(&framer));
        CHECK(stats.bytes <= TM_GATHER_GROWTH * fed + TM_FRAMER_FIRST_BYTES + TM_FRAME_HEADROOM);
        split_free(part);
    }
    tm_framer_fini(&framer);
    CHECK(stats.bytes == 0);
    return 0;
}
