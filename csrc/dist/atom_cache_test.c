#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "atom_cache.h"
#include "cache_test.h"

/* -- scaffolding ------------------------------------------------------------------------------- */

typedef struct scene {
    test_cache own;
    tm_atom_header header;
    const char *what;
} scene;

static void scene_init(scene *s)
{
    memset(s, 0, sizeof *s);
    test_cache_init(&s->own);
}

static void scene_fini(scene *s) { test_cache_fini(&s->own); }

/* One entry of a header to be written. */
typedef struct entry {
    unsigned slot;
    const char *text; /* NULL: a slot that is known */
} entry;

/* The list as a peer would write it; its length. */
static size_t header_bytes(const entry *entries, size_t count, bool long_atoms, uint8_t *bytes)
{
    uint8_t *p = tm_store_u8(bytes, (uint8_t)count);
    if (!count) return 1;
    uint8_t *flags = p;
    size_t flags_len = count / 2 + 1;
    memset(flags, 0, flags_len);
    p += flags_len;
    for (size_t i = 0; i < count; i++) {
        unsigned nibble = (entries[i].text ? 8u : 0u) | entries[i].slot >> 8;
        flags[i / 2] |= (uint8_t)(nibble << (i % 2 * 4));
        p = tm_store_u8(p, (uint8_t)entries[i].slot);
        if (!entries[i].text) continue;
        size_t len = strlen(entries[i].text);
        p = long_atoms ? tm_store_u16(p, (uint16_t)len) : tm_store_u8(p, (uint8_t)len);
        p = tm_store_bytes(p, entries[i].text, len);
    }
    if (long_atoms) flags[count / 2] |= (uint8_t)(1u << (count % 2 * 4));
    return (size_t)(p - bytes);
}

/* Reads bytes in a block of exactly their size; "rest" must be left behind them. */
static int read_bytes(scene *s, const uint8_t *bytes, size_t len, size_t rest)
{
    uint8_t *copy = malloc(len + rest + !len);
    memcpy(copy, bytes, len);
    tm_cursor c = tm_cursor_of(tm_bytes_of(copy, len + rest));
    int rc = tm_atom_cache_read(&s->own.cache, &c, &s->header, &s->what);
    if (!rc) assert_int_equal(tm_cursor_left(&c), rest);
    free(copy);
    return rc;
}

static int read_header(scene *s, const entry *entries, size_t count, bool long_atoms)
{
    uint8_t *bytes = malloc(1 + 128 + 255 * (3 + TM_ATOM_BYTES_MAX));
    size_t len = header_bytes(entries, count, long_atoms, bytes);
    int rc = read_bytes(s, bytes, len, 3);
    free(bytes);
    return rc;
}

static void atom_is(const scene *s, size_t i, const char *text)
{
    assert_true(i < s->header.count);
    assert_true(tm_bytes_equal(s->header.atoms[i], tm_bytes_of(text, strlen(text))));
}

static void done(scene *s) { tm_atom_header_done(&s->own.cache, &s->header); }

/* -- entries ----------------------------------------------------------------------------------- */

static void entries_stay_until_their_slot_is_set_again(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    const entry first[] = {{0x701, "a@b"}, {5, ""}, {2047, "echo"}};
    assert_int_equal(read_header(&s, first, 3, false), 0);
    assert_int_equal(s.header.count, 3);
    atom_is(&s, 0, "a@b");
    atom_is(&s, 1, "");
    atom_is(&s, 2, "echo");
    done(&s);
    const entry again[] = {{2047, NULL}, {5, NULL}, {0x701, NULL}, {5, NULL}};
    assert_int_equal(read_header(&s, again, 4, false), 0);
    atom_is(&s, 0, "echo");
    atom_is(&s, 1, "");
    atom_is(&s, 2, "a@b");
    atom_is(&s, 3, "");
    done(&s);
    const entry other[] = {{5, "five"}, {5, NULL}};
    assert_int_equal(read_header(&s, other, 2, false), 0);
    atom_is(&s, 0, "five");
    atom_is(&s, 1, "five");
    done(&s);
    assert_int_equal(read_header(&s, NULL, 0, false), 0);
    assert_int_equal(s.header.count, 0);
    done(&s);
    assert_int_equal(s.own.cache.count, 3);
    assert_int_equal(s.own.cache.bytes, 3 + 4 + 4);
    scene_fini(&s);
}

static void slot_that_is_set_three_times_in_one_header_leaves_earlier_atoms_alone(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    const entry entries[] = {{9, "one"}, {9, "two"}, {9, NULL}, {9, "three"}, {9, "one"}};
    for (int round = 0; round < 2; round++) {
        assert_int_equal(read_header(&s, entries, 5, false), 0);
        atom_is(&s, 0, "one");
        atom_is(&s, 1, "two");
        atom_is(&s, 2, "two");
        atom_is(&s, 3, "three");
        atom_is(&s, 4, "one");
        done(&s);
        assert_int_equal(s.own.pool.atoms.count, 1); /* the others are named by nobody now */
    }
    scene_fini(&s);
}

static void lengths_have_two_bytes_where_the_header_says_so(void **state)
{
    (void)state;
    char wide[TM_ATOM_BYTES_MAX + 1] = {0};
    for (size_t i = 0; i < TM_ATOM_BYTES_MAX; i += 4) memcpy(wide + i, "\xf0\x9f\x98\x80", 4);
    const entry entries[] = {{1, "a"}, {0x7ff, wide}, {3, ""}, {4, "d"}, {1, NULL}};
    for (size_t count = 1; count <= 5; count++) {
        scene s;
        scene_init(&s);
        assert_int_equal(read_header(&s, entries, count, true), 0);
        atom_is(&s, 0, "a");
        if (count > 1) atom_is(&s, 1, wide);
        if (count > 4) atom_is(&s, 4, "a");
        done(&s);
        scene_fini(&s);
    }
}

static void header_may_have_255_atoms(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    entry entries[255];
    char texts[255][8];
    for (unsigned i = 0; i < 255; i++) {
        snprintf(texts[i], sizeof texts[i], "a%u", i);
        entries[i] = (entry){i * 8, texts[i]};
    }
    assert_int_equal(read_header(&s, entries, 255, false), 0);
    assert_int_equal(s.header.count, 255);
    for (unsigned i = 0; i < 255; i++) atom_is(&s, i, texts[i]);
    done(&s);
    scene_fini(&s);
}

/* Any order of new and known entries gives what a plain table of texts gives. */
static void random_headers_agree_with_a_plain_table(void **state)
{
    (void)state;
    for (uint64_t run = 1; run <= 20; run++) {
        uint64_t random = run;
        scene s;
        scene_init(&s);
        char table[TM_ATOM_CACHE_SLOTS][12] = {{0}};
        bool set[TM_ATOM_CACHE_SLOTS] = {false};
        for (int frame = 0; frame < 60; frame++) {
            entry entries[40];
            char texts[40][12], expected[40][12];
            size_t count = test_random(&random) % 40;
            for (size_t i = 0; i < count; i++) {
                unsigned slot = (unsigned)(test_random(&random) % TM_ATOM_CACHE_SLOTS);
                if (run % 2) slot %= 16;
                entries[i] = (entry){slot, NULL};
                if (!set[slot] || test_random(&random) % 3 == 0) {
                    unsigned number = (unsigned)(test_random(&random) % 50);
                    snprintf(texts[i], sizeof texts[i], "t%u", number);
                    memcpy(table[slot], texts[i], sizeof table[slot]);
                    set[slot] = true;
                    entries[i].text = texts[i];
                }
                memcpy(expected[i], table[slot], sizeof expected[i]);
            }
            assert_int_equal(read_header(&s, entries, count, frame % 2), 0);
            assert_int_equal(s.header.count, count);
            for (size_t i = 0; i < count; i++) atom_is(&s, i, expected[i]);
            done(&s);
        }
        assert_true(s.own.pool.atoms.count <= 50);
        scene_fini(&s);
    }
}

/* -- faults ------------------------------------------------------------------------------------ */

static void slot_that_was_never_set_is_refused_even_if_no_term_names_it(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    const entry known[] = {{3, "x"}, {4, NULL}};
    assert_int_equal(read_header(&s, known + 1, 1, false), TM_EPEER_MALFORMED);
    assert_string_equal(s.what, "atom cache slot that was never set");
    assert_int_equal(read_header(&s, known, 2, false), TM_EPEER_MALFORMED);
    assert_int_equal(s.header.count, 0);
    scene_fini(&s);
}

static void header_that_is_cut_off_is_refused_at_every_byte(void **state)
{
    (void)state;
    const entry entries[] = {{0x701, "a@b"}, {0x701, "other"}, {5, ""}, {5, NULL}, {9, "x"}};
    for (int form = 0; form < 2; form++) {
        uint8_t bytes[128];
        size_t len = header_bytes(entries, 5, form, bytes);
        for (size_t cut = 0; cut < len; cut++) {
            scene s;
            scene_init(&s);
            assert_int_equal(read_bytes(&s, bytes, cut, 0), TM_EPEER_MALFORMED);
            assert_string_equal(s.what, "the distribution header is cut off");
            scene_fini(&s);
        }
    }
}

static void text_that_is_no_atom_is_refused(void **state)
{
    (void)state;
    char chars[257], bytes[TM_ATOM_BYTES_MAX + 5];
    memset(chars, 'x', 256);
    chars[256] = 0;
    memset(bytes, 'y', sizeof bytes - 1);
    bytes[sizeof bytes - 1] = 0;
    const entry bad[] = {{1, "\xe9"}, {1, "\xed\xa0\x80"}, {1, chars}, {1, bytes}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        scene s;
        scene_init(&s);
        assert_int_equal(read_header(&s, &bad[i], 1, true), TM_EPEER_MALFORMED);
        assert_non_null(strstr(s.what, i < 2 || i == 3 ? "UTF-8" : "255 characters"));
        scene_fini(&s);
    }
}

/* -- memory ------------------------------------------------------------------------------------ */

static void fill(tm_atom_cache *cache, unsigned slot, const char *text)
{
    const entry one = {slot, text};
    uint8_t bytes[TM_ATOM_BYTES_MAX + 8];
    size_t len = header_bytes(&one, 1, true, bytes);
    tm_cursor c = tm_cursor_of(tm_bytes_of(bytes, len));
    tm_atom_header header;
    const char *what;
    assert_int_equal(tm_atom_cache_read(cache, &c, &header, &what), 0);
    tm_atom_header_done(cache, &header);
}

static void connections_share_the_texts_and_pay_for_slots_only(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    enum { CACHES = 100, ATOMS = 10 };
    tm_atom_cache *caches = calloc(CACHES, sizeof *caches);
    size_t texts = 0;
    for (size_t i = 0; i < CACHES; i++) {
        tm_atom_cache_init(&caches[i], &s.own.pool);
        for (unsigned n = 0; n < ATOMS; n++) {
            char text[200];
            memset(text, 'a' + (int)n, sizeof text - 1);
            text[sizeof text - 1] = 0;
            fill(&caches[i], n * 200, text);
        }
        if (i == 0) texts = s.own.pool.bytes;
        assert_int_equal(s.own.pool.bytes, texts);
    }
    /* Ten slots all over the table, as a BEAM spreads them: below 3 KiB. */
    assert_true((s.own.memory.stats.bytes - texts) / CACHES < 3 * TM_KIB);
    for (size_t i = 0; i < CACHES; i++) tm_atom_cache_fini(&caches[i]);
    free(caches);
    scene_fini(&s);
}

static void unused_cache_holds_nothing(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    for (int i = 0; i < 100; i++) assert_int_equal(read_header(&s, NULL, 0, false), 0);
    assert_int_equal(s.own.memory.bytes_peak, 0);
    scene_fini(&s);
}

static void cache_over_its_limit_ends_the_connection(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    char text[TM_ATOM_BYTES_MAX + 1] = {0};
    for (size_t i = 0; i < TM_ATOM_BYTES_MAX; i += 4) memcpy(text + i, "\xf0\x9f\x98\x80", 4);
    unsigned slot = 0;
    int rc = 0;
    for (; slot < TM_ATOM_CACHE_SLOTS && !rc; slot++) {
        const entry one = {slot, text};
        rc = read_header(&s, &one, 1, true);
        if (!rc) done(&s);
    }
    assert_int_equal(rc, TM_EPEER_LIMIT);
    assert_non_null(strstr(s.what, "limit"));
    assert_int_equal(slot, TM_ATOM_CACHE_BYTES_MAX / TM_ATOM_BYTES_MAX + 1);
    /* The longest names of plain letters fit all. */
    tm_atom_cache_fini(&s.own.cache);
    memset(text, 0, sizeof text);
    memset(text, 'n', 255);
    for (slot = 0; slot < TM_ATOM_CACHE_SLOTS; slot++) fill(&s.own.cache, slot, text);
    scene_fini(&s);
}

static void failing_allocation_leaks_nothing(void **state)
{
    (void)state;
    const entry entries[] = {{0x701, "a@b"}, {0x701, "other"}, {5, ""}, {900, "y"}, {5, NULL}};
    size_t n = 0;
    for (bool passed = false; !passed; n++) {
        scene s;
        scene_init(&s);
        s.own.memory.fail_after = n;
        int rc = read_header(&s, entries, 5, false);
        passed = !rc;
        if (rc) assert_int_equal(rc, TM_ENOMEM);
        if (!rc) done(&s);
        scene_fini(&s);
    }
    assert_true(n > 5);
}

static void atoms_that_are_kept_outlive_their_slots(void **state)
{
    (void)state;
    scene s;
    scene_init(&s);
    const entry entries[] = {{1, "one"}, {2, "two"}, {1, NULL}};
    const entry others[] = {{1, "uno"}, {2, "due"}};
    tm_cached_atom *kept[3];
    assert_int_equal(read_header(&s, entries, 3, false), 0);
    tm_atom_header_keep(&s.header, kept);
    done(&s);
    assert_int_equal(read_header(&s, others, 2, false), 0);
    done(&s);
    tm_atom_cache_fini(&s.own.cache);
    tm_atom_header_of(&s.header, kept, 3);
    atom_is(&s, 0, "one");
    atom_is(&s, 1, "two");
    atom_is(&s, 2, "one");
    for (size_t i = 0; i < 3; i++) tm_atom_unref(&s.own.pool, kept[i]);
    scene_fini(&s);
}

#define TEST(name) cmocka_unit_test(name)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(entries_stay_until_their_slot_is_set_again),
        TEST(slot_that_is_set_three_times_in_one_header_leaves_earlier_atoms_alone),
        TEST(lengths_have_two_bytes_where_the_header_says_so),
        TEST(header_may_have_255_atoms),
        TEST(random_headers_agree_with_a_plain_table),
        TEST(slot_that_was_never_set_is_refused_even_if_no_term_names_it),
        TEST(header_that_is_cut_off_is_refused_at_every_byte),
        TEST(text_that_is_no_atom_is_refused),
        TEST(connections_share_the_texts_and_pay_for_slots_only),
        TEST(unused_cache_holds_nothing),
        TEST(cache_over_its_limit_ends_the_connection),
        TEST(failing_allocation_leaks_nothing),
        TEST(atoms_that_are_kept_outlive_their_slots),
    };
    return cmocka_run_group_tests_name("atom cache", tests, NULL, NULL);
}
