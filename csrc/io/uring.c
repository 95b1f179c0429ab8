/* The io_uring backend: why it is as it is, and the ring. Sockets and operations are in
 * uring_io.c.
 *
 * Facts that shape it. With DEFER_TASKRUN completions are posted only inside
 * io_uring_enter(GETEVENTS) of the thread that owns the ring: the ring's descriptor is useless in
 * another poll loop, and a plain look at the completion queue sees nothing new. close(2) neither
 * ends an armed receive nor sends a FIN; shutdown(2) and dissolving the association do. A
 * multishot receive on an empty buffer ring fails at once unless POLL_FIRST is set. Whatever its
 * result says, a completion without F_MORE is the last of its request. Ring memory counts against
 * RLIMIT_MEMLOCK from 6.14 on and is released late.
 *
 * Choices.
 * - SINGLE_ISSUER | DEFER_TASKRUN | SUBMIT_ALL | CQSIZE | CLAMP. NO_SQARRAY is left to liburing:
 *   2.6 and later set it themselves, earlier ones write an index array that would then lie over
 *   the ring's head. No SQPOLL, no registered ring or files, no links, no timeouts: cold paths
 *   are plain calls.
 * - Exactly one enter a turn, with GETEVENTS and EXT_ARG (and NO_IOWAIT where it exists, so that
 *   an idle node does not look like a busy disk). EINTR, EBUSY, EAGAIN are back-pressure: reap,
 *   go on.
 * - A turn that gathers waits in that one enter for many completions with a deadline: wait_nr and a
 *   timeout are as old as EXT_ARG. The waker stays awake meanwhile, so nobody writes to its eventfd.
 * - Operations only mark what a socket wants and put it on the dirty list; the next turn makes
 *   the submissions. A full queue is then no error anywhere, and a send that was not submitted
 *   yet can be taken back by close without a race.
 * - One buffer group for all sockets. INC buffers of 256 KiB (several receives share a buffer;
 *   the place is the running sum in completion order) where the probe finds them working, else
 *   plain 4 KiB ones. A window of them is posted, the rest is a last-in-first-out reserve, so
 *   that hot memory is posted first. A buffer goes back in the turn that received it: the sink parses in place and copies
 *   what it keeps.
 * - A socket in bulk leaves the buffers: its receive is stopped, a poll takes its place, and what is
 *   there is read by a plain call, straight to where the owner wants it at that moment. No memory of
 *   his is ever in the kernel's hands, and a copy of every large message is saved. All completions
 *   of a stopped receive come before its last one, so the order is kept.
 * - ENOBUFS parks the socket; the next turn re-arms no more of them than there are buffers. No
 *   loop.
 * - One SEND or SENDMSG in flight a socket, with MSG_WAITALL so that the kernel finishes short
 *   ones (short results are still handed up). No MSG_MORE: the owner has already gathered.
 * - user_data is tag, slot, generation, never a pointer. The buffer is accounted before the
 *   socket is looked up. A slot is freed only when none of its requests is in the kernel.
 * - Listeners: multishot POLL and an accept4 loop; connects: connect(2), one POLL, SO_ERROR. An
 *   orderly close sends the FIN with shutdown(SHUT_WR) and throws away what comes in, see
 *   epoll.c; the end is forced by SHUT_RDWR and a cancel by descriptor, which is safe because it
 *   is still ours.
 * - Completion queue of 16,384: before 6.13 one enter may post one for every ready socket. More
 *   is not lost (NODROP), only slower. TCP_USER_TIMEOUT is not set: the ticks of the protocol
 *   notice a dead peer in their own time, on every backend alike.
 * - Whether all this works is tried on a socket pair at start, not read from a version: features
 *   were broken and mended inside stable series, and filters allow set-up but not enter.
 * - After fork the child has none of the mappings (DONTFORK) and only closes descriptors. At the
 *   end everything is cancelled and reaped; what the kernel will not give back in a second is
 *   leaked rather than freed under it.
 *
 * Trade-off: an armed receive costs the kernel 864 bytes a connection, epoll 128, and a lone
 * ping-pong gains nothing; many active connections share one system call. */
#include "uring.h"

#include <stdio.h>

#ifndef TM_HAVE_LIBURING

int tm_ring_create(const tm_alloc *alloc, tm_tally *tally, tm_ring **ring, char *why,
                   size_t why_size)
{
    (void)alloc;
    (void)tally;
    (void)ring;
    snprintf(why, why_size, "this build was made without liburing");
    return TM_ENOTSUP;
}

#else

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../base/check.h"

/* Constants of kernels newer than the oldest liburing we build with. */
#ifndef IORING_ENTER_NO_IOWAIT
#define IORING_ENTER_NO_IOWAIT (1U << 7) /* 6.15 */
#endif
#ifndef IORING_FEAT_NO_IOWAIT
#define IORING_FEAT_NO_IOWAIT (1U << 17) /* 6.15 */
#endif
/* IOU_PBUF_RING_INC is an enumerator, which no #ifndef can see: 6.12. A test sets what no kernel
 * knows, to run on plain buffers. */
#ifndef URING_PBUF_RING_INC
#define URING_PBUF_RING_INC 2U
#endif
#ifndef IORING_CQE_F_BUF_MORE
#define IORING_CQE_F_BUF_MORE (1U << 4) /* 6.12 */
#endif

/* Entries of the queues, and how far they are halved when memory may not be locked. A test takes
 * tiny ones, to see them overflow. */
#ifndef SQ_ENTRIES
#define SQ_ENTRIES 1024
#define SQ_ENTRIES_MIN 256
#define CQ_PER_SQ 16
#endif
/* A holder of locked memory that exited gives it back some milliseconds later. */
static const int setup_retry_ms[] = {10, 20, 50};
/* One SEND takes at most this much: its length has 32 bits and its result 31. */
#define SEND_BYTES_MAX 0x7ffff000

#define GROUP_MAIN 1
#define GROUP_PROBE 2
#define INC_BUFFER_BYTES (256 * TM_KIB)
#define INC_BUFFERS 16
#define PLAIN_BUFFER_BYTES (4 * TM_KIB)
#define PLAIN_BUFFERS 1024
/* Posted at once: what one turn can bring, 2 MiB, stays in a cache. With more of them ten streams of
 * 16 KiB messages cost a third more CPU, and none of one to a thousand links cost less. */
#define INC_WINDOW 8
#ifndef PLAIN_WINDOW
#define PLAIN_WINDOW 512
#endif
static_assert(INC_BUFFER_BYTES * INC_BUFFERS == PLAIN_BUFFER_BYTES * PLAIN_BUFFERS, "same memory");
static_assert(PLAIN_BUFFERS <= 32768, "entries of a buffer ring");

/* The probe's buffers, and how long it and the teardown wait for the kernel. */
#define PROBE_BUFFER_BYTES 64
#define PROBE_WAIT_NS TM_S_NS
#define DRAIN_WAIT_NS TM_S_NS
#define DRAIN_STEP_NS (100 * TM_MS_NS)

/* One group of provided buffers. */
typedef struct uring_pool {
    struct io_uring_buf_ring *ring;
    uint8_t *memory;
    size_t ring_bytes;
    size_t buffer_bytes;
    uint32_t count;  /* buffers in memory, a power of two */
    uint32_t posted; /* buffers the kernel has */
    uint32_t window; /* how many it should have */
    uint32_t reserve_count;
    uint16_t group;
    bool inc;
    size_t *written; /* bytes received into each posted buffer so far */
    uint16_t *reserve;
} uring_pool;

struct tm_ring {
    const tm_alloc *alloc;
    tm_tally *tally;
    struct io_uring kernel;
    bool made;
    unsigned enter_flags;
    uint32_t in_flight;  /* requests without their last completion */
    uint64_t wake_value; /* where the kernel puts the eventfd's count */
    uring_pool pool;
};

/* -- the queues ------------------------------------------------------------------------------- */

/* The caller has made sure of room. */
static struct io_uring_sqe *sqe_get(tm_ring *ring)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->kernel);
    TM_ASSERT(sqe);
    ring->in_flight++;
    return sqe;
}

/* user_data: tag 8 bits, index 24, generation 32. */
static uint64_t mark_of(tm_ring_tag tag, tm_io_id id)
{
    return (uint64_t)tag << 56 | (id & 0xffffff) << 32 | id >> 32;
}

static void sqe_mark(struct io_uring_sqe *sqe, tm_ring_tag tag, tm_io_id id)
{
    sqe->user_data = mark_of(tag, id);
}

static bool cqe_take(tm_ring *ring, struct io_uring_cqe *cqe)
{
    struct io_uring_cq *cq = &ring->kernel.cq;
    if (io_uring_cq_ready(&ring->kernel) == 0) return false;
    const struct io_uring_cqe *from = &cq->cqes[*cq->khead & cq->ring_mask];
    cqe->user_data = from->user_data;
    cqe->res = from->res;
    cqe->flags = from->flags;
    io_uring_cq_advance(&ring->kernel, 1);
    if (!(cqe->flags & IORING_CQE_F_MORE)) ring->in_flight--;
    return true;
}

int tm_ring_enter(tm_ring *ring, uint64_t until_ns, unsigned count)
{
    struct io_uring_sq *sq = &ring->kernel.sq;
    sq->sqe_head = sq->sqe_tail;
    io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
    unsigned submit = sq->sqe_tail - io_uring_smp_load_acquire(sq->khead);

    struct __kernel_timespec ts = {0};
    struct io_uring_getevents_arg arg = {0};
    if (until_ns && until_ns != UINT64_MAX) {
        uint64_t now = tm_io_now_ns();
        uint64_t wait_ns = until_ns > now ? until_ns - now : 0;
        ts.tv_sec = (int64_t)(wait_ns / TM_S_NS);
        ts.tv_nsec = (long long)(wait_ns % TM_S_NS);
        arg.ts = (uint64_t)(uintptr_t)&ts;
    }
    tm_tally_add(&ring->tally->system_calls, 1);
    int rc = io_uring_enter2((unsigned)ring->kernel.ring_fd, submit, until_ns ? count : 0,
                             ring->enter_flags, (void *)&arg, sizeof arg);
    if (io_uring_cq_has_overflow(&ring->kernel)) tm_tally_add(&ring->tally->overflows, 1);
    if (rc >= 0 || rc == -ETIME || rc == -EINTR || rc == -EBUSY || rc == -EAGAIN) return 0;
    return rc;
}

/* Requests that the kernel has taken and not given back. */
static bool kernel_holds(const tm_ring *ring)
{
    const struct io_uring_sq *sq = &ring->kernel.sq;
    return ring->in_flight != sq->sqe_tail - io_uring_smp_load_acquire(sq->khead);
}

/* Cancels everything and reaps until the kernel holds nothing of ours. False after the deadline,
 * or in a thread that the ring does not belong to. */
static bool ring_drain(tm_ring *ring)
{
    uint64_t deadline = tm_io_now_ns() + DRAIN_WAIT_NS;
    while (ring->in_flight && tm_io_now_ns() < deadline) {
        if (io_uring_sq_space_left(&ring->kernel)) {
            struct io_uring_sqe *sqe = sqe_get(ring);
            io_uring_prep_cancel64(sqe, 0, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
            sqe_mark(sqe, TM_RING_CANCEL, 0);
        }
        uint64_t step = tm_io_now_ns() + DRAIN_STEP_NS;
        while (ring->in_flight && tm_io_now_ns() < step) {
            if (tm_ring_enter(ring, step, 1)) return !kernel_holds(ring);
            for (struct io_uring_cqe cqe; cqe_take(ring, &cqe);) continue;
        }
    }
    return !kernel_holds(ring);
}

/* -- receive buffers -------------------------------------------------------------------------- */

/* Memory that a forked child must not share: the kernel writes into it for the parent. */
static void *pages_get(size_t size)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (pages == MAP_FAILED) return NULL;
    madvise(pages, size, MADV_DONTFORK);
    /* A huge page would make the first byte of a buffer cost 2 MiB of memory. */
    madvise(pages, size, MADV_NOHUGEPAGE);
    return pages;
}

/* Posts buffers of the reserve up to the window, hottest first, with one publication. */
static void pool_post(uring_pool *pool)
{
    int added = 0;
    int mask = io_uring_buf_ring_mask(pool->count);
    while (pool->posted < pool->window && pool->reserve_count) {
        uint16_t buffer = pool->reserve[--pool->reserve_count];
        io_uring_buf_ring_add(pool->ring, pool->memory + buffer * pool->buffer_bytes,
                              (unsigned)pool->buffer_bytes, buffer, mask, added++);
        pool->posted++;
    }
    if (added) io_uring_buf_ring_advance(pool->ring, added);
}

/* Finds the bytes of a completion. False when the kernel's numbers cannot be. */
static bool pool_take(uring_pool *pool, tm_ring_completion *c)
{
    size_t buffer = (size_t)c->buffer;
    size_t len = (size_t)c->res;
    if (buffer >= pool->count || len > pool->buffer_bytes - pool->written[buffer]) return false;
    c->bytes = tm_bytes_of(pool->memory + buffer * pool->buffer_bytes + pool->written[buffer], len);
    pool->written[buffer] += len;
    return true;
}

/* Puts the buffer of a completion into the reserve, once the kernel is done with it. */
static void pool_retire(uring_pool *pool, const tm_ring_completion *c)
{
    if (c->buffer < 0 || !c->whole) return;
    TM_ASSERT(pool->posted > 0);
    pool->written[c->buffer] = 0;
    pool->posted--;
    pool->reserve[pool->reserve_count++] = (uint16_t)c->buffer;
}

/* Our own bookkeeping; the pages are not touched. */
static void pool_free(const tm_ring *ring, uring_pool *pool)
{
    tm_alloc_free(ring->alloc, pool->written, pool->count * sizeof *pool->written);
    tm_alloc_free(ring->alloc, pool->reserve, pool->count * sizeof *pool->reserve);
    *pool = (uring_pool){0};
}

/* The kernel must hold no request that uses the group. */
static void pool_fini(tm_ring *ring, uring_pool *pool)
{
    if (pool->ring) {
        io_uring_unregister_buf_ring(&ring->kernel, pool->group);
        munmap(pool->ring, pool->ring_bytes);
    }
    if (pool->memory) munmap(pool->memory, pool->count * pool->buffer_bytes);
    pool_free(ring, pool);
}

/* pool comes with group, inc, buffer_bytes, count and window set. 0, TM_ENOMEM or -errno. */
static int pool_init(tm_ring *ring, uring_pool *pool)
{
    pool->ring_bytes = pool->count * sizeof(struct io_uring_buf);
    pool->memory = pages_get(pool->count * pool->buffer_bytes);
    pool->written = tm_alloc_zero(ring->alloc, pool->count * sizeof *pool->written);
    pool->reserve = tm_alloc_zero(ring->alloc, pool->count * sizeof *pool->reserve);
    void *entries = pages_get(pool->ring_bytes);
    int rc = TM_ENOMEM;
    if (pool->memory && pool->written && pool->reserve && entries) {
        struct io_uring_buf_reg reg = {
            .ring_addr = (uint64_t)(uintptr_t)entries,
            .ring_entries = pool->count,
            .bgid = pool->group,
        };
        /* The flags follow bgid; the oldest headers call that place pad. */
        uint16_t flags = pool->inc ? URING_PBUF_RING_INC : 0;
        memcpy((char *)&reg.bgid + sizeof reg.bgid, &flags, sizeof flags);
        rc = io_uring_register_buf_ring(&ring->kernel, &reg, 0);
    }
    if (rc) {
        if (entries) munmap(entries, pool->ring_bytes);
        pool_fini(ring, pool);
        return rc;
    }
    pool->ring = entries;
    io_uring_buf_ring_init(pool->ring);
    while (pool->reserve_count < pool->count) {
        pool->reserve[pool->reserve_count] = (uint16_t)(pool->count - 1 - pool->reserve_count);
        pool->reserve_count++;
    }
    pool_post(pool);
    return 0;
}

/* -- requests --------------------------------------------------------------------------------- */

unsigned tm_ring_room(const tm_ring *ring) { return io_uring_sq_space_left(&ring->kernel); }

void tm_ring_wake(tm_ring *ring, int fd)
{
    struct io_uring_sqe *sqe = sqe_get(ring);
    io_uring_prep_read(sqe, fd, &ring->wake_value, sizeof ring->wake_value, 0);
    sqe_mark(sqe, TM_RING_WAKE, 0);
}

static void receive_from(tm_ring *ring, const uring_pool *pool, tm_io_id id, int fd)
{
    struct io_uring_sqe *sqe = sqe_get(ring);
    io_uring_prep_recv_multishot(sqe, fd, NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
    sqe->buf_group = pool->group;
    sqe_mark(sqe, TM_RING_RECEIVE, id);
}

void tm_ring_receive(tm_ring *ring, tm_io_id id, int fd)
{
    receive_from(ring, &ring->pool, id, fd);
}

void tm_ring_send(tm_ring *ring, tm_io_id id, int fd, struct msghdr *message, bool room_first)
{
    struct io_uring_sqe *sqe = sqe_get(ring);
    int flags = MSG_NOSIGNAL | MSG_WAITALL;
    if (message->msg_iovlen == 1) {
        const struct iovec *iov = message->msg_iov;
        size_t len = iov->iov_len < SEND_BYTES_MAX ? iov->iov_len : SEND_BYTES_MAX;
        io_uring_prep_send(sqe, fd, iov->iov_base, len, flags);
    } else {
        io_uring_prep_sendmsg(sqe, fd, message, (unsigned)flags);
    }
    if (room_first) sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
    sqe_mark(sqe, TM_RING_SEND, id);
}

void tm_ring_poll_out(tm_ring *ring, tm_io_id id, int fd)
{
    struct io_uring_sqe *sqe = sqe_get(ring);
    io_uring_prep_poll_add(sqe, fd, POLLOUT);
    sqe_mark(sqe, TM_RING_POLL, id);
}

void tm_ring_stop(tm_ring *ring, tm_io_id id)
{
    struct io_uring_sqe *sqe = sqe_get(ring);
    io_uring_prep_cancel64(sqe, mark_of(TM_RING_RECEIVE, id), 0);
    sqe_mark(sqe, TM_RING_STOP, id);
}

void tm_ring_poll_in(tm_ring *ring, tm_io_id id, int fd)
{
    struct io_uring_sqe *sqe = sqe_get(ring);
    io_uring_prep_poll_add(sqe, fd, POLLIN | POLLRDHUP);
    sqe_mark(sqe, TM_RING_POLL, id);
}

void tm_ring_poll_listener(tm_ring *ring, tm_io_id id, int fd)
{
    struct io_uring_sqe *sqe = sqe_get(ring);
    io_uring_prep_poll_multishot(sqe, fd, POLLIN);
    sqe_mark(sqe, TM_RING_POLL, id);
}

void tm_ring_cancel(tm_ring *ring, tm_io_id id, int fd)
{
    struct io_uring_sqe *sqe = sqe_get(ring);
    io_uring_prep_cancel_fd(sqe, fd, IORING_ASYNC_CANCEL_ALL);
    sqe_mark(sqe, TM_RING_CANCEL, id);
}

/* -- completions ------------------------------------------------------------------------------ */

/* With its bytes, if it carries any: the pool of its group is accounted before anybody looks. */
static int take_from(tm_ring *ring, uring_pool *pool, tm_ring_completion *c)
{
    struct io_uring_cqe cqe;
    if (!cqe_take(ring, &cqe)) return 0;
    *c = (tm_ring_completion){
        .tag = (tm_ring_tag)(cqe.user_data >> 56),
        .id = cqe.user_data << 32 | (cqe.user_data >> 32 & 0xffffff),
        .res = cqe.res,
        .more = cqe.flags & IORING_CQE_F_MORE,
        .buffer = -1,
    };
    /* A buffer flag on an empty result was seen to carry no buffer: it must not be posted twice. */
    if (c->tag != TM_RING_RECEIVE || c->res <= 0) return 1;
    if (!(cqe.flags & IORING_CQE_F_BUFFER)) return -EIO;
    c->buffer = (int)(cqe.flags >> IORING_CQE_BUFFER_SHIFT);
    c->whole = !(pool->inc && cqe.flags & IORING_CQE_F_BUF_MORE);
    return pool_take(pool, c) ? 1 : -EIO;
}

int tm_ring_take(tm_ring *ring, tm_ring_completion *c) { return take_from(ring, &ring->pool, c); }

void tm_ring_retire(tm_ring *ring, const tm_ring_completion *c) { pool_retire(&ring->pool, c); }

void tm_ring_replenish(tm_ring *ring) { pool_post(&ring->pool); }

unsigned tm_ring_buffers(const tm_ring *ring) { return ring->pool.posted; }

/* -- the probe -------------------------------------------------------------------------------- */

/* One run of everything we rely on, over a socket pair, on the production ring with tiny
 * buffers. */
typedef struct probe {
    tm_ring *ring;
    uring_pool pool;
    int near; /* the ring's end */
    int far;  /* the plain one */
    const char *step;
    int rc; /* of the call or completion that was not as it should be */
    tm_ring_completion got;
} probe;

static bool probe_next(probe *p)
{
    uint64_t deadline = tm_io_now_ns() + PROBE_WAIT_NS;
    for (;;) {
        int taken = take_from(p->ring, &p->pool, &p->got);
        p->rc = taken == 1 ? p->got.res : taken;
        if (taken) return taken == 1;
        p->rc = -ETIME;
        if (tm_io_now_ns() >= deadline) return false;
        p->rc = tm_ring_enter(p->ring, deadline, 1);
        if (p->rc) return false;
    }
}

static bool probe_expect(probe *p, tm_ring_tag tag, int res, bool more)
{
    return probe_next(p) && p->got.tag == tag && p->got.res == res && p->got.more == more;
}

/* Expects bytes that were written before: their place, and whether their buffer is used up. */
static bool probe_bytes(probe *p, uint8_t fill, size_t len, bool whole)
{
    uint8_t bytes[PROBE_BUFFER_BYTES];
    memset(bytes, fill, sizeof bytes);
    if (!probe_expect(p, TM_RING_RECEIVE, (int)len, true)) return false;
    bool equal = tm_bytes_equal(p->got.bytes, tm_bytes_of(bytes, len));
    bool good = equal && p->got.whole == (whole || !p->pool.inc);
    pool_retire(&p->pool, &p->got);
    return good;
}

static bool probe_write(const probe *p, uint8_t fill, size_t len)
{
    uint8_t bytes[PROBE_BUFFER_BYTES];
    memset(bytes, fill, sizeof bytes);
    return write(p->far, bytes, len) == (ssize_t)len;
}

static bool probe_receive(probe *p)
{
    p->step = "arm a multishot receive that waits";
    receive_from(p->ring, &p->pool, 0, p->near);
    p->rc = tm_ring_enter(p->ring, 0, 0);
    if (p->rc || io_uring_cq_ready(&p->ring->kernel)) return false;
    p->step = "receive into provided buffers";
    size_t half = PROBE_BUFFER_BYTES / 2;
    if (!probe_write(p, 'a', half) || !probe_bytes(p, 'a', half, false)) return false;
    if (!probe_write(p, 'b', half) || !probe_bytes(p, 'b', half, true)) return false;
    p->step = "end a receive that finds no buffer";
    if (!probe_write(p, 'c', 1)) return false;
    if (!probe_expect(p, TM_RING_RECEIVE, -ENOBUFS, false)) return false;
    p->step = "receive what had waited for a buffer";
    pool_post(&p->pool);
    receive_from(p->ring, &p->pool, 0, p->near);
    return probe_bytes(p, 'c', 1, false);
}

/* The receive that is armed ends, and the request with this tag has ended it. */
static bool probe_canceled(probe *p, tm_ring_tag tag)
{
    for (unsigned seen = 0, all = 1U << tag | 1U << TM_RING_RECEIVE; seen != all;) {
        if (!probe_next(p) || p->got.more) return false;
        bool cancel = p->got.tag == tag;
        if (cancel ? p->got.res < 0 : p->got.res != -ECANCELED) return false;
        seen |= 1U << p->got.tag;
    }
    return true;
}

static bool probe_rest(probe *p)
{
    p->step = "stop a receive";
    tm_ring_stop(p->ring, 0);
    if (!probe_canceled(p, TM_RING_STOP)) return false;
    p->step = "cancel a receive";
    receive_from(p->ring, &p->pool, 0, p->near);
    tm_ring_cancel(p->ring, 0, p->near);
    if (!probe_canceled(p, TM_RING_CANCEL)) return false;
    p->step = "send everything";
    char text[] = "tumen";
    struct iovec iov = {.iov_base = text, .iov_len = sizeof text};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    tm_ring_send(p->ring, 0, p->near, &message, false);
    if (!probe_expect(p, TM_RING_SEND, sizeof text, false)) return false;
    char back[sizeof text];
    if (read(p->far, back, sizeof back) != (ssize_t)sizeof back) return false;
    p->step = "see the end of a stream";
    receive_from(p->ring, &p->pool, 0, p->near);
    p->rc = tm_ring_enter(p->ring, 0, 0);
    if (p->rc || shutdown(p->far, SHUT_WR) < 0) return false;
    return probe_expect(p, TM_RING_RECEIVE, 0, false);
}

/* Tries one kind of buffers. 0, TM_ENOMEM, or TM_ENOTSUP with *step and *detail. */
static int probe_run(tm_ring *ring, bool inc, const char **step, int *detail)
{
    /* Either kind has room for two halves in its window: one INC buffer, or two plain ones. */
    probe p = {
        .ring = ring,
        .pool = {.group = GROUP_PROBE,
                 .inc = inc,
                 .buffer_bytes = PROBE_BUFFER_BYTES,
                 .count = 2,
                 .window = inc ? 1 : 2},
        .step = "register a ring of buffers",
    };
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) < 0) {
        *step = "make a socket pair";
        *detail = -errno;
        return TM_ENOTSUP;
    }
    p.near = pair[0];
    p.far = pair[1];
    bool good = false;
    p.rc = pool_init(ring, &p.pool);
    int rc = p.rc == TM_ENOMEM ? TM_ENOMEM : TM_ENOTSUP;
    if (p.rc == 0) {
        good = probe_receive(&p) && probe_rest(&p);
        /* A ring that does not come to rest keeps the buffers, and is no ring for us. */
        if (!ring_drain(ring)) {
            good = false;
        } else {
            pool_fini(ring, &p.pool);
        }
    }
    close(p.near);
    close(p.far);
    *step = p.step;
    *detail = p.rc;
    return good ? 0 : rc;
}

/* -- life ------------------------------------------------------------------------------------- */

/* The sysctl's value, or -1 when there is none. */
static int sysctl_disabled(void)
{
    char text[8] = "";
    int fd = open("/proc/sys/kernel/io_uring_disabled", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t len = read(fd, text, sizeof text - 1);
    close(fd);
    return len > 0 ? (int)strtol(text, NULL, 10) : -1;
}

static int refuse(char *why, size_t why_size, const char *what, int rc)
{
    int disabled = sysctl_disabled();
    char sysctl[48] = "";
    if (disabled > 0) snprintf(sysctl, sizeof sysctl, ", kernel.io_uring_disabled is %d", disabled);
    if (rc < 0 && rc > TM_NEED_DATA) {
        snprintf(why, why_size, "%s: errno %d, %s%s", what, -rc, strerror(-rc), sysctl);
    } else {
        snprintf(why, why_size, "%s%s", what, sysctl);
    }
    return rc == TM_ENOMEM || rc == -ENOMEM ? TM_ENOMEM : TM_ENOTSUP;
}

static int kernel_setup(tm_ring *ring, unsigned entries)
{
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL |
                 IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
        .cq_entries = entries * CQ_PER_SQ,
    };
    return io_uring_queue_init_params(entries, &ring->kernel, &params);
}

static int kernel_create(tm_ring *ring, char *why, size_t why_size)
{
    if (sysctl_disabled() == 2) {
        return refuse(why, why_size, "io_uring is switched off on this system", TM_ENOTSUP);
    }
    int rc = kernel_setup(ring, SQ_ENTRIES);
    size_t tries = sizeof setup_retry_ms / sizeof setup_retry_ms[0];
    for (size_t i = 0; i < tries && rc == -ENOMEM; i++) {
        struct timespec pause = {.tv_nsec = setup_retry_ms[i] * (long)TM_MS_NS};
        nanosleep(&pause, NULL);
        rc = kernel_setup(ring, SQ_ENTRIES);
    }
    for (unsigned n = SQ_ENTRIES / 2; n >= SQ_ENTRIES_MIN && rc == -ENOMEM; n /= 2) {
        rc = kernel_setup(ring, n);
    }
    const char *what = "io_uring cannot be set up here";
    if (rc == -ENOSYS) what = "this kernel has no io_uring, or a filter hides it";
    if (rc == -EPERM) what = "io_uring is forbidden here, as containers often do";
    if (rc == -EINVAL) what = "this kernel's io_uring is too old";
    if (rc == -ENOMEM) what = "no memory may be locked for a ring (RLIMIT_MEMLOCK)";
    if (rc) return refuse(why, why_size, what, rc);
    ring->made = true;
    io_uring_ring_dontfork(&ring->kernel);
    unsigned needed = IORING_FEAT_NODROP | IORING_FEAT_FAST_POLL | IORING_FEAT_EXT_ARG |
                      IORING_FEAT_SUBMIT_STABLE;
    if ((ring->kernel.features & needed) != needed) {
        return refuse(why, why_size, "this kernel's io_uring is too old", TM_ENOTSUP);
    }
    ring->enter_flags = IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG;
    if (ring->kernel.features & IORING_FEAT_NO_IOWAIT) ring->enter_flags |= IORING_ENTER_NO_IOWAIT;
    return 0;
}

static int pool_create(tm_ring *ring, char *why, size_t why_size)
{
    const char *step;
    int detail;
    char what[96];
    bool inc = true;
    int rc = probe_run(ring, inc, &step, &detail);
    if (rc == TM_ENOTSUP) {
        inc = false;
        rc = probe_run(ring, inc, &step, &detail);
    }
    if (rc) {
        snprintf(what, sizeof what, "io_uring here could not %s", step);
        return refuse(why, why_size, what, rc == TM_ENOTSUP ? detail : rc);
    }
    ring->pool = (uring_pool){
        .group = GROUP_MAIN,
        .inc = inc,
        .buffer_bytes = inc ? INC_BUFFER_BYTES : PLAIN_BUFFER_BYTES,
        .count = inc ? INC_BUFFERS : PLAIN_BUFFERS,
        .window = inc ? INC_WINDOW : PLAIN_WINDOW,
    };
    rc = pool_init(ring, &ring->pool);
    return rc ? refuse(why, why_size, "io_uring's receive buffers cannot be made", rc) : 0;
}

int tm_ring_create(const tm_alloc *alloc, tm_tally *tally, tm_ring **out, char *why,
                   size_t why_size)
{
    tm_ring *ring = tm_alloc_zero(alloc, sizeof *ring);
    if (!ring) return refuse(why, why_size, "out of memory", TM_ENOMEM);
    ring->alloc = alloc;
    ring->tally = tally;
    int rc = kernel_create(ring, why, why_size);
    if (rc == 0) rc = pool_create(ring, why, why_size);
    if (rc) {
        tm_ring_destroy(ring);
        return rc;
    }
    *out = ring;
    return 0;
}

bool tm_ring_destroy(tm_ring *ring)
{
    bool drained = true;
    if (ring->made) {
        drained = ring_drain(ring);
        if (drained) pool_fini(ring, &ring->pool);
        io_uring_queue_exit(&ring->kernel);
    }
    if (drained) tm_alloc_free(ring->alloc, ring, sizeof *ring);
    return drained;
}

void tm_ring_forked(tm_ring *ring)
{
    /* The child has no mapping of the queues or the pool, and the requests are the parent's. */
    close(ring->kernel.ring_fd);
    pool_free(ring, &ring->pool);
    tm_alloc_free(ring->alloc, ring, sizeof *ring);
}

#endif
