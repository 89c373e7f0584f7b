"""The one place that opens an SSH connection for commands on another machine (fabric): to make a machine a datastore,
to prepare a VM, to bring up a host. Bytes of tasks never go this way (`datastore/ssh/carrier.py`).

fabric is loaded with the first connection: a process that opens none does not pay for it.
"""

from __future__ import annotations

import io
import logging
import math
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datastore.keys import fingerprint

if TYPE_CHECKING:
    from fabric import Connection  # type: ignore[import-untyped]

CONNECT_S = 10.0
HANDSHAKE_S = 20.0
"""For the banner and for authentication: 50 machines that boot at once on few hosts are slow."""

MAX_ANSWER_BYTES = 100_000
CHUNK_BYTES = 65_536
_NO_EXIT_CODE = -1
"""The exit code that paramiko returns if the channel was closed without one."""


class Unreachable(Exception):
    """No connection. `contact` says why, in the words of `ecloud.model.boot_diagnosis.Visit`: `changed` (another host
    key than the pinned one), `denied` (the key is not authorised), `closed`, `shut` (nothing listens), `silent`."""

    def __init__(self, contact: str, text: str) -> None:
        super().__init__(text)
        self.contact = contact


class Broken(Exception):
    """A command did not end: the connection was cut, or its time was up."""


@dataclass(frozen=True)
class Login:
    """Where to connect and how to authenticate. `host_key`: `type base64`, the only one to accept; where it is empty
    the first key is accepted, to be pinned. Nothing of the user's own SSH configuration counts."""

    host: str
    user: str
    key: Path
    port: int = 22
    host_key: str = ""

    @property
    def where(self) -> str:
        """The machine, for messages."""
        return self.host if self.port == 22 else f"{self.host}:{self.port}"


class Remote:
    """A connection to one machine. `shown`: the host key that it showed, as `type base64`."""

    def __init__(self, login: Login) -> None:
        self.login = login
        self.shown = ""
        self.connection: Connection = None

    def open(self) -> Connection:
        """Connect, compare the host key, authenticate. Raises `Unreachable`. `close` must follow in any case."""
        import fabric
        import paramiko  # type: ignore[import-untyped]

        logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it logs each failure with its stack
        login = self.login
        options = {
            "key_filename": str(login.key), "allow_agent": False, "look_for_keys": False,
            "banner_timeout": HANDSHAKE_S, "auth_timeout": HANDSHAKE_S,
        }  # fmt: skip
        config = fabric.Config(overrides={"load_ssh_configs": False})
        connection = fabric.Connection(
            login.host, login.user, login.port, config, connect_timeout=CONNECT_S, connect_kwargs=options
        )
        self.connection = connection
        connection.client.set_missing_host_key_policy(_Policy(self))
        if login.host_key:
            self._pin(connection.client, paramiko)
        try:
            connection.open()
        except paramiko.BadHostKeyException as error:
            shown = fingerprint(error.key.get_base64())
            raise Unreachable("changed", f"{shown} instead of {fingerprint(login.host_key)}") from error
        except _OtherKey as error:
            raise Unreachable("changed", str(error)) from error
        except paramiko.AuthenticationException as error:
            raise Unreachable("denied", f"{login.user}@{login.where}: Permission denied (publickey)") from error
        except (paramiko.SSHException, EOFError) as error:
            raise Unreachable("closed", f"{login.where}: {words_of(error)}") from error
        except OSError as error:
            raise _no_way(login.where, error) from error
        with suppress(OSError):  # else each exchange takes 44 ms
            connection.transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _pin(self, client: Any, paramiko: Any) -> None:
        """The server has several keys and shows the kind that is asked for: the pinned one's."""
        login = self.login
        kind, _, blob = login.host_key.partition(" ")
        entry = paramiko.hostkeys.HostKeyEntry.from_line(f"ecloud {kind} {blob}")
        if entry is None:
            raise Unreachable("changed", f"the pinned key is not a key: {login.host_key[:40]}")
        name = login.host if login.port == 22 else f"[{login.host}]:{login.port}"
        client.get_host_keys().add(name, kind, entry.key)

    def see(self, key: Any) -> None:
        """paramiko shows a host key that it does not know."""
        self.shown = f"{key.get_name()} {key.get_base64()}"
        if self.login.host_key and self.shown != self.login.host_key:
            raise _OtherKey(f"{fingerprint(self.shown)} instead of {fingerprint(self.login.host_key)}")

    def run(self, command: str, given: bytes | Path = b"", until: float = math.inf) -> tuple[int, str]:
        """Run a command with `given`, bytes or a file, as its input; its exit code and what it printed on both streams.

        `until`: on the monotonic clock. Raises `Broken`.
        """
        import paramiko

        try:
            channel = self.connection.transport.open_session(timeout=_left_s(until))
            try:
                channel.set_combine_stderr(True)
                channel.settimeout(_left_s(until))
                channel.exec_command(command)
                with suppress(OSError):  # it ended before it had read everything: what it printed says why
                    _give(channel, given, until)
                    channel.shutdown_write()
                told = _read(channel, until)
                if not channel.status_event.wait(_left_s(until)):
                    raise TimeoutError("no exit code was received")
                code = int(channel.recv_exit_status())
            finally:
                channel.close()
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise Broken(f"{self.login.where}: {words_of(error)}") from error
        if code == _NO_EXIT_CODE:
            raise Broken(f"{self.login.where}: the connection was lost, or the command was killed")
        return code, told.decode("utf-8", "replace")

    def close(self) -> None:
        """End the connection, whatever it does. May be called again, from any thread."""
        if self.connection is not None:
            with suppress(Exception):
                self.connection.close()
            with suppress(Exception):  # fabric does not close one that never authenticated
                self.connection.client.close()


def _give(channel: Any, given: bytes | Path, until: float) -> None:
    with given.open("rb") if isinstance(given, Path) else io.BytesIO(given) as file:
        while piece := file.read(CHUNK_BYTES):
            channel.settimeout(_left_s(until))
            channel.sendall(piece)


def _read(channel: Any, until: float) -> bytes:
    told = b""
    while True:
        channel.settimeout(_left_s(until))
        piece = channel.recv(CHUNK_BYTES)
        if not piece:
            return told
        if len(told) < MAX_ANSWER_BYTES:
            told += piece


def _left_s(until: float) -> float | None:
    if until == math.inf:
        return None
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("it ran into its time limit")
    return left_s


class _OtherKey(Exception):
    """Another host key than the pinned one, of another kind."""


class _Policy:
    """Answers paramiko's question what to do about a host key that it does not know."""

    def __init__(self, remote: Remote) -> None:
        self._remote = remote

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        """Accept it, or raise."""
        self._remote.see(key)


def _no_way(where: str, error: Exception) -> Unreachable:
    errors = getattr(error, "errors", None)  # of paramiko: what was tried, by address
    reason = next(iter(errors.values())) if errors else error
    shut = isinstance(reason, ConnectionRefusedError)
    closed = isinstance(reason, (ConnectionResetError, BrokenPipeError))
    contact = "shut" if shut else "closed" if closed else "silent"
    return Unreachable(contact, f"{where}: {words_of(reason)}")


def words_of(error: BaseException) -> str:
    """What a person reads of an error of a socket or of paramiko."""
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
