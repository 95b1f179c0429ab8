/* Greetings: inbound sockets until their handshake is verified. Strangers, all of them.
 *
 * Nothing of a stranger is kept but this object; the name it says claims nothing until its digest is right.
 * Their number is bounded: the oldest goes first, since an honest handshake takes milliseconds.
 *
 * Two nodes that dial each other at once need exactly one connection (protocol.md 2.2). An attempt of ours
 * counts from when its name is on the wire. A peer that comes later is told `nok` if our name is greater,
 * else `ok_simultaneous`, and then its handshake ends our attempt. A verified handshake may have to wait:
 *
 * - If our name is greater, a peer that came earlier was told `ok`, and gives its own attempt up as soon as
 *   it has read our name: its handshake is put off until ours has gone one way or the other. Accepted at
 *   once, it could be a socket that the peer has just closed.
 * - If our name is less, until the peer has answered our name (`nok`, as a rule). A BEAM that reads a name
 *   when the connection is up already, or has even ended again, takes it for a new connection: it tells
 *   `nok` to the real next one, and when it finds the socket closed it throws away what its processes
 *   have sent meanwhile. A peer that dials before it listens never answers: the wait is bounded. */
#include <stdio.h>

#include "../dist/handshake.h"
#include "node.h"

/* Part of the limit of a handshake for which a verified one waits for the peer's answer to our own name:
 * a busy BEAM needs some milliseconds, a peer that answers one socket at a time never comes to it. */
#define ANSWER_WAIT_DIVISOR 4

/* What a verified handshake waits for. */
enum greeting_hold {
    HOLD_NONE,
    HOLD_ANSWER, /* the peer's answer to the name that our attempt has said */
    HOLD_END,    /* the end of our attempt */
};

typedef struct tm_greeting {
    tm_talk talk;
    tm_list link; /* in node->greetings, oldest first */
    tumen_node *node;
    tm_timer timer;
    tm_io_address address;
    tm_handshake hs;
    bool alive;      /* the peer insisted on replacing its connection */
    uint8_t hold;    /* enum greeting_hold: verified, and put off for our own attempt */
    bool waited;     /* long enough for the answer */
    tm_given *given; /* it asked for a name, and this is it */
    bool over;       /* given up: only the socket's end is awaited */
} tm_greeting;

static const tm_sock_ops GREETING_OPS;

static void greeting_resume(tm_greeting *greeting);

static void greeting_free(tm_greeting *greeting)
{
    tumen_node *node = greeting->node;
    tm_timer_cancel(&node->engine->wheel, &greeting->timer);
    if (tm_list_linked(&greeting->link)) {
        tm_list_remove(&greeting->link);
        node->greeting_count--;
    }
    tm_node_challenge_forget(node, &greeting->hs);
    tm_handshake_fini(&greeting->hs);
    if (greeting->given) {
        tm_node_lock_engine(node);
        tm_node_return_name(node, greeting->given);
        tm_node_unlock(node);
    }
    tm_talk_fini(&greeting->talk);
    tm_alloc_free(&node->engine->alloc, greeting, sizeof *greeting);
    tm_node_object_closed(node);
}

/* Gives it up, after what is still to be said. */
static void greeting_end(tm_greeting *greeting)
{
    if (greeting->over) return;
    greeting->over = true;
    tm_node_challenge_forget(greeting->node, &greeting->hs);
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
    tumen_node *node = greeting->node;
    tm_bytes name = tm_handshake_peer_name(&greeting->hs);
    tm_node_lock_engine(node);
    tm_peer *peer = tm_node_find_peer(node, name);
    tm_node_event(node,
                  &(tumen_event){.kind = TUMEN_EVENT_HANDSHAKE_FAILED,
                                 .node = tm_public(name),
                                 .code = code,
                                 .text = {(const uint8_t *)text, strlen(text)}},
                  NULL);
    /* Our own attempt has failed, and this one was waited for: only then does the peer stay. */
    bool waited = peer && peer->wait_code;
    tm_node_unlock(node);
    greeting_end(greeting);
    if (waited && !tm_greetings_expect(node, peer->name)) tm_peer_give_up(peer);
}

static bool greeting_is_of(const tm_greeting *greeting, tm_bytes name)
{
    return tm_bytes_equal(tm_handshake_peer_name(&greeting->hs), name);
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

static void greeting_timeout(tm_timer *timer, uint64_t now_ns)
{
    (void)now_ns;
    tm_greeting *greeting = TM_CONTAINER(timer, tm_greeting, timer);
    if (greeting->over)
        tm_sock_close(&greeting->talk.sock, true);
    else if (greeting->hold == HOLD_ANSWER)
        greeting_resume(greeting);
    else
        greeting_fail(greeting, TM_ETIMEDOUT, "the handshake took too long");
}

/* -- decisions ------------------------------------------------------------------------------------------- */

/* Why nobody of that name gets in, or NULL. Under the lock. */
static const char *greeting_barred(const tm_greeting *greeting)
{
    tumen_node *node = greeting->node;
    tm_bytes name = tm_handshake_peer_name(&greeting->hs);
    if (node->stopping) return "the node is stopping";
    if (!node->named) return "this node has no name yet";
    if (tm_bytes_equal(name, tm_node_name(node))) return "that name is this node's own";
    return tm_node_allows(node, name) ? NULL : "that node is not on the allowed list";
}

/* What to answer to a name. Under the lock. */
static enum tm_handshake_status greeting_status(tm_greeting *greeting)
{
    tumen_node *node = greeting->node;
    tm_bytes name = tm_handshake_peer_name(&greeting->hs);
    const tm_peer *peer = tm_node_find_peer(node, name);
    greeting->alive = peer && peer->state == TM_PEER_UP;
    if (greeting->alive) return TM_HANDSHAKE_ALIVE;
    if (!peer || !peer->attempt || !tm_attempt_is_known(peer->attempt)) return TM_HANDSHAKE_OK;
    return tm_handshake_simultaneous(tm_node_name(node), name);
}

/* Answers a peer that asked for a name. Under the lock. */
static int greeting_give(tm_greeting *greeting)
{
    tumen_node *node = greeting->node;
    greeting->given = tm_node_give_name(node, tm_handshake_peer_name(&greeting->hs));
    if (!greeting->given) return TM_ENOMEM;
    tm_bytes name = greeting->given->name;
    return tm_handshake_answer_named(&greeting->hs, name, greeting->given->creation,
                                     tm_node_cookie_for(node, name), &greeting->talk.out);
}

static int greeting_named(tm_greeting *greeting)
{
    tumen_node *node = greeting->node;
    tm_handshake *hs = &greeting->hs;
    enum tm_handshake_status status = TM_HANDSHAKE_NOT_ALLOWED;
    int rc;
    tm_node_lock_engine(node);
    const char *barred = greeting_barred(greeting);
    if (!barred && hs->name_me) {
        rc = greeting_give(greeting);
    } else {
        tm_bytes cookie = tm_node_cookie_for(node, tm_handshake_peer_name(hs));
        if (!barred) status = greeting_status(greeting);
        rc = tm_handshake_answer(hs, status, cookie, &greeting->talk.out);
    }
    tm_node_unlock(node);
    if (barred) {
        greeting_fail(greeting, TM_EPEER_NAME, barred);
        return TM_ECLOSED;
    }
    if (status == TM_HANDSHAKE_NOK) {
        greeting_end(greeting); /* ours goes on: nothing failed */
        return TM_ECLOSED;
    }
    return rc;
}

/* What greeting_verified answers when the decision is put off. */
#define GREETING_HELD 1

/* What of our own attempt has to be waited for. */
static enum greeting_hold greeting_awaits(const tm_greeting *greeting,
                                          const struct tm_attempt *attempt)
{
    if (!attempt || !tm_attempt_is_known(attempt)) return HOLD_NONE;
    tm_bytes name = tm_handshake_peer_name(&greeting->hs);
    if (tm_handshake_simultaneous(tm_node_name(greeting->node), name) == TM_HANDSHAKE_NOK)
        return HOLD_END;
    return tm_attempt_is_answered(attempt) || greeting->waited ? HOLD_NONE : HOLD_ANSWER;
}

/* Puts the decision off. */
static void greeting_put_off(tm_greeting *greeting, enum greeting_hold hold)
{
    tumen_node *node = greeting->node;
    greeting->hold = (uint8_t)hold;
    if (hold != HOLD_ANSWER) return;
    greeting->waited = true;
    uint64_t wait = tm_node_limit(node, TUMEN_LIMIT_HANDSHAKE_MS) * TM_MS_NS / ANSWER_WAIT_DIVISOR;
    uint64_t end = node->engine->now_ns + wait;
    if (end < greeting->timer.deadline_ns)
        tm_timer_arm(&node->engine->wheel, &greeting->timer, end);
}

/* The peer has the cookie: its earlier connection, or our own attempt, gives way. */
static int greeting_verified(tm_greeting *greeting, tm_bytes input)
{
    tumen_node *node = greeting->node;
    tm_bytes name = tm_handshake_peer_name(&greeting->hs);
    if (tm_node_challenge_known(node, &greeting->hs)) return TM_EPEER_REFLECTED;
    tm_node_lock_engine(node);
    tm_peer *peer = tm_node_find_peer(node, name);
    struct tm_connection *old = peer ? peer->conn : NULL;
    struct tm_attempt *attempt = peer ? peer->attempt : NULL;
    tm_node_unlock(node);
    if (old && !greeting->alive) return TM_ECLOSED;
    enum greeting_hold hold = greeting_awaits(greeting, attempt);
    if (hold) {
        greeting_put_off(greeting, hold);
        return input.len ? TM_EPEER_MALFORMED : GREETING_HELD; /* nothing may come before our ack */
    }
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
        .given = greeting->given,
    };
    rc = tm_connection_open(node, &established);
    if (rc) return rc;
    greeting->given = NULL;
    greeting_free(greeting);
    return 0;
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
            if (greeting->hold && !input.len) return;
            rc = greeting->hold ? TM_EPEER_MALFORMED : greeting_verified(greeting, input);
            if (rc == 0 || rc == GREETING_HELD) return; /* it is a connection now, or waits */
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
    tumen_node *node = greeting->node;
    tm_node_lock_engine(node);
    const tm_peer *peer = tm_node_find_peer(node, tm_handshake_peer_name(&greeting->hs));
    bool given_up = peer && (peer->attempt || peer->conn);
    /* Not a byte: a probe of the port, or a peer whose attempt our own has overtaken. */
    bool silent = greeting->hs.state == TM_HS_A_NAME && !greeting->hs.prefix_len;
    tm_node_unlock(node);
    if (given_up || silent)
        greeting_end(greeting); /* two connections at once were one too many: nothing failed */
    else
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

/* -- beside an attempt of our own --------------------------------------------------------------------------- */

bool tm_greetings_expect(tumen_node *node, tm_bytes name)
{
    TM_LIST_EACH (&node->greetings, link, following) {
        if (greeting_is_of(TM_CONTAINER(link, tm_greeting, link), name)) return true;
    }
    return false;
}

/* What was put off is decided. It is gone then, or over, or waits for something else. */
static void greeting_resume(tm_greeting *greeting)
{
    greeting->hold = HOLD_NONE;
    int rc = greeting_verified(greeting, (tm_bytes){0});
    if (rc < 0) greeting_fail(greeting, rc, greeting_why(greeting, rc));
}

void tm_greetings_resume(tumen_node *node, tm_bytes name)
{
    TM_LIST_EACH (&node->greetings, link, following) {
        tm_greeting *greeting = TM_CONTAINER(link, tm_greeting, link);
        if (!greeting->hold || !greeting_is_of(greeting, name)) continue;
        greeting_resume(greeting);
        return; /* one at most can be the connection; the list may have changed */
    }
}

void tm_greetings_yield(tumen_node *node, tm_bytes name)
{
    TM_LIST_EACH (&node->greetings, link, following) {
        tm_greeting *greeting = TM_CONTAINER(link, tm_greeting, link);
        if (!greeting->alive && greeting_is_of(greeting, name)) greeting_end(greeting);
    }
}

/* -- the listener ----------------------------------------------------------------------------------------------- */

static int greeting_begin(tumen_node *node, tm_greeting *greeting)
{
    tumen_engine *engine = node->engine;
    tm_handshake_config config = {
        .name = tm_node_name(node),
        .creation = node->creation,
        .flags = node->flags,
        .challenge = tm_node_challenge_draw(node),
    };
    int rc = tm_handshake_init(&greeting->hs, TM_HANDSHAKE_ACCEPTOR, &config);
    if (!rc) rc = tm_node_challenge_add(node, &greeting->hs);
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
