"""A process beside the boss that reads what it wrote: the sender of events, the monitor. The boss starts it, does not
wait for it, and ends it; the kernel ends it where the boss is killed (such a process ties itself to its parent)."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ecloud.config.settings import child_environment

log = logging.getLogger("boss")
END_S = 3.0


class Companion:
    """One process. A start that fails is logged: the boss leads without it."""

    def __init__(self, name: str, code: str, arguments: Sequence[str], home: Path) -> None:
        """`code`: Python that begins it; `home`: the boss's, where `NAME.log` keeps its error output, `NAME.out` its
        output."""
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None
        command = [sys.executable, "-X", "utf8", "-c", code, *arguments]
        environment = {**child_environment(), "ECLOUD_HOME": str(home)}
        try:
            with (home / f"{name}.log").open("ab") as errors, (home / f"{name}.out").open("wb") as output:
                os.chmod(home / f"{name}.out", 0o600)
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, env=environment,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            log.error("%s does not start: %s", name, error)

    def stop(self) -> None:
        """End it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
            return
        self._process.kill()
