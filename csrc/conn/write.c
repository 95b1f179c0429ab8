/* Out: entries of a peer's queue gathered into one write. One write is in flight per connection;
 * what is queued meanwhile goes with the next: that is the batching. Entries come first, then fragments of
 * flows in turn: so what is small overtakes what is large at every write, and neither starves.
 *
 * peer->sending is the claim on conn->writing, conn->out and conn->iov. The engine claims for a
 * write that ends with a completion, a caller's flush for one that ends at once; a rest that the kernel did
 * not take is then handed to the engine with the claim. */
#include "../base/check.h"
#include "../dist/sequence.h"
#include "connection.h"

/* A caller's flush writes at most this much itself, bytes: beyond it the engine is the better
 * place, since the kernel's buffer fills and the caller should go on. */
#define DIRECT_BYTES_MAX ((size_t)64 * 1024)
static_assert(DIRECT_BYTES_MAX <= TM_WHOLE_BYTES_MAX, "a queue with a flow is the engine's");

static void settle_all(tm_connection *conn, tm_peer *peer)
{
    while (conn->writing) {
        tm_entry *entry = conn->writing;
        conn->writing = entry->next;
        if (entry->op != TM_ENTRY_TICK) TM_ATOMIC_ADD(&conn->frames_out, 1);
        tm_peer_settle(peer, entry);
    }
    while (conn->flows) {
        tm_flow *flow = conn->flows;
        conn->flows = flow->writing;
        TM_ATOMIC_ADD(&conn->frames_out, flow->burst);
        flow->burst = 0;
        if (!flow->left || flow->refused) tm_peer_settle(peer, flow->entry);
    }
}

void tm_connection_write_lost(tm_connection *conn, tm_peer *peer)
{
    tumen_node *node = conn->node;
    for (tm_entry *entry = conn->writing; entry; entry = entry->next) {
        tm_sendq_settle(&peer->queue, entry);
        __atomic_sub_fetch(&node->sendq_bytes, entry->weight, __ATOMIC_RELAXED);
    }
    while (conn->flows) {
        tm_flow *flow = conn->flows;
        tm_entry *entry = flow->entry;
        conn->flows = flow->writing;
        flow->burst = 0;
        tm_sendq_settle(&peer->queue, entry);
        __atomic_sub_fetch(&node->sendq_bytes, entry->weight, __ATOMIC_RELAXED);
        entry->next = conn->writing;
        conn->writing = entry;
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

/* OTP closes a connection for an EXIT or UNLINK_ID to a pid of an earlier creation (protocol.md 4.3).
 * One can be left in a queue that was filled before the peer came back. */
static bool entry_is_stale(const tm_connection *conn, const tm_entry *entry)
{
    return (entry->op == TM_OP_EXIT || entry->op == TM_OP_UNLINK_ID) &&
           entry->to.creation != conn->creation;
}

/* Whether the peer takes this large entry in fragments. To an alias it does only from OTP 28 on, which
 * is known by its newest flag: before 25.3.2.8 and 26.1.3 a BEAM leaks or crashes when the alias is no
 * longer active (erlang/otp 7834, 7890), and a late reply is just that. */
static bool entry_in_fragments(const tm_connection *conn, const tm_entry *entry)
{
    if (!(conn->flags & TM_DFLAG(FRAGMENTS)) || entry_is_stale(conn, entry)) return false;
    if (entry->to_kind == TM_ITEM_REF && !(conn->flags & TM_DFLAG(ALTACT_SIG))) return false;
    /* Without EXIT_PAYLOAD a reason is part of the control message, which is never cut. */
    return entry->payload_len || conn->flags & TM_DFLAG(EXIT_PAYLOAD);
}

/* What one write takes: bytes and segments so far. */
struct claim {
    tm_connection *conn;
    tm_sendq *queue;
    size_t bytes, bytes_max;
    size_t segments;
};

static bool claim_has_room(const struct claim *claim, size_t bytes_max, size_t segments)
{
    if (claim->bytes >= bytes_max) return false;
    return claim->segments + segments <= TM_SEND_BATCH_SEGMENTS || claim->segments == 1;
}

/* A part that is not copied into the contiguous bytes of a write. */
static bool part_is_segment(const tumen_part *part)
{
    return part->bytes.len && (part->lent || part->bytes.len >= TM_SEGMENT_BYTES_MIN);
}

/* Segments that an entry needs: one for each such part, and one for what lies before it. */
static size_t entry_segments(const tm_entry *entry)
{
    size_t segments = 0;
    for (size_t i = 0; i < entry->part_count; i++)
        if (part_is_segment(&entry->parts[i])) segments += 2;
    return segments;
}

static void claim_entries(struct claim *claim)
{
    tm_entry **tail = &claim->conn->writing;
    while (claim->queue->head) {
        size_t segments = entry_segments(claim->queue->head);
        /* Half of a write is for the flows, when there are any. */
        bool flows = tm_flow_turn(claim->queue) != NULL;
        if (!claim_has_room(claim, flows ? claim->bytes_max / 2 : claim->bytes_max, segments))
            return;
        tm_entry *entry = tm_sendq_pop(claim->queue);
        if (entry->flow && entry_in_fragments(claim->conn, entry)) {
            tm_flow_begin(claim->queue, entry->flow);
            continue;
        }
        claim->bytes += entry->weight;
        claim->segments += segments;
        *tail = entry;
        tail = &entry->next;
    }
}

static void claim_fragments(struct claim *claim)
{
    tm_flow **tail = &claim->conn->flows;
    for (tm_flow *flow; (flow = tm_flow_turn(claim->queue));) {
        tm_payload_at after;
        size_t spans = tm_flow_spans(flow, &after);
        if (!claim_has_room(claim, claim->bytes_max, 2 * spans + 1)) return;
        if (tm_flow_take(claim->queue, flow, after)) {
            flow->writing = NULL;
            *tail = flow;
            tail = &flow->writing;
        }
        claim->bytes += TM_FRAGMENT_BYTES;
        claim->segments += 2 * spans + 1;
    }
}

/* Takes entries and fragments for one write, under the lock; true when the claim was made. */
static bool write_claim(tm_connection *conn, size_t bytes_max)
{
    tm_peer *peer = conn->peer;
    if (!peer || peer->sending || !tm_sendq_ready(&peer->queue)) return false;
    struct claim claim = {
        .conn = conn, .queue = &peer->queue, .bytes_max = bytes_max, .segments = 1};
    claim_entries(&claim);
    claim_fragments(&claim);
    peer->sending = true;
    return true;
}

/* A write that is being made: what of conn->out is not yet in a segment, and which segments are in it. */
struct build {
    tm_connection *conn;
    const tm_peer *peer;
    size_t start;
    /* A message whose head the next one to the same process repeats, and where that head lies in
     * conn->out, without the length before it. */
    const tm_entry *model;
    size_t head, head_len;
    uint8_t is_out[TM_SEND_BATCH_SEGMENTS];
};

/* One segment of the write: a span of conn->out (base NULL: offset for now) or a part. */
static void segment_add(struct build *build, const void *base, size_t offset, size_t len)
{
    tm_connection *conn = build->conn;
    TM_ASSERT(conn->iov_count < TM_SEND_BATCH_SEGMENTS);
    build->is_out[conn->iov_count] = base == NULL;
    conn->iov[conn->iov_count++] =
        (struct iovec){base ? (void *)(uintptr_t)base : (void *)(uintptr_t)(offset + 1), len};
}

static void segment_out(struct build *build)
{
    size_t len = build->conn->out.len;
    if (len > build->start) segment_add(build, NULL, build->start, len - build->start);
    build->start = len;
}

/* A span of a payload: a segment, or copied behind the head. None is an empty segment: a rest of nothing
 * could not be sent. */
static int build_span(struct build *build, tm_bytes span, bool segment)
{
    if (!segment) return tm_buf_append(&build->conn->out, span.ptr, span.len);
    segment_out(build);
    segment_add(build, span.ptr, 0, span.len);
    return 0;
}

static bool same_pid(tm_small_pid a, tm_small_pid b)
{
    return a.id == b.id && a.serial == b.serial && a.creation == b.creation;
}

/* Whether everything before the payload of an entry depends on its sender and its target alone: a
 * message to a pid, small enough to be copied. */
static bool entry_repeats(const tm_entry *entry)
{
    return entry->op == TM_OP_SEND && !entry->rare && entry->part_count == 1 &&
           !part_is_segment(&entry->parts[0]);
}

/* The frame of this entry is at the end of conn->out, from start on. */
static void model_set(struct build *build, const tm_entry *entry, size_t start)
{
    build->model = entry;
    build->head = start + sizeof(uint32_t);
    build->head_len = build->conn->out.len - build->head - entry->payload_len;
}

/* Appends an entry with the head of the model. 0, TM_ENOMEM, or 1: it needs one of its own. */
static int build_repeated(struct build *build, const tm_entry *entry)
{
    const tm_entry *model = build->model;
    if (!model || !entry_repeats(entry) || !same_pid(entry->to, model->to) ||
        !same_pid(entry->from, model->from))
        return 1;
    tm_buf *out = &build->conn->out;
    size_t len = build->head_len + entry->payload_len;
    int rc = tm_buf_reserve(out, sizeof(uint32_t) + len);
    if (rc) return rc;
    uint8_t *at = out->ptr + out->len;
    tm_store_u32(at, (uint32_t)len);
    at = tm_store_bytes(at + sizeof(uint32_t), out->ptr + build->head, build->head_len);
    memcpy(at, entry->parts[0].bytes.ptr, entry->payload_len);
    out->len += sizeof(uint32_t) + len;
    return 0;
}

/* An entry that goes out whole. One that this connection cannot carry (an operation that the peer never
 * announced) is dropped and counted. */
static int build_entry(struct build *build, const tm_entry *entry)
{
    tm_connection *conn = build->conn;
    tumen_node *node = conn->node;
    bool segments;
    size_t start = conn->out.len;
    if (entry_is_stale(conn, entry)) return 0;
    int rc = build_repeated(build, entry);
    if (rc <= 0) return rc;
    rc = tm_entry_write(entry, tm_node_name(node), node->creation, build->peer->name, conn->flags,
                        &conn->out, &segments);
    if (rc == TM_ENOTSUP) {
        TM_ATOMIC_ADD(&node->operations_refused, 1);
        return 0;
    }
    uint32_t known = conn->atoms_out ? conn->atoms_out->count : 0;
    if (!rc && conn->atoms_out && entry->op != TM_ENTRY_TICK)
        rc = tm_atom_sender_shorten(conn->atoms_out, &conn->out, start);
    /* A head that brings new atoms brings them once. */
    bool plain = !conn->atoms_out || conn->atoms_out->count == known;
    if (!rc && plain && entry_repeats(entry)) model_set(build, entry, start);
    for (size_t i = 0; !rc && segments && i < entry->part_count; i++)
        rc =
            build_span(build, tm_private(entry->parts[i].bytes), part_is_segment(&entry->parts[i]));
    return rc;
}

/* The fragments of a flow. A refused one is dropped and counted as an entry is. */
static int build_flow(struct build *build, tm_flow *flow)
{
    tm_connection *conn = build->conn;
    tumen_node *node = conn->node;
    const tm_entry *entry = flow->entry;
    size_t payload = tm_entry_payload(entry);
    uint64_t number = flow->left + flow->burst;
    tm_payload_at at = flow->burst_at;
    for (; number > flow->left; number--) {
        size_t start = conn->out.len;
        int rc =
            number == tm_sequence_count(payload)
                ? tm_entry_write_first(entry, tm_node_name(node), node->creation, build->peer->name,
                                       conn->flags, flow->sequence, &conn->out)
                : tm_sequence_next(&conn->out, flow->sequence, payload, number);
        if (!rc && conn->atoms_out) rc = tm_atom_sender_shorten(conn->atoms_out, &conn->out, start);
        flow->refused = rc == TM_ENOTSUP;
        if (flow->refused) {
            TM_ATOMIC_ADD(&node->operations_refused, 1);
            return 0;
        }
        for (size_t left = tm_sequence_part(payload, number); !rc && left;) {
            tm_bytes span = tm_entry_span(entry, &at, left);
            left -= span.len;
            rc = build_span(build, span, span.len >= TM_SEGMENT_BYTES_MIN);
        }
        if (rc) return rc;
    }
    return 0;
}

static int build_claimed(struct build *build)
{
    for (tm_entry *entry = build->conn->writing; entry; entry = entry->next) {
        int rc = build_entry(build, entry);
        if (rc) return rc;
    }
    for (tm_flow *flow = build->conn->flows; flow; flow = flow->writing) {
        int rc = build_flow(build, flow);
        if (rc) return rc;
    }
    return 0;
}

/* Makes the bytes of what was claimed. */
static int write_build(tm_connection *conn, const tm_peer *peer)
{
    struct build build = {.conn = conn, .peer = peer};
    conn->out.len = 0;
    conn->iov_count = conn->iov_next = 0;
    /* Without memory for it atoms are written out. */
    if (conn->flags & TM_DFLAG(DIST_HDR_ATOM_CACHE) && !conn->atoms_out)
        conn->atoms_out = tm_alloc_zero(&conn->node->engine->alloc, sizeof *conn->atoms_out);
    uint32_t known = conn->atoms_out ? conn->atoms_out->count : 0;
    int rc = build_claimed(&build);
    if (rc) {
        /* Nothing of it will leave as it is. */
        if (conn->atoms_out) conn->atoms_out->count = known;
        return rc;
    }
    segment_out(&build);
    /* Now that conn->out no longer moves, offsets become addresses. */
    for (int i = 0; i < conn->iov_count; i++)
        if (build.is_out[i])
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
    conn->leftover = leftover;
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
    if (!conn || peer->direct || conn->close_pending || peer->conn_failed) return false;
    /* The engine's write takes along what is queued when it ends: nobody is to be woken for that. */
    if (peer->sending) return true;
    if (peer->queue.bytes > DIRECT_BYTES_MAX || !write_claim(conn, DIRECT_BYTES_MAX)) return false;
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
    bool claimed = conn->peer && conn->leftover;
    conn->leftover = false;
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
        /* What was queued meanwhile waits for nobody else. */
        if (!conn->down && !conn->iov_count) tm_connection_write(conn);
    } else if (conn->draining && !conn->down) {
        tm_connection_drain(conn);
    }
}
