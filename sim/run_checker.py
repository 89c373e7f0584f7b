"""Invariants of runs that clients extend: what a push changes, and what clients learn of it. Part of `checker.Checker`.

Reads committed rows and batches, never the state of a core.
"""

from __future__ import annotations

from boss.core.model.rows import TaskRow, Writes
from ecloud.model.tasks import ENDED, TaskDefinition, TaskState
from ecloud.model.wire import CallsEnded, PushOptions, RunRejected
from sim.invariants import Violation
from sim.store import Tables
from sim.world import World


class RunChecker:
    """Checks extending pushes. Raises `Violation`. Owns what these pushes contained."""

    def __init__(self, world: World, tables: Tables) -> None:
        self.looked = world.looked
        self.tables = tables
        self.pushes: dict[str, tuple[PushOptions, tuple[TaskDefinition, ...]]] = {}
        """Options and tasks of each extending push, by id."""
        self._before: dict[int, TaskRow] = {}
        self._stored: set[str] = set()
        """New tasks of the last batch: a push that was decided before them in it may lack them."""
        self._rejected: set[str] = set()

    def before(self, writes: Writes) -> None:
        """Note the rows that a batch with an extending push replaces. Others of its tasks may be dropped: a request may
        be in the same batch."""
        self._before = {}
        self._stored = {task.row.id for task in writes.stored if task.row.task_no not in self.tables.tasks}
        if any(push.push_id in self.pushes for push in writes.pushes):
            numbers = sorted(task.row.task_no for task in writes.stored)
            self._before = {no: self.tables.tasks[no] for no in numbers if no in self.tables.tasks}

    def after(self, boss: str, writes: Writes) -> None:
        """Check that the push of this batch changed only tasks that it names, if the batch has no other one."""
        for push in writes.pushes if len(writes.pushes) == 1 else ():
            if push.push_id not in self.pushes:
                continue
            self.looked["extend"] += 1
            options, tasks = self.pushes[push.push_id]
            named = {task.id for task in tasks}
            missing = [id for id in sorted(named) if (push.run_no, id) not in self.tables.ids]
            if missing:
                raise Violation("extend", f"{boss} takes push {push.push_id}, and task {missing[0]} is not in its run")
            for row in self._before.values():
                is_element = row.id.endswith("]")
                if row.id not in named and not is_element:
                    raise Violation("extend", f"push {push.push_id} replaces {row.id}, which it does not name")
                stays = not options.replace_changed and row.state not in ENDED - {TaskState.SUCCEEDED}
                if stays and not is_element:
                    raise Violation("extend", f"push {push.push_id} replaces {row.id}, which is {row.state}")

    def on_rejected(self, boss: str, message: RunRejected) -> bool:
        """Return whether an extending push was rejected for a reason that the tables confirm. A repeated rejection
        counts as the first one."""
        if message.push_id not in self.pushes:
            return False
        if message.push_id in self._rejected:
            return True
        options, tasks = self.pushes[message.push_id]
        run_no = next((row.run_no for row in self.tables.runs.values() if row.name == options.run), 0)
        known, named = {id for of, id in self.tables.ids if of == run_no}, {task.id for task in tasks}
        wanted = {on.id for task in tasks for on in task.dependencies} - named
        arrays = [self.tables.tasks[no].id for no, array in self.tables.arrays.items() if array.run_no == run_no]
        reasons = [
            *(f"there is no task {id} in run {options.run}" for id in wanted - (known - self._stored)),
            *(f"is an element of array {array}: name the array" for array in arrays),
            *(f"array {array} of run {options.run} has an element of this id" for array in arrays),
            *(f"an element of array {task.id} has this id" for task in tasks if task.array is not None),
            *(f"and {on.id} is not in this list" for task in tasks for on in task.dependencies if on.id not in named),
            *("these tasks wait for each other" for _ in named & known),  # the list changes their dependencies
        ]
        if not any(reason in message.problems[0] for reason in reasons):
            return False
        self._rejected.add(message.push_id)
        return True

    def on_granted(self, client: str, public_key: str, credential: str) -> None:
        """Check that the boss signed the key that the client sent."""
        self.looked["access"] += 1
        if credential.partition(" ")[0] != public_key:
            raise Violation("access", f"{client} gets {credential!r} for its key {public_key!r}")

    def on_calls(self, boss: str, message: CallsEnded) -> None:
        """Check that the values of calls are those of recorded attempts."""
        for call in message.calls:
            row = self.tables.attempts.get((call.task_no, call.number))
            if call.state != TaskState.SUCCEEDED.value or call.task_no not in self.tables.tasks or not call.cause:
                continue
            self.looked["write-then-speak"] += 1
            if row is None or row.outcome is None or row.outcome.value not in (call.value, b"" if call.path else None):
                raise Violation("write-then-speak", f"{boss} tells the end of call {call.id}, which is not committed")
