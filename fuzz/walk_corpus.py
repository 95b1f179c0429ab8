"""Writes corpus/walk: captured terms, one of each kind that they lack, and each refusal once.

The first byte of a file picks limits, see walk_fuzz.c. Run it after a change of the vectors or of
what the walk knows.
"""

import hashlib
import pathlib
import re
from collections.abc import Iterator

HERE = pathlib.Path(__file__).parent
VECTORS = HERE.parent / "tests" / "vectors"
CORPUS = HERE / "corpus" / "walk"

# The options of walk_fuzz.c: low limits, and three atoms in the cache.
NONE, DEPTH, BIG, DECODED, CACHE = 0, 1, 2, 4, 3 << 3

# One term a line, blanks between fields; (n)xx is n times the byte xx.
ACCEPTED = """
6c00000000 770161
6e0200 0500
6e0000
6e0101 00
6f00000001 00 05
4d00000001 03 ff
4d00000000 00
66 770161 00000001 03
67 770161 (8)00 03
72 0002 770161 03 00000001 ffffffff
65 770161 00000001 03
5a 0000 770161 00000001
7303 e9e9e9
640002 6f6b
760002 6f6b
760100 (254)61 c3a9
7703 e282ac
7702 c3a9
7704 f09f9880
7709 (7)61 c3a9
6900000002 6101 6102
6b0003 616263
71 770161 770162 620000012c
6802 770161 6d00000003 616263
6c0000000a (20)61 6a
6c0000000a 6101 6201020304 6102 6201020304 6103 6201020304 6104 6201020304 6105 6201020304 6a
6c00000008 (40)62 6a
6c00000008 46(8)22 46(8)22 46(8)22 46(8)22 46(8)22 46(8)22 46(8)22 46(8)22 6a
6c0000000a 770161 770161 770161 770161 770161 770161 770161 770161 770161 770161 6a
6c00000009 6d(4)00 6d(4)00 6d(4)00 6d(4)00 6d(4)00 6d(4)00 6d(4)00 6d(4)00 6d(4)00 6a
7400000002 6101 6a 770161 6b000161
70 00000040 00 (16)11 00000000 00000000 770161 6100 6200000001 58770161(12)00
70 00000004 00 (16)11 00000000 00000000 770161 6100 6200000001 58770161(12)00
70 00000040 00 (16)11 00000000 00000002 770161 6100 6200000001 58770161(12)00 6a 6801 6101
70 00000040 00 (16)11 00000000 00000000 770161 6100 6e040000000080 58770161(12)00
"""

REFUSED = """
00
83
75
79
50 00000001
52 00
68
6802
6c0000
74
69000000
61
620000
46000000
63
77
7705
7601
64ffff
6e
6e05
6f000000
6d0000
6d00000005
4d00
4d00000005 03
6b00
6b0005
58
5877
58770161
78
5a
5a0001
71
71770161
71770161770162
7177016177016262
70
4d00000001 00 ff
4d00000000 01
58 6101 00
67 770161 (8)00 04
72 0001 770161 04 00000000
72 0001 770161 03 00040000
65 770161 00040000 03
5a 0006 770161 (28)00
46 7ff0000000000000
7100
71 770161 770162 770163
71 770161 770162 62ffffffff
7701 ff
7702 c080
7703 eda080
7703 e08080
7704 f4908080
7704 f0808080
7701 c3
7702 e282
7703 f09f98
7702 c361
7703 e26161
640100 (256)61
760100 (256)61
7603fd (1021)61
6808 6808 (12)6a
69ffffffff 6a
74ffffffff 6a
6802 6a
6c00000001 6a 75
7400000001 6a 75
7400000001 75 6a
6900000001 75
70 00000003 00 (16)11 00000000 00000000 770161 6100 6200000001 58770161(12)00
70 00000040 00 (16)11 00000000 00000100 770161 6100 6200000001 58770161(12)00
70 00000040 00 (16)11 00000000 00000000 6101
70 00000040 00 (16)11 00000000 00000000 770161
70 00000040 00 (16)11 00000000 00000000 770161 770161
70 00000040 00 (16)11 00000000 00000000 770161 6100 6e0800(7)0008 58770161(12)00
70 00000040 00 (16)11 00000000 00000000 770161 6100 6e0900(9)01
70 00000040 00 (16)11 00000000 00000000 770161 6e0400 0000
70 00000040 00 (16)11 00000000 00000000 770161 6100 6200000001 770161
70 00000040 00 (16)11 00000000 00000001 770161 6100 6200000001 58770161(12)00 75
"""

LIMITED = [
    (CACHE, "6803 5200 58 5201 (12)00 5202"),
    (CACHE, "5a 0002 5201 (12)00"),
    (CACHE, "5203"),
    (DEPTH, "6801 6801 6801 6801 6801 6a"),
    (DEPTH, "6802 6802 6802 6802 6a6a 6a6a 6a"),
    (DEPTH, "6801 6801 6801 6803 6801 6801 6a 6a 6802 6a 6a"),
    (DEPTH, "6801 6801 6801 6801 6801 75"),
    (BIG, "6802 6e0900 (9)01 6101"),
    (BIG, "6f00000009 00 (9)01"),
    (DECODED, "6814 (20)6a"),
    (NONE, "6801" * 150 + "6a"),
]

FLOAT_TEXTS = """
1.5e+00 -0.001e-5 +00.0 1.7976931348623157e308 1.0e99999999 1 1. 1.5e 1.5x 1.8e308 1.0e309
1.79769313486231581e308 .5
"""


def from_hex(text: str) -> bytes:
    """Bytes of one line of the lists above."""
    text = re.sub(r"\((\d+)\)(..)", lambda m: m[2] * int(m[1]), text)
    return bytes.fromhex(text)


def captured() -> Iterator[bytes]:
    """The terms that the vectors have in full, without their version byte."""
    for path in sorted(VECTORS.glob("etf_otp*.txt")):
        for line in path.read_text(encoding="ascii").splitlines():
            match = re.search(r" 83((?:[0-9a-f]{2})+)$", line)
            if match and not line.startswith("decode"):
                yield bytes.fromhex(match[1])


def seeds() -> Iterator[tuple[int, bytes]]:
    """Options and term of each file."""
    for term in captured():
        yield NONE, term
    for line in (ACCEPTED + REFUSED).splitlines():
        if line:
            yield NONE, from_hex(line)
    for text in FLOAT_TEXTS.split():
        yield NONE, b"c" + text.encode().ljust(31, b"\0")
    for options, line in LIMITED:
        yield options, from_hex(line)
    yield NONE, b""


def main() -> None:
    """Replaces the corpus."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    for old in CORPUS.iterdir():
        old.unlink()
    for options, term in seeds():
        content = bytes([options]) + term
        (CORPUS / hashlib.sha256(content).hexdigest()[:16]).write_bytes(content)


if __name__ == "__main__":
    main()
