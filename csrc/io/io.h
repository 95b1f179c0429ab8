/* I/O as a parameter: one table of operations, three backends.
 *
 * The engine speaks in operations and completions. uring.c runs them on a ring, epoll.c on
 * readiness, mem.c on a seeded fake network with short writes, reordered completions and errors
 * at step n. No file outside csrc/io sees the kernel.
 *
 * One thread at a time uses a tm_io (the engine's step lock sees to that); tm_io_wake may be
 * called from any thread, tm_io_send_now from any thread under the connection's send lock while
 * no send is in flight. Completions arrive through the sink from inside tm_io_turn and nowhere
 * else. A sink function may call any operation; operations never call the sink. */
#ifndef TM_IO_IO_H
#define TM_IO_IO_H

#include <sys/socket.h>
#include <sys/uio.h>

#include "../base/alloc.h"
#include "../base/bytes.h"
#include "../base/error.h"
#include "../limits.h"

typedef struct tm_io tm_io;

/* A socket of this backend: index and generation, never reused for another socket; 0 is none. */
typedef uint64_t tm_io_id;

typedef struct tm_io_address {
    struct sockaddr_storage storage;
    socklen_t len;
} tm_io_address;

/* What happened; every call comes from tm_io_turn. rc values are 0, positive counts or -errno. */
typedef struct tm_io_sink {
    void *ctx;
    /* A listener accepted a connection. The socket exists but does not read until
     * tm_io_read_start. */
    void (*accepted)(void *ctx, tm_io_id listener, tm_io_id socket, const tm_io_address *peer);
    /* The end of tm_io_connect: rc 0 or -errno. A socket that failed still wants its close. */
    void (*connected)(void *ctx, tm_io_id socket, int rc);
    /* Bytes arrived, in order. bytes is borrowed for the call. */
    void (*received)(void *ctx, tm_io_id socket, tm_bytes bytes);
    /* The read side ended: 0 for an orderly end (FIN), else -errno. At most once a socket. */
    void (*read_ended)(void *ctx, tm_io_id socket, int rc);
    /* The send that was in flight ended: bytes taken by the kernel (may be short) or -errno. The
     * memory of its iovecs belongs to the caller again. */
    void (*sent)(void *ctx, tm_io_id socket, ssize_t rc);
    /* tm_io_close has finished: nothing is in flight, the descriptor is closed, the id is dead. */
    void (*closed)(void *ctx, tm_io_id socket);
    /* Asked before a read, while much comes in: where the next bytes are wanted, or anywhere. What is
     * put there is what received() is called with next. May be NULL. */
    tm_room (*room)(void *ctx, tm_io_id socket);
} tm_io_sink;

typedef struct tm_io_counters {
    uint64_t turns;         /* calls of tm_io_turn */
    uint64_t system_calls;  /* made by the backend */
    uint64_t receives;      /* received() calls */
    uint64_t sends;         /* sends started */
    uint64_t short_sends;   /* ended with fewer bytes than asked */
    uint64_t buffers_empty; /* io_uring: ENOBUFS; a socket waited for a receive buffer */
    uint64_t overflows;     /* io_uring: completion queue overflows seen */
} tm_io_counters;

typedef struct tm_io_ops {
    const char *name; /* "uring", "epoll", "mem" */
    bool gathers;     /* the operations of a turn are one system call, however many there are */

    /* Closes what is still open (FIN, no callbacks) and frees. The memory of sends in flight
     * belongs to the caller again. A ring is destroyed by the thread that turned it. */
    void (*destroy)(tm_io *io);

    /* Runs what is due: submits queued operations, waits until deadline_ns (CLOCK_MONOTONIC; 0
     * does not wait, UINT64_MAX waits for ever) for at least one completion or a wake, hands all
     * completions to the sink. 0 or a negative error that ends the engine. EINTR is not an
     * error. */
    int (*turn)(tm_io *io, uint64_t deadline_ns, const tm_io_sink *sink);

    /* The next turn hands out together what has come until ns later: it waits so long even when woken,
     * unless work was left over or (io_uring) TM_GATHER_COUNT have come before. A wake meanwhile is no
     * system call. */
    void (*gather)(tm_io *io, unsigned ns);

    /* Ends a waiting turn, or makes the next one not wait. Any thread; async-signal-safe. */
    void (*wake)(tm_io *io);

    /* A descriptor that polls readable when turn(0) has something to do, or -1 when the backend
     * cannot be driven by a foreign loop (io_uring with DEFER_TASKRUN). */
    int (*poll_fd)(tm_io *io);

    /* Operations on a socket that is closing, closed or of another kind answer TM_ECLOSED or
     * TM_EUSE_STATE; ids of the past are recognised. */

    /* Listens on address; fills *bound with the address in use (port 0 is chosen by the kernel).
     * *socket, or -errno. */
    int (*listen)(tm_io *io, const tm_io_address *address, int backlog, tm_io_id *socket,
                  tm_io_address *bound);
    /* Starts a connect; connected() follows, also for what fails at once. */
    int (*connect)(tm_io *io, const tm_io_address *address, tm_io_id *socket);
    /* Reads until read_ended, without pause. */
    int (*read_start)(tm_io *io, tm_io_id socket);
    /* Starts the one send in flight of this socket; sent() follows exactly once. The iovec array is
     * copied, the bytes must stay until sent(). TM_EUSE_STATE when one is in flight or after
     * shutdown_write; TM_EUSE_ARG above TM_SEND_BATCH_SEGMENTS or without a byte; TM_ENOMEM. */
    int (*send)(tm_io *io, tm_io_id socket, const struct iovec *iov, int count);
    /* Sends from the calling thread without waiting: bytes taken, 0 when the socket is full, or
     * -errno. Only while no send is in flight and the socket is not closed; the caller holds the
     * lock that orders both. */
    ssize_t (*send_now)(tm_io *io, tm_io_id socket, const struct iovec *iov, int count);
    /* Ends our sending side (FIN); reading goes on. TM_EUSE_STATE while a send is in flight. */
    int (*shutdown_write)(tm_io *io, tm_io_id socket);
    /* Starts the end of a socket of any kind: sent(-ECANCELED or a result) follows for a send in
     * flight, nothing else but closed() comes any more (no received, read_ended, connected,
     * accepted), and closed() follows exactly once, from a later turn. Without abort the FIN
     * leaves at once, behind what the kernel already has, and what still comes in is read and
     * thrown away for a short while (TM_IO_LINGER_MS), since unread bytes would turn the FIN into
     * a RST. abort: RST now. Idempotent, but for an abort that cuts such a lingering short. */
    void (*close)(tm_io *io, tm_io_id socket, bool abort);
    /* Address of the other end, or of a listener its own. */
    int (*address)(tm_io *io, tm_io_id socket, tm_io_address *address);

    void (*counters)(const tm_io *io, tm_io_counters *counters);

    /* In a child after fork: closes the descriptors this process inherited and frees nothing the
     * parent's kernel requests could use. Only destroy may follow; it frees the child's own
     * copies. */
    void (*forked)(tm_io *io);

    /* The backend's clock and dice: tm_io_now_ns and tm_io_random in front of a kernel, virtual
     * time and a seeded generator in mem.c. An engine that asks these runs in virtual time. */
    uint64_t (*now_ns)(tm_io *io);
    int (*random)(tm_io *io, void *bytes, size_t len);
} tm_io_ops;

struct tm_io {
    const tm_io_ops *ops;
};

typedef struct tm_io_options {
    const tm_alloc *alloc;
    uint32_t sockets_max; /* how many sockets may exist at once */
} tm_io_options;

/* Each fills *io. tm_io_uring_create runs the behaviour probe (never a version check) and answers
 * -errno or TM_ENOTSUP with a reason in plain words in why (why_size bytes, always terminated).
 * It exists in builds without liburing too, and answers TM_ENOTSUP there. The ring must be
 * created by the thread that turns it (SINGLE_ISSUER). */
int tm_io_uring_create(const tm_io_options *options, tm_io **io, char *why, size_t why_size);
int tm_io_epoll_create(const tm_io_options *options, tm_io **io);

/* CLOCK_MONOTONIC, ns; and getrandom: 0 or -errno. */
uint64_t tm_io_now_ns(void);
int tm_io_random(void *bytes, size_t len);

#endif
