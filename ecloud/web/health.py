"""Findings of `doctor` for the overview and metrics: checked at intervals in the background; pages never wait for
them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from ecloud.model.finding import Finding

LOOK_EVERY_S = 60.0


class Health:
    """The last findings. Thread-safe."""

    def __init__(self, look: Callable[[], Iterable[Finding]]) -> None:
        self._look = look
        self._lock = threading.Lock()
        self._findings: tuple[Finding, ...] = ()
        self._looked_at: float | None = None
        self._due = 0.0
        self._looking = False

    def findings(self) -> tuple[tuple[Finding, ...], float | None]:
        """Return the findings and their time (seconds since 1970); None before the first check has ended. Starts a new
        check if the last one is old."""
        with self._lock:
            if not self._looking and time.monotonic() >= self._due:
                self._looking = True
                threading.Thread(target=self._run, name="doctor", daemon=True).start()
            return self._findings, self._looked_at

    def _run(self) -> None:
        try:
            found = tuple(self._look())
        except Exception as error:  # an error of one check must not stop the pages
            found = (Finding("doctor", f"the check of all parts failed: {error}", "python admin.py doctor"),)
        with self._lock:
            self._findings, self._looked_at = found, time.time()
            self._due = time.monotonic() + LOOK_EVERY_S
            self._looking = False
