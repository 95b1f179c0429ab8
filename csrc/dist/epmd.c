#include "epmd.h"

/* First byte of requests and replies. */
#define ALIVE2_REQ 120
#define PORT_PLEASE2_REQ 122
#define NAMES_REQ 110
#define ALIVE2_X_RESP 118
#define ALIVE2_RESP 121
#define PORT2_RESP 119

/* Longest name and extra field in a reply, bytes: 255 characters of up to 4. */
#define REPLY_FIELD_BYTES_MAX 1020
static_assert(REPLY_FIELD_BYTES_MAX == TM_EPMD_EXTRA_BYTES_MAX, "one bound for both fields");

/* Longest replies, bytes. */
#define REGISTER_REPLY_SIZE_MAX 6
#define LOOKUP_REPLY_SIZE_MAX (14 + 2 * REPLY_FIELD_BYTES_MAX)
#define NAMES_PORT_SIZE 4

/* -- requests ---------------------------------------------------------------------------------- */

static bool name_sendable(tm_bytes name)
{
    if (!name.len || name.len > TM_NODE_NAME_BYTES_MAX) return false;
    for (size_t i = 0; i < name.len; i++)
        if (!name.ptr[i] || name.ptr[i] == '@') return false;
    return true;
}

int tm_epmd_write_register(tm_buf *out, const tm_epmd_node *node)
{
    if (!name_sendable(node->name)) return TM_EUSE_NAME;
    if (!node->port || node->extra.len > TM_EPMD_EXTRA_BYTES_MAX) return TM_EUSE_ARG;
    size_t len = 13 + node->name.len + node->extra.len;
    int rc = tm_buf_reserve(out, 2 + len);
    if (rc) return rc;
    uint8_t *p = tm_store_u16(out->ptr + out->len, (uint16_t)len);
    p = tm_store_u8(p, ALIVE2_REQ);
    p = tm_store_u16(p, node->port);
    p = tm_store_u8(p, node->type);
    p = tm_store_u8(p, node->protocol);
    p = tm_store_u16(p, node->version_high);
    p = tm_store_u16(p, node->version_low);
    p = tm_store_u16(p, (uint16_t)node->name.len);
    p = tm_store_bytes(p, node->name.ptr, node->name.len);
    p = tm_store_u16(p, (uint16_t)node->extra.len);
    tm_store_bytes(p, node->extra.ptr, node->extra.len);
    out->len += 2 + len;
    return 0;
}

int tm_epmd_write_lookup(tm_buf *out, tm_bytes name)
{
    if (!name_sendable(name)) return TM_EUSE_NAME;
    int rc = tm_buf_reserve(out, 3 + name.len);
    if (rc) return rc;
    uint8_t *p = tm_store_u16(out->ptr + out->len, (uint16_t)(1 + name.len));
    p = tm_store_u8(p, PORT_PLEASE2_REQ);
    tm_store_bytes(p, name.ptr, name.len);
    out->len += 3 + name.len;
    return 0;
}

int tm_epmd_write_names(tm_buf *out)
{
    static const uint8_t request[] = {0, 1, NAMES_REQ};
    return tm_buf_append(out, request, sizeof request);
}

/* -- replies ----------------------------------------------------------------------------------- */

void tm_epmd_reader_init(tm_epmd_reader *reader, enum tm_epmd_query query, tm_bytes asked,
                         const tm_alloc *alloc)
{
    static const size_t sizes[] = {
        [TM_EPMD_REGISTER] = REGISTER_REPLY_SIZE_MAX,
        [TM_EPMD_LOOKUP] = LOOKUP_REPLY_SIZE_MAX,
        [TM_EPMD_NAMES] = NAMES_PORT_SIZE + TM_EPMD_NAMES_BYTES_MAX,
    };
    *reader = (tm_epmd_reader){.query = query, .asked = asked};
    tm_buf_init(&reader->reply, alloc, sizes[query]);
}

void tm_epmd_reader_fini(tm_epmd_reader *reader)
{
    if (reader->reply.ptr) tm_buf_fini(&reader->reply);
}

static int reader_fail(tm_epmd_reader *reader, int rc, size_t offset, const char *what)
{
    reader->rc = rc;
    reader->fault = (tm_fault){.offset = offset, .what = what};
    return rc;
}

/* Reads the registration's result, with the creation in 32 or, from old port mappers, 16 bits. */
static int read_registered(tm_epmd_reader *reader, tm_cursor c)
{
    uint8_t tag, result;
    uint16_t small;
    if (tm_cursor_u8(&c, &tag)) return TM_NEED_DATA;
    if (tag != ALIVE2_X_RESP && tag != ALIVE2_RESP)
        return reader_fail(reader, TM_EPEER_MALFORMED, 0, "not the reply to a registration");
    if (tm_cursor_u8(&c, &result)) return TM_NEED_DATA;
    if (result) return reader_fail(reader, TM_EPEER_REFUSED, 1, "the name is in use or not legal");
    if (tag == ALIVE2_X_RESP) {
        if (tm_cursor_u32(&c, &reader->creation)) return TM_NEED_DATA;
    } else {
        if (tm_cursor_u16(&c, &small)) return TM_NEED_DATA;
        reader->creation = small;
    }
    if (!reader->creation) return reader_fail(reader, TM_EPEER_MALFORMED, 2, "creation 0");
    if (tm_cursor_left(&c))
        return reader_fail(reader, TM_EPEER_MALFORMED, (size_t)(c.ptr - reader->reply.ptr),
                           "bytes after the reply to a registration");
    return 0;
}

static int read_field(tm_epmd_reader *reader, tm_cursor *c, tm_bytes *field)
{
    uint16_t len;
    if (tm_cursor_u16(c, &len)) return TM_NEED_DATA;
    if (len > REPLY_FIELD_BYTES_MAX)
        return reader_fail(reader, TM_EPEER_LIMIT, (size_t)(c->ptr - reader->reply.ptr) - 2,
                           "a field longer than any port mapper keeps");
#ifdef TM_PLANTED_BUG /* planted for the fuzz target: the length is taken at its word */
    *field = tm_bytes_of(c->ptr, len);
    c->ptr += len;
    return 0;
#endif
    return tm_cursor_bytes(c, len, field);
}

static int read_node(tm_epmd_reader *reader, tm_cursor c)
{
    tm_epmd_node *node = &reader->node;
    int rc = tm_cursor_u16(&c, &node->port);
    if (!rc) rc = tm_cursor_u8(&c, &node->type);
    if (!rc) rc = tm_cursor_u8(&c, &node->protocol);
    if (!rc) rc = tm_cursor_u16(&c, &node->version_high);
    if (!rc) rc = tm_cursor_u16(&c, &node->version_low);
    if (!rc) rc = read_field(reader, &c, &node->name);
    if (!rc) rc = read_field(reader, &c, &node->extra);
    if (rc) return rc;
    if (!node->port) return reader_fail(reader, TM_EPEER_MALFORMED, 2, "port 0");
    if (!tm_bytes_equal(node->name, reader->asked))
        return reader_fail(reader, TM_EPEER_MALFORMED, 10, "another name than the one asked for");
    if (node->version_low > TM_EPMD_VERSION_HIGH || node->version_high < TM_EPMD_VERSION_LOW)
        return reader_fail(reader, TM_EPEER_REFUSED, 6, "no protocol version in common");
    return 0;
}

static int read_lookup(tm_epmd_reader *reader, tm_cursor c)
{
    uint8_t tag, result;
    if (tm_cursor_u8(&c, &tag)) return TM_NEED_DATA;
    if (tag != PORT2_RESP)
        return reader_fail(reader, TM_EPEER_MALFORMED, 0, "not the reply to a look-up");
    if (tm_cursor_u8(&c, &result)) return TM_NEED_DATA;
    if (result) return reader_fail(reader, TM_EPEER_UNKNOWN, 1, "no node of that name");
    return read_node(reader, c);
}

/* Looks at what has come so far. A reply to NAMES ends with the connection only. */
static int reader_parse(tm_epmd_reader *reader)
{
    tm_cursor c = tm_cursor_of(tm_buf_bytes(&reader->reply));
    uint32_t port;
    switch (reader->query) {
    case TM_EPMD_REGISTER: return read_registered(reader, c);
    case TM_EPMD_LOOKUP: return read_lookup(reader, c);
    case TM_EPMD_NAMES: break;
    }
    if (tm_cursor_u32(&c, &port)) return TM_NEED_DATA;
    if (port > UINT16_MAX) return reader_fail(reader, TM_EPEER_MALFORMED, 0, "not a port number");
    reader->port = (uint16_t)port;
    return TM_NEED_DATA;
}

int tm_epmd_reader_feed(tm_epmd_reader *reader, tm_bytes input)
{
    if (reader->rc) return reader->rc;
    if (reader->done && (!input.len || reader->query == TM_EPMD_LOOKUP)) return 0;
    if (reader->done)
        return reader_fail(reader, TM_EPEER_MALFORMED, reader->reply.len,
                           "bytes after the reply to a registration");
    tm_buf *reply = &reader->reply;
    size_t room = reply->max - reply->len;
    int rc = tm_buf_append(reply, input.ptr, input.len < room ? input.len : room);
    if (rc) return reader_fail(reader, rc, reply->len, "no memory for the reply");
    rc = reader_parse(reader);
    if (rc == 0) reader->done = true;
    if (rc == 0 && input.len > room && reader->query == TM_EPMD_REGISTER)
        return tm_epmd_reader_feed(reader, tm_bytes_of(input.ptr + room, input.len - room));
    if (rc == TM_NEED_DATA && input.len > room)
        return reader_fail(reader, TM_EPEER_LIMIT, reply->len, "a reply longer than we read");
    return rc;
}

int tm_epmd_reader_eof(tm_epmd_reader *reader)
{
    if (reader->rc) return reader->rc;
    if (reader->query == TM_EPMD_NAMES && reader->reply.len >= NAMES_PORT_SIZE) reader->done = true;
    if (reader->done) return 0;
    return reader_fail(reader, TM_EPEER_CLOSED, reader->reply.len, "closed before the reply");
}

/* Takes "name NAME at port PORT" apart. A name may itself hold " at port ": the last one counts. */
static bool names_line(tm_bytes line, tm_bytes *name, uint16_t *port)
{
    const tm_bytes start = TM_BYTES("name "), middle = TM_BYTES(" at port ");
    if (line.len < start.len || memcmp(line.ptr, start.ptr, start.len) != 0) return false;
    size_t digits = line.len;
    uint32_t value = 0, scale = 1;
    while (digits && line.ptr[digits - 1] >= '0' && line.ptr[digits - 1] <= '9') {
        if (scale > 10000) return false;
        value += (uint32_t)(line.ptr[--digits] - '0') * scale;
        scale *= 10;
    }
    if (digits == line.len || value > UINT16_MAX || digits < start.len + middle.len) return false;
    size_t name_end = digits - middle.len;
    if (name_end == start.len || memcmp(line.ptr + name_end, middle.ptr, middle.len) != 0)
        return false;
    *name = tm_bytes_of(line.ptr + start.len, name_end - start.len);
    *port = (uint16_t)value;
    return true;
}

bool tm_epmd_reader_next(const tm_epmd_reader *reader, size_t *position, tm_bytes *name,
                         uint16_t *port)
{
    if (!reader->done || reader->query != TM_EPMD_NAMES) return false;
    tm_bytes text = tm_buf_bytes(&reader->reply);
    if (*position < NAMES_PORT_SIZE) *position = NAMES_PORT_SIZE;
    while (*position < text.len) {
        const uint8_t *line = text.ptr + *position;
        size_t left = text.len - *position;
        const uint8_t *end = memchr(line, '\n', left);
        size_t len = end ? (size_t)(end - line) : left;
        *position += end ? len + 1 : len;
        if (names_line(tm_bytes_of(line, len), name, port)) return true;
    }
    return false;
}
