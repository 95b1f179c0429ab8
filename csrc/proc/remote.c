/* Peer nodes: a record for each that something of ours points at, or that holds something on us. */
#include "tables.h"

tm_remote *tm_remote_find(tm_procs *procs, tm_bytes node)
{
    tm_remote *recent = procs->recent;
    if (recent && tm_bytes_equal(tm_remote_name(recent), node)) return recent;
    tm_remote *peer = tm_map_get(&procs->peers, node);
    if (peer) procs->recent = peer;
    return peer;
}

int tm_remote_get(tm_procs *procs, tm_bytes node, tm_remote **peer)
{
    *peer = tm_remote_find(procs, node);
    if (*peer) return 0;
    if (node.len == 0 || node.len > TM_NODE_NAME_BYTES_MAX) return TM_EUSE_NAME;
    tm_remote *made = tm_alloc_zero(procs->alloc, sizeof *made + node.len);
    if (!made) return TM_ENOMEM;
    made->name_len = node.len;
    memcpy(made->name, node.ptr, node.len);
    int rc = tm_map_set(&procs->peers, tm_remote_name(made), made);
    if (rc) {
        tm_alloc_free(procs->alloc, made, sizeof *made + node.len);
        return rc;
    }
    tm_list_init(&made->links);
    tm_list_init(&made->monitors);
    tm_list_init(&made->requests);
    tm_list_init(&made->watches);
    tm_list_init(&made->watchers);
    *peer = procs->recent = made;
    return 0;
}

/* Only requests whose owner is gone can be left. */
void tm_remote_free(tm_procs *procs, tm_remote *peer)
{
    TM_LIST_EACH (&peer->requests, node, following)
        tm_handle_free(procs, TM_CONTAINER(node, tm_handle, of_target));
    TM_ASSERT(tm_list_empty(&peer->links));
    TM_ASSERT(tm_list_empty(&peer->monitors));
    TM_ASSERT(tm_list_empty(&peer->watches));
    TM_ASSERT(tm_list_empty(&peer->watchers));
    if (procs->recent == peer) procs->recent = NULL;
    tm_map_remove(&procs->peers, tm_remote_name(peer));
    tm_procs_trim(&procs->peers);
    tm_alloc_free(procs->alloc, peer, sizeof *peer + peer->name_len);
}

int tm_procs_node_up(tm_procs *procs, tm_bytes node, uint32_t creation)
{
    tm_procs_enter(procs);
    tm_remote *peer;
    int rc = tm_remote_get(procs, node, &peer);
    if (rc) return rc;
    peer->creation = creation;
    TM_LIST_EACH (&peer->links, item, following) {
        tm_link *link = TM_CONTAINER(item, tm_link, of_peer);
        if (tm_remote_stale(peer, (uint32_t)link->key.creation))
            tm_link_break(procs, link, TM_TERM_NOPROC);
    }
    TM_LIST_EACH (&peer->monitors, item, following) {
        tm_handle *handle = TM_CONTAINER(item, tm_handle, of_target);
        if (!handle->by_name && tm_remote_stale(peer, handle->creation))
            tm_handle_fire(procs, handle, TM_TERM_NOPROC);
    }
    tm_procs_settle(procs);
    return tm_procs_leave(procs, 0);
}

void tm_procs_node_down(tm_procs *procs, tm_bytes node)
{
    tm_procs_enter(procs);
    tm_remote *peer = tm_remote_find(procs, node);
    if (!peer) return;
    peer->down = true;
    TM_LIST_EACH (&peer->links, item, following)
        tm_link_break(procs, TM_CONTAINER(item, tm_link, of_peer), TM_TERM_NOCONNECTION);
    /* A process that its link has ended gets no DOWN after it. */
    tm_procs_settle(procs);
    TM_LIST_EACH (&peer->monitors, item, following)
        tm_handle_fire(procs, TM_CONTAINER(item, tm_handle, of_target), TM_TERM_NOCONNECTION);
    TM_LIST_EACH (&peer->watches, item, following)
        tm_watch_free(procs, TM_CONTAINER(item, tm_watch, of_peer));
    TM_LIST_EACH (&peer->requests, item, following)
        tm_request_fail(procs, TM_CONTAINER(item, tm_handle, of_target), TM_TERM_NOCONNECTION);
    TM_LIST_EACH (&peer->watchers, item, following)
        tm_node_lost(procs, TM_CONTAINER(item, tm_handle, of_target));
    tm_remote_free(procs, peer);
    tm_procs_check(procs);
}
