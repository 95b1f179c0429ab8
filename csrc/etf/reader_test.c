/* The checked readers: what they take, and that they leave the cursor alone otherwise. */
#include "testing.h"

typedef int (*read_fn)(tm_cursor *c);

static tm_atom atom;
static tm_bytes text;
static uint8_t scratch[TM_ATOM_BYTES_MAX];
static tm_pid pid;
static tm_ref ref;
static uint64_t u64;
static int64_t i64;
static uint32_t count;
static test_heap heap;

static int read_atom(tm_cursor *c) { return tm_etf_read_atom(c, &atom); }
static int read_text(tm_cursor *c) { return tm_etf_read_atom_utf8(c, scratch, &text); }
static const tm_bytes frame_atoms[] = {{(const uint8_t *)"ok", 2}, {(const uint8_t *)"a@b", 3}};
static const tm_walk_limits frame = {.cache_refs = 2, .cache_atoms = frame_atoms};
static int read_text_in(tm_cursor *c)
{
    return tm_etf_read_atom_utf8_in(c, &frame, scratch, &text);
}
static int read_pid_in(tm_cursor *c) { return tm_etf_read_pid_in(c, &frame, &pid); }
static int read_ref_in(tm_cursor *c) { return tm_etf_read_ref_in(c, &frame, &ref); }
static int read_pid(tm_cursor *c) { return tm_etf_read_pid(c, &pid); }
static int read_ref(tm_cursor *c) { return tm_etf_read_ref(c, &ref); }
static int read_u64(tm_cursor *c) { return tm_etf_read_u64(c, &u64); }
static int read_i64(tm_cursor *c) { return tm_etf_read_i64(c, &i64); }
static int read_tuple(tm_cursor *c) { return tm_etf_read_tuple(c, &count); }
static int read_list(tm_cursor *c) { return tm_etf_read_list(c, &count); }

/* Kept until the next one, since what is read borrows from it. */
static tm_bytes input;

static int forget(void **state)
{
    (void)state;
    if (input.ptr) test_release(input);
    input = (tm_bytes){NULL, 0};
    return 0;
}

static tm_cursor feed(const char *hex)
{
    forget(NULL);
    input = test_hex(hex);
    return tm_cursor_of(input);
}

/* Reads hex up to its last left bytes; every shorter input wants more. */
static void reads(read_fn read, const char *hex, size_t left)
{
    tm_cursor c = feed(hex);
    for (size_t len = 0; len + left < input.len; len++) {
        tm_bytes part = test_copy((tm_bytes){input.ptr, len});
        tm_cursor cut = tm_cursor_of(part);
        assert_int_equal(read(&cut), TM_NEED_DATA);
        assert_ptr_equal(cut.ptr, part.ptr);
        test_release(part);
    }
    assert_int_equal(read(&c), 0);
    assert_int_equal(tm_cursor_left(&c), left);
}

static void answers(read_fn read, const char *hex, int expected)
{
    tm_cursor c = feed(hex);
    int rc = read(&c);
    if (rc != expected) print_error("%s: %d\n", hex, rc);
    assert_int_equal(rc, expected);
    assert_ptr_equal(c.ptr, input.ptr);
}

static void refuses(read_fn read, const char *hex) { answers(read, hex, TM_EPEER_MALFORMED); }

static void text_is(tm_bytes bytes, const char *expected)
{
    assert_true(tm_bytes_equal(bytes, tm_bytes_of(expected, strlen(expected))));
}

/* -- atoms ------------------------------------------------------------------------------------- */

static void read_atom_takes_every_encoding(void **state)
{
    (void)state;
    reads(read_atom, "7702 6f6b", 0);
    text_is(atom.text, "ok");
    reads(read_atom, "76 0002 6f6b", 0);
    text_is(atom.text, "ok");
    reads(read_atom, "64 0002 6f6b", 0);
    text_is(atom.text, "ok");
    assert_false(atom.latin1);
    reads(read_atom, "73 02 6f6b", 0);
    text_is(atom.text, "ok");
    reads(read_atom, "7702 c3a9", 0);
    text_is(atom.text, "\xc3\xa9");
    assert_false(atom.latin1);
    reads(read_atom, "64 0001 e9", 0);
    text_is(atom.text, "\xe9");
    assert_true(atom.latin1);
    reads(read_atom, "7700", 0);
    assert_int_equal(atom.text.len, 0);
    reads(read_atom, "77ff (255)61", 0);
    assert_int_equal(atom.text.len, 255);
}

static void read_atom_leaves_what_follows(void **state)
{
    (void)state;
    tm_cursor c = feed("7702 6f6b 7703 616263");
    assert_int_equal(read_atom(&c), 0);
    assert_int_equal(tm_cursor_left(&c), 5);
    assert_int_equal(read_atom(&c), 0);
    text_is(atom.text, "abc");
}

static void read_atom_refuses_other_terms_and_bad_text(void **state)
{
    (void)state;
    refuses(read_atom, "6101");
    refuses(read_atom, "7702 c080");
    refuses(read_atom, "64 0100 (256)61");
    refuses(read_atom, "76 03fd (1021)61");
    refuses(read_atom, "5200");
    refuses(read_text, "7701ff");
}

static void read_atom_utf8_transcodes_latin1(void **state)
{
    (void)state;
    reads(read_text, "7702 6f6b", 0);
    text_is(text, "ok");
    reads(read_text, "64 0003 61e9ff", 0);
    text_is(text, "a\xc3\xa9\xc3\xbf");
    reads(read_text, "73ff (255)e9", 0);
    assert_int_equal(text.len, 510);
    size_t chars;
    assert_true(tm_utf8_valid(text, &chars));
    assert_int_equal(chars, 255);
}

/* -- identifiers ------------------------------------------------------------------------------- */

static void read_pid_takes_both_encodings(void **state)
{
    (void)state;
    reads(read_pid, "58 7703614062 00000001 00000002 80000003", 0);
    text_is(pid.node, "a@b");
    assert_int_equal(pid.id, 1);
    assert_int_equal(pid.serial, 2);
    assert_int_equal(pid.creation, 0x80000003);
    tm_pid same = pid;
    assert_true(tm_pid_equal(&same, &pid));
    reads(read_pid, "67 640003614062 00000001 00000002 03", 0);
    assert_int_equal(pid.creation, 3);
    same = pid;
    same.creation = 2;
    assert_false(tm_pid_equal(&same, &pid));
}

static void read_pid_refuses_what_is_none(void **state)
{
    (void)state;
    refuses(read_pid, "7701 61");
    refuses(read_pid, "58 6101 (12)00");
    refuses(read_pid, "67 770161 (8)00 04");
    refuses(read_pid, "58 5200 (12)00");
    refuses(read_pid, "58 7701e9 (12)00");
    refuses(read_pid, "58 7301e9 (12)00"); /* Latin-1, which cannot be borrowed as UTF-8 */
}

static void read_ref_takes_every_encoding(void **state)
{
    (void)state;
    reads(read_ref, "5a 0003 7703614062 00000009 00000001 00000002 00000003", 0);
    text_is(ref.node, "a@b");
    assert_int_equal(ref.count, 3);
    assert_int_equal(ref.creation, 9);
    assert_int_equal(ref.words[2], 3);
    reads(read_ref, "5a 0005 770161 00000009 (20)ff", 0);
    assert_int_equal(ref.count, 5);
    reads(read_ref, "5a 0000 770161 00000009", 0);
    assert_int_equal(ref.count, 0);
    reads(read_ref, "72 0002 770161 03 00000007 ffffffff", 0);
    assert_int_equal(ref.count, 2);
    assert_int_equal(ref.creation, 3);
    assert_int_equal(ref.words[0], 7);
    reads(read_ref, "65 770161 00000007 02", 0);
    assert_int_equal(ref.count, 1);
    assert_int_equal(ref.creation, 2);
    assert_int_equal(ref.words[0], 7);
}

static void read_ref_refuses_what_is_none(void **state)
{
    (void)state;
    refuses(read_ref, "5a 0006 770161 00000009 (24)00");
    refuses(read_ref, "72 0001 770161 00 00040000");
    refuses(read_ref, "65 770161 00000000 04");
    refuses(read_ref, "5a 0001 7301e9 00000009 00000000");
    refuses(read_ref, "58 770161 (12)00");
}

static void readers_of_a_frame_know_its_atoms(void **state)
{
    (void)state;
    reads(read_text_in, "5201", 0);
    assert_true(tm_bytes_equal(text, TM_BYTES("a@b")));
    reads(read_text_in, "7701 78", 0);
    assert_true(tm_bytes_equal(text, TM_BYTES("x")));
    reads(read_text_in, "7301 e9", 0);
    assert_true(tm_bytes_equal(text, TM_BYTES("\xc3\xa9")));
    reads(read_pid_in, "58 5201 00000001 00000002 00000003 52", 1);
    assert_true(tm_bytes_equal(pid.node, TM_BYTES("a@b")));
    assert_int_equal(pid.serial, 2);
    assert_int_equal(pid.creation, 3);
    reads(read_pid_in, "67 5201 00000001 00000002 03", 0);
    assert_int_equal(pid.creation, 3);
    reads(read_ref_in, "5a 0002 5201 00000009 00000001 00000002", 0);
    assert_true(tm_bytes_equal(ref.node, TM_BYTES("a@b")));
    assert_int_equal(ref.count, 2);
    assert_int_equal(ref.words[1], 2);
    reads(read_ref_in, "65 5201 00000007 03", 0);
    assert_int_equal(ref.words[0], 7);
    answers(read_text_in, "5202", TM_EPEER_MALFORMED);
    answers(read_pid_in, "58 5202 (12)00", TM_EPEER_MALFORMED);
    answers(read_ref_in, "5a 0001 5202 (8)00", TM_EPEER_MALFORMED);
    answers(read_text, "5201", TM_EPEER_MALFORMED);
    answers(read_pid, "58 5201 (12)00", TM_EPEER_MALFORMED);
    answers(read_ref, "5a 0001 5201 (8)00", TM_EPEER_MALFORMED);
}

static void ref_equal_compares_the_words_in_use(void **state)
{
    (void)state;
    tm_ref a = {TM_BYTES("a@b"), 1, 2, {1, 2, 3, 4, 5}}, b = a;
    b.words[2] = 9;
    assert_true(tm_ref_equal(&a, &b));
    b.words[1] = 9;
    assert_false(tm_ref_equal(&a, &b));
    b = a;
    b.count = 3;
    assert_false(tm_ref_equal(&a, &b));
    b = a;
    b.creation = 2;
    assert_false(tm_ref_equal(&a, &b));
    b = a;
    b.node = TM_BYTES("a@c");
    assert_false(tm_ref_equal(&a, &b));
}

/* -- integers ---------------------------------------------------------------------------------- */

static void read_u64_takes_what_fits_in_any_encoding(void **state)
{
    (void)state;
    reads(read_u64, "61ff", 0);
    assert_int_equal(u64, 255);
    reads(read_u64, "62 7fffffff", 0);
    assert_int_equal(u64, INT32_MAX);
    reads(read_u64, "6e 08 00 ffffffffffffffff", 0);
    assert_true(u64 == UINT64_MAX);
    reads(read_u64, "6e 0a 00 01000000000000000000", 0); /* leading zeros */
    assert_int_equal(u64, 1);
    reads(read_u64, "6f 00000002 00 0102", 0);
    assert_int_equal(u64, 0x201);
    reads(read_u64, "6e 00 00", 0);
    assert_int_equal(u64, 0);
    reads(read_u64, "6e 01 01 00", 0); /* -0 */
    assert_int_equal(u64, 0);
}

static void read_u64_refuses_what_does_not_fit(void **state)
{
    (void)state;
    refuses(read_u64, "62 ffffffff");
    refuses(read_u64, "6e 09 00 000000000000000001");
    refuses(read_u64, "6e 01 01 01");
    refuses(read_u64, "770161");
    refuses(read_u64, "46 3ff8000000000000");
}

static void read_i64_takes_both_ends_of_its_range(void **state)
{
    (void)state;
    reads(read_i64, "62 80000000", 0);
    assert_true(i64 == INT32_MIN);
    reads(read_i64, "6e 08 00 ffffffffffffff7f", 0);
    assert_true(i64 == INT64_MAX);
    reads(read_i64, "6e 08 01 0000000000000080", 0);
    assert_true(i64 == INT64_MIN);
    refuses(read_i64, "6e 08 00 0000000000000080");
    refuses(read_i64, "6e 08 01 0100000000000080");
    refuses(read_i64, "6e 08 01 ffffffffffffffff");
    refuses(read_i64, "6a");
}

/* -- containers and terms ---------------------------------------------------------------------- */

static void readers_tell_another_kind_from_one_cut_off(void **state)
{
    (void)state;
    const read_fn readers[] = {read_atom, read_text, read_pid, read_ref, read_u64, read_i64};
    for (size_t i = 0; i < sizeof readers / sizeof *readers; i++) {
        answers(readers[i], "6a", TM_EPEER_MALFORMED);
        answers(readers[i], "", TM_NEED_DATA);
    }
    answers(read_tuple, "6a", TM_EPEER_MALFORMED);
    answers(read_list, "68", TM_EPEER_MALFORMED);
}

static void read_tuple_takes_both_heads(void **state)
{
    (void)state;
    reads(read_tuple, "6800", 0);
    assert_int_equal(count, 0);
    tm_cursor c = feed("6802 6101 6102");
    assert_int_equal(read_tuple(&c), 0);
    assert_int_equal(count, 2);
    assert_int_equal(tm_cursor_left(&c), 4);
    c = feed("69 00000001 6a");
    assert_int_equal(read_tuple(&c), 0);
    assert_int_equal(count, 1);
    refuses(read_tuple, "6a");
}

static void read_tuple_wants_a_byte_for_each_element(void **state)
{
    (void)state;
    answers(read_tuple, "6802 6a", TM_NEED_DATA);
    answers(read_tuple, "69 ffffffff 6a", TM_NEED_DATA);
}

static void read_list_sees_through_heads_of_no_elements(void **state)
{
    (void)state;
    reads(read_list, "6a", 0);
    assert_int_equal(count, 0);
    tm_cursor c = feed("6c 00000002 6101 6102 6a");
    assert_int_equal(read_list(&c), 0);
    assert_int_equal(count, 2);
    assert_int_equal(tm_cursor_left(&c), 5);
    reads(read_list, "6c 00000000 6c 00000000 6a", 0);
    assert_int_equal(count, 0);
    c = feed("6c 00000000 6c 00000001 6a 6a");
    assert_int_equal(read_list(&c), 0);
    assert_int_equal(count, 1);
    assert_int_equal(tm_cursor_left(&c), 2);
}

static void read_list_refuses_strings_and_tails_that_are_no_list(void **state)
{
    (void)state;
    refuses(read_list, "6b 0001 61");
    refuses(read_list, "6c 00000000 770161");
    refuses(read_list, "6800");
    answers(read_list, "6c 00000001 6a", TM_NEED_DATA); /* no room for the tail */
    answers(read_list, "6c ffffffff 6a", TM_NEED_DATA);
    answers(read_list, "6c 00000000", TM_NEED_DATA);
}

static void read_term_borrows_one_term(void **state)
{
    (void)state;
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    tm_alloc alloc = test_alloc(&heap);
    tm_bytes term;
    tm_cursor c = feed("6802 6101 6a 75");
    assert_int_equal(tm_etf_read_term(&c, &limits, &alloc, &term), 0);
    assert_ptr_equal(term.ptr, input.ptr);
    assert_int_equal(term.len, 5);
    assert_int_equal(tm_cursor_left(&c), 1);
    assert_int_equal(tm_etf_read_term(&c, &limits, &alloc, &term), TM_EPEER_MALFORMED);
    assert_int_equal(tm_cursor_left(&c), 1);
}

static void read_term_fills_the_span_of_a_term_over_a_limit(void **state)
{
    (void)state;
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    limits.depth_max = 0;
    tm_alloc alloc = test_alloc(&heap);
    tm_bytes term;
    tm_cursor c = feed("6802 6101 6a 6a");
    assert_int_equal(tm_etf_read_term(&c, &limits, &alloc, &term), TM_EPEER_LIMIT);
    assert_ptr_equal(c.ptr, input.ptr);
    assert_int_equal(term.len, 5);
}

/* -- text -------------------------------------------------------------------------------------- */

/* Code points by the definition, one byte after the other: the slow second opinion. */
static bool utf8_by_definition(const uint8_t *p, size_t len, size_t *chars)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    for (*chars = 0; len; ++*chars) {
        size_t size = *p < 0x80 ? 1 : *p >> 5 == 6 ? 2 : *p >> 4 == 14 ? 3 : *p >> 3 == 30 ? 4 : 0;
        if (!size || size > len) return false;
        uint32_t point = size == 1 ? *p : *p & (0x7fu >> size);
        for (size_t i = 1; i < size; i++) {
            if (p[i] >> 6 != 2) return false;
            point = point << 6 | (p[i] & 0x3f);
        }
        if (point < least[size] || point > 0x10ffff || point >> 11 == 0x1b) return false;
        p += size;
        len -= size;
    }
    return true;
}

static void utf8_agrees(const uint8_t *bytes, size_t len)
{
    size_t chars = 0, expected_chars = 0;
    bool expected = utf8_by_definition(bytes, len, &expected_chars);
    bool valid = tm_utf8_valid((tm_bytes){bytes, len}, &chars);
    if (valid != expected || (valid && chars != expected_chars))
        print_error("%02x %02x %02x %02x\n", bytes[0], bytes[1], bytes[2], bytes[3]);
    assert_int_equal(valid, expected);
    if (valid) assert_int_equal(chars, expected_chars);
}

static void utf8_is_strict_for_every_start_and_edge(void **state)
{
    (void)state;
    static const uint8_t edges[] = {0x00, 0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf,
                                    0xc0, 0xc2, 0xdf, 0xe0, 0xed, 0xf0, 0xf4, 0xf5, 0xff};
    enum { EDGES = sizeof edges };
    for (unsigned pair = 0; pair < 65536; pair++) {
        uint8_t bytes[4] = {(uint8_t)(pair >> 8), (uint8_t)pair, 0, 0};
        utf8_agrees(bytes, 1);
        utf8_agrees(bytes, 2);
        for (unsigned more = 0; more < EDGES * EDGES; more++) {
            bytes[2] = edges[more / EDGES];
            bytes[3] = edges[more % EDGES];
            if (more % EDGES == 0) utf8_agrees(bytes, 3);
            utf8_agrees(bytes, 4);
        }
    }
}

static void utf8_counts_characters_across_words(void **state)
{
    (void)state;
    uint8_t bytes[64];
    for (size_t at = 0; at < 40; at++) {
        memset(bytes, 'a', sizeof bytes);
        memcpy(bytes + at, "\xe2\x82\xac", 3);
        size_t chars;
        assert_true(tm_utf8_valid((tm_bytes){bytes, sizeof bytes}, &chars));
        assert_int_equal(chars, sizeof bytes - 2);
        assert_false(tm_utf8_valid((tm_bytes){bytes, at + 2}, &chars));
        bytes[at] = 0xa2;
        assert_false(tm_utf8_valid((tm_bytes){bytes, sizeof bytes}, &chars));
    }
    size_t none = 1;
    assert_true(tm_utf8_valid((tm_bytes){NULL, 0}, &none));
    assert_int_equal(none, 0);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_teardown(name, forget)
    const struct CMUnitTest tests[] = {
        TEST(read_atom_takes_every_encoding),
        TEST(read_atom_leaves_what_follows),
        TEST(read_atom_refuses_other_terms_and_bad_text),
        TEST(read_atom_utf8_transcodes_latin1),
        TEST(read_pid_takes_both_encodings),
        TEST(read_pid_refuses_what_is_none),
        TEST(read_ref_takes_every_encoding),
        TEST(read_ref_refuses_what_is_none),
        TEST(readers_of_a_frame_know_its_atoms),
        TEST(ref_equal_compares_the_words_in_use),
        TEST(read_u64_takes_what_fits_in_any_encoding),
        TEST(read_u64_refuses_what_does_not_fit),
        TEST(read_i64_takes_both_ends_of_its_range),
        TEST(readers_tell_another_kind_from_one_cut_off),
        TEST(read_tuple_takes_both_heads),
        TEST(read_tuple_wants_a_byte_for_each_element),
        TEST(read_list_sees_through_heads_of_no_elements),
        TEST(read_list_refuses_strings_and_tails_that_are_no_list),
        TEST(read_term_borrows_one_term),
        TEST(read_term_fills_the_span_of_a_term_over_a_limit),
        TEST(utf8_is_strict_for_every_start_and_edge),
        TEST(utf8_counts_characters_across_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
