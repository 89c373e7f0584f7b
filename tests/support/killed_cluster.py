"""Faults on real processes: a cluster of a boss, agents, a Mosquitto, a MariaDB and an sshd with the datastore, and a
schedule, drawn from one seed, of what is killed or frozen, when and for how long.

Owns the processes it starts and what it did to them: after `heal` nothing is down or stopped. Knows nothing of tasks.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from databases import MariaDb
from services import DEADLINE_S, ROOT, Daemon, Mosquitto, wait_until
from sshd import Sshd

from datastore.keys import public_line
from ecloud.config.datastore_address import boss_key

LEAVE_S = 60.0
"""A worker that was ordered to leave has left."""
QUICK: dict[str, Any] = {
    "HEARTBEAT_S": 0.3,
    "LEASE_S": 4.0,
    "LEASE_MARGIN_S": 0.5,
    "STOP_GRACE_S": 1.0,
    "IDLE_VM_S": 3.0,
    "BOSS_GONE_EXIT_S": 120.0,
    "POOLS": ({"name": "local", "maximum": 3},),
}
"""Times scaled down; a worker that is frozen for long outlives its lease."""


# --- the schedule ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """One thing that happens to one part. `after_s`: from the moment its turn comes; `lasts_s`: until it is healed.
    `victim` chooses among several of a kind."""

    part: str
    what: str
    after_s: float
    lasts_s: float
    victim: int

    def __str__(self) -> str:
        return f"{self.part} {self.what} for {self.lasts_s:.1f} s"


LONGEST_S: dict[tuple[str, str], float] = {
    ("boss", "killed"): 4.0,
    ("boss", "frozen"): 6.0,
    ("agent", "killed"): 4.0,
    ("agent", "frozen"): 8.0,
    ("worker", "killed"): 0.2,
    ("worker", "frozen"): 8.0,
    ("broker", "killed"): 4.0,
    ("broker", "frozen"): 5.0,
    ("database", "killed"): 4.0,
    ("database", "frozen"): 5.0,
    ("sshd", "killed"): 4.0,
    ("sshd", "frozen"): 6.0,
}
"""What may happen to which part, and for how long at most. An agent starts again in its home; a worker is a VM of the
pool, which the boss replaces; a broker that was killed has forgotten everything."""
HEALING = ("database", "broker", "sshd", "boss", "agent", "worker")
"""Parts in the order in which they come back: a boss leads only with its database."""
TOGETHER = 0.25
"""How often a second part fails at the same time."""


def schedule(seed: int, count: int) -> list[list[Fault]]:
    """`count` faults in bursts of one or two parts; every kind comes once before any comes again."""
    chance = random.Random(seed)
    kinds: list[tuple[str, str]] = []
    while len(kinds) < count:
        kinds += chance.sample(sorted(LONGEST_S), len(LONGEST_S))
    bursts: list[list[Fault]] = []
    for part, what in kinds[:count]:
        longest_s = LONGEST_S[part, what]
        lasts_s = chance.uniform(0.1 * longest_s, longest_s)
        fault = Fault(part, what, chance.uniform(0.0, 1.5), lasts_s, chance.randrange(1_000))
        if bursts and len(bursts[-1]) == 1 and bursts[-1][0].part != part and chance.random() < TOGETHER:
            bursts[-1].append(fault)
        else:
            bursts.append([fault])
    return bursts


# --- the cluster ----------------------------------------------------------------------------------


class Agent:
    """Worker processes of one home below the boss's directory, one after the other; not a VM of any cloud."""

    def __init__(self, daemon: Daemon, name: str, *options: str) -> None:
        self.daemon = daemon
        self.home = daemon.directory / "agents" / name
        self.home.parent.mkdir(exist_ok=True)
        self.words_file = self.home.with_name(f"{name}.stderr")
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Agent:
        """Begin a process in the home; it need not be up when this returns."""
        access = str(self.daemon.home.client_access)
        command = [sys.executable, "-m", "worker", access, "--home", str(self.home), "--gpus", "", *self.options]
        command += ["--machine", "cpus=100", "--machine", "memory_mb=100000"]  # each stands for a machine of its own
        with self.words_file.open("ab") as words:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=self.daemon.environment, stdin=subprocess.DEVNULL, stdout=words, stderr=words
            )
        return self

    def signal(self, number: int) -> None:
        """To its process, not to what it runs."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """As a crash would: its tasks continue."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @property
    def spool(self) -> bytes:
        """The outcomes that it keeps."""
        file = self.home / "spool.jsonl"
        return file.read_bytes() if file.exists() else b""

    @property
    def words(self) -> str:
        """All that its processes printed."""
        return self.words_file.read_text(errors="replace")


class Cluster:
    """All processes, and what is wrong with which."""

    def __init__(self, daemon: Daemon, broker: Mosquitto, database: MariaDb, sshd: Sshd, agents: int) -> None:
        self.daemon = daemon
        self.broker = broker
        self.database = database
        self.sshd = sshd
        self.root = daemon.directory / "files"
        """The datastore's, behind the sshd."""
        self.agents = [Agent(daemon, f"a{index}", "--cpus", "2", "--memory_mb", "500") for index in range(agents)]
        self.struck: Counter[str] = Counter()
        self.story: list[str] = []
        self._down: dict[str, Callable[[], object]] = {}
        self._began_at = time.monotonic()

    @contextlib.contextmanager
    def running(self) -> Iterator[Cluster]:
        """From the start of everything to the end of everything, with the story printed, for when the test fails."""
        try:
            self.daemon.start()
            self._set_datastore()
            for agent in self.agents:
                agent.start()
            yield self
        finally:
            print("\n".join(self.story))
            self._thaw_all()
            for agent in self.agents:
                if agent.process is not None and agent.process.poll() is None:
                    agent.kill()

    def _set_datastore(self) -> None:
        """Workers reach their files through the sshd only."""
        self.root.mkdir()
        with self.sshd.authorized_keys.open("a") as file:
            file.write(public_line(boss_key(self.daemon.home)) + "\n")
        command = [sys.executable, "admin.py", "set_datastore", str(self.sshd.address(self.root))]
        done = subprocess.run(
            command, cwd=ROOT, env=self.daemon.environment, capture_output=True, text=True, timeout=LEAVE_S
        )
        assert done.returncode == 0, done.stderr

    def tell(self, text: str) -> None:
        """A line of the story."""
        self.story.append(f"{time.monotonic() - self._began_at:7.1f} s  {text}")

    def live_through(self, burst: list[Fault]) -> None:
        """Strike, wait, heal."""
        for fault in burst:
            time.sleep(fault.after_s)
            self.tell(str(fault) if self._strike(fault) else f"there is no {fault.part} to be {fault.what}")
        time.sleep(max(fault.lasts_s for fault in burst))
        self.heal()

    def heal(self) -> None:
        """Everything is as before, the parts that others need first."""
        for part in sorted(self._down, key=HEALING.index):
            self._down.pop(part)()
            self.tell(f"{part} is back")

    # --- striking -----------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> bool:
        if fault.part == "worker":
            struck = self._strike_worker(fault)
        elif fault.part == "agent":
            agent = self.agents[fault.victim % len(self.agents)]
            struck = self._strike_process(fault, agent.process, agent.kill, agent.start)
        elif fault.part == "boss":
            daemon = self.daemon
            assert not daemon.is_over, f"the boss has left without an order:  {daemon.words}{daemon.log[-3000:]}"
            struck = self._strike_process(fault, daemon.process, daemon.kill, daemon.start)
        elif fault.part == "sshd":
            struck = self._strike_sshd(fault)
        elif fault.part == "broker":
            struck = self._strike_process(fault, self.broker.process, self.broker.kill, self.broker.start)
        else:
            struck = self._strike_process(fault, self.database.process, self.database.kill, self.database.start)
        self.struck[f"{fault.part} {fault.what}"] += struck
        return struck

    def _strike_process(
        self,
        fault: Fault,
        process: subprocess.Popen[bytes] | None,
        kill: Callable[[], None],
        start: Callable[[], object],
    ) -> bool:
        assert process is not None
        if fault.what == "killed":
            kill()
            self._down[fault.part] = start
        else:
            process.send_signal(signal.SIGSTOP)
            self._down[fault.part] = lambda: process.send_signal(signal.SIGCONT)
        return True

    def _strike_worker(self, fault: Fault) -> bool:
        workers = sorted(self.pool_workers)
        if not workers:
            return False
        pid = workers[fault.victim % len(workers)]
        number = signal.SIGKILL if fault.what == "killed" else signal.SIGSTOP
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        self._down["worker"] = lambda: _let_go_on(pid)
        return True

    def _strike_sshd(self, fault: Fault) -> bool:
        """With all connections, as when its machine is off or hangs."""
        if fault.what == "killed":
            self.sshd.stop()
            self._down["sshd"] = self.sshd.start
        else:
            self.sshd.signal(signal.SIGSTOP)
            self._down["sshd"] = lambda: self.sshd.signal(signal.SIGCONT)
        return True

    @property
    def pool_workers(self) -> dict[int, str]:
        """Worker processes that the boss started as VMs: number and command line."""
        place = f"-m worker {self.daemon.home.workers}/"
        return {pid: command for pid, command in self.daemon.processes().items() if place in command}

    # --- the end ------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Every agent is ordered to leave, then the boss; nothing of them is left."""
        for agent in self.agents:
            agent.signal(signal.SIGTERM)
        for agent in self.agents:
            assert agent.process is not None
            assert agent.process.wait(LEAVE_S) == 0, agent.words
        assert self.daemon.stop() == 0, self.daemon.words
        wait_until(lambda: not self.daemon.processes(), DEADLINE_S, f"nothing is left: {self.daemon.processes()}")

    def _thaw_all(self) -> None:
        """SIGCONT to what may be stopped: a server that is, cannot be ended in order."""
        for process in (self.database.process, self.broker.process, self.daemon.process):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
        self.sshd.signal(signal.SIGCONT)
        if self.database.process is not None and self.database.process.poll() is not None:
            self.database.start()  # it is the whole session's


def _let_go_on(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
