#!/bin/sh
# Starts an agent and nothing else: worker/start.sh ACCESS_FILE [options of `python -m worker`].
# Uses the checkout's own Python (.venv) if it exists, else the first python3 that is new enough.
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
    if [ ! -d "$checkout/packages" ]; then
        echo "worker: then in $checkout: python3 -m venv .venv && .venv/bin/pip install -r requirements.lock" >&2
    fi
    if [ "${ECLOUD_START_MODULE:-}" = worker.debug ]; then
        echo "Python:      WRONG: none is here that is 3.10 or later: install one"
        echo "verdict: a worker cannot work here; wrong: Python"
    fi
    exit 1
fi

# Makes ECLOUD importable from any directory; worker/shell/environment.py removes it for tasks. Code that the
# boss brought has its packages beside it.
ours=$checkout
if [ -d "$checkout/packages" ]; then ours=$checkout:$checkout/packages; fi
PYTHONPATH="$ours${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m "${ECLOUD_START_MODULE:-worker}" "$@"
