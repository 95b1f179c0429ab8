/* The writers give OTP's own bytes, the walk and the readers take them back, limits hold. */
#include "testing.h"

static test_heap heap;
static tm_alloc alloc;
static tm_buf buf;

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

/* What was written is hex, and one term; the buffer is empty again. */
static void wrote(const char *hex)
{
    tm_bytes expected = test_hex(hex);
    assert_int_equal(buf.len, expected.len);
    assert_memory_equal(buf.ptr, expected.ptr, expected.len);
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    tm_walk_result result;
    assert_int_equal(tm_etf_walk(expected, &limits, &alloc, &result), 0);
    assert_int_equal(result.len, expected.len);
    test_release(expected);
    buf.len = 0;
}

/* What is put directly: room first, as every caller must. */
static uint8_t *room(void)
{
    assert_int_equal(tm_buf_reserve(&buf, 4096), 0);
    return buf.ptr + buf.len;
}

static void put(const uint8_t *end) { buf.len = (size_t)(end - buf.ptr); }

static void writes_i64(int64_t value, const char *hex)
{
    int64_t back;
    assert_int_equal(tm_etf_write_i64(&buf, value), 0);
    tm_cursor c = tm_cursor_of(tm_buf_bytes(&buf));
    assert_int_equal(tm_etf_read_i64(&c, &back), 0);
    assert_true(back == value);
    wrote(hex);
}

static void write_i64_takes_the_shortest_form_as_otp_does(void **state)
{
    (void)state;
    writes_i64(0, "6100");
    writes_i64(255, "61ff");
    writes_i64(256, "6200000100");
    writes_i64(-1, "62ffffffff");
    writes_i64(INT32_MAX, "627fffffff");
    writes_i64(INT32_MAX + 1LL, "6e040000000080");
    writes_i64(INT32_MIN, "6280000000");
    writes_i64(INT32_MIN - 1LL, "6e040101000080");
    writes_i64((1LL << 59) - 1, "6e0800ffffffffffffff07");
    writes_i64(1LL << 32, "6e05000000000001");
    writes_i64(INT64_MAX, "6e0800ffffffffffffff7f");
    writes_i64(INT64_MIN, "6e08010000000000000080");
}

static void write_u64_reaches_the_top(void **state)
{
    (void)state;
    const uint64_t values[] = {0,          255,       256,        INT32_MAX,
                               UINT32_MAX, INT64_MAX, 1ULL << 63, UINT64_MAX};
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        uint64_t back;
        assert_int_equal(tm_etf_write_u64(&buf, values[i]), 0);
        tm_cursor c = tm_cursor_of(tm_buf_bytes(&buf));
        assert_int_equal(tm_etf_read_u64(&c, &back), 0);
        assert_true(back == values[i]);
        assert_int_equal(tm_cursor_left(&c), 0);
        buf.len = 0;
    }
    assert_int_equal(tm_etf_write_u64(&buf, 1ULL << 63), 0);
    wrote("6e08000000000000000080");
    assert_int_equal(tm_etf_write_u64(&buf, 7), 0);
    wrote("6107");
}

static void write_atom_uses_utf8_tags_only(void **state)
{
    (void)state;
    assert_int_equal(tm_etf_write_atom(&buf, TM_BYTES("ok")), 0);
    wrote("77026f6b");
    assert_int_equal(tm_etf_write_atom(&buf, TM_BYTES("")), 0);
    wrote("7700");
    assert_int_equal(tm_etf_write_atom(&buf, TM_BYTES("\xf0\x9f\x98\x80")), 0);
    wrote("7704f09f9880");
}

static void write_atom_bounds_characters(void **state)
{
    (void)state;
    uint8_t text[TM_ATOM_BYTES_MAX + 1];
    memset(text, 'a', sizeof text);
    assert_int_equal(tm_etf_write_atom(&buf, (tm_bytes){text, 255}), 0);
    wrote("77ff (255)61");
    assert_int_equal(tm_etf_write_atom(&buf, (tm_bytes){text, 256}), TM_EUSE_LIMIT);
    memcpy(text + 254, "\xc3\xa9", 2);
    assert_int_equal(tm_etf_write_atom(&buf, (tm_bytes){text, 256}), 0);
    wrote("760100 (254)61 c3a9");
    text[255] = 'a';
    assert_int_equal(tm_etf_write_atom(&buf, (tm_bytes){text, 256}), TM_EUSE_LIMIT);
    for (size_t i = 0; i < TM_ATOM_CHARS_MAX; i++) memcpy(text + 4 * i, "\xf0\x9f\x98\x80", 4);
    assert_int_equal(tm_etf_write_atom(&buf, (tm_bytes){text, TM_ATOM_BYTES_MAX}), 0);
    assert_int_equal(buf.len, 3 + TM_ATOM_BYTES_MAX);
    assert_int_equal(tm_etf_write_atom(&buf, (tm_bytes){text, sizeof text}), TM_EUSE_LIMIT);
    assert_int_equal(buf.len, 3 + TM_ATOM_BYTES_MAX);
}

static void write_identifiers_as_otp_does(void **state)
{
    (void)state;
    tm_pid pid = {TM_BYTES("a@b"), 1, 2, 3}, pid_back;
    assert_int_equal(tm_etf_write_pid(&buf, &pid), 0);
    tm_cursor c = tm_cursor_of(tm_buf_bytes(&buf));
    assert_int_equal(tm_etf_read_pid(&c, &pid_back), 0);
    assert_true(tm_pid_equal(&pid, &pid_back));
    wrote("58 7703614062 000000010000000200000003");
    tm_ref ref = {TM_BYTES("a@b"), 3, 5, {1, 2, 3, 4, 5}}, ref_back;
    assert_int_equal(tm_etf_write_ref(&buf, &ref), 0);
    c = tm_cursor_of(tm_buf_bytes(&buf));
    assert_int_equal(tm_etf_read_ref(&c, &ref_back), 0);
    assert_true(tm_ref_equal(&ref, &ref_back));
    wrote("5a0005 7703614062 00000003 0000000100000002000000030000000400000005");
    ref.count = 6;
    assert_int_equal(tm_etf_write_ref(&buf, &ref), TM_EUSE_LIMIT);
    uint8_t text[256] = {'a'};
    pid.node = tm_bytes_of(text, sizeof text);
    assert_int_equal(tm_etf_write_pid(&buf, &pid), TM_EUSE_LIMIT);
    ref.count = 1;
    ref.node = pid.node;
    assert_int_equal(tm_etf_write_ref(&buf, &ref), TM_EUSE_LIMIT);
    assert_int_equal(buf.len, 0);
}

static void write_containers_as_otp_does(void **state)
{
    (void)state;
    assert_int_equal(tm_etf_write_tuple(&buf, 0), 0);
    wrote("6800");
    assert_int_equal(tm_etf_write_tuple(&buf, 255), 0);
    for (int i = 0; i < 255; i++) assert_int_equal(tm_etf_write_nil(&buf), 0);
    wrote("68ff (255)6a");
    assert_int_equal(tm_etf_write_tuple(&buf, 256), 0);
    for (int i = 0; i < 256; i++) assert_int_equal(tm_etf_write_nil(&buf), 0);
    wrote("69 00000100 (256)6a");
    assert_int_equal(tm_etf_write_list(&buf, 1), 0);
    assert_int_equal(tm_etf_write_i64(&buf, 97), 0);
    assert_int_equal(tm_etf_write_atom(&buf, TM_BYTES("b")), 0);
    wrote("6c00000001 6161 770162");
    assert_int_equal(tm_etf_write_list(&buf, 0), 0);
    assert_int_equal(tm_etf_write_nil(&buf), 0);
    wrote("6a");
}

static void write_binary_and_raw_copy_their_bytes(void **state)
{
    (void)state;
    assert_int_equal(tm_etf_write_binary(&buf, TM_BYTES("\1\2")), 0);
    wrote("6d000000020102");
    assert_int_equal(tm_etf_write_binary(&buf, (tm_bytes){NULL, 0}), 0);
    wrote("6d00000000");
    tm_bytes too_long = {(const uint8_t *)"", (size_t)UINT32_MAX + 1};
    assert_int_equal(tm_etf_write_binary(&buf, too_long), TM_EUSE_LIMIT);
    assert_int_equal(tm_etf_write_raw(&buf, TM_BYTES("\x6a")), 0);
    wrote("6a");
}

static void puts_are_taken_back(void **state)
{
    (void)state;
    put(tm_etf_put_f64(room(), -0.0));
    const uint8_t *p = buf.ptr + 1;
    assert_true(tm_etf_take_f64(&p) == 0.0 && p == buf.ptr + TM_ETF_FLOAT_SIZE);
    wrote("468000000000000000");
    tm_port port = {TM_BYTES("a@b"), 1ULL << 40, 3}, back;
    tm_atom node;
    put(tm_etf_put_port(room(), &port));
    p = buf.ptr;
    tm_etf_take_port(&p, &node, &back);
    assert_ptr_equal(p, buf.ptr + buf.len);
    assert_true(tm_bytes_equal(back.node, port.node) && tm_bytes_equal(node.text, port.node));
    assert_true(back.id == port.id && back.creation == 3);
    wrote("78 7703614062 0000010000000000 00000003");
    put(tm_etf_put_map(room(), 1));
    put(tm_etf_put_i64(room(), 1));
    put(tm_store_bytes(tm_etf_put_bit_binary(room(), 1, 3), "\xa0", 1));
    wrote("74 00000001 6101 4d 00000001 03 a0");
    put(tm_etf_put_i64(room(), -2));
    p = buf.ptr;
    assert_int_equal(tm_etf_take_i32(&p), -2);
    wrote("62fffffffe");
    put(tm_etf_put_i64(room(), 200));
    p = buf.ptr;
    assert_int_equal(tm_etf_take_i32(&p), 200);
    wrote("61c8");
    put(tm_etf_put_u64(room(), UINT64_MAX));
    p = buf.ptr;
    bool negative = true;
    tm_bytes digits = tm_etf_take_big(&p, &negative);
    assert_int_equal(digits.len, 8);
    assert_false(negative);
    assert_ptr_equal(p, buf.ptr + buf.len);
    buf.len = 0;
}

static void takes_know_the_old_identifiers(void **state)
{
    (void)state;
    tm_port port;
    tm_atom node;
    const char *hex[] = {"66 7301e9 00000007 02", "59 770161 00000007 00000002"};
    for (size_t i = 0; i < 2; i++) {
        tm_bytes bytes = test_hex(hex[i]);
        const uint8_t *p = bytes.ptr;
        tm_etf_take_port(&p, &node, &port);
        assert_ptr_equal(p, bytes.ptr + bytes.len);
        assert_int_equal(port.id, 7);
        assert_int_equal(port.creation, 2);
        assert_int_equal(node.latin1, i == 0);
        test_release(bytes);
    }
    tm_bytes large = test_hex("6f 00000003 01 010203");
    const uint8_t *p = large.ptr;
    bool negative = false;
    assert_int_equal(tm_etf_take_big(&p, &negative).len, 3);
    assert_true(negative);
    test_release(large);
}

/* -- bounds and memory ------------------------------------------------------------------------- */

static const tm_pid a_pid = {{(const uint8_t *)"a@b", 3}, 1, 2, 3};
static const tm_ref a_ref = {{(const uint8_t *)"a@b", 3}, 3, 3, {1, 2, 3}};

static int write_one(unsigned kind)
{
    switch (kind) {
    case 0: return tm_etf_write_atom(&buf, TM_BYTES("ok"));
    case 1: return tm_etf_write_pid(&buf, &a_pid);
    case 2: return tm_etf_write_ref(&buf, &a_ref);
    case 3: return tm_etf_write_i64(&buf, -1);
    case 4: return tm_etf_write_u64(&buf, UINT64_MAX);
    case 5: return tm_etf_write_tuple(&buf, 300);
    case 6: return tm_etf_write_list(&buf, 3);
    case 7: return tm_etf_write_nil(&buf);
    case 8: return tm_etf_write_binary(&buf, TM_BYTES("0123456789"));
    default: return tm_etf_write_raw(&buf, TM_BYTES("\x6a"));
    }
}

#define WRITERS 10

static void writers_stop_at_the_bound_of_the_buffer(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < WRITERS; kind++) {
        size_t written = 0;
        int rc;
        tm_buf_fini(&buf);
        tm_buf_init(&buf, &alloc, 1000);
        while ((rc = write_one(kind)) == 0) written = buf.len;
        assert_int_equal(rc, TM_EUSE_LIMIT);
        assert_int_equal(buf.len, written);
        assert_true(written > 1000 - 40 && written <= 1000);
    }
}

static void writers_leave_the_buffer_when_memory_is_out(void **state)
{
    (void)state;
    for (unsigned kind = 0; kind < WRITERS; kind++) {
        for (size_t fail_at = 1; fail_at < 4; fail_at++) {
            size_t written = 0;
            int rc;
            tm_buf_fini(&buf);
            heap = (test_heap){.fail_at = fail_at};
            while ((rc = write_one(kind)) == 0) written = buf.len;
            assert_int_equal(rc, TM_ENOMEM);
            assert_int_equal(buf.len, written);
            assert_int_equal(write_one(kind), 0);
        }
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(write_i64_takes_the_shortest_form_as_otp_does),
        TEST(write_u64_reaches_the_top),
        TEST(write_atom_uses_utf8_tags_only),
        TEST(write_atom_bounds_characters),
        TEST(write_identifiers_as_otp_does),
        TEST(write_containers_as_otp_does),
        TEST(write_binary_and_raw_copy_their_bytes),
        TEST(puts_are_taken_back),
        TEST(takes_know_the_old_identifiers),
        TEST(writers_stop_at_the_bound_of_the_buffer),
        TEST(writers_leave_the_buffer_when_memory_is_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
