/* The embedded port mapper: csrc/dist's registry behind a listener of the engine's. */
#ifndef TM_CONN_MAPPER_H
#define TM_CONN_MAPPER_H

#include "engine.h"

struct tm_mapper;

/* Starts to serve; 0, -EADDRINUSE when another port mapper is there, or another error. Engine. */
TM_MUST_CHECK int tm_mapper_start(tumen_engine *engine, const char *host, uint16_t port);
void tm_mapper_free(tumen_engine *engine);

#endif
