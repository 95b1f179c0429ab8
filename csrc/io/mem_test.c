/* The knobs of the fake network, and that one seed gives one run. */
#include "io_fixture.h"

static fixture *net_with(const tm_mem_options *options)
{
    fixture *f = fixture_create("mem", options);
    assert_int_equal(fixture_io_create(f, 64), 0);
    return f;
}

static uint64_t trace;

/* Everything a handler can see, in order. */
static void trace_received(fixture *f, end *e)
{
    uint64_t seen[] = {e->id, e->received_bytes, tm_mem_net_now_ns(f->net)};
    for (size_t i = 0; i < 3; i++) trace = (trace ^ seen[i]) * UINT64_C(0x100000001b3);
}

static uint64_t run_of(uint64_t seed)
{
    fixture *f = net_with(&(tm_mem_options){
        .seed = seed,
        .delay_ns_max = TM_MS_NS,
        .room_bytes = 5000,
        .short_send_per_mille = 200,
        .split_per_mille = 200,
        .stall_per_mille = 20,
        .stall_ns = TM_S_NS,
    });
    trace = 0;
    f->on_received = trace_received;
    f->accept_reads = f->accept_echoes = true;
    tm_io_address bound;
    listen_on(f, &bound);
    end *ends[5];
    for (int i = 0; i < 5; i++) ends[i] = connect_start(f, &bound);
    for (int i = 0; i < 5; i++) {
        RUN_UNTIL(f, ends[i]->connected);
        ends[i]->verifies = true;
        read_start(f, ends[i]);
        stream_start(f, ends[i], 30000, 2);
    }
    for (int i = 0; i < 5; i++) RUN_UNTIL(f, ends[i]->received_bytes == 30000);
    uint64_t random;
    assert_int_equal(f->io->ops->random(f->io, &random, sizeof random), 0);
    fixture_destroy(f);
    return trace ^ random;
}

static void same_seed_gives_the_same_run(void **state)
{
    (void)state;
    assert_true(run_of(1) == run_of(1));
    assert_true(run_of(2) == run_of(2));
    assert_true(run_of(1) != run_of(2));
}

static void refused_connects_follow_their_share(void **state)
{
    (void)state;
    fixture *f = net_with(&(tm_mem_options){.seed = 7, .refuse_per_mille = 500});
    tm_io_address bound;
    listen_on(f, &bound);
    int refused = 0;
    for (int i = 0; i < 40; i++) {
        end *e = connect_start(f, &bound);
        RUN_UNTIL(f, e->connected);
        refused += e->connect_rc == -ECONNREFUSED;
        end_close(f, e, true);
        RUN_UNTIL(f, e->closed);
    }
    assert_true(refused > 5 && refused < 35);
    fixture_destroy(f);
}

static void stall_holds_one_direction_only(void **state)
{
    (void)state;
    fixture *f = net_with(&(tm_mem_options){.seed = 7});
    end *other;
    end *e = pair_make(f, &other);
    read_start(f, e);
    read_start(f, other);
    tm_mem_stall(f->io, e->id, UINT64_MAX);
    end_send(f, e, "held");
    end_send(f, other, "free");
    RUN_UNTIL(f, e->received_bytes == 4);
    fixture_settle(f);
    assert_int_equal(other->received_bytes, 0);
    uint64_t later = tm_mem_net_now_ns(f->net) + TM_S_NS;
    tm_mem_stall(f->io, e->id, later);
    RUN_UNTIL(f, other->received_bytes == 4);
    assert_true(tm_mem_net_now_ns(f->net) >= later);
    tm_mem_stall(f->io, e->id, UINT64_MAX);
    end_send(f, e, "more");
    fixture_settle(f);
    tm_mem_stall(f->io, e->id, 0);
    RUN_UNTIL(f, other->received_bytes == 8);
    fixture_destroy(f);
}

static void reset_at_a_step_reaches_both_ends(void **state)
{
    (void)state;
    /* Wherever it falls, both sides hear of it once and close cleanly. */
    for (uint64_t step = 3; step < 60; step++) {
        fixture *f = net_with(&(tm_mem_options){
            .seed = step, .delay_ns_max = 1000, .room_bytes = 4000, .reset_step = step});
        f->accept_reads = f->accept_echoes = true;
        tm_io_address bound;
        listen_on(f, &bound);
        end *e = connect_start(f, &bound);
        RUN_UNTIL(f, e->connected && f->accepted);
        read_start(f, e);
        stream_start(f, e, 1 << 20, 1);
        RUN_UNTIL(f, e->read_ended && f->last_accepted->read_ended && !e->in_flight);
        assert_int_equal(e->read_rc, -ECONNRESET);
        assert_int_equal(f->last_accepted->read_rc, -ECONNRESET);
        assert_true(tm_mem_net_steps(f->net) >= step);
        end_close(f, e, false);
        RUN_UNTIL(f, e->closed);
        fixture_destroy(f);
    }
}

static void reset_by_hand_ends_a_blocked_send(void **state)
{
    (void)state;
    fixture *f = net_with(&(tm_mem_options){.seed = 7});
    end *other;
    end *e = pair_make(f, &other);
    read_start(f, other);
    stream_start(f, e, STREAM_PIECE, 1);
    tm_mem_stall(f->io, e->id, UINT64_MAX);
    stream_start(f, e, 1 << 20, 1);
    fixture_settle(f);
    assert_true(e->in_flight);
    tm_mem_reset(f->io, other->id);
    RUN_UNTIL(f, !e->in_flight && other->read_ended);
    assert_int_equal(e->sent_rc, -ECONNRESET);
    fixture_destroy(f);
}

static void time_moves_only_when_it_is_set(void **state)
{
    (void)state;
    fixture *f = net_with(&(tm_mem_options){.seed = 7});
    uint64_t start = f->io->ops->now_ns(f->io);
    assert_int_equal(fixture_turn(f, UINT64_MAX), 0);
    assert_true(f->io->ops->now_ns(f->io) == start);
    tm_mem_net_set_now_ns(f->net, start + 5);
    tm_mem_net_set_now_ns(f->net, start);
    assert_true(f->io->ops->now_ns(f->io) == start + 5);
    tm_mem_net_options(f->net)->delay_ns_max = 1000;
    fixture_destroy(f);
}

static void backends_on_one_net_reach_each_other(void **state)
{
    (void)state;
    fixture *f = net_with(&(tm_mem_options){.seed = 7, .delay_ns_max = 100});
    /* The second backend's sockets live in a fixture of their own: ids are per backend. */
    fixture *g = fixture_create("mem", NULL);
    g->net = f->net;
    assert_int_equal(fixture_io_create(g, 64), 0);
    tm_io_address bound;
    end *listener = listen_on(f, &bound);
    tm_io_id taken;
    assert_int_equal(g->io->ops->listen(g->io, &bound, 1, &taken, &bound), -EADDRINUSE);
    f->accept_reads = f->accept_echoes = true;
    end *e = connect_start(g, &bound);
    for (int i = 0; i < 1000 && !(e->connected && f->accepted); i++) {
        fixture_step(f);
        fixture_step(g);
    }
    assert_int_equal(e->connect_rc, 0);
    read_start(g, e);
    end_send(g, e, "across");
    for (int i = 0; i < 1000 && e->received_bytes < 6; i++) {
        fixture_step(f);
        fixture_step(g);
    }
    assert_memory_equal(e->text, "across", 6);
    /* One backend goes: the other's sockets see the end. */
    (void)listener;
    f->io->ops->destroy(f->io);
    f->io = NULL;
    RUN_UNTIL(g, e->read_ended);
    assert_int_equal(e->read_rc, 0);
    g->net = NULL;
    fixture_destroy(g);
    fixture_destroy(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_seed_gives_the_same_run),
        cmocka_unit_test(refused_connects_follow_their_share),
        cmocka_unit_test(stall_holds_one_direction_only),
        cmocka_unit_test(reset_at_a_step_reaches_both_ends),
        cmocka_unit_test(reset_by_hand_ends_a_blocked_send),
        cmocka_unit_test(time_moves_only_when_it_is_set),
        cmocka_unit_test(backends_on_one_net_reach_each_other),
    };
    return cmocka_run_group_tests_name("mem", tests, NULL, NULL);
}
