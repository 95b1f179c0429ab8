/* For the tests of proc: tables whose allocator can fail and whose sink writes down what comes out,
 * a line each, so that a test reads as the dialogue it expects. */
#ifndef TM_PROC_TESTING_H
#define TM_PROC_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tables.h"

/* The node under test and its peers; a pid of another creation is written with it. */
#define HERE TM_BYTES("a@h")
#define HERE_CREATION 7
#define B TM_BYTES("b@h")
#define C TM_BYTES("c@h")
#define PEER_CREATION 9
#define NORMAL TM_BYTES("w\006normal")
#define KILL TM_BYTES("w\004kill")
#define CRASH TM_BYTES("w\005crash")
#define LOG_BYTES 16384

typedef struct fixture {
    tm_alloc_stats stats;
    tm_alloc libc;
    tm_alloc alloc;
    size_t calls_left; /* allocations that still succeed; then one fails */
    size_t event_count;
    bool quiet; /* events are counted only */
    bool bare;  /* what identifies something of ours is left out */
    tm_procs *procs;
    size_t len;
    char log[LOG_BYTES];
} fixture;

static inline void *fixture_resize(void *ctx, void *ptr, size_t old_size, size_t new_size)
{
    fixture *f = ctx;
    if (new_size && f->calls_left-- == 0) {
        f->calls_left = SIZE_MAX;
        return NULL;
    }
    return f->libc.resize(f->libc.ctx, ptr, old_size, new_size);
}

/* -- writing down ------------------------------------------------------------------------------ */

__attribute__((format(printf, 2, 3))) static inline void put(fixture *f, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(f->log + f->len, LOG_BYTES - f->len, format, args);
    va_end(args);
    assert_true(n >= 0 && (size_t)n < LOG_BYTES - f->len);
    f->len += (size_t)n;
}

static inline void put_bytes(fixture *f, tm_bytes bytes)
{
    put(f, "%.*s", (int)bytes.len, (const char *)bytes.ptr);
}

static inline void put_pid(fixture *f, const tm_pid *pid)
{
    bool here = tm_bytes_equal(pid->node, HERE);
    if (here && f->bare) return;
    if (!here) put_bytes(f, pid->node);
    put(f, "<%u.%u", pid->id, pid->serial);
    if (pid->creation != (here ? HERE_CREATION : PEER_CREATION)) put(f, "/%u", pid->creation);
    put(f, ">");
}

static inline void put_target(fixture *f, const tm_target *target)
{
    if (target->kind == TM_TARGET_PID) {
        put_pid(f, &target->pid);
        return;
    }
    if (target->kind == TM_TARGET_REF) {
        put(f, "alias");
        return;
    }
    if (!tm_bytes_equal(target->node, HERE)) put_bytes(f, target->node);
    put(f, "'");
    put_bytes(f, target->name);
    put(f, "'");
}

/* Word 0 counts the references that we make. */
static inline void put_ref(fixture *f, const tm_ref *ref)
{
    if (!f->bare) put(f, " #%u", ref->words[0]);
}

static inline void put_reason(fixture *f, tm_bytes reason)
{
    tm_cursor cursor = tm_cursor_of(reason);
    tm_atom atom;
    put(f, " ");
    if (tm_etf_read_atom(&cursor, &atom) == 0)
        put_bytes(f, atom.text);
    else
        put(f, "%zu bytes", reason.len);
}

/* Serial, sender and previous serial. */
static inline void put_token(fixture *f, tm_bytes token)
{
    tm_cursor c = tm_cursor_of(token);
    uint32_t arity;
    uint64_t flags, label, serial, previous;
    tm_pid from;
    assert_int_equal(tm_etf_read_tuple(&c, &arity), 0);
    assert_int_equal(arity, 5);
    assert_int_equal(tm_etf_read_u64(&c, &flags), 0);
    assert_int_equal(tm_etf_read_u64(&c, &label), 0);
    assert_int_equal(tm_etf_read_u64(&c, &serial), 0);
    assert_int_equal(tm_etf_read_pid(&c, &from), 0);
    assert_int_equal(tm_etf_read_u64(&c, &previous), 0);
    put(f, " {%u,%u,%u,", (unsigned)flags, (unsigned)label, (unsigned)serial);
    put_pid(f, &from);
    put(f, ",%u}", (unsigned)previous);
}

static inline void fixture_signal(void *ctx, const tm_proc_signal *s)
{
    static const char *const names[] = {
        [TM_SIGNAL_LINK] = "LINK",
        [TM_SIGNAL_UNLINK_ID] = "UNLINK_ID",
        [TM_SIGNAL_UNLINK_ID_ACK] = "UNLINK_ID_ACK",
        [TM_SIGNAL_EXIT] = "EXIT",
        [TM_SIGNAL_EXIT2] = "EXIT2",
        [TM_SIGNAL_MONITOR] = "MONITOR",
        [TM_SIGNAL_DEMONITOR] = "DEMONITOR",
        [TM_SIGNAL_MONITOR_EXIT] = "MONITOR_EXIT",
        [TM_SIGNAL_GROUP_LEADER] = "GROUP_LEADER",
    };
    fixture *f = ctx;
    assert_true(tm_bytes_equal(s->node, s->to.node));
    if (s->sender) assert_true(s->sender == tm_pid_key(&s->from));
    put(f, "%s", names[s->kind]);
    if (s->unlink_id) put(f, " %llu", (unsigned long long)s->unlink_id);
    put(f, s->sender ? " " : " nobody ");
    if (s->from_name.ptr) {
        put(f, "'");
        put_bytes(f, s->from_name);
        put(f, "'");
    } else {
        put_pid(f, &s->from);
    }
    put(f, " ");
    put_target(f, &s->to);
    if (s->ref.count) put_ref(f, &s->ref);
    if (s->reason.len) put_reason(f, s->reason);
    if (s->leader.node.len) put_pid(f, &s->leader);
    if (s->token.len) put_token(f, s->token);
    put(f, "\n");
}

static inline void fixture_event(void *ctx, const tm_proc_event *e)
{
    fixture *f = ctx;
    unsigned long long key = f->bare ? 0 : e->key;
    f->event_count++;
    (void)tm_procs_mail_put(f->procs, e->key, e->reason.len);
    if (f->quiet) return;
    switch (e->kind) {
    case TM_EVENT_PROC_EXITED:
        assert_false(tm_procs_alive(f->procs, e->key));
        put(f, "exited %llu", key);
        break;
    case TM_EVENT_EXIT_MESSAGE:
        put(f, "message %llu ", key);
        put_pid(f, &e->pid);
        break;
    case TM_EVENT_DOWN:
        put(f, "down %llu ", key);
        put_target(f, &e->item);
        put_ref(f, &e->ref);
        break;
    case TM_EVENT_SPAWN_REPLY:
        put(f, "reply %llu%s", key, e->ok ? " " : "");
        if (e->ok) put_pid(f, &e->pid);
        put_ref(f, &e->ref);
        break;
    case TM_EVENT_NODE_LOST:
        put(f, "lost %llu ", key);
        put_bytes(f, e->item.node);
        break;
    }
    if (e->reason.len) put_reason(f, e->reason);
    if (e->token.len) put_token(f, e->token);
    put(f, "\n");
}

/* -- the fixture ------------------------------------------------------------------------------- */

static inline void fixture_init(fixture *f)
{
    memset(f, 0, sizeof *f);
    f->calls_left = SIZE_MAX;
    f->libc = tm_alloc_libc(&f->stats);
    f->alloc = (tm_alloc){.resize = fixture_resize, .ctx = f};
}

static inline int fixture_create(fixture *f)
{
    tm_procs_options options = {
        .alloc = &f->alloc,
        .node = HERE,
        .creation = HERE_CREATION,
        .seed = {0x0123456789abcdefULL, 0xfedcba9876543210ULL},
        .sink = {.ctx = f, .signal = fixture_signal, .event = fixture_event},
    };
    return tm_procs_create(&options, &f->procs);
}

static inline int fixture_setup(void **state)
{
    fixture *f = malloc(sizeof *f);
    if (!f) return -1;
    fixture_init(f);
    *state = f;
    return fixture_create(f);
}

/* After every test: the tables are sound, and nothing is held once they are gone. */
static inline int fixture_teardown(void **state)
{
    fixture *f = *state;
    tm_procs_invariants(f->procs);
    tm_procs_destroy(f->procs);
    assert_int_equal(f->stats.bytes, 0);
    assert_int_equal(f->stats.count, 0);
    free(f);
    return 0;
}

/* What came out since the last time, all of it, in this order. */
static inline void expect(fixture *f, const char *lines)
{
    tm_procs_invariants(f->procs);
    f->log[f->len] = 0;
    assert_string_equal(f->log, lines);
    f->len = 0;
}

static inline tm_proc_key spawn(fixture *f)
{
    tm_proc_key key = 0;
    assert_int_equal(tm_procs_spawn(f->procs, &key), 0);
    return key;
}

/* A living process that is `pid` to others. */
static inline tm_pid pid_of(const fixture *f, tm_proc_key key)
{
    return tm_procs_pid(f->procs, key);
}

static inline tm_pid peer_pid(tm_bytes node, uint32_t id)
{
    return (tm_pid){.node = node, .id = id, .creation = PEER_CREATION};
}

static inline tm_ref peer_ref(tm_bytes node, uint32_t word)
{
    return (tm_ref){.node = node, .creation = PEER_CREATION, .count = 3, .words = {word, 2, 3}};
}

static inline tm_target name_target(tm_bytes node, const char *name)
{
    return (tm_target){
        .kind = TM_TARGET_NAME, .node = node, .name = tm_bytes_of(name, strlen(name))};
}

/* -- calls that must succeed ----------------------------------------------------------------- */

static inline void exit_ok(fixture *f, tm_proc_key key, tm_bytes reason)
{
    assert_int_equal(tm_procs_exit(f->procs, key, reason), 0);
}

static inline void trap(fixture *f, tm_proc_key key)
{
    assert_int_equal(tm_procs_trap_exit(f->procs, key, true), 0);
}

static inline tm_ref monitor_ok(fixture *f, tm_proc_key watcher, tm_target target, unsigned flags)
{
    tm_ref ref;
    assert_int_equal(tm_procs_monitor(f->procs, watcher, &target, flags, &ref), 0);
    return ref;
}

static inline void link_ok(fixture *f, tm_proc_key key, tm_pid to)
{
    assert_int_equal(tm_procs_link(f->procs, key, &to), 0);
}

static inline void unlink_ok(fixture *f, tm_proc_key key, tm_pid to)
{
    assert_int_equal(tm_procs_unlink(f->procs, key, &to), 0);
}

static inline void on_link_ok(fixture *f, tm_pid from, tm_pid to)
{
    assert_int_equal(tm_procs_on_link(f->procs, &from, &to), 0);
}

static inline void on_unlink_ok(fixture *f, uint64_t id, tm_pid from, tm_pid to)
{
    assert_int_equal(tm_procs_on_unlink_id(f->procs, id, &from, &to), 0);
}

static inline void on_ack_ok(fixture *f, uint64_t id, tm_pid from, tm_pid to)
{
    assert_int_equal(tm_procs_on_unlink_id_ack(f->procs, id, &from, &to), 0);
}

static inline void on_exit_ok(fixture *f, tm_pid from, tm_pid to, tm_bytes reason)
{
    assert_int_equal(tm_procs_on_exit(f->procs, &from, &to, reason), 0);
}

static inline void on_exit2_ok(fixture *f, tm_pid from, tm_pid to, tm_bytes reason)
{
    assert_int_equal(tm_procs_on_exit2(f->procs, &from, &to, reason), 0);
}

static inline void on_monitor_ok(fixture *f, tm_pid from, tm_target to, uint32_t ref_word)
{
    tm_ref ref = peer_ref(from.node, ref_word);
    assert_int_equal(tm_procs_on_monitor(f->procs, &from, &to, &ref), 0);
}

static inline tm_proc_key on_demonitor_ok(fixture *f, tm_pid from, uint32_t ref_word)
{
    tm_ref ref = peer_ref(from.node, ref_word);
    tm_proc_key abandoned = 99;
    assert_int_equal(tm_procs_on_demonitor(f->procs, &from, &ref, &abandoned), 0);
    return abandoned;
}

static inline void on_monitor_exit_ok(fixture *f, tm_bytes node, tm_pid to, tm_ref ref,
                                      tm_bytes reason)
{
    assert_int_equal(tm_procs_on_monitor_exit(f->procs, node, &to, &ref, reason), 0);
}

static inline tm_proc_key on_spawn_ok(fixture *f, tm_pid from, uint32_t ref_word, unsigned flags)
{
    tm_ref ref = peer_ref(from.node, ref_word);
    tm_proc_key key = 0;
    assert_int_equal(tm_procs_on_spawn(f->procs, &from, &ref, flags, &key), 0);
    return key;
}

static inline tm_ref request_ok(fixture *f, tm_proc_key key, tm_bytes node, unsigned flags)
{
    tm_ref ref;
    assert_int_equal(tm_procs_spawn_request(f->procs, key, node, flags, &ref), 0);
    return ref;
}

static inline void on_reply_ok(fixture *f, tm_bytes node, tm_ref ref, tm_pid to, unsigned flags,
                               tm_pid pid)
{
    int rc = tm_procs_on_spawn_reply(f->procs, node, &ref, &to, flags, &pid, (tm_bytes){0});
    assert_int_equal(rc, 0);
}

static inline void on_reply_error_ok(fixture *f, tm_bytes node, tm_ref ref, tm_pid to,
                                     tm_bytes error)
{
    int rc = tm_procs_on_spawn_reply(f->procs, node, &ref, &to, 0, NULL, error);
    assert_int_equal(rc, 0);
}

#endif
