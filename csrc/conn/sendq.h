/* The send queue of one peer: what was accepted for sending and not yet taken by the kernel.
 *
 * An entry holds a control operation by its meaning and the payload as bytes: which form both take on
 * the wire is decided when the entry is written, from the flags of the connection it then goes out
 * on. So a message can be queued before there is a connection. Identifiers are kept without node names:
 * "ours" and "theirs" are known. Under the node's lock, all operations O(1). */
#ifndef TM_CONN_SENDQ_H
#define TM_CONN_SENDQ_H

#include "../dist/frame.h"
#include "../tumen.h"

typedef struct tm_small_pid {
    uint32_t id;
    uint32_t serial;
    uint32_t creation; /* 0: none */
} tm_small_pid;

typedef struct tm_small_ref {
    uint32_t creation;
    uint32_t count; /* 0: none */
    uint32_t words[TM_REF_WORDS_MAX];
} tm_small_ref;

/* What few entries have. */
typedef struct tm_entry_rare {
    tm_bytes token;   /* a trace token goes along: one term */
    tm_bytes options; /* SPAWN_REQUEST: one list */
    tm_pid leader;    /* SPAWN_REQUEST, GROUP_LEADER: of any node */
} tm_entry_rare;

typedef struct tm_entry {
    struct tm_entry *next;
    size_t size;         /* allocated, bytes */
    size_t weight;       /* what it counts in queues, bytes: size, and what is lent to it */
    uint8_t op;          /* enum tm_opcode; TM_ENTRY_TICK */
    uint8_t to_kind;     /* enum tm_item_kind */
    bool message;        /* counts as an accepted message when lost */
    bool ref_theirs;     /* ref was made by the peer */
    bool from_name;      /* MONITOR_P_EXIT: name is what was monitored */
    uint64_t number;     /* unlink id, spawn reply flags */
    tm_small_pid from;   /* ours */
    tm_small_pid to;     /* theirs */
    tm_small_pid result; /* SPAWN_REPLY: ours */
    tm_small_ref ref;
    tm_small_ref to_ref; /* alias of the peer */
    uint32_t arity;
    tm_bytes name;   /* target name; SPAWN_REQUEST: module; SPAWN_REPLY: error; inside the entry */
    tm_bytes name2;  /* SPAWN_REQUEST: function */
    tm_bytes reason; /* inside the entry */
    const tm_entry_rare *rare; /* inside the entry; NULL: nothing of it */
    size_t payload_len;
    size_t part_count;
    tumen_part *parts; /* the payload; copied ones point into the entry */
} tm_entry;

#define TM_ENTRY_TICK 0

/* Parts below this are copied into the contiguous write, bytes; from it on they are segments of their
 * own. A copy of 4 KiB costs less than one more segment in the system call. */
#define TM_SEGMENT_BYTES_MIN 4096
/* Parts of one message: each may need a segment for itself and one for what lies before it. */
#define TM_PARTS_MAX ((TM_SEND_BATCH_SEGMENTS - 2) / 2)

typedef struct tm_sendq {
    tm_entry *head;
    tm_entry **tail;
    uint64_t bytes;    /* of entries queued or being written */
    uint64_t count;    /* of entries queued or being written */
    uint64_t messages; /* of those, accepted messages */
} tm_sendq;

void tm_sendq_init(tm_sendq *queue);
void tm_sendq_push(tm_sendq *queue, tm_entry *entry);
/* In front of everything: ticks. */
void tm_sendq_push_front(tm_sendq *queue, tm_entry *entry);
tm_entry *tm_sendq_pop(tm_sendq *queue); /* counts stay: the entry is being written */
void tm_sendq_settle(tm_sendq *queue, const tm_entry *entry); /* it is written, or lost */

/* An entry with room for spans of the given total size, zeroed but for them. */
tm_entry *tm_entry_create(const tm_alloc *alloc, size_t extra, size_t parts);
void tm_entry_free(const tm_alloc *alloc, tm_entry *entry);
/* Copies bytes into the entry at *at, moves *at on, and returns the span. */
tm_bytes tm_entry_keep(uint8_t **at, tm_bytes bytes);
/* Where the spans of an entry start. */
uint8_t *tm_entry_space(tm_entry *entry);
/* The room that rare needs inside of an entry, bytes; and its copy there: the first of the spans. */
size_t tm_entry_rare_size(const tm_entry_rare *rare);
void tm_entry_keep_rare(tm_entry *entry, uint8_t **at, const tm_entry_rare *rare);

/* Appends the frame of an entry, without payload where that is in segments of its own: those are the
 * entry's parts, in order, and *segments is set. our / peer: the two nodes' names. Errors as
 * tm_frame_write. */
TM_MUST_CHECK int tm_entry_write(const tm_entry *entry, tm_bytes our, uint32_t our_creation,
                                 tm_bytes peer, uint64_t flags, tm_buf *out, bool *segments);

#endif
