"""`python -m boss.hosts.tunnels FILE`: keeps one ssh a host, through which its workers reach broker and datastore.

Reconnects a connection that has ended. On a host the tunnel listens on the loopback address only. Ends all connections
when it is ended, and leaves none when it dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from datastore.problem import PART_AWAY, Problem
from ecloud.config.home import Home
from ecloud.config.processes import die_with_parent
from ecloud.config.secrets import write_private
from ecloud.config.settings import ROOT

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0
"""A connection that held for longer than this is made again after the shortest pause."""
END_S = 10.0
LISTEN = "127.0.0.1"
ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3", "-o", "ExitOnForwardFailure=yes")


class Tunnel(msgspec.Struct, frozen=True):
    """One ssh. `host`: for the log; `words`: the command."""

    host: str
    words: tuple[str, ...]


def forwards(ports: tuple[int, int], targets: tuple[tuple[str, int] | None, tuple[str, int] | None]) -> list[str]:
    """Return options of ssh: connections to a port on the host's loopback address reach the target from here."""
    words = ["-N", "-T", *ALIVE]
    for port, target in zip(ports, targets):
        if target is not None:
            words += ["-R", f"{LISTEN}:{port}:{target[0]}:{target[1]}"]
    return words


# --- for other processes ----------------------------------------------------------------------------------


def _paths(home: Home) -> tuple[Path, Path, Path]:
    return home.path / "tunnels.json", home.path / "tunnels.lock", home.path / "tunnels.log"


def keep(home: Home, tunnels: list[Tunnel]) -> None:
    """Start the process that keeps these tunnels, in place of an earlier one. Raises `Problem`."""
    end(home)
    orders, _, log = _paths(home)
    write_private(orders, msgspec.json.encode(tunnels))
    with log.open("ab") as out:
        subprocess.Popen(
            [sys.executable, "-m", "boss.hosts.tunnels", str(home.path)], cwd=ROOT, stdin=subprocess.DEVNULL,
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + END_S
    while keeper(home) is None:
        if time.monotonic() > deadline:
            raise Problem(f"the process that keeps the tunnels open does not start; see {log}", exit_code=PART_AWAY)
        time.sleep(0.05)


def keeper(home: Home) -> int | None:
    """Return the pid of the process that keeps the tunnels of this home; None if none runs."""
    _, lock, _ = _paths(home)
    with contextlib.suppress(OSError, ValueError), lock.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return int(held.read() or b"0") or None
    return None


def end(home: Home) -> bool:
    """End that process, with all its tunnels; return whether it ran. Raises `Problem`."""
    pid = keeper(home)
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + END_S
    while keeper(home) is not None:
        if time.monotonic() > deadline:
            raise Problem(f"the process {pid} that keeps the tunnels open does not end", "end it by hand", PART_AWAY)
        time.sleep(0.02)
    return True


# --- the process itself -----------------------------------------------------------------------------------


class _Kept:
    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.process: subprocess.Popen[bytes] | None = None
        self.since = 0.0
        self.pause_s = FIRST_PAUSE_S
        self.again_at = 0.0

    def tend(self) -> None:
        """Start the ssh if it does not run and its pause has passed."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            held_s = now - self.since
            _say(f"{self.tunnel.host}: the tunnel ended with exit code {self.process.returncode} after {held_s:.0f} s")
            self.process = None
            self.pause_s = FIRST_PAUSE_S if held_s > STEADY_S else min(2 * self.pause_s, LONGEST_PAUSE_S)
            self.again_at = now + self.pause_s
        if self.process is None and now >= self.again_at:
            self.since = now
            self.process = subprocess.Popen(self.tunnel.words, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)


def main() -> None:
    """Keep the tunnels of a home until ended."""
    orders, lock_path, _ = _paths(Home(sys.argv[1]))
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    fcntl.flock(lock, fcntl.LOCK_EX)
    kept = [_Kept(tunnel) for tunnel in msgspec.json.decode(orders.read_bytes(), type=list[Tunnel])]

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        for item in kept:
            if item.process is not None:
                item.process.terminate()
        for item in kept:
            if item.process is not None:
                item.process.wait()
        lock_path.unlink(missing_ok=True)
        orders.unlink(missing_ok=True)
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    while True:
        for item in kept:
            item.tend()
        time.sleep(0.5)


if __name__ == "__main__":
    main()
