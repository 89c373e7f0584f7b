"""WfCommons WfFormat 1.5: recorded executions of scientific workflows -> tasks (https://github.com/wfcommons/WfFormat).

As it is, or scaled: each program replaced by a sleep of its recorded run-time, which checks that its input files are those of their
producers, and writes files of the recorded sizes.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from ecloud.formats.checking import path_problem
from ecloud.formats.problems import Problem, TaskList, TaskListWrong
from ecloud.tasks import Dependency, Requirement, Result, TaskDefinition

INITIAL = "initial input"
"""Stands in the first line of a scaled file that no task makes, in place of the producer's id."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._+=@-]+")
_NUMBERED = re.compile(r"[_.-]?(ID)?\d+$")


def is_wfformat(document: dict[str, Any]) -> bool:
    """Whether this is a WfFormat file."""
    return isinstance(document.get("workflow"), dict) and "schemaVersion" in document


def read_wfformat(document: dict[str, Any], name: str, scale: float | None) -> TaskList:
    """The workflow's tasks; `scale` None keeps its programs."""
    try:
        specification = document["workflow"]["specification"]
        recorded = {item["id"]: item for item in document["workflow"].get("execution", {}).get("tasks", [])}
        sizes = {item["id"]: int(item["sizeInBytes"]) for item in specification.get("files", [])}
        makers = {made: item["id"] for item in specification["tasks"] for made in item.get("outputFiles", [])}
        used = [file for item in specification["tasks"] for file in item.get("inputFiles", [])]
        paths = _safe_names([*sizes, *makers, *used])
        tasks = [_task(item, recorded.get(item["id"], {}), paths, sizes, makers, scale) for item in specification["tasks"]]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise TaskListWrong([Problem("workflow", "", f"not WfFormat 1.5: {type(error).__name__} {error}")]) from None
    initial = dict.fromkeys(file for file in used if file not in makers)
    notes = [] if str(document["schemaVersion"]).startswith("1.5") else [f"WfFormat {document['schemaVersion']} read as 1.5"]
    if initial and scale is None:
        notes.append(f"{len(initial)} input files are made by no task: they must be in the datastore")
    return TaskList(name, tasks, tuple(notes), tuple((paths[file], sizes.get(file, 0)) for file in initial))


def _task(
    item: dict[str, Any],
    recorded: dict[str, Any],
    paths: dict[str, str],
    sizes: dict[str, int],
    makers: dict[str, str],
    scale: float | None,
) -> TaskDefinition:
    inputs = list(dict.fromkeys(item.get("inputFiles", [])))
    outputs = list(dict.fromkeys(item.get("outputFiles", [])))
    runtime_s = float(recorded.get("runtimeInSeconds", 0.0))
    if scale is None:
        command = recorded.get("command", {})
        words = [str(word) for word in command.get("arguments", [])]
        program = str(command.get("program", "true"))
        commands: tuple[str, ...] = (" ".join([program, *map(_quoted, words)]) if words else program,)
    else:
        runtime_s *= scale
        commands = (_scaled(item["id"], inputs, outputs, paths, sizes, makers, runtime_s, scale),)
    cores = recorded.get("coreCount")
    return TaskDefinition(
        id=str(item["id"]),
        commands=commands,
        dependencies=tuple(Dependency(str(parent)) for parent in dict.fromkeys(item.get("parents", []))),
        requirements=tuple(Requirement(paths[file], paths[file]) for file in inputs),
        results=tuple(Result(paths[file], paths[file]) for file in outputs),
        resources={"cpus": float(cores)} if cores and scale is None else {},
        runtime_s=runtime_s,
        labels=(_NUMBERED.sub("", str(item.get("name", item["id"])))[:255] or "task",),
    )


def _quoted(word: str) -> str:
    """Recorded arguments may hold several words or a redirection ("2>"): only what the shell would read otherwise is quoted."""
    return word if re.fullmatch(r"[0-9]?[<>]{1,2}&?[0-9]?", word) or word.startswith("-") else shlex.quote(word)


def _safe_names(files: Iterable[str]) -> dict[str, str]:
    """File ids -> relative paths, each its own: absolute paths and URLs lose what leads out."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for file in dict.fromkeys(files):
        name = file if path_problem(file) is None and "://" not in file else ""
        if not name:
            parts = [_UNSAFE.sub("_", part) for part in file.replace("://", "/").split("/") if part not in ("", ".", "..")]
            name = "/".join(parts) or "file"
        unique, count = name, 1
        while unique in taken:
            count += 1
            unique = f"{name}.{count}"
        taken.add(unique)
        names[file] = unique
    return names


def _header(producer: str, path: str) -> str:
    return f"{path} of {producer}"


def _scaled(
    task_id: str,
    inputs: list[str],
    outputs: list[str],
    paths: dict[str, str],
    sizes: dict[str, int],
    makers: dict[str, str],
    runtime_s: float,
    scale: float,
) -> str:
    """A shell script: look at each input's first line, sleep, write each output with its own first line."""
    lines = []
    for file in inputs:
        path, expected = shlex.quote(paths[file]), shlex.quote(_header(makers.get(file, INITIAL), paths[file]))
        complaint = shlex.quote(f"{paths[file]} is not what its producer wrote")
        lines.append(
            f'IFS= read -r line < {path} && [ "$line" = {expected} ] || {{ echo {complaint} >&2; exit 9; }}'
        )
    if runtime_s >= 0.001:
        lines.append(f"sleep {runtime_s:.3f}")
    for file in outputs:
        path, header = paths[file], _header(task_id, paths[file])
        if "/" in path:
            lines.append(f"mkdir -p {shlex.quote(path.rsplit('/', 1)[0])}")
        lines.append(f"printf '%s\\n' {shlex.quote(header)} > {shlex.quote(path)}")
        size = int(sizes.get(file, 0) * scale)
        if size > len(header.encode()) + 1:
            lines.append(f"truncate -s {size} {shlex.quote(path)}")
    return "\n".join(lines) or ":"


def initial_input_bytes(path: str, size: int, scale: float) -> Iterator[bytes]:
    """What a scaled file that no task makes holds: a first line that names it, zeros up to `size` times `scale` bytes."""
    header = (_header(INITIAL, path) + "\n").encode()
    yield header
    left = int(size * scale) - len(header)
    while left > 0:
        yield bytes(min(left, 1 << 20))
        left -= 1 << 20
