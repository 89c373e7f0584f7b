"""Visits by SSH of a user who is not root: as root if sudo permits it, else in the user's home. The sshd is real,
and so is the user: it may not read or write what is root's."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from contexts import NONCE, variables_of_a_vm
from guests import Guest
from services import free_port, wait_until
from unprivileged import NUMBER, USER, UnprivilegedGuest, why_not

from boss.bootstrap.bundle import Bundles
from boss.bootstrap.start_script import merged_context
from boss.bootstrap.visit import Visitor
from boss.core.model.effects import VisitVm
from boss.core.model.events import VmVisited
from datastore.keys import make_key
from ecloud.model.boot_diagnosis import recognise

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be made")
NewGuest = Callable[..., Guest]


@pytest.fixture
def place() -> Iterator[Path]:
    """Where another user may look."""
    made = Path(tempfile.mkdtemp(prefix="ecloud-guest-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


class Boss:
    """What the boss needs for visits."""

    def __init__(self, home: Path, port: int) -> None:
        self.port = port
        self.key = home / "vm.key"
        home.mkdir()
        self.public_key = make_key(self.key, "boss")
        self.visitor = Visitor(self.key, Bundles(home), USER, port)

    def visit(self, guest: Guest) -> VmVisited:
        return self.visitor.visit(VisitVm(1, "big", guest.address, NONCE, "", True))


@pytest.fixture
def boss(tmp_path: Path) -> Boss:
    return Boss(tmp_path / "boss", free_port())


@pytest.fixture
def new_guest(place: Path, boss: Boss) -> Iterator[NewGuest]:
    """Boots guests whose code the boss is to bring, for a broker that is not there."""
    made: list[Guest] = []

    def make(context_mode: int = 0o644, sudo: str = "") -> Guest:
        guest = UnprivilegedGuest(place / "vm", "127.77.10.1", boss.port, sudo)
        made.append(guest)
        ours = variables_of_a_vm(["--cpus", "1"], code="")
        guest.boot(merged_context({"SSH_PUBLIC_KEY": boss.public_key}, ours))
        (guest.root / "run/one-context/one_env").chmod(context_mode)
        wait_until(lambda: guest.start_script_is_over, what="the guest has started")
        wait_until(lambda: "Server listening" in (guest.root / "sshd.log").read_text(), what="an sshd")
        return guest

    yield make
    for guest in made:
        guest.end()


def owner(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


def test_who_may_not_write_the_machine_s_place_works_in_its_own_home(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest()
    visited = boss.visit(guest)
    assert (visited.visit.contact, visited.visit.problem, visited.visit.home) == ("ok", "", "")
    wait_until(guest.agents, what="an agent")
    (pid,) = guest.agents()
    assert owner(pid) == NUMBER
    own = guest.root / "home/visitor/.local/share/ecloud"
    assert f"PYTHONPATH={own}/code-" in Path(f"/proc/{pid}/environ").read_text()
    assert own.stat().st_mode & 0o777 == 0o700
    wait_until(lambda: "waiting for the broker" in (own / "agent.log").read_text(), what="a worker that works")
    # A second visit finds it, though root's own place says that it waits.
    assert boss.visit(guest).visit.agent
    assert set(guest.agents()) == {pid}
    code, words = guest.ask("ls", "-A", str(guest.root / "var/lib/ecloud"))
    assert (code, "agent" in words) == (0, False)


def test_a_context_that_only_root_reads_is_said_to_be_so(new_guest: NewGuest, boss: Boss) -> None:
    guest = new_guest(context_mode=0o600)
    visited = boss.visit(guest)
    found = recognise(visited.visit, 1, NONCE)
    assert found is not None
    assert found.name == "home"
    assert f"its context is shut to {USER}: let it be root, or let it use sudo without a password" in found.text
    assert guest.agents() == {}


@pytest.mark.parametrize(
    ("sudo", "used"),
    [
        # No real one is here: this one gives no rights, but shows what it is asked for.
        ('[ "$1" = -n ] || exit 1; shift; echo "$*" >>$HOME/asked; exec "$@"', True),
        ("echo 'sudo: a password is required' >&2; exit 1", False),
    ],
)
def test_sudo_is_used_where_it_asks_for_no_password(new_guest: NewGuest, boss: Boss, sudo: str, used: bool) -> None:
    guest = new_guest(sudo=sudo)
    assert boss.visit(guest).visit.problem == ""
    wait_until(guest.agents, what="an agent")
    asked = guest.root / "home/visitor/asked"
    assert asked.exists() is used
    if used:
        assert f"env ECLOUD_ROOT={guest.root} sh -c " in asked.read_text()
