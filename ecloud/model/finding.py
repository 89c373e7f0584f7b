"""One line of `admin.py doctor`, as it is printed, sent as JSON, and shown by the monitor."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One line of the doctor. `remedy`: what to do; empty if the check passed."""

    part: str
    text: str
    remedy: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether no action is needed."""
        return not self.remedy
