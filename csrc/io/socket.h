/* What the backends share: the table of sockets with its ids, internal delays, the waker, counters,
 * and the plain system calls of the cold path (listen, accept, connect, reset).
 *
 * Nothing here knows a ring or an epoll set. Only files of csrc/io include this header. */
#ifndef TM_IO_SOCKET_H
#define TM_IO_SOCKET_H

#include <stdatomic.h>

#include "../base/list.h"
#include "io.h"

typedef enum tm_socket_kind {
    TM_SOCKET_FREE,
    TM_SOCKET_LISTENER,
    TM_SOCKET_CONNECTING,
    TM_SOCKET_OPEN,
} tm_socket_kind;

/* The head of every backend's socket struct. */
typedef struct tm_socket {
    tm_io_id id;         /* generation << 32 | index */
    int fd;              /* -1 in mem.c */
    uint8_t kind;        /* a tm_socket_kind */
    bool closing;        /* close was called: only sent() and closed() may follow */
    bool lingering;      /* closing, and still throwing away what the peer sends */
    bool reading;        /* read_start was called */
    bool read_over;      /* nothing more will be read: end, error or force */
    bool write_over;     /* shutdown_write was called */
    bool send_in_flight; /* exactly from send() to sent() */
    uint8_t bulk;        /* so many reads go where the owner wants them: tm_socket_read_bulk */
    uint32_t next_free;
    tm_list delay; /* linked exactly while in a tm_delay */
    uint64_t delay_until_ns;
    size_t linger_left; /* bytes */
    /* The send in flight: a copy of the caller's array, inline for one segment. */
    struct iovec iov_one;
    struct iovec *iov; /* iov_room entries, kept until the slot is free */
    int iov_room;
    int iov_count;
    size_t send_bytes;
} tm_socket;

/* Moves all nodes of source to the uninitialised head target. */
static inline void tm_list_move(tm_list *source, tm_list *target)
{
    tm_list_init(target);
    if (tm_list_empty(source)) return;
    *target = *source;
    target->next->prev = target->prev->next = target;
    tm_list_init(source);
}

/* -- the table -------------------------------------------------------------------------------- */

/* Slots in chunks that never move: send_now looks up a descriptor from another thread. A slot
 * that has used up its generations is never given out again. */
typedef struct tm_socket_table {
    const tm_alloc *alloc;
    uint8_t **chunks;
    size_t socket_size; /* bytes of the backend's struct */
    uint32_t sockets_max;
    uint32_t used; /* slots ever given out */
    uint32_t count;
    uint32_t free; /* first free slot, or TM_SOCKET_NONE */
} tm_socket_table;

#define TM_SOCKET_NONE UINT32_MAX

TM_MUST_CHECK int tm_socket_table_init(tm_socket_table *table, const tm_io_options *options,
                                       size_t socket_size);
/* Frees everything; the sockets' descriptors are the backend's business. */
void tm_socket_table_fini(tm_socket_table *table);

/* A slot with a fresh id, everything behind the head zeroed. 0, TM_ENOMEM, or TM_EUSE_LIMIT
 * when sockets_max are in use. */
TM_MUST_CHECK int tm_socket_add(tm_socket_table *table, tm_socket_kind kind, int fd,
                                tm_socket **socket);
/* Ends the id. Does not close the descriptor. */
void tm_socket_remove(tm_socket_table *table, tm_socket *socket);

/* The socket of a live id, closing or not, or NULL. */
tm_socket *tm_socket_find(const tm_socket_table *table, tm_io_id id);
/* The socket at an index below table->used; may be free. */
tm_socket *tm_socket_at(const tm_socket_table *table, uint32_t index);
/* For an operation: 0 and *socket, TM_ECLOSED for an id of the past or a closing socket,
 * TM_EUSE_STATE for a socket of another kind. */
TM_MUST_CHECK int tm_socket_get(const tm_socket_table *table, tm_io_id id, tm_socket_kind kind,
                                tm_socket **socket);

/* Checks what every backend checks before a send, copies the array and marks the send as in
 * flight. */
TM_MUST_CHECK int tm_socket_send_begin(const tm_socket_table *table, tm_io_id id,
                                       const struct iovec *iov, int count, tm_socket **socket);

static inline uint32_t tm_socket_index(const tm_socket *socket) { return (uint32_t)socket->id; }

static inline const struct iovec *tm_socket_iov(const tm_socket *socket)
{
    return socket->iov_count == 1 ? &socket->iov_one : socket->iov;
}

/* -- internal delays -------------------------------------------------------------------------- */

/* Sockets that wait for the same time, so the list is in order of expiry: lingering connections,
 * listeners without a descriptor to accept into. A socket is in at most one. */
typedef struct tm_delay {
    tm_list sockets;
    uint64_t wait_ns;
} tm_delay;

void tm_delay_init(tm_delay *delay, uint64_t wait_ns);
void tm_delay_add(tm_delay *delay, tm_socket *socket);
/* Takes out the next one that is due, or NULL. */
tm_socket *tm_delay_expired(tm_delay *delay, uint64_t now_ns);
/* When the next one is due, or UINT64_MAX. */
uint64_t tm_delay_next_ns(const tm_delay *delay);

/* -- the waker -------------------------------------------------------------------------------- */

/* An eventfd that is written only for a sleeper. A wake of a running turn costs one exchange and
 * makes the next turn not wait; the exchange also orders it against the sleeper's last look. */
typedef struct tm_waker {
    atomic_int state;
    int fd;
} tm_waker;

/* 0 or -errno. */
TM_MUST_CHECK int tm_waker_init(tm_waker *waker);
void tm_waker_fini(tm_waker *waker);
/* Any thread; async-signal-safe. */
void tm_waker_wake(tm_waker *waker);
/* The turn begins or its sleep ends: whether a wake came since. */
bool tm_waker_take(tm_waker *waker);
/* The turn is about to sleep: false when a wake came meanwhile. */
bool tm_waker_sleep(tm_waker *waker);
/* The turn ends and a foreign loop watches the descriptor: wakes are written from here on, and one
 * is written now when there is more to do. */
void tm_waker_rest(tm_waker *waker, bool more);

/* -- counters --------------------------------------------------------------------------------- */

/* tm_io_counters, readable from any thread. direct is written by any thread, the others by the one
 * that turns. */
typedef struct tm_tally {
    _Atomic uint64_t turns;
    _Atomic uint64_t system_calls;
    _Atomic uint64_t receives;
    _Atomic uint64_t sends;
    _Atomic uint64_t short_sends;
    _Atomic uint64_t buffers_empty;
    _Atomic uint64_t overflows;
    _Atomic uint64_t direct; /* system calls of send_now */
} tm_tally;

static inline void tm_tally_add(_Atomic uint64_t *counter, uint64_t count)
{
    uint64_t value = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, value + count, memory_order_relaxed);
}

void tm_tally_read(const tm_tally *tally, tm_io_counters *counters);

/* -- the kernel's sockets, all non-blocking and close-on-exec --------------------------------- */

/* A listening descriptor or -errno; fills *bound. */
TM_MUST_CHECK int tm_socket_listen_fd(const tm_io_address *address, int backlog,
                                      tm_io_address *bound);
/* A descriptor or -errno; fills *rc: 0 connected, -EINPROGRESS, or why the connect failed. */
TM_MUST_CHECK int tm_socket_connect_fd(const tm_io_address *address, int *rc);
/* How a connect ended: 0 or -errno. */
TM_MUST_CHECK int tm_socket_connect_result(int fd);
/* Takes one connection from a listener into a new slot: 0 and *socket; -EAGAIN when none
 * waits; else what makes the listener pause. Errors of the connection itself are skipped. */
TM_MUST_CHECK int tm_socket_accept(tm_socket_table *table, const tm_socket *listener,
                                   tm_socket **socket, tm_io_address *peer);
/* Sends RST now and ends everything that waits on the descriptor; close(2) still has to follow. */
void tm_socket_reset(int fd);
/* Sends without waiting: bytes taken or -errno. */
ssize_t tm_socket_sendmsg(int fd, const struct iovec *iov, int count);
/* After bytes were handed out: whether from now on the owner is asked where he wants them. */
void tm_socket_bulk_begin(tm_socket *socket, size_t len, const tm_io_sink *sink);
/* Reads once and hands out what came; beside holds TM_IO_BESIDE_BYTES. Bytes or -errno; *all: there may
 * be more. The owner may have closed the socket. */
ssize_t tm_socket_read_bulk(tm_socket *socket, tm_tally *tally, uint8_t *beside,
                            const tm_io_sink *sink, bool *all);
/* tm_io_ops.send_now and tm_io_ops.address of both kernel backends. */
ssize_t tm_socket_send_now(tm_socket_table *table, tm_tally *tally, tm_io_id id,
                           const struct iovec *iov, int count);
int tm_socket_address(const tm_socket_table *table, tm_io_id id, tm_io_address *address);
/* close(2) of every descriptor in the table, and nothing else: in a forked child connections and
 * requests are the parent's. */
void tm_socket_close_all(tm_socket_table *table);

/* tm_io_ops.now_ns and tm_io_ops.random of both kernel backends. */
uint64_t tm_socket_now_ns(tm_io *io);
int tm_socket_random(tm_io *io, void *bytes, size_t len);

#endif
