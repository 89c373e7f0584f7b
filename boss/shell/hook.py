"""Operator alerts: writes them to the log and runs HOOK_COMMAND, one at a time, each with a time limit.

`boss.core.clients.alerts` decides what is reported and how often. The boss continues whatever the command does.
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
"""A command that has not ended by then is killed with all its processes."""
MAX_SAID_BYTES = 500


class Hook:
    """The user's command. Empty: only the log."""

    def __init__(self, command: str, cluster_id: str = "", limit_s: float = HOOK_S) -> None:
        self._command = command
        self._cluster_id = cluster_id
        self._limit_s = limit_s
        self._one = ThreadPoolExecutor(1, "hook")

    def tell(self, told: TellPerson) -> None:
        """Write to the log now; run the command in turn. Never waits, never raises."""
        log.error("%s", told.text)
        if self._command:
            self._one.submit(self._run, told)

    def close(self) -> None:
        """Start no further command."""
        self._one.shutdown(wait=False, cancel_futures=True)

    def _run(self, told: TellPerson) -> None:
        try:
            problem = self._problem(told)
        except Exception as error:  # an unexpected error must not end the thread
            problem = f"{type(error).__name__}: {error}"
        if problem:
            log.error("HOOK_COMMAND for %s %s", told.cause, problem)

    def _problem(self, told: TellPerson) -> str:
        """What went wrong, as the end of a sentence; empty if nothing did."""
        told_by_environment = {
            "ECLOUD_CAUSE": told.cause,
            "ECLOUD_TEXT": told.text,
            "ECLOUD_CLUSTER": self._cluster_id,
        }
        # Files, no pipes: a background process of the command may keep a pipe open forever.
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
        return f"ended with {code}: {text or 'no output'}" if code else ""
