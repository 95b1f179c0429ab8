/* FLOAT_EXT: a float as text, which OTP wrote until R11 and still reads.
 *
 * strtod would decide the same, but by the decimal point of the process's locale. The question here
 * is smaller: is it the right shape, and does it round to a finite double. */
#include "leaf.h"

#define FLOAT_TEXT_SIZE 31

/* The first digits of the smallest number that rounds to infinity, 2^1024 - 2^970; it goes on, so a
 * text with exactly these digits is below it. No text has more digits than this one. */
static const char overflow_digits[] = "17976931348623158079372897140530";
static_assert(sizeof overflow_digits - 1 >= FLOAT_TEXT_SIZE, "as many digits as a text can have");
/* Its decimal exponent. */
#define OVERFLOW_EXPONENT 308
/* Where an exponent stops growing: far above all others, far below INT_MAX. */
#define EXPONENT_CAP 100000

typedef struct float_text {
    uint8_t digits[FLOAT_TEXT_SIZE]; /* significant ones, without leading zeros */
    int count;
    int exponent; /* of the first digit */
} float_text;

static bool is_digit(const uint8_t *p, const uint8_t *end)
{
    return p < end && *p >= '0' && *p <= '9';
}

/* One run of digits, at least one; those after the point lower the exponent. */
static const uint8_t *take_digits(float_text *f, const uint8_t *p, const uint8_t *end, bool after)
{
    if (!is_digit(p, end)) return NULL;
    for (; is_digit(p, end); p++) {
        bool leading = f->count == 0 && *p == '0';
        if (after && leading) f->exponent--;
        if (!after && f->count > 0) f->exponent++;
        if (!leading) f->digits[f->count++] = *p;
    }
    return p;
}

static const uint8_t *take_exponent(float_text *f, const uint8_t *p, const uint8_t *end)
{
    bool negative = p < end && *p == '-';
    if (p < end && (*p == '-' || *p == '+')) p++;
    if (!is_digit(p, end)) return NULL;
    int value = 0;
    for (; is_digit(p, end); p++)
        if (value < EXPONENT_CAP) value = value * 10 + (*p - '0');
    f->exponent += negative ? -value : value;
    return p;
}

static bool is_finite(const float_text *f)
{
    if (f->count == 0 || f->exponent < OVERFLOW_EXPONENT) return true;
    if (f->exponent > OVERFLOW_EXPONENT) return false;
    return memcmp(f->digits, overflow_digits, (size_t)f->count) <= 0;
}

bool tm_float_text_valid(const uint8_t text[FLOAT_TEXT_SIZE])
{
    const uint8_t *p = text, *end = text + FLOAT_TEXT_SIZE;
    float_text f = {.count = 0};
    if (*p == '-' || *p == '+') p++;
    p = take_digits(&f, p, end, false);
    if (!p || p == end || *p != '.') return false;
    /* Digits after the point of a number that is 0 before it start at exponent -1. */
    if (f.count == 0) f.exponent = -1;
    p = take_digits(&f, p + 1, end, true);
    if (!p) return false;
    if (p < end && (*p == 'e' || *p == 'E')) p = take_exponent(&f, p + 1, end);
    /* "%.20e" leaves room for a NUL, which OTP needs; what stands behind it means nothing. */
    return p && p < end && *p == 0 && is_finite(&f);
}
