"""A port mapper and relays in between, which keep what two nodes say to each other.

The BEAM that is to be listened to asks `Tap` for ports instead of its own port mapper. `Tap` relays
everything, and for a look-up it answers with the port of a relay to the node that was looked up.
`Tap.pcap` is the dialogue as a capture file, one TCP conversation with made-up addresses.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

_READ = 1 << 16
# What fits into an IPv4 packet beside its headers, bytes.
_SEGMENT = 32768
_CLIENT, _SERVER = 0, 1
# Ports of the capture; the second is what the dissector is told.
PORTS = (40000, 44444)

_PORT_PLEASE2_REQ = 122
_PORT2_RESP = 119
# The last message of the handshake of each side.
_CHALLENGE_REPLY, _CHALLENGE_ACK = ord("r"), ord("a")

_SYN, _ACK, _PSH = 0x02, 0x10, 0x08


class Tap:
    """``async with Tap(epmd_port) as tap``: `tap.port` is the port mapper to be given to a BEAM."""

    def __init__(self, epmd_port: int) -> None:
        self._epmd_port = epmd_port
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        # (who, bytes), in the order in which they came
        self.said: list[tuple[int, bytes]] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        self.port = await self._listen(self._mapper)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _listen(self, serve: object) -> int:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)  # type: ignore[arg-type]
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _mapper(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to the port mapper."""
        self._keep()
        head = await reader.readexactly(2)
        request = await reader.readexactly(int.from_bytes(head))
        there = await asyncio.open_connection("127.0.0.1", self._epmd_port)
        there[1].write(head + request)
        if request[0] == _PORT_PLEASE2_REQ:
            answer = await there[0].read()
            if len(answer) > 4 and answer[0] == _PORT2_RESP and answer[1] == 0:
                port = await self._relay(int.from_bytes(answer[2:4]))
                answer = answer[:2] + port.to_bytes(2) + answer[4:]
            writer.write(answer)
            writer.close()
            there[1].close()
        else:
            await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))

    async def _relay(self, port: int) -> int:
        """A listener whose connections go to `port` and are kept."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._keep()
            there = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(
                _pump(reader, there[1], self.said, _CLIENT),
                _pump(there[0], writer, self.said, _SERVER),
            )

        return await self._listen(serve)

    def _keep(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def pcap(self, path: Path) -> None:
        """Writes what was said as a capture file (pcap 2.4, raw IPv4)."""
        path.write_bytes(
            struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 0xFFFF, 101) + b"".join(self._packets())
        )

    def _packets(self) -> list[bytes]:
        sent = [1000, 5000]
        packets = [
            _packet(_CLIENT, _SYN, sent[_CLIENT], 0),
            _packet(_SERVER, _SYN | _ACK, sent[_SERVER], sent[_CLIENT] + 1),
        ]
        sent = [sent[0] + 1, sent[1] + 1]
        cutters = (_Cutter(_CHALLENGE_REPLY), _Cutter(_CHALLENGE_ACK))
        for who, data in self.said:
            for part in cutters[who].cut(data):
                packets.append(_packet(who, _ACK | _PSH, sent[who], sent[1 - who], part))
                sent[who] = (sent[who] + len(part)) & 0xFFFFFFFF
        return packets


class _Cutter:
    """Cuts one direction into packets: each message of the handshake in a packet of its own, as the
    dissector knows a handshake only by a message that fills its packet."""

    def __init__(self, last: int) -> None:
        self._last = last
        self._shaken = False
        self._rest = b""

    def cut(self, data: bytes) -> Iterator[bytes]:
        self._rest += data
        while not self._shaken and len(self._rest) > 2:
            size = 2 + int.from_bytes(self._rest[:2])
            if len(self._rest) < size:
                return
            self._shaken = self._rest[2] == self._last
            yield self._rest[:size]
            self._rest = self._rest[size:]
        if self._shaken:
            data, self._rest = self._rest, b""
            for start in range(0, len(data), _SEGMENT):
                yield data[start : start + _SEGMENT]


def _packet(who: int, flags: int, sequence: int, acknowledged: int, data: bytes = b"") -> bytes:
    """One captured packet: its record header, IPv4, TCP."""
    source, target = PORTS[who], PORTS[1 - who]
    address = (bytes([10, 0, 0, 1 + who]), bytes([10, 0, 0, 2 - who]))
    tcp = struct.pack(
        ">HHIIBBHHH", source, target, sequence, acknowledged, 5 << 4, flags, 0xFFFF, 0, 0
    )
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 40 + len(data), 0, 0, 64, 6, 0) + b"".join(address)
    packet = ip + tcp + data
    return struct.pack("<IIII", 0, 0, len(packet), len(packet)) + packet


async def _pump(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    said: list[tuple[int, bytes]] | None = None,
    who: int = 0,
) -> None:
    """Carries bytes until the sender ends."""
    try:
        while data := await reader.read(_READ):
            if said is not None:
                said.append((who, data))
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()
