"""Finds files that tasks of one list share: results that overwrite each other, and files used without waiting for their
task.

A published directory replaces an existing one. So a result inside a directory that is a result of another task is lost,
or overwrites a part of it, depending on which task ends last: such lists are refused, unless the directory is `merged`.
What a glob matches is known only later, so globs cause only notes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ecloud.formats.graph import dependency_order, predecessors_of, unordered
from ecloud.formats.paths import above, is_glob, matches_pattern, pattern_of
from ecloud.formats.problems import Problems, shown
from ecloud.model.tasks import MERGED, Result, TaskDefinition, output_path

MAX_PAIRS = 2_000_000
"""Pairs of a task that requires a file and one that produces it, whose order is checked."""
MAX_MATCHES = 1_000_000
"""Comparisons of names with globs."""
MAX_NOTES = 5


def find_file_conflicts(tasks: Sequence[TaskDefinition], problems: Problems) -> list[str]:
    """Add problems to `problems`. Returns notes about possible conflicts. At most a few seconds for a million tasks
    with files."""
    results = ResultIndex(tasks)
    for index, path, text in results.overlaps():
        problems.add(f"task {shown(tasks[index].id)}", "results", f"{shown(path)!r} {text}")
    missing = missing_dependencies(tasks, results)
    unknown = _behind_others(tasks) if missing else set()
    for user, maker, path in missing:
        if not tasks[user].init and unknown.intersection((user, maker)):
            continue  # one may wait for the other through a task that is not in the list
        name = shown(tasks[maker].id)
        if tasks[user].init:
            remedy = "and an init task runs before all other tasks: upload the file with --upload or `admin.py put`"
        else:
            remedy = f"which is not among its dependencies: add {name} there, or push with --infer_dependencies"
        text = f"{shown(path)!r} is a result of task {name}, {remedy}"
        problems.add(f"task {shown(tasks[user].id)}", "requirements", text)
    notes = results.glob_notes()
    return notes[:MAX_NOTES] + ([f"and {len(notes) - MAX_NOTES:,} more notes on globs"] if notes[MAX_NOTES:] else [])


def _behind_others(tasks: Sequence[TaskDefinition]) -> set[int]:
    """Tasks that wait for tasks which are not in the list, directly or through others."""
    named = {task.id for task in tasks}
    predecessors = predecessors_of(tasks)
    found: set[int] = set()
    for index in dependency_order(predecessors):
        if found.intersection(predecessors[index]) or any(on.id not in named for on in tasks[index].dependencies):
            found.add(index)
    return found


class ResultIndex:
    """The results of a list by path: `plain` names, and `globs` by the directory of their matches."""

    def __init__(self, tasks: Sequence[TaskDefinition]) -> None:
        self.tasks = tasks
        self.plain: dict[str, list[tuple[int, Result]]] = {}
        self.globs: dict[str, list[tuple[int, Result]]] = {}
        for index, task in enumerate(tasks):
            outputs = [path for path in (task.stdout, task.stderr) if path and path != MERGED]
            kept = [Result("", output_path(path, task.id, 1)) for path in outputs]
            for result in (*task.results, *kept) if kept else task.results:
                where = self.globs if is_glob(result.local) else self.plain
                where.setdefault(result.path, []).append((index, result))

    def overlaps(self) -> Iterator[tuple[int, str, str]]:
        """(task, path, problem): the same name twice, and names inside directories of other tasks."""
        for path, makers in self.plain.items():
            first, result = makers[0]
            for index, other in makers[1:]:
                if index == first:
                    yield index, path, "is named twice"
                elif not (result.merge and other.merge):
                    yield index, path, f"is also a result of task {shown(self.tasks[first].id)}"
            if "/" in path:
                for index, _ in makers:
                    yield from self._inside_others(index, path, above(path))
        for top, globs in self.globs.items():
            if top != ".":
                for index, _ in globs:
                    yield from self._inside_others(index, top, (top, *above(top)))

    def _inside_others(self, index: int, path: str, directories: Iterable[str]) -> Iterator[tuple[int, str, str]]:
        for directory in directories:
            for owner, result in self.plain.get(directory, ()):
                if owner != index and not result.merge:
                    name = shown(self.tasks[owner].id)
                    text = (
                        f"is inside {shown(directory)!r}, a result of task {name}: one would overwrite the other. Use "
                        f'different directories, or write "merged": ["{shown(directory)}"] in the list'
                    )
                    yield index, path, text
                    return

    def glob_notes(self) -> list[str]:
        """Possible double publications: the same glob in two tasks, or a glob and a name."""
        notes = []
        for top, globs in self.globs.items():
            by_pattern: dict[str, list[int]] = {}
            for index, result in globs:
                by_pattern.setdefault("/".join(pattern_of(result.local)), []).append(index)
            for pattern, indices in by_pattern.items():
                names = list(dict.fromkeys(shown(self.tasks[index].id) for index in indices))
                if len(names) > 1:
                    listed = ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
                    place = pattern if top == "." else f"{top}/{pattern}"
                    notes.append(
                        f"results {shown(place)!r} of tasks {listed} may have the same names: "
                        "a task whose file another one has published fails"
                    )
        return notes + list(self._named_by_globs())

    def _named_by_globs(self) -> Iterator[str]:
        left = MAX_MATCHES if self.globs else 0
        for path, makers in self.plain.items():
            if left <= 0:
                return
            for top in (".", *above(path)):
                for index, result in self.globs.get(top, ()):
                    left -= 1
                    parts = path.split("/") if top == "." else path[len(top) + 1 :].split("/")
                    if index != makers[0][0] and matches_pattern(parts, pattern_of(result.local)):
                        glob, name = shown(self.tasks[index].id), shown(self.tasks[makers[0][0]].id)
                        yield (
                            f"results {shown(result.local)!r} of task {glob} may match {shown(path)!r}, a result of "
                            f"task {name}: one would overwrite the other"
                        )

    def producers(self, wanted: set[str]) -> dict[str, list[int]]:
        """For each wanted path the tasks that certainly produce it, a directory above it, or something below it."""
        found: dict[str, dict[int, None]] = {}
        for path, makers in self.plain.items():
            for name in (path, *above(path)):
                if name in wanted:
                    found.setdefault(name, {}).update(dict.fromkeys(index for index, _ in makers))
        for top, globs in self.globs.items():
            for name in (top, *above(top)):
                if name in wanted:
                    found.setdefault(name, {}).update(dict.fromkeys(index for index, _ in globs))
        for path in wanted:
            for name in above(path):
                if name in self.plain:
                    found.setdefault(path, {}).update(dict.fromkeys(index for index, _ in self.plain[name]))
        return {path: list(makers) for path, makers in found.items()}


def missing_dependencies(
    tasks: Sequence[TaskDefinition], results: ResultIndex | None = None
) -> list[tuple[int, int, str]]:
    """(user, producer, path): pairs where a task requires what another one produces, and neither waits for the other.

    A task may require what it produces itself, and what a later task replaces: that order is fixed.
    """
    results = results or ResultIndex(tasks)
    users: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        for requirement in task.requirements:
            users.setdefault(requirement.path, []).append(index)
    if not users or not (results.plain or results.globs):
        return []
    direct: dict[int, set[str]] = {}
    pairs: dict[tuple[int, int], str] = {}
    looked_at = 0
    for path, makers in results.producers(set(users)).items():
        for user in users[path]:
            known = direct.get(user)
            if known is None:
                known = direct[user] = {dependency.id for dependency in tasks[user].dependencies}
            for maker in makers:
                looked_at += 1
                if maker != user and tasks[maker].id not in known:
                    pairs.setdefault((maker, user), path)
            if looked_at > MAX_PAIRS:
                break
    if not pairs:
        return []
    predecessors = predecessors_of(tasks)
    order = dependency_order(predecessors)
    if len(order) < len(tasks):
        return []  # a cycle, which is reported elsewhere
    found = unordered(predecessors, order, list(pairs))
    return sorted((user, maker, pairs[maker, user]) for maker, user in found)
