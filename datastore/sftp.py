"""A datastore on another machine that has no python3 for the gate: reached over SSH by SFTP alone, slower.

All of `port.Publisher` for the boss. It keeps the promises of the port, not those of the gate: SFTP confines nobody to
a directory, so a worker that is let in here may do with files whatever the account may (docs/data.md). A name that
leads through a link is refused here, by the client.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from datastore import sftp_connection as sftp
from datastore import sftp_promoting
from datastore.partial import Part
from datastore.port import STAGING, DatastoreAway, Entry, NotThere, Promotion
from datastore.sftp_comparing import unlike
from datastore.sftp_connection import Missing, SftpConnection
from datastore.sftp_fetching import Fetching
from datastore.sftp_storing import Storing
from datastore.sftp_sums import Shell
from datastore.sftp_tree import Tree, kind_of
from datastore.ssh.carrier import Lost
from datastore.ssh.datastore import (
    PATIENCE_S,
    STALL_S,
    Access,
    Carry,
    OverSsh,
    SshAddress,
    by_process,
    normalised,
    ssh_command,
    told_apart,
)
from datastore.ssh.link import Again, Kept, Patience

TIMES = 3
"""How often to begin again where a file changes while it is read."""
REPLACED_S = 3600.0
"""What a promotion that was cut off put aside goes after so long."""
WORKERS_COMMAND = "internal-sftp"
"""What a worker's certificate starts there."""
T = TypeVar("T")


class SftpDatastore(OverSsh):
    """See `datastore.port`; `stall_s`, `patience_s`, `durable`, `carry`: see `datastore.ssh.datastore.SshDatastore`."""

    def __init__(
        self,
        address: SshAddress,
        access: Access | Callable[[], Access],
        *,
        stall_s: float = STALL_S,
        patience_s: float = PATIENCE_S,
        durable: bool = True,
        carry: Carry = by_process,
    ) -> None:
        super().__init__(address, access)
        self.durable = durable
        self._patience_s = patience_s
        where = f"the datastore {address}"
        self._link = Kept(
            lambda: SftpConnection(lambda: carry(address, self.access(), where, stall_s, by_sftp=True), where, stall_s)
        )
        self._shell = Shell(lambda: ssh_command(address, replace(self.access(), gate="exec /bin/sh")), stall_s)

    def close(self) -> None:
        """End the connections; a further call makes others."""
        self._link.close()
        self._shell.close()

    def hello(self) -> None:
        """Connect. Raises `DatastoreAway`."""
        self._do(lambda tree: None)

    def _do(self, action: Callable[[Tree], T]) -> T:
        """Do it over the connection that is kept, and again over another one where that is cut."""
        patience = Patience(self._patience_s)
        while True:
            answers, connection = 0, None
            try:
                connection = self._link.connected()
                answers = connection.answers
                return action(Tree(connection, self.address.root))
            except Lost as lost:
                if connection is not None and connection.answers > answers:
                    patience.progressed()
                patience.pause(lost)

    # --- reading ------------------------------------------------------------------------------------

    def stat(self, names: list[str]) -> list[Entry | None]:
        """See `port.Reader.stat`. Sums are not known here."""
        wanted = [normalised(name) for name in names]

        def look(tree: Tree) -> list[Entry | None]:
            tree.require_root()
            tree.refuse_links(wanted)
            found = {name: one for name, one in tree.looked_at(wanted).items() if one is not None}
            entries = tree.entries(found)
            return [entries.get(name) for name in wanted]

        return self._do(look)

    def fetch(self, name: str, to: Path) -> int:
        """See `port.Reader.fetch`."""
        source = normalised(name)
        # A worker's certificate starts nothing but SFTP.
        shell = self._shell if self.access().certificate is None else None
        with told_apart(to):
            to.parent.mkdir(parents=True, exist_ok=True)
            part = Part(to)
            try:
                for _ in range(TIMES):
                    fetching = Fetching(source, str(self.address), part, partial(unlike, shell))
                    try:
                        copied = self._do(partial(self._fetched, fetching))
                    except Again:
                        part.again()
                        continue
                    part.finish()
                    return copied
                raise DatastoreAway(f"{name} changed {TIMES} times while it was read")
            except BaseException as error:
                part.leave(error)
                raise
            finally:
                part.close()

    def _fetched(self, fetching: Fetching, tree: Tree) -> int:
        tree.require_root()
        tree.refuse_links([fetching.name])
        return fetching.run(tree)

    def listing(self, name: str = "", recursive: bool = False) -> list[Entry]:
        """See `port.Reader.listing`."""
        top = normalised(name) if name else ""

        def look(tree: Tree) -> list[Entry]:
            tree.require_root()
            if top:
                tree.refuse_links([top])
                found = tree.looked_at([top])[top]
                if found is None:
                    raise NotThere(top)
                if kind_of(found) != "directory":
                    return list(tree.entries({top: found}).values())
            try:
                entries = tree.entries(tree.below(top, recursive))
            except Missing:
                raise NotThere(top) from None
            return sorted(entries.values(), key=lambda entry: entry.path)

        return self._do(look)

    # --- staging ------------------------------------------------------------------------------------

    def store(self, stage: str, local: Path, path: str) -> list[Entry]:
        """See `port.Stager.store`."""
        final = normalised(path)
        if not os.path.lexists(local):
            normalised(stage)
            raise NotThere(str(local))
        told = ""
        with told_apart(local):
            for _ in range(TIMES):
                storing = Storing(stage, local, final)
                try:
                    return self._do(storing.run)
                except Again as again:
                    told = str(again)
        raise OSError(f"{local} can't be stored: {told}")

    def drop_stage(self, stage: str) -> None:
        """See `port.Stager.drop_stage`."""
        normalised(stage)

        def drop(tree: Tree) -> None:
            tree.require_root()
            sftp_promoting.discard(tree, stage)

        self._do(drop)

    # --- publishing ---------------------------------------------------------------------------------

    def promote(self, promotions: list[Promotion]) -> list[str | None]:
        """See `port.Publisher.promote`."""
        return self._do(lambda tree: sftp_promoting.promote(tree, self._shell, promotions, self.durable))

    def stages(self) -> list[str]:
        """See `port.Publisher.stages`. What a promotion that was cut off put aside goes."""

        def look(tree: Tree) -> list[str]:
            tree.require_root()
            try:
                below = tree.below(STAGING, recursive=False)
            except Missing:
                return []
            owners = [name for name, found in below.items() if kind_of(found) == "directory"]
            stages = set()
            for name in owners:
                owner = name.rpartition("/")[2]
                if owner.startswith("."):
                    made_ns = owner.removeprefix(".replaced-")
                    if made_ns.isdecimal() and time.time() - int(made_ns) / 1e9 > REPLACED_S:
                        tree.remove(name)
                    continue
                stages |= {f"{owner}/{stage.lstrip('.')}" for stage in tree.names_in(name)}
            return sorted(stages)

        return self._do(look)

    def free_mb(self) -> float:
        """See `port.Publisher.free_mb`. Raises `DatastoreAway` where the server does not tell it."""

        def look(tree: Tree) -> float:
            tree.require_root()
            if sftp.FREE not in tree.connection.extensions:
                raise DatastoreAway(f"the SFTP server of {self.address} does not tell its free space")
            return tree.free_bytes() / 1e6

        return self._do(look)
