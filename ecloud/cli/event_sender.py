"""Sends events to EVENT_COMMAND and EVENT_URL: a separate process, which the boss starts and ends.

It reads the tables like any viewer, so slow commands and web servers do not affect the boss.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import requests
from sqlalchemy.engine import Engine

from datastore.problem import Problem
from ecloud.cli.events import document
from ecloud.config.processes import die_with_parent
from ecloud.config.settings import Settings, load_settings
from ecloud.queries.events import Happened, events
from ecloud.queries.status import open_database

log = logging.getLogger("events")
LOOK_EVERY_S = 2.0
OLD_S = 86_400.0
"""An event that could not be delivered for this long is dropped."""
COMMAND_S = 60.0
POST_S = 10.0
FIRST_WAIT_S, LAST_WAIT_S = 1.0, 300.0
"""Waits before a failed POST is repeated; doubled each time."""
KEYS_KEPT = 5_000


class Delivered(msgspec.Struct):
    """Contents of the state file. `begun_at`: earlier events are not sent; `done`: sent keys by target."""

    begun_at: float
    done: dict[str, list[str]] = {}


class Target:
    """A receiver of events, one at a time. `deliver` raises `OSError` if the delivery must be repeated."""

    def __init__(self, name: str, deliver: Callable[[Happened], None]) -> None:
        self.name = name
        self._deliver = deliver
        self._wait_s = FIRST_WAIT_S
        self._not_before = 0.0

    def tell(self, happened: Happened, now: float) -> bool:
        """Deliver an event; returns whether it is done, False if it must wait."""
        if now < self._not_before:
            return False
        try:
            self._deliver(happened)
        except OSError as error:
            log.warning("%s of %s failed, again in %.0f s: %s", self.name, happened.key, self._wait_s, error)
            self._not_before = now + self._wait_s
            self._wait_s = min(LAST_WAIT_S, 2 * self._wait_s)
            return False
        self._wait_s = FIRST_WAIT_S
        return True


def targets_of(settings: Settings) -> list[Target]:
    """Return the targets in the settings."""
    found = []
    if settings.event_command:
        found.append(Target("EVENT_COMMAND", lambda happened: run_command(settings.event_command, happened)))
    if settings.event_url:
        found.append(
            Target("EVENT_URL", lambda happened: post(settings.event_url, settings.event_secret, happened, time.time()))
        )
    return found


def run_command(command: str, happened: Happened, limit_s: float = COMMAND_S) -> None:
    """Run a command once, with the event as JSON on its standard input. A failure is logged; the command is not
    repeated."""
    told = {"ECLOUD_EVENT": happened.kind, "ECLOUD_RUN": happened.run, "ECLOUD_TEXT": happened.text}
    process = subprocess.Popen(
        command, shell=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, env={**os.environ, **told},
    )  # fmt: skip
    try:
        process.communicate(json.dumps(document(happened)).encode() + b"\n", limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.error("EVENT_COMMAND had not ended %.0f s after %s and was killed", limit_s, happened.key)
        return
    if process.returncode:
        log.error("EVENT_COMMAND ended with %d on %s", process.returncode, happened.key)


def post(url: str, secret: str, happened: Happened, now: float) -> None:
    """POST an event as JSON. The signature is the HMAC-SHA256 of the time, a point and the body. Raises `OSError` for
    any response other than 2xx."""
    body = json.dumps(document(happened)).encode()
    moment = f"{now:.0f}"
    headers = {
        "Content-Type": "application/json",
        "X-Ecloud-Event": happened.kind,
        "X-Ecloud-Delivery": hashlib.sha256(happened.key.encode()).hexdigest()[:32],
        "X-Ecloud-Timestamp": moment,
        "X-Ecloud-Signature": f"sha256={signature(secret, moment, body)}",
    }
    answer = requests.post(url, data=body, headers=headers, timeout=POST_S, allow_redirects=False)
    if not answer.ok or answer.is_redirect:
        raise OSError(f"{answer.status_code} {answer.reason}")


def signature(secret: str, moment: str, body: bytes) -> str:
    """Compute the signature; the receiver computes and compares it."""
    return hmac.new(secret.encode(), f"{moment}.".encode() + body, hashlib.sha256).hexdigest()


# --- the process --------------------------------------------------------------------------------------


class Sender:
    """Reads events, sends them, and records what was sent."""

    def __init__(self, settings: Settings, targets: list[Target], file: Path) -> None:
        self._settings = settings
        self._targets = targets
        self._file = file
        self._delivered = self._load()
        self._engine: Engine | None = None

    def _load(self) -> Delivered:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Delivered)
        except (OSError, msgspec.DecodeError):
            delivered = Delivered(time.time())
            self._save(delivered)
            return delivered

    def _save(self, delivered: Delivered) -> None:
        whole = self._file.with_suffix(".new")
        whole.write_bytes(msgspec.json.encode(delivered))
        whole.replace(self._file)

    def look(self, now: float) -> None:
        """Send each target the events that it has not received. If this process ends before it records an event, the
        event is sent again."""
        since = max(self._delivered.begun_at, now - OLD_S)
        done = {target.name: self._delivered.done.setdefault(target.name, []) for target in self._targets}
        heard_by_all = set.intersection(*(set(keys) for keys in done.values()))
        if self._engine is None:
            self._engine = open_database(self._settings)
        for happened in events(self._engine, since, heard_by_all):
            for target in self._targets:
                if happened.key not in done[target.name] and target.tell(happened, now):
                    done[target.name].append(happened.key)
                    del done[target.name][:-KEYS_KEPT]
                    self._save(self._delivered)

    def run(self) -> None:
        """Run until the process ends."""
        while True:
            try:
                self.look(time.time())
            except Problem as error:
                log.warning("%s", error)
            except Exception:
                log.exception("reading events failed; the next try is in a moment")
            time.sleep(LOOK_EVERY_S)


def main() -> None:
    """Run the process that the boss starts."""
    die_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    settings = load_settings()
    os.nice(5)
    Sender(settings, targets_of(settings), settings.home_directory.events).run()


if __name__ == "__main__":
    main()
