#include "kernel.h"

/* -- net_kernel ---------------------------------------------------------------------------------------- */

static bool atom_is(tm_cursor *c, tm_bytes text)
{
    tm_atom atom;
    return tm_etf_read_atom(c, &atom) == 0 && !atom.latin1 && tm_bytes_equal(atom.text, text);
}

static bool tuple_is(tm_cursor *c, uint32_t arity)
{
    uint32_t found;
    return tm_etf_read_tuple(c, &found) == 0 && found == arity;
}

/* A tag [alias|Ref] or [[alias|Ref]|_] names the alias that the reply goes to. */
static bool tag_alias(tm_cursor c, tm_ref *ref)
{
    uint32_t count;
    if (tm_etf_read_list(&c, &count) != 0 || count != 1) return false;
    if (tm_cursor_left(&c) && *c.ptr == TM_LIST_EXT)
        if (tm_etf_read_list(&c, &count) != 0 || count != 1) return false;
    return atom_is(&c, TM_BYTES("alias")) && tm_etf_read_ref(&c, ref) == 0;
}

/* {'$gen_call', {Pid, Tag}, {is_auth, Node}}: what net_adm:ping asks. Fills tag (a span) and pid. */
static bool is_auth(tm_bytes message, const tm_alloc *alloc, tm_pid *pid, tm_bytes *tag)
{
    tm_cursor c = tm_cursor_of(message);
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    return tuple_is(&c, 3) && atom_is(&c, TM_BYTES("$gen_call")) && tuple_is(&c, 2) &&
           tm_etf_read_pid(&c, pid) == 0 && tm_etf_read_term(&c, &limits, alloc, tag) == 0 &&
           tuple_is(&c, 2) && atom_is(&c, TM_BYTES("is_auth"));
}

int tm_kernel_message(tm_connection *conn, tm_bytes message)
{
    tumen_node *node = conn->node;
    const tm_alloc *alloc = &node->engine->alloc;
    tm_pid pid;
    tm_bytes tag;
    if (!is_auth(message, alloc, &pid, &tag)) {
        TM_ATOMIC_ADD(&node->operations_refused, 1);
        return 0;
    }
    tm_buf reply;
    tm_buf_init(&reply, alloc, 0);
    int rc = tm_etf_write_tuple(&reply, 2);
    if (!rc) rc = tm_etf_write_raw(&reply, tag);
    if (!rc) rc = tm_etf_write_atom(&reply, TM_BYTES("yes"));
    tm_target to = {.kind = TM_TARGET_PID, .pid = pid};
    if (tag_alias(tm_cursor_of(tag), &to.ref)) to.kind = TM_TARGET_REF;
    tm_bytes target_node = to.kind == TM_TARGET_REF ? to.ref.node : pid.node;
    if (!rc && tm_bytes_equal(target_node, conn->peer->name)) {
        tumen_part part = {.bytes = tm_public(tm_buf_bytes(&reply))};
        tm_node_lock_engine(node);
        tm_pid from = tm_procs_pid(node->procs, node->kernel);
        tm_entry *entry = tm_entry_message(node, &from, &to, &part, 1, (tm_bytes){0});
        if (entry)
            tm_peer_queue(conn->peer, entry);
        else
            rc = TM_ENOMEM;
        tm_node_unlock(node);
    }
    tm_buf_fini(&reply);
    return rc;
}

/* -- spawn requests --------------------------------------------------------------------------------------- */

static int spawn_answer(tm_connection *conn, const tm_control *control, unsigned flags,
                        const tm_pid *pid, tm_bytes error)
{
    tumen_node *node = conn->node;
    /* As OTP: the answer to a traced request comes from the new process, traced. */
    tm_bytes token = {0};
    if (pid && control->has_token)
        token = tm_procs_next_token(node->procs, tm_procs_find(node->procs, pid));
    tm_entry *entry =
        tm_entry_spawn_reply(node, &control->ref, &control->from.pid, flags, pid, error, token);
    if (!entry) return TM_ENOMEM;
    tm_peer_queue(conn->peer, entry);
    return 0;
}

int tm_kernel_spawn_refuse(tm_connection *conn, const tm_control *control, tm_bytes error)
{
    TM_ATOMIC_ADD(&conn->node->operations_refused, 1);
    tm_node_lock_engine(conn->node);
    int rc = spawn_answer(conn, control, 0, NULL, error);
    tm_node_unlock(conn->node);
    return rc;
}

/* Names of atoms, the last one empty. Text lies in the table itself: pointers would have to be
 * writable for the loader. */
typedef char names[8][20];

static bool atom_among(tm_cursor c, const names list)
{
    tm_atom atom;
    if (tm_etf_read_atom(&c, &atom) != 0) return false;
    for (size_t i = 0; list[i][0]; i++)
        if (tm_bytes_equal(atom.text, tm_bytes_of(list[i], strlen(list[i])))) return true;
    return false;
}

static bool count_is(tm_cursor c)
{
    uint64_t value;
    return tm_etf_read_u64(&c, &value) == 0;
}

/* {Tag, Value}: those of spawn_opt/5, which mean nothing here, are taken if OTP would take them. */
static bool spawn_option_pair(tm_cursor c)
{
    static const names COUNTS = {"fullsweep_after", "min_heap_size", "min_bin_vheap_size",
                                 "max_heap_size", "scheduler"};
    static const names PRIORITY = {"priority"}, PRIORITIES = {"low", "normal", "high", "max"};
    static const names QUEUE = {"message_queue_data"}, QUEUES = {"on_heap", "off_heap", "mixed"};
    static const names ASYNC = {"async_dist"}, BOOLEANS = {"true", "false"};
    static const names HEAP = {"max_heap_size"};
    tm_atom tag;
    tm_cursor value = c;
    if (tm_etf_read_atom(&value, &tag) != 0) return false;
    if (atom_among(c, COUNTS) && count_is(value)) return true;
    if (atom_among(c, HEAP)) return tm_cursor_left(&value) && *value.ptr == TM_MAP_EXT;
    if (atom_among(c, PRIORITY)) return atom_among(value, PRIORITIES);
    if (atom_among(c, QUEUE)) return atom_among(value, QUEUES);
    return atom_among(c, ASYNC) && atom_among(value, BOOLEANS);
}

/* One option; false for what spawn_opt/5 would not take either. */
static bool spawn_option(tm_cursor c, unsigned *flags)
{
    tm_cursor item = c;
    if (atom_is(&item, TM_BYTES("link"))) {
        *flags |= TM_SPAWN_LINK;
        return true;
    }
    item = c;
    if (atom_is(&item, TM_BYTES("monitor"))) {
        *flags |= TM_SPAWN_MONITOR;
        return true;
    }
    return tuple_is(&c, 2) && spawn_option_pair(c);
}

/* False for an option that is unknown, and for what is no proper list: `badopt`. */
static bool spawn_options(tm_bytes options, const tm_alloc *alloc, unsigned *flags)
{
    tm_cursor c = tm_cursor_of(options);
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    uint32_t count;
    *flags = 0;
    if (tm_etf_read_list(&c, &count) != 0) return false;
    for (uint32_t i = 0; i < count; i++) {
        if (!spawn_option(c, flags)) return false;
        tm_bytes skipped;
        if (tm_etf_read_term(&c, &limits, alloc, &skipped) != 0) return false;
    }
    return count == 0 || (tm_cursor_left(&c) >= 1 && *c.ptr == TM_NIL_EXT);
}

static bool spawn_is_erpc(const tm_control *control)
{
    if (!tm_bytes_equal(control->module, TM_BYTES("erpc"))) return false;
    return (tm_bytes_equal(control->function, TM_BYTES("execute_call")) && control->arity == 4) ||
           (tm_bytes_equal(control->function, TM_BYTES("execute_cast")) && control->arity == 3);
}

/* Texts of atoms of a payload; in Latin-1 they are transcoded into scratch. */
struct function {
    tm_bytes module, function;
    uint8_t scratch[2][TM_ATOM_BYTES_MAX];
};

/* What erlang:apply is asked to run: [fun M:F/A, Args], which is how spawn(Node, fun M:F/A) comes, or
 * [M, F, Args]. False for another function, and for arguments that name none. */
static bool spawn_applies(const tm_connection *conn, const tm_control *control, tm_bytes arguments,
                          struct function *applied)
{
    if (!tm_bytes_equal(control->module, TM_BYTES("erlang")) ||
        !tm_bytes_equal(control->function, TM_BYTES("apply")) ||
        (control->arity != 2 && control->arity != 3))
        return false;
    tm_cursor c = tm_cursor_of(arguments);
    const tm_atom_header *header = conn->incoming->header;
    tm_walk_limits limits = {.cache_refs = header->count, .cache_atoms = header->atoms};
    uint32_t count;
    uint8_t tag = TM_EXPORT_EXT;
    if (tm_etf_read_list(&c, &count) != 0 || count != control->arity) return false;
    if (count == 2 && tm_cursor_u8(&c, &tag) != 0) return false;
    return tag == TM_EXPORT_EXT &&
           tm_etf_read_atom_utf8_in(&c, &limits, applied->scratch[0], &applied->module) == 0 &&
           tm_etf_read_atom_utf8_in(&c, &limits, applied->scratch[1], &applied->function) == 0;
}

static bool spawn_served(const tm_connection *conn, const tm_control *control, tm_bytes arguments)
{
    if (spawn_is_erpc(control)) return true;
    struct function applied;
    bool applies = spawn_applies(conn, control, arguments, &applied);
    tumen_node *node = conn->node;
    tm_node_lock_engine(node);
    bool exposed = tm_node_exposes(node, control->module, control->function) ||
                   (applies && tm_node_exposes(node, applied.module, applied.function));
    tm_node_unlock(node);
    return exposed;
}

/* Makes the process, with all that it inherits. Under the lock. */
static int spawn_accept(tm_connection *conn, const tm_control *control, unsigned flags,
                        tm_proc_key *key)
{
    tm_procs *procs = conn->node->procs;
    int rc = tm_procs_on_spawn(procs, &control->from.pid, &control->ref, flags, key);
    if (rc) return rc;
    rc = tm_procs_set_leader(procs, *key, &control->group_leader);
    if (!rc && control->has_token) rc = tm_procs_trace(procs, *key, control->token);
    tm_pid pid = tm_procs_pid(procs, *key);
    if (!rc) rc = spawn_answer(conn, control, flags, &pid, (tm_bytes){0});
    if (rc) tm_procs_exit(procs, *key, TM_BYTES("w\014system_limit"));
    return rc;
}

int tm_kernel_spawn_request(tm_connection *conn, const tm_control *control, tm_bytes arguments)
{
    tumen_node *node = conn->node;
    const tm_alloc *alloc = &node->engine->alloc;
    unsigned flags;
    if (!tm_bytes_equal(control->from.pid.node, conn->peer->name)) {
        tm_connection_close(
            conn, TM_EPEER_MALFORMED,
            "malformed SPAWN_REQUEST: the requester is not a process of the sending "
            "node");
        return TM_EPEER_MALFORMED;
    }
    if (!spawn_served(conn, control, arguments))
        return tm_kernel_spawn_refuse(conn, control, TM_BYTES("notsup"));
    if (!spawn_options(control->options, alloc, &flags))
        return tm_kernel_spawn_refuse(conn, control, TM_BYTES("badopt"));
    tm_walk_result result;
    int rc = tm_receive_walk(conn, &arguments, &result);
    if (rc == TM_EPEER_LIMIT)
        return tm_kernel_spawn_refuse(conn, control, TM_BYTES("system_limit"));
    if (rc) {
        tm_connection_close(conn, rc, "malformed arguments of a SPAWN_REQUEST");
        return rc;
    }
    tm_node_lock_engine(node);
    tm_proc_key key = 0;
    rc = spawn_accept(conn, control, flags, &key);
    tm_node_unlock(node);
    if (rc == TM_EUSE_LIMIT || rc == TM_EPEER_LIMIT)
        return tm_kernel_spawn_refuse(conn, control, TM_BYTES("system_limit"));
    if (rc == TM_EPEER_MALFORMED)
        tm_connection_close(conn, rc,
                            "malformed SPAWN_REQUEST: its reference is in use or not its own");
    if (rc) return rc;
    tumen_event event = {.kind = TUMEN_EVENT_SPAWN,
                         .connection = conn->epoch,
                         .from = tm_public_pid(&control->from.pid),
                         .ref = tm_public_ref(&control->ref),
                         .node = tm_public(control->module),
                         .name = tm_public(control->function),
                         .term = tm_public(arguments)};
    tm_inbox_term term = tm_receive_term(conn, &result);
    return tm_node_deliver(node, key, &event, &term, conn->source);
}
