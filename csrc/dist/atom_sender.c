#include "atom_sender.h"

#include "../base/check.h"
#include "../etf/etf.h"

#define PREFIX_SIZE 4
#define HEADER_NORMAL 68
#define HEADER_FRAGMENT_FIRST 69
/* Sequence id and fragment number. */
#define FRAGMENT_IDS_SIZE 16

/* A cached atom in a term: a tag and the place in the list of the frame. */
#define ATOM_CACHE_REF 82
#define NEW_ENTRY 8

/* Atoms of one control message: two identifiers' nodes, a name, a module and a function. */
#define ATOMS_MAX 8
/* Control messages above this are left as they are, bytes: they carry an option list or a reason. */
#define CONTROL_BYTES_MAX 512

typedef struct shortening {
    tm_atom_sender *sender;
    tm_cursor in;
    uint8_t *out;
    uint32_t known; /* slots that the peer knows before this frame */
    uint32_t count;
    uint8_t slots[ATOMS_MAX];
} shortening;

/* The slot of an atom, taken if there is a free one; false without. */
static bool sender_slot(tm_atom_sender *sender, tm_bytes text, uint8_t *slot)
{
    for (uint32_t i = 0; i < sender->count; i++) {
        if (sender->slots[i].len != text.len) continue;
        *slot = (uint8_t)i;
        if (memcmp(sender->slots[i].text, text.ptr, text.len) == 0) return true;
    }
    if (sender->count == TM_ATOM_SENDER_COUNT_MAX || text.len > TM_ATOM_SENDER_TEXT_MAX)
        return false;
    *slot = (uint8_t)sender->count++;
    sender->slots[*slot].len = (uint8_t)text.len;
    memcpy(sender->slots[*slot].text, text.ptr, text.len);
    return true;
}

/* The place of a slot in the list of the frame; ATOMS_MAX when that is full. */
static uint32_t list_place(shortening *s, uint8_t slot)
{
    uint32_t i = 0;
    while (i < s->count && s->slots[i] != slot) i++;
    if (i == s->count && i < ATOMS_MAX) s->slots[s->count++] = slot;
    return i;
}

static bool copy(shortening *s, size_t size)
{
    if (tm_cursor_left(&s->in) < size) return false;
    s->out = tm_store_bytes(s->out, s->in.ptr, size);
    s->in.ptr += size;
    return true;
}

static bool shorten_atom(shortening *s)
{
    const uint8_t *p = s->in.ptr;
    if (tm_cursor_left(&s->in) < 2 || p[0] != TM_SMALL_ATOM_UTF8_EXT) return false;
    if (tm_cursor_left(&s->in) < 2 + (size_t)p[1]) return false;
    tm_bytes text = {p + 2, p[1]};
    uint8_t slot;
    /* The empty atom is shorter than any reference. */
    if (!text.len || s->count == ATOMS_MAX || !sender_slot(s->sender, text, &slot))
        return copy(s, 2 + text.len);
    *s->out++ = ATOM_CACHE_REF;
    *s->out++ = (uint8_t)list_place(s, slot);
    s->in.ptr += 2 + text.len;
    return true;
}

/* One term, or the head of a tuple or list (*left counts its elements then). False for any term that the control
 * messages of everyday do not have. */
static bool shorten_term(shortening *s, uint32_t *left)
{
    if (!tm_cursor_left(&s->in)) return false;
    const uint8_t *p = s->in.ptr;
    switch (*p) {
    case TM_SMALL_TUPLE_EXT:
        if (tm_cursor_left(&s->in) < 2) return false;
        *left += p[1];
        return copy(s, 2);
    case TM_LIST_EXT: /* short ones only, and their tails */
        if (tm_cursor_left(&s->in) < 5 || tm_load_u32(p + 1) > UINT8_MAX) return false;
        *left += tm_load_u32(p + 1) + 1;
        return copy(s, 5);
    case TM_SMALL_INTEGER_EXT: return copy(s, 2);
    case TM_INTEGER_EXT: return copy(s, 5);
    case TM_SMALL_BIG_EXT: return tm_cursor_left(&s->in) > 1 && copy(s, 3 + (size_t)p[1]);
    case TM_NIL_EXT: return copy(s, 1);
    case TM_SMALL_ATOM_UTF8_EXT: return shorten_atom(s);
    case TM_NEW_PID_EXT: return copy(s, 1) && shorten_atom(s) && copy(s, 12);
    case TM_NEWER_REFERENCE_EXT:
        return tm_cursor_left(&s->in) > 2 && copy(s, 3) && shorten_atom(s) &&
               copy(s, 4 + 4 * (size_t)p[2]);
    default: return false;
    }
}

/* Writes the list of atoms, from its number on, and returns where it ends. */
static uint8_t *put_list(const shortening *s, uint8_t *p)
{
    *p++ = (uint8_t)s->count;
    if (!s->count) return p;
    uint8_t *flags = p;
    size_t flags_size = s->count / 2 + 1;
    memset(flags, 0, flags_size);
    p += flags_size;
    for (uint32_t i = 0; i < s->count; i++) {
        uint8_t slot = s->slots[i];
        *p++ = slot;
        if (slot < s->known) continue;
        flags[i / 2] |= (uint8_t)(NEW_ENTRY << (i % 2 ? 4 : 0));
        uint8_t len = s->sender->slots[slot].len;
        *p++ = len;
        p = tm_store_bytes(p, s->sender->slots[slot].text, len);
    }
    return p;
}

/* Puts bytes where before bytes stood, at an offset of out. */
static int replace(tm_buf *out, size_t at, size_t before, tm_bytes bytes)
{
    if (bytes.len > before) {
        int rc = tm_buf_reserve(out, bytes.len - before);
        if (rc) return rc;
    }
    memmove(out->ptr + at + bytes.len, out->ptr + at + before, out->len - at - before);
    memcpy(out->ptr + at, bytes.ptr, bytes.len);
    out->len = out->len - before + bytes.len;
    return 0;
}

int tm_atom_sender_shorten(tm_atom_sender *sender, tm_buf *out, size_t start)
{
    TM_ASSERT(out->len > start + PREFIX_SIZE + 2);
    const uint8_t *frame = out->ptr + start;
    uint8_t form = frame[PREFIX_SIZE + 1];
    if (form != HEADER_NORMAL && form != HEADER_FRAGMENT_FIRST) return 0;
    size_t at = PREFIX_SIZE + 2 + (form == HEADER_FRAGMENT_FIRST ? FRAGMENT_IDS_SIZE : 0);
    TM_ASSERT(frame[at] == 0);
    uint8_t list[1 + ATOMS_MAX / 2 + 1 + ATOMS_MAX * (2 + TM_ATOM_SENDER_TEXT_MAX)];
    uint8_t bytes[sizeof list + CONTROL_BYTES_MAX], control[CONTROL_BYTES_MAX];
    size_t rest = out->len - start - at - 1;
    tm_cursor in = tm_cursor_of(
        tm_bytes_of(frame + at + 1, rest < CONTROL_BYTES_MAX ? rest : CONTROL_BYTES_MAX));
    shortening s = {.sender = sender, .in = in, .out = control, .known = sender->count};
    for (uint32_t left = 1; left; left--) {
        if (shorten_term(&s, &left)) continue;
        sender->count = s.known;
        return 0;
    }
    size_t before = 1 + (size_t)(s.in.ptr - in.ptr);
    uint8_t *end = tm_store_bytes(put_list(&s, bytes), control, (size_t)(s.out - control));
    tm_bytes after = {bytes, (size_t)(end - bytes)};
    uint32_t len = tm_load_u32(frame);
    int rc = replace(out, start + at, before, after);
    if (rc)
        sender->count = s.known;
    else
        tm_store_u32(out->ptr + start, (uint32_t)(len - before + after.len));
    return rc;
}
