#!/bin/sh
# Starts an agent and nothing else: worker/start.sh ACCESS_FILE [options of `python -m worker`].
# Takes the checkout's own Python (.venv) where there is one, else the first python3 that is new enough.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
checkout=$(dirname -- "$here")

python=
for candidate in "$checkout/.venv/bin/python" python3 python3.13 python3.12 python3.11 python3.10; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "worker: no Python 3.10 or later is here: install one (Debian: apt install python3 python3-venv)," >&2
    echo "worker: then in $checkout: python3 -m venv .venv && .venv/bin/pip install -r requirements.txt" >&2
    exit 1
fi

# Found from any directory; tasks do not get to see it (worker/jobs.py takes it out again).
PYTHONPATH="$checkout${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m "${ECLOUD_START_MODULE:-worker}" "$@"
