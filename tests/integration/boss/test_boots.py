"""From `push_tasks.py` to DONE on VMs of either kind of image: with ECLOUD inside, or with sshd and Python alone.
Each VM keeps a record of its boot, from which `why` speaks."""

from __future__ import annotations

from pathlib import Path

import pytest
from opennebula_double import OpenNebula
from services import Daemon, wait_until
from ssh_cloud import START_S, PoolDaemon, push

from boss.core.model.rows import BootRow
from ecloud.db.database import make_engine
from ecloud.queries.boot_history import boot_views
from ecloud.queries.why import NoSuchThing, why
from ecloud.queries.why_task import Pool

STEPS_OF_ALL = {"address", "context", "code", "python", "broker"}


def record(daemon: Daemon, vm_no: int = 1) -> BootRow:
    """What the database keeps of a boot."""
    engine = make_engine(f"sqlite:///{daemon.home.database}")
    try:
        with engine.connect() as connection:
            view = boot_views(connection, [vm_no])[vm_no]
            return BootRow(view.vm_no, view.address, view.host_key, view.steps, view.visit)
    finally:
        engine.dispose()


def reasons(daemon: Daemon, subject: str) -> str:
    """What `admin.py why` says; nothing of what is not there yet."""
    engine = make_engine(f"sqlite:///{daemon.home.database}")
    try:
        found = why(engine, subject, pools=[Pool("big", {"cpus": 1.0, "memory_mb": 500.0}, 1)])
        return "\n".join((found.sentence, *found.layers))
    except NoSuchThing:
        return ""  # not yet
    finally:
        engine.dispose()


@pytest.mark.parametrize(("template", "code"), [("inside", "image"), ("bare", "ssh")])
def test_from_a_push_to_done(
    pool_daemon: PoolDaemon, ssh_cloud: OpenNebula, tmp_path: Path, template: str, code: str
) -> None:
    daemon = pool_daemon(template, code).start()
    push(daemon, tmp_path, "--wait")
    assert (daemon.home.datastore / "out2").read_text() == "one\ntwo\n"
    wait_until(lambda: not ssh_cloud.alive, START_S, "the cloud's own list is empty")
    kept = record(daemon)
    assert kept.address == "127.77.0.10" or (code == "image" and not kept.address)
    seen = STEPS_OF_ALL | ({"ssh", "clock"} if code == "ssh" else set())
    assert set(kept.steps) >= seen - {"address"} if code == "image" else seen
    guest = ssh_cloud.vms[0].guest
    assert guest is not None
    assert kept.host_key == (guest.host_key if code == "ssh" else "")
    told = reasons(daemon, "vm/1")
    for step in ("had the code after", "its worker reported after", "first task"):
        assert step in told
    if code == "ssh":  # one with ECLOUD inside may be at work before a list shows its address
        assert "seen running at its address after" in told


def test_a_guest_whose_python_is_too_old_is_said_to_be_so(
    pool_daemon: PoolDaemon, ssh_cloud: OpenNebula, tmp_path: Path
) -> None:
    daemon = pool_daemon("old", "ssh").start()
    push(daemon, tmp_path)
    wait_until(lambda: ssh_cloud.vms, START_S, "a VM is asked for")
    wait_until(lambda: "its Python is 3.6; ECLOUD needs 3.10 or later" in reasons(daemon, "vm/1"), START_S)
    assert "its Python is 3.6" in reasons(daemon, "a")


def test_another_host_key_of_the_same_vm_is_refused(
    pool_daemon: PoolDaemon, ssh_cloud: OpenNebula, tmp_path: Path
) -> None:
    daemon = pool_daemon("old", "ssh").start()
    push(daemon, tmp_path)
    wait_until(lambda: ssh_cloud.vms and ssh_cloud.vms[0].guest, START_S, "a guest")
    wait_until(lambda: "its Python is 3.6" in reasons(daemon, "vm/1"), START_S, "a visit")
    guest = ssh_cloud.vms[0].guest
    assert guest is not None
    pinned = guest.host_key
    guest.change_host_key()
    wait_until(lambda: "shows another host key than at the first visit" in reasons(daemon, "vm/1"), START_S)
    assert "VM 1 is refused: its host key changed: SHA256:" in daemon.log
    assert record(daemon).host_key == pinned


def test_an_image_without_what_its_pool_says_tells_so_also_when_the_vm_is_gone(
    pool_daemon: PoolDaemon, ssh_cloud: OpenNebula, tmp_path: Path
) -> None:
    daemon = pool_daemon("bare", "image", VM_BOOT_S=12.0).start()
    push(daemon, tmp_path)
    cause = "its start script failed; its last output: "
    wait_until(lambda: "VM 1 of pool big has been gone" in reasons(daemon, "vm/1"), 2 * START_S, "a boot that failed")
    told = reasons(daemon, "vm/1")
    assert cause in told
    assert "there is no ECLOUD in" in told
