"""Where workers are many, each sends heartbeats less often, and its lease stays safe."""

from __future__ import annotations

import pytest

from ecloud.model import wire
from tests.support.boss_script import BossScript, Peer


def told_s(script: BossScript, worker: Peer) -> float:
    """The interval in the answer to the worker's next heartbeat."""
    script.hear(worker, wire.Heartbeat(worker.seen))
    return script.take(worker, wire.HeartbeatAnswered).heartbeat_s


def welcomed_s(script: BossScript, kind: str) -> float:
    """The interval in the Welcome of a peer that joins now."""
    script.handle(script.message("newcomer", wire.Hello(nonce="n", kind=kind, resources={"cpus": 1.0}, home="new")))
    return script.take(Peer("newcomer", kind), wire.Welcome).heartbeat_s


@pytest.mark.parametrize(("count", "interval_s"), [(10, 5.0), (20, 10.0), (100, 20.0)])
def test_all_workers_together_send_a_bounded_number_but_three_in_a_lease(count: int, interval_s: float) -> None:
    script = BossScript(heartbeats_per_s=2.0)
    workers = [script.worker(f"w{number}") for number in range(count)]
    assert told_s(script, workers[0]) == interval_s
    assert welcomed_s(script, "worker") == interval_s


def test_when_workers_leave_the_others_send_them_more_often_again() -> None:
    script = BossScript(heartbeats_per_s=2.0)
    workers = [script.worker(f"w{number}") for number in range(20)]
    for worker in workers[10:]:
        script.hear(worker, wire.Goodbye())
    assert told_s(script, workers[0]) == 5.0


def test_clients_get_the_interval_of_the_settings() -> None:
    script = BossScript(heartbeats_per_s=2.0)
    for number in range(20):
        script.worker(f"w{number}")
    assert welcomed_s(script, "client") == 5.0


def test_an_interval_that_is_long_anyway_stays() -> None:
    script = BossScript(heartbeat_s=25.0, heartbeats_per_s=0.01)
    assert told_s(script, script.worker("w1")) == 25.0


def test_a_copied_home_waits_for_three_heartbeats_of_its_slow_worker() -> None:
    script = BossScript(heartbeats_per_s=2.0)
    for number in range(40):
        script.worker(f"w{number}")
    first, copy = Peer("first", "worker"), Peer("copy", "worker")
    script.hello(first, resources={"cpus": 1.0}, home="h", boot_id="one").beats(first)

    def refused() -> str:
        script.hello(copy, resources={"cpus": 1.0}, home="h", boot_id="two")
        script.hear(copy, wire.Heartbeat(0))
        return script.take(copy, wire.Refused).code

    assert refused() == "home_unsure"
    script.wait(50.0)
    assert refused() == "home_unsure", "it was told to send a heartbeat each 20 s"
    script.wait(5.0).beats(first)
    assert refused() == "home"
