"""The cluster of an executor: the one that is named, the one of this machine, or a private one of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ecloud.cli import app
from ecloud.config import this_host
from ecloud.config.owned_directory import VALUES, OwnedDirectory
from ecloud.config.secrets import AccessFile, read_access
from ecloud.config.settings import Settings, load_settings

if TYPE_CHECKING:
    from datastore.port import Publisher
    from ecloud.cli.local_cluster import LocalCluster
    from ecloud.client.granted_access import AskForAccess


class Cluster:
    """`access`: how to reach its boss. `local`: the private cluster, which ends with `close`."""

    def __init__(
        self, access: AccessFile | str | os.PathLike[str] | None, workers: int | None = None, private: bool = False
    ) -> None:
        """`private`: start a private cluster even if a boss runs on this machine. Raises `Problem`: the access file is
        damaged, or the local cluster does not start."""
        self.local: LocalCluster | None = None
        self.settings: Settings = load_settings()
        self._datastore: Publisher | None = None
        self._datastore_address = ""
        self._is_private = False
        """Its datastore is a directory of this machine, also after its boss has ended."""
        if isinstance(access, AccessFile):
            self.access = access
        elif access is not None:
            self.access = read_access(Path(access).expanduser())
        elif not private and (
            os.environ.get("ECLOUD_ACCESS") or app.running_boss(self.settings.home_directory) is not None
        ):
            self.access = app.find_access(self.settings)
        else:
            self._start_local(workers or max(1, int(this_host.cpus())))

    def _start_local(self, workers: int) -> None:
        from ecloud.cli.local_cluster import LocalCluster

        # Not removed in `close`: futures give their values after the executor was shut down, too.
        self._values = OwnedDirectory(VALUES)
        datastore = self._values.path / "datastore"
        datastore.mkdir()
        self.local, self._is_private = LocalCluster(datastore, workers), True
        try:
            self.access = self.local.start()
        except BaseException:
            self.close()
            raise
        self.settings = self.local.settings

    def datastore(self, address: str, ask: AskForAccess) -> Publisher:
        """Open the datastore at `address`, as the boss reported it. `ask`: requests access from the boss. Raises
        `Problem`, `DatastoreAway`."""
        from ecloud.cli.files import open_datastore

        if self._datastore is None or address != self._datastore_address:
            self._datastore = open_datastore(self.settings, address, ask, is_far=not self._is_private)
            self._datastore_address = address
        return self._datastore

    def require(self) -> None:
        """Raises `LocalClusterFailed` if the private cluster has ended."""
        if self.local is not None:
            self.local.require()

    def close(self) -> None:
        """End the private cluster. The values of its calls stay as long as this object."""
        local, self.local = self.local, None
        if local is not None:
            local.stop()
