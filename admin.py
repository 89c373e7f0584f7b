#!/usr/bin/env python3
"""Ask the cluster and tell it what to do. `python admin.py --help` lists the actions; they are in ecloud/cli."""

from __future__ import annotations

import sys

from ecloud.config import missing_package

try:
    from ecloud.cli.main import admin
except ImportError as error:
    print(missing_package.sentence("admin.py", error), file=sys.stderr)
    sys.exit(missing_package.NOT_INSTALLED)

if __name__ == "__main__":
    admin()
