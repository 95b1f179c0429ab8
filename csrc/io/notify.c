#include "notify.h"

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

int tm_notify_create(void)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

void tm_notify_signal(int fd)
{
    uint64_t one = 1;
    /* EAGAIN means that the counter is full, so the descriptor is readable already. */
    ssize_t written = write(fd, &one, sizeof one);
    (void)written;
}

uint64_t tm_notify_clear(int fd)
{
    uint64_t count;
    return read(fd, &count, sizeof count) == sizeof count ? count : 0;
}

void tm_notify_wait(int fd, int timeout_ms)
{
    struct pollfd wanted = {.fd = fd, .events = POLLIN};
    int ready = poll(&wanted, 1, timeout_ms);
    (void)ready;
}

void tm_notify_close(int fd)
{
    if (fd >= 0) close(fd);
}

void tm_notify_punctual(void)
{
    /* The default slack of 50 us would double a short pause. */
    prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
}

void tm_notify_pause(unsigned ns)
{
    struct timespec pause = {.tv_nsec = (long)ns};
    clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
}
