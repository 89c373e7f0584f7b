"""A cloud whose VMs are Slurm jobs, each with one worker: submitted with `sbatch`, listed with one `squeue`, ended with
`scancel`. If there is accounting, `sacct` answers for jobs that Slurm has forgotten.

Remembers nothing that Slurm knows, except the last state of jobs that vanished.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from boss.providers.provider import (
    AskForLess,
    Capacity,
    CloudState,
    GivePoolUp,
    Gone,
    Stranger,
    TryLater,
    Unanswered,
    VmFound,
    VmOrder,
)
from boss.providers.slurm_jobs import (
    NAME,
    SQUEUE_FIELDS,
    Job,
    JobOptions,
    intent_of,
    job_name,
    read_accounts,
    read_jobs,
    refusal,
    sacct_command,
    sbatch_command,
    worker_script,
)
from ecloud.config.secrets import AccessFile
from ecloud.model.foreign_text import Cleaner
from ecloud.model.tasks import Resources

COMMAND_S = 30.0
MIN_JOB_AGE_S = 300.0
"""How long Slurm shows a job that ended, if its configuration does not say."""
ENDING_LOOK_S = 0.5


class Commands:
    """Runs Slurm's commands: here, or on the login node `login`, through the user's own `ssh`."""

    def __init__(self, login: str = "") -> None:
        self.login = login

    def run(self, words: Sequence[str], given: bytes = b"") -> tuple[int, str, str]:
        """Return exit code, output and errors. Raises `subprocess.TimeoutExpired`, `OSError`."""
        command = list(words)
        if self.login:
            remote = "TZ=UTC SLURM_TIME_FORMAT=standard " + shlex.join(words)
            command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "--", self.login, remote]
        environment = {**os.environ, "TZ": "UTC", "SLURM_TIME_FORMAT": "standard"}
        done = subprocess.run(
            command, input=given, capture_output=True, check=False, timeout=COMMAND_S, env=environment
        )
        return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


class _Missing:
    """A job that Slurm no longer shows. `since_s`: on the monotonic clock."""

    def __init__(self) -> None:
        self.since_s = time.monotonic()


class SlurmCloud:
    """Jobs of one cluster in one pool. `backlog`: how many may wait in Slurm's queue together."""

    def __init__(
        self,
        commands: Commands,
        cluster_id: str,
        options: JobOptions,
        access_of: Callable[[str], AccessFile],
        backlog: int = 10,
    ) -> None:
        self._commands = commands
        self._cluster_id = cluster_id
        self._options = options
        self._access_of = access_of
        self._backlog = backlog
        self._lock = threading.Lock()
        self._seen: dict[str, VmFound] = {}
        self._missing: dict[str, _Missing] = {}
        self._min_job_age_s: float | None = None
        self._has_accounts: bool | None = None
        self._is_tested = False

    # --- starting and ending ----------------------------------------------------------------------------

    def start(self, order: VmOrder) -> str:
        """See `provider.Provider.start`."""
        name = job_name(self._cluster_id, order.boot_nonce)
        access = self._access_of(f"vm-{order.vm_no}")
        script = worker_script(self._options, name, order, msgspec.json.encode(access))
        clean = Cleaner([access.password, access.key], [script.decode()]).clean  # Slurm, or a login node, may echo it
        what = f"submit {name}"
        try:
            code, said, errors = self._commands.run(sbatch_command(self._options, name, order), script)
        except subprocess.TimeoutExpired as error:
            raise Unanswered(f"Slurm did not answer within {COMMAND_S:g} s when asked to {what}") from error
        except OSError as error:
            raise GivePoolUp(
                f"{error.filename} cannot be run on this machine: install Slurm's commands, or set login"
            ) from error
        if code == 0:
            found = re.match(r"(\d+)(;|$)", said.strip())
            if found is None:
                raise Unanswered(f"sbatch did not print the id of {name}: {clean(said).strip()[:200]!r}")
            return found[1]
        if self._commands.login and code == 255:
            raise Unanswered(
                f"the connection to {self._commands.login} ended while {name} was submitted: {clean(errors)[-300:]}"
            )
        raise refusal(clean(errors or said), what)

    def end(self, cloud_id: str) -> None:
        """See `provider.Provider.end`. Slurm sends TERM, and KILL after its `KillWait`."""
        if not cloud_id.isdigit():
            return
        job = next((job for job in self._jobs([f"--jobs={cloud_id}"]) if job.job_id == cloud_id), None)
        if job is None or job.state is CloudState.GONE:
            return
        if intent_of(self._cluster_id, job.name) is None:
            raise Gone(f"job {cloud_id} is called {job.name}: it does not belong to this cluster")
        self._ask(["scancel", cloud_id], f"cancel job {cloud_id}")

    def end_all(self, wait_s: float) -> Sequence[VmFound]:
        """See `provider.Provider.end_all`."""
        until = time.monotonic() + wait_s
        asked: set[str] = set()
        while True:
            left = [vm for vm in self.list() if vm.state is not CloudState.GONE]
            new = [vm.cloud_id for vm in left if vm.cloud_id not in asked]
            if new:
                self._ask(["scancel", *new], f"cancel {len(new)} jobs")
                asked.update(new)
            if not left or time.monotonic() > until:
                return left
            time.sleep(ENDING_LOOK_S)

    # --- listing ----------------------------------------------------------------------------------------

    def list(self, known: Mapping[str, int] = {}, lost: Mapping[int, str] = {}) -> list[VmFound]:
        """See `provider.Provider.list`."""
        shown: dict[tuple[int, str], Job] = {}
        for job in self._jobs(["--me"]):
            intent = intent_of(self._cluster_id, job.name)
            if intent is not None and (intent not in shown or shown[intent].state is CloudState.GONE):
                shown[intent] = job
        ids = {job.job_id for job in shown.values()}
        missing = {cloud_id: vm_no for cloud_id, vm_no in known.items() if cloud_id not in ids}
        sought = [nonce for vm_no, nonce in lost.items() if not {(vm_no, nonce), (vm_no, "")} & shown.keys()]
        for job in self._accounts(list(missing), [job_name(self._cluster_id, nonce) for nonce in sought]):
            intent = intent_of(self._cluster_id, job.name)
            if intent is not None and job.state is CloudState.GONE and intent not in shown:
                shown[intent] = job
        told = set(known.values()) | set(lost)
        found = [
            job.found(vm_no, nonce)
            for (vm_no, nonce), job in shown.items()
            if job.state is not CloudState.GONE or vm_no in told
        ]
        here = {vm.cloud_id for vm in found}
        found += [self._vanished(cloud_id, vm_no) for cloud_id, vm_no in missing.items() if cloud_id not in here]
        with self._lock:
            self._seen = {vm.cloud_id: vm for vm in found}
            self._missing = {at: since for at, since in self._missing.items() if at in known and at not in here}
        return found

    def _vanished(self, cloud_id: str, vm_no: int) -> VmFound:
        """Describe a job that neither queue nor accounting shows. Slurm shows a job for `MinJobAge` after its end: one
        that is missing for longer has ended; until then the controller may have lost its state temporarily."""
        with self._lock:
            missing = self._missing.setdefault(cloud_id, _Missing())
            seen = self._seen.get(cloud_id)
        since = seen.since if seen is not None else 0.0
        if time.monotonic() - missing.since_s < self._shown_for_s():
            return VmFound(vm_no, cloud_id, CloudState.HIDDEN, "", "", since, "Slurm no longer shows its job")
        ended = seen.ended if seen is not None else 0.0
        return VmFound(vm_no, cloud_id, CloudState.GONE, "", "", since, "", ended)

    def _shown_for_s(self) -> float:
        if self._min_job_age_s is None:
            found = re.search(r"MinJobAge\s*=\s*(\d+)", self._ask(["scontrol", "show", "config"], "show its settings"))
            self._min_job_age_s = float(found[1]) if found else MIN_JOB_AGE_S
        return self._min_job_age_s

    def strangers(self) -> Sequence[Stranger]:
        """See `provider.Provider.strangers`: jobs of this account whose names resemble ours and carry no intent."""
        prefix = NAME.format(cluster=self._cluster_id)
        return [
            Stranger(job.job_id, job.name, "", "its name contains no intent")
            for job in self._jobs(["--me"])
            if job.name.startswith(prefix)
            and intent_of(self._cluster_id, job.name) is None
            and job.state is not CloudState.GONE
        ]

    def room(self) -> Capacity:
        """See `provider.Provider.room`: the rest of the backlog. The first call checks the pool's options with
        Slurm."""
        if not self._is_tested:
            self._test_options()
        ours = [job for job in self._jobs(["--me"]) if intent_of(self._cluster_id, job.name) is not None]
        waiting = [job for job in ours if job.state in (CloudState.PENDING, CloudState.BOOTING)]
        reasons = sorted({job.reason for job in waiting if job.reason not in ("", "None")})
        why = f" ({', '.join(reasons)})" if reasons else ""
        reason = f"backlog {self._backlog}, {len(waiting)} jobs wait in Slurm's queue{why}"
        return Capacity(max(0, self._backlog - len(waiting)), reason)

    def _test_options(self) -> None:
        """Raises `GivePoolUp`, `CredentialsWrong` if Slurm would refuse every job of this pool."""
        order = VmOrder(1, "", {"cpus": 1.0}, "")
        command = sbatch_command(self._options, f"{NAME.format(cluster=self._cluster_id)}test", order)
        try:
            self._ask([*command, "--test-only"], "accept the pool's options", b"#!/bin/sh\n")
        except TryLater:
            return
        except GivePoolUp as error:
            # Slurm sends this text for drained nodes, too: a job would wait for them.
            if "configuration is not available" not in str(error):
                raise
        self._is_tested = True

    def misfit(self, size: Resources) -> str:
        """See `provider.Provider.misfit`. A job gets what the pool requests, or is refused."""
        return ""

    def close(self) -> None:
        """See `provider.Provider.close`. Holds nothing."""

    # --- commands ---------------------------------------------------------------------------------------

    def _jobs(self, which: Sequence[str]) -> Sequence[Job]:
        words = ["squeue", "--noheader", "--states=all", *which, f"--format={SQUEUE_FIELDS}"]
        try:
            return read_jobs(self._ask(words, "list jobs"))
        except GivePoolUp as error:
            if "Invalid job id" in str(error):
                return ()
            raise TryLater(str(error)) from error

    def _accounts(self, ids: Sequence[str], names: Sequence[str]) -> Sequence[Job]:
        """Return these jobs from the accounting; nothing if there is no accounting."""
        found: list[Job] = []
        for words in ([ids, []] if ids else None, [[], names] if names else None):
            if words is None or self._has_accounts is False:
                continue
            try:
                code, said, errors = self._commands.run(sacct_command(*words))
            except (subprocess.TimeoutExpired, OSError) as error:
                raise TryLater(f"Slurm's accounting did not answer: {error}") from error
            if code != 0:
                if "disabled" in errors + said:
                    self._has_accounts = False
                    continue
                raise TryLater(f"Slurm's accounting did not answer: {errors.strip()[-300:]}")
            self._has_accounts = True
            found += read_accounts(said)
        return found

    def _ask(self, words: Sequence[str], what: str, given: bytes = b"") -> str:
        """Run a command. Raises the errors of the contract; never `Unanswered`, as it makes nothing."""
        try:
            code, said, errors = self._commands.run(words, given)
        except subprocess.TimeoutExpired as error:
            raise TryLater(f"Slurm did not answer within {COMMAND_S:g} s when asked to {what}") from error
        except OSError as error:
            raise GivePoolUp(
                f"{error.filename} cannot be run on this machine: install Slurm's commands, or set login"
            ) from error
        if code == 0:
            return said
        problem = refusal(errors or said, what)
        if isinstance(problem, (Unanswered, AskForLess)) or (self._commands.login and code == 255):
            raise TryLater(str(problem))
        raise problem
