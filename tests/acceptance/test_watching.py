"""What the boss starts beside itself, and a run as pictures in the terminal."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

from doors import Doors
from services import Daemon, wait_until

TASKS = [
    {"id": "first", "commands": "true", "labels": ["start"]},
    *(
        {"id": f"part-{number}", "commands": "sleep 0.1", "dependencies": ["first"], "labels": ["part"]}
        for number in range(30)
    ),
    {"id": "bad", "commands": "exit 3", "dependencies": ["first"]},
]


def test_the_boss_tells_events_and_starts_the_pages_and_ends_both(
    daemons: Callable[..., Daemon], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    daemon = daemons(EVENT_COMMAND=f"cat >> {told}").start("--monitor", "0")
    doors = Doors(tmp_path / "place", daemon)
    doors.push(doors.write("t.json", TASKS), "--wait", "--run", "r", code=1)

    wait_until(lambda: told.exists() and told.read_text().count("\n") >= 2, 60, "both events are sent")
    kinds = [json.loads(line)["kind"] for line in told.read_text().splitlines()]
    assert sorted(kinds) == ["first_failure", "run_ended"]
    listed = [json.loads(line) for line in doors.admin("events", "--json").out.splitlines()]
    assert [one["kind"] for one in listed] == kinds

    wait_until(lambda: "monitor: http" in daemon.words, 60, "the address of the pages is printed")
    address = re.search(r"monitor: (http://\S+)", daemon.words)
    assert address
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    assert b"leads" in opener.open(address[1], timeout=60).read()

    shown = doors.admin("timeline", "r").out
    assert "waiting" in shown
    assert "critical path:" in shown
    assert "bad" in doors.admin("graph", "r").out
    dot = doors.admin("graph", "r", "--dot").out
    assert '"part (30)"' in dot
    assert "-> n" in dot
    for name in ("timeline", "graph"):
        drawn = doors.place / f"{name}.svg"
        doors.admin(name, "r", "--svg", drawn)
        assert ElementTree.parse(drawn).getroot().tag.endswith("svg")
        assert doors.admin(name, "r", "--json").json
    assert "no run" in doors.admin("graph", "nope", code=2).err
    assert "terminal" in doors.admin("top", code=2).err

    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.wait(60)

    def is_shut() -> bool:
        try:
            urllib.request.urlopen(address[1], timeout=5)
        except OSError as error:
            return "refused" in str(error)
        return False

    wait_until(is_shut, 60, "the pages end with the boss")


def test_a_local_run_has_pages_while_it_runs(doors: Doors) -> None:
    go_on = doors.place / "go-on"
    tasks = doors.write("t.json", [{"id": "a", "commands": f"while ! test -e {go_on}; do sleep 0.05; done"}])
    running = doors.begin("push_tasks.py", tasks, "--local", "1", "--wait", "--monitor")
    try:
        assert running.stdout is not None
        line = next(line for line in running.stdout if b"monitor: http" in line).decode()
        page = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        assert b"Overview" in page.open(line.partition("monitor: ")[2].strip(), timeout=60).read()
    finally:
        go_on.touch()
        running.communicate(timeout=90)
    assert running.returncode == 0
    assert "--local" in doors.push(tasks, "--monitor", code=2).err
