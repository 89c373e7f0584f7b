"""Progress of a run: bars on a terminal, a line at intervals in a pipe. Display only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from datastore.ssh.connection import Connection
from ecloud.cli.tables import STYLES, is_coloured, state_bar
from ecloud.cli.transfer_text import moving_line
from ecloud.model.tasks import TaskState
from ecloud.model.text import about, byte_size, counted, visible
from ecloud.model.wire import RunChanged

LINE_EVERY_S = 5.0
"""Interval of lines in a pipe if a task ended or files move."""
SAME_LINE_EVERY_S = 60.0
"""Interval of lines in a pipe otherwise."""
FAILURES_TOLD = 20
BAR_CHARS = 40
REFRESHES_PER_S = 8
SHOWN_RUNNING = 4


class Progress:
    """One run's progress on `console`. A context manager."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._live = (
            Live(console=console, refresh_per_second=REFRESHES_PER_S, transient=True) if console.is_terminal else None
        )
        self._began = time.monotonic()
        self._ended_at_start: int | None = None
        self._told_at = -SAME_LINE_EVERY_S
        self._ended_told = 0
        self._told: set[int] = set()
        self._trouble = ""
        self._waits = ""
        self._waits_told_at = -LINE_EVERY_S
        self.last: RunChanged | None = None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the display; later output appears below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the display began."""
        return time.monotonic() - self._began

    def note(self, text: str) -> None:
        """Print a permanent line."""
        self._console.print(Text(visible(text)))

    def pushed(self, count: int) -> None:
        """Show how many tasks have arrived at the boss."""
        if self._live is not None:
            self._live.update(Text(f"pushed {count:,} of {self._total:,} tasks"))

    def trouble(self, text: str) -> None:
        """Show what the command waits for; empty when the wait ends."""
        if text != self._trouble:
            self._trouble = text
            if self._live is None:
                print(text or "resumed", file=self._console.file, flush=True)
            else:
                self._show()

    def changed(self, picture: RunChanged) -> None:
        """Show the current state of the run."""
        self.last = picture
        if self._ended_at_start is None:
            self._ended_at_start = _ended(picture.states)
        for task in picture.ended:
            if task.state == TaskState.FAILED and task.task_no not in self._told and len(self._told) < FAILURES_TOLD:
                self._told.add(task.task_no)
                self._console.print(Text(f"failed: {visible(task.id)}: {visible(task.text)}", style=STYLES["failed"]))
        if self._live is not None:
            self._show()
        else:
            self._tell_waits(picture.waits)
            self._tell(picture)

    def _tell_waits(self, text: str) -> None:
        """Print a line in a pipe when the reason why no VM starts changes."""
        late = time.monotonic() - self._waits_told_at >= LINE_EVERY_S
        if text and text != self._waits and (late or not self._waits):
            self._waits, self._waits_told_at = text, time.monotonic()
            print(visible(text), file=self._console.file, flush=True)

    def _tell(self, picture: RunChanged) -> None:
        """Print a line in a pipe at intervals, which are longer if nothing changes."""
        ended = _ended(picture.states)
        silent_s = time.monotonic() - self._told_at
        if (
            picture.over
            or silent_s >= SAME_LINE_EVERY_S
            or (silent_s >= LINE_EVERY_S and (picture.moving or ended != self._ended_told))
        ):
            self._told_at, self._ended_told = time.monotonic(), ended
            print(self._line(picture), file=self._console.file, flush=True)

    def _show(self) -> None:
        assert self._live is not None
        picture = self.last
        lines = []
        if picture is not None:
            bar = state_bar(picture.states, min(BAR_CHARS, self._console.width // 5), is_coloured(self._console))
            bar.append(f"  {self._line(picture)}")
            lines.append(bar)
            if picture.running:
                names = ", ".join(visible(name) for name in picture.running[:SHOWN_RUNNING])
                more = picture.states.get("running", 0) - SHOWN_RUNNING
                lines.append(
                    Text(f"running: {names}" + (f" and {more:,} more" if more > 0 else ""), "dim", no_wrap=True)
                )
            if picture.moving:
                lines.append(Text(moving_line(picture.moving), "dim"))
            if picture.held:
                lines.append(Text(visible(picture.held), "yellow"))
            elif picture.waits:
                lines.append(Text(visible(picture.waits), "yellow"))
        if self._trouble:
            lines.append(Text(visible(self._trouble), "yellow"))
        self._live.update(Group(*lines))

    def _line(self, picture: RunChanged) -> str:
        states = picture.states
        total = sum(states.values())
        ended = _ended(states)
        parts = [f"{ended:,}/{total:,}"]
        parts += [
            f"{states[name]:,} {name}" for name in ("failed", "aborted", "cancelled", "running") if states.get(name)
        ]
        parts.append(counted(picture.workers, "worker"))
        if picture.moving and self._live is None:
            parts.append(moving_line(picture.moving))
        left_s = self._left_s(ended, total) if not picture.waits and not picture.held else None
        if left_s is not None:
            parts.append(f"about {about(left_s)} left")
        return ", ".join(parts)

    def _left_s(self, ended: int, total: int) -> float | None:
        """Estimate the remaining time from the rate since the display began; None while too few tasks have ended."""
        since = ended - (self._ended_at_start or 0)
        elapsed_s = time.monotonic() - self._began
        return elapsed_s / since * (total - ended) if since >= 3 and elapsed_s > 2 and total > ended else None


@contextmanager
def transfer(console: Console, verb: str, total_bytes: int) -> Iterator[None]:
    """Show the progress of a user's own file transfer over SSH on a terminal; nothing in a pipe."""
    if not console.is_terminal:
        yield
        return
    began_s, before = time.monotonic(), Connection.moved_bytes

    def line() -> Text:
        moved = Connection.moved_bytes - before
        speed = byte_size(moved / max(0.1, time.monotonic() - began_s))
        so_far = (
            f"{byte_size(min(moved, total_bytes))} of {byte_size(total_bytes)}" if total_bytes else byte_size(moved)
        )
        return Text(f"{verb} {so_far}, {speed}/s", "dim")

    with Live(console=console, refresh_per_second=REFRESHES_PER_S, transient=True, get_renderable=line):
        yield


def _ended(states: dict[str, int]) -> int:
    return sum(states.get(name, 0) for name in ("succeeded", "failed", "aborted", "cancelled"))
