/* A node's life: made, started, stopped, freed; its lock, names, cookies and events. */
#include "node.h"

#include <stdio.h>

#include "../base/check.h"
#include "../dist/handshake.h"

/* Listen backlog: OTP's default of 128 overflows when a cluster comes back at once. */
#define NODE_BACKLOG 1024
/* How long a stopping node goes on writing what is queued, ms. */
#define STOP_MS TM_DRAIN_MS
/* How long the end of an engine waits for sockets to close, ms. */
#define SHUT_MS 1000

static const char STOPPED[] = "the node stopped";

typedef struct tm_cookie {
    tm_bytes peer; /* behind the struct, then the cookie */
    tm_bytes cookie;
} tm_cookie;

/* -- lock and events --------------------------------------------------------------------------------- */

void tm_node_lock(tumen_node *node)
{
    pthread_mutex_lock(&node->lock);
    node->in_engine = false;
}

void tm_node_lock_engine(tumen_node *node)
{
    pthread_mutex_lock(&node->lock);
    node->in_engine = true;
}

void tm_node_unlock(tumen_node *node) { pthread_mutex_unlock(&node->lock); }

void tm_node_event(tumen_node *node, const tumen_event *event, tm_source *source)
{
    if (tm_inbox_put(&node->inbox, event, source, node->in_engine) == 0) return;
    /* An event that cannot be told would be a silent loss: the engine ends instead. */
    int none = 0;
    __atomic_compare_exchange_n(&node->engine->rc, &none, TM_ENOMEM, false, __ATOMIC_RELEASE,
                                __ATOMIC_RELAXED);
}

void tm_node_engine_broken(tumen_node *node, int rc)
{
    const char *text = tumen_error_text(rc);
    int put = tm_inbox_put(&node->inbox,
                           &(tumen_event){.kind = TUMEN_EVENT_BROKEN,
                                          .code = rc,
                                          .text = {(const uint8_t *)text, strlen(text)}},
                           NULL, 0);
    (void)put; /* without memory for it the consumer learns from the next call */
}

bool tm_node_is_dirty(tumen_node *node)
{
    tm_node_lock_engine(node);
    bool dirty = !tm_list_empty(&node->dirty);
    tm_node_unlock(node);
    return dirty;
}

void tm_node_flush_dirty(tumen_node *node)
{
    for (;;) {
        tm_node_lock_engine(node);
        tm_list *link = tm_list_pop(&node->dirty);
        tm_peer *peer = link ? TM_CONTAINER(link, tm_peer, dirty_link) : NULL;
        struct tm_connection *conn = peer ? peer->conn : NULL;
        tm_node_unlock(node);
        if (!peer) return;
        if (conn) tm_connection_write(conn);
    }
}

/* -- cookies -------------------------------------------------------------------------------------------- */

tm_bytes tm_node_cookie_for(tumen_node *node, tm_bytes peer)
{
    const tm_cookie *own = tm_map_get(&node->cookies, peer);
    return own ? own->cookie : node->cookie;
}

static void cookie_free(tumen_node *node, tm_cookie *cookie)
{
    size_t size = sizeof *cookie + cookie->peer.len + cookie->cookie.len;
    explicit_bzero(cookie, size);
    tm_alloc_free(&node->engine->alloc, cookie, size);
}

static void default_cookie_free(tumen_node *node)
{
    uint8_t *ptr = (uint8_t *)(uintptr_t)node->cookie.ptr;
    if (ptr) explicit_bzero(ptr, node->cookie.len);
    tm_alloc_free(&node->engine->alloc, ptr, node->cookie.len);
    node->cookie = (tm_bytes){0};
}

/* -- exposed functions ------------------------------------------------------------------------- */

typedef struct tm_exposed {
    size_t len;
    uint8_t
        key[]; /* module, NUL, function: an atom's text from a peer may hold a NUL, ours may not */
} tm_exposed;

/* The key of a function; space holds two atoms. Empty where nothing can be exposed. */
static tm_bytes exposed_key(tm_bytes module, tm_bytes function, uint8_t *space)
{
    if (module.len > TM_ATOM_BYTES_MAX || function.len > TM_ATOM_BYTES_MAX ||
        memchr(module.ptr, 0, module.len) || memchr(function.ptr, 0, function.len))
        return (tm_bytes){0};
    uint8_t *at = tm_store_bytes(space, module.ptr, module.len);
    *at++ = 0;
    at = tm_store_bytes(at, function.ptr, function.len);
    return tm_bytes_of(space, (size_t)(at - space));
}

bool tm_node_exposes(const tumen_node *node, tm_bytes module, tm_bytes function)
{
    uint8_t space[2 * TM_ATOM_BYTES_MAX + 1];
    tm_bytes key = exposed_key(module, function, space);
    return key.len && node->exposed.count && tm_map_get(&node->exposed, key);
}

static void exposed_free(tumen_node *node, tm_exposed *exposed)
{
    tm_alloc_free(&node->engine->alloc, exposed, sizeof *exposed + exposed->len);
}

/* Under the lock. */
static int exposed_set(tumen_node *node, tm_bytes key, bool on)
{
    tm_exposed *old = tm_map_get(&node->exposed, key);
    if (!on && old) {
        tm_map_remove(&node->exposed, key);
        exposed_free(node, old);
    }
    if (!on || old) return 0;
    if (node->exposed.count >= TM_EXPOSED_COUNT_MAX) return TM_EUSE_LIMIT;
    tm_exposed *fresh = tm_alloc_get(&node->engine->alloc, sizeof *fresh + key.len);
    if (!fresh) return TM_ENOMEM;
    fresh->len = key.len;
    memcpy(fresh->key, key.ptr, key.len);
    int rc = tm_map_set(&node->exposed, tm_bytes_of(fresh->key, fresh->len), fresh);
    if (rc) exposed_free(node, fresh);
    return rc;
}

int tumen_expose(tumen_node *node, tumen_bytes module, tumen_bytes function, int on)
{
    if (node->forked) return TM_EFORKED;
    uint8_t space[2 * TM_ATOM_BYTES_MAX + 1];
    tm_bytes key = exposed_key(tm_private(module), tm_private(function), space);
    if (!key.len) return TM_EUSE_NAME;
    tm_node_lock(node);
    int rc = exposed_set(node, key, on != 0);
    tm_node_unlock(node);
    return rc;
}

/* -- cookies, changed -------------------------------------------------------------------------- */

/* Under the lock. */
static int default_cookie_set(tumen_node *node, tm_bytes cookie)
{
    uint8_t *copy = tm_alloc_get(&node->engine->alloc, cookie.len);
    if (!copy) return TM_ENOMEM;
    memcpy(copy, cookie.ptr, cookie.len);
    default_cookie_free(node);
    node->cookie = tm_bytes_of(copy, cookie.len);
    return 0;
}

/* Under the lock. */
static int peer_cookie_set(tumen_node *node, tm_bytes peer, tm_bytes cookie)
{
    tm_cookie *old = tm_map_remove(&node->cookies, peer);
    if (old) cookie_free(node, old);
    if (!cookie.len) return 0;
    tm_cookie *own = tm_alloc_get(&node->engine->alloc, sizeof *own + peer.len + cookie.len);
    if (!own) return TM_ENOMEM;
    uint8_t *at = (uint8_t *)(own + 1);
    own->peer = tm_bytes_of(at, peer.len);
    at = tm_store_bytes(at, peer.ptr, peer.len);
    own->cookie = tm_bytes_of(at, cookie.len);
    tm_store_bytes(at, cookie.ptr, cookie.len);
    int rc = tm_map_set(&node->cookies, own->peer, own);
    if (rc) cookie_free(node, own);
    return rc;
}

int tumen_node_set_cookie(tumen_node *node, tumen_bytes peer, tumen_bytes cookie)
{
    if (node->forked) return TM_EFORKED;
    if (cookie.len > TM_COOKIE_BYTES_MAX || (!peer.len && !cookie.len)) return TM_EUSE_ARG;
    if (peer.len && !tm_node_name_valid(tm_private(peer))) return TM_EUSE_NAME;
    tm_node_lock(node);
    int rc = peer.len ? peer_cookie_set(node, tm_private(peer), tm_private(cookie))
                      : default_cookie_set(node, tm_private(cookie));
    tm_node_unlock(node);
    return rc;
}

/* -- names and processes ----------------------------------------------------------------------------------- */

static int node_open_kernel(tumen_node *node)
{
    int rc = tm_procs_spawn(node->procs, &node->kernel);
    if (!rc) rc = tm_procs_register(node->procs, TM_BYTES("net_kernel"), node->kernel);
    return rc;
}

static void node_tell_name(tumen_node *node)
{
    tm_node_event(node,
                  &(tumen_event){.kind = TUMEN_EVENT_NAMED, .node = tm_public(tm_node_name(node))},
                  NULL);
}

/* The first peer from a position on that is being connected to; NULL: none, and the position is 0 again. */
static tm_peer *node_next_dialled(tumen_node *node, size_t *position)
{
    tm_peer *found = NULL;
    tm_node_lock_engine(node);
    for (tm_peer *peer; !found && (peer = tm_map_next(&node->peers, position));)
        if (peer->attempt || peer->wait_until_ns) found = peer;
    tm_node_unlock(node);
    if (!found) *position = 0;
    return found;
}

/* Gives up whatever is on its way out. */
static void node_cancel_peers(tumen_node *node, const char *text)
{
    size_t position = 0;
    tm_peer *peer = node_next_dialled(node, &position);
    while (peer) {
        peer->wait_until_ns = 0;
        peer->wait_code = 0;
        tm_timer_cancel(&node->engine->wheel, &peer->wait_timer);
        if (peer->attempt) tm_attempt_cancel(peer->attempt);
        tm_peer_failed(peer, TM_ECLOSED, text);
        /* It may have left the map, and another taken its slot. */
        position--;
        peer = node_next_dialled(node, &position);
        /* A map that has grown meanwhile has them elsewhere: to be sure, once more from the start. */
        if (!peer) peer = node_next_dialled(node, &position);
    }
}

int tm_node_take_name(tumen_node *node, tm_bytes name, uint32_t creation)
{
    /* The host is the one we asked for: OTP insists on that, too. */
    tm_bytes host = tm_node_name(node);
    if (node->named || !tm_node_name_valid(name) || name.len < host.len + 2 ||
        name.ptr[name.len - host.len - 1] != '@' ||
        !tm_bytes_equal(tm_bytes_of(name.ptr + name.len - host.len, host.len), host))
        return TM_EPEER_NAME;
    /* A caller may just have made a process when the name before this one was lost. */
    tm_procs_end_all(node->procs);
    int rc = tm_procs_rename(node->procs, name, creation);
    if (rc) return rc;
    memcpy(node->name, name.ptr, name.len);
    node->name[name.len] = 0;
    node->name_len = name.len;
    node->creation = creation;
    node->named = true;
    rc = node_open_kernel(node);
    if (!rc) node_tell_name(node);
    return rc;
}

void tm_node_lose_name(tumen_node *node)
{
    static const char TEXT[] = "the node has lost its name";
    tm_greetings_drop_all(node);
    node_cancel_peers(node, TEXT);
    TM_LIST_EACH (&node->connections, link, following) {
        tm_connection_abort_link(link, TEXT);
    }
    tm_node_lock_engine(node);
    node->named = false;
    int rc = tm_procs_exit(node->procs, node->kernel, TM_BYTES("\x77\x08shutdown"));
    TM_DCHECK(rc == 0);
    (void)rc;
    node->kernel = 0;
    tm_procs_end_all(node->procs);
    const char *host = strchr(node->name, '@') + 1;
    node->name_len = strlen(host);
    memmove(node->name, host, node->name_len + 1);
    node_tell_name(node);
    tm_node_unlock(node);
}

static int node_open_procs(tumen_node *node)
{
    tumen_engine *engine = node->engine;
    tm_procs_options options = {
        .alloc = &engine->alloc,
        .node = tm_node_name(node),
        .creation = node->creation,
        .seed = {tm_engine_random_u64(engine), tm_engine_random_u64(engine)},
        .sink = {node, tm_node_on_signal, tm_node_on_event},
    };
    int rc = tm_procs_create(&options, &node->procs);
    return rc || !node->named ? rc : node_open_kernel(node);
}

/* -- listening -------------------------------------------------------------------------------------------------- */

/* Where to listen: the host that was asked for, else the name's own host if it is an address. */
static int node_address(const tumen_node *node, const tumen_node_options *options,
                        tm_io_address *address)
{
    const char *host = options->listen_host;
    if (host) return tm_resolve_literal(host, options->listen_port, address);
    const char *at = strchr(node->name, '@');
    if (at && tm_resolve_literal(at + 1, options->listen_port, address) == 0) return 0;
    return tm_resolve_literal("0.0.0.0", options->listen_port, address);
}

static int node_listen(tumen_node *node, const tumen_node_options *options)
{
    tumen_engine *engine = node->engine;
    tm_io_address address, bound;
    tm_io_id id;
    int rc = node_address(node, options, &address);
    if (rc) return rc;
    rc = engine->io->ops->listen(engine->io, &address, NODE_BACKLOG, &id, &bound);
    if (rc) return rc;
    node->listener.ops = &tm_listener_ops;
    rc = tm_engine_adopt(engine, &node->listener, id);
    if (rc) {
        engine->io->ops->close(engine->io, id, true);
        node->listener.id = 0;
        return rc;
    }
    node->object_count++;
    node->port = tm_resolve_port(&bound);
    return 0;
}

/* -- create ------------------------------------------------------------------------------------------------------- */

static const uint64_t LIMIT_DEFAULTS[TUMEN_LIMIT_COUNT] = {
    [TUMEN_LIMIT_MESSAGE_BYTES] = TM_MESSAGE_BYTES_DEFAULT,
    [TUMEN_LIMIT_SENDQ_HIGH_BYTES] = TM_SENDQ_HIGH_BYTES_DEFAULT,
    [TUMEN_LIMIT_SENDQ_NODE_BYTES] = TM_SENDQ_NODE_BYTES_DEFAULT,
    [TUMEN_LIMIT_MAILBOX_BYTES] = TM_MAILBOX_BYTES_DEFAULT,
    [TUMEN_LIMIT_INBOX_BYTES] = TM_INBOX_BYTES_DEFAULT,
    [TUMEN_LIMIT_DEPTH] = TM_DEPTH_DEFAULT,
    [TUMEN_LIMIT_DECODED_BYTES] = TM_DECODED_BYTES_DEFAULT,
    [TUMEN_LIMIT_TICK_TIME_MS] = TM_TICK_TIME_S_DEFAULT * 1000,
    [TUMEN_LIMIT_HANDSHAKE_MS] = TM_HANDSHAKE_TIMEOUT_MS_DEFAULT,
    [TUMEN_LIMIT_HALF_OPEN_COUNT] = TM_HALF_OPEN_COUNT_DEFAULT,
    [TUMEN_LIMIT_REASSEMBLY_BYTES] = TM_REASSEMBLY_BYTES_DEFAULT,
};

static const uint64_t LIMIT_RANGES[TUMEN_LIMIT_COUNT][2] = {
    [TUMEN_LIMIT_MESSAGE_BYTES] = {1024, TM_MESSAGE_BYTES_MAX},
    [TUMEN_LIMIT_SENDQ_HIGH_BYTES] = {1, UINT64_MAX / 4},
    [TUMEN_LIMIT_SENDQ_NODE_BYTES] = {1, UINT64_MAX / 4},
    [TUMEN_LIMIT_MAILBOX_BYTES] = {1, UINT64_MAX / 4},
    [TUMEN_LIMIT_INBOX_BYTES] = {1, UINT64_MAX / 4},
    [TUMEN_LIMIT_DEPTH] = {1, TM_DEPTH_MAX},
    [TUMEN_LIMIT_DECODED_BYTES] = {1024, UINT64_MAX / 4},
    [TUMEN_LIMIT_TICK_TIME_MS] = {TM_TICK_TIME_S_MIN * 1000, TM_TICK_TIME_S_MAX * 1000},
    [TUMEN_LIMIT_HANDSHAKE_MS] = {1, TM_HANDSHAKE_TIMEOUT_MS_MAX},
    [TUMEN_LIMIT_HALF_OPEN_COUNT] = {1, 1 << 20},
    [TUMEN_LIMIT_REASSEMBLY_BYTES] = {1024, UINT64_MAX / 4},
};

static void tick_time_changed(void *ctx)
{
    tumen_node *node = ctx;
    TM_LIST_EACH (&node->connections, link, following) {
        tm_connection_retime_link(link);
    }
}

int tumen_node_set_limit(tumen_node *node, int limit, uint64_t value)
{
    if (node->forked) return TM_EFORKED;
    if (limit < 0 || limit >= TUMEN_LIMIT_COUNT || value < LIMIT_RANGES[limit][0] ||
        value > LIMIT_RANGES[limit][1])
        return TM_EUSE_ARG;
    uint64_t before = __atomic_exchange_n(&node->limits[limit], value, __ATOMIC_RELAXED);
    if (before == value) return 0;
    if (limit == TUMEN_LIMIT_TICK_TIME_MS) tm_engine_call(node->engine, tick_time_changed, node);
    if (limit == TUMEN_LIMIT_SENDQ_HIGH_BYTES) {
        size_t position = 0;
        tm_node_lock(node);
        for (tm_peer *peer; (peer = tm_map_next(&node->peers, &position));) tm_peer_relieve(peer);
        tm_node_unlock(node);
    }
    return 0;
}

uint64_t tumen_node_limit(tumen_node *node, int limit)
{
    return limit < 0 || limit >= TUMEN_LIMIT_COUNT ? 0 : TM_ATOMIC_GET(&node->limits[limit]);
}

static void stop_timer_fire(tm_timer *timer, uint64_t now_ns);
static void later_timer_fire(tm_timer *timer, uint64_t now_ns);
static void stop_command_run(tm_command *command);

static int node_set_name(tumen_node *node, const char *name)
{
    size_t len = strlen(name);
    if (len == 0 || len >= sizeof node->name) return TM_EUSE_NAME;
    memcpy(node->name, name, len);
    node->name_len = len;
    node->dynamic = strchr(name, '@') == NULL;
    node->named = !node->dynamic;
    if (node->named && !tm_node_name_valid(tm_node_name(node))) return TM_EUSE_NAME;
    /* 0 is reserved and 1 to 3 belong to old port mappers (protocol.md 5.2). */
    do {
        node->creation = (uint32_t)tm_engine_random_u64(node->engine);
    } while (node->creation < 4);
    return 0;
}

static int node_init(tumen_node *node, const tumen_node_options *options)
{
    tumen_engine *engine = node->engine;
    pthread_mutexattr_t adaptive;
    pthread_mutexattr_init(&adaptive);
    /* The lock is held for less than a switch of threads takes: spin first. */
    pthread_mutexattr_settype(&adaptive, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&node->lock, &adaptive);
    pthread_mutexattr_destroy(&adaptive);
    memcpy(node->limits, LIMIT_DEFAULTS, sizeof node->limits);
    tm_map_init(&node->peers, &engine->alloc, engine->seed);
    tm_map_init(&node->cookies, &engine->alloc, engine->seed);
    tm_map_init(&node->exposed, &engine->alloc, engine->seed);
    tm_map_init(&node->challenges, &engine->alloc, engine->seed);
    tm_list_init(&node->dirty);
    tm_list_init(&node->later);
    node->entries.alloc = &node->engine->alloc;
    tm_list_init(&node->greetings);
    tm_list_init(&node->connections);
    tm_node_admission_init(node);
    node->stop_timer.fire = stop_timer_fire;
    node->later_timer.fire = later_timer_fire;
    node->stop_command.run = stop_command_run;
    node->visible = options->visible != 0;
    node->flags = options->flags ? options->flags : TM_DFLAGS_OURS;
    if (node->visible) node->flags |= TM_DFLAG(PUBLISHED);
    node->epmd_mode = options->epmd_mode;
    node->epmd_port = options->epmd_port ? options->epmd_port : TM_EPMD_PORT_DEFAULT;
    snprintf(node->epmd_host, sizeof node->epmd_host, "%s",
             options->epmd_address ? options->epmd_address : "127.0.0.1");
    int rc = node_set_name(node, options->name);
    if (!rc) rc = default_cookie_set(node, tm_bytes_of(options->cookie, strlen(options->cookie)));
    if (!rc && options->allowed) rc = tm_node_allow_list(node, options->allowed);
    if (!rc) rc = node_open_procs(node);
    return rc;
}

static void node_free(tumen_node *node)
{
    tumen_engine *engine = node->engine;
    const tm_alloc *alloc = &engine->alloc;
    size_t position = 0;
    for (tm_cookie *cookie; (cookie = tm_map_next(&node->cookies, &position));)
        cookie_free(node, cookie);
    tm_map_fini(&node->cookies);
    position = 0;
    for (tm_exposed *exposed; (exposed = tm_map_next(&node->exposed, &position));)
        exposed_free(node, exposed);
    tm_map_fini(&node->exposed);
    tm_map_fini(&node->challenges);
    default_cookie_free(node);
    position = 0;
    for (tm_peer *peer; (peer = tm_map_next(&node->peers, &position));) {
        if (peer->host) tm_alloc_free(alloc, peer->host, strlen(peer->host) + 1);
        for (tm_entry *entry; (entry = tm_sendq_pop_any(&peer->queue));) {
            tm_sendq_settle(&peer->queue, entry);
            tm_entry_free(&node->entries, entry);
        }
        tm_alloc_free(alloc, peer, sizeof *peer + peer->name.len);
    }
    tm_map_fini(&node->peers);
    tm_entry_pool_fini(&node->entries);
    if (node->procs) tm_procs_destroy(node->procs);
    tm_node_admission_fini(node);
    tm_inbox_fini(&node->inbox);
    tm_alloc_free(alloc, node->listed_names, node->listed_names_size);
    pthread_mutex_destroy(&node->lock);
    tm_alloc_free(alloc, node, sizeof *node);
}

struct creation {
    tumen_node *node;
    const tumen_node_options *options;
    int rc;
};

static void node_start(void *ctx)
{
    struct creation *creation = ctx;
    tumen_node *node = creation->node;
    const tumen_node_options *options = creation->options;
    int rc = TM_ATOMIC_GET(&node->engine->rc);
    if (!rc) rc = node_init(node, options);
    if (!rc && options->listen) rc = node_listen(node, options);
    if (!rc && node->named && options->listen && options->epmd_mode != TUMEN_EPMD_NONE)
        rc = tm_registrar_start(node);
    creation->rc = rc;
    if (!rc)
        tm_list_push(&node->engine->nodes, &node->link);
    else if (node->listener.id)
        tm_sock_close(&node->listener, false);
}

int tumen_node_create(tumen_engine *engine, const tumen_node_options *options, tumen_node **out)
{
    if (engine->forked) return TM_EFORKED;
    if (!options || !options->name || !options->cookie || options->epmd_mode < 0 ||
        options->epmd_mode > TUMEN_EPMD_NONE || options->flags & ~TM_DFLAGS_OURS)
        return TM_EUSE_ARG;
    size_t cookie_len = strlen(options->cookie);
    if (cookie_len == 0 || cookie_len > TM_COOKIE_BYTES_MAX) return TM_EUSE_ARG;
    tumen_node *node = tm_alloc_zero(&engine->alloc, sizeof *node);
    if (!node) return TM_ENOMEM;
    node->engine = engine;
    int rc = tm_inbox_init(&node->inbox, &engine->alloc, &engine->wakeups_out);
    if (rc) {
        tm_alloc_free(&engine->alloc, node, sizeof *node);
        return rc;
    }
    struct creation creation = {node, options, 0};
    tm_engine_call(engine, node_start, &creation);
    if (creation.rc) {
        node_free(node);
        return creation.rc;
    }
    *out = node;
    return 0;
}

/* -- stop ------------------------------------------------------------------------------------------------------------ */

void tm_node_object_closed(tumen_node *node)
{
    TM_ASSERT(node->object_count > 0);
    node->object_count--;
    if (!node->stopping || node->object_count || node->stopped) return;
    tm_timer_cancel(&node->engine->wheel, &node->stop_timer);
    tm_timer_cancel(&node->engine->wheel, &node->later_timer);
    tm_node_lock_engine(node);
    tm_node_event(node, &(tumen_event){.kind = TUMEN_EVENT_STOPPED}, NULL);
    tm_node_unlock(node);
    pthread_mutex_lock(&node->engine->command_lock);
    node->stopped = true;
    pthread_cond_broadcast(&node->engine->changed);
    pthread_mutex_unlock(&node->engine->command_lock);
}

void tm_node_begin_stop(tumen_node *node)
{
    if (node->stopping) return;
    node->stopping = true;
    node->object_count++; /* this function's own */
    tm_sock_close(&node->listener, false);
    tm_registrar_stop(node);
    tm_greetings_drop_all(node);
    node_cancel_peers(node, STOPPED);
    tm_timer_arm(&node->engine->wheel, &node->stop_timer,
                 node->engine->now_ns + STOP_MS * TM_MS_NS);
    TM_LIST_EACH (&node->connections, link, following) {
        tm_connection_drain_link(link);
    }
    tm_node_object_closed(node);
}

/* The flush that was to take along what could wait has not come: the engine's next one does. */
static void later_timer_fire(tm_timer *timer, uint64_t now_ns)
{
    (void)now_ns;
    tumen_node *node = TM_CONTAINER(timer, tumen_node, later_timer);
    tm_node_lock_engine(node);
    tm_node_hasten(node);
    tm_node_unlock(node);
}

/* The time to write is over. */
static void stop_timer_fire(tm_timer *timer, uint64_t now_ns)
{
    (void)now_ns;
    tumen_node *node = TM_CONTAINER(timer, tumen_node, stop_timer);
    TM_LIST_EACH (&node->connections, link, following) {
        tm_connection_abort_link(link, STOPPED);
    }
}

static void stop_command_run(tm_command *command)
{
    tm_node_begin_stop(TM_CONTAINER(command, tumen_node, stop_command));
}

int tumen_node_stop(tumen_node *node)
{
    if (node->forked) return TM_EFORKED;
    tm_engine_command(node->engine, &node->stop_command);
    return 0;
}

static bool node_stopped(tumen_node *node)
{
    pthread_mutex_lock(&node->engine->command_lock);
    bool stopped = node->stopped;
    pthread_mutex_unlock(&node->engine->command_lock);
    return stopped;
}

/* Nothing of the engine leads to the node any more, commands that nobody will run included. */
static void node_unlink(void *ctx)
{
    tumen_node *node = ctx;
    size_t position = 0;
    tm_engine_forget(node->engine, &node->stop_command);
    tm_node_lock_engine(node);
    for (tm_peer *peer; (peer = tm_map_next(&node->peers, &position));)
        tm_engine_forget(node->engine, &peer->connect);
    tm_node_unlock(node);
    tm_list_remove(&node->link);
}

/* Waits for the end, making the turns itself where no thread does. */
static void node_await_stop(tumen_node *node)
{
    tumen_engine *engine = node->engine;
    uint64_t deadline = tm_io_now_ns() + (STOP_MS + SHUT_MS) * TM_MS_NS;
    while (!node_stopped(node) && tm_io_now_ns() < deadline && !TM_ATOMIC_GET(&engine->rc)) {
        if (engine->driver != TUMEN_DRIVER_THREAD) {
            if (tumen_engine_step(engine, 10 * (int64_t)TM_MS_NS)) return;
            continue;
        }
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 10 * (long)TM_MS_NS;
        if (until.tv_nsec >= (long)TM_S_NS) {
            until.tv_nsec -= (long)TM_S_NS;
            until.tv_sec++;
        }
        pthread_mutex_lock(&engine->command_lock);
        if (!node->stopped) pthread_cond_timedwait(&engine->changed, &engine->command_lock, &until);
        pthread_mutex_unlock(&engine->command_lock);
    }
}

void tumen_node_destroy(tumen_node *node)
{
    if (!node || node->forked) return;
    int rc = tumen_node_stop(node);
    TM_ASSERT(rc == 0);
    node_await_stop(node);
    /* A node that would not end in time goes with its engine. */
    if (!node_stopped(node)) return;
    tm_engine_call(node->engine, node_unlink, node);
    node_free(node);
}

/* -- the end of the engine --------------------------------------------------------------------------------------------- */

static bool nodes_open(const tumen_engine *engine)
{
    for (const tm_list *link = engine->nodes.next; link != &engine->nodes; link = link->next)
        if (!TM_CONTAINER(link, tumen_node, link)->stopped) return true;
    return false;
}

void tm_nodes_shut(tumen_engine *engine)
{
    TM_LIST_EACH (&engine->nodes, link, following) {
        tm_node_begin_stop(TM_CONTAINER(link, tumen_node, link));
    }
    uint64_t deadline = tm_io_now_ns() + (STOP_MS + SHUT_MS) * TM_MS_NS;
    while (nodes_open(engine) && tm_io_now_ns() < deadline)
        if (tm_engine_shut_turn(engine, deadline) != 0) break;
}

void tm_nodes_free(tumen_engine *engine)
{
    TM_LIST_EACH (&engine->nodes, link, following) {
        tm_list_remove(link);
        node_free(TM_CONTAINER(link, tumen_node, link));
    }
}
