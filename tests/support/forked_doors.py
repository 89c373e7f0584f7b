"""Actions of `admin.py` and `push_tasks.py` in processes that are forked from one that has imported everything: each
costs a fifth of the CPU of a new interpreter. What a process does at its start (`python admin.py` without packages, the
installed `ecloud`) is tested by real starts elsewhere.

`begin` starts an action. The server is one per test process and ends with it: it reads from a socket of its starter.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]


# --- the test's side ------------------------------------------------------------------------------


class Forked:
    """An action under way, or ended."""

    def __init__(self, reply: int, out: IO[bytes], err: IO[bytes]) -> None:
        self._reply = os.fdopen(reply, "rb", buffering=0)
        self._out = out
        self._err = err
        self._code: int | None = None
        self.pid = int(self._reply.read(16))
        self.began_at = time.monotonic()
        self.seconds = 0.0

    def poll(self, wait_s: float = 0.0) -> int | None:
        """Its exit code (negative: the signal that ended it); None if it has not ended within `wait_s`."""
        if self._code is None and select.select([self._reply], [], [], max(wait_s, 0.0))[0]:
            self._code = int(self._reply.read(16))
            self._reply.close()
            self.seconds = time.monotonic() - self.began_at
        return self._code

    def signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def end(self) -> None:
        """Kill it, and wait."""
        self.signal(signal.SIGKILL)
        self.poll(60.0)

    @property
    def has_printed(self) -> bool:
        """Whether it has printed anything so far."""
        return any(os.fstat(file.fileno()).st_size for file in (self._out, self._err))

    def printed(self) -> tuple[bytes, bytes]:
        """What it wrote to stdout and to stderr. Asked once."""
        with self._out, self._err:
            self._out.seek(0)
            self._err.seek(0)
            return self._out.read(), self._err.read()


def begin(
    words: Sequence[str],
    place: Path,
    environment: Mapping[str, str],
    stdin: str = "",
    interrupt_at: Sequence[int | str] = (),
) -> Forked:
    """Type an action: `words` begin with the program. `interrupt_at`: ports and names of files: it gets Ctrl-C when it
    connects to one or opens one."""
    wish = {
        "words": list(words),
        "place": str(place),
        "environment": dict(environment),
        "interrupt_at": list(interrupt_at),
    }
    order, typed, out, err = (tempfile.TemporaryFile() for _ in range(4))
    with order, typed:
        order.write(json.dumps(wish).encode())
        typed.write(stdin.encode())
        for file in (order, typed):
            file.seek(0)
        mine, theirs = os.pipe()
        server, _ = _server()
        socket.send_fds(server, [b"!"], [file.fileno() for file in (order, typed, out, err)] + [theirs])
        os.close(theirs)
    return Forked(mine, out, err)


@functools.cache
def _server() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
    return mine, process


# --- the server -----------------------------------------------------------------------------------


def serve(orders: socket.socket) -> None:
    """Fork an action for each message, until the test process has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who waits for an action is not waited for
    gc.freeze()
    while True:
        message, files, _, _ = socket.recv_fds(orders, 16, 5)
        if not message:
            return
        if os.fork() == 0:
            orders.close()
            _guard(*files)
            return
        for file in files:
            os.close(file)


def _guard(order: int, stdin: int, out: int, err: int, reply: int) -> None:
    """Fork the action, and report its number and its exit code. Only the action's process returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        os.close(reply)
        with os.fdopen(order, "rb") as file:
            wish = json.load(file)
        for to, file_no in enumerate((stdin, out, err)):
            os.dup2(file_no, to)
            os.close(file_no)
        _become(wish)
        return
    os.write(reply, b"%-16d" % pid)
    _, status = os.waitpid(pid, 0)
    os.write(reply, b"%-16d" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(wish: dict[str, Any]) -> None:
    """This process becomes the action, which raises `SystemExit` at its end: Python exits as it always does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(wish["environment"])
    time.tzset()
    os.chdir(wish["place"])
    if wish["interrupt_at"]:
        _interrupt_at(set(wish["interrupt_at"]))
    door = ROOT / wish["words"][0]
    sys.argv = [str(door), *wish["words"][1:]]
    runpy.run_path(str(door), run_name="__main__")


def _interrupt_at(places: set[int | str]) -> None:
    """Ctrl-C in the moment of the first connection to one of the ports or the opening of one of the files, from
    whatever thread."""
    left = [True]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not left:
            return
        if event == "socket.connect":
            is_there = isinstance(arguments[1], tuple) and arguments[1][1] in places
        else:
            is_there = event == "open" and isinstance(arguments[0], str) and arguments[0].rpartition("/")[2] in places
        if is_there:
            left.clear()
            os.kill(os.getpid(), signal.SIGINT)

    sys.addaudithook(hook)


def main() -> None:
    """Import what actions import, and serve the socket whose number is given."""
    sys.path.insert(0, str(ROOT))
    import ecloud.cli

    for module in pkgutil.iter_modules(ecloud.cli.__path__, "ecloud.cli."):
        importlib.import_module(module.name)
    importlib.import_module("sqlalchemy.dialects.mysql.pymysql")
    serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
