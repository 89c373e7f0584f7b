"""`admin.py top`: a live view of the cluster on the whole terminal. Reads the database; keys send requests to the
boss."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from rich.live import Live
from sqlalchemy.engine import Engine

from datastore.problem import DONE, Problem
from ecloud.cli import app
from ecloud.cli.top_screen import Order, Picture, Screen
from ecloud.client.client import Argument
from ecloud.config.settings import Settings, load_settings
from ecloud.model.vm_states import VmState
from ecloud.queries import status as queries
from ecloud.queries.browse import TaskRow, some_in_state
from ecloud.queries.lookup import task as find_task
from ecloud.queries.why import pools_of, why

TASKS_READ = 100
SHOWN_STATES = ("running", "failed", "ready", "waiting", "aborted", "cancelled", "succeeded")
SLOW_FACTOR = 5.0
"""A slow query is followed by a pause of this many times its duration."""
KEYS = {
    "\t": "tab", "\r": "enter", "\n": "enter", "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left",
    "\x1bOA": "up", "\x1bOB": "down", "\x1b": "escape", "\x03": "q",
}  # fmt: skip


def show(interval_s: float) -> int:
    """Show the screen until q is pressed. Raises `Problem` if there is no terminal, `DatabaseAway`."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise Problem("top needs a terminal", "python admin.py status --watch works without one")
    settings = load_settings()
    engine = app.database(settings)
    screen, console = Screen(), app.console()
    with _keys(), Live(console=console, screen=True, auto_refresh=False) as live:
        due = 0.0
        while True:
            began = time.monotonic()
            if began >= due:
                screen.show(_read(engine, screen.run))
                due = time.monotonic() + max(interval_s, SLOW_FACTOR * (time.monotonic() - began))
            live.update(screen.draw(console.width, console.height, time.time()), refresh=True)
            key = _key(max(0.05, due - time.monotonic()))
            order = screen.on_key(key) if key else None
            if order is not None:
                if order.verb == "quit":
                    return DONE
                screen.answer(_carry_out(order, engine, settings))
                due = 0.0
            elif key:
                due = min(due, time.monotonic() + 0.2)  # the key may have selected another run


def _read(engine: Engine, run: str) -> Picture:
    status = queries.status(engine)
    known = [one.name for one in status.runs]
    chosen = run if run in known else known[0] if known else ""
    tasks: list[TaskRow] = []
    for state in SHOWN_STATES if chosen else ():
        if len(tasks) < TASKS_READ:
            tasks += some_in_state(engine, chosen, state, TASKS_READ - len(tasks))
    vms = [vm for vm in queries.vms(engine) if vm.state != VmState.GONE]
    return Picture(status, queries.workers(engine), vms, tasks)


def _carry_out(order: Order, engine: Engine, settings: Settings) -> str:
    """Carry out an order; returns the result as a text."""
    try:
        if order.verb == "why":
            with app.asking_why(settings) as ask:
                found = why(engine, order.subject or order.task, order.run, pools_of(settings), ask=ask)
            return "\n".join([found.sentence, *(f"  {layer}" for layer in found.layers)])
        if order.verb == "logs":
            return _logs(engine, order)
        arguments: dict[str, Argument] = {"run": order.run, "ids": [order.task] if order.task else []}
        if order.verb == "retry_failed" and not order.task:
            arguments["state"] = "failed"
        with app.boss(settings) as client:
            return client.request(order.verb, **arguments).text
    except Problem as error:
        return "\n".join(error.lines)


def _logs(engine: Engine, order: Order) -> str:
    last = find_task(engine, order.task, order.run).last_attempt
    if last is None:
        return "it has no attempt yet"
    parts = [f"attempt {last.number} on worker {last.worker}: {last.cause or last.state}", last.error]
    parts += [f"--- {name}\n{text}" for name, text in (("output", last.stdout), ("error output", last.stderr)) if text]
    if last.state != "ended":
        parts.append(f"python admin.py logs -f {order.task} --run {order.run} follows it")
    return "\n".join(part for part in parts if part)


# --- keys -----------------------------------------------------------------------------------------------


@contextmanager
def _keys() -> Iterator[None]:
    """Read keys unbuffered and without echo; restores the terminal afterwards."""
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    try:
        tty.setcbreak(file)
        yield
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


def _key(timeout_s: float) -> str:
    """Return the name of a key pressed within the timeout, or an empty text."""
    file = sys.stdin.fileno()
    if not select.select([file], [], [], timeout_s)[0]:
        return ""
    text = os.read(file, 16).decode(errors="replace")
    return KEYS.get(text) or KEYS.get(text[:1]) or text[:1] or "q"
