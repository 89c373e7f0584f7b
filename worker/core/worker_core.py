"""The worker's side of the conversation: hello, sessions, heartbeats, the lease, joining and leaving. Events in,
effects out; owns no clock, file or process. What it holds and starts is in `worker.core.attempts`.

The rules are those of docs/protocol.md. It obeys orders only in the session that its last Hello opened.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from datastore.backoff import Backoff
from ecloud.model import wire
from ecloud.model.tasks import Container
from ecloud.model.transfer_status import HeldInput
from ecloud.model.wire import Envelope, HeldAttempt
from worker.core.attempts import Attempts
from worker.core.events import (
    AccessEnded,
    AttemptEnded,
    AttemptReturned,
    CallBegan,
    CallsRecalled,
    CommandsEnded,
    ConnectionFound,
    ConnectionLost,
    Event,
    GpusMeasured,
    Leave,
    MessageArrived,
    MovingMeasured,
    ResultsComplete,
    StateMeasured,
    StreamOutput,
    TermReceived,
    TransfersChanged,
    TroubleChanged,
    WorkerConfig,
    WorkerEffects,
)
from worker.core.prefetched import BEGIN_S
from worker.core.transfer_slot import Lane
from worker.core.transfer_status import Shown

HELLO_BACKOFF = Backoff(1.0, 10.0)
"""Pause between Hellos that the boss does not answer."""
DRAIN_WITHOUT_BOSS_S = 5.0
"""A worker that wants to leave waits this long for the boss's confirmation, once it is idle."""
ENDS_SOON_S = 60.0
"""A worker takes nothing more if its machine ends within this time."""


HOME_COPIED = 2
"""Exit code of a worker whose home is a copy of another worker's that still runs: the user must give it its own
home."""


class WorkerCore:
    """One worker process."""

    def __init__(self, config: WorkerConfig, now: float) -> None:
        self.config = config
        self.connected = False
        self.session = ""
        self.epoch, self.batch = config.heard
        """Of the boss, as received last."""
        self.heartbeat_s, self.lease_s = 5.0, 60.0
        self.datastore = wire.DatastoreAccess("")
        self.settings: dict[str, float] = {}
        self.shell = "/bin/sh"
        self.container: Container | None = None
        self._access_until: float | None = None
        self.draining = self.then_exit = self.leaving = False
        self.trouble = ""
        self.ignored: Counter[str] = Counter()
        self._number = self._seen = self._nonces = 0
        self._hello_at: float | None = None
        self._hellos = 0
        self._heartbeat_at: float | None = None
        self._lease_until: float | None = None
        self._heartbeats: dict[int, float] = {}
        self._leave_at: float | None = None
        self._ends_at = None if config.lives_s is None else now + config.lives_s
        self._ends_soon_at = None if self._ends_at is None else max(now, self._ends_at - ENDS_SOON_S)
        self._heard_at = now
        self._steps = config.boot_steps
        self._state = StateMeasured()
        self._inputs_told: tuple[HeldInput, ...] = ()
        self.attempts = Attempts(config, self._say)
        self.lane = Lane(self._say)
        self.shown = Shown(self._say)

    # --- the one verb -------------------------------------------------------------------------------

    def handle(self, events: Sequence[Event], now: float) -> WorkerEffects:
        """Apply a batch of events, handle deadlines, start what fits, send what is due."""
        for event in events:
            self._apply(event, now)
        self._pass_deadlines(now)
        attempts = self.attempts
        attempts.pass_deadlines(now)
        if attempts.starts_changed and attempts.queue and self._may_start(now):
            attempts.start(now)
            if self._may_start(now + BEGIN_S):
                attempts.prefetch()
        if self.session:
            attempts.missing_values.ask(now)
        attempts.flush(now, in_session=bool(self.session))
        if self.then_exit:
            self._maybe_leave(now)
        effects, attempts.effects = attempts.effects, WorkerEffects()
        return effects

    def next_deadline(self) -> float | None:
        """When `handle` must be called again, whatever happens."""
        hello_at, heartbeat_at = (self._hello_at, self._heartbeat_at) if self.connected else (None, None)
        lane_at = None if self.lane.sleeps else self.lane.deadline
        gone_s = self.config.boss_gone_exit_s
        gone_at = None if gone_s is None or self.leaving else self._heard_at + gone_s
        soonest = math.inf
        recall_at = self.attempts.prefetched.recall_at
        values_at = self.attempts.missing_values.deadline if self.session else None
        for deadline in (
            self.attempts.flush_at, lane_at, self._leave_at, self._ends_soon_at, hello_at, heartbeat_at, gone_at,
            recall_at, values_at,
        ):  # fmt: skip
            if deadline is not None and deadline < soonest:
                soonest = deadline
        return None if soonest == math.inf else soonest

    # --- events -------------------------------------------------------------------------------------

    def _apply(self, event: Event, now: float) -> None:
        match event:
            case AttemptEnded(outcome):
                self.attempts.on_ended(outcome)
            case MessageArrived(envelope):
                self._on_message(envelope, now)
            case CallBegan():
                self.attempts.on_call_began(event, now)
            case CallsRecalled(keys):
                self.attempts.on_calls_recalled(keys)
            case CommandsEnded(task_no, number):
                self.attempts.on_commands_ended((task_no, number))
            case ResultsComplete():
                self.attempts.on_results_complete(event)
            case AttemptReturned(task_no, number, reason, ran):
                self.attempts.on_returned((task_no, number), reason, ran, now)
            case ConnectionFound():
                self.connected = True
                self._hellos = 0
                if self._steps and self._steps is self.config.boot_steps:
                    self._steps = (*self._steps, ("broker", now))  # the first time
                self._say_hello(now)
            case ConnectionLost():
                self.attempts.on_connection_lost()
                self.connected = False
                self.session = ""
                self._hello_at = self._heartbeat_at = None
            case AccessEnded():
                if self._access_until is not None and self._access_until > now:
                    self._access_until = now
                    if self.session:
                        self._heartbeat_at = now  # the boss gives another
            case TroubleChanged(text):
                if text != self.trouble:
                    self.trouble = text
                    self.attempts.starts_changed = True
                    if self.session:  # else the Welcome's heartbeat reports it
                        self._heartbeat_at = now
            case GpusMeasured(present):
                if self.attempts.on_gpus(present):
                    self.config = self.attempts.config
                    if self.connected:
                        self._say_hello(now)  # with what is offered from now on
            case TermReceived():
                self._on_term(now)
            case StateMeasured():
                self._state = event
            case MovingMeasured(moving):
                self.shown.on_measured(moving, now)
            case TransfersChanged():
                self.lane.on_changed(event)

    def _on_message(self, envelope: Envelope, now: float) -> None:
        message = envelope.message
        if isinstance(message, wire.Welcome):
            self._on_welcome(envelope, message, now)
            return
        if isinstance(message, wire.Refused) and message.code == "session":
            # A deposed boss that does not know it yet cannot end the session with the boss that leads. But if no boss
            # has renewed the lease, the sender may lead with a lower epoch, and learns of this one from a Hello.
            heeded = envelope.epoch >= self.epoch or self._lease_until is None or now >= self._lease_until
            if message.about == self.session and self.session and self.connected and heeded:
                self._say_hello(now)
            return
        if envelope.session != self.session or not self.session or envelope.epoch != self.epoch:
            self.ignored["session"] += 1
            return
        if envelope.number <= self._seen:
            self.ignored["number"] += 1
            return
        self._seen = envelope.number
        self.batch = max(self.batch, envelope.batch)
        self._heard_at = now
        self._obey(message, now)

    def _obey(self, message: wire.Message, now: float) -> None:
        match message:
            case wire.StartTasks(attempts):
                self.attempts.on_start_tasks(attempts, takes=not (self.draining or self.leaving))
                if self.draining and self._leave_at is not None:
                    self._say(wire.DrainWanted(wire.ORDERED_TO_LEAVE))  # the boss did not receive the first one
            case wire.CallValues():
                self.attempts.on_values(message)
            case wire.OutcomesStored(attempts):
                self.attempts.on_stored(attempts)
            case wire.HeartbeatAnswered(number, heartbeat_s):
                self.heartbeat_s = heartbeat_s or self.heartbeat_s
                sent_at = self._heartbeats.pop(number, None)
                if sent_at is not None:
                    self._lease_until = max(self._lease_until or 0.0, sent_at + self.lease_s)
                    self.attempts.starts_changed = True
            case wire.DatastoreGranted(datastore, lives_s):
                self.datastore = datastore
                self._access_until = now + lives_s if datastore.credential else None
                self.attempts.starts_changed = True
            case wire.TransfersGranted(lane, lives_s):
                self.lane.on_granted(lane, lives_s, now)
            case wire.ReturnTasks(attempts):
                self.attempts.give_back([(name.task_no, name.number) for name in attempts], "")
            case wire.StopTasks(attempts, grace_s, reason):
                self.attempts.on_stop(attempts, grace_s, reason)
            case wire.Drain(_, then_exit):
                self.draining = True
                self.then_exit = self.then_exit or then_exit
                self.attempts.give_back_queue()
            case wire.Undrain():
                self.draining = self.then_exit
                self.attempts.starts_changed = True
            case wire.Exit(reason):
                self._leave(0, reason or "the boss ordered it")
            case wire.StreamLogs(task_no, number, seconds):
                self.attempts.effects.streams.append(StreamOutput(task_no, number, seconds))
            case wire.Refused("home", reason):
                self._leave(HOME_COPIED, reason)
            case wire.Refused(_, reason):
                self.ignored[f"refused: {reason}"] += 1
            case _:
                self.ignored["message"] += 1

    def _on_welcome(self, envelope: Envelope, welcome: wire.Welcome, now: float) -> None:
        if welcome.nonce != self._nonce or self._hello_at is None or envelope.epoch < self.epoch:
            self.ignored["welcome"] += 1
            return
        if welcome.other_history:
            self._leave(0, "the boss's database was restored from a backup: starting again", anew=True)
            return
        self.session, self.epoch, self.batch = welcome.session, envelope.epoch, envelope.batch
        self.heartbeat_s, self.lease_s = welcome.heartbeat_s, welcome.lease_s
        self.settings, self.shell, self.container = welcome.settings, welcome.shell, welcome.container
        if not welcome.datastore.is_same_place(self.datastore):
            self.datastore, self._access_until = welcome.datastore, None
        self._number = self._seen = 0
        self._hello_at, self._hellos = None, 0
        self._heartbeats.clear()
        self._inputs_told = ()
        if self._lease_until is None or now >= self._lease_until:
            # Attempts that waited here when the lease ended may have been given to others: give them back unstarted.
            # Only answered heartbeats renew a live lease: this Welcome may be all that the boss can send.
            self.attempts.give_back_queue()
            self._lease_until = now + self.lease_s
        self.attempts.starts_changed = True
        self._heard_at = now
        self.attempts.on_session(now)
        self.lane.on_session()
        self._say_heartbeat(now)
        if self.draining and self._leave_at is not None:
            self._say(wire.DrainWanted(wire.ORDERED_TO_LEAVE))

    def _may_start(self, now: float) -> bool:
        if self.draining or self.leaving or self.trouble or self._lease_until is None or now >= self._lease_until:
            return False
        # Without its certificate nothing can be fetched: access is on its way.
        return not self.datastore.host_key or bool(self.datastore.credential)

    # --- sending ------------------------------------------------------------------------------------

    @property
    def _nonce(self) -> str:
        return f"{self.config.peer}-{self._nonces}"

    def _say(self, message: wire.Message) -> None:
        """Send a message in the session. Without a session, drop it: the next inventory reports the state."""
        if self.session:
            self._number += 1
            self.attempts.effects.says.append(
                Envelope(wire.PROTOCOL_VERSION, self.config.peer, self.session, self._number, message)
            )

    def _say_hello(self, now: float) -> None:
        self.session = ""
        self._heartbeat_at = None
        self._nonces += 1
        config = self.config
        hello = wire.Hello(
            nonce=self._nonce,
            kind="worker",
            software=config.software,
            host=config.host,
            addresses=config.addresses,
            boot_id=config.boot_id,
            machine=config.machine,
            machine_part=config.machine_part,
            machine_has=config.machine_has,
            home=config.home,
            pid=config.pid,
            vm=config.vm,
            boot_nonce=config.boot_nonce,
            resources=config.resources,
            labels=config.labels,
            lives_s=None if self._ends_at is None else max(0.0, self._ends_at - now),
            attempts=self.inventory,
            ssh_key=config.ssh_key,
            boot_s={step: round(now - at, 3) for step, at in self._steps},
            chains=True,
            asks_values=True,
            epoch=self.epoch,
            batch=self.batch,
        )
        self.attempts.effects.says.append(Envelope(wire.PROTOCOL_VERSION, config.peer, "", 0, hello))
        self._hello_at = now + HELLO_BACKOFF.wait_s(self._hellos)
        self._hellos += 1

    @property
    def inventory(self) -> tuple[HeldAttempt, ...]:
        """Everything held here."""
        return self.attempts.inventory

    def _say_heartbeat(self, now: float) -> None:
        self._say(
            wire.Heartbeat(
                orders_seen=self._seen,
                attempts=self.inventory,
                spooled=len(self.attempts.ended),
                free_disk_mb=self._state.free_disk_mb,
                load=self._state.load,
                trouble=self.trouble,
                access_s=None if self._access_until is None else max(0.0, self._access_until - now),
                lane=self.lane.number,
                wants_bytes=self.lane.wants_bytes,
                moving=self.shown.moving,
                inputs=None if self._state.inputs == self._inputs_told else self._state.inputs,
            )
        )
        self.shown.on_heartbeat(now)
        self._inputs_told = self._state.inputs
        self._heartbeats[self._number] = now
        while len(self._heartbeats) > 100:
            del self._heartbeats[next(iter(self._heartbeats))]
        self._heartbeat_at = now + self.heartbeat_s

    # --- time ---------------------------------------------------------------------------------------

    def _pass_deadlines(self, now: float) -> None:
        if not self.lane.sleeps:
            self.lane.look(now)
        if self.connected and self._hello_at is not None and now >= self._hello_at:
            self._say_hello(now)
        if self.session and self._heartbeat_at is not None and now >= self._heartbeat_at:
            self._say_heartbeat(now)
            self.attempts.repeat(2 * self.heartbeat_s, now)
        if self._ends_soon_at is not None and now >= self._ends_soon_at:
            self._ends_soon_at = None
            self._want_drain(wire.MACHINE_ENDS, now)
        gone_s = self.config.boss_gone_exit_s
        if gone_s is not None and now - self._heard_at >= gone_s and not self.leaving:
            self._leave(0, f"no boss answered for {gone_s:.0f} s")

    def _on_term(self, now: float) -> None:
        if self._leave_at is not None or self.leaving:
            self._leave(0, "ordered to leave immediately")
        else:
            self._want_drain(wire.ORDERED_TO_LEAVE, now)

    def _want_drain(self, reason: str, now: float) -> None:
        self.draining = self.then_exit = True
        self._leave_at = now + DRAIN_WITHOUT_BOSS_S
        self.attempts.give_back_queue()
        self._say(wire.DrainWanted(reason))

    def _maybe_leave(self, now: float) -> None:
        if self.leaving or not self.attempts.is_idle:
            if self._leave_at is not None:
                self._leave_at = max(self._leave_at, now + DRAIN_WITHOUT_BOSS_S)
            return
        waited_enough = self._leave_at is not None and now >= self._leave_at
        if self.attempts.ended and not waited_enough:
            if self._leave_at is None:
                self._leave_at = now + DRAIN_WITHOUT_BOSS_S
            return
        self._leave(0, "drained")

    def _leave(self, code: int, reason: str, anew: bool = False) -> None:
        if not self.leaving:
            self.leaving = True
            self._say(wire.Goodbye(reason))
            self.attempts.effects.leave = Leave(code, reason, anew)

    def check(self) -> None:
        """Invariants of its parts."""
        self.attempts.check()
        self.lane.check()
