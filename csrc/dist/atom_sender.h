/* Atoms that we have given numbers to: the sent half of DIST_HDR_ATOM_CACHE, for control messages only.
 *
 * They name the two nodes and a few registered processes over and over. The first so many different
 * ones of a connection get a slot each and keep it; the others are written out, as all atoms of
 * payloads are, which are made before their connection is known. Belongs to one connection. Pure. */
#ifndef TM_DIST_ATOM_SENDER_H
#define TM_DIST_ATOM_SENDER_H

#include "../base/buf.h"
#include "../base/bytes.h"
#include "../limits.h"

typedef struct tm_atom_sender {
    uint32_t count; /* slots in use. What was not sent after all is forgotten by setting it back. */
    struct {
        uint8_t len;
        uint8_t text[TM_ATOM_SENDER_TEXT_MAX];
    } slots[TM_ATOM_SENDER_COUNT_MAX];
} tm_atom_sender;

/* Rewrites the one frame at the end of out that starts at start: length, the head of a message or of a
 * first fragment with no atoms in it, a control message, and what follows. 0, or TM_ENOMEM with
 * everything as before. */
TM_MUST_CHECK int tm_atom_sender_shorten(tm_atom_sender *sender, tm_buf *out, size_t start);

#endif
