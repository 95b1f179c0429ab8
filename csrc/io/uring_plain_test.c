/* The conformance suite on the ring that a poor kernel gives us: plain 4 KiB buffers, as before
 * 6.12, and queues so small that they overflow. The ring is compiled with a flag for shared
 * buffers that no kernel knows, so that the probe must fall back; no received piece may be larger
 * than a buffer. */
#define URING_PBUF_RING_INC 0x8000U
#define SQ_ENTRIES 16
#define SQ_ENTRIES_MIN 16
#define CQ_PER_SQ 1
#define PLAIN_WINDOW 64
#define PIECE_BYTES_MAX 4096
#define OVERFLOWS_EXPECTED true
#define BACKEND_DEFAULT "uring"
#include "uring.c"

#include "io_conformance_test.c"
