"""The boss is killed (SIGKILL) at each step of a VM's life, and started again: no VM is left running, none is doubled,
and the work is done. The boss, the agents and the guests' scripts are the real ones; the cloud is the double."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opennebula_double import ACTIVE, BOOT, RUNNING, SHUTDOWN, OpenNebula
from services import Daemon, wait_until, watch_to_the_end

from ecloud.db.database import make_engine
from ecloud.model.tasks import TaskDefinition
from ecloud.model.wire import PushOptions
from ecloud.queries.ledger import ledger

NewDaemon = Callable[..., Daemon]
START_S = 60.0
TIMES = {"boot_s": 1.5, "shutdown_s": 1.5}
"""Of the double: long enough to be seen, and to kill a boss meanwhile."""


class Life:
    """One VM's life, and the boss that is killed in it."""

    def __init__(self, directory: Path, daemons: NewDaemon) -> None:
        self.double = OpenNebula(directory / "cloud", **TIMES).start()
        self.double.add_worker_template()
        self.journal = directory / "journal"
        self.gate = directory / "gate"
        big = {"name": "big", "cloud": "opennebula", "template": "worker", "maximum": 1, "memory_mb": 500}
        cloud = {"OPENNEBULA_URL": self.double.url, "OPENNEBULA_USER": "alice", "OPENNEBULA_PASSWORD": "PASSWORD"}
        self.daemon = daemons(POOLS=(big,), IDLE_VM_S=1.0, VM_UNANSWERED_S=6.0, VM_ORPHAN_S=6.0, **cloud)
        self.most = 0

    @property
    def vm(self) -> object | None:
        """The VM's row: its state."""
        engine = make_engine(f"sqlite:///{self.daemon.home.database}")
        try:
            with engine.connect() as connection:
                rows = connection.exec_driver_sql("SELECT state FROM vms ORDER BY vm_no DESC LIMIT 1").all()
        finally:
            engine.dispose()
        return rows[0][0] if rows else None

    def counted(self) -> list[float]:
        """Seconds of each VM by the ledger."""
        engine = make_engine(f"sqlite:///{self.daemon.home.database}")
        try:
            return [vm.life_s for vm in ledger(engine, now=time.time()).vms]
        finally:
            engine.dispose()

    def where(self, *states: int) -> bool:
        """Whether the cloud has a VM in that state."""
        self.most = max(self.most, len(self.double.alive))
        return any(vm.where == states for vm in self.double.alive)

    def agent(self) -> bool:
        """Whether an agent runs in the VM."""
        return any(vm.guest is not None and vm.guest.agents() for vm in self.double.alive)

    def ran(self) -> list[str]:
        """What the task wrote."""
        return self.journal.read_text().split() if self.journal.exists() else []

    def end(self) -> None:
        self.double.let_go.set()
        self.daemon.end()
        self.double.end()


@pytest.fixture
def life(tmp_path: Path, daemons: NewDaemon) -> Iterator[Life]:
    made = Life(tmp_path, daemons)
    yield made
    made.end()


Step = tuple[list[tuple[str, str]], Callable[[Life], bool]]
STEPS: dict[str, Step] = {
    "the room is asked for": ([("user.info", "never")], lambda life: life.double.held == ["never"]),
    "the intent is written": ([("template.instantiate", "never")], lambda life: life.double.held == ["never"]),
    "the call is under way": ([("template.instantiate", "early")], lambda life: life.double.held == ["early"]),
    "called and not answered": ([("template.instantiate", "late")], lambda life: bool(life.double.vms)),
    "started": ([], lambda life: bool(life.double.vms)),
    "booting": ([], lambda life: life.where(ACTIVE, BOOT)),
    "its agent starts": ([], lambda life: life.agent()),
    "running, and idle": ([], lambda life: life.ran() == ["begun", "done"] and life.vm == "running"),
    "running, and busy": ([], lambda life: life.ran() == ["begun"]),
    "its end is decided": ([], lambda life: life.vm == "ending"),
    "its end is asked for": ([("vm.action", "never")], lambda life: life.double.held == ["never"]),
    "its end was not answered": ([("vm.action", "late")], lambda life: life.where(ACTIVE, SHUTDOWN)),
    "shutdown under way": ([], lambda life: life.where(ACTIVE, SHUTDOWN)),
    "gone, and not known": ([], lambda life: bool(life.double.vms) and not life.double.alive),
}
"""When the boss is killed: faults of the cloud that bring the step about, and how it is seen."""
SAMPLE = ("the call is under way", "running, and busy", "shutdown under way")


def live_through(life: Life, step: str) -> None:
    """A task from its push to its end, with the boss killed at that step; and what is left of the VM."""
    faults, reached = STEPS[step]
    life.double.faults.next_calls.extend(faults)
    life.daemon.start()
    with life.daemon.client() as client:
        # The task ends on command: so what is killed while it runs really runs then.
        wait = f"while [ ! -e {life.gate} ]; do sleep 0.05; done"
        commands = (f"echo begun >> {life.journal}", wait, f"echo done >> {life.journal}")
        client.push([TaskDefinition(id="a", commands=commands)], PushOptions("r"))
        if step != "running, and busy":
            life.gate.touch()
        wait_until(lambda: reached(life), START_S, step)
        life.daemon.kill()
        life.double.let_go.set()
        life.gate.touch()
        life.daemon.start()
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 1}
    wait_until(lambda: not life.where(ACTIVE, RUNNING) and not life.double.alive, START_S, "the cloud's list is empty")
    wait_until(lambda: life.vm == "gone", START_S, "the boss knows")
    assert life.ran() == ["begun", "done"]
    assert len(life.double.vms) == 1, "a second VM was asked for"
    vm = life.double.vms[0]
    assert life.counted() == [vm.ended_at - vm.made_at], "the ledger is the cloud's own list"
    guest = life.double.vms[0].guest
    assert guest is None or guest.processes() == {}


@pytest.mark.parametrize("step", SAMPLE)
def test_a_boss_killed_in_a_vm_s_life_leaves_none_and_doubles_none(life: Life, step: str) -> None:
    live_through(life, step)


@pytest.mark.long
@pytest.mark.parametrize("step", [step for step in STEPS if step not in SAMPLE])
def test_a_boss_killed_at_any_step_of_a_vm_s_life_leaves_none_and_doubles_none(life: Life, step: str) -> None:
    live_through(life, step)


def test_a_vm_that_is_made_after_its_intent_was_given_up_is_ended(life: Life) -> None:
    """No intent owns it. Its agent joins all the same, is ordered to leave, and then the VM is ended."""
    settings = life.daemon.settings_file
    text = settings.read_text().replace("VM_UNANSWERED_S = 6.0", "VM_UNANSWERED_S = 1.0")
    settings.write_text(text.replace("VM_ORPHAN_S = 6.0", "VM_ORPHAN_S = 1.0"))
    life.double.faults.next_calls.append(("template.instantiate", "early"))
    life.gate.touch()
    life.daemon.start()
    with life.daemon.client() as client:
        commands = (f"echo begun >> {life.journal}", f"echo done >> {life.journal}")
        client.push([TaskDefinition(id="a", commands=commands)], PushOptions("r"))
        wait_until(lambda: life.double.held, START_S, "the call is under way")
        life.daemon.kill()
        life.daemon.start()
        wait_until(lambda: life.double.vms, START_S, "another VM is asked for")
        life.double.let_go.set()
        wait_until(lambda: len(life.double.vms) == 2, START_S, "the first one is made, late")
        assert watch_to_the_end(client, "r", START_S).states == {"succeeded": 1}
        wait_until(lambda: not life.double.alive, START_S, "the cloud's list is empty")
    assert life.ran() == ["begun", "done"]
    assert len(life.double.vms) == 2
    assert "no intent owns its VM" in life.daemon.log
