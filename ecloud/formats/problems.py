"""What a task list comes to: tasks, or problems. Owns no rules."""

from __future__ import annotations

import msgspec

from datastore import problem
from ecloud.model.tasks import TaskDefinition

MAX_PROBLEMS = 1_000
"""Listed; the rest is counted: nobody reads more, and a wrong generator makes millions."""
MAX_EQUAL = 3
"""Tasks with the same problem that are listed one by one; of more, these are named and all are counted."""
MAX_SHOWN_CHARS = 60
"""Of a name inside a message."""


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong: `where` (a task, a line), its `field`, and a sentence."""

    where: str
    field: str
    text: str

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.where, self.field) if part)
        return f"{place}: {self.text}" if place else self.text


class Problems:
    """Collects problems. Equal ones at many places become one with their number.

    Keeps the first `MAX_PROBLEMS` different ones and counts the others in `more`.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], _Group] = {}
        self.more = 0

    def add(self, where: str, field: str, text: str) -> None:
        """One more."""
        group = self._groups.get((field, text))
        if group is not None:
            group.add(where)
        elif len(self._groups) < MAX_PROBLEMS:
            self._groups[field, text] = _Group(where)
        else:
            self.more += 1

    @property
    def is_empty(self) -> bool:
        """Whether nothing is wrong so far."""
        return not self._groups

    @property
    def kept(self) -> list[Problem]:
        """All that are listed, in the order in which they were found."""
        return [Problem(where, field, text) for (field, text), group in self._groups.items() for where in group.places]

    @property
    def lines(self) -> list[str]:
        """One line for each; the last line counts those that are not listed."""
        return lines_of(self.kept, self.more)


class _Group:
    """The places of one problem."""

    def __init__(self, where: str) -> None:
        self._first = [where]
        self._count = 1

    def add(self, where: str) -> None:
        """One more place."""
        self._count += 1
        if self._count <= MAX_EQUAL:
            self._first.append(where)

    @property
    def places(self) -> list[str]:
        """Each on its own, or, where there are many, one text for all of them."""
        if self._count <= MAX_EQUAL:
            return self._first
        names = [where.removeprefix("task ") for where in self._first]
        head = "tasks " if all(where.startswith("task ") for where in self._first) else ""
        return [f"{head}{', '.join(names)} and {self._count - MAX_EQUAL:,} more ({self._count:,} in all)"]


class TaskListWrong(problem.Problem):
    """Nothing of the list is used. `problems`: what is wrong, the first 1,000; `more`: how many there are besides."""

    def __init__(self, problems: list[Problem], more: int = 0) -> None:
        super().__init__([str(problem) for problem in problems[:3]])
        self.problems = problems
        self.more = more

    @property
    def lines(self) -> list[str]:
        """One line for each problem; the last line counts those that are not listed."""
        return lines_of(self.problems, self.more)


class TaskList(msgspec.Struct, frozen=True):
    """A list that was read: its name, its tasks in order, and remarks for the user.

    `initial_inputs`: of WfFormat, the files that no task makes: (path below the datastore's root, recorded bytes).
    `uploads`: files, by their path below the working directory, that are sent to the datastore before the tasks.
    `all_named`: False where a task has no readable id and is left out.
    """

    name: str
    tasks: list[TaskDefinition]
    notes: tuple[str, ...] = ()
    initial_inputs: tuple[tuple[str, int], ...] = ()
    uploads: tuple[str, ...] = ()
    all_named: bool = True


def lines_of(problems: list[Problem], more: int) -> list[str]:
    """One line each, at most `MAX_PROBLEMS`, then "and N more"."""
    more += max(0, len(problems) - MAX_PROBLEMS)
    lines = [str(problem) for problem in problems[:MAX_PROBLEMS]]
    return [*lines, f"and {more:,} more"] if more else lines


def shown(name: str) -> str:
    """A name as it may be printed: short, control characters visible."""
    text = name[: MAX_SHOWN_CHARS + 1]
    if not text.isprintable():
        text = repr(text)[1:-1]
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
