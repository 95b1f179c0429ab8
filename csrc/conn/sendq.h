/* The send queue of one peer: what was accepted for sending and not yet taken by the kernel.
 *
 * An entry holds a control operation by its meaning and the payload as bytes: which form both take on
 * the wire is decided when the entry is written, from the flags of the connection it then goes out
 * on. So a message can be queued before there is a connection. Identifiers are kept without node names:
 * "ours" and "theirs" are known. Under the node's lock, all operations O(1).
 *
 * Order. What one process sends (messages, EXIT, DOWN, replies) leaves in that order, and so does what
 * no process sends. A payload above TM_WHOLE_BYTES_MAX makes its entry a *flow* (flow.h): the entry goes
 * out bit by bit, what the same sender queues meanwhile waits behind it, and everybody else overtakes
 * between two fragments. While there is no flow the queue is one list and knows no senders. */
#ifndef TM_CONN_SENDQ_H
#define TM_CONN_SENDQ_H

#include "../base/list.h"
#include "../base/map.h"
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
    tumen_part *parts;    /* the payload; copied ones point into the entry */
    struct tm_flow *flow; /* of a large payload, from the push on */
} tm_entry;

#define TM_ENTRY_TICK 0

/* Parts below this are copied into the contiguous write, bytes; from it on they are segments of their
 * own. A copy of 4 KiB costs less than one more segment in the system call. */
#define TM_SEGMENT_BYTES_MIN 4096
/* Parts of one message: each may need a segment for itself and one for what lies before it. */
#define TM_PARTS_MAX ((TM_SEND_BATCH_SEGMENTS - 2) / 2)

/* The flows of a queue; memory only while there are any. */
typedef struct tm_flows {
    tm_map by_sender;
    tm_list active;  /* sequences that are open and have fragments left, in turn */
    tm_list waiting; /* for one of TM_SEQUENCES_OUT_MAX to end */
    size_t open;
} tm_flows;

typedef struct tm_sendq {
    tm_entry *head;
    tm_entry **tail;
    tm_flows *flows; /* NULL: none */
    const tm_alloc *alloc;
    const uint64_t *seed;
    uint64_t bytes;       /* of entries queued or being written */
    uint64_t large_bytes; /* of those, entries that are flows: others pass them */
    uint64_t count;       /* of entries queued or being written */
    uint64_t messages;    /* of those, accepted messages */
    uint64_t sequence;    /* the last one that was begun: an id is never used again */
} tm_sendq;

/* seed: of the hash table of senders. Both are borrowed. */
void tm_sendq_init(tm_sendq *queue, const tm_alloc *alloc, const uint64_t seed[2]);
void tm_sendq_push(tm_sendq *queue, tm_entry *entry);
/* In front of everything: ticks. */
void tm_sendq_push_front(tm_sendq *queue, tm_entry *entry);
/* The next entry; counts stay: it is being written. An entry with a flow is either begun
 * (tm_sendq_begin), or written whole. */
tm_entry *tm_sendq_pop(tm_sendq *queue);
/* Any entry, whatever has become of it: to be settled. For a queue that is given up. */
tm_entry *tm_sendq_pop_any(tm_sendq *queue);
/* It is written, or lost. Ends its flow: what waited behind it is next. Frees nothing else. */
void tm_sendq_settle(tm_sendq *queue, tm_entry *entry);

/* Whether something can be written now. */
static inline bool tm_sendq_ready(const tm_sendq *queue)
{
    return queue->head || (queue->flows && !tm_list_empty(&queue->flows->active));
}

/* What a message finds before it, bytes: a large one everything, a small one what is small. */
static inline uint64_t tm_sendq_ahead(const tm_sendq *queue, bool large)
{
    return large ? queue->bytes : queue->bytes - queue->large_bytes;
}

/* Where entries come from and go to: memory that one thread takes and another gives back, so small
 * ones are kept. Its user sees to it that one thread at a time is here. */
typedef struct tm_entry_pool {
    const tm_alloc *alloc;
    tm_entry *spare; /* all of TM_ENTRY_SMALL_BYTES */
    size_t spare_count;
} tm_entry_pool;

void tm_entry_pool_fini(tm_entry_pool *pool);
/* An entry with room for spans of the given total size, zeroed but for them. With more than
 * TM_ENTRY_SMALL_BYTES of spans it touches nothing of the pool. */
tm_entry *tm_entry_create(tm_entry_pool *pool, size_t extra, size_t parts);
void tm_entry_free(tm_entry_pool *pool, tm_entry *entry);
/* Copies bytes into the entry at *at, moves *at on, and returns the span. */
tm_bytes tm_entry_keep(uint8_t **at, tm_bytes bytes);
/* Where the spans of an entry start. */
uint8_t *tm_entry_space(tm_entry *entry);
/* Bytes of term that may travel behind the control message: a message, arguments, an exit reason. */
static inline size_t tm_entry_payload(const tm_entry *entry)
{
    return entry->payload_len ? entry->payload_len : entry->reason.len;
}
/* The room that rare needs inside of an entry, bytes; and its copy there: the first of the spans. */
size_t tm_entry_rare_size(const tm_entry_rare *rare);
void tm_entry_keep_rare(tm_entry *entry, uint8_t **at, const tm_entry_rare *rare);

/* Appends the frame of an entry, without payload where that is in segments of its own: those are the
 * entry's parts, in order, and *segments is set. our / peer: the two nodes' names. Errors as
 * tm_frame_write. */
TM_MUST_CHECK int tm_entry_write(const tm_entry *entry, tm_bytes our, uint32_t our_creation,
                                 tm_bytes peer, uint64_t flags, tm_buf *out, bool *segments);
/* Appends the head of the first fragment of an entry, in a sequence with that id. */
TM_MUST_CHECK int tm_entry_write_first(const tm_entry *entry, tm_bytes our, uint32_t our_creation,
                                       tm_bytes peer, uint64_t flags, uint64_t id, tm_buf *out);

#endif
