/* Frames of a connected peer: u32 length and that many bytes; length 0 is a tick.
 *
 * The framer cuts the stream. A frame that lies whole in the input is handed out in place; only a
 * partial one is gathered in memory of the framer, which grows with the bytes that came and never
 * by the length that was promised, and which is given back when the frame is done. tm_frame_open
 * then finds the terms in a frame, in the form that the flags of the connection fix. Pure. */
#ifndef TM_DIST_FRAME_H
#define TM_DIST_FRAME_H

#include "control.h"

/* -- in ---------------------------------------------------------------------------------------- */

typedef struct tm_frame {
    tm_bytes body; /* borrowed from the input or the framer: until its next call */
    uint32_t len;  /* the length prefix; 0 is a tick */
} tm_frame;

typedef struct tm_framer {
    const tm_alloc *alloc;
    uint64_t bytes_max; /* largest frame accepted; may be changed, holds from the next frame on */
    uint8_t prefix[4];
    uint8_t prefix_len;
    bool handed_out; /* the gathered frame was given to the caller; freed by the next call */
    int rc;          /* why the stream ended, or 0 */
    uint32_t len;    /* of the frame that is being gathered */
    uint8_t *ptr;    /* the gathered part; NULL while none is */
    size_t have;
    size_t cap;
} tm_framer;

void tm_framer_init(tm_framer *framer, const tm_alloc *alloc, uint64_t bytes_max);
void tm_framer_fini(tm_framer *framer);

/* Takes bytes from *input until one frame is complete: 0 and *frame. TM_NEED_DATA when all input
 * was taken: the usual end of the loop, and what releases the memory of the last frame.
 * TM_EPEER_LIMIT when a prefix is above bytes_max (frame->len tells it; no byte of the body was
 * stored) and TM_ENOMEM end the stream: every later call answers the same. */
TM_MUST_CHECK int tm_framer_feed(tm_framer *framer, tm_bytes *input, tm_frame *frame);

/* Memory held now, bytes: at most TM_FRAMER_FIRST_BYTES or twice what came of the frame. */
static inline size_t tm_framer_held(const tm_framer *framer) { return framer->cap; }

/* What a frame carries. */
typedef struct tm_frame_terms {
    tm_bytes bytes; /* control message, then the payload */
    bool versioned; /* a version byte before the payload */
} tm_frame_terms;

/* Finds the terms in the body of a frame that is no tick. flags: those of the connection; they fix
 * the one legal form. 0, or TM_EPEER_MALFORMED with fault (which may be NULL). */
TM_MUST_CHECK int tm_frame_open(uint64_t flags, tm_bytes body, tm_frame_terms *terms,
                                tm_fault *fault);

/* -- out --------------------------------------------------------------------------------------- */

/* Bytes of a tick. */
#define TM_FRAME_TICK TM_BYTES("\0\0\0\0")

/* Appends one whole frame. payload: one term without version byte, for operations that take one;
 * empty for EXIT, EXIT2 and MONITOR_P_EXIT, whose reason is taken from control->reason, inline or
 * as payload as the flags say, and for operations without payload.
 * Errors as tm_control_write; TM_EUSE_ARG also for a payload that is missing or too much. out is as
 * before on any error. */
TM_MUST_CHECK int tm_frame_write(tm_buf *out, uint64_t flags, const tm_control *control,
                                 tm_bytes payload);

/* The same without the payload itself: exactly payload_len bytes of term must be sent right behind
 * what was appended. Only where tm_control_takes_payload says so, else TM_EUSE_ARG. */
TM_MUST_CHECK int tm_frame_write_head(tm_buf *out, uint64_t flags, const tm_control *control,
                                      size_t payload_len);

#endif
