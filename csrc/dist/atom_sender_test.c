#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "atom_cache.h"
#include "atom_sender.h"
#include "cache_test.h"
#include "frame.h"
#include "sequence.h"

#define FLAGS (TM_DFLAGS_OURS | TM_DFLAG(DIST_HDR_ATOM_CACHE) | TM_DFLAG(FRAGMENTS))
#define PAYLOAD TM_BYTES("\x61\x07")

static const tm_pid OURS = {
    .node = {(const uint8_t *)"a@b", 3}, .id = 1, .serial = 2, .creation = 3};
static const tm_pid THEIRS = {
    .node = {(const uint8_t *)"c@d", 3}, .id = 4, .serial = 5, .creation = 6};

static tm_control send_to(tm_bytes name)
{
    tm_control control;
    tm_control_init(&control, name.len ? TM_OP_REG_SEND : TM_OP_SEND);
    control.from = (tm_control_item){.kind = TM_ITEM_PID, .pid = OURS};
    control.to = (tm_control_item){.kind = TM_ITEM_PID, .pid = THEIRS};
    if (name.len) control.to = (tm_control_item){.kind = TM_ITEM_NAME, .name = name};
    return control;
}

static void both_names_are_told_once_and_meant_by_number_then(void **state)
{
    (void)state;
    tm_alloc alloc = tm_alloc_libc(NULL);
    tm_atom_sender sender = {0};
    tm_control control = send_to((tm_bytes){0});
    tm_buf out;
    tm_buf_init(&out, &alloc, 0);
    for (int i = 0; i < 2; i++) {
        size_t start = out.len;
        assert_int_equal(tm_frame_write(&out, FLAGS, &control, PAYLOAD), 0);
        assert_int_equal(tm_atom_sender_shorten(&sender, &out, start), 0);
    }
    static const uint8_t FIRST[] = {0, 0, 0,   51,  131, 68,  2, 0x88, 0,  0,  3,  'a', '@', 'b',
                                    1, 3, 'c', '@', 'd', 104, 3, 97,   22, 88, 82, 0,   0,   0,
                                    0, 1, 0,   0,   0,   2,   0, 0,    0,  3,  88, 82,  1,   0,
                                    0, 0, 4,   0,   0,   0,   5, 0,    0,  0,  6,  97,  7};
    size_t first = tm_load_u32(out.ptr) + 4;
    assert_int_equal(first, sizeof FIRST);
    assert_memory_equal(out.ptr, FIRST, sizeof FIRST);
    const uint8_t *second = out.ptr + first;
    static const uint8_t KNOWN[] = {131, 68, 2, 0, 0, 0, 1, 104, 3, 97, 22, 88, 82, 0};
    assert_memory_equal(second + 4, KNOWN, sizeof KNOWN);
    assert_int_equal(tm_load_u32(second), out.len - first - 4);
    assert_int_equal(first - (out.len - first), 8);
    tm_buf_fini(&out);
}

static void what_does_not_fit_is_written_out(void **state)
{
    (void)state;
    tm_alloc alloc = tm_alloc_libc(NULL);
    tm_atom_sender sender = {0};
    char text[TM_ATOM_SENDER_TEXT_MAX + 2];
    memset(text, 'x', sizeof text);
    tm_buf out;
    tm_buf_init(&out, &alloc, 0);
    tm_control control = send_to(tm_bytes_of(text, sizeof text - 1));
    assert_int_equal(tm_frame_write(&out, FLAGS, &control, PAYLOAD), 0);
    assert_int_equal(tm_atom_sender_shorten(&sender, &out, 0), 0);
    assert_int_equal(sender.count, 1); /* the node of the sender */
    for (int i = 0; i < 2 * TM_ATOM_SENDER_COUNT_MAX; i++) {
        snprintf(text, sizeof text, "name%d", i);
        control = send_to(tm_bytes_of(text, strlen(text)));
        out.len = 0;
        assert_int_equal(tm_frame_write(&out, FLAGS, &control, PAYLOAD), 0);
        assert_int_equal(tm_atom_sender_shorten(&sender, &out, 0), 0);
    }
    assert_int_equal(sender.count, TM_ATOM_SENDER_COUNT_MAX);
    tm_buf_fini(&out);
}

/* Every operation that the core sends, through the received half: the same message comes out. */
static void the_peer_reads_what_was_meant(void **state)
{
    (void)state;
    test_cache own;
    test_cache_init(&own);
    tm_atom_sender sender = {0};
    static const uint8_t MONITOR[] = {108, 0,   0,   0,   1,   119, 7,  'm',
                                      'o', 'n', 'i', 't', 'o', 'r', 106};
    static const uint8_t OPS[] = {TM_OP_SEND,        TM_OP_REG_SEND,       TM_OP_ALIAS_SEND,
                                  TM_OP_LINK,        TM_OP_UNLINK_ID,      TM_OP_UNLINK_ID_ACK,
                                  TM_OP_EXIT,        TM_OP_EXIT2,          TM_OP_MONITOR_P,
                                  TM_OP_DEMONITOR_P, TM_OP_MONITOR_P_EXIT, TM_OP_SPAWN_REQUEST,
                                  TM_OP_SPAWN_REPLY};
    for (size_t i = 0; i < 3 * sizeof OPS; i++) {
        tm_control control = send_to((tm_bytes){0});
        control.op = OPS[i % sizeof OPS];
        control.ref = (tm_ref){.node = OURS.node, .creation = 3, .count = 3, .words = {1, 2, 3}};
        control.reason = TM_BYTES("\x77\x04gone");
        control.unlink_id = i % 2 ? 9 : UINT64_MAX;
        control.group_leader = THEIRS;
        control.module = TM_BYTES("erpc");
        control.function = TM_BYTES("execute_call");
        control.arity = 4;
        control.options = tm_bytes_of(MONITOR, sizeof MONITOR);
        control.result = (tm_control_item){.kind = TM_ITEM_PID, .pid = OURS};
        if (control.op == TM_OP_REG_SEND)
            control.to = (tm_control_item){.kind = TM_ITEM_NAME, .name = TM_BYTES("rex")};
        if (control.op == TM_OP_ALIAS_SEND)
            control.to = (tm_control_item){.kind = TM_ITEM_REF, .ref = control.ref};
        bool takes = tm_control_takes_payload(FLAGS, &control);
        bool reason = control.op == TM_OP_EXIT || control.op == TM_OP_EXIT2 ||
                      control.op == TM_OP_MONITOR_P_EXIT;
        tm_buf out, tuple;
        tm_buf_init(&out, &own.memory.alloc, 0);
        tm_buf_init(&tuple, &own.memory.alloc, 0);
        assert_int_equal(tm_control_write(&tuple, FLAGS, &control), 0);
        assert_int_equal(
            tm_frame_write(&out, FLAGS, &control, takes && !reason ? PAYLOAD : (tm_bytes){0}), 0);
        size_t plain = out.len;
        assert_int_equal(tm_atom_sender_shorten(&sender, &out, 0), 0);
        assert_int_equal(tm_load_u32(out.ptr) + 4, out.len);
        if (i >= sizeof OPS) assert_true(out.len < plain);
        tm_atom_header header;
        tm_atom_header_init(&header);
        tm_cursor c = tm_cursor_of(tm_bytes_of(out.ptr + 6, out.len - 6));
        const char *what;
        assert_int_equal(tm_atom_cache_read(&own.cache, &c, &header, &what), 0);
        tm_buf again;
        tm_buf_init(&again, &own.memory.alloc, 0);
        size_t rest = takes ? (reason ? 6 : 2) : 0;
        tm_bytes term = {c.ptr, tm_cursor_left(&c) - rest};
        assert_int_equal(tm_etf_expand(term, header.atoms, &again), 0);
        assert_int_equal(again.len, tuple.len);
        assert_memory_equal(again.ptr, tuple.ptr, tuple.len);
        tm_atom_header_done(&own.cache, &header);
        tm_buf_fini(&again);
        tm_buf_fini(&out);
        tm_buf_fini(&tuple);
    }
    test_cache_fini(&own);
}

static void a_message_of_other_terms_is_left_alone(void **state)
{
    (void)state;
    tm_alloc alloc = tm_alloc_libc(NULL);
    tm_atom_sender sender = {0};
    uint64_t flags = FLAGS & ~TM_DFLAG(EXIT_PAYLOAD);
    tm_control control = send_to((tm_bytes){0});
    control.op = TM_OP_EXIT;
    control.reason = TM_BYTES("\x6d\0\0\0\x01x");
    tm_buf out, before;
    tm_buf_init(&out, &alloc, 0);
    tm_buf_init(&before, &alloc, 0);
    assert_int_equal(tm_frame_write(&out, flags, &control, (tm_bytes){0}), 0);
    assert_int_equal(tm_buf_append(&before, out.ptr, out.len), 0);
    assert_int_equal(tm_atom_sender_shorten(&sender, &out, 0), 0);
    assert_int_equal(out.len, before.len);
    assert_memory_equal(out.ptr, before.ptr, out.len);
    assert_int_equal(sender.count, 0);
    tm_buf_fini(&out);
    tm_buf_fini(&before);
}

static void a_first_fragment_is_shortened_too(void **state)
{
    (void)state;
    tm_alloc alloc = tm_alloc_libc(NULL);
    tm_atom_sender sender = {0};
    tm_control control = send_to((tm_bytes){0});
    tm_buf out;
    tm_buf_init(&out, &alloc, 0);
    assert_int_equal(tm_sequence_first(&out, FLAGS, &control, 7, 2 * TM_FRAGMENT_BYTES), 0);
    assert_int_equal(tm_atom_sender_shorten(&sender, &out, 0), 0);
    assert_int_equal(tm_load_u32(out.ptr) + 4, out.len + TM_FRAGMENT_BYTES);
    static const uint8_t LIST[] = {2, 0x88, 0, 0, 3, 'a', '@', 'b', 1, 3, 'c', '@', 'd', 104};
    assert_memory_equal(out.ptr + 4 + 18, LIST, sizeof LIST);
    tm_buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_names_are_told_once_and_meant_by_number_then),
        cmocka_unit_test(what_does_not_fit_is_written_out),
        cmocka_unit_test(the_peer_reads_what_was_meant),
        cmocka_unit_test(a_message_of_other_terms_is_left_alone),
        cmocka_unit_test(a_first_fragment_is_shortened_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
