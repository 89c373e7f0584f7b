"""Shared by all commands: error messages, exit codes, access to the boss and the database.

A command parses, calls and prints. `run` catches all errors of commands: users read one sentence that states what
happened and what to do.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import locale
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click

from datastore import problem as problems
from datastore.problem import DONE, INTERRUPTED, PART_AWAY, Problem
from ecloud.config import missing_package

if TYPE_CHECKING:
    from rich.console import Console
    from sqlalchemy.engine import Engine

    from ecloud.client.client import Client
    from ecloud.config.home import Home
    from ecloud.config.secrets import AccessFile
    from ecloud.config.settings import Settings

ANSWER_S = 8.0
"""Time limit for the database's answer; including its own start, a command prints something within 10 s."""
LOOK_S = 5.0
"""Time limit for the database's answer while the boss is silent."""
OWN_FAULT = 70
"""Exit code of an internal error of ECLOUD (EX_SOFTWARE of sysexits.h)."""
INSTALLED = "ecloud"
"""Program name of an installed package; it replaces `python admin.py` in texts."""

_program = ""


class ReaderEnded(Exception):
    """Replaces BrokenPipeError, which click would turn into an exit code."""


class Command(click.Command):
    """A command that ends without a message when the reader of its output has ended."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderEnded from error


def enter(command: click.Command, name: str) -> NoReturn:
    """Run a command and end the process with its exit code. Error lines begin with `name`."""
    global _program
    _program = name
    if sys.getfilesystemencoding() != "utf-8":
        # File names, arguments and task lists are UTF-8, in every locale.
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    _print_as_the_locale_can()
    sys.exit(run(command, name))


def run(command: click.Command, name: str) -> int:
    """Run a command and return its exit code. Raises nothing."""
    signal.signal(signal.SIGTERM, _on_term)
    try:
        _require_directory()
        code = command.main(prog_name=name, standalone_mode=False) or DONE
        sys.stdout.flush()
        sys.stderr.flush()
        return int(code)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else DONE
    except click.ClickException as error:
        return report(Problem(f"{error.format_message().rstrip('.')}{_help_of(error, name)}"), name)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except (BrokenPipeError, ReaderEnded):
        return _reader_ended()
    except BaseException as error:
        return report(problem_of(error) or _own_fault(error), name)


def _reader_ended() -> int:
    """Handle the end of the output's reader, as with `| head`: not an error of this command. Remaining output is
    discarded."""
    with contextlib.suppress(OSError, ValueError):
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return DONE


def _help_of(error: click.ClickException, name: str) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else name
    return "" if "--help" in error.format_message() else f"; {as_typed(path)} --help lists the options"


def _print_as_the_locale_can() -> None:
    """Print characters that the terminal's encoding lacks as `?`; undecodable names never cause an error."""
    with contextlib.suppress(locale.Error):
        locale.setlocale(locale.LC_CTYPE, "")
    encoding = locale.nl_langinfo(locale.CODESET) or "ascii"
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding=None if os.environ.get("PYTHONIOENCODING") else encoding, errors="replace")


def _require_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise Problem("the working directory was removed", "cd to a directory that exists") from None


def _on_term(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def report(problem: Problem, name: str) -> int:
    """Print the problem and return the exit code."""
    from ecloud.model.text import visible

    with contextlib.suppress(BrokenPipeError):
        for line in problem.lines:
            print(f"{name}: {visible(as_typed(line))}", file=sys.stderr)
        sys.stderr.flush()
    return problem.exit_code


def as_typed(text: str) -> str:
    """Replace the commands in a text by those that users of this program type."""
    return problems.as_typed(text, True if _program == INSTALLED else None)


def problem_of(error: BaseException) -> Problem | None:
    """Convert an error to a message for users; None for an internal error."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ImportError) and not (error.name or "").startswith(("ecloud", "boss", "worker", "datastore")):
        program = _program or "ecloud"
        sentence = missing_package.sentence(program, error).removeprefix(f"{program}: ")
        return Problem(sentence, exit_code=missing_package.NOT_INSTALLED)
    if isinstance(error, UnicodeEncodeError):
        return Problem(f"{error.object[:200]!r} is not valid UTF-8", "use a name in UTF-8")
    if isinstance(error, OSError) and error.strerror:
        place = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        return Problem(f"{place}{error.strerror}")
    if type(error).__module__.startswith("sqlalchemy") and (cause := getattr(error, "orig", None)) is not None:
        text = str(cause.args[1]) if len(cause.args) > 1 else str(cause)
        return Problem(f"the database ended its answer: {text}", "python admin.py doctor", PART_AWAY)
    if isinstance(error, MemoryError):
        return Problem("this machine is out of memory", exit_code=PART_AWAY)
    return None


def _own_fault(error: BaseException) -> Problem:
    """Describe an internal error of ECLOUD in one sentence; ECLOUD_DEBUG=1 shows the traceback."""
    if os.environ.get("ECLOUD_DEBUG"):
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    text = f"a fault of ECLOUD: {type(error).__name__}: {error}{place}"
    return Problem(text, "ECLOUD_DEBUG=1 before the command shows a traceback to report", OWN_FAULT)


# --- locations ---------------------------------------------------------------------------------------


def find_access(settings: Settings) -> AccessFile:
    """Return the access to the boss: `$ECLOUD_ACCESS`, else the file in the boss's home. Raises `Problem`."""
    from ecloud.config.secrets import read_access

    named = os.environ.get("ECLOUD_ACCESS")
    path = Path(named).expanduser() if named else settings.home_directory.client_access
    if not named and not path.exists():
        raise Problem(
            f"no boss has run in {settings.home_directory.path} yet",
            "python admin.py start; if the boss runs on another machine, set ECLOUD_ACCESS to an access file "
            "(python admin.py invite there makes one)",
            PART_AWAY,
        )
    return read_access(path)


def running_boss(home: Home) -> dict[str, Any] | None:
    """Read the information that a running boss of this home wrote about itself; None if no boss runs."""
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
    """Open a connection to the boss. Raises `Problem`, `BrokerAway`, `BossAway`."""
    from ecloud.client.client import Client

    access = find_access(settings)
    if not os.environ.get("ECLOUD_ACCESS") and running_boss(settings.home_directory) is None:
        raise Problem(f"no boss runs in {settings.home_directory.path}", "python admin.py start", PART_AWAY)
    client = Client(access, say_trouble, watchdog)
    if not os.environ.get("ECLOUD_ACCESS"):
        client.on_silence = lambda: require_database(settings)
    client.connect()
    try:
        yield client
    finally:
        client.close()


WHY_CONNECT_S = 3.0
"""How long `why` tries to reach the boss before it answers from the database."""


@contextmanager
def asking_why(settings: Settings) -> Iterator[Callable[[int], list[str] | str]]:
    """Yield a function that asks the boss about a ready task; it connects on first use. It returns the boss's
    sentences, or one sentence on why the boss cannot be asked."""
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
    """Print what the command waits for on stderr; empty when the wait ends."""
    print(text or "resumed", file=sys.stderr, flush=True)


def database(settings: Settings) -> Engine:
    """Open the database for queries. Raises `DatabaseAway`, `SchemaWrong`."""
    from ecloud.queries.status import open_database

    return open_database(settings, ANSWER_S)


def require_database(settings: Settings) -> None:
    """Check that the database answers: while it does not, the boss waits for it and sends no answers. Raises
    `DatabaseAway`."""
    from ecloud.queries.status import open_database

    open_database(settings, LOOK_S).dispose()


def is_dead_neighbour(holder: str) -> bool:
    """Whether the recorded leader ("pid 12 on host") was a process of this machine that has ended."""
    words = holder.split()
    if len(words) != 4 or words[3] != socket.gethostname() or not words[1].isdecimal():
        return False
    return not Path(f"/proc/{words[1]}").exists()


def console(to_stderr: bool = False, file: IO[str] | None = None, like: Console | None = None) -> Console:
    """Make a console: colours on a terminal, plain lines in a pipe. Texts are printed unchanged: `[red]` is no markup.
    `file`: the output, with the width and colours of the console `like`."""
    from rich.console import Console

    class Plain(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    if like is None:
        return Plain(stderr=to_stderr, file=file, highlight=False, markup=False, emoji=False, soft_wrap=True)
    return Plain(
        file=file,
        width=like.width,
        force_terminal=like.is_terminal,
        color_system="truecolor" if like.color_system else None,
        no_color=like.no_color,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )
