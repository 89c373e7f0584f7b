"""What a task list comes to: tasks, or problems. Owns no rules."""

from __future__ import annotations

import msgspec

from ecloud.tasks import TaskDefinition

MAX_PROBLEMS = 1_000
"""Listed; the rest is counted."""


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong: `where` (a task, a line), its `field`, and a sentence."""

    where: str
    field: str
    text: str

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.where, self.field) if part)
        return f"{place}: {self.text}" if place else self.text


class TaskListWrong(Exception):
    """Nothing of the list is used. `problems`: every one of them."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems[:3]))
        self.problems = problems

    @property
    def lines(self) -> list[str]:
        """The problems as lines, the uncounted rest as the last."""
        lines = [str(problem) for problem in self.problems[:MAX_PROBLEMS]]
        if len(self.problems) > MAX_PROBLEMS:
            lines.append(f"and {len(self.problems) - MAX_PROBLEMS} more")
        return lines


class TaskList(msgspec.Struct, frozen=True):
    """A list that was read: its name, its tasks in order, remarks for the user, and files that no task makes (path, bytes)."""

    name: str
    tasks: list[TaskDefinition]
    notes: tuple[str, ...] = ()
    initial_inputs: tuple[tuple[str, int], ...] = ()
