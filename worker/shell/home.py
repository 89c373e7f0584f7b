"""A worker's home: locked by one process, with the spool of outcomes and the record of running tasks for its
successor."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path

import msgspec

from datastore.problem import PartAway
from ecloud.config import identity, left_overs
from ecloud.model.tasks import Outcome

COMPACT_BYTES = 8 * 1024 * 1024
"""The spool is rewritten when it exceeds this and more than half of it was confirmed."""


class HomeTaken(PartAway):
    """Another worker process uses this home."""


class WorkerHome:
    """A directory for one worker process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HomeTaken(f"another worker process uses {self.path}: give this one its own --home") from None
        self.copied_from = ""
        """The name of the original, if this process found the home to be a copy."""
        self.name = self._name()
        self.shared = self.path / "shared"
        self.control = self.path / "control"
        self.ssh = self.path / "ssh"
        self.cache = self.path / "cache"
        for directory in (self.shared, self.control, self.ssh):
            directory.mkdir(exist_ok=True, mode=0o700)

    def _name(self) -> str:
        """The name of this home. A copy gets a new one: two workers with one name would displace each other."""
        path, here = self.path / "name", identity.of(self.path)
        with contextlib.suppress(FileNotFoundError):
            name, _, mark = path.read_text().strip().partition("\n")
            if not mark or identity.is_same(mark, here):
                self._write_name(path, name, here)
                return name
            self.copied_from = name
            self._forget_the_original()
        name = "h" + secrets.token_hex(8)
        self._write_name(path, name, here)
        return name

    @staticmethod
    def _write_name(path: Path, name: str, here: str) -> None:
        aside = path.with_suffix(".new")
        aside.write_text(f"{name}\n{here}\n")
        aside.replace(path)

    def _forget_the_original(self) -> None:
        """Remove the original's outcomes, record of running tasks, and key from the copy."""
        for item in ("spool.jsonl", left_overs.RUNNING, "ssh", "work", "control"):
            path = self.path / item
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def clear_control(self) -> None:
        """Remove notes and scripts of attempts that an earlier process left. None of those runs now."""
        for left in self.control.iterdir():
            with contextlib.suppress(OSError):
                left.unlink()


class RunningRecord:
    """Running tasks, on disk: (pid, start time) of each shell, so that a later process can end what this one left."""

    def __init__(self, home: WorkerHome) -> None:
        self._home = home.path
        self._directory = home.path / left_overs.RUNNING
        with contextlib.suppress(FileExistsError):
            self._directory.mkdir()

    def add(self, pid: int) -> None:
        """Record that a group leader was started."""
        with contextlib.suppress(OSError):
            os.symlink(left_overs.trace(pid), self._directory / str(pid))

    def remove(self, pid: int) -> None:
        """Record that it ended, with all of its group."""
        with contextlib.suppress(OSError):
            os.unlink(self._directory / str(pid))

    def clear(self) -> None:
        """Record that all processes have ended."""
        with contextlib.suppress(OSError):
            for item in os.listdir(self._directory):
                self.remove(int(item))

    def end_left_over(self) -> int:
        """KILL the tasks that an earlier process of this home left. Returns the number of processes."""
        return left_overs.end(self._home)


class _Heard(msgspec.Struct):
    """A line of the spool: the boss's epoch and batch as last received when the outcomes below were written."""

    epoch: int
    batch: int


class Spool:
    """Outcomes on disk until the boss confirmed them: one append per batch; an incomplete last line is skipped."""

    def __init__(self, home: WorkerHome) -> None:
        self._path = home.path / "spool.jsonl"
        self._held: dict[tuple[int, int], Outcome] = {}
        self._answered = 0
        self._encoder = msgspec.json.Encoder()
        self.heard = (0, 0)
        """Epoch and batch of the boss as last received when the remaining outcomes were written."""
        self.found = tuple(self._read())
        self._file = open(self._path, "ab", buffering=0)
        self._rewrite()

    def _read(self) -> list[Outcome]:
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        for line in lines:
            with contextlib.suppress(msgspec.MsgspecError):
                heard = msgspec.json.decode(line, type=_Heard)
                self.heard = (heard.epoch, heard.batch)
                continue
            with contextlib.suppress(msgspec.MsgspecError):
                outcome = msgspec.json.decode(line, type=Outcome)
                self._held[(outcome.task_no, outcome.number)] = outcome
        return list(self._held.values())

    def add(self, outcomes: list[Outcome], heard: tuple[int, int]) -> None:
        """Keep outcomes, with the epoch and batch `heard` from the boss. Raises `OSError` (a full disk): then they must
        not be sent."""
        data = b"".join(self._encoder.encode(outcome) + b"\n" for outcome in outcomes)
        if heard != self.heard or not self._file.tell():
            data = self._encoder.encode(_Heard(*heard)) + b"\n" + data
        position = self._file.tell()
        try:
            written = self._file.write(data)
            if written != len(data):
                raise OSError(28, "No space left on device")
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(position)
            raise
        self.heard = heard
        self._held.update({(outcome.task_no, outcome.number): outcome for outcome in outcomes})

    def forget(self, keys: list[tuple[int, int]]) -> None:
        """Remove outcomes that the boss confirmed."""
        for key in keys:
            if self._held.pop(key, None) is not None:
                self._answered += 1
        size = self._file.tell()
        if (not self._held and size > 0 and self._answered > 256) or (
            size > COMPACT_BYTES and self._answered > len(self._held)
        ):
            self._rewrite()

    def _rewrite(self) -> None:
        self._answered = 0
        if not self._held:
            self.heard = (0, 0)
            self._file.truncate(0)
            self._file.seek(0)
            return
        temporary = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):
            lines = [_Heard(*self.heard), *self._held.values()]
            temporary.write_bytes(b"".join(self._encoder.encode(line) + b"\n" for line in lines))
            os.replace(temporary, self._path)
            self._file.close()
            self._file = open(self._path, "ab", buffering=0)

    def drop(self) -> int:
        """Forget all outcomes. Returns their number."""
        count = len(self._held)
        self.forget(list(self._held))
        return count

    @property
    def is_empty(self) -> bool:
        """Whether everything was confirmed."""
        return not self._held

    def close(self) -> None:
        """Flush and close the file."""
        if not self._held:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
        self._file.close()
