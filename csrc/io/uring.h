/* The ring under uring_io.c: set-up, probe, receive buffers, submissions, completions.
 *
 * This interface exists so that one file sees liburing. It knows no sockets: a request carries
 * the id of what it belongs to, and its completion brings that id back. Everything but
 * tm_ring_forked belongs to the thread that created the ring. */
#ifndef TM_IO_URING_H
#define TM_IO_URING_H

#include "socket.h"

typedef struct tm_ring tm_ring;

/* What a request is. All but the first are bits (1 << tag) in a socket's sets as well. */
typedef enum tm_ring_tag {
    TM_RING_WAKE,
    TM_RING_RECEIVE,
    TM_RING_SEND,
    TM_RING_POLL,
    TM_RING_CANCEL,
    TM_RING_STOP,
} tm_ring_tag;

typedef struct tm_ring_completion {
    tm_ring_tag tag;
    tm_io_id id;
    int res;
    bool more;      /* the request lives on */
    bool whole;     /* bytes used up their buffer */
    int buffer;     /* of bytes, or -1 */
    tm_bytes bytes; /* of a receive: borrowed until tm_ring_retire */
} tm_ring_completion;

/* fills *ring: set up, probed, with its buffers posted; counts in tally. TM_ENOTSUP or TM_ENOMEM
 * with a reason in plain words in why. */
TM_MUST_CHECK int tm_ring_create(const tm_alloc *alloc, tm_tally *tally, tm_ring **ring, char *why,
                                 size_t why_size);
/* Cancels and reaps everything first. False when the kernel would not give back all requests in
 * time, or this is not the ring's thread: then what the requests use is leaked, theirs and ours,
 * and the caller must leak what it lent them too. */
bool tm_ring_destroy(tm_ring *ring);
/* In a forked child, instead of tm_ring_destroy: gives up the descriptor and the child's own
 * memory. */
void tm_ring_forked(tm_ring *ring);

/* How many submissions there is room for; each of the following needs one. */
unsigned tm_ring_room(const tm_ring *ring);
/* Reads the eventfd's count. */
void tm_ring_wake(tm_ring *ring, int fd);
/* Receives until a completion without more. */
void tm_ring_receive(tm_ring *ring, tm_io_id id, int fd);
/* Sends; message and iov live until the next enter, the bytes until the completion. room_first:
 * polls before it tries. */
void tm_ring_send(tm_ring *ring, tm_io_id id, int fd, struct msghdr *message, bool room_first);
/* Cancels a receive: its last completion follows. */
void tm_ring_stop(tm_ring *ring, tm_io_id id);
/* Polls once for output or input, or for connections until a completion without more. */
void tm_ring_poll_out(tm_ring *ring, tm_io_id id, int fd);
void tm_ring_poll_in(tm_ring *ring, tm_io_id id, int fd);
void tm_ring_poll_listener(tm_ring *ring, tm_io_id id, int fd);
/* Cancels all requests on a descriptor. */
void tm_ring_cancel(tm_ring *ring, tm_io_id id, int fd);

/* Submits all, and waits for so many completions until until_ns (0: not at all). 0, or a negative error
 * that ends the ring. Being interrupted or told to come back later is no error. */
TM_MUST_CHECK int tm_ring_enter(tm_ring *ring, uint64_t until_ns, unsigned count);
/* Takes a completion: 1, 0 when there is none, or -EIO when the kernel's numbers cannot be. */
TM_MUST_CHECK int tm_ring_take(tm_ring *ring, tm_ring_completion *completion);
/* Gives the bytes of a completion back. */
void tm_ring_retire(tm_ring *ring, const tm_ring_completion *completion);

/* Posts the buffers that came back. */
void tm_ring_replenish(tm_ring *ring);
/* How many buffers the kernel has. */
unsigned tm_ring_buffers(const tm_ring *ring);

#endif
