/* tumen: the C core of a node of an Erlang/Elixir cluster. The whole public C API.
 *
 * An *engine* owns memory, time, one I/O backend and, if asked to, one thread. A *node* is an identity in
 * a cluster: name, cookie, listener, connections, processes. Many nodes per engine and several engines per
 * process are fine: there is no global state. Terms cross this interface as bytes in the external
 * term format without the version byte 131; what comes out has been validated.
 *
 * Threads. Every function of a node may be called from any thread unless it says otherwise; none
 * blocks on the network. tumen_node_take and what follows belong to one consumer thread per node at a time.
 *
 * Memory. tumen_bytes given to a function is borrowed for the call; tumen_bytes in an event or an
 * info struct belongs to the core and lives as long as the function that filled it says. Names are
 * UTF-8 without a terminating NUL.
 *
 * Errors. 0 or a count on success, else negative: a TM_E* code of tumen_error, or the kernel's -errno.
 *
 * Fork. In a child every engine is dead: functions answer TM_EFORKED and touch nothing. */
#ifndef TUMEN_H
#define TUMEN_H

#include <stddef.h>
#include <stdint.h>

#include "error.h" /* enum tumen_error: TM_E* */

#ifdef __cplusplus
extern "C" {
#endif

#define TUMEN_API __attribute__((visibility("default")))

typedef struct tumen_engine tumen_engine;
typedef struct tumen_node tumen_node;
typedef struct tumen_batch tumen_batch;

typedef struct tumen_bytes {
    const uint8_t *ptr;
    size_t len;
} tumen_bytes;

/* A process identifier; node is borrowed. */
typedef struct tumen_pid {
    tumen_bytes node;
    uint32_t id;
    uint32_t serial;
    uint32_t creation;
} tumen_pid;

/* A reference; count words are in use, 0 to 5. */
typedef struct tumen_ref {
    tumen_bytes node;
    uint32_t creation;
    uint32_t count;
    uint32_t words[5];
} tumen_ref;

/* A process of this node, alive or dead: never reused. 0 is none. */
typedef uint64_t tumen_key;

/* Text of any negative result, static or thread-local; never NULL. */
TUMEN_API const char *tumen_error_text(int code);
/* Version of this library, "0.1.0". */
TUMEN_API const char *tumen_version(void);

/* -- engine ------------------------------------------------------------------------------------ */

enum tumen_backend {
    TUMEN_BACKEND_AUTO = 0, /* io_uring if its behaviour probe passes, else epoll */
    TUMEN_BACKEND_URING = 1,
    TUMEN_BACKEND_EPOLL = 2,
};

enum tumen_driver {
    /* One thread of the engine's own does all I/O. Signals are blocked in it. */
    TUMEN_DRIVER_THREAD = 0,
    /* The host's loop calls tumen_engine_step when tumen_engine_poll_fd is readable (epoll only); a
     * thread of the engine's own takes over while the host stays away. */
    TUMEN_DRIVER_LOOP = 1,
    /* The host's loop alone: no thread is made. The host must step in time for ticks. */
    TUMEN_DRIVER_HOST = 2,
};

typedef struct tumen_engine_options {
    int backend;          /* enum tumen_backend; LOOP and HOST imply epoll */
    int driver;           /* enum tumen_driver */
    uint32_t sockets_max; /* sockets at once; 0: 20000 */
    int eager; /* THREAD: not 0: never waits for messages to come together, up to 500 us under load */
} tumen_engine_options;

/* Makes an engine. options may be NULL. */
TUMEN_API int tumen_engine_create(const tumen_engine_options *options, tumen_engine **engine);
/* Stops and frees its nodes, closes every connection, joins the thread, frees everything. */
TUMEN_API void tumen_engine_destroy(tumen_engine *engine);
/* LOOP and HOST: runs what is due and waits up to timeout_ns (0: not at all, negative: until something
 * happens). 0, or an error that ends the engine. TM_EUSE_STATE under THREAD. */
TUMEN_API int tumen_engine_step(tumen_engine *engine, int64_t timeout_ns);
/* LOOP and HOST: readable when a step has work; -1 under THREAD. */
TUMEN_API int tumen_engine_poll_fd(tumen_engine *engine);
/* LOOP and HOST: nanoseconds until the next timer, for the host's own wait; INT64_MAX without one. */
TUMEN_API int64_t tumen_engine_timeout_ns(tumen_engine *engine);
/* "uring" or "epoll", and why that one was chosen. Live as long as the engine. */
TUMEN_API const char *tumen_engine_backend(const tumen_engine *engine);
TUMEN_API const char *tumen_engine_backend_why(const tumen_engine *engine);
/* To be called in a forked child, before anything else of this API. */
TUMEN_API void tumen_engine_forked(tumen_engine *engine);

/* What the engine holds now; zero after everything was destroyed. */
typedef struct tumen_counters {
    uint64_t bytes;        /* memory held */
    uint64_t blocks;       /* allocations held */
    uint64_t sockets;      /* descriptors open */
    uint64_t turns;        /* turns of the engine */
    uint64_t system_calls; /* made by the I/O backend */
    uint64_t receives;     /* reads that brought bytes */
    uint64_t sends;        /* writes started by the engine */
    uint64_t direct_sends; /* writes made from a caller's thread at a flush */
    uint64_t wakeups_in;   /* times a caller woke the engine */
    uint64_t wakeups_out;  /* times the engine woke a consumer */
    uint64_t takeovers;    /* LOOP: turns made by the engine's thread */
    uint64_t waits;        /* THREAD: turns that let messages come together first */
} tumen_counters;

TUMEN_API void tumen_engine_counters(tumen_engine *engine, tumen_counters *counters);

/* Serves the port mapper (epmd) on address (NULL: 127.0.0.1) and port (0: 4369) until the engine ends.
 * -EADDRINUSE when something else does. */
TUMEN_API int tumen_engine_serve_epmd(tumen_engine *engine, const char *address, uint16_t port);

/* -- node --------------------------------------------------------------------------------------- */

enum tumen_epmd_mode {
    TUMEN_EPMD_USE = 0,    /* register with the port mapper; when none answers locally, become it */
    TUMEN_EPMD_CLIENT = 1, /* register, but never serve */
    TUMEN_EPMD_NONE = 2,   /* neither register nor look up: connections need addresses */
};

/* Numbers that can be changed while the node runs: tumen_node_set_limit. Bytes unless said. */
enum tumen_limit {
    TUMEN_LIMIT_MESSAGE_BYTES = 0,    /* largest message accepted and sent */
    TUMEN_LIMIT_SENDQ_HIGH_BYTES = 1, /* send queue of one connection: TM_EBUSY at or above it */
    TUMEN_LIMIT_SENDQ_NODE_BYTES = 2, /* send queues of the node together */
    TUMEN_LIMIT_MAILBOX_BYTES =
        3, /* one process: over it the process ends, {mailbox_full, Bytes} */
    /* The node: what waits for the consumer, over it the connection with most of it closes; and
     * what waits in mailboxes, over it the process with the largest one ends. */
    TUMEN_LIMIT_INBOX_BYTES = 4,
    TUMEN_LIMIT_DEPTH = 5,           /* nesting of a received term, levels */
    TUMEN_LIMIT_DECODED_BYTES = 6,   /* objects that one received term may become */
    TUMEN_LIMIT_TICK_TIME_MS = 7,    /* net_ticktime, milliseconds */
    TUMEN_LIMIT_HANDSHAKE_MS = 8,    /* one absolute deadline for a handshake, milliseconds */
    TUMEN_LIMIT_HALF_OPEN_COUNT = 9, /* unauthenticated inbound connections at once */
    TUMEN_LIMIT_REASSEMBLY_BYTES =
        10, /* one connection: unfinished messages in fragments; over it the connection closes */
    TUMEN_LIMIT_COUNT = 11,
};

typedef struct tumen_node_options {
    const char *name;   /* "name@host"; "host" alone asks the first peer for a dynamic name */
    const char *cookie; /* at most 255 bytes */
    /* Who may connect. NULL: everybody; else entries of tumen_node_allow, spaces between them. */
    const char *allowed;
    int visible; /* 0: hidden */
    int listen;  /* 0: no listener (cannot be connected to) */
    const char *
        listen_host; /* NULL: all addresses of the host part when that is an IP literal, else any */
    uint16_t listen_port;     /* 0: chosen by the kernel */
    int epmd_mode;            /* enum tumen_epmd_mode */
    const char *epmd_address; /* where our port mapper is; NULL: 127.0.0.1 */
    uint16_t epmd_port;       /* 0: 4369 */
    /* Capability flags to announce, of those that this version can keep: to meet a peer as an older
     * node would. 0: all. PUBLISHED follows from visible. */
    uint64_t flags;
} tumen_node_options;

/* Makes a node and starts to listen and register. TM_EUSE_NAME, TM_EUSE_ARG (also for flags that
 * this version cannot keep), or the -errno of listening. Registration goes on in the background:
 * TUMEN_EVENT_REGISTERED or _REGISTER_FAILED. */
TUMEN_API int tumen_node_create(tumen_engine *engine, const tumen_node_options *options,
                                tumen_node **node);
/* Ends it: peers see every connection close, after what is queued was written or 500 ms have passed.
 * TUMEN_EVENT_STOPPED follows; then tumen_node_destroy does not wait. */
TUMEN_API int tumen_node_stop(tumen_node *node);
/* Frees the node; stops it first (and waits, at most about a second) if that has not happened. */
TUMEN_API void tumen_node_destroy(tumen_node *node);

TUMEN_API int tumen_node_set_limit(tumen_node *node, int limit,
                                   uint64_t value); /* enum tumen_limit */
TUMEN_API uint64_t tumen_node_limit(tumen_node *node, int limit);
/* The cookie for one peer (peer.len > 0) or for all others; an empty cookie for a peer forgets it. */
TUMEN_API int tumen_node_set_cookie(tumen_node *node, tumen_bytes peer, tumen_bytes cookie);

/* From the first entry on only nodes on the list may connect or be connected to (connections that are up
 * stay): "name@host", "host" for all nodes of a host, or "name@" for one name on all hosts. */
TUMEN_API int tumen_node_allow(tumen_node *node, tumen_bytes entry);

/* Starts to connect; NODEUP or CONNECT_FAILED follows. Already up: 1. host and port: no port mapper
 * and no other look-up; host NULL: the host part of the name, the port from its port mapper. The
 * address is kept for reconnects. */
TUMEN_API int tumen_node_connect(tumen_node *node, tumen_bytes peer, const char *host,
                                 uint16_t port);
/* Closes the connection once what is queued was written, or 500 ms have passed; NODEDOWN follows.
 * TM_ENOCONN if there is none. */
TUMEN_API int tumen_node_disconnect(tumen_node *node, tumen_bytes peer);

typedef struct tumen_node_info {
    tumen_bytes name; /* lives as long as the node */
    uint32_t creation;
    uint16_t port; /* of the listener, 0 without */
    int visible;
    int registered;  /* with the port mapper */
    int serves_epmd; /* this engine is the port mapper */
    uint64_t connections;
    uint64_t processes;
    uint64_t inbox_bytes;        /* waiting for the consumer */
    uint64_t mail_bytes;         /* in mailboxes, not yet taken */
    uint64_t sendq_bytes;        /* in all send queues */
    uint64_t messages_in;        /* delivered to processes */
    uint64_t messages_out;       /* accepted for sending */
    uint64_t messages_dropped;   /* came for nobody: dead process, unknown name, dead alias */
    uint64_t operations_refused; /* spawn requests and other operations answered with a refusal */
    uint64_t operations_unknown; /* control operations that we do not know, ignored */
    uint64_t half_open;          /* inbound handshakes under way */
} tumen_node_info;

TUMEN_API int tumen_node_get_info(tumen_node *node, tumen_node_info *info);

enum tumen_connection_state { TUMEN_PENDING = 1, TUMEN_UP = 3 };

typedef struct tumen_connection {
    tumen_bytes name; /* lives until the next call of tumen_node_connections */
    int state;        /* enum tumen_connection_state */
    int visible;
    uint32_t creation;
    uint64_t flags; /* negotiated capability flags */
    uint64_t up_ns; /* nanoseconds since it came up */
    uint64_t bytes_in, bytes_out;
    uint64_t frames_in, frames_out; /* ticks not counted */
    uint64_t ticks_in, ticks_out;
    uint64_t queue_bytes, queue_count; /* accepted, not yet taken by the kernel */
    uint64_t inbox_bytes;              /* of this connection, waiting for the consumer */
    uint64_t reassembly_bytes;         /* held by unfinished messages in fragments */
    uint64_t atoms;                    /* in its atom cache */
    char address[64];                  /* of the other end, "127.0.0.1:4711" */
} tumen_connection;

/* Fills up to max entries; the number there are. */
TUMEN_API int tumen_node_connections(tumen_node *node, tumen_connection *connections, size_t max);

/* -- processes ----------------------------------------------------------------------------------- */

TUMEN_API int tumen_spawn(tumen_node *node, tumen_key *key);
/* The process has ended by itself, for reason (a term): monitors, links, names, aliases are settled and
 * signals queued before this returns. TM_ENOPROC when it is gone already. */
TUMEN_API int tumen_exit(tumen_node *node, tumen_key key, tumen_bytes reason);
TUMEN_API int tumen_alive(tumen_node *node, tumen_key key);
/* The pid; its node bytes live as long as the node. */
TUMEN_API int tumen_pid_of(tumen_node *node, tumen_key key, tumen_pid *pid);
TUMEN_API int tumen_trap_exit(tumen_node *node, tumen_key key, int trap);
TUMEN_API int tumen_register(tumen_node *node, tumen_bytes name, tumen_key key);
TUMEN_API int tumen_unregister(tumen_node *node, tumen_bytes name);
TUMEN_API tumen_key tumen_whereis(tumen_node *node, tumen_bytes name);
TUMEN_API int tumen_make_ref(tumen_node *node, tumen_ref *ref);
/* Messages of that many wire bytes left a mailbox: every MESSAGE event's wire_bytes is reported once,
 * when the process takes the message or when it is dropped, also for a process that is gone. */
TUMEN_API void tumen_mail_taken(tumen_node *node, tumen_key key, uint64_t bytes);

enum tumen_target_kind { TUMEN_TO_PID = 0, TUMEN_TO_NAME = 1, TUMEN_TO_REF = 2 };

/* Where a message or a monitor goes: a pid, a name on a node, or an alias. */
typedef struct tumen_target {
    int kind; /* enum tumen_target_kind */
    tumen_pid pid;
    tumen_bytes node; /* NAME */
    tumen_bytes name; /* NAME: text of the atom */
    tumen_ref ref;
} tumen_target;

enum tumen_send_flags {
    TUMEN_SEND_CONTROL =
        1, /* a reply or another signal that may use the reserve above the high water */
    TUMEN_SEND_NOCONNECT = 2, /* TM_ENOCONN instead of connecting */
};

/* Queues a message; on the wire after the next tumen_flush at the latest. message is copied. 0;
 * TM_EBUSY (nothing was queued); TM_EUSE_LIMIT (over the message limit); TM_ENOCONN; a dead local
 * target is 0, as in Erlang. from 0: sent by no process. */
TUMEN_API int tumen_send(tumen_node *node, tumen_key from, const tumen_target *to,
                         tumen_bytes message, unsigned flags);
/* Parts of one message, count: each may need two segments of the one write that it goes out with. */
enum tumen_part_limits { TUMEN_PARTS_MAX = 31 };

/* The same for a message whose large segments are lent: 1 to TUMEN_PARTS_MAX parts, or TM_EUSE_ARG,
 * are sent in order, concatenated; a part with lent != 0 is not copied and stays readable and
 * unchanged until TUMEN_EVENT_RETURNED with that number comes (also when the send fails later; not
 * when this call fails). */
typedef struct tumen_part {
    tumen_bytes bytes;
    uint64_t lent; /* 0: copied; else the caller's number for it */
} tumen_part;
TUMEN_API int tumen_send_parts(tumen_node *node, tumen_key from, const tumen_target *to,
                               const tumen_part *parts, size_t count, unsigned flags);
/* Where a message goes that the host hands over by itself: tumen_send_local. */
typedef struct tumen_local {
    tumen_key key; /* of the process, 0: nobody gets it */
    int reply;     /* to a reply alias, now used up, as TUMEN_EVENT_REPLY; it has no wire_bytes */
    int waits;     /* until TUMEN_EVENT_LOCAL; else it is to be delivered now */
} tumen_local;

/* A message to a process of this node, which the host hands over as an object of its own instead of
 * as bytes. Does all that tumen_send does besides: names, aliases, the bounds of mailboxes, for
 * which it weighs so many bytes. It waits while events do, behind those that its sender may have
 * caused: then TUMEN_EVENT_LOCAL with that number comes in its place. 0; TM_EUSE_LIMIT over the
 * message limit; TM_EUSE_ARG for a target elsewhere; TM_EUSE_STATE while a process carries a trace
 * token: that one goes along with bytes only. */
TUMEN_API int tumen_send_local(tumen_node *node, tumen_key from, const tumen_target *to,
                               uint64_t bytes, int64_t number, tumen_local *local);
/* Everything queued by this node since the last flush gets going: written directly from this thread
 * where nothing is in flight, else by the engine. To be called at the end of a loop turn or a drain. */
TUMEN_API void tumen_flush(tumen_node *node);
/* Queued bytes towards a peer; asks for TUMEN_EVENT_WRITABLE when that is at or above the high water
 * (then it returns TM_EBUSY). TM_ENOCONN without a connection. */
TUMEN_API int tumen_want_writable(tumen_node *node, tumen_bytes peer);

enum tumen_monitor_flags {
    /* The ref is a reply alias, used up by one reply: TUMEN_EVENT_REPLY. What a call is made of. */
    TUMEN_MONITOR_ALIAS = 1,
    /* The aliases of erlang:monitor/3, at most one; what comes by them is a MESSAGE. The first is
     * active until tumen_unalias, the second until tumen_demonitor or DOWN, the third also until
     * the first message, which ends the monitor as well. */
    TUMEN_MONITOR_EXPLICIT_UNALIAS = 2,
    TUMEN_MONITOR_DEMONITOR = 4,
    TUMEN_MONITOR_REPLY_DEMONITOR = 8,
};
TUMEN_API int tumen_monitor(tumen_node *node, tumen_key watcher, const tumen_target *target,
                            unsigned flags, tumen_ref *ref);
/* 1 when it was there, else 0: afterwards neither DOWN nor reply is delivered for ref. */
TUMEN_API int tumen_demonitor(tumen_node *node, tumen_key watcher, const tumen_ref *ref);
/* 1 while a monitor with this reference, held by a process of any node, stands on the process key, else
 * 0. A gen_server caller that gives up ends its monitor: its call need not start any more. */
TUMEN_API int tumen_watched(tumen_node *node, tumen_key key, const tumen_ref *ref);
TUMEN_API int tumen_link(tumen_node *node, tumen_key key, const tumen_pid *to);
TUMEN_API int tumen_unlink(tumen_node *node, tumen_key key, const tumen_pid *to);
/* exit(To, Reason), reason a term, to a pid or an alias. Only OTP 28 and later and we ourselves
 * take exit signals to an alias: for other peers they are dropped, as OTP does. */
TUMEN_API int tumen_exit_signal(tumen_node *node, tumen_key from, const tumen_target *to,
                                tumen_bytes reason);
/* A monitor of a node, as erlang:monitor_node/2: connects if need be, and TUMEN_EVENT_NODE_LOST
 * comes once for each call when that fails or the connection goes. on 0 takes one call back: 1 when
 * there was one. */
TUMEN_API int tumen_monitor_node(tumen_node *node, tumen_key key, tumen_bytes peer, int on);
enum tumen_alias_flags {
    TUMEN_ALIAS_REPLY = 1 /* until the first message, else until tumen_unalias */
};
TUMEN_API int tumen_alias(tumen_node *node, tumen_key key, unsigned flags, tumen_ref *ref);
TUMEN_API int tumen_unalias(tumen_node *node, tumen_key key, const tumen_ref *ref);

enum tumen_space {
    TUMEN_NODE_NAME_BYTES = 256,   /* space for the name of any node */
    TUMEN_TRACE_TOKEN_BYTES = 1024 /* space for any trace token */
};

/* 1 and the group leader of a process, whose node's name is put into space, TUMEN_NODE_NAME_BYTES
 * large; 0 when none was set, by GROUP_LEADER, by a spawn request or here: then it is what the host
 * says. */
TUMEN_API int tumen_group_leader(tumen_node *node, tumen_key key, tumen_pid *leader, char *space);
/* group_leader(Leader, Process): by is the process that asks, process may be of any node. */
TUMEN_API int tumen_set_group_leader(tumen_node *node, tumen_key by, const tumen_pid *process,
                                     const tumen_pid *leader);

/* Sequential traces. The process has taken a message whose event had this token in text; empty: one
 * without. Its sends, exits and spawn requests carry it on. TM_EUSE_TERM for what is no token. */
TUMEN_API int tumen_trace(tumen_node *node, tumen_key key, tumen_bytes token);
/* The token that it has now, a term of at most TUMEN_TRACE_TOKEN_BYTES; its length, or 0. */
TUMEN_API int tumen_trace_token(tumen_node *node, tumen_key key, uint8_t *space, size_t size);

/* Lets spawn requests of peers run module:function (on 0: no longer): TUMEN_EVENT_SPAWN. One for
 * erlang:apply that names it, as spawn(Node, fun M:F/A) does, comes as that: its arguments are
 * [fun M:F/A, Args] or [M, F, Args]. Requests for erpc's execute_call and execute_cast always come;
 * all else is refused with `notsup`. */
TUMEN_API int tumen_expose(tumen_node *node, tumen_bytes module, tumen_bytes function, int on);

enum tumen_spawn_flags { TUMEN_SPAWN_LINK = 1, TUMEN_SPAWN_MONITOR = 2 };

typedef struct tumen_spawn_spec {
    tumen_bytes peer; /* the node that is asked */
    tumen_bytes module;
    tumen_bytes function;
    uint32_t arity;
    unsigned flags;      /* enum tumen_spawn_flags */
    tumen_bytes args;    /* one term, a list */
    tumen_bytes options; /* one term, a list of further options of spawn_opt/5; or empty */
    tumen_pid leader;    /* the group leader; leader.node.len == 0: the process that asks */
} tumen_spawn_spec;

/* Asks a node to spawn a function: SPAWN_REPLY follows, and DOWN with ref if it is monitored. What
 * rpc is made of. */
TUMEN_API int tumen_spawn_request(tumen_node *node, tumen_key from, const tumen_spawn_spec *spec,
                                  tumen_ref *ref);
/* Nothing of it is delivered any more. */
TUMEN_API int tumen_spawn_abandon(tumen_node *node, tumen_key from, const tumen_ref *ref);

/* -- events --------------------------------------------------------------------------------------- */

enum tumen_event_kind {
    /* for a process */
    TUMEN_EVENT_MESSAGE = 1, /* process, from (if known), term; ref when it came by an alias */
    TUMEN_EVENT_REPLY = 2,   /* process, ref, term: message to a reply alias, now used up */
    TUMEN_EVENT_DOWN = 3,    /* process, ref, from (pid) or name+node, term (reason) */
    TUMEN_EVENT_EXIT = 4,    /* process traps exits: from, term (reason) */
    TUMEN_EVENT_EXITED = 5,  /* process was ended by a signal or a limit: term (reason) */
    TUMEN_EVENT_SPAWN = 6, /* process (made for it), from (requester), ref, node (the module), name
                                (the function), term (arguments, usually a list) */
    TUMEN_EVENT_ABANDONED = 7, /* process of a SPAWN: its caller has gone */
    TUMEN_EVENT_SPAWN_REPLY =
        8, /* process, ref; code 0: from is the new pid; else term (error atom) */
    TUMEN_EVENT_NODE_LOST = 9, /* process, node: a monitor of the node fires */
    TUMEN_EVENT_LOCAL = 10, /* process, from, number: the message of tumen_send_local; if it is no
                                    reply, wire_bytes */
    /* for the node */
    TUMEN_EVENT_NODEUP = 20,   /* node, number: 1 visible, 0 hidden */
    TUMEN_EVENT_NODEDOWN = 21, /* node, code, text, number: accepted messages that were lost */
    TUMEN_EVENT_CONNECT_FAILED = 22, /* node, code, text, number: as above */
    TUMEN_EVENT_WRITABLE = 23,       /* node: its queue is below the low water again */
    TUMEN_EVENT_REFUSED = 24, /* node, process (may be 0), code, text, number (bytes): a message
                                         or operation of a peer was not delivered, or without its
                                         trace token */
    TUMEN_EVENT_HANDSHAKE_FAILED = 25, /* inbound: node (name claimed, may be empty), code, text */
    TUMEN_EVENT_REGISTERED = 26, /* with the port mapper; number: 1 when we serve it ourselves */
    TUMEN_EVENT_REGISTER_FAILED = 27, /* code, text; tried again */
    TUMEN_EVENT_RETURNED = 28,        /* number: lent memory is the caller's again */
    TUMEN_EVENT_NAMED =
        29, /* node: our dynamic name; the host alone: it was lost with the connection
                               to the peer that gave it. Every process has ended (noconnection),
                               the next peer is asked for a name */
    TUMEN_EVENT_STOPPED = 30,
    TUMEN_EVENT_BROKEN = 31, /* the engine has failed: code, text; every node of it is dead */
};

typedef struct tumen_event {
    int kind; /* enum tumen_event_kind */
    int code; /* 0 or negative */
    tumen_key process;
    int64_t number;
    uint64_t wire_bytes; /* MESSAGE: what the process must report as taken */
    uint64_t connection; /* epoch of the connection it came on, 0 for local: tumen_node_blame */
    tumen_pid from;      /* from.node.len == 0: none */
    tumen_ref ref;       /* ref.node.len == 0: none */
    tumen_bytes node;
    tumen_bytes name;
    tumen_bytes
        text; /* for people; MESSAGE, REPLY and EXIT: the trace token that came along, or empty */
    tumen_bytes term; /* one walked term */
} tumen_event;

/* Readable when events wait and tumen_node_arm was called. */
TUMEN_API int tumen_node_event_fd(const tumen_node *node);
/* Says that the consumer is going to sleep: the next event signals the descriptor. 1 when there are
 * events already (then nothing was armed), else 0. */
TUMEN_API int tumen_node_arm(tumen_node *node);
/* Takes all waiting events; NULL when there are none. Never blocks. Nothing signals the descriptor from
 * here on until the next tumen_node_arm. */
TUMEN_API tumen_batch *tumen_node_take(tumen_node *node);
/* The next event, NULL at the end. The one before is invalid then. */
TUMEN_API const tumen_event *tumen_batch_next(tumen_batch *batch);
/* Moves the event that tumen_batch_next gave last into a batch of its own, as the first and only one
 * of it, which counts as waiting until that batch is freed. To be called once for an event, before
 * the next one. The new batch may go to another thread; it must be freed before the node is. NULL
 * without memory: the event is where it was then. */
TUMEN_API tumen_batch *tumen_batch_keep(tumen_batch *batch);
/* Takes the memory that the term of the event given last lies in away from the node: it counts as
 * waiting no more, and goes back by tumen_memory_free, from any thread and also when the node and
 * its engine are gone. The term is readable until then. NULL: the term has no memory of its own, as
 * one that is small or came in one piece with others has not. */
TUMEN_API void *tumen_batch_detach(tumen_batch *batch);
TUMEN_API void tumen_memory_free(void *memory); /* NULL is fine */
/* Frees the batch; what was not read counts as delivered. */
TUMEN_API void tumen_batch_free(tumen_batch *batch);
/* The term of an event of that connection turned out to be malformed in a way that only its decoding
 * shows (two equal keys of a map): closes the connection if it is still that one. */
TUMEN_API int tumen_node_blame(tumen_node *node, uint64_t connection, const char *text);

#ifdef __cplusplus
}
#endif

#endif
