"""The boss under anything: random peers, messages lost and repeated, restarts; its invariants hold after each step.

`BossScript.handle` calls `Boss.check()` after every batch and commits through the store twin, so that each rule of
this machine is
also a test of the invariants and of write-then-speak.
"""

from __future__ import annotations

from boss_script import BossScript, Peer, task
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from boss.core.model.effects import PromoteFiles
from boss.core.model.events import FilesPromoted
from ecloud.model import wire
from ecloud.model.tasks import (
    ENDED,
    AttemptState,
    Cause,
    ManifestEntry,
    Outcome,
    Requirement,
    Retries,
    TaskDefinition,
    TaskState,
)
from ecloud.model.wire import AttemptName, HeldAttempt

CAUSES = [Cause.SUCCESS, Cause.SUCCESS, Cause.EXIT, Cause.TIMEOUT, Cause.SIGNAL]
LIVES_S = (90.0, 120.0, None)
"""How long the machines of the workers live."""
names = st.sampled_from([f"t{number}" for number in range(8)])


class BossMachine(RuleBasedStateMachine):
    """Three workers, two runs, one person with ideas."""

    @initialize()
    def begin(self) -> None:
        self.script = BossScript(lease_s=30.0, retry_backoff_s=0.5)
        self.recorded: dict[tuple[int, int], Outcome] = {}

    def worker(self, index: int) -> Peer:
        name = f"w{index}"
        if name not in self.script.peers:
            self.script.worker(name, cpus=index + 1, lives_s=LIVES_S[index])
            self.absorb()
        return self.script.peers[name]

    def absorb(self) -> None:
        """Deliver what was said: workers queue what is ordered and drop what is stored; calls are carried out."""
        script = self.script
        while script.said or script.calls:
            said, script.said = script.said, []
            calls, script.calls = script.calls, []
            for send in said:
                peer = script.peers[send.envelope.peer]
                if send.envelope.session != peer.session:
                    continue
                message = send.envelope.message
                if send.envelope.number:
                    peer.seen = send.envelope.number
                if isinstance(message, wire.StartTasks):
                    for order in message.attempts:
                        # What was dropped after it was said is stored no more.
                        is_there = order.task_no in script.store.tasks
                        assert not is_there or (order.task_no, order.number) in script.store.attempts
                        peer.holds.setdefault((order.task_no, order.number), "queued")
                elif isinstance(message, wire.OutcomesStored):
                    for name in message.attempts:
                        peer.holds.pop((name.task_no, name.number), None)
                elif isinstance(message, (wire.StopTasks, wire.ReturnTasks)):
                    back = [
                        name for name in message.attempts if peer.holds.get((name.task_no, name.number)) == "queued"
                    ]
                    for name in back:
                        del peer.holds[(name.task_no, name.number)]
                    if back:
                        script.hear(peer, wire.TasksReturned(tuple(back)))
            for call in calls:
                if isinstance(call, PromoteFiles):
                    script.handle(FilesPromoted(tuple((p.task_no, p.number, None) for p in call.promotions)))

    @rule(data=st.data(), run=st.sampled_from(["r", "s"]), replace=st.booleans())
    def push(self, data: st.DataObject, run: str, replace: bool) -> None:
        count = data.draw(st.integers(1, 6))
        tasks: list[TaskDefinition] = []
        for number in range(count):
            earlier = [f"t{other}" for other in range(number) if data.draw(st.booleans())]
            tasks.append(
                task(
                    f"t{number}",
                    after=" ".join(earlier),
                    on=data.draw(st.sampled_from(["success", "any", "failure"])),
                    priority=data.draw(st.integers(0, 1)),
                    resources={"cpus": float(data.draw(st.integers(1, 2)))},
                    retries=Retries(data.draw(st.integers(0, 1))),
                    runtime_s=data.draw(st.sampled_from([0.01, 60.0, 80.0, 100.0])),
                    requirements=data.draw(st.sampled_from([(), (Requirement("a", "a"),), (Requirement("b", "b"),)])),
                )
            )
        if data.draw(st.booleans()):
            tasks.append(task("init", init=True))
        self.script.push(run, *tasks, merge_strategy="replace" if replace else "keep_succeeded")
        self.absorb()

    @rule(index=st.integers(0, 2), lost=st.booleans())
    def beat(self, index: int, lost: bool) -> None:
        peer = self.worker(index)
        if lost:
            self.script.said = []
        else:
            self.absorb()
        held = tuple(HeldAttempt(*key, state) for key, state in peer.holds.items())
        self.script.hear(peer, wire.Heartbeat(peer.seen, held))
        if any(isinstance(send.envelope.message, wire.Refused) for send in self.script.said):
            self.script.said = []
            offers = {"cpus": float(index + 1)}
            self.script.hello(peer, resources=offers, home=f"home-{peer.name}", lives_s=LIVES_S[index])
            self.script.hear(peer, wire.Heartbeat(0, held))
        self.absorb()

    @rule(index=st.integers(0, 2), data=st.data(), twice=st.booleans())
    def end_some(self, index: int, data: st.DataObject, twice: bool) -> None:
        peer = self.worker(index)
        outcomes = []
        for key in sorted(peer.holds)[: data.draw(st.integers(0, 4))]:
            manifest = (ManifestEntry("x", 1, "aa"),) if data.draw(st.booleans()) else ()
            outcome = self.recorded.setdefault(
                key, Outcome(*key, data.draw(st.sampled_from(CAUSES)), error="e", manifest=manifest, fetch_bytes=10**8)
            )
            outcomes.append(outcome)
            peer.holds[key] = "ended"
        if outcomes:
            for _ in range(1 + twice):
                self.script.hear(peer, wire.TasksEnded(tuple(outcomes)))
            self.absorb()

    @rule(index=st.integers(0, 2))
    def start_all(self, index: int) -> None:
        peer = self.worker(index)
        started = []
        for key, state in peer.holds.items():
            if state == "queued":
                peer.holds[key] = "running"
                started.append(wire.StartedAttempt(*key, 0.0))
        self.script.hear(peer, wire.TasksStarted(tuple(started)))
        self.absorb()

    @rule(index=st.integers(0, 2))
    def give_back(self, index: int) -> None:
        peer = self.worker(index)
        queued = [key for key, state in peer.holds.items() if state == "queued"]
        for key in queued:
            del peer.holds[key]
        self.script.hear(peer, wire.TasksReturned(tuple(AttemptName(*key) for key in queued)))
        self.absorb()

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.script.wait(seconds)
        self.absorb()

    @rule()
    def restart(self) -> None:
        self.script.start()
        for peer in self.script.peers.values():
            if peer.kind == "client":
                self.script.hello(peer)
        self.absorb()

    @rule(verb=st.sampled_from(["cancel", "retry_failed", "redo_task", "drop_tasks"]), name=names, whole=st.booleans())
    def ask(self, verb: str, name: str, whole: bool) -> None:
        if self.script.store.tasks:
            self.script.ask(verb, **({"run": "r"} if whole else {"ids": [name]}))
            self.absorb()

    @invariant()
    def what_is_stored_makes_sense(self) -> None:
        store = self.script.store
        for row in store.tasks.values():
            if row.state is TaskState.RUNNING and not row.init:
                live = [a for key, a in store.attempts.items() if key[0] == row.task_no]
                assert any(a.state in (AttemptState.STARTED, AttemptState.PROMOTING) for a in live)
        unfinished = {row.task_no for row in store.tasks.values() if row.state not in ENDED and not row.init}
        known = {node.task_no for node in self.script.boss.book.graph.nodes.values() if not node.init}
        assert unfinished == known


BossMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, report_multiple_bugs=False
)
TestBoss = BossMachine.TestCase
