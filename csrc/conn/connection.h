/* A connection: an authenticated socket between two nodes. Shared by connection.c (life and ticks),
 * write.c (out) and receive.c (in).
 *
 * The object lives from the verified handshake until its socket is closed and no caller writes
 * directly; it is `up` as long as peer->conn points to it. */
#ifndef TM_CONN_CONNECTION_H
#define TM_CONN_CONNECTION_H

#include "../dist/atom_sender.h"
#include "../dist/fragment.h"
#include "flow.h"
#include "node.h"

/* The message that is being received. */
typedef struct tm_incoming {
    const tm_atom_header *header; /* the atoms that its terms refer to */
    tm_slab *memory;              /* that they lie in and that may be taken, or NULL */
    uint64_t dropped_bytes;       /* of a payload that was too large to be kept; 0: it is there */
    tm_buf plain;                 /* a payload without references, for those that read it at once */
} tm_incoming;

typedef struct tm_connection {
    tm_sock sock;
    tm_list link; /* in node->connections */
    tumen_node *node;
    tm_peer *peer; /* NULL once it is down */
    uint64_t epoch;
    uint64_t flags;
    uint32_t creation; /* the peer's */
    uint64_t up_ns;    /* when it came up */
    char address[64];
    tm_source *source;
    tm_framer framer;
    tm_atom_cache atoms;
    tm_fragments fragments;
    tm_incoming *incoming; /* while a message is received */
    tm_timer tick_timer;
    tm_command resume; /* a caller's direct write has left the rest to the engine */

    /* the write in flight: owned by whoever set peer->sending (the engine, or a caller) */
    tm_entry *writing;         /* entries of this write, in order */
    tm_flow *flows;            /* behind them: flows with fragments in this write, in order */
    tm_buf out;                /* their contiguous bytes */
    tm_atom_sender *atoms_out; /* NULL: none are sent by number, or nothing was sent yet */
    struct iovec iov[TM_SEND_BATCH_SEGMENTS];
    int iov_count, iov_next;
    tm_buf carried; /* the last words of the handshake, still in flight */
    size_t carried_done;
    bool direct;        /* a caller is writing; under node->lock */
    bool leftover;      /* a caller has left the claim to the engine; under node->lock */
    bool close_pending; /* the engine wants to close meanwhile; under node->lock */
    bool down;          /* engine: closing has begun */
    bool draining;      /* close after the last queued byte, for drain_text */
    const char *drain_text;
    uint64_t close_by_ns; /* and at the latest then; 0: the node sees to it */
    tm_given *given;      /* the peer's name, if it is of ours */

    /* counters: one writer each, read by anyone */
    uint64_t bytes_in, bytes_out, frames_in, frames_out, ticks_in, ticks_out;
    uint64_t reassembly_bytes, atom_count;
    uint64_t seen_frames, seen_bytes_out; /* at the last tick check */
    uint64_t period;                      /* of the engine, in which it last sent something */
    unsigned silent;                      /* tick checks in a row without a frame */
} tm_connection;

/* connection.c */
void tm_connection_drain(tm_connection *conn);

/* write.c */
void tm_connection_sent(tm_sock *sock, ssize_t rc);
void tm_connection_resume(tm_command *command);
/* Frees the entries of the write that was in flight. Under node->lock. */
void tm_connection_write_over(tm_connection *conn, tm_peer *peer);
/* The connection is down: what was being written counts as lost, and stays in conn->writing until the
 * kernel or the caller is done with it. Under node->lock. */
void tm_connection_write_lost(tm_connection *conn, tm_peer *peer);

/* receive.c */
void tm_connection_received(tm_sock *sock, tm_bytes bytes);
tm_room tm_connection_room(tm_sock *sock);
/* For a payload of the message in work. Walks it and cuts off what lies behind it: answers as
 * tm_etf_walk. */
TM_MUST_CHECK int tm_receive_walk(tm_connection *conn, tm_bytes *payload, tm_walk_result *walked);
/* What tm_node_deliver is to know of such a payload, once it is walked. */
tm_inbox_term tm_receive_term(const tm_connection *conn, const tm_walk_result *walked);

#endif
