"""The terms of the product as values: the fields of a task, the outcomes of an attempt, and the legal state changes.

Owns the state tables. Never does I/O, never reads a clock, never draws a random number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from typing import Annotated

import msgspec

DEFAULT_RUN_PRIORITY = 0
MAX_ID_CHARS = 255
"""Longest task id, run name, label, resource name: the limit of a unique index over UTF-8 text on every database."""
INIT_FAILURES_ALLOWED = 3
"""Number of worker processes in which an init task may fail before its run is held."""


Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""Whole numbers that every database keeps and every encoder writes: larger ones are refused when they are read, not
later, in the middle of another transaction."""


class TaskState(str, Enum):
    """The state of a task. `MOVES` lists the legal changes."""

    WAITING = "waiting"
    READY = "ready"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABORTED = "aborted"
    CANCELLED = "cancelled"

    __str__ = str.__str__


ENDED = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.ABORTED, TaskState.CANCELLED})
"""States in which nothing more happens to a task automatically."""

MOVES: tuple[tuple[TaskState, TaskState, str], ...] = (
    (TaskState.WAITING, TaskState.READY, "last dependency satisfied"),
    (TaskState.WAITING, TaskState.SUCCEEDED, "skipped: its results exist and overwrite_result is false"),
    (TaskState.READY, TaskState.SUCCEEDED, "skipped: its results exist and overwrite_result is false"),
    (TaskState.WAITING, TaskState.ABORTED, "a dependency ended in a way that makes it impossible"),
    (TaskState.READY, TaskState.RUNNING, "an attempt started"),
    (TaskState.RUNNING, TaskState.READY, "retry left, worker lost, attempt returned"),
    (TaskState.RUNNING, TaskState.SUCCEEDED, "outcome recorded and promoted"),
    (TaskState.READY, TaskState.SUCCEEDED, "outcome recorded and promoted"),
    (TaskState.RUNNING, TaskState.FAILED, "outcome recorded, no retry left"),
    (TaskState.READY, TaskState.FAILED, "outcome recorded, no retry left"),
    (TaskState.WAITING, TaskState.CANCELLED, "a person"),
    (TaskState.READY, TaskState.CANCELLED, "a person"),
    (TaskState.RUNNING, TaskState.CANCELLED, "a person"),
    (
        TaskState.READY,
        TaskState.ABORTED,
        "an array: the tasks that its last elements wait for ended, and these elements can never run",
    ),
    (TaskState.READY, TaskState.WAITING, "redo of a dependency, or a push that replaces it"),
    (TaskState.RUNNING, TaskState.WAITING, "redo of a dependency, or a push that replaces it"),
    *tuple(
        (ended, again, "retry_failed, redo_task, or a push that replaces it")
        for ended in (TaskState.FAILED, TaskState.ABORTED, TaskState.CANCELLED, TaskState.SUCCEEDED)
        for again in (TaskState.WAITING, TaskState.READY)
    ),
)
"""(from, to, by). The diagram in docs/ is drawn from this table.

READY -> SUCCEEDED and READY -> FAILED are listed because a short task's start and end may reach the boss in one batch.
"""

LEGAL_TASK_MOVES = frozenset((a, b) for a, b, _ in MOVES)


class AttemptState(str, Enum):
    """The state of one attempt."""

    ASSIGNED = "assigned"
    STARTED = "started"
    PROMOTING = "promoting"
    STOPPING = "stopping"
    ENDED = "ended"
    RETURNED = "returned"
    LOST = "lost"

    __str__ = str.__str__


ATTEMPT_MOVES: tuple[tuple[AttemptState, AttemptState, str], ...] = (
    (AttemptState.ASSIGNED, AttemptState.STARTED, "the worker started it"),
    (AttemptState.ASSIGNED, AttemptState.PROMOTING, "outcome recorded, results staged"),
    (AttemptState.STARTED, AttemptState.PROMOTING, "outcome recorded, results staged"),
    (AttemptState.PROMOTING, AttemptState.ENDED, "results promoted"),
    (AttemptState.ASSIGNED, AttemptState.ENDED, "outcome recorded"),
    (AttemptState.STARTED, AttemptState.ENDED, "outcome recorded"),
    (AttemptState.ASSIGNED, AttemptState.RETURNED, "given back before it started"),
    (
        AttemptState.STARTED,
        AttemptState.RETURNED,
        "given back: the worker could not run it, through no fault of the task",
    ),
    (AttemptState.ASSIGNED, AttemptState.STOPPING, "the boss no longer wants it"),
    (AttemptState.STARTED, AttemptState.STOPPING, "the boss no longer wants it"),
    (AttemptState.STOPPING, AttemptState.ENDED, "outcome recorded"),
    (AttemptState.STOPPING, AttemptState.RETURNED, "given back before it started"),
    (AttemptState.ASSIGNED, AttemptState.LOST, "its worker is gone"),
    (AttemptState.STARTED, AttemptState.LOST, "its worker is gone"),
    (AttemptState.STOPPING, AttemptState.LOST, "its worker is gone"),
)

LEGAL_ATTEMPT_MOVES = frozenset((a, b) for a, b, _ in ATTEMPT_MOVES)
ATTEMPT_OVER = frozenset({AttemptState.ENDED, AttemptState.RETURNED, AttemptState.LOST})


class Condition(str, Enum):
    """The condition that a dependent sets for the task it waits for."""

    SUCCESS = "success"
    ANY = "any"
    FAILURE = "failure"
    """Met by any end without success: failed, aborted or cancelled."""

    __str__ = str.__str__

    def met_by(self, ended: TaskState) -> bool:
        """Return whether a dependency that ended in state `ended` allows the dependent to continue."""
        return self is Condition.ANY or (ended is TaskState.SUCCEEDED) == (self is Condition.SUCCESS)


class Cause(str, Enum):
    """How an attempt ended."""

    SUCCESS = "success"
    EXIT = "exit"
    """A command ended with an exit code other than 0."""
    SIGNAL = "signal"
    """A signal that ECLOUD did not send ended the commands."""
    TIMEOUT = "timeout"
    REQUIREMENT = "requirement"
    """A required file is not in the datastore."""
    RESULT = "result"
    """A promised result file did not exist after the commands."""
    MEMORY = "memory"
    """Its processes used more memory than the `memory_mb` that the task requests."""
    STOPPED = "stopped"
    """The boss ordered it: cancelled, replaced."""

    __str__ = str.__str__


RETRIABLE = (Cause.EXIT, Cause.SIGNAL, Cause.TIMEOUT, Cause.REQUIREMENT, Cause.RESULT, Cause.MEMORY)

Resources = dict[str, float]
"""Amounts by name: `cpus` (default 1), `memory_mb`, `gpus` (whole), and any name that the users define."""
ROUNDING = 1e-6
"""Amounts are sums of decimal fractions: smaller differences are ignored."""


def fits(offers: Resources, asks: Iterable[tuple[str, float]]) -> bool:
    """Return whether the requested amounts, as (name, amount), fit into the offered ones."""
    # Called several times for each task; `all` would cost twice as much.
    for name, amount in asks:  # noqa: SIM110
        if offers.get(name, 0.0) + ROUNDING < amount:
            return False
    return True


class Dependency(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task of the same run, by the user's id, that must end first. `each`: of an array on an array, element by
    element."""

    id: str
    on: Condition = Condition.SUCCESS
    each: bool = False


class Requirement(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file or directory fetched before the commands: `path` below the datastore's root, `local` in the working
    directory."""

    path: str
    local: str


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file, directory or glob kept after the commands: `local` in the working directory, `path` below the datastore's
    root.

    If `local` is a glob, `path` is the directory for its matches, each under its name relative to the glob's fixed
    part. `merge`: a directory whose files are added to those that other tasks published below `path`, instead of
    replacing the directory.
    """

    local: str
    path: str
    merge: bool = False


class Retries(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many times a task is tried again, and after which causes. A lost worker costs no retry.

    `grow`: after cause `memory` the task requests this multiple of its memory, up to what any worker or pool has.
    """

    max: Int32 = 0
    on: tuple[Cause, ...] = RETRIABLE
    grow: float = 1.0


RUNTIMES = ("auto", "apptainer", "podman", "docker", "charliecloud", "bubblewrap")


class Container(msgspec.Struct, frozen=True, omit_defaults=True):
    """The container in which a task's commands run. `image`: a name in a registry, a file, or a directory by its
    absolute path.

    `binds`: `here`, `here:there` or `here:there:ro`, absolute paths. `gpus`: whether it sees the task's GPUs.
    """

    image: str
    runtime: str = "auto"
    binds: tuple[str, ...] = ()
    gpus: bool = False


INLINE_BYTES = 32 * 1024
"""Largest pickle (a function, arguments, a value) that is sent in a message. Larger ones are files in the datastore."""


class Call(msgspec.Struct, frozen=True, omit_defaults=True):
    """A Python function call, in place of commands. Neither boss nor worker unpickles anything of it.

    `function`: SHA-256 of the pickled function, in hex; `code`: that pickle, if it is small. `arguments`: the pickled
    arguments, if they are small. Large pickles are requirements of the task: `function_file` and `arguments_file` are
    their names in the working directory. `value`: the file for a large value: a path below the datastore's root in
    which `%a` stands for the number of the attempt. `many`: the arguments are a list of arguments, and the value is the
    list of values. `fingerprint`: of the function's source, the same in each process that pickles it. `setup`: a
    pickled initializer with its arguments, called once in each interpreter; `project`: name in the working directory of
    an archive of the user's modules, a requirement.
    """

    name: str
    function: str
    code: bytes = b""
    function_file: str = ""
    arguments: bytes = b""
    arguments_file: str = ""
    value: str = ""
    needs: tuple[str, ...] = ()
    """Ids of calls whose values are among the arguments: dependencies of the task."""
    shared: tuple[str, ...] = ()
    """Requirements that many calls have: names in the working directory that are hashes of their content. A worker
    fetches each once; they never change."""
    many: bool = False
    fingerprint: str = ""
    python: str = ""
    """Version of the Python that pickled it, such as `3.11`. The task requests the resource of the same name."""
    setup: bytes = b""
    project: str = ""
    max_calls: Int32 = 10_000
    """Calls after which an interpreter is replaced."""


class Entry(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """The input of one element of an array. `fields`: of a JSON object, as texts."""

    index: Int32
    text: str
    fields: dict[str, str] = {}


class ArrayOf(msgspec.Struct, frozen=True, omit_defaults=True):
    """The elements of an array. `indices`: as `ecloud.model.ranges.Indices` writes them, ascending. `entries`: one for
    each index, in that order; without any, an element's entry is its index. `words`: a program and its arguments that
    each element runs, instead of the template's commands.

    A long list is sent in several definitions of the same id, one after another: the later ones hold `entries` only.
    """

    indices: str = ""
    entries: tuple[Entry, ...] = ()
    words: tuple[str, ...] = ()


_ONE_CPU: Resources = {"cpus": 1.0}
"""One object for the many tasks that ask for nothing else."""


class TaskDefinition(msgspec.Struct, frozen=True, omit_defaults=True):
    """One task as its user wrote it, normalised. Times in seconds, memory in MB. With `array`: the template of its
    elements.

    The hash of its canonical JSON (`definition_json`) shows whether a pushed task is the same as before.
    """

    id: str
    commands: tuple[str, ...] = ()
    dependencies: tuple[Dependency, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    results: tuple[Result, ...] = ()
    init: bool = False
    overwrite_result: bool = True
    resources: Resources = {}
    priority: Int32 = DEFAULT_RUN_PRIORITY
    runtime_s: float | None = None
    timeout_s: float | None = None
    retries: Retries = Retries()
    env: dict[str, str] = {}
    labels: tuple[str, ...] = ()
    shell: str = ""
    """A POSIX shell with its options, such as `bash -euo pipefail`; empty: the setting `SHELL`."""
    container: Container | None = None
    stdout: str = ""
    """File for its whole output: a path below the datastore's root in which `%t` is the task's id, `%a` the number of
    the attempt, and `%%` a percent sign. Empty: only the end of the output is kept, in the database."""
    stderr: str = ""
    """The same for stderr; or `stdout`: both are written to the file of `stdout`, in their order."""
    call: Call | None = None
    array: ArrayOf | None = None
    body_file: str = ""
    """Long commands and variables travel as a file of the datastore (`LongBody` as JSON): the name of that requirement
    in the working directory. `commands` and `env` then hold what stands in for them."""

    @property
    def asks(self) -> Resources:
        """The resources that it uses on a worker while it runs: by default one CPU."""
        return {**_ONE_CPU, **self.resources} if self.resources else _ONE_CPU


class TaskBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """The part of a task that only the worker needs. Kept in the database as JSON, never in the boss's memory."""

    id: str
    commands: tuple[str, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    results: tuple[Result, ...] = ()
    timeout_s: float | None = None
    env: dict[str, str] = {}
    shell: str = ""
    container: Container | None = None
    stdout: str = ""
    stderr: str = ""
    call: Call | None = None
    body_file: str = ""


class LongBody(msgspec.Struct, frozen=True):
    """The commands and variables of a task whose definition would be too long for a message or a database row."""

    commands: tuple[str, ...]
    env: dict[str, str] = {}


BODY_PREFIX = ".ecloud-body-"
"""Begins the names of such files in the working directory; the rest is the SHA-256 of the file, in hex."""


MERGED = "stdout"
"""`stderr` of a task whose streams are merged."""
_OUTPUT_SIGN = re.compile("%[ta%]")


def output_path(template: str, task: str, number: int | str) -> str:
    """Return the path for an output of attempt `number` of a task, from the task's `stdout` or `stderr`."""
    signs = {"%t": task, "%a": str(number), "%%": "%"}
    return _OUTPUT_SIGN.sub(lambda found: signs[found[0]], template)


class ManifestEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One result of an attempt as it was staged. `path`: its final name below the datastore's root; `size` in bytes.

    `kind` is file, directory or link; `sha256` is hex for a file, the target for a link, empty for a directory.
    `mode` holds the permission bits. Entries of a directory result are listed one by one, parents first.
    """

    path: str
    size: Int64 = 0
    sha256: str = ""
    kind: str = "file"
    mode: Int32 = 0o644


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an attempt ended, as the worker reports it.

    `error` is one sentence for the user; `command` the command that failed, or its first 16,384 characters; `stdout`
    and `stderr` are tails.
    Durations in seconds on the worker's monotonic clock. `max_rss_mb` is the peak memory of its processes, if known.
    `fetch_bytes`: of its requirements; `cached_bytes`: of those that the worker had already. `value`: of a call, the
    pickled value or exception, if it is small.
    """

    task_no: Int64
    number: Int32
    cause: Cause
    exit_code: Int32 | None = None
    signal: Int32 | None = None
    error: str = ""
    command: str = ""
    stdout: str = ""
    stderr: str = ""
    fetch_s: float = 0.0
    run_s: float = 0.0
    store_s: float = 0.0
    max_rss_mb: float | None = None
    manifest: tuple[ManifestEntry, ...] = ()
    fetch_bytes: Int64 = 0
    cached_bytes: Int64 = 0
    value: bytes = b""
    stamps: dict[str, str] = {}
    """Of a success: what its requirements were, by path (`datastore.stamps`), for the first `MAX_STAMPS` of them."""

    @property
    def is_term(self) -> bool:
        """Whether a SIGTERM that ECLOUD did not send ended the commands. A shell reports it as exit code 143."""
        by_shell = self.cause is Cause.EXIT and self.exit_code == 128 + SIGTERM
        return by_shell or (self.cause is Cause.SIGNAL and self.signal == SIGTERM)


SIGTERM = 15
"""Its number on every system that runs workers."""
MAX_STAMPS = 200
SUCCESS_TAIL_BYTES = 64 * 1024
"""Amount kept of each output stream after a success."""
FAILURE_TAIL_BYTES = 64 * 1024
"""Amount kept of each output stream after any other end."""

_encoder = msgspec.json.Encoder(order="sorted")


def definition_json(definition: TaskDefinition) -> bytes:
    """The canonical JSON of a definition: the same definition gives the same bytes on any machine."""
    return _encoder.encode(definition)
