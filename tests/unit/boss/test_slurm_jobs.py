"""The texts to and from Slurm: lists, refusals, times, the script of a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from boss.providers.provider import (
    AskForLess,
    CloudState,
    CredentialsWrong,
    GivePoolUp,
    TryLater,
    Unanswered,
    VmOrder,
)
from boss.providers.slurm_jobs import (
    JobOptions,
    intent_of,
    job_name,
    read_accounts,
    read_jobs,
    refusal,
    sbatch_command,
    seconds_of,
    worker_script,
)

QUEUE = """\
1|ecloud-one-3|RUNNING|node7|None|2026-11-29T18:37:59|2026-11-29T18:38:00|2026-11-29T18:47:59
2|ecloud-one-4|PENDING|n/a|QOSMaxCpuPerUserLimit|2026-11-29T18:37:59|N/A|N/A
3|odd|name|COMPLETED|node7|None|2026-11-29T18:37:59|2026-11-29T18:38:00|2026-11-29T18:38:02
4|ecloud-one-6|CANCELLED|n/a|None|2026-11-29T18:37:59|2026-11-29T18:38:05|2026-11-29T18:38:05
nonsense
"""
ORDER = VmOrder(3, "hpc", {"cpus": 2.0, "memory_mb": 500.0, "gpus": 1.0, "licence": 2.0}, "1-3", ("fast one",))


def test_a_list_of_jobs_is_read() -> None:
    running, pending, done, cancelled = read_jobs(QUEUE)
    assert (running.name, running.state, running.node) == ("ecloud-one-3", CloudState.RUNNING, "node7")
    assert running.ended - running.started == 599.0
    found = pending.found(4)
    assert (found.state, found.text, found.address) == (CloudState.PENDING, "QOSMaxCpuPerUserLimit", "")
    assert found.since == pending.submitted > 0.0
    assert (done.name, done.state) == ("odd|name", CloudState.GONE)
    assert cancelled.found(6).since == cancelled.found(6).ended == cancelled.ended


def test_what_the_accounting_kept_is_read() -> None:
    printed = "7|ecloud-one-9|CANCELLED by 1000|node7|2026-11-29T18:37:59|2026-11-29T18:38:00|2026-11-29T18:40:00\n"
    printed += "8|ecloud-one-10|TIMEOUT|node7|2026-11-29T18:37:59|2026-11-29T18:38:00|2026-11-29T18:40:00\n"
    cancelled, timed_out = read_accounts(printed)
    assert cancelled.state is CloudState.GONE
    assert timed_out.found(10).text == "its job ended as TIMEOUT"
    assert timed_out.found(10).ended - timed_out.found(10).since == 120.0


def test_a_name_carries_cluster_and_intent_and_no_other_name_does() -> None:
    assert intent_of("one", job_name("one", "1790000000000-17")) == (17, "1790000000000-17")
    assert intent_of("one", "ecloud-one-17") == (17, ""), "submitted by an earlier release"
    for end in ("-", "-x", "-017", "-1--7", "-1-7-"):
        assert intent_of("one", f"ecloud-one{end}") is None
    for name in ("ecloud-two-17", "wrap", ""):
        assert intent_of("one", name) is None


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", Unanswered),
        ("sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received", Unanswered),
        ("sbatch: error: Batch job submission failed: Transport endpoint is not connected", Unanswered),
        ("sbatch: error: Batch job submission failed: Unexpected missing socket error", Unanswered),
        ("sbatch: error: Batch job submission failed: Connection timed out", Unanswered),
        ("sbatch: error: Batch job submission failed: Broken pipe", Unanswered),
        ("sbatch: error: Batch job submission failed: Communication receive failure", Unanswered),
        ("sbatch: error: Batch job submission failed: Communication connection failure", TryLater),
        ("Unable to contact slurm controller (connect failure)", TryLater),
        ("sbatch: error: If munged is up, restart with --num-threads=10", TryLater),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying.", TryLater),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates"
         " accounting/QOS policy (job submit limit, user's size and/or time limits)", AskForLess),
        ("sbatch: error: AssocMaxSubmitJobLimit", AskForLess),
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
         GivePoolUp),
        ("sbatch: error: invalid partition specified: nope", GivePoolUp),
        ("sbatch: error: Batch job submission failed: Requested node configuration is not available", GivePoolUp),
        ("sbatch: unrecognized option '--nope'", GivePoolUp),
        ("bash: line 1: sbatch: command not found", GivePoolUp),
        ("sbatch: error: Batch job submission failed: User's group not permitted to use this partition",
         CredentialsWrong),
        ("slurm_load_jobs error: Access/permission denied", CredentialsWrong),
        ("allocation failure: Required node not available (down, drained or reserved)", TryLater),
        ("", TryLater),
    ],
)  # fmt: skip
def test_refusals_become_errors_that_say_what_to_do_next(said: str, kind: type[Exception]) -> None:
    problem = refusal(said, "submit ecloud-one-3")
    assert type(problem) is kind
    assert str(problem).startswith("Slurm did not submit ecloud-one-3: ")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10", 600), ("10:30", 630), ("04:00:00", 14_400), ("2-00:00:00", 172_800), ("1-12", 129_600),
     ("1-12:30", 131_400), ("UNLIMITED", None), ("", None)],
)  # fmt: skip
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


def test_a_job_asks_for_what_its_worker_offers() -> None:
    options = JobOptions("python3", "/code", "main", "acc", "high", "10", ("--exclusive",))
    words = sbatch_command(options, "ecloud-one-3", ORDER)
    for word in (
        "--cpus-per-task=2", "--mem=500M", "--gres=gpu:1", "--partition=main", "--account=acc", "--qos=high",
        "--time=10", "--no-requeue", "--job-name=ecloud-one-3",
    ):  # fmt: skip
        assert word in words
    assert words[-1] == "--exclusive", "the user's own options win"
    assert "--export=HOME,USER,LOGNAME,PATH" in words, "nothing of the boss's environment goes along"


def test_the_script_is_one_of_any_shell_and_shows_no_secret_in_its_command() -> None:
    options = JobOptions("py thon", "/co de", time_limit="10", worker_init="module load python\nexport A='b'")
    script = worker_script(options, "ecloud-one-3", ORDER, b'{"key":"SECRET"}')
    assert b"SECRET" not in script
    assert b"--label 'fast one' " in script
    assert b"--resource licence=2 " in script
    assert b"module load python\n" in script
    subprocess.run(["sh", "-n"], input=script, check=True, timeout=30)


def test_a_job_that_is_cancelled_while_it_removes_its_home_leaves_nothing(tmp_path: Path) -> None:
    """It happened: the boss cancels the job of a worker that has left, and Slurm sends TERM to all its processes."""
    code, tools = tmp_path / "code", tmp_path / "tools"
    (code / "worker").mkdir(parents=True)
    (code / "worker" / "__main__.py").write_text("")
    tools.mkdir()
    (tools / "rm").write_text('#!/bin/sh\necho removes\nsleep 0.3\nexec /bin/rm "$@"\n')
    (tools / "rm").chmod(0o755)
    script = worker_script(JobOptions(python=sys.executable, code=str(code)), "ecloud-one-3", ORDER, b"{}")
    environment = {"TMPDIR": str(tmp_path), "SLURM_JOB_ID": "7", "PATH": f"{tools}:/usr/bin:/bin"}
    with subprocess.Popen(
        ["/bin/sh", "-c", script.decode()], env=environment, stdout=subprocess.PIPE, start_new_session=True
    ) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"removes\n"
        os.killpg(job.pid, signal.SIGTERM)
    assert job.returncode == 0
    assert not (tmp_path / "ecloud-one-3-7").exists()
