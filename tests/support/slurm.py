"""A private Slurm: munged, slurmctld and one slurmd as root on loopback ports, their state in one directory. Needs the
packages slurm-wlm and munge. Its node claims 16 CPUs, whatever the machine has. With a MariaDB it has accounting, too
(package slurmdbd), and enforces the limits of accounts and QOS."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from databases import MariaDb
from services import HOST, free_port, listens, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "slurmdbd", "sbatch", "squeue", "scancel", "sacct", "sacctmgr")
MIN_JOB_AGE_S = 2
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost({host})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge/socket
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/ctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/ctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
{accounting}
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MinJobAge={min_job_age_s}
KillWait=3
MessageTimeout=5
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
NodeName=localhost NodeAddr={host} CPUs=16 RealMemory=64000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=closed Nodes=ALL State=UP AllowGroups=nobody-is-in-it
"""
ACCOUNTING = """AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={host}
AccountingStoragePort={port}
AccountingStoragePass={place}/munge/socket
AccountingStorageEnforce=limits,qos"""
NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
DATABASE = """
AuthType=auth/munge
AuthInfo=socket={place}/munge/socket
DbdHost=localhost
DbdAddr={host}
DbdPort={port}
SlurmUser=root
LogFile={place}/dbd.log
PidFile={place}/dbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={url.port}
StorageUser={url.username}
StoragePass={url.password}
StorageLoc={url.database}
"""


class Slurm:
    """A cluster of one node that forgets jobs `MIN_JOB_AGE_S` after their end. `database`: for its accounting."""

    def __init__(self, place: Path, database: MariaDb | None = None) -> None:
        self.place = place
        for name in ("munge", "state", "spool"):
            (place / name).mkdir(parents=True)
        self._dbd_port = free_port() if database is not None else 0
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.conf = place / "slurm.conf"
        accounting = ACCOUNTING.format(host=HOST, port=self._dbd_port, place=place) if database else NO_ACCOUNTING
        ports = {"ctld_port": free_port(), "slurmd_port": free_port()}
        self.conf.write_text(
            CONFIGURATION.format(host=HOST, place=place, **ports, min_job_age_s=MIN_JOB_AGE_S, accounting=accounting)
        )
        if database is not None:
            url = sa.engine.make_url(database.new_url())
            file = place / "slurmdbd.conf"
            file.touch(0o600)
            file.write_text(DATABASE.format(host=HOST, place=place, port=self._dbd_port, url=url))

    @property
    def environment(self) -> dict[str, str]:
        """What makes Slurm's commands speak with it."""
        return {**os.environ, "SLURM_CONF": str(self.conf)}

    def start(self) -> Slurm:
        """Up, with an idle node."""
        munge = self.place / "munge"
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o600)
        options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        words = [f"--{option}={munge / name}" for option, name in options.items()]
        self._run("munged", "--foreground", "--force", *words)
        wait_until((munge / "socket").exists, what="munged listens")
        if self._dbd_port:
            self._start_accounting()
        self.start_controller()
        self._run("slurmd", "-D", "-N", "localhost")
        wait_until(lambda: "idle" in self.ask("sinfo", "-h"), what="the node is idle")
        return self

    def _start_accounting(self) -> None:
        self._run("slurmdbd", "-D")
        wait_until(lambda: listens(self._dbd_port), what="slurmdbd listens")
        for words in (("cluster", "test"), ("account", "lab"), ("user", "root", "account=lab")):
            self.account("add", *words)

    def account(self, *words: str) -> None:
        """Change its accounting with `sacctmgr`."""
        done = subprocess.run(
            ["sacctmgr", "-i", *words], env=self.environment, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def start_controller(self) -> None:
        """Also after it was killed: it reads its state again."""
        self._run("slurmctld", "-D")
        wait_until(lambda: self.ask("sinfo", "-h") != "", what="slurmctld answers")

    def kill_controller(self) -> None:
        """At once, without saving anything."""
        process = self._processes.pop("slurmctld")
        process.kill()
        process.wait()

    def _run(self, program: str, *arguments: str) -> None:
        with (self.place / f"{program}.out").open("ab") as out:
            self._processes[program] = subprocess.Popen(
                [shutil.which(program) or f"/usr/sbin/{program}", *arguments],
                env=self.environment,
                stdout=out,
                stderr=out,
            )

    def ask(self, *words: str) -> str:
        """What one of its commands prints; empty where it fails."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout if done.returncode == 0 else ""

    def jobs(self) -> list[str]:
        """Names of those that have not ended."""
        return self.ask("squeue", "-h", "-o", "%j").split()

    def lives(self, prefix: str) -> dict[str, tuple[str, float, float]]:
        """What the accounting tells of jobs whose names begin so, by name: the state, and the epoch seconds of start
        and end (0 if not reached)."""
        words = ["sacct", "-nXP", "--starttime=now-1hour", "--format=JobName,State,Start,End"]
        lines = self.ask("env", "SLURM_TIME_FORMAT=%s", *words).splitlines()
        rows = [line.split("|") for line in lines if line.startswith(prefix)]
        names = [name for name, *_ in rows]
        assert len(set(names)) == len(names), f"two jobs of one name: {names}"
        return {name: (state, _seconds(start), _seconds(end)) for name, state, start, end in rows}

    def agents(self, job_id: str = "") -> list[int]:
        """Workers of a job, or of all jobs of this Slurm: other tests may have one of their own at the same time."""
        found = []
        for process in psutil.process_iter(["cmdline", "environ", "pid"]):
            words = process.info["cmdline"] or []
            homes = [word for word in words if word.endswith(f"-{job_id}/access" if job_id else "/access")]
            ours = (process.info["environ"] or {}).get("SLURM_CONF") == str(self.conf)
            if ours and "worker" in words and "--home" in words and homes and "/ecloud-" in homes[0]:
                found.append(int(process.info["pid"]))
        return sorted(found)[:1] if job_id else sorted(found)

    def stop(self) -> None:
        """Every job, then every daemon."""
        self.ask("scancel", "--user=root", "--full", "--signal=KILL")
        self.ask("scancel", "--user=root")
        for program in ("slurmd", "slurmctld", "slurmdbd", "munged"):
            process = self._processes.pop(program, None)
            if process is not None:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _seconds(text: str) -> float:
    return float(text) if text.isdecimal() else 0.0


def is_installed() -> bool:
    """Whether all its programs are here, and the tests may run them."""
    return os.geteuid() == 0 and all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in PROGRAMS)


@pytest.fixture(scope="session")
def shared_slurm(tmp_path_factory: pytest.TempPathFactory, mariadb: MariaDb) -> Iterator[Slurm]:
    """One for the session, with accounting."""
    if not is_installed():
        pytest.skip("slurm-wlm, slurmdbd and munge are not installed, or this is not root")
    made = Slurm(tmp_path_factory.mktemp("slurm"), mariadb).start()
    yield made
    made.stop()


@pytest.fixture
def slurm(shared_slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """The session's, which this process's commands speak with; what a test leaves there ends with it."""
    monkeypatch.setenv("SLURM_CONF", str(shared_slurm.conf))
    yield shared_slurm
    shared_slurm.ask("scancel", "--user=root")
    wait_until(lambda: shared_slurm.jobs() == [], 60, "the queue is empty")


@pytest.fixture
def own_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """One to be killed, without accounting."""
    if not is_installed():
        pytest.skip("slurm-wlm, slurmdbd and munge are not installed, or this is not root")
    made = Slurm(tmp_path / "slurm").start()
    monkeypatch.setenv("SLURM_CONF", str(made.conf))
    yield made
    made.stop()
