/* An atom cache with the pool and the memory beneath it, as the tests of dist want it. */
#ifndef TM_DIST_CACHE_TEST_H
#define TM_DIST_CACHE_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "atom_cache.h"
#include "dist_test.h"

typedef struct test_cache {
    test_alloc memory;
    tm_atom_pool pool;
    tm_atom_cache cache;
} test_cache;

TEST_UNUSED static void test_cache_init(test_cache *self)
{
    static const uint64_t seed[2] = {1, 2};
    test_alloc_init(&self->memory, SIZE_MAX);
    tm_atom_pool_init(&self->pool, &self->memory.alloc, seed);
    tm_atom_cache_init(&self->cache, &self->pool);
}

/* Nothing is left, and that before the pool ends. */
TEST_UNUSED static void test_cache_fini(test_cache *self)
{
    tm_atom_cache_fini(&self->cache);
    tm_atom_cache_fini(&self->cache); /* harmless twice */
    assert_int_equal(self->pool.bytes, 0);
    assert_int_equal(self->memory.stats.bytes, 0);
    tm_atom_pool_fini(&self->pool);
}

#endif
