"""What the two doors share: exit codes, errors in one sentence, where the boss and the database are found.

A door parses, calls and prints. No traceback reaches a person for a mistake of theirs or for a part that is down.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from datastore.problem import DONE, INPUT_WRONG, INTERRUPTED, PART_AWAY, Problem

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy.engine import Engine

    from ecloud.client.client import Client
    from ecloud.config.home import Home
    from ecloud.config.secrets import AccessFile
    from ecloud.config.settings import Settings

ANSWER_S = 8.0
"""How long a door waits for the database's answer; with its own start it has spoken within 10 s."""


def enter(door: click.Command, name: str) -> NoReturn:
    """Run a door and leave with its exit code. `name` stands before its error lines."""
    signal.signal(signal.SIGTERM, _on_term)
    try:
        code = door.main(prog_name=name, standalone_mode=False) or DONE
    except click.ClickException as error:
        error.show()
        code = INPUT_WRONG
    except (KeyboardInterrupt, click.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone: not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = DONE
    except Exception as error:
        problem = problem_of(error)
        if problem is None:
            raise
        code = report(problem, name)
    sys.exit(code)


def _on_term(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def report(problem: Problem, name: str) -> int:
    """Print what went wrong; the exit code."""
    from ecloud.model.text import visible

    for line in problem.lines:
        print(f"{name}: {visible(line)}", file=sys.stderr)
    return problem.exit_code


def problem_of(error: BaseException) -> Problem | None:
    """An error as users see it; None for a fault of the program."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, OSError) and error.filename is not None:
        return Problem(f"{os.fsdecode(error.filename)}: {error.strerror}")
    return None


# --- where things are -------------------------------------------------------------------------------


def find_access(settings: Settings) -> AccessFile:
    """How the boss is reached: `$ECLOUD_ACCESS`, else what the boss left in its home. Raises `Problem`."""
    from ecloud.config.secrets import read_access

    named = os.environ.get("ECLOUD_ACCESS")
    path = Path(named).expanduser() if named else settings.home_directory.client_access
    if not named and not path.exists():
        raise Problem(
            f"no boss has run in {settings.home_directory.path} yet",
            "python admin.py start; where the boss is elsewhere, set ECLOUD_ACCESS to an access file "
            "(python admin.py invite there makes one)",
            PART_AWAY,
        )
    return read_access(path)


def running_boss(home: Home) -> dict[str, Any] | None:
    """What a boss that runs in this home wrote about itself; None where none does."""
    try:
        with home.boss_lock.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            about: dict[str, Any] = json.loads(home.boss_pid.read_text())
            return about
        return {}


@contextmanager
def boss(settings: Settings, watchdog: Callable[[], None] | None = None) -> Iterator[Client]:
    """A conversation with the boss. Raises `Problem`, `BrokerAway`, `BossAway`."""
    from ecloud.client.client import Client

    access = find_access(settings)
    if not os.environ.get("ECLOUD_ACCESS") and running_boss(settings.home_directory) is None:
        raise Problem(f"no boss runs in {settings.home_directory.path}", "python admin.py start", PART_AWAY)
    client = Client(access, say_trouble, watchdog)
    client.connect()
    try:
        yield client
    finally:
        client.close()


WHY_CONNECT_S = 3.0
"""How long `why` tries to reach the boss before it tells what the database shows."""


@contextmanager
def asking_why(settings: Settings) -> Iterator[Callable[[int], list[str] | str]]:
    """A question to the boss about ready tasks, which connects when it is first asked. It answers with the boss's
    sentences, or with one on why the boss can't be asked."""
    from ecloud.client.client import Client

    clients: list[Client] = []

    def ask(task_no: int) -> list[str] | str:
        try:
            if not clients:
                client = Client(find_access(settings))
                clients.append(client)
                client.connect(WHY_CONNECT_S)
            return clients[0].why_ready(task_no)
        except Problem as error:
            return str(error)

    try:
        yield ask
    finally:
        for client in clients:
            client.close()


def say_trouble(text: str) -> None:
    """What is waited for, on stderr; empty when it is over."""
    print(text or "goes on", file=sys.stderr, flush=True)


def database(settings: Settings) -> Engine:
    """The database, to be asked. Raises `DatabaseAway`, `SchemaWrong`."""
    from ecloud.queries.status import open_database

    return open_database(settings)


def console(to_stderr: bool = False) -> Console:
    """A terminal with its colours, or a pipe with plain lines."""
    from rich.console import Console

    return Console(stderr=to_stderr, highlight=False, soft_wrap=True)
