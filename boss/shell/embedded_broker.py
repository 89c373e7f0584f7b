"""A broker of the boss's own: a private Mosquitto as its child, else a broker from pip in a process of its own. It
is for this machine only, unless hosts use it (`admin.py hosts up`).

Owns its configuration, password, port and process. The port is kept in the home, so that workers find the broker again
after a restart. The broker ends with the boss.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from datastore.problem import PartAway
from ecloud.client.broker import BrokerAddress
from ecloud.config.home import Home
from ecloud.config.processes import die_with_parent
from ecloud.config.secrets import write_private
from ecloud.config.settings import ROOT

log = logging.getLogger("boss")
HOST = "127.0.0.1"
USER = "ecloud"
START_S = 10.0
MAX_QUEUED_BYTES = 512 * 1024 * 1024
"""Messages for one stalled subscriber. Mosquitto's default of 1,000 messages is dropped from without a word (facts)."""
IN_FLIGHT = 1_000
PBKDF2_ROUNDS = 101
"""Mosquitto's own; the password is random and 32 bytes long."""


class BrokerWontStart(PartAway):
    """The embedded broker does not start; the text says why and what to do."""


class EmbeddedBroker:
    """One private broker. `listen`: the address that it listens on; the boss itself speaks with it on this machine."""

    def __init__(self, home: Home, listen: str = HOST) -> None:
        self._home = home
        self._listen = listen
        self._directory = home.broker
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> BrokerAddress:
        """Start it and wait until it listens. Raises `BrokerWontStart`."""
        self._end_left_over()
        password = self._password()
        self._port = self._choose_port()
        mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
        command = self._mosquitto(mosquitto, password) if mosquitto else self._from_pip()
        log_file = (self._directory / "log").open("ab")
        try:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,  # so that `-m boss.shell.pip_broker` is found wherever the boss was started
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                preexec_fn=_die_with_boss,
            )
        except OSError as error:
            raise BrokerWontStart(f"the embedded broker {command[0]} can't be started: {error.strerror}") from None
        finally:
            log_file.close()
        self._write_pid(self._process.pid)
        self._wait_until_it_listens()
        return BrokerAddress(HOST, self._port, USER, password)

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(3)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        (self._directory / "pid").unlink(missing_ok=True)

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
        """The port of last time, unless a stranger has it now."""
        path = self._directory / "port"
        with contextlib.suppress(OSError, ValueError):
            port = int(path.read_text())
            if _is_free(port):
                return port
            log.warning(
                "port %d of the embedded broker is taken: workers of the last start will not find the new one", port
            )
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        path.write_text(str(port))
        return port

    def _mosquitto(self, program: str, password: str) -> list[str]:
        passwords = self._directory / "passwords"
        write_private(passwords, f"{USER}:{_mosquitto_hash(password)}\n")
        config = "\n".join([
            f"listener {self._port} {self._listen}",
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

    def _from_pip(self) -> list[str]:
        return [sys.executable, "-m", "boss.shell.pip_broker", str(self._port), str(self._directory), self._listen]

    # --- its process --------------------------------------------------------------------------------

    def _write_pid(self, pid: int) -> None:
        (self._directory / "pid").write_text(str(pid))

    def _end_left_over(self) -> None:
        """A broker that outlived its boss still has our port."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self._directory / "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if str(self._directory).encode() in command:  # the number may belong to another process by now
                os.kill(pid, signal.SIGKILL)
                # The kernel closes a dying process's sockets after all else, one thread after the other.
                port = int((self._directory / "port").read_text())
                deadline = time.monotonic() + START_S
                while not _is_free(port) and time.monotonic() < deadline:
                    time.sleep(0.01)

    def _wait_until_it_listens(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection((HOST, self._port), 0.5):
                return
            if self._process.poll() is not None:
                break
            time.sleep(0.01)
        self.stop()
        last = (self._directory / "log").read_text(errors="replace").strip().split("\n")[-1]
        raise BrokerWontStart(
            f"the embedded broker does not start: {last or 'no word from it'}; see {self._directory}/log"
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            return False
    return port > 0


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
