#include "flags.h"

#include <string.h>

/* Longest name in flags.def. */
#define FLAG_NAME_SIZE 24

typedef struct flag_name {
    uint8_t bit;
    char text[FLAG_NAME_SIZE];
} flag_name;

static const flag_name flag_names[] = {
#define TM_FLAG(name, bit) {bit, #name},
#include "flags.def"
#undef TM_FLAG
};

static size_t text_add(char *text, size_t size, size_t len, const char *add)
{
    while (*add && len + 1 < size) text[len++] = *add++;
    text[len] = 0;
    return len;
}

size_t tm_flags_text(uint64_t flags, char *text, size_t size)
{
    size_t len = text_add(text, size, 0, "");
    for (unsigned bit = 0; bit < 64; bit++) {
        if (!(flags >> bit & 1)) continue;
        char number[] = {'b', 'i', 't', ' ', (char)('0' + bit / 10), (char)('0' + bit % 10), 0};
        const char *name = number;
        for (size_t i = 0; i < sizeof flag_names / sizeof *flag_names; i++)
            if (flag_names[i].bit == bit) name = flag_names[i].text;
        if (len) len = text_add(text, size, len, ", ");
        len = text_add(text, size, len, name);
    }
    return len;
}
