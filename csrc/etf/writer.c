#include "inline.h"

/* Adds what was put behind buf->len, up to p. */
static int writer_commit(tm_buf *buf, const uint8_t *p)
{
    buf->len = (size_t)(p - buf->ptr);
    return 0;
}

static inline uint8_t *writer_room(const tm_buf *buf) { return buf->ptr + buf->len; }

/* 0, or TM_EUSE_LIMIT for a text that is no atom. Up to 255 bytes there is nothing to ask. */
static int writer_check_atom(tm_bytes utf8)
{
    size_t chars;
    if (utf8.len <= TM_ATOM_CHARS_MAX) return 0;
    if (utf8.len > TM_ATOM_BYTES_MAX || !tm_utf8_valid(utf8, &chars)) return TM_EUSE_LIMIT;
    return chars <= TM_ATOM_CHARS_MAX ? 0 : TM_EUSE_LIMIT;
}

/* Room for an identifier: its node's atom and size bytes around it. */
static int writer_reserve_id(tm_buf *buf, tm_bytes node, size_t size)
{
    int rc = writer_check_atom(node);
    return rc ? rc : tm_buf_reserve(buf, 3 + node.len + size);
}

int tm_etf_write_atom(tm_buf *buf, tm_bytes utf8)
{
    int rc = writer_reserve_id(buf, utf8, 0);
    if (rc) return rc;
    return writer_commit(buf, tm_etf_put_atom(writer_room(buf), utf8));
}

int tm_etf_write_pid(tm_buf *buf, const tm_pid *pid)
{
    int rc = writer_reserve_id(buf, pid->node, 1 + 12);
    if (rc) return rc;
    return writer_commit(buf, tm_etf_put_pid(writer_room(buf), pid));
}

int tm_etf_write_ref(tm_buf *buf, const tm_ref *ref)
{
    if (ref->count > TM_REF_WORDS_MAX) return TM_EUSE_LIMIT;
    int rc = writer_reserve_id(buf, ref->node, 3 + 4 + 4 * (size_t)ref->count);
    if (rc) return rc;
    return writer_commit(buf, tm_etf_put_ref(writer_room(buf), ref));
}

int tm_etf_write_i64(tm_buf *buf, int64_t value)
{
    int rc = tm_buf_reserve(buf, TM_ETF_INTEGER_SIZE_MAX);
    if (rc) return rc;
    return writer_commit(buf, tm_etf_put_i64(writer_room(buf), value));
}

int tm_etf_write_u64(tm_buf *buf, uint64_t value)
{
    int rc = tm_buf_reserve(buf, TM_ETF_INTEGER_SIZE_MAX);
    if (rc) return rc;
    return writer_commit(buf, tm_etf_put_u64(writer_room(buf), value));
}

int tm_etf_write_tuple(tm_buf *buf, uint32_t arity)
{
    int rc = tm_buf_reserve(buf, TM_ETF_HEAD_SIZE_MAX);
    if (rc) return rc;
    return writer_commit(buf, tm_etf_put_tuple(writer_room(buf), arity));
}

int tm_etf_write_list(tm_buf *buf, uint32_t count)
{
    int rc = tm_buf_reserve(buf, TM_ETF_HEAD_SIZE_MAX);
    if (rc) return rc;
    return writer_commit(buf, tm_etf_put_list(writer_room(buf), count));
}

int tm_etf_write_nil(tm_buf *buf)
{
    int rc = tm_buf_reserve(buf, 1);
    if (rc) return rc;
    return writer_commit(buf, tm_etf_put_nil(writer_room(buf)));
}

int tm_etf_write_binary(tm_buf *buf, tm_bytes bytes)
{
    if (bytes.len > UINT32_MAX) return TM_EUSE_LIMIT;
    int rc = tm_buf_reserve(buf, 5 + bytes.len);
    if (rc) return rc;
    uint8_t *p = tm_etf_put_binary(writer_room(buf), (uint32_t)bytes.len);
    return writer_commit(buf, tm_store_bytes(p, bytes.ptr, bytes.len));
}

int tm_etf_write_raw(tm_buf *buf, tm_bytes terms)
{
    return tm_buf_append(buf, terms.ptr, terms.len);
}
