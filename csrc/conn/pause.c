#include "pause.h"

#include <stdbool.h>

/* Turns in a row that make a stream. */
#define STREAK 16

unsigned tm_pause_after(tm_pause *pause, uint64_t frames, uint64_t bytes, uint64_t sends)
{
    /* By the frame: a turn that comes late finds much, and is no less a part of the stream. */
    bool streams = bytes < frames * TM_PAUSE_FRAME_BYTES_MAX && sends == pause->sends;
    pause->sends = sends;
    pause->streak = streams ? pause->streak + 1 : 0;
    if (pause->streak < STREAK) return 0;
    uint64_t ns = pause->ns;
    if (pause->streak == STREAK)
        ns = TM_PAUSE_NS_MIN;
    else if (bytes > TM_PAUSE_BYTES || frames * TM_PAUSE_FRAME_NS < ns)
        ns /= 2;
    else if (bytes <= TM_PAUSE_BYTES / 2 && frames * TM_PAUSE_FRAME_NS >= 2 * ns)
        ns *= 2;
    if (ns < TM_PAUSE_NS_MIN) ns = TM_PAUSE_NS_MIN;
    if (ns > TM_PAUSE_NS_MAX) ns = TM_PAUSE_NS_MAX;
    pause->ns = (unsigned)ns;
    return pause->ns;
}

static void exchange_judge(tm_exchange *exchange)
{
    uint64_t frame_ns = exchange->took_ns / exchange->frames;
    if (exchange->ns) {
        bool pays = frame_ns < exchange->frame_ns;
        if (!pays) exchange->ns = 0;
        /* Where they did pay once it may be a bad moment: what there is without them is seen anew. */
        if (!pays && !exchange->pays) exchange->hold = TM_EXCHANGE_HOLD;
        exchange->pays = pays;
    } else if (!exchange->hold && exchange->frames <= exchange->turns * TM_EXCHANGE_FRAMES) {
        exchange->ns = TM_EXCHANGE_NS;
        exchange->frame_ns = frame_ns;
    }
}

unsigned tm_exchange_pause(tm_exchange *exchange, uint64_t ns, uint64_t turns, uint64_t frames)
{
    if (exchange->hold) exchange->hold--;
    exchange->took_ns += ns;
    exchange->turns += turns;
    exchange->frames += frames;
    bool thin = frames * TM_EXCHANGE_FRAME_NS * (exchange->ns ? 2 : 1) < ns;
    if (!thin && ++exchange->periods < TM_EXCHANGE_TRIAL) return exchange->ns;
    if (thin)
        exchange->ns = 0;
    else
        exchange_judge(exchange);
    exchange->periods = 0;
    exchange->took_ns = exchange->turns = exchange->frames = 0;
    return exchange->ns;
}
