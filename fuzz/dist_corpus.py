"""Writes corpus/handshake, corpus/frame, corpus/header and corpus/epmd: captured exchanges, one
message of every control operation, and each refusal once.

The first byte of a file picks options, see the targets; then come parts, each behind its length.
Run after a change of the vectors or of csrc/dist.
"""

import hashlib
import pathlib
import re
import struct

HERE = pathlib.Path(__file__).parent
VECTORS = HERE.parent / "tests" / "vectors"

COOKIE = b"vec"
CHALLENGE = 0x01020304
THEIRS = 0x5FA132B8
FLAGS = 0xD07DF7FBD
NAME_ME = 1 << 33
PEER = b"a25@127.0.0.1"


def parts(data, size=255):
    """The data in parts of at most size bytes."""
    size = min(size, 255)
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return b"".join(bytes([len(piece)]) + piece for piece in pieces)


def write(folder, files):
    """One file for each of {name: bytes}; what was there before goes."""
    target = HERE / "corpus" / folder
    target.mkdir(parents=True, exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    for name, data in files.items():
        (target / name).write_bytes(data)
    print(f"{folder}: {len(files)} files")


# -- handshake -------------------------------------------------------------------------------------

ACCEPTOR, ASKS_NAME, INSISTS, NEWEST = 1, 2, 4, 8
OK, OK_SIMULTANEOUS, NOK, NOT_ALLOWED, ALIVE, NO_STATUS = (i << 4 for i in range(6))


def message(body):
    return struct.pack(">H", len(body)) + body


def digest(challenge=CHALLENGE):
    return hashlib.md5(COOKIE + str(challenge).encode()).digest()


def send_name(flags=FLAGS, name=PEER, tail=b""):
    return message(struct.pack(">cQIH", b"N", flags, 7, len(name)) + name + tail)


def challenge(flags=FLAGS, value=THEIRS, name=PEER):
    return message(struct.pack(">cQIIH", b"N", flags, value, 7, len(name)) + name)


def status(text):
    return message(b"s" + text)


def reply(value=THEIRS, proof=None):
    return message(struct.pack(">cI", b"r", value) + (proof or digest()))


def handshake_files():
    old = message(struct.pack(">cHI", b"n", 5, FLAGS & 0xFFFFFFFF) + PEER)
    complement = message(struct.pack(">cII", b"c", FLAGS >> 32, 7))
    named = message(b"snamed:" + struct.pack(">H", 13) + b"XYZ@127.0.0.1" + struct.pack(">I", 9))
    ack = message(b"a" + digest())
    accepted = send_name() + reply()
    opened = status(b"ok") + challenge()
    streams = {
        "acceptor": (ACCEPTOR, accepted + b"\0\0\0\0"),
        "acceptor_newest": (ACCEPTOR | NEWEST, accepted),
        "acceptor_simultaneous": (ACCEPTOR | OK_SIMULTANEOUS, accepted),
        "acceptor_nok": (ACCEPTOR | NOK, accepted),
        "acceptor_not_allowed": (ACCEPTOR | NOT_ALLOWED, accepted),
        "acceptor_no_status": (ACCEPTOR | NO_STATUS, accepted),
        "acceptor_alive": (ACCEPTOR | ALIVE, send_name() + status(b"true") + reply()),
        "acceptor_alive_false": (ACCEPTOR | ALIVE, send_name() + status(b"false")),
        "acceptor_old": (ACCEPTOR, old + complement + reply()),
        "acceptor_old_alive": (ACCEPTOR | ALIVE, old + status(b"true") + complement + reply()),
        "acceptor_old_no_flags": (ACCEPTOR, message(b"n\0\5\0\0\0\0" + PEER)),
        "acceptor_old_short": (ACCEPTOR, message(b"n\0\5\0")),
        "acceptor_old_newest": (ACCEPTOR | NEWEST, old + message(b"c" + bytes(8))),
        "acceptor_complement_short": (ACCEPTOR, old + message(b"c" + bytes(7))),
        "acceptor_asked_for_name": (ACCEPTOR, send_name(FLAGS | NAME_ME, b"127.0.0.1") + reply()),
        "acceptor_asked_and_plain": (ACCEPTOR | OK_SIMULTANEOUS, send_name(FLAGS | NAME_ME, b"h")),
        "acceptor_asked_whole_name": (ACCEPTOR, send_name(FLAGS | NAME_ME)),
        "acceptor_no_flags": (ACCEPTOR, send_name(0)),
        "acceptor_tail": (ACCEPTOR, send_name(tail=b"ignored") + reply()),
        "acceptor_bad_name": (ACCEPTOR, send_name(name=b"a@b\n")),
        "acceptor_two_ats": (ACCEPTOR, send_name(name=b"a@b@c")),
        "acceptor_short_name": (
            ACCEPTOR,
            message(struct.pack(">cQIH", b"N", FLAGS, 7, 9) + b"a@b"),
        ),
        "acceptor_wrong_digest": (ACCEPTOR, send_name() + reply(proof=bytes(16))),
        "acceptor_reflected": (ACCEPTOR, send_name() + reply(CHALLENGE, digest())),
        "acceptor_reply_short": (ACCEPTOR, send_name() + message(b"r" + bytes(8))),
        "acceptor_empty": (ACCEPTOR, message(b"")),
        "acceptor_too_long": (ACCEPTOR, b"\x10\0"),
        "acceptor_out_of_place": (ACCEPTOR, ack),
        "initiator": (0, opened + ack + b"\0\0\0\3abc"),
        "initiator_simultaneous": (0, status(b"ok_simultaneous") + challenge() + ack),
        "initiator_insists": (INSISTS, status(b"alive") + challenge() + ack),
        "initiator_alive": (0, status(b"alive")),
        "initiator_nok": (0, status(b"nok")),
        "initiator_not_allowed": (0, status(b"not_allowed")),
        "initiator_unknown_status": (0, status(b"okay")),
        "initiator_unknown_message": (0, message(b"?")),
        "initiator_named": (ASKS_NAME, named + challenge(FLAGS | NAME_ME) + ack),
        "initiator_named_short": (ASKS_NAME, status(b"named:\0\1")),
        "initiator_named_badly": (ASKS_NAME, status(b"named:\0\3a@@\0\0\0\1")),
        "initiator_not_named": (ASKS_NAME, status(b"ok")),
        "initiator_named_unasked": (0, named),
        "initiator_other_node": (0, status(b"ok") + challenge(name=b"b@c")),
        "initiator_no_flags": (NEWEST, status(b"ok") + challenge(0x1070F94)),
        "initiator_reflected": (0, status(b"ok") + challenge(value=CHALLENGE)),
        "initiator_challenge_short": (0, status(b"ok") + message(b"N" + bytes(9))),
        "initiator_wrong_digest": (0, opened + message(b"a" + bytes(16))),
        "initiator_ack_short": (0, opened + message(b"a" + bytes(3))),
    }
    files = {name: bytes([options]) + parts(data) for name, (options, data) in streams.items()}
    for name in ("acceptor", "acceptor_old", "initiator", "initiator_named"):
        options, data = streams[name]
        files[f"{name}_bytewise"] = bytes([options]) + parts(data, 1)
        files[f"{name}_glued"] = bytes([options, 0]) + data
    return files


# -- frames ----------------------------------------------------------------------------------------

SMALL_FRAME, LITTLE_DEPTH, SMALL_BIG, OLD_PEER, HEADER = 1, 2, 4, 8, 16

NODE = b"w\3a@b"
PID = b"X" + NODE + struct.pack(">III", 1, 2, 9)
REF = b"Z\0\3" + NODE + struct.pack(">IIII", 9, 1, 2, 3)
TOKEN = b"h\5a\1a\x11a\1" + PID + b"a\0"
FIELDS = {
    "F": PID, "I": PID, "T": PID, "W": PID, "N": b"w\4echo", "A": REF, "R": REF, "U": b"a\1",
    "L": b"a\2", "X": b"w\6noproc", "K": TOKEN, "G": PID, "M": b"h\3w\1mw\1fa\4",
    "O": b"l\0\0\0\1w\7monitorj", "Y": PID, "C": b"w\0", "*": PID,
}  # fmt: skip


def operations():
    text = (HERE.parent / "csrc" / "dist" / "opcode.def").read_text()
    pattern = r'^TM_OPCODE\((\w+), (\d+), \w+, "(.+)", ([01])\)'
    for name, op, fields, payload in re.findall(pattern, text, re.MULTILINE):
        yield name.lower(), int(op), fields, payload == "1"


def tuple_term(*elements):
    return bytes([104, len(elements)]) + b"".join(elements)


def small(value):
    return bytes([97, value])


def frame(body):
    return struct.pack(">I", len(body)) + body


def pass_through(control, payload=b""):
    return frame(b"p\x83" + control + (b"\x83" + payload if payload else b""))


def control(op, fields, **other):
    elements = [other.get(field, FIELDS[field]) for field in fields]
    return tuple_term(small(op), *elements, *([TOKEN] if fields.endswith("*") else []))


def atoms_of(entries, long=False):
    """The list of atoms of a header: (slot, text), or (slot, None) for one that is known."""
    if not entries:
        return b"\0"
    nibbles = [(8 if text is not None else 0) | slot >> 8 for slot, text in entries]
    nibbles.append(1 if long else 0)
    nibbles += [0] * (len(nibbles) % 2)
    flags = bytes(nibbles[i] | nibbles[i + 1] << 4 for i in range(0, len(nibbles), 2))
    size = ">H" if long else ">B"
    refs = [
        bytes([slot & 255]) + (b"" if text is None else struct.pack(size, len(text)) + text)
        for slot, text in entries
    ]
    return bytes([len(entries)]) + flags + b"".join(refs)


def headed(entries, terms, long=False):
    return frame(b"\x83D" + atoms_of(entries, long) + terms)


def altact(flags, to, *more):
    return pass_through(tuple_term(small(37), flags, PID, to, *more), b"w\2ok")


def frame_files():
    ok = b"w\2ok"
    streams = {}
    for name, op, fields, payload in operations():
        data = pass_through(control(op, fields), ok if payload else b"")
        streams[name] = (0, data)
        streams[f"{name}_old_peer"] = (OLD_PEER, data)
        if set(fields) & set("IWY"):
            by_name = dict.fromkeys("IWY", b"w\4echo")
            data = pass_through(control(op, fields, **by_name), ok if payload else b"")
            streams[f"{name}_by_name"] = (0, data)
        wrong = b"".join(
            pass_through(control(op, fields, **{field: b"j"}), ok if payload else b"")
            for field in fields
        )
        streams[f"{name}_wrong"] = (0, wrong)
    streams |= {
        "ticks": (0, bytes(12)),
        "altact_alias": (0, altact(small(4), REF)),
        "altact_name": (0, altact(small(8), b"w\4echo")),
        "altact_grown": (0, altact(small(0), PID, b"j", b"a\1")),
        "altact_no_token": (0, altact(small(2), PID)),
        "altact_exit_old_peer": (OLD_PEER, altact(small(20), REF)),
        "altact_big_flags": (0, altact(b"n\x0a\0\4\0\0\0\0\0\0\0\0\1", REF)),
        "altact_big_limit": (SMALL_BIG, altact(b"n\x0a\0\4\0\0\0\0\0\0\0\0\1", REF)),
        "altact_negative_flags": (0, altact(b"b\xff\xff\xff\xff", PID)),
        "altact_large_flags": (0, altact(b"o\0\0\0\x0a\0\4\0\0\0\0\0\0\0\0\1", REF)),
        "altact_broken_flags": (0, altact(b"\0", REF)),
        "latin1_atoms": (0, pass_through(control(29, "RFGMO", M=b"h\3d\0\1\xe9s\1\xe8a\1"), b"j")),
        "no_name": (0, pass_through(tuple_term(small(1), PID.replace(NODE, b"w\0"), PID))),
        "unlink_id_0": (0, pass_through(control(35, "UFT", U=small(0)))),
        "mfa_of_two": (0, pass_through(control(29, "RFGMO", M=b"h\2w\1mw\1f"), b"j")),
        "mfa_no_arity": (0, pass_through(control(29, "RFGMO", M=b"h\3w\1mw\1fj"), b"j")),
        "deep_reason": (LITTLE_DEPTH, pass_through(control(3, "FTX", X=b"h\1h\1h\1h\0"))),
        "unknown_operation": (
            0,
            pass_through(b"h\2a\xffj") + pass_through(b"h\1b\xff\xff\xff\xff"),
        ),
        "wrong_arity": (0, pass_through(tuple_term(small(1), PID))),
        "no_tuple": (0, pass_through(b"j") + pass_through(b"h\0") + pass_through(b"h\1j")),
        "no_payload": (0, pass_through(control(2, "CT")) + pass_through(control(2, "CT"))[:-1]),
        "no_version": (0, frame(b"p\x83" + control(2, "CT") + ok)),
        "version_alone": (0, frame(b"p\x83" + control(2, "CT") + b"\x83")),
        "headers": (0, frame(b"\x83D\0" + ok) + frame(b"\x83E") + frame(b"\x83F")),
        "other_forms": (0, frame(b"\x83h\0") + frame(b"h\0") + frame(b"ph") + frame(b"p")),
        "too_long": (0, b"\xff\xff\xff\xffx"),
        "too_long_by_option": (SMALL_FRAME, frame(bytes(65))),
        "promised": (0, b"\0\x10\0\0" + bytes(400)),
        "partial": (0, pass_through(control(2, "CT"), b"m\0\0\1\0" + bytes(256))),
    }
    for number, line in enumerate((VECTORS / "frames.txt").read_text().splitlines()):
        if line.startswith("raw ") and line[12:18] == "834400":
            terms = bytes.fromhex(line[18:])  # no version bytes: seen as malformed, then as terms
            streams[f"captured_{number}"] = (0, frame(b"p\x83" + terms))
    first, second = b"\0\0\0\0\0\0\0\7", b"\0\0\0\0\0\0\0\2"
    send = headed([(7, b"a@b")], control(2, "CT", T=PID.replace(NODE, b"R\0")) + ok)
    leads = headed([(1, b"monitor")], control(29, "RFGMO", O=b"l\0\0\0\1R\0j") + b"j")
    streams |= {
        "header": (HEADER, send + leads + headed([], control(1, "FT"))),
        "header_token": (HEADER, headed([(1, b"x")], control(23, "FTK", K=b"h\2R\0R\0") + ok)),
        "header_reason": (HEADER, headed([(1, b"x")], control(3, "FTX", X=b"R\0"))),
        "header_fragments": (HEADER, frame(b"\x83E" + first + second + b"\0" + control(2, "CT"))),
        "header_fragment_zero": (HEADER, frame(b"\x83E" + first + bytes(8) + b"\0")),
        "header_fragment_next": (HEADER, frame(b"\x83F" + first + second + ok)),
        "header_cut": (HEADER, frame(b"\x83D") + frame(b"\x83E\0") + frame(b"\x83F\0")),
        "header_wrong": (HEADER, frame(b"p\x83" + ok) + frame(b"\x83G\0") + frame(b"\x84D\0")),
    }
    files = {name: bytes([options]) + parts(data) for name, (options, data) in streams.items()}
    for name in ("send_sender", "spawn_request", "partial", "ticks", "too_long"):
        options, data = streams[name]
        files[f"{name}_bytewise"] = bytes([options]) + parts(data, 1)
        files[f"{name}_glued"] = bytes([options, 0]) + data + data
    return files


# -- atoms and fragments ---------------------------------------------------------------------------

SMALL_MESSAGE, LITTLE_MEMORY, NO_CACHE, TAKE = 1, 2, 4, 8


def first(sequence, count, terms, entries=(), cache=True):
    atoms = atoms_of(list(entries)) if cache else b"\0"
    return frame(b"\x83E" + struct.pack(">QQ", sequence, count) + atoms + terms)


def following(sequence, number, data):
    return frame(b"\x83F" + struct.pack(">QQ", sequence, number) + data)


def header_files():
    text = (VECTORS / "sent_and_accepted.txt").read_text().splitlines()
    accepted = [bytes.fromhex(line) for line in text if line and line[0] != "#"]
    send = control(2, "CT")
    refs = control(23, "FTK", F=PID.replace(NODE, b"R\0"), K=b"h\2R\1R\0")
    entries = [(0x701, b"a@b"), (5, b"ok")]
    payload = b"h\3R\1m\0\0\0\3abcR\0"
    many = [(n * 8 + 7, b"a%d" % n) for n in range(255)]
    wide = "\U0001f600".encode() * 255
    list_of_40 = b"l\0\0\0\x28" + b"R\0" * 40 + b"j"
    pids = b"h\x28" + PID.replace(NODE, b"R\0") * 40
    streams = {
        "accepted": (0, b"".join(frame for frame in accepted if frame[4:5] == b"\x83")),
        "many": (0, headed(many, send + b"R\xfe") + headed([(15, None)], send + b"R\0")),
        "long": (0, headed([(1, wide), (2, b"")], send + b"h\2R\0R\1", long=True)),
        "redefined": (0, headed([(9, b"a"), (9, b"b"), (9, None)], send + b"h\3R\0R\1R\2")),
        "runs": (0, headed([(9, b"a")], send + list_of_40) + headed([(9, None)], send + pids)),
        "terms": (0, headed(entries, refs + payload) + headed(entries[:1], send + b"R\0")),
        "undefined": (0, headed([(9, b"a")], send + b"R\1")),
        "never_set": (0, headed([(9, None)], send + b"j")),
        "never_set_beside": (0, headed([(9, b"a")], send + b"j") + headed([(8, None)], send)),
        "not_utf8": (0, headed([(9, b"\xe9")], send + b"j")),
        "too_long": (0, headed([(9, b"x" * 256)], send + b"j", long=True)),
        "too_many_bytes": (0, headed([(9, b"x" * 1021)], send + b"j", long=True)),
        "cut": (0, frame(b"\x83D")),
        "cut_flags": (0, frame(b"\x83D\5\x88")),
        "cut_slot": (0, frame(b"\x83D\1\x08")),
        "cut_text": (0, frame(b"\x83D\1\x08\x09\5abc")),
        "cut_length": (0, frame(b"\x83D\1\x18\x09\0")),
        "whole_in_one": (0, first(0, 1, send + b"j")),
        "two": (0, first(7, 2, refs + payload[:3], entries) + following(7, 1, payload[3:])),
        "taken": (TAKE, first(7, 2, refs + payload[:3], entries) + following(7, 1, payload[3:])),
        "empty": (0, first(7, 3, send) + following(7, 2, b"") + following(7, 1, b"j")),
        "no_cache": (NO_CACHE, first(7, 2, send, (), False) + following(7, 1, b"j")),
        "no_cache_atoms": (NO_CACHE, headed([(9, b"a")], send + b"j")),
        "mixed": (
            0,
            first(7, 3, send + b"h\3R\0", [(9, b"a")])
            + first(8, 2, send, [(9, b"b")])
            + headed([(9, b"c")], send + b"R\0")
            + following(7, 2, b"R\0")
            + following(8, 1, b"R\0")
            + bytes(4)
            + following(7, 1, b"R\0"),
        ),
        "number_0": (0, first(0, 2, send)),
        "begun": (0, first(7, 2, send) * 2),
        "unknown": (0, following(7, 1, b"j")),
        "skipped": (0, first(7, 4, send) + following(7, 2, b"j")),
        "control_split": (0, first(7, 2, send[:-3]) + following(7, 1, send[-3:] + b"j")),
        "promised": (0, first(7, 2**64 - 1, send) + following(7, 2**64 - 2, bytes(300))),
        "unfinished": (0, first(7, 2, send, entries) + first(8, 2, send)),
        "dropped": (
            SMALL_MESSAGE,
            first(7, 3, send) + following(7, 2, bytes(300)) + following(7, 1, b"x" * 200),
        ),
        "dropped_at_once": (
            SMALL_MESSAGE,
            first(7, 2, control(24, "FT") + bytes(300)) + following(7, 1, b"x"),
        ),
        "little": (LITTLE_MEMORY, first(7, 9, send + bytes(900)) + following(7, 8, bytes(900))),
        "too_much": (
            LITTLE_MEMORY,
            b"".join(first(n, 9, send + bytes(900)) for n in range(1, 5)),
        ),
        "large": (
            0,
            first(7, 4, send + b"m\0\0\x30\0" + bytes(4000))
            + following(7, 3, bytes(4000))
            + following(7, 2, bytes(4288))
            + following(7, 1, b""),
        ),
    }
    files = {name: bytes([options]) + parts(data) for name, (options, data) in streams.items()}
    for name in ("accepted", "two", "mixed"):
        options, data = streams[name]
        files[f"{name}_bytewise"] = bytes([options | TAKE]) + parts(data, 1)
        files[f"{name}_glued"] = bytes([options, 0]) + data
    return files


# -- port mapper -----------------------------------------------------------------------------------

REGISTER, LOOK_UP, NAMES = 0, 2, 4
ODD_NAMES = (
    b"\0\0\0\1name at port 1\nname a on port 1\nname a at port 70000\n"
    b"name a at port 1234567\nnone\nname b at port 2 at port 3\n"
)
SERVER, CLOSE, STRANGER = 1, 4, 8


def sections():
    """[(section, request, reply)] of epmd.txt."""
    found = []
    for block in (VECTORS / "epmd.txt").read_text().split("\n[")[1:]:
        lines = dict(re.findall(r"^(req|resp) (.*)$", block, re.MULTILINE))
        found.append((block.split("]")[0], *(bytes.fromhex(lines[k]) for k in ("req", "resp"))))
    return found


def registration(name, extra=b"", high=6, port=5555):
    body = struct.pack(">BHBBHHH", 120, port, 77, 0, high, 5, len(name)) + name
    return message(body + struct.pack(">H", len(extra)) + extra)


def node_reply(name=b"py1", port=5555, high=6, low=5, extra=b""):
    head = struct.pack(">BBHBBHHH", 119, 0, port, 77, 0, high, low, len(name))
    return head + name + struct.pack(">H", len(extra)) + extra


def step(session, data, action=0):
    """One part of one connection."""
    return bytes([session | action]) + bytes([min(len(data), 255)]) + data[:255]


def epmd_files():
    files = {}
    for number, (section, request, answer) in enumerate(sections()):
        query = {"r": REGISTER, "l": LOOK_UP, "n": NAMES, "d": NAMES}[section[0]]
        files[f"client_{number}"] = bytes([query]) + parts(answer)
        files[f"client_{number}_bytewise"] = bytes([query]) + parts(answer, 1)
        files[f"server_{number}"] = bytes([SERVER]) + step(0, request)
    replies = {
        "register_wrong_tag": (REGISTER, b"w\0"),
        "register_creation_0": (REGISTER, b"v\0\0\0\0\0"),
        "register_twice": (REGISTER, b"v\0\0\0\0\4v"),
        "register_twice_old": (REGISTER, b"y\0\0\1y"),
        "look_up_wrong_tag": (LOOK_UP, b"v\0"),
        "look_up_port_0": (LOOK_UP, node_reply(port=0)),
        "look_up_other_name": (LOOK_UP, node_reply(b"py2")),
        "look_up_new_version": (LOOK_UP, node_reply(high=9, low=7)),
        "look_up_long_name": (LOOK_UP, node_reply(b"a" * 1021)),
        "look_up_long_extra": (LOOK_UP, node_reply(extra=b"a" * 1020)),
        "look_up_twice": (LOOK_UP, node_reply() * 200),
        "look_up_cut": (LOOK_UP, node_reply()[:9]),
        "names_no_port": (NAMES, b"\0\1\0\0"),
        "names_odd": (NAMES, ODD_NAMES),
        "names_cut": (NAMES, b"\0\0"),
    }  # fmt: skip
    for name, (query, answer) in replies.items():
        files[f"client_{name}"] = bytes([query]) + parts(answer)
    three = b"".join(step(i, registration(b"n%d" % i)) for i in range(3))
    steps = {
        "full": three + step(3, registration(b"n3")),
        "taken": step(0, registration(b"a")) + step(1, registration(b"a")),
        "again": step(0, registration(b"a")) + step(0, registration(b"a", b"x"), CLOSE) * 3,
        "lists": three + step(0, b"x") + step(3, b"\0\1n") + step(3, b"\0\1d", CLOSE),
        "look_up": step(0, registration(b"a")) + step(1, b"\0\2za") + step(2, b"\0\3za\0"),
        "look_up_unknown": step(0, b"\0\2za") + step(0, b"\0\1z"),
        "byte_after": step(0, registration(b"a")) + step(0, b"x") + step(1, b"\0\2za"),
        "old_node": step(0, registration(b"a", high=5)) + step(1, registration(b"a", high=5)),
        "stranger": step(0, registration(b"a"), CLOSE | STRANGER) + step(0, b"\0\1d", 12),
        "bytewise": b"".join(step(0, bytes([b])) for b in registration(b"a", b"extra")),
        "bad_name": step(0, registration(b"\xff")) + step(1, registration(b"a\0b")),
        "empty_name": step(0, registration(b"")) + step(1, b"\0\2x\1"),
        "long_extra": bytes([0, 0]) + registration(b"a", b"e" * 1021),
        "no_request": step(0, b"\0\0") + step(1, b"\0\1?") + step(2, b"\xff\xff") + step(3, b""),
        "two_requests": step(0, b"\0\1n\0\1n"),
        "too_much": bytes([0, 0]) + bytes(3100),
    }
    files |= {f"server_{name}": bytes([SERVER]) + data for name, data in steps.items()}
    return files


if __name__ == "__main__":
    write("handshake", handshake_files())
    write("frame", frame_files())
    write("header", header_files())
    write("epmd", epmd_files())
