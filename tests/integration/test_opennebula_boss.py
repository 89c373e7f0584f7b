"""The whole way with VMs of an OpenNebula: tasks are pushed, VMs come, become workers, work and go. The boss, the
agents and the guests' scripts are the real ones; the cloud is the double."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opennebula_double import ACTIVE, RUNNING, OpenNebula
from services import Daemon, wait_until, watch_to_the_end

from ecloud.database import make_engine
from ecloud.tasks import Dependency, TaskDefinition
from ecloud.wire import PushOptions

NewDaemon = Callable[..., Daemon]
START_S = 60.0
"""Until agents of new VMs work: each is a Python that starts, on a machine that has other things to do."""


@pytest.fixture
def double(tmp_path: Path) -> Iterator[OpenNebula]:
    made = OpenNebula(tmp_path / "cloud").start()
    made.add_worker_template()
    yield made
    made.end()


@pytest.fixture
def new_daemon(daemons: NewDaemon, double: OpenNebula) -> NewDaemon:
    """Makes bosses whose only pool is `big` of that cloud: two VMs at most, ended when idle for half a second."""

    def make(*options: str, pool: dict[str, Any] | None = None, **settings: Any) -> Daemon:
        big = {"name": "big", "cloud": "opennebula", "template": "worker", "maximum": 2, "memory_mb": 500}
        cloud = {"OPENNEBULA_URL": double.url, "OPENNEBULA_USER": "alice", "OPENNEBULA_PASSWORD": "PASSWORD"}
        return daemons(*options, **{**cloud, "POOLS": ({**big, **(pool or {})},), "IDLE_VM_S": 0.5, **settings})

    return make


def rows(daemon: Daemon, query: str) -> list[tuple[Any, ...]]:
    """What the daemon's tables hold."""
    engine = make_engine(f"sqlite:///{daemon.home.database}")
    try:
        with engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]
    finally:
        engine.dispose()


def chain(length: int, width: int, journal: Path, sleep_s: float = 0.0) -> list[TaskDefinition]:
    """`width` chains of `length` tasks; each task writes its name down."""
    tasks = []
    for column in range(width):
        for row in range(length):
            name = f"t{column}-{row}"
            after = (Dependency(f"t{column}-{row - 1}"),) if row else ()
            commands = (f"sleep {sleep_s:g}", f"echo {name} >> {journal}")
            tasks.append(TaskDefinition(id=name, commands=commands, dependencies=after, runtime_s=sleep_s))
    return tasks


def ran(journal: Path) -> list[str]:
    return journal.read_text().split() if journal.exists() else []


def test_from_a_push_to_done_and_nothing_is_left_running(
    new_daemon: NewDaemon, double: OpenNebula, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    tasks = chain(5, 6, journal)
    daemon = new_daemon().start()
    assert double.alive == []
    with daemon.client() as client:
        client.push(tasks, PushOptions("r"))
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 30}
    assert Counter(ran(journal)) == Counter(task.id for task in tasks)
    wait_until(lambda: not double.alive, START_S, "the cloud's own list is empty")
    assert 1 <= len(double.vms) <= 2
    for vm in double.vms.values():
        assert vm.owner is double.alice
        assert vm.guest is not None
        assert vm.guest.processes() == {}
    wait_until(lambda: {state for (state,) in rows(daemon, "SELECT state FROM vms")} == {"gone"})


def test_a_vm_whose_answer_was_lost_is_adopted_and_works(
    new_daemon: NewDaemon, double: OpenNebula, tmp_path: Path
) -> None:
    double.faults.next_calls.append(("template.instantiate", "lost"))
    daemon = new_daemon(pool={"maximum": 1}).start()
    with daemon.client() as client:
        client.push(chain(2, 2, tmp_path / "journal"), PushOptions("r"))
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 4}
    assert "may have been started: the cloud at" in daemon.log
    wait_until(lambda: not double.alive, START_S, "the cloud's own list is empty")
    assert len(double.vms) == 1
    wait_until(lambda: rows(daemon, "SELECT cloud_id, state FROM vms") == [("0", "gone")], START_S)


def test_a_boss_that_is_killed_finds_its_vms_again(new_daemon: NewDaemon, double: OpenNebula, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    daemon = new_daemon(pool={"maximum": 1}).start()
    with daemon.client() as client:
        client.push(chain(8, 1, journal, sleep_s=0.2), PushOptions("r"))
        wait_until(lambda: double.vms, START_S, "a VM is asked for")
        daemon.restart()
        wait_until(lambda: len(ran(journal)) >= 2, START_S, "tasks run")
        daemon.restart()
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 8}
    wait_until(lambda: not double.alive, START_S, "the cloud's own list is empty")
    assert len(double.vms) == 1


def test_a_vm_that_vanishes_is_replaced(new_daemon: NewDaemon, double: OpenNebula, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    daemon = new_daemon(pool={"maximum": 1}).start()
    with daemon.client() as client:
        client.push(chain(6, 1, journal, sleep_s=0.3), PushOptions("r"))
        wait_until(lambda: ran(journal), START_S, "a task has run")
        double.vanish(double.vms[0])
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 6}
    wait_until(lambda: not double.alive, START_S, "the cloud's own list is empty")
    assert len(double.vms) == 2


def test_a_boss_that_is_told_so_ends_all_its_vms_and_no_other(
    new_daemon: NewDaemon, double: OpenNebula, tmp_path: Path
) -> None:
    theirs = double.add_vm(50, "ecloud-somebody-1", double.alice, state=ACTIVE, lcm=RUNNING)
    daemon = new_daemon("--end_vms").start()
    with daemon.client() as client:
        client.push(chain(1, 2, tmp_path / "journal", sleep_s=60.0), PushOptions("r"))
        wait_until(lambda: len(double.alive) == 3, START_S, "two VMs are asked for")
    assert daemon.stop() == 0
    assert double.alive == [theirs]


@pytest.mark.parametrize(
    ("settings", "pool", "sentence"),
    [
        ({"OPENNEBULA_PASSWORD": "nope"}, {}, "does not let user alice in"),
        ({}, {"template": "warker"}, "has no template warker that user alice sees; there: worker"),
        ({"OPENNEBULA_URL": "http://127.0.0.1:9/RPC2"}, {}, "can't be reached: "),
    ],
)
def test_a_cloud_that_can_t_be_used_is_one_sentence_and_the_boss_goes_on(
    new_daemon: NewDaemon, tmp_path: Path, settings: dict[str, Any], pool: dict[str, Any], sentence: str
) -> None:
    daemon = new_daemon(pool=pool, **settings).start()
    with daemon.client() as client:
        client.push(chain(1, 1, tmp_path / "journal"), PushOptions("r"))

        def reasons() -> list[str]:
            return [reason for (reason,) in rows(daemon, "SELECT reason FROM vms WHERE state = 'gone'")]

        assert sentence in wait_until(reasons, START_S, "the cloud's no")[0]
    assert "Traceback" not in daemon.log
    assert not daemon.is_over
