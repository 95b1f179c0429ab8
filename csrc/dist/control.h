/* Control messages: the tuple at the head of every distribution frame, parsed and written.
 *
 * tm_control holds one operation by its canonical name: SEND for SEND, SEND_TT, SEND_SENDER and
 * SEND_SENDER_TT, and so on (opcode.def). Parsing validates the whole tuple, terms carried in it
 * included; the payload behind it is handed out unread. Writing picks the variant that the flags of
 * the connection ask for. Pure. */
#ifndef TM_DIST_CONTROL_H
#define TM_DIST_CONTROL_H

#include "../etf/etf.h"
#include "fault.h"
#include "flags.h"

enum tm_opcode {
#define TM_OPCODE(name, value, canonical, fields, payload) TM_OP_##name = (value),
#include "opcode.def"
#undef TM_OPCODE
    TM_OP_LAST = TM_OP_ALTACT_SIG_SEND,
};

/* Flags of ALTACT_SIG_SEND; other bits are ignored. */
enum tm_altact_flags {
    TM_ALTACT_PRIO = 1,
    TM_ALTACT_TOKEN = 2, /* a trace token follows */
    TM_ALTACT_ALIAS = 4, /* to is a reference */
    TM_ALTACT_NAME = 8,  /* to is an atom; with neither, a pid */
    TM_ALTACT_EXIT = 16, /* the payload is an exit reason, not a message */
};

/* Flags of SPAWN_REPLY: what was set up. */
enum tm_spawn_reply_flags { TM_SPAWN_REPLY_LINK = 1, TM_SPAWN_REPLY_MONITOR = 2 };

enum tm_item_kind { TM_ITEM_NONE, TM_ITEM_PID, TM_ITEM_NAME, TM_ITEM_REF };

typedef struct tm_control_item {
    enum tm_item_kind kind;
    union {
        tm_pid pid;
        tm_bytes name; /* UTF-8 text of an atom, may be empty */
        tm_ref ref;
    };
} tm_control_item;

/* One control message. All spans are borrowed from the frame and its atoms or point into the
 * struct's own memory: not to be copied by assignment after a parse. What an operation does not
 * have is zero. */
typedef struct tm_control {
    uint8_t op;           /* canonical, enum tm_opcode */
    bool has_token;       /* token is set */
    bool has_payload;     /* parsed: a payload follows (message, arguments, or the reason of an
                             EXIT, EXIT2 or MONITOR_P_EXIT, whose reason is empty then) */
    uint64_t wire_op;     /* parsed: the number on the wire, also of an unknown operation */
    tm_control_item from; /* NONE (old SEND), PID; MONITOR_P_EXIT: the item as it was monitored */
    tm_control_item to;
    tm_ref ref;          /* MONITOR_P, DEMONITOR_P, MONITOR_P_EXIT; SPAWN_*: the request id */
    uint64_t unlink_id;  /* UNLINK_ID, UNLINK_ID_ACK: never 0 */
    uint64_t flags;      /* SPAWN_REPLY, ALTACT_SIG_SEND; the low 64 bits of a larger integer */
    tm_bytes reason;     /* EXIT, EXIT2, MONITOR_P_EXIT: one term; to write: always set */
    tm_bytes token;      /* one term */
    tm_pid group_leader; /* SPAWN_REQUEST; GROUP_LEADER: the new one */
    tm_bytes module;     /* SPAWN_REQUEST: UTF-8 atom text */
    tm_bytes function;
    int64_t arity;
    tm_bytes options;       /* SPAWN_REQUEST: one term, not checked to be a list */
    tm_control_item result; /* SPAWN_REPLY: PID, or NAME for an error */
    tm_buf written_out;     /* parsed: the terms that named atoms of the frame, without doing so */
    /* Latin-1 atoms in UTF-8: no operation has more than two atoms outside identifiers. */
    uint8_t scratch[2][TM_ATOM_BYTES_MAX];
    uint8_t scratch_used;
} tm_control;

/* Makes it empty with an operation; what is written next sets the rest. */
static inline void tm_control_init(tm_control *control, enum tm_opcode op)
{
    memset(control, 0, offsetof(tm_control, scratch));
    control->scratch_used = 0;
    control->op = (uint8_t)op;
}

/* Answer of tm_control_parse: a well-formed tuple that starts with an integer we do not know as an
 * operation. control->wire_op is its number; to be counted and ignored. */
#define TM_CONTROL_UNKNOWN 1

/* Parses the control message at the start of terms (as tm_frame_open fills it). versioned: a
 * version byte stands before the payload, as in pass-through frames. Fills *payload with the bytes
 * from the payload's tag on (bytes behind the payload included: the walk finds its end), empty for
 * an operation without one; what follows such an operation is ignored. limits and alloc serve the
 * terms inside the tuple; the atoms of the frame are in limits, and of what is filled the payload
 * alone refers to them.
 * 0, TM_CONTROL_UNKNOWN, TM_EPEER_MALFORMED (fault tells offset and reason), TM_EPEER_LIMIT
 * (well-formed and filled like for 0, but a term of the tuple is over a limit) or TM_ENOMEM. fault
 * may be NULL. To be followed by tm_control_fini, whatever the answer. */
TM_MUST_CHECK int tm_control_parse(tm_bytes terms, bool versioned, const tm_walk_limits *limits,
                                   const tm_alloc *alloc, tm_control *control, tm_bytes *payload,
                                   tm_fault *fault);
/* Frees what a parse has needed memory for: terms with references to atoms, which are rare. */
static inline void tm_control_fini(tm_control *control)
{
    if (control->written_out.ptr) tm_buf_fini(&control->written_out);
}

/* Bytes of the control message that terms start with: all of it must be there, the payload need not
 * be. 0, TM_EPEER_MALFORMED with fault, or TM_ENOMEM. */
TM_MUST_CHECK int tm_control_measure(tm_bytes terms, const tm_walk_limits *limits,
                                     const tm_alloc *alloc, size_t *len, tm_fault *fault);

/* Whether a payload follows this operation on a connection with these flags: always for messages
 * and spawn requests; for exits and downs only with EXIT_PAYLOAD, and then it is the reason. */
bool tm_control_takes_payload(uint64_t flags, const tm_control *control);

/* Appends the tuple (no version byte) in the variant that flags ask for. The reason of EXIT, EXIT2
 * and MONITOR_P_EXIT is written where it travels inline, else tm_frame_write puts it behind. An
 * ALIAS_SEND goes out as ALTACT_SIG_SEND where only that was negotiated, and the other way round
 * where nothing but a priority is lost by it.
 * 0, TM_ENOMEM, TM_EUSE_LIMIT, TM_EUSE_ARG (a field that the operation needs is missing or of the
 * wrong kind), or TM_ENOTSUP: the peer did not announce this operation, nothing may be sent. out is
 * as before on any error. */
TM_MUST_CHECK int tm_control_write(tm_buf *out, uint64_t flags, const tm_control *control);

/* "SEND" for 2; "unknown" for a number without a name. For counters and logs. */
const char *tm_opcode_name(uint64_t wire_op);

#endif
