/* The epoll backend under a foreign loop: its descriptor must say everything that a turn has to
 * do. */
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "io_fixture.h"

static int set_up(void **state)
{
    fixture *f = fixture_create("epoll", NULL);
    assert_int_equal(fixture_io_create(f, 64), 0);
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    fixture_destroy(*state);
    return 0;
}

/* A loop that turns only when the descriptor says so. */
#define DRIVE_UNTIL(f, expr)                                                                       \
    do {                                                                                           \
        struct pollfd ready = {.fd = (f)->io->ops->poll_fd((f)->io), .events = POLLIN};            \
        assert_true(ready.fd >= 0);                                                                \
        while (!(expr)) {                                                                          \
            if (poll(&ready, 1, 10000) != 1) fail_msg("the loop sleeps, yet not: %s", #expr);      \
            assert_int_equal(fixture_turn(f, 0), 0);                                               \
        }                                                                                          \
    } while (0)

static bool readable(fixture *f)
{
    struct pollfd ready = {.fd = f->io->ops->poll_fd(f->io), .events = POLLIN};
    return poll(&ready, 1, 0) == 1;
}

static void foreign_loop_sees_all_work(void **state)
{
    fixture *f = *state;
    f->accept_reads = f->accept_echoes = true;
    assert_true(f->io->ops->poll_fd(f->io) >= 0);
    tm_io_address bound;
    end *listener = listen_on(f, &bound);
    end *e = connect_start(f, &bound);
    DRIVE_UNTIL(f, e->connected && f->accepted);
    e->verifies = true;
    read_start(f, e);
    stream_start(f, e, 8 * TM_MIB, 3);
    DRIVE_UNTIL(f, e->received_bytes == 8 * TM_MIB);
    end_close(f, e, false);
    end_close(f, f->last_accepted, false);
    end_close(f, listener, false);
    DRIVE_UNTIL(f, e->closed && f->last_accepted->closed && listener->closed);
    while (readable(f)) fixture_turn(f, 0);
}

static void operation_between_turns_wakes_the_foreign_loop(void **state)
{
    fixture *f = *state;
    end *other;
    end *e = pair_make(f, &other);
    assert_true(f->io->ops->poll_fd(f->io) >= 0);
    for (int i = 0; i < 5; i++) {
        while (readable(f)) fixture_turn(f, 0);
        end_send(f, e, "text");
        DRIVE_UNTIL(f, !e->in_flight);
    }
    while (readable(f)) fixture_turn(f, 0);
    read_start(f, other);
    DRIVE_UNTIL(f, other->received_bytes == 20);
    while (readable(f)) fixture_turn(f, 0);
    end_close(f, other, true);
    DRIVE_UNTIL(f, other->closed);
}

static void wake_is_seen_by_the_foreign_loop(void **state)
{
    fixture *f = *state;
    for (int i = 0; i < 3; i++) {
        while (readable(f)) fixture_turn(f, 0);
        f->io->ops->wake(f->io);
        f->io->ops->wake(f->io);
        assert_true(readable(f));
    }
}

static void end_of_lingering_is_seen_by_the_foreign_loop(void **state)
{
    fixture *f = *state;
    end *other;
    end *e = pair_make(f, &other);
    end_close(f, e, false);
    DRIVE_UNTIL(f, e->closed);
}

static void blocking_turns_go_on_beside_a_foreign_loop(void **state)
{
    fixture *f = *state;
    f->accept_reads = f->accept_echoes = true;
    assert_true(f->io->ops->poll_fd(f->io) >= 0);
    end *other;
    end *e = pair_make(f, &other);
    read_start(f, e);
    end_send(f, e, "by turns");
    RUN_UNTIL(f, e->received_bytes == 8);
    uint64_t deadline = tm_io_now_ns() + 5 * TM_MS_NS;
    while (tm_io_now_ns() < deadline) assert_int_equal(fixture_turn(f, deadline), 0);
    end_send(f, e, "by polls");
    DRIVE_UNTIL(f, e->received_bytes == 16);
}

/* Kernels before 5.11, and filters that do not know epoll_pwait2. */
static void deadline_is_kept_without_epoll_pwait2(void **state)
{
    fixture *f = *state;
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (filter_install(SYS_epoll_pwait2, ENOSYS)) _exit(1);
        uint64_t deadline = tm_io_now_ns() + 2 * TM_MS_NS + 1;
        int turns = 0;
        for (; tm_io_now_ns() < deadline; turns++) {
            if (fixture_turn(f, deadline)) _exit(2);
        }
        if (turns > 10) _exit(3);
        f->io->ops->wake(f->io);
        if (fixture_turn(f, UINT64_MAX)) _exit(4);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* The fast path of a ping-pong: wait, read, write. */
static void reply_from_a_handler_costs_three_calls(void **state)
{
    fixture *f = *state;
    f->accept_reads = f->accept_echoes = true;
    end *other;
    int fd = raw_pair_make(f, &other, 0);
    tm_io_counters before, after;
    fixture_turn(f, 0);
    f->io->ops->counters(f->io, &before);
    for (int i = 0; i < 100; i++) {
        char text[4];
        assert_int_equal(write(fd, "ping", 4), 4);
        assert_int_equal(fixture_turn(f, UINT64_MAX), 0);
        assert_int_equal(read(fd, text, 4), 4);
        assert_false(other->in_flight);
    }
    f->io->ops->counters(f->io, &after);
    assert_true(after.system_calls - before.system_calls <= 310);
    close(fd);
}

static void wake_does_not_end_gathering_and_is_not_lost(void **state)
{
    fixture *f = *state;
    unsigned gather_ns = 20 * 1000 * 1000;
    uint64_t start = tm_io_now_ns();
    f->io->ops->wake(f->io);
    f->io->ops->gather(f->io, gather_ns);
    assert_int_equal(fixture_turn(f, UINT64_MAX), 0);
    assert_true(tm_io_now_ns() - start >= gather_ns);
}

static void work_that_is_left_over_is_not_gathered(void **state)
{
    fixture *f = *state;
    end *other;
    end *e = pair_make(f, &other);
    end_send(f, e, "done at once");
    uint64_t start = tm_io_now_ns();
    f->io->ops->gather(f->io, TM_S_NS / 2);
    assert_int_equal(fixture_turn(f, UINT64_MAX), 0);
    assert_true(tm_io_now_ns() - start < TM_S_NS / 2);
    assert_false(e->in_flight);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(foreign_loop_sees_all_work, set_up, tear_down),
        cmocka_unit_test_setup_teardown(operation_between_turns_wakes_the_foreign_loop, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(wake_is_seen_by_the_foreign_loop, set_up, tear_down),
        cmocka_unit_test_setup_teardown(end_of_lingering_is_seen_by_the_foreign_loop, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(blocking_turns_go_on_beside_a_foreign_loop, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(deadline_is_kept_without_epoll_pwait2, set_up, tear_down),
        cmocka_unit_test_setup_teardown(wake_does_not_end_gathering_and_is_not_lost, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(work_that_is_left_over_is_not_gathered, set_up, tear_down),
        cmocka_unit_test_setup_teardown(reply_from_a_handler_costs_three_calls, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("epoll", tests, NULL, NULL);
}
