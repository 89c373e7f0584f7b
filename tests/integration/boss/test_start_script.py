"""The start script in a guest that boots as one-context boots it: one agent, however often the guest runs it."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from contexts import KEY, variables_of_a_vm
from guests import Guest
from services import ROOT, wait_until

from boss.bootstrap.start_script import MAX_VALUE_BYTES, SCRIPT, TooLarge, encoded, merged_context


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """A machine whose image has ECLOUD inside."""
    made = Guest(tmp_path / "vm-1", "127.77.0.1", "ecloud")
    yield made
    made.end()


def context(own: dict[str, str] | None = None, poweroff_after_s: float = 3600.0) -> dict[str, str]:
    """What a VM gets, for a broker that is not there."""
    options = ["--label", "two words", "--cpus", "1"]
    ours = variables_of_a_vm(options, 'a "quoted" $(secret)', poweroff_after_s=poweroff_after_s)
    return merged_context({"NETWORK": "YES", **(own or {})}, ours)


def agent(guest: Guest) -> int:
    """The one agent of a guest that has booted."""
    wait_until(lambda: guest.start_script_is_over and guest.agents(), what="an agent")
    (pid,) = guest.agents()
    return pid


# --- the script in a guest ------------------------------------------------------------------------


def test_a_guest_becomes_a_worker_and_its_boot_continues(guest: Guest) -> None:
    guest.boot(context())
    pid = agent(guest)
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    assert arguments[arguments.index("--vm_no") :][:4] == ["--vm_no", "1", "--boot_nonce", "4-1"]
    assert "two words" in arguments
    assert os.getsid(pid) != os.getsid(0)
    assert "started the agent" in guest.start_log


def test_no_other_user_can_read_the_key(guest: Guest) -> None:
    guest.boot(context())
    pid = agent(guest)
    access = guest.root / "var/lib/ecloud/access"
    assert msgspec.json.decode(access.read_bytes())["password"] == 'a "quoted" $(secret)'
    assert stat.S_IMODE(access.stat().st_mode) == 0o600
    assert KEY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    # Tasks see what the agent's environment holds.
    assert b"ECLOUD_ACCESS" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert KEY not in guest.start_log + guest.journal


def test_a_changed_context_runs_the_script_again_and_starts_nothing(guest: Guest) -> None:
    guest.boot(context())
    pid = agent(guest)
    for times in (1, 2):
        guest.boot(context())
        wait_until(lambda times=times: guest.start_log.count("the agent runs already") == times)
    assert agent(guest) == pid


def test_its_steps_are_written_down_once(guest: Guest) -> None:
    guest.boot(context())
    agent(guest)
    guest.boot(context())
    wait_until(lambda: "the agent runs already" in guest.start_log)
    boot, *steps = (guest.root / "var/lib/ecloud/steps").read_text().splitlines()
    assert boot == "boot " + Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert [step.split()[1] for step in steps] == ["context", "own", "code"]


def test_two_runs_at_once_start_one_agent(guest: Guest) -> None:
    for _ in range(3):
        guest.boot(context())
    wait_until(
        lambda: guest.start_log.count("the agent runs already") == 2,
        deadline_s=60.0,
        what="two runs that found the first's",
    )
    agent(guest)


def test_a_reboot_starts_it_again(guest: Guest) -> None:
    guest.boot(context())
    first = agent(guest)
    guest.end(signal.SIGKILL)
    guest.boot(context())
    assert agent(guest) != first


def test_when_the_agent_has_left_the_machine_powers_itself_off(guest: Guest) -> None:
    guest.boot(context(poweroff_after_s=0.0))
    pid = agent(guest)
    # It takes signals from when it waits for its broker.
    wait_until(lambda: "waiting for the broker" in (guest.root / "var/lib/ecloud/agent.log").read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: guest.has_powered_off, what="a machine that is off")
    assert "the agent left with exit code 0" in guest.start_log


def test_the_template_s_own_script_runs_first_and_may_fail(guest: Guest) -> None:
    guest.boot(context({"START_SCRIPT_BASE64": encoded("[[ -d / ]] && echo prepared >$ECLOUD_ROOT/own\nexit 7\n")}))
    agent(guest)
    assert (guest.root / "own").read_text() == "prepared\n"
    assert "own start script failed with exit code 7; continuing" in guest.start_log


def test_of_two_own_scripts_the_one_that_a_guest_runs_is_kept(guest: Guest) -> None:
    plain = "#!/bin/sh\necho plain >$ECLOUD_ROOT/own"
    guest.boot(context({"START_SCRIPT": plain.replace("$", "\\$"), "START_SCRIPT_BASE64": encoded("exit 1")}))
    agent(guest)
    assert (guest.root / "own").read_text() == "plain\n"


def test_an_image_without_ecloud_reports_that(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "vm-2", "127.77.0.2", "bare")
    guest.boot(context())
    wait_until(lambda: guest.start_script_is_over)
    assert "there is no ECLOUD in" in guest.start_log
    assert "use an image that has it" in guest.journal
    assert guest.processes() == {}


def test_a_context_without_access_reports_that(guest: Guest) -> None:
    changed = {**context(), "ECLOUD_ACCESS_BASE64": ""}
    guest.boot(changed)
    wait_until(lambda: guest.start_script_is_over)
    assert "the context holds no access file" in guest.start_log
    assert guest.agents() == {}


def test_code_that_was_copied_later_is_started_by_the_same_script(tmp_path: Path) -> None:
    """By SSH, where the context's variables are in a file of the guest."""
    guest = Guest(tmp_path / "vm-3", "127.77.0.3", "bare")
    own = "echo again >>$ECLOUD_ROOT/own\n"
    guest.boot(context({"START_SCRIPT_BASE64": encoded(own)}))
    wait_until(lambda: guest.start_script_is_over)
    assert guest.agents() == {}
    copied = guest.root / "var/lib/ecloud/code"
    copied.symlink_to(ROOT)
    guest.run(SCRIPT, ECLOUD_COPIED_CODE=str(copied))
    wait_until(guest.agents, what="an agent")
    assert (guest.root / "own").read_text() == "again\n"
    guest.end()


# --- the script as text ---------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
def test_every_shell_reads_it(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    assert subprocess.run([shell, "-n"], input=SCRIPT.encode(), capture_output=True).stderr == b""


def test_what_no_guest_could_export_is_refused() -> None:
    assert len(merged_context({"NOTE": "x" * 1000}, {})["NOTE"]) == 1000
    with pytest.raises(TooLarge, match=r"the context's NOTE has \d+ bytes; a guest exports 120000 at most"):
        merged_context({"NOTE": "x" * MAX_VALUE_BYTES}, {})
    with pytest.raises(TooLarge, match="the context has"):
        merged_context({f"NOTE{index}": "x" * 100_000 for index in range(11)}, {})
