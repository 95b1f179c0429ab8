/* What a process hands on, the aliases of erlang:monitor/3, monitors of nodes, and what waits for
 * all processes together. Who is who: see proc_test.c. */
#include "testing.h"

/* {1, Label, Serial, Pid of node b, Previous} */
static tm_bytes labelled(tm_buf *buf, tm_bytes label, uint64_t serial, uint64_t previous)
{
    tm_pid from = peer_pid(B, 50);
    buf->len = 0;
    assert_int_equal(tm_etf_write_tuple(buf, 5), 0);
    assert_int_equal(tm_etf_write_u64(buf, 1), 0);
    assert_int_equal(tm_etf_write_raw(buf, label), 0);
    assert_int_equal(tm_etf_write_u64(buf, serial), 0);
    assert_int_equal(tm_etf_write_pid(buf, &from), 0);
    assert_int_equal(tm_etf_write_u64(buf, previous), 0);
    return tm_buf_bytes(buf);
}

static tm_bytes token_of(tm_buf *buf, uint64_t serial, uint64_t previous)
{
    return labelled(buf, TM_BYTES("a\21"), serial, previous);
}

static tm_buf buffer(fixture *f)
{
    tm_buf buf;
    tm_buf_init(&buf, &f->libc, 0);
    return buf;
}

/* -- aliases of monitors ----------------------------------------------------------------------- */

static void explicit_alias_outlives_demonitor_and_down(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    bool reply;
    tm_ref ended = monitor_ok(f, key, name_target(B, "srv"), TM_MONITOR_EXPLICIT_UNALIAS);
    tm_ref fired = monitor_ok(f, key, name_target(B, "srv"), TM_MONITOR_EXPLICIT_UNALIAS);
    assert_true(tm_procs_demonitor(f->procs, key, &ended));
    assert_false(tm_procs_demonitor(f->procs, key, &ended));
    on_monitor_exit_ok(f, B, pid_of(f, key), fired, CRASH);
    on_monitor_exit_ok(f, B, pid_of(f, key), fired, CRASH);
    for (int i = 0; i < 2; i++) {
        assert_true(tm_procs_use_alias(f->procs, &ended, &reply) == key);
        assert_true(tm_procs_use_alias(f->procs, &fired, &reply) == key);
        assert_false(reply);
    }
    assert_true(tm_procs_unalias(f->procs, key, &ended));
    assert_true(tm_procs_use_alias(f->procs, &ended, &reply) == 0);
    expect(f, "MONITOR <1.0> b@h'srv' #0\n"
              "MONITOR <1.0> b@h'srv' #1\n"
              "DEMONITOR <1.0> b@h'srv' #0\n"
              "down 1 b@h'srv' #1 crash\n");
    exit_ok(f, key, NORMAL);
    assert_true(tm_procs_use_alias(f->procs, &fired, &reply) == 0);
}

static void explicit_alias_of_a_local_monitor_and_of_a_dying_owner(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), target = spawn(f);
    bool reply;
    tm_target to = tm_target_pid(pid_of(f, target));
    tm_ref kept = monitor_ok(f, key, to, TM_MONITOR_EXPLICIT_UNALIAS);
    monitor_ok(f, target, tm_target_pid(pid_of(f, key)), TM_MONITOR_EXPLICIT_UNALIAS);
    exit_ok(f, target, CRASH);
    assert_true(tm_procs_use_alias(f->procs, &kept, &reply) == key);
    tm_ref nobody = monitor_ok(f, key, to, TM_MONITOR_EXPLICIT_UNALIAS);
    assert_true(tm_procs_use_alias(f->procs, &nobody, &reply) == key);
    expect(f, "down 1 <2.0> #0 crash\ndown 1 <2.0> #2 noproc\n");
    exit_ok(f, key, CRASH);
    expect(f, "");
}

static void demonitor_alias_ends_with_the_monitor(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    bool reply = true;
    tm_ref ended = monitor_ok(f, key, name_target(B, "srv"), TM_MONITOR_DEMONITOR);
    tm_ref fired = monitor_ok(f, key, name_target(B, "srv"), TM_MONITOR_DEMONITOR);
    for (int i = 0; i < 2; i++) assert_true(tm_procs_use_alias(f->procs, &ended, &reply) == key);
    assert_false(reply);
    assert_true(tm_procs_demonitor(f->procs, key, &ended));
    on_monitor_exit_ok(f, B, pid_of(f, key), fired, CRASH);
    assert_true(tm_procs_use_alias(f->procs, &ended, &reply) == 0);
    assert_true(tm_procs_use_alias(f->procs, &fired, &reply) == 0);
}

static void reply_aliases_take_one_message_as_mail(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    bool reply = true;
    tm_ref alias, monitor = monitor_ok(f, key, name_target(B, "srv"), TM_MONITOR_REPLY_DEMONITOR);
    assert_int_equal(tm_procs_alias(f->procs, key, TM_ALIAS_REPLY, &alias), 0);
    assert_true(tm_procs_use_alias(f->procs, &monitor, &reply) == key);
    assert_false(reply);
    assert_true(tm_procs_use_alias(f->procs, &alias, &reply) == key);
    assert_false(reply);
    assert_true(tm_procs_use_alias(f->procs, &monitor, &reply) == 0);
    assert_true(tm_procs_use_alias(f->procs, &alias, &reply) == 0);
    expect(f, "MONITOR <1.0> b@h'srv' #0\nDEMONITOR <1.0> b@h'srv' #0\n");
}

static void exit_signal_reaches_an_alias_and_does_not_use_it_up(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), other = spawn(f);
    tm_pid from = peer_pid(B, 50);
    bool reply;
    tm_ref alias, far = peer_ref(B, 9);
    trap(f, key);
    assert_int_equal(tm_procs_alias(f->procs, key, TM_ALIAS_REPLY, &alias), 0);
    assert_int_equal(tm_procs_on_exit_alias(f->procs, &from, &alias, CRASH), 0);
    assert_int_equal(tm_procs_exit_alias(f->procs, other, &alias, CRASH), 0);
    assert_int_equal(tm_procs_exit_alias(f->procs, other, &far, CRASH), 0);
    assert_true(tm_procs_use_alias(f->procs, &alias, &reply) == key);
    assert_int_equal(tm_procs_on_exit_alias(f->procs, &from, &alias, CRASH), 0);
    assert_int_equal(tm_procs_exit_alias(f->procs, other, &alias, CRASH), 0);
    expect(f, "message 1 b@h<50.0> crash\n"
              "message 1 <2.0> crash\n"
              "EXIT2 <2.0> alias crash\n");
    assert_int_equal(tm_procs_exit_alias(f->procs, 99, &alias, CRASH), TM_ENOPROC);
}

/* -- monitors of nodes ------------------------------------------------------------------------- */

static void node_monitor_fires_once_a_call_after_all_else(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    for (int i = 0; i < 3; i++) assert_int_equal(tm_procs_monitor_node(f->procs, key, B), 0);
    assert_int_equal(tm_procs_monitor_node(f->procs, key, C), 0);
    assert_int_equal(tm_procs_monitor_node(f->procs, key, HERE), 0);
    assert_true(tm_procs_demonitor_node(f->procs, key, B));
    monitor_ok(f, key, tm_target_pid(peer_pid(B, 50)), 0);
    f->len = 0;
    tm_procs_node_down(f->procs, B);
    expect(f, "down 1 b@h<50.0> #4 noconnection\nlost 1 b@h\nlost 1 b@h\n");
    tm_procs_node_down(f->procs, B);
    expect(f, "");
    assert_false(tm_procs_demonitor_node(f->procs, key, B));
    assert_true(tm_procs_demonitor_node(f->procs, key, C));
    assert_false(tm_procs_demonitor_node(f->procs, key, C));
    tm_procs_node_down(f->procs, C);
    expect(f, "");
}

static void node_monitor_ends_with_its_process(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), linked = spawn(f);
    assert_int_equal(tm_procs_monitor_node(f->procs, key, B), 0);
    assert_int_equal(tm_procs_monitor_node(f->procs, linked, B), 0);
    assert_int_equal(tm_procs_monitor_node(f->procs, 99, B), TM_ENOPROC);
    exit_ok(f, key, CRASH);
    /* A process that its link ends when the node goes is told no more of it. */
    link_ok(f, linked, peer_pid(B, 50));
    f->len = 0;
    tm_procs_node_down(f->procs, B);
    expect(f, "exited 2 noconnection\n");
}

/* -- group leaders ----------------------------------------------------------------------------- */

static void group_leader_is_set_by_peers_and_by_processes(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_pid self = pid_of(f, key), far = peer_pid(B, 50), leader, set = peer_pid(C, 60);
    tm_pid longer = peer_pid(TM_BYTES("longer@h"), 70), dead = {HERE, 9, 9, HERE_CREATION};
    assert_false(tm_procs_leader(f->procs, key, &leader));
    assert_int_equal(tm_procs_on_group_leader(f->procs, &set, &self), 0);
    assert_true(tm_procs_leader(f->procs, key, &leader));
    assert_true(tm_pid_equal(&leader, &set));
    assert_int_equal(tm_procs_lead(f->procs, key, &self, &longer), 0);
    assert_true(tm_procs_leader(f->procs, key, &leader));
    assert_true(tm_pid_equal(&leader, &longer));
    assert_int_equal(tm_procs_set_leader(f->procs, key, &far), 0);
    assert_int_equal(tm_procs_on_group_leader(f->procs, &set, &dead), 0);
    assert_int_equal(tm_procs_lead(f->procs, key, &dead, &set), TM_ENOPROC);
    assert_int_equal(tm_procs_lead(f->procs, 99, &self, &set), TM_ENOPROC);
    assert_int_equal(tm_procs_lead(f->procs, key, &far, &set), 0);
    expect(f, "GROUP_LEADER <1.0> b@h<50.0>c@h<60.0>\n");
}

/* -- trace tokens ------------------------------------------------------------------------------ */

static void token_goes_on_with_what_the_process_sends(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), near = spawn(f);
    tm_pid far = peer_pid(B, 50), here = pid_of(f, near);
    tm_buf buf = buffer(f);
    trap(f, near);
    assert_int_equal(tm_procs_traced(f->procs), 0);
    assert_int_equal(tm_procs_trace(f->procs, key, token_of(&buf, 7, 3)), 0);
    assert_int_equal(tm_procs_traced(f->procs), 1);
    assert_true(tm_bytes_equal(tm_procs_token(f->procs, key), tm_buf_bytes(&buf)));
    assert_int_equal(tm_procs_exit2(f->procs, key, &far, CRASH), 0);
    assert_int_equal(tm_procs_exit2(f->procs, key, &here, CRASH), 0);
    assert_true(tm_procs_next_token(f->procs, key).len != 0);
    link_ok(f, key, far);
    link_ok(f, key, here);
    exit_ok(f, key, CRASH);
    assert_int_equal(tm_procs_traced(f->procs), 0);
    expect(f, "EXIT2 <1.0> b@h<50.0> crash {1,17,8,<1.0>,7}\n"
              "message 2 <1.0> crash {1,17,9,<1.0>,7}\n"
              "LINK <1.0> b@h<50.0>\n"
              "EXIT <1.0> b@h<50.0> crash {1,17,11,<1.0>,7}\n"
              "message 2 <1.0> crash {1,17,12,<1.0>,7}\n");
    tm_buf_fini(&buf);
}

static void clock_of_a_trace_goes_on_from_the_larger_serial(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_pid far = peer_pid(B, 50);
    tm_buf buf = buffer(f);
    assert_int_equal(tm_procs_trace(f->procs, key, token_of(&buf, 10, 0)), 0);
    assert_int_equal(tm_procs_trace(f->procs, key, token_of(&buf, 4, 0)), 0);
    assert_int_equal(tm_procs_exit2(f->procs, key, &far, CRASH), 0);
    /* A message without a token ends it, and the clock stays. */
    assert_int_equal(tm_procs_trace(f->procs, key, (tm_bytes){0}), 0);
    assert_int_equal(tm_procs_trace(f->procs, key, (tm_bytes){0}), 0);
    assert_int_equal(tm_procs_exit2(f->procs, key, &far, CRASH), 0);
    assert_int_equal(tm_procs_token(f->procs, key).len, 0);
    assert_int_equal(tm_procs_trace(f->procs, key, token_of(&buf, 2, 1)), 0);
    assert_int_equal(tm_procs_exit2(f->procs, key, &far, CRASH), 0);
    expect(f, "EXIT2 <1.0> b@h<50.0> crash {1,17,11,<1.0>,4}\n"
              "EXIT2 <1.0> b@h<50.0> crash\n"
              "EXIT2 <1.0> b@h<50.0> crash {1,17,12,<1.0>,2}\n");
    tm_buf_fini(&buf);
}

static void token_of_an_exit_signal_comes_with_its_message(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), other = spawn(f);
    tm_buf buf = buffer(f);
    trap(f, key);
    on_link_ok(f, peer_pid(B, 50), pid_of(f, key));
    link_ok(f, other, pid_of(f, key));
    tm_procs_carry(f->procs, token_of(&buf, 5, 2));
    on_exit_ok(f, peer_pid(B, 50), pid_of(f, key), CRASH);
    tm_procs_carry(f->procs, token_of(&buf, 6, 2));
    /* It is that signal's own: not of the exit that follows from it. */
    on_exit2_ok(f, peer_pid(B, 50), pid_of(f, other), CRASH);
    on_exit2_ok(f, peer_pid(B, 50), pid_of(f, key), CRASH);
    expect(f, "message 1 b@h<50.0> crash {1,17,5,b@h<50.0>,2}\n"
              "message 1 <2.0> crash\n"
              "exited 2 crash\n"
              "message 1 b@h<50.0> crash\n");
    tm_buf_fini(&buf);
}

static void what_is_no_token_is_refused(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_bytes wrong[] = {TM_BYTES("j"), TM_BYTES("h\5a\1a\1a\1a\1a\1"), TM_BYTES("h\4a\1a\1a\1a\1"),
                        TM_BYTES("h\5j"), TM_BYTES("h\5a\1")};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(tm_procs_trace(f->procs, key, wrong[i]), TM_EUSE_TERM);
    assert_int_equal(tm_procs_trace(f->procs, 99, (tm_bytes){0}), TM_ENOPROC);
    static const uint8_t LONG[TM_TRACE_TOKEN_BYTES_MAX + 1] = {'h', 5};
    assert_int_equal(tm_procs_trace(f->procs, key, tm_bytes_of(LONG, sizeof LONG)), TM_EUSE_LIMIT);
    assert_int_equal(tm_procs_token(f->procs, key).len, 0);
}

/* A binary that is one, with the flags, of the longest labels. */
static void token_with_the_longest_label_goes_on_for_ever(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_buf buf = buffer(f);
    uint8_t label[TM_TRACE_LABEL_BYTES_MAX - 1] = {109, 0, 0};
    label[3] = (sizeof label - 5 - 1) >> 8;
    label[4] = (sizeof label - 5 - 1) & 255;
    tm_bytes longest = tm_bytes_of(label, sizeof label - 1);
    assert_int_equal(tm_procs_trace(f->procs, key, labelled(&buf, longest, UINT64_MAX - 9, 1)), 0);
    for (int i = 0; i < 3; i++) {
        tm_bytes token = tm_procs_next_token(f->procs, key);
        assert_true(token.len > TM_TRACE_LABEL_BYTES_MAX);
        assert_int_equal(tm_procs_token_check(f->procs, token), 0);
    }
    label[4]++;
    longest.len++;
    tm_bytes longer = labelled(&buf, longest, 1, 1);
    assert_int_equal(tm_procs_token_check(f->procs, longer), TM_EUSE_LIMIT);
    assert_int_equal(tm_procs_trace(f->procs, key, longer), TM_EUSE_LIMIT);
    tm_buf_fini(&buf);
}

/* -- mail -------------------------------------------------------------------------------------- */

static void fullest_mailbox_is_found_and_the_dead_do_not_count(void **state)
{
    fixture *f = *state;
    tm_proc_key a = spawn(f), b = spawn(f);
    uint64_t bytes;
    assert_true(tm_procs_fullest(f->procs, &bytes) == 0);
    tm_procs_mail_put(f->procs, a, 100);
    tm_procs_mail_put(f->procs, b, 70);
    assert_true(tm_procs_fullest(f->procs, &bytes) == a);
    assert_int_equal(bytes, 100);
    assert_int_equal(tm_procs_mail(f->procs), 170);
    tm_procs_mail_take(f->procs, a, 40);
    assert_true(tm_procs_fullest(f->procs, &bytes) == b);
    exit_ok(f, b, CRASH);
    assert_int_equal(tm_procs_mail(f->procs), 60);
    tm_procs_mail_take(f->procs, b, 70);
    tm_procs_mail_take(f->procs, a, 1000);
    assert_int_equal(tm_procs_mail(f->procs), 0);
}

/* -- memory ------------------------------------------------------------------------------------ */

/* Fails the n-th allocation, and once more when that is repeated. */
static void every_allocation_may_fail(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_buf buf = buffer(f);
    tm_pid far = peer_pid(B, 50), longer = peer_pid(TM_BYTES("longer@h"), 70);
    size_t failed = 0;
    for (int i = 0; i < 40; i++) {
        f->calls_left = (size_t)(i % 4);
        tm_ref ref;
        int rcs[] = {
            tm_procs_set_leader(f->procs, key, i % 2 ? &far : &longer),
            tm_procs_trace(f->procs, key, token_of(&buf, 1000000 + (uint64_t)i, 3)),
            tm_procs_monitor_node(f->procs, key, B),
            tm_procs_alias(f->procs, key, TM_ALIAS_REPLY, &ref),
        };
        /* Without memory the signal goes, untraced. */
        assert_int_equal(tm_procs_exit2(f->procs, key, &far, CRASH), 0);
        f->calls_left = SIZE_MAX;
        tm_procs_invariants(f->procs);
        for (size_t j = 0; j < sizeof rcs / sizeof *rcs; j++) {
            assert_true(rcs[j] == 0 || rcs[j] == TM_ENOMEM);
            failed += rcs[j] != 0;
        }
        f->len = 0;
    }
    assert_true(failed > 0);
    tm_buf_fini(&buf);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(explicit_alias_outlives_demonitor_and_down),
        TEST(explicit_alias_of_a_local_monitor_and_of_a_dying_owner),
        TEST(demonitor_alias_ends_with_the_monitor),
        TEST(reply_aliases_take_one_message_as_mail),
        TEST(exit_signal_reaches_an_alias_and_does_not_use_it_up),
        TEST(node_monitor_fires_once_a_call_after_all_else),
        TEST(node_monitor_ends_with_its_process),
        TEST(group_leader_is_set_by_peers_and_by_processes),
        TEST(token_goes_on_with_what_the_process_sends),
        TEST(clock_of_a_trace_goes_on_from_the_larger_serial),
        TEST(token_of_an_exit_signal_comes_with_its_message),
        TEST(what_is_no_token_is_refused),
        TEST(token_with_the_longest_label_goes_on_for_ever),
        TEST(fullest_mailbox_is_found_and_the_dead_do_not_count),
        TEST(every_allocation_may_fail),
    };
    return cmocka_run_group_tests_name("inherit", tests, NULL, NULL);
}
