"""Makes the provider of each pool.

`python -m boss.providers.registry` asks each cloud for room and prints the answers as JSON, for `admin.py doctor`. With
`--left CLUSTER_ID` it prints that cluster's VMs from the clouds' own lists, for `admin.py stop --vms`; with
`--strangers CLUSTER_ID` VMs that resemble them but are not, for `admin.py show_vms`; with `--machine TEMPLATE` it finds
the machine of a template, for `admin.py start`. It ends nothing, and starts something only with `--machine TEMPLATE
--create`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from boss.bootstrap.bundle import Bundles
from boss.bootstrap.start_script import CODE_DIRECTORY
from boss.bootstrap.visit import Visitor
from boss.providers.accounts import Account
from boss.providers.local import LocalCloud
from boss.providers.provider import AskForLess, CredentialsWrong, GivePoolUp, Gone, Provider, TryLater
from datastore.keys import KeyToolFailed, make_key
from ecloud.config import this_host
from ecloud.config.home import Home
from ecloud.config.secrets import AccessFile
from ecloud.config.settings import ROOT, PoolSettings, Settings, SettingsWrong, load_settings, size_of
from ecloud.model.tasks import Resources

if TYPE_CHECKING:
    from boss.providers.opennebula.provider import Connection


def open_clouds(
    settings: Settings,
    home: Home,
    cluster_id: str,
    access_of: Callable[[str], AccessFile],
    tied: bool = False,
    keep_dirs: bool = False,
    public_key: str = "",
    with_tokens: bool = True,
    accounts: Mapping[str, Account] = {},
) -> dict[str, Provider]:
    """Return the provider of each pool, by the pool's name. Contacts no cloud yet. `public_key`: a key that the sshd of
    a VM must accept. `with_tokens`: log in by tokens, which `Provider.close` gives back. `accounts`: by name of pools
    on this machine whose workers run under another account."""
    place = Path(settings.run_as_home) / cluster_id
    here = _shared_here(settings)
    local = LocalCloud(home, access_of, tied, settings.boss_gone_exit_s, keep_dirs, accounts, place, here)
    clouds: dict[str, Provider] = {pool.name: local for pool in settings.all_pools}
    for pool in settings.all_pools:
        if pool.cloud == "ssh_hosts":
            clouds[pool.name] = _ssh_hosts(settings, pool, home, cluster_id, access_of, keep_dirs)
        if pool.cloud == "slurm":
            clouds[pool.name] = _slurm(settings, pool, home, cluster_id, access_of, keep_dirs)
    remote = [pool for pool in settings.all_pools if pool.cloud == "opennebula"]
    if remote:
        from boss.providers.opennebula.provider import OpenNebulaCloud  # slow import, which other commands do not need

        connection = _connection(settings, with_tokens)
        for pool in remote:
            clouds[pool.name] = OpenNebulaCloud(
                connection,
                cluster_id,
                pool.template,
                access_of,
                settings.boss_gone_exit_s,
                keep_dirs,
                "" if pool.code == "ssh" else CODE_DIRECTORY,
                public_key,
            )
    return clouds


def _shared_here(settings: Settings) -> Resources:
    """What the local pools share, where settings allow one of them more than this machine was found to have:
    such settings are believed. Several pools get no more together."""
    found: Resources = {}
    for pool in settings.all_pools:
        if pool.cloud == "local":
            for name, amount in (("cpus", pool.cpus), ("memory_mb", pool.memory_mb)):
                found[name] = max(found.get(name, 0.0), amount * pool.maximum)
    measured = {"cpus": this_host.cpus(), "memory_mb": this_host.memory_mb()}
    return {name: amount for name, amount in found.items() if amount > measured[name]}


def _ssh_hosts(
    settings: Settings,
    pool: PoolSettings,
    home: Home,
    cluster_id: str,
    access_of: Callable[[str], AccessFile],
    keep_dirs: bool,
) -> Provider:
    from boss.providers.ssh_hosts import Shell, SshHosts

    every = [host for other in settings.all_pools for host in other.hosts]
    return SshHosts(
        Shell(pool.ssh_options),
        cluster_id,
        pool.hosts,
        pool.slots,
        access_of,
        Bundles(home.path),
        settings.boss_gone_exit_s,
        keep_dirs,
        every,
    )


def _slurm(
    settings: Settings,
    pool: PoolSettings,
    home: Home,
    cluster_id: str,
    access_of: Callable[[str], AccessFile],
    keep_dirs: bool,
) -> Provider:
    from boss.providers.slurm import Commands, SlurmCloud
    from boss.providers.slurm_jobs import JobOptions

    options = JobOptions(
        python=sys.executable,
        code=str(ROOT),
        partition=pool.partition,
        account=pool.account,
        qos=pool.qos,
        time_limit=pool.time_limit,
        sbatch_options=pool.sbatch_options,
        worker_init=pool.worker_init,
        output="/dev/null" if pool.login else str(home.workers / "slurm-%j.log"),
        boss_gone_exit_s=settings.boss_gone_exit_s,
        keep_dirs=keep_dirs,
    )
    return SlurmCloud(Commands(pool.login), cluster_id, options, access_of, pool.backlog)


def open_visitors(
    settings: Settings, home: Home, cluster_id: str, access_of: Callable[[str], AccessFile]
) -> tuple[str, dict[str, Visitor]]:
    """Return the public key that VMs must accept, and the visitor of each pool; no key and no visitor if no pool has
    VMs that can be visited. `access_of`: the access file that a VM was sent; visits remove its secrets from their
    reports. Raises `KeyToolFailed` if the boss must bring code to a VM and cannot have a key."""
    remote = [pool for pool in settings.all_pools if pool.cloud == "opennebula"]
    if not remote:
        return "", {}
    key = home.secrets / "vm.key"
    try:
        public_key = make_key(key, f"ecloud-{cluster_id}-boss")
    except KeyToolFailed:
        if any(pool.code == "ssh" for pool in remote):
            raise
        return "", {}
    bundles = Bundles(home.path)

    def secrets_of(vm_no: int) -> tuple[str, ...]:
        access = access_of(f"vm-{vm_no}")
        return access.password, access.key

    return public_key, {pool.name: Visitor(key, bundles, pool.ssh_user, pool.ssh_port, secrets_of) for pool in remote}


def _connection(settings: Settings, with_token: bool) -> Connection:
    """Connect to the OpenNebula. `with_token`: for a boss, which makes many calls and gives the token back; a command
    uses the password for its few calls."""
    from boss.providers.opennebula.provider import Connection  # slow import, which other commands do not need
    from boss.providers.opennebula.transport import TOKEN_S, Endpoint

    return Connection(
        Endpoint(
            url=settings.opennebula_url,
            user=settings.opennebula_user,
            password=settings.opennebula_password,
            ca=str(Path(settings.opennebula_ca).expanduser()) if settings.opennebula_ca else "",
            proxy=settings.opennebula_proxy,
            token_s=TOKEN_S if with_token else 0.0,
        )
    )


class Said(msgspec.Struct, frozen=True):
    """The answer of a pool's cloud. `remedy`: what to do; empty if all is well."""

    pool: str
    text: str
    remedy: str = ""


def ask(settings: Settings) -> list[Said]:
    """Ask the cloud of every pool that is not on this machine."""
    clouds = open_clouds(settings, settings.home_directory, "doctor", _nobody, with_tokens=False)
    return [_say(pool.name, clouds[pool.name], size_of(pool)) for pool in settings.all_pools if pool.cloud != "local"]


class Left(msgspec.Struct, frozen=True):
    """A VM of this cluster in a cloud's own list; or in `problem`, why the cloud did not answer."""

    vm_no: int = 0
    cloud_id: str = ""
    state: str = ""
    problem: str = ""


def look_for_left(settings: Settings, cluster_id: str) -> list[Left]:
    """Return that cluster's VMs in the lists of all clouds other than this machine."""
    left = []
    for cloud in _remote(settings, cluster_id):
        try:
            left += [Left(vm.vm_no, vm.cloud_id, vm.cloud_state or vm.state.value) for vm in cloud.list()]
        except (TryLater, CredentialsWrong) as error:
            left.append(Left(problem=str(error)))
    return left


class StrangerSaid(msgspec.Struct, frozen=True):
    """A VM that resembles ours but is not, and is never touched; or in `problem`, why the cloud did not answer."""

    cloud_id: str = ""
    name: str = ""
    owner: str = ""
    why: str = ""
    problem: str = ""


def look_for_strangers(settings: Settings, cluster_id: str) -> list[StrangerSaid]:
    """Return the VMs that carry that cluster's name or tag but do not belong to it."""
    found = []
    for cloud in _remote(settings, cluster_id):
        try:
            found += [StrangerSaid(vm.cloud_id, vm.name, vm.owner, vm.why) for vm in cloud.strangers()]
        except (TryLater, CredentialsWrong) as error:
            found.append(StrangerSaid(problem=str(error)))
    return found


def _remote(settings: Settings, cluster_id: str) -> list[Provider]:
    """Return one provider of each cloud other than this machine: it finds the VMs of all its pools."""
    clouds = open_clouds(settings, settings.home_directory, cluster_id, _nobody, with_tokens=False)
    return list({pool.cloud: clouds[pool.name] for pool in settings.all_pools if pool.cloud != "local"}.values())


class Found(msgspec.Struct, frozen=True):
    """The machine of a template; or in `problem`, why there is none."""

    cloud_id: str = ""
    address: str = ""
    made: bool = False
    problem: str = ""


def find_machine(settings: Settings, template: str, create: bool) -> Found:
    """Return the running VM of that template; `create`: make one if there is none."""
    from boss.providers.opennebula.machines import Machines

    try:
        machine = Machines(_connection(settings, False), template).find(create)
    except (TryLater, AskForLess, GivePoolUp, CredentialsWrong) as error:
        return Found(problem=str(error))
    return Found(machine.cloud_id, machine.address, machine.made)


def _nobody(name: str) -> AccessFile:
    return AccessFile("doctor", "127.0.0.1", 1, name, "00" * 32)


def _say(pool: str, cloud: Provider, size: Resources) -> Said:
    try:
        room = cloud.room()
        misfit = cloud.misfit(size)
    except CredentialsWrong as error:
        return Said(pool, str(error), "correct settings.py; the pool starts no VM until then")
    except GivePoolUp as error:
        return Said(pool, str(error), "correct the pool in POOLS, or its template")
    except (TryLater, AskForLess, Gone) as error:
        return Said(
            pool, str(error), "correct the address (OPENNEBULA_URL, login, hosts) if wrong; otherwise the boss retries"
        )
    if misfit:
        return Said(
            pool, misfit, "set the pool's cpus and memory_mb to the values of the template, or enlarge the template"
        )
    if room.vms is None:
        return Said(pool, "accepts the login")
    text = f"can start {room.vms} more {'VM' if room.vms == 1 else 'VMs'} ({room.reason})"
    return Said(pool, text, "" if room.vms else "free resources there, or use another pool")


def main() -> int:
    """Print the answer of each cloud."""
    try:
        settings = load_settings()
    except SettingsWrong as error:
        print("; ".join(error.texts), file=sys.stderr)
        return 2
    match sys.argv[1:]:
        case ["--left", cluster_id]:
            text = msgspec.json.encode(look_for_left(settings, cluster_id))
        case ["--strangers", cluster_id]:
            text = msgspec.json.encode(look_for_strangers(settings, cluster_id))
        case ["--machine", template, *create]:
            text = msgspec.json.encode([find_machine(settings, template, create == ["--create"])])
        case _:
            text = msgspec.json.encode(ask(settings))
    sys.stdout.write(text.decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
