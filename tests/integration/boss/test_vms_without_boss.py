"""VMs whose boss dies: while it prepares one, and for good."""

from __future__ import annotations

from pathlib import Path

from opennebula_double import POWEROFF, OpenNebula
from services import wait_until
from ssh_cloud import START_S, PoolDaemon, push


def test_a_boss_that_is_killed_while_it_prepares_continues_after_its_restart(
    pool_daemon: PoolDaemon, ssh_cloud: OpenNebula, tmp_path: Path
) -> None:
    daemon = pool_daemon("bare", "ssh").start()
    push(daemon, tmp_path)
    home = tmp_path / "cloud/vm-0/var/lib/ecloud"
    wait_until(lambda: list(home.glob("new-*/*")) or list(home.glob("code-*")), START_S, "code is on its way")
    daemon.restart()
    push(daemon, tmp_path, "--wait")
    assert (daemon.home.datastore / "out2").read_text() == "one\ntwo\n"
    assert len(ssh_cloud.vms) == 1


def test_a_vm_whose_boss_is_gone_powers_itself_off_and_the_boss_s_return_ends_it(
    pool_daemon: PoolDaemon, ssh_cloud: OpenNebula, tmp_path: Path
) -> None:
    daemon = pool_daemon("bare", "ssh", BOSS_GONE_EXIT_S=3.0, IDLE_VM_S=600.0).start()
    push(daemon, tmp_path, "--wait")
    guest = ssh_cloud.vms[0].guest
    assert guest is not None
    daemon.kill()
    wait_until(lambda: ssh_cloud.vms[0].state == POWEROFF, START_S, "a VM that is off")
    assert guest.has_powered_off
    assert "the agent left with exit code 0" in guest.start_log
    assert len(ssh_cloud.alive) == 1
    daemon.start()
    wait_until(lambda: not ssh_cloud.alive, START_S, "the cloud's own list is empty")
