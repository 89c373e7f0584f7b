"""Makes a machine a datastore over one SSH connection of the boss (fabric): finds its Python, copies the gate, trusts
the boss's certificates. What is there already is left; nothing is started."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datastore.port import AccessRefused, DatastoreAway
from datastore.problem import PartAway
from datastore.ssh.access import SshAddress
from datastore.ssh.remote import Broken, Login, Remote, Unreachable

GATE = Path(__file__).resolve().parents[1] / "gate.py"
PYTHONS = ("python3", "/usr/libexec/platform-python")
"""On the path, or where Red Hat keeps its own."""
OLDEST_PYTHON = (3, 6)
COMMAND_S = 60
AUTHORIZED_KEYS = ".ssh/authorized_keys"
"""Below the account's home, where sshd looks unless its `AuthorizedKeysFile` says otherwise."""
_SHELL = "ecloud-shell"
_PROBE = "import os, sys; print(sys.executable, *sys.version_info[:2])"


class CannotServe(PartAway):
    """The machine lacks what a datastore needs; the text says what to install or change there."""


@dataclass(frozen=True)
class Installed:
    """What `install` found and made. `wrote_line`: it added the line, which was not there before."""

    python: str
    python_version: str
    gate: str
    wrote_line: bool


def gate_name() -> str:
    """Named by its contents: a gate that runs, or that a certificate names, is never overwritten by another."""
    return f"gate-{hashlib.sha256(GATE.read_bytes()).hexdigest()[:12]}.py"


@contextmanager
def connected(address: SshAddress, key: Path, host_key: str) -> Iterator[Remote]:
    """A connection of the boss's key to a host that must show `host_key` (`type base64`). Raises `DatastoreAway`;
    `AccessRefused` where that key is not authorised."""
    remote = Remote(Login(address.host, address.user, key, address.port, host_key))
    try:
        remote.open()
        yield remote
    except Unreachable as error:
        if error.contact == "changed":
            text = f"REFUSED: {address.host} shows another host key than the pinned one"
            raise DatastoreAway(f"{text}: the connection may be intercepted, or the host was reinstalled") from error
        if error.contact == "denied":
            raise AccessRefused(f"{address.user}@{address.host} does not accept the boss's key") from error
        raise DatastoreAway(f"{address} cannot be reached: {error}") from error
    except Broken as error:
        raise DatastoreAway(str(error)) from error
    finally:
        remote.close()


def install(
    address: SshAddress, key: Path, host_key: str, authorized_line: str, authorized_keys: str = AUTHORIZED_KEYS
) -> Installed:
    """Make it a datastore. `authorized_keys` is relative to the account's home, or absolute.

    Raises `CannotServe`, `DatastoreAway`.
    """
    directory = f"{address.root.rstrip('/')}/.ecloud"
    with connected(address, key, host_key) as remote:
        _require_shell(remote, address)
        python, version = _python(remote, address)
        gate = f"{directory}/{gate_name()}"
        _sh(remote, f"mkdir -p {shlex.quote(directory + '/staging')} && test -w {shlex.quote(address.root)}")
        if not _holds(remote, gate, GATE.read_bytes()):
            # Not by SFTP: a server may have none.
            aside = shlex.quote(f"{gate}.new")
            _sh(remote, f"cat > {aside} && mv -f {aside} {shlex.quote(gate)}", GATE.read_bytes())
        return Installed(python, version, gate, _sh(remote, adding(authorized_line, authorized_keys)) == ADDED)


def take_back(address: SshAddress, key: Path, host_key: str, line: str, authorized_keys: str = AUTHORIZED_KEYS) -> None:
    """Remove a line that `install` wrote. Raises `DatastoreAway`."""
    with connected(address, key, host_key) as remote:
        _sh(remote, removing(line, authorized_keys))


# --- authorized_keys -------------------------------------------------------------------------------------

ADDED = "added"
"""What the script of `adding` prints where the line was not there."""


def adding(line: str, authorized_keys: str = AUTHORIZED_KEYS) -> str:
    """A shell command that adds a line where it is not there yet."""
    file, wanted = _file(authorized_keys), shlex.quote(line)
    return (
        f'umask 077; mkdir -p "$(dirname {file})" && touch {file} && (grep -qxF {wanted} {file}'
        # A file whose last line has no end would otherwise swallow ours.
        f" || {{ test -z \"$(tail -c 1 {file})\" || echo >> {file}; printf '%s\\n' {wanted} >> {file}"
        f" && printf {ADDED}; }})"
    )


def removing(line: str, authorized_keys: str = AUTHORIZED_KEYS) -> str:
    """A shell command that removes a line. The file stays the same one, with its owner and permissions."""
    file = _file(authorized_keys)
    return f'rest=$(grep -vxF {shlex.quote(line)} {file}); test $? -lt 2 && printf "%s" "${{rest:+$rest\n}}" > {file}'


def _file(authorized_keys: str) -> str:
    return (
        shlex.quote(authorized_keys) if authorized_keys.startswith("/") else f'"$HOME"/{shlex.quote(authorized_keys)}'
    )


# --- commands --------------------------------------------------------------------------------------------


def _require_shell(remote: Remote, address: SshAddress) -> None:
    """Some accounts are for SFTP alone. Raises `CannotServe`."""
    if _SHELL not in remote.run(f"echo {_SHELL}", until=time.monotonic() + COMMAND_S)[1]:
        raise CannotServe(
            f"{address.host} runs no commands for {address.user}: a datastore needs an account with a shell"
            " (no ForceCommand in sshd_config, no /usr/sbin/nologin)"
        )


def _sh(remote: Remote, command: str, given: bytes = b"") -> str:
    """What it prints in a plain shell, whatever the account's login shell is. Raises `DatastoreAway` with what it
    said."""
    code, told = remote.run(f"/bin/sh -c {shlex.quote(command)}", given, time.monotonic() + COMMAND_S)
    if code != 0:
        said = told.strip().splitlines()
        where = remote.login.where
        raise DatastoreAway(f"{where}: {said[-1] if said else 'a command failed'} ({command.split()[0]})")
    return told


def _holds(remote: Remote, path: str, contents: bytes) -> bool:
    """Whether the file there is this one."""
    command = f"test -e {shlex.quote(path)} && cmp -s - {shlex.quote(path)}"
    return remote.run(f"/bin/sh -c {shlex.quote(command)}", contents, time.monotonic() + COMMAND_S)[0] == 0


def _python(remote: Remote, address: SshAddress) -> tuple[str, str]:
    """The path and version of the first Python that serves. Raises `CannotServe`."""
    older = ""
    for name in PYTHONS:
        probe = f"{name} -IS -c {shlex.quote(_PROBE)} 2>/dev/null || true"
        words = _sh(remote, probe).split()
        if len(words) == 3 and (int(words[1]), int(words[2])) >= OLDEST_PYTHON:
            return words[0], f"{words[1]}.{words[2]}"
        if len(words) == 3:
            older = f", only {words[1]}.{words[2]}"
    raise CannotServe(
        f"{address.host} has no python3 of {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer{older}, which a datastore"
        " needs. Install it there (apt-get install python3, dnf install python3, apk add python3), then run"
        f" python admin.py set_datastore {address} again"
    )
