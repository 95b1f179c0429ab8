/* How io_uring is refused: a filter or a limit stands in the way, the backend says which in plain
 * words, leaves nothing behind and never hangs. */
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "io_fixture.h"

#ifndef TM_HAVE_LIBURING

int main(void)
{
    print_error("io_uring is not available here: this build was made without liburing\n");
    return getenv("TM_ALLOW_SKIP") ? 77 : 1;
}

#else

#include <liburing.h>

/* How long completions gather here, ns. */
#define GATHER_NS (20 * 1000 * 1000)

typedef struct verdict {
    int rc;
    char why[256];
    size_t bytes; /* of memory and number of descriptors left behind */
    int descriptors;
} verdict;

static verdict create_here(void)
{
    tm_alloc_stats stats = {0};
    tm_alloc alloc = tm_alloc_libc(&stats);
    tm_io_options options = {.alloc = &alloc, .sockets_max = 16};
    verdict v = {0};
    int before = descriptor_count();
    tm_io *io = NULL;
    v.rc = tm_io_uring_create(&options, &io, v.why, sizeof v.why);
    if (v.rc == 0) io->ops->destroy(io);
    v.bytes = stats.bytes;
    v.descriptors = descriptor_count() - before;
    return v;
}

/* Tries in a child where one system call fails, or (nr < 0) where nothing may be locked. */
static verdict create_without(int nr, int error)
{
    int answer[2];
    assert_int_equal(pipe(answer), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        struct rlimit none = {0, 0};
        int rc;
        if (nr >= 0) {
            rc = filter_install(nr, error);
        } else {
            rc = setrlimit(RLIMIT_MEMLOCK, &none);
            if (rc == 0 && getuid() == 0) rc = setuid(65534);
        }
        verdict v = {.rc = 1};
        if (rc == 0) v = create_here();
        if (write(answer[1], &v, sizeof v) != (ssize_t)sizeof v) _exit(1);
        _exit(0);
    }
    verdict v = {.rc = 2};
    assert_int_equal(read(answer[0], &v, sizeof v), sizeof v);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    close(answer[0]);
    close(answer[1]);
    assert_int_equal(v.bytes, 0);
    assert_int_equal(v.descriptors, 0);
    return v;
}

static void assert_refused(verdict v, const char *words, const char *number)
{
    assert_int_equal(v.rc, TM_ENOTSUP);
    if (!strstr(v.why, words) || !strstr(v.why, number)) fail_msg("not the reason: %s", v.why);
}

static void refusal_names_a_filtered_setup(void **state)
{
    (void)state;
    assert_refused(create_without(SYS_io_uring_setup, EPERM), "forbidden", "errno 1");
    assert_refused(create_without(SYS_io_uring_setup, ENOSYS), "no io_uring", "errno 38");
    assert_refused(create_without(SYS_io_uring_setup, EINVAL), "too old", "errno 22");
}

static void refusal_names_the_step_that_a_filter_stops(void **state)
{
    (void)state;
    assert_refused(create_without(SYS_io_uring_enter, EPERM), "arm a multishot", "errno 1");
    assert_refused(create_without(SYS_io_uring_register, EPERM), "register a ring", "errno 1");
}

static void refusal_names_locked_memory(void **state)
{
    (void)state;
    verdict v = create_without(-1, 0);
    /* Kernels between 5.12 and 6.13 do not charge a ring. */
    if (v.rc == 0) return;
    assert_int_equal(v.rc, TM_ENOMEM);
    assert_non_null(strstr(v.why, "RLIMIT_MEMLOCK"));
}

static void poll_descriptor_is_not_offered(void **state)
{
    (void)state;
    fixture *f = fixture_create("uring", NULL);
    assert_int_equal(fixture_io_create(f, 16), 0);
    assert_string_equal(f->io->ops->name, "uring");
    assert_int_equal(f->io->ops->poll_fd(f->io), -1);
    fixture_destroy(f);
}

/* Whether the kernel takes a ring of shared buffers at all. */
static bool kernel_shares_buffers(void)
{
    struct io_uring ring;
    assert_int_equal(io_uring_queue_init(4, &ring, 0), 0);
    void *entries = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(entries != MAP_FAILED);
    struct io_uring_buf_reg reg = {.ring_addr = (uint64_t)(uintptr_t)entries, .ring_entries = 2};
    uint16_t shared = 2;
    memcpy((char *)&reg.bgid + sizeof reg.bgid, &shared, sizeof shared);
    int rc = io_uring_register_buf_ring(&ring, &reg, 0);
    io_uring_queue_exit(&ring);
    munmap(entries, 4096);
    return rc == 0;
}

static void shared_buffers_are_used_where_the_kernel_has_them(void **state)
{
    (void)state;
    if (!kernel_shares_buffers()) {
        print_message("this kernel has plain buffers only\n");
        return;
    }
    fixture *f = fixture_create("uring", NULL);
    assert_int_equal(fixture_io_create(f, 16), 0);
    end *other;
    end *e = pair_make(f, &other);
    e->verifies = true;
    read_start(f, e);
    stream_start(f, other, 16 * TM_MIB, 8);
    RUN_UNTIL(f, e->received_bytes == 16 * TM_MIB);
    assert_true(f->piece_bytes > 4096);
    fixture_destroy(f);
}

static void wake_does_not_end_gathering_and_is_not_lost(void **state)
{
    (void)state;
    fixture *f = fixture_create("uring", NULL);
    assert_int_equal(fixture_io_create(f, 16), 0);
    fixture_settle(f);
    uint64_t start = tm_io_now_ns();
    f->io->ops->wake(f->io);
    f->io->ops->gather(f->io, GATHER_NS);
    assert_int_equal(fixture_turn(f, UINT64_MAX), 0);
    assert_true(tm_io_now_ns() - start >= GATHER_NS);
    /* It was for one turn; the next one ends by a wake again. */
    f->io->ops->wake(f->io);
    assert_int_equal(fixture_turn(f, UINT64_MAX), 0);
    fixture_destroy(f);
}

static void gathering_ends_when_very_much_has_come(void **state)
{
    (void)state;
    fixture *f = fixture_create("uring", NULL);
    assert_int_equal(fixture_io_create(f, 4 * TM_GATHER_COUNT), 0);
    end *near[TM_GATHER_COUNT], *far;
    for (int i = 0; i < TM_GATHER_COUNT; i++) near[i] = pair_make(f, &far);
    for (int i = 0; i < TM_GATHER_COUNT; i++) end_send(f, near[i], "one of many");
    uint64_t start = tm_io_now_ns();
    f->io->ops->gather(f->io, TM_S_NS);
    assert_int_equal(fixture_turn(f, UINT64_MAX), 0);
    assert_true(tm_io_now_ns() - start < TM_S_NS);
    fixture_destroy(f);
}

/* Whoever waits for room in what is sent is told once a turn: the more is sent in it, the better. */
static void a_turn_sends_more_than_once_while_there_is_room(void **state)
{
    (void)state;
    fixture *f = fixture_create("uring", NULL);
    assert_int_equal(fixture_io_create(f, 16), 0);
    end *other;
    end *e = pair_make(f, &other);
    read_start(f, other);
    stream_start(f, e, 8 * TM_MIB, 1);
    int most = 0;
    while (e->in_flight) {
        int before = e->sent;
        assert_int_equal(fixture_turn(f, UINT64_MAX), 0);
        if (e->sent - before > most) most = e->sent - before;
    }
    assert_true(most > 1);
    assert_true(most < 10); /* then the others have their turn */
    RUN_UNTIL(f, other->received_bytes == 8 * TM_MIB);
    fixture_destroy(f);
}

/* 200 rings in a row: memory of a closed ring comes back late, which must not add up. */
static void rings_can_be_made_again_and_again(void **state)
{
    (void)state;
    for (int i = 0; i < 200; i++) {
        verdict v = create_here();
        if (v.rc) fail_msg("ring %d: %s", i, v.why);
        assert_int_equal(v.bytes, 0);
        assert_int_equal(v.descriptors, 0);
    }
}

int main(void)
{
    verdict v = create_here();
    if (v.rc) {
        print_error("io_uring is not available here: %s\n", v.why);
        return getenv("TM_ALLOW_SKIP") ? 77 : 1;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refusal_names_a_filtered_setup),
        cmocka_unit_test(refusal_names_the_step_that_a_filter_stops),
        cmocka_unit_test(refusal_names_locked_memory),
        cmocka_unit_test(shared_buffers_are_used_where_the_kernel_has_them),
        cmocka_unit_test(poll_descriptor_is_not_offered),
        cmocka_unit_test(wake_does_not_end_gathering_and_is_not_lost),
        cmocka_unit_test(gathering_ends_when_very_much_has_come),
        cmocka_unit_test(a_turn_sends_more_than_once_while_there_is_room),
        cmocka_unit_test(rings_can_be_made_again_and_again),
    };
    return cmocka_run_group_tests_name("uring", tests, NULL, NULL);
}

#endif
