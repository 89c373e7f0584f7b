"""What runs on a listed host, as text for its `/bin/sh -s`, and how the answers are read. Pure.

A host keeps `~/.ecloud-hosts/CLUSTER/`: `code-NAME` for each version of the code that was brought, and `vm-N` for each
worker: its access file, home, log, `process` (its number and start), `since`, and `ended` once it has ended.
"""

from __future__ import annotations

import base64
import math
import re
import shlex
from collections.abc import Sequence

import msgspec

from boss.providers.provider import CloudState, VmFound, VmOrder

PLACE = ".ecloud-hosts"
STARTS_S = 60
"""A worker's directory without its process is one that starts for so long; then its start broke off."""
END_GRACE_S = 20
"""Between TERM, which lets a worker end what it runs, and KILL."""

_HEAD = r"""
umask 077
cluster=@CLUSTER@
place="$HOME/@PLACE@/$cluster"
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
"""
_PROBE = r"""
for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10 /usr/local/bin/python3 \
    "$HOME"/.pyenv/shims/python3 "$HOME"/miniconda3/bin/python3 /opt/conda/bin/python3; do
    said=$("$candidate" -c '
import platform, sys
libc = platform.libc_ver()
print("%d.%d" % sys.version_info[:2], platform.machine(), libc[0] or "musl", libc[1] or "1.2", sys.executable)
sys.exit(sys.version_info < (3, 10))' 2>/dev/null) && { echo "python $said"; break; }
done
echo "home $place"
for code in "$place"/code-*; do [ -d "$code" ] && echo "code ${code##*/code-}"; done
set -- $(df -Pm "$place" 2>/dev/null | tail -n 1)
echo "disk ${4:-}"
"""
_START = r"""
vm="$place/vm-@VM@"
if [ -e "$vm/process" ]; then echo "there"; exit 0; fi
mkdir -p "$vm" || exit 1
printf %s @ACCESS@ | base64 -d > "$vm/access" || exit 1
date +%s > "$vm/since"
cd "$place/code-@CODE@" || exit 1
PYTHONPATH="$place/code-@CODE@:$place/code-@CODE@/packages"; export PYTHONPATH
# The shell around it notes when it ended; it has a session of its own, so that the connection's end ends neither.
setsid sh -c '"$@" & echo $! > "$0/pid"; wait $!; code=$?; date +%s > "$0/ended"; exit $code' "$vm" \
    @PYTHON@ -m worker "$vm/access" --home "$vm/home" @OPTIONS@ < /dev/null > "$vm/log" 2>&1 &
n=0
while [ ! -s "$vm/pid" ] && [ $n -lt 100 ]; do sleep 0.05; n=$((n+1)); done
read -r pid < "$vm/pid" || exit 1
echo "$pid $(started "$pid")" > "$vm/process.new" && mv "$vm/process.new" "$vm/process" || exit 1
echo "started"
"""
_LIST = r"""
for vm in "$place"/vm-*; do
    [ -d "$vm" ] || continue
    state=gone ended=0
    read -r since < "$vm/since" || since=0
    if lives "$vm"; then state=lives
    elif [ ! -e "$vm/process" ] && [ $(($(date +%s) - since)) -lt @STARTS@ ]; then state=starts
    else read -r ended < "$vm/ended" || ended=$(stat -c %Y "$vm/log" || echo "$since")
    fi
    echo "vm ${vm##*/vm-} $state $since $ended"
done 2>/dev/null
echo "listed"
"""
_END = r"""
for vm in @VMS@; do
    vm="$place/vm-$vm"
    lives "$vm" || continue
    asked=
    [ -r "$vm/asked" ] && read -r asked < "$vm/asked"
    [ -n "$asked" ] || { asked=$(date +%s); echo "$asked" > "$vm/asked"; }
    if [ $(($(date +%s) - asked)) -gt @GRACE@ ]; then kill -KILL "$pid"; else kill -TERM "$pid"; fi
done
echo "asked"
"""
_CLEAR = r"""
for vm in @VMS@; do
    vm="$place/vm-$vm"
    lives "$vm" && continue
    [ -s "$vm/home/spool.jsonl" ] || [ -e "$vm/home/kept" ] || rm -rf "$vm"
done
echo "cleared"
"""


_STATES = {"lives": CloudState.RUNNING, "starts": CloudState.BOOTING, "gone": CloudState.GONE}


class HostProbe(msgspec.Struct, frozen=True):
    """What a host has. `python`: version, architecture, libc and its version, and the path; empty where none serves."""

    python: tuple[str, ...] = ()
    home: str = ""
    codes: tuple[str, ...] = ()
    disk_mb: float = math.inf


def _filled(cluster_id: str, script: str, **values: str) -> bytes:
    text = _HEAD + script
    for name, value in {"CLUSTER": shlex.quote(cluster_id), "PLACE": PLACE, **values}.items():
        text = text.replace(f"@{name}@", value)
    return text.encode()


def probe_script(cluster_id: str) -> bytes:
    """Looks what the host has."""
    return _filled(cluster_id, _PROBE)


def read_probe(printed: str) -> HostProbe:
    """What `probe_script` printed."""
    words: dict[str, list[str]] = {}
    for line in printed.splitlines():
        key, _, rest = line.partition(" ")
        words.setdefault(key, []).append(rest)
    python = tuple(words.get("python", [""])[0].split(" ", 4))
    disk = words.get("disk", [""])[0]
    return HostProbe(
        python if len(python) == 5 else (),
        words.get("home", [""])[0],
        tuple(words.get("code", ())),
        float(disk) if disk.isdigit() else math.inf,
    )


def start_script(
    cluster_id: str, order: VmOrder, access: bytes, code: str, python: str, boss_gone_exit_s: float, keep_dirs: bool
) -> bytes:
    """Starts a worker, once: run again it says that it is there."""
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
    assert re.fullmatch(r"[0-9a-f]+", code), code
    return _filled(
        cluster_id, _START, VM=str(order.vm_no), ACCESS=base64.b64encode(access).decode(), CODE=code,
        PYTHON=shlex.quote(python), OPTIONS=shlex.join(words),
    )  # fmt: skip


def list_script(cluster_id: str) -> bytes:
    """Lists the workers of a cluster."""
    return _filled(cluster_id, _LIST, STARTS=str(STARTS_S))


def read_list(host: str, printed: str) -> list[VmFound] | None:
    """What `list_script` printed on that host; None where it was cut off."""
    found = []
    lines = printed.splitlines()
    for line in lines:
        words = line.split()
        if len(words) == 5 and words[0] == "vm" and words[1].isdigit() and words[2] in _STATES:
            vm_no, since, ended = int(words[1]), _number(words[3]), _number(words[4])
            state = _STATES[words[2]]
            found.append(
                VmFound(vm_no, cloud_id_of(host, vm_no), state, "process", address_of(host), since, "",
                        max(since, ended) if state is CloudState.GONE else 0.0)
            )  # fmt: skip
    return found if lines and lines[-1] == "listed" else None


def end_script(cluster_id: str, vm_nos: Sequence[int]) -> bytes:
    """Asks workers to end; those that were asked long ago are killed."""
    return _filled(cluster_id, _END, VMS=" ".join(map(str, vm_nos)), GRACE=str(END_GRACE_S))


def clear_script(cluster_id: str, vm_nos: Sequence[int]) -> bytes:
    """Removes what workers that have ended left, but outcomes that were not delivered."""
    return _filled(cluster_id, _CLEAR, VMS=" ".join(map(str, vm_nos)))


def cloud_id_of(host: str, vm_no: int) -> str:
    """A worker of a host: `user@host:port#7`."""
    return f"{host}#{vm_no}"


def address_of(host: str) -> str:
    """The host of `user@host:port`."""
    return host.rpartition("@")[2].partition(":")[0]


def _number(text: str) -> float:
    return float(text) if text.isdigit() else 0.0
