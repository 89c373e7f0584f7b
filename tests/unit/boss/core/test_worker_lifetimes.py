"""Workers whose machines end, as Slurm jobs do: each gets only tasks that it lives for."""

from __future__ import annotations

import msgspec
from boss_script import BossScript, Peer, task

from boss.core.model.effects import EndVm, StartVm
from boss.core.model.events import VmStarted
from ecloud.model import wire

HOUR = 3600.0


def ends(script: BossScript, name: str, lives_s: float | None, cpus: float = 1.0, **fields: object) -> Peer:
    """A worker whose machine ends in `lives_s`."""
    peer = script.peers[name] = Peer(name, "worker")
    script.hello(peer, resources={"cpus": cpus}, home=f"home-{name}", lives_s=lives_s, chains=True, **fields)
    script.beats(peer)
    return peer


def boots(script: BossScript, name: str, lives_s: float | None) -> Peer:
    """The worker of the VM that the boss requested."""
    start = script.call(StartVm)
    script.handle(VmStarted(start.vm_no, f"job-{start.vm_no}"))
    peer = script.peers[name] = Peer(name, "worker")
    peer.key_name = f"vm-{start.vm_no}"
    script.hello(
        peer, resources={"cpus": 1.0}, home=f"home-{name}", lives_s=lives_s, vm=f"job-{start.vm_no}",
        boot_nonce=start.boot_nonce,
    )  # fmt: skip
    script.beats(peer)
    return peer


def why(script: BossScript, id: str) -> list[str]:
    answer = script.ask("why", task_no=script.names[id])
    assert isinstance(answer, wire.RequestDone)
    return msgspec.json.decode(answer.text, type=list[str])


def learn(script: BossScript, worker: Peer) -> None:
    """Tasks with the label `quick` turn out to take 10 ms, whatever they state."""
    script.push("first", task("learned", labels=("quick",)))
    script.starts(worker, "learned")
    script.wait(0.02).ended(worker, "learned", run_s=0.01).stored(worker, "learned")


# --- placing ------------------------------------------------------------------------------------------


def test_a_task_goes_to_the_worker_that_lives_long_enough() -> None:
    script = BossScript()
    ends(script, "short", HOUR)
    long = ends(script, "long", 3 * HOUR)
    script.push("r", task("a", runtime_s=2 * HOUR), task("b", runtime_s=2 * HOUR))
    script.starts(long, "a").nothing_else()
    assert script.state("b") == "ready"


def test_a_task_waits_for_a_worker_that_lives_long_enough() -> None:
    script = BossScript()
    ends(script, "short", HOUR)
    script.push("r", task("a", runtime_s=2 * HOUR))
    script.nothing_else()
    script.starts(ends(script, "forever", None), "a").nothing_else()


def test_the_time_that_a_worker_has_left_passes() -> None:
    script = BossScript()
    worker = ends(script, "w1", HOUR)
    script.wait(30.0).beats(worker)
    script.push("r", task("a", runtime_s=HOUR - 30.0))
    script.starts(worker, "a").ended(worker, "a").stored(worker, "a")
    script.wait(1.0).beats(worker)
    script.push("r2", task("b", runtime_s=HOUR - 30.0))
    script.nothing_else()


def test_a_minute_or_nothing_stated_is_not_compared() -> None:
    script = BossScript()
    worker = ends(script, "w1", 45.0, cpus=3.0)
    script.push("r", task("a", runtime_s=60.0), task("b"), task("c", runtime_s=61.0))
    script.starts(worker, "a", "b").nothing_else()


def test_only_what_is_stated_counts_not_what_was_learned() -> None:
    script = BossScript()
    worker = ends(script, "w1", HOUR)
    learn(script, worker)
    script.push("r", task("a", labels=("quick",), runtime_s=2 * HOUR), task("b", labels=("quick",), runtime_s=60.0))
    script.starts(worker, "b").nothing_else()


def test_a_long_task_holds_up_none_behind_it() -> None:
    """Also those of nearly the same length, and however many long ones are before them."""
    script = BossScript(ahead_max=0)
    worker = ends(script, "w1", HOUR)
    long = [task(f"long{number}", runtime_s=HOUR + 1.0) for number in range(200)]
    script.push("r", *long, task("a", runtime_s=HOUR - 100.0), task("b", runtime_s=100.0), task("c"))
    script.starts(worker, "a").ended(worker, "a").stored(worker, "a")
    script.starts(worker, "b").ended(worker, "b").stored(worker, "b")
    script.starts(worker, "c").nothing_else()
    forever = ends(script, "forever", None)
    script.starts(forever, "long0").nothing_else()


def test_a_long_task_of_one_run_holds_up_no_other_run() -> None:
    script = BossScript()
    worker = ends(script, "w1", HOUR)
    script.push("r", task("long", priority=9, runtime_s=HOUR + 1.0))
    script.push("s", task("a", priority=9, runtime_s=HOUR - 1.0))
    script.starts(worker, "a").nothing_else()


def test_the_order_of_the_list_stays_where_workers_live_long_enough() -> None:
    script = BossScript(ahead_max=0)
    worker = ends(script, "w1", 100 * HOUR, cpus=2.0)
    tasks = [task("a", runtime_s=2 * HOUR), task("b"), task("c", runtime_s=100.0), task("d", runtime_s=5 * HOUR)]
    script.push("r", *tasks)
    script.starts(worker, "a", "b").ended(worker, "a", "b").starts(worker, "c", "d")


def test_a_newer_hello_counts_and_so_does_the_next_boss() -> None:
    script = BossScript()
    worker = ends(script, "w1", HOUR)
    script.push("r", task("a", runtime_s=2 * HOUR))
    script.start()
    script.wait(1.0)
    script.hello(worker, resources={"cpus": 1.0}, home="home-w1", lives_s=HOUR - 1.0)
    script.beats(worker).nothing_else()
    script.hello(worker, resources={"cpus": 1.0}, home="home-w1", lives_s=3 * HOUR)
    script.beats(worker).starts(worker, "a").nothing_else()


def test_the_time_counts_from_the_hello_not_from_the_message_after_it() -> None:
    script = BossScript()
    peer = Peer("w1", "worker")
    script.hello(peer, resources={"cpus": 1.0}, home="home-w1", lives_s=100.0)
    script.wait(20.0).beats(peer)
    script.push("r", task("a", runtime_s=90.0), task("b", runtime_s=70.0))
    script.starts(peer, "b").nothing_else()


# --- queues, chains, stealing, reservations -----------------------------------------------------------


def test_what_is_queued_counts_what_runs_before_it() -> None:
    script = BossScript()
    worker = ends(script, "w1", HOUR)
    learn(script, worker)
    script.push("r", task("runs", runtime_s=HOUR / 2))
    script.starts(worker, "runs").started(worker, "runs")
    script.push(
        "s", task("a", labels=("quick",), runtime_s=0.8 * HOUR), task("b", labels=("quick",), runtime_s=HOUR / 4)
    )
    script.starts(worker, "b").nothing_else()


def test_a_chain_counts_what_is_before_it() -> None:
    script = BossScript()
    worker = ends(script, "w1", HOUR)
    learn(script, worker)
    script.push(
        "r", task("a", runtime_s=HOUR / 2),
        task("long", after="a", labels=("quick",), runtime_s=0.8 * HOUR),
        task("short", after="a", labels=("quick",), runtime_s=HOUR / 4),
    )  # fmt: skip
    script.starts(worker, "a", "short").nothing_else()


def test_nothing_is_asked_back_for_an_idle_worker_that_ends_too_soon() -> None:
    script = BossScript()
    busy = ends(script, "busy", None)
    learn(script, busy)
    script.push("r", task("runs", runtime_s=5 * HOUR))
    script.push("s", task("queued", labels=("quick",), runtime_s=2 * HOUR))
    script.starts(busy, "runs").starts(busy, "queued").started(busy, "runs")
    ends(script, "short", HOUR)
    script.wait(3.0).nothing_else()
    ends(script, "long", 3 * HOUR)
    script.wait(3.0)
    assert script.take(busy, wire.ReturnTasks).attempts == (wire.AttemptName(*script.key("queued")),)


def test_a_large_task_reserves_no_worker_that_ends_too_soon_for_it() -> None:
    script = BossScript(ahead_max=0)
    short, long = ends(script, "short", HOUR, cpus=2.0), ends(script, "long", 9 * HOUR, cpus=2.0)
    script.push("r", *(task(f"r{number}", runtime_s=100.0) for number in range(4)))
    script.starts(short, "r0", "r2").starts(long, "r1", "r3")
    script.push(
        "s", task("large", resources={"cpus": 2.0}, priority=1, runtime_s=2 * HOUR), task("small"), task("more")
    )
    script.ended(short, "r0").starts(short, "small")
    script.ended(long, "r1").ended(long, "r3").starts(long, "large")


# --- pools --------------------------------------------------------------------------------------------


def test_a_pool_starts_a_vm_for_a_task_that_present_workers_end_too_soon_for() -> None:
    script = BossScript().pool("hpc", maximum=2, lives_s=4 * HOUR)
    ends(script, "short", HOUR)
    script.push("r", task("a", runtime_s=2 * HOUR))
    script.starts(boots(script, "w1", 4 * HOUR - 5.0), "a").nothing_else()


def test_the_pool_whose_vms_live_long_enough_starts_one() -> None:
    script = BossScript().pool("brief", maximum=2, lives_s=HOUR).pool("long", maximum=2, lives_s=4 * HOUR)
    script.push("r", task("a", runtime_s=2 * HOUR), task("b", runtime_s=100.0))
    started = sorted([script.call(StartVm).pool, script.call(StartVm).pool])
    assert started == ["brief", "long"]
    script.nothing_else()


def test_no_pool_starts_a_vm_that_ends_too_soon() -> None:
    script = BossScript().pool("hpc", maximum=2, lives_s=HOUR)
    script.push("r", task("a", runtime_s=2 * HOUR))
    script.wait(60.0)
    assert not [call for call in script.calls if isinstance(call, StartVm)]
    assert script.state("a") == "ready"


def test_a_booting_vm_that_ends_too_soon_is_none_to_wait_for() -> None:
    script = BossScript().pool("brief", maximum=1, lives_s=HOUR).pool("long", maximum=1, lives_s=4 * HOUR)
    script.push("r", task("a", runtime_s=100.0))
    assert script.call(StartVm).pool == "brief"
    script.push("s", task("b", runtime_s=2 * HOUR))
    assert script.call(StartVm).pool == "long"


def test_an_idle_vm_that_ends_too_soon_is_not_kept_for_the_task() -> None:
    script = BossScript().pool("hpc", maximum=1, lives_s=HOUR, idle_s=10.0)
    script.push("r", task("a"))
    worker = boots(script, "w1", HOUR)
    script.starts(worker, "a").ended(worker, "a").stored(worker, "a")
    script.push("s", task("b", runtime_s=HOUR - 20.0))
    script.starts(worker, "b").ended(worker, "b").stored(worker, "b")
    script.wait(9.0).beats(worker)
    script.push("t", task("c", runtime_s=HOUR - 1.0))
    script.wait(2.0)
    assert script.take(worker, wire.Drain).then_exit


def test_vms_are_not_started_for_ever_for_a_task_that_is_a_moment_too_long() -> None:
    """A worker reports some time after its job began, so that it has less left than the pool's time limit."""
    script = BossScript().pool("hpc", maximum=1, lives_s=HOUR, idle_s=1.0)
    script.push("r", task("a", runtime_s=HOUR - 1.0))
    started = 0
    for number in range(10):
        if not any(isinstance(call, StartVm) for call in script.calls):
            break
        worker, started = boots(script, f"w{number}", HOUR - 5.0), started + 1
        script.wait(2.0).take(worker, wire.Drain)
        script.hear(worker, wire.Goodbye("idle"))
        script.wait(1.0)
        script.calls = [call for call in script.calls if not isinstance(call, EndVm)]
        vm_no = int(worker.key_name.removeprefix("vm-"))
        script.boss.vms.gone(script.boss.vms.alive[vm_no], "it ended", script.now)
        script.wait(20.0)
    assert 1 <= started <= 3
    assert "workers of pool hpc live for 59 min 55 s: raise the pool's time_limit" in why(script, "a")[0]


# --- reasons ------------------------------------------------------------------------------------------


def test_why_names_the_stated_time_the_longest_life_and_the_remedy() -> None:
    script = BossScript().pool("brief", maximum=1, lives_s=600.0).pool("hpc", maximum=1, lives_s=HOUR)
    ends(script, "w1", HOUR / 2)
    script.push("r", task("a", runtime_s=2 * HOUR))
    assert why(script, "a") == [
        "task a waits: its runtime_s is 7200 (2 h), and the longest-lived worker that it fits ends in 30 min; "
        "workers of pool hpc live for 1 h: raise the pool's time_limit, or lower runtime_s"
    ]


def test_why_without_a_pool_and_with_one_that_can() -> None:
    script = BossScript()
    ends(script, "w1", HOUR / 2)
    script.push("r", task("a", runtime_s=2 * HOUR))
    waits = "task a waits: its runtime_s is 7200 (2 h), and the longest-lived worker that it fits ends in 30 min"
    assert why(script, "a") == [
        f"{waits}, and no pool can start another: start a worker that lives longer, or lower runtime_s"
    ]
    script.pool("hpc", maximum=1, lives_s=4 * HOUR)
    ends(script, "w1", HOUR / 2)
    assert why(script, "a")[0] == f"{waits}; pool hpc can start one that fits"


def test_a_watcher_gets_the_task_that_no_worker_and_no_pool_lives_for() -> None:
    script = BossScript().pool("hpc", maximum=1, lives_s=HOUR)
    script.push("r", task("a", runtime_s=2 * HOUR), task("b", runtime_s=2 * HOUR))
    script.ask("watch", run="r")
    picture = script.take(script.client(), wire.RunChanged)
    assert picture.waits == (
        "task a waits: its runtime_s is 7200 (2 h), and no worker that it fits is up; workers of pool hpc live for "
        "1 h: raise the pool's time_limit, or lower runtime_s; nothing can run 1 other task of the run either"
    )
    ends(script, "forever", None)
    script.wait(2.0)
    assert not script.boss.unrunnable.texts


def test_a_task_that_waits_for_a_busy_worker_or_for_a_pool_is_no_such_task() -> None:
    script = BossScript().pool("hpc", maximum=1, lives_s=4 * HOUR)
    script.push("r", task("a", runtime_s=2 * HOUR), task("b", runtime_s=2 * HOUR))
    script.wait(2.0)
    assert not script.boss.unrunnable.texts


def test_ready_tasks_that_a_worker_ends_too_soon_for_hold_up_no_chain_there() -> None:
    script = BossScript()
    worker = ends(script, "w1", HOUR)
    learn(script, worker)
    script.push("first", task("runs", runtime_s=100.0))
    script.starts(worker, "runs").push("s", task("too long", priority=9, runtime_s=2 * HOUR))
    script.push("r", task("a", runtime_s=0.01), task("b", after="a", runtime_s=0.01))
    script.starts(worker, "a", "b").nothing_else()
    script.push("s", task("too long", priority=9, runtime_s=2 * HOUR), task("urgent", priority=5, runtime_s=100.0))
    script.push("r2", task("c", runtime_s=0.01), task("d", after="c", runtime_s=0.01))
    script.starts(worker, "c").states(urgent="ready", d="waiting").nothing_else()  # it does not end too soon for urgent
