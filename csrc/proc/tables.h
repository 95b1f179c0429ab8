/* The tables behind proc.h: what a record is, and who may make and free it.
 *
 * Every record hangs in the lists of all its owners (the process, the peer node), so that the end
 * of an owner costs as much as it has records, and in one map by which a signal finds it.
 *
 *   process.c   slots, names, mail, and the end of a process      tm_process, tm_name
 *   link.c      links and exit signals                            tm_link
 *   monitor.c   monitors and aliases of ours, monitors of peers   tm_handle, tm_watch
 *   request.c   spawn requests, ours and theirs                   tm_handle
 *   inherit.c   group leaders and trace tokens                    tm_leader, tm_trace
 *   remote.c    peer nodes, up and down                           tm_remote
 *   invariants.c
 *
 * A signal never runs the end of a process directly: it marks the process as ending and puts it on
 * procs->ending, and tm_procs_settle works that list off. So a chain of a hundred thousand linked
 * processes ends in constant stack. */
#ifndef TM_PROC_TABLES_H
#define TM_PROC_TABLES_H

#include "../base/check.h"
#include "../base/list.h"
#include "../base/map.h"
#include "proc.h"

/* Atoms as external terms: SMALL_ATOM_UTF8_EXT is 119, 'w'. */
#define TM_TERM_ABANDONED TM_BYTES("w\011abandoned")
#define TM_TERM_KILLED TM_BYTES("w\006killed")
#define TM_TERM_NOCONNECTION TM_BYTES("w\014noconnection")
#define TM_TERM_NOPROC TM_BYTES("w\006noproc")

/* Words of the references that we make. */
#define TM_OWN_REF_WORDS 3

/* -- records ----------------------------------------------------------------------------------- */

/* A group leader that was set. */
typedef struct tm_leader {
    uint32_t id, serial, creation;
    size_t node_len;
    uint8_t node[];
} tm_leader;

/* From the first trace token on. */
typedef struct tm_trace {
    uint64_t clock;    /* largest serial sent or received */
    uint64_t previous; /* serial of the token that was received last */
    tm_buf token;      /* empty: none now */
} tm_trace;

typedef struct tm_process {
    tm_proc_key key;
    uint64_t mail_bytes;
    uint64_t unlink_id; /* the last one used; the first is 1 */
    bool trap_exit;
    bool ending;     /* no signal reaches it any more; the rest is set exactly then: */
    bool tell;       /* the consumer does not know yet: PROC_EXITED */
    tm_bytes reason; /* borrowed from the call in progress */
    tm_list of_ending;
    tm_list names;
    tm_list handles;   /* tm_handle.of_owner */
    tm_list watched;   /* tm_handle.of_target: monitors of processes of this node on it */
    tm_list watches;   /* tm_watch.of_target: monitors of peers on it */
    tm_list links;     /* tm_link_end.of_process */
    tm_leader *leader; /* NULL: the node's default */
    tm_trace *trace;   /* NULL: never traced */
} tm_process;

typedef struct tm_slot {
    tm_process *process; /* NULL: free */
    uint32_t serial;     /* of the process that is in it, or of the next one */
    uint32_t next_free;
} tm_slot;

typedef struct tm_name {
    tm_process *process;
    tm_list of_process;
    size_t len;
    uint8_t text[];
} tm_name;

/* Another node. Lives from the first record that needs it until tm_procs_node_down. */
typedef struct tm_remote {
    tm_list links;     /* tm_link.of_peer */
    tm_list monitors;  /* tm_handle.of_target: monitors of ours on its processes */
    tm_list requests;  /* tm_handle.of_target: spawn requests of ours, abandoned ones too */
    tm_list watches;   /* tm_watch.of_peer: its monitors on us */
    tm_list watchers;  /* tm_handle.of_target: monitors of ours on the node itself */
    size_t link_count; /* made by its LINK or SPAWN_REQUEST */
    size_t watch_count;
    uint32_t creation; /* 0: not known */
    bool down;         /* tm_procs_node_down runs: nothing can be sent */
    size_t name_len;
    uint8_t name[];
} tm_remote;

/* Bytes that several records keep, as a dead requester's reason. */
typedef struct tm_reason {
    size_t ref_count;
    size_t len;
    uint8_t bytes[];
} tm_reason;

enum tm_handle_kind { TM_HANDLE_ALIAS, TM_HANDLE_MONITOR, TM_HANDLE_SPAWN, TM_HANDLE_NODE };

/* What ends the alias that a handle is. */
enum tm_alias_mode {
    TM_ALIAS_OFF,
    TM_ALIAS_UNTIL_UNALIAS,
    TM_ALIAS_UNTIL_DEMONITOR,
    TM_ALIAS_UNTIL_REPLY
};

/* What a reference of ours stands for. */
typedef struct tm_handle {
    uint32_t words[TM_OWN_REF_WORDS]; /* the key in procs->handles */
    uint8_t kind;                     /* enum tm_handle_kind */
    uint8_t alias;                    /* enum tm_alias_mode; only of ALIAS and MONITOR */
    bool call;                        /* the message through it is the reply of a call */
    bool by_name;                     /* MONITOR: name is what was asked for, else the pid */
    uint8_t spawn_flags;              /* SPAWN: enum tm_spawn_flags */
    tm_proc_key owner_key;
    tm_process *owner; /* NULL: an abandoned spawn request */
    tm_list of_owner;
    tm_remote *peer; /* of the target; NULL: a process of this node, or an alias */
    tm_process *target;
    tm_list of_target;
    uint32_t id, serial, creation; /* MONITOR: of the pid */
    tm_reason *reason;             /* abandoned SPAWN with a link: why; NULL is `abandoned` */
    size_t name_len;
    uint8_t name[];
} tm_handle;

typedef struct tm_watch_key {
    const tm_remote *peer;
    uint32_t creation, count, words[TM_REF_WORDS_MAX];
    uint32_t zero;
} tm_watch_key;
static_assert(sizeof(tm_watch_key) == sizeof(void *) + 32, "a map key has no padding");

/* A monitor that a peer holds on a process of ours. */
typedef struct tm_watch {
    tm_watch_key key; /* in procs->watches */
    tm_process *target;
    tm_list of_target;
    tm_list of_peer;
    tm_remote *peer;
    uint32_t id, serial, creation; /* of the watcher */
    bool by_name;                  /* name is what it was set on */
    bool by_spawn;                 /* came with the SPAWN_REQUEST that made the target */
    size_t name_len;
    uint8_t name[];
} tm_watch;

typedef struct tm_link_key {
    const tm_remote *peer; /* NULL: both ends are ours, and local is the smaller key */
    tm_proc_key local;
    uint64_t other; /* id and serial, as in a tm_proc_key */
    uint64_t creation;
} tm_link_key;
static_assert(sizeof(tm_link_key) == sizeof(void *) + 24, "a map key has no padding");

typedef struct tm_link_end {
    tm_process *process; /* NULL: the end at a peer */
    tm_list of_process;
    struct tm_link *link;
} tm_link_end;

/* A link; without one in the table the state is `none`. */
typedef struct tm_link {
    tm_link_key key;    /* in procs->links */
    uint64_t unlink_id; /* 0: active; else inactive until that id is acknowledged */
    bool by_peer;       /* counted in peer->link_count */
    tm_remote *peer;
    tm_list of_peer;
    tm_link_end ends[2]; /* 0: key.local */
} tm_link;

struct tm_procs {
    const tm_alloc *alloc;
    tm_procs_sink sink;
    bool in_sink;
    uint8_t *node;
    size_t node_len;
    uint32_t creation;
    uint64_t seed[2];
    uint64_t ref_seed[2];
    uint64_t ref_count; /* references made */
    tm_slot *slots;
    uint32_t slot_count;
    uint32_t free_first, free_last, free_count; /* first in, first out */
    size_t process_count;                       /* alive */
    uint64_t mail_bytes;                        /* of living processes */
    size_t traced_count;                        /* atomic: processes with a trace token */
    tm_bytes carried;                           /* trace token of the exit signal in progress */
    tm_map names;
    tm_map handles;
    tm_map watches;
    tm_map links;
    tm_map peers;
    tm_remote *recent; /* the peer found last */
    tm_list ending;
};

/* -- all --------------------------------------------------------------------------------------- */

static inline tm_bytes tm_procs_node(const tm_procs *procs)
{
    return (tm_bytes){procs->node, procs->node_len};
}

static inline bool tm_procs_is_local(const tm_procs *procs, tm_bytes node)
{
    return tm_bytes_equal(node, tm_procs_node(procs));
}

static inline tm_bytes tm_remote_name(const tm_remote *peer)
{
    return (tm_bytes){peer->name, peer->name_len};
}

static inline tm_proc_key tm_pid_key(const tm_pid *pid)
{
    return (uint64_t)pid->serial << 32 | pid->id;
}

static inline tm_pid tm_remote_pid(const tm_remote *peer, uint32_t id, uint32_t serial,
                                   uint32_t creation)
{
    return (tm_pid){tm_remote_name(peer), id, serial, creation};
}

static inline tm_target tm_target_pid(tm_pid pid)
{
    return (tm_target){.kind = TM_TARGET_PID, .node = pid.node, .pid = pid};
}

/* Walks every table and aborts on the first thing that does not fit. O(entries). */
void tm_procs_invariants(const tm_procs *procs);

#ifdef TM_DEBUG
/* Records up to which a debug build checks all of them at both ends of every call: enough for the
 * unit tests, and a table of a million stays usable. */
#define TM_PROCS_CHECKED_COUNT_MAX 128

static inline void tm_procs_check(const tm_procs *procs)
{
    size_t count =
        procs->process_count + procs->handles.count + procs->watches.count + procs->links.count;
    if (count <= TM_PROCS_CHECKED_COUNT_MAX) tm_procs_invariants(procs);
}
#else
static inline void tm_procs_check(const tm_procs *procs) { (void)procs; }
#endif

/* Opens a call that changes the tables: the sink must not make one. */
static inline void tm_procs_enter(const tm_procs *procs)
{
    TM_ASSERT(!procs->in_sink);
    tm_procs_check(procs);
}

/* Closes it. */
static inline int tm_procs_leave(const tm_procs *procs, int rc)
{
    tm_procs_check(procs);
    return rc;
}

/* Signals to a peer with a record, and answers to one that may have none. */
void tm_procs_signal(tm_procs *procs, const tm_remote *peer, tm_proc_signal *signal);
void tm_procs_answer(tm_procs *procs, tm_bytes node, tm_proc_signal *signal);
void tm_procs_event(tm_procs *procs, const tm_proc_event *event);

/* Gives the memory of a map back once it is empty: after a flood nothing stays. */
void tm_procs_trim(tm_map *map);

/* -- process.c --------------------------------------------------------------------------------- */

/* The living process of that key, else NULL. */
static inline tm_process *tm_process_get(const tm_procs *procs, tm_proc_key key)
{
    uint32_t slot = tm_proc_key_id(key) - 1;
    if (slot >= procs->slot_count) return NULL;
    tm_process *process = procs->slots[slot].process;
    return process && process->key == key && !process->ending ? process : NULL;
}

tm_process *tm_process_of_pid(const tm_procs *procs, const tm_pid *pid);
TM_MUST_CHECK int tm_process_new(tm_procs *procs, tm_process **process);
/* Frees a process and all that hangs on it; nothing is told to anybody. */
void tm_process_discard(tm_procs *procs, tm_process *process);
/* From now on it is dead; its signals go out in tm_procs_settle. reason must live until then. */
void tm_process_end(tm_procs *procs, tm_process *process, tm_bytes reason, bool tell);
/* Ends every call in which a process may have been ended. */
void tm_procs_settle(tm_procs *procs);

/* -- link.c ------------------------------------------------------------------------------------ */

enum tm_exit_kind { TM_EXIT_OF_LINK, TM_EXIT_OF_EXIT2 };

/* In any encoding of the atom, which is ASCII. */
bool tm_reason_is(tm_bytes reason, tm_bytes atom);
/* An exit signal arrives at a process of ours, which may be ending already. */
void tm_exit_deliver(tm_procs *procs, tm_process *to, const tm_pid *from, tm_bytes reason,
                     enum tm_exit_kind kind);
tm_link *tm_link_find(const tm_procs *procs, const tm_process *process, const tm_remote *peer,
                      const tm_pid *other);
/* A link of process with a pid of a peer, or (peer NULL) with the process other. */
TM_MUST_CHECK int tm_link_new(tm_procs *procs, tm_process *process, tm_remote *peer,
                              tm_process *other, const tm_pid *pid, tm_link **link);
void tm_link_free(tm_procs *procs, tm_link *link);
/* A link at a peer breaks, seen from our end. */
void tm_link_break(tm_procs *procs, tm_link *link, tm_bytes reason);
/* The EXITs of a process that ends. */
void tm_links_settle(tm_procs *procs, tm_process *process);

/* -- monitor.c --------------------------------------------------------------------------------- */

tm_ref tm_handle_ref(const tm_procs *procs, const tm_handle *handle);
tm_handle *tm_handle_find(const tm_procs *procs, const tm_ref *ref);
/* A handle under a fresh reference, in the owner's list and no other. */
TM_MUST_CHECK int tm_handle_new(tm_procs *procs, tm_process *owner, enum tm_handle_kind kind,
                                tm_bytes name, tm_handle **handle);
void tm_handle_free(tm_procs *procs, tm_handle *handle);
/* fills *signal, MONITOR or DEMONITOR, for a handle that has an owner */
void tm_handle_signal(const tm_procs *procs, const tm_handle *handle, enum tm_proc_signal_kind kind,
                      tm_proc_signal *signal);
/* The process that an active alias stands for, else NULL. */
tm_process *tm_alias_owner(const tm_procs *procs, const tm_ref *ref);
/* A monitor of a node fires; frees the handle. */
void tm_node_lost(tm_procs *procs, tm_handle *handle);
/* A monitor of ours fires; frees the handle, unless its alias outlives it. */
void tm_handle_fire(tm_procs *procs, tm_handle *handle, tm_bytes reason);
tm_watch_key tm_watch_key_of(const tm_remote *peer, const tm_ref *ref);
TM_MUST_CHECK int tm_watch_new(tm_procs *procs, tm_process *target, tm_remote *peer,
                               const tm_pid *from, const tm_ref *ref, tm_bytes name,
                               tm_watch **watch);
void tm_watch_free(tm_procs *procs, tm_watch *watch);
/* The MONITOR_EXITs, DOWNs and DEMONITORs of a process that ends. */
void tm_monitors_settle(tm_procs *procs, tm_process *process);

/* -- inherit.c --------------------------------------------------------------------------------- */

/* A signal of this process leaves: its token then, or empty. */
tm_bytes tm_trace_next(tm_procs *procs, tm_process *process);
/* Frees both. */
void tm_inherit_free(tm_procs *procs, tm_process *process);

/* -- request.c --------------------------------------------------------------------------------- */

/* The request failed: the event, unless nobody waits for it; frees the handle. */
void tm_request_fail(tm_procs *procs, tm_handle *handle, tm_bytes error);
/* Abandons the spawn requests of a process that ends. */
void tm_requests_settle(tm_procs *procs, tm_process *process);
void tm_reason_unref(tm_procs *procs, tm_reason *reason);

/* -- remote.c ---------------------------------------------------------------------------------- */

tm_remote *tm_remote_find(tm_procs *procs, tm_bytes node);
/* Finds or makes. TM_EUSE_NAME for what cannot be a node's name. */
TM_MUST_CHECK int tm_remote_get(tm_procs *procs, tm_bytes node, tm_remote **peer);
void tm_remote_free(tm_procs *procs, tm_remote *peer);
/* A pid of an earlier life of that node. */
static inline bool tm_remote_stale(const tm_remote *peer, uint32_t creation)
{
    return peer->creation && peer->creation != creation;
}
/* A pid that cannot mean a process of that node. */
static inline bool tm_remote_nobody(const tm_remote *peer, uint32_t id, uint32_t creation)
{
    return id > TM_PID_ID_MAX || tm_remote_stale(peer, creation);
}

#endif
