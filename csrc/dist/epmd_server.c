/* The port mapper itself. Rules as OTP's epmd has them, where a node could tell the difference:
 * which requests are answered, which are closed unanswered, and how creations count. */
#include "../base/check.h"
#include "../etf/etf.h" /* tm_utf8_valid only: no term is read here */
#include "epmd.h"

#define ALIVE2_REQ 120
#define PORT_PLEASE2_REQ 122
#define NAMES_REQ 110
#define DUMP_REQ 100
#define ALIVE2_X_RESP 118
#define ALIVE2_RESP 121
#define PORT2_RESP 119

/* Nodes that register a version below this get a 16-bit creation. */
#define WIDE_CREATION_VERSION 6
/* Creations 1 to 3 are for those; 0 is reserved. */
#define CREATION_MIN 4
/* What stands where the creation would, in a refusal. */
#define CREATION_FILLER 99
#define LENGTH_SIZE 2

typedef struct tm_epmd_name {
    tm_list link;      /* in registry->active or ->unused */
    tm_epmd_node node; /* name and extra point into bytes */
    uint32_t creation;
    uint64_t session; /* id of the connection that holds it */
    bool active;
    size_t size; /* of the allocation */
    uint8_t bytes[];
} tm_epmd_name;

/* -- registry ---------------------------------------------------------------------------------- */

void tm_epmd_registry_init(tm_epmd_registry *registry, const tm_alloc *alloc, uint16_t port,
                           uint32_t unix_time_s, const uint64_t seed[2])
{
    *registry = (tm_epmd_registry){.alloc = alloc,
                                   .active_max = TM_EPMD_NAMES_COUNT_MAX,
                                   .creation = unix_time_s,
                                   .port = port};
    tm_map_init(&registry->names, alloc, seed);
    tm_list_init(&registry->active);
    tm_list_init(&registry->unused);
}

static void name_free(tm_epmd_registry *registry, tm_epmd_name *name)
{
    tm_list_remove(&name->link);
    tm_alloc_free(registry->alloc, name, name->size);
}

void tm_epmd_registry_fini(tm_epmd_registry *registry)
{
    TM_ASSERT(registry->active_count == 0);
    TM_LIST_EACH (&registry->unused, link, following)
        name_free(registry, TM_CONTAINER(link, tm_epmd_name, link));
    tm_map_fini(&registry->names);
    registry->unused_count = 0;
}

static tm_epmd_name *name_new(tm_epmd_registry *registry, const tm_epmd_node *node)
{
    size_t size = sizeof(tm_epmd_name) + node->name.len + node->extra.len;
    tm_epmd_name *name = tm_alloc_zero(registry->alloc, size);
    if (!name) return NULL;
    name->size = size;
    name->node = *node;
    uint8_t *extra = tm_store_bytes(name->bytes, node->name.ptr, node->name.len);
    tm_store_bytes(extra, node->extra.ptr, node->extra.len);
    name->node.name.ptr = name->bytes;
    name->node.extra.ptr = extra;
    return name;
}

/* The creation after the last one of this name; a name not seen before starts above every name that
 * was forgotten, so that it never gets an earlier one again. */
static uint32_t next_creation(const tm_epmd_registry *registry, const tm_epmd_name *earlier)
{
    uint32_t creation = (earlier ? earlier->creation : registry->creation) + 1;
    return creation < CREATION_MIN ? CREATION_MIN : creation;
}

/* Fills *name, NULL when the name is taken or the registry full. 0 or TM_ENOMEM. */
static int name_register(tm_epmd_registry *registry, const tm_epmd_node *node, tm_epmd_name **name)
{
    *name = NULL;
    tm_epmd_name *earlier = tm_map_get(&registry->names, node->name);
    if ((earlier && earlier->active) || registry->active_count >= registry->active_max) return 0;
    tm_epmd_name *fresh = name_new(registry, node);
    if (!fresh) return TM_ENOMEM;
    int rc = tm_map_set(&registry->names, fresh->node.name, fresh);
    if (rc) {
        tm_alloc_free(registry->alloc, fresh, fresh->size);
        return rc;
    }
    fresh->creation = next_creation(registry, earlier);
    fresh->active = true;
    tm_list_push(&registry->active, &fresh->link);
    registry->active_count++;
    if (earlier) {
        registry->unused_count--;
        name_free(registry, earlier);
    }
    *name = fresh;
    return 0;
}

static void name_unregister(tm_epmd_registry *registry, tm_epmd_name *name)
{
    tm_list_remove(&name->link);
    name->active = false;
    registry->active_count--;
    tm_list_push(&registry->unused, &name->link);
    if (++registry->unused_count <= TM_EPMD_UNUSED_COUNT_MAX) return;
    tm_epmd_name *oldest = TM_CONTAINER(registry->unused.next, tm_epmd_name, link);
    if (oldest->creation > registry->creation) registry->creation = oldest->creation;
    tm_map_remove(&registry->names, oldest->node.name);
    registry->unused_count--;
    name_free(registry, oldest);
}

/* -- replies ----------------------------------------------------------------------------------- */

static int write_registered(tm_buf *out, bool wide, uint8_t result, uint32_t creation)
{
    uint8_t reply[6], *p = tm_store_u8(reply, wide ? ALIVE2_X_RESP : ALIVE2_RESP);
    p = tm_store_u8(p, result);
    p = wide ? tm_store_u32(p, creation) : tm_store_u16(p, (uint16_t)creation);
    return tm_buf_append(out, reply, (size_t)(p - reply));
}

static int write_node(tm_buf *out, const tm_epmd_node *node)
{
    size_t len = 14 + node->name.len + node->extra.len;
    int rc = tm_buf_reserve(out, len);
    if (rc) return rc;
    uint8_t *p = tm_store_u8(out->ptr + out->len, PORT2_RESP);
    p = tm_store_u8(p, 0);
    p = tm_store_u16(p, node->port);
    p = tm_store_u8(p, node->type);
    p = tm_store_u8(p, node->protocol);
    p = tm_store_u16(p, node->version_high);
    p = tm_store_u16(p, node->version_low);
    p = tm_store_u16(p, (uint16_t)node->name.len);
    p = tm_store_bytes(p, node->name.ptr, node->name.len);
    p = tm_store_u16(p, (uint16_t)node->extra.len);
    tm_store_bytes(p, node->extra.ptr, node->extra.len);
    out->len += len;
    return 0;
}

static int write_number(tm_buf *out, uint64_t number)
{
    char decimal[20]; /* of 2^64 - 1 */
    size_t start = sizeof decimal;
    do {
        decimal[--start] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    return tm_buf_append(out, decimal + start, sizeof decimal - start);
}

#define WRITE_TEXT(out, text) tm_buf_append((out), (text), sizeof(text) - 1)

static int write_name_line(tm_buf *out, const tm_epmd_name *name)
{
    int rc = WRITE_TEXT(out, "name ");
    if (!rc) rc = tm_buf_append(out, name->node.name.ptr, name->node.name.len);
    if (!rc) rc = WRITE_TEXT(out, " at port ");
    if (!rc) rc = write_number(out, name->node.port);
    if (!rc) rc = WRITE_TEXT(out, "\n");
    return rc;
}

/* With the spaces, brackets and NULs that OTP's mapper prints. */
static int write_dump_line(tm_buf *out, const tm_epmd_name *name)
{
    int rc =
        name->active ? WRITE_TEXT(out, "active name     <") : WRITE_TEXT(out, "old/unused name <");
    if (!rc) rc = tm_buf_append(out, name->node.name.ptr, name->node.name.len);
    if (!rc) rc = name->active ? WRITE_TEXT(out, "> at port ") : WRITE_TEXT(out, ">, port = ");
    if (!rc) rc = write_number(out, name->node.port);
    if (!rc) rc = WRITE_TEXT(out, ", fd = ");
    if (!rc) rc = write_number(out, name->session);
    if (!rc) rc = name->active ? WRITE_TEXT(out, "\n\0") : WRITE_TEXT(out, " \n\0");
    return rc;
}

static int write_port(tm_buf *out, const tm_epmd_registry *registry)
{
    uint8_t port[4];
    tm_store_u32(port, registry->port);
    return tm_buf_append(out, port, sizeof port);
}

/* -- requests ---------------------------------------------------------------------------------- */

static bool has_nul(tm_bytes bytes) { return bytes.len && memchr(bytes.ptr, 0, bytes.len); }

/* Takes a request to register apart, without its first byte: false when it is not one. */
static bool read_register(tm_bytes body, tm_epmd_node *node)
{
    tm_cursor c = tm_cursor_of(body);
    uint16_t name_len, extra_len;
    int rc = tm_cursor_u16(&c, &node->port);
    if (!rc) rc = tm_cursor_u8(&c, &node->type);
    if (!rc) rc = tm_cursor_u8(&c, &node->protocol);
    if (!rc) rc = tm_cursor_u16(&c, &node->version_high);
    if (!rc) rc = tm_cursor_u16(&c, &node->version_low);
    if (!rc) rc = tm_cursor_u16(&c, &name_len);
    if (!rc) rc = tm_cursor_bytes(&c, name_len, &node->name);
    if (!rc) rc = tm_cursor_u16(&c, &extra_len);
    if (!rc) rc = tm_cursor_bytes(&c, extra_len, &node->extra);
    return !rc && !tm_cursor_left(&c) && node->name.len && !has_nul(node->name);
}

static bool node_legal(const tm_epmd_node *node)
{
    size_t chars;
    return tm_utf8_valid(node->name, &chars) && chars <= TM_ATOM_CHARS_MAX &&
           node->extra.len <= TM_EPMD_EXTRA_BYTES_MAX;
}

static int on_register(tm_epmd_session *session, tm_bytes body, tm_buf *out)
{
    tm_epmd_node node = {0};
    if (!session->local || !read_register(body, &node)) return TM_EPMD_CLOSE;
    bool wide = node.version_high >= WIDE_CREATION_VERSION;
    if (node_legal(&node)) {
        int rc = name_register(session->registry, &node, &session->name);
        if (rc) return rc;
    }
    tm_epmd_name *name = session->name;
    if (!name) {
        int rc = write_registered(out, wide, 1, CREATION_FILLER);
        return rc ? rc : TM_EPMD_CLOSE;
    }
    name->session = session->id;
    int rc = write_registered(out, wide, 0, wide ? name->creation : name->creation % 3 + 1);
    return rc ? rc : TM_EPMD_REGISTERED;
}

static int on_lookup(const tm_epmd_registry *registry, tm_bytes asked, tm_buf *out)
{
    static const uint8_t unknown[] = {PORT2_RESP, 1};
    if (!asked.len) return TM_EPMD_CLOSE;
    if (!asked.ptr[asked.len - 1]) asked.len--; /* some clients send a C string */
    const tm_epmd_name *name = tm_map_get(&registry->names, asked);
    bool active = name && name->active;
    int rc = active ? write_node(out, &name->node) : tm_buf_append(out, unknown, sizeof unknown);
    return rc ? rc : TM_EPMD_CLOSE;
}

static int on_names(tm_epmd_registry *registry, tm_buf *out)
{
    int rc = write_port(out, registry);
    TM_LIST_EACH (&registry->active, link, following)
        if (!rc) rc = write_name_line(out, TM_CONTAINER(link, tm_epmd_name, link));
    return rc ? rc : TM_EPMD_CLOSE;
}

static int on_dump(tm_epmd_registry *registry, tm_buf *out)
{
    int rc = write_port(out, registry);
    TM_LIST_EACH (&registry->active, link, following)
        if (!rc) rc = write_dump_line(out, TM_CONTAINER(link, tm_epmd_name, link));
    TM_LIST_EACH (&registry->unused, link, following)
        if (!rc) rc = write_dump_line(out, TM_CONTAINER(link, tm_epmd_name, link));
    return rc ? rc : TM_EPMD_CLOSE;
}

/* KILL and STOP are not served: closed like anything unknown. */
static int on_request(tm_epmd_session *session, tm_bytes request, tm_buf *out)
{
    tm_bytes body = tm_bytes_of(request.ptr + 1, request.len - 1);
    switch (request.ptr[0]) {
    case ALIVE2_REQ: return on_register(session, body, out);
    case PORT_PLEASE2_REQ: return on_lookup(session->registry, body, out);
    case NAMES_REQ: return on_names(session->registry, out);
    case DUMP_REQ: return session->local ? on_dump(session->registry, out) : TM_EPMD_CLOSE;
    default: return TM_EPMD_CLOSE;
    }
}

/* -- sessions ---------------------------------------------------------------------------------- */

void tm_epmd_session_init(tm_epmd_session *session, tm_epmd_registry *registry, uint64_t id,
                          bool local)
{
    *session = (tm_epmd_session){.registry = registry, .id = id, .local = local};
    tm_buf_init(&session->request, registry->alloc, TM_EPMD_REQUEST_BYTES_MAX);
}

void tm_epmd_session_fini(tm_epmd_session *session)
{
    if (session->name) name_unregister(session->registry, session->name);
    session->name = NULL;
    session->closed = true;
    if (session->request.ptr) tm_buf_fini(&session->request);
}

/* Gathers one request: 0, TM_NEED_DATA, TM_EPEER_MALFORMED for what is closed unanswered, or
 * TM_ENOMEM. */
static int session_gather(tm_epmd_session *session, tm_bytes input)
{
    tm_buf *request = &session->request;
    if (input.len >= TM_EPMD_REQUEST_BYTES_MAX - request->len) return TM_EPEER_MALFORMED;
    int rc = tm_buf_append(request, input.ptr, input.len);
    if (rc) return rc;
    if (request->len < LENGTH_SIZE) return TM_NEED_DATA;
    size_t size = (size_t)LENGTH_SIZE + tm_load_u16(request->ptr);
    if (size == LENGTH_SIZE || size >= TM_EPMD_REQUEST_BYTES_MAX || request->len > size)
        return TM_EPEER_MALFORMED;
    return request->len < size ? TM_NEED_DATA : 0;
}

int tm_epmd_session_feed(tm_epmd_session *session, tm_bytes input, tm_buf *out)
{
    if (!input.len) return session->closed ? TM_EPMD_CLOSE : TM_EPMD_WAIT;
    if (session->closed || session->name) {
        tm_epmd_session_fini(session);
        return TM_EPMD_CLOSE;
    }
    size_t start = out->len;
    int rc = session_gather(session, input);
    if (rc == TM_NEED_DATA) return TM_EPMD_WAIT;
    if (!rc) {
        const tm_buf *request = &session->request;
        rc = on_request(session,
                        tm_bytes_of(request->ptr + LENGTH_SIZE, request->len - LENGTH_SIZE), out);
    }
    if (rc == TM_EPEER_MALFORMED) rc = TM_EPMD_CLOSE;
    if (rc < 0) out->len = start;
    if (rc == TM_EPMD_REGISTERED)
        tm_buf_fini(&session->request);
    else
        tm_epmd_session_fini(session);
    return rc;
}
