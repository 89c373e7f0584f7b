"""The ledger equals the cloud's own list, VM by VM and to the second: whatever was killed, ended elsewhere, never
booted or never answered. The boss, the agents and the guests' scripts are the real ones; the cloud is the double."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from doors import Doors
from opennebula_double import ACTIVE, BOOT, RUNNING, OpenNebula
from services import Daemon, wait_until, watch_to_the_end

from ecloud.db.database import make_engine
from ecloud.model.tasks import TaskDefinition
from ecloud.model.vm_life import PARTS
from ecloud.model.wire import PushOptions
from ecloud.queries.ledger import ledger

NewDaemon = Callable[..., Daemon]
START_S = 60.0
AN_HOUR_S = 3600.0


class Books:
    """A boss with a cloud, and what both count."""

    def __init__(self, directory: Path, daemons: NewDaemon) -> None:
        self.double = OpenNebula(directory / "cloud", boot_s=1.0, shutdown_s=0.5).start()
        self.double.add_worker_template()
        self.journal = directory / "journal"
        big = {"name": "big", "cloud": "opennebula", "template": "worker", "maximum": 2, "memory_mb": 500}
        cloud = {"OPENNEBULA_URL": self.double.url, "OPENNEBULA_USER": "alice", "OPENNEBULA_PASSWORD": "PASSWORD"}
        limits = {"IDLE_VM_S": 0.5, "VM_UNANSWERED_S": 1.5, "VM_ORPHAN_S": 1.0}
        self.daemon = daemons(POOLS=(big,), **limits, **cloud)
        self.doors = Doors(directory / "place", self.daemon)

    def of_the_boss(self) -> dict[int, float]:
        """The life of each VM that the ledger knows, in seconds, by their intents."""
        engine = make_engine(f"sqlite:///{self.daemon.home.database}")
        try:
            return {vm.vm_no: vm.life_s for vm in ledger(engine, now=time.time()).vms}
        finally:
            engine.dispose()

    def of_the_cloud(self) -> dict[int, float]:
        """The same by the cloud's own list: ETIME - STIME of all that there were."""
        vms = self.double.vms.values()
        return {int(vm.user_template["ECLOUD_VM_NO"]): float(vm.ended_at - vm.made_at) for vm in vms}

    def balance(self) -> list[dict[str, Any]]:
        """Both are the same in the end, in all and of each VM; what `admin.py ledger --json` tells of each."""
        wait_until(lambda: not self.double.alive, START_S, "the cloud's own list is empty")
        wait_until(lambda: self.of_the_boss() == self.of_the_cloud(), START_S, "the books balance")
        told = self.doors.admin("ledger", "--json").json
        accounts: list[dict[str, Any]] = told["vms"]
        assert {account["vm_no"]: account["life_s"] for account in accounts} == self.of_the_cloud()
        for account in accounts:
            assert set(account["parts"]) == set(PARTS)
            assert sum(account["parts"].values()) == pytest.approx(account["life_s"], abs=1e-6)
        assert told["total"]["life_s"] == sum(self.of_the_cloud().values())
        return accounts

    def end(self) -> None:
        self.double.let_go.set()
        self.daemon.end()
        self.double.end()


@pytest.fixture
def books(tmp_path: Path, daemons: NewDaemon) -> Iterator[Books]:
    made = Books(tmp_path, daemons)
    yield made
    made.end()


def tasks(books: Books, count: int, sleep_s: float = 0.0) -> list[TaskDefinition]:
    commands = (f"sleep {sleep_s:g}", f"echo done >> {books.journal}")
    return [TaskDefinition(id=f"t{number}", commands=commands, runtime_s=600.0) for number in range(count)]


def run_by_a_clock(books: Books, ahead_s: float) -> None:
    books.double.clock_ahead_s = ahead_s
    books.daemon.start()
    with books.daemon.client() as client:
        client.push(tasks(books, 4, 0.5), PushOptions("r"))
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 4}
    assert len(books.balance()) == 2


def test_after_a_run_both_count_the_same_though_the_cloud_s_clock_is_an_hour_ahead(books: Books) -> None:
    run_by_a_clock(books, AN_HOUR_S)


@pytest.mark.long
@pytest.mark.parametrize("ahead_s", [0.0, -AN_HOUR_S], ids=["right", "an hour behind"])
def test_after_a_run_both_count_the_same_by_whatever_clock(books: Books, ahead_s: float) -> None:
    run_by_a_clock(books, ahead_s)


def test_one_that_was_ended_while_the_boss_was_away_is_counted_until_then(books: Books) -> None:
    books.daemon.start()
    with books.daemon.client() as client:
        client.push(tasks(books, 2, 1.0), PushOptions("r"))
        wait_until(lambda: sum(vm.where == (ACTIVE, RUNNING) for vm in books.double.alive) == 2, START_S, "two run")
        books.daemon.kill()
        books.double.vanish(books.double.vms[0])
        books.double.clock_ahead_s = 300.0  # as if it had been away for long
        books.daemon.start()
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 2}
    ended = int(books.double.vms[0].user_template["ECLOUD_VM_NO"])
    (life_s,) = [account["life_s"] for account in books.balance() if account["vm_no"] == ended]
    assert life_s < 100


@pytest.mark.long
def test_one_that_was_never_answered_and_ended_while_the_boss_was_away_is_counted(books: Books) -> None:
    books.double.faults.next_calls.append(("template.instantiate", "late"))
    books.daemon.start()
    with books.daemon.client() as client:
        client.push(tasks(books, 1), PushOptions("r"))
        wait_until(lambda: books.double.vms, START_S, "the VM is made")
        books.daemon.kill()
        books.double.vanish(books.double.vms[0])
        books.double.let_go.set()
        books.daemon.start()
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 1}
    assert len(books.balance()) == 2


@pytest.mark.long
def test_one_that_is_made_after_its_intent_was_given_up_is_counted(books: Books) -> None:
    books.double.faults.next_calls.append(("template.instantiate", "early"))
    books.daemon.start()
    with books.daemon.client() as client:
        client.push(tasks(books, 1), PushOptions("r"))
        wait_until(lambda: books.double.held, START_S, "the call is under way")
        books.daemon.kill()
        books.daemon.start()
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 1}
        books.double.let_go.set()
        wait_until(lambda: len(books.double.vms) == 2, START_S, "the VM is made nevertheless")
    assert len(books.balance()) == 2


def test_one_that_never_boots_is_counted_as_lost(books: Books) -> None:
    books.double.faults.never_boots = True
    books.daemon.start()
    with books.daemon.client() as client:
        client.push(tasks(books, 1), PushOptions("r"))
        wait_until(lambda: any(vm.where == (ACTIVE, BOOT) for vm in books.double.alive), START_S, "it boots")
        client.request("cancel", run="r")
        books.double.vanish(books.double.vms[0])
        books.double.faults.never_boots = False
    account = books.balance()[0]
    assert account["parts"]["lost"] == account["life_s"]
