/* Greetings: inbound sockets until their handshake is verified. Strangers, all of them.
 *
 * Nothing of a stranger is kept but this object; the name it says claims nothing until its digest is right.
 * Their number is bounded: the oldest goes first, since an honest handshake takes milliseconds. */
#include <stdio.h>

#include "../dist/handshake.h"
#include "node.h"

typedef struct tm_greeting {
    tm_talk talk;
    tm_list link; /* in node->greetings, oldest first */
    tumen_node *node;
    tm_timer timer;
    tm_io_address address;
    tm_handshake hs;
    bool alive; /* the peer insisted on replacing its connection */
    bool over;  /* given up: only the socket's end is awaited */
} tm_greeting;

static const tm_sock_ops GREETING_OPS;

static void greeting_free(tm_greeting *greeting)
{
    tumen_node *node = greeting->node;
    tm_timer_cancel(&node->engine->wheel, &greeting->timer);
    if (tm_list_linked(&greeting->link)) {
        tm_list_remove(&greeting->link);
        node->greeting_count--;
    }
    tm_handshake_fini(&greeting->hs);
    tm_talk_fini(&greeting->talk);
    tm_alloc_free(&node->engine->alloc, greeting, sizeof *greeting);
    tm_node_object_closed(node);
}

/* Gives it up, after what is still to be said. */
static void greeting_end(tm_greeting *greeting)
{
    if (greeting->over) return;
    greeting->over = true;
    tm_list_remove(&greeting->link);
    greeting->node->greeting_count--;
    if (greeting->talk.sock.id)
        tm_talk_finish(&greeting->talk);
    else
        greeting_free(greeting);
}

static void greeting_fail(tm_greeting *greeting, int code, const char *text)
{
    if (greeting->over) return;
    tm_bytes name = tm_handshake_peer_name(&greeting->hs);
    tm_node_event(greeting->node,
                  &(tumen_event){.kind = TUMEN_EVENT_HANDSHAKE_FAILED,
                                 .node = tm_public(name),
                                 .code = code,
                                 .text = {(const uint8_t *)text, strlen(text)}},
                  NULL);
    greeting_end(greeting);
}

void tm_greeting_drop(tm_greeting *greeting)
{
    greeting_fail(greeting, TM_EUSE_LIMIT, "too many unauthenticated connections: the oldest goes");
}

void tm_greetings_drop_all(tumen_node *node)
{
    while (!tm_list_empty(&node->greetings))
        greeting_end(TM_CONTAINER(node->greetings.next, tm_greeting, link));
}

bool tm_node_challenge_known(tumen_node *node, const void *except, uint32_t challenge)
{
    TM_LIST_EACH (&node->greetings, link, following) {
        const tm_greeting *greeting = TM_CONTAINER(link, tm_greeting, link);
        if (greeting != except && tm_handshake_challenge(&greeting->hs) == challenge) return true;
    }
    bool known = false;
    size_t position = 0;
    tm_node_lock_engine(node);
    for (tm_peer *peer; !known && (peer = tm_map_next(&node->peers, &position));) {
        bool open = false;
        if (!peer->attempt || (const void *)peer->attempt == except) continue;
        uint32_t ours = tm_attempt_challenge(peer->attempt, &open);
        known = open && ours == challenge;
    }
    tm_node_unlock(node);
    return known;
}

static void greeting_timeout(tm_timer *timer, uint64_t now_ns)
{
    (void)now_ns;
    tm_greeting *greeting = TM_CONTAINER(timer, tm_greeting, timer);
    if (greeting->over)
        tm_sock_close(&greeting->talk.sock, true);
    else
        greeting_fail(greeting, TM_ETIMEDOUT, "the handshake took too long");
}

/* -- decisions ------------------------------------------------------------------------------------------- */

/* What to answer to a name; cookie is copied into space (the lock is released on return). */
static enum tm_handshake_status greeting_status(tm_greeting *greeting, uint8_t *space,
                                                tm_bytes *cookie)
{
    tumen_node *node = greeting->node;
    tm_bytes name = tm_handshake_peer_name(&greeting->hs);
    enum tm_handshake_status status = TM_HANDSHAKE_OK;
    if (greeting->hs.name_me || tm_bytes_equal(name, tm_node_name(node)) || node->stopping)
        return TM_HANDSHAKE_NOT_ALLOWED;
    tm_node_lock_engine(node);
    tm_bytes found = tm_node_cookie_for(node, name);
    memcpy(space, found.ptr, found.len);
    *cookie = tm_bytes_of(space, found.len);
    tm_peer *peer = tm_node_find_peer(node, name);
    if (peer && peer->state == TM_PEER_UP)
        status = TM_HANDSHAKE_ALIVE;
    else if (peer && peer->attempt)
        status = tm_handshake_simultaneous(tm_node_name(node), name);
    tm_node_unlock(node);
    greeting->alive = status == TM_HANDSHAKE_ALIVE;
    return status;
}

static int greeting_named(tm_greeting *greeting)
{
    uint8_t space[TM_COOKIE_BYTES_MAX];
    tm_bytes cookie = {0};
    enum tm_handshake_status status = greeting_status(greeting, space, &cookie);
    int rc = tm_handshake_answer(&greeting->hs, status, cookie, &greeting->talk.out);
    explicit_bzero(space, sizeof space);
    if (status == TM_HANDSHAKE_NOK) {
        greeting_end(greeting); /* ours goes on: nothing failed */
        return TM_ECLOSED;
    }
    if (status == TM_HANDSHAKE_NOT_ALLOWED) {
        greeting_fail(greeting, TM_EPEER_NAME,
                      greeting->hs.name_me
                          ? "dynamic names are not given out"
                          : "that name is this node's own, or the node is stopping");
        return TM_ECLOSED;
    }
    return rc;
}

/* The peer has the cookie: its earlier connection, or our own attempt, gives way. */
static int greeting_verified(tm_greeting *greeting, tm_bytes input)
{
    tumen_node *node = greeting->node;
    tm_bytes name = tm_handshake_peer_name(&greeting->hs);
    if (tm_node_challenge_known(node, greeting, tm_handshake_peer_challenge(&greeting->hs)))
        return TM_EPEER_REFLECTED;
    tm_node_lock_engine(node);
    tm_peer *peer = tm_node_find_peer(node, name);
    struct tm_connection *old = peer ? peer->conn : NULL;
    struct tm_attempt *attempt = peer ? peer->attempt : NULL;
    tm_node_unlock(node);
    if (old && !greeting->alive) return TM_ECLOSED;
    if (old) tm_connection_close(old, TM_EPEER_CLOSED, "replaced by a new connection of the peer");
    if (attempt) tm_attempt_cancel(attempt);
    int rc = tm_handshake_accept(&greeting->hs, &greeting->talk.out);
    if (!rc) rc = tm_talk_flush(&greeting->talk);
    if (rc) return rc;
    struct tm_established established = {
        .talk = &greeting->talk,
        .name = name,
        .flags = tm_handshake_flags(&greeting->hs),
        .creation = greeting->hs.peer_creation,
        .address = greeting->address,
        .input = input,
    };
    rc = tm_connection_open(node, &established);
    if (rc == 0) greeting_free(greeting);
    return rc;
}

static const char *greeting_why(const tm_greeting *greeting, int rc)
{
    if (greeting->hs.fault.what) return greeting->hs.fault.what;
    return rc == TM_ECLOSED ? "a connection to that node came up meanwhile" : tumen_error_text(rc);
}

static void greeting_received(tm_sock *sock, tm_bytes input)
{
    tm_greeting *greeting = TM_CONTAINER(sock, tm_greeting, talk.sock);
    while (!greeting->over) {
        int event = tm_handshake_feed(&greeting->hs, &input, &greeting->talk.out);
        int rc = event < 0 ? event : 0;
        if (event == TM_HANDSHAKE_NAMED) rc = greeting_named(greeting);
        if (event == TM_HANDSHAKE_VERIFIED) {
            rc = greeting_verified(greeting, input);
            if (rc == 0) return; /* the greeting is a connection now */
        }
        if (!rc && !greeting->over) rc = tm_talk_flush(&greeting->talk);
        if (rc) {
            greeting_fail(greeting, rc, greeting_why(greeting, rc));
            return;
        }
        if (event == TM_HANDSHAKE_MORE) return;
    }
}

/* -- completions ---------------------------------------------------------------------------------------------- */

static void greeting_read_ended(tm_sock *sock, int rc)
{
    tm_greeting *greeting = TM_CONTAINER(sock, tm_greeting, talk.sock);
    greeting_fail(greeting, rc ? rc : TM_EPEER_CLOSED, "the peer closed during the handshake");
}

static void greeting_sent(tm_sock *sock, ssize_t rc)
{
    tm_greeting *greeting = TM_CONTAINER(sock, tm_greeting, talk.sock);
    int broken = tm_talk_sent(&greeting->talk, rc);
    if (broken && greeting->over)
        tm_sock_close(sock, true);
    else if (broken)
        greeting_fail(greeting, broken, "the connection broke in the handshake");
}

static void greeting_closed(tm_sock *sock)
{
    greeting_free(TM_CONTAINER(sock, tm_greeting, talk.sock));
}

static const tm_sock_ops GREETING_OPS = {
    .received = greeting_received,
    .read_ended = greeting_read_ended,
    .sent = greeting_sent,
    .closed = greeting_closed,
};

/* -- the listener ----------------------------------------------------------------------------------------------- */

static int greeting_begin(tumen_node *node, tm_greeting *greeting)
{
    tumen_engine *engine = node->engine;
    tm_handshake_config config = {
        .name = tm_node_name(node),
        .creation = node->creation,
        .flags = node->flags,
        .challenge = (uint32_t)tm_engine_random_u64(engine),
    };
    int rc = tm_handshake_init(&greeting->hs, TM_HANDSHAKE_ACCEPTOR, &config);
    if (!rc) rc = engine->io->ops->read_start(engine->io, greeting->talk.sock.id);
    return rc;
}

static void listener_accepted(tm_sock *sock, tm_io_id id, const tm_io_address *peer)
{
    tumen_node *node = TM_CONTAINER(sock, tumen_node, listener);
    tumen_engine *engine = node->engine;
    tm_greeting *greeting = node->stopping ? NULL : tm_alloc_zero(&engine->alloc, sizeof *greeting);
    if (!greeting) {
        engine->io->ops->close(engine->io, id, true);
        return;
    }
    tm_talk_init(&greeting->talk, engine, &GREETING_OPS);
    greeting->node = node;
    greeting->address = *peer;
    greeting->timer.fire = greeting_timeout;
    node->object_count++;
    node->greeting_count++;
    tm_list_push(&node->greetings, &greeting->link);
    if (tm_engine_adopt(engine, &greeting->talk.sock, id)) {
        greeting->talk.sock.id = 0;
        engine->io->ops->close(engine->io, id, true);
        greeting_end(greeting);
        return;
    }
    uint64_t timeout = tm_node_limit(node, TUMEN_LIMIT_HANDSHAKE_MS) * TM_MS_NS;
    tm_timer_arm(&engine->wheel, &greeting->timer, engine->now_ns + timeout);
    int rc = greeting_begin(node, greeting);
    if (rc) greeting_fail(greeting, rc, tumen_error_text(rc));
    if (node->greeting_count > tm_node_limit(node, TUMEN_LIMIT_HALF_OPEN_COUNT))
        tm_greeting_drop(TM_CONTAINER(node->greetings.next, tm_greeting, link));
}

static void listener_closed(tm_sock *sock)
{
    tm_node_object_closed(TM_CONTAINER(sock, tumen_node, listener));
}

const tm_sock_ops tm_listener_ops = {
    .accepted = listener_accepted,
    .closed = listener_closed,
};
