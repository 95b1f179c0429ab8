/* How two nodes find each other and become connected, under every backend and driver: through the port
 * mapper, against a wrong cookie, and when both dial at once. */
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../base/map.h"
#include "../dist/handshake.h"
#include "testing.h"

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

/* -- many ------------------------------------------------------------------------------------------- */

/* Slots of maps that were looked at by whoever walks over one: the linker puts this in its place. */
static size_t slots_seen;

void *__real_tm_map_next(const tm_map *map, size_t *position);
void *__wrap_tm_map_next(const tm_map *map, size_t *position);

void *__wrap_tm_map_next(const tm_map *map, size_t *position)
{
    size_t before = *position;
    void *value = __real_tm_map_next(map, position);
    __atomic_fetch_add(&slots_seen, *position - before, __ATOMIC_RELAXED);
    return value;
}

static void a_node_that_dials_many_stops_in_few_walks_over_its_peers(void **state)
{
    (void)state;
    enum { COUNT = 200 };
    tumen_engine *engine = open_engine();
    side a = open_side(engine, "a@127.0.0.1", TUMEN_EPMD_NONE, 0);
    uint16_t port;
    int listener = listen_by_hand(&port); /* accepts nobody */
    for (int i = 0; i < COUNT; i++) {
        char name[64];
        snprintf(name, sizeof name, "peer%d@127.0.0.1", i);
        assert_int_equal(tumen_node_connect(a.node, text(name), "127.0.0.1", port), 0);
    }
    /* Returns when the engine has come to it: all attempts are under way then. */
    assert_int_equal(tumen_node_set_limit(a.node, TUMEN_LIMIT_TICK_TIME_MS, 30000), 0);
    __atomic_store_n(&slots_seen, 0, __ATOMIC_RELAXED);
    assert_int_equal(tumen_node_stop(a.node), 0);
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(await_event(&a, TUMEN_EVENT_CONNECT_FAILED)->code, TM_ECLOSED);
    await_event(&a, TUMEN_EVENT_STOPPED);
    assert_in_range(__atomic_load_n(&slots_seen, __ATOMIC_RELAXED), COUNT, 16 * COUNT);
    close_side(&a);
    close(listener);
    close_engine(engine);
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

int main(int argc, char **argv)
{
    const char *leg = use_leg(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nodes_find_each_other_through_the_embedded_port_mapper),
        cmocka_unit_test(a_wrong_cookie_connects_nobody),
        cmocka_unit_test(both_dialling_at_once_gives_one_connection),
        cmocka_unit_test(nothing_is_left_of_our_attempt_when_the_peers_own_is_accepted),
        cmocka_unit_test(a_peer_that_never_answers_our_attempt_is_accepted),
        cmocka_unit_test(a_peer_whose_listener_hangs_up_is_accepted),
        cmocka_unit_test(a_node_that_dials_many_stops_in_few_walks_over_its_peers),
        cmocka_unit_test(a_deadline_does_not_start_before_its_handshake),
    };
    return _cmocka_run_group_tests(leg, tests, sizeof tests / sizeof *tests, NULL, NULL);
}
