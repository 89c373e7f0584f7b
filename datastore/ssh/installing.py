"""Makes a machine a datastore over one SSH connection of the boss (fabric): finds its Python, copies the gate, trusts
the boss's certificates. What is there already is left; nothing is started."""

from __future__ import annotations

import base64
import hashlib
import io
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from datastore.port import DatastoreAway
from datastore.ssh.datastore import SshAddress

if TYPE_CHECKING:
    from fabric import Connection  # type: ignore[import-untyped]

GATE = Path(__file__).resolve().parents[1] / "gate.py"
PYTHONS = ("python3", "/usr/libexec/platform-python")
"""On the path, or where Red Hat keeps its own."""
OLDEST_PYTHON = (3, 6)
CONNECT_S = 20
COMMAND_S = 60
_SHELL = "ecloud-shell"
_PROBE = "import os, sys; print(sys.executable, *sys.version_info[:2])"


@dataclass(frozen=True)
class Installed:
    """What `set_datastore` found and made. `python` and `gate` are empty where the machine has none that serves the
    gate: SFTP it is. `has_shell`: commands can be run there at all."""

    python: str
    python_version: str
    gate: str
    is_authorised: bool
    has_shell: bool = True


def gate_name() -> str:
    """Named by its contents: a gate that runs, or that a certificate names, is never overwritten by another."""
    return f"gate-{hashlib.sha256(GATE.read_bytes()).hexdigest()[:12]}.py"


@contextmanager
def connected(address: SshAddress, key: Path, host_key: str) -> Iterator[Connection]:
    """A connection of the boss's key to a host that must show `host_key` (`type base64`). Raises `DatastoreAway`."""
    import fabric
    import paramiko  # type: ignore[import-untyped]

    connection = fabric.Connection(
        address.host,
        user=address.user,
        port=address.port,
        config=fabric.Config(overrides={"load_ssh_configs": False, "timeouts": {"connect": CONNECT_S}}),
        connect_kwargs={"key_filename": str(key), "look_for_keys": False, "allow_agent": False},
    )
    kind, blob = host_key.split()[:2]
    name = address.host if address.port == 22 else f"[{address.host}]:{address.port}"
    pinned = paramiko.PKey.from_type_string(kind, base64.b64decode(blob))
    connection.client.get_host_keys().add(name, kind, pinned)
    connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())
    try:
        connection.open()
        # Without it each command waits 40 ms for an acknowledgement.
        connection.transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection
    except paramiko.BadHostKeyException as error:
        text = f"REFUSED: {address.host} shows another host key than the one that was pinned"
        raise DatastoreAway(f"{text}: somebody may be in between, or it was installed anew") from error
    except paramiko.AuthenticationException as error:
        raise DatastoreAway(f"{address} does not authorise the boss's key: add its line to authorized_keys") from error
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise DatastoreAway(f"{address} can't be reached: {error}") from error
    finally:
        connection.close()


def install(
    address: SshAddress, key: Path, host_key: str, authorized_line: str, authorized_keys: str = ".ssh/authorized_keys"
) -> Installed:
    """Make it a datastore. `authorized_keys` is relative to the user's home. Raises `DatastoreAway`."""
    directory = f"{address.root.rstrip('/')}/.ecloud"
    with connected(address, key, host_key) as connection:
        if not _has_shell(connection):
            is_authorised = _install_by_sftp(connection, directory, authorized_line, authorized_keys)
            return Installed("", "", "", is_authorised, has_shell=False)
        python, version = _python(connection)
        gate = f"{directory}/{gate_name()}"
        _sh(connection, f"mkdir -p {shlex.quote(directory + '/staging')} && test -w {shlex.quote(address.root)}")
        if not python:
            return Installed("", "", "", _authorise(connection, authorized_line, authorized_keys))
        if not _says(connection, f"cat {shlex.quote(gate)}", GATE.read_bytes()):
            aside = f"{gate}.new"
            connection.put(io.BytesIO(GATE.read_bytes()), aside)
            _sh(connection, f"mv -f {shlex.quote(aside)} {shlex.quote(gate)}")
        return Installed(python, version, gate, _authorise(connection, authorized_line, authorized_keys))


def _has_shell(connection: Connection) -> bool:
    """Whether it runs commands: some accounts are for SFTP alone."""
    done = connection.run(f"echo {_SHELL}", hide=True, warn=True, timeout=COMMAND_S, in_stream=False)
    return _SHELL in str(done.stdout)


def _install_by_sftp(connection: Connection, directory: str, line: str, authorized_keys: str) -> bool:
    """What can be done without a shell; whether the line is among the authorised keys now."""
    sftp = connection.sftp()
    try:
        for path in (directory, f"{directory}/staging"):
            try:
                sftp.stat(path)
            except FileNotFoundError:
                sftp.mkdir(path)
    except OSError as error:
        raise DatastoreAway(f"{connection.host}: {directory} can't be made by SFTP: {error}") from error
    try:
        with sftp.open(authorized_keys, "a+") as file:
            file.seek(0)
            known = file.read().decode("utf-8", "replace")
            if line not in known.splitlines():
                file.write(("" if known.endswith("\n") or not known else "\n") + line + "\n")
    except OSError:
        return False
    return True


def _sh(connection: Connection, command: str) -> str:
    """Run in a plain shell, whatever the user's login shell is. Raises `DatastoreAway` with what it said."""
    done = connection.run(
        f"/bin/sh -c {shlex.quote(command)}", hide=True, warn=True, timeout=COMMAND_S, in_stream=False
    )
    if not done.ok:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise DatastoreAway(f"{connection.host}: {said[-1] if said else 'a command failed'} ({command.split()[0]})")
    return str(done.stdout)


def _says(connection: Connection, command: str, expected: bytes) -> bool:
    done = connection.run(
        f"/bin/sh -c {shlex.quote(command)}", hide=True, warn=True, timeout=COMMAND_S, in_stream=False
    )
    return bool(done.ok) and str(done.stdout).strip() == expected.decode().strip()


def _python(connection: Connection) -> tuple[str, str]:
    """The path and version of the first Python that serves; two empty texts where there is none."""
    for name in PYTHONS:
        probe = f"{name} -IS -c {shlex.quote(_PROBE)} 2>/dev/null || true"
        words = _sh(connection, probe).split()
        if len(words) == 3 and (int(words[1]), int(words[2])) >= OLDEST_PYTHON:
            return words[0], f"{words[1]}.{words[2]}"
    return "", ""


def _authorise(connection: Connection, line: str, path: str) -> bool:
    """Add the line where it is not there yet; whether it is there now."""
    file = shlex.quote(path) if path.startswith("/") else f'"$HOME"/{shlex.quote(path)}'
    wanted = shlex.quote(line)
    try:
        _sh(
            connection,
            f'umask 077; mkdir -p "$(dirname {file})" && touch {file} && (grep -qxF {wanted} {file}'
            # A file whose last line has no end would otherwise swallow ours.
            f" || (test -z \"$(tail -c 1 {file})\" || echo >> {file}; printf '%s\\n' {wanted} >> {file}))",
        )
    except DatastoreAway:
        return False
    return True
