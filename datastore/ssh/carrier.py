"""Carries the bytes of a connection to the datastore's machine: an OpenSSH process, and the reason of its end.

OpenSSH encrypts in a process of its own, so Python's threads do not wait for it. Standard library only: a worker has
nothing else. Knows no protocol, and never reconnects.
"""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress

from datastore.gate import PIECE
from datastore.problem import PartAway

TOLD_BYTES = 1 << 16
"""How much of the remote end's last output is read."""
_SET_PIPE_SIZE = 1031


class Lost(PartAway):
    """The connection ended; the text says why. `for_good`: trying again does not help; `is_refusal`: with this key or
    certificate."""

    def __init__(self, reason: str, for_good: bool = False, is_refusal: bool = False, remedy: str = "") -> None:
        super().__init__(reason, remedy)
        self.for_good = for_good
        self.is_refusal = is_refusal


class Carrier:
    """Runs `command`, an `ssh` that starts a program at the remote end. One thread reads, one at a time writes, any may
    `kill`. Raises `Lost` if ssh is not installed."""

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
            raise Lost(f"{command[0]} cannot be started: {error.strerror}; install the OpenSSH client", True) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        for handle in (self._in, self._out):
            with suppress(OSError):
                fcntl.fcntl(handle, _SET_PIPE_SIZE, PIECE)
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)

    def read_into(self, view: memoryview, wait_s: float) -> int | None:
        """The number of bytes read, 0 at the end, None if none came within `wait_s`. Raises `OSError`."""
        return os.readv(self._out, [view]) if self._poll.poll(wait_s * 1000) else None

    def write(self, data: memoryview) -> int:
        """The number of bytes written; blocks until it is at least one. Raises `OSError` after the end."""
        return os.write(self._in, data)

    def kill(self) -> None:
        """End the process; wakes a thread that reads or writes. May be called again."""
        self._process.kill()

    def bury(self) -> Lost:
        """After `kill`, once, by the reading thread: release everything, and return why it ended."""
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


Start = Callable[[], Carrier]
"""Starts the command again. Raises `Lost`."""


def explain(where: str, told: str) -> Lost:
    """The reason, from what `ssh` or the remote end printed before it ended."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    last = lines[-1] if lines else "the connection was cut"
    if "HOST IDENTIFICATION HAS CHANGED" in told or "Host key verification failed" in told:
        return changed(where, next((line for line in lines if "SHA256:" in line), "an unknown one").strip(" ."))
    if ("Permission denied" in told and "publickey" in told) or "Too many authentication failures" in told:
        return not_authorised(where)
    if "Could not resolve hostname" in told:
        return Lost(f"the name of {where} cannot be resolved: {last}")
    if "can't open file" in told or "python3: not found" in told or "command not found" in told:
        return Lost(
            f"{where} has no gate or no python3 ({last})", True, remedy="run python admin.py set_datastore again"
        )
    return Lost(f"{where}: {last}")


def stalled(where: str, silent_s: float) -> Lost:
    """Nothing moved, and no reason was given."""
    return Lost(f"{where} stalled: nothing moved for {silent_s:g} s")


def changed(where: str, offered: str) -> Lost:
    """The host showed another key than the pinned one."""
    return Lost(
        f"REFUSED: the host key of {where} is not the one that was pinned ({offered} is offered now)."
        " Another machine may answer in its place, or it was reinstalled",
        for_good=True,
        remedy="if it was reinstalled: python admin.py set_datastore ADDRESS --new_host_key",
    )


def not_authorised(where: str) -> Lost:
    """The host refused the key."""
    return Lost(f"{where} refuses this key or certificate: it is not authorised there, or it expired", True, True)
