/* Host names to addresses. A literal is answered at once; a name is looked up by a thread of its own,
 * made on first use, so that a slow name server never stops the engine. */
#ifndef TM_IO_RESOLVE_H
#define TM_IO_RESOLVE_H

#include "io.h"

/* An IPv4 or IPv6 literal; TM_EUSE_ARG for anything else. */
TM_MUST_CHECK int tm_resolve_literal(const char *host, uint16_t port, tm_io_address *address);
/* "127.0.0.1:4711", "[::1]:4711". */
void tm_resolve_format(const tm_io_address *address, char *text, size_t size);
void tm_resolve_set_port(tm_io_address *address, uint16_t port);
uint16_t tm_resolve_port(const tm_io_address *address);

typedef struct tm_resolver tm_resolver;

/* Called on the resolver's thread: rc 0 and an address (port 0), or a negative code. */
typedef void (*tm_resolved)(void *ctx, uint64_t request, int rc, const tm_io_address *address);

int tm_resolver_create(const tm_alloc *alloc, tm_resolved resolved, void *ctx,
                       tm_resolver **resolver);
/* Queues a look-up. TM_EBUSY when TM_RESOLVE_COUNT_MAX wait already. */
TM_MUST_CHECK int tm_resolver_ask(tm_resolver *resolver, const char *host, uint64_t request);
/* Waits for a look-up under way at most one second, then leaves the thread behind with its memory:
 * getaddrinfo cannot be interrupted. No callback comes after this returns. */
void tm_resolver_destroy(tm_resolver *resolver);

/* Look-ups that may wait: above it a name server is down and more would only wait longer. */
#define TM_RESOLVE_COUNT_MAX 256

#endif
