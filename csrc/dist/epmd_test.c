#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "dist_test.h"
#include "epmd.h"

/* -- scaffolding ------------------------------------------------------------------------------- */

#define SERVER_PORT 14369
#define UNIX_TIME 0x6b0266b6u /* one below the first creation of the vectors */

typedef struct mapper {
    test_alloc memory;
    tm_epmd_registry registry;
    tm_buf out;
} mapper;

static void mapper_init(mapper *m)
{
    static const uint64_t seed[2] = {1, 2};
    memset(m, 0, sizeof *m);
    test_alloc_init(&m->memory, SIZE_MAX);
    tm_buf_init(&m->out, &m->memory.alloc, 0);
    tm_epmd_registry_init(&m->registry, &m->memory.alloc, SERVER_PORT, UNIX_TIME, seed);
}

static void mapper_fini(mapper *m)
{
    tm_epmd_registry_fini(&m->registry);
    tm_buf_fini(&m->out);
    assert_int_equal(m->memory.stats.bytes, 0);
}

/* Feeds a request in pieces of step bytes; out holds its reply only. */
static int ask_in_pieces(mapper *m, tm_epmd_session *session, tm_bytes request, size_t step)
{
    m->out.len = 0;
    int action = TM_EPMD_WAIT;
    for (size_t at = 0; at < request.len; at += step) {
        size_t len = request.len - at < step ? request.len - at : step;
        action = tm_epmd_session_feed(session, tm_bytes_of(request.ptr + at, len), &m->out);
        if (at + len < request.len) assert_int_equal(action, TM_EPMD_WAIT);
    }
    return action;
}

static int ask(mapper *m, tm_epmd_session *session, tm_bytes request)
{
    return ask_in_pieces(m, session, request, SIZE_MAX);
}

/* One request on a connection of its own. */
static int ask_once(mapper *m, tm_bytes request, bool local)
{
    tm_epmd_session session;
    tm_epmd_session_init(&session, &m->registry, 99, local);
    int action = ask(m, &session, request);
    tm_epmd_session_fini(&session);
    return action;
}

static void expect_reply(const mapper *m, tm_bytes reply)
{
    assert_int_equal(m->out.len, reply.len);
    assert_memory_equal(m->out.ptr, reply.ptr, reply.len);
}

/* Registers on a connection that stays: the creation, or 0 for a refusal. */
static uint32_t register_as(mapper *m, tm_epmd_session *session, uint64_t id, tm_bytes name,
                            uint16_t port)
{
    tm_buf request;
    tm_buf_init(&request, &m->memory.alloc, 0);
    tm_epmd_node node = tm_epmd_node_of(name, port);
    assert_int_equal(tm_epmd_write_register(&request, &node), 0);
    tm_epmd_session_init(session, &m->registry, id, true);
    int action = ask(m, session, tm_buf_bytes(&request));
    tm_buf_fini(&request);
    tm_epmd_reader reader;
    tm_epmd_reader_init(&reader, TM_EPMD_REGISTER, (tm_bytes){0}, &m->memory.alloc);
    int rc = tm_epmd_reader_feed(&reader, tm_buf_bytes(&m->out));
    uint32_t creation = rc ? 0 : reader.creation;
    assert_int_equal(action, rc ? TM_EPMD_CLOSE : TM_EPMD_REGISTERED);
    tm_epmd_reader_fini(&reader);
    return creation;
}

static test_line req, resp;

/* The request and the reply of a section in epmd.txt. */
static void load(const char *section)
{
    test_line lines[2];
    assert_int_equal(test_section("epmd.txt", section, lines, 2), 2);
    req = lines[0];
    resp = lines[1];
}

#define REGISTER "register py1, port 5555, extra \"extra!\""

/* -- captured exchanges ------------------------------------------------------------------------ */

static void captured_exchanges_are_answered_in_pieces_of_any_size(void **state)
{
    (void)state;
    for (size_t step = 1; step <= 26; step++) {
        mapper m;
        mapper_init(&m);
        tm_epmd_session first, second, third;
        load(REGISTER);
        tm_epmd_session_init(&first, &m.registry, 7, true);
        int action = ask_in_pieces(&m, &first, test_line_bytes(&req), step);
        assert_int_equal(action, TM_EPMD_REGISTERED);
        expect_reply(&m, test_line_bytes(&resp));
        load("register py1 while it is registered");
        tm_epmd_session_init(&second, &m.registry, 8, true);
        action = ask_in_pieces(&m, &second, test_line_bytes(&req), step);
        assert_int_equal(action, TM_EPMD_CLOSE);
        expect_reply(&m, test_line_bytes(&resp));
        tm_epmd_session_fini(&second);
        load("look up py1");
        assert_int_equal(ask_once(&m, test_line_bytes(&req), false), TM_EPMD_CLOSE);
        expect_reply(&m, test_line_bytes(&resp));
        load("look up nope");
        assert_int_equal(ask_once(&m, test_line_bytes(&req), false), TM_EPMD_CLOSE);
        expect_reply(&m, test_line_bytes(&resp));
        load("dump, the first line");
        assert_int_equal(ask_once(&m, test_line_bytes(&req), true), TM_EPMD_CLOSE);
        expect_reply(&m, test_line_bytes(&resp));
        tm_epmd_session_fini(&first);
        load("register py1 after the first connection has closed");
        tm_epmd_session_init(&third, &m.registry, 9, true);
        action = ask_in_pieces(&m, &third, test_line_bytes(&req), step);
        assert_int_equal(action, TM_EPMD_REGISTERED);
        expect_reply(&m, test_line_bytes(&resp));
        tm_epmd_session_fini(&third);
        mapper_fini(&m);
    }
}

static void captured_names_are_listed(void **state)
{
    (void)state;
    mapper m;
    mapper_init(&m);
    tm_epmd_session sessions[3];
    register_as(&m, &sessions[0], 1, TM_BYTES("py1"), 5555);
    register_as(&m, &sessions[1], 2, TM_BYTES("a28"), 44681);
    register_as(&m, &sessions[2], 3, TM_BYTES("a25"), 43993);
    load("names");
    assert_int_equal(ask_once(&m, test_line_bytes(&req), false), TM_EPMD_CLOSE);
    expect_reply(&m, test_line_bytes(&resp));
    for (size_t i = 0; i < 3; i++) tm_epmd_session_fini(&sessions[i]);
    mapper_fini(&m);
}

static void captured_requests_are_what_the_client_writes(void **state)
{
    (void)state;
    test_alloc memory;
    test_alloc_init(&memory, SIZE_MAX);
    tm_buf out;
    tm_buf_init(&out, &memory.alloc, 0);
    load(REGISTER);
    tm_epmd_node node = tm_epmd_node_of(TM_BYTES("py1"), 5555);
    node.extra = TM_BYTES("extra!");
    assert_int_equal(tm_epmd_write_register(&out, &node), 0);
    assert_true(tm_bytes_equal(tm_buf_bytes(&out), test_line_bytes(&req)));
    out.len = 0;
    load("look up py1");
    assert_int_equal(tm_epmd_write_lookup(&out, TM_BYTES("py1")), 0);
    assert_true(tm_bytes_equal(tm_buf_bytes(&out), test_line_bytes(&req)));
    out.len = 0;
    load("names");
    assert_int_equal(tm_epmd_write_names(&out), 0);
    assert_true(tm_bytes_equal(tm_buf_bytes(&out), test_line_bytes(&req)));
    tm_buf_fini(&out);
}

/* Reads a captured reply in pieces; the reader is handed back at its end. */
static int read_reply(tm_epmd_reader *reader, enum tm_epmd_query query, tm_bytes asked,
                      tm_bytes reply, size_t step, const tm_alloc *alloc)
{
    tm_epmd_reader_init(reader, query, asked, alloc);
    int rc = TM_NEED_DATA;
    for (size_t at = 0; at < reply.len && rc == TM_NEED_DATA; at += step) {
        size_t len = reply.len - at < step ? reply.len - at : step;
        rc = tm_epmd_reader_feed(reader, tm_bytes_of(reply.ptr + at, len));
        if (at + len < reply.len && rc != TM_NEED_DATA) return rc < 0 ? rc : -1;
    }
    return rc;
}

static void captured_replies_are_read_in_pieces_of_any_size(void **state)
{
    (void)state;
    test_alloc memory;
    test_alloc_init(&memory, SIZE_MAX);
    const tm_alloc *alloc = &memory.alloc;
    tm_bytes asked = TM_BYTES("py1"), none = {0};
    tm_epmd_reader r;
    for (size_t step = 1; step <= 30; step++) {
        load(REGISTER);
        tm_bytes reply = test_line_bytes(&resp);
        assert_int_equal(read_reply(&r, TM_EPMD_REGISTER, none, reply, step, alloc), 0);
        assert_int_equal(r.creation, 0x6b0266b7);
        assert_int_equal(tm_epmd_reader_feed(&r, none), 0);
        tm_epmd_reader_fini(&r);
        load("register py1 while it is registered");
        assert_int_equal(
            read_reply(&r, TM_EPMD_REGISTER, none, tm_bytes_of(resp.bytes, 2), step, alloc),
            TM_EPEER_REFUSED);
        tm_epmd_reader_fini(&r);
        load("registered at an old port mapper");
        reply = test_line_bytes(&resp);
        assert_int_equal(read_reply(&r, TM_EPMD_REGISTER, none, reply, step, alloc), 0);
        assert_int_equal(r.creation, 2);
        tm_epmd_reader_fini(&r);
        load("look up py1");
        reply = test_line_bytes(&resp);
        assert_int_equal(read_reply(&r, TM_EPMD_LOOKUP, asked, reply, step, alloc), 0);
        assert_int_equal(r.node.port, 5555);
        assert_int_equal(r.node.type, 77);
        assert_int_equal(r.node.version_low, 5);
        assert_true(tm_bytes_equal(r.node.extra, TM_BYTES("extra!")));
        assert_int_equal(tm_epmd_reader_feed(&r, TM_BYTES("more")), 0);
        assert_int_equal(tm_epmd_reader_eof(&r), 0);
        tm_epmd_reader_fini(&r);
        load("look up nope");
        reply = test_line_bytes(&resp);
        assert_int_equal(read_reply(&r, TM_EPMD_LOOKUP, asked, reply, step, alloc),
                         TM_EPEER_UNKNOWN);
        tm_epmd_reader_fini(&r);
    }
    assert_int_equal(memory.stats.bytes, 0);
}

static void captured_list_of_names_is_read_until_the_end(void **state)
{
    (void)state;
    test_alloc memory;
    test_alloc_init(&memory, SIZE_MAX);
    load("names");
    static const char *const names[] = {"py1", "a28", "a25"};
    static const uint16_t ports[] = {5555, 44681, 43993};
    for (size_t step = 1; step <= 80; step++) {
        tm_epmd_reader r;
        int rc = read_reply(&r, TM_EPMD_NAMES, (tm_bytes){0}, test_line_bytes(&resp), step,
                            &memory.alloc);
        assert_int_equal(rc, TM_NEED_DATA);
        size_t position = 0, seen = 0;
        tm_bytes name;
        uint16_t port;
        assert_false(tm_epmd_reader_next(&r, &position, &name, &port));
        assert_int_equal(tm_epmd_reader_eof(&r), 0);
        assert_int_equal(r.port, 14369);
        for (; tm_epmd_reader_next(&r, &position, &name, &port); seen++) {
            assert_true(tm_bytes_equal(name, tm_bytes_of(names[seen], 3)));
            assert_int_equal(port, ports[seen]);
        }
        assert_int_equal(seen, 3);
        tm_epmd_reader_fini(&r);
    }
}

/* -- a port mapper that lies ------------------------------------------------------------------- */

static int read_once(enum tm_epmd_query query, const void *bytes, size_t len)
{
    test_alloc memory;
    test_alloc_init(&memory, SIZE_MAX);
    tm_epmd_reader r;
    int rc =
        read_reply(&r, query, TM_BYTES("py1"), tm_bytes_of(bytes, len), SIZE_MAX, &memory.alloc);
    if (rc && rc != TM_NEED_DATA) {
        assert_int_equal(tm_epmd_reader_feed(&r, TM_BYTES("x")), rc);
        assert_int_equal(tm_epmd_reader_eof(&r), rc);
        assert_non_null(r.fault.what);
    }
    tm_epmd_reader_fini(&r);
    assert_int_equal(memory.stats.bytes, 0);
    return rc;
}

static void lying_registration_reply_is_refused(void **state)
{
    (void)state;
    assert_int_equal(read_once(TM_EPMD_REGISTER, "w\0", 2), TM_EPEER_MALFORMED);
    assert_int_equal(read_once(TM_EPMD_REGISTER, "v\0\0\0\0\0", 6), TM_EPEER_MALFORMED);
    assert_int_equal(read_once(TM_EPMD_REGISTER, "v\0\0\0\0\1v", 7), TM_EPEER_MALFORMED);
    assert_int_equal(read_once(TM_EPMD_REGISTER, "y\0\0\1y", 5), TM_EPEER_MALFORMED);
    assert_int_equal(read_once(TM_EPMD_REGISTER, "v\1\0\0\0\143", 6), TM_EPEER_REFUSED);
    assert_int_equal(read_once(TM_EPMD_REGISTER, "v\0\0\0\0", 5), TM_NEED_DATA);
    assert_int_equal(read_once(TM_EPMD_REGISTER, "v\0\0\0\0\4v\0\0\0\0\4", 12), TM_EPEER_MALFORMED);
}

static void registration_answered_twice_is_noticed_later_too(void **state)
{
    (void)state;
    test_alloc memory;
    test_alloc_init(&memory, SIZE_MAX);
    tm_epmd_reader r;
    assert_int_equal(
        read_reply(&r, TM_EPMD_REGISTER, (tm_bytes){0}, TM_BYTES("v\0\0\0\0\4"), 9, &memory.alloc),
        0);
    assert_int_equal(tm_epmd_reader_feed(&r, TM_BYTES("v")), TM_EPEER_MALFORMED);
    tm_epmd_reader_fini(&r);
}

static void lying_lookup_reply_is_refused(void **state)
{
    (void)state;
    load("look up py1");
    uint8_t good[64];
    memcpy(good, resp.bytes, resp.len);
    size_t len = resp.len;
    assert_int_equal(read_once(TM_EPMD_LOOKUP, good, len), 0);
    for (size_t cut = 0; cut < len; cut++)
        assert_int_equal(read_once(TM_EPMD_LOOKUP, good, cut), TM_NEED_DATA);
    const struct {
        size_t at;
        uint8_t value;
        int rc;
    } lies[] = {
        {0, 'v', TM_EPEER_MALFORMED}, {12, 'q', TM_EPEER_MALFORMED},
        {11, 2, TM_EPEER_LIMIT}, /* a shorter name, and its last letter begins the next length */
        {9, 7, TM_EPEER_REFUSED},     {7, 4, TM_EPEER_REFUSED},
        {10, 4, TM_EPEER_LIMIT},      {15, 4, TM_EPEER_LIMIT},
        {15, 3, TM_NEED_DATA},
    };
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        uint8_t bytes[64];
        memcpy(bytes, good, len);
        bytes[lies[i].at] = lies[i].value;
        assert_int_equal(read_once(TM_EPMD_LOOKUP, bytes, len), lies[i].rc);
    }
    good[2] = good[3] = 0; /* port 0 */
    assert_int_equal(read_once(TM_EPMD_LOOKUP, good, len), TM_EPEER_MALFORMED);
}

static void reply_cut_by_the_end_is_an_error(void **state)
{
    (void)state;
    static const enum tm_epmd_query queries[] = {TM_EPMD_REGISTER, TM_EPMD_LOOKUP, TM_EPMD_NAMES};
    for (size_t i = 0; i < 3; i++) {
        test_alloc memory;
        test_alloc_init(&memory, SIZE_MAX);
        tm_epmd_reader r;
        tm_epmd_reader_init(&r, queries[i], TM_BYTES("py1"), &memory.alloc);
        assert_int_equal(tm_epmd_reader_feed(&r, TM_BYTES("")), TM_NEED_DATA);
        assert_int_equal(tm_epmd_reader_eof(&r), TM_EPEER_CLOSED);
        assert_int_equal(tm_epmd_reader_feed(&r, TM_BYTES("v")), TM_EPEER_CLOSED);
        tm_epmd_reader_fini(&r);
    }
}

static void odd_lines_among_names_are_skipped(void **state)
{
    (void)state;
    static const char text[] = "\0\0\0\1"
                               "name  at port 1\n"
                               "name a at port \n"
                               "name a at port 65536\n"
                               "name a at port 4294967297\n"
                               "none a at port 1\n"
                               "name a on port 1\n"
                               "name at port 1\n"
                               "\n"
                               "name b at port 2 at port 3\n"
                               "name c at port 65535";
    test_alloc memory;
    test_alloc_init(&memory, SIZE_MAX);
    tm_epmd_reader r;
    read_reply(&r, TM_EPMD_NAMES, (tm_bytes){0}, TM_BYTES(text), SIZE_MAX, &memory.alloc);
    assert_int_equal(tm_epmd_reader_eof(&r), 0);
    size_t position = 0;
    tm_bytes name;
    uint16_t port;
    assert_true(tm_epmd_reader_next(&r, &position, &name, &port));
    assert_true(tm_bytes_equal(name, TM_BYTES("b at port 2")));
    assert_int_equal(port, 3);
    assert_true(tm_epmd_reader_next(&r, &position, &name, &port));
    assert_int_equal(port, 65535);
    assert_false(tm_epmd_reader_next(&r, &position, &name, &port));
    tm_epmd_reader_fini(&r);
    assert_int_equal(read_once(TM_EPMD_NAMES, "\0\1\0\0", 4), TM_EPEER_MALFORMED);
}

static void endless_list_of_names_is_cut_at_its_limit(void **state)
{
    (void)state;
    test_alloc memory;
    test_alloc_init(&memory, SIZE_MAX);
    static uint8_t chunk[65536];
    tm_epmd_reader r;
    tm_epmd_reader_init(&r, TM_EPMD_NAMES, (tm_bytes){0}, &memory.alloc);
    int rc = TM_NEED_DATA;
    size_t fed = 0;
    for (; rc == TM_NEED_DATA; fed += sizeof chunk)
        rc = tm_epmd_reader_feed(&r, tm_bytes_of(chunk, sizeof chunk));
    assert_int_equal(rc, TM_EPEER_LIMIT);
    assert_true(fed <= TM_EPMD_NAMES_BYTES_MAX + 2 * sizeof chunk);
    tm_epmd_reader_fini(&r);
}

static void client_refuses_what_could_not_be_asked(void **state)
{
    (void)state;
    test_alloc memory;
    test_alloc_init(&memory, SIZE_MAX);
    tm_buf out;
    tm_buf_init(&out, &memory.alloc, 0);
    char long_name[256];
    memset(long_name, 'a', sizeof long_name);
    const tm_bytes names[] = {TM_BYTES(""), TM_BYTES("a@b"), TM_BYTES("a\0b"),
                              tm_bytes_of(long_name, 256)};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        tm_epmd_node node = tm_epmd_node_of(names[i], 1);
        assert_int_equal(tm_epmd_write_register(&out, &node), TM_EUSE_NAME);
        assert_int_equal(tm_epmd_write_lookup(&out, names[i]), TM_EUSE_NAME);
    }
    tm_epmd_node node = tm_epmd_node_of(TM_BYTES("a"), 0);
    assert_int_equal(tm_epmd_write_register(&out, &node), TM_EUSE_ARG);
    uint8_t extra[1021] = {0};
    node.port = 1;
    node.extra = tm_bytes_of(extra, sizeof extra);
    assert_int_equal(tm_epmd_write_register(&out, &node), TM_EUSE_ARG);
    assert_int_equal(out.len, 0);
    memory.fail_after = 0;
    node.extra.len = 0;
    assert_int_equal(tm_epmd_write_register(&out, &node), TM_ENOMEM);
    assert_int_equal(tm_epmd_write_lookup(&out, node.name), TM_ENOMEM);
    assert_int_equal(tm_epmd_write_names(&out), TM_ENOMEM);
    tm_epmd_reader r;
    tm_epmd_reader_init(&r, TM_EPMD_NAMES, (tm_bytes){0}, &memory.alloc);
    assert_int_equal(tm_epmd_reader_feed(&r, TM_BYTES("x")), TM_ENOMEM);
    tm_epmd_reader_fini(&r);
}

/* -- clients that err -------------------------------------------------------------------------- */

static void request_that_is_none_is_closed_unanswered(void **state)
{
    (void)state;
    uint8_t huge[4000] = {0x0b, 0xf2, 122}; /* length 3058: 2 + 3058 is one too many */
    mapper m;
    mapper_init(&m);
    const tm_bytes requests[] = {
        TM_BYTES("\0\0"),     TM_BYTES("\0\1?"),       TM_BYTES("\0\1k"),  TM_BYTES("\0\2sx"),
        TM_BYTES("\0\1z"),    TM_BYTES("\0\1n\0\1n"),  TM_BYTES("\0\1nx"), TM_BYTES("\377\377x"),
        tm_bytes_of(huge, 3), tm_bytes_of(huge, 4000), TM_BYTES("\0\1x"),  TM_BYTES("\0\3x\1\1"),
    };
    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++) {
        assert_int_equal(ask_once(&m, requests[i], true), TM_EPMD_CLOSE);
        assert_int_equal(m.out.len, 0);
    }
    huge[1] = 0xf1; /* the longest that is looked at */
    huge[3] = 'a';
    memset(huge + 3, 'a', 3056);
    assert_int_equal(ask_once(&m, tm_bytes_of(huge, 3059), true), TM_EPMD_CLOSE);
    expect_reply(&m, TM_BYTES("w\1"));
    mapper_fini(&m);
}

static void registration_with_bad_fields_is_closed_or_refused_as_by_otp(void **state)
{
    (void)state;
    load(REGISTER);
    mapper m;
    mapper_init(&m);
    uint8_t bytes[2000];
    for (size_t len = 4; len < req.len; len++) { /* fields that do not fill the request */
        memcpy(bytes, req.bytes, req.len);
        tm_store_u16(bytes, (uint16_t)(len - 2));
        assert_int_equal(ask_once(&m, tm_bytes_of(bytes, len), true), TM_EPMD_CLOSE);
        assert_int_equal(m.out.len, 0);
    }
    memcpy(bytes, req.bytes, req.len);
    bytes[13] = 0; /* a NUL in the name */
    assert_int_equal(ask_once(&m, tm_bytes_of(bytes, req.len), true), TM_EPMD_CLOSE);
    assert_int_equal(m.out.len, 0);
    static const uint8_t empty[] = {0, 13, 120, 1, 1, 77, 0, 0, 6, 0, 5, 0, 0, 0, 0};
    assert_int_equal(ask_once(&m, tm_bytes_of(empty, sizeof empty), true), TM_EPMD_CLOSE);
    assert_int_equal(m.out.len, 0);
    memcpy(bytes, req.bytes, req.len);
    bytes[13] = 0xff; /* no UTF-8 */
    assert_int_equal(ask_once(&m, tm_bytes_of(bytes, req.len), true), TM_EPMD_CLOSE);
    expect_reply(&m, TM_BYTES("v\1\0\0\0\143"));
    mapper_fini(&m);
}

/* Writes a registration by hand, with fields of any size. */
static size_t registration(uint8_t *bytes, uint16_t high, char letter, size_t name_len,
                           size_t extra_len)
{
    uint8_t *p = tm_store_u16(bytes, (uint16_t)(13 + name_len + extra_len));
    p = tm_store_u16(tm_store_u8(p, 120), 5555);
    p = tm_store_u16(tm_store_u8(tm_store_u8(p, 72), 0), high);
    p = tm_store_u16(tm_store_u16(p, 5), (uint16_t)name_len);
    memset(p, letter, name_len);
    p = tm_store_u16(p + name_len, (uint16_t)extra_len);
    memset(p, 0, extra_len); /* NULs in the extra field are legal */
    return (size_t)(p - bytes) + extra_len;
}

static void name_and_extra_are_taken_up_to_their_bounds(void **state)
{
    (void)state;
    mapper m;
    mapper_init(&m);
    uint8_t bytes[4000];
    size_t len = registration(bytes, 6, 'a', 255, 1020);
    assert_int_equal(ask_once(&m, tm_bytes_of(bytes, len), true), TM_EPMD_REGISTERED);
    len = registration(bytes, 6, 'b', 256, 0);
    assert_int_equal(ask_once(&m, tm_bytes_of(bytes, len), true), TM_EPMD_CLOSE);
    expect_reply(&m, TM_BYTES("v\1\0\0\0\143"));
    len = registration(bytes, 6, 'c', 1, 1021);
    assert_int_equal(ask_once(&m, tm_bytes_of(bytes, len), true), TM_EPMD_CLOSE);
    expect_reply(&m, TM_BYTES("v\1\0\0\0\143"));
    len = registration(bytes, 5, 'd', 256, 0);
    assert_int_equal(ask_once(&m, tm_bytes_of(bytes, len), true), TM_EPMD_CLOSE);
    expect_reply(&m, TM_BYTES("y\1\0\143"));
    mapper_fini(&m);
}

static void strangers_may_look_up_but_not_register_or_dump(void **state)
{
    (void)state;
    mapper m;
    mapper_init(&m);
    load(REGISTER);
    assert_int_equal(ask_once(&m, test_line_bytes(&req), false), TM_EPMD_CLOSE);
    assert_int_equal(m.out.len, 0);
    assert_int_equal(ask_once(&m, TM_BYTES("\0\1d"), false), TM_EPMD_CLOSE);
    assert_int_equal(m.out.len, 0);
    assert_int_equal(ask_once(&m, TM_BYTES("\0\1n"), false), TM_EPMD_CLOSE);
    assert_int_equal(m.out.len, 4);
    mapper_fini(&m);
}

/* -- registrations ----------------------------------------------------------------------------- */

static void byte_after_a_registration_ends_it(void **state)
{
    (void)state;
    mapper m;
    mapper_init(&m);
    tm_epmd_session session;
    register_as(&m, &session, 1, TM_BYTES("py1"), 5555);
    assert_int_equal(ask_once(&m, TM_BYTES("\0\4zpy1"), true), TM_EPMD_CLOSE);
    assert_int_equal(m.out.ptr[1], 0);
    assert_int_equal(ask(&m, &session, TM_BYTES("")), TM_EPMD_WAIT);
    assert_int_equal(ask(&m, &session, TM_BYTES("x")), TM_EPMD_CLOSE);
    assert_int_equal(ask(&m, &session, TM_BYTES("x")), TM_EPMD_CLOSE);
    assert_int_equal(ask_once(&m, TM_BYTES("\0\4zpy1"), true), TM_EPMD_CLOSE);
    expect_reply(&m, TM_BYTES("w\1"));
    tm_epmd_session_fini(&session);
    mapper_fini(&m);
}

static void idle_registration_holds_no_request_buffer(void **state)
{
    (void)state;
    mapper m;
    mapper_init(&m);
    tm_epmd_session session;
    register_as(&m, &session, 1, TM_BYTES("py1"), 5555);
    assert_null(session.request.ptr);
    tm_epmd_session_fini(&session);
    mapper_fini(&m);
}

static void trailing_nul_of_a_looked_up_name_is_stripped(void **state)
{
    (void)state;
    mapper m;
    mapper_init(&m);
    tm_epmd_session session;
    register_as(&m, &session, 1, TM_BYTES("py1"), 5555);
    assert_int_equal(ask_once(&m, TM_BYTES("\0\5zpy1\0"), true), TM_EPMD_CLOSE);
    assert_int_equal(m.out.ptr[1], 0);
    tm_epmd_session_fini(&session);
    mapper_fini(&m);
}

static void dump_tells_active_and_unused_names_apart(void **state)
{
    (void)state;
    mapper m;
    mapper_init(&m);
    tm_epmd_session gone, here;
    register_as(&m, &gone, 4, TM_BYTES("old"), 1);
    register_as(&m, &here, 5, TM_BYTES("new"), 2);
    tm_epmd_session_fini(&gone);
    assert_int_equal(ask_once(&m, TM_BYTES("\0\1d"), true), TM_EPMD_CLOSE);
    expect_reply(&m, TM_BYTES("\0\0\070\041"
                              "active name     <new> at port 2, fd = 5\n\0"
                              "old/unused name <old>, port = 1, fd = 4 \n\0"));
    tm_epmd_session_fini(&here);
    mapper_fini(&m);
}

static void creation_counts_up_per_name_and_never_falls_below_4(void **state)
{
    (void)state;
    mapper m;
    mapper_init(&m);
    tm_epmd_session session;
    uint32_t first = register_as(&m, &session, 1, TM_BYTES("a"), 1);
    tm_epmd_session_fini(&session);
    for (uint32_t i = 1; i < 5; i++) {
        assert_int_equal(register_as(&m, &session, 1, TM_BYTES("a"), 1), first + i);
        tm_epmd_session_fini(&session);
    }
    assert_int_equal(register_as(&m, &session, 1, TM_BYTES("b"), 1), first);
    tm_epmd_session_fini(&session);
    m.registry.creation = UINT32_MAX; /* the next one would be 0 */
    assert_int_equal(register_as(&m, &session, 1, TM_BYTES("c"), 1), 4);
    tm_epmd_session_fini(&session);
    mapper_fini(&m);
}

static void old_node_gets_a_creation_of_1_to_3(void **state)
{
    (void)state;
    mapper m;
    mapper_init(&m);
    load("registered at an old port mapper");
    for (int i = 0; i < 7; i++) {
        assert_int_equal(ask_once(&m, test_line_bytes(&req), true), TM_EPMD_REGISTERED);
        assert_int_equal(m.out.len, 4);
        assert_int_equal(m.out.ptr[0], 'y');
        uint16_t creation = tm_load_u16(m.out.ptr + 2);
        assert_true(creation >= 1 && creation <= 3);
    }
    mapper_fini(&m);
}

/* A name made of a number; text holds it. */
static tm_bytes numbered(char text[16], unsigned number)
{
    return tm_bytes_of(text, (size_t)snprintf(text, 16, "n%u", number));
}

static void forgotten_name_never_gets_an_earlier_creation(void **state)
{
    (void)state;
    mapper m;
    mapper_init(&m);
    tm_epmd_session session;
    char text[16];
    uint32_t last = 0;
    for (int i = 0; i < 50; i++) {
        last = register_as(&m, &session, 1, TM_BYTES("victim"), 1);
        tm_epmd_session_fini(&session);
    }
    for (unsigned i = 0; i < TM_EPMD_UNUSED_COUNT_MAX; i++) { /* push it out of the unused names */
        register_as(&m, &session, 1, numbered(text, i), 1);
        tm_epmd_session_fini(&session);
    }
    assert_int_equal(m.registry.unused_count, TM_EPMD_UNUSED_COUNT_MAX);
    assert_true(register_as(&m, &session, 1, TM_BYTES("victim"), 1) > last);
    tm_epmd_session_fini(&session);
    mapper_fini(&m);
}

static void full_registry_refuses_new_names_only(void **state)
{
    (void)state;
    mapper m;
    mapper_init(&m);
    m.registry.active_max = 100;
    tm_epmd_session sessions[101];
    char text[16];
    for (unsigned i = 0; i < 100; i++)
        assert_true(register_as(&m, &sessions[i], i, numbered(text, i), 1));
    assert_int_equal(register_as(&m, &sessions[100], 100, TM_BYTES("more"), 1), 0);
    tm_epmd_session_fini(&sessions[100]);
    tm_epmd_session_fini(&sessions[0]);
    assert_true(register_as(&m, &sessions[0], 0, TM_BYTES("more"), 1));
    for (unsigned i = 0; i < 100; i++) tm_epmd_session_fini(&sessions[i]);
    mapper_fini(&m);
}

/* -- memory ------------------------------------------------------------------------------------ */

static bool scenario(mapper *m)
{
    tm_epmd_session sessions[3];
    char text[16];
    int worst = 0;
    for (unsigned i = 0; i < 3; i++) {
        uint8_t bytes[100];
        size_t len = registration(bytes, 6, (char)('a' + i % 2), 3, 10); /* the third is taken */
        tm_epmd_session_init(&sessions[i], &m->registry, i, true);
        int rc = tm_epmd_session_feed(&sessions[i], tm_bytes_of(bytes, len), &m->out);
        if (rc < worst) worst = rc;
    }
    for (unsigned i = 0; i < 3; i++) tm_epmd_session_fini(&sessions[i]);
    for (unsigned i = 0; i < 20; i++) { /* grows the map of names */
        uint8_t bytes[100];
        tm_bytes name = numbered(text, i);
        size_t len = registration(bytes, 6, 'a', name.len, 0);
        memcpy(bytes + 13, name.ptr, name.len);
        tm_epmd_session_init(&sessions[0], &m->registry, i, true);
        int rc = tm_epmd_session_feed(&sessions[0], tm_bytes_of(bytes, len), &m->out);
        if (rc < worst) worst = rc;
        tm_epmd_session_fini(&sessions[0]);
    }
    static const char *const requests[] = {"\0\4zaaa", "\0\1d", "\0\1n"};
    for (unsigned i = 0; i < 3; i++) {
        tm_epmd_session_init(&sessions[0], &m->registry, 9, true);
        tm_bytes request = tm_bytes_of(requests[i], (size_t)requests[i][1] + 2);
        int rc = tm_epmd_session_feed(&sessions[0], request, &m->out);
        if (rc < worst) worst = rc;
        tm_epmd_session_fini(&sessions[0]);
    }
    assert_true(worst == 0 || worst == TM_ENOMEM);
    assert_int_equal(m->registry.active_count, 0);
    return worst == 0;
}

static void failing_allocation_leaves_no_half_registered_name(void **state)
{
    (void)state;
    bool passed = false;
    size_t n = 0;
    for (; !passed; n++) {
        mapper m;
        mapper_init(&m);
        m.memory.fail_after = n;
        passed = scenario(&m);
        m.memory.fail_after = SIZE_MAX;
        assert_true(scenario(&m)); /* and all works again afterwards */
        mapper_fini(&m);
    }
    assert_true(n > 20);
}

static void reply_that_does_not_fit_is_not_sent_in_part(void **state)
{
    (void)state;
    mapper m;
    mapper_init(&m);
    tm_epmd_session keeps, session;
    register_as(&m, &keeps, 1, TM_BYTES("py1"), 5555);
    static const char *const requests[] = {"\0\4zpy1", "\0\1d", "\0\1n"};
    for (size_t i = 0; i < 3; i++)
        for (size_t max = 1; max < 16; max++) {
            tm_buf out;
            tm_buf_init(&out, &m.memory.alloc, max);
            tm_epmd_session_init(&session, &m.registry, 2, true);
            tm_bytes request = tm_bytes_of(requests[i], (size_t)requests[i][1] + 2);
            assert_int_equal(tm_epmd_session_feed(&session, request, &out), TM_EUSE_LIMIT);
            assert_int_equal(out.len, 0);
            tm_epmd_session_fini(&session);
            tm_buf_fini(&out);
        }
    tm_epmd_session_fini(&keeps);
    mapper_fini(&m);
}

#define TEST(name) cmocka_unit_test(name)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(captured_exchanges_are_answered_in_pieces_of_any_size),
        TEST(captured_names_are_listed),
        TEST(captured_requests_are_what_the_client_writes),
        TEST(captured_replies_are_read_in_pieces_of_any_size),
        TEST(captured_list_of_names_is_read_until_the_end),
        TEST(lying_registration_reply_is_refused),
        TEST(registration_answered_twice_is_noticed_later_too),
        TEST(lying_lookup_reply_is_refused),
        TEST(reply_cut_by_the_end_is_an_error),
        TEST(odd_lines_among_names_are_skipped),
        TEST(endless_list_of_names_is_cut_at_its_limit),
        TEST(client_refuses_what_could_not_be_asked),
        TEST(request_that_is_none_is_closed_unanswered),
        TEST(registration_with_bad_fields_is_closed_or_refused_as_by_otp),
        TEST(name_and_extra_are_taken_up_to_their_bounds),
        TEST(strangers_may_look_up_but_not_register_or_dump),
        TEST(byte_after_a_registration_ends_it),
        TEST(idle_registration_holds_no_request_buffer),
        TEST(trailing_nul_of_a_looked_up_name_is_stripped),
        TEST(dump_tells_active_and_unused_names_apart),
        TEST(creation_counts_up_per_name_and_never_falls_below_4),
        TEST(old_node_gets_a_creation_of_1_to_3),
        TEST(forgotten_name_never_gets_an_earlier_creation),
        TEST(full_registry_refuses_new_names_only),
        TEST(failing_allocation_leaves_no_half_registered_name),
        TEST(reply_that_does_not_fit_is_not_sent_in_part),
    };
    return cmocka_run_group_tests_name("epmd", tests, NULL, NULL);
}
