#include "sequence.h"

#include "../base/check.h"

#define PREFIX_SIZE 4
/* Version, form, sequence id, fragment number. */
#define HEAD_SIZE (2 + 8 + 8)

#define HEADER_FRAGMENT_FIRST 69
#define HEADER_FRAGMENT_NEXT 70

/* References into the atom cache that follow a first head. */
static const uint8_t NO_ATOMS = 0;

static int sequence_head(tm_buf *out, uint8_t form, uint64_t id, uint64_t number)
{
    TM_ASSERT(id != 0 && number != 0);
    uint8_t head[PREFIX_SIZE + HEAD_SIZE] = {0, 0, 0, 0, TM_ETF_VERSION, form};
    tm_store_u64(head + PREFIX_SIZE + 2, id);
    tm_store_u64(head + PREFIX_SIZE + 2 + 8, number);
    return tm_buf_append(out, head, sizeof head);
}

/* Sets the length of the frame that starts at start and goes on with part bytes; or takes it back. */
static int sequence_end(tm_buf *out, size_t start, size_t part, int rc)
{
    if (rc)
        out->len = start;
    else
        tm_store_u32(out->ptr + start, (uint32_t)(out->len - start - PREFIX_SIZE + part));
    return rc;
}

int tm_sequence_first(tm_buf *out, uint64_t flags, const tm_control *control, uint64_t id,
                      size_t payload_len)
{
    size_t start = out->len;
    if (!(flags & TM_DFLAG(FRAGMENTS)) || !payload_len) return TM_EUSE_ARG;
    uint64_t count = tm_sequence_count(payload_len);
    int rc = sequence_head(out, HEADER_FRAGMENT_FIRST, id, count);
    if (!rc) rc = tm_buf_append(out, &NO_ATOMS, 1);
    if (!rc) rc = tm_control_write(out, flags, control);
    /* What cannot be sent at all keeps its own error. */
    if (!rc && !tm_control_takes_payload(flags, control)) rc = TM_EUSE_ARG;
    return sequence_end(out, start, tm_sequence_part(payload_len, count), rc);
}

int tm_sequence_next(tm_buf *out, uint64_t id, size_t payload_len, uint64_t number)
{
    size_t start = out->len;
    if (number == 0 || number >= tm_sequence_count(payload_len)) return TM_EUSE_ARG;
    int rc = sequence_head(out, HEADER_FRAGMENT_NEXT, id, number);
    return sequence_end(out, start, tm_sequence_part(payload_len, number), rc);
}
