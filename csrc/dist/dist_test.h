/* What the tests and fuzz targets of dist share: vectors as data, an allocator that fails on
 * demand, seeded splits, comparison of control messages. */
#ifndef TM_DIST_DIST_TEST_H
#define TM_DIST_DIST_TEST_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../base/alloc.h"
#include "../base/buf.h"
#include "../base/bytes.h"

#define TEST_UNUSED __attribute__((unused))

/* -- memory ------------------------------------------------------------------------------------ */

typedef struct test_alloc {
    tm_alloc_stats stats;
    tm_alloc libc;
    tm_alloc alloc;    /* to be handed out */
    size_t fail_after; /* this many allocations succeed, the next one fails; SIZE_MAX: none fails */
    size_t bytes_peak;
} test_alloc;

static void *test_resize(void *ctx, void *ptr, size_t old_size, size_t new_size)
{
    test_alloc *self = ctx;
    if (new_size) {
        if (!self->fail_after) return NULL;
        if (self->fail_after != SIZE_MAX) self->fail_after--;
    }
    void *result = self->libc.resize(self->libc.ctx, ptr, old_size, new_size);
    if (self->stats.bytes > self->bytes_peak) self->bytes_peak = self->stats.bytes;
    return result;
}

TEST_UNUSED static void test_alloc_init(test_alloc *self, size_t fail_after)
{
    *self = (test_alloc){.fail_after = fail_after};
    self->libc = tm_alloc_libc(&self->stats);
    self->alloc = (tm_alloc){.resize = test_resize, .ctx = self};
}

/* -- random numbers: xorshift64*, so that a seed means the same everywhere --------------------- */

TEST_UNUSED static uint64_t test_random(uint64_t *state)
{
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 0x2545f4914f6cdd1dULL;
}

/* -- vectors ----------------------------------------------------------------------------------- */

#ifndef TEST_VECTORS
#define TEST_VECTORS NULL
#endif

TEST_UNUSED static FILE *test_vectors_open(const char *name)
{
    char path[4096];
    const char *dir = TEST_VECTORS;
    const char *slash = strrchr(__FILE__, '/');
    if (dir)
        snprintf(path, sizeof path, "%s/%s", dir, name);
    else
        snprintf(path, sizeof path, "%.*s/../../tests/vectors/%s",
                 slash ? (int)(slash - __FILE__) : 1, slash ? __FILE__ : ".", name);
    FILE *file = fopen(path, "r");
    if (!file) {
        fprintf(stderr, "cannot open %s\n", path);
        abort();
    }
    return file;
}

/* Hex digits up to the end of the line or two spaces; single spaces are skipped. */
TEST_UNUSED static size_t test_hex(const char *text, uint8_t *bytes, size_t size)
{
    size_t digits = 0;
    for (; *text && *text != '\n' && !(text[0] == ' ' && text[1] == ' '); text++) {
        if (*text == ' ') continue;
        const char *all = "0123456789abcdef", *at = strchr(all, *text);
        if (!at || digits / 2 >= size) abort();
        uint8_t nibble = (uint8_t)(at - all);
        unsigned high = digits % 2 ? (unsigned)bytes[digits / 2] << 4 : 0;
        bytes[digits / 2] = (uint8_t)(high | nibble);
        digits++;
    }
    if (digits % 2) abort();
    return digits / 2;
}

typedef struct test_line {
    char key[8]; /* "->", "<-", "req", "resp", … */
    uint8_t bytes[1024];
    size_t len;
} test_line;

/* Fills lines with the lines of "[section]": a key, a space, hex. Returns how many; aborts on
 * none. */
TEST_UNUSED static size_t test_section(const char *file_name, const char *section, test_line *lines,
                                       size_t max)
{
    FILE *file = test_vectors_open(file_name);
    char text[4096], header[256];
    snprintf(header, sizeof header, "[%s]\n", section);
    bool inside = false;
    size_t count = 0;
    while (fgets(text, sizeof text, file)) {
        if (*text == '[') inside = strcmp(text, header) == 0;
        char *space = strchr(text, ' ');
        if (!inside || *text == '[' || *text == '#' || *text == '\n' || !space) continue;
        if (count == max || (size_t)(space - text) >= sizeof lines->key) abort();
        test_line *line = &lines[count++];
        memset(line, 0, sizeof *line);
        memcpy(line->key, text, (size_t)(space - text));
        line->len = test_hex(space + 1, line->bytes, sizeof line->bytes);
    }
    fclose(file);
    if (!count) {
        fprintf(stderr, "no section [%s] in %s\n", section, file_name);
        abort();
    }
    return count;
}

TEST_UNUSED static tm_bytes test_line_bytes(const test_line *line)
{
    return tm_bytes_of(line->bytes, line->len);
}

#endif
