"""WfCommons WfFormat 1.5: recorded executions of scientific workflows -> tasks (https://github.com/wfcommons/WfFormat).

Unchanged, or scaled: each program replaced by a sleep that reads and writes files of the recorded names. Owns the names
of the files; `scaled` writes the scripts.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from ecloud.formats.checking import size_problem
from ecloud.formats.paths import is_glob, normalised, path_problem
from ecloud.formats.problems import Problem, Problems, TaskList, TaskListWrong, shown
from ecloud.formats.scaled import INITIAL, ScaledFile, scaled_commands
from ecloud.model.tasks import MAX_ID_CHARS, Dependency, Requirement, Result, TaskDefinition

_UNSAFE = re.compile(r"[^A-Za-z0-9._+=@-]+")
_NUMBERED = re.compile(r"_(ID)?\d+$")
_REDIRECTION = re.compile(r"[0-9]?(<|>|>>)(&[0-9])?")
_Amount = Annotated[float, msgspec.Meta(ge=0)]


class _File(msgspec.Struct):
    id: str
    sizeInBytes: _Amount = 0.0


class _Specified(msgspec.Struct):
    id: str
    name: str = ""
    parents: list[str] = []
    children: list[str] = []
    inputFiles: list[str] = []
    outputFiles: list[str] = []


class _Command(msgspec.Struct):
    program: str = ""
    arguments: list[str] = []


class _Executed(msgspec.Struct):
    id: str
    runtimeInSeconds: _Amount | None = None
    command: _Command | None = None
    coreCount: _Amount | None = None


class _Specification(msgspec.Struct):
    tasks: list[_Specified]
    files: list[_File] = []


class _Execution(msgspec.Struct):
    tasks: list[_Executed] = []


class _Workflow(msgspec.Struct):
    specification: _Specification
    execution: _Execution = msgspec.field(default_factory=_Execution)


def is_wfformat(document: dict[str, Any]) -> bool:
    """Whether the document claims to be a WfFormat file."""
    return "tasks" not in document and ("workflow" in document or "schemaVersion" in document)


def read_wfformat(
    document: dict[str, Any], name: str, scale: float | None, max_tasks: int, problems: Problems
) -> TaskList:
    """The workflow's tasks, unchecked. `scale` None keeps its programs. Raises `TaskListWrong` for another layout."""
    version = str(document.get("schemaVersion", "without a version"))
    try:
        workflow = msgspec.convert(document.get("workflow"), _Workflow)
    except UnicodeEncodeError:
        raise TaskListWrong(
            [Problem("", "", "not WfFormat: it has a lone surrogate, which is not valid Unicode")]
        ) from None
    except msgspec.ValidationError as error:
        text = str(error).replace("$", "workflow").replace("`", "")
        raise TaskListWrong([Problem("", "", f"not WfFormat 1.5 (its version is {shown(version)}): {text}")]) from None
    if len(workflow.specification.tasks) > max_tasks:
        raise TaskListWrong([Problem("", "", size_problem(len(workflow.specification.tasks), max_tasks))])
    return _Reading(workflow, scale, problems).task_list(name, version)


class _Reading:
    """One workflow while it is read."""

    def __init__(self, workflow: _Workflow, scale: float | None, problems: Problems) -> None:
        self._scale = scale
        self._problems = problems
        self._items = workflow.specification.tasks
        self._recorded = {item.id: item for item in workflow.execution.tasks}
        self._sizes = {file.id: int(min(file.sizeInBytes, 1e18)) for file in workflow.specification.files}
        self._makers = {made: item.id for item in self._items for made in item.outputFiles}
        used = [file for item in self._items for file in item.inputFiles]
        self._paths = safe_paths([*used, *self._makers])
        self._parents = self._all_parents()

    def task_list(self, name: str, version: str) -> TaskList:
        """All tasks, and notes about them."""
        tasks = [self._task(item) for item in self._items]
        initial = dict.fromkeys(
            file for item in self._items for file in item.inputFiles if self._makers.get(file, item.id) == item.id
        )
        notes = []
        if version.split(".")[:2] != ["1", "5"]:
            notes.append(f"WfFormat {shown(version)} is read as 1.5")
        renamed = [(file, path) for file, path in self._paths.items() if file != path]
        if renamed:
            file, path = renamed[0]
            notes.append(f"renamed in the datastore ({len(renamed):,}): {shown(file)} is {shown(path)}")
        if initial and self._scale is None:
            listed = ", ".join([*(shown(self._paths[file]) for file in list(initial)[:3]), *["…"][: len(initial) > 3]])
            notes.append(f"no task produces them, so they must be in the datastore ({len(initial):,}): {listed}")
        inputs = tuple((self._paths[file], self._sizes.get(file, 0)) for file in initial)
        return TaskList(name, tasks, tuple(notes), inputs)

    def _all_parents(self) -> dict[str, dict[str, None]]:
        """The dependencies of each task, from `parents`, from `children` of others, and from the files that it
        reads."""
        parents: dict[str, dict[str, None]] = {item.id: dict.fromkeys(item.parents) for item in self._items}
        for item in self._items:
            for child in item.children:
                if child in parents:
                    parents[child][item.id] = None
                else:
                    self._problems.add(f"task {shown(item.id)}", "children", f"there is no task {shown(child)}")
            for file in item.inputFiles:
                maker = self._makers.get(file, item.id)
                if maker != item.id:
                    parents[item.id][maker] = None
        return parents

    def _task(self, item: _Specified) -> TaskDefinition:
        recorded = self._recorded.get(item.id) or _Executed(item.id)
        files = list(dict.fromkeys([*item.inputFiles, *item.outputFiles]))
        local = self._local_names(files)
        inputs = list(dict.fromkeys(item.inputFiles))
        outputs = list(dict.fromkeys(item.outputFiles))
        runtime_s = recorded.runtimeInSeconds
        resources: dict[str, float] = {}
        if self._scale is None:
            commands = self._recorded_commands(recorded)
            if recorded.coreCount:
                resources["cpus"] = recorded.coreCount
        else:
            # The sleep that replaces a program needs no cores: one CPU, so that it also runs on a laptop.
            runtime_s = (runtime_s or 0.0) * self._scale
            reads = [self._scaled_file(file, self._producer(file, item.id), local) for file in inputs]
            writes = [self._scaled_file(file, item.id, local) for file in outputs]
            commands = scaled_commands(reads, writes, runtime_s, self._scale)
        label = _NUMBERED.sub("", item.name or item.id)[:MAX_ID_CHARS]
        return TaskDefinition(
            id=item.id,
            commands=commands,
            dependencies=tuple(Dependency(parent) for parent in self._parents[item.id]),
            requirements=tuple(Requirement(self._paths[file], local[file]) for file in inputs),
            results=tuple(Result(local[file], self._paths[file]) for file in outputs),
            resources=resources,
            runtime_s=runtime_s,
            labels=(label,) if label else (),
        )

    def _producer(self, file: str, reader: str) -> str:
        maker = self._makers.get(file, reader)
        return INITIAL if maker == reader else maker

    def _scaled_file(self, file: str, producer: str, local: dict[str, str]) -> ScaledFile:
        return ScaledFile(self._paths[file], local[file], self._sizes.get(file, 0), producer)

    def _local_names(self, files: list[str]) -> dict[str, str]:
        """Local names of files. A recorded relative id is the program's own name; of an absolute one or a URL it saw
        the end."""
        ends = {file: self._paths[file].rsplit("/", 1)[-1] for file in files if self._paths[file] != file}
        names = {file: ends.get(file, file) for file in files}
        taken = list(names.values())
        if len(set(taken)) == len(taken) and not any("/" in name for name in taken):
            return names
        return {file: self._paths[file] for file in files}

    def _recorded_commands(self, recorded: _Executed) -> tuple[str, ...]:
        command = recorded.command or _Command()
        if not command.program:
            text = "the file records none; --scale replaces programs by sleep"
            self._problems.add(f"task {shown(recorded.id)}", "command", text)
            return ()
        if not command.arguments:
            return (command.program,)  # a whole script, as Nextflow records it
        words = [_argument(argument) for argument in command.arguments]
        # Some recorders list the program again as the first argument, as argv has it: "./split_fasta" of split_fasta.
        if command.arguments[0].rsplit("/", 1)[-1] != command.program.rsplit("/", 1)[-1]:
            words.insert(0, shlex.quote(command.program))
        return (" ".join(words),)


def _argument(argument: str) -> str:
    """One recorded argument for the shell. Redirections stay as they are ("2>"); "--option value" is two words."""
    if _REDIRECTION.fullmatch(argument):
        return argument
    if argument.startswith("-"):
        try:
            return " ".join(map(shlex.quote, shlex.split(argument)))
        except ValueError:
            pass
    return shlex.quote(argument)


def safe_paths(files: Iterable[str]) -> dict[str, str]:
    """File ids -> datastore paths, unique and none below another. A valid relative path stays as it is."""
    wanted = list(dict.fromkeys(files))
    paths: dict[str, str] = {}
    taken: set[str] = set()
    directories: set[str] = set()

    def take(file: str, path: str) -> bool:
        parts = path.split("/")
        above = {"/".join(parts[:count]) for count in range(1, len(parts))}
        if path in taken or path in directories or not above.isdisjoint(taken):
            return False
        taken.add(path)
        directories.update(above)
        paths[file] = path
        return True

    counts: dict[str, int] = {}
    for file in [file for file in wanted if not (_is_safe(file) and take(file, file))]:
        path = _safe(file)
        if take(file, path):
            continue
        flat = path.replace("/", "_")[-MAX_ID_CHARS + 20 :]
        while not take(file, f"{flat}.{counts.setdefault(flat, 1)}"):
            counts[flat] += 1
    return {file: paths[file] for file in wanted}


def _is_safe(file: str) -> bool:
    return (
        path_problem(file) is None
        and "://" not in file
        and not is_glob(file)
        and file[0] not in "-~"
        and file.isprintable()
        and file == normalised(file)
    )


def _safe(file: str) -> str:
    parts = [_UNSAFE.sub("_", part)[-200:] for part in file.replace("://", "/").split("/")]
    path = "/".join(part for part in parts if part not in ("", ".", "..")).lstrip("-")
    return path if path and path_problem(path) is None else "file"
