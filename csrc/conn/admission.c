/* Who may connect, and under which name: the allowed list, and the names that we give to peers which
 * ask for one (NAME_ME). Under the node's lock, all but tumen_node_allow. And the challenges of the
 * handshakes under way, by number: a cluster that comes back at once asks for each of them. */
#include "../base/check.h"
#include "../dist/handshake.h"
#include "node.h"

/* Digits of a name that we make up: 64 random bits in base 36, as OTP does. */
#define GIVEN_DIGITS 13

/* -- the allowed list ---------------------------------------------------------------------------------- */

/* An entry lives behind its own span: the map's key. */
typedef struct allowed {
    tm_bytes text;
} allowed;

/* "node@host", "host" or "name@": is it one that a node's name can match? */
static bool allowed_valid(tm_bytes text)
{
    uint8_t whole[TM_NODE_NAME_BYTES_MAX + 2], *at = whole;
    if (!text.len || text.len + 2 > sizeof whole) return false;
    const uint8_t *mark = memchr(text.ptr, '@', text.len);
    if (!mark) at = tm_store_bytes(at, "n@", 2);
    at = tm_store_bytes(at, text.ptr, text.len);
    if (mark == text.ptr + text.len - 1) at = tm_store_bytes(at, "h", 1);
    return tm_node_name_valid(tm_bytes_of(whole, (size_t)(at - whole)));
}

static int allowed_add(tumen_node *node, tm_bytes text)
{
    if (!allowed_valid(text)) return TM_EUSE_NAME;
    if (tm_map_get(&node->allowed, text)) return 0;
    if (node->allowed.count >= TM_ALLOWED_COUNT_MAX) return TM_EUSE_LIMIT;
    allowed *entry = tm_alloc_get(&node->engine->alloc, sizeof *entry + text.len);
    if (!entry) return TM_ENOMEM;
    memcpy(entry + 1, text.ptr, text.len);
    entry->text = tm_bytes_of(entry + 1, text.len);
    int rc = tm_map_set(&node->allowed, entry->text, entry);
    if (rc) tm_alloc_free(&node->engine->alloc, entry, sizeof *entry + text.len);
    return rc;
}

int tm_node_allow_list(tumen_node *node, const char *list)
{
    while (*list) {
        size_t len = strcspn(list, " ");
        int rc = len ? allowed_add(node, tm_bytes_of(list, len)) : 0;
        if (rc) return rc;
        list += len + (list[len] == ' ');
    }
    return 0;
}

int tumen_node_allow(tumen_node *node, tumen_bytes entry)
{
    if (node->forked) return TM_EFORKED;
    tm_node_lock(node);
    int rc = allowed_add(node, tm_private(entry));
    tm_node_unlock(node);
    return rc;
}

bool tm_node_allows(const tumen_node *node, tm_bytes name)
{
    if (!node->allowed.count || tm_map_get(&node->allowed, name)) return true;
    const uint8_t *mark = memchr(name.ptr, '@', name.len);
    if (!mark) return false; /* a peer that asks for a name has said its host only */
    size_t before = (size_t)(mark - name.ptr);
    return tm_map_get(&node->allowed, tm_bytes_of(name.ptr, before + 1)) ||
           tm_map_get(&node->allowed, tm_bytes_of(mark + 1, name.len - before - 1));
}

/* -- names for others ------------------------------------------------------------------------------------ */

/* 0 is reserved and 1 to 3 belong to old port mappers. */
#define CREATION_MIN 4

static size_t given_size(const tm_given *given) { return sizeof *given + given->name.len; }

static tm_given *given_create(tumen_node *node, tm_bytes host)
{
    static const char DIGITS[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
    size_t len = GIVEN_DIGITS + 1 + host.len;
    tm_given *given = tm_alloc_zero(&node->engine->alloc, sizeof *given + len);
    if (!given) return NULL;
    uint8_t *text = (uint8_t *)(given + 1);
    given->name = tm_bytes_of(text, len);
    text[GIVEN_DIGITS] = '@';
    tm_store_bytes(text + GIVEN_DIGITS + 1, host.ptr, host.len);
    do {
        uint64_t number = tm_engine_random_u64(node->engine);
        for (size_t i = GIVEN_DIGITS; i--; number /= 36) text[i] = (uint8_t)DIGITS[number % 36];
    } while (tm_node_find_peer(node, given->name));
    given->creation = (uint32_t)tm_engine_random_u64(node->engine) | CREATION_MIN;
    return given;
}

tm_given *tm_node_give_name(tumen_node *node, tm_bytes host)
{
    if (GIVEN_DIGITS + 1 + host.len > TM_NODE_NAME_BYTES_MAX) return NULL;
    TM_LIST_EACH (&node->given, link, following) {
        tm_given *given = TM_CONTAINER(link, tm_given, link);
        tm_bytes its_host =
            tm_bytes_of(given->name.ptr + GIVEN_DIGITS + 1, given->name.len - GIVEN_DIGITS - 1);
        if (!tm_bytes_equal(its_host, host) || tm_node_find_peer(node, given->name)) continue;
        tm_list_remove(link);
        node->given_count--;
        return given;
    }
    return given_create(node, host);
}

void tm_node_return_name(tumen_node *node, tm_given *given)
{
    /* Whoever gets it next is another node: pids of this one must not mean it. */
    if (++given->creation < CREATION_MIN) given->creation = CREATION_MIN;
    tm_list_push(&node->given, &given->link);
    if (++node->given_count <= TM_GIVEN_NAMES_COUNT_MAX) return;
    tm_given *oldest = TM_CONTAINER(tm_list_pop(&node->given), tm_given, link);
    node->given_count--;
    tm_alloc_free(&node->engine->alloc, oldest, given_size(oldest));
}

/* -- challenges (engine) ----------------------------------------------------------------------- */

static tm_bytes challenge_key(const uint32_t *challenge)
{
    return tm_bytes_of(challenge, sizeof *challenge);
}

uint32_t tm_node_challenge_draw(const tumen_node *node)
{
    uint32_t challenge;
    do {
        challenge = (uint32_t)tm_engine_random_u64(node->engine);
    } while (tm_map_get(&node->challenges, challenge_key(&challenge)));
    return challenge;
}

int tm_node_challenge_add(tumen_node *node, tm_handshake *hs)
{
    TM_DCHECK(!tm_map_get(&node->challenges, challenge_key(&hs->challenge)));
    return tm_map_set(&node->challenges, challenge_key(&hs->challenge), hs);
}

void tm_node_challenge_forget(tumen_node *node, const tm_handshake *hs)
{
    tm_map *map = &node->challenges;
    /* Of one that was never added, the challenge may be another's. */
    if (tm_map_get(map, challenge_key(&hs->challenge)) != hs) return;
    tm_map_remove(map, challenge_key(&hs->challenge));
    if (!map->count) tm_map_fini(map); /* nothing stays of a rush */
}

bool tm_node_challenge_known(const tumen_node *node, const tm_handshake *hs)
{
    const tm_handshake *ours = tm_map_get(&node->challenges, challenge_key(&hs->peer_challenge));
    return ours && ours != hs;
}

/* -- life -------------------------------------------------------------------------------------- */

void tm_node_admission_init(tumen_node *node)
{
    tm_map_init(&node->allowed, &node->engine->alloc, node->engine->seed);
    tm_list_init(&node->given);
}

void tm_node_admission_fini(tumen_node *node)
{
    if (!node->given.next) return; /* the node never began */
    const tm_alloc *alloc = &node->engine->alloc;
    size_t position = 0;
    for (allowed *entry; (entry = tm_map_next(&node->allowed, &position));)
        tm_alloc_free(alloc, entry, sizeof *entry + entry->text.len);
    tm_map_fini(&node->allowed);
    TM_LIST_EACH (&node->given, link, following) {
        tm_given *given = TM_CONTAINER(link, tm_given, link);
        tm_alloc_free(alloc, given, given_size(given));
    }
}
