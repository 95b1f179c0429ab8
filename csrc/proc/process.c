#include "tables.h"

/* Slots of the first table, and free ones that are kept before a slot is used again: with the
 * 32-bit serial a pid comes back after two thousand billion others at the earliest. */
#define SLOT_FIRST_COUNT 1024
#define SLOT_FREE_COUNT_MIN 512
#define SLOT_NONE UINT32_MAX
static_assert(SLOT_FREE_COUNT_MIN < SLOT_FIRST_COUNT, "the first table must hold a process");
static_assert(SLOT_FIRST_COUNT <= TM_PROCESS_COUNT_MAX, "the first table is not above the bound");
static_assert(TM_PROCESS_COUNT_MAX < 1 << 28, "old peers know pids of 28 bits");

/* A map whose slots exceed this is given back when it becomes empty. */
#define MAP_KEPT_SIZE 1024

/* -- out --------------------------------------------------------------------------------------- */

void tm_procs_answer(tm_procs *procs, tm_bytes node, tm_proc_signal *signal)
{
    signal->node = node;
    procs->in_sink = true;
    procs->sink.signal(procs->sink.ctx, signal);
    procs->in_sink = false;
}

void tm_procs_signal(tm_procs *procs, const tm_remote *peer, tm_proc_signal *signal)
{
    if (!peer->down) tm_procs_answer(procs, tm_remote_name(peer), signal);
}

void tm_procs_event(tm_procs *procs, const tm_proc_event *event)
{
    procs->in_sink = true;
    procs->sink.event(procs->sink.ctx, event);
    procs->in_sink = false;
}

/* -- life -------------------------------------------------------------------------------------- */

void tm_procs_trim(tm_map *map)
{
    if (map->count == 0 && map->size > MAP_KEPT_SIZE) tm_map_fini(map);
}

static int node_copy(const tm_alloc *alloc, tm_bytes node, uint8_t **copy)
{
    if (node.len == 0 || node.len > TM_NODE_NAME_BYTES_MAX) return TM_EUSE_NAME;
    *copy = tm_alloc_get(alloc, node.len);
    if (!*copy) return TM_ENOMEM;
    memcpy(*copy, node.ptr, node.len);
    return 0;
}

int tm_procs_create(const tm_procs_options *options, tm_procs **procs)
{
    TM_ASSERT(options->sink.signal);
    TM_ASSERT(options->sink.event);
    tm_procs *made = tm_alloc_zero(options->alloc, sizeof *made);
    if (!made) return TM_ENOMEM;
    int rc = node_copy(options->alloc, options->node, &made->node);
    if (rc) {
        tm_alloc_free(options->alloc, made, sizeof *made);
        return rc;
    }
    made->alloc = options->alloc;
    made->sink = options->sink;
    made->node_len = options->node.len;
    made->creation = options->creation;
    memcpy(made->seed, options->seed, sizeof made->seed);
    /* References are seen by peers, the hashes must stay unknown to them: two keys. */
    made->ref_seed[0] = tm_siphash(options->seed, TM_BYTES("reference, word 1"));
    made->ref_seed[1] = tm_siphash(options->seed, TM_BYTES("reference, word 2"));
    made->free_first = made->free_last = SLOT_NONE;
    tm_map *maps[] = {&made->names, &made->handles, &made->watches, &made->links, &made->peers};
    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++)
        tm_map_init(maps[i], made->alloc, made->seed);
    tm_list_init(&made->ending);
    *procs = made;
    return tm_procs_leave(made, 0);
}

void tm_procs_destroy(tm_procs *procs)
{
    if (!procs) return;
    tm_procs_enter(procs);
    for (uint32_t i = 0; i < procs->slot_count; i++)
        if (procs->slots[i].process) tm_process_discard(procs, procs->slots[i].process);
    size_t position = 0;
    for (tm_remote *peer; (peer = tm_map_next(&procs->peers, &position)); position = 0)
        tm_remote_free(procs, peer);
    TM_ASSERT(procs->names.count == 0);
    TM_ASSERT(procs->handles.count == 0);
    TM_ASSERT(procs->watches.count == 0);
    TM_ASSERT(procs->links.count == 0);
    tm_map *maps[] = {&procs->names, &procs->handles, &procs->watches, &procs->links,
                      &procs->peers};
    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++) tm_map_fini(maps[i]);
    const tm_alloc *alloc = procs->alloc;
    tm_alloc_free(alloc, procs->slots, procs->slot_count * sizeof *procs->slots);
    tm_alloc_free(alloc, procs->node, procs->node_len);
    tm_alloc_free(alloc, procs, sizeof *procs);
}

int tm_procs_rename(tm_procs *procs, tm_bytes node, uint32_t creation)
{
    tm_procs_enter(procs);
    if (procs->process_count) return TM_EUSE_STATE;
    uint8_t *copy;
    int rc = node_copy(procs->alloc, node, &copy);
    if (rc) return rc;
    tm_alloc_free(procs->alloc, procs->node, procs->node_len);
    procs->node = copy;
    procs->node_len = node.len;
    procs->creation = creation;
    return tm_procs_leave(procs, 0);
}

/* -- slots ------------------------------------------------------------------------------------- */

static void slot_free(tm_procs *procs, uint32_t slot)
{
    procs->slots[slot].process = NULL;
    procs->slots[slot].next_free = SLOT_NONE;
    if (procs->free_count++ == 0)
        procs->free_first = slot;
    else
        procs->slots[procs->free_last].next_free = slot;
    procs->free_last = slot;
}

static int slots_grow(tm_procs *procs)
{
    uint32_t count = procs->slot_count ? procs->slot_count * 2 : SLOT_FIRST_COUNT;
    if (count > TM_PROCESS_COUNT_MAX) count = TM_PROCESS_COUNT_MAX;
    tm_slot *slots = procs->alloc->resize(procs->alloc->ctx, procs->slots,
                                          procs->slot_count * sizeof *slots, count * sizeof *slots);
    if (!slots) return TM_ENOMEM;
    uint32_t first = procs->slot_count;
    procs->slots = slots;
    procs->slot_count = count;
    for (uint32_t i = first; i < count; i++) {
        slots[i].serial = 0;
        slot_free(procs, i);
    }
    return 0;
}

/* Takes the slot that has been free for longest. */
static int slot_take(tm_procs *procs, uint32_t *slot)
{
    if (procs->free_count <= SLOT_FREE_COUNT_MIN && procs->slot_count < TM_PROCESS_COUNT_MAX) {
        int rc = slots_grow(procs);
        if (rc && procs->free_count == 0) return rc;
    }
    if (procs->free_count == 0) return TM_EUSE_LIMIT;
    *slot = procs->free_first;
    procs->free_first = procs->slots[*slot].next_free;
    procs->free_count--;
    return 0;
}

/* -- processes --------------------------------------------------------------------------------- */

tm_process *tm_process_of_pid(const tm_procs *procs, const tm_pid *pid)
{
    if (pid->creation != procs->creation || !tm_procs_is_local(procs, pid->node)) return NULL;
    return tm_process_get(procs, tm_pid_key(pid));
}

int tm_process_new(tm_procs *procs, tm_process **process)
{
    tm_process *made = tm_alloc_zero(procs->alloc, sizeof *made);
    if (!made) return TM_ENOMEM;
    uint32_t slot;
    int rc = slot_take(procs, &slot);
    if (rc) {
        tm_alloc_free(procs->alloc, made, sizeof *made);
        return rc;
    }
    made->key = (uint64_t)procs->slots[slot].serial << 32 | (slot + 1);
    tm_list_init(&made->names);
    tm_list_init(&made->handles);
    tm_list_init(&made->watched);
    tm_list_init(&made->watches);
    tm_list_init(&made->links);
    procs->slots[slot].process = made;
    procs->process_count++;
    *process = made;
    return 0;
}

static void process_free(tm_procs *procs, tm_process *process)
{
    uint32_t slot = tm_proc_key_id(process->key) - 1;
    tm_inherit_free(procs, process);
    procs->slots[slot].serial++;
    slot_free(procs, slot);
    tm_alloc_free(procs->alloc, process, sizeof *process);
}

static void name_free(tm_procs *procs, tm_name *name)
{
    tm_map_remove(&procs->names, tm_bytes_of(name->text, name->len));
    tm_procs_trim(&procs->names);
    tm_list_remove(&name->of_process);
    tm_alloc_free(procs->alloc, name, sizeof *name + name->len);
}

static void names_free(tm_procs *procs, tm_process *process)
{
    TM_LIST_EACH (&process->names, node, following)
        name_free(procs, TM_CONTAINER(node, tm_name, of_process));
}

void tm_process_discard(tm_procs *procs, tm_process *process)
{
    TM_ASSERT(!process->ending);
    names_free(procs, process);
    TM_LIST_EACH (&process->handles, node, following)
        tm_handle_free(procs, TM_CONTAINER(node, tm_handle, of_owner));
    while (!tm_list_empty(&process->watched))
        tm_handle_free(procs, TM_CONTAINER(process->watched.next, tm_handle, of_target));
    TM_LIST_EACH (&process->watches, node, following)
        tm_watch_free(procs, TM_CONTAINER(node, tm_watch, of_target));
    TM_LIST_EACH (&process->links, node, following)
        tm_link_free(procs, TM_CONTAINER(node, tm_link_end, of_process)->link);
    procs->mail_bytes -= process->mail_bytes;
    procs->process_count--;
    process_free(procs, process);
}

void tm_process_end(tm_procs *procs, tm_process *process, tm_bytes reason, bool tell)
{
    TM_ASSERT(!process->ending);
    process->ending = true;
    process->tell = tell;
    process->reason = reason;
    procs->mail_bytes -= process->mail_bytes;
    procs->process_count--;
    tm_list_push(&procs->ending, &process->of_ending);
}

void tm_procs_settle(tm_procs *procs)
{
    for (tm_list *node; (node = tm_list_pop(&procs->ending));) {
        tm_process *process = TM_CONTAINER(node, tm_process, of_ending);
        names_free(procs, process);
        tm_links_settle(procs, process);
        tm_monitors_settle(procs, process);
        tm_requests_settle(procs, process);
        if (process->tell) {
            tm_proc_event event = {
                .kind = TM_EVENT_PROC_EXITED, .key = process->key, .reason = process->reason};
            tm_procs_event(procs, &event);
        }
        process_free(procs, process);
    }
}

int tm_procs_spawn(tm_procs *procs, tm_proc_key *key)
{
    tm_procs_enter(procs);
    tm_process *process;
    int rc = tm_process_new(procs, &process);
    if (rc) return rc;
    *key = process->key;
    return tm_procs_leave(procs, 0);
}

int tm_procs_exit(tm_procs *procs, tm_proc_key key, tm_bytes reason)
{
    tm_procs_enter(procs);
    tm_process *process = tm_process_get(procs, key);
    if (!process) return TM_ENOPROC;
    tm_process_end(procs, process, reason, false);
    tm_procs_settle(procs);
    return tm_procs_leave(procs, 0);
}

void tm_procs_end_all(tm_procs *procs)
{
    tm_procs_enter(procs);
    for (uint32_t i = 0; i < procs->slot_count; i++)
        if (procs->slots[i].process)
            tm_process_end(procs, procs->slots[i].process, TM_TERM_NOCONNECTION, true);
    tm_procs_settle(procs);
    tm_procs_check(procs);
}

bool tm_procs_alive(const tm_procs *procs, tm_proc_key key)
{
    return tm_process_get(procs, key) != NULL;
}

tm_pid tm_procs_pid(const tm_procs *procs, tm_proc_key key)
{
    return (tm_pid){.node = tm_procs_node(procs),
                    .id = tm_proc_key_id(key),
                    .serial = tm_proc_key_serial(key),
                    .creation = procs->creation};
}

tm_proc_key tm_procs_find(const tm_procs *procs, const tm_pid *pid)
{
    const tm_process *process = tm_process_of_pid(procs, pid);
    return process ? process->key : 0;
}

int tm_procs_trap_exit(tm_procs *procs, tm_proc_key key, bool trap)
{
    tm_procs_enter(procs);
    tm_process *process = tm_process_get(procs, key);
    if (!process) return TM_ENOPROC;
    process->trap_exit = trap;
    return 0;
}

size_t tm_procs_count(const tm_procs *procs) { return procs->process_count; }

/* Distinct: the low bits of the count and a keyed hash of all of it are the words. */
tm_ref tm_procs_make_ref(tm_procs *procs)
{
    uint64_t count = procs->ref_count++;
    uint64_t hash = tm_siphash(procs->ref_seed, tm_bytes_of(&count, sizeof count));
    tm_ref ref = {
        .node = tm_procs_node(procs), .creation = procs->creation, .count = TM_OWN_REF_WORDS};
    ref.words[0] = (uint32_t)(count & ((1U << 18) - 1));
    ref.words[1] = (uint32_t)hash;
    ref.words[2] = (uint32_t)(hash >> 32);
    return ref;
}

/* -- names ------------------------------------------------------------------------------------- */

static bool name_valid(tm_bytes name)
{
    size_t chars;
    if (name.len == 0 || name.len > TM_ATOM_BYTES_MAX) return false;
    if (tm_bytes_equal(name, TM_BYTES("undefined"))) return false;
    return tm_utf8_valid(name, &chars) && chars <= TM_ATOM_CHARS_MAX;
}

int tm_procs_register(tm_procs *procs, tm_bytes name, tm_proc_key key)
{
    tm_procs_enter(procs);
    if (!name_valid(name)) return TM_EUSE_NAME;
    tm_process *process = tm_process_get(procs, key);
    if (!process) return TM_ENOPROC;
    if (tm_map_get(&procs->names, name)) return TM_ENAME_TAKEN;
    tm_name *made = tm_alloc_zero(procs->alloc, sizeof *made + name.len);
    if (!made) return TM_ENOMEM;
    made->process = process;
    made->len = name.len;
    memcpy(made->text, name.ptr, name.len);
    int rc = tm_map_set(&procs->names, tm_bytes_of(made->text, made->len), made);
    if (rc) {
        tm_alloc_free(procs->alloc, made, sizeof *made + name.len);
        return rc;
    }
    tm_list_push(&process->names, &made->of_process);
    return tm_procs_leave(procs, 0);
}

int tm_procs_unregister(tm_procs *procs, tm_bytes name)
{
    tm_procs_enter(procs);
    tm_name *found = tm_map_get(&procs->names, name);
    if (!found) return TM_ENOPROC;
    name_free(procs, found);
    return tm_procs_leave(procs, 0);
}

tm_proc_key tm_procs_whereis(const tm_procs *procs, tm_bytes name)
{
    const tm_name *found = tm_map_get(&procs->names, name);
    return found && !found->process->ending ? found->process->key : 0;
}

/* -- mail accounting --------------------------------------------------------------------------- */

uint64_t tm_procs_mail_put(tm_procs *procs, tm_proc_key key, uint64_t bytes)
{
    tm_process *process = tm_process_get(procs, key);
    if (!process) return 0;
    process->mail_bytes += bytes;
    procs->mail_bytes += bytes;
    return process->mail_bytes;
}

void tm_procs_mail_take(tm_procs *procs, tm_proc_key key, uint64_t bytes)
{
    tm_process *process = tm_process_get(procs, key);
    if (!process) return;
    uint64_t taken = bytes < process->mail_bytes ? bytes : process->mail_bytes;
    process->mail_bytes -= taken;
    procs->mail_bytes -= taken;
}

uint64_t tm_procs_mail(const tm_procs *procs) { return procs->mail_bytes; }

tm_proc_key tm_procs_fullest(const tm_procs *procs, uint64_t *bytes)
{
    const tm_process *fullest = NULL;
    for (uint32_t i = 0; i < procs->slot_count; i++) {
        const tm_process *process = procs->slots[i].process;
        if (!process || process->ending) continue;
        if (process->mail_bytes > (fullest ? fullest->mail_bytes : 0)) fullest = process;
    }
    *bytes = fullest ? fullest->mail_bytes : 0;
    return fullest ? fullest->key : 0;
}
