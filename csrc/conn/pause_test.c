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

/* -- exchanges */

/* So many trials in which a message came every frame_ns, and so many a turn; the pauses in the next. */
static unsigned trials(tm_exchange *exchange, int count, uint64_t frame_ns, uint64_t frames)
{
    unsigned ns = 0;
    for (int i = 0; i < count * TM_EXCHANGE_TRIAL; i++) {
        uint64_t turns = TM_GATHER_PERIOD_NS / frame_ns / frames;
        ns = tm_exchange_pause(exchange, TM_GATHER_PERIOD_NS, turns, turns * frames);
    }
    return ns;
}

#define CLOSE (TM_EXCHANGE_FRAME_NS - TM_EXCHANGE_FRAME_NS / 4)

static void close_turns_of_an_exchange_get_pauses_while_these_pay(void **state)
{
    (void)state;
    tm_exchange exchange = {0};
    assert_int_equal(trials(&exchange, 1, CLOSE, 2), TM_EXCHANGE_NS);
    /* A turn brings more now, and that is what they are for. */
    assert_int_equal(trials(&exchange, 100, CLOSE - 500, 4 * TM_EXCHANGE_FRAMES), TM_EXCHANGE_NS);
}

static void pauses_that_do_not_pay_end_and_are_not_tried_again_soon(void **state)
{
    (void)state;
    tm_exchange exchange = {0};
    assert_int_equal(trials(&exchange, 1, CLOSE, 2), TM_EXCHANGE_NS);
    assert_int_equal(trials(&exchange, 1, CLOSE + 500, 4), 0);
    for (int i = 1; i < TM_EXCHANGE_HOLD / TM_EXCHANGE_TRIAL; i++)
        assert_int_equal(trials(&exchange, 1, CLOSE, 2), 0);
    assert_int_equal(trials(&exchange, 1, CLOSE, 2), TM_EXCHANGE_NS);
}

static void a_bad_moment_of_pauses_that_paid_only_measures_anew(void **state)
{
    (void)state;
    tm_exchange exchange = {0};
    assert_int_equal(trials(&exchange, 1, CLOSE, 2), TM_EXCHANGE_NS);
    assert_int_equal(trials(&exchange, 1, CLOSE - 500, 8), TM_EXCHANGE_NS);
    assert_int_equal(trials(&exchange, 1, CLOSE + 500, 8), 0);
    assert_int_equal(trials(&exchange, 1, CLOSE + 500, 2), TM_EXCHANGE_NS);
    assert_int_equal(trials(&exchange, 1, CLOSE, 8), TM_EXCHANGE_NS);
}

static void callers_who_ask_at_once_get_no_pauses(void **state)
{
    (void)state;
    tm_exchange exchange = {0};
    assert_int_equal(trials(&exchange, 10, CLOSE, TM_EXCHANGE_FRAMES + 1), 0);
}

static void messages_that_come_seldom_get_no_pauses(void **state)
{
    (void)state;
    tm_exchange exchange = {0};
    assert_int_equal(trials(&exchange, 10, TM_EXCHANGE_FRAME_NS + 500, 1), 0);
    assert_int_equal(tm_exchange_pause(&exchange, TM_S_NS, 0, 0), 0);
    /* And they end at once when nothing comes any more. */
    assert_int_equal(trials(&exchange, 1, CLOSE, 2), TM_EXCHANGE_NS);
    assert_int_equal(tm_exchange_pause(&exchange, TM_GATHER_PERIOD_NS, 3, 3), 0);
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
        cmocka_unit_test(close_turns_of_an_exchange_get_pauses_while_these_pay),
        cmocka_unit_test(pauses_that_do_not_pay_end_and_are_not_tried_again_soon),
        cmocka_unit_test(a_bad_moment_of_pauses_that_paid_only_measures_anew),
        cmocka_unit_test(callers_who_ask_at_once_get_no_pauses),
        cmocka_unit_test(messages_that_come_seldom_get_no_pauses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
