#include "handshake_test.h"

/* -- captured handshakes ----------------------------------------------------------------------- */

/* Feeds the "<-" lines in pieces of step bytes and compares what is written with the "->" lines. */
static void play(side *s, const char *section, size_t step)
{
    test_line lines[8];
    size_t count = test_section("handshake.txt", section, lines, 8);
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(lines[i].key, "->")) {
            expect_out(s, message_raw(lines[i].bytes + 2, lines[i].len - 2));
            continue;
        }
        for (size_t at = 0; at < lines[i].len; at += step) {
            size_t len = lines[i].len - at < step ? lines[i].len - at : step;
            int event = feed_bytes(s, lines[i].bytes + at, len);
            assert_true(event >= 0);
            assert_true(at + len == lines[i].len || event == TM_HANDSHAKE_MORE);
            if (event == TM_HANDSHAKE_NAMED) assert_int_equal(answer(s, TM_HANDSHAKE_OK), 0);
            if (event == TM_HANDSHAKE_VERIFIED)
                assert_int_equal(tm_handshake_accept(&s->hs, &s->out), 0);
        }
    }
    expect_out_end(s);
}

static void captured_initiator_plays_in_pieces_of_any_size(void **state)
{
    (void)state;
    for (size_t step = 1; step <= 40; step++) {
        side s;
        tm_handshake_config config = config_of(TM_HANDSHAKE_INITIATOR);
        config.flags = UINT64_C(0xd07df7fbc);
        side_init_with(&s, TM_HANDSHAKE_INITIATOR, &config);
        assert_int_equal(tm_handshake_start(&s.hs, &s.out), 0);
        play(&s, "initiator, OTP 25.2.3", step);
        assert_int_equal(s.hs.state, TM_HS_CONNECTED);
        assert_int_equal(s.hs.peer_creation, PEER_CREATION);
        assert_int_equal(s.hs.peer_flags, PEER_FLAGS);
        assert_int_equal(tm_handshake_flags(&s.hs), UINT64_C(0xd07df7fbc));
        assert_true(cookie_wiped(&s));
        side_fini(&s);
    }
}

static void captured_acceptor_plays_in_pieces_of_any_size(void **state)
{
    (void)state;
    for (size_t step = 1; step <= 40; step++) {
        side s;
        tm_handshake_config config = config_of(TM_HANDSHAKE_ACCEPTOR);
        config.flags = UINT64_C(0xd07df7fbc);
        config.creation = 0x6b026bd3;
        config.challenge = 0x0a0b0c0d;
        side_init_with(&s, TM_HANDSHAKE_ACCEPTOR, &config);
        play(&s, "acceptor, OTP 28.5", step);
        assert_int_equal(s.hs.state, TM_HS_CONNECTED);
        assert_true(tm_bytes_equal(tm_handshake_peer_name(&s.hs), TM_BYTES("a28@127.0.0.1")));
        assert_int_equal(s.hs.peer_creation, 0x6b0266a4);
        assert_true(cookie_wiped(&s));
        side_fini(&s);
    }
}

static void captured_dynamic_name_is_taken_over(void **state)
{
    (void)state;
    side s;
    tm_handshake_config config = config_of(TM_HANDSHAKE_INITIATOR);
    config.flags = UINT64_C(0xf07df7fbd);
    config.creation = 0;
    config.name = TM_BYTES("127.0.0.1");
    side_init_with(&s, TM_HANDSHAKE_INITIATOR, &config);
    assert_int_equal(tm_handshake_start(&s.hs, &s.out), 0);
    play(&s, "dynamic name, OTP 25.2.3", 3);
    message challenge = message_challenge(UINT64_C(0xf07df7fbc), PEER_CHALLENGE, PEER_NAME);
    assert_int_equal(feed(&s, &challenge), TM_HANDSHAKE_CHALLENGED);
    assert_int_equal(FEED(&s, message_ack(COOKIE)), TM_HANDSHAKE_CONNECTED);
    assert_true(tm_bytes_equal(tm_handshake_name(&s.hs), TM_BYTES("3MUPW6S5A0R5O@127.0.0.1")));
    assert_int_equal(s.hs.creation, 0x79cbe3d8);
    assert_false(tm_handshake_flags(&s.hs) & TM_DFLAG(PUBLISHED));
    side_fini(&s);
}

static void captured_alive_is_answered_as_configured(void **state)
{
    (void)state;
    for (int insist = 0; insist < 2; insist++) {
        side s;
        tm_handshake_config config = config_of(TM_HANDSHAKE_INITIATOR);
        config.insist = insist;
        side_init_with(&s, TM_HANDSHAKE_INITIATOR, &config);
        assert_int_equal(tm_handshake_start(&s.hs, &s.out), 0);
        s.checked = s.out.len;
        if (insist) {
            play(&s, "alive", 100);
            assert_int_equal(s.hs.state, TM_HS_I_CHALLENGE);
        } else {
            message alive = message_status("alive");
            assert_int_equal(feed(&s, &alive), TM_EPEER_REFUSED);
            test_line lines[2];
            test_section("handshake.txt", "alive, not insisting", lines, 2);
            expect_out(&s, message_raw(lines[1].bytes + 2, lines[1].len - 2));
        }
        expect_out_end(&s);
        side_fini(&s);
    }
}

static void captured_flag_sets_are_let_in_as_by_each_release(void **state)
{
    (void)state;
    test_line lines[8];
    size_t count = test_section("handshake.txt", "flag sets that OTP 28.5 lets in", lines, 8);
    for (size_t i = 0; i < 2 * count; i++) {
        const test_line *line = &lines[i / 2];
        bool newest = i % 2; /* demand what OTP 26 and later do */
        side s;
        tm_handshake_config config = config_of(TM_HANDSHAKE_ACCEPTOR);
        config.mandatory = newest ? TM_DFLAGS_M26 : 0;
        side_init_with(&s, TM_HANDSHAKE_ACCEPTOR, &config);
        message m = message_send_name(tm_load_u64(line->bytes), PEER_NAME, strlen(PEER_NAME));
        bool legal = !newest || !strcmp(line->key, "ok");
        assert_int_equal(feed(&s, &m), legal ? TM_HANDSHAKE_NAMED : TM_EPEER_FLAGS);
        side_fini(&s);
    }
}

/* -- the state table --------------------------------------------------------------------------- */

static message message_for(enum tm_handshake_state state, enum tm_handshake_input input)
{
    switch (input) {
    case TM_HS_IN_NAME: return state == TM_HS_I_CHALLENGE ? CHALLENGE_MESSAGE : SEND_NAME;
    case TM_HS_IN_NAME_OLD: return SEND_NAME_OLD;
    case TM_HS_IN_OK: return message_status("ok");
    case TM_HS_IN_OK_SIMULTANEOUS: return message_status("ok_simultaneous");
    case TM_HS_IN_NOK: return message_status("nok");
    case TM_HS_IN_NOT_ALLOWED: return message_status("not_allowed");
    case TM_HS_IN_ALIVE: return message_status("alive");
    case TM_HS_IN_NAMED: return message_named("XYZ@127.0.0.1");
    case TM_HS_IN_TRUE: return message_status("true");
    case TM_HS_IN_FALSE: return message_status("false");
    case TM_HS_IN_COMPLEMENT: return message_complement((uint32_t)(PEER_FLAGS >> 32));
    case TM_HS_IN_REPLY: return message_reply(COOKIE, PEER_CHALLENGE);
    case TM_HS_IN_ACK: return message_ack(COOKIE);
    default: return message_status("okay");
    }
}

static int call_for(side *s, enum tm_handshake_input input)
{
    switch (input) {
    case TM_HS_CALL_START: return tm_handshake_start(&s->hs, &s->out);
    case TM_HS_CALL_CONTINUE: return answer(s, TM_HANDSHAKE_OK);
    case TM_HS_CALL_ALIVE: return answer(s, TM_HANDSHAKE_ALIVE);
    case TM_HS_CALL_REFUSE: return answer(s, TM_HANDSHAKE_NOT_ALLOWED);
    default: return tm_handshake_accept(&s->hs, &s->out);
    }
}

/* What feed answers while no message is awaited; -1 where one is. */
static int waiting_answer(enum tm_handshake_state state)
{
    switch (state) {
    case TM_HS_NONE:
    case TM_HS_I_START: return TM_EUSE_STATE;
    case TM_HS_A_ANSWER:
    case TM_HS_A_ANSWER_OLD: return TM_HANDSHAKE_NAMED;
    case TM_HS_A_CLAIM: return TM_HANDSHAKE_VERIFIED;
    case TM_HS_CONNECTED: return TM_HANDSHAKE_CONNECTED;
    case TM_HS_FAILED: return TM_EPEER_MALFORMED; /* as drive made it fail */
    default: return -1;
    }
}

static void check_message(enum tm_handshake_state state, enum tm_handshake_input input)
{
    side s;
    drive(&s, state, state == TM_HS_I_STATUS && input == TM_HS_IN_NAMED);
    enum tm_handshake_state next = tm_handshake_next(state, input);
    int waiting = waiting_answer(state);
    message m = message_for(state, input);
    int rc = feed(&s, &m);
    if (waiting != -1) {
        assert_int_equal(next, TM_HS_NONE);
        assert_int_equal(rc, waiting);
        assert_int_equal(s.hs.state, state);
    } else if (next ==
               TM_HS_NONE) { /* where only digests are awaited, a name is too long already */
        bool digest_only =
            state == TM_HS_I_ACK || state == TM_HS_A_COMPLEMENT || state == TM_HS_A_REPLY;
        bool too_long = digest_only && m.len > 2 + TM_HANDSHAKE_DIGEST_BYTES_MAX;
        assert_int_equal(rc, too_long ? TM_EPEER_LIMIT : TM_EPEER_MALFORMED);
        assert_non_null(s.hs.fault.what);
        assert_int_equal(s.hs.state, TM_HS_FAILED);
    } else {
        assert_int_equal(s.hs.state, next);
        assert_true(next == TM_HS_FAILED ? rc < 0 : rc >= 0);
    }
    if (s.hs.state == TM_HS_FAILED) assert_true(cookie_wiped(&s));
    side_fini(&s);
}

static void check_call(enum tm_handshake_state state, enum tm_handshake_input input)
{
    side s;
    drive(&s, state, false);
    enum tm_handshake_state next = tm_handshake_next(state, input);
    size_t written = s.out.len;
    int rc = call_for(&s, input);
    if (next == TM_HS_NONE) {
        assert_int_equal(rc, TM_EUSE_STATE);
        assert_int_equal(s.hs.state, state);
        assert_int_equal(s.out.len, written);
    } else {
        assert_int_equal(rc, 0);
        assert_int_equal(s.hs.state, next);
        assert_true(s.out.len > written);
    }
    if (s.hs.state == TM_HS_FAILED) assert_true(cookie_wiped(&s));
    side_fini(&s);
}

static void every_pair_of_state_and_input_does_what_the_table_says(void **state)
{
    (void)state;
    size_t legal = 0;
    for (int st = TM_HS_NONE; st < TM_HS_STATE_COUNT; st++)
        for (int in = 0; in < TM_HS_INPUT_COUNT; in++) {
            legal += tm_handshake_next((enum tm_handshake_state)st, (enum tm_handshake_input)in) !=
                     TM_HS_NONE;
            if (in < TM_HS_CALL_START)
                check_message((enum tm_handshake_state)st, (enum tm_handshake_input)in);
            else
                check_call((enum tm_handshake_state)st, (enum tm_handshake_input)in);
        }
    assert_int_equal(legal, 24);
}

static void every_state_and_input_has_a_name_of_its_own(void **state)
{
    (void)state;
    for (int i = 0; i < TM_HS_STATE_COUNT; i++) {
        const char *name = tm_handshake_state_name((enum tm_handshake_state)i);
        assert_true(*name);
        for (int j = 0; j < i; j++)
            assert_string_not_equal(name, tm_handshake_state_name((enum tm_handshake_state)j));
    }
    for (int i = 0; i < TM_HS_INPUT_COUNT; i++)
        assert_true(*tm_handshake_input_name((enum tm_handshake_input)i));
}

/* -- secrets ----------------------------------------------------------------------------------- */

static void digest_with_any_wrong_bit_is_refused(void **state)
{
    (void)state;
    for (size_t bit = 0; bit < 8 * TM_MD5_SIZE; bit++) {
        side s;
        drive(&s, TM_HS_A_REPLY, false);
        message reply = message_reply(COOKIE, PEER_CHALLENGE);
        reply.bytes[7 + bit / 8] ^= (uint8_t)(1 << bit % 8);
        size_t written = s.out.len;
        assert_int_equal(feed(&s, &reply), TM_EPEER_COOKIE);
        assert_int_equal(s.out.len, written);
        assert_int_equal(tm_handshake_accept(&s.hs, &s.out), TM_EUSE_STATE);
        assert_true(cookie_wiped(&s));
        side_fini(&s);
        drive(&s, TM_HS_I_ACK, false);
        message ack = message_ack(COOKIE);
        ack.bytes[3 + bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_equal(feed(&s, &ack), TM_EPEER_COOKIE);
        side_fini(&s);
    }
}

static void wrong_cookie_is_refused_in_both_roles(void **state)
{
    (void)state;
    side s;
    drive(&s, TM_HS_A_REPLY, false);
    assert_int_equal(FEED(&s, message_reply("vec1", PEER_CHALLENGE)), TM_EPEER_COOKIE);
    side_fini(&s);
    drive(&s, TM_HS_I_ACK, false);
    assert_int_equal(FEED(&s, message_ack("ve")), TM_EPEER_COOKIE);
    side_fini(&s);
}

static void own_challenge_is_refused_in_both_roles(void **state)
{
    (void)state;
    side s;
    drive(&s, TM_HS_A_REPLY, false);
    assert_int_equal(FEED(&s, message_reply(COOKIE, CHALLENGE)), TM_EPEER_REFLECTED);
    side_fini(&s);
    drive(&s, TM_HS_I_CHALLENGE, false);
    size_t written = s.out.len;
    message m = message_challenge(PEER_FLAGS, CHALLENGE, PEER_NAME);
    assert_int_equal(feed(&s, &m), TM_EPEER_REFLECTED);
    assert_int_equal(s.out.len, written); /* no digest of it has left */
    side_fini(&s);
}

static void challenges_are_told_before_the_answer_is_sent(void **state)
{
    (void)state;
    side s;
    drive(&s, TM_HS_I_ACK, false);
    assert_int_equal(tm_handshake_challenge(&s.hs), CHALLENGE);
    assert_int_equal(tm_handshake_peer_challenge(&s.hs), PEER_CHALLENGE);
    side_fini(&s);
    drive(&s, TM_HS_A_CLAIM, false);
    assert_int_equal(tm_handshake_peer_challenge(&s.hs), PEER_CHALLENGE);
    side_fini(&s);
}

static void fini_leaves_nothing_of_the_secret(void **state)
{
    (void)state;
    side s;
    drive(&s, TM_HS_A_REPLY, false);
    assert_memory_equal(s.hs.cookie, COOKIE, strlen(COOKIE));
    tm_handshake_fini(&s.hs);
    assert_true(all_zero(&s.hs, sizeof s.hs));
    side_fini(&s);
}

/* -- the end of the handshake ------------------------------------------------------------------ */

/* The ack and the first frames may come in one segment, cut anywhere. */
static void bytes_after_the_ack_stay_in_the_input(void **state)
{
    (void)state;
    message ack = message_ack(COOKIE);
    uint8_t stream[64];
    memcpy(stream, ack.bytes, ack.len);
    memcpy(stream + ack.len, "\0\0\0\0\0\0\0\3abc", 11);
    size_t total = ack.len + 11;
    for (size_t cut = 0; cut <= total; cut++) {
        side s;
        drive(&s, TM_HS_I_ACK, false);
        tm_bytes input = tm_bytes_of(stream, cut);
        int event = tm_handshake_feed(&s.hs, &input, &s.out);
        assert_int_equal(event, cut < ack.len ? TM_HANDSHAKE_MORE : TM_HANDSHAKE_CONNECTED);
        if (cut < ack.len) {
            assert_int_equal(input.len, 0);
            input = tm_bytes_of(stream + cut, total - cut);
            assert_int_equal(tm_handshake_feed(&s.hs, &input, &s.out), TM_HANDSHAKE_CONNECTED);
        } else {
            assert_int_equal(input.len, cut - ack.len);
        }
        assert_ptr_equal(input.ptr, stream + ack.len);
        side_fini(&s);
    }
}

/* Moves what one side wrote to the other in pieces of random size. */
static void exchange(side *from, side *to, uint64_t *seed)
{
    while (from->checked < from->out.len) {
        size_t left = from->out.len - from->checked;
        size_t take = 1 + test_random(seed) % left;
        tm_bytes input = tm_bytes_of(from->out.ptr + from->checked, take);
        from->checked += take;
        do {
            int event = tm_handshake_feed(&to->hs, &input, &to->out);
            assert_true(event >= 0);
            if (event == TM_HANDSHAKE_NAMED) assert_int_equal(answer(to, TM_HANDSHAKE_OK), 0);
            if (event == TM_HANDSHAKE_VERIFIED)
                assert_int_equal(tm_handshake_accept(&to->hs, &to->out), 0);
        } while (input.len);
    }
}

static void both_roles_shake_hands_with_each_other(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 200; seed++) {
        uint64_t random = seed;
        side a, b;
        side_init(&a, TM_HANDSHAKE_INITIATOR);
        tm_handshake_config config = config_of(TM_HANDSHAKE_ACCEPTOR);
        config.name = TM_BYTES(PEER_NAME);
        config.challenge = (uint32_t)test_random(&random);
        config.creation = PEER_CREATION;
        side_init_with(&b, TM_HANDSHAKE_ACCEPTOR, &config);
        assert_int_equal(tm_handshake_start(&a.hs, &a.out), 0);
        for (int round = 0; round < 3; round++) {
            exchange(&a, &b, &random);
            exchange(&b, &a, &random);
        }
        assert_int_equal(a.hs.state, TM_HS_CONNECTED);
        assert_int_equal(b.hs.state, TM_HS_CONNECTED);
        assert_int_equal(tm_handshake_flags(&a.hs), tm_handshake_flags(&b.hs));
        assert_int_equal(b.hs.peer_creation, CREATION);
        side_fini(&a);
        side_fini(&b);
    }
}

/* -- our own mistakes and memory --------------------------------------------------------------- */

static void init_refuses_what_could_not_be_said(void **state)
{
    (void)state;
    tm_handshake hs;
    char cookie[257] = {0};
    memset(cookie, 'c', 256);
    tm_handshake_config config = config_of(TM_HANDSHAKE_INITIATOR);
    config.name = TM_BYTES("py");
    assert_int_equal(tm_handshake_init(&hs, TM_HANDSHAKE_INITIATOR, &config), TM_EUSE_NAME);
    config = config_of(TM_HANDSHAKE_INITIATOR);
    config.expected_name = TM_BYTES("a b@c");
    assert_int_equal(tm_handshake_init(&hs, TM_HANDSHAKE_INITIATOR, &config), TM_EUSE_NAME);
    config = config_of(TM_HANDSHAKE_INITIATOR);
    config.flags |= TM_DFLAG(NAME_ME); /* with a whole name */
    assert_int_equal(tm_handshake_init(&hs, TM_HANDSHAKE_INITIATOR, &config), TM_EUSE_NAME);
    config = config_of(TM_HANDSHAKE_INITIATOR);
    config.cookie = (tm_bytes){0};
    assert_int_equal(tm_handshake_init(&hs, TM_HANDSHAKE_INITIATOR, &config), TM_EUSE_ARG);
    config.cookie = tm_bytes_of(cookie, 256);
    assert_int_equal(tm_handshake_init(&hs, TM_HANDSHAKE_INITIATOR, &config), TM_EUSE_ARG);
    config.cookie = tm_bytes_of(cookie, 255);
    assert_int_equal(tm_handshake_init(&hs, TM_HANDSHAKE_INITIATOR, &config), 0);
    tm_handshake_fini(&hs);
}

static void answer_refuses_a_status_or_cookie_that_is_none(void **state)
{
    (void)state;
    side s;
    drive(&s, TM_HS_A_ANSWER, false);
    assert_int_equal(answer(&s, (enum tm_handshake_status)99), TM_EUSE_ARG);
    assert_int_equal(tm_handshake_answer(&s.hs, TM_HANDSHAKE_OK, (tm_bytes){0}, &s.out),
                     TM_EUSE_ARG);
    assert_int_equal(s.out.len, 0);
    assert_int_equal(answer(&s, TM_HANDSHAKE_OK), 0); /* still possible */
    side_fini(&s);
}

/* Whatever we write, a full buffer or no memory ends the handshake and nothing else. */
static void no_room_for_our_messages_ends_the_handshake(void **state)
{
    (void)state;
    const struct {
        enum tm_handshake_state state;
        enum tm_handshake_input input;
    } cases[] = {
        {TM_HS_I_START, TM_HS_CALL_START},  {TM_HS_I_STATUS, TM_HS_IN_ALIVE},
        {TM_HS_I_CHALLENGE, TM_HS_IN_NAME}, {TM_HS_A_ANSWER, TM_HS_CALL_CONTINUE},
        {TM_HS_A_ANSWER, TM_HS_CALL_ALIVE}, {TM_HS_A_ANSWER, TM_HS_CALL_REFUSE},
        {TM_HS_A_ALIVE, TM_HS_IN_TRUE},     {TM_HS_A_CLAIM, TM_HS_CALL_ACCEPT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        side s;
        drive(&s, cases[i].state, false);
        tm_buf_fini(&s.out);
        s.memory.fail_after = 0;
        message m = message_for(cases[i].state, cases[i].input);
        int rc = cases[i].input < TM_HS_CALL_START ? feed(&s, &m) : call_for(&s, cases[i].input);
        assert_int_equal(rc, TM_ENOMEM);
        assert_int_equal(s.hs.state, TM_HS_FAILED);
        assert_int_equal(feed_bytes(&s, "x", 1), TM_ENOMEM);
        assert_true(cookie_wiped(&s));
        side_fini(&s);
    }
    side s; /* the status fits, the challenge does not */
    drive(&s, TM_HS_A_ANSWER, false);
    s.out.max = 8;
    assert_int_equal(answer(&s, TM_HANDSHAKE_OK), TM_EUSE_LIMIT);
    side_fini(&s);
    drive(&s, TM_HS_A_NAME, false);
    s.out.max = 8;
    message lacking = message_send_name(0, PEER_NAME, strlen(PEER_NAME));
    assert_int_equal(feed(&s, &lacking), TM_EUSE_LIMIT);
    side_fini(&s);
}

#define TEST(name) cmocka_unit_test(name)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(captured_initiator_plays_in_pieces_of_any_size),
        TEST(captured_acceptor_plays_in_pieces_of_any_size),
        TEST(captured_dynamic_name_is_taken_over),
        TEST(captured_alive_is_answered_as_configured),
        TEST(captured_flag_sets_are_let_in_as_by_each_release),
        TEST(every_pair_of_state_and_input_does_what_the_table_says),
        TEST(every_state_and_input_has_a_name_of_its_own),
        TEST(digest_with_any_wrong_bit_is_refused),
        TEST(wrong_cookie_is_refused_in_both_roles),
        TEST(own_challenge_is_refused_in_both_roles),
        TEST(challenges_are_told_before_the_answer_is_sent),
        TEST(fini_leaves_nothing_of_the_secret),
        TEST(bytes_after_the_ack_stay_in_the_input),
        TEST(both_roles_shake_hands_with_each_other),
        TEST(init_refuses_what_could_not_be_said),
        TEST(answer_refuses_a_status_or_cookie_that_is_none),
        TEST(no_room_for_our_messages_ends_the_handshake),
    };
    return cmocka_run_group_tests_name("handshake", tests, NULL, NULL);
}
