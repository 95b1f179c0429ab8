/* What becomes of the terms of events: copied, written out, or left where they were assembled. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "../dist/dist_test.h"
#include "../io/notify.h"
#include "inbox.h"

static const tm_bytes atoms[] = {
    {(const uint8_t *)"ok", 2},
    {(const uint8_t *)"a_name_that_is_a_little_longer", 30},
};

typedef struct scene {
    test_alloc memory;
    uint64_t wakeups;
    tm_inbox inbox;
    tm_source *source;
    tm_slab slab;
    tm_walk_result walked;
    tumen_event event;
} scene;

static void scene_init(scene *s)
{
    memset(s, 0, sizeof *s);
    test_alloc_init(&s->memory, SIZE_MAX);
    assert_int_equal(tm_inbox_init(&s->inbox, &s->memory.alloc, &s->wakeups), 0);
    s->source = tm_source_create(&s->memory.alloc, 1);
    s->event.kind = TUMEN_EVENT_MESSAGE;
}

static void scene_fini(scene *s)
{
    tm_inbox_fini(&s->inbox);
    assert_int_equal(tm_inbox_bytes(&s->inbox), 0);
    assert_int_equal(s->source->bytes, 0);
    tm_source_unref(s->source);
    tm_slab_free(&s->memory.alloc, &s->slab);
    assert_int_equal(s->memory.stats.bytes, 0);
}

/* "{Atom 0, Atom 1, Binary}" of so many bytes, at an offset of a slab; the sender's node is written
 * right before it, as in a control message. */
static void assemble(scene *s, size_t at, size_t binary_len, size_t slack)
{
    static const uint8_t head[] = {104, 3, 82, 0, 82, 1, 109};
    size_t len = sizeof head + 4 + binary_len;
    assert_int_equal(tm_slab_resize(&s->memory.alloc, &s->slab, at + len + slack), 0);
    memset(s->slab.ptr, 0xee, s->slab.size);
    uint8_t *p = tm_store_bytes(s->slab.ptr + at, head, sizeof head);
    p = tm_store_u32(p, (uint32_t)binary_len);
    for (size_t i = 0; i < binary_len; i++) *p++ = (uint8_t)(i * 7);
    memcpy(s->slab.ptr + at - 3, "a@b", 3);
    s->event.from.node = (tumen_bytes){s->slab.ptr + at - 3, 3};
    s->event.term = (tumen_bytes){s->slab.ptr + at, len};
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    limits.cache_refs = 2;
    limits.cache_atoms = atoms;
    tm_bytes term = tm_bytes_of(s->event.term.ptr, len);
    assert_int_equal(tm_etf_walk(term, &limits, &s->memory.alloc, &s->walked), 0);
    assert_int_equal(s->walked.refs.count, 2);
}

static int put(scene *s)
{
    tm_inbox_term term = {.atoms = atoms, .refs = &s->walked.refs, .memory = &s->slab};
    return tm_inbox_put_term(&s->inbox, &s->event, &term, s->source, 1);
}

/* The event as the consumer sees it; true when its term lies in that memory. */
static bool check_taken(scene *s, size_t binary_len, const uint8_t *memory, size_t size)
{
    static const char head[] = "h\3w\2okw\36a_name_that_is_a_little_longerm";
    size_t head_len = sizeof head - 1;
    tumen_batch *batch = tm_inbox_take(&s->inbox);
    const tumen_event *event = tumen_batch_next(batch);
    assert_non_null(event);
    assert_memory_equal(event->from.node.ptr, "a@b", 3);
    assert_int_equal(event->term.len, head_len + 4 + binary_len);
    assert_memory_equal(event->term.ptr, head, head_len);
    assert_int_equal(tm_load_u32(event->term.ptr + head_len), binary_len);
    for (size_t i = 0; i < binary_len; i++)
        if (event->term.ptr[head_len + 4 + i] != (uint8_t)(i * 7)) fail();
    bool inside = event->term.ptr >= memory && event->term.ptr < memory + size;
    assert_true(tm_inbox_bytes(&s->inbox) >=
                event->term.len + (inside ? size - event->term.len : 0));
    assert_int_equal(s->source->bytes, tm_inbox_bytes(&s->inbox));
    assert_null(tumen_batch_next(batch));
    tumen_batch_free(batch);
    return inside;
}

static bool arrives_in_place(size_t at, size_t binary_len, size_t slack)
{
    scene s;
    scene_init(&s);
    assemble(&s, at, binary_len, slack);
    const uint8_t *memory = s.slab.ptr;
    size_t size = s.slab.size;
    assert_int_equal(put(&s), 0);
    bool taken = !s.slab.ptr;
    assert_int_equal(check_taken(&s, binary_len, memory, size), taken);
    scene_fini(&s);
    return taken;
}

static void large_term_stays_where_it_was_assembled(void **state)
{
    (void)state;
    assert_true(arrives_in_place(1024, 100000, 0));
    assert_true(arrives_in_place(1024, TM_INBOX_TAKE_BYTES_MIN, 0));
}

static void other_spans_are_kept_when_atoms_are_written_over_them(void **state)
{
    (void)state;
    /* 32 bytes are needed: room for just that, all of it in front of the term. */
    assert_true(arrives_in_place(32, 100000, 0));
    assert_true(arrives_in_place(33, 100000, 0));
}

static void term_without_room_for_its_atoms_is_copied(void **state)
{
    (void)state;
    assert_false(arrives_in_place(31, 100000, 0));
    assert_false(arrives_in_place(3, 100000, 0));
}

static void small_term_and_wasteful_memory_are_not_kept(void **state)
{
    (void)state;
    assert_false(arrives_in_place(1024, 100, 0));
    assert_false(arrives_in_place(1024, 50000, 200000));
}

static void borrowed_term_is_copied_and_written_out(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    assemble(&s, 64, 50000, 0);
    tm_inbox_term term = {.atoms = atoms, .refs = &s.walked.refs};
    assert_int_equal(tm_inbox_put_term(&s.inbox, &s.event, &term, s.source, 1), 0);
    assert_non_null(s.slab.ptr);
    assert_false(check_taken(&s, 50000, s.slab.ptr, s.slab.size));
    scene_fini(&s);
}

static void without_memory_nothing_is_taken(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    assemble(&s, 64, 50000, 0);
    s.memory.fail_after = 0;
    assert_int_equal(put(&s), TM_ENOMEM);
    assert_non_null(s.slab.ptr);
    s.memory.fail_after = SIZE_MAX;
    assert_int_equal(tm_inbox_bytes(&s.inbox), 0);
    assert_int_equal(put(&s), 0);
    assert_null(s.slab.ptr);
    scene_fini(&s); /* not read: the inbox frees it */
}

/* -- kept events ------------------------------------------------------------------------------- */

static int put_small(scene *s, int64_t number)
{
    tumen_event event = {
        .kind = TUMEN_EVENT_WRITABLE, .number = number, .node = {(const uint8_t *)"b@c", 3}};
    return tm_inbox_put(&s->inbox, &event, s->source, 1);
}

static void check_small(const tumen_event *event, int64_t number)
{
    assert_non_null(event);
    assert_int_equal(event->number, number);
    assert_memory_equal(event->node.ptr, "b@c", 3);
}

/* Keeps each event of small, large, small, and reads them when their batch is gone. */
static void kept_in_turn(bool in_place)
{
    scene s;
    scene_init(&s);
    assert_int_equal(put_small(&s, 1), 0);
    assemble(&s, 1024, 100000, 0);
    tm_inbox_term term = {
        .atoms = atoms, .refs = &s.walked.refs, .memory = in_place ? &s.slab : NULL};
    assert_int_equal(tm_inbox_put_term(&s.inbox, &s.event, &term, s.source, 1), 0);
    assert_int_equal(!s.slab.ptr, in_place);
    assert_int_equal(put_small(&s, 3), 0);
    uint64_t waiting = tm_inbox_bytes(&s.inbox);
    tumen_batch *kept[3];
    tumen_batch *batch = tm_inbox_take(&s.inbox);
    for (int i = 0; i < 3; i++) {
        assert_non_null(tumen_batch_next(batch));
        kept[i] = tumen_batch_keep(batch);
        assert_non_null(kept[i]);
    }
    assert_null(tumen_batch_next(batch));
    tumen_batch_free(batch);
    assert_int_equal(tm_inbox_bytes(&s.inbox), waiting);
    assert_int_equal(s.source->bytes, waiting);
    check_small(tumen_batch_next(kept[0]), 1);
    const tumen_event *event = tumen_batch_next(kept[1]);
    assert_memory_equal(event->from.node.ptr, "a@b", 3);
    assert_memory_equal(event->term.ptr, "h\3w\2ok", 6);
    assert_int_equal(event->term.ptr[event->term.len - 1], (uint8_t)(99999 * 7));
    check_small(tumen_batch_next(kept[2]), 3);
    assert_null(tumen_batch_next(kept[2]));
    tumen_batch_free(kept[1]);
    assert_true(tm_inbox_bytes(&s.inbox) < waiting - 100000);
    tumen_batch_free(kept[0]);
    tumen_batch_free(kept[2]);
    scene_fini(&s);
}

static void kept_events_outlive_their_batch_and_count_until_they_are_freed(void **state)
{
    (void)state;
    kept_in_turn(true);
    kept_in_turn(false);
}

static void event_that_cannot_be_kept_stays_where_it_is(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    assert_int_equal(put_small(&s, 1), 0);
    assert_int_equal(put_small(&s, 2), 0);
    tumen_batch *batch = tm_inbox_take(&s.inbox);
    const tumen_event *event = tumen_batch_next(batch);
    for (size_t i = 0; i < 2; i++) {
        s.memory.fail_after = i;
        assert_null(tumen_batch_keep(batch));
        check_small(event, 1);
    }
    s.memory.fail_after = SIZE_MAX;
    tumen_batch *kept = tumen_batch_keep(batch);
    check_small(tumen_batch_next(batch), 2);
    tumen_batch_free(batch);
    assert_true(tm_inbox_bytes(&s.inbox) > 0);
    tumen_batch_free(kept); /* not read */
    scene_fini(&s);
}

/* -- memory that leaves -------------------------------------------------------------------------- */

static void disown(void *ctx, size_t size)
{
    test_alloc *memory = ctx;
    memory->libc.disown(memory->libc.ctx, size);
}

static void detached_memory_outlives_the_inbox_and_counts_no_more(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    s.memory.alloc.disown = disown;
    assemble(&s, 64, 100000, 0);
    assert_int_equal(put(&s), 0);
    tumen_batch *batch = tm_inbox_take(&s.inbox);
    tumen_bytes term = tumen_batch_next(batch)->term;
    void *memory = tumen_batch_detach(batch);
    assert_non_null(memory);
    assert_true(tm_inbox_bytes(&s.inbox) < 1000);
    assert_null(tumen_batch_detach(batch));
    tumen_batch_free(batch);
    scene_fini(&s); /* nothing is counted there any more */
    assert_memory_equal(term.ptr, "h\3w\2ok", 6);
    assert_int_equal(term.ptr[term.len - 1], (uint8_t)(99999 * 7));
    tumen_memory_free(memory);
}

static void term_without_memory_of_its_own_cannot_leave(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    s.memory.alloc.disown = disown;
    assert_int_equal(put_small(&s, 1), 0);
    assemble(&s, 64, 100000, 0);
    assert_int_equal(put(&s), 0);
    tumen_batch *batch = tm_inbox_take(&s.inbox);
    assert_non_null(tumen_batch_next(batch));
    assert_null(tumen_batch_detach(batch));
    /* Nor can any when the allocator keeps its blocks. */
    s.memory.alloc.disown = NULL;
    assert_non_null(tumen_batch_next(batch));
    assert_null(tumen_batch_detach(batch));
    tumen_batch_free(batch);
    scene_fini(&s);
}

/* -- the lock ---------------------------------------------------------------------------------- */

typedef struct watched {
    scene *scene;
    size_t large; /* pieces of memory for a large term that were asked for */
} watched;

static void *watched_resize(void *ctx, void *ptr, size_t old_size, size_t new_size)
{
    watched *self = ctx;
    if (new_size > TM_INBOX_BLOCK_BYTES) {
        self->large++;
        assert_int_equal(pthread_mutex_trylock(&self->scene->inbox.lock), 0);
        pthread_mutex_unlock(&self->scene->inbox.lock);
    }
    const tm_alloc *alloc = &self->scene->memory.alloc;
    return alloc->resize(alloc->ctx, ptr, old_size, new_size);
}

static void large_term_is_copied_while_the_inbox_is_not_locked(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    assemble(&s, 64, 200000, 0);
    watched seen = {.scene = &s};
    tm_alloc alloc = {.resize = watched_resize, .ctx = &seen};
    s.inbox.alloc = &alloc;
    tm_inbox_term term = {.atoms = atoms, .refs = &s.walked.refs};
    assert_int_equal(put_small(&s, 1), 0);
    assert_int_equal(tm_inbox_put_term(&s.inbox, &s.event, &term, s.source, 1), 0);
    assert_int_equal(put_small(&s, 3), 0);
    assert_int_equal(seen.large, 1);
    tumen_batch *batch = tm_inbox_take(&s.inbox);
    check_small(tumen_batch_next(batch), 1);
    assert_true(tumen_batch_next(batch)->term.len > 200000);
    check_small(tumen_batch_next(batch), 3);
    tumen_batch_free(batch);
    s.inbox.alloc = &s.memory.alloc;
    scene_fini(&s);
}

#define TEST(name) cmocka_unit_test(name)

static bool is_signalled(const scene *s)
{
    struct pollfd fd = {.fd = s->inbox.fd, .events = POLLIN};
    return poll(&fd, 1, 0) == 1;
}

static void consumer_that_takes_is_awake_until_it_arms(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    assert_int_equal(tm_inbox_arm(&s.inbox), 0);
    assert_null(tm_inbox_take(&s.inbox));
    assert_int_equal(tm_inbox_put(&s.inbox, &s.event, s.source, 0), 0);
    tm_inbox_signal(&s.inbox);
    assert_false(is_signalled(&s));
    assert_int_equal(tm_inbox_arm(&s.inbox), 1);
    tumen_batch_free(tm_inbox_take(&s.inbox));
    assert_int_equal(tm_inbox_arm(&s.inbox), 0);
    assert_int_equal(tm_inbox_put(&s.inbox, &s.event, s.source, 1), 0);
    assert_false(is_signalled(&s));
    tm_inbox_signal(&s.inbox);
    assert_true(is_signalled(&s));
    assert_int_equal(s.wakeups, 1);
    scene_fini(&s);
}

static void arming_clears_a_signal_however_late_it_was_sent(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    for (int late = 0; late < 2; late++) {
        assert_int_equal(tm_inbox_arm(&s.inbox), 0);
        assert_int_equal(tm_inbox_put(&s.inbox, &s.event, s.source, 0), 0);
        assert_true(is_signalled(&s));
        /* As if the sender had been stopped between counting its signal and sending it. */
        if (late) assert_int_equal(tm_notify_clear(s.inbox.fd), 1);
        tumen_batch_free(tm_inbox_take(&s.inbox));
        assert_int_equal(tm_inbox_arm(&s.inbox), 0);
        assert_false(is_signalled(&s));
        if (!late) continue;
        tm_notify_signal(s.inbox.fd);
        assert_true(is_signalled(&s));
        assert_int_equal(tm_inbox_arm(&s.inbox), 0);
        assert_false(is_signalled(&s));
    }
    scene_fini(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(large_term_stays_where_it_was_assembled),
        TEST(other_spans_are_kept_when_atoms_are_written_over_them),
        TEST(term_without_room_for_its_atoms_is_copied),
        TEST(small_term_and_wasteful_memory_are_not_kept),
        TEST(borrowed_term_is_copied_and_written_out),
        TEST(without_memory_nothing_is_taken),
        TEST(kept_events_outlive_their_batch_and_count_until_they_are_freed),
        TEST(event_that_cannot_be_kept_stays_where_it_is),
        TEST(detached_memory_outlives_the_inbox_and_counts_no_more),
        TEST(term_without_memory_of_its_own_cannot_leave),
        TEST(large_term_is_copied_while_the_inbox_is_not_locked),
        TEST(consumer_that_takes_is_awake_until_it_arms),
        TEST(arming_clears_a_signal_however_late_it_was_sent),
    };
    return cmocka_run_group_tests_name("inbox", tests, NULL, NULL);
}
