/* Skipping walked terms and writing their atom-cache references out. */
#include "testing.h"

static test_heap heap;
static tm_alloc alloc;
static tm_buf buf;
static tm_walk_result result;

static const tm_bytes atoms[] = {
    {(const uint8_t *)"ok", 2},
    {(const uint8_t *)"a@b", 3},
    {(const uint8_t *)"", 0},
};
#define ATOMS 3

static int set_up(void **state)
{
    (void)state;
    heap = (test_heap){0};
    alloc = test_alloc(&heap);
    tm_buf_init(&buf, &alloc, 0);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    tm_buf_fini(&buf);
    return heap.count == 0 && heap.bytes == 0 ? 0 : -1;
}

static tm_bytes walked(const char *hex)
{
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    limits.cache_refs = ATOMS;
    limits.cache_atoms = atoms;
    tm_bytes bytes = test_hex(hex);
    assert_int_equal(tm_etf_walk(bytes, &limits, &alloc, &result), 0);
    assert_int_equal(result.len, bytes.len);
    assert_ptr_equal(tm_etf_skip(bytes.ptr), bytes.ptr + bytes.len);
    return bytes;
}

/* What the last walk found is enough to write bytes out, to other memory and in their own. */
static void expands_to(tm_bytes bytes, tm_bytes expected)
{
    size_t len = bytes.len + result.refs.growth;
    assert_int_equal(len, expected.len);
    for (size_t slack = 0; slack < 3; slack++) {
        uint8_t *apart = test_block(len);
        tm_etf_expand_to(apart, bytes, atoms, &result.refs);
        assert_memory_equal(apart, expected.ptr, len);
        test_release(tm_bytes_of(apart, len));
        size_t shift = result.refs.growth + slack;
        uint8_t *own = test_block(shift + bytes.len);
        memcpy(own + shift, bytes.ptr, bytes.len);
        tm_etf_expand_to(own, tm_bytes_of(own + shift, bytes.len), atoms, &result.refs);
        assert_memory_equal(own, expected.ptr, len);
        test_release(tm_bytes_of(own, shift + bytes.len));
    }
}

static void expands(const char *hex, const char *expected_hex)
{
    tm_bytes expected = walked(expected_hex), bytes = walked(hex);
    expands_to(bytes, expected);
    assert_int_equal(tm_etf_expand(bytes, atoms, &buf), 0);
    if (buf.len != expected.len) print_error("%s\n", hex);
    assert_int_equal(buf.len, expected.len);
    assert_memory_equal(buf.ptr, expected.ptr, expected.len);
    test_release(bytes);
    test_release(expected);
    buf.len = 0;
}

static void unchanged(const char *hex) { expands(hex, hex); }

static void expand_writes_references_out_wherever_an_atom_can_be(void **state)
{
    (void)state;
    expands("5200", "77026f6b");
    expands("5202", "7700");
    expands("6802 5200 5201", "6802 77026f6b 7703614062");
    expands("6c00000001 5200 5201", "6c00000001 77026f6b 7703614062");
    expands("74 00000001 5200 5201", "74 00000001 77026f6b 7703614062");
    expands("71 5200 5200 6101", "71 77026f6b 77026f6b 6101");
    expands("58 5201 (12)52", "58 7703614062 (12)52");
    expands("67 5201 (8)52 03", "67 7703614062 (8)52 03");
    expands("78 5201 (12)52", "78 7703614062 (12)52");
    expands("59 5201 (8)52", "59 7703614062 (8)52");
    expands("66 5201 (4)52 03", "66 7703614062 (4)52 03");
    expands("5a 0003 5201 (16)52", "5a 0003 7703614062 (16)52");
    expands("72 0002 5201 03 00005252 (4)52", "72 0002 7703614062 03 00005252 (4)52");
    expands("65 5201 00005252 03", "65 7703614062 00005252 03");
    expands("70 00000044 00 (16)52 00000000 00000002 5200 6101 6102 58 5201 (12)52 5200 6a",
            "70 00000044 00 (16)52 00000000 00000002 77026f6b 6101 6102"
            "58 7703614062 (12)52 77026f6b 6a");
}

static void expand_leaves_bytes_that_only_look_like_references(void **state)
{
    (void)state;
    unchanged("6152");
    unchanged("62 52005200");
    unchanged("46 5200520052005200");
    unchanged("63 312e35 00 (27)52");
    unchanged("6b 0002 5200");
    unchanged("6d 00000002 5200");
    unchanged("4d 00000002 03 5200");
    unchanged("6e 02 00 5200");
    unchanged("6f 00000002 00 5200");
    unchanged("7702 5200");
    unchanged("76 0002 5200");
    unchanged("73 02 5200");
    unchanged("64 0002 5200");
    unchanged("6a");
    unchanged("69 00000001 6800");
}

static void expand_of_more_references_than_are_remembered_scans_for_them(void **state)
{
    (void)state;
    tm_alloc libc = tm_alloc_libc(NULL);
    for (size_t count = TM_WALK_REFS_MAX - 1; count < TM_WALK_REFS_MAX + 3; count++) {
        tm_buf short_form, long_form;
        tm_buf_init(&short_form, &libc, 0);
        tm_buf_init(&long_form, &libc, 0);
        test_hex_append(&short_form, "6c 000000");
        test_hex_append(&long_form, "6c 000000");
        uint8_t number = (uint8_t)count;
        assert_int_equal(tm_buf_append(&short_form, &number, 1), 0);
        assert_int_equal(tm_buf_append(&long_form, &number, 1), 0);
        for (size_t i = 0; i < count; i++) {
            test_hex_append(&short_form, i % 2 ? "5200" : "58 5201 (12)52");
            test_hex_append(&long_form, i % 2 ? "77026f6b" : "58 7703614062 (12)52");
        }
        test_hex_append(&short_form, "6a");
        test_hex_append(&long_form, "6a");
        tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
        limits.cache_refs = ATOMS;
        limits.cache_atoms = atoms;
        tm_bytes bytes = test_copy(tm_buf_bytes(&short_form));
        assert_int_equal(tm_etf_walk(bytes, &limits, &alloc, &result), 0);
        assert_int_equal(result.refs.count, count);
        expands_to(bytes, tm_buf_bytes(&long_form));
        test_release(bytes);
        tm_buf_fini(&short_form);
        tm_buf_fini(&long_form);
    }
}

static void expand_takes_several_terms_and_none(void **state)
{
    (void)state;
    assert_int_equal(tm_etf_expand((tm_bytes){NULL, 0}, NULL, &buf), 0);
    assert_int_equal(buf.len, 0);
    tm_bytes bytes = test_hex("5200 6a 5200 6101");
    assert_int_equal(tm_etf_expand(bytes, atoms, &buf), 0);
    assert_int_equal(buf.len, 4 + 1 + 4 + 2);
    test_release(bytes);
}

static void expand_keeps_to_the_bound_of_the_buffer(void **state)
{
    (void)state;
    tm_bytes bytes = walked("6804 5200 5200 5200 5200");
    tm_buf_init(&buf, &alloc, 2 + 4 * 4 - 1);
    assert_int_equal(tm_etf_write_nil(&buf), 0);
    assert_int_equal(tm_etf_expand(bytes, atoms, &buf), TM_EUSE_LIMIT);
    assert_int_equal(buf.len, 1);
    test_release(bytes);
}

static void expand_leaves_the_buffer_when_memory_is_out(void **state)
{
    (void)state;
    tm_bytes bytes = walked("68c8 (200)6a");
    size_t fail_at = 1;
    for (;; fail_at++) {
        tm_buf_fini(&buf);
        heap = (test_heap){.fail_at = fail_at};
        int rc = tm_etf_expand(bytes, atoms, &buf);
        for (int i = 0; i < 8 && !rc; i++) rc = tm_etf_expand(TM_BYTES("\x52\1"), atoms, &buf);
        for (int i = 0; i < 8 && !rc; i++) rc = tm_etf_expand(bytes, atoms, &buf);
        if (!rc) break;
        assert_int_equal(rc, TM_ENOMEM);
    }
    assert_true(fail_at > 2);
    test_release(bytes);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(expand_writes_references_out_wherever_an_atom_can_be),
        TEST(expand_leaves_bytes_that_only_look_like_references),
        TEST(expand_of_more_references_than_are_remembered_scans_for_them),
        TEST(expand_takes_several_terms_and_none),
        TEST(expand_keeps_to_the_bound_of_the_buffer),
        TEST(expand_leaves_the_buffer_when_memory_is_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
