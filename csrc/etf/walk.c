/* The walk: one pass over a term from anywhere, after which its bytes can be trusted.
 *
 * A term is written in prefix order, so whether it is well-formed needs no stack, only the number
 * of terms that are still to come. The stack is there for depth and for the path of an error; it
 * has at most depth_max + 1 frames, and parts deeper than that are counted into the last one.
 *
 * Every container promises its parts, each at least one byte long. A head that promises more than
 * the bytes left hold together with all promises before it is refused where it stands, so no sum of
 * counts is ever above the size of the input.
 *
 * The loop takes the tags that messages are made of and runs of small ones without a call; the rest
 * is leaf.c. */
#include "leaf.h"

/* Frames that need no memory from the allocator: honest messages are less deep. */
#define WALK_FRAMES_INLINE 64

#ifdef TM_PLANTED_BUG
/* Planted for the fuzz target: a binary may end one byte behind the input. */
#define BINARY_SLACK 1
#else
#define BINARY_SLACK 0
#endif

typedef struct walk_frame {
    const uint8_t *at; /* tag of the container */
    uint64_t left;     /* parts after the one in work */
} walk_frame;

typedef struct walker {
    tm_leaf leaf;
    const uint8_t *start;
    const tm_alloc *alloc;
    tm_walk_result *result;
    walk_frame *frames; /* frames[0] holds the term itself */
    walk_frame *last;   /* the frame above which a push needs help */
    walk_frame *deepest;
    size_t size;      /* frames there are */
    size_t depth_max; /* levels */
    uint64_t decoded_bytes_max;
    bool over;      /* a limit was passed; result says which */
    bool flattened; /* parts below depth_max have been counted into a frame */
    walk_frame first[WALK_FRAMES_INLINE];
} walker;

/* -- errors ------------------------------------------------------------------------------------ */

static uint64_t frame_parts(const uint8_t *at)
{
    switch (*at) {
    case TM_SMALL_TUPLE_EXT: return at[1];
    case TM_LARGE_TUPLE_EXT: return tm_load_u32(at + 1);
    case TM_LIST_EXT: return tm_load_u32(at + 1) + 1ULL;
    case TM_MAP_EXT: return tm_load_u32(at + 1) * 2ULL;
    default: return tm_load_u32(at + 26); /* NEW_FUN_EXT: NumFree */
    }
}

static tm_walk_step walk_step(const walker *w, const walk_frame *frame)
{
    uint64_t parts = frame_parts(frame->at);
    uint64_t index = parts - frame->left - 1;
    tm_walk_step step = {.tag = *frame->at, .offset = (size_t)(frame->at - w->start)};
    if (step.tag == TM_LIST_EXT) step.part = index == parts - 1;
    if (step.tag == TM_MAP_EXT) {
        step.part = index & 1;
        index >>= 1;
    }
    step.index = (uint32_t)index;
    return step;
}

/* Where the part in work stands; left of it is in the frames already. */
__attribute__((cold)) static void walk_describe(walker *w, const walk_frame *top,
                                                const uint8_t *bad, const char *what)
{
    tm_walk_result *result = w->result;
    size_t levels = (size_t)(top - w->frames);
    /* The count of a frame that took in deeper parts is no index any more. */
    if (w->flattened && levels && levels == w->depth_max) levels--;
    result->offset = (size_t)(bad - w->start);
    result->what = what;
    result->path_len = (uint32_t)levels;
    for (size_t i = 0; i < levels && i < TM_WALK_PATH_MAX; i++)
        result->path[i] = walk_step(w, &w->frames[i + 1]);
}

__attribute__((cold)) static int walk_fail(walker *w, walk_frame *top, uint64_t left,
                                           const uint8_t *bad, const char *what)
{
    top->left = left - 1;
    walk_describe(w, top, bad, what);
    return TM_EPEER_MALFORMED;
}

/* The first excess is reported, at the end of the term, if the term has one. */
__attribute__((cold)) static void walk_excess(walker *w, walk_frame *top, const uint8_t *bad,
                                              const char *what)
{
    if (!w->over) walk_describe(w, top, bad, what);
    w->over = true;
}

static int walk_finish(walker *w, const uint8_t *end, uint64_t cost)
{
    tm_walk_result *result = w->result;
    result->len = (size_t)(end - w->start);
    result->decoded_bytes = cost + w->leaf.cost;
    result->depth = (uint32_t)(w->deepest - w->frames) + w->flattened;
    if (result->decoded_bytes > w->decoded_bytes_max)
        walk_excess(w, w->frames, w->start, "term larger than decoded_bytes_max once decoded");
    return w->over ? TM_EPEER_LIMIT : 0;
}

/* -- stack ------------------------------------------------------------------------------------- */

/* The frames up to one for each level that is allowed, doubling. */
static int walk_grow(walker *w, walk_frame **top)
{
    size_t size = w->size * 2 < w->depth_max + 1 ? w->size * 2 : w->depth_max + 1;
    bool inlined = w->frames == w->first;
    size_t used = (size_t)(*top - w->frames) + 1, deepest = (size_t)(w->deepest - w->frames);
    walk_frame *frames =
        w->alloc->resize(w->alloc->ctx, inlined ? NULL : w->frames,
                         inlined ? 0 : w->size * sizeof *frames, size * sizeof *frames);
    if (!frames) return TM_ENOMEM;
    if (inlined) memcpy(frames, w->first, used * sizeof *frames);
    w->frames = frames;
    w->size = size;
    w->last = frames + size - 1;
    w->deepest = frames + deepest;
    *top = frames + used - 1;
    return 0;
}

/* Room for one frame more, when the top one is the last there is. TM_EPEER_LIMIT where there may be
 * none: the parts of the container at at are to be counted into the top frame. */
__attribute__((noinline)) static int walk_room(walker *w, walk_frame **top, const uint8_t *at)
{
    if ((size_t)(*top - w->frames) < w->depth_max) return walk_grow(w, top);
    walk_excess(w, *top, at, "term deeper than depth_max");
    w->flattened = true;
    return TM_EPEER_LIMIT;
}

/* -- runs: elements of one kind that follow each other, up to *left of them -------------------- */

/* Parts still to come from which a run is looked for. Tuples and maps are mixed: there the search
 * would only fail. */
#define WALK_RUN_MIN 8

static inline const uint8_t *run_small_integers(const uint8_t *p, const uint8_t *end,
                                                uint64_t *left)
{
    size_t max = (size_t)(end - p) / 2, i = 0;
    if (max > *left) max = (size_t)*left;
    const uint8_t pattern[8] = {TM_SMALL_INTEGER_EXT, 0, TM_SMALL_INTEGER_EXT, 0,
                                TM_SMALL_INTEGER_EXT, 0, TM_SMALL_INTEGER_EXT, 0};
    const uint8_t mask[8] = {0xff, 0, 0xff, 0, 0xff, 0, 0xff, 0};
    uint64_t tags, bits, word;
    memcpy(&tags, pattern, 8);
    memcpy(&bits, mask, 8);
    for (; i + 4 <= max; i += 4) {
        memcpy(&word, p + 2 * i, 8);
        if ((word & bits) != tags) break;
    }
    while (i < max && p[2 * i] == TM_SMALL_INTEGER_EXT) i++;
    *left -= i;
    return p + 2 * i;
}

static inline const uint8_t *run_integers(const uint8_t *p, const uint8_t *end, uint64_t *left,
                                          uint64_t *cost)
{
    size_t max = (size_t)(end - p) / 5, i = 0;
    if (max > *left) max = (size_t)*left;
    while (i < max && p[5 * i] == TM_INTEGER_EXT) i++;
    *left -= i;
    *cost += i * TM_COST_INTEGER;
    return p + 5 * i;
}

/* Small and 32-bit ones in any order, without a branch on which it is: lists of measurements have
 * both, and a predictor learns nothing from them. Ends after a while, so that a run of one kind
 * further on is found. */
static inline const uint8_t *run_mixed_integers(const uint8_t *p, const uint8_t *end,
                                                uint64_t *left, uint64_t *cost)
{
    uint64_t max = *left < 64 ? *left : 64, i = 0, large = 0;
    for (; i < max && end - p >= 5; i++) {
        size_t kind = (size_t)*p - TM_SMALL_INTEGER_EXT;
        if (kind > 1) break;
        p += 2 + 3 * kind;
        large += kind;
    }
    *left -= i;
    *cost += large * TM_COST_INTEGER;
    return p;
}
static_assert(TM_INTEGER_EXT == TM_SMALL_INTEGER_EXT + 1, "run_mixed_integers tells them by that");

/* Runs shorter than this are taken for a mixture. */
#define WALK_RUN_PURE 4

static inline const uint8_t *run_any_integers(const uint8_t *at, const uint8_t *end, uint64_t *left,
                                              uint64_t *cost)
{
    uint64_t before = *left;
    const uint8_t *p = *at == TM_INTEGER_EXT ? run_integers(at, end, left, cost)
                                             : run_small_integers(at, end, left);
    return before - *left < WALK_RUN_PURE ? run_mixed_integers(p, end, left, cost) : p;
}

/* Stops before one that is not finite: leaf.c says so. */
static inline const uint8_t *run_floats(const uint8_t *p, const uint8_t *end, uint64_t *left,
                                        uint64_t *cost)
{
    size_t max = (size_t)(end - p) / 9, i = 0;
    if (max > *left) max = (size_t)*left;
    while (i < max && p[9 * i] == TM_NEW_FLOAT_EXT &&
           (tm_load_u16(p + 9 * i + 1) & 0x7ff0) != 0x7ff0)
        i++;
    *left -= i;
    *cost += i * TM_COST_FLOAT;
    return p + 9 * i;
}

/* Most atoms of a frame. Those that it does not define are left to leaf.c. */
static inline const uint8_t *run_refs(walker *w, const uint8_t *p, uint64_t *left)
{
    do {
        if (w->leaf.end - p < 2 || p[1] >= w->leaf.cache_refs) break;
        tm_leaf_count_ref(&w->leaf, p);
        p += 2;
        --*left;
    } while (*left >= WALK_RUN_MIN && p < w->leaf.end && *p == TM_ATOM_CACHE_REF);
    return p;
}

/* ASCII atoms; others are left to leaf.c, as are those that are cut off. */
static inline const uint8_t *run_atoms(const uint8_t *p, const uint8_t *end, uint64_t *left,
                                       uint64_t *cost)
{
    do {
        if (end - p < 2) break;
        size_t len = p[1];
        if ((size_t)(end - p) - 2 < len || !tm_leaf_ascii(p + 2, len, end)) break;
        *cost += TM_COST_ATOM + len;
        p += 2 + len;
        --*left;
    } while (*left >= WALK_RUN_MIN && p < end && *p == TM_SMALL_ATOM_UTF8_EXT);
    return p;
}

static inline const uint8_t *run_binaries(const uint8_t *p, const uint8_t *end, uint64_t *left,
                                          uint64_t *cost)
{
    do {
        if (end - p < 5) break;
        size_t len = tm_load_u32(p + 1);
        if ((size_t)(end - p) - 5 + BINARY_SLACK < len) break;
        *cost += TM_COST_BYTES + len;
        p += 5 + len;
        --*left;
    } while (*left >= WALK_RUN_MIN && p < end && *p == TM_BINARY_EXT);
    return p;
}

/* -- the loop ---------------------------------------------------------------------------------- */

typedef struct walk_head {
    size_t size; /* 0: not a container */
    uint64_t parts;
    uint64_t cost;
} walk_head;

/* left: bytes from p on, at least 1. */
static inline walk_head walk_container(const uint8_t *p, size_t left)
{
    if (*p == TM_SMALL_TUPLE_EXT && left >= 2)
        return (walk_head){2, p[1], TM_COST_TUPLE + TM_COST_SLOT * (uint64_t)p[1]};
    if (left < 5) return (walk_head){0, 0, 0};
    uint64_t count = tm_load_u32(p + 1);
    switch (*p) {
    case TM_LARGE_TUPLE_EXT: return (walk_head){5, count, TM_COST_TUPLE + TM_COST_SLOT * count};
    /* Of no element too: then the tail alone is a part, and the term. */
    case TM_LIST_EXT: return (walk_head){5, count + 1, TM_COST_LIST + TM_COST_SLOT * count};
    case TM_MAP_EXT:
        return (walk_head){5, 2 * count,
                           count ? TM_COST_MAP + TM_COST_MAP_PAIR * count : TM_COST_MAP_EMPTY};
    default: return (walk_head){0, 0, 0};
    }
}

/* A term that the runs have not taken: rare, long, or wrong. NULL is an error. */
static const uint8_t *walk_leaf(walker *w, walk_frame *top, const uint8_t *at)
{
    w->leaf.large = NULL;
    w->leaf.parts = 0;
    const uint8_t *p = tm_leaf_any(&w->leaf, at);
    if (p && w->leaf.large) walk_excess(w, top, at, "integer larger than big_bytes_max");
    return p;
}

/* One of the tags that the loop knows; returns at when it is none of them or not a simple case. */
static inline const uint8_t *walk_hot(walker *w, const uint8_t *at, uint64_t *left, uint64_t *cost,
                                      walk_head *head)
{
    const uint8_t *end = w->leaf.end;
    switch (*at) {
    case TM_SMALL_INTEGER_EXT:
        if (*left >= WALK_RUN_MIN) return run_any_integers(at, end, left, cost);
        if (end - at < 2) return at;
        --*left;
        return at + 2;
    case TM_INTEGER_EXT:
        if (*left >= WALK_RUN_MIN) return run_any_integers(at, end, left, cost);
        if (end - at < 5) return at;
        --*left;
        *cost += TM_COST_INTEGER;
        return at + 5;
    case TM_NEW_FLOAT_EXT: return run_floats(at, end, left, cost);
    case TM_SMALL_ATOM_UTF8_EXT: return run_atoms(at, end, left, cost);
    case TM_ATOM_CACHE_REF: return run_refs(w, at, left);
    case TM_BINARY_EXT: return run_binaries(at, end, left, cost);
    case TM_NIL_EXT:
        --*left;
        *cost += TM_COST_NIL;
        return at + 1;
    case TM_SMALL_TUPLE_EXT:
    case TM_LARGE_TUPLE_EXT:
    case TM_LIST_EXT:
    case TM_MAP_EXT: *head = walk_container(at, (size_t)(end - at)); return at + head->size;
    default: return at;
    }
}

static int walk_run(walker *w)
{
    const uint8_t *p = w->start, *const end = w->leaf.end;
    uint64_t left = 1;     /* parts of the top frame that are still to come */
    uint64_t promised = 0; /* the same of all frames below it */
    uint64_t cost = TM_COST_SLOT;
    walk_frame *top = w->frames;
    for (;;) {
        while (!left) {
            if (top == w->frames) return walk_finish(w, p, cost);
            left = (--top)->left;
            promised -= left;
        }
        if (p == end) return walk_fail(w, top, left, p, tm_leaf_cut);
        walk_head head = {0};
        const uint8_t *at = p;
        p = walk_hot(w, at, &left, &cost, &head);
        if (!head.size) {
            if (p != at) continue;
            top->left = left - 1;
            p = walk_leaf(w, top, at);
            if (!p) return walk_fail(w, top, left, w->leaf.bad, w->leaf.what);
            head.parts = w->leaf.parts;
        }
        left--;
        cost += head.cost;
        if (!head.parts) continue;
        if (head.parts + left + promised > (size_t)(end - p))
            return walk_fail(w, top, left + 1, at, "more parts than bytes are left for");
        top->left = left;
        if (top == w->last) {
            int rc = walk_room(w, &top, at);
            if (rc == TM_EPEER_LIMIT) {
                left += head.parts;
                continue;
            }
            if (rc) return rc;
        }
        promised += left;
        left = head.parts;
        (++top)->at = at;
        if (top > w->deepest) w->deepest = top;
    }
}

int tm_etf_walk(tm_bytes bytes, const tm_walk_limits *limits, const tm_alloc *alloc,
                tm_walk_result *result)
{
    tm_cursor c = tm_cursor_of(bytes);
    walker w;
    /* The frames inside are filled as they are pushed: clearing them costs more than a message. */
    w.leaf = (tm_leaf){.end = c.end,
                       .cache_refs = limits->cache_refs,
                       .big_bytes_max = limits->big_bytes_max,
                       .cache_atoms = limits->cache_atoms,
                       .refs = &result->refs,
                       .start = c.ptr};
    w.start = c.ptr;
    w.alloc = alloc;
    w.result = result;
    w.depth_max = limits->depth_max < TM_DEPTH_MAX ? limits->depth_max : TM_DEPTH_MAX;
    w.size = w.depth_max < WALK_FRAMES_INLINE ? w.depth_max + 1 : WALK_FRAMES_INLINE;
    w.frames = w.deepest = w.first;
    w.last = w.first + w.size - 1;
    w.decoded_bytes_max = limits->decoded_bytes_max;
    w.over = w.flattened = false;
    w.first[0] = (walk_frame){.at = NULL};
    result->len = 0;
    result->decoded_bytes = 0;
    result->depth = 0;
    result->refs.count = result->refs.growth = 0;
    result->path_len = 0;
    result->offset = 0;
    result->what = NULL;
    int rc = walk_run(&w);
    if (w.frames != w.first) tm_alloc_free(alloc, w.frames, w.size * sizeof *w.frames);
    return rc;
}
