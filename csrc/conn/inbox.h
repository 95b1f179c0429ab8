/* From the engine to the consumer of one node: events with their bytes, packed into blocks.
 *
 * Several producers (the engine, and callers whose act has a local effect), one consumer. An event
 * is written once and never moves, so its spans point into its block; only a large term stays in
 * the memory that it was assembled in, which becomes the event's. The consumer takes all blocks at
 * once and reads without a lock. */
#ifndef TM_CONN_INBOX_H
#define TM_CONN_INBOX_H

#include <pthread.h>

#include "../base/error.h"
#include "../base/list.h"
#include "../base/slab.h"
#include "../etf/etf.h"
#include "../tumen.h"

/* Bytes of a block; an event that is larger gets a block of its own. */
#define TM_INBOX_BLOCK_BYTES ((size_t)64 * 1024)
/* A term of at least so many bytes stays where it was assembled, if it fills half of that. Below it
 * a copy costs less than another piece of memory. */
#define TM_INBOX_TAKE_BYTES_MIN ((size_t)8 * 1024)

/* Where events come from: counts what waits for the consumer, so that the node can close the connection
 * that fills its inbox. Shared by the connection and its events. */
typedef struct tm_source {
    size_t refs;    /* atomic */
    uint64_t bytes; /* atomic: in the inbox */
    uint64_t epoch; /* of the connection */
    const tm_alloc *alloc;
} tm_source;

tm_source *tm_source_create(const tm_alloc *alloc, uint64_t epoch);
void tm_source_unref(tm_source *source); /* NULL is fine */

typedef struct tm_inbox {
    const tm_alloc *alloc;
    pthread_mutex_t lock;
    tm_list blocks;
    uint64_t bytes;  /* atomic: of events not yet read */
    int armed;       /* the consumer sleeps and wants a signal; under the lock */
    uint64_t unread; /* atomic: signals, sent or about to be, that fd was not cleared of */
    int fd;
    uint64_t *wakeups; /* atomic, the engine's */
} tm_inbox;

TM_MUST_CHECK int tm_inbox_init(tm_inbox *inbox, const tm_alloc *alloc, uint64_t *wakeups);
void tm_inbox_fini(tm_inbox *inbox);

/* The term of an event on its way in, if it is more than bytes to be copied. */
typedef struct tm_inbox_term {
    const tm_bytes *atoms;    /* of the frame, */
    const tm_walk_refs *refs; /* and where the term refers to them; NULL: nowhere */
    tm_slab *memory;          /* that it lies in and that may be taken: ptr is NULL then; or NULL */
} tm_inbox_term;

/* Copies event and its spans. source may be NULL. later: the producer promises a tm_inbox_signal
 * soon (end of the engine's turn); else a sleeping consumer is signalled at once. 0 or TM_ENOMEM. */
TM_MUST_CHECK int tm_inbox_put(tm_inbox *inbox, const tumen_event *event, tm_source *source,
                               int later);
/* The same for a term from a frame: event->term is where it lies, with its references to atoms.
 * When its memory is taken, nothing else in it may be used any more. */
TM_MUST_CHECK int tm_inbox_put_term(tm_inbox *inbox, const tumen_event *event,
                                    const tm_inbox_term *term, tm_source *source, int later);
/* Signals a sleeping consumer if events wait: 1, else 0. */
int tm_inbox_signal(tm_inbox *inbox);
/* 1: events wait; else 0 and the next event signals. */
int tm_inbox_arm(tm_inbox *inbox);
uint64_t tm_inbox_bytes(const tm_inbox *inbox);

/* Takes all events; NULL when there are none. The consumer is awake: no signal until it arms. */
struct tumen_batch *tm_inbox_take(tm_inbox *inbox);

#endif
