#!/bin/sh
# Runs start.sh with the same arguments and shows every command, but checks everything that a worker needs instead of
# working, and ends with a verdict: exit code 0 if a worker could work here, else 1.
# Without arguments on a VM that the boss started: uses the arguments of its worker. The checks: worker/debug.py.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
for vm in "${ECLOUD_ROOT:-}/var/lib/ecloud" "${XDG_DATA_HOME:-${HOME:-}/.local/share}/ecloud"; do
    if [ $# = 0 ] && [ -r "$vm/access" ]; then set -- "$vm/access" --home "$vm/worker"; fi
done
PS4='$ ' ECLOUD_START_MODULE=worker.debug exec sh -x "$here/start.sh" "$@"
