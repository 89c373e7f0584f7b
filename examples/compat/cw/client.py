"""Clients: `ClientThread`, `ClusterExecutor`, `SlurmExecutor`."""

from __future__ import annotations

from typing import Any

import ecloud
from cw import PORT, mp, slurm_master_host
from ecloud.python.client_thread import access_of


class RemoteException(Exception):
    """A job raised an exception. `error`: its traceback."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        return "\n" + self.error.strip()


def _executor(host: str) -> ecloud.ClusterExecutor:
    return ecloud.ClusterExecutor(mp.access() or access_of(host))


class ClientThread(ecloud.ClientThread):
    """Calls `callback(jobid, result)` for each job. `wait` raises `RemoteException` if a job failed."""

    def start(self) -> None:
        """Connect, and begin to deliver results."""
        if self._executor is None:
            self._executor = _executor(self._host)
        super().start()

    def wait(self) -> None:
        """Block until all outstanding jobs have finished."""
        try:
            super().wait()
        except Exception as error:
            raise RemoteException(str(error.__cause__ or error)) from error


class ClusterExecutor(ecloud.ClusterExecutor):
    """`concurrent.futures` on the cluster of `host`."""

    def __init__(self, host: str = "localhost", port: int = PORT, **options: Any) -> None:
        super().__init__(mp.access() or access_of(host), **options)


class SlurmExecutor(ClusterExecutor):
    """The same, on the cluster that Slurm runs."""

    def __init__(self) -> None:
        super().__init__(slurm_master_host())
