"""Workers of one machine: what it has is promised once, whatever pools they belong to."""

from __future__ import annotations

from boss_script import BossScript, Peer, task

from boss.core.boss import Boss
from ecloud.model import wire

HAS = {"cpus": 2.0, "memory_mb": 24_000.0}


def on_machine(script: BossScript, name: str, cpus: float = 1.0, has: dict[str, float] = HAS, **more: object) -> Peer:
    """A worker on the machine `m`; `part`: of the part of it with that name."""
    peer = script.peers[name] = Peer(name, "worker")
    part = str(more.pop("part", ""))
    offers = {"cpus": cpus, "memory_mb": 12_000.0 * cpus, **more}
    script.hello(
        peer, resources=offers, home=f"home-{name}", boot_id="b", machine="m", machine_part=part, machine_has=has
    )
    script.beats(peer)
    return peer


def free_of(boss: Boss, name: str) -> float:
    return boss.fleet.workers[name].free["cpus"]


def test_what_a_whole_worker_runs_is_not_there_for_the_others() -> None:
    script = BossScript()
    whole = on_machine(script, "whole", cpus=2)
    on_machine(script, "one")
    script.push("r", task("two", resources={"cpus": 2.0}), task("a"), task("b"))
    script.starts(whole, "two").nothing_else()
    script.ended(whole, "two").stored(whole, "two")
    script.starts(whole, "a").starts(script.peers["one"], "b").nothing_else()


def test_memory_is_shared_too() -> None:
    script = BossScript()
    one, two = on_machine(script, "one"), on_machine(script, "two")
    on_machine(script, "whole", cpus=2)
    script.push("r", task("a", resources={"memory_mb": 10_000.0}), task("b", resources={"memory_mb": 10_000.0}))
    script.push("s", task("big", resources={"memory_mb": 20_000.0}))
    held = [name for name, worker in script.boss.fleet.workers.items() if worker.held]
    assert len(held) == 2, "10 and 10 of 24 GB; 20 more do not fit"
    assert script.state("big") == "ready"
    del one, two


def test_a_machine_that_is_not_promised_twice_limits_nothing() -> None:
    script = BossScript()
    on_machine(script, "one")
    on_machine(script, "two")
    workers = script.boss.fleet.workers.values()
    assert all(not worker.shares_machine and worker.free is worker.own for worker in workers)


def test_nothing_is_queued_ahead_on_a_shared_machine() -> None:
    """A worker would start it as soon as it fits its own resources, whatever its neighbour runs."""
    script = BossScript()
    whole = on_machine(script, "whole", cpus=2)
    on_machine(script, "one")
    script.push("r", *(task(f"t{number}", runtime_s=0.01) for number in range(8)))
    assert sum(len(worker.held) for worker in script.boss.fleet.workers.values()) == 2
    assert not script.boss.fleet.workers["whole"].ahead
    del whole


def test_a_neighbour_that_comes_later_waits_for_what_is_queued_already() -> None:
    script = BossScript()
    whole = on_machine(script, "whole", cpus=2)
    script.push("r", *(task(f"t{number}", runtime_s=0.01) for number in range(4)))
    assert script.boss.fleet.workers["whole"].ahead
    on_machine(script, "one")
    assert free_of(script.boss, "one") == 0.0
    script.starts(whole, "t0", "t1", "t2", "t3").started(whole, "t0", "t1")
    script.ended(whole, "t0", "t1").stored(whole, "t0", "t1")
    script.ended(whole, "t2").stored(whole, "t2")
    assert free_of(script.boss, "one") == 1.0


def test_a_large_task_is_not_starved_by_small_ones_of_neighbours() -> None:
    script = BossScript()
    one = on_machine(script, "one")
    on_machine(script, "whole", cpus=2)
    script.push("r", task("a"), task("b"))
    script.push("s", task("two", priority=9, resources={"cpus": 2.0}), *(task(f"s{n}") for n in range(5)))
    running = [(name, key) for name, worker in script.boss.fleet.workers.items() for key in worker.held]
    assert len(running) == 2
    for name, key in running:
        peer = script.peers[name]
        id = next(id for id, task_no in script.names.items() if task_no == key[0])
        script.starts(peer, id).ended(peer, id).stored(peer, id)
    assert list(script.boss.fleet.workers["whole"].held) == [script.key("two")]
    assert not script.boss.fleet.workers["one"].held
    del one


def test_parts_of_a_machine_are_not_shared_with_one_another() -> None:
    script = BossScript()
    on_machine(script, "one", cpus=2, part="job 1")
    on_machine(script, "two", cpus=2, part="job 2")
    script.push("r", *(task(f"t{number}", runtime_s=99.0) for number in range(4)))
    assert [len(worker.held) for worker in script.boss.fleet.workers.values()] == [2, 2]


def test_a_worker_that_was_told_to_offer_more_is_believed() -> None:
    script = BossScript()
    on_machine(script, "one", cpus=4)
    script.push("r", *(task(f"t{number}", runtime_s=99.0) for number in range(4)))
    assert len(script.boss.fleet.workers["one"].held) == 4


def test_gpus_of_two_workers_may_be_the_same() -> None:
    has = {"cpus": 8.0, "gpus": 2.0}
    script = BossScript()
    first, second = on_machine(script, "first", has=has, gpus=1.0), on_machine(script, "second", has=has, gpus=1.0)
    on_machine(script, "whole", cpus=2, has=has, gpus=2.0)
    gpu = {"cpus": 1.0, "gpus": 1.0}
    script.push("r", *(task(f"t{number}", resources=gpu, runtime_s=99.0) for number in range(4)))
    held = {name: len(worker.held) for name, worker in script.boss.fleet.workers.items()}
    assert held in ({"first": 1, "second": 1, "whole": 0}, {"first": 0, "second": 0, "whole": 2})
    del first, second


def test_a_boss_that_starts_knows_the_machine_again() -> None:
    script = BossScript()
    on_machine(script, "whole", cpus=2)
    on_machine(script, "one")
    script.push("r", task("two", resources={"cpus": 2.0}), task("a"))
    script.start()
    assert free_of(script.boss, "one") == 0.0
    assert len(script.boss.fleet.machines) == 1


def test_a_boss_that_starts_keeps_no_room_beside_the_init_task_of_a_run_that_has_ended() -> None:
    script = BossScript()
    whole = on_machine(script, "whole", cpus=2)
    on_machine(script, "one")
    script.push("r", task("prepare", init=True), task("a", resources={"cpus": 2.0}))
    script.starts(whole, "prepare", "a")
    script.ask("cancel", run="r")
    script.hear(whole, wire.TasksReturned((wire.AttemptName(*script.key("a")),)))
    assert free_of(script.boss, "one") == 0.0
    script.start()
    assert free_of(script.boss, "one") == 0.0


def test_why_names_the_machine() -> None:
    script = BossScript()
    on_machine(script, "whole", cpus=2)
    on_machine(script, "one")
    script.push("r", task("two", resources={"cpus": 2.0}, runtime_s=99.0), task("a"))
    (layer,) = script.boss.requests._why_ready.layers(script.names["a"], script.now)
    assert layer == "task a waits its turn: worker one is free, but other workers on its machine use the machine"


def test_a_task_that_runs_alone_waits_until_the_machine_of_a_worker_is_empty() -> None:
    script = BossScript(max_lost_workers=2, ahead_max=0)
    dying = on_machine(script, "dying")
    script.push("r", task("poison"))
    script.starts(dying, "poison")
    script.wait(script.config.lease_s + script.config.lease_margin_s + 1.0)
    assert list(script.store.tables.suspects) == [script.names["poison"]]
    whole = on_machine(script, "whole", cpus=2)
    script.take(whole, wire.StartTasks)
    script.returned(whole, "poison")  # it gets no task of this run until its next heartbeat
    script.push("s", task("beside", resources={"memory_mb": 20_000.0}))
    one = on_machine(script, "one")
    script.starts(whole, "beside").nothing_else()  # one has a free CPU, and the machine not all of its memory
    script.ended(whole, "beside").stored(whole, "beside")
    script.starts(one, "poison").nothing_else()
