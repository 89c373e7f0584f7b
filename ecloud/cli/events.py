"""`admin.py events`: prints events as text or JSON lines; with -f as they happen."""

from __future__ import annotations

import sys
import time
from typing import Any

from datastore.problem import DONE, PART_AWAY, Problem
from ecloud.cli import app
from ecloud.config.settings import load_settings
from ecloud.model.text import visible, when
from ecloud.queries.events import Happened, events

LOOK_EVERY_S = 1.0
LOOK_BACK_S = 86_400.0


def show(follow: bool, limit: int, as_json: bool) -> int:
    """Print the last events of one day; with `follow`, also the following ones. Raises `DatabaseAway`."""
    engine = app.database(load_settings())
    known: set[str] = set()
    found = events(engine, time.time() - LOOK_BACK_S)
    _print(found[-limit:], as_json)
    while follow:
        known.update(one.key for one in found)
        time.sleep(LOOK_EVERY_S)
        try:
            found = events(engine, time.time() - LOOK_BACK_S, known)
        except Problem as error:
            if error.exit_code != PART_AWAY:
                raise
            print(f"waiting for the database: {error}", file=sys.stderr, flush=True)
            continue
        _print(found, as_json)
    return DONE


def document(happened: Happened) -> dict[str, Any]:
    """Format an event for programs: a line of `events --json`, the input of EVENT_COMMAND, the body of a POST to
    EVENT_URL."""
    return {
        "id": happened.key, "kind": happened.kind, "at": happened.at, "run": happened.run, "text": happened.text,
    }  # fmt: skip


def _print(found: list[Happened], as_json: bool) -> None:
    import json

    for one in found:
        text = json.dumps(document(one)) if as_json else f"{when(one.at)}  {one.kind:<13}  {visible(one.text)}"
        print(text, flush=True)
