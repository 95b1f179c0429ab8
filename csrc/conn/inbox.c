#include "inbox.h"

#include <assert.h>

#include "../base/check.h"
#include "../io/notify.h"

typedef struct block {
    tm_list link;
    size_t size; /* allocated, bytes */
    size_t used; /* offset of the first free byte of data */
    size_t read;
    uint8_t data[];
} block;

typedef struct record {
    size_t size;    /* with its bytes, rounded up to RECORD_ALIGN */
    tm_slab memory; /* of the term, or none */
    tm_source *source;
    tumen_event event;
    uint8_t bytes[];
} record;

#define RECORD_ALIGN (sizeof(void *))
static_assert(TM_INBOX_BLOCK_BYTES > 4 * sizeof(record), "a block holds several events");

struct tumen_batch {
    tm_inbox *inbox;
    tm_list blocks;
    record *current;
};

tm_source *tm_source_create(const tm_alloc *alloc, uint64_t epoch)
{
    tm_source *source = tm_alloc_zero(alloc, sizeof *source);
    if (!source) return NULL;
    source->refs = 1;
    source->epoch = epoch;
    source->alloc = alloc;
    return source;
}

void tm_source_unref(tm_source *source)
{
    if (!source) return;
    if (__atomic_sub_fetch(&source->refs, 1, __ATOMIC_ACQ_REL) == 0)
        tm_alloc_free(source->alloc, source, sizeof *source);
}

int tm_inbox_init(tm_inbox *inbox, const tm_alloc *alloc, uint64_t *wakeups)
{
    memset(inbox, 0, sizeof *inbox);
    inbox->alloc = alloc;
    inbox->wakeups = wakeups;
    tm_list_init(&inbox->blocks);
    inbox->fd = tm_notify_create();
    if (inbox->fd < 0) return inbox->fd;
    pthread_mutex_init(&inbox->lock, NULL);
    return 0;
}

void tm_inbox_fini(tm_inbox *inbox)
{
    tumen_batch_free(tm_inbox_take(inbox));
    tm_notify_close(inbox->fd);
    pthread_mutex_destroy(&inbox->lock);
}

/* Copies a span behind the record and lets it point there. */
static uint8_t *span_move(tumen_bytes *span, uint8_t *at)
{
    if (span->len) memcpy(at, span->ptr, span->len);
    span->ptr = at;
    return at + span->len;
}

static size_t record_size(const tumen_event *event, size_t term_len)
{
    size_t size = sizeof(record) + event->from.node.len + event->ref.node.len + event->node.len +
                  event->name.len + event->text.len + term_len;
    return (size + RECORD_ALIGN - 1) & ~(RECORD_ALIGN - 1);
}

static size_t term_growth(const tm_inbox_term *term) { return term->refs ? term->refs->growth : 0; }

/* Whether a term stays in the memory that it lies in. */
static bool term_stays(const tumen_event *event, const tm_inbox_term *term)
{
    const tm_slab *memory = term->memory;
    if (!memory || !memory->ptr) return false;
    size_t left = (size_t)(event->term.ptr - memory->ptr);
    size_t len = event->term.len + term_growth(term);
    return left <= memory->size && left >= term_growth(term) && len >= TM_INBOX_TAKE_BYTES_MIN &&
           len >= memory->size / 2;
}

/* Writes a term to its place: at, or left of where it is, in the memory that is taken. */
static void term_move(record *rec, const tm_inbox_term *term, bool stays, uint8_t *at)
{
    tm_bytes bytes = tm_bytes_of(rec->event.term.ptr, rec->event.term.len);
    size_t growth = term_growth(term);
    if (stays) {
        at = term->memory->ptr + (bytes.ptr - term->memory->ptr) - growth;
        rec->memory = tm_slab_take(term->memory);
    }
    rec->event.term = (tumen_bytes){at, bytes.len + growth};
    if (term->refs && term->refs->count)
        tm_etf_expand_to(at, bytes, term->atoms, term->refs);
    else if (!stays && bytes.len)
        memcpy(at, bytes.ptr, bytes.len);
}

static block *block_create(const tm_alloc *alloc, size_t total)
{
    block *fresh = tm_alloc_get(alloc, total);
    if (fresh) *fresh = (block){.size = total};
    return fresh;
}

/* The tail block with room for size bytes; under the lock. */
static block *inbox_block(tm_inbox *inbox, size_t size)
{
    if (!tm_list_empty(&inbox->blocks)) {
        block *tail = TM_CONTAINER(inbox->blocks.prev, block, link);
        if (tail->size - sizeof *tail - tail->used >= size) return tail;
    }
    size_t total = sizeof(block) + size;
    if (total < TM_INBOX_BLOCK_BYTES) total = TM_INBOX_BLOCK_BYTES;
    block *fresh = block_create(inbox->alloc, total);
    if (fresh) tm_list_push(&inbox->blocks, &fresh->link);
    return fresh;
}

/* Puts a record of so many bytes into a block that has room for it. */
static record *record_put(block *into, size_t size, const tumen_event *event,
                          const tm_inbox_term *term, bool stays)
{
    record *rec = (record *)(void *)(into->data + into->used);
    into->used += size;
    *rec = (record){.size = size, .event = *event};
    uint8_t *at = rec->bytes;
    at = span_move(&rec->event.from.node, at);
    at = span_move(&rec->event.ref.node, at);
    at = span_move(&rec->event.node, at);
    at = span_move(&rec->event.name, at);
    at = span_move(&rec->event.text, at);
    /* Last: the other spans may lie where the term goes. */
    term_move(rec, term, stays, at);
    return rec;
}

/* Whether putting it moves so many bytes that others must not wait for it at the lock: then it gets
 * a block of its own, which is filled before. */
static bool put_is_long(const tumen_event *event, const tm_inbox_term *term, bool stays)
{
    bool moves = !stays || (term->refs && term->refs->count);
    return moves && event->term.len + term_growth(term) >= TM_INBOX_BLOCK_BYTES;
}

/* Under the lock: whether the consumer is to be signalled afterwards. */
static bool inbox_disarm(tm_inbox *inbox)
{
    if (!inbox->armed) return false;
    inbox->armed = 0;
    __atomic_add_fetch(&inbox->unread, 1, __ATOMIC_RELEASE);
    __atomic_add_fetch(inbox->wakeups, 1, __ATOMIC_RELAXED);
    return true;
}

int tm_inbox_put_term(tm_inbox *inbox, const tumen_event *event, const tm_inbox_term *term,
                      tm_source *source, int later)
{
    bool stays = term_stays(event, term);
    size_t size = record_size(event, stays ? 0 : event->term.len + term_growth(term));
    block *into = NULL;
    record *rec = NULL;
    if (put_is_long(event, term, stays)) {
        into = block_create(inbox->alloc, sizeof(block) + size);
        if (!into) return TM_ENOMEM;
        rec = record_put(into, size, event, term, stays);
    }
    pthread_mutex_lock(&inbox->lock);
    if (into)
        tm_list_push(&inbox->blocks, &into->link);
    else
        into = inbox_block(inbox, size);
    if (!into) {
        pthread_mutex_unlock(&inbox->lock);
        return TM_ENOMEM;
    }
    if (!rec) rec = record_put(into, size, event, term, stays);
    rec->source = source;
    size_t held = size + rec->memory.size;
    if (source) {
        __atomic_add_fetch(&source->refs, 1, __ATOMIC_RELAXED);
        __atomic_add_fetch(&source->bytes, held, __ATOMIC_RELAXED);
    }
    __atomic_add_fetch(&inbox->bytes, held, __ATOMIC_RELAXED);
    bool wake = !later && inbox_disarm(inbox);
    pthread_mutex_unlock(&inbox->lock);
    if (wake) tm_notify_signal(inbox->fd);
    return 0;
}

int tm_inbox_put(tm_inbox *inbox, const tumen_event *event, tm_source *source, int later)
{
    return tm_inbox_put_term(inbox, event, &(tm_inbox_term){0}, source, later);
}

int tm_inbox_signal(tm_inbox *inbox)
{
    pthread_mutex_lock(&inbox->lock);
    bool wake = !tm_list_empty(&inbox->blocks) && inbox_disarm(inbox);
    pthread_mutex_unlock(&inbox->lock);
    if (wake) tm_notify_signal(inbox->fd);
    return wake;
}

int tm_inbox_arm(tm_inbox *inbox)
{
    /* Who has counted a signal may not have sent it yet: then it stays counted. */
    if (__atomic_load_n(&inbox->unread, __ATOMIC_ACQUIRE))
        __atomic_sub_fetch(&inbox->unread, tm_notify_clear(inbox->fd), __ATOMIC_RELAXED);
    pthread_mutex_lock(&inbox->lock);
    int waiting = !tm_list_empty(&inbox->blocks);
    inbox->armed = !waiting;
    pthread_mutex_unlock(&inbox->lock);
    return waiting;
}

uint64_t tm_inbox_bytes(const tm_inbox *inbox)
{
    return __atomic_load_n(&inbox->bytes, __ATOMIC_RELAXED);
}

struct tumen_batch *tm_inbox_take(tm_inbox *inbox)
{
    pthread_mutex_lock(&inbox->lock);
    inbox->armed = 0;
    int empty = tm_list_empty(&inbox->blocks);
    tumen_batch *batch = empty ? NULL : tm_alloc_zero(inbox->alloc, sizeof *batch);
    if (batch) {
        batch->inbox = inbox;
        tm_list_init(&batch->blocks);
        for (tm_list *node; (node = tm_list_pop(&inbox->blocks));)
            tm_list_push(&batch->blocks, node);
    }
    pthread_mutex_unlock(&inbox->lock);
    return batch;
}

/* So many bytes of an event wait for the consumer no more. */
static void record_uncount(tumen_batch *batch, record *rec, size_t size)
{
    __atomic_sub_fetch(&batch->inbox->bytes, size, __ATOMIC_RELAXED);
    if (rec->source) __atomic_sub_fetch(&rec->source->bytes, size, __ATOMIC_RELAXED);
}

/* The event that was handed out last is done with. */
static void batch_settle(tumen_batch *batch)
{
    record *rec = batch->current;
    if (!rec) return;
    batch->current = NULL;
    record_uncount(batch, rec, rec->size + rec->memory.size);
    tm_source_unref(rec->source);
    tm_slab_free(batch->inbox->alloc, &rec->memory);
}

const tumen_event *tumen_batch_next(tumen_batch *batch)
{
    batch_settle(batch);
    while (!tm_list_empty(&batch->blocks)) {
        block *head = TM_CONTAINER(batch->blocks.next, block, link);
        if (head->read < head->used) {
            record *rec = (record *)(void *)(head->data + head->read);
            head->read += rec->size;
            batch->current = rec;
            return &rec->event;
        }
        tm_list_remove(&head->link);
        tm_alloc_free(batch->inbox->alloc, head, head->size);
    }
    return NULL;
}

tumen_batch *tumen_batch_keep(tumen_batch *batch)
{
    record *rec = batch->current;
    TM_ASSERT(rec);
    const tm_alloc *alloc = batch->inbox->alloc;
    tumen_batch *kept = tm_alloc_zero(alloc, sizeof *kept);
    if (!kept) return NULL;
    block *into = TM_CONTAINER(batch->blocks.next, block, link);
    if (into->size == sizeof *into + rec->size) {
        /* Its block was made for it, as that of every large one that was copied. */
        tm_list_remove(&into->link);
        into->read = 0;
    } else {
        into = block_create(alloc, sizeof(block) + rec->size);
        if (!into) {
            tm_alloc_free(alloc, kept, sizeof *kept);
            return NULL;
        }
        bool stays = rec->memory.ptr != NULL;
        record *moved = record_put(into, rec->size, &rec->event,
                                   &(tm_inbox_term){.memory = &rec->memory}, stays);
        moved->source = rec->source;
    }
    kept->inbox = batch->inbox;
    tm_list_init(&kept->blocks);
    tm_list_push(&kept->blocks, &into->link);
    batch->current = NULL;
    return kept;
}

void *tumen_batch_detach(tumen_batch *batch)
{
    record *rec = batch->current;
    TM_ASSERT(rec);
    const tm_alloc *alloc = batch->inbox->alloc;
    if (!rec->memory.ptr || !alloc->disown) return NULL;
    tm_slab memory = tm_slab_take(&rec->memory);
    record_uncount(batch, rec, memory.size);
    alloc->disown(alloc->ctx, memory.size);
    return memory.ptr;
}

void tumen_memory_free(void *memory)
{
    tm_alloc libc = tm_alloc_libc(NULL); /* its size is counted nowhere */
    tm_alloc_free(&libc, memory, 0);
}

void tumen_batch_free(tumen_batch *batch)
{
    if (!batch) return;
    while (tumen_batch_next(batch)) {
    }
    tm_alloc_free(batch->inbox->alloc, batch, sizeof *batch);
}
