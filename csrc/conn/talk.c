/* Small exchanges over a socket: see tm_talk. */
#include "engine.h"

/* Most that may wait to be said, bytes: a handshake message and a port mapper's list of names. */
#define TALK_BYTES_MAX ((size_t)4 * 1024 * 1024)

void tm_talk_init(tm_talk *talk, tumen_engine *engine, const tm_sock_ops *ops)
{
    talk->sock = (tm_sock){.ops = ops, .engine = engine};
    tm_buf_init(&talk->out, &engine->alloc, TALK_BYTES_MAX);
    tm_buf_init(&talk->writing, &engine->alloc, TALK_BYTES_MAX);
}

void tm_talk_fini(tm_talk *talk)
{
    tm_buf_fini(&talk->out);
    tm_buf_fini(&talk->writing);
}

static int talk_send(tm_talk *talk)
{
    struct iovec iov = {talk->writing.ptr + talk->written, talk->writing.len - talk->written};
    tm_io *io = talk->sock.engine->io;
    int rc = io->ops->send(io, talk->sock.id, &iov, 1);
    talk->in_flight = rc == 0;
    return rc;
}

int tm_talk_flush(tm_talk *talk)
{
    if (talk->in_flight || talk->out.len == 0) return 0;
    tm_buf spent = talk->writing;
    talk->writing = talk->out;
    talk->out = spent;
    talk->out.len = 0;
    talk->written = 0;
    return talk_send(talk);
}

int tm_talk_sent(tm_talk *talk, ssize_t rc)
{
    talk->in_flight = false;
    if (rc < 0) return (int)rc;
    talk->written += (size_t)rc;
    if (talk->written < talk->writing.len) return talk_send(talk);
    int done = tm_talk_flush(talk);
    if (!done && talk->closing && !talk->in_flight) tm_sock_close(&talk->sock, false);
    return done;
}

void tm_talk_finish(tm_talk *talk)
{
    talk->closing = true;
    if (tm_talk_flush(talk) != 0 || !talk->in_flight) tm_sock_close(&talk->sock, false);
}
