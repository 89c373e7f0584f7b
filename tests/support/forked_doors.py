"""Runs many actions of `admin.py` and `push_tasks.py` at once, each in a process of its own, forked from one that has
imported everything: 50 actions cost two seconds of CPU instead of forty.

Reads one JSON document: `actions` (each a list of words, the first one the program), `deadline_s`, `place` (an empty
directory for their output), `interrupt_at` (ports and names of files: an action gets Ctrl-C in the moment in which it
connects to one or opens one), `interrupt_all` (they get it once they have printed something). Writes a JSON list: code
(None: it was ended after the deadline), seconds, text.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Fork, wait, report."""
    wish = json.load(sys.stdin)
    sys.path.insert(0, str(ROOT))
    import ecloud.cli

    for module in pkgutil.iter_modules(ecloud.cli.__path__, "ecloud.cli."):
        importlib.import_module(module.name)
    importlib.import_module("sqlalchemy.dialects.mysql.pymysql")
    place = Path(wish["place"])
    began, asked = time.monotonic(), set[int]()
    running: dict[int, int] = {}
    found: dict[int, tuple[int | None, float]] = {}
    for index, words in enumerate(wish["actions"]):
        pid = os.fork()
        if pid == 0:
            _become(words, place / f"{index}.out", wish["interrupt_at"])
        running[pid] = index
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        took_s = time.monotonic() - began
        if pid:
            found[running.pop(pid)] = (os.waitstatus_to_exitcode(status), took_s)
        elif wish["interrupt_all"] and (pid := _next_that_speaks(running, asked, place)):
            os.kill(pid, signal.SIGINT)
            asked.add(pid)
        elif took_s > wish["deadline_s"]:
            for pid, index in running.items():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                found[index] = (None, took_s)
            break
        else:
            time.sleep(0.02)
    texts = [(place / f"{index}.out").read_text(errors="replace") for index in range(len(found))]
    print(json.dumps([{"code": found[i][0], "seconds": found[i][1], "text": texts[i]} for i in range(len(found))]))


def _next_that_speaks(running: dict[int, int], asked: set[int], place: Path) -> int:
    """An action that has printed something and got no Ctrl-C yet; 0 if there is none."""
    for pid, index in running.items():
        file = place / f"{index}.out"
        if pid not in asked and file.exists() and file.stat().st_size:
            return pid
    return 0


def _become(words: list[str], output: Path, interrupt_at: list[Any]) -> None:
    """This process becomes the action; never returns."""
    code: Any = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        to = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(to, 1)
        os.dup2(to, 2)
        if interrupt_at:
            _interrupt_at({place for place in interrupt_at if isinstance(place, int)}, interrupt_at)
        door = ROOT / words[0]
        sys.argv = [str(door), *words[1:]]
        runpy.run_path(str(door), run_name="__main__")
    except SystemExit as left:
        code = left.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _interrupt_at(ports: set[int], files: list[Any]) -> None:
    """Ctrl-C in the moment of the first connection to one of the ports or the opening of one of the files, from
    whatever thread."""
    left = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not left:
            return
        if event == "socket.connect":
            is_there = isinstance(arguments[1], tuple) and arguments[1][1] in ports
        else:
            is_there = event == "open" and isinstance(arguments[0], str) and arguments[0].rpartition("/")[2] in files
        if is_there:
            left.clear()
            os.kill(os.getpid(), signal.SIGINT)

    sys.addaudithook(hook)


if __name__ == "__main__":
    main()
