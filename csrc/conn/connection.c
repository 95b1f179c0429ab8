#include "connection.h"

#include <stdio.h>

#include "../base/check.h"

static void connection_invariants(const tm_connection *conn)
{
    TM_DCHECK(conn->node);
    TM_DCHECK(!conn->peer || !conn->down);
    TM_DCHECK(conn->iov_next <= conn->iov_count);
    (void)conn;
}

/* -- ticks ------------------------------------------------------------------------------------------ */

static uint64_t tick_interval_ns(const tumen_node *node)
{
    return tm_node_limit(node, TUMEN_LIMIT_TICK_TIME_MS) * TM_MS_NS / TM_TICK_INTENSITY;
}

/* A frame without content. */
#define TICK_BYTES ((uint64_t)4)

static void connection_tick(tm_connection *conn)
{
    /* A write that the peer does not take in is no reason for a tick: it could not get past it. */
    tumen_node *node = conn->node;
    tm_node_lock_engine(node);
    /* Without memory the next check tries again: four are missed before a peer gives up. */
    tm_entry *tick = conn->peer->sending ? NULL : tm_entry_create(&node->entries, 0, 0);
    if (tick) {
        tick->op = TM_ENTRY_TICK;
        TM_ATOMIC_ADD(&node->sendq_bytes, tick->weight);
        tm_sendq_push_front(&conn->peer->queue, tick);
        TM_ATOMIC_ADD(&conn->ticks_out, 1);
    }
    tm_node_unlock(node);
    if (tick) tm_connection_write(conn);
}

/* net_kernel's rule (protocol.md 3.1): every quarter of the tick time, tick if nothing was written or,
 * on a hidden connection, nothing read; down when nothing whole came for four checks in a row. */
static void tick_check(tm_timer *timer, uint64_t now_ns)
{
    tm_connection *conn = TM_CONTAINER(timer, tm_connection, tick_timer);
    connection_invariants(conn);
    if (conn->close_by_ns && now_ns >= conn->close_by_ns) {
        tm_connection_close(conn, TM_ECLOSED, conn->drain_text);
        return;
    }
    uint64_t interval = tick_interval_ns(conn->node);
    /* After a stop of this process the bytes of the peer still wait in the kernel: read first. */
    bool late = now_ns > timer->deadline_ns + interval;
    tm_timer_arm(&conn->node->engine->wheel, timer, now_ns + interval);
    uint64_t frames = conn->frames_in + conn->ticks_in;
    bool heard = frames != conn->seen_frames;
    conn->seen_frames = frames;
    conn->silent = heard || late ? 0 : conn->silent + 1;
    if (conn->silent >= TM_TICK_INTENSITY) {
        tm_connection_close(conn, TM_EPEER_TICK, "net_tick_timeout");
        return;
    }
    uint64_t patience = TM_SEQUENCE_IDLE_TICK_TIMES * TM_TICK_INTENSITY * interval;
    if (tm_fragments_idle_ns(&conn->fragments, now_ns) > patience) {
        tm_connection_close(conn, TM_EPEER_LIMIT, "a message in fragments was not finished");
        return;
    }
    /* Our own ticks do not count: else every other check would find that something was written. */
    uint64_t bytes_out = conn->bytes_out - TICK_BYTES * conn->ticks_out;
    bool wrote = bytes_out != conn->seen_bytes_out;
    bool hidden = !(conn->flags & TM_DFLAG(PUBLISHED));
    conn->seen_bytes_out = bytes_out;
    if (!wrote || (hidden && !heard)) connection_tick(conn);
}

void tm_connection_retime_link(tm_list *link)
{
    tm_connection *conn = TM_CONTAINER(link, tm_connection, link);
    if (conn->down || conn->close_by_ns) return;
    uint64_t due_ns = conn->node->engine->now_ns + tick_interval_ns(conn->node);
    conn->silent = 0;
    if (due_ns < conn->tick_timer.deadline_ns)
        tm_timer_arm(&conn->node->engine->wheel, &conn->tick_timer, due_ns);
}

/* -- life ---------------------------------------------------------------------------------------------- */

static void connection_free(tm_connection *conn)
{
    const tm_alloc *alloc = &conn->node->engine->alloc;
    tm_engine_forget(conn->node->engine, &conn->resume);
    tm_framer_fini(&conn->framer);
    tm_fragments_fini(&conn->fragments);
    tm_atom_cache_fini(&conn->atoms);
    tm_buf_fini(&conn->out);
    tm_alloc_free(alloc, conn->atoms_out, sizeof *conn->atoms_out);
    tm_buf_fini(&conn->carried);
    tm_source_unref(conn->source);
    tm_list_remove(&conn->link);
    tm_alloc_free(alloc, conn, sizeof *conn);
}

static void connection_closed(tm_sock *sock)
{
    tm_connection *conn = TM_CONTAINER(sock, tm_connection, sock);
    tumen_node *node = conn->node;
    tm_node_lock_engine(node);
    /* The kernel never answered for this write: its memory is ours again with the socket. */
    while (conn->writing) {
        tm_entry *entry = conn->writing;
        conn->writing = entry->next;
        for (size_t i = 0; i < entry->part_count; i++)
            if (entry->parts[i].lent)
                tm_node_event(node,
                              &(tumen_event){.kind = TUMEN_EVENT_RETURNED,
                                             .number = (int64_t)entry->parts[i].lent},
                              NULL);
        tm_entry_free(&node->entries, entry);
    }
    tm_node_unlock(node);
    connection_free(conn);
    tm_node_object_closed(node);
}

static void connection_read_ended(tm_sock *sock, int rc)
{
    tm_connection *conn = TM_CONTAINER(sock, tm_connection, sock);
    char text[64] = "connection_closed";
    if (rc) snprintf(text, sizeof text, "connection_closed: errno %d", -rc);
    tm_connection_close(conn, TM_EPEER_CLOSED, text);
}

static const tm_sock_ops CONNECTION_OPS = {
    .received = tm_connection_received,
    .read_ended = connection_read_ended,
    .sent = tm_connection_sent,
    .closed = connection_closed,
};

/* Takes over what the handshake was still sending. */
static void connection_carry(tm_connection *conn, tm_talk *talk)
{
    TM_ASSERT(talk->out.len == 0);
    conn->carried = talk->writing;
    conn->carried_done = talk->written;
    tm_buf_init(&talk->writing, talk->writing.alloc, talk->writing.max);
    conn->peer->sending = talk->in_flight;
    talk->in_flight = false;
    if (!conn->peer->sending) tm_buf_fini(&conn->carried);
}

static tm_connection *connection_create(tumen_node *node, const struct tm_established *established)
{
    tumen_engine *engine = node->engine;
    tm_connection *conn = tm_alloc_zero(&engine->alloc, sizeof *conn);
    if (!conn) return NULL;
    conn->node = node;
    conn->sock.ops = &CONNECTION_OPS;
    conn->epoch = ++engine->epochs;
    conn->flags = established->flags;
    conn->creation = established->creation;
    conn->up_ns = engine->now_ns;
    conn->tick_timer.fire = tick_check;
    conn->drain_text = "the node stopped";
    conn->resume.run = tm_connection_resume;
    tm_resolve_format(&established->address, conn->address, sizeof conn->address);
    tm_framer_init(&conn->framer, &engine->alloc, 0); /* the limit is set with every read */
    tm_atom_cache_init(&conn->atoms, &engine->atoms);
    tm_fragments_init(&conn->fragments, &engine->atoms);
    tm_buf_init(&conn->out, &engine->alloc, 0);
    tm_buf_init(&conn->carried, &engine->alloc, 0);
    conn->source = tm_source_create(&engine->alloc, conn->epoch);
    if (conn->source) return conn;
    tm_alloc_free(&engine->alloc, conn, sizeof *conn);
    return NULL;
}

/* Ticks of ten thousand connections that came up together are spread over an interval. */
static void connection_arm_ticks(tm_connection *conn)
{
    tumen_engine *engine = conn->node->engine;
    uint64_t interval = tick_interval_ns(conn->node);
    uint64_t phase = interval ? tm_engine_random_u64(engine) % interval : 0;
    tm_timer_arm(&engine->wheel, &conn->tick_timer, engine->now_ns + interval / 2 + phase / 2);
}

int tm_connection_open(tumen_node *node, const struct tm_established *established)
{
    tm_connection *conn = connection_create(node, established);
    if (!conn) return TM_ENOMEM;
    tm_node_lock_engine(node);
    tm_peer *peer = tm_node_make_peer(node, established->name);
    int rc = peer ? tm_procs_node_up(node->procs, peer->name, conn->creation) : TM_ENOMEM;
    if (rc) {
        tm_node_unlock(node);
        tm_list_init(&conn->link);
        connection_free(conn);
        return rc;
    }
    TM_ASSERT(!peer->conn);
    conn->peer = peer;
    conn->given = established->given;
    peer->conn = conn;
    peer->state = TM_PEER_UP;
    peer->conn_failed = false;
    peer->wait_until_ns = 0;
    peer->wait_code = 0;
    tm_timer_cancel(&node->engine->wheel, &peer->wait_timer);
    tm_list_push(&node->connections, &conn->link);
    node->object_count++;
    connection_carry(conn, established->talk);
    tm_engine_transfer(node->engine, &established->talk->sock, &conn->sock);
    bool visible = conn->flags & TM_DFLAG(PUBLISHED);
    tm_node_event(node,
                  &(tumen_event){.kind = TUMEN_EVENT_NODEUP,
                                 .node = tm_public(peer->name),
                                 .connection = conn->epoch,
                                 .number = visible},
                  NULL);
    tm_node_unlock(node);
    connection_arm_ticks(conn);
    tm_connection_write(conn);
    if (established->input.len) tm_connection_received(&conn->sock, established->input);
    return 0;
}

/* The socket goes once no caller writes on it any more. */
static void connection_shut(tm_connection *conn, bool abort)
{
    tm_node_lock_engine(conn->node);
    bool busy = conn->direct;
    conn->close_pending = busy;
    tm_node_unlock(conn->node);
    if (!busy) tm_sock_close(&conn->sock, abort);
}

void tm_connection_close(tm_connection *conn, int code, const char *text)
{
    connection_invariants(conn);
    if (conn->down) return;
    conn->down = true;
    tumen_node *node = conn->node;
    tm_peer *peer = conn->peer;
    tm_timer_cancel(&node->engine->wheel, &conn->tick_timer);
    /* Not a byte of them will be wanted; the atoms may be in use until the frame is done with. */
    tm_fragments_fini(&conn->fragments);
    tm_node_lock_engine(node);
    uint64_t lost = peer->queue.messages;
    tm_connection_write_lost(conn, peer);
    peer->conn = NULL;
    peer->state = TM_PEER_DOWN;
    peer->sending = false;
    peer->want_writable = peer->want_small = false;
    tm_list_remove(&peer->dirty_link);
    peer->later = false;
    conn->peer = NULL;
    tm_peer_drop_queue(peer);
    tm_procs_node_down(node->procs, peer->name);
    tm_node_event(node,
                  &(tumen_event){.kind = TUMEN_EVENT_NODEDOWN,
                                 .node = tm_public(peer->name),
                                 .connection = conn->epoch,
                                 .code = code,
                                 .text = {(const uint8_t *)text, strlen(text)},
                                 .number = (int64_t)lost},
                  NULL);
    bool namer = node->namer == peer;
    if (namer) node->namer = NULL;
    tm_peer_retire(peer);
    if (conn->given) tm_node_return_name(node, conn->given);
    conn->given = NULL;
    tm_node_unlock(node);
    connection_shut(conn, false);
    if (namer && !node->stopping) tm_node_lose_name(node);
}

void tm_connection_drain(tm_connection *conn)
{
    if (conn->down) return;
    conn->draining = true;
    tm_node_lock_engine(conn->node);
    bool idle = conn->peer->queue.count == 0 && !conn->peer->sending;
    tm_node_unlock(conn->node);
    if (idle)
        tm_connection_close(conn, TM_ECLOSED, conn->drain_text);
    else
        tm_connection_write(conn);
}

void tm_connection_finish(tm_connection *conn, const char *text)
{
    tumen_engine *engine = conn->node->engine;
    conn->drain_text = text;
    conn->close_by_ns = engine->now_ns + TM_DRAIN_MS * TM_MS_NS;
    tm_timer_arm(&engine->wheel, &conn->tick_timer, conn->close_by_ns);
    tm_connection_drain(conn);
}

void tm_connection_drain_link(tm_list *link)
{
    tm_connection_drain(TM_CONTAINER(link, tm_connection, link));
}

void tm_connection_abort_link(tm_list *link, const char *text)
{
    tm_connection_close(TM_CONTAINER(link, tm_connection, link), TM_ECLOSED, text);
}

uint64_t tm_connection_waiting(const tm_connection *conn)
{
    return TM_ATOMIC_GET(&conn->source->bytes);
}

uint64_t tm_connection_epoch(const tm_connection *conn) { return conn->epoch; }

void tm_connection_fill(const tm_peer *peer, tumen_connection *info)
{
    const tm_connection *conn = peer->conn;
    *info = (tumen_connection){.name = tm_public(peer->name),
                               .state = conn ? TUMEN_UP : TUMEN_PENDING,
                               .queue_bytes = peer->queue.bytes,
                               .queue_count = peer->queue.count};
    if (!conn) return;
    info->visible = (conn->flags & TM_DFLAG(PUBLISHED)) != 0;
    info->creation = conn->creation;
    info->flags = conn->flags;
    info->up_ns = tm_io_now_ns() - conn->up_ns;
    info->bytes_in = TM_ATOMIC_GET(&conn->bytes_in);
    info->bytes_out = TM_ATOMIC_GET(&conn->bytes_out);
    info->frames_in = TM_ATOMIC_GET(&conn->frames_in);
    info->frames_out = TM_ATOMIC_GET(&conn->frames_out);
    info->ticks_in = TM_ATOMIC_GET(&conn->ticks_in);
    info->ticks_out = TM_ATOMIC_GET(&conn->ticks_out);
    info->inbox_bytes = tm_connection_waiting(conn);
    info->reassembly_bytes = TM_ATOMIC_GET(&conn->reassembly_bytes);
    info->atoms = TM_ATOMIC_GET(&conn->atom_count);
    memcpy(info->address, conn->address, sizeof info->address);
}
