/* What some features of io_uring would save a sender, beside plain SEND: zero copy (SEND_ZC), fixed
 * files, a registered ring. Answers what docs/performance.md decides; not a part of `make bench`.
 *
 *     cc -O2 -o build/ring bench/ring.c -luring
 *     build/ring sink 47001 &          (perhaps in a network namespace behind a veth pair)
 *     build/ring 127.0.0.1 47001
 *
 * Sender and sink are pinned to a core each. Every way plays once a round, in turns (ABBA); printed are
 * the median of the sender's CPU time a send, and how many times better it is than SEND's: median
 * and range of the ratios of twelve rounds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <liburing.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

/* Of Linux 6.2; Debian's liburing 2.3 does not know them. */
#ifndef IORING_SEND_ZC_REPORT_USAGE
#define IORING_SEND_ZC_REPORT_USAGE (1U << 3)
#define IORING_NOTIF_USAGE_ZC_COPIED (1U << 31)
#endif

enum { LINKS = 32, ROUNDS = 12, BYTES_MAX = 1 << 20, EVENTS = 64 };
enum way { PLAIN, ZERO_COPY, FIXED_FILES, REGISTERED_RING, WAYS };
static const char *const names[WAYS] = {"send", "send_zc", "fixed files", "registered ring"};

typedef struct load {
    size_t size; /* bytes a send */
    int links;   /* sends an enter, each on a connection of its own */
    long sends;
} load;

static const load loads[] = {
    {64, LINKS, 64000}, {64, 1, 20000}, {65536, 1, 4000}, {BYTES_MAX, 1, 400}};

typedef struct figures {
    double cpu_us;              /* a send */
    long notifications, copied; /* of zero copy */
} figures;

static int sockets[LINKS];
static char data[BYTES_MAX];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void pin(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    if (sched_setaffinity(0, sizeof set, &set)) die("sched_setaffinity");
}

static double cpu_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static void watch(int epoll, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

/* Throws away what comes, until it is killed. */
static void sink(uint16_t port)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, LINKS))
        die("listen");
    watch(epoll, listener);
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                watch(epoll, accept4(listener, NULL, NULL, SOCK_NONBLOCK));
            else if (recv(fd, data, sizeof data, 0) == 0)
                close(fd);
        }
    }
}

static void prepare(struct io_uring_sqe *sqe, enum way way, int link, size_t size)
{
    int flags = MSG_WAITALL | MSG_NOSIGNAL;
    if (way == ZERO_COPY)
        io_uring_prep_send_zc(sqe, sockets[link], data, size, flags, IORING_SEND_ZC_REPORT_USAGE);
    else
        io_uring_prep_send(sqe, way == FIXED_FILES ? link : sockets[link], data, size, flags);
    if (way == FIXED_FILES) sqe->flags |= IOSQE_FIXED_FILE;
}

/* One enter for all links, and until the last of them is done with its memory. */
static void send_all(struct io_uring *ring, enum way way, const load *load, figures *figures)
{
    for (int i = 0; i < load->links; i++) prepare(io_uring_get_sqe(ring), way, i, load->size);
    for (int pending = load->links; pending > 0;) {
        int rc = io_uring_submit_and_wait(ring, (unsigned)pending);
        if (rc < 0 && rc != -EINTR) die("io_uring_enter");
        struct io_uring_cqe *cqe;
        unsigned head, seen = 0;
        io_uring_for_each_cqe(ring, head, cqe)
        {
            seen++;
            bool notification = cqe->flags & IORING_CQE_F_NOTIF;
            if (notification) {
                figures->notifications++;
                if ((unsigned)cqe->res & IORING_NOTIF_USAGE_ZC_COPIED) figures->copied++;
            } else if (cqe->res != (int)load->size) {
                die("a send was short");
            }
            if (!(cqe->flags & IORING_CQE_F_MORE)) pending--;
        }
        io_uring_cq_advance(ring, seen);
    }
}

static figures play(enum way way, const load *load)
{
    struct io_uring ring;
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER |
                                              IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL};
    if (io_uring_queue_init_params(2 * LINKS, &ring, &params)) die("io_uring_setup");
    if (way == FIXED_FILES && io_uring_register_files(&ring, sockets, LINKS)) die("files");
    if (way == REGISTERED_RING && io_uring_register_ring_fd(&ring) != 1) die("ring");
    figures found = {0};
    double begin = cpu_s();
    for (long done = 0; done < load->sends; done += load->links) send_all(&ring, way, load, &found);
    found.cpu_us = (cpu_s() - begin) * 1e6 / (double)load->sends;
    io_uring_queue_exit(&ring);
    return found;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void compare(const load *load)
{
    figures found[WAYS][ROUNDS];
    for (int way = 0; way < WAYS; way++) play((enum way)way, load);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < WAYS; i++) {
            int way = round % 2 ? WAYS - 1 - i : i;
            found[way][round] = play((enum way)way, load);
        }
    }
    for (int way = 0; way < WAYS; way++) {
        double cpu[ROUNDS], ratio[ROUNDS];
        long notifications = 0, copied = 0;
        for (int i = 0; i < ROUNDS; i++) {
            cpu[i] = found[way][i].cpu_us;
            ratio[i] = found[PLAIN][i].cpu_us / cpu[i];
            notifications += found[way][i].notifications;
            copied += found[way][i].copied;
        }
        qsort(cpu, ROUNDS, sizeof *cpu, ascending);
        qsort(ratio, ROUNDS, sizeof *ratio, ascending);
        printf("%7zu B, %2d links, %-15s %8.2f us, %.3f (%.3f-%.3f)", load->size, load->links,
               names[way], cpu[ROUNDS / 2], (ratio[ROUNDS / 2 - 1] + ratio[ROUNDS / 2]) / 2,
               ratio[0], ratio[ROUNDS - 1]);
        if (notifications) printf(", copied %ld of %ld", copied, notifications);
        printf("\n");
    }
}

int main(int argc, char **argv)
{
    if (argc != 3) return 2;
    uint16_t port = (uint16_t)atoi(argv[2]);
    if (!strcmp(argv[1], "sink")) {
        pin(1);
        sink(port);
    }
    pin(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, argv[1], &address.sin_addr) != 1) return 2;
    for (int i = 0; i < LINKS; i++) {
        int on = 1;
        sockets[i] = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (connect(sockets[i], (struct sockaddr *)&address, sizeof address)) die("connect");
    }
    for (size_t i = 0; i < sizeof loads / sizeof *loads; i++) compare(&loads[i]);
    return 0;
}
