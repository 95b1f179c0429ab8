/* What the tests of this folder share: bytes from hex in a block of exactly their size, so that the
 * sanitizer sees a read behind it, and an allocator that counts and can fail. Not for others. */
#ifndef TM_ETF_TESTING_H
#define TM_ETF_TESTING_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "inline.h"

typedef struct test_heap {
    size_t bytes, peak, count, calls;
    size_t fail_at; /* the call that fails, from 1; 0: none */
} test_heap;

static inline void *test_heap_resize(void *ctx, void *ptr, size_t old_size, size_t new_size)
{
    test_heap *heap = ctx;
    if (new_size && ++heap->calls == heap->fail_at) return NULL;
    tm_alloc libc = tm_alloc_libc(NULL);
    void *result = libc.resize(libc.ctx, ptr, old_size, new_size);
    heap->bytes += new_size - old_size;
    heap->count += (size_t)(new_size != 0) - (size_t)(ptr != NULL);
    if (heap->bytes > heap->peak) heap->peak = heap->bytes;
    return result;
}

static inline tm_alloc test_alloc(test_heap *heap)
{
    return (tm_alloc){.resize = test_heap_resize, .ctx = heap};
}

/* A block of exactly len bytes: cmocka's own allocator would put guards behind it that hide a read
 * from the sanitizer. Released by test_release. */
static inline uint8_t *test_block(size_t len)
{
    tm_alloc libc = tm_alloc_libc(NULL);
    uint8_t *ptr = tm_alloc_get(&libc, len ? len : 1);
    assert_non_null(ptr);
    /* An empty one starts where its memory ends: any read of it is seen. */
    return len ? ptr : ptr + 1;
}

static inline tm_bytes test_copy(tm_bytes bytes)
{
    uint8_t *ptr = test_block(bytes.len);
    if (bytes.len) memcpy(ptr, bytes.ptr, bytes.len);
    return (tm_bytes){ptr, bytes.len};
}

static inline void test_release(tm_bytes bytes)
{
    tm_alloc libc = tm_alloc_libc(NULL);
    uint8_t *ptr = (uint8_t *)(uintptr_t)bytes.ptr;
    tm_alloc_free(&libc, bytes.len ? ptr : ptr - 1, bytes.len ? bytes.len : 1);
}

static inline int test_nibble(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

/* Appends hex; blanks are skipped, "(n)x" repeats byte x n times: "6d 00000003 (3)61". */
static inline void test_hex_append(tm_buf *buf, const char *hex)
{
    while (*hex) {
        if (*hex == ' ') {
            hex++;
            continue;
        }
        unsigned long times = 1;
        if (*hex == '(') {
            char *after;
            times = strtoul(hex + 1, &after, 10);
            assert_int_equal(*after, ')');
            hex = after + 1;
        }
        int high = test_nibble(hex[0]);
        int low = high < 0 ? -1 : test_nibble(hex[1]);
        assert_true(low >= 0);
        uint8_t byte = (uint8_t)(high << 4 | low);
        for (; times; times--) assert_int_equal(tm_buf_append(buf, &byte, 1), 0);
        hex += 2;
    }
}

/* Released by test_release. */
static inline tm_bytes test_hex(const char *hex)
{
    tm_alloc libc = tm_alloc_libc(NULL);
    tm_buf buf;
    tm_buf_init(&buf, &libc, 0);
    test_hex_append(&buf, hex);
    tm_bytes bytes = test_copy(tm_buf_bytes(&buf));
    tm_buf_fini(&buf);
    return bytes;
}

#endif
