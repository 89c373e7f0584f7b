"""The end of an output stream: how much is kept, and how it is shown when the beginning is missing."""

from __future__ import annotations

from ecloud.model.tasks import FAILURE_TAIL_BYTES

NOTICE_BYTES = 80
"""Room for the line that states how much is missing."""


class Tail:
    """The last bytes of a stream."""

    def __init__(self, dropped: int = 0, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.dropped = dropped
        """Bytes before `data`."""

    def add(self, piece: bytes) -> None:
        """Keep at least the last `FAILURE_TAIL_BYTES` of everything added."""
        self.data += piece
        excess = len(self.data) - FAILURE_TAIL_BYTES
        if excess > FAILURE_TAIL_BYTES:
            del self.data[:excess]
            self.dropped += excess

    def text(self, limit: int = FAILURE_TAIL_BYTES) -> str:
        """Return at most the last `limit` bytes as text.

        If some are missing, the first line states how many, and the rest begins at a line of the stream if possible.
        """
        if not self.dropped and len(self.data) <= limit:
            return decoded(self.data)
        kept = bytes(self.data[-(limit - NOTICE_BYTES) :])
        kept = kept[_start_of_line(kept) :]
        missing = self.dropped + len(self.data) - len(kept)
        return f"[ECLOUD kept the end only: {missing:,} bytes are missing before this line]\n{decoded(kept)}"


def decoded(data: bytes | bytearray) -> str:
    """Decode any bytes as text that a database accepts."""
    return data.decode("utf-8", "replace").replace("\0", "\ufffd")


def _start_of_line(data: bytes) -> int:
    """The start of the first whole line; of the first whole character if no line ends before the last one."""
    newline = data.find(b"\n")
    if 0 <= newline < len(data) - 1:
        return newline + 1
    at = 0
    while at < min(3, len(data)) and data[at] & 0xC0 == 0x80:
        at += 1
    return at


class Decoder:
    """Decodes a stream in pieces: a character that a piece cuts in two is kept for the next one."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, piece: bytes, is_last: bool = False) -> tuple[int, str]:
        """Return the text that is complete now, and how many bytes before `piece` it begins."""
        before = len(self._rest)
        data = self._rest + piece
        cut = len(data) if is_last else _end_of_characters(data)
        self._rest = data[cut:]
        return before, decoded(data[:cut])


def _end_of_characters(data: bytes) -> int:
    """Return the start of the last character if it is incomplete; else the end of the data."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 1
        return len(data) - back if length > back else len(data)
    return len(data)
