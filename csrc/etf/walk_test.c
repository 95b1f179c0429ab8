/* What the walk accepts, what it refuses and where, and what it costs. */
#include <stdio.h>

#include "testing.h"

static tm_walk_limits limits;
static test_heap heap;
static tm_alloc alloc;
static tm_walk_result result;

static int reset(void **state)
{
    (void)state;
    limits = TM_WALK_LIMITS_DEFAULT;
    heap = (test_heap){0};
    alloc = test_alloc(&heap);
    return 0;
}

static int no_leak(void **state)
{
    (void)state;
    return heap.count == 0 && heap.bytes == 0 ? 0 : -1;
}

static int walk(tm_bytes bytes)
{
    memset(&result, 0xa5, sizeof result);
    return tm_etf_walk(bytes, &limits, &alloc, &result);
}

static int walk_hex(const char *hex)
{
    tm_bytes bytes = test_hex(hex);
    int rc = walk(bytes);
    if (rc == 0) {
        if (result.what || result.path_len || result.len > bytes.len || !result.len) rc = 1;
        if (!limits.cache_refs && tm_etf_skip(bytes.ptr) != bytes.ptr + result.len) rc = 2;
    }
    test_release(bytes);
    return rc;
}

static void accepts(const char *hex)
{
    int rc = walk_hex(hex);
    if (rc) print_error("refused %s: %d, %s\n", hex, rc, rc < 0 ? result.what : "odd result");
    assert_int_equal(rc, 0);
}

static void refuses(const char *hex, const char *what)
{
    int rc = walk_hex(hex);
    if (rc != TM_EPEER_MALFORMED) print_error("answered %d to %s\n", rc, hex);
    assert_int_equal(rc, TM_EPEER_MALFORMED);
    if (!strstr(result.what, what)) print_error("%s\n", hex);
    if (!strstr(result.what, what)) assert_string_equal(result.what, what);
}

static void over_limit(const char *hex, const char *what)
{
    int rc = walk_hex(hex);
    if (rc != TM_EPEER_LIMIT) print_error("answered %d to %s\n", rc, hex);
    assert_int_equal(rc, TM_EPEER_LIMIT);
    if (!strstr(result.what, what)) assert_string_equal(result.what, what);
}

/* -- captured vectors -------------------------------------------------------------------------- */

static const char *vectors_dir = "tests/vectors";

#define VECTOR_HEX_MAX 4096

/* Whether line ends in the complete hex of a term; fills hex without the version byte. */
static bool vector_of(const char *line, char hex[VECTOR_HEX_MAX])
{
    const char *from = strrchr(line, ' ');
    if (!strncmp(line, "decode", 6) || !from) return false;
    size_t len = strcspn(++from, "\n");
    if (len < 4 || len % 2 || len >= VECTOR_HEX_MAX || strncmp(from, "83", 2)) return false;
    for (size_t i = 0; i < len; i++)
        if (test_nibble(from[i]) < 0) return false;
    memcpy(hex, from + 2, len - 2);
    hex[len - 2] = 0;
    return true;
}

/* Calls use with each term of the two files that is there in full; some are shortened. */
static void each_vector(void (*use)(tm_bytes term), size_t count_expected)
{
    const char *names[] = {"etf_otp25.txt", "etf_otp28.txt"};
    size_t count = 0;
    for (size_t i = 0; i < 2; i++) {
        char path[1024], line[2 * VECTOR_HEX_MAX], hex[VECTOR_HEX_MAX];
        snprintf(path, sizeof path, "%s/%s", vectors_dir, names[i]);
        FILE *file = fopen(path, "r");
        if (!file) print_error("no vectors at %s: give TM_VECTORS or an argument\n", path);
        assert_non_null(file);
        while (fgets(line, sizeof line, file)) {
            if (!vector_of(line, hex)) continue;
            tm_bytes term = test_hex(hex);
            use(term);
            test_release(term);
            count++;
        }
        assert_int_equal(fclose(file), 0);
    }
    assert_int_equal(count, count_expected);
}

/* Compressed terms are the business of who reads the version byte; local ones are nobody's. */
static bool refused_whole(tm_bytes term)
{
    return *term.ptr == TM_COMPRESSED || *term.ptr == TM_LOCAL_EXT;
}

#define VECTORS_COUNT 125

static void vector_walks(tm_bytes term)
{
    int rc = walk(term);
    if (refused_whole(term)) {
        assert_int_equal(rc, TM_EPEER_MALFORMED);
        assert_int_equal(result.offset, 0);
        return;
    }
    assert_int_equal(rc, 0);
    assert_int_equal(result.len, term.len);
    assert_ptr_equal(tm_etf_skip(term.ptr), term.ptr + term.len);
}

static void walk_accepts_captured_terms_whole(void **state)
{
    (void)state;
    each_vector(vector_walks, VECTORS_COUNT);
}

static void vector_cut(tm_bytes term)
{
    for (size_t len = 0; len < term.len; len++) {
        tm_bytes cut = test_copy((tm_bytes){term.ptr, len});
        assert_int_equal(walk(cut), TM_EPEER_MALFORMED);
        assert_true(result.offset <= len);
        assert_non_null(result.what);
        test_release(cut);
    }
}

static void walk_refuses_every_truncation_of_captured_terms(void **state)
{
    (void)state;
    each_vector(vector_cut, VECTORS_COUNT);
}

static void sane(tm_bytes term, int rc)
{
    if (rc == 0) {
        assert_true(result.len > 0 && result.len <= term.len);
        assert_ptr_equal(tm_etf_skip(term.ptr), term.ptr + result.len);
        return;
    }
    assert_true(rc == TM_EPEER_MALFORMED || rc == TM_EPEER_LIMIT);
    assert_non_null(result.what);
    assert_true(result.offset <= term.len);
    for (size_t i = 0; i < result.path_len && i < TM_WALK_PATH_MAX; i++)
        assert_true(result.path[i].offset < term.len && result.path[i].index < term.len);
}

static void vector_corrupted(tm_bytes term)
{
    tm_bytes copy = test_copy(term);
    uint8_t *bytes = (uint8_t *)(uintptr_t)copy.ptr;
    for (size_t i = 0; i < term.len; i++) {
        for (int change = 1; change < 256; change++) {
            bytes[i] = (uint8_t)(term.ptr[i] ^ change);
            sane(copy, walk(copy));
        }
        bytes[i] = term.ptr[i];
    }
    test_release(copy);
}

static void walk_survives_every_corrupted_byte_of_captured_terms(void **state)
{
    (void)state;
    each_vector(vector_corrupted, VECTORS_COUNT);
}

static void walk_decides_the_edge_cases_as_otp_does(void **state)
{
    (void)state;
    refuses("46 7ff8000000000000", "not finite");
    refuses("46 7ff0000000000000", "not finite");
    refuses("46 fff0000000000000", "not finite");
    accepts("63 312e3530303030303030303030303030303030303030652b3030 (5)00");
    accepts("6e 04 00 05000000"); /* leading zeros */
    accepts("6e 01 01 00");       /* -0 */
    accepts("6e 00 00");          /* no digits */
    accepts("6f 00000001 02 05"); /* any sign but 0 is minus */
    accepts("4d 00000001 08 ff"); /* a plain binary */
    accepts("4d 00000001 03 ff"); /* dirty tail */
    refuses("4d 00000001 00 ff", "bit count");
    refuses("4d 00000001 09 ff", "bit count");
    accepts("4d 00000000 00");
    refuses("4d 00000000 01", "bit count");
    accepts("6c 00000000 7701 61"); /* the tail itself */
    accepts("6b 0000");
    refuses("64 0100 (256)61", "longer than 255");
    refuses("77 01 ff", "UTF-8");
    accepts("77 01 00");
    refuses("5a 0006 770161 00000001 (24)00", "more than 5 words");
    accepts("5a 0000 770161 00000001");
    accepts("58 770161 000000010000000000000001"); /* a node name without @ */
    refuses("71 770161 770162 62ffffffff", "negative arity");
    accepts("71 770161 770162 620000012c"); /* arity 300 */
    refuses("75 00000000", "FUN_EXT");
    accepts("61 01 6a"); /* trailing bytes are not looked at */
    refuses("52 00", "cache reference");
    refuses("50 00000002 789c4bcc01000125 00c4", "compressed");
    refuses("67 770161 0000000100000000 04", "creation above 3");
    limits.decoded_bytes_max = UINT64_MAX;
    accepts("69 01000000 (16777216)6a"); /* a tuple of 2^24 */
}

/* -- one kind of term after another ------------------------------------------------------------ */

static void walk_refuses_nothing_at_all(void **state)
{
    (void)state;
    assert_int_equal(walk((tm_bytes){NULL, 0}), TM_EPEER_MALFORMED);
    assert_int_equal(result.offset, 0);
    assert_string_equal(result.what, "the term is cut off");
}

static void walk_refuses_tags_that_are_no_term(void **state)
{
    (void)state;
    bool known[256] = {false};
#define TM_TAG(name, value) known[value] = true;
#include "tag.def"
#undef TM_TAG
    for (unsigned tag = 0; tag < 256; tag++) {
        uint8_t bytes[64] = {(uint8_t)tag};
        if (known[tag]) continue;
        assert_int_equal(walk((tm_bytes){bytes, sizeof bytes}), TM_EPEER_MALFORMED);
        assert_int_equal(result.offset, 0);
        assert_string_equal(result.what,
                            tag == TM_ETF_VERSION ? "version byte inside a term" : "unknown tag");
    }
    refuses("79 e5c26f276802586a 770178", "local terms");
}

static void walk_bounds_atoms_by_characters(void **state)
{
    (void)state;
    accepts("64 00ff (255)e9");
    accepts("73 ff (255)e9");
    accepts("77 ff (255)61");
    accepts("76 00ff (255)61");
    refuses("76 0100 (256)61", "longer than 255");
    accepts("76 0100 (254)61 c3a9"); /* 255 characters in 256 bytes */
    refuses("76 0101 (255)61 c3a9", "longer than 255");
    refuses("76 03fd (1021)61", "longer than 255");
    refuses("64 03fd (1021)61", "longer than 255");
    refuses("77 02 c080", "UTF-8");     /* overlong */
    refuses("77 03 eda080", "UTF-8");   /* surrogate */
    refuses("77 04 f4908080", "UTF-8"); /* above U+10FFFF */
    refuses("77 09 (8)61 ff", "UTF-8");
    accepts("77 04 f48fbfbf");
}

static void walk_bounds_old_identifiers(void **state)
{
    (void)state;
    accepts("67 770161 ffffffffffffffff 03");
    accepts("66 770161 ffffffff 03");
    refuses("66 770161 ffffffff 04", "creation above 3");
    accepts("65 770161 0003ffff 03");
    refuses("65 770161 00040000 03", "18 bits");
    refuses("65 770161 00000000 04", "creation above 3");
    accepts("72 0005 770161 03 0003ffff (16)ff");
    accepts("72 0000 770161 03");
    refuses("72 0001 770161 04 00000000", "creation above 3");
    refuses("72 0001 770161 03 00040000", "18 bits");
    refuses("72 0006 770161 03 (24)00", "more than 5 words");
    accepts("58 770161 (12)ff");
    accepts("59 770161 (8)ff");
    accepts("78 770161 (12)ff");
    accepts("5a 0005 770161 (24)ff");
    refuses("58 6100 (12)00", "not an atom");
    assert_int_equal(result.offset, 1);
}

static void walk_parses_the_fields_of_funs(void **state)
{
    (void)state;
#define HEAD(size, free) "70" size "00 (16)11 00000000" free
#define PID "58 770161 (12)00"
    accepts(HEAD("00000040", "00000000") "770161 6100 6200000001" PID);
    accepts(HEAD("00000004", "00000000") "770161 6100 6200000001" PID);
    accepts(HEAD("ffffffff", "00000002") "770161 6100 6200000001" PID "6101 680161 01");
    accepts(HEAD("00000040", "000000ff") "770161 6100 6200000001" PID "(255)6a");
    accepts(HEAD("00000040", "00000000") "770161 62ffffffff 6e04 00 00000080" PID);
    accepts(HEAD("00000040", "00000000") "770161 6e08 01 0000000000000008 6100" PID);
    refuses(HEAD("00000003", "00000000") "770161 6100 6200000001" PID, "size of a fun");
    refuses(HEAD("00000040", "00000100") "770161 6100 6200000001" PID "(256)6a", "255 free");
    refuses(HEAD("00000040", "00000001") "770161 6100 6200000001" PID, "more parts");
    refuses(HEAD("00000040", "00000000") "6101 6100 6200000001" PID, "not an atom");
    refuses(HEAD("00000040", "00000000") "770161 770161 6200000001" PID, "field of a fun");
    refuses(HEAD("00000040", "00000000") "770161 6e08 00 0000000000000008 6100" PID, "field");
    refuses(HEAD("00000040", "00000000") "770161 6e09 00 (9)01 6100" PID, "field of a fun");
    refuses(HEAD("00000040", "00000000") "770161 6100 6e04 00 0000", "cut off");
    refuses(HEAD("00000040", "00000000") "770161 6100 6100 770161", "not a pid");
    refuses("71 770161 770162 770163", "arity of a fun");
    refuses("71 770161 770162 6e0100 01", "arity of a fun");
}

static void accepts_float(const char *text, bool accepted)
{
    uint8_t bytes[32] = {TM_FLOAT_EXT};
    memcpy(bytes + 1, text, strlen(text));
    int rc = walk((tm_bytes){bytes, sizeof bytes});
    if (rc != (accepted ? 0 : TM_EPEER_MALFORMED)) print_error("%s: %d\n", text, rc);
    assert_int_equal(rc, accepted ? 0 : TM_EPEER_MALFORMED);
}

static void walk_accepts_float_text_that_is_a_finite_number(void **state)
{
    (void)state;
    const char *good[] = {"1.5",
                          "+1.5",
                          "-1.5e10",
                          "1.5E5",
                          "0.0e400",
                          "-0.0",
                          "1.5e-400",
                          "0000000000001.5",
                          "00.001e310",
                          "17976931348623157.0e292",
                          "1.7976931348623157e308",
                          "1.79769313486231570815e308",
                          "1.797693134862315807937289e308",
                          "0.0017976931348623158e311",
                          "9.9e307",
                          "1.0e-99999999999999999999"};
    const char *bad[] = {"",
                         "1",
                         "1.",
                         ".5",
                         "1,5",
                         " 1.5",
                         "1.5x",
                         "1.5e",
                         "1.5e+",
                         "+",
                         "-.1",
                         "nan",
                         "inf",
                         "1.5e400",
                         "1.797693134862315808e308",
                         "1.8e308",
                         "1.797693134862315807937290e308",
                         "17976931348623159.0e292",
                         "0.0017976931348623159e311",
                         "1.0e309",
                         "10.0e308",
                         "1.0e99999999999999999999",
                         "1.500000000000000000000000000e0"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) accepts_float(good[i], true);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) accepts_float(bad[i], false);
    accepts("63 312e35 00 (27)78"); /* behind the NUL is nothing */
}

static void walk_knows_the_atom_cache_of_its_frame(void **state)
{
    (void)state;
    static const tm_bytes atoms[] = {{(const uint8_t *)"ok", 2}, {NULL, 0}, {NULL, 0}};
    refuses("52 00", "cache reference");
    limits.cache_refs = 3;
    limits.cache_atoms = atoms;
    accepts("52 02");
    refuses("52 03", "cache reference");
    accepts("58 52 00 (12)00");
    accepts("74 00000001 52 01 52 02");
    refuses("68 02 52 00 52 03", "cache reference");
    assert_int_equal(result.offset, 4);
}

static void walk_says_where_references_are_and_what_they_come_to(void **state)
{
    (void)state;
    uint8_t wide[TM_ATOM_BYTES_MAX];
    for (size_t i = 0; i < sizeof wide; i += 4) memcpy(wide + i, "\xf0\x9f\x98\x80", 4);
    const tm_bytes atoms[] = {{(const uint8_t *)"ok", 2}, {wide, 4}, {wide, sizeof wide}};
    limits.cache_refs = 3;
    limits.cache_atoms = atoms;
    accepts("68 03 52 00 58 52 02 (12)00 52 01");
    assert_int_equal(result.refs.count, 3);
    assert_int_equal(result.refs.at[0], 2);
    assert_int_equal(result.refs.at[1], 5);
    assert_int_equal(result.refs.at[2], 19);
    assert_int_equal(result.refs.growth, 2 + 4 + 1 + TM_ATOM_BYTES_MAX);
    accepts("6107");
    assert_int_equal(result.refs.count, 0);
    assert_int_equal(result.refs.growth, 0);
    /* ASCII costs what it costs written out; for wide characters the worst is taken. */
    accepts("77026f6b");
    uint64_t written = result.decoded_bytes;
    accepts("5200");
    assert_int_equal(result.decoded_bytes, written);
    accepts("7704f09f9880");
    written = result.decoded_bytes;
    accepts("5201");
    assert_true(result.decoded_bytes >= written);
    /* In runs too, and beyond those whose place is kept. */
    refuses("6c 00000028 (80)52 6a", "cache reference");
    tm_bytes many[83] = {0};
    for (size_t i = 0; i < 83; i++) many[i] = atoms[0];
    limits.cache_refs = 83;
    limits.cache_atoms = many;
    accepts("6c 00000028 (80)52 6a");
    assert_int_equal(result.refs.count, 40);
    assert_int_equal(result.refs.growth, 80);
    for (uint32_t i = 0; i < TM_WALK_REFS_MAX; i++) assert_int_equal(result.refs.at[i], 5 + 2 * i);
}

static void walk_takes_runs_of_any_length_and_mixture(void **state)
{
    (void)state;
    const char *kinds[] = {"6107",           "6200000107", "46 3ff8000000000000",
                           "7702 6f6b",      "7709 (9)61", "7702 c3a9",
                           "6d 00000001 78", "6a",         "6e 01 00 05"};
    enum { KINDS = sizeof kinds / sizeof *kinds, LENGTH_MAX = 40 };
    tm_alloc libc = tm_alloc_libc(NULL);
    uint32_t random = 1;
    for (uint32_t count = 1; count < LENGTH_MAX; count++) {
        for (unsigned shape = 0; shape < 64; shape++) {
            tm_buf buf;
            tm_buf_init(&buf, &libc, 0);
            assert_int_equal(tm_etf_write_list(&buf, count), 0);
            for (uint32_t i = 0; i < count; i++) {
                random = random * 1664525u + 1013904223u;
                unsigned kind = shape < KINDS ? shape : (random >> 16) % (shape % KINDS + 1);
                test_hex_append(&buf, kinds[kind]);
            }
            assert_int_equal(tm_etf_write_nil(&buf), 0);
            tm_bytes term = test_copy(tm_buf_bytes(&buf));
            assert_int_equal(walk(term), 0);
            assert_int_equal(result.len, term.len);
            if (shape >= KINDS && count > 12) vector_cut(term);
            test_release(term);
            tm_buf_fini(&buf);
        }
    }
}

/* -- counts and limits ------------------------------------------------------------------------- */

static void walk_refuses_counts_above_the_bytes_left(void **state)
{
    (void)state;
    refuses("69 ffffffff 6a", "more parts");
    refuses("6c ffffffff 6a6a", "more parts");
    refuses("74 ffffffff 6a6a", "more parts");
    refuses("74 00000001 6a", "more parts");
    refuses("6c 00000002 6a6a", "more parts"); /* no room for the tail */
    refuses("6d ffffffff 6a", "cut off");
    refuses("6f ffffffff 00 6a", "cut off");
    refuses("6b ffff 6a", "cut off");
    refuses("4d ffffffff 08 6a", "cut off");
    assert_int_equal(heap.calls, 0);
}

static void walk_adds_the_promises_of_all_open_containers(void **state)
{
    (void)state;
    /* Each head alone could be true of the bytes left; the last one cannot any more. */
    refuses("6808 6808 (14)6a", "more parts");
    assert_int_equal(result.offset, 2);
    assert_int_equal(result.path_len, 1);
    accepts("6808 6808 (15)6a");
    refuses("6808 6808 6808 (21)6a", "more parts");
    assert_int_equal(result.offset, 4);
    assert_int_equal(result.path_len, 2);
    accepts("6808 6808 6808 (22)6a");
}

static void walk_forgets_a_promise_that_was_kept(void **state)
{
    (void)state;
    accepts("6804 6802 6801 6a 6a 6802 6801 6a 6a 6802 6801 6a 6a 6802 6801 6a 6a");
    assert_int_equal(result.len, 26);
}

static void walk_keeps_depth_within_its_limit(void **state)
{
    (void)state;
    limits.depth_max = 3;
    accepts("6801 6801 6801 6a");
    assert_int_equal(result.depth, 3);
    over_limit("6801 6801 6801 6801 6a", "depth_max");
    assert_int_equal(result.depth, 4);
    assert_int_equal(result.len, 9);
    assert_int_equal(result.offset, 6);
    assert_int_equal(result.path_len, 3);
    limits.depth_max = 0;
    accepts("61 01");
    assert_int_equal(result.depth, 0);
    accepts("68 00");
    over_limit("68 01 6a", "depth_max");
    assert_int_equal(result.path_len, 0);
    over_limit("6c 00000000 6a", "depth_max"); /* a tail is a part */
}

static void walk_validates_what_lies_below_the_depth_limit(void **state)
{
    (void)state;
    limits.depth_max = 1;
    over_limit("68 02 6802 6801 6a 6a 6101", "depth_max");
    assert_int_equal(result.len, 10);
    refuses("68 02 6802 6801 75 6a 6101", "FUN_EXT");
    assert_int_equal(result.offset, 6);
    assert_int_equal(result.path_len, 0); /* parts that were counted together have no index */
    /* What is counted into a frame is promised once: the second part is whole to its last byte. */
    over_limit("68 02 6803 6801 6801 6801 6a 6a 6a 6803 6801 6801 6801 6a 6a 6a", "depth_max");
    assert_int_equal(result.len, 24);
    refuses("68 02 6802 6801 6a 6a", "more parts");
    refuses("68 02 6802 6801 6a 6101 75", "FUN_EXT");
}

/* A term of depth 1-tuples around []. */
static tm_bytes nested(size_t depth)
{
    uint8_t *bytes = test_block(2 * depth + 1);
    for (size_t i = 0; i < depth; i++) tm_store_u16(bytes + 2 * i, 0x6801);
    bytes[2 * depth] = TM_NIL_EXT;
    return (tm_bytes){bytes, 2 * depth + 1};
}

static void walk_of_a_million_levels_stays_small(void **state)
{
    (void)state;
    tm_bytes term = nested(1000001);
    assert_int_equal(walk(term), TM_EPEER_LIMIT);
    assert_int_equal(result.len, term.len);
    assert_int_equal(result.path_len, TM_DEPTH_DEFAULT);
    assert_true(heap.peak <= 3 * 16 * (TM_DEPTH_DEFAULT + 1));
    limits.depth_max = UINT32_MAX; /* held at TM_DEPTH_MAX */
    assert_int_equal(walk(term), TM_EPEER_LIMIT);
    assert_int_equal(result.depth, TM_DEPTH_MAX + 1);
    assert_true(heap.peak <= 16 * term.len);
    term.ptr += 2;
    term.len -= 2;
    assert_int_equal(walk(term), 0);
    assert_int_equal(result.depth, TM_DEPTH_MAX);
    term.len -= 1;
    assert_int_equal(walk(term), TM_EPEER_MALFORMED);
    term.ptr -= 2;
    term.len += 3;
    test_release(term);
}

static void walk_reports_big_integers_over_the_limit_at_the_end(void **state)
{
    (void)state;
    limits.big_bytes_max = 4;
    accepts("6e 04 00 01020304");
    over_limit("68 02 6e 05 00 0102030405 6101", "big_bytes_max");
    assert_int_equal(result.offset, 2);
    assert_int_equal(result.len, 12);
    assert_int_equal(result.path_len, 1);
    assert_int_equal(result.path[0].index, 0);
    over_limit("6f 00000005 00 0102030405", "big_bytes_max");
    refuses("68 02 6e 05 00 0102030405 75", "FUN_EXT");
    limits.depth_max = 0; /* the first excess is the one that is told */
    over_limit("68 01 6e 05 00 0102030405", "depth_max");
}

static void walk_estimates_what_a_term_becomes(void **state)
{
    (void)state;
    const struct {
        const char *hex;
        uint64_t bytes;
    } terms[] = {
        {"61 01", 8},
        {"62 00000100", 8 + 32},
        {"46 3ff8000000000000", 8 + 24},
        {"6a", 8 + 64},
        {"68 02 6101 6101", 8 + 40 + 2 * 8},
        {"69 00000002 6101 6101", 8 + 40 + 2 * 8},
        {"6c 00000002 6101 6101 6a", 8 + 56 + 2 * 8 + 64},
        {"6b 0003 616263", 8 + 56 + 3 * 8},
        {"6d 00000003 616263", 8 + 33 + 3},
        {"74 00000000", 8 + 64},
        {"74 00000001 6101 6102", 8 + 224 + 56},
        {"77 02 6f6b", 8 + 128 + 2},
        {"64 0002 6f6b", 8 + 128 + 2},
        {"77 02 c3a9", 8 + 128 + 4},
        {"58 770161 (12)00", 8 + 128 + 128 + 1},
        {"6e 08 00 (8)01", 8 + 32 + 8 + 1},
    };
    for (size_t i = 0; i < sizeof terms / sizeof *terms; i++) {
        accepts(terms[i].hex);
        assert_int_equal(result.decoded_bytes, terms[i].bytes);
    }
}

static void walk_bounds_the_decoded_size(void **state)
{
    (void)state;
    limits.decoded_bytes_max = 8 + 40 + 3 * 8 + 3 * 64;
    accepts("68 03 (3)6a");
    limits.decoded_bytes_max--;
    over_limit("68 03 (3)6a", "decoded_bytes_max");
    assert_int_equal(result.len, 5);
    assert_int_equal(result.decoded_bytes, limits.decoded_bytes_max + 1);
    assert_int_equal(result.offset, 0);
    assert_int_equal(result.path_len, 0);
    refuses("68 03 6a6a75", "FUN_EXT");
}

/* -- paths ------------------------------------------------------------------------------------- */

static void step_is(size_t level, uint8_t tag, uint32_t index, uint8_t part, size_t offset)
{
    assert_true(level < result.path_len);
    assert_int_equal(result.path[level].tag, tag);
    assert_int_equal(result.path[level].index, index);
    assert_int_equal(result.path[level].part, part);
    assert_int_equal(result.path[level].offset, offset);
}

static void walk_names_the_path_to_what_is_wrong(void **state)
{
    (void)state;
    refuses("68 03 6101 7701 61 75 ", "FUN_EXT");
    assert_int_equal(result.path_len, 1);
    step_is(0, TM_SMALL_TUPLE_EXT, 2, 0, 0);
    refuses("69 00000003 6101 6c 00000002 6a 75 6a 6a", "FUN_EXT");
    assert_int_equal(result.offset, 13);
    assert_int_equal(result.path_len, 2);
    step_is(0, TM_LARGE_TUPLE_EXT, 1, 0, 0);
    step_is(1, TM_LIST_EXT, 1, 0, 7);
    refuses("6c 00000001 6a 75", "FUN_EXT");
    step_is(0, TM_LIST_EXT, 1, 1, 0);
    refuses("74 00000002 6101 6a 75 6a", "FUN_EXT");
    step_is(0, TM_MAP_EXT, 1, 0, 0);
    refuses("74 00000002 6101 6a 6102 75", "FUN_EXT");
    step_is(0, TM_MAP_EXT, 1, 1, 0);
    refuses("68 01" HEAD("00000040", "00000002") "770161 6100 6100" PID "6101 75", "FUN_EXT");
    assert_int_equal(result.path_len, 2);
    step_is(1, TM_NEW_FUN_EXT, 1, 0, 2);
    refuses("75", "FUN_EXT");
    assert_int_equal(result.path_len, 0);
}

static void walk_keeps_the_outermost_levels_of_a_long_path(void **state)
{
    (void)state;
    tm_bytes term = nested(200);
    *(uint8_t *)(uintptr_t)(term.ptr + term.len - 1) = TM_FUN_EXT;
    assert_int_equal(walk(term), TM_EPEER_MALFORMED);
    assert_int_equal(result.offset, 400);
    assert_int_equal(result.path_len, 200);
    for (size_t i = 0; i < TM_WALK_PATH_MAX; i++) step_is(i, TM_SMALL_TUPLE_EXT, 0, 0, 2 * i);
    test_release(term);
}

/* -- memory ------------------------------------------------------------------------------------ */

static void walk_needs_no_memory_for_shallow_terms(void **state)
{
    (void)state;
    tm_bytes term = nested(63);
    assert_int_equal(walk(term), 0);
    assert_int_equal(heap.calls, 0);
    test_release(term);
}

static void walk_reports_each_failed_allocation(void **state)
{
    (void)state;
    tm_bytes term = nested(1000);
    size_t fail_at = 1;
    for (;; fail_at++) {
        heap = (test_heap){.fail_at = fail_at};
        int rc = walk(term);
        assert_int_equal(heap.count, 0);
        if (rc == 0) break;
        assert_int_equal(rc, TM_ENOMEM);
    }
    assert_true(fail_at > 3);
    test_release(term);
}

int main(int argc, char **argv)
{
    if (getenv("TM_VECTORS")) vectors_dir = getenv("TM_VECTORS");
    if (argc > 1) vectors_dir = argv[1];
#define TEST(name) cmocka_unit_test_setup_teardown(name, reset, no_leak)
    const struct CMUnitTest tests[] = {
        TEST(walk_accepts_captured_terms_whole),
        TEST(walk_refuses_every_truncation_of_captured_terms),
        TEST(walk_survives_every_corrupted_byte_of_captured_terms),
        TEST(walk_decides_the_edge_cases_as_otp_does),
        TEST(walk_refuses_nothing_at_all),
        TEST(walk_refuses_tags_that_are_no_term),
        TEST(walk_bounds_atoms_by_characters),
        TEST(walk_bounds_old_identifiers),
        TEST(walk_parses_the_fields_of_funs),
        TEST(walk_accepts_float_text_that_is_a_finite_number),
        TEST(walk_knows_the_atom_cache_of_its_frame),
        TEST(walk_says_where_references_are_and_what_they_come_to),
        TEST(walk_takes_runs_of_any_length_and_mixture),
        TEST(walk_refuses_counts_above_the_bytes_left),
        TEST(walk_adds_the_promises_of_all_open_containers),
        TEST(walk_forgets_a_promise_that_was_kept),
        TEST(walk_keeps_depth_within_its_limit),
        TEST(walk_validates_what_lies_below_the_depth_limit),
        TEST(walk_of_a_million_levels_stays_small),
        TEST(walk_reports_big_integers_over_the_limit_at_the_end),
        TEST(walk_estimates_what_a_term_becomes),
        TEST(walk_bounds_the_decoded_size),
        TEST(walk_names_the_path_to_what_is_wrong),
        TEST(walk_keeps_the_outermost_levels_of_a_long_path),
        TEST(walk_needs_no_memory_for_shallow_terms),
        TEST(walk_reports_each_failed_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
