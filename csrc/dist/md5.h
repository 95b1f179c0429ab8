/* MD5 (RFC 1321). The handshake's digest is defined by it; it protects nothing else here. */
#ifndef TM_DIST_MD5_H
#define TM_DIST_MD5_H

#include <stddef.h>
#include <stdint.h>

#define TM_MD5_SIZE 16

typedef struct tm_md5 {
    uint32_t state[4];
    uint64_t len; /* bytes so far */
    uint8_t block[64];
} tm_md5;

void tm_md5_init(tm_md5 *md5);
void tm_md5_update(tm_md5 *md5, const void *bytes, size_t len);
void tm_md5_final(tm_md5 *md5, uint8_t digest[TM_MD5_SIZE]);

#endif
