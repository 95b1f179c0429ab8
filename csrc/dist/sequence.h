/* Messages that go out in fragments: the heads of their frames.
 *
 * The first frame of a sequence carries the whole control message and the first part of the payload, each
 * of the others the next part. Fragments are numbered down: the first has the number of all, the last
 * one 1. A sequence is known by an id that no other open one of the connection has, and that is never
 * 0: a BEAM takes 0 for a message without fragments and reads past its end. Pure. */
#ifndef TM_DIST_SEQUENCE_H
#define TM_DIST_SEQUENCE_H

#include "control.h"

/* How many fragments a payload takes, at least 1. */
static inline uint64_t tm_sequence_count(size_t payload_len)
{
    return payload_len <= TM_FRAGMENT_BYTES
               ? 1
               : (payload_len + TM_FRAGMENT_BYTES - 1) / TM_FRAGMENT_BYTES;
}

/* Payload bytes of the fragment with this number, 1 .. tm_sequence_count. */
static inline size_t tm_sequence_part(size_t payload_len, uint64_t number)
{
    if (number > 1) return TM_FRAGMENT_BYTES;
    return payload_len - (size_t)(tm_sequence_count(payload_len) - 1) * TM_FRAGMENT_BYTES;
}

/* Append the head of the first frame, and of the one with a number below that: exactly
 * tm_sequence_part bytes of payload must follow. flags: those of the connection, with FRAGMENTS; the
 * operation takes a payload with them. 0, or as tm_frame_write_head; out is as before on any error. */
TM_MUST_CHECK int tm_sequence_first(tm_buf *out, uint64_t flags, const tm_control *control,
                                    uint64_t id, size_t payload_len);
TM_MUST_CHECK int tm_sequence_next(tm_buf *out, uint64_t id, size_t payload_len, uint64_t number);

#endif
