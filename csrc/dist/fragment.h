/* Messages in fragments: from the first one, which has the whole control message, to the last.
 *
 * A sequence is known by a number of its sender's. Its fragments count down to 1, come in order,
 * and mix with those of other sequences and with whole frames. What has come is kept in one piece
 * of memory, which grows with the bytes that came and never by the count that was promised, and
 * which is handed over when the last one is there. Pure. */
#ifndef TM_DIST_FRAGMENT_H
#define TM_DIST_FRAGMENT_H

#include "../base/slab.h"
#include "atom_cache.h"
#include "frame.h"

typedef struct tm_fragment_limits {
    uint64_t message_bytes_max; /* above it a message is counted to its end, but not kept */
    uint64_t bytes_max;         /* what all sequences of the connection may hold */
} tm_fragment_limits;

typedef struct tm_sequence {
    uint64_t id;
    uint64_t next;          /* number of the fragment that has to come */
    uint64_t expected;      /* bytes that the message may come to, as its sender says */
    uint64_t payload_bytes; /* that have come, kept or not */
    uint64_t touched_ns;    /* when the last fragment came */
    tm_slab memory;
    size_t start; /* of the terms in memory: TM_FRAME_HEADROOM bytes in at least */
    size_t control_len;
    size_t len; /* of the terms as far as they are kept: the control message at least */
    size_t atom_count;
    size_t atom_bytes;       /* of their texts, shared or not */
    tm_cached_atom *atoms[]; /* of the first fragment's header */
} tm_sequence;

static inline tm_bytes tm_sequence_terms(const tm_sequence *sequence)
{
    return tm_bytes_of(sequence->memory.ptr + sequence->start, sequence->len);
}

/* Whether the message was too large to be kept: of its payload there is [] then. */
static inline bool tm_sequence_dropped(const tm_sequence *sequence)
{
    return sequence->len - sequence->control_len < sequence->payload_bytes;
}

typedef struct tm_fragments {
    const tm_alloc *alloc;
    tm_atom_pool *pool;
    tm_map sequences;    /* id -> tm_sequence; no memory while none is open */
    uint64_t bytes;      /* held by the sequences, with the texts of their atoms */
    uint64_t atom_bytes; /* of those texts alone */
} tm_fragments;

void tm_fragments_init(tm_fragments *fragments, tm_atom_pool *pool);
void tm_fragments_fini(tm_fragments *fragments);

/* A first fragment of at least two: opens its sequence. terms as tm_frame_open has filled it,
 * control_len bytes of it the control message, header its atoms; terms->memory may be taken. 0; TM_EPEER_MALFORMED (a number
 * that is 0 or taken), TM_EPEER_LIMIT (too many sequences, or too many bytes) and TM_ENOMEM end the
 * connection, with *what saying why. */
TM_MUST_CHECK int tm_fragments_open(tm_fragments *fragments, const tm_frame_terms *terms,
                                    size_t control_len, const tm_atom_header *header,
                                    const tm_fragment_limits *limits, uint64_t now_ns,
                                    const char **what);

/* Another fragment, or a part of one: terms->left says what comes behind it. 0; *done is the
 * sequence if this was the end of its last fragment, to be freed, else NULL. Errors as above, and TM_EPEER_MALFORMED for a sequence that is not open or a number out
 * of order. */
TM_MUST_CHECK int tm_fragments_add(tm_fragments *fragments, const tm_frame_terms *terms,
                                   const tm_fragment_limits *limits, uint64_t now_ns,
                                   tm_sequence **done, const char **what);

/* Where the next bytes of a sequence belong, of a fragment of which so many are to come: added from
 * there they are not copied. Holds until the next call. */
tm_room tm_fragments_room(tm_fragments *fragments, uint64_t id, size_t left,
                          const tm_fragment_limits *limits);

/* Frees a sequence that is done; its memory too, unless that was taken (ptr NULL). */
void tm_sequence_free(tm_fragments *fragments, tm_sequence *sequence);

/* The longest that a sequence has waited for its next fragment, ns; 0 when none is open. */
uint64_t tm_fragments_idle_ns(const tm_fragments *fragments, uint64_t now_ns);

#endif
