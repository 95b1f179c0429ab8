#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "control.h"
#include "control_test.h"
#include "dist_test.h"
#include "frame.h"

/* Frames in pass-through form. */
#define PLAIN (TM_DFLAGS_OURS & ~TM_DFLAGS_HEADER)

/* -- scaffolding: control tuples made by hand, element by element ------------------------------ */

typedef struct element {
    uint8_t bytes[64];
    size_t len;
} element;

#define ELEMENT(literal) ((element){.bytes = literal, .len = sizeof(literal) - 1})

#define NODE "w\003a@b"
/* <a@b.1.2>, <a@b.3.0>, <a@b.5.0>, creation 9, and a reference of three words */
#define PID_FROM ELEMENT("X" NODE "\0\0\0\1\0\0\0\2\0\0\0\11")
#define PID_TO ELEMENT("X" NODE "\0\0\0\3\0\0\0\0\0\0\0\11")
#define PID_LEADER ELEMENT("X" NODE "\0\0\0\5\0\0\0\0\0\0\0\11")
#define REF                                                                                        \
    ELEMENT("Z\0\3" NODE "\0\0\0\11"                                                               \
            "\0\0\0\1\0\0\0\2\0\0\0\3")
#define ALIAS                                                                                      \
    ELEMENT("Z\0\1" NODE "\0\0\0\11"                                                               \
            "\0\0\0\7")
#define NAME ELEMENT("w\004echo")
#define EMPTY_ATOM ELEMENT("w\0")
#define REASON ELEMENT("w\006noproc")
#define TOKEN                                                                                      \
    ELEMENT("h\005a\1a\21a\1"                                                                      \
            "X" NODE "\0\0\0\1\0\0\0\2\0\0\0\11"                                                   \
            "a\0")
#define MFA ELEMENT("h\003w\004erpcw\014execute_calla\004")
#define OPTIONS ELEMENT("l\0\0\0\1w\007monitorj")
#define SMALL ELEMENT("a\2")
#define UNLINK_ID ELEMENT("n\010\0\1\2\3\4\5\6\7\200") /* above 2^63 */

typedef struct tuple {
    element elements[12];
    size_t count;
} tuple;

typedef struct row {
    uint8_t op, canonical;
    bool payload;
    const char *fields;
} row;

static const row rows[] = {
#define TM_OPCODE(name, value, canonical, fields, payload)                                         \
    {value, TM_OP_##canonical, payload, fields},
#include "opcode.def"
#undef TM_OPCODE
};

#define ROWS (sizeof rows / sizeof *rows)

static element element_for(char field)
{
    switch (field) {
    case 'F':
    case 'I': return PID_FROM;
    case 'T':
    case 'W': return PID_TO;
    case 'N': return NAME;
    case 'A': return ALIAS;
    case 'R': return REF;
    case 'U': return UNLINK_ID;
    case 'L': return SMALL;
    case 'X': return REASON;
    case 'K': return TOKEN;
    case 'G': return PID_LEADER;
    case 'M': return MFA;
    case 'O': return OPTIONS;
    case 'Y': return PID_FROM;
    default: return EMPTY_ATOM;
    }
}

static element element_small(uint8_t value) { return (element){.bytes = {'a', value}, .len = 2}; }

/* The tuple of an operation; 37 gets flags 2: To is a pid, and a trace token follows. */
static tuple tuple_of(const row *r)
{
    tuple t = {.count = 1};
    t.elements[0] = element_small(r->op);
    for (const char *field = r->fields; *field; field++) {
        if (*field != '*') {
            t.elements[t.count++] = element_for(*field);
            continue;
        }
        t.elements[t.count++] = PID_TO;
        t.elements[t.count++] = TOKEN;
    }
    return t;
}

static size_t tuple_bytes(const tuple *t, uint8_t *bytes)
{
    uint8_t *p = tm_store_u8(tm_store_u8(bytes, 'h'), (uint8_t)t->count);
    for (size_t i = 0; i < t->count; i++)
        p = tm_store_bytes(p, t->elements[i].bytes, t->elements[i].len);
    return (size_t)(p - bytes);
}

static tm_alloc test_memory;
static tm_fault fault;

static int parse(const void *bytes, size_t len, bool versioned, tm_control *control,
                 tm_bytes *payload)
{
    fault = (tm_fault){0};
    /* An exact copy, so that a read past the end is seen. */
    uint8_t *copy = malloc(len + !len);
    memcpy(copy, bytes, len);
    tm_control local;
    tm_bytes rest;
    int rc = tm_control_parse(tm_bytes_of(copy, len), versioned, &TM_WALK_LIMITS_DEFAULT,
                              &test_memory, &local, &rest, &fault);
    free(copy);
    if (rc == TM_EPEER_MALFORMED) {
        assert_non_null(fault.what);
        assert_true(fault.offset <= len);
    }
    int again = tm_control_parse(tm_bytes_of(bytes, len), versioned, &TM_WALK_LIMITS_DEFAULT,
                                 &test_memory, control, payload, NULL);
    assert_int_equal(rc, again);
    return rc;
}

static int parse_tuple(const tuple *t, bool payload)
{
    static uint8_t bytes[2048];
    tm_control control;
    tm_bytes rest;
    size_t len = tuple_bytes(t, bytes);
    if (payload) len += (size_t)(tm_store_bytes(bytes + len, "\203a\1", 3) - (bytes + len));
    return parse(bytes, len, true, &control, &rest);
}

/* -- what is parsed ---------------------------------------------------------------------------- */

static void check_pid(const tm_pid *pid, uint32_t id, uint32_t serial)
{
    assert_true(tm_bytes_equal(pid->node, TM_BYTES("a@b")));
    assert_int_equal(pid->id, id);
    assert_int_equal(pid->serial, serial);
    assert_int_equal(pid->creation, 9);
}

static void check_item_pid(const tm_control_item *item, uint32_t id, uint32_t serial)
{
    assert_int_equal(item->kind, TM_ITEM_PID);
    check_pid(&item->pid, id, serial);
}

static bool term_is(tm_bytes term, element e)
{
    return tm_bytes_equal(term, tm_bytes_of(e.bytes, e.len));
}

static void check_field(char field, const tm_control *control)
{
    switch (field) {
    case 'F':
    case 'I': check_item_pid(&control->from, 1, 2); break;
    case 'T':
    case 'W':
    case '*': check_item_pid(&control->to, 3, 0); break;
    case 'N': assert_true(tm_bytes_equal(control->to.name, TM_BYTES("echo"))); break;
    case 'A': assert_int_equal(control->to.ref.words[0], 7); break;
    case 'R': assert_int_equal(control->ref.words[2], 3); break;
    case 'U': assert_true(control->unlink_id == UINT64_C(0x8007060504030201)); break;
    case 'L': assert_int_equal(control->flags, 2); break;
    case 'X': assert_true(term_is(control->reason, REASON)); break;
    case 'K': assert_true(term_is(control->token, TOKEN)); break;
    case 'G': check_pid(&control->group_leader, 5, 0); break;
    case 'M':
        assert_true(tm_bytes_equal(control->module, TM_BYTES("erpc")));
        assert_true(tm_bytes_equal(control->function, TM_BYTES("execute_call")));
        assert_int_equal(control->arity, 4);
        break;
    case 'O': assert_true(term_is(control->options, OPTIONS)); break;
    case 'Y': check_item_pid(&control->result, 1, 2); break;
    default: break;
    }
}

static void every_operation_is_parsed_to_its_canonical_form(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2 * ROWS; i++) {
        const row *r = &rows[i / 2];
        bool versioned = i % 2;
        uint8_t bytes[512];
        tuple t = tuple_of(r);
        size_t len = tuple_bytes(&t, bytes);
        const char *after = versioned ? "\203w\2ok" : "w\2ok";
        size_t after_len = versioned ? 5 : 4;
        memcpy(bytes + len, after, after_len);
        tm_control control;
        tm_bytes payload;
        assert_int_equal(parse(bytes, len + after_len, versioned, &control, &payload), 0);
        assert_int_equal(control.op, r->canonical);
        assert_int_equal(control.wire_op, r->op);
        assert_int_equal(control.has_payload, r->payload);
        assert_int_equal(payload.len, r->payload ? 4 : 0);
        bool token = strchr(r->fields, 'K') || strchr(r->fields, '*');
        assert_int_equal(control.has_token, token);
        for (const char *field = r->fields; *field; field++) check_field(*field, &control);
        assert_string_not_equal(tm_opcode_name(r->op), "unknown");
    }
}

static void operation_without_payload_ignores_what_follows(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i++) {
        if (rows[i].payload) continue;
        uint8_t bytes[512];
        tuple t = tuple_of(&rows[i]);
        size_t len = tuple_bytes(&t, bytes);
        memcpy(bytes + len, "\1\2\3", 3);
        tm_control control;
        tm_bytes payload;
        assert_int_equal(parse(bytes, len + 3, true, &control, &payload), 0);
        assert_int_equal(payload.len, 0);
    }
}

static void message_without_payload_or_its_version_is_malformed(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i++) {
        if (!rows[i].payload) continue;
        uint8_t bytes[512];
        tuple t = tuple_of(&rows[i]);
        size_t len = tuple_bytes(&t, bytes);
        tm_control control;
        tm_bytes payload;
        assert_int_equal(parse(bytes, len, true, &control, &payload), TM_EPEER_MALFORMED);
        assert_int_equal(parse(bytes, len, false, &control, &payload), TM_EPEER_MALFORMED);
        bytes[len] = 131; /* a version byte and nothing */
        assert_int_equal(parse(bytes, len + 1, true, &control, &payload), TM_EPEER_MALFORMED);
        bytes[len] = 'a';
        bytes[len + 1] = 1; /* a payload and no version byte */
        assert_int_equal(parse(bytes, len + 2, true, &control, &payload), TM_EPEER_MALFORMED);
    }
}

static void monitors_and_spawn_results_may_be_atoms(void **state)
{
    (void)state;
    tm_control control;
    tm_bytes payload;
    for (size_t i = 0; i < ROWS; i++) {
        const char *at = strpbrk(rows[i].fields, "IWY");
        if (!at) continue;
        tuple t = tuple_of(&rows[i]);
        t.elements[1 + at - rows[i].fields] = NAME;
        uint8_t bytes[512];
        size_t len = tuple_bytes(&t, bytes);
        memcpy(bytes + len, "\203a\1", 3);
        assert_int_equal(parse(bytes, len + 3, true, &control, &payload), 0);
        const tm_control_item *item = *at == 'I'   ? &control.from
                                      : *at == 'W' ? &control.to
                                                   : &control.result;
        assert_int_equal(item->kind, TM_ITEM_NAME);
        assert_true(tm_bytes_equal(item->name, TM_BYTES("echo")));
    }
}

static void latin1_atoms_become_utf8(void **state)
{
    (void)state;
    tuple t = tuple_of(&rows[0]);
    for (size_t i = 0; i < ROWS; i++)
        if (rows[i].op == TM_OP_SPAWN_REQUEST) t = tuple_of(&rows[i]);
    /* d: ATOM_EXT, s: SMALL_ATOM_EXT; Latin-1 e-acute in both atoms */
    t.elements[4] = ELEMENT("h\003d\0\1\351s\2\351aa\4");
    uint8_t bytes[512];
    size_t len = tuple_bytes(&t, bytes);
    memcpy(bytes + len, "\203j", 2);
    tm_control control;
    tm_bytes payload;
    assert_int_equal(parse(bytes, len + 2, true, &control, &payload), 0);
    assert_true(tm_bytes_equal(control.module, TM_BYTES("\303\251")));
    assert_true(tm_bytes_equal(control.function, TM_BYTES("\303\251a")));
}

static void other_encodings_of_tuple_and_number_are_read(void **state)
{
    (void)state;
    static const char *const heads[] = {"i\0\0\0\3b\0\0\0\1", "i\0\0\0\3n\1\0\1", "h\3n\2\0\1\0",
                                        "h\3o\0\0\0\1\0\1"};
    static const size_t lens[] = {10, 9, 7, 9};
    element from = PID_FROM, to = PID_TO;
    for (size_t i = 0; i < 4; i++) {
        uint8_t bytes[128], *p = tm_store_bytes(bytes, heads[i], lens[i]);
        p = tm_store_bytes(p, from.bytes, from.len);
        p = tm_store_bytes(p, to.bytes, to.len);
        tm_control control;
        tm_bytes payload;
        assert_int_equal(parse(bytes, (size_t)(p - bytes), true, &control, &payload), 0);
        assert_int_equal(control.op, TM_OP_LINK);
    }
}

/* -- what is refused --------------------------------------------------------------------------- */

static void dropped_or_added_element_is_malformed(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i++) {
        tuple whole = tuple_of(&rows[i]);
        bool grows = rows[i].op == TM_OP_ALTACT_SIG_SEND;
        for (size_t drop = 1; drop < whole.count; drop++) {
            tuple t = whole;
            t.count--;
            memmove(&t.elements[drop], &t.elements[drop + 1],
                    (t.count - drop) * sizeof *t.elements);
            assert_int_equal(parse_tuple(&t, rows[i].payload), TM_EPEER_MALFORMED);
        }
        for (size_t add = 1; add <= whole.count; add++) {
            tuple t = whole;
            memmove(&t.elements[add + 1], &t.elements[add], (t.count - add) * sizeof *t.elements);
            t.elements[add] = EMPTY_ATOM;
            t.count++;
            /* Only 37 may grow, and only at its end: what comes after To is any term. */
            bool legal = grows && add >= 4;
            assert_int_equal(parse_tuple(&t, rows[i].payload), legal ? 0 : TM_EPEER_MALFORMED);
        }
    }
}

/* Which of the elements below a field accepts. */
static bool field_takes(char field, char kind)
{
    switch (field) {
    case 'F':
    case 'T':
    case 'G': return kind == 'p';
    case 'I':
    case 'W':
    case 'Y': return kind == 'p' || kind == 'a';
    case 'N': return kind == 'a';
    case 'A':
    case 'R': return kind == 'r';
    case 'U': return kind == 'i' || kind == 'b';
    case 'L': return kind == 'i' || kind == 'b' || kind == '0';
    case 'M': return kind == 'm';
    default: return true; /* carried terms */
    }
}

static void element_of_another_type_is_malformed(void **state)
{
    (void)state;
    const struct {
        char kind;
        element e;
    } others[] = {
        {'p', PID_TO},
        {'a', NAME},
        {'r', REF},
        {'i', ELEMENT("a\2")},
        {'b', UNLINK_ID},
        {'0', ELEMENT("a\0")},
        {'-', ELEMENT("b\377\377\377\377")},
        {'n', ELEMENT("j")},
        {'f', ELEMENT("F\77\360\0\0\0\0\0\0")},
        {'s', ELEMENT("m\0\0\0\1x")},
        {'m', MFA},
        {'2', ELEMENT("h\2w\1mw\1f")},
        {'4', ELEMENT("h\4w\1mw\1fa\1a\1")},
        {'x', ELEMENT("h\3w\1mw\1fw\1a")},
        {'y', ELEMENT("h\3w\1ma\1a\1")},
        {'z', ELEMENT("h\3a\1w\1fa\1")},
        {'l', ELEMENT("l\0\0\0\1a\1j")},
        {'k', ELEMENT("k\0\1a")},
    };
    for (size_t i = 0; i < ROWS; i++) {
        tuple whole = tuple_of(&rows[i]);
        for (size_t at = 0; rows[i].fields[at]; at++)
            for (size_t k = 0; k < sizeof others / sizeof *others; k++) {
                char field = rows[i].fields[at];
                if (rows[i].op == TM_OP_ALTACT_SIG_SEND && field == 'L') continue;
                tuple t = whole;
                t.elements[1 + at] = others[k].e;
                if (field == '*') field = 'T';
                int expected = field_takes(field, others[k].kind) ? 0 : TM_EPEER_MALFORMED;
                assert_int_equal(parse_tuple(&t, rows[i].payload), expected);
            }
    }
}

static void carried_term_that_is_not_well_formed_is_malformed(void **state)
{
    (void)state;
    const element bad[] = {ELEMENT("\0"), ELEMENT("w\2\377\377"), ELEMENT("F\177\360\0\0\0\0\0\0"),
                           ELEMENT("P\0\0\0\1x")};
    for (size_t i = 0; i < ROWS; i++)
        for (size_t at = 0; rows[i].fields[at]; at++)
            for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
                tuple t = tuple_of(&rows[i]);
                t.elements[1 + at] = bad[k];
                assert_int_equal(parse_tuple(&t, rows[i].payload), TM_EPEER_MALFORMED);
            }
}

static void control_message_cut_anywhere_is_malformed(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i++) {
        uint8_t bytes[512];
        tuple t = tuple_of(&rows[i]);
        size_t len = tuple_bytes(&t, bytes);
        for (size_t cut = 0; cut < len; cut++) {
            tm_control control;
            tm_bytes payload;
            assert_int_equal(parse(bytes, cut, true, &control, &payload), TM_EPEER_MALFORMED);
        }
    }
}

static void what_is_no_tuple_with_a_number_is_malformed(void **state)
{
    (void)state;
    static const element bad[] = {
        {.bytes = "j", .len = 1},
        {.bytes = "h\0", .len = 2},
        {.bytes = "h\1w\1x", .len = 5},
        {.bytes = "a\1", .len = 2},
        {.bytes = "h\1n\11\0\1\1\1\1\1\1\1\1\1", .len = 14}, /* 2^64 and more */
        {.bytes = "i\377\377\377\377a\1", .len = 7},
        {.bytes = "", .len = 0},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        tm_control control;
        tm_bytes payload;
        assert_int_equal(parse(bad[i].bytes, bad[i].len, true, &control, &payload),
                         TM_EPEER_MALFORMED);
    }
}

static void unlink_id_zero_is_malformed(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i++) {
        if (rows[i].fields[0] != 'U') continue;
        tuple t = tuple_of(&rows[i]);
        t.elements[1] = element_small(0);
        assert_int_equal(parse_tuple(&t, false), TM_EPEER_MALFORMED);
        t.elements[1] = ELEMENT("n\011\0\0\0\0\0\0\0\0\0\1"); /* 2^64 */
        assert_int_equal(parse_tuple(&t, false), TM_EPEER_MALFORMED);
    }
}

/* -- unknown operations ------------------------------------------------------------------------ */

static void unknown_operation_is_reported_not_refused(void **state)
{
    (void)state;
    const struct {
        element bytes;
        uint64_t op;
    } cases[] = {
        {ELEMENT("h\1a\0"), 0},
        {ELEMENT("h\2a\5j"), 5},
        {ELEMENT("h\2a\46w\0"), 38},
        {ELEMENT("h\3a\377a\1a\2"), 255},
        {ELEMENT("h\2b\0\1\0\0j"), 65536},
        {ELEMENT("h\1b\377\377\377\377"), UINT64_MAX},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tm_control control;
        tm_bytes payload;
        assert_int_equal(parse(cases[i].bytes.bytes, cases[i].bytes.len, true, &control, &payload),
                         TM_CONTROL_UNKNOWN);
        assert_true(control.wire_op == cases[i].op);
        assert_string_equal(tm_opcode_name(control.wire_op), "unknown");
        /* with an element cut or broken it is malformed all the same */
        assert_int_equal(
            parse(cases[i].bytes.bytes, cases[i].bytes.len - 1, true, &control, &payload),
            TM_EPEER_MALFORMED);
    }
}

/* -- operation 37 ------------------------------------------------------------------------------ */

static int parse_altact(element flags, element to, element extra, tm_control *control)
{
    static uint8_t bytes[512];
    tm_bytes payload;
    tuple t = {.elements = {element_small(37), flags, PID_FROM, to, extra}, .count = 5};
    if (!extra.len) t.count = 4;
    size_t len = tuple_bytes(&t, bytes);
    memcpy(bytes + len, "\203w\2ok", 5);
    return parse(bytes, len + 5, true, control, &payload);
}

static void altact_destination_follows_its_flags(void **state)
{
    (void)state;
    tm_control control;
    element none = {0};
    for (uint8_t flags = 0; flags < 64; flags++) {
        element extra = flags & TM_ALTACT_TOKEN ? TOKEN : none;
        enum tm_item_kind kind = flags & TM_ALTACT_ALIAS  ? TM_ITEM_REF
                                 : flags & TM_ALTACT_NAME ? TM_ITEM_NAME
                                                          : TM_ITEM_PID;
        const element tos[] = {PID_TO, NAME, ALIAS};
        for (int k = 0; k < 3; k++) {
            int rc = parse_altact(element_small(flags), tos[k], extra, &control);
            bool fits = (int)kind == TM_ITEM_PID + k;
            assert_int_equal(rc, fits ? 0 : TM_EPEER_MALFORMED);
            if (!fits) continue;
            assert_int_equal(control.to.kind, kind);
            assert_int_equal(control.flags, flags);
            assert_int_equal(control.has_token, (flags & TM_ALTACT_TOKEN) != 0);
        }
    }
    assert_int_equal(parse_altact(element_small(TM_ALTACT_TOKEN), PID_TO, none, &control),
                     TM_EPEER_MALFORMED);
    assert_int_equal(parse_altact(element_small(0), PID_TO, REASON, &control), 0);
    assert_false(control.has_token);
}

/* What follows the tuple must not be taken for its missing element. */
static void altact_without_destination_is_malformed(void **state)
{
    (void)state;
    uint8_t bytes[512];
    tuple t = {.elements = {element_small(37), element_small(0), PID_FROM}, .count = 3};
    size_t len = tuple_bytes(&t, bytes);
    element to = PID_TO;
    memcpy(bytes + len, to.bytes, to.len);
    memcpy(bytes + len + to.len, "\203a\1", 3);
    tm_control control;
    tm_bytes payload;
    size_t total = len + to.len + 3;
    assert_int_equal(parse(bytes, total, true, &control, &payload), TM_EPEER_MALFORMED);
    assert_int_equal(parse(bytes, total, false, &control, &payload), TM_EPEER_MALFORMED);
}

static void altact_flags_may_be_a_large_integer(void **state)
{
    (void)state;
    tm_control control;
    element none = {0};
    element big = ELEMENT("n\014\0\4\0\0\0\0\0\0\200\1\2\3\4");
    assert_int_equal(parse_altact(big, ALIAS, none, &control), 0);
    assert_true(control.flags == UINT64_C(0x8000000000000004));
    big.bytes[2] = 1; /* negative */
    assert_int_equal(parse_altact(big, ALIAS, none, &control), TM_EPEER_MALFORMED);
    element large = ELEMENT("o\0\0\0\012\0\4\0\0\0\0\0\0\0\1\2");
    assert_int_equal(parse_altact(large, ALIAS, none, &control), 0);
    assert_true(control.flags == 4);
    element zero = ELEMENT("n\0\0");
    assert_int_equal(parse_altact(zero, PID_TO, none, &control), 0);
}

/* -- limits and memory ------------------------------------------------------------------------- */

static void carried_term_over_a_limit_is_told_with_the_whole_message(void **state)
{
    (void)state;
    tm_walk_limits limits = TM_WALK_LIMITS_DEFAULT;
    limits.depth_max = 1;
    for (size_t i = 0; i < ROWS; i++) {
        const char *at = strpbrk(rows[i].fields, "CXKO");
        if (!at) continue;
        tuple t = tuple_of(&rows[i]);
        t.elements[1 + at - rows[i].fields] = ELEMENT("h\1h\1h\1h\0");
        uint8_t bytes[512];
        size_t len = tuple_bytes(&t, bytes);
        memcpy(bytes + len, "\203a\1", 3);
        tm_control control;
        tm_bytes payload;
        int rc = tm_control_parse(tm_bytes_of(bytes, len + 3), true, &limits, &test_memory,
                                  &control, &payload, &fault);
        assert_int_equal(rc, TM_EPEER_LIMIT);
        assert_int_equal(control.op, rows[i].canonical);
        assert_int_equal(payload.len, rows[i].payload ? 2 : 0);
    }
}

static void deep_reason_survives_failing_allocations(void **state)
{
    (void)state;
    static uint8_t bytes[8192];
    element from = PID_FROM, to = PID_TO;
    uint8_t *p = tm_store_bytes(bytes, "h\4a\3", 4);
    p = tm_store_bytes(p, from.bytes, from.len);
    p = tm_store_bytes(p, to.bytes, to.len);
    for (int i = 0; i < 1000; i++) p = tm_store_bytes(p, "h\1", 2);
    p = tm_store_bytes(p, "j", 1);
    for (size_t n = 0;; n++) {
        test_alloc memory;
        test_alloc_init(&memory, n);
        tm_control control;
        tm_bytes payload;
        int rc = tm_control_parse(tm_bytes_of(bytes, (size_t)(p - bytes)), true,
                                  &TM_WALK_LIMITS_DEFAULT, &memory.alloc, &control, &payload, NULL);
        assert_int_equal(memory.stats.bytes, 0);
        assert_true(rc == 0 || rc == TM_ENOMEM);
        if (!rc) break;
        assert_true(n < 100);
    }
}

/* -- captured frames --------------------------------------------------------------------------- */

/* A frame with an empty atom cache holds the same terms as a pass-through frame, without
 * versions. */
static void captured_frames_without_cache_references_are_parsed(void **state)
{
    (void)state;
    FILE *file = test_vectors_open("frames.txt");
    char text[4096];
    unsigned op = 0;
    size_t parsed = 0, refused = 0;
    while (fgets(text, sizeof text, file)) {
        if (!strncmp(text, "## ", 3)) op = (unsigned)strtoul(text + 3, NULL, 10);
        if (strncmp(text, "raw ", 4) != 0) continue;
        uint8_t frame[1024];
        size_t len = test_hex(text + 4, frame, sizeof frame);
        assert_int_equal(tm_load_u32(frame), len - 4);
        tm_frame_terms terms;
        assert_int_equal(tm_frame_open(PLAIN, tm_bytes_of(frame + 4, len - 4), &terms, NULL),
                         TM_EPEER_MALFORMED);
        refused++;
        if (memcmp(frame + 4, "\203\104\0", 3) != 0) continue;
        tm_control control;
        tm_bytes payload;
        assert_int_equal(parse(frame + 7, len - 7, false, &control, &payload), 0);
        assert_int_equal(control.wire_op, op);
        parsed++;
    }
    fclose(file);
    assert_int_equal(refused, 43);
    assert_true(parsed >= 16);
}

static void captured_pass_through_frame_is_parsed_and_written_again(void **state)
{
    (void)state;
    FILE *file = test_vectors_open("sent_and_accepted.txt");
    char text[4096];
    size_t seen = 0, refused = 0;
    while (fgets(text, sizeof text, file)) {
        if (*text == '#') continue;
        uint8_t frame[1024];
        size_t len = test_hex(text, frame, sizeof frame);
        tm_frame_terms terms;
        int rc = tm_frame_open(PLAIN, tm_bytes_of(frame + 4, len - 4), &terms, NULL);
        if (rc) {
            refused++;
            continue;
        }
        tm_control control;
        tm_bytes payload;
        assert_int_equal(
            parse(terms.bytes.ptr, terms.bytes.len, terms.versioned, &control, &payload), 0);
        assert_int_equal(control.op, TM_OP_REG_SEND);
        assert_true(tm_bytes_equal(control.to.name, TM_BYTES("echo")));
        assert_int_equal(control.from.pid.id, 103);
        tm_buf out;
        tm_buf_init(&out, &test_memory, 0);
        assert_int_equal(tm_frame_write(&out, PLAIN, &control, payload), 0);
        assert_true(tm_bytes_equal(tm_buf_bytes(&out), tm_bytes_of(frame, len)));
        tm_buf_fini(&out);
        seen++;
    }
    fclose(file);
    assert_int_equal(seen, 1);
    assert_int_equal(refused, 7);
}

/* -- writing ----------------------------------------------------------------------------------- */

#define ALL_FLAGS (PLAIN | TM_DFLAG(ALTACT_SIG))

static const uint64_t flag_sets[] = {
    PLAIN,
    ALL_FLAGS,
    TM_DFLAGS_M25,
    TM_DFLAGS_M26,
    PLAIN & ~TM_DFLAG(SEND_SENDER),
    PLAIN & ~TM_DFLAG(EXIT_PAYLOAD),
    PLAIN & ~TM_DFLAG(ALIAS),
    ALL_FLAGS & ~TM_DFLAG(ALIAS),
    PLAIN & ~TM_DFLAG(DIST_MONITOR_NAME),
    PLAIN & ~TM_DFLAG(SPAWN),
    0,
};

/* What parsing a written message must give: the reason, where it travels as payload, put back. */
static void check_round_trip(uint64_t flags, const tm_control *control)
{
    static const tm_bytes message = {(const uint8_t *)"w\2ok", 4};
    bool takes = tm_control_takes_payload(flags, control);
    bool reason = control->reason.len > 0;
    tm_buf out;
    tm_buf_init(&out, &test_memory, 0);
    int rc = tm_frame_write(&out, flags, control, takes && !reason ? message : (tm_bytes){0});
    if (rc) {
        assert_int_equal(rc, TM_ENOTSUP);
        assert_int_equal(out.len, 0);
        tm_buf_fini(&out);
        return;
    }
    tm_frame_terms terms;
    tm_control again;
    tm_bytes payload;
    assert_int_equal(tm_load_u32(out.ptr), out.len - 4);
    assert_int_equal(tm_frame_open(flags, tm_bytes_of(out.ptr + 4, out.len - 4), &terms, NULL), 0);
    assert_int_equal(parse(terms.bytes.ptr, terms.bytes.len, true, &again, &payload), 0);
    assert_int_equal(again.has_payload, takes);
    assert_true(tm_bytes_equal(payload, !takes   ? (tm_bytes){0}
                                        : reason ? control->reason
                                                 : message));
    if (takes && reason) again.reason = payload;
    tm_control expected = *control; /* aliases may have changed their operation */
    if (expected.op != again.op) {
        assert_true(expected.to.kind == TM_ITEM_REF);
        expected.op = again.op;
        expected.flags = again.flags;
    }
    if (again.wire_op == TM_OP_SEND || again.wire_op == TM_OP_SEND_TT) /* no place for a sender */
        expected.from = (tm_control_item){0};
    assert_true(control_same(&expected, &again, true));
    tm_buf_fini(&out);
}

/* Every operation, from its own parse, towards peers of every kind. */
static void written_message_parses_to_the_same(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i++)
        for (int as_name = 0; as_name < 2; as_name++)
            for (size_t k = 0; k < sizeof flag_sets / sizeof *flag_sets; k++) {
                uint8_t bytes[512];
                tuple t = tuple_of(&rows[i]);
                const char *at = strpbrk(rows[i].fields, "IWY");
                if (as_name && !at) continue;
                if (as_name) t.elements[1 + at - rows[i].fields] = NAME;
                size_t len = tuple_bytes(&t, bytes);
                memcpy(bytes + len, "\203w\3bye", 6);
                tm_control control;
                tm_bytes payload;
                assert_int_equal(parse(bytes, len + 6, true, &control, &payload), 0);
                bool exits = control.op == TM_OP_EXIT || control.op == TM_OP_EXIT2 ||
                             control.op == TM_OP_MONITOR_P_EXIT;
                if (exits && !control.reason.len) control.reason = payload;
                check_round_trip(flag_sets[k], &control);
            }
}

static int wire_op_written(uint64_t flags, const tm_control *control)
{
    tm_buf out;
    tm_buf_init(&out, &test_memory, 0);
    int rc = tm_control_write(&out, flags, control);
    if (!rc) {
        assert_int_equal(out.ptr[0], 'h');
        assert_int_equal(out.ptr[2], 'a');
        rc = out.ptr[3];
    } else {
        assert_int_equal(out.len, 0);
    }
    tm_buf_fini(&out);
    return rc;
}

static tm_pid pid_of(uint32_t id)
{
    return (tm_pid){.node = TM_BYTES("a@b"), .id = id, .creation = 9};
}

static tm_control message_of(enum tm_opcode op)
{
    tm_control control;
    tm_control_init(&control, op);
    control.from = (tm_control_item){.kind = TM_ITEM_PID, .pid = pid_of(1)};
    control.to = (tm_control_item){.kind = TM_ITEM_PID, .pid = pid_of(2)};
    control.ref = (tm_ref){.node = TM_BYTES("a@b"), .creation = 9, .count = 1};
    control.reason = TM_BYTES("w\2ok");
    control.unlink_id = 1;
    control.group_leader = pid_of(3);
    control.module = control.function = TM_BYTES("m");
    control.options = TM_BYTES("j");
    control.result = control.from;
    return control;
}

static void variant_follows_the_flags_of_the_peer(void **state)
{
    (void)state;
    uint64_t ours = PLAIN, none = 0;
    const struct {
        enum tm_opcode op;
        uint64_t flags;
        int wire, wire_token;
    } cases[] = {
        {TM_OP_SEND, ours, 22, 23},
        {TM_OP_SEND, none, 2, 12},
        {TM_OP_EXIT, ours, 24, 25},
        {TM_OP_EXIT, none, 3, 13},
        {TM_OP_EXIT2, ours, 26, 27},
        {TM_OP_EXIT2, none, 8, 18},
        {TM_OP_MONITOR_P_EXIT, ours, 28, 28},
        {TM_OP_LINK, none, 1, 1},
        {TM_OP_MONITOR_P_EXIT, TM_DFLAG(DIST_MONITOR), 21, 21},
        {TM_OP_SPAWN_REQUEST, ours, 29, 30},
        {TM_OP_SPAWN_REPLY, ours, 31, 32},
        {TM_OP_SPAWN_REQUEST, none, TM_ENOTSUP, TM_ENOTSUP},
        {TM_OP_SPAWN_REPLY, none, TM_ENOTSUP, TM_ENOTSUP},
        {TM_OP_MONITOR_P, none, TM_ENOTSUP, TM_ENOTSUP},
        {TM_OP_DEMONITOR_P, none, TM_ENOTSUP, TM_ENOTSUP},
        {TM_OP_MONITOR_P_EXIT, none, TM_ENOTSUP, TM_ENOTSUP},
        {TM_OP_UNLINK_ID, ours, 35, 35},
        {TM_OP_UNLINK_ID_ACK, ours, 36, 36},
        {TM_OP_UNLINK_ID, none, TM_ENOTSUP, TM_ENOTSUP},
        {TM_OP_UNLINK, ours, TM_ENOTSUP, TM_ENOTSUP},
        {TM_OP_GROUP_LEADER, ours, 7, 7},
        {TM_OP_DEMONITOR_P, ours, 20, 20},
        {TM_OP_SEND_SENDER, ours, TM_EUSE_ARG, TM_EUSE_ARG}, /* not a canonical name */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tm_control control = message_of(cases[i].op);
        assert_int_equal(wire_op_written(cases[i].flags, &control), cases[i].wire);
        control.has_token = true;
        control.token = TM_BYTES("h\0");
        assert_int_equal(wire_op_written(cases[i].flags, &control), cases[i].wire_token);
    }
    tm_control anonymous = message_of(TM_OP_SEND);
    anonymous.from.kind = TM_ITEM_NONE;
    assert_int_equal(wire_op_written(ours, &anonymous), 2);
    tm_control by_name = message_of(TM_OP_MONITOR_P);
    by_name.to = (tm_control_item){.kind = TM_ITEM_NAME, .name = TM_BYTES("x")};
    assert_int_equal(wire_op_written(ours, &by_name), 19);
    assert_int_equal(wire_op_written(ours & ~TM_DFLAG(DIST_MONITOR_NAME), &by_name), TM_ENOTSUP);
}

static void alias_goes_out_by_the_operation_that_the_peer_knows(void **state)
{
    (void)state;
    tm_control control = message_of(TM_OP_ALIAS_SEND);
    control.to = (tm_control_item){.kind = TM_ITEM_REF, .ref = control.ref};
    uint64_t alias = TM_DFLAG(ALIAS), altact = TM_DFLAG(ALTACT_SIG);
    assert_int_equal(wire_op_written(alias, &control), 33);
    assert_int_equal(wire_op_written(alias | altact, &control), 33);
    assert_int_equal(wire_op_written(altact, &control), 37);
    assert_int_equal(wire_op_written(0, &control), TM_ENOTSUP);
    control.op = TM_OP_ALTACT_SIG_SEND;
    control.flags = TM_ALTACT_PRIO;
    assert_int_equal(wire_op_written(alias | altact, &control), 37);
    assert_int_equal(wire_op_written(alias, &control), 33);
    control.flags = TM_ALTACT_EXIT;
    assert_int_equal(wire_op_written(alias, &control), TM_ENOTSUP);
    control.flags = 0;
    control.to = control.from;
    assert_int_equal(wire_op_written(alias, &control), TM_ENOTSUP);
    assert_int_equal(wire_op_written(altact, &control), 37);
}

static void message_that_lacks_a_field_is_not_written(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i++) {
        if (rows[i].op != rows[i].canonical || rows[i].op == TM_OP_UNLINK) continue;
        tm_control control;
        tm_control_init(&control, (enum tm_opcode)rows[i].op);
        control.to.kind = rows[i].op == TM_OP_ALIAS_SEND ? TM_ITEM_REF : TM_ITEM_NONE;
        assert_int_equal(wire_op_written(PLAIN & ~TM_DFLAG(EXIT_PAYLOAD), &control), TM_EUSE_ARG);
        control = message_of((enum tm_opcode)rows[i].op);
        control.to.kind = control.from.kind = TM_ITEM_NONE;
        control.group_leader.node.len = 0;
        assert_true(wire_op_written(PLAIN, &control) < 0);
    }
    tm_control exit = message_of(TM_OP_EXIT);
    exit.reason.len = 0;
    assert_int_equal(wire_op_written(0, &exit), TM_EUSE_ARG);
    tm_control traced = message_of(TM_OP_SEND);
    traced.has_token = true;
    assert_int_equal(wire_op_written(0, &traced), TM_EUSE_ARG);
}

static void failed_write_leaves_the_buffer_as_it_was(void **state)
{
    (void)state;
    for (size_t i = 0; i < ROWS; i++) {
        if (rows[i].op != rows[i].canonical || rows[i].op == TM_OP_UNLINK) continue;
        tm_control control = message_of((enum tm_opcode)rows[i].op);
        if (rows[i].op == TM_OP_REG_SEND)
            control.to = (tm_control_item){.kind = TM_ITEM_NAME, .name = TM_BYTES("x")};
        if (rows[i].op == TM_OP_ALIAS_SEND)
            control.to = (tm_control_item){.kind = TM_ITEM_REF, .ref = control.ref};
        for (size_t max = 1;; max++) {
            tm_buf out;
            tm_buf_init(&out, &test_memory, max);
            assert_int_equal(tm_buf_append(&out, "x", 1), 0);
            int rc = tm_control_write(&out, ALL_FLAGS, &control);
            assert_int_equal(out.len > 1, rc == 0);
            tm_buf_fini(&out);
            if (!rc) break;
            assert_int_equal(rc, TM_EUSE_LIMIT);
        }
        test_alloc memory;
        test_alloc_init(&memory, 0);
        tm_buf out;
        tm_buf_init(&out, &memory.alloc, 0);
        assert_int_equal(tm_control_write(&out, ALL_FLAGS, &control), TM_ENOMEM);
    }
}

#define TEST(name) cmocka_unit_test(name)

int main(void)
{
    test_memory = tm_alloc_libc(NULL);
    const struct CMUnitTest tests[] = {
        TEST(every_operation_is_parsed_to_its_canonical_form),
        TEST(operation_without_payload_ignores_what_follows),
        TEST(message_without_payload_or_its_version_is_malformed),
        TEST(monitors_and_spawn_results_may_be_atoms),
        TEST(latin1_atoms_become_utf8),
        TEST(other_encodings_of_tuple_and_number_are_read),
        TEST(dropped_or_added_element_is_malformed),
        TEST(element_of_another_type_is_malformed),
        TEST(carried_term_that_is_not_well_formed_is_malformed),
        TEST(control_message_cut_anywhere_is_malformed),
        TEST(what_is_no_tuple_with_a_number_is_malformed),
        TEST(unlink_id_zero_is_malformed),
        TEST(unknown_operation_is_reported_not_refused),
        TEST(altact_destination_follows_its_flags),
        TEST(altact_without_destination_is_malformed),
        TEST(altact_flags_may_be_a_large_integer),
        TEST(carried_term_over_a_limit_is_told_with_the_whole_message),
        TEST(deep_reason_survives_failing_allocations),
        TEST(captured_frames_without_cache_references_are_parsed),
        TEST(captured_pass_through_frame_is_parsed_and_written_again),
        TEST(written_message_parses_to_the_same),
        TEST(variant_follows_the_flags_of_the_peer),
        TEST(alias_goes_out_by_the_operation_that_the_peer_knows),
        TEST(message_that_lacks_a_field_is_not_written),
        TEST(failed_write_leaves_the_buffer_as_it_was),
    };
    return cmocka_run_group_tests_name("control", tests, NULL, NULL);
}
