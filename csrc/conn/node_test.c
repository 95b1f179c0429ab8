/* Nodes against each other through tumen.h, under every backend and driver. Real peers are in
 * tests/live; here two of ours meet, so that a fault of the core shows without Python or a BEAM. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <netinet/in.h>
#include <unistd.h>

#include "../dist/handshake.h"
#include "../tumen.h"

#define WAIT_MS 10000

static int backend_in_use;
static int driver_in_use;

static tumen_bytes text(const char *s) { return (tumen_bytes){(const uint8_t *)s, strlen(s)}; }

static bool same(tumen_bytes a, const char *s)
{
    return a.len == strlen(s) && memcmp(a.ptr, s, a.len) == 0;
}

/* -- terms by hand ---------------------------------------------------------------------------------- */

typedef struct term {
    uint8_t bytes[512];
    size_t len;
} term;

static void put(term *t, const void *bytes, size_t len)
{
    assert_true(t->len + len <= sizeof t->bytes);
    memcpy(t->bytes + t->len, bytes, len);
    t->len += len;
}

static void put_u8(term *t, unsigned v)
{
    uint8_t byte = (uint8_t)v;
    put(t, &byte, 1);
}

static void put_u32(term *t, uint32_t v)
{
    uint8_t b[4] = {(uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
    put(t, b, 4);
}

static void put_atom(term *t, tumen_bytes name)
{
    put_u8(t, 119);
    put_u8(t, (unsigned)name.len);
    put(t, name.ptr, name.len);
}

static void put_int(term *t, uint32_t v)
{
    put_u8(t, 98);
    put_u32(t, v);
}

static void put_pid(term *t, const tumen_pid *pid)
{
    put_u8(t, 88);
    put_atom(t, pid->node);
    put_u32(t, pid->id);
    put_u32(t, pid->serial);
    put_u32(t, pid->creation);
}

static void put_ref(term *t, const tumen_ref *ref)
{
    put_u8(t, 90);
    put_u8(t, 0);
    put_u8(t, ref->count);
    put_atom(t, ref->node);
    put_u32(t, ref->creation);
    for (uint32_t i = 0; i < ref->count; i++) put_u32(t, ref->words[i]);
}

static tumen_bytes whole(const term *t) { return (tumen_bytes){t->bytes, t->len}; }

/* -- a node and its events --------------------------------------------------------------------------- */

typedef struct side {
    tumen_node *node;
    tumen_engine *engine;
    tumen_batch *batch;
} side;

static side open_side(tumen_engine *engine, const char *name, int epmd_mode, uint16_t epmd_port)
{
    tumen_node_options options = {.name = name,
                                  .cookie = "a cookie of the tests",
                                  .listen = 1,
                                  .epmd_mode = epmd_mode,
                                  .epmd_port = epmd_port};
    side s = {.engine = engine};
    assert_int_equal(tumen_node_create(engine, &options, &s.node), 0);
    return s;
}

static void close_side(side *s)
{
    tumen_batch_free(s->batch);
    s->batch = NULL;
    tumen_node_destroy(s->node);
    s->node = NULL;
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* The next event of one kind; others are passed over. Fails the test after WAIT_MS. */
static const tumen_event *await_event(side *s, int kind)
{
    int64_t end = now_ms() + WAIT_MS;
    for (;;) {
        if (!s->batch) s->batch = tumen_node_take(s->node);
        const tumen_event *event = s->batch ? tumen_batch_next(s->batch) : NULL;
        if (event && event->kind == kind) return event;
        if (event) continue;
        tumen_batch_free(s->batch);
        s->batch = NULL;
        if (tumen_node_arm(s->node)) continue;
        int64_t left = end - now_ms();
        if (left <= 0) fail_msg("no event of kind %d came", kind);
        if (driver_in_use == TUMEN_DRIVER_HOST) {
            assert_int_equal(tumen_engine_step(s->engine, 10 * 1000 * 1000), 0);
            continue;
        }
        struct pollfd fds[2] = {{.fd = tumen_node_event_fd(s->node), .events = POLLIN},
                                {.fd = tumen_engine_poll_fd(s->engine), .events = POLLIN}};
        poll(fds, driver_in_use == TUMEN_DRIVER_LOOP ? 2 : 1, (int)left);
        if (driver_in_use == TUMEN_DRIVER_LOOP)
            assert_int_equal(tumen_engine_step(s->engine, 0), 0);
    }
}

static tumen_engine *open_engine(void)
{
    tumen_engine_options options = {.backend = backend_in_use, .driver = driver_in_use};
    tumen_engine *engine = NULL;
    int rc = tumen_engine_create(&options, &engine);
    if (rc) fail_msg("engine: %s", tumen_error_text(rc));
    return engine;
}

static void close_engine(tumen_engine *engine) { tumen_engine_destroy(engine); }

static uint16_t port_of(side *s)
{
    tumen_node_info info;
    assert_int_equal(tumen_node_get_info(s->node, &info), 0);
    return info.port;
}

static void join(side *a, side *b, const char *name_of_b)
{
    assert_int_equal(tumen_node_connect(a->node, text(name_of_b), "127.0.0.1", port_of(b)), 0);
    const tumen_event *up = await_event(a, TUMEN_EVENT_NODEUP);
    assert_true(same(up->node, name_of_b));
    await_event(b, TUMEN_EVENT_NODEUP);
}

typedef struct pair {
    tumen_engine *engine;
    side a, b;
} pair;

static int open_pair(void **state)
{
    pair *p = calloc(1, sizeof *p);
    p->engine = open_engine();
    p->a = open_side(p->engine, "a@127.0.0.1", TUMEN_EPMD_NONE, 0);
    p->b = open_side(p->engine, "b@127.0.0.1", TUMEN_EPMD_NONE, 0);
    join(&p->a, &p->b, "b@127.0.0.1");
    *state = p;
    return 0;
}

static int close_pair(void **state)
{
    pair *p = *state;
    close_side(&p->a);
    close_side(&p->b);
    tumen_counters counters;
    tumen_engine_counters(p->engine, &counters);
    assert_int_equal(counters.sockets, 0);
    close_engine(p->engine);
    free(p);
    return 0;
}

static tumen_target name_target(const char *node, const char *name)
{
    return (tumen_target){.kind = TUMEN_TO_NAME, .node = text(node), .name = text(name)};
}

static tumen_target pid_target(const tumen_pid *pid)
{
    return (tumen_target){.kind = TUMEN_TO_PID, .pid = *pid};
}

static tumen_key spawn(side *s, const char *name)
{
    tumen_key key = 0;
    assert_int_equal(tumen_spawn(s->node, &key), 0);
    if (name) assert_int_equal(tumen_register(s->node, text(name), key), 0);
    return key;
}

/* -- tests --------------------------------------------------------------------------------------------- */

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

static void nodes_find_each_other_through_the_embedded_port_mapper(void **state)
{
    (void)state;
    tumen_engine *engine = open_engine();
    /* A port that was free a moment ago: bound to and released. */
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001)};
    socklen_t len = sizeof address;
    assert_int_equal(bind(fd, (struct sockaddr *)&address, len), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &len), 0);
    close(fd);
    uint16_t port = ntohs(address.sin_port);
    side a = open_side(engine, "a@127.0.0.1", TUMEN_EPMD_USE, port);
    assert_int_equal(await_event(&a, TUMEN_EVENT_REGISTERED)->number, 1);
    side b = open_side(engine, "b@127.0.0.1", TUMEN_EPMD_USE, port);
    assert_int_equal(await_event(&b, TUMEN_EVENT_REGISTERED)->number, 0);
    assert_int_equal(tumen_node_connect(a.node, text("b@127.0.0.1"), NULL, 0), 0);
    await_event(&a, TUMEN_EVENT_NODEUP);
    await_event(&b, TUMEN_EVENT_NODEUP);
    side clash = open_side(engine, "b@127.0.0.1", TUMEN_EPMD_USE, port);
    assert_int_equal(await_event(&clash, TUMEN_EVENT_REGISTER_FAILED)->code, TM_ENAME_TAKEN);
    close_side(&clash);
    close_side(&a);
    await_event(&b, TUMEN_EVENT_NODEDOWN);
    close_side(&b);
    close_engine(engine);
}

static void a_wrong_cookie_connects_nobody(void **state)
{
    (void)state;
    tumen_engine *engine = open_engine();
    side a = open_side(engine, "a@127.0.0.1", TUMEN_EPMD_NONE, 0);
    side b = open_side(engine, "b@127.0.0.1", TUMEN_EPMD_NONE, 0);
    assert_int_equal(
        tumen_node_set_cookie(a.node, text("b@127.0.0.1"), text("not the same secret")), 0);
    assert_int_equal(tumen_node_connect(a.node, text("b@127.0.0.1"), "127.0.0.1", port_of(&b)), 0);
    assert_int_equal(await_event(&a, TUMEN_EVENT_CONNECT_FAILED)->code, TM_EPEER_COOKIE);
    const tumen_event *event = await_event(&b, TUMEN_EVENT_HANDSHAKE_FAILED);
    assert_int_equal(event->code, TM_EPEER_COOKIE);
    assert_true(same(event->node, "a@127.0.0.1"));
    close_side(&a);
    close_side(&b);
    close_engine(engine);
}

static void both_dialling_at_once_gives_one_connection(void **state)
{
    (void)state;
    tumen_engine *engine = open_engine();
    side a = open_side(engine, "a@127.0.0.1", TUMEN_EPMD_NONE, 0);
    side b = open_side(engine, "b@127.0.0.1", TUMEN_EPMD_NONE, 0);
    for (int round = 0; round < 50; round++) {
        int first = tumen_node_connect(a.node, text("b@127.0.0.1"), "127.0.0.1", port_of(&b));
        int second = tumen_node_connect(b.node, text("a@127.0.0.1"), "127.0.0.1", port_of(&a));
        assert_true(first >= 0 && second >= 0);
        await_event(&a, TUMEN_EVENT_NODEUP);
        await_event(&b, TUMEN_EVENT_NODEUP);
        assert_int_equal(tumen_node_disconnect(a.node, text("b@127.0.0.1")), 0);
        await_event(&a, TUMEN_EVENT_NODEDOWN);
        await_event(&b, TUMEN_EVENT_NODEDOWN);
    }
    close_side(&a);
    close_side(&b);
    close_engine(engine);
}

/* -- a peer by hand ---------------------------------------------------------------------------------- */

static void set_port(struct sockaddr_in *address, uint16_t port)
{
    *address = (struct sockaddr_in){
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(0x7f000001), .sin_port = htons(port)};
}

/* A socket that listens, and its port. */
static int listen_by_hand(uint16_t *port)
{
    struct sockaddr_in address;
    socklen_t len = sizeof address;
    set_port(&address, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, len), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &len), 0);
    *port = ntohs(address.sin_port);
    return fd;
}

static int dial_by_hand(uint16_t port)
{
    struct sockaddr_in address;
    set_port(&address, port);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

/* Waits until the socket has something; the engine runs meanwhile. */
static void await_socket(side *s, int fd)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    bool drive = driver_in_use != TUMEN_DRIVER_THREAD;
    for (int64_t end = now_ms() + WAIT_MS; poll(&poller, 1, drive ? 0 : WAIT_MS) == 0;) {
        if (now_ms() > end) fail_msg("the node said nothing");
        if (drive) assert_int_equal(tumen_engine_step(s->engine, 1000 * 1000), 0);
    }
}

static bool is_silent(int fd)
{
    uint8_t byte;
    return recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && errno == EAGAIN;
}

typedef struct caller {
    int fd;
    tm_handshake hs;
    tm_alloc alloc;
    tm_buf out;
} caller;

static void caller_open(caller *c, side *to, const char *name)
{
    tm_handshake_config config = {
        .name = tm_bytes_of(name, strlen(name)),
        .creation = 7,
        .flags = TM_DFLAGS_OURS,
        .challenge = 12345,
        .expected_name = TM_BYTES("a@127.0.0.1"),
        .cookie = TM_BYTES("a cookie of the tests"),
    };
    c->alloc = tm_alloc_libc(NULL);
    tm_buf_init(&c->out, &c->alloc, 1 << 16);
    assert_int_equal(tm_handshake_init(&c->hs, TM_HANDSHAKE_INITIATOR, &config), 0);
    assert_int_equal(tm_handshake_start(&c->hs, &c->out), 0);
    c->fd = dial_by_hand(port_of(to));
}

/* Goes on with the handshake until `event`. */
static void caller_run(caller *c, side *to, int event)
{
    for (;;) {
        assert_int_equal(send(c->fd, c->out.ptr, c->out.len, 0), (ssize_t)c->out.len);
        c->out.len = 0;
        if (event == 0) return;
        await_socket(to, c->fd);
        uint8_t bytes[512];
        ssize_t got = recv(c->fd, bytes, sizeof bytes, 0);
        assert_true(got > 0);
        tm_bytes input = tm_bytes_of(bytes, (size_t)got);
        int seen = tm_handshake_feed(&c->hs, &input, &c->out);
        assert_true(seen >= 0);
        if (seen == event) event = 0;
    }
}

static void caller_close(caller *c)
{
    close(c->fd);
    tm_handshake_fini(&c->hs);
    tm_buf_fini(&c->out);
}

/* Node a dials a peer b, which reads its name late: b dials meanwhile, and both have the cookie.
 * handshake_ms: of a, from after its own attempt has begun. */
typedef struct crossing {
    tumen_engine *engine;
    side a;
    int attempt; /* b's end of a's attempt */
    caller b;
} crossing;

static void cross(crossing *x, uint64_t handshake_ms)
{
    x->engine = open_engine();
    x->a = open_side(x->engine, "a@127.0.0.1", TUMEN_EPMD_NONE, 0);
    assert_int_equal(tumen_node_set_limit(x->a.node, TUMEN_LIMIT_HANDSHAKE_MS, 60000), 0);
    uint16_t port;
    int listener = listen_by_hand(&port);
    assert_int_equal(tumen_node_connect(x->a.node, text("b@127.0.0.1"), "127.0.0.1", port), 0);
    await_socket(&x->a, listener);
    x->attempt = accept(listener, NULL, NULL);
    assert_true(x->attempt >= 0);
    close(listener);
    await_socket(&x->a, x->attempt);
    uint8_t name[512];
    assert_true(recv(x->attempt, name, sizeof name, 0) > 0);
    assert_int_equal(tumen_node_set_limit(x->a.node, TUMEN_LIMIT_HANDSHAKE_MS, handshake_ms), 0);
    caller_open(&x->b, &x->a, "b@127.0.0.1");
    caller_run(&x->b, &x->a, TM_HANDSHAKE_CHALLENGED);
}

static void uncross(crossing *x)
{
    caller_close(&x->b);
    close(x->attempt);
    close_side(&x->a);
    close_engine(x->engine);
}

/* The lesser name's attempt gives way, and a BEAM that read its name afterwards would take it for a new
 * connection: it would tell `nok` to the next one and lose what its processes had sent. */
static void nothing_is_left_of_our_attempt_when_the_peers_own_is_accepted(void **state)
{
    (void)state;
    static const char *const ANSWERS[] = {"\0\4snok", "\0\3sok", "\0\20sok_simultaneous"};
    static const size_t SIZES[] = {6, 5, 18};
    for (size_t i = 0; i < sizeof SIZES / sizeof *SIZES; i++) {
        crossing x;
        cross(&x, 60000);
        /* By the time that a later caller is connected, b's digest has been read, too. */
        caller later;
        caller_open(&later, &x.a, "c@127.0.0.1");
        caller_run(&later, &x.a, TM_HANDSHAKE_CONNECTED);
        assert_true(same(await_event(&x.a, TUMEN_EVENT_NODEUP)->node, "c@127.0.0.1"));
        assert_true(is_silent(x.b.fd));
        assert_true(is_silent(x.attempt));
        assert_int_equal(send(x.attempt, ANSWERS[i], SIZES[i], 0), (ssize_t)SIZES[i]);
        caller_run(&x.b, &x.a, TM_HANDSHAKE_CONNECTED);
        assert_true(same(await_event(&x.a, TUMEN_EVENT_NODEUP)->node, "b@127.0.0.1"));
        await_socket(&x.a, x.attempt);
        uint8_t byte;
        assert_int_equal(recv(x.attempt, &byte, 1, 0), 0);
        caller_close(&later);
        uncross(&x);
    }
}

/* One that calls before it answers, as a node with one thread may. */
static void a_peer_that_never_answers_our_attempt_is_accepted(void **state)
{
    (void)state;
    crossing x;
    cross(&x, 2000);
    caller_run(&x.b, &x.a, TM_HANDSHAKE_CONNECTED);
    await_event(&x.a, TUMEN_EVENT_NODEUP);
    uncross(&x);
}

static void a_peer_whose_listener_hangs_up_is_accepted(void **state)
{
    (void)state;
    crossing x;
    cross(&x, 60000);
    assert_int_equal(shutdown(x.attempt, SHUT_RDWR), 0);
    caller_run(&x.b, &x.a, TM_HANDSHAKE_CONNECTED);
    await_event(&x.a, TUMEN_EVENT_NODEUP);
    uncross(&x);
}

/* The engine sleeps past the length of a deadline: one that is armed by what wakes it starts then. */
static void a_deadline_does_not_start_before_its_handshake(void **state)
{
    (void)state;
    tumen_engine *engine = open_engine();
    side a = open_side(engine, "a@127.0.0.1", TUMEN_EPMD_NONE, 0);
    side b = open_side(engine, "b@127.0.0.1", TUMEN_EPMD_NONE, 0);
    assert_int_equal(tumen_node_set_limit(b.node, TUMEN_LIMIT_HANDSHAKE_MS, 200), 0);
    poll(NULL, 0, 400); /* time itself is what is tested */
    join(&a, &b, "b@127.0.0.1");
    close_side(&a);
    close_side(&b);
    close_engine(engine);
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

#define WITH_PAIR(test) cmocka_unit_test_setup_teardown(test, open_pair, close_pair)

static int run_all(const char *name)
{
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
        cmocka_unit_test(nodes_find_each_other_through_the_embedded_port_mapper),
        cmocka_unit_test(a_wrong_cookie_connects_nobody),
        cmocka_unit_test(both_dialling_at_once_gives_one_connection),
        cmocka_unit_test(nothing_is_left_of_our_attempt_when_the_peers_own_is_accepted),
        cmocka_unit_test(a_peer_that_never_answers_our_attempt_is_accepted),
        cmocka_unit_test(a_peer_whose_listener_hangs_up_is_accepted),
        cmocka_unit_test(a_deadline_does_not_start_before_its_handshake),
        cmocka_unit_test(an_engine_ends_with_its_nodes_open),
        cmocka_unit_test(a_stopped_node_takes_its_commands_with_it),
        cmocka_unit_test(a_name_is_given_lost_with_its_giver_and_given_again),
        cmocka_unit_test(only_who_is_allowed_connects),
        WITH_PAIR(a_disconnect_writes_first_what_was_queued),
        WITH_PAIR(refuses_what_makes_no_sense),
        WITH_PAIR(what_the_host_hands_over_keeps_its_place_and_is_counted),
        WITH_PAIR(a_forked_child_is_refused_and_the_parent_goes_on),
    };
    return _cmocka_run_group_tests(name, tests, sizeof tests / sizeof *tests, NULL, NULL);
}

/* argv[1]: uring, epoll, loop or host; none: epoll. */
int main(int argc, char **argv)
{
    const char *leg = argc > 1 ? argv[1] : "epoll";
    backend_in_use = TUMEN_BACKEND_EPOLL;
    driver_in_use = TUMEN_DRIVER_THREAD;
    if (!strcmp(leg, "uring")) backend_in_use = TUMEN_BACKEND_URING;
    if (!strcmp(leg, "loop")) driver_in_use = TUMEN_DRIVER_LOOP;
    if (!strcmp(leg, "host")) driver_in_use = TUMEN_DRIVER_HOST;
    return run_all(leg);
}
