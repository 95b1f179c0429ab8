/* A descriptor that one thread signals and another's loop polls: an eventfd. */
#ifndef TM_IO_NOTIFY_H
#define TM_IO_NOTIFY_H

#include <stdint.h>

/* The descriptor (close-on-exec, non-blocking) or -errno. */
int tm_notify_create(void);
/* Makes it readable. Any thread; never blocks. */
void tm_notify_signal(int fd);
/* Makes it unreadable until the next signal; the number of signals since the last time. */
uint64_t tm_notify_clear(int fd);
/* Waits until it is readable, at most timeout_ms. */
void tm_notify_wait(int fd, int timeout_ms);
void tm_notify_close(int fd);

/* The calling thread's pauses and waits end within 1 us of their time from now on. */
void tm_notify_punctual(void);
/* Lets about that much time pass, up to a second. */
void tm_notify_pause(unsigned ns);

#endif
