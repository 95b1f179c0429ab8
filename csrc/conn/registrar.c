/* The registrar: keeps a node registered with its port mapper.
 *
 * The registration lives as long as its connection, so that is kept open and made again when it ends: at
 * most TM_EPMD_RETRY_MS later, by TUMEN_EPMD_USE through a port mapper of our own if nobody else serves. */
#include <errno.h>
#include <stdio.h>

#include "../dist/epmd.h"
#include "mapper.h"
#include "node.h"

typedef struct tm_registrar {
    tm_talk talk;
    tumen_node *node;
    tm_timer timer; /* next try, or the deadline of this one */
    tm_epmd_reader reader;
    bool waiting; /* the reader is in use */
    bool ended;   /* of this try */
    bool stopping;
    int told; /* last failure that was told, so that the same one is told once */
    bool serves;
} tm_registrar;

static const tm_sock_ops REGISTRAR_OPS;

static void registrar_free(tm_registrar *registrar)
{
    tumen_node *node = registrar->node;
    tm_timer_cancel(&node->engine->wheel, &registrar->timer);
    if (registrar->waiting) tm_epmd_reader_fini(&registrar->reader);
    tm_talk_fini(&registrar->talk);
    node->registrar = NULL;
    tm_alloc_free(&node->engine->alloc, registrar, sizeof *registrar);
    tm_node_object_closed(node);
}

static void registrar_retry(tm_registrar *registrar)
{
    tumen_engine *engine = registrar->node->engine;
    tm_timer_arm(&engine->wheel, &registrar->timer, engine->now_ns + TM_EPMD_RETRY_MS * TM_MS_NS);
}

/* This try, or the registration, has ended: again after a pause. */
static void registrar_end(tm_registrar *registrar, int code, const char *text)
{
    tumen_node *node = registrar->node;
    if (registrar->ended) return;
    registrar->ended = true;
    node->registered = false;
    if (registrar->told != code && !registrar->stopping) {
        registrar->told = code;
        tm_node_event(node,
                      &(tumen_event){.kind = TUMEN_EVENT_REGISTER_FAILED,
                                     .code = code,
                                     .text = {(const uint8_t *)text, strlen(text)}},
                      NULL);
    }
    if (!tm_sock_close(&registrar->talk.sock, false)) registrar_retry(registrar);
}

static void registrar_try(tm_registrar *registrar)
{
    tumen_node *node = registrar->node;
    tumen_engine *engine = node->engine;
    tm_io_address address;
    registrar->ended = false;
    registrar->talk.out.len = registrar->talk.writing.len = 0;
    registrar->talk.in_flight = false;
    tm_timer_arm(&engine->wheel, &registrar->timer, engine->now_ns + TM_EPMD_TIMEOUT_MS * TM_MS_NS);
    tm_io_id id = 0;
    int rc = tm_resolve_literal(node->epmd_host, node->epmd_port, &address);
    if (!rc) rc = engine->io->ops->connect(engine->io, &address, &id);
    if (!rc && (rc = tm_engine_adopt(engine, &registrar->talk.sock, id))) {
        registrar->talk.sock.id = 0;
        engine->io->ops->close(engine->io, id, true);
    }
    if (rc) registrar_end(registrar, rc, "cannot reach the port mapper");
}

static void registrar_timer(tm_timer *timer, uint64_t now_ns)
{
    (void)now_ns;
    tm_registrar *registrar = TM_CONTAINER(timer, tm_registrar, timer);
    if (registrar->talk.sock.id)
        registrar_end(registrar, TM_ETIMEDOUT, "the port mapper did not answer in time");
    else
        registrar_try(registrar);
}

/* Nobody serves: become the port mapper. Another node may be quicker; then it is asked again. */
static bool registrar_serve(tm_registrar *registrar)
{
    tumen_node *node = registrar->node;
    if (node->epmd_mode != TUMEN_EPMD_USE) return false;
    int rc = tm_mapper_start(node->engine, node->epmd_host, node->epmd_port);
    if (rc) return rc == -EADDRINUSE;
    registrar->serves = true;
    return true;
}

static void registrar_connected(tm_sock *sock, int rc)
{
    tm_registrar *registrar = TM_CONTAINER(sock, tm_registrar, talk.sock);
    tumen_node *node = registrar->node;
    if (rc == -ECONNREFUSED && registrar_serve(registrar)) {
        registrar->ended = true;
        tm_sock_close(sock, false);
        return;
    }
    if (rc) {
        registrar_end(registrar, rc, "there is no port mapper");
        return;
    }
    const uint8_t *at = memchr(node->name, '@', node->name_len);
    tm_bytes name = tm_bytes_of(node->name, (size_t)(at - (const uint8_t *)node->name));
    tm_epmd_node self = tm_epmd_node_of(name, node->port);
    if (registrar->waiting) tm_epmd_reader_fini(&registrar->reader);
    tm_epmd_reader_init(&registrar->reader, TM_EPMD_REGISTER, (tm_bytes){0}, &node->engine->alloc);
    registrar->waiting = true;
    tm_io *io = node->engine->io;
    rc = tm_epmd_write_register(&registrar->talk.out, &self);
    if (!rc) rc = tm_talk_flush(&registrar->talk);
    if (!rc) rc = io->ops->read_start(io, sock->id);
    if (rc) registrar_end(registrar, rc, "cannot ask the port mapper");
}

static void registrar_received(tm_sock *sock, tm_bytes bytes)
{
    tm_registrar *registrar = TM_CONTAINER(sock, tm_registrar, talk.sock);
    tumen_node *node = registrar->node;
    if (registrar->ended) return;
    int rc = tm_epmd_reader_feed(&registrar->reader, bytes);
    if (rc == TM_NEED_DATA) return;
    if (rc == TM_EPEER_REFUSED) {
        registrar_end(registrar, TM_ENAME_TAKEN, "the name is registered by another node");
        return;
    }
    if (rc) {
        registrar_end(registrar, rc, "the port mapper gave no usable answer");
        return;
    }
    /* Our creation stays what it was from the start: peers learn it in the handshake only. */
    tm_timer_cancel(&node->engine->wheel, &registrar->timer);
    node->registered = true;
    registrar->told = 0;
    tm_node_event(node, &(tumen_event){.kind = TUMEN_EVENT_REGISTERED, .number = registrar->serves},
                  NULL);
}

static void registrar_read_ended(tm_sock *sock, int rc)
{
    tm_registrar *registrar = TM_CONTAINER(sock, tm_registrar, talk.sock);
    registrar_end(registrar, rc ? rc : TM_EPEER_CLOSED, "the port mapper has gone");
}

static void registrar_sent(tm_sock *sock, ssize_t rc)
{
    tm_registrar *registrar = TM_CONTAINER(sock, tm_registrar, talk.sock);
    int broken = tm_talk_sent(&registrar->talk, rc);
    if (broken) registrar_end(registrar, broken, "the connection to the port mapper broke");
}

static void registrar_closed(tm_sock *sock)
{
    tm_registrar *registrar = TM_CONTAINER(sock, tm_registrar, talk.sock);
    if (registrar->stopping) {
        registrar_free(registrar);
        return;
    }
    /* At once when the mapper has gone or is ours now: a node that nobody can find is down. */
    bool at_once = registrar->told == 0 || registrar->told == TM_EPEER_CLOSED;
    if (at_once && registrar->serves)
        registrar_try(registrar);
    else
        registrar_retry(registrar);
}

static const tm_sock_ops REGISTRAR_OPS = {
    .connected = registrar_connected,
    .received = registrar_received,
    .read_ended = registrar_read_ended,
    .sent = registrar_sent,
    .closed = registrar_closed,
};

int tm_registrar_start(tumen_node *node)
{
    tumen_engine *engine = node->engine;
    tm_registrar *registrar = tm_alloc_zero(&engine->alloc, sizeof *registrar);
    if (!registrar) return TM_ENOMEM;
    tm_talk_init(&registrar->talk, engine, &REGISTRAR_OPS);
    registrar->node = node;
    registrar->timer.fire = registrar_timer;
    node->registrar = registrar;
    node->object_count++;
    registrar_try(registrar);
    return 0;
}

void tm_registrar_stop(tumen_node *node)
{
    tm_registrar *registrar = node->registrar;
    if (!registrar || registrar->stopping) return;
    registrar->stopping = true;
    registrar->ended = true;
    node->registered = false;
    tm_timer_cancel(&node->engine->wheel, &registrar->timer);
    if (!tm_sock_close(&registrar->talk.sock, false)) registrar_free(registrar);
}
