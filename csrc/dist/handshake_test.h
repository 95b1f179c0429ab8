/* What the tests of the handshake share: one side of it with a fixed secret, the messages of the
 * other side, and a way into every state. */
#ifndef TM_DIST_HANDSHAKE_TEST_H
#define TM_DIST_HANDSHAKE_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "dist_test.h"
#include "handshake.h"

#define OUR_NAME "py@127.0.0.1"
#define PEER_NAME "a25@127.0.0.1"
#define COOKIE "vec"
#define CHALLENGE 0x01020304u      /* ours */
#define PEER_CHALLENGE 0x5fa132b8u /* theirs */
#define CREATION 0x11223344u
#define PEER_CREATION 0x6b02669eu
#define PEER_FLAGS UINT64_C(0xd07df7fbd)

/* -- two sides --------------------------------------------------------------------------------- */

typedef struct side {
    test_alloc memory;
    tm_handshake hs;
    tm_buf out;
    size_t checked; /* of out */
} side;

static inline tm_handshake_config config_of(enum tm_handshake_role role)
{
    tm_handshake_config config = {.name = TM_BYTES(OUR_NAME),
                                  .creation = CREATION,
                                  .flags = TM_DFLAGS_OURS,
                                  .challenge = CHALLENGE,
                                  .insist = true};
    if (role == TM_HANDSHAKE_INITIATOR) {
        config.expected_name = TM_BYTES(PEER_NAME);
        config.cookie = TM_BYTES(COOKIE);
    }
    return config;
}

static inline void side_init_with(side *s, enum tm_handshake_role role,
                                  const tm_handshake_config *config)
{
    memset(s, 0, sizeof *s);
    test_alloc_init(&s->memory, SIZE_MAX);
    tm_buf_init(&s->out, &s->memory.alloc, 4096);
    assert_int_equal(tm_handshake_init(&s->hs, role, config), 0);
}

static inline void side_init(side *s, enum tm_handshake_role role)
{
    tm_handshake_config config = config_of(role);
    side_init_with(s, role, &config);
}

static inline void side_fini(side *s)
{
    tm_handshake_fini(&s->hs);
    tm_buf_fini(&s->out);
    assert_int_equal(s->memory.stats.bytes, 0);
}

typedef struct message {
    uint8_t bytes[2048];
    size_t len;
} message;

static inline void message_end(message *m) { tm_store_u16(m->bytes, (uint16_t)(m->len - 2)); }

static inline message message_raw(const void *body, size_t len)
{
    message m = {.len = 2 + len};
    memcpy(m.bytes + 2, body, len);
    message_end(&m);
    return m;
}

static inline message message_status(const char *text)
{
    char body[64];
    int len = snprintf(body, sizeof body, "s%s", text);
    return message_raw(body, (size_t)len);
}

static inline message message_send_name(uint64_t flags, const char *name, size_t name_len)
{
    uint8_t body[1500], *p = tm_store_u64(tm_store_u8(body, 'N'), flags);
    p = tm_store_u16(tm_store_u32(p, PEER_CREATION), (uint16_t)name_len);
    p = tm_store_bytes(p, name, name_len);
    return message_raw(body, (size_t)(p - body));
}

static inline message message_send_name_old(uint32_t flags, const char *name)
{
    uint8_t body[1500], *p = tm_store_u32(tm_store_u16(tm_store_u8(body, 'n'), 5), flags);
    p = tm_store_bytes(p, name, strlen(name));
    return message_raw(body, (size_t)(p - body));
}

static inline message message_challenge(uint64_t flags, uint32_t challenge, const char *name)
{
    uint8_t body[1500], *p = tm_store_u64(tm_store_u8(body, 'N'), flags);
    p = tm_store_u32(tm_store_u32(p, challenge), PEER_CREATION);
    p = tm_store_u16(p, (uint16_t)strlen(name));
    p = tm_store_bytes(p, name, strlen(name));
    return message_raw(body, (size_t)(p - body));
}

static inline message message_complement(uint32_t flags)
{
    uint8_t body[9];
    tm_store_u32(tm_store_u32(tm_store_u8(body, 'c'), flags), PEER_CREATION);
    return message_raw(body, sizeof body);
}

static inline message message_named(const char *name)
{
    uint8_t body[600], *p = tm_store_bytes(body, "snamed:", 7);
    p = tm_store_u16(p, (uint16_t)strlen(name));
    p = tm_store_bytes(p, name, strlen(name));
    p = tm_store_u32(p, 0x79cbe3d8);
    return message_raw(body, (size_t)(p - body));
}

static inline void digest(const char *cookie, uint32_t challenge, uint8_t result[TM_MD5_SIZE])
{
    char text[300];
    int len = snprintf(text, sizeof text, "%s%u", cookie, challenge);
    tm_md5 md5;
    tm_md5_init(&md5);
    tm_md5_update(&md5, text, (size_t)len);
    tm_md5_final(&md5, result);
}

static inline message message_reply(const char *cookie, uint32_t challenge)
{
    uint8_t body[21];
    digest(cookie, CHALLENGE, tm_store_u32(tm_store_u8(body, 'r'), challenge));
    return message_raw(body, sizeof body);
}

static inline message message_ack(const char *cookie)
{
    uint8_t body[17];
    digest(cookie, CHALLENGE, tm_store_u8(body, 'a'));
    return message_raw(body, sizeof body);
}

static inline int feed(side *s, const message *m)
{
    tm_bytes input = tm_bytes_of(m->bytes, m->len);
    return tm_handshake_feed(&s->hs, &input, &s->out);
}

static inline int feed_bytes(side *s, const void *bytes, size_t len)
{
    tm_bytes input = tm_bytes_of(bytes, len);
    return tm_handshake_feed(&s->hs, &input, &s->out);
}

#define FEED(s, builder) (feed((s), &(message[]){builder}[0]))
#define SEND_NAME message_send_name(PEER_FLAGS, PEER_NAME, strlen(PEER_NAME))
#define SEND_NAME_OLD message_send_name_old((uint32_t)PEER_FLAGS, PEER_NAME)
#define CHALLENGE_MESSAGE message_challenge(PEER_FLAGS, PEER_CHALLENGE, PEER_NAME)

/* The next message in out must be this one. */
static inline void expect_out(side *s, message m)
{
    assert_true(s->out.len - s->checked >= m.len);
    assert_memory_equal(s->out.ptr + s->checked, m.bytes, m.len);
    s->checked += m.len;
}

static inline void expect_out_end(side *s) { assert_int_equal(s->out.len, s->checked); }

static inline int answer(side *s, enum tm_handshake_status status)
{
    return tm_handshake_answer(&s->hs, status, TM_BYTES(COOKIE), &s->out);
}

static inline bool all_zero(const void *bytes, size_t len)
{
    const uint8_t *p = bytes;
    while (len--)
        if (*p++) return false;
    return true;
}

static inline bool cookie_wiped(const side *s)
{
    return s->hs.cookie_len == 0 && all_zero(s->hs.cookie, sizeof s->hs.cookie);
}

/* Brings a fresh handshake into a state by legal steps. name_me: the initiator asks for a name. */
static inline void drive(side *s, enum tm_handshake_state state, bool name_me)
{
    bool initiator = state >= TM_HS_I_START && state <= TM_HS_I_ACK;
    enum tm_handshake_role role = initiator ? TM_HANDSHAKE_INITIATOR : TM_HANDSHAKE_ACCEPTOR;
    tm_handshake_config config = config_of(role);
    if (name_me) {
        config.flags |= TM_DFLAG(NAME_ME);
        config.name = TM_BYTES("127.0.0.1");
    }
    side_init_with(s, role, &config);
    bool old =
        state == TM_HS_A_ANSWER_OLD || state == TM_HS_A_ALIVE_OLD || state == TM_HS_A_COMPLEMENT;
    if (state == TM_HS_NONE) tm_handshake_fini(&s->hs);
    if (state == TM_HS_FAILED) assert_int_equal(FEED(s, message_ack(COOKIE)), TM_EPEER_MALFORMED);
    if (state > TM_HS_I_START && initiator)
        assert_int_equal(tm_handshake_start(&s->hs, &s->out), 0);
    if (state > TM_HS_I_STATUS && initiator)
        assert_int_equal(FEED(s, message_status("ok")), TM_HANDSHAKE_MORE);
    if (state > TM_HS_I_CHALLENGE && initiator)
        assert_int_equal(FEED(s, CHALLENGE_MESSAGE), TM_HANDSHAKE_CHALLENGED);
    if (state > TM_HS_A_NAME && state < TM_HS_FAILED) {
        message name = SEND_NAME, name_old = SEND_NAME_OLD;
        assert_int_equal(feed(s, old ? &name_old : &name), TM_HANDSHAKE_NAMED);
    }
    if (state == TM_HS_A_ALIVE || state == TM_HS_A_ALIVE_OLD)
        assert_int_equal(answer(s, TM_HANDSHAKE_ALIVE), 0);
    if (state >= TM_HS_A_COMPLEMENT && state < TM_HS_FAILED)
        assert_int_equal(answer(s, TM_HANDSHAKE_OK), 0);
    if (state == TM_HS_A_CLAIM || state == TM_HS_CONNECTED)
        assert_int_equal(FEED(s, message_reply(COOKIE, PEER_CHALLENGE)), TM_HANDSHAKE_VERIFIED);
    if (state == TM_HS_CONNECTED) assert_int_equal(tm_handshake_accept(&s->hs, &s->out), 0);
    assert_int_equal(s->hs.state, state);
}

#endif
