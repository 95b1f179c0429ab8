/* Intrusive doubly linked list. A zeroed node is in no list; a head must be initialised. */
#ifndef TM_BASE_LIST_H
#define TM_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

typedef struct tm_list {
    struct tm_list *next;
    struct tm_list *prev;
} tm_list;

#define TM_CONTAINER(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))

static inline void tm_list_init(tm_list *head) { head->next = head->prev = head; }

static inline bool tm_list_empty(const tm_list *head) { return head->next == head; }

static inline bool tm_list_linked(const tm_list *node) { return node->next != NULL; }

static inline void tm_list_push(tm_list *head, tm_list *node)
{
    node->prev = head->prev;
    node->next = head;
    head->prev->next = node;
    head->prev = node;
}

static inline void tm_list_remove(tm_list *node)
{
    if (!node->next) return;
    node->prev->next = node->next;
    node->next->prev = node->prev;
    node->next = node->prev = NULL;
}

static inline tm_list *tm_list_pop(tm_list *head)
{
    if (tm_list_empty(head)) return NULL;
    tm_list *node = head->next;
    tm_list_remove(node);
    return node;
}

/* Safe against removal of the current node. */
#define TM_LIST_EACH(head, node, following)                                                        \
    for (tm_list *node = (head)->next, *following = node->next; node != (head);                    \
         node = following, following = node->next)

#endif
