"""One attempt under way at this worker: its order, its working directory, and what is known about it so far."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import msgspec

from ecloud.model.tasks import Outcome, Requirement, Result, TaskBody
from ecloud.model.wire import CallValue
from worker.core.events import StartAttempt
from worker.shell.files import Fetched
from worker.shell.own_results import OwnResults

Key = tuple[int, int]


class Job:
    """One attempt under way."""

    def __init__(self, order: StartAttempt, directory: Path, control: str) -> None:
        body = order.order.body
        assert body is not None
        if order.order.values:
            body = _with_values(body, order.order.values)
        self.order = order.order
        self.gpus = order.gpus
        self.body: TaskBody = body
        self.directory = directory
        self.control = control
        self.fetch_s = 0.0
        self.fetched = Fetched(0, 0)
        self.fetching: Future[Fetched] | None = None
        self.began_at = 0.0
        self.stop_reason: str | None = None
        self.outcome: Outcome | None = None
        self.outputs: tuple[Result, ...] = ()
        self.store_failures = 0
        self.container_argv: list[str] = []
        self.container_name = ""
        self.own = order.own
        self.made: OwnResults | None = None

    @property
    def key(self) -> Key:
        """(task_no, number)."""
        return self.order.task_no, self.order.number


def _with_values(body: TaskBody, values: Sequence[CallValue]) -> TaskBody:
    """Return the body of a call, with the large values that it needs added to its requirements."""
    more = [Requirement(value.path, value_name(number)) for number, value in enumerate(values) if value.path]
    return msgspec.structs.replace(body, requirements=(*body.requirements, *more)) if more else body


def value_name(number: int) -> str:
    """The name, in the working directory, of the file with a large value; `number`: its place in the order."""
    return f".ecloud-value-{number}"
