"""A private cluster for one task list: a boss in a temporary home, which ends with the calling program."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from datastore.problem import PartAway
from ecloud.config.home import Home
from ecloud.config.owned_directory import LOCAL, OwnedDirectory
from ecloud.config.secrets import AccessFile, read_access
from ecloud.config.settings import ROOT, Settings, child_environment, load_settings

START_S = 90.0
STOP_S = 20.0
"""Time limit for the boss to end its workers and its broker; after it, the boss is killed, and they with it."""


class LocalClusterFailed(PartAway):
    """The local cluster did not start, or ended unexpectedly; the text has its last log line."""


class LocalCluster:
    """A boss, a broker, a database and `workers` workers over the directory `datastore`."""

    def __init__(self, datastore: Path, workers: int, keep_dirs: bool = False) -> None:
        self.datastore = datastore
        self._workers = workers
        self._keep_dirs = keep_dirs
        self._directory = OwnedDirectory(LOCAL)
        self.home = Home(self._directory.path)
        self._log = self.home.path / "start.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._monitor: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> Settings:
        """Settings for queries to its database."""
        return load_settings({"home": str(self.home.path), "database_url": "", "broker_host": ""})

    def start(self) -> AccessFile:
        """Start the boss; returns the access to it. Raises `LocalClusterFailed`."""
        command = [sys.executable, "-X", "utf8", "-m", "boss", "--tied", "--home", str(self.home.path)]
        command += ["--datastore", str(self.datastore.absolute())]
        command += ["--local", str(self._workers)]
        if self._keep_dirs:
            command.append("--keep_dirs")
        with self._log.open("wb") as log:
            # A separate session: Ctrl-C reaches only this process, which stops the boss in order.
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._directory.is_used_by(self._process)
        deadline = time.monotonic() + START_S
        while not self.home.boss_pid.exists():  # the boss writes the file last
            self.require()
            if time.monotonic() > deadline:
                raise LocalClusterFailed(
                    f"the local cluster did not start within {START_S:.0f} s: {self._last_words()}"
                )
            time.sleep(0.01)
        return read_access(self.home.client_access)

    def start_monitor(self) -> None:
        """Start web pages for this cluster, which end with it. Without the required packages there are no pages."""
        if self._monitor is not None:
            return
        settings = self.home.path / "monitor-settings.py"
        settings.write_text(f"DATASTORE = {str(self.datastore.absolute())!r}\n")
        environment = {**os.environ, "ECLOUD_HOME": str(self.home.path), "ECLOUD_SETTINGS": str(settings)}
        code = "from ecloud.cli.main import ecloud; ecloud()"
        command = [sys.executable, "-X", "utf8", "-c", code, "monitor", "--port", "0", "--json", "--tied"]
        with self.home.monitor_address.open("wb") as output:
            os.chmod(self.home.monitor_address, 0o600)
            self._monitor = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def monitor_url(self) -> str:
        """Return the URL of the web pages; empty until they are ready."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(json.loads(self.home.monitor_address.read_text())["url"])
        return ""

    def require(self) -> None:
        """Check that the boss still runs. Raises `LocalClusterFailed`."""
        if self._process is not None and self._process.poll() is not None:
            raise LocalClusterFailed(f"the local cluster ended (code {self._process.returncode}): {self._last_words()}")

    def stop(self) -> None:
        """End everything in order; if interrupted or after the time limit, immediately."""
        if self._monitor is not None:
            self._monitor.kill()
            self._monitor.wait()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                self._kill(process)
        if self._keep_dirs:
            self._save_directories()
        self._directory.remove()

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        # Its workers and its broker are tied to it: the kernel ends them.
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2.0)

    @property
    def kept(self) -> Path:
        """The directory for kept working directories."""
        return self.datastore.absolute().parent / f"{self.datastore.name}-dirs"

    def _save_directories(self) -> None:
        for directory in self.home.workers.glob("*/home/kept/*"):
            target = self.kept / directory.name
            self.kept.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(target, ignore_errors=True)
            shutil.move(directory, target)

    def _last_words(self) -> str:
        for log in (self._log, self.home.log):
            with contextlib.suppress(OSError):
                lines = log.read_text(errors="replace").strip().split("\n")
                if lines[-1]:
                    return lines[-1].removeprefix("boss: ")
        return "no output"
