/* The engine: one I/O backend, one timer wheel, the sockets and nodes on it, and who turns it.
 *
 * A *turn* runs commands of other threads, writes what is queued, fires timers, waits for
 * completions and hands them to the sockets' owners. Turns hold the step lock, so that under the loop
 * driver either the host or the engine's own thread makes them. What a turn touches (sockets, timers,
 * attempts, connections as objects) needs no other lock; what callers touch too (processes, peers,
 * queues) is under the node's lock. Order: step lock, node lock, then command or inbox lock. */
#ifndef TM_CONN_ENGINE_H
#define TM_CONN_ENGINE_H

#include <pthread.h>

#include "../base/buf.h"
#include "../base/list.h"
#include "../base/map.h"
#include "../base/wheel.h"
#include "../dist/atom_cache.h"
#include "../io/io.h"
#include "../io/resolve.h"
#include "../tumen.h"
#include "pause.h"

typedef struct tm_sock tm_sock;

/* What a kind of socket does with completions; unused ones are NULL. */
typedef struct tm_sock_ops {
    void (*accepted)(tm_sock *sock, tm_io_id id, const tm_io_address *peer);
    void (*connected)(tm_sock *sock, int rc);
    void (*received)(tm_sock *sock, tm_bytes bytes);
    tm_room (*room)(tm_sock *sock); /* tm_io_sink.room */
    void (*read_ended)(tm_sock *sock, int rc);
    void (*sent)(tm_sock *sock, ssize_t rc);
    void (*closed)(tm_sock *sock); /* the id is dead; frees the owner if nothing else needs it */
} tm_sock_ops;

/* The first member of everything that owns a socket. */
struct tm_sock {
    tm_io_id id; /* 0: none */
    const tm_sock_ops *ops;
    tumen_engine *engine;
};

/* Something another thread wants done by the engine; queued once at a time. */
typedef struct tm_command {
    tm_list link; /* linked exactly while queued */
    void (*run)(struct tm_command *command);
} tm_command;

struct tm_mapper;

struct tumen_engine {
    tm_alloc_stats stats;
    tm_alloc alloc;
    tm_io *io;
    int driver; /* enum tumen_driver */
    char why[200];
    uint64_t seed[2];

    pthread_mutex_t step_lock;
    tm_wheel wheel;
    uint64_t now_ns; /* of this turn, or of its first completion */
    bool asleep;     /* waiting in the backend: now_ns is old */
    tm_map socks;    /* id -> tm_sock */
    tm_list nodes;
    uint64_t epochs;          /* connections made so far */
    tm_atom_pool atoms;       /* of all connections */
    struct tm_mapper *mapper; /* the embedded port mapper, or NULL */
    tm_resolver *resolver;
    tm_list resolved; /* answers of the resolver, under command_lock */

    pthread_mutex_t command_lock;
    pthread_cond_t changed; /* started, stopped, node stopped: with command_lock */
    tm_list commands;
    int sleeping; /* atomic: a wake is needed to be noticed */

    pthread_t thread;
    bool has_thread;
    bool started;   /* under command_lock */
    int stopping;   /* atomic */
    int stop_fd;    /* ends the waits of the engine's own thread */
    uint64_t steps; /* atomic: made by the host */
    int rc;         /* atomic: why the engine is broken */
    bool forked;
    uint32_t sockets_max;
    int wanted_backend;
    bool eager;
    uint64_t turn_received, turn_frames; /* of this turn */
    uint64_t turn_sends;                 /* of all turns */
    tm_pause pause;
    unsigned pause_ns; /* behind this turn */
    /* this period: its number, its start, and what came in it from how many connections; and how long
     * a turn lets completions gather, by what came in the one before: see tm_engine_gather_ns */
    uint64_t period, period_ns, period_turns, period_frames, period_bytes, period_links;
    unsigned gather_ns;
    tm_exchange exchange;
    uint64_t turns, takeovers, wakeups_in, wakeups_out, direct_sends, waits; /* atomic */
};

/* Makes sock the owner of id. 0 or TM_ENOMEM (the caller closes the id). */
TM_MUST_CHECK int tm_engine_adopt(tumen_engine *engine, tm_sock *sock, tm_io_id id);
/* Hands the id of one owner to another. */
void tm_engine_transfer(tumen_engine *engine, tm_sock *from, tm_sock *to);
/* Starts the end of the socket; ops->closed follows unless there is none (then false). */
bool tm_sock_close(tm_sock *sock, bool abort);

/* Queues a command and wakes the engine. Any thread. */
void tm_engine_command(tumen_engine *engine, tm_command *command);
/* Takes a command out of the queue if it waits there: before its memory goes. */
void tm_engine_forget(tumen_engine *engine, tm_command *command);
/* Runs something inside the engine, between or in its turns, and waits for it. Not from inside one. */
void tm_engine_call(tumen_engine *engine, void (*run)(void *ctx), void *ctx);
/* Makes the engine look at its dirty connections soon. Any thread. */
void tm_engine_wake(tumen_engine *engine);
/* How long a turn waits for more to come, ns, when so many frames of so many links came within ns. */
unsigned tm_engine_gather_ns(uint64_t ns, uint64_t links, uint64_t frames);
/* Inside a turn. */
static inline uint64_t tm_engine_now(const tumen_engine *engine) { return engine->now_ns; }
uint64_t tm_engine_random_u64(tumen_engine *engine);

#define TM_ATOMIC_ADD(ptr, n) ((void)__atomic_add_fetch((ptr), (n), __ATOMIC_RELAXED))
#define TM_ATOMIC_GET(ptr) __atomic_load_n((ptr), __ATOMIC_RELAXED)

/* -- small exchanges: handshakes and the port mapper ------------------------------------------------ */

/* A socket with a little to say and no queue: what is written goes out in order, one send at a time. */
typedef struct tm_talk {
    tm_sock sock;
    tm_buf out;     /* to be sent next */
    tm_buf writing; /* given to the kernel; from `written` on not yet taken */
    size_t written;
    bool in_flight;
    bool closing; /* close after the last byte */
} tm_talk;

void tm_talk_init(tm_talk *talk, tumen_engine *engine, const tm_sock_ops *ops);
void tm_talk_fini(tm_talk *talk);
/* Sends what stands in talk->out. */
int tm_talk_flush(tm_talk *talk);
/* To be called from ops->sent; negative when the socket is broken. */
int tm_talk_sent(tm_talk *talk, ssize_t rc);
/* Closes once everything is out; at once if nothing is. */
void tm_talk_finish(tm_talk *talk);

/* A turn of the engine's end: nothing but closing. Under the step lock, or by the last thread. */
int tm_engine_shut_turn(tumen_engine *engine, uint64_t deadline_ns);

/* -- inside the engine ------------------------------------------------------------------------------- */

/* node.c: writes and wakes what a turn has left. */
void tm_node_flush_dirty(tumen_node *node);
void tm_node_engine_broken(tumen_node *node, int rc);

#endif
