/* In: bytes of a connected peer become signals to csrc/proc and messages in the inbox.
 *
 * What is malformed closes the connection: everything before it was delivered, nothing after it is.
 * What is well-formed but over one of our limits is dropped with an event. What goes to nobody is
 * counted. Everything that the core can answer it answers here, without Python. */
#include <stdio.h>

#include "../base/check.h"
#include "connection.h"
#include "kernel.h"

/* A fault is told to people: where, and what. */
static int receive_fault(tm_connection *conn, const char *part, const tm_fault *fault, int rc)
{
    char text[160];
    const char *what = fault->what ? fault->what : tumen_error_text(rc);
    if (rc == TM_EPEER_MALFORMED)
        snprintf(text, sizeof text, "malformed %s: %s (byte %zu)", part, what, fault->offset);
    else
        snprintf(text, sizeof text, "%s: %s", part, what);
    tm_connection_close(conn, rc, text);
    return rc;
}

static void receive_refused(tm_connection *conn, tm_proc_key key, int code, const char *text,
                            uint64_t number)
{
    TM_ATOMIC_ADD(&conn->node->operations_refused, 1);
    tm_node_event(conn->node,
                  &(tumen_event){.kind = TUMEN_EVENT_REFUSED,
                                 .node = tm_public(conn->peer->name),
                                 .connection = conn->epoch,
                                 .process = key,
                                 .code = code,
                                 .text = {(const uint8_t *)text, strlen(text)},
                                 .number = (int64_t)number},
                  NULL);
}

static tm_walk_limits receive_limits(const tm_connection *conn, const tm_atom_header *header)
{
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    limits.depth_max = (uint32_t)tm_node_limit(conn->node, TUMEN_LIMIT_DEPTH);
    limits.decoded_bytes_max = tm_node_limit(conn->node, TUMEN_LIMIT_DECODED_BYTES);
    limits.cache_refs = header->count;
    limits.cache_atoms = header->atoms;
    return limits;
}

int tm_receive_walk(tm_connection *conn, tm_bytes *payload, tm_walk_result *walked)
{
    const tm_incoming *incoming = conn->incoming;
    if (incoming->dropped_bytes) {
        *walked = (tm_walk_result){.what = "message larger than message_bytes_max"};
        return TM_EPEER_LIMIT;
    }
    tm_walk_limits limits = receive_limits(conn, incoming->header);
    int rc = tm_etf_walk(*payload, &limits, &conn->node->engine->alloc, walked);
    if (rc) return rc;
    payload->len = walked->len;
    /* Two bytes can become a thousand. */
    uint64_t bytes_max = tm_node_limit(conn->node, TUMEN_LIMIT_MESSAGE_BYTES);
    if (!walked->refs.growth || walked->len + walked->refs.growth <= bytes_max) return 0;
    walked->what = "message larger than message_bytes_max with its atoms written out";
    return TM_EPEER_LIMIT;
}

tm_inbox_term tm_receive_term(const tm_connection *conn, const tm_walk_result *walked)
{
    return (tm_inbox_term){.atoms = conn->incoming->header->atoms,
                           .refs = &walked->refs,
                           .memory = conn->incoming->memory};
}

/* The same with the faults settled. 0, or the connection is closed (negative), or it was refused
 * with an event (1). */
static int receive_walk(tm_connection *conn, tm_proc_key key, tm_bytes *payload,
                        tm_walk_result *walked)
{
    int rc = tm_receive_walk(conn, payload, walked);
    if (rc == 0) return 0;
    if (rc == TM_EPEER_LIMIT) {
        uint64_t dropped = conn->incoming->dropped_bytes;
        receive_refused(conn, key, rc, walked->what, dropped ? dropped : payload->len);
        return 1;
    }
    tm_fault fault = {walked->offset, walked->what};
    return receive_fault(conn, "term", &fault, rc);
}

/* Writes out the references of a walked payload that is read here, and not by the consumer. 0, or
 * TM_ENOMEM. */
static int receive_plain(tm_connection *conn, tm_bytes *payload, const tm_walk_result *walked)
{
    if (!walked->refs.count) return 0;
    tm_incoming *incoming = conn->incoming;
    size_t len = payload->len + walked->refs.growth;
    incoming->plain.len = 0;
    int rc = tm_buf_reserve(&incoming->plain, len);
    if (rc) return rc;
    tm_etf_expand_to(incoming->plain.ptr, *payload, incoming->header->atoms, &walked->refs);
    *payload = tm_bytes_of(incoming->plain.ptr, len);
    return 0;
}

/* -- messages -------------------------------------------------------------------------------------------- */

/* {mailbox_full, Bytes} */
void tm_node_mailbox_full(tumen_node *node, tm_proc_key key, uint64_t bytes)
{
    uint8_t space[64];
    tm_buf reason = {.ptr = space, .cap = sizeof space, .max = sizeof space};
    int rc = tm_etf_write_tuple(&reason, 2);
    if (!rc) rc = tm_etf_write_atom(&reason, TM_BYTES("mailbox_full"));
    if (!rc) rc = tm_etf_write_u64(&reason, bytes);
    TM_ASSERT(rc == 0);
    if (tm_procs_exit(node->procs, key, tm_buf_bytes(&reason)) != 0) return;
    tm_node_event(node,
                  &(tumen_event){.kind = TUMEN_EVENT_EXITED,
                                 .process = key,
                                 .term = tm_public(tm_buf_bytes(&reason))},
                  NULL);
}

/* What is waiting for all processes together. A process that is ended here does not count any more,
 * though its mail lies there until the consumer has given it back. */
void tm_node_mail_relieve(tumen_node *node)
{
    uint64_t bytes, limit = tm_node_limit(node, TUMEN_LIMIT_INBOX_BYTES);
    while (tm_procs_mail(node->procs) > limit) {
        tm_proc_key fullest = tm_procs_fullest(node->procs, &bytes);
        tm_node_mailbox_full(node, fullest, bytes);
    }
}

int tm_node_deliver(tumen_node *node, tm_proc_key key, tumen_event *event,
                    const tm_inbox_term *term, tm_source *source)
{
    event->process = key;
    if (event->kind != TUMEN_EVENT_MESSAGE)
        return tm_inbox_put_term(&node->inbox, event, term, source, 1);
    event->wire_bytes = event->term.len + term->refs->growth;
    tm_node_lock_engine(node);
    uint64_t waiting = tm_procs_mail_put(node->procs, key, event->wire_bytes);
    bool full = waiting > tm_node_limit(node, TUMEN_LIMIT_MAILBOX_BYTES);
    if (full) tm_node_mailbox_full(node, key, waiting);
    /* What waits in the inbox is a connection's to answer for: receive_relieve. */
    bool over = tm_procs_mail(node->procs) > tm_node_limit(node, TUMEN_LIMIT_INBOX_BYTES) &&
                tm_inbox_bytes(&node->inbox) < tm_procs_mail(node->procs);
    if (over) tm_node_mail_relieve(node);
    tm_node_unlock(node);
    if (full) return 0;
    TM_ATOMIC_ADD(&node->mail_bytes, event->wire_bytes);
    TM_ATOMIC_ADD(&node->messages_in, 1);
    return tm_inbox_put_term(&node->inbox, event, term, source, 1);
}

/* Closes the connection with most bytes in the inbox. What it has sent stays and is delivered: it
 * does not count any more, or every other connection would follow with its next message; up to
 * TM_INBOX_HARD_FACTOR times the bound, for memory's sake. Mailboxes have a bound of their own. */
static void receive_relieve(tm_connection *last)
{
    tumen_node *node = last->node;
    uint64_t limit = tm_node_limit(node, TUMEN_LIMIT_INBOX_BYTES);
    uint64_t waiting = tm_inbox_bytes(&node->inbox);
    if (waiting <= limit) node->forgiven_bytes = 0;
    uint64_t forgiven = waiting > limit * TM_INBOX_HARD_FACTOR ? 0 : node->forgiven_bytes;
    if (waiting <= limit + forgiven) return;
    tm_connection *worst = last;
    TM_LIST_EACH (&last->node->connections, link, following) {
        tm_connection *conn = TM_CONTAINER(link, tm_connection, link);
        if (!conn->down && tm_connection_waiting(conn) > tm_connection_waiting(worst)) worst = conn;
    }
    node->forgiven_bytes = forgiven + tm_connection_waiting(worst);
    tm_connection_close(worst, TM_EUSE_LIMIT, "inbox_full");
}

static int receive_dropped(tm_connection *conn)
{
    TM_ATOMIC_ADD(&conn->node->messages_dropped, 1);
    return 0;
}

static int receive_message(tm_connection *conn, const tm_control *control, tm_proc_key key,
                           bool reply, tm_bytes payload)
{
    tumen_node *node = conn->node;
    if (!key) return receive_dropped(conn);
    tm_walk_result walked;
    int rc = receive_walk(conn, key, &payload, &walked);
    if (rc) return rc < 0 ? rc : 0;
    if (key == node->kernel) {
        rc = receive_plain(conn, &payload, &walked);
        return rc ? rc : tm_kernel_message(conn, payload);
    }
    tumen_event event = {.kind = reply ? TUMEN_EVENT_REPLY : TUMEN_EVENT_MESSAGE,
                         .connection = conn->epoch,
                         .term = tm_public(payload)};
    if (control->from.kind == TM_ITEM_PID) event.from = tm_public_pid(&control->from.pid);
    if (control->to.kind == TM_ITEM_REF) event.ref = tm_public_ref(&control->to.ref);
    if (control->has_token) event.text = tm_public(control->token);
    tm_inbox_term term = tm_receive_term(conn, &walked);
    return tm_node_deliver(node, key, &event, &term, conn->source);
}

/* A reply ends its monitor over there. That has time: who gets the reply mostly has more to say to
 * that node, and both leave in one write. Under the lock. */
static tm_proc_key receive_by_alias(tm_connection *conn, const tm_ref *ref, bool *reply)
{
    tumen_node *node = conn->node;
    tumen_engine *engine = node->engine;
    node->can_wait = true;
    tm_proc_key key = tm_procs_use_alias(node->procs, ref, reply);
    node->can_wait = false;
    if (!tm_list_empty(&node->later) && !tm_timer_armed(&node->later_timer))
        tm_timer_arm(&engine->wheel, &node->later_timer,
                     engine->now_ns + TM_DEMONITOR_WAIT_MS * TM_MS_NS);
    return key;
}

static int receive_send(tm_connection *conn, const tm_control *control, tm_bytes payload)
{
    tumen_node *node = conn->node;
    tm_proc_key key = 0;
    bool reply = false;
    tm_node_lock_engine(node);
    if (control->to.kind == TM_ITEM_PID)
        key = tm_procs_find(node->procs, &control->to.pid);
    else if (control->to.kind == TM_ITEM_NAME)
        key = tm_procs_whereis(node->procs, control->to.name);
    else
        key = receive_by_alias(conn, &control->to.ref, &reply);
    tm_node_unlock(node);
    return receive_message(conn, control, key, reply, payload);
}

/* -- signals -------------------------------------------------------------------------------------------------- */

/* A peer may speak for its own processes only: OTP closes on a LINK or MONITOR_P of another's. */
static bool from_is_peers(const tm_connection *conn, const tm_control *control)
{
    return control->from.kind == TM_ITEM_PID &&
           tm_bytes_equal(control->from.pid.node, conn->peer->name);
}

static tm_target control_target(const tumen_node *node, const tm_control *control)
{
    tm_target target = {.node = tm_node_name(node)};
    if (control->to.kind == TM_ITEM_PID) {
        target.kind = TM_TARGET_PID;
        target.pid = control->to.pid;
    } else {
        target.kind = TM_TARGET_NAME;
        target.name = control->to.name;
    }
    return target;
}

static void receive_abandoned(tumen_node *node, tm_proc_key key)
{
    if (!key) return;
    tm_node_event(node, &(tumen_event){.kind = TUMEN_EVENT_ABANDONED, .process = key}, NULL);
}

/* Under the lock. */
static int apply_signal(tm_connection *conn, const tm_control *control, tm_bytes reason)
{
    tm_procs *procs = conn->node->procs;
    const tm_pid *from = &control->from.pid, *to = &control->to.pid;
    tm_proc_key abandoned = 0;
    tm_target target;
    int rc;
    switch (control->op) {
    case TM_OP_LINK: return tm_procs_on_link(procs, from, to);
    case TM_OP_UNLINK_ID: return tm_procs_on_unlink_id(procs, control->unlink_id, from, to);
    case TM_OP_UNLINK_ID_ACK: return tm_procs_on_unlink_id_ack(procs, control->unlink_id, from, to);
    case TM_OP_EXIT:
        tm_procs_carry(procs, control->token);
        return tm_procs_on_exit(procs, from, to, reason);
    case TM_OP_EXIT2:
        tm_procs_carry(procs, control->token);
        return control->to.kind == TM_ITEM_REF
                   ? tm_procs_on_exit_alias(procs, from, &control->to.ref, reason)
                   : tm_procs_on_exit2(procs, from, to, reason);
    case TM_OP_MONITOR_P:
        target = control_target(conn->node, control);
        return tm_procs_on_monitor(procs, from, &target, &control->ref);
    case TM_OP_DEMONITOR_P:
        rc = tm_procs_on_demonitor(procs, from, &control->ref, &abandoned);
        receive_abandoned(conn->node, abandoned);
        return rc;
    case TM_OP_MONITOR_P_EXIT:
        return tm_procs_on_monitor_exit(procs, conn->peer->name, to, &control->ref, reason);
    default: return TM_EUSE_ARG;
    }
}

static int receive_signal(tm_connection *conn, const tm_control *control, tm_bytes reason)
{
    tm_node_lock_engine(conn->node);
    int rc = apply_signal(conn, control, reason);
    tm_node_unlock(conn->node);
    if (rc) tm_connection_close(conn, rc, tumen_error_text(rc));
    return rc;
}

/* LINK, UNLINK_ID, DEMONITOR_P and the like: the sender must be the peer's. */
static int receive_own_signal(tm_connection *conn, const tm_control *control)
{
    if (from_is_peers(conn, control)) return receive_signal(conn, control, (tm_bytes){0});
    static const tm_fault FAULT = {0, "the sender is not a process of the sending node"};
    return receive_fault(conn, tm_opcode_name(control->wire_op), &FAULT, TM_EPEER_MALFORMED);
}

static int receive_reason(tm_connection *conn, const tm_control *control, tm_bytes payload)
{
    tm_bytes reason = control->reason;
    if (control->has_payload) {
        tm_walk_result walked;
        int rc = receive_walk(conn, 0, &payload, &walked);
        if (!rc) rc = receive_plain(conn, &payload, &walked);
        if (rc < 0) return rc;
        /* An exit that is too large to be told must still end what it ends. */
        static const uint8_t TRUNCATED[] = {TM_SMALL_ATOM_UTF8_EXT,
                                            16,
                                            'r',
                                            'e',
                                            'a',
                                            's',
                                            'o',
                                            'n',
                                            '_',
                                            't',
                                            'o',
                                            'o',
                                            '_',
                                            'l',
                                            'a',
                                            'r',
                                            'g',
                                            'e'};
        reason = rc ? (tm_bytes){TRUNCATED, sizeof TRUNCATED} : payload;
    }
    return receive_signal(conn, control, reason);
}

static int receive_spawn_reply(tm_connection *conn, const tm_control *control)
{
    tumen_node *node = conn->node;
    bool ok = control->result.kind == TM_ITEM_PID;
    uint8_t atom[TM_ATOM_BYTES_MAX + 3];
    tm_buf error = {.ptr = atom, .cap = sizeof atom, .max = sizeof atom};
    if (!ok && tm_etf_write_atom(&error, control->result.name) != 0) return 0;
    tm_node_lock_engine(node);
    int rc = tm_procs_on_spawn_reply(node->procs, conn->peer->name, &control->ref, &control->to.pid,
                                     (unsigned)control->flags, ok ? &control->result.pid : NULL,
                                     tm_buf_bytes(&error));
    tm_node_unlock(node);
    if (rc) tm_connection_close(conn, rc, tumen_error_text(rc));
    return rc;
}

/* Operation 37 is another operation to an alias, or with a priority, which means nothing here. */
static int receive_altact(tm_connection *conn, tm_control *control, tm_bytes payload)
{
    if (!(control->flags & TM_ALTACT_EXIT)) return receive_send(conn, control, payload);
    if (control->to.kind == TM_ITEM_NAME) return receive_dropped(conn);
    control->op = TM_OP_EXIT2;
    return receive_reason(conn, control, payload);
}

static int receive_group_leader(tm_connection *conn, const tm_control *control)
{
    tm_node_lock_engine(conn->node);
    int rc = tm_procs_on_group_leader(conn->node->procs, &control->group_leader, &control->to.pid);
    tm_node_unlock(conn->node);
    return rc;
}

static int receive_counted(tm_connection *conn)
{
    TM_ATOMIC_ADD(&conn->node->operations_unknown, 1);
    return 0;
}

/* A signal goes on without a trace token that no process could keep, and that is told. */
static void receive_token(tm_connection *conn, tm_control *control)
{
    if (!control->has_token) return;
    int rc = tm_procs_token_check(conn->node->procs, control->token);
    if (rc == 0) return;
    const char *text = rc == TM_EUSE_LIMIT ? "trace token left out of a message: too large"
                                           : "trace token left out of a message: it is none";
    receive_refused(conn, 0, rc, text, control->token.len);
    control->has_token = false;
    control->token = (tm_bytes){0};
}

static int receive_control(tm_connection *conn, tm_control *control, tm_bytes payload)
{
    receive_token(conn, control);
    switch (control->op) {
    case TM_OP_SEND:
    case TM_OP_REG_SEND:
    case TM_OP_ALIAS_SEND: return receive_send(conn, control, payload);
    case TM_OP_ALTACT_SIG_SEND: return receive_altact(conn, control, payload);
    case TM_OP_LINK:
    case TM_OP_UNLINK_ID:
    case TM_OP_UNLINK_ID_ACK:
    case TM_OP_MONITOR_P:
    case TM_OP_DEMONITOR_P: return receive_own_signal(conn, control);
    case TM_OP_EXIT:
    case TM_OP_EXIT2:
    case TM_OP_MONITOR_P_EXIT: return receive_reason(conn, control, payload);
    case TM_OP_SPAWN_REQUEST: return tm_kernel_spawn_request(conn, control, payload);
    case TM_OP_SPAWN_REPLY: return receive_spawn_reply(conn, control);
    case TM_OP_GROUP_LEADER: return receive_group_leader(conn, control);
    default: return receive_counted(conn); /* old UNLINK: nothing of ours changes */
    }
}

/* -- frames ----------------------------------------------------------------------------------------------------- */

/* Terms of a whole message, wire_bytes long on the wire. */
static int receive_terms(tm_connection *conn, tm_bytes terms, bool versioned, tm_incoming *incoming,
                         uint64_t wire_bytes)
{
    const tm_alloc *alloc = &conn->node->engine->alloc;
    tm_buf_init(&incoming->plain, alloc, 0);
    conn->incoming = incoming;
    tm_control control;
    tm_bytes payload = {0};
    tm_fault fault = {0};
    tm_walk_limits limits = receive_limits(conn, incoming->header);
    int rc = tm_control_parse(terms, versioned, &limits, alloc, &control, &payload, &fault);
    if (rc == 0) {
        rc = receive_control(conn, &control, payload);
        /* What comes behind is not read any more. */
        if (rc < 0 && !conn->down) tm_connection_close(conn, rc, tumen_error_text(rc));
    } else if (rc == TM_CONTROL_UNKNOWN) {
        rc = receive_counted(conn);
    } else if (rc == TM_EPEER_LIMIT) {
        receive_refused(conn, 0, rc, fault.what ? fault.what : "control message", wire_bytes);
        rc = 0;
        if (control.op == TM_OP_SPAWN_REQUEST && from_is_peers(conn, &control))
            rc = tm_kernel_spawn_refuse(conn, &control, TM_BYTES("system_limit"));
    } else {
        receive_fault(conn, "control message", &fault, rc);
    }
    tm_control_fini(&control);
    tm_buf_fini(&incoming->plain);
    conn->incoming = NULL;
    return rc;
}

static tm_fragment_limits receive_fragment_limits(const tumen_node *node)
{
    return (tm_fragment_limits){
        .message_bytes_max = tm_node_limit(node, TUMEN_LIMIT_MESSAGE_BYTES),
        .bytes_max = tm_node_limit(node, TUMEN_LIMIT_REASSEMBLY_BYTES),
    };
}

/* The first fragment of several: its control message must be sound, or nothing is kept. */
static int receive_fragment_first(tm_connection *conn, const tm_frame_terms *terms,
                                  const tm_atom_header *header, tm_fault *fault)
{
    size_t control_len;
    tm_walk_limits walk = receive_limits(conn, header);
    int rc =
        tm_control_measure(terms->bytes, &walk, &conn->node->engine->alloc, &control_len, fault);
    if (rc) return rc;
    tm_fragment_limits limits = receive_fragment_limits(conn->node);
    return tm_fragments_open(&conn->fragments, terms, control_len, header, &limits,
                             conn->node->engine->now_ns, &fault->what);
}

/* What other threads may see of it. */
static void connection_publish(tm_connection *conn)
{
    if (conn->reassembly_bytes != conn->fragments.bytes)
        __atomic_store_n(&conn->reassembly_bytes, conn->fragments.bytes, __ATOMIC_RELAXED);
    if (conn->atom_count != conn->atoms.count)
        __atomic_store_n(&conn->atom_count, conn->atoms.count, __ATOMIC_RELAXED);
}

/* More of a message, and perhaps the last of it. */
static int receive_fragment_next(tm_connection *conn, const tm_frame_terms *terms, tm_fault *fault)
{
    tm_sequence *sequence;
    tm_fragment_limits limits = receive_fragment_limits(conn->node);
    int rc = tm_fragments_add(&conn->fragments, terms, &limits, conn->node->engine->now_ns,
                              &sequence, &fault->what);
    connection_publish(conn);
    if (rc) receive_fault(conn, "fragment", fault, rc);
    if (rc || !sequence) return rc;
    tm_atom_header header;
    tm_atom_header_of(&header, sequence->atoms, sequence->atom_count);
    tm_incoming incoming = {.header = &header, .memory = &sequence->memory};
    if (tm_sequence_dropped(sequence)) incoming.dropped_bytes = sequence->payload_bytes;
    rc = receive_terms(conn, tm_sequence_terms(sequence), false, &incoming,
                       sequence->control_len + sequence->payload_bytes);
    tm_sequence_free(&conn->fragments, sequence);
    return rc;
}

/* What it holds of the pool of atoms, bytes: in its cache, and for messages that are not whole. */
static uint64_t connection_atom_bytes(const tm_connection *conn)
{
    return conn->atoms.bytes + conn->fragments.atom_bytes;
}

/* Closes the connection that holds most atoms, of any node: the pool is the engine's. */
static void receive_relieve_atoms(tm_connection *last)
{
    tumen_engine *engine = last->node->engine;
    tm_connection *worst = last;
    TM_LIST_EACH (&engine->nodes, node_link, next_node) {
        tumen_node *node = TM_CONTAINER(node_link, tumen_node, link);
        TM_LIST_EACH (&node->connections, link, following) {
            tm_connection *conn = TM_CONTAINER(link, tm_connection, link);
            if (!conn->down && connection_atom_bytes(conn) > connection_atom_bytes(worst))
                worst = conn;
        }
    }
    tm_connection_close(worst, TM_EPEER_LIMIT, "atom_cache_full");
    tm_atom_cache_fini(&worst->atoms);
}

/* A frame with the list of its atoms. */
static int receive_headed(tm_connection *conn, const tm_frame *frame, tm_frame_terms *terms,
                          tm_fault *fault)
{
    tm_atom_header header;
    int rc = tm_frame_atoms(&conn->atoms, frame->body, terms, &header, fault);
    if (rc) return receive_fault(conn, "frame", fault, rc);
    connection_publish(conn); /* before the message can be seen */
    if (terms->kind == TM_FRAME_WHOLE) {
        tm_incoming incoming = {.header = &header, .memory = tm_framer_memory(&conn->framer)};
        rc = receive_terms(conn, terms->bytes, terms->versioned, &incoming, frame->len);
    } else {
        terms->memory = tm_framer_memory(&conn->framer);
        rc = receive_fragment_first(conn, terms, &header, fault);
        connection_publish(conn);
        if (rc) receive_fault(conn, "fragment", fault, rc);
    }
    tm_atom_header_done(&conn->atoms, &header);
    if (conn->node->engine->atoms.bytes > TM_ATOM_POOL_BYTES_MAX) receive_relieve_atoms(conn);
    return rc;
}

/* Counts a frame, and its connection once a period: see tm_engine_gather_ns. */
static void receive_noted(tm_connection *conn)
{
    tumen_engine *engine = conn->node->engine;
    engine->turn_frames++;
    if (conn->period == engine->period) return;
    conn->period = engine->period;
    engine->period_links++;
}

static int receive_frame(tm_connection *conn, const tm_frame *frame)
{
    if (frame->len == 0) {
        TM_ATOMIC_ADD(&conn->ticks_in, 1);
        return 0;
    }
    if (!frame->left) {
        TM_ATOMIC_ADD(&conn->frames_in, 1);
        receive_noted(conn);
    }
    tm_fault fault = {0};
    tm_frame_terms terms;
    bool part = frame->head.len;
    int rc = tm_frame_open(conn->flags, part ? frame->head : frame->body, &terms, &fault);
    if (rc) return receive_fault(conn, "frame", &fault, rc);
    if (part) {
        terms.bytes = frame->body;
        terms.left = frame->left;
    }
    if (terms.kind == TM_FRAME_FRAGMENT_NEXT)
        rc = receive_fragment_next(conn, &terms, &fault);
    else
        rc = receive_headed(conn, frame, &terms, &fault);
    if (!conn->down) receive_relieve(conn);
    return rc;
}

tm_room tm_connection_room(tm_sock *sock)
{
    tm_connection *conn = TM_CONTAINER(sock, tm_connection, sock);
    size_t left;
    uint64_t sequence;
    if (conn->down) return (tm_room){NULL, 0};
    if (!tm_framer_in_parts(&conn->framer, &left, &sequence)) return tm_framer_room(&conn->framer);
    tm_fragment_limits limits = receive_fragment_limits(conn->node);
    tm_room room = tm_fragments_room(&conn->fragments, sequence, left, &limits);
    connection_publish(conn);
    return room;
}

void tm_connection_received(tm_sock *sock, tm_bytes bytes)
{
    tm_connection *conn = TM_CONTAINER(sock, tm_connection, sock);
    TM_ATOMIC_ADD(&conn->bytes_in, bytes.len);
    conn->framer.bytes_max =
        tm_node_limit(conn->node, TUMEN_LIMIT_MESSAGE_BYTES) + TM_FRAME_HEAD_BYTES_MAX;
    while (!conn->down) {
        tm_frame frame;
        int rc = tm_framer_feed(&conn->framer, &bytes, &frame);
        if (rc == TM_NEED_DATA) return;
        if (rc == TM_EPEER_LIMIT) {
            char text[96];
            snprintf(text, sizeof text, "frame of %u bytes is over the limit of %llu", frame.len,
                     (unsigned long long)conn->framer.bytes_max);
            tm_connection_close(conn, rc, text);
            return;
        }
        if (rc) {
            tm_connection_close(conn, rc, tumen_error_text(rc));
            return;
        }
        if (receive_frame(conn, &frame) != 0) return;
    }
}
