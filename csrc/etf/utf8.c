#include "inline.h"

/* The byte p[i] continues a character. */
static inline bool continues(const uint8_t *p, size_t i) { return (p[i] & 0xc0) == 0x80; }

/* Length of the character at p, whose first byte is not ASCII; 0 when it is not one. The bounds of
 * the second byte keep out overlong forms, surrogates and what lies above U+10FFFF. */
static size_t utf8_wide(const uint8_t *p, size_t left)
{
    uint8_t first = p[0];
    if (first >= 0xc2 && first <= 0xdf) return left >= 2 && continues(p, 1) ? 2 : 0;
    if (first >= 0xe0 && first <= 0xef) {
        if (left < 3 || !continues(p, 1) || !continues(p, 2)) return 0;
        if (first == 0xe0 && p[1] < 0xa0) return 0;
        if (first == 0xed && p[1] > 0x9f) return 0;
        return 3;
    }
    if (first >= 0xf0 && first <= 0xf4) {
        if (left < 4 || !continues(p, 1) || !continues(p, 2) || !continues(p, 3)) return 0;
        if (first == 0xf0 && p[1] < 0x90) return 0;
        if (first == 0xf4 && p[1] > 0x8f) return 0;
        return 4;
    }
    return 0;
}

bool tm_utf8_valid(tm_bytes bytes, size_t *chars)
{
    const uint8_t *p = bytes.ptr;
    size_t left = bytes.len, count = 0;
    while (left) {
        uint64_t word;
        if (left >= 8 && (memcpy(&word, p, 8), !(word & TM_ASCII_MASK))) {
            p += 8, left -= 8, count += 8;
            continue;
        }
        size_t size = *p < 0x80 ? 1 : utf8_wide(p, left);
        if (!size) return false;
        p += size, left -= size, count++;
    }
    *chars = count;
    return true;
}
