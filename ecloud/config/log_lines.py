"""How log files of boss and worker tell the time: with milliseconds and the zone."""

from __future__ import annotations

import logging
import time


class WithZone(logging.Formatter):
    """Times such as "2026-11-29 21:04:45.123 UTC"."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """The moment of a record."""
        at = time.localtime(record.created)
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', at)}.{int(record.msecs):03d} {time.strftime('%Z', at)}"
