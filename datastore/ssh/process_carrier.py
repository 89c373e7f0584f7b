"""Bytes by an OpenSSH process: a worker's way, and that of a person's own files. Standard library alone.

OpenSSH encrypts in a process of its own, so Python's threads don't wait for it.
"""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import tempfile
from contextlib import suppress

from datastore.gate import PIECE
from datastore.ssh.carrier import TOLD_BYTES, Carrier, Lost, explain

_SET_PIPE_SIZE = 1031


class ProcessCarrier(Carrier):
    """Starts `command`, an `ssh` that runs something at its other end. Raises `Lost` where there is no such program."""

    def __init__(self, command: list[str], where: str) -> None:
        self._where = where
        self._errors = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, bufsize=0,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise Lost(f"{command[0]} can't be started: {error.strerror}; install the OpenSSH client", True) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        for handle in (self._in, self._out):
            with suppress(OSError):
                fcntl.fcntl(handle, _SET_PIPE_SIZE, PIECE)
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)

    def read_into(self, view: memoryview, wait_s: float) -> int | None:
        """See `Carrier`."""
        return os.readv(self._out, [view]) if self._poll.poll(wait_s * 1000) else None

    def write(self, data: memoryview) -> int:
        """See `Carrier`."""
        return os.write(self._in, data)

    def kill(self) -> None:
        """See `Carrier`."""
        self._process.kill()

    def bury(self) -> Lost:
        """See `Carrier`."""
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._errors.seek(0)
        told = self._errors.read(TOLD_BYTES).decode("utf-8", "replace")
        self._errors.close()
        return explain(self._where, told)
