/* Out: entries of a peer's queue gathered into one write. One write is in flight per connection;
 * what is queued meanwhile goes with the next: that is the batching.
 *
 * peer->sending is the claim on conn->writing, conn->out and conn->iov. The engine claims for a
 * write that ends with a completion, a caller's flush for one that ends at once; a rest that the kernel did
 * not take is then handed to the engine with the claim. */
#include "../base/check.h"
#include "connection.h"

/* A caller's flush writes at most this much itself, bytes: beyond it the engine is the better
 * place, since the kernel's buffer fills and the caller should go on. */
#define DIRECT_BYTES_MAX ((size_t)64 * 1024)

static void settle_all(tm_connection *conn, tm_peer *peer)
{
    while (conn->writing) {
        tm_entry *entry = conn->writing;
        conn->writing = entry->next;
        if (entry->op != TM_ENTRY_TICK) TM_ATOMIC_ADD(&conn->frames_out, 1);
        tm_peer_settle(peer, entry);
    }
}

void tm_connection_write_over(tm_connection *conn, tm_peer *peer)
{
    settle_all(conn, peer);
    peer->sending = false;
    conn->out.len = 0;
    conn->iov_count = conn->iov_next = 0;
    if (peer->queue.count == 0) tm_buf_fini(&conn->out);
}

/* Takes entries for one write, under the lock; true when the claim was made. */
static bool write_claim(tm_connection *conn, size_t bytes_max)
{
    tm_peer *peer = conn->peer;
    if (!peer || peer->sending || !peer->queue.head) return false;
    size_t bytes = 0, segments = 1;
    tm_entry **tail = &conn->writing;
    while (peer->queue.head && bytes < bytes_max) {
        size_t need = 2 * peer->queue.head->part_count + 1;
        if (segments + need > TM_SEND_BATCH_SEGMENTS && segments > 1) break;
        tm_entry *entry = tm_sendq_pop(&peer->queue);
        bytes += entry->weight;
        segments += entry->part_count ? need - 1 : 0;
        *tail = entry;
        tail = &entry->next;
    }
    peer->sending = true;
    return true;
}

/* One segment of the write: a span of conn->out (base NULL: offset for now) or a part. */
static void segment_add(tm_connection *conn, const void *base, size_t offset, size_t len)
{
    TM_ASSERT(conn->iov_count < TM_SEND_BATCH_SEGMENTS);
    conn->iov[conn->iov_count++] =
        (struct iovec){base ? (void *)(uintptr_t)base : (void *)(uintptr_t)(offset + 1), len};
}

/* Small parts of a payload are copied behind its head, the others become segments. */
static int segments_of(tm_connection *conn, const tm_entry *entry, size_t *start, uint8_t *is_out)
{
    for (size_t i = 0; i < entry->part_count; i++) {
        const tumen_part *part = &entry->parts[i];
        if (!part->lent && part->bytes.len < TM_SEGMENT_BYTES_MIN) {
            int rc = tm_buf_append(&conn->out, part->bytes.ptr, part->bytes.len);
            if (rc) return rc;
            continue;
        }
        if (conn->out.len > *start) {
            is_out[conn->iov_count] = 1;
            segment_add(conn, NULL, *start, conn->out.len - *start);
        }
        is_out[conn->iov_count] = 0;
        segment_add(conn, part->bytes.ptr, 0, part->bytes.len);
        *start = conn->out.len;
    }
    return 0;
}

/* OTP closes a connection for an EXIT or UNLINK_ID to a pid of an earlier creation (protocol.md 4.3).
 * One can be left in a queue that was filled before the peer came back. */
static bool entry_is_stale(const tm_connection *conn, const tm_entry *entry)
{
    return (entry->op == TM_OP_EXIT || entry->op == TM_OP_UNLINK_ID) &&
           entry->to.creation != conn->creation;
}

/* Makes the bytes of the entries in conn->writing. An entry that this connection cannot carry (an
 * operation that the peer never announced) is dropped and counted. */
static int write_build(tm_connection *conn, const tm_peer *peer)
{
    tumen_node *node = conn->node;
    uint8_t is_out[TM_SEND_BATCH_SEGMENTS] = {0};
    size_t start = 0;
    conn->out.len = 0;
    conn->iov_count = conn->iov_next = 0;
    for (tm_entry *entry = conn->writing; entry; entry = entry->next) {
        bool segments;
        if (entry_is_stale(conn, entry)) continue;
        int rc = tm_entry_write(entry, tm_node_name(node), node->creation, peer->name, conn->flags,
                                &conn->out, &segments);
        if (rc == TM_ENOTSUP)
            TM_ATOMIC_ADD(&node->operations_refused, 1);
        else if (rc)
            return rc;
        else if (segments && (rc = segments_of(conn, entry, &start, is_out)))
            return rc;
    }
    if (conn->out.len > start) {
        is_out[conn->iov_count] = 1;
        segment_add(conn, NULL, start, conn->out.len - start);
    }
    /* Now that conn->out no longer moves, offsets become addresses. */
    for (int i = 0; i < conn->iov_count; i++)
        if (is_out[i])
            conn->iov[i].iov_base = conn->out.ptr + ((uintptr_t)conn->iov[i].iov_base - 1);
    return 0;
}

/* n bytes are out; true when all are. */
static bool write_advance(tm_connection *conn, size_t n)
{
    TM_ATOMIC_ADD(&conn->bytes_out, n);
    while (n) {
        struct iovec *iov = &conn->iov[conn->iov_next];
        size_t part = n < iov->iov_len ? n : iov->iov_len;
        iov->iov_base = (uint8_t *)iov->iov_base + part;
        iov->iov_len -= part;
        n -= part;
        if (!iov->iov_len) conn->iov_next++;
    }
    return conn->iov_next == conn->iov_count;
}

static int write_send(tm_connection *conn)
{
    tm_io *io = conn->node->engine->io;
    conn->node->engine->turn_sends++;
    return io->ops->send(io, conn->sock.id, conn->iov + conn->iov_next,
                         conn->iov_count - conn->iov_next);
}

static void write_fail(tm_connection *conn, int rc)
{
    tm_connection_close(conn, rc, rc == TM_ENOMEM ? "out of memory while sending" : "send failed");
}

/* The claimed write is complete. */
static void write_done(tm_connection *conn)
{
    tumen_node *node = conn->node;
    tm_node_lock_engine(node);
    if (conn->peer) tm_connection_write_over(conn, conn->peer);
    bool drained = conn->draining && conn->peer && conn->peer->queue.count == 0;
    tm_node_unlock(node);
    if (drained) tm_connection_close(conn, TM_ECLOSED, conn->drain_text);
}

void tm_connection_write(tm_connection *conn)
{
    for (;;) {
        tm_node_lock_engine(conn->node);
        bool claimed = !conn->down && write_claim(conn, TM_SEND_BATCH_BYTES);
        bool failed = conn->peer && conn->peer->conn_failed;
        tm_node_unlock(conn->node);
        if (failed) write_fail(conn, TM_ENOMEM);
        if (!claimed || failed) return;
        int rc = write_build(conn, conn->peer);
        if (!rc && conn->iov_count) rc = write_send(conn);
        if (rc) {
            write_fail(conn, rc);
            return;
        }
        if (conn->iov_count) return;
        write_done(conn); /* nothing in it could be sent: on to the next */
    }
}

void tm_connection_sent(tm_sock *sock, ssize_t rc)
{
    tm_connection *conn = TM_CONTAINER(sock, tm_connection, sock);
    if (conn->down) return;
    if (rc < 0) {
        write_fail(conn, (int)rc);
        return;
    }
    if (conn->carried.len) {
        conn->carried_done += (size_t)rc;
        if (conn->carried_done < conn->carried.len) {
            struct iovec iov = {conn->carried.ptr + conn->carried_done,
                                conn->carried.len - conn->carried_done};
            tm_io *io = conn->node->engine->io;
            int again = io->ops->send(io, conn->sock.id, &iov, 1);
            if (again) write_fail(conn, again);
            return;
        }
        tm_buf_fini(&conn->carried);
        write_done(conn);
    } else if (write_advance(conn, (size_t)rc)) {
        write_done(conn);
    } else {
        int again = write_send(conn);
        if (again) write_fail(conn, again);
        return;
    }
    if (!conn->down) tm_connection_write(conn);
}

/* -- from a caller's thread ---------------------------------------------------------------------------- */

/* Ends a caller's claim; leftover: the engine has to send the rest. */
static void direct_end(tm_connection *conn, tm_peer *peer, bool leftover)
{
    tumen_node *node = conn->node;
    tm_node_lock(node);
    conn->direct = false;
    peer->direct = false;
    bool wake = conn->close_pending || leftover;
    if (!conn->down && !leftover && conn->peer) {
        tm_connection_write_over(conn, peer);
        if (peer->queue.count) tm_peer_mark_dirty(peer);
        wake = wake || conn->draining;
    }
    /* Under the lock: afterwards the engine may free the connection. */
    if (wake) tm_engine_command(node->engine, &conn->resume);
    tm_peer_retire(peer);
    tm_node_unlock(node);
}

bool tm_connection_write_direct(tm_peer *peer)
{
    tumen_node *node = peer->node;
    tm_connection *conn = peer->conn;
    if (!conn || peer->direct || conn->close_pending || peer->conn_failed ||
        peer->queue.bytes > DIRECT_BYTES_MAX)
        return false;
    if (!write_claim(conn, DIRECT_BYTES_MAX)) return peer->sending;
    conn->direct = peer->direct = true; /* the engine frees neither while this is set */
    tm_node_unlock(node);
    tm_io *io = node->engine->io;
    bool leftover = true;
    if (write_build(conn, peer) == 0) {
        ssize_t rc =
            conn->iov_count ? io->ops->send_now(io, conn->sock.id, conn->iov, conn->iov_count) : 0;
        TM_ATOMIC_ADD(&node->engine->direct_sends, 1);
        leftover = rc < 0 || !write_advance(conn, (size_t)rc);
    } else {
        conn->iov_count = 0;
    }
    direct_end(conn, peer, leftover);
    tm_node_lock(node);
    return true;
}

/* Engine: after a caller's write that left something to do. */
void tm_connection_resume(tm_command *command)
{
    tm_connection *conn = TM_CONTAINER(command, tm_connection, resume);
    tm_node_lock_engine(conn->node);
    bool close = conn->close_pending;
    bool claimed = conn->peer && conn->writing && !conn->direct;
    tm_node_unlock(conn->node);
    if (close) {
        tm_sock_close(&conn->sock, false);
    } else if (claimed && !conn->down) {
        int rc = conn->iov_count ? 0 : write_build(conn, conn->peer);
        if (!rc && conn->iov_count) rc = write_send(conn);
        if (rc)
            write_fail(conn, rc);
        else if (!conn->iov_count)
            write_done(conn);
    } else if (conn->draining && !conn->down) {
        tm_connection_drain(conn);
    }
}
