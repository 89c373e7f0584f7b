"""How many connections a datastore's sshd takes in at once: read from what its listener says of itself, else from its
configuration. Nothing needs root there; what cannot be read is unknown, not guessed."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

READ_S = 30.0
USUAL_STARTUPS = 10
"""`MaxStartups` by default."""
SCRIPT = """
p=$PPID; n=0
while [ "$p" -gt 1 ] && [ "$n" -lt 9 ]; do
  cat "/proc/$p/cmdline"; echo
  while read -r key value; do [ "$key" = PPid: ] && p=$value && break; done < "/proc/$p/status" || break
  n=$((n+1))
done 2>/dev/null
echo CONFIGURATION
cat /etc/ssh/sshd_config /etc/ssh/sshd_config.d/*.conf 2>/dev/null
"""
_LISTENER = re.compile(r"\[listener\] \d+ of (\d+)-\d+ startups")
_SETTING = re.compile(r"^\s*maxstartups\s*[\s=]\s*\"?(\d+)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Limits:
    """`startups`: connections that may begin at the same moment before some are turned away. `source`: its origin."""

    startups: int
    source: str


def read_limits(command: list[str]) -> Limits | None:
    """What sshd allows; None where that cannot be read. `command` starts a shell there."""
    try:
        done = subprocess.run(command, input=SCRIPT.encode(), capture_output=True, timeout=READ_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return understand(done.stdout.decode("utf-8", "replace"))


def understand(told: str) -> Limits | None:
    """What the script printed."""
    processes, _, configuration = told.partition("CONFIGURATION\n")
    found = _LISTENER.search(processes.replace("\0", " "))
    if found:
        return Limits(int(found[1]), "by its sshd")
    set_there = _SETTING.search(configuration)
    if set_there:
        return Limits(int(set_there[1]), "by its sshd_config")
    if configuration.strip():
        return Limits(USUAL_STARTUPS, "the default: its sshd_config does not set it")
    return None
