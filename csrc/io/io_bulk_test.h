/* Sockets in bulk, for io_conformance_test.c: their bytes come where the owner wants them. */
#ifndef TM_IO_IO_BULK_TEST_H
#define TM_IO_IO_BULK_TEST_H

#include "io_fixture.h"

/* A stream of messages of that size arrives whole; how much of it came in its place. */
static inline size_t bulk_stream(fixture *f, end *e, end *other, size_t message, size_t bytes)
{
    size_t before = other->in_place, received = other->received_bytes;
    other->message = message;
    stream_start(f, e, bytes, 2);
    RUN_UNTIL(f, other->received_bytes == received + bytes && !e->in_flight);
    return other->in_place - before;
}

static inline end *bulk_pair(fixture *f, end **other)
{
    end *e = pair_make(f, other);
    (*other)->verifies = true;
    read_start(f, *other);
    return e;
}

static inline void bytes_in_bulk_come_where_they_are_wanted(void **state)
{
    fixture *f = *state;
    size_t bytes = f->net ? 2 * TM_MIB : 24 * TM_MIB;
    end *other;
    end *e = bulk_pair(f, &other);
    assert_true(bulk_stream(f, e, other, bytes, bytes) > bytes / 2);
    /* In messages: what lies behind the end of one is the beginning of the next. */
    assert_true(bulk_stream(f, e, other, 100000, bytes) > bytes / 2);
    assert_true(bulk_stream(f, e, other, 70001, bytes) > bytes / 2);
    /* Small ones that follow arrive too. */
    bulk_stream(f, e, other, 0, bytes);
    for (size_t message = 1; message < 2000; message += 100)
        bulk_stream(f, e, other, message, message * 7);
    assert_true(bulk_stream(f, e, other, bytes, bytes) > bytes / 2);
}

static inline void one_socket_in_bulk_leaves_the_others_their_turn(void **state)
{
    fixture *f = *state;
    end *other, *quiet_other;
    end *e = bulk_pair(f, &other);
    end *quiet = pair_make(f, &quiet_other);
    quiet_other->echoes = true;
    read_start(f, quiet_other);
    read_start(f, quiet);
    other->message = 64 * TM_MIB;
    stream_start(f, e, 64 * TM_MIB, 2);
    RUN_UNTIL(f, other->in_place);
    for (int i = 0; i < 10; i++) {
        size_t before = quiet->received_bytes;
        end_send(f, quiet, "ping!");
        RUN_UNTIL(f, quiet->received_bytes == before + 5 && !quiet->in_flight);
    }
    assert_true(other->received_bytes < 64 * TM_MIB);
}

static inline void sockets_in_bulk_come_to_their_end(void **state)
{
    fixture *f = *state;
    for (int i = 0; i < 8; i++) {
        end *other;
        end *e = bulk_pair(f, &other);
        other->message = 64 * TM_MIB;
        stream_start(f, e, 64 * TM_MIB, 2);
        RUN_UNTIL(f, other->in_place > (size_t)i * 50000);
        bool abort = i & 1;
        if (i & 2) {
            end_close(f, e, abort);
            RUN_UNTIL(f, e->closed && other->read_ended);
            assert_true(abort ? other->read_rc < 0 : other->read_rc == 0);
            end_close(f, other, false);
        } else {
            end_close(f, other, abort);
            RUN_UNTIL(f, other->closed);
            end_close(f, e, true);
        }
        RUN_UNTIL(f, e->closed && other->closed);
    }
}

#define BULK_CASES                                                                                 \
    CASE(bytes_in_bulk_come_where_they_are_wanted),                                                \
        CASE(one_socket_in_bulk_leaves_the_others_their_turn),                                     \
        CASE(sockets_in_bulk_come_to_their_end)

#endif
