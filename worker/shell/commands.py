"""Turns a task's commands into one shell script, and the way it ended into an outcome.

Pure, except for the script file that a long script needs.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
import signal
from pathlib import Path

from ecloud.model.tasks import FAILURE_TAIL_BYTES, SUCCESS_TAIL_BYTES, Cause, Outcome, TaskBody
from worker.shell.process import Finished

MAX_ARGUMENT_BYTES = 100_000
"""Linux refuses an argument of more than 128 KiB."""
MAX_COMMAND_CHARS = 16 * 1024
"""Amount of a failed command that is reported; `show_task_commands` has the whole."""
MAX_LINE_CHARS = 1_000
"""Amount of a line of stderr that is quoted in the error."""
SHOWN_CHARS = 200
LAST_LINES = 3
STOP_AT_FAILURE = "case $? in 0) ;; *) exit $? ;; esac"
"""Inserted between two commands. No `||` and no function: both would switch off `set -e` and ERR traps inside the
command."""
_OPEN_BACKSLASH = re.compile(r"(?<!\\)((?:\\\\)*)\\\Z")
"""At the very end of a command, a backslash would join the next line to it."""
_QUOTED = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_RUNS_ON = re.compile(r"""['"`\\]|<<|(?:&&|\||\(|\{)\s*$""")
"""Characters in a command, outside its quotes, after which the next line of a script could belong to it."""


def shell_argv(shell: str, body: TaskBody, control: str, control_inside: str = "") -> list[str]:
    """The command line that runs the commands. `shell`: a POSIX shell and its options, unless the task names its own.

    One command is passed unchanged. Several become one script, so that `cd`, `export`, `set` and `trap` carry over. The
    script notes each command's number in a file of `control` and ends at the first command that fails.
    `control_inside`: the path of `control` in a container. Raises `OSError`, and `ValueError` if the shell's name has
    an open quote.
    """
    commands = body.commands
    inside = control_inside or control
    argv = _words(body.shell or shell)
    script = (commands[0] if commands else ":") if len(commands) <= 1 else _script(commands, inside)
    if len(script) * 4 > MAX_ARGUMENT_BYTES and len(script.encode()) > MAX_ARGUMENT_BYTES:
        path = Path(control + ".script")
        path.write_text(script)
        return [*argv, inside + ".script"]
    return [*argv, "-c", script]


@functools.lru_cache(maxsize=100)
def _words(shell: str) -> list[str]:
    return shlex.split(shell)


def _script(commands: tuple[str, ...], control: str) -> str:
    note = shlex.quote(control + ".step")
    lines = []
    for number, written in enumerate(commands, 1):
        command = _OPEN_BACKSLASH.sub(r"\1", written)
        # `>|`: the task may have set noclobber. The redirection of the group hides the line from `set -x`.
        lines.append(f"{{ echo {number} >| {note}; }} 2>/dev/null")
        lines.append(command if _ends_with_its_line(command) else f"eval {shlex.quote(command)}")
        lines.append(STOP_AT_FAILURE)
    return "\n".join(lines)


def _ends_with_its_line(command: str) -> bool:
    """Whether the shell certainly treats the next line as a new command. All other commands are run by `eval`, which
    ensures it. Not every command, because an ERR trap then runs twice when a command in it fails."""
    return not _RUNS_ON.search(_QUOTED.sub("", command))


def failed_step(body: TaskBody, control: str) -> int:
    """The number of the command that began last, from 1."""
    if len(body.commands) <= 1:
        return 1
    try:
        return int(Path(control + ".step").read_text())
    except (OSError, ValueError):
        return 1


def forget_control(body: TaskBody, control: str) -> None:
    """Remove what `shell_argv` created."""
    if len(body.commands) > 1 or sum(map(len, body.commands)) * 4 > MAX_ARGUMENT_BYTES:
        for ending in (".step", ".script"):
            with contextlib.suppress(OSError):
                Path(control + ending).unlink(missing_ok=True)


def outcome_of(finished: Finished, body: TaskBody, step: int, stop_reason: str) -> Outcome:
    """Build the outcome of a shell that ended: cause, the command that failed, and a sentence for people."""
    cause, number = _cause(finished)
    success = cause is Cause.SUCCESS
    limit = SUCCESS_TAIL_BYTES if success else FAILURE_TAIL_BYTES
    stdout, stderr = finished.stdout.text(limit), finished.stderr.text(limit)
    command = "" if success or not body.commands else body.commands[min(step, len(body.commands)) - 1]
    command = command if len(command) <= MAX_COMMAND_CHARS else command[:MAX_COMMAND_CHARS] + "…"
    return Outcome(
        task_no=finished.key[0],
        number=finished.key[1],
        cause=cause,
        exit_code=finished.code if finished.code >= 0 else None,
        signal=number,
        error="" if success else _sentence(cause, finished, body, step, command, number, stderr, stop_reason),
        command=command,
        stdout=stdout,
        stderr=stderr,
        run_s=round(finished.run_s, 6),
        max_rss_mb=round(finished.max_rss_mb, 1),
    )


def _cause(finished: Finished) -> tuple[Cause, int | None]:
    if finished.stopped == "timeout":
        return Cause.TIMEOUT, None
    if finished.stopped:
        return Cause.STOPPED, None
    if finished.exceeded_mb:
        return Cause.MEMORY, None
    if finished.code == 0:
        return Cause.SUCCESS, None
    if finished.code < 0:
        return Cause.SIGNAL, -finished.code
    return Cause.EXIT, None


_SIGNALS = {int(number): number.name for number in signal.Signals}
_KNOWN_CODES = {126: "found, but not executable", 127: "command not found"}


def signal_name(number: int) -> str:
    """Return the name, for example SIGSEGV."""
    return _SIGNALS.get(number, f"signal {number}")


def _hint(code: int) -> str:
    """Return the usual meaning of an exit code. 128 + N stays an exit code: shells use it for a signal, programs for
    anything."""
    if code in _KNOWN_CODES:
        return f" ({_KNOWN_CODES[code]})"
    if code - 128 not in _SIGNALS:
        return ""
    name = signal_name(code - 128)
    memory = ", perhaps out of memory" if name == "SIGKILL" else ""
    return f" (128 + {code - 128}: shells report this for a command that {name} ended{memory})"


def _sentence(
    cause: Cause,
    finished: Finished,
    body: TaskBody,
    step: int,
    command: str,
    number: int | None,
    stderr: str,
    stop_reason: str,
) -> str:
    first_line = command.strip().split("\n", 1)[0]
    shown = first_line if len(first_line) <= SHOWN_CHARS else first_line[:SHOWN_CHARS] + "…"
    which = f"command {step} of {len(body.commands)}" if len(body.commands) > 1 else "the command"
    if cause is Cause.STOPPED:
        return f"stopped: {stop_reason}" if stop_reason else "stopped"
    if cause is Cause.TIMEOUT:
        return f"{which} ran longer than timeout_s = {body.timeout_s:g} s: {shown}"
    if cause is Cause.MEMORY:
        held = f"it held {finished.exceeded_mb:,.0f} MB"
        return f"{which} needed more than the memory_mb that the task asks for ({held}): {shown}"
    if cause is Cause.SIGNAL:
        assert number is not None
        hint = " (out of memory?)" if number == signal.SIGKILL else ""
        if finished.is_lost:
            hint = " with its parent process (by the task itself? out of memory?)"
        text = f"{which} was ended by {signal_name(number)}{hint}: {shown}"
    else:
        text = f"{which} failed with exit code {finished.code}{_hint(finished.code)}: {shown}"
    last = [line[:MAX_LINE_CHARS] for line in stderr.strip().split("\n") if line.strip()][-LAST_LINES:]
    return f"{text}: {' / '.join(last)}" if last else text
