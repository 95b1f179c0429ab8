/* The handshake before a connection: version 6, both roles, as one state table.
 *
 * Nothing here is a connection yet: the peer is a stranger until VERIFIED (acceptor) or CONNECTED
 * (initiator), so this file sees bytes only, no terms; the peer's name is checked text, never an
 * atom. A handshake allocates nothing but what goes into out. Pure: time-outs and random numbers
 * are the caller's.
 *
 * Acceptor:  init, feed -> NAME, answer, feed -> VERIFIED, accept, CONNECTED. Initiator: init,
 * start, feed -> CHALLENGED, feed -> CONNECTED. Bytes in out are to be sent in order, also those of
 * a call that ended the handshake (a refusal), and the socket closed then. */
#ifndef TM_DIST_HANDSHAKE_H
#define TM_DIST_HANDSHAKE_H

#include "../base/buf.h"
#include "../base/bytes.h"
#include "../base/error.h"
#include "../limits.h"
#include "fault.h"
#include "flags.h"
#include "md5.h"

enum tm_handshake_role { TM_HANDSHAKE_INITIATOR, TM_HANDSHAKE_ACCEPTOR };

enum tm_handshake_state {
    TM_HS_NONE, /* the table's illegal pair; a zeroed handshake */
    TM_HS_I_START,
    TM_HS_I_STATUS,
    TM_HS_I_CHALLENGE,
    TM_HS_I_ACK,
    TM_HS_A_NAME,
    TM_HS_A_ANSWER,     /* the caller must answer */
    TM_HS_A_ANSWER_OLD, /* the same after the old form of send_name */
    TM_HS_A_ALIVE,      /* "alive" was sent: does the peer insist? */
    TM_HS_A_ALIVE_OLD,
    TM_HS_A_COMPLEMENT, /* the missing half of an old send_name */
    TM_HS_A_REPLY,
    TM_HS_A_CLAIM, /* the digest is right: the caller claims the name and accepts */
    TM_HS_CONNECTED,
    TM_HS_FAILED,
    TM_HS_STATE_COUNT,
};

/* What happens to a handshake: a message of the peer, or a call of ours. */
enum tm_handshake_input {
    TM_HS_IN_NAME,     /* 'N': send_name or challenge */
    TM_HS_IN_NAME_OLD, /* 'n' */
    TM_HS_IN_OK,       /* 's' and the text */
    TM_HS_IN_OK_SIMULTANEOUS,
    TM_HS_IN_NOK,
    TM_HS_IN_NOT_ALLOWED,
    TM_HS_IN_ALIVE,
    TM_HS_IN_NAMED,
    TM_HS_IN_TRUE,
    TM_HS_IN_FALSE,
    TM_HS_IN_COMPLEMENT, /* 'c' */
    TM_HS_IN_REPLY,      /* 'r' */
    TM_HS_IN_ACK,        /* 'a' */
    TM_HS_IN_UNKNOWN,    /* anything else: legal nowhere */
    TM_HS_CALL_START,
    TM_HS_CALL_CONTINUE, /* answer with ok, ok_simultaneous or named: */
    TM_HS_CALL_ALIVE,
    TM_HS_CALL_REFUSE, /* answer with nok or not_allowed */
    TM_HS_CALL_ACCEPT,
    TM_HS_INPUT_COUNT,
};

/* Statuses that an acceptor may answer with. */
enum tm_handshake_status {
    TM_HANDSHAKE_OK,
    TM_HANDSHAKE_OK_SIMULTANEOUS, /* our own attempt towards the peer must be given up */
    TM_HANDSHAKE_NOK,             /* our own attempt wins */
    TM_HANDSHAKE_NOT_ALLOWED,
    TM_HANDSHAKE_ALIVE, /* a connection to that name is up */
};

/* What tm_handshake_feed answers; negative errors beside them. */
enum tm_handshake_event {
    TM_HANDSHAKE_MORE,       /* all input was taken, more is needed */
    TM_HANDSHAKE_NAMED,      /* acceptor: the peer has said its name; tm_handshake_answer is next */
    TM_HANDSHAKE_CHALLENGED, /* initiator: the peer's challenge is known and our answer is in out. A
                                caller with other handshakes under way compares it with their
                                challenges before sending (see tm_handshake_peer_challenge) */
    TM_HANDSHAKE_VERIFIED,   /* acceptor: the peer has the cookie; tm_handshake_accept is next */
    TM_HANDSHAKE_CONNECTED,  /* both ends: what is left in *input are frames */
};

typedef struct tm_handshake_config {
    tm_bytes name;     /* ours, copied; only the host with NAME_ME among the flags */
    uint32_t creation; /* 0 with NAME_ME */
    uint64_t flags;
    uint64_t mandatory; /* flags that a peer must have; 0 stands for TM_DFLAGS_M25 */
    uint32_t challenge; /* fresh random bits for every handshake */
    /* initiator only: */
    tm_bytes expected_name; /* the node that was dialled, copied */
    tm_bytes cookie;        /* copied, wiped at the end */
    bool insist;            /* answer "true" to `alive`, else "false" and TM_EPEER_REFUSED */
} tm_handshake_config;

typedef struct tm_handshake {
    uint8_t state; /* enum tm_handshake_state; assigned by one function */
    bool name_me;  /* the initiator of the two asked for a name */
    int rc;        /* why it failed */
    tm_fault fault;
    uint64_t flags;     /* ours */
    uint64_t mandatory; /* demanded of the peer */
    uint64_t peer_flags;
    uint32_t creation;
    uint32_t peer_creation;
    uint32_t challenge;
    uint32_t peer_challenge;
    bool insist;
    uint8_t name_len;
    uint8_t peer_name_len;
    uint8_t cookie_len;
    uint8_t prefix_len; /* bytes of the length that have come */
    uint16_t body_size; /* of the message that is being gathered */
    uint16_t body_have;
    uint8_t name[TM_NODE_NAME_BYTES_MAX];
    uint8_t peer_name[TM_NODE_NAME_BYTES_MAX]; /* initiator: the expected one from the start */
    uint8_t cookie[TM_COOKIE_BYTES_MAX];
    uint8_t body[TM_HANDSHAKE_NAME_BYTES_MAX];
} tm_handshake;

/* 0, TM_EUSE_NAME (a name that we could not say or dial) or TM_EUSE_ARG (cookie empty or too
 * long). */
TM_MUST_CHECK int tm_handshake_init(tm_handshake *hs, enum tm_handshake_role role,
                                    const tm_handshake_config *config);
/* Wipes the secret. Harmless on a zeroed one, and twice. */
void tm_handshake_fini(tm_handshake *hs);

/* Initiator: writes send_name. 0, TM_EUSE_STATE, or an error of out, which ends the handshake. */
TM_MUST_CHECK int tm_handshake_start(tm_handshake *hs, tm_buf *out);

/* Takes bytes of the peer from *input up to the next event: enum tm_handshake_event, or an error
 * that ends the handshake, the same from then on:
 *   TM_EPEER_MALFORMED  tm_handshake.fault tells why
 *   TM_EPEER_LIMIT      a message longer than its state allows, refused by its length alone
 *   TM_EPEER_NAME       not a node name, or not the one that was dialled
 *   TM_EPEER_FLAGS      see tm_handshake_missing; not_allowed is in out (acceptor)
 *   TM_EPEER_COOKIE     wrong digest
 *   TM_EPEER_REFLECTED  our own challenge came back
 *   TM_EPEER_REFUSED    initiator: not_allowed, or `alive` where we do not insist
 *   TM_ECLOSED          initiator: `nok`, the peer's own attempt to connect to us wins, wait for
 *                       it; acceptor: refused by our own answer, or the peer did not insist
 *   TM_ENOMEM, TM_EUSE_LIMIT  from out
 * While a call of ours is due it answers NAMED or VERIFIED again and takes nothing. */
TM_MUST_CHECK int tm_handshake_feed(tm_handshake *hs, tm_bytes *input, tm_buf *out);

/* Acceptor, after NAMED. With a status that goes on, writes it and our challenge, and keeps a copy
 * of the cookie for this peer (for `alive` the challenge follows when the peer insists). With NOK
 * or NOT_ALLOWED writes it and ends the handshake with TM_ECLOSED; cookie is not looked at. A peer
 * that asked for a name (tm_handshake.name_me) can be refused here, not accepted.
 * 0, TM_EUSE_STATE, TM_EUSE_ARG, or an error of out, which ends the handshake. */
TM_MUST_CHECK int tm_handshake_answer(tm_handshake *hs, enum tm_handshake_status status,
                                      tm_bytes cookie, tm_buf *out);
/* Acceptor, after NAMED of a peer with name_me: gives it a name and creation. */
TM_MUST_CHECK int tm_handshake_answer_named(tm_handshake *hs, tm_bytes name, uint32_t creation,
                                            tm_bytes cookie, tm_buf *out);

/* Acceptor, after VERIFIED: writes the ack; CONNECTED from here on. 0, TM_EUSE_STATE, or an error
 * of out, which ends the handshake. */
TM_MUST_CHECK int tm_handshake_accept(tm_handshake *hs, tm_buf *out);

/* -- what became known; valid from the event that says so -------------------------------------- */

/* The peer's name (NAMED, initiator: always), with name_me before the answer only its host. */
static inline tm_bytes tm_handshake_peer_name(const tm_handshake *hs)
{
    return (tm_bytes){hs->peer_name, hs->peer_name_len};
}

/* Our name: given at init, or by the peer when we asked for one (CONNECTED). */
static inline tm_bytes tm_handshake_name(const tm_handshake *hs)
{
    return (tm_bytes){hs->name, hs->name_len};
}

/* Our creation and the peer's: `creation` and `peer_creation` of the struct, at CONNECTED. */

/* The flags in force on the connection (VERIFIED, CONNECTED). */
uint64_t tm_handshake_flags(const tm_handshake *hs);

/* Mandatory flags that the peer lacks, for the text of TM_EPEER_FLAGS. */
uint64_t tm_handshake_missing(const tm_handshake *hs);

/* Our challenge, which no peer may send to us on any connection while this handshake lives; and the
 * peer's (CHALLENGED, VERIFIED), to be compared with the challenges of our other handshakes before
 * out is sent or accept is called. */
static inline uint32_t tm_handshake_challenge(const tm_handshake *hs) { return hs->challenge; }
static inline uint32_t tm_handshake_peer_challenge(const tm_handshake *hs)
{
    return hs->peer_challenge;
}

/* -- rules ------------------------------------------------------------------------------------- */

/* What to answer a peer that connects to us while our own attempt towards it is pending. */
enum tm_handshake_status tm_handshake_simultaneous(tm_bytes our_name, tm_bytes peer_name);

/* name@host: printable ASCII, one '@' with something on both sides, at most
 * TM_NODE_NAME_BYTES_MAX bytes. */
bool tm_node_name_valid(tm_bytes name);

/* -- the table, for tests and for the diagram that is printed from it -------------------------- */

/* The state that follows, TM_HS_NONE where the pair is illegal. TM_HS_FAILED is a legal refusal. */
enum tm_handshake_state tm_handshake_next(enum tm_handshake_state state,
                                          enum tm_handshake_input input);
const char *tm_handshake_state_name(enum tm_handshake_state state);
const char *tm_handshake_input_name(enum tm_handshake_input input);

#endif
