"""The whole way with VMs of an OpenNebula: tasks are pushed, VMs come, become workers, work and go. The boss, the
agents and the guests' scripts are the real ones; the cloud is the double."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doors import Doors
from opennebula_double import ACTIVE, DONE, PENDING, RUNNING, OpenNebula, User
from services import Daemon, wait_until, watch_to_the_end

from ecloud.db.database import make_engine
from ecloud.model.tasks import Dependency, TaskDefinition
from ecloud.model.wire import PushOptions

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


def test_a_vm_that_a_person_shuts_down_costs_its_tasks_no_retry(
    new_daemon: NewDaemon, double: OpenNebula, tmp_path: Path
) -> None:
    """Its guest sends TERM to the agent, to what started the agent, and to the task, all at once."""
    journal = tmp_path / "journal"
    daemon = new_daemon(pool={"maximum": 1}).start()
    double.times["shutdown_s"] = 5.0
    with daemon.client() as client:
        command = f"echo $ECLOUD_ATTEMPT >> {journal}; [ $ECLOUD_ATTEMPT != 1 ] || sleep 1000"
        client.push([TaskDefinition(id="a", commands=(command,))], PushOptions("r"))
        wait_until(lambda: ran(journal) == ["1"], START_S, "the task runs")
        double.shut_down(double.vms[0])
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 1}
    assert ran(journal) == ["1", "2"]
    assert rows(daemon, "SELECT retries_used FROM tasks") == [(0,)]
    (first, second) = rows(daemon, "SELECT state, cause FROM attempts ORDER BY number")
    # An agent that gets the order twice, from the guest and from its starter, leaves with all it holds.
    assert first[0] in ("returned", "lost")
    assert second == ("ended", "success")
    wait_until(lambda: not double.alive, START_S, "the cloud's own list is empty")
    assert len(double.vms) == 2


def test_a_boss_that_is_ordered_to_ends_all_its_vms_and_no_other(
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
        ({"OPENNEBULA_PASSWORD": "nope"}, {}, "refuses user alice"),
        ({}, {"template": "warker"}, "has no template warker that user alice sees; there: worker"),
        ({"OPENNEBULA_URL": "http://127.0.0.1:9/RPC2"}, {}, "cannot be reached: "),
    ],
)
def test_a_cloud_that_cannot_be_used_is_one_sentence_and_the_boss_continues(
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


def test_stop_with_vms_waits_until_the_cloud_s_own_list_is_empty(
    new_daemon: NewDaemon, double: OpenNebula, tmp_path: Path
) -> None:
    """Also of what the boss has no row for; and only of what carries our cluster."""
    daemon = new_daemon(VM_ORPHAN_S=600.0).start()
    double.times["shutdown_s"] = 1.0
    with daemon.client() as client:
        client.push(chain(1, 2, tmp_path / "journal", sleep_s=60.0), PushOptions("r"))
        wait_until(lambda: len(double.alive) == 2, START_S, "two VMs are asked for")
    ours = double.vms[0]
    copied = {**ours.user_template, "LABELS": re.sub("(ecloud-vm-[0-9]+)-1$", r"\1-77", ours.user_template["LABELS"])}
    lost = double.add_vm(60, ours.name[:-1] + "77", double.alice, state=ACTIVE, lcm=RUNNING, user_template=copied)
    theirs = double.add_vm(50, "ecloud-somebody-1", double.alice, state=ACTIVE, lcm=RUNNING)
    told = Doors(tmp_path / "place", daemon).admin("stop", "--vms")
    assert "2 VMs are being ended" in told.err
    assert double.alive == [theirs]
    assert lost.state == DONE
    assert daemon.is_over


def test_stop_with_vms_says_what_is_left_when_its_time_is_up(
    new_daemon: NewDaemon, double: OpenNebula, tmp_path: Path
) -> None:
    daemon = new_daemon(END_VMS_S=3.0, pool={"maximum": 1}).start()
    with daemon.client() as client:
        client.push(chain(1, 1, tmp_path / "journal", sleep_s=60.0), PushOptions("r"))
        wait_until(lambda: double.alive, START_S, "a VM is asked for")
    double.faults.terminate_lies = True
    told = Doors(tmp_path / "place", daemon).admin("stop", "--vms", code=3)
    assert "not ended after 3 s (END_VMS_S): VM 1 (ending); the boss continues to end them" in told.err
    assert not daemon.is_over


def test_of_300_vms_that_a_person_asks_for_255_get_an_address_and_one_sentence_says_why(
    new_daemon: NewDaemon, double: OpenNebula
) -> None:
    """Light ones: they run, and no guest starts in them."""
    double.networks[0].size = 255
    double.faults.unplugged = True
    daemon = new_daemon(pool={"maximum": 300}).start()
    with daemon.client() as client:
        assert client.request("instantiate_worker", n=300, keep_alive=True).count == 300
        counts = "SELECT state, count(*) FROM vms GROUP BY state ORDER BY state"
        wait_until(lambda: rows(daemon, counts) == [("booting", 255), ("gone", 45)], START_S, "all were asked for")
        ((closed, why),) = rows(daemon, "SELECT closed, reason FROM pools, vms WHERE state = 'gone' LIMIT 1")
        assert closed == why
        assert why.startswith(f"the cloud at {double.url} has no free address for VMs of template worker: ")
        assert why.endswith("Cannot get IP/MAC lease from virtual network 0; end other VMs first")
        assert len(double.alive) == 255
        assert {cause for (cause,) in rows(daemon, "SELECT cause FROM vms WHERE state = 'gone'")} == {"refused: less"}


def test_the_autoscaler_asks_for_no_more_than_there_is_room_for(
    new_daemon: NewDaemon, double: OpenNebula, tmp_path: Path
) -> None:
    double.alice.quota["VMS"] = "2"
    daemon = new_daemon(pool={"maximum": 9}).start()
    with daemon.client() as client:
        client.push(chain(2, 6, tmp_path / "journal", sleep_s=0.4), PushOptions("r"))
        sentence = "pool big has room for no more VMs (user alice has a quota of 2 for VMS)"
        wait_until(lambda: rows(daemon, "SELECT closed FROM pools") == [(sentence,)], START_S, "the pool reports it")
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 12}
    assert double.calls["template.instantiate"] == 2
    wait_until(lambda: not double.alive, START_S, "the cloud's own list is empty")


@pytest.mark.parametrize("kind", ["no capacity", "no address for an automatic network"])
def test_a_vm_that_waits_for_ever_is_withdrawn_and_another_pool_takes_over(
    new_daemon: NewDaemon, double: OpenNebula, tmp_path: Path, kind: str
) -> None:
    if kind == "no capacity":
        double.faults.nothing_fits = True
        words = "Not enough CPU on hosts"
    else:
        double.networks[0].size = 0
        double.templates[0].attributes["NIC"] = {"NETWORK_MODE": "auto"}
        words = "Unavailable leases"
    big = {"name": "big", "cloud": "opennebula", "template": "worker", "maximum": 1, "memory_mb": 500}
    daemon = new_daemon(POOLS=(big, {"name": "local", "maximum": 1}), VM_PENDING_S=2.0).start()
    with daemon.client() as client:
        client.push(chain(1, 1, tmp_path / "journal"), PushOptions("r"))
        wait_until(lambda: [vm.state for vm in double.alive] == [PENDING], START_S, "it waits")
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 1}
    wait_until(lambda: not double.alive, START_S, "it is withdrawn")
    ((reason, cause),) = rows(daemon, "SELECT reason, cause FROM vms WHERE pool = 'big'")
    assert reason.startswith("its cloud found no host for it in 2 s: ")
    assert words in reason
    assert cause == "no_place"


def test_vms_of_another_opennebula_user_are_not_taken_for_gone(
    new_daemon: NewDaemon, double: OpenNebula, tmp_path: Path
) -> None:
    double.users["carol"] = User(7, "carol", "PASSWORD")
    daemon = new_daemon(pool={"maximum": 1}).start()
    with daemon.client() as client:
        client.push(chain(1, 1, tmp_path / "journal", sleep_s=3.0), PushOptions("r"))
        wait_until(lambda: rows(daemon, "SELECT state FROM vms") == [("running",)], START_S, "a VM works")
        daemon.kill()
        text = daemon.settings_file.read_text()
        daemon.settings_file.write_text(text.replace("'alice'", "'carol'"))
        daemon.start()
        said = "SELECT state FROM vms WHERE said LIKE '%is not visible to user carol%OPENNEBULA_USER%'"
        wait_until(lambda: rows(daemon, said), START_S, "the boss says what it cannot see")
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 1}
        assert len(double.alive) == 1
        daemon.kill()
        daemon.settings_file.write_text(text)
        daemon.start()
        wait_until(lambda: not double.alive, START_S, "the VM is ended by its owner")
    assert len(double.vms) == 1


@pytest.mark.long
def test_a_cloud_that_places_one_vm_after_another_is_waited_for(
    new_daemon: NewDaemon, double: OpenNebula, tmp_path: Path
) -> None:
    """One host, 8 s for each VM: the third waits longer than `VM_PENDING_S`, and the cloud gets on all the while."""
    double.hosts = 1
    double.times["prolog_s"] = 8.0
    daemon = new_daemon(pool={"maximum": 3}, VM_PENDING_S=15.0, IDLE_VM_S=120.0).start()
    doors = Doors(tmp_path / "place", daemon)
    doors.admin("instantiate_worker", 3)
    with daemon.client() as client:
        client.push(chain(1, 3, tmp_path / "journal", sleep_s=1.0), PushOptions("r"))
        assert watch_to_the_end(client, "r", 3 * START_S).states == {"succeeded": 3}
    query = "SELECT count(*) FROM vms WHERE hello_at IS NOT NULL"
    wait_until(lambda: rows(daemon, query) == [(3,)], 3 * START_S, "all three came up")
    assert rows(daemon, "SELECT DISTINCT cause FROM vms") == [("",)], "none was withdrawn"
    assert len(double.vms) == 3
    assert double.alice.tokens
    doors.admin("stop", "--vms")
    assert double.alice.tokens == {}, "the boss gave its token back"


def test_a_cloud_that_is_away_is_named_by_status(new_daemon: NewDaemon, double: OpenNebula, tmp_path: Path) -> None:
    daemon = new_daemon(pool={"maximum": 1}, IDLE_VM_S=120.0).start()
    doors = Doors(tmp_path / "place", daemon)
    doors.admin("instantiate_worker")
    wait_until(lambda: rows(daemon, "SELECT state FROM vms") == [("running",)], START_S, "a VM works")
    double.stop_answering()
    text = f"the cloud at {double.url} cannot be reached"
    wait_until(lambda: text in doors.admin("status").out, START_S, "status names it")
