/* What links, exit signals, spawn requests and lost connections do: protocol.md 4.3, 4.4, 4.5 and
 * 4.7, row by row. Who is who: see proc_test.c. */
#include "testing.h"

/* -- 4.3: exit signals ------------------------------------------------------------------------- */

static void exit2_ends_a_process_unless_the_reason_is_normal(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_bytes normals[] = {TM_BYTES("d\0\006normal"), TM_BYTES("s\006normal"),
                          TM_BYTES("v\0\006normal"), TM_BYTES("w\006normal")};
    for (size_t i = 0; i < 4; i++) on_exit2_ok(f, peer_pid(B, 50), pid_of(f, key), normals[i]);
    expect(f, "");
    on_exit2_ok(f, peer_pid(B, 50), pid_of(f, key), CRASH);
    expect(f, "exited 1 crash\n");
    on_exit2_ok(f, peer_pid(B, 50), pid_of(f, key), CRASH);
    expect(f, "");
}

static void exit2_kill_cannot_be_trapped_and_becomes_killed(void **state)
{
    fixture *f = *state;
    tm_bytes kills[] = {TM_BYTES("d\0\004kill"), TM_BYTES("s\004kill"), TM_BYTES("v\0\004kill"),
                        TM_BYTES("w\004kill")};
    for (size_t i = 0; i < 4; i++) {
        tm_proc_key key = spawn(f);
        trap(f, key);
        on_link_ok(f, peer_pid(C, 60), pid_of(f, key));
        on_exit2_ok(f, peer_pid(B, 50), pid_of(f, key), kills[i]);
        assert_false(tm_procs_alive(f->procs, key));
    }
    expect(f, "EXIT <1.0> c@h<60.0> killed\nexited 1 killed\n"
              "EXIT <2.0> c@h<60.0> killed\nexited 2 killed\n"
              "EXIT <3.0> c@h<60.0> killed\nexited 3 killed\n"
              "EXIT <4.0> c@h<60.0> killed\nexited 4 killed\n");
}

static void exit2_is_a_message_to_a_process_that_traps(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    trap(f, key);
    on_exit2_ok(f, peer_pid(B, 50), pid_of(f, key), CRASH);
    on_exit2_ok(f, peer_pid(B, 50), pid_of(f, key), NORMAL);
    on_exit2_ok(f, peer_pid(B, 50), pid_of(f, key), TM_BYTES("h\1w\004kill"));
    expect(f, "message 1 b@h<50.0> crash\n"
              "message 1 b@h<50.0> normal\n"
              "message 1 b@h<50.0> 8 bytes\n");
}

static void exit2_of_ours_reaches_local_and_remote_processes(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), other = spawn(f);
    tm_pid remote = peer_pid(B, 50), local = pid_of(f, other), stale = local;
    stale.creation = 3;
    assert_int_equal(tm_procs_exit2(f->procs, key, &remote, CRASH), 0);
    assert_int_equal(tm_procs_exit2(f->procs, key, &local, NORMAL), 0);
    assert_int_equal(tm_procs_exit2(f->procs, key, &stale, KILL), 0);
    assert_int_equal(tm_procs_exit2(f->procs, key, &local, KILL), 0);
    assert_int_equal(tm_procs_exit2(f->procs, key, &local, KILL), 0);
    assert_int_equal(tm_procs_exit2(f->procs, other, &remote, KILL), TM_ENOPROC);
    expect(f, "EXIT2 <1.0> b@h<50.0> crash\n"
              "exited 2 killed\n");
}

static void exit2_of_itself_ends_it_even_with_normal(void **state)
{
    fixture *f = *state;
    tm_proc_key traps = spawn(f), plain = spawn(f);
    tm_pid traps_pid = pid_of(f, traps), plain_pid = pid_of(f, plain);
    trap(f, traps);
    assert_int_equal(tm_procs_exit2(f->procs, traps, &traps_pid, NORMAL), 0);
    assert_int_equal(tm_procs_exit2(f->procs, plain, &plain_pid, NORMAL), 0);
    expect(f, "message 1 <1.0> normal\n"
              "exited 2 normal\n");
}

static void broken_link_ends_a_process_unless_the_reason_is_normal(void **state)
{
    fixture *f = *state;
    tm_proc_key a = spawn(f), b = spawn(f), c = spawn(f);
    trap(f, c);
    for (uint32_t i = 1; i <= 3; i++) on_link_ok(f, peer_pid(B, 50), pid_of(f, i));
    on_exit_ok(f, peer_pid(B, 50), pid_of(f, a), NORMAL);
    on_exit_ok(f, peer_pid(B, 50), pid_of(f, b), KILL);
    on_exit_ok(f, peer_pid(B, 50), pid_of(f, c), NORMAL);
    expect(f, "exited 2 kill\n"
              "message 3 b@h<50.0> normal\n");
    assert_int_equal(f->procs->links.count, 0);
    on_exit_ok(f, peer_pid(B, 50), pid_of(f, a), CRASH);
    expect(f, "");
    assert_true(tm_procs_alive(f->procs, a));
}

static void exit_runs_along_links_and_stops_at_a_trapping_process(void **state)
{
    fixture *f = *state;
    tm_proc_key a = spawn(f), b = spawn(f), c = spawn(f), d = spawn(f);
    trap(f, d);
    link_ok(f, a, pid_of(f, b));
    link_ok(f, b, pid_of(f, a));
    link_ok(f, c, pid_of(f, b));
    link_ok(f, c, pid_of(f, a));
    link_ok(f, d, pid_of(f, c));
    assert_int_equal(f->procs->links.count, 4);
    exit_ok(f, a, CRASH);
    expect(f, "exited 2 crash\n"
              "message 4 <3.0> crash\n"
              "exited 3 crash\n");
    assert_int_equal(f->procs->links.count, 0);
}

static void chain_of_100000_links_ends_in_constant_stack(void **state)
{
    fixture *f = *state;
    enum { LENGTH = 100000 };
    tm_proc_key first = spawn(f), previous = first;
    for (int i = 1; i < LENGTH; i++) {
        tm_proc_key key = spawn(f);
        link_ok(f, key, pid_of(f, previous));
        previous = key;
    }
    f->quiet = true;
    exit_ok(f, first, CRASH);
    assert_int_equal(f->event_count, LENGTH - 1);
    assert_int_equal(tm_procs_count(f->procs), 0);
    assert_int_equal(f->procs->links.count, 0);
}

/* -- 4.4: link protocol, by row (event) and column (state) ------------------------------------- */

#define US pid_of(f, 1)
#define THEM peer_pid(B, 50)

enum link_state { NONE, ACTIVE, INACTIVE };

static enum link_state state_of(const fixture *f)
{
    tm_pid other = THEM;
    tm_remote *peer = tm_remote_find(f->procs, B);
    const tm_link *link =
        peer ? tm_link_find(f->procs, tm_process_get(f->procs, 1), peer, &other) : NULL;
    return !link ? NONE : link->unlink_id ? INACTIVE : ACTIVE;
}

/* A process that traps, so that an effect shows as a message, with a link in that state; the id of
 * an inactive one is 1. */
static void link_in_state(fixture *f, enum link_state wanted)
{
    trap(f, spawn(f));
    if (wanted != NONE) link_ok(f, 1, THEM);
    if (wanted == INACTIVE) unlink_ok(f, 1, THEM);
    assert_int_equal(state_of(f), wanted);
    f->len = 0;
}

static void local_link_from_none_sends_link(void **state)
{
    fixture *f = *state;
    link_in_state(f, NONE);
    link_ok(f, 1, THEM);
    expect(f, "LINK <1.0> b@h<50.0>\n");
    assert_int_equal(state_of(f), ACTIVE);
}

static void local_link_from_active_does_nothing(void **state)
{
    fixture *f = *state;
    link_in_state(f, ACTIVE);
    link_ok(f, 1, THEM);
    expect(f, "");
    assert_int_equal(state_of(f), ACTIVE);
}

static void local_link_from_inactive_sends_link_and_forgets_the_id(void **state)
{
    fixture *f = *state;
    link_in_state(f, INACTIVE);
    link_ok(f, 1, THEM);
    expect(f, "LINK <1.0> b@h<50.0>\n");
    on_ack_ok(f, 1, THEM, US);
    assert_int_equal(state_of(f), ACTIVE);
    unlink_ok(f, 1, THEM);
    expect(f, "UNLINK_ID 2 <1.0> b@h<50.0>\n");
    on_ack_ok(f, 1, THEM, US);
    assert_int_equal(state_of(f), INACTIVE);
}

static void local_unlink_from_none_does_nothing(void **state)
{
    fixture *f = *state;
    link_in_state(f, NONE);
    unlink_ok(f, 1, THEM);
    unlink_ok(f, 1, peer_pid(C, 50));
    expect(f, "");
    assert_int_equal(state_of(f), NONE);
}

static void local_unlink_from_active_sends_unlink_id(void **state)
{
    fixture *f = *state;
    link_in_state(f, ACTIVE);
    unlink_ok(f, 1, THEM);
    expect(f, "UNLINK_ID 1 <1.0> b@h<50.0>\n");
    assert_int_equal(state_of(f), INACTIVE);
}

static void local_unlink_from_inactive_does_nothing(void **state)
{
    fixture *f = *state;
    link_in_state(f, INACTIVE);
    unlink_ok(f, 1, THEM);
    expect(f, "");
    assert_int_equal(state_of(f), INACTIVE);
}

static void link_received_makes_an_active_link_only_from_none(void **state)
{
    fixture *f = *state;
    link_in_state(f, NONE);
    on_link_ok(f, THEM, US);
    assert_int_equal(state_of(f), ACTIVE);
    on_link_ok(f, THEM, US);
    assert_int_equal(state_of(f), ACTIVE);
    unlink_ok(f, 1, THEM);
    on_link_ok(f, THEM, US);
    assert_int_equal(state_of(f), INACTIVE);
    expect(f, "UNLINK_ID 1 <1.0> b@h<50.0>\n");
}

static void link_received_for_a_dead_or_stale_pid_is_answered_noproc(void **state)
{
    fixture *f = *state;
    tm_pid dead = pid_of(f, spawn(f)), stale = pid_of(f, spawn(f));
    exit_ok(f, tm_procs_find(f->procs, &dead), NORMAL);
    stale.creation = 3;
    on_link_ok(f, THEM, dead);
    on_link_ok(f, THEM, stale);
    expect(f, "EXIT nobody <1.0> b@h<50.0> noproc\n"
              "EXIT nobody <2.0/3> b@h<50.0> noproc\n");
    assert_int_equal(f->procs->links.count, 0);
}

static void unlink_id_received_is_always_acknowledged(void **state)
{
    fixture *f = *state;
    link_in_state(f, ACTIVE);
    on_unlink_ok(f, 7, THEM, US);
    assert_int_equal(state_of(f), NONE);
    on_unlink_ok(f, UINT64_MAX, THEM, US);
    assert_int_equal(state_of(f), NONE);
    expect(f, "UNLINK_ID_ACK 7 <1.0> b@h<50.0>\n"
              "UNLINK_ID_ACK 18446744073709551615 <1.0> b@h<50.0>\n");
    link_ok(f, 1, THEM);
    unlink_ok(f, 1, THEM);
    f->len = 0;
    on_unlink_ok(f, 8, THEM, US);
    assert_int_equal(state_of(f), INACTIVE);
    tm_pid stale = US;
    stale.creation = 3;
    on_unlink_ok(f, 9, THEM, stale);
    exit_ok(f, 1, NORMAL);
    on_unlink_ok(f, 10, THEM, US);
    expect(f, "UNLINK_ID_ACK 8 <1.0> b@h<50.0>\n"
              "UNLINK_ID_ACK 9 nobody <1.0/3> b@h<50.0>\n"
              "UNLINK_ID_ACK 10 nobody <1.0> b@h<50.0>\n");
}

static void unlink_id_ack_counts_only_with_the_outstanding_id(void **state)
{
    fixture *f = *state;
    link_in_state(f, NONE);
    on_ack_ok(f, 1, THEM, US);
    link_ok(f, 1, THEM);
    on_ack_ok(f, 0, THEM, US);
    on_ack_ok(f, 1, THEM, US);
    assert_int_equal(state_of(f), ACTIVE);
    unlink_ok(f, 1, THEM);
    on_ack_ok(f, 2, THEM, US);
    on_ack_ok(f, 1, peer_pid(B, 51), US);
    on_ack_ok(f, 1, peer_pid(C, 50), US);
    assert_int_equal(state_of(f), INACTIVE);
    on_ack_ok(f, 1, THEM, US);
    assert_int_equal(state_of(f), NONE);
}

static void exit_received_has_effect_only_on_an_active_link(void **state)
{
    fixture *f = *state;
    link_in_state(f, NONE);
    on_exit_ok(f, THEM, US, CRASH);
    expect(f, "");
    link_ok(f, 1, THEM);
    f->len = 0;
    on_exit_ok(f, THEM, US, CRASH);
    assert_int_equal(state_of(f), NONE);
    expect(f, "message 1 b@h<50.0> crash\n");
    link_ok(f, 1, THEM);
    unlink_ok(f, 1, THEM);
    f->len = 0;
    on_exit_ok(f, THEM, US, CRASH);
    assert_int_equal(state_of(f), NONE);
    expect(f, "");
}

static void unlink_ids_count_up_from_1_for_each_process(void **state)
{
    fixture *f = *state;
    tm_proc_key a = spawn(f), b = spawn(f);
    link_ok(f, a, peer_pid(B, 50));
    link_ok(f, a, peer_pid(C, 60));
    link_ok(f, b, peer_pid(B, 50));
    f->len = 0;
    unlink_ok(f, a, peer_pid(B, 50));
    unlink_ok(f, a, peer_pid(C, 60));
    unlink_ok(f, b, peer_pid(B, 50));
    expect(f, "UNLINK_ID 1 <1.0> b@h<50.0>\n"
              "UNLINK_ID 2 <1.0> c@h<60.0>\n"
              "UNLINK_ID 1 <2.0> b@h<50.0>\n");
}

static void process_that_ends_sends_exit_only_over_active_links(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    link_ok(f, key, peer_pid(B, 50));
    link_ok(f, key, peer_pid(B, 51));
    on_link_ok(f, peer_pid(C, 60), pid_of(f, key));
    unlink_ok(f, key, peer_pid(B, 50));
    f->len = 0;
    exit_ok(f, key, CRASH);
    expect(f, "EXIT <1.0> b@h<51.0> crash\n"
              "EXIT <1.0> c@h<60.0> crash\n");
}

/* -- links of ours ----------------------------------------------------------------------------- */

static void link_to_itself_is_refused(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_pid self = pid_of(f, key), other = THEM;
    assert_int_equal(tm_procs_link(f->procs, key, &self), TM_EUSE_ARG);
    assert_int_equal(tm_procs_link(f->procs, 99, &other), TM_ENOPROC);
    assert_int_equal(tm_procs_unlink(f->procs, 99, &other), TM_ENOPROC);
    other.node = TM_BYTES("");
    assert_int_equal(tm_procs_link(f->procs, key, &other), TM_EUSE_NAME);
    assert_int_equal(f->procs->links.count, 0);
    expect(f, "");
}

static void link_to_a_dead_local_process_is_an_exit_signal_noproc(void **state)
{
    fixture *f = *state;
    tm_proc_key traps = spawn(f), plain = spawn(f);
    tm_pid stale = pid_of(f, traps), dead = pid_of(f, spawn(f));
    exit_ok(f, 3, NORMAL);
    stale.creation = 3;
    trap(f, traps);
    link_ok(f, traps, dead);
    link_ok(f, traps, stale);
    link_ok(f, plain, dead);
    expect(f, "message 1 <3.0> noproc\n"
              "message 1 <1.0/3> noproc\n"
              "exited 2 noproc\n");
}

static void unlink_of_a_local_process_ends_the_link_on_both_sides(void **state)
{
    fixture *f = *state;
    tm_proc_key a = spawn(f), b = spawn(f);
    tm_pid stale = pid_of(f, a);
    stale.creation = 3;
    link_ok(f, a, pid_of(f, b));
    unlink_ok(f, b, stale);
    assert_int_equal(f->procs->links.count, 1);
    unlink_ok(f, b, pid_of(f, a));
    unlink_ok(f, b, pid_of(f, a));
    exit_ok(f, a, CRASH);
    expect(f, "");
    assert_true(tm_procs_alive(f->procs, b));
}

static void links_made_and_ended_100000_times_leave_nothing(void **state)
{
    fixture *f = *state;
    tm_proc_key a = spawn(f), b = spawn(f);
    link_ok(f, a, THEM);
    unlink_ok(f, a, THEM);
    on_ack_ok(f, 1, THEM, pid_of(f, a));
    link_ok(f, a, pid_of(f, b));
    unlink_ok(f, a, pid_of(f, b));
    tm_alloc_stats before = f->stats;
    for (uint64_t id = 2; id <= 100001; id++) {
        link_ok(f, a, THEM);
        unlink_ok(f, a, THEM);
        on_ack_ok(f, id, THEM, pid_of(f, a));
        link_ok(f, a, pid_of(f, b));
        unlink_ok(f, a, pid_of(f, b));
        f->len = 0;
    }
    assert_int_equal(f->stats.bytes, before.bytes);
    assert_int_equal(f->stats.count, before.count);
}

static void peer_may_hold_links_up_to_its_bound(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), other = spawn(f), child;
    tm_pid to = pid_of(f, key), one_more = peer_pid(B, TM_PEER_LINKS_MAX);
    tm_ref request = peer_ref(B, 100);
    link_ok(f, key, peer_pid(B, TM_PEER_LINKS_MAX + 1)); /* ours: not counted */
    for (uint32_t i = 0; i < TM_PEER_LINKS_MAX; i++) {
        tm_pid from = peer_pid(B, i);
        if (tm_procs_on_link(f->procs, &from, &to)) fail();
    }
    assert_int_equal(tm_procs_on_link(f->procs, &one_more, &to), TM_EPEER_LIMIT);
    assert_int_equal(tm_procs_on_spawn(f->procs, &one_more, &request, TM_SPAWN_LINK, &child),
                     TM_EPEER_LIMIT);
    assert_int_equal(tm_procs_count(f->procs), 2);
    on_link_ok(f, peer_pid(B, 5), to);
    on_link_ok(f, peer_pid(C, 5), to);
    on_unlink_ok(f, 1, peer_pid(B, 5), to);
    on_link_ok(f, one_more, pid_of(f, other));
    f->quiet = true;
    trap(f, key);
    size_t many = f->stats.bytes;
    tm_procs_node_down(f->procs, C);
    tm_procs_node_down(f->procs, B);
    assert_int_equal(f->event_count, TM_PEER_LINKS_MAX + 2);
    assert_int_equal(f->procs->links.count, 0);
    assert_false(tm_procs_alive(f->procs, other));
    assert_true(f->stats.bytes < many / 100);
}

/* -- 4.5: spawn requests of ours --------------------------------------------------------------- */

static void spawn_reply_is_an_event_and_the_result_a_down(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_ref ref = request_ok(f, key, B, TM_SPAWN_MONITOR);
    expect(f, "");
    on_reply_ok(f, B, ref, pid_of(f, key), TM_SPAWN_MONITOR, peer_pid(B, 50));
    on_reply_ok(f, B, ref, pid_of(f, key), TM_SPAWN_MONITOR, peer_pid(B, 50));
    on_monitor_exit_ok(f, B, pid_of(f, key), ref, CRASH);
    expect(f, "reply 1 b@h<50.0> #0\n"
              "down 1 b@h<50.0> #0 crash\n");
    assert_int_equal(f->procs->handles.count, 0);
}

static void spawn_reply_sets_up_link_and_monitor_as_asked(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_ref plain = request_ok(f, key, B, 0);
    tm_ref both = request_ok(f, key, B, TM_SPAWN_LINK | TM_SPAWN_MONITOR);
    on_reply_ok(f, B, plain, pid_of(f, key), 0, peer_pid(B, 50));
    on_reply_ok(f, B, both, pid_of(f, key), 3, peer_pid(B, 51));
    expect(f, "reply 1 b@h<50.0> #0\n"
              "reply 1 b@h<51.0> #1\n");
    on_exit_ok(f, peer_pid(B, 50), pid_of(f, key), CRASH);
    expect(f, "");
    exit_ok(f, key, CRASH);
    expect(f, "EXIT <1.0> b@h<51.0> crash\n"
              "DEMONITOR <1.0> b@h<51.0> #1\n");
}

static void spawn_monitor_can_be_ended_after_the_reply_only(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_ref ref = request_ok(f, key, B, TM_SPAWN_MONITOR);
    assert_false(tm_procs_demonitor(f->procs, key, &ref));
    assert_false(tm_procs_unalias(f->procs, key, &ref));
    on_reply_ok(f, B, ref, pid_of(f, key), TM_SPAWN_MONITOR, peer_pid(B, 50));
    assert_false(tm_procs_spawn_abandon(f->procs, key, &ref));
    assert_true(tm_procs_demonitor(f->procs, key, &ref));
    expect(f, "reply 1 b@h<50.0> #0\n"
              "DEMONITOR <1.0> b@h<50.0> #0\n");
}

static void what_a_spawn_reply_leaves_out_is_asked_for_again(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_ref ref = request_ok(f, key, B, TM_SPAWN_LINK | TM_SPAWN_MONITOR);
    on_reply_ok(f, B, ref, pid_of(f, key), 0, peer_pid(B, 50));
    expect(f, "MONITOR <1.0> b@h<50.0> #0\n"
              "LINK <1.0> b@h<50.0>\n"
              "reply 1 b@h<50.0> #0\n");
    on_monitor_exit_ok(f, B, pid_of(f, key), ref, TM_TERM_NOPROC);
    expect(f, "down 1 b@h<50.0> #0 noproc\n");
}

static void spawn_refused_is_an_event_with_the_error(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_ref ref = request_ok(f, key, B, TM_SPAWN_MONITOR);
    on_reply_error_ok(f, B, ref, pid_of(f, key), TM_BYTES("w\006notsup"));
    on_reply_error_ok(f, B, ref, pid_of(f, key), TM_BYTES("w\006notsup"));
    expect(f, "reply 1 #0 notsup\n");
    assert_int_equal(f->procs->handles.count, 0);
}

static void spawn_reply_counts_only_from_the_node_that_was_asked(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), other = spawn(f);
    tm_ref ref = request_ok(f, key, B, TM_SPAWN_MONITOR), forged = ref;
    tm_ref monitor = monitor_ok(f, key, tm_target_pid(peer_pid(B, 50)), 0);
    tm_pid self = pid_of(f, key), foreign = peer_pid(C, 50);
    f->len = 0;
    forged.words[1]++;
    on_reply_ok(f, C, ref, self, TM_SPAWN_MONITOR, peer_pid(C, 50));
    on_reply_ok(f, B, ref, pid_of(f, other), TM_SPAWN_MONITOR, peer_pid(B, 50));
    on_reply_ok(f, B, forged, self, TM_SPAWN_MONITOR, peer_pid(B, 50));
    on_reply_ok(f, B, monitor, self, TM_SPAWN_MONITOR, peer_pid(B, 50));
    assert_int_equal(tm_procs_on_spawn_reply(f->procs, B, &ref, &self, 2, &foreign, NORMAL),
                     TM_EPEER_MALFORMED);
    expect(f, "");
    on_reply_ok(f, B, ref, self, TM_SPAWN_MONITOR, peer_pid(B, 51));
    expect(f, "reply 1 b@h<51.0> #0\n");
}

static void reply_to_an_abandoned_request_ends_monitor_and_link(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), other = spawn(f);
    tm_ref both = request_ok(f, key, B, TM_SPAWN_LINK | TM_SPAWN_MONITOR);
    tm_ref none = request_ok(f, key, B, 0), failed = request_ok(f, key, B, TM_SPAWN_LINK);
    assert_false(tm_procs_spawn_abandon(f->procs, other, &both));
    assert_true(tm_procs_spawn_abandon(f->procs, key, &both));
    assert_false(tm_procs_spawn_abandon(f->procs, key, &both));
    assert_true(tm_procs_spawn_abandon(f->procs, key, &none));
    assert_true(tm_procs_spawn_abandon(f->procs, key, &failed));
    expect(f, "");
    on_reply_ok(f, B, both, pid_of(f, key), 3, peer_pid(B, 50));
    on_reply_ok(f, B, none, pid_of(f, key), 0, peer_pid(B, 51));
    on_reply_error_ok(f, B, failed, pid_of(f, key), TM_BYTES("w\006notsup"));
    expect(f, "DEMONITOR <1.0> b@h<50.0> #0\n"
              "EXIT <1.0> b@h<50.0> abandoned\n");
    assert_int_equal(f->procs->handles.count, 0);
}

static void abandoned_request_leaves_a_link_that_the_requester_made_itself(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_ref ref = request_ok(f, key, B, TM_SPAWN_LINK);
    link_ok(f, key, THEM);
    assert_true(tm_procs_spawn_abandon(f->procs, key, &ref));
    on_reply_ok(f, B, ref, pid_of(f, key), TM_SPAWN_LINK, THEM);
    expect(f, "LINK <1.0> b@h<50.0>\n");
    on_exit_ok(f, THEM, pid_of(f, key), CRASH);
    expect(f, "exited 1 crash\n");
}

static void reply_to_a_dead_requester_is_answered_with_its_reason(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_ref linked = request_ok(f, key, B, TM_SPAWN_LINK);
    tm_ref both = request_ok(f, key, B, TM_SPAWN_LINK | TM_SPAWN_MONITOR);
    tm_ref watched = request_ok(f, key, B, TM_SPAWN_MONITOR);
    exit_ok(f, key, CRASH);
    expect(f, "");
    on_reply_ok(f, B, linked, pid_of(f, key), TM_SPAWN_LINK, peer_pid(B, 50));
    on_reply_ok(f, B, both, pid_of(f, key), 3, peer_pid(B, 51));
    on_reply_ok(f, B, watched, pid_of(f, key), TM_SPAWN_MONITOR, peer_pid(B, 52));
    expect(f, "EXIT nobody <1.0> b@h<50.0> crash\n"
              "DEMONITOR nobody <1.0> b@h<51.0> #1\n"
              "EXIT nobody <1.0> b@h<51.0> crash\n"
              "DEMONITOR nobody <1.0> b@h<52.0> #2\n");
    assert_int_equal(f->procs->handles.count, 0);
}

static void spawn_request_refuses_the_own_node_and_dead_processes(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_ref ref;
    assert_int_equal(tm_procs_spawn_request(f->procs, key, HERE, 0, &ref), TM_EUSE_ARG);
    assert_int_equal(tm_procs_spawn_request(f->procs, 99, B, 0, &ref), TM_ENOPROC);
    assert_int_equal(tm_procs_spawn_request(f->procs, key, (tm_bytes){0}, 0, &ref), TM_EUSE_NAME);
}

/* -- 4.5: spawn requests of peers -------------------------------------------------------------- */

static void process_made_for_a_peer_ends_with_exit_then_monitor_exit(void **state)
{
    fixture *f = *state;
    tm_proc_key plain = on_spawn_ok(f, THEM, 100, 0);
    tm_proc_key both = on_spawn_ok(f, THEM, 101, TM_SPAWN_LINK | TM_SPAWN_MONITOR);
    expect(f, "");
    exit_ok(f, plain, CRASH);
    expect(f, "");
    exit_ok(f, both, CRASH);
    expect(f, "EXIT <2.0> b@h<50.0> crash\n"
              "MONITOR_EXIT <2.0> b@h<50.0> #101 crash\n");
}

static void demonitor_of_a_request_names_the_worker_whose_caller_is_gone(void **state)
{
    fixture *f = *state;
    tm_proc_key worker = on_spawn_ok(f, THEM, 100, TM_SPAWN_MONITOR);
    on_monitor_ok(f, THEM, tm_target_pid(pid_of(f, worker)), 101);
    assert_true(on_demonitor_ok(f, THEM, 101) == 0);
    assert_true(on_demonitor_ok(f, THEM, 100) == worker);
    assert_true(on_demonitor_ok(f, THEM, 100) == 0);
    assert_true(tm_procs_alive(f->procs, worker));
    exit_ok(f, worker, NORMAL);
    expect(f, "");
    worker = on_spawn_ok(f, THEM, 100, TM_SPAWN_MONITOR);
    exit_ok(f, worker, NORMAL);
    assert_true(on_demonitor_ok(f, THEM, 100) == 0);
}

static void spawn_with_a_reference_in_use_or_foreign_is_malformed(void **state)
{
    fixture *f = *state;
    tm_pid from = THEM;
    tm_ref request = peer_ref(B, 100), foreign = peer_ref(C, 101);
    tm_proc_key key = 0;
    on_spawn_ok(f, from, 100, TM_SPAWN_MONITOR);
    assert_int_equal(tm_procs_on_spawn(f->procs, &from, &request, 3, &key), TM_EPEER_MALFORMED);
    assert_int_equal(tm_procs_on_spawn(f->procs, &from, &foreign, 3, &key), TM_EPEER_MALFORMED);
    assert_int_equal(tm_procs_count(f->procs), 1);
    assert_int_equal(f->procs->links.count, 0);
    expect(f, "");
}

static void peer_may_hold_monitors_up_to_its_bound(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), child;
    tm_pid from = THEM;
    tm_target to = tm_target_pid(pid_of(f, key));
    tm_ref ref = peer_ref(B, 0);
    for (uint32_t i = 0; i < TM_PEER_MONITORS_MAX; i++) {
        ref.words[1] = i;
        if (tm_procs_on_monitor(f->procs, &from, &to, &ref)) fail();
    }
    ref.words[1]++;
    assert_int_equal(tm_procs_on_monitor(f->procs, &from, &to, &ref), TM_EPEER_LIMIT);
    assert_int_equal(tm_procs_on_spawn(f->procs, &from, &ref, 3, &child), TM_EPEER_LIMIT);
    assert_int_equal(tm_procs_count(f->procs), 1);
    on_monitor_ok(f, peer_pid(C, 60), to, 100);
    size_t many = f->stats.bytes;
    tm_procs_node_down(f->procs, B);
    tm_procs_node_down(f->procs, C);
    assert_true(f->stats.bytes < many / 100);
    exit_ok(f, key, CRASH);
    expect(f, "");
}

/* -- 4.7: connections that come and go --------------------------------------------------------- */

static void node_down_breaks_links_then_monitors_then_requests(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    trap(f, key);
    request_ok(f, key, B, TM_SPAWN_LINK | TM_SPAWN_MONITOR);
    monitor_ok(f, key, name_target(B, "srv"), 0);
    monitor_ok(f, key, tm_target_pid(THEM), TM_MONITOR_ALIAS_REPLY);
    monitor_ok(f, key, tm_target_pid(peer_pid(C, 60)), 0);
    link_ok(f, key, THEM);
    on_link_ok(f, peer_pid(B, 51), pid_of(f, key));
    link_ok(f, key, peer_pid(B, 52));
    unlink_ok(f, key, peer_pid(B, 52));
    link_ok(f, key, peer_pid(C, 60));
    on_monitor_ok(f, THEM, tm_target_pid(pid_of(f, key)), 100);
    f->len = 0;
    tm_procs_node_down(f->procs, B);
    expect(f, "message 1 b@h<50.0> noconnection\n"
              "message 1 b@h<51.0> noconnection\n"
              "down 1 b@h'srv' #1 noconnection\n"
              "down 1 b@h<50.0> #2 noconnection\n"
              "reply 1 #0 noconnection\n");
    tm_procs_node_down(f->procs, B);
    exit_ok(f, key, CRASH);
    expect(f, "EXIT <1.0> c@h<60.0> crash\n"
              "DEMONITOR <1.0> c@h<60.0> #3\n");
}

static void node_down_ends_linked_processes_without_a_signal_to_that_node(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), watcher = spawn(f);
    link_ok(f, key, THEM);
    link_ok(f, key, peer_pid(C, 60));
    monitor_ok(f, key, tm_target_pid(THEM), 0);
    request_ok(f, key, B, TM_SPAWN_LINK);
    monitor_ok(f, watcher, tm_target_pid(pid_of(f, key)), 0);
    on_monitor_ok(f, THEM, tm_target_pid(pid_of(f, key)), 100);
    f->len = 0;
    tm_procs_node_down(f->procs, B);
    expect(f, "EXIT <1.0> c@h<60.0> noconnection\n"
              "down 2 <1.0> #2 noconnection\n"
              "exited 1 noconnection\n");
    assert_int_equal(f->procs->handles.count, 0);
}

static void what_comes_late_after_node_down_has_no_effect(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    bool reply;
    trap(f, key);
    tm_ref monitor = monitor_ok(f, key, tm_target_pid(THEM), TM_MONITOR_ALIAS_REPLY);
    tm_ref request = request_ok(f, key, B, TM_SPAWN_MONITOR);
    link_ok(f, key, THEM);
    tm_procs_node_down(f->procs, B);
    f->len = 0;
    on_monitor_exit_ok(f, B, pid_of(f, key), monitor, CRASH);
    on_reply_ok(f, B, request, pid_of(f, key), TM_SPAWN_MONITOR, THEM);
    on_exit_ok(f, THEM, pid_of(f, key), CRASH);
    on_ack_ok(f, 1, THEM, pid_of(f, key));
    assert_true(on_demonitor_ok(f, THEM, 100) == 0);
    assert_true(tm_procs_use_alias(f->procs, &monitor, &reply) == 0);
    expect(f, "");
}

static void pids_of_an_earlier_life_of_a_node_are_noproc(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_pid old = THEM, now = peer_pid(B, 51);
    old.creation = 4;
    trap(f, key);
    link_ok(f, key, old);
    link_ok(f, key, now);
    monitor_ok(f, key, tm_target_pid(old), 0);
    monitor_ok(f, key, tm_target_pid(now), 0);
    monitor_ok(f, key, name_target(B, "srv"), 0);
    f->len = 0;
    assert_int_equal(tm_procs_node_up(f->procs, B, PEER_CREATION), 0);
    expect(f, "message 1 b@h<50.0/4> noproc\n"
              "down 1 b@h<50.0/4> #0 noproc\n");
    link_ok(f, key, old);
    monitor_ok(f, key, tm_target_pid(old), 0);
    assert_int_equal(tm_procs_exit2(f->procs, key, &old, KILL), 0);
    expect(f, "message 1 b@h<50.0/4> noproc\n"
              "down 1 b@h<50.0/4> #3 noproc\n");
    exit_ok(f, key, CRASH);
    expect(f, "EXIT <1.0> b@h<51.0> crash\n"
              "DEMONITOR <1.0> b@h<51.0> #1\n"
              "DEMONITOR <1.0> b@h'srv' #2\n");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(exit2_ends_a_process_unless_the_reason_is_normal),
        TEST(exit2_kill_cannot_be_trapped_and_becomes_killed),
        TEST(exit2_is_a_message_to_a_process_that_traps),
        TEST(exit2_of_ours_reaches_local_and_remote_processes),
        TEST(exit2_of_itself_ends_it_even_with_normal),
        TEST(broken_link_ends_a_process_unless_the_reason_is_normal),
        TEST(exit_runs_along_links_and_stops_at_a_trapping_process),
        TEST(chain_of_100000_links_ends_in_constant_stack),
        TEST(local_link_from_none_sends_link),
        TEST(local_link_from_active_does_nothing),
        TEST(local_link_from_inactive_sends_link_and_forgets_the_id),
        TEST(local_unlink_from_none_does_nothing),
        TEST(local_unlink_from_active_sends_unlink_id),
        TEST(local_unlink_from_inactive_does_nothing),
        TEST(link_received_makes_an_active_link_only_from_none),
        TEST(link_received_for_a_dead_or_stale_pid_is_answered_noproc),
        TEST(unlink_id_received_is_always_acknowledged),
        TEST(unlink_id_ack_counts_only_with_the_outstanding_id),
        TEST(exit_received_has_effect_only_on_an_active_link),
        TEST(unlink_ids_count_up_from_1_for_each_process),
        TEST(process_that_ends_sends_exit_only_over_active_links),
        TEST(link_to_itself_is_refused),
        TEST(link_to_a_dead_local_process_is_an_exit_signal_noproc),
        TEST(unlink_of_a_local_process_ends_the_link_on_both_sides),
        TEST(links_made_and_ended_100000_times_leave_nothing),
        TEST(peer_may_hold_links_up_to_its_bound),
        TEST(spawn_reply_is_an_event_and_the_result_a_down),
        TEST(spawn_reply_sets_up_link_and_monitor_as_asked),
        TEST(spawn_monitor_can_be_ended_after_the_reply_only),
        TEST(what_a_spawn_reply_leaves_out_is_asked_for_again),
        TEST(spawn_refused_is_an_event_with_the_error),
        TEST(spawn_reply_counts_only_from_the_node_that_was_asked),
        TEST(reply_to_an_abandoned_request_ends_monitor_and_link),
        TEST(abandoned_request_leaves_a_link_that_the_requester_made_itself),
        TEST(reply_to_a_dead_requester_is_answered_with_its_reason),
        TEST(spawn_request_refuses_the_own_node_and_dead_processes),
        TEST(process_made_for_a_peer_ends_with_exit_then_monitor_exit),
        TEST(demonitor_of_a_request_names_the_worker_whose_caller_is_gone),
        TEST(spawn_with_a_reference_in_use_or_foreign_is_malformed),
        TEST(peer_may_hold_monitors_up_to_its_bound),
        TEST(node_down_breaks_links_then_monitors_then_requests),
        TEST(node_down_ends_linked_processes_without_a_signal_to_that_node),
        TEST(what_comes_late_after_node_down_has_no_effect),
        TEST(pids_of_an_earlier_life_of_a_node_are_noproc),
    };
    return cmocka_run_group_tests_name("link", tests, NULL, NULL);
}
