#include "check.h"

#include <stdio.h>
#include <stdlib.h>

void tm_check_failed(const char *expr, const char *file, int line)
{
    fprintf(stderr, "tumen: assertion failed: %s (%s:%d)\n", expr, file, line);
    abort();
}
