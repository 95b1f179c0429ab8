/* Capability flags: what a node says of itself in the handshake.
 *
 * The flags of a connection are those that both ends set, after MANDATORY_25_DIGEST was expanded. A
 * flag is a promise to handle every message it stands for: TM_DFLAGS_OURS grows only with code. */
#ifndef TM_DIST_FLAGS_H
#define TM_DIST_FLAGS_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

enum tm_flag_bit {
#define TM_FLAG(name, bit) TM_FLAG_BIT_##name = (bit),
#include "flags.def"
#undef TM_FLAG
};

/* The mask of one flag: TM_DFLAG(SPAWN). */
#define TM_DFLAG(name) (UINT64_C(1) << TM_FLAG_BIT_##name)

/* What OTP 25 demands of a peer, and what MANDATORY_25_DIGEST stands for. */
#define TM_DFLAGS_M25                                                                              \
    (TM_DFLAG(EXTENDED_REFERENCES) | TM_DFLAG(FUN_TAGS) | TM_DFLAG(NEW_FUN_TAGS) |                 \
     TM_DFLAG(EXTENDED_PIDS_PORTS) | TM_DFLAG(EXPORT_PTR_TAG) | TM_DFLAG(BIT_BINARIES) |           \
     TM_DFLAG(NEW_FLOATS) | TM_DFLAG(UTF8_ATOMS) | TM_DFLAG(MAP_TAG) | TM_DFLAG(BIG_CREATION) |    \
     TM_DFLAG(HANDSHAKE_23))
static_assert(TM_DFLAGS_M25 == UINT64_C(0x1070f94), "the set that OTP 25 was seen to demand");

/* What OTP 26, 27 and 28 demand of a peer. */
#define TM_DFLAGS_M26 (TM_DFLAGS_M25 | TM_DFLAG(UNLINK_ID) | TM_DFLAG(V4_NC))
static_assert(TM_DFLAGS_M26 == UINT64_C(0x403070f94), "the set that OTP 28 was seen to demand");

/* Either one gives every frame a distribution header instead of the pass-through byte. */
#define TM_DFLAGS_HEADER (TM_DFLAG(DIST_HDR_ATOM_CACHE) | TM_DFLAG(FRAGMENTS))

/* What we announce, without PUBLISHED, which is the node's option. One by one:
 *   M25, UNLINK_ID, V4_NC   without them OTP 26 and later refuse us; the codec knows all their tags
 *   MANDATORY_25_DIGEST     OTP sets it beside the bits it stands for; so do we
 *   DIST_MONITOR(_NAME)     without both the BEAM's monitors on us fire only `noconnection`
 *   UNICODE_IO              io requests then come in one shape, the modern one
 *   SMALL_ATOM_TAGS         old encoders may use tag 115, which the codec reads
 *   SEND_SENDER             the receiver learns who sent; one form of send less in practice
 *   BIG_SEQTRACE_LABELS     trace tokens are carried unread, so any label will do
 *   EXIT_PAYLOAD            reasons travel as payload, walked like any message
 *   SPAWN                   erpc and rpc from OTP 25 on need it; each request is answered
 *   ALIAS                   without it the BEAM drops replies of gen_server calls in silence
 *   ALTACT_SIG              OTP 28 then sends exits to aliases and tells priorities, which arrive as
 *                           others
 *   DIST_HDR_ATOM_CACHE     atoms are numbers on the wire; what we send has them in full
 *   FRAGMENTS               large messages mix with small ones; with it or the one above every frame
 *                           has a header
 * NAME_ME is set only when asking for a name. */
#define TM_DFLAGS_OURS                                                                             \
    (TM_DFLAGS_M26 | TM_DFLAG(MANDATORY_25_DIGEST) | TM_DFLAG(DIST_MONITOR) |                      \
     TM_DFLAG(DIST_MONITOR_NAME) | TM_DFLAG(UNICODE_IO) | TM_DFLAG(SMALL_ATOM_TAGS) |              \
     TM_DFLAG(SEND_SENDER) | TM_DFLAG(BIG_SEQTRACE_LABELS) | TM_DFLAG(EXIT_PAYLOAD) |              \
     TM_DFLAG(SPAWN) | TM_DFLAG(ALIAS) | TM_DFLAG(ALTACT_SIG) | TM_DFLAGS_HEADER)
static_assert(TM_DFLAGS_OURS == UINT64_C(0x2d07df7fbc), "OTP 28's own set less 0");

/* Adds what MANDATORY_25_DIGEST stands for. */
static inline uint64_t tm_flags_expand(uint64_t flags)
{
    return flags & TM_DFLAG(MANDATORY_25_DIGEST) ? flags | TM_DFLAGS_M25 : flags;
}

/* The flags in force on a connection between two nodes. */
static inline uint64_t tm_flags_choose(uint64_t ours, uint64_t theirs)
{
    return tm_flags_expand(ours) & tm_flags_expand(theirs);
}

/* The mandatory flags that a peer does not have; 0 when it has all. */
static inline uint64_t tm_flags_missing(uint64_t flags, uint64_t mandatory)
{
    return mandatory & ~tm_flags_expand(flags);
}

/* Fills text with the names of the flags, ", " between them, cut to size bytes and always
 * terminated; bits without a name as "bit 40". Returns the length written. size must not be 0. */
size_t tm_flags_text(uint64_t flags, char *text, size_t size);

#endif
