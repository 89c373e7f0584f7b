"""The boss's loop: after a batch that the database refuses it starts again from its tables, and the old core leaves
nothing behind; heartbeats are taken together."""

from __future__ import annotations

import gc
import queue
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from services import HOST, free_port
from sqlalchemy.engine import Engine

from boss.core.model.config import BossConfig, PoolConfig
from boss.core.model.events import Event, MessageArrived
from boss.core.model.rows import Writes
from boss.shell.calls import Calls
from boss.shell.runtime import Clock, Runtime
from boss.shell.storage import Storage
from boss.store.store import Store
from ecloud.client.broker import BrokerAddress
from ecloud.config.home import Home
from ecloud.model import wire


@pytest.fixture
def runtime(sqlite_engine: Engine, tmp_path: Path) -> Iterator[Runtime]:
    """A boss's loop that does not run, at a broker that does not exist."""
    thresholds = gc.get_threshold()
    clock, store = Clock(), Store(sqlite_engine)
    store.lead("the test", clock())
    cluster_id = store.load().cluster_id
    storage = Storage(Home(tmp_path), cluster_id)
    storage.use(f"dir:{tmp_path}")
    pools = (PoolConfig("p", {"cpus": 1.0}, minimum=0, maximum=1),)
    config = BossConfig(datastore=wire.DatastoreAccess(f"dir:{tmp_path}"), pools=pools)
    calls: list[Calls] = []

    def make_calls(put: Callable[[Event], None]) -> Calls:
        calls.append(Calls(storage, {}, {}, put))
        return calls[0]

    address = BrokerAddress(HOST, free_port())
    yield Runtime(store, config, cluster_id, b"s" * 32, address, make_calls, None, clock)
    calls[0].close()
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_of_a_boss_whose_batch_was_refused_nothing_is_remembered(
    runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    driver = runtime._driver
    assert runtime._drive(driver.begin())
    assert driver.core is not None
    before = weakref.ref(driver.core)
    driver._batch += 1  # a batch that does not follow the last one
    assert runtime._drive(driver.turn([]))
    assert "the database refuses a batch" in caplog.text
    assert before() is None
    assert runtime._drive(driver.turn([]))
    assert caplog.text.count("refuses") == 1, "the next one continues"


def test_after_a_refused_batch_the_datastore_that_was_set_since_the_start_is_kept(runtime: Runtime) -> None:
    driver = runtime._driver
    assert runtime._drive(driver.begin())
    set_since = {"datastore_address": "files@host:/root", "datastore_host_key": "a key"}
    runtime._store.commit(driver._batch + 1, Writes(context=dict(set_since)), runtime._clock())
    driver._batch += 5  # a batch that does not follow the last one
    assert runtime._drive(driver.turn([]))
    assert driver.core is not None
    assert driver.core.access.datastore == wire.DatastoreAccess("files@host:/root", host_key="a key")


def test_heartbeats_alone_wait_a_moment_for_others_and_nothing_waits_with_them(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runtime._drive(runtime._driver.begin())
    beat, hello = (
        MessageArrived(wire.Envelope(wire.PROTOCOL_VERSION, "w1", "s", 1, message), "key")
        for message in (wire.Heartbeat(0), wire.Hello("n", "worker"))
    )
    waiting: list[Event] = [beat, beat, hello, beat]
    waited: list[float] = []

    def get(timeout_s: float) -> Event:
        waited.append(timeout_s)
        if not waiting:
            raise queue.Empty
        return waiting.pop(0)

    monkeypatch.setattr(runtime._inbox, "get", get)
    assert runtime._take() == [beat, beat, hello, beat]
    assert [timeout_s > 0 for timeout_s in waited[1:]] == [True, True, False, False]
