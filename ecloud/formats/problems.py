"""What a task list comes to: tasks, or problems. Owns no rules."""

from __future__ import annotations

import msgspec

from ecloud.model.tasks import TaskDefinition

MAX_PROBLEMS = 1_000
"""Listed; the rest is counted: nobody reads more, and a wrong generator makes millions."""
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
    """Collects problems: keeps the first `MAX_PROBLEMS`, counts what comes `more`."""

    def __init__(self) -> None:
        self.kept: list[Problem] = []
        self.more = 0

    def add(self, where: str, field: str, text: str) -> None:
        """One more."""
        if len(self.kept) < MAX_PROBLEMS:
            self.kept.append(Problem(where, field, text))
        else:
            self.more += 1

    @property
    def is_empty(self) -> bool:
        """Whether nothing is wrong so far."""
        return not self.kept

    @property
    def lines(self) -> list[str]:
        """As a person reads them; the last line counts those that are not listed."""
        return lines_of(self.kept, self.more)


class TaskListWrong(Exception):
    """Nothing of the list is used. `problems`: what is wrong, the first 1,000; `more`: how many there are besides."""

    def __init__(self, problems: list[Problem], more: int = 0) -> None:
        super().__init__("; ".join(str(problem) for problem in problems[:3]))
        self.problems = problems
        self.more = more

    @property
    def lines(self) -> list[str]:
        """The problems as a person reads them; the last line counts those that are not listed."""
        return lines_of(self.problems, self.more)


class TaskList(msgspec.Struct, frozen=True):
    """A list that was read: its name, its tasks in order, and remarks for the user.

    `initial_inputs`: of WfFormat, the files that no task makes: (path below the datastore's root, recorded bytes).
    """

    name: str
    tasks: list[TaskDefinition]
    notes: tuple[str, ...] = ()
    initial_inputs: tuple[tuple[str, int], ...] = ()


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
