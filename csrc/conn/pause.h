/* How long the engine pauses between two turns.
 *
 * A BEAM whose reader keeps up writes one segment a message, and wakes the reader for each. One whose
 * reader is a little late puts what it can into a segment, and what wakes, reads and hands over does so
 * for many messages at once. So while small messages stream in and nothing is sent (no caller waits for
 * an answer of ours), the engine pauses; the longer, the more come. Where answers are sent, it pauses
 * for a short while, if the messages do not wait for these answers. A message that comes alone, or
 * seldom, is never late by it. Pure: it is told what turns brought. */
#ifndef TM_CONN_PAUSE_H
#define TM_CONN_PAUSE_H

#include <stdbool.h>
#include <stdint.h>

#include "../limits.h"

typedef struct tm_pause {
    uint64_t sends;  /* made when it was last told */
    unsigned streak; /* turns in a row that were part of a stream */
    unsigned ns;     /* of a stream's next pause */
} tm_pause;

/* What a turn brought: frames and their bytes; sends are all that were ever made. The pause behind it,
 * ns, or 0. */
unsigned tm_pause_after(tm_pause *pause, uint64_t frames, uint64_t bytes, uint64_t sends);

/* Pauses of an exchange: messages that are answered while others come. */
typedef struct tm_exchange {
    unsigned ns;       /* of the pauses now, or 0 */
    bool pays;         /* a trial of them has shown it */
    unsigned hold;     /* periods until they are tried again */
    uint64_t frame_ns; /* between two messages before they began */
    /* this trial: its periods, and what they brought */
    unsigned periods;
    uint64_t took_ns, turns, frames;
} tm_exchange;

/* What a period of ns brought: small frames of a few links, in so many turns. The pauses in the next, ns,
 * or 0.
 *
 * Callers who all wait for the same turn ask at once again, and a pause would delay them all: messages
 * would come more seldom, and that ends it. */
unsigned tm_exchange_pause(tm_exchange *exchange, uint64_t ns, uint64_t turns, uint64_t frames);

#endif
