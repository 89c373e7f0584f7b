#!/usr/bin/env python3
# ruff: noqa: B904, RUF005, SIM105, UP006, UP031, UP035, UP045
"""The gate of a datastore: sshd starts it on the datastore's machine; it serves one connection and ends with it.

    python3 -IS gate.py --root DIR [--until EPOCH_S] boss | client | worker NAME

A worker reads the root and writes below `.ecloud/staging/NAME/`. A client (a user's program) reads the root, writes
below `.ecloud/staging/put/`, and publishes what is there. The boss may do everything. The gate ignores the command that
the peer asks sshd to run. One file, standard library only, Python 3.6: it is copied to a machine that has
nothing else.

A frame is `!II` (length of a JSON object, length of the bytes that follow it) and these two. Frames are answered in
order, one answer each (`more`: another frame of the same answer follows; `busy`: still working), so a client may send
many before it reads. A malformed frame is answered with one error, and the connection ends.

No name leads out of the root: each part of it is opened relative to its parent's handle and never through a link.
"""

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import signal
import stat
import struct
import sys
import threading
import time
from collections import OrderedDict
from typing import Any, BinaryIO, Callable, Dict, Iterator, List, Optional, Set, Tuple

VERSION = 1
MAGIC = b"\nECLOUD-GATE\n"
"""Precedes the first frame: the client skips what a login shell prints before it."""
HEAD = struct.Struct("!II")
PIECE = 1 << 20
MAX_JSON = 64 << 20
MAX_BODY = 4 << 20
MANY = 2000
"""Rows in one frame of a listing."""
MAX_OPEN = 64
"""Handles kept of files read in ranges, of files being written, of directories, of stages."""
IDLE_S = 1800
"""A gate without requests for this long ends; a living client connects again."""
BUSY_S = 5.0

AWAY = frozenset([
    errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE,
    errno.ENFILE, errno.EACCES, errno.EPERM,
])  # fmt: skip
OURS = b".ecloud"
STAGING = (OURS, b"staging")
PEOPLES = "put"
"""The directory of all stages of users' uploads, below the staging directory."""
SUM = "user.ecloud.sum"
SUM_FORMAT = struct.Struct("!QQ32s")
"""Size, mtime in ns and SHA-256 of a file when it was written: valid while size and mtime are unchanged."""
LOCK = b".client-"
HOLD_S = 10.0
"""How long to wait for the lock of a client whose previous gate is still ending."""
UNLISTED = "*"
"""In place of a sum: the entries below this directory are not in the request."""
MODES = 0o777
"""No worker creates a file with setuid, setgid or sticky bit."""
ZEROS = bytes(PIECE)
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC

Parts = Tuple[bytes, ...]
Row = List[Any]


class Refused(Exception):
    """The answer is an error; the connection continues."""

    def __init__(self, code: str, text: str) -> None:
        Exception.__init__(self, text)
        self.code = code
        self.text = text


class BadFrame(Exception):
    """The input is no request; the connection ends."""


# --- names ------------------------------------------------------------------------------------------


def parts_of(name: str) -> Parts:
    """The parts of a relative name as bytes. Refuses names that lead out of the root or into the gate's own files."""
    whole = name.encode("utf-8", "surrogateescape")
    parts = tuple(part for part in whole.split(b"/") if part not in (b"", b"."))
    if not parts or whole.startswith(b"/") or b"\0" in whole or b".." in parts or parts[0] == OURS:
        raise Refused("bad_name", "%r is not a name in a datastore" % name)
    return parts


def text_of(raw: bytes) -> str:
    """A name as text; bytes that are not UTF-8 survive."""
    return raw.decode("utf-8", "surrogateescape")


class Tree:
    """Handles of the directories below the root, each opened relative to its parent, never through a link.

    Handles are kept within one request, so that 10,000 names in one directory open it once.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.handles: Dict[Parts, int] = {}

    def directory(self, parts: Parts, make: bool = False) -> int:
        """The handle of a directory. Raises FileNotFoundError or NotADirectoryError; `Refused` at a link."""
        known = self.handles.get(parts)
        if known is not None:
            return known
        if not parts:
            try:
                handle = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                text = "the datastore %s cannot be used: %s" % (self.root, error.strerror)
                raise Refused("away", text)
        else:
            parent = self.directory(parts[:-1], make)
            if make:
                try:
                    os.mkdir(parts[-1], dir_fd=parent)
                except FileExistsError:
                    pass
            handle = self._below(parent, parts)
        self.handles[parts] = handle
        return handle

    def _below(self, parent: int, parts: Parts) -> int:
        try:
            return os.open(parts[-1], DIRECTORY, dir_fd=parent)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                if stat.S_ISLNK(os.lstat(parts[-1], dir_fd=parent).st_mode):
                    name = text_of(b"/".join(parts))
                    raise Refused("bad_name", "%r leads through the link %r" % (name, text_of(parts[-1])))
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), text_of(b"/".join(parts)))
            raise

    def trim(self) -> None:
        """Limit the open handles before the next name, while none is in use."""
        if len(self.handles) > MAX_OPEN:
            self.forget()

    def forget(self) -> None:
        """Close all handles: after a request, and after a directory was moved."""
        for handle in self.handles.values():
            os.close(handle)
        self.handles.clear()

    def info(self, parts: Parts) -> Optional[os.stat_result]:
        """The stat of a name; None if it does not exist."""
        try:
            return os.lstat(parts[-1], dir_fd=self.directory(parts[:-1]))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def remove(self, parts: Parts) -> None:
        """Remove a file or tree."""
        info = self.info(parts)
        if info is not None:
            remove(self.directory(parts[:-1]), parts[-1], info)
            if stat.S_ISDIR(info.st_mode):
                self.forget()


def remove(parent: int, name: bytes, info: os.stat_result) -> None:
    """Remove a file or tree, first adding missing permissions to directories."""
    working()
    if not stat.S_ISDIR(info.st_mode):
        os.unlink(name, dir_fd=parent)
        return
    if info.st_mode & 0o700 != 0o700:
        os.chmod(name, 0o700, dir_fd=parent)
    handle = os.open(name, DIRECTORY, dir_fd=parent)
    try:
        for item in os.listdir(handle):
            raw = os.fsencode(item)
            remove(handle, raw, os.lstat(raw, dir_fd=handle))
    finally:
        os.close(handle)
    os.rmdir(name, dir_fd=parent)


# --- what stands there --------------------------------------------------------------------------------


def known_sum(handle: int, info: os.stat_result) -> str:
    """The SHA-256 noted when the file was written; empty if there is none or the file changed since."""
    try:
        size, mtime_ns, digest = SUM_FORMAT.unpack(os.getxattr(handle, SUM))
    except (OSError, struct.error):
        return ""
    return digest.hex() if (size, mtime_ns) == (info.st_size, info.st_mtime_ns) else ""


def read_sum(handle: int, count: int) -> Any:
    """The digest of the first `count` bytes, by reading them."""
    digest, at = hashlib.sha256(), 0
    while at < count:
        piece = os.pread(handle, min(PIECE, count - at), at)
        if not piece:
            break
        digest.update(piece)
        at += len(piece)
        working()
    return digest


def row_of(info: os.stat_result, parent: int, name: bytes, with_sum: bool = False) -> Row:
    """[kind, size, mode, mtime in ns, a link's target or the SHA-256 if it is known]"""
    if stat.S_ISLNK(info.st_mode):
        return ["link", 0, 0o777, info.st_mtime_ns, text_of(os.readlink(name, dir_fd=parent))]
    if stat.S_ISDIR(info.st_mode):
        return ["directory", 0, stat.S_IMODE(info.st_mode), info.st_mtime_ns, ""]
    known = ""
    if with_sum and stat.S_ISREG(info.st_mode):
        try:
            handle = os.open(name, READ, dir_fd=parent)
        except OSError:
            pass
        else:
            known = known_sum(handle, info)
            os.close(handle)
    return ["file", info.st_size, stat.S_IMODE(info.st_mode), info.st_mtime_ns, known]


# --- reading ------------------------------------------------------------------------------------------


class Reading:
    """Requests that every client may send."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.open: OrderedDict[str, int] = OrderedDict()

    def stat(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """names -> rows, null for missing ones; with the SHA-256 if it is known"""
        rows: List[Optional[Row]] = []
        self.tree.directory(())
        for name in request["names"]:
            self.tree.trim()
            parts = parts_of(name)
            info = self.tree.info(parts)
            rows.append(None if info is None else row_of(info, self.tree.directory(parts[:-1]), parts[-1], True))
        return {"rows": rows}

    def get(self, request: Dict[str, Any]) -> Tuple[Dict[str, Any], bytes]:
        """name, at, count, token ("" or from an earlier answer) -> row, token, and bytes or `hole`

        With a token the answer is of exactly the file version of the earlier answer, or `changed`.
        """
        parts, token, at = parts_of(request["name"]), request["token"], request["at"]
        handle = self.open.get(token) if token else None
        row: Row = ["file", 0, 0, 0, ""]
        if handle is None:
            parent = self.tree.directory(parts[:-1])
            info = os.lstat(parts[-1], dir_fd=parent)
            row = row_of(info, parent, parts[-1])
            if row[0] != "file":
                return {"row": row, "token": str(info.st_ino)}, b""
            if not stat.S_ISREG(info.st_mode):
                raise Refused("unfit", "%s is neither file, directory nor link" % request["name"])
            handle = os.open(parts[-1], READ, dir_fd=parent)
            info = os.fstat(handle)
            now = "%d.%d.%d" % (info.st_ino, info.st_size, info.st_mtime_ns)
            if token and token != now:
                os.close(handle)
                raise Refused("changed", "%s was replaced while it was read" % request["name"])
            if now in self.open:
                os.close(handle)
                handle = self.open[now]
            token = now
            row = ["file", info.st_size, stat.S_IMODE(info.st_mode), info.st_mtime_ns, known_sum(handle, info)]
            self.open[token] = handle
            if len(self.open) > MAX_OPEN:
                os.close(self.open.popitem(last=False)[1])
        data = os.pread(handle, min(request["count"], MAX_BODY), at)
        if at + len(data) >= int(token.split(".")[1]):
            os.close(self.open.pop(token))
        elif not data:
            raise Refused("changed", "%s became shorter while it was read" % request["name"])
        if len(data) == PIECE and data == ZEROS:
            return {"row": row, "token": token, "hole": len(data)}, b""
        return {"row": row, "token": token}, data

    def get_many(self, request: Dict[str, Any]) -> Tuple[Dict[str, Any], bytes]:
        """names, most (bytes of a file) -> [row, number of its bytes that follow] each; -1: must be requested on its
        own"""
        told: List[Any] = []
        bodies: List[bytes] = []
        room = MAX_BODY
        most = request.get("most", MAX_BODY)
        for name in request["names"]:
            self.tree.trim()
            parts = parts_of(name)
            try:
                handle = os.open(parts[-1], READ, dir_fd=self.tree.directory(parts[:-1]))
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                told.append([["file", 0, 0, 0, ""], -1])  # a socket: `get` names it
                continue
            try:
                info = os.fstat(handle)
                row = ["file", info.st_size, stat.S_IMODE(info.st_mode), info.st_mtime_ns, known_sum(handle, info)]
                if not stat.S_ISREG(info.st_mode) or info.st_size > min(room, most):
                    told.append([row, -1])
                    continue
                data = os.read(handle, info.st_size)
            finally:
                os.close(handle)
            told.append([row, len(data)])
            bodies.append(data)
            room -= len(data)
        return {"files": told}, b"".join(bodies)

    def list(self, request: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
        """name ("" for the root), recursive -> rows with the name before them, parents first, in several frames"""
        parts = parts_of(request["name"]) if request["name"] else ()
        if parts:
            parent = self.tree.directory(parts[:-1])
            info = os.lstat(parts[-1], dir_fd=parent)
            if not stat.S_ISDIR(info.st_mode):
                yield {"rows": [[text_of(b"/".join(parts))] + row_of(info, parent, parts[-1])]}
                return
        rows: List[Row] = []
        for row in walk(os.dup(self.tree.directory(parts)), b"/".join(parts), request["recursive"]):
            rows.append(row)
            if len(rows) >= MANY:
                yield {"rows": rows, "more": True}
                rows = []
        yield {"rows": rows}

    def free(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """-> bytes that can be written below the root"""
        told = os.fstatvfs(self.tree.directory(()))
        return {"free": told.f_bavail * told.f_frsize, "total": told.f_blocks * told.f_frsize}


def walk(handle: int, prefix: bytes, recursive: bool, with_sums: bool = False) -> Iterator[Row]:
    """Rows of the entries below an open directory. Closes it."""
    try:
        for item in sorted(os.fsencode(item) for item in os.listdir(handle)):
            if not prefix and item == OURS:
                continue
            name = prefix + b"/" + item if prefix else item
            try:
                info = os.lstat(item, dir_fd=handle)
                yield [text_of(name)] + row_of(info, handle, item, with_sums)
                below = os.open(item, DIRECTORY, dir_fd=handle) if recursive and stat.S_ISDIR(info.st_mode) else -1
            except (FileNotFoundError, NotADirectoryError):
                continue  # removed or replaced meanwhile
            if below >= 0:
                yield from walk(below, name, recursive, with_sums)
    finally:
        os.close(handle)


# --- staging ------------------------------------------------------------------------------------------


class Part:
    """A file that arrives in pieces."""

    def __init__(self, handle: int, digest: Any, at: int) -> None:
        self.handle = handle
        self.digest = digest
        self.at = at


class Staging(Reading):
    """Requests of a worker below its own staging directory, and of the boss below all."""

    def __init__(self, tree: Tree, owner: Optional[str]) -> None:
        Reading.__init__(self, tree)
        self.owner = owner
        self.held: Dict[Parts, Tuple[int, bytes]] = {}
        self.parts: Dict[Parts, Part] = {}

    def stage_of(self, stage: str) -> Parts:
        """The staging directory; `Refused` if it is not this client's."""
        parts = parts_of(stage)
        if len(parts) != 2 or parts[0].startswith(b".") or parts[1].startswith(b"."):
            raise Refused("bad_name", "%r is not the name of a stage" % stage)
        if self.owner is not None and parts[0] != self.owner.encode():
            raise Refused("bad_name", "the stage %r is not %s's" % (stage, self.owner))
        return STAGING + parts

    def aside_of(self, stage: Parts) -> Parts:
        """Where a stage's unfinished files are: outside of it, because everything in a stage is published."""
        return stage[:-1] + (b"." + stage[-1],)

    def hold(self, stage: Parts, client: str) -> None:
        """Make sure that this is the client's only gate that writes there.

        The previous gate of a client that was cut off may still have requests to carry out, which would undo those of
        its successor. The client's lock names that gate, and the successor ends it.
        """
        owner = stage[:-1]
        if owner in self.held:
            return
        if not client.isalnum():
            raise BadFrame("no client")
        name = LOCK + client.encode("ascii")
        deadline = time.monotonic() + HOLD_S
        handle = self.open_lock(owner, name)
        while not is_locked(handle) or not os.fstat(handle).st_nlink:
            if time.monotonic() > deadline:
                os.close(handle)
                raise Refused("away", "another connection of this client still writes")
            if not os.fstat(handle).st_nlink:
                # Its holder has left and removed it: the next process would lock another file.
                os.close(handle)
                handle = self.open_lock(owner, name)
                continue
            end_gate(os.pread(handle, 20, 0).strip())
            time.sleep(0.02)
        os.ftruncate(handle, 0)
        os.pwrite(handle, b"%d\n" % os.getpid(), 0)
        self.held[owner] = (handle, name)

    def open_lock(self, owner: Parts, name: bytes) -> int:
        """The client's lock, made where it is missing."""
        try:
            return os.open(name, os.O_CREAT | WRITE, 0o600, dir_fd=self.tree.directory(owner, make=True))
        except FileNotFoundError:
            self.tree.forget()  # swept as empty just now
            return os.open(name, os.O_CREAT | WRITE, 0o600, dir_fd=self.tree.directory(owner, make=True))

    def end(self) -> None:
        """The client is gone: release its locks."""
        for owner, (handle, name) in self.held.items():
            try:
                os.unlink(name, dir_fd=self.tree.directory(owner))
            except (OSError, Refused):
                pass
            os.close(handle)
        self.held.clear()

    def put(self, request: Dict[str, Any], body: memoryview) -> Dict[str, Any]:
        """client, stage, items -> {}; the methods below describe the items. Any of them may be sent again."""
        stage = self.stage_of(request["stage"])
        self.tree.directory(())
        self.hold(stage, request["client"])
        self.tree.directory(stage, make=True)
        used = 0
        for item in request["items"]:
            self.tree.trim()
            target = stage + parts_of(item[1])
            if item[0] == "piece":
                count = item[6]
                if item[5] == 0 and count == item[2]:
                    self.whole(target, item, body[used : used + count])
                else:
                    self.piece(stage, target, item, body[used : used + max(0, count)])
                used += max(0, count)
            elif item[0] == "clear":
                self.tree.remove(target)
            elif item[0] == "directory":
                self.tree.directory(target, make=True)
            elif item[0] == "seal":
                handle = self.tree.directory(target)
                os.utime(handle, ns=(item[3], item[3]))
                os.fchmod(handle, item[2] & MODES)
            elif item[0] == "link":
                self.link(target, item)
            else:
                raise BadFrame("unknown item")
        return {}

    def link(self, target: Parts, item: Row) -> None:
        """["link", path, target]"""
        self.tree.remove(target)
        parent = self.tree.directory(target[:-1], make=True)
        os.symlink(item[2].encode("utf-8", "surrogateescape"), target[-1], dir_fd=parent)

    def whole(self, target: Parts, item: Row, data: memoryview) -> None:
        """["piece", path, size, mode, mtime in ns, 0, size, SHA-256]: a file in one piece.

        It is written in place. If that is interrupted the sum is not noted, and promotion detects it.
        """
        digest = hashlib.sha256(data)
        if len(data) != item[2] or digest.hexdigest() != item[7]:
            raise Refused("torn", "%s arrived damaged" % item[1])
        parent = self.tree.directory(target[:-1], make=True)
        flags = os.O_CREAT | os.O_EXCL | WRITE
        try:
            handle = os.open(target[-1], flags, 0o600, dir_fd=parent)
        except FileExistsError:
            self.tree.remove(target)
            handle = os.open(target[-1], flags, 0o600, dir_fd=self.tree.directory(target[:-1], make=True))
        try:
            write_all(handle, data)
            self.finish(handle, item, digest)
        finally:
            os.close(handle)

    def piece(self, stage: Parts, target: Parts, item: Row, data: memoryview) -> None:
        """["piece", path, size, mode, mtime in ns, at, count, SHA-256 of all with the last one]; -count: zeros.

        A piece has 1 MB at most, even one of zeros: a client cannot claim more than it sends.
        """
        path, size, mtime_ns, at, count, wanted = item[1], item[2], item[4], item[5], item[6], item[7]
        if at < 0 or not -PIECE <= count <= PIECE or at + abs(count) > size:
            raise BadFrame("a piece of %d bytes at %d of %d" % (count, at, size))
        key = self.part_key(stage, path, size, mtime_ns)
        part = self.parts.get(key)
        if part is None or at != part.at:
            part = self.reopen(key, path, at)
        if count < 0:
            part.digest.update(ZEROS[:-count])
            part.at += -count
            os.ftruncate(part.handle, part.at)
        else:
            part.digest.update(data)
            os.lseek(part.handle, part.at, os.SEEK_SET)
            write_all(part.handle, data)
            part.at += len(data)
        if not wanted:
            return
        del self.parts[key]
        try:
            if part.at != size or part.digest.hexdigest() != wanted:
                self.tree.remove(key)
                raise Refused("torn", "%s arrived damaged" % path)
            self.finish(part.handle, item, part.digest)
        finally:
            os.close(part.handle)
        info = self.tree.info(target)
        if info is not None and stat.S_ISDIR(info.st_mode):
            self.tree.remove(target)
        to = self.tree.directory(target[:-1], make=True)
        os.rename(key[-1], target[-1], src_dir_fd=self.tree.directory(key[:-1]), dst_dir_fd=to)

    def part_key(self, stage: Parts, path: str, size: int, mtime_ns: int) -> Parts:
        """The path of an unfinished file: it differs for each version of the file."""
        told = "%d %d %s" % (size, mtime_ns, path)
        digest = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()
        return self.aside_of(stage) + (digest[:24].encode(),)

    def reopen(self, key: Parts, path: str, at: int) -> Part:
        """Continue a file after an interrupted connection."""
        old = self.parts.pop(key, None)
        if old is not None:
            os.close(old.handle)
        flags = WRITE | (os.O_CREAT | os.O_TRUNC if at == 0 else 0)
        try:
            handle = os.open(key[-1], flags, 0o600, dir_fd=self.tree.directory(key[:-1], make=True))
        except FileNotFoundError:
            raise Refused("gap", "the beginning of %s is missing" % path)
        if os.fstat(handle).st_size < at:
            os.close(handle)
            raise Refused("gap", "the beginning of %s is missing" % path)
        os.ftruncate(handle, at)
        part = Part(handle, read_sum(handle, at), at)
        self.parts[key] = part
        if len(self.parts) > MAX_OPEN:
            os.close(self.parts.pop(next(iter(self.parts))).handle)
        return part

    def part(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """client, stage, path, size, mtime_ns -> number of its bytes that arrived earlier"""
        stage = self.stage_of(request["stage"])
        self.tree.directory(())
        parts_of(request["path"])
        self.hold(stage, request["client"])
        info = self.tree.info(self.part_key(stage, request["path"], request["size"], request["mtime_ns"]))
        return {"have": 0 if info is None else info.st_size}

    def staged(self, request: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
        """client, stage, path -> rows, as of `list`, of what is staged there and below it, with the noted sums"""
        stage = self.stage_of(request["stage"])
        self.tree.directory(())
        self.hold(stage, request["client"])
        target = stage + parts_of(request["path"])
        info = self.tree.info(target)
        rows: List[Row] = []
        below: Iterator[Row] = iter(())
        if info is not None:
            name = b"/".join(target[len(stage) :])
            rows.append([text_of(name)] + row_of(info, self.tree.directory(target[:-1]), target[-1], True))
            if stat.S_ISDIR(info.st_mode):
                below = walk(os.dup(self.tree.directory(target)), name, True, True)
        for row in below:
            rows.append(row)
            if len(rows) >= MANY:
                yield {"rows": rows, "more": True}
                rows = []
        yield {"rows": rows}

    def finish(self, handle: int, item: Row, digest: Any) -> None:
        """Set times, the noted sum, permissions, in this order: a file without write permission accepts no note."""
        os.utime(handle, ns=(item[4], item[4]))
        info = os.fstat(handle)
        try:
            os.setxattr(handle, SUM, SUM_FORMAT.pack(info.st_size, info.st_mtime_ns, digest.digest()))
        except (OSError, struct.error):
            pass  # a file system without extended attributes: promotion reads the file
        os.fchmod(handle, item[3] & MODES)

    def drop_stage(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """stage -> {}"""
        stage = self.stage_of(request["stage"])
        self.tree.directory(())
        self.discard(stage)
        return {}

    def discard(self, stage: Parts) -> None:
        """Remove a stage and its unfinished files. Its owner's directory stays for the next stage."""
        aside = self.aside_of(stage)
        for key in [key for key in self.parts if key[: len(aside)] == aside]:
            os.close(self.parts.pop(key).handle)
        self.tree.remove(aside)
        self.tree.remove(stage)


def is_locked(handle: int) -> bool:
    """Whether this process holds the lock."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def end_gate(told: bytes) -> None:
    """End the process of that number, if it is a gate."""
    try:
        with open(b"/proc/%d/cmdline" % int(told), "rb") as file:
            words = file.read().split(b"\0")
        if b"--root" in words and int(told) != os.getpid():
            os.kill(int(told), signal.SIGKILL)
    except (OSError, ValueError):
        pass


def write_all(handle: int, data: memoryview) -> None:
    """Write all data, whatever its length."""
    while len(data):
        data = data[os.write(handle, data) :]


# --- publishing ---------------------------------------------------------------------------------------


class Publishing(Staging):
    """Requests of the boss, and of clients except for `remove` and `stages`."""

    def promote(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """promotions: [stage, [[path, kind, size, SHA-256 or a link's target]]] -> null or a sentence each

        `sync`: write everything to the disk before it is published.
        """
        root = self.tree.directory(())
        if request["sync"] and request["promotions"]:
            on_disk(root)
        return {"told": [self.promotion(stage, entries) for stage, entries in request["promotions"]]}

    def remove(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """name -> {}"""
        self.tree.directory(())
        self.tree.remove(parts_of(request["name"]))
        return {}

    def promotion(self, stage: str, entries: List[Row]) -> Optional[str]:
        """Publish all of one stage, or nothing."""
        self.tree.trim()
        try:
            place = self.stage_of(stage)
            moves, lacking = self.moves(place, entries)
            if lacking:
                return lacking
            for staged, final in moves:
                self.move(staged, final)
            self.discard(place)
        except Refused as refused:
            if refused.code == "away":
                raise
            return "a result cannot be published: %s" % refused.text
        except OSError as error:
            if error.errno in AWAY:
                raise
            named = error.filename
            where = text_of(named) if isinstance(named, bytes) else str(named)
            return "results cannot be published: %s: %s" % (error.strerror, where)
        return None

    def moves(self, stage: Parts, entries: List[Row]) -> Tuple[List[Tuple[Parts, Parts]], str]:
        """What is still to be moved; a sentence if something is missing, and then nothing may be moved."""
        moves: List[Tuple[Parts, Parts]] = []
        top: Parts = ()
        children = children_of(entries)
        for path, kind, size, wanted in entries:
            self.tree.trim()
            final = parts_of(path)
            inside = bool(top) and final[: len(top)] == top
            info = self.tree.info(stage + final)
            if info is None:
                if not self.stands(final, kind, size):
                    return [], "result %s is neither staged nor published" % path
                continue
            wrong = self.unlike(stage + final, info, kind, size, wanted)
            if not wrong and kind == "directory" and wanted != UNLISTED:
                wrong = self.unreported(stage + final, children.get(final, set()))
            if wrong:
                return [], "result %s %s" % (path, wrong)
            if not inside:
                self.tree.info(final)  # report a name that leads through a link before anything moves
                moves.append((stage + final, final))
                if kind == "directory":
                    top = final
        return moves, ""

    def stands(self, final: Parts, kind: str, size: int) -> bool:
        """Whether it has its final name already."""
        info = self.tree.info(final)
        if info is None or kind_of(info) != kind:
            return False
        return kind != "file" or info.st_size == size

    def unlike(self, staged: Parts, info: os.stat_result, kind: str, size: int, wanted: str) -> str:
        """How a staged file differs from what the worker reported; empty if it is the same."""
        if kind_of(info) != kind:
            return "was staged as a %s, not a %s" % (kind_of(info), kind)
        if kind == "link":
            target = text_of(os.readlink(staged[-1], dir_fd=self.tree.directory(staged[:-1])))
            return "" if target == wanted else "is a link to %s where it was staged, not to %s" % (target, wanted)
        if kind != "file":
            return ""
        if info.st_size != size:
            return "has %d bytes where it was staged, not %d" % (info.st_size, size)
        if not wanted:
            return ""
        try:
            handle = os.open(staged[-1], READ, dir_fd=self.tree.directory(staged[:-1]))
        except PermissionError:
            return ""  # without read permission its contents cannot be compared
        try:
            found = known_sum(handle, info) or read_sum(handle, size).hexdigest()
        finally:
            os.close(handle)
        return "" if found == wanted else "has other contents in the stage than its checksum says"

    def unreported(self, staged: Parts, reported: Set[bytes]) -> str:
        """Entries of a staged directory that the manifest lacks: they would be published with it."""
        try:
            found = {os.fsencode(name) for name in os.listdir(self.tree.directory(staged))}
        except PermissionError:
            return ""  # no later reader can list it either
        more = sorted(found - reported)
        return "holds %s where it was staged, which its worker did not report" % text_of(more[0]) if more else ""

    def move(self, staged: Parts, final: Parts) -> None:
        """Rename, replacing what has the final name."""
        source, target = self.tree.directory(staged[:-1]), self.parents(final)
        info, there = os.lstat(staged[-1], dir_fd=source), self.tree.info(final)
        closed = stat.S_ISDIR(info.st_mode) and not info.st_mode & 0o200
        if closed:
            # A directory without write permission cannot get another parent.
            os.chmod(staged[-1], stat.S_IMODE(info.st_mode) | 0o200, dir_fd=source)
        if there is not None and (stat.S_ISDIR(there.st_mode) or stat.S_ISDIR(info.st_mode)):
            # No rename replaces a directory that is not empty: move it aside first and remove it afterwards.
            aside = STAGING + (b".replaced-%d-%d" % (os.getpid(), time.time() * 1e6),)
            if stat.S_ISDIR(there.st_mode) and not there.st_mode & 0o200:
                os.chmod(final[-1], stat.S_IMODE(there.st_mode) | 0o200, dir_fd=target)
            os.rename(final[-1], b"old", src_dir_fd=target, dst_dir_fd=self.tree.directory(aside, make=True))
            os.rename(staged[-1], final[-1], src_dir_fd=source, dst_dir_fd=target)
            self.tree.remove(aside)
            target = self.tree.directory(final[:-1])
        else:
            os.rename(staged[-1], final[-1], src_dir_fd=source, dst_dir_fd=target)
        if closed:
            os.chmod(final[-1], stat.S_IMODE(info.st_mode), dir_fd=target)
        if stat.S_ISDIR(info.st_mode):
            self.tree.forget()

    def parents(self, final: Parts) -> int:
        """The directory of a final name, created if missing. Names a file in its way."""
        return self.tree.directory(final[:-1], make=True)

    def stages(self, request: Dict[str, Any]) -> Dict[str, Any]:
        """-> names of all stages. Removes what an interrupted promotion moved aside."""
        self.tree.directory(())
        found: List[str] = []
        try:
            owners = [os.fsencode(name) for name in os.listdir(self.tree.directory(STAGING))]
        except FileNotFoundError:
            owners = []
        for owner in owners:
            self.tree.trim()
            info = self.tree.info(STAGING + (owner,))
            if info is None or not stat.S_ISDIR(info.st_mode):
                continue
            if owner.startswith(b"."):
                if owner.startswith(b".replaced-") and info.st_ctime < time.time() - 3600:
                    self.tree.remove(STAGING + (owner,))
                continue
            found += ["%s/%s" % (text_of(owner), text_of(name)) for name in self.stages_of(STAGING + (owner,))]
        return {"stages": sorted(found)}

    def stages_of(self, owner: Parts) -> Set[bytes]:
        """The stages of one owner. Removes locks of clients that are gone, and empty directories."""
        found: Set[bytes] = set()
        directory = self.tree.directory(owner)
        for name in [os.fsencode(name) for name in os.listdir(directory)]:
            if not name.startswith(LOCK):
                # An upload that was interrupted before its first file was whole has only unfinished files.
                found.add(name.lstrip(b"."))
                continue
            try:
                handle = os.open(name, WRITE, dir_fd=directory)
            except OSError:
                continue
            if is_locked(handle):
                os.unlink(name, dir_fd=directory)
            os.close(handle)
        if not found:
            try:
                os.rmdir(owner[-1], dir_fd=self.tree.directory(owner[:-1]))
            except OSError:
                pass
            self.tree.forget()
        return found


def children_of(entries: List[Row]) -> Dict[Parts, Set[bytes]]:
    """The reported names in each directory."""
    children: Dict[Parts, Set[bytes]] = {}
    for row in entries:
        parts = parts_of(row[0])
        children.setdefault(parts[:-1], set()).add(parts[-1])
    return children


def kind_of(info: os.stat_result) -> str:
    """file, directory or link; every other kind counts as a file"""
    return "link" if stat.S_ISLNK(info.st_mode) else "directory" if stat.S_ISDIR(info.st_mode) else "file"


def on_disk(handle: int) -> None:
    """Flush everything below to the disk: no power failure leaves a final name with incomplete contents."""
    thread = threading.Thread(target=write_back, args=(handle,))
    thread.start()
    while thread.is_alive():
        thread.join(BUSY_S / 2)
        working()


def write_back(handle: int) -> None:
    """Flush the file system of the handle, or all if that is not possible."""
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle) == 0:
            return
    except (OSError, AttributeError):
        pass
    os.sync()


# --- the connection -------------------------------------------------------------------------------------


class Frames:
    """Reads requests and writes answers."""

    def __init__(self, source: BinaryIO, sink: int) -> None:
        self.source = source
        self.sink = sink
        self.said_at = time.monotonic()
        # One buffer for all frames: a new one for each would cost a page fault for every 4 KB.
        self.body = memoryview(bytearray(MAX_BODY))

    def read(self) -> Optional[Tuple[Any, memoryview]]:
        """The next request; None at the end."""
        signal.alarm(IDLE_S)
        head = self.source.read(HEAD.size)
        if not head:
            return None
        if len(head) < HEAD.size:
            raise BadFrame("cut off")
        length, body_length = HEAD.unpack(head)
        if length > MAX_JSON or body_length > MAX_BODY:
            raise BadFrame("too long")
        text = self.source.read(length)
        view, filled = self.body[:body_length], 0
        while filled < body_length:
            count = self.source.readinto(view[filled:])  # type: ignore[attr-defined]
            if not count:
                raise BadFrame("cut off")
            filled += count
        try:
            request = json.loads(text.decode("ascii"))
        except ValueError:
            raise BadFrame("no JSON")
        if not isinstance(request, dict):
            raise BadFrame("no object")
        return request, view

    def write(self, answer: Dict[str, Any], body: bytes = b"") -> None:
        """One frame."""
        text = json.dumps(answer, separators=(",", ":")).encode("ascii")
        waiting = [memoryview(HEAD.pack(len(text), len(body)) + text)]
        if body:
            waiting.append(memoryview(body))
        while waiting:
            count = os.writev(self.sink, waiting)
            while waiting and count >= len(waiting[0]):
                count -= len(waiting.pop(0))
            if waiting:
                waiting[0] = waiting[0][count:]
        self.said_at = time.monotonic()


FRAMES: Optional[Frames] = None


def working() -> None:
    """Called in long loops: tells the client that this continues."""
    if FRAMES is not None and time.monotonic() - FRAMES.said_at > BUSY_S:
        signal.alarm(IDLE_S)
        FRAMES.write({"busy": True})


class Gate:
    """One client's connection."""

    def __init__(self, frames: Frames, root: str, role: str, name: str, until_s: float) -> None:
        self.frames = frames
        self.until_s = until_s
        self.tree = Tree(root)
        owner = {"boss": None, "client": PEOPLES}.get(role, name)
        self.actor = Staging(self.tree, owner) if role == "worker" else Publishing(self.tree, owner)
        plain = ["stat", "get", "get_many", "list", "free", "part", "staged", "drop_stage"]
        if role != "worker":
            plain.append("promote")
        if role == "boss":
            plain += ["remove", "stages"]
        self.verbs: Dict[str, Callable[..., Any]] = {name: getattr(self.actor, name) for name in plain}

    def serve(self) -> int:
        """Answer until the client disconnects. Returns the exit code."""
        try:
            while True:
                frame = self.frames.read()
                # The access expired: the request is not answered, and the client reconnects with a new one.
                if frame is None or time.time() > self.until_s:
                    self.actor.end()
                    return 0
                self.answer(frame[0], frame[1])
                self.tree.forget()
        except BadFrame as bad:
            self.actor.end()
            self.frames.write({"error": "bad_frame", "text": "this is not a request: %s" % bad})
            return 1

    def answer(self, request: Dict[str, Any], body: memoryview) -> None:
        """Answer one request."""
        try:
            if request.get("do") == "put":
                answer: Any = self.actor.put(request, body)
            elif request.get("do") in self.verbs:
                answer = self.verbs[request["do"]](request)
            else:
                raise BadFrame("unknown or not allowed: %r" % request.get("do"))
            if isinstance(answer, tuple):
                self.frames.write(answer[0], answer[1])
            elif isinstance(answer, dict):
                self.frames.write(answer)
            else:
                for frame in answer:
                    self.frames.write(frame)
        except BrokenPipeError:
            raise
        except Refused as refused:
            self.frames.write({"error": refused.code, "text": refused.text})
        except OSError as error:
            missing = error.errno in (errno.ENOENT, errno.ENOTDIR) and request["do"] != "put"
            code = "not_there" if missing else "away" if error.errno in AWAY else "failed"
            text = "the datastore %s cannot be used: %s" % (self.tree.root, error.strerror)
            self.frames.write({"error": code, "text": text, "errno": error.errno})
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise BadFrame("%s: %s" % (type(error).__name__, error))


def main(argv: List[str]) -> int:
    """See the module's docstring."""
    global FRAMES
    options = {"--root": "", "--until": "inf"}
    rest = argv[1:]
    while rest and rest[0] in options and len(rest) > 1:
        options[rest[0]] = rest[1]
        rest = rest[2:]
    if not options["--root"] or not (
        rest in (["boss"], ["client"]) or (len(rest) == 2 and rest[0] == "worker" and rest[1])
    ):
        sys.stderr.write("usage: gate.py --root DIR [--until EPOCH_S] boss | client | worker NAME\n")
        return 2
    # Nothing but frames may go to the client.
    sink = os.dup(1)
    os.dup2(2, 1)
    for handle in (0, sink):
        try:
            fcntl.fcntl(handle, 1031, PIECE)  # F_SETPIPE_SZ: fewer turns for large files
        except OSError:
            pass
    os.umask(0o022)
    FRAMES = Frames(os.fdopen(os.dup(0), "rb", 1 << 18), sink)
    hello = {"gate": VERSION, "role": rest[0], "name": rest[-1], "clock_s": time.time(), "pid": os.getpid()}
    hello["can"] = ["staged", "client"]  # what earlier gates of this version lack
    hello["python"] = "%d.%d.%d" % sys.version_info[:3]
    try:
        os.write(sink, MAGIC)
        FRAMES.write(hello)
        return Gate(FRAMES, options["--root"], rest[0], rest[-1], float(options["--until"])).serve()
    except BrokenPipeError:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
