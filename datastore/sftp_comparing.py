"""Whether local files, of which an earlier call left a part, are what an SFTP server has under their names.

By the sum where the datastore has a shell that makes it, else by pieces of both: all of them would cost as much as
fetching anew, and who replaced a file within the same second by one of its size changed more than a few bytes.
"""

from __future__ import annotations

import os
import struct
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

from datastore import sftp_connection as sftp
from datastore.partial import sum_of
from datastore.sftp_connection import Refused, Reply, string
from datastore.sftp_sums import Shell
from datastore.sftp_tree import AT_ONCE, Tree, at

PIECES = 32
"""Of a file, evenly spread, its beginning and end among them."""
PIECE_BYTES = 4096


def unlike(shell: Shell | None, tree: Tree, files: dict[str, tuple[Path, int]]) -> list[str]:
    """Names of those that differ. `files`: where each is here, and its size there. `shell`: None where the account
    is known to have none. Raises `Lost`, `DatastoreAway`."""
    if files and shell is not None:
        shell.start()
        if shell.has_sums:
            sums = shell.sums([(tree.path(name), size) for name, (_, size) in files.items()])
            return [name for (name, (path, _)), told in zip(files.items(), sums) if sum_of(path) != told]
    differing = []
    names = iter(files)
    while part := list(islice(names, AT_ONCE)):
        differing += _unlike_in_pieces(tree, {name: files[name] for name in part})
    return differing


def _unlike_in_pieces(tree: Tree, files: dict[str, tuple[Path, int]]) -> list[str]:
    opening = {name: tree.send(sftp.OPEN, name, struct.pack("!II", sftp.TO_READ, 0)) for name in files}
    handles: dict[str, bytes] = {}
    asked: dict[str, list[tuple[int, Future[Reply]]]] = {}
    for name, future in opening.items():
        try:
            handles[name] = sftp.handle_of(future.result())
        except Refused:
            continue
        asked[name] = [
            (
                start,
                tree.connection.send(sftp.READ, at(handles[name], start) + struct.pack("!I", PIECE_BYTES), PIECE_BYTES),
            )
            for start in starts(files[name][1])
        ]
    differing = [name for name in files if name not in asked or not _is_like(files[name][0], asked[name])]
    for handle in handles.values():
        tree.connection.send(sftp.CLOSE, string(handle))
    return differing


def starts(size: int) -> list[int]:
    """Where the pieces of a file of that size begin."""
    last = max(0, size - PIECE_BYTES)
    return sorted({last * number // (PIECES - 1) for number in range(PIECES)})


def _is_like(path: Path, pieces: list[tuple[int, Future[Reply]]]) -> bool:
    with path.open("rb", buffering=0) as file:
        for start, future in pieces:
            try:
                there = sftp.data_of(future.result())
            except (Refused, sftp.EndOfFile):
                there = b""
            if not there or there != os.pread(file.fileno(), len(there), start):
                return False
    return True
