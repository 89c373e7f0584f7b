"""Output for users: tables and bars on a terminal, aligned lines in a pipe. Only formats values."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ecloud.cli.transfer_text import transfer_line
from ecloud.model.tasks import TaskState
from ecloud.model.text import about, counted, duration, megabytes, visible
from ecloud.queries.views import ArrayStatus, RunStatus, Status

STYLES = {
    "succeeded": "green",
    "running": "cyan",
    "ready": "blue",
    "waiting": "bright_black",
    "cancelled": "yellow",
    "aborted": "magenta",
    "failed": "red",
}
"""Colours of task states, in the order of the bar."""
PLAIN_BAR = {
    "succeeded": "#",
    "running": ">",
    "ready": "-",
    "waiting": ".",
    "cancelled": "c",
    "aborted": "a",
    "failed": "!",
}
"""Characters of a bar without colours."""
WORKER_STYLES = {"up": "green", "draining": "yellow", "lost": "red", "gone": "bright_black"}
BAR_CHARS = 40
MIN_BAR_CHARS = 6
TRANSFERS_SHOWN = 10
ARRAYS_SHOWN = 10
"""Arrays of a run that get their own lines."""


def print_json(value: object) -> None:
    """Print one JSON document on stdout, for programs."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_json_line(value: object) -> None:
    """Print one JSON document on one line, for programs that read a stream of them."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def is_coloured(console: Console) -> bool:
    """Whether colours distinguish the states in a bar; otherwise characters do."""
    return console.color_system is not None and not console.no_color


def state_bar(states: Mapping[str, int], width: int = BAR_CHARS, coloured: bool = True) -> Text:
    """Draw a bar of `width` characters in which each state has its share, at least one character. Without colours each
    state has its own ASCII character."""
    total = sum(states.values())
    bar = Text()
    if not total:
        return Text(("─" if coloured else ".") * width, STYLES["waiting"])
    present = [(name, states[name]) for name in STYLES if states.get(name)]
    shares = {name: max(1, count * width // total) for name, count in present}
    largest = max(present, key=lambda item: item[1])[0]
    shares[largest] = max(1, shares[largest] + width - sum(shares.values()))
    for name, _ in present:
        bar.append(("━" if coloured else PLAIN_BAR[name]) * shares[name], STYLES[name])
    return bar


def counts(states: Mapping[str, int], plain: bool = False) -> Text:
    """ "3 succeeded, 1 failed": the states with tasks."""
    text = Text()
    for state in TaskState:
        count = states.get(state.value, 0)
        if count:
            text.append(", " if text else "")
            text.append(f"{count:,} {state.value}", "" if plain else STYLES[state.value])
    return text if text else Text("no tasks")


def print_table(
    console: Console, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[str] = ()
) -> None:
    """Print a table. In a pipe: aligned columns under their names, never truncated, one row per line."""
    cells = [[visible(str(cell)) for cell in row] for row in rows]
    if console.is_terminal:
        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for name in columns:
            table.add_column(name, justify="right" if name in right else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell, _style(cell)) for cell in row))
        console.print(table, soft_wrap=False)
        return
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(columns)]
    for row in [list(columns), *cells]:
        aligned = [
            cell.rjust(width) if name in right else cell.ljust(width) for cell, width, name in zip(row, widths, columns)
        ]
        print("  ".join(aligned).rstrip())


def _style(cell: str) -> str:
    return STYLES.get(cell) or WORKER_STYLES.get(cell, "")


def print_text(console: Console, text: Text) -> None:
    """Print a paragraph: on a terminal it is wrapped between words, in a pipe it is one line."""
    console.print(text, soft_wrap=not console.is_terminal)


def print_status(console: Console, status: Status, runs_shown: int) -> None:
    """Print the whole status screen."""
    boss = status.boss
    if boss.leads:
        wrote = f"last wrote {duration(boss.silent_s or 0)} ago"
        line = Text(f"boss       leads ({visible(boss.holder)}, epoch {boss.epoch}), {wrote}")
    elif not boss.epoch:
        line = Text("boss       none has run yet: python admin.py start", "yellow")
    elif boss.holder:
        line = Text(
            f"boss       silent for {duration(boss.silent_s or 0)} ({visible(boss.holder)}): python admin.py start",
            "red",
        )
    else:
        line = Text("boss       not running: python admin.py start", "yellow")
    print_text(console, line)
    workers = ", ".join(f"{count} {state}" for state, count in status.workers.items() if count)
    print_text(console, Text(f"workers    {workers or 'none'}"))
    vms = ", ".join(f"{count} {state}" for state, count in status.vms.items() if count and state != "gone")
    print_text(console, Text(f"VMs        {vms or 'none'}"))
    tasks = Text("tasks      ")
    tasks.append_text(counts(status.tasks))
    if status.left_s is not None:
        tasks.append(f"; about {about(status.left_s)} left")
    print_text(console, tasks)
    if status.datastore_free_mb is not None:
        age = f", seen {duration(status.datastore_seen_s)} ago" if status.datastore_seen_s else ""
        console.print(f"datastore  {megabytes(status.datastore_free_mb)} free{age}")
    _print_transfers(console, status)
    for trouble in [*status.cloud_troubles[:5], *status.troubles[:5], *status.suspects[:5]]:
        print_text(console, Text(visible(trouble), "yellow"))
    if status.runs:
        console.print()
    for run in status.runs[:runs_shown]:
        _print_run(console, run)
    if len(status.runs) > runs_shown:
        console.print(f"and {counted(len(status.runs) - runs_shown, 'more run')}: --all shows them")


def _print_transfers(console: Console, status: Status) -> None:
    """Print current transfers and the workers that wait for their turn; nothing if there are neither."""
    moving, turns, waiting = len(status.transfers), status.transfers_turns, status.transfers_waiting
    if not (moving or turns or waiting):
        return
    parts = [counted(moving, "worker moves files", "workers move files") if moving else "nothing moves"]
    if turns:
        parts.append(f"{turns:,} {'holds its turn' if turns == 1 else 'hold their turn'} over SSH")
    if waiting:
        parts.append(f"{waiting:,} {'waits' if waiting == 1 else 'wait'} for {'its' if waiting == 1 else 'their'} turn")
    console.print(Text(f"transfers  {', '.join(parts)}"))
    for transfer in status.transfers[:TRANSFERS_SHOWN]:
        console.print(Text(f"  {transfer_line(transfer, status.at)}"))
    if moving > TRANSFERS_SHOWN:
        console.print(f"  and {counted(moving - TRANSFERS_SHOWN, 'other worker')}")


def _print_run(console: Console, run: RunStatus) -> None:
    line = Text(visible(run.name), "bold")
    line.append(f"  {run.total - run.left:,}/{run.total:,}: ", "not bold").append_text(counts(run.states))
    left = why = ""
    if run.left_s is not None:
        left = f"about {about(run.left_s)} left ({run.left_from})"
    elif run.left:
        known, _, why = run.left_from.partition(": ")
        left = f"time left {known}"
    if console.is_terminal:
        # The counts are worth more than the bar, and a line that the terminal cuts in a word is hard to read.
        bar = max(MIN_BAR_CHARS, min(BAR_CHARS, console.width // 5, console.width - line.cell_len - 2))
        line = state_bar(run.states, bar, is_coloured(console)).append("  ").append_text(line)
    is_long = console.is_terminal and line.cell_len + len(left) + 2 > console.width
    if left and not is_long:
        line.append(f"; {left}")
    print_text(console, line)
    if left and is_long:
        print_text(console, Text(f"  {left}"))
    for array in run.arrays[:ARRAYS_SHOWN] if run.left else ():
        _print_array(console, array)
    if run.left and len(run.arrays) > ARRAYS_SHOWN:
        console.print(f"  and {counted(len(run.arrays) - ARRAYS_SHOWN, 'other array')}")
    if run.left and run.left_s is None and why and not run.held:
        print_text(console, Text(f"  {visible(why)}", "yellow"))
    if run.held:
        console.print(Text(f"  held: {visible(run.held)}", "yellow"))


def _print_array(console: Console, array: ArrayStatus) -> None:
    line = Text("  ")
    if console.is_terminal:
        line.append_text(state_bar(array.states, min(BAR_CHARS, console.width // 5), is_coloured(console)))
        line.append("  ")
    line.append(f"{visible(array.id)}[…]", "bold")
    line.append(f"  {array.ended:,}/{array.total:,}: ")
    console.print(line.append_text(counts(array.states)))


def ended_line(name: str, states: Mapping[str, int], elapsed_s: float | None = None) -> Text:
    """ "run x: 12 succeeded, 1 failed, in 3.2 s"."""
    line = Text(f"run {visible(name)}: ")
    line.append_text(counts(states))
    if elapsed_s is not None:
        line.append(f", in {duration(elapsed_s)}")
    return line


def some(names: Sequence[str], shown: int = 10, total: int | None = None) -> str:
    """Return the first names, and the number of the others."""
    total = len(names) if total is None else total
    text = ", ".join(visible(name) for name in names[:shown])
    return text + (f" and {counted(total - shown, 'other')}" if total > shown else "")
