"""Access to a datastore in the two cores: a certificate that is not taken is replaced, whatever its time says."""

from __future__ import annotations

from boss_script import BossScript, Peer
from worker_script import WorkerScript

from boss.core.model.effects import SignKey, UseDatastore
from boss.core.model.events import DatastoreUsed, KeySigned
from boss.core.workers.datastore_access import ASK_AGAIN_S
from ecloud.model import wire
from ecloud.model.wire import DatastoreAccess
from worker.core.events import AccessEnded

THERE = DatastoreAccess("u@host:/root", host_key="ssh-ed25519 AAAA")
HOUR_S = 3600.0


def test_a_worker_whose_access_is_refused_reports_it_at_once_and_once() -> None:
    script = WorkerScript().on_duty(datastore=THERE)
    script.hear(wire.DatastoreGranted(DatastoreAccess("u@host:/root", "certificate", THERE.host_key), HOUR_S))
    script.wait(5.0)
    assert script.beats().access_s == HOUR_S - 5.0
    script.handle(AccessEnded()).handle(AccessEnded())
    assert script.beats().access_s == 0.0
    script.handle(AccessEnded()).nothing_else()
    script.hear(wire.DatastoreGranted(DatastoreAccess("u@host:/root", "another", THERE.host_key), HOUR_S))
    script.wait(5.0)
    assert script.beats().access_s == HOUR_S - 5.0


def test_the_boss_signs_for_who_is_refused_and_tells_that_from_who_has_none_yet() -> None:
    script = BossScript(datastore=THERE)
    worker = Peer("w1", "worker")
    script.hello(worker, resources={"cpus": 1.0}, home="home", ssh_key="its key").beats(worker)
    assert script.call(SignKey) == SignKey("w1", "its key")
    script.beats(worker, access_s=HOUR_S - 1.0).nothing_else()
    script.wait(60.0).beats(worker, access_s=0.0)
    assert script.call(SignKey) == SignKey("w1", "its key", refused=True)


def test_nothing_is_signed_while_the_boss_itself_is_on_its_way_to_another_datastore() -> None:
    """It would be signed for the old one, or, where that is a directory, not at all."""
    script = BossScript()
    worker = Peer("w1", "worker")
    script.hello(worker, resources={"cpus": 1.0}, home="home", ssh_key="its key").beats(worker)
    script.ask("set_datastore", address=THERE.address, host_key=THERE.host_key)
    script.call(UseDatastore)
    script.take(worker, wire.DatastoreGranted)
    script.beats(worker, access_s=0.0).nothing_else()
    script.handle(KeySigned("w1", "of the old one", HOUR_S))
    script.nothing_else()
    script.handle(DatastoreUsed(THERE.address))
    assert script.call(SignKey) == SignKey("w1", "its key")
    script.handle(KeySigned("w1", "certificate", HOUR_S))
    assert script.take(worker, wire.DatastoreGranted).datastore.credential == "certificate"


def test_a_boss_whose_own_way_fails_signs_after_a_while() -> None:
    script = BossScript()
    worker = Peer("w1", "worker")
    script.hello(worker, resources={"cpus": 1.0}, home="home", ssh_key="its key").beats(worker)
    script.ask("set_datastore", address=THERE.address, host_key=THERE.host_key)
    script.call(UseDatastore)
    script.take(worker, wire.DatastoreGranted)
    script.wait(ASK_AGAIN_S).beats(worker, access_s=0.0)
    assert script.call(SignKey) == SignKey("w1", "its key", refused=True)


def test_who_is_refused_whatever_is_signed_for_him_is_not_signed_for_without_end() -> None:
    """The line of the authority may be gone from the datastore: each signature is a process of the boss's machine."""
    script = BossScript(datastore=THERE)
    worker = Peer("w1", "worker")
    script.hello(worker, resources={"cpus": 1.0}, home="home", ssh_key="its key").beats(worker)
    script.call(SignKey)
    script.handle(KeySigned("w1", "certificate", HOUR_S))
    asked = 0
    for _ in range(90):
        script.wait(1.0)
        script.beats(worker, access_s=0.0)
        if any(isinstance(call, SignKey) for call in script.calls):
            script.call(SignKey)
            script.handle(KeySigned("w1", "another", HOUR_S))
            asked += 1
    assert asked == 3
