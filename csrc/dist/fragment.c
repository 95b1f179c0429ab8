#include "fragment.h"

#include "../base/check.h"

/* Most messages end with their second fragment, which is short: a little room at first. */
#define FIRST_ROOM_DIVISOR 4
/* A message of which not all memory is needed yet leaves all but this share to the others. */
#define SPARE_DIVISOR 4

static void fragments_invariants(const tm_fragments *fragments)
{
    TM_DCHECK(!fragments->sequences.count == !fragments->bytes);
    TM_DCHECK(fragments->sequences.count || !fragments->sequences.entries);
    TM_DCHECK(fragments->atom_bytes <= fragments->bytes);
    (void)fragments;
}

void tm_fragments_init(tm_fragments *fragments, tm_atom_pool *pool)
{
    *fragments = (tm_fragments){.alloc = pool->atoms.alloc, .pool = pool};
    tm_map_init(&fragments->sequences, fragments->alloc, pool->atoms.seed);
}

static size_t sequence_size(size_t atom_count)
{
    return sizeof(tm_sequence) + atom_count * sizeof(tm_cached_atom *);
}

/* What an open sequence holds beside its memory, bytes. */
static size_t sequence_held(const tm_sequence *sequence)
{
    return sequence_size(sequence->atom_count) + sequence->atom_bytes;
}

static tm_bytes sequence_key(const uint64_t *id) { return tm_bytes_of(id, sizeof *id); }

void tm_sequence_free(tm_fragments *fragments, tm_sequence *sequence)
{
    for (size_t i = 0; i < sequence->atom_count; i++)
        tm_atom_unref(fragments->pool, sequence->atoms[i]);
    tm_slab_free(fragments->alloc, &sequence->memory);
    tm_alloc_free(fragments->alloc, sequence, sequence_size(sequence->atom_count));
}

void tm_fragments_fini(tm_fragments *fragments)
{
    fragments_invariants(fragments);
    size_t position = 0;
    for (tm_sequence *sequence; (sequence = tm_map_next(&fragments->sequences, &position));)
        tm_sequence_free(fragments, sequence);
    tm_map_fini(&fragments->sequences);
    fragments->bytes = fragments->atom_bytes = 0;
}

static int fragment_wrong(const char **what, const char *text)
{
    *what = text;
    return TM_EPEER_MALFORMED;
}

static int fragment_limit(const char **what, const char *text)
{
    *what = text;
    return TM_EPEER_LIMIT;
}

/* -- memory ------------------------------------------------------------------------------------ */

static uint64_t product(uint64_t a, uint64_t b)
{
    uint64_t result;
    return __builtin_mul_overflow(a, b, &result) ? UINT64_MAX : result;
}

/* Room for so many more bytes of terms. */
static int sequence_reserve(tm_fragments *fragments, tm_sequence *sequence, size_t more,
                            uint64_t bytes_max, const char **what)
{
    uint64_t need = (uint64_t)sequence->start + sequence->len + more;
    if (need <= sequence->memory.size) return 0;
    uint64_t others = fragments->bytes - sequence->memory.size;
    if (others > bytes_max || need > bytes_max - others)
        return fragment_limit(what, "unfinished messages hold more than reassembly_bytes_max");
    uint64_t held = sequence->memory.size;
    uint64_t size = held ? product(need, TM_GATHER_GROWTH) : need + need / FIRST_ROOM_DIVISOR;
    if (size > sequence->expected) size = sequence->expected;
    if (size < 2 * held) size = 2 * held;
    /* What is not yet needed leaves most of the room to the others. */
    uint64_t spare = (bytes_max - others - need) / SPARE_DIVISOR;
    if (size > need + spare) size = need + spare;
    if (size < need) size = need;
    *what = "out of memory";
    int rc = tm_slab_resize(fragments->alloc, &sequence->memory, (size_t)size);
    if (!rc) fragments->bytes = others + size;
    return rc;
}

static int sequence_append(tm_fragments *fragments, tm_sequence *sequence, tm_bytes bytes,
                           uint64_t bytes_max, const char **what)
{
    int rc = sequence_reserve(fragments, sequence, bytes.len, bytes_max, what);
    if (rc) return rc;
    uint8_t *at = sequence->memory.ptr + sequence->start + sequence->len;
    if (at != bytes.ptr) tm_store_bytes(at, bytes.ptr, bytes.len);
    sequence->len += bytes.len;
    return 0;
}

/* Gives back what is not used; without memory to do so it stays as it is. */
static void sequence_trim(tm_fragments *fragments, tm_sequence *sequence)
{
    size_t before = sequence->memory.size;
    if (tm_slab_resize(fragments->alloc, &sequence->memory, sequence->start + sequence->len) == 0)
        fragments->bytes -= before - sequence->memory.size;
}

static int sequence_payload(tm_fragments *fragments, tm_sequence *sequence, tm_bytes bytes,
                            const tm_fragment_limits *limits, const char **what)
{
    bool dropped = tm_sequence_dropped(sequence);
    sequence->payload_bytes += bytes.len;
    if (dropped) return 0;
    if (sequence->payload_bytes <= limits->message_bytes_max)
        return sequence_append(fragments, sequence, bytes, limits->bytes_max, what);
    static const uint8_t NIL[] = {TM_NIL_EXT};
    sequence->len = sequence->control_len;
    int rc =
        sequence_append(fragments, sequence, tm_bytes_of(NIL, sizeof NIL), limits->bytes_max, what);
    if (!rc) sequence_trim(fragments, sequence);
    return rc;
}

/* -- fragments --------------------------------------------------------------------------------- */

static tm_sequence *sequence_create(tm_fragments *fragments, const tm_frame_terms *terms,
                                    size_t control_len, const tm_atom_header *header)
{
    tm_sequence *sequence = tm_alloc_get(fragments->alloc, sequence_size(header->count));
    if (!sequence) return NULL;
    uint64_t expected = product(terms->bytes.len, terms->fragment);
    bool huge = expected > UINT64_MAX - TM_FRAME_HEADROOM;
    *sequence = (tm_sequence){.id = terms->sequence,
                              .next = terms->fragment - 1,
                              .expected = huge ? UINT64_MAX : expected + TM_FRAME_HEADROOM,
                              .start = TM_FRAME_HEADROOM,
                              .control_len = control_len,
                              .atom_count = header->count};
    tm_atom_header_keep(header, sequence->atoms);
    if (tm_map_set(&fragments->sequences, sequence_key(&sequence->id), sequence)) {
        tm_sequence_free(fragments, sequence);
        return NULL;
    }
    /* A slot of the cache may get another text while the sequence holds on to this one. */
    for (size_t i = 0; i < header->count; i++) sequence->atom_bytes += header->atoms[i].len;
    fragments->bytes += sequence_held(sequence);
    fragments->atom_bytes += sequence->atom_bytes;
    return sequence;
}

/* Keeps a first fragment in the memory that it was gathered in, if it may. */
static bool sequence_take(tm_fragments *fragments, tm_sequence *sequence,
                          const tm_frame_terms *terms, const tm_fragment_limits *limits)
{
    tm_slab *memory = terms->memory;
    size_t payload = terms->bytes.len - sequence->control_len;
    if (!memory || !memory->ptr || payload > limits->message_bytes_max) return false;
    if (fragments->bytes > limits->bytes_max || memory->size > limits->bytes_max - fragments->bytes)
        return false;
    size_t start = (size_t)(terms->bytes.ptr - memory->ptr);
    uint64_t shift = start - sequence->start;
    if (sequence->expected <= UINT64_MAX - shift) sequence->expected += shift;
    sequence->start = start;
    sequence->memory = tm_slab_take(memory);
    sequence->len = terms->bytes.len;
    sequence->payload_bytes = payload;
    fragments->bytes += sequence->memory.size;
    return true;
}

int tm_fragments_open(tm_fragments *fragments, const tm_frame_terms *terms, size_t control_len,
                      const tm_atom_header *header, const tm_fragment_limits *limits,
                      uint64_t now_ns, const char **what)
{
    fragments_invariants(fragments);
    TM_ASSERT(terms->fragment >= 2);
    TM_ASSERT(control_len <= terms->bytes.len);
    if (!terms->sequence) return fragment_wrong(what, "a sequence of fragments with number 0");
    if (tm_map_get(&fragments->sequences, sequence_key(&terms->sequence)))
        return fragment_wrong(what, "a sequence of fragments that has begun already");
    if (fragments->sequences.count >= TM_SEQUENCE_COUNT_MAX)
        return fragment_limit(what, "too many unfinished messages in fragments");
    *what = "out of memory";
    tm_sequence *sequence = sequence_create(fragments, terms, control_len, header);
    if (!sequence) return TM_ENOMEM;
    sequence->touched_ns = now_ns;
    if (sequence_take(fragments, sequence, terms, limits)) return 0;
    tm_bytes control = tm_bytes_of(terms->bytes.ptr, control_len);
    tm_bytes payload = tm_bytes_of(control.ptr + control_len, terms->bytes.len - control_len);
    int rc = sequence_append(fragments, sequence, control, limits->bytes_max, what);
    if (!rc) rc = sequence_payload(fragments, sequence, payload, limits, what);
    fragments_invariants(fragments);
    return rc;
}

int tm_fragments_add(tm_fragments *fragments, const tm_frame_terms *terms,
                     const tm_fragment_limits *limits, uint64_t now_ns, tm_sequence **done,
                     const char **what)
{
    fragments_invariants(fragments);
    *done = NULL;
    tm_sequence *sequence = tm_map_get(&fragments->sequences, sequence_key(&terms->sequence));
    if (!sequence) return fragment_wrong(what, "a fragment of a sequence that has not begun");
    if (terms->fragment != sequence->next)
        return fragment_wrong(what, "a fragment that is not the next one of its sequence");
    sequence->touched_ns = now_ns;
    int rc = sequence_payload(fragments, sequence, terms->bytes, limits, what);
    if (rc || terms->left) return rc;
    if (--sequence->next) return 0;
    if (sequence->memory.size - sequence->len > sequence->len / 4)
        sequence_trim(fragments, sequence);
    /* It is its taker's: neither its bytes nor the table's memory stay. */
    tm_map_remove(&fragments->sequences, sequence_key(&sequence->id));
    if (!fragments->sequences.count) tm_map_fini(&fragments->sequences);
    fragments->bytes -= sequence->memory.size + sequence_held(sequence);
    fragments->atom_bytes -= sequence->atom_bytes;
    *done = sequence;
    fragments_invariants(fragments);
    return 0;
}

tm_room tm_fragments_room(tm_fragments *fragments, uint64_t id, size_t left,
                          const tm_fragment_limits *limits)
{
    static const tm_room none = {NULL, 0};
    tm_sequence *sequence = tm_map_get(&fragments->sequences, sequence_key(&id));
    if (!sequence || tm_sequence_dropped(sequence)) return none;
    if (sequence->payload_bytes > limits->message_bytes_max ||
        left > limits->message_bytes_max - sequence->payload_bytes)
        return none;
    /* What is over a limit, or has no memory, will be found when it is there. */
    size_t more = left < TM_FRAMER_FIRST_BYTES ? left : (size_t)TM_FRAMER_FIRST_BYTES;
    const char *what;
    if (sequence_reserve(fragments, sequence, more, limits->bytes_max, &what)) return none;
    size_t used = sequence->start + sequence->len;
    size_t room = sequence->memory.size - used;
    return (tm_room){sequence->memory.ptr + used, room < left ? room : left};
}

uint64_t tm_fragments_idle_ns(const tm_fragments *fragments, uint64_t now_ns)
{
    uint64_t longest = 0;
    size_t position = 0;
    for (tm_sequence *sequence; (sequence = tm_map_next(&fragments->sequences, &position));)
        if (now_ns > sequence->touched_ns && now_ns - sequence->touched_ns > longest)
            longest = now_ns - sequence->touched_ns;
    return longest;
}
