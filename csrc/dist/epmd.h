/* The port mapper's protocol, both sides: what a node asks, and a port mapper that OTP nodes can
 * use.
 *
 * Client: write a request, feed the reply to a tm_epmd_reader. Server: one tm_epmd_session a
 * connection over one tm_epmd_registry. A registration lives exactly as long as its connection.
 * Pure: sockets, time-outs and the time of day are the caller's. */
#ifndef TM_DIST_EPMD_H
#define TM_DIST_EPMD_H

#include "../base/alloc.h"
#include "../base/buf.h"
#include "../base/bytes.h"
#include "../base/error.h"
#include "../base/list.h"
#include "../base/map.h"
#include "../limits.h"
#include "fault.h"

/* What OTP nodes register: an ordinary node, also when hidden, that speaks versions 5 to 6. */
#define TM_EPMD_TYPE_NORMAL 77
#define TM_EPMD_VERSION_HIGH 6
#define TM_EPMD_VERSION_LOW 5

typedef struct tm_epmd_node {
    tm_bytes name; /* without @host; borrowed */
    uint16_t port;
    uint8_t type;
    uint8_t protocol; /* 0: TCP over IPv4 */
    uint16_t version_high;
    uint16_t version_low;
    tm_bytes extra; /* borrowed */
} tm_epmd_node;

/* A node as we register ourselves. */
static inline tm_epmd_node tm_epmd_node_of(tm_bytes name, uint16_t port)
{
    return (tm_epmd_node){.name = name,
                          .port = port,
                          .type = TM_EPMD_TYPE_NORMAL,
                          .version_high = TM_EPMD_VERSION_HIGH,
                          .version_low = TM_EPMD_VERSION_LOW};
}

/* -- client ------------------------------------------------------------------------------------ */

/* Each appends one request. 0, TM_EUSE_NAME, TM_EUSE_ARG (port 0, extra too long) or out's
 * errors. */
TM_MUST_CHECK int tm_epmd_write_register(tm_buf *out, const tm_epmd_node *node);
TM_MUST_CHECK int tm_epmd_write_lookup(tm_buf *out, tm_bytes name);
TM_MUST_CHECK int tm_epmd_write_names(tm_buf *out);

enum tm_epmd_query { TM_EPMD_REGISTER, TM_EPMD_LOOKUP, TM_EPMD_NAMES };

/* Reads the reply to one request. */
typedef struct tm_epmd_reader {
    enum tm_epmd_query query;
    bool done;
    int rc; /* why it failed */
    tm_fault fault;
    tm_bytes asked; /* LOOKUP: borrowed until the reader ends */
    tm_buf reply;
    uint32_t creation; /* REGISTER: 1..3 from an old port mapper */
    tm_epmd_node node; /* LOOKUP: borrowed from reply */
    uint16_t port;     /* NAMES: the port that the mapper believes it listens on */
} tm_epmd_reader;

/* asked: the name of a LOOKUP, else empty. */
void tm_epmd_reader_init(tm_epmd_reader *reader, enum tm_epmd_query query, tm_bytes asked,
                         const tm_alloc *alloc);
void tm_epmd_reader_fini(tm_epmd_reader *reader);

/* 0 when the reply is complete (LOOKUP, REGISTER), TM_NEED_DATA, or for good: TM_EPEER_REFUSED
 * (REGISTER: the name is in use; LOOKUP: no protocol version in common), TM_EPEER_UNKNOWN (LOOKUP),
 * TM_EPEER_MALFORMED, TM_EPEER_LIMIT, TM_ENOMEM. A byte after the reply to a REGISTER is malformed;
 * after that of a LOOKUP it is ignored. */
TM_MUST_CHECK int tm_epmd_reader_feed(tm_epmd_reader *reader, tm_bytes input);
/* The port mapper closed: 0 when the reply is complete (NAMES: always now, if its port had come),
 * else TM_EPEER_CLOSED or the earlier error. */
TM_MUST_CHECK int tm_epmd_reader_eof(tm_epmd_reader *reader);
/* NAMES after eof: the next entry; start with *position 0. Lines of another shape are skipped. */
bool tm_epmd_reader_next(const tm_epmd_reader *reader, size_t *position, tm_bytes *name,
                         uint16_t *port);

/* -- server ------------------------------------------------------------------------------------ */

typedef struct tm_epmd_registry {
    const tm_alloc *alloc;
    tm_map names;   /* active and unused ones */
    tm_list active; /* oldest first */
    tm_list unused; /* names whose node has gone, with their last creation; oldest first */
    size_t active_count;
    size_t active_max;
    size_t unused_count;
    uint32_t creation; /* at or above that of every name that was forgotten */
    uint16_t port;     /* told in replies to NAMES and DUMP */
} tm_epmd_registry;

/* port: the one we listen on. unix_time_s seeds the creations, so that a restarted mapper does not
 * give an earlier one again. seed: random, for the hash of names. */
void tm_epmd_registry_init(tm_epmd_registry *registry, const tm_alloc *alloc, uint16_t port,
                           uint32_t unix_time_s, const uint64_t seed[2]);
/* No session may live any more. */
void tm_epmd_registry_fini(tm_epmd_registry *registry);

struct tm_epmd_name; /* one registered name */

typedef struct tm_epmd_session {
    tm_epmd_registry *registry;
    uint64_t id; /* of the connection; shown by DUMP */
    bool local;
    bool closed;
    struct tm_epmd_name *name; /* registered by this connection */
    tm_buf request;            /* gathered; empty while idle */
} tm_epmd_session;

enum tm_epmd_action {
    TM_EPMD_WAIT,       /* the request is not complete */
    TM_EPMD_REGISTERED, /* send out and keep the connection: it holds the registration */
    TM_EPMD_CLOSE,      /* send out (which may be empty), then close */
};

/* local: the peer's address is 127/8, ::1 or our own: only such may register or dump. */
void tm_epmd_session_init(tm_epmd_session *session, tm_epmd_registry *registry, uint64_t id,
                          bool local);
/* The connection is gone: its name is free. Harmless twice. */
void tm_epmd_session_fini(tm_epmd_session *session);

/* One read of bytes: enum tm_epmd_action, TM_ENOMEM or TM_EUSE_LIMIT (out is full). The reply is
 * appended to out. Bytes beyond the request in the same read close it unanswered, and so does any
 * byte after a registration, as OTP's mapper has it. */
TM_MUST_CHECK int tm_epmd_session_feed(tm_epmd_session *session, tm_bytes input, tm_buf *out);

#endif
