"""A broker of the boss's own: a private Mosquitto as its child, else a broker from pip in a process of its own.

It listens on this machine only, or for other machines at one address, with TLS and a password. In front of the broker
from pip, which has neither, stands `tls_door`. Owns configuration, password, certificate, port and processes. The port
is kept in the home, so that workers find the broker again after a restart. The broker ends with the boss.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from boss.shell.broker_certificate import certificate_for
from datastore.problem import INPUT_WRONG, PartAway
from ecloud.client.broker import BrokerAddress
from ecloud.config import this_host
from ecloud.config.home import Home
from ecloud.config.processes import die_with_parent
from ecloud.config.secrets import write_private
from ecloud.config.settings import ROOT

log = logging.getLogger("boss")
HOST = "127.0.0.1"
USER = "ecloud"
START_S = 10.0
MAX_QUEUED_BYTES = 512 * 1024 * 1024
"""Messages for one stalled subscriber. Beyond its default of 1,000, Mosquitto drops messages and reports nothing."""
IN_FLIGHT = 1_000
PBKDF2_ROUNDS = 101
"""Mosquitto's own; the password is random and 32 bytes long."""


class BrokerWontStart(PartAway):
    """The embedded broker does not start; the text says why and what to do."""


class EmbeddedBroker:
    """One private broker. `listen`: the address at which its peers reach it. `tls`: that address may have a ":PORT",
    and all peers use it, the boss, too; without TLS the boss connects on this machine, whatever the address."""

    def __init__(self, home: Home, listen: str = HOST, tls: bool = False) -> None:
        self._home = home
        self._listen, self._wanted_port = split_address(listen) if tls else (listen, 0)
        self._host = self._listen if tls else HOST
        self._tls = tls
        self._door: subprocess.Popen[bytes] | None = None
        self._pem = ""
        self._directory = home.broker
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        door_lives = self._door is None or self._door.poll() is None
        return self._process is not None and self._process.poll() is None and door_lives

    def start(self) -> BrokerAddress:
        """Start it and wait until it listens. Raises `BrokerWontStart`."""
        if self._tls:
            _require_own(self._host)
        self._end_left_over()
        self._end(self._door)
        self._end(self._process)
        password = self._password()
        self._port = self._choose_port()
        mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
        if self._tls:
            self._write_certificate(password)
        if mosquitto:
            self._process = self._spawn(self._mosquitto(mosquitto, password))
        elif not self._tls:
            self._process = self._spawn(self._from_pip(self._port))
        else:
            behind = _any_port(HOST)
            self._process = self._spawn(self._from_pip(behind))
            self._wait_until_it_listens(self._process, HOST, behind)
            command = [sys.executable, "-m", "boss.shell.tls_door", self._host, str(self._port), str(behind)]
            self._door = self._spawn([*command, str(self._directory)])
        self._write_pids()
        self._wait_until_it_listens(self._door or self._process, self._host, self._port)
        return BrokerAddress(self._host, self._port, USER, password, self._pem, self._tls)

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        with (self._directory / "log").open("ab") as log_file:
            try:
                return subprocess.Popen(
                    command,
                    cwd=ROOT,  # so that `-m boss.shell…` is found wherever the boss was started
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=log_file,
                    preexec_fn=_die_with_boss,
                )
            except OSError as error:
                text = f"the embedded broker {command[0]} cannot be started: {error.strerror}"
                raise BrokerWontStart(text) from None

    def _write_certificate(self, password: str) -> None:
        made = certificate_for(self._host, self._home.secrets)
        self._pem = made.pem
        for name, text in (
            ("tls.pem", made.pem),
            ("tls.key", made.key.read_text()),
            ("password", f"{USER}:{password}"),
        ):
            write_private(self._directory / name, text)

    def stop(self) -> None:
        """End it."""
        self._end(self._door)
        self._end(self._process)
        self._door = self._process = None
        (self._directory / "pid").unlink(missing_ok=True)

    def _end(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def ensure_alive(self) -> bool:
        """Start it again where it died; True where that was needed."""
        if self.is_alive:
            return False
        log.warning("the embedded broker ended: starting it again")
        self.start()
        return True

    # --- its files ----------------------------------------------------------------------------------

    def _password(self) -> str:
        path = self._home.secrets / "broker.password"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(32))
        return path.read_text().strip()

    def _choose_port(self) -> int:
        """The port that was asked for, or that of last time, unless a stranger has it now."""
        path = self._directory / "port"
        if self._wanted_port:
            if not _is_free(self._wanted_port, self._host):
                text = f"port {self._wanted_port} of {self._host} is taken"
                raise BrokerWontStart(text, "name another one: --listen ADDRESS:PORT")
            path.write_text(str(self._wanted_port))
            return self._wanted_port
        with contextlib.suppress(OSError, ValueError):
            port = int(path.read_text())
            if _is_free(port, self._host):
                return port
            log.warning(
                "port %d of the embedded broker is taken: workers of the last start will not find the new port", port
            )
        port = _any_port(self._host)
        path.write_text(str(port))
        return port

    def _mosquitto(self, program: str, password: str) -> list[str]:
        passwords = self._directory / "passwords"
        write_private(passwords, f"{USER}:{_mosquitto_hash(password)}\n")
        config = "\n".join([
            f"listener {self._port} {self._listen}",
            *((f"certfile {self._directory}/tls.pem", f"keyfile {self._directory}/tls.key") if self._tls else ()),
            "allow_anonymous false",
            f"password_file {passwords}",
            "set_tcp_nodelay true",
            "persistence false",
            "max_queued_messages 0",
            f"max_queued_bytes {MAX_QUEUED_BYTES}",
            f"max_inflight_messages {IN_FLIGHT}",
            "log_dest stdout",
            "log_type error",
            "log_type warning",
            f"user {_user_name()}",
            "",
        ])  # fmt: skip
        path = self._directory / "mosquitto.conf"
        write_private(path, config)
        return [program, "-c", str(path)]

    def _from_pip(self, port: int) -> list[str]:
        listen = HOST if self._tls else self._listen
        return [sys.executable, "-m", "boss.shell.pip_broker", str(port), str(self._directory), listen]

    # --- its process --------------------------------------------------------------------------------

    def _write_pids(self) -> None:
        pids = [process.pid for process in (self._process, self._door) if process is not None]
        (self._directory / "pid").write_text(" ".join(map(str, pids)))

    def _end_left_over(self) -> None:
        """A broker that outlived its boss still has our port."""
        with contextlib.suppress(OSError, ValueError):
            for pid in map(int, (self._directory / "pid").read_text().split()):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                if str(self._directory).encode() in command:  # the number may belong to another process by now
                    os.kill(pid, signal.SIGKILL)
            # The kernel closes a dying process's sockets after all else, one thread after the other.
            port = int((self._directory / "port").read_text())
            deadline = time.monotonic() + START_S
            while not _is_free(port, self._host) and time.monotonic() < deadline:
                time.sleep(0.01)

    def _wait_until_it_listens(self, process: subprocess.Popen[bytes], host: str, port: int) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((host, port), 0.5):
                return
            if process.poll() is not None:
                break
            time.sleep(0.01)
        self.stop()
        last = (self._directory / "log").read_text(errors="replace").strip().split("\n")[-1]
        raise BrokerWontStart(f"the embedded broker does not start: {last or 'no output'}; see {self._directory}/log")


def split_address(text: str) -> tuple[str, int]:
    """Host and port of "HOST", "HOST:PORT", "[V6]:PORT" or an IPv6 address; port 0 where none is named.

    Raises `BrokerWontStart`.
    """
    found = re.fullmatch(
        r"\[([0-9A-Fa-f:.]+)\](?::(\d+))?|([^:\[\]\s]+)(?::(\d+))?|([0-9A-Fa-f]*:[0-9A-Fa-f:]*:.*)", text
    )
    if found is None:
        raise BrokerWontStart(f"--listen {text}: expected ADDRESS or ADDRESS:PORT", exit_code=INPUT_WRONG)
    host, port = found[1] or found[3] or found[5], int(found[2] or found[4] or 0)
    if host in ("0.0.0.0", "::"):
        text = f"--listen {host}: access files need one address by which other machines reach this one"
        raise BrokerWontStart(text, f"for example --listen {this_host.addresses()[0]}", INPUT_WRONG)
    if port > 65_535:
        raise BrokerWontStart(f"--listen {text}: a port is 65535 at most", exit_code=INPUT_WRONG)
    return host, port


def _require_own(host: str) -> None:
    try:
        _any_port(host)
    except OSError:
        found = ", ".join(this_host.addresses())
        raise BrokerWontStart(
            f"--listen {host} is not an address of this machine", f"it has {found}", INPUT_WRONG
        ) from None


def _socket_at(host: str, port: int) -> socket.socket:
    """Bound to the address. Raises `OSError`."""
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    probe = socket.socket(family, kind, protocol)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(where)
    except BaseException:
        probe.close()
        raise
    return probe


def _any_port(host: str) -> int:
    with _socket_at(host, 0) as probe:
        return int(probe.getsockname()[1])


def _is_free(port: int, host: str = HOST) -> bool:
    if not 0 < port <= 65_535:  # a number from a file that may be damaged
        return False
    try:
        _socket_at(host, port).close()
    except OSError:
        return False
    return True


def _mosquitto_hash(password: str) -> str:
    """What mosquitto_passwd writes: PBKDF2-HMAC-SHA512, type 7."""
    salt = secrets.token_bytes(12)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, PBKDF2_ROUNDS)
    salted, digested = (base64.b64encode(data).decode() for data in (salt, digest))
    return f"$7${PBKDF2_ROUNDS}${salted}${digested}"


def _user_name() -> str:
    """Mosquitto started by root would become `mosquitto` and could not read our files; other users stay themselves."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # an account without an entry, as in many containers
        return "root"


def _die_with_boss() -> None:
    # One fork at the start of a small process: the rule against preexec_fn is for tasks.
    die_with_parent()
