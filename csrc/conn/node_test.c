/* Nodes against each other through tumen.h, under every backend and driver. Real peers are in
 * tests/live; here two of ours meet, so that a fault of the core shows without Python or a BEAM. */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "testing.h"

static void messages_arrive_in_order_by_name_and_by_pid(void **state)
{
    pair *p = *state;
    tumen_key to = spawn(&p->b, "sink"), from = spawn(&p->a, NULL);
    tumen_pid pid;
    assert_int_equal(tumen_pid_of(p->b.node, to, &pid), 0);
    tumen_target by_name = name_target("b@127.0.0.1", "sink"), by_pid = pid_target(&pid);
    enum { COUNT = 20000 };
    uint32_t got = 0;
    for (uint32_t i = 0; i < COUNT; i++) {
        term t = {.len = 0};
        put_int(&t, i);
        int rc;
        while ((rc = tumen_send(p->a.node, from, i % 2 ? &by_name : &by_pid, whole(&t), 0)) ==
               TM_EBUSY) {
            tumen_flush(p->a.node);
            await_event(&p->a, TUMEN_EVENT_WRITABLE);
        }
        assert_int_equal(rc, 0);
        if (i % 100 == 0) tumen_flush(p->a.node);
    }
    tumen_flush(p->a.node);
    while (got < COUNT) {
        const tumen_event *event = await_event(&p->b, TUMEN_EVENT_MESSAGE);
        assert_true(event->process == to);
        assert_int_equal(event->term.len, 5);
        uint32_t n = (uint32_t)event->term.ptr[1] << 24 | (uint32_t)event->term.ptr[2] << 16 |
                     (uint32_t)event->term.ptr[3] << 8 | event->term.ptr[4];
        assert_int_equal(n, got);
        got++;
        tumen_mail_taken(p->b.node, to, event->wire_bytes);
    }
}

static void a_large_message_arrives_whole_and_lent_memory_comes_back(void **state)
{
    pair *p = *state;
    tumen_key to = spawn(&p->b, "big");
    (void)to;
    size_t size = 20u << 20;
    uint8_t *body = malloc(size);
    for (size_t i = 0; i < size; i++) body[i] = (uint8_t)(i * 31 >> 3);
    term head = {.len = 0};
    put_u8(&head, 109);
    put_u32(&head, (uint32_t)size);
    tumen_part parts[2] = {{.bytes = whole(&head)}, {.bytes = {body, size}, .lent = 77}};
    tumen_target target = name_target("b@127.0.0.1", "big");
    assert_int_equal(tumen_send_parts(p->a.node, 0, &target, parts, 2, 0), 0);
    tumen_flush(p->a.node);
    const tumen_event *event = await_event(&p->b, TUMEN_EVENT_MESSAGE);
    assert_int_equal(event->term.len, size + 5);
    assert_memory_equal(event->term.ptr + 5, body, size);
    tumen_mail_taken(p->b.node, to, event->wire_bytes);
    assert_int_equal(await_event(&p->a, TUMEN_EVENT_RETURNED)->number, 77);
    free(body);
}

static void a_ping_is_answered_by_the_core(void **state)
{
    pair *p = *state;
    tumen_key from = spawn(&p->a, NULL);
    tumen_target kernel = name_target("b@127.0.0.1", "net_kernel");
    tumen_ref ref;
    tumen_pid self;
    assert_int_equal(tumen_pid_of(p->a.node, from, &self), 0);
    assert_int_equal(tumen_monitor(p->a.node, from, &kernel, TUMEN_MONITOR_ALIAS, &ref), 0);
    term t = {.len = 0};
    put_u8(&t, 104), put_u8(&t, 3);
    put_atom(&t, text("$gen_call"));
    put_u8(&t, 104), put_u8(&t, 2);
    put_pid(&t, &self);
    put_u8(&t, 108), put_u32(&t, 1);
    put_atom(&t, text("alias"));
    put_ref(&t, &ref);
    put_u8(&t, 104), put_u8(&t, 2);
    put_atom(&t, text("is_auth"));
    put_atom(&t, text("a@127.0.0.1"));
    assert_int_equal(tumen_send(p->a.node, from, &kernel, whole(&t), 0), 0);
    tumen_flush(p->a.node);
    const tumen_event *reply = await_event(&p->a, TUMEN_EVENT_REPLY);
    assert_true(reply->process == from);
    assert_int_equal(reply->ref.words[1], ref.words[1]);
    assert_memory_equal(reply->term.ptr + reply->term.len - 5, "\x77\x03yes", 5);
}

static void a_monitor_tells_noproc_the_reason_and_noconnection(void **state)
{
    pair *p = *state;
    tumen_key watcher = spawn(&p->a, NULL), watched = spawn(&p->b, "watched");
    tumen_target missing = name_target("b@127.0.0.1", "missing");
    tumen_target there = name_target("b@127.0.0.1", "watched");
    tumen_ref ref;
    assert_int_equal(tumen_monitor(p->a.node, watcher, &missing, 0, &ref), 0);
    tumen_flush(p->a.node);
    const tumen_event *down = await_event(&p->a, TUMEN_EVENT_DOWN);
    assert_true(same(down->name, "missing") && same(down->node, "b@127.0.0.1"));
    assert_memory_equal(down->term.ptr + down->term.len - 6, "noproc", 6);

    assert_int_equal(tumen_monitor(p->a.node, watcher, &there, 0, &ref), 0);
    tumen_flush(p->a.node);
    /* Ordered behind the monitor: a message that comes back tells that it was set. */
    tumen_pid pid;
    assert_int_equal(tumen_pid_of(p->a.node, watcher, &pid), 0);
    term t = {.len = 0};
    put_atom(&t, text("go"));
    assert_int_equal(tumen_send(p->a.node, watcher, &there, whole(&t), 0), 0);
    tumen_flush(p->a.node);
    tumen_mail_taken(p->b.node, watched, await_event(&p->b, TUMEN_EVENT_MESSAGE)->wire_bytes);
    assert_int_equal(tumen_exit(p->b.node, watched, whole(&t)), 0);
    tumen_flush(p->b.node);
    down = await_event(&p->a, TUMEN_EVENT_DOWN);
    assert_int_equal(down->ref.words[1], ref.words[1]);
    assert_memory_equal(down->term.ptr + down->term.len - 2, "go", 2);

    watched = spawn(&p->b, "again");
    tumen_target again = name_target("b@127.0.0.1", "again");
    assert_int_equal(tumen_monitor(p->a.node, watcher, &again, 0, &ref), 0);
    assert_int_equal(tumen_node_disconnect(p->a.node, text("b@127.0.0.1")), 0);
    down = await_event(&p->a, TUMEN_EVENT_DOWN);
    assert_memory_equal(down->term.ptr + down->term.len - 12, "noconnection", 12);
    assert_int_equal(await_event(&p->a, TUMEN_EVENT_NODEDOWN)->code, TM_ECLOSED);
    await_event(&p->b, TUMEN_EVENT_NODEDOWN);
}

static void a_send_reconnects(void **state)
{
    pair *p = *state;
    tumen_key to = spawn(&p->b, "later");
    assert_int_equal(tumen_node_disconnect(p->a.node, text("b@127.0.0.1")), 0);
    await_event(&p->a, TUMEN_EVENT_NODEDOWN);
    await_event(&p->b, TUMEN_EVENT_NODEDOWN);
    term t = {.len = 0};
    put_atom(&t, text("hello"));
    tumen_target target = name_target("b@127.0.0.1", "later");
    assert_int_equal(tumen_send(p->a.node, 0, &target, whole(&t), TUMEN_SEND_NOCONNECT),
                     TM_ENOCONN);
    assert_int_equal(tumen_send(p->a.node, 0, &target, whole(&t), 0), 0);
    const tumen_event *event = await_event(&p->b, TUMEN_EVENT_MESSAGE);
    assert_true(event->process == to);
    tumen_mail_taken(p->b.node, to, event->wire_bytes);
}

static void a_failed_connect_tells_what_was_lost(void **state)
{
    pair *p = *state;
    term t = {.len = 0};
    put_atom(&t, text("hello"));
    tumen_target target = name_target("nobody@127.0.0.1", "x");
    assert_int_equal(tumen_send(p->a.node, 0, &target, whole(&t), 0), 0);
    assert_int_equal(tumen_send(p->a.node, 0, &target, whole(&t), 0), 0);
    /* The first attempt may have failed before the second message came: together they tell two. */
    for (int64_t lost = 0; lost < 2;) {
        const tumen_event *event = await_event(&p->a, TUMEN_EVENT_CONNECT_FAILED);
        assert_true(same(event->node, "nobody@127.0.0.1"));
        assert_int_equal(event->code, TM_EPEER_UNKNOWN);
        assert_in_range(event->number, 1, 2 - lost);
        lost += event->number;
    }
}

static void links_break_both_ways(void **state)
{
    pair *p = *state;
    tumen_key left = spawn(&p->a, NULL), right = spawn(&p->b, NULL);
    tumen_pid pid;
    assert_int_equal(tumen_pid_of(p->b.node, right, &pid), 0);
    assert_int_equal(tumen_trap_exit(p->a.node, left, 1), 0);
    assert_int_equal(tumen_link(p->a.node, left, &pid), 0);
    term t = {.len = 0};
    put_atom(&t, text("sync"));
    tumen_target target = pid_target(&pid);
    assert_int_equal(tumen_send(p->a.node, left, &target, whole(&t), 0), 0);
    tumen_flush(p->a.node);
    tumen_mail_taken(p->b.node, right, await_event(&p->b, TUMEN_EVENT_MESSAGE)->wire_bytes);
    assert_int_equal(tumen_exit(p->b.node, right, whole(&t)), 0);
    tumen_flush(p->b.node);
    const tumen_event *event = await_event(&p->a, TUMEN_EVENT_EXIT);
    assert_true(event->process == left);
    assert_int_equal(event->from.id, pid.id);
    assert_memory_equal(event->term.ptr + event->term.len - 4, "sync", 4);
}

static void busy_at_the_high_water_and_writable_below_the_low(void **state)
{
    pair *p = *state;
    tumen_key to = spawn(&p->b, "flood");
    assert_int_equal(tumen_node_set_limit(p->a.node, TUMEN_LIMIT_SENDQ_HIGH_BYTES, 4096), 0);
    tumen_target target = name_target("b@127.0.0.1", "flood");
    term t = {.len = 0};
    put_u8(&t, 109), put_u32(&t, 400);
    for (int i = 0; i < 100; i++) put_u32(&t, 0);
    int sent = 0, rc;
    /* Not flushed: nothing leaves, so the bound is met exactly. */
    while ((rc = tumen_send(p->a.node, 0, &target, whole(&t), 0)) == 0) sent++;
    assert_int_equal(rc, TM_EBUSY);
    assert_in_range(sent, 4, 11);
    tumen_connection info;
    assert_true(tumen_node_connections(p->a.node, &info, 1) == 1);
    assert_true(info.queue_bytes >= 4096);
    tumen_flush(p->a.node);
    await_event(&p->a, TUMEN_EVENT_WRITABLE);
    for (int i = 0; i < sent; i++)
        tumen_mail_taken(p->b.node, to, await_event(&p->b, TUMEN_EVENT_MESSAGE)->wire_bytes);
}

static void a_full_mailbox_ends_its_process_alone(void **state)
{
    pair *p = *state;
    tumen_key full = spawn(&p->b, "full"), other = spawn(&p->b, "other");
    assert_int_equal(tumen_node_set_limit(p->b.node, TUMEN_LIMIT_MAILBOX_BYTES, 20), 0);
    tumen_target target = name_target("b@127.0.0.1", "full"),
                 next = name_target("b@127.0.0.1", "other");
    term t = {.len = 0};
    put_int(&t, 7);
    for (int i = 0; i < 5; i++)
        assert_int_equal(tumen_send(p->a.node, 0, &target, whole(&t), 0), 0);
    assert_int_equal(tumen_send(p->a.node, 0, &next, whole(&t), 0), 0);
    tumen_flush(p->a.node);
    const tumen_event *event = await_event(&p->b, TUMEN_EVENT_EXITED);
    assert_true(event->process == full);
    assert_memory_equal(event->term.ptr + 4, "mailbox_full", 12);
    event = await_event(&p->b, TUMEN_EVENT_MESSAGE);
    assert_true(event->process == other);
    assert_false(tumen_alive(p->b.node, full));
}

static void an_engine_ends_with_its_nodes_open(void **state)
{
    (void)state;
    tumen_engine *engine = open_engine();
    side a = open_side(engine, "a@127.0.0.1", TUMEN_EPMD_NONE, 0);
    side b = open_side(engine, "b@127.0.0.1", TUMEN_EPMD_NONE, 0);
    join(&a, &b, "b@127.0.0.1");
    tumen_batch_free(a.batch);
    tumen_batch_free(b.batch);
    close_engine(engine);
}

static void a_stopped_node_takes_its_commands_with_it(void **state)
{
    (void)state;
    tumen_engine *engine = open_engine();
    side a = open_side(engine, "a@127.0.0.1", TUMEN_EPMD_NONE, 0);
    assert_int_equal(tumen_node_stop(a.node), 0);
    await_event(&a, TUMEN_EVENT_STOPPED);
    term t = {.len = 0};
    put_int(&t, 1);
    tumen_target target = name_target("b@127.0.0.1", "x");
    assert_int_equal(tumen_send(a.node, 0, &target, whole(&t), 0), 0);
    assert_int_equal(tumen_node_stop(a.node), 0);
    close_side(&a);
    side b = open_side(engine, "b@127.0.0.1", TUMEN_EPMD_NONE, 0);
    assert_int_equal(tumen_node_stop(b.node), 0);
    await_event(&b, TUMEN_EVENT_STOPPED);
    close_side(&b);
    close_engine(engine);
}

/* Connects a nameless node; the name it gets, in text of at least 256 bytes. */
static void get_named(side *nameless, side *namer, char *name)
{
    assert_int_equal(
        tumen_node_connect(nameless->node, text("namer@127.0.0.1"), "127.0.0.1", port_of(namer)),
        0);
    const tumen_event *named = await_event(nameless, TUMEN_EVENT_NAMED);
    assert_true(named->node.len < 256);
    memcpy(name, named->node.ptr, named->node.len);
    name[named->node.len] = 0;
    const tumen_event *up = await_event(namer, TUMEN_EVENT_NODEUP);
    assert_true(same(up->node, name));
    assert_int_equal(up->number, 0); /* hidden */
}

static uint32_t creation_of(side *s)
{
    tumen_node_info info;
    assert_int_equal(tumen_node_get_info(s->node, &info), 0);
    return info.creation;
}

static void a_name_is_given_lost_with_its_giver_and_given_again(void **state)
{
    (void)state;
    tumen_engine *engine = open_engine();
    side namer = open_side(engine, "namer@127.0.0.1", TUMEN_EPMD_NONE, 0);
    side nameless = open_side(engine, "127.0.0.1", TUMEN_EPMD_NONE, 0);
    char first[256], second[256];
    tumen_key key;
    assert_int_equal(tumen_spawn(nameless.node, &key), TM_EUSE_STATE);
    get_named(&nameless, &namer, first);
    assert_non_null(strstr(first, "@127.0.0.1"));
    uint32_t creation = creation_of(&nameless);
    key = spawn(&nameless, "lost");
    assert_int_equal(tumen_node_disconnect(namer.node, text(first)), 0);
    assert_true(await_event(&nameless, TUMEN_EVENT_EXITED)->process == key);
    assert_true(same(await_event(&nameless, TUMEN_EVENT_NAMED)->node, "127.0.0.1"));
    assert_false(tumen_alive(nameless.node, key) == 1);
    await_event(&namer, TUMEN_EVENT_NODEDOWN);
    get_named(&nameless, &namer, second);
    assert_string_equal(first, second);
    assert_int_equal(creation_of(&nameless), creation + 1);
    assert_int_equal(tumen_whereis(nameless.node, text("lost")), 0);
    assert_false(tumen_whereis(nameless.node, text("net_kernel")) == 0);
    close_side(&nameless);
    close_side(&namer);
    close_engine(engine);
}

static void only_who_is_allowed_connects(void **state)
{
    (void)state;
    static const struct {
        const char *entry;
        int rc;
        bool lets_in;
    } CASES[] = {
        {"b@127.0.0.1", 0, true},
        {"127.0.0.1", 0, true},
        {"b@", 0, true},
        {"c@127.0.0.1", 0, false},
        {"127.0.0.2", 0, false},
        {"c@", 0, false},
        {"b", 0, false},
        {"", TM_EUSE_NAME, false},
        {"@", TM_EUSE_NAME, false},
        {"@host", TM_EUSE_NAME, false},
        {"b@@", TM_EUSE_NAME, false},
        {"b@c@d", TM_EUSE_NAME, false},
        {"a b", TM_EUSE_NAME, false},
    };
    tumen_engine *engine = open_engine();
    side b = open_side(engine, "b@127.0.0.1", TUMEN_EPMD_NONE, 0);
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        side a = open_side(engine, "a@127.0.0.1", TUMEN_EPMD_NONE, 0);
        assert_int_equal(tumen_node_allow(a.node, text(CASES[i].entry)), CASES[i].rc);
        if (CASES[i].lets_in) {
            join(&b, &a, "a@127.0.0.1");
        } else if (CASES[i].rc == 0) {
            uint16_t port = port_of(&a);
            assert_int_equal(tumen_node_connect(b.node, text("a@127.0.0.1"), "127.0.0.1", port), 0);
            const tumen_event *failed = await_event(&b, TUMEN_EVENT_CONNECT_FAILED);
            assert_int_equal(failed->code, TM_EPEER_REFUSED);
            failed = await_event(&a, TUMEN_EVENT_HANDSHAKE_FAILED);
            assert_true(same(failed->node, "b@127.0.0.1"));
            assert_int_equal(
                tumen_node_connect(a.node, text("b@127.0.0.1"), "127.0.0.1", port_of(&b)), 0);
            failed = await_event(&a, TUMEN_EVENT_CONNECT_FAILED);
            assert_int_equal(failed->code, TM_EPEER_NAME);
        }
        close_side(&a);
    }
    close_side(&b);
    tumen_node_options options = {.name = "a@127.0.0.1",
                                  .cookie = "a cookie of the tests",
                                  .allowed = "b@127.0.0.1 bad@@",
                                  .epmd_mode = TUMEN_EPMD_NONE};
    tumen_node *node;
    assert_int_equal(tumen_node_create(engine, &options, &node), TM_EUSE_NAME);
    close_engine(engine);
}

/* A command that comes while the engine is about to sleep is run before it does; what it tells at once
 * must not wait for the engine to wake. */
static void what_a_command_tells_is_told_although_the_engine_sleeps(void **state)
{
    pair *p = *state;
    assert_int_equal(tumen_node_allow(p->a.node, text("b@127.0.0.1")), 0);
    for (int round = 0; round < 500; round++) {
        /* The engine wakes for this one, and is on its way to sleep when the next one comes. */
        assert_int_equal(tumen_node_connect(p->b.node, text("c@127.0.0.1"), NULL, 0), 0);
        await_event(&p->b, TUMEN_EVENT_CONNECT_FAILED);
        int64_t start = now_ms();
        assert_int_equal(tumen_node_connect(p->a.node, text("c@127.0.0.1"), NULL, 0), 0);
        await_event(&p->a, TUMEN_EVENT_CONNECT_FAILED);
        assert_true(now_ms() - start < WAIT_MS / 2);
    }
}

static void a_disconnect_writes_first_what_was_queued(void **state)
{
    pair *p = *state;
    enum { COUNT = 50 };
    tumen_key to = spawn(&p->b, "sink");
    tumen_target target = name_target("b@127.0.0.1", "sink");
    static uint8_t large[32 * 1024] = {109, 0, 0, 127, 251};
    tumen_bytes message = {large, sizeof large};
    for (size_t i = 0; i < COUNT; i++) {
        unsigned control = i * sizeof large < 1000000 ? 0 : TUMEN_SEND_CONTROL;
        assert_int_equal(tumen_send(p->a.node, 0, &target, message, control), 0);
    }
    assert_int_equal(tumen_node_disconnect(p->a.node, text("b@127.0.0.1")), 0);
    for (int i = 0; i < COUNT; i++) {
        const tumen_event *event = await_event(&p->b, TUMEN_EVENT_MESSAGE);
        assert_int_equal(event->term.len, sizeof large);
        tumen_mail_taken(p->b.node, to, event->wire_bytes);
    }
    const tumen_event *down = await_event(&p->a, TUMEN_EVENT_NODEDOWN);
    assert_int_equal(down->number, 0);
    await_event(&p->b, TUMEN_EVENT_NODEDOWN);
    join(&p->a, &p->b, "b@127.0.0.1");
}

static void refuses_what_makes_no_sense(void **state)
{
    pair *p = *state;
    tumen_node *node;
    tumen_node_options options = {.name = "two@at@signs", .cookie = "a cookie of the tests"};
    assert_int_equal(tumen_node_create(p->engine, &options, &node), TM_EUSE_NAME);
    options.name = "x@127.0.0.1";
    options.cookie = "";
    assert_int_equal(tumen_node_create(p->engine, &options, &node), TM_EUSE_ARG);
    tumen_key key = spawn(&p->a, "taken");
    assert_int_equal(tumen_register(p->a.node, text("taken"), key), TM_ENAME_TAKEN);
    assert_int_equal(tumen_register(p->a.node, text("net_kernel"), key), TM_ENAME_TAKEN);
    assert_int_equal(tumen_node_set_limit(p->a.node, TUMEN_LIMIT_COUNT, 1), TM_EUSE_ARG);
    assert_int_equal(tumen_node_connect(p->a.node, text("a@127.0.0.1"), NULL, 0), TM_EUSE_NAME);
    tumen_target self = name_target("nonsense", "x");
    term t = {.len = 0};
    put_int(&t, 1);
    assert_int_equal(tumen_send(p->a.node, 0, &self, whole(&t), 0), TM_EUSE_NAME);
}

/* An object for a local process: at once, or in its place behind what waits. */
static void what_the_host_hands_over_keeps_its_place_and_is_counted(void **state)
{
    pair *p = *state;
    tumen_key from = spawn(&p->a, "from"), to = spawn(&p->a, "local");
    tumen_target sender_name = name_target("a@127.0.0.1", "from");
    tumen_target target = name_target("a@127.0.0.1", "local");
    tumen_target far = name_target("b@127.0.0.1", "local");
    tumen_target missing = name_target("a@127.0.0.1", "missing");
    tumen_local local;
    tumen_node_info info;
    tumen_batch_free(p->a.batch);
    p->a.batch = NULL;
    tumen_batch_free(tumen_node_take(p->a.node));
    assert_int_equal(tumen_send_local(p->a.node, from, &far, 1, 1, &local), TM_EUSE_ARG);
    assert_int_equal(tumen_send_local(p->a.node, from, &missing, 1, 1, &local), 0);
    assert_true(local.key == 0 && !local.waits);
    uint64_t most = tumen_node_limit(p->a.node, TUMEN_LIMIT_MESSAGE_BYTES);
    assert_int_equal(tumen_send_local(p->a.node, from, &target, most + 1, 1, &local),
                     TM_EUSE_LIMIT);
    assert_int_equal(tumen_send_local(p->a.node, from, &target, 100, 1, &local), 0);
    assert_true(local.key == to && !local.waits && !local.reply);

    term t = {.len = 0};
    put_int(&t, 1);
    assert_int_equal(tumen_send(p->a.node, from, &target, whole(&t), 0), 0);
    assert_int_equal(tumen_send_local(p->a.node, from, &target, 200, 2, &local), 0);
    assert_true(local.key == to && local.waits);
    tumen_ref ref;
    assert_int_equal(tumen_alias(p->a.node, to, TUMEN_ALIAS_REPLY, &ref), 0);
    tumen_target alias = {.kind = TUMEN_TO_REF, .ref = ref};
    assert_int_equal(tumen_send_local(p->a.node, from, &alias, 300, 3, &local), 0);
    assert_true(local.key == to && local.waits && !local.reply);
    assert_int_equal(tumen_send_local(p->a.node, from, &alias, 300, 4, &local), 0);
    assert_true(local.key == 0);
    assert_int_equal(tumen_monitor(p->a.node, to, &sender_name, TUMEN_MONITOR_ALIAS, &ref), 0);
    alias.ref = ref;
    assert_int_equal(tumen_send_local(p->a.node, from, &alias, 400, 5, &local), 0);
    assert_true(local.key == to && local.waits && local.reply);
    assert_int_equal(tumen_node_get_info(p->a.node, &info), 0);
    assert_int_equal(info.mail_bytes, 100 + t.len + 200 + 300);

    assert_int_equal(await_event(&p->a, TUMEN_EVENT_MESSAGE)->wire_bytes, t.len);
    for (int number = 2; number <= 5; number++) {
        if (number == 4) continue;
        const tumen_event *event = await_event(&p->a, TUMEN_EVENT_LOCAL);
        tumen_pid sender;
        assert_int_equal(tumen_pid_of(p->a.node, from, &sender), 0);
        assert_true(event->process == to && event->from.id == sender.id);
        assert_int_equal(event->number, number);
        assert_int_equal(event->wire_bytes, number == 5 ? 0 : number * 100);
    }
    tumen_mail_taken(p->a.node, to, 100 + t.len + 200 + 300);
    assert_int_equal(tumen_node_get_info(p->a.node, &info), 0);
    assert_int_equal(info.mail_bytes, 0);
}

static void a_forked_child_is_refused_and_the_parent_goes_on(void **state)
{
    pair *p = *state;
    pid_t child = fork();
    if (child == 0) {
        tumen_engine_forked(p->engine);
        tumen_key key;
        _exit(tumen_spawn(p->a.node, &key) == TM_EFORKED ? 0 : 1);
    }
    int status;
    assert_true(waitpid(child, &status, 0) == child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    a_ping_is_answered_by_the_core(state);
}

int main(int argc, char **argv)
{
    const char *leg = use_leg(argc, argv);
    const struct CMUnitTest tests[] = {
        WITH_PAIR(messages_arrive_in_order_by_name_and_by_pid),
        WITH_PAIR(a_large_message_arrives_whole_and_lent_memory_comes_back),
        WITH_PAIR(a_ping_is_answered_by_the_core),
        WITH_PAIR(a_monitor_tells_noproc_the_reason_and_noconnection),
        WITH_PAIR(a_send_reconnects),
        WITH_PAIR(a_failed_connect_tells_what_was_lost),
        WITH_PAIR(links_break_both_ways),
        WITH_PAIR(busy_at_the_high_water_and_writable_below_the_low),
        WITH_PAIR(a_full_mailbox_ends_its_process_alone),
        cmocka_unit_test(an_engine_ends_with_its_nodes_open),
        cmocka_unit_test(a_stopped_node_takes_its_commands_with_it),
        cmocka_unit_test(a_name_is_given_lost_with_its_giver_and_given_again),
        cmocka_unit_test(only_who_is_allowed_connects),
        WITH_PAIR(what_a_command_tells_is_told_although_the_engine_sleeps),
        WITH_PAIR(a_disconnect_writes_first_what_was_queued),
        WITH_PAIR(refuses_what_makes_no_sense),
        WITH_PAIR(what_the_host_hands_over_keeps_its_place_and_is_counted),
        WITH_PAIR(a_forked_child_is_refused_and_the_parent_goes_on),
    };
    return _cmocka_run_group_tests(leg, tests, sizeof tests / sizeof *tests, NULL, NULL);
}
