/* Attempts: from the wish to reach a node to its verified handshake.
 *
 * resolve the host -> ask its port mapper for the port -> connect -> handshake. With an address told by
 * the caller the first two fall away. One absolute deadline covers all of it. */
#include <stdio.h>

#include "../base/check.h"
#include "../dist/epmd.h"
#include "../dist/handshake.h"
#include "node.h"

enum attempt_stage { STAGE_RESOLVE, STAGE_MAPPER, STAGE_CONNECT, STAGE_HANDSHAKE };

typedef struct tm_attempt {
    tm_talk talk;
    tm_list link; /* in the list of those that wait for the resolver */
    tumen_node *node;
    tm_peer *peer; /* NULL once it is given up */
    enum attempt_stage stage;
    tm_timer timer;
    tm_io_address address;
    uint64_t request; /* of the resolver */
    bool asking;      /* the reader is in use */
    bool answered;    /* the port is known: connect when the port mapper's socket is closed */
    tm_epmd_reader reader;
    tm_handshake hs;
} tm_attempt;

/* An answer of the resolver on its way to the engine. */
typedef struct answer {
    tm_list link;
    uint64_t request;
    int rc;
    tm_io_address address;
} answer;

static const tm_sock_ops ATTEMPT_OPS;

static void attempt_free(tm_attempt *attempt)
{
    tumen_node *node = attempt->node;
    tm_timer_cancel(&node->engine->wheel, &attempt->timer);
    if (attempt->asking) tm_epmd_reader_fini(&attempt->reader);
    tm_node_challenge_forget(node, &attempt->hs);
    tm_handshake_fini(&attempt->hs);
    tm_talk_fini(&attempt->talk);
    tm_alloc_free(&node->engine->alloc, attempt, sizeof *attempt);
    tm_node_object_closed(node);
}

/* Gives the attempt up; the object goes with its socket. */
static void attempt_drop(tm_attempt *attempt)
{
    if (attempt->peer) attempt->peer->attempt = NULL;
    attempt->peer = NULL;
    attempt->answered = false;
    tm_node_challenge_forget(attempt->node, &attempt->hs);
    tm_timer_cancel(&attempt->node->engine->wheel, &attempt->timer);
    /* While the resolver works on it, its answer finds nobody. */
    if (!tm_sock_close(&attempt->talk.sock, false)) attempt_free(attempt);
}

void tm_attempt_cancel(tm_attempt *attempt) { attempt_drop(attempt); }

/* The peer's own attempt towards us may still win: it has as long as ours could have lasted. code: why
 * ours has failed, 0 for `nok`. */
static void attempt_yield(tm_attempt *attempt, int code)
{
    tumen_node *node = attempt->node;
    tm_peer *peer = attempt->peer;
    peer->wait_until_ns = attempt->timer.deadline_ns;
    peer->wait_code = code;
    tm_timer_arm(&node->engine->wheel, &peer->wait_timer, peer->wait_until_ns);
    attempt_drop(attempt);
    tm_greetings_resume(node, peer->name);
}

static void attempt_fail(tm_attempt *attempt, int code, const char *text)
{
    tm_peer *peer = attempt->peer;
    if (peer && tm_greetings_expect(attempt->node, peer->name)) {
        attempt_yield(attempt, code);
        return;
    }
    attempt_drop(attempt);
    if (peer) tm_peer_failed(peer, code, text);
}

static void attempt_timeout(tm_timer *timer, uint64_t now_ns)
{
    (void)now_ns;
    static const char *const STAGES[] = {
        [STAGE_RESOLVE] = "timed out looking up the host",
        [STAGE_MAPPER] = "timed out asking the port mapper",
        [STAGE_CONNECT] = "timed out connecting",
        [STAGE_HANDSHAKE] = "timed out in the handshake",
    };
    tm_attempt *attempt = TM_CONTAINER(timer, tm_attempt, timer);
    attempt_fail(attempt, TM_ETIMEDOUT, STAGES[attempt->stage]);
}

bool tm_attempt_is_known(const tm_attempt *attempt) { return attempt->stage == STAGE_HANDSHAKE; }

bool tm_attempt_is_answered(const tm_attempt *attempt)
{
    return attempt->hs.state > TM_HS_I_STATUS;
}

/* -- stages ------------------------------------------------------------------------------------------ */

static int attempt_connect(tm_attempt *attempt)
{
    tumen_engine *engine = attempt->node->engine;
    tm_io_id id;
    int rc = engine->io->ops->connect(engine->io, &attempt->address, &id);
    if (rc) return rc;
    rc = tm_engine_adopt(engine, &attempt->talk.sock, id);
    if (rc) engine->io->ops->close(engine->io, id, true);
    return rc;
}

static tm_bytes name_part(tm_bytes name, bool host)
{
    const uint8_t *at = memchr(name.ptr, '@', name.len);
    TM_ASSERT(at); /* checked when the peer was made */
    size_t before = (size_t)(at - name.ptr);
    return host ? tm_bytes_of(at + 1, name.len - before - 1) : tm_bytes_of(name.ptr, before);
}

static void attempt_go(tm_attempt *attempt, enum attempt_stage stage)
{
    attempt->stage = stage;
    int rc = attempt_connect(attempt);
    if (rc) attempt_fail(attempt, rc, "no socket for the connection");
}

/* The address of the host is known, with port 0 unless the caller told one. */
static void attempt_located(tm_attempt *attempt)
{
    if (tm_resolve_port(&attempt->address)) {
        attempt_go(attempt, STAGE_CONNECT);
        return;
    }
    if (attempt->node->epmd_mode == TUMEN_EPMD_NONE) {
        attempt_fail(attempt, TM_EPEER_UNKNOWN,
                     "no address was given and this node uses no port mapper");
        return;
    }
    tm_resolve_set_port(&attempt->address, attempt->node->epmd_port);
    attempt_go(attempt, STAGE_MAPPER);
}

static void resolved(void *ctx, uint64_t request, int rc, const tm_io_address *address)
{
    tumen_engine *engine = ctx;
    answer *out = tm_alloc_zero(&engine->alloc, sizeof *out);
    if (!out) return; /* the attempt's deadline ends it */
    out->request = request;
    out->rc = rc;
    out->address = *address;
    pthread_mutex_lock(&engine->command_lock);
    tm_list_push(&engine->resolved, &out->link);
    pthread_mutex_unlock(&engine->command_lock);
    tm_engine_wake(engine);
}

static tm_attempt *attempt_find(tumen_engine *engine, uint64_t request)
{
    TM_LIST_EACH (&engine->nodes, link, following) {
        tumen_node *node = TM_CONTAINER(link, tumen_node, link);
        size_t position = 0;
        tm_node_lock_engine(node);
        tm_attempt *found = NULL;
        for (tm_peer *peer; !found && (peer = tm_map_next(&node->peers, &position));)
            if (peer->attempt && peer->attempt->stage == STAGE_RESOLVE &&
                peer->attempt->request == request)
                found = peer->attempt;
        tm_node_unlock(node);
        if (found) return found;
    }
    return NULL;
}

void tm_node_resolved(tumen_engine *engine)
{
    for (;;) {
        pthread_mutex_lock(&engine->command_lock);
        tm_list *node = tm_list_pop(&engine->resolved);
        pthread_mutex_unlock(&engine->command_lock);
        if (!node) return;
        answer *in = TM_CONTAINER(node, answer, link);
        tm_attempt *attempt = attempt_find(engine, in->request);
        if (attempt && in->rc) {
            attempt_fail(attempt, in->rc, "the host name cannot be looked up");
        } else if (attempt) {
            uint16_t port = tm_resolve_port(&attempt->address);
            attempt->address = in->address;
            tm_resolve_set_port(&attempt->address, port);
            attempt_located(attempt);
        }
        tm_alloc_free(&engine->alloc, in, sizeof *in);
    }
}

static int attempt_resolve(tm_attempt *attempt, const char *host, uint16_t port)
{
    tumen_engine *engine = attempt->node->engine;
    if (tm_resolve_literal(host, port, &attempt->address) == 0) return 0;
    if (engine->driver == TUMEN_DRIVER_HOST) return TM_ENOTSUP;
    attempt->address.storage.ss_family = AF_INET;
    tm_resolve_set_port(&attempt->address, port);
    if (!engine->resolver) {
        int rc = tm_resolver_create(&engine->alloc, resolved, engine, &engine->resolver);
        if (rc) return rc;
    }
    attempt->request = tm_engine_random_u64(engine);
    int rc = tm_resolver_ask(engine->resolver, host, attempt->request);
    return rc ? rc : TM_NEED_DATA;
}

void tm_attempt_start(tm_peer *peer)
{
    tumen_node *node = peer->node;
    tumen_engine *engine = node->engine;
    tm_attempt *attempt = tm_alloc_zero(&engine->alloc, sizeof *attempt);
    if (!attempt) {
        tm_peer_failed(peer, TM_ENOMEM, "out of memory");
        return;
    }
    tm_talk_init(&attempt->talk, engine, &ATTEMPT_OPS);
    attempt->node = node;
    attempt->peer = peer;
    attempt->timer.fire = attempt_timeout;
    peer->attempt = attempt;
    node->object_count++;
    uint64_t timeout = tm_node_limit(node, TUMEN_LIMIT_HANDSHAKE_MS) * TM_MS_NS;
    tm_timer_arm(&engine->wheel, &attempt->timer, engine->now_ns + timeout);
    char host[TM_NODE_NAME_BYTES_MAX + 1] = "";
    tm_node_lock_engine(node);
    if (peer->host) {
        snprintf(host, sizeof host, "%s", peer->host);
    } else {
        tm_bytes part = name_part(peer->name, true);
        memcpy(host, part.ptr, part.len);
    }
    uint16_t port = peer->port;
    bool allowed = tm_node_allows(node, peer->name);
    tm_node_unlock(node);
    int rc = allowed ? attempt_resolve(attempt, host, port) : TM_EUSE_NAME;
    if (!allowed)
        attempt_fail(attempt, TM_EPEER_NAME, "that node is not on the allowed list");
    else if (rc == 0)
        attempt_located(attempt);
    else if (rc == TM_ENOTSUP)
        attempt_fail(attempt, rc,
                     "a host name needs a look-up, which a host-driven engine leaves to "
                     "its host: give an address");
    else if (rc != TM_NEED_DATA)
        attempt_fail(attempt, rc, "the host name cannot be looked up");
}

/* -- port mapper ------------------------------------------------------------------------------------------ */

static void mapper_connected(tm_attempt *attempt)
{
    tm_bytes name = name_part(attempt->peer->name, false);
    tm_epmd_reader_init(&attempt->reader, TM_EPMD_LOOKUP, name, &attempt->node->engine->alloc);
    attempt->asking = true;
    int rc = tm_epmd_write_lookup(&attempt->talk.out, name);
    if (!rc) rc = tm_talk_flush(&attempt->talk);
    tm_io *io = attempt->node->engine->io;
    if (!rc) rc = io->ops->read_start(io, attempt->talk.sock.id);
    if (rc) attempt_fail(attempt, rc, "cannot ask the port mapper");
}

static void mapper_answer(tm_attempt *attempt, int rc)
{
    if (rc == TM_NEED_DATA) return;
    if (rc) {
        attempt_fail(attempt, rc,
                     rc == TM_EPEER_UNKNOWN ? "the port mapper does not know that node"
                                            : "the port mapper gave no usable answer");
        return;
    }
    tm_resolve_set_port(&attempt->address, attempt->reader.node.port);
    attempt->answered = true;
    tm_sock_close(&attempt->talk.sock, false);
}

/* -- handshake ----------------------------------------------------------------------------------------------- */

static void handshake_connected(tm_attempt *attempt)
{
    tumen_node *node = attempt->node;
    tumen_engine *engine = node->engine;
    attempt->stage = STAGE_HANDSHAKE;
    bool ask_name = node->dynamic && !node->named;
    uint64_t flags = node->flags | (ask_name ? TM_DFLAG(NAME_ME) : 0);
    tm_node_lock_engine(node);
    tm_handshake_config config = {
        .name = tm_node_name(node),
        .creation = ask_name ? 0 : node->creation,
        .flags = flags,
        .challenge = tm_node_challenge_draw(node),
        .expected_name = attempt->peer->name,
        .cookie = tm_node_cookie_for(node, attempt->peer->name),
        .insist = true,
    };
    int rc = tm_handshake_init(&attempt->hs, TM_HANDSHAKE_INITIATOR, &config);
    tm_node_unlock(node);
    if (!rc) rc = tm_node_challenge_add(node, &attempt->hs);
    if (!rc) rc = tm_handshake_start(&attempt->hs, &attempt->talk.out);
    if (!rc) rc = tm_talk_flush(&attempt->talk);
    if (!rc) rc = engine->io->ops->read_start(engine->io, attempt->talk.sock.id);
    if (rc) attempt_fail(attempt, rc, "cannot start the handshake");
}

static void handshake_failed(tm_attempt *attempt, int rc)
{
    if (rc == TM_ECLOSED) {
        attempt_yield(attempt, 0);
        return;
    }
    char text[200];
    const char *what = attempt->hs.fault.what ? attempt->hs.fault.what : tumen_error_text(rc);
    if (rc == TM_EPEER_FLAGS) {
        char names[120];
        tm_flags_text(tm_handshake_missing(&attempt->hs), names, sizeof names);
        snprintf(text, sizeof text, "%s: %s", what, names);
    } else {
        snprintf(text, sizeof text, "%s", what);
    }
    attempt_fail(attempt, rc, text);
}

static int attempt_take_name(tm_attempt *attempt)
{
    tumen_node *node = attempt->node;
    tm_bytes name = tm_handshake_name(&attempt->hs);
    tm_node_lock_engine(node);
    int rc = tm_node_take_name(node, name, attempt->hs.creation);
    node->namer = attempt->peer;
    tm_node_unlock(node);
    return rc;
}

static void handshake_done(tm_attempt *attempt, tm_bytes input)
{
    tumen_node *node = attempt->node;
    tm_peer *peer = attempt->peer;
    if (peer->state == TM_PEER_UP) { /* the peer's own connection came first */
        attempt_drop(attempt);
        return;
    }
    int rc = attempt->hs.name_me ? attempt_take_name(attempt) : 0;
    struct tm_established established = {
        .talk = &attempt->talk,
        .name = peer->name,
        .flags = tm_handshake_flags(&attempt->hs),
        .creation = attempt->hs.peer_creation,
        .address = attempt->address,
        .input = input,
    };
    peer->attempt = NULL;
    attempt->peer = NULL;
    tm_node_challenge_forget(node, &attempt->hs);
    tm_timer_cancel(&node->engine->wheel, &attempt->timer);
    if (!rc) tm_greetings_yield(node, peer->name);
    if (!rc) rc = tm_connection_open(node, &established);
    if (rc) {
        attempt_drop(attempt);
        tm_peer_failed(peer, rc, tumen_error_text(rc));
    } else {
        attempt_free(attempt);
    }
}

static void handshake_input(tm_attempt *attempt, tm_bytes input)
{
    for (;;) {
        bool answered = tm_attempt_is_answered(attempt);
        int event = tm_handshake_feed(&attempt->hs, &input, &attempt->talk.out);
        if (event == TM_HANDSHAKE_CHALLENGED &&
            tm_node_challenge_known(attempt->node, &attempt->hs))
            event = TM_EPEER_REFLECTED;
        if (event < 0) {
            handshake_failed(attempt, event);
            return;
        }
        if (!answered && tm_attempt_is_answered(attempt))
            tm_greetings_resume(attempt->node, attempt->peer->name);
        if (!attempt->peer) return; /* the peer's own attempt is the connection now */
        int rc = tm_talk_flush(&attempt->talk);
        if (rc) {
            attempt_fail(attempt, rc, "the connection broke in the handshake");
            return;
        }
        if (event == TM_HANDSHAKE_CONNECTED) {
            handshake_done(attempt, input);
            return;
        }
        if (event == TM_HANDSHAKE_MORE) return;
    }
}

/* -- completions ------------------------------------------------------------------------------------------------ */

static void attempt_connected(tm_sock *sock, int rc)
{
    tm_attempt *attempt = TM_CONTAINER(sock, tm_attempt, talk.sock);
    if (!attempt->peer) return;
    if (rc) {
        char text[96];
        snprintf(text, sizeof text, "%s refused: errno %d",
                 attempt->stage == STAGE_MAPPER ? "the port mapper" : "the connection was", -rc);
        attempt_fail(attempt, rc, text);
    } else if (attempt->stage == STAGE_MAPPER) {
        mapper_connected(attempt);
    } else {
        handshake_connected(attempt);
    }
}

static void attempt_received(tm_sock *sock, tm_bytes bytes)
{
    tm_attempt *attempt = TM_CONTAINER(sock, tm_attempt, talk.sock);
    if (!attempt->peer || attempt->answered) return;
    if (attempt->stage == STAGE_MAPPER)
        mapper_answer(attempt, tm_epmd_reader_feed(&attempt->reader, bytes));
    else
        handshake_input(attempt, bytes);
}

static void attempt_read_ended(tm_sock *sock, int rc)
{
    tm_attempt *attempt = TM_CONTAINER(sock, tm_attempt, talk.sock);
    if (!attempt->peer || attempt->answered) return;
    if (attempt->stage == STAGE_MAPPER) {
        int end = tm_epmd_reader_eof(&attempt->reader);
        mapper_answer(attempt, end == TM_NEED_DATA ? TM_EPEER_CLOSED : end);
        return;
    }
    if (attempt->hs.state == TM_HS_I_ACK)
        attempt_fail(attempt, TM_EPEER_COOKIE,
                     "the peer closed the connection after our digest: the cookies differ");
    else
        attempt_fail(attempt, rc ? rc : TM_EPEER_CLOSED,
                     "the peer closed the connection during the handshake");
}

static void attempt_sent(tm_sock *sock, ssize_t rc)
{
    tm_attempt *attempt = TM_CONTAINER(sock, tm_attempt, talk.sock);
    int broken = tm_talk_sent(&attempt->talk, rc);
    if (broken && attempt->peer && !attempt->answered)
        attempt_fail(attempt, broken, "the connection broke in the handshake");
}

static void attempt_closed(tm_sock *sock)
{
    tm_attempt *attempt = TM_CONTAINER(sock, tm_attempt, talk.sock);
    if (!attempt->peer || !attempt->answered) {
        attempt_free(attempt);
        return;
    }
    attempt->answered = false;
    tm_epmd_reader_fini(&attempt->reader);
    attempt->asking = false;
    attempt->talk.out.len = attempt->talk.writing.len = 0;
    attempt->talk.in_flight = false;
    attempt_go(attempt, STAGE_CONNECT);
}

static const tm_sock_ops ATTEMPT_OPS = {
    .connected = attempt_connected,
    .received = attempt_received,
    .read_ended = attempt_read_ended,
    .sent = attempt_sent,
    .closed = attempt_closed,
};
