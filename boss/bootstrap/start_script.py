"""The script that turns a booted guest into a worker: the START_SCRIPT of an OpenNebula guest.

Pure text. It starts `worker/start.sh` of the image's code as a unit of its own and returns immediately, so that it
does not delay the guest's boot. If the image has no ECLOUD, the boss brings it by SSH and runs the same script again
(`boss/bootstrap/visit.py`). The guest runs it at each boot **and whenever a NIC or disk is attached**, so a second run
does nothing. Everything specific to a VM is in variables of the context (`variables`), which the guest exports; all
text is in Base64, because the guest sources them unescaped.

The start script of the VM's template runs before the agent, each time as before.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence

from datastore.problem import Problem

CODE_DIRECTORY = "/opt/ecloud"
"""Directory of ECLOUD in an image that has it."""
MAX_VALUE_BYTES = 120_000
"""Limit for one variable. The guest exports each variable, and with 131,072 bytes every `exec` fails."""
MAX_CONTEXT_BYTES = 1_000_000
"""Limit for all variables together: half of what Linux accepts as arguments and environment."""
_SAFE = re.compile(r"[A-Za-z0-9._:+-]*\Z")


class TooLarge(Problem):
    """A context that no guest could export: the text names the variable, its size, and the limit."""


HOME = r"""home=
for place in "$root/var/lib/ecloud" "${XDG_DATA_HOME:-${HOME:-/nonexistent}/.local/share}/ecloud"; do
    if (umask 077; mkdir -p "$place") 2>/dev/null && [ -w "$place" ]; then home=$place; break; fi
    if [ "$(id -u)" = 0 ]; then break; fi
done"""
"""Shell code that finds a worker's directory: the machine's directories for root, else the user's own; empty if neither
is possible."""

SCRIPT = r"""#!/bin/sh
# Makes this machine a worker of an ECLOUD cluster. Safe to run twice; what it does stands in $home/start.log.
# ECLOUD_ROOT: a directory that stands for /; empty on a real machine. ECLOUD_COPIED_CODE: where the boss, if it runs
# this by SSH after the boot, has put the code. Who is not root has a home of his own for it.
umask 077
root=${ECLOUD_ROOT:-}
if [ -z "${ECLOUD_ACCESS_BASE64:-}" ]; then
    for file in "$root/run/one-context/one_env" "$root/var/run/one-context/one_env"; do
        if [ -r "$file" ]; then . "$file"; break; fi
    done
fi
@HOME@
if [ -z "$home" ]; then echo "neither /var/lib/ecloud nor a place in ${HOME:-a home} can be written"; exit 1; fi
say() { echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) $*" | tee -a "$home/start.log"; }
boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
step() {  # when something was done first since the machine started, in seconds of its own: below the boot's id
    [ "$(head -n 1 "$home/steps" 2>/dev/null)" = "boot $boot" ] || echo "boot $boot" >"$home/steps"
    grep -q " $1\$" "$home/steps" || { read -r now rest </proc/uptime && echo "$now $1" >>"$home/steps"; }
}
step context
decode() { printf '%s' "$1" | base64 -d; }

own() {  # the template's own start script, run as the guest would have run it
    if [ -n "${ECLOUD_OWN_SCRIPT:-}" ]; then
        printf '%s\n' "$ECLOUD_OWN_SCRIPT" >"$home/own_script"
    elif [ -n "${ECLOUD_OWN_SCRIPT_BASE64:-}" ]; then
        decode "$ECLOUD_OWN_SCRIPT_BASE64" >"$home/own_script"
    else
        return 0
    fi
    chmod 700 "$home/own_script"
    case $(head -c 2 "$home/own_script") in
        '#!') "$home/own_script" ;;
        *) if command -v bash >/dev/null; then bash "$home/own_script"; else sh "$home/own_script"; fi ;;
    esac || say "the template's own start script failed with exit code $?; continuing"
}

running() {  # whether the agent of this very boot order is alive
    if [ "$units" = yes ]; then
        systemctl is-active --quiet ecloud-worker
    else
        pid=$(cat "$home/agent.pid" 2>/dev/null) && [ -n "$pid" ] && tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" |
            grep -q -- "$home/agent"
    fi
}

units=no
if [ -z "$root" ] && [ "$(id -u)" = 0 ] && [ -d /run/systemd/system ] && command -v systemd-run >/dev/null; then
    units=yes
fi
if [ -z "${ECLOUD_COPIED_CODE:-}" ]; then own; step own; fi
# One run at a time looks whether there is an agent and starts it: who makes the directory. Named after this boot, so
# that none of an earlier boot is in the way; one left behind by a run that was killed is so for a moment only.
lock=$home/starting-$boot
tries=0
until mkdir "$lock" 2>/dev/null || [ "$tries" -ge 20 ]; do tries=$((tries + 1)); sleep 1; done
trap 'rmdir "$lock" 2>/dev/null' EXIT
if running; then say "the agent runs already"; exit 0; fi
copied=${ECLOUD_COPIED_CODE:-}
if [ -n "${ECLOUD_CODE_BY_SSH:-}" ]; then
    # After a reboot what was brought before the last one is there still.
    [ -z "$copied" ] || echo "$copied" >"$home/copied_code"
    copied=$(cat "$home/copied_code" 2>/dev/null)
    if [ -z "$copied" ]; then say "waiting for the boss, which brings the code by SSH"; exit 0; fi
fi
code=${copied:-$root${ECLOUD_CODE:-/opt/ecloud}}
if [ -r "$code/worker/start.sh" ]; then
    step code
else
    say "there is no ECLOUD in $code of this image: use an image that has it, or one that the boss reaches by SSH"
    exit 1
fi
decode "${ECLOUD_ACCESS_BASE64:-}" >"$home/access.new" && mv "$home/access.new" "$home/access"
decode "${ECLOUD_OPTIONS_BASE64:-}" >"$home/options.new" && mv "$home/options.new" "$home/options"
if [ ! -s "$home/access" ]; then
    say "the context holds no access file: was it changed by hand?"
    exit 1
fi
persons=/root
if [ "$(id -u)" != 0 ]; then persons=${HOME:-$home}; fi
cat >"$home/agent" <<END
#!/bin/sh
# Runs the agent, again when it crashes. When it has left, this machine is not needed: powers it off.
ECLOUD_ROOT='$root'
HOME=\${HOME:-$persons}
export ECLOUD_ROOT HOME
set --
while IFS= read -r option; do set -- "\$@" "\$option"; done <'$home/options'
crashes=0
# Told to end: this machine goes down, or the unit is stopped. Nothing waits then, and nothing is powered off.
told=
trap 'told=yes; kill -TERM "\$agent" 2>/dev/null' TERM INT
pause() {
    sleep "\$1" &
    wait "\$!"
    if [ "\$told" = yes ]; then kill "\$!" 2>/dev/null; exit 0; fi
}
while [ "\$crashes" -lt 5 ] && [ -z "\$told" ]; do
    sh '$code/worker/start.sh' '$home/access' --home '$home/worker' --boot_steps '$home/steps' "\$@" &
    agent=\$!
    [ -z "\$told" ] || kill -TERM "\$agent"
    wait "\$agent"
    exit_code=\$?
    while kill -0 "\$agent" 2>/dev/null; do wait "\$agent"; exit_code=\$?; done
    echo "\$(date -u +%Y-%m-%dT%H:%M:%SZ) the agent left with exit code \$exit_code" >>'$home/start.log'
    if [ "\$told" = yes ]; then exit 0; fi
    if [ "\$exit_code" = 0 ]; then
        pause ${ECLOUD_POWEROFF_AFTER_S:-60}
        if [ '$units' = yes ]; then exec systemctl poweroff; else exec poweroff; fi
    fi
    crashes=\$((crashes + 1))
    pause 5
done
END
chmod 700 "$home/agent"
if [ "$units" = yes ]; then
    systemctl reset-failed ecloud-worker 2>/dev/null
    systemd-run --quiet --collect --unit=ecloud-worker --property=KillMode=mixed \
        --property=StandardOutput="append:$home/agent.log" --property=StandardError="append:$home/agent.log" \
        "$home/agent"
    result=$?
else
    # Without the context's variables, which hold the key: tasks inherit what the agent has. A unit has none of them.
    session=
    if command -v setsid >/dev/null; then session=setsid; fi
    nohup env -i PATH="$PATH" LANG="${LANG:-C}" $session "$home/agent" </dev/null >>"$home/agent.log" 2>&1 &
    echo $! >"$home/agent.pid"
    result=0
    # Until the new process is what it will be: the next run knows it by its command line.
    tries=0
    until running || [ "$tries" -ge 10 ]; do tries=$((tries + 1)); sleep 1; done
fi
if [ "$result" = 0 ]; then say "started the agent"; else say "the agent cannot be started"; fi
exit "$result"
""".replace("@HOME@", HOME)


def encoded(text: str | bytes) -> str:
    """Encode as Base64 in one line, which no shell misreads."""
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def variables(
    *,
    cluster_id: str,
    vm_no: int,
    boot_nonce: str,
    access: bytes,
    boss: str,
    options: Sequence[str],
    code: str = CODE_DIRECTORY,
    poweroff_after_s: float = 60.0,
) -> dict[str, str]:
    """Return the variables that the context of one VM gets besides the script, by name.

    `access`: its access file's bytes; `boss`: host:port of its broker, for people and probes; `options`: further
    options of `python -m worker`; `code`: directory of ECLOUD in the image, empty if the boss brings it;
    `poweroff_after_s`: delay of the power-off after the agent has ended.
    """
    for name, value in (("cluster id", cluster_id), ("boot nonce", boot_nonce)):
        assert _SAFE.match(value), f"a {name} with characters that are special to a shell: {value!r}"
    assert not any("\n" in option for option in options), options
    every = [*options, "--vm_no", str(vm_no), "--boot_nonce", boot_nonce]
    return {
        "ECLOUD_CLUSTER_ID": cluster_id,
        "ECLOUD_VM_NO": str(vm_no),
        "ECLOUD_BOOT_NONCE": boot_nonce,
        "ECLOUD_BOSS_BASE64": encoded(boss),
        "ECLOUD_ACCESS_BASE64": encoded(access),
        "ECLOUD_OPTIONS_BASE64": encoded("".join(f"{option}\n" for option in every)),
        **({"ECLOUD_CODE": _plain(code)} if code else {"ECLOUD_CODE_BY_SSH": "yes"}),
        "ECLOUD_POWEROFF_AFTER_S": f"{poweroff_after_s:g}",
    }


def merged_context(own: Mapping[str, str], ours: Mapping[str, str], script: str = SCRIPT) -> dict[str, str]:
    """Return the template's own context with ours added. Our start script replaces its own, and runs it. Raises
    `TooLarge`."""
    merged = {name: value for name, value in own.items() if name not in ("START_SCRIPT", "START_SCRIPT_BASE64")}
    # A guest that has both runs START_SCRIPT and ignores the other.
    if own.get("START_SCRIPT"):
        merged["ECLOUD_OWN_SCRIPT"] = own["START_SCRIPT"]
    elif own.get("START_SCRIPT_BASE64"):
        merged["ECLOUD_OWN_SCRIPT_BASE64"] = own["START_SCRIPT_BASE64"]
    merged.update(ours)
    merged["START_SCRIPT_BASE64"] = encoded(script)
    total = 0
    for name, value in merged.items():
        size = len(name) + len(value.encode()) + 2
        total += size
        if size > MAX_VALUE_BYTES:
            raise TooLarge(f"the context's {name} has {size} bytes; a guest exports {MAX_VALUE_BYTES} at most")
    if total > MAX_CONTEXT_BYTES:
        raise TooLarge(f"the context has {total} bytes; a guest exports {MAX_CONTEXT_BYTES} at most")
    return merged


def _plain(path: str) -> str:
    assert re.fullmatch(r"/[A-Za-z0-9._/+-]*", path), f"a path with characters that are special to a shell: {path!r}"
    return path
