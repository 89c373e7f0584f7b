"""Scripts that run on a listed host, as text for its `/bin/sh -s`, and functions that read their output. Pure.

A host keeps `~/.ecloud-hosts/OWNER/`: `code-NAME` for each version of the code that was brought, and a directory for
each process that was started: `vm-NONCE` for a worker that a boss started, `worker-N` and `boss-0` for those of
`admin.py hosts`. Such a directory holds the files, home and log of the process, `run` (the script that starts it),
`process` (its pid and start), `since`, `unit` if systemd runs it, and `ended` once it has ended.
"""

from __future__ import annotations

import base64
import math
import re
import shlex
from collections.abc import Mapping, Sequence

import msgspec

from boss.bootstrap.guest_scripts import find_python
from boss.core.model.cloud_vms import read_nonce
from boss.providers.provider import CloudState, VmFound, VmOrder
from ecloud.model.machine_needs import LEAST_PYTHON, MachineFacts, version

PLACE = ".ecloud-hosts"
STARTS_S = 60
"""A directory without its process counts as starting for this long; after that its start has failed."""
END_GRACE_S = 20
"""Time between TERM, on which a worker ends its tasks, and KILL."""


class Place(msgspec.Struct, frozen=True):
    """A set of processes on a host. `owner`: the cluster, or the deployment of `admin.py hosts`; `root`: their
    directory, below the home unless it begins with a slash; `kind`: `vm`, `worker` or `boss`."""

    owner: str
    root: str = PLACE
    kind: str = "vm"


_HEAD = r"""
umask 077
root=@ROOT@
case $root in /*) ;; *) root="$HOME/$root" ;; esac
place="$root/"@OWNER@
mkdir -p "$place" || exit 1
started() {
    { read -r line < "/proc/$1/stat"; } 2>/dev/null || return 0
    set -- ${line##*) }
    case $1 in Z|X) return 0 ;; esac
    shift 19
    echo "$1"
}
lives() {
    [ -r "$1/process" ] && read -r pid began < "$1/process" && [ -n "$began" ] && [ "$(started "$pid")" = "$began" ]
}
manage() {  # a command of systemd's about the unit of the directory $1
    read -r by < "$1/unit" || return 0
    directory=$1
    shift
    if [ "$by" = user ]; then set -- --user "$@"; fi
    systemctl "$@" "ecloud-"@OWNER@"-${directory##*/}.service" 2>/dev/null
}
forget_unit() {
    [ -e "$1/unit" ] || return 0
    read -r by < "$1/unit"
    manage "$1" disable --quiet
    manage "$1" stop --no-block
    units=/etc/systemd/system
    if [ "$by" = user ]; then units="$HOME/.config/systemd/user"; fi
    rm -f "$units/ecloud-"@OWNER@"-${1##*/}.service" "$1/unit"
    if [ "$by" = user ]; then systemctl --user daemon-reload; else systemctl daemon-reload; fi
}
"""
_MORE_PYTHONS = (
    '/usr/local/bin/python3 "$HOME"/.pyenv/shims/python3 "$HOME"/miniconda3/bin/python3 /opt/conda/bin/python3'
)
"""Where a host may have a Python that is not on the PATH of a shell without login."""
_PROBE = (
    find_python(_MORE_PYTHONS)
    + r"""
echo "home $place"
for code in "$place"/code-*; do [ -d "$code" ] && echo "code ${code##*/code-}"; done
for project in "$place"/project-*; do [ -d "$project" ] && echo "project ${project##*/project-}"; done
set -- $(df -Pm "$place" 2>/dev/null | tail -n 1)
echo "disk ${4:-}"
"""
)
_FACTS = r"""
echo "date $(date +%s)"
echo "name $(uname -n)"
echo "user $(id -un)"
echo "cpus $(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)"
{ read -r load rest < /proc/loadavg && echo "load $load"; } 2>/dev/null
nvidia-smi -L 2>/dev/null | sed -n 's/^GPU [0-9]*: \(.*\) (UUID.*/gpu \1/p'
for runtime in apptainer podman docker ch-run bwrap; do
    command -v $runtime >/dev/null 2>&1 && echo "container $runtime"
done
echo "seen ${SSH_CONNECTION:-}"
units=none
if [ -d /run/systemd/system ] && command -v systemctl >/dev/null; then
    if [ "$(id -u)" = 0 ]; then units=system
    elif [ -e "/var/lib/systemd/linger/$(id -un)" ] && systemctl --user show-environment >/dev/null 2>&1; then
        units=user
    fi
fi
echo "units $units"
rmdir "$place" 2>/dev/null && rmdir "$root" 2>/dev/null  # a look leaves nothing where nothing is
true
"""
_START = r"""
vm="$place/@KIND@-@NUMBER@"
if @IS_THERE@; then echo "there ${pid:-}"; exit 0; fi
mkdir -p "$vm/home" || exit 1
date +%s > "$vm/since"
rm -f "$vm/process" "$vm/ended" "$vm/asked"
@FILES@
printf %s @RUN@ | base64 -d > "$vm/run" && chmod 700 "$vm/run" || exit 1
units=@UNITS@
if [ "$units" = none ]; then
    # The shell around it notes when it ended; it has a session of its own, so that the connection's end ends neither.
    setsid sh -c '"$0/run"; code=$?; date +%s > "$0/ended"; exit $code' "$vm" < /dev/null > "$vm/log" 2>&1 &
else
    directory=/etc/systemd/system user=
    if [ "$units" = user ]; then directory="$HOME/.config/systemd/user" user=--user; fi
    unit="ecloud-"@OWNER@"-@KIND@-@NUMBER@.service"
    echo "$units" > "$vm/unit"
    mkdir -p "$directory" || exit 1
    printf %s @UNIT@ | base64 -d | sed "s|@DIRECTORY@|$vm|g; s|@HOME@|$HOME|g" > "$directory/$unit" || exit 1
    systemctl $user daemon-reload || exit 1
    systemctl $user enable --quiet "$unit" && systemctl $user restart "$unit" || exit 1
fi
n=0
while [ ! -s "$vm/process" ] && [ $n -lt 100 ]; do sleep 0.05; n=$((n+1)); done
[ -s "$vm/process" ] || { tail -n 1 "$vm/log" >&2; exit 1; }
read -r pid began < "$vm/process"
echo "started $pid"
"""
_RUN = r"""#!/bin/sh
umask 077
vm=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd -P) || exit 1
place=${vm%/*}
read -r line < "/proc/$$/stat" && set -- ${line##*) } && shift 19 || exit 1
echo "$$ $1" > "$vm/process.new" && mv "$vm/process.new" "$vm/process" || exit 1
rm -f "$vm/ended"
cd "$place/code-@CODE@" || exit 1
PYTHONPATH="$place/code-@CODE@:$place/code-@CODE@/packages@PATHS@"
export PYTHONPATH
python=@PYTHON@
@LINES@
exec "$python" -m @COMMAND@
"""
_UNIT = """[Unit]
Description=ECLOUD {what}
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart=/bin/sh "@DIRECTORY@/run"
ExecStopPost=/bin/sh -c 'date +%%s > "@DIRECTORY@/ended"'
Environment="HOME=@HOME@"
StandardOutput=append:@DIRECTORY@/log
StandardError=inherit
Restart=on-failure
RestartSec=5
# TERM goes to the agent alone: it ends its tasks itself.
KillMode=mixed
TimeoutStopSec=30
# The agent may limit the memory of its tasks.
Delegate=yes

[Install]
WantedBy={target}
"""
_LIST = r"""
for vm in "$place"/@KIND@-*; do
    [ -d "$vm" ] || continue
    state=gone ended=0 pid=0
    read -r since < "$vm/since" || since=0
    if lives "$vm"; then state=lives
    elif [ ! -e "$vm/process" ] && [ $(($(date +%s) - since)) -lt @STARTS@ ]; then state=starts
    else read -r ended < "$vm/ended" || ended=$(stat -c %Y "$vm/log" || echo "$since")
    fi
    echo "vm ${vm##*/@KIND@-} $state $since $ended $pid"
done 2>/dev/null
echo "listed"
"""
_END = r"""
for vm in @VMS@; do
    vm="$place/@KIND@-$vm"
    lives "$vm" || { forget_unit "$vm"; continue; }
    if [ -e "$vm/unit" ]; then forget_unit "$vm"; continue; fi
    asked=
    [ -r "$vm/asked" ] && read -r asked < "$vm/asked"
    [ -n "$asked" ] || { asked=$(date +%s); echo "$asked" > "$vm/asked"; }
    if [ $(($(date +%s) - asked)) -gt @GRACE@ ]; then kill -KILL "$pid"; else kill -TERM "$pid"; fi
done
echo "asked"
"""
_CLEAR = r"""
for vm in @VMS@; do
    vm="$place/@KIND@-$vm"
    lives "$vm" && continue
    [ -s "$vm/home/spool.jsonl" ] || [ -e "$vm/home/kept" ] || rm -rf "$vm"
done
echo "cleared"
"""


_STATES = {"lives": CloudState.RUNNING, "starts": CloudState.BOOTING, "gone": CloudState.GONE}


class HostProbe(msgspec.Struct, frozen=True):
    """The facts of a host. `python`: version, architecture, libc and its version, and the path; empty if none is new
    enough. `newest`: the version of its newest Python, new enough or not; empty if it has none.

    The fields after `disk_mb` are filled only if requested. `clock`: epoch seconds; `seen`: the four words of
    `$SSH_CONNECTION`; `units`: `system` or `user` if systemd can run the processes, else `none`.
    """

    python: tuple[str, ...] = ()
    newest: str = ""
    home: str = ""
    codes: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    disk_mb: float = math.inf
    clock: float | None = None
    name: str = ""
    user: str = ""
    cpus: int = 0
    load: float = 0.0
    gpus: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    units: str = "none"

    def facts(self, home: str = "") -> MachineFacts:
        """Return what a worker needs. `home`: why it cannot have its directory there, or ""."""
        return MachineFacts(self.newest, self.disk_mb, home, self.clock)


def filled(place: Place, script: str, **values: str) -> bytes:
    """Return a script for a place: with its beginning, and with the names in @...@ replaced."""
    text = _HEAD + script
    own = {"OWNER": shlex.quote(place.owner), "ROOT": shlex.quote(place.root), "KIND": place.kind}
    for name, value in {**own, **values}.items():
        text = text.replace(f"@{name}@", value)
    return text.encode()


def probe_script(place: Place, with_facts: bool = False) -> bytes:
    """Finds the facts of a host; `with_facts`: also its clock, size, load and the addresses of the connection."""
    return filled(place, _PROBE + (_FACTS if with_facts else ""))


def read_probe(printed: str) -> HostProbe:
    """Read the output of `probe_script`."""
    words: dict[str, list[str]] = {}
    for line in printed.splitlines():
        key, _, rest = line.partition(" ")
        words.setdefault(key, []).append(rest.strip())

    def one(key: str) -> str:
        return words.get(key, [""])[0]

    python = tuple(one("python").split(" ", 4))
    disk, date, load = one("disk"), one("date"), one("load")
    return HostProbe(
        python if len(python) == 5 and version(python[0]) >= LEAST_PYTHON else (),
        python[0],
        one("home"),
        tuple(words.get("code", ())),
        tuple(words.get("project", ())),
        float(disk) if disk.isdigit() else math.inf,
        float(date) if date.isdigit() else None,
        one("name"),
        one("user"),
        int(one("cpus")) if one("cpus").isdigit() else 0,
        float(load) if re.fullmatch(r"[0-9.]+", load) else 0.0,
        tuple(words.get("gpu", ())),
        tuple(words.get("container", ())),
        tuple(one("seen").split()),
        one("units") or "none",
    )


class Program(msgspec.Struct, frozen=True):
    """What to start on a host. `code`: the name of the bundle; `command`: the words after `python -m`, as shell;
    `files`: written into its directory, by name; `lines`: shell before it; `paths`: further directories for Python;
    `units`: as `HostProbe.units`."""

    code: str
    python: str
    command: str
    files: Mapping[str, bytes] = {}
    lines: str = ""
    paths: tuple[str, ...] = ()
    units: str = "none"
    is_there: str = '[ -e "$vm/process" ]'
    """Shell condition: if it is true, the process was started before and is not started again."""


IS_ALIVE = 'lives "$vm"'


def unit_text(place: Place, number: int | str, units: str) -> str:
    """Return the systemd unit of a process. The host replaces `@DIRECTORY@` and `@HOME@`. `units`: system or user."""
    target = "default.target" if units == "user" else "multi-user.target"
    return _UNIT.format(what=f"{place.kind} {number} of {place.owner}", target=target)


def start_script(place: Place, number: int | str, program: Program) -> bytes:
    """Starts a process once: a second run reports that it exists. `number`: the boot nonce, for the worker of a VM."""
    assert re.fullmatch(r"[0-9a-f]+", program.code), program.code
    run = _RUN
    for name, value in (
        ("CODE", program.code), ("PYTHON", shlex.quote(program.python)), ("LINES", program.lines),
        ("PATHS", "".join(f":{path}" for path in program.paths)), ("COMMAND", program.command),
    ):  # fmt: skip
        run = run.replace(f"@{name}@", value)
    files = "\n".join(
        f'printf %s {_encoded(data)} | base64 -d > "$vm/{name}" || exit 1' for name, data in program.files.items()
    )
    unit = unit_text(place, number, program.units)
    return filled(
        place, _START, NUMBER=str(number), IS_THERE=program.is_there, FILES=files, RUN=_encoded(run.encode()),
        UNITS=program.units, UNIT=_encoded(unit.encode()),
    )  # fmt: skip


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode() or "''"


def worker_program(
    order: VmOrder, access: bytes, code: str, python: str, boss_gone_exit_s: float, keep_dirs: bool
) -> Program:
    """Return the worker of an intent."""
    size = order.size
    words = ["--vm_no", str(order.vm_no), "--boot_nonce", order.boot_nonce]
    words += ["--cpus", f"{size.get('cpus', 1.0):g}", "--memory_mb", f"{size.get('memory_mb', 0.0):g}"]
    words += ["--gpus", ",".join(str(index) for index in range(int(size.get("gpus", 0.0))))]
    for resource, amount in size.items():
        if resource not in ("cpus", "memory_mb", "gpus"):
            words += ["--resource", f"{resource}={amount:g}"]
    for label in order.labels:
        words += ["--label", label]
    words += ["--boss_gone_exit_s", f"{boss_gone_exit_s:g}", *(["--keep_dirs"] if keep_dirs else [])]
    command = f'worker "$vm/access" --home "$vm/home" {shlex.join(words)}'
    return Program(code, python, command, {"access": access})


def list_script(place: Place) -> bytes:
    """Lists the processes of that place."""
    return filled(place, _LIST, STARTS=str(STARTS_S))


def read_list(host: str, printed: str) -> list[VmFound] | None:
    """Read the output of `list_script` on that host; None if it was cut off."""
    found = []
    lines = printed.splitlines()
    for line in lines:
        words = line.split()
        intent = read_nonce(words[1]) if len(words) == 6 and words[0] == "vm" else None
        if intent is not None and words[2] in _STATES:
            since, ended = _number(words[3]), _number(words[4])
            state = _STATES[words[2]]
            found.append(
                VmFound(intent[0], cloud_id_of(host, words[1]), state, "process", address_of(host), since, "",
                        max(since, ended) if state is CloudState.GONE else 0.0, intent[1])
            )  # fmt: skip
    return found if lines and lines[-1] == "listed" else None


def end_script(place: Place, nonces: Sequence[str]) -> bytes:
    """Asks workers to end; kills those that were asked more than `END_GRACE_S` ago."""
    return filled(place, _END, VMS=" ".join(nonces), GRACE=str(END_GRACE_S))


def clear_script(place: Place, nonces: Sequence[str]) -> bytes:
    """Removes the files of workers that have ended, except undelivered outcomes."""
    return filled(place, _CLEAR, VMS=" ".join(nonces))


def cloud_id_of(host: str, nonce: str) -> str:
    """Return the id of a worker on a host: `user@host:port#1790000000000-7`."""
    return f"{host}#{nonce}"


def nonce_of(cloud_id: str) -> str:
    """Return the last part of a worker's id, which names its directory."""
    return cloud_id.rpartition("#")[2]


def address_of(host: str) -> str:
    """Return the host of `user@host:port`."""
    return host.rpartition("@")[2].partition(":")[0]


def _number(text: str) -> float:
    return float(text) if text.isdigit() else 0.0
