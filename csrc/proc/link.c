/* Links and exit signals. A link is a record while it is active or inactive and no record else; the
 * rules are the table of protocol.md 4.4, named at each step. */
#include "tables.h"

/* -- exit signals ------------------------------------------------------------------------------ */

bool tm_reason_is(tm_bytes reason, tm_bytes atom)
{
    tm_cursor cursor = tm_cursor_of(reason);
    tm_atom read;
    return tm_etf_read_atom(&cursor, &read) == 0 && tm_bytes_equal(read.text, atom);
}

void tm_exit_deliver(tm_procs *procs, tm_process *to, const tm_pid *from, tm_bytes reason,
                     enum tm_exit_kind kind)
{
    if (to->ending) return;
    if (kind == TM_EXIT_OF_EXIT2 && tm_reason_is(reason, TM_BYTES("kill"))) {
        tm_process_end(procs, to, TM_TERM_KILLED, true);
        return;
    }
    if (to->trap_exit) {
        tm_proc_event event = {.kind = TM_EVENT_EXIT_MESSAGE,
                               .key = to->key,
                               .pid = *from,
                               .reason = reason,
                               .token = procs->carried};
        tm_procs_event(procs, &event);
        return;
    }
    /* exit(self(), normal) does end its caller, alone among all. */
    bool by_itself = kind == TM_EXIT_OF_EXIT2 && tm_process_of_pid(procs, from) == to;
    if (!by_itself && tm_reason_is(reason, TM_BYTES("normal"))) return;
    tm_process_end(procs, to, reason, true);
}

/* -- records ----------------------------------------------------------------------------------- */

static tm_link_key link_key_of(const tm_process *process, const tm_remote *peer, const tm_pid *pid)
{
    if (peer)
        return (tm_link_key){.peer = peer,
                             .local = process->key,
                             .other = tm_pid_key(pid),
                             .creation = pid->creation};
    tm_proc_key other = tm_pid_key(pid);
    bool first = process->key < other;
    return (tm_link_key){.local = first ? process->key : other,
                         .other = first ? other : process->key};
}

tm_link *tm_link_find(const tm_procs *procs, const tm_process *process, const tm_remote *peer,
                      const tm_pid *other)
{
    tm_link_key key = link_key_of(process, peer, other);
    return tm_map_get(&procs->links, tm_bytes_of(&key, sizeof key));
}

int tm_link_new(tm_procs *procs, tm_process *process, tm_remote *peer, tm_process *other,
                const tm_pid *pid, tm_link **link)
{
    tm_link *made = tm_alloc_zero(procs->alloc, sizeof *made);
    if (!made) return TM_ENOMEM;
    made->key = link_key_of(process, peer, pid);
    int rc = tm_map_set(&procs->links, tm_bytes_of(&made->key, sizeof made->key), made);
    if (rc) {
        tm_alloc_free(procs->alloc, made, sizeof *made);
        return rc;
    }
    bool first = peer || process->key == made->key.local;
    made->ends[0].process = first ? process : other;
    made->ends[1].process = first ? other : process;
    for (int i = 0; i < 2; i++) {
        tm_link_end *end = &made->ends[i];
        end->link = made;
        if (end->process) tm_list_push(&end->process->links, &end->of_process);
    }
    made->peer = peer;
    if (peer) tm_list_push(&peer->links, &made->of_peer);
    *link = made;
    return 0;
}

void tm_link_free(tm_procs *procs, tm_link *link)
{
    tm_map_remove(&procs->links, tm_bytes_of(&link->key, sizeof link->key));
    tm_procs_trim(&procs->links);
    tm_list_remove(&link->ends[0].of_process);
    tm_list_remove(&link->ends[1].of_process);
    tm_list_remove(&link->of_peer);
    if (link->by_peer) link->peer->link_count--;
    tm_alloc_free(procs->alloc, link, sizeof *link);
}

/* The pid at the other end of a link with a peer. */
static tm_pid link_other(const tm_link *link)
{
    return tm_remote_pid(link->peer, tm_proc_key_id(link->key.other),
                         tm_proc_key_serial(link->key.other), (uint32_t)link->key.creation);
}

void tm_link_break(tm_procs *procs, tm_link *link, tm_bytes reason)
{
    tm_process *process = link->ends[0].process;
    tm_pid from = link_other(link);
    bool active = link->unlink_id == 0;
    tm_link_free(procs, link);
    if (active) tm_exit_deliver(procs, process, &from, reason, TM_EXIT_OF_LINK);
}

void tm_links_settle(tm_procs *procs, tm_process *process)
{
    tm_pid self = tm_procs_pid(procs, process->key);
    TM_LIST_EACH (&process->links, node, following) {
        tm_link_end *end = TM_CONTAINER(node, tm_link_end, of_process);
        tm_link *link = end->link;
        if (!link->peer) {
            tm_process *other = link->ends[end == &link->ends[0]].process;
            tm_link_free(procs, link);
            procs->carried = tm_trace_next(procs, process);
            tm_exit_deliver(procs, other, &self, process->reason, TM_EXIT_OF_LINK);
            procs->carried = (tm_bytes){0};
            continue;
        }
        /* An inactive one is gone at the peer as soon as our UNLINK_ID arrives. */
        if (link->unlink_id == 0) {
            tm_proc_signal signal = {.kind = TM_SIGNAL_EXIT,
                                     .sender = process->key,
                                     .from = self,
                                     .to = tm_target_pid(link_other(link)),
                                     .reason = process->reason,
                                     .token = tm_trace_next(procs, process)};
            tm_procs_signal(procs, link->peer, &signal);
        }
        tm_link_free(procs, link);
    }
}

/* -- of ours ----------------------------------------------------------------------------------- */

static void link_send(tm_procs *procs, const tm_process *process, const tm_remote *peer,
                      const tm_pid *to, enum tm_proc_signal_kind kind)
{
    tm_proc_signal signal = {.kind = kind,
                             .sender = process->key,
                             .from = tm_procs_pid(procs, process->key),
                             .to = tm_target_pid(*to),
                             .unlink_id = kind == TM_SIGNAL_UNLINK_ID ? process->unlink_id : 0};
    tm_procs_signal(procs, peer, &signal);
}

/* local link() */
static int link_remote(tm_procs *procs, tm_process *process, const tm_pid *to)
{
    tm_remote *peer;
    int rc = tm_remote_get(procs, to->node, &peer);
    if (rc) return rc;
    if (tm_remote_nobody(peer, to->id, to->creation)) {
        tm_exit_deliver(procs, process, to, TM_TERM_NOPROC, TM_EXIT_OF_LINK);
        return 0;
    }
    tm_link *link = tm_link_find(procs, process, peer, to);
    if (!link) { /* none: send LINK, active */
        rc = tm_link_new(procs, process, peer, NULL, to, &link);
        if (rc) return rc;
    } else if (link->unlink_id) { /* inactive: send LINK, active, forget the id */
        link->unlink_id = 0;
    } else { /* active: nothing */
        return 0;
    }
    link_send(procs, process, peer, to, TM_SIGNAL_LINK);
    return 0;
}

static int link_local(tm_procs *procs, tm_process *process, const tm_pid *to)
{
    tm_process *other = tm_process_of_pid(procs, to);
    if (!other) {
        tm_exit_deliver(procs, process, to, TM_TERM_NOPROC, TM_EXIT_OF_LINK);
        return 0;
    }
    tm_link *link = tm_link_find(procs, process, NULL, to);
    return link ? 0 : tm_link_new(procs, process, NULL, other, to, &link);
}

int tm_procs_link(tm_procs *procs, tm_proc_key key, const tm_pid *to)
{
    tm_procs_enter(procs);
    tm_process *process = tm_process_get(procs, key);
    if (!process) return TM_ENOPROC;
    if (tm_process_of_pid(procs, to) == process) return TM_EUSE_ARG;
    int rc = tm_procs_is_local(procs, to->node) ? link_local(procs, process, to)
                                                : link_remote(procs, process, to);
    tm_procs_settle(procs);
    return tm_procs_leave(procs, rc);
}

/* local unlink() */
int tm_procs_unlink(tm_procs *procs, tm_proc_key key, const tm_pid *to)
{
    tm_procs_enter(procs);
    tm_process *process = tm_process_get(procs, key);
    if (!process) return TM_ENOPROC;
    bool local = tm_procs_is_local(procs, to->node);
    tm_remote *peer = local ? NULL : tm_remote_find(procs, to->node);
    if (local ? to->creation != procs->creation : !peer) return 0;
    tm_link *link = tm_link_find(procs, process, peer, to);
    if (!link || link->unlink_id) return 0; /* none, inactive: nothing */
    if (local) {
        tm_link_free(procs, link);
    } else { /* active: pick an id, send UNLINK_ID, inactive */
        link->unlink_id = ++process->unlink_id;
        link_send(procs, process, peer, to, TM_SIGNAL_UNLINK_ID);
    }
    return tm_procs_leave(procs, 0);
}

/* exit/2 between two processes of this node; to may be NULL. */
static void exit_here(tm_procs *procs, tm_process *process, tm_process *to, tm_bytes reason)
{
    tm_pid self = tm_procs_pid(procs, process->key);
    procs->carried = to ? tm_trace_next(procs, process) : (tm_bytes){0};
    if (to) tm_exit_deliver(procs, to, &self, reason, TM_EXIT_OF_EXIT2);
    procs->carried = (tm_bytes){0};
    tm_procs_settle(procs);
}

int tm_procs_exit2(tm_procs *procs, tm_proc_key key, const tm_pid *to, tm_bytes reason)
{
    tm_procs_enter(procs);
    tm_process *process = tm_process_get(procs, key);
    if (!process) return TM_ENOPROC;
    tm_pid self = tm_procs_pid(procs, key);
    if (tm_procs_is_local(procs, to->node)) {
        exit_here(procs, process, tm_process_of_pid(procs, to), reason);
        return tm_procs_leave(procs, 0);
    }
    const tm_remote *peer = tm_remote_find(procs, to->node);
    if (to->id > TM_PID_ID_MAX || (peer && tm_remote_stale(peer, to->creation))) return 0;
    tm_proc_signal signal = {.kind = TM_SIGNAL_EXIT2,
                             .sender = key,
                             .from = self,
                             .to = tm_target_pid(*to),
                             .reason = reason,
                             .token = tm_trace_next(procs, process)};
    tm_procs_answer(procs, to->node, &signal);
    return tm_procs_leave(procs, 0);
}

int tm_procs_exit_alias(tm_procs *procs, tm_proc_key key, const tm_ref *to, tm_bytes reason)
{
    tm_procs_enter(procs);
    tm_process *process = tm_process_get(procs, key);
    if (!process) return TM_ENOPROC;
    if (tm_procs_is_local(procs, to->node)) {
        exit_here(procs, process, tm_alias_owner(procs, to), reason);
        return tm_procs_leave(procs, 0);
    }
    /* OTP drops the connection for a reference that it can not have made. */
    if (!to->count || to->words[0] > TM_REF_WORD_0_MAX) return 0;
    tm_proc_signal signal = {.kind = TM_SIGNAL_EXIT2,
                             .sender = key,
                             .from = tm_procs_pid(procs, key),
                             .to = {.kind = TM_TARGET_REF, .node = to->node, .ref = *to},
                             .reason = reason,
                             .token = tm_trace_next(procs, process)};
    tm_procs_answer(procs, to->node, &signal);
    return tm_procs_leave(procs, 0);
}

/* -- from peers -------------------------------------------------------------------------------- */

int tm_procs_on_link(tm_procs *procs, const tm_pid *from, const tm_pid *to)
{
    tm_procs_enter(procs);
    tm_process *process = tm_process_of_pid(procs, to);
    if (!process) {
        tm_proc_signal signal = {.kind = TM_SIGNAL_EXIT,
                                 .from = *to,
                                 .to = tm_target_pid(*from),
                                 .reason = TM_TERM_NOPROC};
        tm_procs_answer(procs, from->node, &signal);
        return 0;
    }
    tm_remote *peer;
    int rc = tm_remote_get(procs, from->node, &peer);
    if (rc) return rc;
    tm_link *link = tm_link_find(procs, process, peer, from);
    /* active: ignore; inactive: ignore, their side will see our UNLINK_ID later */
    if (link) return 0;
    if (peer->link_count >= TM_PEER_LINKS_MAX) return TM_EPEER_LIMIT;
    rc = tm_link_new(procs, process, peer, NULL, from, &link);
    if (rc) return rc;
    link->by_peer = true;
    peer->link_count++;
    return tm_procs_leave(procs, 0);
}

/* The link of a signal that a peer sent, or NULL. */
static tm_link *link_of_signal(tm_procs *procs, const tm_pid *from, const tm_pid *to)
{
    const tm_process *process = tm_process_of_pid(procs, to);
    const tm_remote *peer = process ? tm_remote_find(procs, from->node) : NULL;
    return peer ? tm_link_find(procs, process, peer, from) : NULL;
}

int tm_procs_on_unlink_id(tm_procs *procs, uint64_t id, const tm_pid *from, const tm_pid *to)
{
    tm_procs_enter(procs);
    tm_link *link = link_of_signal(procs, from, to);
    if (link && link->unlink_id == 0) tm_link_free(procs, link); /* inactive: keep */
    tm_proc_signal signal = {.kind = TM_SIGNAL_UNLINK_ID_ACK,
                             .sender = tm_procs_find(procs, to),
                             .from = *to,
                             .to = tm_target_pid(*from),
                             .unlink_id = id};
    tm_procs_answer(procs, from->node, &signal);
    return tm_procs_leave(procs, 0);
}

int tm_procs_on_unlink_id_ack(tm_procs *procs, uint64_t id, const tm_pid *from, const tm_pid *to)
{
    tm_procs_enter(procs);
    tm_link *link = link_of_signal(procs, from, to);
    if (link && link->unlink_id && link->unlink_id == id) tm_link_free(procs, link);
    return tm_procs_leave(procs, 0);
}

int tm_procs_on_exit(tm_procs *procs, const tm_pid *from, const tm_pid *to, tm_bytes reason)
{
    tm_procs_enter(procs);
    tm_link *link = link_of_signal(procs, from, to);
    if (link) tm_link_break(procs, link, reason);
    procs->carried = (tm_bytes){0};
    tm_procs_settle(procs);
    return tm_procs_leave(procs, 0);
}

static void exit_from_peer(tm_procs *procs, tm_process *to, const tm_pid *from, tm_bytes reason)
{
    if (to) tm_exit_deliver(procs, to, from, reason, TM_EXIT_OF_EXIT2);
    procs->carried = (tm_bytes){0};
    tm_procs_settle(procs);
}

int tm_procs_on_exit2(tm_procs *procs, const tm_pid *from, const tm_pid *to, tm_bytes reason)
{
    tm_procs_enter(procs);
    exit_from_peer(procs, tm_process_of_pid(procs, to), from, reason);
    return tm_procs_leave(procs, 0);
}

int tm_procs_on_exit_alias(tm_procs *procs, const tm_pid *from, const tm_ref *to, tm_bytes reason)
{
    tm_procs_enter(procs);
    exit_from_peer(procs, tm_alias_owner(procs, to), from, reason);
    return tm_procs_leave(procs, 0);
}
