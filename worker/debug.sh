#!/bin/sh
# Does what start.sh does with the same arguments, showing every command, but checks everything a worker needs
# instead of working, and ends with a verdict: exit code 0 where a worker could work here, 1 where not.
# Without arguments on a VM that the boss started: checks what its worker was given. The checks: worker/debug.py.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
for vm in "${ECLOUD_ROOT:-}/var/lib/ecloud" "${XDG_DATA_HOME:-${HOME:-}/.local/share}/ecloud"; do
    if [ $# = 0 ] && [ -r "$vm/access" ]; then set -- "$vm/access" --home "$vm/worker"; fi
done
PS4='$ ' ECLOUD_START_MODULE=worker.debug exec sh -x "$here/start.sh" "$@"
