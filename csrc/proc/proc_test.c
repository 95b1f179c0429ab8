/* What the tables of processes answer, row by row of protocol.md 4.2 to 4.7. A process of ours is
 * <1.0>, <2.0>, …; one of a peer is b@h<50.0>; our references are #0, #1, …, those of peers
 * #100 and up. */
#include "testing.h"

/* -- processes --------------------------------------------------------------------------------- */

static void process_is_found_by_its_pid_while_it_lives(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_pid pid = pid_of(f, key);
    assert_true(key != 0);
    assert_true(tm_procs_find(f->procs, &pid) == key);
    assert_true(tm_procs_alive(f->procs, key));
    assert_int_equal(tm_procs_count(f->procs), 1);
    exit_ok(f, key, NORMAL);
    assert_true(tm_procs_find(f->procs, &pid) == 0);
    assert_false(tm_procs_alive(f->procs, key));
    assert_int_equal(tm_procs_count(f->procs), 0);
    assert_int_equal(tm_procs_exit(f->procs, key, NORMAL), TM_ENOPROC);
    assert_int_equal(tm_procs_trap_exit(f->procs, key, true), TM_ENOPROC);
    expect(f, "");
}

static void pid_of_another_node_or_creation_is_nobody(void **state)
{
    fixture *f = *state;
    tm_pid stale = pid_of(f, spawn(f)), other = stale, none = {.node = HERE};
    stale.creation = HERE_CREATION - 1;
    other.node = B;
    none.creation = HERE_CREATION;
    assert_true(tm_procs_find(f->procs, &stale) == 0);
    assert_true(tm_procs_find(f->procs, &other) == 0);
    assert_true(tm_procs_find(f->procs, &none) == 0);
    none.id = UINT32_MAX;
    assert_true(tm_procs_find(f->procs, &none) == 0);
    assert_false(tm_procs_alive(f->procs, 0));
}

static void pid_of_a_dead_process_never_names_a_later_one(void **state)
{
    fixture *f = *state;
    tm_pid dead = pid_of(f, spawn(f));
    exit_ok(f, tm_procs_find(f->procs, &dead), NORMAL);
    bool slot_came_back = false;
    for (int i = 0; i < 5000; i++) {
        tm_proc_key key = spawn(f);
        tm_pid pid = pid_of(f, key);
        assert_false(tm_pid_equal(&pid, &dead));
        assert_true(pid.id != dead.id || i > 256);
        slot_came_back |= pid.id == dead.id;
        exit_ok(f, key, NORMAL);
    }
    assert_true(slot_came_back);
    assert_true(tm_procs_find(f->procs, &dead) == 0);
}

static void process_table_refuses_one_above_its_bound(void **state)
{
    fixture *f = *state;
    tm_proc_key key = 0, first = spawn(f);
    for (int i = 1; i < TM_PROCESS_COUNT_MAX; i++) {
        assert_int_equal(tm_procs_spawn(f->procs, &key), 0);
        if (tm_proc_key_id(key) >= 1U << 28) fail();
    }
    assert_int_equal(tm_procs_spawn(f->procs, &key), TM_EUSE_LIMIT);
    exit_ok(f, first, NORMAL);
    assert_int_equal(tm_procs_spawn(f->procs, &key), 0);
    assert_true(key != first);
}

static void rename_is_possible_only_without_processes(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    assert_int_equal(tm_procs_rename(f->procs, TM_BYTES("x@h"), 8), TM_EUSE_STATE);
    exit_ok(f, key, NORMAL);
    assert_int_equal(tm_procs_rename(f->procs, TM_BYTES(""), 8), TM_EUSE_NAME);
    assert_int_equal(tm_procs_rename(f->procs, TM_BYTES("x@h"), 8), 0);
    tm_pid pid = pid_of(f, spawn(f));
    assert_true(tm_bytes_equal(pid.node, TM_BYTES("x@h")));
    assert_int_equal(pid.creation, 8);
}

static void references_are_distinct_and_fit_old_peers(void **state)
{
    fixture *f = *state;
    tm_ref a = tm_procs_make_ref(f->procs), b = tm_procs_make_ref(f->procs);
    assert_int_equal(a.count, 3);
    assert_int_equal(a.creation, HERE_CREATION);
    assert_true(tm_bytes_equal(a.node, HERE));
    assert_true(a.words[1] != b.words[1] && a.words[2] != b.words[2]);
    for (int i = 0; i < 300000; i++) {
        b = tm_procs_make_ref(f->procs);
        if (b.words[0] >= 1U << 18) fail();
        if (tm_ref_equal(&a, &b)) fail();
    }
}

static void mail_is_counted_until_it_is_taken(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    assert_true(tm_procs_mail_put(f->procs, key, 10) == 10);
    assert_true(tm_procs_mail_put(f->procs, key, 5) == 15);
    tm_procs_mail_take(f->procs, key, 12);
    assert_true(tm_procs_mail_put(f->procs, key, 0) == 3);
    tm_procs_mail_take(f->procs, key, 100);
    assert_true(tm_procs_mail_put(f->procs, key, 0) == 0);
    exit_ok(f, key, NORMAL);
    assert_true(tm_procs_mail_put(f->procs, key, 7) == 0);
    tm_procs_mail_take(f->procs, key, 7);
}

/* -- names ------------------------------------------------------------------------------------- */

static void name_leads_to_its_process_until_it_ends(void **state)
{
    fixture *f = *state;
    tm_proc_key a = spawn(f), b = spawn(f);
    assert_int_equal(tm_procs_register(f->procs, TM_BYTES("one"), a), 0);
    assert_int_equal(tm_procs_register(f->procs, TM_BYTES("two"), a), 0);
    assert_int_equal(tm_procs_register(f->procs, TM_BYTES("one"), b), TM_ENAME_TAKEN);
    assert_true(tm_procs_whereis(f->procs, TM_BYTES("one")) == a);
    assert_int_equal(tm_procs_unregister(f->procs, TM_BYTES("one")), 0);
    assert_int_equal(tm_procs_unregister(f->procs, TM_BYTES("one")), TM_ENOPROC);
    assert_int_equal(tm_procs_register(f->procs, TM_BYTES("one"), b), 0);
    exit_ok(f, a, NORMAL);
    assert_true(tm_procs_whereis(f->procs, TM_BYTES("two")) == 0);
    assert_true(tm_procs_whereis(f->procs, TM_BYTES("one")) == b);
    assert_int_equal(tm_procs_register(f->procs, TM_BYTES("two"), a), TM_ENOPROC);
}

static void name_must_be_a_legal_atom(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    uint8_t text[TM_ATOM_BYTES_MAX + 4];
    for (size_t i = 0; i < sizeof text; i += 4) memcpy(text + i, "\xf0\x9f\x98\x80", 4);
    tm_bytes bad[] = {
        TM_BYTES(""), TM_BYTES("undefined"), TM_BYTES("\xff"), tm_bytes_of(text, sizeof text), {0}};
    uint8_t ascii[TM_ATOM_CHARS_MAX + 1];
    memset(ascii, 'x', sizeof ascii);
    bad[4] = tm_bytes_of(ascii, sizeof ascii);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(tm_procs_register(f->procs, bad[i], key), TM_EUSE_NAME);
    assert_int_equal(tm_procs_register(f->procs, tm_bytes_of(text, TM_ATOM_BYTES_MAX), key), 0);
}

/* -- 4.2: monitors that a peer holds ----------------------------------------------------------- */

static void peers_monitor_of_a_process_ends_with_its_reason(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    on_monitor_ok(f, peer_pid(B, 50), tm_target_pid(pid_of(f, key)), 100);
    on_monitor_ok(f, peer_pid(C, 60), tm_target_pid(pid_of(f, key)), 100);
    expect(f, "");
    exit_ok(f, key, CRASH);
    expect(f, "MONITOR_EXIT <1.0> b@h<50.0> #100 crash\n"
              "MONITOR_EXIT <1.0> c@h<60.0> #100 crash\n");
}

static void peers_monitor_by_name_ends_under_that_name(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    assert_int_equal(tm_procs_register(f->procs, TM_BYTES("srv"), key), 0);
    on_monitor_ok(f, peer_pid(B, 50), name_target(HERE, "srv"), 100);
    assert_int_equal(tm_procs_unregister(f->procs, TM_BYTES("srv")), 0);
    expect(f, "");
    exit_ok(f, key, NORMAL);
    expect(f, "MONITOR_EXIT 'srv' b@h<50.0> #100 normal\n");
}

static void peers_monitor_of_nobody_gets_noproc_for_the_item_as_asked(void **state)
{
    fixture *f = *state;
    tm_pid dead = pid_of(f, spawn(f)), stale = dead;
    exit_ok(f, tm_procs_find(f->procs, &dead), NORMAL);
    stale.creation = 3;
    on_monitor_ok(f, peer_pid(B, 50), tm_target_pid(dead), 100);
    on_monitor_ok(f, peer_pid(B, 50), tm_target_pid(stale), 101);
    on_monitor_ok(f, peer_pid(B, 50), name_target(HERE, "nobody"), 102);
    on_monitor_ok(f, peer_pid(B, 50), name_target(HERE, ""), 103);
    expect(f, "MONITOR_EXIT nobody <1.0> b@h<50.0> #100 noproc\n"
              "MONITOR_EXIT nobody <1.0/3> b@h<50.0> #101 noproc\n"
              "MONITOR_EXIT nobody 'nobody' b@h<50.0> #102 noproc\n"
              "MONITOR_EXIT nobody '' b@h<50.0> #103 noproc\n");
}

static void demonitor_ends_a_peers_monitor_and_an_unknown_one_is_ignored(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    on_monitor_ok(f, peer_pid(B, 50), tm_target_pid(pid_of(f, key)), 100);
    assert_true(on_demonitor_ok(f, peer_pid(C, 50), 100) == 0);
    assert_true(on_demonitor_ok(f, peer_pid(B, 50), 101) == 0);
    assert_int_equal(f->procs->watches.count, 1);
    assert_true(on_demonitor_ok(f, peer_pid(B, 50), 100) == 0);
    assert_true(on_demonitor_ok(f, peer_pid(B, 50), 100) == 0);
    exit_ok(f, key, CRASH);
    expect(f, "");
}

static void process_is_watched_from_monitor_to_demonitor(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), other = spawn(f);
    tm_ref theirs = peer_ref(B, 100);
    assert_false(tm_procs_watched(f->procs, key, &theirs));
    on_monitor_ok(f, peer_pid(B, 50), tm_target_pid(pid_of(f, key)), 100);
    assert_true(tm_procs_watched(f->procs, key, &theirs));
    assert_false(tm_procs_watched(f->procs, other, &theirs));
    assert_true(on_demonitor_ok(f, peer_pid(B, 50), 100) == 0);
    assert_false(tm_procs_watched(f->procs, key, &theirs));

    tm_ref ours = monitor_ok(f, other, tm_target_pid(pid_of(f, key)), 0);
    assert_true(tm_procs_watched(f->procs, key, &ours));
    assert_true(tm_procs_demonitor(f->procs, other, &ours));
    assert_false(tm_procs_watched(f->procs, key, &ours));

    on_monitor_ok(f, peer_pid(B, 50), tm_target_pid(pid_of(f, key)), 100);
    tm_procs_node_down(f->procs, B);
    assert_false(tm_procs_watched(f->procs, key, &theirs));
}

static void same_reference_twice_is_one_monitor(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    for (int i = 0; i < 2; i++)
        on_monitor_ok(f, peer_pid(B, 50), tm_target_pid(pid_of(f, key)), 100);
    exit_ok(f, key, CRASH);
    expect(f, "MONITOR_EXIT <1.0> b@h<50.0> #100 crash\n");
}

static void references_of_any_length_keep_monitors_apart(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), abandoned;
    tm_pid from = peer_pid(B, 50);
    tm_target to = tm_target_pid(pid_of(f, key));
    for (uint32_t count = 1; count <= TM_REF_WORDS_MAX; count++) {
        tm_ref ref = {.node = B, .creation = PEER_CREATION, .count = count};
        ref.words[0] = 100;
        assert_int_equal(tm_procs_on_monitor(f->procs, &from, &to, &ref), 0);
        ref.creation++;
        assert_int_equal(tm_procs_on_monitor(f->procs, &from, &to, &ref), 0);
    }
    assert_int_equal(f->procs->watches.count, 2 * TM_REF_WORDS_MAX);
    tm_ref four = {.node = B, .creation = PEER_CREATION, .count = 4, .words = {100}};
    assert_int_equal(tm_procs_on_demonitor(f->procs, &from, &four, &abandoned), 0);
    assert_int_equal(f->procs->watches.count, 2 * TM_REF_WORDS_MAX - 1);
}

static void monitor_with_a_reference_of_another_node_is_ignored(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), abandoned;
    tm_pid from = peer_pid(B, 50);
    tm_target to = tm_target_pid(pid_of(f, key)), alias = {.kind = TM_TARGET_REF};
    tm_ref foreign = peer_ref(C, 100), own = peer_ref(B, 100);
    assert_int_equal(tm_procs_on_monitor(f->procs, &from, &to, &foreign), 0);
    assert_int_equal(tm_procs_on_monitor(f->procs, &from, &alias, &own), 0);
    assert_int_equal(f->procs->watches.count, 0);
    on_monitor_ok(f, from, to, 100);
    assert_int_equal(tm_procs_on_demonitor(f->procs, &from, &foreign, &abandoned), 0);
    assert_int_equal(f->procs->watches.count, 1);
    expect(f, "");
}

/* -- 4.2: monitors of ours --------------------------------------------------------------------- */

static void monitor_of_a_remote_process_fires_once_as_it_was_named(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_ref by_pid = monitor_ok(f, key, tm_target_pid(peer_pid(B, 50)), 0);
    tm_ref by_name = monitor_ok(f, key, name_target(B, "srv"), 0);
    expect(f, "MONITOR <1.0> b@h<50.0> #0\n"
              "MONITOR <1.0> b@h'srv' #1\n");
    for (int i = 0; i < 2; i++) {
        on_monitor_exit_ok(f, B, pid_of(f, key), by_pid, CRASH);
        on_monitor_exit_ok(f, B, pid_of(f, key), by_name, TM_TERM_NOPROC);
    }
    expect(f, "down 1 b@h<50.0> #0 crash\n"
              "down 1 b@h'srv' #1 noproc\n");
    assert_false(tm_procs_demonitor(f->procs, key, &by_pid));
    exit_ok(f, key, NORMAL);
    expect(f, "");
}

static void monitor_exit_counts_only_from_the_node_that_was_asked(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), other = spawn(f);
    tm_ref ref = monitor_ok(f, key, tm_target_pid(peer_pid(B, 50)), 0), forged = ref;
    tm_ref alias, request = request_ok(f, key, B, TM_SPAWN_MONITOR);
    tm_ref local = monitor_ok(f, key, tm_target_pid(pid_of(f, other)), 0);
    assert_int_equal(tm_procs_alias(f->procs, key, 0, &alias), 0);
    f->len = 0;
    on_monitor_exit_ok(f, C, pid_of(f, key), ref, CRASH);
    on_monitor_exit_ok(f, B, pid_of(f, other), ref, CRASH);
    forged.words[2]++;
    on_monitor_exit_ok(f, B, pid_of(f, key), forged, CRASH);
    forged = ref;
    forged.creation++;
    on_monitor_exit_ok(f, B, pid_of(f, key), forged, CRASH);
    forged = ref;
    forged.count = 5;
    on_monitor_exit_ok(f, B, pid_of(f, key), forged, CRASH);
    forged = ref;
    forged.node = B;
    on_monitor_exit_ok(f, B, pid_of(f, key), forged, CRASH);
    on_monitor_exit_ok(f, B, pid_of(f, key), alias, CRASH);
    on_monitor_exit_ok(f, B, pid_of(f, key), request, CRASH);
    on_monitor_exit_ok(f, B, pid_of(f, key), local, CRASH);
    expect(f, "");
    on_monitor_exit_ok(f, B, pid_of(f, key), ref, CRASH);
    expect(f, "down 1 b@h<50.0> #0 crash\n");
}

static void demonitor_stops_the_down_and_tells_the_peer(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), other = spawn(f);
    tm_ref ref = monitor_ok(f, key, name_target(B, "srv"), 0);
    f->len = 0;
    assert_false(tm_procs_demonitor(f->procs, other, &ref));
    expect(f, "");
    assert_true(tm_procs_demonitor(f->procs, key, &ref));
    expect(f, "DEMONITOR <1.0> b@h'srv' #0\n");
    assert_false(tm_procs_demonitor(f->procs, key, &ref));
    on_monitor_exit_ok(f, B, pid_of(f, key), ref, CRASH);
    expect(f, "");
}

static void monitor_of_a_local_process_is_events_only(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), target = spawn(f);
    assert_int_equal(tm_procs_register(f->procs, TM_BYTES("srv"), target), 0);
    tm_ref gone = monitor_ok(f, key, tm_target_pid(pid_of(f, target)), 0);
    monitor_ok(f, key, tm_target_pid(pid_of(f, target)), 0);
    monitor_ok(f, key, name_target(HERE, "srv"), 0);
    assert_true(tm_procs_demonitor(f->procs, key, &gone));
    expect(f, "");
    exit_ok(f, target, CRASH);
    expect(f, "down 1 <2.0> #1 crash\n"
              "down 1 'srv' #2 crash\n");
    exit_ok(f, key, CRASH);
    expect(f, "");
}

static void monitor_of_a_local_nobody_fires_at_once(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_pid stale = pid_of(f, key);
    stale.creation = 3;
    tm_ref ref = monitor_ok(f, key, tm_target_pid(stale), TM_MONITOR_ALIAS_REPLY);
    monitor_ok(f, key, name_target(HERE, "srv"), 0);
    expect(f, "down 1 <1.0/3> #0 noproc\n"
              "down 1 'srv' #1 noproc\n");
    bool reply;
    assert_true(tm_procs_use_alias(f->procs, &ref, &reply) == 0);
}

static void monitor_of_itself_is_harmless(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    monitor_ok(f, key, tm_target_pid(pid_of(f, key)), 0);
    exit_ok(f, key, CRASH);
    expect(f, "");
}

static void monitor_refuses_what_it_cannot_watch(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    char name[TM_ATOM_BYTES_MAX + 2], node[TM_NODE_NAME_BYTES_MAX + 1];
    memset(name, 'x', sizeof name - 1);
    name[sizeof name - 1] = 0;
    memset(node, 'x', sizeof node);
    tm_target ref_target = {.kind = TM_TARGET_REF}, srv = name_target(B, "srv");
    tm_target long_name = name_target(B, name), no_node = name_target(TM_BYTES(""), "srv");
    tm_target long_node = name_target(tm_bytes_of(node, sizeof node), "srv");
    tm_ref ref;
    assert_int_equal(tm_procs_monitor(f->procs, key, &ref_target, 0, &ref), TM_EUSE_ARG);
    assert_int_equal(tm_procs_monitor(f->procs, 77, &srv, 0, &ref), TM_ENOPROC);
    assert_int_equal(tm_procs_monitor(f->procs, key, &long_name, 0, &ref), TM_EUSE_NAME);
    assert_int_equal(tm_procs_monitor(f->procs, key, &no_node, 0, &ref), TM_EUSE_NAME);
    assert_int_equal(tm_procs_monitor(f->procs, key, &long_node, 0, &ref), TM_EUSE_NAME);
    expect(f, "");
}

/* -- aliases ----------------------------------------------------------------------------------- */

static void reply_alias_delivers_once_and_ends_the_monitor(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    bool reply;
    tm_ref ref = monitor_ok(f, key, name_target(B, "srv"), TM_MONITOR_ALIAS_REPLY);
    assert_true(tm_procs_use_alias(f->procs, &ref, &reply) == key);
    assert_true(reply);
    assert_true(tm_procs_use_alias(f->procs, &ref, &reply) == 0);
    assert_false(reply);
    on_monitor_exit_ok(f, B, pid_of(f, key), ref, CRASH);
    expect(f, "MONITOR <1.0> b@h'srv' #0\n"
              "DEMONITOR <1.0> b@h'srv' #0\n");
}

static void late_reply_after_demonitor_or_down_reaches_nobody(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    bool reply;
    tm_ref timed_out = monitor_ok(f, key, name_target(B, "srv"), TM_MONITOR_ALIAS_REPLY);
    tm_ref crashed = monitor_ok(f, key, name_target(B, "srv"), TM_MONITOR_ALIAS_REPLY);
    assert_true(tm_procs_demonitor(f->procs, key, &timed_out));
    on_monitor_exit_ok(f, B, pid_of(f, key), crashed, CRASH);
    assert_true(tm_procs_use_alias(f->procs, &timed_out, &reply) == 0);
    assert_true(tm_procs_use_alias(f->procs, &crashed, &reply) == 0);
}

static void alias_delivers_until_it_is_ended(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), other = spawn(f);
    bool reply = true;
    tm_ref ref, last;
    assert_int_equal(tm_procs_alias(f->procs, key, 0, &ref), 0);
    assert_int_equal(tm_procs_alias(f->procs, key, 0, &last), 0);
    for (int i = 0; i < 3; i++) assert_true(tm_procs_use_alias(f->procs, &ref, &reply) == key);
    assert_false(reply);
    assert_false(tm_procs_demonitor(f->procs, key, &ref));
    assert_false(tm_procs_unalias(f->procs, other, &ref));
    assert_true(tm_procs_unalias(f->procs, key, &ref));
    assert_false(tm_procs_unalias(f->procs, key, &ref));
    assert_true(tm_procs_use_alias(f->procs, &ref, &reply) == 0);
    exit_ok(f, key, NORMAL);
    assert_true(tm_procs_use_alias(f->procs, &last, &reply) == 0);
    assert_int_equal(tm_procs_alias(f->procs, key, 0, &ref), TM_ENOPROC);
    expect(f, "");
}

static void unalias_of_a_monitors_alias_leaves_the_monitor(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    bool reply;
    tm_ref ref = monitor_ok(f, key, name_target(B, "srv"), TM_MONITOR_ALIAS_REPLY);
    tm_ref plain = monitor_ok(f, key, name_target(B, "srv"), 0);
    f->len = 0;
    assert_true(tm_procs_unalias(f->procs, key, &ref));
    assert_false(tm_procs_unalias(f->procs, key, &ref));
    assert_false(tm_procs_unalias(f->procs, key, &plain));
    assert_true(tm_procs_use_alias(f->procs, &ref, &reply) == 0);
    on_monitor_exit_ok(f, B, pid_of(f, key), ref, CRASH);
    expect(f, "down 1 b@h'srv' #0 crash\n");
}

/* -- the end of a process ---------------------------------------------------------------------- */

static void dying_process_sends_exits_then_monitor_exits_then_demonitors(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), linked = spawn(f), watcher = spawn(f);
    tm_ref alias;
    bool reply;
    assert_int_equal(tm_procs_register(f->procs, TM_BYTES("srv"), key), 0);
    monitor_ok(f, key, name_target(B, "far"), TM_MONITOR_ALIAS_REPLY);
    monitor_ok(f, watcher, name_target(HERE, "srv"), 0);
    monitor_ok(f, key, tm_target_pid(pid_of(f, watcher)), 0);
    assert_int_equal(tm_procs_alias(f->procs, key, 0, &alias), 0);
    request_ok(f, key, B, TM_SPAWN_LINK);
    on_monitor_ok(f, peer_pid(B, 50), name_target(HERE, "srv"), 100);
    on_monitor_ok(f, peer_pid(C, 60), tm_target_pid(pid_of(f, key)), 100);
    on_link_ok(f, peer_pid(B, 50), pid_of(f, key));
    link_ok(f, key, peer_pid(C, 60));
    link_ok(f, linked, pid_of(f, key));
    f->len = 0;
    on_exit2_ok(f, peer_pid(C, 61), pid_of(f, key), CRASH);
    expect(f, "EXIT <1.0> b@h<50.0> crash\n"
              "EXIT <1.0> c@h<60.0> crash\n"
              "MONITOR_EXIT 'srv' b@h<50.0> #100 crash\n"
              "MONITOR_EXIT <1.0> c@h<60.0> #100 crash\n"
              "down 3 'srv' #1 crash\n"
              "DEMONITOR <1.0> b@h'far' #0\n"
              "exited 1 crash\n"
              "exited 2 crash\n");
    assert_true(tm_procs_whereis(f->procs, TM_BYTES("srv")) == 0);
    assert_true(tm_procs_use_alias(f->procs, &alias, &reply) == 0);
}

static void watcher_that_dies_in_the_same_call_gets_no_down(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f), watcher = spawn(f);
    link_ok(f, watcher, pid_of(f, key));
    monitor_ok(f, watcher, tm_target_pid(pid_of(f, key)), 0);
    exit_ok(f, key, CRASH);
    expect(f, "exited 2 crash\n");
}

/* -- memory ------------------------------------------------------------------------------------ */

/* One failure at most: then nothing was said, all is sound, and the same call succeeds. */
#define RETRY(f, call)                                                                             \
    do {                                                                                           \
        size_t len_before = (f)->len;                                                              \
        int rc_ = (call);                                                                          \
        tm_procs_invariants((f)->procs);                                                           \
        if (rc_ == TM_ENOMEM) {                                                                    \
            assert_int_equal((f)->len, len_before);                                                \
            rc_ = (call);                                                                          \
        }                                                                                          \
        assert_int_equal(rc_, 0);                                                                  \
    } while (0)

static void scenario_of_ours(fixture *f, tm_proc_key keys[3])
{
    tm_pid near = pid_of(f, keys[1]), far = peer_pid(B, 50), self = pid_of(f, keys[0]);
    tm_target targets[] = {name_target(B, "far"), tm_target_pid(far), name_target(HERE, "srv"),
                           tm_target_pid(near), name_target(HERE, "nobody")};
    tm_ref ref;
    bool reply;
    RETRY(f, tm_procs_register(f->procs, TM_BYTES("srv"), keys[1]));
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++)
        RETRY(f, tm_procs_monitor(f->procs, keys[0], &targets[i], TM_MONITOR_ALIAS_REPLY, &ref));
    RETRY(f, tm_procs_monitor(f->procs, keys[0], &targets[0], TM_MONITOR_ALIAS_REPLY, &ref));
    assert_true(tm_procs_use_alias(f->procs, &ref, &reply) == keys[0]);
    RETRY(f, tm_procs_alias(f->procs, keys[0], 0, &ref));
    RETRY(f, tm_procs_link(f->procs, keys[0], &near));
    RETRY(f, tm_procs_link(f->procs, keys[0], &far));
    RETRY(f, tm_procs_spawn_request(f->procs, keys[0], C, 3, &ref));
    far = peer_pid(C, 60);
    RETRY(f, tm_procs_on_spawn_reply(f->procs, C, &ref, &self, 3, &far, (tm_bytes){0}));
    RETRY(f, tm_procs_node_up(f->procs, TM_BYTES("d@h"), 3));
}

static void scenario_of_peers(fixture *f, tm_proc_key keys[3])
{
    tm_pid from = peer_pid(B, 70), near = pid_of(f, keys[2]);
    tm_target targets[] = {name_target(HERE, "srv"), tm_target_pid(near),
                           name_target(HERE, "nobody")};
    tm_proc_key worker;
    for (uint32_t i = 0; i < 20; i++) {
        tm_ref ref = peer_ref(B, 100 + i);
        RETRY(f, tm_procs_on_monitor(f->procs, &from, &targets[i % 3], &ref));
        from.id++;
        RETRY(f, tm_procs_on_link(f->procs, &from, &near));
        ref.words[0] += 100;
        RETRY(f, tm_procs_on_spawn(f->procs, &from, &ref, 3, &worker));
        if (i % 2) exit_ok(f, worker, CRASH);
    }
}

/* true if an allocation has failed */
static bool scenario(fixture *f, size_t calls)
{
    fixture_init(f);
    f->bare = true;
    f->calls_left = calls;
    int rc = fixture_create(f);
    if (rc) rc = fixture_create(f);
    assert_int_equal(rc, 0);
    tm_proc_key keys[3];
    for (int i = 0; i < 3; i++) RETRY(f, tm_procs_spawn(f->procs, &keys[i]));
    scenario_of_ours(f, keys);
    scenario_of_peers(f, keys);
    exit_ok(f, keys[1], NORMAL);
    tm_procs_node_down(f->procs, B);
    tm_procs_invariants(f->procs);
    bool failed = calls != SIZE_MAX && f->calls_left > calls;
    tm_procs_destroy(f->procs);
    assert_int_equal(f->stats.count, 0);
    f->log[f->len] = 0;
    return failed;
}

static void every_allocation_may_fail_and_the_call_be_repeated(void **state)
{
    static fixture clean, failing;
    (void)state;
    assert_false(scenario(&clean, SIZE_MAX));
    size_t calls = 0;
    while (scenario(&failing, calls)) {
        assert_string_equal(failing.log, clean.log);
        calls++;
    }
    assert_true(calls > 100);
}

static void process_ends_even_without_memory_for_its_reason(void **state)
{
    fixture *f = *state;
    tm_proc_key key = spawn(f);
    tm_ref ref = request_ok(f, key, B, TM_SPAWN_LINK);
    f->calls_left = 0;
    exit_ok(f, key, CRASH);
    on_reply_ok(f, B, ref, pid_of(f, key), TM_SPAWN_LINK, peer_pid(B, 50));
    expect(f, "EXIT nobody <1.0> b@h<50.0> abandoned\n");
}

static void destroy_frees_what_is_still_there_in_silence(void **state)
{
    fixture *f = *state;
    tm_proc_key a = spawn(f), b = spawn(f), gone = spawn(f);
    tm_ref alias;
    assert_int_equal(tm_procs_register(f->procs, TM_BYTES("srv"), a), 0);
    assert_int_equal(tm_procs_alias(f->procs, a, 0, &alias), 0);
    monitor_ok(f, a, tm_target_pid(pid_of(f, b)), 0);
    monitor_ok(f, b, tm_target_pid(pid_of(f, a)), 0);
    monitor_ok(f, a, tm_target_pid(pid_of(f, a)), 0);
    monitor_ok(f, a, name_target(B, "far"), 0);
    link_ok(f, a, pid_of(f, b));
    link_ok(f, a, peer_pid(B, 50));
    request_ok(f, a, B, TM_SPAWN_MONITOR);
    request_ok(f, gone, C, TM_SPAWN_LINK);
    exit_ok(f, gone, CRASH);
    on_monitor_ok(f, peer_pid(B, 50), name_target(HERE, "srv"), 100);
    on_spawn_ok(f, peer_pid(C, 60), 100, TM_SPAWN_LINK | TM_SPAWN_MONITOR);
    f->len = 0;
    tm_procs_destroy(f->procs);
    assert_int_equal(f->len, 0);
    assert_int_equal(f->stats.count, 0);
    assert_int_equal(fixture_create(f), 0);
    tm_procs_destroy(NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fixture_setup, fixture_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(process_is_found_by_its_pid_while_it_lives),
        TEST(pid_of_another_node_or_creation_is_nobody),
        TEST(pid_of_a_dead_process_never_names_a_later_one),
        TEST(process_table_refuses_one_above_its_bound),
        TEST(rename_is_possible_only_without_processes),
        TEST(references_are_distinct_and_fit_old_peers),
        TEST(mail_is_counted_until_it_is_taken),
        TEST(name_leads_to_its_process_until_it_ends),
        TEST(name_must_be_a_legal_atom),
        TEST(peers_monitor_of_a_process_ends_with_its_reason),
        TEST(peers_monitor_by_name_ends_under_that_name),
        TEST(peers_monitor_of_nobody_gets_noproc_for_the_item_as_asked),
        TEST(demonitor_ends_a_peers_monitor_and_an_unknown_one_is_ignored),
        TEST(process_is_watched_from_monitor_to_demonitor),
        TEST(same_reference_twice_is_one_monitor),
        TEST(references_of_any_length_keep_monitors_apart),
        TEST(monitor_with_a_reference_of_another_node_is_ignored),
        TEST(monitor_of_a_remote_process_fires_once_as_it_was_named),
        TEST(monitor_exit_counts_only_from_the_node_that_was_asked),
        TEST(demonitor_stops_the_down_and_tells_the_peer),
        TEST(monitor_of_a_local_process_is_events_only),
        TEST(monitor_of_a_local_nobody_fires_at_once),
        TEST(monitor_of_itself_is_harmless),
        TEST(monitor_refuses_what_it_cannot_watch),
        TEST(reply_alias_delivers_once_and_ends_the_monitor),
        TEST(late_reply_after_demonitor_or_down_reaches_nobody),
        TEST(alias_delivers_until_it_is_ended),
        TEST(unalias_of_a_monitors_alias_leaves_the_monitor),
        TEST(dying_process_sends_exits_then_monitor_exits_then_demonitors),
        TEST(watcher_that_dies_in_the_same_call_gets_no_down),
        TEST(every_allocation_may_fail_and_the_call_be_repeated),
        TEST(process_ends_even_without_memory_for_its_reason),
        TEST(destroy_frees_what_is_still_there_in_silence),
    };
    return cmocka_run_group_tests_name("proc", tests, NULL, NULL);
}
