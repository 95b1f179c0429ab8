/* Can a stranger without the cookie get past the handshake, or break it? The first byte picks the
 * role and our answers, the rest is what the stranger sends, in parts. */
#include "dist/handshake.h"
#include "split.h"

#define OPTION_ACCEPTOR 1
#define OPTION_NAME_ME 2
#define OPTION_INSIST 4
#define OPTION_NEWEST 8 /* demand the flags that OTP 26 and later demand */
#define OPTION_STATUS_SHIFT 4

#define COOKIE "vec"
#define CHALLENGE 0x01020304u
#define OUT_MAX 4096

typedef struct stranger {
    tm_handshake hs;
    tm_buf out;
    uint8_t options;
    uint8_t tail[TM_MD5_SIZE]; /* the last bytes that were taken */
} stranger;

static void tail_add(stranger *s, tm_bytes taken)
{
    for (size_t i = 0; i < taken.len; i++) {
        memmove(s->tail, s->tail + 1, sizeof s->tail - 1);
        s->tail[sizeof s->tail - 1] = taken.ptr[i];
    }
}

/* Both messages that carry a digest end with it. */
static void check_digest(const stranger *s)
{
    static const char text[] = COOKIE "16909060";
    uint8_t digest[TM_MD5_SIZE];
    tm_md5 md5;
    tm_md5_init(&md5);
    tm_md5_update(&md5, text, sizeof text - 1);
    tm_md5_final(&md5, digest);
    CHECK(memcmp(digest, s->tail, sizeof digest) == 0);
    CHECK(tm_handshake_missing(&s->hs) == 0);
    CHECK(tm_handshake_peer_challenge(&s->hs) != CHALLENGE);
    CHECK(tm_node_name_valid(tm_handshake_peer_name(&s->hs)));
    CHECK(tm_node_name_valid(tm_handshake_name(&s->hs)));
}

static int answer(stranger *s)
{
    enum tm_handshake_status status = (enum tm_handshake_status)(s->options >> OPTION_STATUS_SHIFT);
    tm_bytes cookie = TM_BYTES(COOKIE);
    if (s->hs.name_me && status == TM_HANDSHAKE_OK)
        return tm_handshake_answer_named(&s->hs, TM_BYTES("XYZ@127.0.0.1"), 7, cookie, &s->out);
    return tm_handshake_answer(&s->hs, status, cookie, &s->out);
}

/* One part of the stream: false when the handshake is over. */
static bool feed(stranger *s, tm_bytes input)
{
    for (;;) {
        tm_bytes before = input;
        int event = tm_handshake_feed(&s->hs, &input, &s->out);
        CHECK(input.ptr == before.ptr + (before.len - input.len));
        tail_add(s, tm_bytes_of(before.ptr, before.len - input.len));
        CHECK(event >= 0 || s->hs.state == TM_HS_FAILED);
        if (event < 0) return false;
        switch (event) {
        case TM_HANDSHAKE_MORE: CHECK(input.len == 0); return true;
        case TM_HANDSHAKE_NAMED:
            if (answer(s)) return false;
            break;
        case TM_HANDSHAKE_VERIFIED:
            check_digest(s);
            CHECK(tm_handshake_accept(&s->hs, &s->out) == 0);
            break;
        case TM_HANDSHAKE_CONNECTED: check_digest(s); return false;
        default: break;
        }
    }
}

static void check_over(stranger *s)
{
    tm_bytes input = TM_BYTES("x");
    int again = tm_handshake_feed(&s->hs, &input, &s->out);
    if (s->hs.state == TM_HS_FAILED) CHECK(again < 0 && again == s->hs.rc && s->hs.fault.what);
    if (s->hs.state == TM_HS_FAILED || s->hs.state == TM_HS_CONNECTED)
        for (size_t i = 0; i < sizeof s->hs.cookie; i++) CHECK(s->hs.cookie[i] == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    const tm_alloc alloc = tm_alloc_libc(NULL);
    stranger s = {.options = data[0]};
    bool acceptor = s.options & OPTION_ACCEPTOR, name_me = s.options & OPTION_NAME_ME;
    tm_buf_init(&s.out, &alloc, OUT_MAX);
    tm_handshake_config config = {
        .name = name_me && !acceptor ? TM_BYTES("127.0.0.1") : TM_BYTES("py@127.0.0.1"),
        .creation = 4,
        .flags = TM_DFLAGS_OURS | (name_me ? TM_DFLAG(NAME_ME) : 0),
        .mandatory = s.options & OPTION_NEWEST ? TM_DFLAGS_M26 : 0,
        .challenge = CHALLENGE,
        .expected_name = TM_BYTES("a25@127.0.0.1"),
        .cookie = TM_BYTES(COOKIE),
        .insist = s.options & OPTION_INSIST,
    };
    CHECK(tm_handshake_init(&s.hs, acceptor ? TM_HANDSHAKE_ACCEPTOR : TM_HANDSHAKE_INITIATOR,
                            &config) == 0);
    if (!acceptor) CHECK(tm_handshake_start(&s.hs, &s.out) == 0);
    tm_bytes rest = tm_bytes_of(data + 1, size - 1);
    bool more = true;
    while (more && rest.len) {
        tm_bytes part = split_part(&rest);
        more = feed(&s, part);
        split_free(part);
    }
    if (!more) check_over(&s);
    tm_handshake_fini(&s.hs);
    tm_buf_fini(&s.out);
    return 0;
}
