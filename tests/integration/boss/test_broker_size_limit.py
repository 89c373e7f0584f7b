"""A broker that takes small messages only: a larger push ends with the reason, and the next one is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from services import Daemon, Mosquitto

from ecloud.client.client import PushRejected
from ecloud.model.tasks import TaskDefinition
from ecloud.model.wire import PushOptions


def test_a_push_beyond_the_brokers_limit_ends_with_the_reason(tmp_path: Path, daemons: Callable[..., Daemon]) -> None:
    broker = Mosquitto(tmp_path / "mosquitto", "max_packet_size 1000000").start()
    try:
        daemon = daemons(POOLS=({"name": "nobody", "maximum": 0},), **broker.settings()).start()
        client = daemon.client()
        with pytest.raises(PushRejected, match="the broker seems to take smaller messages only"):
            client.push([TaskDefinition("big", ("x" * 3_000_000,))], PushOptions("r"))
        many = [TaskDefinition(str(number), ("x" * 50_000,)) for number in range(60)]
        assert client.push(many, PushOptions("r")).decisions == {"new": 60}
        client.close()
    finally:
        broker.stop()
