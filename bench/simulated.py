"""Everything except the commands: a graph of tasks through Mosquitto, MariaDB and the boss, for workers that answer
immediately.

The simulated workers run in this process and use the worker's protocol over the real broker.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

from bench.report import Figure, micro, seconds
from bench.services import Services, cpu_s
from bench.throughput import wait_until_over
from ecloud.client.broker import BrokerAddress, BrokerConnection
from ecloud.client.client import Client
from ecloud.config.secrets import AccessFile
from ecloud.model import wire
from ecloud.model.tasks import Cause, Dependency, Outcome, TaskDefinition
from ecloud.model.topics import boss_topic, peer_topic
from ecloud.model.wire import AttemptName, Envelope, HeldAttempt, PushOptions

TASKS = 40_000
WIDTH = 4_000
"""Tasks in a layer; each waits for two of the previous layer."""
WORKERS = 4
CPUS = 64
RUN_S = 0.0005
REPEATS = 3
LEAST_RATE = 8_000
HEARTBEAT_S = 5.0
DUTY_S = 30.0
HELLO_AGAIN_S = 1.0


class SimulatedWorker:
    """One worker's side of the protocol: every ordered attempt has succeeded, or has failed if `fails` returns true for
    its task number."""

    def __init__(
        self,
        access: AccessFile,
        name: str,
        inbox: SimpleQueue[tuple[SimulatedWorker, bytes] | None],
        fails: Callable[[int], bool],
    ) -> None:
        self.name = name
        self._fails = fails
        self.is_on_duty = threading.Event()
        self._access = access
        self._key = access.key_bytes
        self._to_boss = boss_topic(access.cluster_id, name)
        self._from_boss = peer_topic(access.cluster_id, name)
        self._session = ""
        self._number = self._seen = self._hellos = 0
        self._unanswered: dict[tuple[int, int], None] = {}
        self._connection = BrokerConnection(
            BrokerAddress(access.host, access.port),
            name,
            [self._from_boss],
            lambda topic, payload: inbox.put((self, payload)),
            self.hello,
            lambda reason: None,
        )

    def start(self) -> None:
        """Connect and send a Hello."""
        self._connection.start()

    def stop(self) -> None:
        """Leave, with no attempts."""
        self._say(wire.Goodbye())
        self._connection.stop()

    def heartbeat(self) -> None:
        """Send a heartbeat with the unanswered outcomes."""
        if self._session:
            held = tuple(HeldAttempt(*key, "ended") for key in self._unanswered)
            self._say(wire.Heartbeat(self._seen, held))

    def hear(self, payload: bytes) -> None:
        """Handle a message of the boss."""
        envelope, _ = wire.decode(payload, self._from_boss, lambda name: self._key)
        message = envelope.message
        if isinstance(message, wire.Welcome):
            self._session, self._number, self._seen = message.session, 0, 0
            self.heartbeat()
            self.is_on_duty.set()
            return
        self._seen = envelope.number
        if isinstance(message, wire.StartTasks):
            self._end([AttemptName(order.task_no, order.number) for order in message.attempts])
        elif isinstance(message, wire.OutcomesStored):
            for name in message.attempts:
                self._unanswered.pop((name.task_no, name.number), None)

    def _end(self, names: list[AttemptName]) -> None:
        self._unanswered.update({(name.task_no, name.number): None for name in names})
        self._say(wire.TasksEnded(tuple([self._outcome(name) for name in names])))

    def _outcome(self, name: AttemptName) -> Outcome:
        if not self._fails(name.task_no):
            return Outcome(name.task_no, name.number, Cause.SUCCESS, exit_code=0, run_s=RUN_S)
        error = "command 1 of 1 exited with code 1"
        return Outcome(
            name.task_no, name.number, Cause.EXIT, exit_code=1, error=error, command="true", stderr="no\n", run_s=RUN_S
        )

    def hello(self) -> None:
        """Open a session. Repeated until the boss answers."""
        self._hellos += 1
        nonce, resources = f"{self.name}-{self._hellos}", {"cpus": float(CPUS)}
        hello = wire.Hello(nonce, "worker", home=self.name, resources=resources, chains=True)
        self._publish(Envelope(wire.PROTOCOL_VERSION, self.name, "", 0, hello))

    def _say(self, message: wire.Message) -> None:
        self._number += 1
        self._publish(Envelope(wire.PROTOCOL_VERSION, self.name, self._session, self._number, message))

    def _publish(self, envelope: Envelope) -> None:
        payload = wire.encode(envelope, self._to_boss, self._access.key_name, self._key)
        self._connection.publish(self._to_boss, payload)


class Crew:
    """Simulated workers in one thread. `fails`: which tasks fail, by their numbers."""

    def __init__(self, services: Services, fails: Callable[[int], bool] = lambda task_no: False) -> None:
        self._inbox: SimpleQueue[tuple[SimulatedWorker, bytes] | None] = SimpleQueue()
        names = [f"sim{number}" for number in range(WORKERS)]
        self.workers = [SimulatedWorker(services.access(f"invite-{name}"), name, self._inbox, fails) for name in names]
        self._thread = threading.Thread(target=self._work, name="crew", daemon=True)

    def __enter__(self) -> Crew:
        self._thread.start()
        for worker in self.workers:
            worker.start()
        for worker in self.workers:
            give_up_at = time.monotonic() + DUTY_S
            while not worker.is_on_duty.wait(HELLO_AGAIN_S):
                if time.monotonic() > give_up_at:
                    raise TimeoutError(f"the boss does not welcome {worker.name}")
                worker.hello()
        return self

    def __exit__(self, *exception: object) -> None:
        self._inbox.put(None)
        self._thread.join()
        for worker in self.workers:
            worker.stop()

    def _work(self) -> None:
        beat_at = time.monotonic() + HEARTBEAT_S
        while (item := self._inbox.get()) is not None:
            worker, payload = item
            worker.hear(payload)
            if time.monotonic() >= beat_at:
                beat_at = time.monotonic() + HEARTBEAT_S
                for other in self.workers:
                    other.heartbeat()


def graph(count: int, width: int) -> list[TaskDefinition]:
    """Make layers of `width` tasks; each task waits for two of the previous layer."""
    tasks = []
    for number in range(count):
        before = (number - width, number - width - 1 if number > width else number) if number >= width else ()
        dependencies = tuple(Dependency(f"t{other}") for other in before if other != number)
        tasks.append(TaskDefinition(id=f"t{number}", commands=("true",), dependencies=dependencies))
    return tasks


def measure(profiles: Path | None = None) -> list[Figure]:
    """Measure tasks a second, the median of turns, and the CPU time of boss and database."""
    turns: list[tuple[float, float, float]] = []
    with Services(profiles) as services, Crew(services), Client(services.client_access()) as client:
        client.connect()
        tasks = graph(TASKS, WIDTH)
        for number in range(REPEATS):
            run = f"run{number}"
            client.push(tasks, PushOptions(run=run))
            boss, database = cpu_s(services.boss), cpu_s(services.database)
            began = time.monotonic()
            wait_until_over(client, run)
            wall = time.monotonic() - began
            turns.append((wall, cpu_s(services.boss) - boss, cpu_s(services.database) - database))
    turns.sort()
    wall = statistics.median(turn[0] for turn in turns)
    middle = turns[len(turns) // 2]
    best = TASKS / turns[0][0]
    rate = TASKS / wall
    return [
        Figure(
            f"simulated: {TASKS:,} tasks, {WORKERS} workers that answer at once (median)",
            seconds(wall),
            "",
            f"{rate:,.0f}/s",
            f"at least {LEAST_RATE:,}/s",
            rate >= LEAST_RATE,
        ),
        Figure("simulated: the best turn", seconds(turns[0][0]), "", f"{best:,.0f}/s"),
        Figure("simulated: CPU a task, boss", "", micro(middle[1] / TASKS)),
        Figure("simulated: CPU a task, MariaDB", "", micro(middle[2] / TASKS)),
    ]
