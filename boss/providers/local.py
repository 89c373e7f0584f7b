"""A cloud whose VMs are worker processes on this machine. They outlive the boss (unless tied to it); a new boss finds
them by their files.

Uses one directory per VM in the home, named by its number: its access file, the worker's home, its log, and `vm.json`,
which records the process. If a VM that a restored database lacks still has that directory, the new VM's is named by its
boot nonce. If the worker runs under another account, its access file and its home are in a directory of that account,
outside the boss's home; the boss trusts nothing in there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from boss.providers.accounts import Account, private_place
from boss.providers.provider import Capacity, CloudState, Stranger, TryLater, VmFound, VmOrder
from ecloud.config import left_overs, this_host
from ecloud.config.home import Home
from ecloud.config.processes import start_time
from ecloud.config.secrets import AccessFile, write_access
from ecloud.config.settings import ROOT
from ecloud.model.tasks import Resources

log = logging.getLogger("boss")
END_GRACE_S = 20.0
"""Time between TERM, on which a worker ends its attempts, and KILL."""
TERM_S = 15.0
"""The same when all VMs are ended together and a user waits."""
HOST = "127.0.0.1"


class _Process(msgspec.Struct, frozen=True):
    """A process, with its start time, because its pid may be reused. `since`: when it was started, epoch seconds."""

    pid: int
    start_time: str
    vm_no: int
    since: float = 0.0
    place: str = ""
    """Directory of its access file and home, if not beside this record."""
    uid: int | None = None
    """The account that it runs under, if not the boss's."""
    gpus: tuple[str, ...] = ()
    boot_nonce: str = ""
    directory: str = ""
    """Name of the directory of this record, if it is not the number."""


class LocalCloud:
    """Worker processes of this machine as VMs."""

    def __init__(
        self,
        home: Home,
        access_of: Callable[[str], AccessFile],
        tied: bool,
        boss_gone_exit_s: float,
        keep_dirs: bool = False,
        accounts: Mapping[str, Account] = {},
        place: Path = Path("/nonexistent"),
        machine_has: Resources | None = None,
    ) -> None:
        """`accounts`: by pool; `place`: where their workers' homes are, by the number of the VM. `machine_has`: what
        all workers share here, where that differs from what is measured."""
        self._machine_has = machine_has or {}
        self._home = home
        self._accounts = accounts
        self._place = place
        self._access_of = access_of
        self._tied = tied
        self._boss_gone_exit_s = boss_gone_exit_s
        self._keep_dirs = keep_dirs
        self._asked_at: dict[str, float] = {}
        self._told: set[str] = set()
        """VMs that a list has reported as gone."""
        self._seen: set[str] = set()
        """VMs that were alive in an earlier list."""
        self._ended: dict[str, float] = {}
        self._lock = threading.Lock()

    def start(self, order: VmOrder) -> str:
        """See `provider.Provider.start`."""
        directory = self._home.workers / str(order.vm_no)
        if (directory / "vm.json").is_file():  # of another history: the database was restored from a backup
            directory = self._home.workers / order.boot_nonce
        account = self._accounts.get(order.pool)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            place = self._place_of(directory.name) if account is not None else directory
            access = place / "access"
            write_access(access, self._access_of(f"vm-{order.vm_no}"))
            if account is not None:
                # chown the directory last: until then the account cannot enter it and replace the file by a link.
                os.chown(access, account.uid, account.gid)
                os.chown(place, account.uid, account.gid)
            gpus = self._choose_gpus(int(order.size.get("gpus", 0.0)))
            with (directory / "log").open("ab") as log:
                # Start in the checkout, so that `-m worker` is found wherever the boss was started.
                popen = subprocess.Popen(
                    self._command(order, place, access, gpus),
                    cwd=ROOT,
                    env=None if account is None else account.environment,
                    user=None if account is None else account.uid,
                    group=None if account is None else account.gid,
                    extra_groups=None if account is None else account.groups,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError as error:
            raise TryLater(f"no worker process can be started: {error.strerror}: {error.filename}") from error
        started = start_time(popen.pid) or "gone"
        process = _Process(
            popen.pid, started, order.vm_no, _started(started) or time.time(), gpus=gpus, boot_nonce=order.boot_nonce,
            directory=directory.name,
        )  # fmt: skip
        if account is not None:
            process = msgspec.structs.replace(process, place=str(place), uid=account.uid)
        cloud_id = _cloud_id(process)
        threading.Thread(target=self._await, args=(popen, cloud_id), name=f"vm-{order.vm_no}", daemon=True).start()
        try:
            (directory / "vm.json").write_bytes(msgspec.json.encode(process))
        except OSError as error:
            popen.kill()  # an unrecorded process would never be found again
            raise TryLater(f"no worker process can be recorded: {error.strerror}: {error.filename}") from error
        return cloud_id

    def _place_of(self, name: str) -> Path:
        """Return an empty directory for another account's worker, which only root can enter yet. Raises `OSError`."""
        place = private_place(self._place.parent, self._place.name) / name
        if place.exists():  # left by an earlier cluster of this home
            shutil.rmtree(place)
        place.mkdir(mode=0o700)
        return place

    def _await(self, popen: subprocess.Popen[bytes], cloud_id: str) -> None:
        popen.wait()
        with self._lock:
            self._ended[cloud_id] = time.time()

    def _choose_gpus(self, count: int) -> tuple[str, ...]:
        """This many of this machine's, those first that the fewest living workers offer."""
        if not count:
            return ()
        offered = Counter(gpu for process in self._recorded() if _lives(process) for gpu in process.gpus)
        return tuple(sorted(this_host.gpus(), key=lambda gpu: offered[gpu])[:count])

    def _command(self, order: VmOrder, directory: Path, access: Path, gpus: tuple[str, ...]) -> list[str]:
        command = [sys.executable, "-m", "worker", str(access), "--home", str(directory / "home")]
        command += ["--vm_no", str(order.vm_no), "--boot_nonce", order.boot_nonce]
        command += [
            "--cpus",
            f"{order.size.get('cpus', 1.0):g}",
            "--memory_mb",
            f"{order.size.get('memory_mb', 0.0):g}",
        ]
        command += ["--gpus", ",".join(gpus)]
        for name, amount in self._machine_has.items():
            command += ["--machine", f"{name}={amount:g}"]
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
        """See `provider.Provider.end`. Sends TERM; a request after `END_GRACE_S` sends KILL."""
        process = next((process for process in self._recorded() if _cloud_id(process) == cloud_id), None)
        if process is None or not _lives(process):
            return
        with self._lock:
            asked_at = self._asked_at.setdefault(cloud_id, time.monotonic())
        number = signal.SIGKILL if time.monotonic() - asked_at > END_GRACE_S else signal.SIGTERM
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)

    def list(self, known: Mapping[str, int] = {}, lost: Mapping[int, str] = {}) -> list[VmFound]:
        """See `provider.Provider.list`. Reports each VM that is gone once, whether known or not; then removes its
        files, unless it is still in `known`, or has undelivered outcomes."""
        found = []
        recorded = {_cloud_id(process): process for process in self._recorded()}
        for cloud_id, process in recorded.items():
            if _lives(process):
                self._seen.add(cloud_id)
                since = process.since or _started(process.start_time)
                found.append(_running(process, cloud_id, since))
            elif cloud_id in self._told and cloud_id not in known:
                self._told.discard(cloud_id)
                self._clear(process)
            else:
                if cloud_id not in self._told:
                    self._end_left_overs(process)
                self._told.add(cloud_id)
                found.append(self._gone(cloud_id, process.vm_no, process))
        told = {vm.cloud_id for vm in found}
        found += [self._gone(cloud_id, vm_no, None) for cloud_id, vm_no in known.items() if cloud_id not in told]
        with self._lock:
            kept = known.keys() | recorded.keys()
            self._ended = {cloud_id: at for cloud_id, at in self._ended.items() if cloud_id in kept}
        return found

    def _end_left_overs(self, process: _Process) -> None:
        """End what its tasks left if agent and launchers were killed together: before its attempts go to other
        workers."""
        count = left_overs.end(self._directory_of(process) / "home", uid=process.uid)
        if count:
            log.warning("ended %d processes that the tasks of worker process %d left behind", count, process.vm_no)

    def _gone(self, cloud_id: str, vm_no: int, process: _Process | None) -> VmFound:
        """Describe a VM that is gone. Nothing records when a process of an earlier boss ended: if this boss saw it
        alive, its end is the first list without it; else the last time that the process wrote a file."""
        since = process.since if process is not None else 0.0
        with self._lock:
            if cloud_id not in self._ended and cloud_id in self._seen:
                self._ended[cloud_id] = time.time()
            elif cloud_id not in self._ended and process is not None:
                written = _last_written(self._record_of(process), self._directory_of(process))
                self._ended[cloud_id] = max(since, written)
            self._seen.discard(cloud_id)
            ended = self._ended.get(cloud_id, 0.0)
        nonce = process.boot_nonce if process is not None else ""
        return VmFound(vm_no, cloud_id, CloudState.GONE, "process", since=since, ended=ended, boot_nonce=nonce)

    def _recorded(self) -> Sequence[_Process]:
        found = []
        for path in self._home.workers.glob("*/vm.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):
                found.append(msgspec.json.decode(path.read_bytes(), type=_Process))
        return found

    def _directory_of(self, process: _Process) -> Path:
        """Return the directory of its access file and home."""
        return Path(process.place) if process.place else self._record_of(process)

    def _record_of(self, process: _Process) -> Path:
        """Return the directory of its record and log."""
        return self._home.workers / (process.directory or str(process.vm_no))

    def _clear(self, process: _Process) -> None:
        directory = self._record_of(process)
        place = self._directory_of(process)
        spool = place / "home" / "spool.jsonl"
        kept = place / "home" / "kept"
        if kept.exists() or (spool.exists() and spool.stat().st_size):
            (directory / "vm.json").unlink(missing_ok=True)  # outcomes, and directories that a user wants, stay
        else:
            shutil.rmtree(place, ignore_errors=True)
            shutil.rmtree(directory, ignore_errors=True)

    def strangers(self) -> Sequence[Stranger]:
        """See `provider.Provider.strangers`. A home is one boss's own."""
        return []

    def room(self) -> Capacity:
        """See `provider.Provider.room`. The pool's maximum is the only limit."""
        return Capacity()

    def misfit(self, size: Resources) -> str:
        """See `provider.Provider.misfit`. A worker process offers what the boss orders it to offer."""
        return ""

    def end_all(self, wait_s: float) -> Sequence[VmFound]:
        """See `provider.Provider.end_all`. Also used by a boss that ends together with its cluster."""
        processes = [process for process in self._recorded() if _lives(process)]
        for number, wait in ((signal.SIGTERM, min(wait_s, TERM_S)), (signal.SIGKILL, 2.0)):
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
            deadline = time.monotonic() + wait
            while any(map(_lives, processes)) and time.monotonic() < deadline:
                time.sleep(0.02)
            processes = [process for process in processes if _lives(process)]
        if self._tied:  # no later list will ask about them
            self._told.update(map(_cloud_id, self._recorded()))
        return [vm for vm in self.list() if vm.state is not CloudState.GONE]

    def close(self) -> None:
        """See `provider.Provider.close`. Holds nothing."""


def _running(process: _Process, cloud_id: str, since: float) -> VmFound:
    return VmFound(process.vm_no, cloud_id, CloudState.RUNNING, "process", HOST, since, boot_nonce=process.boot_nonce)


def _cloud_id(process: _Process) -> str:
    return f"{process.pid}:{process.start_time}"


def _started(ticks: str) -> float:
    """Return the epoch seconds of a process's start, given in clock ticks after the machine's; 0 if unknown."""
    try:
        with open("/proc/uptime") as uptime:
            up_s = float(uptime.read().split()[0])
        return time.time() - up_s + float(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0


def _last_written(directory: Path, place: Path) -> float:
    """Return when a file of a worker changed last, epoch seconds; 0 if none is left. `place`: the directory of its
    home."""
    times = [0.0]
    for path in (directory / "log", directory / "vm.json", *place.glob("home/*")):
        with contextlib.suppress(OSError):
            times.append(path.lstat().st_mtime)
    return max(times)


def _lives(process: _Process) -> bool:
    return start_time(process.pid) == process.start_time
