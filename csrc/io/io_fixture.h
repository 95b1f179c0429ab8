/* What the tests of the backends share: one tm_io, a record of everything its sink was told for
 * each socket, and a loop that turns it.
 *
 * The sink checks on every call what holds for every backend: it is called from inside a turn and
 * never inside itself, nothing but sent() and closed() comes after a close, closed() comes once
 * and last, bytes come before the end and in order. */
#ifndef TM_IO_FIXTURE_H
#define TM_IO_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "../base/buf.h"
#include "io.h"
#include "mem.h"

/* Sockets a test may use over its life, a power of two. */
#define ENDS_MAX 16384
/* How long a test may wait for something, real time. */
#define PATIENCE_NS (30 * TM_S_NS)
/* Turns of a fake network at rest before a test gives up. */
#define REST_MAX 100
/* The pattern of streams repeats after a prime number of bytes; no piece is longer than the
 * rest. */
#define PATTERN_PERIOD 1048573
#define PATTERN_BYTES (PATTERN_PERIOD + 512 * 1024)
/* What a backend hands out at once; a test of one of them may know better. */
#ifndef PIECE_BYTES_MAX
#define PIECE_BYTES_MAX (PATTERN_BYTES - PATTERN_PERIOD)
#endif
/* One segment of a stream that a test sends. */
#define STREAM_PIECE ((size_t)96 * 1024)

/* What one socket was told, and what it does by itself. */
typedef struct end {
    tm_io_id id;
    tm_io_id listener;
    int connected, read_ended, closed, sent; /* how often */
    int connect_rc, read_rc;
    ssize_t sent_rc;
    bool closing;
    bool in_flight;
    bool echoes;
    bool verifies; /* received bytes are the pattern from its start */
    size_t received_bytes;
    char text[64]; /* the first received bytes */
    size_t sent_bytes;
    const char *say;    /* text to be sent, the front of it in flight */
    size_t stream_left; /* pattern to be sent by itself, in so many segments a send */
    int segments;
    size_t message;   /* bytes are wanted in one place in messages of this size; 0: anywhere */
    size_t in_place;  /* received bytes that came there */
    tm_room offered;  /* where they were wanted last */
    tm_buf echo_out;  /* in flight from echo_at on: does not move */
    tm_buf echo_next; /* behind it */
    size_t echo_at;
} end;

typedef struct fixture {
    tm_alloc_stats stats;
    tm_alloc libc;
    tm_alloc alloc;
    size_t fail_at; /* the allocation that fails, counted from 1; 0 none */
    size_t allocations;
    const char *backend;
    tm_mem_net *net;
    int rest; /* turns without anything due */
    tm_io *io;
    end *ends; /* open addressing by id */
    size_t end_count;
    uint8_t *pattern;
    uint8_t room[128 * 1024];
    int descriptors;
    bool in_turn;
    bool in_sink;
    size_t piece_bytes; /* the largest piece received */
    int accepted;
    end *last_accepted;
    bool accept_reads; /* what accepted sockets do */
    bool accept_echoes;
    bool accept_verifies;
    void (*on_received)(struct fixture *f, end *e);
    void (*on_accepted)(struct fixture *f, end *e);
    void (*on_closed)(struct fixture *f, end *e);
} fixture;

static inline int descriptor_count(void)
{
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir)) count++;
    closedir(dir);
    return count;
}

static inline end *end_of(fixture *f, tm_io_id id)
{
    assert_true(id != 0);
    size_t at = (size_t)((id * UINT64_C(0x9e3779b97f4a7c15)) >> 40) % ENDS_MAX;
    while (f->ends[at].id && f->ends[at].id != id) at = (at + 1) % ENDS_MAX;
    if (!f->ends[at].id) {
        assert_true(++f->end_count < ENDS_MAX);
        f->ends[at].id = id;
        tm_buf_init(&f->ends[at].echo_out, &f->libc, 0);
        tm_buf_init(&f->ends[at].echo_next, &f->libc, 0);
    }
    return &f->ends[at];
}

/* -- what ends do by themselves --------------------------------------------------------------- */

static inline const uint8_t *pattern_at(const fixture *f, size_t place)
{
    return f->pattern + place % PATTERN_PERIOD;
}

static inline int segments_fill(const fixture *f, const end *e, struct iovec *iov)
{
    size_t at = e->sent_bytes;
    size_t left = e->stream_left;
    int count = 0;
    while (left && count < e->segments) {
        size_t len = left < STREAM_PIECE ? left : STREAM_PIECE;
        iov[count++] = (struct iovec){(void *)(uintptr_t)pattern_at(f, at), len};
        at += len;
        left -= len;
    }
    return count;
}

/* Starts the next send, if there is something to send and nothing in flight. */
static inline void end_go(fixture *f, end *e)
{
    if (e->in_flight || e->closing) return;
    struct iovec iov[TM_SEND_BATCH_SEGMENTS];
    int count = 0;
    if (e->echoes) {
        if (e->echo_at == e->echo_out.len) {
            tm_buf swap = e->echo_out;
            e->echo_out = e->echo_next;
            e->echo_next = swap;
            e->echo_next.len = e->echo_at = 0;
        }
        if (e->echo_out.len) {
            iov[0] = (struct iovec){e->echo_out.ptr + e->echo_at, e->echo_out.len - e->echo_at};
            count = 1;
        }
    } else if (e->say) {
        iov[0] = (struct iovec){(void *)(uintptr_t)e->say, strlen(e->say)};
        count = iov[0].iov_len > 0;
    } else {
        count = segments_fill(f, e, iov);
    }
    if (!count) return;
    assert_int_equal(f->io->ops->send(f->io, e->id, iov, count), 0);
    e->in_flight = true;
}

static inline void stream_start(fixture *f, end *e, size_t bytes, int segments)
{
    e->say = NULL;
    e->stream_left = bytes;
    e->segments = segments;
    end_go(f, e);
}

static inline void end_send(fixture *f, end *e, const char *text)
{
    e->say = text;
    end_go(f, e);
}

static inline void end_close(fixture *f, end *e, bool abort)
{
    e->closing = true;
    f->io->ops->close(f->io, e->id, abort);
}

/* -- the sink --------------------------------------------------------------------------------- */

static inline end *sink_enter(void *ctx, tm_io_id id)
{
    fixture *f = ctx;
    assert_true(f->in_turn);
    assert_false(f->in_sink);
    f->in_sink = true;
    end *e = end_of(f, id);
    assert_int_equal(e->closed, 0);
    return e;
}

static inline void sink_accepted(void *ctx, tm_io_id listener, tm_io_id socket,
                                 const tm_io_address *peer)
{
    fixture *f = ctx;
    end *e = sink_enter(f, socket);
    assert_int_equal(e->listener, 0);
    assert_false(end_of(f, listener)->closing);
    assert_true(peer->storage.ss_family == AF_INET || peer->storage.ss_family == AF_INET6);
    e->listener = listener;
    e->echoes = f->accept_echoes;
    e->verifies = f->accept_verifies;
    f->accepted++;
    f->last_accepted = e;
    if (f->accept_reads) assert_int_equal(f->io->ops->read_start(f->io, socket), 0);
    if (f->on_accepted) f->on_accepted(f, e);
    f->in_sink = false;
}

static inline void sink_connected(void *ctx, tm_io_id socket, int rc)
{
    fixture *f = ctx;
    end *e = sink_enter(f, socket);
    assert_false(e->closing);
    assert_int_equal(e->connected++, 0);
    e->connect_rc = rc;
    f->in_sink = false;
}

static inline tm_room sink_room(void *ctx, tm_io_id socket)
{
    fixture *f = ctx;
    end *e = sink_enter(f, socket);
    assert_false(e->closing);
    size_t left = e->message ? e->message - e->received_bytes % e->message : 0;
    e->offered = (tm_room){f->room, left < sizeof f->room ? left : sizeof f->room};
    f->in_sink = false;
    return e->offered;
}

/* Bytes that came in the room are those that there was room for; others are a piece. */
static inline void received_check(fixture *f, end *e, tm_bytes bytes)
{
    assert_true(bytes.len > 0);
    if (bytes.ptr >= f->room && bytes.ptr < f->room + sizeof f->room) {
        assert_ptr_equal(bytes.ptr, e->offered.ptr);
        assert_true(bytes.len <= e->offered.len);
        e->in_place += bytes.len;
        return;
    }
    assert_true(bytes.len <= PIECE_BYTES_MAX);
    if (bytes.len > f->piece_bytes) f->piece_bytes = bytes.len;
}

static inline void sink_received(void *ctx, tm_io_id socket, tm_bytes bytes)
{
    fixture *f = ctx;
    end *e = sink_enter(f, socket);
    assert_false(e->closing);
    assert_int_equal(e->read_ended, 0);
    received_check(f, e, bytes);
    if (e->verifies) {
        assert_memory_equal(bytes.ptr, pattern_at(f, e->received_bytes), bytes.len);
    }
    if (e->received_bytes < sizeof e->text) {
        size_t room = sizeof e->text - e->received_bytes;
        memcpy(e->text + e->received_bytes, bytes.ptr, bytes.len < room ? bytes.len : room);
    }
    e->received_bytes += bytes.len;
    if (e->echoes) {
        assert_int_equal(tm_buf_append(&e->echo_next, bytes.ptr, bytes.len), 0);
        end_go(f, e);
    }
    if (f->on_received) f->on_received(f, e);
    f->in_sink = false;
}

static inline void sink_read_ended(void *ctx, tm_io_id socket, int rc)
{
    fixture *f = ctx;
    end *e = sink_enter(f, socket);
    assert_false(e->closing);
    assert_int_equal(e->read_ended++, 0);
    assert_true(rc <= 0);
    e->read_rc = rc;
    f->in_sink = false;
}

static inline void sink_sent(void *ctx, tm_io_id socket, ssize_t rc)
{
    fixture *f = ctx;
    end *e = sink_enter(f, socket);
    assert_true(e->in_flight);
    assert_int_not_equal(rc, 0);
    e->in_flight = false;
    e->sent++;
    e->sent_rc = rc;
    if (rc > 0) {
        size_t taken = (size_t)rc;
        e->sent_bytes += taken;
        if (e->echoes) e->echo_at += taken;
        if (e->say) e->say += taken;
        e->stream_left -= taken < e->stream_left ? taken : e->stream_left;
        end_go(f, e);
    }
    f->in_sink = false;
}

static inline void sink_closed(void *ctx, tm_io_id socket)
{
    fixture *f = ctx;
    end *e = sink_enter(f, socket);
    assert_true(e->closing);
    assert_false(e->in_flight);
    e->closed++;
    if (f->on_closed) f->on_closed(f, e);
    f->in_sink = false;
}

/* -- the loop --------------------------------------------------------------------------------- */

static inline int fixture_turn(fixture *f, uint64_t deadline_ns)
{
    tm_io_sink sink = {
        .ctx = f,
        .accepted = sink_accepted,
        .connected = sink_connected,
        .received = sink_received,
        .read_ended = sink_read_ended,
        .sent = sink_sent,
        .closed = sink_closed,
        .room = sink_room,
    };
    f->in_turn = true;
    int rc = f->io->ops->turn(f->io, deadline_ns, &sink);
    f->in_turn = false;
    return rc;
}

/* One step of a test's loop; short, so that a test may look at the kernel's side in between. The
 * fake network's time moves to its next event, or by a millisecond when it rests. */
static inline void fixture_step(fixture *f)
{
    uint64_t now = f->io->ops->now_ns(f->io);
    assert_int_equal(fixture_turn(f, now + TM_MS_NS), 0);
    if (!f->net) return;
    uint64_t next = tm_mem_net_next_ns(f->net);
    f->rest = next == UINT64_MAX ? f->rest + 1 : 0;
    assert_true(f->rest < REST_MAX);
    tm_mem_net_set_now_ns(f->net, next == UINT64_MAX ? now + TM_MS_NS : next);
}

#define RUN_UNTIL(f, expr)                                                                         \
    do {                                                                                           \
        uint64_t patience_ns = tm_io_now_ns() + PATIENCE_NS;                                       \
        (f)->rest = 0;                                                                             \
        while (!(expr)) {                                                                          \
            if (tm_io_now_ns() > patience_ns) fail_msg("never came true: %s", #expr);              \
            fixture_step(f);                                                                       \
        }                                                                                          \
    } while (0)

/* Turns until nothing moves: a few milliseconds of kernel's time, or the net's rest. */
static inline void fixture_settle(fixture *f)
{
    for (int quiet = 0; quiet < 20; quiet++) {
        tm_io_counters before, after;
        f->io->ops->counters(f->io, &before);
        f->rest = 0;
        fixture_step(f);
        f->io->ops->counters(f->io, &after);
        if (after.receives != before.receives || after.sends != before.sends) quiet = 0;
    }
}

/* -- life ------------------------------------------------------------------------------------- */

/* Counts, and fails the one that was asked for. Frees never fail. */
static inline void *fixture_resize(void *ctx, void *ptr, size_t old_size, size_t new_size)
{
    fixture *f = ctx;
    if (new_size && ++f->allocations == f->fail_at) return NULL;
    return f->libc.resize(f->libc.ctx, ptr, old_size, new_size);
}

static inline int fixture_io_create(fixture *f, uint32_t sockets_max)
{
    tm_io_options options = {.alloc = &f->alloc, .sockets_max = sockets_max};
    char why[256] = "";
    int rc;
    if (strcmp(f->backend, "uring") == 0) {
        rc = tm_io_uring_create(&options, &f->io, why, sizeof why);
        if (rc == TM_ENOTSUP) print_error("io_uring: %s\n", why);
    } else if (strcmp(f->backend, "epoll") == 0) {
        rc = tm_io_epoll_create(&options, &f->io);
    } else {
        rc = tm_io_mem_create(f->net, &options, &f->io);
    }
    if (rc) f->io = NULL;
    return rc;
}

/* options: of the fake network; NULL for a backend in front of the kernel. */
static inline fixture *fixture_create(const char *backend, const tm_mem_options *options)
{
    tm_alloc own = tm_alloc_libc(NULL);
    fixture *f = tm_alloc_zero(&own, sizeof *f);
    assert_non_null(f);
    f->backend = backend;
    f->descriptors = descriptor_count();
    f->libc = tm_alloc_libc(&f->stats);
    f->alloc = (tm_alloc){.resize = fixture_resize, .ctx = f};
    f->ends = tm_alloc_zero(&own, ENDS_MAX * sizeof *f->ends);
    f->pattern = tm_alloc_get(&own, PATTERN_BYTES);
    assert_true(f->ends && f->pattern);
    uint32_t random = 1;
    for (size_t i = 0; i < PATTERN_PERIOD; i++) {
        random = random * 1664525 + 1013904223;
        f->pattern[i] = (uint8_t)(random >> 24);
    }
    memcpy(f->pattern + PATTERN_PERIOD, f->pattern, PATTERN_BYTES - PATTERN_PERIOD);
    if (options) assert_int_equal(tm_mem_net_create(&f->libc, options, &f->net), 0);
    return f;
}

/* Nothing is left of memory or descriptors. */
static inline void fixture_destroy(fixture *f)
{
    if (f->io) f->io->ops->destroy(f->io);
    if (f->net) tm_mem_net_destroy(f->net);
    for (size_t i = 0; i < ENDS_MAX; i++) {
        tm_buf_fini(&f->ends[i].echo_out);
        tm_buf_fini(&f->ends[i].echo_next);
    }
    size_t bytes = f->stats.bytes, count = f->stats.count;
    int descriptors = f->descriptors;
    tm_alloc own = tm_alloc_libc(NULL);
    tm_alloc_free(&own, f->ends, ENDS_MAX * sizeof *f->ends);
    tm_alloc_free(&own, f->pattern, PATTERN_BYTES);
    tm_alloc_free(&own, f, sizeof *f);
    assert_int_equal(bytes, 0);
    assert_int_equal(count, 0);
    assert_int_equal(descriptor_count(), descriptors);
}

/* -- shorthands ------------------------------------------------------------------------------- */

static inline tm_io_address loopback(uint16_t port)
{
    tm_io_address address = {.len = sizeof(struct sockaddr_in)};
    struct sockaddr_in in = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)},
    };
    memcpy(&address.storage, &in, sizeof in);
    return address;
}

static inline end *listen_on(fixture *f, tm_io_address *bound)
{
    tm_io_address address = loopback(0);
    tm_io_id id;
    assert_int_equal(f->io->ops->listen(f->io, &address, 1024, &id, bound), 0);
    return end_of(f, id);
}

static inline end *connect_start(fixture *f, const tm_io_address *address)
{
    tm_io_id id;
    assert_int_equal(f->io->ops->connect(f->io, address, &id), 0);
    return end_of(f, id);
}

/* A connection between two sockets of the fixture: the dialling end, and *accepted. */
static inline end *pair_make(fixture *f, end **accepted)
{
    tm_io_address bound;
    end *listener = listen_on(f, &bound);
    int before = f->accepted;
    end *e = connect_start(f, &bound);
    RUN_UNTIL(f, e->connected && f->accepted > before);
    assert_int_equal(e->connect_rc, 0);
    *accepted = f->last_accepted;
    end_close(f, listener, false);
    RUN_UNTIL(f, listener->closed);
    return e;
}

static inline void read_start(fixture *f, end *e)
{
    assert_int_equal(f->io->ops->read_start(f->io, e->id), 0);
}

/* Makes one system call of this process answer an error. */
static inline int filter_install(int nr, int error)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)nr, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof code / sizeof code[0], .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

/* A connection whose dialling end is a plain non-blocking socket; *accepted is the fixture's
 * end. */
static inline int raw_pair_make(fixture *f, end **accepted, int receive_bytes)
{
    tm_io_address bound;
    end *listener = listen_on(f, &bound);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    if (receive_bytes) {
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    }
    int before = f->accepted;
    int rc = connect(fd, (struct sockaddr *)&bound.storage, bound.len);
    assert_true(rc == 0 || errno == EINPROGRESS);
    RUN_UNTIL(f, f->accepted > before);
    *accepted = f->last_accepted;
    end_close(f, listener, false);
    RUN_UNTIL(f, listener->closed);
    return fd;
}

#endif
