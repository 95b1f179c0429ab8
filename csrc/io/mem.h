/* The seeded fake network: several tm_io on one tm_mem_net, in virtual time.
 *
 * Addresses are ports: the net looks at the port of a sockaddr_in or sockaddr_in6 and at nothing
 * else. Everything that a kernel may do to a stream happens here on purpose, drawn from one
 * 64-bit seed: short sends, bytes that arrive in other pieces than they were sent in, delays,
 * completions of different sockets in any order, refused connects, resets, silence in one
 * direction. The same seed and the same calls give the same run.
 *
 * Time stands still until the test moves it: a turn hands out what is due and returns. A driver
 * turns each tm_io, and when nothing happened moves the net to tm_mem_net_next_ns or to its own
 * next timer, whichever is first. Bytes of one direction of a socket keep their order and arrive
 * once; a FIN comes behind them; nothing else is promised.
 *
 * One thread uses a net and its backends, except for wake. Destroy the backends before the
 * net. */
#ifndef TM_IO_MEM_H
#define TM_IO_MEM_H

#include "io.h"

typedef struct tm_mem_net tm_mem_net;

/* Zeroed options are a kind network: no delay, no fault, 64 KiB of room in each direction. */
typedef struct tm_mem_options {
    uint64_t seed;
    uint64_t delay_ns_max; /* each completion waits 0 .. this */
    uint32_t room_bytes;   /* in each direction of a connection: how much may be on its way */
    uint32_t short_send_per_mille; /* a send takes a random part of what it could */
    uint32_t split_per_mille;      /* a piece that arrives is cut at a random point */
    uint32_t refuse_per_mille;     /* a connect is refused */
    uint32_t stall_per_mille;      /* a piece waits stall_ns more, and all behind it */
    uint64_t stall_ns;
    uint64_t reset_step; /* the connection of the n-th completion is reset; 0 never */
} tm_mem_options;

/* fills *net. alloc is borrowed for the life of the net. 0 or TM_ENOMEM. */
TM_MUST_CHECK int tm_mem_net_create(const tm_alloc *alloc, const tm_mem_options *options,
                                    tm_mem_net **net);
void tm_mem_net_destroy(tm_mem_net *net);

/* The options may change while the net runs; seed is not looked at again. */
tm_mem_options *tm_mem_net_options(tm_mem_net *net);

uint64_t tm_mem_net_now_ns(const tm_mem_net *net);
/* Moves time forward; never backward. */
void tm_mem_net_set_now_ns(tm_mem_net *net, uint64_t now_ns);
/* When the next completion of any backend is due (now for one that is due or woken), or
 * UINT64_MAX when the net is at rest. */
uint64_t tm_mem_net_next_ns(const tm_mem_net *net);
/* Completions handed out so far: what reset_step counts. */
uint64_t tm_mem_net_steps(const tm_mem_net *net);

/* fills *io: a backend on this net. 0, TM_EUSE_ARG or TM_ENOMEM. */
TM_MUST_CHECK int tm_io_mem_create(tm_mem_net *net, const tm_io_options *options, tm_io **io);

/* Holds what socket sends from now on until until_ns; UINT64_MAX for ever, 0 lets go. */
void tm_mem_stall(tm_io *io, tm_io_id socket, uint64_t until_ns);
/* Resets the connection: both ends see -ECONNRESET, bytes on their way are lost. */
void tm_mem_reset(tm_io *io, tm_io_id socket);

#endif
