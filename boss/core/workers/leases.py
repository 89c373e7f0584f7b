"""Workers on duty: they register, send heartbeats, fall silent, drain and leave.

Owns leases. Frees what a worker held only by the rules of docs/protocol.md: a newer process of the same home, Goodbye,
the end of the lease plus a margin, or the cloud's report that the machine is gone. A last will frees nothing.
"""

from __future__ import annotations

import math

import msgspec

from boss.core.model.config import BossConfig
from boss.core.model.fleet import Fleet
from boss.core.model.outbox import Conversation, Outbox
from boss.core.model.rows import WorkerRow
from boss.core.model.timers import Timers
from boss.core.model.worker import Worker, believed
from boss.core.tasks.attempts import Attempts
from boss.core.workers.sessions import Sessions
from ecloud.model.wire import Drain, Exit, Heartbeat, HeartbeatAnswered, Hello, Refused, Undrain
from ecloud.model.worker_states import WorkerState

_REPLACED = "a newer process of the same home took over"
_REVOKED = "its key was revoked"
HEARTBEATS_A_LEASE = 3
"""A worker's lease survives the loss of all but one of them."""
_KILLED = "killed: an operator requested it before its lease ended"
CLAIM_HEARTBEATS = 3
"""A worker that is silent for this many heartbeats after another process claimed its home has ended."""
MAX_REASON_CHARS = 1_000
"""Longest sentence of a worker that is kept."""


class Leases:
    """Which workers are on duty, and until when the boss relies on that."""

    def __init__(
        self,
        outbox: Outbox,
        fleet: Fleet,
        attempts: Attempts,
        sessions: Sessions,
        timers: Timers,
        config: BossConfig,
    ) -> None:
        self._outbox = outbox
        self._fleet = fleet
        self._attempts = attempts
        self._sessions = sessions
        self._timers = timers
        self._config = config
        self.deaf = False
        """Whether the broker is away: no worker can be heard, and silence means nothing."""
        self.killed: dict[str, float] = {}
        """Killed workers that have not obeyed before their leases ended, which they may still do, with these times."""

    def heartbeat_s(self, workers: int) -> float:
        """The interval of heartbeats of this many workers: longer where they are many, so that heartbeats do not fill
        the boss's time, but at most a third of the lease."""
        config = self._config
        return max(config.heartbeat_s, min(workers / config.heartbeats_per_s, config.lease_s / HEARTBEATS_A_LEASE))

    @property
    def present_heartbeat_s(self) -> float:
        """The interval of the present workers."""
        return self.heartbeat_s(len(self._fleet.workers))

    @property
    def _patience_s(self) -> float:
        return self._config.lease_s + self._config.lease_margin_s

    def expect(self, worker: Worker, now: float) -> None:
        """Rely on a worker for one lease from now, heard or not."""
        worker.lease_until = now + self._patience_s
        self._timers.set(worker.lease_until, lambda at: self._look_at_lease(worker.name, at))

    def _of_home(self, conversation: Conversation, hello: Hello) -> Worker | None:
        """Another process on duty with the same home and the same key."""
        known = self._fleet.by_home.get((conversation.key_name, hello.home)) if hello.home else None
        return None if known is None or known.name == conversation.peer else known

    def is_outdated(self, conversation: Conversation, hello: Hello) -> bool:
        """Whether a later process of the same home has registered since and is on duty: then this Hello was delayed,
        and its process is gone."""
        known = self._of_home(conversation, hello)
        if known is None or known.conversation is None or _is_elsewhere(known.row.hello, hello):
            return False
        return known.conversation.hello > conversation.hello

    def why_no_home(self, conversation: Conversation, hello: Hello, now: float) -> Refused | None:
        """Whether the process may not speak for its home because another process on duty has it, on another machine or
        from before a reboot. If that process is heard after this claim, the home was copied; if it is silent for
        `CLAIM_HEARTBEATS`, the machine was restarted."""
        known = self._of_home(conversation, hello)
        if known is None or not _is_elsewhere(known.row.hello, hello):
            return None
        if known.claimed_by != conversation.peer:
            known.claimed_by, known.claimed_at = conversation.peer, now
        where = f"worker {known.name}" + (f" on {known.row.hello.host}" if known.row.hello.host else "")
        if known.conversation is not None and known.conversation.heard_at > known.claimed_at:
            reason = f"{where} uses this home, and this one is a copy: start this worker with another --home"
            return Refused("home", reason, about=conversation.session)
        told_s = known.conversation.heartbeat_s if known.conversation is not None else 0.0
        if now - known.claimed_at < CLAIM_HEARTBEATS * max(told_s, self.present_heartbeat_s):
            reason = f"{where} may still use this home: send Hello again"
            return Refused("home_unsure", reason, about=conversation.session)
        return None

    def on_opened(self, conversation: Conversation, hello: Hello, vm_no: int | None, now: float) -> Worker:
        """A worker confirmed its Hello: it is on duty from now."""
        older = self._of_home(conversation, hello)
        worker = self._fleet.workers.get(conversation.peer)
        # Of the attempts that it lists, keep those that are its own: a later boss relies on them.
        held = worker.held if worker is not None else older.held if older is not None else {}
        own = tuple(item for item in hello.attempts if (item.task_no, item.number) in held)
        hello = msgspec.structs.replace(hello, attempts=own)
        row = WorkerRow(conversation.peer, conversation.key_name, WorkerState.UP, now, now, hello, vm_no)
        if worker is None:
            capacity = believed(hello.resources)
            worker = Worker(row.worker, row, capacity, dict(capacity), now, idle_since=now)
            if older is not None:
                self._replace(older, worker, hello, now)
            self._fleet.add(worker)
            self.expect(worker, now)
        else:
            row = msgspec.structs.replace(
                worker.row, key_name=conversation.key_name, heard_at=now, hello=hello, trouble=""
            )
            if (capacity := believed(hello.resources)) != worker.capacity:  # a GPU fell off the bus, or is back
                self._fleet.resize(worker, capacity)
                self._fleet.touched[worker.name] = None
        worker.row = row
        worker.conversation = conversation
        self._fleet.set_end(worker, math.inf if hello.lives_s is None else conversation.hello_at + hello.lives_s)
        if self.killed.pop(worker.name, None) is not None:
            self.kill(worker, _KILLED, now)
            return worker
        self._write(worker)
        self._repeat_order(worker)
        return worker

    def _replace(self, older: Worker, newer: Worker, hello: Hello, now: float) -> None:
        # The newer process ended what the older one left behind, except for what it lists: that continues.
        goes_on = {(item.task_no, item.number) for item in hello.attempts}
        for key in [key for key in older.held if key in goes_on]:
            attempt = older.held[key]
            self._fleet.free(older, attempt, now)
            attempt.session = ""
            attempt.was_leaving = attempt.was_leaving or older.leaving
            self._fleet.give(newer, attempt)
        self.remove(older, WorkerState.GONE, _REPLACED, now, explained=False)

    def on_heard(self, worker: Worker, now: float) -> None:
        """The worker sent any message: it is alive."""
        worker.lease_until = now + self._patience_s

    def on_heartbeat(self, worker: Worker, number: int, heartbeat: Heartbeat, now: float) -> None:
        """Renew the lease, correct differences, note the worker's trouble."""
        worker.resting.clear()
        assert worker.conversation is not None
        orders_seen = min(heartbeat.orders_seen, worker.conversation.said)  # never more than were sent
        self._attempts.reconcile(worker, heartbeat.attempts, orders_seen, now)
        if (trouble := _sentence(heartbeat.trouble)) != worker.row.trouble:
            self.trouble(worker, trouble)
        worker.conversation.heartbeat_s = self.present_heartbeat_s
        self._outbox.say(worker.conversation, HeartbeatAnswered(number, worker.conversation.heartbeat_s))
        self._repeat_order(worker)

    def _repeat_order(self, worker: Worker) -> None:
        """Tell a worker that is to drain or stop so again: the order may have been lost, or given before the worker was
        heard."""
        assert worker.conversation is not None
        if worker.row.killed_at is not None:
            self._outbox.say(worker.conversation, Exit(worker.row.reason))
        elif worker.row.state is WorkerState.DRAINING:
            self._outbox.say(worker.conversation, Drain(worker.row.reason, then_exit=worker.leaving))

    def trouble(self, worker: Worker, text: str) -> None:
        """The worker cannot start tasks for now; an empty `text`: it can again."""
        worker.row = msgspec.structs.replace(worker.row, trouble=_sentence(text))
        self._write(worker)

    def drain(self, worker: Worker, reason: str, then_exit: bool, now: float | None = None) -> bool:
        """Give it no more tasks. Returns False if nothing changes. `now`: if a person requested it, when."""
        if worker.row.state is WorkerState.DRAINING and worker.leaving >= then_exit:
            return False
        worker.leaving = worker.leaving or then_exit
        reason = _sentence(reason)
        since = worker.row.since if now is None or worker.row.state is WorkerState.DRAINING else now
        worker.move(WorkerState.DRAINING, reason, since)
        self._write(worker)
        if worker.conversation is not None:
            self._outbox.say(worker.conversation, Drain(reason, then_exit=worker.leaving))
        return True

    def undrain(self, worker: Worker, now: float) -> bool:
        """Give it tasks again. Returns False if it was not draining, or is leaving."""
        if worker.row.state is not WorkerState.DRAINING or worker.leaving:
            return False
        worker.move(WorkerState.UP, "", now)
        self._write(worker)
        self.say_undrain(worker)
        return True

    def say_undrain(self, worker: Worker) -> None:
        """Tell it that it may start tasks: for the first time, or because the message was lost."""
        if worker.conversation is not None:
            self._outbox.say(worker.conversation, Undrain())

    def kill(self, worker: Worker, reason: str, now: float) -> None:
        """Order it to stop all tasks and leave; if it is not heard yet, as soon as it is. What it held is freed when it
        says Goodbye or its lease ends."""
        worker.leaving = True
        worker.move(WorkerState.DRAINING, reason, worker.row.since)
        worker.row = msgspec.structs.replace(worker.row, killed_at=now)
        self._write(worker)
        if worker.conversation is not None:
            self._outbox.say(worker.conversation, Exit(reason))

    def remove(self, worker: Worker, state: WorkerState, reason: str, now: float, explained: bool = True) -> None:
        """It is gone or lost, with everything that it held. `explained`: the reason explains the loss, so that no task
        is to blame. The loss of a worker that was ordered to leave, or that this boss never heard, is always
        explained."""
        reason = _sentence(reason)
        by_its_tasks = not (explained or worker.leaving or worker.conversation is None)
        self._attempts.lose(worker, reason, now, by_its_tasks)
        self._fleet.remove(worker)
        if state is WorkerState.LOST and worker.row.killed_at is not None:
            self.killed[worker.name] = now
        worker.move(state, reason, now)
        worker.row = msgspec.structs.replace(worker.row, trouble="", moving=None)
        self._write(worker)
        if worker.conversation is not None:
            self._sessions.close(worker.conversation)

    def forget_killed(self, before: float) -> None:
        """Forget the killed workers that were lost before this time, as the database does."""
        self.killed = {name: lost_at for name, lost_at in self.killed.items() if lost_at >= before}

    def revoke(self, key_name: str, now: float) -> list[Worker]:
        """Revoke the key: order workers that sign with it to stop, and drop them at once."""
        self._sessions.drop_key(key_name)
        revoked = [worker for worker in self._fleet.workers.values() if worker.row.key_name == key_name]
        for worker in revoked:
            worker.leaving = True
            if worker.conversation is not None:
                self._outbox.say(worker.conversation, Exit(_REVOKED))
            self.remove(worker, WorkerState.GONE, _REVOKED, now)
        return revoked

    def on_broker_lost(self) -> None:
        """No worker can be heard."""
        self.deaf = True

    def on_broker_found(self, now: float) -> None:
        """Give every worker a whole lease to be heard again."""
        self.deaf = False
        self.forgive(self._patience_s, now)

    def forgive(self, silence_s: float, now: float) -> None:
        """Extend all leases by a silence that was not the workers' fault."""
        for worker in self._fleet.workers.values():
            worker.lease_until = max(worker.lease_until, now + silence_s)

    def _look_at_lease(self, name: str, now: float) -> None:
        worker = self._fleet.workers.get(name)
        if worker is None:
            return
        if self.deaf:
            self._timers.set(now + self._patience_s, lambda at: self._look_at_lease(name, at))
        elif worker.lease_until > now:
            self._timers.set(worker.lease_until, lambda at: self._look_at_lease(name, at))
        else:
            silent_s = now - (worker.lease_until - self._patience_s)
            self.remove(worker, WorkerState.LOST, f"silent for {silent_s:.0f} s", now, explained=False)

    def _write(self, worker: Worker) -> None:
        self._outbox.writes.workers[worker.name] = worker.row
        self._fleet.touched[worker.name] = None


def _is_elsewhere(known: Hello, hello: Hello) -> bool:
    """Whether two Hellos of one home come from different machines, or from before and after a reboot, as far as they
    tell."""
    pairs = ((known.boot_id, hello.boot_id), (known.machine, hello.machine))
    return any(one and other and one != other for one, other in pairs)


def _sentence(text: str) -> str:
    return text if len(text) <= MAX_REASON_CHARS else f"{text[:MAX_REASON_CHARS]}…"
