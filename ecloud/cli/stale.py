"""Finds tasks that succeeded with other versions of their requirements, or whose results are gone; reports them or runs
them again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec

from datastore.stamps import is_same
from ecloud.model.text import counted, visible

if TYPE_CHECKING:
    from datastore.port import Entry, Reader
    from ecloud.client.client import Client
    from ecloud.config.settings import Settings
    from ecloud.queries.stale import Success

NAMED = 5
REDONE_AT_ONCE = 1_000
STAT_AT_ONCE = 5_000


class Stale(msgspec.Struct, frozen=True):
    """Ids of tasks with a path: `changed`, a requirement that has changed since; `gone`, a result that no longer
    exists. `redone`: number of tasks that run again because of them."""

    changed: dict[str, str] = {}
    gone: dict[str, str] = {}
    redone: int = 0

    @property
    def tasks(self) -> list[str]:
        """Ids of all stale tasks."""
        return list(dict.fromkeys([*self.changed, *self.gone]))

    @property
    def lines(self) -> list[str]:
        """A sentence for each kind."""
        found = []
        for tasks, what in (
            (self.changed, "succeeded with another version of what they require"),
            (self.gone, "succeeded, but some of their results are not in this datastore"),
        ):
            if tasks:
                names = ", ".join(f"{visible(id)} ({visible(path)})" for id, path in list(tasks.items())[:NAMED])
                more = f" and {len(tasks) - NAMED:,} more" if len(tasks) > NAMED else ""
                found.append(f"{counted(len(tasks), 'task')} {what}: {names}{more}")
        return found


def look(successes: list[Success], datastore: Reader) -> Stale:
    """Compare the tasks' files with the current ones in the datastore. Raises `DatastoreAway`."""
    paths = list(dict.fromkeys(path for task in successes for path in (*task.stamps, *task.results)))
    there: dict[str, Entry | None] = {}
    for start in range(0, len(paths), STAT_AT_ONCE):
        part = paths[start : start + STAT_AT_ONCE]
        there.update(zip(part, datastore.stat(part)))
    known: dict[tuple[str, str], bool] = {}
    changed: dict[str, str] = {}
    gone: dict[str, str] = {}
    for task in successes:
        for path, stamp in task.stamps.items():
            now = there[path]
            if now is None:
                continue  # the task would fail if it ran again
            if (path, stamp) not in known:
                known[path, stamp] = is_same(stamp, now, datastore)
            if not known[path, stamp]:
                changed.setdefault(task.id, path)
        for path in task.results:
            if there[path] is None:
                gone.setdefault(task.id, path)
    return Stale(changed, gone)


def tell_or_redo(client: Client, settings: Settings, run: str, rerun: bool) -> Stale:
    """Check the run's earlier successes. `rerun`: run the stale ones again, with the tasks that depend on them;
    otherwise report them on stderr. Raises `Problem`."""
    from ecloud.cli import app
    from ecloud.cli.files import open_datastore
    from ecloud.queries.stale import successes

    found = successes(app.database(settings), run)
    stale = look(found, open_datastore(settings, client.datastore_address, client.request)) if found else Stale()
    for line in stale.lines:
        print(line, file=sys.stderr)
    if stale.tasks and rerun:
        names: list[str | int] = [f"{run}:{id}" for id in stale.tasks]
        count = 0
        for start in range(0, len(names), REDONE_AT_ONCE):
            part = names[start : start + REDONE_AT_ONCE]
            count += client.request("redo_task", ids=part, below=True).count
        print(f"{counted(count, 'task')} {'runs' if count == 1 else 'run'} again", file=sys.stderr)
        stale = msgspec.structs.replace(stale, redone=count)
    elif stale.tasks:
        print(
            "they are not run again; to rerun them and all tasks that depend on them: --rerun_changed", file=sys.stderr
        )
    return stale
