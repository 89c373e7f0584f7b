"""Pickles that are too large for a message: files of the datastore, named by their hash and stored once."""

from __future__ import annotations

import hashlib
import math
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ecloud.model.tasks import INLINE_BYTES, Requirement

if TYPE_CHECKING:
    from datastore.port import Publisher

STORED_ANEW_S = 3600.0
"""An object is stored again after this time: its run may have been archived meanwhile."""


class Objects:
    """Objects of one run, below `directory` of the datastore. Thread-safe."""

    def __init__(self, datastore: Callable[[], Publisher], directory: str) -> None:
        self._datastore = datastore
        self.directory = directory
        self._there: dict[str, float] = {}
        """When each object was stored."""
        self._stored_in: Publisher | None = None
        self._lock = threading.Lock()

    def placed(self, data: bytes, key: str = "") -> tuple[bytes, str]:
        """(pickle that travels with the call, name of its object): where a pickle goes. Raises `DatastoreAway`,
        `Problem`."""
        if len(data) <= INLINE_BYTES:
            return data, ""
        return b"", self.put([data], key or hashlib.sha256(data).hexdigest())

    def requirement(self, name: str) -> Requirement:
        """Of a call that needs this object."""
        return Requirement(f"{self.directory}/{name}", name)

    def put(self, parts: Sequence[bytes | memoryview], key: str) -> str:
        """Store a pickle of these parts, unless it was stored lately; return its name. The boss removes the objects of
        a run that it archives."""
        with self._lock:
            if (datastore := self._datastore()) is not self._stored_in:
                self._stored_in = datastore  # the cluster uses another one now
                self._there.clear()
            if time.monotonic() - self._there.get(key, -math.inf) > STORED_ANEW_S:
                with tempfile.TemporaryDirectory(prefix="ecloud-object-") as place:
                    file = Path(place) / key
                    with file.open("wb") as opened:
                        opened.writelines(parts)
                    datastore.put(file, f"{self.directory}/{key}")
                self._there[key] = time.monotonic()
        return key

    def read(self, path: str) -> bytes:
        """Return the content of a file of the datastore. Raises `DatastoreAway`, `NotThere`."""
        with tempfile.TemporaryDirectory(prefix="ecloud-value-") as place:
            file = Path(place) / "value"
            with self._lock:
                self._datastore().fetch(path, file)
            return file.read_bytes()
