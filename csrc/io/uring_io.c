/* The io_uring backend: sockets and operations on the ring of uring.c, where the essay is. */
#include "uring.h"

#include <stdio.h>

#ifndef TM_HAVE_LIBURING

int tm_io_uring_create(const tm_io_options *options, tm_io **io, char *why, size_t why_size)
{
    (void)options;
    (void)io;
    snprintf(why, why_size, "this build was made without liburing");
    return TM_ENOTSUP;
}

#else

#include <errno.h>
#include <unistd.h>

#include "../base/check.h"

/* Completions taken in one turn: the engine has timers and commands to see to as well. */
#define REAP_MAX 4096
/* How often one turn submits, when sends that end are followed by others: who waits for room is told
 * once for all of them. Readers must have their turn. */
#define SEND_PASSES_MAX 4
/* Submissions one dirty socket may need: receive, send, poll, cancel, stop. */
#define WANTS_MAX 5

#define BIT(tag) (1U << (tag))
#define RECV BIT(TM_RING_RECEIVE)
#define SEND BIT(TM_RING_SEND)
#define POLL BIT(TM_RING_POLL)
#define CANCEL BIT(TM_RING_CANCEL)
#define STOP BIT(TM_RING_STOP)

typedef struct uring_socket {
    tm_socket base;
    tm_list dirty;  /* in dirty exactly while want is not 0 */
    tm_list work;   /* in parked, accepting, bulk, or ended */
    tm_list done;   /* in done: connect_done or send_done is set */
    unsigned want;  /* BITs to submit */
    unsigned armed; /* BITs submitted whose last completion has not come */
    bool cancelled; /* a cancel was wanted already */
    bool connect_done;
    bool send_done;
    bool send_again; /* the send came back empty-handed: wait for room first */
    int connect_rc;
    ssize_t send_rc;
    struct msghdr message;
} uring_socket;

typedef struct uring {
    tm_io io;
    const tm_alloc *alloc;
    tm_ring *ring; /* NULL in a forked child */
    bool wake_armed;
    bool chained;       /* a send that has ended was followed by another one */
    unsigned gather_ns; /* how long the next turn waits for more than one completion */
    tm_waker waker;
    tm_socket_table table;
    tm_tally tally;
    tm_list dirty;
    tm_list parked;    /* wait for a receive buffer */
    tm_list accepting; /* listeners with a connection to take */
    tm_list bulk;      /* sockets in bulk with something to read */
    tm_list done;
    tm_list ended; /* closed() is due */
    tm_delay linger;
    tm_delay paused;
    uint8_t beside[TM_IO_BESIDE_BYTES];
} uring;

static uring *uring_of(tm_io *io) { return TM_CONTAINER(io, uring, io); }

static const uring *uring_of_const(const tm_io *io)
{
    return (const uring *)(const void *)((const char *)io - offsetof(uring, io));
}

static uring_socket *socket_of(tm_socket *socket)
{
    return TM_CONTAINER(socket, uring_socket, base);
}

/* -- submissions ------------------------------------------------------------------------------ */

static void want(uring *u, uring_socket *s, unsigned bits)
{
    s->want |= bits;
    if (!tm_list_linked(&s->dirty)) tm_list_push(&u->dirty, &s->dirty);
}

static void unwant(uring_socket *s, unsigned bits)
{
    s->want &= ~bits;
    if (!s->want) tm_list_remove(&s->dirty);
}

static void socket_submit(uring *u, uring_socket *s)
{
    TM_ASSERT(!(s->want & s->armed));
    tm_io_id id = s->base.id;
    int fd = s->base.fd;
    if (s->want & RECV) tm_ring_receive(u->ring, id, fd);
    if (s->want & SEND) {
        s->message = (struct msghdr){.msg_iov = (struct iovec *)tm_socket_iov(&s->base),
                                     .msg_iovlen = (size_t)s->base.iov_count};
        tm_ring_send(u->ring, id, fd, &s->message, s->send_again);
    }
    if (s->want & POLL) {
        if (s->base.kind == TM_SOCKET_LISTENER)
            tm_ring_poll_listener(u->ring, id, fd);
        else
            (s->base.kind == TM_SOCKET_OPEN ? tm_ring_poll_in : tm_ring_poll_out)(u->ring, id, fd);
    }
    if (s->want & STOP) tm_ring_stop(u->ring, id);
    if (s->want & CANCEL) tm_ring_cancel(u->ring, id, fd);
    s->armed |= s->want;
    s->want = 0;
}

/* Makes the submissions of a turn, as many as the queue holds. */
static void dirty_submit(uring *u)
{
    if (!u->wake_armed && tm_ring_room(u->ring)) {
        tm_ring_wake(u->ring, u->waker.fd);
        u->wake_armed = true;
    }
    unsigned buffers = tm_ring_buffers(u->ring);
    for (unsigned n = 0; n < buffers && !tm_list_empty(&u->parked); n++) {
        want(u, TM_CONTAINER(tm_list_pop(&u->parked), uring_socket, work), RECV);
    }
    while (!tm_list_empty(&u->dirty) && tm_ring_room(u->ring) >= WANTS_MAX) {
        socket_submit(u, TM_CONTAINER(tm_list_pop(&u->dirty), uring_socket, dirty));
    }
}

/* -- ends ------------------------------------------------------------------------------------- */

static void done_add(uring *u, uring_socket *s)
{
    if (!tm_list_linked(&s->done)) tm_list_push(&u->done, &s->done);
}

/* A closing socket that neither lingers nor has a request anywhere: closed() is due next turn. */
static void socket_settle(uring *u, uring_socket *s)
{
    if (!s->base.closing || s->base.lingering || s->want || s->armed) return;
    if (!tm_list_linked(&s->work)) tm_list_push(&u->ended, &s->work);
}

/* Ends what a closing socket still has in the kernel. */
static void socket_finish(uring *u, uring_socket *s)
{
    TM_ASSERT(s->base.closing);
    s->base.lingering = false;
    s->base.read_over = true;
    tm_list_remove(&s->base.delay);
    tm_list_remove(&s->work);
    unwant(s, RECV | POLL);
    if (s->armed && !s->cancelled) {
        s->cancelled = true;
        if (s->base.kind == TM_SOCKET_OPEN) shutdown(s->base.fd, SHUT_RDWR);
        want(u, s, CANCEL);
    }
    socket_settle(u, s);
}

static void uring_close(tm_io *io, tm_io_id id, bool abort)
{
    uring *u = uring_of(io);
    tm_socket *socket = tm_socket_find(&u->table, id);
    if (!socket || (socket->closing && !(abort && socket->lingering))) return;
    uring_socket *s = socket_of(socket);
    bool first = !socket->closing;
    socket->closing = true;
    tm_list_remove(&socket->delay);
    tm_list_remove(&s->work);
    if (s->want & SEND) {
        s->send_done = true;
        s->send_rc = -ECANCELED;
        done_add(u, s);
    }
    unwant(s, ~CANCEL);
    if (socket->kind == TM_SOCKET_OPEN) {
        tm_tally_add(&u->tally.system_calls, 1);
        if (abort) {
            tm_socket_reset(socket->fd);
        } else if (shutdown(socket->fd, SHUT_WR) == 0 && first && !socket->read_over) {
            socket->lingering = true;
            socket->linger_left = TM_IO_LINGER_BYTES;
            tm_delay_add(&u->linger, socket);
            if (!(s->armed & RECV)) want(u, s, RECV);
        }
    }
    if (!socket->lingering || abort) socket_finish(u, s);
}

static void sent_deliver(uring_socket *s, const tm_io_sink *sink)
{
    if (!s->send_done) return;
    s->send_done = false;
    s->base.send_in_flight = false;
    sink->sent(sink->ctx, s->base.id, s->send_rc);
}

static void ended_run(uring *u, const tm_io_sink *sink)
{
    tm_list ended;
    tm_list_move(&u->ended, &ended);
    for (tm_list *node; (node = tm_list_pop(&ended));) {
        uring_socket *s = TM_CONTAINER(node, uring_socket, work);
        tm_list_remove(&s->done);
        sent_deliver(s, sink);
        TM_ASSERT(!s->want && !s->armed);
        tm_io_id id = s->base.id;
        close(s->base.fd);
        tm_tally_add(&u->tally.system_calls, 1);
        tm_socket_remove(&u->table, &s->base);
        sink->closed(sink->ctx, id);
    }
}

/* -- completions ------------------------------------------------------------------------------ */

static bool recv_wanted(const uring_socket *s)
{
    if (s->base.read_over) return false;
    return s->base.closing ? s->base.lingering : s->base.reading;
}

/* Goes on reading: from the ring's buffers, or in bulk, which begins when the receive has ended. */
static void read_on(uring *u, uring_socket *s)
{
    bool bulk = s->base.bulk && !s->base.closing;
    if (!bulk && !(s->armed & (RECV | POLL))) want(u, s, RECV);
    if (bulk && s->armed & RECV && !(s->armed & STOP)) want(u, s, STOP);
    if (bulk && !(s->armed & (RECV | POLL))) want(u, s, POLL);
}

static void on_bytes(uring *u, uring_socket *s, tm_bytes bytes, const tm_io_sink *sink)
{
    if (!s->base.closing) {
        tm_tally_add(&u->tally.receives, 1);
        sink->received(sink->ctx, s->base.id, bytes);
        if (!s->base.bulk) tm_socket_bulk_begin(&s->base, bytes.len, sink);
    } else if (bytes.len < s->base.linger_left) {
        s->base.linger_left -= bytes.len;
    } else {
        socket_finish(u, s);
    }
}

static void on_recv(uring *u, uring_socket *s, int res, tm_bytes bytes, const tm_io_sink *sink)
{
    if (!recv_wanted(s)) return;
    /* It was stopped, to go on in bulk. */
    bool again = res == -EINTR || res == -EAGAIN || res == -ECANCELED;
    if (res > 0) {
        on_bytes(u, s, bytes, sink);
    } else if (res == -ENOBUFS) {
        tm_tally_add(&u->tally.buffers_empty, 1);
        if (!(s->armed & RECV)) tm_list_push(&u->parked, &s->work);
    } else if (!again) {
        s->base.read_over = true;
        if (s->base.closing) {
            socket_finish(u, s);
        } else {
            sink->read_ended(sink->ctx, s->base.id, res);
        }
    }
    /* The queue overflowed, or the kernel ended the request for another reason of its own. */
    if (recv_wanted(s) && !tm_list_linked(&s->work)) read_on(u, s);
}

/* One socket in bulk: reads until there is nothing more, or the others should have their turn. */
static void bulk_read(uring *u, uring_socket *s, const tm_io_sink *sink)
{
    bool all = true;
    for (size_t bytes = 0; all && s->base.bulk && bytes < TM_IO_READ_BATCH_BYTES;) {
        all = false;
        ssize_t got = tm_socket_read_bulk(&s->base, &u->tally, u->beside, sink, &all);
        if (s->base.closing) return;
        if (got == -EAGAIN || got == -EINTR) break;
        if (got <= 0) {
            s->base.read_over = true;
            sink->read_ended(sink->ctx, s->base.id, (int)got);
            return;
        }
        bytes += (size_t)got;
    }
    if (all && s->base.bulk)
        tm_list_push(&u->bulk, &s->work);
    else
        read_on(u, s);
}

static void bulk_run(uring *u, const tm_io_sink *sink)
{
    tm_list bulk;
    tm_list_move(&u->bulk, &bulk);
    for (tm_list *node; (node = tm_list_pop(&bulk));) {
        bulk_read(u, TM_CONTAINER(node, uring_socket, work), sink);
    }
}

static void on_send(uring *u, uring_socket *s, int res, const tm_io_sink *sink)
{
    if ((res == -EAGAIN || res == -EINTR) && !s->base.closing) {
        s->send_again = true;
        want(u, s, SEND);
        return;
    }
    if (res >= 0 && (size_t)res < s->base.send_bytes) tm_tally_add(&u->tally.short_sends, 1);
    s->send_done = true;
    s->send_rc = res;
    s->send_again = false;
    sent_deliver(s, sink);
    if (s->want & SEND) u->chained = true;
}

static void connect_deliver(uring_socket *s, int rc, const tm_io_sink *sink)
{
    if (rc == 0) s->base.kind = TM_SOCKET_OPEN;
    sink->connected(sink->ctx, s->base.id, rc);
}

static void on_poll(uring *u, uring_socket *s, int res, const tm_io_sink *sink)
{
    if (s->base.closing) return;
    if (s->base.kind == TM_SOCKET_CONNECTING) {
        tm_tally_add(&u->tally.system_calls, 1);
        connect_deliver(s, res < 0 ? res : tm_socket_connect_result(s->base.fd), sink);
        return;
    }
    if (s->base.kind == TM_SOCKET_OPEN) {
        if (!s->base.read_over && !tm_list_linked(&s->work)) tm_list_push(&u->bulk, &s->work);
        return;
    }
    bool waits = tm_list_linked(&s->work) || tm_list_linked(&s->base.delay);
    if (!waits && res >= 0) tm_list_push(&u->accepting, &s->work);
    /* A poll that failed is tried again like an accept without a descriptor. */
    if (!waits && res < 0) tm_delay_add(&u->paused, &s->base);
    if (!(s->armed & POLL)) want(u, s, POLL);
}

static void on_completion(uring *u, const tm_ring_completion *c, const tm_io_sink *sink)
{
    if (c->tag == TM_RING_WAKE) {
        u->wake_armed = false;
        return;
    }
    tm_socket *socket = tm_socket_find(&u->table, c->id);
    if (!socket) return;
    uring_socket *s = socket_of(socket);
    if (!c->more) s->armed &= ~BIT(c->tag);
    if (c->tag == TM_RING_RECEIVE) on_recv(u, s, c->res, c->bytes, sink);
    if (c->tag == TM_RING_SEND) on_send(u, s, c->res, sink);
    if (c->tag == TM_RING_POLL) on_poll(u, s, c->res, sink);
    socket_settle(u, s);
}

static int reap(uring *u, const tm_io_sink *sink)
{
    tm_ring_completion completion;
    int rc = 1;
    u->chained = false;
    for (int n = 0; n < REAP_MAX && (rc = tm_ring_take(u->ring, &completion)) == 1; n++) {
        on_completion(u, &completion, sink);
        tm_ring_retire(u->ring, &completion);
    }
    if (rc < 0) return rc;
    tm_ring_replenish(u->ring);
    return 0;
}

static void accept_some(uring *u, uring_socket *listener, const tm_io_sink *sink)
{
    for (int n = 0; n < TM_IO_ACCEPT_BATCH; n++) {
        tm_socket *socket;
        tm_io_address peer;
        tm_tally_add(&u->tally.system_calls, 1);
        int rc = tm_socket_accept(&u->table, &listener->base, &socket, &peer);
        if (rc == -EAGAIN) return;
        if (rc) {
            /* No descriptor, memory or slot: trying again at once would only burn the processor. */
            tm_delay_add(&u->paused, &listener->base);
            return;
        }
        sink->accepted(sink->ctx, listener->base.id, socket->id, &peer);
        if (listener->base.closing) return;
    }
    tm_list_push(&u->accepting, &listener->work);
}

static void accepting_run(uring *u, const tm_io_sink *sink)
{
    tm_list accepting;
    tm_list_move(&u->accepting, &accepting);
    for (tm_list *node; (node = tm_list_pop(&accepting));) {
        accept_some(u, TM_CONTAINER(node, uring_socket, work), sink);
    }
}

/* Connects that ended at once, and sends that were taken back. */
static void done_run(uring *u, const tm_io_sink *sink)
{
    tm_list done;
    tm_list_move(&u->done, &done);
    for (tm_list *node; (node = tm_list_pop(&done));) {
        uring_socket *s = TM_CONTAINER(node, uring_socket, done);
        if (s->connect_done && !s->base.closing) {
            s->connect_done = false;
            connect_deliver(s, s->connect_rc, sink);
        }
        sent_deliver(s, sink);
    }
}

/* -- the turn --------------------------------------------------------------------------------- */

static void delays_run(uring *u)
{
    if (tm_list_empty(&u->linger.sockets) && tm_list_empty(&u->paused.sockets)) return;
    uint64_t now = tm_io_now_ns();
    for (tm_socket *s; (s = tm_delay_expired(&u->linger, now));) socket_finish(u, socket_of(s));
    for (tm_socket *s; (s = tm_delay_expired(&u->paused, now));) {
        tm_list_push(&u->accepting, &socket_of(s)->work);
    }
}

static uint64_t turn_until_ns(const uring *u, uint64_t deadline_ns)
{
    uint64_t linger = tm_delay_next_ns(&u->linger);
    uint64_t paused = tm_delay_next_ns(&u->paused);
    uint64_t next = linger < paused ? linger : paused;
    return next < deadline_ns ? next : deadline_ns;
}

static bool work_left(const uring *u)
{
    return !tm_list_empty(&u->dirty) || !tm_list_empty(&u->parked) ||
           !tm_list_empty(&u->accepting) || !tm_list_empty(&u->bulk) || !tm_list_empty(&u->done) ||
           !tm_list_empty(&u->ended);
}

static int uring_turn(tm_io *io, uint64_t deadline_ns, const tm_io_sink *sink)
{
    uring *u = uring_of(io);
    tm_tally_add(&u->tally.turns, 1);
    bool woken = tm_waker_take(&u->waker);
    delays_run(u);
    dirty_submit(u);
    uint64_t until = turn_until_ns(u, deadline_ns);
    bool rests = !work_left(u);
    bool gather = rests && u->gather_ns;
    bool wait = !gather && rests && until && !woken && tm_waker_sleep(&u->waker);
    if (gather) until = tm_io_now_ns() + u->gather_ns;
    u->gather_ns = 0;
    int rc = tm_ring_enter(u->ring, wait || gather ? until : 0, gather ? TM_GATHER_COUNT : 1);
    if (wait) tm_waker_take(&u->waker);
    if (rc) return rc;
    ended_run(u, sink);
    rc = reap(u, sink);
    for (int pass = 1; !rc && u->chained && pass < SEND_PASSES_MAX; pass++) {
        dirty_submit(u);
        rc = tm_ring_enter(u->ring, 0, 1);
        if (!rc) rc = reap(u, sink);
    }
    bulk_run(u, sink);
    accepting_run(u, sink);
    done_run(u, sink);
    return rc;
}

static void uring_gather(tm_io *io, unsigned ns) { uring_of(io)->gather_ns = ns; }

static void uring_wake(tm_io *io) { tm_waker_wake(&uring_of(io)->waker); }

static int uring_poll_fd(tm_io *io)
{
    (void)io;
    return -1;
}

/* -- operations ------------------------------------------------------------------------------- */

static int uring_listen(tm_io *io, const tm_io_address *address, int backlog, tm_io_id *id,
                        tm_io_address *bound)
{
    uring *u = uring_of(io);
    int fd = tm_socket_listen_fd(address, backlog, bound);
    if (fd < 0) return fd;
    tm_socket *socket;
    int rc = tm_socket_add(&u->table, TM_SOCKET_LISTENER, fd, &socket);
    if (rc) {
        close(fd);
        return rc;
    }
    want(u, socket_of(socket), POLL);
    *id = socket->id;
    return 0;
}

static int uring_connect(tm_io *io, const tm_io_address *address, tm_io_id *id)
{
    uring *u = uring_of(io);
    int result;
    int fd = tm_socket_connect_fd(address, &result);
    tm_tally_add(&u->tally.system_calls, 3);
    if (fd < 0) return fd;
    tm_socket *socket;
    int rc = tm_socket_add(&u->table, TM_SOCKET_CONNECTING, fd, &socket);
    if (rc) {
        close(fd);
        return rc;
    }
    uring_socket *s = socket_of(socket);
    if (result == -EINPROGRESS) {
        want(u, s, POLL);
    } else {
        s->connect_done = true;
        s->connect_rc = result;
        done_add(u, s);
    }
    *id = socket->id;
    return 0;
}

static int uring_read_start(tm_io *io, tm_io_id id)
{
    uring *u = uring_of(io);
    tm_socket *socket;
    int rc = tm_socket_get(&u->table, id, TM_SOCKET_OPEN, &socket);
    if (rc || socket->reading) return rc;
    socket->reading = true;
    want(u, socket_of(socket), RECV);
    return 0;
}

static int uring_send(tm_io *io, tm_io_id id, const struct iovec *iov, int count)
{
    uring *u = uring_of(io);
    tm_socket *socket;
    int rc = tm_socket_send_begin(&u->table, id, iov, count, &socket);
    if (rc) return rc;
    tm_tally_add(&u->tally.sends, 1);
    want(u, socket_of(socket), SEND);
    return 0;
}

static ssize_t uring_send_now(tm_io *io, tm_io_id id, const struct iovec *iov, int count)
{
    uring *u = uring_of(io);
    return tm_socket_send_now(&u->table, &u->tally, id, iov, count);
}

static int uring_shutdown_write(tm_io *io, tm_io_id id)
{
    uring *u = uring_of(io);
    tm_socket *socket;
    int rc = tm_socket_get(&u->table, id, TM_SOCKET_OPEN, &socket);
    if (rc) return rc;
    if (socket->send_in_flight) return TM_EUSE_STATE;
    socket->write_over = true;
    tm_tally_add(&u->tally.system_calls, 1);
    return shutdown(socket->fd, SHUT_WR) < 0 ? -errno : 0;
}

static int uring_address(tm_io *io, tm_io_id id, tm_io_address *address)
{
    return tm_socket_address(&uring_of(io)->table, id, address);
}

static void uring_counters(const tm_io *io, tm_io_counters *counters)
{
    tm_tally_read(&uring_of_const(io)->tally, counters);
}

/* -- life ------------------------------------------------------------------------------------- */

static void uring_forked(tm_io *io)
{
    uring *u = uring_of(io);
    tm_ring_forked(u->ring);
    u->ring = NULL;
    tm_socket_close_all(&u->table);
    tm_waker_fini(&u->waker);
}

static void uring_destroy(tm_io *io)
{
    uring *u = uring_of(io);
    /* Ends the requests and sends the FINs; close(2) alone would do neither. */
    for (uint32_t i = 0; i < u->table.used; i++) {
        tm_socket *socket = tm_socket_at(&u->table, i);
        if (socket->kind == TM_SOCKET_OPEN && socket->fd >= 0) shutdown(socket->fd, SHUT_RDWR);
    }
    bool drained = !u->ring || tm_ring_destroy(u->ring);
    tm_socket_close_all(&u->table);
    tm_waker_fini(&u->waker);
    if (!drained) return;
    tm_socket_table_fini(&u->table);
    tm_alloc_free(u->alloc, u, sizeof *u);
}

static const tm_io_ops uring_ops = {
    .name = "uring",
    .gathers = true,
    .destroy = uring_destroy,
    .turn = uring_turn,
    .gather = uring_gather,
    .wake = uring_wake,
    .poll_fd = uring_poll_fd,
    .listen = uring_listen,
    .connect = uring_connect,
    .read_start = uring_read_start,
    .send = uring_send,
    .send_now = uring_send_now,
    .shutdown_write = uring_shutdown_write,
    .close = uring_close,
    .address = uring_address,
    .counters = uring_counters,
    .forked = uring_forked,
    .now_ns = tm_socket_now_ns,
    .random = tm_socket_random,
};

int tm_io_uring_create(const tm_io_options *options, tm_io **io, char *why, size_t why_size)
{
    snprintf(why, why_size, "the table of sockets cannot be made");
    uring *u = tm_alloc_zero(options->alloc, sizeof *u);
    if (!u) return TM_ENOMEM;
    u->io.ops = &uring_ops;
    u->alloc = options->alloc;
    u->waker.fd = -1;
    tm_list_init(&u->dirty);
    tm_list_init(&u->parked);
    tm_list_init(&u->accepting);
    tm_list_init(&u->bulk);
    tm_list_init(&u->done);
    tm_list_init(&u->ended);
    tm_delay_init(&u->linger, TM_IO_LINGER_MS * TM_MS_NS);
    tm_delay_init(&u->paused, TM_IO_ACCEPT_RETRY_MS * TM_MS_NS);
    int rc = tm_socket_table_init(&u->table, options, sizeof(uring_socket));
    if (rc == 0) rc = tm_waker_init(&u->waker);
    if (rc == 0) rc = tm_ring_create(options->alloc, &u->tally, &u->ring, why, why_size);
    if (rc) {
        uring_destroy(&u->io);
        return rc;
    }
    *io = &u->io;
    return 0;
}

#endif
