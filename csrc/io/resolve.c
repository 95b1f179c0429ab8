#include "resolve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>

#include "../base/list.h"

/* Longest host name, bytes: RFC 1035's 253 and room for the NUL. */
#define HOST_BYTES_MAX 256
/* How long destroy waits for a look-up under way, seconds. */
#define JOIN_TIMEOUT_S 1

typedef struct job {
    tm_list link;
    uint64_t request;
    char host[HOST_BYTES_MAX];
} job;

struct tm_resolver {
    tm_alloc alloc;
    tm_resolved resolved;
    void *ctx;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    tm_list jobs;
    size_t count;
    bool running; /* the thread exists */
    bool stopping;
    bool abandoned; /* destroy gave up: the thread frees the resolver */
};

int tm_resolve_literal(const char *host, uint16_t port, tm_io_address *address)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)&address->storage;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&address->storage;
    memset(address, 0, sizeof *address);
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        address->len = sizeof *v4;
    } else if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        address->len = sizeof *v6;
    } else {
        return TM_EUSE_ARG;
    }
    tm_resolve_set_port(address, port);
    return 0;
}

void tm_resolve_set_port(tm_io_address *address, uint16_t port)
{
    if (address->storage.ss_family == AF_INET6)
        ((struct sockaddr_in6 *)&address->storage)->sin6_port = htons(port);
    else
        ((struct sockaddr_in *)&address->storage)->sin_port = htons(port);
}

uint16_t tm_resolve_port(const tm_io_address *address)
{
    if (address->storage.ss_family == AF_INET6)
        return ntohs(((const struct sockaddr_in6 *)&address->storage)->sin6_port);
    return ntohs(((const struct sockaddr_in *)&address->storage)->sin_port);
}

void tm_resolve_format(const tm_io_address *address, char *text, size_t size)
{
    char host[INET6_ADDRSTRLEN] = "?";
    bool v6 = address->storage.ss_family == AF_INET6;
    const void *bytes =
        v6 ? (const void *)&((const struct sockaddr_in6 *)&address->storage)->sin6_addr
           : (const void *)&((const struct sockaddr_in *)&address->storage)->sin_addr;
    inet_ntop(address->storage.ss_family, bytes, host, sizeof host);
    snprintf(text, size, v6 ? "[%s]:%u" : "%s:%u", host, tm_resolve_port(address));
}

static int look_up(const char *host, tm_io_address *address)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    if (getaddrinfo(host, NULL, &hints, &found) != 0 || !found) return TM_ENOCONN;
    int rc = TM_ENOCONN;
    if (found->ai_addrlen <= sizeof address->storage) {
        memset(address, 0, sizeof *address);
        memcpy(&address->storage, found->ai_addr, found->ai_addrlen);
        address->len = found->ai_addrlen;
        rc = 0;
    }
    freeaddrinfo(found);
    return rc;
}

static void resolver_free(tm_resolver *resolver)
{
    for (tm_list *node; (node = tm_list_pop(&resolver->jobs));)
        tm_alloc_free(&resolver->alloc, TM_CONTAINER(node, job, link), sizeof(job));
    pthread_mutex_destroy(&resolver->lock);
    pthread_cond_destroy(&resolver->changed);
    tm_alloc alloc = resolver->alloc;
    tm_alloc_free(&alloc, resolver, sizeof *resolver);
}

static void *resolver_run(void *arg)
{
    tm_resolver *resolver = arg;
    pthread_mutex_lock(&resolver->lock);
    while (!resolver->stopping) {
        tm_list *node = tm_list_pop(&resolver->jobs);
        if (!node) {
            pthread_cond_wait(&resolver->changed, &resolver->lock);
            continue;
        }
        resolver->count--;
        job *next = TM_CONTAINER(node, job, link);
        pthread_mutex_unlock(&resolver->lock);
        tm_io_address address;
        int rc = look_up(next->host, &address);
        pthread_mutex_lock(&resolver->lock);
        /* Under the lock: destroy must not return while a callback runs. */
        if (!resolver->stopping) resolver->resolved(resolver->ctx, next->request, rc, &address);
        tm_alloc_free(&resolver->alloc, next, sizeof *next);
    }
    bool abandoned = resolver->abandoned;
    resolver->running = false;
    pthread_cond_broadcast(&resolver->changed);
    pthread_mutex_unlock(&resolver->lock);
    if (abandoned) resolver_free(resolver);
    return NULL;
}

int tm_resolver_create(const tm_alloc *alloc, tm_resolved resolved, void *ctx, tm_resolver **out)
{
    tm_resolver *resolver = tm_alloc_zero(alloc, sizeof *resolver);
    if (!resolver) return TM_ENOMEM;
    resolver->alloc = *alloc;
    resolver->resolved = resolved;
    resolver->ctx = ctx;
    tm_list_init(&resolver->jobs);
    pthread_mutex_init(&resolver->lock, NULL);
    pthread_cond_init(&resolver->changed, NULL);
    *out = resolver;
    return 0;
}

static int resolver_start(tm_resolver *resolver)
{
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&thread, NULL, resolver_run, resolver);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc) return -rc;
    pthread_detach(thread);
    resolver->running = true;
    return 0;
}

int tm_resolver_ask(tm_resolver *resolver, const char *host, uint64_t request)
{
    size_t len = strlen(host);
    if (len >= HOST_BYTES_MAX) return TM_EUSE_ARG;
    pthread_mutex_lock(&resolver->lock);
    int rc = resolver->count < TM_RESOLVE_COUNT_MAX ? 0 : TM_EBUSY;
    job *next = rc ? NULL : tm_alloc_zero(&resolver->alloc, sizeof *next);
    if (!rc && !next) rc = TM_ENOMEM;
    if (!rc && !resolver->running) rc = resolver_start(resolver);
    if (rc) {
        tm_alloc_free(&resolver->alloc, next, sizeof *next);
    } else {
        next->request = request;
        memcpy(next->host, host, len + 1);
        tm_list_push(&resolver->jobs, &next->link);
        resolver->count++;
        pthread_cond_broadcast(&resolver->changed);
    }
    pthread_mutex_unlock(&resolver->lock);
    return rc;
}

void tm_resolver_destroy(tm_resolver *resolver)
{
    if (!resolver) return;
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += JOIN_TIMEOUT_S;
    pthread_mutex_lock(&resolver->lock);
    resolver->stopping = true;
    pthread_cond_broadcast(&resolver->changed);
    int rc = 0;
    while (resolver->running && rc == 0)
        rc = pthread_cond_timedwait(&resolver->changed, &resolver->lock, &deadline);
    bool left_behind = resolver->running;
    resolver->abandoned = left_behind;
    pthread_mutex_unlock(&resolver->lock);
    if (!left_behind) resolver_free(resolver);
}
