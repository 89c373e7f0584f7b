"""The base class of every error that users may see. It is in this package because every other package may import it.

A command prints `lines` and ends with `exit_code`; `doctor` shows `text` and `remedy` separately. No code parses a
message.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

IS_INSTALLED = Path(__file__).resolve().parents[1].name in ("site-packages", "dist-packages")
"""Whether pip installed ECLOUD: its command is `ecloud` then, and there is no `admin.py`."""
DONE = 0
NOT_ALL_SUCCEEDED = 1
INPUT_WRONG = 2
PART_AWAY = 3
INTERRUPTED = 130
"""The exit codes of all commands."""


def as_typed(text: str, is_installed: bool | None = None) -> str:
    """Replace the commands of a checkout by those of an installed package, where ECLOUD is one."""
    if not (IS_INSTALLED if is_installed is None else is_installed):
        return text
    return text.replace("python admin.py", "ecloud").replace("python push_tasks.py", "ecloud push")


class Problem(Exception):
    """An error: what happened to which thing (`text`; several sentences if several things are wrong), what to do
    (`remedy`), and the exit code of the command.

    A class sets `exit_code` for all its errors; one error may differ.
    """

    exit_code: int = INPUT_WRONG

    def __init__(self, text: str | Sequence[str], remedy: str = "", exit_code: int | None = None) -> None:
        self.texts: tuple[str, ...] = (text,) if isinstance(text, str) else tuple(text)
        self.remedy = remedy
        if exit_code is not None:
            self.exit_code = exit_code
        super().__init__(text, remedy)

    @property
    def text(self) -> str:
        """What happened, without the remedy."""
        return "; ".join(self.texts)

    @property
    def lines(self) -> list[str]:
        """The message as a command prints it: one line per problem; the last one says what to do."""
        *lines, last = self.texts or ("",)
        if self.remedy:
            last += (f"; {self.remedy}" if ": " in last else f": {self.remedy}") if last else self.remedy
        return [as_typed(line) for line in (*lines, last)]

    def __str__(self) -> str:
        return "; ".join(self.lines)


class PartAway(Problem):
    """A part cannot be reached or cannot work now: which, where, what was tried."""

    exit_code = PART_AWAY
