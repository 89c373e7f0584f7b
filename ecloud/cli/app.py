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

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy.engine import Engine

    from ecloud.client.client import Client
    from ecloud.config.home import Home
    from ecloud.config.secrets import AccessFile
    from ecloud.config.settings import Settings

DONE = 0
NOT_ALL_SUCCEEDED = 1
INPUT_WRONG = 2
PART_AWAY = 3
INTERRUPTED = 130

ANSWER_S = 8.0
"""How long a door waits for the database's answer; with its own start it has spoken within 10 s."""


class Fault(Exception):
    """What a door ends with: lines for a person, and the exit code."""

    def __init__(self, lines: str | list[str], code: int = INPUT_WRONG) -> None:
        self.lines = [lines] if isinstance(lines, str) else lines
        super().__init__("; ".join(self.lines))
        self.code = code


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
        fault = fault_of(error)
        if fault is None:
            raise
        code = report(fault, name)
    sys.exit(code)


def _on_term(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def report(fault: Fault, name: str) -> int:
    """Print what went wrong; the exit code."""
    from ecloud.model.text import visible

    for line in fault.lines:
        print(f"{name}: {visible(line)}", file=sys.stderr)
    return fault.code


def fault_of(error: Exception) -> Fault | None:
    """The sentence and the exit code of an error that is no fault of the program; None for any other."""
    if isinstance(error, Fault):
        return error
    name = type(error).__name__
    if name in _LISTS:
        lines = getattr(error, "lines", None) or getattr(error, "problems", None) or [str(error)]
        return Fault(list(lines), INPUT_WRONG)
    if name in _CODES:
        return Fault(str(error), _CODES[name])
    if isinstance(error, OSError) and error.filename is not None:
        return Fault(f"{os.fsdecode(error.filename)}: {error.strerror}")
    return None


# By name, so that a door need not import what it does not use.
_LISTS = ("SettingsWrong", "TaskListWrong", "PushRejected")
_CODES = {
    "AccessWrong": PART_AWAY,
    "BossAway": PART_AWAY,
    "BrokerAway": PART_AWAY,
    "PartAway": PART_AWAY,
    "DatabaseAway": PART_AWAY,
    "DatastoreAway": PART_AWAY,
    "SchemaWrong": PART_AWAY,
    "LocalClusterFailed": PART_AWAY,
    "BadName": INPUT_WRONG,
    "Unfit": INPUT_WRONG,
    "NotThere": INPUT_WRONG,
    "NoSuchRun": INPUT_WRONG,
    "NoSuchTask": INPUT_WRONG,
    "NoSuchThing": INPUT_WRONG,
    "RequestRefused": INPUT_WRONG,
}


# --- where things are -------------------------------------------------------------------------------


def find_access(settings: Settings) -> AccessFile:
    """How the boss is reached: `$ECLOUD_ACCESS`, else what the boss left in its home. Raises `AccessWrong`, `Fault`."""
    from ecloud.config.secrets import read_access

    named = os.environ.get("ECLOUD_ACCESS")
    path = Path(named).expanduser() if named else settings.home_directory.client_access
    if not named and not path.exists():
        raise Fault(
            f"no boss has run in {settings.home_directory.path} yet: python admin.py start; where it is elsewhere "
            "ECLOUD_ACCESS=FILE, with a file from python admin.py invite there",
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
    """A conversation with the boss. Raises `Fault`, `BrokerAway`, `BossAway`."""
    from ecloud.client.client import Client

    access = find_access(settings)
    if not os.environ.get("ECLOUD_ACCESS") and running_boss(settings.home_directory) is None:
        raise Fault(f"no boss runs in {settings.home_directory.path}: python admin.py start", PART_AWAY)
    client = Client(access, say_trouble, watchdog)
    client.connect()
    try:
        yield client
    finally:
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
