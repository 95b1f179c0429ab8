/* Do the atoms and fragments of a peer cost no more memory than they may, is every message put
 * together from what came, and do its terms mean the same once their atoms are written out? The
 * first byte picks limits, the rest is the stream of a connected peer, in parts. */
#include "dist/control_test.h"
#include "dist/fragment.h"
#include "split.h"

#define OPTION_MESSAGE 1    /* small messages only */
#define OPTION_REASSEMBLY 2 /* little memory for unfinished ones */
#define OPTION_NO_CACHE 4   /* fragments without an atom cache */
#define OPTION_TAKE 8       /* memory of messages is taken over */
#define OPTION_PARTS 16     /* more of a message is handed out in parts */
#define OPTION_ROOM 32      /* and bytes are put where they belong, if there is a place */

#define MESSAGE_BYTES_MIN 200
#define REASSEMBLY_BYTES_MIN 3000
/* Of a sequence beside its memory: itself, its atoms and its place in the table. */
#define SEQUENCE_BYTES (sizeof(tm_sequence) + TM_ATOM_HEADER_MAX * sizeof(void *))

typedef struct peer {
    uint8_t options;
    uint64_t flags, now_ns;
    tm_fragment_limits limits;
    tm_alloc_stats stats;
    tm_alloc alloc;
    tm_framer framer;
    tm_atom_pool pool;
    tm_atom_cache cache;
    tm_fragments fragments;
} peer;

static const uint64_t seed[2] = {1, 2};

static void peer_init(peer *p, uint8_t options)
{
    *p = (peer){.options = options, .flags = TM_DFLAGS_OURS};
    if (options & OPTION_NO_CACHE) p->flags &= ~TM_DFLAG(DIST_HDR_ATOM_CACHE);
    p->limits.message_bytes_max =
        options & OPTION_MESSAGE ? MESSAGE_BYTES_MIN : TM_MESSAGE_BYTES_DEFAULT;
    p->limits.bytes_max =
        options & OPTION_REASSEMBLY ? REASSEMBLY_BYTES_MIN : TM_REASSEMBLY_BYTES_DEFAULT;
    p->alloc = tm_alloc_libc(&p->stats);
    tm_framer_init(&p->framer, &p->alloc, TM_MESSAGE_BYTES_DEFAULT);
    p->framer.parts = options & OPTION_PARTS;
    tm_atom_pool_init(&p->pool, &p->alloc, seed);
    tm_atom_cache_init(&p->cache, &p->pool);
    tm_fragments_init(&p->fragments, &p->pool);
}

static void peer_fini(peer *p)
{
    tm_framer_fini(&p->framer);
    tm_fragments_fini(&p->fragments);
    tm_atom_cache_fini(&p->cache);
    CHECK(p->pool.bytes == 0 && p->stats.bytes == 0);
    tm_atom_pool_fini(&p->pool);
}

static tm_walk_limits walk_limits(const tm_atom_header *header)
{
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    limits.cache_refs = header->count;
    limits.cache_atoms = header->atoms;
    return limits;
}

/* A payload is written out as the inbox does it, beside and in place; no reference is left. */
static void check_payload(tm_bytes payload, const tm_atom_header *header)
{
    tm_alloc libc = tm_alloc_libc(NULL);
    tm_walk_limits limits = walk_limits(header);
    tm_walk_result walked, again;
    if (tm_etf_walk(payload, &limits, &libc, &walked)) return;
    payload.len = walked.len;
    size_t len = walked.len + walked.refs.growth;
    uint8_t *apart = malloc(len), *own = malloc(len);
    CHECK(apart && own);
    tm_etf_expand_to(apart, payload, header->atoms, &walked.refs);
    memcpy(own + walked.refs.growth, payload.ptr, payload.len);
    tm_etf_expand_to(own, tm_bytes_of(own + walked.refs.growth, payload.len), header->atoms,
                     &walked.refs);
    CHECK(memcmp(apart, own, len) == 0);
    limits = TM_WALK_LIMITS_DEFAULT;
    int rc = tm_etf_walk(tm_bytes_of(apart, len), &limits, &libc, &again);
    CHECK(rc == 0 || rc == TM_EPEER_LIMIT);
    CHECK(again.len == len && again.refs.count == 0);
    CHECK(again.decoded_bytes <= walked.decoded_bytes);
    free(apart);
    free(own);
}

/* The control message with its atoms written out beforehand is the same one. */
static void check_message(tm_bytes terms, const tm_atom_header *header)
{
    tm_alloc libc = tm_alloc_libc(NULL);
    tm_walk_limits limits = walk_limits(header);
    tm_control control, plain;
    tm_bytes payload, plain_payload;
    tm_fault fault = {0};
    int rc = tm_control_parse(terms, false, &limits, &libc, &control, &payload, &fault);
    CHECK(rc != TM_EPEER_MALFORMED || (fault.what && fault.offset <= terms.len));
    if (!rc) {
        size_t len;
        tm_buf out;
        tm_buf_init(&out, &libc, 0);
        tm_bytes tuple =
            tm_bytes_of(terms.ptr, tm_control_measure(terms, &limits, &libc, &len, NULL) ? 0 : len);
        CHECK(tuple.len && (!payload.len || tuple.len == terms.len - payload.len));
        CHECK(tm_etf_expand(tuple, header->atoms, &out) == 0);
        if (control.has_payload) CHECK(tm_buf_append(&out, "j", 1) == 0);
        CHECK(tm_control_parse(tm_buf_bytes(&out), false, &TM_WALK_LIMITS_DEFAULT, &libc, &plain,
                               &plain_payload, NULL) == 0);
        CHECK(control_same(&control, &plain, true) && !plain.written_out.ptr);
        tm_buf_fini(&out);
        if (payload.len) check_payload(payload, header);
    }
    tm_control_fini(&control);
}

static int take_first(peer *p, const tm_frame_terms *terms, const tm_atom_header *header)
{
    tm_alloc libc = tm_alloc_libc(NULL);
    tm_walk_limits limits = walk_limits(header);
    size_t control_len;
    const char *what = NULL;
    int rc = tm_control_measure(terms->bytes, &limits, &libc, &control_len, NULL);
    if (!rc)
        rc = tm_fragments_open(&p->fragments, terms, control_len, header, &p->limits, ++p->now_ns,
                               &what);
    CHECK(!rc || rc == TM_EPEER_MALFORMED || (rc == TM_EPEER_LIMIT && what));
    return rc;
}

static int take_next(peer *p, const tm_frame_terms *terms)
{
    tm_sequence *sequence;
    const char *what = NULL;
    int rc = tm_fragments_add(&p->fragments, terms, &p->limits, ++p->now_ns, &sequence, &what);
    CHECK(!rc || (what && (rc == TM_EPEER_MALFORMED || rc == TM_EPEER_LIMIT)));
    if (rc || !sequence) return rc;
    tm_bytes message = tm_sequence_terms(sequence);
    bool dropped = sequence->payload_bytes > p->limits.message_bytes_max;
    CHECK(dropped == tm_sequence_dropped(sequence));
    CHECK(message.len == sequence->control_len + (dropped ? 1 : sequence->payload_bytes));
    tm_atom_header header;
    tm_atom_header_of(&header, sequence->atoms, sequence->atom_count);
    check_message(message, &header);
    if (p->options & OPTION_TAKE) {
        tm_slab taken = tm_slab_take(&sequence->memory);
        tm_slab_free(&p->alloc, &taken);
    }
    tm_sequence_free(&p->fragments, sequence);
    return 0;
}

static int take_frame(peer *p, const tm_frame *frame)
{
    if (!frame->len) return 0;
    tm_frame_terms terms;
    tm_atom_header header;
    tm_fault fault = {0};
    bool part = frame->head.len;
    int rc = tm_frame_open(p->flags, part ? frame->head : frame->body, &terms, &fault);
    if (part) {
        terms.bytes = frame->body;
        terms.left = frame->left;
    }
    if (!rc && terms.kind == TM_FRAME_FRAGMENT_NEXT) return take_next(p, &terms);
    if (!rc) rc = tm_frame_atoms(&p->cache, frame->body, &terms, &header, &fault);
    CHECK(rc != TM_EPEER_MALFORMED || (fault.what && fault.offset <= frame->len));
    if (rc) return rc;
    CHECK(header.count <= TM_ATOM_HEADER_MAX);
    if (terms.kind == TM_FRAME_WHOLE)
        check_message(terms.bytes, &header);
    else {
        terms.memory = p->options & OPTION_TAKE ? tm_framer_memory(&p->framer) : NULL;
        rc = take_first(p, &terms, &header);
    }
    tm_atom_header_done(&p->cache, &header);
    if (p->options & OPTION_TAKE && tm_framer_memory(&p->framer)) {
        tm_slab taken = tm_slab_take(tm_framer_memory(&p->framer));
        tm_slab_free(&p->alloc, &taken);
    }
    CHECK(p->cache.count <= TM_ATOM_CACHE_SLOTS && p->cache.bytes <= TM_ATOM_CACHE_BYTES_MAX);
    CHECK(p->fragments.bytes <=
          p->limits.bytes_max + p->fragments.sequences.count * SEQUENCE_BYTES);
    CHECK(tm_fragments_idle_ns(&p->fragments, p->now_ns) <= p->now_ns);
    return rc;
}

/* Where the next bytes belong, as a connection says it. */
static tm_room room_of(peer *p)
{
    size_t left;
    uint64_t sequence;
    if (!(p->options & OPTION_ROOM)) return (tm_room){NULL, 0};
    if (!tm_framer_in_parts(&p->framer, &left, &sequence)) return tm_framer_room(&p->framer);
    return tm_fragments_room(&p->fragments, sequence, left, &p->limits);
}

/* The next bytes of a part, moved to where they belong if there is such a place. */
static tm_bytes take_input(peer *p, tm_bytes *part)
{
    tm_room room = room_of(p);
    tm_bytes input = *part;
    if (room.len) {
        if (input.len > room.len) input.len = room.len;
        memcpy(room.ptr, input.ptr, input.len);
        input.ptr = room.ptr;
    }
    part->ptr += input.len;
    part->len -= input.len;
    return input;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    peer p;
    peer_init(&p, data[0]);
    tm_bytes rest = tm_bytes_of(data + 1, size - 1);
    int rc = 0;
    while (rest.len && !rc) {
        tm_bytes part = split_part(&rest), left = part;
        while (left.len && !rc) {
            tm_bytes input = take_input(&p, &left);
            tm_frame frame;
            while (!rc && !(rc = tm_framer_feed(&p.framer, &input, &frame)))
                rc = take_frame(&p, &frame);
            if (rc == TM_NEED_DATA) rc = 0;
        }
        split_free(part);
    }
    peer_fini(&p);
    return 0;
}
