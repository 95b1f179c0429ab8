#include "flow.h"

#include "../base/check.h"
#include "../dist/sequence.h"

static tm_bytes flow_key(const tm_flow *flow)
{
    return tm_bytes_of(flow->sender, sizeof flow->sender);
}

/* Whose order an entry belongs to. A spawn reply speaks for the process that it tells of: what that
 * one sends comes after it. */
static void entry_sender(const tm_entry *entry, uint32_t sender[2])
{
    const tm_small_pid *pid = entry->op == TM_OP_SPAWN_REPLY ? &entry->result : &entry->from;
    sender[0] = pid->id;
    sender[1] = pid->serial;
}

/* -- payloads ---------------------------------------------------------------------------------- */

static tm_bytes entry_part(const tm_entry *entry, size_t part)
{
    if (!entry->payload_len) return entry->reason;
    return tm_bytes_of(entry->parts[part].bytes.ptr, entry->parts[part].bytes.len);
}

tm_bytes tm_entry_span(const tm_entry *entry, tm_payload_at *at, size_t max)
{
    tm_bytes part = entry_part(entry, at->part);
    while (at->offset == part.len) {
        part = entry_part(entry, ++at->part);
        at->offset = 0;
    }
    size_t left = part.len - at->offset;
    tm_bytes span = {part.ptr + at->offset, left < max ? left : max};
    at->offset += span.len;
    return span;
}

size_t tm_flow_spans(const tm_flow *flow, tm_payload_at *after)
{
    size_t spans = 0;
    *after = flow->next;
    for (size_t left = tm_sequence_part(tm_entry_payload(flow->entry), flow->left); left; spans++)
        left -= tm_entry_span(flow->entry, after, left).len;
    return spans;
}

/* -- the flows of a queue ------------------------------------------------------------------------ */

static void flows_invariants(const tm_flows *flows)
{
    TM_DCHECK(flows->open <= TM_SEQUENCES_OUT_MAX);
    TM_DCHECK(tm_list_empty(&flows->waiting) || flows->open == TM_SEQUENCES_OUT_MAX);
    (void)flows;
}

static tm_flows *flows_make(tm_sendq *queue)
{
    if (queue->flows) return queue->flows;
    tm_flows *flows = tm_alloc_zero(queue->alloc, sizeof *flows);
    if (!flows) return NULL;
    tm_map_init(&flows->by_sender, queue->alloc, queue->seed);
    tm_list_init(&flows->active);
    tm_list_init(&flows->waiting);
    return queue->flows = flows;
}

static void flows_retire(tm_sendq *queue)
{
    tm_flows *flows = queue->flows;
    if (!flows || flows->by_sender.count) return;
    TM_ASSERT(tm_list_empty(&flows->active));
    TM_ASSERT(tm_list_empty(&flows->waiting));
    tm_map_fini(&flows->by_sender);
    tm_alloc_free(queue->alloc, flows, sizeof *flows);
    queue->flows = NULL;
}

static tm_flow *flow_create(tm_sendq *queue, tm_entry *entry)
{
    tm_flow *flow = tm_alloc_zero(queue->alloc, sizeof *flow);
    if (!flow) return NULL;
    flow->entry = entry;
    flow->behind_tail = &flow->behind;
    entry_sender(entry, flow->sender);
    entry->flow = flow;
    queue->large_bytes += entry->weight;
    return flow;
}

static void flow_free(tm_sendq *queue, tm_flow *flow)
{
    queue->large_bytes -= flow->entry->weight;
    flow->entry->flow = NULL;
    tm_alloc_free(queue->alloc, flow, sizeof *flow);
}

bool tm_flow_push(tm_sendq *queue, tm_entry *entry)
{
    uint32_t sender[2];
    entry_sender(entry, sender);
    tm_flow *before = NULL;
    if (queue->flows)
        before = tm_map_get(&queue->flows->by_sender, tm_bytes_of(sender, sizeof sender));
    tm_flow *own = NULL;
    if (tm_entry_payload(entry) > TM_WHOLE_BYTES_MAX) own = flow_create(queue, entry);
    if (before) {
        entry->next = NULL;
        *before->behind_tail = entry;
        before->behind_tail = &entry->next;
        return true;
    }
    if (!own) return false;
    tm_flows *flows = flows_make(queue);
    if (!flows || tm_map_set(&flows->by_sender, flow_key(own), own)) flow_free(queue, own);
    flows_retire(queue);
    return false;
}

static void flow_activate(tm_sendq *queue, tm_flow *flow)
{
    queue->flows->open++;
    flow->sequence = ++queue->sequence;
    flow->left = tm_sequence_count(tm_entry_payload(flow->entry));
    tm_list_push(&queue->flows->active, &flow->link);
}

void tm_flow_begin(tm_sendq *queue, tm_flow *flow)
{
    TM_ASSERT(flow->sequence == 0);
    if (queue->flows->open < TM_SEQUENCES_OUT_MAX)
        flow_activate(queue, flow);
    else
        tm_list_push(&queue->flows->waiting, &flow->link);
    flows_invariants(queue->flows);
}

tm_flow *tm_flow_turn(const tm_sendq *queue)
{
    if (!queue->flows || tm_list_empty(&queue->flows->active)) return NULL;
    return TM_CONTAINER(queue->flows->active.next, tm_flow, link);
}

bool tm_flow_take(tm_sendq *queue, tm_flow *flow, tm_payload_at after)
{
    TM_ASSERT(flow->left > 0);
    bool first = flow->burst == 0;
    if (first) flow->burst_at = flow->next;
    flow->burst++;
    flow->left--;
    flow->next = after;
    tm_list_remove(&flow->link);
    if (flow->left) tm_list_push(&queue->flows->active, &flow->link);
    return first;
}

tm_entry *tm_flow_pop(tm_sendq *queue)
{
    if (!queue->flows) return NULL;
    tm_list *link = tm_list_pop(&queue->flows->active);
    if (!link) link = tm_list_pop(&queue->flows->waiting);
    if (!link) return NULL;
    tm_flow *flow = TM_CONTAINER(link, tm_flow, link);
    flow->burst = 0; /* whoever takes all writes none any more */
    return flow->entry;
}

/* What waited behind a flow goes to the front of the queue, up to the next large entry, which the
 * rest then waits behind. */
static void flow_release(tm_sendq *queue, tm_flow *flow)
{
    tm_entry *first = flow->behind, *last = first;
    if (!first) return;
    while (last->next && !last->flow) last = last->next;
    tm_flow *heir = last->flow;
    if (heir && last->next) {
        TM_ASSERT(!heir->behind);
        heir->behind = last->next;
        heir->behind_tail = flow->behind_tail;
    }
    if (heir) {
        /* In the place that its forerunner has left: this needs no memory. */
        int rc = tm_map_set(&queue->flows->by_sender, flow_key(heir), heir);
        TM_ASSERT(rc == 0);
    }
    last->next = queue->head;
    queue->head = first;
    if (!last->next) queue->tail = &last->next;
}

void tm_flow_end(tm_sendq *queue, tm_entry *entry)
{
    tm_flow *flow = entry->flow;
    tm_flows *flows = queue->flows;
    TM_ASSERT(flow->burst == 0);
    tm_list_remove(&flow->link);
    tm_map_remove(&flows->by_sender, flow_key(flow));
    flow_release(queue, flow);
    if (flow->sequence) {
        flows->open--;
        tm_list *link = tm_list_pop(&flows->waiting);
        if (link) flow_activate(queue, TM_CONTAINER(link, tm_flow, link));
    }
    flows_invariants(flows);
    flow_free(queue, flow);
    flows_retire(queue);
}
