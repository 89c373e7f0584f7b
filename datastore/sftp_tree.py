"""The names below a root as an SFTP server shows them: looked at, made and removed, many at once.

SFTP has no handles of directories, so a link among the parents is looked for before a name is used, and not while: it
keeps names honest, it confines nobody.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable
from concurrent.futures import Future
from itertools import islice

from datastore import sftp_connection as sftp
from datastore.directory import OWN, parts_of
from datastore.port import STAGING, BadName, DatastoreAway, Entry
from datastore.sftp_connection import Attributes, Missing, Refused, Reply, SftpConnection, string

AT_ONCE = 64
"""Directories or files open at the same time."""


def raw(name: str) -> bytes:
    """A name as the server has it."""
    return name.encode("utf-8", "surrogateescape")


def text(name: bytes) -> str:
    """A name as we have it; bytes that are no UTF-8 survive."""
    return name.decode("utf-8", "surrogateescape")


def stage_place(stage: str) -> str:
    """Where a stage is, below the root. Raises `BadName`."""
    parts = parts_of(stage)
    if len(parts) != 2 or any(part.startswith(".") for part in parts):
        raise BadName(f"{stage!r} is no name of a stage")
    return f"{STAGING}/{parts[0]}/{parts[1]}"


def unfinished_place(stage: str) -> str:
    """Where the unfinished files of a stage are: outside of it, as all in it is published."""
    owner, _, name = stage_place(stage).rpartition("/")
    return f"{owner}/.{name}"


def kind_of(found: Attributes) -> str:
    """file, directory or link; a file is anything else too."""
    return "link" if stat.S_ISLNK(found.mode) else "directory" if stat.S_ISDIR(found.mode) else "file"


def parents_of(name: str) -> list[str]:
    """The directories above a name, the outermost first."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[: count + 1]) for count in range(len(parts))]


class Tree:
    """Names below `root` over one connection."""

    def __init__(self, connection: SftpConnection, root: str) -> None:
        self.connection = connection
        self.root = root

    def path(self, name: str) -> bytes:
        """Its path on the server."""
        return raw(f"{self.root.rstrip('/')}/{name}" if name else self.root)

    def send(self, kind: int, name: str, fields: bytes = b"", weight: int = 0) -> Future[Reply]:
        """A request about one name."""
        return self.connection.send(kind, string(self.path(name)) + fields, weight)

    # --- looking ------------------------------------------------------------------------------------

    def require_root(self) -> None:
        """Raises `DatastoreAway`."""
        try:
            is_there = kind_of(sftp.attributes_of(self.send(sftp.LSTAT, "").result())) != "file"
        except Refused:
            is_there = False
        if not is_there:
            raise DatastoreAway(f"the datastore {self.root} is not there: is it mounted?")

    def looked_at(self, names: Iterable[str]) -> dict[str, Attributes | None]:
        """What stands under each; None where nothing does."""
        asked = {name: self.send(sftp.LSTAT, name) for name in dict.fromkeys(names)}
        return {name: self._found(future) for name, future in asked.items()}

    def _found(self, future: Future[Reply]) -> Attributes | None:
        try:
            return sftp.attributes_of(future.result())
        except Missing:
            return None
        except Refused as refused:
            raise DatastoreAway(f"the datastore {self.root} can't be used: {refused}") from refused

    def links_above(self, names: Iterable[str]) -> dict[str, str]:
        """Of each name that leads through a link: the link."""
        names = list(names)
        parents = self.looked_at(parent for name in names for parent in parents_of(name))
        links = {name for name, found in parents.items() if found is not None and kind_of(found) == "link"}
        if not links:
            return {}
        return {name: link for name in names for link in parents_of(name) if link in links}

    def refuse_links(self, names: Iterable[str]) -> None:
        """Raises `BadName` where one leads through a link."""
        for name, link in self.links_above(names).items():
            raise BadName(f"{name!r} leads through the link {link.rpartition('/')[2]!r}")

    def entries(self, found: dict[str, Attributes]) -> dict[str, Entry]:
        """With the targets of links."""
        links = {name: self.send(sftp.READLINK, name) for name, one in found.items() if kind_of(one) == "link"}
        targets = {}
        for name, future in links.items():
            try:
                targets[name] = text(sftp.names_of(future.result())[0][0])
            except (Refused, IndexError):
                targets[name] = ""
        entries = {}
        for name, one in found.items():
            kind = kind_of(one)
            size, mode = (one.size if kind == "file" else 0), (0o777 if kind == "link" else stat.S_IMODE(one.mode))
            entries[name] = Entry(name, kind, size, mode, float(one.mtime_s), targets.get(name, ""))
        return entries

    def below(self, top: str, recursive: bool) -> dict[str, Attributes]:
        """All that is below a directory, parents first. Raises `Missing` where it is none."""
        found: dict[str, Attributes] = {}
        level = [top]
        while level:
            deeper: list[str] = []
            names = iter(level)
            while part := list(islice(names, AT_ONCE)):
                for name, one in self._read(part, must_be_there=level == [top]).items():
                    found[name] = one
                    if kind_of(one) == "directory":
                        deeper.append(name)
            level = deeper if recursive else []
        return found

    def names_in(self, directory: str) -> list[str]:
        """Names of what a directory holds; none where it is gone."""
        return [name.rpartition("/")[2] for name in self._read([directory], must_be_there=False)]

    def _read(self, directories: list[str], must_be_there: bool) -> dict[str, Attributes]:
        opening = {name: self.send(sftp.OPENDIR, name) for name in directories}
        handles: dict[str, bytes] = {}
        for name, future in opening.items():
            try:
                handles[name] = sftp.handle_of(future.result())
            except Missing:
                if must_be_there:
                    raise
            except Refused as refused:
                raise DatastoreAway(f"{name or self.root} in the datastore can't be listed: {refused}") from refused
        found: dict[str, Attributes] = {}
        reading = dict(handles)
        while reading:
            asked = {name: self.connection.send(sftp.READDIR, string(handle)) for name, handle in reading.items()}
            for name, future in asked.items():
                try:
                    told = sftp.names_of(future.result())
                except (sftp.EndOfFile, Refused):
                    del reading[name]
                    continue
                for item, one in told:
                    if item not in (b".", b"..") and (name or text(item) != OWN):
                        found[f"{name}/{text(item)}" if name else text(item)] = one
        for handle in handles.values():
            self.connection.send(sftp.CLOSE, string(handle))
        return found

    # --- making and removing --------------------------------------------------------------------------

    def make(self, directories: Iterable[str]) -> None:
        """Directories with all above them, where they are not there yet. Raises `NotADirectoryError` which names what
        is in the way."""
        wanted = {above for name in directories for above in (*parents_of(name), name)}
        if not wanted:
            return
        there = self.looked_at(wanted)
        asked = {}
        for name in sorted(wanted, key=lambda name: name.count("/")):
            found = there[name]
            if found is None:
                asked[name] = self.send(sftp.MKDIR, name, sftp.attributes(mode=0o755))
            elif kind_of(found) != "directory":
                raise NotADirectoryError(20, "Not a directory", name)
        for name, future in asked.items():
            try:
                sftp.done(future.result())
            except Refused as refused:
                found = self.looked_at([name])[name]  # another may have made it meanwhile
                if found is None or kind_of(found) != "directory":
                    raise DatastoreAway(f"{name} can't be made in the datastore: {refused}") from refused

    def remove(self, name: str) -> None:
        """Whatever it is, gone; a directory that lacks rights is given them."""
        found = self.looked_at([name])[name]
        if found is None:
            return
        if kind_of(found) != "directory":
            self._all_gone({name: self.send(sftp.REMOVE, name)})
            return
        directories, others = [name], list[str]()
        level = [name]
        while level:
            for directory in level:
                self.send(sftp.SETSTAT, directory, sftp.attributes(mode=0o700))
            deeper: list[str] = []
            names = iter(level)
            while part := list(islice(names, AT_ONCE)):
                for below, one in self._read(part, must_be_there=False).items():
                    (deeper if kind_of(one) == "directory" else others).append(below)
            directories += deeper
            level = deeper
        self._all_gone({below: self.send(sftp.REMOVE, below) for below in others})
        self._all_gone({directory: self.send(sftp.RMDIR, directory) for directory in reversed(directories)})

    def _all_gone(self, asked: dict[str, Future[Reply]]) -> None:
        for name, future in asked.items():
            try:
                sftp.done(future.result())
            except Missing:
                continue
            except Refused as refused:
                raise DatastoreAway(f"{name} can't be removed from the datastore: {refused}") from refused

    def rename(self, old: str, new: str) -> Future[Reply]:
        """At once and in place of what is there, where that is no directory."""
        fields = string(sftp.RENAME) + string(self.path(old)) + string(self.path(new))
        return self.connection.send(sftp.EXTENDED, fields)

    def free_bytes(self) -> float:
        """That can be written below the root."""
        fields = sftp.expect(
            self.connection.ask(sftp.EXTENDED, string(sftp.FREE) + string(self.path(""))), sftp.EXTENDED_REPLY
        )
        words = [fields.long() for _ in range(5)]
        return float(words[1] * words[4])


def at(handle: bytes, offset: int) -> bytes:
    """The beginning of a request to read or write there."""
    return string(handle) + struct.pack("!Q", offset)
