/* Assertions. TM_ASSERT stays in release builds: a false one is a programmer's error and aborts.
 * TM_DCHECK exists in debug builds only. Neither may ever look at bytes that came from a peer. */
#ifndef TM_BASE_CHECK_H
#define TM_BASE_CHECK_H

__attribute__((noreturn, cold)) void tm_check_failed(const char *expr, const char *file, int line);

#define TM_ASSERT(expr)                                                                            \
    do {                                                                                           \
        if (__builtin_expect(!(expr), 0)) tm_check_failed(#expr, __FILE__, __LINE__);              \
    } while (0)

#ifdef TM_DEBUG
#define TM_DCHECK(expr) TM_ASSERT(expr)
#else
#define TM_DCHECK(expr)                                                                            \
    do {                                                                                           \
    } while (0)
#endif

#endif
