"""Guests of the OpenNebula double: real processes in a root directory of their own. A guest boots as one-context boots
it: the context is written as `one_env`, unescaped, and sourced; sshd starts, where the guest has one; START_SCRIPT runs
as a program of its own."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Container, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
END_S = 20.0


class Guest:
    """One booted VM. `image`: "ecloud" has the code in /opt/ecloud, "bare" has not; neither "bare no python" nor "bare
    old python" has a Python of 3.10. `ssh_port`: of an sshd of its own at its address, with a host key of its own, that
    accepts the key in SSH_PUBLIC_KEY; 0 for none."""

    def __init__(self, directory: Path, address: str, image: str, ssh_port: int = 0) -> None:
        self.root = directory
        self.address = address
        self.ssh_port = ssh_port
        self.context: dict[str, str] = {}
        self._script: subprocess.Popen[bytes] | None = None
        self._sshd: subprocess.Popen[bytes] | None = None
        self._path = f"{directory}/sbin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        for part in ("opt", "sbin", "run/one-context", "var/lib", "tmp", "root"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        if image == "ecloud" and not (directory / "opt/ecloud").exists():
            (directory / "opt/ecloud").symlink_to(ROOT)
        poweroff = directory / "sbin/poweroff"
        poweroff.write_text('#!/bin/sh\ntouch "$ECLOUD_ROOT/powered_off"\n')
        poweroff.chmod(0o755)
        if image.endswith("python"):
            self._have_no_python(old=image.endswith("old python"))

    def _have_no_python(self, old: bool) -> None:
        """All programs of this machine but Python; or one that says that it is a 3.6."""
        programs = self.root / "bin"
        programs.mkdir(exist_ok=True)
        for place in ("/usr/bin", "/bin", "/usr/sbin", "/sbin"):
            for program in Path(place).iterdir():
                link = programs / program.name
                if not program.name.startswith(("python", "pydoc")) and not link.is_symlink():
                    link.symlink_to(program)
        self._path = f"{self.root}/sbin:{programs}"
        if old:
            (self.root / "old").mkdir(exist_ok=True)
            (self.root / "old/sitecustomize.py").write_text('import sys\nsys.version_info = (3, 6, 8, "final", 0)\n')
            python = self.root / "sbin/python3"
            python.write_text(f"#!/bin/sh\nPYTHONPATH='{self.root}/old' exec '{sys.executable}' \"$@\"\n")
            python.chmod(0o755)

    def boot(self, context: Mapping[str, str]) -> None:
        """Run START_SCRIPT with this context; also what a guest does when a NIC is attached later."""
        self.context = dict(context)
        place = self.root / "run/one-context"
        # As the real one does it: nothing is escaped, so a quote in a value would be executed.
        lines = "".join(f'export {name}="{value}"\n' for name, value in context.items())
        _replace(place / "one_env", lines)
        if self.ssh_port:
            self._start_sshd(context.get("SSH_PUBLIC_KEY", ""))
        text = context.get("START_SCRIPT") or base64.b64decode(context.get("START_SCRIPT_BASE64", "")).decode()
        if not text:
            return
        script = place / "start_script"
        _replace(script, text, 0o700)
        by = "" if text.startswith("#!") else "bash "
        with (self.root / "journal").open("ab") as journal:
            process = subprocess.Popen(
                ["/bin/sh", "-c", f". {place}/one_env; exec {by}{script}"],
                cwd=place,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=journal,
                stderr=journal,
                start_new_session=True,
            )
        self._script = process
        threading.Thread(target=process.wait, daemon=True).start()

    def run(self, script: str, **variables: str) -> None:
        """Run a script as a user would who logged in by SSH."""
        environment = {**self._environment, **variables}
        subprocess.run(["/bin/sh"], input=script.encode(), env=environment, cwd=self.root, check=True, timeout=60)

    def ask(self, *words: str) -> tuple[int, str]:
        """Run a command there: its exit code, and all it printed."""
        done = subprocess.run(
            words, env=self._environment, cwd=self.root, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stdout.decode(errors="replace")

    def _start_sshd(self, keys: str) -> None:
        place = self.root / "etc/ssh"
        place.mkdir(parents=True, exist_ok=True)
        (place / "authorized_keys").write_text(f"{keys}\n")
        if self._sshd is not None and self._sshd.poll() is None:
            return
        if not (place / "host_key").exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / "host_key")], check=True)
        lines = [
            f"ListenAddress {self.address}",
            f"Port {self.ssh_port}",
            f"HostKey {place}/host_key",
            f"AuthorizedKeysFile {place}/authorized_keys {self.root}/root/.ssh/authorized_keys",
            # A shell that is entered by SSH reads the .bashrc of its home.
            f"SetEnv HOME={self.root}/root " + " ".join(f"{name}={value}" for name, value in self._environment.items()),
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "Subsystem sftp internal-sftp",
            "MaxStartups 300",
        ]
        (place / "sshd_config").write_text("\n".join(lines) + "\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        command = self.sshd_command()
        with (self.root / "sshd.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._sshd = process
        threading.Thread(target=process.wait, daemon=True).start()

    def sshd_command(self) -> list[str]:
        """What starts its sshd, whose configuration is written."""
        program = shutil.which("sshd") or "/usr/sbin/sshd"
        return [program, "-D", "-e", "-f", str(self.root / "etc/ssh/sshd_config")]

    def change_host_key(self) -> None:
        """Another machine answers at its address: the same guest with a new host key."""
        assert self._sshd is not None
        self._sshd.kill()
        self._sshd.wait()
        for name in ("host_key", "host_key.pub"):
            (self.root / "etc/ssh" / name).unlink()
        self._start_sshd((self.root / "etc/ssh/authorized_keys").read_text())

    @property
    def host_key(self) -> str:
        """Its public host key, as a line of known_hosts has it."""
        return " ".join((self.root / "etc/ssh/host_key.pub").read_text().split()[:2])

    @property
    def _environment(self) -> dict[str, str]:
        return {"PATH": self._path, "LANG": "C", "ECLOUD_ROOT": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"}

    @property
    def start_log(self) -> str:
        """What our start script said."""
        path = self.root / "var/lib/ecloud/start.log"
        return path.read_text() if path.exists() else ""

    @property
    def journal(self) -> str:
        """What the guest's own log holds."""
        path = self.root / "journal"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def has_powered_off(self) -> bool:
        """Whether a process in it called `poweroff`."""
        return (self.root / "powered_off").exists()

    @property
    def start_script_is_over(self) -> bool:
        """Whether START_SCRIPT has run to its end."""
        return self._script is not None and self._script.poll() is not None

    def processes(self) -> dict[int, str]:
        """Every process that works in this guest: number and command line."""
        found = {}
        mark, place = f"ECLOUD_ROOT={self.root}\0".encode(), str(self.root) + "/"
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                ours = mark in (entry / "environ").read_bytes() + b"\0" or place in command
                if command and (ours or os.readlink(entry / "cwd").startswith(place)):
                    found[int(entry.name)] = command
            except OSError:
                continue
        return found

    def agents(self) -> dict[int, str]:
        """The agents in it."""
        found = {pid: command for pid, command in self.processes().items() if " -m worker " in f"{command} "}
        return {pid: command for pid, command in found.items() if not is_copy(pid, found)}

    def shut_down(self) -> None:
        """TERM to all its processes at once, as an init without units sends it when the machine goes down."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def end(self, number: int = signal.SIGKILL) -> None:
        """Power cut, or, with TERM, what a shutdown does; returns when no process is left."""
        deadline = time.monotonic() + END_S
        while left := self.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if time.monotonic() > deadline:
                raise AssertionError(f"processes of a guest cannot be ended: {left}")
            time.sleep(0.02)
            number = signal.SIGKILL


def is_copy(pid: int, others: Container[int]) -> bool:
    """Whether it has ended, or is the child of one of the others: one that begins a program is its parent's copy for a
    moment, command line and all."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1]) in others
    except OSError:
        return True


def _replace(path: Path, text: str, mode: int = 0o600) -> None:
    """At once: a run of an earlier boot may be about to read it."""
    made = path.with_suffix(".new")
    made.write_text(text)
    made.chmod(mode)
    made.replace(path)
