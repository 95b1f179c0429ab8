#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cache_test.h"
#include "frame.h"

/* Frames in pass-through form. */
#define PLAIN (TM_DFLAGS_OURS & ~TM_DFLAGS_HEADER)

/* -- scaffolding ------------------------------------------------------------------------------- */

/* Around the sizes where the framer changes its mind: a tick, the first memory, its doubles. */
static const size_t sizes[] = {0, 1,      0,      2,      3,      0, 100, 65536,
                               0, 131071, 131072, 131073, 400000, 5, 0};
#define SIZES (sizeof sizes / sizeof *sizes)

static uint8_t byte_at(size_t frame, size_t at)
{
    return (uint8_t)(frame * 31 + at * 7 + at / 251);
}

/* All frames of sizes[] one after the other. */
static uint8_t *stream_new(size_t *len)
{
    *len = 0;
    for (size_t i = 0; i < SIZES; i++) *len += 4 + sizes[i];
    uint8_t *stream = malloc(*len), *p = stream;
    for (size_t i = 0; i < SIZES; i++) {
        p = tm_store_u32(p, (uint32_t)sizes[i]);
        for (size_t at = 0; at < sizes[i]; at++) *p++ = byte_at(i, at);
    }
    return stream;
}

typedef struct reader {
    test_alloc memory;
    tm_framer framer;
    size_t seen; /* frames */
    bool sparse; /* check a few bytes of each body only */
} reader;

static void reader_init(reader *r, uint64_t bytes_max)
{
    memset(r, 0, sizeof *r);
    test_alloc_init(&r->memory, SIZE_MAX);
    tm_framer_init(&r->framer, &r->memory.alloc, bytes_max);
}

static void reader_fini(reader *r)
{
    tm_framer_fini(&r->framer);
    tm_framer_fini(&r->framer); /* harmless twice */
    assert_int_equal(r->memory.stats.bytes, 0);
}

static void check_frame(reader *r, const tm_frame *frame)
{
    assert_true(r->seen < SIZES);
    assert_int_equal(frame->len, sizes[r->seen]);
    assert_int_equal(frame->body.len, frame->len);
    size_t step = r->sparse ? 9973 : 1;
    for (size_t at = 0; at < frame->len; at += step)
        if (frame->body.ptr[at] != byte_at(r->seen, at)) fail();
    r->seen++;
}

/* Feeds a piece, from memory of its own, and checks what comes out. */
static void reader_feed(reader *r, const uint8_t *bytes, size_t len)
{
    uint8_t *copy = malloc(len + !len);
    memcpy(copy, bytes, len);
    tm_bytes input = tm_bytes_of(copy, len);
    tm_frame frame;
    int rc;
    while (!(rc = tm_framer_feed(&r->framer, &input, &frame))) check_frame(r, &frame);
    assert_int_equal(rc, TM_NEED_DATA);
    assert_int_equal(input.len, 0);
    assert_int_equal(r->memory.stats.bytes, tm_framer_held(&r->framer));
    free(copy);
}

/* -- splits ------------------------------------------------------------------------------------ */

static void whole_stream_is_cut_in_place_without_memory(void **state)
{
    (void)state;
    size_t len;
    uint8_t *stream = stream_new(&len);
    reader r;
    reader_init(&r, TM_MESSAGE_BYTES_DEFAULT);
    tm_bytes input = tm_bytes_of(stream, len);
    tm_frame frame;
    while (!tm_framer_feed(&r.framer, &input, &frame)) {
        if (frame.len) assert_true(frame.body.ptr > stream && frame.body.ptr < stream + len);
        check_frame(&r, &frame);
    }
    assert_int_equal(r.seen, SIZES);
    assert_int_equal(r.memory.bytes_peak, 0);
    reader_fini(&r);
    free(stream);
}

static void stream_byte_by_byte_gives_the_same_frames(void **state)
{
    (void)state;
    size_t len;
    uint8_t *stream = stream_new(&len);
    reader r;
    reader_init(&r, TM_MESSAGE_BYTES_DEFAULT);
    for (size_t i = 0; i < len; i++) reader_feed(&r, stream + i, 1);
    assert_int_equal(r.seen, SIZES);
    assert_int_equal(tm_framer_held(&r.framer), 0);
    reader_fini(&r);
    free(stream);
}

static void random_splits_give_the_same_frames_and_bounded_memory(void **state)
{
    (void)state;
    size_t len;
    uint8_t *stream = stream_new(&len);
    for (uint64_t seed = 1; seed <= 60; seed++) {
        uint64_t random = seed;
        reader r;
        reader_init(&r, TM_MESSAGE_BYTES_DEFAULT);
        r.sparse = true;
        size_t at = 0;
        while (at < len) {
            size_t most = (size_t)1 << test_random(&random) % 20;
            size_t take = test_random(&random) % (most + 1);
            if (take > len - at) take = len - at;
            reader_feed(&r, stream + at, take);
            at += take;
        }
        if (r.seen != SIZES) fail_msg("seed %lu", (unsigned long)seed);
        assert_int_equal(tm_framer_held(&r.framer), 0);
        reader_fini(&r);
    }
    free(stream);
}

static void tick_is_a_frame_of_length_0(void **state)
{
    (void)state;
    reader r;
    reader_init(&r, 10);
    tm_bytes input = TM_FRAME_TICK;
    tm_frame frame;
    assert_int_equal(input.len, 4);
    assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), 0);
    assert_int_equal(frame.len, 0);
    assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), TM_NEED_DATA);
    reader_fini(&r);
}

/* -- memory ------------------------------------------------------------------------------------ */

static void memory_follows_what_came_not_what_was_promised(void **state)
{
    (void)state;
    uint8_t *chunk = calloc(1, 65536);
    reader r;
    reader_init(&r, TM_MESSAGE_BYTES_DEFAULT);
    uint8_t prefix[4];
    tm_store_u32(prefix, (uint32_t)TM_MESSAGE_BYTES_DEFAULT);
    reader_feed(&r, prefix, 4);
    assert_int_equal(tm_framer_held(&r.framer), 0);
    reader_feed(&r, chunk, 1);
    assert_int_equal(tm_framer_held(&r.framer), TM_FRAMER_FIRST_BYTES + TM_FRAME_HEADROOM);
    size_t fed = 1;
    while (fed < 4 * TM_MIB) {
        reader_feed(&r, chunk, 65536);
        fed += 65536;
        assert_true(tm_framer_held(&r.framer) <=
                    TM_GATHER_GROWTH * fed + TM_FRAMER_FIRST_BYTES + TM_FRAME_HEADROOM);
    }
    reader_fini(&r);
    free(chunk);
}

static void small_partial_frame_holds_its_own_size(void **state)
{
    (void)state;
    reader r;
    reader_init(&r, TM_MESSAGE_BYTES_DEFAULT);
    reader_feed(&r, (const uint8_t *)"\0\0\0\7abc", 7);
    assert_int_equal(tm_framer_held(&r.framer), 7 + TM_FRAME_HEADROOM);
    tm_bytes input = TM_BYTES("defg\0\0\0\1x");
    tm_frame frame;
    assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), 0);
    assert_true(tm_bytes_equal(frame.body, TM_BYTES("abcdefg")));
    assert_int_equal(tm_framer_held(&r.framer), 7 + TM_FRAME_HEADROOM); /* still lent */
    assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), 0);
    assert_true(tm_bytes_equal(frame.body, TM_BYTES("x")));
    assert_int_equal(tm_framer_held(&r.framer), 0);
    reader_fini(&r);
}

static void failing_allocation_ends_the_stream_and_leaks_nothing(void **state)
{
    (void)state;
    size_t len;
    uint8_t *stream = stream_new(&len);
    size_t n = 0;
    for (bool passed = false; !passed; n++) {
        reader r;
        reader_init(&r, TM_MESSAGE_BYTES_DEFAULT);
        r.memory.fail_after = n;
        r.sparse = true;
        int rc = 0;
        for (size_t at = 0; at < len && rc != TM_ENOMEM; at += 50000) {
            tm_bytes input = tm_bytes_of(stream + at, len - at < 50000 ? len - at : 50000);
            tm_frame frame;
            while (!(rc = tm_framer_feed(&r.framer, &input, &frame))) check_frame(&r, &frame);
        }
        passed = rc != TM_ENOMEM;
        if (!passed) {
            tm_bytes input = TM_FRAME_TICK;
            tm_frame frame;
            r.memory.fail_after = SIZE_MAX;
            assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), TM_ENOMEM);
            assert_int_equal(r.memory.stats.bytes, 0);
        }
        reader_fini(&r);
    }
    assert_true(n > 5);
    free(stream);
}

/* -- limits ------------------------------------------------------------------------------------ */

static void length_over_the_limit_is_refused_before_its_body(void **state)
{
    (void)state;
    static const uint32_t lens[] = {UINT32_MAX, 0x80000000u, 1001, 1 << 24};
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++)
        for (size_t split = 0; split <= 4; split++) {
            reader r;
            reader_init(&r, 1000);
            uint8_t bytes[8];
            memcpy(tm_store_u32(bytes, lens[i]), "body", 4);
            tm_frame frame;
            tm_bytes input = tm_bytes_of(bytes, split);
            int rc = tm_framer_feed(&r.framer, &input, &frame);
            assert_int_equal(rc, split < 4 ? TM_NEED_DATA : TM_EPEER_LIMIT);
            input = tm_bytes_of(bytes + split, 8 - split);
            assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), TM_EPEER_LIMIT);
            assert_int_equal(frame.len, lens[i]);
            assert_int_equal(r.memory.bytes_peak, 0);
            input = TM_FRAME_TICK; /* and nothing can mend it */
            assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), TM_EPEER_LIMIT);
            reader_fini(&r);
        }
}

static void limit_itself_is_accepted_and_may_change_between_frames(void **state)
{
    (void)state;
    reader r;
    reader_init(&r, 3);
    tm_frame frame;
    tm_bytes input = TM_BYTES("\0\0\0\3abc\0\0\0\4abcd\0\0\0\4abcd");
    assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), 0);
    r.framer.bytes_max = 4;
    assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), 0);
    r.framer.bytes_max = 3;
    assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), TM_EPEER_LIMIT);
    reader_fini(&r);
}

/* -- what is in a frame ------------------------------------------------------------------------ */

static const uint64_t header_flags[] = {PLAIN | TM_DFLAG(DIST_HDR_ATOM_CACHE),
                                        PLAIN | TM_DFLAG(FRAGMENTS)};

/* With the list of atoms, if there is one. */
static int open_frame(uint64_t flags, tm_bytes body, tm_frame_terms *terms, tm_fault *fault)
{
    test_cache own;
    test_cache_init(&own);
    tm_atom_header header;
    int rc = tm_frame_open(flags, body, terms, fault);
    if (!rc) rc = tm_frame_atoms(&own.cache, body, terms, &header, fault);
    if (!rc) tm_atom_header_done(&own.cache, &header);
    test_cache_fini(&own);
    return rc;
}

/* A frame that is refused, why, and at which byte. */
typedef struct bad_frame {
    tm_bytes body;
    const char *what;
    size_t offset;
} bad_frame;

static void refused(uint64_t flags, const bad_frame *bad, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        tm_frame_terms terms;
        tm_fault fault = {0};
        assert_int_equal(open_frame(flags, bad[i].body, &terms, &fault), TM_EPEER_MALFORMED);
        assert_string_equal(fault.what, bad[i].what);
        assert_int_equal(fault.offset, bad[i].offset);
        assert_int_equal(open_frame(flags, bad[i].body, &terms, NULL), TM_EPEER_MALFORMED);
    }
}
#define REFUSED(flags, bad) refused(flags, bad, sizeof(bad) / sizeof *(bad))

static void only_the_pass_through_form_is_opened(void **state)
{
    (void)state;
    const bad_frame bad[] = {
        {TM_BYTES(""), "a frame too short to hold a message", 0},
        {TM_BYTES("p"), "a frame too short to hold a message", 1},
        {TM_BYTES("\203"), "a frame too short to hold a message", 1},
        {TM_BYTES("\203D\0h\1a\1"), "a distribution header was not negotiated", 1},
        {TM_BYTES("\203E\0\0"), "a distribution header was not negotiated", 1},
        {TM_BYTES("\203F\0\0"), "a distribution header was not negotiated", 1},
        {TM_BYTES("\203h\1a\1"), "an unknown form of frame", 0},
        {TM_BYTES("h\1a\1"), "an unknown form of frame", 0},
        {TM_BYTES("ph\1a\1"), "no version byte before the control message", 1},
    };
    REFUSED(PLAIN, bad);
    tm_frame_terms terms;
    assert_int_equal(tm_frame_open(PLAIN, TM_BYTES("p\203h\1a\1"), &terms, NULL), 0);
    assert_true(terms.versioned);
    assert_true(tm_bytes_equal(terms.bytes, TM_BYTES("h\1a\1")));
}

static void either_flag_makes_the_header_the_only_form(void **state)
{
    (void)state;
    const bad_frame bad[] = {
        {TM_BYTES(""), "a frame too short to hold a message", 0},
        {TM_BYTES("\203"), "a frame too short to hold a message", 1},
        {TM_BYTES("\203D"), "the distribution header is cut off", 2},
        {TM_BYTES("\203G\0"), "an unknown form of frame", 0},
        {TM_BYTES("p\203h\1a\1"), "no distribution header, which was negotiated", 0},
        {TM_BYTES("\203h\1a\1"), "an unknown form of frame", 0},
        {TM_BYTES("h\1a\1"), "an unknown form of frame", 0},
        {TM_BYTES("\204D\0h\1a\1"), "an unknown form of frame", 0},
    };
    for (size_t f = 0; f < 2; f++) {
        REFUSED(header_flags[f], bad);
        tm_frame_terms terms;
        tm_bytes body = TM_BYTES("\203D\0h\1a\1");
        assert_int_equal(open_frame(header_flags[f], body, &terms, NULL), 0);
        assert_false(terms.versioned);
        assert_int_equal(terms.kind, TM_FRAME_WHOLE);
        assert_true(tm_bytes_equal(terms.bytes, TM_BYTES("h\1a\1")));
    }
}

/* -- what is written --------------------------------------------------------------------------- */

/* A buffer to write into; when it ends, nothing of its memory is left. */
typedef struct writer {
    test_alloc memory;
    tm_buf out;
} writer;

static void writer_init(writer *w, size_t bytes_max)
{
    test_alloc_init(&w->memory, SIZE_MAX);
    tm_buf_init(&w->out, &w->memory.alloc, bytes_max);
}

static void writer_fini(writer *w)
{
    tm_buf_fini(&w->out);
    assert_int_equal(w->memory.stats.bytes, 0);
}

static tm_control control_of(enum tm_opcode op)
{
    tm_control control;
    tm_control_init(&control, op);
    tm_pid pid = {.node = TM_BYTES("a@b"), .id = 1, .creation = 9};
    control.from = control.to = (tm_control_item){.kind = TM_ITEM_PID, .pid = pid};
    return control;
}

static void atoms_need_the_cache_and_fragments_their_flag(void **state)
{
    (void)state;
    tm_bytes atoms = TM_BYTES("\203D\1\10\5\2okh\1a\1");
    tm_bytes fragment = TM_BYTES("\203E\0\0\0\0\0\0\0\7\0\0\0\0\0\0\0\2\0h\1a\1");
    tm_bytes more = TM_BYTES("\203F\0\0\0\0\0\0\0\7\0\0\0\0\0\0\0\1xyz");
    tm_frame_terms terms;
    tm_fault fault = {0};
    uint64_t cache = header_flags[0], fragments = header_flags[1];
    assert_int_equal(open_frame(cache, atoms, &terms, &fault), 0);
    assert_true(tm_bytes_equal(terms.bytes, TM_BYTES("h\1a\1")));
    assert_int_equal(open_frame(fragments, atoms, &terms, &fault), TM_EPEER_MALFORMED);
    assert_string_equal(fault.what, "an atom cache was not negotiated");
    assert_int_equal(fault.offset, 2);
    assert_int_equal(open_frame(cache, fragment, &terms, &fault), TM_EPEER_MALFORMED);
    assert_int_equal(open_frame(cache, more, &terms, &fault), TM_EPEER_MALFORMED);
    assert_string_equal(fault.what, "fragments were not negotiated");
    for (int both = 0; both < 2; both++) {
        uint64_t flags = fragments | (both ? cache : 0);
        assert_int_equal(open_frame(flags, fragment, &terms, &fault), 0);
        assert_int_equal(terms.kind, TM_FRAME_FRAGMENT_FIRST);
        assert_int_equal(terms.sequence, 7);
        assert_int_equal(terms.fragment, 2);
        assert_true(tm_bytes_equal(terms.bytes, TM_BYTES("h\1a\1")));
        assert_int_equal(open_frame(flags, more, &terms, &fault), 0);
        assert_int_equal(terms.kind, TM_FRAME_FRAGMENT_NEXT);
        assert_int_equal(terms.fragment, 1);
        assert_true(tm_bytes_equal(terms.bytes, TM_BYTES("xyz")));
        for (size_t cut = 2; cut < 18; cut++) {
            tm_bytes part = tm_bytes_of(more.ptr, cut);
            assert_int_equal(open_frame(flags, part, &terms, &fault), TM_EPEER_MALFORMED);
            part = tm_bytes_of(fragment.ptr, cut + 1);
            assert_int_equal(open_frame(flags, part, &terms, &fault),
                             cut + 1 < 19 ? TM_EPEER_MALFORMED : 0);
        }
    }
}

static void message_in_a_single_fragment_is_a_whole_one(void **state)
{
    (void)state;
    tm_frame_terms terms;
    tm_fault fault = {0};
    tm_bytes one = TM_BYTES("\203E\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\1\0h\1a\1");
    tm_bytes none = TM_BYTES("\203E\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\0\0h\1a\1");
    assert_int_equal(open_frame(header_flags[1], one, &terms, &fault), 0);
    assert_int_equal(terms.kind, TM_FRAME_WHOLE);
    assert_int_equal(open_frame(header_flags[1], none, &terms, &fault), TM_EPEER_MALFORMED);
    assert_string_equal(fault.what, "a fragment with number 0");
}

static void memory_of_a_gathered_frame_can_be_taken(void **state)
{
    (void)state;
    reader r;
    reader_init(&r, TM_MESSAGE_BYTES_DEFAULT);
    tm_bytes input = TM_BYTES("\0\0\0\3abc\0\0\0\6de");
    tm_frame frame;
    assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), 0);
    assert_null(tm_framer_memory(&r.framer)); /* it lay in the input */
    assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), TM_NEED_DATA);
    assert_null(tm_framer_memory(&r.framer)); /* nor is half a frame anybody's */
    input = TM_BYTES("fghi\0\0\0\1x\0\0\0\2y");
    assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), 0);
    tm_slab *memory = tm_framer_memory(&r.framer);
    assert_ptr_equal(memory->ptr + TM_FRAME_HEADROOM, frame.body.ptr);
    tm_slab taken = tm_slab_take(memory);
    assert_int_equal(tm_framer_held(&r.framer), 0);
    assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), 0);
    assert_true(tm_bytes_equal(frame.body, TM_BYTES("x")));
    assert_int_equal(tm_framer_feed(&r.framer, &input, &frame), TM_NEED_DATA);
    assert_memory_equal(taken.ptr + TM_FRAME_HEADROOM, "defghi", 6);
    tm_slab_free(&r.memory.alloc, &taken);
    reader_fini(&r);
}

/* A continuation in two fragments, the second one empty, and a frame too short to be one. */
#define PART_HEAD(number) "\203F\0\0\0\0\0\0\0\7\0\0\0\0\0\0\0" number
#define PARTS                                                                                      \
    "\0\0\0\034" PART_HEAD("\3") "0123456789"                                                      \
                                 "\0\0\0\022" PART_HEAD("\2")

static void more_of_a_message_is_handed_out_as_it_comes(void **state)
{
    (void)state;
    tm_bytes stream = TM_BYTES(PARTS "\0\0\0\5\203Fabc");
    for (size_t step = 1; step < 32; step++) {
        reader r;
        reader_init(&r, TM_MESSAGE_BYTES_DEFAULT);
        r.framer.parts = true;
        char text[16] = "";
        size_t len = 0, frames = 0, left = 0;
        uint64_t sequence = 0;
        for (size_t at = 0; at < stream.len; at += step) {
            size_t size = stream.len - at < step ? stream.len - at : step;
            tm_bytes input = tm_bytes_of(stream.ptr + at, size);
            tm_frame frame;
            while (!tm_framer_feed(&r.framer, &input, &frame)) {
                tm_bytes body = frame.body;
                if (!frame.head.len && frames < 2) { /* it lay whole in the input */
                    body.ptr += TM_FRAGMENT_HEAD_BYTES;
                    body.len -= TM_FRAGMENT_HEAD_BYTES;
                } else if (frames < 2) {
                    assert_memory_equal(frame.head.ptr, PART_HEAD(""), TM_FRAGMENT_HEAD_BYTES - 1);
                }
                memcpy(text + len, body.ptr, body.len);
                len += body.len;
                if (frame.left) assert_int_equal(frame.left, 10 - len);
                assert_true(tm_framer_in_parts(&r.framer, &left, &sequence) == !!frame.left);
                if (frame.left) assert_true(left == frame.left && sequence == 7);
                frames += !frame.left;
            }
            if (frames < 2) assert_int_equal(tm_framer_held(&r.framer), 0);
        }
        assert_int_equal(frames, 3);
        assert_memory_equal(text, "0123456789\203Fabc", 15);
        reader_fini(&r);
    }
}

static void what_was_put_into_the_room_is_not_copied(void **state)
{
    (void)state;
    static const uint32_t lens[] = {70000, TM_FRAMER_FIRST_BYTES + 1, 3000000};
    for (size_t i = 0; i < 6; i++) {
        reader r;
        reader_init(&r, TM_MESSAGE_BYTES_DEFAULT);
        r.framer.parts = i & 1;
        uint32_t len = lens[i / 2];
        uint8_t start[4 + 30];
        uint8_t *p = tm_store_u32(start, len);
        for (size_t at = 0; at < 30; at++) *p++ = byte_at(0, at);
        assert_null(tm_framer_room(&r.framer).ptr);
        tm_bytes input = tm_bytes_of(start, sizeof start);
        tm_frame frame;
        int rc = tm_framer_feed(&r.framer, &input, &frame);
        for (size_t have = 30; rc == TM_NEED_DATA;) {
            tm_room room = tm_framer_room(&r.framer);
            assert_true(room.len && room.len <= len - have);
            size_t take = (room.len + 2) / 3;
            for (size_t at = 0; at < take; at++) room.ptr[at] = byte_at(0, have + at);
            have += take;
            input = tm_bytes_of(room.ptr, take);
            rc = tm_framer_feed(&r.framer, &input, &frame);
            if (!rc) assert_ptr_equal(frame.body.ptr + len, room.ptr + take);
        }
        assert_int_equal(rc, 0);
        assert_int_equal(frame.body.len, len);
        for (size_t at = 0; at < len; at++)
            if (frame.body.ptr[at] != byte_at(0, at)) fail();
        assert_null(tm_framer_room(&r.framer).ptr); /* it is handed out */
        reader_fini(&r);
    }
}

static void with_a_header_no_version_byte_is_written_before_the_terms(void **state)
{
    (void)state;
    tm_control send = control_of(TM_OP_SEND);
    tm_bytes payload = TM_BYTES("m\0\0\0\3abc");
    for (size_t f = 0; f < 2; f++) {
        writer whole, head, tuple;
        writer_init(&whole, 0);
        writer_init(&head, 0);
        writer_init(&tuple, 0);
        assert_int_equal(tm_frame_write(&whole.out, header_flags[f], &send, payload), 0);
        assert_int_equal(tm_frame_write_head(&head.out, header_flags[f], &send, payload.len), 0);
        assert_int_equal(tm_control_write(&tuple.out, header_flags[f], &send), 0);
        size_t control_len = tuple.out.len, body = 3 + control_len + payload.len;
        const uint8_t *bytes = whole.out.ptr;
        assert_int_equal(tm_load_u32(bytes), body);
        assert_int_equal(whole.out.len, 4 + body);
        assert_memory_equal(bytes + 4, "\203D\0", 3);
        assert_memory_equal(bytes + 7, tuple.out.ptr, control_len);
        assert_memory_equal(bytes + 7 + control_len, payload.ptr, payload.len);
        assert_true(tm_bytes_equal(tm_buf_bytes(&head.out), tm_bytes_of(bytes, 7 + control_len)));
        writer_fini(&whole);
        writer_fini(&head);
        writer_fini(&tuple);
    }
}

static void head_with_a_lent_payload_equals_the_whole_frame(void **state)
{
    (void)state;
    tm_bytes payload = TM_BYTES("m\0\0\0\3abc");
    static const enum tm_opcode ops[] = {TM_OP_SEND, TM_OP_EXIT};
    for (size_t i = 0; i < 2; i++) {
        writer whole, head;
        writer_init(&whole, 0);
        writer_init(&head, 0);
        assert_int_equal(tm_buf_append(&head.out, "xyz", 3), 0);
        tm_control control = control_of(ops[i]);
        if (ops[i] == TM_OP_EXIT) control.reason = payload;
        tm_bytes apart = ops[i] == TM_OP_EXIT ? (tm_bytes){0} : payload;
        assert_int_equal(tm_frame_write(&whole.out, PLAIN, &control, apart), 0);
        assert_int_equal(tm_frame_write_head(&head.out, PLAIN, &control, payload.len), 0);
        assert_int_equal(tm_buf_append(&head.out, payload.ptr, payload.len), 0);
        tm_bytes behind = tm_bytes_of(head.out.ptr + 3, head.out.len - 3);
        assert_true(tm_bytes_equal(tm_buf_bytes(&whole.out), behind));
        writer_fini(&whole);
        writer_fini(&head);
    }
}

static void payload_where_none_belongs_or_missing_is_refused(void **state)
{
    (void)state;
    writer w;
    writer_init(&w, 0);
    tm_bytes payload = TM_BYTES("j"), none = {0};
    tm_control link = control_of(TM_OP_LINK), send = control_of(TM_OP_SEND);
    tm_control exits = control_of(TM_OP_EXIT), spawn = control_of(TM_OP_SPAWN_REQUEST);
    uint64_t ours = PLAIN, old = TM_DFLAGS_M25;
    assert_int_equal(tm_frame_write(&w.out, ours, &link, payload), TM_EUSE_ARG);
    assert_int_equal(tm_frame_write(&w.out, ours, &send, none), TM_EUSE_ARG);
    assert_int_equal(tm_frame_write(&w.out, ours, &exits, none), TM_EUSE_ARG); /* no reason */
    assert_int_equal(tm_frame_write(&w.out, old, &exits, none), TM_EUSE_ARG);
    exits.reason = payload;
    assert_int_equal(tm_frame_write(&w.out, ours, &exits, payload), TM_EUSE_ARG);
    assert_int_equal(tm_frame_write_head(&w.out, ours, &link, 1), TM_EUSE_ARG);
    assert_int_equal(tm_frame_write_head(&w.out, old, &exits, 1), TM_EUSE_ARG);
    assert_int_equal(tm_frame_write_head(&w.out, ours, &send, 0), TM_EUSE_ARG);
    assert_int_equal(tm_frame_write_head(&w.out, old, &spawn, 1), TM_ENOTSUP);
    assert_int_equal(tm_frame_write(&w.out, old, &spawn, none), TM_ENOTSUP);
    assert_int_equal(w.out.len, 0);
    writer_fini(&w);
}

static void payload_above_the_hard_limit_is_refused(void **state)
{
    (void)state;
    writer w;
    writer_init(&w, 0);
    tm_control send = control_of(TM_OP_SEND);
    assert_int_equal(tm_frame_write_head(&w.out, PLAIN, &send, SIZE_MAX), TM_EUSE_LIMIT);
    assert_int_equal(tm_frame_write_head(&w.out, PLAIN, &send, TM_MESSAGE_BYTES_MAX),
                     TM_EUSE_LIMIT);
    assert_int_equal(w.out.len, 0);
    size_t fits = TM_MESSAGE_BYTES_MAX - 100;
    assert_int_equal(tm_frame_write_head(&w.out, PLAIN, &send, fits), 0);
    assert_int_equal(tm_load_u32(w.out.ptr), w.out.len - 4 + fits);
    writer_fini(&w);
}

static void failed_frame_leaves_the_buffer_as_it_was(void **state)
{
    (void)state;
    tm_control send = control_of(TM_OP_SEND);
    tm_bytes payload = TM_BYTES("m\0\0\0\3abc");
    writer w;
    int rc = TM_EUSE_LIMIT;
    for (size_t max = 1; rc; max++) {
        writer_init(&w, max);
        assert_int_equal(tm_buf_append(&w.out, "x", 1), 0);
        rc = tm_frame_write(&w.out, PLAIN, &send, payload);
        assert_int_equal(rc, w.out.len > 1 ? 0 : TM_EUSE_LIMIT);
        writer_fini(&w);
    }
    writer_init(&w, 0);
    w.memory.fail_after = 0;
    assert_int_equal(tm_frame_write(&w.out, PLAIN, &send, payload), TM_ENOMEM);
    assert_int_equal(w.out.len, 0);
    writer_fini(&w);
}

#define TEST(name) cmocka_unit_test(name)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(whole_stream_is_cut_in_place_without_memory),
        TEST(stream_byte_by_byte_gives_the_same_frames),
        TEST(random_splits_give_the_same_frames_and_bounded_memory),
        TEST(tick_is_a_frame_of_length_0),
        TEST(memory_follows_what_came_not_what_was_promised),
        TEST(small_partial_frame_holds_its_own_size),
        TEST(failing_allocation_ends_the_stream_and_leaks_nothing),
        TEST(length_over_the_limit_is_refused_before_its_body),
        TEST(limit_itself_is_accepted_and_may_change_between_frames),
        TEST(only_the_pass_through_form_is_opened),
        TEST(either_flag_makes_the_header_the_only_form),
        TEST(atoms_need_the_cache_and_fragments_their_flag),
        TEST(message_in_a_single_fragment_is_a_whole_one),
        TEST(memory_of_a_gathered_frame_can_be_taken),
        TEST(more_of_a_message_is_handed_out_as_it_comes),
        TEST(what_was_put_into_the_room_is_not_copied),
        TEST(with_a_header_no_version_byte_is_written_before_the_terms),
        TEST(head_with_a_lent_payload_equals_the_whole_frame),
        TEST(payload_where_none_belongs_or_missing_is_refused),
        TEST(payload_above_the_hard_limit_is_refused),
        TEST(failed_frame_leaves_the_buffer_as_it_was),
    };
    return cmocka_run_group_tests_name("frame", tests, NULL, NULL);
}
