"""Sums of files behind an SFTP server: made there by `sha256sum` where a shell and it are to be had, else by reading
the files back. So what is compared was read from the datastore, not what was sent there."""

from __future__ import annotations

import hashlib
import os
import select
import shlex
import struct
import subprocess
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from itertools import islice

from datastore import sftp_connection as sftp
from datastore.port import DatastoreAway
from datastore.sftp_connection import Refused, Reply, string
from datastore.sftp_tree import AT_ONCE, Tree, at

READ_BACK = 1 << 15
"""Files up to this size are read back in one request: cheaper than a process there."""
WINDOW_BYTES = 4 << 20
GREETING_S = 20.0
SLOWEST = 5_000_000
"""Bytes per second that `sha256sum` reads at least."""
_READY = "ECLOUD-SHELL"
_HELLO = f"command -v sha256sum >/dev/null && echo {_READY} sums || echo {_READY} none"


class Shell:
    """A shell on the datastore that is kept, started when first needed. Where there is none it says so, once."""

    def __init__(self, command: Callable[[], list[str]], stall_s: float) -> None:
        self._command = command
        self._stall_s = stall_s
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        self.has_shell = True
        self.has_sums = True
        self._is_refused = False

    def start(self) -> None:
        """Find out what there is. A connection that can't be made now says nothing of it."""
        if self._is_refused or (self._process is not None and self._process.poll() is None):
            return
        self.close()
        self._process = subprocess.Popen(
            self._command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            start_new_session=True,
        )  # fmt: skip
        try:
            self._write(_HELLO)
            told = self._line(GREETING_S)
            while not told.startswith(_READY):  # what a login script prints
                told = self._line(GREETING_S)
            self.has_shell, self.has_sums = True, told.endswith("sums")
        except (OSError, EOFError):
            self.has_shell = self.has_sums = False
            # An account for SFTP alone says so with 1; where ssh did not get in, which it says with 255, it may later.
            with suppress(subprocess.TimeoutExpired):
                self._is_refused = self._process.wait(1.0) != 255
            self.close()

    def sums(self, paths: list[tuple[bytes, int]]) -> list[str]:
        """Hex of each file, empty where it can't be read. Raises `DatastoreAway`."""
        found: list[str] = []
        try:
            for path, size in paths:
                self._write(f"sha256sum < {shlex.quote(os.fsdecode(path))} || echo -")
                found.append(self._line(self._stall_s + size / SLOWEST).split()[0].strip("-"))
        except (OSError, EOFError, IndexError) as error:
            self.close()
            raise DatastoreAway(f"the sum of {os.fsdecode(path)} was not told: {error or 'cut off'}") from error
        return found

    def sync(self, root: str) -> None:
        """Everything that was written is on the disk."""
        try:
            self._write(f"sync -f {shlex.quote(root)} 2>/dev/null || sync; echo done")
            self._line(self._stall_s + 60)
        except (OSError, EOFError) as error:
            self.close()
            raise DatastoreAway(f"the datastore's disk can't be waited for: {error or 'cut off'}") from error

    def close(self) -> None:
        """End it."""
        process, self._process, self._buffer = self._process, None, b""
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                with suppress(OSError):
                    stream.close()

    def _write(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(os.fsencode(line) + b"\n")

    def _line(self, timeout_s: float) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        handle, deadline_s = self._process.stdout.fileno(), time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        while b"\n" not in self._buffer:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not poll.poll(left_s * 1000):
                raise TimeoutError("no answer in time")
            data = os.read(handle, 1 << 16)
            if not data:
                raise EOFError
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode("utf-8", "replace")


def sums_of(tree: Tree, shell: Shell, files: dict[str, int]) -> dict[str, str]:
    """The sum of each name, given with its size; empty where it has no right to be read."""
    large = [name for name, size in files.items() if size > READ_BACK]
    if large:
        shell.start()
        if shell.has_sums:
            told = dict(zip(large, shell.sums([(tree.path(name), files[name]) for name in large])))
            return {**_read_back(tree, {name: size for name, size in files.items() if name not in told}), **told}
    return _read_back(tree, files)


def _read_back(tree: Tree, files: dict[str, int]) -> dict[str, str]:
    sums: dict[str, str] = {}
    names = iter(files)
    while part := list(islice(names, AT_ONCE)):
        opening = [tree.send(sftp.OPEN, name, struct.pack("!II", sftp.TO_READ, 0)) for name in part]
        small: list[tuple[str, Future[Reply]]] = []
        handles: list[bytes] = []
        for name, future in zip(part, opening):
            try:
                handle = sftp.handle_of(future.result())
            except Refused:
                sums[name] = ""
                continue
            handles.append(handle)
            if files[name] > READ_BACK:
                sums[name] = _read_large(tree, handle, files[name])
            elif files[name]:
                fields = at(handle, 0) + struct.pack("!I", READ_BACK)
                small.append((name, tree.connection.send(sftp.READ, fields, files[name])))
            else:
                sums[name] = hashlib.sha256().hexdigest()
        for name, future in small:
            try:
                sums[name] = hashlib.sha256(sftp.data_of(future.result())).hexdigest()
            except (Refused, sftp.EndOfFile):
                sums[name] = "unreadable"
        for handle in handles:
            tree.connection.send(sftp.CLOSE, string(handle))
    return sums


def _read_large(tree: Tree, handle: bytes, size: int) -> str:
    digest = hashlib.sha256()
    waiting: deque[tuple[int, int, Future[Reply]]] = deque()
    asked = held = 0

    def ask(start: int, count: int) -> tuple[int, int, Future[Reply]]:
        return start, count, tree.connection.send(sftp.READ, at(handle, start) + struct.pack("!I", count), count)

    while asked < size or waiting:
        while asked < size and held < WINDOW_BYTES:
            count = min(tree.connection.piece, size - asked)
            waiting.append(ask(asked, count))
            asked, held = asked + count, held + count
        start, count, future = waiting.popleft()
        try:
            data = sftp.data_of(future.result())
        except (Refused, sftp.EndOfFile):
            return "unreadable"
        digest.update(data)
        held -= len(data)
        if len(data) < count:
            waiting.appendleft(ask(start + len(data), count - len(data)))
    return digest.hexdigest()
