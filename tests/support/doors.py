"""The doors as a person types them: commands in an environment of their own, their output, within a deadline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked_doors import Forked, begin
from services import ROOT, Daemon, wait_until

PATIENCE_S = 100.0


class Doors:
    """Doors in the directory `place`, for the boss whose daemon is given, or for none."""

    patience_s = PATIENCE_S
    """How long a command may take."""

    def __init__(self, place: Path, daemon: Daemon | None = None) -> None:
        self.place = place
        self.daemon = daemon
        place.mkdir(parents=True, exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a door sees: nothing of who runs the tests."""
        if self.daemon is not None:
            return self.daemon.environment
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ECLOUD_")}
        settings = self.place / "no-settings.py"
        settings.write_text("")
        kept.update(ECLOUD_SETTINGS=str(settings), ECLOUD_HOME=str(self.place / "home"))
        return kept

    def run(self, door: str, *arguments: object, code: int | None = 0, stdin: str = "") -> Done:
        """Type a command and wait; its exit code must be `code`, and no traceback may be seen."""
        action = begin([door, *map(str, arguments)], self.place, self.environment, stdin)
        if action.poll(self.patience_s) is None:
            action.end()
            pytest.fail(f"{door} {arguments} has not ended after {self.patience_s:g} s: {action.printed()}")
        found = Done(action)
        assert "Traceback" not in found.text, found.text
        assert code is None or found.code == code, f"{door} {arguments}: code {found.code}\n{found.text}"
        return found

    def admin(self, *arguments: object, code: int | None = 0) -> Done:
        """`python admin.py …`."""
        return self.run("admin.py", *arguments, code=code)

    def push(self, *arguments: object, code: int | None = 0) -> Done:
        """`python push_tasks.py …`."""
        return self.run("push_tasks.py", *arguments, code=code)

    def begin(self, door: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Type a command, in a Python of its own, and continue while it works. SIGINT reaches it, as in a terminal."""
        return subprocess.Popen(
            [sys.executable, str(ROOT / door), *map(str, arguments)],
            cwd=self.place,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=_listen_to_interrupts,
        )

    def write(self, name: str, tasks: object) -> Path:
        """A file with `tasks` as JSON."""
        path = self.place / name
        path.write_text(json.dumps(tasks))
        return path


def _listen_to_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Done:
    """A command that has ended."""

    def __init__(self, action: Forked) -> None:
        self.code = action.poll()
        self.out, self.err = (text.decode() for text in action.printed())

    @property
    def text(self) -> str:
        """All it printed."""
        return self.out + self.err

    @property
    def json(self) -> Any:
        """What it printed as one JSON document."""
        return json.loads(self.out)


@pytest.fixture
def doors(tmp_path: Path) -> Doors:
    """Doors with no boss anywhere."""
    return Doors(tmp_path / "place")


@pytest.fixture
def cluster(tmp_path: Path, daemons: Callable[..., Daemon]) -> Doors:
    """Doors of a boss that runs, with workers of this machine."""
    return Doors(tmp_path / "place", daemons().start())


def ended(doors: Doors, run: str, deadline_s: float = 60.0) -> dict[str, str]:
    """Wait until a run has ended; the state of each task by id."""

    def over() -> bool:
        (found,) = (item for item in doors.admin("status", "--json").json["runs"] if item["name"] == run)
        left = sum(found["states"].get(state, 0) for state in ("waiting", "ready", "running"))
        return left == 0

    wait_until(over, deadline_s, f"run {run} has ended")
    page = doors.admin("show_tasks", "--run", run, "--limit", 100_000, "--json").json
    return {task["id"]: task["state"] for task in page["tasks"] if not task["init"]}
