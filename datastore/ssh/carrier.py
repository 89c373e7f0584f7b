"""What carries the bytes of a connection to a command on the datastore's machine, and in what words its end is told.

One of two: an OpenSSH process (`process_carrier.py`), which needs nothing but the standard library, and a channel of
fabric (`fabric_carrier.py`), the boss's. Knows no protocol, and never connects again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

TOLD_BYTES = 1 << 16
"""Of what the other end printed as its last words, so much is read."""


class Lost(Exception):
    """The connection is gone; the text says why. `for_good`: trying again is of no use; `is_refusal`: with this key or
    certificate."""

    def __init__(self, reason: str, for_good: bool = False, is_refusal: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good
        self.is_refusal = is_refusal


class Carrier(ABC):
    """A command that runs on the datastore's machine. One thread reads, one at a time writes, any may `kill`."""

    @abstractmethod
    def read_into(self, view: memoryview, wait_s: float) -> int | None:
        """How many bytes came, 0 at the end, None where none came for so long. Raises `OSError`."""

    @abstractmethod
    def write(self, data: memoryview) -> int:
        """How many bytes were taken; blocks until that is one at least. Raises `OSError` when it is over."""

    @abstractmethod
    def kill(self) -> None:
        """End it; who reads or writes is woken. May be called again."""

    @abstractmethod
    def bury(self) -> Lost:
        """After `kill`, once and by the one who reads: let go of everything, and say why it ended."""


Start = Callable[[], Carrier]
"""Starts the command anew. Raises `Lost`."""


def explain(where: str, told: str) -> Lost:
    """What `ssh` or the other end printed before it ended, as a reason."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    last = lines[-1] if lines else "the connection was cut"
    if "HOST IDENTIFICATION HAS CHANGED" in told or "Host key verification failed" in told:
        return changed(where, next((line for line in lines if "SHA256:" in line), "an unknown one").strip(" ."))
    if ("Permission denied" in told and "publickey" in told) or "Too many authentication failures" in told:
        return not_authorised(where)
    if "Could not resolve hostname" in told:
        return Lost(f"the name of {where} can't be resolved: {last}")
    if "can't open file" in told or "python3: not found" in told or "command not found" in told:
        return Lost(f"{where} has no gate or no python3 ({last}): python admin.py set_datastore again", True)
    return Lost(f"{where}: {last}")


def stalled(where: str, silent_s: float) -> Lost:
    """Nothing moved, and nothing said why."""
    return Lost(f"{where} stalled: nothing moved for {silent_s:g} s")


def changed(where: str, offered: str) -> Lost:
    """Another host key than the pinned one was shown."""
    return Lost(
        f"REFUSED: the host key of {where} is not the one that was pinned ({offered} is offered now)."
        " Somebody may be in between, or the machine was installed anew."
        " If you know that it was: python admin.py set_datastore ADDRESS --new_host_key",
        for_good=True,
    )


def not_authorised(where: str) -> Lost:
    """The key that was shown opens nothing."""
    return Lost(f"{where} refuses this key or certificate: it is not authorised there, or it expired", True, True)
