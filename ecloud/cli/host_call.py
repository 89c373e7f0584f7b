"""Calls of `admin.py hosts` to the boss's code, which connects to hosts and starts workers on them."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import msgspec

from ecloud.config.settings import ROOT


class GivenOptions(msgspec.Struct, frozen=True):
    """Options as typed; None where not given."""

    hosts: tuple[str, ...] | None = None
    key: str | None = None
    ssh_options: tuple[str, ...] | None = None
    remote_path: str | None = None
    project: str | None = None
    master: str | None = None
    workers: tuple[str, ...] | None = None
    address: str | None = None
    datastore: str | None = None
    slots: int | None = None
    tunnel: bool | None = None


class HostsCall(msgspec.Struct, frozen=True):
    """One command. `action`: up, down, status, update, restart, run; `again`: reuse the options of the last call;
    `words`: arguments of the module to run; `to`: local directory for fetched files."""

    action: str
    options: GivenOptions = GivenOptions()
    hosts_file: str = ""
    again: bool = False
    skip_failed: bool = False
    purge: bool = False
    drain_s: float = 600.0
    module: str = ""
    words: tuple[str, ...] = ()
    fetch: tuple[str, ...] = ()
    to: str = "."
    as_json: bool = False


def carry_out(call: HostsCall) -> NoReturn:
    """Replace this process by the program that carries out the command, with its own output, Ctrl-C and exit code."""
    paths = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "ECLOUD_PYTHONPATH": paths}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), paths)))
    sys.stdout.flush()
    sys.stderr.flush()
    words = [sys.executable, "-X", "utf8", "-m", "boss.hosts", msgspec.json.encode(call).decode()]
    os.execve(sys.executable, words, environment)
