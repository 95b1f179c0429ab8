/* Monitors and aliases of ours (tm_handle) and the monitors of peers on us (tm_watch). */
#include "tables.h"

/* -- handles: what references of ours stand for ------------------------------------------------ */

tm_ref tm_handle_ref(const tm_procs *procs, const tm_handle *handle)
{
    tm_ref ref = {
        .node = tm_procs_node(procs), .creation = procs->creation, .count = TM_OWN_REF_WORDS};
    memcpy(ref.words, handle->words, sizeof handle->words);
    return ref;
}

tm_handle *tm_handle_find(const tm_procs *procs, const tm_ref *ref)
{
    if (ref->count != TM_OWN_REF_WORDS || ref->creation != procs->creation) return NULL;
    if (!tm_procs_is_local(procs, ref->node)) return NULL;
    return tm_map_get(&procs->handles,
                      tm_bytes_of(ref->words, TM_OWN_REF_WORDS * sizeof *ref->words));
}

int tm_handle_new(tm_procs *procs, tm_process *owner, enum tm_handle_kind kind, tm_bytes name,
                  tm_handle **handle)
{
    tm_handle *made = tm_alloc_zero(procs->alloc, sizeof *made + name.len);
    if (!made) return TM_ENOMEM;
    tm_ref ref = tm_procs_make_ref(procs);
    memcpy(made->words, ref.words, sizeof made->words);
    int rc = tm_map_set(&procs->handles, tm_bytes_of(made->words, sizeof made->words), made);
    if (rc) {
        tm_alloc_free(procs->alloc, made, sizeof *made + name.len);
        return rc;
    }
    made->kind = (uint8_t)kind;
    made->name_len = name.len;
    if (name.len) memcpy(made->name, name.ptr, name.len);
    made->owner = owner;
    made->owner_key = owner->key;
    tm_list_push(&owner->handles, &made->of_owner);
    *handle = made;
    return 0;
}

void tm_handle_free(tm_procs *procs, tm_handle *handle)
{
    tm_map_remove(&procs->handles, tm_bytes_of(handle->words, sizeof handle->words));
    tm_procs_trim(&procs->handles);
    tm_list_remove(&handle->of_owner);
    tm_list_remove(&handle->of_target);
    tm_reason_unref(procs, handle->reason);
    tm_alloc_free(procs->alloc, handle, sizeof *handle + handle->name_len);
}

/* What a monitor was set on, as it was named. */
static void handle_target(const tm_procs *procs, const tm_handle *handle, tm_target *target)
{
    target->kind = handle->by_name ? TM_TARGET_NAME : TM_TARGET_PID;
    target->node = handle->peer ? tm_remote_name(handle->peer) : tm_procs_node(procs);
    if (handle->by_name)
        target->name = (tm_bytes){handle->name, handle->name_len};
    else
        target->pid = (tm_pid){target->node, handle->id, handle->serial, handle->creation};
}

void tm_handle_signal(const tm_procs *procs, const tm_handle *handle, enum tm_proc_signal_kind kind,
                      tm_proc_signal *signal)
{
    *signal = (tm_proc_signal){.kind = kind, .sender = handle->owner_key};
    signal->from = tm_procs_pid(procs, handle->owner_key);
    handle_target(procs, handle, &signal->to);
    signal->ref = tm_handle_ref(procs, handle);
}

/* A monitor is over: an alias that outlives it goes on alone. */
static void monitor_over(tm_procs *procs, tm_handle *handle)
{
    if (handle->alias != TM_ALIAS_UNTIL_UNALIAS || handle->owner->ending) {
        tm_handle_free(procs, handle);
        return;
    }
    tm_list_remove(&handle->of_target);
    handle->kind = TM_HANDLE_ALIAS;
    handle->peer = NULL;
    handle->target = NULL;
}

void tm_handle_fire(tm_procs *procs, tm_handle *handle, tm_bytes reason)
{
    if (!handle->owner->ending) {
        tm_proc_event event = {.kind = TM_EVENT_DOWN,
                               .key = handle->owner_key,
                               .ref = tm_handle_ref(procs, handle),
                               .reason = reason};
        handle_target(procs, handle, &event.item);
        tm_procs_event(procs, &event);
    }
    monitor_over(procs, handle);
}

/* Ends a monitor of ours from our side. */
static void monitor_cancel(tm_procs *procs, tm_handle *handle)
{
    if (handle->peer) {
        tm_proc_signal signal;
        tm_handle_signal(procs, handle, TM_SIGNAL_DEMONITOR, &signal);
        tm_procs_signal(procs, handle->peer, &signal);
    }
    monitor_over(procs, handle);
}

/* -- of ours ----------------------------------------------------------------------------------- */

/* The living process of this node that a target means, else NULL. */
static tm_process *target_process(const tm_procs *procs, const tm_target *target)
{
    if (target->kind == TM_TARGET_PID) return tm_process_of_pid(procs, &target->pid);
    return tm_process_get(procs, tm_procs_whereis(procs, target->name));
}

static void monitor_local(tm_procs *procs, tm_handle *handle, const tm_target *target)
{
    tm_process *process = target_process(procs, target);
    if (!process) {
        tm_handle_fire(procs, handle, TM_TERM_NOPROC);
        return;
    }
    handle->target = process;
    tm_list_push(&process->watched, &handle->of_target);
}

static void monitor_remote(tm_procs *procs, tm_handle *handle)
{
    if (!handle->by_name && tm_remote_nobody(handle->peer, handle->id, handle->creation)) {
        tm_handle_fire(procs, handle, TM_TERM_NOPROC);
        return;
    }
    tm_list_push(&handle->peer->monitors, &handle->of_target);
    tm_proc_signal signal;
    tm_handle_signal(procs, handle, TM_SIGNAL_MONITOR, &signal);
    tm_procs_signal(procs, handle->peer, &signal);
}

static enum tm_alias_mode alias_mode(unsigned flags)
{
    if (flags & (TM_MONITOR_ALIAS_REPLY | TM_MONITOR_REPLY_DEMONITOR)) return TM_ALIAS_UNTIL_REPLY;
    if (flags & TM_MONITOR_DEMONITOR) return TM_ALIAS_UNTIL_DEMONITOR;
    return flags & TM_MONITOR_EXPLICIT_UNALIAS ? TM_ALIAS_UNTIL_UNALIAS : TM_ALIAS_OFF;
}

int tm_procs_monitor(tm_procs *procs, tm_proc_key watcher, const tm_target *target, unsigned flags,
                     tm_ref *ref)
{
    tm_procs_enter(procs);
    if (target->kind != TM_TARGET_PID && target->kind != TM_TARGET_NAME) return TM_EUSE_ARG;
    tm_process *owner = tm_process_get(procs, watcher);
    if (!owner) return TM_ENOPROC;
    bool by_name = target->kind == TM_TARGET_NAME;
    tm_bytes node = by_name ? target->node : target->pid.node;
    tm_bytes name = by_name ? target->name : (tm_bytes){0};
    if (name.len > TM_ATOM_BYTES_MAX) return TM_EUSE_NAME;
    tm_remote *peer = NULL;
    int rc = tm_procs_is_local(procs, node) ? 0 : tm_remote_get(procs, node, &peer);
    if (rc) return rc;
    tm_handle *handle;
    rc = tm_handle_new(procs, owner, TM_HANDLE_MONITOR, name, &handle);
    if (rc) return rc;
    handle->by_name = by_name;
    handle->alias = (uint8_t)alias_mode(flags);
    handle->call = (flags & TM_MONITOR_ALIAS_REPLY) != 0;
    handle->peer = peer;
    if (!by_name) {
        handle->id = target->pid.id;
        handle->serial = target->pid.serial;
        handle->creation = target->pid.creation;
    }
    *ref = tm_handle_ref(procs, handle);
    if (peer)
        monitor_remote(procs, handle);
    else
        monitor_local(procs, handle, target);
    return tm_procs_leave(procs, 0);
}

static tm_handle *handle_of(const tm_procs *procs, tm_proc_key owner, const tm_ref *ref)
{
    tm_handle *handle = tm_handle_find(procs, ref);
    return handle && handle->owner && handle->owner_key == owner ? handle : NULL;
}

bool tm_procs_demonitor(tm_procs *procs, tm_proc_key watcher, const tm_ref *ref)
{
    tm_procs_enter(procs);
    tm_handle *handle = handle_of(procs, watcher, ref);
    if (!handle || handle->kind != TM_HANDLE_MONITOR) return false;
    monitor_cancel(procs, handle);
    tm_procs_check(procs);
    return true;
}

int tm_procs_alias(tm_procs *procs, tm_proc_key key, unsigned flags, tm_ref *ref)
{
    tm_procs_enter(procs);
    tm_process *owner = tm_process_get(procs, key);
    if (!owner) return TM_ENOPROC;
    tm_handle *handle;
    int rc = tm_handle_new(procs, owner, TM_HANDLE_ALIAS, (tm_bytes){0}, &handle);
    if (rc) return rc;
    handle->alias = flags & TM_ALIAS_REPLY ? TM_ALIAS_UNTIL_REPLY : TM_ALIAS_UNTIL_UNALIAS;
    *ref = tm_handle_ref(procs, handle);
    return tm_procs_leave(procs, 0);
}

bool tm_procs_unalias(tm_procs *procs, tm_proc_key key, const tm_ref *ref)
{
    tm_procs_enter(procs);
    tm_handle *handle = handle_of(procs, key, ref);
    if (!handle || handle->alias == TM_ALIAS_OFF) return false;
    handle->alias = TM_ALIAS_OFF;
    handle->call = false;
    if (handle->kind == TM_HANDLE_ALIAS) tm_handle_free(procs, handle);
    tm_procs_check(procs);
    return true;
}

tm_process *tm_alias_owner(const tm_procs *procs, const tm_ref *ref)
{
    const tm_handle *handle = tm_handle_find(procs, ref);
    return handle && handle->alias != TM_ALIAS_OFF ? handle->owner : NULL;
}

tm_proc_key tm_procs_use_alias(tm_procs *procs, const tm_ref *ref, bool *reply)
{
    tm_procs_enter(procs);
    tm_handle *handle = tm_handle_find(procs, ref);
    *reply = handle && handle->call;
    if (!handle || handle->alias == TM_ALIAS_OFF) return 0;
    tm_proc_key key = handle->owner_key;
    if (handle->alias == TM_ALIAS_UNTIL_REPLY) monitor_cancel(procs, handle);
    tm_procs_check(procs);
    return key;
}

/* -- monitors of nodes ------------------------------------------------------------------------- */

int tm_procs_monitor_node(tm_procs *procs, tm_proc_key key, tm_bytes node)
{
    tm_procs_enter(procs);
    tm_process *owner = tm_process_get(procs, key);
    if (!owner) return TM_ENOPROC;
    if (tm_procs_is_local(procs, node)) return 0;
    tm_remote *peer;
    int rc = tm_remote_get(procs, node, &peer);
    if (rc) return rc;
    tm_handle *handle;
    rc = tm_handle_new(procs, owner, TM_HANDLE_NODE, (tm_bytes){0}, &handle);
    if (rc) return rc;
    handle->peer = peer;
    tm_list_push(&peer->watchers, &handle->of_target);
    return tm_procs_leave(procs, 0);
}

bool tm_procs_demonitor_node(tm_procs *procs, tm_proc_key key, tm_bytes node)
{
    tm_procs_enter(procs);
    const tm_process *owner = tm_process_get(procs, key);
    const tm_remote *peer = owner ? tm_remote_find(procs, node) : NULL;
    if (!peer) return false;
    TM_LIST_EACH (&peer->watchers, item, following) {
        tm_handle *handle = TM_CONTAINER(item, tm_handle, of_target);
        if (handle->owner != owner) continue;
        tm_handle_free(procs, handle);
        tm_procs_check(procs);
        return true;
    }
    return false;
}

void tm_node_lost(tm_procs *procs, tm_handle *handle)
{
    tm_proc_event event = {.kind = TM_EVENT_NODE_LOST,
                           .key = handle->owner_key,
                           .item = {.node = tm_remote_name(handle->peer)}};
    tm_procs_event(procs, &event);
    tm_handle_free(procs, handle);
}

/* -- watches: monitors of peers ---------------------------------------------------------------- */

tm_watch_key tm_watch_key_of(const tm_remote *peer, const tm_ref *ref)
{
    tm_watch_key key = {.peer = peer, .creation = ref->creation, .count = ref->count};
    for (uint32_t i = 0; i < ref->count && i < TM_REF_WORDS_MAX; i++) key.words[i] = ref->words[i];
    return key;
}

int tm_watch_new(tm_procs *procs, tm_process *target, tm_remote *peer, const tm_pid *from,
                 const tm_ref *ref, tm_bytes name, tm_watch **watch)
{
    if (peer->watch_count >= TM_PEER_MONITORS_MAX) return TM_EPEER_LIMIT;
    tm_watch *made = tm_alloc_zero(procs->alloc, sizeof *made + name.len);
    if (!made) return TM_ENOMEM;
    made->key = tm_watch_key_of(peer, ref);
    int rc = tm_map_set(&procs->watches, tm_bytes_of(&made->key, sizeof made->key), made);
    if (rc) {
        tm_alloc_free(procs->alloc, made, sizeof *made + name.len);
        return rc;
    }
    made->id = from->id;
    made->serial = from->serial;
    made->creation = from->creation;
    made->name_len = name.len;
    if (name.len) memcpy(made->name, name.ptr, name.len);
    made->target = target;
    tm_list_push(&target->watches, &made->of_target);
    made->peer = peer;
    tm_list_push(&peer->watches, &made->of_peer);
    peer->watch_count++;
    *watch = made;
    return 0;
}

void tm_watch_free(tm_procs *procs, tm_watch *watch)
{
    tm_map_remove(&procs->watches, tm_bytes_of(&watch->key, sizeof watch->key));
    tm_procs_trim(&procs->watches);
    tm_list_remove(&watch->of_target);
    tm_list_remove(&watch->of_peer);
    watch->peer->watch_count--;
    tm_alloc_free(procs->alloc, watch, sizeof *watch + watch->name_len);
}

/* MONITOR_EXIT for a target that is not there. */
static void watch_noproc(tm_procs *procs, const tm_pid *from, const tm_target *to,
                         const tm_ref *ref)
{
    tm_proc_signal signal = {.kind = TM_SIGNAL_MONITOR_EXIT,
                             .to = tm_target_pid(*from),
                             .ref = *ref,
                             .reason = TM_TERM_NOPROC};
    if (to->kind == TM_TARGET_NAME) {
        signal.from = tm_procs_pid(procs, 0);
        signal.from_name = to->name.len ? to->name : TM_BYTES("");
    } else {
        signal.from = to->pid;
    }
    tm_procs_answer(procs, from->node, &signal);
}

int tm_procs_on_monitor(tm_procs *procs, const tm_pid *from, const tm_target *to, const tm_ref *ref)
{
    tm_procs_enter(procs);
    if (to->kind == TM_TARGET_REF || !tm_bytes_equal(ref->node, from->node)) return 0;
    tm_process *target = target_process(procs, to);
    if (!target) {
        watch_noproc(procs, from, to, ref);
        return 0;
    }
    tm_remote *peer;
    int rc = tm_remote_get(procs, from->node, &peer);
    if (rc) return rc;
    tm_watch_key key = tm_watch_key_of(peer, ref);
    if (tm_map_get(&procs->watches, tm_bytes_of(&key, sizeof key))) return 0;
    bool by_name = to->kind == TM_TARGET_NAME;
    tm_watch *watch;
    rc = tm_watch_new(procs, target, peer, from, ref, by_name ? to->name : (tm_bytes){0}, &watch);
    if (rc) return rc;
    watch->by_name = by_name;
    return tm_procs_leave(procs, 0);
}

int tm_procs_on_demonitor(tm_procs *procs, const tm_pid *from, const tm_ref *ref,
                          tm_proc_key *abandoned)
{
    tm_procs_enter(procs);
    *abandoned = 0;
    const tm_remote *peer = tm_remote_find(procs, from->node);
    if (!peer || !tm_bytes_equal(ref->node, from->node)) return 0;
    tm_watch_key key = tm_watch_key_of(peer, ref);
    tm_watch *watch = tm_map_get(&procs->watches, tm_bytes_of(&key, sizeof key));
    if (!watch) return 0;
    if (watch->by_spawn) *abandoned = watch->target->key;
    tm_watch_free(procs, watch);
    return tm_procs_leave(procs, 0);
}

bool tm_procs_watched(tm_procs *procs, tm_proc_key key, const tm_ref *ref)
{
    const tm_process *process = tm_process_get(procs, key);
    if (!process) return false;
    if (tm_procs_is_local(procs, ref->node)) {
        const tm_handle *handle = tm_handle_find(procs, ref);
        return handle && handle->target == process;
    }
    const tm_remote *peer = tm_remote_find(procs, ref->node);
    if (!peer) return false;
    tm_watch_key watch_key = tm_watch_key_of(peer, ref);
    const tm_watch *watch = tm_map_get(&procs->watches, tm_bytes_of(&watch_key, sizeof watch_key));
    return watch && watch->target == process;
}

int tm_procs_on_monitor_exit(tm_procs *procs, tm_bytes node, const tm_pid *to, const tm_ref *ref,
                             tm_bytes reason)
{
    tm_procs_enter(procs);
    tm_handle *handle = tm_handle_find(procs, ref);
    if (!handle || handle->kind != TM_HANDLE_MONITOR || !handle->peer) return 0;
    if (!tm_bytes_equal(tm_remote_name(handle->peer), node)) return 0;
    if (tm_procs_find(procs, to) != handle->owner_key) return 0;
    tm_handle_fire(procs, handle, reason);
    return tm_procs_leave(procs, 0);
}

/* -- the end of a process ---------------------------------------------------------------------- */

static void watch_fire(tm_procs *procs, tm_watch *watch, const tm_process *process)
{
    tm_pid watcher = tm_remote_pid(watch->peer, watch->id, watch->serial, watch->creation);
    tm_proc_signal signal = {.kind = TM_SIGNAL_MONITOR_EXIT,
                             .sender = process->key,
                             .from = tm_procs_pid(procs, process->key),
                             .to = tm_target_pid(watcher),
                             .reason = process->reason};
    if (watch->by_name) signal.from_name = (tm_bytes){watch->name, watch->name_len};
    signal.ref = (tm_ref){.node = tm_remote_name(watch->peer),
                          .creation = watch->key.creation,
                          .count = watch->key.count};
    memcpy(signal.ref.words, watch->key.words, sizeof signal.ref.words);
    tm_procs_signal(procs, watch->peer, &signal);
    tm_watch_free(procs, watch);
}

void tm_monitors_settle(tm_procs *procs, tm_process *process)
{
    TM_LIST_EACH (&process->watches, node, following)
        watch_fire(procs, TM_CONTAINER(node, tm_watch, of_target), process);
    TM_LIST_EACH (&process->watched, node, following)
        tm_handle_fire(procs, TM_CONTAINER(node, tm_handle, of_target), process->reason);
    TM_LIST_EACH (&process->handles, node, following) {
        tm_handle *handle = TM_CONTAINER(node, tm_handle, of_owner);
        if (handle->kind == TM_HANDLE_MONITOR)
            monitor_cancel(procs, handle);
        else if (handle->kind != TM_HANDLE_SPAWN)
            tm_handle_free(procs, handle);
    }
}
