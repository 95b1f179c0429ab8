#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "dist_test.h"
#include "md5.h"

static void digest_hex(const char *text, size_t step, char hex[33])
{
    tm_md5 md5;
    uint8_t digest[TM_MD5_SIZE];
    tm_md5_init(&md5);
    size_t len = strlen(text);
    for (size_t i = 0; i < len; i += step)
        tm_md5_update(&md5, text + i, len - i < step ? len - i : step);
    tm_md5_final(&md5, digest);
    for (size_t i = 0; i < sizeof digest; i++) snprintf(hex + 2 * i, 3, "%02x", digest[i]);
}

/* RFC 1321, A.5, and the lengths around the end of a block (from coreutils' md5sum). */
static const struct {
    const char *text, *hex;
} vectors[] = {
    {"", "d41d8cd98f00b204e9800998ecf8427e"},
    {"a", "0cc175b9c0f1b6a831c399e269772661"},
    {"abc", "900150983cd24fb0d6963f7d28e17f72"},
    {"message digest", "f96b697d7cb7938d525a2f31aaf161d0"},
    {"abcdefghijklmnopqrstuvwxyz", "c3fcd3d76192e4007dfb496cca67e13b"},
    {"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
     "d174ab98d277d9f5a5611c2c9f419d9f"},
    {"12345678901234567890123456789012345678901234567890123456789012345678901234567890",
     "57edf4a22be3c955ac49da2e2107b67a"},
    {"1234567890123456789012345678901234567890123456789012345", "c9ccf168914a1bcfc3229f1948e67da0"},
    {"12345678901234567890123456789012345678901234567890123456",
     "49f193adce178490e34d1b3a4ec0064c"},
    {"123456789012345678901234567890123456789012345678901234567890123",
     "c3eb67ece68488bb394241d4f6a54244"},
    {"1234567890123456789012345678901234567890123456789012345678901234",
     "eb6c4179c0a7c82cc2828c1e6338e165"},
};

static void md5_matches_the_rfc_whole_and_in_parts(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++)
        for (size_t step = 1; step <= 81; step += step < 65 ? 1 : 16) {
            char hex[33];
            digest_hex(vectors[i].text, step, hex);
            assert_string_equal(hex, vectors[i].hex);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(md5_matches_the_rfc_whole_and_in_parts)};
    return cmocka_run_group_tests_name("md5", tests, NULL, NULL);
}
