/* A node: its name and cookies, its processes, its peers with their queues, its listener.
 *
 * Everything here that callers touch is under node->lock, which is held for moments only: no system
 * call and no walk over a payload happens under it. Names of peers are known by a tm_peer from the first
 * message to them until nothing is left to say. */
#ifndef TM_CONN_NODE_H
#define TM_CONN_NODE_H

#include "../proc/proc.h"
#include "engine.h"
#include "inbox.h"
#include "sendq.h"

struct tm_connection;
struct tm_attempt;
struct tm_greeting;
struct tm_handshake;
struct tm_registrar;

enum tm_peer_state { TM_PEER_DOWN, TM_PEER_PENDING, TM_PEER_UP };

typedef struct tm_peer {
    tumen_node *node;
    tm_bytes name; /* behind the struct */
    /* under node->lock */
    enum tm_peer_state state;
    tm_sendq queue;
    bool want_writable; /* a caller was told Busy */
    bool want_small; /* ... with a small message: it need not wait for large ones to be written */
    bool sending;    /* a write is in flight or being made: by the engine or a caller's flush */
    bool direct;     /* a caller's flush is writing for it outside the lock */
    tm_list dirty_link;         /* in node->dirty or node->later */
    bool later;                 /* in the latter */
    struct tm_connection *conn; /* up */
    bool conn_failed; /* a signal was lost for want of memory: the connection must close */
    char *host;       /* where it listens, if told; NULL: ask the port mapper */
    uint16_t port;
    /* engine only */
    struct tm_attempt *attempt;
    uint64_t wait_until_ns; /* its own attempt towards us may still win, until then */
    int wait_code;          /* why ours failed meanwhile; 0: it was told `nok` */
    tm_timer wait_timer;
    tm_command connect;
} tm_peer;

/* A name for a peer that asked for one (NAME_ME). */
typedef struct tm_given {
    tm_list link; /* in node->given while no peer has it */
    uint32_t creation;
    tm_bytes name; /* behind the struct */
} tm_given;

struct tumen_node {
    tumen_engine *engine;
    tm_list link; /* in engine->nodes */
    pthread_mutex_t lock;
    bool forked;
    char name[TM_NODE_NAME_BYTES_MAX + 1];
    size_t name_len;
    uint32_t creation;
    uint64_t flags; /* what it announces, PUBLISHED included */
    bool visible;
    bool dynamic; /* the name is given by the first peer */
    bool named;
    uint64_t limits[TUMEN_LIMIT_COUNT]; /* atomic */

    /* under lock */
    tm_procs *procs;
    tm_proc_key kernel; /* the process registered as net_kernel: answered by the core */
    tm_map peers;       /* name -> tm_peer */
    tm_map cookies;     /* name -> tm_cookie */
    tm_map exposed;     /* module, NUL, function -> tm_exposed: what spawn requests may run */
    tm_bytes cookie;    /* for all others */
    tm_map allowed;     /* text -> itself; empty: everybody is allowed */
    tm_list given;      /* names that were given to peers which have gone, oldest first */
    size_t given_count;
    tm_list dirty; /* peers with something queued since the last flush */
    tm_list later; /* peers with nothing new but what can wait a moment: peer->later */
    bool can_wait; /* what is queued now can */
    tm_entry_pool entries;
    bool
        in_engine; /* the holder of the lock is the engine: events are signalled at the turn's end */
    uint64_t sendq_bytes, mail_bytes;
    uint64_t messages_in, messages_out, messages_dropped, operations_refused, operations_unknown;
    tumen_connection *listed; /* what tumen_node_connections filled last: its names */
    char *listed_names;
    size_t listed_names_size;

    tm_inbox inbox;

    /* engine only */
    tm_sock listener;
    uint16_t port;
    tm_list greetings;
    size_t greeting_count;
    tm_map challenges; /* ours, of handshakes under way -> tm_handshake */
    uint64_t
        forgiven_bytes;  /* waiting, for which a connection was closed already: at most so many */
    tm_list connections; /* up or closing */
    size_t object_count; /* greetings, attempts, connections, registrar, listener: not yet closed */
    struct tm_registrar *registrar;
    int epmd_mode;
    char epmd_host[64];
    uint16_t epmd_port;
    bool registered;
    bool stopping;
    bool stopped; /* under engine->command_lock */
    tm_timer stop_timer;
    tm_timer later_timer; /* when those in later are written at the latest */
    tm_command stop_command;
    tm_peer *namer; /* dynamic: who named us */
};

static inline tm_bytes tm_node_name(const tumen_node *node)
{
    return tm_bytes_of(node->name, node->name_len);
}

static inline uint64_t tm_node_limit(const tumen_node *node, enum tumen_limit limit)
{
    return __atomic_load_n(&node->limits[limit], __ATOMIC_RELAXED);
}

/* The lock, for the engine and for a caller. */
void tm_node_lock_engine(tumen_node *node);
void tm_node_lock(tumen_node *node);
void tm_node_unlock(tumen_node *node);

/* -- peers (under the lock) ------------------------------------------------------------------------- */

tm_peer *tm_node_find_peer(tumen_node *node, tm_bytes name);
/* Found or made; NULL without memory. */
tm_peer *tm_node_make_peer(tumen_node *node, tm_bytes name);
/* Frees it if nothing is left of it. */
void tm_peer_retire(tm_peer *peer);
/* Puts an entry into the queue (takes it) and starts to connect if that is needed. */
void tm_peer_queue(tm_peer *peer, tm_entry *entry);
/* No room for one more message? large: one that goes out in fragments. */
bool tm_peer_busy(const tm_peer *peer, bool control, bool large);
/* The same for a caller who is then told when there is room: tm_peer_relieve. */
bool tm_peer_refuses(tm_peer *peer, bool control, bool large);
/* Drops everything queued; the number of accepted messages among it. */
uint64_t tm_peer_drop_queue(tm_peer *peer);
/* An entry is written or lost: counts, lent memory, the writable event. Frees it. */
void tm_peer_settle(tm_peer *peer, tm_entry *entry);
/* Tells a caller that was refused once the queue is below the low water. */
void tm_peer_relieve(tm_peer *peer);
void tm_peer_mark_dirty(tm_peer *peer);
/* What peers have in their queues that could wait is written with the next flush. */
void tm_node_hasten(tumen_node *node);
/* The cookie for a peer; borrowed until the lock is released. */
tm_bytes tm_node_cookie_for(tumen_node *node, tm_bytes peer);

/* -- admission.c (under the lock) -------------------------------------------------------------------- */

/* May that node connect, or be connected to? name: of a node, or the host of one that has no name. */
bool tm_node_allows(const tumen_node *node, tm_bytes name);
/* Adds the entries of a list with spaces between them. */
TM_MUST_CHECK int tm_node_allow_list(tumen_node *node, const char *list);
/* A name nobody has, on that host; NULL without memory, or when it would be too long. */
tm_given *tm_node_give_name(tumen_node *node, tm_bytes host);
/* The peer with that name has gone: takes it back, for the next one. */
void tm_node_return_name(tumen_node *node, tm_given *given);
void tm_node_admission_init(tumen_node *node);
void tm_node_admission_fini(tumen_node *node);

/* -- entries from signals of csrc/proc (under the lock): the sink ---------------------------------------- */

void tm_node_on_signal(void *ctx, const tm_proc_signal *signal);
void tm_node_on_event(void *ctx, const tm_proc_event *event);

/* Entries for messages and spawn replies. from may be {0}. That of a message with more than
 * TM_ENTRY_SMALL_BYTES of copied parts and without a token may be made without the lock. */
tm_entry *tm_entry_message(tumen_node *node, const tm_pid *from, const tm_target *to,
                           const tumen_part *parts, size_t count, tm_bytes token);
tm_entry *tm_entry_spawn_reply(tumen_node *node, const tm_ref *request, const tm_pid *to,
                               unsigned flags, const tm_pid *pid, tm_bytes error, tm_bytes token);
tm_entry *tm_entry_spawn_request(tumen_node *node, const tm_pid *from, const tm_ref *ref,
                                 const tumen_spawn_spec *spec, const tm_entry_rare *rare);

/* -- events ------------------------------------------------------------------------------------------------ */

/* Puts an event; a lack of memory is remembered and told as BROKEN at the end of the turn. */
void tm_node_event(tumen_node *node, const tumen_event *event, tm_source *source);
static inline tumen_bytes tm_public(tm_bytes bytes) { return (tumen_bytes){bytes.ptr, bytes.len}; }
static inline tm_bytes tm_private(tumen_bytes bytes) { return (tm_bytes){bytes.ptr, bytes.len}; }
tumen_pid tm_public_pid(const tm_pid *pid);
tumen_ref tm_public_ref(const tm_ref *ref);
tm_pid tm_private_pid(const tumen_pid *pid);
tm_ref tm_private_ref(const tumen_ref *ref);
tm_target tm_private_target(const tumen_target *target);

/* -- connections and attempts (engine) ------------------------------------------------------------------------ */

/* connection.c: a verified socket becomes the connection of its peer; input: bytes behind the handshake. */
struct tm_established {
    tm_talk *talk; /* taken over with what it still has in flight */
    tm_bytes name;
    uint64_t flags;
    uint32_t creation;
    tm_io_address address;
    tm_bytes input;
    tm_given *given; /* the name is of ours; taken over */
};
int tm_connection_open(tumen_node *node, const struct tm_established *established);
void tm_connection_close(struct tm_connection *conn, int code, const char *text);
/* The same once everything queued is written, or TM_DRAIN_MS have passed. text: static. */
void tm_connection_finish(struct tm_connection *conn, const char *text);
/* Closes after the last queued byte; and now. link: the connection's place in node->connections. */
void tm_connection_drain_link(tm_list *link);
void tm_connection_abort_link(tm_list *link, const char *text);
/* The tick time has changed: the next check comes by the new one. Engine. */
void tm_connection_retime_link(tm_list *link);
/* Writes what is queued if nothing is in flight. Engine. */
void tm_connection_write(struct tm_connection *conn);
/* The same from a caller's thread, without waiting; false: the engine has to do it. */
bool tm_connection_write_direct(tm_peer *peer);
void tm_connection_fill(const tm_peer *peer, tumen_connection *info);
uint64_t tm_connection_waiting(const struct tm_connection *conn);
uint64_t tm_connection_epoch(const struct tm_connection *conn);
/* receive.c: puts a message (event: all but process) into the inbox, within the mailbox bound; term
 * as for tm_inbox_put_term. Engine. */
int tm_node_deliver(tumen_node *node, tm_proc_key key, tumen_event *event,
                    const tm_inbox_term *term, tm_source *source);
/* Ends a process whose mailbox has grown over its bound. Under the lock. */
void tm_node_mailbox_full(tumen_node *node, tm_proc_key key, uint64_t bytes);
/* Ends the process with the largest mailbox while all of them together are over the node's bound.
 * Under the lock. */
void tm_node_mail_relieve(tumen_node *node);
/* Whether a spawn request may run it. Under the lock. */
bool tm_node_exposes(const tumen_node *node, tm_bytes module, tm_bytes function);

/* attempt.c */
void tm_attempt_start(tm_peer *peer);
void tm_attempt_cancel(struct tm_attempt *attempt);
/* Whether the peer may have heard of it: its name is on the wire. */
bool tm_attempt_is_known(const struct tm_attempt *attempt);
/* Whether the peer has answered that name: nothing of it is left for later. Known ones only. */
bool tm_attempt_is_answered(const struct tm_attempt *attempt);
void tm_node_resolved(tumen_engine *engine);
/* Nobody will connect to the peer: what is queued is lost, monitors fire. */
void tm_peer_failed(tm_peer *peer, int code, const char *text);
/* The same when the peer's own attempt was waited for in vain. */
void tm_peer_give_up(tm_peer *peer);

/* greeting.c */
extern const tm_sock_ops tm_listener_ops;
void tm_greeting_drop(struct tm_greeting *greeting);
void tm_greetings_drop_all(tumen_node *node);
/* Whether a peer is under way to us under that name. */
bool tm_greetings_expect(tumen_node *node, tm_bytes name);
/* Our own attempt to that peer is over, or answered: what was put off for it goes on, and may cancel the
 * attempt. */
void tm_greetings_resume(tumen_node *node, tm_bytes name);
/* Our own attempt to that peer has become the connection: the peer's are over. */
void tm_greetings_yield(tumen_node *node, tm_bytes name);
/* A challenge that no other handshake under way on this node has. */
uint32_t tm_node_challenge_draw(const tumen_node *node);
/* From here on it is known as that of hs, until it is forgotten. */
TM_MUST_CHECK int tm_node_challenge_add(tumen_node *node, struct tm_handshake *hs);
/* The handshake is over. Idempotent. */
void tm_node_challenge_forget(tumen_node *node, const struct tm_handshake *hs);
/* Whether a challenge that the peer of hs has sent is one of ours from elsewhere: a reflection. */
bool tm_node_challenge_known(const tumen_node *node, const struct tm_handshake *hs);

/* registrar.c */
int tm_registrar_start(tumen_node *node);
void tm_registrar_stop(tumen_node *node);

/* node.c: the dynamic name that a peer gave us. Under the lock. */
TM_MUST_CHECK int tm_node_take_name(tumen_node *node, tm_bytes name, uint32_t creation);
/* The peer that gave it has gone. Engine, without the lock. */
void tm_node_lose_name(tumen_node *node);

/* -- life (engine) -------------------------------------------------------------------------------------------- */

bool tm_node_is_dirty(tumen_node *node);
/* One object of the node is closed; when it was the last of a stopping node, that is told. */
void tm_node_object_closed(tumen_node *node);
void tm_node_begin_stop(tumen_node *node);
void tm_nodes_shut(tumen_engine *engine);
void tm_nodes_free(tumen_engine *engine);

#endif
