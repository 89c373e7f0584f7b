"""What a thousand tasks cost in statements and messages: both go by batches, neither by tasks.

The boss's real loop runs here over a real broker and a real database, with a worker that is as quick as one can be: it
answers an order at once, as a machine with a thousand cores would.
"""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from databases import statements
from services import DEADLINE_S, ROOT, Mosquitto, wait_until, watch_to_the_end
from sqlalchemy.engine import Engine

from boss.core.model.config import BossConfig
from boss.core.model.events import Event
from boss.shell.calls import Calls
from boss.shell.runtime import Clock, Runtime
from boss.shell.storage import Storage
from boss.store.store import Store
from ecloud.client.broker import BrokerAddress, BrokerConnection
from ecloud.client.client import Client
from ecloud.config.home import Home
from ecloud.config.secrets import AccessFile, derive_key, write_access
from ecloud.model import wire
from ecloud.model.tasks import Cause, Dependency, Outcome, TaskDefinition
from ecloud.model.topics import boss_topic, peer_topic
from ecloud.model.wire import Envelope, Heartbeat, Hello, Message, PushOptions, StartTasks, TasksEnded, Welcome

TASKS = 1_000
SECRET = b"s" * 32


class QuickWorker:
    """Speaks as a worker does and ends every attempt in the moment in which it gets the order to start it."""

    def __init__(self, address: BrokerAddress, cluster_id: str, cpus: float) -> None:
        self._name, self._key_name = "wquick", "vm-1"
        self._cluster_id = cluster_id
        self._cpus = cpus
        self._session = ""
        self._number = 0
        self._seen = 0
        self.orders: list[int] = []
        """How many attempts each order named."""
        topic = peer_topic(cluster_id, self._name)
        self._connection = BrokerConnection(address, self._name, [topic], self._hear, self._hello, lambda reason: None)
        self._connection.start()

    def _hello(self) -> None:
        self._say(Hello("n-1", "worker", resources={"cpus": self._cpus, "memory_mb": 1e6}))

    def _say(self, message: Message) -> None:
        if self._session:
            self._number += 1
        topic = boss_topic(self._cluster_id, self._name)
        envelope = Envelope(wire.PROTOCOL_VERSION, self._name, self._session, self._number, message)
        self._connection.publish(
            topic, wire.encode(envelope, topic, self._key_name, derive_key(SECRET, self._key_name))
        )

    def _hear(self, topic: str, payload: bytes) -> None:
        envelope, _ = wire.decode(payload, topic, lambda name: derive_key(SECRET, name))
        message, self._seen = envelope.message, envelope.number
        if isinstance(message, Welcome):
            self._session = message.session
            self._say(Heartbeat(0))
        elif isinstance(message, StartTasks):
            self.orders.append(len(message.attempts))
            ended = [Outcome(order.task_no, order.number, Cause.SUCCESS, exit_code=0) for order in message.attempts]
            self._say(TasksEnded(tuple(ended)))

    def stop(self) -> None:
        self._connection.stop()


class Meter:
    """Counts what goes to the database, and what the broker carries."""

    def __init__(self, engine: Engine, address: BrokerAddress, cluster_id: str) -> None:
        self.commits = 0
        self.messages: Counter[str] = Counter()
        self._engine = engine
        self._served_before = self._served()
        self._noting = ExitStack()
        self._asked = self._noting.enter_context(statements(engine))
        sa.event.listen(engine, "commit", self._on_commit)
        self._connection = BrokerConnection(
            address, "meter", [f"ecloud/{cluster_id}/#"], self._hear, lambda: None, lambda reason: None
        )
        self._connection.start()
        wait_until(lambda: self._connection.is_connected)

    @property
    def statements(self) -> Counter[str]:
        return Counter(re.sub(r"\d+(, ?\d+)*", "N", " ".join(text.split()[:6])) for text in self._asked)

    def _on_commit(self, connection: object) -> None:
        self.commits += 1

    def _hear(self, topic: str, payload: bytes) -> None:
        direction = topic.split("/")[2]
        envelope, _ = wire.decode(payload, topic, lambda name: derive_key(SECRET, name))
        self.messages[f"{direction} {type(envelope.message).__name__}"] += 1

    def at_the_server(self) -> int:
        """Statements by the server's own count: a driver may cut one statement into a thousand. 0 for a file."""
        return self._served() - self._served_before

    def _served(self) -> int:
        if self._engine.dialect.name == "sqlite":
            return 0
        kinds = "'COM_INSERT', 'COM_UPDATE', 'COM_DELETE', 'COM_SELECT', 'COM_REPLACE'"
        query = f"SELECT SUM(VARIABLE_VALUE) FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME IN ({kinds})"
        other = sa.create_engine(self._engine.url, poolclass=sa.NullPool)
        with other.connect() as connection:
            return int(connection.exec_driver_sql(query).scalar_one())

    def reset(self) -> None:
        """Count from here."""
        self._served_before = self._served()
        self._asked.clear()
        self.messages.clear()
        self.commits = 0

    def stop(self) -> None:
        self._noting.close()
        sa.event.remove(self._engine, "commit", self._on_commit)
        self._connection.stop()


class House:
    """A boss's loop in a thread of this process, with its meter, a client, and workers on demand."""

    def __init__(self, engine: Engine, address: BrokerAddress, datastore: Path) -> None:
        self._address = address
        self._thresholds = gc.get_threshold()
        clock = Clock()
        store = Store(engine)
        store.lead("the test", clock())
        self._cluster_id = store.load().cluster_id
        storage = Storage(Home(datastore), self._cluster_id)
        storage.use(f"dir:{datastore}")
        config = BossConfig(datastore=wire.DatastoreAccess(f"dir:{datastore}"))

        def make_calls(put: Callable[[Event], None]) -> Calls:
            return Calls(storage, {}, {}, put)

        self._runtime = Runtime(store, config, self._cluster_id, SECRET, address, make_calls, None, clock)
        self._thread = threading.Thread(target=self._runtime.run, name="boss")
        self._thread.start()
        self.meter = Meter(engine, address, self._cluster_id)
        self.workers: list[QuickWorker] = []
        self.client = Client(self.access("client"))
        self.client.connect(DEADLINE_S)

    def access(self, key_name: str) -> AccessFile:
        """What a peer of that name needs."""
        address, key = self._address, derive_key(SECRET, key_name).hex()
        return AccessFile(self._cluster_id, address.host, address.port, key_name, key, address.user, address.password)

    def add_worker(self, cpus: float) -> QuickWorker:
        self.workers.append(QuickWorker(self._address, self._cluster_id, cpus))
        return self.workers[-1]

    def stop(self) -> None:
        self.client.close()
        for worker in self.workers:
            worker.stop()
        self.meter.stop()
        self._runtime.stop()
        self._thread.join(DEADLINE_S)
        gc.unfreeze()  # the loop froze what was there, which here is all of the tests
        gc.set_threshold(*self._thresholds)


@pytest.fixture
def house(engine: Engine, mosquitto: Mosquitto, tmp_path: Path) -> Iterator[House]:
    """A boss on each kind of database."""
    house = House(engine, mosquitto.address, tmp_path / "datastore")
    yield house
    house.stop()


def wide() -> list[TaskDefinition]:
    return [TaskDefinition(f"t{index}", ("true",)) for index in range(TASKS)]


def deep_and_wide() -> list[TaskDefinition]:
    """Four layers, each task after four of the layer before."""
    width = TASKS // 4
    return [
        TaskDefinition(
            f"t{layer}-{index}",
            ("true",),
            tuple(Dependency(f"t{layer - 1}-{(index + step) % width}") for step in range(4)) if layer else (),
        )
        for layer in range(4)
        for index in range(width)
    ]


SHAPES = pytest.mark.parametrize("tasks", [wide, deep_and_wide])


@SHAPES
def test_a_push_costs_statements_by_the_batch(tasks: Callable[[], list[TaskDefinition]], house: House) -> None:
    house.meter.reset()
    accepted = house.client.push(tasks(), PushOptions("r"))
    assert accepted.decisions == {"new": TASKS}
    # 7 statements, 1 for the tasks and 1 for their definitions, 1 for each thousand dependencies; 2 chunks.
    assert house.meter.statements.total() <= 20, house.meter.statements
    assert house.meter.at_the_server() <= 20
    assert house.meter.commits <= 5
    assert house.meter.messages["boss SubmitTasks"] == 2
    assert house.meter.messages.total() <= 20, house.meter.messages


@SHAPES
def test_a_run_costs_statements_and_messages_by_the_batch(
    tasks: Callable[[], list[TaskDefinition]], house: House
) -> None:
    house.client.push(tasks(), PushOptions("r"))
    house.meter.reset()
    worker = house.add_worker(cpus=1_000.0)
    assert watch_to_the_end(house.client, "r").states == {"succeeded": TASKS}
    # Two batches where all are ready at once, four where there are four layers; up to 9 statements each.
    assert len(worker.orders) <= 8, worker.orders
    assert house.meter.statements.total() <= 80, house.meter.statements
    assert house.meter.at_the_server() <= 80
    assert house.meter.messages["peer StartTasks"] == len(worker.orders)
    assert house.meter.messages["peer OutcomesStored"] <= len(worker.orders)
    assert house.meter.messages.total() <= 60, house.meter.messages


def test_a_second_thousand_costs_no_more_than_the_first(house: House) -> None:
    costs = []
    for run in ("one", "two", "three"):
        house.meter.reset()
        house.client.push(wide(), PushOptions(run))
        if not house.workers:
            house.add_worker(cpus=1_000.0)
        assert watch_to_the_end(house.client, run).states == {"succeeded": TASKS}
        costs.append(house.meter.statements.total())
    assert max(costs) <= 80, costs


def test_a_real_worker_costs_a_few_statements_and_messages_for_each_batch(
    sqlite_engine: Engine, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    # How many ends travel together depends on how quick this machine is; what each batch costs does not.
    house = House(sqlite_engine, mosquitto.address, tmp_path / "datastore")
    access = tmp_path / "access"
    write_access(access, house.access("vm-2"))
    command = [sys.executable, "-m", "worker", str(access), "--home", str(tmp_path / "worker"), "--cpus", "4"]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        house.meter.reset()
        house.client.push(wide(), PushOptions("r"))
        assert watch_to_the_end(house.client, "r").states == {"succeeded": TASKS}
        counted, messages = house.meter.statements, house.meter.messages
        batches = sum(count for text, count in counted.items() if text.startswith("UPDATE leader SET batch"))
        assert counted.total() <= 9 * batches + 20, counted
        assert messages["boss TasksEnded"] < TASKS, messages
        assert messages["peer OutcomesStored"] <= messages["boss TasksEnded"]
        assert messages["peer StartTasks"] <= batches + 1, messages
        assert messages["boss TasksStarted"] <= messages["boss TasksEnded"], messages
    finally:
        worker.terminate()
        worker.wait(DEADLINE_S)
        house.stop()
