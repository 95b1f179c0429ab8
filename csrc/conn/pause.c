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
