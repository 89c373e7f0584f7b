"""Long commands and variables of tasks: they travel to the workers as files of the datastore, not in messages."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from datastore.port import DatastoreAway, Publisher
from datastore.problem import Problem
from ecloud.model.tasks import BODY_PREFIX, LongBody, Requirement, TaskDefinition
from ecloud.model.text import byte_size, counted

LONG_BYTES = 256 * 1024
"""Commands and variables above this size, as JSON, travel as a file: messages and database rows stay below 1 MB."""
DIRECTORY = "commands"
"""Of the datastore, for these files. Each is named after its content and is needed as long as its task may run."""
_LONGEST_ESCAPE = 6
"""Bytes of one character in JSON, at most."""


def move_long_bodies(tasks: list[TaskDefinition], open_datastore: Callable[[], Publisher]) -> list[TaskDefinition]:
    """Store the long bodies of these tasks in the datastore and return the tasks that refer to them.

    If the datastore cannot be used from this machine, the tasks stay as they are, with a note on stderr: the broker and
    the database may take long messages and rows. Calls `open_datastore` only if a task has a long body.
    """
    long = {index: data for index, task in enumerate(tasks) if (data := _long_body(task)) is not None}
    if not long:
        return tasks
    paths = {index: f"{DIRECTORY}/{hashlib.sha256(data).hexdigest()}" for index, data in long.items()}
    try:
        _store({paths[index]: data for index, data in long.items()}, open_datastore())
    except (Problem, DatastoreAway, OSError) as error:
        largest = max(long, key=lambda index: len(long[index]))
        print(
            f"note: the commands of task {tasks[largest].id} ({byte_size(len(long[largest]))}) travel in one message, "
            f"because the datastore cannot be used from here: {error}",
            file=sys.stderr,
        )
        return tasks
    moved = list(tasks)
    for index, path in paths.items():
        moved[index] = _refer(tasks[index], path, len(long[index]))
    return moved


def _long_body(task: TaskDefinition) -> bytes | None:
    """The JSON of a task's commands and variables if it is long. Arrays keep theirs: each element fills in its own."""
    if task.call is not None or task.array is not None:
        return None
    characters = sum(map(len, task.commands)) + sum(map(len, task.env.values()))
    if characters * _LONGEST_ESCAPE <= LONG_BYTES:
        return None
    data = msgspec.json.encode(LongBody(task.commands, task.env))
    return data if len(data) > LONG_BYTES else None


def _store(files: dict[str, bytes], datastore: Publisher) -> None:
    """Publish the files that are not there yet."""
    names = list(files)
    for name, entry in zip(names, datastore.stat(names)):
        if entry is not None and entry.size == len(files[name]):
            continue
        with tempfile.TemporaryDirectory(prefix="ecloud-commands-") as place:
            file = Path(place) / "commands"
            file.write_bytes(files[name])
            datastore.put(file, name)


def _refer(task: TaskDefinition, path: str, size: int) -> TaskDefinition:
    """The task with a requirement in place of its commands. A worker too old to know `body_file` runs what stands in
    for them, which fails."""
    local = BODY_PREFIX + path.rpartition("/")[2]
    text = f"{counted(len(task.commands), 'command')} of {byte_size(size)} in {path} of the datastore"
    stand_in = f"# {text}\necho 'update ECLOUD on this worker: it cannot read {text}' >&2; exit 1"
    requirements = (*task.requirements, Requirement(path, local))
    return msgspec.structs.replace(task, commands=(stand_in,), env={}, requirements=requirements, body_file=local)


def commands_of(task: TaskDefinition, open_datastore: Callable[[], Publisher]) -> tuple[str, ...]:
    """The commands of a stored task, from the datastore if they are long. Raises `Problem`, `DatastoreAway`."""
    path = next((one.path for one in task.requirements if task.body_file and one.local == task.body_file), "")
    if not path:
        return task.commands
    with tempfile.TemporaryDirectory(prefix="ecloud-commands-") as place:
        file = Path(place) / "commands"
        open_datastore().fetch(path, file)
        return msgspec.json.decode(file.read_bytes(), type=LongBody).commands
