#include "handshake.h"

/* -- the table --------------------------------------------------------------------------------- */

/* What follows a message or a call; a pair that is not here is an error. What a step has to check
 * and to write is in hs_act; it can only turn a legal step into TM_HS_FAILED. */
static const uint8_t steps[TM_HS_STATE_COUNT][TM_HS_INPUT_COUNT] = {
    [TM_HS_I_START] = {[TM_HS_CALL_START] = TM_HS_I_STATUS},
    [TM_HS_I_STATUS] = {[TM_HS_IN_OK] = TM_HS_I_CHALLENGE,
                        [TM_HS_IN_OK_SIMULTANEOUS] = TM_HS_I_CHALLENGE,
                        [TM_HS_IN_ALIVE] = TM_HS_I_CHALLENGE,
                        [TM_HS_IN_NAMED] = TM_HS_I_CHALLENGE,
                        [TM_HS_IN_NOK] = TM_HS_FAILED,
                        [TM_HS_IN_NOT_ALLOWED] = TM_HS_FAILED},
    [TM_HS_I_CHALLENGE] = {[TM_HS_IN_NAME] = TM_HS_I_ACK},
    [TM_HS_I_ACK] = {[TM_HS_IN_ACK] = TM_HS_CONNECTED},
    [TM_HS_A_NAME] = {[TM_HS_IN_NAME] = TM_HS_A_ANSWER, [TM_HS_IN_NAME_OLD] = TM_HS_A_ANSWER_OLD},
    [TM_HS_A_ANSWER] = {[TM_HS_CALL_CONTINUE] = TM_HS_A_REPLY,
                        [TM_HS_CALL_ALIVE] = TM_HS_A_ALIVE,
                        [TM_HS_CALL_REFUSE] = TM_HS_FAILED},
    [TM_HS_A_ANSWER_OLD] = {[TM_HS_CALL_CONTINUE] = TM_HS_A_COMPLEMENT,
                            [TM_HS_CALL_ALIVE] = TM_HS_A_ALIVE_OLD,
                            [TM_HS_CALL_REFUSE] = TM_HS_FAILED},
    [TM_HS_A_ALIVE] = {[TM_HS_IN_TRUE] = TM_HS_A_REPLY, [TM_HS_IN_FALSE] = TM_HS_FAILED},
    [TM_HS_A_ALIVE_OLD] = {[TM_HS_IN_TRUE] = TM_HS_A_COMPLEMENT, [TM_HS_IN_FALSE] = TM_HS_FAILED},
    [TM_HS_A_COMPLEMENT] = {[TM_HS_IN_COMPLEMENT] = TM_HS_A_REPLY},
    [TM_HS_A_REPLY] = {[TM_HS_IN_REPLY] = TM_HS_A_CLAIM},
    [TM_HS_A_CLAIM] = {[TM_HS_CALL_ACCEPT] = TM_HS_CONNECTED},
};

/* Longest message that a state accepts, bytes; 0 where none is awaited. */
static const uint16_t size_max[TM_HS_STATE_COUNT] = {
    [TM_HS_I_STATUS] = TM_HANDSHAKE_STATUS_BYTES_MAX,
    [TM_HS_I_CHALLENGE] = TM_HANDSHAKE_NAME_BYTES_MAX,
    [TM_HS_I_ACK] = TM_HANDSHAKE_DIGEST_BYTES_MAX,
    [TM_HS_A_NAME] = TM_HANDSHAKE_NAME_BYTES_MAX,
    [TM_HS_A_ALIVE] = TM_HANDSHAKE_STATUS_BYTES_MAX,
    [TM_HS_A_ALIVE_OLD] = TM_HANDSHAKE_STATUS_BYTES_MAX,
    [TM_HS_A_COMPLEMENT] = TM_HANDSHAKE_DIGEST_BYTES_MAX,
    [TM_HS_A_REPLY] = TM_HANDSHAKE_DIGEST_BYTES_MAX,
};

/* Sizes of whole messages without their length, bytes. */
#define COMPLEMENT_SIZE 9
#define REPLY_SIZE (1 + 4 + TM_MD5_SIZE)
#define ACK_SIZE (1 + TM_MD5_SIZE)
/* Longest message that we write, with its length: a challenge. A status is shorter. */
#define MESSAGE_SIZE_MAX (2 + 1 + 8 + 4 + 4 + 2 + TM_NODE_NAME_BYTES_MAX)

static_assert(REPLY_SIZE <= TM_HANDSHAKE_DIGEST_BYTES_MAX, "a reply fits");
static_assert(ACK_SIZE <= TM_HANDSHAKE_DIGEST_BYTES_MAX, "an ack fits");
static_assert(MESSAGE_SIZE_MAX <= TM_HANDSHAKE_NAME_BYTES_MAX, "we accept what we write");
static_assert(TM_HANDSHAKE_STATUS_BYTES_MAX >= 1 + 6 + 2 + TM_NODE_NAME_BYTES_MAX + 4,
              "a name fits");

/* Texts of status messages, without the leading 's'; "named:" goes on behind the colon. */
typedef struct status_text {
    char text[20];
    uint8_t input;
} status_text;

static const status_text status_texts[] = {
    {"ok", TM_HS_IN_OK},       {"ok_simultaneous", TM_HS_IN_OK_SIMULTANEOUS},
    {"nok", TM_HS_IN_NOK},     {"not_allowed", TM_HS_IN_NOT_ALLOWED},
    {"alive", TM_HS_IN_ALIVE}, {"true", TM_HS_IN_TRUE},
    {"false", TM_HS_IN_FALSE},
};

#define NAMED_TEXT "named:"

enum tm_handshake_state tm_handshake_next(enum tm_handshake_state state,
                                          enum tm_handshake_input input)
{
    return (enum tm_handshake_state)steps[state][input];
}

const char *tm_handshake_state_name(enum tm_handshake_state state)
{
    static const char names[TM_HS_STATE_COUNT][16] = {
        "none",         "i_start",  "i_status",     "i_challenge", "i_ack",
        "a_name",       "a_answer", "a_answer_old", "a_alive",     "a_alive_old",
        "a_complement", "a_reply",  "a_claim",      "connected",   "failed"};
    return names[state];
}

const char *tm_handshake_input_name(enum tm_handshake_input input)
{
    static const char names[TM_HS_INPUT_COUNT][16] = {
        "name",  "name (old)", "ok",    "ok_simultaneous", "nok",   "not_allowed", "alive",
        "named", "true",       "false", "complement",      "reply", "ack",         "unknown",
        "start", "continue",   "alive", "refuse",          "accept"};
    return names[input];
}

/* -- rules ------------------------------------------------------------------------------------- */

/* Bytes of a name or a host: printable ASCII without space. OTP allows Latin-1 in principle, but
 * its own start-up refuses such names, and control characters would go into logs. */
static bool name_bytes_valid(tm_bytes bytes, size_t *ats)
{
    *ats = 0;
    for (size_t i = 0; i < bytes.len; i++) {
        if (bytes.ptr[i] <= ' ' || bytes.ptr[i] > '~') return false;
        if (bytes.ptr[i] == '@') ++*ats;
    }
    return bytes.len > 0 && bytes.len <= TM_NODE_NAME_BYTES_MAX;
}

bool tm_node_name_valid(tm_bytes name)
{
    size_t ats;
    return name_bytes_valid(name, &ats) && ats == 1 && name.ptr[0] != '@' &&
           name.ptr[name.len - 1] != '@';
}

static bool host_valid(tm_bytes host)
{
    size_t ats;
    return name_bytes_valid(host, &ats) && ats == 0;
}

enum tm_handshake_status tm_handshake_simultaneous(tm_bytes our_name, tm_bytes peer_name)
{
    size_t shared = our_name.len < peer_name.len ? our_name.len : peer_name.len;
    int order = shared ? memcmp(our_name.ptr, peer_name.ptr, shared) : 0;
    bool greater = order ? order > 0 : our_name.len > peer_name.len;
    return greater ? TM_HANDSHAKE_NOK : TM_HANDSHAKE_OK_SIMULTANEOUS;
}

/* -- secrets ----------------------------------------------------------------------------------- */

/* A memset that the compiler may not drop because nobody reads the bytes any more. */
static void wipe(void *bytes, size_t len)
{
    volatile uint8_t *p = bytes;
    while (len--) *p++ = 0;
}

static void digest_of(const tm_handshake *hs, uint32_t challenge, uint8_t digest[TM_MD5_SIZE])
{
    char decimal[10]; /* of 2^32 - 1 */
    size_t start = sizeof decimal;
    do {
        decimal[--start] = (char)('0' + challenge % 10);
        challenge /= 10;
    } while (challenge);
    tm_md5 md5;
    tm_md5_init(&md5);
    tm_md5_update(&md5, hs->cookie, hs->cookie_len);
    tm_md5_update(&md5, decimal + start, sizeof decimal - start);
    tm_md5_final(&md5, digest);
    wipe(&md5, sizeof md5);
}

/* Whether the digest is the right one for our challenge; takes the same time whatever differs. */
static bool digest_right(const tm_handshake *hs, const uint8_t digest[TM_MD5_SIZE])
{
    uint8_t expected[TM_MD5_SIZE];
    digest_of(hs, hs->challenge, expected);
    size_t size = TM_MD5_SIZE;
#ifdef TM_PLANTED_BUG /* planted for the fuzz target: one byte of the digest decides */
    size = 1;
#endif
    uint8_t difference = 0;
    for (size_t i = 0; i < size; i++) difference |= (uint8_t)(expected[i] ^ digest[i]);
    wipe(expected, sizeof expected);
    return difference == 0;
}

/* -- steps ------------------------------------------------------------------------------------- */

/* The only place that assigns state. The secret goes as soon as it is of no more use. */
static void hs_goto(tm_handshake *hs, enum tm_handshake_state state)
{
    hs->state = (uint8_t)state;
    hs->prefix_len = 0;
    hs->body_have = hs->body_size = 0;
    if (state == TM_HS_CONNECTED || state == TM_HS_FAILED) {
        wipe(hs->cookie, sizeof hs->cookie);
        hs->cookie_len = 0;
    }
}

static int hs_fail(tm_handshake *hs, int rc, const char *what)
{
    hs->rc = rc;
    hs->fault = (tm_fault){.offset = hs->body_have, .what = what};
    hs_goto(hs, TM_HS_FAILED);
    return rc;
}

static void set_name(uint8_t *name, uint8_t *name_len, tm_bytes from)
{
    memcpy(name, from.ptr, from.len);
    *name_len = (uint8_t)from.len;
}

static int set_cookie(tm_handshake *hs, tm_bytes cookie)
{
    if (!cookie.len || cookie.len > sizeof hs->cookie) return TM_EUSE_ARG;
    memcpy(hs->cookie, cookie.ptr, cookie.len);
    hs->cookie_len = (uint8_t)cookie.len;
    return 0;
}

/* Appends one message: its 2-byte length and the bytes up to end. */
static int send_message(tm_handshake *hs, tm_buf *out, uint8_t *message, const uint8_t *end)
{
    size_t len = (size_t)(end - message);
    tm_store_u16(message, (uint16_t)(len - 2));
    int rc = tm_buf_append(out, message, len);
    return rc ? hs_fail(hs, rc, "no room for our message") : 0;
}

static int send_status(tm_handshake *hs, tm_buf *out, enum tm_handshake_input status)
{
    uint8_t message[MESSAGE_SIZE_MAX], *p = tm_store_u8(message + 2, 's');
    for (size_t i = 0; i < sizeof status_texts / sizeof *status_texts; i++)
        if (status_texts[i].input == status)
            p = tm_store_bytes(p, status_texts[i].text, strlen(status_texts[i].text));
    return send_message(hs, out, message, p);
}

static int send_named(tm_handshake *hs, tm_buf *out)
{
    uint8_t message[MESSAGE_SIZE_MAX], *p = tm_store_u8(message + 2, 's');
    p = tm_store_bytes(p, NAMED_TEXT, sizeof NAMED_TEXT - 1);
    p = tm_store_u16(p, hs->peer_name_len);
    p = tm_store_bytes(p, hs->peer_name, hs->peer_name_len);
    p = tm_store_u32(p, hs->peer_creation);
    return send_message(hs, out, message, p);
}

static int send_name(tm_handshake *hs, tm_buf *out)
{
    uint8_t message[MESSAGE_SIZE_MAX], *p = tm_store_u8(message + 2, 'N');
    p = tm_store_u64(p, hs->flags);
    p = tm_store_u32(p, hs->creation);
    p = tm_store_u16(p, hs->name_len);
    p = tm_store_bytes(p, hs->name, hs->name_len);
    return send_message(hs, out, message, p);
}

static int send_challenge(tm_handshake *hs, tm_buf *out)
{
    uint64_t flags = hs->flags;
    if (hs->name_me) flags = (flags | TM_DFLAG(NAME_ME)) & ~TM_DFLAG(PUBLISHED);
    uint8_t message[MESSAGE_SIZE_MAX], *p = tm_store_u8(message + 2, 'N');
    p = tm_store_u64(p, flags);
    p = tm_store_u32(p, hs->challenge);
    p = tm_store_u32(p, hs->creation);
    p = tm_store_u16(p, hs->name_len);
    p = tm_store_bytes(p, hs->name, hs->name_len);
    return send_message(hs, out, message, p);
}

static int send_reply(tm_handshake *hs, tm_buf *out)
{
    uint8_t message[MESSAGE_SIZE_MAX], *p = tm_store_u8(message + 2, 'r');
    p = tm_store_u32(p, hs->challenge);
    digest_of(hs, hs->peer_challenge, p);
    return send_message(hs, out, message, p + TM_MD5_SIZE);
}

static int send_ack(tm_handshake *hs, tm_buf *out)
{
    uint8_t message[MESSAGE_SIZE_MAX], *p = tm_store_u8(message + 2, 'a');
    digest_of(hs, hs->peer_challenge, p);
    return send_message(hs, out, message, p + TM_MD5_SIZE);
}

/* A name with its 2-byte length. */
static int read_name(tm_cursor *c, tm_bytes *name)
{
    uint16_t len;
    int rc = tm_cursor_u16(c, &len);
    return rc ? rc : tm_cursor_bytes(c, len, name);
}

static int hs_short(tm_handshake *hs)
{
    return hs_fail(hs, TM_EPEER_MALFORMED, "a message is shorter than its fields");
}

/* Remembers who the peer says it is, and refuses at once what could never be let in. low_only: the
 * upper flags come later, in the complement. */
static int hs_peer_named(tm_handshake *hs, tm_bytes name, bool low_only, tm_buf *out)
{
    if (hs->name_me ? !host_valid(name) : !tm_node_name_valid(name))
        return hs_fail(hs, TM_EPEER_NAME, "not a node name");
    set_name(hs->peer_name, &hs->peer_name_len, name);
    uint64_t missing = tm_handshake_missing(hs);
    if (!(low_only ? (uint32_t)missing : missing)) return 0;
    int rc = send_status(hs, out, TM_HS_IN_NOT_ALLOWED);
    return rc ? rc : hs_fail(hs, TM_EPEER_FLAGS, "a mandatory flag is missing");
}

static int on_send_name(tm_handshake *hs, tm_cursor c, tm_buf *out)
{
    tm_bytes name;
    int rc = tm_cursor_u64(&c, &hs->peer_flags);
    if (!rc) rc = tm_cursor_u32(&c, &hs->peer_creation);
    if (!rc) rc = read_name(&c, &name);
    if (rc) return hs_short(hs);
    hs->name_me = hs->peer_flags & TM_DFLAG(NAME_ME);
    return hs_peer_named(hs, name, false, out);
}

static int on_send_name_old(tm_handshake *hs, tm_cursor c, tm_buf *out)
{
    uint16_t version; /* 5; the flags say what the peer can */
    uint32_t flags;
    int rc = tm_cursor_u16(&c, &version);
    if (!rc) rc = tm_cursor_u32(&c, &flags);
    if (rc) return hs_short(hs);
    hs->peer_flags = flags;
    return hs_peer_named(hs, tm_bytes_of(c.ptr, tm_cursor_left(&c)), true, out);
}

static int on_complement(tm_handshake *hs, tm_cursor c)
{
    uint32_t flags;
    int rc = tm_cursor_u32(&c, &flags);
    if (!rc) rc = tm_cursor_u32(&c, &hs->peer_creation);
    if (rc || tm_cursor_left(&c))
        return hs_fail(hs, TM_EPEER_MALFORMED, "a complement of the wrong size");
    hs->peer_flags |= (uint64_t)flags << 32 & ~TM_DFLAG(NAME_ME);
    return tm_handshake_missing(hs) ? hs_fail(hs, TM_EPEER_FLAGS, "a mandatory flag is missing")
                                    : 0;
}

static int on_challenge(tm_handshake *hs, tm_cursor c, tm_buf *out)
{
    tm_bytes name;
    int rc = tm_cursor_u64(&c, &hs->peer_flags);
    if (!rc) rc = tm_cursor_u32(&c, &hs->peer_challenge);
    if (!rc) rc = tm_cursor_u32(&c, &hs->peer_creation);
    if (!rc) rc = read_name(&c, &name);
    if (rc) return hs_short(hs);
    if (!tm_bytes_equal(name, tm_handshake_peer_name(hs)))
        return hs_fail(hs, TM_EPEER_NAME, "another node than the one that was dialled");
    if (tm_handshake_missing(hs)) return hs_fail(hs, TM_EPEER_FLAGS, "a mandatory flag is missing");
    if (hs->peer_challenge == hs->challenge)
        return hs_fail(hs, TM_EPEER_REFLECTED, "the challenge is our own");
    return send_reply(hs, out);
}

static int on_named(tm_handshake *hs, tm_cursor c)
{
    tm_bytes name;
    int rc = tm_cursor_skip(&c, sizeof NAMED_TEXT - 1);
    if (!rc) rc = read_name(&c, &name);
    if (!rc) rc = tm_cursor_u32(&c, &hs->creation);
    if (rc) return hs_short(hs);
    if (!hs->name_me) return hs_fail(hs, TM_EPEER_MALFORMED, "a name that was not asked for");
    if (!tm_node_name_valid(name)) return hs_fail(hs, TM_EPEER_NAME, "not a node name");
    set_name(hs->name, &hs->name_len, name);
    return 0;
}

static int on_reply(tm_handshake *hs, tm_cursor c)
{
    tm_bytes digest;
    int rc = tm_cursor_u32(&c, &hs->peer_challenge);
    if (!rc) rc = tm_cursor_bytes(&c, TM_MD5_SIZE, &digest);
    if (rc || tm_cursor_left(&c))
        return hs_fail(hs, TM_EPEER_MALFORMED, "a challenge reply of the wrong size");
    if (hs->peer_challenge == hs->challenge)
        return hs_fail(hs, TM_EPEER_REFLECTED, "the challenge is our own");
    return digest_right(hs, digest.ptr) ? 0 : hs_fail(hs, TM_EPEER_COOKIE, "a wrong digest");
}

static int on_ack(tm_handshake *hs, tm_cursor c)
{
    tm_bytes digest;
    if (tm_cursor_bytes(&c, TM_MD5_SIZE, &digest) || tm_cursor_left(&c))
        return hs_fail(hs, TM_EPEER_MALFORMED, "an ack of the wrong size");
    return digest_right(hs, digest.ptr) ? 0 : hs_fail(hs, TM_EPEER_COOKIE, "a wrong digest");
}

/* The peer, our acceptor, goes on; it cannot when we have no name yet. */
static int on_status(tm_handshake *hs, enum tm_handshake_input status, tm_buf *out)
{
    if (hs->name_me) return hs_fail(hs, TM_EPEER_MALFORMED, "no name was given to us");
    if (status != TM_HS_IN_ALIVE) return 0;
    int rc = send_status(hs, out, hs->insist ? TM_HS_IN_TRUE : TM_HS_IN_FALSE);
    if (rc || hs->insist) return rc;
    return hs_fail(hs, TM_EPEER_REFUSED, "the peer holds a connection to this node already");
}

/* What a legal message has to do. body: behind the message's first byte. */
static int hs_act(tm_handshake *hs, enum tm_handshake_input input, tm_cursor body, tm_buf *out)
{
    switch (input) {
    case TM_HS_IN_NAME:
        return hs->state == TM_HS_A_NAME ? on_send_name(hs, body, out)
                                         : on_challenge(hs, body, out);
    case TM_HS_IN_NAME_OLD: return on_send_name_old(hs, body, out);
    case TM_HS_IN_OK:
    case TM_HS_IN_OK_SIMULTANEOUS:
    case TM_HS_IN_ALIVE: return on_status(hs, input, out);
    case TM_HS_IN_NAMED: return on_named(hs, body);
    case TM_HS_IN_NOK:
        return hs_fail(hs, TM_ECLOSED, "the peer's own attempt to connect to us wins");
    case TM_HS_IN_NOT_ALLOWED: return hs_fail(hs, TM_EPEER_REFUSED, "not allowed");
    case TM_HS_IN_TRUE: return send_challenge(hs, out);
    case TM_HS_IN_FALSE: return hs_fail(hs, TM_ECLOSED, "the peer keeps its earlier connection");
    case TM_HS_IN_COMPLEMENT: return on_complement(hs, body);
    case TM_HS_IN_REPLY: return on_reply(hs, body);
    case TM_HS_IN_ACK: return on_ack(hs, body);
    default: return 0; /* calls act for themselves */
    }
}

static enum tm_handshake_input classify_status(tm_bytes text)
{
    size_t prefix = sizeof NAMED_TEXT - 1;
    for (size_t i = 0; i < sizeof status_texts / sizeof *status_texts; i++) {
        const char *known = status_texts[i].text;
        if (tm_bytes_equal(text, tm_bytes_of(known, strlen(known))))
            return (enum tm_handshake_input)status_texts[i].input;
    }
    if (text.len >= prefix && !memcmp(text.ptr, NAMED_TEXT, prefix)) return TM_HS_IN_NAMED;
    return TM_HS_IN_UNKNOWN;
}

static enum tm_handshake_input classify(tm_bytes message)
{
    switch (message.ptr[0]) {
    case 'N': return TM_HS_IN_NAME;
    case 'n': return TM_HS_IN_NAME_OLD;
    case 's': return classify_status(tm_bytes_of(message.ptr + 1, message.len - 1));
    case 'c': return TM_HS_IN_COMPLEMENT;
    case 'r': return TM_HS_IN_REPLY;
    case 'a': return TM_HS_IN_ACK;
    default: return TM_HS_IN_UNKNOWN;
    }
}

/* Handles the gathered message. */
static int hs_message(tm_handshake *hs, tm_buf *out)
{
    tm_bytes message = tm_bytes_of(hs->body, hs->body_size);
    enum tm_handshake_input input = classify(message);
    uint8_t next = steps[hs->state][input];
    if (next == TM_HS_NONE)
        return hs_fail(hs, TM_EPEER_MALFORMED, "a message that does not belong here");
    tm_cursor body = tm_cursor_of(tm_bytes_of(message.ptr + 1, message.len - 1));
    int rc = hs_act(hs, input, body, out);
    if (rc) return rc;
    bool challenged = hs->state == TM_HS_I_CHALLENGE;
    hs_goto(hs, (enum tm_handshake_state)next);
    return challenged ? TM_HANDSHAKE_CHALLENGED : 0;
}

/* Moves bytes from the input until one message is whole: 0, or TM_NEED_DATA. */
static int hs_gather(tm_handshake *hs, tm_bytes *input)
{
    while (hs->prefix_len < 2) {
        if (!input->len) return TM_NEED_DATA;
        hs->body_size = (uint16_t)(hs->body_size << 8 | *input->ptr++);
        input->len--;
        hs->prefix_len++;
    }
    if (!hs->body_size) return hs_fail(hs, TM_EPEER_MALFORMED, "an empty message");
    if (hs->body_size > size_max[hs->state])
        return hs_fail(hs, TM_EPEER_LIMIT, "a message longer than its state allows");
    size_t take = (size_t)hs->body_size - hs->body_have;
    if (take > input->len) take = input->len;
    if (!take) return TM_NEED_DATA;
    memcpy(hs->body + hs->body_have, input->ptr, take);
    hs->body_have = (uint16_t)(hs->body_have + take);
    input->ptr += take;
    input->len -= take;
    return hs->body_have < hs->body_size ? TM_NEED_DATA : 0;
}

/* -- life -------------------------------------------------------------------------------------- */

int tm_handshake_init(tm_handshake *hs, enum tm_handshake_role role,
                      const tm_handshake_config *config)
{
    memset(hs, 0, sizeof *hs);
    bool initiator = role == TM_HANDSHAKE_INITIATOR;
    hs->flags = initiator ? config->flags : config->flags & ~TM_DFLAG(NAME_ME);
    hs->name_me = hs->flags & TM_DFLAG(NAME_ME);
    hs->mandatory = config->mandatory ? config->mandatory : TM_DFLAGS_M25;
    hs->creation = config->creation;
    hs->challenge = config->challenge;
    hs->insist = config->insist;
    if (hs->name_me ? !host_valid(config->name) : !tm_node_name_valid(config->name))
        return TM_EUSE_NAME;
    set_name(hs->name, &hs->name_len, config->name);
    if (initiator) {
        if (!tm_node_name_valid(config->expected_name)) return TM_EUSE_NAME;
        set_name(hs->peer_name, &hs->peer_name_len, config->expected_name);
        int rc = set_cookie(hs, config->cookie);
        if (rc) return rc;
    }
    hs_goto(hs, initiator ? TM_HS_I_START : TM_HS_A_NAME);
    return 0;
}

void tm_handshake_fini(tm_handshake *hs) { wipe(hs, sizeof *hs); }

/* Where a call of ours leads from here, TM_HS_NONE when it is not due. */
static enum tm_handshake_state hs_next(const tm_handshake *hs, enum tm_handshake_input input)
{
    return tm_handshake_next((enum tm_handshake_state)hs->state, input);
}

int tm_handshake_start(tm_handshake *hs, tm_buf *out)
{
    enum tm_handshake_state next = hs_next(hs, TM_HS_CALL_START);
    if (next == TM_HS_NONE) return TM_EUSE_STATE;
    int rc = send_name(hs, out);
    if (!rc) hs_goto(hs, next);
    return rc;
}

int tm_handshake_feed(tm_handshake *hs, tm_bytes *input, tm_buf *out)
{
    for (;;) {
        switch (hs->state) {
        case TM_HS_NONE:
        case TM_HS_I_START: return TM_EUSE_STATE;
        case TM_HS_FAILED: return hs->rc;
        case TM_HS_CONNECTED: return TM_HANDSHAKE_CONNECTED;
        case TM_HS_A_CLAIM: return TM_HANDSHAKE_VERIFIED;
        case TM_HS_A_ANSWER:
        case TM_HS_A_ANSWER_OLD: return TM_HANDSHAKE_NAMED;
        default: break;
        }
        int rc = hs_gather(hs, input);
        if (rc == TM_NEED_DATA) return TM_HANDSHAKE_MORE;
        if (!rc) rc = hs_message(hs, out);
        if (rc) return rc;
    }
}

static int hs_refuse(tm_handshake *hs, enum tm_handshake_input status, tm_buf *out)
{
    int rc = send_status(hs, out, status);
    if (!rc) hs_fail(hs, TM_ECLOSED, "refused by us");
    return rc;
}

/* Answers with a status that goes on, then with our challenge unless the peer has to insist
 * first. */
static int hs_continue(tm_handshake *hs, enum tm_handshake_input status, tm_bytes cookie,
                       tm_buf *out)
{
    bool alive = status == TM_HS_IN_ALIVE;
    enum tm_handshake_state next = hs_next(hs, alive ? TM_HS_CALL_ALIVE : TM_HS_CALL_CONTINUE);
    int rc = set_cookie(hs, cookie);
    if (rc) return rc;
    rc = hs->name_me ? send_named(hs, out) : send_status(hs, out, status);
    if (!rc && !alive) rc = send_challenge(hs, out);
    if (!rc) hs_goto(hs, next);
    return rc;
}

int tm_handshake_answer(tm_handshake *hs, enum tm_handshake_status status, tm_bytes cookie,
                        tm_buf *out)
{
    if (hs_next(hs, TM_HS_CALL_REFUSE) == TM_HS_NONE) return TM_EUSE_STATE;
    switch (status) {
    case TM_HANDSHAKE_NOK: return hs_refuse(hs, TM_HS_IN_NOK, out);
    case TM_HANDSHAKE_NOT_ALLOWED: return hs_refuse(hs, TM_HS_IN_NOT_ALLOWED, out);
    default: break;
    }
    if (hs->name_me) return TM_EUSE_ARG;
    switch (status) {
    case TM_HANDSHAKE_OK: return hs_continue(hs, TM_HS_IN_OK, cookie, out);
    case TM_HANDSHAKE_OK_SIMULTANEOUS:
        return hs_continue(hs, TM_HS_IN_OK_SIMULTANEOUS, cookie, out);
    case TM_HANDSHAKE_ALIVE: return hs_continue(hs, TM_HS_IN_ALIVE, cookie, out);
    default: return TM_EUSE_ARG;
    }
}

int tm_handshake_answer_named(tm_handshake *hs, tm_bytes name, uint32_t creation, tm_bytes cookie,
                              tm_buf *out)
{
    if (hs_next(hs, TM_HS_CALL_CONTINUE) == TM_HS_NONE) return TM_EUSE_STATE;
    if (!hs->name_me) return TM_EUSE_ARG;
    if (!tm_node_name_valid(name)) return TM_EUSE_NAME;
    if (!cookie.len || cookie.len > sizeof hs->cookie) return TM_EUSE_ARG;
    set_name(hs->peer_name, &hs->peer_name_len, name);
    hs->peer_creation = creation;
    return hs_continue(hs, TM_HS_IN_NAMED, cookie, out);
}

int tm_handshake_accept(tm_handshake *hs, tm_buf *out)
{
    enum tm_handshake_state next = hs_next(hs, TM_HS_CALL_ACCEPT);
    if (next == TM_HS_NONE) return TM_EUSE_STATE;
    int rc = send_ack(hs, out);
    if (!rc) hs_goto(hs, next);
    return rc;
}

uint64_t tm_handshake_flags(const tm_handshake *hs)
{
    uint64_t flags = tm_flags_choose(hs->flags, hs->peer_flags);
    return hs->name_me ? flags & ~TM_DFLAG(PUBLISHED) : flags;
}

uint64_t tm_handshake_missing(const tm_handshake *hs)
{
    return tm_flags_missing(hs->peer_flags, hs->mandatory);
}
