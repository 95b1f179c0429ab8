#include "control.h"

#include "../base/check.h"

/* One row of opcode.def. Text lies in the row itself: a table of pointers would have to be writable
 * for the loader. */
typedef struct operation {
    uint8_t canonical; /* 0: no such operation */
    bool payload;
    char fields[8];
    char name[24];
} operation;

static const operation operations[TM_OP_LAST + 1] = {
#define TM_OPCODE(name, value, canonical, fields, payload)                                         \
    [value] = {TM_OP_##canonical, payload, fields, #name},
#include "opcode.def"
#undef TM_OPCODE
};

/* The writers of etf may ask for so many bytes more than they use. */
#define WRITER_SLACK 10

/* Elements of ALTACT_SIG_SEND up to To, the number included: it may have more. */
#define ALTACT_ARITY_MIN 4
#define MFA_ARITY 3

static const operation *operation_of(uint64_t wire_op)
{
    if (wire_op > TM_OP_LAST || !operations[wire_op].canonical) return NULL;
    return &operations[wire_op];
}

const char *tm_opcode_name(uint64_t wire_op)
{
    const operation *row = operation_of(wire_op);
    return row ? row->name : "unknown";
}

/* -- parse ------------------------------------------------------------------------------------- */

typedef struct parser {
    tm_cursor c;
    const tm_walk_limits *limits;
    const tm_alloc *alloc;
    tm_control *control;
    const char *what;
    bool over_limit; /* a carried term is valid but over a limit */
    bool has_refs;   /* a carried term refers to atoms of the frame */
    size_t growth;   /* of carried terms when those are written out, bytes */
} parser;

static int parse_wrong(parser *p, const char *what)
{
    p->what = what;
    return TM_EPEER_MALFORMED;
}

static int parse_pid(parser *p, tm_pid *pid)
{
    return tm_etf_read_pid_in(&p->c, p->limits, pid) ? parse_wrong(p, "not a pid") : 0;
}

static int parse_ref(parser *p, tm_ref *ref)
{
    return tm_etf_read_ref_in(&p->c, p->limits, ref) ? parse_wrong(p, "not a reference") : 0;
}

static int parse_atom(parser *p, tm_bytes *text)
{
    tm_control *control = p->control;
    TM_ASSERT(control->scratch_used < sizeof control->scratch / sizeof *control->scratch);
    uint8_t *scratch = control->scratch[control->scratch_used];
    if (tm_etf_read_atom_utf8_in(&p->c, p->limits, scratch, text))
        return parse_wrong(p, "not an atom");
    if (text->ptr == scratch) control->scratch_used++;
    return 0;
}

/* A term that is carried, not understood. Over a limit it is still well-formed to its end: the rest
 * of the message is parsed too, so that whoever drops it can say what it was. */
static int parse_term(parser *p, tm_bytes *term)
{
    tm_walk_result result;
    tm_bytes rest = tm_bytes_of(p->c.ptr, tm_cursor_left(&p->c));
    int rc = tm_etf_walk(rest, p->limits, p->alloc, &result);
    if (rc == TM_ENOMEM) return rc;
    if (rc && rc != TM_EPEER_LIMIT) return parse_wrong(p, "an element is not a well-formed term");
    if (rc) p->over_limit = true;
    if (result.refs.count) p->has_refs = true;
    p->growth += result.refs.growth;
    return tm_cursor_bytes(&p->c, result.len, term);
}

/* The carried terms that are kept, written out to memory of the message. */
static int parse_write_out(parser *p)
{
    tm_control *control = p->control;
    tm_bytes *terms[] = {&control->reason, &control->token, &control->options};
    size_t len = p->growth + WRITER_SLACK;
    for (size_t i = 0; i < sizeof terms / sizeof *terms; i++) len += terms[i]->len;
    tm_buf *buf = &control->written_out;
    tm_buf_init(buf, p->alloc, 0);
    int rc = tm_buf_reserve(buf, len);
    const uint8_t *start = buf->ptr;
    for (size_t i = 0; i < sizeof terms / sizeof *terms && !rc; i++) {
        size_t at = buf->len;
        rc = tm_etf_expand(*terms[i], p->limits->cache_atoms, buf);
        if (!rc) *terms[i] = tm_bytes_of(buf->ptr + at, buf->len - at);
    }
    TM_ASSERT(rc || buf->ptr == start); /* or what was written before would have moved */
    return rc;
}

static int parse_pid_item(parser *p, tm_control_item *item)
{
    item->kind = TM_ITEM_PID;
    return parse_pid(p, &item->pid);
}

static int parse_name_item(parser *p, tm_control_item *item)
{
    item->kind = TM_ITEM_NAME;
    return parse_atom(p, &item->name);
}

static int parse_ref_item(parser *p, tm_control_item *item)
{
    item->kind = TM_ITEM_REF;
    return parse_ref(p, &item->ref);
}

static int parse_pid_or_name(parser *p, tm_control_item *item)
{
    if (!parse_pid_item(p, item)) return 0;
    if (!parse_name_item(p, item)) return 0;
    return parse_wrong(p, "neither a pid nor an atom");
}

/* Flags may be a big integer of any size; its low 64 bits are all that could mean something. */
static int parse_flags(parser *p, uint64_t *flags)
{
    if (!tm_etf_read_u64(&p->c, flags)) return 0;
    int64_t negative;
    tm_cursor c = p->c;
    if (!tm_etf_read_i64(&c, &negative)) return parse_wrong(p, "flags are negative");
    tm_bytes term;
    const tm_cursor start = p->c;
    int rc = parse_term(p, &term);
    if (rc) return rc;
    size_t head = term.ptr[0] == TM_SMALL_BIG_EXT ? 2 : 5;
    if ((term.ptr[0] != TM_SMALL_BIG_EXT && term.ptr[0] != TM_LARGE_BIG_EXT) || term.ptr[head]) {
        p->c = start;
        return parse_wrong(p, "flags are not a non-negative integer");
    }
    *flags = 0;
    for (size_t i = 0; i < sizeof *flags && head + 1 + i < term.len; i++)
        *flags |= (uint64_t)term.ptr[head + 1 + i] << (8 * i);
    return 0;
}

static int parse_unlink_id(parser *p)
{
    const tm_cursor start = p->c;
    if (!tm_etf_read_u64(&p->c, &p->control->unlink_id) && p->control->unlink_id) return 0;
    p->c = start;
    return parse_wrong(p, "not an unlink id");
}

static int parse_mfa(parser *p)
{
    uint32_t arity;
    const tm_cursor start = p->c;
    if (tm_etf_read_tuple(&p->c, &arity) || arity != MFA_ARITY) {
        p->c = start;
        return parse_wrong(p, "not a tuple of module, function and arity");
    }
    int rc = parse_atom(p, &p->control->module);
    if (!rc) rc = parse_atom(p, &p->control->function);
    if (!rc && tm_etf_read_i64(&p->c, &p->control->arity)) rc = parse_wrong(p, "not an arity");
    return rc;
}

static int parse_token(parser *p)
{
    p->control->has_token = true;
    return parse_term(p, &p->control->token);
}

/* To, the token and whatever a later release appends to operation 37. */
static int parse_altact(parser *p, uint32_t left)
{
    tm_control *control = p->control;
    int rc;
    if (control->flags & TM_ALTACT_ALIAS)
        rc = parse_ref_item(p, &control->to);
    else if (control->flags & TM_ALTACT_NAME)
        rc = parse_name_item(p, &control->to);
    else
        rc = parse_pid_item(p, &control->to);
    left--;
    if (!rc && control->flags & TM_ALTACT_TOKEN) {
        if (!left) return parse_wrong(p, "no trace token where the flags promise one");
        rc = parse_token(p);
        left--;
    }
    tm_bytes ignored;
    while (!rc && left--) rc = parse_term(p, &ignored);
    return rc;
}

static int parse_field(parser *p, char field, uint32_t left)
{
    tm_control *control = p->control;
    tm_bytes ignored;
    switch (field) {
    case 'F': return parse_pid_item(p, &control->from);
    case 'I': return parse_pid_or_name(p, &control->from);
    case 'T': return parse_pid_item(p, &control->to);
    case 'W': return parse_pid_or_name(p, &control->to);
    case 'N': return parse_name_item(p, &control->to);
    case 'A': return parse_ref_item(p, &control->to);
    case 'R': return parse_ref(p, &control->ref);
    case 'U': return parse_unlink_id(p);
    case 'L': return parse_flags(p, &control->flags);
    case 'X': return parse_term(p, &control->reason);
    case 'K': return parse_token(p);
    case 'G': return parse_pid(p, &control->group_leader);
    case 'M': return parse_mfa(p);
    case 'O': return parse_term(p, &control->options);
    case 'Y': return parse_pid_or_name(p, &control->result);
    case '*': return parse_altact(p, left);
    default: return parse_term(p, &ignored); /* C */
    }
}

/* The elements behind the operation's number. */
static int parse_elements(parser *p, const operation *row, uint32_t count)
{
    size_t fields = row ? strlen(row->fields) : 0;
    bool grows = row && row->canonical == TM_OP_ALTACT_SIG_SEND;
    if (row && (grows ? count < ALTACT_ARITY_MIN - 1 : count != fields))
        return parse_wrong(p, "wrong number of elements for the operation");
    if (!row) fields = count;
    for (size_t i = 0; i < fields; i++) {
        char field = row ? row->fields[i] : 'C';
        int rc = parse_field(p, field, count - (uint32_t)i);
        if (rc) return rc;
    }
    return 0;
}

static int parse_payload(parser *p, bool versioned, tm_bytes *payload)
{
    uint8_t version;
    if (versioned && tm_cursor_left(&p->c) && *p->c.ptr != TM_ETF_VERSION)
        return parse_wrong(p, "no version byte before the payload");
    if (versioned && tm_cursor_u8(&p->c, &version)) return parse_wrong(p, "no payload");
    if (!tm_cursor_left(&p->c)) return parse_wrong(p, "no payload");
    *payload = tm_bytes_of(p->c.ptr, tm_cursor_left(&p->c));
    return 0;
}

/* The tuple alone. *row: what is known of the operation, or NULL. */
static int parse_tuple(parser *p, const operation **row)
{
    tm_control *control = p->control;
    uint32_t arity;
    if (tm_etf_read_tuple(&p->c, &arity)) return parse_wrong(p, "not a tuple");
    if (!arity) return parse_wrong(p, "an empty tuple");
    int64_t negative;
    if (tm_etf_read_u64(&p->c, &control->wire_op)) {
        if (tm_etf_read_i64(&p->c, &negative)) return parse_wrong(p, "no operation number");
        control->wire_op = (uint64_t)negative;
    }
    *row = operation_of(control->wire_op);
    return parse_elements(p, *row, arity - 1);
}

static int parse_message(parser *p, bool versioned, tm_bytes *payload)
{
    tm_control *control = p->control;
    const operation *row;
    int rc = parse_tuple(p, &row);
    if (rc) return rc;
    if (row) {
        control->op = row->canonical;
        control->has_payload = row->payload;
        if (row->payload) rc = parse_payload(p, versioned, payload);
    }
    if (p->growth > TM_CONTROL_GROWTH_BYTES_MAX) p->over_limit = true;
    if (!rc && p->has_refs && !p->over_limit) rc = parse_write_out(p);
    if (rc) return rc;
    if (p->over_limit) return TM_EPEER_LIMIT;
    return row ? 0 : TM_CONTROL_UNKNOWN;
}

static int parse_end(const parser *p, tm_bytes terms, int rc, tm_fault *fault)
{
    if (rc == TM_EPEER_MALFORMED && fault)
        *fault = (tm_fault){.offset = (size_t)(p->c.ptr - terms.ptr), .what = p->what};
    return rc;
}

int tm_control_parse(tm_bytes terms, bool versioned, const tm_walk_limits *limits,
                     const tm_alloc *alloc, tm_control *control, tm_bytes *payload, tm_fault *fault)
{
    memset(control, 0, offsetof(tm_control, scratch));
    control->scratch_used = 0;
    *payload = (tm_bytes){0};
    parser p = {.c = tm_cursor_of(terms), .limits = limits, .alloc = alloc, .control = control};
    int rc = parse_message(&p, versioned, payload);
    return parse_end(&p, terms, rc, fault);
}

int tm_control_measure(tm_bytes terms, const tm_walk_limits *limits, const tm_alloc *alloc,
                       size_t *len, tm_fault *fault)
{
    tm_control control;
    memset(&control, 0, offsetof(tm_control, scratch));
    control.scratch_used = 0;
    parser p = {.c = tm_cursor_of(terms), .limits = limits, .alloc = alloc, .control = &control};
    const operation *row;
    int rc = parse_tuple(&p, &row);
    *len = terms.len - tm_cursor_left(&p.c);
    return parse_end(&p, terms, rc, fault);
}

/* -- write ------------------------------------------------------------------------------------- */

static int write_pid(tm_buf *out, const tm_pid *pid)
{
    return pid->node.len ? tm_etf_write_pid(out, pid) : TM_EUSE_ARG;
}

static int write_ref(tm_buf *out, const tm_ref *ref)
{
    return ref->node.len ? tm_etf_write_ref(out, ref) : TM_EUSE_ARG;
}

/* kinds: a set of 1 << enum tm_item_kind that the field allows. */
static int write_item(tm_buf *out, const tm_control_item *item, unsigned kinds)
{
    if (!(kinds >> item->kind & 1)) return TM_EUSE_ARG;
    switch (item->kind) {
    case TM_ITEM_PID: return write_pid(out, &item->pid);
    case TM_ITEM_NAME: return tm_etf_write_atom(out, item->name);
    case TM_ITEM_REF: return write_ref(out, &item->ref);
    case TM_ITEM_NONE: break;
    }
    return TM_EUSE_ARG;
}

static int write_term(tm_buf *out, tm_bytes term)
{
    return term.len ? tm_etf_write_raw(out, term) : TM_EUSE_ARG;
}

static int write_mfa(tm_buf *out, const tm_control *control)
{
    int rc = tm_etf_write_tuple(out, MFA_ARITY);
    if (!rc) rc = tm_etf_write_atom(out, control->module);
    if (!rc) rc = tm_etf_write_atom(out, control->function);
    if (!rc) rc = tm_etf_write_i64(out, control->arity);
    return rc;
}

/* Flags of operation 37: those that describe the tuple follow from it, unknown ones are not
 * sent. */
static uint64_t altact_flags(const tm_control *control)
{
    uint64_t flags = 0;
    if (control->op == TM_OP_ALTACT_SIG_SEND)
        flags = control->flags & (TM_ALTACT_PRIO | TM_ALTACT_EXIT);
    if (control->has_token) flags |= TM_ALTACT_TOKEN;
    if (control->to.kind == TM_ITEM_REF) flags |= TM_ALTACT_ALIAS;
    if (control->to.kind == TM_ITEM_NAME) flags |= TM_ALTACT_NAME;
    return flags;
}

#define KIND(name) (1u << TM_ITEM_##name)

static int write_altact(tm_buf *out, const tm_control *control)
{
    int rc = write_item(out, &control->to, KIND(PID) | KIND(NAME) | KIND(REF));
    if (!rc && control->has_token) rc = write_term(out, control->token);
    return rc;
}

static int write_field(tm_buf *out, char field, uint8_t wire_op, const tm_control *control)
{
    uint64_t flags = wire_op == TM_OP_ALTACT_SIG_SEND ? altact_flags(control) : control->flags;
    switch (field) {
    case 'F': return write_item(out, &control->from, KIND(PID));
    case 'I': return write_item(out, &control->from, KIND(PID) | KIND(NAME));
    case 'T': return write_item(out, &control->to, KIND(PID));
    case 'W': return write_item(out, &control->to, KIND(PID) | KIND(NAME));
    case 'N': return write_item(out, &control->to, KIND(NAME));
    case 'A': return write_item(out, &control->to, KIND(REF));
    case 'R': return write_ref(out, &control->ref);
    case 'U': return control->unlink_id ? tm_etf_write_u64(out, control->unlink_id) : TM_EUSE_ARG;
    case 'L': return tm_etf_write_u64(out, flags);
    case 'X': return write_term(out, control->reason);
    case 'K': return write_term(out, control->token);
    case 'G': return write_pid(out, &control->group_leader);
    case 'M': return write_mfa(out, control);
    case 'O': return write_term(out, control->options);
    case 'Y': return write_item(out, &control->result, KIND(PID) | KIND(NAME));
    case '*': return write_altact(out, control);
    default: return tm_etf_write_atom(out, TM_BYTES("")); /* C */
    }
}

#undef KIND

/* The flags that a peer must have set before an operation may be sent to it. */
static uint64_t flags_needed(const tm_control *control)
{
    switch (control->op) {
    case TM_OP_MONITOR_P:
    case TM_OP_DEMONITOR_P:
        return TM_DFLAG(DIST_MONITOR) |
               (control->to.kind == TM_ITEM_NAME ? TM_DFLAG(DIST_MONITOR_NAME) : 0);
    case TM_OP_MONITOR_P_EXIT: return TM_DFLAG(DIST_MONITOR);
    case TM_OP_SPAWN_REQUEST:
    case TM_OP_SPAWN_REPLY: return TM_DFLAG(SPAWN);
    case TM_OP_UNLINK_ID:
    case TM_OP_UNLINK_ID_ACK: return TM_DFLAG(UNLINK_ID);
    default: return 0;
    }
}

/* Aliases have an operation of their own and, since OTP 28, a share in 37. */
static int alias_variant(uint64_t flags, const tm_control *control)
{
    bool wide = control->op == TM_OP_ALTACT_SIG_SEND;
    bool plain = control->to.kind == TM_ITEM_REF && !(wide && control->flags & TM_ALTACT_EXIT);
    if (flags & TM_DFLAG(ALTACT_SIG) && (wide || !(flags & TM_DFLAG(ALIAS))))
        return TM_OP_ALTACT_SIG_SEND;
    if (!plain || !(flags & TM_DFLAG(ALIAS))) return TM_ENOTSUP;
    return control->has_token ? TM_OP_ALIAS_SEND_TT : TM_OP_ALIAS_SEND;
}

/* The number that goes on the wire, or an error of tm_control_write. */
static int variant_of(uint64_t flags, const tm_control *control)
{
    bool token = control->has_token;
    bool payload = flags & TM_DFLAG(EXIT_PAYLOAD);
    uint64_t needed = flags_needed(control);
    if ((flags & needed) != needed) return TM_ENOTSUP;
    switch (control->op) {
    case TM_OP_LINK:
    case TM_OP_GROUP_LEADER:
    case TM_OP_MONITOR_P:
    case TM_OP_DEMONITOR_P:
    case TM_OP_UNLINK_ID:
    case TM_OP_UNLINK_ID_ACK: return control->op;
    case TM_OP_SEND:
        if (control->from.kind == TM_ITEM_PID && flags & TM_DFLAG(SEND_SENDER))
            return token ? TM_OP_SEND_SENDER_TT : TM_OP_SEND_SENDER;
        return token ? TM_OP_SEND_TT : TM_OP_SEND;
    case TM_OP_REG_SEND: return token ? TM_OP_REG_SEND_TT : TM_OP_REG_SEND;
    case TM_OP_EXIT:
        if (payload) return token ? TM_OP_PAYLOAD_EXIT_TT : TM_OP_PAYLOAD_EXIT;
        return token ? TM_OP_EXIT_TT : TM_OP_EXIT;
    case TM_OP_EXIT2:
        if (payload) return token ? TM_OP_PAYLOAD_EXIT2_TT : TM_OP_PAYLOAD_EXIT2;
        return token ? TM_OP_EXIT2_TT : TM_OP_EXIT2;
    case TM_OP_MONITOR_P_EXIT: return payload ? TM_OP_PAYLOAD_MONITOR_P_EXIT : control->op;
    case TM_OP_SPAWN_REQUEST: return token ? TM_OP_SPAWN_REQUEST_TT : control->op;
    case TM_OP_SPAWN_REPLY: return token ? TM_OP_SPAWN_REPLY_TT : control->op;
    case TM_OP_ALIAS_SEND:
    case TM_OP_ALTACT_SIG_SEND: return alias_variant(flags, control);
    case TM_OP_UNLINK: return TM_ENOTSUP; /* OTP 26 and later close on it */
    default: return TM_EUSE_ARG;
    }
}

bool tm_control_takes_payload(uint64_t flags, const tm_control *control)
{
    int variant = variant_of(flags, control);
    return variant > 0 && operations[variant].payload;
}

int tm_control_write(tm_buf *out, uint64_t flags, const tm_control *control)
{
    int variant = variant_of(flags, control);
    if (variant < 0) return variant;
    const operation *row = &operations[variant];
    size_t start = out->len;
    uint32_t arity = 1 + (uint32_t)strlen(row->fields);
    if (variant == TM_OP_ALTACT_SIG_SEND) arity = ALTACT_ARITY_MIN + (control->has_token ? 1 : 0);
    int rc = tm_etf_write_tuple(out, arity);
    if (!rc) rc = tm_etf_write_u64(out, (uint64_t)variant);
    for (const char *field = row->fields; !rc && *field; field++)
        rc = write_field(out, *field, (uint8_t)variant, control);
    if (rc) out->len = start;
    return rc;
}
