/* The epoll backend.
 *
 * Facts. Edge-triggered epoll reports a change once; what is not read then must be remembered
 * here. A stream that answers a read with less than was asked is empty, unless its end was
 * reported with it. A write that took less than it was given has armed the next EPOLLOUT. epoll
 * descriptors nest: another loop can watch ours, and an edge that nobody has harvested keeps it
 * readable.
 *
 * Choices.
 * - One epoll_ctl a socket, for both directions and the whole life. No interest is ever changed.
 * - One scratch buffer serves every read, so it stays in the cache; but what is wanted in one place
 *   (io.h: room) is read to there, and the head of the next message behind it. A socket that
 *   floods goes to the end of the ready list after 16 reads or 256 KiB.
 * - send writes at once, from inside the operation, and queues its completion: a reply issued by
 *   a handler is in the kernel in the same turn, and its sent() follows in that turn, after the
 *   reads. A full socket keeps the iovec copy and is written at its next edge. Short results are
 *   handed up as they are: the owner frees what was taken and gathers anew.
 * - A turn that starts with completions or unread sockets skips the system call, at most every
 *   other time: a ping-pong costs three calls (wait, read, write), not four.
 * - epoll_pwait2 gives the deadline in nanoseconds; without it (before 5.11, or filtered) the
 *   wait is rounded up to milliseconds.
 * - The eventfd of the waker is never read: each write is an edge of its own.
 * - An orderly close sends the FIN at once and throws away what comes in until the peer's FIN, a
 *   deadline or a byte bound, because close(2) over unread bytes sends RST, and RST destroys what
 *   the peer has not received yet. EPOLL_CTL_DEL precedes close(2): a forked child that still
 *   holds the descriptor would keep the registration alive.
 * - Under a foreign loop (poll_fd was called) work left for the next turn is signalled through
 *   the eventfd and the internal delays through a timerfd, both inside the epoll set.
 *
 * Trade-off: two system calls an active connection and turn, where a ring needs about one a turn
 * for all; in exchange nothing here depends on the kernel's age, and the loop can belong to
 * somebody else. */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "../base/check.h"
#include "notify.h"
#include "socket.h"

/* Events harvested by one call; more wait for the next turn. */
#define EVENTS_MAX 256
/* How often in one turn the completions are handed out: handlers that send at once in answer to
 * sent() make new ones, and readers must have their turn. */
#define DONE_PASSES_MAX 4

typedef struct epoll_socket {
    tm_socket base;
    tm_list work;  /* in ready or, once everything is over, in ended */
    tm_list done;  /* in done: connect_done or send_done is set */
    bool writable; /* no write has come back short or EAGAIN since the last edge */
    bool hangup;   /* an end or an error was reported: read until it shows */
    bool connect_done;
    bool send_done;
    int connect_rc;
    ssize_t send_rc;
} epoll_socket;

typedef struct epoll_io {
    tm_io io;
    const tm_alloc *alloc;
    int fd;
    int timer_fd; /* -1 until a foreign loop asks for poll_fd */
    tm_waker waker;
    tm_socket_table table;
    tm_tally tally;
    tm_list ready; /* something to read or to accept */
    tm_list done;  /* a connect or a send has ended */
    tm_list ended; /* closed() is due */
    tm_delay linger;
    tm_delay paused;
    uint64_t timer_ns; /* what timer_fd is set to */
    bool foreign;      /* a foreign loop watches fd */
    bool turning;      /* inside epoll_turn */
    bool skipped;      /* the last turn made no wait */
    bool coarse;       /* no epoll_pwait2 */
    uint8_t *scratch;
    struct epoll_event events[EVENTS_MAX];
} epoll_io;

static epoll_io *epoll_of(tm_io *io) { return TM_CONTAINER(io, epoll_io, io); }

static const epoll_io *epoll_of_const(const tm_io *io)
{
    return (const epoll_io *)(const void *)((const char *)io - offsetof(epoll_io, io));
}

static epoll_socket *socket_of(tm_socket *socket)
{
    return TM_CONTAINER(socket, epoll_socket, base);
}

static void work_add(tm_list *list, epoll_socket *s)
{
    if (!tm_list_linked(&s->work)) tm_list_push(list, &s->work);
}

static void done_add(epoll_io *e, epoll_socket *s)
{
    if (!tm_list_linked(&s->done)) tm_list_push(&e->done, &s->done);
}

static bool work_left(const epoll_io *e)
{
    return !tm_list_empty(&e->ready) || !tm_list_empty(&e->done) || !tm_list_empty(&e->ended);
}

/* An operation from outside a turn left work, and the foreign loop may already be waiting. */
static void work_signal(epoll_io *e)
{
    if (e->foreign && !e->turning && work_left(e)) tm_waker_wake(&e->waker);
}

static int watch(epoll_io *e, int fd, tm_io_id id, uint32_t events)
{
    struct epoll_event event = {.events = events | EPOLLET, .data = {.u64 = id}};
    tm_tally_add(&e->tally.system_calls, 1);
    return epoll_ctl(e->fd, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int watch_stream(epoll_io *e, const tm_socket *socket)
{
    return watch(e, socket->fd, socket->id, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
}

/* -- ends ------------------------------------------------------------------------------------- */

/* Nothing more will happen to a closing socket: closed() is due in the next turn. */
static void socket_end(epoll_io *e, epoll_socket *s)
{
    TM_ASSERT(s->base.closing);
    s->base.lingering = false;
    s->base.read_over = true;
    tm_list_remove(&s->base.delay);
    tm_list_remove(&s->work);
    work_add(&e->ended, s);
}

static void epoll_close(tm_io *io, tm_io_id id, bool abort)
{
    epoll_io *e = epoll_of(io);
    tm_socket *socket = tm_socket_find(&e->table, id);
    if (!socket || (socket->closing && !(abort && socket->lingering))) return;
    epoll_socket *s = socket_of(socket);
    bool open = socket->kind == TM_SOCKET_OPEN;
    bool first = !socket->closing;
    socket->closing = true;
    tm_list_remove(&socket->delay);
    tm_list_remove(&s->work);
    if (socket->send_in_flight && !s->send_done) {
        s->send_done = true;
        s->send_rc = -ECANCELED;
        done_add(e, s);
    }
    if (open) {
        tm_tally_add(&e->tally.system_calls, 1);
        if (abort) {
            tm_socket_reset(socket->fd);
        } else if (shutdown(socket->fd, SHUT_WR) == 0 && first && !socket->read_over) {
            socket->lingering = true;
            socket->linger_left = TM_IO_LINGER_BYTES;
            tm_delay_add(&e->linger, socket);
            work_add(&e->ready, s);
        }
    }
    if (!socket->lingering || abort) socket_end(e, s);
    work_signal(e);
}

/* Hands out a send's end, if there is one to hand out. */
static void sent_deliver(epoll_socket *s, const tm_io_sink *sink)
{
    if (!s->send_done) return;
    s->send_done = false;
    s->base.send_in_flight = false;
    sink->sent(sink->ctx, s->base.id, s->send_rc);
}

static void ended_run(epoll_io *e, const tm_io_sink *sink)
{
    tm_list ended;
    tm_list_move(&e->ended, &ended);
    for (tm_list *node; (node = tm_list_pop(&ended));) {
        epoll_socket *s = TM_CONTAINER(node, epoll_socket, work);
        tm_list_remove(&s->done);
        sent_deliver(s, sink);
        tm_io_id id = s->base.id;
        epoll_ctl(e->fd, EPOLL_CTL_DEL, s->base.fd, NULL);
        close(s->base.fd);
        tm_tally_add(&e->tally.system_calls, 2);
        tm_socket_remove(&e->table, &s->base);
        sink->closed(sink->ctx, id);
    }
}

/* -- reading and accepting -------------------------------------------------------------------- */

static void read_end(epoll_io *e, epoll_socket *s, int rc, const tm_io_sink *sink)
{
    s->base.read_over = true;
    if (s->base.closing) {
        socket_end(e, s);
    } else {
        sink->read_ended(sink->ctx, s->base.id, rc);
    }
}

/* Hands out bytes, or throws them away in an orderly close. False when reading must stop. */
static bool bytes_take(epoll_io *e, epoll_socket *s, size_t len, const tm_io_sink *sink)
{
    if (s->base.lingering) {
        if (len < s->base.linger_left) {
            s->base.linger_left -= len;
            return true;
        }
        socket_end(e, s);
        return false;
    }
    tm_tally_add(&e->tally.receives, 1);
    sink->received(sink->ctx, s->base.id, tm_bytes_of(e->scratch, len));
    tm_socket_bulk_begin(&s->base, len, sink);
    return !s->base.closing;
}

static ssize_t read_scratch(epoll_io *e, const epoll_socket *s, bool *all)
{
    ssize_t got = recv(s->base.fd, e->scratch, TM_IO_SCRATCH_BYTES, 0);
    tm_tally_add(&e->tally.system_calls, 1);
    *all = got == TM_IO_SCRATCH_BYTES;
    return got < 0 ? -errno : got;
}

static void read_some(epoll_io *e, epoll_socket *s, const tm_io_sink *sink)
{
    size_t bytes = 0;
    for (int n = 0; n < TM_IO_READ_BATCH_COUNT && bytes < TM_IO_READ_BATCH_BYTES; n++) {
        bool all = false, bulk = s->base.bulk && !s->base.closing;
        ssize_t got = bulk ? tm_socket_read_bulk(&s->base, &e->tally, e->scratch, sink, &all)
                           : read_scratch(e, s, &all);
        if (got == -EINTR) continue;
        if (got == -EAGAIN) return;
        if (got <= 0) {
            read_end(e, s, (int)got, sink);
            return;
        }
        bytes += (size_t)got;
        if (bulk ? s->base.closing : !bytes_take(e, s, (size_t)got, sink)) return;
        if (!all && !s->hangup) return;
    }
    work_add(&e->ready, s);
}

static void accept_some(epoll_io *e, epoll_socket *listener, const tm_io_sink *sink)
{
    for (int n = 0; n < TM_IO_ACCEPT_BATCH; n++) {
        tm_socket *socket;
        tm_io_address peer;
        tm_tally_add(&e->tally.system_calls, 1);
        int rc = tm_socket_accept(&e->table, &listener->base, &socket, &peer);
        if (rc == -EAGAIN) return;
        if (rc == 0) {
            rc = watch_stream(e, socket);
            if (rc) {
                close(socket->fd);
                tm_socket_remove(&e->table, socket);
            }
        }
        if (rc) {
            /* No descriptor, memory or slot: trying again at once would only burn the processor. */
            tm_delay_add(&e->paused, &listener->base);
            return;
        }
        socket_of(socket)->writable = true;
        sink->accepted(sink->ctx, listener->base.id, socket->id, &peer);
        if (listener->base.closing) return;
    }
    work_add(&e->ready, listener);
}

static void ready_run(epoll_io *e, const tm_io_sink *sink)
{
    tm_list ready;
    tm_list_move(&e->ready, &ready);
    for (tm_list *node; (node = tm_list_pop(&ready));) {
        epoll_socket *s = TM_CONTAINER(node, epoll_socket, work);
        if (s->base.kind == TM_SOCKET_LISTENER) {
            accept_some(e, s, sink);
        } else if (!s->base.read_over) {
            read_some(e, s, sink);
        }
    }
}

/* -- sends and connects ----------------------------------------------------------------------- */

static void send_try(epoll_io *e, epoll_socket *s)
{
    tm_tally_add(&e->tally.system_calls, 1);
    const struct iovec *iov = tm_socket_iov(&s->base);
    ssize_t rc = tm_socket_sendmsg(s->base.fd, iov, s->base.iov_count);
    if (rc == -EAGAIN) {
        s->writable = false;
        return;
    }
    if (rc >= 0 && (size_t)rc < s->base.send_bytes) {
        s->writable = false;
        tm_tally_add(&e->tally.short_sends, 1);
    }
    s->send_done = true;
    s->send_rc = rc;
    done_add(e, s);
}

static void done_deliver(epoll_socket *s, const tm_io_sink *sink)
{
    if (s->connect_done && !s->base.closing) {
        s->connect_done = false;
        if (s->connect_rc == 0) s->base.kind = TM_SOCKET_OPEN;
        s->writable = true;
        sink->connected(sink->ctx, s->base.id, s->connect_rc);
    }
    sent_deliver(s, sink);
}

static void done_run(epoll_io *e, int passes, const tm_io_sink *sink)
{
    for (; passes && !tm_list_empty(&e->done); passes--) {
        tm_list done;
        tm_list_move(&e->done, &done);
        for (tm_list *node; (node = tm_list_pop(&done));) {
            done_deliver(TM_CONTAINER(node, epoll_socket, done), sink);
        }
    }
}

/* -- the turn --------------------------------------------------------------------------------- */

static void on_event(epoll_io *e, tm_io_id id, uint32_t events)
{
    tm_socket *socket = tm_socket_find(&e->table, id);
    if (!socket) return; /* the waker, the timer, or a socket of the past */
    epoll_socket *s = socket_of(socket);
    bool end = events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP);
    switch ((tm_socket_kind)socket->kind) {
    case TM_SOCKET_LISTENER:
        if (!socket->closing && !tm_list_linked(&socket->delay)) work_add(&e->ready, s);
        break;
    case TM_SOCKET_CONNECTING:
        if (socket->closing || s->connect_done || !(end || events & EPOLLOUT)) break;
        s->connect_done = true;
        s->connect_rc = tm_socket_connect_result(socket->fd);
        done_add(e, s);
        break;
    case TM_SOCKET_OPEN:
        if (end) s->hangup = true;
        if (end || events & EPOLLIN) {
            bool wanted = socket->closing ? socket->lingering : socket->reading;
            if (wanted && !socket->read_over) work_add(&e->ready, s);
        }
        if (end || events & EPOLLOUT) {
            s->writable = true;
            if (socket->send_in_flight && !s->send_done) send_try(e, s);
        }
        break;
    case TM_SOCKET_FREE: break;
    }
}

/* Waits until until_ns (0: not at all) and harvests. The number of events or -errno. */
static int harvest(epoll_io *e, uint64_t until_ns)
{
    uint64_t now = until_ns && until_ns != UINT64_MAX ? tm_io_now_ns() : 0;
    uint64_t wait_ns = until_ns > now ? until_ns - now : 0;
    bool forever = until_ns == UINT64_MAX;
    int count = -1;
    tm_tally_add(&e->tally.system_calls, 1);
    errno = ENOSYS;
#ifdef SYS_epoll_pwait2
    if (!e->coarse) {
        struct timespec ts = {.tv_sec = (time_t)(wait_ns / TM_S_NS),
                              .tv_nsec = (long)(wait_ns % TM_S_NS)};
        count = (int)syscall(SYS_epoll_pwait2, e->fd, e->events, EVENTS_MAX, forever ? NULL : &ts,
                             NULL, 0);
    }
#endif
    if (count < 0 && (errno == ENOSYS || errno == EPERM)) {
        e->coarse = true;
        uint64_t wait_ms = wait_ns / TM_MS_NS + (wait_ns % TM_MS_NS != 0);
        int bounded = wait_ms > INT32_MAX ? INT32_MAX : (int)wait_ms;
        count = epoll_wait(e->fd, e->events, EVENTS_MAX, forever ? -1 : bounded);
    }
    if (count >= 0) return count;
    return errno == EINTR ? 0 : -errno;
}

/* Ends lingering, and lets paused listeners try again. */
static void delays_run(epoll_io *e)
{
    if (tm_list_empty(&e->linger.sockets) && tm_list_empty(&e->paused.sockets)) return;
    uint64_t now = tm_io_now_ns();
    for (tm_socket *s; (s = tm_delay_expired(&e->linger, now));) socket_end(e, socket_of(s));
    for (tm_socket *s; (s = tm_delay_expired(&e->paused, now));) work_add(&e->ready, socket_of(s));
}

static uint64_t delays_next_ns(const epoll_io *e)
{
    uint64_t linger = tm_delay_next_ns(&e->linger);
    uint64_t paused = tm_delay_next_ns(&e->paused);
    return linger < paused ? linger : paused;
}

/* Before the turn returns to a foreign loop: its poll must see what is left to do, and when. */
static void rest(epoll_io *e)
{
    uint64_t next = delays_next_ns(e);
    if (next != e->timer_ns) {
        struct itimerspec at = {{0, 0}, {0, 0}};
        if (next != UINT64_MAX) {
            at.it_value.tv_sec = (time_t)(next / TM_S_NS);
            at.it_value.tv_nsec = (long)(next % TM_S_NS);
        }
        timerfd_settime(e->timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
        tm_tally_add(&e->tally.system_calls, 1);
        e->timer_ns = next;
    }
    tm_waker_rest(&e->waker, work_left(e));
}

static int epoll_turn(tm_io *io, uint64_t deadline_ns, const tm_io_sink *sink)
{
    epoll_io *e = epoll_of(io);
    tm_tally_add(&e->tally.turns, 1);
    e->turning = true;
    bool woken = tm_waker_take(&e->waker);
    delays_run(e);
    bool busy = work_left(e);
    int count = 0;
    if (busy && !e->skipped) {
        e->skipped = true;
    } else {
        e->skipped = false;
        uint64_t until = delays_next_ns(e);
        if (deadline_ns < until) until = deadline_ns;
        bool sleep = until && !busy && !woken && tm_waker_sleep(&e->waker);
        count = harvest(e, sleep ? until : 0);
        if (sleep) tm_waker_take(&e->waker);
    }
    for (int i = 0; i < count; i++) on_event(e, e->events[i].data.u64, e->events[i].events);
    ended_run(e, sink);
    /* Sends of before first, so that a reply seldom overtakes the sent() of its request. */
    done_run(e, 1, sink);
    ready_run(e, sink);
    done_run(e, DONE_PASSES_MAX, sink);
    e->turning = false;
    if (e->foreign) rest(e);
    return count < 0 ? count : 0;
}

static void epoll_gather(tm_io *io, unsigned ns)
{
    if (!work_left(epoll_of(io))) tm_notify_pause(ns);
}

static void epoll_wake(tm_io *io) { tm_waker_wake(&epoll_of(io)->waker); }

static int epoll_poll_fd(tm_io *io)
{
    epoll_io *e = epoll_of(io);
    if (!e->foreign) {
        e->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        if (e->timer_fd < 0 || watch(e, e->timer_fd, 0, EPOLLIN) < 0) {
            if (e->timer_fd >= 0) close(e->timer_fd);
            e->timer_fd = -1;
            return -1;
        }
        e->foreign = true;
        rest(e);
    }
    return e->fd;
}

/* -- operations ------------------------------------------------------------------------------- */

/* Puts a fresh descriptor into the table and the epoll set; closes it when there is no room. */
static int socket_enter(epoll_io *e, int fd, tm_socket_kind kind, tm_socket **socket)
{
    int rc = tm_socket_add(&e->table, kind, fd, socket);
    if (rc == 0) {
        rc = kind == TM_SOCKET_LISTENER ? watch(e, fd, (*socket)->id, EPOLLIN)
                                        : watch_stream(e, *socket);
        if (rc) tm_socket_remove(&e->table, *socket);
    }
    if (rc) close(fd);
    return rc;
}

static int epoll_listen(tm_io *io, const tm_io_address *address, int backlog, tm_io_id *id,
                        tm_io_address *bound)
{
    epoll_io *e = epoll_of(io);
    int fd = tm_socket_listen_fd(address, backlog, bound);
    if (fd < 0) return fd;
    tm_socket *socket;
    int rc = socket_enter(e, fd, TM_SOCKET_LISTENER, &socket);
    if (rc) return rc;
    *id = socket->id;
    return 0;
}

static int epoll_connect(tm_io *io, const tm_io_address *address, tm_io_id *id)
{
    epoll_io *e = epoll_of(io);
    int result;
    int fd = tm_socket_connect_fd(address, &result);
    tm_tally_add(&e->tally.system_calls, 3);
    if (fd < 0) return fd;
    tm_socket *socket;
    int rc = socket_enter(e, fd, TM_SOCKET_CONNECTING, &socket);
    if (rc) return rc;
    if (result != -EINPROGRESS) {
        epoll_socket *s = socket_of(socket);
        s->connect_done = true;
        s->connect_rc = result;
        done_add(e, s);
        work_signal(e);
    }
    *id = socket->id;
    return 0;
}

static int epoll_read_start(tm_io *io, tm_io_id id)
{
    epoll_io *e = epoll_of(io);
    tm_socket *socket;
    int rc = tm_socket_get(&e->table, id, TM_SOCKET_OPEN, &socket);
    if (rc || socket->reading) return rc;
    socket->reading = true;
    /* The edge of what came before was not acted on. */
    work_add(&e->ready, socket_of(socket));
    work_signal(e);
    return 0;
}

static int epoll_send(tm_io *io, tm_io_id id, const struct iovec *iov, int count)
{
    epoll_io *e = epoll_of(io);
    tm_socket *socket;
    int rc = tm_socket_send_begin(&e->table, id, iov, count, &socket);
    if (rc) return rc;
    tm_tally_add(&e->tally.sends, 1);
    epoll_socket *s = socket_of(socket);
    if (s->writable) send_try(e, s);
    work_signal(e);
    return 0;
}

static ssize_t epoll_send_now(tm_io *io, tm_io_id id, const struct iovec *iov, int count)
{
    epoll_io *e = epoll_of(io);
    return tm_socket_send_now(&e->table, &e->tally, id, iov, count);
}

static int epoll_shutdown_write(tm_io *io, tm_io_id id)
{
    epoll_io *e = epoll_of(io);
    tm_socket *socket;
    int rc = tm_socket_get(&e->table, id, TM_SOCKET_OPEN, &socket);
    if (rc) return rc;
    if (socket->send_in_flight) return TM_EUSE_STATE;
    socket->write_over = true;
    tm_tally_add(&e->tally.system_calls, 1);
    return shutdown(socket->fd, SHUT_WR) < 0 ? -errno : 0;
}

static int epoll_address(tm_io *io, tm_io_id id, tm_io_address *address)
{
    return tm_socket_address(&epoll_of(io)->table, id, address);
}

static void epoll_counters(const tm_io *io, tm_io_counters *counters)
{
    tm_tally_read(&epoll_of_const(io)->tally, counters);
}

/* -- life ------------------------------------------------------------------------------------- */

static void epoll_forked(tm_io *io)
{
    epoll_io *e = epoll_of(io);
    tm_socket_close_all(&e->table);
    close(e->fd);
    e->fd = -1;
    if (e->timer_fd >= 0) close(e->timer_fd);
    e->timer_fd = -1;
    tm_waker_fini(&e->waker);
}

static void epoll_destroy(tm_io *io)
{
    epoll_io *e = epoll_of(io);
    for (uint32_t i = 0; i < e->table.used; i++) {
        tm_socket *socket = tm_socket_at(&e->table, i);
        if (socket->kind == TM_SOCKET_OPEN && socket->fd >= 0) shutdown(socket->fd, SHUT_WR);
    }
    tm_socket_close_all(&e->table);
    tm_socket_table_fini(&e->table);
    tm_waker_fini(&e->waker);
    if (e->timer_fd >= 0) close(e->timer_fd);
    if (e->fd >= 0) close(e->fd);
    tm_alloc_free(e->alloc, e->scratch, TM_IO_SCRATCH_BYTES);
    tm_alloc_free(e->alloc, e, sizeof *e);
}

static const tm_io_ops epoll_ops = {
    .name = "epoll",
    .destroy = epoll_destroy,
    .turn = epoll_turn,
    .gather = epoll_gather,
    .wake = epoll_wake,
    .poll_fd = epoll_poll_fd,
    .listen = epoll_listen,
    .connect = epoll_connect,
    .read_start = epoll_read_start,
    .send = epoll_send,
    .send_now = epoll_send_now,
    .shutdown_write = epoll_shutdown_write,
    .close = epoll_close,
    .address = epoll_address,
    .counters = epoll_counters,
    .forked = epoll_forked,
    .now_ns = tm_socket_now_ns,
    .random = tm_socket_random,
};

int tm_io_epoll_create(const tm_io_options *options, tm_io **io)
{
    epoll_io *e = tm_alloc_zero(options->alloc, sizeof *e);
    if (!e) return TM_ENOMEM;
    e->io.ops = &epoll_ops;
    e->alloc = options->alloc;
    e->fd = e->timer_fd = e->waker.fd = -1;
    e->timer_ns = UINT64_MAX;
    tm_list_init(&e->ready);
    tm_list_init(&e->done);
    tm_list_init(&e->ended);
    tm_delay_init(&e->linger, TM_IO_LINGER_MS * TM_MS_NS);
    tm_delay_init(&e->paused, TM_IO_ACCEPT_RETRY_MS * TM_MS_NS);
    int rc = tm_socket_table_init(&e->table, options, sizeof(epoll_socket));
    if (rc) goto fail;
    rc = TM_ENOMEM;
    e->scratch = tm_alloc_get(options->alloc, TM_IO_SCRATCH_BYTES);
    if (!e->scratch) goto fail;
    e->fd = epoll_create1(EPOLL_CLOEXEC);
    rc = e->fd < 0 ? -errno : tm_waker_init(&e->waker);
    if (rc == 0) rc = watch(e, e->waker.fd, 0, EPOLLIN);
    if (rc) goto fail;
    *io = &e->io;
    return 0;
fail:
    epoll_destroy(&e->io);
    return rc;
}
