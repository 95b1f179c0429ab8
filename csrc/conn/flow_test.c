/* What goes out, in which order: senders with large messages among others, one connection over the fake
 * network. The far end is a reader of its own, so that nothing is judged by the code that wrote it. */
#include "../etf/testing.h"
#include "../io/mem.h"
#include "connection.h"

#define OUR_NAME "a@127.0.0.1"
#define PEER_NAME "b@127.0.0.1"
#define PEER_CREATION 99
#define ALL_FLAGS                                                                                  \
    (TM_DFLAGS_OURS | TM_DFLAG(DIST_HDR_ATOM_CACHE) | TM_DFLAG(FRAGMENTS) | TM_DFLAG(ALTACT_SIG))

/* -- one node, one connection, and the other end of it ------------------------------------------------ */

typedef struct world {
    test_heap heap;
    tumen_engine engine;
    tumen_node node;
    tm_peer *peer;
    tm_connection conn;
    tm_mem_net *net;
    tm_io *far;
    tm_buf stream; /* what has arrived */
    uint64_t random;
    uint64_t lent, returned, writable;
    uint32_t numbers[64]; /* sent by each sender */
    bool several_targets;
    uint32_t seen[64];
} world;

static uint32_t dice(world *w, uint32_t below)
{
    w->random = w->random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)(w->random >> 33) % below;
}

static void near_connected(void *ctx, tm_io_id id, int rc)
{
    world *w = ctx;
    assert_int_equal(rc, 0);
    w->conn.sock.id = id;
}

static void near_sent(void *ctx, tm_io_id id, ssize_t rc)
{
    world *w = ctx;
    (void)id;
    tm_connection_sent(&w->conn.sock, rc);
}

static void far_accepted(void *ctx, tm_io_id listener, tm_io_id id, const tm_io_address *peer)
{
    world *w = ctx;
    (void)listener, (void)peer;
    assert_int_equal(w->far->ops->read_start(w->far, id), 0);
}

static void far_received(void *ctx, tm_io_id id, tm_bytes bytes)
{
    world *w = ctx;
    (void)id;
    assert_int_equal(tm_buf_append(&w->stream, bytes.ptr, bytes.len), 0);
}

/* One step of the network, and what it asks for; false when nothing is left to happen. */
static bool world_step(world *w)
{
    tm_io_sink near = {.ctx = w, .connected = near_connected, .sent = near_sent};
    tm_io_sink far = {.ctx = w, .accepted = far_accepted, .received = far_received};
    uint64_t next = tm_mem_net_next_ns(w->net);
    if (next != UINT64_MAX && next > tm_mem_net_now_ns(w->net)) tm_mem_net_set_now_ns(w->net, next);
    tm_io *io = w->engine.io;
    assert_int_equal(io->ops->turn(io, 0, &near), 0);
    assert_int_equal(w->far->ops->turn(w->far, 0, &far), 0);
    for (tm_list *link; (link = tm_list_pop(&w->engine.commands));) {
        tm_command *command = TM_CONTAINER(link, tm_command, link);
        command->run(command);
    }
    tumen_batch *batch = tumen_node_take(&w->node);
    for (const tumen_event *event; batch && (event = tumen_batch_next(batch));) {
        if (event->kind == TUMEN_EVENT_RETURNED) w->returned++;
        if (event->kind == TUMEN_EVENT_WRITABLE) w->writable++;
    }
    if (batch) tumen_batch_free(batch);
    return next != UINT64_MAX;
}

static void world_write(world *w) { tm_connection_write(&w->conn); }

static void world_rest(world *w)
{
    world_write(w);
    while (world_step(w)) continue;
    assert_int_equal(w->peer->queue.count, 0);
    assert_false(w->peer->sending);
}

static void world_engine(world *w, const tm_mem_options *options)
{
    tumen_engine *engine = &w->engine;
    engine->alloc = test_alloc(&w->heap);
    engine->seed[0] = options->seed;
    pthread_mutex_init(&engine->command_lock, NULL);
    tm_list_init(&engine->commands);
    tm_io_options io = {.alloc = &engine->alloc, .sockets_max = 8};
    assert_int_equal(tm_mem_net_create(&engine->alloc, options, &w->net), 0);
    assert_int_equal(tm_io_mem_create(w->net, &io, &engine->io), 0);
    assert_int_equal(tm_io_mem_create(w->net, &io, &w->far), 0);
}

static void world_node(world *w)
{
    tumen_node *node = &w->node;
    node->engine = &w->engine;
    pthread_mutex_init(&node->lock, NULL);
    memcpy(node->name, OUR_NAME, sizeof OUR_NAME);
    node->name_len = sizeof OUR_NAME - 1;
    node->creation = 5;
    node->limits[TUMEN_LIMIT_SENDQ_HIGH_BYTES] = TM_SENDQ_HIGH_BYTES_DEFAULT;
    node->limits[TUMEN_LIMIT_SENDQ_NODE_BYTES] = TM_SENDQ_NODE_BYTES_DEFAULT;
    tm_map_init(&node->peers, &w->engine.alloc, w->engine.seed);
    tm_list_init(&node->dirty);
    tm_list_init(&node->later);
    node->entries.alloc = &w->engine.alloc;
    assert_int_equal(tm_inbox_init(&node->inbox, &w->engine.alloc, &w->engine.wakeups_out), 0);
    w->peer = tm_node_make_peer(node, TM_BYTES(PEER_NAME));
    assert_non_null(w->peer);
    w->peer->state = TM_PEER_UP;
    w->peer->conn = &w->conn;
    w->conn.node = node;
    w->conn.peer = w->peer;
    w->conn.creation = PEER_CREATION;
    w->conn.sock.engine = &w->engine;
    w->conn.resume.run = tm_connection_resume;
    tm_buf_init(&w->conn.out, &w->engine.alloc, 0);
    tm_buf_init(&w->conn.carried, &w->engine.alloc, 0);
    tm_buf_init(&w->stream, &w->engine.alloc, 0);
}

static world *world_open(uint64_t flags, const tm_mem_options *options)
{
    world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->random = options->seed;
    world_engine(w, options);
    world_node(w);
    w->conn.flags = flags;
    tm_io_address any = {.len = sizeof(struct sockaddr_storage)}, bound;
    any.storage.ss_family = AF_INET;
    tm_io_id listener, id;
    assert_int_equal(w->far->ops->listen(w->far, &any, 1, &listener, &bound), 0);
    assert_int_equal(w->engine.io->ops->connect(w->engine.io, &bound, &id), 0);
    while (!w->conn.sock.id) assert_true(world_step(w));
    return w;
}

/* Nothing may be left of a world but what the test itself holds. */
static void world_close(world *w)
{
    assert_null(w->peer->queue.flows);
    assert_int_equal(w->peer->queue.bytes, 0);
    assert_int_equal(w->peer->queue.large_bytes, 0);
    assert_int_equal(w->peer->queue.messages, 0);
    assert_int_equal(w->node.sendq_bytes, 0);
    assert_int_equal(w->returned, w->lent);
    tm_map_remove(&w->node.peers, w->peer->name);
    tm_alloc_free(&w->engine.alloc, w->peer, sizeof *w->peer + w->peer->name.len);
    tm_map_fini(&w->node.peers);
    tm_entry_pool_fini(&w->node.entries);
    tm_inbox_fini(&w->node.inbox);
    tm_buf_fini(&w->conn.out);
    tm_alloc_free(&w->engine.alloc, w->conn.atoms_out, sizeof *w->conn.atoms_out);
    tm_buf_fini(&w->stream);
    w->engine.io->ops->destroy(w->engine.io);
    w->far->ops->destroy(w->far);
    tm_mem_net_destroy(w->net);
    pthread_mutex_destroy(&w->node.lock);
    pthread_mutex_destroy(&w->engine.command_lock);
    assert_int_equal(w->heap.bytes, 0);
    free(w);
}

/* -- what senders say: binaries that tell who, the how-manieth, and a pattern ----------------------------- */

/* Sender 0 is no process. */
static tm_pid sender_pid(uint32_t sender)
{
    return (tm_pid){.node = TM_BYTES(OUR_NAME),
                    .id = sender,
                    .serial = sender ? 7 : 0,
                    .creation = sender ? 5 : 0};
}

static tm_pid far_pid(void)
{
    return (tm_pid){.node = TM_BYTES(PEER_NAME), .id = 1, .creation = PEER_CREATION};
}

#define TAG_BYTES 5
#define MARK_BYTES 8

/* A binary of that many bytes in all; to be freed. */
static uint8_t *binary(uint32_t sender, uint32_t number, size_t size)
{
    assert_true(size >= TAG_BYTES + MARK_BYTES);
    uint8_t *bytes = malloc(size);
    assert_non_null(bytes);
    bytes[0] = TM_BINARY_EXT;
    tm_store_u32(bytes + 1, (uint32_t)(size - TAG_BYTES));
    tm_store_u32(bytes + TAG_BYTES, sender);
    tm_store_u32(bytes + TAG_BYTES + 4, number);
    for (size_t i = TAG_BYTES + MARK_BYTES; i < size; i++) bytes[i] = (uint8_t)(i * 31 + number);
    return bytes;
}

/* Blocks that are lent, until the end of a test. */
typedef struct lending {
    uint8_t *blocks[4096];
    size_t count;
} lending;

static void lending_end(lending *l)
{
    for (size_t i = 0; i < l->count; i++) free(l->blocks[i]);
}

/* A message in one to four parts; lent ones when there is somebody to keep them. */
static void say_to(world *w, uint32_t sender, size_t size, const tm_target *to, lending *l)
{
    uint8_t *bytes = binary(sender, w->numbers[sender]++, size);
    tumen_part parts[4];
    size_t count = 1 + dice(w, 4), at = 0;
    bool keep = l && size > 100 && dice(w, 2);
    for (size_t i = 0; i < count; i++) {
        size_t len = i + 1 == count ? size - at : dice(w, (uint32_t)(size - at + 1));
        parts[i] = (tumen_part){.bytes = {bytes + at, len}, .lent = keep ? ++w->lent : 0};
        at += len;
    }
    tm_pid from = sender_pid(sender);
    tm_entry *entry = tm_entry_message(&w->node, &from, to, parts, count, (tm_bytes){0});
    assert_non_null(entry);
    tm_node_lock(&w->node);
    tm_peer_queue(w->peer, entry);
    tm_node_unlock(&w->node);
    if (keep) {
        assert_true(l->count < sizeof l->blocks / sizeof *l->blocks);
        l->blocks[l->count++] = bytes;
    } else {
        free(bytes);
    }
}

/* With several targets: which of them a message goes to, by its number. */
static uint32_t target_serial(uint32_t number) { return number / 5 % 3; }

static void say(world *w, uint32_t sender, size_t size)
{
    tm_target to = {.kind = TM_TARGET_PID, .pid = far_pid()};
    if (w->several_targets) to.pid.serial = target_serial(w->numbers[sender]);
    say_to(w, sender, size, &to, NULL);
}

/* The other ways to be heard: EXIT, DOWN, a message to an alias, the reply of a spawn. */
static void say_otherwise(world *w, uint32_t sender, size_t size, unsigned kind, lending *l)
{
    tm_pid from = sender_pid(sender);
    tm_ref ref = {.node = TM_BYTES(PEER_NAME), .creation = PEER_CREATION, .count = 2};
    if (kind == 0) {
        tm_target alias = {.kind = TM_TARGET_REF, .node = ref.node, .ref = ref};
        say_to(w, sender, size, &alias, l);
        return;
    }
    tm_node_lock(&w->node);
    if (kind == 1 && sender) {
        tm_pid to = far_pid();
        tm_entry *entry = tm_entry_spawn_reply(&w->node, &ref, &to, w->numbers[sender]++, &from,
                                               (tm_bytes){0}, (tm_bytes){0});
        assert_non_null(entry);
        tm_peer_queue(w->peer, entry);
    } else {
        uint8_t *bytes = binary(sender, w->numbers[sender]++, size);
        tm_proc_signal signal = {.kind = kind == 2 ? TM_SIGNAL_MONITOR_EXIT : TM_SIGNAL_EXIT2,
                                 .node = TM_BYTES(PEER_NAME),
                                 .from = from,
                                 .to = {.kind = TM_TARGET_PID, .pid = far_pid()},
                                 .ref = ref,
                                 .reason = {bytes, size}};
        if (!sender) signal.from.creation = 5; /* exit/2 by nobody: pid 0 */
        tm_node_on_signal(&w->node, &signal);
        free(bytes);
    }
    tm_node_unlock(&w->node);
}

/* -- the reader ---------------------------------------------------------------------------------------- */

typedef struct sequence {
    uint64_t id, left;
    tm_buf payload;
} sequence;

typedef struct reader {
    world *w;
    tm_atom_pool pool;
    tm_atom_cache cache;
    sequence open[TM_SEQUENCES_OUT_MAX + 1];
    size_t open_count, open_peak;
    uint64_t last_id;
    size_t frames, ticks, fragments, cached;
    size_t at;              /* of the frame in the stream */
    size_t heard_at[64];    /* where the last word of each sender ended */
    size_t payload_largest; /* of a frame that is no fragment */
    tm_small_pid from, to;  /* of the last control message */
} reader;

static void reader_heard(reader *r, uint32_t sender, uint32_t number)
{
    assert_true(sender < 64);
    assert_int_equal(number, r->w->seen[sender]);
    r->w->seen[sender]++;
    r->heard_at[sender] = r->at;
}

static void reader_payload(reader *r, tm_bytes payload)
{
    assert_int_equal(payload.ptr[0], TM_BINARY_EXT);
    assert_int_equal(tm_load_u32(payload.ptr + 1) + TAG_BYTES, payload.len);
    uint32_t number = tm_load_u32(payload.ptr + TAG_BYTES + 4);
    for (size_t i = TAG_BYTES + MARK_BYTES; i < payload.len; i++)
        if (payload.ptr[i] != (uint8_t)(i * 31 + number)) fail_msg("byte %zu differs", i);
    reader_heard(r, tm_load_u32(payload.ptr + TAG_BYTES), number);
}

/* A control message and the payload behind it, of which *part may be only the first. headed: behind a
 * list of atoms. Says what an operation without a payload says. */
static void reader_control(reader *r, tm_bytes terms, bool headed, tm_bytes *part)
{
    world *w = r->w;
    tm_atom_header *header = malloc(sizeof *header);
    tm_control *control = malloc(sizeof *control);
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    tm_cursor c = tm_cursor_of(terms);
    tm_atom_header_init(header);
    const char *what;
    if (headed) assert_int_equal(tm_atom_cache_read(&r->cache, &c, header, &what), 0);
    r->cached += header->count;
    limits.cache_atoms = header->atoms;
    limits.cache_refs = header->count;
    assert_int_equal(tm_control_parse(tm_bytes_of(c.ptr, tm_cursor_left(&c)), !headed, &limits,
                                      &w->engine.alloc, control, part, NULL),
                     0);
    tm_pid ours = control->from.kind == TM_ITEM_PID ? control->from.pid : sender_pid(0);
    assert_true(tm_bytes_equal(ours.node, TM_BYTES(OUR_NAME)));
    if (control->to.kind == TM_ITEM_PID)
        assert_true(tm_bytes_equal(control->to.pid.node, TM_BYTES(PEER_NAME)));
    r->from = (tm_small_pid){ours.id, ours.serial, ours.creation};
    r->to = (tm_small_pid){control->to.pid.id, control->to.pid.serial, control->to.pid.creation};
    if (control->op == TM_OP_SPAWN_REPLY) {
        reader_heard(r, control->result.pid.id, (uint32_t)control->flags);
    } else if (!part->len) {
        reader_payload(r, control->reason);
    }
    tm_control_fini(control);
    if (headed) tm_atom_header_done(&r->cache, header);
    free(control);
    free(header);
}

static void reader_fragment(reader *r, bool first, uint64_t id, uint64_t number, tm_bytes bytes)
{
    size_t i = 0;
    while (i < r->open_count && r->open[i].id != id) i++;
    r->fragments++;
    if (first) {
        assert_true(i == r->open_count);
        assert_true(id > r->last_id); /* never 0, never again */
        assert_true(number >= 2);
        assert_true(i < TM_SEQUENCES_OUT_MAX);
        r->last_id = id;
        r->open_count++;
        r->open[i] = (sequence){.id = id, .left = number};
        tm_buf_init(&r->open[i].payload, &r->w->engine.alloc, 0);
        if (r->open_count > r->open_peak) r->open_peak = r->open_count;
        tm_bytes part;
        reader_control(r, bytes, true, &part);
        bytes = part;
    } else {
        assert_true(i < r->open_count);
    }
    assert_true(bytes.len && bytes.len <= TM_FRAGMENT_BYTES);
    assert_true(number == 1 || bytes.len == TM_FRAGMENT_BYTES);
    sequence *s = &r->open[i];
    assert_int_equal(number, s->left);
    assert_int_equal(tm_buf_append(&s->payload, bytes.ptr, bytes.len), 0);
    if (--s->left) return;
    reader_payload(r, tm_buf_bytes(&s->payload));
    tm_buf_fini(&s->payload);
    r->open[i] = r->open[--r->open_count];
}

static void reader_whole(reader *r, tm_bytes terms, bool headed)
{
    tm_bytes payload;
    reader_control(r, terms, headed, &payload);
    if (payload.len) reader_payload(r, payload);
    if (payload.len && r->w->several_targets) {
        assert_int_equal(r->from.id, tm_load_u32(payload.ptr + TAG_BYTES));
        assert_int_equal(r->to.serial, target_serial(tm_load_u32(payload.ptr + TAG_BYTES + 4)));
    }
    if (payload.len > r->payload_largest) r->payload_largest = payload.len;
}

static void reader_frame(reader *r, tm_bytes frame)
{
    r->frames++;
    const uint8_t *p = frame.ptr;
    if (p[0] == 112) {
        assert_false(r->w->conn.flags & TM_DFLAG(FRAGMENTS));
        reader_whole(r, tm_bytes_of(p + 2, frame.len - 2), false);
    } else if (p[1] == 68) {
        reader_whole(r, tm_bytes_of(p + 2, frame.len - 2), true);
    } else {
        assert_true(p[1] == 69 || p[1] == 70);
        reader_fragment(r, p[1] == 69, tm_load_u64(p + 2), tm_load_u64(p + 10),
                        tm_bytes_of(p + 18, frame.len - 18));
    }
}

/* Reads all that has arrived, from the start. */
static void reader_run(reader *r, world *w)
{
    *r = (reader){.w = w};
    tm_atom_pool_init(&r->pool, &w->engine.alloc, w->engine.seed);
    tm_atom_cache_init(&r->cache, &r->pool);
    memset(w->seen, 0, sizeof w->seen);
    tm_bytes stream = tm_buf_bytes(&w->stream);
    while (r->at < stream.len) {
        assert_true(stream.len - r->at >= 4);
        size_t len = tm_load_u32(stream.ptr + r->at);
        assert_true(stream.len - r->at - 4 >= len);
        size_t start = r->at + 4;
        r->at = start + len;
        if (len)
            reader_frame(r, tm_bytes_of(stream.ptr + start, len));
        else
            r->ticks++;
    }
    assert_int_equal(r->open_count, 0);
    assert_int_equal(r->cached > 0, w->conn.atoms_out != NULL);
    tm_atom_cache_fini(&r->cache);
    tm_atom_pool_fini(&r->pool);
}

static void all_heard(const world *w)
{
    for (size_t i = 0; i < 64; i++) assert_int_equal(w->seen[i], w->numbers[i]);
}

/* -- tests --------------------------------------------------------------------------------------------- */

static const tm_mem_options KIND = {.seed = 1, .room_bytes = 1 << 20};

static void tick(world *w)
{
    tm_entry *entry = tm_entry_create(&w->node.entries, 0, 0);
    assert_non_null(entry);
    entry->op = TM_ENTRY_TICK;
    tm_node_lock(&w->node);
    TM_ATOMIC_ADD(&w->node.sendq_bytes, entry->weight);
    tm_sendq_push_front(&w->peer->queue, entry);
    tm_node_unlock(&w->node);
}

/* Sizes around every border, most of them small. */
static size_t some_size(world *w)
{
    static const uint32_t BORDERS[] = {TM_FRAGMENT_BYTES,     TM_FRAGMENT_BYTES + 1,
                                       TM_WHOLE_BYTES_MAX,    TM_WHOLE_BYTES_MAX + 1,
                                       2 * TM_FRAGMENT_BYTES, 2 * TM_FRAGMENT_BYTES + 1};
    switch (dice(w, 8)) {
    case 0: return BORDERS[dice(w, sizeof BORDERS / sizeof *BORDERS)];
    case 1: return 13 + dice(w, 300000);
    case 2: return 13 + dice(w, 20000);
    default: return 13 + dice(w, 300);
    }
}

static void converse(uint64_t flags, uint64_t seed)
{
    world *w = world_open(flags, &(tm_mem_options){.seed = seed,
                                                   .delay_ns_max = TM_MS_NS,
                                                   .room_bytes = 100000,
                                                   .short_send_per_mille = 200,
                                                   .split_per_mille = 100});
    lending l = {0};
    uint32_t senders = 1 + dice(w, 50), ticks = 0;
    for (int i = 0; i < 400; i++) {
        uint32_t sender = dice(w, senders);
        tm_target to = {.kind = TM_TARGET_PID, .pid = far_pid()};
        if (dice(w, 4))
            say_to(w, sender, some_size(w), &to, &l);
        else
            say_otherwise(w, sender, some_size(w), dice(w, 4), &l);
        switch (dice(w, 12)) {
        case 0: world_write(w); break;
        case 1: tick(w), ticks++; break;
        case 2:
            tm_node_lock(&w->node);
            (void)tm_connection_write_direct(w->peer);
            tm_node_unlock(&w->node);
            break;
        case 3:
            for (uint32_t n = dice(w, 200); n && world_step(w); n--) continue;
            break;
        default: break;
        }
    }
    world_rest(w);
    reader r;
    reader_run(&r, w);
    all_heard(w);
    assert_int_equal(r.ticks, ticks);
    assert_int_equal(r.frames, w->conn.frames_out);
    assert_int_equal(r.fragments != 0, (flags & TM_DFLAG(FRAGMENTS)) != 0);
    world_close(w);
    lending_end(&l);
}

/* Seed by seed: a failing one is named by the line before. */
static void each_sender_is_heard_in_order_whatever_the_network_does(void **state)
{
    (void)state;
    static const uint64_t FLAGS[] = {
        ALL_FLAGS, TM_DFLAGS_OURS, ALL_FLAGS & ~TM_DFLAG(DIST_HDR_ATOM_CACHE),
        ALL_FLAGS & ~TM_DFLAG(ALTACT_SIG), ALL_FLAGS & ~TM_DFLAG(EXIT_PAYLOAD)};
    for (uint64_t seed = 1; seed <= 15; seed++) {
        uint64_t flags = FLAGS[seed % (sizeof FLAGS / sizeof *FLAGS)];
        print_message("seed %llu\n", (unsigned long long)seed);
        converse(flags, seed);
    }
}

static void others_and_ticks_overtake_between_fragments_and_the_sender_does_not(void **state)
{
    (void)state;
    world *w = world_open(ALL_FLAGS, &KIND);
    say(w, 1, 100);
    say(w, 1, 8 << 20);
    say(w, 2, 100);
    say(w, 1, 100);
    say(w, 0, 100);
    world_write(w);
    for (int i = 0; i < 8; i++) world_step(w);
    size_t begun = w->conn.bytes_out;
    assert_true(begun < 8 << 20);
    say(w, 3, 100);
    tick(w);
    world_rest(w);
    reader r;
    reader_run(&r, w);
    all_heard(w);
    assert_true(r.heard_at[2] < TM_SEND_BATCH_BYTES);
    assert_true(r.heard_at[0] < TM_SEND_BATCH_BYTES);
    assert_true(r.heard_at[3] < begun + 2 * TM_SEND_BATCH_BYTES);
    assert_true(r.heard_at[1] > 8 << 20);
    assert_int_equal(r.ticks, 1);
    world_close(w);
}

static void an_end_waits_behind_what_the_process_has_said(void **state)
{
    (void)state;
    world *w = world_open(ALL_FLAGS, &KIND);
    say(w, 1, 1 << 20);
    say_otherwise(w, 1, 100, 2, NULL);     /* DOWN */
    say_otherwise(w, 2, 1 << 20, 2, NULL); /* a large one goes in fragments itself */
    say_otherwise(w, 2, 200, 3, NULL);
    world_rest(w);
    reader r;
    reader_run(&r, w);
    all_heard(w);
    assert_int_equal(r.open_peak, 2);
    world_close(w);
}

static void large_messages_take_turns(void **state)
{
    (void)state;
    world *w = world_open(ALL_FLAGS, &KIND);
    say(w, 1, 4 << 20);
    for (uint32_t sender = 2; sender < 5; sender++) say(w, sender, 1 << 20);
    world_rest(w);
    reader r;
    reader_run(&r, w);
    all_heard(w);
    assert_int_equal(r.open_peak, 4);
    /* Each of the three has its share from the start: four of five MiB are theirs until they end. */
    for (uint32_t sender = 2; sender < 5; sender++)
        assert_true(r.heard_at[sender] < (4 << 20) + 2 * TM_SEND_BATCH_BYTES);
    assert_true(r.heard_at[1] > 7 << 20);
    world_close(w);
}

static void small_ones_do_not_starve_a_large_one(void **state)
{
    (void)state;
    world *w = world_open(ALL_FLAGS, &KIND);
    say(w, 1, 1 << 20);
    for (int i = 0; i < 400; i++) say(w, 2, 20000);
    world_rest(w);
    reader r;
    reader_run(&r, w);
    all_heard(w);
    /* Half of each write is its own. */
    assert_true(r.heard_at[1] < 3 << 20);
    world_close(w);
}

static void no_more_sequences_are_open_than_the_limit_says(void **state)
{
    (void)state;
    world *w = world_open(ALL_FLAGS, &KIND);
    for (uint32_t sender = 1; sender < 60; sender++) {
        say(w, sender, 3 * TM_FRAGMENT_BYTES);
        say(w, sender, 50);
    }
    world_rest(w);
    reader r;
    reader_run(&r, w);
    all_heard(w);
    assert_int_equal(r.open_peak, TM_SEQUENCES_OUT_MAX);
    world_close(w);
}

static void a_large_message_to_an_alias_of_an_old_beam_goes_whole(void **state)
{
    (void)state;
    world *w = world_open(ALL_FLAGS & ~TM_DFLAG(ALTACT_SIG), &KIND);
    say_otherwise(w, 1, 1 << 20, 0, NULL);
    say(w, 1, 100);
    world_rest(w);
    reader r;
    reader_run(&r, w);
    all_heard(w);
    assert_int_equal(r.fragments, 0);
    assert_int_equal(r.payload_largest, 1 << 20);
    world_close(w);
}

static void many_small_messages_are_one_write(void **state)
{
    (void)state;
    world *w = world_open(ALL_FLAGS, &KIND);
    for (uint32_t i = 0; i < 500; i++) say(w, i % 9, 40);
    world_write(w);
    assert_int_equal(w->engine.turn_sends, 1);
    assert_null(w->peer->queue.head);
    world_rest(w);
    reader r;
    reader_run(&r, w);
    all_heard(w);
    world_close(w);
}

static void each_message_names_its_own_sender_and_target(void **state)
{
    (void)state;
    for (int cached = 0; cached < 2; cached++) {
        uint64_t flags = cached ? ALL_FLAGS : ALL_FLAGS & ~TM_DFLAG(DIST_HDR_ATOM_CACHE);
        world *w = world_open(flags, &KIND);
        w->several_targets = true;
        for (uint32_t i = 0; i < 2000; i++) {
            say(w, 1 + dice(w, 3) / 2, 20 + dice(w, dice(w, 2) ? 100 : 9000));
            if (!dice(w, 50)) world_write(w);
        }
        world_rest(w);
        reader r;
        reader_run(&r, w);
        all_heard(w);
        world_close(w);
    }
}

/* OTP 28 reads past the end of a prioritised message from 64 KiB on. */
static void a_large_message_loses_its_priority(void **state)
{
    (void)state;
    world *w = world_open(ALL_FLAGS, &KIND);
    for (size_t size = 100; size <= 10u << 20; size *= 100) {
        uint8_t *bytes = binary(1, 0, size);
        tm_entry *entry = tm_entry_create(&w->node.entries, 0, 1);
        assert_non_null(entry);
        entry->op = TM_OP_ALTACT_SIG_SEND;
        entry->number = TM_ALTACT_PRIO;
        entry->from = (tm_small_pid){1, 7, 5};
        entry->to_kind = TM_ITEM_REF;
        entry->to_ref = (tm_small_ref){.creation = PEER_CREATION, .count = 2};
        entry->parts[0] = (tumen_part){.bytes = {bytes, size}};
        entry->payload_len = size;
        tm_buf out;
        tm_buf_init(&out, &w->engine.alloc, 0);
        bool segments;
        assert_int_equal(tm_entry_write(entry, TM_BYTES(OUR_NAME), 5, TM_BYTES(PEER_NAME),
                                        ALL_FLAGS, &out, &segments),
                         0);
        /* 131, 68, 0, tuple of 4 or 5, SMALL_INTEGER_EXT 37, SMALL_INTEGER_EXT flags */
        assert_int_equal(out.ptr[10], 37);
        bool prio = out.ptr[12] & TM_ALTACT_PRIO;
        assert_int_equal(prio, size <= TM_PRIO_BYTES_MAX);
        tm_buf_fini(&out);
        tm_entry_free(&w->node.entries, entry);
        free(bytes);
    }
    world_close(w);
}

static void what_the_peer_cannot_take_is_dropped_before_its_first_fragment(void **state)
{
    (void)state;
    world *w = world_open(ALL_FLAGS & ~TM_DFLAG(DIST_MONITOR), &KIND);
    say(w, 1, 100);
    say_otherwise(w, 1, 1 << 20, 2, NULL); /* DOWN: never negotiated */
    w->numbers[1]--;
    say(w, 1, 200);
    world_rest(w);
    reader r;
    reader_run(&r, w);
    all_heard(w);
    assert_int_equal(r.fragments, 0);
    assert_int_equal(w->node.operations_refused, 1);
    world_close(w);
}

static void a_connection_that_ends_loses_each_message_once(void **state)
{
    (void)state;
    for (int steps = 0; steps < 30; steps += 3) {
        world *w = world_open(ALL_FLAGS, &(tm_mem_options){.seed = 3, .room_bytes = 50000});
        lending l = {0};
        tm_target to = {.kind = TM_TARGET_PID, .pid = far_pid()};
        for (uint32_t i = 0; i < 40; i++) say_to(w, i % 7, some_size(w), &to, &l);
        world_write(w);
        for (int i = 0; i < steps; i++) world_step(w);
        uint64_t accepted = w->peer->queue.messages;
        assert_true(accepted > 0);
        tm_node_lock_engine(&w->node);
        tm_connection_write_lost(&w->conn, w->peer);
        w->peer->sending = false;
        tm_peer_drop_queue(w->peer);
        assert_null(w->conn.flows);
        /* As connection_closed does. */
        while (w->conn.writing) {
            tm_entry *entry = w->conn.writing;
            w->conn.writing = entry->next;
            for (size_t i = 0; i < entry->part_count; i++)
                if (entry->parts[i].lent) w->returned++;
            tm_entry_free(&w->node.entries, entry);
        }
        tm_node_unlock(&w->node);
        w->conn.down = true;
        while (world_step(w)) continue;
        world_close(w);
        lending_end(&l);
    }
}

static void a_small_message_is_taken_while_a_large_one_is_on_its_way(void **state)
{
    (void)state;
    world *w = world_open(ALL_FLAGS, &KIND);
    say(w, 1, 20 << 20);
    assert_true(tm_peer_refuses(w->peer, false, true));
    assert_false(tm_peer_refuses(w->peer, false, false));
    for (int i = 0; !tm_peer_busy(w->peer, false, false); i++) {
        assert_true(i < 1100);
        say(w, 2, 1000);
    }
    assert_true(tm_peer_refuses(w->peer, false, false));
    assert_false(tm_peer_busy(w->peer, true, false));
    world_write(w);
    /* Who sent small ones hears of room long before the large one is out. */
    while (!w->writable) assert_true(world_step(w));
    assert_true(w->conn.bytes_out < 10 << 20);
    assert_false(tm_peer_busy(w->peer, false, false));
    assert_true(tm_peer_busy(w->peer, false, true));
    assert_true(w->peer->want_writable);
    world_rest(w);
    assert_int_equal(w->writable, 2);
    assert_false(tm_peer_busy(w->peer, false, true));
    world_close(w);
}

/* A flush behind the engine's write has nothing to do: that write's end takes along what was queued. */
static void a_flush_leaves_what_is_queued_to_the_write_in_flight(void **state)
{
    (void)state;
    world *w = world_open(ALL_FLAGS, &(tm_mem_options){.seed = 3, .room_bytes = 100000});
    say(w, 1, 60000);
    world_write(w);
    assert_true(w->peer->sending);
    for (int i = 0; i < 4; i++) {
        say(w, 2, 60000); /* more than a caller would write himself */
        tm_node_lock(&w->node);
        assert_true(tm_connection_write_direct(w->peer));
        tm_node_unlock(&w->node);
    }
    assert_int_equal(w->engine.direct_sends, 0);
    while (world_step(w)) continue; /* nobody calls tm_connection_write */
    assert_int_equal(w->peer->queue.count, 0);
    reader r;
    reader_run(&r, w);
    all_heard(w);
    world_close(w);
}

/* Without memory for a flow a large message is no flow; nothing is lost, and order is kept. */
static void flows_need_no_memory_to_keep_the_order(void **state)
{
    (void)state;
    for (size_t fail = 1; fail <= 8; fail++) {
        world *w = world_open(ALL_FLAGS, &KIND);
        for (uint32_t i = 0; i < 60; i++) {
            uint32_t sender = i % 20;
            size_t size = i % 3 ? 100 : 70000;
            uint8_t *bytes = binary(sender, w->numbers[sender]++, size);
            tm_pid from = sender_pid(sender);
            tm_target to = {.kind = TM_TARGET_PID, .pid = far_pid()};
            tumen_part part = {.bytes = {bytes, size}};
            tm_entry *entry = tm_entry_message(&w->node, &from, &to, &part, 1, (tm_bytes){0});
            assert_non_null(entry);
            w->heap.calls = 0;
            w->heap.fail_at = fail;
            tm_peer_queue(w->peer, entry);
            w->heap.fail_at = 0;
            free(bytes);
        }
        world_rest(w);
        reader r;
        reader_run(&r, w);
        all_heard(w);
        world_close(w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_sender_is_heard_in_order_whatever_the_network_does),
        cmocka_unit_test(others_and_ticks_overtake_between_fragments_and_the_sender_does_not),
        cmocka_unit_test(an_end_waits_behind_what_the_process_has_said),
        cmocka_unit_test(large_messages_take_turns),
        cmocka_unit_test(small_ones_do_not_starve_a_large_one),
        cmocka_unit_test(no_more_sequences_are_open_than_the_limit_says),
        cmocka_unit_test(a_large_message_to_an_alias_of_an_old_beam_goes_whole),
        cmocka_unit_test(many_small_messages_are_one_write),
        cmocka_unit_test(each_message_names_its_own_sender_and_target),
        cmocka_unit_test(a_large_message_loses_its_priority),
        cmocka_unit_test(what_the_peer_cannot_take_is_dropped_before_its_first_fragment),
        cmocka_unit_test(a_connection_that_ends_loses_each_message_once),
        cmocka_unit_test(a_small_message_is_taken_while_a_large_one_is_on_its_way),
        cmocka_unit_test(a_flush_leaves_what_is_queued_to_the_write_in_flight),
        cmocka_unit_test(flows_need_no_memory_to_keep_the_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
