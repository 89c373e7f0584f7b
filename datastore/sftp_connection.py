"""One connection to an SFTP server (protocol 3 with OpenSSH's extensions): requests by number, many under way at once.

Knows no root and no stage. Like a gate's connection it never connects again; who keeps it makes the next one
(`datastore/ssh/link.py`).
"""

from __future__ import annotations

import struct
from concurrent.futures import Future
from typing import NamedTuple

from datastore.ssh.carrier import Lost, Start
from datastore.ssh.connection import Channel

INIT, VERSION, OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT, SETSTAT, FSETSTAT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
OPENDIR, READDIR, REMOVE, MKDIR, RMDIR, READLINK, SYMLINK = 11, 12, 13, 14, 15, 19, 20
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED, EXTENDED_REPLY = 101, 102, 103, 104, 105, 200, 201
TO_READ, TO_WRITE, TO_MAKE, TO_EMPTY, TO_MAKE_ANEW = 1, 2, 8, 16, 32
"""How a file is opened."""
_HAS_SIZE, _HAS_OWNER, _HAS_MODE, _HAS_TIMES = 1, 2, 4, 8
_EOF, _NO_SUCH_FILE, _DENIED = 1, 2, 3
PIECE = 1 << 17
"""Bytes in one request where the server tells that it takes so many; each takes 32 KB."""
SMALL_PIECE = 1 << 15
MAX_REPLY = 1 << 20
RENAME = b"posix-rename@openssh.com"
FREE = b"statvfs@openssh.com"
SYNC = b"fsync@openssh.com"
LIMITS = b"limits@openssh.com"

Reply = tuple[int, bytes]


class Attributes(NamedTuple):
    """What stands under a name. `mode` with its kind, as `stat` tells it; whole seconds."""

    size: int
    mode: int
    mtime_s: int


def string(data: bytes) -> bytes:
    """As the protocol writes it."""
    return struct.pack("!I", len(data)) + data


def attributes(mode: int | None = None, mtime_s: int | None = None, size: int | None = None) -> bytes:
    """What is to be set; None is left as it is."""
    flags, words = 0, b""
    if size is not None:
        flags, words = flags | _HAS_SIZE, words + struct.pack("!Q", size)
    if mode is not None:
        flags, words = flags | _HAS_MODE, words + struct.pack("!I", mode)
    if mtime_s is not None:
        second = min(max(mtime_s, 0), 2**32 - 1)
        flags, words = flags | _HAS_TIMES, words + struct.pack("!II", second, second)
    return struct.pack("!I", flags) + words


# --- what answers mean --------------------------------------------------------------------------------


class EndOfFile(Exception):
    """Nothing more to be read."""


class Refused(Exception):
    """The server could not do it; the text is its own. It says no more than this of most errors."""


class Missing(Refused):
    """There is nothing of that name, or its parent is no directory."""


class Denied(Refused):
    """No right."""


def done(reply: Reply) -> None:
    """Raises `EndOfFile`, and `Refused` for what was not done."""
    kind, body = reply
    if kind != STATUS:
        raise ValueError(f"answer {kind}")
    code = struct.unpack_from("!I", body)[0]
    if code == 0:
        return
    if code == _EOF:
        raise EndOfFile
    said = _Reader(body[4:]).string().decode("utf-8", "replace") if len(body) > 8 else "refused"
    raise {_NO_SUCH_FILE: Missing, _DENIED: Denied}.get(code, Refused)(said)


def expect(reply: Reply, kind: int) -> _Reader:
    """The answer's fields. Raises what `done` does."""
    if reply[0] != kind:
        done(reply)
        raise ValueError(f"answer {reply[0]}")
    return _Reader(reply[1])


def handle_of(reply: Reply) -> bytes:
    """Of a file or directory that was opened."""
    return expect(reply, HANDLE).string()


def attributes_of(reply: Reply) -> Attributes:
    """What stands there."""
    return expect(reply, ATTRS).attributes()


def data_of(reply: Reply) -> bytes:
    """What was read."""
    return expect(reply, DATA).string()


def names_of(reply: Reply) -> list[tuple[bytes, Attributes]]:
    """A part of a directory, or a link's target."""
    reader = expect(reply, NAME)
    found = []
    for _ in range(reader.number()):
        name = reader.string()
        reader.string()  # as `ls -l` shows it
        found.append((name, reader.attributes()))
    return found


class _Reader:
    """Fields of an answer, one after the other. Raises `struct.error` where it is too short."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self) -> int:
        value: int = struct.unpack_from("!I", self._data, self._at)[0]
        self._at += 4
        return value

    def long(self) -> int:
        value: int = struct.unpack_from("!Q", self._data, self._at)[0]
        self._at += 8
        return value

    def string(self) -> bytes:
        length = self.number()
        self._at += length
        return self._data[self._at - length : self._at]

    @property
    def is_at_end(self) -> bool:
        return self._at >= len(self._data)

    def attributes(self) -> Attributes:
        flags = self.number()
        size = self.long() if flags & _HAS_SIZE else 0
        if flags & _HAS_OWNER:
            self.long()
        mode = self.number() if flags & _HAS_MODE else 0
        mtime_s = (self.number(), self.number())[1] if flags & _HAS_TIMES else 0
        if flags & 0x80000000:
            for _ in range(2 * self.number()):
                self.string()
        return Attributes(size, mode, mtime_s)


# --- the connection -----------------------------------------------------------------------------------


class SftpConnection(Channel):
    """Speaks with the SFTP server that `start` starts. Any thread may `send`."""

    def __init__(self, start: Start, where: str, stall_s: float) -> None:
        self.piece = SMALL_PIECE
        self.extensions: frozenset[bytes] = frozenset()
        self.answers = 0
        self._number = 0
        self._sent: dict[int, tuple[Future[Reply], int]] = {}
        self._greeted: Future[frozenset[bytes]] = Future()
        super().__init__(start, where, stall_s)

    def greet(self) -> None:
        """Agree on the protocol. Raises `Lost`."""
        with self._lock:
            self.write(struct.pack("!IBI", 5, INIT, 3))
        self.extensions = self._greeted.result()
        if RENAME not in self.extensions:
            self.close()
            raise Lost(f"the SFTP server of {self.where} has no {RENAME.decode()}: files can't be replaced whole", True)
        self.piece = PIECE if LIMITS in self.extensions else SMALL_PIECE

    def send(self, kind: int, fields: bytes, weight: int = 0) -> Future[Reply]:
        """Ask; its answer will come, or `Lost`. `weight`: bytes awaited. Blocks while what is on its way fills the
        pipe."""
        future: Future[Reply] = Future()
        length = len(fields) + weight
        with self._lock:
            if self.lost is not None:
                future.set_exception(self.lost)
                return future
            if not self._sent:
                self.progressed()
            self._number = (self._number + 1) % 2**32
            self._sent[self._number] = (future, length)
            self.under_way += length
            self.write(struct.pack("!IBI", len(fields) + 5, kind, self._number) + fields)
        return future

    def ask(self, kind: int, fields: bytes) -> Reply:
        """One request and its answer. Raises `Lost`."""
        return self.send(kind, fields).result()

    # --- the reader's thread ------------------------------------------------------------------------------

    def waits(self) -> bool:
        """See `Channel`."""
        return bool(self._sent) or not self._greeted.done()

    def converse(self) -> None:
        """See `Channel`."""
        kind, body = self._read_reply()
        if kind != VERSION:
            raise ValueError
        reader, told = _Reader(body[4:]), set()
        while not reader.is_at_end:
            told.add(reader.string())
            reader.string()
        self._greeted.set_result(frozenset(told))
        while True:
            kind, body = self._read_reply()
            with self._lock:
                future, length = self._sent.pop(struct.unpack_from("!I", body)[0])
                self.under_way -= length
            self.answers += 1
            future.set_result((kind, body[4:]))

    def _read_reply(self) -> Reply:
        length, kind = struct.unpack("!IB", self.read(5))
        if not 1 <= length <= MAX_REPLY:
            raise ValueError
        return kind, bytes(self.read(length - 1))

    def ended(self, lost: Lost) -> None:
        """See `Channel`."""
        with self._lock:
            sent, self._sent = self._sent, {}
        if not self._greeted.done():
            self._greeted.set_exception(lost)
        for future, _ in sent.values():
            future.set_exception(lost)
