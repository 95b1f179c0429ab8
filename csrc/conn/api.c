/* The functions of tumen.h that act on a node's processes, messages and peers. */
#include "../base/check.h"
#include "../dist/handshake.h"
#include "mapper.h"
#include "node.h"

static_assert(TUMEN_PARTS_MAX == TM_PARTS_MAX, "what tumen.h says of tumen_send_parts");

static const struct {
    int code;
    const char *text;
} ERRORS[] = {
#define TM_ERROR(name, value, text) {(value), text},
#include "../error.def"
#undef TM_ERROR
};

const char *tumen_error_text(int code)
{
    for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
        if (ERRORS[i].code == code) return ERRORS[i].text;
    if (code == 0) return "no error";
    const char *text = code < 0 && code > -4096 ? strerrordesc_np(-code) : NULL;
    return text ? text : "unknown error";
}

const char *tumen_version(void) { return TM_VERSION; }

static bool bytes_equal(tumen_bytes a, tm_bytes b) { return tm_bytes_equal(tm_private(a), b); }

/* Names of nodes and processes that a caller gives. */
static bool name_fits(tumen_bytes name)
{
    size_t chars;
    return name.len && name.len <= TM_ATOM_BYTES_MAX && tm_utf8_valid(tm_private(name), &chars) &&
           chars <= TM_ATOM_CHARS_MAX;
}

/* The node of a target, and whether the target can be meant at all. */
static int target_node(const tumen_target *target, tumen_bytes *node)
{
    switch (target->kind) {
    case TUMEN_TO_PID: *node = target->pid.node; break;
    case TUMEN_TO_REF:
        if (target->ref.count == 0 || target->ref.count > TM_REF_WORDS_MAX) return TM_EUSE_ARG;
        *node = target->ref.node;
        break;
    case TUMEN_TO_NAME:
        if (!name_fits(target->name)) return TM_EUSE_NAME;
        *node = target->node;
        break;
    default: return TM_EUSE_ARG;
    }
    return 0;
}

/* The peer of a remote target; made if it may be connected to. Under the lock. */
static int target_peer(tumen_node *node, tumen_bytes name, bool connect, tm_peer **peer)
{
    *peer = tm_node_find_peer(node, tm_private(name));
    if (*peer && (connect || (*peer)->state == TM_PEER_UP)) return 0;
    if (!connect) return TM_ENOCONN;
    if (!tm_node_name_valid(tm_private(name))) return TM_EUSE_NAME;
    *peer = tm_node_make_peer(node, tm_private(name));
    return *peer ? 0 : TM_ENOMEM;
}

static int node_usable(const tumen_node *node)
{
    if (node->forked) return TM_EFORKED;
    return node->named ? 0 : TM_EUSE_STATE;
}

#define RETURN_UNLESS_USABLE(node)                                                                 \
    do {                                                                                           \
        int usable_ = node_usable(node);                                                           \
        if (usable_) return usable_;                                                               \
    } while (0)

/* -- processes ------------------------------------------------------------------------------------- */

int tumen_spawn(tumen_node *node, tumen_key *key)
{
    RETURN_UNLESS_USABLE(node);
    tm_node_lock(node);
    int rc = tm_procs_spawn(node->procs, key);
    tm_node_unlock(node);
    return rc;
}

int tumen_exit(tumen_node *node, tumen_key key, tumen_bytes reason)
{
    RETURN_UNLESS_USABLE(node);
    tm_node_lock(node);
    int rc = tm_procs_exit(node->procs, key, tm_private(reason));
    tm_node_unlock(node);
    return rc;
}

int tumen_alive(tumen_node *node, tumen_key key)
{
    RETURN_UNLESS_USABLE(node);
    tm_node_lock(node);
    bool alive = tm_procs_alive(node->procs, key);
    tm_node_unlock(node);
    return alive;
}

int tumen_pid_of(tumen_node *node, tumen_key key, tumen_pid *pid)
{
    RETURN_UNLESS_USABLE(node);
    tm_node_lock(node);
    tm_pid found = tm_procs_pid(node->procs, key);
    found.node = tm_node_name(node);
    tm_node_unlock(node);
    *pid = tm_public_pid(&found);
    return 0;
}

int tumen_trap_exit(tumen_node *node, tumen_key key, int trap)
{
    RETURN_UNLESS_USABLE(node);
    tm_node_lock(node);
    int rc = tm_procs_trap_exit(node->procs, key, trap != 0);
    tm_node_unlock(node);
    return rc;
}

int tumen_register(tumen_node *node, tumen_bytes name, tumen_key key)
{
    RETURN_UNLESS_USABLE(node);
    if (!name_fits(name)) return TM_EUSE_NAME;
    tm_node_lock(node);
    int rc = tm_procs_register(node->procs, tm_private(name), key);
    tm_node_unlock(node);
    return rc;
}

int tumen_unregister(tumen_node *node, tumen_bytes name)
{
    RETURN_UNLESS_USABLE(node);
    if (bytes_equal(name, TM_BYTES("net_kernel"))) return TM_EUSE_NAME;
    tm_node_lock(node);
    int rc = tm_procs_unregister(node->procs, tm_private(name));
    tm_node_unlock(node);
    return rc;
}

tumen_key tumen_whereis(tumen_node *node, tumen_bytes name)
{
    if (node_usable(node)) return 0;
    tm_node_lock(node);
    tumen_key key = tm_procs_whereis(node->procs, tm_private(name));
    tm_node_unlock(node);
    return key;
}

/* The node's own name as it lives in the node: what a caller may keep. */
static void ref_out(const tumen_node *node, const tm_ref *ref, tumen_ref *out)
{
    *out = tm_public_ref(ref);
    out->node = tm_public(tm_node_name(node));
}

int tumen_make_ref(tumen_node *node, tumen_ref *ref)
{
    RETURN_UNLESS_USABLE(node);
    tm_node_lock(node);
    tm_ref made = tm_procs_make_ref(node->procs);
    tm_node_unlock(node);
    ref_out(node, &made, ref);
    return 0;
}

void tumen_mail_taken(tumen_node *node, tumen_key key, uint64_t bytes)
{
    if (node->forked || !bytes) return;
    __atomic_sub_fetch(&node->mail_bytes, bytes, __ATOMIC_RELAXED);
    tm_node_lock(node);
    tm_procs_mail_take(node->procs, key, bytes);
    tm_node_unlock(node);
}

/* -- messages -------------------------------------------------------------------------------------- */

/* Whom a message to this node is for; it counts in that mailbox from now on. 0: nobody gets it. Under
 * the lock. */
static tm_proc_key local_admit(tumen_node *node, const tm_target *to, uint64_t bytes, bool *reply)
{
    tm_proc_key key = 0;
    *reply = false;
    if (to->kind == TM_TARGET_PID)
        key = tm_procs_find(node->procs, &to->pid);
    else if (to->kind == TM_TARGET_NAME)
        key = tm_procs_whereis(node->procs, to->name);
    else
        key = tm_procs_use_alias(node->procs, &to->ref, reply);
    if (!key || key == node->kernel) {
        TM_ATOMIC_ADD(&node->messages_dropped, 1);
        return 0;
    }
    if (!*reply) {
        uint64_t mailbox = tm_node_limit(node, TUMEN_LIMIT_MAILBOX_BYTES);
        uint64_t waiting = tm_procs_mail_put(node->procs, key, bytes);
        if (waiting > mailbox) {
            tm_node_mailbox_full(node, key, waiting);
            return 0;
        }
        TM_ATOMIC_ADD(&node->mail_bytes, bytes);
    }
    TM_ATOMIC_ADD(&node->messages_in, 1);
    return key;
}

/* To a process of this node, through the inbox like any other. Under the lock. */
static int send_local(tumen_node *node, const tm_pid *from, const tm_target *to, tm_bytes message,
                      tm_bytes token)
{
    bool reply;
    tm_proc_key key = local_admit(node, to, message.len, &reply);
    if (!key) return 0;
    tumen_event event = {.kind = reply ? TUMEN_EVENT_REPLY : TUMEN_EVENT_MESSAGE,
                         .process = key,
                         .wire_bytes = reply ? 0 : message.len,
                         .from = tm_public_pid(from),
                         .text = tm_public(token),
                         .term = tm_public(message)};
    if (to->kind == TM_TARGET_REF) event.ref = tm_public_ref(&to->ref);
    int rc = tm_inbox_put(&node->inbox, &event, NULL, 0);
    /* Not before: it may end the sender, whose token the event borrows. */
    tm_node_mail_relieve(node);
    return rc;
}

/* One span of the parts: for local messages, which are rarely in more than one. */
static int parts_join(tumen_node *node, const tumen_part *parts, size_t count, tm_buf *joined)
{
    tm_buf_init(joined, &node->engine->alloc, 0);
    for (size_t i = 0; i < count; i++) {
        int rc = tm_buf_append(joined, parts[i].bytes.ptr, parts[i].bytes.len);
        if (rc) return rc;
    }
    return 0;
}

static int send_here(tumen_node *node, tumen_key from, const tm_target *to, const tumen_part *parts,
                     size_t count)
{
    tm_buf joined = {0};
    tm_bytes message = tm_private(parts[0].bytes);
    if (count > 1) {
        int rc = parts_join(node, parts, count, &joined);
        message = tm_buf_bytes(&joined);
        if (rc) {
            tm_buf_fini(&joined);
            return rc;
        }
    }
    tm_node_lock(node);
    tm_pid sender = {0};
    if (from) sender = tm_procs_pid(node->procs, from);
    tm_bytes token = {0};
    if (tm_procs_traced(node->procs)) token = tm_procs_next_token(node->procs, from);
    int rc = send_local(node, &sender, to, message, token);
    for (size_t i = 0; i < count; i++)
        if (parts[i].lent)
            tm_node_event(
                node,
                &(tumen_event){.kind = TUMEN_EVENT_RETURNED, .number = (int64_t)parts[i].lent},
                NULL);
    tm_node_unlock(node);
    if (count > 1) tm_buf_fini(&joined);
    return rc;
}

/* A process or an alias that no node can have made. */
static bool target_is_nobody(const tm_target *to)
{
    return (to->kind == TM_TARGET_PID && to->pid.id > TM_PID_ID_MAX) ||
           (to->kind == TM_TARGET_REF && to->ref.words[0] > TM_REF_WORD_0_MAX);
}

/* A message to a process of another node. */
struct outgoing {
    tm_pid from;
    tm_target to;
    const tumen_part *parts;
    size_t count;
    size_t copied; /* bytes of parts that are not lent */
    uint64_t total;
};

/* Under the lock. */
static int send_queue(tumen_node *node, tm_peer *peer, const struct outgoing *out, tumen_key from,
                      tm_entry *entry, unsigned flags)
{
    if (tm_peer_refuses(peer, flags & TUMEN_SEND_CONTROL, out->total > TM_FRAGMENT_BYTES))
        return TM_EBUSY;
    if (!entry) {
        tm_bytes token = {0};
        if (tm_procs_traced(node->procs)) token = tm_procs_next_token(node->procs, from);
        entry = tm_entry_message(node, &out->from, &out->to, out->parts, out->count, token);
        if (!entry) return TM_ENOMEM;
    }
    tm_peer_queue(peer, entry);
    TM_ATOMIC_ADD(&node->messages_out, 1);
    return 0;
}

static int send_out(tumen_node *node, tumen_bytes where, const struct outgoing *out, tumen_key from,
                    unsigned flags)
{
    tm_peer *peer;
    tm_entry *entry = NULL;
    /* What is long to copy is copied before the lock is taken. */
    if (out->copied > TM_ENTRY_SMALL_BYTES && !tm_procs_traced(node->procs)) {
        entry = tm_entry_message(node, &out->from, &out->to, out->parts, out->count, (tm_bytes){0});
        if (!entry) return TM_ENOMEM;
    }
    tm_node_lock(node);
    int rc = target_peer(node, where, !(flags & TUMEN_SEND_NOCONNECT), &peer);
    if (!rc) rc = send_queue(node, peer, out, from, entry, flags);
    if (rc && entry) tm_entry_free(&node->entries, entry);
    tm_node_unlock(node);
    return rc;
}

int tumen_send_parts(tumen_node *node, tumen_key from, const tumen_target *target,
                     const tumen_part *parts, size_t count, unsigned flags)
{
    RETURN_UNLESS_USABLE(node);
    tumen_bytes where;
    int rc = target_node(target, &where);
    if (rc) return rc;
    if (count == 0 || count > TM_PARTS_MAX) return TM_EUSE_ARG;
    struct outgoing out = {.to = tm_private_target(target), .parts = parts, .count = count};
    for (size_t i = 0; i < count; i++) {
        out.total += parts[i].bytes.len;
        if (!parts[i].lent) out.copied += parts[i].bytes.len;
    }
    if (out.total == 0) return TM_EUSE_TERM;
    if (out.total > tm_node_limit(node, TUMEN_LIMIT_MESSAGE_BYTES)) return TM_EUSE_LIMIT;
    if (target_is_nobody(&out.to) || bytes_equal(where, tm_node_name(node)))
        return send_here(node, from, &out.to, parts, count);
    if (from) {
        /* The parts of a key are its pid: no need for the lock. */
        out.from.id = tm_proc_key_id(from);
        out.from.serial = tm_proc_key_serial(from);
        out.from.creation = node->creation;
    }
    return send_out(node, where, &out, from, flags);
}

int tumen_send(tumen_node *node, tumen_key from, const tumen_target *to, tumen_bytes message,
               unsigned flags)
{
    tumen_part part = {.bytes = message};
    return tumen_send_parts(node, from, to, &part, 1, flags);
}

int tumen_send_local(tumen_node *node, tumen_key from, const tumen_target *target, uint64_t bytes,
                     int64_t number, tumen_local *local)
{
    RETURN_UNLESS_USABLE(node);
    tumen_bytes where;
    int rc = target_node(target, &where);
    if (rc) return rc;
    tm_target to = tm_private_target(target);
    if (target_is_nobody(&to) || !bytes_equal(where, tm_node_name(node))) return TM_EUSE_ARG;
    if (bytes > tm_node_limit(node, TUMEN_LIMIT_MESSAGE_BYTES)) return TM_EUSE_LIMIT;
    if (tm_procs_traced(node->procs)) return TM_EUSE_STATE;
    *local = (tumen_local){0};
    bool reply;
    tm_node_lock(node);
    local->key = local_admit(node, &to, bytes, &reply);
    local->reply = reply;
    local->waits = local->key && tm_inbox_bytes(&node->inbox) != 0;
    if (local->waits) {
        tumen_event event = {.kind = TUMEN_EVENT_LOCAL,
                             .process = local->key,
                             .wire_bytes = reply ? 0 : bytes,
                             .number = number};
        if (from) {
            tm_pid sender = tm_procs_pid(node->procs, from);
            event.from = tm_public_pid(&sender);
        }
        rc = tm_inbox_put(&node->inbox, &event, NULL, 0);
    }
    tm_node_mail_relieve(node);
    tm_node_unlock(node);
    return rc;
}

/* A flush writes to so many peers itself where the engine writes to any number with one system call:
 * each direct write saves a switch of threads, and costs a call of its own. */
#define DIRECT_PEERS_MAX 4

/* Under the lock. */
static bool flush_is_engines(const tumen_node *node)
{
    size_t count = 0;
    if (!node->engine->io->ops->gathers) return false;
    TM_LIST_EACH (&node->dirty, link, following) {
        if (++count > DIRECT_PEERS_MAX) return true;
    }
    return false;
}

void tumen_flush(tumen_node *node)
{
    if (node->forked) return;
    bool wake = false;
    tm_node_lock(node);
    tm_node_hasten(node);
    if (flush_is_engines(node)) {
        tm_node_unlock(node);
        tm_engine_wake(node->engine);
        return;
    }
    /* Bounded: a peer that a direct write could not finish is the engine's business. */
    for (size_t n = node->peers.count; n; n--) {
        tm_list *link = tm_list_pop(&node->dirty);
        if (!link) break;
        tm_peer *peer = TM_CONTAINER(link, tm_peer, dirty_link);
        if (!tm_connection_write_direct(peer) && tm_sendq_ready(&peer->queue)) {
            tm_peer_mark_dirty(peer);
            wake = true;
        }
    }
    wake = wake || !tm_list_empty(&node->dirty);
    tm_node_unlock(node);
    if (wake) tm_engine_wake(node->engine);
}

int tumen_want_writable(tumen_node *node, tumen_bytes name)
{
    RETURN_UNLESS_USABLE(node);
    tm_node_lock(node);
    tm_peer *peer = tm_node_find_peer(node, tm_private(name));
    int rc = peer ? 0 : TM_ENOCONN;
    /* Who was refused is told by the event of what he was refused for. */
    if (peer && (peer->want_small || tm_peer_refuses(peer, false, true))) rc = TM_EBUSY;
    tm_node_unlock(node);
    return rc;
}

/* -- monitors, links, aliases ------------------------------------------------------------------------- */

#define MONITOR_FLAGS                                                                              \
    (TUMEN_MONITOR_ALIAS | TUMEN_MONITOR_EXPLICIT_UNALIAS | TUMEN_MONITOR_DEMONITOR |              \
     TUMEN_MONITOR_REPLY_DEMONITOR)
static_assert((int)TUMEN_MONITOR_ALIAS == (int)TM_MONITOR_ALIAS_REPLY &&
                  (int)TUMEN_MONITOR_EXPLICIT_UNALIAS == (int)TM_MONITOR_EXPLICIT_UNALIAS &&
                  (int)TUMEN_MONITOR_DEMONITOR == (int)TM_MONITOR_DEMONITOR &&
                  (int)TUMEN_MONITOR_REPLY_DEMONITOR == (int)TM_MONITOR_REPLY_DEMONITOR,
              "the flags of tumen.h are those of csrc/proc");

int tumen_monitor(tumen_node *node, tumen_key watcher, const tumen_target *target, unsigned flags,
                  tumen_ref *ref)
{
    RETURN_UNLESS_USABLE(node);
    tumen_bytes where;
    int rc = target_node(target, &where);
    if (rc) return rc;
    if (target->kind == TUMEN_TO_REF) return TM_EUSE_ARG;
    if (!tm_node_name_valid(tm_private(where))) return TM_EUSE_NAME;
    tm_target to = tm_private_target(target);
    tm_ref made;
    tm_node_lock(node);
    rc = tm_procs_monitor(node->procs, watcher, &to, flags & MONITOR_FLAGS, &made);
    tm_node_unlock(node);
    if (!rc) ref_out(node, &made, ref);
    return rc;
}

int tumen_demonitor(tumen_node *node, tumen_key watcher, const tumen_ref *ref)
{
    RETURN_UNLESS_USABLE(node);
    tm_ref given = tm_private_ref(ref);
    tm_node_lock(node);
    bool was = tm_procs_demonitor(node->procs, watcher, &given);
    tm_node_unlock(node);
    return was;
}

int tumen_watched(tumen_node *node, tumen_key key, const tumen_ref *ref)
{
    RETURN_UNLESS_USABLE(node);
    tm_ref given = tm_private_ref(ref);
    tm_node_lock(node);
    bool is = tm_procs_watched(node->procs, key, &given);
    tm_node_unlock(node);
    return is;
}

int tumen_link(tumen_node *node, tumen_key key, const tumen_pid *to)
{
    RETURN_UNLESS_USABLE(node);
    tm_pid pid = tm_private_pid(to);
    if (!tm_node_name_valid(pid.node)) return TM_EUSE_NAME;
    tm_node_lock(node);
    int rc = tm_procs_link(node->procs, key, &pid);
    tm_node_unlock(node);
    return rc;
}

int tumen_unlink(tumen_node *node, tumen_key key, const tumen_pid *to)
{
    RETURN_UNLESS_USABLE(node);
    tm_pid pid = tm_private_pid(to);
    tm_node_lock(node);
    int rc = tm_procs_unlink(node->procs, key, &pid);
    tm_node_unlock(node);
    return rc;
}

int tumen_exit_signal(tumen_node *node, tumen_key from, const tumen_target *target,
                      tumen_bytes reason)
{
    RETURN_UNLESS_USABLE(node);
    tumen_bytes where;
    int rc = target_node(target, &where);
    if (rc) return rc;
    if (target->kind == TUMEN_TO_NAME) return TM_EUSE_ARG;
    if (!tm_node_name_valid(tm_private(where))) return TM_EUSE_NAME;
    tm_target to = tm_private_target(target);
    tm_node_lock(node);
    rc = to.kind == TM_TARGET_PID
             ? tm_procs_exit2(node->procs, from, &to.pid, tm_private(reason))
             : tm_procs_exit_alias(node->procs, from, &to.ref, tm_private(reason));
    tm_node_unlock(node);
    return rc;
}

int tumen_alias(tumen_node *node, tumen_key key, unsigned flags, tumen_ref *ref)
{
    RETURN_UNLESS_USABLE(node);
    tm_ref made;
    tm_node_lock(node);
    int rc = tm_procs_alias(node->procs, key, flags & TUMEN_ALIAS_REPLY, &made);
    tm_node_unlock(node);
    if (!rc) ref_out(node, &made, ref);
    return rc;
}

int tumen_unalias(tumen_node *node, tumen_key key, const tumen_ref *ref)
{
    RETURN_UNLESS_USABLE(node);
    tm_ref given = tm_private_ref(ref);
    tm_node_lock(node);
    bool was = tm_procs_unalias(node->procs, key, &given);
    tm_node_unlock(node);
    return was;
}

/* -- nodes as such ----------------------------------------------------------------------------- */

/* Starts to connect where that is needed. Under the lock. */
static int node_want(tumen_node *node, tm_bytes name)
{
    tm_peer *peer = tm_node_make_peer(node, name);
    if (!peer) return TM_ENOMEM;
    if (peer->state != TM_PEER_DOWN) return 0;
    peer->state = TM_PEER_PENDING;
    tm_engine_command(node->engine, &peer->connect);
    return 0;
}

int tumen_monitor_node(tumen_node *node, tumen_key key, tumen_bytes name, int on)
{
    RETURN_UNLESS_USABLE(node);
    tm_bytes peer = tm_private(name);
    if (!tm_node_name_valid(peer)) return TM_EUSE_NAME;
    tm_node_lock(node);
    int rc = on ? tm_procs_monitor_node(node->procs, key, peer)
                : tm_procs_demonitor_node(node->procs, key, peer);
    if (!rc && on && !bytes_equal(name, tm_node_name(node))) {
        rc = node_want(node, peer);
        if (rc) tm_procs_demonitor_node(node->procs, key, peer);
    }
    tm_node_unlock(node);
    return rc;
}

/* -- what a process hands on ------------------------------------------------------------------- */

int tumen_group_leader(tumen_node *node, tumen_key key, tumen_pid *leader, char *space)
{
    RETURN_UNLESS_USABLE(node);
    tm_pid found;
    tm_node_lock(node);
    bool set = tm_procs_leader(node->procs, key, &found);
    int rc = set ? 1 : tm_procs_alive(node->procs, key) ? 0 : TM_ENOPROC;
    if (set) {
        TM_ASSERT(found.node.len <= TM_NODE_NAME_BYTES_MAX);
        memcpy(space, found.node.ptr, found.node.len);
        *leader = tm_public_pid(&found);
        leader->node.ptr = (const uint8_t *)space;
    }
    tm_node_unlock(node);
    return rc;
}

int tumen_set_group_leader(tumen_node *node, tumen_key by, const tumen_pid *process,
                           const tumen_pid *leader)
{
    RETURN_UNLESS_USABLE(node);
    tm_pid to = tm_private_pid(process), new = tm_private_pid(leader);
    if (!tm_node_name_valid(to.node) || !tm_node_name_valid(new.node)) return TM_EUSE_NAME;
    tm_node_lock(node);
    int rc = tm_procs_lead(node->procs, by, &to, &new);
    tm_node_unlock(node);
    return rc;
}

int tumen_trace(tumen_node *node, tumen_key key, tumen_bytes token)
{
    RETURN_UNLESS_USABLE(node);
    tm_node_lock(node);
    int rc = tm_procs_trace(node->procs, key, tm_private(token));
    tm_node_unlock(node);
    return rc;
}

int tumen_trace_token(tumen_node *node, tumen_key key, uint8_t *space, size_t size)
{
    RETURN_UNLESS_USABLE(node);
    tm_node_lock(node);
    tm_bytes token = tm_procs_token(node->procs, key);
    int rc = token.len <= size ? (int)token.len : TM_EUSE_LIMIT;
    if (rc > 0) memcpy(space, token.ptr, token.len);
    tm_node_unlock(node);
    return rc;
}

/* -- spawn requests ------------------------------------------------------------------------------------- */

/* [link, monitor | Options]: a list of what the flags say and of the further options. */
static int spawn_options(const tumen_node *node, const tumen_spawn_spec *spec, tm_buf *out)
{
    tm_cursor c = tm_cursor_of(tm_private(spec->options));
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    uint32_t more = 0;
    if (spec->options.len && tm_etf_read_list(&c, &more)) return TM_EUSE_TERM;
    tm_bytes rest = tm_bytes_of(c.ptr, tm_cursor_left(&c)), skipped;
    for (uint32_t i = 0; i < more; i++)
        if (tm_etf_read_term(&c, &limits, &node->engine->alloc, &skipped)) return TM_EUSE_TERM;
    if (more && (tm_cursor_left(&c) != 1 || *c.ptr != TM_NIL_EXT)) return TM_EUSE_TERM;
    bool link = spec->flags & TUMEN_SPAWN_LINK, monitor = spec->flags & TUMEN_SPAWN_MONITOR;
    if (more > UINT32_MAX - 2) return TM_EUSE_LIMIT;
    int rc = tm_etf_write_list(out, more + link + monitor);
    if (!rc && link) rc = tm_etf_write_atom(out, TM_BYTES("link"));
    if (!rc && monitor) rc = tm_etf_write_atom(out, TM_BYTES("monitor"));
    if (!rc) rc = more ? tm_etf_write_raw(out, rest) : tm_etf_write_nil(out);
    return rc;
}

/* Under the lock. */
static int spawn_queue(tumen_node *node, tumen_key from, tm_peer *peer,
                       const tumen_spawn_spec *spec, tm_bytes options, tm_ref *made)
{
    int rc = tm_procs_spawn_request(node->procs, from, peer->name, spec->flags, made);
    if (rc) return rc;
    tm_pid sender = tm_procs_pid(node->procs, from);
    tm_entry_rare rare = {.options = options,
                          .leader = spec->leader.node.len ? tm_private_pid(&spec->leader) : sender};
    if (tm_procs_traced(node->procs)) rare.token = tm_procs_next_token(node->procs, from);
    tm_entry *entry = tm_entry_spawn_request(node, &sender, made, spec, &rare);
    if (!entry) {
        tm_procs_spawn_abandon(node->procs, from, made);
        return TM_ENOMEM;
    }
    tm_peer_queue(peer, entry);
    TM_ATOMIC_ADD(&node->messages_out, 1);
    return 0;
}

static_assert((size_t)TUMEN_NODE_NAME_BYTES > TM_NODE_NAME_BYTES_MAX, "a name fits its space");
static_assert((size_t)TUMEN_TRACE_TOKEN_BYTES == TM_TRACE_TOKEN_BYTES_MAX, "one number");
static_assert((int)TUMEN_SPAWN_LINK == (int)TM_SPAWN_LINK &&
                  (int)TUMEN_SPAWN_MONITOR == (int)TM_SPAWN_MONITOR,
              "the flags of tumen.h are those of csrc/proc");

int tumen_spawn_request(tumen_node *node, tumen_key from, const tumen_spawn_spec *spec,
                        tumen_ref *ref)
{
    RETURN_UNLESS_USABLE(node);
    if (!name_fits(spec->module) || !name_fits(spec->function)) return TM_EUSE_NAME;
    if (bytes_equal(spec->peer, tm_node_name(node)) || !spec->args.len) return TM_EUSE_ARG;
    if (spec->args.len > tm_node_limit(node, TUMEN_LIMIT_MESSAGE_BYTES)) return TM_EUSE_LIMIT;
    if (spec->leader.node.len && !tm_node_name_valid(tm_private(spec->leader.node)))
        return TM_EUSE_NAME;
    if (spec->leader.node.len && spec->leader.id > TM_PID_ID_MAX) return TM_EUSE_ARG;
    tm_buf options;
    tm_buf_init(&options, &node->engine->alloc, TM_SPAWN_OPTIONS_BYTES_MAX);
    int rc = spawn_options(node, spec, &options);
    tm_peer *peer;
    tm_ref made = {0};
    if (rc) {
        tm_buf_fini(&options);
        return rc;
    }
    tm_node_lock(node);
    rc = target_peer(node, spec->peer, true, &peer);
    if (!rc && tm_peer_refuses(peer, false, spec->args.len > TM_FRAGMENT_BYTES)) rc = TM_EBUSY;
    if (!rc) rc = spawn_queue(node, from, peer, spec, tm_buf_bytes(&options), &made);
    tm_node_unlock(node);
    tm_buf_fini(&options);
    if (!rc) ref_out(node, &made, ref);
    return rc;
}

int tumen_spawn_abandon(tumen_node *node, tumen_key from, const tumen_ref *ref)
{
    RETURN_UNLESS_USABLE(node);
    tm_ref given = tm_private_ref(ref);
    tm_node_lock(node);
    /* Once it was answered it is a monitor like any other. */
    bool was = tm_procs_spawn_abandon(node->procs, from, &given) ||
               tm_procs_demonitor(node->procs, from, &given);
    tm_node_unlock(node);
    return was;
}

/* -- peers ---------------------------------------------------------------------------------------------- */

static int peer_set_address(tm_peer *peer, const char *host, uint16_t port)
{
    const tm_alloc *alloc = &peer->node->engine->alloc;
    size_t size = strlen(host) + 1;
    char *copy = tm_alloc_get(alloc, size);
    if (!copy) return TM_ENOMEM;
    memcpy(copy, host, size);
    if (peer->host) tm_alloc_free(alloc, peer->host, strlen(peer->host) + 1);
    peer->host = copy;
    peer->port = port;
    return 0;
}

int tumen_node_connect(tumen_node *node, tumen_bytes name, const char *host, uint16_t port)
{
    if (node->forked) return TM_EFORKED;
    if (!tm_node_name_valid(tm_private(name)) || bytes_equal(name, tm_node_name(node)))
        return TM_EUSE_NAME;
    if (host && (port == 0 || strlen(host) > TM_NODE_NAME_BYTES_MAX)) return TM_EUSE_ARG;
    tm_node_lock(node);
    tm_peer *peer = tm_node_make_peer(node, tm_private(name));
    int rc = peer ? 0 : TM_ENOMEM;
    if (!rc && host) rc = peer_set_address(peer, host, port);
    if (!rc && peer->state == TM_PEER_UP) rc = 1;
    if (!rc && peer->state == TM_PEER_DOWN) {
        peer->state = TM_PEER_PENDING;
        tm_engine_command(node->engine, &peer->connect);
    }
    tm_node_unlock(node);
    return rc;
}

struct epoch_close {
    tumen_node *node;
    tm_bytes name;  /* or */
    uint64_t epoch; /* when name is empty */
    int code;
    const char *text;
    int rc;
};

static void close_now(void *ctx)
{
    struct epoch_close *close = ctx;
    tumen_node *node = close->node;
    struct tm_connection *found = NULL;
    size_t position = 0;
    tm_node_lock_engine(node);
    if (close->name.len) {
        tm_peer *peer = tm_node_find_peer(node, close->name);
        found = peer ? peer->conn : NULL;
    } else {
        for (tm_peer *peer; !found && (peer = tm_map_next(&node->peers, &position));)
            if (peer->conn && tm_connection_epoch(peer->conn) == close->epoch) found = peer->conn;
    }
    tm_node_unlock(node);
    close->rc = found ? 0 : TM_ENOCONN;
    if (!found) return;
    if (close->code == TM_ECLOSED)
        tm_connection_finish(found, close->text);
    else
        tm_connection_close(found, close->code, close->text);
}

int tumen_node_disconnect(tumen_node *node, tumen_bytes peer)
{
    if (node->forked) return TM_EFORKED;
    if (!peer.len) return TM_EUSE_NAME;
    struct epoch_close close = {node, tm_private(peer), 0, TM_ECLOSED, "disconnect", 0};
    tm_engine_call(node->engine, close_now, &close);
    return close.rc;
}

int tumen_node_blame(tumen_node *node, uint64_t connection, const char *text)
{
    RETURN_UNLESS_USABLE(node);
    struct epoch_close close = {node, {0}, connection, TM_EPEER_MALFORMED, text, 0};
    if (connection) tm_engine_call(node->engine, close_now, &close);
    return close.rc;
}

static int node_grow_names(tumen_node *node, size_t size)
{
    if (size <= node->listed_names_size) return 0;
    const tm_alloc *alloc = &node->engine->alloc;
    char *names = alloc->resize(alloc->ctx, node->listed_names, node->listed_names_size, size);
    if (!names) return TM_ENOMEM;
    node->listed_names = names;
    node->listed_names_size = size;
    return 0;
}

int tumen_node_connections(tumen_node *node, tumen_connection *connections, size_t max)
{
    if (node->forked) return TM_EFORKED;
    size_t position = 0, size = 0;
    int count = 0;
    tm_node_lock(node);
    for (const tm_peer *peer; (peer = tm_map_next(&node->peers, &position));)
        size += peer->name.len;
    int rc = node_grow_names(node, size);
    char *at = node->listed_names;
    position = 0;
    for (const tm_peer *peer; !rc && (peer = tm_map_next(&node->peers, &position));) {
        if (peer->state == TM_PEER_DOWN) continue;
        if ((size_t)count < max) {
            tm_connection_fill(peer, &connections[count]);
            memcpy(at, peer->name.ptr, peer->name.len);
            connections[count].name = tm_public(tm_bytes_of(at, peer->name.len));
            at += peer->name.len;
        }
        count++;
    }
    tm_node_unlock(node);
    return rc ? rc : count;
}

int tumen_node_get_info(tumen_node *node, tumen_node_info *info)
{
    if (node->forked) return TM_EFORKED;
    tm_node_lock(node);
    *info = (tumen_node_info){
        .name = tm_public(tm_node_name(node)),
        .creation = node->creation,
        .port = node->port,
        .visible = node->visible,
        .registered = TM_ATOMIC_GET(&node->registered),
        .serves_epmd = TM_ATOMIC_GET(&node->engine->mapper) != NULL,
        .processes = tm_procs_count(node->procs),
        .inbox_bytes = tm_inbox_bytes(&node->inbox),
        .mail_bytes = TM_ATOMIC_GET(&node->mail_bytes),
        .sendq_bytes = TM_ATOMIC_GET(&node->sendq_bytes),
        .messages_in = TM_ATOMIC_GET(&node->messages_in),
        .messages_out = TM_ATOMIC_GET(&node->messages_out),
        .messages_dropped = TM_ATOMIC_GET(&node->messages_dropped),
        .operations_refused = TM_ATOMIC_GET(&node->operations_refused),
        .operations_unknown = TM_ATOMIC_GET(&node->operations_unknown),
        .half_open = TM_ATOMIC_GET(&node->greeting_count),
    };
    size_t position = 0;
    for (const tm_peer *peer; (peer = tm_map_next(&node->peers, &position));)
        if (peer->state == TM_PEER_UP) info->connections++;
    tm_node_unlock(node);
    return 0;
}

/* -- events ------------------------------------------------------------------------------------------------ */

int tumen_node_event_fd(const tumen_node *node) { return node->inbox.fd; }

int tumen_node_arm(tumen_node *node)
{
    return node->forked ? TM_EFORKED : tm_inbox_arm(&node->inbox);
}

tumen_batch *tumen_node_take(tumen_node *node)
{
    return node->forked ? NULL : tm_inbox_take(&node->inbox);
}

/* -- the port mapper ------------------------------------------------------------------------------------------ */

struct serve {
    tumen_engine *engine;
    const char *host;
    uint16_t port;
    int rc;
};

static void serve_now(void *ctx)
{
    struct serve *serve = ctx;
    serve->rc = tm_mapper_start(serve->engine, serve->host, serve->port);
}

int tumen_engine_serve_epmd(tumen_engine *engine, const char *address, uint16_t port)
{
    if (engine->forked) return TM_EFORKED;
    struct serve serve = {engine, address ? address : "127.0.0.1",
                          port ? port : TM_EPMD_PORT_DEFAULT, 0};
    tm_engine_call(engine, serve_now, &serve);
    return serve.rc;
}
