/* The C node of erl_interface in the place of a contender: bench/wire.py.
 *
 *     ei_peer NAME@HOST COOKIE
 *
 * One command a line on standard input, one JSON object a line on standard output, in the words of
 * tumen_bench.erl. It does what a careful user of the library would do: buffers are kept, small
 * messages are encoded anew, and each goes out by the library's own send.
 */
#include <ei.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Milliseconds without a message, after which a test has failed. */
#define ANSWER_MS 60000
/* Messages between two looks at the clock; of at least LARGE bytes: one. */
#define STRIDE 64
#define LARGE 65536
#define CALLERS_MAX 1024
#define TIMES_MAX (1 << 20)

static ei_cnode own;
static int hub = -1;
static ei_x_buff out, in;
static erlang_msg head;

static void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    printf("{\"error\":\"");
    vprintf(format, arguments);
    printf("\"}\n");
    fflush(stdout);
    va_end(arguments);
    exit(1);
}

static void check(int done, const char *what)
{
    if (done < 0) {
        fail("%s: %s", what, strerror(erl_errno));
    }
}

static long long now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* -- messages ---------------------------------------------------------------------------------- */

/* {Word, Number, Payload} into `out`. */
static void put_message(const char *word, long number, const char *payload, int size)
{
    out.index = 0;
    ei_x_encode_version(&out);
    ei_x_encode_tuple_header(&out, 3);
    ei_x_encode_atom(&out, word);
    ei_x_encode_long(&out, number);
    ei_x_encode_binary(&out, payload, size);
}

/* {Word, Pid} into `out`. */
static void put_pair(const char *word)
{
    out.index = 0;
    ei_x_encode_version(&out);
    ei_x_encode_tuple_header(&out, 2);
    ei_x_encode_atom(&out, word);
    ei_x_encode_pid(&out, ei_self(&own));
}

static void send_to(erlang_pid *to) { check(ei_send(hub, to, out.buff, out.index), "send"); }

static void send_named(char *name)
{
    check(ei_reg_send(&own, hub, name, out.buff, out.index), "reg_send");
}

/* The next message into `in`, read up to its first element; its size and that atom's text. Ticks
 * are answered by the library. */
static int get_message(char *word)
{
    int version, arity, received;
    do {
        in.index = 0;
        received = ei_xreceive_msg_tmo(hub, &head, &in, ANSWER_MS);
        check(received, "receive");
    } while (received == ERL_TICK);
    in.index = 0;
    if (ei_decode_version(in.buff, &in.index, &version) < 0 ||
        ei_decode_tuple_header(in.buff, &in.index, &arity) < 0) {
        fail("not a tuple");
    }
    word[0] = 0;
    int at = in.index;
    if (ei_decode_atom(in.buff, &at, word) == 0) {
        in.index = at;
    }
    return arity;
}

static void expect(const char *wanted)
{
    char word[MAXATOMLEN];
    get_message(word);
    if (strcmp(word, wanted) != 0) {
        fail("%s where %s should come", word, wanted);
    }
}

static long get_long(void)
{
    long value;
    if (ei_decode_long(in.buff, &in.index, &value) < 0) {
        fail("no number");
    }
    return value;
}

static erlang_pid get_pid(void)
{
    erlang_pid pid;
    if (ei_decode_pid(in.buff, &in.index, &pid) < 0) {
        fail("no pid");
    }
    return pid;
}

/* The binary at hand, in place: what a user would read without a copy of his own. */
static const char *get_binary(long *size)
{
    int type, length;
    if (ei_get_type(in.buff, &in.index, &type, &length) < 0 || type != ERL_BINARY_EXT) {
        fail("no binary");
    }
    const char *data = in.buff + in.index + 5;
    in.index += 5 + length;
    *size = length;
    return data;
}

/* -- the tests that it drives ------------------------------------------------------------------ */

static void test_send(int size, long ms)
{
    char *payload = malloc((size_t)size);
    memset(payload, 'x', (size_t)size);
    put_pair("start");
    send_named("bench_sink");
    expect("started");
    erlang_pid sink = get_pid();
    long long start = now_ns(), deadline = start + ms * 1000000LL;
    int stride = size >= LARGE ? 1 : STRIDE;
    long count = 0;
    while (now_ns() < deadline) {
        for (int i = 0; i < stride; i++, count++) {
            put_message("msg", count, payload, size);
            send_to(&sink);
        }
    }
    put_pair("finish");
    send_to(&sink);
    expect("report");
    long received = get_long(), bytes = get_long(), wrong = get_long();
    long long elapsed = now_ns() - start;
    free(payload);
    if (received != count || bytes != count * size || wrong != 0) {
        fail("sent %ld, and the sink says %ld, %ld bytes, %ld wrong", count, received, bytes,
             wrong);
    }
    printf("{\"count\":%ld,\"elapsed_ns\":%lld}\n", count, elapsed);
}

static void put_echo(long number, const char *payload, int size)
{
    out.index = 0;
    ei_x_encode_version(&out);
    ei_x_encode_tuple_header(&out, 4);
    ei_x_encode_atom(&out, "echo");
    ei_x_encode_pid(&out, ei_self(&own));
    ei_x_encode_long(&out, number);
    ei_x_encode_binary(&out, payload, size);
}

static int by_time(const void *a, const void *b)
{
    long long left = *(const long long *)a, right = *(const long long *)b;
    return (left > right) - (left < right);
}

static void test_pingpong(int size, long ms)
{
    static long long times[TIMES_MAX];
    char *payload = malloc((size_t)size);
    memset(payload, 'x', (size_t)size);
    put_echo(-1, payload, size);
    send_named("bench_echo");
    expect("echoed");
    erlang_pid echo = get_pid();
    long long start = now_ns(), deadline = start + ms * 1000000LL, now = start;
    long count = 0;
    while (now < deadline && count < TIMES_MAX) {
        long long sent = now_ns();
        put_echo(count, payload, size);
        send_to(&echo);
        expect("echoed");
        get_pid();
        long number = get_long(), length;
        const char *back = get_binary(&length);
        if (number != count || length != size || memcmp(back, payload, (size_t)size) != 0) {
            fail("number %ld came back as %ld", count, number);
        }
        now = now_ns();
        times[count++] = now - sent;
    }
    free(payload);
    qsort(times, (size_t)count, sizeof times[0], by_time);
    printf("{\"count\":%ld,\"elapsed_ns\":%lld,\"p50_ns\":%lld,\"p99_ns\":%lld}\n", count,
           now - start, times[(count * 50 + 99) / 100 - 1], times[(count * 99 + 99) / 100 - 1]);
}

static erlang_ref refs[CALLERS_MAX];
static long asked[CALLERS_MAX];

/* {'$gen_call', {Pid, Ref}, {add, Number, 1}} */
static void call(int caller)
{
    out.index = 0;
    ei_x_encode_version(&out);
    ei_x_encode_tuple_header(&out, 3);
    ei_x_encode_atom(&out, "$gen_call");
    ei_x_encode_tuple_header(&out, 2);
    ei_x_encode_pid(&out, ei_self(&own));
    ei_x_encode_ref(&out, &refs[caller]);
    ei_x_encode_tuple_header(&out, 3);
    ei_x_encode_atom(&out, "add");
    ei_x_encode_long(&out, asked[caller]);
    ei_x_encode_long(&out, 1);
    send_named("bench_server");
}

/* As many calls under way as callers: no thread for each, the bound of a C program. */
static void test_call(int callers, long ms)
{
    if (callers > CALLERS_MAX) {
        fail("more than %d callers", CALLERS_MAX);
    }
    long long start = now_ns(), deadline = start + ms * 1000000LL;
    for (int i = 0; i < callers; i++) {
        check(ei_make_ref(&own, &refs[i]), "make_ref");
        /* Which caller it is stands in a word of the reference. */
        refs[i].n[1] = (unsigned)i;
        asked[i] = 0;
        call(i);
    }
    long count = 0;
    int ending = 0;
    for (int running = callers; running > 0;) {
        char word[MAXATOMLEN];
        erlang_ref ref;
        get_message(word);
        if (ei_decode_ref(in.buff, &in.index, &ref) < 0 || ref.n[1] >= (unsigned)callers) {
            fail("not a reply");
        }
        unsigned caller = ref.n[1];
        long reply = get_long();
        if (reply != asked[caller] + 1) {
            fail("%ld + 1 is %ld over there", asked[caller], reply);
        }
        count++;
        asked[caller]++;
        ending = ending || (count % 16 == 0 && now_ns() >= deadline);
        if (ending) {
            running--;
        } else {
            call((int)caller);
        }
    }
    printf("{\"count\":%ld,\"elapsed_ns\":%lld}\n", count, now_ns() - start);
}

/* -- the tests that it answers ----------------------------------------------------------------- */

static long sink_count, sink_bytes, sink_wrong;
/* Between `start` and `finish` nothing but messages can come: it reads without asking first. */
static int sinking;

static void answer(void)
{
    char word[MAXATOMLEN];
    get_message(word);
    if (strcmp(word, "msg") == 0) {
        long size, place = get_long();
        get_binary(&size);
        sink_wrong += place != sink_count;
        sink_count = place + 1;
        sink_bytes += size;
    } else if (strcmp(word, "echo") == 0) {
        erlang_pid from = get_pid();
        int number = in.index;
        ei_skip_term(in.buff, &in.index);
        ei_skip_term(in.buff, &in.index);
        out.index = 0;
        ei_x_encode_version(&out);
        ei_x_encode_tuple_header(&out, 4);
        ei_x_encode_atom(&out, "echoed");
        ei_x_encode_pid(&out, ei_self(&own));
        ei_x_append_buf(&out, in.buff + number, in.index - number);
        send_to(&from);
    } else if (strcmp(word, "start") == 0) {
        erlang_pid from = get_pid();
        sink_count = sink_bytes = sink_wrong = 0;
        sinking = 1;
        put_pair("started");
        send_to(&from);
    } else if (strcmp(word, "finish") == 0) {
        erlang_pid from = get_pid();
        sinking = 0;
        out.index = 0;
        ei_x_encode_version(&out);
        ei_x_encode_tuple_header(&out, 4);
        ei_x_encode_atom(&out, "report");
        ei_x_encode_long(&out, sink_count);
        ei_x_encode_long(&out, sink_bytes);
        ei_x_encode_long(&out, sink_wrong);
        send_to(&from);
    } else {
        fail("no such message: %s", word);
    }
}

static void command(const char *line)
{
    char node[256];
    long size, ms;
    if (sscanf(line, "connect %255s", node) == 1) {
        hub = ei_connect(&own, node);
        check(hub, "connect");
        printf("{\"ok\":1}\n");
    } else if (sscanf(line, "send %255s %ld %ld", node, &size, &ms) == 3) {
        test_send((int)size, ms);
    } else if (sscanf(line, "pingpong %255s %ld %ld", node, &size, &ms) == 3) {
        test_pingpong((int)size, ms);
    } else if (sscanf(line, "call %255s %ld %ld", node, &size, &ms) == 3) {
        test_call((int)size, ms);
    } else {
        fail("not a command");
    }
    fflush(stdout);
}

int main(int argc, char **argv)
{
    if (argc != 3 || strchr(argv[1], '@') == NULL) {
        fprintf(stderr, "ei_peer NAME@HOST COOKIE\n");
        return 2;
    }
    char alive[256];
    char *host = strchr(argv[1], '@') + 1;
    snprintf(alive, sizeof alive, "%.*s", (int)(host - 1 - argv[1]), argv[1]);
    struct in_addr address = {.s_addr = htonl(INADDR_LOOPBACK)};
    ei_init();
    check(ei_connect_xinit(&own, host, alive, argv[1], &address, argv[2], 1), "init");
    ei_x_new(&out);
    ei_x_new(&in);
    printf("{\"ready\":\"%s\",\"ei\":\"Debian's erlang-dev\"}\n", argv[1]);
    fflush(stdout);
    char line[512];
    for (;;) {
        struct pollfd files[2] = {{.fd = 0, .events = POLLIN}, {.fd = hub, .events = POLLIN}};
        if (poll(files, hub < 0 ? 1 : 2, -1) < 0 && errno != EINTR) {
            fail("poll: %s", strerror(errno));
        }
        if (hub >= 0 && files[1].revents) {
            do {
                answer();
            } while (sinking);
        }
        if (files[0].revents) {
            /* One command at a time is ever under way, so no second line waits behind it. */
            if (fgets(line, sizeof line, stdin) == NULL) {
                return 0;
            }
            command(line);
        }
    }
}
