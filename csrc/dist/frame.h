/* Frames of a connected peer: u32 length and that many bytes; length 0 is a tick.
 *
 * The framer cuts the stream. A frame that lies whole in the input is handed out in place; only a
 * partial one is gathered in memory of the framer, which grows with the bytes that came and never
 * by the length that was promised, and which is given back when the frame is done, or taken over by
 * whoever wants to keep it. What is more of a message in fragments is not gathered here but handed
 * out as it comes, for it has its place already. tm_frame_open then finds the terms in a frame, in the form that the
 * flags of the connection fix, and tm_frame_atoms the atoms that they refer to. Pure. */
#ifndef TM_DIST_FRAME_H
#define TM_DIST_FRAME_H

#include "../base/slab.h"
#include "atom_cache.h"
#include "control.h"

/* -- in ---------------------------------------------------------------------------------------- */

typedef struct tm_frame {
    tm_bytes body; /* borrowed from the input or the framer: until its next call */
    uint32_t len;  /* the length prefix; 0 is a tick */
    tm_bytes head; /* of a frame in parts, the bytes before all of them; else empty */
    size_t left;   /* of a frame in parts: bytes that come behind this one */
} tm_frame;

/* The beginning of a fragment: its form, and two numbers. */
#define TM_FRAGMENT_HEAD_BYTES 18

typedef struct tm_framer {
    const tm_alloc *alloc;
    uint64_t bytes_max; /* largest frame accepted; may be changed, holds from the next frame on */
    uint8_t prefix[4];
    uint8_t prefix_len;
    bool parts;      /* more of a message is handed out in parts; set before the first byte */
    bool in_parts;   /* the frame is such a one */
    bool begins;     /* the frame is the first fragment of a message: the rest will want room */
    bool handed_out; /* the gathered frame was given to the caller; freed by the next call */
    int rc;          /* why the stream ended, or 0 */
    uint32_t len;    /* of the frame that is being gathered */
    tm_slab
        memory;  /* the gathered part, TM_FRAME_HEADROOM bytes in; ptr NULL while there is none */
    size_t have; /* of the frame, gathered or handed out */
    uint8_t head[TM_FRAGMENT_HEAD_BYTES]; /* with parts: the first bytes of an unfinished frame */
} tm_framer;

void tm_framer_init(tm_framer *framer, const tm_alloc *alloc, uint64_t bytes_max);
void tm_framer_fini(tm_framer *framer);

/* Takes bytes from *input until one frame is complete: 0 and *frame. TM_NEED_DATA when all input
 * was taken: the usual end of the loop, and what releases the memory of the last frame.
 * TM_EPEER_LIMIT when a prefix is above bytes_max (frame->len tells it; no byte of the body was
 * stored) and TM_ENOMEM end the stream: every later call answers the same. */
TM_MUST_CHECK int tm_framer_feed(tm_framer *framer, tm_bytes *input, tm_frame *frame);

/* Where the next bytes of the stream belong, if they are of a frame that is being gathered: fed from
 * there they are not copied. Holds until the next call. */
tm_room tm_framer_room(tm_framer *framer);
/* Whether the frame at hand comes in parts: how much is to come, and of which sequence. */
static inline bool tm_framer_in_parts(const tm_framer *framer, size_t *left, uint64_t *sequence)
{
    if (!framer->in_parts) return false;
    *left = framer->len - framer->have;
    *sequence = tm_load_u64(framer->head + 2);
    return true;
}

/* Memory held now, bytes: TM_FRAME_HEADROOM, and TM_FRAMER_FIRST_BYTES or TM_GATHER_GROWTH times what
 * came of the frame at most, a quarter more for the first fragment of a message. */
static inline size_t tm_framer_held(const tm_framer *framer) { return framer->memory.size; }

/* The memory of the frame that was handed out last, to be taken with tm_slab_take, or left: its
 * body starts TM_FRAME_HEADROOM bytes in. NULL for a frame that lay in the input. */
static inline tm_slab *tm_framer_memory(tm_framer *framer)
{
    return framer->handed_out ? &framer->memory : NULL;
}

/* What a frame carries. */
enum tm_frame_kind {
    TM_FRAME_WHOLE,          /* a message */
    TM_FRAME_FRAGMENT_FIRST, /* its beginning: the control message at least; never the only one */
    TM_FRAME_FRAGMENT_NEXT,  /* more of it: bytes without a meaning of their own */
};

typedef struct tm_frame_terms {
    tm_bytes bytes; /* WHOLE, FIRST: control message, then the payload; NEXT: more payload */
    enum tm_frame_kind kind;
    bool versioned;    /* a version byte before the payload */
    bool has_atoms;    /* the bytes start with the list of atoms: tm_frame_atoms comes next */
    uint64_t sequence; /* FIRST, NEXT: which message */
    uint64_t fragment; /* FIRST, NEXT: its number, counting down to 1 */
    size_t left;       /* NEXT, for the caller to fill in: tm_frame.left */
    tm_slab *memory;   /* FIRST, the same: what the bytes lie in and may be taken, or NULL */
} tm_frame_terms;

/* Finds the terms in the body of a frame that is no tick. flags: those of the connection; they fix
 * the legal forms. 0, or TM_EPEER_MALFORMED with fault (which may be NULL). */
TM_MUST_CHECK int tm_frame_open(uint64_t flags, tm_bytes body, tm_frame_terms *terms,
                                tm_fault *fault);
/* The list of atoms of a frame that has one: reads it, and lets terms->bytes start behind it. For
 * other frames header is empty then. Errors as tm_atom_cache_read, with fault. */
TM_MUST_CHECK int tm_frame_atoms(tm_atom_cache *cache, tm_bytes body, tm_frame_terms *terms,
                                 tm_atom_header *header, tm_fault *fault);

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
