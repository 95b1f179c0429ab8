/* Control messages whose atoms are numbers in the list of their frame. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cache_test.h"
#include "control_test.h"
#include "frame.h"

static tm_walk_limits limits_of(const tm_atom_header *header)
{
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    limits.cache_refs = header->count;
    limits.cache_atoms = header->atoms;
    return limits;
}

/* The same message with its atoms written out is the same message. */
static void check_same(tm_bytes terms, const tm_atom_header *header, const tm_alloc *alloc,
                       unsigned op)
{
    tm_walk_limits limits = limits_of(header);
    tm_control control, plain;
    tm_bytes payload, plain_payload;
    tm_buf out, again;
    tm_buf_init(&out, alloc, 0);
    tm_buf_init(&again, alloc, 0);
    tm_fault fault = {0};
    int rc = tm_control_parse(terms, false, &limits, alloc, &control, &payload, &fault);
    if (rc) fail_msg("operation %u: %s (byte %zu)", op, fault.what, fault.offset);
    assert_int_equal(control.wire_op, op);
    assert_int_equal(tm_etf_expand(terms, header->atoms, &out), 0);
    assert_int_equal(tm_control_parse(tm_buf_bytes(&out), false, &TM_WALK_LIMITS_DEFAULT, alloc,
                                      &plain, &plain_payload, NULL),
                     0);
    assert_null(plain.written_out.ptr);
    assert_true(control_same(&control, &plain, true));
    assert_int_equal(tm_etf_expand(payload, header->atoms, &again), 0);
    assert_true(tm_bytes_equal(tm_buf_bytes(&again), plain_payload));
    size_t len;
    assert_int_equal(tm_control_measure(terms, &limits, alloc, &len, NULL), 0);
    assert_int_equal(len, terms.len - payload.len);
    tm_control_fini(&control);
    tm_control_fini(&plain);
    tm_buf_fini(&out);
    tm_buf_fini(&again);
}

/* Sets a slot as an earlier frame would have. */
static void prime(tm_atom_cache *cache, unsigned slot, const char *text, size_t len)
{
    uint8_t bytes[64];
    uint8_t *p = tm_store_u8(bytes, 1);
    p = tm_store_u8(p, (uint8_t)(8 | slot >> 8));
    p = tm_store_u8(p, (uint8_t)slot);
    p = tm_store_u8(p, (uint8_t)len);
    p = tm_store_bytes(p, text, len);
    tm_cursor c = tm_cursor_of(tm_bytes_of(bytes, (size_t)(p - bytes)));
    tm_atom_header header;
    const char *what;
    assert_int_equal(tm_atom_cache_read(cache, &c, &header, &what), 0);
    tm_atom_header_done(cache, &header);
}

/* "{672=a28@127.0.0.1 5= 708:=traced}": those with := come with the frame itself. */
static void prime_all(tm_atom_cache *cache, const char *line)
{
    const char *at = strrchr(line, '{');
    assert_non_null(at);
    for (at++; *at != '}';) {
        char *after;
        unsigned slot = (unsigned)strtoul(at, &after, 10);
        bool comes = *after == ':';
        const char *text = after + (comes ? 2 : 1);
        size_t len = strcspn(text, " }");
        if (!comes) prime(cache, slot, text, len);
        at = text + len + (text[len] == ' ');
    }
}

static void captured_frames_of_every_operation_are_parsed_with_their_atoms(void **state)
{
    (void)state;
    FILE *file = test_vectors_open("frames.txt");
    char text[4096], said[4096] = "";
    unsigned op = 0;
    size_t parsed = 0, with_atoms = 0;
    while (fgets(text, sizeof text, file)) {
        if (!strncmp(text, "## ", 3)) op = (unsigned)strtoul(text + 3, NULL, 10);
        if (!strncmp(text, "<= ", 3)) memcpy(said, text, sizeof said);
        if (strncmp(text, "raw ", 4) != 0) continue;
        uint8_t frame[1024];
        size_t len = test_hex(text + 4, frame, sizeof frame);
        test_cache own;
        test_cache_init(&own);
        tm_atom_header header;
        prime_all(&own.cache, said);
        tm_bytes body = tm_bytes_of(frame + 4, len - 4);
        tm_frame_terms terms;
        assert_int_equal(tm_frame_open(TM_DFLAGS_OURS, body, &terms, NULL), 0);
        assert_int_equal(terms.kind, TM_FRAME_WHOLE);
        assert_int_equal(tm_frame_atoms(&own.cache, body, &terms, &header, NULL), 0);
        with_atoms += header.count > 0;
        check_same(terms.bytes, &header, &own.memory.alloc, op);
        tm_atom_header_done(&own.cache, &header);
        test_cache_fini(&own);
        parsed++;
    }
    fclose(file);
    assert_int_equal(parsed, 43);
    assert_true(with_atoms >= 26);
}

/* -- terms that are carried -------------------------------------------------------------------- */

static const struct {
    unsigned op;
    const char *bytes;
    size_t len;
} carriers[] = {
#define CARRIER(op, literal) {op, literal, sizeof(literal) - 1}
#define PID "XR\0\0\0\0\1\0\0\0\2\0\0\0\11"
#define LONG "l\0\0\0\4R\2R\2R\2R\1j"
    CARRIER(3, "h\4a\3" PID PID "R\1"),              /* a reason that is a reference */
    CARRIER(13, "h\5a\15" PID PID LONG "h\2R\2R\2"), /* token and reason */
    CARRIER(18, "h\5a\22" PID PID "R\3R\2"),
    CARRIER(21, "h\5a\25R\1" PID "Z\0\1R\0\0\0\0\11\0\0\0\7" LONG),
    CARRIER(29, "h\6a\35Z\0\1R\0\0\0\0\11\0\0\0\7" PID PID "h\3R\1R\2a\4" LONG "j"),
    CARRIER(30, "h\7a\36Z\0\1R\0\0\0\0\11\0\0\0\7" PID PID "h\3R\1R\2a\4" LONG "R\2j"),
    CARRIER(16, "h\5a\20" PID "R\3R\1" LONG "R\2"), /* token, and a payload */
#undef PID
#undef LONG
#undef CARRIER
};

static void list_atoms(tm_atom_header *header)
{
    static uint8_t wide[TM_ATOM_BYTES_MAX];
    for (size_t i = 0; i < sizeof wide; i += 4) memcpy(wide + i, "\xf0\x9f\x98\x80", 4);
    tm_atom_header_init(header);
    header->count = 4;
    header->atoms[0] = TM_BYTES("a@b");
    header->atoms[1] = TM_BYTES("monitor");
    header->atoms[2] = tm_bytes_of(wide, sizeof wide);
    header->atoms[3] = TM_BYTES("");
}

static void carried_terms_are_written_out(void **state)
{
    (void)state;
    tm_atom_header header;
    list_atoms(&header);
    for (size_t i = 0; i < sizeof carriers / sizeof *carriers; i++) {
        test_alloc memory;
        test_alloc_init(&memory, SIZE_MAX);
        check_same(tm_bytes_of(carriers[i].bytes, carriers[i].len), &header, &memory.alloc,
                   carriers[i].op);
        assert_int_equal(memory.stats.bytes, 0);
    }
}

static void reference_that_the_frame_does_not_define_is_refused(void **state)
{
    (void)state;
    tm_atom_header header;
    list_atoms(&header);
    header.count = 1;
    for (size_t i = 0; i < sizeof carriers / sizeof *carriers; i++) {
        test_alloc memory;
        test_alloc_init(&memory, SIZE_MAX);
        tm_walk_limits limits = limits_of(&header);
        tm_control control;
        tm_bytes payload;
        tm_fault fault = {0};
        tm_bytes terms = tm_bytes_of(carriers[i].bytes, carriers[i].len);
        int rc = tm_control_parse(terms, false, &limits, &memory.alloc, &control, &payload, &fault);
        assert_int_equal(rc, TM_EPEER_MALFORMED);
        tm_control_fini(&control);
        assert_int_equal(memory.stats.bytes, 0);
    }
}

static void failing_allocation_leaks_nothing(void **state)
{
    (void)state;
    tm_atom_header header;
    list_atoms(&header);
    tm_walk_limits limits = limits_of(&header);
    size_t failed = 0;
    for (size_t n = 0;; n++) {
        test_alloc memory;
        test_alloc_init(&memory, n);
        tm_control control;
        tm_bytes payload, terms = tm_bytes_of(carriers[1].bytes, carriers[1].len);
        int rc = tm_control_parse(terms, false, &limits, &memory.alloc, &control, &payload, NULL);
        tm_control_fini(&control);
        assert_int_equal(memory.stats.bytes, 0);
        if (!rc) break;
        assert_int_equal(rc, TM_ENOMEM);
        failed++;
    }
    assert_true(failed > 0);
}

static void control_message_must_be_whole_to_be_measured(void **state)
{
    (void)state;
    tm_bytes terms = TM_BYTES("h\3a\2w\0Xw\3a@b\0\0\0\1\0\0\0\2\0\0\0\11"
                              "payload");
    tm_alloc libc = tm_alloc_libc(NULL);
    size_t len, whole = terms.len - 7;
    tm_fault fault;
    for (size_t cut = 0; cut <= terms.len; cut++) {
        tm_bytes part = tm_bytes_of(terms.ptr, cut);
        int rc = tm_control_measure(part, &TM_WALK_LIMITS_DEFAULT, &libc, &len, &fault);
        assert_int_equal(rc, cut < whole ? TM_EPEER_MALFORMED : 0);
        if (!rc) assert_int_equal(len, whole);
    }
    /* An unknown operation is whole as well. */
    assert_int_equal(
        tm_control_measure(TM_BYTES("h\2acjx"), &TM_WALK_LIMITS_DEFAULT, &libc, &len, &fault), 0);
    assert_int_equal(len, 5);
}

#define TEST(name) cmocka_unit_test(name)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(captured_frames_of_every_operation_are_parsed_with_their_atoms),
        TEST(carried_terms_are_written_out),
        TEST(reference_that_the_frame_does_not_define_is_refused),
        TEST(failing_allocation_leaks_nothing),
        TEST(control_message_must_be_whole_to_be_measured),
    };
    return cmocka_run_group_tests_name("control atoms", tests, NULL, NULL);
}
