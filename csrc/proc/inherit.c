/* What a process hands on: its group leader, and the token of a sequential trace.
 *
 * A token is {Flags, Label, Serial, From, Previous}: a process takes the one of the message it has
 * received, and each signal that it sends carries it on, with the serial counted up, itself as From
 * and the serial it has received last as Previous. */
#include "tables.h"

#define TOKEN_ARITY 5

void tm_inherit_free(tm_procs *procs, tm_process *process)
{
    tm_leader *leader = process->leader;
    tm_trace *trace = process->trace;
    if (leader) tm_alloc_free(procs->alloc, leader, sizeof *leader + leader->node_len);
    process->leader = NULL;
    if (!trace) return;
    if (trace->token.len) __atomic_sub_fetch(&procs->traced_count, 1, __ATOMIC_RELAXED);
    tm_buf_fini(&trace->token);
    tm_alloc_free(procs->alloc, trace, sizeof *trace);
    process->trace = NULL;
}

/* -- group leaders ----------------------------------------------------------------------------- */

/* A peer may name a leader of a node whose name is longer than a node's can be. */
static int leader_set(tm_procs *procs, tm_process *process, const tm_pid *pid)
{
    if (!pid->node.len || pid->node.len > TM_NODE_NAME_BYTES_MAX) return TM_EPEER_MALFORMED;
    tm_leader *leader = process->leader;
    if (leader && leader->node_len != pid->node.len) {
        tm_alloc_free(procs->alloc, leader, sizeof *leader + leader->node_len);
        process->leader = leader = NULL;
    }
    if (!leader) {
        leader = tm_alloc_get(procs->alloc, sizeof *leader + pid->node.len);
        if (!leader) return TM_ENOMEM;
    }
    *leader = (tm_leader){pid->id, pid->serial, pid->creation, pid->node.len};
    memcpy(leader->node, pid->node.ptr, pid->node.len);
    process->leader = leader;
    return 0;
}

int tm_procs_set_leader(tm_procs *procs, tm_proc_key key, const tm_pid *leader)
{
    tm_procs_enter(procs);
    tm_process *process = tm_process_get(procs, key);
    if (!process) return TM_ENOPROC;
    return tm_procs_leave(procs, leader_set(procs, process, leader));
}

bool tm_procs_leader(const tm_procs *procs, tm_proc_key key, tm_pid *leader)
{
    const tm_process *process = tm_process_get(procs, key);
    const tm_leader *set = process ? process->leader : NULL;
    if (!set) return false;
    *leader = (tm_pid){{set->node, set->node_len}, set->id, set->serial, set->creation};
    return true;
}

int tm_procs_lead(tm_procs *procs, tm_proc_key key, const tm_pid *to, const tm_pid *leader)
{
    tm_procs_enter(procs);
    if (!tm_process_get(procs, key)) return TM_ENOPROC;
    if (tm_procs_is_local(procs, to->node)) {
        tm_process *process = tm_process_of_pid(procs, to);
        if (!process) return TM_ENOPROC;
        return tm_procs_leave(procs, leader_set(procs, process, leader));
    }
    if (to->id > TM_PID_ID_MAX || leader->id > TM_PID_ID_MAX) return 0; /* nobody */
    tm_proc_signal signal = {.kind = TM_SIGNAL_GROUP_LEADER,
                             .sender = key,
                             .from = tm_procs_pid(procs, key),
                             .to = tm_target_pid(*to),
                             .leader = *leader};
    tm_procs_answer(procs, to->node, &signal);
    return tm_procs_leave(procs, 0);
}

int tm_procs_on_group_leader(tm_procs *procs, const tm_pid *leader, const tm_pid *to)
{
    tm_procs_enter(procs);
    tm_process *process = tm_process_of_pid(procs, to);
    return tm_procs_leave(procs, process ? leader_set(procs, process, leader) : 0);
}

/* -- trace tokens ------------------------------------------------------------------------------ */

typedef struct token {
    tm_bytes flags, label;
    uint64_t serial;
} token;

static int token_read(const tm_procs *procs, tm_bytes bytes, token *read)
{
    tm_cursor c = tm_cursor_of(bytes);
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    uint32_t arity;
    uint64_t flags, previous;
    tm_pid from;
    if (bytes.len > TM_TRACE_TOKEN_BYTES_MAX) return TM_EUSE_LIMIT;
    if (tm_etf_read_tuple(&c, &arity) || arity != TOKEN_ARITY) return TM_EUSE_TERM;
    tm_cursor start = c;
    if (tm_etf_read_u64(&c, &flags)) return TM_EUSE_TERM;
    read->flags = tm_bytes_of(start.ptr, (size_t)(c.ptr - start.ptr));
    int rc = tm_etf_read_term(&c, &limits, procs->alloc, &read->label);
    if (rc) return rc == TM_ENOMEM ? rc : TM_EUSE_TERM;
    if (tm_etf_read_u64(&c, &read->serial) || tm_etf_read_pid(&c, &from) ||
        tm_etf_read_u64(&c, &previous))
        return TM_EUSE_TERM;
    return read->flags.len + read->label.len > TM_TRACE_LABEL_BYTES_MAX ? TM_EUSE_LIMIT : 0;
}

int tm_procs_token_check(const tm_procs *procs, tm_bytes bytes)
{
    token read;
    return token_read(procs, bytes, &read);
}

static int token_set(tm_procs *procs, tm_process *process, tm_bytes bytes)
{
    token read;
    int rc = token_read(procs, bytes, &read);
    if (rc) return rc;
    tm_trace *trace = process->trace;
    if (!trace) {
        trace = tm_alloc_zero(procs->alloc, sizeof *trace);
        if (!trace) return TM_ENOMEM;
        tm_buf_init(&trace->token, procs->alloc, 0);
        process->trace = trace;
    }
    bool had = trace->token.len != 0;
    tm_buf fresh;
    tm_buf_init(&fresh, procs->alloc, 0);
    rc = tm_buf_append(&fresh, bytes.ptr, bytes.len);
    if (rc) return rc;
    tm_buf_fini(&trace->token);
    trace->token = fresh;
    trace->previous = read.serial;
    if (trace->clock < read.serial) trace->clock = read.serial;
    if (!had) __atomic_add_fetch(&procs->traced_count, 1, __ATOMIC_RELAXED);
    return 0;
}

static void token_clear(tm_procs *procs, tm_process *process)
{
    tm_trace *trace = process->trace;
    if (!trace || !trace->token.len) return;
    tm_buf_fini(&trace->token);
    __atomic_sub_fetch(&procs->traced_count, 1, __ATOMIC_RELAXED);
}

int tm_procs_trace(tm_procs *procs, tm_proc_key key, tm_bytes bytes)
{
    tm_procs_enter(procs);
    tm_process *process = tm_process_get(procs, key);
    if (!process) return TM_ENOPROC;
    int rc = bytes.len ? token_set(procs, process, bytes) : 0;
    if (!bytes.len || rc) token_clear(procs, process);
    return tm_procs_leave(procs, rc);
}

tm_bytes tm_procs_token(const tm_procs *procs, tm_proc_key key)
{
    const tm_process *process = tm_process_get(procs, key);
    return process && process->trace ? tm_buf_bytes(&process->trace->token) : (tm_bytes){0};
}

size_t tm_procs_traced(const tm_procs *procs)
{
    return __atomic_load_n(&procs->traced_count, __ATOMIC_RELAXED);
}

void tm_procs_carry(tm_procs *procs, tm_bytes bytes) { procs->carried = bytes; }

/* Without memory for it the signal goes untraced: a trace must not stop what it watches. */
tm_bytes tm_trace_next(tm_procs *procs, tm_process *process)
{
    tm_trace *trace = process->trace;
    token read;
    if (!trace || !trace->token.len) return (tm_bytes){0};
    if (token_read(procs, tm_buf_bytes(&trace->token), &read) != 0) return (tm_bytes){0};
    tm_pid self = tm_procs_pid(procs, process->key);
    tm_buf fresh;
    tm_buf_init(&fresh, procs->alloc, 0);
    int rc = tm_etf_write_tuple(&fresh, TOKEN_ARITY);
    if (!rc) rc = tm_etf_write_raw(&fresh, read.flags);
    if (!rc) rc = tm_etf_write_raw(&fresh, read.label);
    if (!rc) rc = tm_etf_write_u64(&fresh, trace->clock + 1);
    if (!rc) rc = tm_etf_write_pid(&fresh, &self);
    if (!rc) rc = tm_etf_write_u64(&fresh, trace->previous);
    if (rc) {
        tm_buf_fini(&fresh);
        return (tm_bytes){0};
    }
    trace->clock++;
    tm_buf_fini(&trace->token);
    trace->token = fresh;
    return tm_buf_bytes(&trace->token);
}

tm_bytes tm_procs_next_token(tm_procs *procs, tm_proc_key key)
{
    tm_procs_enter(procs);
    tm_process *process = tm_process_get(procs, key);
    return process ? tm_trace_next(procs, process) : (tm_bytes){0};
}
