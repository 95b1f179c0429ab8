/* Spawn requests: ours until they are answered, and the processes that peers ask for. */
#include "tables.h"

/* -- reasons that are kept --------------------------------------------------------------------- */

static tm_reason *reason_new(tm_procs *procs, tm_bytes bytes)
{
    tm_reason *reason = tm_alloc_get(procs->alloc, sizeof *reason + bytes.len);
    if (!reason) return NULL;
    *reason = (tm_reason){.ref_count = 1, .len = bytes.len};
    if (bytes.len) memcpy(reason->bytes, bytes.ptr, bytes.len);
    return reason;
}

void tm_reason_unref(tm_procs *procs, tm_reason *reason)
{
    if (reason && --reason->ref_count == 0)
        tm_alloc_free(procs->alloc, reason, sizeof *reason + reason->len);
}

/* -- of ours ----------------------------------------------------------------------------------- */

int tm_procs_spawn_request(tm_procs *procs, tm_proc_key key, tm_bytes node, unsigned spawn_flags,
                           tm_ref *ref)
{
    tm_procs_enter(procs);
    if (tm_procs_is_local(procs, node)) return TM_EUSE_ARG;
    tm_process *owner = tm_process_get(procs, key);
    if (!owner) return TM_ENOPROC;
    tm_remote *peer;
    int rc = tm_remote_get(procs, node, &peer);
    if (rc) return rc;
    tm_handle *handle;
    rc = tm_handle_new(procs, owner, TM_HANDLE_SPAWN, (tm_bytes){0}, &handle);
    if (rc) return rc;
    handle->spawn_flags = spawn_flags & (TM_SPAWN_LINK | TM_SPAWN_MONITOR);
    handle->peer = peer;
    tm_list_push(&peer->requests, &handle->of_target);
    *ref = tm_handle_ref(procs, handle);
    return tm_procs_leave(procs, 0);
}

static void request_abandon(tm_handle *handle, tm_reason *reason)
{
    tm_list_remove(&handle->of_owner);
    handle->owner = NULL;
    handle->reason = reason;
    if (reason) reason->ref_count++;
}

bool tm_procs_spawn_abandon(tm_procs *procs, tm_proc_key key, const tm_ref *ref)
{
    tm_procs_enter(procs);
    tm_handle *handle = tm_handle_find(procs, ref);
    if (!handle || handle->kind != TM_HANDLE_SPAWN) return false;
    if (!handle->owner || handle->owner_key != key) return false;
    request_abandon(handle, NULL);
    tm_procs_check(procs);
    return true;
}

/* Only requests with a link need the reason, for the EXIT. Without memory for it they fall back to
 * `abandoned`: the end of a process cannot fail. */
void tm_requests_settle(tm_procs *procs, tm_process *process)
{
    tm_reason *reason = NULL;
    TM_LIST_EACH (&process->handles, node, following) {
        tm_handle *handle = TM_CONTAINER(node, tm_handle, of_owner);
        TM_ASSERT(handle->kind == TM_HANDLE_SPAWN);
        bool linked = (handle->spawn_flags & TM_SPAWN_LINK) != 0;
        if (linked && !reason) reason = reason_new(procs, process->reason);
        request_abandon(handle, linked ? reason : NULL);
    }
    tm_reason_unref(procs, reason);
}

/* The process is there but nobody wants it any more: protocol.md 4.5. A requester that lives and
 * learned the pid elsewhere may have linked to it by itself meanwhile: then that link counts, and
 * an EXIT would end it at the peer only. */
static void reply_to_nobody(tm_procs *procs, tm_handle *handle, unsigned flags, const tm_pid *pid)
{
    const tm_process *owner = tm_process_get(procs, handle->owner_key);
    if (owner && tm_link_find(procs, owner, handle->peer, pid)) flags &= ~(unsigned)TM_SPAWN_LINK;
    tm_proc_signal signal = {.sender = owner ? handle->owner_key : 0,
                             .from = tm_procs_pid(procs, handle->owner_key),
                             .to = tm_target_pid(*pid)};
    if (flags & TM_SPAWN_MONITOR) {
        signal.kind = TM_SIGNAL_DEMONITOR;
        signal.ref = tm_handle_ref(procs, handle);
        tm_procs_signal(procs, handle->peer, &signal);
    }
    if (flags & TM_SPAWN_LINK) {
        signal.kind = TM_SIGNAL_EXIT;
        signal.ref = (tm_ref){0};
        signal.reason = handle->reason ? tm_bytes_of(handle->reason->bytes, handle->reason->len)
                                       : TM_TERM_ABANDONED;
        tm_procs_signal(procs, handle->peer, &signal);
    }
    tm_handle_free(procs, handle);
}

/* The link and the monitor that the request asked for stand now. Those that the peer does not name
 * in flags are asked for again: a requester that waits for a DOWN must get one. */
static int reply_success(tm_procs *procs, tm_handle *handle, unsigned flags, const tm_pid *pid)
{
    tm_process *owner = handle->owner;
    tm_remote *peer = handle->peer;
    unsigned asked = handle->spawn_flags;
    tm_link *link = NULL;
    if ((asked & TM_SPAWN_LINK) && !tm_link_find(procs, owner, peer, pid)) {
        int rc = tm_link_new(procs, owner, peer, NULL, pid, &link);
        if (rc) return rc;
    }
    tm_proc_event event = {.kind = TM_EVENT_SPAWN_REPLY,
                           .key = handle->owner_key,
                           .pid = *pid,
                           .ref = tm_handle_ref(procs, handle),
                           .ok = true};
    handle->kind = TM_HANDLE_MONITOR;
    handle->id = pid->id;
    handle->serial = pid->serial;
    handle->creation = pid->creation;
    tm_proc_signal signal;
    tm_handle_signal(procs, handle, TM_SIGNAL_MONITOR, &signal);
    if (asked & TM_SPAWN_MONITOR) {
        tm_list_remove(&handle->of_target);
        tm_list_push(&peer->monitors, &handle->of_target);
        if (!(flags & TM_SPAWN_MONITOR)) tm_procs_signal(procs, peer, &signal);
    } else {
        tm_handle_free(procs, handle);
    }
    if (link && !(flags & TM_SPAWN_LINK)) {
        signal.kind = TM_SIGNAL_LINK;
        signal.ref = (tm_ref){0};
        tm_procs_signal(procs, peer, &signal);
    }
    tm_procs_event(procs, &event);
    return 0;
}

void tm_request_fail(tm_procs *procs, tm_handle *handle, tm_bytes error)
{
    if (handle->owner && !handle->owner->ending) {
        tm_proc_event event = {.kind = TM_EVENT_SPAWN_REPLY,
                               .key = handle->owner_key,
                               .ref = tm_handle_ref(procs, handle),
                               .reason = error};
        tm_procs_event(procs, &event);
    }
    tm_handle_free(procs, handle);
}

int tm_procs_on_spawn_reply(tm_procs *procs, tm_bytes node, const tm_ref *ref, const tm_pid *to,
                            unsigned flags, const tm_pid *pid, tm_bytes error)
{
    tm_procs_enter(procs);
    tm_handle *handle = tm_handle_find(procs, ref);
    if (!handle || handle->kind != TM_HANDLE_SPAWN) return 0;
    if (!tm_bytes_equal(tm_remote_name(handle->peer), node)) return 0;
    tm_pid requester = tm_procs_pid(procs, handle->owner_key);
    if (!tm_pid_equal(to, &requester)) return 0;
    if (pid && !tm_bytes_equal(pid->node, node)) return TM_EPEER_MALFORMED;
    int rc = 0;
    if (!pid)
        tm_request_fail(procs, handle, error);
    else if (!handle->owner)
        reply_to_nobody(procs, handle, flags & handle->spawn_flags, pid);
    else
        rc = reply_success(procs, handle, flags, pid);
    return tm_procs_leave(procs, rc);
}

/* -- of peers ---------------------------------------------------------------------------------- */

static int spawn_bind(tm_procs *procs, tm_process *process, tm_remote *peer, const tm_pid *from,
                      const tm_ref *request, unsigned spawn_flags)
{
    if (spawn_flags & TM_SPAWN_LINK) {
        if (peer->link_count >= TM_PEER_LINKS_MAX) return TM_EPEER_LIMIT;
        tm_link *link;
        int rc = tm_link_new(procs, process, peer, NULL, from, &link);
        if (rc) return rc;
        link->by_peer = true;
        peer->link_count++;
    }
    if (spawn_flags & TM_SPAWN_MONITOR) {
        tm_watch_key key = tm_watch_key_of(peer, request);
        if (tm_map_get(&procs->watches, tm_bytes_of(&key, sizeof key))) return TM_EPEER_MALFORMED;
        tm_watch *watch;
        int rc = tm_watch_new(procs, process, peer, from, request, (tm_bytes){0}, &watch);
        if (rc) return rc;
        watch->by_spawn = true;
    }
    return 0;
}

int tm_procs_on_spawn(tm_procs *procs, const tm_pid *from, const tm_ref *request,
                      unsigned spawn_flags, tm_proc_key *key)
{
    tm_procs_enter(procs);
    if (!tm_bytes_equal(request->node, from->node)) return TM_EPEER_MALFORMED;
    tm_remote *peer;
    int rc = tm_remote_get(procs, from->node, &peer);
    if (rc) return rc;
    tm_process *process;
    rc = tm_process_new(procs, &process);
    if (rc) return rc;
    rc = spawn_bind(procs, process, peer, from, request, spawn_flags);
    if (rc)
        tm_process_discard(procs, process);
    else
        *key = process->key;
    return tm_procs_leave(procs, rc);
}
