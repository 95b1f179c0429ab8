#include "socket.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "../base/check.h"

/* -- the table -------------------------------------------------------------------------------- */

/* Slots of one chunk: some 40 KiB, so a small node stays small and ten thousand sockets are forty
 * allocations. */
#define CHUNK_SLOTS 256

static size_t chunk_count(const tm_socket_table *table)
{
    return (table->sockets_max + CHUNK_SLOTS - 1) / CHUNK_SLOTS;
}

int tm_socket_table_init(tm_socket_table *table, const tm_io_options *options, size_t socket_size)
{
    if (options->sockets_max == 0 || options->sockets_max > TM_IO_SOCKETS_MAX) return TM_EUSE_ARG;
    *table = (tm_socket_table){
        .alloc = options->alloc,
        .socket_size = socket_size,
        .sockets_max = options->sockets_max,
        .free = TM_SOCKET_NONE,
    };
    table->chunks = tm_alloc_zero(table->alloc, chunk_count(table) * sizeof *table->chunks);
    return table->chunks ? 0 : TM_ENOMEM;
}

static void iov_free(const tm_socket_table *table, tm_socket *socket)
{
    tm_alloc_free(table->alloc, socket->iov, (size_t)socket->iov_room * sizeof *socket->iov);
    socket->iov = NULL;
    socket->iov_room = 0;
}

void tm_socket_table_fini(tm_socket_table *table)
{
    if (!table->chunks) return;
    for (uint32_t i = 0; i < table->used; i++) iov_free(table, tm_socket_at(table, i));
    for (size_t i = 0; i < chunk_count(table); i++) {
        tm_alloc_free(table->alloc, table->chunks[i], CHUNK_SLOTS * table->socket_size);
    }
    tm_alloc_free(table->alloc, table->chunks, chunk_count(table) * sizeof *table->chunks);
    table->chunks = NULL;
}

tm_socket *tm_socket_at(const tm_socket_table *table, uint32_t index)
{
    uint8_t *chunk = table->chunks[index / CHUNK_SLOTS];
    return (tm_socket *)(void *)(chunk + (index % CHUNK_SLOTS) * table->socket_size);
}

/* A slot without a use of its id yet: from the free list, else the next one never used. */
static int slot_take(tm_socket_table *table, uint32_t *index)
{
    if (table->free != TM_SOCKET_NONE) {
        *index = table->free;
        table->free = tm_socket_at(table, *index)->next_free;
        return 0;
    }
    if (table->used == table->sockets_max) return TM_EUSE_LIMIT;
    uint8_t **chunk = &table->chunks[table->used / CHUNK_SLOTS];
    if (!*chunk) *chunk = tm_alloc_zero(table->alloc, CHUNK_SLOTS * table->socket_size);
    if (!*chunk) return TM_ENOMEM;
    *index = table->used++;
    tm_socket_at(table, *index)->id = (UINT64_C(1) << 32) | *index;
    return 0;
}

int tm_socket_add(tm_socket_table *table, tm_socket_kind kind, int fd, tm_socket **socket)
{
    uint32_t index;
    int rc = slot_take(table, &index);
    if (rc) return rc;
    tm_socket *slot = tm_socket_at(table, index);
    TM_ASSERT(slot->kind == TM_SOCKET_FREE);
    tm_io_id id = slot->id;
    memset(slot, 0, table->socket_size);
    slot->id = id;
    slot->fd = fd;
    slot->kind = (uint8_t)kind;
    table->count++;
    *socket = slot;
    return 0;
}

void tm_socket_remove(tm_socket_table *table, tm_socket *socket)
{
    TM_ASSERT(socket->kind != TM_SOCKET_FREE);
    TM_ASSERT(!socket->send_in_flight);
    TM_ASSERT(!tm_list_linked(&socket->delay));
    iov_free(table, socket);
    socket->kind = TM_SOCKET_FREE;
    socket->fd = -1;
    table->count--;
    uint64_t generation = (socket->id >> 32) + 1;
    if (generation > UINT32_MAX) return;
    uint32_t index = tm_socket_index(socket);
    socket->id = (generation << 32) | index;
    socket->next_free = table->free;
    table->free = index;
}

tm_socket *tm_socket_find(const tm_socket_table *table, tm_io_id id)
{
    uint32_t index = (uint32_t)id;
    if (index >= table->sockets_max || !table->chunks[index / CHUNK_SLOTS]) return NULL;
    tm_socket *socket = tm_socket_at(table, index);
    return socket->id == id && socket->kind != TM_SOCKET_FREE ? socket : NULL;
}

int tm_socket_get(const tm_socket_table *table, tm_io_id id, tm_socket_kind kind,
                  tm_socket **socket)
{
    tm_socket *found = tm_socket_find(table, id);
    if (!found || found->closing) return TM_ECLOSED;
    if (found->kind != kind) return TM_EUSE_STATE;
    *socket = found;
    return 0;
}

static int iov_copy(const tm_socket_table *table, tm_socket *socket, const struct iovec *iov,
                    int count)
{
    if (count == 1) {
        socket->iov_one = iov[0];
    } else {
        if (count > socket->iov_room) {
            size_t held = (size_t)socket->iov_room * sizeof *iov;
            size_t size = (size_t)count * sizeof *iov;
            void *room = table->alloc->resize(table->alloc->ctx, socket->iov, held, size);
            if (!room) return TM_ENOMEM;
            socket->iov = room;
            socket->iov_room = count;
        }
        memcpy(socket->iov, iov, (size_t)count * sizeof *iov);
    }
    socket->iov_count = count;
    return 0;
}

int tm_socket_send_begin(const tm_socket_table *table, tm_io_id id, const struct iovec *iov,
                         int count, tm_socket **socket)
{
    int rc = tm_socket_get(table, id, TM_SOCKET_OPEN, socket);
    if (rc) return rc;
    if ((*socket)->send_in_flight || (*socket)->write_over) return TM_EUSE_STATE;
    if (count < 1 || count > TM_SEND_BATCH_SEGMENTS) return TM_EUSE_ARG;
    size_t bytes = 0;
    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len > SIZE_MAX - bytes) return TM_EUSE_ARG;
        bytes += iov[i].iov_len;
    }
    if (bytes == 0) return TM_EUSE_ARG;
    rc = iov_copy(table, *socket, iov, count);
    if (rc) return rc;
    (*socket)->send_bytes = bytes;
    (*socket)->send_in_flight = true;
    return 0;
}

/* -- internal delays -------------------------------------------------------------------------- */

void tm_delay_init(tm_delay *delay, uint64_t wait_ns)
{
    tm_list_init(&delay->sockets);
    delay->wait_ns = wait_ns;
}

void tm_delay_add(tm_delay *delay, tm_socket *socket)
{
    TM_ASSERT(!tm_list_linked(&socket->delay));
    socket->delay_until_ns = tm_io_now_ns() + delay->wait_ns;
    tm_list_push(&delay->sockets, &socket->delay);
}

tm_socket *tm_delay_expired(tm_delay *delay, uint64_t now_ns)
{
    if (tm_delay_next_ns(delay) > now_ns) return NULL;
    return TM_CONTAINER(tm_list_pop(&delay->sockets), tm_socket, delay);
}

uint64_t tm_delay_next_ns(const tm_delay *delay)
{
    if (tm_list_empty(&delay->sockets)) return UINT64_MAX;
    return TM_CONTAINER(delay->sockets.next, tm_socket, delay)->delay_until_ns;
}

/* -- the waker -------------------------------------------------------------------------------- */

enum { WAKER_AWAKE, WAKER_SLEEPING, WAKER_WOKEN };

int tm_waker_init(tm_waker *waker)
{
    atomic_init(&waker->state, WAKER_AWAKE);
    /* Blocking, so that a ring's READ waits instead of answering EAGAIN; a write never blocks in
     * practice, for the counter is one or two. */
    waker->fd = eventfd(0, EFD_CLOEXEC);
    return waker->fd < 0 ? -errno : 0;
}

void tm_waker_fini(tm_waker *waker)
{
    if (waker->fd >= 0) close(waker->fd);
    waker->fd = -1;
}

void tm_waker_wake(tm_waker *waker)
{
    if (atomic_exchange(&waker->state, WAKER_WOKEN) != WAKER_SLEEPING) return;
    int saved = errno;
    uint64_t one = 1;
    while (write(waker->fd, &one, sizeof one) < 0 && errno == EINTR) continue;
    errno = saved;
}

bool tm_waker_take(tm_waker *waker)
{
    return atomic_exchange(&waker->state, WAKER_AWAKE) == WAKER_WOKEN;
}

bool tm_waker_sleep(tm_waker *waker)
{
    int awake = WAKER_AWAKE;
    return atomic_compare_exchange_strong(&waker->state, &awake, WAKER_SLEEPING);
}

void tm_waker_rest(tm_waker *waker, bool more)
{
    if (tm_waker_sleep(waker) && !more) return;
    atomic_store(&waker->state, WAKER_SLEEPING);
    tm_waker_wake(waker);
}

/* -- counters --------------------------------------------------------------------------------- */

static uint64_t tally_get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

void tm_tally_read(const tm_tally *tally, tm_io_counters *counters)
{
    *counters = (tm_io_counters){
        .turns = tally_get(&tally->turns),
        .system_calls = tally_get(&tally->system_calls) + tally_get(&tally->direct),
        .receives = tally_get(&tally->receives),
        .sends = tally_get(&tally->sends),
        .short_sends = tally_get(&tally->short_sends),
        .buffers_empty = tally_get(&tally->buffers_empty),
        .overflows = tally_get(&tally->overflows),
    };
}

/* -- the kernel's sockets --------------------------------------------------------------------- */

static const struct sockaddr *address_get(const tm_io_address *address)
{
    return (const struct sockaddr *)&address->storage;
}

static int address_check(const tm_io_address *address)
{
    int family = address->storage.ss_family;
    bool legal = (family == AF_INET && address->len == sizeof(struct sockaddr_in)) ||
                 (family == AF_INET6 && address->len == sizeof(struct sockaddr_in6));
    return legal ? 0 : -EAFNOSUPPORT;
}

static int socket_new(const tm_io_address *address)
{
    int rc = address_check(address);
    if (rc) return rc;
    int type = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
    int fd = socket(address->storage.ss_family, type, 0);
    return fd < 0 ? -errno : fd;
}

/* Writes are gathered above us, so Nagle's algorithm would only add delay. An answer of "no" (the
 * socket is already dead) shows at the next read. */
static void set_nodelay(int fd)
{
    int on = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

int tm_socket_listen_fd(const tm_io_address *address, int backlog, tm_io_address *bound)
{
    int fd = socket_new(address);
    if (fd < 0) return fd;
    int on = 1;
    bound->len = sizeof bound->storage;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        bind(fd, address_get(address), address->len) < 0 || listen(fd, backlog) < 0 ||
        getsockname(fd, (struct sockaddr *)&bound->storage, &bound->len) < 0) {
        int rc = -errno;
        close(fd);
        return rc;
    }
    return fd;
}

int tm_socket_connect_fd(const tm_io_address *address, int *rc)
{
    int fd = socket_new(address);
    if (fd < 0) return fd;
    set_nodelay(fd);
    *rc = connect(fd, address_get(address), address->len) < 0 ? -errno : 0;
    /* An interrupted connect goes on like one in progress. */
    if (*rc == -EINTR) *rc = -EINPROGRESS;
    return fd;
}

int tm_socket_connect_result(int fd)
{
    int error = 0;
    socklen_t len = sizeof error;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0) return -errno;
    return -error;
}

/* Errors of accept4 that belong to the one connection, which is gone: accept(2) lists them. */
static bool accept_skips(int rc)
{
    switch (rc) {
    case -EINTR:
    case -ECONNABORTED:
    case -EPROTO:
    case -ENOPROTOOPT:
    case -EHOSTDOWN:
    case -EHOSTUNREACH:
    case -ENETDOWN:
    case -ENETUNREACH:
    case -ENONET:
    case -EOPNOTSUPP:
    case -EPERM: return true;
    default: return false;
    }
}

int tm_socket_accept(tm_socket_table *table, const tm_socket *listener, tm_socket **socket,
                     tm_io_address *peer)
{
    /* The slot first: a connection that is not accepted waits in the backlog, one that is accepted
     * and has no slot would be lost. */
    int rc = tm_socket_add(table, TM_SOCKET_OPEN, -1, socket);
    if (rc) return rc;
    for (int tries = 0; tries < TM_IO_ACCEPT_BATCH; tries++) {
        peer->len = sizeof peer->storage;
        int fd = accept4(listener->fd, (struct sockaddr *)&peer->storage, &peer->len,
                         SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            set_nodelay(fd);
            (*socket)->fd = fd;
            return 0;
        }
        rc = -errno;
        if (!accept_skips(rc)) break;
    }
    tm_socket_remove(table, *socket);
    return rc;
}

void tm_socket_reset(int fd)
{
    /* Dissolving the association makes TCP send its RST at once and ends every request that waits,
     * in a ring too. shutdown(2) would send a FIN first, and close(2) alone does not end an armed
     * receive. The linger option covers a kernel that refuses to dissolve. */
    struct linger linger = {.l_onoff = 1, .l_linger = 0};
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    struct sockaddr none = {.sa_family = AF_UNSPEC};
    while (connect(fd, &none, sizeof none) < 0 && errno == EINTR) continue;
}

void tm_socket_bulk_begin(tm_socket *socket, size_t len, const tm_io_sink *sink)
{
    if (len < TM_IO_BESIDE_BYTES || socket->closing || !sink->room) return;
    if (sink->room(sink->ctx, socket->id).len >= TM_IO_BULK_BYTES_MIN)
        socket->bulk = TM_IO_BULK_READS;
}

static void bulk_received(tm_socket *socket, tm_tally *tally, const uint8_t *ptr, size_t len,
                          const tm_io_sink *sink)
{
    if (!len || socket->closing) return;
    tm_tally_add(&tally->receives, 1);
    sink->received(sink->ctx, socket->id, tm_bytes_of(ptr, len));
}

ssize_t tm_socket_read_bulk(tm_socket *socket, tm_tally *tally, uint8_t *beside,
                            const tm_io_sink *sink, bool *all)
{
    tm_room room = sink->room(sink->ctx, socket->id);
    if (room.len > TM_IO_READ_BATCH_BYTES) room.len = TM_IO_READ_BATCH_BYTES;
    socket->bulk =
        room.len >= TM_IO_BULK_BYTES_MIN ? TM_IO_BULK_READS : (uint8_t)(socket->bulk - 1);
    struct iovec iov[2] = {{room.ptr, room.len}, {beside, TM_IO_BESIDE_BYTES}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};
    tm_tally_add(&tally->system_calls, 1);
    ssize_t got = recvmsg(socket->fd, &message, MSG_DONTWAIT);
    if (got < 0) return -errno;
    *all = (size_t)got == room.len + TM_IO_BESIDE_BYTES;
    size_t first = (size_t)got < room.len ? (size_t)got : room.len;
    bulk_received(socket, tally, room.ptr, first, sink);
    bulk_received(socket, tally, beside, (size_t)got - first, sink);
    return got;
}

ssize_t tm_socket_sendmsg(int fd, const struct iovec *iov, int count)
{
    for (;;) {
        ssize_t rc;
        if (count == 1) {
            rc = send(fd, iov->iov_base, iov->iov_len, MSG_DONTWAIT | MSG_NOSIGNAL);
        } else {
            struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)count};
            rc = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
        if (rc >= 0) return rc;
        if (errno != EINTR) return -errno;
    }
}

ssize_t tm_socket_send_now(tm_socket_table *table, tm_tally *tally, tm_io_id id,
                           const struct iovec *iov, int count)
{
    tm_socket *socket;
    int rc = tm_socket_get(table, id, TM_SOCKET_OPEN, &socket);
    if (rc) return rc;
    if (socket->send_in_flight || socket->write_over) return TM_EUSE_STATE;
    if (count < 1 || count > TM_SEND_BATCH_SEGMENTS) return TM_EUSE_ARG;
    atomic_fetch_add_explicit(&tally->direct, 1, memory_order_relaxed);
    ssize_t sent = tm_socket_sendmsg(socket->fd, iov, count);
    return sent == -EAGAIN ? 0 : sent;
}

int tm_socket_address(const tm_socket_table *table, tm_io_id id, tm_io_address *address)
{
    tm_socket *socket = tm_socket_find(table, id);
    if (!socket) return TM_ECLOSED;
    address->len = sizeof address->storage;
    struct sockaddr *storage = (struct sockaddr *)&address->storage;
    int rc = socket->kind == TM_SOCKET_LISTENER ? getsockname(socket->fd, storage, &address->len)
                                                : getpeername(socket->fd, storage, &address->len);
    return rc < 0 ? -errno : 0;
}

void tm_socket_close_all(tm_socket_table *table)
{
    for (uint32_t i = 0; i < table->used; i++) {
        tm_socket *socket = tm_socket_at(table, i);
        if (socket->kind != TM_SOCKET_FREE && socket->fd >= 0) close(socket->fd);
        socket->fd = -1;
    }
}

/* -- clock and dice --------------------------------------------------------------------------- */

uint64_t tm_io_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * TM_S_NS + (uint64_t)now.tv_nsec;
}

int tm_io_random(void *bytes, size_t len)
{
    uint8_t *at = bytes;
    while (len) {
        ssize_t got = getrandom(at, len, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -errno;
        at += got;
        len -= (size_t)got;
    }
    return 0;
}

uint64_t tm_socket_now_ns(tm_io *io)
{
    (void)io;
    return tm_io_now_ns();
}

int tm_socket_random(tm_io *io, void *bytes, size_t len)
{
    (void)io;
    return tm_io_random(bytes, len);
}
