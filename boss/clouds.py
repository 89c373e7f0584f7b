"""Where the VMs of each pool come from. `python -m boss.clouds` asks each cloud for room and prints what it says as
JSON, for `admin.py doctor`; it starts and ends nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from boss.cloud.local import LocalCloud
from boss.cloud.provider import AskForLess, CredentialsWrong, GivePoolUp, Gone, Provider, TryLater
from ecloud.home import Home
from ecloud.secrets import AccessFile
from ecloud.settings import Settings, SettingsWrong, load_settings


def open_clouds(
    settings: Settings,
    home: Home,
    cluster_id: str,
    access_of: Callable[[str], AccessFile],
    tied: bool = False,
    keep_dirs: bool = False,
) -> dict[str, Provider]:
    """The provider of each pool, by the pool's name. Asks no cloud anything yet."""
    local = LocalCloud(home, access_of, tied, settings.boss_gone_exit_s, keep_dirs)
    clouds: dict[str, Provider] = {pool.name: local for pool in settings.all_pools}
    remote = [pool for pool in settings.all_pools if pool.cloud == "opennebula"]
    if remote:
        from boss.cloud.opennebula import Connection, OpenNebulaCloud  # costs time that others need not spend
        from boss.cloud.opennebula_transport import Endpoint

        connection = Connection(
            Endpoint(
                url=settings.opennebula_url,
                user=settings.opennebula_user,
                password=settings.opennebula_password,
                ca=str(Path(settings.opennebula_ca).expanduser()) if settings.opennebula_ca else "",
                proxy=settings.opennebula_proxy,
            )
        )
        for pool in remote:
            clouds[pool.name] = OpenNebulaCloud(
                connection, cluster_id, pool.template, access_of, settings.boss_gone_exit_s, keep_dirs
            )
    return clouds


class Said(msgspec.Struct, frozen=True):
    """What the cloud of a pool says. `remedy`: what to do; empty where all is well."""

    pool: str
    text: str
    remedy: str = ""


def ask(settings: Settings) -> list[Said]:
    """Every pool that is not of this machine."""

    def nobody(name: str) -> AccessFile:
        return AccessFile("doctor", "127.0.0.1", 1, name, "00" * 32)

    clouds = open_clouds(settings, settings.home_directory, "doctor", nobody)
    return [_say(pool.name, clouds[pool.name]) for pool in settings.all_pools if pool.cloud != "local"]


def _say(pool: str, cloud: Provider) -> Said:
    try:
        room = cloud.room()
    except CredentialsWrong as error:
        return Said(pool, str(error), "mend OPENNEBULA_USER and OPENNEBULA_PASSWORD")
    except GivePoolUp as error:
        return Said(pool, str(error), "mend the pool in POOLS, or its template")
    except (TryLater, AskForLess, Gone) as error:
        return Said(pool, str(error), "mend OPENNEBULA_URL where that is wrong; else it is tried again by itself")
    if room.vms is None:
        return Said(pool, "lets us in")
    text = f"has room for {room.vms} VMs ({room.reason})"
    return Said(pool, text, "" if room.vms else "make room there, or let another pool take over")


def main() -> int:
    """Print what each cloud says."""
    try:
        settings = load_settings()
    except SettingsWrong as error:
        print("; ".join(error.problems), file=sys.stderr)
        return 2
    sys.stdout.write(msgspec.json.encode(ask(settings)).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
