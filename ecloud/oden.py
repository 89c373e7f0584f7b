"""`python -m ecloud.oden FILE manager|resume|test|status`: runs the file of an oden project on a cluster.

Only the part of FILE between its two markers is used: `name`, `make_tasks`, `calc`, and optionally `hosts`,
`handle_finish_machine`, `handle_finish_tasks` and `show_status`. Results are files in the working directory, in oden's
format: `{name}{number}_{date}.done.pickle` with `{"task": …, "result": pickled result}`, and `….error.pickle` with
`{"task": …, "error": traceback}`. `number` counts the workers that took part.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import hashlib
import importlib
import logging
import os
import pickle
import sys
import time
import traceback
import types
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, as_completed
from pathlib import Path
from typing import Any

import click

from datastore.problem import DONE, NOT_ALL_SUCCEEDED, Problem
from ecloud.cli import app
from ecloud.python.client_thread import LOCAL
from ecloud.python.executor import ClusterExecutor
from ecloud.python.future import CallFuture
from ecloud.python.payload import RemoteError

BEGIN = "------ User write below ------"
END = "------ User write above ------"
IMPORTED = ("copy", "datetime", "hashlib", "logging", "os", "pathlib", "pickle", "requests", "sys", "threading", "time")
"""Modules that an oden file imports above its first marker, and that its user's part may use."""
REQUIRED = ("name", "make_tasks", "calc")

log = logging.getLogger("oden")


class Project:
    """The user's part of an oden file. Raises `Problem`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.module = types.ModuleType("oden_project")
        for name in IMPORTED:
            with contextlib.suppress(ImportError):
                setattr(self.module, name, importlib.import_module(name))
        self.module.__file__ = str(file)
        text = _user_part(file)
        try:
            exec(compile(text, str(file), "exec"), self.module.__dict__)
        except Exception as error:
            raise Problem(f"{_place(file, error)}: {type(error).__name__}: {error}") from error
        missing = [name for name in REQUIRED if not hasattr(self.module, name)]
        if missing:
            raise Problem(f"{file} does not define {', '.join(missing)} between its markers")
        self.name = str(self.module.name)

    def tasks(self) -> list[Any]:
        """Return the result of `make_tasks`. Raises `Problem`."""
        try:
            return list(self.module.make_tasks())
        except Exception as error:
            raise Problem(f"{_place(self.file, error)}: make_tasks failed: {type(error).__name__}: {error}") from error

    @property
    def hosts(self) -> list[str]:
        """Hosts other than this machine."""
        named = str(getattr(self.module, "hosts", "")).split("\n")
        return [host.strip() for host in named if host.strip() and host.strip() not in LOCAL]

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function if the user has defined it. Errors are logged."""
        if not hasattr(self.module, function):
            return None
        try:
            return getattr(self.module, function)(*arguments)
        except Exception:
            log.exception("%s failed", function)
            return None


def _user_part(file: Path) -> str:
    """Return the text between the markers, with its original line numbers. Raises `Problem`."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise Problem(f"{file} cannot be read: it is not UTF-8 text") from error
    except OSError as error:
        raise Problem(f"{file} cannot be read: {error.strerror}") from error
    at = {mark: [number for number, line in enumerate(lines) if mark in line] for mark in (BEGIN, END)}
    if not at[BEGIN] or not at[END] or at[BEGIN][0] > at[END][0]:
        raise Problem(f"{file} is not an oden file: a line with `{BEGIN}` and one below it with `{END}` are missing")
    begin, end = at[BEGIN][0], at[END][0]
    return "\n" * (begin + 1) + "\n".join(lines[begin + 1 : end])


def _place(file: Path, error: Exception) -> str:
    """Return the file, and the line of it that raised an error or led to it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file}, line {lines[-1]}" if lines else str(file)


# --- results ----------------------------------------------------------------------------------------------


class Results:
    """The result files of a project in a directory."""

    def __init__(self, name: str, directory: Path) -> None:
        self._name = name
        self._directory = directory
        self.errors: dict[str, list[Path]] = {}
        """Error files by the hash of their task."""
        self.done: Counter[str] = Counter()
        """Number of results of each task, by its hash."""
        for path in self._files("done"):
            self.done[_hash(_read(path)["task"])] += 1
        for path in self._files("error"):
            self.errors.setdefault(_hash(_read(path)["task"]), []).append(path)

    def _files(self, kind: str) -> Iterator[Path]:
        # Do not glob: the name may contain brackets.
        for path in sorted(self._directory.iterdir()):
            if path.name.startswith(self._name) and path.name.endswith(f".{kind}.pickle"):
                yield path

    @property
    def count(self) -> int:
        """Number of result and error files."""
        return sum(self.done.values()) + sum(map(len, self.errors.values()))

    def left_of(self, tasks: list[Any]) -> list[Any]:
        """Return tasks without a result. N equal tasks need N results."""
        done = Counter(self.done)
        left = []
        for task in tasks:
            key = _hash(task)
            if done[key]:
                done[key] -= 1
            else:
                left.append(task)
        return left

    def write_done(self, number: int, task: Any, result: bytes) -> Path:
        """Write a pickled result and remove an earlier error file of the task."""
        path = self._write(number, "done", {"task": task, "result": result})
        for error in self.errors.get(_hash(task), [])[:1]:
            error.unlink(missing_ok=True)
            self.errors[_hash(task)].remove(error)
        return path

    def write_error(self, number: int, task: Any, text: str) -> Path:
        """Write a traceback; it replaces an earlier one of the task."""
        path = self._write(number, "error", {"task": task, "error": text})
        earlier = self.errors.setdefault(_hash(task), [])
        for error in earlier[:1]:
            error.unlink(missing_ok=True)
            earlier.remove(error)
        return path

    def _write(self, number: int, kind: str, content: dict[str, Any]) -> Path:
        date = datetime.datetime.now().strftime("%Y%m%d%H%M%S")
        path = self._directory / f"{self._name}{number}_{date}.{kind}.pickle"
        again = 1
        while path.exists():  # one worker produced several results within a second
            again += 1
            path = self._directory / f"{self._name}{number}_{date}_{again}.{kind}.pickle"
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(pickle.dumps(content))
        unfinished.rename(path)
        return path


def _read(path: Path) -> dict[str, Any]:
    try:
        content = pickle.loads(path.read_bytes())
        assert isinstance(content, dict)
        content["task"]
    except Exception as error:
        raise Problem(f"{path} is not a result of oden ({type(error).__name__}: {error})", "move it away") from error
    return content


def _hash(task: Any) -> str:
    """Return the same hash for equal tasks. Pickles twice, since a first pickle also depends on the parts that the task
    shares."""
    return hashlib.sha256(pickle.dumps(pickle.loads(pickle.dumps(task)))).hexdigest()


# --- the commands -----------------------------------------------------------------------------------------


def run(project: Project, tasks: list[Any], results: Results) -> int:
    """Run tasks on the cluster, write their files, call the user's functions. Returns the number of failures."""
    failed, began = 0, time.monotonic()
    numbers: dict[str, int] = {}
    log.info("%d tasks", len(tasks))
    with ClusterExecutor() as executor:
        log.info("run %s", executor.run)
        task_of: dict[Future[Any], Any] = {}
        for task in tasks:
            task_of[executor.submit(project.module.calc, copy.copy(task))] = task
        for ended, future in enumerate(as_completed(task_of), 1):
            task = task_of.pop(future)
            assert isinstance(future, CallFuture)
            number = numbers.setdefault(future.worker, len(numbers))
            outcome = _outcome(future)
            if isinstance(outcome, bytes):
                path = results.write_done(number, task, outcome)
            else:
                failed += 1
                path = results.write_error(number, task, "".join(traceback.format_exception(outcome)))
                # The lines after the first one are notes.
                log.error("task %.100r failed: %s", task, traceback.format_exception_only(outcome)[0].strip())
            left_s = (time.monotonic() - began) / ended * (len(tasks) - ended)
            log.info("%d of %d: %s; about %.0f s left", ended, len(tasks), path.name, left_s)
        for worker, number in numbers.items():
            project.call("handle_finish_machine", worker, f"{project.name}{number}")
    project.call("handle_finish_tasks")
    return failed


def _outcome(future: CallFuture) -> bytes | BaseException:
    """Return the pickled result of a call that ended, or its error. A result that cannot be unpickled or pickled here
    is an error of its task."""
    try:
        error = future.exception()
        value = future.result() if error is None else None
    except CancelledError:
        return RemoteError(f"call {future.id} was cancelled")
    except RemoteError as unreadable:
        return unreadable
    if error is not None:
        return error
    try:
        return pickle.dumps(value)
    except Exception as problem:
        text = f"the value of {future.id} (of type {type(value).__name__}) cannot be pickled here"
        return RemoteError(f"{text}: {type(problem).__name__}: {problem}")


@click.command(cls=app.Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("mode", type=click.Choice(["manager", "resume", "test", "status", "worker"]))
@click.option("--yes", is_flag=True, help="Begin although results of an earlier calculation are here.")
def main(file: Path, mode: str, yes: bool) -> int:
    """Run an oden project on a cluster: that of `$ECLOUD_ACCESS`, of this machine's boss, or a private one.

    manager: all tasks. resume: tasks without a result. test: all tasks, on this machine, one after another. status:
    number of ended tasks, and the result of show_status.
    """
    logging.basicConfig(format="%(asctime)s [%(levelname)s] %(message)s", level=logging.INFO, stream=sys.stderr)
    if mode == "worker":
        raise Problem(
            "oden's workers are ECLOUD's", "python -m worker ACCESS_FILE on another machine; on this one none is needed"
        )
    project = Project(file)
    if mode == "test":
        for task in project.tasks():
            log.info("task %.100r", task)
            try:
                project.module.calc(copy.copy(task))
            except Exception as error:
                trace = error.__traceback__
                traceback.print_exception(type(error), error, trace.tb_next if trace is not None else None)
                return NOT_ALL_SUCCEEDED
        return DONE
    results = Results(project.name, Path.cwd())
    if mode == "status":
        tasks = project.tasks()
        left = len(results.left_of(tasks))
        failed = sum(map(len, results.errors.values()))
        click.echo(
            f"{project.name}: {len(tasks)} tasks, {len(tasks) - left} done, {failed} failed, {left - failed} to run"
        )
        if (text := project.call("show_status")) is not None:
            click.echo(text)
        return DONE
    if mode == "manager" and results.count and not yes:
        _ask(project, results)
    _require_hosts(project)
    tasks = project.tasks()
    if mode == "resume":
        tasks = results.left_of(tasks)
    if not tasks:
        log.info("all tasks have a result")
        return DONE
    failed = run(project, tasks, results)
    if failed:
        click.echo(f"{failed} of {len(tasks)} tasks failed; after a fix: python -m ecloud.oden {file} resume", err=True)
        return NOT_ALL_SUCCEEDED
    return DONE


def _ask(project: Project, results: Results) -> None:
    text = f"{results.count} results of an earlier calculation of {project.name} are here"
    if not sys.stdin.isatty():
        raise Problem(text, "`resume` runs the tasks without a result; `manager --yes` runs all again")
    click.confirm(f"{text}. Run all tasks again?", abort=True)


def _require_hosts(project: Project) -> None:
    """Check that a project with hosts has a cluster that runs on them. Raises `Problem`."""
    from ecloud.config.settings import load_settings

    hosts = project.hosts
    if hosts and not os.environ.get("ECLOUD_ACCESS") and app.running_boss(load_settings().home_directory) is None:
        raise Problem(
            f"{project.file} names {len(hosts)} host{'s' if len(hosts) > 1 else ''}, and no cluster runs",
            f"python admin.py hosts up -a {','.join(hosts)}",
        )


if __name__ == "__main__":
    app.enter(main, "oden")
