/* How long a turn lets what comes over many links come together. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "engine.h"

/* Messages of a millisecond of full load, one by one. */
#define FULL 40

static void few_links_are_never_made_to_wait(void **state)
{
    (void)state;
    for (uint64_t links = 0; links < TM_GATHER_LINKS_MIN; links++)
        for (uint64_t frames = links; frames < 10000; frames++)
            assert_int_equal(tm_engine_gather_ns(TM_MS_NS, links, frames), 0);
}

static void traffic_with_gaps_is_not_made_to_wait(void **state)
{
    (void)state;
    uint64_t ns = (TM_GATHER_FRAME_NS_MAX + 1) * 100ULL;
    for (uint64_t links = 0; links <= 100; links++)
        assert_int_equal(tm_engine_gather_ns(ns, links, 100), 0);
    assert_int_equal(tm_engine_gather_ns(100 * TM_S_NS, 1000, 1000), 0);
}

static void links_wait_for_a_quarter_of_their_round_trip(void **state)
{
    (void)state;
    /* Ten links, each with one message under way and a round trip of 250 us. */
    unsigned ns = tm_engine_gather_ns(TM_MS_NS, 10, FULL);
    assert_in_range(ns, 62000, 63000);
    /* As many messages, each link with several under way: their answers take longer. */
    assert_in_range(tm_engine_gather_ns(TM_MS_NS, 20, FULL), 2 * ns - 1000, 2 * ns + 1000);
}

static void nothing_waits_longer_than_the_bound(void **state)
{
    (void)state;
    for (uint64_t ns = TM_GATHER_PERIOD_NS; ns < TM_S_NS; ns *= 2)
        for (uint64_t links = 1; links <= 1024; links *= 2)
            for (uint64_t frames = links; frames <= 100000; frames *= 3)
                assert_true(tm_engine_gather_ns(ns, links, frames) <= TM_GATHER_NS_MAX);
    assert_int_equal(tm_engine_gather_ns(TM_MS_NS, FULL, FULL), TM_GATHER_NS_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(few_links_are_never_made_to_wait),
        cmocka_unit_test(traffic_with_gaps_is_not_made_to_wait),
        cmocka_unit_test(links_wait_for_a_quarter_of_their_round_trip),
        cmocka_unit_test(nothing_waits_longer_than_the_bound),
    };
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
