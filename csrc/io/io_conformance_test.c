/* One suite for every backend: `io_conformance_test uring|epoll|mem`, or all three without an
 * argument. The fake network runs it kind and then hostile under several seeds; TM_SEED adds
 * one. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "io_bulk_test.h"

/* What runs without an argument; the suite is included elsewhere for one backend. */
#ifndef BACKEND_DEFAULT
#define BACKEND_DEFAULT ""
#endif
/* With many sockets read at once, the ring's buffers run out, or else its queue overflows. */
#ifndef OVERFLOWS_EXPECTED
#define OVERFLOWS_EXPECTED false
#endif

/* Set by main before each run of the suite. */
static const char *backend;
static const tm_mem_options *net_options;

static bool kernel(void) { return strcmp(backend, "mem") != 0; }

static int set_up(void **state)
{
    fixture *f = fixture_create(backend, net_options);
    assert_int_equal(fixture_io_create(f, 4096), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture_destroy(*state);
    return 0;
}

/* -- streams ---------------------------------------------------------------------------------- */

static void echo_returns_small_messages_in_order(void **state)
{
    fixture *f = *state;
    f->accept_reads = f->accept_echoes = true;
    end *other;
    end *e = pair_make(f, &other);
    read_start(f, e);
    for (int i = 0; i < 10; i++) {
        size_t before = e->received_bytes;
        end_send(f, e, "ping!");
        RUN_UNTIL(f, e->received_bytes == before + 5 && !e->in_flight);
    }
    assert_memory_equal(e->text, "ping!ping!ping!", 15);
    assert_int_equal(other->received_bytes, 50);
}

static void echo_returns_megabytes_in_order(void **state)
{
    fixture *f = *state;
    size_t bytes = kernel() ? 24 * TM_MIB : 2 * TM_MIB;
    f->accept_reads = f->accept_echoes = f->accept_verifies = true;
    end *other;
    end *e = pair_make(f, &other);
    e->verifies = true;
    read_start(f, e);
    stream_start(f, e, bytes, 7);
    RUN_UNTIL(f, e->received_bytes == bytes);
    assert_int_equal(other->received_bytes, bytes);
}

static void both_directions_stream_at_once(void **state)
{
    fixture *f = *state;
    size_t bytes = kernel() ? 16 * TM_MIB : 1 * TM_MIB;
    end *other;
    end *e = pair_make(f, &other);
    e->verifies = other->verifies = true;
    read_start(f, e);
    read_start(f, other);
    stream_start(f, e, bytes, 1);
    stream_start(f, other, bytes, TM_SEND_BATCH_SEGMENTS);
    RUN_UNTIL(f, e->received_bytes == bytes && other->received_bytes == bytes);
}

static void bytes_that_wait_for_read_start_arrive_then(void **state)
{
    fixture *f = *state;
    end *other;
    end *e = pair_make(f, &other);
    end_send(f, e, "early");
    RUN_UNTIL(f, e->sent_bytes == 5);
    fixture_settle(f);
    assert_int_equal(other->received_bytes, 0);
    read_start(f, other);
    read_start(f, other);
    RUN_UNTIL(f, other->received_bytes == 5);
    assert_memory_equal(other->text, "early", 5);
}

static void send_now_and_send_keep_their_order(void **state)
{
    fixture *f = *state;
    end *other;
    end *e = pair_make(f, &other);
    other->verifies = true;
    read_start(f, other);
    size_t total = 0;
    for (int round = 0; round < 20; round++) {
        struct iovec iov[2] = {{(void *)(uintptr_t)pattern_at(f, total), 3},
                               {(void *)(uintptr_t)pattern_at(f, total + 3), 1000}};
        ssize_t now = f->io->ops->send_now(f->io, e->id, iov, 2);
        assert_true(now >= 0 && now <= 1003);
        total += (size_t)now;
        struct iovec next = {(void *)(uintptr_t)pattern_at(f, total), 500};
        assert_int_equal(f->io->ops->send(f->io, e->id, &next, 1), 0);
        e->in_flight = true;
        assert_int_equal(f->io->ops->send_now(f->io, e->id, iov, 1), TM_EUSE_STATE);
        size_t before = e->sent_bytes;
        RUN_UNTIL(f, !e->in_flight);
        total += e->sent_bytes - before;
    }
    RUN_UNTIL(f, other->received_bytes == total);
}

static void send_now_answers_zero_when_the_socket_is_full(void **state)
{
    fixture *f = *state;
    end *other;
    end *e = pair_make(f, &other);
    other->verifies = true;
    size_t total = 0;
    for (ssize_t rc = 1; rc; total += (size_t)rc) {
        struct iovec iov = {(void *)(uintptr_t)pattern_at(f, total), STREAM_PIECE};
        rc = f->io->ops->send_now(f->io, e->id, &iov, 1);
        assert_true(rc >= 0);
    }
    e->sent_bytes = total;
    stream_start(f, e, 2 * STREAM_PIECE, 1);
    read_start(f, other);
    RUN_UNTIL(f, other->received_bytes == total + 2 * STREAM_PIECE);
}

static void send_refuses_what_it_cannot_do(void **state)
{
    fixture *f = *state;
    const tm_io_ops *ops = f->io->ops;
    end *other;
    end *e = pair_make(f, &other);
    char text[] = "text";
    struct iovec iov[TM_SEND_BATCH_SEGMENTS + 1];
    for (int i = 0; i <= TM_SEND_BATCH_SEGMENTS; i++) iov[i] = (struct iovec){text, 1};
    assert_int_equal(ops->send(f->io, e->id, iov, 0), TM_EUSE_ARG);
    assert_int_equal(ops->send(f->io, e->id, iov, -1), TM_EUSE_ARG);
    assert_int_equal(ops->send(f->io, e->id, iov, TM_SEND_BATCH_SEGMENTS + 1), TM_EUSE_ARG);
    struct iovec empty[2] = {{text, 0}, {NULL, 0}};
    assert_int_equal(ops->send(f->io, e->id, empty, 2), TM_EUSE_ARG);
    assert_int_equal(ops->send(f->io, e->id, iov, TM_SEND_BATCH_SEGMENTS), 0);
    e->in_flight = true;
    assert_int_equal(ops->send(f->io, e->id, iov, 1), TM_EUSE_STATE);
    assert_int_equal(ops->shutdown_write(f->io, e->id), TM_EUSE_STATE);
    RUN_UNTIL(f, !e->in_flight);
    assert_int_equal(ops->shutdown_write(f->io, e->id), 0);
    assert_int_equal(ops->send(f->io, e->id, iov, 1), TM_EUSE_STATE);
    assert_int_equal(ops->send_now(f->io, e->id, iov, 1), TM_EUSE_STATE);
}

static void slow_reader_gets_everything(void **state)
{
    fixture *f = *state;
    end *other;
    int fd = raw_pair_make(f, &other, 4096);
    size_t bytes = 4 * TM_MIB;
    stream_start(f, other, bytes, 4);
    uint8_t piece[3000];
    for (size_t got = 0; got < bytes;) {
        fixture_turn(f, 0);
        ssize_t len = read(fd, piece, sizeof piece);
        if (len < 0) {
            assert_int_equal(errno, EAGAIN);
            continue;
        }
        assert_memory_equal(piece, pattern_at(f, got), (size_t)len);
        got += (size_t)len;
    }
    RUN_UNTIL(f, !other->in_flight);
    assert_int_equal(other->sent_bytes, bytes);
    close(fd);
}

static void unread_megabytes_of_many_sockets_arrive(void **state)
{
    enum { SOCKETS = 48 };
    fixture *f = *state;
    int fds[SOCKETS];
    end *ends[SOCKETS];
    size_t written[SOCKETS] = {0};
    for (int i = 0; i < SOCKETS; i++) {
        fds[i] = raw_pair_make(f, &ends[i], 0);
        ends[i]->verifies = true;
        for (ssize_t rc; written[i] < TM_MIB; written[i] += (size_t)rc) {
            rc = write(fds[i], pattern_at(f, written[i]), STREAM_PIECE);
            if (rc < 0) break;
        }
        assert_true(written[i] > 0);
        shutdown(fds[i], SHUT_WR);
    }
    for (int i = 0; i < SOCKETS; i++) read_start(f, ends[i]);
    for (int i = 0; i < SOCKETS; i++) {
        RUN_UNTIL(f, ends[i]->read_ended);
        assert_int_equal(ends[i]->read_rc, 0);
        assert_int_equal(ends[i]->received_bytes, written[i]);
        close(fds[i]);
    }
    tm_io_counters counters;
    f->io->ops->counters(f->io, &counters);
    bool dry = strcmp(backend, "uring") == 0 && !OVERFLOWS_EXPECTED;
    assert_true((!OVERFLOWS_EXPECTED || counters.overflows) && (!dry || counters.buffers_empty));
}

static void thousand_sockets_echo(void **state)
{
    enum { SOCKETS = 1000 };
    fixture *f = *state;
    f->accept_reads = f->accept_echoes = true;
    tm_io_address bound;
    listen_on(f, &bound);
    end *ends[SOCKETS];
    for (int i = 0; i < SOCKETS; i++) {
        ends[i] = connect_start(f, &bound);
        if (i % 100 == 99) RUN_UNTIL(f, f->accepted == i + 1 && ends[i]->connected);
    }
    for (int i = 0; i < SOCKETS; i++) {
        RUN_UNTIL(f, ends[i]->connected);
        assert_int_equal(ends[i]->connect_rc, 0);
        ends[i]->verifies = true;
        read_start(f, ends[i]);
        stream_start(f, ends[i], 64, 1);
    }
    for (int i = 0; i < SOCKETS; i++) RUN_UNTIL(f, ends[i]->received_bytes == 64);
    for (int i = 0; i < SOCKETS; i++) end_close(f, ends[i], i % 2);
    for (int i = 0; i < SOCKETS; i++) RUN_UNTIL(f, ends[i]->closed);
}

/* -- turns and wakes -------------------------------------------------------------------------- */

static void *wake_thread(void *ctx)
{
    fixture *f = ctx;
    f->io->ops->wake(f->io);
    return NULL;
}

static void wake_from_another_thread_ends_a_turn(void **state)
{
    fixture *f = *state;
    for (int i = 0; i < 200; i++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, wake_thread, f), 0);
        assert_int_equal(fixture_turn(f, UINT64_MAX), 0);
        pthread_join(thread, NULL);
    }
}

typedef struct sender {
    fixture *f;
    tm_io_id id;
    size_t bytes;
    atomic_bool over;
} sender;

static void *send_thread(void *ctx)
{
    sender *s = ctx;
    for (size_t at = 0; at < s->bytes;) {
        size_t len = s->bytes - at < 100 ? s->bytes - at : 100;
        struct iovec iov = {(void *)(uintptr_t)pattern_at(s->f, at), len};
        ssize_t rc = s->f->io->ops->send_now(s->f->io, s->id, &iov, 1);
        if (rc < 0) break;
        at += (size_t)rc;
    }
    atomic_store(&s->over, true);
    s->f->io->ops->wake(s->f->io);
    return NULL;
}

static void send_now_works_from_another_thread_during_turns(void **state)
{
    fixture *f = *state;
    end *other;
    end *e = pair_make(f, &other);
    other->verifies = true;
    read_start(f, other);
    sender s = {.f = f, .id = e->id, .bytes = 100000};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, send_thread, &s), 0);
    while (!atomic_load(&s.over)) {
        /* Sockets come and go meanwhile: the table grows under the other thread's feet. */
        tm_io_address nowhere = loopback(1);
        if (f->end_count < 1000) end_close(f, connect_start(f, &nowhere), false);
        fixture_turn(f, tm_io_now_ns() + TM_MS_NS);
    }
    pthread_join(thread, NULL);
    RUN_UNTIL(f, other->received_bytes == s.bytes);
}

static void wake_before_a_turn_makes_it_not_wait(void **state)
{
    fixture *f = *state;
    f->io->ops->wake(f->io);
    f->io->ops->wake(f->io);
    if (f->net) assert_int_equal(tm_mem_net_next_ns(f->net), tm_mem_net_now_ns(f->net));
    assert_int_equal(fixture_turn(f, UINT64_MAX), 0);
    if (f->net) assert_int_equal(tm_mem_net_next_ns(f->net), UINT64_MAX);
}

static void deadline_ends_a_turn_not_before_its_time(void **state)
{
    fixture *f = *state;
    for (uint64_t wait_ns = 100000; wait_ns <= 30 * TM_MS_NS; wait_ns *= 7) {
        uint64_t deadline = tm_io_now_ns() + wait_ns;
        int turns = 0;
        for (; tm_io_now_ns() < deadline; turns++) {
            assert_int_equal(fixture_turn(f, deadline), 0);
        }
        assert_true(turns < 10);
        assert_true(tm_io_now_ns() < deadline + 5 * TM_S_NS);
    }
    for (int i = 0; i < 1000; i++) assert_int_equal(fixture_turn(f, 0), 0);
}

static void on_alarm(int signal) { (void)signal; }

static void signals_do_not_end_the_engine(void **state)
{
    fixture *f = *state;
    struct sigaction action = {.sa_handler = on_alarm}, old;
    sigaction(SIGALRM, &action, &old);
    struct itimerval often = {.it_interval = {.tv_usec = 2000}, .it_value = {.tv_usec = 2000}};
    setitimer(ITIMER_REAL, &often, NULL);
    uint64_t end_ns = tm_io_now_ns() + 30 * TM_MS_NS;
    while (tm_io_now_ns() < end_ns) assert_int_equal(fixture_turn(f, end_ns), 0);
    setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
    sigaction(SIGALRM, &old, NULL);
}

/* -- connects and accepts --------------------------------------------------------------------- */

static void burst_of_connections_is_accepted(void **state)
{
    enum { BURST = 200 };
    fixture *f = *state;
    tm_io_address bound;
    end *listener = listen_on(f, &bound);
    end *ends[BURST];
    for (int i = 0; i < BURST; i++) ends[i] = connect_start(f, &bound);
    RUN_UNTIL(f, f->accepted == BURST);
    for (int i = 0; i < BURST; i++) {
        RUN_UNTIL(f, ends[i]->connected);
        assert_int_equal(ends[i]->connect_rc, 0);
    }
    tm_io_address own;
    assert_int_equal(f->io->ops->address(f->io, listener->id, &own), 0);
    assert_memory_equal(&own.storage, &bound.storage, bound.len);
    assert_int_equal(f->io->ops->address(f->io, ends[0]->id, &own), 0);
    assert_memory_equal(&own.storage, &bound.storage, bound.len);
}

static void refused_connect_is_reported(void **state)
{
    fixture *f = *state;
    tm_io_address bound;
    end *listener = listen_on(f, &bound);
    end_close(f, listener, false);
    RUN_UNTIL(f, listener->closed);
    end *e = connect_start(f, &bound);
    RUN_UNTIL(f, e->connected);
    assert_int_equal(e->connect_rc, -ECONNREFUSED);
    assert_int_equal(f->io->ops->read_start(f->io, e->id), TM_EUSE_STATE);
    end_close(f, e, false);
    RUN_UNTIL(f, e->closed);
    tm_io_id id;
    tm_io_address unknown = {.storage = {.ss_family = AF_UNIX}, .len = sizeof(sa_family_t)};
    assert_int_equal(f->io->ops->connect(f->io, &unknown, &id), -EAFNOSUPPORT);
    assert_int_equal(f->io->ops->listen(f->io, &unknown, 1, &id, &bound), -EAFNOSUPPORT);
}

static void connect_that_fails_at_once_is_reported_by_a_turn(void **state)
{
    fixture *f = *state;
    tm_io_address nobody = loopback(1);
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(1)};
    in.sin_addr.s_addr = htonl(INADDR_BROADCAST);
    memcpy(&nobody.storage, &in, sizeof in);
    end *e = connect_start(f, &nobody);
    end *closed = connect_start(f, &nobody);
    end_close(f, closed, false);
    assert_int_equal(fixture_turn(f, UINT64_MAX), 0);
    RUN_UNTIL(f, e->connected && closed->closed);
    assert_true(e->connect_rc < 0);
    assert_int_equal(closed->connected, 0);
}

static void ipv6_works_where_the_system_has_it(void **state)
{
    fixture *f = *state;
    tm_io_address bound, address = {.len = sizeof(struct sockaddr_in6)};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    memcpy(&address.storage, &in6, sizeof in6);
    tm_io_id id;
    int rc = f->io->ops->listen(f->io, &address, 8, &id, &bound);
    if (rc == -EAFNOSUPPORT || rc == -EADDRNOTAVAIL) {
        print_message("this system has no IPv6 loopback\n");
        return;
    }
    assert_int_equal(rc, 0);
    end *e = connect_start(f, &bound);
    RUN_UNTIL(f, e->connected && f->accepted);
    assert_int_equal(e->connect_rc, 0);
    assert_int_equal(f->io->ops->listen(f->io, &bound, 8, &id, &bound), -EADDRINUSE);
}

static void clock_and_dice_are_at_hand(void **state)
{
    fixture *f = *state;
    uint64_t dice[2] = {0, 0};
    assert_int_equal(f->io->ops->random(f->io, dice, sizeof dice), 0);
    assert_true(dice[0] != dice[1]);
    uint64_t before = f->io->ops->now_ns(f->io);
    assert_true(before > 0);
    assert_true(f->io->ops->now_ns(f->io) >= before);
}

static void connect_can_be_closed_before_it_ends(void **state)
{
    fixture *f = *state;
    tm_io_address bound;
    listen_on(f, &bound);
    end *now = connect_start(f, &bound);
    end_close(f, now, false);
    end *later = connect_start(f, &bound);
    fixture_turn(f, 0);
    if (!later->connected) end_close(f, later, true);
    RUN_UNTIL(f, now->closed);
    assert_int_equal(now->connected, 0);
    if (later->closing) RUN_UNTIL(f, later->closed);
}

static void full_table_leaves_connections_waiting(void **state)
{
    fixture *f = *state;
    f->io->ops->destroy(f->io);
    assert_int_equal(fixture_io_create(f, 2), 0);
    tm_io_address bound;
    listen_on(f, &bound);
    int fds[2];
    for (int i = 0; i < 2; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fds[i], (struct sockaddr *)&bound.storage, bound.len), 0);
    }
    RUN_UNTIL(f, f->accepted == 1);
    tm_io_id id;
    assert_int_equal(f->io->ops->connect(f->io, &bound, &id), TM_EUSE_LIMIT);
    tm_io_counters before, after;
    f->io->ops->counters(f->io, &before);
    fixture_turn(f, tm_io_now_ns() + 20 * TM_MS_NS);
    fixture_turn(f, tm_io_now_ns() + 20 * TM_MS_NS);
    f->io->ops->counters(f->io, &after);
    assert_true(after.system_calls - before.system_calls < 20);
    end *first = f->last_accepted;
    end_close(f, first, false);
    close(fds[0]);
    RUN_UNTIL(f, f->accepted == 2);
    assert_true(first->id != f->last_accepted->id);
    close(fds[1]);
}

static void listener_survives_running_out_of_descriptors(void **state)
{
    enum { WAITING = 4 };
    fixture *f = *state;
    tm_io_address bound;
    listen_on(f, &bound);
    fixture_turn(f, 0);
    int fds[WAITING];
    for (int i = 0; i < WAITING; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fds[i], (struct sockaddr *)&bound.storage, bound.len), 0);
    }
    struct rlimit old, none;
    getrlimit(RLIMIT_NOFILE, &old);
    none = old;
    none.rlim_cur = (rlim_t)dup(0);
    close((int)none.rlim_cur);
    setrlimit(RLIMIT_NOFILE, &none);
    tm_io_counters before, after;
    f->io->ops->counters(f->io, &before);
    uint64_t until = tm_io_now_ns() + 120 * TM_MS_NS;
    while (tm_io_now_ns() < until) fixture_turn(f, until);
    f->io->ops->counters(f->io, &after);
    setrlimit(RLIMIT_NOFILE, &old);
    assert_int_equal(f->accepted, 0);
    assert_true(after.system_calls - before.system_calls < 40);
    RUN_UNTIL(f, f->accepted == WAITING);
    for (int i = 0; i < WAITING; i++) close(fds[i]);
}

/* The connection is behind so many completions that a small queue overflows with it. */
static void listener_survives_a_flood_of_completions(void **state)
{
    enum { SOCKETS = 40 };
    fixture *f = *state;
    int fds[SOCKETS + 2];
    for (int i = 0; i < SOCKETS; i++) {
        end *e;
        fds[i] = raw_pair_make(f, &e, 0);
        read_start(f, e);
    }
    tm_io_address bound;
    listen_on(f, &bound);
    fixture_settle(f);
    for (int i = 0; i < SOCKETS; i++) assert_int_equal(write(fds[i], "x", 1), 1);
    for (int i = SOCKETS; i < SOCKETS + 2; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fds[i], (struct sockaddr *)&bound.storage, bound.len), 0);
        RUN_UNTIL(f, f->accepted == i + 1);
    }
    for (int i = 0; i < SOCKETS + 2; i++) close(fds[i]);
}

static void close_listener_when_accepted(fixture *f, end *e)
{
    end *listener = end_of(f, e->listener);
    if (!listener->closing) end_close(f, listener, false);
}

static void listener_closed_by_its_handler_accepts_no_more(void **state)
{
    fixture *f = *state;
    f->on_accepted = close_listener_when_accepted;
    tm_io_address bound;
    end *listener = listen_on(f, &bound);
    for (int i = 0; i < 10; i++) connect_start(f, &bound);
    RUN_UNTIL(f, listener->closed);
    fixture_settle(f);
    assert_int_equal(f->accepted, 1);
}

/* -- ends ------------------------------------------------------------------------------------- */

static void half_close_ends_reading_and_keeps_writing(void **state)
{
    fixture *f = *state;
    end *other;
    end *e = pair_make(f, &other);
    read_start(f, e);
    read_start(f, other);
    stream_start(f, e, 3 * STREAM_PIECE, 1);
    RUN_UNTIL(f, e->stream_left == 0);
    assert_int_equal(f->io->ops->shutdown_write(f->io, e->id), 0);
    RUN_UNTIL(f, other->read_ended);
    assert_int_equal(other->read_rc, 0);
    assert_int_equal(other->received_bytes, 3 * STREAM_PIECE);
    e->verifies = true;
    stream_start(f, other, 2 * STREAM_PIECE, 2);
    RUN_UNTIL(f, e->received_bytes == 2 * STREAM_PIECE);
    assert_int_equal(e->read_ended, 0);
}

static void abort_resets_the_peer(void **state)
{
    fixture *f = *state;
    end *other;
    end *e = pair_make(f, &other);
    read_start(f, e);
    read_start(f, other);
    end_close(f, e, true);
    RUN_UNTIL(f, other->read_ended && e->closed);
    assert_int_equal(other->read_rc, -ECONNRESET);
    end_send(f, other, "anybody?");
    RUN_UNTIL(f, !other->in_flight);
    assert_true(other->sent_rc < 0);
}

static void close_delivers_what_was_sent_before_the_end(void **state)
{
    fixture *f = *state;
    end *other;
    end *e = pair_make(f, &other);
    other->verifies = true;
    read_start(f, other);
    /* Unread bytes at the closing side must not destroy what it has sent. */
    end_send(f, other, "never read");
    RUN_UNTIL(f, !other->in_flight);
    stream_start(f, e, 64 * TM_KIB, 1);
    RUN_UNTIL(f, e->stream_left == 0);
    end_close(f, e, false);
    RUN_UNTIL(f, other->read_ended);
    assert_int_equal(other->read_rc, 0);
    assert_int_equal(other->received_bytes, 64 * TM_KIB);
    end_close(f, other, false);
    RUN_UNTIL(f, e->closed && other->closed);
}

static void close_comes_to_an_end_without_the_peer(void **state)
{
    fixture *f = *state;
    end *other;
    end *e = pair_make(f, &other);
    read_start(f, e);
    uint64_t start = tm_io_now_ns();
    end_close(f, e, false);
    RUN_UNTIL(f, e->closed);
    if (kernel()) {
        assert_true(tm_io_now_ns() - start >= TM_IO_LINGER_MS * TM_MS_NS);
        assert_true(tm_io_now_ns() - start < 10 * TM_IO_LINGER_MS * TM_MS_NS);
    }
}

static void close_comes_to_an_end_under_a_flood(void **state)
{
    fixture *f = *state;
    end *other;
    end *e = pair_make(f, &other);
    read_start(f, e);
    stream_start(f, other, (size_t)1 << 30, 8);
    RUN_UNTIL(f, e->received_bytes > 0);
    end_close(f, e, false);
    RUN_UNTIL(f, e->closed);
    RUN_UNTIL(f, !other->in_flight);
}

static void abort_cuts_an_orderly_close_short(void **state)
{
    fixture *f = *state;
    end *other;
    end *e = pair_make(f, &other);
    uint64_t start = tm_io_now_ns();
    end_close(f, e, false);
    fixture_turn(f, 0);
    if (!e->closed) f->io->ops->close(f->io, e->id, true);
    RUN_UNTIL(f, e->closed);
    f->io->ops->close(f->io, e->id, true);
    if (kernel()) assert_true(tm_io_now_ns() - start < TM_IO_LINGER_MS * TM_MS_NS);
}

static void close_with_a_send_in_flight(fixture *f, bool abort, bool turn_first)
{
    end *other;
    end *e = pair_make(f, &other);
    stream_start(f, e, 1 << 30, TM_SEND_BATCH_SEGMENTS);
    if (turn_first) fixture_settle(f);
    assert_true(e->in_flight);
    int before = e->sent;
    end_close(f, e, abort);
    f->io->ops->close(f->io, e->id, false);
    assert_int_equal(e->sent, before);
    RUN_UNTIL(f, e->closed);
    assert_int_equal(e->sent, before + 1);
}

static void close_hands_back_a_send_in_flight_once(void **state)
{
    close_with_a_send_in_flight(*state, false, true);
    close_with_a_send_in_flight(*state, true, true);
    close_with_a_send_in_flight(*state, false, false);
    close_with_a_send_in_flight(*state, true, false);
}

static void close_when_received(fixture *f, end *e)
{
    if (!e->closing) end_close(f, e, e->received_bytes % 2);
}

static void connect_when_closed(fixture *f, end *e)
{
    (void)e;
    f->on_closed = NULL;
    tm_io_address nowhere = loopback(1);
    tm_io_id id;
    if (f->io->ops->connect(f->io, &nowhere, &id) == 0) end_close(f, end_of(f, id), false);
}

static void handlers_may_close_and_connect(void **state)
{
    fixture *f = *state;
    f->on_received = close_when_received;
    f->on_closed = connect_when_closed;
    for (int i = 0; i < 4; i++) {
        end *other;
        end *e = pair_make(f, &other);
        read_start(f, other);
        stream_start(f, e, 1 * TM_MIB, 3);
        RUN_UNTIL(f, other->closing);
        end_close(f, e, true);
        RUN_UNTIL(f, other->closed && e->closed);
    }
}

static void ids_of_the_past_are_refused(void **state)
{
    fixture *f = *state;
    const tm_io_ops *ops = f->io->ops;
    tm_io_address address;
    char text[] = "text";
    struct iovec iov = {text, 4};
    tm_io_id past = 0;
    for (int i = 0; i < 30; i++) {
        end *other;
        end *e = pair_make(f, &other);
        assert_true(e->id != past);
        if (past) {
            assert_int_equal(ops->send(f->io, past, &iov, 1), TM_ECLOSED);
            assert_int_equal(ops->send_now(f->io, past, &iov, 1), TM_ECLOSED);
            assert_int_equal(ops->read_start(f->io, past), TM_ECLOSED);
            assert_int_equal(ops->shutdown_write(f->io, past), TM_ECLOSED);
            assert_int_equal(ops->address(f->io, past, &address), TM_ECLOSED);
            ops->close(f->io, past, true);
        }
        past = e->id;
        end_close(f, e, true);
        assert_int_equal(ops->send(f->io, past, &iov, 1), TM_ECLOSED);
        end_close(f, other, true);
        RUN_UNTIL(f, e->closed && other->closed);
    }
    assert_int_equal(ops->address(f->io, UINT64_MAX, &address), TM_ECLOSED);
    assert_int_equal(ops->address(f->io, 1, &address), TM_ECLOSED);
}

static void reset_of_a_raw_peer_is_reported_behind_its_bytes(void **state)
{
    fixture *f = *state;
    end *other;
    int fd = raw_pair_make(f, &other, 0);
    struct linger linger = {.l_onoff = 1};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    read_start(f, other);
    fixture_turn(f, 0);
    close(fd);
    RUN_UNTIL(f, other->read_ended);
    assert_int_equal(other->read_rc, -ECONNRESET);
}

/* What is open, in flight or lingering when the end comes; tear_down counts what is left. */
static void destroy_takes_everything_with_it(void **state)
{
    fixture *f = *state;
    end *a, *b;
    end *c = pair_make(f, &a);
    end *d = pair_make(f, &b);
    read_start(f, c);
    read_start(f, a);
    stream_start(f, d, 1 << 30, 8);
    tm_io_address bound;
    listen_on(f, &bound);
    connect_start(f, &bound);
    end_close(f, c, false);
    fixture_turn(f, 0);
    f->io->ops->wake(f->io);
}

/* A child that lives until the gate closes. A stranger knows nothing of the backend and keeps all
 * its descriptors; another one tells it of the fork, as an engine does. */
static pid_t child_start(fixture *f, bool stranger, int gate[2])
{
    int ready[2];
    assert_int_equal(pipe(gate) | pipe(ready), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    char byte = 'y';
    if (child == 0) {
        close(gate[1]);
        if (!stranger) {
            f->io->ops->forked(f->io);
            f->io->ops->destroy(f->io);
            if (f->stats.bytes) byte = 'n';
        }
        if (write(ready[1], &byte, 1) != 1) _exit(1);
        _exit(read(gate[0], &byte, 1) == 0 ? 0 : 1);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    assert_int_equal(byte, 'y');
    close(ready[0]);
    close(ready[1]);
    return child;
}

static void close_beside_a_child(fixture *f, bool stranger)
{
    end *other, *reading;
    int fd = raw_pair_make(f, &other, 0);
    int second = raw_pair_make(f, &reading, 0);
    read_start(f, other);
    read_start(f, reading);
    fixture_turn(f, 0);
    int gate[2];
    pid_t child = child_start(f, stranger, gate);
    /* The orderly way, while the other connection goes on. */
    char byte;
    end_close(f, other, false);
    struct pollfd at_end = {.fd = fd, .events = POLLIN};
    RUN_UNTIL(f, poll(&at_end, 1, 0) == 1);
    assert_int_equal(read(fd, &byte, 1), 0);
    assert_int_equal(send(second, "x", 1, MSG_NOSIGNAL), 1);
    RUN_UNTIL(f, reading->received_bytes == 1);
    /* The way of destroy. */
    f->io->ops->destroy(f->io);
    f->io = NULL;
    at_end.fd = second;
    assert_int_equal(poll(&at_end, 1, 10000), 1);
    assert_int_equal(read(second, &byte, 1), 0);
    close(gate[0]);
    close(gate[1]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    close(fd);
    close(second);
}

static void connections_end_although_a_forked_child_lives(void **state)
{
    close_beside_a_child(*state, false);
}

static void connections_end_although_a_child_holds_their_descriptors(void **state)
{
    close_beside_a_child(*state, true);
}

/* -- memory ----------------------------------------------------------------------------------- */

static bool sweep_pass(fixture *f)
{
    const tm_io_ops *ops = f->io->ops;
    tm_io_address bound, address = loopback(0);
    tm_io_id listener, id;
    if (ops->listen(f->io, &address, 16, &listener, &bound)) return false;
    if (ops->connect(f->io, &bound, &id)) return false;
    end *e = end_of(f, id);
    RUN_UNTIL(f, e->connected && (f->accepted || e->connect_rc));
    if (e->connect_rc) return false;
    if (ops->read_start(f->io, id)) return false;
    struct iovec iov[3];
    for (int i = 0; i < 3; i++) iov[i] = (struct iovec){(void *)(uintptr_t)"abc", 3};
    if (ops->send(f->io, id, iov, 3)) return false;
    e->in_flight = true;
    RUN_UNTIL(f, !e->in_flight);
    if (e->sent_rc < 0) return false;
    RUN_UNTIL(f, f->last_accepted->received_bytes == e->sent_bytes || e->read_ended);
    end_close(f, e, false);
    end_close(f, f->last_accepted, false);
    RUN_UNTIL(f, e->closed && f->last_accepted->closed);
    return true;
}

static void every_failed_allocation_is_survived(void **state)
{
    (void)state;
    bool passed = false;
    for (size_t n = 1; !passed; n++) {
        assert_true(n < 1000);
        fixture *f = fixture_create(backend, net_options);
        f->accept_reads = true;
        f->fail_at = n;
        int rc = fixture_io_create(f, 300);
        if (rc) {
            assert_int_equal(rc, TM_ENOMEM);
        } else {
            passed = sweep_pass(f) && f->allocations < n;
        }
        fixture_destroy(f);
    }
}

static void sockets_max_is_checked(void **state)
{
    fixture *f = *state;
    f->io->ops->destroy(f->io);
    assert_int_equal(fixture_io_create(f, 0), TM_EUSE_ARG);
    assert_int_equal(fixture_io_create(f, TM_IO_SOCKETS_MAX + 1), TM_EUSE_ARG);
}

/* -- main ------------------------------------------------------------------------------------- */

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

static const struct CMUnitTest everywhere[] = {
    CASE(echo_returns_small_messages_in_order),
    CASE(echo_returns_megabytes_in_order),
    CASE(both_directions_stream_at_once),
    CASE(bytes_that_wait_for_read_start_arrive_then),
    CASE(send_now_and_send_keep_their_order),
    CASE(send_now_answers_zero_when_the_socket_is_full),
    CASE(send_refuses_what_it_cannot_do),
    CASE(thousand_sockets_echo),
    CASE(wake_before_a_turn_makes_it_not_wait),
    CASE(burst_of_connections_is_accepted),
    CASE(refused_connect_is_reported),
    CASE(connect_can_be_closed_before_it_ends),
    CASE(ipv6_works_where_the_system_has_it),
    CASE(clock_and_dice_are_at_hand),
    CASE(listener_closed_by_its_handler_accepts_no_more),
    CASE(half_close_ends_reading_and_keeps_writing),
    CASE(abort_resets_the_peer),
    CASE(close_delivers_what_was_sent_before_the_end),
    CASE(close_comes_to_an_end_without_the_peer),
    CASE(close_comes_to_an_end_under_a_flood),
    CASE(abort_cuts_an_orderly_close_short),
    CASE(close_hands_back_a_send_in_flight_once),
    CASE(handlers_may_close_and_connect),
    CASE(ids_of_the_past_are_refused),
    CASE(destroy_takes_everything_with_it),
    CASE(sockets_max_is_checked),
    BULK_CASES,
    cmocka_unit_test(every_failed_allocation_is_survived),
};

static const struct CMUnitTest kernel_only[] = {
    CASE(slow_reader_gets_everything),
    CASE(unread_megabytes_of_many_sockets_arrive),
    CASE(wake_from_another_thread_ends_a_turn),
    CASE(send_now_works_from_another_thread_during_turns),
    CASE(deadline_ends_a_turn_not_before_its_time),
    CASE(signals_do_not_end_the_engine),
    CASE(connect_that_fails_at_once_is_reported_by_a_turn),
    CASE(listener_survives_a_flood_of_completions),
    CASE(full_table_leaves_connections_waiting),
    CASE(listener_survives_running_out_of_descriptors),
    CASE(reset_of_a_raw_peer_is_reported_behind_its_bytes),
    CASE(connections_end_although_a_forked_child_lives),
    CASE(connections_end_although_a_child_holds_their_descriptors),
};

static int run_kernel(const char *name)
{
    backend = name;
    net_options = NULL;
    print_message("== %s\n", name);
    return cmocka_run_group_tests_name(name, everywhere, NULL, NULL) +
           cmocka_run_group_tests_name(name, kernel_only, NULL, NULL);
}

static int run_mem(uint64_t seed, bool hostile)
{
    tm_mem_options options = {.seed = seed};
    if (hostile) {
        options.delay_ns_max = 3 * TM_MS_NS;
        options.room_bytes = 20000;
        options.short_send_per_mille = 300;
        options.split_per_mille = 300;
        options.stall_per_mille = 50;
        options.stall_ns = 40 * TM_MS_NS;
    }
    backend = "mem";
    net_options = &options;
    int failed = cmocka_run_group_tests_name("mem", everywhere, NULL, NULL);
    if (failed) print_error("mem failed: TM_SEED=%llu\n", (unsigned long long)seed);
    return failed;
}

/* Whether io_uring works here; says why not. Absence is an error unless TM_ALLOW_SKIP is set. */
static bool uring_works(void)
{
    tm_alloc libc = tm_alloc_libc(NULL);
    tm_io_options options = {.alloc = &libc, .sockets_max = 16};
    tm_io *io;
    char why[256];
    if (tm_io_uring_create(&options, &io, why, sizeof why) == 0) {
        io->ops->destroy(io);
        return true;
    }
    print_error("io_uring is not available here: %s\n", why);
    return false;
}

int main(int argc, char **argv)
{
    const char *only = argc > 1 ? argv[1] : BACKEND_DEFAULT;
    bool all = *only == 0;
    int failed = 0;
    if (all || strcmp(only, "uring") == 0) {
        if (uring_works()) {
            failed += run_kernel("uring");
        } else {
            if (!getenv("TM_ALLOW_SKIP")) return 1;
            if (!all) return 77;
        }
    }
    if (all || strcmp(only, "epoll") == 0) failed += run_kernel("epoll");
    if (all || strcmp(only, "mem") == 0) {
        failed += run_mem(1, false);
        for (uint64_t seed = 2; seed < 7; seed++) failed += run_mem(seed, true);
        const char *seed = getenv("TM_SEED");
        if (seed) failed += run_mem(strtoull(seed, NULL, 10), true);
    }
    return failed != 0;
}
