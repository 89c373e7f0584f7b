"""Bytes by a channel of fabric: the boss's way to the datastore, over one TCP connection that is kept alive.

The host must show the key that stands in `known_hosts`, and nothing of the user's own configuration counts. Imported by
the boss alone; fabric itself is loaded with the first connection. A worker has no fabric and never gets here.
"""

from __future__ import annotations

import base64
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from datastore.keys import fingerprint
from datastore.ssh.carrier import TOLD_BYTES, Carrier, Lost, changed, explain, not_authorised, stalled
from datastore.ssh.datastore import ALIVE_S, CIPHERS, CONNECT_S, Access, SshAddress

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
    """By a channel of fabric; blocks until that was opened. See `datastore.ssh.datastore.Carry`."""
    logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # its thread logs each failure with its stack
    patience_s, began_s = min(CONNECT_S, stall_s), time.monotonic()
    connection = _made(address, access, where, patience_s)
    try:
        connection.connect_kwargs["sock"] = _dialled(address, where, patience_s)
        channel = _opened(connection, where, patience_s)
        with _ended_after(patience_s, connection.transport):
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
        self._connection = connection  # kept: paramiko ends a transport whose client nobody holds
        self._transport = connection.transport
        self._channel = channel
        self._where = where
        self._came = memoryview(b"")
        self._told = b""

    def read_into(self, view: memoryview, wait_s: float) -> int | None:
        """See `Carrier`. What came is taken whole: to take little of much costs paramiko a copy of the rest."""
        if not self._came:
            self._channel.settimeout(wait_s)
            try:
                with _told_as_cut():
                    self._listen()
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
                with _told_as_cut():
                    return int(self._channel.send(data))
            except TimeoutError:  # the window is full
                continue
            except ConnectionError:
                self.kill()  # of a frame a part may be sent: nothing can follow it
                raise

    def kill(self) -> None:
        """See `Carrier`. Not by the client: two threads that close it at once are too many for it."""
        self._transport.close()

    def bury(self) -> Lost:
        """See `Carrier`."""
        self._listen()
        self._transport.join(ENDS_S)
        return explain(self._where, self._told.decode("utf-8", "replace"))

    def _listen(self) -> None:
        """What the other end complains of; taken in time, as it fills the same window."""
        while self._channel.recv_stderr_ready():
            self._told = (self._told + self._channel.recv_stderr(TOLD_BYTES))[-TOLD_BYTES:]


@contextmanager
def _told_as_cut() -> Iterator[None]:
    """Also keys that were not renewed in time: paramiko tells it by an error of no kind that others raise."""
    import paramiko  # type: ignore[import-untyped]

    try:
        yield
    except (EOFError, paramiko.SSHException) as error:
        raise ConnectionError(f"the connection was cut: {_words(error)}") from error


# --- connecting -----------------------------------------------------------------------------------------


def _made(address: SshAddress, access: Access, where: str, patience_s: float) -> Connection:
    """Not connected yet; knows the one key that the host may show. Raises `Lost`."""
    import fabric
    import paramiko

    options = {
        "transport_factory": _transport, "key_filename": str(access.key), "look_for_keys": False, "allow_agent": False,
        "banner_timeout": patience_s, "auth_timeout": patience_s, "channel_timeout": patience_s,
    }  # fmt: skip
    config = fabric.Config(lazy=True, overrides={"load_ssh_configs": False, "timeouts": {"connect": patience_s}})
    connection = fabric.Connection(address.host, address.user, address.port, config=config, connect_kwargs=options)
    try:
        _, kind, blob = access.known_hosts.read_text().split()[:3]
        pinned = paramiko.PKey.from_type_string(kind, base64.b64decode(blob))
    except (OSError, ValueError, paramiko.SSHException, paramiko.UnknownKeyType) as error:
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


@contextmanager
def _ended_after(patience_s: float, transport: Any) -> Iterator[None]:
    """What paramiko waits for without end is ended then."""
    timer = threading.Timer(patience_s, transport.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _words(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
