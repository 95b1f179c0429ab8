/* Do a lying port mapper and clients that err leave the other side whole? The first byte picks the
 * side. Client: the rest is a reply, in parts. Server: the rest is steps of several connections,
 * each a byte that picks connection and action, then a part. */
#include "dist/epmd.h"
#include "split.h"

#define OPTION_SERVER 1
#define OPTION_QUERY_SHIFT 1

#define SESSIONS 4
#define STEP_CLOSE 4
#define STEP_STRANGER 8
#define ACTIVE_MAX 3
#define OUT_MAX (64 * 1024)

/* -- client ------------------------------------------------------------------------------------ */

static void check_names(const tm_epmd_reader *reader)
{
    tm_bytes name, all = tm_buf_bytes(&reader->reply);
    uint16_t port;
    size_t position = 0, before = 0;
    while (tm_epmd_reader_next(reader, &position, &name, &port)) {
        CHECK(name.len && name.ptr >= all.ptr && name.ptr + name.len <= all.ptr + all.len);
        CHECK(position > before && position <= all.len);
        before = position;
    }
}

static void check_reader(tm_epmd_reader *reader, int rc)
{
    bool refused = rc == TM_EPEER_MALFORMED || rc == TM_EPEER_REFUSED || rc == TM_EPEER_UNKNOWN ||
                   rc == TM_EPEER_LIMIT || rc == TM_EPEER_CLOSED;
    CHECK(rc == 0 || rc == TM_NEED_DATA || (refused && reader->rc == rc && reader->fault.what));
    if (rc) return;
    if (reader->query == TM_EPMD_REGISTER) CHECK(reader->creation);
    if (reader->query == TM_EPMD_LOOKUP)
        CHECK(reader->node.port && tm_bytes_equal(reader->node.name, reader->asked));
}

static void play_client(uint8_t options, tm_bytes rest, const tm_alloc *alloc)
{
    enum tm_epmd_query query = (enum tm_epmd_query)((options >> OPTION_QUERY_SHIFT) % 3);
    tm_epmd_reader reader;
    tm_epmd_reader_init(&reader, query, TM_BYTES("py1"), alloc);
    while (rest.len) {
        tm_bytes part = split_part(&rest);
        check_reader(&reader, tm_epmd_reader_feed(&reader, part));
        split_free(part);
    }
    int rc = tm_epmd_reader_eof(&reader);
    CHECK(rc != TM_NEED_DATA);
    check_reader(&reader, rc);
    check_names(&reader);
    tm_epmd_reader_fini(&reader);
}

/* -- server ------------------------------------------------------------------------------------ */

typedef struct world {
    tm_epmd_registry registry;
    tm_epmd_session sessions[SESSIONS];
    tm_buf out;
} world;

static void check_active(const world *w)
{
    size_t holding = 0;
    for (size_t i = 0; i < SESSIONS; i++) holding += w->sessions[i].name != NULL;
    CHECK(w->registry.active_count == holding && holding <= ACTIVE_MAX);
}

/* A name that was just registered is found by a client of ours. */
static void check_findable(world *w, tm_bytes request, const tm_alloc *alloc)
{
    /* length, opcode, port, type, protocol, versions, then the name with its length */
    size_t name_len = tm_load_u16(request.ptr + 11);
    tm_bytes name = tm_bytes_of(request.ptr + 13, name_len);
    tm_buf question, reply;
    tm_buf_init(&question, alloc, 0);
    tm_buf_init(&reply, alloc, 0);
    if (tm_epmd_write_lookup(&question, name) == 0) {
        tm_epmd_session session;
        tm_epmd_reader reader;
        tm_epmd_session_init(&session, &w->registry, SESSIONS, false);
        tm_epmd_reader_init(&reader, TM_EPMD_LOOKUP, name, alloc);
        CHECK(tm_epmd_session_feed(&session, tm_buf_bytes(&question), &reply) == TM_EPMD_CLOSE);
        int rc = tm_epmd_reader_feed(&reader, tm_buf_bytes(&reply));
        uint16_t port = tm_load_u16(request.ptr + 3);
        CHECK(rc == 0 || rc == TM_EPEER_REFUSED || (rc == TM_EPEER_MALFORMED && !port));
        CHECK(rc || reader.node.port == port);
        tm_epmd_reader_fini(&reader);
        tm_epmd_session_fini(&session);
    }
    tm_buf_fini(&question);
    tm_buf_fini(&reply);
}

static void play_step(world *w, uint8_t step, tm_bytes part, const tm_alloc *alloc)
{
    size_t index = step % SESSIONS;
    tm_epmd_session *session = &w->sessions[index];
    if (step & STEP_CLOSE || session->closed) {
        tm_epmd_session_fini(session);
        tm_epmd_session_init(session, &w->registry, index, !(step & STEP_STRANGER));
    }
    bool fresh = session->request.len == 0;
    w->out.len = 0;
    int action = tm_epmd_session_feed(session, part, &w->out);
    if (action == TM_EPMD_WAIT) CHECK(w->out.len == 0);
    if (action == TM_EPMD_CLOSE) CHECK(session->closed || session->name == NULL);
    if (action == TM_EPMD_REGISTERED) {
        CHECK(session->name && session->local && w->out.len >= 4);
        if (fresh) check_findable(w, part, alloc);
    }
    CHECK(action >= 0 || action == TM_EUSE_LIMIT);
    check_active(w);
}

static void play_server(tm_bytes rest, const tm_alloc *alloc)
{
    static const uint64_t seed[2] = {1, 2};
    world w;
    tm_epmd_registry_init(&w.registry, alloc, TM_EPMD_PORT_DEFAULT, 1, seed);
    w.registry.active_max = ACTIVE_MAX;
    tm_buf_init(&w.out, alloc, OUT_MAX);
    for (size_t i = 0; i < SESSIONS; i++)
        tm_epmd_session_init(&w.sessions[i], &w.registry, i, true);
    while (rest.len) {
        uint8_t step = *rest.ptr++;
        rest.len--;
        tm_bytes part = split_part(&rest);
        play_step(&w, step, part, alloc);
        split_free(part);
    }
    for (size_t i = 0; i < SESSIONS; i++) tm_epmd_session_fini(&w.sessions[i]);
    check_active(&w);
    tm_epmd_registry_fini(&w.registry);
    tm_buf_fini(&w.out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    tm_alloc_stats stats = {0};
    const tm_alloc alloc = tm_alloc_libc(&stats);
    tm_bytes rest = tm_bytes_of(data + 1, size - 1);
    if (data[0] & OPTION_SERVER)
        play_server(rest, &alloc);
    else
        play_client(data[0], rest, &alloc);
    CHECK(stats.bytes == 0);
    return 0;
}
