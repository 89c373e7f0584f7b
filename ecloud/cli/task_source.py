"""Source of the tasks of a push: a file, standard input, or an array given by options."""

from __future__ import annotations

import glob
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from datastore.problem import Problem
from ecloud.config.settings import Settings

if TYPE_CHECKING:
    from ecloud.formats import TaskList
    from ecloud.model.tasks import Entry, Requirement

MAX_FILE_BYTES = 2_000_000_000


class Source(msgspec.Struct, frozen=True):
    """What to read, and how. `words`: FILE, or the command of an array.

    `array`, `each_line`, `each_file`, `from_json`: at most one of them, makes an array. `results`: of its elements.
    `plain_arrays`: also expand large arrays to single tasks.
    """

    words: tuple[str, ...]
    run: str | None = None
    format: str = "auto"
    scale: float | None = None
    create_ids: bool = False
    infer_dependencies: bool = False
    program: str | None = None
    samples: int | None = None
    array: str | None = None
    each_line: str | None = None
    each_file: str | None = None
    from_json: str | None = None
    results: tuple[str, ...] = ()
    output: str | None = None
    yes: bool = False
    plain_arrays: bool = False

    @property
    def is_array(self) -> bool:
        """Whether the words are a command."""
        return any(kind is not None for kind in (self.array, self.each_line, self.each_file, self.from_json))

    @property
    def name(self) -> str:
        """The name of the source in messages."""
        return "the array" if self.is_array else self.words[0]


def read(source: Source, settings: Settings) -> TaskList:
    """Read and check the tasks. Raises `Problem`."""
    from ecloud.formats import TaskListWrong, TooManyCombinations

    try:
        if source.is_array:
            return _read_array(source, settings)
        if not source.words:
            raise Problem("name a file with tasks, - for standard input, or --array 1-100 -- COMMAND")
        if len(source.words) > 1:
            raise Problem(
                f"only one file at a time can be pushed, not also {source.words[1]}; a command needs --array or "
                "--each-…"
            )
        if source.results:
            raise Problem("--result is for arrays; in a task list each task has its results")
        try:
            return _read_file(source, settings)
        except TooManyCombinations as many:
            _confirm(many.count, source)
            return _read_file(msgspec.structs.replace(source, yes=True), settings)
    except TaskListWrong as error:
        raise Problem([f"{source.name}: {line}" for line in error.lines] + ["nothing was pushed"]) from None


def _confirm(count: int, source: Source) -> None:
    if not sys.stdin.isatty() or source.words[0] == "-":
        raise Problem([f"{source.name}: {count:,} combinations; --yes confirms this many", "nothing was pushed"])
    click.confirm(f"{source.name} has {count:,} combinations. Push them?", abort=True, err=True)


def _read_file(source: Source, settings: Settings) -> TaskList:
    from ecloud.formats import ReadOptions, read_task_list

    file = source.words[0]
    data = sys.stdin.buffer.read() if file == "-" else _bytes_of(file)
    options = ReadOptions(
        format=source.format,
        scale=source.scale,
        create_ids=source.create_ids,
        infer_dependencies=source.infer_dependencies,
        run=source.run or "",
        program=source.program or "",
        samples=source.samples or 0,
        output=source.output or "",
        confirmed=source.yes,
        plain_arrays=source.plain_arrays,
    )
    return read_task_list(data, "tasks" if file == "-" else Path(file).stem, options, settings.max_tasks_per_push)


def _bytes_of(file: str) -> bytes:
    path = Path(file)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Problem(f"{file} is larger than {MAX_FILE_BYTES / 1e9:g} GB: split it into several lists")
        return path.read_bytes()
    except OSError as error:
        raise Problem(f"{file}: {error.strerror}") from None


def _is_a_list(word: str) -> bool:
    """Whether a word that stands where a command is expected is a file that no shell can run."""
    path = Path(word)
    return path.suffix in (".json", ".yml", ".yaml") and path.is_file() and not os.access(path, os.X_OK)


def _read_array(source: Source, settings: Settings) -> TaskList:
    from ecloud.formats.arrays import ArrayWrong, as_array, elements
    from ecloud.formats.checking import size_problem
    from ecloud.formats.fields import read_results
    from ecloud.formats.problems import Problems, TaskList
    from ecloud.formats.reading import ReadOptions, checked
    from ecloud.model.tasks import TaskDefinition

    kinds = {"--array": source.array, "--each-line": source.each_line, "--each-file": source.each_file,
             "--from-json": source.from_json}  # fmt: skip
    given = [name for name, value in kinds.items() if value is not None]
    if len(given) > 1:
        raise Problem(f"{' and '.join(given)}: use only one of them")
    if not source.words:
        raise Problem(f"{given[0]} needs a command: … {given[0]} {kinds[given[0]]} -- COMMAND")
    if len(source.words) == 1 and _is_a_list(source.words[0]):
        raise Problem(f"{source.words[0]} is a file with tasks, and {given[0]} takes a command: name one of them")
    try:
        entries, uploads = _entries(source)
    except ArrayWrong as wrong:
        raise Problem([f"{given[0]}: {wrong}", "nothing was pushed"]) from None
    if len(entries) > settings.max_tasks_per_push:
        raise Problem([size_problem(len(entries), settings.max_tasks_per_push), "nothing was pushed"])
    name = source.run or Path(shlex.split(source.words[0])[0] if source.words[0].strip() else "array").name
    template = TaskDefinition(
        id=name,
        commands=source.words[:1],
        requirements=_requirement_of_each(source),
        results=read_results(list(source.results)) if source.results else (),
    )
    options = ReadOptions(
        infer_dependencies=source.infer_dependencies, output=source.output or "", plain_arrays=source.plain_arrays
    )
    words = source.words if len(source.words) > 1 else ()
    if len(entries) > options.whole_above:
        listed = [as_array(template, entries, words)]
    else:
        listed = list(elements(template, entries, words))
    tasks = TaskList(name, listed, uploads=tuple(uploads))
    return checked(tasks, options, settings.max_tasks_per_push, Problems())


def _requirement_of_each(source: Source) -> tuple[Requirement, ...]:
    from ecloud.model.tasks import Requirement

    return (Requirement("{}", "{}"),) if source.each_file is not None else ()


def _entries(source: Source) -> tuple[list[Entry], list[str]]:
    """Return the entries of the array, and files that must be in the datastore. Raises `ArrayWrong`, `Problem`."""
    from ecloud.formats.arrays import ArrayWrong, entries_of, entries_of_lines
    from ecloud.model.tasks import Entry

    if source.array is not None:
        return entries_of(source.array), []
    if source.each_line is not None:
        return entries_of_lines(_text_of(source.each_line)), []
    if source.from_json is not None:
        try:
            document = json.loads(_text_of(source.from_json))
        except (ValueError, RecursionError) as error:
            raise ArrayWrong(f"{source.from_json} is not JSON: {error}") from None
        if not isinstance(document, list):
            raise ArrayWrong(f"{source.from_json}: expected a list of values")
        return entries_of(document), []
    assert source.each_file is not None
    files = sorted(path for path in glob.glob(source.each_file, recursive=True) if Path(path).is_file())
    if not files:
        raise ArrayWrong(f"no file matches {source.each_file}")
    names = [Path(path).as_posix() for path in files]
    outside = [name for name in names if name.startswith("/") or ".." in name.split("/")]
    if outside:
        raise ArrayWrong(f"{outside[0]} is not below this directory: name files relative to it")
    return [Entry(number, name) for number, name in enumerate(names, 1)], names


def _text_of(file: str) -> str:
    data = sys.stdin.buffer.read() if file == "-" else _bytes_of(file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Problem(f"{file}: not UTF-8 in line {data.count(10, 0, error.start) + 1}") from None
