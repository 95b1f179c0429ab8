#include "sendq.h"

#include "../base/check.h"
#include "../dist/sequence.h"
#include "flow.h"

void tm_sendq_init(tm_sendq *queue, const tm_alloc *alloc, const uint64_t seed[2])
{
    *queue = (tm_sendq){.alloc = alloc, .seed = seed};
    queue->tail = &queue->head;
}

static void sendq_count(tm_sendq *queue, const tm_entry *entry)
{
    queue->bytes += entry->weight;
    queue->count++;
    if (entry->message) queue->messages++;
}

void tm_sendq_push(tm_sendq *queue, tm_entry *entry)
{
    sendq_count(queue, entry);
    if (queue->flows || tm_entry_payload(entry) > TM_WHOLE_BYTES_MAX)
        if (tm_flow_push(queue, entry)) return;
    entry->next = NULL;
    *queue->tail = entry;
    queue->tail = &entry->next;
}

void tm_sendq_push_front(tm_sendq *queue, tm_entry *entry)
{
    entry->next = queue->head;
    queue->head = entry;
    if (!entry->next) queue->tail = &entry->next;
    sendq_count(queue, entry);
}

tm_entry *tm_sendq_pop(tm_sendq *queue)
{
    tm_entry *entry = queue->head;
    if (!entry) return NULL;
    queue->head = entry->next;
    if (!queue->head) queue->tail = &queue->head;
    entry->next = NULL;
    return entry;
}

tm_entry *tm_sendq_pop_any(tm_sendq *queue)
{
    tm_entry *entry = tm_sendq_pop(queue);
    return entry ? entry : tm_flow_pop(queue);
}

void tm_sendq_settle(tm_sendq *queue, tm_entry *entry)
{
    TM_ASSERT(queue->count > 0);
    queue->bytes -= entry->weight;
    queue->count--;
    if (entry->message) queue->messages--;
    if (entry->flow) tm_flow_end(queue, entry);
}

static tm_entry *spare_take(tm_entry_pool *pool)
{
    tm_entry *entry = pool->spare;
    if (!entry) return tm_alloc_get(pool->alloc, TM_ENTRY_SMALL_BYTES);
    pool->spare = entry->next;
    pool->spare_count--;
    return entry;
}

tm_entry *tm_entry_create(tm_entry_pool *pool, size_t extra, size_t parts)
{
    size_t weight = sizeof(tm_entry) + parts * sizeof(tumen_part) + extra;
    bool small = weight <= TM_ENTRY_SMALL_BYTES;
    size_t size = small ? TM_ENTRY_SMALL_BYTES : weight;
    tm_entry *entry = small ? spare_take(pool) : tm_alloc_get(pool->alloc, size);
    if (!entry) return NULL;
    *entry = (tm_entry){
        .size = size, .weight = weight, .part_count = parts, .parts = (tumen_part *)(entry + 1)};
    return entry;
}

void tm_entry_free(tm_entry_pool *pool, tm_entry *entry)
{
    if (entry->size == TM_ENTRY_SMALL_BYTES && pool->spare_count < TM_ENTRY_SPARE_COUNT_MAX) {
        entry->next = pool->spare;
        pool->spare = entry;
        pool->spare_count++;
    } else {
        tm_alloc_free(pool->alloc, entry, entry->size);
    }
}

void tm_entry_pool_fini(tm_entry_pool *pool)
{
    while (pool->spare) {
        tm_entry *entry = pool->spare;
        pool->spare = entry->next;
        tm_alloc_free(pool->alloc, entry, entry->size);
    }
    pool->spare_count = 0;
}

uint8_t *tm_entry_space(tm_entry *entry) { return (uint8_t *)(entry->parts + entry->part_count); }

tm_bytes tm_entry_keep(uint8_t **at, tm_bytes bytes)
{
    tm_bytes kept = {*at, bytes.len};
    *at = tm_store_bytes(*at, bytes.ptr, bytes.len);
    return kept;
}

size_t tm_entry_rare_size(const tm_entry_rare *rare)
{
    return sizeof *rare + rare->token.len + rare->options.len + rare->leader.node.len;
}

void tm_entry_keep_rare(tm_entry *entry, uint8_t **at, const tm_entry_rare *rare)
{
    TM_ASSERT(*at == tm_entry_space(entry)); /* aligned there alone */
    tm_entry_rare *kept = (tm_entry_rare *)(void *)*at;
    *at += sizeof *kept;
    *kept = *rare;
    kept->token = tm_entry_keep(at, rare->token);
    kept->options = tm_entry_keep(at, rare->options);
    kept->leader.node = tm_entry_keep(at, rare->leader.node);
    entry->rare = kept;
}

static tm_pid full_pid(tm_small_pid pid, tm_bytes node)
{
    return (tm_pid){.node = node, .id = pid.id, .serial = pid.serial, .creation = pid.creation};
}

static tm_ref full_ref(const tm_small_ref *ref, tm_bytes node)
{
    tm_ref full = {.node = node, .creation = ref->creation, .count = ref->count};
    memcpy(full.words, ref->words, sizeof full.words);
    return full;
}

static tm_control_item pid_item(tm_small_pid pid, tm_bytes node)
{
    return (tm_control_item){.kind = TM_ITEM_PID, .pid = full_pid(pid, node)};
}

static void entry_control(const tm_entry *entry, tm_bytes our, tm_bytes peer, tm_control *control)
{
    tm_control_init(control, entry->op);
    if (entry->from_name)
        control->from = (tm_control_item){.kind = TM_ITEM_NAME, .name = entry->name};
    else if (entry->from.creation || !entry->message) /* a peer may have named us with creation 0 */
        control->from = pid_item(entry->from, our);
    if (entry->to_kind == TM_ITEM_PID)
        control->to = pid_item(entry->to, peer);
    else if (entry->to_kind == TM_ITEM_NAME)
        control->to = (tm_control_item){.kind = TM_ITEM_NAME, .name = entry->name};
    else if (entry->to_kind == TM_ITEM_REF)
        control->to = (tm_control_item){.kind = TM_ITEM_REF, .ref = full_ref(&entry->to_ref, peer)};
    if (entry->ref.count) control->ref = full_ref(&entry->ref, entry->ref_theirs ? peer : our);
    control->unlink_id = entry->number;
    control->flags = entry->number;
    control->reason = entry->reason;
    if (entry->op == TM_OP_SPAWN_REQUEST) {
        control->module = entry->name;
        control->function = entry->name2;
        control->arity = entry->arity;
    } else if (entry->op == TM_OP_SPAWN_REPLY) {
        control->result = entry->name.len
                              ? (tm_control_item){.kind = TM_ITEM_NAME, .name = entry->name}
                              : pid_item(entry->result, our);
    }
    if (!entry->rare) return;
    control->has_token = entry->rare->token.len != 0;
    control->token = entry->rare->token;
    control->options = entry->rare->options;
    control->group_leader = entry->rare->leader;
}

static void entry_fill(const tm_entry *entry, tm_bytes our, uint32_t our_creation, tm_bytes peer,
                       tm_control *control)
{
    entry_control(entry, our, peer, control);
    /* REG_SEND and ALIAS_SEND name a sender even when no process sent: pid 0 exists nowhere. */
    if (control->from.kind == TM_ITEM_NONE &&
        (entry->op == TM_OP_REG_SEND || entry->op == TM_OP_ALIAS_SEND))
        control->from = pid_item((tm_small_pid){.creation = our_creation}, our);
    if (entry->op == TM_OP_ALTACT_SIG_SEND && tm_entry_payload(entry) > TM_PRIO_BYTES_MAX)
        control->flags &= ~(uint64_t)TM_ALTACT_PRIO;
}

int tm_entry_write(const tm_entry *entry, tm_bytes our, uint32_t our_creation, tm_bytes peer,
                   uint64_t flags, tm_buf *out, bool *segments)
{
    *segments = false;
    if (entry->op == TM_ENTRY_TICK) return tm_buf_append(out, "\0\0\0\0", 4);
    tm_control control;
    entry_fill(entry, our, our_creation, peer, &control);
    if (!entry->payload_len) return tm_frame_write(out, flags, &control, (tm_bytes){0});
    if (entry->part_count == 1 && !entry->parts[0].lent &&
        entry->payload_len < TM_SEGMENT_BYTES_MIN) {
        int rc = tm_frame_write(out, flags, &control,
                                tm_bytes_of(entry->parts[0].bytes.ptr, entry->payload_len));
        /* An operation that the peer does not know has no payload either. */
        return rc == TM_EUSE_ARG && !tm_control_takes_payload(flags, &control) ? TM_ENOTSUP : rc;
    }
    *segments = true;
    return tm_frame_write_head(out, flags, &control, entry->payload_len);
}

int tm_entry_write_first(const tm_entry *entry, tm_bytes our, uint32_t our_creation, tm_bytes peer,
                         uint64_t flags, uint64_t id, tm_buf *out)
{
    tm_control control;
    entry_fill(entry, our, our_creation, peer, &control);
    return tm_sequence_first(out, flags, &control, id, tm_entry_payload(entry));
}
