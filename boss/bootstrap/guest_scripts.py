"""Scripts that the boss runs in a guest over SSH, as text, and functions that read their output. Pure.

A guest has sshd, a shell and, to become a worker, a Python of 3.10 or later; nothing else is required. Both scripts may
run any number of times.
"""

from __future__ import annotations

import re
import shlex

import msgspec

from boss.bootstrap.start_script import HOME
from ecloud.model.boot_diagnosis import LOG_CHARS, Visit
from ecloud.model.machine_needs import LEAST_PYTHON

OWN_SCRIPT = "the template's own start script"
"""Name for the template's own start script while it still runs: no worker starts before it ends."""

_FIND_PYTHON = r"""
python= older=
for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10 @MORE@; do
    said=$("$candidate" -c '
import platform, sys
libc = platform.libc_ver()
print("%d.%d" % sys.version_info[:2], platform.machine(), libc[0] or "musl", libc[1] or "1.2", sys.executable)
sys.exit(sys.version_info < @LEAST@)' 2>/dev/null) && python=$candidate
    if [ -n "$said" ] && { [ -n "$python" ] || [ -z "$older" ]; }; then older=$said; fi
    if [ -n "$python" ]; then break; fi
done
echo "python $older"
""".replace("@LEAST@", str(LEAST_PYTHON))


def find_python(more: str = "") -> str:
    """Return shell that prints `python VERSION ARCHITECTURE LIBC LIBC_VERSION PATH` of the first Python that is new
    enough, else of any, and sets `python` to one that is new enough. `more`: further candidates, as shell words."""
    return _FIND_PYTHON.replace(" @MORE@", f" {more}" if more else "")


PROBE = (
    r"""
root=${ECLOUD_ROOT:-}
@HOME@
tell() { printf '%s %s\n' "$1" "$2"; }
limited() { if command -v timeout >/dev/null; then timeout "$@"; else shift; "$@"; fi; }
tell date "$(date +%s)"
tell home "$home"
for file in "$root/run/one-context/one_env" "$root/var/run/one-context/one_env"; do
    if [ -r "$file" ]; then
        tell context yes
        (
            . "$file" >/dev/null 2>&1
            tell vm "${ECLOUD_VM_NO:-}"
            tell nonce "${ECLOUD_BOOT_NONCE:-}"
            boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
            steps=$(cat "$home/steps" 2>/dev/null)
            case "$steps " in "boot $boot"*" own"*) over=yes ;; *) over= ;; esac
            # Root ran it, in a home that is shut to others.
            if [ "$home" != "$root/var/lib/ecloud" ]; then over=yes; fi
            if [ -n "${ECLOUD_OWN_SCRIPT:-}${ECLOUD_OWN_SCRIPT_BASE64:-}" ] && [ -z "$over" ]; then
                tell starting "@OWN@"
            fi
        )
        boss=$(. "$file" >/dev/null 2>&1; printf '%s' "${ECLOUD_BOSS_BASE64:-}" | base64 -d 2>/dev/null)
        break
    elif [ -d "${file%/*}" ] && [ "$(id -u)" != 0 ]; then
        tell context yes
        tell unfit "its context is shut to $(id -un): let it be root, or let it use sudo without a password"
        break
    fi
done
if [ -z "$root" ] && command -v systemctl >/dev/null; then
    for unit in one-context one-contextd; do
        now=$(limited 5 systemctl is-active $unit 2>/dev/null)
        if [ "$now" = activating ]; then tell starting "$unit is activating"; fi
    done
fi
if [ -z "$root" ] && command -v cloud-init >/dev/null; then
    case $(limited 5 cloud-init status 2>/dev/null) in *running*) tell starting "cloud-init is running" ;; esac
fi
@PYTHON@if [ -n "$home" ] && (printf '#!/bin/sh\n' >"$home/try") 2>/dev/null; then
    chmod 700 "$home/try" 2>/dev/null
    "$home/try" 2>/dev/null || tell unfit "programs in $home cannot be run: it is mounted with noexec"
    rm -f "$home/try"
    set -- $(df -Pm "$home" 2>/dev/null | tail -n 1)
    tell disk "${4:-}"
else
    tell unfit "$root/var/lib/ecloud cannot be written by $(id -un), nor its own home: let it be root, or make room"
fi
if [ -n "$python" ] && [ -n "${boss:-}" ]; then
    limited 12 "$python" -c '
import socket, sys
host, _, port = sys.argv[1].rpartition(":")
try:
    found = socket.getaddrinfo(host, int(port), 0, socket.SOCK_STREAM)
except OSError:
    print("dns no")
    sys.exit()
print("dns yes")
for family, kind, number, _, address in found[:2]:
    try:
        with socket.socket(family, kind, number) as attempt:
            attempt.settimeout(4)
            attempt.connect(address)
            print("broker yes")
            sys.exit()
    except OSError:
        pass
print("broker no")' "$boss" || [ $? != 124 ] || tell dns no
fi
if [ -z "$root" ] && [ "$(id -u)" = 0 ] && [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; then
    if systemctl is-active --quiet ecloud-worker; then tell agent yes; fi
else
    pid=$(cat "$home/agent.pid" 2>/dev/null)
    said=$(tr '\0' ' ' 2>/dev/null <"/proc/${pid:-none}/cmdline")
    case $said in *"$home/agent"*) tell agent yes ;; esac
fi
for code in "$home"/code-*; do
    if [ -r "$code/worker/start.sh" ]; then tell code "${code##*/code-}"; fi
done
echo log
for file in start.log agent.log; do tail -n 25 "$home/$file" 2>/dev/null | tail -c 3000; done
exit 0
""".replace("@OWN@", OWN_SCRIPT)
    .replace("@HOME@", HOME)
    .replace("@PYTHON@", find_python().lstrip())
)
"""Prints the fields of Visit: a name and a value a line, then `log` and the tails of the logs. Changes nothing, except
that it makes the home."""

_UNPACK = """
import os, shutil, sys, tarfile, tempfile, time
home, name, kind = sys.argv[1:]
os.makedirs(home, 0o700, exist_ok=True)
for left in os.listdir(home):
    path = os.path.join(home, left)
    if left.startswith("new-") and time.time() - os.stat(path).st_mtime > 3600:
        shutil.rmtree(path, True)
place = tempfile.mkdtemp(prefix="new-", dir=home)
try:
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as archive:
        archive.extractall(place, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    target = os.path.join(home, kind + "-" + name)
    try:
        os.rename(place, target)
    except OSError:
        if not os.path.isdir(target):
            raise
except (OSError, EOFError, tarfile.TarError) as error:
    sys.exit("%s: %s" % (type(error).__name__, error))
finally:
    shutil.rmtree(place, True)
"""
"""Unpacks an archive from stdin, completely or not at all."""


class Probed(msgspec.Struct, frozen=True):
    """A guest as reported by `PROBE`. `date`: its clock, epoch seconds; `words`: of its Python, as printed; `home`: a
    worker's directory there; `codes`: bundles that the guest has."""

    visit: Visit
    date: float | None
    python: tuple[str, ...]
    home: str
    codes: tuple[str, ...]


def read_probe(text: str) -> Probed:
    """Read the output of `PROBE`. Ignores unknown names; missing values are unknown."""
    head, _, log = f"\n{text}".partition("\nlog\n")
    said: dict[str, list[str]] = {}
    for line in head.splitlines():
        word, _, value = line.partition(" ")
        if value.strip():
            said.setdefault(word, []).append(value.strip())

    def one(word: str) -> str:
        return said.get(word, [""])[-1]

    python = tuple(one("python").split())
    visit = Visit(
        contact="ok",
        python=python[0] if python else "",
        context="context" in said,
        vm=one("vm"),
        boot_nonce=one("nonce"),
        starting=", ".join(said.get("starting", ())),
        disk_mb=_number(one("disk")),
        home=one("unfit"),
        dns={"yes": True, "no": False}.get(one("dns")),
        broker={"yes": True, "no": False}.get(one("broker")),
        agent=one("agent") == "yes",
        log=log.strip()[-LOG_CHARS:],
    )
    return Probed(visit, _number(one("date")), python, one("home"), tuple(said.get("code", ())))


def unpack_command(python: str, home: str, name: str, kind: str = "code") -> str:
    """Return the command that unpacks an archive from its input as `home/kind-name`."""
    words = shlex.join([python, "-c", _UNPACK, home, name, kind])
    return f"umask 077; exec {words}"


def start_command(home: str, name: str) -> str:
    """Return the command that runs the start script from its input, with the code that was brought to `home`."""
    assert re.fullmatch(r"[0-9a-f]+", name), name
    return f"ECLOUD_COPIED_CODE={shlex.quote(f'{home}/code-{name}')} exec sh -s"


def as_root(command: str) -> str:
    """Return a command that runs the same as root if `sudo` works without a password, else as the login user."""
    words = f"sh -c {shlex.quote(command)}"
    may = '[ "$(id -u)" != 0 ] && sudo -n true </dev/null >/dev/null 2>&1'
    return f'if {may}; then exec sudo -n env ECLOUD_ROOT="${{ECLOUD_ROOT:-}}" {words}; else exec {words}; fi'


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
