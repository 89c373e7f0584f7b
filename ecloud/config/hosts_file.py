"""`hosts.toml` in the home: the options of `admin.py hosts up`, and the recorded intent of each start.

An intent is written before its process is started and removed once the process is known to have ended, so that `hosts
down` finds everything after any interruption.
"""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import Any

import msgspec

from datastore.problem import Problem
from ecloud.config.home import Home
from ecloud.config.secrets import write_private

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOCAL = "local"
"""In lists of hosts: this machine, without SSH."""


class HostsOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of `hosts up` that are kept. `master`: `local` or the number of a host; `workers`: the same, several;
    `address`: the broker's address for the workers, empty to use the one that each host sees."""

    hosts: tuple[str, ...] = ()
    key: str = ""
    ssh_options: tuple[str, ...] = ()
    remote_path: str = ".ecloud-hosts"
    project: str = ""
    master: str = LOCAL
    workers: tuple[str, ...] = ()
    address: str = ""
    datastore: str = ""
    slots: int = 1
    tunnel: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """Words for ssh."""
        key = ("-i", self.key, "-o", "IdentitiesOnly=yes") if self.key else ()
        return (*key, *(word for option in self.ssh_options for word in ("-o", option)))


class Started(msgspec.Struct, frozen=True):
    """A process that is started on a host, written before the start. `kind`: `worker`, `boss` or `tunnels`; `number`:
    which worker; `at`: epoch seconds."""

    host: str
    kind: str
    number: int = 0
    at: float = 0.0


class HostsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file. `deployment`: the name of the directory on each host; `tunnel_ports`: by host, the ports
    at which its workers find broker and datastore; `invitation`: the key name of the workers."""

    deployment: str
    options: HostsOptions
    started: tuple[Started, ...] = ()
    tunnel_ports: dict[str, tuple[int, int]] = {}
    invitation: str = ""


def path_of(home: Home) -> Path:
    """Return the path of the file."""
    return home.path / "hosts.toml"


def new_file(options: HostsOptions) -> HostsFile:
    """Return the content for the first `hosts up`."""
    return HostsFile("h" + secrets.token_hex(6), options)


def read(home: Home) -> HostsFile | None:
    """Read the file; None if it does not exist. Raises `Problem`."""
    path = path_of(home)
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), HostsFile)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Problem(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, msgspec.ValidationError) as error:
        raise Problem(f"{path} is damaged: {error}", "repair it, or end by hand what it names and remove it") from None


def write(home: Home, file: HostsFile) -> None:
    """Write the file atomically. Raises `Problem`."""
    path = path_of(home)
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, as_toml(file))
    except OSError as error:
        raise Problem(f"{path} cannot be written: {error.strerror}", "make room there, or set ECLOUD_HOME") from None


def as_toml(file: HostsFile) -> str:
    """Return the file as text."""
    lines = [
        "# Written by `admin.py hosts`. `hosts up -f` uses these options again; `hosts down` ends what is started."
    ]
    lines += [f"{name} = {_value(getattr(file, name))}" for name in ("deployment", "invitation")]
    lines += ["", "[options]"]
    lines += [f"{name} = {_value(value)}" for name, value in msgspec.structs.asdict(file.options).items()]
    lines += ["", "[tunnel_ports]"]
    lines += [f"{_value(host)} = {_value(ports)}" for host, ports in file.tunnel_ports.items()]
    for item in file.started:
        lines += ["", "[[started]]"]
        lines += [f"{name} = {_value(value)}" for name, value in msgspec.structs.asdict(item).items()]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """Return a value as TOML. Its strings are those of JSON, except for DEL."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


# --- options of a boss that serves hosts ---------------------------------------------------------------


class BossOptions(msgspec.Struct, frozen=True):
    """For the boss of this home while it serves hosts. `broker_listen`: the address on which its own broker listens;
    `own_workers`: whether it starts workers on its machine if POOLS is empty."""

    broker_listen: str = "127.0.0.1"
    own_workers: bool = True


BOSS_OPTIONS = "hosts.boss"
"""Name of their file in the boss's home."""


def encoded_boss_options(options: BossOptions) -> bytes:
    """Return the content of the file."""
    return msgspec.json.encode(options)


def read_boss_options(home: Home) -> BossOptions:
    """Read the options in the home; the defaults if there are none. Raises `Problem`."""
    path = home.path / BOSS_OPTIONS
    try:
        return msgspec.json.decode(path.read_bytes(), type=BossOptions)
    except FileNotFoundError:
        return BossOptions()
    except (OSError, msgspec.MsgspecError) as error:
        raise Problem(
            f"{path} cannot be used: {error}", "remove it; python admin.py hosts up writes it again"
        ) from None
