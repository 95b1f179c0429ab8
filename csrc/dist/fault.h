/* Where and why bytes from a peer were refused. */
#ifndef TM_DIST_FAULT_H
#define TM_DIST_FAULT_H

#include <stddef.h>

typedef struct tm_fault {
    size_t offset;    /* bytes from the start of what was parsed */
    const char *what; /* static text; NULL while nothing is wrong */
} tm_fault;

#endif
