/* Error codes for the core: the public ones, and the attribute that nobody may ignore them. */
#ifndef TM_BASE_ERROR_H
#define TM_BASE_ERROR_H

#include "../error.h"

#define TM_MUST_CHECK __attribute__((warn_unused_result))

#endif
