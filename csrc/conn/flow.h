/* A flow: an entry whose payload is large, and what its sender queued behind it.
 *
 * From its push on the entry is known by its sender. Its place in the queue stays that of any other
 * entry; when that is reached the flow is begun: the entry gets a sequence id and takes turns with the
 * other flows, a fragment each. At most TM_SEQUENCES_OUT_MAX are open, the others wait. When the entry is
 * settled, its last fragment written, what waited behind it takes the front of the queue up to the
 * next large one, which is a flow then. Without memory for a flow an entry goes out whole, in its place.
 * Under the node's lock, but for what the write in flight owns. */
#ifndef TM_CONN_FLOW_H
#define TM_CONN_FLOW_H

#include "sendq.h"

/* A place in a payload: a part, and bytes into it. */
typedef struct tm_payload_at {
    size_t part;
    size_t offset;
} tm_payload_at;

typedef struct tm_flow {
    tm_list link; /* in the queue's active or waiting flows, or in none */
    tm_entry *entry;
    uint32_t sender[2]; /* id and serial of the process; both 0: no process sent */
    tm_entry *behind;   /* what the sender has queued since, in order */
    tm_entry **behind_tail;
    uint64_t sequence;  /* 0: not begun */
    uint64_t left;      /* fragments that no write has taken, once it is begun */
    tm_payload_at next; /* where the first of them starts */
    /* owned by the write in flight */
    struct tm_flow *writing; /* the next flow of that write */
    uint64_t burst;          /* fragments of this one in it, from number left + burst on */
    tm_payload_at burst_at;
    bool refused; /* the connection cannot carry the operation: nothing was written */
} tm_flow;

/* -- for sendq.c ------------------------------------------------------------------------------- */

/* Takes an entry that belongs behind a flow (true), and makes a flow of a large one that does not
 * (false: it still goes into the queue). */
bool tm_flow_push(tm_sendq *queue, tm_entry *entry);
/* The entry of any flow that is begun; NULL without. */
tm_entry *tm_flow_pop(tm_sendq *queue);
void tm_flow_end(tm_sendq *queue, tm_entry *entry);

/* -- for write.c ------------------------------------------------------------------------------- */

/* Opens the sequence of a flow that was popped, or lets it wait for that. */
void tm_flow_begin(tm_sendq *queue, tm_flow *flow);
/* The flow whose turn it is; NULL when no fragment is to be written. */
tm_flow *tm_flow_turn(const tm_sendq *queue);
/* How many spans the next fragment of a flow has; *after: where it ends. */
size_t tm_flow_spans(const tm_flow *flow, tm_payload_at *after);
/* That fragment is part of the write that is being made. True for the first of it. */
bool tm_flow_take(tm_sendq *queue, tm_flow *flow, tm_payload_at after);

/* The next span of a payload, at most max bytes, max > 0; moves *at on. */
tm_bytes tm_entry_span(const tm_entry *entry, tm_payload_at *at, size_t max);

#endif
