"""Telling workers which of their outcomes are stored: soon, and of several at once. Owns what waits to be told.

Nobody is held up meanwhile: a worker keeps an outcome until it is named, and does other things. An answer for each
would be a third of all messages; within half a second instead of two it is a seventh instead of a fifteenth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from boss.core.model.config import BossConfig
from boss.core.model.fleet import Fleet, Worker
from boss.core.model.outbox import Outbox
from boss.core.model.timers import Timers
from ecloud.model.tasks import Outcome
from ecloud.model.wire import BATCH_COUNT, AttemptName, OutcomesStored

ANSWER_S = 2.0
"""No outcome that is stored waits longer for its answer."""
ANSWER_COUNT = 64
"""So many of one worker wait for no others."""


class _Waiting(msgspec.Struct, eq=False):
    """What one worker was not told yet, and since when."""

    since: float
    names: list[AttemptName]


class OutcomeAcks:
    """By worker. What is added in one batch is committed with it, and said after that at the soonest."""

    def __init__(self, outbox: Outbox, fleet: Fleet, timers: Timers, config: BossConfig) -> None:
        self._outbox = outbox
        self._fleet = fleet
        self._timers = timers
        self._wait_s = min(ANSWER_S, config.heartbeat_s)
        """Before a worker says them again, which it does after two heartbeats."""
        self._waiting: dict[str, _Waiting] = {}
        """Who waits longest is first."""
        self._touched: dict[str, None] = {}

    def add(self, worker: Worker, outcomes: Iterable[Outcome], now: float) -> None:
        """These are stored, or stale, or of attempts that nobody knows."""
        waiting = self._waiting.get(worker.name)
        if waiting is None:
            waiting = self._waiting[worker.name] = _Waiting(now, [])
        waiting.names.extend([AttemptName(outcome.task_no, outcome.number) for outcome in outcomes])
        self._touched[worker.name] = None

    def settle(self, now: float) -> None:
        """At the end of a batch: answer at once whose outcomes were all it held, so that it may leave, and who waits
        for many; the others when one has waited long enough, with it those that have waited half as long."""
        touched, self._touched = self._touched, {}
        for name in touched:
            worker = self._fleet.workers.get(name)
            if worker is None or not worker.held or len(self._waiting[name].names) >= ANSWER_COUNT:
                self._say(name)
        if self._longest_since + self._wait_s <= now:
            while self._longest_since + self._wait_s / 2 <= now:
                self._say(next(iter(self._waiting)))
        if self._waiting:
            self._timers.once("outcome acks", self._longest_since + self._wait_s)

    @property
    def _longest_since(self) -> float:
        return next((waiting.since for waiting in self._waiting.values()), math.inf)

    @property
    def count(self) -> int:
        """Outcomes that wait for their answer."""
        return sum(len(waiting.names) for waiting in self._waiting.values())

    def _say(self, name: str) -> None:
        names = self._waiting.pop(name).names
        worker = self._fleet.workers.get(name)
        if worker is not None and worker.conversation is not None:  # else it says them again when it is heard again
            for start in range(0, len(names), BATCH_COUNT):
                self._outbox.say(worker.conversation, OutcomesStored(tuple(names[start : start + BATCH_COUNT])))
