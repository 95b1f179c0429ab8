#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "pause.h"

#define SMALL 64
/* More turns than any stream needs to be one, and than a pause needs to grow. */
#define MANY 64

/* So many turns that each bring the same; the pause behind the last one. */
static unsigned turns(tm_pause *pause, int count, uint64_t frames, uint64_t bytes)
{
    unsigned ns = 0;
    for (int i = 0; i < count; i++) ns = tm_pause_after(pause, frames, bytes, pause->sends);
    return ns;
}

/* A stream with a message every so many ns: a turn brings what came during the pause before it. */
static unsigned stream(tm_pause *pause, uint64_t every_ns, uint64_t frame_bytes)
{
    unsigned ns = TM_PAUSE_NS_MIN;
    for (int i = 0; i < MANY; i++) {
        uint64_t frames = ns / every_ns > 1 ? ns / every_ns : 1;
        ns = tm_pause_after(pause, frames, frames * frame_bytes, pause->sends);
        if (!ns) ns = TM_PAUSE_NS_MIN;
    }
    return ns;
}

static void a_message_that_comes_alone_is_not_late(void **state)
{
    (void)state;
    tm_pause pause = {0};
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(turns(&pause, 1, 1, SMALL), 0);
        assert_int_equal(turns(&pause, 1, 0, 0), 0);
    }
}

static void a_stream_is_read_late_until_a_turn_brings_nothing(void **state)
{
    (void)state;
    tm_pause pause = {0};
    assert_true(turns(&pause, MANY, 1, SMALL) > 0);
    assert_int_equal(turns(&pause, 1, 0, 0), 0);
    assert_int_equal(turns(&pause, 1, 1, SMALL), 0);
}

static void an_answer_ends_the_pauses(void **state)
{
    (void)state;
    tm_pause pause = {0};
    assert_true(turns(&pause, MANY, 10, 10 * SMALL) > 0);
    assert_int_equal(tm_pause_after(&pause, 10, 10 * SMALL, pause.sends + 1), 0);
    assert_int_equal(turns(&pause, 1, 10, 10 * SMALL), 0);
}

static void the_pause_of_a_dense_stream_grows_to_its_bound(void **state)
{
    (void)state;
    tm_pause pause = {0};
    assert_int_equal(stream(&pause, TM_PAUSE_FRAME_NS / 4, SMALL), TM_PAUSE_NS_MAX);
}

static void the_pause_of_a_thin_stream_stays_the_least(void **state)
{
    (void)state;
    tm_pause pause = {0};
    assert_int_equal(stream(&pause, TM_PAUSE_FRAME_NS * 2, SMALL), TM_PAUSE_NS_MIN);
}

static void a_stream_that_thins_out_gets_its_short_pause_back(void **state)
{
    (void)state;
    tm_pause pause = {0};
    assert_int_equal(stream(&pause, TM_PAUSE_FRAME_NS / 4, SMALL), TM_PAUSE_NS_MAX);
    assert_int_equal(stream(&pause, TM_PAUSE_FRAME_NS * 2, SMALL), TM_PAUSE_NS_MIN);
}

static void a_new_stream_begins_with_the_least_pause(void **state)
{
    (void)state;
    tm_pause pause = {0};
    assert_int_equal(stream(&pause, TM_PAUSE_FRAME_NS / 4, SMALL), TM_PAUSE_NS_MAX);
    assert_int_equal(turns(&pause, 1, 0, 0), 0);
    unsigned ns = 0;
    for (int i = 0; i < MANY && !ns; i++) ns = turns(&pause, 1, 100, 100 * SMALL);
    assert_int_equal(ns, TM_PAUSE_NS_MIN);
}

static void a_pause_never_brings_more_than_a_sender_may_have_under_way(void **state)
{
    (void)state;
    tm_pause pause = {0};
    /* 1 KiB every 5 us: the longest pause would bring 100 KiB. */
    unsigned ns = stream(&pause, 5000, TM_KIB);
    assert_true(ns >= TM_PAUSE_NS_MIN && ns < TM_PAUSE_NS_MAX);
    assert_true(ns / 5000 * TM_KIB <= TM_PAUSE_BYTES);
}

static void large_messages_are_read_at_once(void **state)
{
    (void)state;
    tm_pause pause = {0};
    assert_int_equal(turns(&pause, MANY, 4, 4 * TM_PAUSE_FRAME_BYTES_MAX), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_message_that_comes_alone_is_not_late),
        cmocka_unit_test(a_stream_is_read_late_until_a_turn_brings_nothing),
        cmocka_unit_test(an_answer_ends_the_pauses),
        cmocka_unit_test(the_pause_of_a_dense_stream_grows_to_its_bound),
        cmocka_unit_test(the_pause_of_a_thin_stream_stays_the_least),
        cmocka_unit_test(a_stream_that_thins_out_gets_its_short_pause_back),
        cmocka_unit_test(a_new_stream_begins_with_the_least_pause),
        cmocka_unit_test(a_pause_never_brings_more_than_a_sender_may_have_under_way),
        cmocka_unit_test(large_messages_are_read_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
