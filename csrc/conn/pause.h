/* How long the engine pauses between two turns.
 *
 * A BEAM whose reader keeps up writes one segment a message, and wakes the reader for each. One whose
 * reader is a little late puts what it can into a segment, and what wakes, reads and hands over does so
 * for many messages at once. So while small messages stream in and nothing is sent (no caller waits for
 * an answer of ours), the engine pauses; the longer, the more come. A message that comes alone, or
 * seldom, is never late by it. Pure: it is told what a turn brought. */
#ifndef TM_CONN_PAUSE_H
#define TM_CONN_PAUSE_H

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

#endif
