/* What the messages of a peer may say: flags, names, statuses, sizes. */
#include "handshake_test.h"

/* -- flags ------------------------------------------------------------------------------------- */

/* The subset of mask whose i-th flag is set where subset has bit i. */
static uint64_t subset_of(uint64_t mask, uint32_t subset)
{
    uint64_t flags = 0;
    for (unsigned bit = 0; bit < 64; bit++) {
        if (!(mask >> bit & 1)) continue;
        if (subset & 1) flags |= UINT64_C(1) << bit;
        subset >>= 1;
    }
    return flags;
}

static void every_subset_of_mandatory_flags_is_judged(void **state)
{
    (void)state;
    static const uint64_t sets[] = {TM_DFLAGS_M25, TM_DFLAGS_M26};
    /* bits that no release has given a meaning, and the optional ones */
    uint64_t others = ~(TM_DFLAGS_M26 | TM_DFLAG(MANDATORY_25_DIGEST) | TM_DFLAG(NAME_ME));
    for (size_t k = 0; k < 2; k++) {
        uint32_t subsets = 1u << __builtin_popcountll(sets[k]);
        for (uint32_t subset = 0; subset < subsets; subset++) {
            uint64_t flags = subset_of(sets[k], subset) | (subset % 2 ? others : 0);
            side s;
            tm_handshake_config config = config_of(TM_HANDSHAKE_ACCEPTOR);
            config.mandatory = sets[k];
            side_init_with(&s, TM_HANDSHAKE_ACCEPTOR, &config);
            message m = message_send_name(flags, PEER_NAME, strlen(PEER_NAME));
            bool legal = subset == subsets - 1;
            assert_int_equal(feed(&s, &m), legal ? TM_HANDSHAKE_NAMED : TM_EPEER_FLAGS);
            if (!legal) {
                expect_out(&s, message_status("not_allowed"));
                assert_int_equal(tm_handshake_missing(&s.hs), sets[k] & ~flags);
            }
            expect_out_end(&s);
            side_fini(&s);
        }
    }
}

static void initiator_demands_flags_of_the_challenge(void **state)
{
    (void)state;
    for (unsigned bit = 0; bit < 64; bit++) {
        uint64_t flag = UINT64_C(1) << bit;
        if (flag == TM_DFLAG(MANDATORY_25_DIGEST)) continue;
        side s;
        drive(&s, TM_HS_I_CHALLENGE, false);
        size_t written = s.out.len;
        uint64_t flags = PEER_FLAGS & ~TM_DFLAG(MANDATORY_25_DIGEST) & ~flag;
        message m = message_challenge(flags, PEER_CHALLENGE, PEER_NAME);
        bool legal = !(TM_DFLAGS_M25 & flag);
        assert_int_equal(feed(&s, &m), legal ? TM_HANDSHAKE_CHALLENGED : TM_EPEER_FLAGS);
        if (!legal) assert_int_equal(s.out.len, written);
        side_fini(&s);
    }
}

static void flags_are_named_in_text(void **state)
{
    (void)state;
    char text[64];
    uint64_t flags = TM_DFLAG(UNLINK_ID) | TM_DFLAG(V4_NC) | UINT64_C(1) << 40;
    size_t len = tm_flags_text(flags, text, sizeof text);
    assert_int_equal(len, strlen(text));
    assert_string_equal(text, "UNLINK_ID, V4_NC, bit 40");
    assert_int_equal(tm_flags_text(flags, text, 12), 11);
    assert_string_equal(text, "UNLINK_ID, ");
    assert_int_equal(tm_flags_text(0, text, sizeof text), 0);
    assert_string_equal(text, "");
}

static void chosen_flags_expand_the_digest_on_both_sides(void **state)
{
    (void)state;
    uint64_t shorthand = TM_DFLAG(MANDATORY_25_DIGEST) | TM_DFLAG(SPAWN);
    assert_int_equal(tm_flags_choose(shorthand, TM_DFLAGS_M25), TM_DFLAGS_M25);
    assert_int_equal(tm_flags_choose(TM_DFLAGS_M25 | TM_DFLAG(SPAWN), shorthand),
                     TM_DFLAGS_M25 | TM_DFLAG(SPAWN));
    assert_int_equal(tm_flags_missing(shorthand, TM_DFLAGS_M25), 0);
}

/* -- names ------------------------------------------------------------------------------------- */

static void bad_name_is_closed_without_a_status(void **state)
{
    (void)state;
    char long_name[257];
    memset(long_name, 'a', sizeof long_name);
    long_name[100] = '@';
    const struct {
        const char *text;
        size_t len;
    } names[] = {
        {"", 0},          {"@", 1},           {"a", 1},
        {"@b", 2},        {"a@", 2},          {"a@b@c", 5},
        {"a@@b", 4},      {"a@b\n", 4},       {"a\0@b", 4},
        {"a@b\0", 4},     {"\x1b[1m@b", 6},   {"a b@c", 5},
        {"a\x7f@b", 4},   {"p\xe9@b", 4},     {"p\xc3\xa9@b", 5},
        {"\xff@b", 3},    {"a\xcc\x81@b", 5}, {long_name, 256},
        {long_name, 257},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        side s;
        drive(&s, TM_HS_A_NAME, false);
        message m = message_send_name(PEER_FLAGS, names[i].text, names[i].len);
        assert_int_equal(feed(&s, &m), TM_EPEER_NAME);
        assert_int_equal(s.out.len, 0);
        assert_false(tm_node_name_valid(tm_bytes_of(names[i].text, names[i].len)));
        side_fini(&s);
    }
    side s;
    drive(&s, TM_HS_A_NAME, false);
    message longest = message_send_name(PEER_FLAGS, long_name, 255);
    assert_int_equal(feed(&s, &longest), TM_HANDSHAKE_NAMED);
    side_fini(&s);
}

static void initiator_refuses_another_node_than_it_dialled(void **state)
{
    (void)state;
    static const char *const names[] = {"a26@127.0.0.1", "a25@127.0.0.", "a25@127.0.0.11", "", "x"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        side s;
        drive(&s, TM_HS_I_CHALLENGE, false);
        size_t written = s.out.len;
        message m = message_challenge(PEER_FLAGS, PEER_CHALLENGE, names[i]);
        assert_int_equal(feed(&s, &m), TM_EPEER_NAME);
        assert_int_equal(s.out.len, written);
        side_fini(&s);
    }
}

static void simultaneous_connect_is_won_by_the_greater_name(void **state)
{
    (void)state;
    const struct {
        tm_bytes ours, peer;
        bool nok;
    } cases[] = {
        {TM_BYTES("b@h"), TM_BYTES("a@h"), true},
        {TM_BYTES("a@h"), TM_BYTES("b@h"), false},
        {TM_BYTES("a@h"), TM_BYTES("a@h"), false},
        {TM_BYTES("a@hh"), TM_BYTES("a@h"), true},
        {TM_BYTES("a@h"), TM_BYTES("a@hh"), false},
        {TM_BYTES("a@h\xc3\xa9"), TM_BYTES("a@hz"), true},
        {TM_BYTES(""), TM_BYTES("a@h"), false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(tm_handshake_simultaneous(cases[i].ours, cases[i].peer),
                         cases[i].nok ? TM_HANDSHAKE_NOK : TM_HANDSHAKE_OK_SIMULTANEOUS);
}

/* -- statuses ---------------------------------------------------------------------------------- */

static void refusals_of_the_peer_have_codes_of_their_own(void **state)
{
    (void)state;
    side s;
    drive(&s, TM_HS_I_STATUS, false);
    assert_int_equal(FEED(&s, message_status("nok")), TM_ECLOSED);
    assert_int_equal(feed_bytes(&s, "x", 1), TM_ECLOSED);
    side_fini(&s);
    drive(&s, TM_HS_I_STATUS, false);
    assert_int_equal(FEED(&s, message_status("not_allowed")), TM_EPEER_REFUSED);
    side_fini(&s);
}

static void refusals_of_ours_are_written_and_end_the_handshake(void **state)
{
    (void)state;
    static const enum tm_handshake_status statuses[] = {TM_HANDSHAKE_NOK, TM_HANDSHAKE_NOT_ALLOWED};
    for (size_t i = 0; i < 2; i++) {
        side s;
        drive(&s, TM_HS_A_ANSWER, false);
        assert_int_equal(tm_handshake_answer(&s.hs, statuses[i], (tm_bytes){0}, &s.out), 0);
        expect_out(&s, message_status(i ? "not_allowed" : "nok"));
        expect_out_end(&s);
        assert_int_equal(feed_bytes(&s, "x", 1), TM_ECLOSED);
        side_fini(&s);
    }
}

static void alive_keeps_the_challenge_until_the_peer_insists(void **state)
{
    (void)state;
    for (int insists = 0; insists < 2; insists++) {
        side s;
        drive(&s, TM_HS_A_ANSWER, false);
        assert_int_equal(answer(&s, TM_HANDSHAKE_ALIVE), 0);
        expect_out(&s, message_status("alive"));
        expect_out_end(&s);
        message m = message_status(insists ? "true" : "false");
        assert_int_equal(feed(&s, &m), insists ? TM_HANDSHAKE_MORE : TM_ECLOSED);
        if (insists) {
            assert_true(s.out.len > s.checked);
            assert_int_equal(FEED(&s, message_reply(COOKIE, 7)), TM_HANDSHAKE_VERIFIED);
        } else {
            expect_out_end(&s);
        }
        side_fini(&s);
    }
}

static void simultaneous_status_goes_on_in_both_roles(void **state)
{
    (void)state;
    side s;
    drive(&s, TM_HS_A_ANSWER, false);
    assert_int_equal(answer(&s, TM_HANDSHAKE_OK_SIMULTANEOUS), 0);
    expect_out(&s, message_status("ok_simultaneous"));
    assert_int_equal(FEED(&s, message_reply(COOKIE, 7)), TM_HANDSHAKE_VERIFIED);
    side_fini(&s);
    drive(&s, TM_HS_I_STATUS, false);
    assert_int_equal(FEED(&s, message_status("ok_simultaneous")), TM_HANDSHAKE_MORE);
    assert_int_equal(FEED(&s, CHALLENGE_MESSAGE), TM_HANDSHAKE_CHALLENGED);
    side_fini(&s);
}

/* -- the old send_name ------------------------------------------------------------------------- */

static void old_send_name_is_completed_by_the_complement(void **state)
{
    (void)state;
    side s;
    drive(&s, TM_HS_A_COMPLEMENT, false);
    message complement = message_complement(0xf); /* NAME_ME means nothing this late */
    assert_int_equal(feed(&s, &complement), TM_HANDSHAKE_MORE);
    assert_int_equal(s.hs.peer_flags, PEER_FLAGS & ~TM_DFLAG(NAME_ME));
    assert_int_equal(s.hs.peer_creation, PEER_CREATION);
    assert_int_equal(FEED(&s, message_reply(COOKIE, 7)), TM_HANDSHAKE_VERIFIED);
    side_fini(&s);
}

static void old_send_name_is_judged_by_low_flags_then_by_all(void **state)
{
    (void)state;
    tm_handshake_config config = config_of(TM_HANDSHAKE_ACCEPTOR);
    config.mandatory = TM_DFLAGS_M26;
    side s;
    side_init_with(&s, TM_HANDSHAKE_ACCEPTOR, &config);
    message lacking = message_send_name_old((uint32_t)TM_DFLAGS_M25, PEER_NAME);
    assert_int_equal(feed(&s, &lacking), TM_EPEER_FLAGS);
    side_fini(&s);
    side_init_with(&s, TM_HANDSHAKE_ACCEPTOR, &config);
    assert_int_equal(FEED(&s, SEND_NAME_OLD), TM_HANDSHAKE_NAMED);
    assert_int_equal(answer(&s, TM_HANDSHAKE_OK), 0);
    message complement = message_complement(1); /* SPAWN, but not V4_NC */
    assert_int_equal(feed(&s, &complement), TM_EPEER_FLAGS);
    side_fini(&s);
}

static void old_send_name_with_a_bad_name_is_refused(void **state)
{
    (void)state;
    side s;
    drive(&s, TM_HS_A_NAME, false);
    message m = message_send_name_old((uint32_t)PEER_FLAGS, "a25");
    assert_int_equal(feed(&s, &m), TM_EPEER_NAME);
    side_fini(&s);
}

/* -- dynamic names ----------------------------------------------------------------------------- */

#define NAME_ME_FLAGS (PEER_FLAGS | TM_DFLAG(NAME_ME))

static void name_request_is_refused_or_named_but_never_plainly_accepted(void **state)
{
    (void)state;
    for (int named = 0; named < 2; named++) {
        side s;
        tm_handshake_config config = config_of(TM_HANDSHAKE_ACCEPTOR);
        config.flags |= TM_DFLAG(PUBLISHED);
        side_init_with(&s, TM_HANDSHAKE_ACCEPTOR, &config);
        message m = message_send_name(NAME_ME_FLAGS, "127.0.0.1", 9);
        assert_int_equal(feed(&s, &m), TM_HANDSHAKE_NAMED);
        assert_true(s.hs.name_me);
        assert_int_equal(answer(&s, TM_HANDSHAKE_OK), TM_EUSE_ARG);
        assert_int_equal(answer(&s, TM_HANDSHAKE_ALIVE), TM_EUSE_ARG);
        tm_bytes given = TM_BYTES("XYZ@127.0.0.1"), cookie = TM_BYTES(COOKIE);
        if (!named) {
            assert_int_equal(answer(&s, TM_HANDSHAKE_NOT_ALLOWED), 0);
            expect_out(&s, message_status("not_allowed"));
            side_fini(&s);
            continue;
        }
        assert_int_equal(tm_handshake_answer_named(&s.hs, TM_BYTES("XYZ"), 1, cookie, &s.out),
                         TM_EUSE_NAME);
        assert_int_equal(tm_handshake_answer_named(&s.hs, given, 1, (tm_bytes){0}, &s.out),
                         TM_EUSE_ARG);
        assert_int_equal(tm_handshake_answer_named(&s.hs, given, 0x79cbe3d8, cookie, &s.out), 0);
        expect_out(&s, message_named("XYZ@127.0.0.1"));
        uint64_t flags = tm_load_u64(s.out.ptr + s.checked + 3);
        assert_true(flags & TM_DFLAG(NAME_ME));
        assert_false(flags & TM_DFLAG(PUBLISHED));
        assert_int_equal(FEED(&s, message_reply(COOKIE, 7)), TM_HANDSHAKE_VERIFIED);
        assert_false(tm_handshake_flags(&s.hs) & TM_DFLAG(PUBLISHED));
        assert_true(tm_bytes_equal(tm_handshake_peer_name(&s.hs), given));
        side_fini(&s);
    }
}

static void name_request_with_a_whole_name_is_closed(void **state)
{
    (void)state;
    side s;
    drive(&s, TM_HS_A_NAME, false);
    message m = message_send_name(NAME_ME_FLAGS, PEER_NAME, strlen(PEER_NAME));
    assert_int_equal(feed(&s, &m), TM_EPEER_NAME);
    assert_int_equal(s.out.len, 0);
    side_fini(&s);
}

static void name_is_given_only_to_who_asked(void **state)
{
    (void)state;
    side s;
    drive(&s, TM_HS_A_ANSWER, false);
    assert_int_equal(tm_handshake_answer_named(&s.hs, TM_BYTES("x@y"), 1, TM_BYTES(COOKIE), &s.out),
                     TM_EUSE_ARG);
    side_fini(&s);
    drive(&s, TM_HS_A_REPLY, false);
    assert_int_equal(tm_handshake_answer_named(&s.hs, TM_BYTES("x@y"), 1, TM_BYTES(COOKIE), &s.out),
                     TM_EUSE_STATE);
    side_fini(&s);
    drive(&s, TM_HS_I_STATUS, false);
    assert_int_equal(FEED(&s, message_named("x@y")), TM_EPEER_MALFORMED);
    side_fini(&s);
    static const char *const statuses[] = {"ok", "ok_simultaneous", "alive"};
    for (size_t i = 0; i < 3; i++) { /* asked, but nothing was given */
        drive(&s, TM_HS_I_STATUS, true);
        message m = message_status(statuses[i]);
        assert_int_equal(feed(&s, &m), TM_EPEER_MALFORMED);
        side_fini(&s);
    }
    drive(&s, TM_HS_I_STATUS, true);
    assert_int_equal(FEED(&s, message_named("no-host")), TM_EPEER_NAME);
    side_fini(&s);
}

/* -- sizes ------------------------------------------------------------------------------------- */

static void message_over_its_limit_is_refused_by_its_length_alone(void **state)
{
    (void)state;
    const struct {
        enum tm_handshake_state state;
        uint16_t max;
    } limits[] = {{TM_HS_I_STATUS, 600},    {TM_HS_I_CHALLENGE, 1100}, {TM_HS_I_ACK, 21},
                  {TM_HS_A_NAME, 1100},     {TM_HS_A_ALIVE, 600},      {TM_HS_A_ALIVE_OLD, 600},
                  {TM_HS_A_COMPLEMENT, 21}, {TM_HS_A_REPLY, 21}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        for (int over = 0; over < 2; over++) {
            side s;
            drive(&s, limits[i].state, false);
            uint8_t prefix[2];
            tm_store_u16(prefix, (uint16_t)(limits[i].max + over));
            assert_int_equal(feed_bytes(&s, prefix, 2), over ? TM_EPEER_LIMIT : TM_HANDSHAKE_MORE);
            side_fini(&s);
            drive(&s, limits[i].state, false);
            assert_int_equal(feed_bytes(&s, "\0\0", 2), TM_EPEER_MALFORMED);
            side_fini(&s);
        }
}

/* A message cut anywhere is malformed; bytes after names are ignored, after digests they are
 * not. */
static void message_of_another_size_than_its_fields_is_judged(void **state)
{
    (void)state;
    const struct {
        enum tm_handshake_state state;
        message m;
        bool grows;
    } cases[] = {
        {TM_HS_A_NAME, SEND_NAME, true},
        {TM_HS_I_CHALLENGE, CHALLENGE_MESSAGE, true},
        {TM_HS_I_STATUS, message_named("XYZ@127.0.0.1"), true},
        {TM_HS_A_COMPLEMENT, message_complement(0xd), false},
        {TM_HS_A_REPLY, message_reply(COOKIE, PEER_CHALLENGE), false},
        {TM_HS_I_ACK, message_ack(COOKIE), false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t len = 3; len <= cases[i].m.len + 3; len++) {
            side s;
            drive(&s, cases[i].state, cases[i].state == TM_HS_I_STATUS);
            message m = cases[i].m;
            m.len = len;
            message_end(&m);
            int rc = feed(&s, &m);
            if (len == cases[i].m.len || (len > cases[i].m.len && cases[i].grows))
                assert_true(rc >= 0);
            else
                assert_true(rc == TM_EPEER_MALFORMED || rc == TM_EPEER_LIMIT);
            side_fini(&s);
        }
}

static void one_name_field_cannot_reach_past_its_message(void **state)
{
    (void)state;
    side s;
    drive(&s, TM_HS_A_NAME, false);
    message m = SEND_NAME;
    m.bytes[16] = 0xff; /* the low byte of the name's length */
    assert_int_equal(feed(&s, &m), TM_EPEER_MALFORMED);
    assert_string_equal(s.hs.fault.what, "a message is shorter than its fields");
    side_fini(&s);
}

#define TEST(name) cmocka_unit_test(name)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_subset_of_mandatory_flags_is_judged),
        TEST(initiator_demands_flags_of_the_challenge),
        TEST(flags_are_named_in_text),
        TEST(chosen_flags_expand_the_digest_on_both_sides),
        TEST(bad_name_is_closed_without_a_status),
        TEST(initiator_refuses_another_node_than_it_dialled),
        TEST(simultaneous_connect_is_won_by_the_greater_name),
        TEST(refusals_of_the_peer_have_codes_of_their_own),
        TEST(refusals_of_ours_are_written_and_end_the_handshake),
        TEST(alive_keeps_the_challenge_until_the_peer_insists),
        TEST(simultaneous_status_goes_on_in_both_roles),
        TEST(old_send_name_is_completed_by_the_complement),
        TEST(old_send_name_is_judged_by_low_flags_then_by_all),
        TEST(old_send_name_with_a_bad_name_is_refused),
        TEST(name_request_is_refused_or_named_but_never_plainly_accepted),
        TEST(name_request_with_a_whole_name_is_closed),
        TEST(name_is_given_only_to_who_asked),
        TEST(message_over_its_limit_is_refused_by_its_length_alone),
        TEST(message_of_another_size_than_its_fields_is_judged),
        TEST(one_name_field_cannot_reach_past_its_message),
    };
    return cmocka_run_group_tests_name("handshake messages", tests, NULL, NULL);
}
