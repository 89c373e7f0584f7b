"""Values that a call needs and that its order could not carry: a worker asks for them page by page.

Owns only which page is being read. A request that is not answered is repeated by the worker.
"""

from __future__ import annotations

import msgspec

from boss.core.model.effects import LoadValues
from boss.core.model.fleet import Fleet
from boss.core.model.outbox import Outbox
from boss.core.model.worker import Worker
from ecloud.model.tasks import AttemptState
from ecloud.model.wire import CallValue, CallValues

Key = tuple[int, int]


class _Asked(msgspec.Struct, frozen=True):
    worker: str
    key: Key
    after: str


class ValuesForWorkers:
    """Answers `ValuesWanted` for attempts that the worker holds and has not started."""

    def __init__(self, outbox: Outbox, fleet: Fleet, most_bytes: int) -> None:
        self._outbox = outbox
        self._fleet = fleet
        self._most_bytes = most_bytes
        self._asked: dict[int, _Asked] = {}
        self._tokens = 0

    def on_wanted(self, worker: Worker, key: Key, after: str) -> None:
        """Read a page. In one batch each worker gets one page, whatever it asks for."""
        asked_already = any(asked.worker == worker.name for asked in self._asked.values())
        if asked_already or not self._may_have(worker, key):
            return
        self._tokens += 1
        self._asked[self._tokens] = _Asked(worker.name, key, after)
        self._outbox.read(LoadValues(self._tokens, key[0], after, self._most_bytes))

    def on_loaded(self, token: int, values: tuple[CallValue, ...], more: bool) -> None:
        """Send the page that the store has read."""
        asked = self._asked.pop(token, None)
        worker = self._fleet.workers.get(asked.worker) if asked is not None else None
        if asked is None or worker is None or worker.conversation is None or not self._may_have(worker, asked.key):
            return
        self._outbox.say(worker.conversation, CallValues(*asked.key, asked.after, values, more))

    def _may_have(self, worker: Worker, key: Key) -> bool:
        attempt = worker.held.get(key)
        return attempt is not None and attempt.state is AttemptState.ASSIGNED
