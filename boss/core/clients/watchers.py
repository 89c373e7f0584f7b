"""Clients that watch runs: the boss sends them changes a few times a second at most."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from boss.core.model.config import BossConfig
from boss.core.model.fleet import Fleet
from boss.core.model.outbox import Conversation, Outbox
from boss.core.model.timers import Timers
from boss.core.model.worker import Worker
from boss.core.tasks.taskbook import Run, TaskBook
from ecloud.model.tasks import TaskState
from ecloud.model.transfer_status import Moving
from ecloud.model.wire import RunChanged

RUNNING_NAMED = 8
"""Running tasks named in one `RunChanged`."""
SUMMED = ("fetching", "storing", "bytes", "moved_bytes", "bytes_per_s")
MAX_COUNT = 2**53
"""Larger numbers that a worker reports are cut to this, so that sums stay exact."""
MAX_SINCE_S = 1e8
WAITS_CHARS = 600
"""Longest reason why no VM starts: a cloud's text may be long."""
TASKS_NAMED = 16
"""Tasks of one worker with transfers that are kept: a worker has fewer threads for them."""


class Watchers:
    """Which client watches which run."""

    def __init__(
        self,
        outbox: Outbox,
        book: TaskBook,
        fleet: Fleet,
        timers: Timers,
        config: BossConfig,
        why_no_vm: Callable[[int, float], str] = lambda run_no, now: "",
    ) -> None:
        self._why_no_vm = why_no_vm
        self._waits: dict[int, str] = {}
        """The last reported reason why no VM starts for a watched run."""
        self._outbox = outbox
        self._book = book
        self._fleet = fleet
        self._timers = timers
        self._every_s = config.watch_every_s
        self._watching: dict[int, dict[str, Conversation]] = {}
        self._told_at: dict[int, float] = {}

    def watch(self, client: Conversation, run: Run, now: float) -> None:
        """Send the client this run's progress from now on, and the current state immediately."""
        self._watching.setdefault(run.row.run_no, {})[client.peer] = client
        self._waits[run.row.run_no] = self._waits_now(run, now)
        self._outbox.say(client, self._picture(run))

    def forget(self, peer: str) -> None:
        """The client left: send it no more."""
        for run_no in [run_no for run_no, clients in self._watching.items() if peer in clients]:
            del self._watching[run_no][peer]
            if not self._watching[run_no]:
                self._stop_watching(run_no)

    def forget_run(self, run_no: int) -> None:
        """The run is archived: stop reporting it."""
        self._stop_watching(run_no)
        self._told_at.pop(run_no, None)

    def _stop_watching(self, run_no: int) -> None:
        self._watching.pop(run_no, None)
        self._waits.pop(run_no, None)

    def tell(self, now: float) -> None:
        """Run at the end of a batch: report runs that changed, unless they were reported a moment ago."""
        self._notice_waits(now)
        later = False
        for run_no in tuple(self._book.changed_runs):
            clients = self._watching.get(run_no)
            run = self._book.runs.get(run_no)
            if not clients or run is None:
                self._book.changed_runs.discard(run_no)
                if run is not None:
                    run.ended_hints.clear()
                continue
            if now < self._told_at.get(run_no, 0.0) + self._every_s and run.left:
                later = True
                continue
            self._told_at[run_no] = now
            picture = self._picture(run)
            for client in clients.values():
                self._outbox.say(client, picture)
            run.ended_hints.clear()
            self._book.changed_runs.discard(run_no)
        if later:
            self._timers.once("watchers", now + self._every_s)

    def _notice_waits(self, now: float) -> None:
        """If the reason why no VM starts for a run has changed, report the run like one with changed tasks."""
        for run_no in self._watching:
            run = self._book.runs.get(run_no)
            waits = "" if run is None else self._waits_now(run, now)
            if run is not None and waits != self._waits.get(run_no, ""):
                self._waits[run_no] = waits
                self._book.changed_runs.add(run_no)

    def _waits_now(self, run: Run, now: float) -> str:
        if not run.states.get(TaskState.READY) or run.row.held or run.stuck:
            return ""
        return self._why_no_vm(run.row.run_no, now)[:WAITS_CHARS]

    def _picture(self, run: Run) -> RunChanged:
        run_no = run.row.run_no
        running: list[str] = []
        for worker in self._fleet.workers.values():
            for attempt in worker.held.values():
                if attempt.run_no == run_no and attempt.started_at is not None and len(running) < RUNNING_NAMED:
                    node = self._book.graph.nodes.get(attempt.task_no)
                    if node is not None and node.state is TaskState.RUNNING:
                        running.append(node.id)
            if len(running) >= RUNNING_NAMED:
                break
        return RunChanged(
            run=run.row.name,
            run_no=run_no,
            states={state.value: count for state, count in run.states.items() if count},
            ended=tuple(run.ended_hints),
            running=tuple(running),
            workers=sum(worker.takes_tasks for worker in self._fleet.workers.values()),
            over=run.left == 0,
            held=run.row.held or run.stuck,
            moving=self._moving(run_no),
            waits=self._waits.get(run_no, ""),
        )

    def on_moving(self, worker: Worker, moving: Moving | None, now: float) -> None:
        """A worker reports its transfers."""
        if moving or worker.row.moving:
            told = None if moving is None else bounded(moving)
            worker.row = msgspec.structs.replace(worker.row, moving=told, moving_at=now)
            self._outbox.writes.workers[worker.name] = worker.row
            self._book.changed_runs.update(attempt.run_no for attempt in worker.held.values())

    def _moving(self, run_no: int) -> Moving | None:
        """The sum of transfers of all workers that hold attempts of this run."""
        told = [
            worker.row.moving
            for worker in self._fleet.workers.values()
            if worker.row.moving and any(attempt.run_no == run_no for attempt in worker.held.values())
        ]
        if not told:
            return None
        return Moving(*(sum(getattr(moving, name) for moving in told) for name in SUMMED))


def bounded(moving: Moving) -> Moving:
    """The report with each number bounded, whatever the worker sent."""
    counts = {name: min(max(0, getattr(moving, name)), MAX_COUNT) for name in SUMMED}
    since_s = moving.since_s if 0.0 <= moving.since_s <= MAX_SINCE_S else 0.0
    return Moving(**counts, tasks=moving.tasks[:TASKS_NAMED], since_s=since_s)
