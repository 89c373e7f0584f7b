"""The worst day, on real processes: while a graph of tasks runs, its boss, workers, broker, database and datastore are
killed and frozen. At the end every task is recorded, every result is right, and nothing is left over.

CHAOS_SEED=N repeats the tasks and the schedule of a day; which task a fault meets is still the machine's choice.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec
import pytest
from databases import MariaDb
from killed_cluster import LONGEST_S, QUICK, Cluster, schedule
from killed_load import (
    Load,
    each_attempt_has_one_outcome,
    random_load,
    results_are_right,
    rows,
    staged,
    states,
    succeeded,
)
from services import Daemon, Mosquitto, wait_until
from sshd import Sshd

from ecloud.db.database import make_engine, migrate
from ecloud.model.tasks import Outcome, Result, TaskDefinition
from ecloud.model.wire import PushOptions

PATIENCE_S = 180.0
"""For the next part of the tasks: two cores, other tests, and a lease or two."""
NewCluster = Callable[..., AbstractContextManager[Cluster]]


@pytest.fixture
def seed() -> int:
    """The day's, printed where the test fails."""
    chosen = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(1_000_000))
    print(f"CHAOS_SEED={chosen} repeats this")
    return chosen


@pytest.fixture
def new_cluster(daemons: Callable[..., Daemon], mariadb: MariaDb, mosquitto: Mosquitto, own_sshd: Sshd) -> NewCluster:
    """Makes a cluster on a MariaDB, a Mosquitto and an sshd, which no other test uses."""

    def make(agents: int = 2, **settings: object) -> AbstractContextManager[Cluster]:
        url = mariadb.new_url()
        engine = make_engine(url)
        migrate(engine)
        engine.dispose()
        options = {"DATABASE_URL": url, **mosquitto.settings(), **QUICK, **settings}
        daemon = daemons("--end_vms", **options)
        daemon.database_url = url  # type: ignore[attr-defined]
        return Cluster(daemon, mosquitto, mariadb, own_sshd, agents).running()

    return make


# --- the end of a day -----------------------------------------------------------------------------


def all_is_well(cluster: Cluster, load: Load) -> None:
    """Everything is recorded once, every file is right, nothing is left anywhere."""
    daemon = cluster.daemon
    counts = each_attempt_has_one_outcome(daemon, len(load.tasks))
    cluster.tell(f"attempts: {dict(counts)}; faults: {dict(cluster.struck)}")
    results_are_right(daemon, cluster.root, load)
    wait_until(lambda: not staged(cluster.root), PATIENCE_S, f"staging is empty: {staged(cluster.root)}")
    wait_until(lambda: not living_vms(daemon), PATIENCE_S, "no VM is left, as no task is")
    assert not cluster.pool_workers
    cluster.leave()
    for agent in cluster.agents:
        assert agent.spool == b""
    nothing_waits_in_a_spool(daemon)
    for words in (daemon.words, daemon.log, *(agent.words for agent in cluster.agents)):
        assert "Traceback" not in words, words[words.index("Traceback") - 500 :][:4_000]
        assert "refuses a batch" not in words


def living_vms(daemon: Daemon) -> list[tuple[object, ...]]:
    """VMs that the boss does not know to be gone."""
    return rows(daemon, "SELECT vm_no, state, reason FROM vms WHERE state <> 'gone'")


def nothing_waits_in_a_spool(daemon: Daemon) -> None:
    """What workers left that were killed and not started again belongs to attempts that have ended."""
    over = set(rows(daemon, "SELECT task_no, number FROM attempts WHERE state IN ('ended', 'lost', 'returned')"))
    for spool in daemon.home.workers.glob("*/home/spool.jsonl"):
        for line in spool.read_bytes().splitlines():
            try:
                outcome = msgspec.json.decode(line, type=Outcome)
            except msgspec.MsgspecError:
                continue  # torn by the kill
            assert (outcome.task_no, outcome.number) in over


def a_day(cluster: Cluster, seed: int, tasks: int, faults: int, longest_s: float) -> None:
    """Push, strike again and again while the tasks run, wait for the last, check everything."""
    load = random_load(seed, tasks, longest_s)
    bursts = schedule(seed, faults)
    with cluster.daemon.client() as client:
        client.push(load.tasks, PushOptions("day"))
    for index, burst in enumerate(bursts):
        due = tasks * (index + 1) // (len(bursts) + 2)
        wait_until(
            lambda due=due: succeeded(cluster.daemon) >= due, PATIENCE_S, f"{due} tasks: {states(cluster.daemon)}"
        )
        cluster.tell(f"{due} tasks have succeeded")
        cluster.live_through(burst)
    assert succeeded(cluster.daemon) < tasks, "the last fault came too late to harm anything"
    wait_until(lambda: succeeded(cluster.daemon) == tasks, 2 * PATIENCE_S, f"the rest: {states(cluster.daemon)}")
    cluster.tell("all tasks have succeeded")
    all_is_well(cluster, load)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_bad_day(new_cluster: NewCluster, seed: int) -> None:
    with new_cluster() as cluster:
        a_day(cluster, seed, tasks=800, faults=12, longest_s=0.6)
        assert sum(cluster.struck.values()) >= 11  # there may be no VM at the moment when one was to be struck


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_a_terrible_day(new_cluster: NewCluster, seed: int) -> None:
    with new_cluster() as cluster:
        a_day(cluster, seed, tasks=5_000, faults=36, longest_s=0.5)
        assert sum(cluster.struck.values()) >= 30
        assert set(cluster.struck) == {f"{part} {what}" for part, what in LONGEST_S}


# --- one long task --------------------------------------------------------------------------------


def lasting_task(place: Path) -> TaskDefinition:
    """A task that lasts until there is a file `go`. Its journal: its process, and "twice" where it met another."""
    commands = (
        f"exec 9> {place}/lock",
        f"flock -n 9 || echo twice >> {place}/journal",
        f"echo $$ >> {place}/journal",
        f"until [ -e {place}/go ]; do sleep 0.1; done",
    )
    return TaskDefinition("lasting", commands)


def test_a_long_task_outlives_everything_but_its_agent(new_cluster: NewCluster, tmp_path: Path) -> None:
    """Boss and broker come back to the same process; after its agent's death the task runs again, never in parallel."""
    journal = tmp_path / "journal"
    with new_cluster(agents=1, POOLS=({"name": "nobody", "maximum": 0},)) as cluster:
        daemon, (agent,) = cluster.daemon, cluster.agents
        with daemon.client() as client:
            client.push([lasting_task(tmp_path)], PushOptions("r"))

        def attempts() -> list[tuple[object, ...]]:
            return rows(daemon, "SELECT number, state FROM attempts ORDER BY number")

        wait_until(lambda: attempts() == [(1, "started")], what="it runs")
        (first,) = journal.read_text().split()

        before = heard_at(daemon)
        daemon.restart()
        wait_until(lambda: heard_at(daemon) > before, what="the agent is back on duty with the next boss")
        assert attempts() == [(1, "started")]

        before = heard_at(daemon)
        cluster.broker.kill()
        cluster.broker.start()
        wait_until(lambda: heard_at(daemon) > before, what="the agent is back on duty by the next broker")
        assert attempts() == [(1, "started")]
        assert journal.read_text().split() == [first]
        assert lives(first)

        agent.kill()
        wait_until(lambda: not lives(first), what="the task ends with its agent")
        agent.start()
        wait_until(lambda: attempts() == [(1, "lost"), (2, "started")], what="the task runs again")

        (tmp_path / "go").touch()
        wait_until(lambda: succeeded(daemon) == 1, what="it has succeeded")
        assert "twice" not in journal.read_text()
        assert len(journal.read_text().split()) == 2
        cluster.leave()
        assert agent.spool == b""


def test_running_work_continues_without_a_boss_and_is_delivered_to_the_next(
    new_cluster: NewCluster, tmp_path: Path
) -> None:
    """What ran when the boss died comes to its end without it; not an attempt is made twice for that."""
    ended, go = tmp_path / "ended", tmp_path / "go"
    waits = (f"until [ -e {go} ]; do sleep 0.1; done", "echo done > out", f"echo $ECLOUD_TASK >> {ended}")
    tasks = [TaskDefinition(f"t{index}", waits, results=(Result("out", f"out/t{index}"),)) for index in range(2)]
    with new_cluster(agents=1, POOLS=({"name": "nobody", "maximum": 0},)) as cluster:
        daemon, (agent,) = cluster.daemon, cluster.agents
        with daemon.client() as client:
            client.push(tasks, PushOptions("r"))

        def attempts() -> list[tuple[object, ...]]:
            return rows(daemon, "SELECT number, state, cause FROM attempts ORDER BY task_no, number")

        wait_until(lambda: attempts() == [(1, "started", None)] * 2, what="both run")
        daemon.kill()
        go.touch()
        wait_until(lambda: ended.exists() and len(ended.read_text().split()) == 2, what="both come to their end")
        assert attempts() == [(1, "started", None)] * 2
        daemon.start()
        wait_until(lambda: succeeded(daemon) == 2, PATIENCE_S, "both are recorded")
        assert attempts() == [(1, "ended", "success")] * 2
        assert [(cluster.root / "out" / task.id).read_text() for task in tasks] == ["done\n"] * 2
        cluster.leave()
        assert agent.spool == b""


def lives(pid: str) -> bool:
    """Whether that process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def heard_at(daemon: Daemon) -> float:
    """When the one worker that is up opened its session, by the boss's clock."""
    found = rows(daemon, "SELECT MAX(heard_at) FROM workers WHERE state = 'up'")
    return float(found[0][0] or 0.0)
