"""A cloud whose VMs are worker processes on this machine. They outlive the boss (unless tied to it) and are found
again by their files.

One directory per VM in the home: its access file, the worker's home, its log, and `vm.json` with the process that it
is.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from boss.cloud.provider import Room, Stranger, TryLater, VmFound, VmOrder, VmState
from ecloud.home import Home
from ecloud.secrets import AccessFile, write_access
from ecloud.settings import ROOT

END_GRACE_S = 20.0
"""Between TERM, which lets a worker end what it runs, and KILL."""
TERM_S = 15.0
"""The same where all are ended together and somebody waits."""
HOST = "127.0.0.1"


class _Process(msgspec.Struct, frozen=True):
    """A process that can't be mistaken for another that got its number later."""

    pid: int
    start_time: str
    vm_no: int


class LocalCloud:
    """Worker processes of this machine as VMs."""

    def __init__(
        self,
        home: Home,
        access_of: Callable[[str], AccessFile],
        tied: bool,
        boss_gone_exit_s: float,
        keep_dirs: bool = False,
    ) -> None:
        self._home = home
        self._access_of = access_of
        self._tied = tied
        self._boss_gone_exit_s = boss_gone_exit_s
        self._keep_dirs = keep_dirs
        self._asked_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def start(self, order: VmOrder) -> str:
        """See `provider.Provider.start`."""
        directory = self._home.workers / str(order.vm_no)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            access = directory / "access"
            write_access(access, self._access_of(f"vm-{order.vm_no}"))
            with (directory / "log").open("ab") as log:
                # Directories of the checkout first, so that `-m worker` is found wherever the boss was started.
                popen = subprocess.Popen(
                    self._command(order, directory, access),
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise TryLater(f"no worker process can be started: {error.strerror}: {error.filename}") from error
        threading.Thread(target=popen.wait, name=f"vm-{order.vm_no}", daemon=True).start()
        process = _Process(popen.pid, _start_time(popen.pid) or "gone", order.vm_no)
        (directory / "vm.json").write_bytes(msgspec.json.encode(process))
        return _cloud_id(process)

    def _command(self, order: VmOrder, directory: Path, access: Path) -> list[str]:
        command = [sys.executable, "-m", "worker", str(access), "--home", str(directory / "home")]
        command += ["--vm_no", str(order.vm_no), "--boot_nonce", order.boot_nonce]
        command += [
            "--cpus",
            f"{order.size.get('cpus', 1.0):g}",
            "--memory_mb",
            f"{order.size.get('memory_mb', 0.0):g}",
        ]
        command += ["--gpus", ",".join(str(index) for index in range(int(order.size.get("gpus", 0.0))))]
        for name, amount in order.size.items():
            if name not in ("cpus", "memory_mb", "gpus"):
                command += ["--resource", f"{name}={amount:g}"]
        for label in order.labels:
            command += ["--label", label]
        command += ["--boss_gone_exit_s", f"{self._boss_gone_exit_s:g}"]
        if self._tied:
            command.append("--tied")
        if self._keep_dirs:
            command.append("--keep_dirs")
        return command

    def end(self, cloud_id: str) -> None:
        """See `provider.Provider.end`. TERM; KILL when asked again after a while."""
        process = next((process for process in self._recorded() if _cloud_id(process) == cloud_id), None)
        if process is None or not _lives(process):
            return
        with self._lock:
            asked_at = self._asked_at.setdefault(cloud_id, time.monotonic())
        number = signal.SIGKILL if time.monotonic() - asked_at > END_GRACE_S else signal.SIGTERM
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    def list(self, known: Mapping[str, int] = {}) -> list[VmFound]:
        """See `provider.Provider.list`. Clears away what is gone and has delivered everything."""
        found = []
        for process in self._recorded():
            if _lives(process):
                since = _started(process.start_time)
                found.append(VmFound(process.vm_no, _cloud_id(process), VmState.RUNNING, "process", HOST, since))
            else:
                self._clear(process)
        return found

    def _recorded(self) -> Sequence[_Process]:
        found = []
        for path in self._home.workers.glob("*/vm.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                found.append(msgspec.json.decode(path.read_bytes(), type=_Process))
        return found

    def _clear(self, process: _Process) -> None:
        directory = self._home.workers / str(process.vm_no)
        spool = directory / "home" / "spool.jsonl"
        kept = directory / "home" / "kept"
        if kept.exists() or (spool.exists() and spool.stat().st_size):
            (directory / "vm.json").unlink(missing_ok=True)  # outcomes, or directories that somebody wants, stay
        else:
            shutil.rmtree(directory, ignore_errors=True)

    def strangers(self) -> Sequence[Stranger]:
        """See `provider.Provider.strangers`. A home is one boss's own."""
        return []

    def room(self) -> Room:
        """See `provider.Provider.room`. The pool's maximum is the only bound."""
        return Room()

    def end_all(self, wait_s: float) -> Sequence[VmFound]:
        """See `provider.Provider.end_all`: also for a boss that leaves with its cluster."""
        processes = [process for process in self._recorded() if _lives(process)]
        for number, wait in ((signal.SIGTERM, min(wait_s, TERM_S)), (signal.SIGKILL, 2.0)):
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
            deadline = time.monotonic() + wait
            while any(map(_lives, processes)) and time.monotonic() < deadline:
                time.sleep(0.02)
            processes = [process for process in processes if _lives(process)]
        return self.list()


def _cloud_id(process: _Process) -> str:
    return f"{process.pid}:{process.start_time}"


def _started(ticks: str) -> float:
    """Epoch seconds of a process's start, given in clock ticks after the machine's; 0 where that is not known."""
    try:
        with open("/proc/uptime") as uptime:
            up_s = float(uptime.read().split()[0])
        return time.time() - up_s + float(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0


def _lives(process: _Process) -> bool:
    return _start_time(process.pid) == process.start_time


def _start_time(pid: int) -> str | None:
    """Clock ticks after boot; None for a process that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()
