/* What must hold between two calls. Every record is reached from its process and from its peer, and
 * found again in its map; the counts then leave no room for one that is reached from nowhere. */
#include "tables.h"

typedef struct tally {
    size_t processes, names, handles, watches, links, traced;
    uint64_t mail;
} tally;

static bool list_sound(const tm_list *head)
{
    for (const tm_list *node = head->next;; node = node->next) {
        if (node->next->prev != node) return false;
        if (node == head) return true;
    }
}

static size_t list_length(const tm_list *head)
{
    TM_ASSERT(list_sound(head));
    size_t length = 0;
    for (const tm_list *node = head->next; node != head; node = node->next) length++;
    return length;
}

static void check_handle(const tm_procs *procs, const tm_handle *handle)
{
    tm_bytes key = tm_bytes_of(handle->words, sizeof handle->words);
    TM_ASSERT(tm_map_get(&procs->handles, key) == handle);
    TM_ASSERT(tm_list_linked(&handle->of_owner) == (handle->owner != NULL));
    bool targeted = handle->peer || handle->target;
    TM_ASSERT(tm_list_linked(&handle->of_target) == targeted);
    TM_ASSERT(targeted == (handle->kind != TM_HANDLE_ALIAS));
    TM_ASSERT(!(handle->peer && handle->target));
    TM_ASSERT(!handle->call || handle->alias == TM_ALIAS_UNTIL_REPLY);
    if (handle->kind == TM_HANDLE_ALIAS) TM_ASSERT(handle->alias != TM_ALIAS_OFF);
    if (handle->kind == TM_HANDLE_SPAWN || handle->kind == TM_HANDLE_NODE)
        TM_ASSERT(handle->alias == TM_ALIAS_OFF);
    if (handle->kind == TM_HANDLE_SPAWN) {
        TM_ASSERT(handle->peer);
        TM_ASSERT(!handle->owner || !handle->reason);
    } else {
        TM_ASSERT(handle->owner);
        TM_ASSERT(!handle->reason);
    }
}

static void check_watch(const tm_procs *procs, const tm_watch *watch)
{
    tm_bytes key = tm_bytes_of(&watch->key, sizeof watch->key);
    TM_ASSERT(tm_map_get(&procs->watches, key) == watch);
    TM_ASSERT(watch->peer == watch->key.peer);
    TM_ASSERT(tm_process_get(procs, watch->target->key) == watch->target);
}

static void check_link(const tm_procs *procs, const tm_link *link)
{
    TM_ASSERT(tm_map_get(&procs->links, tm_bytes_of(&link->key, sizeof link->key)) == link);
    TM_ASSERT(link->peer == link->key.peer);
    TM_ASSERT(link->ends[0].process->key == link->key.local);
    if (link->peer) {
        TM_ASSERT(!link->ends[1].process);
        TM_ASSERT(link->unlink_id <= link->ends[0].process->unlink_id);
        return;
    }
    TM_ASSERT(link->ends[1].process->key == link->key.other);
    TM_ASSERT(link->key.local < link->key.other);
    TM_ASSERT(link->unlink_id == 0);
    TM_ASSERT(!link->by_peer);
}

static void check_process(const tm_procs *procs, const tm_process *process, tally *seen)
{
    TM_ASSERT(tm_process_get(procs, process->key) == process);
    TM_ASSERT(!tm_list_linked(&process->of_ending));
    seen->processes++;
    seen->mail += process->mail_bytes;
    seen->traced += process->trace && process->trace->token.len;
    seen->names += list_length(&process->names);
    seen->handles += list_length(&process->handles);
    seen->watches += list_length(&process->watches);
    TM_LIST_EACH (&process->names, node, following) {
        const tm_name *name = TM_CONTAINER(node, tm_name, of_process);
        TM_ASSERT(tm_map_get(&procs->names, tm_bytes_of(name->text, name->len)) == name);
        TM_ASSERT(name->process == process);
    }
    TM_LIST_EACH (&process->handles, node, following) {
        const tm_handle *handle = TM_CONTAINER(node, tm_handle, of_owner);
        TM_ASSERT(handle->owner == process);
        TM_ASSERT(handle->owner_key == process->key);
        check_handle(procs, handle);
    }
    TM_ASSERT(list_sound(&process->watched));
    TM_LIST_EACH (&process->watched, node, following)
        TM_ASSERT(TM_CONTAINER(node, tm_handle, of_target)->target == process);
    TM_LIST_EACH (&process->watches, node, following) {
        const tm_watch *watch = TM_CONTAINER(node, tm_watch, of_target);
        TM_ASSERT(watch->target == process);
        check_watch(procs, watch);
    }
    TM_ASSERT(list_sound(&process->links));
    TM_LIST_EACH (&process->links, node, following) {
        const tm_link_end *end = TM_CONTAINER(node, tm_link_end, of_process);
        TM_ASSERT(end->process == process);
        TM_ASSERT(end == &end->link->ends[0] || end == &end->link->ends[1]);
        check_link(procs, end->link);
        seen->links += end == &end->link->ends[0];
    }
}

static void check_peer(const tm_procs *procs, const tm_remote *peer, tally *seen)
{
    TM_ASSERT(tm_map_get(&procs->peers, tm_remote_name(peer)) == peer);
    TM_ASSERT(!peer->down);
    TM_ASSERT(list_length(&peer->watches) == peer->watch_count);
    size_t by_peer = 0;
    TM_ASSERT(list_sound(&peer->links));
    TM_LIST_EACH (&peer->links, node, following) {
        const tm_link *link = TM_CONTAINER(node, tm_link, of_peer);
        TM_ASSERT(link->peer == peer);
        by_peer += link->by_peer;
    }
    TM_ASSERT(by_peer == peer->link_count);
    TM_LIST_EACH (&peer->watches, node, following)
        TM_ASSERT(TM_CONTAINER(node, tm_watch, of_peer)->peer == peer);
    TM_ASSERT(list_sound(&peer->monitors));
    TM_LIST_EACH (&peer->monitors, node, following) {
        const tm_handle *handle = TM_CONTAINER(node, tm_handle, of_target);
        TM_ASSERT(handle->peer == peer);
        TM_ASSERT(handle->kind == TM_HANDLE_MONITOR);
    }
    TM_ASSERT(list_sound(&peer->watchers));
    TM_LIST_EACH (&peer->watchers, node, following) {
        const tm_handle *handle = TM_CONTAINER(node, tm_handle, of_target);
        TM_ASSERT(handle->peer == peer);
        TM_ASSERT(handle->kind == TM_HANDLE_NODE);
    }
    TM_ASSERT(list_sound(&peer->requests));
    TM_LIST_EACH (&peer->requests, node, following) {
        const tm_handle *handle = TM_CONTAINER(node, tm_handle, of_target);
        TM_ASSERT(handle->peer == peer);
        TM_ASSERT(handle->kind == TM_HANDLE_SPAWN);
        check_handle(procs, handle);
        seen->handles += handle->owner == NULL;
    }
}

void tm_procs_invariants(const tm_procs *procs)
{
    tally seen = {0};
    TM_ASSERT(tm_list_empty(&procs->ending));
    for (uint32_t i = 0; i < procs->slot_count; i++)
        if (procs->slots[i].process) check_process(procs, procs->slots[i].process, &seen);
    uint32_t slot = procs->free_first;
    for (uint32_t i = 0; i < procs->free_count; i++) {
        TM_ASSERT(!procs->slots[slot].process);
        if (i + 1 == procs->free_count) TM_ASSERT(slot == procs->free_last);
        slot = procs->slots[slot].next_free;
    }
    TM_ASSERT(procs->free_count + seen.processes == procs->slot_count);
    size_t position = 0;
    for (const tm_remote *peer; (peer = tm_map_next(&procs->peers, &position));)
        check_peer(procs, peer, &seen);
    TM_ASSERT(seen.processes == procs->process_count);
    TM_ASSERT(seen.mail == procs->mail_bytes);
    TM_ASSERT(seen.traced == procs->traced_count);
    TM_ASSERT(seen.names == procs->names.count);
    TM_ASSERT(seen.handles == procs->handles.count);
    TM_ASSERT(seen.watches == procs->watches.count);
    TM_ASSERT(seen.links == procs->links.count);
}
