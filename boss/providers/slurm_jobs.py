"""Text that Slurm reads and prints: the batch script of a worker, job lists, refusals. Pure.

The formats are those of versions 20.11 to 24: `squeue -o`, `sacct -P`, and the errors of `sbatch`.
"""

from __future__ import annotations

import base64
import calendar
import re
import shlex
from collections.abc import Sequence

import msgspec

from boss.core.model.cloud_vms import read_nonce
from boss.providers.provider import (
    AskForLess,
    CloudState,
    CredentialsWrong,
    GivePoolUp,
    TryLater,
    Unanswered,
    VmFound,
    VmOrder,
)

WARN_S = 120
"""Slurm warns a worker this long before its time limit; the worker drains and ends what still runs by then."""
SQUEUE_FIELDS = "%i|%j|%T|%B|%r|%V|%S|%e"
SACCT_FIELDS = "JobIDRaw,JobName,State,NodeList,Submit,Start,End"
NAME = "ecloud-{cluster}-"

_STATES = {
    "PENDING": CloudState.PENDING, "REQUEUED": CloudState.PENDING, "REQUEUE_HOLD": CloudState.PENDING,
    "REQUEUE_FED": CloudState.PENDING, "SPECIAL_EXIT": CloudState.PENDING, "RESV_DEL_HOLD": CloudState.PENDING,
    "CONFIGURING": CloudState.BOOTING, "RUNNING": CloudState.RUNNING, "RESIZING": CloudState.RUNNING,
    "SIGNALING": CloudState.RUNNING, "SUSPENDED": CloudState.RUNNING, "STOPPED": CloudState.RUNNING,
    "COMPLETING": CloudState.ENDING, "STAGE_OUT": CloudState.ENDING,
    "COMPLETED": CloudState.GONE, "CANCELLED": CloudState.GONE, "FAILED": CloudState.GONE, "TIMEOUT": CloudState.GONE,
    "NODE_FAIL": CloudState.GONE, "PREEMPTED": CloudState.GONE, "OUT_OF_MEMORY": CloudState.GONE,
    "BOOT_FAIL": CloudState.GONE, "DEADLINE": CloudState.GONE, "REVOKED": CloudState.GONE,
    "LAUNCH_FAILED": CloudState.GONE,
}  # fmt: skip
"""States as squeue prints them. Any other state is HIDDEN."""

_REFUSALS: tuple[tuple[str, type[Exception]], ...] = (
    # The first match decides. Errors after which the order may have reached the controller come first.
    (r"timed out|zero bytes were transmitted|unexpected message received|connection reset", Unanswered),
    (r"unable to contact|connection refused|connect(ion)? failure|no route to host", TryLater),
    (r"temporarily unable|try again", TryLater),
    (r"required node not available|nodes are busy|down, drained", TryLater),
    (r"munge|credential|slurm backup controller in standby", TryLater),
    (r"qosmax|qosgrp|assocmax|assocgrp|maxsubmit|maxjobs|violates accounting/qos policy|job limit", AskForLess),
    (r"permission denied|invalid user|not permitted to use|user unknown|authentication", CredentialsWrong),
    (r"command not found|no such file or directory", GivePoolUp),
    (r"invalid|unrecognized|not available|requested|specifi|exceed|not supported|disabled", GivePoolUp),
    # Anything else ended the conversation: "Transport endpoint is not connected", "Unexpected missing socket error".
    (r"batch job submission failed", Unanswered),
)


class Job(msgspec.Struct, frozen=True):
    """A job as squeue or sacct shows it. Times are epoch seconds, 0 if not reached yet."""

    job_id: str
    name: str
    word: str
    node: str = ""
    reason: str = ""
    submitted: float = 0.0
    started: float = 0.0
    ended: float = 0.0

    @property
    def state(self) -> CloudState:
        """Its state as a `CloudState`. sacct appends who cancelled it: `CANCELLED by 1000`."""
        return _STATES.get(self.word.split(" ")[0].rstrip("+"), CloudState.HIDDEN)

    def found(self, vm_no: int, nonce: str = "") -> VmFound:
        """Return the job as a VM. A waiting job counts as made when it was submitted; its life begins when it
        starts."""
        gone = self.state is CloudState.GONE
        since = self.started or (self.ended if gone else 0.0) or self.submitted
        text = self.reason if self.reason not in ("", "None") else ""
        if gone and self.word not in ("COMPLETED", "CANCELLED"):
            text = f"its job ended as {self.word}"
        node = self.node if self.state in (CloudState.RUNNING, CloudState.ENDING) and self.node != "n/a" else ""
        return VmFound(vm_no, self.job_id, self.state, self.word, node, since, text, self.ended if gone else 0.0, nonce)


def job_name(cluster_id: str, nonce: str) -> str:
    """Return a job's name: cluster and boot nonce, by which a job whose submission was not confirmed is found again."""
    return f"{NAME.format(cluster=cluster_id)}{nonce}"


def intent_of(cluster_id: str, name: str) -> tuple[int, str] | None:
    """Return the number and the boot nonce of the intent in a job's name; None for a job that is not this cluster's, or
    whose name carries none."""
    prefix = NAME.format(cluster=cluster_id)
    return read_nonce(name.removeprefix(prefix)) if name.startswith(prefix) else None


def read_jobs(printed: str) -> list[Job]:
    """Read the lines of squeue (`SQUEUE_FIELDS`)."""
    jobs = []
    for line in printed.splitlines():
        words = line.rsplit("|", 6)
        job_id, _, name = words[0].partition("|")
        if len(words) == 7 and job_id:
            _, word, node, reason, *times = words
            jobs.append(Job(job_id, name, word, node, reason, *map(_epoch, times)))
    return jobs


def read_accounts(printed: str) -> list[Job]:
    """Read the lines of `sacct -nXP` (`SACCT_FIELDS`)."""
    jobs = []
    for line in printed.splitlines():
        words = line.rsplit("|", 5)
        job_id, _, name = words[0].partition("|")
        if len(words) == 6 and job_id:
            _, word, node, *times = words
            jobs.append(Job(job_id, name, word, node, "", *map(_epoch, times)))
    return jobs


def _epoch(text: str) -> float:
    """Convert a time that was printed in UTC; 0 for N/A, NONE, Unknown."""
    found = re.fullmatch(r"(\d+)-(\d+)-(\d+)T(\d+):(\d+):(\d+)", text)
    return float(calendar.timegm(tuple(map(int, found.groups())))) if found else 0.0


def refusal(said: str, what: str) -> Exception:
    """Return the error for the output of a Slurm command that failed; `what`: the request, for the sentence."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in said.splitlines() if line.strip()]
    for pattern, kind in _REFUSALS:
        for line in lines:
            if re.search(pattern, line, re.IGNORECASE):
                return kind(f"Slurm did not {what}: {line}")
    return TryLater(f"Slurm did not {what}: {lines[-1] if lines else 'it printed nothing'}")


def seconds_of(time_limit: str) -> int | None:
    """Convert Slurm's `D-HH:MM:SS`, `HH:MM:SS`, `MM:SS`, `MM`, `D-HH`, `D-HH:MM`; None for anything else."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time_limit)
    if found is None:
        return None
    days, *rest = found.groups()
    numbers = [int(number) for number in rest if number is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
        return int(days) * 86_400 + hours * 3_600 + minutes * 60 + seconds
    if len(numbers) == 3:
        return numbers[0] * 3_600 + numbers[1] * 60 + numbers[2]
    return numbers[0] * 60 + (numbers[1] if len(numbers) == 2 else 0)


class JobOptions(msgspec.Struct, frozen=True):
    """What a pool requests from Slurm. `python`, `code`: the Python that runs the worker on a node, and the directory
    of its code."""

    python: str
    code: str
    partition: str = ""
    account: str = ""
    qos: str = ""
    time_limit: str = ""
    sbatch_options: tuple[str, ...] = ()
    worker_init: str = ""
    output: str = "/dev/null"
    boss_gone_exit_s: float = 3600.0
    keep_dirs: bool = False


def sbatch_command(options: JobOptions, name: str, order: VmOrder) -> list[str]:
    """Return the command that submits one worker, whose script is its standard input; it prints the job's id."""
    size = order.size
    words = [
        "sbatch", "--parsable", "--nodes=1", "--ntasks=1", f"--cpus-per-task={max(1, round(size.get('cpus', 1.0)))}",
        "--no-requeue", f"--signal=B:TERM@{WARN_S}", f"--job-name={name}", f"--output={options.output}",
        "--chdir=/", "--export=HOME,USER,LOGNAME,PATH",
    ]  # fmt: skip
    if size.get("memory_mb"):
        words.append(f"--mem={size['memory_mb']:.0f}M")
    if size.get("gpus"):
        words.append(f"--gres=gpu:{size['gpus']:.0f}")
    for option, value in (
        ("partition", options.partition), ("account", options.account), ("qos", options.qos),
        ("time", options.time_limit),
    ):  # fmt: skip
        if value:
            words.append(f"--{option}={value}")
    return [*words, *options.sbatch_options]


def worker_script(options: JobOptions, name: str, order: VmOrder, access: bytes) -> bytes:
    """Return the batch script. It needs nothing shared but the code: the worker's home and access file are the node's
    own."""
    size = order.size
    words = ["--vm_no", str(order.vm_no), "--boot_nonce", order.boot_nonce, "--cpus", f"{size.get('cpus', 1.0):g}"]
    words += ["--memory_mb", f"{size.get('memory_mb', 0.0):g}"] if size.get("memory_mb") else []
    for resource, amount in size.items():
        if resource not in ("cpus", "memory_mb", "gpus"):
            words += ["--resource", f"{resource}={amount:g}"]
    for label in order.labels:
        words += ["--label", label]
    words += ["--boss_gone_exit_s", f"{options.boss_gone_exit_s:g}"]
    words += ["--keep_dirs"] if options.keep_dirs else []
    limit_s = seconds_of(options.time_limit) if options.time_limit else None
    lines = [
        "#!/bin/sh",
        f"# An ECLOUD worker. {name}",
        "umask 077",
        f'home="${{TMPDIR:-/tmp}}/{name}-$SLURM_JOB_ID"',
        'mkdir -p "$home" || exit 1',
        f'printf %s {base64.b64encode(access).decode()} | base64 -d > "$home/access" || exit 1',
        f"python={shlex.quote(options.python)} code={shlex.quote(options.code)}",
        *(options.worker_init.splitlines()),
        f"lives={limit_s or ''}",
        '[ -z "$SLURM_JOB_END_TIME" ] || lives=$((SLURM_JOB_END_TIME - $(date +%s)))',
        'if [ ! -e "$code/worker/__main__.py" ]; then',
        '    echo "ecloud: $(hostname) has no code at $code: set code=DIR in worker_init" >&2; exit 1',
        "fi",
        'cd "$code" || exit 1',
        # Not exec: the shell removes the home after the worker, and forwards the warning before the time limit.
        f'"$python" -m worker "$home/access" --home "$home/home" {shlex.join(words)} ${{lives:+--lives_s $lives}} &',
        'worker=$!; trap "kill -TERM $worker" TERM',
        "while :; do wait $worker; code=$?; kill -0 $worker 2>/dev/null || break; done",
        # The boss may cancel the job while its home is removed. Undelivered outcomes, and directories that a user
        # wants, stay.
        "trap '' TERM",
        '[ -s "$home/home/spool.jsonl" ] || [ -e "$home/home/kept" ] || rm -rf "$home"',
        "exit $code",
    ]
    return ("\n".join(lines) + "\n").encode()


def sacct_command(ids: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the command that asks the accounting for jobs by id or by name; without a start it would omit
    yesterday's."""
    words = ["sacct", "-nXP", "--starttime=now-30days", f"--format={SACCT_FIELDS}"]
    return [*words, f"--jobs={','.join(ids)}"] if ids else [*words, f"--name={','.join(names)}"]
