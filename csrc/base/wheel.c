#include "wheel.h"

#include "check.h"

void tm_wheel_init(tm_wheel *wheel, uint64_t now_ns)
{
    wheel->slot = now_ns / TM_WHEEL_SLOT_NS;
    wheel->next = 0;
    wheel->count = 0;
    for (int level = 0; level < TM_WHEEL_LEVELS; level++)
        for (int i = 0; i < TM_WHEEL_SLOTS; i++) tm_list_init(&wheel->slots[level][i]);
}

/* Puts the timer where its deadline belongs, seen from wheel->slot. */
static void wheel_place(tm_wheel *wheel, tm_timer *timer)
{
    uint64_t slot = (timer->deadline_ns + TM_WHEEL_SLOT_NS - 1) / TM_WHEEL_SLOT_NS;
    if (slot <= wheel->slot) slot = wheel->slot + 1;
    uint64_t ahead = slot - wheel->slot;
    int level = 0;
    uint64_t span = TM_WHEEL_SLOTS;
    while (ahead >= span && level < TM_WHEEL_LEVELS - 1) {
        level++;
        span *= TM_WHEEL_SLOTS;
    }
    if (ahead >= span) slot = wheel->slot + span - 1;
    uint64_t index = (slot >> (8 * level)) % TM_WHEEL_SLOTS;
    tm_list_push(&wheel->slots[level][index], &timer->link);
    if (slot < wheel->next) wheel->next = slot;
}

void tm_timer_arm(tm_wheel *wheel, tm_timer *timer, uint64_t deadline_ns)
{
    TM_ASSERT(timer->fire);
    tm_timer_cancel(wheel, timer);
    timer->deadline_ns = deadline_ns;
    wheel_place(wheel, timer);
    wheel->count++;
}

void tm_timer_cancel(tm_wheel *wheel, tm_timer *timer)
{
    if (!tm_timer_armed(timer)) return;
    tm_list_remove(&timer->link);
    wheel->count--;
}

/* Moves the timers of a coarse slot that has come near into the finer levels. */
static void wheel_cascade(tm_wheel *wheel, int level)
{
    uint64_t index = (wheel->slot >> (8 * level)) % TM_WHEEL_SLOTS;
    tm_list moved;
    tm_list_init(&moved);
    tm_list *head = &wheel->slots[level][index];
    for (tm_list *node; (node = tm_list_pop(head));) tm_list_push(&moved, node);
    for (tm_list *node; (node = tm_list_pop(&moved));) {
        tm_timer *timer = TM_CONTAINER(node, tm_timer, link);
        uint64_t slot = (timer->deadline_ns + TM_WHEEL_SLOT_NS - 1) / TM_WHEEL_SLOT_NS;
        if (slot <= wheel->slot)
            tm_list_push(&wheel->slots[0][wheel->slot % TM_WHEEL_SLOTS], node);
        else
            wheel_place(wheel, timer);
    }
}

void tm_wheel_run(tm_wheel *wheel, uint64_t now_ns)
{
    uint64_t target = now_ns / TM_WHEEL_SLOT_NS;
    while (wheel->slot < target) {
        if (!wheel->count) {
            wheel->slot = target;
            return;
        }
        wheel->slot++;
        for (int level = TM_WHEEL_LEVELS - 1; level > 0; level--)
            if (wheel->slot % ((uint64_t)1 << (8 * level)) == 0) wheel_cascade(wheel, level);
        tm_list *head = &wheel->slots[0][wheel->slot % TM_WHEEL_SLOTS];
        tm_list due;
        tm_list_init(&due);
        for (tm_list *node; (node = tm_list_pop(head));) tm_list_push(&due, node);
        for (tm_list *node; (node = tm_list_pop(&due));) {
            tm_timer *timer = TM_CONTAINER(node, tm_timer, link);
            if (timer->deadline_ns > now_ns) {
                wheel_place(wheel, timer);
                continue;
            }
            wheel->count--;
            timer->fire(timer, now_ns);
        }
    }
}

uint64_t tm_wheel_next_ns(tm_wheel *wheel)
{
    if (!wheel->count) return UINT64_MAX;
    if (wheel->next <= wheel->slot) wheel->next = wheel->slot + 1;
    /* A slot that moves timers down comes once in so many. */
    while (wheel->next % TM_WHEEL_SLOTS &&
           tm_list_empty(&wheel->slots[0][wheel->next % TM_WHEEL_SLOTS]))
        wheel->next++;
    return wheel->next * TM_WHEEL_SLOT_NS;
}
