"""Results of reading a task list: tasks, or problems. Defines no rules."""

from __future__ import annotations

import msgspec

from datastore import problem
from ecloud.model.tasks import TaskDefinition

MAX_PROBLEMS = 1_000
"""Problems to list; the rest is counted, since a faulty generator makes millions."""
MAX_EQUAL = 3
"""Tasks with the same problem to list individually; if there are more, these are named and all are counted."""
MAX_SHOWN_CHARS = 60
"""Maximum length of a name in a message."""


class Problem(msgspec.Struct, frozen=True):
    """One problem: `where` (a task, a line), its `field`, and a sentence."""

    where: str
    field: str
    text: str

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.where, self.field) if part)
        return f"{place}: {self.text}" if place else self.text


class Problems:
    """Collects problems. Equal problems at many places become one, with their number.

    Keeps the first `MAX_PROBLEMS` different ones and counts the others in `more`.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], _Group] = {}
        self.more = 0

    def add(self, where: str, field: str, text: str) -> None:
        """Add a problem."""
        group = self._groups.get((field, text))
        if group is not None:
            group.add(where)
        elif len(self._groups) < MAX_PROBLEMS:
            self._groups[field, text] = _Group(where)
        else:
            self.more += 1

    @property
    def is_empty(self) -> bool:
        """Whether no problem was found so far."""
        return not self._groups

    @property
    def kept(self) -> list[Problem]:
        """All listed problems, in the order in which they were found."""
        return [Problem(where, field, text) for (field, text), group in self._groups.items() for where in group.places]

    @property
    def lines(self) -> list[str]:
        """One line for each problem; the last line counts those that are not listed."""
        return lines_of(self.kept, self.more)


class _Group:
    """The places of one problem."""

    def __init__(self, where: str) -> None:
        self._first = [where]
        self._count = 1

    def add(self, where: str) -> None:
        """Add a place."""
        self._count += 1
        if self._count <= MAX_EQUAL:
            self._first.append(where)

    @property
    def places(self) -> list[str]:
        """Each place individually, or, if there are many, one text for all of them."""
        if self._count <= MAX_EQUAL:
            return self._first
        names = [where.removeprefix("task ") for where in self._first]
        head = "tasks " if all(where.startswith("task ") for where in self._first) else ""
        return [f"{head}{', '.join(names)} and {self._count - MAX_EQUAL:,} more ({self._count:,} in all)"]


class TaskListWrong(problem.Problem):
    """The whole list is refused. `problems`: the first 1,000; `more`: number of further problems."""

    def __init__(self, problems: list[Problem], more: int = 0) -> None:
        super().__init__([str(problem) for problem in problems[:3]])
        self.problems = problems
        self.more = more

    @property
    def lines(self) -> list[str]:
        """One line for each problem; the last line counts those that are not listed."""
        return lines_of(self.problems, self.more)


class TaskList(msgspec.Struct, frozen=True):
    """A task list after reading: its name, its tasks in order, and notes for the user.

    `initial_inputs`: of WfFormat, the files that no task makes: (path below the datastore's root, recorded bytes).
    `uploads`: files, by their path below the working directory, to send to the datastore before the tasks. `all_named`:
    False if a task without a readable id is left out.
    """

    name: str
    tasks: list[TaskDefinition]
    notes: tuple[str, ...] = ()
    initial_inputs: tuple[tuple[str, int], ...] = ()
    uploads: tuple[str, ...] = ()
    all_named: bool = True


def lines_of(problems: list[Problem], more: int) -> list[str]:
    """Return one line for each problem, at most `MAX_PROBLEMS`, then "and N more"."""
    more += max(0, len(problems) - MAX_PROBLEMS)
    lines = [str(problem) for problem in problems[:MAX_PROBLEMS]]
    return [*lines, f"and {more:,} more"] if more else lines


def shown(name: str) -> str:
    """Shorten a name and escape its control characters, for messages."""
    text = name[: MAX_SHOWN_CHARS + 1]
    if not text.isprintable():
        text = repr(text)[1:-1]
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
