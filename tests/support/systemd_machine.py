"""A machine whose process 1 is systemd, for tests: in namespaces of its own, with a root directory in memory, where no
file, process, network or device of the machine around it can be reached but its programs and our code, to be read.

Ends with `end`; whatever it powers off is itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from services import ROOT

SYSTEMD = Path("/usr/lib/systemd/systemd")
UNITS = Path("/usr/lib/systemd/system")
TAKEN = (
    "poweroff.target",
    "systemd-poweroff.service",
    "sysinit.target",
    "basic.target",
    "shutdown.target",
    "umount.target",
    "final.target",
)
UNIFIED = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
START_S = 60.0
END_S = 20.0
SPACES = ("--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup")

BUILD = r"""#!/bin/sh
# Runs as process 1 of new namespaces: makes a root directory, enters it, lets go of the old one, becomes systemd.
set -e
root=$1 base=$2 code=$3 units=$4 size=$5 shared=$6
mount -t tmpfs -o "size=$size" none "$root"
cd "$root"
mkdir -p usr etc run tmp var/lib var/log proc sys dev opt/ecloud root old
readonly_bind() { mkdir -p ".$2"; mount --bind "$1" ".$2"; mount -o remount,bind,ro ".$2"; }
readonly_bind /usr /usr
for link in bin sbin lib lib32 lib64; do
    if [ -L "/$link" ]; then cp -P "/$link" .; elif [ -d "/$link" ]; then readonly_bind "/$link" "/$link"; fi
done
case $base in /usr|/usr/*) ;; *) readonly_bind "$base" "$base" ;; esac
readonly_bind "$code" /opt/ecloud
[ -z "$shared" ] || { mkdir -p ".$shared"; mount --bind "$shared" ".$shared"; }
for kind in system system-generators; do
    mount -t tmpfs none "usr/lib/systemd/$kind"
done
cp "$units"/* usr/lib/systemd/system/
for file in passwd group nsswitch.conf ld.so.cache; do [ ! -e "/etc/$file" ] || cp "/etc/$file" etc/; done
echo 0123456789abcdef0123456789abcdef >etc/machine-id
echo 'ID=ecloud-test' >etc/os-release
mkdir -p etc/systemd/system
mount -t tmpfs none run
mount -t proc proc proc
for place in proc/sys proc/sysrq-trigger; do
    [ ! -e "$place" ] || { mount --bind "$place" "$place"; mount -o remount,bind,ro "$place"; }
done
# What is a mount already systemd leaves as it is; it would mount all devices and all control groups.
mount -t sysfs -o ro none sys
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs none dev
mkdir dev/shm dev/pts
for device in null zero full random urandom tty; do : >"dev/$device"; mount --bind "/dev/$device" "dev/$device"; done
: >dev/console
hostname ecloud-test
pivot_root . old
umount -l /old
exec env -i container=ecloud-test PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C \
    /usr/lib/systemd/systemd --system --unit=only.target --log-target=console --log-level=info --show-status=no \
    --crash-reboot=no
"""

ONLY = """[Unit]
Description=All of this machine
DefaultDependencies=no
AllowIsolate=yes
"""


class Refused(Exception):
    """No such machine can be made here; the text says what said no."""


class Machine:
    """One such machine, in a directory of its own. `size`: of its disk; `shared`: a directory that it shares with this
    machine."""

    def __init__(self, directory: Path, size: str = "64m", shared: Path | None = None) -> None:
        self.directory = directory
        self._more = [size, str(shared or "")]
        self._cgroup: Path | None = None
        self._outside: subprocess.Popen[bytes] | None = None
        self._first: psutil.Process | None = None
        """Its process 1."""

    def start(self) -> Machine:
        """Up; raises `Refused` where the kernel, or a program that is not there, says no."""
        unified = next((place for place in UNIFIED if (place / "cgroup.controllers").exists()), None)
        if not SYSTEMD.exists() or unified is None or os.geteuid() != 0:
            raise Refused("systemd, control groups of the second version and root are needed")
        units, root = self.directory / "units", self.directory / "root"
        for place in (units, root):
            place.mkdir(parents=True)
        for name in TAKEN:
            (units / name).write_text((UNITS / name).read_text())
        (units / "only.target").write_text(ONLY)
        (self.directory / "build").write_text(BUILD)
        self._cgroup = unified / f"ecloud-test-{os.getpid()}-{id(self)}"
        try:
            self._cgroup.mkdir()
        except OSError as error:
            raise Refused(f"control groups: {error}") from None
        enter = f"echo $$ >'{self._cgroup}/cgroup.procs' && exec \"$@\""
        build = ["/bin/sh", str(self.directory / "build"), str(root), sys.base_prefix, str(ROOT), str(units)]
        build += self._more
        spaces = ["unshare", *SPACES, "--fork", "--kill-child"]
        with (self.directory / "log").open("wb") as log:
            self._outside = subprocess.Popen(
                ["/bin/sh", "-c", enter, "sh", *spaces, *build], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_S
        while not self._is_up():
            if self.is_over or time.monotonic() > deadline:
                self.end()
                raise Refused(f"it does not come up: {self.log.strip()}")
            time.sleep(0.05)
        return self

    def _is_up(self) -> bool:
        assert self._outside is not None
        with contextlib.suppress(psutil.Error):
            inside = psutil.Process(self._outside.pid).children()
            if inside and inside[0].cmdline()[:1] == [str(SYSTEMD)]:
                self._first = inside[0]
                return self.ask("systemctl", "is-system-running")[1].strip() == "running"
        return False

    @property
    def enter(self) -> list[str]:
        """The command before one that is to run there."""
        assert self._first is not None
        return ["nsenter", "-t", str(self._first.pid), *SPACES, "--root", "--wd"]

    def ask(self, *words: str, said: str = "", **variables: str) -> tuple[int, str]:
        """Run a command there, with `said` as its input: its exit code, and all it printed."""
        enter = [*self.enter, "env", "-i"]
        every = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", **variables}
        done = subprocess.run(
            [*enter, *(f"{name}={value}" for name, value in every.items()), *words],
            input=said.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=START_S,
        )  # fmt: skip
        return done.returncode, done.stdout.decode(errors="replace")

    def write(self, path: str, text: str) -> None:
        """A file there, for root alone."""
        code, words = self.ask(
            "sh", "-c", 'umask 077; mkdir -p "$(dirname "$1")"; cat >"$1"', "sh", path, said=text
        )  # fmt: skip
        assert code == 0, words

    def read(self, path: str) -> str:
        """A file there; empty if it does not exist."""
        code, words = self.ask("cat", path)
        return words if code == 0 else ""

    def unit(self, name: str, what: str) -> str:
        """A property of a unit."""
        return self.ask("systemctl", "show", "--value", f"--property={what}", name)[1].strip()

    @property
    def is_over(self) -> bool:
        """Whether it has powered itself off, or was ended."""
        return self._outside is not None and self._outside.poll() is not None

    @property
    def log(self) -> str:
        """What its making and its systemd said."""
        path = self.directory / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def end(self) -> None:
        """Power cut; all its processes end with its first."""
        if self._first is not None:
            with contextlib.suppress(psutil.Error):
                self._first.send_signal(signal.SIGKILL)
        if self._outside is not None:
            if self._first is None:
                self._outside.kill()
            self._outside.wait(END_S)
        deadline = time.monotonic() + END_S
        while self._cgroup is not None and self._cgroup.exists():
            for place, _, _ in os.walk(self._cgroup, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(place)
            assert time.monotonic() < deadline, f"{self._cgroup} cannot be emptied"
            time.sleep(0.02)


def booted(machine: Machine) -> Iterator[Machine]:
    """For a fixture: the machine, once it has booted; it is ended after the test. Skips the test where none can be
    made."""
    try:
        machine.start()
    except Refused as refused:
        pytest.skip(str(refused))
    yield machine
    machine.end()
