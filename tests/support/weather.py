"""A whole cluster whose datastore is behind an sshd in bad weather: boss, two workers, a proxy in between that
the tests command. Owns what it starts, tells a whole file under a final name from a torn or stale one, and asks `why`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cutting_proxy import CuttingProxy
from doors import Doors
from services import ROOT, Daemon, wait_until
from sshd import Sshd

from datastore.keys import public_line
from ecloud.client.client import RequestRefused
from ecloud.config.datastore_address import boss_key
from ecloud.db.database import make_engine
from ecloud.queries import status
from ecloud.queries.lookup import task
from ecloud.queries.views import TaskDetail
from ecloud.queries.why import why

WORKERS = 2
PATIENCE_S = 90.0
LINE = "{id} of attempt {attempt}\n"


def lines_of(id: str, size: int) -> int:
    """The bytes of this many lines of a task."""
    return size // len(LINE.format(id=id, attempt=1))


def repeats(path: Path) -> str:
    """The line of which a file is made, empty where it is made of several or has none whole."""
    with path.open("rb") as file:
        line = file.readline()
        file.seek(0)
        many = line * (1 << 20 - 5)
        while piece := file.read(len(many)):
            if piece != many[: len(piece)] or not piece.endswith(b"\n"):
                return ""
    return line.decode()


def sha256_of(path: Path) -> str:
    """Of a file, read in pieces."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def tries_of(told: TaskDetail, number: int) -> int:
    """$ECLOUD_ATTEMPT of an attempt: those before it that were given back before they started do not count."""
    before = [attempt for attempt in told.attempts if attempt.number < number]
    return number - sum(attempt.state == "returned" and attempt.started_at is None for attempt in before)


class Weather:
    """A boss, two workers, and a datastore on a machine of its own behind a proxy."""

    def __init__(self, place: Path, workers: int = WORKERS, **settings: Any) -> None:
        self.place = place
        self.count = workers
        self.root = place / "root"
        self.root.mkdir()
        mount = ["mount", "-t", "tmpfs", "none", str(self.root)]
        self.has_own_disk = (
            os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
        )
        self.gates = place / "gates"
        self.gates.mkdir()
        self.sshd = Sshd(place / "far away")
        self.proxy = CuttingProxy(self.sshd.port)
        # An sshd of root's, and what it starts, may be refused by a directory as anybody else.
        if os.geteuid() == 0:
            self.sshd.lacks = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
        self.daemon = Daemon(place / "daemon", POOLS=[{"name": "local", "maximum": 0}], **settings)
        self.doors = Doors(place / "doors", self.daemon)
        self.engine = make_engine(f"sqlite:///{self.daemon.home.database}")
        self.address = str(self.sshd.address(self.root, self.proxy.port))
        self.agents: list[subprocess.Popen[bytes]] = []
        self._runs = 0

    def start(self) -> None:
        """Everything is up, and the boss knows where files are."""
        self.sshd.start()
        self.daemon.start()
        self.agents = [self._agent(f"a{number}") for number in range(self.count)]
        with self.sshd.authorized_keys.open("a") as file:
            file.write(public_line(boss_key(self.daemon.home)) + "\n")
        self.doors.admin("set_datastore", self.address)
        wait_until(lambda: len(self.workers()) == self.count, what="the workers are on duty")

    def end(self) -> None:
        self.engine.dispose()
        for agent in self.agents:
            agent.kill()
            agent.wait()
        self.daemon.end()
        self.proxy.close()
        self.sshd.close()
        if self.has_own_disk:
            unmount = ["umount", str(self.root)]
            wait_until(lambda: subprocess.run(unmount, capture_output=True, check=False).returncode == 0)

    def _agent(self, name: str) -> subprocess.Popen[bytes]:
        """A worker that is no VM: only its test ends it."""
        command = [sys.executable, "-m", "worker", str(self.daemon.home.client_access), "--gpus", "", "--cpus", "4"]
        command += ["--machine", "cpus=100", "--machine", "memory_mb=100000"]  # each stands for a machine of its own
        command += ["--home", str(self.place / "daemon" / name), "--memory_mb", "500"]
        with (self.place / f"{name}.stderr").open("ab") as words:
            return subprocess.Popen(
                command, cwd=ROOT, env=self.daemon.environment, stdin=subprocess.DEVNULL, stdout=words, stderr=words
            )

    def kill_agent(self, number: int) -> None:
        """One worker's process ends at once."""
        self.agents[number].kill()
        self.agents[number].wait()

    def start_agent(self, number: int) -> None:
        """It is started again in its home."""
        self.agents[number] = self._agent(f"a{number}")

    def workers(self) -> list[str]:
        """Those on duty."""
        return [worker.worker for worker in status.workers(self.engine, ("up",))]

    def agent_of(self, worker: str) -> subprocess.Popen[bytes]:
        """The process behind a name."""
        (row,) = (row for row in status.workers(self.engine) if row.worker == worker)
        (agent,) = (agent for agent in self.agents if agent.pid == row.pid)
        return agent

    # --- weather ------------------------------------------------------------------------------------

    def clear_up(self) -> None:
        """Whatever was wrong is right again."""
        self.proxy.let_go()
        self.proxy.cut_every = self.proxy.delay_s = 0
        if self.sshd.process is None:
            self.sshd.start()

    def room_for(self, size: int | None) -> None:
        """The datastore's disk takes at most this many bytes from now on; None: there is room again."""
        if not self.has_own_disk:
            pytest.skip("this machine does not let a filesystem be mounted")
        whole = os.statvfs(self.root)
        limit = "50%" if size is None else str((whole.f_blocks - whole.f_bfree) * whole.f_frsize + size)
        subprocess.run(["mount", "-o", f"remount,size={limit}", str(self.root)], check=True)

    def move_to(self, address: str) -> None:
        """The boss gets an address that no client tries first; it refuses while an attempt is under way."""
        noted = status.context(self.engine)
        told = {name: noted[f"datastore_{name}"] for name in ("host_key", "python", "gate")}

        def is_done() -> bool:
            with contextlib.suppress(RequestRefused), self.daemon.client() as client:
                return bool(client.request("set_datastore", address=address, **told).text)
            return False

        wait_until(is_done, PATIENCE_S, f"files are at {address}")

    # --- tasks --------------------------------------------------------------------------------------

    def begin(self, *tasks: dict[str, Any]) -> str:
        """Push a run; its name."""
        self._runs += 1
        run = f"run{self._runs}"
        self.doors.push(self.doors.write(f"{run}.json", list(tasks)))
        return run

    def makes(self, id: str, lines: int = 100, gate: str = "", **fields: Any) -> dict[str, Any]:
        """A task with one result of this many lines that name task and attempt; first it waits until `gate` is open."""
        wait = f"while [ ! -e '{self.gates / gate}' ]; do sleep 0.1; done" if gate else "true"
        made = f'yes "{id} of attempt $ECLOUD_ATTEMPT" | head -n {lines} > out'
        return {"id": id, "commands": [wait, made], "results": [["out", f"made/{id}"]], "retries": 0, **fields}

    def open(self, gate: str) -> None:
        (self.gates / gate).touch()

    def runs(self, *tasks: str) -> None:
        wait_until(lambda: all(task(self.engine, id).state == "running" for id in tasks), what=f"{tasks} run")

    def why(self, id: str, *told: str) -> None:
        """The reason that a person gets."""
        said = ""

        def is_told() -> bool:
            nonlocal said
            reasons = why(self.engine, id)
            said = "\n".join((reasons.sentence, *reasons.layers))
            return all(word in said for word in told)

        try:
            wait_until(is_told, PATIENCE_S)
        except pytest.fail.Exception:
            pytest.fail(f"why {id} says {said!r}, not {told}")

    def is_over(self, run: str, count: int) -> None:
        """All its tasks succeeded."""

        def states() -> dict[str, int]:
            counts = status.run_status(self.engine, run).states
            return {state: count for state, count in counts.items() if count}

        wait_until(lambda: states().keys() <= {"succeeded", "failed", "aborted"}, PATIENCE_S, f"{run} has ended")
        assert states() == {"succeeded": count}

    def ends(self, run: str, *ids: str, lines: int = 100) -> None:
        """All succeeded, whole, and without a retry."""
        self.is_over(run, len(ids))
        for id in ids:
            self.is_whole(run, id, lines)
        self.nothing_is_torn()

    def is_whole(self, run: str, id: str, lines: int) -> None:
        told = task(self.engine, id, run)
        assert told.retries_used == 0
        if not told.definition.results:
            return
        (recorded,) = (attempt for attempt in told.attempts if attempt.cause == "success")
        path, line = self.root / "made" / id, LINE.format(id=id, attempt=tries_of(told, recorded.number))
        assert path.stat().st_size == len(line) * lines, f"{id} is torn or stale"
        assert repeats(path) == line, f"{id} is torn or stale"
        (entry,) = recorded.results
        assert sha256_of(path) == entry.sha256, f"{id} is not what is recorded"

    def made(self) -> list[str]:
        """What is under a final name."""
        made = self.root / "made"
        return os.listdir(made) if made.exists() else []

    def nothing_is_torn(self) -> None:
        """Every file under a final name is of one task and one attempt, from its first to its last line."""
        for path in [self.root / "made" / name for name in self.made()]:
            assert repeats(path).startswith(f"{path.name} of attempt "), f"{path} is torn"


@pytest.fixture(scope="module")
def weathered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weather]:
    """One for all stories of a file."""
    # Shorter than any user would set it; longer than an sshd of a busy machine takes to answer.
    weather = Weather(tmp_path_factory.mktemp("weather"), DATASTORE_STALL_S=5.0)
    try:
        weather.start()
        yield weather
    finally:
        weather.end()


@pytest.fixture
def weather(weathered: Weather) -> Iterator[Weather]:
    """It is fine again after each story."""
    yield weathered
    weathered.clear_up()
