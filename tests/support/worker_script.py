"""A script for the worker: one line in, the exact answer out, anything extra fails.

    script = WorkerScript(cpus=2).on_duty()
    script.orders(1, 2, 3).begins(1, 2)
    script.ends(1).spools(1).begins(3).nothing_else()
    script.wait(0.02).says_ended(1)

Drives the real core with real envelopes; no socket, no clock, no process. Attempts are named by their task number;
their attempt's number is 1 where nothing else is said.
"""

from __future__ import annotations

from typing import Any

import msgspec
from as_received import as_received

from ecloud.model import wire
from ecloud.model.tasks import Call, Cause, Outcome, Resources, TaskBody
from ecloud.model.wire import AttemptName, AttemptOrder, Envelope
from worker.core.events import (
    AttemptEnded,
    AttemptReturned,
    CallBegan,
    CallsRecalled,
    ConnectionFound,
    ConnectionLost,
    Event,
    MessageArrived,
    TermReceived,
    TroubleChanged,
    WorkerConfig,
    WorkerEffects,
)
from worker.core.worker_core import WorkerCore

PEER = "w1"


def order(task_no: int, *, number: int = 1, cpus: float = 1.0, run_no: int = 1, **fields: Any) -> AttemptOrder:
    """One attempt to run; further resources by name (`gpus=1`)."""
    known = set(AttemptOrder.__struct_fields__)
    asks: Resources = {"cpus": cpus, **{name: fields.pop(name) for name in list(fields) if name not in known}}
    body = fields.pop("body", TaskBody(id=f"t{task_no}", commands=("true",)))
    return AttemptOrder(task_no, number, f"run{run_no}", run_no, asks, body=body, **fields)


def call(task_no: int, function: str = "f", **fields: Any) -> AttemptOrder:
    """One attempt at a call of `function`."""
    body = TaskBody(id=f"t{task_no}", commands=(), call=Call(function, function, code=b"code"))
    return order(task_no, **{"body": body, **fields})


class WorkerScript:
    """The worker's core, the boss's half of its conversation, and everything it did that no assertion took yet."""

    def __init__(self, *, cpus: float = 1.0, gpus: tuple[str, ...] = (), now: float = 1000.0, **config: Any) -> None:
        offers: Resources = {"cpus": cpus, "gpus": float(len(gpus)), **config.pop("resources", {})}
        self.config = WorkerConfig(peer=PEER, home="home-1", resources=offers, gpus=gpus, **config)
        self.now = now
        self.core = WorkerCore(self.config, now)
        self.session = ""
        self.epoch = 1
        self.number = 0
        self.sessions = 0
        self.last_number, self.said_in = 0, ""
        self.done = WorkerEffects()

    def handle(self, *events: Event) -> WorkerScript:
        """One batch; what it causes is added to what waits for assertions."""
        effects = self.core.handle(list(events), self.now)
        self.core.check()
        for envelope in effects.says:
            assert envelope.peer == PEER
            assert envelope.epoch == 0
            assert as_received(envelope) == envelope
            if not isinstance(envelope.message, wire.Hello):
                assert envelope.session == self.core.session, "said outside the session"
                self.last_number = self.last_number + 1 if envelope.session == self.said_in else 1
                self.said_in = envelope.session
                assert envelope.number == self.last_number, "the boss would ignore it"
        for name in ("spool", "forget", "stops", "starts", "prefetches", "recalls", "streams", "says"):
            getattr(self.done, name).extend(getattr(effects, name))
        self.done.leave = self.done.leave or effects.leave
        return self

    def wait(self, seconds: float) -> WorkerScript:
        """Let time pass, deadline by deadline."""
        until = self.now + seconds
        while (deadline := self.core.next_deadline()) is not None and deadline <= until:
            before, self.now = self.now, max(self.now, deadline)
            self.handle()
            if self.now == before and self.core.next_deadline() == deadline:
                raise AssertionError(f"the deadline {deadline} does not pass: the worker would spin")
        self.now = until
        return self.handle()

    # --- the conversation -------------------------------------------------------------------------

    def connect(self) -> WorkerScript:
        """The broker accepts it; the nonce of its `Hello` is taken by `welcome`."""
        return self.handle(ConnectionFound())

    def lose(self) -> WorkerScript:
        """The broker is gone, and with it what was on its way."""
        return self.handle(ConnectionLost("gone"))

    def hello(self) -> wire.Hello:
        """Its next Hello: outside any session."""
        envelope = self.envelope(wire.Hello)
        assert (envelope.session, envelope.number) == ("", 0)
        assert isinstance(envelope.message, wire.Hello)
        return envelope.message

    def welcome(self, hello: wire.Hello | None = None, **fields: Any) -> WorkerScript:
        """The boss answers `hello` (taken from what was said, where none is given)."""
        hello = hello or self.hello()
        self.sessions += 1
        self.session, self.number = f"{self.epoch}-{self.sessions}", 0
        fields = {"heartbeat_s": 5.0, "lease_s": 60.0, **fields}
        message = wire.Welcome(nonce=hello.nonce, session=self.session, **fields)
        return self.hear(message, number=0)

    def on_duty(self, **fields: Any) -> WorkerScript:
        """Connected, welcomed, first heartbeat answered, nothing left to take."""
        self.connect().welcome(**fields)
        return self.answers_heartbeat()

    def answers_heartbeat(self) -> WorkerScript:
        """The boss answers the next heartbeat."""
        envelope = self.envelope(wire.Heartbeat)
        return self.hear(wire.HeartbeatAnswered(envelope.number))

    def hear(self, message: wire.Message, **envelope: Any) -> WorkerScript:
        """The boss says something, in its session and with its next number where nothing else is said."""
        if "number" not in envelope:
            self.number += 1
        fields = {"session": self.session, "number": self.number, "epoch": self.epoch, **envelope}
        return self.handle(MessageArrived(Envelope(v=wire.PROTOCOL_VERSION, peer=PEER, message=message, **fields)))

    def orders(self, *attempts: AttemptOrder | int) -> WorkerScript:
        """The boss orders these in one message."""
        return self.hear(wire.StartTasks(tuple(order(a) if isinstance(a, int) else a for a in attempts)))

    def stores(self, *task_nos: int) -> WorkerScript:
        """The boss answers the outcomes of these."""
        return self.hear(wire.OutcomesStored(names_of(*task_nos)))

    # --- what happens on the machine --------------------------------------------------------------

    def ends(self, *task_nos: int, cause: Cause = Cause.SUCCESS, **fields: Any) -> WorkerScript:
        """These end."""
        return self.handle(*(AttemptEnded(Outcome(task_no, 1, cause, **fields)) for task_no in task_nos))

    def goes_on(self, ended: int, began: int, run_s: float = 0.01) -> WorkerScript:
        """The host of the call `ended` begins the call `began`."""
        outcome = Outcome(ended, 1, Cause.SUCCESS, run_s=run_s)
        return self.handle(CallBegan(began, 1, after=(ended, 1)), AttemptEnded(outcome))

    def recalled(self, *task_nos: int) -> WorkerScript:
        """Their host no longer has these calls."""
        return self.handle(CallsRecalled(tuple([(task_no, 1) for task_no in task_nos])))

    def cannot_run(self, task_no: int, reason: str) -> WorkerScript:
        """The machine cannot run this one now."""
        return self.handle(TroubleChanged(reason), AttemptReturned(task_no, 1, reason))

    def trouble(self, text: str) -> WorkerScript:
        """Something is wrong with the machine; empty: it has ended."""
        return self.handle(TroubleChanged(text))

    def term(self) -> WorkerScript:
        """SIGTERM."""
        return self.handle(TermReceived())

    def reborn(self, **config: Any) -> WorkerScript:
        """A new process on the same home, with what the old one left in its spool."""
        spooled = tuple(ended.outcome for ended in self.core.attempts.ended.values())
        fresh = WorkerScript(now=self.now)
        fresh.config = msgspec.structs.replace(self.config, spooled=spooled, **config)
        fresh.core = WorkerCore(fresh.config, fresh.now)
        return fresh

    # --- assertions -------------------------------------------------------------------------------

    def envelope(self, kind: type[Any]) -> Envelope:
        """The next thing said of that kind, with its envelope; numbers go up by one within a session."""
        for index, envelope in enumerate(self.done.says):
            if isinstance(envelope.message, kind):
                return self.done.says.pop(index)
        raise AssertionError(f"no {kind.__name__}; it said {[type(e.message).__name__ for e in self.done.says]}")

    def take(self, kind: type[Any]) -> Any:
        """The next message of that kind."""
        return self.envelope(kind).message

    def begins(self, *task_nos: int) -> WorkerScript:
        """It starts exactly these, in this order."""
        starts, self.done.starts = self.done.starts, []
        assert [start.order.task_no for start in starts] == list(task_nos)
        return self

    def prefetches(self, *task_nos: int, behind: int) -> WorkerScript:
        """It hands exactly these to the host of the call `behind`, in this order."""
        prefetches, self.done.prefetches = self.done.prefetches, []
        assert [(at.order.task_no, at.behind) for at in prefetches] == [(task_no, (behind, 1)) for task_no in task_nos]
        return self

    def recalls(self, *task_nos: int) -> WorkerScript:
        """It recalls exactly these."""
        recalls, self.done.recalls = self.done.recalls, []
        assert [task_no for task_no, _ in recalls] == list(task_nos)
        return self

    def spools(self, *task_nos: int) -> WorkerScript:
        """It wrote these to disk."""
        spool, self.done.spool = self.done.spool, []
        assert [outcome.task_no for outcome in spool] == list(task_nos)
        return self

    def forgets(self, *task_nos: int) -> WorkerScript:
        """It drops these from its spool."""
        forget, self.done.forget = self.done.forget, []
        assert [task_no for task_no, _ in forget] == list(task_nos)
        return self

    def says_started(self, *task_nos: int) -> WorkerScript:
        """It tells that these run."""
        assert [name.task_no for name in self.take(wire.TasksStarted).attempts] == list(task_nos)
        return self

    def says_ended(self, *task_nos: int) -> WorkerScript:
        """It tells the outcomes of these in one message."""
        assert [outcome.task_no for outcome in self.take(wire.TasksEnded).outcomes] == list(task_nos)
        return self

    def returns(self, *task_nos: int, reason: str | None = None) -> WorkerScript:
        """It gives these back in one message."""
        returned = self.take(wire.TasksReturned)
        assert [name.task_no for name in returned.attempts] == list(task_nos)
        assert reason is None or returned.reason == reason
        return self

    def stops(self, *task_nos: int) -> WorkerScript:
        """It ends what these run."""
        stops, self.done.stops = self.done.stops, []
        assert [stop.task_no for stop in stops] == list(task_nos)
        return self

    def beats(self, **expected: str) -> wire.Heartbeat:
        """Its next heartbeat, with exactly this inventory: `beats(t1="running", t2="queued")`; it is answered."""
        envelope = self.envelope(wire.Heartbeat)
        heartbeat = envelope.message
        assert isinstance(heartbeat, wire.Heartbeat)
        assert {f"t{held.task_no}": held.state for held in heartbeat.attempts} == expected
        self.hear(wire.HeartbeatAnswered(envelope.number))
        return heartbeat

    def leaves(self, code: int = 0) -> WorkerScript:
        """It goes."""
        assert self.done.leave is not None, "it stays"
        assert self.done.leave.code == code
        self.done.leave = None
        return self

    def nothing_else(self) -> WorkerScript:
        """It did nothing that no assertion took."""
        assert msgspec.structs.asdict(self.done) == msgspec.structs.asdict(WorkerEffects())
        return self

    def forget_all(self) -> WorkerScript:
        """What it did up to here does not matter to the story."""
        self.done = WorkerEffects()
        return self


def names_of(*task_nos: int) -> tuple[AttemptName, ...]:
    """First attempts by their task numbers."""
    return tuple(AttemptName(task_no, 1) for task_no in task_nos)
