/* The seeded fake network: see mem.h for what it promises.
 *
 * Every completion is an event with a time: at most one of each kind a socket, kept in one heap a
 * backend, ordered by time and then by a random tie, which is what reorders different sockets. A
 * turn first collects all that is due and then hands it out, so that what handlers start belongs
 * to a later turn. Bytes travel as pieces in a list at their receiver; FIN and RST are flags
 * behind and above it, so that neither can fail for want of memory. Room for all events of a
 * socket is reserved when the socket is made, for the same reason. */
#include "mem.h"

#include <errno.h>
#include <netinet/in.h>

#include "../base/check.h"
#include "socket.h"

/* What may be on its way in one direction when the options do not say, bytes. */
#define ROOM_BYTES_DEFAULT (64 * TM_KIB)
/* Where ports begin that the net chooses: the dynamic range of IANA. */
#define PORT_FIRST 49152
#define PORT_COUNT (65536 - PORT_FIRST)

typedef enum mem_kind {
    MEM_ACCEPTED,
    MEM_CONNECTED,
    MEM_BYTES, /* bytes, the end, or a reset can be read */
    MEM_SENT,
    MEM_CLOSED,
    MEM_KINDS,
} mem_kind;

typedef struct mem_piece {
    struct mem_piece *next;
    uint64_t due_ns;
    size_t len;
    size_t taken;
    uint8_t bytes[];
} mem_piece;

typedef struct mem_io mem_io;

typedef struct mem_socket {
    tm_socket base;
    mem_io *owner;
    struct mem_socket *peer; /* NULL before the connect and after the end of either side */
    tm_list listener_link;   /* in tm_mem_net.listeners */
    tm_io_id listener;       /* that will accept or has accepted this one */
    uint16_t port;
    uint16_t peer_port;
    bool blocked; /* a send waits for room at the peer */
    bool fin;     /* the peer's FIN is behind the pieces */
    bool reset;
    ssize_t send_rc;
    mem_piece *first;
    mem_piece *last;
    size_t waiting_bytes;        /* in the pieces */
    uint64_t last_due_ns;        /* of the last piece or the FIN: nothing overtakes */
    uint64_t hold_until_ns;      /* tm_mem_stall of the peer */
    uint32_t heap_at[MEM_KINDS]; /* index in the heap plus one, or 0 */
    bool collected[MEM_KINDS];   /* in the batch of this turn */
} mem_socket;

typedef struct mem_event {
    uint64_t due_ns;
    uint64_t tie;
    mem_socket *socket;
    tm_io_id id; /* the slot may belong to another socket by the time the batch is there */
    mem_kind kind;
} mem_event;

struct mem_io {
    tm_io io;
    tm_mem_net *net;
    tm_list link; /* in tm_mem_net.ios */
    const tm_alloc *alloc;
    tm_socket_table table;
    tm_tally tally;
    atomic_bool woken;
    mem_event *heap;
    size_t heap_count;
    mem_event *batch; /* the second half of the heap's memory */
    size_t room;      /* events */
};

struct tm_mem_net {
    const tm_alloc *alloc;
    tm_mem_options options;
    uint64_t random;
    uint64_t now_ns;
    uint64_t steps;
    uint32_t port_next;
    tm_list ios;
    tm_list listeners;
};

static mem_io *mem_of(tm_io *io) { return TM_CONTAINER(io, mem_io, io); }

static mem_socket *socket_of(tm_socket *socket) { return TM_CONTAINER(socket, mem_socket, base); }

/* -- dice ------------------------------------------------------------------------------------- */

/* SplitMix64: every seed is good, and the state is one number. */
static uint64_t dice(tm_mem_net *net)
{
    uint64_t z = net->random += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static bool chance(tm_mem_net *net, uint32_t per_mille)
{
    return per_mille && dice(net) % 1000 < per_mille;
}

static uint64_t delay(tm_mem_net *net)
{
    uint64_t max = net->options.delay_ns_max;
    return max ? dice(net) % max : 0;
}

/* -- the heap of events ----------------------------------------------------------------------- */

static bool event_before(const mem_event *a, const mem_event *b)
{
    return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->tie < b->tie;
}

static void heap_put(mem_io *m, size_t at, mem_event event)
{
    m->heap[at] = event;
    event.socket->heap_at[event.kind] = (uint32_t)at + 1;
}

static void heap_up(mem_io *m, size_t at, mem_event event)
{
    while (at && event_before(&event, &m->heap[(at - 1) / 2])) {
        heap_put(m, at, m->heap[(at - 1) / 2]);
        at = (at - 1) / 2;
    }
    heap_put(m, at, event);
}

static void heap_down(mem_io *m, size_t at, mem_event event)
{
    for (size_t child; (child = 2 * at + 1) < m->heap_count; at = child) {
        size_t other = child + 1;
        if (other < m->heap_count && event_before(&m->heap[other], &m->heap[child])) child = other;
        if (!event_before(&m->heap[child], &event)) break;
        heap_put(m, at, m->heap[child]);
    }
    heap_put(m, at, event);
}

static void heap_remove(mem_io *m, size_t at)
{
    m->heap[at].socket->heap_at[m->heap[at].kind] = 0;
    mem_event last = m->heap[--m->heap_count];
    if (at == m->heap_count) return;
    if (at && event_before(&last, &m->heap[(at - 1) / 2])) {
        heap_up(m, at, last);
    } else {
        heap_down(m, at, last);
    }
}

static void event_cancel(mem_socket *s, mem_kind kind)
{
    s->collected[kind] = false;
    if (s->heap_at[kind]) heap_remove(s->owner, s->heap_at[kind] - 1);
}

/* Schedules, or moves what was scheduled. */
static void event_at(mem_socket *s, mem_kind kind, uint64_t due_ns)
{
    event_cancel(s, kind);
    mem_io *m = s->owner;
    TM_ASSERT(m->heap_count < m->room);
    mem_event event = {
        .due_ns = due_ns,
        .tie = dice(m->net),
        .socket = s,
        .id = s->base.id,
        .kind = kind,
    };
    heap_up(m, m->heap_count++, event);
}

static void event_soon(mem_socket *s, mem_kind kind)
{
    event_at(s, kind, s->owner->net->now_ns + delay(s->owner->net));
}

/* Room for every event of count sockets, in heap and batch. */
static int events_reserve(mem_io *m, size_t count)
{
    size_t need = count * MEM_KINDS;
    if (need <= m->room) return 0;
    size_t room = m->room ? m->room * 2 : 16 * MEM_KINDS;
    if (room < need) room = need;
    mem_event *events = tm_alloc_zero(m->alloc, 2 * room * sizeof *events);
    if (!events) return TM_ENOMEM;
    if (m->room) {
        memcpy(events, m->heap, m->room * sizeof *events);
        memcpy(events + room, m->batch, m->room * sizeof *events);
        tm_alloc_free(m->alloc, m->heap, 2 * m->room * sizeof *events);
    }
    m->heap = events;
    m->batch = events + room;
    m->room = room;
    return 0;
}

static int socket_new(mem_io *m, tm_socket_kind kind, mem_socket **s)
{
    int rc = events_reserve(m, (size_t)m->table.count + 1);
    if (rc) return rc;
    tm_socket *socket;
    rc = tm_socket_add(&m->table, kind, -1, &socket);
    if (rc) return rc;
    *s = socket_of(socket);
    (*s)->owner = m;
    return 0;
}

/* -- pieces ----------------------------------------------------------------------------------- */

static void piece_pop(mem_socket *s)
{
    mem_piece *piece = s->first;
    s->first = piece->next;
    if (!s->first) s->last = NULL;
    s->waiting_bytes -= piece->len - piece->taken;
    tm_alloc_free(s->owner->alloc, piece, sizeof *piece + piece->len);
}

static void pieces_drop(mem_socket *s)
{
    while (s->first) piece_pop(s);
}

/* When what is sent now arrives: never before what was sent earlier. */
static uint64_t arrival_ns(mem_socket *receiver)
{
    tm_mem_net *net = receiver->owner->net;
    uint64_t due = net->now_ns + delay(net);
    if (chance(net, net->options.stall_per_mille)) due += net->options.stall_ns;
    if (due < receiver->last_due_ns) due = receiver->last_due_ns;
    receiver->last_due_ns = due;
    return due;
}

/* Sees to it that the next thing to read is handed out in its time, if anybody reads. */
static void bytes_schedule(mem_socket *s)
{
    event_cancel(s, MEM_BYTES);
    if (!s->base.reading || s->base.read_over || s->base.closing) return;
    if (s->reset) {
        event_soon(s, MEM_BYTES);
        return;
    }
    if (!s->first && !s->fin) return;
    uint64_t due = s->first ? s->first->due_ns : s->last_due_ns;
    if (due < s->hold_until_ns) due = s->hold_until_ns;
    if (due < s->owner->net->now_ns) due = s->owner->net->now_ns;
    if (due != UINT64_MAX) event_at(s, MEM_BYTES, due);
}

/* Puts what fits on its way to the peer: bytes taken, 0 for none, -EPIPE or TM_ENOMEM. */
static ssize_t transfer(mem_socket *s, const struct iovec *iov, int count, size_t bytes)
{
    mem_socket *peer = s->peer;
    tm_mem_net *net = s->owner->net;
    if (!peer || s->reset) return -EPIPE;
    /* A closing peer reads and throws away. */
    if (peer->base.closing) return (ssize_t)bytes;
    size_t room = net->options.room_bytes ? net->options.room_bytes : ROOM_BYTES_DEFAULT;
    if (peer->waiting_bytes >= room) return 0;
    size_t len = room - peer->waiting_bytes < bytes ? room - peer->waiting_bytes : bytes;
    if (chance(net, net->options.short_send_per_mille)) len = 1 + dice(net) % len;
    mem_piece *piece = tm_alloc_get(peer->owner->alloc, sizeof *piece + len);
    if (!piece) return TM_ENOMEM;
    *piece = (mem_piece){.due_ns = arrival_ns(peer), .len = len};
    size_t at = 0;
    for (int i = 0; i < count && at < len; i++) {
        size_t part = iov[i].iov_len < len - at ? iov[i].iov_len : len - at;
        tm_store_bytes(piece->bytes + at, iov[i].iov_base, part);
        at += part;
    }
    if (peer->last) {
        peer->last->next = piece;
    } else {
        peer->first = piece;
    }
    peer->last = piece;
    peer->waiting_bytes += len;
    bytes_schedule(peer);
    return (ssize_t)len;
}

static void send_end(mem_socket *s, ssize_t rc)
{
    s->blocked = false;
    s->send_rc = rc;
    if (rc >= 0 && (size_t)rc < s->base.send_bytes) tm_tally_add(&s->owner->tally.short_sends, 1);
    event_soon(s, MEM_SENT);
}

/* Tries the send of a blocked socket again: there may be room now, or nobody any more. */
static void send_unblock(mem_socket *s)
{
    if (!s || !s->blocked) return;
    const struct iovec *iov = tm_socket_iov(&s->base);
    ssize_t rc = transfer(s, iov, s->base.iov_count, s->base.send_bytes);
    if (rc) send_end(s, rc);
}

static void fin_send(mem_socket *s)
{
    if (s->base.write_over || !s->peer) return;
    s->base.write_over = true;
    arrival_ns(s->peer);
    s->peer->fin = true;
    bytes_schedule(s->peer);
}

/* -- the end of connections ------------------------------------------------------------------- */

static void reset_one(mem_socket *s)
{
    s->reset = true;
    s->peer = NULL;
    pieces_drop(s);
    if (s->blocked) send_end(s, -ECONNRESET);
    bytes_schedule(s);
}

static void connection_reset(mem_socket *s)
{
    mem_socket *peer = s->peer;
    if (!peer) return;
    reset_one(s);
    reset_one(peer);
}

/* The slot's last moment. */
static void socket_drop(mem_socket *s)
{
    for (mem_kind kind = 0; kind < MEM_KINDS; kind++) event_cancel(s, kind);
    pieces_drop(s);
    tm_list_remove(&s->listener_link);
    if (s->peer) {
        fin_send(s);
        mem_socket *peer = s->peer;
        peer->peer = NULL;
        send_unblock(peer);
    }
    s->base.send_in_flight = false;
    tm_socket_remove(&s->owner->table, &s->base);
}

static void mem_close(tm_io *io, tm_io_id id, bool abort)
{
    tm_socket *socket = tm_socket_find(&mem_of(io)->table, id);
    if (!socket || socket->closing) return;
    mem_socket *s = socket_of(socket);
    socket->closing = true;
    event_cancel(s, MEM_ACCEPTED);
    event_cancel(s, MEM_CONNECTED);
    event_cancel(s, MEM_BYTES);
    tm_list_remove(&s->listener_link);
    if (s->blocked) send_end(s, -ECANCELED);
    if (abort) {
        connection_reset(s);
    } else {
        fin_send(s);
    }
    pieces_drop(s);
    send_unblock(s->peer);
    if (!socket->send_in_flight) event_soon(s, MEM_CLOSED);
}

/* -- completions ------------------------------------------------------------------------------ */

static void address_fill(tm_io_address *address, uint16_t port)
{
    struct sockaddr_in in = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)},
    };
    memset(address, 0, sizeof *address);
    memcpy(&address->storage, &in, sizeof in);
    address->len = sizeof in;
}

static mem_socket *listener_find(const tm_mem_net *net, uint16_t port)
{
    TM_LIST_EACH (&net->listeners, node, following) {
        mem_socket *listener = TM_CONTAINER(node, mem_socket, listener_link);
        if (listener->port == port) return listener;
    }
    return NULL;
}

/* The SYN arrives: makes the other end, which its listener will accept. 0 or -ECONNREFUSED. */
static int connect_arrive(mem_socket *s)
{
    tm_mem_net *net = s->owner->net;
    mem_socket *listener = listener_find(net, s->peer_port);
    if (!listener || chance(net, net->options.refuse_per_mille)) return -ECONNREFUSED;
    mem_socket *other;
    if (socket_new(listener->owner, TM_SOCKET_OPEN, &other)) return -ECONNREFUSED;
    other->listener = listener->base.id;
    other->port = listener->port;
    other->peer_port = s->port;
    other->peer = s;
    s->peer = other;
    s->base.kind = TM_SOCKET_OPEN;
    event_soon(other, MEM_ACCEPTED);
    return 0;
}

static void on_accepted(mem_socket *s, const tm_io_sink *sink)
{
    tm_socket *listener = tm_socket_find(&s->owner->table, s->listener);
    if (!listener || listener->closing) {
        connection_reset(s);
        socket_drop(s);
        return;
    }
    tm_io_address peer;
    address_fill(&peer, s->peer_port);
    sink->accepted(sink->ctx, s->listener, s->base.id, &peer);
}

static void on_bytes(mem_socket *s, const tm_io_sink *sink)
{
    tm_mem_net *net = s->owner->net;
    if (s->reset || !s->first) {
        s->base.read_over = true;
        event_cancel(s, MEM_BYTES); /* a reset in this very step has scheduled another */
        sink->read_ended(sink->ctx, s->base.id, s->reset ? -ECONNRESET : 0);
        return;
    }
    mem_piece *piece = s->first;
    size_t left = piece->len - piece->taken;
    size_t len = left;
    if (len > 1 && chance(net, net->options.split_per_mille)) len = 1 + dice(net) % (len - 1);
    /* Out of the list while the handler looks at it, for the handler may close the socket. */
    s->first = piece->next;
    if (!s->first) s->last = NULL;
    s->waiting_bytes -= left;
    tm_tally_add(&s->owner->tally.receives, 1);
    tm_bytes bytes = tm_bytes_of(piece->bytes + piece->taken, len);
    tm_room room = sink->room ? sink->room(sink->ctx, s->base.id) : (tm_room){NULL, 0};
    if (room.len) {
        if (len > room.len) len = room.len;
        memcpy(room.ptr, bytes.ptr, len);
        bytes = tm_bytes_of(room.ptr, len);
    }
    sink->received(sink->ctx, s->base.id, bytes);
    if (len == left || s->base.closing || s->reset) {
        tm_alloc_free(s->owner->alloc, piece, sizeof *piece + piece->len);
    } else {
        piece->taken += len;
        piece->due_ns = net->now_ns + delay(net);
        piece->next = s->first;
        s->first = piece;
        if (!s->last) s->last = piece;
        s->waiting_bytes += left - len;
    }
    send_unblock(s->peer);
    bytes_schedule(s);
}

static void event_run(mem_socket *s, mem_kind kind, const tm_io_sink *sink)
{
    tm_mem_net *net = s->owner->net;
    net->steps++;
    if (net->options.reset_step && net->steps >= net->options.reset_step && s->peer &&
        kind != MEM_ACCEPTED) {
        net->options.reset_step = 0;
        connection_reset(s);
    }
    tm_io_id id = s->base.id;
    switch (kind) {
    case MEM_ACCEPTED: on_accepted(s, sink); break;
    case MEM_CONNECTED: sink->connected(sink->ctx, id, connect_arrive(s)); break;
    case MEM_BYTES: on_bytes(s, sink); break;
    case MEM_SENT:
        s->base.send_in_flight = false;
        if (s->base.closing) event_soon(s, MEM_CLOSED);
        sink->sent(sink->ctx, id, s->send_rc);
        break;
    case MEM_CLOSED:
        socket_drop(s);
        sink->closed(sink->ctx, id);
        break;
    case MEM_KINDS: break;
    }
}

static int mem_turn(tm_io *io, uint64_t deadline_ns, const tm_io_sink *sink)
{
    mem_io *m = mem_of(io);
    (void)deadline_ns; /* time stands still: a turn has nothing to wait for */
    tm_tally_add(&m->tally.turns, 1);
    atomic_store(&m->woken, false);
    size_t count = 0;
    while (m->heap_count && m->heap[0].due_ns <= m->net->now_ns) {
        mem_event event = m->heap[0];
        heap_remove(m, 0);
        event.socket->collected[event.kind] = true;
        m->batch[count++] = event;
    }
    for (size_t i = 0; i < count; i++) {
        mem_event event = m->batch[i];
        mem_socket *s = event.socket;
        if (s->base.id != event.id || !s->collected[event.kind]) continue;
        s->collected[event.kind] = false;
        event_run(s, event.kind, sink);
    }
    return 0;
}

/* Nothing comes while nobody turns it. */
static void mem_gather(tm_io *io, unsigned ns)
{
    (void)io;
    (void)ns;
}

static void mem_wake(tm_io *io) { atomic_store(&mem_of(io)->woken, true); }

static int mem_poll_fd(tm_io *io)
{
    (void)io;
    return -1;
}

/* -- operations ------------------------------------------------------------------------------- */

/* The port of an address, or -EAFNOSUPPORT. */
static int address_port(const tm_io_address *address)
{
    if (address->storage.ss_family == AF_INET) {
        struct sockaddr_in in;
        memcpy(&in, &address->storage, sizeof in);
        return ntohs(in.sin_port);
    }
    if (address->storage.ss_family == AF_INET6) {
        struct sockaddr_in6 in6;
        memcpy(&in6, &address->storage, sizeof in6);
        return ntohs(in6.sin6_port);
    }
    return -EAFNOSUPPORT;
}

static uint16_t port_choose(tm_mem_net *net)
{
    uint16_t port = (uint16_t)(PORT_FIRST + net->port_next);
    net->port_next = (net->port_next + 1) % PORT_COUNT;
    return port;
}

static int mem_listen(tm_io *io, const tm_io_address *address, int backlog, tm_io_id *id,
                      tm_io_address *bound)
{
    mem_io *m = mem_of(io);
    (void)backlog; /* nobody is turned away: the listener takes at once what comes */
    int port = address_port(address);
    if (port < 0) return port;
    for (uint32_t n = 0; port == 0 && n < PORT_COUNT; n++) {
        uint16_t chosen = port_choose(m->net);
        if (!listener_find(m->net, chosen)) port = chosen;
    }
    if (port == 0 || listener_find(m->net, (uint16_t)port)) return -EADDRINUSE;
    mem_socket *s;
    int rc = socket_new(m, TM_SOCKET_LISTENER, &s);
    if (rc) return rc;
    s->port = (uint16_t)port;
    tm_list_push(&m->net->listeners, &s->listener_link);
    address_fill(bound, s->port);
    *id = s->base.id;
    return 0;
}

static int mem_connect(tm_io *io, const tm_io_address *address, tm_io_id *id)
{
    mem_io *m = mem_of(io);
    int port = address_port(address);
    if (port < 0) return port;
    mem_socket *s;
    int rc = socket_new(m, TM_SOCKET_CONNECTING, &s);
    if (rc) return rc;
    s->port = port_choose(m->net);
    s->peer_port = (uint16_t)port;
    event_soon(s, MEM_CONNECTED);
    *id = s->base.id;
    return 0;
}

static int mem_read_start(tm_io *io, tm_io_id id)
{
    tm_socket *socket;
    int rc = tm_socket_get(&mem_of(io)->table, id, TM_SOCKET_OPEN, &socket);
    if (rc || socket->reading) return rc;
    socket->reading = true;
    bytes_schedule(socket_of(socket));
    return 0;
}

static int mem_send(tm_io *io, tm_io_id id, const struct iovec *iov, int count)
{
    mem_io *m = mem_of(io);
    tm_socket *socket;
    int rc = tm_socket_send_begin(&m->table, id, iov, count, &socket);
    if (rc) return rc;
    mem_socket *s = socket_of(socket);
    ssize_t taken = transfer(s, iov, count, socket->send_bytes);
    if (taken == TM_ENOMEM) {
        socket->send_in_flight = false;
        return TM_ENOMEM;
    }
    tm_tally_add(&m->tally.sends, 1);
    if (taken) {
        send_end(s, taken);
    } else {
        s->blocked = true;
    }
    return 0;
}

static ssize_t mem_send_now(tm_io *io, tm_io_id id, const struct iovec *iov, int count)
{
    mem_io *m = mem_of(io);
    tm_socket *socket;
    int rc = tm_socket_send_begin(&m->table, id, iov, count, &socket);
    if (rc) return rc;
    socket->send_in_flight = false;
    return transfer(socket_of(socket), iov, count, socket->send_bytes);
}

static int mem_shutdown_write(tm_io *io, tm_io_id id)
{
    tm_socket *socket;
    int rc = tm_socket_get(&mem_of(io)->table, id, TM_SOCKET_OPEN, &socket);
    if (rc) return rc;
    if (socket->send_in_flight) return TM_EUSE_STATE;
    fin_send(socket_of(socket));
    socket->write_over = true;
    return 0;
}

static int mem_address(tm_io *io, tm_io_id id, tm_io_address *address)
{
    tm_socket *socket = tm_socket_find(&mem_of(io)->table, id);
    if (!socket) return TM_ECLOSED;
    mem_socket *s = socket_of(socket);
    address_fill(address, socket->kind == TM_SOCKET_LISTENER ? s->port : s->peer_port);
    return 0;
}

static void mem_counters(const tm_io *io, tm_io_counters *counters)
{
    const char *at = (const char *)io - offsetof(mem_io, io);
    tm_tally_read(&((const mem_io *)(const void *)at)->tally, counters);
}

static uint64_t mem_now_ns(tm_io *io) { return mem_of(io)->net->now_ns; }

static int mem_random(tm_io *io, void *bytes, size_t len)
{
    uint8_t *at = bytes;
    for (size_t i = 0; i < len; i++) at[i] = (uint8_t)dice(mem_of(io)->net);
    return 0;
}

/* -- life ------------------------------------------------------------------------------------- */

static void mem_forked(tm_io *io)
{
    (void)io; /* no descriptor and no kernel: the child's copy is a net of its own */
}

static void mem_destroy(tm_io *io)
{
    mem_io *m = mem_of(io);
    for (uint32_t i = 0; i < m->table.used; i++) {
        tm_socket *socket = tm_socket_at(&m->table, i);
        if (socket->kind != TM_SOCKET_FREE) socket_drop(socket_of(socket));
    }
    tm_list_remove(&m->link);
    tm_socket_table_fini(&m->table);
    tm_alloc_free(m->alloc, m->heap, 2 * m->room * sizeof *m->heap);
    tm_alloc_free(m->alloc, m, sizeof *m);
}

static const tm_io_ops mem_ops = {
    .name = "mem",
    .destroy = mem_destroy,
    .turn = mem_turn,
    .gather = mem_gather,
    .wake = mem_wake,
    .poll_fd = mem_poll_fd,
    .listen = mem_listen,
    .connect = mem_connect,
    .read_start = mem_read_start,
    .send = mem_send,
    .send_now = mem_send_now,
    .shutdown_write = mem_shutdown_write,
    .close = mem_close,
    .address = mem_address,
    .counters = mem_counters,
    .forked = mem_forked,
    .now_ns = mem_now_ns,
    .random = mem_random,
};

int tm_io_mem_create(tm_mem_net *net, const tm_io_options *options, tm_io **io)
{
    mem_io *m = tm_alloc_zero(options->alloc, sizeof *m);
    if (!m) return TM_ENOMEM;
    m->io.ops = &mem_ops;
    m->net = net;
    m->alloc = options->alloc;
    int rc = tm_socket_table_init(&m->table, options, sizeof(mem_socket));
    if (rc) {
        tm_alloc_free(options->alloc, m, sizeof *m);
        return rc;
    }
    tm_list_push(&net->ios, &m->link);
    *io = &m->io;
    return 0;
}

int tm_mem_net_create(const tm_alloc *alloc, const tm_mem_options *options, tm_mem_net **net)
{
    *net = tm_alloc_zero(alloc, sizeof **net);
    if (!*net) return TM_ENOMEM;
    (*net)->alloc = alloc;
    (*net)->options = *options;
    (*net)->random = options->seed;
    /* Not 0, which the backends' deadlines use for "do not wait". */
    (*net)->now_ns = TM_S_NS;
    tm_list_init(&(*net)->ios);
    tm_list_init(&(*net)->listeners);
    return 0;
}

void tm_mem_net_destroy(tm_mem_net *net)
{
    TM_ASSERT(tm_list_empty(&net->ios));
    tm_alloc_free(net->alloc, net, sizeof *net);
}

tm_mem_options *tm_mem_net_options(tm_mem_net *net) { return &net->options; }

uint64_t tm_mem_net_now_ns(const tm_mem_net *net) { return net->now_ns; }

void tm_mem_net_set_now_ns(tm_mem_net *net, uint64_t now_ns)
{
    if (now_ns > net->now_ns) net->now_ns = now_ns;
}

uint64_t tm_mem_net_next_ns(const tm_mem_net *net)
{
    uint64_t next = UINT64_MAX;
    TM_LIST_EACH (&net->ios, node, following) {
        const mem_io *m = TM_CONTAINER(node, mem_io, link);
        if (atomic_load(&m->woken)) return net->now_ns;
        if (m->heap_count && m->heap[0].due_ns < next) next = m->heap[0].due_ns;
    }
    return next > net->now_ns ? next : net->now_ns;
}

uint64_t tm_mem_net_steps(const tm_mem_net *net) { return net->steps; }

void tm_mem_stall(tm_io *io, tm_io_id id, uint64_t until_ns)
{
    tm_socket *socket = tm_socket_find(&mem_of(io)->table, id);
    mem_socket *peer = socket ? socket_of(socket)->peer : NULL;
    if (!peer) return;
    peer->hold_until_ns = until_ns;
    bytes_schedule(peer);
}

void tm_mem_reset(tm_io *io, tm_io_id id)
{
    tm_socket *socket = tm_socket_find(&mem_of(io)->table, id);
    if (socket) connection_reset(socket_of(socket));
}
