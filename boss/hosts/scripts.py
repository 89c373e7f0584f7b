"""Scripts that `admin.py hosts` runs on a host, as text for its `/bin/sh -s`, in addition to those of
`boss.providers.ssh_hosts_scripts`. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

import msgspec

from boss.providers.ssh_hosts_scripts import Place, filled

BOSS = "boss-0"
BOSS_READY_S = 60

_END_ALL = r"""
count=0 killed=0
for signal in TERM KILL; do
    left=
    for vm in "$place"/@KIND@-*; do
        [ -d "$vm" ] || continue
        lives "$vm" || { forget_unit "$vm"; continue; }
        left=yes
        if [ "$signal" = KILL ]; then killed=$((killed + 1)); else count=$((count + 1)); fi
        if [ -e "$vm/unit" ] && [ "$signal" = TERM ]; then forget_unit "$vm"; else kill -$signal "$pid" 2>/dev/null; fi
    done
    n=0
    while [ -n "$left" ] && [ $n -lt @TENTHS@ ]; do
        sleep 0.1
        n=$((n + 1)) left=
        for vm in "$place"/@KIND@-*; do if lives "$vm"; then left=yes; fi; done
    done
done
echo "ended $count $killed"
for vm in "$place"/@KIND@-*; do
    [ -d "$vm" ] || continue
    if lives "$vm"; then echo "left ${vm##*/} $pid"; left=yes; fi
    if [ -s "$vm/home/spool.jsonl" ]; then echo "kept ${vm##*/}"; fi
done
if [ @PURGE@ = yes ] && [ -z "$left" ]; then
    rm -rf "$place" && { rmdir "$root" 2>/dev/null; echo "purged"; }
fi
echo "done"
"""
_FORGET_KEYS = r"""
keys="$HOME/.ssh/authorized_keys"
for name in datastore.key.pub datastore.authority.pub; do
    read -r kind blob rest < @SECRETS@/"$name" && [ -n "$blob" ] && [ -e "$keys" ] || continue
    left=$(grep -vF "$blob" "$keys")
    if [ $? -lt 2 ]; then printf '%s' "${left:+$left
}" > "$keys"; fi
done 2>/dev/null
"""
_READY = r"""
vm="$place/boss-0"
n=0
while [ ! -s "$vm/home/boss.pid" ] && lives "$vm" && [ $n -lt @TENTHS@ ]; do sleep 0.1; n=$((n + 1)); done
if [ -s "$vm/home/boss.pid" ]; then echo "ready"; exit 0; fi
tail -n 1 "$vm/log" >&2
exit 1
"""
_ADMIN = r"""
vm="$place/boss-0"
read -r code < "$vm/code" && read -r python < "$vm/python" || { echo "no boss was started here" >&2; exit 3; }
PYTHONPATH="$place/code-$code:$place/code-$code/packages"
ECLOUD_HOME="$vm/home" ECLOUD_SETTINGS="$vm/settings.py"
export PYTHONPATH ECLOUD_HOME ECLOUD_SETTINGS
"$python" "$place/code-$code/admin.py" @WORDS@ </dev/null
"""
_RUN_MODULE = r"""
vm="$place/boss-0"
read -r code < "$vm/code" && read -r python < "$vm/python" || { echo "no boss was started here" >&2; exit 3; }
cd "$place/project-@PROJECT@/"@PACKAGE@ || exit 3
PYTHONPATH="$place/project-@PROJECT@:$place/code-$code:$place/code-$code/packages"
ECLOUD_ACCESS="$vm/home/client.access" ECLOUD_SETTINGS="$vm/settings.py" PYTHONUNBUFFERED=1
export PYTHONPATH ECLOUD_ACCESS ECLOUD_SETTINGS PYTHONUNBUFFERED
exec "$python" -m @MODULE@ @WORDS@
"""
_FETCH = r"""
read -r python < "$place/boss-0/python" && cd "$place/project-@PROJECT@/"@PACKAGE@ || exit 3
"$python" -c '
import glob, os, sys, tarfile
every = {name for pattern in sys.argv[1:] for name in glob.glob(pattern, recursive=True)}
names = sorted(filter(os.path.isfile, every))
with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
    for name in names:
        archive.add(name)
' @WORDS@
"""
_REACH = """import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).close()
except OSError as error:
    sys.exit(str(error.strerror or error))
"""
_FREE_PORTS = """import socket
probes = [socket.socket() for _ in range(2)]
for probe in probes:
    probe.bind(("127.0.0.1", 0))
print("ports", *(probe.getsockname()[1] for probe in probes))
"""


class Ended(msgspec.Struct, frozen=True):
    """The result of `end_all_script`. `left`: processes that do not end; `kept`: workers with outcomes that the boss
    has not acknowledged; `is_whole`: whether the script ran to its end."""

    count: int = 0
    killed: int = 0
    left: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    purged: bool = False
    is_whole: bool = False


def end_all_script(place: Place, grace_s: float, purge: bool) -> bytes:
    """Sends TERM to every process of a place, KILL to those that still live after `grace_s`; `purge`: then removes the
    owner's directory."""
    assert re.fullmatch(r"h[0-9a-f]{12}", place.owner), place.owner
    return filled(place, _END_ALL, TENTHS=str(int(grace_s * 10)), PURGE="yes" if purge else "no")


def read_ended(printed: str) -> Ended:
    """Read the output of `end_all_script`."""
    lines = [line.split() for line in printed.splitlines() if line.strip()]
    counts = next((words for words in lines if words[0] == "ended" and len(words) == 3), ["", "0", "0"])
    return Ended(
        int(counts[1]),
        int(counts[2]),
        tuple(" ".join(words[1:]) for words in lines if words[0] == "left"),
        tuple(words[1] for words in lines if words[0] == "kept"),
        ["purged"] in lines,
        lines[-1:] == [["done"]],
    )


def forget_keys_script(place: Place, secrets: str) -> bytes:
    """Removes the keys of a boss from the account's `authorized_keys`. `secrets`: the directory of that boss's
    secrets."""
    return filled(place, _FORGET_KEYS, SECRETS=shlex.quote(secrets))


def ready_script(place: Place) -> bytes:
    """Waits until the boss of a place leads; prints the last line of its output if it does not."""
    return filled(place, _READY, TENTHS=str(BOSS_READY_S * 10))


def admin_script(place: Place, words: Sequence[str]) -> bytes:
    """Runs `admin.py` on the machine of the boss of a place."""
    return filled(place, _ADMIN, WORDS=shlex.join(words))


def module_script(place: Place, project: str, module: str, words: Sequence[str]) -> bytes:
    """Runs a module of the project on the machine of the boss of a place."""
    return filled(
        place,
        _RUN_MODULE,
        PROJECT=project,
        PACKAGE=shlex.quote(module.partition(".")[0]),
        MODULE=shlex.quote(module),
        WORDS=shlex.join(words),
    )


def fetch_script(place: Place, project: str, package: str, patterns: Sequence[str]) -> bytes:
    """Prints a tar archive of the project's files that match."""
    return filled(place, _FETCH, PROJECT=project, PACKAGE=shlex.quote(package), WORDS=shlex.join(patterns))


def reach_command(python: str, host: str, port: int) -> str:
    """Fails with a reason if that port cannot be reached."""
    return shlex.join([python, "-c", _REACH, host, str(port)])


def ports_command(python: str) -> str:
    """Prints two free ports of the loopback address."""
    return shlex.join([python, "-c", _FREE_PORTS])


def read_ports(printed: str) -> tuple[int, int] | None:
    """Read the output of `ports_command`."""
    found = re.search(r"^ports (\d+) (\d+)$", printed, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None
