"""From a task's commands to what a shell runs, and from how it ended to words. Pure, but for the script file it may
need."""

from __future__ import annotations

import contextlib
import shlex
import signal
from pathlib import Path

from ecloud.model.tasks import FAILURE_TAIL_BYTES, SUCCESS_TAIL_BYTES, Cause, Outcome, TaskBody
from worker.shell.process import Finished, Tail

MAX_ARGUMENT_BYTES = 100_000
"""Linux refuses an argument of more than 128 KiB."""
SHOWN_CHARS = 200
LAST_LINES = 3


def shell_argv(shell: str, body: TaskBody, control: str) -> list[str]:
    """What to run. One command goes as it is; of several, each notes its number in `control` before it runs.

    All run in one shell, so that `cd` and `export` carry over; the first that fails ends it. Raises `OSError`.
    """
    commands = body.commands
    if len(commands) <= 1:
        script = commands[0] if commands else ":"
    else:
        lines = []
        note = shlex.quote(control + ".step")
        for number, command in enumerate(commands, 1):
            lines.append(f"echo {number} > {note}")
            lines.append(f"eval {shlex.quote(command)} || exit $?")
        script = "\n".join(lines)
    if len(script) * 4 > MAX_ARGUMENT_BYTES and len(script.encode()) > MAX_ARGUMENT_BYTES:
        path = Path(control + ".script")
        path.write_text(script)
        return [shell, str(path)]
    return [shell, "-c", script]


def failed_step(body: TaskBody, control: str) -> int:
    """Which command was the last to begin: 1-based."""
    if len(body.commands) <= 1:
        return 1
    try:
        return int(Path(control + ".step").read_text())
    except (OSError, ValueError):
        return 1


def forget_control(body: TaskBody, control: str) -> None:
    """Remove what `shell_argv` left."""
    if len(body.commands) > 1 or sum(map(len, body.commands)) * 4 > MAX_ARGUMENT_BYTES:
        for ending in (".step", ".script"):
            with contextlib.suppress(OSError):
                Path(control + ending).unlink(missing_ok=True)


def outcome_of(finished: Finished, body: TaskBody, tails: dict[str, Tail], step: int, stop_reason: str) -> Outcome:
    """The outcome of a shell that ended: cause, the command that failed, and a sentence a person can act on."""
    cause, number = _cause(finished)
    success = cause is Cause.SUCCESS
    limit = SUCCESS_TAIL_BYTES if success else FAILURE_TAIL_BYTES
    stdout, stderr = tails["stdout"].text(limit), tails["stderr"].text(limit)
    command = "" if success or not body.commands else body.commands[min(step, len(body.commands)) - 1]
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
    if finished.code == 0:
        return Cause.SUCCESS, None
    # A shell tells of a command that a signal ended by 128 + its number.
    number = -finished.code if finished.code < 0 else finished.code - 128
    if finished.code < 0 or number in _SIGNALS:
        return Cause.SIGNAL, number
    return Cause.EXIT, None


_SIGNALS = frozenset(int(number) for number in signal.Signals)


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
    if cause is Cause.SIGNAL:
        assert number is not None
        name = signal.Signals(number).name if number in _SIGNALS else f"signal {number}"
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        text = f"{which} was ended by {name}{hint}: {shown}"
    else:
        text = f"{which} failed with exit code {finished.code}: {shown}"
    last = [line for line in stderr.strip().split("\n") if line.strip()][-LAST_LINES:]
    return f"{text}: {' / '.join(last)}" if last else text
