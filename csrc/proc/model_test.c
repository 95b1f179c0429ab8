/* Tables of several nodes, joined by queues in memory, against models.
 *
 * Links: every sequence of steps up to a length, played on two tables and on the table of
 * protocol.md 4.4 written down once more here. The rest: random histories of three nodes with lost
 * connections and restarts, and a ledger of what each monitor and request has to come to. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tables.h"

#define NODE_COUNT 3
#define QUEUE_COUNT_MAX 4096
#define REASON_BYTES_MAX 32

static const tm_bytes node_names[NODE_COUNT] = {
    {(const uint8_t *)"n0@h", 4}, {(const uint8_t *)"n1@h", 4}, {(const uint8_t *)"n2@h", 4}};

static int node_index(tm_bytes name)
{
    for (int i = 0; i < NODE_COUNT; i++)
        if (tm_bytes_equal(name, node_names[i])) return i;
    fail();
    return -1;
}

/* -- queues: what is on its way from one node to another --------------------------------------- */

enum { ITEM_SPAWN_REQUEST = TM_SIGNAL_GROUP_LEADER + 1, ITEM_SPAWN_REPLY };

typedef struct item {
    int kind; /* enum tm_proc_signal_kind, or above */
    tm_pid from;
    tm_target to;
    tm_ref ref;
    uint64_t id;
    unsigned flags;
    bool ok;
    size_t reason_len;
    uint8_t reason[REASON_BYTES_MAX];
} item;

typedef struct queue {
    size_t first, count;
    item items[QUEUE_COUNT_MAX];
} queue;

static item *queue_push(queue *q)
{
    assert_true(q->count < QUEUE_COUNT_MAX);
    return &q->items[(q->first + q->count++) % QUEUE_COUNT_MAX];
}

static item queue_pop(queue *q)
{
    assert_true(q->count > 0);
    item popped = q->items[q->first];
    q->first = (q->first + 1) % QUEUE_COUNT_MAX;
    q->count--;
    return popped;
}

/* The bytes of a signal are borrowed: an item points at node_names and at names that are static. */
static tm_bytes name_kept(tm_bytes name)
{
    static const char *const names[] = {"x", "y", "z", "nobody"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (tm_bytes_equal(name, tm_bytes_of(names[i], strlen(names[i]))))
            return tm_bytes_of(names[i], strlen(names[i]));
    fail();
    return name;
}

static tm_pid pid_kept(tm_pid pid)
{
    if (pid.node.len) pid.node = node_names[node_index(pid.node)];
    return pid;
}

static tm_ref ref_kept(tm_ref ref)
{
    if (ref.node.len) ref.node = node_names[node_index(ref.node)];
    return ref;
}

static void item_fill(item *made, const tm_proc_signal *signal)
{
    *made = (item){.kind = (int)signal->kind,
                   .from = pid_kept(signal->from),
                   .to = signal->to,
                   .ref = ref_kept(signal->ref),
                   .id = signal->unlink_id};
    made->to.pid = pid_kept(made->to.pid);
    made->to.node = node_names[node_index(made->to.node)];
    if (made->to.kind == TM_TARGET_NAME) made->to.name = name_kept(made->to.name);
    assert_true(signal->reason.len <= REASON_BYTES_MAX);
    made->reason_len = signal->reason.len;
    if (made->reason_len) memcpy(made->reason, signal->reason.ptr, made->reason_len);
}

/* -- nodes ------------------------------------------------------------------------------------- */

#define PROCESS_COUNT_MAX 16
#define LEDGER_COUNT_MAX 512

typedef struct entry { /* a monitor of ours that stands, or a request that waits */
    tm_proc_key owner;
    tm_ref ref;
    bool alias;
    unsigned flags; /* of the request */
} entry;

typedef struct ledger {
    size_t count;
    entry entries[LEDGER_COUNT_MAX];
} ledger;

typedef struct world world;

typedef struct node {
    world *world;
    int index;
    uint32_t creation;
    tm_procs *procs;
    size_t process_count;
    tm_proc_key processes[PROCESS_COUNT_MAX];
    ledger monitors;
    ledger requests;
    size_t message_count; /* EXIT_MESSAGE events */
} node;

struct world {
    tm_alloc_stats stats;
    tm_alloc alloc;
    uint64_t random;
    node nodes[NODE_COUNT];
    queue queues[NODE_COUNT][NODE_COUNT]; /* from, to */
    size_t done[4];                       /* DOWNs, demonitors, replies, lost connections */
};

static void ledger_add(ledger *l, entry made)
{
    assert_true(l->count < LEDGER_COUNT_MAX);
    made.ref = ref_kept(made.ref);
    l->entries[l->count++] = made;
}

/* Takes the entry out, or answers false. */
static bool ledger_take(ledger *l, const tm_ref *ref, entry *taken)
{
    for (size_t i = 0; i < l->count; i++) {
        if (!tm_ref_equal(&l->entries[i].ref, ref)) continue;
        *taken = l->entries[i];
        l->entries[i] = l->entries[--l->count];
        return true;
    }
    return false;
}

static void ledger_drop_owner(ledger *l, tm_proc_key owner)
{
    for (size_t i = 0; i < l->count;) {
        if (l->entries[i].owner == owner)
            l->entries[i] = l->entries[--l->count];
        else
            i++;
    }
}

/* A process of the model ends; it must have been alive. */
static void node_forget(node *n, tm_proc_key key)
{
    size_t i = 0;
    while (i < n->process_count && n->processes[i] != key) i++;
    assert_true(i < n->process_count);
    n->processes[i] = n->processes[--n->process_count];
    ledger_drop_owner(&n->monitors, key);
    ledger_drop_owner(&n->requests, key);
}

static void node_signal(void *ctx, const tm_proc_signal *signal)
{
    node *n = ctx;
    item_fill(queue_push(&n->world->queues[n->index][node_index(signal->node)]), signal);
}

static void node_event(void *ctx, const tm_proc_event *event)
{
    node *n = ctx;
    entry taken;
    assert_true(tm_procs_alive(n->procs, event->key) == (event->kind != TM_EVENT_PROC_EXITED));
    switch (event->kind) {
    case TM_EVENT_PROC_EXITED: node_forget(n, event->key); break;
    case TM_EVENT_EXIT_MESSAGE: n->message_count++; break;
    case TM_EVENT_DOWN:
        /* A local target that is not there fires before the monitor is in the ledger. */
        n->world->done[0]++;
        if (ledger_take(&n->monitors, &event->ref, &taken))
            assert_true(taken.owner == event->key);
        else
            ledger_add(&n->requests, (entry){.owner = event->key, .ref = event->ref, .flags = 8});
        break;
    case TM_EVENT_SPAWN_REPLY:
        n->world->done[2]++;
        assert_true(ledger_take(&n->requests, &event->ref, &taken));
        assert_true(taken.owner == event->key);
        taken.alias = false;
        if (event->ok && (taken.flags & TM_SPAWN_MONITOR)) ledger_add(&n->monitors, taken);
        break;
    case TM_EVENT_NODE_LOST: fail_msg("nobody watches a node here"); break;
    }
}

static void node_start(world *w, int index, uint32_t creation)
{
    node *n = &w->nodes[index];
    memset(n, 0, sizeof *n);
    n->world = w;
    n->index = index;
    n->creation = creation;
    tm_procs_options options = {
        .alloc = &w->alloc,
        .node = node_names[index],
        .creation = creation,
        .seed = {(uint64_t)index, creation},
        .sink = {.ctx = n, .signal = node_signal, .event = node_event},
    };
    assert_int_equal(tm_procs_create(&options, &n->procs), 0);
}

static tm_proc_key node_spawn(node *n, bool trap)
{
    tm_proc_key key;
    assert_true(n->process_count < PROCESS_COUNT_MAX);
    assert_int_equal(tm_procs_spawn(n->procs, &key), 0);
    n->processes[n->process_count++] = key;
    assert_int_equal(tm_procs_trap_exit(n->procs, key, trap), 0);
    return key;
}

static void node_exit(node *n, tm_proc_key key, tm_bytes reason)
{
    node_forget(n, key);
    assert_int_equal(tm_procs_exit(n->procs, key, reason), 0);
}

static world *world_create(uint64_t seed)
{
    world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->alloc = tm_alloc_libc(&w->stats);
    w->random = seed * 2 + 1;
    for (int i = 0; i < NODE_COUNT; i++) node_start(w, i, 10);
    return w;
}

static void world_destroy(world *w)
{
    for (int i = 0; i < NODE_COUNT; i++) tm_procs_destroy(w->nodes[i].procs);
    assert_int_equal(w->stats.bytes, 0);
    assert_int_equal(w->stats.count, 0);
    free(w);
}

/* Both ends lose the connection; what is on its way is lost. */
static void world_cut(world *w, int a, int b)
{
    w->done[3]++;
    w->queues[a][b].count = w->queues[b][a].count = 0;
    tm_procs_node_down(w->nodes[a].procs, node_names[b]);
    assert_int_equal(w->queues[a][b].count, 0);
    tm_procs_node_down(w->nodes[b].procs, node_names[a]);
    assert_int_equal(w->queues[b][a].count, 0);
}

/* -- delivery ---------------------------------------------------------------------------------- */

static void deliver_request(world *w, int from, int to, const item *in)
{
    node *n = &w->nodes[to];
    item *reply = queue_push(&w->queues[to][from]);
    *reply = (item){.kind = ITEM_SPAWN_REPLY, .to = {.pid = in->from}, .ref = in->ref};
    tm_proc_key key;
    if (n->process_count == PROCESS_COUNT_MAX) return;
    assert_int_equal(tm_procs_on_spawn(n->procs, &in->from, &in->ref, in->flags, &key), 0);
    n->processes[n->process_count++] = key;
    reply->ok = true;
    reply->flags = in->flags;
    reply->from = pid_kept(tm_procs_pid(n->procs, key));
}

static int deliver_signal(node *n, int from, const item *in)
{
    tm_procs *procs = n->procs;
    tm_bytes reason = {in->reason, in->reason_len};
    tm_proc_key abandoned;
    switch (in->kind) {
    case TM_SIGNAL_LINK: return tm_procs_on_link(procs, &in->from, &in->to.pid);
    case TM_SIGNAL_UNLINK_ID: return tm_procs_on_unlink_id(procs, in->id, &in->from, &in->to.pid);
    case TM_SIGNAL_UNLINK_ID_ACK:
        return tm_procs_on_unlink_id_ack(procs, in->id, &in->from, &in->to.pid);
    case TM_SIGNAL_EXIT: return tm_procs_on_exit(procs, &in->from, &in->to.pid, reason);
    case TM_SIGNAL_EXIT2: return tm_procs_on_exit2(procs, &in->from, &in->to.pid, reason);
    case TM_SIGNAL_MONITOR: return tm_procs_on_monitor(procs, &in->from, &in->to, &in->ref);
    case TM_SIGNAL_DEMONITOR: return tm_procs_on_demonitor(procs, &in->from, &in->ref, &abandoned);
    case TM_SIGNAL_MONITOR_EXIT:
        return tm_procs_on_monitor_exit(procs, node_names[from], &in->to.pid, &in->ref, reason);
    default: break;
    }
    return tm_procs_on_spawn_reply(procs, node_names[from], &in->ref, &in->to.pid, in->flags,
                                   in->ok ? &in->from : NULL, TM_BYTES("w\014system_limit"));
}

static void deliver(world *w, int from, int to)
{
    item in = queue_pop(&w->queues[from][to]);
    if (in.kind == ITEM_SPAWN_REQUEST)
        deliver_request(w, from, to, &in);
    else
        assert_int_equal(deliver_signal(&w->nodes[to], from, &in), 0);
}

static void drain(world *w)
{
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < NODE_COUNT * NODE_COUNT; i++) {
            if (!w->queues[i / NODE_COUNT][i % NODE_COUNT].count) continue;
            deliver(w, i / NODE_COUNT, i % NODE_COUNT);
            moved = true;
        }
    }
}

/* -- links, enumerated ------------------------------------------------------------------------- */

enum step { LINK_0, LINK_1, UNLINK_0, UNLINK_1, DELIVER_0, DELIVER_1, EXIT_0, EXIT_1 };
enum model_state { NONE, ACTIVE, INACTIVE };
#define MODEL_QUEUE_COUNT_MAX 64

typedef struct model_signal {
    enum tm_proc_signal_kind kind;
    uint64_t id;
} model_signal;

/* One end as protocol.md 4.4 has it. */
typedef struct model_side {
    enum model_state state;
    bool dead;
    uint64_t id, last_id;
    size_t message_count;
    size_t first, count; /* signals that it has sent: all, and those that have arrived */
    model_signal sent[MODEL_QUEUE_COUNT_MAX];
} model_side;

static void model_send(model_side *side, enum tm_proc_signal_kind kind, uint64_t id)
{
    assert_true(side->count < MODEL_QUEUE_COUNT_MAX);
    side->sent[side->count++] = (model_signal){kind, id};
}

static void model_local(model_side *side, enum step step)
{
    switch (step) {
    case LINK_0:
        if (side->dead || side->state == ACTIVE) return;
        model_send(side, TM_SIGNAL_LINK, 0);
        side->state = ACTIVE;
        return;
    case UNLINK_0:
        if (side->dead || side->state != ACTIVE) return;
        side->id = ++side->last_id;
        model_send(side, TM_SIGNAL_UNLINK_ID, side->id);
        side->state = INACTIVE;
        return;
    default:
        if (side->dead) return;
        if (side->state == ACTIVE) model_send(side, TM_SIGNAL_EXIT, 0);
        side->state = NONE;
        side->dead = true;
    }
}

static void model_receive(model_side *side, model_signal in)
{
    switch (in.kind) {
    case TM_SIGNAL_LINK:
        if (side->dead)
            model_send(side, TM_SIGNAL_EXIT, 0);
        else if (side->state == NONE)
            side->state = ACTIVE;
        return;
    case TM_SIGNAL_UNLINK_ID:
        if (side->state == ACTIVE) side->state = NONE;
        model_send(side, TM_SIGNAL_UNLINK_ID_ACK, in.id);
        return;
    case TM_SIGNAL_UNLINK_ID_ACK:
        if (side->state == INACTIVE && side->id == in.id) side->state = NONE;
        return;
    default:
        assert_int_equal(in.kind, TM_SIGNAL_EXIT);
        if (side->state == ACTIVE) side->message_count++;
        side->state = NONE;
    }
}

typedef struct duel {
    world *world;
    tm_pid pids[2];
    tm_proc_key keys[2];
    model_side sides[2];
} duel;

static void duel_start(duel *d)
{
    memset(d->sides, 0, sizeof d->sides);
    for (int i = 0; i < 2; i++) {
        node *n = &d->world->nodes[i];
        n->message_count = 0;
        d->keys[i] = node_spawn(n, true);
        d->pids[i] = pid_kept(tm_procs_pid(n->procs, d->keys[i]));
    }
}

static enum model_state link_state(const duel *d, int i)
{
    tm_procs *procs = d->world->nodes[i].procs;
    const tm_process *process = tm_process_get(procs, d->keys[i]);
    const tm_remote *peer = tm_remote_find(procs, node_names[1 - i]);
    if (!process || !peer) return NONE;
    const tm_link *link = tm_link_find(procs, process, peer, &d->pids[1 - i]);
    return !link ? NONE : link->unlink_id ? INACTIVE : ACTIVE;
}

static void duel_compare(const duel *d)
{
    for (int i = 0; i < 2; i++) {
        const model_side *side = &d->sides[i];
        const queue *q = &d->world->queues[i][1 - i];
        assert_int_equal(link_state(d, i), side->state);
        assert_int_equal(d->world->nodes[i].message_count, side->message_count);
        assert_int_equal(q->count, side->count - side->first);
        for (size_t k = 0; k < q->count; k++) {
            const item *have = &q->items[(q->first + k) % QUEUE_COUNT_MAX];
            const model_signal *want = &side->sent[side->first + k];
            assert_int_equal(have->kind, want->kind);
            assert_true(have->id == want->id);
            assert_true(tm_pid_equal(&have->from, &d->pids[i]));
            assert_true(tm_pid_equal(&have->to.pid, &d->pids[1 - i]));
        }
    }
}

/* false: the step is not possible now */
static bool duel_step(duel *d, enum step step)
{
    int i = (int)step % 2;
    node *n = &d->world->nodes[i];
    bool dead = d->sides[i].dead;
    switch ((enum step)((int)step - i)) {
    case LINK_0:
        if (dead) return false;
        assert_int_equal(tm_procs_link(n->procs, d->keys[i], &d->pids[1 - i]), 0);
        break;
    case UNLINK_0:
        if (dead) return false;
        assert_int_equal(tm_procs_unlink(n->procs, d->keys[i], &d->pids[1 - i]), 0);
        break;
    case DELIVER_0:
        if (!d->world->queues[i][1 - i].count) return false;
        deliver(d->world, i, 1 - i);
        model_receive(&d->sides[1 - i], d->sides[i].sent[d->sides[i].first++]);
        duel_compare(d);
        return true;
    default:
        if (dead) return false;
        node_exit(n, d->keys[i], TM_BYTES("w\005crash"));
    }
    model_local(&d->sides[i], (enum step)((int)step - i));
    duel_compare(d);
    return true;
}

/* Everything arrives: both ends agree, and nothing else is left. */
static void duel_finish(duel *d)
{
    while (duel_step(d, DELIVER_0) || duel_step(d, DELIVER_1)) {
    }
    assert_int_equal(link_state(d, 0), link_state(d, 1));
    assert_int_not_equal(link_state(d, 0), INACTIVE);
    bool linked = link_state(d, 0) == ACTIVE;
    for (int i = 0; i < 2; i++) {
        tm_procs_invariants(d->world->nodes[i].procs);
        assert_int_equal(d->world->nodes[i].procs->links.count, linked);
    }
    for (int i = 0; i < 2; i++)
        if (!d->sides[i].dead) assert_true(duel_step(d, i ? EXIT_1 : EXIT_0));
    while (duel_step(d, DELIVER_0) || duel_step(d, DELIVER_1)) {
    }
    for (int i = 0; i < 2; i++) assert_int_equal(d->world->nodes[i].procs->links.count, 0);
}

/* Steps of the longest sequences. A debug build walks all tables at both ends of every call. */
#ifdef TM_DEBUG
#define DUEL_LENGTH 7
#else
#define DUEL_LENGTH 8
#endif

/* Counts through all sequences of that many steps; an impossible step skips all that begin so. */
static void duel_enumerate(int length, int kinds)
{
    enum { LENGTH_MAX = 16 };
    int steps[LENGTH_MAX] = {0};
    duel d = {.world = world_create(1)};
    size_t played = 0;
    for (int last = length - 1; last >= 0; played++) {
        duel_start(&d);
        last = length - 1;
        for (int i = 0; i < length; i++) {
            if (duel_step(&d, (enum step)steps[i])) continue;
            last = i;
            break;
        }
        duel_finish(&d);
        for (int i = last + 1; i < length; i++) steps[i] = 0;
        while (last >= 0 && ++steps[last] == kinds) steps[last--] = 0;
    }
    world_destroy(d.world);
    assert_true(played > 5000);
}

static void links_that_cross_in_every_way_end_alike_on_both_sides(void **state)
{
    (void)state;
    duel_enumerate(DUEL_LENGTH, EXIT_0);
}

static void links_that_cross_with_exits_end_alike_on_both_sides(void **state)
{
    (void)state;
    duel_enumerate(6, EXIT_1 + 1);
}

/* -- random histories -------------------------------------------------------------------------- */

static uint32_t draw(world *w, uint32_t below)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return (uint32_t)((w->random * 0x2545f4914f6cdd1dULL) >> 33) % below;
}

static tm_bytes draw_name(world *w)
{
    static const char names[] = "xyz";
    return tm_bytes_of(&names[draw(w, 3)], 1);
}

static tm_bytes draw_reason(world *w)
{
    switch (draw(w, 4)) {
    case 0: return TM_BYTES("w\006normal");
    case 1: return TM_BYTES("w\004kill");
    default: return TM_BYTES("w\005crash");
    }
}

/* A pid of any node: alive mostly, else dead or of an earlier life. */
static tm_pid draw_pid(world *w)
{
    int index = (int)draw(w, NODE_COUNT);
    const node *n = &w->nodes[index];
    tm_pid pid = {.node = node_names[index], .id = 1 + draw(w, 40), .creation = n->creation};
    if (n->process_count && draw(w, 8))
        pid = tm_procs_pid(n->procs, n->processes[draw(w, (uint32_t)n->process_count)]);
    if (!draw(w, 16)) pid.creation--;
    return pid_kept(pid);
}

static tm_target draw_target(world *w)
{
    if (draw(w, 3)) return tm_target_pid(draw_pid(w));
    return (tm_target){
        .kind = TM_TARGET_NAME, .node = node_names[draw(w, NODE_COUNT)], .name = draw_name(w)};
}

static void act_monitor(world *w, node *n, tm_proc_key key)
{
    if (n->monitors.count == LEDGER_COUNT_MAX / 2) return;
    tm_target target = draw_target(w);
    unsigned flags = draw(w, 2);
    tm_ref ref;
    entry fired;
    assert_int_equal(tm_procs_monitor(n->procs, key, &target, flags, &ref), 0);
    if (ledger_take(&n->requests, &ref, &fired))
        assert_int_equal(fired.flags, 8);
    else
        ledger_add(&n->monitors, (entry){.owner = key, .ref = ref, .alias = flags != 0});
}

/* Ends a monitor that stands, by demonitor or by a reply; both work once and never again. */
static void act_end_monitor(world *w, node *n)
{
    if (!n->monitors.count) return;
    entry taken, chosen = n->monitors.entries[draw(w, (uint32_t)n->monitors.count)];
    bool reply;
    w->done[1]++;
    assert_true(ledger_take(&n->monitors, &chosen.ref, &taken));
    if (chosen.alias && draw(w, 2)) {
        assert_true(tm_procs_use_alias(n->procs, &chosen.ref, &reply) == chosen.owner);
        assert_true(reply);
    } else {
        assert_true(tm_procs_demonitor(n->procs, chosen.owner, &chosen.ref));
    }
    assert_false(tm_procs_demonitor(n->procs, chosen.owner, &chosen.ref));
    assert_true(tm_procs_use_alias(n->procs, &chosen.ref, &reply) == 0);
}

static void act_request(world *w, node *n, tm_proc_key key)
{
    int to = (n->index + 1 + (int)draw(w, NODE_COUNT - 1)) % NODE_COUNT;
    if (n->requests.count == LEDGER_COUNT_MAX / 2) return;
    unsigned flags = draw(w, 4);
    tm_ref ref;
    assert_int_equal(tm_procs_spawn_request(n->procs, key, node_names[to], flags, &ref), 0);
    ledger_add(&n->requests, (entry){.owner = key, .ref = ref, .flags = flags});
    item *sent = queue_push(&w->queues[n->index][to]);
    *sent = (item){.kind = ITEM_SPAWN_REQUEST,
                   .ref = ref_kept(ref),
                   .flags = flags,
                   .from = pid_kept(tm_procs_pid(n->procs, key))};
}

static void act_abandon(world *w, node *n)
{
    if (!n->requests.count) return;
    entry taken, chosen = n->requests.entries[draw(w, (uint32_t)n->requests.count)];
    assert_true(ledger_take(&n->requests, &chosen.ref, &taken));
    assert_true(tm_procs_spawn_abandon(n->procs, chosen.owner, &chosen.ref));
}

/* An API call of one process. */
static void act(world *w, node *n, tm_proc_key key)
{
    tm_pid pid = draw_pid(w), self = tm_procs_pid(n->procs, key);
    int rc = 0;
    switch (draw(w, 12)) {
    case 0: node_exit(n, key, draw_reason(w)); break;
    case 1:
    case 2:
        rc = tm_procs_link(n->procs, key, &pid);
        if (tm_pid_equal(&pid, &self)) rc -= TM_EUSE_ARG;
        break;
    case 3: rc = tm_procs_unlink(n->procs, key, &pid); break;
    case 4:
        if (!draw(w, 4)) rc = tm_procs_exit2(n->procs, key, &pid, draw_reason(w));
        break;
    case 5:
        rc = tm_procs_register(n->procs, draw_name(w), key);
        if (rc == TM_ENAME_TAKEN) rc = 0;
        break;
    case 6: (void)tm_procs_unregister(n->procs, draw_name(w)); break;
    case 7:
    case 8: act_monitor(w, n, key); break;
    case 9: act_end_monitor(w, n); break;
    case 10: act_request(w, n, key); break;
    default:
        if (!draw(w, 4)) act_abandon(w, n);
    }
    assert_int_equal(rc, 0);
}

static void restart(world *w, int index)
{
    uint32_t creation = w->nodes[index].creation + 1;
    tm_procs_destroy(w->nodes[index].procs);
    node_start(w, index, creation);
    for (int i = 0; i < NODE_COUNT; i++)
        if (i != index) world_cut(w, index, i);
}

static void step(world *w)
{
    int a = (int)draw(w, NODE_COUNT), b = (a + 1 + (int)draw(w, NODE_COUNT - 1)) % NODE_COUNT;
    node *n = &w->nodes[a];
    uint32_t what = draw(w, 1000);
    if (what < 3)
        restart(w, a);
    else if (what < 10)
        world_cut(w, a, b);
    else if (what < 500 && w->queues[a][b].count)
        deliver(w, a, b);
    else if (n->process_count < PROCESS_COUNT_MAX / 2)
        node_spawn(n, draw(w, 2));
    else
        act(w, n, n->processes[draw(w, (uint32_t)n->process_count)]);
    for (int i = 0; i < NODE_COUNT; i++) {
        tm_procs_invariants(w->nodes[i].procs);
        assert_int_equal(tm_procs_count(w->nodes[i].procs), w->nodes[i].process_count);
    }
}

static size_t list_length(const tm_list *head)
{
    size_t length = 0;
    for (const tm_list *at = head->next; at != head; at = at->next) length++;
    return length;
}

/* With nothing on its way: each link stands at both ends, each monitor has its watch, no request
 * waits. */
static void check_rest(const world *w)
{
    for (int i = 0; i < NODE_COUNT; i++) {
        size_t handles = 0;
        for (int k = 0; k < NODE_COUNT; k++) {
            const tm_remote *ours = tm_remote_find(w->nodes[i].procs, node_names[k]);
            const tm_remote *theirs = tm_remote_find(w->nodes[k].procs, node_names[i]);
            if (i == k) continue;
            if (!ours || !theirs) {
                const tm_remote *one = ours ? ours : theirs;
                assert_true(!one || (tm_list_empty(&one->links) && tm_list_empty(&one->monitors)));
                continue;
            }
            handles += list_length(&ours->monitors);
            assert_int_equal(list_length(&ours->monitors), theirs->watch_count);
            assert_int_equal(list_length(&ours->links), list_length(&theirs->links));
            assert_true(tm_list_empty(&ours->requests));
            TM_LIST_EACH (&ours->links, at, following) {
                const tm_link *link = TM_CONTAINER(at, tm_link, of_peer);
                assert_true(link->unlink_id == 0);
                tm_pid self = tm_procs_pid(w->nodes[i].procs, link->key.local);
                const tm_process *other = tm_process_get(w->nodes[k].procs, link->key.other);
                assert_non_null(other);
                const tm_link *twin = tm_link_find(w->nodes[k].procs, other, theirs, &self);
                assert_non_null(twin);
                assert_true(twin->unlink_id == 0);
            }
        }
        for (size_t p = 0; p < w->nodes[i].process_count; p++) {
            tm_process *process = tm_process_get(w->nodes[i].procs, w->nodes[i].processes[p]);
            handles += list_length(&process->watched);
        }
        assert_int_equal(handles, w->nodes[i].monitors.count);
        assert_int_equal(w->nodes[i].requests.count, 0);
    }
}

static void history(uint64_t seed, size_t totals[4])
{
    world *w = world_create(seed);
    for (int i = 0; i < 1500; i++) {
        step(w);
        if (i % 500 == 499) {
            drain(w);
            check_rest(w);
        }
    }
    /* All processes end: nothing may be left of what they held or what was held on them. */
    for (int i = 0; i < NODE_COUNT; i++) {
        node *n = &w->nodes[i];
        while (n->process_count) {
            node_exit(n, n->processes[0], TM_BYTES("w\010shutdown"));
            drain(w);
        }
    }
    for (int i = 0; i < NODE_COUNT; i++) {
        const tm_procs *procs = w->nodes[i].procs;
        assert_int_equal(procs->names.count + procs->handles.count, 0);
        assert_int_equal(procs->watches.count + procs->links.count, 0);
        assert_int_equal(w->nodes[i].monitors.count + w->nodes[i].requests.count, 0);
    }
    for (int i = 0; i < 4; i++) totals[i] += w->done[i];
    world_destroy(w);
}

static void random_histories_end_every_monitor_and_request_exactly_once(void **state)
{
    enum { SEED_COUNT = 60 };
    (void)state;
    size_t totals[4] = {0};
    for (uint64_t seed = 1; seed <= SEED_COUNT; seed++) {
        print_message("seed %llu\n", (unsigned long long)seed);
        history(seed, totals);
    }
    for (int i = 0; i < 4; i++) assert_true(totals[i] > 5 * SEED_COUNT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(links_that_cross_in_every_way_end_alike_on_both_sides),
        cmocka_unit_test(links_that_cross_with_exits_end_alike_on_both_sides),
        cmocka_unit_test(random_histories_end_every_monitor_and_request_exactly_once),
    };
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
