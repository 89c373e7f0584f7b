"""From stages to final names on an SFTP server: looked at, compared with their sums, and then renamed; of all
promotions at once, in few questions."""

from __future__ import annotations

import stat
import struct
import time
from collections.abc import Iterator
from concurrent.futures import Future

from datastore import sftp_connection as sftp
from datastore.directory import parts_of
from datastore.port import STAGING, BadName, DatastoreAway, Entry, Promotion
from datastore.sftp_connection import Attributes, Missing, Refused, Reply, string
from datastore.sftp_sums import Shell, sums_of
from datastore.sftp_tree import AT_ONCE, Tree, kind_of, parents_of, stage_place, unfinished_place

ANSWER = str | None


class _Case:
    """One promotion on its way. `problem`: why nothing of it is moved."""

    def __init__(self, promotion: Promotion) -> None:
        self.promotion = promotion
        self.problem = ""
        self.place = ""
        self.rows: list[tuple[str, Entry]] = []
        """Final names as they are written, and what was told of them."""
        self.moves: list[str] = []
        self.found: dict[str, Attributes] = {}
        """What is staged, by its final name."""
        try:
            self.place = stage_place(promotion.stage)
            self.rows = [("/".join(parts_of(entry.path)), entry) for entry in promotion.entries]
        except BadName as error:
            self.problem = f"a result can't be published: {error}"

    def staged(self, name: str) -> str:
        """Where it is before."""
        return f"{self.place}/{name}"


def promote(tree: Tree, shell: Shell, promotions: list[Promotion], durable: bool) -> list[ANSWER]:
    """See `port.Publisher.promote`. Raises `DatastoreAway`, `Lost`."""
    cases = [_Case(promotion) for promotion in promotions]
    tree.require_root()
    _look(tree, cases)
    _compare(tree, shell, cases)
    if durable:
        _sync(tree, shell, cases)
    waiting: list[tuple[_Case, str, Future[Reply]]] = []
    for case in _good(cases):
        try:
            tree.make({name.rpartition("/")[0] for name in case.moves if "/" in name})
        except NotADirectoryError as error:
            case.problem = f"results can't be published: {error.strerror}: {error.filename}"
            continue
        for name in case.moves:
            if kind_of(case.found[name]) == "directory":
                _settle(tree, waiting)
                _replace(tree, case, name)
            else:
                waiting.append((case, name, tree.rename(case.staged(name), name)))
    _settle(tree, waiting)
    _discard(tree, list(_good(cases)))
    return [case.problem or None for case in cases]


def _good(cases: list[_Case]) -> Iterator[_Case]:
    return (case for case in cases if not case.problem)


def _look(tree: Tree, cases: list[_Case]) -> None:
    """What is still to be moved, and what is lacking."""
    names = [name for case in _good(cases) for name, _ in case.rows]
    staged = [case.staged(name) for case in _good(cases) for name, _ in case.rows]
    links = tree.links_above([*names, *staged])
    found = tree.looked_at([*names, *staged])
    for case in _good(cases):
        top = ""
        for name, entry in case.rows:
            one = found[case.staged(name)]
            # Below a directory that moves whole there is nothing left to move, nor anything in the way.
            is_inside = one is not None and bool(top) and name.startswith(top + "/")
            link = links.get(case.staged(name)) or (None if is_inside else links.get(name))
            if link is not None:
                case.problem = f"a result can't be published: {name!r} leads through the link {link!r}"
                break
            if one is None:
                if not _stands(found[name], entry):
                    case.problem = f"result {entry.path} is neither staged nor published"
                    break
                continue
            if wrong := _unlike(one, entry):
                case.problem = f"result {entry.path} {wrong}"
                break
            case.found[name] = one
            if not is_inside:
                case.moves.append(name)
                top = name if entry.kind == "directory" else top


def _stands(found: Attributes | None, entry: Entry) -> bool:
    """Whether it is under its final name already."""
    if found is None or kind_of(found) != entry.kind:
        return False
    return entry.kind != "file" or found.size == entry.size


def _unlike(found: Attributes, entry: Entry) -> str:
    if kind_of(found) != entry.kind:
        return f"was staged as a {kind_of(found)}, not a {entry.kind}"
    if entry.kind == "file" and found.size != entry.size:
        return f"has {found.size} bytes where it was staged, not {entry.size}"
    return ""


def _compare(tree: Tree, shell: Shell, cases: list[_Case]) -> None:
    """Every staged file is read there once, and its sum is the one that was told."""
    files = {}
    for case in _good(cases):
        for name, entry in case.rows:
            if entry.kind == "file" and entry.sha256 and name in case.found:
                files[case.staged(name)] = entry.size
    sums = sums_of(tree, shell, files)
    for case in _good(cases):
        for name, entry in case.rows:
            told = sums.get(case.staged(name), "")
            if told and entry.kind == "file" and told != entry.sha256:
                case.problem = f"result {entry.path} has other contents where it was staged than its sum tells"
                break


def _sync(tree: Tree, shell: Shell, cases: list[_Case]) -> None:
    """No power cut leaves a final name with less than its contents."""
    files = [case.staged(name) for case in _good(cases) for name, one in case.found.items() if kind_of(one) == "file"]
    if not files:
        return
    shell.start()
    if shell.has_shell:
        shell.sync(tree.root)
    elif sftp.SYNC in tree.connection.extensions:
        for start in range(0, len(files), AT_ONCE):
            _sync_each(tree, files[start : start + AT_ONCE])


def _sync_each(tree: Tree, names: list[str]) -> None:
    opening = [tree.send(sftp.OPEN, name, struct.pack("!II", sftp.TO_READ, 0)) for name in names]
    asked = []
    for future in opening:
        try:
            handle = sftp.handle_of(future.result())
        except Refused:
            continue
        asked.append(tree.connection.send(sftp.EXTENDED, string(sftp.SYNC) + string(handle)))
        tree.connection.send(sftp.CLOSE, string(handle))
    for future in asked:
        try:
            sftp.done(future.result())
        except Refused as refused:
            raise DatastoreAway(f"the datastore {tree.root} can't write: {refused}") from refused


def _settle(tree: Tree, waiting: list[tuple[_Case, str, Future[Reply]]]) -> None:
    """Wait for the renames that are under way. One onto a directory is refused: that is made with more care."""
    for case, name, future in waiting:
        try:
            sftp.done(future.result())
        except Refused:
            _replace(tree, case, name)
    waiting.clear()


def _replace(tree: Tree, case: _Case, name: str) -> None:
    """Rename, with whatever stands there put aside first and away afterwards."""
    staged = case.staged(name)
    there = tree.looked_at([name])[name]
    mode = stat.S_IMODE(case.found[name].mode)
    is_directory = kind_of(case.found[name]) == "directory"
    closed = is_directory and not mode & 0o200
    aside = f"{STAGING}/.replaced-{time.time_ns()}"
    try:
        if closed:  # a directory that can't be written can't be given another parent
            sftp.done(tree.send(sftp.SETSTAT, staged, sftp.attributes(mode=mode | 0o200)).result())
        if there is not None and "directory" in (kind_of(there), kind_of(case.found[name])):
            tree.make([aside])
            if kind_of(there) == "directory" and not there.mode & 0o200:
                writable = sftp.attributes(mode=stat.S_IMODE(there.mode) | 0o200)
                sftp.done(tree.send(sftp.SETSTAT, name, writable).result())
            sftp.done(tree.rename(name, f"{aside}/old").result())
            sftp.done(tree.rename(staged, name).result())
            tree.remove(aside)
        else:
            sftp.done(tree.rename(staged, name).result())
        if closed:
            sftp.done(tree.send(sftp.SETSTAT, name, sftp.attributes(mode=mode)).result())
    except (Missing, Refused) as refused:
        raise DatastoreAway(f"{name} can't be published in the datastore: {refused}") from refused


def _discard(tree: Tree, cases: list[_Case]) -> None:
    """Stages that were wholly promoted. Where nothing but their directories is left, these go at once."""
    asked: list[tuple[_Case, Future[Reply]]] = []
    for case in cases:
        tree.send(sftp.RMDIR, unfinished_place(case.promotion.stage))
        inner = {parent for name in case.moves for parent in parents_of(name)}
        for directory in sorted(inner, key=lambda name: -name.count("/")):
            tree.send(sftp.RMDIR, case.staged(directory))
        asked.append((case, tree.send(sftp.RMDIR, case.place)))
    for case, future in asked:
        try:
            sftp.done(future.result())
        except Missing:
            pass
        except Refused:
            discard(tree, case.promotion.stage)
    for owner in {case.place.rpartition("/")[0] for case in cases}:
        tree.send(sftp.RMDIR, owner)


def discard(tree: Tree, stage: str) -> None:
    """A stage and the unfinished files beside it, gone."""
    tree.remove(unfinished_place(stage))
    tree.remove(stage_place(stage))
