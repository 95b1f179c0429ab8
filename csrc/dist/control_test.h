/* Whether two control messages mean the same, for the tests and the fuzz target. */
#ifndef TM_DIST_CONTROL_TEST_H
#define TM_DIST_CONTROL_TEST_H

#include "control.h"

static inline bool control_item_same(const tm_control_item *a, const tm_control_item *b)
{
    if (a->kind != b->kind) return false;
    switch (a->kind) {
    case TM_ITEM_PID: return tm_pid_equal(&a->pid, &b->pid);
    case TM_ITEM_NAME: return tm_bytes_equal(a->name, b->name);
    case TM_ITEM_REF: return tm_ref_equal(&a->ref, &b->ref);
    case TM_ITEM_NONE: break;
    }
    return true;
}

/* reasons: compare the reason as well, which travels inline or as payload. */
static inline bool control_same(const tm_control *a, const tm_control *b, bool reasons)
{
    /* The other flags of 37 follow from the destination and the token. */
    uint64_t altact = TM_ALTACT_PRIO | TM_ALTACT_EXIT;
    uint64_t known = a->op == TM_OP_ALTACT_SIG_SEND ? altact : UINT64_MAX;
    return a->op == b->op && a->has_token == b->has_token &&
           control_item_same(&a->from, &b->from) && control_item_same(&a->to, &b->to) &&
           control_item_same(&a->result, &b->result) && tm_ref_equal(&a->ref, &b->ref) &&
           a->unlink_id == b->unlink_id && (a->flags & known) == (b->flags & known) &&
           tm_bytes_equal(a->token, b->token) &&
           (!reasons || tm_bytes_equal(a->reason, b->reason)) &&
           tm_pid_equal(&a->group_leader, &b->group_leader) &&
           tm_bytes_equal(a->module, b->module) && tm_bytes_equal(a->function, b->function) &&
           a->arity == b->arity && tm_bytes_equal(a->options, b->options);
}

#endif
