"""`python -m worker ACCESS_FILE`: an agent on this machine that runs until it is ordered to leave."""

from __future__ import annotations

import base64
import logging
import os
import re
import secrets
import socket
import sys
import time
from pathlib import Path

import click
import msgspec

from datastore.keys import KeyToolFailed, make_key
from ecloud import VERSION
from ecloud.config import this_host
from ecloud.config.home import Home
from ecloud.config.log_lines import WithZone
from ecloud.config.processes import die_with_parent
from ecloud.config.secrets import AccessFile, AccessWrong, read_access
from ecloud.model.tasks import Resources
from worker.core.events import WorkerConfig
from worker.shell.home import HomeTaken, Spool, WorkerHome
from worker.shell.pythons import Pythons
from worker.shell.runtime import WorkerRuntime

log = logging.getLogger("worker")
GPU_CHOICES = frozenset({"CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"})
MAX_STEPS = 100
"""Lines read from the file of steps: each run of the start script adds a few."""


def new_peer_name() -> str:
    """Return a random process id, new with each start."""
    return "w" + base64.b32encode(secrets.token_bytes(7)).decode().lower().rstrip("=")[:10]


def find_access(path: str | None, boss: str | None) -> AccessFile:
    """Return the named access file; by default, that of the boss on this machine. Raises `AccessWrong`."""
    home = Home(os.environ.get("ECLOUD_HOME", "~/.ecloud"))
    named = path or os.environ.get("ECLOUD_ACCESS")
    if not named and not home.client_access.exists():
        raise AccessWrong(
            f"no ACCESS_FILE is named, ECLOUD_ACCESS is not set, and no boss has run in {home.path}",
            "make an access file on the boss's machine (python admin.py invite) and name it: python -m worker FILE",
        )
    access = read_access(named or home.client_access)
    return msgspec.structs.replace(access, host=boss) if boss else access


def offered(
    cpus: float | None, memory_mb: float | None, gpus: str | None, named: tuple[str, ...]
) -> tuple[Resources, tuple[str, ...]]:
    """Return what this worker offers, and its GPUs. Raises `click.BadParameter`."""
    if gpus is None:
        indices = this_host.gpus()
    else:
        indices = tuple(dict.fromkeys(item.strip() for item in gpus.split(",") if item.strip()))
        if not all(re.fullmatch(r"\d{1,4}|(GPU|MIG)-[\w/-]+", item) for item in indices):
            raise click.BadParameter(f"{gpus!r} is not a list of indices or UUIDs like 0,1", param_hint="--gpus")
    resources: Resources = {
        "cpus": cpus if cpus is not None else this_host.cpus(),
        "memory_mb": memory_mb if memory_mb is not None else this_host.memory_mb(),
        "gpus": float(len(indices)),
    }
    resources.update(named_amounts(named, "--resource"))
    return resources, indices


def named_amounts(items: tuple[str, ...], option: str) -> Resources:
    """Amounts by name, of texts such as "cpus=4". Raises `click.BadParameter`."""
    found: Resources = {}
    for item in items:
        name, separator, amount = item.partition("=")
        try:
            if not separator or not name:
                raise ValueError
            found[name] = float(amount)
        except ValueError:
            raise click.BadParameter(f"{item!r} is not NAME=AMOUNT", param_hint=option) from None
    return found


def machine_amounts(named: tuple[str, ...]) -> Resources:
    """What all workers on this machine share: as measured, but for what is named. Raises `click.BadParameter`.

    If the environment names the GPUs of this process, they are not shared: other processes have other GPUs.
    """
    found: Resources = {"cpus": this_host.cpus(), "memory_mb": this_host.memory_mb()}
    if not GPU_CHOICES & os.environ.keys():
        found["gpus"] = float(len(this_host.gpus()))
    return {**found, **named_amounts(named, "--machine")}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, message=f"ecloud {VERSION}")
@click.argument("access_file", required=False)
@click.option("--boss", metavar="HOST", help="Beside a boss on this machine: its address; no access file is needed.")
@click.option("--home", metavar="DIR", help="This worker's own directory [~/.ecloud/worker].")
@click.option("--cpus", type=click.FloatRange(0.01), help="CPUs to offer [all].")
@click.option("--memory_mb", type=click.FloatRange(0), help="Memory to offer, in MB [all].")
@click.option("--gpus", metavar="0,1", help="GPUs to offer, by index or UUID [all that nvidia-smi or rocm-smi show].")
@click.option("--resource", multiple=True, metavar="NAME=N", help="Another resource of this machine. Repeatable.")
@click.option(
    "--machine", multiple=True, metavar="NAME=N",
    help="What all workers on this machine share: cpus, memory_mb, gpus [as measured]. Repeatable.",
)  # fmt: skip
@click.option("--label", multiple=True, help="A name for this kind of worker. Repeatable.")
@click.option("--lives_s", type=click.FloatRange(0), help="Seconds until this machine ends, if known.")
@click.option("--keep_dirs", is_flag=True, help="Keep the working directories of attempts.")
@click.option("--boss_gone_exit_s", type=click.FloatRange(1), help="Leave after this long without a boss.")
@click.option("--vm_no", type=int, hidden=True)
@click.option("--boot_nonce", default="", hidden=True)
@click.option("--boot_steps", metavar="FILE", hidden=True, help="Times of the steps of this machine's boot.")
@click.option("--tied", is_flag=True, hidden=True, help="End with the process that started this one.")
def main(
    access_file: str | None,
    boss: str | None,
    home: str | None,
    cpus: float | None,
    memory_mb: float | None,
    gpus: str | None,
    resource: tuple[str, ...],
    machine: tuple[str, ...],
    label: tuple[str, ...],
    lives_s: float | None,
    keep_dirs: bool,
    boss_gone_exit_s: float | None,
    vm_no: int | None,
    boot_nonce: str,
    boot_steps: str | None,
    tied: bool,
) -> None:
    """An agent: joins the boss that ACCESS_FILE names (python admin.py invite makes one) and runs its
    tasks."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(WithZone("%(asctime)s worker: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if tied:
        die_with_parent()
    try:
        access = find_access(access_file, boss)
    except AccessWrong as error:
        raise SystemExit(_fail(str(error), 2)) from None
    resources, indices = offered(cpus, memory_mb, gpus, resource)
    pythons = Pythons(os.environ)
    for problem in pythons.problems:
        log.warning("%s", problem)
    resources = {**pythons.resources, **resources}
    try:
        place = WorkerHome(Path(home or Home(os.environ.get("ECLOUD_HOME", "~/.ecloud")).path / "worker"))
    except HomeTaken as error:
        raise SystemExit(_fail(str(error), 3)) from None
    except OSError as error:
        raise SystemExit(_fail(f"home {home}: {error.strerror}", 3)) from None
    if place.copied_from:
        text = "%s is a copy of the home of worker %s: this worker gets a new name, %s"
        log.warning(text, place.path, place.copied_from, place.name)
    spool = Spool(place)
    try:
        ssh_key = make_key(place.ssh / "key", f"ecloud-worker-{place.name}")
    except KeyToolFailed:  # no OpenSSH here: a datastore in a directory needs none
        ssh_key = ""
    config = WorkerConfig(
        peer=new_peer_name(),
        home=place.name,
        resources=resources,
        gpus=indices,
        host=socket.gethostname(),
        addresses=this_host.addresses(),
        boot_id=this_host.boot_id(),
        machine=this_host.machine_id(),
        machine_part=this_host.part(),
        machine_has=machine_amounts(machine),
        pid=os.getpid(),
        vm="" if vm_no is None else str(vm_no),
        boot_nonce=boot_nonce,
        boot_steps=read_steps(Path(boot_steps)) if boot_steps else (),
        labels=label,
        lives_s=lives_s,
        boss_gone_exit_s=boss_gone_exit_s,
        spooled=spool.found,
        heard=spool.heard,
        ssh_key=ssh_key,
    )
    runtime = WorkerRuntime(access, config, place, spool, keep_dirs, tied, pythons)
    code = runtime.run()
    if runtime.begins_anew:
        os.execv(sys.executable, sys.orig_argv)  # this program releases the home's lock when it ends
    raise SystemExit(code)


def read_steps(path: Path) -> tuple[tuple[str, float], ...]:
    """Return the finished steps of this machine's start, with their times on this process's monotonic clock. Steps that
    cannot be read count as not done."""
    try:
        up_s = float(Path("/proc/uptime").read_text().split()[0])
        lines = path.read_text(errors="replace").splitlines()[-MAX_STEPS:]
    except (OSError, ValueError, IndexError):
        return ()
    now, found = time.monotonic(), {}
    for line in lines:
        at, _, step = line.partition(" ")
        try:
            ago_s = up_s - float(at)
        except ValueError:
            continue
        found[step] = now - ago_s
    return (*found.items(), ("python", now))


def _fail(text: str, code: int) -> int:
    print(f"worker: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
