#include "md5.h"

#include <string.h>

#define BLOCK_SIZE 64
#define LENGTH_OFFSET 56 /* of the bit count in the last block */

/* 2^32 * |sin(i + 1)|, rounded down: the RFC's table T. */
static const uint32_t sines[64] = {
    0xd76aa478, 0xe8c7b756, 0x242070db, 0xc1bdceee, 0xf57c0faf, 0x4787c62a, 0xa8304613, 0xfd469501,
    0x698098d8, 0x8b44f7af, 0xffff5bb1, 0x895cd7be, 0x6b901122, 0xfd987193, 0xa679438e, 0x49b40821,
    0xf61e2562, 0xc040b340, 0x265e5a51, 0xe9b6c7aa, 0xd62f105d, 0x02441453, 0xd8a1e681, 0xe7d3fbc8,
    0x21e1cde6, 0xc33707d6, 0xf4d50d87, 0x455a14ed, 0xa9e3e905, 0xfcefa3f8, 0x676f02d9, 0x8d2a4c8a,
    0xfffa3942, 0x8771f681, 0x6d9d6122, 0xfde5380c, 0xa4beea44, 0x4bdecfa9, 0xf6bb4b60, 0xbebfbc70,
    0x289b7ec6, 0xeaa127fa, 0xd4ef3085, 0x04881d05, 0xd9d4d039, 0xe6db99e5, 0x1fa27cf8, 0xc4ac5665,
    0xf4292244, 0x432aff97, 0xab9423a7, 0xfc93a039, 0x655b59c3, 0x8f0ccc92, 0xffeff47d, 0x85845dd1,
    0x6fa87e4f, 0xfe2ce6e0, 0xa3014314, 0x4e0811a1, 0xf7537e82, 0xbd3af235, 0x2ad7d2bb, 0xeb86d391};

/* Left rotation of each step: four a round, in turn. */
static const uint8_t shifts[4][4] = {
    {7, 12, 17, 22}, {5, 9, 14, 20}, {4, 11, 16, 23}, {6, 10, 15, 21}};

static void md5_block(uint32_t state[4], const uint8_t block[BLOCK_SIZE])
{
    uint32_t words[16];
    memcpy(words, block, sizeof words); /* little-endian, as the hosts we support */
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    for (uint32_t i = 0; i < 64; i++) {
        uint32_t mix, index;
        if (i < 16) {
            mix = (b & c) | (~b & d);
            index = i;
        } else if (i < 32) {
            mix = (b & d) | (c & ~d);
            index = (5 * i + 1) % 16;
        } else if (i < 48) {
            mix = b ^ c ^ d;
            index = (3 * i + 5) % 16;
        } else {
            mix = c ^ (b | ~d);
            index = 7 * i % 16;
        }
        uint32_t sum = a + mix + sines[i] + words[index];
        uint8_t shift = shifts[i / 16][i % 4];
        a = d;
        d = c;
        c = b;
        b += sum << shift | sum >> (32 - shift);
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
}

void tm_md5_init(tm_md5 *md5)
{
    *md5 = (tm_md5){.state = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}};
}

void tm_md5_update(tm_md5 *md5, const void *bytes, size_t len)
{
    const uint8_t *from = bytes;
    while (len) {
        size_t used = md5->len % BLOCK_SIZE;
        size_t take = BLOCK_SIZE - used < len ? BLOCK_SIZE - used : len;
        memcpy(md5->block + used, from, take);
        md5->len += take;
        from += take;
        len -= take;
        if (used + take == BLOCK_SIZE) md5_block(md5->state, md5->block);
    }
}

void tm_md5_final(tm_md5 *md5, uint8_t digest[TM_MD5_SIZE])
{
    static const uint8_t padding[BLOCK_SIZE] = {0x80};
    uint64_t bits = md5->len * 8;
    size_t used = md5->len % BLOCK_SIZE;
    size_t pad = (used < LENGTH_OFFSET ? LENGTH_OFFSET : LENGTH_OFFSET + BLOCK_SIZE) - used;
    tm_md5_update(md5, padding, pad);
    tm_md5_update(md5, &bits, sizeof bits); /* little-endian */
    memcpy(digest, md5->state, TM_MD5_SIZE);
}
