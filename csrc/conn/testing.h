/* For the tests of nodes against each other: terms written by hand, and pairs of nodes under the backend and
 * driver that the program's argument names. */
#ifndef TM_CONN_TESTING_H
#define TM_CONN_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../tumen.h"

#define WAIT_MS 10000

static int backend_in_use;
static int driver_in_use;

static inline tumen_bytes text(const char *s)
{
    return (tumen_bytes){(const uint8_t *)s, strlen(s)};
}

static inline bool same(tumen_bytes a, const char *s)
{
    return a.len == strlen(s) && memcmp(a.ptr, s, a.len) == 0;
}

/* -- terms by hand ---------------------------------------------------------------------------------- */

typedef struct term {
    uint8_t bytes[512];
    size_t len;
} term;

static inline void put(term *t, const void *bytes, size_t len)
{
    assert_true(t->len + len <= sizeof t->bytes);
    memcpy(t->bytes + t->len, bytes, len);
    t->len += len;
}

static inline void put_u8(term *t, unsigned v)
{
    uint8_t byte = (uint8_t)v;
    put(t, &byte, 1);
}

static inline void put_u32(term *t, uint32_t v)
{
    uint8_t b[4] = {(uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
    put(t, b, 4);
}

static inline void put_atom(term *t, tumen_bytes name)
{
    put_u8(t, 119);
    put_u8(t, (unsigned)name.len);
    put(t, name.ptr, name.len);
}

static inline void put_int(term *t, uint32_t v)
{
    put_u8(t, 98);
    put_u32(t, v);
}

static inline void put_pid(term *t, const tumen_pid *pid)
{
    put_u8(t, 88);
    put_atom(t, pid->node);
    put_u32(t, pid->id);
    put_u32(t, pid->serial);
    put_u32(t, pid->creation);
}

static inline void put_ref(term *t, const tumen_ref *ref)
{
    put_u8(t, 90);
    put_u8(t, 0);
    put_u8(t, ref->count);
    put_atom(t, ref->node);
    put_u32(t, ref->creation);
    for (uint32_t i = 0; i < ref->count; i++) put_u32(t, ref->words[i]);
}

static inline tumen_bytes whole(const term *t) { return (tumen_bytes){t->bytes, t->len}; }

/* -- a node and its events --------------------------------------------------------------------------- */

typedef struct side {
    tumen_node *node;
    tumen_engine *engine;
    tumen_batch *batch;
} side;

static inline side open_side(tumen_engine *engine, const char *name, int epmd_mode,
                             uint16_t epmd_port)
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

static inline void close_side(side *s)
{
    tumen_batch_free(s->batch);
    s->batch = NULL;
    tumen_node_destroy(s->node);
    s->node = NULL;
}

static inline int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* The next event of one kind; others are passed over. Fails the test after WAIT_MS. */
static inline const tumen_event *await_event(side *s, int kind)
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

static inline tumen_engine *open_engine(void)
{
    tumen_engine_options options = {.backend = backend_in_use, .driver = driver_in_use};
    tumen_engine *engine = NULL;
    int rc = tumen_engine_create(&options, &engine);
    if (rc) fail_msg("engine: %s", tumen_error_text(rc));
    return engine;
}

static inline void close_engine(tumen_engine *engine) { tumen_engine_destroy(engine); }

static inline uint16_t port_of(side *s)
{
    tumen_node_info info;
    assert_int_equal(tumen_node_get_info(s->node, &info), 0);
    return info.port;
}

static inline void join(side *a, side *b, const char *name_of_b)
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

static inline int open_pair(void **state)
{
    pair *p = calloc(1, sizeof *p);
    p->engine = open_engine();
    p->a = open_side(p->engine, "a@127.0.0.1", TUMEN_EPMD_NONE, 0);
    p->b = open_side(p->engine, "b@127.0.0.1", TUMEN_EPMD_NONE, 0);
    join(&p->a, &p->b, "b@127.0.0.1");
    *state = p;
    return 0;
}

static inline int close_pair(void **state)
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

static inline tumen_target name_target(const char *node, const char *name)
{
    return (tumen_target){.kind = TUMEN_TO_NAME, .node = text(node), .name = text(name)};
}

static inline tumen_target pid_target(const tumen_pid *pid)
{
    return (tumen_target){.kind = TUMEN_TO_PID, .pid = *pid};
}

static inline tumen_key spawn(side *s, const char *name)
{
    tumen_key key = 0;
    assert_int_equal(tumen_spawn(s->node, &key), 0);
    if (name) assert_int_equal(tumen_register(s->node, text(name), key), 0);
    return key;
}

/* argv[1]: uring, epoll, loop or host; none: epoll. What it says. */
static inline const char *use_leg(int argc, char **argv)
{
    const char *leg = argc > 1 ? argv[1] : "epoll";
    backend_in_use = TUMEN_BACKEND_EPOLL;
    driver_in_use = TUMEN_DRIVER_THREAD;
    if (!strcmp(leg, "uring")) backend_in_use = TUMEN_BACKEND_URING;
    if (!strcmp(leg, "loop")) driver_in_use = TUMEN_DRIVER_LOOP;
    if (!strcmp(leg, "host")) driver_in_use = TUMEN_DRIVER_HOST;
    return leg;
}

#define WITH_PAIR(test) cmocka_unit_test_setup_teardown(test, open_pair, close_pair)

#endif
