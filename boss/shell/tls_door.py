"""`python -m boss.shell.tls_door LISTEN PORT BROKER_PORT DIRECTORY`: TLS and a password in front of a broker that has
neither.

Ends TLS, reads the first packet of MQTT, and passes a connection on to the loopback broker only if its CONNECT has the
right name and password. DIRECTORY: the broker's home, with the files `tls.pem`, `tls.key` and `password`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ssl
import sys
from pathlib import Path

HOST = "127.0.0.1"
FIRST_PACKET_S = 10.0
"""How long a connection may take for its first packet."""
MOST_BYTES = 64 * 1024
"""Largest first packet: a CONNECT with its last will."""
PIECE_BYTES = 256 * 1024
REFUSED = b"\x20\x02\x00\x05"
"""CONNACK: not authorised."""


class Unwelcome(Exception):
    """The first packet is no CONNECT, or has the wrong name or password."""


async def first_packet(reader: asyncio.StreamReader) -> bytes:
    """The whole first packet. Raises `Unwelcome`, `asyncio.IncompleteReadError`."""
    head = await reader.readexactly(1)
    length = shift = 0
    while True:
        byte = await reader.readexactly(1)
        head += byte
        length |= (byte[0] & 0x7F) << shift
        shift += 7
        if not byte[0] & 0x80:
            break
        if shift > 21:
            raise Unwelcome
    if head[0] != 0x10 or length > MOST_BYTES:
        raise Unwelcome
    return head + await reader.readexactly(length)


def login(packet: bytes) -> tuple[bytes, bytes]:
    """Name and password of a CONNECT (MQTT 3.1.1, section 3.1). Raises `Unwelcome`."""
    at = 1
    while packet[at] & 0x80:
        at += 1
    at += 1

    def text() -> bytes:
        nonlocal at
        if at + 2 > len(packet):
            raise Unwelcome
        length = int.from_bytes(packet[at : at + 2], "big")
        found = packet[at + 2 : at + 2 + length]
        if len(found) != length:
            raise Unwelcome
        at += 2 + length
        return found

    if text() != b"MQTT" or at + 4 > len(packet):
        raise Unwelcome
    flags = packet[at + 1]
    at += 4
    text()  # the client's id
    if flags & 0x04:
        text(), text()  # topic and payload of the last will
    if not flags & 0x80 or not flags & 0x40:
        raise Unwelcome
    return text(), text()


class Door:
    """Admits clients that know the password."""

    def __init__(self, broker_port: int, user: bytes, password: bytes) -> None:
        self._broker_port = broker_port
        self._user = user
        self._password = password

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        try:
            packet = await asyncio.wait_for(first_packet(reader), FIRST_PACKET_S)
            user, password = login(packet)
            if not (hmac.compare_digest(user, self._user) & hmac.compare_digest(password, self._password)):
                raise Unwelcome
            inner_reader, inner_writer = await asyncio.open_connection(HOST, self._broker_port)
        except Unwelcome:
            writer.write(REFUSED)
            await _close(writer)
            return
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            await _close(writer)
            return
        inner_writer.write(packet)
        tasks = {asyncio.create_task(_pass(reader, inner_writer)), asyncio.create_task(_pass(inner_reader, writer))}
        _, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in left:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(_close(writer), _close(inner_writer))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(PIECE_BYTES):
            writer.write(piece)
            await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        writer.close()
        await writer.wait_closed()


async def _main(listen: str, port: int, broker_port: int, directory: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "tls.pem", directory / "tls.key")
    user, _, password = (directory / "password").read_text().strip().partition(":")
    door = Door(broker_port, user.encode(), password.encode())
    server = await asyncio.start_server(door.serve, listen, port, ssl=context)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
