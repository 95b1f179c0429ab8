/* The pieces that everything else stands on: cursor, buffer, allocator, list, map, timer wheel. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "alloc.h"
#include "buf.h"
#include "bytes.h"
#include "list.h"
#include "map.h"
#include "wheel.h"

static const uint64_t test_seed[2] = {0xaed66ce184be2329ULL, 0xebe9bbf1f1499052ULL};

/* -- an allocator that fails once -------------------------------------------------------------- */

typedef struct failing {
    tm_alloc inner;
    size_t calls_left; /* allocations that still succeed */
} failing;

static void *failing_resize(void *ctx, void *ptr, size_t old_size, size_t new_size)
{
    failing *f = ctx;
    if (new_size && f->calls_left-- == 0) {
        f->calls_left = SIZE_MAX;
        return NULL;
    }
    return f->inner.resize(f->inner.ctx, ptr, old_size, new_size);
}

/* -- bytes ------------------------------------------------------------------------------------- */

static void cursor_reads_big_endian_and_stops_at_the_end(void **state)
{
    (void)state;
    uint8_t bytes[15];
    uint8_t *p = tm_store_u8(bytes, 0x01);
    p = tm_store_u16(p, 0x0203);
    p = tm_store_u32(p, 0x04050607);
    p = tm_store_u64(p, 0x08090a0b0c0d0e0fULL);
    assert_ptr_equal(p, bytes + sizeof bytes);
    for (size_t i = 0; i < sizeof bytes; i++) assert_int_equal(bytes[i], i + 1);

    tm_cursor c = tm_cursor_of(tm_bytes_of(bytes, sizeof bytes));
    uint8_t a;
    uint16_t b;
    uint32_t d;
    uint64_t e;
    assert_int_equal(tm_cursor_u8(&c, &a), 0);
    assert_int_equal(tm_cursor_u16(&c, &b), 0);
    assert_int_equal(tm_cursor_u32(&c, &d), 0);
    assert_int_equal(tm_cursor_u64(&c, &e), 0);
    assert_int_equal(a, 0x01);
    assert_int_equal(b, 0x0203);
    assert_int_equal(d, 0x04050607);
    assert_true(e == 0x08090a0b0c0d0e0fULL);
    assert_int_equal(tm_cursor_left(&c), 0);
}

static void cursor_read_past_the_end_moves_nothing(void **state)
{
    (void)state;
    uint8_t bytes[8] = {0};
    for (size_t len = 0; len < sizeof bytes; len++) {
        tm_cursor c = tm_cursor_of(tm_bytes_of(bytes, len));
        uint8_t a;
        uint16_t b;
        uint32_t d;
        uint64_t e;
        tm_bytes span;
        if (len < 1) assert_int_equal(tm_cursor_u8(&c, &a), TM_NEED_DATA);
        if (len < 2) assert_int_equal(tm_cursor_u16(&c, &b), TM_NEED_DATA);
        if (len < 4) assert_int_equal(tm_cursor_u32(&c, &d), TM_NEED_DATA);
        assert_int_equal(tm_cursor_u64(&c, &e), TM_NEED_DATA);
        assert_int_equal(tm_cursor_bytes(&c, len + 1, &span), TM_NEED_DATA);
        assert_int_equal(tm_cursor_bytes(&c, SIZE_MAX, &span), TM_NEED_DATA);
        assert_int_equal(tm_cursor_skip(&c, SIZE_MAX), TM_NEED_DATA);
        assert_int_equal(tm_cursor_left(&c), len);
        assert_int_equal(tm_cursor_bytes(&c, len, &span), 0);
        assert_int_equal(span.len, len);
        assert_int_equal(tm_cursor_left(&c), 0);
    }
}

static void cursor_of_nothing_is_empty(void **state)
{
    (void)state;
    tm_cursor c = tm_cursor_of((tm_bytes){0});
    uint8_t byte;
    assert_int_equal(tm_cursor_left(&c), 0);
    assert_int_equal(tm_cursor_u8(&c, &byte), TM_NEED_DATA);
    assert_int_equal(tm_cursor_skip(&c, 0), 0);
    assert_true(tm_bytes_equal((tm_bytes){0}, TM_BYTES("")));
    assert_false(tm_bytes_equal(TM_BYTES("a"), TM_BYTES("b")));
    assert_false(tm_bytes_equal(TM_BYTES("a"), TM_BYTES("ab")));
}

/* -- alloc ------------------------------------------------------------------------------------- */

static void alloc_counts_bytes_and_blocks_exactly(void **state)
{
    (void)state;
    tm_alloc_stats stats = {0};
    tm_alloc alloc = tm_alloc_libc(&stats);
    void *a = tm_alloc_get(&alloc, 100);
    uint8_t *b = tm_alloc_zero(&alloc, 50);
    assert_non_null(a);
    assert_non_null(b);
    for (size_t i = 0; i < 50; i++) assert_int_equal(b[i], 0);
    assert_int_equal(stats.bytes, 150);
    assert_int_equal(stats.count, 2);
    a = alloc.resize(alloc.ctx, a, 100, 40);
    assert_non_null(a);
    assert_int_equal(stats.bytes, 90);
    assert_int_equal(stats.count, 2);
    tm_alloc_free(&alloc, a, 40);
    tm_alloc_free(&alloc, NULL, 1000);
    assert_int_equal(stats.bytes, 50);
    assert_int_equal(stats.count, 1);
    tm_alloc_free(&alloc, b, 50);
    assert_int_equal(stats.bytes, 0);
    assert_int_equal(stats.count, 0);
}

static void alloc_works_without_counters(void **state)
{
    (void)state;
    tm_alloc alloc = tm_alloc_libc(NULL);
    void *ptr = tm_alloc_get(&alloc, 1);
    assert_non_null(ptr);
    tm_alloc_free(&alloc, ptr, 1);
}

/* -- buf --------------------------------------------------------------------------------------- */

static void buf_grows_and_keeps_what_it_holds(void **state)
{
    (void)state;
    tm_alloc_stats stats = {0};
    tm_alloc alloc = tm_alloc_libc(&stats);
    tm_buf buf;
    tm_buf_init(&buf, &alloc, 0);
    for (unsigned i = 0; i < 10000; i++) {
        uint8_t pair[2] = {(uint8_t)(i >> 8), (uint8_t)i};
        assert_int_equal(tm_buf_append(&buf, pair, sizeof pair), 0);
    }
    assert_int_equal(tm_buf_bytes(&buf).len, 20000);
    for (unsigned i = 0; i < 10000; i++) assert_int_equal(tm_load_u16(buf.ptr + 2 * i), i);
    assert_int_equal(stats.bytes, buf.cap);
    tm_buf_fini(&buf);
    assert_int_equal(stats.count, 0);
    assert_int_equal(tm_buf_append(&buf, "again", 5), 0);
    tm_buf_fini(&buf);
    assert_int_equal(stats.bytes, 0);
}

static void buf_refuses_one_byte_over_its_limit_and_stays_as_it_was(void **state)
{
    (void)state;
    tm_alloc_stats stats = {0};
    tm_alloc alloc = tm_alloc_libc(&stats);
    tm_buf buf;
    tm_buf_init(&buf, &alloc, 300);
    uint8_t fill[301] = {7};
    assert_int_equal(tm_buf_append(&buf, fill, 301), TM_EUSE_LIMIT);
    assert_int_equal(buf.len, 0);
    assert_int_equal(tm_buf_append(&buf, fill, 299), 0);
    assert_int_equal(tm_buf_append(&buf, fill, 1), 0);
    assert_int_equal(tm_buf_append(&buf, fill, 1), TM_EUSE_LIMIT);
    assert_int_equal(tm_buf_reserve(&buf, SIZE_MAX), TM_EUSE_LIMIT);
    assert_int_equal(tm_buf_reserve(&buf, SIZE_MAX - 300), TM_EUSE_LIMIT);
    assert_int_equal(buf.len, 300);
    assert_int_equal(buf.cap, 300);
    assert_int_equal(buf.ptr[0], 7);
    tm_buf_fini(&buf);
    assert_int_equal(tm_buf_append(&buf, fill, 300), 0);
    tm_buf_fini(&buf);
    assert_int_equal(stats.count, 0);
}

static void buf_survives_every_failing_allocation(void **state)
{
    (void)state;
    tm_alloc_stats stats = {0};
    bool failed = true;
    for (size_t n = 0; failed; n++) {
        failed = false;
        failing f = {.inner = tm_alloc_libc(&stats), .calls_left = n};
        tm_alloc alloc = {.resize = failing_resize, .ctx = &f};
        tm_buf buf;
        tm_buf_init(&buf, &alloc, 0);
        size_t taken = 0;
        for (unsigned i = 0; i < 3000; i++) {
            uint8_t byte = (uint8_t)i;
            int rc = tm_buf_append(&buf, &byte, 1);
            if (rc) {
                assert_int_equal(rc, TM_ENOMEM);
                failed = true;
                continue;
            }
            taken++;
        }
        assert_int_equal(buf.len, taken);
        assert_int_equal(taken, failed ? 2999 : 3000);
        tm_buf_fini(&buf);
        assert_int_equal(stats.bytes, 0);
        assert_int_equal(stats.count, 0);
        assert_true(n < 100);
    }
}

/* -- list -------------------------------------------------------------------------------------- */

static void list_keeps_order_and_removes_the_current_node(void **state)
{
    (void)state;
    tm_list head, nodes[4] = {{0}};
    tm_list_init(&head);
    assert_true(tm_list_empty(&head));
    for (int i = 0; i < 4; i++) {
        assert_false(tm_list_linked(&nodes[i]));
        tm_list_push(&head, &nodes[i]);
    }
    int seen = 0;
    TM_LIST_EACH (&head, node, following) {
        assert_ptr_equal(node, &nodes[seen]);
        if (seen++ % 2 == 0) tm_list_remove(node);
    }
    assert_int_equal(seen, 4);
    assert_false(tm_list_linked(&nodes[0]));
    tm_list_remove(&nodes[0]);
    assert_ptr_equal(tm_list_pop(&head), &nodes[1]);
    assert_ptr_equal(tm_list_pop(&head), &nodes[3]);
    assert_null(tm_list_pop(&head));
}

/* -- map --------------------------------------------------------------------------------------- */

/* The values are what CPython 3.11, whose hash of bytes is SipHash-1-3 too, answers for bytes(range(n))
 * with PYTHONHASHSEED=1; test_seed is the key that this seed leads to. */
static void siphash_agrees_with_an_independent_implementation(void **state)
{
    (void)state;
    static const struct {
        size_t len;
        uint64_t hash;
    } vectors[] = {
        {1, 0xecd3e5afcecda4b9ULL},  {7, 0xfd15e78052a69ddfULL},  {8, 0xc0b5739e7e28dd01ULL},
        {9, 0x208a1a5a0cbbf778ULL},  {15, 0xfa87985f39e97a53ULL}, {16, 0x12e9d283f9f37002ULL},
        {63, 0x542052345bc68274ULL}, {64, 0x7e644b6edc375dc8ULL},
    };
    uint8_t bytes[64];
    for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)i;
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        assert_true(tm_siphash(test_seed, tm_bytes_of(bytes, vectors[i].len)) == vectors[i].hash);
    uint64_t other[2] = {test_seed[0], test_seed[1] + 1};
    assert_true(tm_siphash(other, tm_bytes_of(bytes, 8)) != vectors[2].hash);
}

#define MAP_KEYS 3000

typedef struct map_item {
    char text[16];
    bool held;
} map_item;

static tm_bytes item_key(const map_item *item)
{
    return tm_bytes_of(item->text, strlen(item->text));
}

static void items_name(map_item items[MAP_KEYS])
{
    for (int i = 0; i < MAP_KEYS; i++) {
        items[i] = (map_item){0};
        snprintf(items[i].text, sizeof items[i].text, "key-%d", i);
    }
}

static void map_check(const tm_map *map, const map_item *items)
{
    size_t held = 0;
    for (int i = 0; i < MAP_KEYS; i++) {
        const void *expected = items[i].held ? &items[i] : NULL;
        assert_ptr_equal(tm_map_get(map, item_key(&items[i])), expected);
        held += items[i].held;
    }
    assert_int_equal(map->count, held);
    size_t position = 0;
    for (const map_item *item; (item = tm_map_next(map, &position)); held--)
        assert_true(item->held);
    assert_int_equal(held, 0);
}

static void map_holds_exactly_what_was_set_and_not_removed(void **state)
{
    (void)state;
    static map_item items[MAP_KEYS];
    items_name(items);
    tm_alloc_stats stats = {0};
    tm_alloc alloc = tm_alloc_libc(&stats);
    tm_map map;
    tm_map_init(&map, &alloc, test_seed);
    map_check(&map, items);
    assert_null(tm_map_remove(&map, item_key(&items[0])));
    /* A fixed walk through sets and removals, dense enough that probe chains wrap and close. */
    uint32_t dice = 12345;
    for (int step = 0; step < 60000; step++) {
        dice = dice * 1664525 + 1013904223;
        map_item *item = &items[(dice >> 8) % MAP_KEYS];
        if (dice >> 31) {
            assert_int_equal(tm_map_set(&map, item_key(item), item), 0);
            item->held = true;
        } else {
            assert_ptr_equal(tm_map_remove(&map, item_key(item)), item->held ? item : NULL);
            item->held = false;
        }
        if (step % 5000 == 0) map_check(&map, items);
    }
    map_check(&map, items);
    tm_map_fini(&map);
    assert_int_equal(stats.bytes, 0);
    assert_int_equal(stats.count, 0);
}

static void map_set_replaces_value_and_borrowed_key(void **state)
{
    (void)state;
    map_item a = {.text = "same"}, b = {.text = "same"};
    tm_alloc alloc = tm_alloc_libc(NULL);
    tm_map map;
    tm_map_init(&map, &alloc, test_seed);
    assert_int_equal(tm_map_set(&map, item_key(&a), &a), 0);
    assert_int_equal(tm_map_set(&map, item_key(&b), &b), 0);
    assert_int_equal(map.count, 1);
    memset(&a, 'x', sizeof a);
    assert_ptr_equal(tm_map_get(&map, TM_BYTES("same")), &b);
    assert_ptr_equal(tm_map_remove(&map, TM_BYTES("same")), &b);
    assert_int_equal(map.count, 0);
    tm_map_fini(&map);
}

static void map_survives_every_failing_allocation(void **state)
{
    (void)state;
    static map_item items[MAP_KEYS];
    tm_alloc_stats stats = {0};
    bool failed = true;
    for (size_t n = 0; failed; n++) {
        failed = false;
        items_name(items);
        failing f = {.inner = tm_alloc_libc(&stats), .calls_left = n};
        tm_alloc alloc = {.resize = failing_resize, .ctx = &f};
        tm_map map;
        tm_map_init(&map, &alloc, test_seed);
        for (int i = 0; i < MAP_KEYS; i++) {
            int rc = tm_map_set(&map, item_key(&items[i]), &items[i]);
            assert_true(rc == 0 || rc == TM_ENOMEM);
            items[i].held = rc == 0;
            failed |= rc != 0;
        }
        map_check(&map, items);
        tm_map_fini(&map);
        assert_int_equal(stats.bytes, 0);
        assert_int_equal(stats.count, 0);
        assert_true(n < 100);
    }
}

/* -- wheel ------------------------------------------------------------------------------------- */

#define SLOT TM_WHEEL_SLOT_NS

typedef struct test_timer {
    tm_timer timer;
    tm_wheel *wheel;
    uint64_t fired_ns; /* 0: not yet */
    int count;
    uint64_t again_ns;       /* what fire arms it to, when not 0 */
    struct test_timer *kill; /* what fire cancels */
} test_timer;

static void timer_fire(tm_timer *timer, uint64_t now_ns)
{
    test_timer *t = TM_CONTAINER(timer, test_timer, timer);
    assert_false(tm_timer_armed(timer));
    t->fired_ns = now_ns;
    t->count++;
    if (t->again_ns) {
        tm_timer_arm(t->wheel, timer, t->again_ns);
        t->again_ns = 0;
    }
    if (t->kill) tm_timer_cancel(t->wheel, &t->kill->timer);
}

static void timer_arm(test_timer *t, tm_wheel *wheel, uint64_t deadline_ns)
{
    t->timer.fire = timer_fire;
    t->wheel = wheel;
    tm_timer_arm(wheel, &t->timer, deadline_ns);
}

/* Drives the wheel as the engine does: to the time that it names, at most limit_ns. */
static uint64_t wheel_sleep(tm_wheel *wheel, uint64_t now_ns, uint64_t limit_ns)
{
    uint64_t next_ns = tm_wheel_next_ns(wheel);
    assert_true(next_ns > now_ns);
    if (next_ns > limit_ns) next_ns = limit_ns;
    tm_wheel_run(wheel, next_ns);
    return next_ns;
}

static void wheel_fires_never_early_and_at_most_a_slot_late(void **state)
{
    (void)state;
    static const uint64_t starts[] = {0, 1, 255 * SLOT, 256 * SLOT - 1, 65535 * SLOT + 5};
    static const uint64_t ahead[] = {
        0,
        1,
        SLOT - 1,
        SLOT,
        SLOT + 1,
        254 * SLOT,
        255 * SLOT,
        256 * SLOT,
        257 * SLOT,
        511 * SLOT,
        512 * SLOT,
        65279 * SLOT,
        65280 * SLOT,
        65535 * SLOT,
        65536 * SLOT,
        65537 * SLOT,
        131072 * SLOT,
        70000 * SLOT + 3,
    };
    static tm_wheel wheel;
    for (size_t s = 0; s < sizeof starts / sizeof *starts; s++) {
        for (size_t i = 0; i < sizeof ahead / sizeof *ahead; i++) {
            uint64_t now_ns = starts[s], deadline_ns = starts[s] + ahead[i];
            test_timer t = {0};
            tm_wheel_init(&wheel, now_ns);
            assert_true(tm_wheel_next_ns(&wheel) == UINT64_MAX);
            timer_arm(&t, &wheel, deadline_ns);
            while (!t.count) now_ns = wheel_sleep(&wheel, now_ns, UINT64_MAX);
            assert_true(t.fired_ns >= deadline_ns);
            uint64_t due_ns = ahead[i] ? deadline_ns : starts[s] + 1;
            assert_true(t.fired_ns < due_ns + SLOT);
            assert_int_equal(wheel.count, 0);
            assert_false(tm_timer_armed(&t.timer));
        }
    }
}

static void wheel_names_a_timer_that_is_armed_before_the_one_it_has_named(void **state)
{
    (void)state;
    static tm_wheel wheel;
    test_timer far = {0}, near = {0};
    tm_wheel_init(&wheel, 0);
    timer_arm(&far, &wheel, 100 * SLOT);
    assert_true(tm_wheel_next_ns(&wheel) == 100 * SLOT);
    timer_arm(&near, &wheel, 10 * SLOT);
    assert_true(tm_wheel_next_ns(&wheel) == 10 * SLOT);
    tm_timer_cancel(&wheel, &near.timer);
    assert_true(tm_wheel_next_ns(&wheel) == 100 * SLOT);
}

static void wheel_fires_a_deadline_past_its_horizon_in_time(void **state)
{
    (void)state;
    static tm_wheel wheel;
    uint64_t horizon_ns = SLOT << 24, start_ns = 77 * SLOT + 3;
    uint64_t deadline_ns = start_ns + 2 * horizon_ns + 12345;
    test_timer t = {0};
    tm_wheel_init(&wheel, start_ns);
    timer_arm(&t, &wheel, deadline_ns);
    uint64_t now_ns = start_ns;
    while (!t.count) now_ns = wheel_sleep(&wheel, now_ns, UINT64_MAX);
    assert_true(t.fired_ns >= deadline_ns && t.fired_ns < deadline_ns + SLOT);
}

static void wheel_catches_up_after_a_long_sleep(void **state)
{
    (void)state;
    static tm_wheel wheel;
    static test_timer timers[700];
    memset(timers, 0, sizeof timers);
    tm_wheel_init(&wheel, 0);
    for (size_t i = 0; i < 700; i++) timer_arm(&timers[i], &wheel, (i + 1) * 100 * SLOT);
    uint64_t now_ns = 35000 * SLOT;
    tm_wheel_run(&wheel, now_ns);
    for (size_t i = 0; i < 700; i++)
        assert_int_equal(timers[i].count, timers[i].timer.deadline_ns <= now_ns);
    assert_int_equal(wheel.count, 350);
    tm_wheel_run(&wheel, now_ns);
    tm_wheel_run(&wheel, now_ns - 1);
    assert_int_equal(wheel.count, 350);
    tm_wheel_run(&wheel, 70000 * SLOT);
    for (size_t i = 0; i < 700; i++) assert_int_equal(timers[i].count, 1);
    assert_int_equal(wheel.count, 0);
}

static void wheel_matches_a_sorted_list_for_random_timers(void **state)
{
    (void)state;
    static tm_wheel wheel;
    static test_timer timers[500];
    memset(timers, 0, sizeof timers);
    uint64_t now_ns = 999 * SLOT + 17;
    uint32_t dice = 4711;
    tm_wheel_init(&wheel, now_ns);
    for (int step = 0; step < 40000; step++) {
        dice = dice * 1664525 + 1013904223;
        test_timer *t = &timers[(dice >> 8) % 500];
        if (dice >> 30 == 0) {
            tm_timer_cancel(&wheel, &t->timer);
        } else if (dice >> 30 == 1) {
            /* Up to 2^17 slots ahead: all three levels. */
            uint64_t ahead = (uint64_t)(dice & 0xffff) << ((dice >> 16) % 12);
            t->count = 0;
            timer_arm(t, &wheel, now_ns + (ahead % (131072 * SLOT)) * 1024);
        } else {
            uint64_t limit_ns = now_ns + (uint64_t)((dice >> 12) % 300) * SLOT + 1;
            now_ns = wheel_sleep(&wheel, now_ns, limit_ns);
        }
        size_t armed = 0;
        for (size_t i = 0; i < 500; i++) {
            bool is_armed = tm_timer_armed(&timers[i].timer);
            armed += is_armed;
            /* What is still armed is not overdue by a slot; what fired was due. */
            if (is_armed) assert_true(timers[i].timer.deadline_ns + 2 * SLOT > now_ns);
            if (timers[i].count) assert_true(timers[i].fired_ns >= timers[i].timer.deadline_ns);
        }
        assert_int_equal(wheel.count, armed);
    }
}

static void timer_may_cancel_another_that_is_due_in_the_same_turn(void **state)
{
    (void)state;
    static tm_wheel wheel;
    test_timer a = {0}, b = {0}, c = {0};
    tm_wheel_init(&wheel, 0);
    a.kill = &b;
    timer_arm(&a, &wheel, 3 * SLOT);
    timer_arm(&b, &wheel, 3 * SLOT);
    timer_arm(&c, &wheel, 3 * SLOT);
    tm_wheel_run(&wheel, 10 * SLOT);
    assert_int_equal(a.count, 1);
    assert_int_equal(b.count, 0);
    assert_int_equal(c.count, 1);
    assert_int_equal(wheel.count, 0);
    tm_timer_cancel(&wheel, &b.timer);
    assert_int_equal(wheel.count, 0);
}

static void timer_may_cancel_a_later_one_of_every_level(void **state)
{
    (void)state;
    static tm_wheel wheel;
    static const uint64_t later[] = {4, 300, 66000};
    for (size_t i = 0; i < sizeof later / sizeof *later; i++) {
        test_timer a = {0}, b = {0};
        tm_wheel_init(&wheel, 0);
        a.kill = &b;
        timer_arm(&a, &wheel, 3 * SLOT);
        timer_arm(&b, &wheel, later[i] * SLOT);
        tm_wheel_run(&wheel, 70000 * SLOT);
        assert_int_equal(a.count, 1);
        assert_int_equal(b.count, 0);
        assert_int_equal(wheel.count, 0);
    }
}

static void timer_may_arm_itself_again_when_it_fires(void **state)
{
    (void)state;
    static tm_wheel wheel;
    test_timer t = {.again_ns = 600 * SLOT};
    tm_wheel_init(&wheel, 0);
    timer_arm(&t, &wheel, 5 * SLOT);
    tm_wheel_run(&wheel, 6 * SLOT);
    assert_int_equal(t.count, 1);
    assert_true(tm_timer_armed(&t.timer));
    tm_wheel_run(&wheel, 599 * SLOT);
    assert_int_equal(t.count, 1);
    tm_wheel_run(&wheel, 601 * SLOT);
    assert_int_equal(t.count, 2);
    assert_int_equal(wheel.count, 0);
}

static void timer_armed_twice_fires_once_at_the_later_call(void **state)
{
    (void)state;
    static tm_wheel wheel;
    test_timer t = {0};
    tm_wheel_init(&wheel, 0);
    timer_arm(&t, &wheel, 5 * SLOT);
    timer_arm(&t, &wheel, 400 * SLOT);
    assert_int_equal(wheel.count, 1);
    tm_wheel_run(&wheel, 399 * SLOT);
    assert_int_equal(t.count, 0);
    timer_arm(&t, &wheel, 399 * SLOT);
    tm_wheel_run(&wheel, 401 * SLOT);
    assert_int_equal(t.count, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cursor_reads_big_endian_and_stops_at_the_end),
        cmocka_unit_test(cursor_read_past_the_end_moves_nothing),
        cmocka_unit_test(cursor_of_nothing_is_empty),
        cmocka_unit_test(alloc_counts_bytes_and_blocks_exactly),
        cmocka_unit_test(alloc_works_without_counters),
        cmocka_unit_test(buf_grows_and_keeps_what_it_holds),
        cmocka_unit_test(buf_refuses_one_byte_over_its_limit_and_stays_as_it_was),
        cmocka_unit_test(buf_survives_every_failing_allocation),
        cmocka_unit_test(list_keeps_order_and_removes_the_current_node),
        cmocka_unit_test(siphash_agrees_with_an_independent_implementation),
        cmocka_unit_test(map_holds_exactly_what_was_set_and_not_removed),
        cmocka_unit_test(map_set_replaces_value_and_borrowed_key),
        cmocka_unit_test(map_survives_every_failing_allocation),
        cmocka_unit_test(wheel_fires_never_early_and_at_most_a_slot_late),
        cmocka_unit_test(wheel_names_a_timer_that_is_armed_before_the_one_it_has_named),
        cmocka_unit_test(wheel_fires_a_deadline_past_its_horizon_in_time),
        cmocka_unit_test(wheel_catches_up_after_a_long_sleep),
        cmocka_unit_test(wheel_matches_a_sorted_list_for_random_timers),
        cmocka_unit_test(timer_may_cancel_another_that_is_due_in_the_same_turn),
        cmocka_unit_test(timer_may_cancel_a_later_one_of_every_level),
        cmocka_unit_test(timer_may_arm_itself_again_when_it_fires),
        cmocka_unit_test(timer_armed_twice_fires_once_at_the_later_call),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
