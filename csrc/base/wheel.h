/* Timers of one engine: a hierarchical wheel of 8 ms slots, three levels of 256.
 *
 * O(1) to arm and cancel, which matters at ten thousand connections with a tick timer each. A timer
 * never fires early and at most one slot late; deadlines past the horizon (36 h) are re-armed. */
#ifndef TM_BASE_WHEEL_H
#define TM_BASE_WHEEL_H

#include <stdint.h>

#include "list.h"

#define TM_WHEEL_SLOT_NS ((uint64_t)8 * 1000 * 1000)
#define TM_WHEEL_LEVELS 3
#define TM_WHEEL_SLOTS 256

typedef struct tm_timer {
    tm_list link; /* linked exactly while armed */
    uint64_t deadline_ns;
    void (*fire)(struct tm_timer *timer, uint64_t now_ns);
} tm_timer;

typedef struct tm_wheel {
    uint64_t slot; /* slots since time 0 that have been run */
    uint64_t next; /* in none between these two is anything to be done */
    uint64_t count;
    tm_list slots[TM_WHEEL_LEVELS][TM_WHEEL_SLOTS];
} tm_wheel;

void tm_wheel_init(tm_wheel *wheel, uint64_t now_ns);
/* Arms, or moves an armed timer. timer->fire must be set. */
void tm_timer_arm(tm_wheel *wheel, tm_timer *timer, uint64_t deadline_ns);
void tm_timer_cancel(tm_wheel *wheel, tm_timer *timer);
static inline bool tm_timer_armed(const tm_timer *timer) { return tm_list_linked(&timer->link); }
/* Fires all that are due; a fired timer is disarmed first and may arm itself again. */
void tm_wheel_run(tm_wheel *wheel, uint64_t now_ns);
/* When tm_wheel_run wants to be called next: UINT64_MAX without timers. May be early, never late. */
uint64_t tm_wheel_next_ns(tm_wheel *wheel);

#endif
