"""The worker under anything: messages lost, repeated and late, sessions that change, a machine that fails.

`WorkerScript.handle` calls `WorkerCore.check()` after every batch; this machine keeps its own book beside it: what was
ordered, begun, ended and said, and compares.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from worker_script import WorkerScript, names_of, order

from ecloud.model import wire
from ecloud.model.tasks import Cause, Outcome
from ecloud.model.wire import AttemptOrder, Envelope
from worker.core.events import AttemptEnded, AttemptReturned, CommandsEnded, MessageArrived, TransfersChanged

CPUS = 3.0
GPUS = ("0", "2", "5")
INITS = (1, 2)
"""Tasks that prepare the worker for run 1."""
causes = st.sampled_from([Cause.SUCCESS, Cause.SUCCESS, Cause.EXIT, Cause.STOPPED])


class WorkerMachine(RuleBasedStateMachine):
    """One worker, its machine, and a network that loses and repeats."""

    @initialize()
    def begin(self) -> None:
        self.script = WorkerScript(cpus=CPUS, gpus=GPUS)
        self.next_task = 10
        self.orders: dict[int, AttemptOrder] = {}
        self.begun: dict[int, tuple[int, ...]] = {}
        self.over: set[int] = set()
        self.staging: set[int] = set()
        self.spooled: set[int] = set()
        self.given_back: set[int] = set()
        self.hellos: list[wire.Hello] = []
        self.heard: list[Envelope] = []
        self.beats: list[int] = []
        self.numbers: dict[str, int] = {}
        self.lanes = 0
        self.moving = False
        self.script.connect()
        self.absorb()
        self.script.welcome(self.hellos[-1], lease_s=12.0)
        self.absorb()

    def absorb(self) -> None:
        """Enter into the book what the worker did, and hold it against what it may do."""
        done = self.script.done
        for outcome in done.spool:
            assert outcome.task_no not in self.spooled, "an outcome was spooled twice"
            self.spooled.add(outcome.task_no)
        for start in done.starts:
            task_no = start.order.task_no
            assert task_no in self.orders
            assert task_no not in self.begun, "an attempt began twice"
            assert task_no not in self.given_back, "what was given back began"
            assert start.gpus is not None
            assert len(start.gpus) == start.order.asks.get("gpus", 0)
            for other in self.in_place():
                assert not set(start.gpus) & set(self.begun[other]), "a GPU has two attempts"
            self.begun[task_no] = start.gpus
        asked = sum(self.orders[task_no].asks["cpus"] for task_no in self.in_place())
        assert asked <= CPUS + 0.001
        for envelope in done.says:
            self.note(envelope)
        assert done.leave is None
        self.script.forget_all()

    def note(self, envelope: Envelope) -> None:
        message = envelope.message
        if isinstance(message, wire.Hello):
            self.hellos.append(message)
            return
        assert envelope.number == self.numbers.get(envelope.session, 0) + 1, "a number is missing or came twice"
        self.numbers[envelope.session] = envelope.number
        if isinstance(message, wire.Heartbeat):
            self.beats.append(envelope.number)
        elif isinstance(message, wire.TasksEnded):
            assert {outcome.task_no for outcome in message.outcomes} <= self.spooled, "said before it was spooled"
            assert len(message.outcomes) <= wire.BATCH_COUNT
        elif isinstance(message, wire.TasksReturned):
            for name in message.attempts:
                assert name.task_no not in self.spooled
                self.given_back.add(name.task_no)

    def running(self) -> list[int]:
        return [task_no for task_no in self.begun if task_no not in self.over]

    def in_place(self) -> list[int]:
        """Those whose commands run."""
        return [task_no for task_no in self.running() if task_no not in self.staging]

    def hear(self, message: wire.Message) -> None:
        """In the session, as the boss would say it; kept, so that it can be repeated."""
        script = self.script
        script.number += 1
        envelope = Envelope(wire.PROTOCOL_VERSION, "w1", script.session, script.number, message, script.epoch)
        self.heard.append(envelope)
        script.handle(MessageArrived(envelope))
        self.absorb()

    def some(self, data: st.DataObject, of: list[int]) -> list[int]:
        return data.draw(st.lists(st.sampled_from(of), unique=True, max_size=4)) if of else []

    # --- the network ------------------------------------------------------------------------------

    @rule()
    def connect(self) -> None:
        self.script.lose().connect()
        self.absorb()

    @rule()
    def lose(self) -> None:
        self.script.lose()
        self.absorb()

    @rule(late=st.booleans(), newer=st.booleans())
    def welcome(self, late: bool, newer: bool) -> None:
        if not self.hellos:
            return
        script = self.script
        before = script.core.session
        script.epoch += newer
        hello = self.hellos[0] if late else self.hellos[-1]
        session, number = script.session, script.number
        script.welcome(hello, lease_s=12.0)
        if script.core.session != script.session:  # it was not for the last Hello: the old session stands
            assert script.core.session == before
            script.session, script.number = session, number
            script.epoch = script.core.epoch or script.epoch
        self.absorb()

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """Something that was said before comes again, at any time later: it is not obeyed."""
        if self.heard:
            begun = dict(self.begun)
            self.script.handle(MessageArrived(data.draw(st.sampled_from(self.heard))))
            self.absorb()
            assert self.begun == begun, "an old order was obeyed"

    @rule(known=st.booleans())
    def refuse(self, known: bool) -> None:
        about = self.script.session if known else "1-none"
        self.script.hear(wire.Refused("session", "send Hello", about), number=0)
        self.absorb()

    @rule(seconds=st.sampled_from([0.01, 0.5, 4.0, 15.0]))
    def wait(self, seconds: float) -> None:
        self.script.wait(seconds)
        self.absorb()

    # --- the boss ---------------------------------------------------------------------------------

    @rule(
        count=st.integers(1, 5),
        cpus=st.sampled_from([0.0, 0.5, 1.0, 3.0, 4.0]),
        gpus=st.integers(0, 3),
        after=st.sampled_from([(), (), (1,), (1, 2)]),
    )
    def order_some(self, count: int, cpus: float, gpus: int, after: tuple[int, ...]) -> None:
        fresh = range(self.next_task, self.next_task + count)
        self.next_task += count
        attempts = [order(task_no, cpus=cpus, gpus=gpus, after_init=after) for task_no in fresh]
        self.orders.update((attempt.task_no, attempt) for attempt in attempts)
        self.hear(wire.StartTasks(tuple(attempts)))

    @rule()
    def order_inits(self) -> None:
        attempts = [order(task_no, init=True) for task_no in INITS if task_no not in self.orders]
        self.orders.update((attempt.task_no, attempt) for attempt in attempts)
        self.hear(wire.StartTasks(tuple(attempts)))

    @rule(data=st.data())
    def order_again(self, data: st.DataObject) -> None:
        held = [held.task_no for held in self.script.core.inventory]
        again = tuple(self.orders[task_no] for task_no in self.some(data, held))
        self.hear(wire.StartTasks(again))

    @rule(data=st.data())
    def answer_heartbeat(self, data: st.DataObject) -> None:
        if self.beats:
            self.hear(wire.HeartbeatAnswered(data.draw(st.sampled_from(self.beats[-3:]))))

    @rule(data=st.data(), what=st.sampled_from(["stop", "return", "store"]))
    def name_some(self, data: st.DataObject, what: str) -> None:
        of = sorted(self.spooled) if what == "store" else sorted(self.orders)
        names = names_of(*self.some(data, of))
        if what == "stop":
            self.hear(wire.StopTasks(names, 1.0))
        elif what == "return":
            self.hear(wire.ReturnTasks(names))
        else:
            self.hear(wire.OutcomesStored(names))

    @rule(drained=st.booleans())
    def drain(self, drained: bool) -> None:
        self.hear(wire.Drain() if drained else wire.Undrain())

    @rule(lives_s=st.sampled_from([None, 0.0, 3.0]), again=st.booleans())
    def grant(self, lives_s: float | None, again: bool) -> None:
        """A lane; or of the last one that it is called back, whether it is still held or not."""
        if not again or not self.lanes:
            self.lanes += 1
        self.hear(wire.TransfersGranted(self.lanes, lives_s))

    # --- the machine ------------------------------------------------------------------------------

    @rule(waiting=st.integers(0, 2), moving=st.booleans())
    def transfer(self, waiting: int, moving: bool) -> None:
        """Transfers begin on an open lane alone; they end when they like."""
        self.moving = moving and (self.moving or self.script.core.lane.is_open)
        self.script.handle(TransfersChanged(waiting, int(self.moving), waiting))
        self.absorb()

    @rule(data=st.data(), cause=causes)
    def end_some(self, data: st.DataObject, cause: Cause) -> None:
        ends = self.some(data, self.running())
        self.over.update(ends)
        self.script.handle(*(AttemptEnded(Outcome(task_no, 1, cause)) for task_no in ends))
        self.absorb()
        assert set(ends) <= self.spooled

    @rule(data=st.data())
    def stage_some(self, data: st.DataObject) -> None:
        for task_no in self.some(data, self.in_place()):
            self.staging.add(task_no)
            self.script.handle(CommandsEnded(task_no, 1))
            self.absorb()

    @rule(data=st.data())
    def fail_to_run(self, data: st.DataObject) -> None:
        for task_no in self.some(data, self.in_place()):
            self.over.add(task_no)
            self.script.handle(AttemptReturned(task_no, 1, "no room"))
            self.absorb()

    @rule(text=st.sampled_from(["", "disk full"]))
    def trouble(self, text: str) -> None:
        self.script.trouble(text)
        self.absorb()

    # --- always -----------------------------------------------------------------------------------

    @invariant()
    def the_books_agree(self) -> None:
        core = self.script.core
        attempts = core.attempts
        assert {task_no for task_no, _ in attempts.running} == set(self.running())
        assert {task_no for task_no, _ in attempts.ended} <= self.spooled
        assert not {task_no for task_no, _ in attempts.queue} & set(self.begun)
        if core.draining:
            assert not attempts.queue
        if self.moving:
            assert core.lane.number, "what is under way has lost its lane"

    def teardown(self) -> None:
        """Without faults, everything it holds ends and is reported, and then it holds nothing."""
        if not hasattr(self, "script"):
            return
        script = self.script
        script.trouble("").lose().connect()
        self.absorb()
        script.welcome(self.hellos[-1], lease_s=12.0)
        self.absorb()
        self.hear(wire.Undrain())
        for _ in range(100):
            if not script.core.inventory:
                return
            self.hear(wire.HeartbeatAnswered(self.beats[-1]))
            ends = self.running()
            self.over.update(ends)
            script.handle(*(AttemptEnded(Outcome(task_no, 1, Cause.SUCCESS)) for task_no in ends))
            self.absorb()
            script.wait(5.0)
            self.absorb()
            self.hear(wire.OutcomesStored(names_of(*self.spooled)))
        raise AssertionError(f"it still holds {script.core.inventory}")


WorkerMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, report_multiple_bugs=False
)
TestWorkerCore = WorkerMachine.TestCase
