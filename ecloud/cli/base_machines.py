"""The VMs of the broker and the datastore, if a cloud provides them. ECLOUD finds their addresses by their templates if
the context has none, and writes them to the context; it creates VMs only if the user asks for it."""

from __future__ import annotations

import contextlib
import socket
import sys
import time

from datastore.problem import PART_AWAY, Problem
from ecloud.cli import app, cloud_probe
from ecloud.cli import set_datastore as placing
from ecloud.config.settings import Settings
from ecloud.queries import status

SSH_S = 120.0
"""Time limit for the sshd of a new machine to listen."""
NOTE = "boss_address"


def check(settings: Settings, create: bool) -> None:
    """Check that a machine is named if machines are to be created. Raises `Problem`."""
    if create and not (settings.boss_template or settings.datastore_template):
        raise Problem("--create makes machines of BOSS_TEMPLATE and DATASTORE_TEMPLATE: settings.py names neither")


def broker_host(settings: Settings, create: bool) -> str:
    """Return the broker's address from the context, else by its template; empty if the settings name the broker. Raises
    `Problem`."""
    if settings.broker_host or not settings.boss_template:
        return ""
    return _noted(settings).get(NOTE) or _address(settings.boss_template, "BROKER_HOST", create)


def note_broker(settings: Settings, host: str) -> None:
    """Write the broker's address to the context, for the next boss. The boss must run."""
    if host and _noted(settings).get(NOTE) != host:
        with app.boss(settings) as client:
            client.request("set_context", key=NOTE, value=host)


def set_datastore(settings: Settings, create: bool) -> None:
    """Set the datastore as `admin.py set_datastore` does, if only its template is known. The boss must run. Raises
    `Problem`."""
    if settings.datastore or not settings.datastore_template or _noted(settings).get("datastore_address"):
        return
    host = _address(settings.datastore_template, "DATASTORE", create)
    address = settings.datastore_at.replace("*", f"[{host}]" if ":" in host else host)
    _wait_for_sshd(address)
    with contextlib.redirect_stdout(sys.stderr):  # stdout of `start` is for messages about the boss
        placing.set_datastore(address, new_host_key=False, own_account=False, as_json=False)


def _noted(settings: Settings) -> dict[str, str]:
    try:
        return status.context(app.database(settings))
    except Exception as error:
        if app.problem_of(error) is None:
            raise
        return {}  # there is no database yet, hence no context


def _address(template: str, setting: str, create: bool) -> str:
    try:
        (found,) = cloud_probe.ask(
            "--machine", template, *(["--create"] if create else []), limit_s=cloud_probe.MACHINE_S
        )
    except cloud_probe.CloudsAway as error:
        raise Problem(f"{setting} cannot be found: the cloud {error.text}", error.remedy, PART_AWAY) from None
    if found.get("problem"):
        raise Problem(f"{setting} cannot be found: {found['problem']}", exit_code=PART_AWAY)
    what = "made" if found.get("made") else "found"
    print(f"{setting}: {what} VM {found['cloud_id']} of template {template} at {found['address']}", file=sys.stderr)
    return str(found["address"])


def _wait_for_sshd(address: str) -> None:
    from datastore.ssh.access import SshAddress

    try:
        parsed = SshAddress.parse(address)
    except ValueError as error:
        raise Problem(f"DATASTORE_AT: {error}") from None
    deadline = time.monotonic() + SSH_S
    while True:
        try:
            socket.create_connection((parsed.host, parsed.port), 5.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                reason = error.strerror or error
                raise Problem(
                    f"no sshd listens at {parsed.host}:{parsed.port} after {SSH_S:.0f} s ({reason}); once it does: "
                    f"python admin.py set_datastore {address}",
                    exit_code=PART_AWAY,
                ) from None
        time.sleep(0.5)
