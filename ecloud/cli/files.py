"""Users' files: copies into and out of the datastore, and lists of its contents."""

from __future__ import annotations

import atexit
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath

from datastore.directory import DirectoryDatastore
from datastore.local_tree import Item, walk
from datastore.port import STAGING, DatastoreAway, Entry, Promotion, Publisher
from datastore.problem import DONE, PART_AWAY, Problem
from datastore.ssh.datastore import SshDatastore
from ecloud.cli import app
from ecloud.cli.progress import transfer
from ecloud.cli.tables import print_json, print_table
from ecloud.client.granted_access import AskForAccess, GrantedAccess
from ecloud.config.datastore_address import NOTES, directory_of, is_ssh, open_publisher
from ecloud.config.settings import Settings, load_settings
from ecloud.formats.scaled import initial_input_bytes
from ecloud.model.text import byte_size, counted, megabytes, when
from ecloud.queries import lookup
from ecloud.queries import status as queries

NAMES_A_REQUEST = 1_000
TOGETHER = 200
TOGETHER_BYTES = 1_000_000
"""Files up to this size are published together."""
SAME_TIME_S = 1.0
"""Tolerance of modification times, which may be stored in whole seconds."""


def open_datastore(
    settings: Settings, address: str, ask: AskForAccess | None = None, is_far: bool | None = None
) -> Publisher:
    """Open the datastore at `address`. `is_far`: the boss may be on another machine, so its directory must exist here,
    and over SSH the boss grants access through `ask`; by default true if `$ECLOUD_ACCESS` is set. On the boss's
    machine its own key opens the datastore. Raises `Problem`, `DatastoreAway`."""
    if is_far is None:
        is_far = bool(os.environ.get("ECLOUD_ACCESS"))
    if not is_ssh(address):
        if is_far and not (directory_of(address) / STAGING).is_dir():
            # The boss is elsewhere. Making the directory here would put the files where no worker sees them.
            text = f"this machine does not have the datastore {address}"
            advice = (
                "mount it, run this on the boss's machine, or use a datastore over SSH (python admin.py set_datastore)"
            )
            raise DatastoreAway(text, advice)
        return open_publisher(settings.home_directory, address)
    if is_far and ask is not None:
        return GrantedAccess(ask).opened()
    notes = queries.context(app.database(settings))
    if notes.get("datastore_address") != address:
        raise Problem(
            f"the datastore {address} is not set up: python admin.py set_datastore {address}", exit_code=PART_AWAY
        )
    address, host_key, python, gate = (notes.get(name, "") for name in NOTES)
    return open_publisher(settings.home_directory, address, host_key, python, gate)


def upload(directory: Path, datastore: Publisher, only: Sequence[str] | None = None) -> tuple[int, int]:
    """Upload every file below `directory`, or those in `only`, under its relative name. Returns the number of files
    sent and the number already present. A datastore inside the directory is not copied into itself.

    Raises `Unfit` before anything is sent, `DatastoreAway`, `OSError`; `Problem` if a file is in place of a name's
    directory.
    """
    directory = directory.resolve()  # Follow a link to a directory.
    own = _below(directory, datastore)
    if only is not None:
        files = [item for name in only for item in walk(directory / name, name) if not item.is_directory]
    else:
        files = [item for item in walk(directory, "", leave_out=own) if not item.is_directory]
    _refuse_below_a_file(datastore, {item.name for item in files})
    missing: list[Item] = []
    for start in range(0, len(files), NAMES_A_REQUEST):
        part = files[start : start + NAMES_A_REQUEST]
        for item, entry in zip(part, datastore.stat([item.name for item in part])):
            size, mtime_s = item.info.st_size, item.info.st_mtime
            if entry is None or entry.size != size or abs(entry.mtime_s - mtime_s) >= SAME_TIME_S:
                missing.append(item)
    sent = 0
    with (
        told_when_interrupted(
            lambda: f"{sent:,} of {counted(len(missing), 'file')} arrived; the next call resumes there"
        ),
        transfer(app.console(to_stderr=True), "uploading", sum(item.info.st_size for item in missing)),
    ):
        small = [item for item in missing if item.info.st_size <= TOGETHER_BYTES]
        for start in range(0, len(small), TOGETHER):
            _put_together(datastore, small[start : start + TOGETHER])
            sent += len(small[start : start + TOGETHER])
        for item in missing:
            if item.info.st_size > TOGETHER_BYTES:
                datastore.put(item.local, item.name)
                sent += 1
    return len(missing), len(files) - len(missing)


def _below(directory: Path, datastore: Publisher) -> Path | None:
    """Return the datastore's path below `directory` if it is a directory inside it or the same; else None."""
    if isinstance(datastore, DirectoryDatastore):
        place, root = directory.resolve(), datastore.root.resolve()
        if root.is_relative_to(place):
            return directory / root.relative_to(place)
    return None


def _refuse_below_a_file(datastore: Publisher, names: Iterable[str]) -> None:
    """Check that no name has an existing file in place of one of its directories. Raises `Problem`."""
    above = sorted({str(parent) for name in names for parent in PurePosixPath(name).parents} - {"."})
    for start in range(0, len(above), NAMES_A_REQUEST):
        part = above[start : start + NAMES_A_REQUEST]
        for name, entry in zip(part, datastore.stat(part)):
            if entry is not None and entry.kind == "file":
                raise Problem(f"{name} is a file in the datastore, and cannot contain files: name another path")


def _put_together(datastore: Publisher, files: list[Item]) -> None:
    """Publish small files together, so that they do not wait for the disk individually. Leaves no stage behind."""
    stage = f"put/{secrets.token_hex(12)}"
    try:
        entries = [entry for item in files for entry in datastore.store(stage, item.local, item.name)]
        problem = datastore.promote([Promotion(stage, tuple(entries))])[0]
        if problem is not None:
            raise Problem(problem)
    except BaseException:
        with suppress(Exception):
            datastore.drop_stage(stage)
        raise


@contextmanager
def told_when_interrupted(text: Callable[[], str]) -> Iterator[None]:
    """On Ctrl-C, print the result so far and what to do."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted: {text()}", file=sys.stderr)
        raise


def _kept(datastore: Publisher, over_ssh: str) -> str:
    """Describe the state of an interrupted copy; one to or from a directory starts again from the beginning."""
    return over_ssh if isinstance(datastore, SshDatastore) else "incomplete files were removed"


def make_initial_inputs(inputs: Iterable[tuple[str, int]], scale: float, datastore: Publisher) -> int:
    """Write the files that no task of a scaled WfFormat list makes; returns how many were missing."""
    inputs = list(inputs)
    made = 0
    for (path, size), entry in zip(inputs, datastore.stat([path for path, _ in inputs])):
        header = next(initial_input_bytes(path, size, scale))
        if entry is not None and entry.size == max(len(header), int(size * scale)):
            continue
        with tempfile.NamedTemporaryFile() as file:
            for piece in initial_input_bytes(path, size, scale):
                file.write(piece)
            file.flush()
            os.chmod(file.name, 0o644)
            datastore.put(Path(file.name), path)
        made += 1
    return made


# --- ls, get, put, du -------------------------------------------------------------------------------


def ls(path: str, task: str, run: str, recursive: bool, as_json: bool) -> int:
    """List entries below `path`, or the results of a task."""
    datastore = own_datastore()
    if task:
        found = [entry for entry in datastore.stat(_results_of(task, run)) if entry is not None]
    else:
        found = datastore.listing(path, recursive)
    if as_json:
        print_json([{"path": e.path, "kind": e.kind, "size": e.size, "mtime_s": e.mtime_s} for e in found])
        return DONE
    rows = [
        (_size(entry), when(entry.mtime_s), entry.path + ("/" if entry.kind == "directory" else "")) for entry in found
    ]
    print_table(app.console(), ("size", "changed", "path"), rows, right=("size",))
    return DONE


def _size(entry: Entry) -> str:
    return "" if entry.kind == "directory" else byte_size(entry.size)


def get(path: str, to: str, task: str, run: str, force: bool, as_json: bool) -> int:
    """Copy `path`, or the results of a task, to the local `to`: its new name, or a directory to copy into.

    `force`: replaces existing files.
    """
    datastore = own_datastore()
    if bool(path) == bool(task) and not (task and path):
        raise Problem("get what? A path, or --task TASK")
    if task:
        names, to = _results_of(task, run), path or to
        if not names:
            raise Problem(f"task {task} has no results")
    else:
        names = [path]
    target = Path(to)
    fetched: list[str] = []
    entries = dict(zip(names, datastore.stat(names)))
    size = sum(entry.size for entry in entries.values() if entry is not None)
    goes_on = "what arrived is kept beside it as .*.part: run get again to resume"
    with (
        told_when_interrupted(lambda: _kept(datastore, goes_on)),
        transfer(app.console(to_stderr=True), "fetching", size),
    ):
        _get(datastore, entries, target, force, fetched)
    print_json({"fetched": fetched}) if as_json else print("\n".join(fetched))
    return DONE


def _get(datastore: Publisher, entries: dict[str, Entry | None], target: Path, force: bool, fetched: list[str]) -> None:
    for name, entry in entries.items():
        local = target / Path(name).name if target.is_dir() or len(entries) > 1 else target
        if os.path.lexists(local):
            if len(entries) > 1 and entry is not None and _is_same(local, entry):
                fetched.append(str(local))  # fetched by an earlier command, which was interrupted
                continue
            if not force:
                raise Problem(f"{local} exists: name another place, or replace it with --force")
            if local.is_dir() and not local.is_symlink() and entry is not None and entry.kind != "directory":
                raise Problem(f"{local} is a directory and {name} is not: name another place")
        local.parent.mkdir(parents=True, exist_ok=True)
        datastore.fetch(name, local)
        fetched.append(str(local))


def _is_same(local: Path, entry: Entry) -> bool:
    """Compare by kind, size and time, as far as the copy preserves these."""
    status = os.lstat(local)
    is_kind = {"file": stat.S_ISREG, "directory": stat.S_ISDIR, "link": stat.S_ISLNK}[entry.kind]
    if not is_kind(status.st_mode) or (entry.kind == "file" and status.st_size != entry.size):
        return False
    return entry.kind == "link" or abs(entry.mtime_s - status.st_mtime) < SAME_TIME_S


def put(local: str, path: str, as_json: bool) -> int:
    """Copy a local file or directory into the datastore."""
    source = Path(local)
    if not source.exists():
        raise Problem(f"{local}: there is no such file")
    datastore = own_datastore()
    name = source.resolve().name
    if path.endswith("/") or (path and not source.is_dir() and _is_directory(datastore, path)):
        path = f"{path.rstrip('/')}/{name}"  # as with cp: a file goes into an existing directory and never replaces it
    if source.is_dir() and _below(source, datastore) is not None:
        raise Problem(f"the datastore is inside {local} and cannot contain itself: name other directories")
    there = datastore.stat([path or name])[0]
    if there is None:
        _refuse_below_a_file(datastore, [path or name])
    elif source.is_dir() and there.kind != "directory":
        raise Problem(f"{there.path} is a {there.kind} in the datastore, not a directory: name another path")
    size = sum(item.info.st_size for item in walk(source, "") if not item.is_directory)
    with (
        told_when_interrupted(lambda: _kept(datastore, "what arrived is kept for a day: run put again to resume")),
        transfer(app.console(to_stderr=True), "sending", size),
    ):
        entries = datastore.put(source, path or name)
    if as_json:
        print_json([{"path": entry.path, "kind": entry.kind, "size": entry.size} for entry in entries])
    else:
        print(
            f"{entries[0].path}: {counted(len(entries), 'entry', 'entries')}, {byte_size(sum(e.size for e in entries))}"
        )
    return DONE


def _is_directory(datastore: Publisher, path: str) -> bool:
    found = datastore.stat([path])[0]
    return found is not None and found.kind == "directory"


def du(path: str, as_json: bool) -> int:
    """Print the bytes below `path`, and the free space."""
    datastore = own_datastore()
    entries = datastore.listing(path, recursive=True)
    total = sum(entry.size for entry in entries if entry.kind == "file")
    free_mb = datastore.free_mb()
    if as_json:
        print_json({"bytes": total, "entries": len(entries), "free_mb": free_mb})
    else:
        print(f"{byte_size(total)} in {counted(len(entries), 'entry', 'entries')}; {megabytes(free_mb)} free")
    return DONE


def datastore_address(settings: Settings, context: dict[str, str]) -> str:
    """Return the datastore's address: from the settings, else the context, else in the boss's home."""
    return settings.datastore or context.get("datastore_address", "") or f"dir:{settings.home_directory.datastore}"


def own_datastore() -> Publisher:
    """Open the datastore of the cluster that the settings describe, or of that which `$ECLOUD_ACCESS` names. Raises
    `Problem`, `DatastoreAway`."""
    settings = load_settings()
    if os.environ.get("ECLOUD_ACCESS"):
        open_until_exit = ExitStack()
        atexit.register(open_until_exit.close)
        client = open_until_exit.enter_context(app.boss(settings))
        return open_datastore(settings, client.datastore_address, client.request)
    context = {} if settings.datastore else queries.context(app.database(settings))
    return open_datastore(settings, datastore_address(settings, context))


def _results_of(task: str, run: str) -> list[str]:
    detail = lookup.task(app.database(load_settings()), task, run)
    last = detail.last_attempt
    stored = [entry.path for entry in last.results] if last is not None else []
    tops = [path for path in stored if not any(path.startswith(other + "/") for other in stored)]
    return tops or [result.path for result in detail.definition.results]
