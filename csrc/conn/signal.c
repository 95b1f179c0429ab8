/* Between csrc/proc and the rest: its signals become queue entries, its events inbox events. */
#include "node.h"

static tm_small_pid small_pid(const tm_pid *pid)
{
    return (tm_small_pid){pid->id, pid->serial, pid->creation};
}

static tm_small_ref small_ref(const tm_ref *ref)
{
    tm_small_ref small = {.creation = ref->creation, .count = ref->count};
    memcpy(small.words, ref->words, sizeof small.words);
    return small;
}

tumen_pid tm_public_pid(const tm_pid *pid)
{
    return (tumen_pid){tm_public(pid->node), pid->id, pid->serial, pid->creation};
}

tumen_ref tm_public_ref(const tm_ref *ref)
{
    tumen_ref public = {
        .node = tm_public(ref->node), .creation = ref->creation, .count = ref->count};
    memcpy(public.words, ref->words, sizeof public.words);
    return public;
}

tm_pid tm_private_pid(const tumen_pid *pid)
{
    return (tm_pid){tm_private(pid->node), pid->id, pid->serial, pid->creation};
}

tm_ref tm_private_ref(const tumen_ref *ref)
{
    tm_ref private = {
        .node = tm_private(ref->node), .creation = ref->creation, .count = ref->count};
    memcpy(private.words, ref->words, sizeof private.words);
    return private;
}

tm_target tm_private_target(const tumen_target *target)
{
    return (tm_target){.kind = (enum tm_target_kind)target->kind,
                       .node = tm_private(target->node),
                       .pid = tm_private_pid(&target->pid),
                       .name = tm_private(target->name),
                       .ref = tm_private_ref(&target->ref)};
}

/* -- entries ---------------------------------------------------------------------------------------- */

static void entry_target(tm_entry *entry, const tm_target *to, uint8_t **at)
{
    switch (to->kind) {
    case TM_TARGET_PID:
        entry->to_kind = TM_ITEM_PID;
        entry->to = small_pid(&to->pid);
        break;
    case TM_TARGET_NAME:
        entry->to_kind = TM_ITEM_NAME;
        entry->name = tm_entry_keep(at, to->name);
        break;
    case TM_TARGET_REF:
        entry->to_kind = TM_ITEM_REF;
        entry->to_ref = small_ref(&to->ref);
        break;
    }
}

tm_entry *tm_entry_message(tumen_node *node, const tm_pid *from, const tm_target *to,
                           const tumen_part *parts, size_t count, tm_bytes token)
{
    tm_entry_rare rare = {.token = token};
    size_t copied = token.len ? tm_entry_rare_size(&rare) : 0;
    for (size_t i = 0; i < count; i++)
        if (!parts[i].lent) copied += parts[i].bytes.len;
    size_t extra = copied + (to->kind == TM_TARGET_NAME ? to->name.len : 0);
    tm_entry *entry = tm_entry_create(&node->entries, extra, count);
    if (!entry) return NULL;
    static const uint8_t OPS[] = {[TM_TARGET_PID] = TM_OP_SEND,
                                  [TM_TARGET_NAME] = TM_OP_REG_SEND,
                                  [TM_TARGET_REF] = TM_OP_ALIAS_SEND};
    entry->op = OPS[to->kind];
    entry->message = true;
    entry->from = small_pid(from);
    uint8_t *at = tm_entry_space(entry);
    if (token.len) tm_entry_keep_rare(entry, &at, &rare);
    entry_target(entry, to, &at);
    for (size_t i = 0; i < count; i++) {
        entry->parts[i] = parts[i];
        entry->payload_len += parts[i].bytes.len;
        if (parts[i].lent)
            entry->weight += parts[i].bytes.len;
        else
            entry->parts[i].bytes = tm_public(tm_entry_keep(&at, tm_private(parts[i].bytes)));
    }
    return entry;
}

tm_entry *tm_entry_spawn_reply(tumen_node *node, const tm_ref *request, const tm_pid *to,
                               unsigned flags, const tm_pid *pid, tm_bytes error, tm_bytes token)
{
    tm_entry_rare rare = {.token = token};
    size_t extra = token.len ? tm_entry_rare_size(&rare) : 0;
    tm_entry *entry = tm_entry_create(&node->entries, error.len + extra, 0);
    if (!entry) return NULL;
    uint8_t *at = tm_entry_space(entry);
    if (token.len) tm_entry_keep_rare(entry, &at, &rare);
    entry->op = TM_OP_SPAWN_REPLY;
    entry->ref = small_ref(request);
    entry->ref_theirs = true;
    entry->to_kind = TM_ITEM_PID;
    entry->to = small_pid(to);
    entry->number = flags;
    if (pid) entry->result = small_pid(pid);
    entry->name = tm_entry_keep(&at, error);
    return entry;
}

tm_entry *tm_entry_spawn_request(tumen_node *node, const tm_pid *from, const tm_ref *ref,
                                 const tumen_spawn_spec *spec, const tm_entry_rare *rare)
{
    size_t extra =
        tm_entry_rare_size(rare) + spec->module.len + spec->function.len + spec->args.len;
    tm_entry *entry = tm_entry_create(&node->entries, extra, 1);
    if (!entry) return NULL;
    uint8_t *at = tm_entry_space(entry);
    tm_entry_keep_rare(entry, &at, rare);
    entry->op = TM_OP_SPAWN_REQUEST;
    entry->message = true;
    entry->from = small_pid(from);
    entry->ref = small_ref(ref);
    entry->arity = spec->arity;
    entry->name = tm_entry_keep(&at, tm_private(spec->module));
    entry->name2 = tm_entry_keep(&at, tm_private(spec->function));
    entry->payload_len = spec->args.len;
    entry->parts[0] = (tumen_part){.bytes = tm_public(tm_entry_keep(&at, tm_private(spec->args)))};
    return entry;
}

/* -- the sink of csrc/proc --------------------------------------------------------------------------- */

static const uint8_t SIGNAL_OPS[] = {
    [TM_SIGNAL_LINK] = TM_OP_LINK,
    [TM_SIGNAL_UNLINK_ID] = TM_OP_UNLINK_ID,
    [TM_SIGNAL_UNLINK_ID_ACK] = TM_OP_UNLINK_ID_ACK,
    [TM_SIGNAL_EXIT] = TM_OP_EXIT,
    [TM_SIGNAL_EXIT2] = TM_OP_EXIT2,
    [TM_SIGNAL_MONITOR] = TM_OP_MONITOR_P,
    [TM_SIGNAL_DEMONITOR] = TM_OP_DEMONITOR_P,
    [TM_SIGNAL_MONITOR_EXIT] = TM_OP_MONITOR_P_EXIT,
    [TM_SIGNAL_GROUP_LEADER] = TM_OP_GROUP_LEADER,
};

/* Signals that ask for something connect; the others speak of a connection that is there or are void. */
static bool signal_connects(enum tm_proc_signal_kind kind)
{
    return kind == TM_SIGNAL_LINK || kind == TM_SIGNAL_MONITOR || kind == TM_SIGNAL_EXIT2 ||
           kind == TM_SIGNAL_GROUP_LEADER;
}

static tm_entry *signal_entry(tumen_node *node, const tm_proc_signal *signal)
{
    /* A monitor that was set by name is answered by name, even by the empty one. */
    bool by_name = signal->from_name.ptr != NULL;
    tm_bytes name = by_name                             ? signal->from_name
                    : signal->to.kind == TM_TARGET_NAME ? signal->to.name
                                                        : (tm_bytes){0};
    tm_entry_rare rare = {.token = signal->token, .leader = signal->leader};
    bool is_rare = rare.token.len || signal->kind == TM_SIGNAL_GROUP_LEADER;
    /* exit/2 to an alias has an operation of its own, with the reason as payload. */
    bool to_alias = signal->to.kind == TM_TARGET_REF;
    size_t extra = name.len + signal->reason.len + (is_rare ? tm_entry_rare_size(&rare) : 0);
    tm_entry *entry = tm_entry_create(&node->entries, extra, to_alias);
    if (!entry) return NULL;
    uint8_t *at = tm_entry_space(entry);
    if (is_rare) tm_entry_keep_rare(entry, &at, &rare);
    entry->op = to_alias ? TM_OP_ALTACT_SIG_SEND : SIGNAL_OPS[signal->kind];
    entry->from = small_pid(&signal->from);
    if (by_name) {
        entry->from_name = true;
        entry->name = tm_entry_keep(&at, signal->from_name);
        entry->to_kind = TM_ITEM_PID;
        entry->to = small_pid(&signal->to.pid);
    } else {
        entry_target(entry, &signal->to, &at);
    }
    entry->ref = small_ref(&signal->ref);
    entry->ref_theirs = signal->kind == TM_SIGNAL_MONITOR_EXIT;
    entry->number = to_alias ? TM_ALTACT_EXIT : signal->unlink_id;
    entry->reason = tm_entry_keep(&at, signal->reason);
    if (to_alias) {
        entry->payload_len = entry->reason.len;
        entry->parts[0] = (tumen_part){.bytes = tm_public(entry->reason)};
    }
    return entry;
}

void tm_node_on_signal(void *ctx, const tm_proc_signal *signal)
{
    tumen_node *node = ctx;
    tm_peer *peer = tm_node_find_peer(node, signal->node);
    if (!peer || peer->state == TM_PEER_DOWN) {
        if (!signal_connects(signal->kind)) return;
        peer = tm_node_make_peer(node, signal->node);
    }
    tm_entry *entry = peer ? signal_entry(node, signal) : NULL;
    if (!entry) {
        /* Without memory for a signal the connection's state is no longer what the peer thinks. */
        if (peer && peer->conn) peer->conn_failed = true;
        if (peer) tm_peer_mark_dirty(peer);
        return;
    }
    tm_peer_queue(peer, entry);
}

void tm_node_on_event(void *ctx, const tm_proc_event *event)
{
    tumen_node *node = ctx;
    static const int KINDS[] = {[TM_EVENT_PROC_EXITED] = TUMEN_EVENT_EXITED,
                                [TM_EVENT_EXIT_MESSAGE] = TUMEN_EVENT_EXIT,
                                [TM_EVENT_DOWN] = TUMEN_EVENT_DOWN,
                                [TM_EVENT_SPAWN_REPLY] = TUMEN_EVENT_SPAWN_REPLY,
                                [TM_EVENT_NODE_LOST] = TUMEN_EVENT_NODE_LOST};
    tumen_event out = {.kind = KINDS[event->kind], .process = event->key};
    out.from = tm_public_pid(&event->pid);
    out.ref = tm_public_ref(&event->ref);
    out.term = tm_public(event->reason);
    out.text = tm_public(event->token);
    if (event->kind == TM_EVENT_DOWN) {
        if (event->item.kind == TM_TARGET_NAME) {
            out.name = tm_public(event->item.name);
            out.node = tm_public(event->item.node);
        } else {
            out.from = tm_public_pid(&event->item.pid);
        }
    } else if (event->kind == TM_EVENT_NODE_LOST) {
        out.node = tm_public(event->item.node);
    } else if (event->kind == TM_EVENT_SPAWN_REPLY) {
        out.code = event->ok ? 0 : TM_EPEER_REFUSED;
    }
    tm_node_event(node, &out, NULL);
}
