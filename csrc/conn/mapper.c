#include "mapper.h"

#include <netinet/in.h>
#include <time.h>

#include "../dist/epmd.h"

/* Connections waiting to be accepted: a cluster that comes back asks all at once. */
#define MAPPER_BACKLOG 1024
/* A connection without a complete request is closed after this, ms: as OTP's epmd. */
#define MAPPER_IDLE_MS 60000

typedef struct tm_mapper {
    tm_sock listener;
    tumen_engine *engine;
    tm_epmd_registry registry;
    tm_list clients;
    uint64_t client_count;
} tm_mapper;

typedef struct mapper_client {
    tm_talk talk;
    tm_list link;
    tm_mapper *mapper;
    tm_timer timer;
    tm_epmd_session session;
} mapper_client;

static const tm_sock_ops CLIENT_OPS;

static void client_free(mapper_client *client)
{
    tumen_engine *engine = client->mapper->engine;
    tm_timer_cancel(&engine->wheel, &client->timer);
    tm_epmd_session_fini(&client->session);
    tm_list_remove(&client->link);
    tm_talk_fini(&client->talk);
    tm_alloc_free(&engine->alloc, client, sizeof *client);
}

static void client_timeout(tm_timer *timer, uint64_t now_ns)
{
    (void)now_ns;
    mapper_client *client = TM_CONTAINER(timer, mapper_client, timer);
    tm_sock_close(&client->talk.sock, true);
}

static void client_received(tm_sock *sock, tm_bytes bytes)
{
    mapper_client *client = TM_CONTAINER(sock, mapper_client, talk.sock);
    if (client->talk.closing) return;
    int action = tm_epmd_session_feed(&client->session, bytes, &client->talk.out);
    if (action == TM_EPMD_WAIT) return;
    if (action == TM_EPMD_REGISTERED) {
        tm_timer_cancel(&client->mapper->engine->wheel, &client->timer);
        if (tm_talk_flush(&client->talk) == 0) return;
    }
    tm_talk_finish(&client->talk);
}

static void client_read_ended(tm_sock *sock, int rc)
{
    (void)rc;
    mapper_client *client = TM_CONTAINER(sock, mapper_client, talk.sock);
    tm_epmd_session_fini(&client->session); /* the name is free from now on */
    tm_sock_close(sock, false);
}

static void client_sent(tm_sock *sock, ssize_t rc)
{
    mapper_client *client = TM_CONTAINER(sock, mapper_client, talk.sock);
    if (tm_talk_sent(&client->talk, rc) != 0) tm_sock_close(sock, true);
}

static void client_closed(tm_sock *sock)
{
    client_free(TM_CONTAINER(sock, mapper_client, talk.sock));
}

static const tm_sock_ops CLIENT_OPS = {
    .received = client_received,
    .read_ended = client_read_ended,
    .sent = client_sent,
    .closed = client_closed,
};

/* 127/8, ::1, an IPv4 loopback in IPv6 clothes: who may register. */
static bool address_is_local(const tm_io_address *address)
{
    if (address->storage.ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)&address->storage;
        return (ntohl(v4->sin_addr.s_addr) >> 24) == 127;
    }
    const struct in6_addr *v6 = &((const struct sockaddr_in6 *)&address->storage)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(v6) || (IN6_IS_ADDR_V4MAPPED(v6) && v6->s6_addr[12] == 127);
}

static void mapper_accepted(tm_sock *sock, tm_io_id id, const tm_io_address *peer)
{
    tm_mapper *mapper = TM_CONTAINER(sock, tm_mapper, listener);
    tumen_engine *engine = mapper->engine;
    mapper_client *client = tm_alloc_zero(&engine->alloc, sizeof *client);
    if (!client) {
        engine->io->ops->close(engine->io, id, true);
        return;
    }
    tm_talk_init(&client->talk, engine, &CLIENT_OPS);
    client->mapper = mapper;
    client->timer.fire = client_timeout;
    tm_epmd_session_init(&client->session, &mapper->registry, ++mapper->client_count,
                         address_is_local(peer));
    tm_list_push(&mapper->clients, &client->link);
    if (tm_engine_adopt(engine, &client->talk.sock, id)) {
        engine->io->ops->close(engine->io, id, true);
        client_free(client);
        return;
    }
    tm_timer_arm(&engine->wheel, &client->timer, engine->now_ns + MAPPER_IDLE_MS * TM_MS_NS);
    if (engine->io->ops->read_start(engine->io, id) != 0) tm_sock_close(&client->talk.sock, true);
}

static void mapper_closed(tm_sock *sock)
{
    (void)sock; /* only the end of the engine closes the listener; the mapper is freed with it */
}

static const tm_sock_ops MAPPER_OPS = {
    .accepted = mapper_accepted,
    .closed = mapper_closed,
};

int tm_mapper_start(tumen_engine *engine, const char *host, uint16_t port)
{
    if (engine->mapper) return TM_EUSE_STATE;
    tm_io_address address, bound;
    int rc = tm_resolve_literal(host, port, &address);
    if (rc) return rc;
    tm_mapper *mapper = tm_alloc_zero(&engine->alloc, sizeof *mapper);
    if (!mapper) return TM_ENOMEM;
    mapper->engine = engine;
    mapper->listener.ops = &MAPPER_OPS;
    tm_list_init(&mapper->clients);
    tm_io_id id;
    rc = engine->io->ops->listen(engine->io, &address, MAPPER_BACKLOG, &id, &bound);
    if (!rc && (rc = tm_engine_adopt(engine, &mapper->listener, id)))
        engine->io->ops->close(engine->io, id, true);
    if (rc) {
        tm_alloc_free(&engine->alloc, mapper, sizeof *mapper);
        return rc;
    }
    tm_epmd_registry_init(&mapper->registry, &engine->alloc, tm_resolve_port(&bound),
                          (uint32_t)time(NULL), engine->seed);
    engine->mapper = mapper;
    return 0;
}

void tm_mapper_free(tumen_engine *engine)
{
    tm_mapper *mapper = engine->mapper;
    if (!mapper) return;
    while (!tm_list_empty(&mapper->clients))
        client_free(TM_CONTAINER(mapper->clients.next, mapper_client, link));
    tm_epmd_registry_fini(&mapper->registry);
    engine->mapper = NULL;
    tm_alloc_free(&engine->alloc, mapper, sizeof *mapper);
}
