"""The doors as a person types them: commands in an environment of their own, their output, within a deadline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from services import ROOT, Daemon, wait_until

PATIENCE_S = 100.0


MARK = "== the end of one action =="
EACH = f"""
import json, os, runpy, sys
door = sys.argv[1]
sys.path.insert(0, os.path.dirname(door))
for words in json.load(sys.stdin):
    sys.argv = [door, *words]
    code = 0
    try:
        runpy.run_path(door, run_name="__main__")
    except SystemExit as left:
        code = left.code or 0
    print(f"\\n{{code}}{MARK}", flush=True)
    print("{MARK}", file=sys.stderr, flush=True)
"""


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
        kept.update(ECLOUD_SETTINGS=str(settings), ECLOUD_HOME=str(self.place / "home"), PYTHONDONTWRITEBYTECODE="1")
        return kept

    def run(self, door: str, *arguments: object, code: int | None = 0, stdin: str = "") -> Done:
        """Type a command and wait; its exit code must be `code`, and no traceback may be seen."""
        command = [sys.executable, str(ROOT / door), *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=self.place,
            env=self.environment,
            input=stdin.encode(),
            capture_output=True,
            timeout=self.patience_s,
        )
        found = Done(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert "Traceback" not in found.text, found.text
        assert code is None or found.code == code, f"{door} {arguments}: code {found.code}\n{found.text}"
        return found

    def admin(self, *arguments: object, code: int | None = 0) -> Done:
        """`python admin.py …`."""
        return self.run("admin.py", *arguments, code=code)

    def admin_each(self, actions: Sequence[Sequence[str]]) -> list[Done]:
        """`python admin.py …` for each of many actions, one after another in one process, which starts Python once."""
        command = [sys.executable, "-c", EACH, str(ROOT / "admin.py")]
        done = subprocess.run(
            command, cwd=self.place, env=self.environment, input=json.dumps(actions).encode(), capture_output=True,
            timeout=3 * PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        out, err = (text.decode().split(f"{MARK}\n")[:-1] for text in (done.stdout, done.stderr))
        codes = [int(text.rpartition("\n")[2]) for text in out]
        found = [Done(code, text.rpartition("\n")[0], said) for code, text, said in zip(codes, out, err, strict=True)]
        assert len(found) == len(actions)
        for action, one in zip(actions, found):
            assert "Traceback" not in one.text, (action, one.text)
        return found

    def push(self, *arguments: object, code: int | None = 0) -> Done:
        """`python push_tasks.py …`."""
        return self.run("push_tasks.py", *arguments, code=code)

    def begin(self, door: str, *arguments: object) -> subprocess.Popen[bytes]:
        """Type a command and continue while it works. SIGINT reaches it, as in a terminal."""
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

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err

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
