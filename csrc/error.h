/* The error codes of the whole API as an enum, from error.def. */
#ifndef TUMEN_ERROR_H
#define TUMEN_ERROR_H

enum tumen_error {
    TM_OK = 0,
#define TM_ERROR(name, value, text) name = (value),
#include "error.def"
#undef TM_ERROR
};

#endif
