/* Every bound of the core: name, unit, reason, and its relation to its neighbours.
 *
 * TM_*_MAX are hard; TM_*_DEFAULT are what an option starts with and can be changed while running. */
#ifndef TM_LIMITS_H
#define TM_LIMITS_H

#include <assert.h>

#define TM_KIB 1024ULL
#define TM_MIB (1024ULL * 1024)
#define TM_MS_NS 1000000ULL
#define TM_S_NS 1000000000ULL

/* -- external terms ------------------------------------------------------------------------ */

/* Longest atom, code points and bytes: the BEAM's own limits (erl_ext_dist, atoms). */
#define TM_ATOM_CHARS_MAX 255
#define TM_ATOM_BYTES_MAX 1020
static_assert(TM_ATOM_BYTES_MAX == 4 * TM_ATOM_CHARS_MAX, "UTF-8 takes at most 4 bytes a char");

/* Nesting we accept, levels. Real messages stay below 100; each level of a hostile one costs the
 * consumer stack or memory. May be raised to TM_DEPTH_MAX: the walk itself is iterative. */
#define TM_DEPTH_DEFAULT 1024
#define TM_DEPTH_MAX 1000000

/* Largest big integer, bytes of digits: int.from_bytes is quadratic-ish and 64 KiB is 157,000
 * decimal digits, beyond any honest number. */
#define TM_BIG_BYTES_DEFAULT (64 * TM_KIB)

/* Words of a reference: OTP sends 1 to 5 and refuses 6. */
#define TM_REF_WORDS_MAX 5

/* What one term may become as objects, bytes, by the walk's estimate: [] is one byte on the wire and
 * 64 decoded. Eight times the largest message, which honest ones stay below. */
#define TM_DECODED_BYTES_DEFAULT (1024 * TM_MIB)

/* Distinct atoms kept as interned objects; the BEAM's own table holds 1,048,576 and dies when it is
 * full. Past it atoms still decode, uncached. */
#define TM_ATOM_TABLE_COUNT_DEFAULT 65536

/* Map keys that the binding hashes may nest this deep, levels, because Python's hash recurses on the
 * C stack; a map with deeper keys becomes a TermMap, which needs no hash of theirs. */
#define TM_KEY_DEPTH_MAX 64
/* Maps as keys of maps as keys of maps, levels: each one makes the binding read its bytes once more.
 * Nobody nests two. */
#define TM_KEY_NESTING_MAX 16
/* From this many pairs on the keys' hashes are counted before a dict is filled, and so many equal
 * ones are allowed: numbers and tuples of them hash alike as an attacker likes, and n equal hashes
 * cost a dict n * n / 2 comparisons. Below it that is at most 0.3 ms. */
#define TM_HASH_CHECK_COUNT_MIN 257
#define TM_HASH_EQUAL_COUNT_MAX 16

/* Binaries of at least this many bytes become views where the caller asks for views. */
#define TM_VIEW_BYTES_MIN (64 * TM_KIB)

/* -- handshake and port mapper -------------------------------------------------------------- */

/* Whole handshake, one absolute deadline, ms: OTP's net_setuptime default. */
#define TM_HANDSHAKE_TIMEOUT_MS_DEFAULT 7000
#define TM_HANDSHAKE_TIMEOUT_MS_MAX 120000
/* Longest node name, bytes: name and host of 255 each would be 511; OTP's epmd stops at 255
 * characters for the name part. */
#define TM_NODE_NAME_BYTES_MAX 255
/* Handshake messages, bytes: send_name with trailing bytes that must be ignored; a status is
 * at most "named:" with a name; reply and ack are exact. Checked before the body is read. */
#define TM_HANDSHAKE_NAME_BYTES_MAX 1100
#define TM_HANDSHAKE_STATUS_BYTES_MAX 600
#define TM_HANDSHAKE_DIGEST_BYTES_MAX 21
/* Unauthenticated connections open at once, and from one source address. A 10,000 node cluster
 * that comes back keeps at most 128 in flight a peer; above, the oldest is dropped. */
#define TM_HALF_OPEN_COUNT_DEFAULT 512
/* Entries of a node's allowed list: three look-ups decide, so this bounds memory alone (below 2 MB). */
#define TM_ALLOWED_COUNT_MAX 4096
/* Names given to peers that asked for one and have gone: each is used again, with the next creation. A
 * forgotten one costs its peers nothing but an atom; 1,024 of 270 bytes are below 300 KB. */
#define TM_GIVEN_NAMES_COUNT_MAX 1024
/* Longest cookie, bytes: an atom's text. */
#define TM_COOKIE_BYTES_MAX 255
/* Port mapper: largest request, bytes (OTP's epmd: 3060), largest extra field, and how many names
 * the embedded one keeps. */
#define TM_EPMD_REQUEST_BYTES_MAX 3060
#define TM_EPMD_EXTRA_BYTES_MAX 1020
#define TM_EPMD_NAMES_COUNT_MAX 16384
/* Names that are not registered any more but whose creation the embedded port mapper still counts on,
 * entries: OTP's keeps 1000. A forgotten one starts above all creations given so far. */
#define TM_EPMD_UNUSED_COUNT_MAX 1000
/* Longest list of names that we read from a port mapper, bytes: 4096 nodes on one host at the longest
 * name, 100,000 at the usual one. */
#define TM_EPMD_NAMES_BYTES_MAX (4 * TM_MIB)
#define TM_EPMD_PORT_DEFAULT 4369
/* Pause before the next try to register, ms: OTP retries every 2 s, we promise 2 s. */
#define TM_EPMD_RETRY_MS 500
/* One exchange with a port mapper, ms. */
#define TM_EPMD_TIMEOUT_MS 5000

/* -- connection ------------------------------------------------------------------------------ */

/* Largest frame we accept, bytes; an option. Checked against the length prefix before a byte of the
 * body is stored. */
#define TM_MESSAGE_BYTES_DEFAULT (128 * TM_MIB)
#define TM_MESSAGE_BYTES_MAX (2048 * TM_MIB - 1)
/* What a frame may have besides its message, bytes: the control message with three identifiers, a
 * name and a trace token is below 4 KiB. So what one node may send another one with the same limit accepts. */
#define TM_FRAME_HEAD_BYTES_MAX (5 * TM_KIB)

/* First memory for a frame that arrives in parts, bytes; from there it grows with what has come, so a
 * length prefix alone is worth this much. Twice OTP's fragment size: usual frames grow once at most. */
#define TM_FRAMER_FIRST_BYTES (128 * TM_KIB)

/* What is gathered from parts grows to so many times what has come and will be read next, where more is
 * promised: a lie costs no more than that, and of an honest message an eighth is moved once. */
#define TM_GATHER_GROWTH 8

/* Room in front of the terms of a message that is gathered from parts, bytes: the atoms that are
 * written out in it push its first bytes to the left, and its large rest stays where it is. Enough
 * for the atoms of a tuple or two around a binary. */
#define TM_FRAME_HEADROOM (1 * TM_KIB)

/* Atoms in the cache of one connection, bytes of text: every one of its 2048 slots may hold 255
 * ASCII characters. An atom of wider characters takes more, but nobody has a table of those. */
#define TM_ATOM_CACHE_BYTES_MAX (512 * TM_KIB)
static_assert(TM_ATOM_CACHE_BYTES_MAX >= 2048 * TM_ATOM_CHARS_MAX, "a table of the longest names");
/* All atoms that the caches of one engine hold, bytes. Connections share them: a cluster's few
 * thousand are below 1 MiB. Over it the connection whose cache is largest is closed. */
#define TM_ATOM_POOL_BYTES_MAX (64 * TM_MIB)
static_assert(TM_ATOM_POOL_BYTES_MAX >= 16 * TM_ATOM_CACHE_BYTES_MAX, "many caches fit");

/* Messages of up to this many bytes come and go in memory of the heap that stays mapped: glibc
 * gives a block back to the system, and takes a page fault for each 4 KiB of the next, unless it
 * has seen one of that size freed. Half of the work of receiving 64 KiB was that. */
#define TM_HEAP_BLOCK_BYTES (4 * TM_MIB)

/* Unfinished messages in fragments of one connection: how many, since each sending process of a
 * peer may have one, and what they hold together, bytes. */
#define TM_SEQUENCE_COUNT_MAX 4096
#define TM_REASSEMBLY_BYTES_DEFAULT (256 * TM_MIB)
static_assert(TM_MESSAGE_BYTES_DEFAULT < TM_REASSEMBLY_BYTES_DEFAULT, "a whole message fits");
/* An unfinished message may wait so many tick times for its next fragment: a process that still
 * runs sends one whenever the connection has room. */
#define TM_SEQUENCE_IDLE_TICK_TIMES 2

/* net_ticktime, seconds: a connection is down when no whole frame came for between T - T/4 and
 * T + T/4. OTP's default; every node of a cluster must use the same. */
#define TM_TICK_TIME_S_DEFAULT 60
#define TM_TICK_TIME_S_MIN 1
#define TM_TICK_TIME_S_MAX 86400
#define TM_TICK_INTENSITY 4

/* Send queue of one connection: at or above the high water a send answers TM_EBUSY, below the low
 * water a writable event follows. OTP's +zdbbl default. Control signals may use the reserve above
 * the high water, so a full data queue never loses an EXIT or a DOWN. */
#define TM_SENDQ_HIGH_BYTES_DEFAULT (1 * TM_MIB)
#define TM_SENDQ_LOW_DIVISOR 2
#define TM_SENDQ_CONTROL_RESERVE_BYTES (1 * TM_MIB)
/* All queues of a node together, bytes. */
#define TM_SENDQ_NODE_BYTES_DEFAULT (256 * TM_MIB)

/* How long a connection that is to close goes on writing what was queued before, ms: a peer that reads
 * takes microseconds, one that does not must not hold us up. */
#define TM_DRAIN_MS 500

/* How long the end of a monitor that was answered waits for other things to the same node, ms: far
 * longer than the next call of a busy caller takes, and nothing over there depends on it. */
#define TM_DEMONITOR_WAIT_MS 20
static_assert(TM_DEMONITOR_WAIT_MS < TM_DRAIN_MS, "a connection that is to close does not wait");

/* Payloads of at least this many bytes are lent to the kernel instead of copied. */
#define TM_LEND_BYTES_MIN (16 * TM_KIB)
/* One gathered write, bytes and segments: enough for full batching, small enough that a tick behind
 * it is not late. */
#define TM_SEND_BATCH_BYTES (256 * TM_KIB)
#define TM_SEND_BATCH_SEGMENTS 64
/* Entries of send queues up to this size are kept for the next ones when they are written, bytes: a small
 * message. And how much of them a node keeps: what one write gives back. */
#define TM_ENTRY_SMALL_BYTES 384
#define TM_ENTRY_SPARE_COUNT_MAX (TM_SEND_BATCH_BYTES / TM_ENTRY_SMALL_BYTES)
static_assert(TM_SEND_BATCH_SEGMENTS <= 1024, "IOV_MAX");

/* Atoms that a connection sends by number, how many and how long, bytes: the names of the two nodes, and
 * of the registered processes that are spoken to most. All together they cost a connection less than one
 * KiB, from its first message on. */
#define TM_ATOM_SENDER_COUNT_MAX 16
#define TM_ATOM_SENDER_TEXT_MAX 47
static_assert(TM_ATOM_SENDER_COUNT_MAX <= 256, "all slots lie in the first segment");

/* What goes out in fragments has so many bytes of its payload in each: OTP's own size. What others send
 * waits for one write of them at most. */
#define TM_FRAGMENT_BYTES (64 * TM_KIB)
/* A payload above this goes out in fragments, bytes: a binary of 64 KiB with what is wrapped around it does
 * not, for its second fragment would cost both ends a frame more than it carries. */
#define TM_WHOLE_BYTES_MAX (68 * TM_KIB)
static_assert(TM_WHOLE_BYTES_MAX >= TM_FRAGMENT_BYTES, "a flow has two fragments at least");
static_assert(TM_WHOLE_BYTES_MAX < 2 * TM_FRAGMENT_BYTES,
              "what is whole keeps nobody waiting longer");
static_assert(2 * TM_FRAGMENT_BYTES <= TM_SEND_BATCH_BYTES,
              "a write with other entries has room for a fragment too");
/* Sequences of fragments open at once on one connection: each costs the peer memory until its last one;
 * the next ones wait. So many senders share the connection fairly. */
#define TM_SEQUENCES_OUT_MAX 32
static_assert(TM_SEQUENCES_OUT_MAX <= TM_SEQUENCE_COUNT_MAX, "a peer of our kind takes them");
/* Largest payload that goes out with a priority, bytes: OTP 28 and 29 read past the end of a prioritised
 * message from 64 KiB on (erlang/otp 11416). A larger one loses nothing but its priority. */
#define TM_PRIO_BYTES_MAX (32 * TM_KIB)
static_assert(TM_PRIO_BYTES_MAX < TM_FRAGMENT_BYTES, "no fragment carries a priority");

/* Mailbox of one process and everything waiting for the consumer of one node, bytes. Reading never
 * pauses; these bounds end a process or a connection instead. */
#define TM_MAILBOX_BYTES_DEFAULT (128 * TM_MIB)
#define TM_INBOX_BYTES_DEFAULT (512 * TM_MIB)
/* What a connection had sent that was closed for the bound stays until it is taken, and does not count
 * against others: all together never get beyond so many times the bound. */
#define TM_INBOX_HARD_FACTOR 2
static_assert(TM_MAILBOX_BYTES_DEFAULT <= TM_INBOX_BYTES_DEFAULT, "a mailbox is part of the inbox");
static_assert(TM_MESSAGE_BYTES_DEFAULT <= TM_INBOX_BYTES_DEFAULT, "a message must fit the inbox");

/* -- i/o ------------------------------------------------------------------------------------- */

/* Sockets of one backend: an index has 24 bits in the ring's user_data. */
#define TM_IO_SOCKETS_MAX (1 << 24)
/* Connections taken from one listener before the others get their turn. */
#define TM_IO_ACCEPT_BATCH 64
/* Pause of a listener for which there is no descriptor or memory, ms. The connections wait in the
 * backlog meanwhile: short against a handshake's deadline, long against the cost of a try. */
#define TM_IO_ACCEPT_RETRY_MS 50
static_assert(TM_IO_ACCEPT_RETRY_MS * 10 < TM_HANDSHAKE_TIMEOUT_MS_DEFAULT,
              "peers outlive a pause");
/* An orderly close reads and throws away what the peer still sends, for at most so long and so
 * much: a peer that closes in answer needs one round trip. */
#define TM_IO_LINGER_MS 500
#define TM_IO_LINGER_BYTES (4 * TM_MIB)
/* One epoll turn reads at most so often and so much from one socket, in pieces of the scratch
 * buffer, bytes; then the others get their turn. */
#define TM_IO_READ_BATCH_COUNT 16
#define TM_IO_READ_BATCH_BYTES (256 * TM_KIB)
#define TM_IO_SCRATCH_BYTES (64 * TM_KIB)
static_assert(TM_IO_READ_BATCH_BYTES >= TM_IO_SCRATCH_BYTES, "a turn reads at least one buffer");
/* Bulk: a socket whose owner wants at least so many bytes in one place is read straight into that, and
 * so many more behind it, bytes: the head of what comes next, which is all that is copied. He is asked
 * when so many came at once that there may be more of them. It ends with so many reads in a row that
 * had nowhere to go. */
#define TM_IO_BULK_BYTES_MIN (16 * TM_KIB)
#define TM_IO_BESIDE_BYTES (4 * TM_KIB)
#define TM_IO_BULK_READS 16
static_assert(TM_IO_BESIDE_BYTES <= TM_IO_SCRATCH_BYTES, "it is the beginning of the same memory");

/* While messages come over many links the engine lets them come together before it hands them out
 * (tm_engine_gather_ns): at most so long, ns, as network cards do under load. At 40,000 messages a
 * second, all that one core did one by one, ten of them then share six system calls. On io_uring so many
 * completions end it before: about what the consumer takes in that time. */
#define TM_GATHER_NS_MAX (250 * 1000)
#define TM_GATHER_COUNT 64
/* That is when within a period, ns, so many links at least have sent something, and a message came at
 * least every so many ns: with fewer a link would wait for others that do not come. */
#define TM_GATHER_PERIOD_NS TM_MS_NS
#define TM_GATHER_LINKS_MIN 8
#define TM_GATHER_FRAME_NS_MAX (50 * 1000)
static_assert(TM_GATHER_NS_MAX * 4 <= TM_GATHER_PERIOD_NS, "a period has several turns");

/* Between two turns of a stream of small messages the engine pauses (csrc/conn/pause.h), ns. The least is
 * what wakes a thread on another core; the most is half of what a turn of the Python side may take, so
 * nobody who reads there sees it. */
#define TM_PAUSE_NS_MIN (50 * 1000)
#define TM_PAUSE_NS_MAX (500 * 1000)
/* The pause grows while a message comes at least this often, ns: one of a slower stream would be late
 * for the sake of few others. */
#define TM_PAUSE_FRAME_NS (20 * 1000)
/* And while it brings less than this, bytes: half of a socket's first receive buffer on Linux, so that
 * the sender never finds it full. */
#define TM_PAUSE_BYTES (64 * TM_KIB)
/* Most bytes that a frame of such a stream has on average. Larger ones are not read late: that would
 * empty the pipe. */
#define TM_PAUSE_FRAME_BYTES_MAX (4 * TM_KIB)
static_assert(TM_PAUSE_NS_MIN >= 2 * TM_PAUSE_FRAME_NS, "the least pause brings several messages");

/* Where messages are answered meanwhile a pause lasts this long, ns: half of a round trip over loopback. It
 * is made while messages come at least so often, ns, and a turn without it brings no more than so many
 * on average: then turns follow each other faster than a round trip, and some ask while others are
 * answered. */
#define TM_EXCHANGE_NS (40 * 1000)
#define TM_EXCHANGE_FRAME_NS (8 * 1000)
#define TM_EXCHANGE_FRAMES 4
static_assert(TM_EXCHANGE_NS > 2 * TM_EXCHANGE_FRAME_NS, "a pause brings several messages");
/* So many periods (TM_GATHER_PERIOD_NS) judge whether messages come oftener with it: one alone may be bad by
 * chance. If the first say no it is tried again after so many: trials are less than 2 % of the time. */
#define TM_EXCHANGE_TRIAL 8
#define TM_EXCHANGE_HOLD 512

/* -- processes ------------------------------------------------------------------------------- */

/* Processes of one node: pids carry 28 bits of index towards old peers. */
#define TM_PROCESS_COUNT_MAX (1 << 20)
/* What a node can have made of its own pids and references, first words: OTP ends the connection on which it
 * gets one of its own that is larger. Nobody is meant by it, so it is not sent. OTP 25 ends it from 2^15 on,
 * or a serial of 2^13; but nothing tells that release from later ones, whose pids are larger. */
#define TM_PID_ID_MAX ((1U << 28) - 1)
#define TM_REF_WORD_0_MAX ((1U << 18) - 1)
static_assert(TM_PROCESS_COUNT_MAX <= TM_PID_ID_MAX, "our own pids are among them");
/* Monitors and links that one peer node may hold on us, entries. At about 200 bytes each one peer can
 * make us hold 100 MB at most; a node that watches each of 100,000 processes stays well below. */
#define TM_PEER_MONITORS_MAX 250000
#define TM_PEER_LINKS_MAX 250000
/* Longest label of a sequential trace that is kept, with its flags, bytes: it is a number or a small
 * term, and each process that a trace comes by holds a copy. A message with a longer one arrives
 * without its token, and an event says so. */
#define TM_TRACE_LABEL_BYTES_MAX 512
/* Longest token, bytes: a process that hands one on writes its own pid and two numbers around the label,
 * which may be longer than what came. */
#define TM_TRACE_TOKEN_BYTES_MAX 1024
static_assert(TM_TRACE_LABEL_BYTES_MAX + 2 + 2 * 11 + (TM_NODE_NAME_BYTES_MAX + 16) <=
                  TM_TRACE_TOKEN_BYTES_MAX,
              "a token whose label is kept never outgrows its bound");
/* What the terms that a control message carries may grow by when the atoms they refer to are written
 * out, bytes. A reference of two bytes may stand for an atom of a thousand; reasons, tokens and
 * options of good faith name a few. */
#define TM_CONTROL_GROWTH_BYTES_MAX (1024 * 1024)
/* Options of a spawn request, bytes: they travel in the control message, which must stay small. */
#define TM_SPAWN_OPTIONS_BYTES_MAX 512
static_assert(TM_SPAWN_OPTIONS_BYTES_MAX + TM_TRACE_TOKEN_BYTES_MAX + 2 * (TM_ATOM_BYTES_MAX + 3) +
                      3 * (TM_NODE_NAME_BYTES_MAX + 32) <
                  TM_FRAME_HEAD_BYTES_MAX,
              "a spawn request, the largest head, fits");
/* Functions that a node exposes to spawn requests, entries: each is a name of two atoms. */
#define TM_EXPOSED_COUNT_MAX 65536

#endif
