#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cache_test.h"
#include "fragment.h"

static const tm_fragment_limits LIMITS = {TM_MESSAGE_BYTES_DEFAULT, TM_REASSEMBLY_BYTES_DEFAULT};
#define FLAGS TM_DFLAGS_OURS

/* -- scaffolding ------------------------------------------------------------------------------- */

typedef struct scene {
    test_cache own;
    tm_fragments fragments;
    tm_atom_header none;
    const char *what;
    tm_sequence *done;
} scene;

static void scene_init(scene *s)
{
    memset(s, 0, sizeof *s);
    test_cache_init(&s->own);
    tm_fragments_init(&s->fragments, &s->own.pool);
    tm_atom_header_init(&s->none);
}

static void scene_fini(scene *s)
{
    tm_fragments_fini(&s->fragments);
    tm_fragments_fini(&s->fragments); /* harmless twice */
    test_cache_fini(&s->own);
}

static int open_limited(scene *s, uint64_t id, uint64_t count, tm_bytes bytes, size_t control_len,
                        const tm_fragment_limits *limits)
{
    tm_frame_terms terms = {
        .bytes = bytes, .kind = TM_FRAME_FRAGMENT_FIRST, .sequence = id, .fragment = count};
    return tm_fragments_open(&s->fragments, &terms, control_len, &s->none, limits, 0, &s->what);
}

static int open_sequence(scene *s, uint64_t id, uint64_t count, tm_bytes bytes, size_t control_len)
{
    return open_limited(s, id, count, bytes, control_len, &LIMITS);
}

static int add_limited(scene *s, uint64_t id, uint64_t number, tm_bytes bytes,
                       const tm_fragment_limits *limits)
{
    tm_frame_terms terms = {
        .bytes = bytes, .kind = TM_FRAME_FRAGMENT_NEXT, .sequence = id, .fragment = number};
    return tm_fragments_add(&s->fragments, &terms, limits, 0, &s->done, &s->what);
}

static int add(scene *s, uint64_t id, uint64_t number, tm_bytes bytes)
{
    return add_limited(s, id, number, bytes, &LIMITS);
}

/* The sequence is done with these terms; frees it. */
static void finished(scene *s, tm_bytes expected)
{
    assert_non_null(s->done);
    assert_true(tm_bytes_equal(tm_sequence_terms(s->done), expected));
    tm_sequence_free(&s->fragments, s->done);
    s->done = NULL;
}

/* -- order ------------------------------------------------------------------------------------- */

static void message_is_whole_with_its_last_fragment(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    assert_int_equal(open_sequence(&s, 9, 4, TM_BYTES("controlpay"), 7), 0);
    assert_int_equal(add(&s, 9, 3, TM_BYTES("")), 0);
    assert_int_equal(add(&s, 9, 2, TM_BYTES("load")), 0);
    assert_null(s.done);
    assert_int_equal(add(&s, 9, 1, TM_BYTES("")), 0);
    assert_int_equal(s.done->control_len, 7);
    assert_int_equal(s.fragments.bytes, 0); /* it is not the connection's any more */
    finished(&s, TM_BYTES("controlpayload"));
    /* And its number may be used again. */
    assert_int_equal(open_sequence(&s, 9, 2, TM_BYTES("control"), 7), 0);
    assert_int_equal(add(&s, 9, 1, TM_BYTES("x")), 0);
    finished(&s, TM_BYTES("controlx"));
    scene_fini(&s);
}

static void faults_of_the_order_end_the_connection(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    tm_bytes text = TM_BYTES("ctl");
    assert_int_equal(open_sequence(&s, 0, 2, text, 3), TM_EPEER_MALFORMED);
    assert_string_equal(s.what, "a sequence of fragments with number 0");
    assert_int_equal(add(&s, 1, 1, text), TM_EPEER_MALFORMED);
    assert_string_equal(s.what, "a fragment of a sequence that has not begun");
    assert_int_equal(open_sequence(&s, 1, 5, text, 3), 0);
    assert_int_equal(open_sequence(&s, 1, 5, text, 3), TM_EPEER_MALFORMED);
    assert_string_equal(s.what, "a sequence of fragments that has begun already");
    static const uint64_t wrong[] = {0, 1, 2, 3, 5, 6, UINT64_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        assert_int_equal(add(&s, 1, wrong[i], text), TM_EPEER_MALFORMED);
        assert_string_equal(s.what, "a fragment that is not the next one of its sequence");
    }
    assert_int_equal(add(&s, 2, 4, text), TM_EPEER_MALFORMED);
    assert_int_equal(add(&s, 1, 4, text), 0);
    assert_int_equal(add(&s, 1, 4, text), TM_EPEER_MALFORMED);
    scene_fini(&s);
}

/* Messages of random lengths, cut anywhere, the pieces of several in any order. */
static void sequences_mix_and_each_is_put_together(void **state)
{
    (void)state;
    enum { OPEN = 12, BYTES_MAX = 5000 };
    for (uint64_t run = 1; run <= 60; run++) {
        uint64_t random = run;
        scene s;
        scene_init(&s);
        uint8_t *texts[OPEN];
        size_t lens[OPEN], at[OPEN];
        uint64_t left[OPEN];
        for (size_t i = 0; i < OPEN; i++) {
            lens[i] = 1 + test_random(&random) % BYTES_MAX;
            texts[i] = malloc(lens[i]);
            for (size_t n = 0; n < lens[i]; n++) texts[i][n] = (uint8_t)test_random(&random);
            left[i] = 2 + test_random(&random) % 20;
            at[i] = 0;
        }
        for (size_t open = OPEN; open;) {
            size_t i = test_random(&random) % OPEN;
            if (!left[i]) continue;
            bool first = !at[i];
            size_t take = test_random(&random) % (lens[i] - at[i] + 1);
            if (first && !take) take = 1;
            if (left[i] == 1) take = lens[i] - at[i];
            tm_bytes piece = tm_bytes_of(texts[i] + at[i], take);
            uint64_t id = UINT64_MAX - i;
            assert_int_equal(
                first ? open_sequence(&s, id, left[i], piece, 1) : add(&s, id, left[i], piece), 0);
            at[i] += take;
            if (--left[i]) continue;
            finished(&s, tm_bytes_of(texts[i], lens[i]));
            free(texts[i]);
            open--;
        }
        assert_int_equal(s.own.memory.stats.bytes, 0);
        scene_fini(&s);
    }
}

/* -- limits ------------------------------------------------------------------------------------ */

static void memory_follows_what_came_not_what_was_promised(void **state)
{
    (void)state;
    static const uint64_t promises[] = {2, 1000, UINT32_MAX, UINT64_MAX};
    uint8_t *piece = calloc(1, 65536);
    for (size_t i = 0; i < sizeof promises / sizeof *promises; i++) {
        scene s;
        scene_init(&s);
        uint64_t number = promises[i];
        size_t came = 65536;
        assert_int_equal(open_sequence(&s, 1, number, tm_bytes_of(piece, 65536), 100), 0);
        while (--number > 1 && came < 8 * TM_MIB) {
            assert_int_equal(add(&s, 1, number, tm_bytes_of(piece, 65536)), 0);
            came += 65536;
            size_t most = TM_GATHER_GROWTH * (came + TM_FRAME_HEADROOM) + 1024;
            assert_true(s.own.memory.stats.bytes <= most);
        }
        scene_fini(&s);
    }
    free(piece);
}

static void whole_message_has_memory_of_its_size(void **state)
{
    (void)state;
    uint8_t *piece = calloc(1, 65536);
    for (uint64_t count = 2; count < 40; count++) {
        scene s;
        scene_init(&s);
        assert_int_equal(open_sequence(&s, 1, count, TM_BYTES("control"), 7), 0);
        for (uint64_t number = count - 1; number; number--)
            assert_int_equal(add(&s, 1, number, tm_bytes_of(piece, 65536)), 0);
        size_t len = 7 + (count - 1) * 65536;
        assert_int_equal(tm_sequence_terms(s.done).len, len);
        assert_true(s.done->memory.size <= len + len / 4 + TM_FRAME_HEADROOM);
        tm_sequence_free(&s.fragments, s.done);
        scene_fini(&s);
    }
    free(piece);
}

static void unfinished_messages_together_have_a_bound(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    const tm_fragment_limits limits = {TM_MESSAGE_BYTES_DEFAULT, 20000};
    uint8_t *piece = calloc(1, 6000);
    tm_bytes bytes = tm_bytes_of(piece, 6000);
    assert_int_equal(open_limited(&s, 1, 100, bytes, 10, &limits), 0);
    assert_int_equal(open_limited(&s, 2, 100, bytes, 10, &limits), 0);
    assert_int_equal(open_limited(&s, 3, 100, bytes, 10, &limits), TM_EPEER_LIMIT);
    assert_non_null(strstr(s.what, "reassembly_bytes_max"));
    assert_true(s.fragments.bytes <= 20000 + sizeof(tm_sequence));
    scene_fini(&s);
    /* One alone may have all of it, and no more. */
    scene_init(&s);
    assert_int_equal(open_limited(&s, 1, 100, bytes, 10, &limits), 0);
    assert_int_equal(add_limited(&s, 1, 99, bytes, &limits), 0);
    assert_int_equal(add_limited(&s, 1, 98, bytes, &limits), 0);
    assert_int_equal(add_limited(&s, 1, 97, bytes, &limits), TM_EPEER_LIMIT);
    scene_fini(&s);
    free(piece);
}

static void number_of_unfinished_messages_has_a_bound(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    for (uint64_t id = 1; id <= TM_SEQUENCE_COUNT_MAX; id++)
        assert_int_equal(open_sequence(&s, id, 2, TM_BYTES("c"), 1), 0);
    assert_int_equal(open_sequence(&s, UINT64_MAX, 2, TM_BYTES("c"), 1), TM_EPEER_LIMIT);
    assert_non_null(strstr(s.what, "too many"));
    assert_int_equal(add(&s, 77, 1, TM_BYTES("x")), 0);
    finished(&s, TM_BYTES("cx"));
    assert_int_equal(open_sequence(&s, UINT64_MAX, 2, TM_BYTES("c"), 1), 0);
    scene_fini(&s);
}

static void message_over_the_limit_is_counted_to_its_end_and_not_kept(void **state)
{
    (void)state;
    const tm_fragment_limits limits = {1000, TM_REASSEMBLY_BYTES_DEFAULT};
    uint8_t *piece = calloc(1, 400000);
    for (size_t first = 0; first < 2; first++) {
        scene s;
        scene_init(&s);
        /* Too large from the first fragment on, or only later. */
        size_t len = 7 + (first ? 2000u : 900u);
        memcpy(piece, "control", 7);
        assert_int_equal(open_limited(&s, 1, 4, tm_bytes_of(piece, len), 7, &limits), 0);
        assert_int_equal(add_limited(&s, 1, 3, tm_bytes_of(piece, 400000), &limits), 0);
        assert_true(s.own.memory.stats.bytes < 3000);
        assert_int_equal(add_limited(&s, 1, 2, tm_bytes_of(piece, 400000), &limits), 0);
        assert_int_equal(add_limited(&s, 1, 1, tm_bytes_of(piece, 5), &limits), 0);
        assert_true(tm_sequence_dropped(s.done));
        assert_int_equal(s.done->payload_bytes, len - 7 + 800005);
        finished(&s, TM_BYTES("controlj"));
        scene_fini(&s);
    }
    /* The limit itself is no excess. */
    scene s;
    scene_init(&s);
    assert_int_equal(open_limited(&s, 1, 2, tm_bytes_of(piece, 7 + 600), 7, &limits), 0);
    assert_int_equal(add_limited(&s, 1, 1, tm_bytes_of(piece, 400), &limits), 0);
    assert_false(tm_sequence_dropped(s.done));
    tm_sequence_free(&s.fragments, s.done);
    scene_fini(&s);
    free(piece);
}

static void longest_wait_for_a_fragment_is_known(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    assert_int_equal(tm_fragments_idle_ns(&s.fragments, 1000), 0);
    tm_frame_terms terms = {.bytes = TM_BYTES("c"), .sequence = 1, .fragment = 3};
    const char **what = &s.what;
    assert_int_equal(tm_fragments_open(&s.fragments, &terms, 1, &s.none, &LIMITS, 100, what), 0);
    terms.sequence = 2;
    assert_int_equal(tm_fragments_open(&s.fragments, &terms, 1, &s.none, &LIMITS, 200, what), 0);
    assert_int_equal(tm_fragments_idle_ns(&s.fragments, 1000), 900);
    assert_int_equal(tm_fragments_idle_ns(&s.fragments, 50), 0);
    terms = (tm_frame_terms){.sequence = 1, .fragment = 2};
    assert_int_equal(tm_fragments_add(&s.fragments, &terms, &LIMITS, 900, &s.done, what), 0);
    assert_int_equal(tm_fragments_idle_ns(&s.fragments, 1000), 800);
    scene_fini(&s);
}

/* -- memory ------------------------------------------------------------------------------------ */

static void memory_of_a_message_can_be_taken(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    assert_int_equal(open_sequence(&s, 1, 2, TM_BYTES("control"), 7), 0);
    assert_int_equal(add(&s, 1, 1, TM_BYTES("payload")), 0);
    tm_slab taken = tm_slab_take(&s.done->memory);
    tm_sequence_free(&s.fragments, s.done);
    assert_memory_equal(taken.ptr + TM_FRAME_HEADROOM, "controlpayload", 14);
    tm_slab_free(&s.own.memory.alloc, &taken);
    scene_fini(&s);
}

static void first_fragment_stays_where_it_was_gathered(void **state)
{
    (void)state;
    static const tm_fragment_limits little = {TM_MESSAGE_BYTES_DEFAULT, 3000};
    for (size_t i = 0; i < 2; i++) {
        scene s;
        scene_init(&s);
        tm_slab memory = {NULL, 0};
        size_t start = TM_FRAME_HEADROOM + 20;
        assert_int_equal(tm_slab_resize(&s.own.memory.alloc, &memory, start + 2000), 0);
        memset(memory.ptr, 'x', memory.size);
        const uint8_t *ptr = memory.ptr;
        tm_frame_terms terms = {.bytes = tm_bytes_of(ptr + start, 1000),
                                .kind = TM_FRAME_FRAGMENT_FIRST,
                                .sequence = 5,
                                .fragment = 2,
                                .memory = &memory};
        const tm_fragment_limits *limits = i ? &little : &LIMITS;
        assert_int_equal(tm_fragments_open(&s.fragments, &terms, 7, &s.none, limits, 0, &s.what),
                         0);
        /* Copied where there is no room for all of it. */
        assert_true((memory.ptr == ptr) == i);
        assert_true(s.fragments.bytes >= (i ? 1000 : start + 2000));
        tm_slab_free(&s.own.memory.alloc, &memory);
        assert_int_equal(add(&s, 5, 1, TM_BYTES("yz")), 0);
        tm_bytes whole = tm_sequence_terms(s.done);
        assert_int_equal(whole.len, 1002);
        assert_memory_equal(whole.ptr + 999, "xyz", 3);
        tm_sequence_free(&s.fragments, s.done);
        assert_int_equal(s.fragments.bytes, 0);
        scene_fini(&s);
    }
}

/* A part of a fragment, of which so many bytes come behind it. */
static int add_part(scene *s, uint64_t number, tm_bytes bytes, size_t left)
{
    tm_frame_terms terms = {.bytes = bytes,
                            .kind = TM_FRAME_FRAGMENT_NEXT,
                            .sequence = 1,
                            .fragment = number,
                            .left = left};
    return tm_fragments_add(&s->fragments, &terms, &LIMITS, 0, &s->done, &s->what);
}

static void fragments_come_in_parts_and_parts_where_they_belong(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    assert_int_equal(open_sequence(&s, 1, 4, TM_BYTES("control"), 7), 0);
    assert_null(tm_fragments_room(&s.fragments, 2, 1, &LIMITS).ptr);
    for (uint64_t number = 3; number; number--)
        for (size_t left = 300000; left;) {
            tm_room room = tm_fragments_room(&s.fragments, 1, left, &LIMITS);
            assert_true(room.len && room.len <= left);
            size_t take = room.len > 70000 ? 70000 : room.len;
            memset(room.ptr, (int)number, take);
            left -= take;
            assert_int_equal(add_part(&s, number - 1, TM_BYTES("x"), 0), TM_EPEER_MALFORMED);
            assert_int_equal(add_part(&s, number, tm_bytes_of(room.ptr, take), left), 0);
            assert_true((s.done != NULL) == (number == 1 && !left));
        }
    tm_bytes terms = tm_sequence_terms(s.done);
    assert_int_equal(terms.len, 900007);
    assert_memory_equal(terms.ptr, "control", 7);
    for (size_t at = 7; at < terms.len; at++)
        if (terms.ptr[at] != 3 - (at - 7) / 300000) fail();
    tm_sequence_free(&s.fragments, s.done);
    scene_fini(&s);
}

static void there_is_no_room_over_a_limit(void **state)
{
    (void)state;
    static const tm_fragment_limits small = {1000, 5000};
    static const tm_fragment_limits little = {TM_MESSAGE_BYTES_DEFAULT, 5000};
    scene s;
    scene_init(&s);
    assert_int_equal(open_limited(&s, 1, 4, TM_BYTES("control"), 7, &small), 0);
    assert_non_null(tm_fragments_room(&s.fragments, 1, 1000, &small).ptr);
    assert_null(tm_fragments_room(&s.fragments, 1, 1001, &small).ptr);
    assert_null(tm_fragments_room(&s.fragments, 1, 6000, &little).ptr);
    assert_true(s.fragments.bytes <= 5000 + sizeof(tm_sequence));
    s.own.memory.fail_after = 0;
    assert_null(tm_fragments_room(&s.fragments, 1, 100000, &LIMITS).ptr);
    scene_fini(&s);
}

static void failing_allocation_leaks_nothing(void **state)
{
    (void)state;
    uint8_t *piece = calloc(1, 300000);
    size_t n = 0;
    for (bool passed = false; !passed; n++) {
        scene s;
        scene_init(&s);
        s.own.memory.fail_after = n;
        int rc = open_sequence(&s, 1, 4, TM_BYTES("control"), 7);
        if (!rc) rc = open_sequence(&s, 2, 4, TM_BYTES("control"), 7);
        for (uint64_t number = 3; number && !rc; number--)
            rc = add(&s, 1, number, tm_bytes_of(piece, 100000 * number));
        passed = !rc;
        if (rc) assert_int_equal(rc, TM_ENOMEM);
        if (!rc) tm_sequence_free(&s.fragments, s.done);
        scene_fini(&s);
    }
    assert_true(n > 5);
    free(piece);
}

/* -- frames that both releases accepted -------------------------------------------------------- */

/* Reads frames in a row as a connection does; answers with the terms of the last one, written
 * out. */
static int play(scene *s, const uint8_t *frame, size_t len, tm_buf *out)
{
    tm_bytes body = tm_bytes_of(frame + 4, len - 4);
    tm_frame_terms terms;
    tm_atom_header header;
    tm_fault fault = {0};
    assert_int_equal(tm_load_u32(frame), body.len);
    int rc = tm_frame_open(FLAGS, body, &terms, &fault);
    if (rc) return rc;
    assert_int_equal(tm_frame_atoms(&s->own.cache, body, &terms, &header, &fault), 0);
    if (terms.kind == TM_FRAME_FRAGMENT_NEXT) {
        assert_int_equal(add(s, terms.sequence, terms.fragment, terms.bytes), 0);
        if (!s->done) return TM_NEED_DATA;
        tm_atom_header_of(&header, s->done->atoms, s->done->atom_count);
        rc = tm_etf_expand(tm_sequence_terms(s->done), header.atoms, out);
        tm_sequence_free(&s->fragments, s->done);
        return rc;
    }
    if (terms.kind == TM_FRAME_WHOLE) {
        rc = tm_etf_expand(terms.bytes, header.atoms, out);
    } else {
        size_t control_len;
        tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
        limits.cache_refs = header.count;
        limits.cache_atoms = header.atoms;
        assert_int_equal(
            tm_control_measure(terms.bytes, &limits, &s->own.memory.alloc, &control_len, &fault),
            0);
        assert_int_equal(
            tm_fragments_open(&s->fragments, &terms, control_len, &header, &LIMITS, 0, &s->what),
            0);
        rc = TM_NEED_DATA;
    }
    tm_atom_header_done(&s->own.cache, &header);
    return rc;
}

static void frames_that_otp_accepted_say_what_they_said_to_it(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    FILE *file = test_vectors_open("sent_and_accepted.txt");
    static const char *const ends[] = {"hello fragments",  "hello fragments", "one", "two",
                                       "\xc3\xa9\xc3\xa9", "sameslot"};
    char text[4096];
    size_t seen = 0, refused = 0;
    while (fgets(text, sizeof text, file)) {
        if (*text == '#') continue;
        uint8_t frame[1024];
        size_t len = test_hex(text, frame, sizeof frame);
        tm_buf out;
        tm_buf_init(&out, &s.own.memory.alloc, 0);
        int rc = play(&s, frame, len, &out);
        if (!rc) {
            tm_control control;
            tm_bytes payload;
            assert_int_equal(tm_control_parse(tm_buf_bytes(&out), false, &TM_WALK_LIMITS_DEFAULT,
                                              &s.own.memory.alloc, &control, &payload, NULL),
                             0);
            assert_int_equal(control.op, TM_OP_REG_SEND);
            assert_true(tm_bytes_equal(control.to.name, TM_BYTES("echo")));
            size_t tail = strlen(ends[seen]);
            assert_true(payload.len > tail);
            assert_memory_equal(payload.ptr + payload.len - tail, ends[seen], tail);
            tm_control_fini(&control);
            seen++;
        } else if (rc != TM_NEED_DATA) {
            refused++; /* the pass-through one */
        }
        tm_buf_fini(&out);
    }
    fclose(file);
    assert_int_equal(seen, 6);
    assert_int_equal(refused, 1);
    scene_fini(&s);
}

/* The atoms of a message are those of its first fragment, whatever becomes of their slots. */
static void slots_may_change_while_a_message_is_under_way(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    static const char first[] = "\0\0\0\x24\203E\0\0\0\0\0\0\0\5\0\0\0\0\0\0\0\2"
                                "\1\x08\x07\3one"
                                "h\4acjR\0R\0"; /* an operation that nobody knows */
    static const char other[] = "\0\0\0\x13\203D\1\x08\7\5other"
                                "h\1a\1xxx";
    static const char last[] = "\0\0\0\x14\203F\0\0\0\0\0\0\0\5\0\0\0\0\0\0\0\1R\0";
    tm_buf out;
    tm_buf_init(&out, &s.own.memory.alloc, 0);
    uint8_t frame[64];
    memcpy(frame, first, sizeof first - 1);
    tm_store_u32(frame, (uint32_t)(sizeof first - 5));
    assert_int_equal(play(&s, frame, sizeof first - 1, &out), TM_NEED_DATA);
    memcpy(frame, other, sizeof other - 1);
    tm_store_u32(frame, (uint32_t)(sizeof other - 5));
    tm_frame_terms terms;
    tm_atom_header header;
    tm_bytes body = tm_bytes_of(frame + 4, sizeof other - 5);
    assert_int_equal(tm_frame_open(FLAGS, body, &terms, NULL), 0);
    assert_int_equal(tm_frame_atoms(&s.own.cache, body, &terms, &header, NULL), 0);
    tm_atom_header_done(&s.own.cache, &header);
    memcpy(frame, last, sizeof last - 1);
    tm_store_u32(frame, (uint32_t)(sizeof last - 5));
    assert_int_equal(play(&s, frame, sizeof last - 1, &out), 0);
    assert_true(tm_bytes_equal(tm_buf_bytes(&out), TM_BYTES("h\4acjw\3onew\3onew\3one")));
    tm_buf_fini(&out);
    scene_fini(&s);
}

/* A slot that gets another text leaves the old one to the message: that weighs. */
static void atoms_of_unfinished_messages_count(void **state)
{
    (void)state;
    enum { COUNT = 3, LEN = 200 };
    scene s;
    scene_init(&s);
    tm_sequence *done;
    tm_atom_header header;
    size_t bare = 0;
    for (uint64_t i = 0; i < COUNT; i++) {
        uint8_t list[4 + LEN] = {1, 8, 7, LEN};
        memset(list + 4, (int)('a' + i), LEN);
        tm_cursor c = tm_cursor_of(tm_bytes_of(list, sizeof list));
        assert_int_equal(tm_atom_cache_read(&s.own.cache, &c, &header, &s.what), 0);
        tm_frame_terms terms = {.bytes = TM_BYTES("ctl"), .sequence = i + 1, .fragment = 2};
        assert_int_equal(tm_fragments_open(&s.fragments, &terms, 3, &header, &LIMITS, 0, &s.what),
                         0);
        tm_atom_header_done(&s.own.cache, &header);
        if (i == 0) bare = (size_t)s.fragments.bytes - LEN;
        assert_int_equal(s.fragments.atom_bytes, (i + 1) * LEN);
        assert_int_equal(s.fragments.bytes, (i + 1) * (bare + LEN));
        assert_int_equal(s.own.cache.bytes, LEN);
    }
    /* They are part of what a connection may hold. */
    tm_atom_header_init(&s.none);
    tm_fragment_limits limits = {LIMITS.message_bytes_max, COUNT * (bare + LEN)};
    assert_int_equal(open_limited(&s, 9, 2, TM_BYTES("ctl"), 3, &limits), TM_EPEER_LIMIT);
    tm_frame_terms last = {.kind = TM_FRAME_FRAGMENT_NEXT, .sequence = 1, .fragment = 1};
    assert_int_equal(tm_fragments_add(&s.fragments, &last, &LIMITS, 0, &done, &s.what), 0);
    assert_int_equal(s.fragments.atom_bytes, (COUNT - 1) * LEN);
    tm_sequence_free(&s.fragments, done);
    tm_fragments_fini(&s.fragments);
    assert_int_equal(s.fragments.bytes, 0);
    assert_int_equal(s.fragments.atom_bytes, 0);
    scene_fini(&s);
}

#define TEST(name) cmocka_unit_test(name)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(message_is_whole_with_its_last_fragment),
        TEST(faults_of_the_order_end_the_connection),
        TEST(sequences_mix_and_each_is_put_together),
        TEST(memory_follows_what_came_not_what_was_promised),
        TEST(whole_message_has_memory_of_its_size),
        TEST(unfinished_messages_together_have_a_bound),
        TEST(number_of_unfinished_messages_has_a_bound),
        TEST(message_over_the_limit_is_counted_to_its_end_and_not_kept),
        TEST(longest_wait_for_a_fragment_is_known),
        TEST(memory_of_a_message_can_be_taken),
        TEST(first_fragment_stays_where_it_was_gathered),
        TEST(fragments_come_in_parts_and_parts_where_they_belong),
        TEST(there_is_no_room_over_a_limit),
        TEST(failing_allocation_leaks_nothing),
        TEST(frames_that_otp_accepted_say_what_they_said_to_it),
        TEST(slots_may_change_while_a_message_is_under_way),
        TEST(atoms_of_unfinished_messages_count),
    };
    return cmocka_run_group_tests_name("fragments", tests, NULL, NULL);
}
