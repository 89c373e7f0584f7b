"""Visits to guests by SSH: what is found there, and how one with nothing but sshd and Python becomes a worker. The
guests are real: each has its own address, sshd and host key."""

from __future__ import annotations

import getpass
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import pytest
from contexts import NONCE, variables_of_a_vm
from guests import Guest
from services import HOST, free_port, wait_until

from boss.bootstrap.bundle import Bundles
from boss.bootstrap.start_script import encoded, merged_context
from boss.bootstrap.visit import Visitor
from boss.core.model.effects import ListVms, VisitVm
from boss.core.model.events import Event, VmsListed, VmVisited
from boss.providers.local import LocalCloud
from boss.providers.provider import VmFound
from boss.shell.calls import Calls
from boss.shell.storage import Storage
from datastore.keys import make_key
from ecloud.config.home import Home
from ecloud.model.boot_diagnosis import recognise

NewGuest = Callable[..., Guest]
PORT = free_port()


class Boss:
    """What the boss needs for visits: a key and bundles."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.key = home / "vm.key"
        self.public_key = make_key(self.key, "boss")
        self.bundles = Bundles(home)
        self.visitor = Visitor(self.key, self.bundles, getpass.getuser(), PORT)

    def visit(self, guest: Guest, host_key: str = "", prepare: bool = True, boot_nonce: str = NONCE) -> VmVisited:
        return self.visitor.visit(VisitVm(1, "big", guest.address, boot_nonce, host_key, prepare))


class NoVms(LocalCloud):
    """A cloud that lists none."""

    def __init__(self) -> None:
        """It needs nothing."""

    def list(self, known: Mapping[str, int] = {}, lost: Collection[int] = ()) -> list[VmFound]:
        return []


@pytest.fixture
def boss(tmp_path: Path) -> Boss:
    return Boss(tmp_path / "boss")


@pytest.fixture
def new_guest(tmp_path: Path, boss: Boss) -> Iterator[NewGuest]:
    """Boots guests whose code the boss is to bring, for a broker that is not there."""
    made: list[Guest] = []

    def make(
        image: str = "bare", key: str | None = None, own: str = "", with_context: bool = True, wait: bool = True
    ) -> Guest:
        guest = Guest(tmp_path / f"vm-{len(made)}", f"127.77.9.{len(made) + 1}", image, PORT)
        made.append(guest)
        ours = variables_of_a_vm(["--cpus", "1"], code="")
        template = {"SSH_PUBLIC_KEY": boss.public_key if key is None else key}
        if own:
            template["START_SCRIPT_BASE64"] = encoded(own)
        guest.boot(merged_context(template, ours) if with_context else template)
        wait_until(lambda: not (with_context and wait) or guest.start_script_is_over, what="the guest has started")
        wait_until(lambda: "Server listening" in (guest.root / "sshd.log").read_text(), what="an sshd")
        return guest

    yield make
    for guest in made:
        guest.end()


def cause(visited: VmVisited) -> tuple[str, str]:
    """What is recognised."""
    found = recognise(visited.visit, 1, NONCE)
    assert found is not None, visited
    return found.name, found.text


# --- from nothing to a worker ---------------------------------------------------------------------


def test_a_guest_with_nothing_but_sshd_and_python_becomes_a_worker(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest()
    assert "waiting for the boss, which brings the code by SSH" in guest.start_log
    assert guest.agents() == {}
    visited = boss.visit(guest)
    assert (visited.visit.contact, visited.visit.problem) == ("ok", "")
    assert visited.host_key == guest.host_key
    assert list(visited.ago_s) == ["ssh", "clock", "python", "code"]
    wait_until(guest.agents, what="an agent")
    (pid,) = guest.agents()
    assert f"PYTHONPATH={guest.root}/var/lib/ecloud/code-" in Path(f"/proc/{pid}/environ").read_text()
    log = guest.root / "var/lib/ecloud/agent.log"
    wait_until(lambda: "waiting for the broker" in log.read_text(), what="a worker that works")


def test_a_second_visit_sends_nothing_and_starts_nothing(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest()
    first = boss.visit(guest)
    wait_until(guest.agents, what="an agent")
    agents = set(guest.agents())
    # The sender needs the archive.
    boss.bundles.get = None  # type: ignore[assignment, method-assign]
    second = boss.visit(guest, first.host_key)
    assert second.visit.agent
    assert set(guest.agents()) == agents


def test_the_next_visit_completes_one_that_was_broken_off(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest()
    home = guest.root / "var/lib/ecloud"
    (home / "new-torn" / "worker").mkdir(parents=True)  # half of an archive
    os.utime(home / "new-torn", (1, 1))
    visited = boss.visit(guest)
    assert visited.visit.problem == ""
    assert not (home / "new-torn").exists()
    wait_until(guest.agents, what="an agent")
    guest_agent = next(iter(guest.agents()))
    # The boss died after the code was there and before the agent was.
    for pid in guest.processes():
        if "sshd" not in guest.processes().get(pid, "sshd"):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not guest.agents(), what="no agent")
    boss.visit(guest, visited.host_key)
    wait_until(guest.agents, what="an agent")
    assert guest_agent not in guest.agents()


def test_after_a_reboot_the_code_is_there_still(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest()
    boss.visit(guest)
    wait_until(guest.agents, what="an agent")
    context = guest.context
    guest.end()
    guest.boot(context)
    wait_until(guest.agents, what="an agent again")


def test_the_template_s_own_script_runs_once(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest(own="echo again >>$ECLOUD_ROOT/own\n")
    boss.visit(guest)
    wait_until(guest.agents, what="an agent")
    assert (guest.root / "own").read_text() == "again\n"


def test_no_worker_is_started_before_the_template_s_own_script_has_ended(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest(own='until [ -e "$ECLOUD_ROOT/go" ]; do sleep 0.05; done\n', wait=False)
    visited = boss.visit(guest)
    assert cause(visited)[0] == "still starting"
    assert "the template's own start script" in visited.visit.starting
    assert not list((guest.root / "var/lib/ecloud").glob("code-*"))
    (guest.root / "go").touch()
    wait_until(lambda: guest.start_script_is_over)
    assert boss.visit(guest).visit.agent
    wait_until(guest.agents, what="an agent")


def test_looking_changes_nothing(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest()
    visited = boss.visit(guest, prepare=False)
    assert visited.visit.broker is False
    assert "waiting for the boss" in visited.visit.log
    assert not list((guest.root / "var/lib/ecloud").glob("code-*"))
    assert guest.agents() == {}


# --- what is refused, and what cannot be -----------------------------------------------------------


def test_another_host_key_at_the_second_visit_is_refused(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest()
    first = boss.visit(guest, prepare=False)
    guest.change_host_key()
    wait_until(lambda: (guest.root / "sshd.log").read_text().count("Server listening") == 2, what="the other sshd")
    second = boss.visit(guest, first.host_key)
    assert second.visit.contact == "changed"
    assert second.host_key == first.host_key
    name, text = cause(second)
    assert name == "another machine"
    assert text.count("SHA256:") == 2
    assert guest.agents() == {}


def test_another_vm_at_the_address_gets_nothing(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest()
    visited = boss.visit(guest, boot_nonce="9-9")
    assert guest.agents() == {}
    found = recognise(visited.visit, 1, "9-9")
    assert found is not None
    assert found.name == "another machine"
    assert "belongs to VM 1 (boot 4-1)" in found.text


@pytest.mark.parametrize(
    ("image", "sentence"),
    [("bare old python", "its Python is 3.6; ECLOUD needs 3.10"), ("bare no python", "it has no Python; ECLOUD")],
)
def test_without_a_python_that_is_new_enough(new_guest: NewGuest, boss: Boss, image: str, sentence: str) -> None:
    guest = new_guest(image)
    visited = boss.visit(guest)
    name, text = cause(visited)
    assert (name, text.startswith(sentence)) == ("python", True), text
    assert guest.agents() == {}


def test_a_key_that_is_refused(new_guest: NewGuest, boss: Boss) -> None:
    visited = boss.visit(new_guest(key=""))
    assert visited.visit.contact == "denied"
    assert cause(visited)[0] == "key refused"


def test_no_server_listens_there(boss: Boss, tmp_path: Path) -> None:
    visited = boss.visit(Guest(tmp_path / "vm", "127.77.9.200", "bare"))
    assert visited.visit.contact == "shut"
    assert cause(visited)[0] == "no context"


def test_a_guest_without_context(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest(with_context=False)
    (guest.root / "run/one-context/one_env").unlink()
    assert cause(boss.visit(guest))[0] == "no context"
    assert guest.agents() == {}


def test_a_home_that_can_t_be_written(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest(with_context=False)
    home = guest.root / "var/lib/ecloud"
    home.write_text("a file")
    visited = boss.visit(guest)
    assert "cannot be written" in visited.visit.home
    assert guest.agents() == {}


def test_fifty_vms_that_never_answer_hold_up_no_other_call(boss: Boss) -> None:
    """Each takes a connection and says nothing."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with socket.create_server((HOST, 0), backlog=64) as silent:
        visitor = Visitor(boss.key, boss.bundles, getpass.getuser(), silent.getsockname()[1])
        calls = Calls(Storage(Home(boss.home), "c0ffee"), {"big": NoVms()}, {}, events.put, visitors={"big": visitor})
        for vm_no in range(50):
            calls.make(VisitVm(vm_no, "big", HOST, NONCE, "", True))
        calls.make(ListVms("big"))
        first = events.get(timeout=30)
        calls.close()
    assert isinstance(first, VmsListed)
    visited = events.get(timeout=60)
    assert isinstance(visited, VmVisited)
    assert visited.visit.contact != "ok"


def test_a_boss_that_leaves_breaks_its_visits_off(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest()
    slow = guest.root / "root/.bashrc"  # what a shell that is entered by SSH runs first
    slow.write_text("touch $HOME/entered; sleep 100\n")
    found: queue.SimpleQueue[VmVisited] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: found.put(boss.visit(guest)))
    thread.start()
    wait_until((guest.root / "root/entered").exists, what="a visit that is under way")
    boss.visitor.close()
    assert found.get(timeout=30).visit.contact == "broken"
    thread.join(30)
    assert boss.visit(guest).visit.said == "the boss leaves"


def test_a_visit_that_breaks_off_after_the_guest_said_who_it_is_pins_its_host_key(
    new_guest: NewGuest, boss: Boss
) -> None:
    """As where a VM has done its work and ends before its start command came back."""
    guest = new_guest()
    again = 'n=$(cat $HOME/n 2>/dev/null); echo 1 >$HOME/n; [ -z "$n" ] || { touch $HOME/entered; sleep 100; }\n'
    (guest.root / "root/.bashrc").write_text(again)  # the second command does not come back
    found: queue.SimpleQueue[VmVisited] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: found.put(boss.visit(guest)))
    thread.start()
    wait_until((guest.root / "root/entered").exists, what="a visit that has asked who it is")
    boss.visitor.close()
    visited = found.get(timeout=30)
    thread.join(30)
    assert (visited.visit.contact, visited.visit.vm, visited.visit.boot_nonce) == ("broken", "1", NONCE)
    assert visited.host_key == guest.host_key


def test_a_guest_that_runs_no_command_is_said_to_be_so(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest()
    (guest.root / "root/.bashrc").write_text("echo 'This account is not available.'; exit 1\n")
    visited = boss.visit(guest)
    assert visited.visit.said == "the VM cannot be checked: This account is not available."
