"""A real Slurm as a cloud: workers come as jobs when there is work and go when it is done; none is lost or doubled."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from doors import Doors, ended
from monitor_client import Monitor
from pages import Page, type_all
from services import ROOT, Daemon, wait_until
from slurm import Slurm

from boss.providers.provider import CloudState, GivePoolUp, TryLater, Unanswered, VmOrder
from boss.providers.slurm import Commands, SlurmCloud
from boss.providers.slurm_jobs import JobOptions
from ecloud.config.secrets import AccessFile

pytestmark = pytest.mark.timeout(300)
SIZE = {"cpus": 1.0, "memory_mb": 500.0, "gpus": 0.0}


def pool(**fields: Any) -> dict[str, Any]:
    """A pool of four workers of the test's Slurm."""
    return {"name": "hpc", "cloud": "slurm", "maximum": 4, "cpus": 1, "memory_mb": 500, "time_limit": "30", **fields}


@pytest.fixture
def cluster(slurm: Slurm, daemons: Callable[..., Daemon], tmp_path: Path) -> Callable[..., Doors]:
    """A boss whose only pool is that Slurm."""

    def start(**fields: Any) -> Doors:
        settings = {"POOLS": [pool(**fields)], "IDLE_VM_S": 1.0, "VM_BOOT_S": 60.0}
        return Doors(tmp_path / "place", daemons(**settings).start())

    return start


def options(**fields: Any) -> JobOptions:
    return JobOptions(sys.executable, str(ROOT), **{"time_limit": "10", **fields})


def cloud(cluster_id: str = "c1", **fields: Any) -> SlurmCloud:
    """As a boss has it."""
    return SlurmCloud(
        Commands(), cluster_id, options(**fields), lambda name: AccessFile(cluster_id, "127.0.0.1", 1, name, "00" * 32)
    )


def order(vm_no: int = 1) -> VmOrder:
    return VmOrder(vm_no, "hpc", SIZE, f"1-{vm_no}")


def test_workers_come_with_work_and_go_and_the_ledger_agrees_with_sacct(
    cluster: Callable[..., Doors], slurm: Slurm
) -> None:
    doors = cluster()
    mine = f"ecloud-{doors.admin('show_context', '--json').json['cluster_id']}-"
    tasks = [{"id": f"t{number}", "commands": "hostname > /dev/null; sleep 0.05"} for number in range(500)]
    done = doors.push(doors.write("t.json", tasks), "--wait")
    assert "500 succeeded" in done.out
    wait_until(lambda: slurm.jobs() == [], 60, "the jobs end")
    wait_until(lambda: slurm.agents() == [], what="so do their workers")
    wait_until(lambda: doors.admin("show_vms", "--json").json == [], 60, "the boss knows it")
    lives = slurm.lives(mine)
    assert 1 <= len(lives) <= 4
    ledger = doors.admin("ledger", "--json").json
    assert {vm["vm_no"]: vm["life_s"] for vm in ledger["vms"]} == {
        int(name.rpartition("-")[2]): ended - started for name, (_, started, ended) in lives.items()
    }
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob(f"{mine}*"))


@pytest.mark.long
def test_what_a_worker_is_waited_for_and_why(cluster: Callable[..., Doors], slurm: Slurm) -> None:
    """The queue is full: the job waits for longer than a VM may take to boot, and `why` tells Slurm's reason."""
    slurm.ask("scontrol", "update", "NodeName=localhost", "State=DRAIN", "Reason=test")
    try:
        doors = cluster(backlog=1)
        assert doors.daemon is not None
        doors.push(doors.write("t.json", [{"id": f"t{number}", "commands": "sleep 1"} for number in range(8)]))
        wait_until(lambda: len(slurm.jobs()) == 1, 60, "a job waits")
        reasons = ("Nodes required for job", "ReqNodeNotAvail", "Resources")  # Slurm says now one, now the other

        def said() -> bool:
            return any(vm.get("said", "").startswith(reasons) for vm in doors.admin("show_vms", "--json").json)

        wait_until(said, 60, "Slurm's reason is shown")

        def why() -> bool:
            told = " ".join(doors.admin("why", "vm/1").out.split())
            return any(reason in told for reason in reasons)

        wait_until(why, 60, "why vm/1 names it")
        monitor = Monitor(doors)
        try:
            monitor.enter()
            page = " ".join(re.sub(r"<[^>]+>", " ", monitor.get("/machines").text).split())
        finally:
            monitor.end()
        (job_id,) = slurm.ask("squeue", "-h", "-o", "%i").split()
        job = page.partition("Slurm jobs")[2]
        assert re.search(rf"\b{job_id} 1 hpc … pending", job), page
        assert any(reason in job for reason in reasons), page
        assert len(slurm.jobs()) == 1, "the backlog is bounded"
    finally:
        slurm.ask("scontrol", "update", "NodeName=localhost", "State=RESUME")
    assert set(ended(doors, "t").values()) == {"succeeded"}


def test_a_limit_of_a_qos_holds_and_why_names_it(cluster: Callable[..., Doors], slurm: Slurm) -> None:
    """One job may run, two may be submitted: the second waits for the first, and no third is submitted until then."""
    slurm.account("add", "qos", "narrow", "MaxJobsPerUser=1", "MaxSubmitJobsPerUser=2")
    slurm.account("modify", "user", "root", "set", "qos+=narrow")
    doors = cluster(qos="narrow")
    gate = doors.place / "gate"
    command = f"until [ -e '{gate}' ]; do sleep 0.1; done"
    doors.push(doors.write("t.json", [{"id": f"t{number}", "commands": command} for number in range(4)]))

    def waiting() -> list[int]:
        vms = doors.admin("show_vms", "--json").json
        return [vm["vm_no"] for vm in vms if vm.get("said", "").startswith("QOSMaxJobsPerUserLimit")]

    (vm_no,) = wait_until(waiting, 60, "Slurm's reason is shown")
    for subject in (f"vm/{vm_no}", "t3"):
        assert "QOSMaxJobsPerUserLimit" in "".join(doors.admin("why", subject, "--all").out.split())
    refused = [vm["reason"] for vm in doors.admin("show_vms", "--all", "--json").json if vm["state"] == "gone"]
    assert any("QOSMaxSubmitJobPerUserLimit" in reason for reason in refused)
    assert len(slurm.jobs()) == 2
    gate.write_text("")
    assert set(ended(doors, "t").values()) == {"succeeded"}


@pytest.mark.long
def test_a_time_limit_in_the_middle_of_tasks_costs_them_nothing(cluster: Callable[..., Doors], slurm: Slurm) -> None:
    """Slurm ends the worker while tasks without any retry run; each runs again elsewhere and succeeds once."""
    doors = cluster(maximum=1, cpus=2, sbatch_options=["--signal=B:TERM@5"])
    gate, log = doors.place / "gate", doors.place / "log"
    command = f"until [ -e '{gate}' ]; do sleep 0.1; done; echo $ECLOUD_TASK >> '{log}'"
    doors.push(doors.write("t.json", [{"id": f"t{number}", "commands": command, "retries": 0} for number in range(2)]))

    def are_running() -> bool:
        return all(
            doors.admin("show_task_status", f"t{number}", "--json").json["state"] == "running" for number in range(2)
        )

    wait_until(are_running, 60, "both run")
    job_id = slurm.ask("squeue", "-h", "-o", "%i").strip()
    slurm.ask("scontrol", "update", f"JobId={job_id}", "EndTime=now+10")
    wait_until(
        lambda: slurm.ask("squeue", "-h", "-t", "R", "-o", "%i").strip() not in ("", job_id), 120, "another job runs"
    )
    gate.write_text("")
    assert set(ended(doors, "t").values()) == {"succeeded"}
    assert sorted(log.read_text().split()) == ["t0", "t1"]
    states = [state for state, _, _ in slurm.lives("ecloud-").values()]
    assert "TIMEOUT" in states


def test_a_task_that_states_more_than_the_time_limit_gets_no_job_and_why_names_the_limit(
    cluster: Callable[..., Doors], slurm: Slurm
) -> None:
    doors = cluster(time_limit="5")
    tasks = [
        {"id": "long", "commands": "true", "runtime_s": 600},
        {"id": "short", "commands": "true", "runtime_s": 200},
    ]
    doors.push(doors.write("t.json", tasks))
    wait_until(lambda: doors.admin("show_task_status", "short", "--json").json["state"] == "succeeded", 60)
    wait_until(lambda: slurm.jobs() == [], 60, "its job ends")
    remedy = "workers of pool hpc live for 5 min: raise the pool's time_limit, or lower runtime_s"
    for question in (("why", "long"), ("status",)):
        told = " ".join(doors.admin(*question).out.split())
        assert "task long waits: its runtime_s is 600 (10 min)" in told
        assert remedy in told
    assert doors.admin("show_task_status", "long", "--json").json["state"] == "ready"
    assert slurm.jobs() == []
    tasks[0]["runtime_s"] = 200
    doors.push(doors.write("t.json", tasks))
    assert ended(doors, "t") == {"long": "succeeded", "short": "succeeded"}


def test_a_job_cancelled_by_hand_costs_no_task(cluster: Callable[..., Doors], slurm: Slurm) -> None:
    doors = cluster(maximum=1)
    gate = doors.place / "gate"
    tasks = [{"id": "t", "commands": f"while [ ! -e '{gate}' ]; do sleep 0.1; done"}]
    doors.push(doors.write("t.json", tasks))
    wait_until(lambda: doors.admin("show_task_status", "t", "--json").json["state"] == "running", 60)
    [name] = slurm.jobs()
    slurm.ask("scancel", "--name", name)
    wait_until(lambda: slurm.jobs() not in ([], [name]), 90, "another job takes its place")
    gate.write_text("")
    assert ended(doors, "t") == {"t": "succeeded"}


@pytest.mark.long
def test_the_slurm_page_does_what_it_shows(slurm: Slurm, daemons: Callable[..., Daemon], tmp_path: Path) -> None:
    page = Page("docs/slurm.md")
    daemon = daemons()
    settings = page.marked("settings").replace('"/shared/ecloud"', repr(str(tmp_path / "shared")))
    (tmp_path / "shared").mkdir()
    daemon.settings_file.write_text(daemon.settings_file.read_text() + settings)
    doors = Doors(tmp_path / "place", daemon)
    try:
        type_all(page, doors.place, doors.environment)
        wait_until(lambda: slurm.jobs() == [], 60, "nothing is left in the queue")
    finally:
        doors.admin("stop", "--vms", code=None)


# --- the provider alone -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"partition": "none"}, GivePoolUp, "invalid partition"),
        ({"sbatch_options": ("--constraint=none",)}, GivePoolUp, "invalid feature"),
        ({"time_limit": "10", "sbatch_options": ("--no-such-option",)}, GivePoolUp, "unrecognized option"),
    ],
)
def test_refusals_say_what_to_do(slurm: Slurm, fields: dict[str, Any], kind: type[Exception], words: str) -> None:
    for ask in (lambda: cloud(**fields).start(order()), lambda: cloud(**fields).room()):
        with pytest.raises(kind, match=f"(?i){words}"):
            ask()
    assert [name for name in slurm.jobs() if name.startswith("ecloud-c1-")] == []


def test_a_controller_that_is_away_is_waited_for_and_loses_no_job(own_slurm: Slurm) -> None:
    mine = cloud()
    first = mine.start(order(1))
    own_slurm.kill_controller()
    for ask in (lambda: mine.list(), lambda: mine.start(order(2)), lambda: mine.end(first)):
        with pytest.raises(TryLater):
            ask()
    own_slurm.start_controller()
    listed = wait_until(lambda: mine.list({first: 1}, lost={2: "1-2"}), what="Slurm lists again")
    assert [(vm.vm_no, vm.cloud_id) for vm in listed] == [(1, first)]
    assert list(mine.end_all(30)) == []


def test_a_job_that_slurm_forgot_is_unknown_first_and_then_gone(own_slurm: Slurm) -> None:
    """`MinJobAge` is 2 s here, and there is no accounting."""
    mine = cloud()
    job_id = mine.start(order(7))
    wait_until(lambda: [vm for vm in mine.list({job_id: 7}) if vm.state is CloudState.RUNNING], what="it runs")
    since = mine.list({job_id: 7})[0].since
    mine.end(job_id)
    states: list[CloudState] = []

    def is_forgotten() -> bool:
        (vm,) = mine.list({job_id: 7})
        if not states or states[-1] is not vm.state:
            states.append(vm.state)
        assert vm.since == since
        return not own_slurm.ask("squeue", "-h", "--states=all", "-j", job_id, "-o", "%i").strip()

    wait_until(is_forgotten, 120, "Slurm forgets it")
    wait_until(lambda: mine.list({job_id: 7})[0].state is CloudState.GONE, what="it is reported as gone")
    (gone,) = mine.list({job_id: 7})
    assert (gone.state, gone.since) == (CloudState.GONE, since)
    assert CloudState.GONE in states, "while Slurm showed how it ended"
    assert mine.list() == []


def test_accounting_tells_how_a_forgotten_job_ended(slurm: Slurm) -> None:
    """Slurm forgets jobs after 2 s here. One is known by its id; the answer for the other was lost."""
    mine = cloud("c4")
    known = mine.start(order(1))
    mine.start(order(2))
    wait_until(lambda: [vm.state for vm in mine.list()] == [CloudState.RUNNING] * 2, what="both run")
    assert list(mine.end_all(30)) == []
    every = ("squeue", "-h", "--states=all", "-o", "%j")
    wait_until(lambda: "ecloud-c4-" not in slurm.ask(*every), 120, "both are forgotten")
    lives = slurm.lives("ecloud-c4-")
    for boss in (mine, cloud("c4")):  # also for a boss that was just started
        listed = {vm.vm_no: (vm.state, vm.since, vm.ended) for vm in boss.list({known: 1}, lost={2: "1-2"})}
        assert listed == {vm_no: (CloudState.GONE, *lives[f"ecloud-c4-1-{vm_no}"][1:]) for vm_no in (1, 2)}


@pytest.mark.long
def test_a_controller_killed_while_it_takes_jobs_loses_or_doubles_none(own_slurm: Slurm) -> None:
    """Killed at eight moments around a submission: whatever sbatch said, the intent has one job, or none and an error
    that allows for that."""
    mine = cloud("c5")
    ids: dict[str, int] = {}
    unclear: dict[int, str] = {}
    with ThreadPoolExecutor(1) as pool:
        for vm_no in range(1, 9):
            submission = pool.submit(mine.start, order(vm_no))
            time.sleep(0.01 * vm_no)  # any moment will do
            own_slurm.kill_controller()
            own_slurm.start_controller()
            try:
                ids[submission.result(60)] = vm_no
            except Unanswered:
                unclear[vm_no] = f"1-{vm_no}"
            except TryLater:
                continue
    names = own_slurm.jobs()
    assert len(names) == len(set(names))
    listed = {vm.vm_no for vm in mine.list(ids, lost=unclear) if vm.state is not CloudState.HIDDEN}
    assert listed <= {*ids.values(), *unclear}
    assert {int(name.rpartition("-")[2]) for name in names} <= listed
    assert list(mine.end_all(60)) == []


def test_a_lost_answer_is_found_by_its_name(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is cut off after Slurm took the job."""
    mine = cloud("c2")
    run = Commands.run

    def cut(self: Commands, words: Any, given: bytes = b"") -> tuple[int, str, str]:
        run(self, words, given)
        return 1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"

    monkeypatch.setattr(Commands, "run", cut)
    with pytest.raises(Unanswered, match="Socket timed out"):
        mine.start(order(5))
    monkeypatch.setattr(Commands, "run", run)
    (found,) = cloud("c2").list(lost={5: "1-5"})
    assert found.vm_no == 5
    assert list(mine.end_all(30)) == []


def test_a_worker_knows_when_its_job_ends(slurm: Slurm) -> None:
    mine = cloud("c3", time_limit="5")
    job_id = mine.start(order(1))
    (pid,) = wait_until(lambda: slurm.agents(job_id), what="its worker")
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    assert 0 < float(words[words.index("--lives_s") + 1]) <= 300
    assert list(mine.end_all(30)) == []
