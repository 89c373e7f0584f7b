"""Bytes by a channel of fabric: the boss's way to the datastore, over one TCP connection that is kept alive.

The host must show the key that stands in `known_hosts`, and nothing of the user's own configuration counts. Imported by
the boss alone; fabric itself is loaded with the first connection. A worker has no fabric and never gets here.
"""

from __future__ import annotations

import base64
import logging
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from datastore.carrier import TOLD_BYTES, Carrier, Lost, changed, explain, not_authorised, stalled
from datastore.keys import fingerprint
from datastore.ssh import ALIVE_S, CIPHERS, CONNECT_S, Access, SshAddress

if TYPE_CHECKING:
    from fabric import Connection  # type: ignore[import-untyped]

WINDOW_BYTES = 16 << 20
"""What may come in before we say that we took it: 80 MB/s at 0.2 s there and back."""
PACKET_BYTES = 1 << 17
"""Each packet costs Python 0.1 ms, whatever its size; OpenSSH takes none above 256 KB."""
READ_BYTES = 1 << 18
GONE_MS = 60_000
"""What was sent and not acknowledged for so long ends the connection."""

ENDS_S = 2.0
"""Its thread looks every 0.1 s whether it should end."""


def by_fabric(
    address: SshAddress, access: Access, where: str, stall_s: float, *, by_sftp: bool = False
) -> FabricCarrier:
    """By a channel of fabric; blocks until that was opened. See `datastore.ssh.Carry`."""
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # its thread logs each failure with its stack
    patience_s, began_s = min(CONNECT_S, stall_s), time.monotonic()
    connection = _made(address, access, where, patience_s)
    try:
        connection.connect_kwargs["sock"] = _dialled(address, where, patience_s)
        channel = _opened(connection, where, patience_s)
        if by_sftp:
            channel.invoke_subsystem("sftp")
        else:
            channel.exec_command(access.gate or "gate")
    except Exception as error:  # paramiko raises many kinds, some of them bare
        connection.client.close()
        if isinstance(error, Lost):
            raise
        if time.monotonic() - began_s >= patience_s:
            raise stalled(where, patience_s) from error
        raise Lost(f"{where}: {_words(error)}") from error
    return FabricCarrier(connection, channel, where)


class FabricCarrier(Carrier):
    """A channel on which a command was started, and the connection that is its own."""

    def __init__(self, connection: Connection, channel: Any, where: str) -> None:
        self._connection = connection
        self._transport = connection.transport
        self._channel = channel
        self._where = where
        self._came = memoryview(b"")
        self._told = b""

    def read_into(self, view: memoryview, wait_s: float) -> int | None:
        """See `Carrier`. What came is taken whole: to take little of much costs paramiko a copy of the rest."""
        if not self._came:
            self._listen()
            self._channel.settimeout(wait_s)
            try:
                self._came = memoryview(self._channel.recv(READ_BYTES))
            except TimeoutError:
                return None
        count = min(len(view), len(self._came))
        view[:count] = self._came[:count]
        self._came = self._came[count:]
        return count

    def write(self, data: memoryview) -> int:
        """See `Carrier`."""
        while True:
            try:
                return int(self._channel.send(data))
            except TimeoutError:  # the window is full
                continue
            except EOFError as error:
                raise ConnectionError("the connection was cut") from error

    def kill(self) -> None:
        """See `Carrier`."""
        self._connection.client.close()

    def bury(self) -> Lost:
        """See `Carrier`."""
        self._listen()
        self._transport.join(ENDS_S)
        return explain(self._where, self._told.decode("utf-8", "replace"))

    def _listen(self) -> None:
        """What the other end complains of; taken in time, as it fills the same window."""
        while self._channel.recv_stderr_ready():
            self._told = (self._told + self._channel.recv_stderr(TOLD_BYTES))[-TOLD_BYTES:]


# --- connecting -----------------------------------------------------------------------------------------


def _made(address: SshAddress, access: Access, where: str, patience_s: float) -> Connection:
    """Not connected yet; knows the one key that the host may show. Raises `Lost`."""
    import fabric
    import paramiko  # type: ignore[import-untyped]

    options = {
        "transport_factory": _transport, "key_filename": str(access.key), "look_for_keys": False, "allow_agent": False,
        "banner_timeout": patience_s, "auth_timeout": patience_s, "channel_timeout": patience_s,
    }  # fmt: skip
    config = fabric.Config(overrides={"load_ssh_configs": False, "timeouts": {"connect": patience_s}})
    connection = fabric.Connection(address.host, address.user, address.port, config=config, connect_kwargs=options)
    try:
        _, kind, blob = access.known_hosts.read_text().split()[:3]
        pinned = paramiko.PKey.from_type_string(kind, base64.b64decode(blob))
    except (OSError, ValueError, paramiko.SSHException) as error:
        raise Lost(f"the pinned host key of {where} can't be read: {_words(error)}", True) from error
    name = address.host if address.port == 22 else f"[{address.host}]:{address.port}"
    connection.client.get_host_keys().add(name, kind, pinned)
    connection.client.set_missing_host_key_policy(paramiko.RejectPolicy())
    return connection


def _dialled(address: SshAddress, where: str, patience_s: float) -> socket.socket:
    try:
        dialled = socket.create_connection((address.host, address.port), patience_s)
    except socket.gaierror as error:
        raise Lost(f"the name of {where} can't be resolved: {error.strerror}") from error
    except OSError as error:
        text = f"connect to {address.host} port {address.port}: {error.strerror or 'no answer'}"
        raise Lost(f"{where}: {text}") from error
    # Without it each request waits 40 ms for the acknowledgement of the one before.
    dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with suppress(OSError):
        dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_MS)
    return dialled


def _transport(sock: socket.socket, **options: Any) -> Any:
    import paramiko

    transport = paramiko.Transport(
        sock, default_window_size=WINDOW_BYTES, default_max_packet_size=PACKET_BYTES, **options
    )
    security = transport.get_security_options()
    first = [cipher for cipher in CIPHERS.split(",") if cipher in security.ciphers]
    security.ciphers = first + [cipher for cipher in security.ciphers if cipher not in first]
    return transport


def _opened(connection: Connection, where: str, patience_s: float) -> Any:
    """A channel of a connection that was let in. Raises `Lost`."""
    import paramiko

    try:
        connection.open()
    except paramiko.BadHostKeyException as error:
        raise changed(where, fingerprint(error.key.get_base64())) from error
    except paramiko.AuthenticationException as error:
        # Of the same kind: that it was cut meanwhile, or was too slow.
        if "EOF" in str(error) or "timeout" in str(error):
            raise Lost(f"{where}: {_words(error)}") from error
        raise not_authorised(where) from error
    connection.transport.set_keepalive(ALIVE_S)
    return connection.transport.open_session(timeout=patience_s)


def _words(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
