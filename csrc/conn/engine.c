#include "engine.h"

#include <signal.h>
#include <stdio.h>

#include "../base/check.h"
#include "../io/notify.h"
#include "mapper.h"
#include "node.h"

/* Sockets when the options name no number: the usual hard limit of descriptors. */
#define SOCKETS_DEFAULT 20000
/* Loop driver: how long ready work may wait for the host before the engine's thread does it, ms. Far
 * above a host that is merely busy for a moment, far below any tick time. */
#define TAKEOVER_MS 20
/* Longest sleep of the take-over thread, ms: bounds how late it sees a timer that was armed meanwhile. */
#define TAKEOVER_SLEEP_MS 200
/* How often a broken engine looks for callers that wait to be told, ms. */
#define BROKEN_POLL_MS 20

/* -- sockets ------------------------------------------------------------------------------------- */

int tm_engine_adopt(tumen_engine *engine, tm_sock *sock, tm_io_id id)
{
    sock->id = id;
    sock->engine = engine;
    return tm_map_set(&engine->socks, tm_bytes_of(&sock->id, sizeof sock->id), sock);
}

void tm_engine_transfer(tumen_engine *engine, tm_sock *from, tm_sock *to)
{
    to->id = from->id;
    to->engine = engine;
    /* Replaces an entry that exists: it cannot fail for want of memory. The key moves along, so the
     * old one has to go first. */
    tm_map_remove(&engine->socks, tm_bytes_of(&from->id, sizeof from->id));
    int rc = tm_map_set(&engine->socks, tm_bytes_of(&to->id, sizeof to->id), to);
    TM_ASSERT(rc == 0);
    from->id = 0;
}

bool tm_sock_close(tm_sock *sock, bool abort)
{
    if (!sock->id) return false;
    sock->engine->io->ops->close(sock->engine->io, sock->id, abort);
    return true;
}

/* The owner of a completion. The first one of a turn ends its sleep: what a handler times from now on
 * must not start in the past. */
static tm_sock *engine_sock(tumen_engine *engine, tm_io_id id)
{
    if (engine->asleep) {
        engine->asleep = false;
        engine->now_ns = engine->io->ops->now_ns(engine->io);
    }
    return tm_map_get(&engine->socks, tm_bytes_of(&id, sizeof id));
}

static void on_accepted(void *ctx, tm_io_id listener, tm_io_id socket, const tm_io_address *peer)
{
    tumen_engine *engine = ctx;
    tm_sock *sock = engine_sock(engine, listener);
    if (sock && sock->ops->accepted)
        sock->ops->accepted(sock, socket, peer);
    else
        engine->io->ops->close(engine->io, socket, true);
}

static void on_connected(void *ctx, tm_io_id socket, int rc)
{
    tm_sock *sock = engine_sock(ctx, socket);
    if (sock && sock->ops->connected) sock->ops->connected(sock, rc);
}

static void on_received(void *ctx, tm_io_id socket, tm_bytes bytes)
{
    tumen_engine *engine = ctx;
    engine->turn_received += bytes.len;
    tm_sock *sock = engine_sock(engine, socket);
    if (sock && sock->ops->received) sock->ops->received(sock, bytes);
}

static tm_room on_room(void *ctx, tm_io_id socket)
{
    tm_sock *sock = engine_sock(ctx, socket);
    return sock && sock->ops->room ? sock->ops->room(sock) : (tm_room){NULL, 0};
}

static void on_read_ended(void *ctx, tm_io_id socket, int rc)
{
    tm_sock *sock = engine_sock(ctx, socket);
    if (sock && sock->ops->read_ended) sock->ops->read_ended(sock, rc);
}

static void on_sent(void *ctx, tm_io_id socket, ssize_t rc)
{
    tm_sock *sock = engine_sock(ctx, socket);
    if (sock && sock->ops->sent) sock->ops->sent(sock, rc);
}

static void on_closed(void *ctx, tm_io_id socket)
{
    tumen_engine *engine = ctx;
    tm_sock *sock = engine_sock(engine, socket);
    if (!sock) return;
    tm_map_remove(&engine->socks, tm_bytes_of(&socket, sizeof socket));
    sock->id = 0;
    sock->ops->closed(sock);
}

/* -- commands ------------------------------------------------------------------------------------- */

void tm_engine_wake(tumen_engine *engine)
{
    if (__atomic_exchange_n(&engine->sleeping, 0, __ATOMIC_SEQ_CST)) {
        TM_ATOMIC_ADD(&engine->wakeups_in, 1);
        engine->io->ops->wake(engine->io);
    }
}

void tm_engine_command(tumen_engine *engine, tm_command *command)
{
    pthread_mutex_lock(&engine->command_lock);
    if (!tm_list_linked(&command->link)) tm_list_push(&engine->commands, &command->link);
    pthread_mutex_unlock(&engine->command_lock);
    tm_engine_wake(engine);
}

void tm_engine_forget(tumen_engine *engine, tm_command *command)
{
    pthread_mutex_lock(&engine->command_lock);
    tm_list_remove(&command->link);
    pthread_mutex_unlock(&engine->command_lock);
}

static tm_command *engine_next_command(tumen_engine *engine)
{
    pthread_mutex_lock(&engine->command_lock);
    tm_list *node = tm_list_pop(&engine->commands);
    pthread_mutex_unlock(&engine->command_lock);
    return node ? TM_CONTAINER(node, tm_command, link) : NULL;
}

static bool engine_has_commands(tumen_engine *engine)
{
    pthread_mutex_lock(&engine->command_lock);
    bool has = !tm_list_empty(&engine->commands) || !tm_list_empty(&engine->resolved);
    pthread_mutex_unlock(&engine->command_lock);
    return has;
}

typedef struct call {
    tm_command command;
    tumen_engine *engine;
    void (*run)(void *ctx);
    void *ctx;
    bool done;
} call;

static void call_run(tm_command *command)
{
    call *self = TM_CONTAINER(command, call, command);
    tumen_engine *engine = self->engine;
    self->run(self->ctx);
    pthread_mutex_lock(&engine->command_lock);
    self->done = true;
    pthread_cond_broadcast(&engine->changed);
    pthread_mutex_unlock(&engine->command_lock);
}

void tm_engine_call(tumen_engine *engine, void (*run)(void *ctx), void *ctx)
{
    if (engine->driver != TUMEN_DRIVER_THREAD) {
        pthread_mutex_lock(&engine->step_lock);
        engine->now_ns = engine->io->ops->now_ns(engine->io);
        run(ctx);
        pthread_mutex_unlock(&engine->step_lock);
        tm_engine_wake(engine);
        return;
    }
    call self = {.command = {.run = call_run}, .engine = engine, .run = run, .ctx = ctx};
    tm_engine_command(engine, &self.command);
    pthread_mutex_lock(&engine->command_lock);
    while (!self.done) pthread_cond_wait(&engine->changed, &engine->command_lock);
    pthread_mutex_unlock(&engine->command_lock);
}

/* -- turns ------------------------------------------------------------------------------------------ */

/* Commands or messages that no turn has looked at. */
static bool engine_pending(tumen_engine *engine)
{
    if (engine_has_commands(engine)) return true;
    TM_LIST_EACH (&engine->nodes, link, following) {
        if (tm_node_is_dirty(TM_CONTAINER(link, tumen_node, link))) return true;
    }
    return false;
}

/* Everything that does not need the kernel to come first, and what became of it is told: true when a
 * consumer has been woken for it. */
static bool engine_prepare(tumen_engine *engine)
{
    for (tm_command *command; (command = engine_next_command(engine));) command->run(command);
    tm_node_resolved(engine);
    tm_wheel_run(&engine->wheel, engine->now_ns);
    bool told = false;
    TM_LIST_EACH (&engine->nodes, link, following) {
        tumen_node *node = TM_CONTAINER(link, tumen_node, link);
        tm_node_flush_dirty(node);
        if (tm_inbox_signal(&node->inbox)) told = true;
    }
    return told;
}

/* A message that comes alone costs a switch of threads, a wake-up of the consumer and four system
 * calls; messages that come together share them, and io_uring sends their answers with one call. So with
 * many links the engine lets them come together, for a quarter of the time in which a link says something
 * once: where each waits for its answer that is their round trip. A few links would wait for nobody. */
unsigned tm_engine_gather_ns(uint64_t ns, uint64_t links, uint64_t frames)
{
    if (links < TM_GATHER_LINKS_MIN || ns / frames > TM_GATHER_FRAME_NS_MAX) return 0;
    uint64_t gather_ns = ns / 4 * links / frames;
    return (unsigned)(gather_ns < TM_GATHER_NS_MAX ? gather_ns : TM_GATHER_NS_MAX);
}

/* What came in this turn, and once in a period what follows from it. */
static void engine_survey(tumen_engine *engine)
{
    if (engine->turn_frames) engine->period_turns++;
    engine->period_frames += engine->turn_frames;
    engine->period_bytes += engine->turn_received;
    uint64_t ns = engine->now_ns - engine->period_ns;
    if (ns < TM_GATHER_PERIOD_NS) return;
    uint64_t frames = engine->period_frames;
    engine->gather_ns = tm_engine_gather_ns(ns, engine->period_links, frames);
    bool small = engine->period_bytes < frames * TM_PAUSE_FRAME_BYTES_MAX;
    tm_exchange_pause(&engine->exchange, ns, engine->period_turns,
                      small && !engine->gather_ns ? frames : 0);
    engine->period_ns = engine->now_ns;
    engine->period_links = engine->period_turns = engine->period_frames = engine->period_bytes = 0;
    engine->period++;
}

/* The pause behind this turn, for an engine that turns by itself. */
static void engine_judge(tumen_engine *engine)
{
    uint64_t sends = engine->turn_sends + TM_ATOMIC_GET(&engine->direct_sends);
    engine->pause_ns =
        tm_pause_after(&engine->pause, engine->turn_frames, engine->turn_received, sends);
    if (!engine->pause_ns && engine->turn_frames) engine->pause_ns = engine->exchange.ns;
    engine->turn_received = engine->turn_frames = 0;
}

/* One turn, under the step lock. */
static int engine_turn(tumen_engine *engine, uint64_t deadline_ns)
{
    const tm_io_ops *ops = engine->io->ops;
    tm_io_sink sink = {engine,        on_accepted, on_connected, on_received,
                       on_read_ended, on_sent,     on_closed,    on_room};
    engine->now_ns = ops->now_ns(engine->io);
    /* A host that is its own consumer waits for nothing else then. */
    bool pending = engine_prepare(engine);
    __atomic_store_n(&engine->sleeping, 1, __ATOMIC_SEQ_CST);
    if (engine_pending(engine)) pending = true;
    uint64_t timer_ns = tm_wheel_next_ns(&engine->wheel);
    if (pending) deadline_ns = 0;
    if (timer_ns < deadline_ns) deadline_ns = timer_ns;
    engine->asleep = true;
    int rc = ops->turn(engine->io, deadline_ns, &sink);
    __atomic_store_n(&engine->sleeping, 0, __ATOMIC_SEQ_CST);
    TM_ATOMIC_ADD(&engine->turns, 1);
    engine->now_ns = ops->now_ns(engine->io);
    engine_prepare(engine);
    engine_survey(engine);
    engine_judge(engine);
    /* From here until the next turn nobody looks: whoever queues something must wake. What came since
     * engine_prepare looked has nobody who does: the next turn finds it, but a host may sleep first. */
    __atomic_store_n(&engine->sleeping, 1, __ATOMIC_SEQ_CST);
    if (engine->driver != TUMEN_DRIVER_THREAD && engine_pending(engine)) tm_engine_wake(engine);
    return rc;
}

int tm_engine_shut_turn(tumen_engine *engine, uint64_t deadline_ns)
{
    return engine_turn(engine, deadline_ns);
}

/* The engine cannot go on: every consumer is told. */
static void engine_break(tumen_engine *engine, int rc)
{
    __atomic_store_n(&engine->rc, rc, __ATOMIC_RELEASE);
    TM_LIST_EACH (&engine->nodes, link, following) {
        tm_node_engine_broken(TM_CONTAINER(link, tumen_node, link), rc);
    }
}

static int engine_step(tumen_engine *engine, uint64_t deadline_ns)
{
    int rc = __atomic_load_n(&engine->rc, __ATOMIC_ACQUIRE);
    if (rc) return rc;
    rc = engine_turn(engine, deadline_ns);
    /* What was queued between the last look and `sleeping` has nobody who wakes us. */
    if (rc) engine_break(engine, rc);
    return rc;
}

int tumen_engine_step(tumen_engine *engine, int64_t timeout_ns)
{
    if (engine->forked) return TM_EFORKED;
    if (engine->driver == TUMEN_DRIVER_THREAD) return TM_EUSE_STATE;
    uint64_t deadline_ns = 0;
    if (timeout_ns < 0)
        deadline_ns = UINT64_MAX;
    else if (timeout_ns > 0)
        deadline_ns = engine->io->ops->now_ns(engine->io) + (uint64_t)timeout_ns;
    TM_ATOMIC_ADD(&engine->steps, 1);
    pthread_mutex_lock(&engine->step_lock);
    int rc = engine_step(engine, deadline_ns);
    pthread_mutex_unlock(&engine->step_lock);
    TM_ATOMIC_ADD(&engine->steps, 1);
    return rc;
}

int64_t tumen_engine_timeout_ns(tumen_engine *engine)
{
    if (engine->forked || pthread_mutex_trylock(&engine->step_lock)) return 0;
    uint64_t next = tm_wheel_next_ns(&engine->wheel);
    pthread_mutex_unlock(&engine->step_lock);
    if (next >= INT64_MAX) return INT64_MAX;
    uint64_t now = engine->io->ops->now_ns(engine->io);
    return next > now ? (int64_t)(next - now) : 0;
}

int tumen_engine_poll_fd(tumen_engine *engine)
{
    if (engine->driver == TUMEN_DRIVER_THREAD || engine->forked) return -1;
    /* The first call changes how the backend sleeps, and the host's is one of two. */
    pthread_mutex_lock(&engine->step_lock);
    int fd = engine->io->ops->poll_fd(engine->io);
    pthread_mutex_unlock(&engine->step_lock);
    return fd;
}

/* -- the engine's own thread -------------------------------------------------------------------------- */

/* Loop driver: waits until the host has left work lying, then does it until the host is back. */
static void engine_watch(tumen_engine *engine)
{
    int fd = tumen_engine_poll_fd(engine);
    bool away = false;
    uint64_t seen = TM_ATOMIC_GET(&engine->steps);
    while (!__atomic_load_n(&engine->stopping, __ATOMIC_ACQUIRE)) {
        int64_t timer_ms = tumen_engine_timeout_ns(engine) / (int64_t)TM_MS_NS + 1;
        if (timer_ms > TAKEOVER_SLEEP_MS) timer_ms = TAKEOVER_SLEEP_MS;
        tm_notify_wait(fd, (int)timer_ms);
        if (!away) tm_notify_wait(engine->stop_fd, TAKEOVER_MS);
        uint64_t steps = TM_ATOMIC_GET(&engine->steps);
        if (steps != seen) {
            seen = steps;
            away = false;
            continue;
        }
        away = true;
        pthread_mutex_lock(&engine->step_lock);
        if (!__atomic_load_n(&engine->stopping, __ATOMIC_ACQUIRE)) engine_step(engine, 0);
        pthread_mutex_unlock(&engine->step_lock);
        TM_ATOMIC_ADD(&engine->takeovers, 1);
    }
}

/* After the backend has failed: callers that wait for a command still get their answer. */
static void engine_idle(tumen_engine *engine)
{
    tm_notify_wait(engine->stop_fd, BROKEN_POLL_MS);
    for (tm_command *command; (command = engine_next_command(engine));) command->run(command);
}

static int engine_open_io(tumen_engine *engine)
{
    tm_io_options options = {&engine->alloc, engine->sockets_max};
    bool epoll_only = engine->driver != TUMEN_DRIVER_THREAD;
    int wanted = engine->wanted_backend;
    int rc = TM_ENOTSUP;
    char probe[160] = "";
    if (wanted != TUMEN_BACKEND_EPOLL && !epoll_only) {
        rc = tm_io_uring_create(&options, &engine->io, probe, sizeof probe);
        if (rc == 0) {
            snprintf(engine->why, sizeof engine->why, "io_uring passed its behaviour probe");
            return 0;
        }
        snprintf(engine->why, sizeof engine->why, "io_uring is not used: %s", probe);
        if (wanted == TUMEN_BACKEND_URING) return rc;
    } else {
        snprintf(engine->why, sizeof engine->why, "%s",
                 epoll_only ? "a loop-driven engine runs on epoll" : "epoll was asked for");
        if (wanted == TUMEN_BACKEND_URING) return TM_ENOTSUP;
    }
    return tm_io_epoll_create(&options, &engine->io);
}

/* Lets messages come together. For one stream without the kernel: what lies in a socket is joined by
 * TCP, and a receive that is armed would take it out in pieces. */
static void engine_wait(tumen_engine *engine)
{
    if (!engine->pause_ns && !engine->gather_ns) return;
    TM_ATOMIC_ADD(&engine->waits, 1);
    if (engine->pause_ns)
        tm_notify_pause(engine->pause_ns);
    else
        engine->io->ops->gather(engine->io, engine->gather_ns);
}

static void *engine_run(void *arg)
{
    tumen_engine *engine = arg;
    bool own = engine->driver == TUMEN_DRIVER_THREAD;
    int rc = own ? engine_open_io(engine) : 0;
    if (own) tm_notify_punctual();
    pthread_mutex_lock(&engine->command_lock);
    engine->rc = rc;
    engine->started = true;
    pthread_cond_broadcast(&engine->changed);
    pthread_mutex_unlock(&engine->command_lock);
    if (rc) return NULL;
    if (!own) {
        engine_watch(engine);
        return NULL;
    }
    while (!__atomic_load_n(&engine->stopping, __ATOMIC_ACQUIRE)) {
        pthread_mutex_lock(&engine->step_lock);
        if (engine_step(engine, UINT64_MAX) != 0) engine_idle(engine);
        pthread_mutex_unlock(&engine->step_lock);
        if (!engine->eager) engine_wait(engine);
    }
    tm_nodes_shut(engine);
    /* Whoever asked for the end may still be waking us: the backend goes after that. */
    pthread_mutex_lock(&engine->command_lock);
    pthread_mutex_unlock(&engine->command_lock);
    engine->io->ops->destroy(engine->io);
    return NULL;
}

static int engine_start_thread(tumen_engine *engine)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = -pthread_create(&engine->thread, NULL, engine_run, engine);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc) return rc;
    pthread_mutex_lock(&engine->command_lock);
    while (!engine->started) pthread_cond_wait(&engine->changed, &engine->command_lock);
    rc = engine->rc;
    pthread_mutex_unlock(&engine->command_lock);
    if (rc)
        pthread_join(engine->thread, NULL);
    else
        engine->has_thread = true;
    return rc;
}

/* -- life ----------------------------------------------------------------------------------------------- */

static void engine_free(tumen_engine *engine)
{
    tm_map_fini(&engine->socks);
    tm_atom_pool_fini(&engine->atoms);
    tm_notify_close(engine->stop_fd);
    pthread_mutex_destroy(&engine->step_lock);
    pthread_mutex_destroy(&engine->command_lock);
    pthread_cond_destroy(&engine->changed);
    tm_alloc libc = tm_alloc_libc(NULL);
    tm_alloc_free(&libc, engine, sizeof *engine);
}

/* One large block that is freed teaches the C library that there will be more: see
 * TM_HEAP_BLOCK_BYTES. Not a byte of it is touched. */
static void engine_warm_heap(const tm_alloc *libc)
{
    tm_alloc_free(libc, tm_alloc_get(libc, TM_HEAP_BLOCK_BYTES), TM_HEAP_BLOCK_BYTES);
}

int tumen_engine_create(const tumen_engine_options *options, tumen_engine **out)
{
    tumen_engine_options chosen = options ? *options : (tumen_engine_options){0};
    if (chosen.backend < 0 || chosen.backend > TUMEN_BACKEND_EPOLL || chosen.driver < 0 ||
        chosen.driver > TUMEN_DRIVER_HOST)
        return TM_EUSE_ARG;
    tm_alloc libc = tm_alloc_libc(NULL);
    tumen_engine *engine = tm_alloc_zero(&libc, sizeof *engine);
    if (!engine) return TM_ENOMEM;
    engine->alloc = tm_alloc_libc(&engine->stats);
    engine_warm_heap(&libc);
    engine->driver = chosen.driver;
    engine->wanted_backend = chosen.backend;
    engine->eager = chosen.eager;
    engine->sockets_max = chosen.sockets_max ? chosen.sockets_max : SOCKETS_DEFAULT;
    tm_list_init(&engine->commands);
    tm_list_init(&engine->resolved);
    tm_list_init(&engine->nodes);
    pthread_mutex_init(&engine->step_lock, NULL);
    pthread_mutex_init(&engine->command_lock, NULL);
    pthread_cond_init(&engine->changed, NULL);
    tm_wheel_init(&engine->wheel, tm_io_now_ns());
    engine->stop_fd = tm_notify_create();
    int rc = engine->stop_fd < 0 ? engine->stop_fd : 0;
    if (!rc) rc = tm_io_random(engine->seed, sizeof engine->seed);
    tm_map_init(&engine->socks, &engine->alloc, engine->seed);
    tm_atom_pool_init(&engine->atoms, &engine->alloc, engine->seed);
    if (!rc && engine->driver != TUMEN_DRIVER_THREAD) rc = engine_open_io(engine);
    engine->sleeping = 1;
    engine->period = 1;
    if (!rc && engine->driver != TUMEN_DRIVER_HOST) {
        rc = engine_start_thread(engine);
        if (rc && engine->driver == TUMEN_DRIVER_LOOP) engine->io->ops->destroy(engine->io);
    }
    if (rc) {
        engine_free(engine);
        return rc;
    }
    *out = engine;
    return 0;
}

void tumen_engine_destroy(tumen_engine *engine)
{
    if (!engine) return;
    if (engine->forked) {
        engine->io->ops->destroy(engine->io);
        return; /* the rest may be locked for ever by a thread that the child does not have */
    }
    pthread_mutex_lock(&engine->command_lock);
    __atomic_store_n(&engine->stopping, 1, __ATOMIC_RELEASE);
    tm_notify_signal(engine->stop_fd);
    if (engine->has_thread) engine->io->ops->wake(engine->io);
    pthread_mutex_unlock(&engine->command_lock);
    if (engine->has_thread) pthread_join(engine->thread, NULL);
    tm_resolver_destroy(engine->resolver);
    if (engine->driver != TUMEN_DRIVER_THREAD) {
        tm_nodes_shut(engine);
        engine->io->ops->destroy(engine->io);
    }
    tm_nodes_free(engine);
    tm_mapper_free(engine);
    engine_free(engine);
}

void tumen_engine_forked(tumen_engine *engine)
{
    engine->forked = true;
    engine->io->ops->forked(engine->io);
    TM_LIST_EACH (&engine->nodes, link, following) {
        TM_CONTAINER(link, tumen_node, link)->forked = true;
    }
}

const char *tumen_engine_backend(const tumen_engine *engine) { return engine->io->ops->name; }

const char *tumen_engine_backend_why(const tumen_engine *engine) { return engine->why; }

uint64_t tm_engine_random_u64(tumen_engine *engine)
{
    uint64_t value = 0;
    int rc = engine->io->ops->random(engine->io, &value, sizeof value);
    TM_ASSERT(rc == 0); /* getrandom cannot fail for 8 bytes once the pool is seeded */
    return value;
}

void tumen_engine_counters(tumen_engine *engine, tumen_counters *counters)
{
    *counters = (tumen_counters){
        .bytes = TM_ATOMIC_GET(&engine->stats.bytes),
        .blocks = TM_ATOMIC_GET(&engine->stats.count),
        .turns = TM_ATOMIC_GET(&engine->turns),
        .direct_sends = TM_ATOMIC_GET(&engine->direct_sends),
        .wakeups_in = TM_ATOMIC_GET(&engine->wakeups_in),
        .wakeups_out = TM_ATOMIC_GET(&engine->wakeups_out),
        .takeovers = TM_ATOMIC_GET(&engine->takeovers),
        .waits = TM_ATOMIC_GET(&engine->waits),
    };
    if (engine->forked) return;
    /* Single-writer counters of the backend: a torn read is not possible on 64-bit machines. */
    tm_io_counters io;
    engine->io->ops->counters(engine->io, &io);
    counters->system_calls = io.system_calls;
    counters->receives = io.receives;
    counters->sends = io.sends;
    counters->sockets = TM_ATOMIC_GET(&engine->socks.count);
}
