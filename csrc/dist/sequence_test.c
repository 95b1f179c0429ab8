#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "dist_test.h"
#include "sequence.h"

#define FLAGS (TM_DFLAGS_OURS | TM_DFLAG(FRAGMENTS))
#define PIECE ((size_t)TM_FRAGMENT_BYTES)

static tm_control message(void)
{
    tm_control control;
    tm_control_init(&control, TM_OP_SEND);
    tm_pid pid = {.node = TM_BYTES("a@b"), .id = 1, .serial = 2, .creation = 3};
    control.from = (tm_control_item){.kind = TM_ITEM_PID, .pid = pid};
    control.to = (tm_control_item){.kind = TM_ITEM_PID, .pid = pid};
    return control;
}

static void the_first_frame_holds_the_whole_control_message(void **state)
{
    (void)state;
    tm_alloc alloc = tm_alloc_libc(NULL);
    tm_control control = message();
    tm_buf out, tuple;
    tm_buf_init(&out, &alloc, 0);
    tm_buf_init(&tuple, &alloc, 0);
    assert_int_equal(tm_control_write(&tuple, FLAGS, &control), 0);
    assert_int_equal(tm_buf_append(&out, "before", 6), 0);
    assert_int_equal(tm_sequence_first(&out, FLAGS, &control, 0x2a800000553, 3 * PIECE), 0);
    static const uint8_t HEAD[] = {131, 69, 0, 0, 0x02, 0xa8, 0, 0, 0x05, 0x53,
                                   0,   0,  0, 0, 0,    0,    0, 3, 0};
    assert_int_equal(out.len, 6 + 4 + sizeof HEAD + tuple.len);
    assert_int_equal(tm_load_u32(out.ptr + 6), sizeof HEAD + tuple.len + PIECE);
    assert_memory_equal(out.ptr + 10, HEAD, sizeof HEAD);
    assert_memory_equal(out.ptr + 10 + sizeof HEAD, tuple.ptr, tuple.len);
    tm_buf_fini(&out);
    tm_buf_fini(&tuple);
}

static void the_others_are_numbered_down_to_one(void **state)
{
    (void)state;
    tm_alloc alloc = tm_alloc_libc(NULL);
    tm_buf out;
    tm_buf_init(&out, &alloc, 0);
    assert_int_equal(tm_sequence_next(&out, 5, 2 * PIECE + 1, 2), 0);
    assert_int_equal(tm_sequence_next(&out, 5, 2 * PIECE + 1, 1), 0);
    static const uint8_t HEADS[] = {
        0, 1, 0, 18, 131, 70, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 2,
        0, 0, 0, 19, 131, 70, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1,
    };
    assert_int_equal(out.len, sizeof HEADS);
    assert_memory_equal(out.ptr, HEADS, sizeof HEADS);
    tm_buf_fini(&out);
}

static void the_parts_add_up_whatever_the_size(void **state)
{
    (void)state;
    for (size_t size = 1; size < 5 * PIECE; size += 4093) {
        for (size_t around = size; around < size + 3; around++) {
            uint64_t count = tm_sequence_count(around);
            size_t sum = 0;
            for (uint64_t number = count; number; number--) {
                size_t part = tm_sequence_part(around, number);
                assert_true(part > 0 && part <= PIECE);
                sum += part;
            }
            assert_int_equal(sum, around);
            assert_int_equal(count == 1, around <= PIECE);
        }
    }
    assert_int_equal(tm_sequence_count(PIECE), 1);
    assert_int_equal(tm_sequence_count(PIECE + 1), 2);
    assert_int_equal(tm_sequence_part(2 * PIECE, 1), PIECE);
}

static void refuses_what_no_peer_could_read(void **state)
{
    (void)state;
    tm_alloc alloc = tm_alloc_libc(NULL);
    tm_control control = message();
    tm_buf out;
    tm_buf_init(&out, &alloc, 0);
    assert_int_equal(tm_sequence_first(&out, TM_DFLAGS_OURS & ~TM_DFLAG(FRAGMENTS), &control, 1, 9),
                     TM_EUSE_ARG);
    assert_int_equal(tm_sequence_first(&out, FLAGS, &control, 1, 0), TM_EUSE_ARG);
    assert_int_equal(tm_sequence_next(&out, 1, 3 * PIECE, 0), TM_EUSE_ARG);
    assert_int_equal(tm_sequence_next(&out, 1, 3 * PIECE, 3), TM_EUSE_ARG);
    control.op = TM_OP_LINK;
    assert_int_equal(tm_sequence_first(&out, FLAGS, &control, 1, 9), TM_EUSE_ARG);
    control.op = TM_OP_SPAWN_REQUEST;
    assert_int_equal(tm_sequence_first(&out, FLAGS & ~TM_DFLAG(SPAWN), &control, 1, 9), TM_ENOTSUP);
    assert_int_equal(out.len, 0);
    tm_buf_fini(&out);
}

static void a_failed_allocation_leaves_nothing_behind(void **state)
{
    (void)state;
    tm_control control = message();
    for (size_t fail = 0; fail < 3; fail++) {
        test_alloc heap;
        test_alloc_init(&heap, fail);
        tm_buf out;
        tm_buf_init(&out, &heap.alloc, 0);
        int rc = tm_sequence_first(&out, FLAGS, &control, 1, 3 * PIECE);
        assert_true(rc == 0 || (rc == TM_ENOMEM && out.len == 0));
        tm_buf_fini(&out);
        assert_int_equal(heap.stats.bytes, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_frame_holds_the_whole_control_message),
        cmocka_unit_test(the_others_are_numbered_down_to_one),
        cmocka_unit_test(the_parts_add_up_whatever_the_size),
        cmocka_unit_test(refuses_what_no_peer_could_read),
        cmocka_unit_test(a_failed_allocation_leaves_nothing_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
