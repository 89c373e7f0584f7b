"""The start script on a machine with systemd: the agent is a unit of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from contexts import KEY, variables_of_a_vm
from services import wait_until
from systemd_machine import Machine, booted

from boss.bootstrap.guest_scripts import PROBE, read_probe
from boss.bootstrap.start_script import SCRIPT, merged_context

pytestmark = pytest.mark.long
UNIT = "ecloud-worker"
HOME = "/var/lib/ecloud"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """One that has booted and has no context yet."""
    yield from booted(Machine(tmp_path / "machine"))


def boot(machine: Machine, poweroff_after_s: float = 3600.0) -> str:
    """Run START_SCRIPT as one-context runs it: with its context sourced, and waited for. What it said."""
    ours = variables_of_a_vm(["--label", "two words"], "secret", poweroff_after_s=poweroff_after_s)
    lines = (f'export {name}="{value}"\n' for name, value in merged_context({"NETWORK": "YES"}, ours).items())
    machine.write("/run/one-context/one_env", "".join(lines))
    machine.write("/run/one-context/start_script", SCRIPT)
    code, words = machine.ask("sh", "-c", ". /run/one-context/one_env; exec sh /run/one-context/start_script")
    assert code == 0, words
    return words


def agent(machine: Machine) -> int:
    """The agent's number there, once it waits for its broker and takes signals."""
    wait_until(lambda: "waiting for the broker" in machine.read(f"{HOME}/agent.log"), what="an agent that waits")
    (number,) = agents(machine)
    return number


def agents(machine: Machine) -> list[int]:
    """The agents' numbers there."""
    return [int(number) for number in machine.ask("pgrep", "-f", " -m worker ")[1].split()]


def test_the_agent_is_a_unit_that_outlives_the_script(machine: Machine) -> None:
    assert "started the agent" in boot(machine)
    number = agent(machine)
    assert machine.unit(UNIT, "ActiveState") == "active"
    assert machine.unit(UNIT, "KillMode") == "mixed"
    assert f"/{UNIT}.service" in machine.read(f"/proc/{number}/cgroup")
    assert "two words" in machine.read(f"/proc/{number}/cmdline")
    # Tasks see what the agent's environment holds; all users can read the unit's properties.
    assert "ECLOUD_ACCESS" not in machine.read(f"/proc/{number}/environ")
    assert KEY not in machine.ask("systemctl", "show", UNIT)[1] + machine.read(f"{HOME}/start.log")


def test_a_second_run_starts_no_second_agent(machine: Machine) -> None:
    boot(machine)
    number, since = agent(machine), machine.unit(UNIT, "InvocationID")
    for _ in range(2):
        assert "the agent runs already" in boot(machine)
    assert (agent(machine), machine.unit(UNIT, "InvocationID")) == (number, since)
    assert read_probe(machine.ask("sh", "-s", said=PROBE)[1]).visit.agent


def test_an_agent_that_crashed_is_started_again(machine: Machine) -> None:
    boot(machine)
    first = agent(machine)
    machine.ask("kill", "-KILL", str(first))
    wait_until(lambda: agents(machine) not in ([], [first]), what="another agent")
    assert "the agent left with exit code 137" in machine.read(f"{HOME}/start.log")


def test_a_unit_that_was_stopped_ends_at_once_and_can_be_started_again(machine: Machine) -> None:
    boot(machine)
    agent(machine)
    assert machine.ask("timeout", "20", "systemctl", "stop", UNIT) == (0, "")
    assert agents(machine) == []
    assert machine.unit(UNIT, "LoadState") == "not-found", "what was made for it is taken away"
    assert "the agent left with exit code 0" in machine.read(f"{HOME}/start.log")
    assert not machine.is_over
    assert "started the agent" in boot(machine)
    wait_until(lambda: agents(machine), what="a new agent")


def test_when_the_agent_has_left_the_machine_powers_itself_off(machine: Machine) -> None:
    boot(machine, poweroff_after_s=0.0)
    machine.ask("kill", "-TERM", str(agent(machine)))
    wait_until(lambda: machine.is_over, what="a machine that is off")


def test_a_machine_that_powers_off_does_not_wait_for_the_agent(machine: Machine) -> None:
    boot(machine, poweroff_after_s=3600.0)
    agent(machine)
    machine.ask("systemctl", "poweroff")
    wait_until(lambda: machine.is_over, what="a machine that is off")
