"""Every setting, its unit, its default: read from `settings.py`, the environment and the command line, checked, then
frozen."""

from __future__ import annotations

import difflib
import math
import os
import re
import runpy
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from datastore.problem import Problem
from ecloud.config import this_host
from ecloud.config.home import Home
from ecloud.model.calls import PYTHON_CALLS, python_resource
from ecloud.model.container_rules import container_problems
from ecloud.model.tasks import Container, Resources

ROOT = Path(__file__).resolve().parents[2]


class SettingsWrong(Problem):
    """The settings cannot be used. `texts`: every problem, with the setting's name and what to do."""


class PoolSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """VMs of one kind. `cpus` 0: all of the machine; `memory_mb` 0: the machine's share. `template`: of an OpenNebula,
    by name or id. `code`: how a VM gets ECLOUD: its image has it, or the boss brings it by SSH, as `ssh_user` at
    `ssh_port`. Fields that begin with `partition` are Slurm's (docs/slurm.md), those with `hosts` of listed hosts
    (docs/hosts.md). `run_as`: the account of workers on this machine, empty for the boss's."""

    name: str
    cloud: str = "local"
    minimum: int = 0
    maximum: int = 1
    cpus: float = 1.0
    memory_mb: float = 0.0
    gpus: float = 0.0
    labels: tuple[str, ...] = ()
    spillover: bool = False
    template: str = ""
    code: str = "image"
    ssh_user: str = "root"
    ssh_port: int = 22
    partition: str = ""
    account: str = ""
    qos: str = ""
    time_limit: str = ""
    backlog: int = 10
    sbatch_options: tuple[str, ...] = ()
    worker_init: str = ""
    login: str = ""
    hosts: tuple[str, ...] = ()
    slots: int = 1
    ssh_options: tuple[str, ...] = ()
    python: str = ""
    """Version of the Python that its workers have for calls, such as "3.12"; empty: this Python's."""
    run_as: str = ""
    container: Container | None = None
    """For the commands of tasks that name none."""


def default_pools(cores: int | None = None) -> tuple[PoolSettings, ...]:
    """Local workers: one per core, and one with all cores and GPUs for tasks that fit no other."""
    cores, gpus = cores or int(this_host.cpus()), len(this_host.gpus())
    pools = [PoolSettings("local", maximum=cores)]
    if cores > 1 or gpus:
        pools.append(PoolSettings("local_whole", maximum=1, cpus=float(cores), gpus=float(gpus), spillover=True))
    return tuple(pools)


def size_of(pool: PoolSettings) -> Resources:
    """Return what one VM of a pool offers. Amounts that the pool leaves open are this machine's."""
    cores = this_host.cpus()
    cpus = pool.cpus or cores
    memory_mb = pool.memory_mb or float(int(this_host.memory_mb() * min(1.0, cpus / cores)))
    python = python_resource(pool.python or f"{sys.version_info[0]}.{sys.version_info[1]}")
    return {"cpus": cpus, "memory_mb": memory_mb, "gpus": pool.gpus, python: PYTHON_CALLS}


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings, in lower case. Times in seconds. settings.example.py explains each."""

    home: str = "~/.ecloud"
    database_url: str = ""
    broker_host: str = ""
    broker_listen: str = ""
    broker_port: int = 1883
    broker_user: str = ""
    broker_password: str = ""
    broker_tls: bool = False
    broker_ca: str = ""
    datastore: str = ""
    boss_template: str = ""
    datastore_template: str = ""
    datastore_at: str = ""
    pools: tuple[PoolSettings, ...] = ()
    opennebula_url: str = ""
    opennebula_user: str = ""
    opennebula_password: str = ""
    opennebula_ca: str = ""
    opennebula_proxy: str = ""
    shell: str = "/bin/sh"
    heartbeat_s: float = 5.0
    lease_s: float = 60.0
    lease_margin_s: float = 5.0
    stop_grace_s: float = 10.0
    retry_backoff_s: float = 1.0
    idle_vm_s: float = 60.0
    vm_boot_s: float = 300.0
    vm_pending_s: float = 120.0
    vm_unanswered_s: float = 90.0
    vm_orphan_s: float = 120.0
    end_vms_s: float = 900.0
    vm_hours_per_day: float = 0.0
    vm_hours_per_run: float = 0.0
    hook_command: str = ""
    event_command: str = ""
    event_url: str = ""
    event_secret: str = ""
    boss_gone_exit_s: float = 3600.0
    max_lost_workers: int = 3
    max_tasks_per_push: int = 2_000_000
    run_as_home: str = "/var/lib/ecloud-workers"
    cache_mb: float = 10_000.0
    transfer_lanes: int = 8
    datastore_stall_s: float = 60.0
    keep_runs_days: float = 30.0
    on_old_runs: str = "archive"
    log_level: str = "INFO"

    @property
    def home_directory(self) -> Home:
        """The home's paths."""
        return Home(self.home)

    @property
    def all_pools(self) -> tuple[PoolSettings, ...]:
        """The configured pools, else this machine's."""
        return self.pools or default_pools()


_CHOICES = {
    "on_old_runs": ("archive", "drop"),
    "log_level": ("DEBUG", "INFO", "WARNING", "ERROR"),
}
_AT_LEAST: dict[str, float] = {
    "heartbeat_s": 0.05,
    "lease_s": 0.2,
    "lease_margin_s": 0.0,
    "stop_grace_s": 0.0,
    "retry_backoff_s": 0.0,
    "idle_vm_s": 0.0,
    "vm_boot_s": 1.0,
    "vm_pending_s": 1.0,
    "vm_unanswered_s": 1.0,
    "vm_orphan_s": 1.0,
    "end_vms_s": 1.0,
    "vm_hours_per_day": 0.0,
    "vm_hours_per_run": 0.0,
    "boss_gone_exit_s": 1.0,
    "max_lost_workers": 0,
    "max_tasks_per_push": 1,
    "cache_mb": 0.0,
    "transfer_lanes": 1,
    "datastore_stall_s": 1.0,
    "keep_runs_days": 0.0,
    "broker_port": 1,
}
_AT_MOST: dict[str, float] = {"broker_port": 65_535}
_SECRET = ("event_secret", "event_url", "broker_password", "database_url", "opennebula_password", "opennebula_proxy")
"""Values that are never shown, not even in errors about them."""
MAX_POOL_NAME_CHARS = 64
MIN_EVENT_SECRET_CHARS = 16
_SSH_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
CLOUDS = ("local", "opennebula", "slurm", "ssh_hosts")
HOST_PATTERN = re.compile(r"(?:[A-Za-z0-9_][\w.-]*@)?[A-Za-z0-9_][\w.-]*(?::\d{1,5})?")
SLURM_FIELDS = ("partition", "account", "qos", "time_limit", "backlog", "sbatch_options", "worker_init", "login")
_TIME_LIMIT = re.compile(r"(\d+-)?\d+(:\d\d){0,2}")
WAYS_OF_CODE = ("image", "ssh")


def settings_path() -> Path:
    """The settings file: `$ECLOUD_SETTINGS`, else the first that exists of settings.py in the working directory,
    ~/.config/ecloud/settings.py and settings.py beside admin.py. If none exists, the path where it belongs."""
    named = os.environ.get("ECLOUD_SETTINGS")
    if named:
        return Path(os.path.expanduser(named)).absolute()
    config = Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"), "ecloud", "settings.py")
    beside = [ROOT / "settings.py"] if (ROOT / "admin.py").exists() else []
    places = [Path.cwd() / "settings.py", config, *beside]
    return next((path for path in places if path.is_file()), places[-1])


def child_environment() -> dict[str, str]:
    """The environment for a process of this cluster that runs elsewhere: it reads the same settings file."""
    path = settings_path()
    return {**os.environ, **({"ECLOUD_SETTINGS": str(path)} if path.is_file() else {})}


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings file, then `$ECLOUD_HOME`, then `overrides` (None counts as not given). Raises `SettingsWrong`."""
    values: dict[str, Any] = {}
    path = settings_path()
    if path.exists():
        values.update(_read(path))
    elif os.environ.get("ECLOUD_SETTINGS"):
        raise SettingsWrong([f"ECLOUD_SETTINGS names {path}, which does not exist: write it, or unset ECLOUD_SETTINGS"])
    if os.environ.get("ECLOUD_HOME"):
        values["home"] = os.environ["ECLOUD_HOME"]
    values.update({name: value for name, value in (overrides or {}).items() if value is not None})
    return _checked(values, str(path) if path.exists() else "settings")


def _read(path: Path) -> dict[str, Any]:
    try:
        module = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f", line {frames[-1].lineno}" if frames else ""
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else line
        raise SettingsWrong([f"{path}{line}: {type(error).__name__}: {error}"]) from None
    return {name.lower(): value for name, value in module.items() if name.isupper() and not name.startswith("_")}


def _checked(values: dict[str, Any], where: str) -> Settings:
    problems = []
    known = Settings.__struct_fields__
    for name in sorted(set(values) - set(known)):
        nearest = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {nearest[0].upper()}?" if nearest else "; see settings.example.py"
        problems.append(f"{where}: {name.upper()} is no setting{hint}")
    usable = {}
    for name in known:
        if name in values:
            try:
                usable[name] = _converted(name, values[name])
            except (msgspec.ValidationError, ValueError, TypeError) as error:
                shown = "" if name in _SECRET else f" = {values[name]!r}"
                problems.append(f"{where}: {name.upper()}{shown}: {error}")
    for name, value in usable.items():
        if problem := _out_of_bounds(name, value):
            problems.append(f"{where}: {name.upper()} = {value!r}: {problem}")
    pools = usable.get("pools", ())
    problems += [f"{where}: POOLS: {problem}" for problem in _pool_problems(pools)]
    problems += [f"{where}: {problem}" for problem in _machine_problems(usable)]
    problems += [f"{where}: {problem}" for problem in _event_problems(usable)]
    machines = usable.get("boss_template") or usable.get("datastore_template")
    if machines or any(pool.cloud == "opennebula" for pool in pools):
        problems += [f"{where}: {problem}" for problem in _opennebula_problems(usable)]
    if not problems and usable.get("lease_s", 60.0) < 2 * usable.get("heartbeat_s", 5.0):
        problems.append(
            f"{where}: LEASE_S must be at least twice HEARTBEAT_S, or a single late heartbeat loses a worker"
        )
    if problems:
        raise SettingsWrong(problems)
    return Settings(**usable)


def _out_of_bounds(name: str, value: Any) -> str:
    """Why a value of the right type is not acceptable; empty if it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if value < _AT_LEAST.get(name, value):
        return f"at least {_AT_LEAST[name]:g}"
    if value > _AT_MOST.get(name, value):
        return f"at most {_AT_MOST[name]:g}"
    if value not in _CHOICES.get(name, (value,)):
        return f"one of {', '.join(_CHOICES[name])}"
    return ""


def _pool_problems(pools: tuple[PoolSettings, ...]) -> Iterator[str]:
    names = [pool.name for pool in pools]
    yield from (f"two pools are named {name}" for name in sorted(set(names)) if names.count(name) > 1)
    logins = sorted({pool.login for pool in pools if pool.cloud == "slurm"})
    if len(logins) > 1:
        yield f"all pools of cloud slurm have one login, not {', '.join(map(repr, logins))}: one Slurm is listed once"
    if len({pool.ssh_options for pool in pools if pool.cloud == "ssh_hosts"}) > 1:
        yield "all pools of cloud ssh_hosts have the same ssh_options: their hosts are listed together"
    for pool in pools:
        if not 0 < len(pool.name) <= MAX_POOL_NAME_CHARS:
            yield f"a pool's name has 1 to {MAX_POOL_NAME_CHARS} characters, not {len(pool.name)}"
        if pool.cloud not in CLOUDS:
            yield f"{pool.name}: cloud = {pool.cloud!r}: one of {', '.join(CLOUDS)}"
        for field in ("minimum", "maximum", "cpus", "memory_mb", "gpus"):
            amount = getattr(pool, field)
            if not 0 <= amount < math.inf:
                yield f"{pool.name}: {field} = {amount!r}: a finite number, at least 0"
        if pool.gpus % 1:
            yield f"{pool.name}: gpus = {pool.gpus:g}: a whole number"
        if pool.run_as and pool.cloud != "local":
            yield f"{pool.name}: run_as = {pool.run_as!r}: only for pools of cloud local"
        for problem in container_problems(pool.container) if pool.container is not None else ():
            yield f"{pool.name}: container: {problem}"
        yield from _slurm_problems(pool)
        yield from _host_problems(pool)
        if pool.cloud == "opennebula":
            if not pool.template.strip():
                yield f"{pool.name}: template: the name or id of an OpenNebula template"
            if not (pool.cpus and pool.memory_mb):
                yield f"{pool.name}: cpus and memory_mb: the CPUs and memory of a VM of its template"
            if pool.code not in WAYS_OF_CODE:
                yield f"{pool.name}: code = {pool.code!r}: one of {', '.join(WAYS_OF_CODE)}"
            if not _SSH_USER.fullmatch(pool.ssh_user):
                yield f"{pool.name}: ssh_user = {pool.ssh_user!r}: the name of a user of its VMs, root in most images"
            if not 0 < pool.ssh_port <= 65_535:
                yield f"{pool.name}: ssh_port = {pool.ssh_port!r}: a port, 22 in most images"
        elif pool.code != "image":
            yield f"{pool.name}: code = {pool.code!r}: for pools of cloud opennebula only"
        elif pool.template:
            yield f"{pool.name}: template = {pool.template!r}: for pools of cloud opennebula only"
        if pool.minimum > pool.maximum:
            yield f"{pool.name}: minimum {pool.minimum} is more than maximum {pool.maximum}"


def _host_problems(pool: PoolSettings) -> Iterator[str]:
    if pool.cloud != "ssh_hosts":
        if pool.hosts or pool.ssh_options or pool.slots != 1:
            yield f"{pool.name}: hosts, slots, ssh_options: for pools of cloud ssh_hosts only"
        return
    if not pool.hosts:
        yield f"{pool.name}: hosts: a list of user@host[:port], of names of your ssh configuration, or local"
    for host in pool.hosts:
        if not HOST_PATTERN.fullmatch(host):
            yield f"{pool.name}: hosts: {host!r} is no user@host[:port]"
    if not (pool.cpus and pool.memory_mb):
        yield f"{pool.name}: cpus and memory_mb: the CPUs and memory of one worker"
    if pool.slots < 1:
        yield f"{pool.name}: slots = {pool.slots}: at least 1"


def _slurm_problems(pool: PoolSettings) -> Iterator[str]:
    if pool.cloud != "slurm":
        usual = PoolSettings(pool.name)
        for field in SLURM_FIELDS:
            if getattr(pool, field) != getattr(usual, field):
                yield f"{pool.name}: {field} = {getattr(pool, field)!r}: for pools of cloud slurm only"
        return
    if not (pool.cpus and pool.memory_mb):
        yield f"{pool.name}: cpus and memory_mb: the CPUs and memory of a worker's Slurm job"
    if pool.cpus % 1:
        yield f"{pool.name}: cpus = {pool.cpus:g}: Slurm gives whole CPUs"
    if pool.backlog < 1:
        yield f"{pool.name}: backlog = {pool.backlog}: at least 1"
    if pool.time_limit and not _TIME_LIMIT.fullmatch(pool.time_limit):
        yield f"{pool.name}: time_limit = {pool.time_limit!r}: as Slurm's --time, e.g. 04:00:00 or 2-00:00:00"


def _opennebula_problems(values: Mapping[str, Any]) -> Iterator[str]:
    for name, example in (("url", "http://HOST:2633/RPC2"), ("user", "ecloud"), ("password", "the user's")):
        if not values.get(f"opennebula_{name}"):
            yield f"OPENNEBULA_{name.upper()} is needed by the pools of an OpenNebula, e.g. {example}"
    url = values.get("opennebula_url", "")
    if url and not url.startswith(("http://", "https://")):
        yield f"OPENNEBULA_URL = {url!r}: an address that begins with http:// or https://, e.g. http://HOST:2633/RPC2"
    if ":" in values.get("opennebula_user", ""):
        yield "OPENNEBULA_USER: a name without a colon; set the password in OPENNEBULA_PASSWORD"


def _event_problems(values: Mapping[str, Any]) -> Iterator[str]:
    url = values.get("event_url", "")
    if url and not url.startswith(("http://", "https://")):
        yield "EVENT_URL: an address that begins with https:// or http://"
    if url and len(values.get("event_secret", "")) < MIN_EVENT_SECRET_CHARS:
        yield f"EVENT_SECRET: at least {MIN_EVENT_SECRET_CHARS} characters: what is sent to EVENT_URL is signed with it"


def _machine_problems(values: Mapping[str, Any]) -> Iterator[str]:
    at = values.get("datastore_at", "")
    if values.get("datastore_template") and not (at.count("*") == 1 and "@*" in at and ":/" in at):
        yield f"DATASTORE_AT = {at!r}: where on the machine of DATASTORE_TEMPLATE files are, e.g. ecloud@*:/srv/ecloud"


def _pool(fields: Any) -> PoolSettings:
    """A pool. Its `provider` may also be called `cloud`."""
    if isinstance(fields, dict) and "provider" in fields:
        if "cloud" in fields:
            raise ValueError(f"{fields.get('name', '?')}: cloud and provider mean the same: set one")
        fields = {("cloud" if name == "provider" else name): value for name, value in fields.items()}
    if isinstance(fields, dict) and fields.get("cloud") == "ssh_hosts" and "maximum" not in fields:
        fields = {**fields, "maximum": len(fields.get("hosts", ())) * fields.get("slots", 1)}
    if isinstance(fields, dict) and isinstance(fields.get("container"), str):
        fields = {**fields, "container": {"image": fields["container"]}}
    return msgspec.convert(fields, PoolSettings)


def _converted(name: str, value: Any) -> Any:
    kind = Settings.__annotations__[name]
    if name == "pools":
        return tuple(pool if isinstance(pool, PoolSettings) else _pool(pool) for pool in value)
    if isinstance(value, Path):
        value = str(value)
    types: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": bool}
    wanted = types[kind]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    return msgspec.convert(value, wanted)
