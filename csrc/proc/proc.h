/* Processes of one node: names, aliases, monitors, links, spawn requests. Pure: signals in,
 * signals and events out; no lock, no clock, no system call.
 *
 * The tables belong to one node and are called under that node's lock, from the engine
 * (tm_procs_on_*: a signal came from a peer) and from the API (the rest). What follows from a
 * call leaves through the sink, before the call returns: *signals* to processes of other nodes,
 * *events* to the consumer of this node. Local processes are named by a key, remote ones by a
 * tm_pid. A signal whose other end is a process of this node is applied at once and turns into
 * events only.
 *
 * The sink may read the tables and count mail, nothing else (asserted): a signal that cannot be
 * sent is remembered by the sink's owner, who calls tm_procs_node_down after the call that made it
 * has returned.
 *
 * A reason is the bytes of one external term, without version byte and without ATOM_CACHE_REF:
 * it is compared with `normal` and `kill` here, and is passed on to other nodes as it is.
 *
 * Rules: protocol.md 4.2 (monitors), 4.3 (exit signals), 4.4 (link protocol), 4.5 (spawn), 4.7
 * (connection lost); the OTP manual's "Signals" and erl_dist_protocol. */
#ifndef TM_PROC_PROC_H
#define TM_PROC_PROC_H

#include "../etf/etf.h"

typedef struct tm_procs tm_procs;

/* A process of this node: pid id in the low, serial in the high 32 bits. 0 is none. */
typedef uint64_t tm_proc_key;

static inline uint32_t tm_proc_key_id(tm_proc_key key) { return (uint32_t)key; }
static inline uint32_t tm_proc_key_serial(tm_proc_key key) { return (uint32_t)(key >> 32); }

/* Where a signal or a monitor points. Exactly one of pid / name / ref is meant. node is the node of
 * the target, this one's name for a local target. */
enum tm_target_kind { TM_TARGET_PID, TM_TARGET_NAME, TM_TARGET_REF };

typedef struct tm_target {
    enum tm_target_kind kind;
    tm_bytes node; /* NAME; for PID and REF the identifier's own node counts */
    tm_pid pid;
    tm_bytes name; /* UTF-8 atom text */
    tm_ref ref;
} tm_target;

/* -- out: signals to other nodes -------------------------------------------------------------- */

enum tm_proc_signal_kind {
    TM_SIGNAL_LINK,
    TM_SIGNAL_UNLINK_ID,
    TM_SIGNAL_UNLINK_ID_ACK,
    TM_SIGNAL_EXIT,         /* a link broke: reason */
    TM_SIGNAL_EXIT2,        /* exit/2: reason */
    TM_SIGNAL_MONITOR,      /* from, to (pid or name), ref */
    TM_SIGNAL_DEMONITOR,    /* from, to, ref */
    TM_SIGNAL_MONITOR_EXIT, /* item (what was monitored), to, ref, reason */
    TM_SIGNAL_GROUP_LEADER, /* to, leader */
};

typedef struct tm_proc_signal {
    enum tm_proc_signal_kind kind;
    tm_bytes node;      /* the node it goes to */
    tm_proc_key sender; /* the local process whose signal order counts; 0: none any more */
    tm_pid from;        /* a local pid; in an answer for a dead one, as the peer named it */
    tm_bytes from_name; /* MONITOR_EXIT of a monitor that was set by name; else ptr is NULL */
    tm_target to;       /* EXIT2 may go to an alias too */
    tm_ref ref;
    uint64_t unlink_id;
    tm_bytes reason; /* one term */
    tm_bytes token;  /* EXIT, EXIT2: a trace token, empty without */
    tm_pid leader;   /* GROUP_LEADER: of any node */
} tm_proc_signal;

/* -- out: events to the consumer --------------------------------------------------------------- */

enum tm_proc_event_kind {
    /* The process was ended by a signal (exit, broken link): it is already gone from every table
     * and its own signals are out. The consumer stops its task. */
    TM_EVENT_PROC_EXITED, /* key, reason */
    /* A message {'EXIT', Pid, Reason} for a process that traps exits. */
    TM_EVENT_EXIT_MESSAGE, /* key, pid, reason */
    /* A monitor of ours fired. The monitor, and an alias made with it, are gone. */
    TM_EVENT_DOWN, /* key, ref, item, reason */
    /* A spawn request of ours was answered or failed. On success the monitor (if asked for) stands
     * under the same ref. */
    TM_EVENT_SPAWN_REPLY, /* key, ref, pid or reason (an atom term); ok */
    /* A node that is watched has gone, or cannot be reached: once for each call. */
    TM_EVENT_NODE_LOST, /* key, item.node */
};

typedef struct tm_proc_event {
    enum tm_proc_event_kind kind;
    tm_proc_key key; /* whom it is for */
    tm_pid pid;
    tm_ref ref;
    tm_target item;  /* DOWN: what was monitored, as it was named */
    tm_bytes reason; /* one term */
    tm_bytes token;  /* EXIT_MESSAGE: the trace token that came with it, or empty */
    bool ok;
} tm_proc_event;

typedef struct tm_procs_sink {
    void *ctx;
    void (*signal)(void *ctx, const tm_proc_signal *signal); /* borrows all */
    void (*event)(void *ctx, const tm_proc_event *event);    /* borrows all */
} tm_procs_sink;

/* -- life -------------------------------------------------------------------------------------- */

typedef struct tm_procs_options {
    const tm_alloc *alloc; /* borrowed until destroy */
    tm_bytes node;         /* copied; our node name, UTF-8 */
    uint32_t creation;
    uint64_t seed[2]; /* random: keys of the hash maps and the unguessable part of references */
    tm_procs_sink sink;
} tm_procs_options;

/* TM_EUSE_NAME, TM_ENOMEM. */
TM_MUST_CHECK int tm_procs_create(const tm_procs_options *options, tm_procs **procs);
/* Frees all without a signal or an event. NULL is harmless. */
void tm_procs_destroy(tm_procs *procs);
/* A dynamic node name or a new creation: only while no process exists, else TM_EUSE_STATE. Node
 * bytes borrowed earlier are invalid afterwards. */
TM_MUST_CHECK int tm_procs_rename(tm_procs *procs, tm_bytes node, uint32_t creation);

/* -- processes: called by the API -------------------------------------------------------------- */

/* TM_EUSE_LIMIT above TM_PROCESS_COUNT_MAX, TM_ENOMEM. */
TM_MUST_CHECK int tm_procs_spawn(tm_procs *procs, tm_proc_key *key);
/* The process has ended by itself with reason (one term): names, aliases, monitors and links are
 * settled, signals are out, no event for the process itself. TM_ENOPROC when it is gone already. */
int tm_procs_exit(tm_procs *procs, tm_proc_key key, tm_bytes reason);
/* Every process is ended for noconnection, each with its event. */
void tm_procs_end_all(tm_procs *procs);
bool tm_procs_alive(const tm_procs *procs, tm_proc_key key);
/* The pid of a key, alive or not; the node bytes are borrowed from procs. */
tm_pid tm_procs_pid(const tm_procs *procs, tm_proc_key key);
/* The key of a pid of this node and this creation that is alive, else 0. */
tm_proc_key tm_procs_find(const tm_procs *procs, const tm_pid *pid);
int tm_procs_trap_exit(tm_procs *procs, tm_proc_key key, bool trap);
size_t tm_procs_count(const tm_procs *procs);
/* A fresh reference of this node, 3 words, word 0 below 2^18, 64 unguessable bits. */
tm_ref tm_procs_make_ref(tm_procs *procs);

/* -- names ------------------------------------------------------------------------------------- */

/* A process may have several names. TM_ENAME_TAKEN, TM_ENOPROC (the key is dead), TM_EUSE_NAME
 * (empty, `undefined`, longer than an atom or not UTF-8), TM_ENOMEM. */
TM_MUST_CHECK int tm_procs_register(tm_procs *procs, tm_bytes name, tm_proc_key key);
/* TM_ENOPROC when nobody has that name. Monitors that were set by it stay on the process. */
int tm_procs_unregister(tm_procs *procs, tm_bytes name);
/* 0 when nobody has that name. */
tm_proc_key tm_procs_whereis(const tm_procs *procs, tm_bytes name);

/* -- mail accounting --------------------------------------------------------------------------- */

/* These two may be called from the sink: an EXIT or DOWN message has a size too. */

/* Adds the wire size of a message that goes to a process; the new total, 0 for a dead key. */
uint64_t tm_procs_mail_put(tm_procs *procs, tm_proc_key key, uint64_t bytes);
/* The process has taken messages of that many bytes. Harmless on a dead key. */
void tm_procs_mail_take(tm_procs *procs, tm_proc_key key, uint64_t bytes);
/* What waits for living processes. */
uint64_t tm_procs_mail(const tm_procs *procs);
/* The process with most waiting bytes, and how many; 0 when none has any. O(processes). */
tm_proc_key tm_procs_fullest(const tm_procs *procs, uint64_t *bytes);

/* -- monitors and aliases of ours -------------------------------------------------------------- */

enum tm_monitor_flags {
    /* ref is an alias as well; a message to it is delivered once and ends alias and monitor
     * (erlang:monitor with {alias, reply_demonitor}). tm_procs_use_alias tells that it is the reply
     * of a call. */
    TM_MONITOR_ALIAS_REPLY = 1,
    /* The aliases of erlang:monitor/3. EXPLICIT_UNALIAS outlives the monitor; DEMONITOR ends with
     * it; REPLY_DEMONITOR is as the first, but what comes is mail like any other. */
    TM_MONITOR_EXPLICIT_UNALIAS = 2,
    TM_MONITOR_DEMONITOR = 4,
    TM_MONITOR_REPLY_DEMONITOR = 8,
};

/* Watches a pid or name of any node. The DOWN comes as an event, for a local target that is not
 * there with `noproc` and before this returns. Remote: a MONITOR signal is emitted first; if it
 * cannot be sent the owner of the connections calls tm_procs_node_down and the DOWN is
 * `noconnection`. TM_ENOPROC (the watcher is dead), TM_EUSE_ARG (neither pid nor name),
 * TM_EUSE_NAME, TM_ENOMEM. */
TM_MUST_CHECK int tm_procs_monitor(tm_procs *procs, tm_proc_key watcher, const tm_target *target,
                                   unsigned flags, tm_ref *ref);
/* Ends the monitor, and its alias unless that is EXPLICIT_UNALIAS: no DOWN and no reply is
 * delivered any more. true if it was there. */
bool tm_procs_demonitor(tm_procs *procs, tm_proc_key watcher, const tm_ref *ref);

enum tm_alias_flags { TM_ALIAS_REPLY = 1 }; /* ends with the first message through it */

/* erlang:alias/1; ends with tm_procs_unalias or the process. unalias of a monitor's alias leaves
 * the monitor. */
TM_MUST_CHECK int tm_procs_alias(tm_procs *procs, tm_proc_key key, unsigned flags, tm_ref *ref);
bool tm_procs_unalias(tm_procs *procs, tm_proc_key key, const tm_ref *ref);
/* A message came for this reference: the process to deliver to, or 0. A reply alias is used up by
 * this (DEMONITOR goes out), and *reply tells that it was one of TM_MONITOR_ALIAS_REPLY. */
tm_proc_key tm_procs_use_alias(tm_procs *procs, const tm_ref *ref, bool *reply);

/* erlang:monitor_node/2: one event for each call when the connection to node goes or cannot be
 * made, which the owner of the connections has to try. Nothing for this node itself. */
TM_MUST_CHECK int tm_procs_monitor_node(tm_procs *procs, tm_proc_key key, tm_bytes node);
/* Takes one call back. true if there was one. */
bool tm_procs_demonitor_node(tm_procs *procs, tm_proc_key key, tm_bytes node);

/* -- links and exit signals of ours ------------------------------------------------------------ */

/* TM_EUSE_ARG for a link to itself. To a dead local process: {'EXIT', Pid, noproc} as a signal.
 * TM_ENOPROC (key is dead), TM_EUSE_NAME, TM_ENOMEM. */
TM_MUST_CHECK int tm_procs_link(tm_procs *procs, tm_proc_key key, const tm_pid *to);
int tm_procs_unlink(tm_procs *procs, tm_proc_key key, const tm_pid *to);
/* exit(To, Reason) from the process key, which may be the target itself. */
int tm_procs_exit2(tm_procs *procs, tm_proc_key key, const tm_pid *to, tm_bytes reason);
/* exit(Alias, Reason): an alias that is not active is nobody; a reply alias is not used up. */
int tm_procs_exit_alias(tm_procs *procs, tm_proc_key key, const tm_ref *to, tm_bytes reason);

/* -- what a process hands on: group leader and trace token ------------------------------------- */

/* TM_ENOPROC, TM_ENOMEM. */
TM_MUST_CHECK int tm_procs_set_leader(tm_procs *procs, tm_proc_key key, const tm_pid *leader);
/* false when none was set: it is the node's default. The pid is borrowed until the next call. */
bool tm_procs_leader(const tm_procs *procs, tm_proc_key key, tm_pid *leader);
/* erlang:group_leader/2 called by the process key, for a process of any node. */
TM_MUST_CHECK int tm_procs_lead(tm_procs *procs, tm_proc_key key, const tm_pid *to,
                                const tm_pid *leader);

/* The process has taken a message with that token, or (empty) one without; {Flags, Label, Serial,
 * From, Previous} as seq_trace has them. On an error it has none: TM_EUSE_TERM for another shape,
 * TM_EUSE_LIMIT above TM_TRACE_TOKEN_BYTES_MAX or with a label above TM_TRACE_LABEL_BYTES_MAX,
 * TM_ENOPROC, TM_ENOMEM. */
TM_MUST_CHECK int tm_procs_trace(tm_procs *procs, tm_proc_key key, tm_bytes token);
/* Whether tm_procs_trace can take that token: 0, or its error. Without a lock. */
TM_MUST_CHECK int tm_procs_token_check(const tm_procs *procs, tm_bytes token);
/* The token as it is now, empty without one; borrowed until the next call. */
tm_bytes tm_procs_token(const tm_procs *procs, tm_proc_key key);
/* The token for a signal that the process sends now: its serial has been counted up. */
tm_bytes tm_procs_next_token(tm_procs *procs, tm_proc_key key);
/* Processes that have a token. Any thread. */
size_t tm_procs_traced(const tm_procs *procs);
/* The token of the exit signal that is given to tm_procs_on_exit or _exit2 next. Borrowed until
 * then. */
void tm_procs_carry(tm_procs *procs, tm_bytes token);

/* -- spawn requests of ours -------------------------------------------------------------------- */

enum tm_spawn_flags { TM_SPAWN_LINK = 1, TM_SPAWN_MONITOR = 2 };

/* Remembers a request that the caller then puts on the wire; with TM_MONITOR_ALIAS_REPLY semantics
 * left out: the result of erpc arrives as the DOWN of ref. */
TM_MUST_CHECK int tm_procs_spawn_request(tm_procs *procs, tm_proc_key key, tm_bytes node,
                                         unsigned spawn_flags, tm_ref *ref);
/* Gives up: a late SPAWN_REPLY is answered with DEMONITOR (and, if linked, EXIT with `abandoned`),
 * nothing is delivered. */
bool tm_procs_spawn_abandon(tm_procs *procs, tm_proc_key key, const tm_ref *ref);

/* -- in: signals from peers -----------------------------------------------------------------------
 *
 * node is the (authenticated) name of the connection they came on; from was checked to be a pid of
 * it. A `to` that is not a living process of this node and this creation is a dead process.
 *
 * 0, or TM_ENOMEM, TM_EPEER_LIMIT (more monitors or links than one peer may hold) or
 * TM_EPEER_MALFORMED, which all end that connection. */

TM_MUST_CHECK int tm_procs_on_link(tm_procs *procs, const tm_pid *from, const tm_pid *to);
TM_MUST_CHECK int tm_procs_on_unlink_id(tm_procs *procs, uint64_t id, const tm_pid *from,
                                        const tm_pid *to);
TM_MUST_CHECK int tm_procs_on_unlink_id_ack(tm_procs *procs, uint64_t id, const tm_pid *from,
                                            const tm_pid *to);
TM_MUST_CHECK int tm_procs_on_exit(tm_procs *procs, const tm_pid *from, const tm_pid *to,
                                   tm_bytes reason);
TM_MUST_CHECK int tm_procs_on_exit2(tm_procs *procs, const tm_pid *from, const tm_pid *to,
                                    tm_bytes reason);
TM_MUST_CHECK int tm_procs_on_exit_alias(tm_procs *procs, const tm_pid *from, const tm_ref *to,
                                         tm_bytes reason);
TM_MUST_CHECK int tm_procs_on_group_leader(tm_procs *procs, const tm_pid *leader, const tm_pid *to);
/* A reference that this peer uses for a monitor already, or one of another node, is ignored. */
TM_MUST_CHECK int tm_procs_on_monitor(tm_procs *procs, const tm_pid *from, const tm_target *to,
                                      const tm_ref *ref);
/* *abandoned: the process that was made for the spawn request ref (an erpc worker whose caller has
 * gone), else 0. It goes on; the monitor is gone. */
TM_MUST_CHECK int tm_procs_on_demonitor(tm_procs *procs, const tm_pid *from, const tm_ref *ref,
                                        tm_proc_key *abandoned);
/* Whether a monitor with this reference, of a process of any node, stands on the process: until then
 * somebody waits for the reply of a call that came with it. */
bool tm_procs_watched(tm_procs *procs, tm_proc_key key, const tm_ref *ref);
/* Ignored unless node is the one that was asked to watch. */
TM_MUST_CHECK int tm_procs_on_monitor_exit(tm_procs *procs, tm_bytes node, const tm_pid *to,
                                           const tm_ref *ref, tm_bytes reason);
/* pid on success, else NULL and error, an atom term. Ignored unless node is the one that was asked.
 * What was asked for and is missing in flags is asked for again, as LINK or MONITOR.
 * TM_EPEER_MALFORMED for a pid of another node. */
TM_MUST_CHECK int tm_procs_on_spawn_reply(tm_procs *procs, tm_bytes node, const tm_ref *ref,
                                          const tm_pid *to, unsigned flags, const tm_pid *pid,
                                          tm_bytes error);

/* A SPAWN_REQUEST that was accepted: makes the process with its link and monitor to the
 * requester. The caller emits SPAWN_REPLY right after, before anything else of this process.
 * TM_EUSE_LIMIT when the process table is full: the caller answers `system_limit`.
 * TM_EPEER_MALFORMED for a request reference that is in use or of another node. */
TM_MUST_CHECK int tm_procs_on_spawn(tm_procs *procs, const tm_pid *from, const tm_ref *request,
                                    unsigned spawn_flags, tm_proc_key *key);

/* The connection to node is up with that creation. Links and monitors of ours on pids of another
 * creation end with `noproc`, now and from now on: LINK, UNLINK_ID or EXIT sent to such a pid would
 * make an OTP peer drop the connection. Without this call no pid of the node counts as stale. */
TM_MUST_CHECK int tm_procs_node_up(tm_procs *procs, tm_bytes node, uint32_t creation);

/* The connection to node is gone, or could not be made. In OTP's order: links break with
 * `noconnection`, monitors of ours fire `noconnection`, what the peer held on us is forgotten,
 * spawn requests fail, monitors of the node fire. Nothing is sent to that node meanwhile. */
void tm_procs_node_down(tm_procs *procs, tm_bytes node);

#endif
