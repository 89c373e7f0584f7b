#!/usr/bin/env python3
"""Push a task list into the cluster, or with --local run it on this machine: `python push_tasks.py --help`."""

from __future__ import annotations

import sys

from ecloud.config import missing_package

try:
    from ecloud.cli.main import push_tasks
except ImportError as error:
    print(missing_package.sentence("push_tasks.py", error), file=sys.stderr)
    sys.exit(missing_package.NOT_INSTALLED)

if __name__ == "__main__":
    push_tasks()
