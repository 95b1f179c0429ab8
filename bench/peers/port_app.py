"""What an Erlang port with {packet, 4} talks to: bench/instead.py. Terms in, terms out.

python port_app.py tumen|erlang_py
"""

from __future__ import annotations

import struct
import sys
from typing import BinaryIO

from jobs import handler_of


def main(codec: str, source: BinaryIO, target: BinaryIO) -> None:
    handle = handler_of(codec)
    while head := source.read(4):
        data = handle(source.read(struct.unpack(">I", head)[0]))
        target.write(struct.pack(">I", len(data)) + data)
        target.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer)
