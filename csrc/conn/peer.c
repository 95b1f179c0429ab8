/* Peers of a node and their send queues: bounds, draining, loss. */
#include "../base/check.h"
#include "node.h"

/* Queue of a peer that is always granted although the node's pool is used up, bytes: one slow peer must
 * not silence the others. */
#define PEER_GUARANTEED_BYTES ((uint64_t)16 * 1024)

static void wait_over(tm_timer *timer, uint64_t now_ns)
{
    (void)now_ns;
    tm_peer_give_up(TM_CONTAINER(timer, tm_peer, wait_timer));
}

void tm_peer_give_up(tm_peer *peer)
{
    tm_timer_cancel(&peer->node->engine->wheel, &peer->wait_timer);
    peer->wait_until_ns = 0;
    if (peer->wait_code)
        tm_peer_failed(peer, peer->wait_code, "and the peer's own attempt came to nothing");
    else
        tm_peer_failed(peer, TM_ETIMEDOUT,
                       "the peer preferred its own connection, which never came");
}

static void connect_run(tm_command *command)
{
    tm_peer *peer = TM_CONTAINER(command, tm_peer, connect);
    tm_node_lock_engine(peer->node);
    bool wanted = peer->state == TM_PEER_PENDING && !peer->attempt && !peer->wait_until_ns;
    tm_node_unlock(peer->node);
    if (!wanted) return;
    if (peer->node->stopping)
        tm_peer_failed(peer, TM_ECLOSED, "the node is stopping");
    else
        tm_attempt_start(peer);
}

tm_peer *tm_node_find_peer(tumen_node *node, tm_bytes name)
{
    return tm_map_get(&node->peers, name);
}

tm_peer *tm_node_make_peer(tumen_node *node, tm_bytes name)
{
    tm_peer *peer = tm_node_find_peer(node, name);
    if (peer) return peer;
    peer = tm_alloc_zero(&node->engine->alloc, sizeof *peer + name.len);
    if (!peer) return NULL;
    peer->node = node;
    memcpy(peer + 1, name.ptr, name.len);
    peer->name = tm_bytes_of(peer + 1, name.len);
    tm_sendq_init(&peer->queue, &node->engine->alloc, node->engine->seed);
    peer->wait_timer.fire = wait_over;
    peer->connect.run = connect_run;
    if (tm_map_set(&node->peers, peer->name, peer)) {
        tm_alloc_free(&node->engine->alloc, peer, sizeof *peer + name.len);
        return NULL;
    }
    return peer;
}

void tm_peer_retire(tm_peer *peer)
{
    tumen_node *node = peer->node;
    if (peer->state != TM_PEER_DOWN || peer->queue.count || peer->sending || peer->direct ||
        peer->attempt || peer->wait_until_ns || tm_list_linked(&peer->connect.link) || peer->host)
        return;
    tm_list_remove(&peer->dirty_link);
    tm_map_remove(&node->peers, peer->name);
    tm_alloc_free(&node->engine->alloc, peer, sizeof *peer + peer->name.len);
}

void tm_peer_mark_dirty(tm_peer *peer)
{
    if (peer->later) tm_list_remove(&peer->dirty_link);
    peer->later = false;
    if (!tm_list_linked(&peer->dirty_link)) tm_list_push(&peer->node->dirty, &peer->dirty_link);
}

static void peer_mark_later(tm_peer *peer)
{
    if (tm_list_linked(&peer->dirty_link)) return;
    tm_list_push(&peer->node->later, &peer->dirty_link);
    peer->later = true;
}

void tm_node_hasten(tumen_node *node)
{
    while (!tm_list_empty(&node->later))
        tm_peer_mark_dirty(TM_CONTAINER(node->later.next, tm_peer, dirty_link));
}

void tm_peer_queue(tm_peer *peer, tm_entry *entry)
{
    tumen_node *node = peer->node;
    TM_ATOMIC_ADD(&node->sendq_bytes, entry->weight);
    tm_sendq_push(&peer->queue, entry);
    if (peer->state == TM_PEER_UP && node->can_wait) {
        peer_mark_later(peer);
    } else if (peer->state == TM_PEER_UP) {
        tm_peer_mark_dirty(peer);
    } else if (peer->state == TM_PEER_DOWN) {
        peer->state = TM_PEER_PENDING;
        tm_engine_command(node->engine, &peer->connect);
    }
}

bool tm_peer_busy(const tm_peer *peer, bool control, bool large)
{
    const tumen_node *node = peer->node;
    uint64_t high = tm_node_limit(node, TUMEN_LIMIT_SENDQ_HIGH_BYTES);
    uint64_t ahead = tm_sendq_ahead(&peer->queue, large);
    if (control) return ahead >= high + TM_SENDQ_CONTROL_RESERVE_BYTES;
    if (ahead >= high) return true;
    return ahead >= PEER_GUARANTEED_BYTES &&
           TM_ATOMIC_GET(&node->sendq_bytes) >= tm_node_limit(node, TUMEN_LIMIT_SENDQ_NODE_BYTES);
}

bool tm_peer_refuses(tm_peer *peer, bool control, bool large)
{
    if (!tm_peer_busy(peer, control, large)) return false;
    *(large ? &peer->want_writable : &peer->want_small) = true;
    return true;
}

void tm_peer_relieve(tm_peer *peer)
{
    if (!peer->want_writable && !peer->want_small) return;
    tumen_node *node = peer->node;
    uint64_t low = tm_node_limit(node, TUMEN_LIMIT_SENDQ_HIGH_BYTES) / TM_SENDQ_LOW_DIVISOR;
    bool all = tm_sendq_ahead(&peer->queue, true) <= low;
    bool small = tm_sendq_ahead(&peer->queue, false) <= low;
    if (!(peer->want_writable && all) && !(peer->want_small && small)) return;
    if (all) peer->want_writable = false;
    peer->want_small = false;
    tm_node_event(node, &(tumen_event){.kind = TUMEN_EVENT_WRITABLE, .node = tm_public(peer->name)},
                  NULL);
}

void tm_peer_settle(tm_peer *peer, tm_entry *entry)
{
    tumen_node *node = peer->node;
    __atomic_sub_fetch(&node->sendq_bytes, entry->weight, __ATOMIC_RELAXED);
    tm_sendq_settle(&peer->queue, entry);
    for (size_t i = 0; i < entry->part_count; i++)
        if (entry->parts[i].lent)
            tm_node_event(node,
                          &(tumen_event){.kind = TUMEN_EVENT_RETURNED,
                                         .number = (int64_t)entry->parts[i].lent},
                          NULL);
    tm_entry_free(&node->entries, entry);
    tm_peer_relieve(peer);
}

uint64_t tm_peer_drop_queue(tm_peer *peer)
{
    uint64_t before = peer->queue.messages;
    for (tm_entry *entry; (entry = tm_sendq_pop_any(&peer->queue));) tm_peer_settle(peer, entry);
    return before - peer->queue.messages;
}

void tm_peer_failed(tm_peer *peer, int code, const char *text)
{
    tumen_node *node = peer->node;
    tm_node_lock_engine(node);
    uint64_t lost = tm_peer_drop_queue(peer);
    peer->state = TM_PEER_DOWN;
    peer->wait_code = 0;
    tm_procs_node_down(node->procs, peer->name);
    tm_node_event(node,
                  &(tumen_event){.kind = TUMEN_EVENT_CONNECT_FAILED,
                                 .node = tm_public(peer->name),
                                 .code = code,
                                 .text = {(const uint8_t *)text, strlen(text)},
                                 .number = (int64_t)lost},
                  NULL);
    /* node_down may have queued nothing for this peer: a process's end emits no signal to it. */
    tm_peer_retire(peer);
    tm_node_unlock(node);
}
