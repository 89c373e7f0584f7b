"""Progress bars for calls, made by rich: on a terminal, and in notebooks. Elsewhere a line now and then must do."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

DRAWN_EVERY_S = 0.1
LINE_EVERY_S = 10.0


class Bar:
    """One bar on stderr. `total`: None while it is unknown."""

    def __init__(self, name: str, total: int | None = None) -> None:
        self._name = name
        self._total = total
        self._done = 0
        self._failed = 0
        console = Console(stderr=True)
        self._progress: Progress | None = None
        self._in_notebook: Any = None
        self._every_s = LINE_EVERY_S
        if console.is_terminal or console.is_jupyter:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            self._progress = Progress(*columns, console=console)
            self._task = self._progress.add_task(name, total=total, note="")
            self._every_s = DRAWN_EVERY_S
            if console.is_jupyter:
                self._in_notebook = _display(self._progress)
            else:
                self._progress.start()
        self._next_at = time.monotonic() + self._every_s

    def advance(self, count: int = 1) -> None:
        """Count more that are done."""
        self.update(self._done + count, self._total)

    def update(self, done: int, total: int | None, failed: int = 0) -> None:
        """Set the numbers; draws them if the last time is long enough ago."""
        self._done, self._total, self._failed = done, total, failed
        now = time.monotonic()
        if now >= self._next_at:
            self._next_at = now + self._every_s
            self._draw()

    def close(self) -> None:
        """Draw it for the last time."""
        self._draw()
        if self._progress is not None:
            self._progress.stop()

    def _draw(self) -> None:
        """Draw it, unless stderr is closed: the thread that receives ended calls draws bars, and must survive."""
        with contextlib.suppress(OSError, ValueError):
            self._show()

    def _show(self) -> None:
        note = f"{self._failed:,} failed" if self._failed else ""
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done, total=self._total, note=note)
            if self._in_notebook is not None:
                self._in_notebook.update(_table(self._progress))
            return
        of = f" of {self._total:,}" if self._total is not None else ""
        print(f"{self._name}: {self._done:,}{of} done" + (f", {note}" if note else ""), file=sys.stderr, flush=True)


def _display(progress: Progress) -> Any:
    """Show a bar in a notebook; returns the handle that updates it. rich's own display needs ipywidgets there, which
    many notebooks lack."""
    from IPython.display import display

    return display(_table(progress), display_id=True)


def _table(progress: Progress) -> Table:
    return progress.make_tasks_table(progress.tasks)


def counted(values: Iterator[Any], name: str, iterables: Sequence[Iterable[Any]]) -> Iterator[Any]:
    """Yield the values of a `map` over these iterables, and show their number."""
    total = min([len(items) for items in iterables if isinstance(items, Sized)], default=None)
    bar = Bar(name, total)
    try:
        for value in values:
            bar.advance()
            yield value
    finally:
        bar.close()
