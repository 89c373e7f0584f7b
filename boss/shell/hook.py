"""Tells a person: writes it to the log and runs HOOK_COMMAND, one at a time and each for a limited time.

Decides nothing (what is told, and how often, is `boss.core.clients.alerts`'s); whatever becomes of the command, the
boss continues.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor

from boss.core.model.effects import TellPerson

log = logging.getLogger("boss")
HOOK_S = 60.0
"""A command that is not through by then is ended, with what it started."""
MAX_SAID_BYTES = 500


class Hook:
    """A command of the user's. Empty: the log alone is told."""

    def __init__(self, command: str, cluster_id: str = "", limit_s: float = HOOK_S) -> None:
        self._command = command
        self._cluster_id = cluster_id
        self._limit_s = limit_s
        self._one = ThreadPoolExecutor(1, "hook")

    def tell(self, told: TellPerson) -> None:
        """At once into the log; the command when its turn comes. Never waits, never raises."""
        log.error("%s", told.text)
        if self._command:
            self._one.submit(self._run, told)

    def close(self) -> None:
        """Begin no command any more."""
        self._one.shutdown(wait=False, cancel_futures=True)

    def _run(self, told: TellPerson) -> None:
        try:
            problem = self._problem(told)
        except Exception as error:  # one that can't be foreseen must not end the thread
            problem = f"{type(error).__name__}: {error}"
        if problem:
            log.error("HOOK_COMMAND, told of %s, %s", told.cause, problem)

    def _problem(self, told: TellPerson) -> str:
        """What went wrong, as the end of a sentence; empty where all went well."""
        told_by_environment = {
            "ECLOUD_CAUSE": told.cause,
            "ECLOUD_TEXT": told.text,
            "ECLOUD_CLUSTER": self._cluster_id,
        }
        # Files, no pipes: what a command leaves in the background may hold a pipe open for ever.
        with tempfile.TemporaryFile() as told_by_stdin, tempfile.TemporaryFile() as said:
            told_by_stdin.write(f"{told.text}\n".encode())
            told_by_stdin.seek(0)
            process = subprocess.Popen(
                self._command,
                shell=True,
                stdin=told_by_stdin,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **told_by_environment},
            )
            try:
                code = process.wait(self._limit_s)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return f"had not ended after {self._limit_s:.0f} s and was killed"
            said.seek(0)
            text = said.read(MAX_SAID_BYTES).decode(errors="replace").strip()
        return f"ended with {code}: {text or 'no word from it'}" if code else ""
