"""Confirms to workers that their outcomes are stored: soon, and several together. Owns the unconfirmed outcomes.

Nothing waits for a confirmation: a worker keeps an outcome until it is confirmed, and does other work. One confirmation
per outcome would be a third of all messages; two seconds of collecting reduce that to a fifteenth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from boss.core.model.config import BossConfig
from boss.core.model.fleet import Fleet
from boss.core.model.outbox import Outbox
from boss.core.model.timers import Timers
from boss.core.model.worker import Worker
from ecloud.model.tasks import Outcome
from ecloud.model.wire import BATCH_COUNT, AttemptName, OutcomesStored

ANSWER_S = 2.0
"""Longest wait for a confirmation of a stored outcome."""
ANSWER_COUNT = 64
"""This many outcomes of one worker are confirmed without waiting for more."""


class _Waiting(msgspec.Struct, eq=False):
    """Unconfirmed outcomes of one worker, and since when."""

    since: float
    names: list[AttemptName]


class OutcomeAcks:
    """By worker. Outcomes added in one batch are confirmed after its commit at the earliest."""

    def __init__(self, outbox: Outbox, fleet: Fleet, timers: Timers, config: BossConfig) -> None:
        self._outbox = outbox
        self._fleet = fleet
        self._timers = timers
        self._wait_s = min(ANSWER_S, config.heartbeat_s)
        """Shorter than two heartbeats, after which a worker repeats its outcomes."""
        self._waiting: dict[str, _Waiting] = {}
        """In order of waiting time."""
        self._touched: dict[str, None] = {}

    def add(self, worker: Worker, outcomes: Iterable[Outcome], now: float) -> None:
        """These outcomes are stored, stale, or of unknown attempts."""
        waiting = self._waiting.get(worker.name)
        if waiting is None:
            waiting = self._waiting[worker.name] = _Waiting(now, [])
        waiting.names.extend([AttemptName(outcome.task_no, outcome.number) for outcome in outcomes])
        self._touched[worker.name] = None

    def settle(self, now: float) -> None:
        """At the end of a batch: send confirmations now to workers whose outcomes were all they held, so that they may
        leave, and to those with many. When the confirmation of another worker is due, also send those of the workers
        that have waited half as long."""
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
        """Number of unconfirmed outcomes."""
        return sum(len(waiting.names) for waiting in self._waiting.values())

    def _say(self, name: str) -> None:
        names = self._waiting.pop(name).names
        worker = self._fleet.workers.get(name)
        if worker is not None and worker.conversation is not None:  # else it repeats them after its next Hello
            for start in range(0, len(names), BATCH_COUNT):
                self._outbox.say(worker.conversation, OutcomesStored(tuple(names[start : start + BATCH_COUNT])))
